"""The exercises of notebook 08_generation."""

from l1_ref.checks.engine import Exercise

EXERCISES: tuple[Exercise, ...] = ()
