"""The exercises of notebook 07_efficiency."""

from l1_ref.checks.engine import Exercise

EXERCISES: tuple[Exercise, ...] = ()
