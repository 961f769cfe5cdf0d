"""What 02_embeddings says in prose and in alt texts, and what its figures draw."""

import math
import re
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from matplotlib.collections import PathCollection

import l1_ref
from l1_ref import checks, plots
from l1_ref.course import sources
from tests.test_notebooks import prose

NAME = "02_embeddings"
KINDS = {
    "girls and boys": "Ada Nell Rosa Tess Ivy Mina Dora Lulu Tom Otto Finn Milo Hugo Jack Ned Sam",
    "places": "bridge mill barn orchard tower market forest church canal station school well",
    "colours": "red blue green yellow white black pink orange spotted striped silver",
    "animals": "mouse frog mole fox dog owl goose crow goat pig",
    "numbers": "two three four five six seven eight nine ten eleven twelve",
    "days": "Monday Tuesday Thursday Friday Saturday Sunday",
    "manner": "sadly kindly slowly crossly proudly politely gladly wisely",
}


@pytest.fixture(scope="module")
def tiny():
    return l1_ref.load_run(l1_ref.DATA_DIR / "tiny")


@pytest.fixture(scope="module")
def tokens(tiny):
    return tiny.model.embedding.token.weight.detach()


@pytest.fixture(scope="module")
def places(tiny):
    return tiny.model.embedding.position.weight.detach()


def id_of(tiny, word):
    (i,) = tiny.tokenizer.encode(word)
    return i


def test_the_prose_is_short_enough_and_its_summary_names_what_exists():
    assert len(prose(NAME).split()) <= 2500
    named = re.findall(r"`l1_ref\.(\w+)`, in `l1_ref/(\w+)\.py`", prose(NAME))
    assert len(named) == 4
    for name, module in named:
        assert getattr(l1_ref, name).__module__ == f"l1_ref.{module}"


def test_the_notebook_shows_the_kinds_of_words_that_are_tested_here():
    code = " ".join(cell.source for cell in sources.load(NAME).cells if cell.cell_type == "code")
    assert all(f'"{kind}": "{words}"' in code for kind, words in KINDS.items())


def test_the_table_has_128_columns_and_a_thousand_rows(tokens):
    assert tokens.shape == (1000, 128) and "128 columns" in prose(NAME) and "128 numbers" in prose(NAME)


def test_a_neighbour_by_number_is_no_neighbour_by_meaning(tiny, tokens):
    for word in (" fox", " dog", " Monday"):
        i = id_of(tiny, word)
        near = F.cosine_similarity(tokens, tokens[i]).topk(10).indices
        assert i + 1 not in near


def test_an_id_that_occurs_twice_gets_two_gradients_and_one_that_does_not_gets_none():
    table = torch.randn(4, 3).requires_grad_()
    table[torch.tensor([2, 0, 2])].sum().backward()
    assert table.grad.tolist() == [[1.0] * 3, [0.0] * 3, [2.0] * 3, [0.0] * 3]


@pytest.mark.parametrize(("word", "kind", "n"), [(" Nell", 0, 5), (" fox", 3, 5), (" red", 2, 5), (" bridge", 1, 5)])
def test_names_stand_near_names_and_so_on(tiny, tokens, word, kind, n):
    i = id_of(tiny, word)
    near = F.cosine_similarity(tokens, tokens[i]).topk(n + 1).indices.tolist()
    assert near[0] == i
    assert {tiny.tokenizer.decode([j]).strip() for j in near[1:]} <= set(list(KINDS.values())[kind].split())


def test_the_next_ids_of_fox_and_dog_are_what_the_prose_says(tiny):
    assert id_of(tiny, " fox") - id_of(tiny, " dog") == 6
    following = [tiny.tokenizer.decode([id_of(tiny, word) + 1]) for word in (" fox", " dog")]
    assert following == [" late", "dd"] and '" late" and "dd" stand right behind them' in prose(NAME).replace("\n", " ")


def test_the_table_tells_girls_from_boys(tiny, tokens):
    names = KINDS["girls and boys"].split()
    girls, boys = (F.normalize(tokens[[id_of(tiny, f" {name}") for name in half]]) for half in (names[:8], names[8:]))
    tales = " ".join(l1_ref.load_tales("train"))
    assert all(f" girl called {name}" in tales for name in names[:8])
    assert all(f" boy called {name}" in tales for name in names[8:])
    assert not any(f" girl called {name}" in tales for name in names[8:])
    among = (girls @ girls.T)[~torch.eye(8, dtype=torch.bool)].mean().item()
    assert (round(among, 2), round((girls @ boys.T).mean().item(), 2)) == (0.47, 0.20)
    assert "mean cosine of 0.47" in prose(NAME) and "0.20" in prose(NAME)


def test_neighbours_on_the_map_need_not_be_neighbours_in_the_table(tiny, tokens):
    bridge, tuesday, mill = (tokens[id_of(tiny, word)] for word in (" bridge", " Tuesday", " mill"))
    cosines = [round(F.cosine_similarity(bridge, other, dim=0).item(), 2) for other in (tuesday, mill)]
    assert cosines == [0.02, 0.46] and "0.02" in prose(NAME) and "0.46" in prose(NAME)
    points = components(tiny, tokens)
    gaps = {word: (points[word] - points["bridge"]).norm().item() for word in points if word != "bridge"}
    assert min(gaps, key=gaps.get) == "Tuesday"


def components(tiny, tokens):
    words = [word for text in KINDS.values() for word in text.split()]
    rows = tokens[[id_of(tiny, f" {word}") for word in words]]
    centred = rows - rows.mean(0)
    points = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T
    return dict(zip(words, points, strict=True))


def test_on_the_map_words_of_one_kind_lie_together_and_the_kinds_apart(tiny, tokens):
    points = components(tiny, tokens)
    groups = [torch.stack([points[word] for word in text.split()]) for text in KINDS.values()]
    centres = torch.stack([group.mean(0) for group in groups])
    own = [torch.cdist(group, centres).argmin(1) == i for i, group in enumerate(groups)]
    assert torch.cat(own).float().mean() > 0.95 and len(torch.cat(own)) == 74


def test_two_directions_are_those_in_which_the_rows_differ_most(tiny, tokens):
    rows = torch.stack(list(components(tiny, tokens).values()))
    assert rows[:, 0].var() > rows[:, 1].var() and abs((rows[:, 0] * rows[:, 1]).mean()) < 1e-4


@pytest.fixture(scope="module")
def orders(tiny, tokens):
    texts = (" the dog followed Nell and", " Nell followed the dog and")
    return [tokens[torch.tensor(tiny.tokenizer.encode(text))] for text in texts]


def attend(model, x):
    block = model.blocks[0]
    return block.attention(block.norm_1(x[None]))[0, -1].detach()


def test_without_positions_the_order_of_the_earlier_tokens_is_lost(tiny, orders):
    first, second = orders
    assert len(first) == 5 and not torch.equal(first, second)
    torch.testing.assert_close(first.sum(0), second.sum(0), rtol=0, atol=1e-5)
    torch.testing.assert_close(attend(tiny.model, first), attend(tiny.model, second), rtol=0, atol=1e-5)


def test_with_positions_many_numbers_differ(tiny, orders, places):
    a, b = (attend(tiny.model, x + places[: len(x)]) for x in orders)
    assert ((a - b).abs() > 0.02).float().mean() > 0.5


def test_a_stack_of_layers_learns_something_of_the_order_from_the_mask_alone(tiny, orders):
    outputs = []
    for x in orders:
        x = x[None]
        for block in tiny.model.blocks:
            x = block(x)
        outputs.append(x[0, -1].detach())
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


def test_without_its_positions_the_model_is_far_worse():
    losses = []
    for scale in (1.0, 0.0):
        run = l1_ref.load_run(l1_ref.DATA_DIR / "tiny")
        run.model.embedding.position.weight.data.mul_(scale)
        ids = [[run.tokenizer.end_of_text, *run.tokenizer.encode(t)] for t in l1_ref.load_tales("validation")[:10]]
        with torch.no_grad():
            per_tale = [
                F.cross_entropy(run.model(x[None, :-1])[0], x[1:]).item() for x in (torch.tensor(i)[:128] for i in ids)
            ]
        losses.append(sum(per_tale) / len(per_tale))
    assert losses[1] > 2 * losses[0]
    assert round(math.log(1000), 2) == 6.91 and "6.91 nats" in prose(NAME)


def test_waves_say_how_far_two_places_are_apart_and_not_where_they_are():
    table = l1_ref.sinusoidal_positions(64, 32)
    dots = table @ table.T
    for distance in range(64):
        torch.testing.assert_close(dots.diagonal(distance), dots[0, distance].expand(64 - distance), rtol=0, atol=1e-4)
    assert dots[0, 0].item() == pytest.approx(16) and (dots[0, 1:] < 15.5).all()
    assert dots[0, 1:].argmax() == 0  # of all others, the neighbours come first
    assert [round(dots[0, d].item(), 2) for d in (1, 2, 8)] == [15.31, 13.73, 10.52]


def test_the_row_a_few_steps_ahead_is_a_linear_function_of_the_row_here():
    table = l1_ref.sinusoidal_positions(64, 32).double()
    solution = torch.linalg.lstsq(table[:-5], table[5:]).solution
    torch.testing.assert_close(table[:-5] @ solution, table[5:], rtol=0, atol=1e-4)


def test_the_first_pair_turns_by_a_radian_and_the_last_by_almost_a_ten_thousandth():
    row = l1_ref.sinusoidal_positions(2, 128)[1]
    angles = torch.atan2(row[0::2], row[1::2])
    assert angles[0].item() == pytest.approx(1) and 1e-4 < angles[-1] < 1.2e-4
    assert all(a > b for a, b in pairwise(angles.tolist()))


def test_in_the_picture_the_first_columns_change_fast_and_the_last_hardly():
    table = l1_ref.sinusoidal_positions(64, 32)
    changes = table.diff(dim=0).abs().mean(0)
    assert changes[0] > 0.5 and changes[-2:].max() < 1e-3
    assert table[:, 24::2].max() < 0.07 and table[:, 25::2].min() > 0.99  # the last four hands: sine 0, cosine 1
    assert round(math.tau) == 6  # steps of one radian in a full turn


def test_the_learned_places_became_similar_to_their_neighbours_but_not_the_first(places):
    directions = F.normalize(places, dim=-1)
    cosines = directions @ directions.T
    assert cosines.diagonal(1).mean() > 0.6 and cosines.diagonal(32).mean() < 0.1
    neighbours = cosines.diagonal(1)
    assert (round(neighbours[64:].mean().item(), 2), round(neighbours[:8].mean().item(), 2)) == (0.80, 0.23)
    assert neighbours[64] > 0.6 and neighbours[:8].max() < 0.5
    assert "0.80; for the first eight pairs it is 0.23" in " ".join(prose(NAME).split())
    waves = F.normalize(l1_ref.sinusoidal_positions(*places.shape), dim=-1)
    for table in (cosines, waves @ waves.T):
        assert table.diagonal().min() > table.triu(1).max() - 0.02
        means = [table.diagonal(d).mean().item() for d in (0, 1, 8, 32)]
        assert means == sorted(means, reverse=True)


def test_early_places_of_a_tale_hold_tokens_of_their_own_and_later_ones_much_the_same(tiny, ids_of_tales):
    ids = torch.tensor([i for tale in ids_of_tales for i in (tiny.tokenizer.end_of_text, *tale)])
    starts = (ids == tiny.tokenizer.end_of_text).nonzero()
    rows = ids[(starts + torch.arange(128)) % len(ids)]  # as in training: a tale from its mark on, and what follows
    counts = torch.stack([torch.bincount(column, minlength=1000) for column in rows.T]) / len(rows)
    moved = counts.diff(dim=0).abs().sum(1) / 2  # the share of tokens that must change from place to place
    assert counts[0, tiny.tokenizer.end_of_text] == 1
    assert moved[:8].mean() > 0.5 and moved[64:].mean() < 0.2


def test_the_trained_model_had_no_dropout(tiny):
    assert tiny.model.config.dropout == 0 and "(Ours had p = 0.)" in " ".join(prose(NAME).split())


def test_dropout_keeps_the_mean_in_training_and_does_nothing_in_eval_mode():
    dropout, ones = torch.nn.Dropout(0.25), torch.ones(100_000)
    dropped = dropout(ones)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.005)
    assert dropped.mean().item() == pytest.approx(1, abs=0.005)
    assert torch.equal(dropout.eval()(ones), ones)


def test_the_next_token_in_the_readers_hands_is_a_name(tiny):
    ids = [tiny.tokenizer.end_of_text, *tiny.tokenizer.encode("Near the old mill lived a shy girl called")]
    best = tiny.model(torch.tensor([ids]))[0, -1].argmax()
    assert tiny.tokenizer.decode([best.item()]).strip() in KINDS["girls and boys"]


# The bug hunt.


@pytest.fixture(scope="module")
def ids_of_tales(tiny):
    return [tiny.tokenizer.encode(tale) for tale in l1_ref.load_tales("train")]


def test_the_broken_version_finds_names_for_a_name_and_unseen_tokens_for_m(tiny, tokens, ids_of_tales):
    seen = {i for ids in ids_of_tales for i in ids}
    for word, all_seen in ((" Nell", True), ("M", False)):
        i = id_of(tiny, word)
        similarity = tokens @ tokens[i]
        similarity[i] = -math.inf
        broken = similarity.topk(5).indices.tolist()
        assert [j in seen for j in broken] == [all_seen] * 5
    nell = checks.nearest_tokens.reference(tokens, id_of(tiny, " Nell"), 5)
    assert {tiny.tokenizer.decode([j]).strip() for j in nell.tolist()} <= set(KINDS["girls and boys"].split())


def test_unseen_tokens_are_long_and_all_point_the_same_way(tokens, ids_of_tales):
    seen = {i for ids in ids_of_tales for i in ids}
    unseen = sorted(set(range(1000)) - seen)
    assert len(unseen) == 492
    assert tokens[unseen].norm(dim=-1).median() > 2 * tokens[sorted(seen)].norm(dim=-1).median()
    directions = F.normalize(tokens[unseen], dim=-1)
    assert (directions @ directions.T).mean() > 0.97
    # Away from everything that occurs: what follows the tales' contexts gets far lower scores from them.
    assert (directions.mean(0) @ F.normalize(tokens[sorted(seen)], dim=-1).T).mean() < 0.3


def test_m_and_its_mended_neighbours_begin_a_speech(tiny, tokens, ids_of_tales):
    i = id_of(tiny, "M")
    near = checks.nearest_tokens.reference(tokens, i, 5).tolist()
    quotes = {id_of(tiny, '"'), id_of(tiny, ' "')}
    pairs = [pair for ids in ids_of_tales for pair in pairwise(ids)]
    for j in (i, *near):
        before = [a for a, b in pairs if b == j]
        assert before and set(before) <= quotes
    assert {b for a, b in pairs if a == i} == {id_of(tiny, "y")}


# The figures.


def test_a_look_up_shows_every_number_and_frames_the_rows_that_were_picked():
    table = torch.arange(15.0).view(5, 3) / 10
    one_hot = F.one_hot(torch.tensor([3, 0, 3]), 5).float()
    (axes,) = plots.look_up(one_hot, table, one_hot @ table).axes
    texts = [text.get_text() for text in axes.texts]
    assert {"one-hot (T, V)", "table (V, C)", "vectors (T, C)", "×", "="} <= set(texts)
    assert texts.count("0.9") == 3  # in the table, and twice in the result
    assert texts.count("id") == 3  # above the grey numbers of each matrix
    frames = [(min(line.get_ydata()), max(line.get_ydata())) for line in axes.lines[2:]]
    assert all(low < top for (_, low), (top, _) in pairwise(frames))  # frames of neighbouring rows do not touch
    assert len(axes.images) == 3 and len(axes.lines) == 2 + 3
    with pytest.raises(ValueError, match=r"look_up needs \(T, V\), \(V, C\) and \(T, C\)"):
        plots.look_up(one_hot, table[:4], table)


def test_a_map_of_tokens_draws_every_point_and_names_those_with_room():
    groups = {"a": {"one": (0.0, 0.0), "two": (1.0, 1.0)}, "b": {"three": (0.5, 0.0), "four": (0.501, 0.0)}}
    (axes,) = plots.token_map(groups, "map").axes
    clouds = [each for each in axes.collections if isinstance(each, PathCollection)]
    assert [len(cloud.get_offsets()) for cloud in clouds] == [2, 2]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert {"one", "two"} <= {text.get_text() for text in axes.texts}
    with pytest.raises(ValueError, match="7 colours, got 8 kinds"):
        plots.token_map({str(i): {"x": (0.0, 0.0)} for i in range(8)})


def test_the_effect_of_order_is_one_point_for_each_number():
    a, b = torch.randn(6), torch.randn(6)
    figure = plots.order_effect({"same": (a, a), "other": (a, b)}, ("first", "second"))
    offsets = [axes.collections[0].get_offsets() for axes in figure.axes]
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["same", "other"]
    assert (offsets[0][:, 0] == offsets[0][:, 1]).all() and offsets[1][:, 1].tolist() == pytest.approx(b.tolist())
    assert figure.axes[0].get_xlabel() == "first" and figure.axes[0].get_ylabel() == "second"


def test_waves_show_the_table_and_the_dot_products_of_one_row():
    table = l1_ref.sinusoidal_positions(16, 8)
    picture, products = plots.waves(table, 3).axes[:2]
    assert picture.images[0].get_array().shape == (16, 8)
    assert products.lines[0].get_xdata() == pytest.approx((table @ table[3]).tolist(), abs=1e-5)
    assert picture.lines[0].get_ydata() == [3, 3]
    with pytest.raises(ValueError, match=r"position must be in 0\.\.15, got 16"):
        plots.waves(table, 16)


def test_tables_stand_above_their_similarities():
    tables = {"a": torch.randn(5, 4), "b": torch.randn(5, 4)}
    similarities = {title: table @ table.T for title, table in tables.items()}
    figure = plots.tables_compared(tables, similarities)
    shapes = [axes.images[0].get_array().shape for axes in figure.axes[:4]]
    assert shapes == [(5, 4), (5, 4), (5, 5), (5, 5)]
    with pytest.raises(ValueError, match="both must have the same titles"):
        plots.tables_compared(tables, {"a": torch.zeros(5, 5)})
