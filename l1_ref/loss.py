"""Logits and targets become one number: how surprised the model was, in nats a token."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def cross_entropy(
    logits: Float[Tensor, "*shape V"],
    targets: Int[Tensor, "*shape"],
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
) -> Float[Tensor, ""]:
    """Return the mean of -log p(target) over the targets that count.

    With smoothing s, the target is (1 - s) of the true token and s spread evenly over all V, the true one too.

    Args:
        logits: Scores, before the softmax.
        targets: The right ids.
        label_smoothing: s in [0, 1].
        ignore_index: Targets with this value (padding) do not count; where none counts the loss is NaN, as in torch.

    Returns:
        The loss in nats a token, in float32 or better.

    Source: Bengio et al. 2003, section 2; smoothing: Szegedy et al. 2016, "Rethinking the Inception Architecture",
    section 7.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()  # a sum over the vocabulary in half precision would lose the small terms
    rows, targets = logits.reshape(-1, logits.shape[-1]), targets.flatten().long()  # (N, V), (N,)
    return F.cross_entropy(rows, targets, ignore_index=ignore_index, label_smoothing=label_smoothing)


def perplexity(loss: float | Tensor) -> float | Tensor:
    """Return e^loss: among how many equally likely tokens the model hesitates.

    Args:
        loss: Cross-entropy in nats, a number or a tensor.

    Returns:
        At least 1; a float for a float, a tensor for a tensor; inf where a float's exponential overflows.

    Source: Jelinek et al. 1977, "Perplexity: a measure of the difficulty of speech recognition tasks".
    """
    if isinstance(loss, Tensor):
        return loss.exp()
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
