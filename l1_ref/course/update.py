"""The course's new edition comes into a workspace, and all that the reader wrote is carried over."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from nbformat import NotebookNode

from l1_ref.checks import marks
from l1_ref.course import editions, pages, sources
from l1_ref.course.blank import load_blank
from l1_ref.course.build import as_text
from l1_ref.course.editions import Change
from l1_ref.course.merging import Merged, is_intact, is_of_edition, merge
from l1_ref.course.workspace import WorkspaceError
from l1_ref.files import alone, read_bytes


@dataclass
class Report:
    """What an update did.

    Args:
        changed: The notebooks that were written, and what is in them.
        fresh: Those among them that the reader did not have.
        notes: What else the reader should know, one sentence each.
        backup: The folder with all as it was before; None where nothing was changed.
    """

    changed: dict[str, Merged] = field(default_factory=dict)
    fresh: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    backup: Path | None = None

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        told = [line for name, merged in self.changed.items() for line in self._of_notebook(name, merged)] + self.notes
        if self.backup is None:
            return [*told, "nothing to update: every notebook is of the newest edition"]
        told += [f"everything as it was before: {self.backup}"]
        return [*told, "in JupyterLab, reload the notebooks that are open: File > Reload Notebook from Disk"]

    def _of_notebook(self, name: str, merged: Merged) -> list[str]:
        n_carried, n_own = len(merged.carried), merged.n_own
        if name in self.fresh and not n_carried + n_own:
            return [f"{name}: a new blank notebook"]
        line = f"{name}: carried {_count(n_carried, 'exercise')}, {n_own} of your own cells"
        if merged.edited:
            line += f"; you had changed {_count(len(merged.edited), 'cell')} of the course's: yours below the new one"
        if merged.conflicts:
            line += f"; {_count(len(merged.conflicts), 'conflict')}:"
        return [line, *(f"  - {conflict}" for conflict in merged.conflicts)]


@dataclass
class _Workspace:
    """All that an update looks at, read once.

    Args:
        stored: The edition that was handed out, as it was noted down.
        data: The files' bytes, by the notebook's name.
        mine: The reader's notebooks that can be read.
        broken: Why the others cannot.
        new: The new edition.
        renamed: New names of notebooks that the reader has under another.
    """

    stored: dict[str, NotebookNode]
    data: dict[str, bytes]
    mine: dict[str, NotebookNode]
    broken: dict[str, str]
    new: dict[str, NotebookNode]
    renamed: dict[str, str] = field(default_factory=dict)


def update(folder: Path | str = "workspace") -> Report:
    """Bring the installed course's edition into a workspace, and carry over all that the reader wrote.

    All is computed before the first write; then the workspace is backed up, then each file is replaced at one stroke.
    An update that was interrupted is completed first.

    Args:
        folder: The workspace.

    Raises:
        WorkspaceError: The folder is no workspace, or cannot be written.
    """
    folder = Path(folder).expanduser()
    if not (folder / marks.MARKER).is_file():
        raise WorkspaceError(f"{folder} is no workspace; l1 learn {shlex.quote(str(folder))} makes one")
    try:
        with alone(folder / editions.LOCK):
            return _update(folder)
    except OSError as error:
        raise WorkspaceError(
            f"the workspace {folder} cannot be updated ({error.strerror or error}); what was not reached is as it was, "
            f"and l1 update {shlex.quote(str(folder))} goes on"
        ) from None


def _update(folder: Path) -> Report:
    report = Report()
    if editions.has_unfinished_changes(folder):
        report.notes = ["an update that was interrupted is now complete", *editions.finish_changes(folder)]
    of_pages = pages.changes(folder)
    changes = _plan(_read(folder), folder, report) + of_pages
    report.notes += [f"{each.path}: the new edition" for each in of_pages if each.path.parent == Path()]
    if any(editions.EDITION not in change.path.parents for change in changes):
        report.backup = editions.make_backup(folder)
    if changes:
        report.notes += editions.make_changes(folder, changes)
    return report


def _read(folder: Path) -> _Workspace:
    new = {name: load_blank(name) for name in sources.names()}
    found = _Workspace(editions.read_editions(folder), {}, {}, {}, new)
    for name in sorted({*found.stored, *new}):
        path = folder / f"{name}.ipynb"
        if not path.exists():
            continue
        found.data[name] = read_bytes(path)
        try:
            found.mine[name] = editions.as_notebook(found.data[name])
        except ValueError as error:
            found.broken[name] = str(error)
    _follow_new_names(found)
    return found


def _follow_new_names(found: _Workspace) -> None:
    """Find the notebooks that the course renamed: more than half of the cells are the same."""

    def n_common(one: str, other: str) -> int:
        return len({cell["id"] for cell in found.stored[one].cells} & {cell["id"] for cell in found.new[other].cells})

    for name in [name for name in found.stored if name not in found.new and name in found.mine]:
        others = [other for other in found.new if other not in found.stored and other not in found.data]
        best = max(others, key=lambda other: n_common(name, other), default=None)
        if best is not None and 2 * n_common(name, best) > len(found.stored[name].cells):
            found.mine[best], found.stored[best] = found.mine.pop(name), found.stored.pop(name)
            found.renamed[best] = name


def _plan(found: _Workspace, folder: Path, report: Report) -> list[Change]:
    """Return the changes to be made, and tell the report of them; nothing is written."""
    old = dict(found.stored)
    for name in found.mine.keys() & found.new.keys() - old.keys():
        if is_of_edition(found.mine[name], found.new[name]):
            old[name] = found.new[name]
    changes: list[Change] = []
    for name, merged in merge(old, found.mine, found.new).items():
        mine, new = found.mine.get(name), found.new[name]
        is_current = mine is not None and name in old and old[name] == new and is_intact(mine, new)
        differs = mine is None or name in found.renamed or mine != merged.notebook
        if differs and (not is_current or merged.arrived or name in found.renamed):
            report.changed[name] = merged
            changes += _replace(found, folder, name, merged, report)
        if name not in found.stored or name in found.renamed or found.stored[name] != new:
            changes.append(_edition(folder, name, as_text(new)))
    return changes + _remove(found, folder, report)


def _replace(found: _Workspace, folder: Path, name: str, merged: Merged, report: Report) -> list[Change]:
    """Return the changes that put a merged notebook where it belongs, and what it replaces aside."""
    path, changes = Path(f"{name}.ipynb"), []
    if name in found.broken:
        aside = marks.free_name(folder / path, "broken")
        changes.append(Change(Path(aside.name), None, found.data[name]))
        report.notes.append(f"{path} could not be read ({found.broken[name]}); it is kept as {aside.name}")
    if name not in found.mine:
        report.fresh.add(name)
    if name in found.renamed:
        report.notes.append(f"{found.renamed[name]}.ipynb is now {path}")
    return [*changes, Change(path, found.data.get(name), as_text(merged.notebook).encode())]


def _remove(found: _Workspace, folder: Path, report: Report) -> list[Change]:
    """Return the changes that remove what has a new name, and forget the notebooks that left the course."""
    changes = []
    for name in found.renamed.values():
        changes += [Change(Path(f"{name}.ipynb"), found.data[name], None), _edition(folder, name, None)]
    for name in found.stored.keys() - found.new.keys():
        changes.append(_edition(folder, name, None))
        if name in found.data:
            report.notes.append(f"{name}.ipynb is no longer part of the course; your notebook stays as it is")
    return changes


def _edition(folder: Path, name: str, text: str | None) -> Change:
    path = editions.EDITION / f"{name}.ipynb"
    before = read_bytes(folder / path) if (folder / path).is_file() else None
    return Change(path, before, text if text is None else text.encode())


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' if number != 1 else ''}"
