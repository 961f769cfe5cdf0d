"""What all figures share: one style, colours that colour-blind readers tell apart, alt text, and sliders."""

import base64
import html
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

# Okabe and Ito 2008, "Color Universal Design".
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, YELLOW, GREY = "#56B4E9", "#CC79A7", "#F0E442", "#5F5F5F"
COLOURS = (BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, YELLOW)
# The white background is explicit, so that figures read the same on a dark page.
STYLE = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "text.color": "#222222",
    "axes.labelcolor": "#222222",
    "axes.edgecolor": "#888888",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 2,
    "font.family": ["DejaVu Sans"],
}


def loss_curve(
    curve: Sequence[Mapping[str, Any]], floor: float | None = None, title: str = "", late: int | None = None
) -> Figure:
    """Draw how the loss fell during training.

    Args:
        curve: Points of `metrics.json`: "step", and "training_loss" or "validation_loss" in nats per token, or both.
        floor: The entropy of the data in nats per token, where it is known: no model can get below it.
        title: Stands above the figure.
        late: A second panel begins at this step, where the first would show no more than a flat line.

    Raises:
        ValueError: There is no point to draw.
    """
    series = {"training_loss": ("training", SKY, 1.4), "validation_loss": ("validation", BLUE, 2.2)}
    points = {key: [(p["step"], p[key]) for p in curve if p.get(key) is not None] for key in series}
    if not any(points.values()):
        raise ValueError(f"curve must hold at least one training or validation loss, got {len(curve)} points")
    titles = {0: title} if late is None else {0: title, late: f"the same from step {late:,} on"}
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4 if late is None else 8.4, 3.4), layout="constrained")
        row = figure.subplots(1, len(titles), squeeze=False)[0]
        for axes, (begin, heading) in zip(row, titles.items(), strict=True):
            for key, (label, colour, width) in series.items():
                if shown := [point for point in points[key] if point[0] >= begin]:
                    axes.plot(*zip(*shown, strict=True), color=colour, linewidth=width, label=label, marker=".")
            if floor is not None:
                axes.axhline(floor, color=VERMILION, linestyle="--", label=f"entropy floor {floor:.3f}")
            axes.set(xlabel="optimiser steps", title=heading)
        row[0].set_ylabel("loss (nats per token)")
        row[0].legend()
    return figure


def probabilities(
    labels: Sequence[str], values: Mapping[str, Sequence[float] | Tensor] | Sequence[float] | Tensor, title: str = ""
) -> Figure:
    """Draw a distribution as bars, or several beside each other.

    Args:
        labels: One for each entry, such as tokens; spaces at the ends are made visible.
        values: The probabilities, or for several distributions, each under its title.
        title: Stands above the figure.

    Raises:
        ValueError: A distribution has another length than the labels.
    """
    panels = values if isinstance(values, Mapping) else {"": values}
    for values_of_one in panels.values():
        if len(values_of_one) != len(labels):
            raise ValueError(f"there must be one label a bar, got {len(labels)} labels, {len(values_of_one)} bars")
    with rc_context(STYLE):
        width = 5.4 if len(panels) == 1 else 2.1 * len(panels) + 0.9
        figure = Figure(figsize=(width, 0.28 * len(labels) + 1.1), layout="constrained")
        row = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        for axes, (name, numbers), colour in zip(row, panels.items(), COLOURS * len(panels), strict=False):
            _bars(axes, numbers, colour)
            axes.set(title=name, xlabel="probability", xlim=(0, 1.12), xticks=(0, 0.5, 1))
        row[0].set_yticks(range(len(labels)), [visible(label) for label in labels])
        row[0].invert_yaxis()
        if title:
            figure.suptitle(title, fontsize=11)
    return figure


def _bars(axes: Axes, numbers: Sequence[float] | Tensor, colour: str) -> None:
    numbers = numbers.detach().tolist() if isinstance(numbers, Tensor) else list(numbers)
    for y, number in enumerate(numbers):
        axes.text(min(number, 1.0) + 0.015, y, f"{number:.2f}", va="center", fontsize=8)
    axes.barh(range(len(numbers)), numbers, color=colour)


def visible(token: str) -> str:
    """Return a token with line ends, and spaces at its ends, made visible: " a" and "a" are two tokens."""
    token = token.replace("\n", "⏎").replace("\t", "⇥")
    inner = token.strip(" ")
    before = len(token) - len(token.lstrip(" "))
    return "␣" * before + inner + "␣" * (len(token) - before - len(inner))


def png(figure: Figure, dpi: int = 144) -> bytes:
    """Return a figure as a PNG file.

    Args:
        figure: What to draw.
        dpi: Dots per inch.
    """
    buffer = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


class Slot:
    """A place on the page: each figure shown in it takes the place of the one before, so that a picture can move."""

    def __init__(self) -> None:
        self.handle: Any = None


def explore(draw: Callable[..., tuple[Figure, str]], **choices: Sequence[Any]) -> None:
    """Show a figure with sliders that redraw it.

    What is on the page is an ordinary figure, of the first value of each choice: readers without a kernel, and CI, see
    that one. In a live notebook a slider stands below it for each choice.

    Args:
        draw: Takes one value of each choice by name, and returns the figure and its alt text.
        **choices: The values that each slider offers, at least one; the first is shown at the beginning.

    Raises:
        ValueError: There is no choice, or one offers no value.
    """
    from IPython.display import display
    from ipywidgets import Layout, SelectionSlider

    if not choices or not all(len(values) for values in choices.values()):
        raise ValueError(f"explore needs at least one choice, each with a value, got {choices}")
    slot = Slot()
    figure, alt = draw(**{name: values[0] for name, values in choices.items()})
    show(figure, alt, slot)
    sliders = {
        name: SelectionSlider(
            options=sorted(values) if _sortable(values) else values,
            value=values[0],
            description=name.replace("_", " "),
            continuous_update=False,
            style={"description_width": "initial"},
            layout=Layout(width="28em", max_width="100%"),  # in a narrow window too, its value is seen
        )
        for name, values in choices.items()
    }

    def redraw(_: Any) -> None:
        figure, alt = draw(**{name: slider.value for name, slider in sliders.items()})
        show(figure, alt, slot)

    for slider in sliders.values():
        slider.observe(redraw, names="value")
        display(slider)


def _sortable(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)


def show(figure: Figure, alt: str, slot: Slot | None = None) -> None:
    """Display a figure with a text that says what it shows, and close it.

    Args:
        figure: What to show.
        alt: What a reader who cannot see the figure needs to know.
        slot: Where to show it; below what the cell has shown so far where None.

    Raises:
        ValueError: The text is empty.
    """
    from IPython.display import display

    if not alt.strip():
        raise ValueError("alt must say what the figure shows, got an empty text")
    width = round(figure.get_figwidth() * 96)
    picture = base64.b64encode(png(figure)).decode()
    data = {
        "text/html": f'<img alt="{html.escape(alt)}" width="{width}" style="background:white;max-width:100%" '
        f'src="data:image/png;base64,{picture}">',
        "text/plain": f"[figure: {alt}]",
    }
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close(figure)
    if slot is None:
        display(data, raw=True)
    elif slot.handle is None:
        slot.handle = display(data, raw=True, display_id=True)
    else:
        slot.handle.update(data, raw=True)


def wrapped(pieces: Iterable[str], width: int = 72) -> Iterator[str]:
    """Yield a text word by word, in lines that fit: a notebook breaks a long line anywhere, within a word too.

    Args:
        pieces: The text: a string, or its parts as they come.
        width: Most characters in a line; a longer word has a line of its own.

    >>> print("".join(wrapped("She took a boat to see the sea. It was cold.", width=16)))
    She took a boat
    to see the sea.
    It was cold.
    """
    column, word = 0, ""
    for character in chain(chain.from_iterable(pieces), [""]):
        if word and (not character or character.isspace()):
            if word.startswith(" ") and column + len(word) > width:
                word = f"\n{word[1:]}"
            column = len(word) - 1 if word.startswith("\n") else column + len(word)
            yield word
            word = ""
        word += character
