"""Blocks of attention and feed-forward layers, stacked into the whole model: ids in, logits out."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from l1_ref.attention import Cache, MultiHeadAttention
from l1_ref.config import L1Config
from l1_ref.embeddings import InputEmbedding
from l1_ref.linear import ON_AMD, Linear


def layer_norm(
    x: Float[Tensor, "*shape C"], weight: Float[Tensor, "C"], bias: Float[Tensor, "C"], eps: float = 1e-5
) -> Float[Tensor, "*shape C"]:
    """Give each vector mean 0 and variance 1 over its width, then a learned scale and shift.

    y = (x - mean) / sqrt(variance + eps) * weight + bias, with the variance divided by C (not C - 1).

    Args:
        x: Vectors of width C.
        weight: Scale of each column.
        bias: Shift of each column.
        eps: Keeps the root away from zero.

    Example:
        >>> x = torch.tensor([[1.0, 3.0], [10.0, 30.0]])
        >>> layer_norm(x, torch.ones(2), torch.zeros(2)).round(decimals=3).tolist()
        [[-1.0, 1.0], [-1.0, 1.0]]

    Source: Ba, Kiros and Hinton 2016, "Layer Normalization", equation 3.
    """
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def gelu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Let positive values through and fade negative ones out, smoothly: GPT-2's activation.

    gelu(x) = 0.5 x (1 + tanh(z/2)) = x sigmoid(z), where z = 2 sqrt(2/pi) (x + 0.044715 x^3).

    Args:
        x: Values of any shape.

    Example:
        >>> [round(value, 2) for value in gelu(torch.tensor([-1.0, 0.0, 1.0, 9.0])).tolist()]
        [-0.16, 0.0, 0.84, 9.0]

    Source: Hendrycks and Gimpel 2016, "Gaussian Error Linear Units", section 2, the tanh form.
    """
    in_training = x.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if ON_AMD and in_training and x.device.type == "cpu" and x.dtype == torch.float32:
        return _Gelu.apply(x)
    return F.gelu(x, approximate="tanh")


class _Gelu(torch.autograd.Function):
    """`gelu` by its sigmoid, on AMD cheaper than torch's tanh, in pieces that stay in the processor's cache."""

    PIECE, LINEAR, CUBIC = 2**17, 2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715

    @classmethod
    def _pieces(cls, *tensors: Tensor) -> zip:
        return zip(*(tensor.view(-1).split(cls.PIECE) for tensor in tensors), strict=True)

    @classmethod
    def _sigmoid(cls, x: Tensor, square: Tensor) -> Tensor:
        return (square * cls.CUBIC).add_(cls.LINEAR).mul_(x).sigmoid_()

    @classmethod
    def forward(cls, ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        y = torch.empty_like(x)
        for x_, y_ in cls._pieces(x, y):
            torch.mul(x_, cls._sigmoid(x_, x_ * x_), out=y_)
        return y

    @classmethod
    @torch.autograd.function.once_differentiable
    def backward(cls, ctx: Any, d_y: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        d_x = torch.empty_like(x)
        for x_, d_y_, d_x_ in cls._pieces(x, d_y.contiguous(), d_x):
            square = x_ * x_
            s = cls._sigmoid(x_, square)
            slope = square.mul_(3 * cls.CUBIC).add_(cls.LINEAR).mul_(x_)  # x dz/dx
            torch.mul(slope.mul_(1 - s).add_(1).mul_(s), d_y_, out=d_x_)
        return d_x


class FeedForward(nn.Module):
    """Work on each position by itself: widen, bend, narrow.

    Args:
        config: Uses `n_embd`, `n_inner` and `dropout`.

    Example:
        >>> layer = FeedForward(L1Config.preset("tiny"))
        >>> layer.fc.weight.shape, layer(torch.randn(2, 5, 128)).shape
        (torch.Size([512, 128]), torch.Size([2, 5, 128]))

    Source: Vaswani et al. 2017, equation 2, with GELU in place of max(0, x).
    """

    def __init__(self, config: L1Config):
        super().__init__()
        self.fc = Linear(config.n_embd, config.n_inner)
        self.proj = Linear(config.n_inner, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """Return the layer's contribution to the residual stream."""
        return self.dropout(self.proj(gelu(self.fc(x))))


class TransformerBlock(nn.Module):
    """Add what attention gathers, then what the feed-forward layer makes of it, to the residual stream.

    Args:
        config: The model's configuration.
        layer: Index of the block, from 0: its place in a `KVCache`.

    Example:
        >>> TransformerBlock(L1Config.preset("tiny"))(torch.randn(2, 5, 128)).shape
        torch.Size([2, 5, 128])

    Source: Radford et al. 2019, section 2.3: layer normalisation moves to the input of each sub-block (pre-norm).
    """

    def __init__(self, config: L1Config, layer: int = 0):
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.n_embd, config.layer_norm_eps)
        self.attention = MultiHeadAttention(config, layer)
        self.norm_2 = nn.LayerNorm(config.n_embd, config.layer_norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Float[Tensor, "B T C"], cache: Cache | None = None) -> Float[Tensor, "B T C"]:
        """Return the residual stream after this block.

        Args:
            x: Residual stream before it.
            cache: Keys and values of earlier tokens, where there are any.
        """
        x = x + self.attention(self.norm_1(x), cache)
        return x + self.feed_forward(self.norm_2(x))


def checkpointed(block: nn.Module, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
    """Run a block without keeping its activations; the backward pass computes them again.

    The random state is kept, so dropout drops the same entries both times and the gradients are the same.

    Args:
        block: Maps x to a tensor.
        x: Its input, the only activation that is kept.

    Example:
        >>> block, x = TransformerBlock(L1Config.preset("tiny")), torch.randn(2, 5, 128, requires_grad=True)
        >>> torch.allclose(checkpointed(block, x), block(x), atol=1e-6)
        True
        >>> saved_bytes(block, lambda: checkpointed(block, x)) < saved_bytes(block, lambda: block(x)) / 10
        True

    Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", section 4.
    """
    return checkpoint(block, x, use_reentrant=False)


def require_ids(ids: Any) -> None:
    """Refuse what are no ids that an embedding can look up: int64 or int32, of shape (B, T)."""
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.dtype not in (torch.int64, torch.int32):
        got = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"ids must be a tensor of int64 or int32 of shape (B, T), got {got}")


class L1Model(nn.Module):
    """The whole decoder-only transformer: embedding, blocks, final normalisation, head.

    Set `model.checkpointing = True` to trade time for memory in training.

    Args:
        config: The model's configuration.

    Example:
        >>> model = L1Model(L1Config.preset("tiny"))
        >>> model(torch.tensor([[1, 2, 3]])).shape  # a score for every token, at every position
        torch.Size([1, 3, 1000])
        >>> model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4).shape
        torch.Size([1, 7])

    Source: Radford et al. 2019, section 2.3.
    """

    def __init__(self, config: L1Config):
        super().__init__()
        self.config = config
        self.checkpointing = False
        self.embedding = InputEmbedding(config)
        self.blocks = nn.ModuleList(TransformerBlock(config, layer) for layer in range(config.n_layers))
        self.norm = nn.LayerNorm(config.n_embd, config.layer_norm_eps)
        self.head = Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_weights:
            self.head.weight = self.embedding.token.weight
        init_weights(self, config)

    def hidden(self, ids: Int[Tensor, "B T"], cache: Cache | None = None) -> Float[Tensor, "B T C"]:
        """Return the normalised hidden states, from which the head predicts.

        Args:
            ids: The new token ids, int64 or int32, each in 0 … vocab_size - 1.
            cache: What the tokens before them left behind; positions go on from `cache.length`, which moves on by T.

        Raises:
            ValueError: The ids have another shape or dtype, one is out of range, there is no token, or the sequence is
                longer than the context.
        """
        require_ids(ids)
        x = self.embedding(ids, offset=cache.length if cache is not None else 0)  # (B, T, C)
        for block in self.blocks:
            if self.checkpointing and cache is None and torch.is_grad_enabled():
                x = checkpointed(block, x)
            else:
                x = block(x, cache)
        if cache is not None:
            cache.length += ids.shape[1]
        return self.norm(x)

    def forward(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Return a score for every token of the vocabulary, at every position.

        Args:
            ids: Token ids, int64 or int32, each in 0 … vocab_size - 1, at most `max_seq_length` a row.

        Raises:
            ValueError: As for `hidden`.
        """
        return self.head(self.hidden(ids))

    def generate(self, input_ids: Int[Tensor, "B T"], max_new_tokens: int = 50, **options) -> Int[Tensor, "B S"]:
        """Continue each row of ids; `l1_ref.generation.generate` lists the options.

        Args:
            input_ids: The prompt.
            max_new_tokens: How many tokens to add.
            **options: `temperature`, `top_k`, `top_p`, `do_sample`, `stop_token`, `use_cache`, `generator`.

        Returns:
            Prompt and continuation.

        Raises:
            ValueError: As for `l1_ref.generation.generate`.
        """
        from l1_ref.generation import generate  # downstream of this module: imported when called

        return generate(self, input_ids, max_new_tokens, **options)


def init_weights(model: nn.Module, config: L1Config) -> None:
    """Set a model's parameters to GPT-2's initial values, in place.

    Matrices are normal with `config.init_std`; those that write to the residual stream (named `proj`) are divided by
    sqrt(2 * n_layers), so that the sum over the layers does not grow; biases are 0, normalisation scales 1.

    Args:
        model: Names its parameters as `L1Model` does.
        config: Gives `init_std` and `n_layers`.

    Example:
        >>> model = L1Model(L1Config.preset("tiny"))
        >>> init_weights(model, model.config)
        >>> model.norm.weight.unique().tolist(), round(model.head.weight.std().item(), 2)
        ([1.0], 0.02)

    Source: Radford et al. 2019, section 2.3.
    """
    residual_std = config.init_std / (2 * config.n_layers) ** 0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, residual_std if name.endswith("proj.weight") else config.init_std)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def count_parameters(config: L1Config) -> int:
    """Return the number of parameters of a model, from its configuration alone.

    Args:
        config: The model's configuration.

    Example:
        >>> count_parameters(L1Config())  # GPT-2 small
        124439808
    """
    V, T, C, F_ = config.vocab_size, config.max_seq_length, config.n_embd, config.n_inner
    attention = (3 * C * C + 3 * C) + (C * C + C)
    feed_forward = (C * F_ + F_) + (F_ * C + C)
    norm = 2 * C
    positions = T * C if config.position_encoding == "learned" else 0
    head = 0 if config.tie_weights else V * C
    return V * C + positions + config.n_layers * (attention + feed_forward + 2 * norm) + norm + head
