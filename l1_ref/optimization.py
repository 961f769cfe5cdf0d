"""How a gradient becomes a change of the weights: AdamW, its groups, the learning-rate schedule, clipping."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from l1_ref.config import require_betas, require_number, require_whole


def cosine_lr(step: int, lr_peak: float, warmup_steps: int, total_steps: int, lr_min: float = 0.0) -> float:
    """Return the learning rate at a step: a straight line up to the peak, then half a cosine down.

    Args:
        step: Steps taken so far, at least 0.
        lr_peak: The largest rate, at least 0, reached at `warmup_steps`.
        warmup_steps: Length of the straight line, in steps; 0 for none.
        total_steps: Where the cosine reaches `lr_min`; the rate stays there after.
        lr_min: The last rate, from 0 to `lr_peak`.

    Returns:
        The learning rate, from 0 to `lr_peak`.

    Raises:
        ValueError: An argument breaks its rule.

    Example:
        >>> [round(cosine_lr(step, lr_peak=1.0, warmup_steps=2, total_steps=6), 2) for step in range(8)]
        [0.0, 0.5, 1.0, 0.85, 0.5, 0.15, 0.0, 0.0]

    Source: Loshchilov and Hutter 2017, "SGDR", equation 5; warm-up: Goyal et al. 2017, section 2.2.
    """
    for name, n in (("step", step), ("warmup_steps", warmup_steps), ("total_steps", total_steps)):
        require_whole(name, n, "of at least 0", lambda n: n >= 0)
    require_number("lr_peak", lr_peak, "at least 0", lambda lr: lr >= 0)
    require_number("lr_min", lr_min, f"from 0 to lr_peak={lr_peak}", lambda lr: 0 <= lr <= lr_peak)
    if step >= total_steps:
        return lr_min
    if step < warmup_steps:
        return lr_peak * step / warmup_steps
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return lr_min + (lr_peak - lr_min) * 0.5 * (1 + math.cos(math.pi * progress))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters: matrices decay; biases and normalisation vectors do not.

    Embeddings are matrices, so they decay too, as in GPT-2's reproductions.

    Args:
        model: Frozen parameters (`requires_grad=False`) are left out; a shared one is listed once.
        weight_decay: Decay of the parameters with two or more axes.

    Returns:
        Two groups for `torch.optim.AdamW`, the decayed one first.

    Example:
        >>> decayed, others = parameter_groups(torch.nn.Linear(4, 3), weight_decay=0.1)
        >>> [p.shape for p in decayed["params"]], [p.shape for p in others["params"]]
        ([torch.Size([3, 4])], [torch.Size([3])])
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]


def build_optimizer(
    model: nn.Module, lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.1
) -> torch.optim.AdamW:
    """Return torch's AdamW over `parameter_groups`, in its fused form: one kernel for all parameters.

    Args:
        model: The model to train.
        lr: Learning rate; a schedule may set it before each step.
        betas: Memory of the two running means.
        weight_decay: Decay of the matrices.

    Example:
        >>> optimizer = build_optimizer(L1Model(L1Config.preset("tiny")), lr=1e-3)
        >>> [group["weight_decay"] for group in optimizer.param_groups]
        [0.1, 0.0]
    """
    return torch.optim.AdamW(parameter_groups(model, weight_decay), lr=lr, betas=betas, eps=1e-8, fused=True)


@torch.no_grad()
def adamw_step(
    p: Tensor,
    grad: Tensor,
    state: dict[str, Any],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Take one AdamW step on one parameter, in place: the explicit twin of torch's optimizer.

    Args:
        p: The parameter.
        grad: Its gradient, of the same shape.
        state: Empty at first; keeps `step`, `exp_avg` and `exp_avg_sq`.
        lr: Learning rate, at least 0.
        betas: Memory of the running means of the gradient and of its square, each in [0, 1).
        eps: At least 0, as in torch; above 0 it keeps the quotient finite.
        weight_decay: Fraction of p, times lr, that is taken off before the update; at least 0.

    Raises:
        ValueError: A setting breaks its rule, or the gradient has another shape than p.

    Example:
        >>> p, state = torch.ones(2), {}
        >>> adamw_step(p, torch.tensor([5.0, -0.1]), state, lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0)
        >>> [round(value, 3) for value in p.tolist()]  # the first step has the size lr, whatever the gradient's
        [0.9, 1.1]

    Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2.
    """
    _check_update(p, grad, lr, betas, eps, weight_decay)
    if not state:
        state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
    state["step"] += 1
    beta_1, beta_2 = betas
    p.mul_(1 - lr * weight_decay)
    state["exp_avg"].lerp_(grad, 1 - beta_1)
    state["exp_avg_sq"].mul_(beta_2).addcmul_(grad, grad, value=1 - beta_2)
    # Both means start at zero; dividing by these undoes the pull towards it.
    mean = state["exp_avg"] / (1 - beta_1 ** state["step"])
    mean_square = state["exp_avg_sq"] / (1 - beta_2 ** state["step"])
    p.sub_(lr * mean / (mean_square.sqrt() + eps))


def _check_update(p, grad, lr, betas, eps, weight_decay) -> None:
    if grad.shape != p.shape:
        raise ValueError(f"grad must have the shape of p, {tuple(p.shape)}, got {tuple(grad.shape)}")
    for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
        require_number(name, value, "at least 0", lambda v: v >= 0)
    require_betas(betas)


def clip_grad_norm(parameters: Iterable[Tensor] | Tensor, max_norm: float) -> Tensor:
    """Shrink all gradients together so that their joint norm is at most `max_norm`, in place.

    Args:
        parameters: Several, or a single one; those whose gradient is None are passed over.
        max_norm: Largest norm allowed, above 0; inf clips nothing.

    Returns:
        The norm before clipping.

    Raises:
        ValueError: `max_norm` is not above 0.

    Example:
        >>> p = torch.nn.Parameter(torch.zeros(2))
        >>> p.grad = torch.tensor([3.0, 4.0])
        >>> clip_grad_norm([p], max_norm=1.0).item(), round(p.grad.norm().item(), 3)
        (5.0, 1.0)

    Source: Pascanu, Mikolov and Bengio 2013, "On the difficulty of training recurrent neural networks", algorithm 1.
    """
    require_number("max_norm", max_norm, "above 0", lambda norm: norm > 0, largest=math.inf)
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm)
