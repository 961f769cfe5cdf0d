"""What a check says: short, exact, without the answer; HTML in a notebook, plain text elsewhere."""

import html
import linecache
import math
import os
import sysconfig
import traceback
from pathlib import Path
from typing import Any

import torch

from l1_ref.checks.compare import Failure, difference, named_shape, short

STUB_MESSAGE = "not written yet"
GRADIENT = "the gradient of "
_CUTS = "math functions, .item(), numpy, detach or torch.tensor(...) cut it"
_OVERWRITTEN = (
    "an in-place operation (-=, /=, *=) overwrote a value that the gradient needs: write x = x - m, not x -= m"
)
_NOT_THE_READERS = tuple(
    str(Path(path).resolve()) + os.sep
    for path in (
        sysconfig.get_paths()["stdlib"],
        sysconfig.get_paths()["purelib"],
        Path(torch.__file__).parent,
        Path(__file__).parents[1],
    )
)


class CheckFailed(AssertionError):
    """The reader's code is not right yet; the message says why."""

    shown = False

    def _render_traceback_(self) -> list[str]:
        """Give IPython the message in place of a traceback: its headline where the notebook already shows the rest."""
        text = str(self)
        return [text.splitlines()[0]] if self.shown else [text]


def failure(name: str, text: str) -> CheckFailed:
    """Make the exception, and show the message as HTML where a notebook listens.

    Args:
        name: The exercise.
        text: The message.
    """
    error = CheckFailed(text)
    if _in_notebook():
        from IPython.display import display

        display({"text/html": as_html(text), "text/plain": text}, raw=True)
        error.shown = True
    return error


def _in_notebook() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return hasattr(get_ipython(), "kernel")


def as_html(text: str) -> str:
    """Write a message as HTML that reads well on a light and on a dark page."""
    head, *rest = text.splitlines()
    body = f"<pre style='margin:.3em 0 0;color:inherit;background:none'>{html.escape(chr(10).join(rest))}</pre>"
    return (
        "<div style='border-left:4px solid #D55E00;padding:.2em .8em'>"
        f"<strong>{html.escape(head)}</strong>{body if rest else ''}</div>"
    )


def hint_call(name: str) -> str:
    """Return the line that asks for the next hint."""
    return f'hint: checks.hint("{name}")'


def given(name: str) -> str:
    """Say that the reference itself was handed in."""
    return f"✓ {name} · given: this is the course's own version"


def solved(exercise: Any) -> str:
    """Say that the answer is right, and what was looked at."""
    n, edges = len(exercise.probes), sum(probe.edge for probe in exercise.probes)
    what = "values, gradients, shapes and dtypes" if any(p.gradient for p in exercise.probes) else "values and types"
    return f"✓ {exercise.name} · right on {n} inputs, {edges} of them extreme: {what}"


def unwritten(name: str) -> str:
    """Say that the blank is still blank."""
    return f"· {name} · {STUB_MESSAGE}   {hint_call(name)}"


def not_callable(name: str, candidate: Any) -> str:
    """Say that something else than code was handed in."""
    got = "None" if candidate is None else f"a value of type {type(candidate).__name__}"
    return f"✗ {name} · hand in the code itself, as in checks.{name}({name}), without calling it; got {got}"


def is_unwritten(value: Any) -> bool:
    """Say whether a failure is a blank's own: torch raises NotImplementedError too, for dtypes it cannot treat."""
    if not isinstance(value, Failure) or not isinstance(value.error, NotImplementedError):
        return False
    frame = traceback.extract_tb(value.error.__traceback__)[-1]
    return str(value.error) in ("", STUB_MESSAGE) or "raise NotImplementedError" in (frame.line or "")


def explained(exercise, inputs, expected, got, case, mistakes, gap, ordinary_only) -> str:
    """Name the mistakes that make the reference behave as the reader's code does."""
    index, name = case
    head = f"✗ {exercise.name} · looks like: {', and '.join(mistake.name for mistake in mistakes)}"
    if gap is None:
        equals = "each of your answers equals the reference with one or both of these changes"
    elif ordinary_only:
        equals = f"on ordinary inputs your answers equal the reference with that one change ({_within(gap)})"
    else:
        equals = f"your answers equal the reference with that one change ({_within(gap)})"
    lines = [head, equals, *_case(exercise, inputs, expected, got, index, name)]
    lines += [f"why it matters: {mistake.why}" for mistake in mistakes]
    return _indented([*lines, hint_call(exercise.name)])


def _within(gap: float) -> str:
    # A power of ten, never below float32's own noise, so that the message is the same on every machine.
    power = max(-6, math.ceil(math.log10(gap))) if gap > 0 else -6
    return f"largest difference below 1e{power:d}"


def unexplained(exercise, inputs, expected, got, case, broken) -> str:
    """Show the smallest failing case, where no known mistake explains it."""
    if case is None:
        rule, index = broken
        head = f"✗ {exercise.name} · a rule is broken: {rule}"
        return _indented([head, f"input     {_call(exercise.name, inputs[index])}", hint_call(exercise.name)])
    index, name = case
    value = got[index].get(name)
    if isinstance(value, Failure):
        return _indented([*_exception(exercise, inputs[index], name, value.error), hint_call(exercise.name)])
    what = difference(expected[index].get(name), value, exercise.probes[index].axes).what
    lines = [f"✗ {exercise.name} · {_headline(name, value, what)}"]
    lines += _case(exercise, inputs, expected, got, index, name)
    # A rule about values means nothing where the type, shape or dtype is another.
    if broken is not None and what == "values":
        lines.append(f"broken rule: {broken[0]}")
    return _indented([*lines, hint_call(exercise.name)])


def _headline(name: str, value: Any, what: str) -> str:
    if name.startswith(GRADIENT) and value is None:
        return f"no gradient reaches {name.removeprefix(GRADIENT)}: {_CUTS}"
    return f"{name} is not right" if what == "values" else f"{name}: {what}"


def noisy(exercise, inputs: dict[str, Any]) -> str:
    """Say that the answer is left to chance."""
    head = f"✗ {exercise.name} · two calls on the same input differ: something in your code is random"
    return _indented([head, f"input     {_call(exercise.name, inputs)}", hint_call(exercise.name)])


def _case(exercise, inputs, expected, got, index: int, name: str) -> list[str]:
    probe, want, value = exercise.probes[index], expected[index].get(name), got[index].get(name)
    lines = [f"input     {_call(exercise.name, inputs[index])}   ({probe.name})"]
    if isinstance(value, Failure):
        return [*lines, f"expected  {short(want)}     got  {type(value.error).__name__}: {value.error}"]
    dim = inputs[index].get("dim", -1)
    found = difference(want, value, probe.axes, dim if isinstance(dim, int) else -1)
    at = f" at {found.where}" if found.where else ""
    shape = f"     {named_shape(want, probe.axes)}{at}" if hasattr(want, "shape") and found.what == "values" else ""
    label = "" if name == "output" else f"     [{name}]"
    return [*lines, f"expected  {found.expected}     got  {found.got}{shape}{label}"]


def _call(name: str, inputs: dict[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={short(value)}' for key, value in inputs.items())})"


def _exception(exercise, inputs, name: str, error: Exception) -> list[str]:
    if name.startswith(GRADIENT) and "modified by an inplace operation" in str(error):
        # The error rises in torch's backward pass: no line of the reader's is on its way.
        return [f"✗ {exercise.name} · {_OVERWRITTEN}", f"input     {_call(exercise.name, inputs)}"]
    doing = "" if name == "output" else f" when asked for {name}"
    lines = [f"✗ {exercise.name} · your code stopped with {type(error).__name__}{doing}"]
    line = readers_line(error)
    return [*lines, *([line] if line else []), f"{error}".strip(), f"input     {_call(exercise.name, inputs)}"]


def readers_line(error: BaseException) -> str | None:
    """Return the line of the reader's own code that an exception came from, with its number.

    Args:
        error: The exception, with its traceback.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not str(Path(frame.filename).resolve()).startswith(_NOT_THE_READERS)]
    if not own:
        return None
    text = own[-1].line or linecache.getline(own[-1].filename, own[-1].lineno or 0).strip()
    return f"line {own[-1].lineno}: {text}"


def _indented(lines: list[str]) -> str:
    head, *rest = (part for line in lines for part in line.splitlines())
    return "\n".join([head, *(f"  {line}" for line in rest)])
