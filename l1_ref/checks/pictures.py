"""A small picture for a message: the reader's matrix beside the right one, as SVG that needs nothing else."""

import html
import math
from typing import Any

import torch
from torch import Tensor

from l1_ref.checks.compare import same, worst_index

_LARGEST = 16  # rows or columns; more than that is no small picture
_CELL, _GAP = 14, 40
_LOW, _HIGH, _OFF = (213, 94, 0), (0, 114, 178), (255, 255, 255)  # vermilion, blue, white


def of(story: Any, case: tuple[int, str] | None) -> str:
    """Draw the output of one probe beside the right one, where the probe asks for it and the two can be compared.

    Args:
        story: What the check did.
        case: The probe, and the thing seen.

    Returns:
        HTML, or an empty text.
    """
    if case is None or not story.exercise.probes[case[0]].picture:
        return ""
    expected, got = (seen[case[0]].get(case[1]) for seen in (story.expected, story.got))
    if not isinstance(expected, Tensor) or not isinstance(got, Tensor) or expected.ndim < 2:
        return ""
    if expected.shape == got.shape:
        place = worst_index(expected, got)[:-2]
        expected, got = expected[place], got[place]
    if expected.ndim != 2 or got.ndim != 2 or max(*expected.shape, *got.shape) > _LARGEST or same(expected, got, 0.0):
        return ""
    return side_by_side({"expected": expected, "yours": got})


def side_by_side(matrices: dict[str, Tensor]) -> str:
    """Draw matrices as grids, each under its title: blue is high or True, white zero or False, orange below zero.

    Args:
        matrices: Two axes each.
    """
    largest = max(_size(matrix) for matrix in matrices.values()) or 1.0
    parts, left = [], 0
    for title, matrix in matrices.items():
        parts.append(f"<text x='{left}' y='12' font-size='12' fill='currentColor'>{html.escape(title)}</text>")
        for row, values in enumerate(matrix.tolist()):
            parts += [_cell(left + _CELL * column, 18 + _CELL * row, v, largest) for column, v in enumerate(values)]
        left += max(_CELL * matrix.shape[1], 60) + _GAP
    height = 20 + _CELL * max(len(matrix) for matrix in matrices.values())
    label = html.escape("; ".join(f"{title}: {_in_words(matrix)}" for title, matrix in matrices.items()))
    return f"<svg role='img' aria-label='{label}' width='{left}' height='{height}'>{''.join(parts)}</svg>"


def _size(matrix: Tensor) -> float:
    values = matrix.double()[matrix.double().isfinite()].abs()
    return values.max().item() if values.numel() else 0.0


def _cell(x: int, y: int, value: float | bool, largest: float) -> str:
    if not math.isfinite(value):
        return (
            f"<text x='{x}' y='{y + 11}' font-size='9' fill='currentColor'>{'nan' if value != value else 'inf'}</text>"
        )
    share, towards = min(1.0, abs(value) / largest), _HIGH if value > 0 else _LOW
    red, green, blue = (round(off + share * (on - off)) for off, on in zip(_OFF, towards, strict=True))
    place = f"x='{x}' y='{y}' width='{_CELL}' height='{_CELL}'"
    return f"<rect {place} fill='rgb({red},{green},{blue})' stroke='#888' stroke-width='.5'/>"


def _in_words(matrix: Tensor) -> str:
    """Describe a matrix for those who do not see it: where each row is not zero."""
    rows = [torch.nonzero(row).flatten().tolist() for row in matrix]
    return f"{matrix.shape[0]} rows of {matrix.shape[1]}; not zero at " + ", ".join(map(str, rows))
