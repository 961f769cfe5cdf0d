"""The reader's progress: one small JSON file in the workspace, written whole or not at all."""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from l1_ref.files import write_atomic

MARKER = ".l1-workspace"
FILE = "progress.json"
VERDICTS = "L1_VERDICTS"  # names a file that gets one line of JSON for each check, for `l1 check` and for graders
DONE = ("solved", "given")  # states in which a reader may go on
_RANK = {"unwritten": 0, "refused": 1, "wrong": 1, "given": 2, "solved": 3}


class Row(NamedTuple):
    """One exercise's line in the table of progress.

    Args:
        notebook: Such as "00_start_here".
        exercise: Its name.
        state: "solved", "given", "tried" or "open".
        tries: How often it was checked while something was written.
        hints: How many hints were asked for.
    """

    notebook: str
    exercise: str
    state: str
    tries: int
    hints: int


def find_workspace(start: Path | None = None) -> Path | None:
    """Return the workspace the reader is in, or None.

    It is the folder that L1_WORKSPACE names, else the nearest one upwards that holds the marker file.

    Args:
        start: Where to begin; the current folder where None.
    """
    named = os.environ.get("L1_WORKSPACE")
    if named and start is None:
        return Path(named) if Path(named).is_dir() else None
    here = (start or Path.cwd()).resolve()
    return next((folder for folder in (here, *here.parents) if (folder / MARKER).is_file()), None)


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what a workspace's progress file holds, by exercise; a broken file is put aside and said so.

    Args:
        folder: The workspace.
    """
    path = Path(folder) / FILE
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["exercises"]
        return {str(name): _entry(entry) for name, entry in entries.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        aside = free_name(path, "broken")
        os.replace(path, aside)
        print(f"{path.name} could not be read; it is kept as {aside.name}, and a new one begins", file=sys.stderr)
        return {}


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    state, tries, hints = entry["state"], entry.get("tries", 0), entry.get("hints", 0)
    if state not in _RANK or not isinstance(tries, int) or not isinstance(hints, int):
        raise ValueError(f"an entry of {FILE} must hold a state, tries and hints, got {entry}")
    return {"state": state, "tries": tries, "hints": hints}


def free_name(path: Path, word: str) -> Path:
    """Return a name beside a file under which a copy of it can be put aside.

    Args:
        path: The file.
        word: What the copy is, such as "broken"; it ends the name.
    """
    names = (path.with_name(f"{path.name}.{word}{n or ''}") for n in range(1000))
    return next(name for name in names if not name.exists())


def is_workspace(folder: Path | str) -> bool:
    """Say whether a folder is a workspace: it holds the marker file, or the progress.

    Args:
        folder: Any.
    """
    return any((Path(folder) / name).is_file() for name in (MARKER, FILE))


def record(
    name: str, state: str | None = None, hints: int = 0, folder: Path | None = None, again: bool = False
) -> None:
    """Note the outcome of a check, or hints taken; does nothing outside a workspace.

    What is solved stays solved. A workspace that cannot be written never stops a check: a line on stderr says so.

    Args:
        name: The exercise.
        state: "solved", "given", "wrong", "refused" or "unwritten"; None where nothing was checked.
        hints: How many more hints were taken.
        folder: The workspace; looked up where None.
        again: Whether the same code may have been checked before: then it is a try only where the state rises.
    """
    folder = folder or find_workspace()
    if folder is None:
        return
    try:
        entries = read(folder)
        entry = entries.setdefault(name, {"state": "unwritten", "tries": 0, "hints": 0})
        before = dict(entry)
        entry["state"] = max(entry["state"], state or "unwritten", key=_RANK.__getitem__)
        entry["tries"] += state in ("wrong", "refused", "solved") and not (again and entry["state"] == before["state"])
        entry["hints"] += hints
        if entry != before:
            write_atomic(folder / FILE, json.dumps({"exercises": entries}, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        print(f"progress was not saved in {folder}: {error.strerror or error}", file=sys.stderr)


def tell(**verdict: Any) -> None:
    """Append one check's verdict to the file that L1_VERDICTS names; does nothing where it names none.

    Args:
        **verdict: What is to be told, by name; JSON's kinds of values.
    """
    path = os.environ.get(VERDICTS)
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(verdict) + "\n")


def table(folder: Path | None, exercises: Iterable[tuple[str, str]]) -> list[Row]:
    """Return one row an exercise, in the order of the course.

    Args:
        folder: The workspace; all is open where None.
        exercises: (notebook, name) of each.
    """
    entries = read(folder) if folder else {}
    words = {"unwritten": "open", "wrong": "tried", "refused": "tried"}
    rows = []
    for notebook, name in exercises:
        entry = entries.get(name, {"state": "unwritten", "tries": 0, "hints": 0})
        rows.append(Row(notebook, name, words.get(entry["state"], entry["state"]), entry["tries"], entry["hints"]))
    return rows
