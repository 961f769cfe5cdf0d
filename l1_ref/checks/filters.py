"""The check of 08_generation on the first filter, top_k_filter, and what both filters share."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe, Property
from l1_ref.checks.observe import OUTPUT, Observation, observe_call
from l1_ref.generation import top_k_filter

# Finite numbers that stand for "never" in code seen elsewhere.
_LOW = (
    -1e9,
    torch.finfo(torch.float32).min,
    -1e4,
    -1e5,
    -1e6,
    -1e8,
    -1e10,
    -1e12,
    -1e20,
    -1e30,
    -1e38,
    -1000.0,
    -100.0,
)
_NO_ZERO = "softmax gives a score of 0 as much as any other 0; only -inf becomes a chance of exactly 0."
_FINITE = "a score can be that low too, after a small temperature; only -inf is below all."
_SCORES = "the next filter, and softmax, expect scores: chances would be taken for scores, and come out nearly even."
PLACES = "a token is known by its place alone: each score must stay where it was."
ROWS = "each row is a text of its own, with its own "
_IN_PLACE = "the caller still needs the scores, for another filter or another draw."


def spread(B: int, V: int, generator: torch.Generator, shift: float = 0.0) -> Tensor:
    """Return scores (B, V): in each row the same numbers in another order, well apart, the highest never at one place.

    Args:
        B: Rows, at most V.
        V: Tokens.
        generator: Draws the orders.
        shift: Is added to all.
    """
    while True:
        rows = torch.stack([torch.randperm(V, generator=generator) for _ in range(B)])
        if len(set(rows.argmax(-1).tolist())) == B:
            # Each row has a level of its own, as scores have: softmax does not care.
            level = torch.arange(B)[:, None] * 0.9 - 0.31 * V
            return rows * 0.7 + level + shift


def _changing(answer: Callable) -> Callable:
    """Return a version that writes its answer into its input."""
    return lambda logits, limit: logits.copy_(answer(logits, limit))


def fill_in(scores: Tensor, kept: Tensor, low: float) -> Tensor:
    return scores.masked_fill(~kept, low)


def _as_zero_times_inf(scores: Tensor, kept: Tensor, low: float) -> Tensor:
    return scores * kept + ~kept * -math.inf


def _as_chances(scores: Tensor, kept: Tensor, low: float) -> Tensor:
    return scores.masked_fill(~kept, low).softmax(-1)


def _as_log_chances(scores: Tensor, kept: Tensor, low: float) -> Tensor:
    return scores.masked_fill(~kept, low).log_softmax(-1)


def what_remains(
    wrong: Callable, turned: tuple[Callable, ...] = (), everywhere: tuple[Callable, ...] = ()
) -> tuple[Mistake, ...]:
    """Return the mistakes in what kept and removed scores become, which both filters can have.

    Args:
        wrong: The filter with switches: `keep`, `low`, `fill` and `scores`.
        turned: Other versions of a filter that keeps what should go.
        everywhere: Other versions of a filter that keeps in all rows what one row keeps.
    """
    choices = _wrong_choices(wrong, turned, everywhere)
    return (*_wrong_fillings(wrong), *choices, _early_softmax(wrong), *_wrong_kinds(wrong))


def _wrong_fillings(wrong: Callable) -> tuple[Mistake, ...]:
    """Return what removed scores may become instead of -inf."""
    return (
        Mistake(
            "removed scores become 0, not -inf",
            _NO_ZERO,
            partial(wrong, low=0.0),
            (partial(wrong, fill=lambda scores, kept, low: scores * kept),),
        ),
        Mistake(
            "removed scores become a low number, not -inf",
            _FINITE,
            partial(wrong, low=_LOW[0]),
            tuple(partial(wrong, low=low) for low in _LOW[1:]),
        ),
        Mistake(
            "removed scores become +inf: the minus is missing",
            "an infinite score is the highest of all, and softmax makes NaN of it.",
            partial(wrong, low=math.inf),
        ),
        Mistake(
            "removed scores become NaN, or kept ones do: 0 times infinity is NaN",
            "choose with masked_fill or torch.where, which leave the other scores alone.",
            partial(wrong, fill=_as_zero_times_inf),
            (
                partial(wrong, low=math.nan),
                partial(wrong, fill=lambda scores, kept, low: scores + ~kept * -math.inf),
                partial(wrong, fill=lambda scores, kept, low: torch.where(kept, scores, scores * 0 - math.inf)),
            ),
        ),
    )


def _wrong_choices(
    wrong: Callable, turned: tuple[Callable, ...], everywhere: tuple[Callable, ...]
) -> tuple[Mistake, ...]:
    """Return the wrong choices of what stays."""
    return (
        Mistake(
            "it is turned round: what should stay is removed",
            "the likely tokens stay, and the tail goes.",
            partial(wrong, keep=lambda kept: ~kept),
            turned,
        ),
        Mistake(
            "what one row removes is removed in all rows",
            ROWS + "mask: x[:, ids] writes into every row.",
            partial(wrong, keep=lambda kept: kept.all(0, keepdim=True).expand_as(kept)),
        ),
        Mistake(
            "what one row keeps is kept in all rows",
            ROWS + "mask: x[:, ids] reads from, and writes into, every row.",
            partial(wrong, keep=lambda kept: kept.any(0, keepdim=True).expand_as(kept)),
            everywhere,
        ),
        Mistake(
            "nothing is removed",
            "masked_fill and torch.where return a new tensor: return that one.",
            partial(wrong, keep=torch.ones_like),
        ),
    )


def _early_softmax(wrong: Callable) -> Mistake:
    return Mistake(
        "chances come back, not scores: softmax is applied too early",
        _SCORES,
        partial(wrong, fill=_as_chances),
        (
            partial(wrong, scores=lambda logits: logits.softmax(-1)),
            partial(wrong, scores=lambda logits: logits.softmax(-1), low=0.0),
        ),
    )


def _wrong_kinds(wrong: Callable) -> tuple[Mistake, ...]:
    """Return what may come back instead of the scores as they were."""
    return (
        Mistake(
            "the scores are shifted: log_softmax is applied",
            "softmax would not notice, but what is kept must stay as it was.",
            partial(wrong, fill=_as_log_chances),
            (partial(wrong, scores=lambda logits: logits.log_softmax(-1)),),
        ),
        Mistake(
            "a mask comes back, not scores",
            "fill the scores with -inf where the mask says so, and return these.",
            partial(wrong, fill=lambda scores, kept, low: kept),
            (
                partial(wrong, fill=lambda scores, kept, low: ~kept),
                partial(wrong, fill=lambda scores, kept, low: kept.float()),
                partial(wrong, fill=lambda scores, kept, low: torch.zeros_like(scores).masked_fill(~kept, low)),
            ),
        ),
        Mistake(
            "ids come back, not scores",
            "return all V scores of each row, with -inf where a token is removed.",
            lambda logits, limit: _ids_kept(wrong, logits, limit),
        ),
        Mistake("logits is changed in place", _IN_PLACE, _changing(wrong)),
    )


def _ids_kept(wrong: Callable, logits: Tensor, limit: Any) -> Any:
    kept = wrong(logits, limit).isfinite()
    order = logits.argsort(-1, descending=True)
    n = kept.sum(-1)
    return order[:, : n[0]] if len(set(n.tolist())) == 1 else [row[:m] for row, m in zip(order, n, strict=True)]


def _one_at_a_time(f: Callable, logits: Tensor, limit: Any) -> bool:
    whole = f(logits.clone(), limit)
    return all(torch.equal(whole[i : i + 1], f(logits[i : i + 1].clone(), limit)) for i in range(len(logits)))


def _highest_stays(f: Callable, logits: Tensor, limit: Any) -> bool:
    return torch.equal(f(logits.clone(), limit).amax(-1), logits.amax(-1))


def _kept_as_they_were(f: Callable, logits: Tensor, limit: Any) -> bool:
    kept = f(logits.clone(), limit)
    return bool(((kept == logits) | (kept == -math.inf)).all())


RULES = (
    Property("a score stays as it was or becomes -inf", lambda f, **given: _kept_as_they_were(f, *given.values())),
    Property("the likeliest token of each row stays", lambda f, **given: _highest_stays(f, *given.values())),
    Property("each row is filtered by itself", lambda f, **given: _one_at_a_time(f, *given.values())),
)


# Top-k.


def _kth(logits: Tensor, k: int) -> Tensor:
    return logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1:]


def _top_k(
    logits: Tensor,
    k: int,
    *,
    number: Callable[[int, Tensor], int] = lambda k, logits: k,
    kth: Callable[[Tensor, int], Tensor] = _kth,
    stays: Callable[[Tensor, Tensor], Tensor] = torch.ge,
    keep: Callable[[Tensor], Tensor] = lambda kept: kept,
    scores: Callable[[Tensor], Tensor] = lambda logits: logits,
    fill: Callable[[Tensor, Tensor, float], Any] = fill_in,
    low: float = -math.inf,
) -> Any:
    """Filter with switches: each mistake sets one, or a few."""
    kept = stays(logits, kth(logits, number(k, logits)))
    return fill(scores(logits), keep(kept), low)


def _unbounded(logits: Tensor, k: int) -> Tensor:
    return logits.topk(k, dim=-1).values[:, -1:]


def _of_all(logits: Tensor, k: int) -> Tensor:
    return logits.flatten().topk(min(k, logits.numel())).values[-1]


def _all_rows_as_many(logits: Tensor, k: int) -> Tensor:
    return logits.flatten().topk(min(k * len(logits), logits.numel())).values[-1]


def _along_batch(logits: Tensor, k: int) -> Tensor:
    return logits.topk(min(k, len(logits)), dim=0).values[-1:]


def _without_axis(logits: Tensor, k: int) -> Tensor:
    return logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1]


def _below_largest(k: int, logits: Tensor) -> int:
    return min(k, logits.shape[-1] - 1)


def _only_values(logits: Tensor, k: int) -> Tensor:
    return logits.topk(min(k, logits.shape[-1])).values


def _in_order(logits: Tensor, k: int) -> Tensor:
    ranked = logits.sort(descending=True).values
    ranked[:, k:] = -math.inf
    return ranked


def _others_at_places(logits: Tensor, k: int) -> Tensor:
    rows = torch.arange(logits.shape[-1]) < k
    return logits.masked_fill(~rows, -math.inf)


def _next_removed(logits: Tensor, k: int) -> Tensor:
    """Remove all that is not above the first score that goes, and with it what ties with that one."""
    if k >= logits.shape[-1]:
        return logits
    return logits.masked_fill(logits <= logits.topk(k + 1).values[:, -1:], -math.inf)


def _different(logits: Tensor, k: int) -> Tensor:
    """Return the k-th of the different values of each row."""
    values = [row.unique() for row in logits]
    return torch.stack([each[-min(k, len(each))] for each in values])[:, None]


def _among_all(logits: Tensor, k: int) -> Tensor:
    values = logits.topk(min(k, logits.shape[-1])).values
    return logits.masked_fill(~torch.isin(logits, values), -math.inf)


def _order_as_rank(logits: Tensor, k: int) -> Tensor:
    return logits.masked_fill(logits.argsort(-1, descending=True) >= k, -math.inf)


def _written_everywhere(logits: Tensor, k: int) -> Tensor:
    values, places = logits.topk(min(k, logits.shape[-1]))
    filled = torch.full_like(logits, -math.inf)
    for row, value in zip(places, values, strict=True):
        filled[:, row] = value
    return filled


def _scores(B: int, V: int, k: int, shift: float = 0.0) -> Callable[[torch.Generator], Inputs]:
    return lambda generator: {"logits": spread(B, V, generator, shift), "k": k}


def _some_removed(generator: torch.Generator) -> Inputs:
    logits = spread(3, 6, generator)
    return {"logits": logits.masked_fill(logits < logits.topk(4).values[:, -1:], -math.inf), "k": 3}


def _ties(generator: torch.Generator) -> Inputs:
    """Tie scores above the k-th, at it and below it; the rows have scores in common."""
    rows = torch.tensor([[3, 2, 2, 1, 0], [2, 2, 2, 1, 1], [3, 3, 2, 1, 0], [4, 3, 1, 1, 0]])
    orders = torch.stack([torch.randperm(5, generator=generator) for _ in rows])
    return {"logits": rows.gather(1, orders) * 0.7 - 1.1, "k": 2}


def _observe_ties(candidate: Callable, inputs: Inputs, gradient: bool, seed: int) -> Observation:
    """Observe a call; where as many as k stay, all that tie with the k-th are counted as kept."""
    seen, (logits, k) = observe_call(candidate, inputs, gradient, seed), inputs.values()
    output = seen.get(OUTPUT)
    if isinstance(output, Tensor) and output.shape == logits.shape and output.dtype == logits.dtype:
        tied = logits == _kth(logits, k)
        stays = tied & (output == logits)
        either = (stays | (output == -math.inf))[tied].all()
        enough = ((output == logits).sum(-1, keepdim=True) >= k) & stays.any(-1, keepdim=True)
        seen[OUTPUT] = torch.where(tied & enough, logits, output) if either else output
    return seen


TOP_K_FILTER = Exercise(
    name="top_k_filter",
    notebook="08_generation",
    reference=top_k_filter,
    probes=(
        Probe("one row", _scores(1, 5, 2), "B V", False),
        Probe("a square", _scores(4, 4, 2), "B V", False),
        Probe("three rows, all scores below 0", _scores(3, 7, 3, shift=-9.0), "B V", False),
        Probe("the likeliest alone", _scores(2, 5, 1, shift=2.0), "B V", False),
        Probe("all but one", _scores(4, 6, 5), "B V", False),
        Probe("some are -inf already", _some_removed, "B V", False, edge=True),
        Probe("ties, and the same scores in other rows", _ties, "B V", False, edge=True, observe=_observe_ties),
        Probe("k is V", _scores(2, 3, 3), "B V", False, edge=True),
        Probe("k is above V", _scores(2, 4, 9), "B V", False, edge=True),
    ),
    mistakes=(
        Mistake(
            "the k-th token is removed too",
            "k tokens are to stay: remove what is below the k-th, not the k-th itself.",
            partial(_top_k, stays=torch.gt),
            (partial(_top_k, stays=torch.gt, kth=_unbounded), partial(_top_k, number=lambda k, logits: k - 1)),
        ),
        Mistake(
            "one token too many stays",
            "the k-th highest is at place k - 1 of the sorted scores, since places are counted from 0.",
            partial(_top_k, number=lambda k, logits: k + 1),
            (
                lambda logits, k: _top_k(logits, k + 1, kth=_unbounded),
                lambda logits, k: logits if k >= logits.shape[-1] else _top_k(logits, k + 1),
            ),
        ),
        Mistake(
            "a k above V stops with an error",
            "a setting like 50 must work for a small vocabulary too: it keeps all.",
            partial(_top_k, kth=_unbounded),
        ),
        Mistake(
            "a k of V or more removes a token",
            "with k at V or above it, all stay.",
            partial(_top_k, number=_below_largest),
        ),
        Mistake(
            "it is the k-th of all rows together, not of each row",
            ROWS + "k tokens.",
            partial(_top_k, kth=_of_all),
            (partial(_top_k, kth=_all_rows_as_many),),
        ),
        Mistake(
            "the k-th score of one row is used for all rows",
            ROWS + "k-th score.",
            partial(_top_k, kth=lambda logits, k: _kth(logits, k)[0]),
            tuple(
                partial(_top_k, kth=kth)
                for kth in (
                    lambda logits, k: _kth(logits, k)[-1],
                    lambda logits, k: _kth(logits, k).min(),
                    lambda logits, k: _kth(logits, k).max(),
                )
            ),
        ),
        Mistake(
            "the tokens of the first row are kept in all rows",
            ROWS + "k tokens.",
            partial(_top_k, stays=lambda logits, kth: (logits[:1] >= kth[:1]).expand_as(logits)),
        ),
        Mistake(
            "it goes along the batch (dim=0), not along the vocabulary",
            "the rows of a batch do not compete; the tokens of a row do.",
            partial(_top_k, kth=_along_batch),
            (partial(_top_k, kth=lambda logits, k: logits.topk(k, dim=0).values[-1:]),),
        ),
        Mistake(
            "the k-th scores have lost an axis: (B,) where (B, 1) is needed",
            "(B,) lines up with the tokens, not with the rows: on a square there is not even an error. Slice with -1:.",
            partial(_top_k, kth=_without_axis),
            (partial(_top_k, kth=lambda logits, k: logits.topk(k).values[:, -1]),),
        ),
        Mistake(
            "the k least likely tokens stay",
            "topk takes the largest unless told otherwise, and sort begins with the smallest.",
            partial(
                _top_k,
                kth=lambda logits, k: logits.topk(min(k, logits.shape[-1]), largest=False).values[:, -1:],
                stays=torch.le,
            ),
        ),
        Mistake(
            "the k-th smallest score is the limit, not the k-th largest",
            "sort begins with the smallest score unless told otherwise, and kthvalue counts from the smallest.",
            partial(_top_k, kth=lambda logits, k: logits.topk(min(k, logits.shape[-1]), largest=False).values[:, -1:]),
            (lambda logits, k: _top_k(logits, k, kth=lambda logits, k: logits.kthvalue(k, keepdim=True).values),),
        ),
        Mistake(
            "only the likeliest token stays, whatever k is",
            "the k-th largest is the last of the k, not the first.",
            partial(_top_k, number=lambda k, logits: 1),
        ),
        Mistake(
            "only the k-th token stays",
            "all that score at least as high stay.",
            partial(_top_k, stays=torch.eq),
        ),
        Mistake(
            "the size of a score counts, not its sign: abs is taken",
            "a score far below 0 is an unlikely token.",
            lambda logits, k: _top_k(logits, k, stays=lambda logits, kth: logits.abs() >= _kth(logits.abs(), k)),
        ),
        Mistake(
            "only the k kept scores come back, (B, k)",
            PLACES,
            _only_values,
            (
                lambda logits, k: logits.topk(k).values,
                lambda logits, k: logits.topk(min(k, logits.shape[-1])),
                lambda logits, k: tuple(logits.topk(min(k, logits.shape[-1]))),
                lambda logits, k: logits.topk(k),
            ),
        ),
        Mistake("the scores come back in the order of their size", PLACES, _in_order),
        Mistake(
            "the first k tokens of the vocabulary are kept",
            "the likeliest k, wherever they stand: sort tells where with its indices.",
            _others_at_places,
        ),
        Mistake(
            "the order of the sort is taken for ranks",
            "argsort says which token stands at each place, not at which place each token stands.",
            _order_as_rank,
        ),
        Mistake(
            "of those that tie with the k-th, all are removed: too few stay",
            "k tokens are to stay, tied or not: remove what is below the k-th, and not what equals the next one.",
            _next_removed,
        ),
        Mistake(
            "equal scores are counted once",
            "the k highest scores belong to k tokens, though two of them may be equal.",
            lambda logits, k: _top_k(logits, k, kth=_different),
        ),
        Mistake(
            "a score stays because another row keeps one that equals it",
            ROWS + "k-th score: isin looks at all rows at once.",
            _among_all,
        ),
        *what_remains(_top_k, turned=(partial(_top_k, stays=torch.le),), everywhere=(_written_everywhere,)),
    ),
    properties=RULES,
    hints=(
        "Which single number of a row decides what stays? Everything that is not below it.",
        "torch.topk(…).values holds the k highest of each row in order. The last of them is wanted, as a column "
        "(B, 1). What if k is greater than V?",
        "Plan: take k or V, whichever is smaller; the k-th highest score of each row as (B, 1); masked_fill with -inf "
        "wherever a score is below it.",
    ),
)

EXERCISES = (TOP_K_FILTER,)
