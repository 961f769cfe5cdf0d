"""Checks that name the mistake: `checks.softmax(my_softmax)`, `checks.hint("softmax")`, `checks.give("softmax")`."""

import shlex
import textwrap
from collections import Counter
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from l1_ref.checks import (
    attention,
    blocks,
    efficiency,
    embeddings,
    generation,
    integrity,
    marks,
    messages,
    model,
    showing,
    start_here,
    tokens,
    training,
)
from l1_ref.checks.engine import Exercise, Mistake, Probe, Property
from l1_ref.checks.messages import CheckFailed

__all__ = [
    "EXERCISES",
    "CheckFailed",
    "Exercise",
    "Mistake",
    "Probe",
    "Property",
    "add",
    "exercise",
    "give",
    "hint",
    "progress",
    "progress_table",
    "show",
]

_MODULES = (start_here, tokens, embeddings, attention, blocks, model, training, efficiency, generation)
EXERCISES: dict[str, Exercise] = {each.name: each for module in _MODULES for each in module.EXERCISES}
_hints_taken: Counter[str] = Counter()
_asked_to_show: set[str] = set()
messages.tell_blanks_briefly()


def add(new: Exercise) -> Exercise:
    """Make an exercise of your own known to `checks`, with its hints and its line in the progress.

    Args:
        new: The exercise.

    Returns:
        The same exercise.

    Raises:
        ValueError: Its name is taken by another exercise, or by a function of `checks`.

    Example:
        >>> probe = checks.Probe("one row", lambda generator: {"x": torch.randn(3, generator=generator)}, "C")
        >>> wrong = checks.Mistake("squared", "twice was asked for.", lambda x: x**2)
        >>> hints = "What is x + x?", "A number times x.", "Return 2 * x."
        >>> twice = checks.add(checks.Exercise("twice", "my_class", lambda x: 2 * x, (probe,), (wrong,), (), hints))
        >>> checks.twice.diagnose(lambda x: x * x).mistakes
        ('squared',)
    """
    known = EXERCISES.get(new.name)
    if new.name in globals() or (known is not None and known.notebook != new.notebook):
        raise ValueError(f"an exercise needs a name of its own, got {new.name!r}, which is taken")
    EXERCISES[new.name] = new
    return new


def exercise(name: str | Callable) -> Exercise:
    """Return an exercise by its name.

    Args:
        name: Such as "softmax", or the reader's own function of that name.

    Raises:
        KeyError: There is none of that name; the message offers the nearest.

    Example:
        >>> checks.exercise("softmax").notebook
        '00_start_here'
    """
    name = name.name if isinstance(name, Exercise) else getattr(name, "__name__", name)
    if isinstance(name, str) and name in EXERCISES:
        return EXERCISES[name]
    spelled = {known.lower(): known for known in EXERCISES}
    near = get_close_matches(str(name).lower(), spelled, n=1)
    problem = f"no exercise is called {name!r}" + (f"; did you mean {spelled[near[0]]!r}?" if near else "")
    raise messages.briefly(KeyError(problem))


def __getattr__(name: str) -> Exercise:
    if name.startswith("_") or name == "progress_table":
        raise AttributeError(name)
    try:
        return exercise(name)
    except KeyError as error:
        raise messages.briefly(AttributeError(error.args[0])) from None


def __dir__() -> list[str]:
    return sorted([*__all__, *EXERCISES])


def hint(name: str | Callable, n: int | None = None) -> None:
    """Print a hint: the next one on each call, and the last again after that.

    Args:
        name: The exercise, or the reader's function of its name.
        n: Which of the three, from 1; the next where None.

    Raises:
        ValueError: n is not 1, 2 or 3.

    Example:
        >>> checks.hint("softmax", 1)  # doctest: +ELLIPSIS
        hint 1 of 3 · softmax: ...
    """
    asked = exercise(name)
    name, hints = asked.name, asked.hints
    if n is not None and (type(n) is not int or n not in range(1, len(hints) + 1)):
        raise messages.briefly(ValueError(f"n must be in 1..{len(hints)}, got n={n}"))
    fresh = n is None and _hints_taken[name] < len(hints)
    _hints_taken[name] += fresh
    n = n or _hints_taken[name]
    text = f"hint {n} of {len(hints)} · {name}: {hints[n - 1]}"
    print(textwrap.fill(text, 88, subsequent_indent="  ", break_on_hyphens=False))
    if n == len(hints):
        print(f'that is the last; checks.show("{name}") shows our version, checks.give("{name}") hands it over')
    marks.record(name, hints=int(fresh))


def give(name: str | Callable) -> Callable:
    """Hand over the course's own version, so that the reader can go on; progress shows it as given.

    Args:
        name: The exercise, or the reader's function of its name.

    Example:
        >>> gelu = checks.give("gelu")
        >>> gelu(torch.zeros(1)).item()
        0.0
    """
    wanted = exercise(name)
    marks.record(wanted.name, "given")
    integrity.GIVEN.add(wanted.name)
    return wanted.reference


def show(name: str | Callable, sure: bool = False) -> None:
    """Show the course's own version: its source, the paper and equation it follows, and where it stands.

    That is the answer, so of an exercise that is not solved or given yet it is shown when asked for a second time.

    Args:
        name: The exercise, or the reader's function of its name.
        sure: Whether to show it at once.

    Example:
        >>> checks.show("gelu")
        this shows the answer to gelu, our version; the same call again shows it
    """
    wanted = exercise(name)
    done = {row.exercise for row in progress_table() if row.state in marks.DONE}
    if not sure and wanted.name not in done | _asked_to_show:
        _asked_to_show.add(wanted.name)
        print(f"this shows the answer to {wanted.name}, our version; the same call again shows it")
        return
    shown = showing.Shown(wanted)
    messages.show(shown.text, markdown=shown.markdown)


def progress_table(folder: Path | str | None = None) -> list[marks.Row]:
    """Return the reader's progress, one row an exercise, in the order of the course.

    Args:
        folder: The workspace; the one the reader is in where None.

    Example:
        >>> row = checks.progress_table()[0]
        >>> row.exercise, row.state
        ('softmax', 'open')
    """
    workspace = Path(folder) if folder is not None else marks.find_workspace()
    return marks.table(workspace, [(each.notebook, each.name) for each in EXERCISES.values()])


def progress(folder: Path | str | None = None) -> None:
    """Show the reader's progress: what is done, how long the rest takes, what is next; a picture in a notebook.

    Args:
        folder: The workspace; the one the reader is in where None.

    Example:
        >>> checks.progress("nowhere")
        nowhere is no workspace; l1 learn nowhere makes one
    """
    if folder is None and marks.find_workspace() is None:
        print("progress is kept in a workspace, and this folder is in none; l1 learn makes one")
        return
    if folder is not None and not marks.is_workspace(folder):
        print(f"{folder} is no workspace; l1 learn {shlex.quote(str(folder))} makes one")
        return
    from l1_ref.course import standing  # downstream of this module: imported when called

    tasks = standing.tasks(progress_table(folder))
    told = standing.by_notebook(tasks), standing.in_words(tasks)
    messages.show(showing.progress_lines(*told), html=showing.progress_picture(*told))
