"""Causal multi-head self-attention, explicit and fused, and the key-value cache that makes generation fast."""

import math
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from l1_ref.config import L1Config, require_count
from l1_ref.linear import Linear


def softmax(x: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "*shape"]:
    """Turn scores into probabilities along one axis, without overflow.

    Subtracting the largest score changes nothing in the quotient, and keeps every exponent at or below zero.

    Args:
        x: Scores of any shape; -inf becomes probability 0.
        dim: The axis whose entries are to sum to 1.

    Example:
        >>> softmax(torch.tensor([[0.0, 0.0], [1000.0, 0.0]]), dim=-1).tolist()
        [[0.5, 0.5], [1.0, 0.0]]

    Source: Bridle 1990, "Probabilistic Interpretation of Feedforward Classification Network Outputs".
    """
    weights = torch.exp(x - x.amax(dim, keepdim=True))
    return weights / weights.sum(dim, keepdim=True)


def causal_mask(T: int, S: int, device: torch.device | str | None = None) -> Bool[Tensor, "T S"]:
    """Say which of S positions each of the last T may attend to: itself and all before it.

    Args:
        T: Number of queries; they are the last T of the S positions.
        S: Number of keys, at least T.
        device: Where the mask is made.

    Returns:
        True where attention is allowed.

    Raises:
        ValueError: There are more queries than keys.

    Example:
        >>> causal_mask(2, 3).int().tolist()  # two queries, the last two of three positions
        [[1, 1, 0], [1, 1, 1]]

    Source: Vaswani et al. 2017, section 3.2.3.
    """
    if not 0 < T <= S:
        raise ValueError(f"T must be in 1..S, since the queries are the last of the keys, got T={T}, S={S}")
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)


def attention_weights(
    q: Float[Tensor, "B H T D"], k: Float[Tensor, "B H S D"], mask: Bool[Tensor, "..."] | None = None
) -> Float[Tensor, "B H T S"]:
    """Say how much each query takes from each key.

    Args:
        q: Queries.
        k: Keys.
        mask: Broadcasts to (B, H, T, S); True where attention is allowed. A query that may attend to
            nothing gets zeros.

    Example:
        >>> q, k = torch.zeros(1, 1, 2, 4), torch.ones(1, 1, 2, 4)
        >>> attention_weights(q, k, causal_mask(2, 2))[0, 0].tolist()
        [[1.0, 0.0], [0.5, 0.5]]

    Source: Vaswani et al. 2017, equation 1: softmax(Q K^T / sqrt(d_k)).
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, T, S)
    if mask is None:
        return softmax(scores, dim=-1)
    # The lowest finite number, not -inf: a row with nothing allowed then stays finite, in the gradient too.
    lowest = torch.finfo(scores.dtype).min
    return softmax(scores.masked_fill(~mask, lowest), dim=-1).masked_fill(~mask, 0.0)


def scaled_dot_product_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B H S D"],
    v: Float[Tensor, "B H S D"],
    mask: Bool[Tensor, "..."] | None = None,
    dropout_p: float = 0.0,
) -> Float[Tensor, "B H T D"]:
    """Mix the values by the attention weights: the explicit twin of torch's fused function.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        mask: As in `attention_weights`.
        dropout_p: Probability of dropping a weight; active whenever it is not 0.

    Example:
        >>> q, k, v = torch.randn(3, 2, 4, 5, 8)  # each (B=2, H=4, T=5, D=8)
        >>> fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        >>> torch.allclose(scaled_dot_product_attention(q, k, v, causal_mask(5, 5)), fused, atol=1e-5)
        True

    Source: Vaswani et al. 2017, equation 1.
    """
    return F.dropout(attention_weights(q, k, mask), dropout_p) @ v


def split_heads(x: Float[Tensor, "B T C"], n_heads: int) -> Float[Tensor, "B H T D"]:
    """Cut the width into heads, and let each head see the whole sequence.

    Args:
        x: Hidden states.
        n_heads: Number of heads H; divides the width C.

    Raises:
        ValueError: The width is not a multiple of `n_heads`.

    Example:
        >>> split_heads(torch.randn(2, 5, 12), n_heads=3).shape
        torch.Size([2, 3, 5, 4])
    """
    B, T, C = x.shape
    if C % n_heads:
        raise ValueError(f"the width C must be a multiple of n_heads, got C={C}, n_heads={n_heads}")
    return x.view(B, T, n_heads, C // n_heads).transpose(1, 2)  # (B, H, T, D)


def merge_heads(x: Float[Tensor, "B H T D"]) -> Float[Tensor, "B T C"]:
    """Lay the heads side by side again: the inverse of `split_heads`.

    Args:
        x: One sequence of D-wide vectors for each head.

    Example:
        >>> x = torch.randn(2, 5, 12)
        >>> torch.equal(merge_heads(split_heads(x, n_heads=3)), x)
        True
    """
    return x.transpose(1, 2).flatten(2)  # (B, T, C)


@runtime_checkable
class Cache(Protocol):
    """What a model asks of a cache: `KVCache` has it, and so does the one that a reader writes."""

    length: int

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values, and return all that the layer has so far."""


class KVCache:
    """Keep the keys and values of the tokens seen so far, so that each new token is computed once.

    The caller owns it: one cache for one batch of sequences. `L1Model.hidden` appends every layer's new keys and
    values behind the first `length` positions, then moves `length` on, once a call.

    Args:
        config: Gives the number of layers and heads, the head width and the context length.
        batch_size: Number of sequences B, at least 1.
        dtype: Of the keys and values; torch's default where None.
        device: Where they are kept.

    Raises:
        ValueError: `batch_size` is no whole number of at least 1.

    Example:
        >>> model = L1Model(L1Config.preset("tiny")).eval()
        >>> ids, cache = torch.tensor([[5, 6, 7, 8]]), KVCache(model.config, batch_size=1)
        >>> with torch.no_grad():
        ...     first, last, whole = model.hidden(ids[:, :3], cache), model.hidden(ids[:, 3:], cache), model.hidden(ids)
        >>> cache.length, torch.allclose(last, whole[:, 3:], atol=1e-5)
        (4, True)

    Source: Pope et al. 2022, "Efficiently Scaling Transformer Inference", section 2.1.
    """

    def __init__(
        self,
        config: L1Config,
        batch_size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        require_count("batch_size", batch_size)
        shape = (config.n_layers, batch_size, config.n_heads, config.max_seq_length, config.head_width)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)  # (n_layers, B, H, max_seq_length, D)
        self.values = torch.zeros_like(self.keys)
        self.length = 0

    def append(
        self, layer: int, k: Float[Tensor, "B H T D"], v: Float[Tensor, "B H T D"]
    ) -> tuple[Float[Tensor, "B H S D"], Float[Tensor, "B H S D"]]:
        """Store one layer's new keys and values, and return all that the layer has so far.

        Args:
            layer: Index of the block, from 0.
            k: Keys of the T new tokens.
            v: Values of the T new tokens.

        Returns:
            Keys and values of all S = length + T tokens, as views of the cache.

        Raises:
            ValueError: The tokens do not fit, or the batch is another than the cache was made for.
        """
        B, limit = self.keys.shape[1], self.keys.shape[3]
        end = self.length + k.shape[2]
        if k.shape[0] != B:
            raise ValueError(f"the cache was made for batch_size={B}, got a batch of {k.shape[0]}")
        if end > limit:
            raise ValueError(
                f"the cache has room for max_seq_length={limit} tokens, got length={self.length}, T={k.shape[2]} more"
            )
        keys, values = self.keys[layer], self.values[layer]  # (B, H, max_seq_length, D)
        keys.narrow(2, self.length, k.shape[2]).copy_(k)
        values.narrow(2, self.length, k.shape[2]).copy_(v)
        return keys.narrow(2, 0, end), values.narrow(2, 0, end)  # (B, H, S, D)


class MultiHeadAttention(nn.Module):
    """Let every position gather from itself and those before it, in several ways at once.

    Args:
        config: Uses `n_embd`, `n_heads`, `dropout` and `attention`.
        layer: Index of the block this belongs to: its place in a `KVCache`.

    Example:
        >>> attention, x = MultiHeadAttention(L1Config.preset("tiny")), torch.randn(1, 5, 128)
        >>> y = attention(x)
        >>> torch.allclose(attention(x[:, :3]), y[:, :3], atol=1e-5)  # what comes later changes nothing before it
        True

    Source: Vaswani et al. 2017, section 3.2.2.
    """

    def __init__(self, config: L1Config, layer: int = 0):
        super().__init__()
        self.n_heads = config.n_heads
        self.dropout = config.dropout
        self.layer = layer
        self.qkv = Linear(config.n_embd, 3 * config.n_embd)
        self.proj = Linear(config.n_embd, config.n_embd)
        self.attend = _attend_fused if config.attention == "fused" else _attend_explicitly

    def forward(self, x: Float[Tensor, "B T C"], cache: Cache | None = None) -> Float[Tensor, "B T C"]:
        """Return what each position gathered.

        Args:
            x: Hidden states of the new tokens.
            cache: Keys and values of the tokens before them, where there are any; it is appended to.
        """
        q, k, v = (split_heads(part, self.n_heads) for part in self.qkv(x).chunk(3, dim=-1))  # (B, H, T, D)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, H, S, D)
        dropout_p = self.dropout if self.training else 0.0
        y = merge_heads(self.attend(q, k, v, dropout_p))  # (B, T, C)
        return F.dropout(self.proj(y), dropout_p)


def _attend_fused(q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
    T, S = q.shape[2], k.shape[2]
    # One query sees every key, and equal lengths have a kernel of their own: only a chunk behind a cache needs a mask.
    mask = causal_mask(T, S, q.device) if 1 < T < S else None
    return F.scaled_dot_product_attention(q, k, v, mask, dropout_p, is_causal=1 < T == S)


def _attend_explicitly(q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
    return scaled_dot_product_attention(q, k, v, causal_mask(q.shape[2], k.shape[2], q.device), dropout_p)
