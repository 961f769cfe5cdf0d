"""The exercises of notebook 07_efficiency."""

from l1_ref.checks import accumulation, bill, mixed, recomputing, scaling
from l1_ref.checks.engine import Exercise

EXERCISES: tuple[Exercise, ...] = (
    accumulation.ACCUMULATE_GRADIENTS,
    scaling.LOSS_SCALED_STEP,
    mixed.AMP_TRAIN_STEP,
    recomputing.CHECKPOINTED,
    bill.TRAINING_MEMORY,
    accumulation.ACCUMULATED_STEP,
)
