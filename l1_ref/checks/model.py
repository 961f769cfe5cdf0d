"""The checks of the notebook on model."""

EXERCISES = ()
