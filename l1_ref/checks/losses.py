"""The check of 06_training on the loss: cross_entropy."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe, Property
from l1_ref.loss import cross_entropy

_Build = Callable[[torch.Generator], Inputs]

# cross_entropy: inputs.


def _scores(
    B: int, T: int, V: int, padding: tuple[tuple[int, int], ...] = (), dtype: torch.dtype = torch.float32, **given: Any
) -> _Build:
    """Return the builder of a probe: normal scores, and targets with padding at the places named."""

    def build(generator: torch.Generator) -> Inputs:
        logits = 1.5 * torch.randn(B, T, V, generator=generator, dtype=torch.float64)
        # No target is 0: that is one of the ids that stand for padding.
        last = given.get("ignore_index") == V - 1
        targets = torch.randint(1, V - last, (B, T), generator=generator)
        for place in padding:
            targets[place] = given.get("ignore_index", -100)
        return {"logits": logits.to(dtype), "targets": targets, **given}

    return build


def _two_tokens(generator: torch.Generator) -> Inputs:
    return {"logits": torch.tensor([[[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]]]), "targets": torch.tensor([[0, 2]])}


def _high(generator: torch.Generator) -> Inputs:
    inputs = _scores(2, 3, 4)(generator)
    return inputs | {"logits": inputs["logits"] + 200}


def _far_below(generator: torch.Generator) -> Inputs:
    """Build inputs where one target's probability underflows to 0."""
    inputs = _scores(2, 2, 4)(generator)
    inputs["logits"][1, 0, inputs["targets"][1, 0]] = -150.0
    return inputs


def _texts_far_apart(generator: torch.Generator) -> Inputs:
    inputs = _scores(3, 2, 4)(generator)
    return inputs | {"logits": inputs["logits"] + torch.tensor([-300.0, 0.0, 300.0]).view(3, 1, 1)}


# cross_entropy: wrong versions.


def _less(picked: Tensor, log_p: Tensor, s: float) -> Tensor:
    """Return the losses of all tokens, with the target smoothed as torch does it."""
    return -(1 - s) * picked - s * log_p.mean(-1)


def _gathered(log_p: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    return log_p.gather(-1, targets.masked_fill(~counts, 0)[..., None])[..., 0]


def _mean(losses: Tensor, counts: Tensor) -> Tensor:
    return losses.masked_fill(~counts, 0).sum() / counts.sum()


def _loss(
    logits: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    *,
    pairs: Callable = lambda logits, targets: (logits, targets),
    log_p: Callable = lambda logits: logits.log_softmax(-1),
    counts: Callable = torch.ne,
    pick: Callable = _gathered,
    smooth: Callable = _less,
    average: Callable = _mean,
    end: Callable = lambda loss: loss,
) -> Tensor:
    """Compute the loss as the reference does, with one part or another replaced."""
    logits, targets = pairs(logits, targets)
    log_p, counts = log_p(logits), counts(targets, ignore_index)
    return end(average(smooth(pick(log_p, targets, counts), log_p, label_smoothing), counts))


def _part(losses: Callable[[Tensor, Tensor], Tensor]) -> Callable:
    """Return what averages with padding set to zero."""
    return lambda each, counts: losses(each.masked_fill(~counts, 0), counts)


def _torchs(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, ignore_index: int = -100) -> Tensor:
    return F.cross_entropy(logits, targets, label_smoothing=label_smoothing, ignore_index=ignore_index)


def _viewed(logits: Tensor, targets: Tensor, *more: Any) -> Tensor:
    B, T, V = logits.shape
    return _torchs(logits.reshape(B, V, T), targets, *more)


def _all_counted(targets: Tensor, ignore_index: int) -> Tensor:
    return torch.ones_like(targets, dtype=torch.bool)


def _indexed(log_p: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    rows, columns = (torch.arange(n) for n in targets.shape)
    return log_p[rows[:, None], columns, targets]


def _from_the_end(log_p: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    return _indexed(log_p, targets.masked_fill(~counts, 0), counts)


def _clamped(log_p: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    return log_p.gather(-1, targets.clamp(min=0)[..., None])[..., 0]


def _rows(logits: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    counts = targets != ignore_index
    return logits[counts], targets[counts]


def _along_tokens_that_count(logits: Tensor, targets: Tensor, s: float = 0.0, ignore_index: int = -100) -> Tensor:
    log_p, ids = (each[None] for each in _rows(logits, targets, ignore_index))
    return _loss(log_p, ids, s, ignore_index, log_p=lambda logits: logits.log_softmax(1))


def _every_target(logits: Tensor, targets: Tensor, s: float = 0.0, ignore_index: int = -100) -> Tensor:
    rows, ids = _rows(logits, targets, ignore_index)
    log_p = rows.log_softmax(-1)
    return -(1 - s) * log_p[:, ids].mean() - s * log_p.mean()


def _smoothing_padding(logits: Tensor, targets: Tensor, s: float = 0.0, ignore_index: int = -100) -> Tensor:
    log_p, counts = logits.log_softmax(-1), targets != ignore_index
    return (1 - s) * _mean(-_gathered(log_p, targets, counts), counts) - s * log_p.mean()


def _smoothing_zeros(logits: Tensor, targets: Tensor, s: float = 0.0, ignore_index: int = -100) -> Tensor:
    log_p, counts = logits.log_softmax(-1), targets != ignore_index
    true = _gathered(log_p, targets, counts).masked_fill(~counts, 0)
    return (-(1 - s) * true - s * log_p.mean(-1)).sum() / counts.sum()


def _default(name: str, value: Any) -> Callable:
    """Return a version whose argument has another default."""

    def loss(logits: Tensor, targets: Tensor, *more: Any) -> Tensor:
        given = dict(zip(("label_smoothing", "ignore_index"), more, strict=False))
        return cross_entropy(logits, targets, **{name: value, **given})

    return loss


def _changing_targets(
    logits: Tensor, targets: Tensor, s: float = 0.0, ignore_index: int = -100, *, first: bool = True
) -> Tensor:
    own = targets.clone() if first else targets
    loss = cross_entropy(logits, own, s, ignore_index)
    targets[targets == ignore_index] = 0
    return loss


def _changing_logits(logits: Tensor, targets: Tensor, *more: Any) -> Tensor:
    logits -= logits.amax(-1, keepdim=True)
    return cross_entropy(logits, targets, *more)


def _naive(logits: Tensor) -> Tensor:
    e = logits.exp()
    return (e / e.sum(-1, keepdim=True)).log()


def _less_the_largest(logits: Tensor) -> Tensor:
    shifted = logits - logits.max()
    return shifted - shifted.exp().sum(-1, keepdim=True).log()


def _log_of_softmax(more: float) -> Callable:
    return partial(_loss, log_p=lambda logits: (logits.softmax(-1) + more).log())


def _each_class_alone(
    logits: Tensor, targets: Tensor, s: float = 0.0, ignore_index: int = -100, *, summed: bool = True
) -> Tensor:
    counts = targets != ignore_index
    V = logits.shape[-1]
    q = (1 - s) * F.one_hot(targets.masked_fill(~counts, 0), V) + s / V
    each = F.binary_cross_entropy_with_logits(logits, q.to(logits), reduction="none")
    return _mean(each.sum(-1) if summed else each.mean(-1), counts)


def _is_log_v(f: Callable, logits: Tensor, targets: Tensor, **more: Any) -> bool:
    loss = f(torch.zeros_like(logits), targets, *more.values())
    return bool(loss.isnan()) or math.isclose(loss.item(), math.log(logits.shape[-1]), abs_tol=1e-4)


def _alike(f: Callable, one: tuple, other: tuple, more: dict) -> bool:
    a, b = (f(*(tensor.clone() for tensor in each), *more.values()) for each in (one, other))
    return torch.allclose(a, b, atol=1e-2, equal_nan=True)


_MEAN = "the loss is that of an average token: the sum over the targets that count, divided by their number."
_PADDING = "padding is no text: the loss would depend on how much of it happens to stand in the batch."
_SMOOTH = "the smoothed target must sum to 1: (1 - s) on the true token, and s spread evenly over all V classes."
_STABLE = "use log_softmax, or logsumexp: they stay with logarithms, and lose nothing."
_CALLER = "the caller chooses it; 0.0 and -100 are only defaults."
_CLASSES = "the distribution is one over the vocabulary: the last axis, V."

CROSS_ENTROPY = Exercise(
    name="cross_entropy",
    notebook="06_training",
    reference=cross_entropy,
    probes=(
        Probe("one text of two tokens", _two_tokens),
        Probe("all axes alike", _scores(3, 3, 3)),
        Probe("two texts, one of them with padding", _scores(2, 3, 5, ((1, 1), (1, 2)))),
        Probe("label smoothing", _scores(2, 4, 6, label_smoothing=0.2)),
        Probe(
            "padding with id 0, and label smoothing",
            _scores(3, 2, 5, ((0, 0), (2, 0), (2, 1)), label_smoothing=0.1, ignore_index=0),
        ),
        Probe("padding with the last id", _scores(2, 3, 6, ((1, 2),), label_smoothing=0.0, ignore_index=5)),
        Probe("padding with -1", _scores(2, 3, 4, ((0, 2),), label_smoothing=0.0, ignore_index=-1)),
        Probe("float64 in, float64 out", _scores(2, 3, 7, dtype=torch.float64, label_smoothing=0.3)),
        Probe("scores near 200", _high, gradient=False, edge=True, tolerance=1e-3),
        Probe("a target far below the rest", _far_below, gradient=False, edge=True, tolerance=1e-3),
        Probe("texts far apart", _texts_far_apart, gradient=False, edge=True, tolerance=1e-3),
        Probe("nothing but padding", _scores(1, 2, 3, ((0, 0), (0, 1))), edge=True),
    ),
    mistakes=(
        Mistake(
            "the targets are shifted again",
            "next_token_batch has shifted them already: target t belongs to score t.",
            partial(_loss, pairs=lambda logits, targets: (logits[:, :-1], targets[:, 1:])),
            (partial(_loss, pairs=lambda logits, targets: (logits[:, 1:], targets[:, :-1])),),
        ),
        Mistake(
            "the softmax goes along the positions T, not along the classes V",
            _CLASSES,
            partial(_loss, log_p=lambda logits: logits.log_softmax(1)),
        ),
        Mistake(
            "the softmax goes along the texts B, not along the classes V",
            _CLASSES,
            partial(_loss, log_p=lambda logits: logits.log_softmax(0)),
        ),
        Mistake(
            "the softmax goes along the tokens, not along the classes V",
            _CLASSES,
            partial(_loss, log_p=lambda logits: logits.flatten(0, 1).log_softmax(0).view_as(logits)),
            (_along_tokens_that_count,),
        ),
        Mistake(
            "each token is judged by the targets of all tokens",
            "log_p[:, targets] takes every target for every row: gather takes of each row its own.",
            _every_target,
        ),
        Mistake(
            "F.cross_entropy takes axis 1 for the classes",
            "given three axes it expects (B, V, T): join B and T first, to (B * T, V) and (B * T).",
            _torchs,
        ),
        Mistake(
            "reshape to (B, V, T) mixes the numbers up",
            "reshape keeps the order in memory: join B and T, to (B * T, V), or exchange two axes with transpose.",
            _viewed,
        ),
        Mistake(
            "the softmax is missing: the scores are taken for log-probabilities",
            "scores may be any numbers; only log_softmax makes of them logarithms of a distribution.",
            partial(_loss, log_p=lambda logits: logits),
            (partial(_loss, log_p=torch.log), partial(_loss, log_p=lambda logits: logits.sigmoid().log())),
        ),
        Mistake(
            "the softmax is taken twice",
            "F.cross_entropy does it itself: hand it the scores, as they are.",
            partial(_loss, log_p=lambda logits: logits.softmax(-1).log_softmax(-1)),
        ),
        Mistake(
            "the logarithm is missing: the probability itself is averaged",
            "the loss is the surprise, -log p: it grows without bound where the model was sure and wrong.",
            partial(_loss, log_p=lambda logits: logits.softmax(-1)),
            (partial(_loss, log_p=lambda logits: logits.softmax(-1) - 1),),
        ),
        Mistake(
            "the logarithm has base 2, or 10",
            "the loss is in nats: log is the natural logarithm.",
            partial(_loss, end=lambda loss: loss / math.log(2)),
            (partial(_loss, end=lambda loss: loss / math.log(10)),),
        ),
        Mistake(
            "the minus sign is missing",
            "a logarithm of a probability is below 0; its minus is what training makes small.",
            partial(_loss, end=lambda loss: -loss),
        ),
        Mistake(
            "the losses are summed, not averaged", _MEAN, partial(_loss, average=_part(lambda each, n: each.sum()))
        ),
        Mistake(
            "the sum is divided by the number of texts alone, not by that of the targets",
            _MEAN,
            partial(_loss, average=_part(lambda each, n: each.sum() / len(each))),
            (
                partial(_loss, average=_part(lambda each, n: each.mean(0).sum())),
                partial(_loss, average=lambda each, counts: each.masked_fill(~counts, 0).sum() / each.shape[1]),
            ),
        ),
        Mistake(
            "each text is averaged by itself, then the texts",
            "a short text would count as much as a long one: every token weighs the same.",
            partial(_loss, average=lambda each, n: (each.masked_fill(~n, 0).sum(1) / n.sum(1)).mean()),
            (partial(_loss, average=lambda each, n: (each.masked_fill(~n, 0).sum(0) / n.sum(0)).mean()),),
        ),
        Mistake(
            "the mean runs over the classes too: it is V times too small",
            "each token has one loss, the sum over its classes.",
            lambda *inputs: _loss(*inputs) / inputs[0].shape[-1],
            (lambda *inputs: _loss(*inputs, average=_part(lambda each, n: each.mean())) / inputs[0].shape[-1],),
        ),
        Mistake(
            "the losses are not averaged: one came back for each token",
            "training needs a single number to make smaller.",
            partial(_loss, average=_part(lambda each, n: each)),
            (
                partial(_loss, average=lambda each, n: each[n]),
                partial(_loss, average=_part(lambda each, n: each.flatten())),
                partial(_loss, average=_part(lambda each, n: each.mean(1))),
            ),
        ),
        Mistake(
            "padding counts in the mean, as zeros",
            _PADDING,
            partial(_loss, average=_part(lambda each, n: each.mean())),
        ),
        Mistake(
            "padding counts like any other target",
            _PADDING,
            lambda *inputs: _loss(*inputs, counts=_all_counted),
            (
                lambda *inputs: _loss(*inputs, counts=_all_counted, pick=_indexed),
                lambda *inputs: _loss(*inputs, counts=_all_counted, pick=_clamped),
            ),
        ),
        Mistake(
            "ignore_index is not used: only -100, or only what is below 0, is ignored",
            _CALLER,
            partial(_loss, counts=lambda targets, i: targets != -100),
            (
                partial(_loss, counts=lambda targets, i: targets != -100, pick=_from_the_end),
                partial(_loss, counts=lambda targets, i: targets >= 0),
                partial(_loss, counts=lambda targets, i: targets != -100, pick=_clamped),
            ),
        ),
        Mistake(
            "ignore_index has another default than -100",
            "the course marks padding with -100, as torch does; 0 is the id of a token.",
            _default("ignore_index", 0),
            (_default("ignore_index", -1), _default("ignore_index", 10**6)),
        ),
        Mistake(
            "label_smoothing is not used",
            _CALLER,
            partial(_loss, smooth=lambda picked, log_p, s: -picked),
        ),
        Mistake(
            "label_smoothing has another default than 0",
            "who does not ask for smoothing gets none.",
            _default("label_smoothing", 0.1),
            (_default("label_smoothing", 0.05), _default("label_smoothing", 0.01)),
        ),
        Mistake(
            "smoothing is spread over the other classes only",
            "as torch does it, s goes to all V classes alike, and the true one gets its share too.",
            partial(
                _loss,
                smooth=lambda picked, log_p, s: (
                    -(1 - s) * picked - s * (log_p.sum(-1) - picked) / (log_p.shape[-1] - 1)
                ),
            ),
            (
                partial(
                    _loss,
                    smooth=lambda picked, log_p, s: -(1 - s) * picked - s * (log_p.sum(-1) - picked) / log_p.shape[-1],
                ),
            ),
        ),
        Mistake(
            "smoothing is added, and the true token keeps the whole 1",
            _SMOOTH,
            partial(_loss, smooth=lambda picked, log_p, s: -picked - s * log_p.mean(-1)),
            (partial(_loss, smooth=lambda picked, log_p, s: -picked - s * log_p.sum(-1)),),
        ),
        Mistake(
            "smoothing is not divided by V: every class gets s",
            _SMOOTH,
            partial(_loss, smooth=lambda picked, log_p, s: -(1 - s) * picked - s * log_p.sum(-1)),
            (partial(_loss, smooth=lambda picked, log_p, s: -(1 - s) * picked - s * (log_p.sum(-1) - picked)),),
        ),
        Mistake(
            "smoothing takes s from the true token and gives it to none",
            _SMOOTH,
            partial(_loss, smooth=lambda picked, log_p, s: -(1 - s) * picked),
        ),
        Mistake(
            "smoothing is turned round: s for the true token, 1 - s for the rest",
            _SMOOTH,
            partial(_loss, smooth=lambda picked, log_p, s: -s * picked - (1 - s) * log_p.mean(-1)),
        ),
        Mistake(
            "smoothing is applied to the probabilities, not to the target",
            "the model's answer stays as it is; what is smoothed is the answer that it is measured against.",
            partial(
                _loss,
                smooth=lambda picked, log_p, s: -((1 - s) * picked.exp() + s / log_p.shape[-1]).log(),
            ),
        ),
        Mistake(
            "the share of smoothing counts padding too",
            "a target that is ignored adds nothing, neither for the true token nor for the rest.",
            _smoothing_padding,
            (_smoothing_zeros,),
        ),
        Mistake(
            "exp overflows: the largest score is not subtracted before it",
            f"exp of 89 is infinite in float32: {_STABLE}",
            partial(_loss, log_p=_naive),
            (partial(_loss, log_p=lambda logits: logits - logits.exp().sum(-1, keepdim=True).log()),),
        ),
        Mistake(
            "the largest score of all is subtracted, not that of each token",
            f"a token whose scores lie far below that gets exp = 0 everywhere, and log 0: {_STABLE}",
            partial(_loss, log_p=_less_the_largest),
        ),
        Mistake(
            "the logarithm of a softmax: what has underflowed to 0 is lost",
            f"log 0 is -inf, and a small number added only hides it: {_STABLE}",
            _log_of_softmax(0.0),
            tuple(_log_of_softmax(10.0**-n) for n in range(5, 16)),
        ),
        Mistake(
            "where nothing but padding stands the loss is 0, and should be NaN",
            "a mean of nothing is no number; 0 would look like a perfect model. torch gives NaN too.",
            partial(_loss, average=_part(lambda each, n: each.sum() / n.sum().clamp(min=1))),
        ),
        Mistake(
            "each class is judged alone, as yes or no",
            "the classes compete: one distribution over all of them, by softmax, not a sigmoid for each.",
            _each_class_alone,
            (partial(_each_class_alone, summed=False),),
        ),
        Mistake(
            "it is the perplexity: exp of the loss",
            "the loss itself is wanted, in nats; perplexity is the next exercise.",
            partial(_loss, end=torch.exp),
        ),
        Mistake(
            "only the last position counts",
            "every position predicts its next token, and all of them teach.",
            partial(_loss, pairs=lambda logits, targets: (logits[:, -1:], targets[:, -1:])),
        ),
        Mistake(
            "no gradient gets through",
            "training needs them; .item(), numpy, detach, no_grad or torch.tensor(...) cut the path.",
            partial(_loss, end=lambda loss: loss.detach()),
            (partial(_loss, end=lambda loss: loss.item()),),
        ),
        Mistake(
            "the targets are changed in place",
            "the caller still needs them: the padding would be gone. Write targets = targets.masked_fill(...).",
            _changing_targets,
            (partial(_changing_targets, first=False),),
        ),
        Mistake(
            "the logits are changed in place",
            "autograd still needs them: write logits = logits - m, not logits -= m.",
            _changing_logits,
        ),
    ),
    properties=(
        Property("where all scores are equal the loss is log V", _is_log_v),
        Property(
            "adding one number to all scores of a token changes nothing",
            lambda f, logits, targets, **more: _alike(f, (logits, targets), (logits + 2, targets), more),
        ),
        Property(
            "the order of the texts does not matter",
            lambda f, logits, targets, **more: _alike(f, (logits, targets), (logits.flip(0), targets.flip(0)), more),
        ),
    ),
    hints=(
        "Three steps: scores to log-probabilities along V; of each token, the one that belongs to its target; the mean "
        "of them, with a minus.",
        "log_softmax(-1) does the first step safely, and gather the second. gather cannot take -100, so what could "
        "stand there instead, and how do you keep it out of the mean? Smoothing mixes in the mean over V.",
        "Plan: counts = targets != ignore_index; log_p = logits.log_softmax(-1); gather the targets, with 0 where they "
        "do not count; (1 - s) times the minus of that, plus s times the minus of log_p's mean over V; sum over the "
        "tokens that count, divided by how many they are.",
    ),
)

EXERCISES = (CROSS_ENTROPY,)
