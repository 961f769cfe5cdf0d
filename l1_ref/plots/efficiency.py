"""The figures of 07_efficiency: what sixteen bits can hold, what they lose, and the memory of a training step."""

import math
from collections.abc import Mapping, Sequence

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from l1_ref.plots.style import BLUE, COLOURS, GREEN, GREY, ORANGE, SKY, STYLE, VERMILION

MIB = 2**20


def number_formats(dtypes: Sequence[torch.dtype]) -> Figure:
    """Draw how far the numbers of each dtype reach, and how close they lie just above 1.

    Args:
        dtypes: Floating-point types, at least one.

    Raises:
        ValueError: There is none.
    """
    if not dtypes:
        raise ValueError("dtypes must name at least one type, got none")
    names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    with rc_context(STYLE):
        figure = Figure(figsize=(8.2, 0.62 * len(dtypes) + 1.5), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.5, 1), sharey=True)
        for row, (dtype, colour) in enumerate(zip(dtypes, COLOURS * len(dtypes), strict=False)):
            _reach(left, row, torch.finfo(dtype), colour)
            step = torch.finfo(dtype).eps
            if step < 2**-12:
                right.barh(row, 2**-5, left=1, height=0.34, color=colour)
                right.text(1 + 2**-6, row - 0.22, "too close to draw", ha="center", va="bottom", fontsize=8.5)
            else:
                places = [1 + i * step for i in range(round(2**-5 / step) + 1)]
                right.plot(places, [row] * len(places), "|", color=colour, markersize=15, markeredgewidth=1.6)
                right.text(1 + 2**-6, row - 0.22, f"every 2^{math.log2(step):.0f}", ha="center", fontsize=8.5)
        left.set(title="how far they reach", xlabel="power of 2", ylim=(len(dtypes) - 0.5, -0.75), xlim=(-158, 142))
        left.set_yticks(range(len(dtypes)), names)
        left.set_xticks(range(-150, 150, 50))
        right.set(title="the numbers from 1 to 1 + 1/32", xlim=(1 - 2**-9, 1 + 2**-5 + 2**-9))
        right.set_xticks([1, 1 + 2**-6, 1 + 2**-5], ["1", "1 + 1/64", "1 + 1/32"])
        for axes in (left, right):
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
    return figure


def _reach(axes: Axes, row: int, limits: torch.finfo, colour: str) -> None:
    smallest, normal, largest = (math.log2(x) for x in (limits.tiny * limits.eps, limits.tiny, limits.max))
    axes.barh(row, largest - normal, left=normal, height=0.34, color=colour)
    axes.barh(row, normal - smallest, left=smallest, height=0.34, facecolor="white", edgecolor=colour, hatch="////")
    highest = f"{limits.max:,.0f}" if limits.max < 1e6 else f"{limits.max:.3g}"
    label = f"from 2^{smallest:.0f}, all digits from 2^{normal:.0f}, up to {highest}"
    axes.text((normal + largest) / 2, row - 0.22, label, ha="center", va="bottom", fontsize=8.5)


def float16_histogram(sizes: Tensor, exponent: int) -> Figure:
    """Draw how large gradients are when the loss is multiplied by a power of 2, and which of them float16 can hold.

    Args:
        sizes: The power of 2 of each gradient that is not 0: log2 of its absolute value.
        exponent: The loss is multiplied by 2 to this power.

    Raises:
        ValueError: There is no gradient.
    """
    if not len(sizes):
        raise ValueError("sizes must hold at least one gradient, got none")
    edges = torch.arange(-60.0, 31.0)
    counts = torch.histogram((sizes.detach().float().cpu() + exponent).clamp(-59.5, 29.5), edges).hist
    shares, starts = (100 * counts / counts.sum()).tolist(), edges[:-1].tolist()
    zones = (  # borders, colour, name: half of the smallest number still rounds up to it
        (-60, -25, VERMILION, "becomes 0"),
        (-25, -14, ORANGE, "loses digits"),
        (-14, 16, BLUE, "fits"),
        (16, 30, GREY, "too large"),
    )
    with rc_context(STYLE):
        figure = Figure(figsize=(7.6, 3.4), layout="constrained")
        axes = figure.subplots()
        top = 1.45 * max(shares)
        for low, high, colour, name in zones:
            inside = [(start, share) for start, share in zip(starts, shares, strict=True) if low <= start < high]
            axes.bar(
                *zip(*inside, strict=True), width=1.0, align="edge", color=colour, edgecolor="white", linewidth=0.4
            )
            total = sum(share for _, share in inside)
            axes.text((low + high) / 2, top * 0.97, f"{name}\n{total:.1f} %", ha="center", va="top", fontsize=9.5)
            if high < 30:
                axes.axvline(high, color="#222222", linestyle=":", linewidth=1.2)
        axes.set(xlabel="size of the gradient, as a power of 2", ylabel="% of the gradients", xlim=(-60, 30))
        axes.set(title=f"gradients of the layers' outputs, loss times 2^{exponent}", ylim=(0, top))
    return figure


def scale_errors(
    exponents: Sequence[int], errors: Mapping[str, Sequence[float]], marks: Mapping[str, float] | None = None
) -> Figure:
    """Draw how far gradients are from the exact ones, against the factor on the loss.

    Args:
        exponents: The loss was multiplied by 2 to these powers, rising.
        errors: Relative errors for each way to compute; inf where a gradient overflowed.
        marks: Exponents to point out, by their text.

    Raises:
        ValueError: There is not one error for each exponent.
    """
    if not errors or any(len(values) != len(exponents) for values in errors.values()):
        counts = {name: len(values) for name, values in errors.items()}
        raise ValueError(f"there must be one error an exponent, got {len(exponents)} exponents and {counts}")
    with rc_context(STYLE):
        figure = Figure(figsize=(7.0, 3.5), layout="constrained")
        axes = figure.subplots()
        for (name, values), colour, marker in zip(errors.items(), (BLUE, ORANGE, GREEN), "os^", strict=False):
            fine = [(e, value) for e, value in zip(exponents, values, strict=True) if math.isfinite(value)]
            over = [e for e, value in zip(exponents, values, strict=True) if not math.isfinite(value)]
            axes.plot(*zip(*fine, strict=True), color=colour, marker=marker, markersize=5, label=name)
            if over:
                label = f"{name}: overflow"
                axes.plot(over, [2.0] * len(over), "x", color=VERMILION, markersize=8, markeredgewidth=2, label=label)
        axes.set(xlabel="power of 2 that the loss is multiplied by", ylabel="relative error", yscale="log")
        axes.set(ylim=(3e-4, 4), title="gradients of all weights, against float32")
        axes.minorticks_off()
        for text, at in (marks or {}).items():
            axes.axvline(at, color=GREY, linestyle=":", linewidth=1.4)
            axes.text(at + 0.4, 6e-4, text, fontsize=8.5, color="#222222", va="center")
        axes.legend(loc="center right", bbox_to_anchor=(1.0, 0.68))
    return figure


def memory_bars(
    predicted: Mapping[str, Mapping[str, Mapping[str, int]]], measured: Mapping[str, Mapping[str, int]], title: str = ""
) -> Figure:
    """Draw the bytes of a training step by part: a panel a model, a bar a way to run it, dots for what was measured.

    Args:
        predicted: For each model and each way, the bytes of each part, without a total.
        measured: Totals that were measured, for some of the models and ways.
        title: Stands above the figure.

    Raises:
        ValueError: There is no model.
    """
    if not predicted:
        raise ValueError("predicted must hold at least one model, got none")
    with rc_context(STYLE):
        n_rows = math.ceil((len(predicted) + 1) / 2)
        figure = Figure(figsize=(8.6, 1.55 * n_rows + 0.5), layout="constrained")
        grid = figure.subplots(n_rows, 2, squeeze=False).flatten().tolist()
        for axes, (name, ways) in zip(grid, predicted.items(), strict=False):
            handles = _memory_panel(axes, name, ways, measured.get(name, {}))
        for axes in grid[len(predicted) :]:
            axes.set_axis_off()
        if measured:
            handles += grid[-1].plot([], [], "D", color="#222222", markerfacecolor="white", label="measured")
        grid[-1].legend(handles=handles, loc="center", ncols=2)
        figure.suptitle(f"{title} (each panel has its own scale)" if len(predicted) > 1 else title, fontsize=11)
    return figure


def _memory_panel(
    axes: Axes, name: str, ways: Mapping[str, Mapping[str, int]], measured: Mapping[str, int]
) -> list[object]:
    left, handles = [0.0] * len(ways), []
    totals = [sum(parts.values()) / MIB for parts in ways.values()]
    colours = (BLUE, SKY, GREEN, ORANGE, VERMILION)
    for part, colour in zip(next(iter(ways.values())), colours, strict=False):
        sizes = [parts[part] / MIB for parts in ways.values()]
        hatch = "///" if part == "recomputed" else None
        handles.append(
            axes.barh(
                list(ways), sizes, left=left, color=colour, edgecolor="white", height=0.7, hatch=hatch, label=part
            )
        )
        left = [start + size for start, size in zip(left, sizes, strict=True)]
    for row, (way, total) in enumerate(zip(ways, totals, strict=True)):
        dot = measured.get(way, 0) / MIB
        if dot:
            axes.plot(dot, row, "D", color="#222222", markerfacecolor="white", markersize=5, zorder=5)
        axes.text(max(total, dot) + 0.035 * max(totals), row, bytes_label(total * MIB), va="center", fontsize=8.5)
    axes.invert_yaxis()
    axes.set(title=name, xlim=(0, 1.3 * max(totals)), xticks=[])
    axes.tick_params(length=0)
    axes.spines["bottom"].set_visible(False)
    return handles


def bytes_label(n_bytes: float) -> str:
    """Return a number of bytes in three digits and a unit: "10.9 MiB".

    Args:
        n_bytes: At least 0.
    """
    units = ("B", "KiB", "MiB", "GiB")
    power = next((power for power in range(4) if n_bytes < 1000 * 1024**power), 3)
    amount = n_bytes / 1024**power
    digits = 0 if power == 0 or amount >= 100 else 1 if amount >= 10 else 2
    return f"{amount:,.{digits}f} {units[power]}"


def piece_effects(effects: Mapping[str, Sequence[float]]) -> Figure:
    """Draw how far a step of training changes when one of its micro-batches is exchanged for another.

    Args:
        effects: For each version of the step, the change by the number of the micro-batch, from 0.

    Raises:
        ValueError: There is no version, or one has no micro-batch.
    """
    if not effects or not all(len(values) for values in effects.values()):
        raise ValueError(f"there must be at least one version, each with a change, got {dict(effects)}")
    with rc_context(STYLE):
        figure = Figure(figsize=(3.4 * len(effects) + 1.0, 2.7), layout="constrained")
        row = figure.subplots(1, len(effects), sharey=True, squeeze=False)[0]
        top = 1.25 * max(max(values) for values in effects.values())
        for axes, (name, values), colour in zip(row, effects.items(), (VERMILION, BLUE, GREEN), strict=False):
            bars = axes.bar(range(len(values)), values, color=colour, width=0.6)
            axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=2, fontsize=8.5)
            axes.set(title=name, xlabel="micro-batch that is exchanged", ylim=(0, top or 1.0))
            axes.set_xticks(range(len(values)))
        row[0].set_ylabel("how far the weights move")
    return figure
