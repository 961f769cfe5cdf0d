"""The check of layer_norm, the first piece of 04_blocks."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe, Property
from l1_ref.transformer import layer_norm


def _vectors(
    *shape: int, scale: float = 1.5, offset: float = 0.5, dtype: torch.dtype = torch.float32, **given: float
) -> Callable[[torch.Generator], Inputs]:
    """Return the builder of a probe: normal vectors, a weight and a bias that both matter, and eps where given."""

    def build(generator: torch.Generator) -> Inputs:
        def draw(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator, dtype=torch.float64)

        x, weight, bias = draw(*shape) * scale + offset, 1.5 + 0.4 * draw(shape[-1]), 0.5 * draw(shape[-1])
        return {"x": x.to(dtype), "weight": weight.to(dtype), "bias": bias.to(dtype), **given}

    return build


def _one_vector(generator: torch.Generator) -> Inputs:
    x, weight, bias = (torch.tensor(v) for v in ([1.0, 2.0, 3.0, 6.0], [1.0, 2.0, 1.0, 0.5], [0.0, 1.0, 0.0, -1.0]))
    return {"x": x, "weight": weight, "bias": bias, "eps": 1e-5}


def _constant_rows(generator: torch.Generator) -> Inputs:
    inputs = _vectors(3, 4, eps=1e-5)(generator)
    inputs["x"][0], inputs["x"][1] = 0.0, 2.0
    return inputs


def _no_scale(f: Callable, x: Tensor, weight: Tensor, bias: Tensor, *eps: float) -> Tensor:
    return f(x, torch.ones_like(weight), torch.zeros_like(bias), *eps)


def _has_mean_zero(f: Callable, x: Tensor, weight: Tensor, bias: Tensor, *eps: float, **named: float) -> bool:
    mean = _no_scale(f, x, weight, bias, *eps, *named.values()).mean(-1)
    return torch.allclose(mean, torch.zeros_like(mean), atol=1e-2)


def _rows_alone(f: Callable, x: Tensor, weight: Tensor, bias: Tensor, **named: float) -> bool:
    """Change the last vector, and see whether another one's answer moves."""
    if x.ndim == 1:
        return True
    other = x.clone()
    other.view(-1, x.shape[-1])[-1] *= -3
    before, after = (f(each, weight, bias, *named.values()).flatten(0, -2)[:-1] for each in (x, other))
    return torch.allclose(before, after, atol=1e-5)


def _finite_gradient(f: Callable, x: Tensor, weight: Tensor, bias: Tensor, **named: float) -> bool:
    x.requires_grad_()
    total = f(x * 1, weight, bias, *named.values()).sum()
    return not total.requires_grad or bool(torch.autograd.grad(total, x)[0].isfinite().all())


def _spread(x: Tensor, mean: Tensor, axes: int | tuple | None, keepdim: bool) -> Tensor:
    return x.var(axes, correction=0, keepdim=keepdim)


def _spread_by_hand(x: Tensor, mean: Tensor, axes: int | tuple | None, keepdim: bool) -> Tensor:
    return (x - mean).square().mean(axes, keepdim=keepdim)


def _norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    *,
    axes: Callable | int | tuple | None = -1,
    keeps: tuple[bool, bool] = (True, True),
    shift: Callable = torch.sub,
    spread: Callable = _spread,
    divisor: Callable = lambda variance, eps: (variance + eps).sqrt(),
    affine: Callable = lambda y, weight, bias: y * weight + bias,
    detached: tuple[bool, bool] = (False, False),
) -> Tensor:
    """Normalise as the reference does, with one part or another replaced."""
    axes = axes(x) if callable(axes) else axes
    mean = x.mean(axes, keepdim=keeps[0])
    variance = spread(x, mean, axes, keeps[1])
    mean, variance = (s.detach() if cut else s for s, cut in zip((mean, variance), detached, strict=True))
    return affine(shift(x, mean) / divisor(variance, eps), weight, bias)


def _changes_x(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    y = layer_norm(x, weight, bias, eps)
    x -= x.mean(-1, keepdim=True)
    return y


def _default(default: float) -> Callable:
    return lambda x, weight, bias, eps=default: layer_norm(x, weight, bias, eps)


def _mean_over_root(x: Tensor, eps: float) -> Tensor:
    return x.mean(-1, keepdim=True) / (x.var(-1, correction=0, keepdim=True) + eps).sqrt()


def _without_gradient(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    return layer_norm(x.detach(), weight, bias, eps)


_ALONE = "each position is normalised by itself, over its own width C: no other position or example may matter."
_KEEPDIM = "without it the shapes line up the wrong way: on a square tensor there is not even an error."
_EPS = "a row of equal entries has variance 0; eps inside the root keeps the division finite, and the gradient small."

LAYER_NORM = Exercise(
    name="layer_norm",
    notebook="04_blocks",
    reference=layer_norm,
    probes=(
        Probe("one vector", _one_vector, "C"),
        Probe("a square", _vectors(3, 3, eps=1e-5), "T C"),
        # No axis of length 2: over two entries a wrong normalisation gives -1 and 1, and gradients that are only noise.
        Probe("a batch", _vectors(3, 4, 5, eps=1e-5), "B T C"),
        Probe("a large eps", _vectors(2, 3, 4, scale=0.5, offset=0.2, eps=0.1), "B T C"),
        # Gradients are in the hundreds here, and so is their noise.
        Probe("small entries, and eps not given", _vectors(2, 3, 5, scale=4e-3, offset=2e-3), "B T C", tolerance=1e-4),
        Probe("four axes", _vectors(3, 2, 4, 5, eps=0.01), "B H T C"),
        Probe("float64 in, float64 out", _vectors(2, 3, dtype=torch.float64, eps=1e-5), "T C"),
        # The gradient here differs between ways to write the same wrong root; a rule asks that it is finite.
        Probe("two rows of equal entries", _constant_rows, "T C", edge=True, gradient=False, tolerance=1e-3),
        # The mean of the squares minus the square of the mean is a right style that loses digits here.
        Probe("rows far from zero", _vectors(2, 6, offset=100.0, eps=1e-5), "T C", edge=True, tolerance=1e-2),
    ),
    mistakes=(
        Mistake(
            "keepdim is missing in the mean",
            _KEEPDIM,
            partial(_norm, keeps=(False, True)),
            (partial(_norm, keeps=(False, True), spread=_spread_by_hand),),
        ),
        Mistake("keepdim is missing in the variance", _KEEPDIM, partial(_norm, keeps=(True, False))),
        Mistake(
            "keepdim is missing in the mean and in the variance",
            _KEEPDIM,
            partial(_norm, keeps=(False, False)),
            (partial(_norm, keeps=(False, False), spread=_spread_by_hand),),
        ),
        Mistake(
            "it goes along the first axis, as batch normalisation does",
            _ALONE,
            partial(_norm, axes=0),
            (partial(_norm, axes=lambda x: tuple(range(x.ndim - 1))),),
        ),
        Mistake(
            "it goes along the positions T, not along the width C",
            _ALONE,
            partial(_norm, axes=-2),
            (partial(_norm, axes=1),),
        ),
        Mistake(
            "it goes over positions and width together",
            _ALONE,
            partial(_norm, axes=(-2, -1)),
            (
                partial(_norm, axes=lambda x: tuple(range(1, x.ndim))),
                partial(_norm, axes=lambda x: tuple(range(x.ndim))[-2:]),
            ),
        ),
        Mistake("mean and variance are those of the whole tensor", _ALONE, partial(_norm, axes=None)),
        Mistake(
            "the variance is divided by C - 1, not by C",
            "layer normalisation takes the plain mean of the squares; var and std of torch divide by C - 1 unless told "
            "otherwise.",
            partial(_norm, spread=lambda x, mean, axes, keep: x.var(axes, keepdim=keep)),
        ),
        Mistake(
            "the squares are summed, not averaged",
            "the entries then shrink as the width grows.",
            partial(_norm, spread=lambda x, mean, axes, keep: (x - mean).square().sum(axes, keepdim=keep)),
        ),
        Mistake(
            "the mean distance from the mean stands where the standard deviation belongs",
            "only the root of the mean square makes the variance 1.",
            partial(_norm, spread=lambda x, mean, axes, keep: (x - mean).abs().mean(axes, keepdim=keep).square()),
        ),
        Mistake(
            "it is an RMS norm: the mean plays no part",
            "layer normalisation takes the mean away first, and measures the spread around it.",
            partial(
                _norm,
                shift=lambda x, mean: x,
                spread=lambda x, mean, axes, keep: x.square().mean(axes, keepdim=keep),
            ),
        ),
        Mistake(
            "the mean is not subtracted",
            "the normalised vector must have mean 0.",
            partial(_norm, shift=lambda x, mean: x),
        ),
        Mistake(
            "the variance is taken around 0, not around the mean",
            "a vector far from zero would shrink to almost nothing.",
            partial(_norm, spread=lambda x, mean, axes, keep: x.square().mean(axes, keepdim=keep)),
        ),
        Mistake(
            "brackets are missing: only the mean is divided by the root",
            "the whole distance x - mean is divided.",
            lambda x, weight, bias, eps=1e-5: (x - _mean_over_root(x, eps)) * weight + bias,
            (lambda x, weight, bias, eps=1e-5: x - _mean_over_root(x, eps) * weight + bias,),
        ),
        Mistake(
            "the sign is turned: mean - x",
            "a large entry must stay a large one.",
            partial(_norm, shift=lambda x, mean: mean - x),
        ),
        Mistake(
            "it is divided by the variance, not by its root",
            "only the root has the unit of x; entries of twice the size would come out half as large.",
            partial(_norm, divisor=lambda variance, eps: variance + eps),
            (partial(_norm, divisor=lambda variance, eps: (variance + eps).square()),),
        ),
        Mistake(
            "the root is taken twice: of the standard deviation",
            "the variance is the square of the standard deviation; one root is enough.",
            partial(_norm, divisor=lambda variance, eps: (variance.sqrt() + eps).sqrt()),
            (partial(_norm, divisor=lambda variance, eps: (variance + eps).sqrt().sqrt()),),
        ),
        Mistake(
            "it is multiplied by the root, not divided",
            "large vectors would grow, where they should shrink to variance 1.",
            partial(_norm, divisor=lambda variance, eps: (variance + eps).rsqrt()),
        ),
        Mistake(
            "eps stands outside the root", _EPS, partial(_norm, divisor=lambda variance, eps: variance.sqrt() + eps)
        ),
        Mistake("eps is left out", _EPS, partial(_norm, divisor=lambda variance, eps: variance.sqrt())),
        Mistake(
            "the argument eps is ignored",
            "the caller says how much is added; models differ in it.",
            partial(_norm, divisor=lambda variance, eps: (variance + 1e-5).sqrt()),
            (
                partial(_norm, divisor=lambda variance, eps: (variance + 1e-6).sqrt()),
                partial(_norm, divisor=lambda variance, eps: (variance + 1e-8).sqrt()),
            ),
        ),
        Mistake(
            "eps has another default than 1e-5",
            "where entries are small, the answer depends on it; trained weights expect the value they grew up with.",
            _default(1e-6),
            (_default(1e-8), _default(1e-12), _default(1e-3)),
        ),
        Mistake(
            "weight and bias are both left out",
            "with them each column learns its own scale and shift.",
            partial(_norm, affine=lambda y, weight, bias: y),
        ),
        Mistake(
            "weight is left out",
            "with it each column learns its own scale.",
            partial(_norm, affine=lambda y, weight, bias: y + bias),
        ),
        Mistake(
            "bias is left out",
            "with it each column learns its own shift.",
            partial(_norm, affine=lambda y, weight, bias: y * weight),
        ),
        Mistake(
            "the bias is added before the weight multiplies",
            "the weight would scale the bias too; the scale comes first, then the shift.",
            partial(_norm, affine=lambda y, weight, bias: (y + bias) * weight),
        ),
        Mistake(
            "weight and bias are swapped",
            "the weight multiplies, the bias is added.",
            partial(_norm, affine=lambda y, weight, bias: y * bias + weight),
        ),
        Mistake(
            "the weight is added, not multiplied",
            "a scale multiplies.",
            partial(_norm, affine=lambda y, weight, bias: y + weight + bias),
        ),
        Mistake(
            "it is scaled by 1 + weight",
            "the weight itself is the scale; it begins at 1.",
            partial(_norm, affine=lambda y, weight, bias: y * (1 + weight) + bias),
        ),
        Mistake(
            "weight and bias are applied to x, before it is normalised",
            "normalising takes most of their effect away again.",
            lambda x, weight, bias, eps=1e-5: _norm(x * weight + bias, 1.0, 0.0, eps),
        ),
        Mistake(
            "no gradient flows through the mean and the variance",
            "the values are right and training goes wrong: the gradient must know that every entry moves both.",
            partial(_norm, detached=(True, True)),
            (partial(_norm, detached=(True, False)), partial(_norm, detached=(False, True))),
        ),
        Mistake(
            "no gradient gets through",
            "the layers below would not learn; .data, detach, no_grad, numpy or torch.tensor(...) cut the path.",
            _without_gradient,
            (lambda x, weight, bias, eps=1e-5: layer_norm(x, weight, bias, eps).detach(),),
        ),
        Mistake("x is changed in place", "the residual stream still needs it, and autograd does too.", _changes_x),
    ),
    properties=(
        Property("each vector is normalised by itself: changing one changes no other", _rows_alone),
        Property("with weight 1 and bias 0, every vector has mean 0", _has_mean_zero),
        Property("the gradient is finite, also where all entries of a row are equal", _finite_gradient),
    ),
    hints=(
        "Each vector along the last axis is treated alone: what are its mean and its variance?",
        "Both need keepdim=True, so that they line up with x. The variance divides by C, and torch's var does so only "
        "when you ask for it. Where exactly does eps stand in the formula?",
        "Plan: the mean over the last axis; the mean of the squared distances from it; the distances divided by the "
        "root of that mean plus eps; times weight; plus bias. Leave x itself as it was.",
    ),
)

EXERCISES = (LAYER_NORM,)
