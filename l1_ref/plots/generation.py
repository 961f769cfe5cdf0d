"""The figures of 08_generation: what is left of a distribution, loops, and what happens from step to step."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from torch import Tensor

from l1_ref.plots.style import BLUE, GREEN, GREY, ORANGE, STYLE, VERMILION, visible

_LOOKS = (
    {"color": VERMILION, "marker": "s", "linestyle": "--"},
    {"color": BLUE, "marker": "o", "linestyle": "-"},
    {"color": GREEN, "marker": "^", "linestyle": "-."},
    {"color": ORANGE, "marker": "D", "linestyle": (0, (4, 1, 1, 1, 1, 1))},
)
Panel = tuple[Sequence[str], Sequence[float] | Tensor, Sequence[float] | Tensor]


def reshaped(panels: Mapping[str, Panel], title: str = "") -> Figure:
    """Draw distributions side by side, each before a change as outlines, and after it as full bars.

    Args:
        panels: Under each title: labels, and the probabilities before and after. What had a chance and has none now is
            marked as removed.
        title: Stands above the figure.

    Raises:
        ValueError: There is no panel, or one has not one label for each of its probabilities.
    """
    lengths = [tuple(len(part) for part in panel) for panel in panels.values()]
    if not lengths or any(len(set(each)) > 1 for each in lengths):
        raise ValueError(f"there must be a panel, and one label a bar, got labels, before and after of {lengths}")
    with rc_context(STYLE):
        figure = Figure(figsize=(2.95 * len(panels), 0.25 * max(n for n, *_ in lengths) + 1.5), layout="constrained")
        for axes, (name, panel) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            _before_and_after(axes, *panel)
            axes.set(title=name, xlabel="probability", xlim=(0, 1.18), xticks=(0, 0.5, 1))
            axes.title.set_fontsize(10)
        if title:
            figure.suptitle(title, fontsize=11)
        # Made by hand, so that the legend stays the same when a slider moves and nothing is removed any more.
        handles = [
            Patch(facecolor="none", edgecolor="#222222", linewidth=0.9, label="before"),
            Patch(facecolor=BLUE, label="after"),
            Line2D([], [], marker="x", color=VERMILION, linestyle="none", label="removed"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _before_and_after(axes: Axes, labels: Sequence[str], before: Sequence, after: Sequence) -> None:
    before, after = ([float(number) for number in numbers] for numbers in (before, after))
    rows, removed = range(len(labels)), [old > 0 and new == 0 for old, new in zip(before, after, strict=True)]
    axes.barh(rows, after, color=BLUE, height=0.72)
    axes.barh(rows, before, color="none", edgecolor="#222222", linewidth=0.9, height=0.72)
    for row in rows:
        if removed[row]:
            axes.plot(0.02, row, "x", color=VERMILION, markersize=6)
        else:
            axes.text(max(before[row], after[row]) + 0.02, row, f"{after[row]:.2f}", va="center", fontsize=8)
    axes.set_yticks(rows, [visible(label) for label in labels])
    for tick, gone in zip(axes.get_yticklabels(), removed, strict=True):
        tick.set_color("#8a8a8a" if gone else "#222222")
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)


def repeats(panels: Mapping[str, Sequence[int]], length: int = 8) -> Figure:
    """Draw a dot for each pair of places where the same run of tokens stands: a loop becomes long diagonals.

    Args:
        panels: The ids of a text, each under its title; the texts are equally long.
        length: Tokens in a run.

    Raises:
        ValueError: There is no text, one has no run of this length, or they are not equally long.
    """
    sizes = {len(ids) for ids in panels.values()}
    if len(sizes) != 1 or min(sizes) < length:
        raise ValueError(f"texts must be equally long, and hold a run of {length} tokens, got lengths {sorted(sizes)}")
    (size,) = sizes
    with rc_context(STYLE):
        figure = Figure(figsize=(3.9 * len(panels), 4.1), layout="constrained")
        for axes, (name, ids) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            runs = torch.tensor(ids).unfold(0, length, 1)  # (runs, length)
            _, names = runs.unique(dim=0, return_inverse=True)  # equal runs have one name
            later, earlier = (names.unsqueeze(1) == names).tril(-1).nonzero().T
            axes.plot([0, size], [0, size], color=GREY, linewidth=0.8)
            axes.plot(earlier, later, ".", color=BLUE, markersize=3, markeredgewidth=0)
            axes.set(xlim=(0, size), ylim=(size, 0), aspect="equal", title=name)
            axes.set(xlabel="an earlier place", ylabel="a later place")
    return figure


def curves_over(
    x: Sequence[float],
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    xlabel: str,
    marks: Mapping[str, tuple[str, float]] | None = None,
) -> Figure:
    """Draw quantities over one axis, a panel each; a name has the same colour, line and marker in all of them.

    Args:
        x: Where the values belong, rising.
        panels: Under each quantity, its curves by name; none is below 0, and there are at most four names.
        xlabel: Names the axis.
        marks: Under a quantity, the label and the height of a dotted line to compare with.

    Raises:
        ValueError: There is nothing to draw, or a curve has not one value for each x.
    """
    lengths = sorted({len(values) for curves in panels.values() for values in curves.values()})
    if lengths != [len(x)] or not len(x):
        raise ValueError(f"there must be a curve, and {len(x)} values in each, got {lengths}")
    names = dict.fromkeys(name for curves in panels.values() for name in curves)
    looks = dict(zip(names, _LOOKS, strict=False))
    with rc_context(STYLE):
        figure = Figure(figsize=(4.3 * len(panels) + 0.4, 3.4), layout="constrained")
        row = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (quantity, curves) in zip(row, panels.items(), strict=True):
            for name, values in curves.items():
                axes.plot(x, values, markevery=max(1, len(x) // 8), markersize=5, label=name, **looks[name])
            for label, height in filter(None, [(marks or {}).get(quantity)]):
                axes.axhline(height, color="#222222", linestyle=":", linewidth=1.4, label=label)
            axes.set(xlabel=xlabel, title=quantity, ylim=(0, None))
            axes.legend(fontsize=8.5)
    return figure
