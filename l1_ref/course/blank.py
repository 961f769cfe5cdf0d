"""The blank edition of a notebook, made by nbgrader's own preprocessors: bodies become blanks, checks are graded."""

import ast
from copy import deepcopy

from nbformat import NotebookNode

from l1_ref.checks.messages import STUB_MESSAGE
from l1_ref.course.sources import load, tags

_BEGIN, _END = "### BEGIN SOLUTION", "### END SOLUTION"


def instructor(notebook: NotebookNode) -> NotebookNode:
    """Return a copy with nbgrader's metadata and solution regions: what nbgrader calls the source.

    Args:
        notebook: The complete edition.
    """
    copy = deepcopy(notebook)
    for cell in copy.cells:
        name = cell.metadata.get("name")
        if "exercise" in tags(cell):
            cell.source = with_regions(cell.source)
            cell.metadata["nbgrader"] = _grading(name, solution=True)
        elif "check" in tags(cell):
            cell.metadata["nbgrader"] = _grading(name, grade=True, locked=True, points=cell.metadata["points"])
    return copy


def blank(notebook: NotebookNode) -> NotebookNode:
    """Return the reader's edition: no outputs, blanks where the exercises are, checks that cannot be deleted.

    Args:
        notebook: The complete edition.
    """
    from nbgrader.preprocessors import CheckCellMetadata, ClearOutput, ClearSolutions, ComputeChecksums, LockCells

    copy, resources = instructor(notebook), {}
    stub = {"python": f'raise NotImplementedError("{STUB_MESSAGE}")'}
    for step in (ClearSolutions(code_stub=stub), LockCells(), ClearOutput(), CheckCellMetadata(), ComputeChecksums()):
        copy, resources = step.preprocess(copy, resources)
    go_on_behind_blanks(copy)
    return copy


def go_on_behind_blanks(notebook: NotebookNode) -> None:
    """Mark the cells from the first exercise on, in place: JupyterLab's "Run All" goes on behind a blank left open.

    Args:
        notebook: Any edition.
    """
    first = next((i for i, cell in enumerate(notebook.cells) if "exercise" in tags(cell)), len(notebook.cells))
    for cell in notebook.cells[first:]:
        if cell.cell_type == "code" and "raises-exception" not in tags(cell):
            cell.metadata["tags"] = [*tags(cell), "raises-exception"]


def load_blank(name: str) -> NotebookNode:
    """Return the blank edition of one notebook.

    Args:
        name: Such as "00_start_here".
    """
    return blank(load(name))


def _grading(name: str, grade: bool = False, solution: bool = False, locked: bool = False, **points: int) -> dict:
    return {
        "grade": grade,
        "grade_id": name,
        "locked": locked,
        "schema_version": 3,
        "solution": solution,
        "task": False,
        **points,
    }


def with_regions(source: str) -> str:
    """Mark the body of each function and method, after its docstring, as a solution.

    Args:
        source: The code of one exercise.

    Raises:
        ValueError: There is nothing to mark, or a body does not stand on lines of its own.
    """
    lines = source.splitlines()
    # From the last to the first, so that the line numbers of those still to come stay true.
    for function in sorted(_functions(source), key=lambda f: f.lineno, reverse=True):
        documented = ast.get_docstring(function) is not None
        body = function.body[1:] if documented else function.body
        if not body:
            raise ValueError(f"{function.name} has no body to leave blank")
        # The region begins right after the docstring, so that comments above the first statement are inside.
        first = function.body[0].end_lineno if documented else _header_end(lines, function)
        last = body[-1].end_lineno
        if lines[body[0].lineno - 1][: body[0].col_offset].strip():
            raise ValueError(f"the body of {function.name} must stand on lines of its own")
        indent = " " * body[0].col_offset
        lines[first:last] = [indent + _BEGIN, *lines[first:last], indent + _END]
    if len(lines) == len(source.splitlines()):
        raise ValueError(f"an exercise must define a function or a class, got {source.splitlines()[:1]}")
    return "\n".join(lines)


def _functions(source: str) -> list[ast.FunctionDef]:
    found = []
    for node in ast.parse(source).body:
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        found += [member for member in members if isinstance(member, ast.FunctionDef)]
    return found


def _header_end(lines: list[str], function: ast.FunctionDef) -> int:
    """Return the number of the line that ends `def …:`, looking up from the body past comments and empty lines."""
    number = function.body[0].lineno - 1
    while number > function.lineno and (not lines[number - 1].strip() or lines[number - 1].strip().startswith("#")):
        number -= 1
    return number
