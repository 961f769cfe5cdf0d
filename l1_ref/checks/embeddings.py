"""The checks of the notebook on embeddings."""

EXERCISES = ()
