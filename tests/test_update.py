"""An update of a workspace: the new edition comes, and whatever the reader wrote, anywhere, is still there."""

import os
import re
import shutil
import sys
import tempfile
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l1_ref import cli
from l1_ref.checks import marks
from l1_ref.course import editions, pages, sources, workspace
from l1_ref.course import update as updates
from l1_ref.course.blank import blank
from l1_ref.course.build import as_text
from l1_ref.course.merging import plain
from l1_ref.course.signatures import clashes
from l1_ref.course.update import update
from l1_ref.course.workspace import WorkspaceError, learn
from l1_ref.files import alone
from tests.forked import drop_capabilities

# A small course. A notebook is a tuple of cells: (kind, name or text, arguments, docstring).


def prose(text):
    return ("prose", text)


def code(text):
    return ("code", text)


def exercise(name, arguments="x", doc="Do it."):
    return ("exercise", name, arguments, doc)


A = (
    prose("# One"), code("import math"), prose("About f."), exercise("f"), prose("Between."), code("print(1)"),
    exercise("g", "x, dim"), code("print(2)"),
)  # fmt: skip
B = (prose("# Two"), code("import math"), exercise("h"), code("print(3)"))
COURSE = {"00_one": A, "01_two": B}


def as_source(cell):
    kind, text, *rest = cell
    if kind == "prose":
        return f"# %% [markdown]\n# {text}\n"
    if kind == "code":
        return f"# %%\n{text}\n"
    arguments, doc = rest
    marked = f'# %% tags=["exercise"] name="{text}" points=1 difficulty="easy" minutes=5'
    function = f'def {text}({arguments}):\n    """{doc}"""\n    return 1\n'
    return f'{marked}\n{function}\n# %% tags=["check"]\nassert {text} is not None\n'


@cache
def _blank(cells):
    return blank(sources.parse("\n".join(map(as_source, cells))))


def edition(cells):
    return deepcopy(_blank(cells))


@contextmanager
def installed(course):
    """Make a course the one that is installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "names", lambda: sorted(course))
        patch.setattr(pages, "texts", dict)
        for module in (workspace, updates):
            patch.setattr(module, "load_blank", lambda name: edition(course[name]))
        yield


@pytest.fixture
def course(tmp_path):
    """Return a workspace of the small course: `install` another edition, `read` and `save` its notebooks."""

    class Course:
        folder = tmp_path / "workspace"

        def install(self, **notebooks):
            return installed({name: cells for name, cells in ({**COURSE, **notebooks}).items() if cells is not None})

        def path(self, name="00_one"):
            return self.folder / f"{name}.ipynb"

        def read(self, name="00_one"):
            return nbformat.read(self.path(name), as_version=4)

        def save(self, notebook, name="00_one"):
            self.path(name).write_text(nbformat.writes(notebook), encoding="utf-8")

        @contextmanager
        def edit(self, name="00_one"):
            notebook = self.read(name)
            yield notebook
            self.save(notebook, name)

        def write(self, key, source, name="00_one"):
            with self.edit(name) as notebook:
                cell(notebook, key).source = source

        def update(self, **notebooks):
            with self.install(**notebooks):
                report = update(self.folder)
                again = update(self.folder)
            assert again.backup is None and not again.changed, again.lines()
            return report

        def files(self):
            paths = (p.relative_to(self.folder) for p in self.folder.rglob("*") if p.is_file())
            return {path: (self.folder / path).read_bytes() for path in paths if path != editions.LOCK}

    with installed(COURSE):
        learn(Course.folder)
    return Course()


def cell(notebook, key):
    return next(each for each in notebook.cells if key in (each["id"], each.source))


def texts(notebook):
    return [each.source for each in notebook.cells]


def own(source, kind="code", **metadata):
    make = nbformat.v4.new_code_cell if kind == "code" else nbformat.v4.new_markdown_cell
    return make(source, metadata=metadata)


def place(notebook, source):
    return texts(notebook).index(source)


def changed(cells, old, *new):
    """Return a notebook with one cell replaced by others."""
    at = cells.index(old)
    return (*cells[:at], *new, *cells[at + 1 :])


F = "def f(x):\n    return 2 * x"
G = "def g(x, dim):\n    return x"
NEW_PROSE = changed(A, prose("# One"), prose("# One, newer"))


# What is carried over.


def test_nothing_is_written_where_nothing_changed(course):
    course.write("f", F)
    before = course.files()
    report = course.update()
    assert report.lines() == ["nothing to update: every notebook is of the newest edition"]
    assert course.files() == before


def test_an_exercise_keeps_the_readers_code_by_its_name(course):
    course.write("f", F)
    moved = changed(changed(NEW_PROSE, exercise("f")), exercise("g", "x, dim"), exercise("g", "x, dim"), exercise("f"))
    report = course.update(**{"00_one": moved})
    after = course.read()
    assert cell(after, "f").source == F and "raise NotImplementedError" in cell(after, "g").source
    assert [each["id"] for each in after.cells] == [each["id"] for each in edition(moved).cells]
    assert report.changed["00_one"].carried == ["f"] and report.changed.keys() == {"00_one"}
    assert report.lines()[0] == "00_one: carried 1 exercise, 0 of your own cells"


def test_own_cells_stay_below_their_neighbour(course):
    with course.edit() as notebook:
        for below, source in ((None, "top"), ("About f.", "mine 1"), ("f-check", "mine 2"), ("print(2)", "end")):
            at = 0 if below is None else notebook.cells.index(cell(notebook, below)) + 1
            notebook.cells.insert(at, own(source))
    newer = changed(NEW_PROSE, prose("About f."), prose("About f, newer."), prose("And more."))
    report = course.update(**{"00_one": (prose("Before all."), *newer)})
    after = texts(course.read())
    assert after[0] == "top" and after[-1] == "end"
    assert after[after.index("About f, newer.") + 1] == "mine 1"
    assert after[after.index("assert f is not None") + 1] == "mine 2"
    assert report.changed["00_one"].n_own == 4


def test_an_edited_cell_of_the_course_stands_below_the_new_one(course):
    with course.edit() as notebook:
        cell(notebook, "print(1)").source = "print(1 + 1)"
        cell(notebook, "Between.").source = "Between, I noted this."
    report = course.update(**{"00_one": changed(NEW_PROSE, code("print(1)"), code("print('new')"))})
    after = course.read()
    for course_text, mine in (("print('new')", "print(1 + 1)"), ("Between.", "Between, I noted this.")):
        at = place(after, course_text)
        assert after.cells[at + 1].source == mine and after.cells[at + 1].metadata.l1.edited
    assert len(report.changed["00_one"].edited) == 2
    assert "you had changed 2 cells of the course's" in report.lines()[0]


def test_deleted_cells_come_back_and_so_do_deleted_checks_without_a_new_edition(course):
    with course.edit() as notebook:
        notebook.cells = [each for each in notebook.cells if each["id"] not in ("f", "g-check")]
    report = course.update()
    assert texts(course.read()) == texts(edition(A)) and report.backup is not None


def test_a_check_that_was_changed_is_the_courses_again(course):
    course.write("f-check", "assert True")
    course.update()
    after = course.read()
    at = place(after, "assert f is not None")
    assert after.cells[at + 1].source == "assert True"
    assert "nbgrader" not in after.cells[at + 1].metadata and "deletable" not in after.cells[at + 1].metadata


def test_split_code_runs_in_the_same_order(course):
    with course.edit() as notebook:
        at = notebook.cells.index(cell(notebook, "f"))
        helper = deepcopy(notebook.cells[at])
        helper["id"], helper.source = "0b8f3c1e", "def helper(x):\n    return x"
        notebook.cells[at].source = F
        notebook.cells.insert(at, helper)
    course.update(**{"00_one": NEW_PROSE})
    after = course.read()
    assert (
        place(after, helper.source)
        < place(after, F)
        == next(i for i, each in enumerate(after.cells) if each["id"] == "f")
    )
    assert sum("nbgrader" in each.metadata for each in after.cells) == 4


def test_a_copy_pasted_elsewhere_is_a_cell_of_the_readers_own(course):
    course.write("f", F)
    with course.edit("01_two") as notebook:
        pasted = deepcopy(cell(course.read(), "f"))
        pasted["id"], pasted.source = "0b8f3c1e", "def f(x):\n    return 'another'"
        notebook.cells.insert(1, pasted)
    course.update(**{"00_one": NEW_PROSE, "01_two": (*B, prose("More."))})
    assert cell(course.read(), "f").source == F
    kept = course.read("01_two").cells[1]
    assert kept.source == pasted.source and "nbgrader" not in kept.metadata and kept.metadata.l1.was == "f"


@pytest.mark.parametrize("kind", ["markdown", "raw"])
def test_an_exercise_whose_type_was_changed_is_code_again(course, kind):
    with course.edit() as notebook:
        cell(notebook, "f").source = F
        at = notebook.cells.index(cell(notebook, "f"))
        kept = {key: notebook.cells[at][key] for key in ("id", "metadata", "source")}
        notebook.cells[at] = nbformat.from_dict({"cell_type": kind, **kept})
    course.update(**{"00_one": NEW_PROSE})
    assert (cell(course.read(), "f").cell_type, cell(course.read(), "f").source) == ("code", F)


def test_prose_in_the_place_of_an_exercise_stays_prose(course):
    with course.edit() as notebook:
        at = notebook.cells.index(cell(notebook, "f"))
        metadata = notebook.cells[at].metadata
        notebook.cells[at] = nbformat.v4.new_markdown_cell("I gave up here.", metadata=metadata, id="f")
    course.update(**{"00_one": NEW_PROSE})
    after = course.read()
    assert "raise NotImplementedError" in cell(after, "f").source
    assert cell(after, "I gave up here.").cell_type == "markdown"


def test_outputs_stay_with_unchanged_text_and_checks_are_to_be_run_again(course):
    with course.edit() as notebook:
        cell(notebook, "f").source = F
        notebook.cells.append(own("mine"))
        for each in notebook.cells:
            if each.cell_type == "code":
                each.outputs, each.execution_count = [nbformat.v4.new_output("stream", text="out")], 7
                each.metadata.update(trusted=True, execution={"iopub.execute_input": "2026"})
        notebook.metadata["kernelspec"]["name"] = "my-kernel"
    course.update(**{"00_one": changed(NEW_PROSE, code("print(1)"), code("print('new')"))})
    after = course.read()
    shown = {each.source for each in after.cells if each.cell_type == "code" and each.outputs}
    assert shown == {"import math", F, "print(2)", "mine"}
    assert after.metadata.kernelspec.name == "my-kernel"


def test_windows_line_ends_and_a_byte_order_mark_change_nothing(course):
    course.write("f", F.replace("\n", "\r\n"))
    data = course.path().read_bytes().replace(b"\n", b"\r\n")
    course.path().write_bytes(b"\xef\xbb\xbf" + data)
    report = course.update(**{"00_one": NEW_PROSE})
    assert cell(course.read(), "f").source == F
    assert (report.changed["00_one"].n_own, report.changed["00_one"].edited) == (0, [])


def test_a_notebook_without_ids_and_without_metadata_is_understood_by_its_text(course):
    with course.edit() as notebook:
        cell(notebook, "f").source = F
    for each in notebook.cells:
        del each["id"]
    notebook.nbformat_minor = 4
    course.save(notebook)
    report = course.update(**{"00_one": NEW_PROSE})
    assert cell(course.read(), "f").source == F
    assert report.changed["00_one"].n_own == 0


# Conflicts.


def test_a_new_signature_is_shown_above_the_readers_code(course):
    course.write("f", F)
    newer = changed(A, exercise("f"), exercise("f", "x, dim"))
    report = course.update(**{"00_one": newer})
    after = course.read()
    at = [each["id"] for each in after.cells].index("f")
    assert after.cells[at].source == F and after.cells[at].metadata.nbgrader.solution
    note = after.cells[at - 1]
    assert note.cell_type == "markdown" and "def f(x, dim):" in note.source and note.metadata.l1.note == "f"
    (conflict,) = report.changed["00_one"].conflicts
    assert conflict.startswith("f has a new signature")
    assert report.lines()[0].endswith("; 1 conflict:") and report.lines()[1] == f"  - {conflict}"
    # The next one replaces the note, as long as the reader has not written into it.
    course.update(**{"00_one": changed(A, exercise("f"), exercise("f", "x, axis"))})
    notes = [each.source for each in course.read().cells if "l1" in each.metadata]
    assert len(notes) == 1 and "def f(x, axis):" in notes[0]
    course.write(notes[0], notes[0] + "\nmine")
    course.update(**{"00_one": changed(A, exercise("f"), exercise("f", "y"))})
    notes = [each.source for each in course.read().cells if "l1" in each.metadata]
    assert len(notes) == 2 and notes[0].endswith("mine") and "def f(y):" in notes[1]


def test_a_new_signature_of_a_blank_is_no_conflict(course):
    newer = changed(A, exercise("f"), exercise("f", "x, dim"))
    report = course.update(**{"00_one": newer})
    assert texts(course.read()) == texts(edition(newer)) and report.changed["00_one"].conflicts == []


def test_a_new_docstring_is_no_conflict(course):
    course.write("f", F)
    report = course.update(**{"00_one": changed(A, exercise("f"), exercise("f", doc="Do it well."))})
    assert cell(course.read(), "f").source == F and report.changed["00_one"].conflicts == []


STUB = "def f(x):\n    raise NotImplementedError\n"
PAIR = "class C:\n    def __init__(self, a):\n        ...\n    def forward(self, x):\n        ...\n"


@pytest.mark.parametrize(
    ("written", "old", "new", "conflict"),
    [
        (F, STUB, "def f(x: int) -> int:\n    pass", False),
        (F, STUB, "def f(x, y=1):\n    pass", True),
        ("def f(x, y=1):\n    return 1", STUB, "def f(x, y=1):\n    pass", False),
        ("f = checks.give('f')", STUB, "def f(x, y=1):\n    pass", False),
        (F, STUB, STUB + "def second(x):\n    pass", True),
        ("def f(x:", STUB, "def f(x, y=1):\n    pass", True),
        ("def f(x:", STUB, STUB, False),
        (F, None, "def f(x, y=1):\n    pass", True),
        ("def f(x:", None, "def f(x, y=1):\n    pass", False),
        (PAIR, PAIR, PAIR.replace("forward(self, x)", "forward(self, x, cache=None)"), True),
        (PAIR, None, PAIR + "    def third(self):\n        ...\n", True),
        (PAIR, PAIR, PAIR.replace("class C", "class C(Base)"), True),
    ],
)
def test_which_signatures_clash(written, old, new, conflict):
    assert clashes(written, old, new) is conflict


@pytest.mark.parametrize("new", [(), (exercise("renamed"),)])
def test_the_code_of_an_exercise_that_is_gone_stays_in_a_cell(course, new):
    course.write("f", F)
    (course.folder / marks.FILE).write_text('{"exercises": {"f": {"state": "solved"}}}')
    report = course.update(**{"00_one": changed(A, exercise("f"), *new)})
    after = course.read()
    kept = cell(after, F)
    assert "nbgrader" not in kept.metadata and "deletable" not in kept.metadata and kept["id"] != "f"
    assert "no exercise `f` any more" in after.cells[after.cells.index(kept) - 1].source
    assert report.changed["00_one"].conflicts == ["f is no exercise any more; your code stays in a cell"]
    assert place(after, "About f.") < place(after, F) < place(after, "Between.")
    assert (course.folder / marks.FILE).read_text() == '{"exercises": {"f": {"state": "solved"}}}'


# Notebooks that come, go and move.


def test_an_exercise_that_moves_takes_its_code_and_the_cells_around_it_along(course):
    course.write("f", F)
    with course.edit() as notebook:
        notebook.cells.insert(notebook.cells.index(cell(notebook, "f")), own("helper = 1"))
    report = course.update(**{"00_one": changed(A, exercise("f")), "01_two": (*B, exercise("f"))})
    assert F not in texts(course.read()) and "helper = 1" not in texts(course.read())
    after = course.read("01_two")
    assert cell(after, "f").source == F and place(after, "helper = 1") + 1 == place(after, F)
    assert report.changed["01_two"].carried == ["f"]


def test_a_notebook_with_a_new_name_keeps_all(course):
    course.write("f", F)
    with course.edit() as notebook:
        notebook.cells.append(own("mine"))
    report = course.update(**{"00_one": None, "03_one": NEW_PROSE})
    assert not course.path().exists()
    after = course.read("03_one")
    assert cell(after, "f").source == F and after.cells[-1].source == "mine"
    assert "00_one.ipynb is now 03_one.ipynb" in report.lines()
    assert not (course.folder / editions.EDITION / "00_one.ipynb").exists()


def test_a_new_name_is_followed_where_the_text_stays(course):
    report = course.update(**{"00_one": None, "03_one": A})
    assert not course.path().exists() and texts(course.read("03_one")) == texts(edition(A))
    assert (report.backup / "00_one.ipynb").is_file()


def test_a_notebook_that_leaves_the_course_stays_with_the_reader(course):
    course.write("h", "def h(x):\n    return 3", "01_two")
    before = course.path("01_two").read_bytes()
    report = course.update(**{"01_two": None, "02_other": (exercise("h"), prose("New."))})
    assert course.path("01_two").read_bytes() == before
    assert "01_two.ipynb is no longer part of the course; your notebook stays as it is" in report.lines()
    assert cell(course.read("02_other"), "h").source == "def h(x):\n    return 3"
    assert "02_other: carried 1 exercise, 0 of your own cells" in report.lines()


def test_new_and_deleted_notebooks_are_made_and_the_readers_copies_are_not_touched(course):
    course.write("f", F)
    course.path().rename(course.folder / "my_one.ipynb")
    before = (course.folder / "my_one.ipynb").read_bytes()
    report = course.update(**{"02_new": (exercise("k"),)})
    assert (course.folder / "my_one.ipynb").read_bytes() == before
    assert texts(course.read()) == texts(edition(A))
    assert report.lines()[:2] == ["00_one: a new blank notebook", "02_new: a new blank notebook"]


@pytest.mark.parametrize("data", [b"{", b'{"nbformat": 4}', b"\xff\xfe", b"[" * 100_000, b"3", b""])
def test_a_broken_notebook_is_put_aside(course, data):
    course.path().write_bytes(data)
    report = course.update()
    assert texts(course.read()) == texts(edition(A))
    assert (course.folder / "00_one.ipynb.broken").read_bytes() == data
    assert (report.backup / "00_one.ipynb").read_bytes() == data
    assert any(
        re.fullmatch(r"00_one\.ipynb could not be read \(.+\); it is kept as 00_one\.ipynb\.broken", line)
        for line in report.lines()
    )


# The backup, and what goes wrong.


def test_the_backup_holds_all_and_is_never_overwritten(course):
    course.write("f", F)
    (course.folder / marks.FILE).write_text("{}")
    (course.folder / "my.ipynb").write_text("mine")
    before = {str(path): data for path, data in course.files().items() if path.parts[0][0] != "."}
    assert before.keys() == {"00_one.ipynb", "01_two.ipynb", "my.ipynb", marks.FILE}
    first = course.update(**{"00_one": NEW_PROSE})
    second = course.update()
    assert first.backup != second.backup and first.backup.parent == course.folder / editions.BACKUPS
    assert {path.name: path.read_bytes() for path in first.backup.iterdir()} == before
    assert any(str(first.backup) in line for line in first.lines())


def test_a_workspace_from_before_editions_were_kept(course):
    course.write("f", F)
    with course.edit() as notebook:
        cell(notebook, "print(1)").source = "print(1 + 1)"
        notebook.cells.append(own("mine"))
    for path in (course.folder / editions.EDITION).iterdir():
        path.unlink()
    newer = changed(changed(NEW_PROSE, exercise("g", "x, dim"), exercise("g", "x, axis")), prose("Between."))
    report = course.update(**{"00_one": newer})
    after = course.read()
    assert cell(after, "f").source == F
    assert {"# One", "Between."}.isdisjoint(texts(after)), "what the course wrote is known by its id"
    assert {"print(1)", "print(1 + 1)", "mine"} <= set(texts(after))
    assert report.changed["00_one"].conflicts == [] and report.changed.keys() == {"00_one"}


def test_a_notebook_that_changes_while_the_update_runs_is_left_alone(course, monkeypatch):
    backup = editions.make_backup

    def save_meanwhile(folder):
        course.write("f", F)
        return backup(folder)

    monkeypatch.setattr(editions, "make_backup", save_meanwhile)
    with course.install(**{"00_one": NEW_PROSE, "01_two": (*B, prose("More."))}):
        report = update(course.folder)
    assert "00_one.ipynb was changed by another program meanwhile and stays as it is" in " ".join(report.notes)
    assert (course.folder / "00_one.ipynb.from-update").is_file()
    assert cell(course.read(), "f").source == F and "More." in texts(course.read("01_two"))
    monkeypatch.setattr(editions, "make_backup", backup)
    course.update(**{"00_one": NEW_PROSE, "01_two": (*B, prose("More."))})
    assert cell(course.read(), "f").source == F and "# One, newer" in texts(course.read())


@pytest.mark.parametrize("go_on", [update, learn])
def test_what_is_interrupted_is_completed(course, monkeypatch, go_on):
    course.write("f", F)
    course.write("h", "def h(x):\n    return 3", "01_two")
    # Two exercises change places: in whatever order the notebooks are written, one would be lost half-way.
    newer = {"00_one": changed(A, exercise("f"), exercise("h")), "01_two": changed(B, exercise("h"), exercise("f"))}
    start, replace, steps = course.files(), os.replace, 0
    monkeypatch.setattr(os, "fsync", lambda file: None)
    while True:
        left = [steps]

        def strike(*names, left=left):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            replace(*names)

        with course.install(**newer):
            monkeypatch.setattr(os, "replace", strike)
            try:
                update(course.folder)
                break
            except KeyboardInterrupt:
                steps += 1
            finally:
                monkeypatch.setattr(os, "replace", replace)
            go_on(course.folder)
            update(course.folder)
        assert cell(course.read("01_two"), "f").source == F
        assert cell(course.read(), "h").source == "def h(x):\n    return 3"
        for path in course.files():
            (course.folder / path).unlink()
        for path, data in start.items():
            (course.folder / path).write_bytes(data)
    assert steps >= 9  # the backup, four files staged, the plan, two notebooks


@pytest.mark.parametrize("blocked", ["backups", ".l1/pending"])
def test_a_folder_that_cannot_be_written_is_told_and_nothing_is_half_written(course, blocked):
    course.write("f", F)
    (course.folder / blocked).write_text("a file in the way")
    before = {path: data for path, data in course.files().items() if path.parts[0] != "backups"}
    with course.install(**{"00_one": NEW_PROSE}), pytest.raises(WorkspaceError, match="cannot be updated"):
        update(course.folder)
    assert {path: data for path, data in course.files().items() if "backups" not in path.parts[0]} == before


def test_a_read_only_folder_is_told(course):
    course.write("f", F)
    before = course.files()
    course.folder.chmod(0o555)
    read, write = os.pipe()
    if not (child := os.fork()):  # in a process of its own: root has to give up what makes it root
        try:
            if os.geteuid() == 0:
                drop_capabilities()
            with course.install(**{"00_one": NEW_PROSE}):
                update(course.folder)
        except WorkspaceError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    course.folder.chmod(0o755)
    message = os.read(read, 10_000).decode()
    assert re.search(r"the workspace .* cannot be updated \(Permission denied.*\); .* l1 update .* goes on", message)
    assert course.files() == before


def test_two_updates_at_once_are_not_made(course):
    course.write("f", F)
    before = course.files()
    with (
        alone(course.folder / editions.LOCK),
        course.install(**{"00_one": NEW_PROSE}),
        pytest.raises(WorkspaceError, match=r"another process holds .*lock; wait until it has ended"),
    ):
        update(course.folder)
    assert course.files() == before
    assert course.update(**{"00_one": NEW_PROSE}).changed.keys() == {"00_one"}


# The command line.


@pytest.fixture
def l1(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["l1", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return run


def test_learn_tells_of_a_newer_edition_and_update_brings_it(course, l1):
    course.write("f", F)
    newer = {"00_one": changed(A, exercise("f"), exercise("f", "x, dim"))}
    with course.install():
        assert "newer edition" not in l1("learn", course.folder, "--no-lab")[1]
    with course.install(**newer):
        before = course.files()
        status, out, _ = l1("learn", course.folder, "--no-lab")
        assert status == 0 and f"a newer edition is there: l1 update {course.folder}" in out
        assert course.files() == before
        status, out, err = l1("update", course.folder)
        assert (status, err) == (0, "")
        assert out.startswith("00_one: carried 1 exercise, 0 of your own cells; 1 conflict:\n  - f has a new signature")
        assert "everything as it was before: " in out
        assert "newer edition" not in l1("learn", course.folder, "--no-lab")[1]
        assert l1("update", course.folder)[1].startswith("nothing to update")


def test_learn_notes_the_edition_of_an_older_workspace(course):
    for path in (course.folder / editions.EDITION).iterdir():
        path.unlink()
    told = []
    course.write("f", F)
    with course.install():
        learn(course.folder, told.append)
    assert told == [] and editions.read_editions(course.folder).keys() == COURSE.keys()


def test_a_folder_that_is_no_workspace_is_told(l1, tmp_path):
    status, out, err = l1("update", tmp_path)
    assert (status, out) == (1, "")
    assert err == f"error: {tmp_path} is no workspace; l1 learn {tmp_path} makes one\n"


# Random readers, random updates: no written cell ever disappears.

NUMBERS = st.integers(0, 40)


def free_id(notebooks):
    """Return an id that no cell has, as JupyterLab does."""
    taken = {each["id"] for book in notebooks.values() for each in book.cells}
    return next(name for i in range(len(taken) + 1) if (name := f"new-{i}") not in taken)


def edit_as_a_reader(notebooks, kind, where, at, n):
    """Do one thing that a reader may do."""
    names = sorted(notebooks)
    cells = notebooks[names[where % len(names)]].cells
    if kind == "insert" or not cells:
        cells.insert(at % (len(cells) + 1), own(f"mine_{n}" if n % 7 else "", "code" if n % 2 else "markdown"))
        return
    each = cells[at % len(cells)]
    if kind == "write":
        blanks = [each for each in cells if "exercise" in sources.tags(each)] or [each]
        name = blanks[at % len(blanks)].metadata.get("name", "f")
        blanks[at % len(blanks)].source = f"def {name}(x):\n    return {n}"
    elif kind == "append":
        each.source += f"\n\n# written {n}"
    elif kind == "empty":
        each.source = ""
    elif kind == "delete":
        cells.remove(each)
    elif kind == "move":
        cells.remove(each)
        cells.insert(n % (len(cells) + 1), each)
    elif kind in ("copy", "paste", "split"):
        fresh, target = deepcopy(each), cells if kind != "paste" else notebooks[names[n % len(names)]].cells
        fresh["id"] = free_id(notebooks)
        if kind == "split":
            lines = each.source.split("\n")
            each.source, fresh.source = "\n".join(lines[: n % 3]), "\n".join(lines[n % 3 :])
        target.insert((at if kind == "split" else n) % (len(target) + 1), fresh)
    elif kind == "retype":
        kept = {key: each[key] for key in ("id", "metadata", "source")}
        each.clear()
        each.update(nbformat.from_dict({"cell_type": ("raw", "markdown")[n % 2], **kept}))
    elif kind == "strip":
        each["metadata"] = nbformat.NotebookNode()
    elif kind == "forget":
        each["id"] = free_id(notebooks)


READER = ["insert", "write", "append", "empty", "delete", "move", "copy", "paste", "split", "retype", "strip", "forget"]


def edit_as_the_course(course, kind, where, at, n):
    """Do one thing that an update of the course may do."""
    names = sorted(course)
    name = names[where % len(names)]
    cells = list(course[name])
    spot = at % len(cells) if cells else 0
    if kind == "add":
        cells.insert(spot, (prose(f"New {n}."), code(f"new_{n} = 1"), exercise(f"new_{n}"))[n % 3])
    elif kind == "notebook":
        course[f"0{n % 9}_extra"] = (prose(f"# Extra {n}"), exercise(f"extra_{n % 9}"))
    elif kind == "name":
        course[f"0{n % 9}_renamed_{name[:2]}"] = course.pop(name)
        return
    elif kind == "leave" and len(names) > 1:
        del course[name]
        return
    elif cells and kind in ("remove", "shift", "change"):
        taken = cells.pop(spot)
        if kind == "shift":
            other = names[n % len(names)]
            target = cells if other == name else list(course[other])
            target.insert(n % (len(target) + 1), taken)
            course[other] = tuple(target)
        elif kind == "change" and taken[0] == "exercise":
            different = (exercise(f"called_{n}"), exercise(taken[1], f"x, a{n}"), exercise(taken[1], "x", f"Do {n}."))
            cells.insert(spot, different[n % 3])
        elif kind == "change":
            cells.insert(spot, (taken[0], f"{taken[1]} {n}" if taken[0] == "prose" else f"{taken[1]}  # {n}"))
    course[name] = tuple(cells)


COURSES = ["add", "notebook", "name", "leave", "remove", "shift", "change", "change"]


def is_consistent(course):
    """Tell whether every exercise stands once: the course's own tests hold it to that."""
    names = [cell[1] for cells in course.values() for cell in cells if cell[0] == "exercise"]
    return len(names) == len(set(names)) and all(course.values())


@pytest.fixture(scope="module")
def handed_out(tmp_path_factory):
    """Return a workspace of the small course as it was handed out."""
    with installed(COURSE):
        return learn(tmp_path_factory.mktemp("workspaces") / "fresh").parent


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from(READER), NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=8),
    st.lists(st.tuples(st.sampled_from(COURSES), NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=5),
    st.booleans(),
)
def test_no_written_cell_ever_disappears(handed_out, edits, changes, is_known):
    new = dict(COURSE)
    for change in changes:
        trial = dict(new)
        edit_as_the_course(trial, *change)
        new = trial if is_consistent(trial) else new
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        folder = Path(shutil.copytree(handed_out, Path(folder) / "workspace"))
        if not is_known:
            for path in (folder / editions.EDITION).iterdir():
                path.unlink()
        mine = {name: nbformat.read(folder / f"{name}.ipynb", as_version=4) for name in COURSE}
        for edit in edits:
            edit_as_a_reader(mine, *edit)
        for name, notebook in mine.items():
            (folder / f"{name}.ipynb").write_text(nbformat.writes(notebook), encoding="utf-8")
        with installed(new):
            update(folder)
            after = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.ipynb")}
            again = update(folder)
            assert again.backup is None and not again.changed
        assert {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.ipynb")} == after
    require_all_is_there(
        mine, new, {name: nbformat.reads(text, as_version=4) for name, text in after.items()}, is_known
    )


def require_all_is_there(mine, new, after, is_known):
    old = {name: edition(cells) for name, cells in COURSE.items()}
    fresh = {name: edition(cells) for name, cells in new.items()}
    given_out = {plain(each.source) for book in (*old.values(), *fresh.values()) for each in book.cells} | {""}
    written = {plain(each.source) for book in mine.values() for each in book.cells} - given_out
    assert written <= {plain(each.source) for book in after.values() for each in book.cells}
    for name, book in fresh.items():
        result = after[name]
        nbformat.validate(result)
        assert as_text(result)
        by_id = {each["id"]: each for each in result.cells}
        assert len(by_id) == len(result.cells)
        # What is of the newest edition already stays as the reader has it; and where the edition is not known, cells
        # in another order are taken for it.
        before, now = COURSE.get(name, ()), new[name]
        if before != now if is_known else sorted(before) != sorted(now):
            ids = [each["id"] for each in book.cells]
            assert [each["id"] for each in result.cells if each["id"] in set(ids)] == ids
            assert locked(result) == locked(book)
            for each in book.cells:
                if "exercise" in sources.tags(each):
                    # A new name of a notebook is followed where its edition is known; else the old one stays beside it.
                    places = {other: book for other, book in mine.items() if is_known or other in new}
                    require_code(each, by_id[each["id"]].source, name, places, given_out, is_known)
                else:
                    assert by_id[each["id"]].source == each.source
        assert {each.metadata.name for each in book.cells if "exercise" in sources.tags(each)} <= {
            each.metadata.get("name") for each in result.cells
        }
        assert set(locked(book)) <= set(locked(result))


def locked(notebook):
    cells = [each for each in notebook.cells if each.metadata.get("nbgrader", {}).get("locked")]
    return [(each.metadata.name, each.cell_type, each.source) for each in cells]


def require_code(blank_cell, source, name, mine, given_out, is_known):
    """Hold an exercise to the reader's code of its name: in the notebook where it was or is, in a cell of code."""
    key = blank_cell["id"]
    places = [
        other
        for other in mine
        if not is_known or other == name or any(e[:2] == ("exercise", key) for e in COURSE[other])
    ]
    candidates = {
        plain(each.source)
        for other in places
        for each in mine[other].cells
        if (each.metadata.get("name") or each["id"]) == key and (each.cell_type == "code")
    } - given_out
    prose_too = {plain(each.source) for book in mine.values() for each in book.cells if each.cell_type != "code"}
    if candidates:
        assert plain(source) in candidates | prose_too
    elif is_known:
        assert source == blank_cell.source or plain(source) in prose_too
