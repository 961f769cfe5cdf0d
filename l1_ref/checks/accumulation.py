"""The checks of 07_efficiency on accumulation: accumulate_gradients, and the bug hunt accumulated_step."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe, Property
from l1_ref.checks.observe import Observation
from l1_ref.checks.toys import (
    MicroBatches,
    Notes,
    ShownSGD,
    ToyModel,
    alone,
    batch,
    in_eval_mode,
    observe_training,
)
from l1_ref.loss import cross_entropy
from l1_ref.optimization import clip_grad_norm
from l1_ref.steps import accumulate_gradients

_RUNS = "the runs of the model"


def accumulated_step(model: nn.Module, micro_batches: list, optimizer: torch.optim.Optimizer, max_norm: float = 1.0):
    """Take one training step on several micro-batches: the same as on one large batch, in less memory.

    Args:
        model: Maps ids to logits.
        micro_batches: Pairs of inputs and targets.
        optimizer: Holds the model's parameters.
        max_norm: Largest joint norm of the gradients of all micro-batches together.

    Returns:
        The mean loss of all targets before the step, detached.

    Source: Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 2.
    """
    optimizer.zero_grad()
    loss = accumulate_gradients(model, micro_batches)
    clip_grad_norm(model.parameters(), max_norm)
    optimizer.step()
    return loss


# Probes: sizes are (B, T), or (B, T, padded targets of each row).


def _inputs(V: int, C: int, *sizes: tuple, old: bool = False, step: float = 0.0, **more: Any) -> Callable:
    def build(generator: torch.Generator) -> Inputs:
        model = ToyModel(V, C, generator, old)
        batches = MicroBatches(batch(V, B, T, generator, *padded) for B, T, *padded in sizes)
        optimizer = {"optimizer": ShownSGD(model.parameters(), lr=step)} if step else {}
        return {"model": model, "micro_batches": batches, **optimizer, **more}

    return build


def _runs(notes: Notes, given: Inputs, output: Any) -> Observation:
    return {_RUNS: notes.runs}


# Micro-batches without a target may be run or passed over.
_COUNTED, _UNCOUNTED = partial(observe_training, more=_runs), observe_training


# Wrong versions.

Parts = list[tuple[Tensor, Tensor]]


def _by_targets(y: Tensor, parts: Parts) -> float:
    return ((y != -100).sum() / sum((other != -100).sum() for _, other in parts)).item()


def _equally(y: Tensor, parts: Parts) -> float:
    return 1 / len(parts)


def _equally_if_any(y: Tensor, parts: Parts) -> float:
    return 1 / sum(bool((other != -100).any()) for _, other in parts)


def _by_rows(y: Tensor, parts: Parts) -> float:
    return len(y) / sum(len(other) for _, other in parts)


def _by_positions(y: Tensor, parts: Parts) -> float:
    return y.numel() / sum(other.numel() for _, other in parts)


def _by_count(y: Tensor, parts: Parts) -> float:
    return float((y != -100).sum())


def _twice_divided(y: Tensor, parts: Parts) -> float:
    return _by_targets(y, parts) / len(parts)


def _added_up(y: Tensor, parts: Parts) -> float:
    return 1.0


def _backward(losses: list[Tensor]) -> None:
    losses[-1].backward()


def _backward_at_the_end(losses: list[Tensor]) -> None:
    return None


def _accumulate(
    model: nn.Module,
    micro_batches: Parts,
    *,
    share: Callable = _by_targets,
    told: Callable | None = None,
    careful: bool = True,
    parts: Callable = list,
    before: Callable = lambda model: None,
    each: Callable = lambda model: None,
    backward: Callable = _backward,
    after: Callable = lambda model: None,
    finish: Callable = lambda kept, raw: sum(kept),
    graph: bool = False,
) -> Any:
    """Accumulate with switches: each mistake sets one, or a few."""
    micro_batches = parts(micro_batches)
    before(model)
    weighed, kept, raw = [], [], []
    for x, y in micro_batches:
        if careful and not (y != -100).any():
            continue
        each(model)
        loss = cross_entropy(model(x), y)
        weighed.append(loss * share(y, micro_batches))
        backward(weighed)
        told_loss = loss * (told or share)(y, micro_batches)
        kept.append(told_loss if graph else told_loss.detach())
        raw.append(loss.detach())
    if backward is _backward_at_the_end:
        sum(weighed).backward()
    after(model)
    return finish(kept, raw)


def _cleared(model: nn.Module) -> None:
    model.zero_grad()


def _joined(parts: Parts) -> Parts:
    return [(torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]))]


_UNEQUAL = "where the micro-batches differ in size, a target in a small one would count more than one in a large one."


# What both exercises have in common: a name, why it matters, the switches, those of other versions.
_ALONE = (
    (
        "the sums of the losses are never divided by the number of all targets",
        "the loss is a mean over targets: divide each sum by the targets of all micro-batches.",
        {"share": _by_count},
    ),
    (
        "the weighed losses are divided once more by the number of micro-batches",
        "their weights add up to 1: the sum is the mean already.",
        {"share": _twice_divided},
        {"share": _twice_divided, "told": _by_targets},
    ),
    (
        "the loss is right, but the gradients are those of the mean of the means",
        "weigh the loss by its targets before backward(), not only what is returned.",
        {"share": _equally, "told": _by_targets},
        {"share": _equally_if_any, "told": _by_targets},
    ),
    (
        "backward() runs once, at the end, for all micro-batches",
        "the graphs of all of them are in memory at once, as with one large batch; call it for each.",
        {"backward": _backward_at_the_end},
        {"backward": _backward_at_the_end, "graph": True},
    ),
    (
        "the micro-batches are joined to one large batch",
        "the large batch was what does not fit into memory: run them one by one.",
        {"parts": _joined},
    ),
)
_IN_PAIRS = (
    (
        "each micro-batch counts the same: the mean of the means",
        _UNEQUAL,
        {"share": _equally, "careful": False},
        {"share": _equally_if_any},
        {"share": _equally},
    ),
    (
        "the losses are added up, and never divided",
        "the gradient would grow with the number of micro-batches, and the learning rate with it.",
        {"share": _added_up, "careful": False},
        {"share": _added_up},
    ),
    (
        "padding counts: each micro-batch weighs by all its positions",
        "targets of -100 teach nothing; count the others.",
        {"share": _by_positions, "careful": False},
        {"share": _by_positions},
    ),
    (
        "each micro-batch weighs by its rows, not by its targets",
        "rows differ in length and in padding; the loss is a mean over targets.",
        {"share": _by_rows, "careful": False},
        {"share": _by_rows},
    ),
    (
        "a micro-batch of padding alone makes everything NaN",
        "its mean is 0 / 0; it has no target, so it must add nothing.",
        {"careful": False},
    ),
    (
        "the gradients are right, but the loss that is returned is the mean of the means",
        _UNEQUAL,
        {"told": _equally},
        {"told": _equally_if_any},
        {"finish": lambda kept, raw: sum(raw) / len(raw)},
    ),
    (
        "the gradients are right, but the loss that is returned is a sum",
        "a sum grows with the number of micro-batches and cannot be compared; return the mean over all targets.",
        {"told": _added_up},
        {"told": _by_count},
    ),
    (
        "only the last micro-batch's loss is returned",
        "the others were trained on as well: return the mean over all targets.",
        {"finish": lambda kept, raw: raw[-1]},
        {"finish": lambda kept, raw: kept[-1]},
    ),
    (
        "the loss is right, but the backward pass starts from the unweighted one",
        "each micro-batch would count in full: weigh the loss before backward().",
        {"share": _added_up, "told": _by_targets},
        {"share": _by_count, "told": _by_targets},
    ),
    (
        "the loss that is returned keeps its graph",
        "a loop that collects such losses keeps every step's graph in memory; detach it.",
        {"graph": True},
    ),
)


def _common(wrong: Callable) -> tuple[Mistake, ...]:
    """Return the mistakes that both exercises have in common, as switches of one function."""
    return tuple(
        Mistake(
            name,
            why,
            partial(wrong, **first) if table is _IN_PAIRS else alone(partial(wrong, **first)),
            tuple(partial(wrong, **switches) for switches in others),
        )
        for table in (_IN_PAIRS, _ALONE)
        for name, why, first, *others in table
    )


ACCUMULATE_GRADIENTS = Exercise(
    name="accumulate_gradients",
    notebook="07_efficiency",
    reference=accumulate_gradients,
    observe=_COUNTED,
    probes=tuple(
        partial(Probe, gradient=False)(*each, **more)
        for *each, more in (
            ("micro-batches of one and of three rows", _inputs(5, 2, (1, 2), (3, 2)), {}),
            (
                "some padding; gradients of an earlier call are there",
                _inputs(7, 3, (2, 3, (1, 2)), (1, 3), (4, 3, (2, 0, 3, 1)), old=True),
                {},
            ),
            ("rows of unequal length", _inputs(6, 4, (3, 2), (2, 5, (4,)), (1, 3)), {}),
            (
                "one micro-batch is padding alone",
                _inputs(5, 3, (2, 3, (0, 1)), (2, 3, (3, 3)), (1, 3)),
                {"edge": True, "observe": _UNCOUNTED},
            ),
        )
    ),
    mistakes=(
        *_common(_accumulate),
        Mistake(
            "the gradients are cleared for each micro-batch",
            "only the last one's would be left; backward() adds to what is there, and that is what is wanted.",
            partial(_accumulate, each=_cleared),
        ),
        Mistake(
            "the gradients that were there are cleared first",
            "this function adds to .grad; when to clear is the caller's choice.",
            partial(_accumulate, before=_cleared),
        ),
        Mistake(
            "the gradients are cleared at the end",
            "the caller wants them, to clip them and to step.",
            alone(partial(_accumulate, after=_cleared)),
            (partial(_accumulate, after=lambda model: model.zero_grad(set_to_none=False)),),
        ),
        Mistake(
            "backward() is missing",
            "without it there are no gradients.",
            alone(partial(_accumulate, backward=lambda losses: None)),
            (partial(_accumulate, backward=lambda losses: None, graph=True),),
        ),
        Mistake(
            "only the first micro-batch is used",
            "is there a return inside the loop? All of them belong to the batch.",
            alone(partial(_accumulate, parts=lambda parts: list(parts)[:1])),
        ),
        Mistake(
            "the model runs in eval mode",
            "in training, dropout must drop: the mode is the caller's choice.",
            in_eval_mode(_accumulate),
            (in_eval_mode(_accumulate, nn.Module.train),),
        ),
    ),
    properties=(
        Property(
            "two micro-batches of one row give the gradients of one batch of two",
            lambda f, model, micro_batches: _as_one(f, model, micro_batches),
        ),
    ),
    hints=(
        "A mean over six targets, from a part with two and a part with four: which weight does the mean of each get?",
        "backward() adds to .grad. So the gradient of a weighted sum of losses comes piece by piece, if each loss is "
        "weighed before its own backward().",
        "Plan: count the targets that are not -100, in all micro-batches. For each: forward, cross_entropy, times its "
        "share of the targets, backward, add its detached value to the total. What has no target is passed over.",
    ),
)


def _as_one(candidate: Callable, model: ToyModel, micro_batches: Parts) -> bool:
    """Compare the gradients of rows one by one with those of all rows of the first micro-batch together."""
    x, y = micro_batches[0]
    found = []
    for parts in ([(x, y)], list(zip(x[:, None], y[:, None], strict=True))):
        model.zero_grad()
        candidate(model, parts)
        found.append([p.grad.clone() for p in model.parameters()])
    return all(torch.allclose(a, b, atol=1e-4) for a, b in zip(*found, strict=True))


# The bug hunt.


def _step(
    model: nn.Module,
    micro_batches: Parts,
    optimizer: torch.optim.Optimizer,
    max_norm: float = 1.0,
    *,
    clear: str = "first",
    clip: str = "all",
    step: str = "once",
    limit: Callable[[float], float] = lambda max_norm: max_norm,
    clipper: Callable = nn.utils.clip_grad_norm_,
    **switches: Any,
) -> Any:
    """Take the step with switches: each mistake sets one, or a few; the others are those of `_accumulate`."""

    def clip_if(when: str) -> None:
        if clip == when:
            clipper(list(model.parameters()), limit(max_norm))

    def backward(losses: list[Tensor]) -> None:
        kept = [p.grad for p in model.parameters()]
        if clip == "own" or clear == "each":
            optimizer.zero_grad()
        losses[-1].backward()
        clip_if("each")
        if clip == "own":
            clipper(list(model.parameters()), limit(max_norm))
            for p, grad in zip(model.parameters(), kept, strict=True):
                p.grad = p.grad if grad is None or clear == "each" else p.grad + grad
        if step == "each":
            optimizer.step()

    if clear == "first":
        optimizer.zero_grad()
    loss = _accumulate(model, micro_batches, **{"backward": backward} | switches)
    if clear == "late":
        optimizer.zero_grad()
    clip_if("all")
    if step == "once":
        optimizer.step()
    clip_if("late")
    return loss


ACCUMULATED_STEP = Exercise(
    name="accumulated_step",
    notebook="07_efficiency",
    reference=accumulated_step,
    observe=_COUNTED,
    probes=tuple(
        partial(Probe, gradient=False)(*each, **more)
        for *each, more in (
            ("two micro-batches", _inputs(5, 2, (1, 2), (3, 2), step=0.5, max_norm=0.2), {}),
            (
                "some padding; gradients of an earlier step are there",
                _inputs(7, 3, (2, 3, (1, 2)), (1, 3), (4, 3, (2, 0, 3, 1)), old=True, step=0.25, max_norm=0.1),
                {},
            ),
            ("without max_norm", _inputs(6, 4, (3, 2), (2, 5, (4,)), (1, 3), old=True, step=1.0), {}),
            ("a max_norm that is never reached", _inputs(5, 3, (2, 4), (1, 4), old=True, step=0.5, max_norm=90.0), {}),
            (
                "one micro-batch is padding alone",
                _inputs(5, 3, (2, 3, (0, 1)), (2, 3, (3, 3)), (1, 3), step=0.5, max_norm=0.3),
                {"edge": True, "observe": _UNCOUNTED},
            ),
        )
    ),
    mistakes=(
        Mistake(
            "the gradients are cleared for each micro-batch",
            "the step would see the last one only: clear once, before the first.",
            partial(_step, clear="each"),
            (partial(_step, clear="each", clip="each"), partial(_step, clear="each", clip="own")),
        ),
        Mistake(
            "each micro-batch is clipped by itself",
            "the norm that counts is that of the whole batch's gradient: clip once, when all is added up.",
            partial(_step, clip="each"),
            (partial(_step, clip="own"),),
        ),
        Mistake(
            "a step is taken for each micro-batch",
            "that is training on small batches: step once, when all gradients are added up.",
            partial(_step, step="each"),
            (
                partial(_step, step="each", clip="each"),
                partial(_step, step="each", clear="each"),
                partial(_step, step="each", clear="each", clip="each"),
            ),
        ),
        Mistake(
            "the gradients of an earlier step are not cleared before backward()",
            "they would be added to those of this batch.",
            partial(_step, clear="never"),
        ),
        Mistake(
            "the gradients are cleared before the step",
            "the step would find nothing: clear before the first micro-batch.",
            alone(partial(_step, clear="late")),
        ),
        Mistake(
            "the gradients are not clipped before the step",
            "one bad batch could throw the weights far away.",
            partial(_step, clip="never"),
            (partial(_step, clip="late"),),
        ),
        Mistake(
            "max_norm is ignored: a fixed number is used",
            "the caller's max_norm is to be used.",
            partial(_step, limit=lambda max_norm: 1.0),
        ),
        Mistake(
            "the step is missing",
            "gradients alone change no weight.",
            alone(partial(_step, step="never")),
        ),
        Mistake(
            "each entry is clipped, not the joint norm",
            "cutting the entries one by one turns the direction of the gradient.",
            alone(partial(_step, clipper=nn.utils.clip_grad_value_)),
        ),
        Mistake(
            "the model runs in eval mode",
            "in training, dropout must drop: the mode is the caller's choice.",
            in_eval_mode(_step),
            (in_eval_mode(_step, nn.Module.train),),
        ),
        *_common(_step),
    ),
    properties=(),
    hints=(
        "Write down for three micro-batches, line by line, what .grad holds. What is left at the step?",
        "Four things happen: clear, add up, clip, step. Which of them belong to a micro-batch, and which to the batch?",
        "Plan: clear once. Then for each micro-batch forward, weigh by its targets, backward. After the loop clip once "
        "and step once. Return the mean loss.",
    ),
)

EXERCISES = (ACCUMULATE_GRADIENTS, ACCUMULATED_STEP)
