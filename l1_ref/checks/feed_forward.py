"""The checks of gelu and the feed-forward layer, of 04_blocks."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe, Property
from l1_ref.config import L1Config
from l1_ref.transformer import FeedForward, gelu


def as_it_is(x: Tensor) -> Tensor:
    """Return x: what stands where a part is left out."""
    return x


# gelu.

_ROOT = math.sqrt(2 / math.pi)


def _numbers(*values: float) -> Callable[[torch.Generator], Inputs]:
    return lambda generator: {"x": torch.tensor(values)}


def _normal(*shape: int, dtype: torch.dtype = torch.float32) -> Callable[[torch.Generator], Inputs]:
    return lambda generator: {"x": (2 * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)}


def _bent(
    x: Tensor,
    *,
    scale: float = _ROOT,
    cubic: float = 0.044715,
    inner: Callable = lambda x, scale, cubic: scale * (x + cubic * x**3),
    bend: Callable = torch.tanh,
    outer: Callable = lambda x, t: 0.5 * x * (1 + t),
) -> Tensor:
    """Bend as the reference does, with one part or another replaced."""
    return outer(x, bend(inner(x, scale, cubic)))


def _tanh_by_exp(u: Tensor) -> Tensor:
    return ((2 * u).exp() - 1) / ((2 * u).exp() + 1)


def _gelu_in_place(x: Tensor) -> Tensor:
    y = gelu(x)
    x *= 0.5
    return y


_FORMULA = "weights that were trained with one curve expect that curve."

GELU = Exercise(
    name="gelu",
    notebook="04_blocks",
    reference=gelu,
    probes=(
        Probe("five numbers", _numbers(-2.0, -1.0, -0.5, 1.0, 2.0), "C"),
        Probe("where the curve bends", _numbers(-3.0, -2.5, -1.5, -0.75, -0.25, 0.5, 3.0), "C"),
        Probe("a batch", _normal(2, 3, 4), "B T C"),
        # A rounded constant shows in the sixth digit only.
        Probe("six digits", _numbers(-2.0, -1.5, -1.25, -1.0), "C", gradient=False, tolerance=1e-6),
        Probe("float64 in, float64 out", _normal(2, 5, dtype=torch.float64), "T C"),
        Probe("numbers far from zero", _numbers(-1e4, -60.0, -20.0, 20.0, 60.0, 1e4), "C", edge=True),
    ),
    mistakes=(
        Mistake(
            "it is the exact form, with erf",
            "GPT-2 uses the tanh form; F.gelu takes erf unless it is told approximate='tanh'. " + _FORMULA.capitalize(),
            F.gelu,
        ),
        Mistake(
            "it is the sigmoid form, x * sigmoid(1.702 x)",
            "that is a coarser fit of the same curve. " + _FORMULA.capitalize(),
            lambda x: x * torch.sigmoid(1.702 * x),
        ),
        Mistake(
            "it is SiLU, x * sigmoid(x)",
            "GELU rises more steeply around zero. " + _FORMULA.capitalize(),
            F.silu,
        ),
        Mistake(
            "it is ReLU: what is negative becomes 0",
            "GELU lets small negative values through, and with them their gradient.",
            torch.relu,
            (lambda x: torch.where(x > 0, gelu(x), torch.zeros_like(x)), F.leaky_relu, F.elu),
        ),
        Mistake(
            "it is tanh or sigmoid alone",
            "large positive values must come through as they are, not be squeezed to 1.",
            torch.tanh,
            (torch.sigmoid,),
        ),
        Mistake(
            "the constant 0.044715 is another number",
            "the three constants together fit the curve; a lost zero bends it far off.",
            partial(_bent, cubic=0.44715),
            tuple(partial(_bent, cubic=c) for c in (0.0044715, 0.04715, 0.04475, 0.0447715)),
        ),
        Mistake(
            "sqrt(2 / pi) is another number",
            "it sets how steep the gate is at zero; 2 / pi stands under the root, not 2 * pi or pi / 2.",
            partial(_bent, scale=math.sqrt(2 * math.pi)),
            tuple(
                partial(_bent, scale=c)
                for c in (
                    2 / math.pi,
                    math.sqrt(math.pi / 2),
                    math.sqrt(2) / math.pi,
                    2 / math.sqrt(math.pi),
                    1 / math.sqrt(math.pi),
                    math.sqrt(2),
                    1 / math.sqrt(2),
                    1.0,
                )
            ),
        ),
        Mistake(
            "a constant is rounded",
            "the error is small, and adds up over many layers; let math.sqrt and math.pi do the counting.",
            partial(_bent, scale=0.8),
            (
                *(partial(_bent, scale=c) for c in (0.79, 0.797, 0.7978, 0.7979, 0.798, math.sqrt(2 / 3.14))),
                *(partial(_bent, cubic=c) for c in (0.04, 0.044, 0.0447, 0.045, 0.05)),
                partial(_bent, scale=0.7979, cubic=0.0447),
                partial(_bent, scale=0.798, cubic=0.0447),
                partial(_bent, scale=0.8, cubic=0.045),
            ),
        ),
        Mistake(
            "x is squared where it should be cubed",
            "only an odd power treats both signs alike.",
            partial(_bent, inner=lambda x, scale, cubic: scale * (x + cubic * x**2)),
        ),
        Mistake(
            "the power of x is missing: 0.044715 multiplies x itself",
            "the cube is what bends the curve away from the plain tanh.",
            partial(_bent, inner=lambda x, scale, cubic: scale * (x + cubic * x)),
            (partial(_bent, inner=lambda x, scale, cubic: scale * (x + cubic * 3 * x)),),
        ),
        Mistake(
            "the cubic term is left out",
            "without it the curve is too high on one side and too low on the other.",
            partial(_bent, cubic=0.0),
        ),
        Mistake(
            "the brackets are wrong: the cube takes in too much",
            "only x is cubed; 0.044715 multiplies the result, and x is added.",
            partial(_bent, inner=lambda x, scale, cubic: scale * (x + (cubic * x) ** 3)),
            (
                partial(_bent, inner=lambda x, scale, cubic: scale * (x + cubic * x) ** 3),
                partial(_bent, inner=lambda x, scale, cubic: (scale * (x + cubic * x)) ** 3),
                partial(_bent, inner=lambda x, scale, cubic: scale * cubic * (x + x**3)),
            ),
        ),
        Mistake(
            "the brackets are wrong: sqrt(2 / pi) multiplies only x",
            "it multiplies the whole sum.",
            partial(_bent, inner=lambda x, scale, cubic: scale * x + cubic * x**3),
            (partial(_bent, inner=lambda x, scale, cubic: x + scale * cubic * x**3),),
        ),
        Mistake(
            "the two constants are swapped",
            "sqrt(2 / pi) multiplies the sum, 0.044715 the cube.",
            partial(_bent, scale=0.044715, cubic=_ROOT),
        ),
        Mistake(
            "the factor 0.5 is missing",
            "1 + tanh runs from 0 to 2; half of it runs from 0 to 1.",
            partial(_bent, outer=lambda x, t: x * (1 + t)),
        ),
        Mistake(
            "the factor x is missing",
            "without it this is only the gate, between 0 and 1.",
            partial(_bent, outer=lambda x, t: 0.5 * (1 + t)),
        ),
        Mistake(
            "1 is not added to the tanh",
            "the gate must run from 0 to 1; so it would run from -0.5 to 0.5.",
            partial(_bent, outer=lambda x, t: 0.5 * x * t),
        ),
        Mistake(
            "the brackets around 1 + tanh are missing",
            "0.5 and x multiply the whole gate, 1 + tanh.",
            partial(_bent, outer=lambda x, t: 0.5 * x * t + 1),
            (
                partial(_bent, outer=lambda x, t: 0.5 * (x * t + 1)),
                partial(_bent, outer=lambda x, t: 0.5 * x + t),
                partial(_bent, outer=lambda x, t: x * (0.5 + t)),
            ),
        ),
        Mistake(
            "the sign of the tanh is turned",
            "positive values must come through, negative ones fade.",
            partial(_bent, outer=lambda x, t: 0.5 * x * (1 - t)),
        ),
        Mistake(
            "the tanh is left out",
            "without it the curve is a polynomial and grows without bound.",
            partial(_bent, bend=as_it_is),
        ),
        Mistake(
            "sigmoid stands where tanh belongs",
            "a sigmoid runs from 0 to 1, tanh from -1 to 1.",
            partial(_bent, bend=torch.sigmoid),
            (partial(_bent, bend=torch.sigmoid, outer=lambda x, t: x * t),),
        ),
        Mistake(
            "tanh is written with exp, which overflows",
            "infinity divided by infinity is NaN; torch.tanh is safe for every input.",
            partial(_bent, bend=_tanh_by_exp),
            (
                partial(_bent, bend=lambda u: (u.exp() - (-u).exp()) / (u.exp() + (-u).exp())),
                partial(_bent, bend=lambda u: u.sinh() / u.cosh()),
            ),
        ),
        Mistake(
            "no gradient gets through",
            "training needs it; math.tanh, .item(), numpy, detach or torch.tensor(...) cut the path.",
            lambda x: gelu(x.detach()),
        ),
        Mistake("x is changed in place", "the caller still needs it, and autograd does too.", _gelu_in_place),
    ),
    properties=(
        Property("gelu(x) - gelu(-x) is x", lambda f, x: torch.allclose(f(x.clone()) - f(-x), x, rtol=1e-4, atol=1e-5)),
        Property("gelu(0) is 0", lambda f, x: bool((f(torch.zeros_like(x)) == 0).all())),
        Property("every entry is treated alone", lambda f, x: torch.allclose(f(x)[..., :1], f(x[..., :1]), atol=1e-5)),
    ),
    hints=(
        "The formula stands above the exercise: take it from the inside out, one name for each part.",
        "The inner part is a sum of x and a multiple of its cube, all times the root of 2 / pi. What runs from -1 to 1 "
        "there becomes a gate from 0 to 1.",
        "Plan: u is the root of 2 / pi times the bracket; the gate is one half of 1 plus torch.tanh of u; the answer "
        "is x times the gate. For a plain number, math.sqrt is fine; for the tensor use torch.",
    ),
)


# FeedForward.


def of_config(n_embd: int, n_heads: int = 1, dropout: float = 0.0, **others: int | float | None) -> L1Config:
    """Return a small config, without dropout unless it is given."""
    return L1Config(n_heads=n_heads, n_embd=n_embd, dropout=dropout, **others)


def stream(config: L1Config, B: int, T: int, scale: float = 1.0) -> Callable[[torch.Generator], Inputs]:
    """Return the builder of a probe: a config, and hidden states of about this scale, not around zero."""
    return lambda generator: {
        "config": config,
        "x": scale * torch.randn(B, T, config.n_embd, generator=generator) + 0.25 * scale,
    }


class _Bent(nn.Module):
    """The feed-forward layer, with one part or another replaced."""

    def __init__(
        self,
        config: L1Config,
        *,
        width: Callable = lambda config: config.n_inner,
        biases: tuple[bool, bool] = (True, True),
        before: Callable = as_it_is,
        bend: Callable = gelu,
        after: Callable = as_it_is,
        rate: Callable = lambda p: p,
        dropped: tuple[str, ...] = ("output",),
        always: bool = False,
        added: str = "",
    ):
        super().__init__()
        F_ = width(config)
        self.fc = nn.Linear(config.n_embd, F_, bias=biases[0])
        self.proj = nn.Linear(F_, config.n_embd, bias=biases[1])
        self.before, self.bend, self.after = before, bend, after
        self.p, self.dropped, self.always, self.added = rate(config.dropout), dropped, always, added

    def _drop(self, x: Tensor, place: str) -> Tensor:
        return F.dropout(x, self.p, self.training or self.always) if place in self.dropped else x

    def forward(self, x: Tensor) -> Tensor:
        h = self._drop(self.bend(self.fc(self.before(self._drop(x, "input")))), "hidden")
        y = self.after(self.proj(h))
        y = self._drop(x + y if self.added == "before dropout" else y, "output")
        return x + y if self.added == "at the end" else y


class _Swapped(nn.Module):
    """fc narrows and proj widens, and proj is called first."""

    def __init__(self, config: L1Config):
        super().__init__()
        self.fc, self.proj = nn.Linear(config.n_inner, config.n_embd), nn.Linear(config.n_embd, config.n_inner)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc(gelu(self.proj(x))))


def normed(x: Tensor) -> Tensor:
    """Return x after a layer normalisation without weight and bias."""
    return F.layer_norm(x, x.shape[-1:])


def _positions_alone(module: nn.Module, x: Tensor) -> bool:
    """Change the last position of the last example, and see whether any other answer moves."""
    other = x.clone()
    other[-1, -1] = -other[-1, -1] + 1
    before, after = module(x.clone()), module(other)
    return torch.allclose(before.flatten(0, 1)[:-1], after.flatten(0, 1)[:-1], rtol=1e-4, atol=1e-5)


_CURVE = "GPT-2 was trained with the tanh form of GELU, and its weights expect that curve."
_DROPPED = "in this course dropout falls once in this layer: on its output, after proj."
_BIAS = "the layers of GPT-2 have biases; without one the layer cannot shift its output."

FEED_FORWARD = Exercise(
    name="FeedForward",
    notebook="04_blocks",
    reference=FeedForward,
    init=("config",),
    probes=(
        Probe("two sequences", stream(of_config(3, n_inner=5), 2, 2, 2.0), "B T C"),
        Probe("n_inner left at 4 * n_embd", stream(of_config(4), 2, 3, 2.0), "B T C"),
        Probe("a narrow hidden layer", stream(of_config(5, n_inner=4), 2, 3, 2.0), "B T C"),
        # So many entries that no other way of drawing falls out by chance.
        Probe("with dropout", stream(of_config(8, n_inner=12, dropout=0.3), 2, 4, 1.5), "B T C", gradient=False),
        Probe("large inputs", stream(of_config(3, n_inner=5), 2, 4, 100.0), "B T C", edge=True),
    ),
    mistakes=(
        Mistake(
            "the hidden width is 4 * n_embd, whatever n_inner says",
            "the config decides: n_inner is an int there, and only by default four times n_embd.",
            partial(_Bent, width=lambda config: 4 * config.n_embd),
        ),
        Mistake(
            "the hidden width is n_embd: nothing is widened",
            "the hidden layer has the width config.n_inner.",
            partial(_Bent, width=lambda config: config.n_embd),
        ),
        Mistake(
            "fc and proj are swapped",
            "fc leads from n_embd to n_inner, proj from n_inner to n_embd; weights are loaded by name.",
            _Swapped,
        ),
        Mistake("fc has no bias", _BIAS, partial(_Bent, biases=(False, True))),
        Mistake("proj has no bias", _BIAS, partial(_Bent, biases=(True, False))),
        Mistake("fc and proj have no bias", _BIAS, partial(_Bent, biases=(False, False))),
        Mistake(
            "the activation is after proj, not between the two layers",
            "two linear layers in a row are one linear layer; the bend belongs between them.",
            partial(_Bent, bend=as_it_is, after=gelu),
        ),
        Mistake(
            "the activation is before fc, not between the two layers",
            "two linear layers in a row are one linear layer; the bend belongs between them.",
            partial(_Bent, before=gelu, bend=as_it_is),
        ),
        Mistake(
            "there is an activation after proj too",
            "the output is added to the residual stream, and must be free to be negative.",
            partial(_Bent, after=gelu),
            (partial(_Bent, after=torch.relu),),
        ),
        Mistake(
            "the activation is applied twice",
            "one bend is enough; the second fades positive values too.",
            partial(_Bent, bend=lambda h: gelu(gelu(h))),
        ),
        Mistake(
            "the activation is missing",
            "two linear layers in a row are one linear layer; the bend between them is what they need each other for.",
            partial(_Bent, bend=as_it_is),
        ),
        Mistake("the activation is ReLU", _CURVE, partial(_Bent, bend=torch.relu)),
        Mistake(
            "the activation is the exact GELU, with erf",
            "nn.GELU and F.gelu take erf unless they are told approximate='tanh'. " + _CURVE,
            partial(_Bent, bend=F.gelu),
        ),
        Mistake("the activation is SiLU", _CURVE, partial(_Bent, bend=F.silu)),
        Mistake(
            "the activation is the sigmoid form of GELU",
            _CURVE,
            partial(_Bent, bend=lambda h: h * torch.sigmoid(1.702 * h)),
        ),
        Mistake(
            "the activation is tanh or sigmoid",
            _CURVE,
            partial(_Bent, bend=torch.tanh),
            (partial(_Bent, bend=torch.sigmoid),),
        ),
        Mistake(
            "dropout is active in eval mode",
            "F.dropout drops unless it is told training=self.training; nn.Dropout knows the mode by itself.",
            partial(_Bent, always=True),
        ),
        Mistake(
            "dropout is missing",
            "without it a large model learns its texts by heart.",
            partial(_Bent, dropped=()),
        ),
        Mistake(
            "dropout is before proj: on the hidden layer, or on the input",
            _DROPPED,
            partial(_Bent, dropped=("hidden",)),
            (partial(_Bent, dropped=("input",)),),
        ),
        Mistake(
            "dropout falls more than once",
            _DROPPED,
            partial(_Bent, dropped=("hidden", "output")),
            (partial(_Bent, dropped=("input", "output")), partial(_Bent, dropped=("input", "hidden", "output"))),
        ),
        Mistake(
            "the dropout rate is not config.dropout",
            "the config says how much is dropped; torch's p is the share that is dropped, not the share kept.",
            partial(_Bent, rate=lambda p: 0.5 if p else p),
            (partial(_Bent, rate=lambda p: 0.1 if p else p), partial(_Bent, rate=lambda p: 1 - p if p else p)),
        ),
        Mistake(
            "x is added inside",
            "the block adds the residual; added here too it would count twice.",
            partial(_Bent, added="at the end"),
            (partial(_Bent, added="before dropout"),),
        ),
        Mistake(
            "x is normalised inside",
            "the block normalises before it calls this layer.",
            partial(_Bent, before=normed),
        ),
        Mistake(
            "the output is normalised inside",
            "the block has its own norms, and none of them falls on what is added to the stream.",
            partial(_Bent, after=normed),
        ),
        Mistake(
            "no gradient gets through",
            "training needs it; .data, detach, no_grad, numpy or torch.tensor(...) cut the path.",
            partial(_Bent, bend=lambda h: gelu(h.detach())),
            (partial(_Bent, before=torch.detach), partial(_Bent, after=torch.detach)),
        ),
    ),
    properties=(Property("each position is treated alone: changing one changes no other", _positions_alone),),
    hints=(
        "Two linear layers with a bend between them. Which widths does each go from and to?",
        "fc leads from n_embd to n_inner, proj back. The names matter: trained weights are loaded by them. "
        "Dropout comes once, at the very end.",
        "Plan: in __init__, call super().__init__(), then make fc, proj and an nn.Dropout from the config. In forward: "
        "fc, the tanh GELU, proj, dropout; nothing is added or normalised here.",
    ),
)

EXERCISES = (GELU, FEED_FORWARD)
