"""Three editions of each notebook made one: what was handed out, what the reader made of it, what is handed out now."""

import difflib
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field

from nbformat import NotebookNode

from l1_ref.course.signatures import clashes, defines, parses
from l1_ref.course.sources import CHECK, content_id, tags

MARK = "l1"  # the key under which a cell's metadata says why it is there
_KINDS = ("exercise", "check", "guide")
_OF_THE_COURSE = ("name", "points", "difficulty", "minutes", "nbgrader", "deletable", "editable")
Notebooks = Mapping[str, NotebookNode]


@dataclass
class Merged:
    """One notebook of the new edition with the reader's work in it.

    Args:
        notebook: All cells of the new edition in their order, and the reader's among them.
        carried: The exercises whose code is the reader's.
        n_own: How many cells of the reader's own it holds.
        edited: The course's cells that the reader had changed; the reader's version stands below each.
        conflicts: What the reader should look at, one sentence each.
        arrived: Whether something came from another notebook.
    """

    notebook: NotebookNode
    carried: list[str] = field(default_factory=list)
    n_own: int = 0
    edited: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    arrived: bool = False


@dataclass
class _Read:
    """A cell of the reader's: its role ("course", "edited", "exercise" or "own"), and the cell of the course it is."""

    cell: NotebookNode
    role: str
    key: str | None = None


def merge(old: Notebooks, mine: Notebooks, new: Notebooks) -> dict[str, Merged]:
    """Bring the new edition, and carry over by name all that the reader wrote.

    Every cell of the new edition is in the result, in its order. An exercise holds the reader's code where there is
    any; the reader's own cells stand below the same neighbour as before; of a cell of the course that the reader had
    changed, both versions are kept. A cell whose text stays keeps its outputs, save a check, which is to be run again.

    Args:
        old: What was handed out, by the notebook's name; a notebook of which nobody knows is left out.
        mine: What the reader has; of a notebook that the new edition lacks, only the exercises are taken.
        new: The new blank edition.
    """
    return _Merger(old, mine, new).merged()


def plain(source: str) -> str:
    """Return a cell's text without what an editor changes unasked: line ends, spaces at the end of lines."""
    return "\n".join(line.rstrip() for line in source.splitlines()).strip("\n")


def is_intact(mine: NotebookNode, new: NotebookNode) -> bool:
    """Tell whether a notebook still holds every exercise, and every check unchanged.

    Args:
        mine: The reader's notebook.
        new: The edition that it should be of.
    """

    def parts(notebook: NotebookNode) -> set[tuple]:
        cells = [cell for cell in notebook.cells if cell.cell_type == "code" and _kind(cell) in ("exercise", "check")]
        return {(cell.metadata.name, plain(cell.source) if _kind(cell) == "check" else None) for cell in cells}

    return parts(new) <= parts(mine)


def is_of_edition(mine: NotebookNode, new: NotebookNode) -> bool:
    """Tell whether a notebook was made from an edition: it has all its cells, and no untouched ones of another.

    Args:
        mine: The reader's notebook.
        new: The edition.
    """

    def prints(cells: list[NotebookNode]) -> set[tuple]:
        # A cell's id is its name, or made from its text; nbgrader's checksum is that of the text handed out.
        return {(cell.get("id"), _grading(cell).get("checksum")) for cell in cells}

    untouched = [cell for cell in mine.cells if _is_as_handed_out(cell)]
    return prints(untouched) <= prints(new.cells) <= prints(mine.cells)


class _Merger:
    def __init__(self, old: Notebooks, mine: Notebooks, new: Notebooks) -> None:
        self.old, self.mine, self.new = old, mine, new
        self.kinds: dict[str, str] = {}  # of the course's named cells
        self.texts: dict[str, set[str]] = {}  # theirs in both editions
        for cell in (cell for edition in (old, new) for notebook in edition.values() for cell in notebook.cells):
            if kind := _kind(cell):
                self.kinds[cell.metadata.name] = kind
                self.texts.setdefault(cell.metadata.name, set()).add(plain(cell.source))
        self.index = {name: {cell["id"]: i for i, cell in enumerate(book.cells)} for name, book in new.items()}
        self.homes = {key: name for name, keys in self.index.items() for key in keys if key in self.kinds}
        self.read = {name: self._classify(name) for name in mine}
        self.chosen = self._choose()
        self.placed: dict[str, dict[int, list[NotebookNode]]] = {name: {} for name in new}
        self.results = {name: Merged(deepcopy(notebook)) for name, notebook in new.items()}

    def merged(self) -> dict[str, Merged]:
        for name in self.read.keys() & self.new.keys():
            self._place_all(name)
        for name, result in self.results.items():
            self._fill(name, result)
        return self.results

    # Whose each cell is.

    def _key(self, cell: NotebookNode) -> str | None:
        name = cell.metadata.get("name")
        return name if isinstance(name, str) and (name in self.kinds or _kind(cell)) else cell.get("id")

    def _classify(self, name: str) -> list[_Read]:
        free: dict[str, set[str]] = {}  # the course's cells that the reader's notebook may hold, until they are found
        for edition in (self.old, self.new):
            for cell in edition[name].cells if name in edition else []:
                free.setdefault(cell["id"], set(self.texts.get(cell["id"], ()))).add(plain(cell.source))
        found = [self._by_key(cell, free) for cell in self.mine[name].cells]
        for each in found:
            if each.role == "own":
                self._by_text(each, free, unknown=name not in self.old)
        return found

    def _by_key(self, cell: NotebookNode, free: dict[str, set[str]]) -> _Read:
        key = self._key(cell)
        if self.kinds.get(key, _kind(cell)) == "exercise":
            return _Read(cell, "exercise", key)
        if key not in free or MARK in cell.metadata:
            return _Read(cell, "own")
        text = plain(cell.source)
        return _Read(cell, "course" if text in {"", *free.pop(key)} or _is_as_handed_out(cell) else "edited", key)

    def _by_text(self, each: _Read, free: dict[str, set[str]], unknown: bool) -> None:
        """Find the course's cells that lost their ids, and those of an edition that nobody kept."""
        if MARK in each.cell.metadata:
            return
        text, key = plain(each.cell.source), self._key(each.cell)
        equal = (other for other, texts in free.items() if text in texts and self.kinds.get(other) != "exercise")
        same = next(equal, None)
        if same is not None:
            del free[same]
            each.role, each.key = "course", same
        elif unknown and (text in self.texts.get(key, ()) or _is_as_handed_out(each.cell)):
            each.role, each.key = "course", key

    # Which cell is an exercise's.

    def _is_blank(self, each: _Read) -> bool:
        return plain(each.cell.source) in {"", *self.texts.get(each.key, ())} or _is_as_handed_out(each.cell)

    def _choose(self) -> dict[str, tuple[str, int]]:
        """Return where each exercise's code is: of several cells the one that a run from top to bottom would check."""
        best: dict[str, tuple] = {}
        for name, cells in self.read.items():
            checks = {each.key: i for i, each in enumerate(cells) if each.key}
            for i, each in enumerate(cells):
                if each.role != "exercise" or self._is_blank(each) or not self._is_home(name, each.key):
                    continue
                if each.cell.cell_type != "code" and not parses(each.cell.source):
                    continue  # prose that the reader made of it
                before_check = i < checks.get(f"{each.key}{CHECK}", len(cells))
                rank = (self.homes.get(each.key) == name, defines(each.cell.source, each.key), before_check, i, name)
                best[each.key] = max(best.get(each.key, rank), rank)
        return {key: (name, i) for key, (*_, i, name) in best.items()}

    def _is_home(self, name: str, key: str) -> bool:
        """Tell whether an exercise belongs to a notebook; elsewhere its cell is a copy that the reader put there."""
        before = self.old.get(name)
        return before is None or self.homes.get(key) == name or any(cell["id"] == key for cell in before.cells)

    # Where the reader's own cells go.

    def _place_all(self, name: str) -> None:
        anchor = None
        for i, each in enumerate(self.read[name]):
            is_chosen = self.chosen.get(each.key) == (name, i)
            is_carried = is_chosen and each.key in self.homes
            is_blank = each.role == "exercise" and each.key in self.index[name] and self._is_blank(each)
            if each.role in ("course", "edited") or is_carried or is_blank:
                anchor = each.key
            if each.role == "exercise" and not is_carried and not self._is_blank(each):
                self._keep_apart(name, anchor, each, is_gone=is_chosen)
            elif each.role == "edited":
                result = self._place(name, anchor, _own(each.cell, edited=each.key))
                result.edited.append(each.key)
            elif each.role == "own" and not self._is_stale_note(each.cell):
                self._place(name, anchor, _own(each.cell))

    def _keep_apart(self, name: str, anchor: str | None, each: _Read, is_gone: bool) -> None:
        """Keep the code of an exercise that the course has no longer, or a further cell of one that it has."""
        if is_gone:
            text = f"The course has no exercise `{each.key}` any more. Your code stays here."
            self._place(name, anchor, _note(text, gone=each.key))
            self.results[name].conflicts.append(f"{each.key} is no exercise any more; your code stays in a cell")
        self._place(name, anchor, _own(each.cell, was=each.key))

    def _place(self, name: str, anchor: str | None, cell: NotebookNode) -> Merged:
        target, position = self._resolve(name, anchor)
        self.placed[target].setdefault(position, []).append(cell)
        result = self.results[target]
        result.n_own += bool(plain(cell.source)) and not {"note", "gone"} & _mark(cell).keys()
        result.arrived |= target != name
        return result

    def _resolve(self, name: str, anchor: str | None) -> tuple[str, int]:
        """Return the notebook and the position of the cell below which a cell belongs; -1 is the top."""
        if anchor is None or anchor in self.index[name]:
            return name, self.index[name].get(anchor, -1)
        if name in self.old:
            before = [cell["id"] for cell in self.old[name].cells]
            if anchor in before and anchor in self.homes:  # an exercise that moved takes the cells around it along
                return self.homes[anchor], self.index[self.homes[anchor]][anchor]
        else:
            before = [each.key for each in self.read[name] if each.key]
        matcher = difflib.SequenceMatcher(None, before, list(self.index[name]), autojunk=False)
        at = before.index(anchor) if anchor in before else -1
        spans = (span for _, *span in matcher.get_opcodes() if span[0] <= at < span[1])
        return name, next((min(j1 + at - i1, j2 - 1) for i1, _, j1, j2 in spans), -1)

    def _is_stale_note(self, cell: NotebookNode) -> bool:
        """Tell whether a cell is an untouched note about a stub that is to be replaced by a newer one."""
        key = _mark(cell).get("note")
        notes = {plain(_stub_note(key, stub).source) for stub in self.texts.get(key, ())}
        return plain(cell.source) in notes and self._clashes(key)

    # The new edition, filled.

    def _clashes(self, key: str) -> bool:
        """Tell whether the signature of an exercise changed under the reader's code."""
        if key not in self.chosen or key not in self.homes:
            return False
        stub = self.new[self.homes[key]].cells[self.index[self.homes[key]][key]].source
        before = [cell.source for book in self.old.values() for cell in book.cells if cell["id"] == key]
        name, i = self.chosen[key]
        return clashes(self.read[name][i].cell.source, next(iter(before), None), stub)

    def _fill(self, name: str, result: Merged) -> None:
        placed, cells, book = self.placed[name], [], result.notebook
        shown = {each.key: each.cell for each in self.read.get(name, []) if each.role == "course"}
        cells += placed.get(-1, [])
        for i, cell in enumerate(book.cells):
            if cell["id"] in self.chosen:
                cells += self._carry(name, cell, result)
            elif "check" not in tags(cell):
                _keep_outputs(cell, shown.get(cell["id"]))
            cells += [cell, *placed.get(i, [])]
        _make_ids_unique(cells, {id(cell) for cell in book.cells})
        book.cells = cells
        if name in self.mine:  # the reader may have chosen a kernel
            book.metadata = NotebookNode({**book.metadata, **deepcopy(self.mine[name].metadata)})

    def _carry(self, name: str, cell: NotebookNode, result: Merged) -> list[NotebookNode]:
        """Put the reader's code into an exercise; return the note that belongs above it, where there is one."""
        key, stub = cell["id"], cell.source
        origin, i = self.chosen[key]
        written = self.read[origin][i].cell
        cell.source = written.source
        _keep_outputs(cell, written)
        result.carried.append(key)
        result.arrived |= origin != name
        if not self._clashes(key):
            return []
        result.conflicts.append(f"{key} has a new signature; it stands above your code, which stays as it is")
        return [_stub_note(key, stub)]


def _kind(cell: NotebookNode) -> str | None:
    return next((tag for tag in tags(cell) if tag in _KINDS), None) if "name" in cell.metadata else None


def _mark(cell: NotebookNode) -> dict:
    found = cell.metadata.get(MARK)
    return found if isinstance(found, dict) else {}


def _grading(cell: NotebookNode) -> dict:
    found = cell.metadata.get("nbgrader")
    return found if isinstance(found, dict) else {}


def _is_as_handed_out(cell: NotebookNode) -> bool:
    """Tell whether a cell itself says that it was not changed: by nbgrader's checksum, or an id made from its text."""
    from nbgrader.utils import compute_checksum

    if checksum := _grading(cell).get("checksum"):
        try:
            return compute_checksum(cell) == checksum
        except (KeyError, TypeError, ValueError):  # somebody changed nbgrader's metadata
            return False
    return re.sub(r"-\d+$", "", cell.get("id", "")) == content_id(cell)


def _own(cell: NotebookNode, **why: str) -> NotebookNode:
    """Return a cell as the reader's own, without what made it one of the course's."""
    own = deepcopy(cell)
    if why or _kind(cell):
        own.metadata = NotebookNode({key: value for key, value in own.metadata.items() if key not in _OF_THE_COURSE})
        if kept := [tag for tag in own.metadata.pop("tags", []) if tag not in _KINDS]:
            own.metadata["tags"] = kept
    if why:
        own.metadata[MARK] = NotebookNode(why)
        own.pop("id", None)
    return own


def _note(text: str, **why: str) -> NotebookNode:
    return NotebookNode(cell_type="markdown", metadata=NotebookNode({MARK: NotebookNode(why)}), source=text)


def _stub_note(key: str, stub: str) -> NotebookNode:
    text = f"The course gave `{key}` a new signature. Your code is below, as you wrote it; the new blank is:"
    return _note(f"{text}\n\n```python\n{stub}\n```", note=key)


def _keep_outputs(cell: NotebookNode, shown: NotebookNode | None) -> None:
    if shown is not None and cell.cell_type == shown.cell_type == "code" and plain(cell.source) == plain(shown.source):
        cell.outputs, cell.execution_count = deepcopy(shown.outputs), shown.execution_count


def _make_ids_unique(cells: list[NotebookNode], of_the_course: set[int]) -> None:
    """Give each cell of the reader's an id of its own, made from its text where the one that it had is taken."""
    taken = {cell["id"] for cell in cells if id(cell) in of_the_course}
    for cell in (cell for cell in cells if id(cell) not in of_the_course):
        wanted = cell.get("id")
        if wanted is None or wanted in taken:
            wanted = f"mine-{content_id(cell)}"
        names = (wanted if n == 1 else f"{wanted}-{n}" for n in range(1, len(taken) + 2))
        cell["id"] = next(name for name in names if name not in taken)
        taken.add(cell["id"])
