"""The figures of the notebook on attention: arrows, masks, heat maps, saturation, and what each head looks at."""

import math
from collections.abc import Mapping, Sequence

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from l1_ref.plots.style import BLUE, GREY, ORANGE, PURPLE, SKY, STYLE, VERMILION, YELLOW, visible

_INK, _CLOSED = "#222222", "#DDDDDD"
# One tint a head, light enough for dark numbers on it.
_TINTS = (SKY, ORANGE, "#B7DCC9", PURPLE, YELLOW)
_RISING = LinearSegmentedColormap.from_list("white to blue", ["#FFFFFF", SKY, BLUE])
_SIGNED = LinearSegmentedColormap.from_list("orange to blue", [ORANGE, "#FFFFFF", BLUE])
_CHARACTER_INCHES = 0.602 * 9.5 / 72  # a character of the monospaced font at 9.5 points


def dot_products(query: Tensor, keys: Tensor, labels: Sequence[str], weights: Tensor) -> Figure:
    """Draw a query and some keys as arrows in the plane, and beside them how much weight each key gets.

    Args:
        query: Its two components.
        keys: One row of two components for each label.
        labels: The tokens that the keys belong to.
        weights: What softmax makes of the dot products; drawn as bars.

    Raises:
        ValueError: The vectors are not two wide, or there is not one key and one weight a label.
    """
    if query.shape != (2,) or keys.shape != (len(labels), 2) or weights.shape != (len(labels),):
        raise ValueError(
            f"query must be (2,), keys (n, 2) and weights (n,) for n labels, "
            f"got {tuple(query.shape)}, {tuple(keys.shape)} and {tuple(weights.shape)} for {len(labels)} labels"
        )
    with rc_context(STYLE):
        figure = Figure(figsize=(7.6, 3.4), layout="constrained")
        plane, bars = figure.subplots(1, 2, width_ratios=(1, 1.15))
        reach = 1.35 * max(keys.norm(dim=-1).max().item(), query.norm().item())
        plane.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=(), yticks=())
        plane.spines[:].set_visible(False)
        plane.axhline(0, color=_CLOSED, linewidth=1, zorder=0)
        plane.axvline(0, color=_CLOSED, linewidth=1, zorder=0)
        places = [_key_place(key, query.tolist()) for key in keys.tolist()]
        for key, place, label in zip(keys.tolist(), places, labels, strict=True):
            _arrow(plane, key, place, BLUE, label)
        beside = _sides(query.tolist(), "query")
        place = max(beside, key=lambda place: min(math.dist(place, other) for other in places))
        _arrow(plane, query.tolist(), place, VERMILION, "query")
        plane.set_title("one query, and the keys")
        scores = keys @ query
        bars.barh(range(len(labels)), weights.tolist(), color=BLUE)
        for y, (score, weight) in enumerate(zip(scores.tolist(), weights.tolist(), strict=True)):
            bars.text(weight + 0.02, y, f"{weight:.2f}   (q·k = {_signed(score)})", va="center", fontsize=9)
        bars.set_yticks(range(len(labels)), labels)
        bars.set(xlim=(0, 1.5), xticks=(0, 0.5, 1), title="what the query takes from each")
        bars.set_xlabel("weight", x=1 / 3)
        bars.spines["bottom"].set_bounds(0, 1)  # no weight lies beyond; the scores are written there
        bars.invert_yaxis()
    return figure


def _signed(score: float) -> str:
    return f"{score + 0.0 if abs(score) >= 0.05 else 0.0:.1f}"


def _sides(end: Sequence[float], label: str) -> list[tuple[float, float]]:
    """Return the places of a label on either side of an arrow's shaft, close to it without touching it."""
    x, y = end
    length = max(math.hypot(x, y), 1e-9)
    across = (-y / length, x / length)
    gap = 0.12 + 0.085 * len(label) * abs(across[0]) + 0.16 * abs(across[1])  # half of the label's width, or height
    return [(0.7 * x + side * gap * across[0], 0.7 * y + side * gap * across[1]) for side in (1, -1)]


def _key_place(end: Sequence[float], query: Sequence[float]) -> tuple[float, float]:
    """Return the place of a key's label: beyond its tip or beside its dot, out of the way of the query's arrow."""
    x, y = end
    length = math.hypot(x, y)
    is_dot = length <= 0.05
    first = (0.2, -0.28) if is_dot else ((1 + 0.32 / length) * x, (1 + 0.32 / length) * y)
    others = [(-0.25, 0.28), (-0.25, -0.28)] if is_dot else _sides(end, "key")
    return next((place for place in (first, *others) if _distance(place, query) > 0.25), first)


def _distance(place: tuple[float, float], end: Sequence[float]) -> float:
    """Return how far a place is from an arrow that starts at the origin."""
    along = (place[0] * end[0] + place[1] * end[1]) / max(end[0] ** 2 + end[1] ** 2, 1e-9)
    along = min(max(along, 0.0), 1.0)
    return math.dist(place, (along * end[0], along * end[1]))


def _arrow(axes: Axes, end: Sequence[float], place: tuple[float, float], colour: str, label: str) -> None:
    if math.hypot(*end) > 0.05:
        axes.annotate("", end, (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 2.2})
    else:
        axes.plot(0, 0, "o", color=colour, markersize=6)
    axes.text(*place, label, color=colour, ha="center", va="center", fontsize=10)


def masks(panels: Mapping[str, Tensor]) -> Figure:
    """Draw which keys each query may attend to, one panel a mask.

    Args:
        panels: Boolean masks (T, S), each under its title; the queries are the last T of the S positions.

    Raises:
        ValueError: A mask is not boolean, or not a matrix.
    """
    for name, mask in panels.items():
        if mask.dtype != torch.bool or mask.ndim != 2:
            raise ValueError(f"a mask must be a boolean matrix, got {mask.dtype} {tuple(mask.shape)} for {name!r}")
    with rc_context(STYLE):
        widths = [mask.shape[1] for mask in panels.values()]
        tallest = max(mask.shape[0] for mask in panels.values())
        figure = Figure(figsize=(0.42 * sum(widths) + 1.1 * len(widths), 0.42 * tallest + 1.0), layout="constrained")
        row = figure.subplots(1, len(panels), width_ratios=widths, squeeze=False)[0]
        for axes, (name, mask) in zip(row, panels.items(), strict=True):
            _mask(axes, name, mask)
    return figure


def _mask(axes: Axes, name: str, mask: Tensor) -> None:
    T, S = mask.shape
    for t in range(T):
        for s in range(S):
            is_open = bool(mask[t, s])
            axes.add_patch(Rectangle((s - 0.46, t - 0.46), 0.92, 0.92, color=BLUE if is_open else _CLOSED))
            axes.text(s, t, "✓" if is_open else "×", ha="center", va="center", color="white" if is_open else GREY)
    axes.set(xlim=(-0.6, S - 0.4), ylim=(T - 0.4, -0.6), aspect="equal", anchor="NW", xlabel="key at position")
    axes.set_xticks(range(S), range(S))
    axes.set_yticks(range(T), range(S - T, S))
    axes.set(ylabel="query at position", title=name)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def heat_maps(
    panels: Mapping[str, Tensor], rows: Sequence[str], columns: Sequence[str], row_name: str = "", column_name: str = ""
) -> Figure:
    """Draw matrices of the same shape side by side, each number on its colour.

    Args:
        panels: Matrices, each under its title; entries of -inf are shown as closed.
        rows: A label for each row.
        columns: A label for each column.
        row_name: What the rows are, such as "query".
        column_name: What the columns are, such as "key".

    Raises:
        ValueError: A matrix has another shape than the labels.
    """
    for name, matrix in panels.items():
        if matrix.shape != (len(rows), len(columns)):
            expected = (len(rows), len(columns))
            raise ValueError(f"the labels are for a matrix {expected}, got {tuple(matrix.shape)} for {name!r}")
    with rc_context(STYLE):
        size = ((0.56 * len(columns) + 0.5) * len(panels) + 0.7, 0.5 * len(rows) + 1.05)
        figure = Figure(figsize=size, layout="constrained")
        row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (name, matrix) in zip(row, panels.items(), strict=True):
            _heat_map(axes, matrix.detach().double())
            axes.set(title=name, xlabel=column_name)
            axes.set_xticks(range(len(columns)), [visible(each) for each in columns])
        row[0].set_yticks(range(len(rows)), [visible(each) for each in rows])
        row[0].set_ylabel(row_name)
        figure.get_layout_engine().set(wspace=0.08)
    return figure


def _heat_map(axes: Axes, matrix: Tensor) -> None:
    finite = matrix[matrix.isfinite()]
    largest = max(finite.abs().max().item(), 1e-9) if finite.numel() else 1.0
    norm = TwoSlopeNorm(0, -largest, largest) if bool((finite < 0).any()) else None
    shown = matrix.masked_fill(~matrix.isfinite(), math.nan).numpy()
    cmap = (_SIGNED if norm else _RISING).with_extremes(bad=_CLOSED)
    axes.imshow(shown, cmap=cmap, aspect="auto", **({"norm": norm} if norm else {"vmin": 0, "vmax": max(largest, 1.0)}))
    for r, c in torch.cartesian_prod(*map(torch.arange, matrix.shape)).tolist():
        value = matrix[r, c].item()
        text = f"{value + 0.0:.2f}" if math.isfinite(value) else "-∞"
        is_dark = math.isfinite(value) and abs(value) > 0.75 * max(largest, 1.0) and value > 0
        axes.text(c, r, text, ha="center", va="center", fontsize=9, color="white" if is_dark else _INK)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def saturation(measured: Sequence[Mapping[str, float]], D: int, dots: Tensor) -> Figure:
    """Draw what the head width does to dot products, to the largest weight, and to the gradient at the scores.

    Args:
        measured: One record for each head width: "D", and "largest" and "gradient" (the median over the queries), each
            once as it is and once with " divided" behind its name.
        D: The head width whose dot products are shown.
        dots: These dot products, of random vectors.

    Raises:
        ValueError: There is no record for D.
    """
    if D not in [record["D"] for record in measured]:
        raise ValueError(f"measured must hold the head width that is shown, got D={D}")
    with rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.1), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        reach = 3 * math.sqrt(max(record["D"] for record in measured))  # three standard deviations of the widest
        edges = torch.linspace(-reach, reach, 129).tolist()
        for values, colour, label in ((dots, ORANGE, "q·k"), (dots / math.sqrt(D), BLUE, "q·k / √D")):
            name = f"{label}: std {values.std().item():.1f}"
            left.hist(values.flatten().tolist(), edges, density=True, color=colour, alpha=0.7, label=name)
        left.set(title=f"dot products, D = {D}", yticks=(), xlabel="score", xlim=(-reach, reach))
        left.set_ylim(top=1.35 * left.get_ylim()[1])  # room for the legend
        left.legend(loc="upper left")
        _curves(middle, measured, "largest", "largest weight", D)
        _curves(right, measured, "gradient", "median gradient at the scores", D)
        middle.set_ylim(0, 1.05)
        right.set_ylim(bottom=0)
    return figure


def _curves(axes: Axes, measured: Sequence[Mapping[str, float]], key: str, title: str, D: int) -> None:
    widths = [record["D"] for record in measured]
    for name, colour, label in ((key, ORANGE, "not divided"), (f"{key} divided", BLUE, "divided by √D")):
        axes.plot(widths, [record[name] for record in measured], color=colour, marker="o", markersize=4, label=label)
    axes.axvline(D, color=GREY, linewidth=1, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_xticks(widths, widths)
    axes.minorticks_off()
    axes.set(title=title, xlabel="head width D")
    axes.legend(loc="best")


def heads_diagram(x: Tensor, n_heads: int) -> Figure:
    """Draw how a sequence is cut into heads, step by step, and what a single `view` makes of it instead.

    Args:
        x: Numbered entries (B, T, C) with B = 1, small enough to read.
        n_heads: Number of heads H; divides C.

    Raises:
        ValueError: There is more than one sequence, or C is not a multiple of n_heads.
    """
    B, T, C = x.shape
    if B != 1 or C % n_heads:
        raise ValueError(f"x must be (1, T, C), C a multiple of n_heads, got {tuple(x.shape)}, n_heads={n_heads}")
    D, fall = C // n_heads, T + 0.9
    # The entries, and which head each belongs to, go through the same steps.
    both = torch.stack([x, (torch.arange(C) // D).expand(1, T, C)])
    cut = both.view(2, B, T, n_heads, D)
    split, scrambled = cut.transpose(2, 3), both.view(2, B, n_heads, T, D)
    second = C + 3.6
    end = second + C + 0.5 * (n_heads - 1)
    third = end + 6.6
    fourth = third + D + 4.4
    with rc_context(STYLE):
        figure = Figure(figsize=(0.36 * (fourth + D + 3.4), 0.36 * (n_heads * fall + 1.9)))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(-0.4, fourth + D + 3), ylim=(n_heads * fall - 0.4, -2.3))
        axes.axis("off")
        _block(axes, 0, 0, both[:, 0])
        for h in range(n_heads):
            _block(axes, second + h * (D + 0.5), 0, cut[:, 0, :, h])
            _block(axes, third, h * fall, split[:, 0, h], f"head {h}")
            _block(axes, fourth, h * fall, scrambled[:, 0, h], f"head {h}")
        _heads_captions(axes, (0, second, third, fourth), [tuple(each[0].shape) for each in (both, cut, split)])
        _step(axes, C + 0.2, second - 0.2, T / 2, "view", "cut the width")
        _step(axes, end + 0.3, third - 2.2, T / 2, "transpose(1, 2)", "swap T and H")
        axes.plot([fourth - 2.6] * 2, [-2, n_heads * fall - 1], color=_CLOSED, linewidth=1.5)
    return figure


def _heads_captions(axes: Axes, lefts: Sequence[float], shapes: Sequence[tuple]) -> None:
    for left, shape, name in zip(lefts, shapes, ("x  (B, T, C)", "(B, T, H, D)", "(B, H, T, D)"), strict=False):
        axes.text(left, -0.3, f"{name}\n{shape}", va="bottom", fontsize=9.5)
    axes.text(lefts[3], -0.3, "x.view(B, H, T, D)\nis scrambled", va="bottom", fontsize=9.5, color=VERMILION)
    legend = (
        "each entry: first digit its position, last digit its column\n"
        "each colour: the columns that belong to one head\n\n"
        "merge_heads goes from right to left"
    )
    axes.text(0, shapes[0][1] + 1.2, legend, fontsize=9.5, va="top", linespacing=1.5)


def _block(axes: Axes, left: float, top: float, both: Tensor, name: str = "") -> None:
    """Draw a matrix of numbered entries; `both` holds the numbers, and the head that each belongs to."""
    for r, row in enumerate(both.permute(1, 2, 0).tolist()):
        for c, (value, owner) in enumerate(row):
            tint = _TINTS[int(owner) % len(_TINTS)]
            axes.add_patch(Rectangle((left + c, top + r), 0.94, 0.92, facecolor=tint, edgecolor="white"))
            place = (left + c + 0.47, top + r + 0.47)
            axes.text(*place, f"{int(value):02d}", ha="center", va="center", fontsize=9, color=_INK)
    axes.text(left - 0.2, top + both.shape[1] / 2, name, ha="right", va="center", fontsize=9)


def _step(axes: Axes, start: float, end: float, y: float, above: str, below: str) -> None:
    arrow = {"arrowstyle": "-|>", "color": GREY, "linewidth": 1.5}
    axes.annotate("", (end, y), (start, y), arrowprops=arrow)
    middle = (start + end) / 2
    axes.text(middle, y - 0.25, above, ha="center", va="bottom", fontsize=8.5, family="DejaVu Sans Mono")
    axes.text(middle, y + 0.25, below, ha="center", va="top", fontsize=8.5, color=GREY)


def heads_over_text(tokens: Sequence[str], weights: Tensor, marked: int) -> Figure:
    """Draw what every head of every layer looks at from the last token of a text, one row a head.

    Args:
        tokens: The text, token by token.
        weights: Weights (n_layers, H, S) of the last query over all S tokens.
        marked: Index of the token to point at.

    Raises:
        ValueError: There is not one weight a token.
    """
    n_layers, n_heads, S = weights.shape
    if len(tokens) != S:
        raise ValueError(f"there must be one weight a token, got {len(tokens)} tokens, {S} weights")
    with rc_context(STYLE):
        figure = Figure(figsize=(0.145 * S + 1.5, 0.24 * n_layers * n_heads + 1.35), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(weights.flatten(0, 1).tolist(), cmap=_RISING, vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(S), [visible(token) for token in tokens], rotation=90, fontsize=7)
        axes.set_yticks(
            range(n_layers * n_heads), [f"layer {i // n_heads}, head {i % n_heads}" for i in range(n_layers * n_heads)]
        )
        for y in range(1, n_layers * n_heads):
            axes.axhline(y - 0.5, color=_CLOSED, linewidth=2 if y % n_heads == 0 else 0.6)
        box = (marked - 0.5, -0.5)
        axes.add_patch(Rectangle(box, 1, n_layers * n_heads, fill=False, edgecolor=VERMILION, linewidth=1.5))
        for index, colour in ((marked, VERMILION), (S - 1, BLUE)):
            axes.get_xticklabels()[index].set(color=colour, fontweight="bold")
        axes.tick_params(length=0)
        figure.colorbar(image, ax=axes, label="weight", pad=0.01, fraction=0.025)
    return figure


def weights_over_text(tokens: Sequence[str], weights: Tensor, place: int, title: str = "", n_wide: int = 88) -> Figure:
    """Draw a text whose tokens are shaded by the weight that one head gives them from one place.

    Args:
        tokens: The text, token by token.
        weights: Weights (S,) of the query at `place` over all tokens.
        place: Index of the token that looks; it is framed, and what comes after it is grey.
        title: Stands above the text.
        n_wide: Characters a line.

    Raises:
        ValueError: There is not one weight a token.
    """
    if weights.shape != (len(tokens),):
        raise ValueError(f"there must be one weight a token, got {len(tokens)} tokens, weights {tuple(weights.shape)}")
    spots = _laid_out(tokens, n_wide)
    n_lines = spots[-1][1] + 1
    with rc_context(STYLE):
        height = 0.28 * (n_lines + 1.6)
        figure = Figure(figsize=(n_wide * _CHARACTER_INCHES + 0.3, height))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(-2, n_wide + 2), ylim=(n_lines - 0.2, -1.8))
        axes.axis("off")
        axes.text(0, -1.1, title, fontsize=11, va="center")
        for index, ((x, y, token), weight) in enumerate(zip(spots, weights.tolist(), strict=True)):
            box = {"xy": (x, y - 0.44), "width": len(token), "height": 0.88}
            if index <= place:
                axes.add_patch(Rectangle(**box, color=_RISING(weight), linewidth=0))
            if index == place:
                axes.add_patch(Rectangle(**box, fill=False, edgecolor=VERMILION, linewidth=1.8, zorder=5))
            colour = "#AAAAAA" if index > place else "white" if weight > 0.65 else _INK
            axes.text(x, y, token, fontsize=9.5, va="center", color=colour, family="DejaVu Sans Mono")
    return figure


def _laid_out(tokens: Sequence[str], n_wide: int) -> list[tuple[int, int, str]]:
    """Return column, line and text of each token: the lines break where they are full."""
    found, x, y = [], 0, 0
    for token in tokens:
        shown = token.replace("\n", "⏎")
        if x + len(shown) > n_wide:
            x, y = 0, y + 1
        found.append((x, y, shown))
        x += len(shown)
    return found
