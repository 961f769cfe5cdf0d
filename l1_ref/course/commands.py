"""The course's own commands: a workspace and the progress made in it. `l1_ref.cli` puts them beside the others."""

import json
import math
import os
import shlex
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from l1_ref.checks import marks
from l1_ref.config import require_whole
from l1_ref.files import write_atomic
from l1_ref.signals import handling

# A path may hold what Rich would take for markup; and a line is for the terminal to break, not for a pipe.
out = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def stop_once() -> Callable[..., None]:
    """Return a handler that ends what runs; a second signal must not break off the tidying up."""
    asked = threading.Event()

    def stop(*_: Any) -> None:
        if not asked.is_set():
            asked.set()
            raise KeyboardInterrupt

    return stop


def learn(
    folder: Annotated[
        Path | None,
        typer.Argument(help="Made if it is not there. Default: the workspace you are in, or else workspace."),
    ] = None,
    lab: Annotated[bool, typer.Option("--lab/--no-lab", help="Open JupyterLab on the first notebook.")] = True,
) -> None:
    """Make your workspace, or go on in it, and open JupyterLab; what you wrote is never overwritten."""
    from l1_ref.course import workspace

    notebook = workspace.learn(_chosen(folder), say=out.print)
    out.print(f"workspace: {notebook.parent.absolute()}   next: {notebook.name}")
    if lab:
        sys.exit(workspace.open_lab(notebook))


def check(
    notebooks: Annotated[
        list[str] | None, typer.Argument(help="Such as 03, 03_attention or a path; all of the workspace where none.")
    ] = None,
    workspace: Annotated[Path | None, typer.Option(help="Default: the one you are in, or else workspace.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML to this file too.")] = None,
    jobs: Annotated[int, typer.Option(help="Notebooks at a time; torch uses all cores with one.")] = 1,
    timeout: Annotated[float, typer.Option(help="Most seconds a cell may take.")] = 60.0,
) -> None:
    """Run the checks of your notebooks from the top, on copies: what is solved, wrong (with the mistake), not written.

    A new state is noted in your progress, as one try; the same state again is not. The exit status is 0 where every
    exercise is solved or given, 1 where one is not, 2 where there is nothing to run.
    """
    from l1_ref.course import checking, outcomes, tables

    runs: list[checking.NotebookRun] = []
    try:
        runs = _prepare(notebooks or [], workspace, junit, jobs, timeout)
        with handling(stop_once()), tables.bar(sum(run.n_cells for run in runs)) as tell:
            found = checking.run_all(runs, jobs, tell, checking.record)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        done = sum(run.ended for run in runs)
        print(f"stopped: {done} of {len(runs)} notebooks were checked to their end", file=sys.stderr)
        raise typer.Exit(130) from None
    if as_json:
        print(json.dumps(outcomes.as_json(found), indent=2))
    else:
        tables.show(tables.of_checks(found), out)
        out.print(tables.summary(found))
    try:
        if junit is not None:  # after what took the time is shown
            write_atomic(junit, outcomes.as_junit(found))
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    raise typer.Exit(_status(found))


def _status(found: list[Any]) -> int:
    from l1_ref.course import outcomes

    if not any(each.results or each.stopped for each in found):
        return 2
    return int(not outcomes.all_passed(found))


def _prepare(names: list[str], folder: Path | None, junit: Path | None, jobs: int, timeout: float) -> list:
    from l1_ref.course import checking

    require_whole("--jobs", jobs, "of at least 1", lambda n: n >= 1)
    if not (math.isfinite(timeout) and timeout > 0):
        raise ValueError(f"--timeout must be a finite number of seconds above 0, got {timeout}")
    if junit is not None and junit.is_dir():
        raise ValueError(f"--junit must name a file, got the folder {junit}")
    only_paths = bool(names) and folder is None and all(Path(name).is_file() for name in names)
    place = Path(".") if only_paths else _workspace(folder)
    return [checking.NotebookRun(path, timeout, jobs) for path in checking.find(names, place)]


def _chosen(folder: Path | None) -> Path:
    """Return the workspace that was named, or that the reader is in, or the usual one, be it there or not."""
    return (folder or marks.find_workspace() or Path("workspace")).expanduser()


def _workspace(folder: Path | None) -> Path:
    """Return the chosen workspace, which must be there."""
    chosen = _chosen(folder)
    if not marks.is_workspace(chosen):
        raise ValueError(f"{chosen} is no workspace; l1 learn {shlex.quote(str(chosen))} makes one")
    return chosen


def update(
    folder: Annotated[
        Path | None, typer.Argument(help="Your workspace. Default: the one you are in, or else workspace.")
    ] = None,
) -> None:
    """Bring the course's new edition into a workspace; what you wrote is carried over, after a backup."""
    from l1_ref.course import update as updates

    for line in updates.update(_chosen(folder)).lines():
        out.print(line)


def progress(
    folder: Annotated[
        Path | None, typer.Argument(help="Your workspace. Default: the one you are in, or else workspace.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="List every exercise, with tries and hints.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
) -> None:
    """Show where you are in the course: what is done, how long the rest takes, what is next."""
    from l1_ref.course import standing, tables

    chosen = _workspace(folder)
    tasks = standing.of_workspace(chosen)
    if as_json:
        print(json.dumps(standing.as_json(chosen, tasks), indent=2))
        return
    tables.show(tables.of_exercises(tasks) if every else tables.of_notebooks(tasks), out)
    for line in standing.in_words(tasks):
        out.print(line)
    if standing.next_task(tasks) is not None:
        out.print(f"open it: l1 learn {shlex.quote(str(chosen))}")


def show(
    name: Annotated[str, typer.Argument(help="An exercise, such as softmax.")],
) -> None:
    """Show the course's own version of an exercise, with its paper and equation: it is the answer."""
    from rich.syntax import Syntax

    from l1_ref import checks
    from l1_ref.checks.showing import Shown

    try:
        shown = Shown(checks.exercise(name))
    except KeyError as error:
        raise ValueError(error.args[0]) from None
    if not out.is_terminal:
        print(shown.text)
        return
    out.print("\n".join([*shown.head, ""]))
    out.print(
        Syntax(shown.source, "python", theme="ansi_dark", background_color="default", word_wrap=True), soft_wrap=False
    )


def report(
    folder: Annotated[Path, typer.Argument(help="The nbgrader course, after grading.")] = Path("."),
) -> None:
    """Write the class report of a graded course, and the scores for Canvas and Moodle; l1 grade does so too."""
    from l1_ref.course.report import write_report

    for path in write_report(folder):
        out.print(f"written: {path}")


def doctor(
    folder: Annotated[Path, typer.Argument(help="Your workspace, there or not yet.")] = Path("workspace"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
) -> None:
    """Say what is wrong with this installation, and how to mend it; `python -m l1_ref.course.doctor` without torch."""
    from l1_ref.course import doctor as doctors

    sys.exit(doctors.report(folder, as_json))


def classroom(
    folder: Annotated[Path, typer.Argument(help="The course for nbgrader; made if it is not there.")],
    notebooks: Annotated[
        list[str] | None, typer.Option("--notebooks", help="Such as 03; again for another one. Default: all.")
    ] = None,
    more: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
) -> None:
    """Make an nbgrader course of these notebooks; what is there is never overwritten."""
    from l1_ref.course import classroom as classrooms

    if more and not notebooks:
        raise ValueError(f"one folder is needed, got {len(more)} more: {', '.join(more)}; notebooks follow --notebooks")
    made = classrooms.make(folder, [*(notebooks or []), *(more or [])])
    out.print(f"classroom: {folder}   files written {len(made.written)}, there before {len(made.unchanged)}")
    for path in made.kept:
        out.print(f"left alone, for it was edited or is of another edition: {path}")
    names = sorted(path.name for path in (folder / "source").iterdir() if path.is_dir())
    name = names[0] if len(names) == 1 else '"*"'
    out.print(f"next, in {folder}: nbgrader generate_assignment {name}; hand out what is in release/")


def grade(
    folder: Annotated[Path, typer.Argument(help="The classroom, with submitted/STUDENT/NOTEBOOK/.")],
    notebooks: Annotated[
        list[str] | None, typer.Option("--notebook", help="Such as 03; again for another one. Default: all.")
    ] = None,
    students: Annotated[
        list[str] | None, typer.Option("--student", help="An id; again for another one. Default: all.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Submissions that run at a time. Default: one a core.")] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds that a cell may take; a notebook may take 15 times that, or 300 s.")
    ] = 60,
    memory: Annotated[int, typer.Option(help="MiB of address space for a process, beside torch's own.")] = 4096,
    without_limits: Annotated[
        bool, typer.Option("--without-limits", help="Only in a container: no limit but the time holds.")
    ] = False,
) -> None:
    """Grade all that is submitted, in parallel and inside limits; write feedback, the class report and tables."""
    found: list = []
    try:
        with handling(stop_once()):
            from l1_ref.course import grading, limits, tables

            amount = limits.Limits(cell_s=timeout, memory_mb=memory)
            course = grading.Course(folder)
            found = course.submissions(notebooks or (), students or ())
            for line in [f"not graded: {line}" for line in course.strays()] + _weak_limits(not without_limits):
                print(line, file=sys.stderr)
            jobs = os.cpu_count() or 1 if jobs is None else jobs
            with tables.grading_bar() as say:
                grading.grade(course, found, amount, not without_limits, jobs, say)
            _tell_scores(found)
            for path in grading.report(course):
                out.print(f"written: {path}")
    except KeyboardInterrupt:
        done = sum(each.score is not None for each in found)
        what = f"{done} of {len(found)} submissions are scored" if found else "nothing is scored"
        print(f"stopped: {what}; grade again for the rest and for the report", file=sys.stderr)
        raise typer.Exit(130) from None
    out.print(f"feedback: {course.folder / 'feedback'}")
    raise typer.Exit(1 if any(each.not_run for each in found) else 0)


def _weak_limits(with_limits: bool) -> list[str]:
    """Say of each limit that holds in part, or not at all, why; nothing where none is wanted."""
    from l1_ref.course import limits

    words = {"partly": "holds in part", "no": "does not hold"}
    found = limits.holding().items() if with_limits else ()
    weak = [f"a limit {words[holds]} here: {name}: {why}" for name, (holds, why) in found if holds in words]
    return weak + ['README, "Limits", says what needs a container'] * bool(weak)


def _tell_scores(found: list) -> None:
    scored = [each for each in found if not each.not_run]
    for assignment in sorted({each.assignment for each in scored}):
        graded = [each for each in scored if each.assignment == assignment]
        mean = sum(each.score for each in graded) / len(graded)
        number = f"{len(graded)} submission{'s' * (len(graded) != 1)}"
        out.print(f"{assignment}: {number}, on average {mean:.1f} of {graded[0].max_score:g} points")
    for each in found:
        told = [f"0 points, {each.problem}"] * bool(each.problem)
        told += [f"not graded, and the points it had stand: {each.not_run}; grade again"] * bool(each.not_run)
        for line in told + each.notes:
            print(f"{each.student}, {each.assignment}: {line}", file=sys.stderr)


COMMANDS = (classroom, grade, learn, update, check, progress, show, report, doctor)
