"""What is seen of ids that are drawn by chance: which come, how often, by which defaults; for sample and generate."""

import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from l1_ref.checks.compare import Rough, kind
from l1_ref.checks.observe import Observation

COLUMN, TOGETHER = "the output", "rows with the same scores"
ITSELF, ALL_THE_SAME = "each draws for itself", "all draw the same id"
_DEFAULTS = {"temperature": 1.0, "top_k": None, "top_p": None}


def same_ids(a: Any, b: Any) -> bool:
    """Say whether two outputs are tensors of the same ids."""
    return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)


def looks(output: Any) -> Any:
    """Say what an output looks like, without the numbers that chance chose."""
    if isinstance(output, Tensor):
        return f"{output.dtype}, shape {tuple(output.shape)}"
    return kind(output) if output is not None else None


def counted(ids: Sequence[int], n_kinds: int) -> Observation:
    """Say which ids were drawn for each kind of row, and how often; row i is of kind i modulo their number.

    Args:
        ids: What was drawn, one id a row.
        n_kinds: The number of kinds.
    """
    seen: Observation = {}
    for row in range(n_kinds):
        drawn = Counter(ids[row::n_kinds])
        n = drawn.total()
        seen[f"the set of ids drawn for row {row}"] = sorted(drawn)
        # Five standard deviations of the difference of two such shares, so that no right style falls out by chance.
        seen[f"how often, for row {row}"] = {
            f"id {i}": Rough(drawn[i] / n, 5 * (2 * drawn[i] / n * (1 - drawn[i] / n) / n) ** 0.5 + 0.5 / n)
            for i in sorted(drawn)
        }
    return seen


def together(ids: Sequence[int], n_kinds: int, again: Callable[[int], list[int]], n_more: int = 50) -> bool:
    """Say whether rows of one kind always draw the same id, though that id differs from call to call.

    Args:
        ids: What was drawn, one id a row.
        n_kinds: Row i is of kind i modulo this number.
        again: Returns what one row of each kind draws on another seed.
        n_more: Number of further calls.
    """
    if any(len(set(ids[row::n_kinds])) > 1 for row in range(n_kinds)):
        return False
    return any(again(1 + n) != list(ids[:n_kinds]) for n in range(n_more))


def defaults_of(candidate: Callable) -> Observation:
    """Record the defaults of temperature, top_k and top_p, where code has arguments of these names."""
    seen: Observation = {f"the default of {name}": value for name, value in _DEFAULTS.items()}
    try:
        parameters = inspect.signature(candidate).parameters
    except (TypeError, ValueError):
        return seen
    given = {name: parameters[name].default for name in _DEFAULTS if name in parameters}
    # A k of 0 and a p of 1 are other words for None: they cut nothing.
    return seen | {
        f"the default of {name}": None if name != "temperature" and value in (0, 1.0, False) else value
        for name, value in given.items()
        if value is not inspect._empty
    }


def with_defaults(version: Callable, **defaults: Any) -> Callable:
    """Return a version of sample or generate in which settings that are not given have other values.

    Args:
        version: The right one.
        defaults: The other values.
    """
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value)
        for name, value in (_DEFAULTS | defaults).items()
    ]

    def other(*given: Any, **settings: Any) -> Any:
        return version(*given, **settings) if settings or len(given) > 3 else version(*given, **defaults)

    other.__signature__ = inspect.Signature(parameters)
    return other


def other_defaults(version: Callable) -> tuple[Callable, ...]:
    """Return versions with defaults that are common elsewhere.

    Args:
        version: The right one.
    """
    common = [{"temperature": t} for t in (0.0, 0.5, 0.7, 0.8, 0.9)]
    common += [{"top_p": p} for p in (0.9, 0.95)] + [{"top_k": k} for k in (2, 10, 40, 50)]
    common += [{"temperature": 0.8, "top_k": 50, "top_p": 0.9}, {"temperature": 0.8, "top_p": 0.9}]
    return tuple(with_defaults(version, **defaults) for defaults in common)
