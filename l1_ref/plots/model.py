"""The figures of 05_model: where the parameters are, the first loss, and two matrices that part."""

from collections.abc import Mapping, Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure

from l1_ref.plots.style import BLUE, COLOURS, GREY, STYLE, VERMILION


def parameter_parts(counts: Mapping[str, Mapping[str, int]], title: str = "") -> Figure:
    """Draw for each model a bar of length 1, cut into the shares of its parts.

    Args:
        counts: For each model, the number of parameters of each part; the parts are the same for all models.
        title: Stands above the figure.

    Raises:
        ValueError: There is no model, or the models have different parts.
    """
    parts = [list(each) for each in counts.values()]
    if not parts or any(names != parts[0] for names in parts):
        raise ValueError(f"all models must have the same parts, and there must be one at least, got {parts}")
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.48 * len(counts) + 1.5), layout="constrained")
        axes = figure.subplots()
        totals = [sum(each.values()) for each in counts.values()]
        left = [0.0] * len(counts)
        for part, colour in zip(parts[0], COLOURS, strict=False):
            shares = [each[part] / total for each, total in zip(counts.values(), totals, strict=True)]
            axes.barh(range(len(counts)), shares, left=left, color=colour, label=part, edgecolor="white", height=0.7)
            for row, share in enumerate(shares):
                if share >= 0.06:
                    # Blue and vermilion are dark: black on them is hard to read.
                    ink = "white" if colour in (BLUE, VERMILION) else "#222222"
                    middle = left[row] + share / 2
                    axes.text(middle, row, f"{100 * share:.0f} %", ha="center", va="center", fontsize=8.5, color=ink)
            left = [start + share for start, share in zip(left, shares, strict=True)]
        for row, total in enumerate(totals):
            axes.text(1.015, row, f"{total:,}", va="center", fontsize=8.5)
        axes.set_yticks(range(len(counts)), list(counts))
        axes.invert_yaxis()
        axes.set(xlim=(0, 1.24), xticks=[], title=title)
        for side in ("bottom", "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(length=0)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(parts[0]))
    return figure


def first_losses(
    stds: Sequence[float], losses: Sequence[float], floor: float, marked: float, label: str = "ln V"
) -> Figure:
    """Draw the loss before training against the standard deviation of the initial weights.

    Args:
        stds: Standard deviations, rising.
        losses: The loss at each, in nats per token.
        floor: The loss of even chances.
        marked: The standard deviation to point out; one of `stds`.
        label: Names the floor.

    Raises:
        ValueError: There is not one loss for each deviation, or the marked one is not among them.
    """
    if len(stds) != len(losses) or marked not in stds:
        raise ValueError(
            f"there must be one loss a deviation, and {marked} among them, got {len(losses)} losses for {list(stds)}"
        )
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.axhline(floor, color=VERMILION, linestyle="--", label=f"even chances: {label} = {floor:.2f}")
        axes.plot(stds, losses, color=BLUE, marker="o", markersize=5, label="measured")
        at = losses[list(stds).index(marked)]
        axes.annotate(
            f"init_std {marked:g}: {at:.2f}",
            (marked, at),
            xytext=(0, 38),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            arrowprops={"arrowstyle": "->", "color": GREY},
        )
        ticks = [t for t in (5, 7, 10, 15, 20, 30, 40) if min(losses) * 0.9 <= t <= max(losses) * 1.1]
        axes.set(xscale="log", yscale="log", xlabel="init_std", ylabel="first loss (nats per token)")
        axes.set_xticks(stds, [f"{std:g}" for std in stds])
        axes.set_yticks(ticks, [str(t) for t in ticks])
        axes.minorticks_off()
        axes.legend(loc="upper left")
    return figure


def gaps(series: Mapping[str, Sequence[float]], title: str = "") -> Figure:
    """Draw how far apart two matrices are, before training and after each step.

    Args:
        series: Gaps from step 0 on, each row under its name.
        title: Stands above the figure.

    Raises:
        ValueError: There is nothing to draw.
    """
    if not series or not all(len(values) for values in series.values()):
        raise ValueError(f"there must be at least one series of gaps, each with a value, got {dict(series)}")
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.0), layout="constrained")
        axes = figure.subplots()
        for (name, values), colour, marker in zip(series.items(), (VERMILION, BLUE), "so", strict=False):
            axes.plot(range(len(values)), values, color=colour, marker=marker, markersize=5, label=name, clip_on=False)
        axes.set(xlabel="steps of training", ylabel="largest difference", title=title, ylim=(0, None))
        axes.legend()
    return figure
