"""The checks of 00_start_here: softmax, and the bug hunt around temperature."""

import math

import torch
from torch import Tensor

from l1_ref.attention import softmax
from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe, Property


def _scores(*shape: int, dim: int, scale: float = 1.5, offset: float = 0.0, dtype: torch.dtype = torch.float32):
    """Return the builder of a probe: normal scores of a shape, and the axis to go along."""

    def build(generator: torch.Generator) -> Inputs:
        x = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale + offset
        return {"x": x.to(dtype), "dim": dim}

    return build


def _fixed(values: list, dim: int):
    return lambda generator: {"x": torch.tensor(values), "dim": dim}


def _masked(generator: torch.Generator) -> Inputs:
    x = torch.randn(2, 4, 4, generator=generator)
    return {"x": x.masked_fill(torch.ones(4, 4).triu(1).bool(), -math.inf), "dim": -1}


def _apart(generator: torch.Generator) -> Inputs:
    """Rows so far apart that one row's exponentials vanish beside another's."""
    return {"x": torch.randn(3, 4, generator=generator) + torch.tensor([[0.0], [-300.0], [300.0]]), "dim": 1}


def _low(generator: torch.Generator) -> Inputs:
    """Finite scores as low as those that some code writes in place of -inf, and -inf beside them."""
    x = torch.randn(2, 5, generator=generator) * 1.5 - 1e4
    x[1] = torch.tensor([-1e4, -math.inf, -1e4, -math.inf, -math.inf])
    return {"x": x, "dim": 1}


def _spread(generator: torch.Generator) -> Inputs:
    """One score a row far above the others, and above the mean."""
    x = torch.randn(2, 5, generator=generator)
    x[0, 3], x[1, 0] = 1e4, 1e4
    return {"x": x, "dim": -1}


_PROBES = (
    Probe("one row", _fixed([1.0, 2.0, 3.0], 0), "V"),
    Probe("a square, along its rows", _scores(3, 3, dim=1), "B V"),
    Probe("a square, along its columns", _scores(3, 3, dim=0), "V B"),
    # Long rows: a version that counts only the largest few scores is right on short ones.
    Probe("a batch, last axis", _scores(2, 20, dim=-1), "B V"),
    Probe("three axes, the middle one", _scores(2, 3, 4, dim=1), "B V T"),
    Probe("three axes, counted from the end", _scores(2, 3, 4, dim=-2), "B V T"),
    Probe("four axes, the first", _scores(2, 3, 2, 4, dim=0), "V B H T"),
    Probe("four axes, the last", _scores(2, 3, 4, 4, dim=3), "B H T S"),
    Probe("float64 in, float64 out", _scores(2, 3, dim=-1, dtype=torch.float64), "B V"),
    Probe("-inf where a position is masked", _masked, "B T S", edge=True),
    # Between scores near 10000 float32 leaves gaps of 0.001, and right answers differ by as much.
    Probe("rows far apart", _apart, "B V", edge=True, tolerance=1e-3),
    Probe("scores near 10000", _scores(2, 5, dim=1, offset=1e4), "B V", edge=True, tolerance=2e-3),
    Probe("scores near -10000, and -inf", _low, "B V", edge=True, tolerance=2e-3),
    Probe("one score far above the rest", _spread, "B V", edge=True),
)


def _sums_to_one(candidate, x: Tensor, dim: int) -> bool:
    # Right answers by logsumexp lose digits where the scores themselves are large.
    allowed = 3e-6 if x[x.isfinite()].abs().max() < 50 else 5e-3
    return torch.allclose(candidate(x, dim).sum(dim), torch.ones((), dtype=x.dtype), rtol=0, atol=allowed)


def _is_probability(candidate, x: Tensor, dim: int) -> bool:
    y = candidate(x, dim)
    return bool(((y >= 0) & (y <= 1 + 1e-6)).all())


_PROPERTIES = (
    Property("the result is finite: no NaN, no infinity", lambda f, x, dim: bool(f(x, dim).isfinite().all())),
    Property("every entry lies between 0 and 1", _is_probability),
    Property("the entries along dim sum to 1", _sums_to_one),
    Property(
        "the result is exactly 0 where x is -inf",
        lambda f, x, dim: bool((f(x, dim)[x == -math.inf] == 0).all()),
    ),
    Property(
        "adding one number to every score changes nothing",
        lambda f, x, dim: torch.allclose(f(x + 2, dim), f(x, dim), atol=5e-3),
    ),
)


def _shifted(x: Tensor, dim: int) -> Tensor:
    return (x - x.amax(dim, keepdim=True)).exp()


def _over(top: Tensor, bottom: Tensor) -> Tensor:
    return top / bottom


def _in_place(x: Tensor, dim: int) -> Tensor:
    x -= x.amax(dim, keepdim=True)
    return softmax(x, dim)


def _moved(x: Tensor, dim: int) -> Tensor:
    return softmax(x.movedim(dim, -1), -1)


def _one_hot(x: Tensor, dim: int) -> Tensor:
    return torch.zeros_like(x).scatter(dim, x.argmax(dim, keepdim=True), 1.0)


_KEEPDIM = "without it the shapes line up the wrong way: on a square tensor there is not even an error."
_AXIS = "attention goes along another axis than the vocabulary does; the caller says which."

_MISTAKES = (
    Mistake(
        "the largest score is not subtracted before exp",
        "exp of 89 is already too large for float32, and infinity divided by infinity is NaN.",
        lambda x, dim: _over(x.exp(), x.exp().sum(dim, keepdim=True)),
    ),
    Mistake(
        "the largest score of the whole tensor is subtracted, not of each row along dim",
        "a row far below that maximum becomes all zeros, and 0 divided by 0 is NaN.",
        lambda x, dim: _over((x - x.max()).exp(), (x - x.max()).exp().sum(dim, keepdim=True)),
    ),
    Mistake(
        "another number than the largest score is subtracted",
        "only the largest one keeps every exponent at or below zero; others still overflow.",
        lambda x, dim: _over((e := (x - x.mean(dim, keepdim=True)).exp()), e.sum(dim, keepdim=True)),
        (
            lambda x, dim: _over((e := (x - x.amin(dim, keepdim=True)).exp()), e.sum(dim, keepdim=True)),
            lambda x, dim: _over((e := (x - x.mean()).exp()), e.sum(dim, keepdim=True)),
            lambda x, dim: _over((e := (x - x.median(dim, keepdim=True).values).exp()), e.sum(dim, keepdim=True)),
        ),
    ),
    Mistake("dim is ignored: it always goes along the last axis", _AXIS, lambda x, dim: softmax(x, -1)),
    Mistake("dim is ignored: it always goes along the first axis", _AXIS, lambda x, dim: softmax(x, 0)),
    Mistake("dim is ignored: it always goes along axis 1", _AXIS, lambda x, dim: softmax(x, 1)),
    Mistake(
        "a negative dim is counted from the front",
        "dim=-1 means the last axis, as everywhere in torch.",
        lambda x, dim: softmax(x, abs(dim)),
    ),
    Mistake(
        "the sum runs over the whole tensor, not along dim",
        "each row must be a distribution of its own; the batch must not mix.",
        lambda x, dim: _over(_shifted(x, dim), _shifted(x, dim).sum()),
        (
            lambda x, dim: x.flatten().softmax(0).view_as(x),
            lambda x, dim: _over(x.exp(), x.exp().sum()),
        ),
    ),
    Mistake(
        "keepdim is missing in the sum",
        _KEEPDIM,
        lambda x, dim: _over(_shifted(x, dim), _shifted(x, dim).sum(dim)),
        (lambda x, dim: _over(x.exp(), x.exp().sum(dim)),),
    ),
    Mistake(
        "keepdim is missing in the maximum",
        _KEEPDIM,
        lambda x, dim: _over((e := (x - x.amax(dim)).exp()), e.sum(dim, keepdim=True)),
    ),
    Mistake(
        "keepdim is missing in the maximum and in the sum",
        _KEEPDIM,
        lambda x, dim: _over((e := (x - x.amax(dim)).exp()), e.sum(dim)),
    ),
    Mistake(
        "the axis was moved for the computation and not moved back",
        "the result must have the shape of x, axis by axis.",
        _moved,
    ),
    Mistake(
        "exp is left out: the scores are divided by their own sum",
        "scores can be negative, and a sum of scores can be zero; exp makes every one positive.",
        lambda x, dim: _over(x, x.sum(dim, keepdim=True)),
        (
            lambda x, dim: _over((y := x - x.amax(dim, keepdim=True)), y.sum(dim, keepdim=True)),
            lambda x, dim: _over((y := x - x.amin(dim, keepdim=True)), y.sum(dim, keepdim=True)),
        ),
    ),
    Mistake(
        "the absolute values stand where exponentials belong",
        "the sign is lost: a score of -3 would be as likely as one of 3.",
        lambda x, dim: _over(x.abs(), x.abs().sum(dim, keepdim=True)),
    ),
    Mistake(
        "relu stands where exp belongs",
        "every negative score gets 0, and a row without a positive one becomes 0 divided by 0.",
        lambda x, dim: _over(x.relu(), x.relu().sum(dim, keepdim=True)),
    ),
    Mistake(
        "the exponentials are divided by the sum of the scores",
        "only the sum of the exponentials makes them add up to 1.",
        lambda x, dim: _over(x.exp(), x.sum(dim, keepdim=True)),
        (
            lambda x, dim: _over(_shifted(x, dim), x.sum(dim, keepdim=True)),
            lambda x, dim: _over(_shifted(x, dim), (x - x.amax(dim, keepdim=True)).sum(dim, keepdim=True)),
        ),
    ),
    Mistake(
        "squares stand where exponentials belong",
        "a square loses the sign: a score of -3 would be as likely as one of 3.",
        lambda x, dim: _over(x.square(), x.square().sum(dim, keepdim=True)),
    ),
    Mistake(
        "the sign is turned: the smallest score gets the most",
        "a high score must mean a high probability.",
        lambda x, dim: softmax(-x, dim),
        (lambda x, dim: _over((e := (x.amax(dim, keepdim=True) - x).exp()), e.sum(dim, keepdim=True)),),
    ),
    Mistake(
        "the base is 2 instead of e",
        "the derivatives of softmax are simple because exp is its own derivative.",
        lambda x, dim: softmax(x * math.log(2), dim),
        (lambda x, dim: softmax(x * math.log(10), dim),),
    ),
    Mistake(
        "the logarithm of the answer is returned",
        "log-probabilities are useful in a loss; here the caller expects numbers that sum to 1.",
        torch.log_softmax,
    ),
    Mistake(
        "the exponentials are not divided by their sum",
        "without the division they do not add up to 1, so they are no probabilities.",
        _shifted,
        (
            lambda x, dim: x.exp(),
            lambda x, dim: _over(x.exp(), x.exp().amax(dim, keepdim=True)),
            lambda x, dim: (x - x.max()).exp(),
        ),
    ),
    Mistake(
        "the exponentials are divided by their mean, not by their sum",
        "the entries then add up to the length of the axis.",
        lambda x, dim: _over(_shifted(x, dim), _shifted(x, dim).mean(dim, keepdim=True)),
    ),
    Mistake(
        "the exponentials are divided by their length (the root of the sum of squares)",
        "probabilities must sum to 1; their squares need not.",
        lambda x, dim: _over(_shifted(x, dim), _shifted(x, dim).norm(dim=dim, keepdim=True)),
    ),
    Mistake(
        "it is a sigmoid: each score is treated alone",
        "the options compete: when one becomes likelier, the others must become less likely.",
        lambda x, dim: x.sigmoid(),
    ),
    Mistake(
        "softmax is applied twice",
        "the second one makes the distribution nearly even.",
        lambda x, dim: softmax(softmax(x, dim), dim),
    ),
    Mistake(
        "all goes to the largest score (argmax)",
        "the other options keep some probability, and a step has no gradient to learn from.",
        _one_hot,
        (lambda x, dim: softmax(x, dim).round(),),
    ),
    Mistake(
        "the input is changed in place",
        "the caller still needs its scores, and autograd does too.",
        _in_place,
    ),
    Mistake(
        "no gradient gets through",
        "training needs them; math functions, .item(), numpy, detach, no_grad or torch.tensor(...) cut the path.",
        lambda x, dim: softmax(x.detach(), dim),
    ),
    Mistake(
        "the largest score is subtracted after exp",
        "the overflow has happened by then, and the quotient changes.",
        lambda x, dim: _over((e := x.exp() - x.exp().amax(dim, keepdim=True)), e.sum(dim, keepdim=True)),
        (lambda x, dim: _over((e := x.exp() - x.amax(dim, keepdim=True)), e.sum(dim, keepdim=True)),),
    ),
    Mistake(
        "a small number is added to the sum",
        "the largest exponential is 1 after the subtraction, so the sum is never 0; the entries no longer sum to 1.",
        lambda x, dim: _over(_shifted(x, dim), _shifted(x, dim).sum(dim, keepdim=True) + 1e-3),
        (lambda x, dim: _over(_shifted(x, dim), _shifted(x, dim).sum(dim, keepdim=True) + 1e-2),),
    ),
    Mistake(
        "precision is lost: rounding, or a 16-bit type inside",
        "small probabilities vanish, and errors add up over many layers.",
        lambda x, dim: softmax(x.half(), dim).to(x.dtype),
        (lambda x, dim: softmax(x, dim).round(decimals=2),),
        tolerance=6e-3,
    ),
)

SOFTMAX = Exercise(
    name="softmax",
    notebook="00_start_here",
    reference=softmax,
    probes=_PROBES,
    mistakes=_MISTAKES,
    properties=_PROPERTIES,
    hints=(
        "Three steps: make every score positive with torch.exp, add them up along dim, divide.",
        "A sum with keepdim=True keeps its axis with length 1, so that the division lines up with x. "
        "And large scores: what happens to the quotient when you subtract one number from all of them?",
        "Plan: take x.amax(dim, keepdim=True) from x, without changing x itself; exp of that; "
        "divide by its sum along dim, again with keepdim=True.",
    ),
)


def tempered_softmax(logits: Tensor, temperature: float) -> Tensor:
    """Turn scores into probabilities, sharper below temperature 1 and flatter above it.

    Args:
        logits: Scores; the vocabulary is the last axis.
        temperature: Above 0; what the scores are divided by.
    """
    return softmax(logits / temperature, -1)


def _logits(*shape: int, temperature: float):
    return lambda generator: {"logits": torch.randn(*shape, generator=generator) * 2, "temperature": temperature}


def _very_cold(generator: torch.Generator) -> Inputs:
    """One row of scores that only a low temperature tells apart, and one that overflows in a naive exp."""
    logits = torch.randn(2, 5, generator=generator) * 2
    logits[0], logits[1, 2] = torch.tensor([1.0, 1.01, 0.98, 0.99, 0.97]), 5.0
    return {"logits": logits, "temperature": 0.01}


def _changing_logits(logits: Tensor, temperature: float) -> Tensor:
    logits /= temperature
    return softmax(logits, -1)


def _naive_tempered(logits: Tensor, temperature: float) -> Tensor:
    e = (logits / temperature).exp()
    return e / e.sum(-1, keepdim=True)


TEMPERED_SOFTMAX = Exercise(
    name="tempered_softmax",
    notebook="00_start_here",
    reference=tempered_softmax,
    probes=(
        Probe("one row, hot", _logits(4, temperature=2.0), "V"),
        Probe("a square, cold", _logits(3, 3, temperature=0.5), "B V"),
        Probe("a batch, hot", _logits(2, 5, temperature=3.0), "B V"),
        Probe("temperature 1", _logits(2, 5, temperature=1.0), "B V"),
        Probe("three axes", _logits(2, 3, 4, temperature=0.7), "B T V"),
        Probe("very cold", _very_cold, "B V", edge=True, tolerance=1e-3),
    ),
    mistakes=(
        Mistake(
            "the scores are multiplied by the temperature instead of divided",
            "heat and cold are swapped: a temperature of 2 then sharpens.",
            lambda logits, temperature: softmax(logits * temperature, -1),
        ),
        Mistake(
            "the temperature has no effect",
            "the same number subtracted from every score cancels, in the quotient; only a division changes the shape.",
            lambda logits, temperature: softmax(logits, -1),
        ),
        Mistake(
            "the probabilities are divided, after softmax",
            "they then add up to 1 / temperature, not to 1.",
            lambda logits, temperature: softmax(logits, -1) / temperature,
            (lambda logits, temperature: softmax(logits, -1) * temperature,),
        ),
        Mistake(
            "softmax goes along the first axis",
            "the vocabulary is the last axis; the first one is the batch.",
            lambda logits, temperature: softmax(logits / temperature, 0),
        ),
        Mistake(
            "the temperature is squared",
            "temperature 2 would act as 4.",
            lambda logits, temperature: softmax(logits / temperature**2, -1),
        ),
        Mistake(
            "the root of the temperature is taken",
            "temperature 4 would act as 2.",
            lambda logits, temperature: softmax(logits / math.sqrt(temperature), -1),
        ),
        Mistake(
            "the input is changed in place",
            "the caller still needs its scores, and autograd does too.",
            _changing_logits,
        ),
        Mistake(
            "exp overflows: the largest score is not subtracted before it",
            "a low temperature makes large scores; exp of 89 is infinity in float32, and the quotient NaN.",
            _naive_tempered,
        ),
        Mistake(
            "the temperature acts as an exponent of the scores",
            "scores below zero turn into NaN or change sign.",
            lambda logits, temperature: softmax(logits**temperature, -1),
            (lambda logits, temperature: softmax(logits ** (1 / temperature), -1),),
        ),
    ),
    properties=(
        Property(
            "the probabilities sum to 1",
            lambda f, logits, temperature: torch.allclose(f(logits, temperature).sum(-1), torch.ones(()), atol=1e-4),
        ),
        Property(
            "a higher temperature makes the largest probability smaller",
            lambda f, logits, temperature: bool(
                (f(logits, temperature * 2).amax(-1) <= f(logits, temperature).amax(-1) + 1e-6).all()
            ),
        ),
    ),
    hints=(
        "Look at temperature 2 in the picture. Is it flatter or sharper than temperature 1?",
        "Large differences between scores make a sharp distribution. What must happen to them to flatten it?",
        "Shrink the scores when the temperature is above 1: one operator in the broken line is the wrong one.",
    ),
)

EXERCISES = (SOFTMAX, TEMPERED_SOFTMAX)
