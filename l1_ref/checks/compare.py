"""Compare what the reader's code did with what the reference did, and say in words where they differ."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from l1_ref.config import is_number


@dataclass(frozen=True)
class Failure:
    """A call that ended with an exception.

    Args:
        error: The exception.
        at: How far the call had come, where that tells failures apart.
    """

    error: Exception
    at: Any = None


@dataclass(frozen=True)
class Rough:
    """A figure that chance blurs, such as the share of zeros that dropout leaves.

    Args:
        value: The figure, as measured.
        within: How far two measurements of the same thing may lie apart.
    """

    value: float
    within: float

    def __str__(self) -> str:
        return f"about {number(float(self.value), 2)}"

    __repr__ = __str__


@dataclass(frozen=True)
class Difference:
    """One thing that is not as expected.

    Args:
        what: The kind of difference, in words.
        expected: What the reference gave, as text.
        got: What the reader's code gave, as text.
        where: The index of the part that is shown, such as "[0, :, 2]"; empty where all is.
    """

    what: str
    expected: str
    got: str
    where: str = ""


def same(a: Any, b: Any, tolerance: float) -> bool:
    """Say whether two observed values are the same behaviour.

    Whole numbers are compared exactly; one may stand where a float is expected. NaN equals NaN, and infinity equals
    infinity. A failure equals any other that had come as far, but an endless loop only an endless loop.

    Args:
        a: A tensor, number, container of these, or anything with ==.
        b: The same.
        tolerance: Largest difference allowed, beside ten times as much of the value itself.
    """
    if isinstance(a, Failure) and isinstance(b, Failure):
        return isinstance(a.error, TimeoutError) == isinstance(b.error, TimeoutError) and a.at == b.at
    if isinstance(a, Rough) and isinstance(b, Rough):
        close = math.isclose(a.value, b.value, rel_tol=0, abs_tol=max(a.within, b.within))
        return close or (a.value != a.value and b.value != b.value)
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return _same_tensor(a, b, tolerance)
    if isinstance(a, int) and isinstance(b, int):
        return type(a) is type(b) and a == b
    if is_number(a) and is_number(b):
        return math.isclose(a, b, rel_tol=10 * tolerance, abs_tol=tolerance) or (a != a and b != b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key], tolerance) for key in a)
    if isinstance(a, list | tuple) and type(a) is type(b):
        return len(a) == len(b) and all(same(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if type(a) is not type(b):
        return False
    equal = a == b
    return bool(equal.all() if hasattr(equal, "all") else equal)  # of arrays, == gives an array


def _same_tensor(a: Tensor, b: Tensor, tolerance: float) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    a, b = (each if each.layout == torch.strided else each.to_dense() for each in (a, b))
    if not a.is_floating_point():
        return torch.equal(a, b)
    return torch.allclose(a.double(), b.double(), rtol=10 * tolerance, atol=tolerance, equal_nan=True)


def largest_difference(a: Any, b: Any) -> float:
    """Return the largest difference between two values that `same` found equal, 0 where they hold no floats."""
    if isinstance(a, Tensor) and a.is_floating_point():
        gaps = (a.double() - b.double()).abs()
        gaps = gaps[gaps.isfinite()]
        return gaps.max().item() if gaps.numel() else 0.0
    if is_number(a):
        return abs(a - b) if math.isfinite(a - b) else 0.0
    if isinstance(a, dict):
        return max((largest_difference(a[key], b[key]) for key in a), default=0.0)
    if isinstance(a, list | tuple):
        return max(map(largest_difference, a, b), default=0.0)
    return 0.0


def holds_floats(value: Any) -> bool:
    """Say whether a value is or holds floating-point numbers, which are equal only within a tolerance."""
    if isinstance(value, Tensor):
        return value.is_floating_point()
    if isinstance(value, dict | list | tuple):
        return any(map(holds_floats, value.values() if isinstance(value, dict) else value))
    return isinstance(value, float | Rough)


def difference(expected: Any, got: Any, axes: str = "", dim: int = -1) -> Difference:
    """Put into words how two unequal values differ.

    Args:
        expected: The reference's value.
        got: The reader's value.
        axes: Names of the expected tensor's axes, such as "B T C".
        dim: The axis along which entries are shown.
    """
    if got is None and expected is not None:
        return Difference("nothing came back: is a return missing?", kind(expected, axes), "None")
    if isinstance(expected, dict) and isinstance(got, dict):
        return _differing_keys(expected, got)
    if not isinstance(expected, Tensor) or not isinstance(got, Tensor):
        same_type = type(expected) is type(got) or (is_number(expected) and is_number(got))
        return Difference("values" if same_type else "type", *_texts(expected, got, axes, same_type))
    if expected.shape != got.shape:
        return Difference(_wrong_axes(expected, got, axes), named_shape(expected, axes), str(tuple(got.shape)))
    if expected.dtype != got.dtype:
        return Difference("dtype", str(expected.dtype), str(got.dtype))
    if expected.device != got.device:
        return Difference("device", str(expected.device), str(got.device))
    return Difference("values", *_differing_entries(expected, got, dim))


def _differing_keys(expected: dict, got: dict, n_shown: int = 4) -> Difference:
    """Compare dicts key by key: which are missing, which are too many, which hold something else."""

    def named(keys: list) -> str:
        return ", ".join(str(key) for key in keys[:n_shown]) + (", …" if len(keys) > n_shown else "")

    missing, extra = ([key for key in a if key not in b] for a, b in ((expected, got), (got, expected)))
    other = [key for key in expected if key in got and not same(expected[key], got[key], 0.0)]
    parts = {"missing": missing, "not expected": extra, "other value": [] if missing or extra else other}
    what = "; ".join(f"{label}: {named(keys)}" for label, keys in parts.items() if keys)
    texts = (
        short({key: each[key] for key in keys[:n_shown]})
        for each, keys in ((expected, [*missing, *other]), (got, [*extra, *other]))
    )
    return Difference(what or "values", *texts)


def _texts(expected: Any, got: Any, axes: str, same_type: bool) -> tuple[str, str]:
    return _told_apart(short, expected, got) if same_type else (kind(expected, axes), kind(got))


def _wrong_axes(expected: Tensor, got: Tensor, axes: str) -> str:
    if expected.ndim != got.ndim:
        return f"shape: the number of axes must be {expected.ndim}, not {got.ndim}"
    names = axes.split() or [f"axis {i}" for i in range(expected.ndim)]
    sizes = list(expected.shape)
    if sorted(sizes) == sorted(got.shape) and len(set(sizes)) == len(sizes) and axes:
        return f"shape: the axes must be in the order {axes}, not {' '.join(names[sizes.index(n)] for n in got.shape)}"
    wrong = [
        f"{name} must be {size}, not {other}"
        for name, size, other in zip(names, expected.shape, got.shape, strict=True)
        if size != other
    ]
    return f"shape: {', '.join(wrong)}"


def _differing_entries(expected: Tensor, got: Tensor, dim: int, n_shown: int = 6) -> tuple[str, str, str]:
    """Show the slice along dim that holds the largest difference, as text for both tensors, and say which it is."""
    if not expected.ndim:
        return *_told_apart(short, expected, got), ""
    dim = dim % expected.ndim if -expected.ndim <= dim < expected.ndim else expected.ndim - 1
    index = worst_index(expected, got)
    first = max(0, min(index[dim] - n_shown + 1, expected.shape[dim] - n_shown))
    place = tuple(slice(None) if axis == dim else i for axis, i in enumerate(index))

    def text(tensor: Tensor, digits: int) -> str:
        parts = [number(value, digits) for value in tensor[place][first : first + n_shown].tolist()]
        more = first + n_shown < expected.shape[dim]
        return " ".join(["…"] * (first > 0) + parts + ["…"] * more)

    where = "[" + ", ".join(":" if axis == dim else str(i) for axis, i in enumerate(index)) + "]"
    return *_told_apart(text, expected, got), where if expected.ndim > 1 else ""


def worst_index(expected: Tensor, got: Tensor) -> tuple[int, ...]:
    """Return the index of the largest difference between two tensors of one shape."""
    gap = (expected.double() - got.double()).abs()
    gap = gap.nan_to_num(nan=math.inf, posinf=math.inf).masked_fill(expected == got, 0)
    gap = gap.masked_fill(expected.isnan() & got.isnan(), 0)
    flat, index = int(gap.argmax()), []
    for size in reversed(gap.shape):  # torch.unravel_index would import sympy, which takes longer than a check
        flat, place = divmod(flat, size)
        index.insert(0, place)
    return tuple(index)


def _told_apart(text: Callable[[Any, int], str], a: Any, b: Any) -> tuple[str, str]:
    """Write two values with as few digits, from three, as show that they differ."""
    for digits in (3, 5, 7, 9, 17):
        texts = text(a, digits), text(b, digits)
        if texts[0] != texts[1]:
            break
    return texts


def number(value: float | int | bool, digits: int = 3) -> str:
    """Write a number with three significant digits, or so many, without the noise of the last ones."""
    if not isinstance(value, float) or math.isnan(value) or math.isinf(value):
        return str(value)
    return f"{0.0 if abs(value) < 1e-12 and digits == 3 else value:.{digits}g}"


def named_shape(tensor: Tensor, axes: str = "") -> str:
    """Write a shape with the names of its axes: (B=2, T=3)."""
    names = axes.split()
    if len(names) != tensor.ndim:
        return str(tuple(tensor.shape))
    return "(" + ", ".join(f"{name}={size}" for name, size in zip(names, tensor.shape, strict=True)) + ")"


def kind(value: Any, axes: str = "") -> str:
    """Name what a value is: a tensor of a shape, or its type."""
    if isinstance(value, Tensor):
        return f"a tensor {named_shape(value, axes)}"
    if isinstance(value, str):
        return f"the text {value!r}" if len(value) <= 40 else "a text"
    return "None" if value is None else f"a value of type {type(value).__name__}"


def short(value: Any, digits: int = 3, limit: int = 72) -> str:
    """Write a value in one line: small tensors in full, large ones by their shape."""
    if isinstance(value, Tensor):
        return _nested(value.tolist(), digits) if value.numel() <= 12 else kind(value)
    if is_dataclass(value) and not isinstance(value, type | Rough):
        return _settings(value)
    text = number(value, digits) if isinstance(value, float) else repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _settings(record: Any) -> str:
    """Write a dataclass with the fields that are neither at their defaults nor follow from the others."""
    chosen = {f.name: getattr(record, f.name) for f in fields(record) if getattr(record, f.name) != f.default}
    for name in list(chosen):
        others = {key: value for key, value in chosen.items() if key != name}
        try:
            chosen = others if type(record)(**others) == record else chosen
        except (TypeError, ValueError):
            continue  # without this field there is no such record
    return f"{type(record).__name__}({', '.join(f'{name}={value!r}' for name, value in chosen.items())})"


def _nested(value: Any, digits: int) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_nested(each, digits) for each in value) + "]"
    return number(value, digits)
