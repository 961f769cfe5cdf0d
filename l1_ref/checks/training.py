"""The exercises of notebook 06_training."""

from l1_ref.checks.engine import Exercise

EXERCISES: tuple[Exercise, ...] = ()
