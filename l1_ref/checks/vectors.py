"""The functions of 02_embeddings: the waves that mark positions, and the bug hunt around similarity."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe, Property
from l1_ref.checks.observe import OUTPUT, Observation, observe_call
from l1_ref.embeddings import sinusoidal_positions

NOTEBOOK = "02_embeddings"


# sinusoidal_positions.


def _size(T: int, C: int) -> Callable[[torch.Generator], Inputs]:
    return lambda generator: {"max_seq_length": T, "n_embd": C}


def _observe_waves(candidate: Callable, inputs: Inputs, gradient: bool, seed: int) -> Observation:
    """Call a function that makes a table, and record also whether the table asks for a gradient."""
    wants: list[bool] = []

    def call(*arguments) -> Tensor:
        output = candidate(*arguments)
        wants.append(bool(getattr(output, "requires_grad", False)))
        return output

    seen = observe_call(call, inputs, False, seed)
    return seen | {"the table requires a gradient": wants[-1]} if OUTPUT in seen and wants else seen


def _frequencies(C: int, *, base: float = 1e4, exponent: str = "") -> Tensor:
    """Return the angle that each of the C columns turns by in one step, right or wrong."""
    pair = torch.arange(C, dtype=torch.float64) // 2
    column = torch.arange(C, dtype=torch.float64)
    power = {
        "": 2 * pair / C,
        "column": column / C,
        "column, twice": 2 * column / C,
        "odd ones later": 2 * (2 * pair + column % 2) / C,
        "twice": 4 * pair / C,
        "half": pair / C,
        "to the end": 2 * pair / max(C - 2, 1),
        "whole": torch.zeros_like(pair),
        "whole steps": 2 * pair * -(-math.log(1e4) / C // 2) / math.log(1e4),
        "next": 2 * (pair + 1) / C,
        "up": -2 * pair / C,
        "not divided": 2 * pair,
    }[exponent]
    return base**-power


def _waves(
    max_seq_length: int, n_embd: int, *, first: int = 0, base: float = 1e4, exponent: str = "", place: str = "",
    unit: float = 1.0, whole: bool = False, shape: str = "", dtype: torch.dtype = torch.float32,
    learned: bool = False
) -> Tensor:  # fmt: skip
    """The reference with switches for what goes wrong."""
    t = torch.arange(first, first + max_seq_length, dtype=torch.float64)[:, None]
    angle = t * _frequencies(n_embd, base=base, exponent=exponent) * unit  # (T, C)
    angle = angle.floor() if whole else angle
    sin, cos = torch.sin(angle), torch.cos(angle)
    even = torch.arange(n_embd) % 2 == 0
    table = torch.where(even, sin, cos)
    if place == "swapped":
        table = torch.where(even, cos, sin)
    elif place == "halves":
        table = torch.cat((sin[:, ::2], cos[:, ::2]), dim=-1)
    elif place == "halves, swapped":
        table = torch.cat((cos[:, ::2], sin[:, ::2]), dim=-1)
    elif place == "sine only":
        table = sin
    elif place == "odd empty":
        table = torch.where(even, sin, 0.0)
    elif place == "rows":
        table = torch.where((t.long() - first) % 2 == 0, sin, cos)
    elif place == "angles":
        table = angle
    table = {"": table, "swap": table.T, "batch": table[None], "flat": table.flatten()}[shape].to(dtype)
    return table.requires_grad_() if learned else table


def _named_waves(name: str, why: str, *switches: dict) -> Mistake:
    wrong, *versions = (partial(_waves, **each) for each in switches)
    return Mistake(name, why, wrong, tuple(versions))


SINUSOIDAL_POSITIONS = Exercise(
    name="sinusoidal_positions",
    notebook=NOTEBOOK,
    reference=sinusoidal_positions,
    observe=_observe_waves,
    probes=(
        Probe("three positions", _size(3, 4), "T C", gradient=False, picture=True),
        Probe("a square", _size(6, 6), "T C", gradient=False, picture=True),
        Probe("more positions than columns", _size(12, 8), "T C", gradient=False, picture=True),
        Probe("more columns than positions", _size(5, 16), "T C", gradient=False, picture=True),
        Probe("a single position", _size(1, 6), "T C", gradient=False, edge=True),
        Probe("a single pair of columns", _size(7, 2), "T C", gradient=False, edge=True),
        Probe("a long table", _size(100, 32), "T C", gradient=False, edge=True, tolerance=1e-4),
    ),
    mistakes=(
        _named_waves(
            "sine and cosine are swapped",
            "sine stands on the even columns, which begin with column 0; at position 0 it is 0.",
            {"place": "swapped"},
        ),
        _named_waves(
            "sines and cosines stand in two halves",
            "both halves hold the right numbers, but in another order than the formula's: sine and cosine take turns.",
            {"place": "halves"},
            {"place": "halves, swapped"},
        ),
        _named_waves(
            "sine and cosine take turns by position, not by column",
            "a column would jump between two waves; indexing with [0::2] alone picks rows.",
            {"place": "rows"},
        ),
        _named_waves(
            "there is no cosine on the odd columns",
            "a sine alone cannot tell whether its wave is rising or falling; the pair can.",
            {"place": "sine only"},
            {"place": "odd empty"},
        ),
        _named_waves(
            "the angles themselves come back",
            "they grow without end; sine and cosine keep every number between -1 and 1.",
            {"place": "angles"},
        ),
        _named_waves(
            "every column has a frequency of its own",
            "columns 2i and 2i+1 share the exponent 2i/C, so that they are sine and cosine of one and the same angle.",
            {"exponent": "column"},
            {"exponent": "column, twice"},
            {"exponent": "odd ones later"},
        ),
        _named_waves(
            "the exponent is twice too large",
            "2i is the column already: where i runs over the even columns 0, 2, 4 …, the exponent is i/C.",
            {"exponent": "twice"},
        ),
        _named_waves(
            "the exponent is half of what it should be",
            "where i counts the pairs 0, 1, 2 …, the exponent is 2i/C.",
            {"exponent": "half"},
        ),
        _named_waves(
            "the exponent runs up to exactly 1",
            "some libraries divide by C - 2; the paper divides by C, and the slowest wave stays a little faster.",
            {"exponent": "to the end"},
        ),
        _named_waves(
            "the exponent is rounded to a whole number",
            "integer division (//), or a dtype of integers, makes all pairs the same wave, or far too slow.",
            {"exponent": "whole"},
            {"exponent": "whole steps"},
        ),
        _named_waves(
            "the exponent is not divided by C",
            "from the second pair on the waves would stand still: the exponent runs from 0 to just below 1.",
            {"exponent": "not divided"},
        ),
        _named_waves(
            "the angle is rounded down to a whole number",
            "// is the division of integers; the slow waves move by less than 1 a step, so / is needed.",
            {"whole": True},
        ),
        _named_waves(
            "the first pair is left out: i begins at 1",
            "i begins at 0, where the divisor is 1: that pair turns by one radian a step.",
            {"exponent": "next"},
        ),
        Mistake(
            "the position is multiplied by the power of 10000 instead of divided",
            "the waves become faster and faster, up to thousands of turns a step, and neighbours look unrelated.",
            partial(_waves, exponent="up"),
            tolerance=0.03,  # such large angles in float32 are off by as much
        ),
        _named_waves(
            "the base is not 10000",
            "the base sets the longest wave: about 10000 times 2 pi positions.",
            {"base": 1e3},
            {"base": 1e5},
            {"base": math.e**4},  # log10 beside exp
            {"base": math.e},
            {"base": 10.0},
        ),
        _named_waves(
            "positions are counted from 1",
            "the first position is 0, and its row reads 0, 1, 0, 1 and so on.",
            {"first": 1},
        ),
        _named_waves(
            "the angle is not in radians",
            "torch.sin and torch.cos take radians, and the formula means radians too.",
            {"unit": math.pi / 180},
            {"unit": 2 * math.pi},
            {"unit": math.pi},
        ),
        _named_waves(
            "rows and columns are swapped",
            "one row for each position: the table is (T, C).",
            {"shape": "swap"},
        ),
        _named_waves(
            "there is an axis too many in front",
            "the table knows nothing of a batch; it is added to every sequence alike.",
            {"shape": "batch"},
        ),
        _named_waves(
            "the table has another dtype than float32",
            "it is added to float32 vectors; float64 would spread from here through the whole model.",
            {"dtype": torch.float64},
            {"dtype": torch.float16},
        ),
        _named_waves(
            "the table asks for a gradient",
            "nothing about it is learned; it is the same for every model.",
            {"learned": True},
        ),
    ),
    properties=(
        Property(
            "all numbers lie between -1 and 1",
            lambda f, max_seq_length, n_embd: bool((f(max_seq_length, n_embd).abs() <= 1 + 1e-5).all()),
        ),
        Property(
            "the squares of each pair of columns sum to 1",
            lambda f, max_seq_length, n_embd: torch.allclose(
                f(max_seq_length, n_embd).double().unflatten(1, (-1, 2)).square().sum(-1),
                torch.ones(max_seq_length, n_embd // 2, dtype=torch.float64),
                atol=1e-4,
            ),
        ),
    ),
    hints=(
        "Make a column of positions (T, 1) and a row of divisors, one for each pair of columns. Which shape has their "
        "quotient?",
        "The divisors are 10000 to the power of 0/C, 2/C, 4/C …: an arange with step 2, divided by C, as an exponent.",
        "Compute the angles (T, C/2). Make an empty table (T, C). Write the sines of the angles into the columns 0, 2, "
        "4 … with a slice of step 2, and their cosines into the columns 1, 3, 5 …",
    ),
)


# The bug hunt: nearest_tokens.


def nearest_tokens(weight: Tensor, i: int, k: int) -> Tensor:
    """Return the ids whose vectors point most nearly where the vector of token i points.

    Args:
        weight: One row a token, (V, C).
        i: The token.
        k: How many others, at most V - 1.

    Returns:
        k ids, the most similar first; i is not among them.
    """
    directions = weight / weight.norm(dim=-1, keepdim=True)
    similarity = directions @ directions[i]  # (V,)
    similarity[i] = -math.inf
    return similarity.topk(k).indices


def _vectors(V: int, C: int, i: int, k: int) -> Callable[[torch.Generator], Inputs]:
    """Return the builder of a probe: rows of very different lengths, none of them the longest at i."""

    def build(generator: torch.Generator) -> Inputs:
        weight = F.normalize(torch.randn(V, C, generator=generator), dim=-1)
        lengths = torch.rand(V, 1, generator=generator) * 3 + 1
        lengths[i] = 0.7
        return {"weight": weight * lengths, "i": i, "k": k}

    return build


def _fixed(rows: list[list[float]], i: int, k: int) -> Callable[[torch.Generator], Inputs]:
    return lambda generator: {"weight": torch.tensor(rows), "i": i, "k": k}


_ROUND = [[1.0, 0.0], [0.6, 0.8], [-2.0, 0.0], [-0.6, 1.6], [3.0, 0.5]]


def _long_self(generator: torch.Generator) -> Inputs:
    return {"weight": torch.randn(8, 3, generator=generator) + torch.eye(8, 3) * 6, "i": 1, "k": 4}


def _near(
    weight: Tensor, i: int, k: int, *, measure: str = "cosine", own: str = "out", worst_first: bool = False,
    in_order: bool = True, back: str = "ids", count: int = 0
) -> Tensor:  # fmt: skip
    """The reference with switches for what goes wrong."""
    similarity = _similarity(weight, i, measure)
    similarity[i] = {"in": similarity[i], "zero": 0.0}.get(own, math.inf if worst_first else -math.inf)
    if own == "first":  # the best is dropped, be it i or not
        similarity = _similarity(weight, i, measure)
        return similarity.argsort(descending=not worst_first)[1 : k + 1]
    order = similarity.argsort(descending=not worst_first)[: k + count]
    order = order if in_order else order.sort().values
    if own == "shorter":
        order = _similarity(weight, i, measure).argsort(descending=not worst_first)[:k]
        order = order[order != i]
    if back == "from the end":
        return order.flip(0)
    return {"ids": order, "values": similarity[order], "column": order[:, None], "float": order.float()}[back]


def _similarity(weight: Tensor, i: int, measure: str) -> Tensor:
    length = weight.norm(dim=-1)
    dot = weight @ weight[i]
    columns = F.normalize(weight, dim=0)
    return {
        "cosine": dot / length / length[i],
        "dot": dot,
        "distance": -(weight - weight[i]).norm(dim=-1),
        "city": -(weight - weight[i]).abs().sum(-1),
        "columns": columns @ columns[i],
        "columns of the others": columns @ weight[i],
        "squares": dot / length**2,
        "roots": dot / length.sqrt(),
        "absolute": (dot / length).abs(),
        "sum": dot / weight.abs().sum(-1),
    }[measure].clone()


def _normalising_in_place(weight: Tensor, i: int, k: int) -> Tensor:
    weight /= weight.norm(dim=-1, keepdim=True)
    return nearest_tokens(weight, i, k)


def _below_by_one(weight: Tensor, i: int, k: int) -> Tensor:
    similarity = _similarity(weight, i, "cosine")
    similarity[i] = -1.0
    return similarity.topk(k).indices


def _without_row_i(weight: Tensor, i: int, k: int) -> Tensor:
    found = nearest_tokens(weight, i, k)
    return found - (found > i).long()


def _masking_in_place(weight: Tensor, i: int, k: int) -> Tensor:
    found = nearest_tokens(weight, i, k)
    weight[i] = 0
    return found


def _found(name: str, why: str, *switches: dict) -> Mistake:
    wrong, *versions = (partial(_near, **each) for each in switches)
    return Mistake(name, why, wrong, tuple(versions))


NEAREST_TOKENS = Exercise(
    name="nearest_tokens",
    notebook=NOTEBOOK,
    reference=nearest_tokens,
    probes=(
        Probe(
            "four vectors in a plane",
            _fixed([[1.0, 0.0], [0.9, 0.3], [3.0, 2.5], [-4.0, 1.0]], 0, 2),
            "k",
            gradient=False,
        ),
        Probe("vectors of different lengths", _vectors(7, 3, 2, 3), "k", gradient=False),
        Probe("more of them", _vectors(20, 4, 11, 6), "k", gradient=False),
        Probe("the first token", _vectors(9, 5, 0, 4), "k", gradient=False),
        Probe("the last token", _vectors(9, 5, 8, 4), "k", gradient=False),
        Probe("the token's own vector is a long one", _long_self, "k", gradient=False),
        Probe("all others, those that point away too", _vectors(6, 2, 3, 5), "k", gradient=False),
        Probe("only one", _vectors(6, 3, 4, 1), "k", gradient=False, edge=True),
        # Where i itself gets -1, it ties with the vector that points the other way: one of the two places shows it.
        Probe("one points exactly the other way", _fixed(_ROUND, 0, 4), "k", gradient=False, edge=True),
        Probe("one points exactly the other way; the last token", _fixed(_ROUND[::-1], 4, 4), "k", False, edge=True),
    ),
    mistakes=(
        _found(
            "the vectors are not brought to length 1",
            "a dot product grows with the length of both vectors, so long ones win, wherever they point.",
            {"measure": "dot"},
        ),
        _found(
            "i itself is among the answers",
            "every vector is most similar to itself; that says nothing.",
            {"own": "in"},
        ),
        _found(
            "the first answer is dropped, though it is not always i",
            "with the dot product a longer vector can come before i itself: leave out i by its number.",
            {"measure": "dot", "own": "first"},
        ),
        _found(
            "the least similar come first",
            "a high cosine means similar; the largest k are wanted, the largest first.",
            {"worst_first": True},
        ),
        _found(
            "the answers are not sorted by similarity",
            "the best must stand first, so that the first two are the two nearest.",
            {"in_order": False},
        ),
        _found(
            "the most similar stands last",
            "the best comes first; argsort begins with the smallest, unless descending=True.",
            {"back": "from the end"},
        ),
        _found(
            "the columns are brought to length 1, not the rows",
            "a token is a row; dim=-1 goes along it.",
            {"measure": "columns"},
            {"measure": "columns of the others"},
        ),
        _found(
            "distance is measured, not direction",
            "a vector twice as long points the same way, but lies far off.",
            {"measure": "distance"},
            {"measure": "city"},
        ),
        _found(
            "divided by another number than the length",
            "the length is the root of the sum of the squares.",
            {"measure": "squares"},
            {"measure": "roots"},
            {"measure": "sum"},
        ),
        _found(
            "the sign of the cosine is dropped",
            "-1 means that two vectors point away from each other: they are not similar at all.",
            {"measure": "absolute"},
        ),
        _found(
            "i gets similarity 0, which still beats what points away",
            "cosines go down to -1; only a lower number keeps i out.",
            {"own": "zero"},
        ),
        Mistake(
            "i gets similarity -1, which ties with what points exactly away",
            "cosines go down to -1; only a lower number, such as minus infinity, keeps i out for sure.",
            _below_by_one,
        ),
        _found(
            "there is one answer too few",
            "i takes one of the k places: fetch one more, or leave it out first.",
            {"own": "shorter"},
            {"count": -1},
        ),
        Mistake(
            "row i is taken out, and the ids behind it are one too small",
            "a place in the shorter table is no id: leave the table whole and push i's similarity down.",
            _without_row_i,
        ),
        _found(
            "the similarities come back, not the ids",
            "topk gives both: values and indices.",
            {"back": "values"},
        ),
        Mistake(
            "the table is changed in place",
            "it belongs to the model, which would go on with other vectors.",
            _normalising_in_place,
            (_masking_in_place,),
        ),
    ),
    properties=(
        Property(
            "twice as long a vector changes nothing",
            lambda f, weight, i, k: torch.equal(
                f(weight.clone(), i, k), f(weight * torch.linspace(1, 2, len(weight))[:, None], i, k)
            ),
        ),
    ),
    hints=(
        "Make a row twice as long in your mind. What becomes of its dot product with another, and what of its cosine?",
        "The cosine is the dot product of two vectors of length 1. Which line makes them that long?",
        "Divide every row of the table by its norm (along the last axis, keepdim=True) and go on with these rows in "
        "place of weight; do not write into weight itself.",
    ),
)

EXERCISES = (SINUSOIDAL_POSITIONS, NEAREST_TOKENS)
