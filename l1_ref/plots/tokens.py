"""The figures of the notebook on tokens: how text is cut into pieces, and pieces into training examples."""

from collections.abc import Collection, Mapping, Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from l1_ref.plots.style import BLUE, COLOURS, GREEN, GREY, ORANGE, SKY, STYLE, visible

BytePair = tuple[bytes, bytes]
# Fills of boxes: pale, so that dark text on them stays easy to read.
_PALE_BLUE, _PALE_ORANGE, _PALE_GREY = "#CFE6F5", "#F8D899", "#E9E9E9"
_TINTS = (_PALE_BLUE, _PALE_ORANGE, "#BFE5D9", "#F0D5E3")
_MONO = ["DejaVu Sans Mono", "DejaVu Sans"]
_INK = "#222222"


def token_label(token: bytes) -> str:
    """Return a token as text, or where its bytes are not whole printable characters, the numbers of its bytes.

    Args:
        token: Any bytes.
    """
    try:
        text = visible(token.decode("utf-8"))
    except UnicodeDecodeError:
        text = ""
    return text if text and text.isprintable() else " ".join(map(str, token))


def cuts(
    rows: Mapping[str, Sequence[bytes]],
    numbers: Collection[str] = (),
    marked: Mapping[str, int] | None = None,
    title: str = "",
) -> Figure:
    """Draw the same bytes cut in several ways, one row of boxes each; a box is as wide as it has bytes.

    Args:
        rows: The pieces of each row, under its name; joined, all rows are the same bytes.
        numbers: Names of the rows that show the numbers of the bytes, not their text.
        marked: The place of the one box to highlight, by row name.
        title: Stands above the figure.

    Raises:
        ValueError: There is no row, or two rows are not cuts of the same bytes.
    """
    whole = {b"".join(pieces) for pieces in rows.values()}
    if len(whole) != 1:
        raise ValueError(f"rows must be cuts of the same bytes, got {len(whole)} different ones")
    n_bytes, marked = len(whole.pop()), marked or {}
    with rc_context(STYLE):
        room = min(0.36, 6.0 / max(n_bytes, 1))
        figure = Figure(figsize=(room * n_bytes + 1.4, 0.42 * len(rows) + 0.5), layout="constrained")
        axes = _bare(figure.subplots(), n_bytes, len(rows))
        for y, (name, pieces) in enumerate(rows.items()):
            as_numbers = name in numbers
            labels = [" ".join(map(str, piece)) if as_numbers else token_label(piece) for piece in pieces]
            fills = [_PALE_GREY if as_numbers else _PALE_BLUE] * len(pieces)
            if name in marked:
                fills[marked[name]] = _PALE_ORANGE
            _boxes(axes, y, labels, [len(piece) for piece in pieces], fills, room=room)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_title(title)
    return figure


def merge_state(
    words: Mapping[tuple[bytes, ...], int],
    counts: Mapping[BytePair, int],
    chosen: BytePair | None,
    title: str = "",
    n_shown: int = 9,
) -> Figure:
    """Draw where byte-pair encoding stands: the words as they are cut now, and the counts of their pairs.

    Args:
        words: The pieces of each distinct word, with the number of times the word occurs.
        counts: Occurrences of each pair.
        chosen: The pair that is joined next, marked on both sides; None where no pair is left.
        title: Stands above the figure.
        n_shown: Bars to draw at most, the longest first.
    """
    n_bytes = max(len(b"".join(word)) for word in words)
    with rc_context(STYLE):
        figure = Figure(figsize=(7.4, max(0.42 * len(words), 2.6)), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        _bare(left, n_bytes, len(words))
        for y, word in enumerate(words):
            labels, widths = [token_label(piece) for piece in word], [len(piece) for piece in word]
            _boxes(left, y, labels, widths, _marked(word, chosen), room=3.4 / n_bytes)
        left.set_yticks(range(len(words)), [f"{n} ×" for n in words.values()])
        left.set_title(title)
        _pair_bars(right, counts, chosen, n_shown)
    return figure


def _marked(word: tuple[bytes, ...], chosen: BytePair | None) -> list[str]:
    """Return the fills of a word's boxes, with each occurrence of the pair marked, from the left."""
    fills, place = [_PALE_BLUE] * len(word), 0
    while place < len(word):
        found = word[place : place + 2] == chosen
        if found:
            fills[place : place + 2] = [_PALE_ORANGE] * 2
        place += 2 if found else 1
    return fills


def _pair_bars(axes: Axes, counts: Mapping[BytePair, int], chosen: BytePair | None, n_shown: int) -> None:
    if not counts:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no pair is left", ha="center", va="center", color=GREY, transform=axes.transAxes)
        return
    pairs = sorted(counts, key=lambda pair: (counts[pair], pair), reverse=True)[:n_shown]
    numbers = [counts[pair] for pair in pairs]
    axes.barh(range(len(pairs)), numbers, color=[ORANGE if pair == chosen else SKY for pair in pairs])
    for y, number in enumerate(numbers):
        axes.text(number, y, f" {number}", va="center", fontsize=8)
    axes.set_yticks(range(len(pairs)), [" + ".join(token_label(piece) for piece in pair) for pair in pairs])
    axes.tick_params(axis="y", length=0, labelfontfamily=_MONO[0])
    axes.spines["bottom"].set_visible(False)
    axes.set(ylim=(max(len(pairs), 4) - 0.4, -0.6), xlim=(0, max(numbers) * 1.12), xticks=[])
    more = "" if len(counts) <= n_shown else f", the first {n_shown} of {len(counts)}"
    axes.set_title(f"pairs of neighbours{more}")


def coloured_tokens(panels: Mapping[str, Sequence[bytes]], columns: int = 84) -> Figure:
    """Draw texts cut into tokens; a few tints take turns, so that neighbours never share one and edges show.

    Args:
        panels: The tokens of each text, under its title.
        columns: Characters in a line.

    Raises:
        ValueError: There is no text.
    """
    if not panels:
        raise ValueError("panels must hold at least one text, got none")
    laid = {title: _lines(tokens, columns) for title, tokens in panels.items()}
    heights = [max(len(lines), 1) for lines in laid.values()]
    with rc_context({**STYLE, "font.family": _MONO}):
        figure = Figure(figsize=(0.088 * columns, 0.27 * sum(heights) + 0.36 * len(laid)), layout="constrained")
        column = figure.subplots(len(laid), 1, height_ratios=heights, squeeze=False)[:, 0]
        for axes, (title, lines), height in zip(column, laid.items(), heights, strict=True):
            _bare(axes, columns, height)
            n_before = 0
            for y, labels in enumerate(lines):
                fills = [_TINTS[(n_before + i) % len(_TINTS)] for i in range(len(labels))]
                _boxes(axes, y, labels, [len(label) for label in labels], fills, gap=0.04, size=8.6, room=0.088)
                n_before += len(labels)
            axes.set_yticks([])
            axes.set_title(title, fontfamily=STYLE["font.family"])
    return figure


def _lines(tokens: Sequence[bytes], columns: int) -> list[list[str]]:
    """Return the labels of tokens, broken into lines: at the right-hand edge, and behind a line end."""
    lines: list[list[str]] = [[]]
    for label in map(token_label, tokens):
        full = sum(map(len, lines[-1])) + len(label) > columns
        if lines[-1] and (full or lines[-1][-1].endswith("⏎")):
            lines.append([])
        lines[-1].append(label)
    return lines


def vocabulary_growth(
    sizes: Sequence[int], lengths: Mapping[str, Sequence[float]], learned: Sequence[int], used: Sequence[int]
) -> Figure:
    """Draw what a larger vocabulary gives, and what of it is left unused.

    Args:
        sizes: Vocabulary sizes, rising.
        lengths: Characters a token at each size, for each text, under its name.
        learned: Tokens beyond the 256 bytes at each size.
        used: How many of these the training text, once it is encoded, still holds.

    Raises:
        ValueError: A series has another length than the sizes.
    """
    for values in (*lengths.values(), learned, used):
        if len(values) != len(sizes):
            raise ValueError(f"there must be one value a size, got {len(sizes)} sizes, {len(values)} values")
    with rc_context(STYLE):
        figure = Figure(figsize=(7.4, 3.1), layout="constrained")
        left, right = figure.subplots(1, 2)
        for (name, values), colour, marker in zip(lengths.items(), COLOURS, "osD^vP*", strict=False):
            left.plot(sizes, values, color=colour, marker=marker, markersize=3.5, label=name)
        left.set(title="characters per token", xlabel="vocabulary size V", ylim=(0, None))
        left.legend()
        right.plot(sizes, learned, color=GREY, linestyle="--", label="learned")
        right.plot(sizes, used, color=GREEN, label="left in the training text")
        right.fill_between(sizes, used, learned, color=_PALE_GREY)
        right.set(title="tokens beyond the 256 bytes", xlabel="vocabulary size V", ylim=(0, None))
        right.legend()
    return figure


def training_examples(x: Sequence[bytes], y: Sequence[bytes]) -> Figure:
    """Draw one row of a batch: each target below its input, and the examples that the row holds.

    Args:
        x: The input tokens of one row.
        y: The target tokens, as many.

    Raises:
        ValueError: The rows differ in length, or are empty.
    """
    if len(x) != len(y) or not x:
        raise ValueError(f"x and y must be equally long and not empty, got {len(x)} and {len(y)} tokens")
    n_tokens = len(x)
    with rc_context(STYLE):
        figure = Figure(figsize=(min(7.4, 0.86 * (n_tokens + 1) + 0.8), 0.36 * n_tokens + 2.2), layout="constrained")
        top, bottom = figure.subplots(2, 1, height_ratios=(2.6, n_tokens), sharex=True)
        _shift_panel(top, x, y)
        _bare(bottom, n_tokens + 1, n_tokens)
        for row in range(n_tokens):
            labels = [*map(token_label, x[: row + 1]), token_label(y[row])]
            _boxes(bottom, row, labels, [1] * len(labels), [_PALE_BLUE] * (row + 1) + [_PALE_ORANGE], room=0.75)
        bottom.set_yticks(range(n_tokens), [f"example {t + 1}" for t in range(n_tokens)])
        bottom.set_title(f"{n_tokens} examples: from all of these (blue), guess that one (orange)")
    return figure


def _shift_panel(axes: Axes, x: Sequence[bytes], y: Sequence[bytes]) -> None:
    _bare(axes, len(x) + 1, 2)
    axes.set_ylim(2.0, -0.6)
    for row, (tokens, fill) in enumerate(((x, _PALE_BLUE), (y, _PALE_ORANGE))):
        labels, n_tokens = [token_label(token) for token in tokens], len(tokens)
        _boxes(axes, 1.4 * row, labels, [1] * n_tokens, [fill] * n_tokens, room=0.75)
    arrow = {"arrowstyle": "-|>", "color": BLUE, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0}
    for t in range(len(x)):
        axes.annotate("", xy=(t + 0.5, 0.98), xytext=(t + 0.5, 0.42), arrowprops=arrow)
    axes.set_yticks([0, 1.4], ["input x", "target y"])
    axes.set_title("the target of each input is the token behind it")


def _bare(axes: Axes, width: float, n_rows: int) -> Axes:
    """Make room for rows of boxes, without frame or ticks, and return the axes."""
    axes.set(xlim=(0, width), ylim=(n_rows - 0.4, -0.6), xticks=[])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return axes


def _boxes(
    axes: Axes,
    y: float,
    labels: Sequence[str],
    widths: Sequence[float],
    fills: Sequence[str],
    gap: float = 0.05,
    size: float = 9,
    room: float = 1.0,
) -> None:
    """Draw one row of boxes from left to right, a label in each; `room` is the width of 1, in inches."""
    x = 0.0
    for label, width, fill in zip(labels, widths, fills, strict=True):
        corner, across = (x + gap, y - 0.4), width - 2 * gap
        axes.add_patch(Rectangle(corner, across, 0.8, facecolor=fill, edgecolor="none"))
        # A letter of this font is about 0.62 of its size wide.
        fitting = min(size, 72 * room * across / (0.62 * max(len(label), 1)))
        axes.text(x + width / 2, y, label, ha="center", va="center_baseline", fontsize=fitting, color=_INK)
        x += width
