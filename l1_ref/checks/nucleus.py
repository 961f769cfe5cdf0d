"""The check of 08_generation on the second filter, top_p_filter, which keeps the nucleus of a distribution."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe
from l1_ref.checks.filters import PLACES, ROWS, RULES, fill_in, what_remains
from l1_ref.checks.observe import OUTPUT, Observation, observe_call
from l1_ref.generation import top_p_filter

_NOTHING = "A row needs something left: softmax of nothing but -inf is NaN."


def from_chances(rows: Sequence[Sequence[float]], generator: torch.Generator, level: float = 1.3) -> Tensor:
    """Return scores (B, V) whose probabilities are the given ones, in a random order in each row.

    Args:
        rows: Probabilities, the highest first.
        generator: Its seed draws the orders, such that the highest stands at another place in each row.
        level: Of the scores; softmax does not care.
    """
    return _shuffled(tuple(map(tuple, rows)), generator.initial_seed(), level).clone()


@lru_cache(maxsize=256)
def _shuffled(rows: tuple[tuple[float, ...], ...], seed: int, level: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    while True:
        orders = [torch.randperm(len(row), generator=generator) for row in rows]
        # Neither the order of rank nor its own inverse, so that a way back that is the wrong way shows.
        if len({order[0].item() for order in orders}) == min(len(rows), len(rows[0])) and all(map(_is_odd, orders)):
            break
    scores = torch.empty(len(rows), len(rows[0]))
    for i, (row, order) in enumerate(zip(rows, orders, strict=True)):
        scores[i, order] = torch.tensor(row, dtype=torch.float64).log().float() + level - 0.8 * i
    return scores


def _is_odd(order: Tensor) -> bool:
    inverse, ranks = order.argsort(), torch.arange(len(order))
    return not any(torch.equal(a, b) for a, b in ((order, ranks), (order, inverse), (order, ranks.flip(0))))


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(-1)


def _softmax_of_columns(logits: Tensor) -> Tensor:
    return logits.softmax(0)


def _naive_softmax(logits: Tensor) -> Tensor:
    return logits.exp() / logits.exp().sum(-1, keepdim=True)


def _ranked(logits: Tensor) -> Tensor:
    return logits.argsort(-1, descending=True)


def _before_p(chances: Tensor, p: float) -> Tensor:
    return chances.cumsum(-1) - chances < p


def _scattered(kept: Tensor, order: Tensor) -> Tensor:
    return torch.zeros_like(kept).scatter(-1, order, kept)


def _top_p(
    logits: Tensor,
    p: float,
    *,
    chances: Callable[[Tensor], Tensor] = _softmax,
    order: Callable[[Tensor], Tensor] = _ranked,
    stays: Callable[[Tensor, float], Tensor] = _before_p,
    back: Callable[[Tensor, Tensor], Tensor] = _scattered,
    keep: Callable[[Tensor], Tensor] = lambda kept: kept,
    scores: Callable[[Tensor], Tensor] = lambda logits: logits,
    fill: Callable[[Tensor, Tensor, float], Any] = fill_in,
    low: float = -math.inf,
    all_at_1: bool = True,
) -> Any:
    """Filter with switches: each mistake sets one, or a few."""
    if all_at_1 and p == 1:
        return logits
    ranks = order(logits)
    kept = stays(chances(logits).gather(-1, ranks), p)
    return fill(scores(logits), keep(back(kept, ranks)), low)


def _first_always(stays: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, float], Tensor]:
    """Keep the first of the ranking whatever the rule says."""

    def with_first(chances: Tensor, p: float) -> Tensor:
        kept = stays(chances, p).clone()
        kept[:, 0] = True
        return kept

    return with_first


def _until_p(chances: Tensor, p: float) -> Tensor:
    """Stop for good when p is reached, though the sum may fall again: with scores it can."""
    return (chances.cumsum(-1) - chances).cummax(-1).values < p


def _up_to_p(chances: Tensor, p: float) -> Tensor:
    return chances.cumsum(-1) <= p


def _moved(chances: Tensor, p: float) -> Tensor:
    """Move the rule on by one place, and forget the first."""
    kept = _up_to_p(chances, p)
    return torch.cat([kept[:, :1], kept[:, :-1]], -1)


def _along_rows_until(chances: Tensor, p: float) -> Tensor:
    return chances.cumsum(0) - chances < p


def _one_more(chances: Tensor, p: float) -> Tensor:
    kept = _before_p(chances, p)
    return torch.cat([torch.ones_like(kept[:, :1]), kept[:, :-1]], -1)


def _share_of_tokens(chances: Tensor, p: float, whole: Callable = math.ceil) -> Tensor:
    n = max(1, whole(p * chances.shape[-1]))
    return (torch.arange(chances.shape[-1]) < n).expand_as(chances)


def _by_first_row(chances: Tensor, p: float) -> Tensor:
    return _before_p(chances, p)[:1].expand_as(chances)


def _flattened(logits: Tensor, p: float) -> Tensor:
    return _top_p(logits.reshape(1, -1), p).view_as(logits)


def _ranked_filtered(logits: Tensor, p: float) -> Tensor:
    ranked = logits.sort(-1, descending=True).values
    return ranked.masked_fill(~_before_p(ranked.softmax(-1), p), -math.inf)


def _ascending(logits: Tensor) -> Tensor:
    return logits.argsort(-1)


def _along_rows(logits: Tensor, p: float) -> Tensor:
    return _top_p(logits.T, p).T


def _single(rule: Callable[[Tensor, float], Tensor]) -> Callable:
    """Return a version that judges each probability by itself."""
    return partial(_top_p, stays=rule)


# Odd numbers: no sum of some of them is a p of the probes, or 1 - p, so that no rounding matters.
_EVEN = (0.438, 0.239, 0.168, 0.113, 0.042)
_SURE = (0.808, 0.111, 0.041, 0.031, 0.009)
_CERTAIN = (1.0, 1e-15, 1e-16)  # float32 adds what is so small in vain
_FLAT = (0.318, 0.261, 0.21, 0.162, 0.049)
_LONG = (0.272, 0.232, 0.171, 0.122, 0.098, 0.06, 0.045)
_LONG_SURE = (0.653, 0.119, 0.087, 0.052, 0.038, 0.031, 0.02)


def _chances(*rows: Sequence[float], p: float, level: float = 1.3) -> Callable[[torch.Generator], Inputs]:
    return lambda generator: {"logits": from_chances(rows, generator, level), "p": p}


def _long_whole(generator: torch.Generator) -> Inputs:
    """Take rows enough that the rounded sum is above 1 in some of them, whatever computes it."""
    fixed = torch.Generator().manual_seed(0)  # rounding should not depend on the seed
    logits = 2.0 * torch.randn(128, 24, generator=fixed)
    logits[:, :4] = -40.0 - torch.arange(4)
    return {"logits": logits[:, torch.randperm(24, generator=fixed)], "p": 1.0}


def _observe_whole(candidate: Callable, inputs: Inputs, gradient: bool, seed: int) -> Observation:
    """Observe a call with p = 1; record apart whether the least likely tokens stay, since rounding decides which go."""
    seen, logits = observe_call(candidate, inputs, gradient, seed), inputs["logits"]
    output = seen.get(OUTPUT)
    if not isinstance(output, Tensor) or output.shape != logits.shape or output.dtype != logits.dtype:
        return seen
    gone = (logits.softmax(-1) < 1e-12) & (output == -math.inf)
    seen[OUTPUT] = torch.where(gone, logits, output)
    return seen | {"what becomes of the least likely tokens": "some are removed" if gone.any() else "all stay"}


def _cut_before(generator: torch.Generator) -> Inputs:
    logits = from_chances((_LONG, _LONG_SURE), generator)
    return {"logits": logits.masked_fill(logits < logits.topk(4).values[:, -1:], -math.inf), "p": 0.7}


_CROSSING = "p is what the kept tokens should reach: without the one that crosses it they fall short."
_ADDED = "p is the share that the kept tokens hold together."

TOP_P_FILTER = Exercise(
    name="top_p_filter",
    notebook="08_generation",
    reference=top_p_filter,
    probes=(
        Probe("one row", _chances(_EVEN, p=0.6), "B V", False),
        Probe("three rows, p = 0.6", _chances(_FLAT, _EVEN, _SURE, p=0.6), "B V", False),
        Probe("two rows of seven, p = 0.75", _chances(_LONG_SURE, _LONG, p=0.75), "B V", False),
        Probe("a square, p = 0.9", _chances(_EVEN, _SURE, _FLAT, _EVEN, _FLAT, p=0.9), "B V", False),
        Probe("a small p", _chances(_FLAT, _EVEN, _SURE, p=0.2), "B V", False),
        Probe("some are -inf already", _cut_before, "B V", False, edge=True),
        Probe("scores in the hundreds", _chances(_EVEN, _FLAT, p=0.75, level=200.0), "B V", False, edge=True),
        Probe("p is 1", _chances(_CERTAIN, _CERTAIN, p=1.0), "B V", False, edge=True, observe=_observe_whole),
        Probe("p is 1, many tokens", _long_whole, "B V", False, edge=True, observe=_observe_whole),
    ),
    mistakes=(
        Mistake(
            "the token that crosses p is removed, and with it all tokens of a row that is sure",
            _CROSSING + " " + _NOTHING,
            partial(_top_p, stays=_up_to_p),
            (
                lambda logits, p: _top_p(logits, p, stays=_up_to_p, all_at_1=False),
                lambda logits, p: _top_p(
                    logits, p, stays=lambda chances, p: chances.cumsum(-1) <= p + 1e-4, all_at_1=False
                ),
            ),
        ),
        Mistake(
            "the token that crosses p is removed",
            _CROSSING,
            partial(_top_p, stays=_first_always(_up_to_p)),
            (
                lambda logits, p: _top_p(logits, p, stays=_first_always(_up_to_p), all_at_1=False),
                lambda logits, p: _top_p(
                    logits,
                    p,
                    stays=_first_always(lambda chances, p: chances.cumsum(-1) <= p + 1e-4),
                    all_at_1=False,
                ),
            ),
        ),
        Mistake(
            "the likeliest token is removed where it alone reaches p",
            "when the rule moves on by one place, the first one needs a value of its own: it always stays. " + _NOTHING,
            partial(_top_p, stays=_moved),
        ),
        Mistake(
            "one token too many stays",
            "the token that crosses p is the last; the one after it goes.",
            partial(_top_p, stays=_one_more),
        ),
        Mistake(
            "the way back is missing: what holds for the sorted scores is applied to the unsorted ones",
            "the mask speaks of ranks; scatter it to the tokens that have these ranks.",
            partial(_top_p, back=lambda kept, order: kept),
        ),
        Mistake(
            "the way back is the wrong way: gather with the order of the sort",
            "gather(order) sorts once more; scatter(order), or gather with order.argsort(), leads back.",
            partial(_top_p, back=lambda kept, order: kept.gather(-1, order)),
            (partial(_top_p, back=lambda kept, order: _scattered(kept, order.argsort(-1))),),
        ),
        Mistake(
            "the scores come back in the order of their size",
            PLACES,
            _ranked_filtered,
        ),
        Mistake(
            "it adds up from the least likely token",
            "sort begins with the smallest unless told otherwise: pass descending=True.",
            partial(_top_p, order=_ascending),
            (
                partial(_top_p, order=_ascending, stays=_up_to_p),
                partial(_top_p, order=_ascending, stays=_first_always(_up_to_p)),
            ),
        ),
        Mistake(
            "nothing is sorted: it adds up in the order of the vocabulary",
            "the fewest tokens that reach p are the likeliest ones.",
            partial(_top_p, order=lambda logits: torch.arange(logits.shape[-1]).expand_as(logits)),
            (
                partial(
                    _top_p,
                    order=lambda logits: torch.arange(logits.shape[-1]).expand_as(logits),
                    stays=_up_to_p,
                ),
            ),
        ),
        Mistake(
            "scores are added up, not probabilities: softmax is missing",
            _ADDED + " Scores are not shares.",
            partial(_top_p, chances=lambda logits: logits),
            (
                partial(_top_p, chances=lambda logits: logits, stays=_until_p),
                partial(_top_p, chances=lambda logits: logits, stays=_up_to_p),
                partial(_top_p, chances=lambda logits: logits, stays=_first_always(_up_to_p)),
            ),
        ),
        Mistake(
            "the exponentials are not divided by their sum",
            _ADDED + " Only softmax makes shares.",
            partial(_top_p, chances=torch.exp),
            (partial(_top_p, chances=torch.exp, stays=_up_to_p),),
        ),
        Mistake(
            "softmax is applied twice",
            "probabilities taken for scores come out nearly even.",
            partial(_top_p, chances=lambda logits: logits.softmax(-1).softmax(-1)),
        ),
        Mistake(
            "softmax goes along the batch (dim=0), not along the vocabulary",
            ROWS + "probabilities.",
            partial(_top_p, chances=_softmax_of_columns),
            tuple(
                partial(_top_p, chances=chances, stays=stays, order=order)
                for chances, until, order in (
                    (_softmax_of_columns, _before_p, _ranked),
                    (_softmax_of_columns, _before_p, lambda logits: _ranked(_softmax_of_columns(logits))),
                    (lambda logits: logits, lambda ranked, p: _before_p(_softmax_of_columns(ranked), p), _ranked),
                )
                for stays in (until, _first_always(until))
            ),
        ),
        Mistake(
            "the sum goes along the batch (dim=0), not along the vocabulary",
            ROWS + "sum.",
            partial(_top_p, stays=_along_rows_until),
            (
                partial(_top_p, stays=lambda chances, p: chances.cumsum(0) <= p),
                partial(_top_p, stays=_first_always(_along_rows_until)),
                partial(_top_p, stays=_first_always(lambda chances, p: chances.cumsum(0) <= p)),
            ),
        ),
        Mistake(
            "it sorts along the batch (dim=0)",
            ROWS + "order.",
            _along_rows,
        ),
        Mistake(
            "all rows are filtered together, as one distribution",
            ROWS + "probabilities.",
            _flattened,
        ),
        Mistake(
            "all rows keep as many tokens as the first",
            "where the model is sure, few tokens reach p; elsewhere it takes many.",
            partial(_top_p, stays=_by_first_row),
        ),
        Mistake(
            "each probability by itself is compared with p; nothing is added up",
            _ADDED,
            _single(lambda chances, p: chances >= p),
            (_single(_first_always(lambda chances, p: chances >= p)),),
        ),
        Mistake(
            "each probability by itself is compared with 1 - p; nothing is added up",
            _ADDED,
            _single(lambda chances, p: chances >= 1 - p),
            (_single(_first_always(lambda chances, p: chances >= 1 - p)),),
        ),
        Mistake(
            "it is min-p: each probability is compared with a share of the largest",
            "top-p adds up from the top until p is reached.",
            _single(lambda chances, p: chances >= p * chances[:, :1]),
            (_single(lambda chances, p: chances >= (1 - p) * chances[:, :1]),),
        ),
        Mistake(
            "unlikely tokens stay: those whose probability is below p",
            _ADDED,
            _single(lambda chances, p: chances <= p),
        ),
        Mistake(
            "p is taken for the share of the tokens, not of the probability",
            "how many tokens stay depends on how sure the model is.",
            partial(_top_p, stays=_share_of_tokens),
            (partial(_top_p, stays=partial(_share_of_tokens, whole=int)),),
        ),
        Mistake(
            "p is turned round: the tokens reach 1 - p",
            "a p of 0.9 keeps nine tenths of the probability.",
            partial(_top_p, stays=lambda chances, p: _before_p(chances, 1 - p)),
            (
                partial(_top_p, stays=_first_always(lambda chances, p: _before_p(chances, 1 - p))),
                partial(_top_p, stays=lambda chances, p: _up_to_p(chances, 1 - p)),
            ),
        ),
        Mistake(
            "only the likeliest token stays, whatever p is",
            "that is greedy; p decides how many more stay.",
            partial(_top_p, stays=lambda chances, p: _before_p(chances, 0.0 * p + 1e-9)),
        ),
        Mistake(
            "exp overflows: the largest score is not subtracted before it",
            "exp of 89 is infinite in float32, and infinity divided by infinity is NaN; your softmax knows how.",
            partial(_top_p, chances=_naive_softmax),
            (partial(_top_p, chances=_naive_softmax, stays=lambda chances, p: ~(chances.cumsum(-1) - chances >= p)),),
        ),
        *what_remains(
            _top_p,
            turned=tuple(
                partial(_top_p, stays=stays)
                for rule in (
                    lambda chances, p: chances.cumsum(-1) - chances >= p,
                    lambda chances, p: chances.cumsum(-1) >= p,
                    lambda chances, p: chances.cumsum(-1) > p,
                )
                for stays in (rule, _first_always(rule))
            ),
        ),
        Mistake(
            "p = 1 does not keep every token",
            "the rounded sum reaches 1 before the last unlikely tokens: they go, though all were asked for.",
            partial(_top_p, all_at_1=False),
            (
                lambda logits, p: _top_p(logits, p, stays=_first_always(_moved), all_at_1=False),
                lambda logits, p: _top_p(logits, min(p, 0.9999), all_at_1=False),
                lambda logits, p: _top_p(logits, min(p, 0.999), all_at_1=False),
            ),
        ),
    ),
    properties=RULES,
    hints=(
        "Take one row by hand: probabilities 0.15, 0.45, 0.1, 0.3 and p = 0.7. Which tokens stay? What did you do "
        "first?",
        "A token stays as long as those ahead of it have not reached p: compare the sum without the token itself. What "
        "you know then is about ranks: how does it get to the tokens?",
        "Plan: sort downwards, and keep the order; softmax; cumsum minus the probability itself; remove where that is "
        "p or more; scatter this mask by the order; masked_fill the unsorted scores with -inf.",
    ),
)

EXERCISES = (TOP_P_FILTER,)
