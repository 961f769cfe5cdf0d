"""The figures of the notebook on embeddings: a look-up, a map of tokens, what order changes, and positions as waves."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from l1_ref.plots.style import BLUE, COLOURS, GREY, STYLE, VERMILION

# Yellow is too pale for small marks on white.
_KIND_COLOURS, _MARKERS = (*COLOURS[:6], "#222222"), "osD^vPX"


def look_up(one_hot: Tensor, weight: Tensor, result: Tensor) -> Figure:
    """Draw a look-up as a product: a row of zeros with a single one, times the table, is a row of the table.

    Args:
        one_hot: Of shape (T, V), a single one in each row.
        weight: The table, (V, C).
        result: Their product, (T, C).

    Raises:
        ValueError: The shapes are not those of a product.
    """
    if one_hot.shape[1] != len(weight) or result.shape != (len(one_hot), weight.shape[1]):
        shapes = [tuple(each.shape) for each in (one_hot, weight, result)]
        raise ValueError(f"look_up needs (T, V), (V, C) and (T, C), got {shapes}")
    (T, V), C = one_hot.shape, weight.shape[1]
    matrices = {"one-hot (T, V)": (one_hot, 0), "table (V, C)": (weight, 1), "vectors (T, C)": (result, 1)}
    ids = one_hot.argmax(-1).tolist()
    colours = dict(zip(sorted(set(ids)), COLOURS * T, strict=False))
    with rc_context(STYLE):
        figure = Figure(figsize=(8.2, 0.44 * V + 0.5), layout="constrained")
        axes, left = figure.subplots(), 0.0
        for (title, (matrix, digits)), sign in zip(matrices.items(), ("×", "=", ""), strict=True):
            top = (V - len(matrix)) / 2
            _numbers(axes, matrix, left, top, digits)
            axes.text(left, top - 0.25, title, fontsize=11)
            axes.text(left - 0.15, top - 0.25, "id", color=GREY, ha="right", fontsize=9)
            rows = [*enumerate(ids)] if matrix is not weight else [(i, i) for i in colours]
            for y, i in rows:
                if matrix is not one_hot:
                    _frame(axes, left, top + y, C, colours[i])
                axes.text(left - 0.15, top + y + 0.5, f"{i}", color=GREY, ha="right", va="center", fontsize=9)
            left += matrix.shape[1] + 1.8
            axes.text(left - 1.05, V / 2, sign, fontsize=15, ha="center", va="center")
        axes.set(xlim=(-0.6, left - 1.6), ylim=(V + 0.1, -0.8), aspect="equal")
        axes.axis("off")
    return figure


def _numbers(axes: Axes, matrix: Tensor, left: float, top: float, digits: int) -> None:
    """Draw a matrix as cells of size 1 with their numbers: orange above zero, purple below."""
    height, width = matrix.shape
    extent = (left, left + width, top + height, top)
    axes.imshow(matrix.detach().numpy(), cmap="PuOr_r", vmin=-3, vmax=3, extent=extent)
    for y, values in enumerate(matrix.tolist()):
        for x, value in enumerate(values):
            place = (left + x + 0.5, top + y + 0.5)
            axes.text(*place, f"{value:.{digits}f}", ha="center", va="center", fontsize=8.5)


def _frame(axes: Axes, left: float, top: float, width: int, colour: str) -> None:
    # A little inside the row, so that the frames of two neighbours stand side by side.
    left, right, top, low = left + 0.04, left + width - 0.04, top + 0.05, top + 0.95
    axes.plot([left, right, right, left, left], [top, top, low, low, top], color=colour, linewidth=2.2)


def token_map(groups: Mapping[str, Mapping[str, Sequence[float] | Tensor]], title: str = "") -> Figure:
    """Draw tokens as points of a plane, each kind of word in its colour and shape.

    A token for whose name there is no room stays without one.

    Args:
        groups: For each kind of word, its tokens and their two coordinates.
        title: Stands above the figure.

    Raises:
        ValueError: There are more kinds than colours.
    """
    if len(groups) > len(_KIND_COLOURS):
        raise ValueError(f"token_map has {len(_KIND_COLOURS)} colours, got {len(groups)} kinds of words")
    with rc_context(STYLE):
        figure = Figure(figsize=(7.6, 5.0), layout="constrained")
        axes = figure.subplots()
        for (kind, points), colour, marker in zip(groups.items(), _KIND_COLOURS, _MARKERS, strict=False):
            xs, ys = zip(*[(float(x), float(y)) for x, y in points.values()], strict=True)
            axes.scatter(xs, ys, s=24, color=colour, marker=marker, label=kind, linewidth=0.8)
        _name_points(axes, [(token, float(x), float(y)) for g in groups.values() for token, (x, y) in g.items()])
        axes.margins(x=0.09)
        axes.set(title=title, xlabel="first direction", ylabel="second direction", xticks=[], yticks=[])
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title="kind of word")
    return figure


def _name_points(axes: Axes, points: list[tuple[str, float, float]]) -> None:
    """Write the names beside the points, right or left, where neither a point nor a name is in the way."""
    places = torch.tensor([place for _, *place in points])
    width, height = (places.amax(0) - places.amin(0)).clamp(min=1e-9).tolist()
    taken: list[tuple[float, float, float]] = []
    for token, x, y in points:
        length = (0.010 * len(token) + 0.012) * width
        for start, gap, side in ((x, 5, "left"), (x - length, -5, "right")):
            centre = start + length / 2
            others = [(u, v, 0.0) for _, u, v in points if (u, v) != (x, y)] + taken
            if all(abs(u - centre) > (length + n) / 2 or abs(v - y) > 0.026 * height for u, v, n in others):
                axes.annotate(
                    token, (x, y), (gap, -2), textcoords="offset points", fontsize=7, color="#444444", ha=side
                )
                taken.append((centre, y, length))
                break


def order_effect(pairs: Mapping[str, tuple[Tensor, Tensor]], orders: tuple[str, str]) -> Figure:
    """Draw each number of a vector in one order of the words against the same number in another order.

    Args:
        pairs: Under each title, the vector (C) in the first order and in the second.
        orders: Names of the two orders.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(3.6 * len(pairs), 3.5), layout="constrained")
        row = figure.subplots(1, len(pairs), sharex=True, sharey=True, squeeze=False)[0]
        largest = max(vector.abs().max().item() for pair in pairs.values() for vector in pair) * 1.08
        for axes, (title, (first, second)), colour in zip(row, pairs.items(), (VERMILION, BLUE) * 4, strict=False):
            axes.plot([-largest, largest], [-largest, largest], color=GREY, linewidth=0.8, linestyle=":")
            axes.scatter(first.tolist(), second.tolist(), s=12, color=colour)
            limits = (-largest, largest)
            axes.set(title=title, xlabel=orders[0], xlim=limits, ylim=limits, aspect="equal")
        row[0].set_ylabel(orders[1])
    return figure


def waves(table: Tensor, position: int) -> Figure:
    """Draw a table of positions as a picture, and the dot products of one of its rows with all of them.

    Args:
        table: One row a position, (T, C).
        position: The row.

    Raises:
        ValueError: There is no such row.
    """
    if not 0 <= position < len(table):
        raise ValueError(f"position must be in 0..{len(table) - 1}, got {position}")
    with rc_context(STYLE):
        figure = Figure(figsize=(8.4, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.25, 1])
        image = left.imshow(
            table.detach().numpy(), cmap="PuOr_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest"
        )
        left.axhline(position, color="black", linewidth=1.2)
        left.set(title="the table (T, C)", xlabel="column", ylabel="position")
        figure.colorbar(image, ax=left, ticks=(-1, 0, 1), pad=0.02)
        right.plot((table @ table[position]).tolist(), range(len(table)), color=BLUE)
        right.axhline(position, color="black", linewidth=1.2)
        right.set(title=f"row {position} · every row", xlabel="dot product", xlim=(0, table.shape[1] / 2 * 1.06))
        right.tick_params(labelleft=True)
    return figure


def tables_compared(tables: Mapping[str, Tensor], similarities: Mapping[str, Tensor]) -> Figure:
    """Draw tables of positions above the similarities of their rows.

    Args:
        tables: Under each title, a table (T, C).
        similarities: Under the same titles, the cosine of each row with each, (T, T).

    Raises:
        ValueError: The titles differ.
    """
    if list(tables) != list(similarities):
        raise ValueError(f"both must have the same titles, got {list(tables)} and {list(similarities)}")
    with rc_context(STYLE):
        figure = Figure(figsize=(3.6 * len(tables), 6.2), layout="constrained")
        grid = figure.subplots(2, len(tables), squeeze=False)
        for column, (title, table) in zip(grid.T, tables.items(), strict=True):
            scale = table.detach().abs().flatten().quantile(0.98).item()
            column[0].imshow(table.detach().numpy(), cmap="PuOr_r", vmin=-scale, vmax=scale, aspect="auto")
            column[0].set(title=title, xlabel="column")
            image = column[1].imshow(similarities[title].detach().numpy(), cmap="PuOr_r", vmin=-1, vmax=1)
            column[1].set(xlabel="position", title="cosine of each row with each")
        grid[0, 0].set_ylabel("position")
        grid[1, 0].set_ylabel("position")
        figure.colorbar(image, ax=grid[1, :].tolist(), ticks=(-1, 0, 1), shrink=0.8)
    return figure
