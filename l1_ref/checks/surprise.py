"""The check of 06_training on perplexity."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe, Property
from l1_ref.checks.observe import observe_through
from l1_ref.checks.schedules import as_number
from l1_ref.loss import perplexity

_Build = Callable[[torch.Generator], Inputs]


def _given(loss: float | Tensor) -> _Build:
    return lambda generator: {"loss": loss}


def _drawn(as_tensor: bool) -> _Build:
    def build(generator: torch.Generator) -> Inputs:
        loss = 1 + 4 * torch.rand((), generator=generator)
        return {"loss": loss if as_tensor else loss.item()}

    return build


def _power(base: float) -> Callable:
    return lambda loss: base**loss


def _changing_loss(loss: float | Tensor) -> float | Tensor:
    return loss.exp_() if isinstance(loss, Tensor) else math.exp(loss)


_BASE = "the loss is in nats, so its base is e."

PERPLEXITY = Exercise(
    name="perplexity",
    notebook="06_training",
    reference=perplexity,
    observe=partial(observe_through, as_number),
    probes=(
        Probe("a loss of 2 nats", _given(2.0), gradient=False),
        Probe("a number", _drawn(False), gradient=False),
        Probe("a tensor", _drawn(True), gradient=False),
        Probe("a perfect model", _given(0.0), gradient=False),
        Probe("a model that knows nothing about 50257 tokens", _given(math.log(50257)), gradient=False, edge=True),
        Probe("a model that is sure, and wrong", _given(40.0), gradient=False, edge=True),
    ),
    mistakes=(
        Mistake("the base is 2, not e", f"2^loss is for a loss in bits; {_BASE}", _power(2)),
        Mistake("the base is 10, not e", _BASE, _power(10)),
        Mistake(
            "e is rounded",
            "the power makes the error grow: math.exp and torch.exp know all digits.",
            _power(2.718),
            (_power(2.7), _power(2.72), _power(2.71)),
        ),
        Mistake(
            "the sign is turned: exp of minus the loss",
            "that is the probability of an average token; perplexity is 1 divided by it.",
            lambda loss: math.exp(-loss),
        ),
        Mistake(
            "the logarithm is taken, not the exponential",
            "the loss is a logarithm already; exp undoes it.",
            lambda loss: torch.as_tensor(loss).log(),
            (math.log, lambda loss: math.log2(loss)),
        ),
        Mistake("the loss is returned as it is", "perplexity counts tokens, the loss counts nats.", lambda loss: loss),
        Mistake(
            "the loss is cut off before exp",
            "a loss above the limit is a bad model, and perplexity should say how bad.",
            lambda loss: math.exp(min(loss, 20)),
            (lambda loss: math.exp(min(loss, 10)), lambda loss: math.exp(min(loss, 30))),
        ),
        Mistake(
            "1 is subtracted",
            "a perfect model hesitates among one token: its perplexity is 1, not 0.",
            lambda loss: math.exp(loss) - 1,
        ),
        Mistake("it is the square of the loss", "perplexity is e to the power of the loss.", lambda loss: loss**2),
        Mistake(
            "the loss is divided by log 2 before exp",
            f"that makes bits of nats, and exp undoes nats only: {_BASE}",
            lambda loss: math.exp(loss / math.log(2)),
        ),
        Mistake(
            "the answer is rounded",
            "two models that differ by half a token would look alike.",
            lambda loss: round(math.exp(loss)),
            (
                lambda loss: int(math.exp(loss)),
                lambda loss: float(round(math.exp(loss))),
                lambda loss: round(math.exp(loss), 1),
                lambda loss: round(math.exp(loss), 2),
            ),
        ),
        Mistake(
            "a plain float is not taken",
            "a loss may be a float or a tensor: torch.exp and .exp() take tensors only.",
            torch.exp,
        ),
        Mistake("the loss is changed in place", "exp_ writes into the caller's tensor: exp does not.", _changing_loss),
    ),
    properties=(
        Property(
            "two nats more make it e² times as large",
            lambda f, loss: math.isclose(float(f(loss + 2)), float(f(loss)) * math.e**2, rel_tol=1e-4),
        ),
    ),
    hints=(
        "The loss is the mean of -log p. What undoes a logarithm?",
        "e to the power of the loss. The caller may hand over a float or a tensor; which function takes both?",
        "math.exp takes a float, and a tensor of one number; torch.exp takes tensors only.",
    ),
)

EXERCISES = (PERPLEXITY,)
