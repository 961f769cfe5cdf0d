"""The figures of the notebook on blocks."""

from collections.abc import Mapping, Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor

from l1_ref.plots.style import BLUE, COLOURS, GREEN, GREY, ORANGE, STYLE, VERMILION, visible


def by_depth(
    curves: Mapping[str, Sequence[float]],
    ylabel: str,
    title: str = "",
    log: bool = False,
    limits: tuple[float, float] | None = None,
    guide: tuple[str, Sequence[float]] | None = None,
) -> Figure:
    """Draw how a quantity changes from layer to layer.

    Args:
        curves: What was measured, under its name; the first value belongs to the input, then one a layer.
        ylabel: The quantity, and its unit if it has one.
        title: Stands above the figure.
        log: Whether the vertical axis is logarithmic.
        limits: Lowest and highest value of the vertical axis; fitted to the data where None.
        guide: Name and values of a line to compare with, drawn dotted.

    Raises:
        ValueError: There is no curve to draw.
    """
    if not curves:
        raise ValueError(f"curves must hold at least one curve, got {curves}")
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.3), layout="constrained")
        axes = figure.subplots()
        for (name, values), colour, marker in zip(curves.items(), COLOURS * len(curves), "os^Dv" * 9, strict=False):
            axes.plot(range(len(values)), values, color=colour, marker=marker, markersize=4, label=name)
        if guide is not None:
            # On top, so that it stays visible where a curve runs along it.
            axes.plot(range(len(guide[1])), guide[1], color="#222222", linestyle=":", zorder=5, label=guide[0])
        axes.set(xlabel="layers passed", ylabel=ylabel, title=title, yscale="log" if log else "linear")
        if limits is not None:
            axes.set_ylim(*limits)
        axes.legend()
    return figure


def normalised_rows(before: Tensor, after: Tensor, labels: Sequence[str]) -> Figure:
    """Draw the entries of a few rows as dots, before and after layer normalisation.

    Args:
        before: One row a line, (rows, C).
        after: The same rows, normalised.
        labels: A name for each row.

    Raises:
        ValueError: The shapes differ, or there is not one label a row.
    """
    if before.shape != after.shape or before.ndim != 2 or len(labels) != len(before):
        shapes = f"{tuple(before.shape)} and {tuple(after.shape)}"
        raise ValueError(f"both must be (rows, C), with one label a row, got {shapes}, {len(labels)} labels")
    with rc_context(STYLE):
        figure = Figure(figsize=(7.6, 0.55 * len(labels) + 1.3), layout="constrained")
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for axes, rows, title in zip(panels, (before, after), ("before", "after layer normalisation"), strict=True):
            for y, row in enumerate(rows.detach()):
                mean, spread = row.mean().item(), row.std(correction=0).item()
                axes.plot(row.tolist(), [y] * len(row), "o", color=COLOURS[y % len(COLOURS)], alpha=0.45, markersize=5)
                axes.plot([mean - spread, mean + spread], [y - 0.27] * 2, color=GREY, linewidth=1.5)
                axes.plot([mean], [y - 0.27], "|", color="#222222", markersize=9, markeredgewidth=2)
            axes.axvline(0, color="#BBBBBB", linewidth=0.8, zorder=0)
            axes.set(title=title, xlabel="value of an entry")
        panels[0].set_yticks(range(len(labels)), labels)
        panels[0].set_ylim(len(labels) - 0.6, -0.6)
    return figure


def activations(x: Tensor, curves: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """Draw activation functions beside their slopes.

    Args:
        x: The inputs, in rising order.
        curves: For each function its values at x, and its slopes there.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(7.6, 3.1), layout="constrained")
        left, right = figure.subplots(1, 2)
        for (name, (values, slopes)), colour, dash in zip(
            curves.items(), COLOURS, ("-", "--", ":", "-."), strict=False
        ):
            left.plot(x.tolist(), values.tolist(), color=colour, linestyle=dash, label=name)
            right.plot(x.tolist(), slopes.tolist(), color=colour, linestyle=dash, label=name)
        for axes, title in ((left, "what comes out"), (right, "slope: what a gradient is multiplied by")):
            axes.axhline(0, color="#BBBBBB", linewidth=0.8, zorder=0)
            axes.set(xlabel="what goes in", title=title)
            axes.legend()
    return figure


def order_gradients(profiles: Mapping[str, Sequence[float]], last: Mapping[str, Mapping[int, float]]) -> Figure:
    """Draw gradient lengths of two orders of normalisation: block by block, and in the last block against the depth.

    A dotted line on the right falls as one over the square root of the depth, from the first order's first point.

    Args:
        profiles: For each order, the gradient's length in every block of the deepest stack, from the bottom.
        last: For each order, the gradient's length in the last block, by the number of blocks in the stack.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(7.6, 3.3), layout="constrained")
        left, right = figure.subplots(1, 2)
        for (name, values), colour, marker in zip(profiles.items(), (BLUE, VERMILION), "os", strict=True):
            left.plot(range(1, len(values) + 1), values, color=colour, marker=marker, markersize=4, label=name)
            depths = sorted(last[name])
            right.plot(depths, [last[name][d] for d in depths], color=colour, marker=marker, markersize=5, label=name)
        start = next(iter(last.values()))[depths[0]]
        guide = [start * (depth / depths[0]) ** -0.5 for depth in depths]
        right.plot(depths, guide, color=GREY, linestyle=":", label="one over the root of the depth")
        left.set(xlabel="block, from the bottom", ylabel="length of the gradient", title=f"in a stack of {len(values)}")
        left.set_ylim(bottom=0)
        right.set(xlabel="blocks in the stack", title="in the last block", xscale="log", yscale="log")
        right.set_xticks(depths, [str(depth) for depth in depths])
        right.xaxis.set_minor_locator(NullLocator())
        ticks = (0.05, 0.1, 0.2, 0.4)
        right.set_yticks(ticks, [str(tick) for tick in ticks])
        right.yaxis.set_minor_locator(NullLocator())
        left.legend()
        right.legend(handles=right.lines[-1:], loc="lower left")
    return figure


def residual_stream(
    steps: Sequence[str], norms: Sequence[float], added: Sequence[float], cosines: Sequence[float]
) -> Figure:
    """Draw how the residual stream grows, and what each branch adds to it.

    Args:
        steps: Names of the places, the embedding first, then one a branch.
        norms: Length of the stream's vectors after each of them.
        added: Length of what each branch adds; one fewer than there are steps.
        cosines: Cosine between what a branch adds and the stream it is added to; as many as `added`.

    Raises:
        ValueError: The numbers do not fit together.
    """
    if not len(steps) == len(norms) == len(added) + 1 == len(cosines) + 1:
        counts = f"{len(steps)} steps, {len(norms)} norms, {len(added)} added, {len(cosines)} cosines"
        raise ValueError(f"there must be one norm a step, one addition and cosine a branch, got {counts}")
    places, branches = range(len(steps)), range(1, len(steps))
    with rc_context(STYLE):
        figure = Figure(figsize=(7.6, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.5, 1))
        _labelled_bars(left, [p - 0.19 for p in places], norms, BLUE, "the stream, afterwards")
        _labelled_bars(left, [p + 0.19 for p in branches], added, ORANGE, "what was added")
        left.set(xlabel="length of the vectors", title="the stream and its branches", xlim=(0, 1.2 * max(norms)))
        left.set_yticks(places, steps)
        left.invert_yaxis()
        left.legend(loc="upper right")
        _labelled_bars(right, branches, cosines, GREEN, "cosine", height=0.45)
        right.axvline(0, color="#888888", linewidth=0.8)
        right.set(xlabel="cosine", title="added, against the stream before", xlim=(min(0, *cosines) * 1.3, 1.0))
    return figure


def _labelled_bars(
    axes: Axes, places: Sequence[float], values: Sequence[float], colour: str, label: str, height: float = 0.36
) -> None:
    bars = axes.barh(list(places), values, height=height, color=colour, label=label)
    axes.bar_label(bars, [f"{value:.2f}" if value < 1 else f"{value:.1f}" for value in values], padding=3, fontsize=8)


def logit_lens(
    read: Sequence[str],
    steps: Sequence[str],
    guesses: Sequence[Sequence[str]],
    chances: Tensor,
    following: Sequence[str],
) -> Figure:
    """Draw the head's likeliest next token at every stage of the stream, one column a position.

    Args:
        read: The token at each position.
        steps: Names of the stages, the first at the top.
        guesses: The likeliest next token, a row for each stage.
        chances: Its probability, (stages, positions).
        following: The token that really comes next at each position.

    Raises:
        ValueError: The table does not have one row a stage and one column a position.
    """
    if tuple(chances.shape) != (len(steps), len(read)) or len(guesses) != len(steps) or len(following) != len(read):
        raise ValueError(
            f"the table must be (stages, positions) = ({len(steps)}, {len(read)}), got chances {tuple(chances.shape)}, "
            f"{len(guesses)} rows of guesses, {len(following)} following tokens"
        )
    with rc_context(STYLE):
        figure = Figure(figsize=(1.05 * len(read) + 2.2, 0.42 * len(steps) + 1.4), layout="constrained")
        axes = figure.subplots()
        picture = axes.imshow(chances.tolist(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for row, column in [(r, c) for r in range(len(steps)) for c in range(len(read))]:
            right = guesses[row][column] == following[column]
            colour = "white" if chances[row, column] > 0.55 else "#222222"
            text = visible(guesses[row][column])
            axes.text(column, row, text, ha="center", va="center", color=colour, weight="bold" if right else "normal")
        axes.set_yticks(range(len(steps)), steps)
        axes.set_xticks(range(len(read)), [visible(token) for token in following])
        axes.set_xlabel("what really comes next (bold: guessed right)")
        top = axes.secondary_xaxis("top")
        top.set_xticks(range(len(read)), [visible(token) for token in read])
        top.set_xlabel("the token read at this position")
        for each in (axes, top):
            each.tick_params(length=0)
            each.spines[:].set_visible(False)
        figure.colorbar(picture, ax=axes, label="probability", fraction=0.04)
    return figure
