"""`l1 check`, `l1 progress` and `l1 show`: the checks of a workspace's notebooks, run without a browser."""

import asyncio
import json
import os
import re
import threading
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest
from typer.testing import CliRunner

from l1_ref import cli
from l1_ref.checks import marks
from l1_ref.course import build, checking, outcomes, sources, standing, tables
from l1_ref.course.outcomes import Outcome, Result
from l1_ref.course.workspace import learn

STUB = '    raise NotImplementedError("not written yet")'
LOOP = "import time\nwhile True:\n    time.sleep(0.01)"
# One notebook with each way that an exercise can end.
CELLS = {
    "import": "import os\nimport torch\nfrom l1_ref import checks",
    "": "print('from past Jupyter', file=open(1, 'w', closefd=False)); checks.hint('softmax')",
    "softmax": "def softmax(x, dim):\n    return torch.softmax(x, dim)",
    "tempered_softmax": "def tempered_softmax(x, temperature):\n    return torch.softmax(x * temperature, -1)",
    "count_pairs": "count_pairs = checks.give('count_pairs')",
    "merge_pair": f"def merge_pair(word, pair, new_id):\n{STUB}",
    "demo": "merge_pair((1, 2), (1, 2), 3)",
    "decode": LOOP + "\ndecode = len",
    "greedy": "def greedy(logits:",
    "helper": "from nowhere import gelu",
    "gelu": "",
    "layer_norm": "layer_norm = 3",
    "split_heads": "def split_heads(x, n_heads):\n    return x",
}
EXERCISES = [*list(CELLS)[2:6], "decode", "greedy", "gelu", "layer_norm", "split_heads"]
NO_CHECK = ("split_heads",)


def notebook(cells: dict[str, str]) -> nbformat.NotebookNode:
    """Make a blank edition's cells by hand: exercises have their checks, every cell may fail."""
    made = nbformat.v4.new_notebook()
    for name, source in cells.items():
        exercise = name in EXERCISES
        metadata = {"name": name, "tags": ["exercise"] * exercise} if name else {}
        made.cells.append(nbformat.v4.new_code_cell(source, metadata=metadata))
        if exercise and name not in NO_CHECK:
            metadata = {"name": f"{name}-check", "tags": ["check"]}
            made.cells.append(nbformat.v4.new_code_cell(f"checks.{name}({name})", metadata=metadata))
    return made


def write(path: Path, cells: dict[str, str]) -> Path:
    path.write_text(build.as_text(notebook(cells)), encoding="utf-8")
    return path


def l1(*arguments: object):
    return CliRunner().invoke(cli.app, [*map(str, arguments)])


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    """Return a workspace with two notebooks of the course by name, and be elsewhere."""
    monkeypatch.delenv("L1_WORKSPACE", raising=False)
    folder = tmp_path / "my work"
    folder.mkdir()
    (folder / marks.MARKER).write_text("")
    for name in ("00_start_here", "03_attention"):
        write(folder / f"{name}.ipynb", {"one": "1 + 1"})
    monkeypatch.chdir(tmp_path)
    return folder


# A real run, in a kernel.


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Return a workspace whose one notebook was checked twice, the command's result, and what stood there before."""
    folder = tmp_path_factory.mktemp("workspace")
    (folder / marks.MARKER).write_text("")
    path = write(folder / "99_mine.ipynb", CELLS)
    before = path.read_bytes()

    def limit(run: checking.NotebookRun):
        """Give only the endless loop a short time, so that a slow machine's imports have enough."""

        async def patient(client, of=run._limit):
            name = run.notebook.cells[run._current].metadata.get("name")
            run.timeout_s = 1.0 if name == "decode" else 60.0
            await of(client)

        return patient

    def patched(self, *arguments):
        original(self, *arguments)
        self._limit = limit(self)

    original = checking.NotebookRun.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checking.NotebookRun, "__init__", patched)
        patch.delenv("L1_WORKSPACE", raising=False)
        result = l1("check", path, "--json", "--junit", folder / "out" / "junit.xml")
    return folder, result, before


@pytest.fixture(scope="module")
def told(ran) -> dict[str, dict]:
    (found,) = json.loads(ran[1].stdout)["notebooks"]
    return {each["exercise"]: each for each in found["exercises"]}


def test_json_alone_is_printed_and_the_status_says_that_something_is_left(ran):
    folder, result, _ = ran
    assert result.exit_code == 1 and result.stderr == ""
    found = json.loads(result.stdout)
    assert found["passed"] is False and found["notebooks"][0]["path"] == str(folder / "99_mine.ipynb")
    assert found["counts"] == {"solved": 1, "given": 1, "wrong": 2, "unwritten": 1, "unreached": 4}
    assert found["notebooks"][0]["stopped"] == "" and found["notebooks"][0]["elapsed_s"] > 0


def test_each_exercise_has_its_state_and_a_mistake_its_name(told):
    states = {name: each["state"] for name, each in told.items()}
    assert states == dict.fromkeys(EXERCISES, "unreached") | {
        "softmax": "solved", "tempered_softmax": "wrong", "count_pairs": "given", "merge_pair": "unwritten",
        "layer_norm": "wrong",
    }  # fmt: skip
    assert "temperature" in told["tempered_softmax"]["mistakes"][0]
    assert told["tempered_softmax"]["text"].startswith("✗ tempered_softmax · looks like: ")
    assert told["softmax"]["elapsed_s"] > 0


def test_what_was_not_reached_says_which_cell_failed(told):
    assert told["decode"]["text"] == "cell [12] (decode) failed: no end after 1 s"
    assert re.fullmatch(r"cell \[14\] \(greedy\) failed: SyntaxError: .+ \(line 1\)", told["greedy"]["text"])
    assert told["gelu"]["text"] == (
        "NameError: name 'gelu' is not defined; before, cell [16] (helper) failed: "
        "ModuleNotFoundError: No module named 'nowhere'"
    )
    assert told["split_heads"]["text"] == "its check is not in the notebook"


def test_the_readers_files_stay_as_they_are_and_progress_gets_what_is_new(ran):
    folder, _, before = ran
    assert (folder / "99_mine.ipynb").read_bytes() == before
    assert {path.name for path in folder.iterdir()} == {marks.MARKER, marks.FILE, "99_mine.ipynb", "out"}
    entries = marks.read(folder)
    assert {name: (entry["state"], entry["tries"]) for name, entry in entries.items()} == {
        "softmax": ("solved", 1), "tempered_softmax": ("wrong", 1), "count_pairs": ("given", 0),
        "layer_norm": ("wrong", 1),
    }  # fmt: skip
    assert entries["softmax"]["hints"] == 0  # a hint that a cell prints is not one that was asked for


def test_junit_says_what_the_exit_status_says(ran):
    root = ElementTree.parse(ran[0] / "out" / "junit.xml").getroot()
    assert root.tag == "testsuites"
    (suite,) = root
    assert (suite.get("name"), suite.get("tests"), suite.get("failures"), suite.get("errors")) == (
        "99_mine",
        "9",
        "3",
        "4",
    )
    cases = {case.get("name"): case for case in suite}
    assert list(cases["softmax"]) == list(cases["count_pairs"]) == []
    assert cases["merge_pair"].find("failure").get("message") == "not written yet"
    assert "temperature" in cases["tempered_softmax"].find("failure").get("message")
    assert cases["gelu"].find("error").get("type") == "unreached"


def test_a_kernel_that_dies_costs_its_notebook_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(checking, "_GRACE_S", 0.1)
    deaf = "import time\nwhile True:\n    try:\n        time.sleep(0.01)\n    except KeyboardInterrupt:\n        pass"
    cells = {
        "dies": {"softmax": "import os", "": "os._exit(1)", "greedy": "1"},
        "deaf": {"x": deaf},
        "fine": {"x": "1"},
    }
    runs = [checking.NotebookRun(write(tmp_path / f"{name}.ipynb", each)) for name, each in cells.items()]
    runs[1].timeout_s = 0.5
    ended: list[str] = []
    dead, deaf, fine = checking.run_all(runs, jobs=3, done=lambda outcome: ended.append(outcome.notebook))
    assert dead.stopped == "cell [3] (os._exit(1)): the kernel died"
    softmax, greedy = dead.results
    assert softmax.text == "NameError: name 'checks' is not defined" and greedy.text == dead.stopped
    assert deaf.stopped == "cell [1] (x): no end after 0.5 s, and it could not be interrupted"
    assert fine.stopped == "" and sorted(ended) == ["deaf", "dies", "fine"]
    assert not outcomes.all_passed([deaf]) and outcomes.all_passed([fine])


def test_an_interruption_ends_the_kernels(tmp_path, monkeypatch):
    source = "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))"
    path = write(tmp_path / "a.ipynb", {"x": source, "y": "while True:\n    time.sleep(0.01)", "z": "1"})
    reached, seen = threading.Event(), []

    def tell(name: str) -> None:
        seen.append(name)
        if len(seen) == 2:
            reached.set()

    def interrupted(*_, **__):
        assert reached.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr(checking, "wait", interrupted)
    runs = [checking.NotebookRun(path), checking.NotebookRun(path)]
    ended: list[Outcome] = []
    with pytest.raises(KeyboardInterrupt):
        checking.run_all(runs, tell=tell, done=ended.append)
    assert ended == [] and len(seen) == 2  # the second notebook never began
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_an_interruption_before_the_first_kernel_starts_none(tmp_path):
    team = checking._Team([checking.NotebookRun(write(tmp_path / "a.ipynb", {"x": "1"}))], 1, str, str)
    team.stop()
    with pytest.raises(asyncio.CancelledError):
        team.work()
    team.stop()  # when all has ended it does nothing


# What came of it, as text.


def outcome(*results: Result, stopped: str = "") -> Outcome:
    return Outcome("03_attention", Path("ws/03_attention.ipynb"), results, 1.5, stopped)


SOLVED = Result("softmax", "solved", (), "✓ softmax · right", 0.25)
WRONG = Result("gelu", "wrong", ("one", "two"), "✗ gelu · looks like: one, and two\n  more")
UNKNOWN = Result("gelu", "wrong", (), "✗ gelu · output is not right\n  more")


def test_the_table_has_a_line_an_exercise_and_nothing_is_cut_in_a_pipe(capsys):
    from l1_ref.course.commands import out

    long = Result("L1Model", "wrong", ("a mistake " * 30,), "✗")
    gone = Result("greedy", "unreached", (), "NameError: x")
    blank = Result("sample", "unwritten", (), "· sample · not written yet")
    found = [outcome(SOLVED, WRONG, UNKNOWN, long, gone, blank, stopped="cell [9]: the kernel died")]
    tables.show(tables.of_checks(found), out)
    lines = [line.split(maxsplit=4) for line in capsys.readouterr().out.splitlines()]
    assert lines[1:4] == [
        ["✓", "03_attention", "softmax", "solved"],
        ["✗", "03_attention", "gelu", "wrong", "one, and two"],
        ["✗", "03_attention", "gelu", "wrong", "output is not right"],
    ]
    assert lines[4][4] == ("a mistake " * 30).strip()
    assert lines[5] == ["!", "03_attention", "greedy", "not", "reached  NameError: x"]
    assert lines[6] == ["·", "03_attention", "sample", "not", "written"]
    assert lines[7] == ["!", "03_attention", "stopped", "cell", "[9]: the kernel died"]
    assert tables.summary(found) == "1 solved, 3 wrong, 1 not written, 1 not reached · 1 notebook"


def test_junit_is_well_formed_whatever_a_reader_prints():
    bad = Result("gelu", "wrong", (), "✗ gelu · \x1b[31m<&>\"'\x00\ud800 ]]>\nü")
    root = ElementTree.fromstring(outcomes.as_junit([outcome(bad, stopped="it <died>")]).encode())
    failure, stopped = root.find(".//failure"), root.find(".//error")
    assert failure.get("message") == "\ufffd[31m<&>\"'\ufffd\ufffd ]]>" and failure.text.endswith("]]>\nü")
    assert stopped.get("message") == "it <died>" and root.get("errors") == "1" and root.get("tests") == "2"
    assert ElementTree.fromstring(outcomes.as_junit([]).encode()).tag == "testsuites"


@pytest.mark.parametrize(
    ("found", "status"),
    [([outcome(SOLVED)], 0), ([outcome(Result("gelu", "given", (), ""))], 0), ([outcome(SOLVED, WRONG)], 1),
     ([outcome(SOLVED, stopped="dead")], 1), ([outcome(Result("gelu", "refused", (), "no"))], 1)],
)  # fmt: skip
def test_the_exit_status_says_whether_all_is_done(workspace, monkeypatch, found, status):
    monkeypatch.setattr(checking, "run_all", lambda *_: found)
    result = l1("check", "--workspace", workspace)
    assert result.exit_code == status and result.stdout.splitlines()[-1] == tables.summary(found)


def test_ctrl_c_is_one_line_and_status_130(workspace, monkeypatch):
    def stop(runs, *_):
        runs[0].ended = True
        raise KeyboardInterrupt

    monkeypatch.setattr(checking, "run_all", stop)
    result = l1("check", "--workspace", workspace, "--json")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "stopped: 1 of 2 notebooks were checked to their end\n"


# Which notebooks.


@pytest.mark.parametrize(
    ("names", "found"),
    [([], ["00_start_here", "03_attention"]), (["03"], ["03_attention"]), (["3"], ["03_attention"]),
     (["attention"], ["03_attention"]),
     (["03_attention", "03"], ["03_attention"]), (["03_attention.ipynb", "00"], ["03_attention", "00_start_here"])],
)  # fmt: skip
def test_notebooks_are_found_by_number_name_or_path(workspace, names, found):
    assert [path.stem for path in checking.find(names, workspace)] == found
    assert checking.find([str(workspace / "03_attention.ipynb")], workspace / "else") == [
        workspace / "03_attention.ipynb"
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["77"], "NOTEBOOK must name a notebook that is there, got '77'; my work holds: 00_start_here, 03_attention"),
        (
            ["softmax"],
            "NOTEBOOK must name a notebook that is there, got 'softmax'; softmax is an exercise of 00",
        ),
        (["none.ipynb"], "NOTEBOOK must name a notebook that is there, got 'none.ipynb'"),
        (["--jobs", "0"], "--jobs must be a whole number of at least 1, got --jobs=0"),
        (["--timeout", "0"], "--timeout must be a finite number of seconds above 0, got 0.0"),
        (["--timeout", "nan"], "--timeout must be a finite number of seconds above 0, got nan"),
        (["--junit", "."], "--junit must name a file, got the folder ."),
        (["--workspace", "no where"], "no where is no workspace; l1 learn 'no where' makes one"),
    ],
)
def test_bad_input_is_one_line_and_status_2(workspace, arguments, words):
    result = l1("check", "--workspace", "my work", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {words}") and result.stderr.count("\n") == 1


def test_a_workspace_without_notebooks_is_told(workspace):
    for path in workspace.glob("*.ipynb"):
        path.unlink()
    result = l1("check", "--workspace", workspace)
    assert result.exit_code == 2 and "holds no notebook of the course; l1 learn" in result.stderr


def test_a_notebook_without_a_check_is_nothing_to_run(workspace):
    path = write(workspace / "mine.ipynb", {"one": "1 + 1"})
    result = l1("check", path)
    assert result.exit_code == 2 and "no exercises" in result.stdout


def test_a_report_that_cannot_be_written_costs_no_result(workspace):
    (workspace / "file").write_text("")
    result = l1("check", "03", "--workspace", workspace, "--junit", workspace / "file" / "junit.xml")
    assert result.exit_code == 2 and "03_attention" in result.stdout
    assert result.stderr.splitlines()[-1].startswith(f"error: cannot write {workspace / 'file' / 'junit.xml'}")


def test_what_is_as_it_was_handed_out_is_not_run(tmp_path, monkeypatch):
    learn(tmp_path / "fresh")
    monkeypatch.setattr(checking.NotebookRun, "_execute", None)  # a call of it would fail
    told: list[str] = []
    run = checking.NotebookRun(tmp_path / "fresh" / "03_attention.ipynb")
    (found,) = checking.run_all([run], tell=told.append)
    assert {result.state for result in found.results} == {"unwritten"} and len(found.results) == 7
    assert run.ended and told == ["03_attention"] * run.n_cells


CELL = '{"cells": [{"cell_type": "code", "source": %s, "metadata": %s, "outputs": [], "execution_count": null}], '
CELL += '"metadata": {}, "nbformat": 4, "nbformat_minor": 4}'


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"cells": 3}', "\xff", CELL % ("7", "{}"), CELL % ('"1"', '{"tags": 7}')]
)
def test_a_broken_notebook_is_not_reached_and_stops_no_other(workspace, content):
    path = workspace / "03_attention.ipynb"
    path.write_bytes(content.encode("latin-1"))
    found = asyncio.run(checking.NotebookRun(path).run())
    assert found.stopped.startswith("03_attention.ipynb is no notebook: ")
    assert {result.state for result in found.results} == {"unreached"} and len(found.results) == 7
    assert {result.text for result in found.results} == {found.stopped}


def test_what_cannot_be_noted_is_not(tmp_path):
    checking.record(Outcome("99_a", tmp_path / "99_a.ipynb", (SOLVED,), 1.0))
    assert list(tmp_path.iterdir()) == []


def test_several_notebooks_share_the_cores(tmp_path, monkeypatch):
    seen: list[dict] = []

    class Client:
        km = None

        async def async_execute(self, env, **_):
            seen.append(env)

    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    path = write(tmp_path / "a.ipynb", {"x": "1"})
    for jobs in (1, 3, 99):
        asyncio.run(checking.NotebookRun(path, 60.0, jobs)._execute(Client(), path))
    assert [env.get("OMP_NUM_THREADS") for env in seen] == [None, "2", "1"]


# Progress and the reference, in a terminal.


def test_progress_tells_where_one_is_what_is_left_and_what_is_next(workspace):
    marks.record("softmax", "solved", folder=workspace)
    marks.record("tempered_softmax", "wrong", folder=workspace)
    lines = l1("progress", workspace).stdout.splitlines()
    assert lines[0].split() == ["notebook", "solved", "given", "tried", "open", "left"]
    assert lines[1].split() == ["▸", "00_start_here", "1", "1", "5", "min"]
    assert len(lines) == 1 + len(sources.names()) + 1 + 3
    assert lines[-2:] == [
        "next: tempered_softmax in 00_start_here (easy, 5 min)", f"open it: l1 learn '{workspace}'",
    ]  # fmt: skip
    every = l1("progress", workspace, "--all").stdout.splitlines()
    assert every[1].split() == ["✓", "00_start_here", "softmax", "solved", "1", "10", "easy"]
    assert every[2].split() == ["✗", "00_start_here", "tempered_softmax", "tried", "1", "5", "easy"]


def test_progress_as_json_adds_up(workspace, monkeypatch):
    marks.record("softmax", "given", folder=workspace)
    monkeypatch.chdir(workspace)  # the workspace one is in is the one that is meant
    found = json.loads(l1("progress", "--json").stdout)
    assert found["workspace"] == str(workspace) and found["next"]["exercise"] == "tempered_softmax"
    assert found["minutes_left"] == sum(each["minutes_left"] for each in found["notebooks"])
    assert found["minutes_left"] == sum(e["minutes"] for e in found["exercises"] if e["state"] != "given")
    for each in found["notebooks"]:
        assert sum(each[state] for state in standing.STATES) == sum(
            e["notebook"] == each["notebook"] for e in found["exercises"]
        )


def test_where_there_is_no_workspace_it_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("L1_WORKSPACE", raising=False)
    with pytest.raises(ValueError, match=r"^workspace is no workspace; l1 learn workspace makes one$"):
        cli.app(["progress"], standalone_mode=False)


def test_show_prints_what_the_notebook_shows():
    from l1_ref import checks
    from l1_ref.checks.showing import Shown

    assert l1("show", "gelu").stdout == Shown(checks.EXERCISES["gelu"]).text + "\n"
    for asked, meant in (("gellu", "gelu"), ("SOFTMAX", "softmax"), ("feedforward", "FeedForward")):
        with pytest.raises(ValueError, match=f"no exercise is called '{asked}'; did you mean '{meant}'"):
            cli.app(["show", asked], standalone_mode=False)
