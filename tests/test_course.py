"""The reader's workspace, the blank edition, and the rules that sources keep."""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from l1_ref.checks import EXERCISES, marks
from l1_ref.course import build, sources, workspace
from l1_ref.course.blank import blank, instructor, with_regions
from l1_ref.course.workspace import WorkspaceError, learn, open_lab

SOFTMAX_HINTS = EXERCISES["softmax"].hints
SOURCE = '''# %% [markdown]
# # A title

# %% tags=["exercise"] name="double" points=2 difficulty="easy" minutes=5
def double(x):
    """Return twice x."""
    # Why: because.
    y = x + x
    return y


class Pair:
    """Two things."""

    size = 2

    def __init__(self, a, b):
        self.a, self.b = a, b

    def both(
        self,
    ):
        # a comment
        return self.a, self.b


# %% tags=["check"]
assert double(2) == 4
'''
BLANK = '''def double(x):
    """Return twice x."""
    raise NotImplementedError("not written yet")


class Pair:
    """Two things."""

    size = 2

    def __init__(self, a, b):
        raise NotImplementedError("not written yet")

    def both(
        self,
    ):
        raise NotImplementedError("not written yet")'''


# The blank edition.


def test_a_blank_keeps_signatures_and_docstrings_and_nothing_else():
    exercise = blank(sources.parse(SOURCE)).cells[2]
    assert exercise.source == BLANK


def test_run_all_goes_on_behind_a_blank():
    notebook = blank(sources.parse("# %%\nx = 1\n\n" + SOURCE))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert ["raises-exception" in sources.tags(cell) for cell in code] == [False, True, True]


def test_nbgraders_metadata_comes_from_the_tags():
    _, _, exercise, check = blank(sources.parse(SOURCE)).cells
    assert exercise.metadata.nbgrader.solution and not exercise.metadata.nbgrader.grade
    assert exercise.metadata.nbgrader.grade_id == "double" and exercise.metadata.nbgrader.schema_version == 3
    assert check.metadata.nbgrader.grade and check.metadata.nbgrader.locked
    assert check.metadata.nbgrader.points == 2 and check.metadata.nbgrader.grade_id == "double-check"
    assert check.metadata.deletable is False and check.metadata.editable is False


def test_markers_are_seen_only_by_nbgrader():
    notebook = sources.parse(SOURCE)
    assert "BEGIN SOLUTION" in instructor(notebook).cells[2].source
    assert all("SOLUTION" not in cell.source for edition in (notebook, blank(notebook)) for cell in edition.cells)
    assert "nbgrader" not in notebook.cells[2].metadata


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def f(x): return x", "must stand on lines of its own"),
        ('def f(x):\n    """Only this."""', "has no body"),
        ("x = 1", "must define a function or a class"),
    ],
)
def test_what_cannot_be_blanked_is_an_error(code, words):
    with pytest.raises(ValueError, match=words):
        with_regions(code)


def test_an_exercise_is_led_by_its_facts_and_its_folded_hints():
    guide = sources.parse(SOURCE.replace('"double"', '"softmax"')).cells[1].source
    assert guide.startswith("Difficulty: easy. About 5 minutes. 2 points.")
    assert [guide.count(f"<summary>Hint {n}</summary>\n\n{hint}") for n, hint in enumerate(SOFTMAX_HINTS, 1)] == [1] * 3


def test_the_words_of_a_guide_do_not_count():
    long = "# %% [markdown]\n# " + "word " * 2500 + "\n\n"
    assert sources.broken_rules(sources.parse(long + SOURCE.split("\n\n", 1)[1])) == []


# Sources.


def test_ids_depend_on_names_and_content_alone():
    first, again = sources.parse(SOURCE), sources.parse(SOURCE)
    longer = sources.parse("# %% [markdown]\n# New.\n\n" + SOURCE)
    ids = [cell["id"] for cell in first.cells]
    assert ids == [cell["id"] for cell in again.cells] == [cell["id"] for cell in longer.cells][1:]
    assert ids[1:] == ["double-guide", "double", "double-check"]


def test_equal_cells_get_different_ids():
    notebook = sources.parse("# %%\nprint(1)\n\n# %%\nprint(1)\n")
    assert len({cell["id"] for cell in notebook.cells}) == 2


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ('# %% tags=["exercise"] name="f"\ndef f():\n    return 1\n', "followed directly by its check"),
        ('# %% tags=["check"]\nprint(1)\n', "directly below an exercise"),
        (
            '# %% tags=["exercise"] name="f" difficulty="odd" minutes=5\ndef f():\n    return 1\n',
            "must have a difficulty",
        ),
        ('# %% tags=["exercise"] name="f" difficulty="easy"\ndef f():\n    return 1\n', "and minutes (a whole number)"),
        ("# %%\n" + "print(1)\n" * 21, "at most 20 lines, got 21"),
        ("# %% [markdown]\n# " + "word " * 2501 + "\n", "within 2500 words, got 2501"),
        ("# %% [markdown]\n# ![](picture.png)\n", "no alt text"),
        ("# %%\nplots.show(figure)\n", "needs alt="),
        ('# %%\nplots.show(figure, alt=" ")\n', "needs alt="),
    ],
)
def test_a_broken_rule_is_told(source, words):
    assert any(words in problem for problem in sources.broken_rules(sources.parse(source)))


def test_a_good_source_breaks_no_rule():
    assert sources.broken_rules(sources.parse(SOURCE)) == []


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (nbformat.v4.new_output("display_data", data={"image/png": "aaaa"}), "without alt text"),
        (nbformat.v4.new_output("display_data", data={"text/html": "<img src='x'>"}), "without alt text"),
        (nbformat.v4.new_output("display_data", data={"text/html": "<img alt='' src='x'>"}), "without alt text"),
        (nbformat.v4.new_output("stream", name="stderr", text="a warning"), "writes to stderr: a warning"),
        (nbformat.v4.new_output("error", ename="E", evalue="why", traceback=[]), "it ends in E: why"),
    ],
)
def test_outputs_keep_rules_too(output, words):
    notebook = sources.parse("# %%\nprint(1)\n")
    notebook.cells[0].outputs = [output]
    assert any(words in problem for problem in sources.broken_rules(notebook))


# Building.


def test_a_slider_is_not_kept_without_its_kernel():
    notebook = sources.parse("# %%\nx = 1\n")
    figure = nbformat.v4.new_output("display_data", data={"text/html": "<img alt='a' src='x'>"})
    slider = nbformat.v4.new_output("display_data", data={build.WIDGET: {}, "text/plain": "SelectionSlider(…)"})
    notebook.cells[0].outputs = [figure, slider]
    build._tidy(notebook)
    assert notebook.cells[0].outputs == [figure]


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course of one small notebook, built."""
    source, built = tmp_path / "src", tmp_path / "built"
    source.mkdir()
    (source / "00_small.py").write_text("# %% [markdown]\n# Text.\n\n# %%\nx = 1\n", encoding="utf-8")
    monkeypatch.setattr(sources, "SOURCES", source)
    (path,) = build.build(execute=False, folder=built)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].execution_count = 1
    path.write_text(build.as_text(notebook), encoding="utf-8")
    return tmp_path


def test_a_built_notebook_matches_its_source(course):
    assert build.check_built(course / "built") == []


def change(cell_part, value):
    def do(notebook):
        notebook.cells[1][cell_part] = value

    return do


@pytest.mark.parametrize(
    ("do", "words"),
    [
        (change("source", "x = 2"), "its source is not"),
        (change("metadata", {"tags": ["exercise"]}), "its metadata is not"),
        (change("id", "other"), "the cells are not those of the source"),
        (change("execution_count", 3), "not run from top to bottom"),
        (lambda notebook: notebook.cells.pop(), "the cells are not those of the source"),
        (lambda notebook: notebook.metadata.update(title="x"), "the notebook's metadata"),
    ],
)
def test_what_differs_from_the_source_is_told(course, do, words):
    path = course / "built" / "00_small.ipynb"
    notebook = nbformat.read(path, as_version=4)
    do(notebook)
    path.write_text(nbformat.writes(notebook), encoding="utf-8")
    (problem,) = [each for each in build.check_built(course / "built") if "breaks" not in each and words in each]
    assert problem.startswith("00_small: ")


def test_missing_damaged_and_stray_notebooks_are_told(course):
    path = course / "built" / "00_small.ipynb"
    path.rename(course / "built" / "07_stray.ipynb")
    assert build.check_built(course / "built") == ["00_small: not built yet", "07_stray: there is no source for it"]
    path.write_text("{", encoding="utf-8")
    assert "is no notebook" in build.check_built(course / "built")[0]


def test_a_notebook_that_breaks_a_rule_is_not_written(course):
    (sources.SOURCES / "01_long.py").write_text("# %%\n" + "print(1)\n" * 30, encoding="utf-8")
    with pytest.raises(ValueError, match=r"01_long: cell .*: a cell must have at most 20 lines, got 30"):
        build.build(execute=False, folder=course / "elsewhere")
    assert not (course / "elsewhere").exists()
    with pytest.raises(ValueError, match="there is no notebook '05_none'; there are: 00_small, 01_long"):
        build.build(["05_none"])


# The workspace.


def test_a_workspace_is_made_and_gone_on_with(tmp_path):
    first = learn(tmp_path / "a" / "b")
    assert first == tmp_path / "a" / "b" / "00_start_here.ipynb"
    nbformat.validate(nbformat.read(first, as_version=4))
    assert {path.name for path in first.parent.iterdir()} == {
        marks.MARKER, ".l1", "glossary.md", *(f"{name}.ipynb" for name in sources.names())
    }  # fmt: skip
    first.write_text("my work", encoding="utf-8")
    assert learn(first.parent) == first
    assert first.read_text(encoding="utf-8") == "my work"


def test_a_notebook_that_was_removed_comes_back_blank(tmp_path):
    path = learn(tmp_path)
    path.unlink()
    learn(tmp_path)
    assert "raise NotImplementedError" in path.read_text(encoding="utf-8")


def test_it_goes_on_at_the_first_unfinished_notebook(tmp_path, monkeypatch):
    rows = [marks.Row("00_a", "x", "solved", 1, 0), marks.Row("00_a", "y", "given", 0, 0)]
    rows += [marks.Row("01_b", "z", "tried", 2, 0), marks.Row("02_c", "w", "open", 0, 0)]
    monkeypatch.setattr(workspace, "progress_table", lambda folder: rows)
    monkeypatch.setattr(sources, "names", lambda: ["00_a", "01_b", "02_c"])
    assert workspace._next_notebook(tmp_path) == "01_b"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.sets(st.sampled_from(["00_start_here.ipynb", "progress.json", "notes.txt", ".DS_Store"])), st.booleans())
def test_nothing_in_a_folder_is_ever_changed(tmp_path_factory, names, marked):
    folder = tmp_path_factory.mktemp("workspace")
    for name in names:
        (folder / name).write_text(json.dumps({"exercises": {}, "mine": name}), encoding="utf-8")
    if marked:
        (folder / marks.MARKER).write_text("mine", encoding="utf-8")
    before = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    foreign = not marked and "progress.json" not in names and any(not name.startswith(".") for name in names)
    if foreign:
        with pytest.raises(WorkspaceError, match="is no workspace of this course"):
            learn(folder)
        assert {path.name for path in folder.iterdir()} == set(before)
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sources, "names", lambda: ["00_start_here"])  # one of them will do, and is quicker
            learn(folder)
    assert {name: (folder / name).read_text(encoding="utf-8") for name in before} == before


def test_no_workspace_is_made_inside_another_and_a_reader_inside_one_means_it(tmp_path, monkeypatch, l1):
    place = tmp_path / "workspace"
    learn(place)
    monkeypatch.chdir(place)
    with pytest.raises(WorkspaceError, match=r"lies inside the workspace .*; go on in that one: l1 learn"):
        learn("workspace")
    status, out, _ = l1("learn", "--no-lab")
    assert status == 0 and f"workspace: {place}   next: 00_start_here.ipynb" in out
    assert l1("update")[:2] == (0, "nothing to update: every notebook is of the newest edition\n")
    assert not (place / "workspace").exists()


def test_a_terminal_in_jupyterlab_knows_l1(tmp_path, monkeypatch):
    seen = {}

    def start(command, cwd, env):
        seen.update(env)
        return nullcontext(SimpleNamespace(wait=lambda: 0))

    monkeypatch.setattr("l1_ref.course.workspace.subprocess.Popen", start)
    assert open_lab(tmp_path / "00_start_here.ipynb") == 0
    assert Path(seen["PATH"].split(os.pathsep)[0]) == Path(sys.executable).parent


def test_a_file_is_no_workspace(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match="must be a folder, got the file"):
        learn(tmp_path / "file")
    with pytest.raises(WorkspaceError, match="cannot be written"):
        learn(tmp_path / "file" / "below")


def test_a_folder_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(workspace, "write_atomic", refuse)
    with pytest.raises(
        WorkspaceError, match=r"cannot be written \(Permission denied\); choose another: l1 learn FOLDER"
    ):
        learn(tmp_path / "new")
