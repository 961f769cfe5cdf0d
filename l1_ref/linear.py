"""Linear layers, nearly all of the arithmetic there is: by the faster of torch's libraries, or in fewer bits."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from l1_ref.config import require_whole

# torch multiplies float32 matrices with MKL, and brings oneDNN, which is the faster on AMD's processors, and on Intel's
# for a few rows at a time. The function is not a public one; where a build of torch lacks it, `F.linear` serves.
ON_AMD = "amd" in str(torch.cpu.get_capabilities().get("cpu_name", "")).lower()
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
# Below so many multiplications the preparations cost more than oneDNN saves; more so where gradients are wanted.
MIN_PRODUCTS, MIN_PRODUCTS_WITH_GRADIENTS = 2**19, 2**22
FEW_ROWS = 16  # up to so many, reading the matrix is most of a product's time
# oneDNN's own order of a matrix, in which it multiplies several rows some 1.5 times as fast on AMD. To put it into that
# order takes as long as 20 products save, so it is done where there will be more. Not a public function either.
_PACK = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None) if _ONEDNN is not None else None
MIN_REPEATS = 32
STORED_AS = ("float32", "bfloat16", "int8")


class Linear(nn.Linear):
    """`nn.Linear`, with float32 products on the CPU done by oneDNN: the same sums in another order.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        bias: Whether a vector is added.

    Example:
        >>> layer, x = Linear(4, 3), torch.randn(2, 4)
        >>> torch.allclose(layer(x), x @ layer.weight.T + layer.bias, atol=1e-6)
        True
    """

    def forward(self, x: Float[Tensor, "*shape C"]) -> Float[Tensor, "*shape F"]:
        """Return x @ weight.T + bias."""
        return linear(x, self.weight, self.bias)


def linear(x: Float[Tensor, "*shape C"], weight: Float[Tensor, "F C"], bias: Tensor | None = None) -> Tensor:
    """Return x @ weight.T + bias by the faster library; `F.linear` is the explicit twin.

    Args:
        x: Vectors of width C.
        weight: One row for each output.
        bias: Added to every vector.
    """
    if not suits_onednn(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _OneDNNLinear.apply(x, weight, bias)
    return _ONEDNN(x, weight, bias, "none", [], "")


def suits_onednn(x: Float[Tensor, "*shape C"], weight: Float[Tensor, "F C"]) -> bool:
    """Say whether `linear` gives a product to oneDNN.

    Args:
        x: Vectors of width C.
        weight: One row for each output.
    """
    n_rows = x.numel() // x.shape[-1]
    least = MIN_PRODUCTS_WITH_GRADIENTS if torch.is_grad_enabled() else MIN_PRODUCTS
    return (
        n_rows * weight.numel() >= least
        and _ONEDNN is not None
        and (ON_AMD or 1 < n_rows <= FEW_ROWS)
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and not (n_rows <= FEW_ROWS and not weight.is_contiguous())  # MKL reads columns: see `store_for_generation`
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def packed(layer: Linear, n_rows: int, n_products: int) -> Callable[[Tensor], Tensor] | None:
    """Return the product of a layer with a copy of its matrix in oneDNN's own order, or None where that gains nothing.

    The copy takes the matrix' bytes again, as long as the product is kept, and knows no later change of the layer.

    Args:
        layer: The layer, which is the explicit twin; it stays as it is.
        n_rows: How many rows each x will have, (n_rows, C).
        n_products: How many products there will be.
    """
    weight, bias = layer.weight.detach(), layer.bias
    gains = ON_AMD and 1 < n_rows <= FEW_ROWS and n_products >= MIN_REPEATS and _PACK is not None
    if not gains or not suits_onednn(weight.new_empty(n_rows, layer.in_features), weight):
        return None
    matrix = _PACK(weight, n_rows)
    return lambda x: _ONEDNN(x, matrix, bias, "none", [], "")


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _ONEDNN(x, weight, bias, "none", [], "")

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        d_rows = d_y.reshape(-1, d_y.shape[-1])  # (N, F)
        return (
            _ONEDNN(d_y, weight.t(), None, "none", [], "") if for_x else None,
            _ONEDNN(d_rows.t(), x.reshape(-1, x.shape[-1]).t(), None, "none", [], "") if for_weight else None,
            d_rows.sum(0) if for_bias else None,
        )


class StoredLinear(nn.Module):
    """A linear layer for generation alone, its matrix kept in fewer bits.

    Args:
        layer: The layer whose values are taken; it stays as it is.
        stored_as: "bfloat16", or "int8": whole numbers from -127 to 127 with one scale a row.

    Source: int8: Dettmers et al. 2022, "LLM.int8()", section 2.1, absmax quantisation, here by row.
    """

    def __init__(self, layer: nn.Linear, stored_as: str):
        super().__init__()
        matrix = layer.weight.detach()
        scale = matrix.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127 if stored_as == "int8" else None
        matrix = matrix.bfloat16() if scale is None else (matrix / scale[:, None]).round().to(torch.int8)
        self.register_buffer("matrix", matrix.contiguous())
        self.register_buffer("scale", None if scale is None else scale.bfloat16())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    def forward(self, x: Float[Tensor, "*shape C"]) -> Float[Tensor, "*shape F"]:
        """Return the layer's output in x's dtype; the product itself is in bfloat16."""
        half = x.bfloat16()
        if self.scale is None:
            y = F.linear(half, self.matrix)
        elif x.device.type == "cpu" and x.shape[-1] % 16 == 0:  # the kernel reads 16 numbers at once
            rows = half.reshape(-1, x.shape[-1]).contiguous()  # (N, C)
            y = torch._weight_int8pack_mm(rows, self.matrix, self.scale).view(*x.shape[:-1], len(self.matrix))
        else:
            y = F.linear(half, self.matrix.bfloat16()) * self.scale
        y = y.to(x.dtype)
        return y if self.bias is None else y + self.bias


def store_for_generation(model: nn.Module, stored_as: str = "float32", batch_size: int = 1) -> nn.Module:
    """Change how a model's matrices lie in memory, so that generating one token at a time reads them faster.

    A single row times a matrix is a pass over memory, so the layout and the number of bits decide how long it takes. In
    float32 names, shapes and values stay as they are. With fewer bits the model can only generate: it cannot be trained
    or saved any more, and its scores change a little.

    Args:
        model: Its linear layers are changed in place.
        stored_as: "float32", "bfloat16" (half the bytes) or "int8" (a quarter).
        batch_size: How many texts are to be continued at once; any number works, this one is the fastest.

    Returns:
        The same model.

    Raises:
        ValueError: A setting breaks its rule, or the model is stored in fewer bits already.

    Example:
        >>> model = store_for_generation(L1Model(L1Config.preset("tiny")), stored_as="int8")
        >>> model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4).shape
        torch.Size([1, 7])
    """
    require_whole("batch_size", batch_size, "of at least 1", lambda n: n >= 1)
    if stored_as not in STORED_AS:
        raise ValueError(f"stored_as must be one of {', '.join(STORED_AS)}, got stored_as={stored_as!r}")
    if is_stored_in_few_bits(model):
        raise ValueError(f"stored_as must be chosen once, got stored_as={stored_as!r} for a model in few bits already")
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and stored_as == "float32":
            _store_in_float32(layer, batch_size)
        elif isinstance(layer, nn.Linear):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, StoredLinear(layer, stored_as))
    return model


def is_stored_in_few_bits(model: nn.Module) -> bool:
    """Say whether `store_for_generation` has put a model into fewer bits than it was trained in."""
    return any(isinstance(layer, StoredLinear) for layer in model.modules())


def _store_in_float32(layer: nn.Linear, batch_size: int) -> None:
    # For one row at a time, MKL runs through a matrix that is stored by columns, where they are the longer side, as
    # fast as memory allows on Intel's processors. On AMD's that holds for one thread, where that side is at least twice
    # as long; else oneDNN with its rows is the faster there. For several rows at a time oneDNN is so everywhere.
    n_out, n_in = layer.weight.shape
    is_large = _ONEDNN is not None and layer.weight.numel() * batch_size >= MIN_PRODUCTS
    suits_rows = ON_AMD and (torch.get_num_threads() > 1 or n_out < 2 * n_in)
    by_rows = n_out < n_in or (is_large and (batch_size > 1 or suits_rows))
    layer.weight.data = layer.weight.data.contiguous() if by_rows else layer.weight.data.t().contiguous().t()
