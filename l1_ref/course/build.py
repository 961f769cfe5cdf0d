"""Build the complete editions from their sources, and prove that the committed ones match them."""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from l1_ref.course import pages, sources
from l1_ref.files import write_atomic

BUILT = sources.ROOT / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"


def build(names: Iterable[str] | None = None, execute: bool = True, folder: Path = BUILT) -> list[Path]:
    """Build complete editions, with the pages that they link to; nothing is written unless all went well.

    Args:
        names: Which notebooks; all where None.
        execute: Whether to run them, so that the outputs are in place.
        folder: Where they go.

    Returns:
        The notebooks written.

    Raises:
        ValueError: A notebook breaks a rule of the course; the message lists all of them.
        nbclient.exceptions.CellExecutionError: A cell fails.
    """
    built = {}
    for name in names or sources.names():
        notebook = sources.load(name)
        problems = sources.broken_rules(notebook)
        if execute and not problems:
            run(notebook)
            problems = sources.broken_rules(notebook)
        if problems:
            raise ValueError("\n".join(f"{name}: {problem}" for problem in problems))
        built[Path(folder) / f"{name}.ipynb"] = notebook
    for path, notebook in built.items():
        write_atomic(path, as_text(notebook))
    for name, text in pages.texts().items():
        write_atomic(Path(folder) / name, text)
    return list(built)


def as_text(notebook: NotebookNode) -> str:
    """Return a notebook as the text of its file."""
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def run(notebook: NotebookNode, allow_errors: bool = False, folder: Path | None = None) -> NotebookNode:
    """Run a notebook in a fresh kernel, in place, and keep nothing that would change from run to run.

    Args:
        notebook: From `sources.load`, or blank.
        allow_errors: Whether to go on after a cell that fails.
        folder: Where it runs; an empty temporary folder where None, which is no workspace, so no progress is written.
    """
    with tempfile.TemporaryDirectory() as empty:
        runner = client(notebook, folder or Path(empty), timeout=300, coalesce_streams=True, allow_errors=allow_errors)
        runner.execute(env=kernel_environment())
    _tidy(notebook)
    return notebook


def client(
    notebook: NotebookNode, folder: Path, kind: type[NotebookClient] = NotebookClient, **options: Any
) -> NotebookClient:
    """Return what runs a notebook in a fresh kernel of this environment.

    Args:
        notebook: Its outputs are replaced when it runs.
        folder: Where the kernel runs.
        kind: Another class of client.
        **options: Of the client.
    """
    place = {"metadata": {"path": str(folder)}}
    return kind(notebook, kernel_name="python3", record_timing=False, resources=place, **options)


def kernel_environment(**more: str) -> dict[str, str]:
    """Return the environment variables of a kernel: this course's package can be imported, no workspace is named.

    Args:
        **more: Variables to add.
    """
    environment = {key: value for key, value in os.environ.items() if key != "L1_WORKSPACE"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(sources.ROOT), environment.get("PYTHONPATH")]))
    return environment | more


def _tidy(notebook: NotebookNode) -> None:
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            # A slider is nothing without its kernel; the figure above it stays.
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]


def check_built(folder: Path = BUILT) -> list[str]:
    """Compare the committed complete editions with their sources, without running anything.

    Args:
        folder: Where the complete editions are.

    Returns:
        What differs, one sentence each; empty where all is as it should be.
    """
    found = []
    for name in sources.names():
        path = Path(folder) / f"{name}.ipynb"
        if not path.is_file():
            found.append(f"{name}: not built yet")
            continue
        try:
            built = nbformat.read(path, as_version=4)
        except (ValueError, nbformat.ValidationError, AttributeError) as error:
            found.append(f"{name}: {path.name} is no notebook: {error}")
            continue
        problems = _unlike(sources.load(name), built) + sources.broken_rules(built)
        found += [f"{name}: {problem}" for problem in problems]
    for name, text in pages.texts().items():
        page = Path(folder) / name
        if not page.is_file() or page.read_text(encoding="utf-8") != text:
            found.append(f"{name}: it is not that of the source")
    strays = {path.stem for path in Path(folder).glob("*.ipynb")} - set(sources.names())
    return found + [f"{name}: there is no source for it" for name in sorted(strays)]


def _unlike(source: NotebookNode, built: NotebookNode) -> list[str]:
    if [cell["id"] for cell in source.cells] != [cell.get("id") for cell in built.cells]:
        fresh = [cell["id"] for cell in source.cells if cell["id"] not in {each.get("id") for each in built.cells}]
        return [f"the cells are not those of the source (new or changed: {', '.join(fresh) or 'their order'})"]
    found = [] if source.metadata == built.metadata else ["the notebook's metadata is not that of the source"]
    for cell, other in zip(source.cells, built.cells, strict=True):
        found += [
            f"cell {cell['id']}: its {part} is not that of the source"
            for part in ("cell_type", "source", "metadata")
            if cell[part] != other[part]
        ]
    counts = [cell.execution_count for cell in built.cells if cell.cell_type == "code"]
    if counts != list(range(1, len(counts) + 1)):
        found.append("it was not run from top to bottom")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Build, or with --check compare; return the exit status."""
    from nbclient.exceptions import CellExecutionError

    parser = argparse.ArgumentParser(prog="python -m l1_ref.course.build", description=__doc__)
    parser.add_argument("names", nargs="*", help="notebooks, such as 00_start_here; all where none is named")
    parser.add_argument("--check", action="store_true", help="only compare the built notebooks with their sources")
    chosen = parser.parse_args(arguments)
    if chosen.check:
        problems = check_built()
        print("\n".join(problems) or "the built notebooks match their sources")
        return bool(problems)
    try:
        for path in build(chosen.names or None):
            print(f"built {path}")
    except (ValueError, OSError, CellExecutionError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
