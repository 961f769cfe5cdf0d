"""Read a notebook's code without running it: what its names stand for, and what an answer is made of."""

import ast
import builtins
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

Dotted = tuple[str, ...]
UNKNOWN = "?"
MAIN, SHELL = ("__main__",), ("get_ipython", "()")
_TIMED = {"time", "timeit", "capture", "prun"}  # magics whose text is Python
_BLOCKS = ast.stmt | ast.excepthandler | ast.match_case
_CERTAIN = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign | ast.Import | ast.ImportFrom
_SCOPES = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda


class Binding(NamedTuple):
    """One place where a name of the notebook's own gets its meaning.

    Args:
        at: The number of the cell, and of the statement in it.
        node: The definition, or the value assigned; None where it is neither.
        path: What is imported, in full; None where nothing is.
        certain: Whether it happens whenever the cell runs, so that no earlier meaning is left.
    """

    at: tuple[int, int]
    node: ast.AST | None
    path: Dotted | None
    certain: bool


def parsed(source: str) -> ast.Module | None:
    """Return a cell's syntax tree, with magics turned into calls; None where it is no Python and could not run.

    Args:
        source: Of the cell.
    """
    try:
        return _Inline().visit(ast.parse(source))
    except (SyntaxError, ValueError, RecursionError):
        pass  # magics, perhaps
    from IPython.core.inputtransformer2 import TransformerManager

    try:
        return _Inline().visit(ast.parse(TransformerManager().transform_cell(source)))
    except (SyntaxError, ValueError, RecursionError):
        return None


class _Inline(ast.NodeTransformer):
    """Put code that stands there as text in place: the body of %%time, the line behind %time, and exec of a text."""

    def visit_Expr(self, node: ast.Expr) -> Any:
        text = self._code(node.value)
        inner = parsed(text) if text is not None else None
        if inner is None:
            return node
        for each in (part for statement in inner.body for part in ast.walk(statement)):
            if hasattr(each, "lineno"):
                each.lineno += node.lineno - 1
        return inner.body or node

    def _code(self, call: ast.AST) -> str | None:
        if not isinstance(call, ast.Call) or not call.args:
            return None
        name, texts = getattr(call.func, "attr", getattr(call.func, "id", "")), [folded(each) for each in call.args]
        if name in ("run_cell_magic", "run_line_magic") and texts[0] in _TIMED:
            return ("\n" if name == "run_cell_magic" else "") + (texts[-1] or "")
        return texts[0] if name == "exec" and len(texts) == 1 else None


def folded(node: ast.AST | None) -> str | None:
    """Return the text that an expression of constants makes; None where it is no such expression."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    parts: list[str | None] = [None]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = [folded(node.left), folded(node.right)]
    elif isinstance(node, ast.JoinedStr):
        parts = [
            folded(getattr(each, "value", None) if isinstance(each, ast.FormattedValue) else each)
            for each in node.values
        ]
    elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "join" and folded(node.func.value) == "":
        parts = [folded(each) for each in getattr(node.args[0], "elts", [None])] if node.args else parts
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice) and ast.unparse(node.slice) == "::-1":
        text = folded(node.value)
        parts = [text and text[::-1]]
    return None if None in parts else "".join(parts)


class Names:
    """What the names of a notebook stand for.

    Args:
        trees: The syntax tree of each code cell, by the cell's number.
    """

    def __init__(self, trees: dict[int, ast.Module]) -> None:
        self.bindings: dict[str, list[Binding]] = {}
        self._imported: dict[str, set[Dotted]] = {}
        for cell, tree in trees.items():
            for i, statement in enumerate(tree.body):
                for name, *meaning in bound([statement]):
                    binding = Binding((cell, i), *meaning, isinstance(statement, _CERTAIN))
                    self.bindings.setdefault(name, []).append(binding)
            for each in ast.walk(tree):
                for name, path in imported(each):
                    self._imported.setdefault(name, set()).add(path)
        self._resolving: set[str] = set()
        self._known: dict[str, Dotted | None] = {}

    def resolve(self, node: ast.AST | None, local: frozenset[str] = frozenset()) -> Dotted | None:
        """Return what an expression stands for as a dotted name, such as ("l1_ref", "softmax"); None if unknown.

        Args:
            node: The expression.
            local: Names that mean something else here, such as a function's arguments.
        """
        if isinstance(node, ast.Name):
            return None if node.id in local else self._of_name(node.id)
        if isinstance(node, ast.Attribute):
            base = self.resolve(node.value, local)
            if base == SHELL and node.attr in ("user_ns", "user_global_ns", "user_module"):
                return MAIN
            return base and (*base, node.attr)
        if isinstance(node, ast.Subscript):
            return _item(self.resolve(node.value, local), folded(node.slice) or UNKNOWN)
        return self._of_call(node, local) if isinstance(node, ast.Call) else None

    def _of_name(self, name: str) -> Dotted | None:
        if name in self._known or name in self._resolving:
            return self._known.get(name)
        found = self._meaning(name)
        if not self._resolving:  # inside a circle it may be another
            self._known[name] = found
        return found

    def _meaning(self, name: str) -> Dotted | None:
        here = self.bindings.get(name, [])
        self._resolving.add(name)
        try:
            meanings = {each.path or self.resolve(each.node) for each in here} | self._imported.get(name, set())
        finally:
            self._resolving.discard(name)
        if len(meanings) == 1:
            return next(iter(meanings))
        if meanings or (not hasattr(builtins, name) and name != "get_ipython"):
            return None
        return ("builtins",) if name == "__builtins__" else ("builtins", name)

    def _of_call(self, call: ast.Call, local: frozenset[str]) -> Dotted | None:
        function = self.resolve(call.func, local)
        first = call.args[0] if call.args else None
        text = folded(first) or getattr(first, "id", None) or UNKNOWN
        if function in (("builtins", "__import__"), ("importlib", "import_module")):
            return tuple((folded(first) or UNKNOWN).split("."))
        if function in (("l1_ref", "checks", "give"), ("l1_ref", "checks", "exercise")):
            return ("l1_ref", "checks", text, *(["reference"] if function[-1] == "give" else []))
        if function in (("builtins", "globals"), ("builtins", "vars"), ("builtins", "locals")) and first is None:
            return MAIN
        if function in (("get_ipython",), ("builtins", "get_ipython"), ("IPython", "get_ipython")):
            return SHELL
        base = self.resolve(first, local)
        if function == ("builtins", "getattr") and base and len(call.args) > 1:
            return _item((*base, "__dict__"), folded(call.args[1]) or UNKNOWN)
        ends = {("builtins", "vars"): "__dict__", ("builtins", "type"): "__class__"}
        return (*base, ends[function]) if base and function in ends else None

    def answer(self, name: str, before: int) -> Iterator[tuple[int, ast.AST, frozenset[str]]]:
        """Yield the parts of an answer: its own definition, and those of the notebook's functions that it leads to.

        Args:
            name: Of the exercise.
            before: The number of its check's cell.

        Yields:
            The cell's number, each node that may run when the answer is called, and the names that are local there.
        """
        todo = self._standing(name, (before, 0))
        done: set[int] = set()
        while todo:
            binding = todo.pop()
            if binding.node is None or id(binding.node) in done:
                continue
            done.add(id(binding.node))
            local = shadowed(binding.node)
            when = (before, 0) if isinstance(binding.node, _SCOPES) else binding.at
            for node in self._live(binding.node, local):
                yield binding.at[0], node, local
                if isinstance(node, ast.Name) and node.id not in local:
                    todo += self._standing(node.id, when)

    def _standing(self, name: str, before: tuple[int, int]) -> list[Binding]:
        """Return what a name may mean at a place: its last certain binding, and the uncertain ones behind that."""
        here = [each for each in self.bindings.get(name, []) if each.at < before]
        last = max((i for i, each in enumerate(here) if each.certain), default=0)
        return here[last:]

    def _live(self, node: ast.AST, local: frozenset[str]) -> Iterator[ast.AST]:
        """Yield what runs again later: of a call that was made once, in a cell, only what was handed to it."""
        if isinstance(node, _SCOPES):
            yield from ast.walk(node)
            return
        yield node
        known = isinstance(node, ast.Call) and self.resolve(node, local) is not None
        children = [*node.args, *(each.value for each in node.keywords)] if isinstance(node, ast.Call) else None
        for child in () if known else ast.iter_child_nodes(node) if children is None else children:
            yield from self._live(child, local)


def _item(base: Dotted | None, key: str) -> Dotted | None:
    if base is None:
        return None
    if base == ("sys", "modules"):
        return tuple(key.split("."))
    if base[-1] == "EXERCISES":
        return ("l1_ref", "checks", key)
    if base == MAIN:
        return (*MAIN, key)
    return (*base[:-1], key) if base[-1] == "__dict__" else None


def imported(node: ast.AST) -> Iterator[tuple[str, Dotted]]:
    """Yield the names that an import binds, each with what it stands for."""
    if isinstance(node, ast.Import):
        for each in node.names:
            path = tuple(each.name.split("."))
            yield (each.asname, path) if each.asname else (path[0], path[:1])
    elif isinstance(node, ast.ImportFrom):
        for each in node.names:
            yield each.asname or each.name, (*(node.module or "").split("."), each.name)


def bound(statements: list[ast.stmt]) -> Iterator[tuple[str, ast.AST | None, Dotted | None]]:
    """Yield the names that statements bind where they stand, not inside functions: (name, node, imported path)."""
    for statement in statements:
        yield from ((name, None, path) for name, path in imported(statement))
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield statement.name, statement, None
            continue
        given: dict[int, ast.AST] = {}
        for target in getattr(statement, "targets", [getattr(statement, "target", None)]):
            given |= _given(target, getattr(statement, "value", None))
        for node in _outside(statement):
            if isinstance(node, ast.NamedExpr):
                given |= _given(node.target, node.value)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
                yield node.id, given.get(id(node)), None
        blocks = [getattr(statement, part, []) for part in ("body", "orelse", "finalbody")]
        blocks += [each.body for each in [*getattr(statement, "handlers", []), *getattr(statement, "cases", [])]]
        for block in blocks:
            yield from bound(block)


def _given(target: ast.AST | None, value: ast.AST | None) -> dict[int, ast.AST]:
    """Return the value that each name of an assignment gets, by the name's identity."""
    if isinstance(target, ast.Name) and value is not None:
        return {id(target): value}
    parts, values = getattr(target, "elts", []), getattr(value, "elts", [])
    return {k: v for pair in zip(parts, values, strict=False) for k, v in _given(*pair).items()}


def _outside(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a statement's own nodes: without those in its blocks, and in functions and comprehensions inside it."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, _SCOPES | _BLOCKS | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            yield from _outside(child)


def shadowed(node: ast.AST) -> frozenset[str]:
    """Return the names that mean something else inside a function or class: its arguments and its own variables."""
    if not isinstance(node, _SCOPES):
        return frozenset()
    found, shared, own = set(), set(), getattr(node, "name", None)
    for each in ast.walk(node):
        found |= {each.arg} if isinstance(each, ast.arg) else set()
        found |= {each.id} if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store) else set()
        found |= {each.name} if isinstance(each, ast.FunctionDef | ast.ClassDef) and each.name != own else set()
        shared |= set(each.names) if isinstance(each, ast.Global) else set()
    return frozenset(found - shared)


def scoped(node: ast.AST, local: frozenset[str] = frozenset()) -> Iterator[tuple[ast.AST, frozenset[str]]]:
    """Yield a node and all below it, each with the names that are local there."""
    yield node, local
    inside = local | shadowed(node)
    for child in ast.iter_child_nodes(node):
        yield from scoped(child, inside)


def objects(path: Dotted) -> Iterator[Any]:
    """Yield what the parts of a dotted name stand for, where it is one of the course's own."""
    thing: Any = importlib.import_module("l1_ref") if path[0] == "l1_ref" else None
    for i, part in enumerate(path[1:], start=2):
        if thing is None:
            return
        yield thing
        following = getattr(thing, part, None)
        if following is None and isinstance(thing, ModuleType):
            try:
                following = importlib.import_module(".".join(path[:i]))
            except ImportError:
                return
        thing = following
    if thing is not None:
        yield thing


def has(path: Dotted, attribute: str) -> bool:
    """Say whether what a dotted name stands for has an attribute; where that is not known, it is said to have it.

    Args:
        path: Of a module, or of a part of one.
        attribute: A name in it.
    """
    thing: Any = sys.modules.get(path[0])
    for part in path[1:]:
        thing = getattr(thing, part, None)
    return thing is None or hasattr(thing, attribute)
