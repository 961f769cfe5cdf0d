"""The checks of 06_training: the training step here, and the other exercises in parts beside this module."""

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l1_ref.checks import averaging, clipping, grouping, losses, schedules, surprise, updates
from l1_ref.checks.compare import Failure
from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe, Property
from l1_ref.checks.observe import GRADIENT, OUTPUT, Observation, observe_step
from l1_ref.checks.schedules import as_number
from l1_ref.checks.toys import in_eval_mode
from l1_ref.loss import cross_entropy
from l1_ref.steps import train_step


class _Pairs(nn.Module):
    """A model that looks at one token only: ids (B, T) to logits (B, T, V).

    Args:
        vocab_size: V.
        width: C.
        generator: Draws the numbers.
    """

    def __init__(self, vocab_size: int, width: int, generator: torch.Generator):
        super().__init__()
        self.table = nn.Parameter(2 * torch.randn(vocab_size, width, generator=generator))
        self.out = nn.Parameter(torch.randn(width, vocab_size, generator=generator))
        self.bias = nn.Parameter(torch.randn(vocab_size, generator=generator))

    def __repr__(self) -> str:
        return f"a model of {len(self.table)} tokens"

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits."""
        logits = self.table[ids] @ self.out + self.bias
        return logits if self.training else logits / 3  # a stand-in for dropout, without chance


class _Descent(torch.optim.Optimizer):
    """Gradient descent with momentum and decay; torch's own takes a second to build for the first time.

    Args:
        parameters: To be changed.
        lr: Learning rate.
        momentum: Share of the last change that is added again.
        weight_decay: Share of the parameter that is added to its gradient.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.0, weight_decay: float = 0.0):
        self.defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        self.param_groups, self.state = [{"params": list(parameters), **self.defaults}], {}

    def __repr__(self) -> str:
        return f"SGD(lr={self.defaults['lr']:g})"

    def __deepcopy__(self, memo: dict) -> "_Descent":
        return _Descent(copy.deepcopy(self.param_groups[0]["params"], memo), **self.defaults)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        for p in self.param_groups[0]["params"]:
            p.grad = None if set_to_none or p.grad is None else torch.zeros_like(p)

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        """Change the parameters."""
        group = self.param_groups[0]
        for p in group["params"]:
            if p.grad is not None:
                change = p.grad + group["weight_decay"] * p + group["momentum"] * self.state.get(p, 0.0)
                self.state[p] = change
                p.sub_(group["lr"] * change)


def _step(
    B: int, T: int, V: int, *max_norm: float, padding: int = 0, frozen: bool = False, **of_optimizer: float
) -> Callable[[torch.Generator], Inputs]:
    """Return the builder of a probe: a model, a batch and an optimizer, and max_norm where given."""

    def build(generator: torch.Generator) -> Inputs:
        model = _Pairs(V, 3, generator)
        model.bias.requires_grad_(not frozen)
        x, y = torch.randint(V, (2, B, T), generator=generator)
        y[0, T - padding :] = -100
        optimizer = _Descent(model.parameters(), **{"lr": 0.5, **of_optimizer})
        inputs = {"model": model, "x": x, "y": y, "optimizer": optimizer}
        return inputs | ({"max_norm": max_norm[0]} if max_norm else {})

    return build


_EVENTS = ("backward", "grad", "clip_grad_norm_", "step")
_CLIPPED, _AFTER = "the time of clip_grad_norm_", "the gradients after the step"
_MET = "the gradients that the optimizer meets"


def _observe_training(
    candidate: Callable, inputs: Inputs, gradient: bool, seed: int, n_steps: int = 1, left: bool = False
) -> Observation:
    """Take steps on a model, with gradients left from before where wanted, and record what `observe_step` sees."""
    afterwards: Observation = {}

    def steps(model: nn.Module, x: Tensor, y: Tensor, *more: Any) -> Any:
        generator = torch.Generator().manual_seed(seed)
        for p in model.parameters() if left else ():
            p.grad = torch.randn(p.shape, generator=generator) if p.requires_grad else None
        kept = True
        for n in range(n_steps):
            given = x.roll(n, 1), y.roll(n, 1)
            loss = candidate(model, *given, *more)
            kept = kept and torch.equal(given[0], x.roll(n, 1)) and torch.equal(given[1], y.roll(n, 1))
        afterwards["x and y"] = "as they were" if kept else "changed in place"
        afterwards["the model's mode"] = "training" if model.training else "eval"
        afterwards[_AFTER] = {name: p.grad for name, p in model.named_parameters()}
        return loss

    seen = observe_step(steps, inputs, gradient, seed, _EVENTS)
    if isinstance(seen[OUTPUT], Failure):
        return seen
    seen[OUTPUT] = as_number(seen[OUTPUT])
    order = ["backward" if event == "grad" else event for event in seen["the order of the calls"]]
    seen["the order of the calls"] = [event for event in order if event != "clip_grad_norm_"]
    seen[_CLIPPED] = _time_of_clipping(order)
    seen |= afterwards
    seen |= {_AFTER: "as the optimizer met them, or cleared" if _is_kept(seen) else "changed"}
    return _each_alone_by_name(seen)


def _each_alone_by_name(seen: Observation) -> Observation:
    """Let each gradient and each parameter be seen by itself, so that a message shows its numbers."""
    told = {_MET: f"{GRADIENT}{{}} at the step", "the parameters afterwards": "{} afterwards"}
    apart: Observation = {}
    for name, value in seen.items():
        apart |= {told[name].format(p): each for p, each in value.items()} if name in told else {name: value}
    return apart


def _time_of_clipping(order: list[str]) -> str:
    """Say when clip_grad_norm_ was called; code that clips by hand does not call it."""
    if order[:1] == ["clip_grad_norm_"] and "backward" in order:
        return "before backward"
    if order[-1:] == ["clip_grad_norm_"] and "step" in order:
        return "after the step"
    return "between backward and step, or by hand"


def _is_kept(seen: Observation) -> bool:
    met, after = seen.get(_MET), seen[_AFTER]
    return met is None or all(
        grad is None or not grad.any() or (met[name] is not None and torch.equal(grad, met[name]))
        for name, grad in after.items()
    )


# Wrong versions.


def _clear(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()


def _zeros(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=False)


def _loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(model(x), y)


def _torchs_clip(model: nn.Module, max_norm: float) -> Any:
    return nn.utils.clip_grad_norm_(model.parameters(), max_norm)


def _own_clip(model: nn.Module, max_norm: float, always: bool = False) -> None:
    gradients = _all(model)
    norm = sum(grad.square().sum() for grad in gradients) ** 0.5
    for grad in gradients:
        grad.mul_(max_norm / norm if always or norm > max_norm else 1.0)


def _all(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def _by_value(model: nn.Module, max_norm: float) -> None:
    for grad in _all(model):
        grad.clamp_(-max_norm, max_norm)


def _each_alone(model: nn.Module, max_norm: float) -> None:
    for grad in _all(model):
        grad.mul_((max_norm / grad.norm()).clamp(max=1.0))


def _nothing(*_: Any) -> None:
    """Leave a part out."""


def _stepped(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.step()


@torch.no_grad()
def _by_hand(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for p in model.parameters():
        p -= 0 if p.grad is None else optimizer.param_groups[0]["lr"] * p.grad


def _train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    optimizer: torch.optim.Optimizer,
    max_norm: float = 1.0,
    *,
    order: str = "clear loss backward clip step",
    clear: Callable = _clear,
    loss: Callable = _loss_of,
    backward: Callable = Tensor.backward,
    clip: Callable = _torchs_clip,
    step: Callable = _stepped,
    returned: Callable = lambda loss, norm, again: loss.detach(),
) -> Any:
    """Take the parts of the step in some order, with one or another replaced."""
    value = norm = None
    for part in order.split():
        if part == "clear":
            clear(model, optimizer)
        elif part == "loss":
            value = loss(model, x, y)
        elif part == "backward":
            backward(value)
        elif part == "clip":
            norm = clip(model, max_norm)
        else:
            step(model, optimizer)
    return returned(value, norm, partial(loss, model, x, y))


def _ordered(*orders: str, **switches: Any) -> tuple[Callable, ...]:
    """Return versions of other orders, which are not tried together with others."""
    return tuple(_with(order=order, **switches) for order in orders)


def _with(**switches: Any) -> Callable:
    return lambda *inputs: _train(*inputs, **switches)


def _twice(loss: Tensor) -> None:
    loss.backward(retain_graph=True)
    loss.backward()


def _doubly_stepped(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.step()
    optimizer.step()


def _default_norm(default: float) -> Callable:
    return lambda model, x, y, optimizer, max_norm=default: train_step(model, x, y, optimizer, max_norm)


def _in_eval(*inputs: Any) -> Tensor:
    loss = train_step(*inputs)
    inputs[0].eval()
    return loss


def _summed(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum")


def _learns(f: Callable, model: nn.Module, x: Tensor, y: Tensor, **more: Any) -> bool:
    model = copy.deepcopy(model)
    optimizer = _Descent(model.parameters(), lr=0.1)
    found = [float(f(model, x, y, optimizer)) for _ in range(9)]
    return found[-1] < found[0]


_ORDER = "zero, forward, backward, clip, step: each needs what stands before it."
_LEFT = "backward adds to what stands in .grad: the gradients of an earlier batch would count again."
_WHEN = "clip what backward has made, before the optimizer uses it."
_WATCHED = "the loss tells how good the model was on this batch before it learned from it."

TRAIN_STEP = Exercise(
    name="train_step",
    notebook="06_training",
    reference=train_step,
    observe=_observe_training,
    probes=(
        Probe("short gradients", _step(1, 2, 4, 100.0), gradient=False),
        Probe(
            "gradients left from an earlier step",
            _step(2, 3, 5, 100.0),
            gradient=False,
            observe=partial(_observe_training, left=True),
        ),
        Probe("max_norm not given", _step(3, 2, 5), gradient=False),
        Probe(
            "two steps, a small max_norm",
            _step(2, 3, 4, 0.5, momentum=0.9, weight_decay=0.1),
            gradient=False,
            observe=partial(_observe_training, n_steps=2),
        ),
        Probe(
            "padding, and a frozen bias",
            _step(3, 4, 5, 0.3, padding=2, frozen=True),
            gradient=False,
            observe=partial(_observe_training, left=True),
        ),
    ),
    mistakes=(
        Mistake("the gradients are never cleared", _LEFT, partial(_train, clear=_nothing)),
        Mistake(
            "the gradients are cleared only at the end",
            f"what was left before the first step counts too. {_LEFT[0].upper()}{_LEFT[1:]}",
            *_ordered("loss backward clip step clear"),
        ),
        Mistake(
            "the gradients are cleared between backward and the step",
            f"the optimizer finds nothing to do. {_ORDER[0].upper()}{_ORDER[1:]}",
            _ordered("loss backward clear clip step")[0],
            (
                *_ordered("loss backward clip clear step"),
                *_ordered("loss backward clear clip step", "loss backward clip clear step", clear=_zeros),
            ),
        ),
        Mistake(
            "the gradients are clipped after the step",
            _WHEN,
            *_ordered("clear loss backward step clip")[:1],
            _ordered("clear loss backward step clip", clip=_own_clip),
        ),
        Mistake(
            "the gradients are clipped before backward",
            _WHEN,
            *_ordered("clear clip loss backward step")[:1],
            _ordered("clip clear loss backward step", "clear loss clip backward step"),
        ),
        Mistake(
            "the gradients are not clipped",
            f"one strange batch can throw the weights far off. {_WHEN[0].upper()}{_WHEN[1:]}",
            partial(_train, clip=_nothing),
        ),
        Mistake(
            "optimizer.step() is missing",
            "backward computes the gradients; the step is what changes the weights.",
            partial(_train, step=_nothing),
        ),
        Mistake(
            "backward is missing",
            "without it there are no gradients, and the optimizer finds nothing to do.",
            partial(_train, backward=_nothing),
        ),
        Mistake(
            "the optimizer steps before backward",
            f"it uses the gradients of the batch before, or none. {_ORDER[0].upper()}{_ORDER[1:]}",
            *_ordered("clear loss step backward clip")[:1],
            (
                *_ordered(
                    "clear step loss backward clip", "clear loss clip step backward", "step clear loss backward clip"
                ),
                *_ordered("clear loss step backward", "step clear loss backward"),
            ),
        ),
        Mistake("backward runs twice", "the gradients add up to twice themselves.", partial(_train, backward=_twice)),
        Mistake("the optimizer steps twice", "one batch, one step.", partial(_train, step=_doubly_stepped)),
        Mistake(
            "the weights are changed by hand, not by optimizer.step()",
            "the optimizer keeps means, momentum and decay of its own: let it do its work.",
            _with(step=_by_hand),
        ),
        Mistake(
            "max_norm is not used",
            "the caller chooses it; 1.0 is only the default.",
            lambda model, x, y, optimizer, *_: train_step(model, x, y, optimizer),
            (lambda model, x, y, optimizer, *_: train_step(model, x, y, optimizer, 0.5),),
        ),
        Mistake(
            "max_norm has another default than 1.0",
            "it is what a call without max_norm gets.",
            _default_norm(5.0),
            tuple(map(_default_norm, (0.1, 0.25, 0.5, 2.0, 10.0, float("inf")))),
        ),
        Mistake(
            "each entry of the gradients is clipped by itself",
            "that turns the direction: one factor for all, by the joint norm.",
            partial(_train, clip=_by_value),
        ),
        Mistake(
            "each parameter's gradient is clipped by itself",
            "that turns the direction: one factor for all, by the joint norm.",
            _with(clip=_each_alone),
        ),
        Mistake(
            "short gradients are made longer",
            "clipping only shortens what is longer than max_norm.",
            _with(clip=partial(_own_clip, always=True)),
        ),
        Mistake(
            "the losses are summed, not averaged",
            "the step would grow with the size of the batch.",
            partial(_train, loss=_summed),
        ),
        Mistake(
            "the targets are shifted again",
            "y is shifted already: target t belongs to position t of x.",
            partial(_train, loss=lambda model, x, y: cross_entropy(model(x)[:, :-1], y[:, 1:])),
            (
                _with(loss=lambda model, x, y: cross_entropy(model(x[:, :-1]), y[:, 1:])),
                _with(loss=lambda model, x, y: cross_entropy(model(x)[:, :-1], x[:, 1:])),
            ),
        ),
        Mistake(
            "only the last position counts",
            "every position predicts its next token, and all of them teach.",
            _with(loss=lambda model, x, y: cross_entropy(model(x)[:, -1:], y[:, -1:])),
        ),
        Mistake(
            "a softmax stands before the loss",
            "cross_entropy takes the scores as they are, and does the softmax itself.",
            _with(loss=lambda model, x, y: cross_entropy(model(x).softmax(-1), y)),
        ),
        Mistake(
            "the targets are those that went in: x, not y",
            "the model would learn to repeat its input.",
            _with(loss=lambda model, x, y: cross_entropy(model(x), x)),
        ),
        Mistake(
            "x and y are swapped",
            "the model reads x, and is judged by y.",
            _with(loss=lambda model, x, y: cross_entropy(model(y), x)),
        ),
        Mistake(
            "the loss is returned with its graph",
            "whoever keeps it for a plot keeps the whole graph in memory: detach it.",
            partial(_train, returned=lambda loss, norm, again: loss),
        ),
        Mistake(
            "the loss is computed again after the step",
            f"{_WATCHED} And a second forward pass costs time.",
            partial(_train, returned=lambda loss, norm, again: again().detach()),
            (_with(returned=lambda loss, norm, again: again()),),
        ),
        Mistake(
            "nothing is returned",
            _WATCHED,
            partial(_train, returned=_nothing),
        ),
        Mistake(
            "the norm is returned, not the loss",
            _WATCHED,
            _with(returned=lambda loss, norm, again: norm),
            (
                _with(returned=lambda loss, norm, again: (loss.detach(), norm)),
                _with(returned=lambda loss, norm, again: (loss.item(), norm.item())),
            ),
        ),
        Mistake(
            "the perplexity is returned, not the loss",
            "the loss is in nats; who wants the perplexity takes exp of it.",
            _with(returned=lambda loss, norm, again: loss.detach().exp()),
        ),
        Mistake(
            "the model is put into eval mode",
            "from the next step on there would be no dropout.",
            _in_eval,
            (in_eval_mode(_train), in_eval_mode(_train, nn.Module.train)),
        ),
    ),
    properties=(Property("the loss on the same batch is lower after some steps", _learns),),
    hints=(
        "Five parts, in one order: zero, forward, backward, clip, step. What does each need from the one before?",
        "optimizer.zero_grad(); the loss from model(x) and y; loss.backward() fills every p.grad; your clip_grad_norm "
        "shortens them; then the optimizer. What would happen to a graph that is returned with the loss?",
        "Plan: clear the gradients; cross_entropy(model(x), y); backward; clip model.parameters() to max_norm; step; "
        "return the loss that you computed before the step, detached.",
    ),
)

EXERCISES = (
    *losses.EXERCISES,
    *surprise.EXERCISES,
    *schedules.EXERCISES,
    *grouping.EXERCISES,
    *updates.EXERCISES,
    *clipping.EXERCISES,
    TRAIN_STEP,
    *averaging.EXERCISES,
)
