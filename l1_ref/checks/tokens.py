"""The checks of the notebook on tokens."""

EXERCISES = ()
