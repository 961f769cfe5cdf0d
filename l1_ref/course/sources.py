"""From a notebook's one source, in percent format, to the notebook: cells, tags and ids, and the rules they keep."""

import ast
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

from l1_ref.checks import EXERCISES

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent
# In a checkout the sources lie beside the package; in an installed package, inside it.
SOURCES = PACKAGE / "_notebooks" if (PACKAGE / "_notebooks").is_dir() else ROOT / "notebooks" / "src"
MAX_CELL_LINES = 20
MAX_WORDS = 2500
DIFFICULTIES = ("easy", "medium", "hard")
_KEPT = ("name", "points", "tags", "difficulty", "minutes")
_KERNEL = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def names() -> list[str]:
    """Return the names of all notebooks, in the order of the course, such as "00_start_here"."""
    return sorted(path.stem for path in SOURCES.glob("[0-9][0-9]_*.py"))


def tags(cell: NotebookNode) -> list[str]:
    """Return a cell's tags."""
    return list(cell.metadata.get("tags", []))


CHECK = "-check"  # behind an exercise's name it is the name of its check


def grade_id(cell: NotebookNode) -> str:
    """Return the name by which nbgrader knows a cell; "" where it knows it not."""
    return cell.metadata.get("nbgrader", {}).get("grade_id") or ""


def load(name: str) -> NotebookNode:
    """Turn a source into a notebook without outputs: the complete edition, not yet executed.

    Args:
        name: Such as "00_start_here".

    Raises:
        ValueError: There is no such notebook.
    """
    path = SOURCES / f"{name}.py"
    if not path.is_file():
        raise ValueError(f"there is no notebook {name!r}; there are: {', '.join(names())}")
    return parse(path.read_text(encoding="utf-8"))


def parse(text: str) -> NotebookNode:
    """Turn a source's text into a notebook, with an id for each cell that depends on its name or content alone.

    Args:
        text: In jupytext's percent format.
    """
    read = jupytext.reads(text, fmt="py:percent")
    notebook = nbformat.v4.new_notebook(metadata=_KERNEL, nbformat_minor=5)
    taken: set[str] = set()
    exercise: NotebookNode | None = None
    for cell in read.cells:
        make = nbformat.v4.new_code_cell if cell.cell_type == "code" else nbformat.v4.new_markdown_cell
        fresh = make(cell.source, metadata={key: cell.metadata[key] for key in _KEPT if key in cell.metadata})
        # A check bears the name of the exercise above it, so that no source has to say it twice.
        if "check" in tags(fresh) and exercise is not None:
            fresh.metadata["name"] = f"{exercise.metadata.get('name')}{CHECK}"
            fresh.metadata["points"] = exercise.metadata.get("points", 1)
        exercise = fresh if "exercise" in tags(fresh) else None
        for each in (*_guide(exercise), fresh):
            each["id"] = _identity(each, taken)
            taken.add(each["id"])
            notebook.cells.append(each)
    return notebook


def _guide(exercise: NotebookNode | None) -> Iterator[NotebookNode]:
    """Yield what stands above an exercise: how hard it is, how long it takes, and its hints, each folded away."""
    if exercise is None or "name" not in exercise.metadata:
        return
    name, points = exercise.metadata["name"], exercise.metadata.get("points", 1)
    facts = f"Difficulty: {exercise.metadata.get('difficulty')}. About {exercise.metadata.get('minutes')} minutes."
    parts = [f"{facts} {points} point{'s' if points != 1 else ''}."]
    # The hints of the check are the one place where they are written.
    hints = EXERCISES[name].hints if name in EXERCISES else ()
    parts += [f"<details><summary>Hint {n}</summary>\n\n{hint}\n\n</details>" for n, hint in enumerate(hints, start=1)]
    yield nbformat.v4.new_markdown_cell("\n\n".join(parts), metadata={"name": f"{name}-guide", "tags": ["guide"]})


def content_id(cell: NotebookNode) -> str:
    """Return the id that a cell without a name has: it depends on its kind and its text alone.

    Args:
        cell: Of any notebook.
    """
    return hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]


def _identity(cell: NotebookNode, taken: set[str]) -> str:
    wanted = cell.metadata.get("name") or content_id(cell)
    candidates = (wanted if n == 1 else f"{wanted}-{n}" for n in range(1, len(taken) + 2))
    return next(each for each in candidates if each not in taken)


def broken_rules(notebook: NotebookNode) -> list[str]:
    """Return what a notebook does against the rules of the course, one sentence each.

    Args:
        notebook: From `load`, or executed.
    """
    prose = [cell for cell in notebook.cells if cell.cell_type == "markdown" and "guide" not in tags(cell)]
    n_words = sum(len(cell.source.split()) for cell in prose)
    found = [f"the text must stay within {MAX_WORDS} words, got {n_words}"] if n_words > MAX_WORDS else []
    for cell, following in zip(notebook.cells, [*notebook.cells[1:], None], strict=True):
        found += [f"cell {cell['id']}: {problem}" for problem in _problems(cell, following)]
    return found


def _problems(cell: NotebookNode, following: NotebookNode | None) -> Iterator[str]:
    if cell.cell_type == "markdown":
        if re.search(r"!\[\s*\]\(", cell.source):
            yield "a picture has no alt text"
        return
    n_lines = len(cell.source.splitlines())
    if n_lines > MAX_CELL_LINES:
        yield f"a cell must have at most {MAX_CELL_LINES} lines, got {n_lines}"
    if "exercise" in tags(cell):
        if "name" not in cell.metadata:
            yield "an exercise must have a name"
        if cell.metadata.get("difficulty") not in DIFFICULTIES or not isinstance(cell.metadata.get("minutes"), int):
            yield f"an exercise must have a difficulty ({', '.join(DIFFICULTIES)}) and minutes (a whole number)"
        if following is None or "check" not in tags(following):
            yield "an exercise must be followed directly by its check"
    elif "check" in tags(cell) and not cell.metadata.get("name", "").endswith(CHECK):
        yield "a check must stand directly below an exercise"
    if any(_shows_without_alt(node) for node in ast.walk(ast.parse(cell.source))):
        yield "show needs alt=, a text that says what the figure shows"
    yield from _output_problems(cell)


def _shows_without_alt(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call) or getattr(node.func, "attr", getattr(node.func, "id", "")) != "show":
        return False
    texts = [keyword.value for keyword in node.keywords if keyword.arg == "alt"]
    return not texts or (isinstance(texts[0], ast.Constant) and not str(texts[0].value).strip())


def _output_problems(cell: NotebookNode) -> Iterator[str]:
    for output in cell.get("outputs", []):
        if output.output_type == "error" and "raises-exception" not in tags(cell):
            yield f"it ends in {output.ename}: {output.evalue}"
        if output.output_type == "stream" and output.name == "stderr":
            yield f"it writes to stderr: {output.text.strip()[:200]}"
        data = output.get("data", {})
        pictures = re.findall(r"<img\b[^>]*>", "".join(data.get("text/html", "")))
        if any(not re.search(r"""alt=(['"])(?!\1)""", picture) for picture in pictures) or (
            not pictures and any(kind.startswith("image/") for kind in data)
        ):
            yield "a figure is shown without alt text"
