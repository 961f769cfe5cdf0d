"""Graphs that torch made of the course's code: what an answer leads to, since such a graph runs without a frame."""

import gc
import re
import sys
import types
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch

from l1_ref.checks import messages


def borrowed_graph(candidate: Any, name: str, codes: Iterable[types.CodeType]) -> str | None:
    """Say whether a candidate leads to a graph that torch made of the course's version; None where it does not.

    Args:
        candidate: The student's function or class.
        name: The exercise.
        codes: The code of the course's version.
    """
    for each in _reached(candidate):
        if isinstance(each, torch.fx.GraphModule):
            return "it runs a graph of torch.fx, of which nobody can see whose code it was"
        if isinstance(each, torch.jit.ScriptFunction | torch.jit.ScriptModule):
            graph = each.inlined_graph
            text = "\n".join([str(graph), *(node.sourceRange() for node in graph.nodes())])
            if any(_stands_in(text, code) for code in codes):
                return f"it runs a graph that torch made of the course's own {name}"
    return None


@lru_cache(maxsize=4096)
def is_readers_file(filename: str) -> bool:
    """Say whether code of this file is the student's.

    Args:
        filename: As the code has it.
    """
    return not filename.startswith("<frozen") and messages.is_the_readers(filename)


def _stands_in(graph: str, code: types.CodeType) -> bool:
    """Say whether a graph names a line of some code as its origin."""
    lines = re.findall(re.escape(code.co_filename) + r"[:(](\d+)", graph)
    return not {line for *_, line in code.co_lines() if line}.isdisjoint(map(int, lines))


def _reached(candidate: Any, most: int = 1000) -> list[Any]:
    """Return what a candidate of the student's is made of: what its code names, and the attributes of that."""
    found, seen = [candidate], {id(candidate)}
    for thing in found:
        if isinstance(thing, types.FunctionType):
            parts = [vars(thing), *(_named_in(thing) if is_readers_file(thing.__code__.co_filename) else ())]
        elif isinstance(thing, types.ModuleType | type):
            home = sys.modules.get(getattr(thing, "__module__", thing.__name__))
            is_own = home is sys.modules["__main__"] or is_readers_file(getattr(home, "__file__", None) or "<frozen")
            parts = list(vars(thing).values()) if is_own else []
        else:
            parts = gc.get_referents(thing)
        for part in parts[: most - len(found)]:
            if id(part) not in seen:
                seen.add(id(part))
                found.append(part)
    return found


def _named_in(function: types.FunctionType) -> list[Any]:
    """Return the notebook's values that a function's code names, what it closes over, and its defaults."""
    codes, shared = [function.__code__], function.__globals__
    for code in codes:
        codes += [each for each in code.co_consts if isinstance(each, types.CodeType)]
    named = [shared[name] for code in codes for name in code.co_names if name in shared]
    return [*named, function.__closure__, function.__defaults__, function.__kwdefaults__]
