"""Ids and positions become vectors: the transformer's input x, of shape (B, T, C)."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from l1_ref.config import L1Config


class TokenEmbedding(nn.Module):
    """Look up one learned vector for each token id.

    Args:
        vocab_size: Number of ids V.
        n_embd: Width C of a vector.

    Example:
        >>> embedding = TokenEmbedding(vocab_size=10, n_embd=4)
        >>> torch.equal(embedding(torch.tensor([7, 2])), embedding.weight[[7, 2]])
        True

    Source: Bengio et al. 2003, "A Neural Probabilistic Language Model", section 2: the matrix C.
    """

    def __init__(self, vocab_size: int, n_embd: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(vocab_size, n_embd) * 0.02)

    def forward(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape C"]:
        """Return the row of each id.

        Raises:
            ValueError: On the CPU, an id lies outside 0 … vocab_size - 1.
        """
        try:
            return F.embedding(ids, self.weight)
        except IndexError:
            vocab_size = len(self.weight)
            wrong = ids[(ids < 0) | (ids >= vocab_size)][0].item()
            raise ValueError(f"ids must be in 0..{vocab_size - 1} (vocab_size={vocab_size}), got {wrong}") from None


def sinusoidal_positions(max_seq_length: int, n_embd: int) -> Float[Tensor, "T C"]:
    """Return the fixed wave pattern that marks each position.

    Column 2i holds sin(t / 10000^(2i/C)), column 2i+1 the cosine of the same angle, at position t.

    Args:
        max_seq_length: Number of positions T, at least 1.
        n_embd: Width C, even.

    Raises:
        ValueError: `n_embd` is odd.

    Example:
        >>> sinusoidal_positions(max_seq_length=3, n_embd=4)[0].tolist()
        [0.0, 1.0, 0.0, 1.0]

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.5.
    """
    if n_embd % 2:
        raise ValueError(f"n_embd must be even for sinusoidal positions, got n_embd={n_embd}")
    # In float64 first: at large t a float32 angle is off by more than the waves' last digits.
    t = torch.arange(max_seq_length, dtype=torch.float64)[:, None]
    frequency = torch.exp(torch.arange(0, n_embd, 2, dtype=torch.float64) * (-math.log(10_000.0) / n_embd))
    table = torch.stack((torch.sin(t * frequency), torch.cos(t * frequency)), dim=-1)  # (T, C/2, 2)
    return table.flatten(1).to(torch.get_default_dtype())  # (T, C)


class PositionalEmbedding(nn.Module):
    """Look up one learned vector for each position.

    Args:
        max_seq_length: Number of positions.
        n_embd: Width C of a vector.

    Example:
        >>> position = PositionalEmbedding(max_seq_length=8, n_embd=4)
        >>> torch.equal(position(2, offset=3), position.weight[3:5])
        True

    Source: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", equation 2: W_p.
    """

    def __init__(self, max_seq_length: int, n_embd: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(max_seq_length, n_embd) * 0.02)

    def forward(self, T: int, offset: int = 0) -> Float[Tensor, "T C"]:
        """Return the vectors of positions offset … offset + T - 1.

        Raises:
            ValueError: Some of these positions do not exist.
        """
        return _rows(self.weight, T, offset)


class SinusoidalEmbedding(nn.Module):
    """Serve `sinusoidal_positions` behind the interface of `PositionalEmbedding`; nothing is learned."""

    def __init__(self, max_seq_length: int, n_embd: int):
        super().__init__()
        self.register_buffer("table", sinusoidal_positions(max_seq_length, n_embd), persistent=False)

    def forward(self, T: int, offset: int = 0) -> Float[Tensor, "T C"]:
        """Return the waves at positions offset … offset + T - 1.

        Raises:
            ValueError: Some of these positions do not exist.
        """
        return _rows(self.table, T, offset)


def _rows(table: Float[Tensor, "S C"], T: int, offset: int) -> Float[Tensor, "T C"]:
    if T < 1 or offset < 0 or offset + T > len(table):
        raise ValueError(
            f"offset + T must stay within max_seq_length={len(table)}, with T at least 1, got T={T}, offset={offset}"
        )
    return table[offset : offset + T]


class InputEmbedding(nn.Module):
    """Add token and position vectors, then apply dropout.

    Args:
        config: Uses `vocab_size`, `max_seq_length`, `n_embd`, `dropout` and `position_encoding`.

    Example:
        >>> InputEmbedding(L1Config.preset("tiny"))(torch.tensor([[1, 2, 3]])).shape
        torch.Size([1, 3, 128])

    Source: Radford et al. 2018, equation 2: h_0 = U W_e + W_p.
    """

    def __init__(self, config: L1Config):
        super().__init__()
        positions = PositionalEmbedding if config.position_encoding == "learned" else SinusoidalEmbedding
        self.token = TokenEmbedding(config.vocab_size, config.n_embd)
        self.position = positions(config.max_seq_length, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids: Int[Tensor, "B T"], offset: int = 0) -> Float[Tensor, "B T C"]:
        """Return the input of the first block.

        Args:
            ids: Token ids.
            offset: Position of the first id: how many tokens a cache has seen already.
        """
        return self.dropout(self.token(ids) + self.position(ids.shape[-1], offset))  # (B, T, C)
