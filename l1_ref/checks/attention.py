"""The checks of 03_attention, third part: attention as a whole, and the bug hunt around the mask.

The mask comes first, in `masking`, then the weights, in `weighing`; splitting into heads and merging follow, in
`splitting`, and the module comes last, in `heads`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from l1_ref import attention as ref
from l1_ref.checks import heads, masking, splitting, weighing
from l1_ref.checks.compare import Failure, Rough
from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe, Property
from l1_ref.checks.observe import OUTPUT, Observation, copies
from l1_ref.checks.weighing import (
    CHANGED,
    IN_PLACE,
    IN_WEIGHTS,
    LOWEST,
    attention_probes,
    by_root_of_width,
    far_from_zero,
    first_alone,
    forbidden,
    hidden_far_above,
    in_use,
    kept,
    tensors,
    weigh,
)

# Attention as a whole.


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    dropout_p: float = 0.0,
    *,
    drop: Callable[[Tensor, float], Tensor] = F.dropout,
    drop_scores: bool = False,
    drop_values: bool = False,
    mix: Callable[[Tensor, Tensor, Tensor], Any] = lambda weights, k, v: weights @ v,
    end: Callable[[Tensor, float], Tensor] = lambda y, p: y,
    **switches: Any,
) -> Any:
    """Mix the values; each keyword, and each of `weigh`, is one place where it can go wrong."""
    if drop_scores:
        drop, switches["norm"] = _undropped, lambda scores: F.dropout(scores, dropout_p).softmax(-1)
    if drop_values:
        drop, v = _undropped, F.dropout(v, dropout_p)
    return end(mix(drop(weigh(q, k, mask, **switches), dropout_p), k, v), dropout_p)


def _undropped(weights: Tensor, p: float) -> Tensor:
    return weights


def _at_random(weights: Tensor, p: float) -> Tensor:
    return weights * (torch.rand_like(weights) >= p)


def _changing_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout_p: float = 0.0) -> Tensor:
    q *= by_root_of_width(q, k)
    return _attend(q, k, v, mask, dropout_p, scale=lambda q, k: 1.0)


def _dropout_inputs(generator: torch.Generator) -> Inputs:
    """Build many copies of one input; v is orthogonal, so that the weights can be read off the output."""
    q, k = (torch.randn(1, 2, 4, 4, generator=generator) for _ in "qk")
    v = torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q.expand(1, 2, 4, 4)
    return {name: x.repeat(256, 1, 1, 1) for name, x in {"q": q, "k": k, "v": v}.items()} | {
        "mask": None,
        "dropout_p": 0.3,
    }


def _observe_dropout(candidate: Callable, inputs: Inputs, gradient: bool, seed: int) -> Observation:
    """Measure dropout over many copies of one input: which style draws the numbers does not matter."""
    q, k, v = (inputs[name] for name in "qkv")
    try:
        torch.default_generator.manual_seed(seed)
        output = candidate(*copies(inputs).values())
        if not isinstance(output, Tensor) or output.shape != q.shape:
            return {"with dropout": "no tensor of the shape (B, H, T, D)"}
        weights = output.detach() @ v.transpose(-2, -1)  # (B, H, T, S), as dropout left them
        share = weights / ref.attention_weights(q, k)  # 1 without dropout
        share = share.clamp(-3, 3)  # few large values would blur the means
    except Exception as error:
        return {OUTPUT: Failure(error)}
    zero = share.abs() < 1e-3
    pairs = [(zero & zero.roll(1, axis)).double().mean().item() for axis in range(4)]
    return {
        "the share of weights that are dropped": Rough(zero.double().mean().item(), 0.04),
        "the size of the others, against no dropout": Rough(share[~zero].mean().item(), 0.08),
        "the share of zeros in the output": Rough((output == 0).double().mean().item(), 0.04),
        "the spread that dropout makes": Rough(share.std(0).mean().item(), 0.12),
        "the spread of the sum of a query's weights": Rough(weights.sum(-1).std(0).mean().item(), 0.12),
        "how often neighbours along B, H, T, S are dropped together": [Rough(pair, 0.05) for pair in pairs],
    }


def _equal_values(f, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout_p: float = 0.0) -> bool:
    if dropout_p:
        return True
    expected = (~forbidden(q, k, mask).all(-1, keepdim=True)).to(q.dtype).expand_as(q)
    return torch.allclose(f(q, k, torch.ones_like(v), mask), expected, atol=5e-3)


def _keys_in_any_order(f, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout_p: float = 0.0) -> bool:
    if dropout_p:
        return True
    turned = None if mask is None else mask.flip(-1)
    return torch.allclose(f(q, k.flip(-2), v.flip(-2), turned), f(q, k, v, mask), atol=5e-3)


_DROP_WHY = "dropout makes each query do without some keys; nothing else is switched off."

SCALED_DOT_PRODUCT_ATTENTION = Exercise(
    name="scaled_dot_product_attention",
    notebook="03_attention",
    reference=ref.scaled_dot_product_attention,
    probes=(
        *attention_probes(values=True),
        Probe("dropout, over 256 copies of one text", _dropout_inputs, "B H T D", observe=_observe_dropout),
    ),
    mistakes=(
        *(in_use(name, _attend) for name in IN_WEIGHTS),
        Mistake(CHANGED, IN_PLACE, _changing_attention),
        Mistake(
            "dropout is missing",
            "the caller passes 0 when the model is not training; a function has no mode of its own.",
            partial(_attend, drop=_undropped),
        ),
        Mistake(
            "dropout falls on the output, not on the weights",
            _DROP_WHY,
            partial(_attend, drop=_undropped, end=F.dropout),
        ),
        Mistake("dropout falls on the values, not on the weights", _DROP_WHY, partial(_attend, drop_values=True)),
        Mistake(
            "dropout falls on the scores, before the softmax",
            "a score of 0 is a score like any other: the key still gets weight.",
            partial(_attend, drop_scores=True),
        ),
        Mistake(
            "the weights that dropout leaves are not divided by 1 - dropout_p",
            "the sum of the weights would be smaller in training than afterwards.",
            partial(_attend, drop=_at_random),
            (partial(_attend, drop=lambda w, p: _at_random(w, p) * (1 - p)),),
        ),
        Mistake(
            "the weights that dropout leaves are made to sum to 1 again",
            "dropout divides by 1 - dropout_p, so that the sum is 1 on average.",
            partial(_attend, drop=lambda w, p: (d := F.dropout(w, p)) / d.sum(-1, keepdim=True).clamp(min=1e-9)),
        ),
        Mistake(
            "dropout_p is taken as the probability to keep",
            "a dropout of 0.1 drops one weight in ten, and keeps nine.",
            partial(_attend, drop=lambda w, p: F.dropout(w, 1 - p) if p else w),
            (partial(_attend, drop=lambda w, p: F.dropout(w, 1 - p)),),
        ),
        Mistake(
            "dropout does not use dropout_p: it has a probability of its own",
            "the caller turns dropout off with dropout_p=0; without a number, torch takes 0.5.",
            partial(_attend, drop=lambda w, p: F.dropout(w)),
            (
                partial(_attend, drop=lambda w, p: F.dropout(w, 0.1)),
                partial(_attend, drop=lambda w, p: F.dropout(w) if p else w),
                partial(_attend, drop=lambda w, p: F.dropout(w, 0.1) if p else w),
            ),
        ),
        Mistake(
            "the keys are mixed, not the values",
            "keys say how well a token fits; what it has to give stands in v.",
            partial(_attend, mix=lambda weights, k, v: weights @ k),
        ),
        Mistake(
            "the weights are transposed: each key mixes the queries' places",
            "row i of the weights mixes the values for query i.",
            partial(_attend, mix=lambda weights, k, v: weights.transpose(-2, -1) @ v),
        ),
        Mistake(
            "the product is turned round: v @ weights",
            "(T, S) times (S, D) gives (T, D): the weights stand on the left.",
            partial(_attend, mix=lambda weights, k, v: v @ weights),
        ),
        Mistake(
            "the weights are returned; v is not used",
            "attention gathers values: multiply the weights by v.",
            partial(_attend, mix=lambda weights, k, v: weights),
        ),
        Mistake(
            "a pair comes back, not the output alone",
            "the next layer takes one tensor.",
            partial(_attend, mix=lambda weights, k, v: (weights @ v, weights)),
        ),
    ),
    properties=(
        Property("where every value is 1, so is the output (0 where a query may attend to nothing)", _equal_values),
        Property("the order of the keys does not matter, as long as values and mask follow", _keys_in_any_order),
        Property(
            "the texts of a batch do not touch each other",
            lambda f, q, k, v, mask=None, dropout_p=0.0: bool(dropout_p) or first_alone(f, q, k, v, mask=mask),
        ),
    ),
    hints=(
        "You have the weights already. What is left is one dropout and one product.",
        "Dropout falls on the weights, after the softmax. F.dropout(x, p) acts by default; a function has no training "
        "mode, so whoever calls it decides by dropout_p.",
        "Plan: weights = attention_weights(q, k, mask), (B, H, T, S); F.dropout with dropout_p; times v, (B, H, S, D).",
    ),
)


# The bug hunt.


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Let each token gather from itself and those before it.

    Args:
        q: Queries, (B, H, T, D).
        k: Keys of the same tokens.
        v: Values of the same tokens.
    """
    T = q.shape[-2]
    return ref.scaled_dot_product_attention(q, k, v, ref.causal_mask(T, T, q.device))


def _hunted(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    see: Callable[[Tensor], Tensor] = torch.tril,
    share: Callable[[Tensor], Tensor] | None = None,
    **switches: Any,
) -> Tensor:
    """Attend to the past; each keyword is one place where it can go wrong.

    Args:
        see: Cuts the mask out of a square of True.
        share: What is done after masking weights that the softmax has already shared out; None to mask before.
    """
    T = q.shape[-2]
    if share is not None:
        switches["hide"], switches["then"] = lambda scores, mask, low: scores, lambda weights, q: share(weights)
    return _attend(q, k, v, see(torch.ones(T, T, dtype=torch.bool)), **switches)


def _in_the_hunt(names: str) -> list[Mistake]:
    return [in_use(name, _hunted) for name in names.split()]


def _again(weights: Tensor) -> Tensor:
    T = weights.shape[-1]
    return weights.masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(), -math.inf).softmax(-1)


def _unmasked(build: Callable[[torch.Generator], Inputs]) -> Callable[[torch.Generator], Inputs]:
    """Return the builder of a probe without its mask."""
    return lambda generator: {name: x for name, x in build(generator).items() if name != "mask"}


def _later_changed(f, q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Say whether the first tokens' answers stay as they are when the last token changes."""
    others = [torch.cat([x[:, :, :-1], x[:, :, -1:] + 1], dim=2) for x in (q, k, v)]
    return torch.allclose(f(*others)[:, :, :-1], f(q, k, v)[:, :, :-1], atol=1e-4)


CAUSAL_ATTENTION = Exercise(
    name="causal_attention",
    notebook="03_attention",
    reference=causal_attention,
    probes=(
        Probe("three tokens", tensors(1, 1, 3, 3, 2, values=True), "B H T D"),
        Probe("a batch of several heads", tensors(2, 3, 5, 5, 6, values=True), "B H T D"),
        Probe("all axes alike", tensors(3, 3, 3, 3, 3, values=True), "B H T D"),
        Probe("one token alone", tensors(2, 2, 1, 1, 4, values=True), "B H T D"),
        Probe("float64", tensors(2, 3, 4, 4, 2, values=True, dtype=torch.float64), "B H T D"),
        Probe(
            "scores far from zero",
            _unmasked(far_from_zero(values=True)),
            "B H T D",
            gradient=False,
            edge=True,
            tolerance=5e-3,
        ),
        Probe(
            "a hidden key outscores the others by far",
            _unmasked(hidden_far_above(values=True)),
            "B H T D",
            gradient=False,
            edge=True,
        ),
    ),
    mistakes=(
        *_in_the_hunt("masked_late shared_again masked_late_inf"),
        Mistake(
            "the weights left by the mask are divided by sums along the wrong axis",
            "each query's weights must sum to 1 over the keys: dim=-1, with keepdim=True.",
            partial(_hunted, share=lambda weights: weights / weights.sum(-2, keepdim=True)),
            (partial(_hunted, share=lambda weights: weights / weights.sum(-1)),),
        ),
        Mistake(
            "softmax is applied twice, before the mask and after it",
            "the second one makes weights of weights, and they come out nearly even.",
            partial(_hunted, share=_again),
            (partial(_hunted, share=lambda weights: weights.softmax(-1)),),
        ),
        Mistake(
            "the mask is one off: a token may not attend to itself",
            "the first token has nothing to attend to, and every other misses its own meaning.",
            partial(_hunted, see=lambda square: square.tril(-1)),
            (
                partial(_hunted, see=lambda square: square.tril(-1), clear=kept),
                partial(_hunted, see=lambda square: square.tril(-1), low=LOWEST, clear=kept),
            ),
        ),
        Mistake(
            "the mask is one off: each token also sees the next one",
            "the next token is just what the model must predict.",
            partial(_hunted, see=lambda square: square.tril(1)),
        ),
        Mistake(
            "each token sees itself and the future, not the past",
            "triu keeps what lies above the diagonal: for a query, the keys that come later.",
            partial(_hunted, see=torch.triu),
        ),
        Mistake(
            "each token sees the future only: the mask is turned round",
            "True means that a query may attend; what has to be hidden is ~mask.",
            partial(_hunted, see=lambda square: square.triu(1)),
            (
                partial(_hunted, see=lambda square: square.triu(1), clear=kept),
                partial(_hunted, see=lambda square: square.triu(1), low=LOWEST, clear=kept),
                partial(_hunted, hide=lambda scores, mask, low: scores + mask * -1e9, clear=kept),
            ),
        ),
        Mistake(
            "nothing is masked: every token sees the future",
            "the model would be trained on an answer that it can read off.",
            partial(_hunted, see=lambda square: square),
        ),
        Mistake(
            "each token sees only itself",
            "the past is what attention is for.",
            partial(_hunted, see=lambda square: square.tril().triu()),
        ),
        *_in_the_hunt(
            "no_scale by_width multiplied by_all_heads over_queries near_zero high added nan_product not_low"
        ),
        *_in_the_hunt("no_softmax not_divided naive largest_of_all detached"),
        Mistake(
            CHANGED,
            IN_PLACE,
            lambda q, k, v: _hunted(q.mul_(by_root_of_width(q, k)), k, v, scale=lambda q, k: 1.0),
        ),
    ),
    properties=(
        Property("a change in the last token leaves the answers of the earlier ones as they were", _later_changed),
        Property(
            "where every value is 1, so is the output: each token's weights sum to 1",
            lambda f, q, k, v: torch.allclose(f(q, k, torch.ones_like(v)), torch.ones_like(v), atol=5e-3),
        ),
        Property(
            "the first token, which sees only itself, gets its own value",
            lambda f, q, k, v: torch.allclose(f(q, k, v)[:, :, 0], v[:, :, 0], atol=1e-4),
        ),
    ),
    hints=(
        "Take the first token, which may see only itself. What should its weight be, and what is it here?",
        "Add up the weights of each query. A row that does not sum to 1 has shared out weight among keys which were "
        "hidden only later: in which line does that happen? Dividing by the sum afterwards hides the symptom, and "
        "fails where a hidden score is very large.",
        "What a query may not see must be out of the way before the softmax shares anything out. Change the order of "
        "two lines, and what the mask writes.",
    ),
)

EXERCISES = (
    *masking.EXERCISES,
    *weighing.EXERCISES,
    SCALED_DOT_PRODUCT_ATTENTION,
    CAUSAL_ATTENTION,
    *splitting.EXERCISES,
    *heads.EXERCISES,
)
