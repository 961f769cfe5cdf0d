"""What a check says: short, exact, without the answer; HTML in a notebook, plain text elsewhere."""

import html
import linecache
import math
import os
import sysconfig
import textwrap
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from l1_ref.checks.compare import Failure, difference, named_shape, short
from l1_ref.checks.observe import GRADIENT, OUTPUT, REPEATED, Inputs, Observation

STUB_MESSAGE = "not written yet"
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


@dataclass(frozen=True)
class Story:
    """What a check did, for the message to tell.

    Args:
        exercise: Whose check it is.
        inputs: Of each probe.
        expected: What was seen of the reference, a probe each.
        got: What was seen of the reader's code.
        printed: What the reader's code printed meanwhile.
    """

    exercise: Any
    inputs: list[Inputs]
    expected: list[Observation]
    got: list[Observation]
    printed: str = ""


class CheckFailed(AssertionError):
    """The reader's code is not right yet; the message says why.

    Example:
        >>> try:
        ...     checks.gelu(torch.relu)
        ... except checks.CheckFailed as error:
        ...     print(str(error).splitlines()[0])
        ✗ gelu · looks like: it is ReLU: what is negative becomes 0
    """

    shown = False

    def _render_traceback_(self) -> list[str]:
        """Give IPython the message in place of a traceback; where the notebook shows it already, a line is enough."""
        return ["not passed yet: see above"] if self.shown else [str(self)]


def failure(text: str, picture: str = "") -> CheckFailed:
    """Make the exception, and show the message as HTML where a notebook listens.

    Args:
        text: The message.
        picture: HTML to show below it.
    """
    error = CheckFailed(text)
    if _in_notebook():
        show(text, html=as_html(text, picture))
        error.shown = True
    return error


def show(text: str, **forms: str) -> None:
    """Show a text: in a form that the notebook renders, where one listens, and plain elsewhere.

    Args:
        text: The plain form.
        **forms: The others by their subtype: html or markdown.
    """
    if not _in_notebook():
        print(text)
        return
    from IPython.display import display

    display({"text/plain": text} | {f"text/{name}": form for name, form in forms.items()}, raw=True)


def _in_notebook() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return hasattr(get_ipython(), "kernel")


def as_html(text: str, picture: str = "") -> str:
    """Write a message, and HTML below it, as HTML that reads well on a light and on a dark page."""
    head, *rest = text.splitlines()
    # A line that is too long hangs behind its label.
    style = "white-space:pre-wrap;word-break:normal;overflow-wrap:anywhere;padding-left:12ch;text-indent:-12ch"
    lines = "".join(f"<div style='{style}'>{html.escape(line)}</div>" for line in rest)
    body = f"<div style='font-family:monospace;margin:.3em 0 0'>{lines}</div>" if rest else ""
    return (
        "<div style='border-left:4px solid #D55E00;padding:.2em .8em'>"
        f"<strong>{html.escape(head)}</strong>{body}{picture}</div>"
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
    return f"· {name} · {STUB_MESSAGE}\n  {hint_call(name)}"


def not_the_code(exercise: Any, candidate: Any) -> str:
    """Say that something else than code was handed in."""
    name = exercise.name
    got = "None" if candidate is None else f"a value of type {type(candidate).__name__}"
    how = f"hand in the {'class' if exercise.init else 'code'} itself, as in checks.{name}({name})"
    return f"✗ {name} · {how}, without calling it; got {got}"


def is_unwritten(value: Any) -> bool:
    """Say whether a failure is a blank's own: torch raises NotImplementedError too, for dtypes it cannot treat."""
    return isinstance(value, Failure) and _is_of_a_blank(value.error)


def _is_of_a_blank(error: BaseException) -> bool:
    if not isinstance(error, NotImplementedError):
        return False
    frame = traceback.extract_tb(error.__traceback__)[-1]
    raised = "raise NotImplementedError" in (frame.line or "") and is_the_readers(frame.filename)
    return str(error) in ("", STUB_MESSAGE) or raised


def briefly(error: Exception, *lines: str) -> Exception:
    """Return an exception that IPython shows by these lines, or by its message, in place of a traceback."""
    error._render_traceback_ = lambda: list(lines) or [f"{type(error).__name__}: {error.args[0]}"]
    return error


def tell_blanks_briefly() -> None:
    """Have IPython show two lines for a cell that uses a blank, which a traceback would bury."""
    try:
        from IPython import get_ipython
    except ImportError:
        return
    if (shell := get_ipython()) is not None:
        shell.set_custom_exc((NotImplementedError,), _show_error)


def _show_error(shell: Any, kind: type, error: BaseException, trace: Any, tb_offset: int | None = None) -> None:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if _is_of_a_blank(error) and frame.f_code.co_name != "<module>":
        used = textwrap.shorten(f"needed in {readers_line(error, 0)}", 72, placeholder=" …")
        briefly(error, f"· {frame.f_code.co_qualname} · {STUB_MESSAGE}", f"  {used}")
    shell.showtraceback((kind, error, trace), tb_offset=tb_offset)


def explained(story: Story, case: tuple[int, str], found: Any) -> str:
    """Name the mistakes that make the reference behave as the reader's code does.

    Args:
        story: What the check did.
        case: The probe and the thing seen that are shown.
        found: The diagnosis.
    """
    names = ", and ".join(mistake.name for mistake in found.mistakes)
    changes = "that one change" if len(found.mistakes) == 1 else "these two changes"
    if found.side_by_side:
        equals = "each of your answers equals the reference with one or both of these changes"
    else:
        where = "on ordinary inputs your answers equal" if found.ordinary_only else "your answers equal"
        stops = any(isinstance(value, Failure) for seen in story.got for value in seen.values())
        reach = ", wherever your code gives one" if stops else ""  # a second mistake may hide behind the error
        equals = f"{where} the reference with {changes}{_within(found.gap)}{reach}"
    lines = [f"✗ {story.exercise.name} · looks like: {names}", equals, *_case(story, *case)]
    lines += [f"why it matters: {mistake.why}" for mistake in found.mistakes]
    return _told(story, lines)


def _within(gap: float | None) -> str:
    if gap is None:
        return ""
    # A power of ten, never below float32's own noise, so that the message is the same on every machine.
    power = max(-6, math.ceil(math.log10(gap))) if gap > 0 else -6
    return f" (largest difference below 1e{power:d})"


def unexplained(story: Story, case: tuple[int, str] | None, broken: tuple[str, int] | None) -> str:
    """Show the smallest failing case, where no known mistake explains it.

    Args:
        story: What the check did.
        case: The first probe and thing seen that differ; None where only a rule is broken.
        broken: The first rule that breaks, and its probe.
    """
    exercise = story.exercise
    if case is None:
        rule, index = broken
        return _told(story, [f"✗ {exercise.name} · a rule is broken: {rule}", _input(story, index)])
    index, name = case
    value = story.got[index].get(name)
    if isinstance(value, Failure):
        return _told(story, _exception(story, index, name, value.error))
    if REPEATED in story.got[index]:
        why = "something in your code is random, or is kept from one call to the next"
        head = f"✗ {exercise.name} · {REPEATED} differ: {why}"
        return _told(story, [head, _input(story, index)])
    what = difference(story.expected[index].get(name), value, exercise.probes[index].axes).what
    lines = [f"✗ {exercise.name} · {_headline(name, value, what)}", *_case(story, *case)]
    # A rule about values means nothing where the type, shape or dtype is another.
    if broken is not None and what == "values":
        lines.append(f"broken rule: {broken[0]}")
    return _told(story, lines)


def _headline(name: str, value: Any, what: str) -> str:
    if name.startswith(GRADIENT) and value is None:
        return f"no gradient reaches {name.removeprefix(GRADIENT)}: {_CUTS}"
    return f"{name} is not right" if what == "values" else f"{name}: {what}"


def _case(story: Story, index: int, name: str) -> list[str]:
    probe, want, value = story.exercise.probes[index], story.expected[index].get(name), story.got[index].get(name)
    lines = [f"{_input(story, index)}   ({probe.name})"]
    if REPEATED in story.got[index]:
        return [*lines, "expected  the same answer to the same input     got  another one each time"]
    if isinstance(value, Failure):
        return [*lines, f"expected  {short(want)}     got  {type(value.error).__name__}: {value.error}"]
    dim = story.inputs[index].get("dim", -1)
    found = difference(want, value, probe.axes, dim if isinstance(dim, int) else -1)
    at = f" at {found.where}" if found.where else ""
    shape = f"     {named_shape(want, probe.axes)}{at}" if getattr(want, "ndim", 0) and found.what == "values" else ""
    label = "" if name == OUTPUT else f"     [{name}{', those that differ' * isinstance(want, dict)}]"
    return [*lines, f"expected  {found.expected}     got  {found.got}{shape}{label}"]


def _input(story: Story, index: int) -> str:
    """Write the call of one probe: f(x=…), or Module(config=…)(x=…)."""
    inputs, init = story.inputs[index], story.exercise.init
    texts = {key: f"{key}={short(value)}" for key, value in inputs.items()}
    built = f"({', '.join(texts[key] for key in init)})" if init else ""
    call = ", ".join(text for key, text in texts.items() if key not in init)
    return f"input     {story.exercise.name}{built}({call})"


def _exception(story: Story, index: int, name: str, error: Exception) -> list[str]:
    head = f"✗ {story.exercise.name} · "
    if name.startswith(GRADIENT) and "modified by an inplace operation" in str(error):
        # The error rises in torch's backward pass: no line of the reader's is on its way.
        return [f"{head}{_OVERWRITTEN}", _input(story, index)]
    doing = "" if name == OUTPUT else f" when asked for {name}"
    line = readers_line(error)
    return [
        f"{head}your code stopped with {type(error).__name__}{doing}",
        *([line] if line else []),
        f"{error}".strip(),
        _input(story, index),
    ]


def readers_line(error: BaseException, which: int = -1) -> str | None:
    """Return a line of the reader's own code that an exception came through, with its number.

    Args:
        error: The exception, with its traceback.
        which: -1 for the last of these lines, where it was raised; 0 for the first.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if is_the_readers(frame.filename)]
    if not own:
        return None
    text = own[which].line or linecache.getline(own[which].filename, own[which].lineno or 0).strip()
    return f"line {own[which].lineno}: {text}"


def is_the_readers(filename: str) -> bool:
    """Say whether a file is the reader's own code: none of Python's, of a package's or of the course's."""
    return not str(Path(filename).resolve()).startswith(_NOT_THE_READERS)


def _told(story: Story, lines: list[str], n_printed: int = 3) -> str:
    """Join the lines of a message, with the first that the reader's code printed, and the way to a hint."""
    printed = story.printed.splitlines()[:n_printed]
    lines = [*lines, *(f"printed   {text[:72]}" for text in printed), hint_call(story.exercise.name)]
    head, *rest = (part for line in lines for part in line.splitlines())
    return "\n".join([head, *(f"  {line}" for line in rest)])
