"""The check of 07_efficiency on scaling the loss by hand, for float16: loss_scaled_step."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe
from l1_ref.checks.observe import Observation
from l1_ref.checks.toys import Notes, alone, in_eval_mode, observe_training, one_batch, overflow
from l1_ref.loss import cross_entropy
from l1_ref.steps import loss_scaled_step


def scaled_losses(notes: Notes, given: Inputs, output: Any) -> Observation:
    """Record how large the gradients are on their way: the logits get those of the scaled loss."""
    return {"the gradient that the logits get": notes.arrived[0] if len(notes.arrived) == 1 else len(notes.arrived)}


# Wrong versions.


def gradients_of(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def divide(model: nn.Module, scale: float, optimizer: torch.optim.Optimizer) -> None:
    for gradient in gradients_of(model):
        gradient /= scale


def _multiply(model: nn.Module, scale: float, optimizer: torch.optim.Optimizer) -> None:
    divide(model, 1 / scale, optimizer)


def _divide_twice(model: nn.Module, scale: float, optimizer: torch.optim.Optimizer) -> None:
    divide(model, scale * scale, optimizer)


def _divide_the_rate(model: nn.Module, scale: float, optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        group["lr"] /= scale


def _divide_some(which: slice) -> Callable:
    def part(model: nn.Module, scale: float, optimizer: torch.optim.Optimizer) -> None:
        for gradient in gradients_of(model)[which]:
            gradient /= scale

    return part


def _all_finite(gradients: Iterable[Tensor], loss: Tensor, scaled: Tensor) -> bool:
    return all(bool(gradient.isfinite().all()) for gradient in gradients)


def _any_finite(gradients: Iterable[Tensor], loss: Tensor, scaled: Tensor) -> bool:
    return any(bool(gradient.isfinite().all()) for gradient in gradients)


def _clipping(gradients: list[Tensor], loss: Tensor, scaled: Tensor) -> bool:
    norm = nn.utils.get_total_norm(gradients)
    if norm > 1:
        for gradient in gradients:
            gradient /= norm
    return bool(norm.isfinite())


def _tested(which: slice = slice(None), bad: Callable[[Tensor], Tensor] = lambda g: ~g.isfinite()) -> Callable:
    """Return a test for overflow, of some gradients or for some values alone."""
    return lambda gradients, loss, scaled: not any(bool(bad(gradient).any()) for gradient in gradients[which])


def _skip(optimizer: torch.optim.Optimizer, gradients: list[Tensor]) -> None:
    return None


def _step_without(replace: Callable[[Tensor], Tensor]) -> Callable:
    """Return what steps on an overflow all the same, with other gradients."""

    def step(optimizer: torch.optim.Optimizer, gradients: list[Tensor]) -> None:
        for gradient in gradients:
            gradient.copy_(replace(gradient))
        optimizer.step()

    return step


def _scaled_step(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    optimizer: torch.optim.Optimizer,
    scale: float,
    *,
    clear: str = "first",
    up: Callable[[float], float] = lambda scale: scale,
    down: Callable = divide,
    fits: Callable = lambda gradients: True,
    fine: Callable = _all_finite,
    overflowed: Callable = _skip,
    told: Callable = lambda loss, scaled, scale, fine: loss.detach(),
    step: str = "once",
) -> Any:
    """Take the step with switches: each mistake sets one, or a few."""
    if clear == "first":
        optimizer.zero_grad()
    loss = cross_entropy(model(x), y)
    scaled = loss * up(scale)
    scaled.backward()
    if clear == "late":
        optimizer.zero_grad(set_to_none=False)
    if step == "early":
        optimizer.step()
    fitted = fits(gradients_of(model))
    down(model, scale, optimizer)
    for gradient in gradients_of(model) if step == "each" else ():
        if gradient.isfinite().all():
            optimizer.step()
    taken = fitted and fine(gradients_of(model), loss, scaled)
    if not taken:
        overflowed(optimizer, gradients_of(model))
    elif step == "once":
        optimizer.step()
    return told(loss, scaled, scale, taken)


def _in_sum(size: Callable[[Tensor], Tensor], total: bool = False) -> Callable:
    """Return a test of scaled gradients: one number of each must be finite, or the sum of these numbers."""

    def fits(gradients: list[Tensor]) -> bool:
        sizes = torch.stack([size(gradient) for gradient in gradients])
        return bool((sizes.sum() if total else sizes).isfinite().all())

    return fits


def _raising(optimizer: torch.optim.Optimizer, gradients: list[Tensor]) -> None:
    raise OverflowError("the gradients overflow")


LOSS_SCALED_STEP = Exercise(
    name="loss_scaled_step",
    notebook="07_efficiency",
    reference=loss_scaled_step,
    observe=partial(observe_training, more=scaled_losses),
    probes=tuple(
        partial(Probe, gradient=False)(*each, **more)
        for *each, more in (
            ("a scale of 8", one_batch(5, 2, 2, 3, scale=8.0), {}),
            ("gradients of an earlier step are there", one_batch(7, 3, 3, 4, 1, old=True, step=0.25, scale=1000.0), {}),
            ("a scale of 2^16", one_batch(6, 4, 2, 5, 0, 3, old=True, step=1.0, scale=65536.0), {}),
            ("a parameter that is not used", one_batch(5, 4, 3, 2, idle=True, scale=256.0), {}),
            ("an overflow: one gradient is inf", one_batch(5, 3, 2, 3, scale=16.0), overflow("head", math.inf)),
            ("an overflow: one gradient is NaN", one_batch(5, 3, 2, 3, scale=16.0), overflow("mix", math.nan)),
            ("an overflow: one gradient is -inf", one_batch(5, 3, 2, 3, scale=16.0), overflow("shift", -math.inf)),
            ("an overflow of all gradients", one_batch(5, 3, 2, 3, scale=16.0), overflow("", math.inf)),
            (
                "an overflow, then a good step",
                one_batch(5, 3, 2, 4, scale=32.0),
                overflow("table", math.inf, n_calls=2),
            ),
            ("a weight is NaN, so all is", one_batch(5, 3, 2, 3, broken=math.nan, scale=32.0), {"edge": True}),
            ("the scaled loss itself is inf", one_batch(5, 3, 2, 4, scale=3.3e38), {"edge": True}),
            ("finite gradients whose sums are inf", one_batch(5, 3, 2, 3, scale=5e37), overflow("", 2e38)),
        )
    ),
    mistakes=(
        Mistake(
            "the gradients are not divided by the scale again",
            "the step would be as many times too long as the scale is large.",
            partial(_scaled_step, down=lambda model, scale, optimizer: None),
        ),
        Mistake(
            "the loss is not scaled, but the gradients are divided",
            "they were small enough to vanish in float16, and are smaller now: scale the loss before backward().",
            partial(_scaled_step, up=lambda scale: 1.0),
        ),
        Mistake(
            "nothing is scaled: it is a plain step",
            "small gradients vanish in float16 unless the loss is scaled up before backward().",
            partial(_scaled_step, up=lambda scale: 1.0, down=lambda model, scale, optimizer: None),
        ),
        Mistake(
            "it is the wrong way round: the loss is divided, the gradients are multiplied",
            "dividing makes small gradients vanish all the more: scale up before backward(), and down after it.",
            alone(partial(_scaled_step, up=lambda scale: 1 / scale, down=_multiply)),
        ),
        Mistake(
            "the gradients are multiplied by the scale once more",
            "they come out of backward() scaled up: divide them.",
            alone(partial(_scaled_step, down=_multiply)),
        ),
        Mistake(
            "the gradients are divided by the scale twice",
            "the loss was scaled once, so the gradients are divided once.",
            alone(partial(_scaled_step, down=_divide_twice)),
        ),
        Mistake(
            "the loss is scaled twice",
            "one scale up before backward(), one scale down after it.",
            partial(_scaled_step, up=lambda scale: scale * scale),
            (partial(_scaled_step, up=lambda scale: scale * scale, down=_divide_twice),),
        ),
        Mistake(
            "the learning rate is divided, not the gradients",
            "Adam hardly feels a larger gradient, but a smaller rate; and the next step would divide it again.",
            alone(partial(_scaled_step, down=_divide_the_rate)),
        ),
        Mistake(
            "only some of the gradients are divided",
            "all of them came out of the scaled loss.",
            alone(partial(_scaled_step, down=_divide_some(slice(1)))),
            (partial(_scaled_step, down=_divide_some(slice(-1, None))),),
        ),
        Mistake(
            "the gradients are divided after the step",
            "the step has used the large ones then.",
            alone(partial(_scaled_step, step="early")),
        ),
        Mistake(
            "the step is taken although a gradient has overflowed",
            "one inf or NaN in the gradients makes weights NaN for ever: skip the whole step.",
            partial(_scaled_step, fine=lambda gradients, loss, scaled: True),
        ),
        Mistake(
            "only the loss is tested for an overflow",
            "a finite loss can have gradients that are inf: test these.",
            partial(_scaled_step, fine=lambda gradients, loss, scaled: bool(loss.isfinite())),
            (partial(_scaled_step, fine=lambda gradients, loss, scaled: bool(scaled.isfinite())),),
        ),
        Mistake(
            "one good gradient, or one good entry, is enough for a step: any stands where all belongs",
            "one inf anywhere is enough to skip it: all entries of all gradients must be finite.",
            partial(_scaled_step, fine=_any_finite),
            (
                partial(_scaled_step, fine=lambda gradients, *_: all(bool(g.isfinite().any()) for g in gradients)),
                partial(_scaled_step, fine=lambda gradients, *_: any(bool(g.isfinite().any()) for g in gradients)),
            ),
        ),
        Mistake(
            "only NaN counts as an overflow",
            "a gradient too large for float16 becomes inf, not NaN: test for both, as isfinite does.",
            partial(_scaled_step, fine=_tested(bad=torch.isnan)),
        ),
        Mistake(
            "only inf counts as an overflow",
            "inf - inf is NaN further down the graph: test for both, as isfinite does.",
            partial(_scaled_step, fine=_tested(bad=torch.isinf)),
            (partial(_scaled_step, fine=_tested(bad=lambda g: g == math.inf)),),
        ),
        Mistake(
            "only some of the gradients are tested for an overflow",
            "one inf anywhere is enough: test every parameter's gradient, every entry.",
            partial(_scaled_step, fine=_tested(which=slice(1))),
            (partial(_scaled_step, fine=_tested(which=slice(-1, None))),),
        ),
        Mistake(
            "sums of scaled gradients are tested for an overflow, not their entries",
            "a sum, or a norm, can be inf where every entry is finite: a good step would be lost. Test the entries.",
            alone(partial(_scaled_step, fits=_in_sum(torch.sum))),
            (
                partial(_scaled_step, fits=_in_sum(torch.sum, total=True)),
                partial(_scaled_step, fits=_in_sum(lambda gradient: gradient.abs().sum())),
                partial(_scaled_step, fits=_in_sum(torch.linalg.vector_norm)),
            ),
        ),
        Mistake(
            "on an overflow the bad entries are replaced, and the step is taken",
            "the other entries of that gradient are not to be trusted either: skip the whole step.",
            partial(_scaled_step, overflowed=_step_without(torch.zeros_like)),
            (
                partial(_scaled_step, overflowed=_step_without(torch.nan_to_num)),
                partial(_scaled_step, overflowed=_step_without(lambda g: g.nan_to_num(0.0, 0.0, 0.0))),
                partial(_scaled_step, overflowed=_step_without(lambda g: g.nan_to_num().clamp(-1, 1))),
            ),
        ),
        Mistake(
            "the gradients are clipped",
            "clipping was not asked for here: only the scale is to be taken out.",
            partial(_scaled_step, fine=_clipping),
        ),
        Mistake(
            "a step is taken for each parameter, inside the loop",
            "one step moves all parameters: look at all gradients first.",
            alone(partial(_scaled_step, step="each")),
        ),
        Mistake(
            "an overflow raises an error",
            "overflows happen now and then, and cost one step: pass over it and return the loss.",
            alone(partial(_scaled_step, overflowed=_raising)),
        ),
        Mistake(
            "the condition is turned round: steps without an overflow are skipped",
            "the step is taken where all gradients are finite.",
            alone(
                partial(
                    _scaled_step,
                    fine=lambda *seen: not _all_finite(*seen),
                )
            ),
        ),
        Mistake(
            "the step is missing",
            "gradients alone change no weight.",
            alone(partial(_scaled_step, step="never")),
        ),
        Mistake(
            "nothing comes back when the step is skipped",
            "the loss is known all the same: return it in both cases.",
            alone(partial(_scaled_step, told=lambda loss, scaled, scale, fine: loss.detach() if fine else None)),
        ),
        Mistake(
            "the scaled loss is returned",
            "a curve of it would show the scale: return the loss as it was before.",
            partial(_scaled_step, told=lambda loss, scaled, scale, fine: scaled.detach()),
        ),
        Mistake(
            "the loss that is returned was scaled up and divided again",
            "where the scaled loss is inf, that division cannot bring it back: keep the loss itself.",
            alone(partial(_scaled_step, told=lambda loss, scaled, scale, fine: scaled.detach() / scale)),
            (partial(_scaled_step, told=lambda loss, scaled, scale, fine: scaled.item() / scale),),
        ),
        Mistake(
            "the loss that is returned keeps its graph",
            "a loop that collects such losses keeps every step's graph in memory; detach it.",
            partial(_scaled_step, told=lambda loss, scaled, scale, fine: loss),
        ),
        Mistake(
            "the gradients of an earlier step are not cleared before backward()",
            "they would be added to those of this step.",
            partial(_scaled_step, clear="never"),
        ),
        Mistake(
            "the gradients are cleared after backward()",
            "the step would find nothing: clear before it.",
            alone(partial(_scaled_step, clear="late")),
        ),
        Mistake(
            "the model runs in eval mode",
            "in training, dropout must drop: the mode is the caller's choice.",
            in_eval_mode(_scaled_step),
            (in_eval_mode(_scaled_step, nn.Module.train),),
        ),
    ),
    properties=(),
    hints=(
        "The gradient of 1000 times the loss is 1000 times the gradient. What must be undone before the step, and what "
        "must not?",
        "An overflow shows in the gradients, not in the loss: torch.isfinite is False for inf and for NaN. Which "
        "gradients must be looked at?",
        "Plan: clear the gradients. Loss as always; backward() from the loss times scale. Divide each p.grad by "
        "the scale, in place. Step only if every entry of every gradient is finite. Return the plain loss, detached.",
    ),
)


EXERCISES = (LOSS_SCALED_STEP,)
