"""The figures of 06_training: nats by token, schedules of the learning rate, and runs side by side."""

from collections.abc import Mapping, Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure

from l1_ref.plots.style import BLUE, GREEN, ORANGE, PURPLE, STYLE, VERMILION, visible

_LOOKS = tuple(zip((BLUE, ORANGE, GREEN, VERMILION, PURPLE), ("-", "--", "-.", ":", "-"), "o^sDv", strict=True))


def token_losses(tokens: Sequence[str], nats: Sequence[float], title: str = "") -> Figure:
    """Draw what each token of a text costs a model, and the mean.

    Args:
        tokens: The text, token by token.
        nats: Minus the logarithm of the probability that each had.
        title: Stands above the figure.

    Raises:
        ValueError: There is not one loss a token, or no token.
    """
    if not tokens or len(tokens) != len(nats):
        raise ValueError(f"there must be one loss a token, got {len(tokens)} tokens and {len(nats)} losses")
    mean = sum(nats) / len(nats)
    with rc_context(STYLE):
        figure = Figure(figsize=(8.6, 3.1), layout="constrained")
        axes = figure.subplots()
        axes.bar(range(len(nats)), nats, color=BLUE, width=0.75)
        axes.axhline(mean, color=VERMILION, linestyle="--", label=f"mean: {mean:.2f} nats")
        axes.set_xticks(range(len(tokens)), [visible(token) for token in tokens], rotation=90)
        axes.tick_params(axis="x", length=0)
        axes.set(ylabel="loss (nats)", title=title, xlim=(-0.7, len(tokens) - 0.3))
        axes.set_ylim(0, 1.25 * max(*nats, mean))  # room for the legend
        axes.legend(loc="upper right")
    return figure


def schedules(curves: Mapping[str, Sequence[float]], title: str = "") -> Figure:
    """Draw learning rates against steps, from step 0 on.

    Args:
        curves: The rate at each step, under its name.
        title: Stands above the figure.

    Raises:
        ValueError: There is no curve.
    """
    if not curves:
        raise ValueError(f"curves must hold at least one schedule, got {dict(curves)}")
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.0), layout="constrained")
        axes = figure.subplots()
        for (name, rates), (colour, dash, _) in zip(curves.items(), _LOOKS, strict=False):
            axes.plot(range(len(rates)), rates, color=colour, linestyle=dash, label=name)
        axes.set(xlabel="optimiser steps", ylabel="learning rate", title=title, ylim=(0, None))
        axes.legend()
    return figure


def training_runs(
    runs: Mapping[str, Sequence[Sequence[float]]], floor: float | None = None, title: str = "", log: bool = False
) -> Figure:
    """Draw the loss of several kinds of runs: each seed as a thin line, their mean as a thick one.

    Args:
        runs: For each kind, the losses of its runs, all equally long.
        floor: The lowest loss possible, where it is known.
        title: Stands above the figure.
        log: Whether the loss is on a logarithmic axis.

    Raises:
        ValueError: There is nothing to draw, or the runs of one kind differ in length.
    """
    lengths = [{len(losses) for losses in each} for each in runs.values()]
    if not lengths or any(len(found) != 1 or 0 in found for found in lengths):
        raise ValueError(f"each kind must hold runs of one length, got lengths {[sorted(found) for found in lengths]}")
    with rc_context(STYLE):
        figure = Figure(figsize=(6.8, 3.6), layout="constrained")
        axes = figure.subplots()
        for (name, each), (colour, dash, marker) in zip(runs.items(), _LOOKS, strict=False):
            if len(each) > 1:
                for losses in each:
                    axes.plot(range(1, len(losses) + 1), losses, color=colour, linewidth=0.6, alpha=0.5)
            mean = [sum(at) / len(each) for at in zip(*each, strict=True)]
            steps, every = range(1, len(mean) + 1), max(1, len(mean) // 8)
            axes.plot(steps, mean, color=colour, linestyle=dash, marker=marker, markevery=every, ms=5, label=name)
        if floor is not None:
            axes.axhline(floor, color=VERMILION, linestyle="--", label=f"floor {floor:.3f}")
        axes.set(
            xlabel="optimiser steps", ylabel="loss (nats per token)", title=title, yscale="log" if log else "linear"
        )
        if log:
            axes.yaxis.set_major_formatter("{x:g}")
        axes.legend(loc="upper right")
    return figure


def gradient_norms(runs: Mapping[str, tuple[Sequence[float], Sequence[float]]], max_norm: float) -> Figure:
    """Draw the length of all gradients together before clipping, step by step, and below it the loss of the same runs.

    Args:
        runs: For one or two, the losses and the lengths of a run, both from the first step on.
        max_norm: Where clipping begins.

    Raises:
        ValueError: There is nothing to draw, or losses and lengths of a run differ in number.
    """
    sizes = {name: (len(losses), len(lengths)) for name, (losses, lengths) in runs.items()}
    if not sizes or any(n != m or n == 0 for n, m in sizes.values()):
        raise ValueError(f"each run must have as many losses as lengths, at least one, got {sizes}")
    with rc_context(STYLE):
        figure = Figure(figsize=(6.8, 4.6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        looks = (_LOOKS[0], _LOOKS[2])  # as `training_runs` draws the first and the third kind
        for (name, (losses, lengths)), (colour, _, marker) in zip(runs.items(), looks, strict=False):
            steps = range(1, len(losses) + 1)
            for axes, values in ((upper, lengths), (lower, losses)):
                axes.plot(steps, values, color=colour, linewidth=1.2, marker=marker, markersize=3, label=name)
        upper.axhline(max_norm, color=VERMILION, linestyle="--", linewidth=1.4, label=f"max_norm {max_norm:g}")
        longest = max(max(lengths) for _, lengths in runs.values())
        ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50, 100, 200) if tick < 1.5 * longest]
        title = "the gradient before clipping, and the loss of the same batch"
        upper.set(yscale="log", ylabel="length of the gradient", title=title)
        upper.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        upper.minorticks_off()
        lower.set(xlabel="optimiser steps", ylabel="loss (nats per token)")
        upper.legend(loc="upper right")
    return figure
