"""The class report and the files for Canvas and Moodle: they say what nbgrader's gradebook says, and no more."""

import csv
import html
import io
import json
import os
import re
import shutil
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
from nbgrader.api import Gradebook

from l1_ref import cli
from l1_ref.checks import EXERCISES
from l1_ref.course import execution, grading, report_page, results
from l1_ref.course.report import write_report

NAME = "03_attention"
POINTS = {"causal_mask": 1, "attention_weights": 2, "split_heads": 3}
SCALE, QUERIES = (mistake.name for mistake in EXERCISES["attention_weights"].mistakes[:2])
# Student: points by exercise; None is a check that nbgrader never scored. Then what the kernel told, line by line.
RIGHT = {name: points for name, points in POINTS.items()}
CLASS = {
    "anna": (RIGHT, [("solved", name, ()) for name in POINTS]),
    "bo": (RIGHT | {"attention_weights": 0}, [("wrong", "attention_weights", (SCALE,))]),
    "cem": (
        RIGHT | {"attention_weights": 0, "split_heads": 0},
        [("wrong", "attention_weights", (SCALE, QUERIES)), ("unwritten", "split_heads", ())],
    ),
    "dee": (RIGHT | {"causal_mask": 0}, [("refused", "causal_mask", ()), ("given", "split_heads", ())]),
    "fay": (RIGHT | {"split_heads": 0}, [("solved", "causal_mask", ())]),
    # The points decide: what this kernel told about itself is forged.
    "ned": (dict.fromkeys(POINTS, 0), [("solved", "causal_mask", ()), ("wrong", "split_heads", ("<script>hi",))]),
}
PEOPLE = {
    "anna": {"first_name": "Änna", "last_name": "Müller, Dr.", "email": "anna@school.example", "lms_user_id": "17"},
    "bo": {"first_name": 'Bo "B"', "last_name": "=1+1", "email": "+bo@school.example", "lms_user_id": "s-18"},
    "cem": {"first_name": "Cem"},
    "hal": {"first_name": "Hal", "last_name": "\tLine\nbreak"},
}


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Path:
    """Return a gradebook with one assignment; nbgrader makes a new one by a command that stands beside Python's."""
    path = tmp_path_factory.mktemp("empty") / "gradebook.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        with Gradebook(f"sqlite:///{path}") as gradebook:
            add_assignment(gradebook)
    return path


@pytest.fixture(scope="module")
def graded(empty, tmp_path_factory) -> Path:
    """Return a graded course: six graded, one not yet, one without the notebook, one who handed in nothing."""
    folder = tmp_path_factory.mktemp("graded")
    shutil.copy(empty, folder)
    with opened(folder) as gradebook:
        for student in [*CLASS, "hal"]:
            gradebook.add_student(student, **PEOPLE.get(student, {}))
        for student, (points, told) in CLASS.items():
            hand_in(folder, student)
            grade(gradebook, student, points)
            tell(folder, student, [verdict(*each) for each in told])
        gradebook.find_submission(NAME, "dee").notebooks[0].late_submission_penalty = 1.5
        gradebook.db.commit()
    hand_in(folder, "gus")
    hand_in(folder, "ida", "notes.txt")
    return folder


@pytest.fixture
def course(graded, tmp_path) -> Path:
    """Return a copy of the graded course, for one test alone."""
    return shutil.copytree(graded, tmp_path / "course")


def opened(course: Path) -> Gradebook:
    return Gradebook(f"sqlite:///{course / 'gradebook.db'}")


def add_assignment(gradebook: Gradebook) -> None:
    gradebook.add_assignment(NAME)
    gradebook.add_notebook(NAME, NAME)
    for name, points in POINTS.items():
        gradebook.add_grade_cell(f"{name}-check", NAME, NAME, max_score=points, cell_type="code")
        gradebook.add_solution_cell(name, NAME, NAME)


def hand_in(course: Path, student: str, file: str = f"{NAME}.ipynb") -> None:
    path = course / "submitted" / student / NAME / file
    path.parent.mkdir(parents=True)
    path.write_text("{}")


def grade(gradebook: Gradebook, student: str, points: dict[str, float | None]) -> None:
    with warnings.catch_warnings():
        # nbgrader's own, where it adds a submission under a newer SQLAlchemy than it was written for.
        warnings.filterwarnings("ignore", "Object of type <Submitted")
        gradebook.add_submission(NAME, student)
    for name, score in points.items():
        row = gradebook.find_grade(f"{name}-check", NAME, NAME, student)
        row.auto_score, row.needs_manual_grade = score, False
    gradebook.db.commit()


def verdict(state: str, exercise: str, mistakes: tuple[str, ...]) -> str:
    told = {"exercise": exercise, "notebook": NAME, "state": state, "mistakes": mistakes}
    return json.dumps(told | {"text": f"{exercise} is {state} & <b>told</b> so"})


def tell(course: Path, student: str, lines: list[str]) -> None:
    path = course / "verdicts" / NAME / f"{student}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def rows(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig")), strict=True))


def page(course: Path) -> str:
    write_report(course)
    return (course / "reports" / f"{NAME}.html").read_text(encoding="utf-8")


def table(text: str, first: str) -> dict[tuple[str, ...], list[str]]:
    """Return the rows of the table with that first head, by their text cells, as lists of numbers."""
    (found,) = re.findall(rf"<table><tr><th>{first}</th>.*?</table>", text)
    lines = [re.findall(r"<td( class=.number.)?>(.*?)</td>", line) for line in found.split("<tr>")[2:]]
    plain = [
        [(bool(number), html.unescape(re.sub("<details>.*", "", cell))) for number, cell in each] for each in lines
    ]
    return {tuple(c for is_n, c in each if not is_n and c): [int(c) for is_n, c in each if is_n] for each in plain}


def test_it_writes_a_page_and_three_files_and_says_which(course):
    names = [f"{NAME}.html", f"{NAME}-mistakes.csv", "canvas.csv", "moodle.csv"]
    assert write_report(course) == [course / "reports" / name for name in names]
    before = {path.name: path.read_bytes() for path in (course / "reports").iterdir()}
    assert sorted(before) == sorted(names)
    write_report(str(course))
    assert {path.name: path.read_bytes() for path in (course / "reports").iterdir()} == before


def test_the_scores_are_the_gradebooks(course):
    write_report(course)
    canvas, moodle = rows(course / "reports/canvas.csv"), rows(course / "reports/moodle.csv")
    by_login = {row[3]: row[-1] for row in canvas[2:]}
    by_username = {row[moodle[0].index("Username")]: row[-1] for row in moodle[1:]}
    with opened(course) as gradebook:
        assert canvas[1][-1] == str(gradebook.find_assignment(NAME).max_score).removesuffix(".0") == "6"
        for submission in gradebook.find_assignment(NAME).submissions:
            score = max(0.0, submission.score - submission.late_submission_penalty)
            assert float(by_login.pop(submission.student.id)) == score
            assert float(by_username.pop(submission.student.id)) == score
    # Who was not graded has no score: a zero would be the teacher's to give.
    assert by_login == dict.fromkeys(("gus", "hal", "ida"), "")
    assert by_username == dict.fromkeys(("gus", "hal", "ida"), "-")


def test_a_late_submission_loses_its_penalty_and_never_more_than_it_has(course):
    with opened(course) as gradebook:
        gradebook.find_submission(NAME, "ned").notebooks[0].late_submission_penalty = 4
        gradebook.db.commit()
    write_report(course)
    scores = {row[3]: row[-1] for row in rows(course / "reports/canvas.csv")}
    assert (scores["dee"], scores["ned"]) == ("3.5", "0")


def test_how_each_exercise_ended(course):
    assert results.STATES == ("solved", "given", "wrong", "not written", "refused", "no verdict")
    ended = table(page(course), 'exercise</th><th class="number">solved')
    assert ended == {
        ("causal_mask",): [4, 0, 0, 0, 1, 1],  # ned's own "solved" does not count
        ("attention_weights",): [3, 0, 2, 0, 0, 1],
        ("split_heads",): [2, 1, 1, 1, 0, 1],
    }


def test_the_mistakes_and_who_made_them(course):
    text = page(course)
    expected = {
        ("attention_weights", SCALE): [2],
        ("attention_weights", QUERIES): [1],
        ("split_heads", results.UNKNOWN): [1],  # a name that the catalogue does not have is nobody's
    }
    assert table(text, "exercise</th><th>mistake") == expected
    assert [(row[0], row[1], [int(row[2])]) for row in rows(course / f"reports/{NAME}-mistakes.csv")[1:]] == [
        (*key, n) for key, n in expected.items()
    ]
    assert rows(course / f"reports/{NAME}-mistakes.csv")[1][3] == "bo cem"
    assert (course / f"reports/{NAME}-mistakes.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    assert "<script" not in text and "<b>" not in text
    # Whom to help is folded away, and is an id, not a name.
    assert "<details><summary>2 students</summary>bo, cem</details>" in text
    assert not any(name in text for name in ("Müller", "Cem", "school.example"))


def test_who_is_not_graded_or_is_missing_is_listed_as_such(course):
    listed = table(page(course), "submission")
    assert listed == {
        ("graded",): [4],
        ("stopped on the way",): [2],
        ("not graded",): [1],
        ("handed in without the notebook",): [1],
        ("not handed in",): [1],
    }
    _, (assignment,) = results.read_results(course)
    status = {each.student.id: each.status for each in assignment.submissions}
    assert (status["fay"], status["gus"], status["ida"], status["hal"]) == (
        results.STOPPED, results.UNGRADED, results.NO_NOTEBOOK, results.MISSING,
    )  # fmt: skip


def test_why_a_submission_could_not_be_graded_is_told(course):
    for student in ("bo", "ida", "hal"):
        results.problem_of(course, student, NAME).write_text("it cannot be read: <odd>", encoding="utf-8")
    text = page(course)
    cells = [re.findall(r"<td.*?>(.*?)</td>", row) for row in text.partition("<h2>Students</h2>")[2].split("<tr>")]
    rows = {row[0]: row[2:] for row in cells if row}
    assert rows["bo"] == ["not graded", "it cannot be read: &lt;odd&gt;"]
    assert rows["ida"] == ["handed in without the notebook", "it cannot be read: &lt;odd&gt;"]
    assert rows["hal"] == ["not handed in", ""]
    _, (assignment,) = results.read_results(course)
    assert {name: ids for _, name, ids in assignment.mistakes()}[SCALE] == ["cem"]  # bo's were an earlier one's


def test_who_got_nothing_since_no_check_finished_has_crashed(course):
    with opened(course) as gradebook:
        grade(gradebook, "hal", dict.fromkeys(POINTS, 0))
    _, (assignment,) = results.read_results(course)
    (hal,) = (each for each in assignment.submissions if each.student.id == "hal")
    assert (hal.status, hal.score) == (results.FAILED, 0.0)


def test_what_autograde_left_unscored_is_no_zero(course):
    with opened(course) as gradebook:
        grade(gradebook, "hal", dict.fromkeys(POINTS))
        hand_in(course, "hal")
    _, (assignment,) = results.read_results(course)
    (hal,) = (each for each in assignment.submissions if each.student.id == "hal")
    assert (hal.status, hal.score, hal.outcomes) == (results.FAILED, None, None)


def test_points_by_hand_count_and_the_state_stays_what_the_check_said(course):
    with opened(course) as gradebook:
        gradebook.find_grade("attention_weights-check", NAME, NAME, "bo").manual_score = 1
        gradebook.find_grade("split_heads-check", NAME, NAME, "bo").needs_manual_grade = True
        gradebook.db.commit()
    text = page(course)
    assert {row[3]: row[-1] for row in rows(course / "reports/canvas.csv")}["bo"] == "5"
    assert table(text, "exercise</th><th>mistake")[("attention_weights", SCALE)] == [2]
    assert "A cell waits for points by hand in 1 submission:" in text


def test_a_refusal_says_why(course):
    assert table(page(course), "exercise</th><th>student") == {
        ("causal_mask", "dee", "causal_mask is refused & <b>told</b> so"): []
    }


def test_verdicts_that_are_broken_or_forged_stop_nothing(course):
    lines = ["{", "[1]", '{"state": "wrong"}', "[" * 10_000, "\ud800".encode("utf-8", "replace").decode(), "", "7"]
    lines.append('{"exercise": "split_heads", "state": "wrong", "mistakes": 5}')
    tell(course, "fay", [*lines, verdict("unwritten", "split_heads", ())])
    (course / "verdicts" / NAME / "bo.jsonl").write_bytes(
        b"\xff\xfe\n" + verdict("wrong", "attention_weights", ()).encode()
    )
    text = page(course)
    assert "8 lines of the verdicts could not be read" in text
    assert table(text, 'exercise</th><th class="number">solved')[("split_heads",)] == [2, 1, 1, 2, 0, 0]


def test_the_last_verdict_on_an_exercise_counts(course):
    tell(course, "bo", [verdict("wrong", "attention_weights", (name,)) for name in (QUERIES, SCALE)])
    tell(course, "cem", [verdict(state, "split_heads", ()) for state in ("refused", "unwritten", "solved")])
    _, (assignment,) = results.read_results(course)
    outcomes = {each.student.id: each.outcomes for each in assignment.submissions}
    assert outcomes["bo"]["attention_weights"].mistakes == (SCALE,)
    assert outcomes["cem"]["split_heads"].state == results.UNWRITTEN  # without points nothing was solved


def test_canvas_takes_the_file(course):
    write_report(course)
    data = (course / "reports/canvas.csv").read_bytes()
    assert not data.startswith(b"\xef\xbb\xbf")
    head, points, *students = rows(course / "reports/canvas.csv")
    assert head == ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", NAME]
    assert points == ["Points Possible", "", "", "", "", "6"]
    by_login = {row[3]: row for row in students}
    assert sorted(by_login) == sorted([*CLASS, "gus", "hal", "ida"])
    assert by_login["anna"][:3] == ["Müller, Dr., Änna", "17", ""]
    # Canvas would read "18x" as 18, another student's number.
    assert by_login["bo"][:3] == ['\'=1+1, Bo "B"', "", "s-18"]
    assert by_login["hal"][0] == "Line break, Hal"
    assert by_login["gus"][0] == "gus"


def test_moodle_never_gets_a_row_without_its_identifier(course):
    write_report(course)
    assert rows(course / "reports/moodle.csv")[0] == ["First name", "Last name", "Username", NAME]
    with opened(course) as gradebook:
        for student in [*CLASS, "hal", "gus", "ida"]:
            gradebook.update_or_create_student(student, email=f"{student}@school.example", lms_user_id=f"n{student}")
    write_report(course)
    head, *students = rows(course / "reports/moodle.csv")
    assert head == ["First name", "Last name", "Username", "ID number", "Email address", NAME]
    assert students[0] == ["Änna", "Müller, Dr.", "anna", "nanna", "anna@school.example", "6"]


@pytest.mark.parametrize("start", "=+-@")
def test_no_cell_begins_a_formula(course, start):
    with opened(course) as gradebook:
        fields = dict.fromkeys(("first_name", "last_name", "email", "lms_user_id"), f" \n{start}1")
        for student in [*CLASS, "hal", "gus", "ida"]:
            gradebook.update_or_create_student(student, **fields)
        gradebook.add_student(f"{start}HYPERLINK", **fields)
    write_report(course)
    for path in (course / "reports").glob("*.csv"):
        cells = [cell for row in rows(path) for cell in row]
        assert [cell for cell in cells if cell[:1] in tuple("=+-@\t\r") and cell and cell != "-"] == []
    assert any(row[3] == f"'{start}HYPERLINK" for row in rows(course / "reports/canvas.csv"))


def test_the_page_needs_nothing_else(course):
    text = page(course)
    assert text.startswith("<!doctype html>") and '<html lang="en">' in text
    assert not re.search(r"(src|href)=.(?!data:image/png;base64,)|url\(|@import", text)
    alts = re.findall(r'<img alt="(.*?)"', text)
    assert alts[0] == (
        "How many submissions have how many points. 0 points: 1, 1 points: 1, 3 points: 2, 4 points: 1, 6 points: 1."
    )
    assert html.unescape(alts[1]).startswith(
        "How many students made which mistake. attention_weights, " + SCALE + ": 2"
    )
    assert "Of 6 points: median 3.25, mean 2.92, from 0 to 6." in text


@pytest.mark.parametrize(
    "scores, most, labels, counts",
    [
        ([0, 1, 1.5, 3], 3, ["0", "1", "2", "3"], [1, 2, 0, 1]),
        ([7], 6, [str(n) for n in range(8)], [0] * 7 + [1]),  # extra credit
        ([0, 13.0], 13, ["0-1", "2-3", "4-5", "6-7", "8-9", "10-11", "12-13"], [1, 0, 0, 0, 0, 0, 1]),
        ([24], 24, ["0-2", "3-5", "6-8", "9-11", "12-14", "15-17", "18-20", "21-23", "24"], [0] * 8 + [1]),
        ([0], 0, ["0"], [1]),
    ],
)
def test_scores_are_counted_in_whole_points(scores, most, labels, counts):
    assert report_page.histogram(scores, most) == (labels, counts)


@pytest.mark.parametrize("n", [1, 3, report_page.MOST])
def test_the_longest_names_fit_into_the_picture(n):
    longest = sorted(((e.name, m.name) for e in EXERCISES.values() for m in e.mistakes), key=lambda pair: -len(pair[1]))
    figure = report_page.mistake_figure([(*pair, 40 - i) for i, pair in enumerate(longest[:n])])
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert len(boxes) == n and all(box.x0 >= 0 and box.y0 >= 0 for box in boxes)
    assert all(above.y0 >= below.y1 for above, below in pairwise(boxes))
    assert axes.get_window_extent().width > 0.35 * figure.bbox.width


def test_more_mistakes_than_a_picture_holds_are_in_the_table(course):
    names = [mistake.name for mistake in EXERCISES["attention_weights"].mistakes]
    assert len(names) > report_page.MOST
    tell(course, "bo", [verdict("wrong", "attention_weights", tuple(names))])
    text = page(course)
    assert f"The picture has the {report_page.MOST} most frequent of {len(names) + 1}; the table has all." in text
    assert len(table(text, "exercise</th><th>mistake")) == len(names) + 1


def test_an_assignment_that_nobody_handed_in_has_no_page_and_no_column(course):
    with opened(course) as gradebook:
        gradebook.add_assignment("04_blocks")
    write_report(course)
    assert not (course / "reports/04_blocks.html").exists()
    assert rows(course / "reports/canvas.csv")[0][5:] == [NAME]


def test_it_reads_what_grading_writes():
    assert results.verdicts_of is execution.verdicts_of is grading.verdicts_of


def test_reading_leaves_the_gradebook_as_it_was(course):
    before = (course / "gradebook.db").read_bytes()
    write_report(course)
    assert (course / "gradebook.db").read_bytes() == before


def test_nothing_handed_in_is_said(empty, tmp_path):
    shutil.copy(empty, tmp_path)
    with opened(tmp_path) as gradebook:
        gradebook.add_student("anna")
    with pytest.raises(ValueError, match="nothing was handed in yet"):
        write_report(tmp_path)
    assert not (tmp_path / "reports").exists()


def test_nobody_graded_is_a_report_too(empty, tmp_path):
    shutil.copy(empty, tmp_path)
    hand_in(tmp_path, "gus")
    text = page(tmp_path)
    assert table(text, "submission") == {("not graded",): [1]}
    assert "Nothing was graded." in text and "No answer was wrong." in text


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("other.txt", b"", "holds no gradebook.db: nothing was graded there"),
        ("gradebook.db", b"", "must be nbgrader's gradebook, an SQLite file"),
    ],
)
def test_the_command_says_what_is_wrong_with_a_folder(tmp_path, monkeypatch, capsys, name, data, message):
    (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(sys, "argv", ["l1", "report", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    error = capsys.readouterr().err
    assert stop.value.code and message in error and error.count("\n") == 1


def test_the_command_writes_the_report_anew(course, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["l1", "report", str(course)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert capsys.readouterr().out.splitlines() == [f"written: {path}" for path in write_report(course)]
