"""The class report, and the scores as files that Canvas and Moodle import."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from l1_ref.course.report_page import page
from l1_ref.course.results import Assignment, Student, read_results
from l1_ref.files import write_atomic

REPORTS = "reports"
_FORMULA = ("=", "+", "-", "@")


def write_report(folder: Path | str) -> list[Path]:
    """Write the class report of a graded course, and the scores for Canvas and Moodle.

    The scores are those of gradebook.db. Where nothing was graded a cell stays empty ("-" for Moodle), so that an
    import changes no grade that a teacher gave elsewhere into a zero.

    Args:
        folder: The nbgrader course, after grading.

    Returns:
        What was written to its folder `reports`: for each assignment ASSIGNMENT.html and ASSIGNMENT-mistakes.csv;
        then canvas.csv and moodle.csv.

    Raises:
        OSError: There is no gradebook, or the folder cannot be written.
        ValueError: The gradebook is none, or nobody has handed in anything.
    """
    folder = Path(folder)
    students, assignments = read_results(folder)
    files: dict[str, str] = {}
    for each in assignments:
        files[f"{each.name}.html"] = page(each)
        # The mark at the beginning makes a spreadsheet read it as UTF-8.
        files[f"{each.name}-mistakes.csv"] = "\ufeff" + _text(_mistake_rows(each))
    files |= {"canvas.csv": _text(_canvas_rows(students, assignments))}
    files |= {"moodle.csv": _text(_moodle_rows(students, assignments))}
    paths = [folder / REPORTS / name for name in files]
    for path, text in zip(paths, files.values(), strict=True):
        write_atomic(path, text)
    return paths


def _mistake_rows(assignment: Assignment) -> Iterable[list[Any]]:
    yield ["exercise", "mistake", "students", "ids"]
    for exercise, mistake, ids in assignment.mistakes():
        yield [exercise, mistake, len(ids), " ".join(ids)]


def _canvas_rows(students: list[Student], assignments: list[Assignment]) -> Iterable[list[Any]]:
    """Yield the rows of Canvas' gradebook import.

    Canvas looks a student up by its own number, then by the SIS user id, then by the login, then by the name. It reads
    a number at the beginning of any text as its own, so that only whole numbers may stand there.
    """
    yield ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", *(each.name for each in assignments)]
    yield ["Points Possible", "", "", "", "", *(each.max_score for each in assignments)]
    for i, student in enumerate(students):
        name = ", ".join(filter(None, (student.last_name, student.first_name))) or student.id
        lms = student.lms_user_id.strip()
        ids = (lms, "") if lms.isascii() and lms.isdigit() else ("", lms)
        yield [name, *ids, student.id, "", *(each.submissions[i].score for each in assignments)]


def _moodle_rows(students: list[Student], assignments: list[Assignment]) -> Iterable[list[Any]]:
    """Yield the rows of Moodle's grade import.

    A row whose identifier is empty gives its grades to the student of the row before, in Moodle's importer. So a column
    that may serve as the identifier is there only where it is filled for every student.
    """
    fields = {"Username": "id", "ID number": "lms_user_id", "Email address": "email"}
    fields = {title: key for title, key in fields.items() if all(getattr(each, key).strip() for each in students)}
    names = {"First name": "first_name", "Last name": "last_name"}
    yield [*names, *fields, *(each.name for each in assignments)]
    for i, student in enumerate(students):
        scores = [each.submissions[i].score for each in assignments]
        told = [getattr(student, key) for key in (*names.values(), *fields.values())]
        yield [*told, *(_NoGrade() if score is None else score for score in scores)]


class _NoGrade:
    """Moodle's word for a grade that there is not."""


def _text(rows: Iterable[list[Any]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)
    return stream.getvalue()


def _cell(value: Any) -> str:
    """Write one cell; a text that a spreadsheet would take for a formula gets an apostrophe before it."""
    if value is None:
        return ""
    if isinstance(value, _NoGrade):
        return "-"
    if isinstance(value, int | float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    text = " ".join(str(value).split())
    return f"'{text}" if text.startswith(_FORMULA) else text
