"""The checks of 04_blocks: the bug hunt around the residual stream, and the block.

Layer normalisation stands in `norms`; GELU and the feed-forward layer in `feed_forward`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l1_ref.attention import MultiHeadAttention, scaled_dot_product_attention
from l1_ref.checks import feed_forward, norms
from l1_ref.checks.compare import Failure, Rough
from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe, Property
from l1_ref.checks.feed_forward import as_it_is, normed, of_config, stream
from l1_ref.checks.observe import OUTPUT, Observation, filled, observe_module
from l1_ref.config import L1Config
from l1_ref.transformer import FeedForward, TransformerBlock

# The bug hunt: residual_step. Its mistakes are those of a block's two halves, too.


def residual_step(x: Tensor, norm: Callable, sublayer: Callable) -> Tensor:
    """Add to the residual stream what a sublayer makes of it, normalised: one half of a pre-norm block.

    Args:
        x: The residual stream.
        norm: Normalises it for the sublayer.
        sublayer: Attention or a feed-forward layer.
    """
    return x + sublayer(norm(x))


class _Named:
    """A function that prints as its name, so that a message reads well."""

    def __init__(self, name: str, function: Callable):
        self.name, self.function = name, function

    def __repr__(self) -> str:
        return self.name

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)


_MINUS_MEAN = _Named("minus_mean", lambda x: x - x.mean(-1, keepdim=True))
_HALF = _Named("half", lambda x: x / 2)
_TEN_TIMES = _Named("ten_times", lambda x: 10 * x)
_PLUS_ONE = _Named("plus_one", lambda x: x + 1)


def _with(norm: Callable, sublayer: Callable, *values: float) -> Callable[[torch.Generator], Inputs]:
    return lambda generator: {"x": torch.tensor(values), "norm": norm, "sublayer": sublayer}


def _with_layers(*shape: int, scale: float = 1.5) -> Callable[[torch.Generator], Inputs]:
    def build(generator: torch.Generator) -> Inputs:
        def drawn(layer: nn.Module, size: float, centre: float) -> nn.Module:
            with torch.no_grad():
                for p in layer.parameters():
                    p.copy_(size * torch.randn(p.shape, generator=generator) + centre)
            return layer.requires_grad_(False)

        x = scale * torch.randn(*shape, generator=generator) + 0.5 * scale
        norm, sublayer = drawn(nn.LayerNorm(shape[-1]), 0.3, 1.0), drawn(nn.Linear(shape[-1], shape[-1]), 0.6, 0.0)
        return {"x": x, "norm": norm, "sublayer": sublayer}

    return build


def _from_normalised(x: Tensor, norm: Callable, sublayer: Callable) -> Tensor:
    y = norm(x)
    return y + sublayer(y)


def _post_norm(x: Tensor, norm: Callable, sublayer: Callable) -> Tensor:
    return norm(x + sublayer(x))


def _no_norm(x: Tensor, norm: Callable, sublayer: Callable) -> Tensor:
    return x + sublayer(x)


def _no_residual(x: Tensor, norm: Callable, sublayer: Callable) -> Tensor:
    return sublayer(norm(x))


def _norm_behind(x: Tensor, norm: Callable, sublayer: Callable) -> Tensor:
    return x + norm(sublayer(x))


def _norm_around(x: Tensor, norm: Callable, sublayer: Callable) -> Tensor:
    return norm(x + sublayer(norm(x)))


def _doubled(x: Tensor, norm: Callable, sublayer: Callable) -> Tensor:
    return 2 * x + sublayer(norm(x))


def _in_place(x: Tensor, norm: Callable, sublayer: Callable) -> Tensor:
    x += sublayer(norm(x))
    return x


_HIGHWAY = "x itself must go on untouched, and the sublayer only add to it: that keeps deep stacks trainable."
_OLD = "that is the block of 2017; from GPT-2 on the norm stands before the sublayer, and the stream itself stays free."

RESIDUAL_STEP = Exercise(
    name="residual_step",
    notebook="04_blocks",
    reference=residual_step,
    probes=(
        Probe("three numbers", _with(_MINUS_MEAN, _TEN_TIMES, 1.0, 2.0, 6.0), "C"),
        Probe("other functions", _with(_HALF, _PLUS_ONE, 4.0, -2.0), "C"),
        Probe("a LayerNorm and a Linear", _with_layers(3, 4), "T C"),
        Probe("a batch", _with_layers(2, 3, 5), "B T C"),
        Probe("a large stream", _with_layers(2, 3, scale=1e3), "T C", edge=True, tolerance=1e-3),
    ),
    mistakes=(
        Mistake("the stream goes on from the normalised x", _HIGHWAY, _from_normalised),
        Mistake("the sum is normalised, and the stream with it (post-norm)", _OLD, _post_norm),
        Mistake("the sum is normalised too, after the sublayer", _HIGHWAY, _norm_around),
        Mistake(
            "norm falls on the stream, not on the sublayer's input",
            _HIGHWAY,
            lambda x, norm, sublayer: norm(x) + sublayer(x),
        ),
        Mistake(
            "norm is left out",
            "the stream grows from block to block; without norm the sublayer meets ever larger numbers.",
            _no_norm,
        ),
        Mistake("x is not added", "what x carried is lost, and the gradient's short way back with it.", _no_residual),
        Mistake(
            "norm is applied to the sublayer's output, not to its input",
            "the sublayer's input must have a steady size; its output must be free to be small or large.",
            _norm_behind,
            (lambda x, norm, sublayer: x + norm(sublayer(norm(x))), lambda x, norm, sublayer: norm(sublayer(x))),
        ),
        Mistake(
            "x is added before the sublayer, not after it",
            "the sum belongs outside, so that x can pass by the sublayer.",
            lambda x, norm, sublayer: sublayer(x + norm(x)),
            (lambda x, norm, sublayer: sublayer(norm(x) + x) + x,),
        ),
        Mistake("x is added twice", "the stream would double in every block.", _doubled),
        Mistake(
            "the normalised x is added as well",
            "only x and the sublayer's answer are added.",
            lambda x, norm, sublayer: x + norm(x) + sublayer(norm(x)),
        ),
        Mistake(
            "the sublayer is left out",
            "it is what does the work here.",
            lambda x, norm, sublayer: x + norm(x),
            (lambda x, norm, sublayer: norm(x),),
        ),
        Mistake(
            "the sublayer's answer is subtracted, not added",
            "the stream is a sum of what all sublayers write.",
            lambda x, norm, sublayer: x - sublayer(norm(x)),
            (lambda x, norm, sublayer: sublayer(norm(x)) - x,),
        ),
        Mistake(
            "norm is applied twice",
            "once is enough; its scale and shift would count double.",
            lambda x, norm, sublayer: x + sublayer(norm(norm(x))),
        ),
        Mistake(
            "the sublayer is applied twice",
            "one step, one call.",
            lambda x, norm, sublayer: x + sublayer(sublayer(norm(x))),
            (lambda x, norm, sublayer: (y := x + sublayer(norm(x))) + sublayer(norm(y)),),
        ),
        Mistake(
            "the sum is halved, or divided by the root of 2",
            "x itself must go on untouched.",
            lambda x, norm, sublayer: (x + sublayer(norm(x))) / 2,
            (lambda x, norm, sublayer: (x + sublayer(norm(x))) / math.sqrt(2),),
        ),
        Mistake(
            "x is multiplied with the sublayer's answer",
            "a sum lets the gradient pass as it is; a product does not.",
            lambda x, norm, sublayer: x * sublayer(norm(x)),
        ),
        Mistake(
            "part of the gradient is cut off",
            "it must come back along both ways, past the sublayer and through it.",
            lambda x, norm, sublayer: x.detach() + sublayer(norm(x)),
            (
                lambda x, norm, sublayer: x + sublayer(norm(x)).detach(),
                lambda x, norm, sublayer: (x + sublayer(norm(x))).detach(),
            ),
        ),
        Mistake(
            "x is changed in place", "the caller still needs it, and autograd does too: += overwrites it.", _in_place
        ),
    ),
    properties=(
        Property(
            "where the sublayer answers 0, x comes out as it went in",
            lambda f, x, norm, sublayer: torch.allclose(f(x.clone(), norm, torch.zeros_like), x),
        ),
        Property(
            "what is added does not grow with the stream, where norm is a layer norm",
            lambda f, x, norm, sublayer: torch.allclose(
                f(x.clone(), normed, sublayer) - x, f(4 * x, normed, sublayer) - 4 * x, rtol=1e-2, atol=1e-2
            ),
        ),
    ),
    hints=(
        "Follow x with a finger through the broken version: where is it still the x that came in?",
        "The norm is meant for the sublayer's eyes only. What should the other way, past the sublayer, carry?",
        "One name stands for two things in the broken version. Give the normalised tensor to the sublayer alone, and "
        "add the answer to the x that came in.",
    ),
)


# TransformerBlock.


class _Everywhere(MultiHeadAttention):
    """Attention without a causal mask."""

    def __init__(self, config: L1Config):
        super().__init__(config)
        self.attend = lambda q, k, v, dropout_p: scaled_dot_product_attention(q, k, v, None, dropout_p)


def _two_steps(block: nn.Module, x: Tensor) -> Tensor:
    x = block.first(x, block.norm_1, block.drop("attention"))
    return block.second(x, block.norm_2, block.drop("feed_forward"))


class _Block(nn.Module):
    """The block, with one part or another replaced."""

    def __init__(
        self,
        config: L1Config,
        *,
        first: Callable = residual_step,
        second: Callable = residual_step,
        flow: Callable = _two_steps,
        end: Callable = lambda block, x: x,
        eps: float | None = None,
        attention: Callable = MultiHeadAttention,
        dropped: str = "",
        halves: tuple[str, ...] = ("attention", "feed_forward"),
        changed: Callable = lambda block: None,
    ):
        super().__init__()
        self.norm_1, self.norm_2 = (nn.LayerNorm(config.n_embd, eps or config.layer_norm_eps) for _ in range(2))
        self.attention, self.feed_forward = attention(config), FeedForward(config)
        self.first, self.second, self.flow, self.end = first, second, flow, end
        self.p, self.dropped, self.halves = config.dropout, dropped, halves
        changed(self)

    def drop(self, name: str) -> Callable:
        active = self.dropped == "always" or (self.dropped == "in training" and self.training)
        return lambda x: F.dropout(getattr(self, name)(x), self.p, active and name in self.halves)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self, self.flow(self, x))


def _block(**switches: Any) -> Callable:
    """Return a wrong block that is not tried together with others: only the plain switches are."""
    return lambda config: _Block(config, **switches)


def _parallel(block: nn.Module, x: Tensor, second: str = "norm_2") -> Tensor:
    return x + block.attention(block.norm_1(x)) + block.feed_forward(getattr(block, second)(x))


def _back_to_the_start(block: nn.Module, x: Tensor) -> Tensor:
    y = x + block.attention(block.norm_1(x))
    return x + block.feed_forward(block.norm_2(y))


def _one_after_the_other(block: nn.Module, x: Tensor, kept: bool = True) -> Tensor:
    y = block.attention(block.norm_1(x))
    return (x + y if kept else x) + block.feed_forward(block.norm_2(y))


def _other_norms(block: nn.Module, x: Tensor, norms: tuple[str, str]) -> Tensor:
    first, second = (getattr(block, name) for name in norms)
    x = block.first(x, first, block.attention)
    return block.second(x, second, block.feed_forward)


def _other_order(block: nn.Module, x: Tensor, norms: tuple[str, str] = ("norm_2", "norm_1")) -> Tensor:
    x = block.second(x, getattr(block, norms[0]), block.feed_forward)
    return block.first(x, getattr(block, norms[1]), block.attention)


def _without(*names: str) -> Callable:
    def changed(block: nn.Module) -> None:
        for name in names:
            delattr(block, name)
            setattr(block, name, as_it_is)

    return changed


def _one_norm(block: nn.Module) -> None:
    block.norm_2 = block.norm_1


def _only_norm_1(block: nn.Module) -> None:
    del block.norm_2


def _plain_norms(block: nn.Module) -> None:
    del block.norm_1, block.norm_2
    block.norm_1 = block.norm_2 = normed


def _observe_with_branches(candidate: Callable, inputs: Inputs, gradient: bool, seed: int) -> Observation:
    """Observe a block, and how much dropout takes of what each of its two branches adds."""
    seen = observe_module(candidate, inputs, gradient, seed, ("config",))
    answers = isinstance(seen.get(OUTPUT), Tensor) and seen[OUTPUT].shape == inputs["x"].shape
    if answers and not any(isinstance(value, Failure) for value in seen.values()):
        module = candidate(inputs["config"])
        for branch, other in (("attention", "feed_forward"), ("feed_forward", "attention")):
            share = _share_taken(filled(module, seed), inputs["x"], other)
            seen[f"the share that dropout takes of the {branch} branch in training"] = share
    return seen


def _share_taken(module: nn.Module, x: Tensor, other: str, n_rows: int = 128) -> Rough:
    """Return the share of entries that come out as they went in, while the other branch is silent."""
    x = x[:1].repeat(n_rows, 1, 1)
    _silence(module, other)
    with torch.no_grad():
        added = module.train()(x.clone()) - x
    return Rough(added.abs().le(1e-6).double().mean().item(), 0.05)


def _silence(module: nn.Module, branch: str = "") -> None:
    """Set the last layer of a branch to zero, or of both."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if f"{branch}.proj." in name:
                parameter.zero_()


def _is_causal(module: nn.Module, x: Tensor) -> bool:
    other = x.clone()
    other[:, -1] = -other[:, -1] + x.abs().mean()
    return torch.allclose(module(x.clone())[:, :-1], module(other)[:, :-1], rtol=1e-4, atol=1e-5)


def _rows_apart(module: nn.Module, x: Tensor) -> bool:
    return torch.allclose(module(x.clone())[:1], module(x[:1].clone()), rtol=1e-4, atol=1e-5)


def _silent_is_identity(module: nn.Module, x: Tensor) -> bool:
    _silence(module)
    return torch.allclose(module(x.clone()), x)


_ONE_EACH = "each half of the block learns its own scale and shift."

TRANSFORMER_BLOCK = Exercise(
    name="TransformerBlock",
    notebook="04_blocks",
    reference=TransformerBlock,
    init=("config",),
    probes=(
        Probe("three positions", stream(of_config(4, 2, n_inner=5), 1, 3), "B T C"),
        Probe("two sequences", stream(of_config(6, 3, n_inner=8), 2, 4, 1.5), "B T C"),
        Probe("a large layer_norm_eps", stream(of_config(4, 2, n_inner=6, layer_norm_eps=0.01), 2, 3, 0.2), "B T C"),
        Probe("a single position", stream(of_config(4, 1, n_inner=7), 3, 1, 2.0), "B T C"),
        # So many entries that no other way of drawing falls out by chance.
        Probe(
            "with dropout",
            stream(of_config(8, 2, n_inner=12, dropout=0.3), 2, 4),
            "B T C",
            gradient=False,
            observe=_observe_with_branches,
        ),
        Probe("a large stream", stream(of_config(4, 2, n_inner=5), 2, 3, 1e3), "B T C", edge=True, tolerance=1e-4),
    ),
    mistakes=(
        Mistake("post-norm: each sum is normalised", _OLD, partial(_Block, first=_post_norm, second=_post_norm)),
        Mistake(
            "post-norm in one of the halves: its sum is normalised",
            _OLD,
            partial(_Block, first=_post_norm),
            (partial(_Block, second=_post_norm),),
        ),
        Mistake(
            "the stream goes on from the normalised x, in both halves",
            _HIGHWAY,
            partial(_Block, first=_from_normalised, second=_from_normalised),
        ),
        Mistake(
            "the stream goes on from the normalised x, in the attention half",
            _HIGHWAY,
            partial(_Block, first=_from_normalised),
        ),
        Mistake(
            "the stream goes on from the normalised x, in the feed-forward half",
            _HIGHWAY,
            partial(_Block, second=_from_normalised),
        ),
        Mistake(
            "attention's answer is not added to x, but replaces it",
            "what x carried is lost, and the gradient's short way back with it.",
            partial(_Block, first=_no_residual),
        ),
        Mistake(
            "the feed-forward layer's answer is not added to x, but replaces it",
            "what x carried is lost, and the gradient's short way back with it.",
            partial(_Block, second=_no_residual),
        ),
        Mistake(
            "attention gets x without norm_1",
            "the stream grows from block to block; norm_1 gives attention numbers of a steady size.",
            partial(_Block, first=_no_norm),
            (_block(changed=_without("norm_1")),),
        ),
        Mistake(
            "the feed-forward layer gets x without norm_2",
            "the stream grows from block to block; norm_2 gives the layer numbers of a steady size.",
            partial(_Block, second=_no_norm),
            (_block(changed=_without("norm_2")),),
        ),
        Mistake(
            "norm_1 is used in both halves",
            _ONE_EACH,
            _block(flow=partial(_other_norms, norms=("norm_1", "norm_1"))),
            (
                _block(changed=_one_norm),
                _block(flow=partial(_other_norms, norms=("norm_1", "norm_1")), changed=_only_norm_1),
            ),
        ),
        Mistake(
            "norm_2 is used in both halves",
            _ONE_EACH,
            _block(flow=partial(_other_norms, norms=("norm_2", "norm_2"))),
        ),
        Mistake(
            "norm_1 and norm_2 are swapped",
            "trained weights are loaded by name: norm_1 belongs to attention, norm_2 to the feed-forward layer.",
            _block(flow=partial(_other_norms, norms=("norm_2", "norm_1"))),
        ),
        Mistake(
            "the norms have no weight and bias",
            "nn.LayerNorm has both unless it is told otherwise, and trained weights need them.",
            _block(changed=_plain_norms),
        ),
        Mistake(
            "both halves read the x that came in",
            "the feed-forward layer works on what attention has gathered; so attention's sum comes first.",
            _block(flow=_parallel),
            (_block(flow=partial(_parallel, second="norm_1")),),
        ),
        Mistake(
            "the second sum starts again from the x that came in",
            "what attention added is lost from the stream; the second half adds to the sum of the first.",
            _block(flow=_back_to_the_start),
        ),
        Mistake(
            "the feed-forward layer reads attention's answer alone, without x",
            "the second half reads the stream: x and what attention has added to it.",
            _block(flow=_one_after_the_other),
            (_block(flow=partial(_one_after_the_other, kept=False)),),
        ),
        Mistake(
            "the feed-forward layer comes before attention",
            "first a position gathers, then it works on what it has gathered.",
            _block(flow=_other_order),
            (_block(flow=partial(_other_order, norms=("norm_1", "norm_2"))),),
        ),
        Mistake(
            "the norms are applied to the answers, not to the inputs",
            "a sublayer's input must have a steady size; its answer must be free to be small or large.",
            _block(first=_norm_behind, second=_norm_behind),
            (_block(first=_norm_behind), _block(second=_norm_behind)),
        ),
        Mistake(
            "the sums are normalised too, after the sublayers",
            _HIGHWAY,
            _block(first=_norm_around, second=_norm_around),
            (_block(first=_norm_around),),
        ),
        Mistake(
            "the block's output is normalised",
            "the stream leaves a block as it is; one norm at the very end belongs to the model.",
            _block(end=lambda block, x: block.norm_2(x)),
            (
                _block(end=lambda block, x: block.norm_1(x)),
                _block(end=lambda block, x: normed(x)),
            ),
        ),
        Mistake(
            "x is added twice",
            "the stream would double in every block.",
            _block(first=_doubled),
            (_block(second=_doubled),),
        ),
        Mistake(
            "config.layer_norm_eps is ignored",
            "nn.LayerNorm takes 1e-5 unless it is told: eps=config.layer_norm_eps.",
            partial(_Block, eps=1e-5),
            (partial(_Block, eps=1e-6), partial(_Block, eps=1e-12)),
        ),
        Mistake(
            "attention sees later positions",
            "a model that is to predict the next token must not read it: the mask is causal.",
            partial(_Block, attention=_Everywhere),
        ),
        Mistake(
            "dropout in the block is active in eval mode",
            "F.dropout drops unless it is told training=self.training; and both sublayers drop out by themselves.",
            _block(dropped="always"),
        ),
        Mistake(
            "the block adds dropout of its own",
            "attention and the feed-forward layer drop out by themselves, after proj; so it falls twice.",
            partial(_Block, dropped="in training"),
            (
                _block(dropped="in training", halves=("feed_forward",)),
                _block(dropped="in training", halves=("attention",)),
                _block(end=lambda block, x: F.dropout(x, block.p, block.training)),
            ),
        ),
        Mistake(
            "x is changed in place",
            "the caller still needs it, and autograd does too: += overwrites it.",
            _block(first=_in_place),
        ),
    ),
    properties=(
        Property("a position's answer does not depend on later ones", _is_causal),
        Property("every row of the batch is treated alone", _rows_apart),
        Property("with both proj layers at zero, x comes out as it went in", _silent_is_identity),
    ),
    hints=(
        "The block is two residual steps, one after the other. You have mended one of them just now.",
        "Each step has its own norm, and its norm stands before its sublayer. What enters the second step is the sum "
        "that leaves the first.",
        "Plan: four parts in __init__, under the names the exercise gives, all from the config; the two nn.LayerNorm "
        "take eps from it too. forward adds attention's answer to x, then the feed-forward layer's answer to that sum.",
    ),
)

EXERCISES = (*norms.EXERCISES, *feed_forward.EXERCISES, RESIDUAL_STEP, TRANSFORMER_BLOCK)
