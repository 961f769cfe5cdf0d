"""What is not allowed in a graded notebook: read before it runs, and looked for again in what came out.

`RefuseCheats` reads a submission's code and puts a refusal in place of the checks that it concerns; nbgrader runs it
after the locked cells have been put back. `require_verdicts` looks at what came out: a check passes by a verdict with
the grader's seal, not by silence, and not by what a cell prints. A false accusation is worse than a cheat that is
missed: what an honest student might write is let pass here, and left to the guard in the kernel,
`l1_ref.checks.integrity`, which sees what really runs. There stands too what nobody here can hold.
"""

import ast
import json
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass

import nbformat
from nbformat import NotebookNode
from nbgrader.preprocessors import NbGraderPreprocessor

from l1_ref.checks import EXERCISES, integrity
from l1_ref.checks.relied_on import SHOWING
from l1_ref.course.reading import (
    MAIN,
    SHELL,
    UNKNOWN,
    Dotted,
    Names,
    bound,
    folded,
    has,
    imported,
    objects,
    parsed,
    scoped,
)
from l1_ref.course.sources import CHECK, grade_id

# What no answer needs: it would show it the course's own, or run code that nobody could read beforehand.
_TOOLS = {
    "builtins": {"exec", "eval", "compile", "__import__", "globals"},
    "importlib": None,
    "inspect": {"getsource", "getsourcelines", "getsourcefile", "getfile", "getmodule", "stack", "currentframe"},
    "gc": {"get_objects", "get_referrers", "get_referents"},
    "ctypes": None,
    "subprocess": None,
    "get_ipython": None,
    "sys": {"modules", "_getframe", "setprofile", "settrace", "displayhook"},
    "os": {"environ", "system", "popen", "_exit", "abort", "kill"},
}
_INNER = set("f_back f_locals f_globals tb_frame gi_frame __globals__ __code__ __closure__ __subclasses__".split())
_PLACES = {"__file__", "__path__", "__spec__", "__loader__"}
_LIARS = {"__torch_function__", "__instancecheck__", "__subclasscheck__"}
_PATCHED = {"l1_ref", "torch", "builtins", "math"}
_SYSTEM = {"modules", "displayhook", "excepthook", "meta_path", "path_hooks", "_getframe"}
_OF_SHELL = set(
    "set_custom_exc custom_exceptions run_cell run_cell_async run_code ex ev push events ast_transformers displayhook "
    "input_transformers_post input_transformers_cleanup showtraceback _showtraceback display_pub kernel".split()
)
_ALTERS = {"update", "pop", "clear", "setdefault", "popitem", "__setitem__", "__delitem__"}
_ENVIRONMENT = re.compile(r"L1_GRADED|L1_VERDICTS|gradebook\.db|(^|[/\\])progress\.json$")
_ON_FILES = re.compile(
    r"L1_GRADED|L1_VERDICTS|gradebook|progress\.json|\b(cp|mv|rm|sed|tee|cat|patch)\b.*l1_ref|>\s*\S*l1_ref"
)


@dataclass(frozen=True)
class Finding:
    """A rule that a submission breaks.

    Args:
        rule: What it does, in words.
        cell: The number of the cell, from 0.
        line: Of that cell, from 1.
        exercise: Which answer it concerns; None where it concerns every check behind it.
    """

    rule: str
    cell: int
    line: int
    exercise: str | None = None


def look(notebook: NotebookNode, locked: Collection[str] = ()) -> list[Finding]:
    """Read a submission's code for what is not allowed; nothing is run.

    Args:
        notebook: As handed in, with the locked cells put back.
        locked: grade_ids of cells that are the teacher's own, which are not read.
    """
    cells = [(i, cell) for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    sources = {i: cell.source for i, cell in cells if not (_is_locked(cell) and grade_id(cell) in locked)}
    trees = {i: tree for i, source in sources.items() if (tree := parsed(source)) is not None}
    names = Names(trees)
    found = [each for i, tree in trees.items() for each in _tampering(names, i, tree)]
    for i, name in _checks(notebook):
        found += _borrowing(names, name, i)
    return found


def refuse(notebook: NotebookNode, findings: list[Finding]) -> NotebookNode:
    """Put refusals in place of the checks that findings concern, and take what tampers with the grader out of the run.

    Args:
        notebook: Changed in place.
        findings: From `look`.

    Returns:
        The same notebook.
    """
    told = {each: _told(notebook, each) for each in findings}
    for i, name in _checks(notebook):
        reasons = [told[f] for f in findings if f.exercise == name or (f.exercise is None and f.cell <= i)]
        if reasons:
            code = f"from l1_ref.checks import integrity\n\nintegrity.refuse({name!r}, {reasons[0]!r})"
            notebook.cells[i].source = code
    for i in {each.cell for each in findings if each.exercise is None}:
        reason = next(told[each] for each in findings if each.exercise is None and each.cell == i)
        kept = "".join(f"# {line}\n" for line in notebook.cells[i].source.splitlines())
        notebook.cells[i].source = f"# Not run by the grader: {reason}\n{kept}"
    return notebook


class RefuseCheats(NbGraderPreprocessor):
    """Refuse answers that are not the student's own; runs after OverwriteCells and before Execute."""

    def preprocess(self, nb: NotebookNode, resources: dict) -> tuple[NotebookNode, dict]:
        """Read the notebook and put the refusals in.

        Args:
            nb: The submission.
            resources: nbgrader's; its gradebook tells which cells are the teacher's.
        """
        return refuse(nb, look(nb, _teachers(resources.get("nbgrader", {})))), resources


def require_verdicts(notebook: NotebookNode, verdicts: bytes, key: str) -> NotebookNode:
    """Fail each check that shows no error, and of which no sealed verdict says that the answer is right.

    nbgrader gives full points to a cell that never ran, and the points that a number says which the cell shows.

    Args:
        notebook: The submission, run; changed in place.
        verdicts: What its checks told, one line of JSON each; the student's code may have written there too.
        key: What its checks sealed their verdicts with.

    Returns:
        The same notebook.
    """
    right = set(_sealed(verdicts, key))
    for i, name in _checks(notebook):
        cell = notebook.cells[i]
        shows_number = any(each.output_type == "execute_result" for each in cell.outputs)
        failed = any(each.output_type == "error" for each in cell.outputs)
        if shows_number or not (failed or name in right):
            what = "it shows a value of its own" if shows_number else "it did not run to its end, or was replaced"
            text = integrity.refusal(name, f"the course's own check did not find the answer right: {what}")
            output = nbformat.v4.new_output("error", ename="CheckFailed", evalue=text, traceback=[text])
            cell.outputs = [output, *(each for each in cell.outputs if each.output_type != "execute_result")]
    return notebook


def _sealed(verdicts: bytes, key: str) -> Iterator[str]:
    """Yield the exercises of which the course's own check said, in a run with this key, that the answer is right."""
    for line in verdicts.splitlines():
        with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            verdict = json.loads(line)
            if verdict["state"] == "solved" and verdict["seal"] == integrity.seal(key, verdict["exercise"]):
                yield verdict["exercise"]


def _is_locked(cell: NotebookNode) -> bool:
    return bool(cell.metadata.get("nbgrader", {}).get("locked"))


def _checks(notebook: NotebookNode) -> Iterator[tuple[int, str]]:
    for i, cell in enumerate(notebook.cells):
        name = grade_id(cell).removesuffix(CHECK)
        if cell.cell_type == "code" and grade_id(cell) == name + CHECK and name in EXERCISES:
            yield i, name


def _teachers(nbgrader: dict) -> set[str]:
    """Return the grade_ids of the cells that stand in the gradebook as locked."""
    if not {"db_url", "notebook", "assignment"} <= nbgrader.keys():
        return set()
    from nbgrader.api import Gradebook

    with Gradebook(nbgrader["db_url"]) as gradebook:
        cells = gradebook.find_notebook(nbgrader["notebook"], nbgrader["assignment"]).source_cells
        return {cell.name for cell in cells if cell.locked}


def _told(notebook: NotebookNode, finding: Finding) -> str:
    lines = notebook.cells[finding.cell].source.splitlines()
    text = lines[finding.line - 1].strip() if finding.line <= len(lines) else ""
    return f"{finding.rule} (code cell {_number(notebook, finding.cell)}, line {finding.line}: {text[:100]})"


def _number(notebook: NotebookNode, index: int) -> int:
    return sum(cell.cell_type == "code" for cell in notebook.cells[: index + 1])


# What an answer may not be made of.


def _borrowing(names: Names, name: str, check: int) -> Iterator[Finding]:
    seen = set()
    for cell, node, local in names.answer(name, check):
        rule = _borrowed(names, node, local, name)
        if rule and rule not in seen:
            seen.add(rule)
            yield Finding(rule, cell, getattr(node, "lineno", 1), name)


def _borrowed(names: Names, node: ast.AST, local: frozenset[str], name: str) -> str | None:
    paths = [path for _, path in imported(node)] + [names.resolve(node, local)]
    for path in filter(None, paths):
        if path[0] == "l1_ref" and (rule := _of_the_course(path, name)):
            return rule
        allowed = _TOOLS.get(path[0], set())
        if path[0] in _TOOLS and (allowed is None or (len(path) > 1 and path[1] in allowed)):
            return f"the answer uses {_written(path)}, which no answer needs"
    if isinstance(node, ast.Attribute) and (node.attr in _INNER or _stores(node, "__class__")):
        return f"the answer uses {node.attr}, which no answer needs"
    if isinstance(node, ast.FunctionDef) and (node.name in _LIARS or _always_equal(node)):
        return f"the answer defines {node.name}, so that its values answer for themselves"
    return None


def _of_the_course(path: Dotted, name: str) -> str | None:
    if any(thing is EXERCISES[name].reference for thing in objects(path)):
        return f"the answer is made of the course's own {name} ({_written(path)})"
    inner = [part for part in path if part.startswith("_") and not part.endswith("__")]
    if UNKNOWN in path or "__dict__" in path:
        return "the answer looks for a part of the course by a name that is computed"
    of_checks = path[1:2] == ("checks",) and (
        path[2:3] and path[2] not in (*EXERCISES, "hint", "progress", "give", "exercise")
    )
    if inner or of_checks or path[-1] in ("mistakes", "probes") or _PLACES & set(path):
        return f"the answer takes from the course's inner parts ({_written(path)})"
    return None


def _written(path: Dotted) -> str:
    return ".".join(path).removeprefix("builtins.").replace(".()", "()").replace("l1_ref.checks.", "checks.")


def _stores(node: ast.Attribute, attribute: str) -> bool:
    return node.attr == attribute and isinstance(node.ctx, ast.Store)


def _always_equal(function: ast.FunctionDef) -> bool:
    last = function.body[-1]
    constant = isinstance(last, ast.Return) and isinstance(last.value, ast.Constant) and last.value.value is True
    return function.name == "__eq__" and len(function.body) == 1 and constant


# What no cell may do.


def _tampering(names: Names, cell: int, tree: ast.Module) -> Iterator[Finding]:
    for name, node, path in bound(tree.body):
        if name == "checks" and (path or names.resolve(node)) != ("l1_ref", "checks"):
            line = next((each.lineno for each in ast.walk(tree) if _binds_checks(each)), 1)
            yield Finding("the cell puts something else in the place of checks", cell, line)
    told = (ast.Attribute, ast.Subscript, ast.Call, ast.Global, ast.Constant)
    for node, local in scoped(tree):
        if not isinstance(node, told):
            continue
        rule = _altered(names, node, local) or _called(names, node, local) or _named(names, node, local)
        if rule:
            yield Finding(rule, cell, getattr(node, "lineno", 1))


def _binds_checks(node: ast.AST) -> bool:
    stored = isinstance(node, ast.Name) and node.id == "checks" and isinstance(node.ctx, ast.Store | ast.Del)
    defined = getattr(node, "name", None) == "checks" and isinstance(node, ast.FunctionDef | ast.ClassDef)
    return stored or defined or "checks" in [name for name, _ in imported(node)]


def _is_protected(path: Dotted | None, attribute: str | None) -> bool:
    """Say whether an attribute belongs to the course, torch, Python or the shell, and is no mere setting of theirs."""
    if not path:
        return False
    settings = path[0] == "torch" and ({"backends", "config"} & set(path) or attribute in SHOWING)
    is_new = attribute is not None and not has(path, attribute)  # then nobody relies on it
    at_home = path[0] in _PATCHED and not settings and not is_new
    return (
        at_home
        or path[:2] == SHELL
        or (path == ("sys",) and attribute in _SYSTEM)
        or (path == MAIN and attribute == "checks")
    )


def _is_protected_table(path: Dotted | None, key: str | None) -> bool:
    if not path:
        return False
    if path == ("sys", "modules"):
        return key is None or key.split(".")[0] in {*_PATCHED, "sys"}
    if path[-1] in ("__dict__", "EXERCISES"):
        return _is_protected(path[:-1], key)
    return path == MAIN and key == "checks"


def _altered(names: Names, node: ast.AST, local: frozenset[str]) -> str | None:
    """Say what an assignment or a deletion changes that is not the student's."""
    if isinstance(node, ast.Global) and "checks" in node.names:
        return "the cell puts something else in the place of checks"
    if not isinstance(getattr(node, "ctx", None), ast.Store | ast.Del) or isinstance(node, ast.Name):
        return None
    base = names.resolve(getattr(node, "value", None), local)
    if isinstance(node, ast.Attribute) and _is_protected(base, node.attr):
        return f"the cell replaces {_written((*base, node.attr))}"
    if isinstance(node, ast.Subscript) and _is_protected_table(base, folded(node.slice)):
        return f"the cell replaces a part of {_written(base)}"
    return None


def _called(names: Names, call: ast.AST, local: frozenset[str]) -> str | None:
    """Say what a call changes that is not the student's, or what it reaches for."""
    if not isinstance(call, ast.Call):
        return None
    path, called = names.resolve(call.func, local) or (), getattr(call.func, "attr", getattr(call.func, "id", ""))
    targets, texts = [names.resolve(each, local) for each in call.args], [folded(each) for each in call.args]
    key = texts[1] if len(texts) > 1 else None
    if called in ("setattr", "delattr", "__setattr__", "__delattr__", "object", "reload") and targets:
        mocked = called != "object" or "mock" in path or "patch" in path
        if mocked and _is_protected(targets[0], key):
            return f"the cell replaces {_written((*targets[0], key or UNKNOWN))}"
    if called in ("patch", "setattr", "multiple") and texts and (texts[0] or "").split(".")[0] in {*_PATCHED, "sys"}:
        return f"the cell replaces {texts[0]}"
    if called in _ALTERS and _is_protected_table(path[:-1], texts[0] if texts else None):
        return f"the cell replaces a part of {_written(path[:-1])}"
    if path in (("sys", "setprofile"), ("sys", "settrace"), ("threading", "setprofile")):
        return f"the cell calls {_written(path)}, which the grader needs for itself"
    text = (
        " ".join(filter(None, texts)) if called in ("system", "getoutput", "run_cell_magic", "run_line_magic") else ""
    )
    return "a command of the cell reaches for the course's or the grader's files" if _ON_FILES.search(text) else None


def _named(names: Names, node: ast.AST, local: frozenset[str]) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and _ENVIRONMENT.search(node.value):
        return f"the cell reaches for what the grader keeps ({_ENVIRONMENT.search(node.value)[0]})"
    if not isinstance(node, ast.Attribute):
        return None
    path = names.resolve(node, local) or ()
    if path[:2] == SHELL and path[2:3] and path[2] in _OF_SHELL:
        return f"the cell reaches into the notebook's shell ({_written(path[:3])})"
    return f"the cell writes verdicts ({_written(path)})" if path[:3] == ("l1_ref", "checks", "marks") else None
