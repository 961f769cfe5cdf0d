"""The checks of 03_attention, last part: the module that does all of it."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l1_ref import attention as ref
from l1_ref.checks.compare import Failure, Rough
from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe, Property
from l1_ref.checks.observe import OUTPUT, REPEATED, Observation, filled
from l1_ref.checks.splitting import cut_width, merged
from l1_ref.config import L1Config

# The module. A wrong version is the class below with one keyword changed.


def _qkv_then_heads(qkv: Tensor, n_heads: int) -> tuple[Tensor, ...]:
    return tuple(cut_width(part, n_heads).transpose(1, 2) for part in qkv.chunk(3, -1))


def _ordered(*order: int) -> Callable[[Tensor, int], tuple[Tensor, ...]]:
    return lambda qkv, n_heads: tuple(_qkv_then_heads(qkv, n_heads)[i] for i in order)


def _parts_by_head(qkv: Tensor, n_heads: int) -> tuple[Tensor, ...]:
    return qkv.unflatten(-1, (n_heads, 3, -1)).permute(3, 0, 2, 1, 4).unbind(0)


def _scrambled(qkv: Tensor, n_heads: int) -> tuple[Tensor, ...]:
    return tuple(x.reshape(len(x), n_heads, x.shape[1], -1) for x in qkv.chunk(3, -1))


def _interleaved(qkv: Tensor, n_heads: int) -> tuple[Tensor, ...]:
    return tuple(x.unflatten(-1, (-1, n_heads)).permute(0, 3, 1, 2) for x in qkv.chunk(3, -1))


def _tokens_first(qkv: Tensor, n_heads: int) -> tuple[Tensor, ...]:
    return tuple(cut_width(x, n_heads) for x in qkv.chunk(3, -1))


def _width_for_heads(qkv: Tensor, n_heads: int) -> tuple[Tensor, ...]:
    return _qkv_then_heads(qkv, qkv.shape[-1] // 3 // n_heads)


def _weigh(scores: Tensor, seen: Tensor) -> Tensor:
    return scores.masked_fill(~seen, -math.inf).softmax(-1)


class _Attention(nn.Module):
    """Attend with several heads; each keyword is one place where it can go wrong."""

    def __init__(
        self,
        config: L1Config,
        *,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        cut: Callable[[Tensor, int], tuple[Tensor, ...]] = _qkv_then_heads,
        use_qkv: bool = True,
        scale: Callable[[int, int], float] = lambda D, H: D**-0.5,
        see: Callable[[Tensor], Tensor] = torch.tril,
        weigh: Callable[[Tensor, Tensor], Tensor] = _weigh,
        drop_weights: Callable[..., Tensor] = F.dropout,
        merge: Callable[[Tensor], Tensor] = merged,
        drop_merged: bool = False,
        use_proj: bool = True,
        drop_end: Callable[..., Tensor] = F.dropout,
        p: float | None = None,
        add_x: bool = False,
    ):
        super().__init__()
        C = config.n_embd
        self.n_heads, self.p = config.n_heads, config.dropout if p is None else p
        self.cut, self.scale, self.see, self.weigh, self.merge = cut, scale, see, weigh, merge
        self.drop_weights, self.drop_merged, self.drop_end = drop_weights, drop_merged, drop_end
        self.use_qkv, self.use_proj, self.add_x = use_qkv, use_proj, add_x
        self.qkv, self.proj = nn.Linear(C, 3 * C, qkv_bias), nn.Linear(C, C, proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return what each position gathered."""
        q, k, v = self.cut(self.qkv(x) if self.use_qkv else x.repeat(1, 1, 3), self.n_heads)
        seen = self.see(torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool))
        weights = self.weigh(q @ k.transpose(-2, -1) * self.scale(q.shape[-1], self.n_heads), seen)
        y = self.merge(self.drop_weights(weights, self.p, self.training) @ v)
        if self.drop_merged:
            y = F.dropout(y, self.p, self.training)
        y = self.drop_end(self.proj(y) if self.use_proj else y, self.p, self.training)
        return y + x if self.add_x else y


def _alone(**switches: Any) -> Callable[[L1Config], nn.Module]:
    """Return a wrong version that is not looked for together with others: it is too rare for the time that takes."""
    return lambda config: _Attention(config, **switches)


def _not_dropped(x: Tensor, p: float, training: bool) -> Tensor:
    return x


def _dropped_always(x: Tensor, p: float, training: bool) -> Tensor:
    return F.dropout(x, p)


def _dropped_by_half(x: Tensor, p: float, training: bool) -> Tensor:
    return F.dropout(x, 0.5, training)


def _kept_by_p(x: Tensor, p: float, training: bool) -> Tensor:
    return F.dropout(x, 1 - p, training) if p else x


def _inside(B: int, T: int, n_heads: int, n_embd: int, dropout: float = 0.0, size: float = 1.5):
    """Return the builder of a probe: a small config, and hidden states."""

    def build(generator: torch.Generator) -> Inputs:
        config = L1Config(vocab_size=50, max_seq_length=5, n_layers=2, n_heads=n_heads, n_embd=n_embd, dropout=dropout)
        return {"config": config, "x": size * torch.randn(B, T, n_embd, generator=generator)}

    return build


def _observe_training(candidate: Callable, inputs: Inputs, gradient: bool, seed: int) -> Observation:
    """Measure dropout in training mode over many copies of one text, and see that eval mode has none."""
    x = inputs["x"][:1]
    try:
        torch.default_generator.manual_seed(seed)
        module = filled(candidate(inputs["config"]), seed)
        with torch.no_grad():
            still, once_more = module(x), module(x)
            output = module.train()(x.repeat(256, 1, 1))
        if not torch.allclose(still, once_more, rtol=1e-4, atol=1e-5, equal_nan=True):
            return {REPEATED: "differ"}
        spread = output.std(0).mean().item()
        mean = (output.mean(0) * still).sum() / still.square().sum()
    except Exception as error:
        return {OUTPUT: Failure(error)}
    return {
        "the share of zeros in training": Rough((output == 0).double().mean().item(), 0.03),
        "the spread that dropout makes in training": Rough(spread, 0.12 * spread),
        "the mean in training, beside the output in eval mode": Rough(mean.item(), 0.1),
    }


def _causal(module: nn.Module, x: Tensor) -> bool:
    """Say whether the first tokens' answers stay as they are when the last token changes."""
    other = torch.cat([x[:, :-1], x[:, -1:] + 1], dim=1)
    return torch.allclose(module(other)[:, :-1], module(x)[:, :-1], atol=1e-4)


def _after_a_short_one(module: nn.Module, x: Tensor) -> bool:
    fresh = copy.deepcopy(module)
    module(x[:, :1])
    return torch.allclose(module(x), fresh(x), atol=1e-4)


_TOKENS_SCRAMBLED = "the shapes are right, but each head gets numbers of several tokens, and the future leaks in."


def _one_off(square: Tensor) -> Tensor:
    return square.tril(-1)


def _shared_again(scores: Tensor, seen: Tensor, more: float = 0.0) -> Tensor:
    left = scores.softmax(-1) * seen
    return left / (left.sum(-1, keepdim=True) + more)


def _with_lowest(scores: Tensor, seen: Tensor) -> Tensor:
    return scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1)


MULTI_HEAD_ATTENTION = Exercise(
    name="MultiHeadAttention",
    notebook="03_attention",
    reference=ref.MultiHeadAttention,
    init=("config",),
    probes=(
        Probe("three tokens, two heads", _inside(1, 3, 2, 4), "B T C"),
        Probe("a batch, the longest text that fits", _inside(2, 5, 3, 12), "B T C"),
        Probe("as many tokens as heads, and as wide", _inside(3, 3, 3, 9), "B T C"),
        Probe("one token alone", _inside(2, 1, 2, 6), "B T C"),
        Probe(
            "scores far from zero", _inside(4, 2, 4, 8, size=300.0), "B T C", gradient=False, edge=True, tolerance=5e-3
        ),
        Probe("dropout", _inside(2, 3, 2, 8, dropout=0.3), "B T C", gradient=False, observe=_observe_training),
    ),
    mistakes=(
        Mistake(
            "the scores are not divided by sqrt(D)",
            "the wider the head, the larger the scores: softmax then gives all to one key, and gradients vanish.",
            partial(_Attention, scale=lambda D, H: 1.0),
        ),
        Mistake(
            "the scores are divided by sqrt(C), not by sqrt(D)",
            "each head multiplies vectors of its own width D = C / H.",
            partial(_Attention, scale=lambda D, H: (D * H) ** -0.5),
        ),
        Mistake(
            "the scores are divided by D, or twice by sqrt(D)",
            "F.scaled_dot_product_attention divides by itself: q must not be divided before.",
            partial(_Attention, scale=lambda D, H: 1 / D),
        ),
        Mistake(
            "the scores are multiplied by sqrt(D), not divided",
            "D ** -0.5 is already the inverse: dividing by it makes the scores larger, and softmax saturates.",
            _alone(scale=lambda D, H: D**0.5),
        ),
        Mistake(
            "the scores are divided by the root of the number of heads",
            "the spread of the scores grows with the width of one head, not with the number of heads.",
            _alone(scale=lambda D, H: H**-0.5),
        ),
        Mistake(
            "nothing is masked: every token sees the future",
            "the model would be trained on an answer that it can read off.",
            partial(_Attention, see=lambda square: square),
        ),
        Mistake(
            "the mask is one off: a token may not attend to itself",
            "the first token has nothing to attend to, and every other misses its own meaning.",
            partial(_Attention, see=_one_off),
            (
                partial(_Attention, see=_one_off, weigh=_with_lowest),
                partial(_Attention, see=_one_off, weigh=lambda scores, seen: _weigh(scores, seen).nan_to_num(0.0)),
            ),
        ),
        Mistake(
            "the mask is one off: each token also sees the next one",
            "the next token is just what the model must predict.",
            partial(_Attention, see=lambda square: square.tril(1)),
        ),
        Mistake(
            "each token sees itself and the future: the mask is transposed",
            "row i belongs to query i, and allows the keys up to i.",
            _alone(see=torch.triu),
        ),
        Mistake(
            "the mask is turned round: what is allowed is hidden",
            "True means that a query may attend; what is filled with -inf is ~mask.",
            _alone(see=lambda square: square.triu(1)),
            (
                partial(_Attention, see=lambda square: square.triu(1), weigh=_with_lowest),
                partial(
                    _Attention,
                    see=lambda square: square.triu(1),
                    weigh=lambda scores, seen: _weigh(scores, seen).nan_to_num(0.0),
                ),
            ),
        ),
        Mistake(
            "the mask is applied after the softmax",
            "forbidden keys still count in the sum below the line: the rest is too small, and shows what was hidden.",
            partial(_Attention, weigh=lambda scores, seen: scores.softmax(-1) * seen),
        ),
        Mistake(
            "the mask is applied after the softmax, and the rows are divided by their sum",
            "on paper that is the same, but a hidden key with a large score has already rounded the others to 0.",
            _alone(weigh=_shared_again),
            (partial(_Attention, weigh=partial(_shared_again, more=1e-9)),),
        ),
        Mistake(
            "the number for forbidden scores is not low enough",
            "scores of a trained model can be lower than that; -inf is lower than all.",
            _alone(weigh=lambda scores, seen: scores.masked_fill(~seen, -1e4).softmax(-1)),
            (partial(_Attention, weigh=lambda scores, seen: (scores - 1e4 * ~seen).softmax(-1)),),
        ),
        Mistake(
            "forbidden scores become 0, not -inf",
            "softmax gives a score of 0 as much weight as any other; only exp(-inf) is 0.",
            partial(_Attention, weigh=lambda scores, seen: (scores * seen).softmax(-1)),
        ),
        Mistake(
            "the softmax goes over the queries (dim=-2), not over the keys",
            "each query shares out exactly 1 among its keys, and the keys are the last axis.",
            partial(_Attention, weigh=lambda scores, seen: scores.masked_fill(~seen, -math.inf).softmax(-2)),
        ),
        Mistake(
            "the softmax goes over the heads (dim=1), not over the keys",
            "without a dim, F.softmax picks axis 1 of four: the heads would compete, not the keys.",
            _alone(weigh=lambda scores, seen: scores.masked_fill(~seen, -math.inf).softmax(1)),
        ),
        Mistake(
            "qkv is cut in another order than [q | k | v]",
            "by agreement the first third of its rows makes q, the second k, the last v; GPT-2's weights rely on it.",
            partial(_Attention, cut=_ordered(1, 0, 2)),
            tuple(partial(_Attention, cut=_ordered(*o)) for o in ((0, 2, 1), (2, 1, 0), (1, 2, 0), (2, 0, 1))),
        ),
        Mistake(
            "qkv is cut head by head, each with its own q, k and v",
            "some models store it so; here, as in GPT-2, all of q comes first: cut in three, then into heads.",
            partial(_Attention, cut=_parts_by_head),
        ),
        Mistake(
            "qkv is cut in threes: every third column goes to q",
            "all of q comes first, then all of k, then all of v: 3 stands in front of the width, not behind it.",
            _alone(cut=lambda qkv, n_heads: _qkv_then_heads(qkv.unflatten(-1, (-1, 3)).mT.flatten(2), n_heads)),
        ),
        Mistake(
            "the heads are interleaved: head h gets every H-th column, not D neighbours",
            "each head's D numbers lie side by side in the width; the weights are stored in that order.",
            _alone(cut=_interleaved),
            (partial(_Attention, cut=_interleaved, merge=lambda y: y.permute(0, 2, 3, 1).flatten(2)),),
        ),
        Mistake(
            "the heads of one token attend to each other: tokens and heads have not changed places",
            "attention multiplies the last two axes: they must be tokens and width, (B, H, T, D).",
            _alone(cut=_tokens_first, merge=lambda y: y.flatten(2)),
        ),
        Mistake(
            "splitting mixes the tokens: the width is not cut before the axes are moved",
            _TOKENS_SCRAMBLED,
            partial(_Attention, cut=_scrambled),
        ),
        Mistake(
            "merging mixes the tokens: the transpose back to (B, T, H, D) is missing",
            _TOKENS_SCRAMBLED,
            partial(_Attention, merge=lambda y: y.reshape(len(y), y.shape[2], -1)),
        ),
        Mistake(
            "there is one head: n_heads is not used",
            "several heads can attend to several things at once, at the same cost.",
            _alone(cut=lambda qkv, n_heads: _qkv_then_heads(qkv, 1)),
        ),
        Mistake(
            "n_heads is taken as the width of a head",
            "n_heads says how many; the width D is what is left, C / n_heads.",
            _alone(cut=_width_for_heads),
        ),
        Mistake(
            "one projection serves for q, k and v",
            "a token must be able to ask for something else than it offers: qkv has three parts.",
            _alone(cut=_ordered(0, 0, 0)),
            (partial(_Attention, cut=_ordered(2, 2, 2)),),
        ),
        Mistake(
            "qkv is not used: q, k and v are x itself",
            "without weights of its own, attention has nothing to learn.",
            _alone(use_qkv=False),
        ),
        Mistake(
            "proj is not used",
            "it mixes what the heads found; until then each stays in its own part of the width.",
            partial(_Attention, use_proj=False),
        ),
        Mistake(
            "qkv has no bias",
            "GPT-2's layers have one, and its weights must fit.",
            partial(_Attention, qkv_bias=False),
        ),
        Mistake(
            "proj has no bias",
            "GPT-2's layers have one, and its weights must fit.",
            partial(_Attention, proj_bias=False),
        ),
        Mistake(
            "x is added to the result",
            "the residual sum belongs to the block around this layer, and would come twice.",
            _alone(add_x=True),
        ),
        Mistake(
            "dropout on the attention weights is missing",
            "it makes each query do without some keys, so that no single one is relied on.",
            partial(_Attention, drop_weights=_not_dropped),
        ),
        Mistake(
            "dropout after proj is missing",
            "it falls on what the layer hands on.",
            partial(_Attention, drop_end=_not_dropped),
        ),
        Mistake(
            "dropout comes before proj, not after it",
            "proj would mix the zeros away; it is the layer's output that must lose entries.",
            partial(_Attention, drop_merged=True, drop_end=_not_dropped),
        ),
        Mistake(
            "dropout is active in eval mode",
            "F.dropout and F.scaled_dot_product_attention do not know the mode: pass self.training, or p = 0.",
            partial(_Attention, drop_weights=_dropped_always),
            (
                partial(_Attention, drop_end=_dropped_always),
                partial(_Attention, drop_weights=_dropped_always, drop_end=_dropped_always),
                partial(_Attention, drop_weights=_dropped_always, drop_end=_not_dropped),
            ),
        ),
        Mistake(
            "dropout does not use config.dropout: it has a probability of its own",
            "without a number, nn.Dropout and F.dropout take 0.5.",
            partial(_Attention, p=0.5),
            (
                partial(_Attention, p=0.1),
                partial(_Attention, drop_end=_dropped_by_half),
                partial(_Attention, drop_weights=_dropped_by_half),
            ),
        ),
        Mistake(
            "dropout is taken as the probability to keep",
            "a dropout of 0.1 drops one number in ten, and keeps nine.",
            _alone(drop_weights=_kept_by_p, drop_end=_kept_by_p),
            (partial(_Attention, drop_end=_kept_by_p), partial(_Attention, drop_weights=_kept_by_p)),
        ),
        Mistake(
            "a pair comes back, not the output alone",
            "the next layer takes one tensor.",
            _alone(drop_end=lambda x, p, training: (F.dropout(x, p, training), None)),
        ),
    ),
    properties=(
        Property("a change in the last token leaves the answers of the earlier ones as they were", _causal),
        Property(
            "the texts of a batch do not touch each other",
            lambda module, x: torch.allclose(module(x[:1]), module(x)[:1], atol=1e-4),
        ),
        Property(
            "a long text gets the same answer after a short one as before it",
            _after_a_short_one,
        ),
    ),
    hints=(
        "You have written every piece: two linear layers around split, attend, merge. Write the shapes beside it.",
        "Call super().__init__() first. self.qkv makes (B, T, 3 * C): cut it into three parts along the width before "
        "splitting heads. The mask is causal_mask(T, T). Dropout falls on the weights and after proj, and only where "
        "self.training is True.",
        "Plan: layers qkv, C to 3 * C, and proj, C to C. Forward: qkv(x), three chunks, split each into heads; "
        "attend with the causal mask and dropout_p, which is 0 in eval mode; merge; proj; dropout.",
    ),
)

EXERCISES = (MULTI_HEAD_ATTENTION,)
