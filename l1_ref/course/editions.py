"""What lies behind a workspace's notebooks: the edition handed out, the backups, and changes that are made whole."""

import hashlib
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbformat import NotebookNode

from l1_ref.checks import marks
from l1_ref.course.sources import content_id
from l1_ref.files import read_bytes, read_json, write_atomic, write_json

EDITION = Path(".l1") / "edition"
BACKUPS = "backups"
LOCK = Path(".l1") / "lock"  # held by whoever changes the workspace
_PENDING = Path(".l1") / "pending"
_PLAN = "plan.json"


class Change(NamedTuple):
    """A file of a workspace that is to be replaced, or removed.

    Args:
        path: Within the workspace.
        before: What the file holds now; None where there is none.
        after: What it is to hold; None where it is to go.
    """

    path: Path
    before: bytes | None
    after: bytes | None


def as_notebook(data: bytes) -> NotebookNode:
    """Read a notebook as whatever saved it left it: line ends as here, and an id of its own for each cell.

    Args:
        data: The file's bytes.

    Raises:
        ValueError: It is no notebook; the message says why, in one line.
    """
    try:
        notebook = nbformat.reader.reads(data.decode("utf-8-sig"))
        notebook = notebook if notebook.get("nbformat") == 4 else nbformat.convert(notebook, 4)
        taken: set[str] = set()
        for cell in notebook.cells:
            cell.source = cell.source.replace("\r\n", "\n").replace("\r", "\n")
            wanted = cell.get("id") or f"mine-{content_id(cell)}"
            names = (wanted if n == 1 else f"{wanted}-{n}" for n in range(1, len(taken) + 2))
            cell["id"] = next(name for name in names if name not in taken)
            taken.add(cell["id"])
        notebook.nbformat_minor = max(notebook.nbformat_minor, 5)
        nbformat.validate(notebook)
    except Exception as error:  # what reads it was not made for files that are broken, and raises all kinds
        raise ValueError(str(error).strip().partition("\n")[0] or type(error).__name__) from None
    return notebook


def read_editions(folder: Path) -> dict[str, NotebookNode]:
    """Return the blank notebooks that a workspace was given, by name; what cannot be read is left out.

    Args:
        folder: The workspace.
    """
    found = {}
    for path in sorted((folder / EDITION).glob("*.ipynb")):
        with suppress(ValueError):
            found[path.stem] = as_notebook(read_bytes(path))
    return found


def make_backup(folder: Path) -> Path:
    """Copy all notebooks and pages of a workspace and its progress to a new folder in `backups`.

    Args:
        folder: The workspace.

    Returns:
        The new folder; it is whole, or it is not there.

    Raises:
        OSError: A file cannot be copied.
    """
    backups = folder / BACKUPS
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    names = (stamp if n == 1 else f"{stamp}-{n}" for n in range(1, 1000))
    final = next(backups / name for name in names if not os.path.lexists(backups / name))
    backups.mkdir(exist_ok=True)
    unfinished = backups / ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    for path in [*sorted(folder.glob("*.ipynb")), *sorted(folder.glob("*.md")), folder / marks.FILE]:
        if path.is_file():
            shutil.copy2(path, unfinished)
    os.replace(unfinished, final)
    return final


def make_changes(folder: Path, changes: Iterable[Change]) -> list[str]:
    """Make changes to a workspace, each file at one stroke; what is interrupted, `finish_changes` completes.

    Args:
        folder: The workspace.
        changes: In the order in which they are to be made.

    Returns:
        As `finish_changes`.

    Raises:
        OSError: A file cannot be written.
    """
    pending = folder / _PENDING
    shutil.rmtree(pending, ignore_errors=True)  # without a plan, nothing of it was begun
    plan = []
    for number, change in enumerate(changes):
        if change.after is not None:
            write_atomic(pending / str(number), change.after)
        plan.append([change.path.as_posix(), _digest(change.before), _digest(change.after)])
    write_json(pending / _PLAN, plan)
    return finish_changes(folder)


def finish_changes(folder: Path) -> list[str]:
    """Complete the changes that were begun in a workspace; does nothing where there are none.

    A file that somebody changed meanwhile is left alone, and so is what belongs to it; what it was to hold is put
    beside it.

    Args:
        folder: The workspace.

    Returns:
        What was left alone, one sentence each.

    Raises:
        OSError: A file cannot be written.
    """
    pending = folder / _PENDING
    left: dict[str, str] = {}
    for number, (name, before, after) in enumerate(_read_plan(pending)):
        path = folder / name
        now = _digest(read_bytes(path) if path.is_file() else None)
        data = read_bytes(pending / str(number)) if after else None
        if now == after or path.stem in left:
            continue
        if now != before:
            left[path.stem] = f"{path.name} was changed by another program meanwhile and stays as it is"
            if data is not None:
                aside = marks.free_name(path, "from-update")
                write_atomic(aside, data)
                left[path.stem] += f"; {aside.name} is what it was to become"
        elif data is None:
            path.unlink()
        else:
            write_atomic(path.resolve(), data)  # a link to a notebook stays one
    (pending / _PLAN).unlink(missing_ok=True)  # first, since without it the rest means nothing
    shutil.rmtree(pending, ignore_errors=True)
    return list(left.values())


def has_unfinished_changes(folder: Path) -> bool:
    """Tell whether changes were begun in a workspace and not completed.

    Args:
        folder: The workspace.
    """
    return (folder / _PENDING / _PLAN).is_file()


def _read_plan(pending: Path) -> list:
    return read_json(pending / _PLAN) if (pending / _PLAN).is_file() else []


def _digest(data: bytes | None) -> str | None:
    return None if data is None else hashlib.sha256(data).hexdigest()
