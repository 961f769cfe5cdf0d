"""The check of the bug hunt of 06_training: the mean loss over batches of unequal sizes."""

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from l1_ref.checks.compare import Failure
from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe, Property
from l1_ref.checks.observe import OUTPUT, Observation
from l1_ref.checks.schedules import as_number
from l1_ref.loss import cross_entropy


def mean_loss(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return the mean loss over all targets of some batches, in eval mode and without gradients.

    Args:
        model: Left in the mode in which it came.
        batches: Inputs and targets, of sizes that may differ; targets of -100 do not count.
    """
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for x, y in batches:
            n = int((y != -100).sum())
            total += cross_entropy(model(x), y).item() * n if n else 0.0
            count += n
    model.train(was_training)
    return total / count


class _Judged(nn.Module):
    """A model whose answers in training mode are others, and which notes whether a graph is recorded.

    Args:
        vocab_size: V.
        generator: Draws the numbers.
        training: The mode.
    """

    def __init__(self, vocab_size: int, generator: torch.Generator, training: bool):
        super().__init__()
        self.table = nn.Parameter(1.5 * torch.randn(vocab_size, vocab_size, generator=generator))
        self.recorded = False
        self.train(training)

    def __repr__(self) -> str:
        return f"a model in {'training' if self.training else 'eval'} mode"

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits."""
        self.recorded = self.recorded or torch.is_grad_enabled()
        logits = self.table[ids]
        return logits / 3 if self.training else logits  # a stand-in for dropout, without chance


class _Batches(list):
    """Batches that print as their numbers of targets."""

    def __repr__(self) -> str:
        n_padding = [int((y == -100).sum()) for _, y in self]
        texts = [f"{y.numel() - n}{f' (and {n} padding)' * (n > 0)}" for n, (_, y) in zip(n_padding, self, strict=True)]
        return f"[batches of {', '.join(texts)} targets]"


def _to_judge(
    training: bool, *shapes: tuple[int, int], padding: tuple[int, ...] = ()
) -> Callable[[torch.Generator], Inputs]:
    """Return the builder of a probe: a model, and batches of some shapes, with so much padding in each."""

    def build(generator: torch.Generator) -> Inputs:
        batches = _Batches()
        for (B, T), n in zip(shapes, padding or (0,) * len(shapes), strict=True):
            x, y = torch.randint(5, (2, B, T), generator=generator)
            y.view(-1)[B * T - n :] = -100
            batches.append((x, y))
        return {"model": _Judged(5, generator, training), "batches": batches}

    return build


def _observe_judging(candidate: Callable, inputs: Inputs, gradient: bool, seed: int) -> Observation:
    """Record the loss, and what the call does to the model."""
    model, batches = copy.deepcopy(inputs["model"]), copy.deepcopy(inputs["batches"])
    try:
        with torch.enable_grad():
            output = candidate(model, batches)
            recording = torch.is_grad_enabled()
    except Exception as error:
        return {OUTPUT: Failure(error)}
    return {
        OUTPUT: as_number(output),
        "the result keeps its graph": bool(getattr(output, "requires_grad", False)),
        "a graph is recorded in the forward pass": model.recorded,
        "gradients afterwards": "as before" if recording else "off, for all code that follows",
        "the model's mode afterwards": "training" if model.training else "eval",
        "the model's numbers": "as they were" if torch.equal(model.table, inputs["model"].table) else "changed",
        "the model's gradients": "none" if model.table.grad is None else "filled",
    }


def _loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(model(x), y)


def _nothing(*_: Any) -> None:
    """Leave a part out."""


def _counted(y: Tensor) -> int:
    return int((y != -100).sum())


def _set_back(model: nn.Module, was_training: bool) -> None:
    model.train(was_training)


def _mean(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    taken: Callable = list,
    before: Callable = nn.Module.eval,
    after: Callable = _set_back,
    context: Callable = torch.no_grad,
    loss: Callable = _loss_of,
    weight: Callable = _counted,
    skips: bool = True,
    returned: Callable = lambda total, count, n: (total / count).item(),
) -> Any:
    """Return the mean as the reference does, with one part or another replaced."""
    was_training, total, count, n = model.training, torch.zeros(()), 0, 0
    before(model)
    with context():
        for x, y in taken(batches):
            n += 1
            if _counted(y) or not skips:
                total = total + loss(model, x, y) * weight(y)
                count += weight(y)
    after(model, was_training)
    return returned(total, count, n)


def _with_mean(**switches: Any) -> Callable:
    """Return a version that is not tried together with others."""
    return lambda *inputs: _mean(*inputs, **switches)


def _divided_by_all(model: nn.Module, batches: list) -> float:
    n = sum(y.numel() for _, y in batches)
    return _mean(model, batches, returned=lambda total, count, _: (total / n).item())


def _switching_off(model: nn.Module, batches: list) -> float:
    torch.set_grad_enabled(False)
    return _mean(model, batches)


def _with_backward(model: nn.Module, batches: list) -> float:
    for x, y in batches:
        _loss_of(model, x, y).backward()
    return _mean(model, batches)


def _is_a_mean(f: Callable, model: nn.Module, batches: _Batches) -> bool:
    once, twice = (float(f(copy.deepcopy(model), batches[:1] * n)) for n in (1, 2))
    return abs(once - twice) < 1e-4


_WEIGHTS = (
    "a small batch would count as much as a large one: weigh each by its targets that count, or add up the losses."
)
_MODE = "the caller may be in the middle of training: keep model.training, and put it back with model.train(…)."

MEAN_LOSS = Exercise(
    name="mean_loss",
    notebook="06_training",
    reference=mean_loss,
    observe=_observe_judging,
    probes=(
        Probe("two batches, one of them small", _to_judge(True, (2, 3), (1, 2)), gradient=False),
        Probe("a model that is in eval mode", _to_judge(False, (2, 4), (2, 4), (1, 3)), gradient=False),
        Probe(
            "padding in two of three batches",
            _to_judge(True, (2, 3), (2, 3), (3, 1), padding=(1, 4, 0)),
            gradient=False,
        ),
        Probe(
            "a batch of nothing but padding", _to_judge(True, (1, 3), (1, 2), padding=(1, 2)), gradient=False, edge=True
        ),
    ),
    mistakes=(
        Mistake(
            "the means of the batches are averaged, whatever their sizes",
            _WEIGHTS,
            partial(_mean, weight=lambda y: 1, skips=False),
            (_with_mean(weight=lambda y: 1),),
        ),
        Mistake(
            "the model is left in eval mode",
            f"from then on it would train without dropout; {_MODE}",
            partial(_mean, after=_nothing),
        ),
        Mistake(
            "the model is always put into training mode",
            f"a model that came in eval mode must stay in it; {_MODE}",
            partial(_mean, after=lambda model, was_training: model.train()),
        ),
        Mistake(
            "the model is not in eval mode while it is judged",
            "dropout would make the loss larger, and another one each time.",
            partial(_mean, before=_nothing, after=_nothing),
            (_with_mean(before=nn.Module.train),),
        ),
        Mistake(
            "a graph is recorded: torch.no_grad() is missing",
            "nothing is learned here, and the graphs of all batches cost memory and time.",
            partial(_mean, context=torch.enable_grad),
            (_with_mean(context=torch.enable_grad, returned=lambda total, count, n: total / count),),
        ),
        Mistake(
            "gradients are switched off, and not on again",
            "training after this call would fail: with torch.no_grad(): ends by itself.",
            _switching_off,
        ),
        Mistake(
            "each batch is weighed by its number of texts",
            _WEIGHTS,
            _with_mean(weight=len),
        ),
        Mistake(
            "padding counts in the weights",
            f"a target of -100 has no loss. {_WEIGHTS[0].upper()}{_WEIGHTS[1:]}",
            partial(_mean, weight=Tensor.numel),
            (_with_mean(weight=Tensor.numel, skips=False),),
        ),
        Mistake(
            "padding counts in the divisor",
            "a target of -100 has no loss, so it may not make the mean smaller.",
            _divided_by_all,
        ),
        Mistake(
            "the losses are summed, and not divided by the number of targets",
            "the mean is asked for, in nats a token.",
            partial(_mean, returned=lambda total, count, n: total.item()),
            (
                _with_mean(returned=lambda total, count, n: (total / n).item()),
                _with_mean(weight=lambda y: 1, returned=lambda total, count, n: total.item()),
            ),
        ),
        Mistake(
            "only one batch counts: the last, or the first",
            "add up inside the loop, divide and return behind it.",
            _with_mean(taken=lambda batches: batches[-1:]),
            (_with_mean(taken=lambda batches: batches[:1]),),
        ),
        Mistake(
            "the targets are shifted again",
            "y is shifted already: target t belongs to position t of x.",
            _with_mean(loss=lambda model, x, y: cross_entropy(model(x)[:, :-1], y[:, 1:])),
        ),
        Mistake(
            "the perplexity is returned",
            "the loss is asked for, in nats a token.",
            _with_mean(returned=lambda total, count, n: (total / count).exp().item()),
        ),
        Mistake(
            "a batch of nothing but padding makes the mean NaN",
            "its own mean is NaN, and 0 times NaN is NaN: pass it over, or add up sums.",
            partial(_mean, skips=False),
        ),
        Mistake(
            "the model learns while it is judged",
            "backward has no place here: the loss is only looked at.",
            _with_backward,
        ),
    ),
    properties=(Property("one batch twice has the mean of that batch", _is_a_mean),),
    hints=(
        "Two batches of 6 and 2 targets: how much does a token of each weigh in the broken version? And which mode is "
        "the model in when the function is done?",
        "A mean over tokens is a sum over tokens, divided by how many they are. How do you get back from a batch's "
        "mean to its sum? And the mode that the model had: where is it written?",
        "Plan: note model.training; eval mode; under torch.no_grad(), add each batch's mean times its targets that "
        "count, and count them, passing over batches that have none; put the mode back; divide, as a float.",
    ),
)

EXERCISES = (MEAN_LOSS,)
