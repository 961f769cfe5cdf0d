"""The checks of 03_attention, second part: the weights under the mask."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from l1_ref import attention as ref
from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe, Property

# Attention weights. A wrong version is one of these functions with one keyword changed.


def by_root_of_width(q: Tensor, k: Tensor) -> float:
    return q.shape[-1] ** -0.5


def weigh(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None = None,
    *,
    product: Callable[[Tensor, Tensor], Tensor] = lambda q, k: q @ k.transpose(-2, -1),
    scale: Callable[[Tensor, Tensor], float] = by_root_of_width,
    allow: Callable[[Tensor | None, Tensor], Tensor | None] = lambda mask, scores: mask,
    low: float = -math.inf,
    hide: Callable[[Tensor, Tensor, float], Tensor] = lambda scores, mask, low: scores.masked_fill(~mask, low),
    norm: Callable[[Tensor], Tensor] = lambda scores: scores.softmax(-1),
    clear: Callable[[Tensor, Tensor], Tensor] = lambda weights, mask: weights.masked_fill(~mask, 0.0),
    then: Callable[[Tensor, Tensor], Tensor] = lambda weights, q: weights,
) -> Tensor:
    """Weigh the keys; each keyword is one place where it can go wrong."""
    scores = product(q, k) * scale(q, k)
    mask = allow(mask, scores)
    if mask is None:
        return then(norm(scores), q)
    return then(clear(norm(hide(scores, mask, low)), mask), q)


def kept(weights: Tensor, mask: Tensor) -> Tensor:
    return weights


def _own_causal(mask: Tensor | None, scores: Tensor) -> Tensor:
    T, S = scores.shape[-2:]
    return torch.ones(T, S, dtype=torch.bool).tril(S - T)


def _naive(scores: Tensor) -> Tensor:
    return scores.exp() / scores.exp().sum(-1, keepdim=True)


def _own_causal_of_first(mask: Tensor | None, scores: Tensor) -> Tensor:
    return torch.ones(scores.shape[-2:], dtype=torch.bool).tril()  # as is_causal=True does in torch


def _empty_rows_cleared(weights: Tensor, mask: Tensor) -> Tensor:
    return weights.masked_fill(~mask.any(-1, keepdim=True), 0.0)


def _not_hidden(scores: Tensor, mask: Tensor, low: float) -> Tensor:
    return scores


def _added_where_hidden(scores: Tensor, mask: Tensor, low: float) -> Tensor:
    return scores + torch.zeros(mask.shape, dtype=scores.dtype).masked_fill(~mask, low)


def _with_minus(scores: Tensor, mask: Tensor, low: float) -> Tensor:
    return scores + mask * low


def _shared_again(weights: Tensor, mask: Tensor, more: float = 0.0) -> Tensor:
    left = weights * mask
    return left / (left.sum(-1, keepdim=True) + more)


def _all_where_none(mask: Tensor | None, scores: Tensor) -> Tensor:
    return torch.ones(scores.shape, dtype=torch.bool) if mask is None else mask


def _less_the_largest_of_all(scores: Tensor, more: float = 0.0) -> Tensor:
    weights = (scores - scores.max()).exp()
    return weights / (weights.sum(-1, keepdim=True) + more)


LOWEST = torch.finfo(torch.float32).min
_TINY = 1e-9
_SCALE_WHY = "the spread of the scores grows with the width of the head, not with the number of "
_DIM_WHY = "each query shares out exactly 1 among its keys, and the keys are the last axis."

# The mistakes in the weights, by a short name: the exercises after this one share them.
IN_WEIGHTS = {
    "no_scale": Mistake(
        "the scores are not divided by sqrt(D)",
        "the wider the head, the larger the scores: softmax then gives all to one key, and gradients vanish.",
        partial(weigh, scale=lambda q, k: 1.0),
    ),
    "by_width": Mistake(
        "the scores are divided by D, or twice by sqrt(D)",
        "scores that small give every key almost the same weight.",
        partial(weigh, scale=lambda q, k: 1 / q.shape[-1]),
    ),
    "multiplied": Mistake(
        "the scores are multiplied by sqrt(D), not divided",
        "D ** -0.5 is already the inverse: dividing by it makes the scores larger, and softmax saturates.",
        partial(weigh, scale=lambda q, k: q.shape[-1] ** 0.5),
    ),
    "by_all_heads": Mistake(
        "the scores are divided by the root of all heads' width, sqrt(H * D), not of one head's",
        "each head multiplies vectors of width D; the other heads do not enter its scores.",
        partial(weigh, scale=lambda q, k: (q.shape[1] * q.shape[-1]) ** -0.5),
    ),
    "by_keys": Mistake(
        "the scores are divided by the root of the number of tokens, not of the head's width",
        _SCALE_WHY + "tokens.",
        partial(weigh, scale=lambda q, k: k.shape[-2] ** -0.5),
        (partial(weigh, scale=lambda q, k: q.shape[-2] ** -0.5),),
    ),
    "by_heads": Mistake(
        "the scores are divided by the root of the number of heads, not of the head's width",
        _SCALE_WHY + "heads.",
        partial(weigh, scale=lambda q, k: q.shape[1] ** -0.5),
    ),
    "scaled_late": Mistake(
        "the division by sqrt(D) comes after the softmax",
        "the weights then sum to 1 / sqrt(D), and the scores are as large as before.",
        partial(weigh, scale=lambda q, k: 1.0, then=lambda weights, q: weights * by_root_of_width(q, q)),
    ),
    "over_queries": Mistake(
        "the softmax goes over the queries (dim=-2), not over the keys",
        _DIM_WHY,
        partial(weigh, norm=lambda scores: scores.softmax(-2)),
    ),
    "over_heads": Mistake(
        "the softmax goes over the heads (dim=1), not over the keys",
        "without a dim, F.softmax picks axis 1 of four: the heads would compete, not the keys.",
        partial(weigh, norm=lambda scores: scores.softmax(1)),
    ),
    "over_batch": Mistake(
        "the softmax goes over the batch (dim=0), not over the keys",
        "the texts of a batch have nothing to do with each other.",
        partial(weigh, norm=lambda scores: scores.softmax(0)),
    ),
    "over_all": Mistake(
        "the softmax goes over queries and keys together, not over each query's keys",
        _DIM_WHY,
        partial(weigh, norm=lambda scores: scores.flatten(-2).softmax(-1).view_as(scores)),
    ),
    "inverted": Mistake(
        "the mask is turned round: the allowed keys are hidden",
        "True means that a query may attend: what has to be filled with -inf is ~mask.",
        partial(weigh, allow=lambda mask, scores: None if mask is None else ~mask),
        (
            partial(weigh, allow=lambda mask, scores: None if mask is None else ~mask, clear=kept),
            partial(weigh, hide=_with_minus, low=-1e9, clear=kept),
        ),
    ),
    "ignored": Mistake(
        "the mask is ignored",
        "it is the only thing that hides the future from a token.",
        partial(weigh, allow=lambda mask, scores: None),
    ),
    "own_causal": Mistake(
        "a causal mask is always used, whatever mask is given",
        "the caller decides; a mask may hide padding, or be None.",
        partial(weigh, allow=_own_causal),
        (
            partial(weigh, allow=lambda mask, scores: None if mask is None else _own_causal(mask, scores)),
            partial(weigh, allow=lambda mask, scores: ref.causal_mask(*scores.shape[-2:])),
            partial(weigh, allow=_own_causal_of_first),
            partial(weigh, allow=lambda mask, scores: None if mask is None else _own_causal_of_first(mask, scores)),
        ),
    ),
    "masked_late": Mistake(
        "the mask is applied after the softmax",
        "forbidden keys still count in the sum below the line: the rest is too small, and shows what was hidden.",
        partial(weigh, hide=_not_hidden),
    ),
    "shared_again": Mistake(
        "the mask is applied after the softmax, and the rows are divided by their sum",
        "on paper that is the same, but a hidden key with a large score has already rounded the others to 0.",
        partial(weigh, hide=_not_hidden, clear=partial(_shared_again, more=_TINY)),
        (
            partial(weigh, hide=_not_hidden, clear=_shared_again),
            partial(
                weigh,
                norm=lambda scores: (scores - scores.amax(-1, keepdim=True)).exp(),
                allow=_all_where_none,
                hide=_not_hidden,
                clear=partial(_shared_again, more=_TINY),
            ),
        ),
    ),
    "masked_late_inf": Mistake(
        "the mask is applied after the softmax, with -inf",
        "-inf becomes 0 only by going through exp; as a weight it destroys the sum.",
        partial(
            weigh,
            hide=_not_hidden,
            clear=lambda weights, mask: weights.masked_fill(~mask, -math.inf),
        ),
    ),
    "near_zero": Mistake(
        "forbidden scores become 0, or a number near 0, not -inf",
        "softmax gives a score of 0 as much weight as any other; only exp(-inf) is 0.",
        partial(weigh, hide=lambda scores, mask, low: scores * mask, clear=kept),
        (
            partial(weigh, low=-1.0, clear=kept),
            partial(weigh, low=0.0),
        ),
    ),
    "high": Mistake(
        "forbidden scores become a very high number: the minus is missing",
        "the highest score gets the most weight, so the forbidden keys get all of it.",
        partial(weigh, low=1e9, clear=kept),
        (partial(weigh, low=math.inf, clear=kept),),
    ),
    "added": Mistake(
        "the mask is added to the scores as 1 and 0",
        "a boolean mask says which scores to replace by -inf; adding 1 hides nothing.",
        partial(weigh, hide=lambda scores, mask, low: scores + mask, clear=kept),
    ),
    "nan_product": Mistake(
        "-inf is multiplied by the mask: 0 times -inf is NaN",
        "choose with masked_fill or torch.where, which do not touch the allowed scores.",
        partial(weigh, hide=lambda scores, mask, low: scores + (~mask) * -math.inf, clear=kept),
    ),
    "not_low": Mistake(
        "the number for forbidden scores is not low enough",
        "scores of a trained model can be lower than that; -inf is lower than all.",
        partial(weigh, low=-1e4),
        (
            partial(weigh, low=-1e4, clear=kept),
            partial(weigh, low=-1e4, clear=_empty_rows_cleared),
            partial(weigh, low=-1e4, hide=_added_where_hidden),
            partial(weigh, low=-1e4, hide=_added_where_hidden, clear=kept),
        ),
    ),
    "nan_rows": Mistake(
        "a query that may attend to nothing gets NaN, not zeros",
        "softmax of nothing but -inf, or a division by a sum of 0, is NaN, and one NaN spreads through the "
        "whole model.",
        partial(weigh, clear=kept),
    ),
    "nan_gradient": Mistake(
        "a query that may attend to nothing gets zeros, but its gradient is NaN",
        "-inf was added, and the NaN of the softmax, covered up afterwards, comes back in the gradient: masked_fill, "
        "torch.where or a finite number leave none.",
        partial(weigh, hide=_added_where_hidden),
    ),
    "even_rows": Mistake(
        "a query that may attend to nothing attends to everything alike, and should get zeros",
        "where all scores are the same low number, softmax makes equal weights of them.",
        partial(weigh, low=LOWEST, clear=kept),
        (partial(weigh, low=-1e9, hide=_added_where_hidden, clear=kept),),
    ),
    "no_softmax": Mistake(
        "the scores are returned as they are, without a softmax",
        "weights must be positive and sum to 1; scores are neither.",
        partial(weigh, norm=lambda scores: scores),
        tuple(partial(weigh, norm=lambda scores: scores, low=low, clear=kept) for low in (-math.inf, -1e9, LOWEST)),
    ),
    "not_divided": Mistake(
        "the exponentials are not divided by their sum",
        "without the division the weights of a query do not sum to 1.",
        partial(weigh, norm=lambda scores: scores.exp()),
        (partial(weigh, norm=lambda scores: (scores - scores.amax(-1, keepdim=True)).exp()),),
    ),
    "naive": Mistake(
        "exp overflows: the largest score is not subtracted before it",
        "exp of 89 is infinite in float32, and infinity divided by infinity is NaN; your softmax knows how.",
        partial(weigh, norm=_naive),
        (
            partial(weigh, norm=_naive, clear=_empty_rows_cleared),
            partial(weigh, norm=torch.exp, allow=_all_where_none, hide=_not_hidden, clear=_shared_again),
            partial(
                weigh,
                norm=torch.exp,
                allow=_all_where_none,
                hide=_not_hidden,
                clear=partial(_shared_again, more=_TINY),
            ),
        ),
    ),
    "largest_of_all": Mistake(
        "the largest score of all is subtracted, not that of each query",
        "a query whose scores lie far below that gets exp(-large) = 0 everywhere: each row needs its own.",
        partial(weigh, norm=_less_the_largest_of_all),
        (partial(weigh, norm=partial(_less_the_largest_of_all, more=_TINY)),),
    ),
    "swapped": Mistake(
        "q and k have changed places: the scores are those of each key, not of each query",
        "row i must hold the weights of query i, over all keys.",
        partial(weigh, product=lambda q, k: k @ q.transpose(-2, -1)),
    ),
    "untransposed": Mistake(
        "k is not transposed in its last two axes",
        "(T, D) times (D, S): the width D must meet D; .T and transpose(1, 2) turn other axes.",
        partial(weigh, product=lambda q, k: q @ k),
        (
            partial(weigh, product=lambda q, k: q @ k.transpose(1, 2)),
            partial(weigh, product=lambda q, k: q @ k.permute(3, 2, 1, 0)),
        ),
    ),
    "detached": Mistake(
        "no gradient gets through",
        "training needs them; .item(), numpy, detach, no_grad or torch.tensor(...) cut the path.",
        partial(weigh, product=lambda q, k: (q @ k.transpose(-2, -1)).detach()),
    ),
}


# Two mistakes together are looked for among the commonest only: all pairs would take too long.
_PAIRED = (
    "no_scale by_width by_all_heads over_queries inverted ignored masked_late near_zero nan_rows even_rows".split()
)


def in_use(name: str, function: Callable = weigh) -> Mistake:
    """Make of a mistake in the weights the same one in a function that passes its keywords on to `weigh`.

    Args:
        name: The short name.
        function: Takes the keywords of `weigh`.
    """
    mistake = IN_WEIGHTS[name]
    wrong, *versions = (partial(function, **each.keywords) for each in (mistake.wrong, *mistake.versions))
    return Mistake(mistake.name, mistake.why, wrong if name in _PAIRED else _alone(wrong), tuple(versions))


def _alone(wrong: Callable) -> Callable:
    return lambda *inputs: wrong(*inputs)


def _changing_scores_input(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    q *= by_root_of_width(q, k)
    return weigh(q, k, mask, scale=lambda q, k: 1.0)


def _changing_mask(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    return weigh(q, k, mask if mask is None else mask.logical_not_().logical_not())


IN_PLACE = "the caller still needs it, and autograd does too: write q = q / 2, not q /= 2."
CHANGED = "an input is changed in place"

# Inputs of one head print in full; in the others all axes have sizes of their own, or all the same.
_Build = Callable[[torch.Generator], Inputs]


def tensors(
    B: int, H: int, T: int, S: int, D: int, mask: Any = None, values: bool = False, dtype: torch.dtype = torch.float32
) -> _Build:
    """Return the builder of a probe: q and k, v where wanted, and the mask that a function of the generator makes."""

    def build(generator: torch.Generator) -> Inputs:
        names = {"q": T, "k": S, "v": S} if values else {"q": T, "k": S}
        inputs: Inputs = {
            name: torch.randn(B, H, n, D, generator=generator, dtype=torch.float64).mul(1.4).to(dtype)
            for name, n in names.items()
        }
        return inputs | ({} if mask is None else {"mask": mask(generator)})

    return build


def _causal(T: int, S: int, *front: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: ref.causal_mask(T, S).view(*front, T, S)


def _random(*shape: int) -> Callable[[torch.Generator], Tensor]:
    """Return the builder of a mask that allows every query one key at least, and forbids it one at least."""

    def build(generator: torch.Generator) -> Tensor:
        rank = torch.rand(shape, generator=generator).argsort(-1)
        return (rank == 0) | (torch.rand(shape, generator=generator) < 0.6) & (rank != 1)

    return build


def _blocked(values: bool) -> _Build:
    """Build inputs where the second of three queries may attend to nothing."""
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, False]])
    return tensors(1, 1, 3, 3, 2, lambda generator: mask, values)


def _three_tokens(q: list[list[float]], k: list[list[float]], values: bool) -> _Build:
    """Return the builder of a probe with a causal mask: one text, one head of width 4."""

    def build(generator: torch.Generator) -> Inputs:
        inputs = {"q": torch.tensor(q)[None, None], "k": torch.tensor(k)[None, None]}
        if values:
            inputs["v"] = torch.randn(1, 1, 3, 4, generator=generator)
        return inputs | {"mask": ref.causal_mask(3, 3)}

    return build


def far_from_zero(values: bool) -> _Build:
    """Build inputs whose scores are near 200 for the second query and near -20000 for the others."""
    q = [[-2.0, 0, 0, 0], [0, 2, 0, 0], [-2, 0, 0, 0]]
    return _three_tokens(q, [[20000.0, 200, 0, 0], [20001, 199, 0, 0], [20002, 198, 0, 0]], values)


def hidden_far_above(values: bool) -> _Build:
    """Build inputs whose allowed scores are near 1, and hidden ones near 500 and 30000."""
    q = [[2.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]]
    return _three_tokens(q, [[1.0, 2, 0, 0], [2, 1, 1, 0], [500, 30000, -1, 0]], values)


def attention_probes(values: bool) -> tuple[Probe, ...]:
    """List the probes that the weights and attention as a whole share."""
    axes = "B H T D" if values else "B H T S"

    def probe(name: str, *sizes: int, mask: Any = None, dtype: torch.dtype = torch.float32, **more: Any) -> Probe:
        return Probe(name, tensors(*sizes, mask, values, dtype), axes, **more)

    return (
        probe("two queries, three keys, no mask", 1, 1, 2, 3, 2, picture=not values),
        probe("three tokens, causal", 1, 1, 3, 3, 2, mask=_causal(3, 3), picture=not values),
        probe("a batch of several heads", 2, 3, 4, 5, 6, mask=lambda generator: None),
        probe("all axes alike", 3, 3, 3, 3, 3),
        probe("the last two of five tokens, a mask (1, 1, T, S)", 2, 3, 2, 5, 4, mask=_causal(2, 5, 1, 1)),
        probe("a mask (B, 1, 1, S) that hides padding", 2, 3, 4, 5, 6, mask=_random(2, 1, 1, 5)),
        probe("a mask (B, H, T, S), float64", 2, 3, 4, 3, 2, mask=_random(2, 3, 4, 3), dtype=torch.float64),
        Probe(
            "the second query may attend to nothing",
            _blocked(values),
            axes,
            edge=True,
            picture=not values,
        ),
        # Right answers lose digits of scores as large as these.
        Probe("scores far from zero", far_from_zero(values), axes, gradient=False, edge=True, tolerance=5e-3),
        Probe("a hidden key outscores the others by far", hidden_far_above(values), axes, gradient=False, edge=True),
    )


def forbidden(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Mark the places that the mask forbids."""
    shape = (*q.shape[:-1], k.shape[-2])
    return torch.zeros(shape, dtype=torch.bool) if mask is None else (~mask).expand(shape)


def _rows_sum_to_one(f, q: Tensor, k: Tensor, mask: Tensor | None = None) -> bool:
    expected = (~forbidden(q, k, mask).all(-1)).to(q.dtype)
    return torch.allclose(f(q, k, mask).sum(-1), expected, rtol=0, atol=5e-3)


def _forbidden_is_zero(f, q: Tensor, k: Tensor, mask: Tensor | None = None) -> bool:
    return bool((f(q, k, mask)[forbidden(q, k, mask)].abs() < 1e-6).all())


def first_alone(f, *tensors: Tensor | None, mask: Tensor | None = None) -> bool:
    """Say whether the first text of a batch gets the same answer alone."""
    own = mask[:1] if mask is not None and mask.ndim == 4 else mask
    return torch.allclose(f(*(t[:1] for t in tensors), own), f(*tensors, mask)[:1], atol=1e-4)


ATTENTION_WEIGHTS = Exercise(
    name="attention_weights",
    notebook="03_attention",
    reference=ref.attention_weights,
    probes=attention_probes(values=False),
    mistakes=(
        *map(in_use, IN_WEIGHTS),
        Mistake(CHANGED, IN_PLACE, _changing_scores_input, (_changing_mask,)),
    ),
    properties=(
        Property("the weights of each query sum to 1, or to 0 where it may attend to nothing", _rows_sum_to_one),
        Property("a key that the mask forbids gets the weight 0", _forbidden_is_zero),
        Property(
            "every weight lies between 0 and 1",
            lambda f, q, k, mask=None: bool(((w := f(q, k, mask)) >= 0).all() and (w <= 1 + 5e-3).all()),
        ),
        Property(
            "the texts of a batch do not touch each other",
            lambda f, q, k, mask=None: first_alone(f, q, k, mask=mask),
        ),
    ),
    hints=(
        "Four steps: multiply every query by every key, scale, hide what the mask forbids, softmax over the keys. "
        "Write the shape beside each.",
        "(B, H, T, D) @ (B, H, D, S) gives (B, H, T, S). Scale by the root of one head's width. Hiding must happen "
        "before the softmax, so that a hidden key gets exp(-inf) = 0. And a query that may attend to nothing?",
        "Plan: q @ k with its last two axes transposed; divide by the root of q's last size; where the mask is False, "
        "put torch.finfo(scores.dtype).min, or -inf; softmax over the last axis; put 0 where the mask is False.",
    ),
)

EXERCISES = (ATTENTION_WEIGHTS,)
