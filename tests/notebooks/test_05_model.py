"""The notebook on the model: every number and claim of its prose and alt texts, and the figures' own functions."""

import dataclasses
import itertools
import math
import re

import pytest
import torch
from torch import nn

import l1_ref
from l1_ref.course import sources
from l1_ref.plots import model as figures
from tests.notebook_runs import Ran, run
from tests.test_notebooks import prose

NAME = "05_model"


@pytest.fixture(scope="module")
def ran() -> Ran:
    return run(NAME)


@pytest.fixture(scope="module")
def space(ran):
    return ran.space


@pytest.fixture(scope="module")
def alts(ran):
    return ran.alts


@pytest.fixture(scope="module")
def printed(ran):
    return ran.printed


def alt(alts, start):
    return next(each for each in alts if each.startswith(start))


# The configuration and the count.


def test_the_table_explains_every_field_of_the_config():
    told = re.findall(r"\| `(\w+)` \|", prose(NAME))
    assert told == [field.name for field in dataclasses.fields(l1_ref.L1Config)]
    with pytest.raises(dataclasses.FrozenInstanceError):
        l1_ref.L1Config().n_layers = 3


def test_the_defaults_are_gpt2_small_among_five_presets(printed):
    config = l1_ref.L1Config()
    assert (config.n_layers, config.n_embd, config.n_inner) == (12, 768, 4 * 768)
    assert l1_ref.PRESETS["gpt2"] == config and len(l1_ref.PRESETS) == 5
    assert all(re.search(rf"^{name} ", printed, re.MULTILINE) for name in l1_ref.PRESETS)


def test_the_parts_add_up_and_lie_as_the_prose_says(space, alts):
    for name, parts in space["counts"].items():
        config = l1_ref.PRESETS[name]
        assert sum(parts.values()) == l1_ref.count_parameters(config)
        assert parts["token table"] == config.vocab_size * config.n_embd
        assert parts["feed-forward"] / parts["attention"] == pytest.approx(2, abs=0.01)
        assert parts["norms"] < 0.01 * sum(parts.values())
        assert parts["feed-forward"] + parts["attention"] > 0.85 * (sum(parts.values()) - parts["token table"])
    small = space["counts"]["small"]
    assert small["token table"] > sum(small.values()) / 2
    assert alt(alts, "Stacked bars").count(" %") == 5 and "small 53 %" in alt(alts, "Stacked bars")


def test_gpt2_has_124_million_and_heads_are_free(space, printed):
    assert "GPT-2 small:         124,439,808" in printed
    assert "with an untied head: 163,037,184" in printed and "one attention head:  124,439,808" in printed
    assert space["count_parameters"](l1_ref.PRESETS["tiny"]) == 541_184
    C = l1_ref.PRESETS["tiny"].n_embd
    shapes = {name: tuple(p.shape) for name, p in space["trained"].blocks[0].attention.named_parameters()}
    assert shapes["qkv.weight"] == (3 * C, C) and shapes["proj.weight"] == (C, C)


# The first loss and the initial values.


def test_a_fresh_model_loses_ln_v_and_a_sure_one_far_more(space, alts):
    ln_v = math.log(1000)
    assert space["tiny"].vocab_size == 1000
    losses = dict(zip(space["stds"], space["losses"], strict=True))
    assert all(losses[std] == pytest.approx(ln_v, abs=0.06) for std in (0.005, 0.01, 0.02))
    assert losses[1.0] > 5 * ln_v and losses[0.2] > ln_v + 2
    assert list(losses.values()) == sorted(losses.values())
    assert f"at 1 it is {losses[1.0]:.0f} nats" in alt(alts, "Log chart")


def test_logits_are_as_wide_as_the_root_of_c_says(space):
    C = space["tiny"].n_embd
    assert C == 128 and f"{math.sqrt(C):.1f}" == "11.3" and f"{0.02 * math.sqrt(C):.2f}" == "0.23"
    for std in (0.02, 1.0):
        assert space["first_loss"](std)[1] == pytest.approx(std * math.sqrt(C), rel=0.06)
    assert space["first_loss"](1.0)[1] > 11


def test_a_block_has_two_layers_that_write_to_the_stream():
    model = l1_ref.L1Model(dataclasses.replace(l1_ref.PRESETS["tiny"], n_layers=5))
    assert sum(name.endswith("proj.weight") for name, _ in model.named_parameters()) == 2 * 5


def test_the_variance_grows_with_the_depth_unless_the_layers_are_scaled(space, alts):
    def stream(n_layers, scaled):
        return space["stream_stds"](n_layers, scaled)

    plain = {n: stream(n, False) for n in (6, 12, 24)}
    for n in (6, 12):
        growth = [s[-1] ** 2 - s[0] ** 2 for s in (plain[n], plain[2 * n])]
        assert growth[1] / growth[0] == pytest.approx(2, abs=0.3)
    steps = [after**2 - before**2 for before, after in itertools.pairwise(plain[24])]
    assert max(steps) < 3 * min(steps)  # all branches add about the same amount
    ends = [stream(n, True)[-1] for n in (2, 6, 12, 24, 36)]
    assert max(ends) < 1.15 * min(ends)
    assert (plain[24][0] / plain[24][-1]) ** 2 < 0.02  # the embedding drowns
    for n in (2, 36):
        figure, _ = space["draw_streams"](n)
        (axes,) = figure.axes
        low, high = axes.get_ylim()
        assert axes.get_xlabel() == "blocks passed" and axes.get_xlim() == (-1, 37)
        assert all(low < y < high for line in axes.lines for y in line.get_ydata())
    told = alt(alts, "Line chart, 24 blocks")
    assert f"to {plain[24][-1]:.2f} without" in told and f"to {ends[3]:.2f} with it" in told


def test_the_readers_weights_have_the_deviations_asked_for(space):
    torch.manual_seed(3)
    model = l1_ref.L1Model(space["tiny"])
    space["init_weights"](model, space["tiny"])
    assert space["tiny"].n_layers == 2 and 0.02 / math.sqrt(2 * 2) == 0.01
    assert model.blocks[0].attention.proj.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not any(isinstance(module, nn.Embedding) for module in model.modules())


def test_torch_refuses_a_change_in_place_unless_it_records_nothing():
    parameter = nn.Parameter(torch.zeros(3))
    with pytest.raises(RuntimeError, match="in-place"):
        parameter.normal_(0, 1)
    with torch.no_grad():
        assert parameter.normal_(0, 1) is parameter and parameter.std() > 0


# Tying, and the whole model.


def test_the_nearest_rows_are_words_of_the_same_kind(space):
    table, tokenizer = space["trained"].embedding.token.weight.detach(), space["tokenizer"]
    rows = table / table.norm(dim=1, keepdim=True)
    kinds = {
        " Monday": {" Tuesday", " Wednesday", " Thursday", " Friday", " Saturday", " Sunday"},
        " seven": {" two", " three", " four", " five", " six", " eight", " nine", " ten", " twelve"},
        " whispered": {" shouted", " sighed", " yawned", " grumbled", " said"},
        " fox": {" dog", " goat", " crow", " pig", " goose"},
    }
    for word, kind in kinds.items():
        (i,) = tokenizer.encode(word)
        near = {tokenizer.decode([j]) for j in (rows @ rows[i]).topk(4).indices.tolist()[1:]}
        assert near <= kind, word
        assert f'"{word}"' in " ".join(cell.source for cell in sources.load(NAME).cells)


def test_a_fresh_tied_model_stutters_with_nearly_even_chances(space):
    x, tiny = space["x"], space["tiny"]
    torch.manual_seed(0)
    for tied, low, high in ((True, 0.8, 1.0), (False, 0.0, 0.02)):
        logits = l1_ref.L1Model(dataclasses.replace(tiny, tie_weights=tied))(x)
        assert low <= (logits.argmax(-1) == x).float().mean() <= high
        assert logits.softmax(-1).max() < 0.01


def test_the_readers_model_holds_the_trained_weights(space, printed):
    assert "one and the same Parameter: True" in printed
    assert "the same logits: True" in printed and "All keys matched" in printed
    mine = space["with_trained_weights"]()
    assert l1_ref.cross_entropy(mine(space["x"]), space["y"]) < 2.6
    state = mine.state_dict()
    with pytest.raises(RuntimeError, match="Missing key"):
        mine.load_state_dict({name: value for name, value in state.items() if name != "norm.bias"})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        mine.load_state_dict(state | {"norm.shift": state["norm.bias"]})


def test_the_tale_begins_as_asked_and_ends(space):
    tale = space["tell"](space["with_trained_weights"](), "Near the little well lived", seed=1)
    assert tale.startswith("Near the little well lived") and len(tale.split()) > 30
    assert space["trained"].config.max_seq_length == 128


def test_the_broken_version_parts_and_the_mended_one_does_not(space, alts):
    broken, mended = space["curves"]["broken"], space["curves"]["mended"]
    assert broken[0] == 0 and broken == sorted(broken) and broken[-1] > 0.03
    assert mended == [0] * len(broken)
    assert f"{broken[-1]:.2f} after 8 steps" in alt(alts, "Line chart, broken")
    assert f"grows to {broken[-1]:.2f}" in alt(alts, "Line chart: the broken")


def test_the_summary_names_what_exists():
    rows = re.findall(r"`l1_ref\.(\w+)`, in `l1_ref/(\w+)\.py`", prose(NAME))
    assert len(rows) == 5
    assert all(getattr(l1_ref, name).__module__ == f"l1_ref.{module}" for name, module in rows)


# The figures.


def test_a_bar_is_cut_into_the_shares_of_its_parts():
    figure = figures.parameter_parts({"a": {"x": 30, "y": 70}, "b": {"x": 5, "y": 95}}, "title")
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.3, 0.05, 0.7, 0.95])
    assert [text.get_text() for text in axes.texts] == ["30 %", "70 %", "95 %", "100", "100"]
    for counts in ({}, {"a": {"x": 1}, "b": {"y": 1}}):
        with pytest.raises(ValueError, match="the same parts"):
            figures.parameter_parts(counts)


def test_the_first_losses_stand_beside_the_loss_of_even_chances():
    (axes,) = figures.first_losses([0.01, 0.1], [6.9, 9.0], 6.91, marked=0.01).axes
    floor, measured = axes.lines
    assert set(floor.get_ydata()) == {6.91} and list(measured.get_ydata()) == [6.9, 9.0]
    assert axes.texts[0].get_text() == "init_std 0.01: 6.90"
    for stds in ([0.01], [0.02, 0.1]):
        with pytest.raises(ValueError, match="one loss a deviation"):
            figures.first_losses(stds, [6.9, 9.0], 6.91, marked=0.01)


def test_gaps_are_drawn_from_step_zero():
    (axes,) = figures.gaps({"one": [0.0, 0.5], "two": [0.0, 0.0]}, "title").axes
    assert [list(line.get_xdata()) for line in axes.lines] == [[0, 1], [0, 1]]
    assert axes.get_ylim()[0] == 0
    for series in ({}, {"one": []}):
        with pytest.raises(ValueError, match="at least one series"):
            figures.gaps(series)
