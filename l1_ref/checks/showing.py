"""What a reader asks to be shown: the progress as a small picture, and the reference with its paper."""

import html
import inspect
import re
from functools import partial
from typing import Any

SIGNS = {"solved": "✓", "given": "→", "tried": "✗", "open": "·"}
# A filled square is solved, a framed one is not: the sign and the frame tell what the colour tells, and the frames'
# colours stand out on a light and on a dark page.
_SQUARES = {
    "solved": "fill='#0072B2' stroke='#0072B2'",
    "given": "fill='none' stroke='#4292C6' stroke-width='2' stroke-dasharray='4 2'",
    "tried": "fill='none' stroke='#D55E00' stroke-width='2'",
    "open": "fill='none' stroke='#888' stroke-width='1'",
}
_SIDE, _STEP, _LABEL = 18, 24, 150


def progress_lines(notebooks: dict[str, list[Any]], closing: list[str]) -> str:
    """Write the progress as text: a row a notebook, a sign an exercise.

    Args:
        notebooks: The exercises of each, from `l1_ref.course.standing`.
        closing: Sentences to end with.
    """
    name, most = max(map(len, notebooks)), max(map(len, notebooks.values()))
    rows = [
        f"{_mark(label, notebooks)} {label:<{name}}  {''.join(SIGNS[task.state] for task in tasks):<{most}}  "
        f"{_solved(tasks)}"
        for label, tasks in notebooks.items()
    ]
    legend = "  ".join(f"{sign} {state}" for state, sign in SIGNS.items())
    return "\n".join([*rows, legend, *closing])


def progress_picture(notebooks: dict[str, list[Any]], closing: list[str]) -> str:
    """Draw the progress as HTML: a row a notebook, a square an exercise, which tells its name when it is pointed at.

    Args:
        notebooks: The exercises of each, from `l1_ref.course.standing`.
        closing: Sentences to end with.
    """
    parts, right = [], _LABEL + _STEP * max(map(len, notebooks.values()))
    for row, (label, tasks) in enumerate(notebooks.items()):
        y = _STEP * row
        weight = " font-weight='bold'" if _mark(label, notebooks).strip() else ""
        text = html.escape(f"{_mark(label, notebooks)} {label}")
        parts.append(f"<text x='0' y='{y + 14}' font-size='13' fill='currentColor'{weight}>{text}</text>")
        parts += [_square(_LABEL + _STEP * column, y, task) for column, task in enumerate(tasks)]
        parts.append(f"<text x='{right + 6}' y='{y + 14}' font-size='12' fill='currentColor'>{_solved(tasks)}</text>")
    width, height = right + 110, _STEP * len(notebooks)
    spoken = html.escape("Progress. " + "; ".join(f"{k}: {_solved(v)}" for k, v in notebooks.items()), quote=True)
    size = f"viewBox='-1 -1 {width} {height}' width='{width}' style='max-width:100%;height:auto;display:block'"
    legend = "".join(_key(state) for state in SIGNS)
    sentences = "".join(f"<div>{html.escape(line)}</div>" for line in closing)
    return (
        f"<div><svg role='img' aria-label='{spoken}' {size}>{''.join(parts)}</svg>"
        f"<div style='margin:.3em 0'>{legend}</div>{sentences}</div>"
    )


def _mark(label: str, notebooks: dict[str, list[Any]]) -> str:
    """Return what stands before the notebook the reader is in: the first with an exercise that is not done."""
    first = next((name for name, tasks in notebooks.items() if not all(task.done for task in tasks)), None)
    return "▸" if label == first else " "


def _solved(tasks: list[Any]) -> str:
    return f"{sum(task.state == 'solved' for task in tasks)} of {len(tasks)} solved"


def _square(x: int, y: int, task: Any) -> str:
    counts = [f"{n} {what if n > 1 else one}" for n, what, one in
              ((task.tries, "tries", "try"), (task.hints, "hints", "hint")) if n]  # fmt: skip
    title = html.escape(", ".join([f"{task.exercise}: {task.state}", *counts]))
    return f"<g><title>{title}</title>{_shape(x, y, task.state)}</g>"


def _shape(x: int, y: int, state: str) -> str:
    place = f"x='{x + 1}' y='{y + 1}' width='{_SIDE - 2}' height='{_SIDE - 2}' rx='2'"
    colour = "#fff" if state == "solved" else "currentColor"
    text = f"x='{x + _SIDE / 2}' y='{y + 13.5}' font-size='12' text-anchor='middle' fill='{colour}'"
    # A fill, though it is clear, makes the whole square answer to the pointer.
    return f"<rect {place} {_SQUARES[state]} pointer-events='all'/><text {text}>{SIGNS[state]}</text>"


def _key(state: str) -> str:
    square = f"<svg aria-hidden='true' width='{_SIDE}' height='{_SIDE}' style='vertical-align:middle'>"
    return f"<span style='margin-right:1.2em'>{square}{_shape(0, 0, state)}</svg> {state}</span>"


class Shown:
    """A reference's source, and what stands around it.

    Args:
        exercise: Whose reference it is.
    """

    def __init__(self, exercise: Any) -> None:
        code = exercise.reference
        while isinstance(code, partial):
            code = code.func
        code = inspect.unwrap(code)
        self.name, self.module = exercise.name, code.__module__
        # The first line of the docstring's paragraph that names the paper, and those that go on with it.
        found = re.search(r"^Source: (?:.+\n?)+", inspect.getdoc(code) or "", re.MULTILINE)
        self.paper = " ".join(found[0].split()) if found else ""
        try:
            lines, self.line = inspect.getsourcelines(code)
            self.file = inspect.getsourcefile(code) or ""
        except (OSError, TypeError):  # written where no file is: at a prompt, or by exec
            lines, self.line, self.file = [], 0, ""
        self.source = "".join(lines).rstrip()

    @property
    def head(self) -> list[str]:
        """What stands above the source: the paper first, then the place."""
        place = f"{self.module}, line {self.line} ({self.file}:{self.line})" if self.line else f"{self.module}"
        missing = [] if self.source else ["its source is in no file"]
        return [f"{self.name} · the course's own version", *filter(None, [self.paper]), f"In {place}", *missing]

    @property
    def text(self) -> str:
        """All of it as plain text."""
        return "\n".join([*self.head, "", self.source]).rstrip()

    @property
    def markdown(self) -> str:
        """All of it as Markdown, whose code a notebook colours to its own theme."""
        head = "  \n".join(re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", line) for line in self.head)
        fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", self.source)), 3)
        return f"{head}\n\n{fence}python\n{self.source}\n{fence}" if self.source else head
