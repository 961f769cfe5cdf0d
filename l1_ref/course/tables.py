"""What the course's commands print: the outcome of the checks, and the progress, as tables."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from l1_ref.checks.showing import SIGNS
from l1_ref.course import outcomes, standing
from l1_ref.course.outcomes import Outcome

_SIGNS = SIGNS | {"wrong": "✗", "unwritten": "·", outcomes.UNREACHED: "!"}
_WORDS = {"unwritten": "not written", outcomes.UNREACHED: "not reached"}
_PIPE_COLUMNS = 500  # what is read by a program stays in one line


def show(table: Table, out: Console) -> None:
    """Print a table: as wide as the terminal, each row in one line where it goes into a pipe or a file.

    Args:
        table: The table.
        out: Where.
    """
    width = None if out.is_terminal else _PIPE_COLUMNS
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        console.print(table)
    # Rich fills each line up with spaces.
    out.file.write("\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n")


def of_checks(found: Iterable[Outcome]) -> Table:
    """Return one row an exercise: its state, and the mistake's name or why its check was not reached.

    Args:
        found: What came of the notebooks.
    """
    table = _table("", "notebook", "exercise", "state", "")
    for each in found:
        for result in each.results:
            state = _WORDS.get(result.state, result.state)
            table.add_row(_SIGNS.get(result.state, "✗"), each.notebook, result.exercise, state, result.detail)
        if each.stopped and all(each.stopped != result.text for result in each.results):
            table.add_row("!", each.notebook, "", "stopped", each.stopped)
    return table


def summary(found: Iterable[Outcome]) -> str:
    """Say how many exercises are in which state.

    Args:
        found: What came of the notebooks.
    """
    found = list(found)
    parts = [f"{n} {_WORDS.get(state, state)}" for state, n in outcomes.counts(found).items() if n]
    return f"{', '.join(parts) or 'no exercises'} · {len(found)} notebook{'s' * (len(found) != 1)}"


def of_notebooks(tasks: list[standing.Task]) -> Table:
    """Return one row a notebook: how many exercises are in which state, and how long the rest takes.

    Args:
        tasks: From `standing.of_workspace`.
    """
    table, here = _table("", "notebook", *standing.STATES, "left", numbers=standing.STATES), standing.next_task(tasks)
    groups = standing.by_notebook(tasks)
    for name, group in [*groups.items(), ("all", tasks)]:
        mark = "▸" if here is not None and here.notebook == name else "✓" if all(task.done for task in group) else ""
        numbers = [str(n or "") for n in standing.counts(group).values()]
        left = standing.minutes_left(group)
        table.add_row(mark, name, *numbers, standing.duration(left) if left else "", end_section=name == [*groups][-1])
    return table


def of_exercises(tasks: list[standing.Task]) -> Table:
    """Return one row an exercise.

    Args:
        tasks: From `standing.of_workspace`.
    """
    numbers = ("tries", "hints", "minutes")
    table = _table("", "notebook", "exercise", "state", *numbers, "difficulty", numbers=numbers)
    for task in tasks:
        counts = [str(n or "") for n in (task.tries, task.hints, task.minutes)]
        table.add_row(SIGNS[task.state], task.notebook, task.exercise, task.state, *counts, task.difficulty)
    return table


def _table(*columns: str, numbers: Iterable[str] = ()) -> Table:
    table = Table(box=None, header_style="", pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold", justify="right" if name in numbers else "left")
    return table


@contextmanager
def bar(n_cells: int) -> Iterator[Callable[[str], None]]:
    """Show a progress bar on standard error, where that is a terminal.

    Args:
        n_cells: How many cells will run in all.

    Yields:
        What is to be called with a notebook's name before each of its cells.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("cells"),
        TimeElapsedColumn(),
    )
    with _progress(*columns, transient=True) as progress:
        task = progress.add_task("starting", total=n_cells)
        yield lambda name: progress.update(task, description=name, advance=1)


@contextmanager
def grading_bar() -> Iterator[Callable[[str, int], None]]:
    """Show how far grading is, on standard error where that is a terminal.

    Yields:
        What is to be called with "run" or "scored" after each such step, and with how many there are to do.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with _progress(*columns) as progress:
        tasks = {name: progress.add_task(name, total=None) for name in ("run", "scored")}
        yield lambda name, total: progress.update(tasks[name], advance=1, total=total)


def _progress(*columns: ProgressColumn, transient: bool = False) -> Progress:
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=transient, disable=not console.is_terminal)
