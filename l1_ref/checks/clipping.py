"""The check of clip_grad_norm of 06_training: one norm over all gradients, and one factor for all."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from l1_ref.checks.compare import Failure, short
from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe, Property
from l1_ref.checks.observe import OUTPUT, Observation
from l1_ref.checks.schedules import as_number
from l1_ref.optimization import clip_grad_norm

_Build = Callable[[torch.Generator], Inputs]


class _Gradients:
    """Parameters with the gradients given, which print in a few words.

    Args:
        gradients: One a parameter; None for a parameter that has none.
        once: Whether they come as a generator, as from `model.parameters()`.
    """

    def __init__(self, gradients: list[Tensor | None], once: bool = False):
        self.gradients, self.once = gradients, once

    def __repr__(self) -> str:
        texts = ["none" if grad is None else _text(grad) for grad in self.gradients]
        return f"{'a generator' if self.once else 'a list'} with grad {', '.join(texts)}"

    def made(self) -> list[nn.Parameter]:
        """Return new Parameters with copies of the gradients."""
        parameters = []
        for n, grad in enumerate(self.gradients, start=1):
            parameters.append(nn.Parameter(torch.full_like(torch.zeros(2) if grad is None else grad, n / 2)))
            parameters[-1].grad = None if grad is None else grad.clone()
        return parameters


def _text(grad: Tensor) -> str:
    return short(grad) if grad.ndim > 0 and grad.numel() < 4 else str(tuple(grad.shape))


def _to_clip(max_norm: float, *gradients: list[float] | None) -> _Build:
    tensors = [None if values is None else torch.tensor(values) for values in gradients]
    return lambda generator: {"parameters": _Gradients(tensors), "max_norm": max_norm}


def _drawn(max_norm: float, *shapes: tuple[int, ...] | None, once: bool = False) -> _Build:
    def build(generator: torch.Generator) -> Inputs:
        tensors = [None if shape is None else torch.randn(shape, generator=generator) + 0.5 for shape in shapes]
        return {"parameters": _Gradients(tensors, once), "max_norm": max_norm}

    return build


def _observe_clipping(candidate: Callable, inputs: Inputs, gradient: bool, seed: int) -> Observation:
    """Record the norm that is returned, and what becomes of gradients and parameters."""
    given, before = inputs["parameters"].made(), inputs["parameters"].made()
    try:
        output = as_number(candidate(iter(given) if inputs["parameters"].once else given, inputs["max_norm"]))
    except Exception as error:
        return {OUTPUT: Failure(error)}
    seen: Observation = {OUTPUT: output.detach().clone() if isinstance(output, Tensor) else output}
    for n, p in enumerate(given, start=1):
        seen[f"gradient {n} afterwards"] = "none" if p.grad is None else p.grad.detach().clone()
    kept = all(p.requires_grad and torch.equal(p, old) for p, old in zip(given, before, strict=True))
    return seen | {"the parameters themselves": "as they were" if kept else "changed"}


# Wrong versions.


def _norm(gradients: list[Tensor], power: float = 2) -> Tensor:
    return torch.cat([grad.flatten() for grad in gradients]).norm(power) if gradients else torch.zeros(())


def _shrinking(norm: Tensor, max_norm: float) -> Tensor:
    return (max_norm / norm).clamp(max=1.0)


def _scaled(gradients: list[Tensor], factor: Tensor, max_norm: float) -> None:
    for grad in gradients:
        grad.mul_(factor)


@torch.no_grad()
def _clip(
    parameters: Iterable[Tensor],
    max_norm: float,
    *,
    listed: Callable = list,
    has: Callable = lambda p: p.grad is not None,
    part: Callable = lambda p: p.grad,
    norm: Callable = _norm,
    factor: Callable = _shrinking,
    applied: Callable = _scaled,
    returned: Callable = lambda norm, after, factor: norm,
) -> Any:
    """Clip as the reference does, with one part or another replaced."""
    parts = [part(p) for p in listed(parameters) if has(p)]
    length = norm(parts)
    scale = factor(length, max_norm)
    applied(parts, scale, max_norm)
    return returned(length, norm(parts), scale)


def _clip_alone(**switches: Any) -> Callable:
    return lambda *inputs: _clip(*inputs, **switches)


def _by_value(gradients: list[Tensor], factor: Tensor, max_norm: float) -> None:
    for grad in gradients:
        grad.clamp_(-max_norm, max_norm)


def _each_alone(gradients: list[Tensor], factor: Tensor, max_norm: float) -> None:
    for grad in gradients:
        grad.mul_(_shrinking(grad.norm(), max_norm))


def _weights_scaled(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    parameters = list(parameters)
    norm = _norm([p.grad for p in parameters if p.grad is not None])
    for p in parameters if norm > max_norm else ():
        p.data *= max_norm / norm
    return norm


def _sum_of_norms(gradients: list[Tensor]) -> Tensor:
    return sum(grad.norm() for grad in gradients)


def _last_norm(gradients: list[Tensor]) -> Tensor:
    return gradients[-1].norm()


def _used_up(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    total = sum(p.grad.square().sum() for p in parameters if p.grad is not None).sqrt()
    for p in parameters:
        if p.grad is not None:
            p.grad.mul_(_shrinking(total, max_norm))
    return total


def _growing(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Clip while the sum of squares is still growing."""
    total = torch.zeros(())
    for p in parameters:
        if p.grad is not None:
            total += p.grad.square().sum()
            p.grad.mul_(_shrinking(total.sqrt(), max_norm))
    return total.sqrt()


def _is_short_enough(f: Callable, parameters: _Gradients, max_norm: float) -> bool:
    given = parameters.made()
    f(given, max_norm)
    return bool(_norm([p.grad for p in given if p.grad is not None]) <= max_norm * (1 + 1e-4))


def _is_proportional(f: Callable, parameters: _Gradients, max_norm: float) -> bool:
    twice = _Gradients([None if grad is None else 2 * grad for grad in parameters.gradients])
    return abs(2 * float(f(parameters.made(), max_norm)) - float(f(twice.made(), max_norm))) < 1e-3


_JOINT = "all gradients together are one long vector: it may become shorter, and must keep its direction."
_ONE_NORM = "the norm is the root of the sum of all squares, over all parameters."
_BEFORE_IT = "the norm before clipping tells how wild the step would have been; afterwards it says little."
_ONLY_ABOVE = "a gradient that is short enough stays as it is."

CLIP_GRAD_NORM = Exercise(
    name="clip_grad_norm",
    notebook="06_training",
    reference=clip_grad_norm,
    observe=_observe_clipping,
    probes=(
        Probe("a joint norm of 13", _to_clip(6.5, [3.0, 4.0], [12.0]), gradient=False),
        Probe("below max_norm", _to_clip(5.0, [1.0, -2.0], [2.0]), gradient=False),
        Probe("far below max_norm", _to_clip(0.8, [0.1, -0.2], [0.2]), gradient=False),
        Probe("one parameter without a gradient", _drawn(0.5, (2, 3), (4,), None, (2, 2, 2), ()), gradient=False),
        Probe("a generator, as model.parameters() is one", _drawn(0.7, (3,), (2, 2), once=True), gradient=False),
        Probe("many small gradients", _drawn(4.0, (6,), (5, 4), (3, 3)), gradient=False),
        Probe("all gradients are 0", _to_clip(1.0, [0.0, 0.0], [0.0]), gradient=False, edge=True),
    ),
    mistakes=(
        Mistake("each entry is clipped by itself, to at most max_norm", _JOINT, partial(_clip, applied=_by_value)),
        Mistake(
            "each gradient is clipped by itself",
            _JOINT,
            partial(_clip, applied=_each_alone),
            (
                lambda parameters, max_norm: _clip(parameters, max_norm, applied=_each_alone, norm=_sum_of_norms),
                lambda parameters, max_norm: _clip(parameters, max_norm, applied=_each_alone, norm=_last_norm),
            ),
        ),
        Mistake(
            "the gradients are scaled to max_norm, also where they are shorter",
            _ONLY_ABOVE,
            partial(_clip, factor=lambda norm, max_norm: max_norm / norm),
            (_clip_alone(factor=lambda norm, max_norm: max_norm / (norm + 1e-6)),),
        ),
        Mistake(
            "the norm after clipping is returned",
            _BEFORE_IT,
            partial(_clip, returned=lambda norm, after, factor: after),
        ),
        Mistake(
            "the factor is returned, not the norm",
            _BEFORE_IT,
            partial(_clip, returned=lambda norm, after, factor: factor),
        ),
        Mistake(
            "nothing is returned",
            _BEFORE_IT,
            partial(_clip, returned=lambda norm, after, factor: None),
        ),
        Mistake(
            "the norm is the sum of the absolute values",
            _ONE_NORM,
            partial(_clip, norm=lambda gradients: _norm(gradients, 1)),
        ),
        Mistake(
            "the norm is the largest entry",
            _ONE_NORM,
            partial(_clip, norm=lambda gradients: _norm(gradients, float("inf"))),
        ),
        Mistake(
            "the root is missing: the sum of the squares is taken",
            _ONE_NORM,
            partial(_clip, norm=lambda gradients: _norm(gradients).square()),
        ),
        Mistake(
            "the square of the norm is compared with max_norm",
            "take the root first: both must be lengths.",
            _clip_alone(factor=lambda norm, max_norm: torch.where(norm * norm > max_norm, max_norm / norm, 1.0)),
        ),
        Mistake(
            "the norms of the parameters are added up",
            _ONE_NORM,
            partial(_clip, norm=_sum_of_norms),
        ),
        Mistake(
            "the squares are averaged, not summed",
            _ONE_NORM,
            partial(_clip, norm=lambda gradients: torch.cat([g.flatten() for g in gradients]).square().mean().sqrt()),
            (
                _clip_alone(norm=lambda gradients: torch.stack([g.norm() for g in gradients]).square().mean().sqrt()),
                _clip_alone(norm=lambda gradients: torch.stack([g.norm() for g in gradients]).mean()),
            ),
        ),
        Mistake(
            "the norm is that of one parameter, the first, the last or the longest",
            _ONE_NORM,
            partial(_clip, norm=lambda gradients: gradients[0].norm()),
            (
                _clip_alone(norm=_last_norm),
                _clip_alone(norm=lambda gradients: torch.stack([g.norm() for g in gradients]).max()),
            ),
        ),
        Mistake(
            "the gradients are scaled while the norm is still being added up",
            "the joint norm is known only at the end: first measure all, then scale all.",
            _growing,
        ),
        Mistake(
            "the parameters are measured and scaled, not their gradients",
            "the weights stay as they are; what is clipped is the step to come: p.grad.",
            _clip_alone(part=lambda p: p),
            (
                _clip_alone(part=lambda p: p, has=lambda p: True),
                _clip_alone(part=lambda p: p, applied=lambda *_: None),
                _clip_alone(part=lambda p: p, has=lambda p: True, applied=lambda *_: None),
            ),
        ),
        Mistake(
            "the weights are scaled, not their gradients",
            "the weights stay as they are; what is clipped is the step to come: p.grad.",
            _weights_scaled,
        ),
        Mistake(
            "the gradients stay as they are: only the norm is returned",
            "another tensor was scaled: assign to p.grad, or change it by p.grad.mul_(…).",
            partial(_clip, applied=lambda *_: None),
        ),
        Mistake(
            "the factor is turned round: norm / max_norm",
            "a long gradient must become shorter.",
            partial(_clip, factor=lambda norm, max_norm: (norm / max_norm).clamp(min=1.0)),
            (
                _clip_alone(factor=lambda norm, max_norm: (norm / max_norm).clamp(max=1.0)),
                _clip_alone(factor=lambda norm, max_norm: norm / max_norm),
            ),
        ),
        Mistake(
            "the gradients get the norm 1, not max_norm",
            "the caller says how long they may be.",
            _clip_alone(factor=lambda norm, max_norm: torch.where(norm > max_norm, 1 / norm, 1.0)),
            (
                _clip_alone(factor=lambda norm, max_norm: 1 / norm),
                _clip_alone(factor=lambda norm, max_norm: 1 / (norm + 1e-6)),
            ),
        ),
        Mistake(
            "max_norm is not used: it is 1",
            "the caller says how long they may be.",
            _clip_alone(factor=lambda norm, max_norm: _shrinking(norm, 1.0)),
        ),
        Mistake(
            "max_norm is taken for the factor",
            "what is too long is multiplied by max_norm / norm, so that max_norm is its new length.",
            _clip_alone(factor=lambda norm, max_norm: torch.where(norm > max_norm, max_norm, 1.0)),
            (_clip_alone(factor=lambda norm, max_norm: max_norm),),
        ),
        Mistake(
            "gradients that are too long are set to 0",
            "the direction is still good: only the length is cut.",
            _clip_alone(factor=lambda norm, max_norm: (norm <= max_norm).float()),
        ),
        Mistake(
            "a parameter without a gradient stops the code",
            "what took no part in the loss has p.grad None: pass it over.",
            partial(_clip, has=lambda p: True),
        ),
        Mistake(
            "a generator is used up in the first loop",
            "model.parameters() can be gone through once: make a list of it first.",
            _used_up,
        ),
        Mistake(
            "a norm of 0 gives NaN, or stops the code",
            "0 times infinity is NaN, and 1 / 0 is an error: scale only where the norm is above max_norm.",
            _clip_alone(factor=lambda norm, max_norm: max_norm / norm if norm > max_norm or norm == 0 else 1.0),
            (_clip_alone(factor=lambda norm, max_norm: min(1.0, max_norm / norm.item())),),
        ),
    ),
    properties=(
        Property("afterwards the joint norm is at most max_norm", _is_short_enough),
        Property("twice the gradients have twice the norm", _is_proportional),
    ),
    hints=(
        "Think of all gradients laid end to end: one long vector. How long is it, and how long may it be?",
        "The squares of all entries, of all parameters, in one sum; its root is the norm. One factor for all, and only "
        "where the norm is too large. parameters may be a generator, and some p.grad may be None.",
        "Plan: a list of the gradients that are not None; the root of the sum of their squared norms; where it is "
        "above max_norm, multiply each gradient in place by max_norm / norm; return the norm.",
    ),
)

EXERCISES = (CLIP_GRAD_NORM,)
