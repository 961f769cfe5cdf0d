"""The check of cosine_lr, the learning rate's schedule, of 06_training."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe, Property
from l1_ref.checks.observe import observe_through
from l1_ref.optimization import cosine_lr

_Build = Callable[[torch.Generator], Inputs]


def as_number(output: Any) -> Any:
    """Write one number of torch's or numpy's as a plain one: right answers may be either.

    Args:
        output: Of the candidate.
    """
    return output.item() if hasattr(output, "item") and getattr(output, "ndim", 1) == 0 else output


def _at(step: int, lr_peak: float, warmup_steps: int, total_steps: int, *lr_min: float) -> _Build:
    inputs = {"step": step, "lr_peak": lr_peak, "warmup_steps": warmup_steps, "total_steps": total_steps}
    return lambda generator: inputs | ({"lr_min": lr_min[0]} if lr_min else {})


def _drawn(where: Callable[[int, int], int]) -> _Build:
    """Return the builder of a probe of chance settings; where makes the step of warmup_steps and total_steps."""

    def build(generator: torch.Generator) -> Inputs:
        def whole(low: int, high: int) -> int:
            return int(torch.randint(low, high, (), generator=generator))

        warmup_steps = whole(3, 9)
        total_steps = warmup_steps + whole(11, 40)
        step = where(warmup_steps, total_steps)
        return _at(step, whole(20, 90) / 100, warmup_steps, total_steps, whole(5, 15) / 100)(generator)

    return build


def _line(step: int, warmup_steps: int, lr_peak: float, lr_min: float) -> float:
    return lr_peak * step / warmup_steps


def _behind(step: int, warmup_steps: int, total_steps: int) -> float:
    return (step - warmup_steps) / (total_steps - warmup_steps)


def _between(lr_peak: float, lr_min: float, share: float) -> float:
    return lr_min + (lr_peak - lr_min) * share


def _half(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _rate(
    step: int,
    lr_peak: float,
    warmup_steps: int,
    total_steps: int,
    lr_min: float = 0.0,
    *,
    line: Callable = _line,
    warming: Callable = lambda step, warmup_steps: step < warmup_steps,
    progress: Callable = _behind,
    wave: Callable = _half,
    blend: Callable = _between,
    over: Callable = lambda step, total_steps: step >= total_steps,
    after: Callable = lambda lr_peak, lr_min: lr_min,
) -> float:
    """Compute the rate as the reference does, with one part or another replaced."""
    if over(step, total_steps):
        return after(lr_peak, lr_min)
    if warming(step, warmup_steps):
        return line(step, warmup_steps, lr_peak, lr_min)
    return blend(lr_peak, lr_min, wave(progress(step, warmup_steps, total_steps)))


def _bent(wave: Callable[[float], float]) -> Callable:
    """Return a warm-up that is no straight line."""
    return lambda step, n, peak, low: peak * wave(step / n)


def _default_low(default: float) -> Callable:
    return lambda step, peak, n, total, low=default: cosine_lr(step, peak, n, total, low)


def _never(*_: int) -> bool:
    return False


def _beyond(step: int, total_steps: int) -> bool:
    return step > total_steps


def _curve(*changes: dict[str, Callable]) -> tuple[Callable, tuple[Callable, ...]]:
    """Return a wrong version, and others: where the curve is wrong, it shows how the end is written."""
    versions = []
    for switches in changes:
        progress = switches.get("progress", _behind)
        held = {"progress": lambda *given, progress=progress: min(1.0, progress(*given)), "over": _never}
        versions += [
            partial(_rate, **switches),
            partial(_rate, **switches, over=_beyond),
            partial(_rate, **switches | held),
        ]
    return versions[0], tuple(versions[1:])


def _product(step: int, lr_peak: float, warmup_steps: int, total_steps: int, lr_min: float = 0.0) -> float:
    cosine = _between(lr_peak, lr_min, _half(min(1.0, step / total_steps)))
    return cosine * (min(1.0, step / warmup_steps) if warmup_steps else 1.0)


def _shifted(by: int) -> Callable:
    return lambda step, *given: cosine_lr(step + by, *given)


def _whole_number(step: int, warmup_steps: int, lr_peak: float, lr_min: float) -> float:
    return lr_peak * (step // warmup_steps)


def _rates(f: Callable, lr_peak: float, warmup_steps: int, total_steps: int, lr_min: float = 0.0) -> list[float]:
    return [float(f(step, lr_peak, warmup_steps, total_steps, lr_min)) for step in range(total_steps + 3)]


def _is_in_range(f: Callable, step: int, lr_peak: float, *_: float, **more: float) -> bool:
    return all(-1e-9 <= rate <= lr_peak + 1e-6 for rate in _rates(f, lr_peak, **more))


def _reaches_the_peak(f: Callable, step: int, lr_peak: float, warmup_steps: int, **more: float) -> bool:
    return math.isclose(_rates(f, lr_peak, warmup_steps, **more)[warmup_steps], lr_peak, rel_tol=1e-5)


def _rises_in_a_line(f: Callable, step: int, lr_peak: float, warmup_steps: int, **more: float) -> bool:
    rates = _rates(f, lr_peak, warmup_steps, **more)[:warmup_steps]
    return all(math.isclose(rate, lr_peak * n / warmup_steps, abs_tol=1e-5) for n, rate in enumerate(rates))


def _comes_down_smoothly(f: Callable, step: int, lr_peak: float, warmup_steps: int, **more: float) -> bool:
    """Say whether no step changes the rate by more than a cosine can."""
    rates = _rates(f, lr_peak, warmup_steps, **more)[warmup_steps:]
    steepest = lr_peak * math.pi / 2 / (more["total_steps"] - warmup_steps)
    return all(-1e-6 <= a - b <= 1.01 * steepest for a, b in pairwise(rates))


_STEPS_AFTER = "training may go on a little longer: the rate then stays at lr_min."
_PEAK = "the peak must be reached exactly at warmup_steps, where the line and the cosine meet."
_WAVE = "cos goes from 1 down to -1 in half a turn, pi; the share goes from 1 to 0 while progress goes from 0 to 1."
_SPAN = "progress must be 0 where the warm-up ends, and 1 at total_steps."
_FLOOR = "the cosine goes from lr_peak to lr_min: a share of 1 gives the one, a share of 0 the other."
_WARM = "the first steps are the wildest, since AdamW's means know little yet: the rate grows from 0."

COSINE_LR = Exercise(
    name="cosine_lr",
    notebook="06_training",
    reference=cosine_lr,
    observe=partial(observe_through, as_number),
    probes=tuple(
        Probe(name, build, gradient=False)
        for name, build in (
            ("the first step", _at(0, 0.8, 4, 20)),
            ("in the warm-up", _at(1, 0.8, 4, 20)),
            ("the last step of the warm-up", _at(3, 0.8, 4, 20)),
            ("the peak", _at(4, 0.8, 4, 20)),
            ("just behind the peak", _at(5, 0.8, 4, 20)),
            ("half-way down", _at(12, 0.8, 4, 20)),
            ("the last step", _at(19, 0.8, 4, 20)),
            ("the end", _at(20, 0.8, 4, 20)),
            ("the first step, with lr_min", _at(0, 0.5, 3, 17, 0.1)),
            ("in the warm-up, with lr_min", _drawn(lambda warmup, total: warmup - 1)),
            ("the peak, with lr_min", _drawn(lambda warmup, total: warmup)),
            ("a third down, with lr_min", _drawn(lambda warmup, total: warmup + (total - warmup) // 3)),
            ("two thirds down, with lr_min", _drawn(lambda warmup, total: warmup + 2 * (total - warmup) // 3)),
            ("the last step, with lr_min", _drawn(lambda warmup, total: total - 1)),
            ("the end, with lr_min", _drawn(lambda warmup, total: total)),
        )
    )
    + tuple(
        Probe(name, build, gradient=False, edge=True)
        for name, build in (
            ("a step behind the end", _at(21, 0.8, 4, 20)),
            ("long after the end", _at(52, 0.5, 3, 17, 0.1)),
            ("no warm-up, the first step", _at(0, 0.6, 0, 10)),
            ("no warm-up, in between", _at(3, 0.6, 0, 10, 0.2)),
        )
    ),
    mistakes=(
        Mistake(
            "the warm-up is one step ahead: step + 1",
            _PEAK,
            partial(_rate, line=lambda step, n, peak, low: peak * (step + 1) / n),
            (
                partial(_rate, line=lambda step, n, peak, low: peak * (step + 1) / (n + 1)),
                partial(_rate, line=lambda step, n, peak, low: peak * min(1.0, step / max(1, n - 1))),
            ),
        ),
        Mistake(
            "the warm-up is one step behind",
            _PEAK,
            partial(_rate, line=lambda step, n, peak, low: peak * step / (n + 1)),
            (partial(_rate, line=lambda step, n, peak, low: peak * (step - 1) / n),),
        ),
        Mistake(
            "every step is counted as the next one",
            "step is the number of steps taken so far: 0 before the first.",
            _shifted(1),
            (_shifted(-1),),
        ),
        Mistake(
            "the warm-up begins at lr_min, not at 0",
            "lr_min is where the cosine ends; the line begins at 0.",
            partial(_rate, line=lambda step, n, peak, low: low + (peak - low) * step / n),
            (partial(_rate, line=lambda step, n, peak, low: max(low, peak * step / n)),),
        ),
        Mistake(
            "the warm-up is no straight line",
            "each of its steps adds the same: lr_peak / warmup_steps.",
            partial(_rate, line=_bent(lambda share: share * share)),
            (
                partial(_rate, line=_bent(math.sqrt)),
                partial(_rate, line=_bent(lambda share: 0.5 * (1 - math.cos(math.pi * share)))),
                partial(_rate, line=_bent(lambda share: math.sin(0.5 * math.pi * share))),
            ),
        ),
        Mistake(
            "the warm-up is divided by total_steps",
            _PEAK,
            lambda step, peak, n, total, *low: (
                peak * step / total if step < n else cosine_lr(step, peak, n, total, *low)
            ),
        ),
        Mistake(
            "lr_min has another default than 0",
            "who does not ask for a floor gets none.",
            _default_low(0.1),
            (_default_low(0.01), _default_low(0.001), _default_low(1e-4)),
        ),
        Mistake(
            "the warm-up leads to lr_peak - lr_min",
            _PEAK,
            partial(_rate, line=lambda step, n, peak, low: (peak - low) * step / n),
        ),
        Mistake(
            "there is no warm-up: the cosine begins at once",
            _WARM,
            partial(_rate, warming=_never),
            (partial(_rate, warming=_never, progress=lambda step, n, total: step / total),),
        ),
        Mistake("the warm-up is at the peak all along", _WARM, partial(_rate, line=lambda step, n, peak, low: peak)),
        Mistake(
            "// cuts the warm-up down to 0",
            "a whole-number division gives 0 until the warm-up is over: use /.",
            partial(_rate, line=_whole_number),
        ),
        Mistake(
            "the warm-up is a factor on a cosine that has begun at step 0",
            "the two are one after the other: first the line, then the cosine from the peak.",
            _product,
        ),
        Mistake(
            "the cosine begins at step 0, not at the end of the warm-up",
            _SPAN,
            *_curve({"progress": lambda step, n, total: step / total}),
        ),
        Mistake(
            "the cosine takes total_steps after the warm-up, and should take total_steps - warmup_steps",
            _SPAN,
            *_curve({"progress": lambda step, n, total: (step - n) / total}),
        ),
        Mistake(
            "the cosine is divided by the right length, but begins at step 0",
            _SPAN,
            *_curve({"progress": lambda step, n, total: step / (total - n)}),
        ),
        Mistake(
            "the cosine ends one step early, or late",
            "progress must be 1 exactly at total_steps.",
            *_curve(
                {"progress": lambda step, n, total: (step - n) / (total - n - 1)},
                {"progress": lambda step, n, total: (step - n) / (total - n + 1)},
                {"progress": lambda step, n, total: (step - n + 1) / (total - n)},
            ),
        ),
        Mistake(
            "lr_min is added on top",
            _FLOOR,
            *_curve({"blend": lambda peak, low, share: low + peak * share}),
        ),
        Mistake(
            "lr_min is added to the rate of every step",
            _FLOOR,
            lambda step, *given: cosine_lr(step, *given[:3]) + (given[3] if len(given) > 3 else 0.0),
        ),
        Mistake(
            "lr_min cuts the cosine off",
            f"that makes a kink and a flat end. {_FLOOR[0].upper()}{_FLOOR[1:]}",
            partial(_rate, blend=lambda peak, low, share: max(low, peak * share)),
            (lambda step, *given: max(cosine_lr(step, *given[:3]), *given[3:], 0.0),),
        ),
        Mistake(
            "lr_min is not used in the cosine",
            _FLOOR,
            partial(_rate, blend=lambda peak, low, share: peak * share),
            (
                *_curve({"blend": lambda peak, low, share: peak * share})[1],
                lambda step, *given: cosine_lr(step, *given[:3]),
            ),
        ),
        Mistake(
            "the peak comes down to lr_min at once: the cosine begins at lr_peak - lr_min",
            _FLOOR,
            *_curve({"blend": lambda peak, low, share: (peak - low) * share}),
        ),
        Mistake(
            "lr_min is taken as a share of the peak",
            "lr_min is a rate itself.",
            *_curve(
                {"blend": lambda peak, low, share: _between(peak, low * peak, share)},
                {
                    "blend": lambda peak, low, share: _between(peak, low * peak, share),
                    "after": lambda peak, low: low * peak,
                },
            ),
        ),
        Mistake(
            "the rate goes up again after total_steps",
            f"the cosine is a wave. {_STEPS_AFTER.capitalize()}",
            partial(_rate, over=_never),
            (
                partial(_rate, over=_never, progress=lambda step, n, total: _behind(step, n, total) % 1),
                lambda step, *given: cosine_lr(step % given[2], *given),
                lambda step, *given: cosine_lr(step % given[2] if step > given[2] else step, *given),
            ),
        ),
        Mistake(
            "after total_steps the rate is 0",
            _STEPS_AFTER,
            partial(_rate, after=lambda peak, low: 0.0),
            (partial(_rate, over=_beyond, after=lambda peak, low: 0.0),),
        ),
        Mistake(
            "after total_steps the rate is the peak",
            _STEPS_AFTER,
            partial(_rate, after=lambda peak, low: peak),
            (partial(_rate, over=_beyond, after=lambda peak, low: peak),),
        ),
        Mistake(
            "the cosine is in degrees",
            "math.cos takes radians: half a turn is pi, not 180.",
            *_curve({"wave": lambda p: 0.5 * (1 + math.cos(180 * p))}),
        ),
        Mistake("pi is missing in the cosine", _WAVE, *_curve({"wave": lambda p: 0.5 * (1 + math.cos(p))})),
        Mistake(
            "it is a whole turn of the cosine, down and up again",
            _WAVE,
            *_curve({"wave": lambda p: 0.5 * (1 + math.cos(2 * math.pi * p))}),
        ),
        Mistake(
            "it is a quarter of the turn, not half",
            _WAVE,
            *_curve(
                {"wave": lambda p: math.cos(math.pi / 2 * p)}, {"wave": lambda p: 0.5 * (1 + math.cos(math.pi / 2 * p))}
            ),
        ),
        Mistake("the factor 0.5 is missing", _WAVE, *_curve({"wave": lambda p: 1 + math.cos(math.pi * p)})),
        Mistake(
            "1 is not added to the cosine",
            f"the rate would go below 0: {_WAVE}",
            *_curve({"wave": lambda p: math.cos(math.pi * p)}, {"wave": lambda p: 0.5 * math.cos(math.pi * p)}),
        ),
        Mistake(
            "brackets are missing: 0.5 * 1 + cos",
            _WAVE,
            *_curve(
                {"wave": lambda p: 0.5 + math.cos(math.pi * p)}, {"wave": lambda p: 1 + 0.5 * math.cos(math.pi * p)}
            ),
        ),
        Mistake(
            "the cosine rises: 1 - cos",
            "after the warm-up the rate comes down.",
            *_curve({"wave": lambda p: 0.5 * (1 - math.cos(math.pi * p))}),
        ),
        Mistake(
            "sin stands in the place of cos", _WAVE, *_curve({"wave": lambda p: 0.5 * (1 + math.sin(math.pi * p))})
        ),
        Mistake(
            "it is a straight line down, not a cosine",
            "the cosine leaves the peak and reaches the end slowly.",
            *_curve({"wave": lambda p: 1 - p}),
        ),
        Mistake(
            "there is no cosine: the rate stays at the peak",
            "large steps find the valley, small ones its floor: the rate comes down.",
            *_curve({"wave": lambda p: 1.0}),
        ),
        Mistake(
            "the rate falls by a power, not by a cosine",
            "the cosine leaves the peak and reaches the end slowly.",
            *_curve({"wave": lambda p: (1 - p) ** 2}, {"wave": lambda p: 1 - p**0.5}, {"wave": lambda p: 1 - p * p}),
        ),
        Mistake(
            "it is the share of the peak: lr_peak is missing",
            "an optimizer takes the rate itself.",
            lambda step, lr_peak, *given: cosine_lr(step, 1.0, *given),
            (lambda step, lr_peak, *given: cosine_lr(step, lr_peak, *given) / lr_peak,),
        ),
        Mistake(
            "warmup_steps = 0 divides by zero",
            "no warm-up means that the first step has the peak's rate: ask step < warmup_steps before you divide.",
            partial(_rate, warming=lambda step, n: step <= n),
        ),
        Mistake(
            "warmup_steps = 0 begins at 0",
            "no warm-up means that the first step has the peak's rate.",
            partial(_rate, warming=lambda step, n: step <= n, line=lambda step, n, peak, low: peak * step / max(1, n)),
            (
                partial(
                    _rate,
                    warming=lambda step, n: step < max(1, n),
                    line=lambda step, n, peak, low: peak * step / max(1, n),
                ),
            ),
        ),
    ),
    properties=(
        Property("the rate lies between 0 and lr_peak", _is_in_range),
        Property("at warmup_steps the rate is lr_peak", _reaches_the_peak),
        Property("until warmup_steps each step adds as much to the rate, from 0 on", _rises_in_a_line),
        Property("behind the peak the rate never rises, and never jumps", _comes_down_smoothly),
    ),
    hints=(
        "Three stretches of time: before warmup_steps, from there to total_steps, and after. What does each give?",
        "In the second stretch, first make a number that goes from 0 to 1: how far between the end of the warm-up and "
        "total_steps. Half a cosine turns it into a share that goes from 1 to 0. Where must lr_min stand?",
        "Plan: from total_steps on, lr_min. Below warmup_steps, the peak times step over warmup_steps. Else progress "
        "is the steps since the warm-up over the steps that the cosine has; its share is (1 + cos(pi * progress)) / 2; "
        "mix lr_peak and lr_min by the share.",
    ),
)

EXERCISES = (COSINE_LR,)
