"""The checks of 03_attention: mistakes in other words than the catalogue's, right answers in many styles, stubs."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from l1_ref import checks
from tests.check_cases import (
    SEEDS,
    assert_accepted,
    assert_all_told,
    assert_named_first,
    assert_rejected,
    assert_same_on_two_threads,
    cases,
)

# The mask: wrong answers, as learners write them.


def upper_triangle(T, S):
    return torch.arange(S)[None, :] >= torch.arange(S - T, S)[:, None]


def upper_of_first(T, S):
    return torch.triu(torch.ones(T, S)) == 1


def true_is_forbidden(T, S):
    return torch.triu(torch.ones(S, S), diagonal=1)[-T:].bool()


def strictly_past(T, S):
    return torch.arange(S) < torch.arange(S - T, S).unsqueeze(1)


def one_too_many(T, S):
    return torch.tensor([[j <= S - T + i + 1 for j in range(S)] for i in range(T)])


def first_of_keys(T, S):
    return torch.tril(torch.ones(T, S)).bool()


def shifted_back(T, S):
    return torch.ones(T, S, dtype=torch.bool).tril(diagonal=-(S - T))


def earlier_keys_hidden(T, S):
    mask = torch.zeros(T, S, dtype=torch.bool)
    mask[:, S - T :] = torch.tril(torch.ones(T, T))
    return mask


def floats(T, S):
    return torch.tril(torch.ones(T, S), diagonal=S - T)


def integers(T, S):
    return torch.tensor([[int(j <= S - T + i) for j in range(S)] for i in range(T)])


def bytes_(T, S):
    return torch.tril(torch.ones(T, S, dtype=torch.uint8), diagonal=S - T)


def infinities(T, S):
    return torch.triu(torch.full((T, S), float("-inf")), diagonal=S - T + 1)


def billions(T, S):
    return torch.triu(torch.ones(T, S), diagonal=S - T + 1) * -1e9


def four_axes(T, S):
    return torch.tril(torch.ones(T, S), S - T).bool().view(1, 1, T, S)


def three_axes(T, S):
    return torch.ones(1, T, S).tril(S - T).bool()


def swapped_axes(T, S):
    return torch.tril(torch.ones(T, S), S - T).bool().t()


def square_of_keys(T, S):
    return torch.ones(S, S).tril() > 0


def square_of_queries(T, S):
    return torch.ones(T, T).tril() > 0


def all_allowed(T, S):
    return torch.full((T, S), True)


def itself_only(T, S):
    return torch.arange(S) == torch.arange(S - T, S)[:, None]


def float_of_first(T, S):
    return torch.tril(torch.ones(T, S))


MASK_WRONG = {
    upper_triangle: "the upper triangle",
    upper_of_first: "the upper triangle",
    true_is_forbidden: "changed places: True marks",
    strictly_past: "may not attend to itself",
    one_too_many: "also sees the next one",
    first_of_keys: "taken for the first T",
    float_of_first: "taken for the first T",
    shifted_back: "the wrong way",
    earlier_keys_hidden: "the earlier S - T keys are hidden",
    floats: "the mask holds floats",
    integers: "the mask holds integers",
    bytes_: "the mask holds integers",
    infinities: "additive mask",
    billions: "additive mask",
    four_axes: "axes of length 1 stand in front",
    three_axes: "axes of length 1 stand in front",
    swapped_axes: "rows and columns have changed places",
    square_of_keys: "a row for every key",
    square_of_queries: "a column for new tokens only",
    all_allowed: "everything is allowed",
    itself_only: "each position sees only itself",
}


def mask_by_comparison(T, S):
    return torch.arange(S) <= torch.arange(S - T, S)[:, None]


def mask_by_loops(T, S):
    mask = torch.zeros(T, S, dtype=torch.bool)
    for i in range(T):
        for j in range(S - T + i + 1):
            mask[i, j] = True
    return mask


def mask_cut_from_square(T, S):
    return torch.ones(S, S).tril()[S - T :].bool()


def mask_by_inversion(T, S):
    return ~torch.triu(torch.ones(T, S, dtype=torch.bool), diagonal=1 + S - T)


def mask_by_cumulation(T, S, device=None):
    return torch.eye(S, device=device)[-T:].flip(1).cumsum(1).flip(1) == 1


def mask_of_list(T, S):
    return torch.tensor([[True] * (S - T + i + 1) + [False] * (T - i - 1) for i in range(T)])


# The weights: wrong answers.


def shared_out(scores, mask, dim=-1):
    """Hide with -inf, share out, and turn the NaN of empty rows into zeros: another way than the catalogue's."""
    if mask is None:
        return F.softmax(scores, dim=dim)
    return torch.nan_to_num(F.softmax(torch.where(mask, scores, -torch.inf), dim=dim))


def products(q, k):
    return torch.einsum("bhtd,bhsd->bhts", q, k)


def unscaled(q, k, mask=None):
    return shared_out(products(q, k), mask)


def unscaled_with_nan(q, k, mask=None):
    scores = q @ k.mT
    if mask is not None:
        scores = scores.masked_fill(mask == 0, float("-inf"))
    return scores.softmax(dim=-1)


def scaled_by_width(q, k, mask=None):
    return shared_out(products(q, k) / q.size(-1), mask)


def scaled_twice(q, k, mask=None):
    q, k = q / math.sqrt(q.size(-1)), k / math.sqrt(k.size(-1))
    return shared_out(products(q, k), mask)


def divided_by_inverse_root(q, k, mask=None):
    scale = q.shape[-1] ** -0.5
    return shared_out(products(q, k) / scale, mask)


def scaled_by_all_heads(q, k, mask=None):
    _, n_heads, _, head_width = q.shape
    return shared_out(products(q, k) / math.sqrt(n_heads * head_width), mask)


def scaled_by_keys(q, k, mask=None):
    return shared_out(products(q, k) / k.size(2) ** 0.5, mask)


def scaled_by_queries(q, k, mask=None):
    return shared_out(products(q, k) / math.sqrt(q.size(2)), mask)


def scaled_by_heads(q, k, mask=None):
    return shared_out(products(q, k) / math.sqrt(q.size(1)), mask)


def scaled_after(q, k, mask=None):
    return shared_out(products(q, k), mask) / math.sqrt(q.size(-1))


def scaled(q, k):
    return products(q, k) / math.sqrt(q.shape[-1])


def over_queries(q, k, mask=None):
    return shared_out(scaled(q, k), mask, dim=2)


def over_heads(q, k, mask=None):
    return shared_out(scaled(q, k), mask, dim=1)


def over_batch(q, k, mask=None):
    return shared_out(scaled(q, k), mask, dim=0)


def over_queries_and_keys(q, k, mask=None):
    scores = scaled(q, k)
    if mask is not None:
        scores = torch.where(mask, scores, -torch.inf)
    e = (scores - scores.amax((-2, -1), keepdim=True)).exp()
    return e / e.sum((-2, -1), keepdim=True)


def mask_inverted(q, k, mask=None):
    return shared_out(scaled(q, k), None if mask is None else torch.logical_not(mask))


def mask_filled_where_true(q, k, mask=None):
    scores = scaled(q, k)
    if mask is not None:
        scores = scores.masked_fill(mask, float("-inf"))
    return torch.softmax(scores, dim=-1)


def mask_forgotten(q, k, mask=None):
    return F.softmax(scaled(q, k), dim=-1)


def always_causal(q, k, mask=None):
    T, S = q.size(-2), k.size(-2)
    return shared_out(scaled(q, k), torch.arange(S) <= torch.arange(S - T, S)[:, None])


def causal_where_masked(q, k, mask=None):
    return always_causal(q, k) if mask is not None else shared_out(scaled(q, k), None)


def masked_afterwards(q, k, mask=None):
    weights = torch.softmax(scaled(q, k), -1)
    return weights if mask is None else weights * mask


def masked_afterwards_with_infinity(q, k, mask=None):
    weights = torch.softmax(scaled(q, k), -1)
    return weights if mask is None else torch.where(mask, weights, -torch.inf)


def masked_with_zero(q, k, mask=None):
    scores = scaled(q, k)
    return torch.softmax(scores if mask is None else torch.where(mask, scores, 0.0), -1)


def masked_with_tiny_number(q, k, mask=None):
    scores = scaled(q, k)
    return torch.softmax(scores if mask is None else scores.masked_fill(~mask, -1e-9), -1)


def masked_with_minus_one(q, k, mask=None):
    scores = scaled(q, k)
    return torch.softmax(scores if mask is None else scores.masked_fill(mask == 0, -1), -1)


def minus_forgotten(q, k, mask=None):
    scores = scaled(q, k)
    return torch.softmax(scores if mask is None else scores.masked_fill(~mask, 1e9), -1)


def minus_of_infinity_forgotten(q, k, mask=None):
    scores = scaled(q, k)
    return torch.softmax(scores if mask is None else scores.masked_fill(~mask, torch.inf), -1)


def mask_added(q, k, mask=None):
    scores = scaled(q, k)
    return torch.softmax(scores if mask is None else scores + mask.to(scores.dtype), -1)


def infinity_times_mask(q, k, mask=None):
    scores = scaled(q, k)
    return torch.softmax(scores if mask is None else scores + (1 - mask.to(scores.dtype)) * float("-inf"), -1)


def not_low_enough(q, k, mask=None):
    scores = scaled(q, k)
    if mask is None:
        return scores.softmax(-1)
    return scores.masked_fill(~mask, -10000.0).softmax(-1) * mask.any(-1, keepdim=True)


def not_low_enough_and_even(q, k, mask=None):
    scores = scaled(q, k)
    return torch.softmax(scores if mask is None else scores.masked_fill(~mask, -1000.0), -1)


def nan_where_nothing_is_allowed(q, k, mask=None):
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    return F.softmax(scores, -1)


def even_where_nothing_is_allowed(q, k, mask=None):
    scores = scaled(q, k)
    return torch.softmax(scores if mask is None else scores.masked_fill(~mask, -1e9), -1)


def raw_scores(q, k, mask=None):
    return scaled(q, k) if mask is None else scaled(q, k).masked_fill(~mask, -math.inf)


def exponentials(q, k, mask=None):
    return raw_scores(q, k, mask).exp()


def naive_softmax(q, k, mask=None):
    e = exponentials(q, k, mask)
    weights = e / e.sum(-1, keepdim=True)
    return weights if mask is None else torch.where(mask.any(-1, keepdim=True), weights, 0.0)


def keys_ask(q, k, mask=None):
    return shared_out(scaled(k, q), mask)


def not_transposed(q, k, mask=None):
    return shared_out(torch.matmul(q, k) / math.sqrt(q.shape[-1]), mask)


def heads_transposed(q, k, mask=None):
    return shared_out(torch.matmul(q, k.transpose(1, 2)) / math.sqrt(q.shape[-1]), mask)


def without_gradient(q, k, mask=None):
    with torch.no_grad():
        return shared_out(scaled(q, k), mask)


def in_place_query(q, k, mask=None):
    q.div_(math.sqrt(q.shape[-1]))
    return shared_out(products(q, k), mask)


def weights_by_logarithm_of_mask(q, k, mask=None):
    fourth_root = q.shape[-1] ** 0.25
    scores = (q / fourth_root) @ (k / fourth_root).transpose(-1, -2)
    weights = (scores if mask is None else scores + mask.to(q.dtype).log()).softmax(-1)
    return weights if mask is None else torch.where(mask.any(-1, keepdim=True), weights, torch.zeros_like(weights))


def weights_renormalised(q, k, mask=None):
    weights = scaled(q, k).softmax(-1)
    if mask is None:
        return weights
    kept = weights * mask
    return kept / kept.sum(-1, keepdim=True).clamp(min=1e-12)


def weights_renormalised_with_nan(q, k, mask=None):
    weights = scaled(q, k).softmax(-1)
    if mask is not None:
        weights = weights * mask
    return weights / weights.sum(-1, keepdim=True)


def exponentials_masked(q, k, mask=None):
    scores = scaled(q, k)
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    if mask is not None:
        weights = weights * mask
    return weights / (weights.sum(-1, keepdim=True) + 1e-9)


def naive_with_a_tiny_sum(q, k, mask=None):
    weights = torch.exp(scaled(q, k))
    if mask is not None:
        weights = weights * mask
    return weights / (weights.sum(-1, keepdim=True) + 1e-9)


def largest_of_all(q, k, mask=None):
    scores = scaled(q, k)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = torch.exp(scores - scores.max())
    if mask is not None:
        weights = weights * mask
    return weights / (weights.sum(-1, keepdim=True) + 1e-9)


def minus_where_allowed(q, k, mask=None):
    scores = scaled(q, k)
    return (scores if mask is None else scores + mask * -1e9).softmax(-1)


def ten_thousand_added(q, k, mask=None):
    scores = scaled(q, k)
    if mask is None:
        return scores.softmax(-1)
    return (scores + (1.0 - mask.to(scores.dtype)) * -10000.0).softmax(-1) * mask


def zero_then_cleared(q, k, mask=None):
    scores = scaled(q, k)
    return scores.softmax(-1) if mask is None else (scores * mask).softmax(-1) * mask


def even_by_adding(q, k, mask=None):
    scores = scaled(q, k)
    return (scores if mask is None else scores + (~mask) * -1e9).softmax(-1)


def scores_with_billions(q, k, mask=None):
    scores = scaled(q, k)
    return scores if mask is None else scores.masked_fill(mask == 0, -1e9)


WEIGHTS_WRONG = {
    unscaled: "not divided by sqrt(D)",
    unscaled_with_nan: "not divided by sqrt(D)",
    scaled_by_width: "divided by D, or twice",
    scaled_twice: "divided by D, or twice",
    divided_by_inverse_root: "multiplied by sqrt(D)",
    scaled_by_all_heads: "all heads' width",
    scaled_by_keys: "root of the number of tokens",
    scaled_by_queries: "root of the number of tokens",
    scaled_by_heads: "root of the number of heads",
    scaled_after: "comes after the softmax",
    over_queries: "over the queries (dim=-2)",
    over_heads: "over the heads (dim=1)",
    over_batch: "over the batch (dim=0)",
    over_queries_and_keys: "over queries and keys together",
    mask_inverted: "the mask is turned round",
    mask_filled_where_true: "the mask is turned round",
    mask_forgotten: "the mask is ignored",
    always_causal: "a causal mask is always used",
    causal_where_masked: "a causal mask is always used",
    masked_afterwards: "the mask is applied after the softmax",
    masked_afterwards_with_infinity: "applied after the softmax, with -inf",
    masked_with_zero: "become 0, or a number near 0",
    masked_with_tiny_number: "become 0, or a number near 0",
    masked_with_minus_one: "become 0, or a number near 0",
    minus_forgotten: "the minus is missing",
    minus_of_infinity_forgotten: "the minus is missing",
    mask_added: "added to the scores as 1 and 0",
    infinity_times_mask: "0 times -inf is NaN",
    not_low_enough: "not low enough",
    not_low_enough_and_even: "not low enough",
    nan_where_nothing_is_allowed: "gets NaN, not zeros",
    even_where_nothing_is_allowed: "attends to everything alike",
    raw_scores: "without a softmax",
    exponentials: "not divided by their sum",
    naive_softmax: "exp overflows",
    keys_ask: "q and k have changed places",
    not_transposed: "k is not transposed",
    heads_transposed: "k is not transposed",
    without_gradient: "no gradient gets through",
    in_place_query: "an input is changed in place",
    weights_by_logarithm_of_mask: "its gradient is NaN",
    weights_renormalised: "divided by their sum",
    weights_renormalised_with_nan: "divided by their sum",
    exponentials_masked: "divided by their sum",
    naive_with_a_tiny_sum: "exp overflows",
    largest_of_all: "the largest score of all",
    minus_where_allowed: "the mask is turned round",
    ten_thousand_added: "not low enough",
    zero_then_cleared: "become 0, or a number near 0",
    even_by_adding: "attends to everything alike",
    scores_with_billions: "without a softmax",
}


# The weights: right answers.


def weights_by_where(q, k, mask=None):
    return shared_out(q / math.sqrt(q.shape[-1]) @ k.mT, mask)


def weights_by_loops(q, k, mask=None):
    B, H, T, D = q.shape
    S = k.shape[2]
    seen = torch.ones(B, H, T, S, dtype=torch.bool) if mask is None else mask.expand(B, H, T, S)
    rows = []
    for b in range(B):
        for h in range(H):
            for t in range(T):
                scores = [(q[b, h, t] * k[b, h, s]).sum() / D**0.5 for s in range(S) if seen[b, h, t, s]]
                shares = iter(torch.stack(scores).softmax(0)) if scores else iter(())
                rows.append(torch.stack([next(shares) if ok else q.new_zeros(()) for ok in seen[b, h, t]]))
    return torch.stack(rows).view(B, H, T, S)


def weights_in_float64(q, k, mask=None):
    return shared_out(scaled(q.double(), k.double()), mask).to(q.dtype)


def weights_with_billions(q, k, mask=None):
    scores = torch.baddbmm(
        torch.zeros(1, dtype=q.dtype), q.flatten(0, 1), k.flatten(0, 1).mT, beta=0, alpha=q.shape[-1] ** -0.5
    ).view(*q.shape[:-1], k.shape[-2])
    if mask is None:
        return scores.softmax(-1)
    return (scores - 1e9 * (~mask)).softmax(-1) * mask


def weights_by_fused_call(q, k, mask=None):
    identity = torch.eye(k.shape[-2], dtype=q.dtype).expand(*k.shape[:-1], -1)
    return F.scaled_dot_product_attention(q, k, identity, attn_mask=mask)


def weights_with_nan_replaced(q, k, mask=None):
    scores = scaled(q, k)
    if mask is None:
        return scores.softmax(-1)
    weights = scores.masked_fill(mask == 0, float("-inf")).softmax(-1)
    return torch.where(weights.isnan(), 0.0, weights)


def weights_of_empty_rows_apart(q, k, mask=None):
    scores = scaled(q, k)
    if mask is None:
        return scores.softmax(-1)
    empty = ~mask.any(-1, keepdim=True)
    return scores.masked_fill(~(mask | empty), -math.inf).softmax(-1).masked_fill(empty, 0)


def weights_by_log_sum_exp(q, k, mask=None):
    scores = scaled(q, k)
    if mask is None:
        return (scores - scores.logsumexp(-1, keepdim=True)).exp()
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return (scores - scores.logsumexp(-1, keepdim=True)).exp() * mask


def weights_with_a_tiny_sum(q, k, mask=None):
    scores = scaled(q, k)
    seen = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
    scores = scores.masked_fill(~seen, -1e9)
    weights = (scores - scores.amax(-1, keepdim=True)).exp() * seen
    return weights / (weights.sum(-1, keepdim=True) + 1e-12)


# Attention as a whole.


def attending(weigh):
    """Make attention of a way to weigh the keys."""

    def attention(q, k, v, mask=None, dropout_p=0.0):
        return torch.dropout(weigh(q, k, mask), dropout_p, train=True) @ v

    attention.__name__ = f"attending_{weigh.__name__}"
    return attention


def right_weights(q, k, mask):
    return shared_out(scaled(q, k), mask)


def changing_query(q, k, v, mask=None, dropout_p=0.0):
    q /= math.sqrt(q.shape[-1])
    return F.dropout(shared_out(products(q, k), mask), dropout_p) @ v


def dropout_forgotten(q, k, v, mask=None, dropout_p=0.0):
    return torch.einsum("bhts,bhsd->bhtd", right_weights(q, k, mask), v)


def dropout_never_training(q, k, v, mask=None, dropout_p=0.0):
    return F.dropout(right_weights(q, k, mask), dropout_p, training=False) @ v


def dropout_on_output(q, k, v, mask=None, dropout_p=0.0):
    return nn.Dropout(dropout_p)(right_weights(q, k, mask) @ v)


def dropout_on_values(q, k, v, mask=None, dropout_p=0.0):
    return right_weights(q, k, mask) @ nn.Dropout(dropout_p)(v)


def dropout_on_scores(q, k, v, mask=None, dropout_p=0.0):
    return shared_out(nn.Dropout(dropout_p)(scaled(q, k)), mask) @ v


def dropout_not_scaled_up(q, k, v, mask=None, dropout_p=0.0):
    weights = right_weights(q, k, mask)
    return weights.masked_fill(torch.rand(weights.shape) < dropout_p, 0.0) @ v


def dropout_scaled_to_one(q, k, v, mask=None, dropout_p=0.0):
    weights = right_weights(q, k, mask)
    if dropout_p:
        weights = weights * torch.bernoulli(torch.full_like(weights, 1 - dropout_p))
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-9)
    return weights @ v


def dropout_probability_to_keep(q, k, v, mask=None, dropout_p=0.0):
    weights = right_weights(q, k, mask)
    if dropout_p > 0:
        weights = weights * (torch.rand_like(weights) < dropout_p) / dropout_p
    return weights @ v


def dropout_of_its_own(q, k, v, mask=None, dropout_p=0.0):
    return nn.Dropout()(right_weights(q, k, mask)) @ v


def dropout_of_its_own_if_wanted(q, k, v, mask=None, dropout_p=0.0):
    weights = right_weights(q, k, mask)
    return (nn.Dropout(0.1)(weights) if dropout_p > 0 else weights) @ v


def keys_mixed(q, k, v, mask=None, dropout_p=0.0):
    return torch.dropout(right_weights(q, k, mask), dropout_p, True) @ k


def weights_transposed(q, k, v, mask=None, dropout_p=0.0):
    return torch.einsum("bhts,bhtd->bhsd", torch.dropout(right_weights(q, k, mask), dropout_p, True), v)


def turned_round(q, k, v, mask=None, dropout_p=0.0):
    return torch.matmul(v, torch.dropout(right_weights(q, k, mask), dropout_p, True))


def fused_causal_of_first(q, k, v, mask=None, dropout_p=0.0):
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=True)


def weights_returned(q, k, v, mask=None, dropout_p=0.0):
    return torch.dropout(right_weights(q, k, mask), dropout_p, True)


def pair_returned(q, k, v, mask=None, dropout_p=0.0):
    weights = torch.dropout(right_weights(q, k, mask), dropout_p, True)
    return weights @ v, weights


def fused_and_causal(q, k, v, mask=None, dropout_p=0.0):
    lower_right = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril(k.shape[-2] - q.shape[-2])
    return F.scaled_dot_product_attention(q, k, v, lower_right, dropout_p)


def fused_causal_where_masked(q, k, v, mask=None, dropout_p=0.0):
    return F.scaled_dot_product_attention(q, k, v, is_causal=mask is not None, dropout_p=dropout_p)


def dropout_probability_turned(q, k, v, mask=None, dropout_p=0.0):
    return F.dropout(right_weights(q, k, mask), 1 - dropout_p) @ v


def dropout_scaled_down(q, k, v, mask=None, dropout_p=0.0):
    weights = right_weights(q, k, mask)
    return (weights * (torch.rand_like(weights) >= dropout_p) * (1 - dropout_p)) @ v


ATTENTION_WRONG = {
    **{attending(f): words for f, words in WEIGHTS_WRONG.items() if f is not in_place_query},
    changing_query: "an input is changed in place",
    fused_and_causal: "a causal mask is always used",
    fused_causal_of_first: "a causal mask is always used",
    fused_causal_where_masked: "a causal mask is always used",
    dropout_probability_turned: "the probability to keep",
    dropout_scaled_down: "not divided by 1 - dropout_p",
    dropout_forgotten: "dropout is missing",
    dropout_never_training: "dropout is missing",
    dropout_on_output: "falls on the output",
    dropout_on_values: "falls on the values",
    dropout_on_scores: "falls on the scores",
    dropout_not_scaled_up: "not divided by 1 - dropout_p",
    dropout_scaled_to_one: "made to sum to 1 again",
    dropout_probability_to_keep: "the probability to keep",
    dropout_of_its_own: "a probability of its own",
    dropout_of_its_own_if_wanted: "a probability of its own",
    keys_mixed: "the keys are mixed",
    weights_transposed: "the weights are transposed",
    turned_round: "the product is turned round",
    weights_returned: "the weights are returned",
    pair_returned: "a pair comes back",
}


def attention_fused(q, k, v, mask=None, dropout_p=0.0):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p)


def attention_with_mask_by_hand(q, k, v, mask=None, dropout_p=0.0):
    weights = right_weights(q, k, mask)
    if dropout_p > 0:
        weights = weights * (torch.rand_like(weights) >= dropout_p) / (1 - dropout_p)
    return torch.einsum("bhts,bhsd->bhtd", weights, v)


def attention_head_by_head(q, k, v, mask=None, dropout_p=0.0):
    seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool) if mask is None else mask
    seen = seen.expand(*q.shape[:-1], k.shape[-2])
    heads = [
        F.dropout(shared_out(q[:, h] @ k[:, h].mT / q.shape[-1] ** 0.5, seen[:, h]), p=dropout_p) @ v[:, h]
        for h in range(q.shape[1])
    ]
    return torch.stack(heads, dim=1)


# The bug hunt.


def hunting(weigh):
    """Make the bug hunt's function of a way to weigh the keys under a mask."""

    def causal_attention(q, k, v):
        T = q.shape[2]
        return weigh(q, k, torch.ones(T, T, dtype=torch.bool).tril()) @ v

    causal_attention.__name__ = f"hunting_{weigh.__name__}"
    return causal_attention


def seeing(see, empty=0.0):
    """Make the bug hunt's function of a way to cut the mask out of a square."""

    def causal_attention(q, k, v):
        mask = see(torch.ones(q.shape[2], q.shape[2])) == 1
        weights = torch.where(mask, scaled(q, k), -torch.inf).softmax(-1)
        return (weights if empty is None else weights.nan_to_num(empty)) @ v

    return causal_attention


def the_notebooks_own(q, k, v):
    T = q.shape[-2]
    weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), dim=-1)
    return weights.masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(), 0.0) @ v


def mended_along_queries(q, k, v):
    kept = scaled(q, k).softmax(-1).tril()
    return kept / kept.sum(dim=2, keepdim=True) @ v


def mended_without_keepdim(q, k, v):
    kept = scaled(q, k).softmax(-1).tril()
    return kept / kept.sum(-1) @ v


def softmax_of_softmax(q, k, v):
    hidden = torch.ones(q.shape[2], q.shape[2]).triu(1) == 1
    return F.softmax(scaled(q, k).softmax(-1).masked_fill(hidden, float("-inf")), dim=-1) @ v


def unmasked(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


def hunt_changing_query(q, k, v):
    q *= q.shape[-1] ** -0.5
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)


def mended_by_renormalising(q, k, v):
    weights = scaled(q, k).softmax(-1).tril()
    return (weights / weights.sum(-1, keepdim=True)) @ v


HUNT_WRONG = {
    the_notebooks_own: "the mask is applied after the softmax",
    hunting(masked_afterwards): "the mask is applied after the softmax",
    hunting(masked_afterwards_with_infinity): "applied after the softmax, with -inf",
    mended_along_queries: "along the wrong axis",
    mended_without_keepdim: "along the wrong axis",
    softmax_of_softmax: "applied twice",
    hunting(lambda q, k, mask: masked_afterwards(q, k, mask).softmax(-1)): "applied twice",
    seeing(lambda square: square.tril(-1)): "may not attend to itself",
    seeing(lambda square: square.tril(-1), None): "may not attend to itself",
    seeing(lambda square: square.tril(1)): "also sees the next one",
    seeing(torch.triu): "sees itself and the future",
    seeing(lambda square: square.triu(1)): "the future only",
    hunting(mask_filled_where_true): "the future only",
    unmasked: "nothing is masked",
    hunting(mask_forgotten): "nothing is masked",
    seeing(lambda square: torch.eye(len(square))): "sees only itself",
    hunting(unscaled): "not divided by sqrt(D)",
    hunting(scaled_twice): "divided by D, or twice",
    hunting(divided_by_inverse_root): "multiplied by sqrt(D)",
    hunting(scaled_by_all_heads): "all heads' width",
    hunting(over_queries): "over the queries (dim=-2)",
    hunting(masked_with_zero): "become 0, or a number near 0",
    hunting(minus_forgotten): "the minus is missing",
    hunting(mask_added): "added to the scores as 1 and 0",
    hunting(infinity_times_mask): "0 times -inf is NaN",
    hunting(not_low_enough): "not low enough",
    hunting(raw_scores): "without a softmax",
    hunting(exponentials): "not divided by their sum",
    hunting(naive_softmax): "exp overflows",
    hunting(without_gradient): "no gradient gets through",
    hunt_changing_query: "an input is changed in place",
    mended_by_renormalising: "divided by their sum",
    hunting(exponentials_masked): "divided by their sum",
    hunting(largest_of_all): "the largest score of all",
    hunting(minus_where_allowed): "the future only",
    hunting(ten_thousand_added): "not low enough",
    hunting(zero_then_cleared): "become 0, or a number near 0",
}


def mended_by_order(q, k, v):
    T = q.shape[-2]
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    return scores.masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(), -math.inf).softmax(dim=-1) @ v


def mended_by_adding_infinity(q, k, v):
    T = q.shape[-2]
    return (scaled(q, k) + torch.full((T, T), -torch.inf, dtype=q.dtype).triu(1)).softmax(-1) @ v


def causal_fused(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def causal_token_by_token(q, k, v):
    rows = [
        F.scaled_dot_product_attention(q[:, :, t : t + 1], k[:, :, : t + 1], v[:, :, : t + 1])
        for t in range(q.shape[2])
    ]
    return torch.cat(rows, dim=2)


# Splitting and merging.


def split_viewed(x, n_heads):
    B, T, C = x.shape
    return x.view(B, n_heads, T, C // n_heads)


def split_after_transpose(x, n_heads):
    B, T, C = x.shape
    return x.transpose(1, 2).reshape(B, n_heads, T, C // n_heads)


def split_interleaved(x, n_heads):
    return torch.stack([x[..., h::n_heads] for h in range(n_heads)], dim=1)


def split_with_width(x, n_heads):
    return x.view(x.size(0), x.size(1), x.size(2) // n_heads, n_heads).transpose(1, 2)


def split_untransposed(x, n_heads):
    return torch.stack(x.split(x.size(-1) // n_heads, dim=-1), dim=2)


def split_heads_first(x, n_heads):
    return torch.stack(torch.chunk(x, n_heads, dim=2))


def split_keys_transposed(x, n_heads):
    return torch.stack(x.chunk(n_heads, -1), 1).transpose(2, 3)


def split_into_batch(x, n_heads):
    return torch.cat([each for text in x for each in text[None].chunk(n_heads, -1)])


def split_into_batch_viewed(x, n_heads):
    return x.view(x.size(0) * n_heads, -1, x.size(2) // n_heads)


def split_tokens(x, n_heads):
    B, T, C = x.shape
    return x.view(B, n_heads, T // n_heads, C)


def split_whole_width(x, n_heads):
    return torch.stack([x] * n_heads, dim=1)


def split_tuple(x, n_heads):
    return x.split(x.size(-1) // n_heads, dim=-1)


SPLIT_WRONG = {
    split_viewed: "viewed or reshaped as (B, H, T, D) at once",
    split_after_transpose: "viewed or reshaped as (B, H, T, D) at once",
    split_interleaved: "interleaved",
    split_with_width: "taken as the width",
    split_untransposed: "behind the tokens: (B, T, H, D)",
    split_heads_first: "in front of the batch",
    split_keys_transposed: "(B, H, D, T)",
    split_into_batch: "batch and heads share one axis",
    split_into_batch_viewed: "batch and heads share one axis",
    split_tokens: "the tokens are shared out",
    split_whole_width: "every head gets the whole width",
    split_tuple: "a tuple or list",
}


def split_by_chunks(x, n_heads):
    return torch.stack(x.chunk(n_heads, dim=-1), dim=1)


def split_by_loops(x, n_heads):
    D = x.shape[-1] // n_heads
    out = torch.empty(x.shape[0], n_heads, x.shape[1], D, dtype=x.dtype)
    for h in range(n_heads):
        out[:, h] = x[:, :, h * D : (h + 1) * D]
    return out


def split_by_permuting(x, n_heads):
    return x.reshape(*x.shape[:2], n_heads, -1).permute(0, 2, 1, 3).contiguous()


def split_by_the_other_way(x, n_heads):
    return x.mT.unflatten(1, (n_heads, -1)).mT


def split_by_product(x, n_heads):
    D = x.shape[-1] // n_heads
    cut = torch.eye(x.shape[-1], dtype=x.dtype).view(x.shape[-1], n_heads, D)
    return torch.einsum("btc,chd->bhtd", x, cut)


def merge_viewed(x):
    B, H, T, D = x.shape
    return x.view(B, T, H * D)


def merge_wrong_transpose(x):
    B, H, T, D = x.shape
    return x.mT.reshape(B, T, H * D)


def merge_view_after_transpose(x):
    B, H, T, D = x.shape
    return x.permute(0, 2, 1, 3).view(B, T, H * D)


def merge_interleaved(x):
    return torch.stack(x.unbind(1), dim=-1).flatten(-2)


def merge_unmerged(x):
    return torch.permute(x, (0, 2, 1, 3))


def merge_along_tokens(x):
    return torch.cat(x.unbind(1), dim=1)


def merge_tokens(x):
    return x.reshape(x.size(0), x.size(1), -1)


def merge_turned(x):
    return torch.cat(x.mT.unbind(1), dim=1)


def merge_tokens_first(x):
    return torch.cat(x.unbind(1), dim=-1).transpose(0, 1)


def merge_batch(x):
    return torch.cat(x.unbind(0), dim=-1)


def merge_mean(x):
    return x.sum(1) / x.size(1)


def merge_sum(x):
    return torch.einsum("bhtd->btd", x)


MERGE_WRONG = {
    merge_viewed: "viewed or reshaped as (B, T, C) at once",
    merge_wrong_transpose: "viewed or reshaped as (B, T, C) at once",
    merge_view_after_transpose: "view cannot follow a transpose",
    merge_interleaved: "interleaved",
    merge_unmerged: "not merged: the result is (B, T, H, D)",
    merge_along_tokens: "joined along the tokens",
    merge_tokens: "the tokens are joined",
    merge_turned: "tokens and width have changed places",
    merge_tokens_first: "batch and tokens have changed places",
    merge_batch: "the batch is merged",
    merge_mean: "averaged or added up",
    merge_sum: "averaged or added up",
}


def merge_by_cat(x):
    return torch.cat(list(x.unbind(1)), dim=-1)


def merge_by_view(x):
    B, H, T, D = x.size()
    return x.transpose(1, 2).contiguous().view(B, T, H * D)


def merge_by_loops(x):
    B, H, T, D = x.shape
    out = x.new_zeros(B, T, H * D)
    for h in range(H):
        out[:, :, h * D : h * D + D] = x[:, h]
    return out


def merge_by_permuting(x):
    return x.permute(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


# The module. Each wrong class changes one method of the right one.


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.H, self.D = config.n_heads, config.n_embd // config.n_heads
        self.build(config.n_embd)
        self.attention_dropout, self.output_dropout = nn.Dropout(config.dropout), nn.Dropout(config.dropout)
        self.register_buffer("seen", torch.tril(torch.ones(config.max_seq_length, config.max_seq_length)))

    def build(self, C):
        self.qkv = nn.Linear(C, 3 * C)
        self.proj = nn.Linear(C, C)

    def cut(self, x):
        B, T = x.shape[:2]
        return self.qkv(x).view(B, T, 3, self.H, self.D).permute(2, 0, 3, 1, 4)

    def score(self, q, k):
        return torch.einsum("bhtd,bhsd->bhts", q, k) / math.sqrt(self.D)

    def weigh(self, scores):
        T = scores.shape[-1]
        return torch.softmax(scores.masked_fill(self.seen[:T, :T] == 0, float("-inf")), dim=-1)

    def merge(self, y):
        B, H, T, D = y.shape
        return y.transpose(1, 2).contiguous().view(B, T, H * D)

    def end(self, y, x):
        return self.output_dropout(self.proj(y))

    def forward(self, x):
        q, k, v = self.cut(x)
        weights = self.attention_dropout(self.weigh(self.score(q, k)))
        return self.end(self.merge(weights @ v), x)


def varied(**methods):
    """Make the class above with other methods."""
    return type("MultiHeadAttention", (Attention,), methods)


def weighed_by(see, empty=None):
    """Make the method that masks by a matrix cut out of a square of ones."""

    def weigh(self, scores):
        mask = see(torch.ones(scores.shape[-2:])) == 1
        weights = torch.where(mask, scores, -torch.inf).softmax(-1)
        return weights if empty is None else weights.nan_to_num(empty)

    return weigh


def with_mode(**attributes):
    """Make the class above with attributes set after its construction."""

    class MultiHeadAttention(Attention):
        def __init__(self, config):
            super().__init__(config)
            for name, make in attributes.items():
                setattr(self, name, make(config))

    return MultiHeadAttention


class Always(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        return F.dropout(x, self.p)


class Kept(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        return F.dropout(x, 1 - self.p if self.p else 0.0, self.training)


def cut_in_order(*order):
    return lambda self, x: [Attention.cut(self, x)[i] for i in order]


def cut_by_head(self, x):
    B, T = x.shape[:2]
    return self.qkv(x).view(B, T, self.H, 3 * self.D).transpose(1, 2).chunk(3, dim=-1)


def cut_scrambled(self, x):
    B, T, C = x.shape
    return [part.reshape(B, self.H, T, self.D) for part in self.qkv(x).split(C, dim=2)]


def cut_into_one(self, x):
    return [part.unsqueeze(1) for part in self.qkv(x).chunk(3, dim=-1)]


def cut_by_width(self, x):
    B, T = x.shape[:2]
    return [part.view(B, T, self.D, self.H).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1)]


def cut_x(self, x):
    return [x.view(*x.shape[:2], self.H, self.D).transpose(1, 2)] * 3


def score_by(divisor):
    return lambda self, q, k: q @ k.mT / divisor(self.config)


def score_of_one_head(self, q, k):
    return q @ k.mT / math.sqrt(q.shape[-1])


def fused(dropout_p):
    def forward(self, x):
        y = F.scaled_dot_product_attention(*self.cut(x), dropout_p=dropout_p(self), is_causal=True)
        return self.end(self.merge(y), x)

    return forward


def fused_and_scaled(self, x):
    q, k, v = self.cut(x)
    y = F.scaled_dot_product_attention(
        q / math.sqrt(self.D), k, v, None, self.config.dropout * self.training, is_causal=True
    )
    return self.end(self.merge(y), x)


def build_without(**bias):
    def build(self, C):
        self.qkv = nn.Linear(C, 3 * C, bias=bias.get("qkv", True))
        self.proj = nn.Linear(C, C, bias=bias.get("proj", True))

    return build


def cut_in_threes(self, x):
    B, T, C = x.shape
    return [part.view(B, T, self.H, self.D).transpose(1, 2) for part in self.qkv(x).view(B, T, C, 3).unbind(-1)]


def cut_every_other(self, x):
    B, T = x.shape[:2]
    return self.qkv(x).view(B, T, 3, self.D, self.H).permute(2, 0, 4, 1, 3)


def cut_without_transpose(self, x):
    return self.qkv(x).view(*x.shape[:2], 3, self.H, self.D).unbind(2)


def renormalised(self, scores):
    weights = scores.softmax(-1).tril()
    return weights / weights.sum(-1, keepdim=True)


def weighed_over_ten_thousand(self, scores):
    T = scores.shape[-1]
    return scores.masked_fill(self.seen[:T, :T] == 0, -1e4).softmax(-1)


MODULE_WRONG = {
    varied(score=score_by(lambda config: 1)): "not divided by sqrt(D)",
    varied(score=score_by(lambda config: config.n_embd**0.5)): "divided by sqrt(C)",
    varied(score=score_by(lambda config: config.n_embd // config.n_heads)): "divided by D, or twice",
    varied(forward=fused_and_scaled): "divided by D, or twice",
    varied(score=score_by(lambda config: (config.n_embd // config.n_heads) ** -0.5)): "multiplied by sqrt(D)",
    varied(score=score_by(lambda config: math.sqrt(config.n_heads))): "root of the number of heads",
    varied(weigh=lambda self, scores: scores.softmax(dim=-1)): "nothing is masked",
    varied(weigh=weighed_by(lambda square: square.tril(-1))): "may not attend to itself",
    varied(weigh=weighed_by(lambda square: square.tril(-1), 0.0)): "may not attend to itself",
    varied(weigh=weighed_by(lambda square: square.tril(1))): "also sees the next one",
    varied(weigh=weighed_by(torch.triu)): "the mask is transposed",
    varied(weigh=weighed_by(lambda square: square.triu(1))): "the mask is turned round",
    varied(weigh=weighed_by(lambda square: 1 - square.tril(), 0.0)): "the mask is turned round",
    varied(weigh=lambda self, scores: scores.softmax(-1).tril()): "applied after the softmax",
    varied(weigh=lambda self, scores: scores.tril().softmax(-1)): "forbidden scores become 0",
    varied(weigh=lambda self, scores: (scores + scores.new_full(scores.shape, -1e9).triu(1)).softmax(-2)): "dim=-2",
    varied(weigh=lambda self, scores: (scores + torch.full_like(scores, -torch.inf).triu(1)).softmax(1)): "dim=1",
    varied(cut=cut_in_order(1, 0, 2)): "another order than",
    varied(cut=cut_in_order(2, 1, 0)): "another order than",
    varied(cut=cut_in_order(1, 2, 0)): "another order than",
    varied(cut=cut_by_head): "head by head",
    varied(cut=cut_scrambled): "splitting mixes the tokens",
    varied(merge=lambda self, y: y.reshape(len(y), y.shape[2], -1)): "merging mixes the tokens",
    varied(cut=cut_into_one, score=score_of_one_head): "n_heads is not used",
    varied(cut=cut_by_width, score=score_of_one_head): "taken as the width of a head",
    varied(cut=cut_in_order(0, 0, 0)): "one projection serves",
    varied(cut=cut_x): "qkv is not used",
    varied(end=lambda self, y, x: self.output_dropout(y)): "proj is not used",
    varied(build=build_without(qkv=False)): "qkv has no bias",
    varied(build=build_without(proj=False)): "proj has no bias",
    varied(end=lambda self, y, x: x + self.output_dropout(self.proj(y))): "x is added",
    with_mode(attention_dropout=lambda config: nn.Identity()): "dropout on the attention weights is missing",
    with_mode(output_dropout=lambda config: nn.Identity()): "dropout after proj is missing",
    varied(end=lambda self, y, x: self.proj(self.output_dropout(y))): "before proj",
    varied(forward=fused(lambda self: self.config.dropout)): "active in eval mode",
    with_mode(output_dropout=lambda config: Always(config.dropout)): "active in eval mode",
    with_mode(**dict.fromkeys(("attention_dropout", "output_dropout"), lambda config: Always(config.dropout))): (
        "active in eval mode"
    ),
    with_mode(**dict.fromkeys(("attention_dropout", "output_dropout"), lambda config: nn.Dropout())): "of its own",
    with_mode(**dict.fromkeys(("attention_dropout", "output_dropout"), lambda config: nn.Dropout(0.1))): "of its own",
    varied(weigh=renormalised): "divided by their sum",
    varied(weigh=weighed_over_ten_thousand): "not low enough",
    varied(cut=cut_in_threes): "cut in threes",
    varied(cut=cut_every_other): "the heads are interleaved",
    varied(cut=cut_without_transpose, merge=lambda self, y: y.flatten(2), weigh=weighed_by(torch.tril)): (
        "tokens and heads have not changed places"
    ),
    with_mode(output_dropout=lambda config: nn.Dropout()): "of its own",
    with_mode(attention_dropout=lambda config: nn.Dropout()): "of its own",
    with_mode(**dict.fromkeys(("attention_dropout", "output_dropout"), lambda config: Kept(config.dropout))): "to keep",
    varied(end=lambda self, y, x: (self.output_dropout(self.proj(y)), None)): "a pair comes back",
}


class ByHeads(Attention):
    """Loop over the heads, with slices of the weights."""

    def forward(self, x):
        C, D, heads = x.shape[-1], self.D, []
        for h in range(self.H):
            rows = [slice(part * C + h * D, part * C + (h + 1) * D) for part in range(3)]
            q, k, v = (F.linear(x, self.qkv.weight[row], self.qkv.bias[row]) for row in rows)
            scores = (q * D**-0.5) @ k.transpose(1, 2)
            weights = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -1e9).softmax(-1)
            heads.append(F.dropout(weights, self.config.dropout, self.training) @ v)
        return F.dropout(
            F.linear(torch.cat(heads, -1), self.proj.weight, self.proj.bias), self.config.dropout, self.training
        )


class ByBatchedProducts(nn.Module):
    """Fold the heads into the batch, and use baddbmm; weights start elsewhere, and one dropout serves twice."""

    def __init__(self, config: object, layer: int = 0):
        super().__init__()
        self.qkv, self.proj = (nn.Linear(config.n_embd, n * config.n_embd) for n in (3, 1))
        nn.init.normal_(self.qkv.weight, std=0.02)
        self.dropout, self.n_heads = nn.Dropout(config.dropout), config.n_heads

    def forward(self, x, cache=None):
        B, T, C = x.shape
        D = C // self.n_heads
        q, k, v = (
            part.reshape(B, T, self.n_heads, D).transpose(1, 2).reshape(-1, T, D)
            for part in self.qkv(x).split(C, dim=2)
        )
        bias = torch.full((T, T), torch.finfo(x.dtype).min).triu(1)
        scores = torch.baddbmm(bias.expand(len(q), T, T), q, k.mT, alpha=1 / math.sqrt(D))
        y = torch.bmm(self.dropout(F.softmax(scores, dim=2)), v).view(B, self.n_heads, T, D)
        return self.dropout(self.proj(y.permute(0, 2, 1, 3).flatten(2)))


class InFloat64(Attention):
    def forward(self, x):
        q, k, v = (part.double() for part in self.cut(x))
        return self.end(self.merge((self.attention_dropout(self.weigh(self.score(q, k))) @ v).float()), x)


class ByTorchsOwn(Attention):
    """Hand the weights to torch's own function for multi-head attention."""

    def forward(self, x):
        T, C = x.shape[1:]
        y = F.multi_head_attention_forward(
            *(x.transpose(0, 1),) * 3,
            C,
            self.H,
            self.qkv.weight,
            self.qkv.bias,
            None,
            None,
            False,
            self.config.dropout,
            self.proj.weight,
            self.proj.bias,
            training=self.training,
            need_weights=False,
            attn_mask=torch.ones(T, T).triu(1).bool(),
        )[0]
        return self.output_dropout(y.transpose(0, 1))


WRONG = {
    "causal_mask": MASK_WRONG,
    "attention_weights": WEIGHTS_WRONG,
    "scaled_dot_product_attention": ATTENTION_WRONG,
    "causal_attention": HUNT_WRONG,
    "split_heads": SPLIT_WRONG,
    "merge_heads": MERGE_WRONG,
    "MultiHeadAttention": MODULE_WRONG,
}
RIGHT = {
    "causal_mask": [
        mask_by_comparison,
        mask_by_loops,
        mask_cut_from_square,
        mask_by_inversion,
        mask_by_cumulation,
        mask_of_list,
    ],
    "attention_weights": [
        weights_by_where,
        weights_by_loops,
        weights_in_float64,
        weights_with_billions,
        weights_by_fused_call,
        weights_with_nan_replaced,
        weights_of_empty_rows_apart,
        weights_by_log_sum_exp,
        weights_with_a_tiny_sum,
    ],
    "scaled_dot_product_attention": [
        F.scaled_dot_product_attention,
        attention_fused,
        attention_with_mask_by_hand,
        attention_head_by_head,
        attending(weights_in_float64),
        attending(weights_with_billions),
        attending(weights_by_log_sum_exp),
        attending(weights_with_nan_replaced),
    ],
    "causal_attention": [
        mended_by_order,
        mended_by_adding_infinity,
        causal_fused,
        causal_token_by_token,
        hunting(weights_by_loops),
        hunting(weights_with_billions),
        hunting(nan_where_nothing_is_allowed),
    ],
    "split_heads": [
        split_by_chunks,
        split_by_loops,
        split_by_permuting,
        split_by_the_other_way,
        split_by_product,
    ],
    "merge_heads": [merge_by_cat, merge_by_view, merge_by_loops, merge_by_permuting],
    "MultiHeadAttention": [
        Attention,
        varied(forward=fused(lambda self: self.config.dropout if self.training else 0.0)),
        ByHeads,
        ByBatchedProducts,
        InFloat64,
        ByTorchsOwn,
    ],
}


def like(q):
    return q.clone()


def module_of(forward):
    return varied(forward=forward)


STUBS = {
    "causal_mask": [
        lambda T, S: None,
        lambda T, S: torch.zeros(T, S).bool(),
        lambda T, S: torch.rand(T, S) < 0.5,
        lambda T, S: [[j <= S - T + i for j in range(S)] for i in range(T)],
        lambda T, S: mask_by_comparison(T, S).numpy(),
        lambda T, S: mask_by_comparison(T, S).to(torch.int8),
        lambda T, S: mask_by_comparison(3, 3),
        lambda T, S: T <= S,
        lambda T: torch.ones(T, T).tril().bool(),
    ],
    "attention_weights": [
        lambda q, k, mask=None: None,
        lambda q, k, mask=None: like(q),
        lambda q, k, mask=None: torch.zeros(*q.shape[:3], k.shape[2], dtype=q.dtype),
        lambda q, k, mask=None: torch.full((*q.shape[:3], k.shape[2]), 1 / k.shape[2], dtype=q.dtype),
        lambda q, k, mask=None: torch.rand_like(q @ k.mT).softmax(-1),
        lambda q, k, mask=None: weights_by_where(q, k, mask).double(),
        lambda q, k, mask=None: weights_by_where(q, k, mask).tolist(),
        lambda q, k: weights_by_where(q, k),
        lambda q, k, mask: weights_by_where(q, k, mask),
        lambda q, k, mask=None: weights_by_where(q[:1], k[:1], mask).expand(len(q), -1, -1, -1),
        lambda q, k, mask=None: weights_by_where(q[:, :1], k[:, :1], mask).expand(-1, q.shape[1], -1, -1),
        lambda q, k, mask=None: weights_by_where(q, k, mask)[0],
        lambda q, k, mask=None: F.dropout(weights_by_where(q, k, mask), 0.1),
    ],
    "scaled_dot_product_attention": [
        lambda q, k, v, mask=None, dropout_p=0.0: None,
        lambda q, k, v, mask=None, dropout_p=0.0: like(q),
        lambda q, k, v, mask=None, dropout_p=0.0: torch.zeros_like(q),
        lambda q, k, v, mask=None, dropout_p=0.0: torch.randn_like(q),
        lambda q, k, v, mask=None, dropout_p=0.0: v.mean(2, keepdim=True).expand_as(q),
        lambda q, k, v, mask=None: attention_fused(q, k, v, mask),
        lambda q, k, v, mask=None, dropout_p=0.0: attention_fused(q, k, v, mask, dropout_p).double(),
        lambda q, k, v, mask=None, dropout_p=0.0: attention_fused(q, k, v, mask, dropout_p).transpose(1, 2),
        lambda q, k, v, mask=None, dropout_p=0.0: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        lambda q, k, v, mask=None, dropout_p=0.0: nn.Dropout(dropout_p).eval()(right_weights(q, k, mask)) @ v,
        lambda q, k, v, mask=None, dropout_p=0.0: F.dropout1d((right_weights(q, k, mask) @ v)[0], dropout_p)[None],
        lambda q, k, v, mask=None, dropout_p=0.0: F.dropout(right_weights(q, k, mask)[:, :1], dropout_p) @ v,
        lambda q, k, v, mask=None, dropout_p=0.0: F.dropout2d(right_weights(q, k, mask), dropout_p) @ v,
        lambda q, k, v, mask=None, dropout_p=0.0: (
            right_weights(q, k, mask) * F.dropout(torch.ones(k.shape[2], dtype=q.dtype), dropout_p) @ v
        ),
    ],
    "causal_attention": [
        lambda q, k, v: None,
        lambda q, k, v: q,
        lambda q, k, v: torch.zeros_like(v),
        lambda q, k, v: torch.randn_like(v),
        lambda q, k, v: v.cumsum(2) / torch.arange(1, v.shape[2] + 1)[:, None],
        lambda q, k, v: causal_fused(q, k, v).float(),
        lambda q, k, v: causal_fused(q, q, v),
        lambda q, k, v: F.dropout(causal_fused(q, k, v), 0.1),
    ],
    "split_heads": [
        lambda x, n_heads: None,
        lambda x, n_heads: x,
        lambda x, n_heads: torch.zeros(len(x), n_heads, x.shape[1], x.shape[2] // n_heads, dtype=x.dtype),
        lambda x, n_heads: torch.randn(len(x), n_heads, x.shape[1], x.shape[2] // n_heads, dtype=x.dtype),
        lambda x, n_heads: split_by_chunks(x, n_heads).flip(1),
        lambda x, n_heads: split_by_chunks(x, n_heads).detach(),
        lambda x, n_heads: split_by_chunks(x, 2),
        lambda x, n_heads: split_by_chunks(x, n_heads).float(),
    ],
    "merge_heads": [
        lambda x: None,
        lambda x: x,
        lambda x: torch.zeros(len(x), x.shape[2], x.shape[1] * x.shape[3], dtype=x.dtype),
        lambda x: torch.cat(x.flip(1).unbind(1), -1),
        lambda x: merge_by_cat(x).detach(),
        lambda x: merge_by_cat(x).float(),
        lambda x: merge_by_cat(x)[0],
        lambda x: list(merge_by_cat(x)),
    ],
    "MultiHeadAttention": [
        module_of(lambda self, x: None),
        module_of(lambda self, x: x),
        module_of(lambda self, x: torch.zeros_like(x)),
        module_of(lambda self, x: torch.randn_like(x)),
        module_of(lambda self, x: self.proj(x)),
        module_of(lambda self, x: Attention.forward(self, x).double()),
        module_of(lambda self, x: (Attention.forward(self, x), None)),
        module_of(lambda self, x: Attention.forward(self, x.detach())),
        module_of(lambda self, x: Attention.forward(self, x[:1]).expand_as(x)),
        lambda config: nn.Identity(),
        lambda config: nn.Linear(config.n_embd, config.n_embd),
        lambda config: lambda x: x,
    ],
}


@pytest.mark.parametrize(("exercise", "candidate", "words"), cases(WRONG))
def test_a_mistake_is_rejected_and_named_first(exercise, candidate, words):
    # Two of the twenty seeds each, others for others: all of them would take minutes.
    assert_named_first(exercise, candidate, words, SEEDS[len(words) % 10 :: 10])


@pytest.mark.parametrize("name", WRONG)
def test_every_mistake_of_the_catalogue_has_a_wrong_answer_here(name):
    assert_all_told(checks.exercise(name), WRONG[name])


@pytest.mark.parametrize(("exercise", "candidate"), cases(RIGHT))
def test_every_right_style_is_accepted(exercise, candidate):
    random = exercise.name in ("scaled_dot_product_attention", "MultiHeadAttention")
    assert_accepted(exercise, candidate, SEEDS[:10] if random else SEEDS[:3])


@pytest.mark.parametrize(("exercise", "candidate"), cases(STUBS))
def test_nothing_else_passes(exercise, candidate):
    assert_rejected(exercise, candidate, [0])


@pytest.mark.parametrize("name", WRONG)
def test_the_number_of_threads_changes_nothing(name):
    assert_same_on_two_threads(checks.exercise(name), RIGHT[name], dict(list(WRONG[name].items())[::4]))


@pytest.mark.parametrize("name", WRONG)
def test_the_reference_is_recognised(name):
    assert checks.exercise(name).diagnose(checks.give(name)).state == "given"


# What the messages say.


@pytest.mark.parametrize(
    ("name", "candidate", "words"),
    [
        ("causal_mask", float_of_first, ("taken for the first T", "the mask holds floats")),
        ("attention_weights", unscaled_with_nan, ("not divided by sqrt(D)", "NaN, not zeros")),
        (
            "scaled_dot_product_attention",
            lambda q, k, v, mask=None, dropout_p=0.0: nan_where_nothing_is_allowed(q, k, mask) @ v,
            ("NaN, not zeros", "dropout is missing"),
        ),
        (
            "MultiHeadAttention",
            with_mode(**dict.fromkeys(("attention_dropout", "output_dropout"), lambda config: nn.Identity())),
            ("dropout on the attention weights is missing", "dropout after proj is missing"),
        ),
        (
            "MultiHeadAttention",
            varied(build=build_without(qkv=False), weigh=lambda self, scores: scores.softmax(-1)),
            ("nothing is masked", "qkv has no bias"),
        ),
        ("MultiHeadAttention", varied(build=build_without(qkv=False, proj=False)), ("qkv has no bias", "proj has no")),
    ],
)
def test_two_mistakes_together_are_both_named(name, candidate, words):
    verdict = checks.exercise(name).diagnose(candidate)
    assert len(verdict.mistakes) == 2, verdict.text
    assert all(word in mistake for word, mistake in zip(words, verdict.mistakes, strict=True)), verdict.text


def test_other_names_of_layers_are_told():
    class MultiHeadAttention(Attention):
        def build(self, C):
            self.c_attn, self.c_proj = nn.Linear(C, 3 * C), nn.Linear(C, C)

        def forward(self, x):
            return x

    text = checks.MultiHeadAttention.diagnose(MultiHeadAttention).text
    assert "missing: proj.bias, proj.weight, qkv.bias, qkv.weight" in text
    assert "not expected: c_attn.bias, c_attn.weight, c_proj.bias, c_proj.weight" in text


def test_a_mask_kept_from_a_shorter_text_is_told():
    class MultiHeadAttention(Attention):
        def weigh(self, scores):
            T = scores.shape[-1]
            if not hasattr(self, "kept"):
                self.kept = torch.ones(T, T).tril()
            return scores.masked_fill(self.kept[:T, :T] == 0, -torch.inf).softmax(-1)

    assert "after a short one as before it" in checks.MultiHeadAttention.diagnose(MultiHeadAttention).text


def test_a_mask_made_anew_for_a_longer_text_is_right():
    class MultiHeadAttention(Attention):
        def weigh(self, scores):
            T = scores.shape[-1]
            if getattr(self, "kept", torch.ones(0)).shape[0] < T:
                self.kept = torch.ones(T, T).tril()
            return scores.masked_fill(self.kept[:T, :T] == 0, -torch.inf).softmax(-1)

    assert_accepted(checks.MultiHeadAttention, MultiHeadAttention, [0])


def test_merging_must_take_what_split_heads_returns():
    def merge_heads(x):
        B, H, T, D = x.shape
        if not x.is_contiguous():
            return x.transpose(1, 2).view(B, T, H * D).flip(-1)
        return x.transpose(1, 2).reshape(B, T, H * D)

    assert "however it lies in memory" in checks.merge_heads.diagnose(merge_heads).text


def test_the_mask_and_the_weights_are_drawn_where_they_are_wrong():
    assert "<svg" in checks.causal_mask.diagnose(one_too_many).picture
    assert "<svg" in checks.attention_weights.diagnose(mask_inverted).picture
    assert "nan" in checks.attention_weights.diagnose(nan_where_nothing_is_allowed).picture


def test_the_bug_hunts_broken_version_is_told_and_its_reference_mends_it():
    q, k, v = torch.randn(3, 2, 2, 5, 4)
    causal_attention = checks.exercise("causal_attention").reference
    assert not torch.allclose(the_notebooks_own(q, k, v), causal_attention(q, k, v), atol=1e-3)
    torch.testing.assert_close(mended_by_order(q, k, v), causal_attention(q, k, v))
    # On ordinary inputs this one cannot be told from a right answer: only the extreme probe finds it out.
    torch.testing.assert_close(mended_by_renormalising(q, k, v), causal_attention(q, k, v))
