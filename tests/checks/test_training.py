"""The checks of 06_training: mistakes in other words than the catalogue's, right answers in many styles, stubs."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import clip_grad_norm_

import l1_ref
from l1_ref import checks
from l1_ref.checks.averaging import mean_loss
from tests.check_cases import (
    SEEDS,
    assert_accepted,
    assert_all_told,
    assert_named_first,
    assert_rejected,
    assert_same_on_two_threads,
    cases,
)


def rows(logits, targets):
    return logits.reshape(-1, logits.size(-1)), targets.reshape(-1)


# cross_entropy: wrong answers, as learners write them.


def shifted_again(logits, targets, label_smoothing=0.0, ignore_index=-100):
    a, b = rows(logits[:, :-1].contiguous(), targets[:, 1:].contiguous())
    return F.cross_entropy(a, b, ignore_index=ignore_index, label_smoothing=label_smoothing)


def shifted_back(logits, targets, label_smoothing=0.0, ignore_index=-100):
    a, b = rows(logits[:, 1:], targets[:, :-1])
    return F.cross_entropy(a, b, ignore_index=ignore_index, label_smoothing=label_smoothing)


def by_nll(logp, targets, s, ignore_index):
    """Right from here on, for log-probabilities."""
    rows_of, flat = rows(logp, targets)
    keep = flat != ignore_index
    rows_of, flat = rows_of[keep], flat[keep]
    return -((1 - s) * rows_of[torch.arange(len(flat)), flat] + s * rows_of.mean(1)).mean()


def over_positions(logits, targets, label_smoothing=0.0, ignore_index=-100):
    logp = torch.log(F.softmax(logits, dim=1))
    return by_nll(logp, targets, label_smoothing, ignore_index)


def over_texts(logits, targets, label_smoothing=0.0, ignore_index=-100):
    return by_nll(logits - logits.logsumexp(0), targets, label_smoothing, ignore_index)


def straight_to_torch(logits, targets, label_smoothing=0.0, ignore_index=-100):
    loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing, ignore_index=ignore_index)
    return loss(logits, targets)


def view_for_transpose(logits, targets, label_smoothing=0.0, ignore_index=-100):
    B, T, V = logits.shape
    return F.cross_entropy(
        logits.contiguous().view(B, V, T), targets, label_smoothing=label_smoothing, ignore_index=ignore_index
    )


def nll_of_logits(logits, targets, label_smoothing=0.0, ignore_index=-100):
    return by_nll(logits, targets, label_smoothing, ignore_index)


def two_softmaxes(logits, targets, label_smoothing=0.0, ignore_index=-100):
    a, b = rows(torch.softmax(logits, dim=-1), targets)
    return F.cross_entropy(a, b, ignore_index=ignore_index, label_smoothing=label_smoothing)


def no_log(logits, targets, label_smoothing=0.0, ignore_index=-100):
    return by_nll(F.softmax(logits, -1), targets, label_smoothing, ignore_index)


def one_minus_p(logits, targets, label_smoothing=0.0, ignore_index=-100):
    return 1 + by_nll(F.softmax(logits, -1), targets, label_smoothing, ignore_index)


def in_bits(logits, targets, label_smoothing=0.0, ignore_index=-100):
    return by_nll(F.log_softmax(logits, -1) * math.log2(math.e), targets, label_smoothing, ignore_index)


def no_minus(logits, targets, label_smoothing=0.0, ignore_index=-100):
    return by_nll(-F.log_softmax(logits, -1), targets, label_smoothing, ignore_index)


def sum_reduction(logits, targets, label_smoothing=0.0, ignore_index=-100):
    a, b = rows(logits, targets)
    return F.cross_entropy(a, b, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="sum")


def over_b(logits, targets, label_smoothing=0.0, ignore_index=-100):
    return sum_reduction(logits, targets, label_smoothing, ignore_index) / logits.shape[0]


def over_t(logits, targets, label_smoothing=0.0, ignore_index=-100):
    return sum_reduction(logits, targets, label_smoothing, ignore_index) / targets.size(1)


def text_by_text(logits, targets, label_smoothing=0.0, ignore_index=-100):
    losses = [
        F.cross_entropy(a, b, ignore_index=ignore_index, label_smoothing=label_smoothing)
        for a, b in zip(logits, targets, strict=True)
    ]
    return torch.stack(losses).mean()


def mean_of_one_hot(logits, targets, label_smoothing=0.0, ignore_index=-100):
    keep = targets != ignore_index
    V = logits.shape[-1]
    q = F.one_hot(targets.clamp(min=0), V) * (1 - label_smoothing) + label_smoothing / V
    return -(q * F.log_softmax(logits, -1))[keep].mean()


def no_reduction(logits, targets, label_smoothing=0.0, ignore_index=-100):
    a, b = rows(logits, targets)
    loss = F.cross_entropy(a, b, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="none")
    return loss.view(targets.shape)


def flat_losses(logits, targets, label_smoothing=0.0, ignore_index=-100):
    return no_reduction(logits, targets, label_smoothing, ignore_index).view(-1)


def mean_with_padding(logits, targets, label_smoothing=0.0, ignore_index=-100):
    return no_reduction(logits, targets, label_smoothing, ignore_index).mean()


def padding_is_class_0(logits, targets, label_smoothing=0.0, ignore_index=-100):
    a, b = rows(logits, torch.where(targets < 0, torch.zeros_like(targets), targets))
    return F.cross_entropy(a, b, label_smoothing=label_smoothing)


def fixed_index(logits, targets, label_smoothing=0.0, ignore_index=-100):
    a, b = rows(logits, targets)
    return F.cross_entropy(a, b, ignore_index=-100, label_smoothing=label_smoothing)


def below_zero(logits, targets, label_smoothing=0.0, ignore_index=-100):
    a, b = rows(logits, targets)
    return F.cross_entropy(a[b >= 0], b[b >= 0], label_smoothing=label_smoothing)


def zero_is_padding(logits, targets, label_smoothing=0.0, ignore_index=0):
    a, b = rows(logits, targets)
    return F.cross_entropy(a, b, ignore_index=ignore_index, label_smoothing=label_smoothing)


def hard_targets(logits, targets, label_smoothing=0.0, ignore_index=-100):
    a, b = rows(logits, targets)
    return F.nll_loss(F.log_softmax(a, 1), b, ignore_index=ignore_index)


def smooth_by_default(logits, targets, label_smoothing=0.1, ignore_index=-100):
    a, b = rows(logits, targets)
    return F.cross_entropy(a, b, ignore_index=ignore_index, label_smoothing=label_smoothing)


def smoothed(make):
    """Return a loss whose smoothed targets (N, V) are made by make(one-hot targets, s, V)."""

    def loss(logits, targets, label_smoothing=0.0, ignore_index=-100):
        a, b = rows(logits, targets)
        a, b = a[b != ignore_index], b[b != ignore_index]
        q = make(F.one_hot(b, a.shape[1]).to(a.dtype), label_smoothing, a.shape[1])
        return -(q * F.log_softmax(a, dim=1)).sum(1).mean()

    return loss


others_only = smoothed(lambda q, s, V: q * (1 - s) + (1 - q) * s / (V - 1))
others_only_by_v = smoothed(lambda q, s, V: torch.where(q == 1, 1 - s, s / V))
whole_and_more = smoothed(lambda q, s, V: q + s / V)
s_for_all = smoothed(lambda q, s, V: q * (1 - s) + s)
s_lost = smoothed(lambda q, s, V: q - q * s)
turned_round = smoothed(lambda q, s, V: q * s + (1 - s) / V)


def smooth_probabilities(logits, targets, label_smoothing=0.0, ignore_index=-100):
    a, b = rows(logits, targets)
    p = (1 - label_smoothing) * a.softmax(1) + label_smoothing / a.shape[1]
    return F.nll_loss(p.log(), b, ignore_index=ignore_index)


def smooth_padding(logits, targets, label_smoothing=0.0, ignore_index=-100):
    a, b = rows(logits, targets)
    logp = F.log_softmax(a, 1)
    return (1 - label_smoothing) * F.nll_loss(logp, b, ignore_index=ignore_index) - label_smoothing * logp.mean()


def naive_softmax(logits, targets, label_smoothing=0.0, ignore_index=-100):
    e = torch.exp(logits)
    return by_nll(torch.log(e / e.sum(dim=-1, keepdim=True)), targets, label_smoothing, ignore_index)


def naive_logsumexp(logits, targets, label_smoothing=0.0, ignore_index=-100):
    return by_nll(logits - torch.log(logits.exp().sum(-1, True)), targets, label_smoothing, ignore_index)


def global_maximum(logits, targets, label_smoothing=0.0, ignore_index=-100):
    logits = logits - torch.max(logits)
    return by_nll(logits - torch.log(logits.exp().sum(-1, True)), targets, label_smoothing, ignore_index)


def log_of_softmax(logits, targets, label_smoothing=0.0, ignore_index=-100):
    return by_nll(torch.log(F.softmax(logits, -1)), targets, label_smoothing, ignore_index)


def log_of_softmax_and_a_bit(logits, targets, label_smoothing=0.0, ignore_index=-100):
    return by_nll(torch.log(F.softmax(logits, -1) + 1e-9), targets, label_smoothing, ignore_index)


def zero_for_nothing(logits, targets, label_smoothing=0.0, ignore_index=-100):
    if (targets == ignore_index).all():
        return (logits * 0).sum()
    return torchs_rows(logits, targets, label_smoothing, ignore_index)


def yes_or_no(logits, targets, label_smoothing=0.0, ignore_index=-100):
    a, b = rows(logits, targets)
    a, b = a[b != ignore_index], b[b != ignore_index]
    q = F.one_hot(b, a.shape[1]).to(a.dtype) * (1 - label_smoothing) + label_smoothing / a.shape[1]
    return F.binary_cross_entropy_with_logits(a, q)


def as_perplexity(logits, targets, label_smoothing=0.0, ignore_index=-100):
    return torch.exp(torchs_rows(logits, targets, label_smoothing, ignore_index))


def last_token(logits, targets, label_smoothing=0.0, ignore_index=-100):
    return F.cross_entropy(logits[:, -1], targets[:, -1], ignore_index=ignore_index, label_smoothing=label_smoothing)


def as_float(logits, targets, label_smoothing=0.0, ignore_index=-100):
    return float(torchs_rows(logits, targets, label_smoothing, ignore_index))


def under_no_grad(logits, targets, label_smoothing=0.0, ignore_index=-100):
    with torch.no_grad():
        return torchs_rows(logits, targets, label_smoothing, ignore_index)


def overwrites_padding(logits, targets, label_smoothing=0.0, ignore_index=-100):
    keep = targets != ignore_index
    targets[~keep] = 0
    logp = F.log_softmax(logits, -1)
    loss = -(1 - label_smoothing) * logp.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - label_smoothing * logp.mean(-1)
    return (loss * keep).sum() / keep.sum()


def minus_equals(logits, targets, label_smoothing=0.0, ignore_index=-100):
    logits -= logits.max(-1, keepdim=True).values
    return torchs_rows(logits, targets, label_smoothing, ignore_index)


CROSS_ENTROPY_WRONG = {
    shifted_again: "shifted again",
    shifted_back: "shifted again",
    over_positions: "along the positions T",
    over_texts: "along the texts B",
    straight_to_torch: "takes axis 1 for the classes",
    view_for_transpose: "mixes the numbers up",
    nll_of_logits: "the softmax is missing",
    two_softmaxes: "taken twice",
    no_log: "the logarithm is missing",
    one_minus_p: "the logarithm is missing",
    in_bits: "base 2",
    no_minus: "the minus sign",
    sum_reduction: "summed, not averaged",
    over_b: "number of texts alone",
    over_t: "number of texts alone",
    text_by_text: "each text is averaged by itself",
    mean_of_one_hot: "over the classes too",
    no_reduction: "one came back for each token",
    flat_losses: "one came back for each token",
    mean_with_padding: "padding counts in the mean, as zeros",
    padding_is_class_0: "padding counts like any other target",
    fixed_index: "ignore_index is not used",
    below_zero: "ignore_index is not used",
    zero_is_padding: "ignore_index has another default",
    hard_targets: "label_smoothing is not used",
    smooth_by_default: "label_smoothing has another default",
    others_only: "over the other classes only",
    others_only_by_v: "over the other classes only",
    whole_and_more: "smoothing is added",
    s_for_all: "not divided by V",
    s_lost: "gives it to none",
    turned_round: "turned round",
    smooth_probabilities: "applied to the probabilities",
    smooth_padding: "smoothing counts padding too",
    naive_softmax: "exp overflows",
    naive_logsumexp: "exp overflows",
    global_maximum: "the largest score of all",
    log_of_softmax: "the logarithm of a softmax",
    log_of_softmax_and_a_bit: "the logarithm of a softmax",
    zero_for_nothing: "nothing but padding",
    yes_or_no: "as yes or no",
    as_perplexity: "it is the perplexity",
    last_token: "only the last position",
    as_float: "no gradient gets through",
    under_no_grad: "no gradient gets through",
    overwrites_padding: "the targets are changed",
    minus_equals: "the logits are changed",
}


# cross_entropy: right answers.


def torchs_rows(logits, targets, label_smoothing=0.0, ignore_index=-100):
    a, b = rows(logits, targets)
    return F.cross_entropy(a, b, ignore_index=ignore_index, label_smoothing=label_smoothing)


def torchs_axes(logits, targets, label_smoothing=0.0, ignore_index=-100):
    return F.cross_entropy(logits.permute(0, 2, 1), targets, ignore_index=ignore_index, label_smoothing=label_smoothing)


def torchs_module(logits, targets, s=0.0, ignore=-100):
    return nn.CrossEntropyLoss(ignore_index=ignore, label_smoothing=s)(logits.flatten(0, 1), targets.flatten())


def by_gather(logits, targets, label_smoothing=0.0, ignore_index=-100):
    counts = targets != ignore_index
    logp = F.log_softmax(logits, dim=-1)
    safe = torch.where(counts, targets, 0)
    picked = logp.gather(-1, safe.unsqueeze(-1)).squeeze(-1)
    losses = -(1 - label_smoothing) * picked - label_smoothing * logp.mean(-1)
    return (losses * counts).sum() / counts.sum()


def by_logsumexp(logits, targets, label_smoothing=0.0, ignore_index=-100):
    keep = targets.ne(ignore_index)
    logits, targets = logits[keep], targets[keep]
    nll = logits.logsumexp(1) - logits[range(len(targets)), targets]
    uniform = logits.logsumexp(1) - logits.mean(1)
    return torch.lerp(nll, uniform, label_smoothing).mean()


by_one_hot = smoothed(lambda q, s, V: q * (1 - s) + s / V)


def in_loops(logits, targets, label_smoothing=0.0, ignore_index=-100):
    losses = []
    for text, text_targets in zip(logits, targets.tolist(), strict=True):
        for scores, target in zip(text, text_targets, strict=True):
            if target == ignore_index:
                continue
            shifted = scores - scores.max()
            logp = shifted - shifted.exp().sum().log()
            uniform = -sum(logp) / len(logp)
            losses.append(-(1 - label_smoothing) * logp[target] + label_smoothing * uniform)
    return sum(losses) / len(losses) if losses else logits.sum() * float("nan")


def in_float64(logits, targets, label_smoothing=0.0, ignore_index=-100):
    return torchs_rows(logits.double(), targets, label_smoothing, ignore_index).to(logits.dtype)


def by_mixing_two_losses(logits, targets, label_smoothing=0.0, ignore_index=-100):
    a, b = rows(logits, targets)
    logp = a.log_softmax(-1)
    hard = F.nll_loss(logp, b, ignore_index=ignore_index)
    soft = -logp[b != ignore_index].mean()
    return hard * (1 - label_smoothing) + soft * label_smoothing


def by_soft_targets(logits, targets, label_smoothing=0.0, ignore_index=-100):
    a, b = rows(logits, targets)
    a, b = a[b != ignore_index], b[b != ignore_index]
    q = torch.full_like(a, label_smoothing / a.shape[1])
    q[torch.arange(len(b)), b] += 1 - label_smoothing
    return F.cross_entropy(a, q) if len(b) else a.sum() / 0


def by_weights(logits, targets, label_smoothing=0.0, ignore_index=-100):
    """Padding has the weight 0; the largest score is taken off by hand."""
    weight = (targets != ignore_index).to(logits.dtype)
    shifted = logits - logits.detach().amax(-1, keepdim=True)
    logp = shifted - shifted.exp().sum(-1, keepdim=True).log()
    picked = torch.take_along_dim(logp, (targets * weight.long())[..., None], -1)[..., 0]
    losses = -(1 - label_smoothing) * picked - label_smoothing * logp.mean(-1)
    return torch.einsum("bt,bt->", losses, weight) / weight.sum()


CROSS_ENTROPY_RIGHT = [
    by_weights,
    torchs_rows,
    torchs_axes,
    torchs_module,
    by_gather,
    by_logsumexp,
    by_one_hot,
    in_loops,
    in_float64,
    by_mixing_two_losses,
    by_soft_targets,
]


def first_text_only(logits, targets, label_smoothing=0.0, ignore_index=-100):
    return torchs_rows(logits[:1], targets[:1], label_smoothing, ignore_index)


def right_but_float32(logits, targets, label_smoothing=0.0, ignore_index=-100):
    return torchs_rows(logits.float(), targets, label_smoothing, ignore_index)


def adds_noise(logits, targets, label_smoothing=0.0, ignore_index=-100):
    return torchs_rows(logits + 0.01 * torch.randn_like(logits), targets, label_smoothing, ignore_index)


CROSS_ENTROPY_STUBS = [
    first_text_only,
    right_but_float32,
    adds_noise,
    lambda logits, targets, *_: logits,
    lambda logits, targets, *_: logits.mean(),
    lambda logits, targets, *_: torch.zeros(()),
    lambda logits, targets, *_: torch.rand(()),
    lambda logits, targets, *_: (logits.argmax(-1) == targets).float().mean(),
    lambda logits, targets, *_: F.mse_loss(
        logits.softmax(-1), F.one_hot(targets.clamp(min=0), logits.shape[-1]).float()
    ),
    lambda logits, targets: torchs_rows(logits, targets),
]


# perplexity.

PERPLEXITY_WRONG = {
    lambda loss: 2.0**loss: "base is 2",
    lambda loss: torch.exp2(torch.as_tensor(loss)): "base is 2",
    lambda loss: np.power(10, float(loss)): "base is 10",
    lambda loss: 2.718**loss: "e is rounded",
    lambda loss: math.exp(-float(loss)): "sign is turned",
    lambda loss: 1 / math.exp(loss): "sign is turned",
    lambda loss: math.log(loss) if loss > 0 else -math.inf: "the logarithm is taken",
    lambda loss: loss * 1: "returned as it is",
    lambda loss: math.expm1(loss): "1 is subtracted",
    lambda loss: loss * loss: "square of the loss",
    lambda loss: math.e ** (loss / math.log(2)): "divided by log 2",
    lambda loss: int(math.exp(float(loss)) + 0.5): "rounded",
    lambda loss: loss.exp(): "a plain float is not taken",
    lambda loss: loss.exp_() if torch.is_tensor(loss) else np.exp(loss): "changed in place",
}
PERPLEXITY_RIGHT = [
    lambda loss: math.exp(loss),
    lambda loss: math.e**loss,
    lambda loss: torch.exp(torch.as_tensor(loss)),
    lambda loss: torch.exp(loss) if isinstance(loss, torch.Tensor) else math.exp(loss),
    lambda loss: np.exp(float(loss)),
    lambda loss: torch.tensor(float(loss)).exp().item(),
    lambda loss: 2 ** (loss / math.log(2)),
]
PERPLEXITY_STUBS = [
    lambda loss: 7.389,
    lambda loss: torch.zeros(()),
    lambda loss: loss + 1,
    lambda loss: str(math.exp(loss)),
    lambda loss: [math.exp(loss)],
]


# cosine_lr: wrong answers.


def schedule(
    line=lambda step, peak, n, low: peak * step / n,
    progress=lambda step, n, total: (step - n) / (total - n),
    wave=lambda p: 0.5 * (1.0 + np.cos(np.pi * p)),
    end=lambda low: low,
    blend=lambda peak, low, share: low + share * (peak - low),
):
    """Return a schedule in the style of training scripts: warm-up, the end, and in between a cosine."""

    def rate(it, lr_peak, warmup_steps, total_steps, lr_min=0.0):
        if it < warmup_steps:
            return line(it, lr_peak, warmup_steps, lr_min)
        if it > total_steps:
            return end(lr_min)
        return float(blend(lr_peak, lr_min, wave(progress(it, warmup_steps, total_steps))))

    return rate


def lambda_style(step, lr_peak, warmup_steps, total_steps, lr_min=0.0):
    """Multiply a warm-up and a cosine, both over all steps."""
    warm = min(step / warmup_steps, 1.0) if warmup_steps > 0 else 1.0
    decay = 0.5 * (1 + math.cos(math.pi * min(step, total_steps) / total_steps))
    return warm * (lr_min + (lr_peak - lr_min) * decay)


def no_end(step, lr_peak, warmup_steps, total_steps, lr_min=0.0):
    if step < warmup_steps:
        return lr_peak * (step / warmup_steps)
    p = (step - warmup_steps) / (total_steps - warmup_steps)
    return lr_min + 0.5 * (lr_peak - lr_min) * (1 + math.cos(p * math.pi))


def restarts(step, lr_peak, warmup_steps, total_steps, lr_min=0.0):
    return schedule()(step % total_steps, lr_peak, warmup_steps, total_steps, lr_min)


def from_one(step, lr_peak, warmup_steps, total_steps, lr_min=0.0):
    return schedule()(step + 1, lr_peak, warmup_steps, total_steps, lr_min)


def floor(step, lr_peak, warmup_steps, total_steps, lr_min=0.0):
    return (
        max(lr_min, schedule()(step, lr_peak, warmup_steps, total_steps))
        if step >= warmup_steps
        else (lr_peak * step / warmup_steps)
    )


def no_floor(step, lr_peak, warmup_steps, total_steps, lr_min=0.0):
    return schedule()(step, lr_peak, warmup_steps, total_steps, 0.0)


def no_warmup(step, lr_peak, warmup_steps, total_steps, lr_min=0.0):
    if step >= total_steps:
        return lr_min
    return lr_min + (lr_peak - lr_min) * (1 + math.cos(math.pi * step / total_steps)) / 2


def up_to_and_with(step, lr_peak, warmup_steps, total_steps, lr_min=0.0):
    if step <= warmup_steps:
        return lr_peak * step / warmup_steps
    return schedule()(step, lr_peak, warmup_steps, total_steps, lr_min)


def starts_at_nothing(step, lr_peak, warmup_steps, total_steps, lr_min=0.0):
    if step <= warmup_steps:
        return lr_peak * step / max(warmup_steps, 1)
    return schedule()(step, lr_peak, warmup_steps, total_steps, lr_min)


def only_the_share(step, lr_peak, warmup_steps, total_steps, lr_min=0.0):
    return schedule()(step, lr_peak, warmup_steps, total_steps, lr_min) / lr_peak


COSINE_WRONG = {
    schedule(line=lambda step, peak, n, low: peak * (step + 1) / n): "one step ahead",
    schedule(line=lambda step, peak, n, low: peak * (step + 1) / (n + 1)): "one step ahead",
    schedule(line=lambda step, peak, n, low: peak * step / (n + 1)): "one step behind",
    from_one: "counted as the next one",
    schedule(line=lambda step, peak, n, low: low + step / n * (peak - low)): "begins at lr_min",
    schedule(line=lambda step, peak, n, low: step / n * (peak - low)): "leads to lr_peak - lr_min",
    no_warmup: "there is no warm-up",
    schedule(line=lambda step, peak, n, low: peak): "at the peak all along",
    schedule(line=lambda step, peak, n, low: step // n * peak): "// cuts",
    lambda_style: "a factor on a cosine",
    schedule(progress=lambda step, n, total: step / total): "begins at step 0, not at the end",
    schedule(progress=lambda step, n, total: (step - n) / total): "takes total_steps after the warm-up",
    schedule(progress=lambda step, n, total: step / (total - n)): "divided by the right length",
    schedule(progress=lambda step, n, total: (step - n) / (total - n - 1)): "ends one step early",
    schedule(progress=lambda step, n, total: (step + 1 - n) / (total - n)): "ends one step early",
    schedule(blend=lambda peak, low, share: low + peak * share): "added on top",
    floor: "cuts the cosine off",
    lambda step, *given: schedule()(step, *given[:3]) + sum(given[3:]): "added to the rate of every step",
    schedule(wave=lambda p: (1 - p) ** 2): "by a power",
    lambda step, lr_peak, n, *_: lr_peak * min(1.0, step / max(1, n)): "no cosine",
    schedule(blend=lambda peak, low, share: share * peak): "not used in the cosine",
    no_floor: "not used in the cosine",
    schedule(blend=lambda peak, low, share: share * (peak - low)): "comes down to lr_min at once",
    schedule(blend=lambda peak, low, share: peak * (low + (1 - low) * share)): "as a share of the peak",
    no_end: "goes up again",
    restarts: "goes up again",
    schedule(end=lambda low: 0.0): "after total_steps the rate is 0",
    lambda step, *given: (
        schedule()(step, *given) if step <= given[2] else given[0]
    ): "after total_steps the rate is the peak",
    schedule(wave=lambda p: 0.5 * (1 + math.cos(180 * p))): "in degrees",
    schedule(wave=lambda p: (1 + math.cos(p)) / 2): "pi is missing",
    schedule(wave=lambda p: (1 + math.cos(math.tau * p)) / 2): "a whole turn",
    schedule(wave=lambda p: math.cos(p * math.pi * 0.5)): "a quarter",
    schedule(wave=lambda p: 1 + math.cos(math.pi * p)): "the factor 0.5",
    schedule(wave=lambda p: math.cos(math.pi * p)): "1 is not added",
    schedule(wave=lambda p: 0.5 * 1 + math.cos(math.pi * p)): "brackets are missing",
    schedule(wave=lambda p: 0.5 - 0.5 * math.cos(math.pi * p)): "the cosine rises",
    schedule(wave=lambda p: 0.5 + 0.5 * math.sin(math.pi * p)): "sin stands",
    schedule(wave=lambda p: 1 - p): "a straight line down",
    only_the_share: "share of the peak",
    up_to_and_with: "divides by zero",
    starts_at_nothing: "begins at 0",
}


# cosine_lr: right answers.


def nested(step, lr_peak, warmup_steps, total_steps, lr_min=0.0):
    return (
        lr_peak * step / warmup_steps
        if step < warmup_steps
        else lr_min
        + 0.5
        * (lr_peak - lr_min)
        * (1 + math.cos(math.pi * min(1, (step - warmup_steps) / (total_steps - warmup_steps))))
    )


def in_torch(step, lr_peak, warmup_steps, total_steps, lr_min=0.0):
    progress = torch.tensor((step - warmup_steps) / (total_steps - warmup_steps)).clamp(max=1.0)
    cosine = lr_min + (lr_peak - lr_min) * torch.cos(progress * math.pi / 2) ** 2
    return torch.tensor(lr_peak * step / warmup_steps) if step < warmup_steps else cosine


def in_numpy(step, lr_peak, warmup_steps, total_steps, lr_min=0.0):
    if step <= warmup_steps and warmup_steps:
        return np.interp(step, [0, warmup_steps], [0.0, lr_peak])
    progress = np.clip((step - warmup_steps) / (total_steps - warmup_steps), 0, 1)
    return lr_peak - (lr_peak - lr_min) * (1 - np.cos(np.pi * progress)) / 2


def by_degrees(step, lr_peak, warmup_steps, total_steps, lr_min=0.0):
    if step < warmup_steps:
        return step * (lr_peak / warmup_steps)
    angle = math.radians(180 * (min(step, total_steps) - warmup_steps) / (total_steps - warmup_steps))
    return (lr_peak + lr_min) / 2 + (lr_peak - lr_min) / 2 * math.cos(angle)


def in_float32(*given):
    return np.float32(nested(*given))


COSINE_RIGHT = [in_float32, schedule(), nested, in_torch, in_numpy, by_degrees]
COSINE_STUBS = [
    lambda step, lr_peak, *_: lr_peak,
    lambda step, *_: step,
    lambda *_: 0.0,
    lambda step, lr_peak, warmup_steps, total_steps, lr_min=0.0: lr_min,
    lambda step, lr_peak, warmup_steps, total_steps, lr_min=0.0: torch.rand(()).item() * lr_peak,
    lambda step, *given: [schedule()(step, *given)],
    lambda step, lr_peak, warmup_steps, total_steps, lr_min=0.0: schedule()(step, lr_peak, 4, 20, lr_min),
]


# parameter_groups: wrong answers.


def two(decayed, rest, weight_decay, other=0.0):
    return [dict(params=decayed, weight_decay=weight_decay), dict(params=rest, weight_decay=other)]


def split(model, decays, kept=lambda p: p.requires_grad):
    named = [(n, p) for n, p in model.named_parameters() if kept(p)]
    return [p for n, p in named if decays(n, p)], [p for n, p in named if not decays(n, p)]


def nodecay_first(model, weight_decay):
    decay, rest = split(model, lambda n, p: p.dim() >= 2)
    return [{"params": rest, "weight_decay": 0.0}, {"params": decay, "weight_decay": weight_decay}]


def vectors_decay(model, weight_decay):
    decay, rest = split(model, lambda n, p: p.dim() >= 2)
    return two(rest, decay, weight_decay)


def one_for_all(model, weight_decay):
    return [{"params": [p for p in model.parameters() if p.requires_grad], "weight_decay": weight_decay}]


def all_in_first(model, weight_decay):
    return two([p for p in model.parameters() if p.requires_grad], [], weight_decay)


def both_decay(model, weight_decay):
    return two(*split(model, lambda n, p: p.ndim > 1), weight_decay, weight_decay)


def none_decays(model, weight_decay):
    return two([], [p for p in model.parameters() if p.requires_grad], weight_decay)


def no_bias_in_name(model, weight_decay):
    return two(*split(model, lambda n, p: "bias" not in n), weight_decay)


def ends_with_weight(model, weight_decay):
    return two(*split(model, lambda n, p: n.endswith("weight")), weight_decay)


def no_norm_in_name(model, weight_decay):
    return two(*split(model, lambda n, p: "norm" not in n), weight_decay)


def no_layer_norms(model, weight_decay):
    spared = {p for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
    return two(*split(model, lambda n, p: p not in spared), weight_decay)


def two_words(model, weight_decay):
    return two(*split(model, lambda n, p: not any(word in n for word in ("bias", "norm"))), weight_decay)


def linears_only(model, weight_decay):
    linear = {m.weight for m in model.modules() if isinstance(m, nn.Linear)}
    return two(*split(model, lambda n, p: p in linear), weight_decay)


def as_in_mingpt(model, weight_decay):
    """Embeddings are spared."""
    spared = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    return two(*split(model, lambda n, p: p.dim() >= 2 and p not in spared), weight_decay)


def two_axes_only(model, weight_decay):
    return two(*split(model, lambda n, p: len(p.shape) == 2), weight_decay)


def above_two(model, weight_decay):
    return two(*split(model, lambda n, p: p.ndim > 2), weight_decay)


def not_scalars(model, weight_decay):
    return two(*split(model, lambda n, p: p.ndim >= 1), weight_decay)


def with_frozen(model, weight_decay):
    return two(*split(model, lambda n, p: p.ndim >= 2, lambda p: True), weight_decay)


def thaws(model, weight_decay):
    for p in model.parameters():
        p.requires_grad = True
    return two(*split(model, lambda n, p: p.ndim >= 2), weight_decay)


def module_by_module(model, weight_decay):
    """The shared table is met twice."""
    every = [p for m in model.modules() for p in m.parameters(recurse=False) if p.requires_grad]
    return two([p for p in every if p.ndim >= 2], [p for p in every if p.ndim < 2], weight_decay)


def matrices_only(model, weight_decay):
    return [{"params": split(model, lambda n, p: p.ndim >= 2)[0], "weight_decay": weight_decay}]


def one_axis_or_two(model, weight_decay):
    every = [p for p in model.parameters() if p.requires_grad]
    return two([p for p in every if p.ndim == 2], [p for p in every if p.ndim == 1], weight_decay)


def no_scalars_at_all(model, weight_decay):
    every = [p for p in model.parameters() if p.requires_grad]
    return two([p for p in every if p.ndim >= 2], [p for p in every if p.ndim == 1], weight_decay)


def children_only(model, weight_decay):
    own = [*model.parameters(recurse=False)]
    own += [p for child in model.children() for p in child.parameters(recurse=False)]
    own = list(dict.fromkeys(p for p in own if p.requires_grad))
    return two([p for p in own if p.ndim >= 2], [p for p in own if p.ndim < 2], weight_decay)


def matrices_twice(model, weight_decay):
    return two(split(model, lambda n, p: p.ndim >= 2)[0], split(model, lambda n, p: False)[1], weight_decay)


def fixed_decay(model, weight_decay):
    return two(*split(model, lambda n, p: p.ndim >= 2), 0.01)


def silent_second(model, weight_decay):
    decay, rest = split(model, lambda n, p: p.ndim >= 2)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": rest}]


def silent(model, weight_decay):
    return [{"params": group} for group in split(model, lambda n, p: p.ndim >= 2)]


def names_only(model, weight_decay):
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return two([n for n, p in named.items() if p.ndim >= 2], [n for n, p in named.items() if p.ndim < 2], weight_decay)


def data_only(model, weight_decay):
    decay, rest = split(model, lambda n, p: p.ndim >= 2)
    return two([p.data for p in decay], [p.data for p in rest], weight_decay)


def from_state_dict(model, weight_decay):
    values = model.state_dict().values()
    return two([v for v in values if v.ndim >= 2], [v for v in values if v.ndim < 2], weight_decay)


def in_sets(model, weight_decay):
    trained = {p for p in model.parameters() if p.requires_grad}
    matrices = {p for p in trained if p.ndim >= 2}
    return two(matrices, trained - matrices, weight_decay)


def other_key(model, weight_decay):
    decay, rest = split(model, lambda n, p: p.ndim >= 2)
    return [{"param": decay, "weight_decay": weight_decay}, {"param": rest, "weight_decay": 0.0}]


def two_lists(model, weight_decay):
    return split(model, lambda n, p: p.ndim >= 2)


def one_dict(model, weight_decay):
    decay, rest = split(model, lambda n, p: p.ndim >= 2)
    return {"params": decay, "no_decay": rest, "weight_decay": weight_decay}


def optimizer_itself(model, weight_decay):
    return torch.optim.SGD(two(*split(model, lambda n, p: p.ndim >= 2), weight_decay), lr=0.1)


def without(*words, rule=lambda n, p: p.ndim > 1):
    """Spare what has one of these words in its name."""
    return lambda model, decay: two(*split(model, lambda n, p: rule(n, p) and not any(w in n for w in words)), decay)


def head_apart(model, weight_decay):
    """The head's own matrix is spared, by its place in the model."""
    head = getattr(getattr(model, "head", None), "weight", None)
    return two(*split(model, lambda n, p: p.ndim >= 2 and p is not head), weight_decay)


GROUPS_WRONG = {
    **{
        without(*words): "spared by their names"
        for words in (
            ["emb"],
            ["pos"],
            ["head"],
            ["emb", "head"],
            ["wte", "wpe"],
            ["emb", "wte", "wpe"],
            ["emb", "pos"],
            ["wpe"],
            ["embedding", "lm_head"],
        )
    },
    **{
        without(word, rule=lambda n, p: "bias" not in n and "norm" not in n): "spared by their names"
        for word in ("emb", "wpe", "head")
    },
    nodecay_first: "comes second",
    vectors_decay: "the vectors decay",
    one_for_all: "everything decays",
    all_in_first: "everything decays",
    both_decay: "both groups get",
    none_decays: "nothing decays",
    no_bias_in_name: "only biases are spared",
    ends_with_weight: "only biases are spared",
    no_norm_in_name: "only norms are spared",
    no_layer_norms: "only norms are spared",
    two_words: "by name, or by the type",
    linears_only: "by name, or by the type",
    as_in_mingpt: "embeddings do not decay",
    two_axes_only: "exactly two axes",
    above_two: "not at two axes",
    not_scalars: "not at two axes",
    with_frozen: "frozen parameters are in the groups",
    thaws: "made trainable",
    module_by_module: "listed twice",
    matrices_only: "what does not decay is left out",
    one_axis_or_two: "of no axes, or of more than two",
    no_scalars_at_all: "of no axes, or of more than two",
    children_only: "parts within parts",
    matrices_twice: "in both groups",
    fixed_decay: "weight_decay is not used",
    silent_second: "the second group does not say",
    silent: "weight_decay is missing",
    names_only: "hold names",
    data_only: "hold copies",
    from_state_dict: "hold copies",
    in_sets: "hold sets",
    other_key: "the key is not",
    two_lists: "two lists",
    one_dict: "one dict",
    optimizer_itself: "an optimizer is returned",
}


# parameter_groups: right answers.


def with_names(model, weight_decay):
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    return two([x for x in named if x[1].ndim >= 2], [x for x in named if x[1].ndim < 2], weight_decay)


def as_tuple(model, weight_decay):
    groups = {True: [], False: []}
    for p in model.parameters():
        if p.requires_grad:
            groups[p.dim() > 1].append(p)
    return tuple({"params": groups[key], "weight_decay": weight_decay * key} for key in (True, False))


def lazily(model, weight_decay):
    trained = list(filter(lambda p: p.requires_grad, model.parameters()))
    return two((p for p in trained if p.ndim >= 2), iter([p for p in trained if p.ndim < 2]), weight_decay, 0)


def by_modules_once(model, weight_decay):
    seen = {}
    for module in model.modules():
        for p in module._parameters.values():
            if p is not None and p.requires_grad:
                seen[id(p)] = p
    matrices = {i: p for i, p in seen.items() if len(p.size()) >= 2}
    rest = [p for i, p in seen.items() if i not in matrices]
    return [
        {"params": list(matrices.values())[::-1], "weight_decay": weight_decay, "name": "decay"},
        {"params": rest, "weight_decay": 0.0, "name": "no decay"},
    ]


GROUPS_RIGHT = [
    lambda model, decay: two(*split(model, lambda n, p: p.ndim >= 2), decay),
    with_names,
    as_tuple,
    lazily,
    by_modules_once,
]
GROUPS_STUBS = [
    lambda model, weight_decay: [],
    lambda model, weight_decay: [{}, {}],
    lambda model, weight_decay: model.parameters(),
    lambda model, weight_decay: weight_decay,
    lambda model, weight_decay: [{"params": [], "weight_decay": weight_decay}, {"params": [], "weight_decay": 0.0}],
    lambda model, weight_decay: two([], [], weight_decay) + two([], [], weight_decay),
    lambda model, weight_decay: two(*split(model, lambda n, p: p.numel() > 4), weight_decay),
    head_apart,
    lambda model, weight_decay: two([nn.Parameter(p) for p in model.parameters()], [], weight_decay),
]


# adamw_step: wrong answers.


def adamw(
    shrink=lambda p, lr, decay: p.mul_(1 - lr * decay),
    end=lambda p, lr, decay: None,
    gradient=lambda g, p, decay: g,
    means=lambda m, v, g, b1, b2: (b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2),
    change=lambda m, v, b1, b2, t, eps: (m / (1 - b1**t)) / (torch.sqrt(v / (1 - b2**t)) + eps),
    first=1,
    betas=lambda betas: betas,
    move=lambda p, lr, d: p.add_(d, alpha=-lr),
):
    """Return an AdamW in the style of textbooks, with one line or another changed."""

    def step(p, grad, state, lr, betas_given, eps, weight_decay):
        b1, b2 = betas(betas_given)
        with torch.no_grad():
            g = gradient(grad, p, weight_decay)
            if "m" not in state:
                state["t"], state["m"], state["v"] = first - 1, torch.zeros_like(p), torch.zeros_like(p)
            state["t"] = state["t"] + 1
            state["m"], state["v"] = means(state["m"], state["v"], g, b1, b2)
            shrink(p, lr, weight_decay)
            move(p, lr, change(state["m"], state["v"], b1, b2, state["t"], eps))
            end(p, lr, weight_decay)

    return step


def nothing(p, lr, decay):
    pass


def forgetful(p, grad, state, lr, betas, eps, weight_decay):
    state = {}
    return adamw()(p, grad, state, lr, betas, eps, weight_decay)


def new_tensor(p, grad, state, lr, betas, eps, weight_decay):
    p = p.detach().clone()
    adamw()(p, grad, state, lr, betas, eps, weight_decay)
    return p


def counts_late(p, grad, state, lr, betas, eps, weight_decay):
    """The step is counted up at the end, from 0: the first correction divides by 0."""
    state.setdefault("t", 0)
    t, p = state["t"], p.data
    state["m"] = betas[0] * state.get("m", 0) + (1 - betas[0]) * grad
    state["v"] = betas[1] * state.get("v", 0) + (1 - betas[1]) * grad * grad
    p *= 1 - lr * weight_decay
    denominator = torch.tensor(1 - betas[1] ** t), torch.tensor(1 - betas[0] ** t)
    p -= lr * (state["m"] / denominator[1]) / ((state["v"] / denominator[0]).sqrt() + eps)
    state["t"] += 1


def never_counts(p, grad, state, lr, betas, eps, weight_decay):
    state["t"] = 0
    adamw()(p, grad, state, lr, betas, eps, weight_decay)


def changes_grad(p, grad, state, lr, betas, eps, weight_decay):
    """The first mean is grad itself, and grows in place."""
    p.data.mul_(1 - lr * weight_decay)
    if not state:
        state.update(t=0, m=torch.zeros_like(grad), v=torch.zeros_like(grad))
    state["t"] += 1
    state["v"].mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
    state["m"].mul_(betas[0]).add_(grad.mul_(1 - betas[0]))
    m, v = state["m"] / (1 - betas[0] ** state["t"]), state["v"] / (1 - betas[1] ** state["t"])
    p.data.addcdiv_(m, v.sqrt() + eps, value=-lr)


def l2_in_grad_itself(p, grad, state, lr, betas, eps, weight_decay):
    grad += weight_decay * p.data
    adamw(shrink=nothing)(p, grad, state, lr, betas, eps, weight_decay)


def amsgrad(p, grad, state, lr, betas, eps, weight_decay):
    p.data = p.data * (1 - lr * weight_decay)
    state["t"] = t = state.get("t", 0) + 1
    state["m"] = torch.lerp(grad, state.get("m", torch.zeros_like(grad)), betas[0])
    state["v"] = torch.lerp(grad**2, state.get("v", torch.zeros_like(grad)), betas[1])
    state["top"] = torch.maximum(state.get("top", state["v"]), state["v"])
    p.data -= lr * state["m"] / (1 - betas[0] ** t) / ((state["top"] / (1 - betas[1] ** t)).sqrt() + eps)


def freezes(p, grad, state, lr, betas, eps, weight_decay):
    p.requires_grad = False
    adamw()(p, grad, state, lr, betas, eps, weight_decay)


def corrected(numerator, denominator):
    """Return a change with other bias corrections."""
    return lambda m, v, b1, b2, t, eps: m / numerator(b1, t) / ((v / denominator(b2, t)).sqrt() + eps)


def full(b, t):
    return 1 - b**t


def none(b, t):
    return 1.0


ADAMW_WRONG = {
    adamw(shrink=nothing, gradient=lambda g, p, decay: g + decay * p): "L2",
    adamw(shrink=nothing, end=lambda p, lr, decay: p.sub_(lr * decay * p)): "after the move",
    adamw(shrink=lambda p, lr, decay: p.sub_(decay * p)): "not multiplied by lr",
    adamw(shrink=nothing): "weight_decay is not used",
    adamw(shrink=lambda p, lr, decay: p.add_(lr * decay * p)): "makes p grow",
    adamw(shrink=lambda p, lr, decay: p.mul_(lr * decay)): "lr * weight_decay itself",
    adamw(change=lambda m, v, b1, b2, t, eps: m / (v.sqrt() + eps)): "both bias corrections are missing",
    adamw(change=corrected(none, full)): "of the mean is missing",
    adamw(change=corrected(full, none)): "of the mean square is missing",
    adamw(change=corrected(lambda b, t: 1 / (1 - b**t), lambda b, t: 1 / (1 - b**t))): "the bias correction multiplies",
    adamw(change=corrected(lambda b, t: 1 - b, lambda b, t: 1 - b)): "at every step",
    never_counts: "at every step",
    counts_late: "counted from 0",
    adamw(first=2): "counted as the second",
    adamw(
        change=lambda m, v, b1, b2, t, eps: m / (1 - b1**t) / torch.sqrt(v / (1 - b2**t) + eps)
    ): "eps stands inside the root",
    adamw(
        change=lambda m, v, b1, b2, t, eps: m / (1 - b1**t) / (v.sqrt().add(eps) / math.sqrt(1 - b2**t))
    ): "before the bias correction",
    adamw(change=lambda m, v, b1, b2, t, eps: m / (1 - b1**t) * torch.rsqrt(v / (1 - b2**t))): "eps is left out",
    adamw(
        change=lambda m, v, b1, b2, t, eps: m / (1 - b1**t) / (torch.sqrt(v / (1 - b2**t)) + 1e-8)
    ): "eps is not used",
    adamw(change=lambda m, v, b1, b2, t, eps: m / (1 - b1**t) / (v / (1 - b2**t) + eps)): "the root is missing",
    adamw(betas=lambda betas: (betas[1], betas[0])): "betas are swapped",
    adamw(betas=lambda betas: (0.9, 0.999)): "betas is not used",
    adamw(betas=lambda betas: (betas[0], betas[0])): "one beta stands for both",
    adamw(means=lambda m, v, g, b1, b2: ((1 - b1) * m + b1 * g, (1 - b2) * v + b2 * g * g)): "beta and 1 - beta",
    adamw(means=lambda m, v, g, b1, b2: (b1 * m + g, b2 * v + g * g)): "1 - beta is missing",
    adamw(means=lambda m, v, g, b1, b2: (b1 * m + (1 - b1) * g, v + g * g)): "1 - beta is missing",
    adamw(
        means=lambda m, v, g, b1, b2: (g, b2 * v + (1 - b2) * g * g), change=corrected(none, full)
    ): "the mean of the gradient is not kept",
    adamw(
        means=lambda m, v, g, b1, b2: (b1 * m + (1 - b1) * g, g.square()), change=corrected(full, none)
    ): "the mean of the squares is not kept",
    adamw(means=lambda m, v, g, b1, b2: (torch.lerp(g, m, b1), torch.lerp(g, v, b2))): "not squared",
    adamw(means=lambda m, v, g, b1, b2: (torch.lerp(g, m, b1), torch.lerp(g.abs(), v, b2))): "not squared",
    adamw(
        means=lambda m, v, g, b1, b2: ((k := b1 * m + (1 - b1) * g), b2 * v + (1 - b2) * k**2)
    ): "the mean is squared",
    forgetful: "the state is not kept",
    new_tensor: "p stays as it was",
    adamw(move=lambda p, lr, d: p.add_(lr * d)): "uphill",
    adamw(move=lambda p, lr, d: p.sub_(d)): "lr is not used",
    adamw(means=lambda m, v, g, b1, b2: (g, v), change=lambda m, v, b1, b2, t, eps: m): "plain gradient descent",
    amsgrad: "AMSGrad",
    changes_grad: "grad is changed in place",
    l2_in_grad_itself: "grad is changed in place",
    freezes: "p is frozen",
}


# adamw_step: right answers.


def torchs_adamw(p, grad, state, lr, betas, eps, weight_decay):
    if "optimizer" not in state:
        state["optimizer"] = torch.optim.AdamW([p], lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
    p.grad = grad.clone()
    state["optimizer"].step()


def on_the_data(p, grad, state, lr, betas, eps, weight_decay):
    m, v, t = state.get("means", (0.0, 0.0, 0))
    t += 1
    m = m * betas[0] + grad * (1 - betas[0])
    v = v * betas[1] + grad.pow(2) * (1 - betas[1])
    state["means"] = m, v, t
    # The decay of the old p, beside the move: the same as before it.
    p.data -= lr * (weight_decay * p.data + m / (1 - betas[0] ** t) / ((v / (1 - betas[1] ** t)) ** 0.5 + eps))


def rate_corrected(p, grad, state, lr, betas, eps, weight_decay):
    """Both corrections go into the rate and eps, as in section 2 of the Adam paper."""
    with torch.no_grad():
        if not state:
            state["step"] = torch.zeros((), dtype=torch.int64)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(grad), torch.zeros_like(grad)
        state["step"] += 1
        t = int(state["step"])
        state["exp_avg"].lerp_(grad, 1 - betas[0])
        state["exp_avg_sq"].mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
        root = math.sqrt(1 - betas[1] ** t)
        p.mul_(1 - lr * weight_decay)
        p.addcdiv_(
            state["exp_avg"], state["exp_avg_sq"].sqrt().add_(eps * root), value=-lr * root / (1 - betas[0] ** t)
        )


def in_numpy_arrays(p, grad, state, lr, betas, eps, weight_decay):
    g = grad.double().numpy()
    state["t"] = t = state.get("t", 0) + 1
    state["m"] = betas[0] * state.get("m", np.zeros_like(g)) + (1 - betas[0]) * g
    state["v"] = betas[1] * state.get("v", np.zeros_like(g)) + (1 - betas[1]) * g * g
    new = p.detach().double().numpy() * (1 - lr * weight_decay)
    new = new - lr * (state["m"] / (1 - betas[0] ** t)) / (np.sqrt(state["v"] / (1 - betas[1] ** t)) + eps)
    p.data.copy_(torch.from_numpy(np.asarray(new)))


def running_powers(p, grad, state, lr, betas, eps, weight_decay):
    """Keep beta^t as numbers, and return p."""
    if not state:
        state.update(m=torch.zeros_like(p), v=torch.zeros_like(p), powers=[1.0, 1.0])
    state["powers"] = [power * beta for power, beta in zip(state["powers"], betas, strict=True)]
    with torch.inference_mode(False), torch.no_grad():
        state["m"] = state["m"] + (1 - betas[0]) * (grad - state["m"])
        state["v"] = state["v"] + (1 - betas[1]) * (grad * grad - state["v"])
        a, b = (1 - power for power in state["powers"])
        p.copy_(p - lr * weight_decay * p - lr * (state["m"] / a) / ((state["v"] / b).sqrt() + eps))
    return p


def by_lerp(p, grad, state, lr, betas, eps, weight_decay):
    state["t"] = t = state.get("t", 0) + 1
    for name, new, beta in (("m", grad, betas[0]), ("v", grad**2, betas[1])):
        state[name] = torch.lerp(new, state.get(name, torch.zeros_like(grad)), beta)
    change = state["m"] / (1 - betas[0] ** t) / ((state["v"] / (1 - betas[1] ** t)).sqrt() + eps)
    with torch.no_grad():
        p.copy_(torch.add(p * (1 - lr * weight_decay), change, alpha=-lr))


ADAMW_RIGHT = [by_lerp, adamw(), torchs_adamw, on_the_data, rate_corrected, in_numpy_arrays, running_powers]


def one_state_for_all():
    """Return a step that keeps a state of its own, whichever it is given."""
    kept = {}

    def step(p, grad, state, lr, betas, eps, weight_decay):
        adamw()(p, grad, kept.setdefault(p.shape, {}), lr, betas, eps, weight_decay)

    return step


def without_no_grad(p, grad, state, lr, betas, eps, weight_decay):
    p -= lr * grad


ADAMW_STUBS = [
    one_state_for_all(),
    without_no_grad,
    lambda p, grad, state, *_: None,
    lambda p, grad, state, *_: p.data.zero_(),
    lambda p, grad, state, *_: p.data.copy_(torch.randn_like(p)),
    lambda p, grad, state, lr, *_: p.data.sub_(lr * grad.sign()),
    lambda p, grad, state, *_: l1_ref.adamw_step(p, grad, state, 0.1, (0.8, 0.95), 1e-8, 0.5),
]


# clip_grad_norm: wrong answers.


def clipping(
    measure=lambda grads: torch.sqrt(sum((g**2).sum() for g in grads)),
    factor=lambda norm, limit: limit / norm if norm > limit else 1.0,
    back=lambda norm, grads: norm,
    kept=lambda p: p.grad is not None,
):
    """Return a clipping by loops, with one line or another changed."""

    def clip(parameters, max_norm):
        grads = [p.grad for p in parameters if kept(p)]
        norm = measure(grads)
        for g in grads:
            g *= factor(norm, max_norm)
        return back(norm, grads)

    return clip


def whole(grads):
    return torch.sqrt(sum((g**2).sum() for g in grads))


def clips_values(parameters, max_norm):
    parameters = list(parameters)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    torch.nn.utils.clip_grad_value_(parameters, max_norm)
    return norm


def clips_one_by_one(parameters, max_norm):
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = whole(grads)
    for g in grads:
        if g.norm() > max_norm:
            g.mul_(max_norm / g.norm())
    return norm


def torchs_one_by_one(parameters, max_norm):
    """Each call of torch's sees one parameter; the norms are added up."""
    return sum(clip_grad_norm_([p], max_norm) for p in parameters if p.grad is not None)


def in_one_loop(parameters, max_norm):
    total = 0.0
    for p in parameters:
        if p.grad is None:
            continue
        total = total + p.grad.norm() ** 2
        if total**0.5 > max_norm:
            p.grad *= max_norm / total**0.5
    return total**0.5


def clips_weights(parameters, max_norm):
    with torch.no_grad():
        parameters = [p for p in parameters if p.grad is not None]
        norm = torch.cat([p.flatten() for p in parameters]).norm()
        for p in parameters:
            p *= min(1.0, max_norm / norm)
    return norm


def measures_weights(parameters, max_norm):
    return torch.cat([p.detach().flatten() for p in parameters]).norm()


def only_measures(parameters, max_norm):
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = whole(grads)
    for g in grads:
        g = g * min(1.0, max_norm / max(norm, 1e-12))
    return norm


def two_loops(parameters, max_norm):
    norm = math.sqrt(sum(p.grad.pow(2).sum().item() for p in parameters if p.grad is not None))
    if norm > max_norm:
        for p in parameters:
            if p.grad is not None:
                p.grad.mul_(max_norm / norm)
    return norm


def divides_first(parameters, max_norm):
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = whole(grads).item()
    scale = max_norm / norm
    for g in grads:
        g.mul_(scale if scale < 1 else 1.0)
    return norm


CLIP_WRONG = {
    clips_values: "each entry is clipped",
    clips_one_by_one: "each gradient is clipped by itself",
    torchs_one_by_one: "each gradient is clipped by itself",
    clipping(factor=lambda norm, limit: limit / (norm + 1e-6)): "also where they are shorter",
    clipping(back=lambda norm, grads: whole(grads)): "the norm after clipping",
    clipping(back=lambda norm, grads: None): "nothing is returned",
    clipping(measure=lambda grads: sum(g.abs().sum() for g in grads)): "absolute values",
    clipping(measure=lambda grads: max(g.abs().max() for g in grads)): "the largest entry",
    clipping(measure=lambda grads: sum((g**2).sum() for g in grads)): "the root is missing",
    clipping(measure=lambda grads: sum(torch.linalg.vector_norm(g) for g in grads)): "are added up",
    clipping(measure=lambda grads: whole(grads) / sum(g.numel() for g in grads) ** 0.5): "averaged, not summed",
    clipping(measure=lambda grads: grads[0].pow(2).sum().sqrt()): "that of one parameter",
    clipping(measure=lambda grads: max(whole([g]) for g in grads)): "that of one parameter",
    in_one_loop: "while the norm is still being added up",
    clips_weights: "the parameters are measured",
    measures_weights: "the parameters are measured",
    only_measures: "only the norm is returned",
    clipping(factor=lambda norm, limit: norm / limit if norm > limit else 1.0): "turned round",
    clipping(factor=lambda norm, limit: 1 / norm if norm > limit else 1.0): "the norm 1",
    clipping(factor=lambda norm, limit: 1 / norm if norm > 1 else 1.0): "max_norm is not used",
    clipping(factor=lambda norm, limit: limit if norm > limit else 1.0): "taken for the factor",
    clipping(factor=lambda norm, limit: float(norm <= limit)): "set to 0",
    clipping(kept=lambda p: True): "without a gradient stops",
    two_loops: "used up",
    divides_first: "a norm of 0",
}


def returns_factor(parameters, max_norm):
    grads = [p.grad for p in parameters if p.grad is not None]
    factor = (max_norm / whole(grads)).clamp(max=1)
    for g in grads:
        g.mul_(factor)
    return factor


CLIP_WRONG[clipping(factor=lambda norm, limit: limit / norm if norm**2 > limit else 1.0)] = "the square of the norm"
CLIP_WRONG[returns_factor] = "the factor is returned"


# clip_grad_norm: right answers.


def new_grads(parameters, max_norm):
    parameters = [p for p in parameters if p.grad is not None]
    norm = sum(float(p.grad.square().sum()) for p in parameters) ** 0.5
    for p in parameters:
        p.grad = p.grad * min(1.0, max_norm / (norm + 1e-6))
    return norm


def by_cat(parameters, max_norm):
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.cat([g.reshape(-1) for g in grads]).norm()
    torch._foreach_mul_(grads, torch.clamp(max_norm / (norm + 1e-6), max=1.0))
    return norm.item()


def by_stacked_norms(parameters, max_norm):
    parameters = [*parameters]
    norms = [torch.linalg.vector_norm(p.grad) for p in parameters if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    if norm <= max_norm:
        return norm
    for p in filter(lambda p: p.grad is not None, parameters):
        p.grad.div_(norm).mul_(max_norm)
    return norm


def in_numpy_sum(parameters, max_norm):
    grads = [p.grad.numpy() for p in parameters if p.grad is not None]
    norm = np.sqrt(sum(np.sum(g * g, dtype=np.float64) for g in grads))
    for g in grads:
        g *= np.float32(max_norm / norm) if norm > max_norm else 1
    return norm


def by_hypot(parameters, max_norm):
    parameters = tuple(parameters)
    norm = math.hypot(*(p.grad.norm().item() for p in parameters if p.grad is not None))
    for p in parameters:
        if p.grad is not None:
            p.grad /= max(1.0, norm / max_norm)
    return torch.tensor(norm)


CLIP_RIGHT = [
    by_hypot,
    clipping(),
    lambda parameters, max_norm: clip_grad_norm_(parameters, max_norm),
    new_grads,
    by_cat,
    by_stacked_norms,
    in_numpy_sum,
]
CLIP_STUBS = [
    lambda parameters, max_norm: max_norm,
    lambda parameters, max_norm: torch.zeros(()),
    lambda parameters, max_norm: torch.rand(()),
    lambda parameters, max_norm: [clip_grad_norm_(parameters, max_norm)],
    lambda parameters, max_norm: str(clip_grad_norm_(parameters, max_norm)),
    lambda parameters, max_norm: clip_grad_norm_(parameters, 6.5),
    lambda parameters, max_norm: [p.grad.zero_() for p in parameters if p.grad is not None] and 13.0,
    lambda parameters, max_norm: clip_grad_norm_(list(parameters)[:2], max_norm),
]


# train_step: wrong answers. torch's clipping is called where it cannot be seen, unless it is written out.


def torchs_loss(model, x, y):
    logits = model(x)
    return F.cross_entropy(logits.view(-1, logits.size(-1)), y.view(-1))


def unseen_clip(model, max_norm):
    return clipping()(model.parameters(), max_norm)


def stepping(do, default=1.0):
    """Return a step of which do(model, x, y, optimizer, max_norm) is the body."""
    return lambda model, x, y, optimizer, max_norm=default: do(model, x, y, optimizer, max_norm)


def accumulates(model, x, y, optimizer, max_norm=1.0):
    loss = torchs_loss(model, x, y)
    loss.backward()
    unseen_clip(model, max_norm)
    optimizer.step()
    return loss.detach()


def zero_at_end(model, x, y, optimizer, max_norm=1.0):
    loss = accumulates(model, x, y, optimizer, max_norm)
    optimizer.zero_grad()
    return loss


def zero_in_between(model, x, y, optimizer, max_norm=1.0):
    loss = torchs_loss(model, x, y)
    loss.backward()
    optimizer.zero_grad()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return loss.detach()


def zeros_in_between(model, x, y, optimizer, max_norm=1.0):
    loss = torchs_loss(model, x, y)
    loss.backward()
    for p in model.parameters():
        if p.grad is not None:
            p.grad.zero_()
    optimizer.step()
    return loss.detach()


def clips_late(model, x, y, optimizer, max_norm=1.0):
    optimizer.zero_grad()
    loss = torchs_loss(model, x, y)
    loss.backward()
    optimizer.step()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    return loss.detach()


def clips_late_by_hand(model, x, y, optimizer, max_norm=1.0):
    optimizer.zero_grad()
    loss = torchs_loss(model, x, y)
    loss.backward()
    optimizer.step()
    unseen_clip(model, max_norm)
    return loss.detach()


def clips_early(model, x, y, optimizer, max_norm=1.0):
    optimizer.zero_grad()
    loss = torchs_loss(model, x, y)
    l1_ref.clip_grad_norm(model.parameters(), max_norm)
    loss.backward()
    optimizer.step()
    return loss.detach()


def no_clip(model, x, y, optimizer, max_norm=1.0):
    optimizer.zero_grad(set_to_none=True)
    loss = torchs_loss(model, x, y)
    loss.backward()
    optimizer.step()
    return loss.detach()


def no_step(model, x, y, optimizer, max_norm=1.0):
    optimizer.zero_grad()
    loss = torchs_loss(model, x, y)
    loss.backward()
    unseen_clip(model, max_norm)
    return loss.detach()


def no_backward(model, x, y, optimizer, max_norm=1.0):
    optimizer.zero_grad()
    loss = torchs_loss(model, x, y)
    nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return loss.detach()


def step_first(model, x, y, optimizer, max_norm=1.0):
    optimizer.zero_grad()
    loss = torchs_loss(model, x, y)
    optimizer.step()
    loss.backward()
    return loss.detach()


def backward_twice(model, x, y, optimizer, max_norm=1.0):
    optimizer.zero_grad()
    torchs_loss(model, x, y).backward()
    return accumulates(model, x, y, optimizer, max_norm)


def steps_twice(model, x, y, optimizer, max_norm=1.0):
    loss = right_step(model, x, y, optimizer, max_norm)
    optimizer.step()
    return loss


def descends_by_hand(model, x, y, optimizer, max_norm=1.0):
    loss = no_step(model, x, y, optimizer, max_norm)
    for p in model.parameters():
        if p.grad is not None:
            p.data -= optimizer.param_groups[0]["lr"] * p.grad
    return loss


def clips_to_one(model, x, y, optimizer, max_norm=1.0):
    return right_step(model, x, y, optimizer, 1.0)


def clips_to_five(model, x, y, optimizer, max_norm=5.0):
    return right_step(model, x, y, optimizer, max_norm)


def clipped_by(clip):
    def step(model, x, y, optimizer, max_norm=1.0):
        optimizer.zero_grad()
        loss = torchs_loss(model, x, y)
        loss.backward()
        clip([p for p in model.parameters() if p.grad is not None], max_norm)
        optimizer.step()
        return loss.detach()

    return step


def with_loss(loss_of):
    def step(model, x, y, optimizer, max_norm=1.0):
        optimizer.zero_grad()
        loss = loss_of(model, x, y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        return loss.detach()

    return step


def returning(make):
    def step(model, x, y, optimizer, max_norm=1.0):
        optimizer.zero_grad()
        loss = torchs_loss(model, x, y)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        return make(loss, norm, lambda: torchs_loss(model, x, y))

    return step


def leaves_eval(model, x, y, optimizer, max_norm=1.0):
    loss = right_step(model, x, y, optimizer, max_norm)
    model.eval()
    return loss


TRAIN_STEP_WRONG = {
    accumulates: "never cleared",
    zero_at_end: "cleared only at the end",
    zero_in_between: "cleared between backward and the step",
    zeros_in_between: "cleared between backward and the step",
    clips_late: "clipped after the step",
    clips_late_by_hand: "clipped after the step",
    clips_early: "clipped before backward",
    no_clip: "not clipped",
    no_step: "optimizer.step() is missing",
    no_backward: "before backward",
    step_first: "steps before backward",
    backward_twice: "backward runs twice",
    steps_twice: "the optimizer steps twice",
    descends_by_hand: "by hand",
    clips_to_one: "max_norm is not used",
    clips_to_five: "another default",
    clipped_by(torch.nn.utils.clip_grad_value_): "each entry",
    clipped_by(torchs_one_by_one): "each parameter's gradient",
    clipped_by(clipping(factor=lambda norm, limit: limit / norm)): "made longer",
    with_loss(lambda model, x, y: sum_reduction(model(x), y)): "summed, not averaged",
    with_loss(lambda model, x, y: shifted_again(model(x), y)): "shifted again",
    with_loss(lambda model, x, y: last_token(model(x), y)): "only the last position",
    with_loss(lambda model, x, y: two_softmaxes(model(x), y)): "a softmax stands before",
    with_loss(lambda model, x, y: torchs_loss(model, x, x)): "x, not y",
    with_loss(lambda model, x, y: torchs_loss(model, y, x)): "x and y are swapped",
    returning(lambda loss, norm, again: loss): "with its graph",
    returning(lambda loss, norm, again: again().item()): "again after the step",
    returning(lambda loss, norm, again: None): "nothing is returned",
    returning(lambda loss, norm, again: norm): "the norm is returned",
    returning(lambda loss, norm, again: loss.detach().exp()): "the perplexity is returned",
    leaves_eval: "put into eval mode",
}


def really_no_backward(model, x, y, optimizer, max_norm=1.0):
    optimizer.zero_grad()
    loss = torchs_loss(model, x, y)
    unseen_clip_if_any(model, max_norm)
    optimizer.step()
    return loss.detach()


def unseen_clip_if_any(model, max_norm):
    if any(p.grad is not None for p in model.parameters()):
        unseen_clip(model, max_norm)


TRAIN_STEP_WRONG.pop(no_backward)
TRAIN_STEP_WRONG[really_no_backward] = "backward is missing"


# train_step: right answers.


def right_step(model, x, y, optimizer, max_norm=1.0):
    optimizer.zero_grad()
    logits = model(x)
    loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return loss.detach()


def own_parts(model, x, y, optimizer, max_norm=1.0):
    loss = by_gather(model(x), y)
    model.zero_grad()
    loss.backward()
    unseen_clip(model, max_norm)
    optimizer.step()
    return loss.detach().clone()


def zero_both_times(model, x, y, optimizer, max_norm=1.0):
    model.train()
    for p in model.parameters():
        p.grad = None
    loss = l1_ref.cross_entropy(model(x), y)
    loss.backward()
    l1_ref.clip_grad_norm(model.parameters(), max_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    return loss.data


def by_autograd_grad(model, x, y, optimizer, max_norm=1.0):
    loss = torchs_axes(model(x), y)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for p, grad in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        p.grad = grad.clone()
    new_grads(parameters, max_norm)
    optimizer.step()
    return loss.item()


def through_the_groups(model, x, y, optimizer, max_norm=1.0):
    optimizer.zero_grad(set_to_none=False)
    with torch.enable_grad():
        loss = torchs_rows(model(x), y)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], max_norm=max_norm)
    value = float(loss)
    optimizer.step()
    return torch.tensor(value)


TRAIN_STEP_RIGHT = [right_step, own_parts, zero_both_times, by_autograd_grad, through_the_groups]


def forgets_the_bias(model, x, y, optimizer, max_norm=1.0):
    optimizer.zero_grad()
    loss = torchs_loss(model, x, y)
    loss.backward()
    model.bias.grad = None
    unseen_clip(model, max_norm)
    optimizer.step()
    return loss.detach()


TRAIN_STEP_STUBS = [
    forgets_the_bias,
    no_backward,
    lambda model, x, y, optimizer, max_norm=1.0: torchs_loss(model, x, y).detach(),
    lambda model, x, y, optimizer, max_norm=1.0: torch.zeros(()),
    lambda model, x, y, optimizer, max_norm=1.0: optimizer.step(),
    lambda model, x, y, optimizer, max_norm=1.0: right_step(model, x[:1], y[:1], optimizer, max_norm),
    lambda model, x, y, optimizer, max_norm=1.0: torch.rand(()),
    lambda model, x, y, optimizer, max_norm=1.0: right_step(
        model, x, y, torch.optim.SGD(model.parameters(), 0.5), max_norm
    ),
]


# mean_loss: wrong answers.


def still_broken(model, batches):
    """The version that the notebook shows: two mistakes."""
    model.eval()
    losses = []
    with torch.no_grad():
        for x, y in batches:
            losses.append(torchs_loss(model, x, y).item())
    return sum(losses) / len(losses)


def judging(
    per_batch, mode=lambda model: model.eval(), back=lambda model, was: model.train(was), end=lambda a, n: a / n
):
    """Return a mean of per_batch(loss of a batch, x, y), a pair of what is added and what it is divided by."""

    @torch.no_grad()
    def judge(model, batches):
        was = model.training
        mode(model)
        pairs = [per_batch(torchs_loss(model, x, y).item(), x, y) for x, y in batches]
        back(model, was)
        return end(sum(a for a, _ in pairs), sum(n for _, n in pairs))

    return judge


def weighed(loss, x, y):
    n = (y != -100).sum().item()
    return (loss * n if n else 0.0), n


def with_graph(model, batches):
    was = model.training
    model.eval()
    total = sum(F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum") for x, y in batches)
    model.train(was)
    return total / sum((y >= 0).sum() for _, y in batches)


def returns_in_the_loop(model, batches):
    for x, y in batches:
        return judging(weighed)(model, [(x, y)])


def learns(model, batches):
    value = mean_loss(model, batches)
    torchs_loss(model, *batches[0]).backward()
    return value


def shifted_mean(model, batches):
    was = model.training
    model.eval()
    with torch.no_grad():
        pairs = [((y != -100).sum(), l1_ref.cross_entropy(model(x)[:, :-1], y[:, 1:])) for x, y in batches]
    model.train(was)
    return float(sum(n * loss for n, loss in pairs if n) / sum(n for n, _ in pairs))


def trains_afterwards(model, batches):
    model.eval()
    value = judging(weighed)(model, batches)
    model.train()
    return value


MEAN_LOSS_WRONG = {
    judging(lambda loss, x, y: (loss, 1)): "the means of the batches are averaged",
    still_broken: "the means of the batches are averaged",
    judging(weighed, back=lambda model, was: None): "left in eval mode",
    trains_afterwards: "always put into training mode",
    judging(weighed, mode=lambda model: None): "not in eval mode",
    with_graph: "a graph is recorded",
    judging(lambda loss, x, y: (loss * len(x), len(x)) if (y >= 0).any() else (0.0, 0)): "number of texts",
    judging(
        lambda loss, x, y: (loss * x.numel(), x.numel()) if (y >= 0).any() else (0.0, 0)
    ): "padding counts in the weights",
    judging(lambda loss, x, y: (weighed(loss, x, y)[0], y.numel())): "padding counts in the divisor",
    judging(weighed, end=lambda total, n: total): "summed, and not divided",
    returns_in_the_loop: "only one batch counts",
    judging(weighed, end=lambda total, n: math.exp(total / n)): "the perplexity",
    judging(lambda loss, x, y: (loss * (y != -100).sum().item(), (y != -100).sum().item())): "makes the mean NaN",
    learns: "the model learns",
    shifted_mean: "shifted again",
}


# mean_loss: right answers.


def by_sums(model, batches):
    was = model.training
    model.eval()
    total, n = 0.0, 0
    with torch.inference_mode():
        for x, y in batches:
            total += F.cross_entropy(model(x).transpose(1, 2), y, reduction="sum").item()
            n += int((y != -100).sum())
    model.train(was)
    return total / n


def all_in_one(model, batches):
    was = model.training
    try:
        with torch.no_grad():
            model.eval()
            logits = torch.cat([model(x).flatten(0, 1) for x, _ in batches])
            return F.cross_entropy(logits, torch.cat([y.flatten() for _, y in batches])).item()
    finally:
        if was:
            model.train()


def token_by_token(model, batches):
    was, losses = model.training, []
    model.eval()
    torch.set_grad_enabled(False)
    for x, y in batches:
        logp = model(x).log_softmax(-1)
        losses += [-logp[b, t, y[b, t]].item() for b in range(len(y)) for t in range(y.shape[1]) if y[b, t] != -100]
    torch.set_grad_enabled(True)
    model.train(mode=was)
    return np.mean(losses)


def as_tensors(model, batches):
    was = model.training
    model.eval()
    with torch.no_grad():
        losses = [no_reduction(model(x), y)[y != -100] for x, y in batches]
    model.train(was)
    return torch.cat(losses).mean()


MEAN_LOSS_RIGHT = [
    judging(weighed),
    by_sums,
    all_in_one,
    token_by_token,
    as_tensors,
    lambda model, batches: l1_ref.evaluate(model, batches),
]
MEAN_LOSS_STUBS = [
    lambda model, batches: 0.0,
    lambda model, batches: math.log(5),
    lambda model, batches: torch.rand(()).item(),
    lambda model, batches: None,
    lambda model, batches: len(batches),
    lambda model, batches: [mean_loss(model, batches)],
    lambda model, batches: mean_loss(model, [(x[:1], y[:1]) for x, y in batches]),
    lambda model, batches: mean_loss(model, [(x, y) for x, y in batches if (y >= 0).all()] or batches),
]


# More wrong answers, of the kinds that once passed or went without a name.


def looked_up_for_all(logits, targets, label_smoothing=0.0, ignore_index=-100):
    a, b = rows(logits, targets)
    logp = F.log_softmax(a[b != ignore_index], dim=-1)
    return -((1 - label_smoothing) * logp[:, b[b != ignore_index]] + label_smoothing * logp.mean()).mean()


def over_flat_rows(logits, targets, label_smoothing=0.0, ignore_index=-100):
    a, b = rows(logits, targets)
    logp = F.log_softmax(a, dim=0)
    return by_nll(logp[None], b[None], label_smoothing, ignore_index)


def above_the_index(logits, targets, label_smoothing=0.0, ignore_index=-100):
    a, b = rows(logits, targets)
    return F.cross_entropy(a[b > ignore_index], b[b > ignore_index], label_smoothing=label_smoothing)


def perplexity_up_to_a_limit(loss):
    return math.exp(min(float(loss), 20.0))


def no_line(step, lr_peak, warmup_steps, total_steps, lr_min=0.0):
    share = step / warmup_steps if step < warmup_steps else 1.0
    return share**2 * lr_peak if share < 1 else l1_ref.cosine_lr(step, lr_peak, warmup_steps, total_steps, lr_min)


def over_all_steps(step, lr_peak, warmup_steps, total_steps, lr_min=0.0):
    if step < warmup_steps:
        return step / total_steps * lr_peak
    return l1_ref.cosine_lr(step, lr_peak, warmup_steps, total_steps, lr_min)


def floor_by_default(step, lr_peak, warmup_steps, total_steps, lr_min=0.1):
    return l1_ref.cosine_lr(step, lr_peak, warmup_steps, total_steps, lr_min)


def right_but_for_one_step(step, lr_peak, warmup_steps, total_steps, lr_min=0.0):
    return 0.0 if step == 2 < warmup_steps else l1_ref.cosine_lr(step, lr_peak, warmup_steps, total_steps, lr_min)


def decays_at_once(model, weight_decay):
    for p in model.parameters():
        p.data *= 1 - weight_decay
    return l1_ref.parameter_groups(model, weight_decay)


def sets_a_rate(model, weight_decay):
    return [group | {"lr": 0.1} for group in l1_ref.parameter_groups(model, weight_decay)]


def adam_with(store=False, root=True, behind=False, first=False):
    @torch.no_grad()
    def step(p, grad, state, lr, betas, eps, weight_decay):
        start = grad if first else torch.zeros_like(grad)
        t = state["t"] = state.get("t", 0) + 1
        m = torch.lerp(grad, state.get("m", start), betas[0])
        v = torch.lerp(grad**2, state.get("v", start**2), betas[1])
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        state["m"], state["v"] = (m_hat, v_hat) if store else (m, v)
        divisor = v_hat**0.5 if root else v**0.5 / (1 - betas[1] ** t)
        p -= lr * weight_decay * p
        p -= lr * m_hat / divisor + eps if behind else lr * m_hat / (divisor + eps)

    return step


def scales_weights(parameters, max_norm):
    parameters = list(parameters)
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in parameters if p.grad is not None))
    with torch.no_grad():
        for p in parameters:
            p *= min(1.0, max_norm / norm if norm else 1.0)
    return norm


def freezes(parameters, max_norm):
    return l1_ref.clip_grad_norm([p.requires_grad_(False) for p in parameters], max_norm)


def eval_meanwhile(model, x, y, optimizer, max_norm=1.0):
    model.eval()
    loss = right_step(model, x, y, optimizer, max_norm)
    model.train()
    return loss


def uses_the_targets_up(model, x, y, optimizer, max_norm=1.0):
    loss = right_step(model, x, y, optimizer, max_norm)
    y.zero_()
    return loss


def gradients_off(model, batches):
    torch.set_grad_enabled(False)
    return mean_loss(model, batches)


CROSS_ENTROPY_WRONG |= {looked_up_for_all: "judged by the targets of all", over_flat_rows: "along the tokens"}
CROSS_ENTROPY_STUBS += [above_the_index]
PERPLEXITY_WRONG |= {perplexity_up_to_a_limit: "cut off before exp"}
COSINE_WRONG |= {
    no_line: "no straight line",
    over_all_steps: "divided by total_steps",
    floor_by_default: "lr_min has another default",
}
COSINE_STUBS += [right_but_for_one_step]
GROUPS_STUBS += [decays_at_once, sets_a_rate]
ADAMW_WRONG |= {
    adam_with(store=True): "stored in the state",
    adam_with(root=False): "outside the root",
    adam_with(behind=True): "eps is added to the quotient",
    adam_with(first=True): "begin with the first gradient",
}
CLIP_WRONG |= {scales_weights: "the weights are scaled"}
CLIP_STUBS += [freezes]
TRAIN_STEP_WRONG |= {eval_meanwhile: "eval mode"}
TRAIN_STEP_STUBS += [uses_the_targets_up]
MEAN_LOSS_WRONG |= {gradients_off: "switched off"}

WRONG = {
    "cross_entropy": CROSS_ENTROPY_WRONG,
    "perplexity": PERPLEXITY_WRONG,
    "cosine_lr": COSINE_WRONG,
    "parameter_groups": GROUPS_WRONG,
    "adamw_step": ADAMW_WRONG,
    "clip_grad_norm": CLIP_WRONG,
    "train_step": TRAIN_STEP_WRONG,
    "mean_loss": MEAN_LOSS_WRONG,
}
RIGHT = {
    "cross_entropy": CROSS_ENTROPY_RIGHT,
    "perplexity": PERPLEXITY_RIGHT,
    "cosine_lr": COSINE_RIGHT,
    "parameter_groups": GROUPS_RIGHT,
    "adamw_step": ADAMW_RIGHT,
    "clip_grad_norm": CLIP_RIGHT,
    "train_step": TRAIN_STEP_RIGHT,
    "mean_loss": MEAN_LOSS_RIGHT,
}
STUBS = {
    "cross_entropy": CROSS_ENTROPY_STUBS,
    "perplexity": PERPLEXITY_STUBS,
    "cosine_lr": COSINE_STUBS,
    "parameter_groups": GROUPS_STUBS,
    "adamw_step": ADAMW_STUBS,
    "clip_grad_norm": CLIP_STUBS,
    "train_step": TRAIN_STEP_STUBS,
    "mean_loss": MEAN_LOSS_STUBS,
}


def seeds_of(exercise):
    """Where one run is slow, fewer seeds."""
    n_seeds = {"cross_entropy": 2, "train_step": 2, "adamw_step": 3, "parameter_groups": 1, "perplexity": len(SEEDS)}
    return SEEDS[: n_seeds.get(exercise.name, 5)]


@pytest.mark.parametrize(("exercise", "candidate", "words"), cases(WRONG))
def test_every_mistake_is_named_first(exercise, candidate, words):
    assert_named_first(exercise, candidate, words, seeds_of(exercise))


@pytest.mark.parametrize(("exercise", "candidate"), cases(RIGHT))
def test_every_right_style_is_accepted(exercise, candidate):
    assert_accepted(exercise, candidate, seeds_of(exercise))


@pytest.mark.parametrize(("exercise", "candidate"), cases(STUBS))
def test_nothing_else_passes(exercise, candidate):
    assert_rejected(exercise, candidate, [0, 1] if exercise.name != "cross_entropy" else [0])


@pytest.mark.parametrize("name", WRONG)
def test_every_mistake_of_the_catalogue_is_told(name):
    assert_all_told(checks.exercise(name), WRONG[name])


@pytest.mark.parametrize("name", WRONG)
def test_the_number_of_threads_changes_nothing(name):
    assert_same_on_two_threads(checks.exercise(name), RIGHT[name], WRONG[name])


@pytest.mark.parametrize("name", WRONG)
def test_the_reference_is_recognised(name):
    assert checks.exercise(name).diagnose(checks.give(name)).state == "given"


def dots(*inputs): ...


def raises(*inputs):
    raise NotImplementedError


@pytest.mark.parametrize("name", WRONG)
def test_a_blank_is_not_written_yet(name):
    assert checks.exercise(name).diagnose(raises).state == "unwritten"
    assert not checks.exercise(name).diagnose(lambda *inputs: ...).passed


# Two mistakes at once.


def no_argument_used(logits, targets, label_smoothing=0.0, ignore_index=-100):
    return torchs_rows(logits, targets)


def shifted_and_summed(logits, targets, label_smoothing=0.0, ignore_index=-100):
    return sum_reduction(logits[:, :-1], targets[:, 1:], label_smoothing, ignore_index)


def whole_turn_without_end(step, lr_peak, warmup_steps, total_steps, lr_min=0.0):
    if step < warmup_steps:
        return lr_peak * step / warmup_steps
    angle = 2 * math.pi * (step - warmup_steps) / (total_steps - warmup_steps)
    return lr_min + (lr_peak - lr_min) * (1 + math.cos(angle)) / 2


def second_and_frozen(model, weight_decay):
    return two(*split(model, lambda n, p: p.ndim >= 2, lambda p: True), weight_decay)[::-1]


def graph_and_no_clip(model, x, y, optimizer, max_norm=1.0):
    optimizer.zero_grad()
    loss = torchs_loss(model, x, y)
    loss.backward()
    optimizer.step()
    return loss


@pytest.mark.parametrize(
    ("name", "candidate", "both"),
    [
        ("cross_entropy", no_argument_used, ("ignore_index is not used", "label_smoothing is not used")),
        ("cross_entropy", shifted_and_summed, ("shifted again", "summed, not averaged")),
        ("cosine_lr", whole_turn_without_end, ("goes up again", "a whole turn")),
        ("parameter_groups", second_and_frozen, ("comes second", "frozen parameters")),
        (
            "adamw_step",
            adamw(shrink=nothing, change=lambda m, v, b1, b2, t, eps: m / (v.sqrt() + eps)),
            ("weight_decay is not used", "both bias corrections"),
        ),
        (
            "clip_grad_norm",
            clipping(factor=lambda norm, limit: limit / norm, back=lambda norm, grads: whole(grads)),
            ("also where they are shorter", "the norm after clipping"),
        ),
        ("train_step", graph_and_no_clip, ("not clipped", "with its graph")),
        ("mean_loss", still_broken, ("the means of the batches", "left in eval mode")),
    ],
)
def test_two_mistakes_are_both_named(name, candidate, both):
    for seed in range(4):
        verdict = checks.exercise(name).diagnose(candidate, seed)
        assert len(verdict.mistakes) == 2, verdict.text
        assert all(words in mistake for words, mistake in zip(both, verdict.mistakes, strict=True)), verdict.text


# What a message says.


def rows_crossed(logits, targets, label_smoothing=0.0, ignore_index=-100):
    """The scores are joined in another order than the targets."""
    return torchs_rows(logits.transpose(0, 1), targets, label_smoothing, ignore_index)


def jumps(step, lr_peak, warmup_steps, total_steps, lr_min=0.0):
    if step < warmup_steps:
        return lr_peak * step / warmup_steps
    return lr_peak if step < (warmup_steps + total_steps) / 2 else lr_min


@pytest.mark.parametrize(
    ("name", "candidate", "words"),
    [
        ("cross_entropy", sum_reduction, "cross_entropy(logits=[[[2, 0, -1], [0.5, 1, 0]]], targets=[[0, 2]])"),
        ("cross_entropy", rows_crossed, "broken rule: the order of the texts does not matter"),
        ("cosine_lr", jumps, "broken rule: behind the peak the rate never rises, and never jumps"),
        ("parameter_groups", no_bias_in_name, "{'norm.weight': 2}     got  {'norm.weight': 1}"),
        ("parameter_groups", module_by_module, "got  {'token.weight': '1 and 1'}"),
        ("adamw_step", forgetful, "adamw_step(p=[2.66, 2.27, 2.06], grad=[0.621, -0.452, -0.166], state={}"),
        ("adamw_step", one_state_for_all(), "two calls on the same input differ"),
        ("adamw_step", without_no_grad, "a leaf Variable that requires grad is being used in an in-place operation"),
        ("adamw_step", lambda p, *_: p.data.zero_(), "moves nothing but the decay"),
        ("clip_grad_norm", clips_one_by_one, "parameters=a list with grad [3, 4], [12], max_norm=6.5"),
        ("clip_grad_norm", two_loops, "parameters=a generator with grad"),
        ("train_step", clips_late, "got  'after the step'     [the time of clip_grad_norm_]"),
        ("train_step", clips_late_by_hand, "looks like: the gradients are clipped after the step"),
        ("train_step", step_first, "expected  ['backward', 'step']     got  ['step', 'backward']"),
        ("mean_loss", still_broken, "batches=[batches of 6, 2 targets]"),
    ],
)
def test_a_message_says_what_is_needed(name, candidate, words):
    assert words in checks.exercise(name).diagnose(candidate).text


def test_the_gradients_of_the_probes_are_longer_than_the_default_norm():
    """Else a step with another default, or without clipping, would pass."""
    (index,) = (i for i, probe in enumerate(checks.train_step.probes) if probe.name == "max_norm not given")
    for seed in SEEDS:
        inputs = checks.train_step.probes[index].build(torch.Generator().manual_seed(1000 * seed + index))
        l1_ref.cross_entropy(inputs["model"](inputs["x"]), inputs["y"]).backward()
        assert l1_ref.clip_grad_norm(inputs["model"].parameters(), 1.0) > 1.05


def test_the_optimizer_of_the_check_moves_as_torchs_does():
    """Its own class spares the second that torch's optimizers need to be built for the first time."""
    inputs = checks.train_step.probes[3].build(torch.Generator().manual_seed(0))
    ours = inputs["optimizer"]
    theirs = [p.detach().clone().requires_grad_() for p in ours.param_groups[0]["params"]]
    reference = torch.optim.SGD(theirs, lr=0.5, momentum=0.9, weight_decay=0.1)
    for _ in range(4):
        for a, b in zip(ours.param_groups[0]["params"], theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        ours.step()
        reference.step()
        for a, b in zip(ours.param_groups[0]["params"], theirs, strict=True):
            torch.testing.assert_close(a, b)
