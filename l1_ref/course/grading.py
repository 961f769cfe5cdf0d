"""Grade a class: all submissions run in parallel inside limits, then nbgrader scores them one after the other.

nbgrader's gradebook is an SQLite file, which several writers at a time would lock. So the part that takes long, running
strangers' code, is done beforehand and in parallel; nbgrader's own autograde then finds each notebook already run
(`execution.RunApart`) and does what it always does. What is left behind is an ordinary nbgrader course.
"""

import asyncio
import glob
import html
import os
import shlex
import shutil
import warnings
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import nbformat
from nbgrader.api import Gradebook
from nbgrader.converters import Autograde, GenerateFeedback
from nbgrader.coursedir import CourseDirectory
from nbgrader.utils import capture_log
from traitlets.config import Config, PyFileConfigLoader
from traitlets.utils.importstring import import_item

from l1_ref.course import execution, limits
from l1_ref.course.classroom import CONFIG, MISREAD, require_readable
from l1_ref.course.execution import ALREADY_RUN, RunApart, run_submission
from l1_ref.course.kernels import KernelError, Launcher
from l1_ref.course.limits import Limits
from l1_ref.course.results import problem_of, verdicts_of
from l1_ref.files import alone, write_atomic
from l1_ref.signals import handling

LOCK = ".grading.lock"
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{0}</title></head>
<body><h1>{0}</h1><p>This submission could not be graded, so its checks earn nothing: {1}</p></body></html>
"""
Say = Callable[[str, int], None]  # what was done ("run" or "scored"), and how many there are to do


@dataclass
class Submission:
    """One student's answer to one assignment, and what became of it.

    Args:
        student: The student's id.
        assignment: Its name; the notebook bears the same.
        folder: Where it is.
        score: Points; None where it was not graded.
        max_score: Most points.
        problem: Why it could not be graded, one sentence; it then has no points.
        not_run: Why this machine did not run it, which is not the student's doing; it then keeps the points it had.
        notes: What else the teacher should know, one sentence each.
    """

    student: str
    assignment: str
    folder: Path
    score: float | None = None
    max_score: float = 0.0
    problem: str = ""
    not_run: str = ""
    notes: list[str] = field(default_factory=list)


class Course:
    """An nbgrader course.

    Args:
        folder: Holds nbgrader_config.py.

    Raises:
        ValueError: It is none, nbgrader would misread its path, or its settings cannot be read.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).expanduser().resolve()
        if not (self.folder / CONFIG).is_file():
            command = f"l1 classroom {shlex.quote(str(folder))}"
            raise ValueError(f"{folder} is no classroom: it holds no {CONFIG}; {command} makes one")
        require_readable(self.folder)
        try:
            self.config = Config(PyFileConfigLoader(CONFIG, path=str(self.folder)).load_config())
        except Exception as error:  # it is a program of the teacher's
            raise ValueError(f"{self.folder / CONFIG} cannot be read: {type(error).__name__}: {error}") from None
        self.config.CourseDirectory.root = str(self.folder)
        self.directory = CourseDirectory(config=self.config, log=execution._QUIET)

    def gradebook(self) -> Gradebook:
        """Open the gradebook; the caller closes it."""
        return Gradebook(self.directory.db_url, self.directory.course_id)

    def submissions(self, notebooks: Iterable[str] = (), students: Iterable[str] = ()) -> list[Submission]:
        """Find what was submitted and is to be graded.

        Args:
            notebooks: Names of assignments, or their beginnings; all where empty.
            students: Ids; all where empty.

        Raises:
            ValueError: Nothing is there, or nothing of a name, or nothing of an assignment that was released.
        """
        place = self.folder / "submitted"
        found = [
            Submission(path.parent.name, path.name, path)
            for path in sorted(place.glob("*/*"))
            if path.is_dir() and not path.parent.name.startswith(".") and not path.name.startswith(".")
        ]
        odd = [problem for name in (students or {each.student for each in found}) if (problem := _no_student(name))]
        found = [each for each in found if not _no_student(each.student)]
        if odd and (students or not found):
            raise ValueError("; ".join(sorted(odd)))
        if not found:
            raise ValueError(f"nothing is submitted: put each notebook into {place}/STUDENT/ASSIGNMENT/")
        for name in notebooks:
            if not any(each.assignment.startswith(name) for each in found):
                raise ValueError(f"no submission is of a notebook {name!r}; there are: {_list(found, 'assignment')}")
        for student in students:
            if not any(each.student == student for each in found):
                raise ValueError(f"nothing is submitted by {student!r}; there are: {_list(found, 'student')}")
        found = [each for each in found if not students or each.student in set(students)]
        found = [each for each in found if not notebooks or each.assignment.startswith(tuple(notebooks))]
        known = self._released()
        if not any(each.assignment in known for each in found):
            raise ValueError("; ".join(self._no_assignment(each.folder, known) for each in found))
        return [each for each in found if each.assignment in known]

    def strays(self) -> list[str]:
        """Say of each thing in `submitted` that is no submission why it is none."""
        known, told = self._released(), []
        for student in sorted((self.folder / "submitted").glob("[!.]*")):
            if not student.is_dir():
                told.append(f"{student}: it is in no folder of a student")
                continue
            if problem := _no_student(student.name):
                told.append(f"{student}: {problem}")
                continue
            inside = sorted(student.glob("[!.]*"))
            told += [] if inside else [f"{student}: nothing is in it"]
            told += [f"{path}: it must be in {student}/ASSIGNMENT/" for path in inside if not path.is_dir()]
            told += [self._no_assignment(path, known) for path in inside if path.is_dir() and path.name not in known]
        return told

    def _released(self) -> set[str]:
        if self.directory.db_url.startswith("sqlite:///") and not Path(self.directory.db_url[10:]).exists():
            return set()
        with self.gradebook() as gradebook:
            return {each.name for each in gradebook.assignments if each.notebooks}

    def _no_assignment(self, path: Path, known: set[str]) -> str:
        name = path.name
        if (self.folder / "source" / name).is_dir():
            return f"{path}: {name} was not released: run nbgrader generate_assignment {name} in {self.folder}"
        if path.parent.name in known:
            return f"{path}: the order is STUDENT/ASSIGNMENT: move it to {path.parents[1] / name / path.parent.name}"
        near = get_close_matches(name.lower(), known, n=1)
        return f"{path}: there is no assignment {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")

    def converter(self, kind: type, submission: Submission) -> Any:
        """Return one of nbgrader's converters, set on one submission."""
        self.directory.assignment_id = glob.escape(submission.assignment)
        self.directory.student_id = glob.escape(submission.student)
        made = kind(coursedir=self.directory, config=self.config, log=execution._QUIET)
        made.force = True
        return made


def _no_student(name: str) -> str:
    """Say why nbgrader cannot find what a student of that id submitted; "" where it can."""
    odd = " ".join(repr(each) for each in MISREAD if each in name) or "spaces around it" * (name != name.strip())
    return f"nbgrader misreads the id {name!r} of a student, for it has {odd}: rename the folder" if odd else ""


def _list(found: list[Submission], part: str) -> str:
    return ", ".join(sorted({getattr(each, part) for each in found}))


class _Stop:
    """What a signal does: what runs is cancelled, what is being scored is scored whole, and nothing comes after it.

    nbgrader's `capture_log` swallows a KeyboardInterrupt, which would then cost the submission its points.
    """

    def __init__(self) -> None:
        self.asked = False
        self._task: asyncio.Task | None = None

    def __call__(self, *_: Any) -> None:
        if not self.asked and self._task is not None:  # a second signal must not break off the tidying up
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)
        self.asked = True

    def heed(self) -> None:
        """Raise KeyboardInterrupt where a signal came."""
        if self.asked:
            raise KeyboardInterrupt

    def run(self, work: Coroutine) -> None:
        """Do some work, which a signal cancels."""
        with suppress(asyncio.CancelledError):
            asyncio.run(self._watched(work))
        self.heed()

    async def _watched(self, work: Coroutine) -> None:
        self._task = asyncio.current_task()
        if self.asked:
            self._task.cancel()
        try:
            await work
        finally:
            self._task = None


def grade(
    course: Course, submissions: list[Submission], amount: Limits, with_limits: bool, jobs: int, say: Say
) -> None:
    """Run and score submissions, in place, and write each student's feedback.

    Args:
        course: The classroom.
        submissions: From `Course.submissions`.
        amount: What each may take.
        with_limits: Whether the limits are applied.
        jobs: How many run at a time.
        say: Is told of each step that is done.

    Raises:
        ValueError: This system does not hold the limits, and they were not waived; or jobs is below 1.
        KernelError: No kernel starts.
        OSError: Another process grades this classroom, or something cannot be written.
        KeyboardInterrupt: SIGINT, SIGTERM or SIGHUP came. What has a score is graded, the rest has the points it had.
    """
    if jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {jobs}")
    if os.name == "nt":
        raise ValueError("grading needs Linux or macOS; on Windows run it in WSL or in a container")
    if with_limits and limits.missing():
        raise ValueError(
            f"this system does not hold the limits that strangers' code needs ({'; '.join(limits.missing())}): grade "
            "on Linux, or in a container with nothing else in it and --without-limits"
        )
    stop = _Stop()
    with alone(course.folder / LOCK), handling(stop), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the database's layer about nbgrader's code, of nbformat about cells' ids
        try:
            with Launcher(amount, with_limits) as launcher:
                stop.run(_run_all(course, submissions, launcher, jobs, say))
            for submission in submissions:
                if not submission.not_run:
                    _score(course, submission)
                say("scored", len(submissions))
                stop.heed()
        finally:
            ALREADY_RUN.clear()


async def _run_all(course: Course, submissions: list[Submission], launcher: Launcher, jobs: int, say: Say) -> None:
    free = asyncio.Semaphore(jobs)

    async def run(submission: Submission) -> None:
        async with free:
            try:
                await _run(course, submission, launcher)
            except KernelError as error:
                submission.not_run = str(error)
            except Exception as error:  # whatever a stranger's file does to a reader of notebooks
                submission.problem = f"it cannot be read: {type(error).__name__}: {str(error)[:200]}"
            say("run", len(submissions))

    try:
        async with asyncio.TaskGroup() as group:
            for submission in submissions:
                group.create_task(run(submission))
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None
    if all(each.not_run for each in submissions):
        raise KernelError(submissions[0].not_run)


async def _run(course: Course, submission: Submission, launcher: Launcher) -> None:
    # What an earlier submission told is not said of this one, even where this one cannot be run.
    for told in (verdicts_of, problem_of):
        told(course.folder, submission.student, submission.assignment).unlink(missing_ok=True)
    submission.problem = _refusal(submission)
    if submission.problem:
        return
    key = (submission.student, submission.assignment, submission.assignment)
    notebook = _cleaned(course, submission)
    await run_submission(notebook, launcher, course.folder, submission.student, submission.assignment)
    ALREADY_RUN[key] = notebook


def _refusal(submission: Submission) -> str:
    """Say why a submission is not even opened; "" where it is."""
    links = [path.name for path in submission.folder.rglob("*") if path.is_symlink()]
    if submission.folder.is_symlink() or links:
        return f"it holds a link ({', '.join(links[:3]) or submission.folder.name}), which could lead to another's work"
    if not (submission.folder / f"{submission.assignment}.ipynb").is_file():
        others = [path.name for path in sorted(submission.folder.glob("*.ipynb"))]
        hint = f", but {', '.join(others[:3])}: give the right one that name, and grade again" if others else ""
        return f"it holds no {submission.assignment}.ipynb{hint}"
    return ""


def _cleaned(course: Course, submission: Submission) -> nbformat.NotebookNode:
    """Return a submission as nbgrader's autograde has it when it comes to run it."""
    path = submission.folder / f"{submission.assignment}.ipynb"
    converter = course.converter(Autograde, submission)
    where = {"student": submission.student, "assignment": submission.assignment, "notebook": submission.assignment}
    resources = {"unique_key": submission.assignment, "nbgrader": {**where, "db_url": course.directory.db_url}}
    notebook = nbformat.read(path, as_version=4)
    steps = [*converter.sanitize_preprocessors, *converter.autograde_preprocessors]
    for step in map(_class, steps):
        if step is RunApart:
            break
        notebook, resources = step(parent=converter)(notebook, resources)
    return notebook


def _class(step: Any) -> type:
    return import_item(step) if isinstance(step, str) else step


def _score(course: Course, submission: Submission) -> None:
    if not submission.problem:
        said = capture_log(course.converter(Autograde, submission))
        if said["success"] and _autograded(course, submission).is_file():
            said = capture_log(course.converter(GenerateFeedback, submission))
        if not said["success"] or not _autograded(course, submission).is_file():
            submission.problem = f"nbgrader does not grade it: {_reason(said)}"
    if submission.problem:
        _tell_problem(course, submission)
    with course.gradebook() as gradebook:
        if submission.problem:
            _give_nothing(gradebook, submission)
        graded = gradebook.find_submission(submission.assignment, submission.student)
        submission.score, submission.max_score = graded.score, graded.max_score
        grades = [grade for notebook in graded.notebooks for grade in notebook.grades]
        both = [g for g in grades if None not in (g.auto_score, g.manual_score) and g.auto_score != g.manual_score]
        submission.notes = [
            f"{g.name.removesuffix('-check')} earns {g.auto_score:g} by its check, {g.manual_score:g} by hand stands"
            for g in both
        ]


def _autograded(course: Course, submission: Submission) -> Path:
    return course.folder / "autograded" / submission.student / submission.assignment / f"{submission.assignment}.ipynb"


def _tell_problem(course: Course, submission: Submission) -> None:
    """Write why there is nothing to see, for the student and the report, in place of what an earlier one left."""
    where = (submission.student, submission.assignment)
    verdicts_of(course.folder, *where).unlink(missing_ok=True)
    for step in ("autograded", "feedback"):
        with suppress(FileNotFoundError):
            shutil.rmtree(course.folder.joinpath(step, *where))
    write_atomic(problem_of(course.folder, *where), submission.problem)
    page = _PAGE.format(html.escape(submission.assignment), html.escape(submission.problem))
    write_atomic(course.folder.joinpath("feedback", *where, f"{submission.assignment}.html"), page)


def _reason(said: dict[str, Any]) -> str:
    lines = [line.strip() for line in f"{said.get('log', '')}\n{said.get('error', '')}".splitlines()]
    return next((line for line in reversed(lines) if ": " in line), "it does not say why")


def _give_nothing(gradebook: Gradebook, submission: Submission) -> None:
    gradebook.update_or_create_student(submission.student)
    for notebook in gradebook.update_or_create_submission(submission.assignment, submission.student).notebooks:
        for each in notebook.grades:
            each.auto_score, each.needs_manual_grade = 0, False
    gradebook.db.commit()


def report(course: Course) -> list[Path]:
    """Write the class report, and return its files."""
    from l1_ref.course.report import write_report  # matplotlib is not needed before

    return write_report(course.folder)
