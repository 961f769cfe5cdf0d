"""Run a notebook's own cells without a kernel, so that a test can hold its prose against what the cells made."""

import contextlib
import functools
import io
from typing import Any

import pytest

from l1_ref import plots
from l1_ref.course import sources


class Ran:
    """What the cells of a complete edition defined, printed and showed.

    Args:
        name: Such as "03_attention".
        every: Whether each value of a slider is drawn (of a long one the first, the second and the last) or one alone.
    """

    def __init__(self, name: str, every: bool = True) -> None:
        self.space: dict[str, Any] = {"__name__": "notebook"}
        self.alts: list[str] = []
        self.sliders: list[tuple] = []
        self.every = every
        printed = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
            patch.setattr(plots, "show", self._show)
            patch.setattr(plots, "explore", self._explore)
            for cell in sources.load(name).cells:
                if cell.cell_type == "code" and "checks." not in cell.source:
                    exec(compile(cell.source, f"{name}:{cell['id']}", "exec"), self.space)
        self.printed = printed.getvalue()

    def __getitem__(self, name: str) -> Any:
        return self.space[name]

    def alt(self, words: str) -> str:
        """Return the first alt text that holds these words."""
        return next(alt for alt in self.alts if words in alt)

    def _show(self, figure, alt, slot=None) -> None:
        assert alt.strip() and figure.axes
        self.alts.append(alt)

    def _explore(self, draw, **choices) -> None:
        self.sliders.append((draw, choices))
        first = {name: values[0] for name, values in choices.items()}
        ((name, values), *_) = choices.items()
        for value in (values if len(values) < 10 else (*values[:2], values[-1])) if self.every else values[:1]:
            self._show(*draw(**first | {name: value}))


@functools.cache
def run(name: str, every: bool = True) -> Ran:
    """Run a notebook's cells, once in this process: pytest's workers take tests from each other, and come back."""
    return Ran(name, every)
