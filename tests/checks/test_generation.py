"""The checks of 08_generation: mistakes in other words than the catalogue's, right answers in many styles, stubs."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import l1_ref
from l1_ref import checks
from l1_ref.checks.draws import EDGE, before_heat
from tests.check_cases import (
    SEEDS,
    assert_accepted,
    assert_all_told,
    assert_named_first,
    assert_rejected,
    assert_same_on_two_threads,
    cases,
)

INF = float("inf")


def pythons(logits):
    """Return the id of the largest score of each row, by Python's max."""
    return [max(range(len(row)), key=row.__getitem__) for row in logits.tolist()]


# greedy


def scaled_in_place(logits):
    logits.sub_(logits.mean())
    return torch.max(logits, dim=1, keepdim=True).indices


def by_gumbel(logits):
    noise = -torch.log(-torch.log(torch.rand_like(logits)))
    return (logits + noise).argmax(dim=1).unsqueeze(1)


def only_positive(logits):
    best = torch.zeros(len(logits), 1, dtype=torch.long)
    for b in range(len(logits)):
        for v in range(logits.shape[1]):
            if abs(logits[b, v]) > abs(logits[b, best[b, 0]]):
                best[b, 0] = v
    return best


def best_above_zero(logits):
    best = []
    for row in logits.tolist():
        top, place = 0.0, 0
        for i, score in enumerate(row):
            if score > top:
                top, place = score, i
        best.append([place])
    return torch.tensor(best)


GREEDY_WRONG = {
    best_above_zero: "begins with a best score of 0",
    lambda logits: logits.round().max(-1, keepdim=True).indices: "the scores are rounded",
    lambda logits: logits.long().argmax(1, keepdim=True): "the scores are rounded",
    lambda logits: logits.max(-1, keepdim=True).indices.byte(): "the ids are not int64",
    lambda logits: torch.tensor(pythons(logits)): "the axis is lost",
    lambda logits: logits.max(dim=-1).indices: "the axis is lost",
    lambda logits: torch.tensor([pythons(logits)]): "lie in a row",
    lambda logits: logits.max(0).indices: "along the batch (dim=0), not along",
    lambda logits: logits.max(0, keepdim=True).indices: "along the batch (dim=0), not along",
    lambda logits: torch.tensor(int(np.argmax(logits.numpy()))): "over the whole batch",
    lambda logits: torch.tensor([[int(np.argmax(logits.numpy()))]]): "over the whole batch",
    lambda logits: logits.max(-1, keepdim=True).values: "a score or a probability comes back",
    lambda logits: F.softmax(logits, -1).max(-1).values: "a score or a probability comes back",
    lambda logits: torch.max(logits, -1, keepdim=True): "a pair comes back",
    lambda logits: torch.sort(logits, -1).indices[:, :1]: "the least likely id",
    lambda logits: logits.argsort(-1)[:, [-2]]: "the second most likely",
    only_positive: "abs is taken",
    lambda logits: torch.tensor([[pythons(logits)[0]]]): "only one row is looked at",
    lambda logits: torch.tensor([[pythons(logits)[0]]] * len(logits)): "only one row is looked at",
    lambda logits: F.softmax(logits, dim=0).max(1, keepdim=True).indices: "softmax goes along the batch",
    lambda logits: logits[:, -1].max(0, keepdim=True).indices: "last token of the vocabulary",
    by_gumbel: "an id is drawn",
    lambda logits: torch.distributions.Categorical(logits=logits).sample()[:, None]: "an id is drawn",
    lambda logits: torch.eye(logits.shape[1], dtype=torch.long)[logits.argmax(1)]: "a row of zeros and a one",
    lambda logits: torch.tensor([[float(i)] for i in pythons(logits)]): "the ids are not int64",
    lambda logits: logits.argmax(1, keepdim=True).to(torch.int32): "the ids are not int64",
    lambda logits: [[i] for i in pythons(logits)]: "a list comes back",
    lambda logits: (logits.exp() / logits.exp().sum(1, keepdim=True)).argmax(1, keepdim=True): "exp overflows",
    scaled_in_place: "changed in place",
}
GREEDY_RIGHT = [
    lambda logits: torch.tensor(pythons(logits)).unsqueeze(1),
    lambda logits: logits.topk(1).indices,
    lambda logits: torch.from_numpy(logits.numpy().argmax(1))[:, None],
    lambda logits: F.softmax(logits, dim=-1).argmax(-1, keepdim=True),
    lambda logits: logits.sort(dim=1, descending=True)[1][:, 0:1],
    lambda logits: torch.stack([row.argmax() for row in logits]).view(-1, 1),
    lambda logits: torch.cat([row.argmax()[None, None] for row in logits], 0),
]
GREEDY_STUBS = [
    lambda logits: None,
    lambda logits: ...,
    lambda logits: logits,
    lambda logits: torch.zeros(len(logits), 1, dtype=torch.long),
    lambda logits: torch.randint(logits.shape[1], (len(logits), 1)),
    lambda logits: torch.arange(len(logits))[:, None],
]

# apply_temperature


def divide_in_place(logits, temperature):
    return logits.div_(temperature)


def best_only(logits, temperature):
    out = logits.clone()
    i = out.argmax(1)
    out[torch.arange(len(out)), i] /= temperature
    return out


HEAT_WRONG = {
    lambda x, t: t * x: "multiplied",
    lambda x, t: x.clone(): "the temperature is ignored",
    lambda x, t: F.softmax(x, -1) / t: "probabilities are divided",
    lambda x, t: F.normalize(F.softmax(x, -1) / t, p=1, dim=-1): "probabilities are divided",
    lambda x, t: F.softmax(x / t, dim=-1): "softmax is applied after the division",
    lambda x, t: x.div(t).exp() / x.div(t).exp().sum(1, keepdim=True): "softmax is applied after the division",
    lambda x, t: torch.log(F.softmax(x / t, dim=-1)): "log_softmax is applied",
    lambda x, t: F.log_softmax(x, dim=-1) / t: "log_softmax is applied",
    lambda x, t: (x - x.max(-1, keepdim=True).values) / t: "the highest score is subtracted",
    lambda x, t: x / (t * t): "square of the temperature",
    lambda x, t: x / math.sqrt(t): "root of the temperature",
    lambda x, t: x - t: "added or subtracted",
    lambda x, t: x + t: "added or subtracted",
    lambda x, t: x.sign() * 0 + torch.pow(x, 1.0 / t): "to a power of the temperature",
    lambda x, t: F.softmax(x, -1) ** (1 / t): "to a power of the temperature",
    lambda x, t: torch.floor(x / t): "a whole one",
    lambda x, t: x / (t + 1): "1 + temperature",
    lambda x, t: x / t if t > 1 else x: "below 1 is ignored",
    lambda x, t: x / t if t < 1 else x: "above 1 is ignored",
    lambda x, t: x / (0.1 if t < 0.1 else t): "a low temperature is raised",
    lambda x, t: torch.div(x, max(t, 0.05)): "a low temperature is raised",
    lambda x, t: x / math.floor(t) if t >= 1 else x / t: "a whole number",
    lambda x, t: x / max(1, int(t)): "a whole number",
    lambda x, t: torch.nan_to_num(x).div(t): "-inf is replaced by a number",
    lambda x, t: (x / t).clamp(-1e4): "-inf is replaced by a number",
    best_only: "only the highest score",
    lambda x, t: x / -t: "the sign is turned",
    divide_in_place: "changed in place",
}
HEAT_RIGHT = [
    lambda x, t: torch.div(x, t),
    lambda x, t: x * (1.0 / t),
    lambda x, t: torch.tensor([[v / t for v in row] for row in x.tolist()]),
    lambda x, t: torch.from_numpy(x.numpy() / np.float32(t)),
    lambda x, t: x / max(t, 1e-8),
    lambda x, t: x if t == 1 else x / t,
    lambda x, t: x.clone().div_(t),
    lambda x, t: torch.stack([row / t for row in x]),
    lambda x, t: (x.T / t).T,
]
HEAT_STUBS = [
    lambda x, t: None,
    lambda x, t: torch.zeros_like(x),
    lambda x, t: torch.randn_like(x),
    lambda x, t: x / 0.7,
    lambda x, t: (x / t).double(),
    lambda x, t: (x / t)[:1],
]

# top_k_filter


def kept_k(x, k, low=-INF, keep=lambda v, kth: v >= kth, value=lambda v: v):
    """Filter by Python's own lists; each argument is a mistake."""
    rows = []
    for row in x.tolist():
        kth = sorted(row, reverse=True)[min(k, len(row)) - 1]
        rows.append([value(v) if keep(v, kth) else low for v in row])
    return torch.tensor(rows)


def k_scattered(x, k):
    """Keep k scores at their places, by scatter."""
    values, places = torch.topk(x, min(k, x.shape[-1]))
    return torch.full_like(x, -INF).scatter_(1, places, values)


def k_batchwide(x, k):
    out = torch.full_like(x, -INF).flatten()
    values, places = x.flatten().topk(min(k, x.numel()))
    out[places] = values
    return out.view_as(x)


def k_crashing(x, k):
    values, places = torch.topk(x, k, dim=-1)
    return torch.full_like(x, -INF).scatter(-1, places, values)


def k_crashing_index(x, k):
    limit = x.sort(-1, descending=True)[0][:, k - 1].unsqueeze(1)
    return torch.where(x < limit, torch.tensor(-INF), x)


def k_first_rows_limit(x, k):
    limit = x[0].sort(descending=True).values[min(k, x.shape[1]) - 1]
    return torch.where(x >= limit, x, -INF)


def k_first_rows_tokens(x, k):
    out = torch.full_like(x, -INF)
    keep = x[0].topk(min(k, x.shape[1])).indices
    out[:, keep] = x[:, keep]
    return out


def k_lost_axis(x, k):
    limit = torch.sort(x, descending=True).values[:, min(k, x.shape[1]) - 1]
    return x.masked_fill(x < limit, -INF)


def k_smallest(x, k):
    values, places = torch.topk(x, min(k, x.shape[-1]), largest=False)
    return torch.full_like(x, -INF).scatter(1, places, values)


def k_ascending(x, k):
    limit = x.sort(-1).values[:, min(k, x.shape[1]) - 1].unsqueeze(-1)
    return x.masked_fill(x < limit, -INF)


def k_by_abs(x, k):
    places = x.abs().topk(min(k, x.shape[-1])).indices
    return torch.full_like(x, -INF).scatter(1, places, x.gather(1, places))


def k_sorted(x, k):
    out = torch.sort(x, dim=1, descending=True)[0]
    out[:, k:] = -INF
    return out


def k_positions(x, k):
    out = x.clone()
    out[:, k:] = -INF
    return out


def k_everywhere(x, k):
    out = x.clone()
    out[:, x.argsort(1, descending=True)[:, k:].flatten()] = -INF
    return out


def k_in_place(x, k):
    limit = x.topk(min(k, x.shape[-1])).values[:, [-1]]
    x[x < limit] = -INF
    return x


def k_nan(x, k):
    mask = (x >= x.topk(min(k, x.shape[-1])).values[:, [-1]]).float()
    return x * mask + (1 - mask) * -INF


def k_capped(x, k):
    if k >= x.shape[1]:
        k = x.shape[1] - 1
    return k_scattered(x, k)


def k_above_the_next(x, k):
    """Keep what is above the first score that goes."""
    if k >= x.shape[1]:
        return x.clone()
    ranked = torch.sort(x, dim=1, descending=True)[0]
    return torch.where(x > ranked[:, k : k + 1], x, -INF)


def k_values(x, k):
    """Count equal scores once."""
    rows = []
    for row in x.tolist():
        kth = sorted(set(row), reverse=True)[:k][-1]
        rows.append([v if v >= kth else -INF for v in row])
    return torch.tensor(rows)


def k_in_any_row(x, k):
    kept = set(x.topk(min(k, x.shape[1])).values.flatten().tolist())
    return torch.tensor([[v if v in kept else -INF for v in row] for row in x.tolist()])


def k_order_for_rank(x, k):
    order = torch.sort(x, dim=1, descending=True).indices
    return torch.where(order < k, x, -INF)


def k_written_to_all(x, k):
    values, places = torch.topk(x, min(k, x.shape[1]))
    out = torch.full_like(x, -INF)
    out[:, places] = values
    return out


def k_kept_in_all(x, k):
    out = torch.full_like(x, -INF)
    places = x.topk(min(k, x.shape[1])).indices.flatten()
    out[:, places] = x[:, places]
    return out


TOP_K_WRONG = {
    k_above_the_next: "of those that tie with the k-th",
    k_values: "equal scores are counted once",
    k_in_any_row: "another row keeps one that equals it",
    k_order_for_rank: "taken for ranks",
    k_written_to_all: "is kept in all rows",
    k_kept_in_all: "is kept in all rows",
    lambda x, k: kept_k(x, k, keep=lambda v, kth: v <= kth): "turned round",
    lambda x, k: kept_k(x, k, keep=lambda v, kth: v > kth): "the k-th token is removed too",
    lambda x, k: kept_k(x, k + 1): "one token too many",
    lambda x, k: x.masked_fill(x < x.topk(k + 1).values[:, -1:], -INF): "one token too many",
    k_crashing: "a k above V stops",
    k_crashing_index: "a k above V stops",
    k_capped: "a k of V or more removes",
    k_batchwide: "of all rows together",
    k_first_rows_limit: "the k-th score of one row",
    k_first_rows_tokens: "the tokens of the first row",
    lambda x, k: torch.where(
        x >= x.sort(0, descending=True)[0][min(k, len(x)) - 1], x, -INF
    ): "along the batch (dim=0), not",
    k_lost_axis: "have lost an axis",
    k_smallest: "the k least likely tokens stay",
    k_ascending: "the k-th smallest score is the limit",
    lambda x, k: kept_k(x, 1): "only the likeliest token stays",
    lambda x, k: kept_k(x, k, keep=lambda v, kth: v == kth): "only the k-th token stays",
    k_by_abs: "abs is taken",
    lambda x, k: x.sort(-1, descending=True)[0][:, :k]: "only the k kept scores",
    k_sorted: "in the order of their size",
    k_positions: "the first k tokens of the vocabulary",
    k_everywhere: "what one row removes",
    lambda x, k: x.topk(min(k, x.shape[1])): "only the k kept scores",
    lambda x, k: kept_k(x, k, low=0.0): "become 0, not -inf",
    lambda x, k: torch.zeros_like(x).scatter(1, x.topk(min(k, x.shape[1])).indices, k_scattered(x, k).topk(
        min(k, x.shape[1])).values): "become 0, not -inf",
    lambda x, k: kept_k(x, k, low=-1e9): "a low number",
    lambda x, k: kept_k(x, k, low=-1e4): "a low number",
    lambda x, k: kept_k(x, k, low=torch.finfo(torch.float32).min): "a low number",
    lambda x, k: kept_k(x, k, low=INF): "become +inf",
    k_nan: "become NaN",
    lambda x, k: kept_k(x, k, low=math.nan): "become NaN",
    lambda x, k: kept_k(x, k, keep=lambda v, kth: v < kth): "turned round",
    lambda x, k: x + 0: "nothing is removed",
    lambda x, k: F.softmax(kept_k(x, k), -1): "chances come back",
    lambda x, k: kept_k(F.softmax(x, -1), k): "chances come back",
    lambda x, k: kept_k(F.softmax(x, -1), k, low=0.0): "chances come back",
    lambda x, k: kept_k(x, k).log_softmax(1): "the scores are shifted",
    lambda x, k: x >= kept_k(x, k).masked_fill(kept_k(x, k) == -INF, INF).amin(1, keepdim=True): "a mask comes back",
    lambda x, k: kept_k(x, k, value=lambda v: 0.0): "a mask comes back",
    lambda x, k: x.sort(-1, descending=True)[1][:, :k]: "ids come back",
    k_in_place: "changed in place",
}  # fmt: skip


def k_by_rows(x, k):
    out = x.clone()
    for row in out:
        row[row.argsort(descending=True)[k:]] = -INF
    return out


def k_by_ranks(x, k):
    return x.masked_fill(x.argsort(1, descending=True).argsort(1) >= k, -math.inf)


def k_by_numpy(x, k):
    a = x.numpy()
    k = min(k, a.shape[1])
    limit = np.partition(a, a.shape[1] - k, axis=1)[:, a.shape[1] - k]
    return torch.from_numpy(np.where(a < limit[:, None], -np.inf, a).astype(np.float32))


def k_shortcut(x, k):
    return x if k >= x.shape[-1] else k_scattered(x, k)


def k_by_kthvalue(x, k):
    limit = x.kthvalue(max(1, x.shape[-1] - k + 1), dim=-1, keepdim=True).values
    return torch.where(x < limit, torch.full_like(x, -INF), x)


TOP_K_RIGHT = [kept_k, k_scattered, k_by_rows, k_by_ranks, k_by_numpy, k_shortcut, k_by_kthvalue,
               lambda x, k: x + torch.zeros_like(x).masked_fill(kept_k(x, k) == -INF, -INF),
               lambda x, k: kept_k(x.T.contiguous().T, k).T.contiguous().T]  # fmt: skip
FILTER_STUBS = [
    lambda x, limit: None,
    lambda x, limit: x,
    lambda x, limit: torch.zeros_like(x),
    lambda x, limit: torch.full_like(x, -INF),
    lambda x, limit: torch.randn_like(x),
    lambda x, limit: kept_k(x, 2),
    lambda x, limit: kept_k(x, 3).double(),
]

# top_p_filter


def reached(total, chance, p):
    return total >= p


def kept_p(x, p, stop=reached, low=-INF, value=lambda v: v, minimum=0, order=None, soft=None, whole=True):
    """Filter by Python's own lists; each argument is a mistake."""
    if whole and p == 1:
        return x
    out = []
    for row in x.tolist():
        chances = soft(row) if soft else torch.tensor(row, dtype=torch.float64).softmax(0).tolist()
        ranks = order(row) if order else sorted(range(len(row)), key=row.__getitem__, reverse=True)
        kept, total = set(ranks[:minimum]), 0.0
        for i in ranks:
            if stop(total, chances[i], p):
                break
            kept.add(i)
            total += chances[i]
        out.append([value(v) if i in kept else low for i, v in enumerate(row)])
    return torch.tensor(out)


def p_crossing(x, p):
    s, i = torch.sort(x, descending=True)
    cum = F.softmax(s, -1).cumsum(-1)
    s[cum > p] = -INF
    return torch.empty_like(x).scatter_(1, i, s)


def p_crossing_first(x, p):
    s, i = torch.sort(x, descending=True)
    remove = F.softmax(s, -1).cumsum(-1) > p
    remove[:, 0] = False
    return x.masked_fill(torch.zeros_like(remove).scatter_(1, i, remove), -INF)


def p_shift_without_first(x, p):
    s, i = torch.sort(x, descending=True)
    remove = F.softmax(s, -1).cumsum(-1) > p
    remove[:, 1:] = remove[:, :-1].clone()
    return x.masked_fill(remove.scatter(1, i, remove), -INF)


def p_one_more(x, p):
    s, i = torch.sort(x, descending=True)
    remove = F.softmax(s, -1).cumsum(-1) >= p
    remove[:, 2:] = remove[:, :-2].clone()
    remove[:, :2] = False
    return x.masked_fill(remove.scatter(1, i, remove), -INF)


def all_at_1(answer):
    """Keep all where p is 1, as rounded sums do not."""
    return lambda x, p: x if p == 1 else answer(x, p)


def p_right(x, p, back=lambda remove, i: remove.scatter(1, i, remove), dim=1, whole=True):
    if whole and p == 1:
        return x
    s, i = torch.sort(x, dim=dim, descending=True)
    remove = F.softmax(s, dim=dim).cumsum(dim) > p
    remove = torch.cat([torch.zeros_like(remove[:, :1]), remove[:, :-1]], 1)
    return x.masked_fill(back(remove, i), -INF)


def p_sorted_back(x, p):
    s, _ = torch.sort(x, descending=True)
    return s.masked_fill(p_right(s, p) == -INF, -INF)


def p_along_batch(x, p):
    return p_right(x.T, p).T.contiguous()


def p_softmax_batch(x, p):
    i = x.argsort(-1, descending=True)
    chances = F.softmax(x, dim=0).gather(1, i)
    remove = chances.cumsum(-1) - chances >= p
    return x.masked_fill(remove.scatter(1, i, remove), -INF)


def p_softmax_after_sort(x, p):
    s, i = x.sort(-1, descending=True)
    chances = s.softmax(0)
    remove = chances.cumsum(-1) - chances >= p
    remove[:, 0] = False
    return x.masked_fill(remove.scatter(1, i, remove), -INF)


def p_sort_after_softmax(x, p):
    chances, i = x.softmax(0).sort(-1, descending=True)
    remove = chances.cumsum(-1) - chances >= p
    return x.masked_fill(remove.scatter(1, i, remove), -INF)


def p_removed(rule, first=True):
    """Remove what a rule on the running sums names; the likeliest stays where `first`."""

    def candidate(x, p):
        if p == 1:
            return x.clone()
        s, i = torch.sort(x, dim=-1, descending=True)
        chances = F.softmax(s, dim=-1)
        remove = rule(chances.cumsum(-1), chances, p)
        if first:
            remove[:, 0] = False
        return x.masked_fill(torch.zeros_like(remove).scatter_(1, i, remove), -INF)

    return candidate


def p_unguarded(x, p):
    s, i = x.sort(-1, descending=True)
    chances = s.softmax(-1)
    remove = chances.cumsum(-1) - chances >= p
    return x.masked_fill(remove.scatter(1, i, remove), -INF)


def p_sum_batch(x, p):
    s, i = x.sort(-1, descending=True)
    chances = s.softmax(-1)
    remove = chances.cumsum(0) - chances >= p
    return x.masked_fill(remove.scatter(1, i, remove), -INF)


def p_first_row(x, p):
    n = (kept_p(x[:1], p) > -INF).sum().item()
    return kept_k(x, n)


def p_everywhere(x, p):
    gone = (p_right(x, p) == -INF).any(0)
    return torch.where(gone, -INF, x)


def p_in_place(x, p):
    x[p_right(x, p) == -INF] = -INF
    return x


def p_nan(x, p):
    keep = (p_right(x, p) > -INF).float()
    return x * keep + torch.log(keep) * (1 - keep)


def single(rule):
    """Keep tokens by their own probability alone."""
    return lambda x, p: torch.where(rule(F.softmax(x, 1), p), x, -INF)


def naive(row):
    weights = torch.tensor(row).exp()
    return (weights / weights.sum()).tolist()


def p_naive(x, p):
    if p == 1:
        return x
    weights = x.exp() / x.exp().sum(1, keepdim=True)
    ranked, i = weights.sort(1, descending=True)
    keep = ranked.cumsum(1) - ranked < p
    return torch.where(torch.zeros_like(keep).scatter(1, i, keep), x, -INF)


def crossing(total, chance, p):
    return total + chance > p


def p_ids(x, p):
    ids = x.sort(-1, descending=True)[1]
    n = kept_p(x, p).isfinite().sum(1).tolist()
    return ids[:, : n[0]] if len(set(n)) == 1 else [row[:m] for row, m in zip(ids, n, strict=True)]


TOP_P_WRONG = {
    p_unguarded: "p = 1 does not keep every token",
    lambda x, p: kept_p(x, p, whole=False): "p = 1 does not keep every token",
    lambda x, p: p_right(x, p, whole=False): "p = 1 does not keep every token",
    lambda x, p: p_right(x, min(p, 0.999)): "p = 1 does not keep every token",
    p_softmax_after_sort: "softmax goes along the batch",
    p_sort_after_softmax: "softmax goes along the batch",
    p_removed(lambda sums, c, p: c.cumsum(0) - c >= p): "the sum goes along the batch",
    p_removed(lambda sums, c, p: c.cumsum(0) > p): "the sum goes along the batch",
    p_removed(lambda sums, c, p: sums < p): "turned round",
    p_removed(lambda sums, c, p: sums <= p, first=False): "turned round",
    p_removed(lambda sums, c, p: sums - c < p, first=False): "turned round",
    lambda x, p: x.masked_fill((p_right(x, p) == -INF).all(0), -INF): "is kept in all rows",
    p_crossing: "with it all tokens of a row that is sure",
    lambda x, p: kept_p(x, p, stop=crossing): "with it all tokens of a row that is sure",
    p_crossing_first: "the token that crosses p is removed",
    lambda x, p: kept_p(x, p, stop=crossing, minimum=1): "the token that crosses p is removed",
    p_shift_without_first: "the likeliest token is removed where it alone",
    p_one_more: "one token too many",
    lambda x, p: p_right(x, p, back=lambda remove, i: remove): "the way back is missing",
    lambda x, p: p_right(x, p, back=lambda remove, i: remove.gather(1, i)): "the wrong way",
    p_sorted_back: "in the order of their size",
    lambda x, p: kept_p(x, p, order=lambda row: sorted(range(len(row)), key=row.__getitem__)): "from the least likely",
    lambda x, p: kept_p(x, p, order=lambda row: range(len(row))): "nothing is sorted",
    lambda x, p: kept_p(x, p, soft=list): "softmax is missing",
    lambda x, p: kept_p(x, p, soft=lambda row: [math.exp(v) for v in row]): "not divided by their sum",
    lambda x, p: kept_p(x, p, soft=lambda row: torch.tensor(row).softmax(0).softmax(0).tolist()): "applied twice",
    p_softmax_batch: "softmax goes along the batch",
    p_sum_batch: "the sum goes along the batch",
    p_along_batch: "it sorts along the batch",
    lambda x, p: p_right(x.reshape(1, -1), p).reshape(x.shape): "all rows are filtered together",
    p_first_row: "as many tokens as the first",
    p_everywhere: "what one row removes",
    single(lambda c, p: c >= p): "compared with p; nothing",
    single(lambda c, p: (c >= p) | (c == c.amax(1, keepdim=True))): "compared with p; nothing",
    single(lambda c, p: c > 1 - p): "compared with 1 - p",
    single(lambda c, p: c > p * c.amax(1, keepdim=True)): "it is min-p",
    single(lambda c, p: c < p): "unlikely tokens stay",
    lambda x, p: kept_k(x, math.ceil(p * x.shape[1])): "the share of the tokens",
    lambda x, p: kept_p(x, 1 - p, minimum=1): "p is turned round",
    lambda x, p: kept_k(x, 1): "only the likeliest token stays",
    p_naive: "exp overflows",
    lambda x, p: kept_p(x, p, low=0.0): "become 0, not -inf",
    lambda x, p: kept_p(x, p, low=-1e10): "a low number",
    lambda x, p: kept_p(x, p, low=-10000.0): "a low number",
    lambda x, p: kept_p(x, p, low=INF): "become +inf",
    p_nan: "become NaN",
    lambda x, p: torch.where(p_right(x, p) > -INF, -INF, x): "turned round",
    lambda x, p: x * 1: "nothing is removed",
    lambda x, p: F.softmax(p_right(x, p), dim=1): "chances come back",
    lambda x, p: torch.where(p_right(x, p) > -INF, F.softmax(x, 1), 0.0): "chances come back",
    lambda x, p: F.log_softmax(x, 1).masked_fill(p_right(x, p) == -INF, -INF): "the scores are shifted",
    lambda x, p: p_right(x, p) != -INF: "a mask comes back",
    lambda x, p: (p_right(x, p) != -INF).float(): "a mask comes back",
    p_ids: "ids come back",
    p_in_place: "changed in place",
}


def p_ascending(x, p):
    """Go up from the least likely, as some libraries do."""
    s, i = torch.sort(x, descending=False)
    remove = s.softmax(-1).cumsum(-1) <= 1 - p
    remove[:, -1] = False
    return x.masked_fill(remove.scatter(1, i, remove), -math.inf)


def p_searched(x, p):
    out = x.clone()
    for row in out:
        s, i = row.sort(descending=True)
        n = int(torch.searchsorted(s.softmax(0).cumsum(0), torch.tensor(p))) + 1
        row[i[n:]] = -INF
    return out


def p_threshold(x, p):
    chances = x.softmax(1)
    above = (chances[:, None, :] > chances[:, :, None]).float()
    ahead = (above * chances[:, None, :]).sum(-1)
    return x.masked_fill(ahead >= p, -INF)


def p_gathered(x, p):
    s, i = x.sort(1, descending=True)
    c = s.softmax(1)
    s = s.masked_fill(c.cumsum(1) - c >= p, -INF)
    return s.gather(1, i.argsort(1))


def p_numpy(x, p):
    a = x.double().numpy()
    c = np.exp(a - a.max(1, keepdims=True))
    c /= c.sum(1, keepdims=True)
    order = np.argsort(-c, axis=1)
    ranked = np.take_along_axis(c, order, 1)
    keep = np.zeros(c.shape, dtype=bool)
    np.put_along_axis(keep, order, ranked.cumsum(1) - ranked < p, 1)
    return torch.from_numpy(np.where(keep, a, -np.inf)).float()


TOP_P_RIGHT = [kept_p, p_right, p_ascending, *map(all_at_1, (p_searched, p_threshold, p_gathered, p_numpy)),
               lambda x, p: x.clone() if p >= 1 else p_unguarded(x, p)]  # fmt: skip

# sample


def soft(x):
    return F.softmax(x, dim=-1)


def pick(
    logits, temperature=1.0, top_k=None, top_p=None, generator=None, *, leave=(), order="tkp", draw=None, zero=True
):
    """Draw by the reference's parts; each argument is a mistake."""
    if zero and temperature == 0:
        return logits.argmax(-1).reshape(-1, 1)
    for step in order:
        if step == "t" and "t" not in leave:
            logits = logits / temperature
        if step == "k" and top_k is not None and "k" not in leave:
            logits = k_scattered(logits, top_k)
        if step == "p" and top_p is not None and "p" not in leave:
            logits = p_right(logits, top_p)
    return (draw or categorical)(logits, generator)


def categorical(logits, generator):
    """Draw by the inverse of the cumulative distribution."""
    edges = soft(logits.double()).cumsum(-1)
    u = torch.rand(len(logits), 1, generator=generator, dtype=torch.float64)
    return torch.searchsorted(edges, u * edges[:, -1:] * (1 - 1e-12))


def categorical_by_torch(logits, generator):
    return torch.multinomial(soft(logits), 1, generator=generator)


def with_draw(draw):
    return lambda *given: pick(*given, draw=draw)


def ordered(order, leave=""):
    return lambda *given: pick(*given, order=order, leave=leave)


def multiplied(logits, temperature=1.0, *rest):
    return pick(logits * temperature**2 if temperature else logits, temperature, *rest)


def either(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    if top_k is not None:
        return pick(logits, temperature, top_k, None, generator)
    return pick(logits, temperature, None, top_p, generator)


def only_both(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    if top_k is None or top_p is None:
        top_k = top_p = None
    return pick(logits, temperature, top_k, top_p, generator)


def raw(logits, generator):
    return torch.multinomial(logits, 1, generator=generator)


def raw_positive(logits, generator):
    return torch.multinomial(F.relu(logits), 1, generator=generator)


def evenly(logits, generator):
    return torch.multinomial((logits > -INF).float(), 1, generator=generator)


def one_number(logits, generator):
    u = torch.rand((), generator=generator)
    return torch.stack([(row.softmax(0).cumsum(0) < u).sum().clamp(max=len(row) - 1)[None] for row in logits])


def one_id(logits, generator):
    return torch.multinomial(soft(logits[0]), 1, generator=generator).repeat(len(logits), 1)


def first_row(logits, generator):
    return torch.multinomial(soft(logits[:1]).expand(len(logits), -1), 1, generator=generator)


def place_in_list(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    scores = logits.div(temperature).sort(dim=-1, descending=True)[0]
    scores = p_right(k_scattered(scores, top_k or 99), top_p or 1.0)
    return torch.multinomial(soft(scores), 1, generator=generator)


def two_ids(logits, generator):
    return torch.multinomial(soft(logits), 2, replacement=True, generator=generator)


def zeros_drawn(logits, generator):
    return categorical(torch.where(logits.isinf(), 0.0, logits), generator)


def unseeded(logits, generator):
    torch.seed()
    return categorical(logits, None)


def seed_42(logits, generator):
    torch.manual_seed(42)
    return categorical(logits, None)


def own_42(logits, generator):
    return categorical(logits, torch.Generator().manual_seed(42))


def seeds_globally(*given):
    torch.manual_seed(1)
    return pick(*given)


def divides_first(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    logits = logits.div(temperature)
    logits = kept_k(logits, top_k) if top_k else logits
    logits = p_right(logits, top_p) if top_p else logits
    return categorical(logits, generator) if temperature else logits.argmax(1, keepdim=True)


def fresh_if_none(logits, generator):
    return categorical(logits, torch.Generator().manual_seed(1337) if generator is None else generator)


def zero_is_one(logits, temperature=1.0, *rest):
    return pick(logits, temperature or 1.0, *rest)


def zero_flat(logits, temperature=1.0, *rest):
    return logits.argmax(dim=-1) if temperature == 0 else pick(logits, temperature, *rest)


def hot_default(logits, temperature=0.8, top_k=None, top_p=None, generator=None):
    return pick(logits, temperature, top_k, top_p, generator)


def p_default(logits, temperature=1.0, top_k=None, top_p=0.9, generator=None):
    return pick(logits, temperature, top_k, top_p, generator)


def heated_in_place(logits, temperature=1.0, *rest):
    if temperature == 0:
        return pick(logits, 0, *rest)
    logits.div_(temperature).sub_(1)
    return pick(logits, 1.0, *rest)


def greedy_below(limit):
    def candidate(logits, temperature=1.0, *rest):
        return pick(logits, 0.0 if temperature <= limit else temperature, *rest)

    return candidate


def among_the_top(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    """Draw from the k highest scores, and forget whose they are."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    logits = logits / temperature
    if top_k is not None:
        logits = logits.topk(top_k).values
    return pick(logits, 1.0, None, top_p, generator)


def other_share(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    return pick(logits, temperature, top_k, None if top_p is None else 1 - top_p, generator)


def rows_of_one_seed(logits, generator):
    """Draw row by row; what rows are alike is drawn once, since each begins with the same seed."""
    if generator is None:
        return categorical(logits, None)
    return categorical_by_one(logits, torch.rand(1, generator=torch.Generator().manual_seed(generator.initial_seed())))


def categorical_by_one(logits, u):
    return (soft(logits).cumsum(-1) <= u).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)


def divided_twice(logits, temperature=1.0, *rest):
    return pick(logits / temperature if temperature else logits, temperature, *rest)


def divided_in_place(logits, temperature=1.0, *rest):
    if temperature == 0:
        return pick(logits, 0, *rest)
    logits /= temperature
    return pick(logits, 1.0, *rest)


def at_other_heat(changed):
    """Draw at another temperature wherever it draws, be it given or the default."""

    def candidate(logits, temperature=1.0, *rest):
        return pick(logits, changed(temperature) if temperature else 0.0, *rest)

    return candidate


def only_where(hot, factor):
    return at_other_heat(lambda t: t * factor if (t > 1 if hot else t < 1) else t)


def up_to(limit):
    """Cut by p where it is lower than this."""

    def candidate(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
        return pick(logits, temperature, top_k, None if (top_p or 0) >= limit else top_p, generator)

    return candidate


SAMPLE_WRONG = {
    **{at_other_heat(lambda t, f=f: t * f): "not the one that was asked for" for f in (0.75, 0.9, 0.95, 1.05, 1.1)},
    **{only_where(True, f): "not the one that was asked for" for f in (0.7, 0.95, 1.05, 1.3)},
    **{only_where(False, f): "not the one that was asked for" for f in (0.9, 0.95, 1.05, 1.1)},
    at_other_heat(lambda t: t**0.5): "not the one that was asked for",
    at_other_heat(lambda t: max(0.1, t)): "not the one that was asked for",
    at_other_heat(lambda t: min(2.0, t)): "not the one that was asked for",
    up_to(0.95): "a high top_p is taken for 1",
    greedy_below(0.1): "a low temperature is taken for 0",
    greedy_below(0.29): "a low temperature is taken for 0",
    greedy_below(0.4): "a low temperature is taken for 0",
    among_the_top: "a place in the sorted scores",
    other_share: "p is turned round",
    with_draw(rows_of_one_seed): "each row draws with a generator of the same seed",
    divided_twice: "the temperature acts twice",
    divided_in_place: "changed in place",
    ordered("tkp", "t"): "the temperature is ignored",
    multiplied: "multiplied by the temperature",
    ordered("kpt"): "the temperature comes after top-p",
    ordered("tpk"): "top-p is measured before top-k",
    ordered("pkt"): "the order is turned round",
    ordered("tkp", "k"): "top_k is ignored",
    ordered("tkp", "p"): "top_p is ignored",
    ordered("t"): "both ignored",
    either: "only one is applied",
    only_both: "only one is applied",
    with_draw(raw): "softmax is missing",
    with_draw(raw_positive): "softmax is missing",
    with_draw(lambda x, g: categorical(soft(x), g)): "softmax is applied twice",
    lambda x, *rest: pick(x if rest and rest[0] == 0 else soft(x), *rest): "softmax is applied twice",
    with_draw(lambda x, g: torch.multinomial(F.softmax(x, 0), 1, generator=g)): "softmax goes along the batch",
    with_draw(zeros_drawn): "removed tokens are drawn",
    with_draw(lambda x, g: x.argmax(-1, keepdim=True)): "nothing is drawn",
    with_draw(evenly): "equally often",
    with_draw(one_number): "one draw for the whole batch",
    with_draw(one_id): "one draw for the whole batch",
    with_draw(first_row): "the chances of one row",
    place_in_list: "a place in the sorted scores",
    with_draw(lambda x, g: categorical(x, g).squeeze(-1)): "where it draws, the axis is lost",
    lambda *given: pick(*given).squeeze(1): "the axis is lost: (B,)",
    zero_flat: "at temperature 0 the axis is lost",
    with_draw(two_ids): "more than one id",
    with_draw(lambda x, g: soft(x).gather(1, categorical(x, g))): "a score or a probability",
    with_draw(lambda x, g: soft(x)): "a score or a probability",
    lambda *given: pick(*given, zero=False, draw=categorical_by_torch): "temperature 0 divides",
    zero_is_one: "temperature 0 is taken for 1",
    with_draw(lambda x, g: categorical(x, None)): "the generator is not used",
    with_draw(unseeded): "the generator is not used",
    with_draw(seed_42): "torch's own seed is set inside",
    with_draw(own_42): "a seed is set inside",
    seeds_globally: "torch's own seed is set inside",
    with_draw(fresh_if_none): "torch's own is not used",
    divides_first: "temperature 0 divides",
    hot_default: "another default",
    p_default: "another default",
    heated_in_place: "changed in place",
}


def by_race(logits, generator):
    """Let each token wait for a time drawn by its rate; the first one wins."""
    times = torch.empty_like(logits).exponential_(generator=generator)
    return (soft(logits) / times).argmax(-1, keepdim=True)


def by_gumbel_noise(logits, generator):
    u = torch.rand(logits.shape, generator=generator, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    return (logits - torch.log(-torch.log(u))).argmax(-1, keepdim=True)


def row_by_row(logits, generator):
    return torch.stack([torch.multinomial(row.softmax(0), 1, generator=generator) for row in logits])


def filtered_first(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    """Draw from the sorted scores, and look the ids up: k before the division is the same."""
    if not temperature:
        return logits.topk(1).indices
    if top_k:
        logits = kept_k(logits, top_k)
    ranked, ids = (logits / temperature).sort(-1, descending=True)
    chances = ranked.softmax(-1)
    if top_p:
        chances = chances.masked_fill(chances.cumsum(-1) - chances >= top_p, 0.0)
    return ids.gather(-1, torch.multinomial(chances / chances.sum(-1, keepdim=True), 1, generator=generator))


def nearly_zero(logits, temperature=1.0, *rest):
    return pick(logits, max(temperature, 1e-6), *rest, draw=categorical_by_torch)


def other_words(logits, temperature=1, top_k=0, top_p=1.0, generator=None):
    return pick(logits, temperature, top_k or None, top_p or None, generator)


SAMPLE_RIGHT = [
    other_words,
    pick,
    ordered("ktp"),
    with_draw(by_race),
    with_draw(by_gumbel_noise),
    with_draw(row_by_row),
    with_draw(categorical_by_torch),
    filtered_first,
    nearly_zero,
]
SAMPLE_STUBS = [
    lambda *given: None,
    lambda logits, *settings: logits,
    lambda logits, *settings: torch.zeros(len(logits), 1, dtype=torch.long),
    lambda logits, *settings: torch.randint(logits.shape[1], (len(logits), 1)),
    lambda logits, *settings: logits.argmax(-1, keepdim=True),
    lambda logits, *settings: torch.multinomial(soft(logits), 1),
    lambda logits, temperature=1.0, k=None, p=None, g=None: pick(logits, 0.7, 3, 0.9, g),
]

# KVCache


class Lists:
    """A cache of lists of single tokens, with places where it can go wrong."""

    first_length = 0

    def __init__(self, config, batch_size):
        self.config, self.batch_size = config, batch_size
        self.length = self.first_length
        self.k = [[] for _ in range(config.n_layers)]
        self.v = [[] for _ in range(config.n_layers)]

    def append(self, layer, k, v):
        k, v = self.incoming(k, v)
        self.put(self.k[self.at(layer)], k)
        self.put(self.v[self.at(layer)], v)
        return self.outgoing(self.k[self.at(layer)], self.v[self.at(layer)], k, v)

    def incoming(self, k, v):
        return k, v

    def at(self, layer):
        return layer

    def put(self, tokens, new):
        tokens.extend(new.unbind(2))

    def outgoing(self, ks, vs, k, v):
        return torch.stack(ks, 2), torch.stack(vs, 2)


class MovesAlways(Lists):
    def append(self, layer, k, v):
        pair = super().append(layer, k, v)
        self.length += k.size(2)
        return pair


class MovesAtLastLayer(Lists):
    def append(self, layer, k, v):
        pair = super().append(layer, k, v)
        if layer + 1 == self.config.n_layers:
            self.length = self.length + k.size(2)
        return pair


class StartsAtOne(Lists):
    first_length = 1


class Buffer:
    """A cache in two buffers a layer, with places where it can go wrong."""

    dtype, extra = torch.float32, 8

    def __init__(self, config, batch_size):
        self.config = config
        D = config.n_embd // config.n_heads
        shape = (self.rows(batch_size), config.n_heads, config.max_seq_length + self.extra, D)
        self.k_cache = [torch.zeros(shape, dtype=self.dtype) for _ in range(config.n_layers)]
        self.v_cache = [torch.zeros(shape, dtype=self.dtype) for _ in range(config.n_layers)]
        self.length = 0

    def rows(self, batch_size):
        return batch_size

    def start(self, T):
        return self.length

    def window(self, T):
        return slice(0, self.length + T)

    def append(self, layer, k, v):
        T = k.shape[2]
        for cache, new in ((self.k_cache, k), (self.v_cache, v)):
            cache[layer].narrow(2, self.start(T), T).copy_(new)
        return self.k_cache[layer][:, :, self.window(T)], self.v_cache[layer][:, :, self.window(T)]


class FromZero(Buffer):
    def start(self, T):
        return 0


class OneTooFar(Buffer):
    def start(self, T):
        return self.length + 1


class OneTooEarly(Buffer):
    def start(self, T):
        return self.length - 1 if self.length else 0


class AtTheEnd(Buffer):
    extra = 0

    def start(self, T):
        return self.config.max_seq_length - T


class SharedLayers(Lists):
    def at(self, layer):
        return 0


class OneBufferForAll(Buffer):
    def __init__(self, config, batch_size):
        super().__init__(config, batch_size)
        self.k_cache = [self.k_cache[0]] * config.n_layers
        self.v_cache = [self.v_cache[0]] * config.n_layers


class Swapped(Lists):
    def outgoing(self, ks, vs, k, v):
        return torch.stack(vs, 2), torch.stack(ks, 2)


class KeysTwice(Lists):
    def incoming(self, k, v):
        return k, k


class OnlyNew(Buffer):
    def window(self, T):
        return slice(self.length, self.length + T)


class OnlyOld(Buffer):
    def window(self, T):
        return slice(0, self.length)


class WholeBuffer(Buffer):
    extra = 0

    def window(self, T):
        return slice(None)


class NewValues(Lists):
    def outgoing(self, ks, vs, k, v):
        return torch.stack(ks, 2), v


class Joining:
    """A cache that joins tensors along one axis."""

    dim = 2

    def __init__(self, config, batch_size):
        self.past, self.length = {}, 0

    def join(self, old, new):
        return torch.cat((old, new), dim=self.dim)

    def append(self, layer, k, v):
        if layer in self.past:
            k, v = self.join(self.past[layer][0], k), self.join(self.past[layer][1], v)
        self.past[layer] = [k, v]
        return k, v


class AlongWidth(Joining):
    dim = 3


class AlongBatch(Joining):
    dim = 0


class AlongHeads(Joining):
    dim = 1


class NewFirst(Joining):
    def join(self, old, new):
        return super().join(new, old)


class Added(Joining):
    def join(self, old, new):
        return old + new


class LastStepOnly(Joining):
    def append(self, layer, k, v):
        pair = super().append(layer, k, v)
        self.past[layer] = [k, v]
        return pair


class FirstStepOnly(Joining):
    def append(self, layer, k, v):
        first = self.past.get(layer)
        pair = super().append(layer, k, v)
        self.past[layer] = first or self.past[layer]
        return pair


class FirstRow(Lists):
    def incoming(self, k, v):
        return k[0].expand(k.shape), v[0].expand(v.shape)


class OneSequence(Buffer):
    def rows(self, batch_size):
        return 1


class OfTheClass(Joining):
    past = {}  # noqa: RUF012

    def __init__(self, config, batch_size):
        self.length = 0


class ListsOfTheClass(Joining):
    ks = []  # noqa: RUF012
    vs = []  # noqa: RUF012

    def append(self, layer, k, v):
        if layer == len(self.ks):
            self.ks.append(k)
            self.vs.append(v)
        else:
            self.ks[layer] = torch.cat((self.ks[layer], k), 2)
            self.vs[layer] = torch.cat((self.vs[layer], v), 2)
        return self.ks[layer], self.vs[layer]


class OneTokenAStep(Lists):
    def put(self, tokens, new):
        tokens.append(new[:, :, 0])


class TwoLists(Joining):
    def append(self, layer, k, v):
        keys, values = self.past.setdefault(layer, ((), ()))
        self.past[layer] = ([*keys, k], [*values, v])
        return self.past[layer]


class ReturnsNothing(Lists):
    def outgoing(self, ks, vs, k, v):
        pass


class ReturnsOne(Lists):
    def outgoing(self, ks, vs, k, v):
        return torch.cat([torch.stack(ks, 2), torch.stack(vs, 2)], dim=-1)


class TimeFirst(Lists):
    def outgoing(self, ks, vs, k, v):
        return torch.stack(ks, 1), torch.stack(vs, 1)


class KeysTransposed(Lists):
    def outgoing(self, ks, vs, k, v):
        return torch.stack(ks, 3), torch.stack(vs, 2)


class HalfDigits(Buffer):
    dtype = torch.float16


class SetsLength(Lists):
    def append(self, layer, k, v):
        pair = super().append(layer, k, v)
        self.length = k.shape[2]
        return pair


class SetsLengthFirst(Buffer):
    def append(self, layer, k, v):
        self.length = k.shape[2]
        return super().append(layer, k, v)


class TokensByHeads(Buffer):
    extra = 0

    def append(self, layer, k, v):
        T = k.shape[1]
        self.k_cache[layer][:, :, self.length : self.length + T] = k
        self.v_cache[layer][:, :, self.length : self.length + T] = v
        return self.k_cache[layer][:, :, : self.length + T], self.v_cache[layer][:, :, : self.length + T]


class TimeBeforeHeads(Buffer):
    extra = 0

    def __init__(self, config, batch_size):
        super().__init__(config, batch_size)
        shape = (batch_size, config.max_seq_length, config.n_heads, config.n_embd // config.n_heads)
        self.k_cache = [torch.zeros(shape) for _ in range(config.n_layers)]
        self.v_cache = [torch.zeros(shape) for _ in range(config.n_layers)]

    def append(self, layer, k, v):
        end = self.length + k.shape[2]
        self.k_cache[layer][:, :, self.length : end] = k
        self.v_cache[layer][:, :, self.length : end] = v
        return self.k_cache[layer][:, :, :end], self.v_cache[layer][:, :, :end]


class LastOfThem(Buffer):
    def append(self, layer, k, v):
        self.k_cache[layer][:, :, self.length] = k[:, :, -1]
        self.v_cache[layer][:, :, self.length] = v[:, :, -1]
        return self.k_cache[layer][:, :, self.window(k.shape[2])], self.v_cache[layer][:, :, self.window(k.shape[2])]


class NeverStored(Buffer):
    def append(self, layer, k, v):
        old = (self.k_cache[layer][:, :, : self.length], self.v_cache[layer][:, :, : self.length])
        return torch.cat((old[0], k), dim=-2), torch.cat((old[1], v), dim=-2)


CACHE_WRONG = {
    SetsLength: "sets length to the number of new tokens",
    SetsLengthFirst: "sets length to the number of new tokens",
    TokensByHeads: "is taken from the axis of heads",
    TimeBeforeHeads: "the axis of tokens before that of heads",
    LastOfThem: "only one token of a step",
    NeverStored: "nothing is stored",
    MovesAlways: "append moves length",
    MovesAtLastLayer: "append moves length",
    StartsAtOne: "a length other than 0",
    FromZero: "begins at place 0 again",
    OneTooFar: "one place too far",
    OneTooEarly: "one place too early",
    AtTheEnd: "at the end of the buffer",
    SharedLayers: "all layers share one store",
    OneBufferForAll: "all layers share one store",
    Swapped: "keys and values are swapped",
    KeysTwice: "keys and values come back the same",
    OnlyNew: "only the new keys and values",
    OnlyOld: "only the old keys and values",
    WholeBuffer: "the whole buffer",
    NewValues: "keys come back whole",
    AlongWidth: "along the wrong axis",
    AlongBatch: "along the wrong axis",
    AlongHeads: "along the wrong axis",
    NewFirst: "before the old ones",
    Added: "old and new are added",
    LastStepOnly: "only the last step",
    FirstStepOnly: "only the first step",
    FirstRow: "of the first row",
    OneSequence: "for one sequence alone",
    OfTheClass: "it belongs to the class",
    ListsOfTheClass: "it belongs to the class",
    OneTokenAStep: "only one token of a step",
    TwoLists: "lists come back",
    ReturnsNothing: "returns nothing",
    ReturnsOne: "returns one tensor",
    TimeFirst: "heads and tokens are swapped",
    KeysTransposed: "transposed",
    HalfDigits: "fewer digits",
}


class ByIndex:
    """A buffer that grows when it must, written by index_copy."""

    def __init__(self, config, batch_size):
        self.length = 0
        self.store = torch.empty(2, config.n_layers, batch_size, config.n_heads, 0, config.head_width)

    def append(self, layer, k, v):
        places = torch.arange(self.length, self.length + k.shape[2])
        missing = self.length + k.shape[2] - self.store.shape[4]
        if missing > 0:
            self.store = F.pad(self.store, (0, 0, 0, missing))
        self.store[:, layer].index_copy_(3, places, torch.stack((k, v)))
        return self.store[:, layer, :, :, : self.length + k.shape[2]]


class AsModule(torch.nn.Module):
    """Buffers of a module, time before heads."""

    def __init__(self, config, batch_size):
        super().__init__()
        shape = (config.n_layers, batch_size, config.max_seq_length, config.n_heads, config.n_embd // config.n_heads)
        self.register_buffer("k", torch.full(shape, math.nan))
        self.register_buffer("v", torch.full(shape, math.nan))
        self.length = 0

    def append(self, layer, k, v):
        end = self.length + k.size(-2)
        for store, new in ((self.k, k), (self.v, v)):
            store[layer, :, self.length : end] = new.transpose(1, 2)
        return [store[layer, :, :end].transpose(1, 2).contiguous() for store in (self.k, self.v)]


class OptionalPast:
    """Tensors that are None at first."""

    def __init__(self, config, batch_size):
        self.keys = [None] * config.n_layers
        self.values = [None] * config.n_layers
        self.length = 0

    def append(self, layer, k, v):
        if self.keys[layer] is not None:
            k = torch.cat([self.keys[layer][:, :, : self.length], k], dim=-2)
            v = torch.cat([self.values[layer][:, :, : self.length], v], dim=-2)
        self.keys[layer], self.values[layer] = k, v
        return k, v


def made_by_a_function(config, batch_size):
    return Lists(config, batch_size)


CACHE_RIGHT = [Lists, Buffer, Joining, ByIndex, AsModule, OptionalPast, made_by_a_function]


class Nothing:
    def __init__(self, config, batch_size):
        self.length = 0

    def append(self, layer, k, v):
        pass


class Passing(Nothing):
    def append(self, layer, k, v):
        return k, v


class Zeros(Nothing):
    def append(self, layer, k, v):
        B, H, T, D = k.shape
        return torch.zeros(B, H, self.length + T, D), torch.zeros(B, H, self.length + T, D)


class Empty:
    pass


CACHE_STUBS = [Nothing, Passing, Zeros, Empty, lambda config, batch_size: None]

# generate


def text(model, ids, max_new_tokens, temperature=1.0, top_k=None, top_p=None, stop_token=None, generator=None, **wrong):
    """Write row by row in Python lists, with places where it can go wrong."""
    was, limit, n_prompt = model.training, model.config.max_seq_length, ids.shape[1]
    wrong.get("begin", model.eval)()
    rows, done = ids.tolist(), set()
    step = 0
    while step < wrong.get("n", lambda n, T: n)(max_new_tokens, n_prompt):
        step += 1
        seen = torch.tensor([wrong.get("see", lambda row: row[-limit:])(row) for row in rows])
        with torch.set_grad_enabled(wrong.get("recording", False)):
            logits = wrong.get("at", lambda every: every[:, -1, :])(model(seen))
        new = wrong.get("draw", pick)(logits, temperature, top_k, top_p, generator).flatten().tolist()
        for b, i in enumerate(new):
            i = wrong.get("fill", stop_token) if b in done and wrong.get("fills", True) else i
            rows[b].append(i)
            if wrong.get("stops", lambda row, stop: row[-1] == stop)(rows[b], stop_token):
                done.add(b)
        if wrong.get("over", lambda done, B: len(done) == B)(done, len(rows)):
            rows = [row[:-1] for row in rows] if wrong.get("drops") else rows
            break
        rows = [wrong.get("keep", list)(row) for row in rows]
    wrong.get("end", model.train)(was)
    return wrong.get("result", lambda rows, T: torch.tensor(rows).reshape(len(rows), -1))(rows, n_prompt)


def wrong(**places):
    return lambda *given, **settings: text(*given, **settings, **places)


def drawn_with(**other):
    """Draw with other settings than those that came in."""

    def draw(logits, temperature, top_k, top_p, generator):
        named = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "generator": generator} | other
        return pick(logits, **named)

    return wrong(draw=draw)


def cool(model, ids, n, temperature=0.8, top_k=None, top_p=None, stop_token=None, generator=None):
    return text(model, ids, n, temperature, top_k, top_p, stop_token, generator)


def as_elsewhere(model, ids, n, temperature=0.8, top_k=50, top_p=0.9, stop_token=None, generator=None):
    return text(model, ids, n, temperature, top_k, top_p, stop_token, generator)


def cold(model, ids, n, temperature=0.0, top_k=None, top_p=None, stop_token=None, generator=None):
    return text(model, ids, n, temperature, top_k, top_p, stop_token, generator)


def cropped(sees):
    """See another part of the text, which depends on the context."""
    return lambda model, *given, **settings: text(
        model, *given, **settings, see=lambda row: sees(row, model.config.max_seq_length)
    )


def crop_result(model, ids, n, **settings):
    limit = model.config.max_seq_length
    return text(model, ids, n, **settings, keep=lambda row: row[-limit:])


def crop_ids(model, ids, n, temperature=1.0, top_k=None, top_p=None, stop_token=None, generator=None):
    """Crop the text itself, as a loop with one variable does."""
    mode = model.training
    model.eval()
    stopped = torch.zeros(len(ids), 1).bool()
    for _ in range(n):
        ids = ids[:, -model.config.max_seq_length :]
        with torch.no_grad():
            new = pick(model(ids)[:, -1], temperature, top_k, top_p, generator)
        if stop_token is not None:
            new = torch.where(stopped, stop_token, new)
            stopped = stopped.logical_or(new == stop_token)
        ids = torch.cat([ids, new], dim=1)
        if stopped.all():
            break
    model.train(mode)
    return ids


def prompt_again(model, ids, n, **settings):
    prompt = ids.tolist()
    rows = iter(prompt * (n + 1))
    return text(model, ids, n, **settings, see=lambda row: next(rows)[-model.config.max_seq_length :])


def prompt_then_newest(model, ids, n, **settings):
    T, limit = ids.shape[1], model.config.max_seq_length
    return text(model, ids, n, **settings, see=lambda row: row[-limit:] if len(row) == T else row[-1:])


def all_into_the_cache(model, ids, n, temperature=1.0, top_k=None, top_p=None, stop_token=None, generator=None):
    """Feed everything at every step, though the cache holds it."""
    was = model.training
    model.eval()
    cache = l1_ref.KVCache(model.config, ids.shape[0])
    done = torch.zeros(ids.shape[0], dtype=torch.bool)
    with torch.no_grad():
        for _ in range(n):
            out = model.head(model.hidden(ids[:, -model.config.max_seq_length :], cache))[:, -1]
            new = pick(out, temperature, top_k, top_p, generator)[:, 0]
            if stop_token is not None:
                new[done] = stop_token
                done = done | new.eq(stop_token)
            ids = torch.hstack([ids, new[:, None]])
            if done.all():
                break
    model.train(was)
    return ids


def off_for_ever(model, *given, **settings):
    torch.set_grad_enabled(False)
    return text(model, *given, **settings)


def always_train(model, *given, **settings):
    return text(model, *given, **settings, end=lambda was: model.train())


def train_mode(model, *given, **settings):
    return text(model, *given, **settings, begin=model.train)


def one_id_for_all(logits, *settings):
    return pick(logits[:1], *settings).repeat(len(logits), 1)


def seeded_draw(logits, temperature, top_k, top_p, generator):
    generator = torch.Generator().manual_seed(generator.initial_seed() if generator else 7)
    return pick(logits, temperature, top_k, top_p, generator)


def seeds_itself(model, *given, **settings):
    torch.manual_seed(1234)
    return text(model, *given, **settings)


def at_the_same_step():
    """Look only at the ids of this step."""
    return wrong(fills=False, over=lambda done, B: len(done) == B or bool(done.clear()))


def returns_inside(model, ids, n, temperature=1.0, top_k=None, top_p=None, stop_token=None, generator=None):
    """Restore the mode behind the loop, and return from within it."""
    mode = model.training
    model.eval()
    done = torch.zeros(len(ids), dtype=torch.bool)
    with torch.no_grad():
        for _ in range(n):
            new = pick(model(ids[:, -model.config.max_seq_length :])[:, -1], temperature, top_k, top_p, generator)
            if stop_token is not None:
                new = torch.where(done[:, None], stop_token, new)
                done |= new[:, 0] == stop_token
            ids = torch.cat((ids, new), 1)
            if done.all():
                return ids
    model.train(mode)
    return ids


def returns_at_0(model, ids, n, **settings):
    model.eval() if n == 0 else None
    return ids if n == 0 else text(model, ids, n, **settings)


def by_the_last(model, ids, n, temperature=1.0, top_k=None, top_p=None, stop_token=None, generator=None):
    """Judge by the row's last id whether it has stopped."""
    mode = model.training
    model.eval()
    for _ in range(n):
        with torch.no_grad():
            new = pick(model(ids[:, -model.config.max_seq_length :])[:, -1], temperature, top_k, top_p, generator)
        if stop_token is not None:
            new = torch.where(ids[:, -1:] == stop_token, stop_token, new)
        ids = torch.cat((ids, new), 1)
        if stop_token is not None and (ids[:, -1] == stop_token).all():
            break
    model.train(mode)
    return ids


def asks_first(model, ids, n, **settings):
    """Ask at the head of the loop whether all rows end in the stop token."""
    stop = settings.get("stop_token")
    return text(model, ids, 0 if stop is not None and bool((ids[:, -1] == stop).all()) else n, **settings)


def with_the_prompt(model, ids, n, temperature=1.0, top_k=None, top_p=None, stop_token=None, generator=None):
    """Count the prompt's stop tokens, at the head of the loop."""
    mode = model.training
    model.eval()
    for _ in range(n):
        done = (ids == stop_token).any(1, keepdim=True) if stop_token is not None else torch.zeros(len(ids), 1).bool()
        if done.all():
            break
        with torch.no_grad():
            new = pick(model(ids[:, -model.config.max_seq_length :])[:, -1], temperature, top_k, top_p, generator)
        ids = torch.cat((ids, new.masked_fill(done, stop_token or 0)), 1)
    model.train(mode)
    return ids


def by_item(model, ids, n, temperature=1.0, top_k=None, top_p=None, stop_token=None, generator=None):
    mode = model.training
    model.eval()
    for _ in range(n):
        with torch.no_grad():
            new = pick(model(ids[:, -model.config.max_seq_length :])[:, -1], temperature, top_k, top_p, generator)
        ids = torch.cat((ids, new), 1)
        if stop_token is not None and new.item() == stop_token:
            break
    model.train(mode)
    return ids


def frozen_for_ever(model, *given, **settings):
    for parameter in model.parameters():
        parameter.requires_grad = False
    return text(model, *given, **settings)


def cache_for_ever(change):
    """Feed the newest id alone once the prompt is in the cache; `change` is applied to a full one."""

    def candidate(model, ids, n, temperature=1.0, top_k=None, top_p=None, stop_token=None, generator=None):
        mode, limit = model.training, model.config.max_seq_length
        model.eval()
        cache, new = l1_ref.KVCache(model.config, len(ids)), ids[:, -limit:]
        done = torch.zeros(len(ids), 1).bool()
        with torch.no_grad():
            for _ in range(n):
                if cache.length == limit:
                    cache = change(cache, l1_ref.KVCache(model.config, len(ids)))
                new = pick(model.head(model.hidden(new, cache)[:, -1]), temperature, top_k, top_p, generator)
                if stop_token is not None:
                    new = torch.where(done, stop_token, new)
                    done = done | (new == stop_token)
                ids = torch.cat((ids, new), 1)
                if done.all():
                    break
        model.train(mode)
        return ids

    return candidate


def slid(cache, fresh):
    """Move all by one place."""
    fresh.keys[..., :-1, :] = cache.keys[..., 1:, :]
    fresh.values[..., :-1, :] = cache.values[..., 1:, :]
    fresh.length = cache.length - 1
    return fresh


def set_back(cache, fresh):
    cache.length = cache.length - 1
    return cache


GENERATE_WRONG = {
    **{
        wrong(draw=lambda logits, heat, *rest, f=f: pick(logits, heat * f, *rest)): "not the one that was asked for"
        for f in (0.75, 0.8, 0.9, 0.95, 1.05, 1.1, 1.3)
    },
    wrong(draw=up_to(0.95)): "a high top_p is taken for 1",
    returns_inside: "where it returns early",
    returns_at_0: "where it returns early",
    by_the_last: "at the end of the prompt counts",
    asks_first: "at the end of the prompt counts",
    with_the_prompt: "a stop token in the prompt counts",
    by_item: "it works for one row only",
    wrong(fill=-1): "filled with another token",
    frozen_for_ever: "parameters stay frozen",
    cache_for_ever(lambda cache, fresh: cache): "not filled anew when the window is full",
    cache_for_ever(lambda cache, fresh: fresh): "not filled anew when the window is full",
    cache_for_ever(slid): "not filled anew when the window is full",
    cache_for_ever(set_back): "not filled anew when the window is full",
    cropped(lambda row, limit: row[-(limit + 1) :]): "the crop leaves one token too many",
    wrong(draw=lambda logits, heat, *rest: pick(logits, heat or 1.0, *rest)): "temperature 0 is taken for 1",
    wrong(draw=lambda logits, heat, *rest: pick(logits, heat * heat, *rest)): "the temperature acts twice",
    wrong(at=lambda every: every[:, 0, :]): "behind the first token",
    wrong(see=lambda row: row[-1:]): "only the newest token is fed",
    prompt_then_newest: "only the newest token is fed",
    prompt_again: "only the prompt is fed",
    all_into_the_cache: "the cache is fed the whole text",
    wrong(see=list): "there is no crop",
    cropped(lambda row, limit: row[:limit]): "cropped on the wrong side",
    cropped(lambda row, limit: row[1 - limit :]): "one token too many away",
    crop_result: "what is returned has been cropped",
    crop_ids: "what is returned has been cropped",
    wrong(result=lambda rows, T: torch.tensor([row[T:] for row in rows])): "the prompt is left out",
    wrong(result=lambda rows, T: torch.tensor([row[-1] for row in rows])[:, None]): "only the last step's ids",
    wrong(n=lambda n, T: n + 1): "one token too many is written",
    wrong(n=lambda n, T: n or 1): "one token too many is written",
    wrong(n=lambda n, T: n - 1): "one token too few",
    wrong(n=lambda n, T: n - T): "taken for the length",
    wrong(begin=lambda: None): "dropout is active",
    train_mode: "dropout is active",
    wrong(end=lambda was: None): "is left in eval mode",
    always_train: "always left in training mode",
    wrong(recording=True): "steps are recorded",
    off_for_ever: "gradients stay turned off",
    wrong(fills=False): "is not filled with the stop token",
    at_the_same_step(): "at the same step",
    wrong(fill=0): "filled with another token",
    wrong(over=lambda done, B: bool(done)): "as soon as one row",
    wrong(over=lambda done, B: bool(done), fills=False): "as soon as one row",
    wrong(over=lambda done, B: 0 in done): "only the first row decides",
    wrong(over=lambda done, B: B - 1 in done): "the last row decides",
    wrong(over=lambda done, B: False): "nothing ends early",
    wrong(stops=lambda row, stop: False): "the stop token is ignored",
    wrong(stops=lambda row, stop: bool(stop) and row[-1] == stop): "stop_token 0 is taken",
    wrong(stops=lambda row, stop: stop in row): "a stop token in the prompt counts",
    wrong(drops=True): "the last stop token is left out",
    drawn_with(temperature=1.0): "the temperature is ignored",
    drawn_with(top_k=None): "top_k is ignored",
    drawn_with(top_p=None): "top_p is ignored",
    drawn_with(top_k=None, top_p=None): "both ignored",
    wrong(draw=lambda logits, t, k, p, g: l1_ref.sample(logits, t, top_p=k, top_k=p, generator=g)): "changed places",
    wrong(draw=lambda logits, *settings: pick(logits, generator=settings[-1])): "all settings are ignored",
    drawn_with(generator=None): "the generator is not used",
    wrong(draw=lambda logits, *settings: logits.argmax(-1)): "nothing is drawn",
    wrong(draw=one_id_for_all): "one draw for the whole batch",
    wrong(draw=seeded_draw): "with the same seed",
    seeds_itself: "torch's own seed is set",
    wrong(draw=lambda logits, *settings: pick(logits.softmax(-1), *settings)): "softmax is applied before",
    cool: "another default",
    as_elsewhere: "another default",
    cold: "another default",
    lambda model, ids, *given, **settings: text(model, ids[:1], *given, **settings): "only the first row is continued",
    wrong(result=lambda rows, T: torch.tensor(rows[0])): "only the first row is continued",
    wrong(result=lambda rows, T: rows): "a list comes back",
    wrong(result=lambda rows, T: torch.tensor(rows).T): "the axes are swapped",
    wrong(result=lambda rows, T: torch.tensor(rows).squeeze()): "the axis of the batch is lost",
}


def by_the_book(model, ids, n, temperature=1.0, top_k=None, top_p=None, stop_token=None, generator=None):
    mode, limit = model.training, model.config.max_seq_length
    model.eval()
    stopped = torch.zeros(len(ids), dtype=torch.bool)
    for _ in range(n):
        with torch.inference_mode():
            new = pick(model(ids[:, -limit:])[:, -1], temperature, top_k, top_p, generator)
        if stop_token is not None:
            new = torch.where(stopped[:, None], stop_token, new)
            stopped |= new[:, 0] == stop_token
        ids = torch.cat([ids, new], 1)
        if stopped.all():
            break
    return model.train(mode) and ids


@torch.no_grad()
def with_cache(model, ids, n, temperature=1.0, top_k=None, top_p=None, stop_token=None, generator=None):
    """Feed new tokens alone while the window is not full, and all of it afterwards."""
    mode, limit = model.training, model.config.max_seq_length
    model.eval()
    cache = Joining(model.config, len(ids))
    done = torch.full((len(ids), 1), False)
    for _ in range(n):
        fits = ids.shape[1] <= limit
        h = model.hidden(ids[:, cache.length :], cache) if fits else model.hidden(ids[:, -limit:])
        new = l1_ref.sample(model.head(h[:, -1]), temperature, top_k, top_p, generator)
        if stop_token is not None:
            new[done] = stop_token
            done = done | (new == stop_token)
        ids = torch.cat((ids, new), -1)
        if stop_token is not None and done.all():
            break
    model.train(mode)
    return ids


@torch.no_grad()
def row_after_row(model, ids, n, temperature=1.0, top_k=None, top_p=None, stop_token=None, generator=None):
    """Write one row to its end, then the next, and fill the short ones up."""
    mode = model.training
    model.eval()
    rows = []
    for row in ids.tolist():
        T = len(row)
        while len(row) < T + n and not (len(row) > T and row[-1] == stop_token):
            logits = model(torch.tensor([row[-model.config.max_seq_length :]]))[:, -1]
            row.append(pick(logits, temperature, top_k, top_p, generator).item())
        rows.append(row)
    length = max(map(len, rows))
    model.train(mode)
    return torch.tensor([row + [stop_token] * (length - len(row)) for row in rows])


@torch.no_grad()
def into_a_buffer(model, ids, n, temperature=1.0, top_k=None, top_p=None, stop_token=None, generator=None):
    """Write into a tensor that is large enough, without a flag for each row."""
    B, T = ids.shape
    out = torch.cat((ids, ids.new_zeros(B, n)), 1)
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        for t in range(T, T + n):
            logits = model(out[:, max(0, t - model.config.max_seq_length) : t])[:, -1]
            out[:, t] = pick(logits, temperature, top_k, top_p, generator).squeeze(1)
            if stop_token is not None:
                ended = (out[:, T:t] == stop_token).any(1)
                out[ended, t] = stop_token
                if (out[:, t] == stop_token).all():
                    return out[:, : t + 1]
        return out
    finally:
        for module, training in modes.items():
            module.training = training


def by_stream(model, ids, n, temperature=1.0, top_k=None, top_p=None, stop_token=None, generator=None):
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "generator": generator}
    return torch.hstack([ids, *l1_ref.stream(model, ids, n, stop_token=stop_token, **settings)])


GENERATE_RIGHT = [text, by_the_book, with_cache, row_after_row, into_a_buffer, by_stream]
GENERATE_STUBS = [
    lambda *given, **settings: None,
    lambda model, ids, n, **settings: ids,
    lambda model, ids, n, **settings: torch.cat((ids, ids.new_zeros(len(ids), n)), 1),
    lambda model, ids, n, **settings: torch.cat((ids, torch.randint(9, (len(ids), n))), 1),
    lambda model, ids, n, **settings: text(model, ids, n),
    lambda model, ids, n, **settings: text(model, ids, n, **(settings | {"temperature": 0.0})),
]

# next_logits


def feed(model, ids, cache, take=lambda ids, n: ids[:, n:], use=True, look=lambda every: every[:, -1], finish=None):
    """Score every place, and take one; each argument is a mistake."""
    if finish is None:
        finish = model.head
    return look(finish(model.hidden(take(ids, cache.length), cache if use else None)))


def feeding(**places):
    return lambda model, ids, cache: feed(model, ids, cache, **places)


def moves_too(model, ids, cache):
    scores = feed(model, ids, cache)
    cache.length = cache.length + 1 if ids.shape[1] == 1 else cache.length + ids.shape[1]
    return scores


def moves_by_new(model, ids, cache):
    new = ids[:, cache.length :]
    hidden = model.hidden(new, cache)
    cache.length += new.size(1)
    return model.head(hidden)[:, -1]


def puts_back(model, ids, cache):
    before = cache.length
    scores = feed(model, ids, cache)
    cache.length = before
    return scores


def empties(model, ids, cache):
    cache.length = 0
    return feed(model, ids, cache)


def uncached(model, ids, cache):
    return model(ids)[:, -1]


def uncached_but_counted(model, ids, cache):
    scores = model(ids)[:, -1]
    cache.length = ids.shape[1]
    return scores


def norm_again(model, ids, cache):
    return feed(model, ids, cache, finish=lambda h: model.head(model.norm(h)))


NEXT_WRONG = {
    feeding(take=lambda ids, n: ids): "the whole sequence is fed",
    feeding(take=lambda ids, n: ids[:, -1:]): "only the last id is fed",
    feeding(take=lambda ids, n: ids[:, -1:] if n > 0 else ids): "only the last id is fed",
    feeding(take=lambda ids, n: ids[:, n - 1 :] if n else ids): "one id is fed again",
    feeding(take=lambda ids, n: ids[:, n + 1 :] if n + 1 < ids.shape[1] else ids[:, -1:]): "one id is left out",
    feeding(take=lambda ids, n: ids[:, 1 + n :]): "one id is left out",
    feeding(take=lambda ids, n: ids[:, :n] if n else ids): "the ids that the cache knows",
    uncached_but_counted: "its length is moved all the same",
    uncached: "the cache is not used",
    feeding(use=False): "the cache is not handed to the model",
    empties: "the cache is emptied",
    moves_by_new: "length is moved on a second time",
    puts_back: "length is set back",
    feeding(look=lambda every: every[:, 0]): "behind the first of the new ids",
    feeding(look=lambda every: every): "behind every new id",
    feeding(look=lambda every: every[:, [-1]]): "behind every new id",
    feeding(look=lambda every: every[-1]): "the last row comes back",
    feeding(finish=lambda hidden: hidden): "the head is missing",
    feeding(look=lambda every: F.softmax(every[:, -1], dim=1)): "probabilities come back",
    feeding(look=lambda every: every[:, -1].argmax(1, keepdim=True)): "an id comes back",
    norm_again: "the last norm is applied once more",
}


def one_at_a_time(model, ids, cache):
    for t in range(cache.length, ids.shape[1]):
        hidden = model.hidden(ids[:, t : t + 1], cache)
    return model.head(hidden).squeeze(1)


def by_difference(model, ids, cache):
    n_new = ids.shape[1] - cache.length
    return model.head(model.hidden(ids[:, -n_new:], cache))[:, n_new - 1]


@torch.inference_mode()
def by_product(model, ids, cache):
    new = ids.narrow(1, cache.length, ids.shape[1] - cache.length)
    return model.hidden(new, cache).select(1, -1) @ model.head.weight.mT


def split_in_two(model, ids, cache):
    *_, last = (model.hidden(part, cache) for part in ids[:, cache.length :].split(2, dim=1))
    return F.linear(last[:, -1, :], model.head.weight)


NEXT_RIGHT = [feed, one_at_a_time, by_difference, by_product, split_in_two]
NEXT_STUBS = [
    lambda model, ids, cache: None,
    lambda model, ids, cache: ids,
    lambda model, ids, cache: torch.zeros(len(ids), model.config.vocab_size),
    lambda model, ids, cache: torch.randn(len(ids), model.config.vocab_size),
    moves_too,
]

WRONG = {
    "greedy": GREEDY_WRONG,
    "apply_temperature": HEAT_WRONG,
    "top_k_filter": TOP_K_WRONG,
    "top_p_filter": TOP_P_WRONG,
    "sample": SAMPLE_WRONG,
    "KVCache": CACHE_WRONG,
    "generate": GENERATE_WRONG,
    "next_logits": NEXT_WRONG,
}
RIGHT = {
    "greedy": GREEDY_RIGHT,
    "apply_temperature": HEAT_RIGHT,
    "top_k_filter": TOP_K_RIGHT,
    "top_p_filter": TOP_P_RIGHT,
    "sample": SAMPLE_RIGHT,
    "KVCache": CACHE_RIGHT,
    "generate": GENERATE_RIGHT,
    "next_logits": NEXT_RIGHT,
}
STUBS = {
    "greedy": GREEDY_STUBS,
    "apply_temperature": HEAT_STUBS,
    "top_k_filter": FILTER_STUBS,
    "top_p_filter": FILTER_STUBS,
    "sample": SAMPLE_STUBS,
    "KVCache": CACHE_STUBS,
    "generate": GENERATE_STUBS,
    "next_logits": NEXT_STUBS,
}


def seeds_of(exercise, number):
    """Return a few of some seeds below twenty, others for each candidate.

    The first wrong answer on a seed runs the catalogue, so there are few seeds where that takes long.
    """
    quick = exercise.name in ("apply_temperature", "top_k_filter")
    slow = {"generate": (0, 13), "sample": (0, 8, 17), "KVCache": (0, 5, 11, 19), "next_logits": (0, 5, 11, 19)}
    seeds = slow.get(exercise.name, tuple(SEEDS)[:: 2 if quick else 4])
    n_seeds = {"apply_temperature": 2, "top_k_filter": 2, "top_p_filter": 2}.get(exercise.name, 1)
    return [seeds[(number + i) % len(seeds)] for i in range(n_seeds)]


def numbered(table):
    """Turn {exercise: candidates} into pytest's parameters, with a running number that spreads the seeds."""
    return [
        pytest.param(*parameters.values, number, id=parameters.id) for number, parameters in enumerate(cases(table))
    ]


@pytest.mark.parametrize(("exercise", "candidate", "words", "number"), numbered(WRONG))
def test_a_mistake_is_rejected_and_named_first(exercise, candidate, words, number):
    assert_named_first(exercise, candidate, words, seeds_of(exercise, number))


@pytest.mark.parametrize(("exercise", "candidate", "number"), numbered(RIGHT))
def test_every_right_style_is_accepted(exercise, candidate, number):
    assert_accepted(exercise, candidate, seeds_of(exercise, number))


@pytest.mark.parametrize(("exercise", "candidate", "number"), numbered(STUBS))
def test_nothing_else_passes(exercise, candidate, number):
    assert_rejected(exercise, candidate, seeds_of(exercise, number)[:1])


@pytest.mark.parametrize("name", WRONG)
def test_every_mistake_of_the_catalogue_has_a_wrong_answer_here(name):
    assert_all_told(checks.exercise(name), WRONG[name])


@pytest.mark.parametrize("name", WRONG)
def test_the_number_of_threads_changes_nothing(name):
    some = dict(list(WRONG[name].items())[:2])
    assert_same_on_two_threads(checks.exercise(name), RIGHT[name][:1], some)


@pytest.mark.parametrize("name", WRONG)
def test_the_reference_is_recognised(name):
    assert checks.exercise(name).diagnose(checks.exercise(name).reference).state == "given"
    if name != "next_logits":
        assert checks.exercise(name).reference is getattr(l1_ref, name)


def too_few_and_zeros(x, k):
    return kept_k(x, k, low=0.0, keep=lambda v, kth: v > kth)


def too_few_and_low(x, p):
    return kept_p(x, p, stop=crossing, minimum=1, low=-1e9)


def hot_and_soft(x, t):
    return F.softmax(x * t, -1)


def all_and_soft(model, ids, cache):
    return feed(model, ids, cache, take=lambda ids, n: ids).softmax(-1)


class FromZeroAndWhole(Buffer):
    extra = 0

    def start(self, T):
        return 0

    def window(self, T):
        return slice(None)


TWO_MISTAKES = [
    ("top_k_filter", too_few_and_zeros, ("k-th token is removed", "become 0")),
    ("top_p_filter", too_few_and_low, ("crosses p is removed", "a low number")),
    ("apply_temperature", hot_and_soft, ("multiplied", "softmax is applied after")),
    ("KVCache", FromZeroAndWhole, ("begins at place 0", "the whole buffer")),
    ("generate", wrong(begin=lambda: None, recording=True), ("dropout is active", "steps are recorded")),
    (
        "generate",
        wrong(n=lambda n, T: n + 1, result=lambda rows, T: torch.tensor([row[T:] for row in rows])),
        ("the prompt is left out", "one token too many"),
    ),
    ("next_logits", all_and_soft, ("the whole sequence is fed", "probabilities come back")),
]


@pytest.mark.parametrize(("name", "candidate", "words"), TWO_MISTAKES, ids=lambda value: str(value)[:20])
def test_two_mistakes_together_are_both_named(name, candidate, words):
    verdict = checks.exercise(name).diagnose(candidate)
    assert len(verdict.mistakes) == 2 and all(any(w in m for m in verdict.mistakes) for w in words), verdict.text


@pytest.mark.parametrize("name", WRONG)
def test_a_blank_is_not_written_yet(name):
    def blank(*given, **settings):
        raise NotImplementedError("not written yet")

    assert checks.exercise(name).diagnose(blank).state == "unwritten"


def test_a_blank_method_is_not_written_yet():
    class KVCache(Nothing):
        def append(self, layer, k, v):
            raise NotImplementedError("not written yet")

    assert checks.KVCache.diagnose(KVCache).state == "unwritten"


def test_a_cache_that_is_handed_in_built_is_told_so():
    cache = Lists(l1_ref.PRESETS["tiny"], 1)
    assert "hand in the code itself, as in checks.KVCache(KVCache)" in checks.KVCache.diagnose(cache).text


def test_a_check_leaves_gradients_and_random_numbers_as_they_were():
    before = torch.get_rng_state()
    for name, candidate in (("generate", off_for_ever), ("generate", seeds_itself), ("sample", seeds_globally)):
        checks.exercise(name).diagnose(candidate)
        assert torch.is_grad_enabled() and torch.equal(torch.get_rng_state(), before)


def test_what_belongs_to_a_class_does_not_outlive_a_check():
    assert checks.KVCache.diagnose(OfTheClass).text == checks.KVCache.diagnose(OfTheClass).text
    assert OfTheClass.past == {}


@pytest.mark.parametrize("heat", [3.0, 0.5, 0.05])
@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_a_temperature_three_hundredths_off_changes_which_ids_come(heat, factor):
    chances = torch.tensor([before_heat(heat, *EDGE)])
    assert torch.allclose(soft(chances.log() / heat), torch.tensor([EDGE]))

    def n_kept(p, heat):
        return p_right(chances.log() / heat, p).isfinite().sum().item()

    assert sum(EDGE[:2]) == pytest.approx(0.68) and (n_kept(0.6775, heat), n_kept(0.6825, heat)) == (2, 3)
    assert (n_kept(0.6775, heat * factor), n_kept(0.6825, heat * factor)) == ((3, 3) if factor > 1 else (2, 2))


@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_other_temperatures_are_found_on_each_of_some_seeds(factor):
    for seed in SEEDS[::3]:
        for candidate in (at_other_heat(lambda t: t * factor), only_where(True, factor), only_where(False, factor)):
            assert checks.sample.diagnose(candidate, seed).state == "wrong"
            assert seed or checks.generate.diagnose(wrong(draw=candidate)).state == "wrong"


def test_messages_show_what_was_drawn_and_what_was_fed():
    text = checks.sample.diagnose(zero_is_one).text
    assert "expected  [2]     got  [0, 1, 2, 3]     [the set of ids drawn for row 0]" in text
    text = checks.next_logits.diagnose(empties).text
    assert "expected  1     got  4     [ids a row that go through the model, call 2]" in text
    text = checks.generate.diagnose(wrong(see=list)).text
    assert "a model with a context of 5" in text and "max_seq_length=5" in text
