"""What a cell of code defines, and whether it fits the blank that an exercise has now."""

import ast
import re


def parses(source: str) -> bool:
    """Tell whether a text is Python, and does something.

    Args:
        source: Of a cell.
    """
    try:
        return bool(ast.parse(source).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def defines(source: str, name: str) -> bool:
    """Tell whether a cell defines or assigns a name; it need not be whole Python.

    Args:
        source: Of the cell.
        name: Of an exercise.
    """
    name = re.escape(name)
    return re.search(rf"^(?:(?:async\s+)?def|class)\s+{name}\b|^{name}\s*=", source, re.MULTILINE) is not None


def clashes(code: str, old: str | None, new: str) -> bool:
    """Tell whether a stub's signature changed, and the reader's code does not have the new one.

    Args:
        code: The reader's.
        old: The stub that the reader filled; None where nobody knows.
        new: The new stub.
    """
    mine, before, wanted = _interface(code), _interface(old) if old else None, _interface(new) or {}
    if before == wanted:
        return False
    if mine is None:
        return before is not None
    for name, signature in wanted.items():
        # What the reader lacks is new to the course, or `give` stands in for it.
        is_new = name.split(".")[0] in mine if before is None else name not in before
        if mine[name] != signature if name in mine else is_new:
            return True
    return False


def _interface(source: str) -> dict[str, str] | None:
    """Return the arguments of each function and method of a cell, without annotations; None where it is no Python."""
    if not parses(source):
        return None
    found = {}
    for node in ast.parse(source).body:
        members = [("", node)]
        if isinstance(node, ast.ClassDef):
            found[node.name] = ", ".join(map(ast.unparse, node.bases))
            members = [(f"{node.name}.", member) for member in node.body]
        for prefix, member in members:
            if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef):
                for argument in ast.walk(member.args):
                    if isinstance(argument, ast.arg):
                        argument.annotation = None
                found[prefix + member.name] = ast.unparse(member.args)
    return found
