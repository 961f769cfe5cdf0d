"""Figures: what they show, and the text that says it."""

import base64
import re

import pytest
import torch
from matplotlib.figure import Figure

from l1_ref import plots

CURVE = [
    {"step": 10, "tokens": 100, "training_loss": 3.0, "validation_loss": 3.2},
    {"step": 20, "tokens": 200, "training_loss": 2.0, "validation_loss": None},
    {"step": 30, "tokens": 300, "training_loss": 1.5, "validation_loss": 1.8},
]


def lines_of(figure):
    return {line.get_label(): line for line in figure.axes[0].lines}


def test_a_loss_curve_holds_both_losses_and_the_floor():
    lines = lines_of(plots.loss_curve(CURVE, floor=1.2))
    assert list(lines) == ["training", "validation", "entropy floor 1.200"]
    assert lines["training"].get_ydata().tolist() == [3.0, 2.0, 1.5]
    assert lines["validation"].get_xdata().tolist() == [10, 30]


def test_the_late_part_of_a_loss_curve_has_its_own_panel():
    _, late = plots.loss_curve(CURVE, 1.2, "a run", late=20).axes
    assert late.get_title(loc="left") == "the same from step 20 on" and late.get_ylim()[1] < 2.2
    assert [line.get_xdata().tolist() for line in late.lines[:2]] == [[20, 30], [30]]


def test_a_loss_curve_without_a_floor_or_without_training_loss():
    points = [{"step": p["step"], "validation_loss": p["validation_loss"]} for p in CURVE]
    assert list(lines_of(plots.loss_curve(points))) == ["validation"]


def test_an_empty_curve_is_an_error():
    with pytest.raises(ValueError, match="at least one training or validation loss, got 0 points"):
        plots.loss_curve([])


def test_probabilities_are_bars_with_their_numbers():
    figure = plots.probabilities([" a", "b\n"], torch.tensor([0.75, 0.25]), "next")
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [0.75, 0.25]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["␣a", "b⏎"]
    assert [text.get_text() for text in axes.texts] == ["0.75", "0.25"]


def test_distributions_stand_side_by_side():
    figure = plots.probabilities(["x", "y"], {"cold": [1.0, 0.0], "hot": [0.5, 0.5]})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["cold", "hot"]
    with pytest.raises(ValueError, match="got 2 labels, 3 bars"):
        plots.probabilities(["x", "y"], [0.1, 0.2, 0.7])


@pytest.mark.parametrize(("token", "shown"), [(" a", "␣a"), ("a b", "a b"), ("  ", "␣␣"), ("\n", "⏎"), ("", "")])
def test_spaces_at_the_ends_are_visible(token, shown):
    assert plots.visible(token) == shown


def test_a_shown_figure_is_a_white_picture_with_alt_text(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    plots.show(plots.loss_curve(CURVE), alt='loss "falls" & ends')
    (data,) = shown
    picture = base64.b64decode(re.search(r"base64,([^\"]+)", data["text/html"])[1])
    assert picture.startswith(b"\x89PNG")
    assert 'alt="loss &quot;falls&quot; &amp; ends"' in data["text/html"]
    assert data["text/plain"] == '[figure: loss "falls" & ends]'


def test_a_slot_holds_one_figure_after_the_other(monkeypatch):
    class Handle:
        updates = 0

        def update(self, data, raw):
            self.updates += 1

    handle = Handle()
    monkeypatch.setattr("IPython.display.display", lambda data, raw, display_id: handle)
    slot = plots.Slot()
    for _ in range(3):
        plots.show(plots.loss_curve(CURVE), alt="loss", slot=slot)
    assert slot.handle is handle and handle.updates == 2


def test_a_figure_must_have_alt_text():
    with pytest.raises(ValueError, match="alt must say what the figure shows"):
        plots.show(plots.loss_curve(CURVE), alt=" ")


def test_one_figure_is_the_same_file_every_time():
    assert plots.png(plots.loss_curve(CURVE, 1.0)) == plots.png(plots.loss_curve(CURVE, 1.0))


def test_a_slider_redraws_the_figure_in_its_place(monkeypatch):
    shown, sliders, drawn = [], [], []
    monkeypatch.setattr("IPython.display.display", sliders.append)
    monkeypatch.setattr("l1_ref.plots.style.show", lambda figure, alt, slot: shown.append((alt, slot)))

    def draw(size, word):
        drawn.append((size, word))
        return Figure(), f"{size} {word}"

    plots.explore(draw, size=[3, 1, 2], word=["b", "a"])
    size, word = sliders
    assert list(size.options) == [1, 2, 3] and list(word.options) == ["b", "a"]
    assert size.layout.max_width == "100%"  # in a narrow window its value would be cut off
    size.value = 1
    word.value = "a"
    assert drawn == [(3, "b"), (1, "b"), (1, "a")] and [alt for alt, _ in shown] == ["3 b", "1 b", "1 a"]
    assert len({id(slot) for _, slot in shown}) == 1


@pytest.mark.parametrize("choices", [{}, {"size": []}])
def test_a_slider_without_a_value_is_an_error(choices):
    with pytest.raises(ValueError, match="at least one choice, each with a value"):
        plots.explore(lambda **_: None, **choices)


def test_a_text_is_shown_in_lines_that_fit():
    tale = "Near the little well lived a quiet girl.\nShe was afraid of the dark.\n\n" + "x" * 30
    lines = "".join(plots.wrapped(tale, 20)).split("\n")
    assert lines == [
        *("Near the little well", "lived a quiet girl.", "She was afraid of", "the dark.", "", "x" * 30)
    ]  # fmt: skip
    # As it comes, in pieces that are no words, it is the same, and is not held back longer than a word.
    pieces = iter([tale[i : i + 3] for i in range(0, len(tale), 3)])
    words = plots.wrapped(pieces, 20)
    assert [next(words), next(words)] == ["Near", " the"] and next(pieces) == "lit"
    assert list(plots.wrapped("")) == list(plots.wrapped([])) == []
