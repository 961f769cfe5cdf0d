"""The checks of the notebook on blocks."""

EXERCISES = ()
