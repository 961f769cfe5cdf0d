"""What grading left behind, read as one: nbgrader's gradebook has the scores, the verdicts have the mistakes.

The gradebook decides: an exercise is solved where it has the full points there, whatever a verdict says, since the
verdicts were written by a process that ran a student's code.
"""

import json
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from l1_ref.checks import EXERCISES
from l1_ref.course.sources import CHECK

GRADEBOOK, SUBMITTED, VERDICTS = "gradebook.db", "submitted", "verdicts"
# How an exercise ended, in the order of the report's columns.
SOLVED, GIVEN, WRONG, UNWRITTEN, REFUSED, SILENT = "solved", "given", "wrong", "not written", "refused", "no verdict"
STATES = (SOLVED, GIVEN, WRONG, UNWRITTEN, REFUSED, SILENT)
# How a student's whole submission ended.
GRADED, STOPPED, FAILED, UNGRADED = "graded", "stopped on the way", "crashed: no check finished", "not graded"
NO_NOTEBOOK, MISSING = "handed in without the notebook", "not handed in"
UNKNOWN = "no known mistake explains it"
_TOLD = {"wrong": WRONG, "unwritten": UNWRITTEN, "refused": REFUSED}
_LARGEST, _LONGEST = 10_000_000, 400  # bytes of one file of verdicts, characters of a name in it


@dataclass(frozen=True)
class Student:
    """One student, as nbgrader knows them.

    Args:
        id: nbgrader's id: the name of the folder with the submissions.
        first_name: Empty where it is not known.
        last_name: Empty where it is not known.
        email: Empty where it is not known.
        lms_user_id: The id in the learning platform; empty where it is not known.
    """

    id: str
    first_name: str = ""
    last_name: str = ""
    email: str = ""
    lms_user_id: str = ""


@dataclass(frozen=True)
class Outcome:
    """How one exercise of one submission ended.

    Args:
        state: One of `STATES`.
        mistakes: Their names, or `UNKNOWN` alone; empty unless the answer was wrong.
        text: The check's message; empty where there was none.
    """

    state: str
    mistakes: tuple[str, ...] = ()
    text: str = ""


@dataclass(frozen=True)
class Submission:
    """What one student handed in for one assignment.

    Args:
        student: Who.
        status: `GRADED`, `STOPPED`, `FAILED`, `UNGRADED`, `NO_NOTEBOOK` or `MISSING`.
        score: The gradebook's, less the penalty for being late; None where nothing was graded.
        outcomes: By exercise; empty where nothing was graded.
        by_hand: Whether a cell waits for the teacher's points.
        problem: Why it could not be graded; empty where it could.
    """

    student: Student
    status: str
    score: float | None = None
    outcomes: dict[str, Outcome] | None = None
    by_hand: bool = False
    problem: str = ""


@dataclass(frozen=True)
class Assignment:
    """One assignment and all submissions of it.

    Args:
        name: nbgrader's, such as "03_attention".
        max_score: The points that it is worth.
        exercises: Those that are graded by a check, in the order of the course.
        submissions: One a student of the class, by id.
        unreadable: Lines of verdicts that could not be read.
    """

    name: str
    max_score: float
    exercises: tuple[str, ...]
    submissions: tuple[Submission, ...]
    unreadable: int = 0

    @property
    def graded(self) -> list[Submission]:
        """Those that have a score."""
        return [each for each in self.submissions if each.score is not None]

    def ended(self, exercise: str) -> Counter[str]:
        """Return how many submissions ended in each state, for one exercise."""
        return Counter(each.outcomes[exercise].state for each in self.submissions if each.outcomes)

    def mistakes(self) -> list[tuple[str, str, list[str]]]:
        """Return (exercise, mistake, ids of the students who made it), the most frequent first."""
        made: dict[tuple[str, str], list[str]] = {}
        for each in self.submissions:
            for exercise, outcome in (each.outcomes or {}).items():
                for mistake in outcome.mistakes:
                    made.setdefault((exercise, mistake), []).append(each.student.id)
        order = {name: i for i, name in enumerate(self.exercises)}
        return sorted(((*key, ids) for key, ids in made.items()), key=lambda row: (-len(row[2]), order[row[0]], row[1]))


def verdicts_of(course: Path, student: str, assignment: str) -> Path:
    """Return the file for what the checks of a submission told.

    Args:
        course: The classroom's folder.
        student: The student's id.
        assignment: Its name.
    """
    return course / VERDICTS / assignment / f"{student}.jsonl"


def problem_of(course: Path, student: str, assignment: str) -> Path:
    """Return the file that says why a submission could not be graded; it is there where the last one could not.

    Args:
        course: The classroom's folder.
        student: The student's id.
        assignment: Its name.
    """
    return course / VERDICTS / assignment / f"{student}.txt"


def read_results(folder: Path) -> tuple[list[Student], list[Assignment]]:
    """Read what grading left in an nbgrader course.

    Args:
        folder: The course: it holds gradebook.db, `submitted` and `verdicts`.

    Returns:
        The class by id, and each assignment that at least one student handed in.

    Raises:
        FileNotFoundError: There is no gradebook.
        ValueError: The gradebook is none, or nobody has handed in anything.
    """
    from nbgrader.api import Gradebook

    _require_gradebook(folder)
    # No course id: nbgrader then adds none, and this only reads.
    with Gradebook(f"sqlite:///{(folder / GRADEBOOK).resolve()}", course_id="") as gradebook:
        students = {each.id: _student(each) for each in gradebook.students}
        known = {each.name for each in gradebook.assignments}
        handed_in = [pair for pair in _handed_in(folder) if pair[0] in known]
        students |= {name: Student(name) for _, name in handed_in if name not in students}
        students = {name: students[name] for name in sorted(students)}
        found = [_assignment(folder, each, students, handed_in) for each in gradebook.assignments]
    assignments = [each for each in found if any(one.status != MISSING for one in each.submissions)]
    if not assignments:
        raise ValueError(
            f"nothing was handed in yet: a report needs a notebook in {folder / SUBMITTED}/STUDENT/ASSIGNMENT, and "
            f"l1 grade {shlex.quote(str(folder))} to grade it"
        )
    return list(students.values()), sorted(assignments, key=lambda each: each.name)


def _require_gradebook(folder: Path) -> None:
    path = folder / GRADEBOOK
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no {GRADEBOOK}: nothing was graded there; l1 classroom makes a course, l1 grade grades it"
        )
    with path.open("rb") as file:
        if file.read(16) != b"SQLite format 3\0":
            raise ValueError(f"{path} must be nbgrader's gradebook, an SQLite file; it is something else")


def _student(row: Any) -> Student:
    return Student(row.id, *(getattr(row, key) or "" for key in ("first_name", "last_name", "email", "lms_user_id")))


def _handed_in(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (assignment, student) of each folder of a submission."""
    for path in sorted((folder / SUBMITTED).glob("[!.]*/[!.]*")):
        if path.is_dir():
            yield path.name, path.parent.name


def _assignment(folder: Path, row: Any, students: dict[str, Student], handed_in: list[tuple[str, str]]) -> Assignment:
    cells = [cell for notebook in row.notebooks for cell in notebook.grade_cells if cell.cell_type == "code"]
    order = {name: i for i, name in enumerate(EXERCISES)}
    exercises = sorted({_exercise(cell.name) for cell in cells}, key=lambda name: (order.get(name, len(order)), name))
    of_student = {each.student.id: each for each in row.submissions}
    submissions, unreadable = [], 0
    for name, student in students.items():
        verdicts, broken = _verdicts(verdicts_of(folder, name, row.name))
        unreadable += broken
        is_there = (row.name, name) in handed_in
        notebooks = [folder / SUBMITTED / name / row.name / f"{each.name}.ipynb" for each in row.notebooks]
        lacks = is_there and not any(path.is_file() for path in notebooks)
        told = problem_of(folder, name, row.name)
        problem = told.read_text(encoding="utf-8")[:_LONGEST] if is_there and told.is_file() else ""
        each = _submission(student, of_student.get(name), exercises, verdicts, is_there, lacks)
        if problem:
            each = replace(each, status=NO_NOTEBOOK if lacks else UNGRADED, outcomes=None, problem=problem)
        submissions.append(each)
    return Assignment(row.name, row.max_score, tuple(exercises), tuple(submissions), unreadable)


def _exercise(cell: str) -> str:
    return cell.removesuffix(CHECK)


def _submission(
    student: Student, row: Any, exercises: list[str], verdicts: dict[str, list[dict]], is_there: bool, lacks: bool
) -> Submission:
    grades = [grade for notebook in row.notebooks for grade in notebook.grades] if row else []
    touched = any(each.auto_score is not None or each.manual_score is not None for each in grades)
    score = max(0.0, row.score - row.late_submission_penalty) if touched or (row and lacks) else None
    if lacks:
        return Submission(student, NO_NOTEBOOK, score)
    if row is None:
        return Submission(student, UNGRADED if is_there else MISSING)
    checked = {_exercise(each.name): each for each in grades if each.cell_type == "code"}
    if checked and all(each.auto_score is None for each in checked.values()):
        return Submission(student, FAILED, score)  # a teacher may have given points by hand
    outcomes = {name: _outcome(name, checked.get(name), verdicts.get(name, [])) for name in exercises}
    silent = [outcome.state == SILENT for outcome in outcomes.values()]
    status = GRADED if not any(silent) else FAILED if all(silent) else STOPPED
    return Submission(student, status, score, outcomes, any(each.needs_manual_grade for each in grades))


def _outcome(name: str, grade: Any, verdicts: list[dict]) -> Outcome:
    """Say how an exercise ended: the points decide whether it is solved, the last verdict that agrees says the rest."""
    if grade is not None and grade.auto_score is not None and grade.auto_score >= grade.max_score:
        states = [each["state"] for each in verdicts]
        return Outcome(GIVEN if GIVEN in states and SOLVED not in states else SOLVED)
    last = next((each for each in reversed(verdicts) if each["state"] in _TOLD), None)
    if last is None:
        return Outcome(SILENT)
    state = _TOLD[last["state"]]
    return Outcome(state, _mistakes(name, last["mistakes"]) if state == WRONG else (), last["text"])


def _mistakes(name: str, told: list[str]) -> tuple[str, ...]:
    """Keep the names that the exercise's catalogue has; of an exercise that is not the course's, keep all."""
    known = {mistake.name for mistake in EXERCISES[name].mistakes} if name in EXERCISES else set(told)
    return tuple(dict.fromkeys(each for each in told if each in known)) or (UNKNOWN,)


def _verdicts(path: Path) -> tuple[dict[str, list[dict]], int]:
    """Read one student's verdicts by exercise, in the order of the checks, and count the lines that are none."""
    if not path.is_file():
        return {}, 0
    with path.open("rb") as file:
        lines = file.read(_LARGEST).decode("utf-8", "replace").splitlines()
    found: dict[str, list[dict]] = {}
    broken = 0
    for line in filter(str.strip, lines):
        try:
            verdict = json.loads(line)
            told = [str(each)[:_LONGEST] for each in verdict.get("mistakes", [])]
            entry = {"state": str(verdict["state"]), "mistakes": told, "text": str(verdict.get("text", ""))}
            found.setdefault(str(verdict["exercise"]), []).append(entry)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            broken += 1
    return found, broken
