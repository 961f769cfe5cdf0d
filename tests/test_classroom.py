"""The teacher's journey: a classroom for nbgrader, graded in parallel, inside limits, each mistake by its name."""

import ast
import asyncio
import csv
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import nbformat
import pytest
from nbgrader.api import Gradebook

from l1_ref.checks import EXERCISES, CheckFailed
from l1_ref.course import classroom, execution, grading, kernels, limits, sources
from l1_ref.course.blank import load_blank
from l1_ref.course.limits import Limits
from l1_ref.course.sources import tags
from l1_ref.files import alone

ROOT = Path(__file__).parents[1]
NAMES = sources.names()
NO_LIMITS = ["--without-limits"] if limits.missing() else []  # what l1 grade needs where the system holds none
# One mistake of the catalogue in each notebook, as a student writes it: the exercise, its text, another text, the name.
MISTAKES = {
    "00_start_here": (
        "tempered_softmax", "/ temperature", "* temperature",
        "the scores are multiplied by the temperature instead of divided",
    ),
    "01_tokens": ("merge_pair", "tuple(merged)", "merged", "a list comes back, not a tuple"),
    "02_embeddings": ("InputEmbedding", "self.dropout(x)", "x", "there is no dropout"),
    "03_attention": (
        "attention_weights", " / math.sqrt(q.shape[-1])", "", "the scores are not divided by sqrt(D)",
    ),
    "04_blocks": ("residual_step", "sublayer(norm(x))", "sublayer(x)", "norm is left out"),
    "05_model": ("init_weights", "(2 * config", "(config", "the root of n_layers is taken, not of 2 * n_layers"),
    "06_training": (
        "perplexity", "loss.exp() if isinstance(loss, torch.Tensor) else math.exp(loss)", "2**loss",
        "the base is 2, not e",
    ),
    "07_efficiency": (
        "loss_scaled_step", "gradient /= scale", "pass", "the gradients are not divided by the scale again",
    ),
    "08_generation": ("apply_temperature", "/", "*", "the scores are multiplied by the temperature"),
}  # fmt: skip


def environment() -> dict[str, str]:
    """Return the variables of a terminal in which the course's environment is not active: it must work all the same."""
    programs = str(Path(sys.executable).parent)
    path = os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if part != programs)
    return os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}


def command(*words: object, folder: Path, module: str) -> subprocess.CompletedProcess:
    """Run a command as a teacher does."""
    line = [sys.executable, "-m", module, *map(str, words)]
    return subprocess.run(line, cwd=folder, env=environment(), capture_output=True, text=True)


def nbgrader(*words: object, folder: Path) -> subprocess.CompletedProcess:
    done = command(*words, folder=folder, module="nbgrader")
    assert done.returncode == 0, done.stderr
    return done


# Every notebook, as nbgrader's manual has it: generate_assignment, autograde, generate_feedback, export.


def answers(name: str, kind: str) -> tuple[nbformat.NotebookNode, float]:
    """Return a submission made from the released notebook, and the points that it earns.

    The blank edition comes with all its cells. Of the others, for nbval runs the solved one as a whole, the student
    deleted what is neither graded nor the first cell of code, with the imports.
    """
    notebook = nbformat.read(Path("release", name, f"{name}.ipynb"), as_version=4)
    complete = {cell["id"]: cell.source for cell in sources.load(name).cells}
    exercise, right, wrong, _ = MISTAKES[name]
    earned, blanks = 0.0, [cell for cell in notebook.cells if "exercise" in tags(cell)]
    points = {cell.metadata.name: cell.metadata.nbgrader.points for cell in notebook.cells if "check" in tags(cell)}
    for number, cell in enumerate(blanks):
        if kind == "solved" or (kind == "half" and number % 2 == 0):
            cell.source = complete[cell["id"]]
            earned += points[f"{cell.metadata.name}-check"]
        elif kind == "half" and cell.metadata.name == exercise:
            head, mark, body = complete[cell["id"]].rpartition('"""')
            assert right in body
            cell.source = head + mark + body.replace(right, wrong)
    if kind != "blank":
        imports = next(cell for cell in notebook.cells if cell.cell_type == "code")
        notebook.cells = [cell for cell in notebook.cells if cell is imports or "nbgrader" in cell.metadata]
    return notebook, earned


def hand_in(student: str, name: str, notebook: nbformat.NotebookNode) -> None:
    path = Path("submitted", student, name, f"{name}.ipynb")
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


def outcome(cell: nbformat.NotebookNode) -> str:
    """Return what a check's outputs say."""
    parts = [" ".join(output.get(part, "") for part in ("text", "ename", "evalue")) for output in cell.outputs]
    return "\n".join(parts)


def as_text(page: Path) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", page.read_text(encoding="utf-8"))).split())


def surprises(kind: str, name: str) -> list[tuple[str, str]]:
    """Return the errors of a graded notebook, save those that are meant, and those of what a blank leaves open."""
    notebook = nbformat.read(Path("autograded", kind, name, f"{name}.ipynb"), as_version=4)
    meant = {cell["id"] for cell in sources.load(name).cells if "raises-exception" in tags(cell)}
    open_ = "not written yet" if kind == "blank" else None
    return [
        (cell.source, output.evalue)
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "error" and cell["id"] not in meant and not (open_ and open_ in output.evalue)
    ]


@pytest.mark.skipif(os.name == "nt", reason="l1 grade needs Linux or macOS; on Windows it says so")
def test_every_notebook_is_released_graded_and_explained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    classroom.make(tmp_path)
    nbgrader("generate_assignment", "*", folder=tmp_path)
    earned = {}
    for name in NAMES:
        released = nbformat.read(Path("release", name, f"{name}.ipynb"), as_version=4)
        edition = load_blank(name)
        assert [(c.source, tags(c)) for c in released.cells] == [(c.source, tags(c)) for c in edition.cells]
        assert [c.metadata for c in released.cells] == [c.metadata for c in edition.cells]
        for kind in ("blank", "half", "solved"):
            notebook, earned[kind, name] = answers(name, kind)
            hand_in(kind, name, notebook)
    done = command("grade", tmp_path, "--jobs", 2, *NO_LIMITS, folder=tmp_path, module="l1_ref.cli")
    assert done.returncode == 0, done.stderr
    assert "0 points" not in done.stderr
    nbgrader("export", folder=tmp_path)
    with open("grades.csv", encoding="utf-8", newline="") as file:
        rows = {(row["student_id"], row["assignment"]): row for row in csv.DictReader(file)}
    for name in NAMES:
        full = float(rows["solved", name]["max_score"])
        assert earned["solved", name] == full > earned["half", name] > earned["blank", name] == 0
        assert surprises("blank", name) == surprises("solved", name) == []
        for kind in ("blank", "half", "solved"):
            assert float(rows[kind, name]["score"]) == earned[kind, name], (kind, name)
            assert Path("feedback", kind, name, f"{name}.html").is_file()
        exercise, *_, mistake = MISTAKES[name]
        assert mistake in {each.name for each in EXERCISES[exercise].mistakes}
        assert f"looks like: {mistake}" in as_text(Path("feedback", "half", name, f"{name}.html"))
        lines = Path("verdicts", name, "half.jsonl").read_text(encoding="utf-8").splitlines()
        (told,) = [each for each in map(json.loads, lines) if each["exercise"] == exercise]
        assert (told["state"], told["mistakes"]) == ("wrong", [mistake])


@pytest.mark.skipif(os.name == "nt", reason="grading needs Linux or macOS")
def test_nbgraders_own_commands_do_the_same(tmp_path, monkeypatch):
    name = "03_attention"
    monkeypatch.chdir(tmp_path)
    classroom.make(tmp_path, [name])
    if limits.missing():
        with open(classroom.CONFIG, "a", encoding="utf-8") as file:
            file.write("c.RunApart.with_limits = False\n")
    nbgrader("generate_assignment", name, folder=tmp_path)
    notebook, earned = answers(name, "half")
    hand_in("ada", name, notebook)
    for words in (("autograde", name), ("generate_feedback", name), ("export",)):
        nbgrader(*words, folder=tmp_path)
    command("report", ".", folder=tmp_path, module="l1_ref.cli")
    with open("grades.csv", encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["score"]) == earned < float(row["max_score"])
    mistake = MISTAKES[name][-1]
    assert f"looks like: {mistake}" in as_text(Path("feedback", "ada", name, f"{name}.html"))
    assert mistake in Path("reports", f"{name}-mistakes.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_what_one_exercise_earns_depends_on_no_other(name):
    """So a mistake costs its own points: every mistake of the catalogue is "wrong" (tests/checks), and that raises."""
    cells = sources.load(name).cells
    exercises = {cell.metadata.name: cell.source for cell in cells if "exercise" in tags(cell)}
    graded = {cell.metadata.name: cell for cell in cells if "check" in tags(cell)}
    assert set(graded) == {f"{exercise}-check" for exercise in exercises}
    for exercise, source in exercises.items():
        check = graded[f"{exercise}-check"]
        assert check.source == f"checks.{exercise}({exercise})" and check.metadata.points >= 1
        used = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
        assert not used & (exercises.keys() - {exercise}), f"{exercise} needs another answer of the student's"
        with pytest.raises(CheckFailed):
            EXERCISES[exercise](EXERCISES[exercise].mistakes[0].wrong)


# Strangers' code: each cell of these costs its own exercise, and the next one earns its point.

HOSTILE = {
    "endless": "while True:\n    pass",
    "stubborn": "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        pass",
    "crash": "import os\nos._exit(3)",
    "bomb": "return bytearray(2**36)",
    "flood": "while True:\n    print('x' * 2**22)",
    "writer": "import os\nopen(os.path.join({root!r}, 'submitted', 'other', 'a.txt'), 'w')",
    "reader": "open({root!r} + '/gradebook.db', 'rb').read()",
    "thief": "open({root!r} + '/submitted/other/hostile/secret.txt').read()",
    "caller": "import socket\nsocket.create_connection(('127.0.0.1', {port}), 5)",
    "forger": "get_ipython().displayhook(1)\nassert False, 'not right'",
}
REASONS = {
    "endless": "took longer than 3 seconds",
    "stubborn": "took longer than 3 seconds",
    "crash": "the kernel ended while this cell ran",
    "bomb": "MemoryError",
    "flood": "wrote more than 8 MiB|took longer than 3 seconds",  # on a slow machine its time ends first
    "writer": "Permission denied",
    "reader": "Permission denied",
    "thief": "Permission denied",
    "caller": "Permission denied|Network is unreachable|Connection refused",
    "forger": "not right",
}


def hostile_source() -> nbformat.NotebookNode:
    """Return a teacher's notebook with two exercises for each attack: the attacked one, and a right one after it."""
    parts = []
    for name in HOSTILE:
        for each in (name, f"{name}_after"):
            head = f'# %% tags=["exercise"] name="{each}" points=1 difficulty="easy" minutes=5\n'
            parts.append(
                f'{head}def {each}():\n    return "{each}"\n\n# %% tags=["check"]\nassert {each}() == "{each}"\n'
            )
    return classroom.instructor(sources.parse("\n".join(parts)))


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """A classroom of one notebook for attacks, released; they are not refused beforehand, to see what the limits do."""
    from nbgrader.converters import GenerateAssignment

    folder = tmp_path_factory.mktemp("classroom")
    classroom.make(folder, ["00"])
    with open(folder / classroom.CONFIG, "a", encoding="utf-8") as file:
        file.write("c.Autograde.autograde_preprocessors.remove('l1_ref.course.integrity.RefuseCheats')\n")
    source = folder / "source" / "hostile" / "hostile.ipynb"
    source.parent.mkdir()
    nbformat.write(hostile_source(), source)
    course = grading.Course(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", os.environ["PATH"])  # what the configuration adds is gone again afterwards
        course.converter(GenerateAssignment, grading.Submission(".", "hostile", folder)).start()
    return folder


@pytest.fixture
def hostile_class(released, tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "class"
    shutil.copytree(released, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.skipif(bool(limits.missing()), reason="this system holds no limits, and l1 grade refuses: tested below")
def test_what_strangers_code_does_costs_its_own_cell_alone(hostile_class, l1):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        notebook = nbformat.read("release/hostile/hostile.ipynb", as_version=4)
        for cell in notebook.cells:
            name = cell.metadata.get("name", "")
            if "exercise" in tags(cell) and name in HOSTILE:
                code = HOSTILE[name].format(root=str(hostile_class), port=server.getsockname()[1])
                cell.source = f"def {name}():\n" + "\n".join(f"    {line}" for line in code.splitlines())
            elif "exercise" in tags(cell):
                cell.source = f'def {name}():\n    return "{name}"'
        hand_in("one", "hostile", notebook)
        secret = Path("submitted", "other", "hostile", "secret.txt")
        secret.parent.mkdir(parents=True)
        secret.write_text("42")
        status, out, err = l1("grade", hostile_class, "--student", "one", "--timeout", 3, "--jobs", 2)
    assert status == 0, err
    assert "on average 10.0 of 20 points" in out
    assert not Path("submitted", "other", "a.txt").exists()
    graded = nbformat.read("autograded/one/hostile/hostile.ipynb", as_version=4)
    checks = {cell.metadata.name: outcome(cell) for cell in graded.cells if "check" in tags(cell)}
    for name in HOSTILE:
        assert re.search(REASONS[name], checks[f"{name}-check"]), (name, checks[f"{name}-check"])
        assert not checks[f"{name}_after-check"].strip()
    page = as_text(Path("feedback", "one", "hostile", "hostile.html"))
    assert all(re.search(reason, page) for reason in REASONS.values())
    with Gradebook("sqlite:///gradebook.db") as gradebook:
        grades = gradebook.find_submission_notebook("hostile", "hostile", "one").grades
        scores = {grade.name.removesuffix("-check"): grade.auto_score for grade in grades}
    assert scores == {name: float(name.endswith("_after")) for name in scores} and len(scores) == 2 * len(HOSTILE)


# Submissions that cannot be graded cost their student, not the run.


def test_links_and_what_is_no_notebook_earn_nothing_and_stop_nobody(hostile_class, l1):
    for student in ("linked", "broken", "empty"):
        Path("submitted", student, "hostile").mkdir(parents=True)
    Path("submitted/linked/hostile/hostile.ipynb").symlink_to(hostile_class / "source/hostile/hostile.ipynb")
    Path("submitted/broken/hostile/hostile.ipynb").write_text("{", encoding="utf-8")
    status, out, err = l1("grade", hostile_class, *NO_LIMITS)
    assert status == 0
    assert "hostile: 3 submissions, on average 0.0 of 20 points" in out
    assert "linked, hostile: 0 points, it holds a link (hostile.ipynb), which could lead to another's work" in err
    assert "broken, hostile: 0 points, it cannot be read: NotJSONError" in err
    assert "empty, hostile: 0 points, it holds no hostile.ipynb" in err


def test_a_submission_that_cannot_be_graded_leaves_nothing_of_the_one_before(hostile_class, l1):
    notebook = nbformat.read("release/hostile/hostile.ipynb", as_version=4)
    notebook.cells[0]["id"] = notebook.cells[1]["id"]  # older programs do so, and nbformat warns of it
    path, page = Path("submitted/one/hostile/hostile.ipynb"), Path("feedback/one/hostile/hostile.html")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(notebook), encoding="utf-8")
    status, _, err = l1("grade", hostile_class, *NO_LIMITS)
    assert status == 0 and "0 points" not in err and "DuplicateCellId" not in err
    assert "crash_after" in as_text(page) and Path("verdicts/hostile/one.jsonl").exists()
    path.write_text("{<b>", encoding="utf-8")
    assert "one, hostile: 0 points, it cannot be read: NotJSONError" in l1("grade", hostile_class, *NO_LIMITS)[2]
    assert "This submission could not be graded, so its checks earn nothing: it cannot be read: " in as_text(page)
    assert "crash_after" not in as_text(page) and "<b>" not in page.read_text(encoding="utf-8")
    assert not Path("autograded/one/hostile").exists() and not Path("verdicts/hostile/one.jsonl").exists()
    assert "it cannot be read: NotJSONError" in as_text(Path("reports/hostile.html"))
    path.write_text(json.dumps(notebook), encoding="utf-8")
    assert "0 points" not in l1("grade", hostile_class, *NO_LIMITS)[2]
    assert "crash_after" in as_text(page) and "cannot be read" not in as_text(Path("reports/hostile.html"))


def test_what_is_no_submission_is_told_and_stops_nobody(hostile_class, l1):
    for path in ("one/hostile", "two/Hostile", "two/four", "three", "hostile/four"):
        Path("submitted", path).mkdir(parents=True)
    blank = Path("release/hostile/hostile.ipynb").read_bytes()
    for path in ("one/hostile/hostile (1).ipynb", "three/hostile.ipynb", "loose.ipynb"):
        Path("submitted", path).write_bytes(blank)
    Path("submitted", "five").mkdir()
    status, out, err = l1("grade", hostile_class, *NO_LIMITS)
    assert status == 0 and "hostile: 1 submission, on average 0.0 of 20 points" in out
    place = hostile_class / "submitted"
    for line in (
        f"{place}/two/Hostile: there is no assignment 'Hostile'; did you mean 'hostile'?",
        f"{place}/two/four: there is no assignment 'four'",
        f"{place}/hostile/four: the order is STUDENT/ASSIGNMENT: move it to {place}/four/hostile",
        f"{place}/three/hostile.ipynb: it must be in {place}/three/ASSIGNMENT/",
        f"{place}/loose.ipynb: it is in no folder of a student",
        f"{place}/five: nothing is in it",
    ):
        assert f"not graded: {line}" in err
    assert "one, hostile: 0 points, it holds no hostile.ipynb, but hostile (1).ipynb: give the right one" in err
    (place / "one" / "hostile").rename(place / "one" / "hostle")
    assert (
        "hostle: there is no assignment 'hostle'; did you mean 'hostile'?" in l1("grade", hostile_class, *NO_LIMITS)[2]
    )


@pytest.mark.skipif(os.name == "nt", reason="Windows allows no such name")
def test_an_id_that_nbgrader_misreads_is_told_and_earns_no_zero(hostile_class, l1):
    blank = nbformat.read("release/hostile/hostile.ipynb", as_version=4)
    for student in ("[x]", "a*", " b", "x", "ab"):
        hand_in(student, "hostile", blank)
    for words in (["--student", "a*"], ["--student", "[x]"]):
        assert f"nbgrader misreads the id {words[1]!r}" in l1("grade", hostile_class, *words, *NO_LIMITS)[2]
    status, out, err = l1("grade", hostile_class, *NO_LIMITS)
    assert status == 0 and "hostile: 2 submissions" in out and "0 points" not in err
    for student, odd in (("[x]", "'[' ']'"), ("a*", "'*'"), (" b", "spaces around it")):
        path = hostile_class / "submitted" / student
        why = f"nbgrader misreads the id {student!r} of a student, for it has {odd}: rename the folder"
        assert f"not graded: {path}: {why}\n" in err
    with open("reports/canvas.csv", encoding="utf-8", newline="") as file:
        scores = {row["SIS Login ID"].strip(): row["hostile"] for row in csv.DictReader(file)}
    assert [bool(scores[student]) for student in ("[x]", "a*", "b", "x", "ab")] == [False, False, False, True, True]
    for student in ("x", "ab"):
        shutil.rmtree(Path("submitted", student))
    status, _, err = l1("grade", hostile_class, *NO_LIMITS)
    assert status == 1 and err.count("nbgrader misreads the id") == 3


def test_points_by_hand_stand_and_that_is_told(hostile_class, l1):
    notebook = nbformat.read("release/hostile/hostile.ipynb", as_version=4)
    hand_in("one", "hostile", notebook)
    assert "by hand" not in l1("grade", hostile_class, *NO_LIMITS)[2]
    with Gradebook("sqlite:///gradebook.db") as gradebook:
        grade = gradebook.find_grade("crash_after-check", "hostile", "hostile", "one")
        grade.manual_score = 0.5
        gradebook.db.commit()
    for cell in notebook.cells:
        if cell.metadata.get("name") == "crash_after":
            cell.source = 'def crash_after():\n    return "crash_after"'
    hand_in("one", "hostile", notebook)
    status, out, err = l1("grade", hostile_class, *NO_LIMITS)
    assert status == 0 and "on average 0.5 of 20 points" in out
    assert err.endswith("one, hostile: crash_after earns 1 by its check, 0.5 by hand stands\n")


@pytest.mark.skipif(os.name == "nt", reason="l1 grade needs Linux or macOS")
def test_where_the_machine_starts_no_kernel_the_points_of_before_stand(hostile_class, l1, monkeypatch):
    notebook = with_cells([RIGHT, CHECK])
    for student in ("one", "two"):
        hand_in(student, "hostile", notebook)
    assert "on average 1.0 of 20 points" in l1("grade", hostile_class, *NO_LIMITS)[1]
    hand_in("two", "hostile", nbformat.read("release/hostile/hostile.ipynb", as_version=4))
    run = grading.run_submission

    async def fail(notebook, launcher, course, student, assignment):
        if student == "two":
            raise kernels.KernelError("no memory is left")
        await run(notebook, launcher, course, student, assignment)

    monkeypatch.setattr(grading, "run_submission", fail)
    status, out, err = l1("grade", hostile_class, "--jobs", 1, *NO_LIMITS)
    assert status == 1 and "hostile: 1 submission, on average 1.0 of 20 points" in out
    assert err.endswith("two, hostile: not graded, and the points it had stand: no memory is left; grade again\n")
    with Gradebook("sqlite:///gradebook.db") as gradebook:
        scores = {each.student_id: each.score for each in gradebook.assignment_submissions("hostile")}
    assert scores == {"one": 1, "two": 1}


def test_an_earlier_verdict_goes_with_its_submission(hostile_class, l1):
    Path("submitted/empty/hostile").mkdir(parents=True)
    told = Path("verdicts", "hostile", "empty.jsonl")
    told.parent.mkdir(parents=True)
    told.write_text('{"exercise": "softmax", "state": "wrong", "mistakes": ["of last week"]}\n', encoding="utf-8")
    with alone(hostile_class / grading.LOCK):
        assert "another process holds" in l1("grade", hostile_class, *NO_LIMITS)[2] and told.exists()
    assert l1("grade", hostile_class, *NO_LIMITS)[0] == 0
    assert not told.exists()


# A signal stops grading, and costs nobody a point.


def struck(monkeypatch, owner: object, name: str, number: int) -> None:
    """Let this process get a signal each time that a function begins."""
    function = getattr(owner, name)

    def begin(*arguments, **options):
        os.kill(os.getpid(), number)
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, begin)


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """Handle signals as at a terminal: those that `nohup`, or a shell in the background, ignores would stay ignored."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.skipif(os.name == "nt", reason="l1 grade needs Linux or macOS")
@pytest.mark.parametrize(
    ("owner", "name", "number", "said", "scores"),
    [
        (grading.Course, "submissions", signal.SIGINT, "nothing is scored", [None, None]),
        (grading, "_cleaned", signal.SIGTERM, "0 of 2 submissions are scored", [None, None]),
        (grading.Autograde, "start", signal.SIGINT, "1 of 2 submissions are scored", [1, None]),
        (grading, "report", signal.SIGHUP, "2 of 2 submissions are scored", [1, 1]),
    ],
)
def test_a_signal_stops_grading_and_costs_no_points(hostile_class, l1, monkeypatch, owner, name, number, said, scores):
    notebook = nbformat.read("release/hostile/hostile.ipynb", as_version=4)
    cells = {cell.metadata.get("name"): cell for cell in notebook.cells}
    cells["crash_after"].source = 'def crash_after():\n    return "crash_after"'
    hand_in("one", "hostile", notebook)
    hand_in("two", "hostile", notebook)
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        struck(patch, owner, name, number)
        status, out, err = l1("grade", hostile_class, "--jobs", 1, *NO_LIMITS)
    assert status == 130 and ("average" in out) == (name == "report")
    assert err.endswith(f"stopped: {said}; grade again for the rest and for the report\n")
    assert signal.getsignal(number) == before and not Path("reports").exists()
    with Gradebook("sqlite:///gradebook.db") as gradebook:
        graded = {each.student_id: each.score for each in gradebook.assignment_submissions("hostile")}
    assert [graded.get(student) for student in ("one", "two")] == scores


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.skipif(os.name == "nt", reason="l1 grade needs Linux or macOS")
def test_a_signal_while_a_submission_runs_ends_its_kernel_at_once(hostile_class, l1, monkeypatch):
    started, launch, run_cell = [], kernels.Launcher.launch, execution._Client.run_cell

    def note(*arguments):
        started.append(launch(*arguments))
        return started[-1]

    async def strike(*arguments):
        asyncio.get_running_loop().call_later(0.2, os.kill, os.getpid(), signal.SIGINT)
        return await run_cell(*arguments)

    endless = nbformat.v4.new_code_cell("while True:\n    pass")
    hand_in("one", "hostile", nbformat.v4.new_notebook(cells=[endless]))
    monkeypatch.setattr(kernels.Launcher, "launch", note)
    monkeypatch.setattr(execution._Client, "run_cell", strike)
    status, _, err = l1("grade", hostile_class, "--timeout", 600, *NO_LIMITS)
    assert status == 130 and "stopped: 0 of 1 submissions are scored" in err
    deadline = time.monotonic() + 20
    while started and time.monotonic() < deadline:  # it is killed, and gone a moment later
        try:
            os.kill(started[-1], 0)
            time.sleep(0.05)
        except ProcessLookupError:
            started.pop()
    assert started == []


def test_cells_that_a_student_deleted_or_relabelled_come_back(hostile_class):
    notebook = nbformat.read("release/hostile/hostile.ipynb", as_version=4)
    known = [cell.metadata.nbgrader.grade_id for cell in notebook.cells if "nbgrader" in cell.metadata]
    kept = [cell for cell in notebook.cells if cell.metadata.get("name") not in ("crash", "crash-check", "bomb-check")]
    for cell in kept:
        if cell.metadata.get("name") == "flood-check":
            cell.metadata["nbgrader"] = {"grade_id": "flood-check", "grade": False, "solution": True, "locked": False}
            cell.source = "pass"
    notebook.cells = kept
    hand_in("one", "hostile", notebook)
    course = grading.Course(".")
    (submission,) = course.submissions()
    cleaned = grading._cleaned(course, submission)
    cells = {cell.metadata.nbgrader.grade_id: cell for cell in cleaned.cells if "nbgrader" in cell.metadata}
    assert list(cells) == known
    assert all(cells[name].metadata.nbgrader.grade for name in known if name.endswith("-check"))
    assert cells["flood-check"].source == 'assert flood() == "flood"'
    assert "NotImplementedError" in cells["crash"].source


RIGHT, OLD, CHECK = 'def crash():\n    return "crash"', 'def crash():\n    return "old"', 'assert crash() == "crash"'
# The cells of one exercise, in their order, where some of them are copies; and what the last check sees.
COPIED = {
    "old_above": ([OLD, RIGHT, CHECK], 1),
    "old_between": ([RIGHT, OLD, CHECK], 0),
    "old_below": ([RIGHT, CHECK, OLD], 1),
    "note_between": ([RIGHT, "# print(crash())", CHECK], 1),
    "check_twice": ([RIGHT, CHECK, CHECK], 1),
    "new_below": ([OLD, CHECK, RIGHT, CHECK], 1),
    "old_with_check_below": ([RIGHT, CHECK, OLD, CHECK], 0),
}


def with_cells(copied: list[str]) -> nbformat.NotebookNode:
    """Return the released notebook with these cells as its exercise "crash" and the check of it, copied as needed."""
    notebook = nbformat.read("release/hostile/hostile.ipynb", as_version=4)
    places = {cell.metadata.get("name"): i for i, cell in enumerate(notebook.cells)}
    answer, check = (notebook.cells[places[name]] for name in ("crash", "crash-check"))
    copies = [deepcopy(check if source == CHECK else answer) for source in copied]
    for i, source in enumerate(copied):
        copies[i].update(id=f"copy-{i}", source=source)
    notebook.cells[places["crash"] : places["crash-check"] + 1] = copies
    return notebook


@pytest.mark.skipif(os.name == "nt", reason="l1 grade needs Linux or macOS")
def test_a_copied_cell_costs_nothing_and_what_the_last_check_sees_counts(hostile_class, l1):
    for student, (cells, _) in COPIED.items():
        hand_in(student, "hostile", with_cells(cells))
    other = with_cells([RIGHT, CHECK])
    other.cells.append(deepcopy(other.cells[-1]))
    other.cells[-1]["id"] = other.cells[-1].metadata.nbgrader.grade_id = "of_another_notebook"
    hand_in("other", "hostile", other)
    status, _, err = l1("grade", hostile_class, *NO_LIMITS)
    assert status == 0 and "0 points" not in err
    with Gradebook("sqlite:///gradebook.db") as gradebook:
        scores = {each.student_id: each.score for each in gradebook.assignment_submissions("hostile")}
    assert scores == {student: points for student, (_, points) in COPIED.items()} | {"other": 1}


def test_cells_without_metadata_are_known_by_what_stands_in_them(hostile_class):
    notebook = with_cells([RIGHT, CHECK])
    before = [cell.source for cell in notebook.cells]
    known = [cell.metadata.nbgrader.grade_id for cell in notebook.cells if "nbgrader" in cell.metadata]
    for cell in notebook.cells:
        cell.metadata = nbformat.NotebookNode()
    notebook.cells.insert(0, nbformat.v4.new_code_cell("import math"))
    hand_in("one", "hostile", notebook)
    course = grading.Course(".")
    cells = grading._cleaned(course, course.submissions()[0]).cells
    assert [cell.source for cell in cells] == ["import math", *before]
    assert [cell.metadata.nbgrader.grade_id for cell in cells if "nbgrader" in cell.metadata] == known


def test_of_a_copied_answer_nbgrader_takes_the_one_that_the_check_sees(hostile_class):
    course = grading.Course(".")
    for student, (copies, _) in COPIED.items():
        hand_in(student, "hostile", with_cells(copies))
        (submission,) = course.submissions(students=[student])
        cells = grading._cleaned(course, submission).cells
        known = [cell.metadata.nbgrader.grade_id for cell in cells if "nbgrader" in cell.metadata]
        assert len(known) == len(set(known)) == 2 * len(HOSTILE) * 2
        assert [cell.source for cell in cells if cell.get("id", "").startswith("copy-")] == copies
        (seen,) = [i for i, cell in enumerate(cells) if sources.grade_id(cell) == "crash"]
        check = max(i for i, cell in enumerate(cells) if cell.source == CHECK)
        assert sources.grade_id(cells[check]) == "crash-check"
        assert seen == max(i for i, cell in enumerate(cells[:check]) if cell.source in (RIGHT, OLD))


def test_points_depend_on_what_was_raised_and_on_nothing_else():
    notebook = nbformat.v4.new_notebook()
    warning = nbformat.v4.new_output("stream", name="stderr", text="a warning")
    fake = nbformat.v4.new_output("execute_result", data={"text/plain": "1"}, execution_count=1)
    meta = {"nbgrader": {"grade": True, "solution": False, "locked": True, "points": 2, "grade_id": "x-check"}}
    notebook.cells = [nbformat.v4.new_code_cell("check", outputs=[fake, warning], metadata=meta)]
    execution.settle(notebook)
    nbformat.validate(notebook)
    assert execution.is_grade(notebook.cells[0])
    from nbgrader.utils import determine_grade

    assert determine_grade(notebook.cells[0]) == (2, 2)
    notebook.cells[0].outputs.append(nbformat.v4.new_output("error", ename="E", evalue="", traceback=[]))
    assert determine_grade(notebook.cells[0]) == (0, 2)


# Bad input.


def test_a_classroom_is_made_and_added_to_and_a_teachers_edits_stay(tmp_path):
    first = classroom.make(tmp_path / "class", ["03"])
    assert [path.name for path in first.written] == [classroom.CONFIG, "03_attention.ipynb", "glossary.md"]
    source = tmp_path / "class" / "source" / "03_attention" / "03_attention.ipynb"
    notebook = nbformat.read(source, as_version=4)
    assert "### BEGIN SOLUTION" in nbformat.writes(notebook)
    source.write_text("mine", encoding="utf-8")
    again = classroom.make(tmp_path / "class", ["03", "04_blocks"])
    assert [path.name for path in again.written] == ["04_blocks.ipynb", "glossary.md"]
    assert again.kept == [source] and source.read_text(encoding="utf-8") == "mine"
    assert [path.name for path in again.unchanged] == [classroom.CONFIG, "glossary.md"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["09"], "there is no notebook '09'; there are: 00_start_here"),
        (["0"], "several notebooks begin with '0'"),
        ([""], "there is no notebook ''"),
    ],
)
def test_a_notebook_that_is_not_there_is_told(tmp_path, names, words):
    with pytest.raises(ValueError, match=words):
        classroom.make(tmp_path / "class", names)
    assert not (tmp_path / "class").exists()


def test_a_folder_with_other_things_is_no_classroom(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(classroom.ClassroomError, match=r"holds other files \(thesis.txt\) and no nbgrader_config.py"):
        classroom.make(tmp_path)
    with pytest.raises(classroom.ClassroomError, match="must be a folder, got the file"):
        classroom.make(tmp_path / "thesis.txt")


@pytest.mark.skipif(os.name == "nt", reason="Windows allows no such name")
@pytest.mark.parametrize("name", ["course [2026]", "course?", "100%20", "a*b"])
def test_a_path_that_nbgrader_misreads_is_no_classroom(tmp_path, l1, monkeypatch, name):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    for folder in (tmp_path / name / "class", "class"):
        with pytest.raises(classroom.ClassroomError, match="nbgrader misreads a path with "):
            classroom.make(folder, ["00"])
        assert not Path(folder).exists()
    Path(classroom.CONFIG).write_text(classroom._CONFIG_TEXT, encoding="utf-8")  # it was moved there
    assert "nbgrader misreads a path with " in l1("grade", ".")[2]


def test_grading_says_what_is_missing(tmp_path, l1, monkeypatch):
    assert "is no classroom: it holds no nbgrader_config.py" in l1("grade", tmp_path)[2]
    classroom.make(tmp_path, ["00"])
    assert "nothing is submitted: put each notebook into" in l1("grade", tmp_path)[2]
    (tmp_path / "submitted" / "ada" / "00_start_here").mkdir(parents=True)
    status, _, err = l1("grade", tmp_path)
    assert status == 1 and err.count("\n") == 1
    assert "00_start_here was not released: run nbgrader generate_assignment 00_start_here" in err
    assert (
        "no submission is of a notebook '07'; there are: 00_start_here" in l1("grade", tmp_path, "--notebook", "07")[2]
    )
    assert "nothing is submitted by 'bob'; there are: ada" in l1("grade", tmp_path, "--student", "bob")[2]
    assert "--timeout must be seconds above 0" in l1("grade", tmp_path, "--timeout", 0)[2]
    assert "--memory must be at least 1024 MiB, which the notebooks need" in l1("grade", tmp_path, "--memory", 100)[2]
    (tmp_path / classroom.CONFIG).write_text("c = 1 / 0\n", encoding="utf-8")
    assert "cannot be read: ZeroDivisionError: division by zero" in l1("grade", tmp_path)[2]


@pytest.mark.skipif(os.name == "nt", reason="there it says that grading needs Linux or macOS")
def test_without_limits_nothing_runs_unless_it_is_asked_for(hostile_class, l1, monkeypatch):
    hand_in("one", "hostile", nbformat.read("release/hostile/hostile.ipynb", as_version=4))
    monkeypatch.setattr(limits, "missing", lambda: ["files: no Landlock here"])
    status, _, err = l1("grade", hostile_class)
    assert status == 1 and "does not hold the limits that strangers' code needs (files: no Landlock here)" in err
    assert "--jobs must be at least 1, got 0" in l1("grade", hostile_class, "--jobs", 0)[2]
    assert not Path("autograded").exists()


def test_every_limit_says_whether_it_holds():
    held = limits.holding()
    assert set(held) == {
        "time", "memory", "file size", "files", "network", "left-over processes", "number of processes"
    }  # fmt: skip
    assert all(holds in ("yes", "partly", "no") and what for holds, what in held.values())
    if sys.platform.startswith("linux"):
        assert held["memory"][0] == "yes"
    assert Limits(cell_s=2).notebook_s == 300 and Limits().notebook_s == 900


@pytest.mark.skipif(os.name == "nt", reason="l1 grade needs Linux or macOS")
def test_a_launcher_that_cannot_start_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels.sys, "executable", "/bin/false")
    with (
        kernels.Launcher(Limits()) as launcher,
        pytest.raises(kernels.KernelError, match="ended before it started one"),
    ):
        launcher.launch(tmp_path, tmp_path)
