"""One training step in its several forms, and evaluation."""

import math
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from l1_ref.config import require_choice, require_number
from l1_ref.data import Batch
from l1_ref.loss import cross_entropy, linear_cross_entropy
from l1_ref.optimization import clip_grad_norm
from l1_ref.transformer import L1Model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def batch_loss(
    model: nn.Module, x: Int[Tensor, "B T"], y: Int[Tensor, "B T"], label_smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Return `cross_entropy(model(x), y)`; of an `L1Model` all the logits are never held at once.

    Args:
        model: Maps ids to logits.
        x: Input ids.
        y: Targets.
        label_smoothing: As in `cross_entropy`.
    """
    if _has_plain_head(model) and not _in_float16(model, x.device.type):
        return linear_cross_entropy(model.hidden(x), model.head.weight, y, label_smoothing)
    return cross_entropy(model(x), y, label_smoothing)


def _has_plain_head(model: nn.Module) -> bool:
    return type(model) is L1Model and isinstance(model.head, nn.Linear) and "forward" not in vars(model)


def _in_float16(model: L1Model, device: str) -> bool:
    # The gradients of float16 need the loss scale on their way, and `linear_cross_entropy` makes them before it comes.
    autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    return autocast or model.head.weight.dtype == torch.float16


def train_step(
    model: nn.Module,
    x: Int[Tensor, "B T"],
    y: Int[Tensor, "B T"],
    optimizer: torch.optim.Optimizer,
    max_norm: float = 1.0,
) -> Float[Tensor, ""]:
    """Change the weights once so that the targets become more likely.

    Args:
        model: Maps ids to logits.
        x: Input ids.
        y: Targets: for each position, the id that follows.
        optimizer: Holds the model's parameters.
        max_norm: Largest joint norm of the gradients, above 0.

    Returns:
        The loss before the step, in nats a token, detached.

    Raises:
        ValueError: `max_norm` is not above 0.

    Example:
        >>> model = L1Model(L1Config.preset("tiny"))
        >>> optimizer = build_optimizer(model, lr=1e-3)
        >>> x, y = next_token_batch(torch.arange(200), batch_size=2, context=16)
        >>> losses = [train_step(model, x, y, optimizer).item() for _ in range(5)]
        >>> losses[-1] < losses[0]
        True

    Source: Rumelhart, Hinton and Williams 1986, "Learning representations by back-propagating errors".
    """
    optimizer.zero_grad()
    loss = batch_loss(model, x, y)
    loss.backward()
    clip_grad_norm(model.parameters(), max_norm)
    optimizer.step()
    return loss.detach()


def accumulate_gradients(
    model: nn.Module,
    micro_batches: Iterable[Batch],
    dtype: torch.dtype = torch.float32,
    scaler: torch.amp.GradScaler | None = None,
    label_smoothing: float = 0.0,
    before_each: Callable[[], object] = lambda: None,
) -> Float[Tensor, ""]:
    """Add up the gradients of several small batches: the same as those of one large batch, in less memory.

    Each micro-batch counts by its number of targets that are not ignored, so padding does not tilt the mean.

    Args:
        model: Maps ids to logits; its gradients are added to, not reset.
        micro_batches: Pairs of inputs and targets, at least one.
        dtype: Of the matrix products in the forward pass: torch.float32, torch.bfloat16 or torch.float16.
        scaler: Scales the loss before the backward pass, for float16.
        label_smoothing: As in `cross_entropy`.
        before_each: Called before each micro-batch; what it raises ends the step, with gradients of those before.

    Returns:
        The mean loss of all targets, in nats a token, detached; NaN where no target counts.

    Raises:
        ValueError: There is no micro-batch, or `dtype` or `label_smoothing` breaks its rule.

    Example:
        >>> model = L1Model(L1Config.preset("tiny"))
        >>> x, y = next_token_batch(torch.arange(200), batch_size=4, context=16)
        >>> loss = accumulate_gradients(model, [(x[:2], y[:2]), (x[2:], y[2:])])
        >>> torch.allclose(loss, cross_entropy(model(x), y), atol=1e-4)
        True

    Source: Ott et al. 2018, "Scaling Neural Machine Translation".
    """
    require_choice("dtype", dtype, tuple(DTYPES.values()))
    micro_batches = list(micro_batches)
    if not micro_batches:
        raise ValueError("micro_batches must hold at least one batch, got none")
    targets = sum((y != -100).sum() for _, y in micro_batches)
    total = 0.0
    for x, y in micro_batches:
        before_each()
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            loss = batch_loss(model, x, y, label_smoothing)
        n = (y != -100).sum()
        loss = torch.where(n > 0, loss, 0.0) * (n / targets)  # nothing but padding adds 0, not NaN
        (loss if scaler is None else scaler.scale(loss)).backward()
        total = total + loss.detach()
    return total


def loss_scaled_step(
    model: nn.Module, x: Int[Tensor, "B T"], y: Int[Tensor, "B T"], optimizer: torch.optim.Optimizer, scale: float
) -> Float[Tensor, ""]:
    """Take a step with the loss scaled up, by hand: small gradients survive float16, and an overflow skips the step.

    Args:
        model: Maps ids to logits.
        x: Input ids.
        y: Targets.
        optimizer: Holds the model's parameters.
        scale: Above 0; multiplies the loss. The gradients are divided by it again before the step.

    Returns:
        The loss, unscaled and detached, whether the step was taken or not.

    Raises:
        ValueError: The scale is no number above 0.

    Example:
        >>> model = L1Model(L1Config.preset("tiny"))
        >>> optimizer, before = build_optimizer(model, lr=1e-3), model.head.weight.clone()
        >>> x, y = next_token_batch(torch.arange(200), batch_size=2, context=16)
        >>> loss = loss_scaled_step(model, x, y, optimizer, scale=float("inf"))
        >>> torch.equal(model.head.weight, before)  # the gradients overflowed: the step was skipped
        True

    Source: Micikevicius et al. 2018, "Mixed Precision Training", section 3.2.
    """
    require_number("scale", scale, "above 0", lambda scale: scale > 0, largest=math.inf)
    optimizer.zero_grad()
    loss = batch_loss(model, x, y)
    (loss * scale).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    for gradient in gradients:
        gradient.div_(scale)
    if all(gradient.isfinite().all() for gradient in gradients):
        optimizer.step()
    return loss.detach()


def amp_train_step(
    model: nn.Module,
    x: Int[Tensor, "B T"],
    y: Int[Tensor, "B T"],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    dtype: torch.dtype,
    max_norm: float = 1.0,
) -> Float[Tensor, ""]:
    """Take a training step in mixed precision: half-precision products, float32 weights.

    Args:
        model: Maps ids to logits.
        x: Input ids.
        y: Targets.
        optimizer: Holds the model's parameters.
        scaler: Scales the loss and skips steps that overflow; made with `enabled=False` where not needed (bfloat16).
        dtype: torch.float16 or torch.bfloat16; torch.float32 turns mixed precision off.
        max_norm: Largest joint norm of the gradients, measured after unscaling.

    Returns:
        The loss, unscaled and detached.

    Raises:
        ValueError: `dtype`, `max_norm` or the scaler's scale breaks its rule.

    Example:
        >>> model = L1Model(L1Config.preset("tiny"))
        >>> optimizer, scaler = build_optimizer(model, lr=1e-3), torch.amp.GradScaler("cpu", enabled=False)
        >>> x, y = next_token_batch(torch.arange(200), batch_size=2, context=16)
        >>> loss = amp_train_step(model, x, y, optimizer, scaler, torch.bfloat16)
        >>> model.head.weight.dtype, bool(loss.isfinite())
        (torch.float32, True)

    Source: Micikevicius et al. 2018, section 3.
    """
    optimizer.zero_grad()
    loss = accumulate_gradients(model, [(x, y)], dtype, scaler)
    scaled_update(model, optimizer, scaler, max_norm)
    return loss


def scaled_update(
    model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, max_norm: float
) -> None:
    """Unscale the gradients, clip them, take the step unless one of them overflowed, and adjust the scale.

    Args:
        model: Its gradients are those of the scaled loss.
        optimizer: Holds the model's parameters.
        scaler: The one that scaled the loss; its scale must be above 0.
        max_norm: Largest joint norm of the gradients, measured after unscaling.

    Raises:
        ValueError: The scale or `max_norm` is not above 0.

    Source: Micikevicius et al. 2018, section 3.2.
    """
    require_number("scale", scaler.get_scale(), "above 0", lambda scale: scale > 0, largest=math.inf)
    scaler.unscale_(optimizer)  # first: clipping must see the true gradients
    clip_grad_norm(model.parameters(), max_norm)
    scaler.step(optimizer)
    scaler.update()


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch], dtype: torch.dtype = torch.float32) -> float:
    """Return the mean loss over all targets of some batches, without dropout, in nats a token.

    Args:
        model: Left in the mode in which it came.
        batches: Inputs and targets; targets of -100 do not count.
        dtype: Of the matrix products: torch.float32, torch.bfloat16 or torch.float16.

    Returns:
        The mean loss, each target counted once.

    Raises:
        ValueError: There is no target, or `dtype` breaks its rule.

    Example:
        >>> model = L1Model(L1Config.preset("tiny"))
        >>> batch = next_token_batch(torch.arange(200), batch_size=2, context=16)
        >>> 6 < evaluate(model, [batch]) < 8  # a blind guess among 1,000 tokens costs log(1000) = 6.9 nats
        True

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 3.1.
    """
    require_choice("dtype", dtype, tuple(DTYPES.values()))
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    try:
        for x, y in batches:
            n = int((y != -100).sum())
            if n == 0:
                continue
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = batch_loss(model, x.to(device), y.to(device))
            total, count = total + loss.item() * n, count + n
    finally:
        model.train(was_training)
    if count == 0:
        raise ValueError("batches must hold at least one target, got none")
    return total / count
