"""The check of 07_efficiency on mixed precision: amp_train_step."""

import contextlib
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe
from l1_ref.checks.observe import Observation
from l1_ref.checks.scaling import divide, gradients_of, scaled_losses
from l1_ref.checks.toys import Notes, alone, in_eval_mode, observe_training, one_batch, overflow
from l1_ref.loss import cross_entropy
from l1_ref.steps import amp_train_step


def _mixed(notes: Notes, given: Inputs, output: Any) -> Observation:
    """Record in which dtypes the pass ran, how large the gradients were on their way, and what became of the scale."""
    scaler = given["scaler"]
    computed = scaler.scaled or ([output.dtype] if isinstance(output, Tensor) else [])
    dtypes = ", ".join(sorted(map(str, notes.products)))
    seen = {"the dtype of the products": dtypes, "the dtype of the loss": str((computed or [torch.float32])[-1])}
    seen["autocast in the backward pass"] = "on" if any(notes.cast) else "off"
    return seen | scaled_losses(notes, given, output) | {"the scale afterwards": scaler.get_scale()}


def _act(what: str, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, clip: Callable):
    """Do one of the things that follow the backward pass."""
    match what:
        case "clip":
            clip(model.parameters())
        case "unscale":
            scaler.unscale_(optimizer)
        case "divide":
            divide(model, scaler.get_scale(), optimizer)
        case "step":
            scaler.step(optimizer)
        case "plain step":
            optimizer.step()
        case "careful step":
            if all(gradient.isfinite().all() for gradient in gradients_of(model)):
                optimizer.step()
        case "update":
            scaler.update()
        case "clear":
            optimizer.zero_grad()
        case "zero":
            optimizer.zero_grad(set_to_none=False)


def _given(scaler: torch.amp.GradScaler, dtype: torch.dtype) -> torch.amp.GradScaler:
    return scaler


def _amp(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    dtype: torch.dtype,
    max_norm: float = 1.0,
    *,
    clear: str = "first",
    cast: Callable[[torch.dtype], torch.dtype] = lambda dtype: dtype,
    around: str = "forward",
    change: Callable = lambda model, dtype: None,
    back: Callable = lambda model: None,
    half_loss: bool = False,
    which: Callable = _given,
    up: Callable = lambda loss, scaler: scaler.scale(loss),
    then: tuple[str, ...] = ("unscale", "clip", "step", "update"),
    limit: Callable[[float], float] = lambda max_norm: max_norm,
    clipper: Callable = nn.utils.clip_grad_norm_,
    told: Callable = lambda loss, scaled: loss.detach(),
) -> Any:
    """Take the step with switches: each mistake sets one, or a few."""
    scaler = which(scaler, dtype)
    if clear == "first":
        optimizer.zero_grad()
    change(model, dtype)
    with contextlib.ExitStack() as passes:
        if around != "nothing":
            passes.enter_context(torch.autocast("cpu", cast(dtype), enabled=cast(dtype) != torch.float32))
        logits = model(x)
        if around == "forward":
            passes.close()
        loss = F.cross_entropy(logits.flatten(0, 1).to(dtype), y.flatten()) if half_loss else cross_entropy(logits, y)
        scaled = up(loss, scaler)
        scaled.backward()
    for what in then:
        _act(what, model, optimizer, scaler, lambda parameters: clipper(list(parameters), limit(max_norm)))
    back(model)
    return told(loss, scaled)


def _only_with_the_scaler(*inputs: Any) -> Any:
    return _amp(*inputs, around="forward" if inputs[4].is_enabled() else "nothing")


def _halved(model: nn.Module, dtype: torch.dtype) -> None:
    model.to(dtype)


_STEPPED = ("unscale", "clip", "step", "update")

AMP_TRAIN_STEP = Exercise(
    name="amp_train_step",
    notebook="07_efficiency",
    reference=amp_train_step,
    observe=partial(observe_training, more=_mixed),
    # Styles differ in the last bit of a half: an entry of a gradient may be one step of its dtype off.
    tolerance=1e-3,
    probes=tuple(
        partial(Probe, gradient=False)(*each, **more)
        for *each, more in (
            (
                "bfloat16, which needs no scaler",
                one_batch(5, 2, 2, 3, scaler=0.0, dtype=torch.bfloat16, max_norm=0.2),
                {},
            ),
            (
                "float16; gradients of an earlier step are there",
                one_batch(7, 3, 3, 4, 1, old=True, step=0.25, scaler=1024.0, dtype=torch.float16, max_norm=0.1),
                {},
            ),
            (
                "without max_norm",
                one_batch(6, 4, 2, 5, 0, 3, old=True, step=1.0, scaler=64.0, dtype=torch.bfloat16),
                {},
            ),
            (
                "a max_norm that is never reached",
                one_batch(5, 4, 3, 2, old=True, scaler=256.0, dtype=torch.float16, max_norm=90.0),
                {},
            ),
            (
                "float32: autocast is off",
                one_batch(6, 2, 2, 4, old=True, scaler=0.0, dtype=torch.float32, max_norm=0.4),
                {},
            ),
            (
                "two steps",
                one_batch(5, 3, 2, 4, scaler=512.0, dtype=torch.float16, max_norm=0.3),
                {"observe": partial(observe_training, more=_mixed, n_calls=2)},
            ),
            (
                "an overflow: one gradient is inf",
                one_batch(5, 3, 2, 3, scaler=128.0, dtype=torch.float16, max_norm=0.5),
                overflow("head", math.inf, more=_mixed),
            ),
            (
                "a scale too large for float16, twice",
                one_batch(5, 3, 2, 3, scaler=2.0**26, dtype=torch.float16, max_norm=0.5),
                {"edge": True, "observe": partial(observe_training, more=_mixed, n_calls=2)},
            ),
        )
    ),
    mistakes=(
        Mistake(
            "the gradients are clipped while they are still scaled up",
            "their norm is as many times too large as the scale, so clipping shrinks them to nothing: unscale first.",
            partial(_amp, then=("clip", "unscale", "step", "update")),
            (partial(_amp, then=("clip", "step", "update")),),
        ),
        Mistake(
            "unscale_ comes after the step",
            "scaler.step has unscaled by then, and clipping saw the scaled gradients: unscale, clip, step, update.",
            alone(partial(_amp, then=("clip", "step", "unscale", "update"))),
            (partial(_amp, then=("step", "unscale", "clip", "update")),),
        ),
        Mistake(
            "optimizer.step() is called, not scaler.step(optimizer)",
            "only the scaler skips a step whose gradients have overflowed; a plain step makes the weights NaN.",
            partial(_amp, then=("unscale", "clip", "plain step", "update")),
        ),
        Mistake(
            "scaler.update() comes before the scaler has looked at the gradients",
            "it has nothing to judge by: unscale_ and scaler.step come first.",
            alone(partial(_amp, then=("clip", "plain step", "update"))),
            (
                partial(_amp, then=("update", "unscale", "clip", "step")),
                partial(_amp, then=("divide", "clip", "plain step", "update")),
            ),
        ),
        Mistake(
            "scaler.update() comes before the step",
            "update forgets that the gradients are unscaled, so the step divides them again.",
            alone(partial(_amp, then=("unscale", "clip", "update", "step"))),
            (partial(_amp, then=("unscale", "update", "clip", "step")),),
        ),
        Mistake(
            "scaler.update() is missing",
            "the scale would never adapt, and the next unscale_ fails.",
            partial(_amp, then=("unscale", "clip", "step")),
        ),
        Mistake(
            "the gradients are not clipped before the step",
            "one bad batch could throw the weights far away.",
            partial(_amp, then=("unscale", "step", "update")),
            (
                partial(_amp, then=("step", "update")),
                partial(_amp, then=("unscale", "step", "clip", "update")),
                partial(_amp, then=("step", "update", "clip")),
            ),
        ),
        Mistake(
            "backward() starts from the unscaled loss",
            "unscaling then makes the gradients too small by the scale: call scaler.scale(loss).backward().",
            partial(_amp, up=lambda loss, scaler: loss),
        ),
        Mistake(
            "the scaler is not used at all",
            "small gradients vanish in float16 unless the loss is scaled, and an overflow must skip the step.",
            partial(_amp, up=lambda loss, scaler: loss, then=("clip", "plain step")),
            (partial(_amp, up=lambda loss, scaler: loss, then=("clip", "careful step")),),
        ),
        Mistake(
            "another scaler than the given one is used",
            "the scale is kept from step to step in the scaler that the caller holds.",
            alone(partial(_amp, which=lambda scaler, dtype: torch.amp.GradScaler("cpu"))),
            (partial(_amp, which=lambda scaler, dtype: torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)),),
        ),
        Mistake(
            "the gradients are divided by the scale once more by hand",
            "unscale_ has done it.",
            alone(partial(_amp, then=("unscale", "divide", "clip", "step", "update"))),
            (partial(_amp, then=("divide", "clip", "step", "update")),),
        ),
        Mistake(
            "the loss is multiplied by the scale once more by hand",
            "scaler.scale has done it.",
            alone(partial(_amp, up=lambda loss, scaler: scaler.scale(loss * scaler.get_scale()))),
        ),
        Mistake(
            "there is no autocast: the forward pass runs in float32",
            "half precision is what makes it fast and small: run model(x) under torch.autocast.",
            partial(_amp, around="nothing"),
        ),
        Mistake(
            "without the scaler there is no autocast",
            "bfloat16 needs no scaler, but autocast all the same: only float32 runs without it.",
            alone(_only_with_the_scaler),
        ),
        Mistake(
            "dtype is ignored: it is always bfloat16",
            "on a CPU autocast takes bfloat16 unless it is told otherwise: pass dtype on.",
            partial(_amp, cast=lambda dtype: torch.bfloat16),
        ),
        Mistake(
            "dtype is ignored: it is always float16",
            "the caller chooses between float16 and bfloat16: pass dtype on.",
            partial(_amp, cast=lambda dtype: torch.float16),
        ),
        Mistake(
            "the backward pass runs under autocast too",
            "each operation's backward takes the dtype of its forward by itself; torch advises against autocast there.",
            partial(_amp, around="all"),
        ),
        Mistake(
            "the loss is computed in half precision",
            "a sum over the vocabulary loses the small terms, and the scaled loss soon overflows.",
            partial(_amp, half_loss=True),
        ),
        Mistake(
            "the weights themselves are turned to half precision",
            "a small update is lost beside a large weight: the weights stay float32, and autocast casts copies.",
            alone(partial(_amp, around="nothing", change=_halved)),
            (
                partial(_amp, change=_halved),
                partial(_amp, around="nothing", change=_halved, half_loss=True),
                partial(_amp, change=_halved, half_loss=True),
                partial(_amp, around="nothing", change=_halved, back=lambda model: model.float()),
                partial(_amp, around="nothing", change=_halved, half_loss=True, back=lambda model: model.float()),
            ),
        ),
        Mistake(
            "max_norm is ignored: a fixed number is used",
            "the caller's max_norm is to be used.",
            partial(_amp, limit=lambda max_norm: 1.0),
        ),
        Mistake(
            "each entry is clipped, not the joint norm",
            "cutting the entries one by one turns the direction of the gradient.",
            alone(partial(_amp, clipper=nn.utils.clip_grad_value_)),
        ),
        Mistake(
            "the gradients of an earlier step are not cleared before backward()",
            "they would be added to those of this step.",
            partial(_amp, clear="never"),
        ),
        Mistake(
            "the gradients are cleared after backward()",
            "the step would find nothing: clear before it.",
            alone(partial(_amp, then=("clear", *_STEPPED))),
            (
                partial(_amp, then=("zero", *_STEPPED)),
                partial(_amp, then=("unscale", "clip", "zero", "step", "update")),
            ),
        ),
        Mistake(
            "the scaled loss is returned",
            "a curve of it would show the scale: return the loss as it was before.",
            partial(_amp, told=lambda loss, scaled: scaled.detach()),
        ),
        Mistake(
            "the loss that is returned keeps its graph",
            "a loop that collects such losses keeps every step's graph in memory; detach it.",
            partial(_amp, told=lambda loss, scaled: loss),
        ),
        Mistake(
            "the step is missing",
            "gradients alone change no weight.",
            alone(partial(_amp, then=("unscale", "clip", "update"))),
            (partial(_amp, then=("unscale", "clip")),),
        ),
        Mistake(
            "the model runs in eval mode",
            "in training, dropout must drop: the mode is the caller's choice.",
            in_eval_mode(_amp),
            (in_eval_mode(_amp, nn.Module.train),),
        ),
    ),
    properties=(),
    hints=(
        "What does the norm of a gradient mean while the gradient is still multiplied by the scale?",
        "Under autocast belong the forward pass and the loss, not backward(). After backward() four calls follow: one "
        "of them needs the true gradients, and one may decide to do nothing.",
        "Plan: clear. Under torch.autocast: logits and loss. Then, outside of it, scaler.scale(loss).backward(), "
        "scaler.unscale_(optimizer), clip, scaler.step(optimizer), scaler.update(). Return the plain loss, detached.",
    ),
)

EXERCISES = (AMP_TRAIN_STEP,)
