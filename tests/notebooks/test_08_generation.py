"""The notebook on generation: every number and claim of its prose and alt texts, and the figures' own functions."""

import dataclasses
import math
import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import l1_ref
from l1_ref.data import make_document_corpus
from l1_ref.plots import generation as figures
from l1_ref.tales_grammar import WORDS
from tests.notebook_runs import Ran, run
from tests.test_notebooks import prose

NAME = "08_generation"


@pytest.fixture(scope="module")
def ran() -> Ran:
    return run(NAME, every=False)


def numbers(alt):
    return [float(number) for number in re.findall(r"\d+\.\d+", alt)]


# Places, and what is done to their scores.


def test_the_three_places_are_as_the_prose_says(ran):
    fits = {"… lived a": 10, "… a shy girl": 1, "… girl called": 8}
    for place, n in fits.items():
        chances = l1_ref.softmax(ran["places"][place], dim=-1)[0].sort(descending=True).values
        assert chances.shape == (1000,) and chances[:n].sum() > 0.99 and chances[n] < 0.001
        assert l1_ref.top_p_filter(ran["places"][place], 0.95).isfinite().sum() == n
    names = l1_ref.softmax(ran["places"]["… girl called"], dim=-1).sort(descending=True).values[0]
    words = l1_ref.softmax(ran["places"]["… lived a"], dim=-1).sort(descending=True).values[0]
    assert words[0] < 1.3 * words[9] and names[0] > 2 * names[7] and names[0] < 1.1 * names[1]
    first = ran.alt("The likeliest token has")
    assert "has 0.11, 1.00, 0.18;" in first and numbers(first)[-1] < 0.003


def test_a_hot_temperature_feeds_the_tail(ran):
    alt = ran.alt("temperature 2.0")
    called = l1_ref.softmax(ran["places"]["… girl called"], dim=-1)[0]
    order = called.argsort(descending=True)
    hot = l1_ref.softmax(ran["places"]["… girl called"] / 2, dim=-1)[0, order]
    assert numbers(alt)[1:] == [pytest.approx(each, abs=0.006) for each in (0.20, 0.07, hot[11:].sum().item())]
    assert hot[11:].sum() == pytest.approx(0.25, abs=0.02) and hot[11] < 0.005 and len(hot) - 11 == 989
    lengths = [len(ran["as_ids"](tale)) for tale in l1_ref.load_tales("validation")]
    assert 90 < sum(lengths) / len(lengths) < 120  # "a hundred places"


def test_no_k_suits_all_places(ran):
    assert "k = 5: 5, 5, 5 tokens" in ran.alt("top-k with k = 5")
    assert "p = 0.95: 10, 1, 8 tokens" in ran.alt("top-p with p = 0.95")
    assert ran["with_top_k"](1000)[1].endswith("k = 1000: 1000, 1000, 1000 tokens are left.")
    assert ran["with_top_p"](1.0)[1].endswith("p = 1.0: 1000, 1000, 1000 tokens are left.")


def test_filters_and_temperature_do_not_commute(ran):
    assert "temperature, then top-p: 161" in ran.printed or ran["hot_first"].isfinite().sum() > 100
    assert ran["cut_first"].isfinite().sum() == 7 and "top-p, then temperature: 7 tokens" in ran.printed


def test_the_sliders_reach_from_one_end_to_the_other(ran):
    (temperature,), (k,), (p,) = (choices.values() for _, choices in ran.sliders)
    assert (temperature[0], min(temperature), max(temperature)) == (2.0, 0.1, 3.0)
    assert (k[0], min(k), max(k)) == (5, 1, 1000) and (p[0], min(p), max(p)) == (0.95, 0.1, 1.0)
    cold, alt = ran["at_temperature"](0.1)
    assert alt.endswith("have 0.00, 0.00, 0.00.") and len(cold.axes) == 3


def test_ties_are_kept_by_k_and_split_by_p(ran):
    assert "k = 1:   [[1.0, 1.0, -inf]]" in ran.printed and "p = 0.1: [[1.0, -inf, -inf]]" in ran.printed


def test_counting_finds_what_was_asked_for(ran):
    asked, counted = ran["asked"], ran["counted"]
    assert ran["n_draws"] == 10_000 and (asked > 0).sum() == 6
    assert counted[asked == 0].sum() == 0 and (asked - counted).abs().max() < 0.02  # four standard deviations
    assert "two have 0" in ran.alt("eight names, alike")


# Greedy: few heroes, and a loop.


def test_greedy_has_few_heroes_and_chance_has_many(ran):
    counts = {name: int(n) for name, n in re.findall(r"^(greedy|drawn) +(\d+) names", ran.printed, re.MULTILINE)}
    assert len(ran["beginnings"]) == len(set(ran["beginnings"])) == 48 and ran["prompts"].shape == (48, 6)
    assert counts["greedy"] <= 5 and counts["drawn"] >= 10


def test_greedy_loops_and_drawn_text_does_not(ran):
    greedy, drawn = ran["long_texts"].values()
    before, period = ran["loop_of"](greedy, 128)
    assert len(greedy) == len(drawn) == 602 and ran["model"].config.max_seq_length == 128
    assert greedy[before + period :] == greedy[before:-period] and period > 20
    assert ran["loop_of"](drawn, 128) is None
    assert f"one whole diagonal, {period} places late" in ran.alt("Two dot plots")
    assert before + period < 602 - 128  # the loop has come round before the text ends
    assert f"after {before} tokens the same {period} tokens" in ran.printed
    runs = [{tuple(ids[i : i + 8]) for i in range(len(ids) - 7)} for ids in (greedy, drawn)]
    assert len(runs[0]) < 0.65 * 595 and len(runs[1]) > 0.95 * 595


def test_a_loop_is_found_where_there_is_one(ran):
    assert ran["loop_of"]([9, 8, 1, 2, 3, 1, 2, 3, 1], 3) == (2, 3)
    assert ran["loop_of"]([1, 2, 3, 4, 5, 6], 3) is None


def test_a_row_of_training_text_is_a_tale_and_the_first_words_of_the_next(ran):
    corpus = make_document_corpus(
        l1_ref.load_tales("train")[:50], l1_ref.load_tales("validation")[:2], ran["tokenizer"]
    )
    x, _ = corpus.batch(16, 128, torch.Generator().manual_seed(0))
    assert (x[:, 0] == ran["end"]).all() and ((x == ran["end"]).sum(dim=1) <= 2).all()


# The cache.


def test_the_tokens_that_go_through_the_model(ran):
    assert [ran["tokens_fed"](n, False) for n in (1, 7, 50)] == [1, 28, 50 * 51 // 2]
    assert "with a cache: False  100 new tokens: 5,050  times the work of 50: 3.96" in ran.printed
    assert "with a cache: True   100 new tokens:   100  times the work of 50: 2.00" in ran.printed


@pytest.mark.parametrize("T, S", [(1, 1), (7, 7), (1, 9), (3, 5)])
def test_the_operations_are_those_that_torch_counts(ran, T, S):
    config = dataclasses.replace(ran["model"].config, attention="explicit")
    model, cache = l1_ref.L1Model(config), l1_ref.KVCache(config, 1)
    ids = torch.arange(S).unsqueeze(0)
    if S > T:
        with torch.no_grad():
            model.hidden(ids[:, : S - T], cache)
    with FlopCounterMode(display=False) as counter:
        model.head(model.hidden(ids[:, S - T :], cache)[:, -1])
    assert counter.get_total_flops() == ran["flops"](T, S, config)


def test_the_work_bends_without_a_cache_alone(ran):
    without, kept = ran["work"].values()
    assert len(without) == len(kept) == 100
    assert without[99] / without[49] > 3.9 and 2 <= kept[99] / kept[49] < 2.1
    assert f"to {without[-1] / kept[-1]:.0f} times that with a cache" in ran.alt("the work bends upwards")
    for times in ran["measured"].values():
        assert len(times) == 100 and times == sorted(times) and times[0] > 0


def test_a_cache_costs_memory_and_changes_nothing(ran):
    assert "tiny: 2,048 bytes a token, 0.3 MB" in ran.printed
    assert "gpt2: 73,728 bytes a token, 75.5 MB" in ran.printed
    assert "the same scores: True" in ran.printed and "tokens in the cache: 109 of 109" in ran.printed
    kept = l1_ref.KVCache(l1_ref.PRESETS["tiny"], 1)
    assert kept.keys.nbytes + kept.values.nbytes == 2_048 * 128


# Generation, the bug hunt, and streaming.


def test_a_batch_is_written_and_filled_up(ran):
    assert ran["batch"].shape == (3, 6) and len(ran["written"]) == 3
    for start, tale in zip(ran["starts"], ran["tales_of"](ran["written"]), strict=True):
        assert tale.startswith(start) and len(tale.split()) > 40
    again = ran["generate"](ran["model"], ran["batch"], 5, temperature=0.0)
    assert torch.equal(again, l1_ref.generate(ran["model"], ran["batch"], 5, temperature=0.0))


def test_the_broken_version_is_right_once_then_drifts_then_crashes(ran):
    broken, mended = ran["gaps"]["broken"], ran["gaps"]["mended"]
    assert broken[0] < 0.01 and min(broken[1:]) > 0.1 and max(mended) < 0.01 and len(broken) == len(mended) == 10
    assert f"then {broken[1]:.1f} and more" in ran.alt("Line chart, broken:") or broken[1] > min(broken[1:])
    assert f"reaches {max(broken):.1f}" in ran.alt("mended stays below 0.01")
    with pytest.raises(ValueError, match="max_seq_length"):
        ran["drift"](ran["broken"], n=20)
    cache, ids = l1_ref.KVCache(ran["model"].config, 1), ran["batch"][:1]
    for n in (6, 13):  # after the second step the first six tokens are in it twice
        with torch.no_grad():
            ran["broken"](ran["model"], ids, cache)
        assert cache.length == n
        ids = torch.cat((ids, ids[:, -1:]), dim=1)


def test_characters_come_whole(ran):
    unknown = "\ufffd"
    assert f"{[unknown, unknown, '!']} one by one" in ran.printed
    assert "['é', '!'] by stream_text" in ran.printed
    assert len(re.findall(ran["starts"][1], ran.printed)) == 2  # from the batch, and by stream


# Is it a tale?


def test_the_grammar_accepts_its_own_and_refuses_another_hero(ran):
    assert "a tale of the grammar: -44.3 nats" in ran.printed
    assert "with the hero renamed at the end: -inf" in ran.printed
    assert ran["accepted"]([*l1_ref.load_tales("validation")[:20], "No tale."]) == pytest.approx(20 / 21)
    assert ran["variety"](["a b c d e", "a b c d f"]) == pytest.approx(3 / 4)


def test_the_verbs_are_those_of_the_grammar(ran):
    rows = [row.split("/") for row in WORDS["trait"].strip().splitlines()[1:]]
    assert ran["verbs"] == {trait.strip(): verb.strip() for traits, verb in rows for trait in traits.split(",")}
    for tale in l1_ref.load_tales("validation")[:60]:
        assert ran["with_right_verbs"](tale) == tale
    wrong = 'Near the old mill lived a shy girl called Ada. "Oh no," sang Ada. They sang.'
    assert ran["with_right_verbs"](wrong) == wrong.replace("sang Ada", "whispered Ada")


def test_the_model_does_not_know_who_whispers(ran):
    told = ran.alt("Three bar charts over seven verbs")
    assert ran["apart"] < 0.03 and f"by {ran['apart']:.2f} at most" in told and len(ran["spoken"]) == 7
    first_id = dict(zip(ran["spoken"], ran["first_ids"], strict=True))
    n_tokens, rows, wanted = 0, [], []
    for tale in l1_ref.load_tales("validation"):
        ids = ran["as_ids"](tale)
        n_tokens += len(ids)  # each token of the tale, and its end
        found = re.search(r"(?:lived|knew) an? (\w+) \w+ called (\w+)", tale)
        spoken = [match.start() for match in re.finditer(rf"\b{ran['verbs'][found[1]]} {found[2]}\b", tale)]
        wanted += [
            (len(rows), len(ran["as_ids"](tale[: at - 1])) - 1, first_id[ran["verbs"][found[1]]]) for at in spoken
        ]
        rows += [(ids + [0] * 128)[:128]] if spoken else []  # what stands behind changes nothing before it
    with torch.no_grad():
        chances = torch.cat([l1_ref.softmax(ran["model"](each), dim=-1) for each in torch.tensor(rows).split(32)])
    lost = -sum(math.log(chances[place]) for place in wanted)
    metrics = ran["run"].metrics
    share = lost / n_tokens / (metrics["validation_loss"] - metrics["floor"])
    assert share == pytest.approx(0.4, abs=0.05)


def test_hot_tales_fail_top_p_saves_some_and_cold_ones_repeat(ran):
    written, right, cut = ran["good"].values()
    temperatures, variety = ran["temperatures"], ran["varied"]["verbs put right"]
    assert temperatures == [0.1, 1.0, 1.5] and len(ran["plain"][0]) == 32
    assert max(written) < 0.4 and all(b - a > 0.1 for a, b in zip(written[:2], right[:2], strict=True))
    assert min(right[:2]) > 0.2 and right[2] < 0.1 and cut[2] > right[2] + 0.08
    assert variety[0] < 0.7 < variety[1] and variety[2] > ran["true"] + 0.03
    assert variety[1] == pytest.approx(ran["true"], abs=0.04)
    assert ran["varied"]["top-p 0.9, verbs put right"][2] == pytest.approx(ran["true"], abs=0.04)
    told = [*temperatures, *written, *right, 0.9, *cut, *variety, ran["true"]]
    assert numbers(ran.alt("Line charts over the temperatures")) == [round(number, 2) for number in told]


# The figures.


def test_bars_stand_before_and_after_and_what_is_gone_is_crossed_out():
    figure = figures.reshaped({"one": (["a", "b", "c"], [0.5, 0.3, 0.2], [0.625, 0.375, 0.0])}, "title")
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [0.625, 0.375, 0.0, 0.5, 0.3, 0.2]
    assert [text.get_text() for text in axes.texts] == ["0.62", "0.38"]
    assert [list(line.get_ydata()) for line in axes.lines] == [[2]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["before", "after", "removed"]
    for panels in ({}, {"one": (["a"], [0.5, 0.5], [0.5, 0.5])}):
        with pytest.raises(ValueError, match="one label a bar"):
            figures.reshaped(panels)


def test_dots_stand_where_a_run_comes_again():
    (left, right) = figures.repeats({"loop": [1, 2, 3, 1, 2, 3, 1], "none": list(range(7))}, length=2).axes
    dots = left.lines[1]
    found = sorted(zip(dots.get_xdata().tolist(), dots.get_ydata().tolist(), strict=True))
    assert found == [(0, 3), (1, 4), (2, 5)] and len(right.lines[1].get_xdata()) == 0
    for panels in ({}, {"short": [1]}, {"one": [1, 2, 3], "two": [1, 2]}):
        with pytest.raises(ValueError, match="equally long"):
            figures.repeats(panels, length=2)


def test_curves_share_their_looks_and_have_a_line_to_compare_with():
    panels = {"one": {"a": [1, 2], "b": [2, 3]}, "two": {"b": [0, 1]}}
    left, right = figures.curves_over([0, 1], panels, "x", {"two": ("true", 0.5)}).axes
    assert left.lines[1].get_color() == right.lines[0].get_color() != left.lines[0].get_color()
    assert left.lines[0].get_marker() != left.lines[1].get_marker()
    assert [line.get_label() for line in right.lines] == ["b", "true"] and set(right.lines[1].get_ydata()) == {0.5}
    for panels in ({}, {"one": {}}, {"one": {"a": [1]}}):
        with pytest.raises(ValueError, match="there must be a curve"):
            figures.curves_over([0, 1], panels, "x")


def test_the_summary_names_what_exists():
    rows = re.findall(r"`l1_ref\.(\w+)`(?: and `l1_ref\.(\w+)`)?, in `l1_ref/(\w+)\.py`", prose(NAME))
    assert len(rows) == 7
    assert all(
        getattr(l1_ref, name).__module__ == f"l1_ref.{module}" for *names, module in rows for name in names if name
    )
    assert callable(l1_ref.load_gpt2)
