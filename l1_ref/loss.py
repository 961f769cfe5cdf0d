"""Logits and targets become one number: how surprised the model was, in nats a token."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from l1_ref.config import require_number
from l1_ref.linear import linear

# Logits of one piece in `linear_cross_entropy`: 2 MB in float32. Fewer rows than these would starve the matrix product.
PIECE, MIN_ROWS = 2**19, 256


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

    Raises:
        ValueError: `label_smoothing` is outside [0, 1].

    Example:
        >>> logits = torch.zeros(2, 3, 8)  # each of 8 tokens is as likely as the others
        >>> round(cross_entropy(logits, torch.randint(8, (2, 3))).exp().item(), 3)
        8.0

    Source: Bengio et al. 2003, section 2; smoothing: Szegedy et al. 2016, "Rethinking the Inception Architecture",
    section 7.
    """
    _check_smoothing(label_smoothing)
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()  # a sum over the vocabulary in half precision would lose the small terms
    rows, targets = logits.reshape(-1, logits.shape[-1]), targets.flatten().long()  # (N, V), (N,)
    return F.cross_entropy(rows, targets, ignore_index=ignore_index, label_smoothing=label_smoothing)


def _check_smoothing(label_smoothing: float) -> None:
    require_number("label_smoothing", label_smoothing, "in [0, 1]", lambda s: 0 <= s <= 1)


def linear_cross_entropy(
    hidden: Float[Tensor, "*shape C"],
    weight: Float[Tensor, "V C"],
    targets: Int[Tensor, "*shape"],
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
) -> Float[Tensor, ""]:
    """Return `cross_entropy(hidden @ weight.T, targets)` without ever holding all the logits.

    Rows are taken in pieces that fit into the processor's cache: their logits, the loss, and at once the gradients.
    Then the logits are forgotten. That is faster, and with a large vocabulary it saves most of the memory of a step.

    Args:
        hidden: What the head reads.
        weight: The head's matrix.
        targets: As for `cross_entropy`.
        label_smoothing: As for `cross_entropy`.
        ignore_index: As for `cross_entropy`.

    Returns:
        The loss in nats a token. Under autocast its products are in that dtype, which must not be float16: the
        gradients are made before a loss scale could reach them.

    Raises:
        ValueError: `label_smoothing` is outside [0, 1].
        RuntimeError: A second backward pass through one loss: the first has used up the gradients, in place.

    Example:
        >>> hidden, weight, targets = torch.randn(2, 5, 4), torch.randn(9, 4), torch.randint(9, (2, 5))
        >>> explicit = cross_entropy(hidden @ weight.T, targets)
        >>> torch.allclose(linear_cross_entropy(hidden, weight, targets), explicit, atol=1e-5)
        True

    Source: Hsu et al. 2024, "Liger Kernel: Efficient Triton Kernels for LLM Training", section 3.2, fused linear cross
    entropy; `cross_entropy` is the explicit twin.
    """
    _check_smoothing(label_smoothing)
    rows, targets = hidden.reshape(-1, hidden.shape[-1]), targets.flatten().long()  # (N, C), (N,)
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with_gradients = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    with torch.autocast(device, enabled=False):
        return _LinearCrossEntropy.apply(rows, weight, targets, dtype, label_smoothing, ignore_index, with_gradients)


class _LinearCrossEntropy(torch.autograd.Function):
    """The sum over pieces of rows; what is saved for the backward pass are the gradients themselves."""

    @staticmethod
    def forward(ctx, rows, weight, targets, dtype, label_smoothing, ignore_index, with_gradients):
        V, matrix, sums = len(weight), weight.to(dtype), torch.promote_types(dtype, torch.float32)
        size = max(MIN_ROWS, PIECE // V)
        counts = targets != ignore_index  # (N,)
        n, loss = counts.sum(), torch.zeros((), dtype=sums, device=rows.device)
        d_rows = torch.empty_like(rows) if with_gradients else None
        d_weight = torch.zeros_like(weight) if with_gradients else None
        for start in range(0, len(rows), size):
            piece = slice(start, start + size)
            x, counted = rows[piece].to(dtype), counts[piece, None]  # (M, C), (M, 1)
            target = targets[piece, None].where(counted, 0)
            scores = linear(x, matrix).to(sums)  # (M, V)
            scores -= scores.amax(-1, keepdim=True)
            wanted = (1 - label_smoothing) * scores.gather(1, target)
            if label_smoothing:
                wanted += label_smoothing * scores.mean(-1, keepdim=True)
            total = scores.exp_().sum(-1, keepdim=True)
            loss += (total.log() - wanted).where(counted, 0.0).sum()
            if with_gradients:
                # The gradient of the scores: what the model says, less what is wanted.
                scores.div_(total).sub_(label_smoothing / V)
                scores.scatter_add_(1, target, scores.new_full(target.shape, label_smoothing - 1))
                scores = scores.mul_(counted).to(dtype)
                d_rows[piece] = linear(scores, matrix.t())
                if dtype == weight.dtype:
                    d_weight.addmm_(scores.t(), x)  # one pass over the large matrix, not three
                else:
                    d_weight += scores.t() @ x
        ctx.save_for_backward(d_rows, d_weight, n)
        ctx.used_up = False
        return loss / n

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_loss):
        # In place: a copy of the weight's gradient would be memory at the moment when a step holds the most.
        if ctx.used_up:
            raise RuntimeError(
                "linear_cross_entropy must have one backward pass a loss, got a second; cross_entropy allows more"
            )
        ctx.used_up = True
        d_rows, d_weight, n = ctx.saved_tensors
        share = d_loss / n.clamp(min=1)
        return d_rows.mul_(share), d_weight.mul_(share), None, None, None, None, None


def perplexity(loss: float | Tensor) -> float | Tensor:
    """Return e^loss: among how many equally likely tokens the model hesitates.

    Args:
        loss: Cross-entropy in nats, at least 0, a number or a tensor.

    Returns:
        At least 1, since a cross-entropy is at least 0; a float for a float, a tensor for a tensor; inf where the
        exponential overflows.

    Example:
        >>> perplexity(0.0), round(perplexity(2.0), 2)
        (1.0, 7.39)

    Source: Jelinek et al. 1977, "Perplexity: a measure of the difficulty of speech recognition tasks".
    """
    if isinstance(loss, Tensor):
        return loss.exp()
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
