"""The checks of the notebook on attention."""

EXERCISES = ()
