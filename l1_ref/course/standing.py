"""Where a reader is in the course: what is done, how many minutes are left, what is next."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from l1_ref.checks import marks, progress_table
from l1_ref.course import sources

STATES = (*marks.DONE, "tried", "open")


@dataclass(frozen=True)
class Task:
    """One exercise, with what the course says of it and what the reader has made of it.

    Args:
        notebook: Such as "00_start_here".
        exercise: Its name.
        state: "solved", "given", "tried" or "open".
        tries: How often it was checked while something was written.
        hints: How many hints were asked for.
        minutes: How long it takes, about; 0 where the course does not say.
        difficulty: "easy", "medium" or "hard"; empty where the course does not say.
    """

    notebook: str
    exercise: str
    state: str
    tries: int
    hints: int
    minutes: int = 0
    difficulty: str = ""

    @property
    def done(self) -> bool:
        """Whether it is solved or given."""
        return self.state in marks.DONE


def tasks(rows: Iterable[marks.Row]) -> list[Task]:
    """Join the reader's progress with the minutes and the difficulty that stand in the notebooks' sources.

    Args:
        rows: From `checks.progress_table`.
    """
    cells = [cell for name in sources.names() for cell in sources.load(name).cells if "exercise" in sources.tags(cell)]
    said = {cell.metadata["name"]: cell.metadata for cell in cells}
    facts = ("minutes", "difficulty")
    return [Task(*row, **{k: said[row.exercise][k] for k in facts if k in said.get(row.exercise, {})}) for row in rows]


def by_notebook(found: Iterable[Task]) -> dict[str, list[Task]]:
    """Group exercises by their notebook, in the order in which the notebooks come.

    Args:
        found: From `tasks`.
    """
    groups: dict[str, list[Task]] = {}
    for task in found:
        groups.setdefault(task.notebook, []).append(task)
    return groups


def counts(found: Iterable[Task]) -> dict[str, int]:
    """Count exercises by state, each state named.

    Args:
        found: From `tasks`.
    """
    states = [task.state for task in found]
    return {state: states.count(state) for state in STATES}


def minutes_left(found: Iterable[Task]) -> int:
    """Add up the minutes of the exercises that are neither solved nor given.

    Args:
        found: From `tasks`.
    """
    return sum(task.minutes for task in found if not task.done)


def next_task(found: Iterable[Task]) -> Task | None:
    """Return the first exercise that is neither solved nor given; None where all are.

    Args:
        found: From `tasks`.
    """
    return next((task for task in found if not task.done), None)


def duration(minutes: int) -> str:
    """Write minutes for a person: "25 min", "2 h", "2 h 5 min".

    Args:
        minutes: A whole number.
    """
    hours, rest = divmod(minutes, 60)
    return " ".join([f"{hours} h"] * bool(hours) + [f"{rest} min"] * bool(rest or not hours))


def in_words(found: list[Task]) -> list[str]:
    """Say in two sentences how far the reader is, and what is next.

    Args:
        found: From `tasks`.
    """
    number, after = counts(found), next_task(found)
    lead = f"{number['solved']} of {len(found)} solved" + f", {number['given']} given" * bool(number["given"])
    if after is None:
        return [f"{lead}: all is done"]
    facts = ", ".join(filter(None, [after.difficulty, duration(after.minutes) if after.minutes else ""]))
    what = f"next: {after.exercise} in {after.notebook}" + f" ({facts})" * bool(facts)
    return [f"{lead}; about {duration(minutes_left(found))} of exercises left", what]


def as_json(workspace: Path, found: list[Task]) -> dict[str, Any]:
    """Return what `l1 progress --json` prints; keys may be added later, none is renamed or removed.

    `{"workspace", "minutes_left", "next": exercise or null, "notebooks": [{"notebook", "solved", "given", "tried",
    "open", "minutes_left"}], "exercises": [{"notebook", "exercise", "state", "tries", "hints", "minutes",
    "difficulty"}]}`.

    Args:
        workspace: Whose progress it is.
        found: From `tasks`.
    """
    after = next_task(found)
    return {
        "workspace": str(workspace),
        "minutes_left": minutes_left(found),
        "next": after and asdict(after),
        "notebooks": [
            {"notebook": name, **counts(group), "minutes_left": minutes_left(group)}
            for name, group in by_notebook(found).items()
        ],
        "exercises": [asdict(task) for task in found],
    }


def of_workspace(folder: Path) -> list[Task]:
    """Return a workspace's exercises, in the order of the course.

    Args:
        folder: The workspace.
    """
    return tasks(progress_table(folder))
