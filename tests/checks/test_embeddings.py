"""The checks of 02_embeddings: mistakes in other words than the catalogue's, right answers in many styles, stubs."""

import math
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from l1_ref import checks
from l1_ref.checks.names import Names
from l1_ref.embeddings import PositionalEmbedding, SinusoidalEmbedding, TokenEmbedding, sinusoidal_positions
from tests.check_cases import (
    assert_accepted,
    assert_all_told,
    assert_named_first,
    assert_rejected,
    assert_same_on_two_threads,
    cases,
)

# TokenEmbedding: wrong answers. Most share this beginning, and differ in `forward`.


class Tokens(nn.Module):
    def __init__(self, vocab_size, n_embd):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, n_embd).normal_(0, 0.02))


class AnEmbeddingInside(nn.Module):
    def __init__(self, vocab_size, n_embd):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, n_embd)

    def forward(self, ids):
        return self.embedding(ids)


class CalledW(nn.Module):
    def __init__(self, vocab_size, n_embd):
        super().__init__()
        self.W = nn.Parameter(torch.randn(vocab_size, n_embd))

    def forward(self, ids):
        return self.W[ids]


class APlainTensor(nn.Module):
    def __init__(self, vocab_size, n_embd):
        super().__init__()
        self.weight = torch.randn(vocab_size, n_embd, requires_grad=True)

    def forward(self, ids):
        return self.weight[ids]


class ABuffer(nn.Module):
    def __init__(self, vocab_size, n_embd):
        super().__init__()
        self.register_buffer("weight", torch.randn(vocab_size, n_embd))

    def forward(self, ids):
        return self.weight[ids]


class LikeALinearLayer(nn.Module):
    def __init__(self, vocab_size, n_embd):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_embd, vocab_size))

    def forward(self, ids):
        return F.linear(F.one_hot(ids, self.weight.shape[1]).float(), self.weight)


class ColumnsForRows(nn.Module):
    def __init__(self, vocab_size, n_embd):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_embd, vocab_size))

    def forward(self, ids):
        return self.weight[:, ids]


class AsIn2017(Tokens):
    def forward(self, ids):
        return self.weight[ids] * math.sqrt(self.weight.shape[1])


class DividedByTheRoot(Tokens):
    def forward(self, ids):
        return F.embedding(ids, self.weight) / self.weight.shape[1] ** 0.5


class PaddingAtZero(nn.Embedding):
    def __init__(self, vocab_size, n_embd):
        super().__init__(vocab_size, n_embd, padding_idx=0)


class PaddingMaskedOut(Tokens):
    def forward(self, ids):
        return self.weight[ids].masked_fill((ids == 0).unsqueeze(-1), 0.0)


class UnitVectors(Tokens):
    def forward(self, ids):
        x = self.weight[ids]
        return x / x.norm(dim=-1, keepdim=True)


class MaxNorm(nn.Embedding):
    def __init__(self, vocab_size, n_embd):
        super().__init__(vocab_size, n_embd, max_norm=1.0)


class FromOne(Tokens):
    def forward(self, ids):
        return torch.roll(self.weight, 1, dims=0)[ids]


class WithoutGradient(Tokens):
    @torch.no_grad()
    def forward(self, ids):
        return self.weight[ids]


class ThroughData(Tokens):
    def forward(self, ids):
        return F.embedding(ids, self.weight.data)


class FrozenParameter(nn.Module):
    def __init__(self, vocab_size, n_embd):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(vocab_size, n_embd), requires_grad=False)

    def forward(self, ids):
        return self.weight[ids]


class ScaledByFrequency(nn.Embedding):
    def __init__(self, vocab_size, n_embd):
        super().__init__(vocab_size, n_embd, scale_grad_by_freq=True)


class ABag(Tokens):
    def forward(self, ids):
        return torch.einsum("...v,vc->...c", F.one_hot(ids, len(self.weight)).float().sum(-2), self.weight)


class TheMean(Tokens):
    def forward(self, ids):
        return self.weight[ids].mean(dim=-2)


class Flattened(Tokens):
    def forward(self, ids):
        return torch.index_select(self.weight, 0, ids.flatten())


class WidthBeforeTime(Tokens):
    def forward(self, ids):
        return self.weight.t()[:, ids].movedim(0, -2)


class OnlyOneHot(Tokens):
    def forward(self, ids):
        return torch.eye(len(self.weight))[ids]


class ZeroTokens(nn.Module):
    def __init__(self, vocab_size, n_embd):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(vocab_size, n_embd))

    def forward(self, ids):
        return self.weight[ids]


TOKEN_WRONG = {
    ZeroTokens: "all rows of the table begin alike",
    AnEmbeddingInside: "not called weight",
    CalledW: "not called weight",
    APlainTensor: "not an nn.Parameter",
    ABuffer: "not an nn.Parameter",
    LikeALinearLayer: "lies on its side",
    ColumnsForRows: "lies on its side",
    AsIn2017: "multiplied by sqrt(C)",
    DividedByTheRoot: "multiplied by sqrt(C)",
    PaddingAtZero: "treated as padding",
    PaddingMaskedOut: "treated as padding",
    UnitVectors: "brought to a fixed length",
    MaxNorm: "brought to a fixed length",
    FromOne: "rows are counted from 1",
    WithoutGradient: "no gradient gets through",
    ThroughData: "no gradient gets through",
    FrozenParameter: "no gradient gets through",
    ScaledByFrequency: "only the mean of its gradients",
    ABag: "merged into one",
    TheMean: "merged into one",
    Flattened: "batch and time are merged",
    WidthBeforeTime: "the last two axes are swapped",
    OnlyOneHot: "the one-hot vectors come back",
}


# TokenEmbedding: right answers.


class ByIndexing(Tokens):
    def forward(self, ids):
        return self.weight[ids]


class ByOneHotProduct(Tokens):
    def forward(self, ids):
        return F.one_hot(ids, self.weight.shape[0]).to(self.weight.dtype) @ self.weight


class ByLoops(Tokens):
    def forward(self, ids):
        if ids.ndim == 0:
            return self.weight[int(ids)]
        return torch.stack([self.forward(each) for each in ids])


class ByTwoLoops(Tokens):
    def forward(self, ids):
        return torch.stack([torch.stack([self.weight[i] for i in row]) for row in ids])


class ByIndexSelect(Tokens):
    def forward(self, ids):
        return self.weight.index_select(0, ids.reshape(-1)).view(*ids.shape, -1)


class ByGather(Tokens):
    def forward(self, ids):
        rows = ids.reshape(-1, 1).expand(-1, self.weight.shape[1])
        return self.weight.gather(0, rows).reshape(*ids.shape, self.weight.shape[1])


class ASubclass(nn.Embedding):
    def __init__(self, vocab_size, n_embd):
        super().__init__(num_embeddings=vocab_size, embedding_dim=n_embd)


class Initialised(nn.Module):
    def __init__(self, vocab_size: int, n_embd: int, std: float = 1.0):
        super().__init__()
        self.vocab_size, self.n_embd = vocab_size, n_embd
        self.weight = nn.Parameter(torch.zeros(vocab_size, n_embd))
        self.register_buffer("eye", torch.eye(vocab_size))
        nn.init.uniform_(self.weight, -std, std)

    def forward(self, ids):
        return torch.einsum("...v,vc->...c", self.eye[ids], self.weight)


class ByLinear(Tokens):
    def forward(self, ids):
        return F.linear(torch.eye(len(self.weight))[ids], self.weight.T)


TOKEN_RIGHT = [
    ByIndexing,
    ByOneHotProduct,
    ByLoops,
    ByTwoLoops,
    ByIndexSelect,
    ByGather,
    ASubclass,
    Initialised,
    ByLinear,
]


# sinusoidal_positions: wrong answers.


def angles_of(T, C):
    i = torch.arange(C // 2, dtype=torch.float32)
    return torch.arange(T).unsqueeze(1) / 10000 ** (2 * i / C)


def filled_table(sines, cosines):
    table = torch.zeros(len(sines), 2 * sines.shape[1])
    table[:, 0::2], table[:, 1::2] = sines, cosines
    return table


def cosine_first(max_seq_length, n_embd):
    angle = angles_of(max_seq_length, n_embd)
    return filled_table(angle.cos(), angle.sin())


def one_half_each(max_seq_length, n_embd):
    angle = angles_of(max_seq_length, n_embd)
    return torch.hstack([angle.sin(), angle.cos()])


def cosine_half_first(max_seq_length, n_embd):
    angle = angles_of(max_seq_length, n_embd)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def turns_by_row(max_seq_length, n_embd):
    angle = angles_of(max_seq_length, n_embd).repeat_interleave(2, dim=1)
    table = torch.empty(max_seq_length, n_embd)
    table[0::2] = torch.sin(angle[0::2])
    table[1::2] = torch.cos(angle[1::2])
    return table


def no_cosine(max_seq_length, n_embd):
    return angles_of(max_seq_length, n_embd).repeat_interleave(2, dim=1).sin()


def odd_columns_forgotten(max_seq_length, n_embd):
    table = torch.zeros(max_seq_length, n_embd)
    table[:, ::2] = angles_of(max_seq_length, n_embd).sin()
    return table


def no_wave(max_seq_length, n_embd):
    return angles_of(max_seq_length, n_embd).repeat_interleave(2, dim=1)


def a_frequency_for_each_column(max_seq_length, n_embd):
    table = torch.zeros(max_seq_length, n_embd)
    for t in range(max_seq_length):
        for c in range(n_embd):
            angle = t / 10000 ** (c / n_embd)
            table[t, c] = math.sin(angle) if c % 2 == 0 else math.cos(angle)
    return table


def two_times_the_column(max_seq_length, n_embd):
    table = torch.zeros(max_seq_length, n_embd)
    for t in range(max_seq_length):
        for i in range(0, n_embd, 2):
            table[t, i] = math.sin(t / (10000 ** ((2 * i) / n_embd)))
            table[t, i + 1] = math.cos(t / (10000 ** ((2 * (i + 1)) / n_embd)))
    return table


def two_times_the_even_column(max_seq_length, n_embd):
    i = torch.arange(0, n_embd, 2)
    angle = torch.outer(torch.arange(max_seq_length).float(), 10000.0 ** (-2 * i / n_embd))
    return filled_table(angle.sin(), angle.cos())


def without_the_two(max_seq_length, n_embd):
    i = torch.arange(n_embd // 2)
    angle = torch.outer(torch.arange(max_seq_length).float(), torch.pow(10000.0, -i / n_embd))
    return filled_table(angle.sin(), angle.cos())


def by_a_linspace(max_seq_length, n_embd):
    frequency = 10000.0 ** -torch.linspace(0, 1, n_embd // 2)
    angle = torch.arange(max_seq_length)[:, None] * frequency
    return filled_table(angle.sin(), angle.cos())


def whole_exponents(max_seq_length, n_embd):
    divisor = torch.tensor([10000 ** (2 * i // n_embd) for i in range(n_embd // 2)])
    angle = torch.arange(max_seq_length)[:, None] / divisor
    return filled_table(angle.sin(), angle.cos())


def divided_twice_without_brackets(max_seq_length, n_embd):
    frequency = torch.exp(torch.arange(0, n_embd, 2) * (-math.log(10000.0) / n_embd // 2))
    angle = torch.arange(max_seq_length)[:, None] * frequency
    return filled_table(angle.sin(), angle.cos())


def pairs_from_one(max_seq_length, n_embd):
    i = torch.arange(1, n_embd // 2 + 1)
    angle = torch.arange(max_seq_length)[:, None] / 10000 ** (2 * i / n_embd)
    return filled_table(angle.sin(), angle.cos())


def multiplied(max_seq_length, n_embd):
    power = 10000 ** (torch.arange(0, n_embd, 2).double() / n_embd)
    angle = torch.arange(max_seq_length)[:, None] * power
    return filled_table(angle.sin(), angle.cos())


def base_1000(max_seq_length, n_embd):
    frequency = torch.exp(torch.arange(0, n_embd, 2) * (-math.log(1000.0) / n_embd))
    angle = torch.arange(max_seq_length)[:, None] * frequency
    return filled_table(angle.sin(), angle.cos())


def base_100000(max_seq_length, n_embd):
    angle = torch.arange(max_seq_length)[:, None] / 100_000 ** (torch.arange(0, n_embd, 2) / n_embd)
    return filled_table(angle.sin(), angle.cos())


def log10_beside_exp(max_seq_length, n_embd):
    frequency = torch.exp(torch.arange(0, n_embd, 2) * (-math.log10(10000.0) / n_embd))
    angle = torch.arange(max_seq_length)[:, None] * frequency
    return filled_table(angle.sin(), angle.cos())


def from_position_one(max_seq_length, n_embd):
    return sinusoidal_positions(max_seq_length + 1, n_embd)[1:]


def in_degrees(max_seq_length, n_embd):
    angle = torch.deg2rad(angles_of(max_seq_length, n_embd))
    return filled_table(angle.sin(), angle.cos())


def in_turns(max_seq_length, n_embd):
    angle = 2 * torch.pi * angles_of(max_seq_length, n_embd)
    return filled_table(angle.sin(), angle.cos())


def one_column_for_each_position(max_seq_length, n_embd):
    angle = angles_of(max_seq_length, n_embd)
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1).t()


def ready_for_a_batch(max_seq_length, n_embd):
    angle = angles_of(max_seq_length, n_embd)
    return filled_table(angle.sin(), angle.cos()).unsqueeze(0)


def in_float64(max_seq_length, n_embd):
    angle = torch.arange(max_seq_length)[:, None] / 10000 ** (torch.arange(0, n_embd, 2).double() / n_embd)
    return torch.stack([angle.sin(), angle.cos()], dim=2).reshape(max_seq_length, n_embd)


def a_parameter(max_seq_length, n_embd):
    angle = angles_of(max_seq_length, n_embd)
    return nn.Parameter(filled_table(angle.sin(), angle.cos()))


def multiplied_in_float32(max_seq_length, n_embd):
    frequency = torch.exp(torch.arange(0, n_embd, 2) * (math.log(10000.0) / n_embd))
    angle = torch.arange(max_seq_length)[:, None] * frequency
    return filled_table(angle.sin(), angle.cos())


def exponent_undivided(max_seq_length, n_embd):
    angle = torch.arange(max_seq_length)[:, None] / 10000.0 ** torch.arange(0, n_embd, 2)
    return filled_table(angle.sin(), angle.cos())


def whole_angles(max_seq_length, n_embd):
    angle = torch.arange(max_seq_length)[:, None] // 10000 ** (torch.arange(0, n_embd, 2) / n_embd)
    return filled_table(angle.sin(), angle.cos())


WAVES_WRONG = {
    cosine_first: "sine and cosine are swapped",
    one_half_each: "in two halves",
    cosine_half_first: "in two halves",
    turns_by_row: "by position, not by column",
    no_cosine: "there is no cosine",
    odd_columns_forgotten: "there is no cosine",
    no_wave: "the angles themselves",
    a_frequency_for_each_column: "every column has a frequency of its own",
    two_times_the_column: "every column has a frequency of its own",
    two_times_the_even_column: "the exponent is twice too large",
    without_the_two: "the exponent is half",
    by_a_linspace: "runs up to exactly 1",
    whole_exponents: "rounded to a whole number",
    divided_twice_without_brackets: "rounded to a whole number",
    pairs_from_one: "i begins at 1",
    multiplied: "instead of divided",
    multiplied_in_float32: "instead of divided",
    exponent_undivided: "not divided by C",
    whole_angles: "rounded down to a whole number",
    base_1000: "the base is not 10000",
    base_100000: "the base is not 10000",
    log10_beside_exp: "the base is not 10000",
    from_position_one: "positions are counted from 1",
    in_degrees: "not in radians",
    in_turns: "not in radians",
    one_column_for_each_position: "rows and columns are swapped",
    ready_for_a_batch: "an axis too many",
    in_float64: "another dtype",
    a_parameter: "asks for a gradient",
}


# sinusoidal_positions: right answers.


def by_slices(max_seq_length, n_embd):
    angle = angles_of(max_seq_length, n_embd)
    return filled_table(torch.sin(angle), torch.cos(angle))


def by_exp_and_log(max_seq_length, n_embd):
    table = torch.zeros(max_seq_length, n_embd)
    position = torch.arange(0, max_seq_length).unsqueeze(1)
    divisor = torch.exp(torch.arange(0, n_embd, 2) * -(math.log(10000.0) / n_embd))
    table[:, 0::2] = torch.sin(position * divisor)
    table[:, 1::2] = torch.cos(position * divisor)
    return table


def by_python_loops(max_seq_length, n_embd):
    table = torch.empty(max_seq_length, n_embd)
    for t in range(max_seq_length):
        for i in range(n_embd // 2):
            table[t, 2 * i] = math.sin(t / 10000 ** (2 * i / n_embd))
            table[t, 2 * i + 1] = math.cos(t / 10000 ** (2 * i / n_embd))
    return table


def by_lists(max_seq_length, n_embd):
    waves = (math.sin, math.cos)
    rows = [[waves[c % 2](t / 1e4 ** (c // 2 * 2 / n_embd)) for c in range(n_embd)] for t in range(max_seq_length)]
    return torch.tensor(rows)


def by_a_phase(max_seq_length, n_embd):
    c = torch.arange(n_embd, dtype=torch.float64)
    angle = torch.arange(max_seq_length)[:, None] / 10_000 ** ((c - c % 2) / n_embd)
    return torch.sin(angle + c % 2 * torch.pi / 2).float()


def by_complex_numbers(max_seq_length, n_embd):
    z = torch.exp(1j * angles_of(max_seq_length, n_embd).double())
    return torch.view_as_real(z)[..., [1, 0]].flatten(1).float()


def by_numpy(max_seq_length, n_embd):
    angle = np.arange(max_seq_length)[:, None] / np.power(10000, np.arange(0, n_embd, 2) / n_embd)
    return torch.from_numpy(np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(max_seq_length, n_embd)).float()


WAVES_RIGHT = [by_slices, by_exp_and_log, by_python_loops, by_lists, by_a_phase, by_complex_numbers, by_numpy]


# PositionalEmbedding: wrong answers.


class Positions(nn.Module):
    def __init__(self, max_seq_length, n_embd):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(max_seq_length, n_embd))


class InsideAnEmbedding(nn.Module):
    def __init__(self, max_seq_length, n_embd):
        super().__init__()
        self.emb = nn.Embedding(max_seq_length, n_embd)

    def forward(self, T, offset=0):
        return self.emb(torch.arange(offset, offset + T))


class PositionsInABuffer(nn.Module):
    def __init__(self, max_seq_length, n_embd):
        super().__init__()
        self.register_buffer("weight", sinusoidal_positions(max_seq_length, n_embd + n_embd % 2))

    def forward(self, T, offset=0):
        return self.weight[offset : offset + T]


class PositionsOnTheirSide(nn.Module):
    def __init__(self, max_seq_length, n_embd):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_embd, max_seq_length))

    def forward(self, T, offset=0):
        return self.weight[:, offset : offset + T].T


class NoOffset(Positions):
    def forward(self, T, offset=0):
        return F.embedding(torch.arange(T), self.weight)


class EndsAtT(Positions):
    def forward(self, T, offset=0):
        return self.weight.narrow(0, offset, max(0, T - offset))


class EndsAtTByArange(Positions):
    def forward(self, T, offset=0):
        return F.embedding(torch.arange(offset, T), self.weight)


class WholeTable(Positions):
    def forward(self, T, offset=0):
        return self.weight * 1


class WholeRest(Positions):
    def forward(self, T, offset=0):
        return torch.tensor_split(self.weight, [offset])[1]


class LastRows(Positions):
    def forward(self, T, offset=0):
        return self.weight[len(self.weight) - T :]


class OneTooFar(Positions):
    def forward(self, T, offset=0):
        rows = torch.arange(1, T + 1) + offset
        return self.weight[rows]


class OneTooFarBySlice(Positions):
    def forward(self, T, offset=0):
        return self.weight[1:][offset : offset + T]


class OneTooMany(Positions):
    def forward(self, T, offset=0):
        return self.weight[offset:][: T + 1]


class OneTooFew(Positions):
    def forward(self, T, offset=0):
        return F.embedding(torch.arange(offset, offset + T - 1), self.weight)


class OnlyTheLast(Positions):
    def forward(self, T, offset=0):
        return self.weight[offset : offset + T][-1]


class RowT(Positions):
    def forward(self, T, offset=0):
        return F.embedding(torch.tensor(T), self.weight)


class TheSameEverywhere(Positions):
    def forward(self, T, offset=0):
        return self.weight[offset].repeat(T, 1)


class OffsetTimesT(Positions):
    def forward(self, T, offset=0):
        start = T * offset
        return self.weight[start : start + T]


class OffsetAdded(Positions):
    def forward(self, T, offset=0):
        return offset + self.weight[:T]


class Backwards(Positions):
    def forward(self, T, offset=0):
        return self.weight[list(range(offset + T - 1, offset - 1, -1))]


class WithABatchAxis(Positions):
    def forward(self, T, offset=0):
        return self.weight[torch.arange(offset, offset + T).unsqueeze(0)]


class Turned(Positions):
    def forward(self, T, offset=0):
        return self.weight.T[:, offset : offset + T]


class TimesTheRoot(Positions):
    def forward(self, T, offset=0):
        return self.weight[offset : offset + T] * self.weight.shape[1] ** 0.5


class FixedPositions(Positions):
    def forward(self, T, offset=0):
        return self.weight.data[offset : offset + T]


class PlacesChanged(Positions):
    def forward(self, T, offset=0):
        return self.weight[T : T + offset]


POSITION_WRONG = {
    InsideAnEmbedding: "not called weight",
    PositionsInABuffer: "not an nn.Parameter",
    PositionsOnTheirSide: "lies on its side",
    NoOffset: "the offset is ignored",
    EndsAtT: "end at T",
    EndsAtTByArange: "end at T",
    WholeTable: "the whole table comes back",
    WholeRest: "the whole table comes back",
    LastRows: "from the end of the table",
    OneTooFar: "one too far",
    OneTooFarBySlice: "one too far",
    OneTooMany: "one row too many or too few",
    OneTooFew: "one row too many or too few",
    OnlyTheLast: "only one row",
    RowT: "only one row",
    TheSameEverywhere: "the same row stands at every place",
    OffsetTimesT: "the offset is multiplied",
    PlacesChanged: "have changed places",
    OffsetAdded: "the offset is added",
    Backwards: "run backwards",
    WithABatchAxis: "an axis too many",
    Turned: "rows and columns are swapped",
    TimesTheRoot: "multiplied by sqrt(C)",
    FixedPositions: "no gradient gets through",
}


# PositionalEmbedding: right answers.


class BySlice(Positions):
    def forward(self, T, offset=0):
        return self.weight[offset : offset + T]


class ByPositions(nn.Embedding):
    def __init__(self, max_seq_length, n_embd):
        super().__init__(max_seq_length, n_embd)

    def forward(self, T, offset=0):
        return super().forward(torch.arange(T) + offset)


class ByNarrow(Positions):
    def forward(self, T, offset=0):
        return self.weight.narrow(0, offset, T)


class ByStack(Positions):
    def forward(self, T, offset=0):
        return torch.stack([self.weight[offset + t] for t in range(T)])


class ByChosenRows(Positions):
    def forward(self, T, offset=0):
        assert offset + T <= len(self.weight)
        chosen = torch.eye(len(self.weight))[offset : offset + T]
        return chosen @ self.weight


class ByRolling(Positions):
    def forward(self, T, offset=0):
        return self.weight.roll(-offset, 0)[:T]


class BySplitting(Positions):
    def forward(self, T, offset=0):
        return self.weight.tensor_split([offset, offset + T])[1]


class ByMask(Positions):
    def forward(self, T, offset=0):
        place = torch.arange(len(self.weight))
        return self.weight[(place >= offset) & (place < offset + T)]


POSITION_RIGHT = [BySlice, ByPositions, ByNarrow, ByStack, ByChosenRows, ByRolling, BySplitting, ByMask]


# InputEmbedding: wrong answers. They share this constructor, and differ in `forward`.


class Input(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.token = nn.Embedding(config.vocab_size, config.n_embd)
        if config.position_encoding == "sinusoidal":
            self.position = SinusoidalEmbedding(config.max_seq_length, config.n_embd)
        else:
            self.position = PositionalEmbedding(config.max_seq_length, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def p(self, ids, offset=0):
        return self.position(ids.size(1), offset)


class OtherWords(nn.Module):
    def __init__(self, config):
        super().__init__()
        sinusoidal = config.position_encoding == "sinusoidal"
        self.token_embedding = TokenEmbedding(config.vocab_size, config.n_embd)
        positions = SinusoidalEmbedding if sinusoidal else PositionalEmbedding
        self.position_embedding = positions(config.max_seq_length, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids, offset=0):
        return self.dropout(self.token_embedding(ids) + self.position_embedding(ids.shape[1], offset))


class LearnedInAnyCase(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.token = TokenEmbedding(config.vocab_size, config.n_embd)
        self.position = PositionalEmbedding(config.max_seq_length, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids, offset=0):
        return self.dropout(self.token(ids) + self.position(ids.shape[1], offset))


class FixedInAnyCase(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.token = TokenEmbedding(config.vocab_size, config.n_embd)
        self.register_buffer("waves", sinusoidal_positions(config.max_seq_length, config.n_embd))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids, offset=0):
        return self.dropout(self.token(ids) + self.waves[offset : offset + ids.shape[1]])


class TokensAlone(Input):
    def forward(self, ids, offset=0):
        return self.dropout(self.token(ids))


class PositionsAlone(Input):
    def forward(self, ids, offset=0):
        return self.dropout(self.p(ids, offset).repeat(len(ids), 1, 1))


class Product(Input):
    def forward(self, ids, offset=0):
        return self.dropout(torch.einsum("btc,tc->btc", self.token(ids), self.p(ids, offset)))


class SideBySide(Input):
    def forward(self, ids, offset=0):
        position = self.p(ids, offset).unsqueeze(0).repeat(ids.size(0), 1, 1)
        return self.dropout(torch.concat([self.token(ids), position], 2))


class AlwaysFromZero(Input):
    def forward(self, ids, offset=0):
        return self.dropout(self.token(ids) + self.p(ids))


class ShiftedByOne(Input):
    def forward(self, ids, offset=0):
        return self.dropout(self.token(ids) + self.p(ids, 1 + offset))


class OffsetInPieces(Input):
    def forward(self, ids, offset=0):
        return self.dropout(self.token(ids) + self.position(ids.shape[1], ids.shape[1] * offset))


class LengthOfIds(Input):
    def forward(self, ids, offset=0):
        return self.dropout(self.token(ids) + self.position(len(ids), offset))


class OneForEachSequence(Input):
    def forward(self, ids, offset=0):
        return self.dropout(self.token(ids) + self.position(ids.shape[0]).unsqueeze(1))


class OnePosition(Input):
    def forward(self, ids, offset=0):
        return self.dropout(self.token(ids) + self.p(ids, offset)[0])


class AllPositions(Input):
    def forward(self, ids, offset=0):
        return self.dropout(self.token(ids) + self.position(self.config.max_seq_length, offset))


class ScaledTokens(Input):
    def forward(self, ids, offset=0):
        return self.dropout(self.token(ids) * math.sqrt(self.config.n_embd) + self.p(ids, offset))


class Normalised(Input):
    def forward(self, ids, offset=0):
        x = self.token(ids) + self.p(ids, offset)
        x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5)
        return self.dropout(x)


class NeverDropped(Input):
    def forward(self, ids, offset=0):
        return self.token(ids) + self.p(ids, offset)


class AlwaysDropped(Input):
    def forward(self, ids, offset=0):
        return F.dropout(self.token(ids) + self.p(ids, offset), self.config.dropout)


class DroppedTokens(Input):
    def forward(self, ids, offset=0):
        return self.dropout(self.token(ids)) + self.p(ids, offset)


class DroppedPositions(Input):
    def forward(self, ids, offset=0):
        return self.token(ids) + self.dropout(self.p(ids, offset).expand(len(ids), -1, -1))


class DroppedTwice(Input):
    def forward(self, ids, offset=0):
        positions = self.p(ids, offset).expand(len(ids), -1, -1)
        return self.dropout(self.token(ids)) + self.dropout(positions)


class DroppedPositionsOfAll(Input):
    def forward(self, ids, offset=0):
        return self.token(ids) + self.dropout(self.p(ids, offset))


class DroppedTwiceOfAll(Input):
    def forward(self, ids, offset=0):
        return self.dropout(self.token(ids)) + self.dropout(self.p(ids, offset))


class DefaultRate(Input):
    def __init__(self, config):
        super().__init__(config)
        if config.dropout:
            self.dropout = nn.Dropout()

    def forward(self, ids, offset=0):
        return self.dropout(self.token(ids) + self.p(ids, offset))


class KeepRate(Input):
    def __init__(self, config):
        super().__init__(config)
        self.dropout = nn.Dropout(1 - config.dropout if config.dropout else 0.0)

    def forward(self, ids, offset=0):
        return self.dropout(self.token(ids) + self.p(ids, offset))


class MaskedOnly(Input):
    def forward(self, ids, offset=0):
        x = self.token(ids) + self.p(ids, offset)
        return x * torch.empty_like(x).bernoulli_(1 - self.config.dropout) if self.training else x


class SumDroppedTwice(Input):
    def forward(self, ids, offset=0):
        return self.dropout(self.dropout(self.token(ids) + self.p(ids, offset)))


class TokensThenSumDropped(Input):
    def forward(self, ids, offset=0):
        return self.dropout(self.dropout(self.token(ids)) + self.p(ids, offset))


class ConstantRate(Input):
    def forward(self, ids, offset=0):
        x = self.token(ids) + self.p(ids, offset)
        return F.dropout(x, 0.1 if self.config.dropout else 0.0, self.training)


class WavesFromZero(Input):
    def forward(self, ids, offset=0):
        T, C = ids.shape[1], self.config.n_embd
        waves = self.config.position_encoding == "sinusoidal"
        return self.dropout(self.token(ids) + (sinusoidal_positions(T, C) if waves else self.position(T, offset)))


INPUT_WRONG = {
    OtherWords: "not called token and position",
    LearnedInAnyCase: "the sinusoidal positions are learned",
    FixedInAnyCase: "the positions are never learned",
    TokensAlone: "the positions are left out",
    PositionsAlone: "the tokens are left out",
    Product: "multiplied, not added",
    SideBySide: "concatenated",
    AlwaysFromZero: "the offset is ignored",
    ShiftedByOne: "the positions are shifted",
    OffsetInPieces: "the positions are shifted",
    LengthOfIds: "along the batch",
    OneForEachSequence: "along the batch",
    OnePosition: "every token gets the same position",
    AllPositions: "all positions of the context",
    ScaledTokens: "multiplied by sqrt(C)",
    Normalised: "the sum is normalised",
    NeverDropped: "there is no dropout",
    AlwaysDropped: "stays on in eval mode",
    DroppedTokens: "on one of the two alone",
    DroppedPositions: "on one of the two alone",
    DroppedPositionsOfAll: "on one of the two alone",
    DroppedTwice: "separately",
    DroppedTwiceOfAll: "separately",
    DefaultRate: "another rate",
    KeepRate: "another rate",
    MaskedOnly: "not scaled up",
    SumDroppedTwice: "dropout falls twice",
    TokensThenSumDropped: "dropout falls twice",
    ConstantRate: "another rate",
    WavesFromZero: "the offset is ignored",
}


# InputEmbedding: right answers.


class InOneLine(Input):
    def forward(self, ids, offset=0):
        return self.dropout(self.token(ids) + self.p(ids, offset))


class Functional(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.rate, self.n = config.dropout, config.max_seq_length
        self.token = TokenEmbedding(config.vocab_size, config.n_embd)
        self.position = nn.Embedding(config.max_seq_length, config.n_embd)
        if config.position_encoding == "sinusoidal":
            del self.position
            self.register_buffer("position", sinusoidal_positions(config.max_seq_length, config.n_embd))

    def forward(self, ids, offset=0):
        rows = torch.arange(offset, offset + ids.shape[1])
        position = self.position[rows] if isinstance(self.position, torch.Tensor) else self.position(rows)
        return F.dropout(self.token(ids) + position[None], p=self.rate, training=self.training)


class OneByOne(Input):
    def forward(self, ids, offset=0):
        columns = [self.token(ids[:, t]) + self.position(1, offset + t) for t in range(ids.shape[1])]
        return self.dropout(torch.stack(columns, dim=1))


class DropoutByHand(Input):
    def forward(self, ids, offset=0):
        x = self.token(ids) + self.p(ids, offset)
        if not self.training or self.config.dropout == 0:
            return x
        keep = 1 - self.config.dropout
        return x * (torch.rand(x.shape) < keep) / keep


class InPlaceOnASum(Input):
    def forward(self, ids, offset: int = 0):
        x = self.token(ids).clone()
        x += self.p(ids, offset)
        return self.dropout(x)


class PartsInSequence(Input):
    """Dropout inside a Sequential, positions cut from the whole table."""

    def __init__(self, config):
        super().__init__(config)
        self.dropout = nn.Sequential(nn.Identity(), nn.Dropout(config.dropout))

    def forward(self, ids, offset=0):
        table = self.position(self.config.max_seq_length)
        return self.dropout(torch.add(self.token(ids), table[offset:][: ids.shape[1]]))


INPUT_RIGHT = [InOneLine, Functional, OneByOne, DropoutByHand, InPlaceOnASum, PartsInSequence]


# nearest_tokens: wrong answers.


def bare_products(weight, i, k):
    scores = torch.mv(weight, weight[i])
    scores[i] = float("-inf")
    return torch.topk(scores, k)[1]


def only_the_query_normalised(weight, i, k):
    scores = weight @ F.normalize(weight[i], dim=0)
    return torch.tensor([j for j in scores.argsort(descending=True).tolist() if j != i][:k])


def with_itself(weight, i, k):
    return F.cosine_similarity(weight, weight[i][None], dim=-1).topk(k).indices


def first_dropped_by_products(weight, i, k):
    return (weight @ weight[i]).topk(k + 1).indices[1:]


def furthest_first(weight, i, k):
    cosine = F.cosine_similarity(weight, weight[[i]])
    cosine[i] = 9.0
    return torch.topk(cosine, k, largest=False).indices


def in_order_of_ids(weight, i, k):
    rows = F.normalize(weight)
    best = (rows @ rows[i]).topk(k + 1).indices
    return torch.tensor(sorted(j for j in best.tolist() if j != i))


def along_the_wrong_axis(weight, i, k):
    rows = weight / torch.sqrt((weight**2).sum(0))
    scores = rows @ rows[i]
    scores[i] = -torch.inf
    return scores.topk(k).indices


def others_along_the_wrong_axis(weight, i, k):
    scores = F.normalize(weight, dim=0) @ weight[i]
    scores[i] = -torch.inf
    return scores.topk(k).indices


def row_cut_out(weight, i, k):
    others = torch.cat([weight[:i], weight[i + 1 :]])
    return F.cosine_similarity(others, weight[i][None]).topk(k).indices


def by_distance(weight, i, k):
    gaps = torch.cdist(weight, weight[i : i + 1]).flatten()
    gaps[i] = torch.inf
    return gaps.topk(k, largest=False).indices


def by_squares(weight, i, k):
    scores = weight @ weight[i] / (weight * weight).sum(1)
    scores[i] = -torch.inf
    return scores.argsort(descending=True)[:k]


def without_sign(weight, i, k):
    scores = F.cosine_similarity(weight, weight[[i]]).abs()
    scores[i] = -1
    return scores.topk(k).indices


def zero_for_itself(weight, i, k):
    scores = F.cosine_similarity(weight, weight[[i]])
    scores[i] = 0
    return scores.topk(k).indices


def one_too_few(weight, i, k):
    best = F.cosine_similarity(weight, weight[[i]]).topk(k).indices
    return best[best != i]


def cosines(weight, i, k):
    scores = F.cosine_similarity(weight, weight[[i]])
    return scores[torch.arange(len(scores)) != i].sort(descending=True).values[:k]


def divides_the_table(weight, i, k):
    weight.div_(weight.norm(dim=1, keepdim=True))
    scores = weight @ weight[i]
    scores[i] = -torch.inf
    return scores.topk(k).indices


def minus_one_for_itself(weight, i, k):
    scores = F.cosine_similarity(weight, weight[[i]])
    scores[i] = -1
    return scores.topk(k).indices


def best_last(weight, i, k):
    return F.cosine_similarity(weight, weight[[i]]).argsort()[-k - 1 : -1]


NEAREST_WRONG = {
    bare_products: "not brought to length 1",
    only_the_query_normalised: "not brought to length 1",
    with_itself: "i itself is among",
    first_dropped_by_products: "the first answer is dropped",
    furthest_first: "the least similar come first",
    in_order_of_ids: "not sorted",
    along_the_wrong_axis: "the columns are brought",
    others_along_the_wrong_axis: "the columns are brought",
    row_cut_out: "one too small",
    by_distance: "distance is measured",
    by_squares: "another number than the length",
    without_sign: "the sign of the cosine",
    zero_for_itself: "gets similarity 0",
    minus_one_for_itself: "gets similarity -1",
    best_last: "the most similar stands last",
    one_too_few: "one answer too few",
    cosines: "the similarities come back",
    divides_the_table: "changed in place",
}


# nearest_tokens: right answers.


def by_normalize(weight, i, k):
    rows = F.normalize(weight, dim=-1)
    scores = rows @ rows[i]
    scores[i] = -2
    return scores.topk(k).indices


def only_the_others_normalised(weight, i, k):
    scores = weight @ weight[i] / weight.norm(dim=1)
    return scores.argsort(descending=True)[1 : k + 1]


def by_cosine_similarity(weight, i, k):
    return F.cosine_similarity(weight, weight[i].unsqueeze(0)).topk(k + 1)[1][1:]


def by_sorting(weight, i, k):
    def cosine(j):
        return float(weight[i].double() @ weight[j].double() / weight[j].double().norm())

    others = sorted((j for j in range(len(weight)) if j != i), key=cosine, reverse=True)
    return torch.tensor(others[:k])


def by_distance_of_directions(weight, i, k):
    rows = weight / weight.square().sum(1, keepdim=True).sqrt()
    gaps = (rows - rows[i]).norm(dim=1)
    gaps[i] = torch.inf
    return gaps.topk(k, largest=False).indices


def by_masked_numpy(weight, i, k):
    rows = weight.numpy() / np.linalg.norm(weight.numpy(), axis=1, keepdims=True)
    order = np.argsort(-(rows @ rows[i]))
    return torch.from_numpy(order[order != i][:k].copy())


def by_the_whole_matrix(weight, i, k):
    rows = F.normalize(weight)
    return (rows @ rows.T).fill_diagonal_(-2.0)[i].topk(k).indices


NEAREST_RIGHT = [
    by_masked_numpy,
    by_the_whole_matrix,
    by_normalize,
    only_the_others_normalised,
    by_cosine_similarity,
    by_sorting,
    by_distance_of_directions,
]

WRONG = {
    "TokenEmbedding": TOKEN_WRONG,
    "sinusoidal_positions": WAVES_WRONG,
    "PositionalEmbedding": POSITION_WRONG,
    "InputEmbedding": INPUT_WRONG,
    "nearest_tokens": NEAREST_WRONG,
}
RIGHT = {
    "TokenEmbedding": TOKEN_RIGHT,
    "sinusoidal_positions": WAVES_RIGHT,
    "PositionalEmbedding": POSITION_RIGHT,
    "InputEmbedding": INPUT_RIGHT,
    "nearest_tokens": NEAREST_RIGHT,
}


def seeds_of(exercise, candidate):
    """Return some of twenty seeds, others for each candidate; one where nothing of the exercise depends on them."""
    step = {"sinusoidal_positions": 20, "PositionalEmbedding": 5}.get(exercise.name, 3)
    return range(zlib.crc32(candidate.__name__.encode()) % step, 20, step)


@pytest.mark.parametrize(("exercise", "candidate", "words"), cases(WRONG))
def test_a_mistake_is_rejected_and_named_first(exercise, candidate, words):
    assert_named_first(exercise, candidate, words, seeds_of(exercise, candidate))


@pytest.mark.parametrize(("exercise", "candidate"), cases(RIGHT))
def test_every_right_style_is_accepted(exercise, candidate):
    assert_accepted(exercise, candidate, seeds_of(exercise, candidate))


@pytest.mark.parametrize("name", WRONG)
def test_every_mistake_of_the_catalogue_has_a_wrong_answer_here(name):
    assert_all_told(checks.exercise(name), WRONG[name])


@pytest.mark.parametrize("name", WRONG)
def test_the_number_of_threads_changes_nothing(name):
    assert_same_on_two_threads(checks.exercise(name), RIGHT[name][:3], dict(list(WRONG[name].items())[:10]))


# Stubs, and other things that are no answer.


class Stub(nn.Module):
    def __init__(self, *sizes):
        super().__init__()
        if len(sizes) == 2:
            self.weight = nn.Parameter(torch.zeros(*sizes))
            self.C = sizes[1]
        else:
            self.token = TokenEmbedding(sizes[0].vocab_size, sizes[0].n_embd)
            self.position = PositionalEmbedding(sizes[0].max_seq_length, sizes[0].n_embd)
            self.C = sizes[0].n_embd

    def shape(self, first):
        return (*first.shape, self.C) if isinstance(first, torch.Tensor) else (first, self.C)


class StubNone(Stub):
    def forward(self, first, offset=0):
        return None


class StubIdentity(Stub):
    def forward(self, first, offset=0):
        return first.float() if isinstance(first, torch.Tensor) else first


class StubZeros(Stub):
    def forward(self, first, offset=0):
        return torch.zeros(self.shape(first))


class StubOnes(Stub):
    def forward(self, first, offset=0):
        return torch.ones(self.shape(first), requires_grad=True)


class StubNoise(Stub):
    def forward(self, first, offset=0):
        return torch.randn(self.shape(first))


class StubBroken(Stub):
    def forward(self, first, offset=0):
        return first.no_such_thing()


class NotAModule:
    def __init__(self, *sizes):
        pass

    def __call__(self, *inputs):
        return torch.zeros(1)


@pytest.mark.parametrize("name", ["TokenEmbedding", "PositionalEmbedding", "InputEmbedding"])
@pytest.mark.parametrize("stub", [StubNone, StubIdentity, StubZeros, StubOnes, StubNoise, StubBroken, NotAModule, int])
def test_no_stub_of_a_module_passes(name, stub):
    assert_rejected(checks.exercise(name), stub, [0])


WAVE_STUBS = [
    lambda T, C: None,
    lambda T, C: torch.zeros(T, C),
    lambda T, C: torch.ones(T, C),
    lambda T, C: torch.rand(T, C),
    lambda T, C: torch.tensor([0.0, 1.0]).repeat(T, C // 2),
    lambda T, C: sinusoidal_positions(T, C).tolist(),
    lambda T, C: sinusoidal_positions(T, C).numpy(),
    lambda T, C: sinusoidal_positions(T, C).round(decimals=2),
    lambda T, C: sinusoidal_positions(T, C).bfloat16(),
    lambda T, C: sinusoidal_positions(T, C).bfloat16().float(),
    lambda T, C: sinusoidal_positions(T, C) * C**0.5,
    lambda T, C: T + C,
    lambda T: torch.zeros(T, T),
    int,
]
NEAREST_STUBS = [
    lambda weight, i, k: None,
    lambda weight, i, k: torch.arange(k),
    lambda weight, i, k: torch.zeros(k, dtype=torch.int64),
    lambda weight, i, k: torch.randperm(len(weight))[:k],
    lambda weight, i, k: weight,
    lambda weight, i, k: by_normalize(weight, i, k).tolist(),
    lambda weight, i, k: by_normalize(weight, i, k).int(),
    lambda weight, i, k: by_normalize(weight, i, k).float(),
    lambda weight, i, k: by_normalize(weight, i, k)[None],
    lambda weight, i, k: by_normalize(weight, i, k).flip(0),
    lambda weight, i, k: by_normalize(weight, i, min(k, 2)),
]


@pytest.mark.parametrize(
    ("exercise", "stub"), cases({"sinusoidal_positions": WAVE_STUBS, "nearest_tokens": NEAREST_STUBS})
)
def test_no_stub_of_a_function_passes(exercise, stub):
    assert_rejected(exercise, stub)


# Dropout that looks right in the figures, but is not.


class WholeVectorsDropped(Input):
    def forward(self, ids, offset=0):
        x = self.token(ids) + self.p(ids, offset)
        return x * F.dropout(torch.ones(*x.shape[:2], 1), self.config.dropout, self.training)


def test_dropping_whole_vectors_breaks_a_rule():
    for seed in range(0, 20, 4):
        verdict = checks.InputEmbedding.diagnose(WholeVectorsDropped, seed)
        assert verdict.state == "wrong" and "drops single numbers, not whole vectors" in verdict.text


def test_dropout_in_a_table_breaks_a_rule():
    class DroppedRows(Tokens):
        def forward(self, ids):
            return F.dropout(self.weight[ids], 0.1, self.training)

    class DroppedPlaces(Positions):
        def forward(self, T, offset=0):
            return F.dropout(self.weight[offset : offset + T], 0.1, self.training)

    for seed in range(5):
        for check, code in ((checks.TokenEmbedding, DroppedRows), (checks.PositionalEmbedding, DroppedPlaces)):
            assert "a rule is broken: training mode changes nothing" in check.diagnose(code, seed).text


# Messages.


def test_a_wrong_name_is_shown_beside_the_right_one():
    text = checks.TokenEmbedding.diagnose(AnEmbeddingInside).text
    assert "expected  weight     got  embedding.weight     [the names of the parameters]" in text


def test_missing_parameters_are_named():
    class Extra(Input):
        def __init__(self, config):
            super().__init__(config)
            self.norm = nn.LayerNorm(config.n_embd)

        def forward(self, ids, offset=0):
            return self.dropout(self.norm(self.token(ids) + self.p(ids, offset)))

    text = checks.InputEmbedding.diagnose(Extra).text
    assert "the parameters: not expected: norm.bias, norm.weight" in text


def test_two_mistakes_together_are_both_named():
    class Both(Tokens):
        def forward(self, ids):
            return (self.weight[ids] * self.weight.shape[1] ** 0.5).detach()

    mistakes = checks.TokenEmbedding.diagnose(Both).mistakes
    assert len(mistakes) == 2 and "sqrt(C)" in mistakes[0] and "no gradient" in mistakes[1]

    def swapped_from_one(max_seq_length, n_embd):
        angle = angles_of(max_seq_length + 1, n_embd)[1:]
        return filled_table(angle.cos(), angle.sin())

    mistakes = checks.sinusoidal_positions.diagnose(swapped_from_one).mistakes
    assert len(mistakes) == 2 and "swapped" in mistakes[0] and "from 1" in mistakes[1]


def test_an_offset_without_a_default_is_told_by_its_own_error():
    class Demanding(Positions):
        def forward(self, T, offset):
            return self.weight[offset : offset + T]

    assert "missing 1 required positional argument: 'offset'" in checks.PositionalEmbedding.diagnose(Demanding).text


def test_a_wrong_table_is_drawn():
    picture = checks.sinusoidal_positions.diagnose(cosine_first).picture
    assert "<svg" in picture and "yours" in picture


def test_names_that_are_right_are_equal_and_so_are_all_wrong_ones():
    right, wrong, other = Names(["weight"], True), Names(["w"], False), Names(["W"], False)
    assert wrong == other and hash(wrong) == hash(other) and right != wrong and right != "weight"


def test_blanks_are_not_written_yet():
    class Blank(nn.Module):
        def __init__(self, *sizes):
            raise NotImplementedError("not written yet")

    def blank(*inputs):
        raise NotImplementedError("not written yet")

    for name in ("TokenEmbedding", "PositionalEmbedding", "InputEmbedding"):
        assert checks.exercise(name).diagnose(Blank).state == "unwritten"
    for name in ("sinusoidal_positions", "nearest_tokens"):
        assert checks.exercise(name).diagnose(blank).state == "unwritten"
