"""What 03_attention says in prose and alt texts, and its figures."""

import math
import re
import warnings

import pytest
import torch
from matplotlib.figure import Figure

import l1_ref
from l1_ref import plots
from tests.notebook_runs import Ran, run
from tests.test_notebooks import prose

NAME = "03_attention"
PROSE = prose(NAME)


@pytest.fixture(scope="module")
def ran() -> Ran:
    return run(NAME, every=False)


def softmax(*scores):
    return l1_ref.softmax(torch.tensor(scores), 0)


# Why look back.


def test_the_name_stands_twice_in_the_tale_almost_sixty_tokens_apart(ran):
    assert ran["tale"].count("Nell") == 2 and "whispered Nell" in ran["tale"]
    assert 55 < ran["back_at"] - ran["name_at"] < 60
    assert PROSE.count("almost sixty tokens") == 3


def test_every_name_is_one_token_and_every_tale_brings_its_own_back(ran):
    tokenizer, names = ran["tokenizer"], ran["names"]
    assert all(len(tokenizer.encode(" " + name)) == 1 for name in [*names, *ran["girls"]])
    for tale in ran["tales"]:
        name = re.search(r"called (\w+)", tale)[1]
        inside = {i for i in tokenizer.encode(tale) if i in ran["name_ids"]}
        assert inside == set(tokenizer.encode(" " + name)) and tale.count(name) >= 2


def test_the_prediction_follows_the_name_of_the_first_sentence(ran):
    for girl in ("Nell", "Rosa", "Mina"):
        chances = ran["next_chances"](ran["beginning"].replace("Nell", girl))
        assert chances.argmax() == ran["tokenizer"].encode(" " + girl)[0] and chances.max() > 0.99
        assert ran["beginning"].count("Nell") == 1


def test_the_first_picture_shows_five_of_the_eight_names_for_girls(ran):
    kinds = {"girl": set(), "boy": set()}
    for tale in ran["tales"]:
        kind, name = re.search(r"(girl|boy) called (\w+)", tale).groups()
        kinds[kind].add(name)
    assert len(kinds["girl"]) == len(kinds["boy"]) == 8 and sorted(kinds["girl"] | kinds["boy"]) == ran["names"]
    assert len(ran["girls"]) == 5 and set(ran["girls"]) < kinds["girl"]
    assert "eight names for girls (the first picture shows five) or the eight for boys" in PROSE


# The toy sentence.


def test_the_toys_columns_mean_what_the_prose_says(ran):
    q, k = ran["q"], ran["k"]
    assert ran["words"] == ["Ada", "found", "a", "bun"]
    assert k[0].argmax() == 0 and k[1].argmax() == 1  # a person, an action
    assert (q @ k.T)[1].argmax() == 0  # "found" finds Ada
    assert torch.equal(l1_ref.softmax(q @ k.T, dim=-1)[2], torch.full((4,), 0.25))  # "a" asks nothing
    assert l1_ref.softmax(q @ k.T, dim=-1)[0, 1] > 0.5  # "Ada" looks ahead
    assert (k[2] == 0).all()
    assert q.shape == k.shape == ran["v"].shape == (4, 2)
    assert q[0].argmax() == 1 and q[1].argmax() == 0 and (q[2] == 0).all() and (q[3] > 0).all()  # what each asks for
    assert (k[3] < 0).all()  # neither: negative in both columns


def test_at_45_degrees_two_keys_share(ran):
    query = 2 * torch.tensor([math.cos(math.pi / 4), math.sin(math.pi / 4)])
    weights = l1_ref.softmax(ran["k"] @ query, dim=-1)
    assert torch.allclose(weights[0], weights[1]) and weights[:2].sum() > 0.95
    assert 45 in ran.sliders[0][1]["angle"]


def test_what_found_and_a_hold_after_attention(ran):
    ada, found, a, _ = ran["mixed"].tolist()
    v = ran["v"]
    assert ada == v[0].tolist() and found[0] > 9
    assert torch.allclose(torch.tensor(a), v[:3].mean(0), atol=1e-5)
    numbers = [x for row in ran["mixed"].tolist() for x in row]
    assert all(abs(10 * x % 1 - 0.5) > 0.02 for x in numbers)  # far from where rounding turns


# The mask, and the division.


def test_the_second_mask_is_the_end_of_the_first():
    assert torch.equal(l1_ref.causal_mask(2, 5), l1_ref.causal_mask(5, 5)[-2:])


def test_dot_products_are_as_spread_as_the_root_of_the_width(ran):
    for D, (dots, found) in ran["measured"].items():
        assert found["D"] == D and dots.std().item() / math.sqrt(D) == pytest.approx(1, abs=0.045)


def test_variances_of_products_add_up_to_the_width():
    q, k = torch.randn(2, 100_000, 16, generator=torch.Generator().manual_seed(0))
    assert (q * k).mean().item() == pytest.approx(0, abs=0.01) and (q * k).var().item() == pytest.approx(1, abs=0.02)
    assert (q * k).sum(-1).var().item() == pytest.approx(16, rel=0.02)


def test_undivided_weights_saturate_and_their_gradient_falls_away_from_16_on(ran):
    records = [record for _, record in ran["measured"].values()]
    largest, gradient, divided = ([r[key] for r in records] for key in ("largest", "gradient", "gradient divided"))
    assert largest == sorted(largest) and largest[-1] > 0.9
    assert [r["D"] for r in records][2] == 16 and "falls away from D = 16 on" in PROSE
    assert gradient[1] > 0.95 * divided[1] and gradient[2] < 0.8 * divided[2]  # not at 4, but at 16
    assert gradient[2:] == sorted(gradient[2:], reverse=True) and gradient[-1] < 0.001
    for key, spread in (("largest divided", 0.05), ("gradient divided", 0.05)):
        values = [r[key] for r in records]
        assert max(values) - min(values) < spread


def test_dividing_by_1_changes_nothing(ran):
    _, record = ran["measured"][1]
    assert record["gradient"] == record["gradient divided"] and record["largest"] == record["largest divided"]


def test_undivided_most_queries_learn_next_to_nothing_and_a_few_get_large_jolts():
    generator, n, D = torch.Generator().manual_seed(0), 300, 1024
    q, k = (torch.randn(n, count, D, generator=generator) for count in (1, 16))
    upstream, norms = torch.randn(n, 16, generator=generator), []
    for scale in (1.0, math.sqrt(D)):
        queries = q.clone().requires_grad_()
        (l1_ref.softmax((queries @ k.mT).squeeze(1) / scale, dim=-1) * upstream).sum().backward()
        norms.append(queries.grad.norm(dim=-1).flatten())
    undivided, divided = norms
    assert (undivided < 0.01).float().mean() > 0.5 and divided.min() > 0.01
    assert undivided.max() > 10 * divided.max() and (undivided > divided.max()).float().mean() < 0.3


def test_the_tools_of_attention_weights_do_what_the_prose_says():
    x = torch.zeros(1, 2, 3, 4)
    assert x.transpose(-2, -1).shape == (1, 2, 4, 3)
    assert x.permute(3, 2, 1, 0).shape == (4, 3, 2, 1)  # what .T does, which warns for four axes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert x.T.shape == (4, 3, 2, 1)
    mask = l1_ref.causal_mask(3, 4)
    assert torch.equal(x.masked_fill(~mask, 5.0) == 5.0, ~mask.expand(1, 2, 3, 4))
    lowest = torch.tensor(torch.finfo(torch.float32).min)
    assert lowest.isfinite() and torch.nextafter(lowest, torch.tensor(-math.inf)).isinf() and lowest.exp() == 0


def test_the_gradient_is_what_autograd_and_the_formula_say(ran):
    scores = torch.tensor([8.0, 0.0, -1.0, 2.0], requires_grad=True)
    weights, upstream = l1_ref.softmax(scores, 0), torch.tensor([1.0, -2.0, 0.5, 1.0])
    (weights * upstream).sum().backward()
    p = weights.detach()
    assert torch.allclose(scores.grad, p * (upstream - (p * upstream).sum()), atol=1e-6)


# Predict before you run, and the bug hunt.


def test_the_answers_of_the_prediction(ran):
    assert "1. [1.0, 0.0, 0.0, 0.0]" in ran.printed
    assert "2. [0.33, 0.33, 0.33, 0.0]" in ran.printed
    assert "3. last output changed: False" in ran.printed


def test_the_broken_function_leaks_and_the_mended_one_does_not(ran):
    above = torch.ones(5, 5).triu(1).bool()
    broken, mended = ran["influence"](ran["broken"]), ran["influence"](ran["causal_attention"])
    assert (broken[above] > 0.1).all() and (mended[above] == 0).all()
    assert (broken[~above] > 0.1).all() and (mended[~above] > 0.1).all()
    assert torch.allclose(broken[-1], mended[-1], atol=1e-5)


def test_the_broken_weights_above_the_diagonal_are_zero_and_rows_do_not_sum_to_one(ran):
    generator = torch.Generator().manual_seed(3)
    q, k = (torch.randn(1, 1, 4, 4, generator=generator) for _ in range(2))
    weights = ran["broken"](q, k, torch.eye(4).expand(1, 1, 4, 4))[0, 0]  # values that show the weights
    assert torch.equal(weights, weights.tril()) and (weights.sum(-1)[:-1] < 0.99).all()


# Heads.


def test_a_single_view_puts_one_token_and_a_piece_of_the_next_into_head_0(ran):
    numbers = (10 * torch.arange(4).unsqueeze(1) + torch.arange(6)).unsqueeze(0)
    assert numbers.view(1, 3, 4, 2)[0, 0].flatten().tolist() == [0, 1, 2, 3, 4, 5, 10, 11]
    assert l1_ref.split_heads(numbers.float(), 3)[0, 0].tolist() == [[10 * t, 10 * t + 1] for t in range(4)]
    assert "00 01, 02 03, 04 05 and 10 11 into head 0" in ran.alt("Diagram")


def test_view_refuses_what_was_transposed():
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        torch.randn(2, 3, 4, 5).transpose(1, 2).view(2, 4, 15)


def test_scores_of_all_heads_cost_as_much_as_those_of_one():
    T, S, C, H = 7, 9, 12, 3
    assert H * (T * S * (C // H)) == T * S * C


def test_the_readers_layer_takes_the_trained_weights(ran):
    assert ran.printed.count("<All keys matched successfully>") == 2
    assert "same output: True" in ran.printed
    assert ran["model"].blocks[0].attention is ran["trained"]


# What trained heads look at.


def test_watching_changes_nothing(ran):
    ids = ran["as_ids"](ran["tale"])
    chances, weights = ran["watch"](ids, l1_ref.causal_mask(len(ids), len(ids)))
    with torch.no_grad():
        expected = l1_ref.softmax(ran["model"](torch.tensor([ids]))[0], dim=-1)
    assert torch.allclose(chances, expected, atol=1e-5)
    assert weights.shape == (2, 4, len(ids), len(ids)) and torch.equal(weights, ran["tale_weights"])


def test_the_heads_look_where_the_prose_says(ran):
    row, tokens = ran["tale_weights"][:, :, ran["back_at"] - 1], ran["tokens"]
    assert row[0, 1].argmax() == ran["name_at"] and ran["best"] == (0, 1)
    assert 0.2 < row[1, 0, ran["name_at"]] < row[0, 1, ran["name_at"]]
    assert tokens[row[1, 2].argmax()] == " girl" and row[1, 2].max() > 0.5


def test_the_sliders_offer_every_place_layer_and_head(ran):
    draw, choices = ran.sliders[-1]
    assert sorted(choices["place"]) == list(range(1, len(ran["tokens"])))
    assert sorted(choices["layer"]) == [0, 1] and sorted(choices["head"]) == [0, 1, 2, 3]
    figure, alt = draw(place=30, layer=1, head=3)
    assert isinstance(figure, Figure) and "layer 1, head 3" in alt
    for each, choices in ran.sliders[:-1]:
        ((name, values),) = choices.items()
        assert all(isinstance(each(**{name: value})[0], Figure) for value in values[:2])


def test_one_head_looks_for_the_name_after_words_of_speaking(ran):
    speak, other, rest = ran["means"].values()
    assert list(ran["means"]) == ["after a word of speaking", "after another word", "name not next"]
    assert speak.flatten().argmax() == 1 and speak[0, 1] > 0.4
    assert other[0, 1] < 0.15 and rest.max() < 0.05
    assert len(ran["tales"]) == 250 and "all 250 validation tales" in PROSE


def test_at_most_other_places_it_looks_elsewhere_and_the_name_is_found_all_the_same(ran):
    starts, looks, sure = [], [], []
    for ids in (ran["as_ids"](tale)[:128] for tale in ran["tales"]):
        chances, weights = ran["watch"](ids, l1_ref.causal_mask(len(ids), len(ids)))
        start, kinds = ran["sorted_places"](ids)
        places = kinds["after another word"]
        looks += weights[0, 1, places, start].tolist()
        sure += chances[places, ids[start]].tolist()
        starts += [ran["tokenizer"].decode([ids[place]]).startswith(".") for place in places]
    elsewhere = [weight < 0.05 for weight in looks]
    assert sum(elsewhere) > 0.6 * len(looks)
    assert sum(away for away, start in zip(elsewhere, starts, strict=True) if start) > 0.85 * sum(starts) > 100
    assert sum(sure) / len(sure) == pytest.approx(0.998, abs=0.0005) and "0.998 there" in PROSE
    assert f"after another word, {len(sure)} places: the right name has probability 0.998" in ran.printed


def test_the_kinds_of_places_are_told_apart(ran):
    ids = ran["as_ids"](ran["tale"])
    start, kinds = ran["sorted_places"](ids)
    assert (start, kinds["after a word of speaking"]) == (ran["name_at"], [ran["back_at"] - 1])
    assert sum(map(len, kinds.values())) == len(ids) - 2 - start


def test_the_mask_that_hides_the_name_says_what_the_model_uses(ran):
    assert list(ran["hiding"](3, 0)) == ["nowhere", "from the last place", "from all later places"]
    _, here, ever = ran["hiding"](4, 1).values()
    assert here.long().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 1]]
    assert ever.long().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]
    nothing, place, all_later = ran["right"].tolist()
    assert nothing > 0.99 and 0.4 < place < 0.6 and 0.07 < all_later < 0.15  # all, about half, about a tenth
    assert ran["some"].min() > 0.98 and "55 tales" in ran.printed
    assert all_later < 1 / 8  # no better than guessing among eight names


def test_hidden_or_not_the_model_tells_a_girls_name_from_a_boys(ran):
    kind_of = dict(re.search(r"(girl|boy) called (\w+)", tale).groups()[::-1] for tale in ran["tales"])
    ids_of = {
        kind: [ran["tokenizer"].encode(" " + n)[0] for n in kind_of if kind_of[n] == kind] for kind in ("girl", "boy")
    }
    for tale in ran["tales"][:60]:
        ids, kind = ran["as_ids"](tale), kind_of[re.search(r"called (\w+)", tale)[1]]
        start, back = [t for t, i in enumerate(ids) if i in ran["name_ids"]][:2]
        if ids[back - 1] in ran["speaking"]:
            for mask in ran["hiding"](back, start).values():
                assert ran["watch"](ids[:back], mask)[0][-1][ids_of[kind]].sum() > 0.9


def test_a_cell_with_a_slider_can_run_again_at_the_end(ran):
    for draw, choices in ran.sliders:
        figure, _ = draw(**{name: values[-1] for name, values in choices.items()})
        assert isinstance(figure, Figure)
    assert len(ran["tokens"]) == len(ran["ids"]) and ran["at"] == ran["back_at"] - 1  # later cells leave them alone


def test_the_trained_model_has_two_layers_of_four_heads(ran):
    assert (ran["model"].config.n_layers, ran["model"].config.n_heads) == (2, 4)
    assert "two attention layers, 0 and 1, with four heads each" in PROSE


def test_the_summary_names_what_exists():
    named = re.findall(r"`l1_ref\.(\w+)`(?: and `l1_ref\.(\w+)`)?, in `l1_ref/(\w+)\.py`", PROSE)
    assert len(named) == 5
    for *names, module in named:
        assert all(getattr(l1_ref, name).__module__ == f"l1_ref.{module}" for name in names if name)


# The figures.


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_arrows_stand_beside_the_weights_of_their_dot_products():
    keys = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    figure = plots.dot_products(torch.tensor([1.0, 0.0]), keys, ["x", "zero"], softmax(2.0, 0.0))
    plane, bars = figure.axes
    assert {"x", "zero", "query"} <= set(texts(plane))
    assert bars.spines["bottom"].get_bounds() == (0, 1)  # no weight is larger
    assert [t.split("  ")[0] for t in texts(bars)] == ["0.88", "0.12"] and "q·k = 2.0" in texts(bars)[0]
    with pytest.raises(ValueError, match=r"query must be \(2,\).*for 2 labels"):
        plots.dot_products(torch.zeros(3), keys, ["x", "zero"], softmax(2.0, 0.0))


def test_labels_of_arrows_keep_their_distance_at_every_angle(ran):
    draw, choices = ran.sliders[0]
    for angle in choices["angle"]:
        places = [text.get_position() for text in draw(angle)[0].axes[0].texts if text.get_text()]
        assert len(places) == 5
        for i, place in enumerate(places):
            assert all(math.dist(place, other) > 0.3 for other in places[:i]), angle


def test_a_query_of_length_zero_and_keys_under_the_query_are_labelled():
    keys = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    for query in (torch.zeros(2), torch.tensor([2.0, 0.0])):
        figure = plots.dot_products(query, keys, ["x", "zero"], softmax(0.0, 0.0))
        assert {"x", "zero", "query"} <= set(texts(figure.axes[0]))


def test_masks_show_every_place_and_where_the_queries_stand():
    figure = plots.masks({"one": l1_ref.causal_mask(2, 3), "two": l1_ref.causal_mask(2, 2)})
    assert texts(figure.axes[0]) == ["✓", "✓", "×", "✓", "✓", "✓"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["1", "2"]
    with pytest.raises(ValueError, match="a mask must be a boolean matrix"):
        plots.masks({"floats": torch.ones(2, 2)})


def test_heat_maps_print_each_number_and_close_what_is_masked():
    figure = plots.heat_maps({"m": torch.tensor([[1.0, -math.inf], [-0.5, 0.25]])}, ["a", " b"], ["c", "d"], "q", "k")
    (axes,) = figure.axes
    assert texts(axes) == ["1.00", "-∞", "-0.50", "0.25"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "␣b"]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("q", "k")
    with pytest.raises(ValueError, match=r"labels are for a matrix \(1, 1\), got \(2, 2\) for 'm'"):
        plots.heat_maps({"m": torch.ones(2, 2)}, ["a"], ["b"])


def test_heat_maps_of_nothing_but_masked_entries_are_drawn():
    figure = plots.heat_maps({"m": torch.full((1, 2), -math.inf)}, ["a"], ["c", "d"])
    assert texts(figure.axes[0]) == ["-∞", "-∞"]


def test_saturation_draws_what_was_measured(ran):
    records = [record for _, record in ran["measured"].values()]
    figure = plots.saturation(records, 16, ran["measured"][16][0])
    histogram, largest, gradient = figure.axes
    assert histogram.get_xlim() == (-96, 96)  # three standard deviations of the widest
    assert largest.lines[0].get_ydata().tolist() == [record["largest"] for record in records]
    assert gradient.lines[1].get_ydata().tolist() == [record["gradient divided"] for record in records]
    with pytest.raises(ValueError, match="got D=3"):
        plots.saturation(records, 3, torch.zeros(2))


def test_the_diagram_of_heads_shows_each_entry_once_in_each_of_four_stages():
    numbers = (10 * torch.arange(2).unsqueeze(1) + torch.arange(4)).unsqueeze(0)
    shown = [text for text in texts(plots.heads_diagram(numbers, 2).axes[0]) if text.isdigit()]
    assert sorted(shown) == sorted(4 * [f"{n:02d}" for n in numbers.flatten().tolist()])
    for wrong, n_heads in ((numbers.expand(2, 2, 4), 2), (numbers, 3)):
        with pytest.raises(ValueError, match=r"x must be \(1, T, C\)"):
            plots.heads_diagram(wrong, n_heads)


def test_heads_over_a_text_have_a_row_each():
    figure = plots.heads_over_text(["a", " b", "c"], torch.rand(2, 2, 3), 1)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "␣b", "c"]
    assert axes.get_yticklabels()[-1].get_text() == "layer 1, head 1"
    with pytest.raises(ValueError, match="got 2 tokens, 3 weights"):
        plots.heads_over_text(["a", "b"], torch.rand(2, 2, 3), 1)


def test_a_shaded_text_breaks_its_lines_where_they_are_full():
    tokens = ["one", " two", " three", "\n", "four"]
    figure = plots.weights_over_text(tokens, softmax(1.0, 2.0, 0.0, 0.0, 0.0), 2, "title", n_wide=8)
    shown = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    assert shown["one"] == (0, 0) and shown[" two"] == (3, 0) and shown[" three"] == (0, 1) and shown["⏎"] == (6, 1)
    with pytest.raises(ValueError, match="got 5 tokens, weights"):
        plots.weights_over_text(tokens, torch.zeros(4), 2)
