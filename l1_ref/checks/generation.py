"""The checks of 08_generation: greedy and apply_temperature here, the others in modules of their own."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from l1_ref.checks import caches, draws, feeding, filters, nucleus, writing
from l1_ref.checks.compare import Failure
from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe, Property
from l1_ref.checks.filters import spread
from l1_ref.checks.observe import OUTPUT, REPEATED, Observation, copies, observe_call
from l1_ref.generation import apply_temperature, greedy

_ROWS = "each row is a text of its own, and takes its own next id."


def _observe_choice(candidate: Callable, inputs: Inputs, gradient: bool, seed: int, n_calls: int = 25) -> Observation:
    """Observe a call; of code that draws, only that it does, since what it draws is chance."""
    seen = observe_call(candidate, inputs, gradient, seed)
    if isinstance(seen.get(OUTPUT), Failure) or REPEATED in seen:
        return seen
    for n in range(n_calls):
        again = observe_call(candidate, copies(inputs), False, seed + n)
        if REPEATED in again or not _alike(again.get(OUTPUT), seen[OUTPUT]):
            return {REPEATED: "differ"}
    return seen


def _alike(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else type(a) is type(b)


# Greedy.


def _scores(B: int, V: int, shift: float = 0.0) -> Callable[[torch.Generator], Inputs]:
    return lambda generator: {"logits": spread(B, V, generator, shift)}


def _huge(generator: torch.Generator) -> Inputs:
    """In each row two scores that exp cannot hold: the larger one is the second."""
    logits = spread(4, 6, generator)
    for row in logits:
        first, second = torch.randperm(6, generator=generator)[:2].sort().values.tolist()
        row[first], row[second] = 300.0, 400.0
    return {"logits": logits}


def _filtered(generator: torch.Generator) -> Inputs:
    logits = spread(3, 5, generator, -4.0)
    return {"logits": logits.masked_fill(logits < logits.topk(2).values[:, -1:], -math.inf)}


def _close(generator: torch.Generator) -> Inputs:
    return {"logits": spread(4, 6, generator) * 0.05}


def _best(logits: Tensor) -> Tensor:
    return logits.argmax(-1, keepdim=True)


def _of_first(logits: Tensor) -> Tensor:
    return logits[:1].argmax(-1, keepdim=True)


def _drawn(logits: Tensor) -> Tensor:
    return torch.multinomial(logits.softmax(-1), 1)


def _above_zero(logits: Tensor) -> Tensor:
    return torch.where(logits.amax(-1, keepdim=True) > 0, _best(logits), 0)


def _greedy_in_place(logits: Tensor) -> Tensor:
    logits -= logits.amax(-1, keepdim=True)
    return _best(logits)


GREEDY = Exercise(
    name="greedy",
    notebook="08_generation",
    reference=greedy,
    observe=_observe_choice,
    probes=(
        Probe("one row", _scores(1, 5), "B 1", False),
        Probe("three rows", _scores(3, 7), "B 1", False),
        Probe("a square, all scores below 0", _scores(4, 4, shift=-9.0), "B 1", False),
        Probe("scores that are close together", _close, "B 1", False),
        Probe("some are -inf", _filtered, "B 1", False, edge=True),
        Probe("scores in the hundreds", _huge, "B 1", False, edge=True),
    ),
    mistakes=(
        Mistake(
            "the axis is lost: (B,) comes back, not (B, 1)",
            "the ids are appended to (B, T) as one more column, so they must be a column: keepdim=True.",
            lambda logits: logits.argmax(-1),
            (lambda logits: _best(logits).squeeze(),),
        ),
        Mistake(
            "the ids lie in a row, (1, B), and should stand in a column, (B, 1)",
            "the rows are the texts, and each gets one id.",
            lambda logits: logits.argmax(-1)[None],
        ),
        Mistake(
            "argmax goes along the batch (dim=0), not along the vocabulary",
            "the rows of a batch do not compete; the tokens of a row do.",
            lambda logits: logits.argmax(0, keepdim=True),
            (
                lambda logits: logits.argmax(0),
                lambda logits: logits.argmax(0)[:, None],
            ),
        ),
        Mistake(
            "argmax goes over the whole batch: it returns one number, a place in the flattened tensor",
            "without dim, argmax forgets the rows.",
            lambda logits: logits.argmax(),
            (
                lambda logits: logits.argmax().view(1, 1),
                lambda logits: logits.argmax(keepdim=True),
                lambda logits: logits.argmax().view(1),
                lambda logits: logits.argmax().expand(len(logits), 1),
            ),
        ),
        Mistake(
            "a score or a probability comes back, not an id",
            "the next id is the place of the highest score: its index.",
            lambda logits: logits.amax(-1, keepdim=True),
            (
                lambda logits: logits.amax(-1),
                lambda logits: logits.softmax(-1).amax(-1, keepdim=True),
                lambda logits: logits.softmax(-1).amax(-1),
                lambda logits: logits.softmax(-1),
            ),
        ),
        Mistake(
            "a pair comes back: values and indices",
            "max and topk return both when they get a dim; the ids are the indices.",
            lambda logits: tuple(logits.max(-1, keepdim=True)),
            (lambda logits: logits.max(-1, keepdim=True), lambda logits: logits.topk(1)),
        ),
        Mistake(
            "the least likely id is taken",
            "a higher score is a likelier token.",
            lambda logits: logits.argmin(-1, keepdim=True),
            (lambda logits: logits.argmin(-1),),
        ),
        Mistake(
            "the second most likely id is taken",
            "the likeliest stands first: places are counted from 0.",
            lambda logits: logits.topk(2).indices[:, 1:],
        ),
        Mistake(
            "the size of a score counts, not its sign: abs is taken",
            "a score far below 0 is an unlikely token.",
            lambda logits: _best(logits.abs()),
            (lambda logits: _best(logits.square()),),
        ),
        Mistake(
            "the search begins with a best score of 0: no score below 0 can be the best",
            "all scores of a row may be below 0: begin with the first of them, or with -inf.",
            _above_zero,
        ),
        Mistake(
            "the scores are rounded, and then look the same",
            "two scores may differ in their last digits alone: compare them as they are.",
            lambda logits: _best(logits.round()),
            # Which of several equal scores is taken is torch's affair, and not the same in argmax and max.
            tuple(
                lambda logits, rounded=rounded, take=take: take(rounded(logits))
                for rounded in (torch.round, torch.trunc, torch.floor)
                for take in (_best, lambda logits: logits.max(-1, keepdim=True).indices)
            ),
        ),
        Mistake(
            "only one row is looked at",
            _ROWS,
            _of_first,
            (
                lambda logits: _of_first(logits).expand(len(logits), 1),
                lambda logits: logits[0].argmax().view(1),
                lambda logits: logits[0].argmax(),
                lambda logits: logits[-1:].argmax(-1, keepdim=True),
                lambda logits: logits[-1].argmax().expand(len(logits), 1),
            ),
        ),
        Mistake(
            "softmax goes along the batch (dim=0) before the argmax",
            _ROWS,
            lambda logits: _best(logits.softmax(0)),
        ),
        Mistake(
            "the scores of the last token of the vocabulary are taken: logits[:, -1]",
            "logits is (B, V) here; the axis of time is gone already.",
            lambda logits: logits[:, -1].argmax(-1, keepdim=True),
            (lambda logits: logits[:, -1].argmax(),),
        ),
        Mistake(
            "an id is drawn: chance plays a part",
            "greedy takes the likeliest id each time; drawing comes later.",
            _drawn,
            (lambda logits: _drawn(logits)[:, 0],),
        ),
        Mistake(
            "a row of zeros and a one comes back for each id",
            "return the id itself, a whole number.",
            lambda logits: torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]),
            (
                lambda logits: logits == logits.amax(-1, keepdim=True),
                lambda logits: (logits == logits.amax(-1, keepdim=True)).float(),
            ),
        ),
        Mistake(
            "the ids are not int64",
            "an embedding looks up whole numbers; torch's own index type is int64.",
            lambda logits: _best(logits).float(),
            (
                lambda logits: _best(logits).int(),
                lambda logits: _best(logits).to(torch.uint8),
                lambda logits: _best(logits).short(),
                lambda logits: _best(logits).to(logits.dtype)[:, 0],
            ),
        ),
        Mistake(
            "a list comes back, not a tensor",
            "the ids are appended to a tensor.",
            lambda logits: _best(logits).tolist(),
            (lambda logits: logits.argmax(-1).tolist(),),
        ),
        Mistake(
            "exp overflows: two scores become infinite, and look the same",
            "softmax keeps the order of the scores, so argmax needs no probabilities at all.",
            lambda logits: _best(logits.exp()),
        ),
        Mistake(
            "logits is changed in place",
            "the caller may still need the scores.",
            _greedy_in_place,
        ),
    ),
    properties=(
        Property(
            "each id is the place of its row's highest score",
            lambda f, logits: torch.equal(logits.gather(-1, f(logits.clone())), logits.amax(-1, keepdim=True)),
        ),
    ),
    hints=(
        "The place of the highest score is wanted, not the score. Which axis holds the tokens?",
        "argmax takes dim, and something that keeps the axis as one of length 1.",
        "Plan: one call of argmax along the last axis, which keeps it.",
    ),
)


# Temperature.


def _heat(
    logits: Tensor,
    temperature: float,
    *,
    scores: Callable[[Tensor], Tensor] = lambda logits: logits,
    degree: Callable[[float], float] = lambda temperature: temperature,
    by: Callable[[Tensor, float], Tensor] = torch.div,
    then: Callable[[Tensor], Any] = lambda scores: scores,
) -> Any:
    """Divide with switches: each mistake sets one, or a few."""
    return then(by(scores(logits), degree(temperature)))


def _heated_in_place(logits: Tensor, temperature: float) -> Tensor:
    logits /= temperature
    return logits


def _highest_only(logits: Tensor, temperature: float) -> Tensor:
    highest = logits == logits.amax(-1, keepdim=True)
    return torch.where(highest, logits / temperature, logits)


def _warm(B: int, V: int, temperature: float) -> Callable[[torch.Generator], Inputs]:
    return lambda generator: {"logits": spread(B, V, generator), "temperature": temperature}


def _warm_filtered(generator: torch.Generator) -> Inputs:
    return _filtered(generator) | {"temperature": 2.5}  # divided by less than 1, a number as low as any overflows


_SCORES_BACK = "what comes out are scores again, for the filters and for softmax."

APPLY_TEMPERATURE = Exercise(
    name="apply_temperature",
    notebook="08_generation",
    reference=apply_temperature,
    probes=(
        Probe("one row, hotter", _warm(1, 4, 2.0), "B V", False),
        Probe("three rows, cooler", _warm(3, 5, 0.5), "B V", False),
        Probe("a square, a little cooler", _warm(3, 3, 0.7), "B V", False),
        Probe("hot, a whole number", _warm(2, 6, 3), "B V", False),
        Probe("hot, no whole number", _warm(2, 5, 1.6), "B V", False),
        Probe("temperature 1", _warm(2, 4, 1.0), "B V", False),
        Probe("some are -inf", _warm_filtered, "B V", False, edge=True),
        Probe("very cold", _warm(2, 5, 0.02), "B V", False, edge=True),
    ),
    mistakes=(
        Mistake(
            "the scores are multiplied by the temperature",
            "above 1 it would sharpen; dividing makes a hot distribution flat.",
            partial(_heat, by=torch.mul),
        ),
        Mistake(
            "the temperature is ignored",
            "division returns a new tensor: return that one.",
            partial(_heat, degree=lambda temperature: 1.0),
        ),
        Mistake(
            "probabilities are divided, not scores",
            "a probability divided by a constant keeps its share: nothing gets sharper or flatter.",
            partial(_heat, scores=lambda logits: logits.softmax(-1)),
            (
                partial(
                    _heat,
                    scores=lambda logits: logits.softmax(-1),
                    then=lambda scores: scores / scores.sum(-1, keepdim=True),
                ),
                partial(_heat, scores=lambda logits: logits.softmax(-1), then=lambda scores: scores.softmax(-1)),
            ),
        ),
        Mistake(
            "probabilities come back: softmax is applied after the division",
            _SCORES_BACK,
            partial(_heat, then=lambda scores: scores.softmax(-1)),
            (partial(_heat, then=lambda scores: scores.softmax(0)),),
        ),
        Mistake(
            "logarithms of probabilities come back: log_softmax is applied",
            "softmax would not notice, but what is asked for are the scores divided by the temperature.",
            partial(_heat, then=lambda scores: scores.log_softmax(-1)),
            (partial(_heat, scores=lambda logits: logits.log_softmax(-1)),),
        ),
        Mistake(
            "the highest score is subtracted from all",
            "softmax would not notice, but what is asked for are the scores divided by the temperature.",
            partial(_heat, scores=lambda logits: logits - logits.amax(-1, keepdim=True)),
            (partial(_heat, scores=lambda logits: logits - logits.max()),),
        ),
        Mistake(
            "the scores are divided by the square of the temperature",
            "divide once.",
            partial(_heat, degree=lambda temperature: temperature**2),
        ),
        Mistake(
            "the scores are divided by the root of the temperature",
            "the root belongs to attention; here it is the temperature itself.",
            partial(_heat, degree=lambda temperature: temperature**0.5),
        ),
        Mistake(
            "the temperature is added or subtracted",
            "the same number for all scores changes nothing in softmax; their differences must grow or shrink.",
            partial(_heat, by=torch.sub),
            (partial(_heat, by=torch.add),),
        ),
        Mistake(
            "the scores are raised to a power of the temperature",
            "that is how probabilities are sharpened; scores are divided.",
            partial(_heat, by=lambda scores, temperature: scores ** (1 / temperature)),
            (
                partial(_heat, by=torch.pow),
                partial(
                    _heat,
                    scores=lambda logits: logits.softmax(-1),
                    by=lambda scores, temperature: scores ** (1 / temperature),
                ),
            ),
        ),
        Mistake(
            "the division is a whole one: //",
            "// rounds down, and most differences are lost.",
            partial(_heat, by=lambda scores, temperature: scores // temperature),
        ),
        Mistake(
            "it is divided by 1 + temperature",
            "temperature 1 must leave the scores as they are.",
            partial(_heat, degree=lambda temperature: 1 + temperature),
        ),
        Mistake(
            "a temperature below 1 is ignored",
            "below 1 is where it sharpens; only 0 cannot be divided by.",
            partial(_heat, degree=lambda temperature: max(temperature, 1.0)),
        ),
        Mistake(
            "a temperature above 1 is ignored",
            "above 1 is where it flattens.",
            partial(_heat, degree=lambda temperature: min(temperature, 1.0)),
        ),
        Mistake(
            "a low temperature is raised",
            "every temperature above 0 has its own distribution; 0 alone is a case for `sample`.",
            partial(_heat, degree=lambda temperature: max(temperature, 0.1)),
            tuple(
                partial(_heat, degree=lambda temperature, low=low: max(temperature, low))
                for low in (0.05, 0.2, 0.25, 0.3, 0.5)
            ),
        ),
        Mistake(
            "the temperature is made a whole number",
            "between 1 and 2 there is much to choose from: divide by the number itself.",
            partial(_heat, degree=lambda temperature: int(temperature) if temperature >= 1 else temperature),
            (
                partial(_heat, degree=lambda temperature: max(1, int(temperature))),
                partial(_heat, degree=lambda temperature: round(temperature) if temperature >= 1 else temperature),
                partial(_heat, degree=lambda temperature: max(1, round(temperature))),
            ),
        ),
        Mistake(
            "-inf is replaced by a number",
            "a token that a filter has removed must stay removed: -inf divided by a number is -inf.",
            partial(_heat, scores=torch.nan_to_num),
            (
                partial(_heat, then=torch.nan_to_num),
                *(partial(_heat, scores=lambda logits, low=low: logits.clamp(min=low)) for low in (-1e9, -1e4, -100.0)),
                *(partial(_heat, then=lambda scores, low=low: scores.clamp(min=low)) for low in (-1e9, -1e4, -100.0)),
                partial(_heat, scores=lambda logits: logits.nan_to_num(neginf=0.0)),
            ),
        ),
        Mistake(
            "only the highest score is divided",
            "all scores of a row take part.",
            _highest_only,
        ),
        Mistake(
            "the sign is turned",
            "a likely token must stay a likely one.",
            partial(_heat, then=torch.neg),
        ),
        Mistake(
            "logits is changed in place",
            "the caller still needs the scores, for another temperature perhaps: write logits / temperature, not /=.",
            _heated_in_place,
        ),
    ),
    properties=(
        Property(
            "the order of the tokens stays",
            lambda f, logits, temperature: torch.equal(f(logits.clone(), temperature).argsort(), logits.argsort()),
        ),
        Property(
            "temperature 1 changes nothing",
            lambda f, logits, temperature: torch.allclose(f(logits.clone(), 1.0), logits),
        ),
    ),
    hints=(
        "What do differences between scores do when all scores are halved? And what does softmax make of that?",
        "Above 1 it flattens: so the scores must become smaller.",
        "Plan: one division, which makes a new tensor.",
    ),
)

EXERCISES = (
    GREEDY,
    APPLY_TEMPERATURE,
    *filters.EXERCISES,
    *nucleus.EXERCISES,
    *draws.EXERCISES,
    *caches.EXERCISES,
    *writing.EXERCISES,
    *feeding.EXERCISES,
)
