"""Pages that notebooks link to, such as the glossary: they lie beside the notebooks, wherever these lie."""

import os
from pathlib import Path

from l1_ref.course import sources
from l1_ref.course.editions import EDITION, Change
from l1_ref.files import read_bytes, write_atomic


def texts() -> dict[str, str]:
    """Return the course's pages, the text of each by its file's name, such as "glossary.md"."""
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(sources.SOURCES.glob("*.md"))}


def hand_out(folder: Path) -> bool:
    """Write the pages that a workspace lacks, and tell whether one that it has is of another edition.

    Args:
        folder: The workspace.

    Raises:
        OSError: A page cannot be written.
    """
    for name, text in texts().items():
        if not os.path.lexists(folder / name):
            write_atomic(folder / EDITION / name, text)
            write_atomic(folder / name, text)
    return any(EDITION not in change.path.parents for change in changes(folder))


def changes(folder: Path) -> list[Change]:
    """Return the changes that bring the newest pages into a workspace, for an update that makes a backup first.

    A page that the reader changed, and the course did not, stays.

    Args:
        folder: The workspace.

    Raises:
        OSError: A page cannot be read.
    """
    found = []
    for name, text in texts().items():
        if (folder / name).is_dir():
            continue  # it is the reader's own, and stays
        mine, given, new = _bytes(folder / name), _bytes(folder / EDITION / name), text.encode()
        if mine is None or (mine != new and given != new):
            found.append(Change(Path(name), mine, new))
        if given != new:
            found.append(Change(EDITION / name, given, new))
    return found


def _bytes(path: Path) -> bytes | None:
    return read_bytes(path) if path.is_file() else None
