"""The check of adamw_step of 06_training: one step on one parameter, in place, many times."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from l1_ref.checks.compare import same
from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe, Property
from l1_ref.checks.observe import OUTPUT, REPEATED, Observation, observe_in_place
from l1_ref.optimization import adamw_step

_Build = Callable[[torch.Generator], Inputs]


def _parameter(
    *shape: int,
    lr: float = 0.1,
    betas: tuple[float, float] = (0.8, 0.95),
    eps: float = 1e-8,
    decay: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> _Build:
    def build(generator: torch.Generator) -> Inputs:
        p, grad = torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(dtype)
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": decay}
        return {"p": nn.Parameter(p + 2), "grad": grad, "state": {}, **settings}

    return build


def _three_numbers(generator: torch.Generator) -> Inputs:
    p, grad = nn.Parameter(torch.tensor([1.0, -2.0, 3.0])), torch.tensor([0.5, 2.0, -0.1])
    return {"p": p, "grad": grad, "state": {}, "lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-8, "weight_decay": 0.5}


def _zeros_among(generator: torch.Generator) -> Inputs:
    inputs = _parameter(4)(generator)
    inputs["grad"][:2] = 0.0
    return inputs


def _gradients(first: Tensor, seed: int, n_steps: int) -> list[Tensor]:
    """Return one gradient a step: the first, then others of other sizes, with zeros where the first has them."""
    generator = torch.Generator().manual_seed(seed)
    later = [3.0**-n * torch.randn(first.shape, generator=generator, dtype=torch.float64) for n in range(1, n_steps)]
    return [first.clone(), *(grad.to(first.dtype).masked_fill(first == 0, 0) for grad in later)]


def _observe_update(
    candidate: Callable, inputs: Inputs, gradient: bool, seed: int, n_steps: int = 1, again: bool = False
) -> Observation:
    """Take some steps with one state, and record the parameter after each; where wanted, again from the start."""
    seen = _steps(candidate, inputs, seed, n_steps)
    if OUTPUT not in seen and again and not same(seen, _steps(candidate, inputs, seed, n_steps), 1e-6):
        return {REPEATED: "differ"}
    return seen


def _steps(candidate: Callable, inputs: Inputs, seed: int, n_steps: int) -> Observation:
    gradients = _gradients(inputs["grad"], seed, n_steps)
    settings = [inputs[name] for name in ("lr", "betas", "eps", "weight_decay")]
    seen: Observation = {}
    kept = []

    def take(p: nn.Parameter) -> None:
        state: dict = {}
        for n, grad in enumerate(gradients, start=1):
            given = grad.clone()
            candidate(p, given, state, *settings)
            kept.append(torch.equal(given, grad))
            seen["p afterwards" if n == n_steps else f"p after step {n}"] = p.detach().clone()
        seen["p can be trained"] = p.requires_grad

    failure = observe_in_place(take, {"p": inputs["p"]}, False, seed)[OUTPUT]
    if failure is not None:
        return {OUTPUT: failure}
    return seen | {"grad afterwards": "as it was" if all(kept) else "changed in place"}


# Wrong versions.


def _mixed(old: Tensor, new: Tensor, beta: float) -> Tensor:
    return beta * old + (1 - beta) * new


def _corrected(mean: Tensor, beta: float, step: int) -> Tensor:
    return mean / (1 - beta**step)


def _uncorrected(mean: Tensor, beta: float, step: int) -> Tensor:
    return mean


def _decayed(p: Tensor, lr: float, weight_decay: float) -> Tensor:
    return p * (1 - lr * weight_decay)


def _as_it_is(p: Tensor, lr: float, weight_decay: float) -> Tensor:
    return p


def _root(square: Tensor, beta: float, step: int, eps: float, correct: Callable) -> Tensor:
    return correct(square, beta, step).sqrt() + eps


@torch.no_grad()
def _adamw(
    p: Tensor,
    grad: Tensor,
    state: dict,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    *,
    into_gradient: Callable = lambda grad, p, decay: grad,
    before: Callable = _decayed,
    behind: Callable = _as_it_is,
    chosen: Callable = lambda betas: betas,
    mean: Callable = _mixed,
    square: Callable = lambda old, grad, beta, mean: _mixed(old, grad * grad, beta),
    counted: Callable = lambda step: step,
    corrects: tuple[Callable, Callable] = (_corrected, _corrected),
    divisor: Callable = _root,
    moved: Callable = lambda p, lr, change: p - lr * change,
    kept: Callable = dict.update,
) -> None:
    """Take the step as the reference does, with one part or another replaced."""
    step, m, v = state.get("step", 0) + 1, state.get("m", torch.zeros_like(p)), state.get("v", torch.zeros_like(p))
    beta_1, beta_2 = chosen(betas)
    grad = into_gradient(grad, p, weight_decay)
    m = mean(m, grad, beta_1)
    v = square(v, grad, beta_2, m)
    kept(state, {"step": step, "m": m, "v": v})
    change = corrects[0](m, beta_1, counted(step)) / divisor(v, beta_2, counted(step), eps, corrects[1])
    p.copy_(behind(moved(before(p, lr, weight_decay), lr, change), lr, weight_decay))


def _alone(**switches: Any) -> Callable:
    """Return a version that is not tried together with others: only the plain switches are."""
    return lambda *inputs: _adamw(*inputs, **switches)


def _not_in_place(p: Tensor, *more: Any) -> Tensor:
    new = nn.Parameter(p.detach().clone())
    adamw_step(new, *more)
    return new


def _scaling_grad(p: Tensor, grad: Tensor, state: dict, lr: float, betas: tuple, *more: float) -> None:
    adamw_step(p, grad, state, lr, betas, *more)
    grad.mul_(1 - betas[0])


def _decaying_grad(p: Tensor, grad: Tensor, state: dict, *settings: Any) -> None:
    with torch.no_grad():
        grad += settings[-1] * p
    adamw_step(p, grad, state, *settings[:-1], 0.0)


def _freezing(p: Tensor, *more: Any) -> None:
    adamw_step(p, *more)
    p.requires_grad_(False)


def _largest_so_far(p: Tensor, grad: Tensor, state: dict, *settings: Any) -> None:
    """AMSGrad: divide by the largest mean square so far."""

    def divisor(square: Tensor, beta: float, step: int, eps: float, correct: Callable) -> Tensor:
        state["top"] = torch.maximum(state.get("top", square), square)
        return correct(state["top"], beta, step).sqrt() + eps

    _adamw(p, grad, state, *settings, divisor=divisor)


def _from_the_first(p: Tensor, grad: Tensor, state: dict, *settings: Any, **switches: Any) -> None:
    """Let both means begin with the first gradient."""
    state.setdefault("m", grad.clone())
    state.setdefault("v", grad * grad)
    _adamw(p, grad, state, *settings, **switches)


def _storing_the_corrected(p: Tensor, grad: Tensor, state: dict, lr: float, betas: tuple, *more: float) -> None:
    _adamw(p, grad, state, lr, betas, *more)
    for name, beta in zip("mv", betas, strict=True):
        state[name] = _corrected(state[name], beta, state["step"])


def _eps_behind(share: Callable[[float], float]) -> Callable:
    """Return a version that adds eps to the quotient; share takes lr and tells how much of it reaches p."""

    def step(p: Tensor, grad: Tensor, state: dict, lr: float, betas: tuple, eps: float, decay: float) -> None:
        _adamw(p, grad, state, lr, betas, 0.0, decay, behind=lambda p, *_: p - share(lr) * eps)

    return step


def _only_decays(f: Callable, p: Tensor, grad: Tensor, lr: float, weight_decay: float, **more: Any) -> bool:
    new = nn.Parameter(p.detach().clone())
    f(new, torch.zeros_like(grad), {}, lr, more["betas"], 1e-8, weight_decay)
    return torch.allclose(new, p * (1 - lr * weight_decay), atol=1e-5)


def _has_size_lr(f: Callable, p: Tensor, grad: Tensor, lr: float, **more: Any) -> bool:
    new = nn.Parameter(p.detach().clone())
    f(new, 1000 * grad, {}, lr, more["betas"], 1e-8, 0.0)
    return torch.allclose((new - p).abs(), lr * grad.sign().abs(), atol=1e-4)


_BIAS = "both means begin at 0, and after t steps only 1 - beta^t of the way is done: dividing by that makes up for it."
_EPS = "eps is added last, to the root of the corrected mean square."
_BEFORE = "the decay comes first: p shrinks by lr * weight_decay of itself, then it moves."
_MEANS = "each mean keeps beta of what it was, and takes 1 - beta of what is new."

ADAMW_STEP = Exercise(
    name="adamw_step",
    notebook="06_training",
    reference=adamw_step,
    probes=tuple(
        # A long way to walk for rounding: how a style mixes the means shows in the fifth digit.
        Probe(
            name, build, axes, False, edge, 1e-5 if how.get("n_steps") == 12 else 1e-6, partial(_observe_update, **how)
        )
        for name, build, axes, edge, how in (
            ("one step", _three_numbers, "C", False, {}),
            ("two steps with one state", _parameter(3), "C", False, {"n_steps": 2, "again": True}),
            (
                "five steps with one state, a large eps",
                _parameter(2, 3, lr=0.05, betas=(0.9, 0.7), eps=0.1, decay=1.5),
                "N C",
                False,
                {"n_steps": 5},
            ),
            (
                "twelve steps with one state, the usual betas",
                _parameter(3, 2, lr=0.2, betas=(0.9, 0.999), decay=0.3),
                "N C",
                False,
                {"n_steps": 12},
            ),
            (
                "three steps in float64",
                _parameter(2, 2, 3, decay=0.2, dtype=torch.float64),
                "N H C",
                False,
                {"n_steps": 3},
            ),
            ("entries whose gradient is always 0", _zeros_among, "C", True, {"n_steps": 3}),
        )
    ),
    mistakes=(
        Mistake(
            "the decay is added to the gradient (L2, as in Adam)",
            "the means would carry it, and the root divide it away; in AdamW the decay stands apart from the gradient.",
            partial(_adamw, into_gradient=lambda grad, p, decay: grad + decay * p, before=_as_it_is),
        ),
        Mistake(
            "the decay comes after the move",
            f"then the move decays too. {_BEFORE[0].upper()}{_BEFORE[1:]}",
            partial(_adamw, before=_as_it_is, behind=_decayed),
        ),
        Mistake(
            "the decay is not multiplied by lr",
            _BEFORE,
            partial(_adamw, before=lambda p, lr, decay: p * (1 - decay)),
            (partial(_adamw, before=_as_it_is, behind=lambda p, lr, decay: p * (1 - decay)),),
        ),
        Mistake("weight_decay is not used", _BEFORE, partial(_adamw, before=_as_it_is)),
        Mistake(
            "the decay makes p grow",
            "decay means shrinking: 1 - lr * weight_decay.",
            partial(_adamw, before=lambda p, lr, decay: p * (1 + lr * decay)),
        ),
        Mistake(
            "p is multiplied by lr * weight_decay itself",
            "so little would be left of it; that much is taken off: 1 - lr * weight_decay.",
            partial(_adamw, before=lambda p, lr, decay: p * lr * decay),
            (partial(_adamw, before=lambda p, lr, decay: p - lr * decay),),
        ),
        Mistake("both bias corrections are missing", _BIAS, partial(_adamw, corrects=(_uncorrected, _uncorrected))),
        Mistake(
            "the bias correction of the mean is missing", _BIAS, partial(_adamw, corrects=(_uncorrected, _corrected))
        ),
        Mistake(
            "the bias correction of the mean square is missing",
            _BIAS,
            partial(_adamw, corrects=(_corrected, _uncorrected)),
        ),
        Mistake(
            "the bias correction multiplies, and should divide",
            _BIAS,
            _alone(corrects=(lambda mean, beta, step: mean * (1 - beta**step),) * 2),
        ),
        Mistake(
            "the bias correction divides by 1 - beta at every step",
            _BIAS,
            _alone(corrects=(lambda mean, beta, step: mean / (1 - beta),) * 2),
            (
                _alone(counted=lambda step: 1),
                _alone(corrects=(lambda mean, beta, step: mean / (1 - beta * step),) * 2),
            ),
        ),
        Mistake(
            "the steps are counted from 0",
            "in the first step 1 - beta^0 is 0, and 0 divided by 0 is NaN: count up before you correct.",
            partial(_adamw, counted=lambda step: step - 1),
            (_alone(counted=lambda step: max(1, step - 1)),),
        ),
        Mistake(
            "the first step is counted as the second",
            "count up once a step, from 0 to 1 in the first.",
            partial(_adamw, counted=lambda step: step + 1),
            (_alone(counted=lambda step: 2 * step),),
        ),
        Mistake(
            "eps stands inside the root",
            _EPS,
            partial(_adamw, divisor=lambda v, beta, step, eps, correct: (correct(v, beta, step) + eps).sqrt()),
            (
                _alone(divisor=lambda v, beta, step, eps, correct: correct(v + eps, beta, step).sqrt()),
                _alone(divisor=lambda v, beta, step, eps, correct: (correct(v, beta, step) + eps * eps).sqrt()),
            ),
        ),
        Mistake(
            "eps is added before the bias correction",
            _EPS,
            partial(_adamw, divisor=lambda v, beta, step, eps, correct: (v.sqrt() + eps) / (1 - beta**step) ** 0.5),
        ),
        Mistake(
            "eps is added to the quotient: brackets are missing",
            f"a / b + eps is (a / b) + eps. {_EPS[0].upper()}{_EPS[1:]}",
            _eps_behind(lambda lr: 1.0),
            (_eps_behind(lambda lr: lr),),
        ),
        Mistake(
            "the bias correction of the mean square stands outside the root",
            "correct the mean square first, then take the root of it.",
            _alone(divisor=lambda v, beta, step, eps, correct: correct(v.sqrt(), beta, step) + eps),
        ),
        Mistake(
            "the corrected means are stored in the state",
            "the next call would correct them once more: the state keeps the means as they are.",
            _storing_the_corrected,
        ),
        Mistake(
            "the means begin with the first gradient, not with 0",
            f"AdamW's begin at 0. {_BIAS[0].upper()}{_BIAS[1:]}",
            _from_the_first,
            (partial(_from_the_first, corrects=(_uncorrected, _uncorrected)),),
        ),
        Mistake(
            "eps is left out",
            "a gradient that was always 0 gives 0 divided by 0.",
            partial(_adamw, divisor=lambda v, beta, step, eps, correct: correct(v, beta, step).sqrt()),
        ),
        Mistake(
            "eps is not used: a fixed number stands in its place",
            "the caller chooses it.",
            _alone(divisor=lambda v, beta, step, eps, correct: correct(v, beta, step).sqrt() + 1e-8),
        ),
        Mistake(
            "the root is missing: divided by the mean square itself",
            "only the root has the unit of the gradient; then the size of the gradient cancels out.",
            partial(_adamw, divisor=lambda v, beta, step, eps, correct: correct(v, beta, step) + eps),
        ),
        Mistake(
            "the two betas are swapped",
            "the first is for the mean, the second for the mean square.",
            partial(_adamw, chosen=lambda betas: betas[::-1]),
        ),
        Mistake(
            "betas is not used: fixed numbers stand in its place",
            "the caller chooses them.",
            _alone(chosen=lambda betas: (0.9, 0.999)),
            (_alone(chosen=lambda betas: (0.9, 0.99)), _alone(chosen=lambda betas: (0.9, 0.95))),
        ),
        Mistake(
            "one beta stands for both",
            "the first is for the mean, the second for the mean square.",
            _alone(chosen=lambda betas: betas[:1] * 2),
            (_alone(chosen=lambda betas: betas[1:] * 2),),
        ),
        Mistake(
            "beta and 1 - beta are swapped",
            _MEANS,
            partial(
                _adamw,
                mean=lambda old, new, beta: _mixed(old, new, 1 - beta),
                square=lambda old, grad, beta, mean: _mixed(old, grad * grad, 1 - beta),
            ),
            (
                _alone(mean=lambda old, new, beta: _mixed(old, new, 1 - beta)),
                _alone(square=lambda old, grad, beta, mean: _mixed(old, grad * grad, 1 - beta)),
            ),
        ),
        Mistake(
            "the new gradient is added whole: 1 - beta is missing",
            _MEANS,
            _alone(
                mean=lambda old, new, beta: beta * old + new,
                square=lambda old, grad, beta, mean: beta * old + grad * grad,
            ),
            (
                _alone(mean=lambda old, new, beta: beta * old + new),
                _alone(square=lambda old, grad, beta, mean: beta * old + grad * grad),
                _alone(square=lambda old, grad, beta, mean: old + grad * grad),
            ),
        ),
        Mistake(
            "the mean of the gradient is not kept: only the last one counts",
            _MEANS,
            _alone(mean=lambda old, new, beta: new, corrects=(_uncorrected, _corrected)),
            (
                _alone(mean=lambda old, new, beta: new),
                _alone(mean=lambda old, new, beta: (1 - beta) * new),
            ),
        ),
        Mistake(
            "the mean of the squares is not kept: only the last gradient counts",
            _MEANS,
            _alone(square=lambda old, grad, beta, mean: grad * grad, corrects=(_corrected, _uncorrected)),
            (
                _alone(square=lambda old, grad, beta, mean: grad * grad),
                _alone(square=lambda old, grad, beta, mean: (1 - beta) * grad * grad),
            ),
        ),
        Mistake(
            "the gradient is not squared in the second mean",
            "the mean of the gradient may be below 0, and its root NaN; squares are never.",
            partial(_adamw, square=lambda old, grad, beta, mean: _mixed(old, grad, beta)),
            (_alone(square=lambda old, grad, beta, mean: _mixed(old, grad.abs(), beta)),),
        ),
        Mistake(
            "the mean is squared, not the gradient",
            "the second mean is one of squared gradients.",
            _alone(square=lambda old, grad, beta, mean: _mixed(old, mean * mean, beta)),
            (_alone(square=lambda old, grad, beta, mean: mean * mean),),
        ),
        Mistake(
            "the state is not kept: every call is a first step",
            "the means live in the dict that the caller hands over: change that one, and do not build a new one.",
            partial(_adamw, kept=lambda state, new: None),
            (_alone(kept=lambda state, new: state.update(step=new["step"])),),
        ),
        Mistake(
            "p stays as it was: it is not changed in place",
            "p = p - … only gives the name p to another tensor; p.sub_(…), p.copy_(…) and p -= … change the one that "
            "the model has.",
            _not_in_place,
        ),
        Mistake(
            "the step goes uphill",
            "the gradient points to where the loss grows: subtract.",
            partial(_adamw, moved=lambda p, lr, change: p + lr * change),
        ),
        Mistake(
            "lr is not used",
            "the caller chooses how far to go.",
            partial(_adamw, moved=lambda p, lr, change: p - change),
        ),
        Mistake(
            "it is plain gradient descent",
            "AdamW divides the mean gradient by the root of the mean square.",
            _alone(mean=lambda old, new, beta: new, corrects=(_uncorrected,) * 2, divisor=lambda *_: 1.0),
            (
                _alone(divisor=lambda *_: 1.0),
                _alone(divisor=lambda *_: 1.0, corrects=(_uncorrected,) * 2),
            ),
        ),
        Mistake(
            "it divides by the largest mean square so far (AMSGrad)",
            "AdamW forgets old squares, so that it can become quick again.",
            _largest_so_far,
        ),
        Mistake(
            "grad is changed in place",
            "the caller still needs it; and a mean that is grad itself, not a copy, changes with it.",
            _scaling_grad,
            (_decaying_grad,),
        ),
        Mistake(
            "p is frozen afterwards",
            "the next backward pass must reach it: change p under torch.no_grad(), and leave requires_grad.",
            _freezing,
        ),
    ),
    properties=(
        Property("a gradient of 0, from the first step on, moves nothing but the decay", _only_decays),
        Property("the first step has the size lr, whatever the size of the gradient", _has_size_lr),
    ),
    hints=(
        "Two running means: of the gradient, and of its square. What does the dict hold before the first call, and "
        "what after it?",
        "Four parts: shrink p by the decay; bring both means up to date, in the state; correct both for having begun "
        "at 0, by 1 - beta to the power of the number of steps; move. p requires a gradient, so under which context?",
        "Plan, under torch.no_grad(): an empty state gets a step of 0 and two tensors of zeros; count up; p times "
        "(1 - lr * weight_decay), in place; each mean is beta times itself plus (1 - beta) times the new; divide the "
        "corrected mean by (the root of the corrected mean square, plus eps), and take lr times that off p, in place.",
    ),
)

EXERCISES = (ADAMW_STEP,)
