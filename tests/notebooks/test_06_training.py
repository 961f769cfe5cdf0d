"""The notebook on training: every number and claim of its prose and alt texts, and the figures' own functions."""

import math
import re

import pytest
import torch
import torch.nn.functional as F

import l1_ref
from l1_ref import plots
from l1_ref.plots import training as figures
from tests.notebook_runs import Ran, run
from tests.test_notebooks import prose

NAME = "06_training"


@pytest.fixture(scope="module")
def ran() -> Ran:
    return run(NAME, every=False)


@pytest.fixture(scope="module")
def space(ran) -> dict:
    return ran.space


# From scores to a loss.


def test_a_token_of_one_per_cent_costs_4_6_nats_and_one_of_ten_2_3():
    assert f"{math.log(100):.1f}" == "4.6" and f"{math.log(10):.1f}" == "2.3"
    for number in (r"\ln 100 = 4.6", r"\ln 10 = 2.3", r"\ln 1000 = 6.9"):
        assert number in prose(NAME)


@pytest.mark.parametrize("tale", range(8))
def test_many_tokens_are_nearly_free_and_the_mean_is_not_0(space, tale):
    figure, alt = space["draw_costs"](tale)
    (axes,) = figure.axes
    nats = [bar.get_height() for bar in axes.patches]
    assert len(nats) == 36 and f"{sum(n < 0.1 for n in nats)} of 36 tokens" in alt
    assert sum(n < 0.1 for n in nats) >= 12 and max(nats) > 1.5 and sum(nats) / 36 > 0.4
    assert f"with {max(nats):.1f}; the mean is {sum(nats) / 36:.2f}." in alt
    ids = space["tokenizer"].encode(space["tales"]["validation"][tale])[:36]
    x = torch.tensor([[space["tokenizer"].end_of_text, *ids[:-1]]])
    loss = l1_ref.cross_entropy(space["trained"](x), torch.tensor([ids])).item()
    assert sum(nats) / 36 == pytest.approx(loss, abs=1e-4)


def test_an_is_dear_and_makes_orange_free(space):
    (axes,) = space["draw_costs"](0)[0].axes
    tokens = [label.get_text() for label in axes.get_xticklabels()]
    at = tokens.index("␣an")
    assert tokens[at + 1] == "␣orange"
    assert axes.patches[at].get_height() > 2 and axes.patches[at + 1].get_height() < 0.1


def test_in_two_steps_a_small_probability_becomes_0():
    scores = torch.tensor([200.0, 0.0])
    assert scores.softmax(-1).log()[1] == -math.inf and scores.log_softmax(-1)[1] == -200


@pytest.mark.parametrize("s", [0.0, 0.1, 1.0])
def test_the_formula_of_a_smoothed_token(s):
    costs = -torch.randn(7).double().log_softmax(-1)
    loss = l1_ref.cross_entropy(-costs[None], torch.tensor([2]), s)
    assert loss == pytest.approx(((1 - s) * costs[2] + s * costs.mean()).item())


def test_without_smoothing_being_surer_always_pays_and_with_it_not(ran, space):
    rows = re.findall(r"smoothing (\S+), the true.*: (.*)", ran.printed)
    plain, smoothed = ([float(n) for n in re.findall(r"[\d.]+", numbers)] for _, numbers in rows)
    assert [s for s, _ in rows] == ["0.0", "0.1"] and plain == sorted(plain, reverse=True)
    assert min(smoothed) == smoothed[2] < smoothed[3] < smoothed[4]
    assert "logits (4, 64, 1000) targets (4, 64)\nas torch has it: True" in ran.printed


def test_perplexity_counts_tokens(space):
    losses = [space["metrics"]["curve"][0]["validation_loss"], space["metrics"]["validation_loss"]]
    fresh, trained = (space["perplexity"](loss) for loss in losses)
    assert 1000 < fresh < 1100 and trained < 2
    assert space["perplexity"](math.log(10)) == pytest.approx(10)


# Downhill: the rate, decay, AdamW, clipping.


def test_a_step_against_the_gradient_lowers_the_loss(ran):
    assert "lower: True" in ran.printed


def test_the_schedule_is_drawn_as_it_is(space):
    assert space["STEPS"] == 200
    for warmup in (20, 0, 100):
        figure, alt = space["draw_schedule"](warmup)
        to_zero, to_tenth = (line.get_ydata() for line in figure.axes[0].lines)
        assert len(to_zero) == 221 and max(to_zero) == to_zero[warmup] == 3e-3
        assert to_zero[200] == to_zero[220] == 0 and to_tenth[200] == to_tenth[220] == 3e-4
        assert f"to 0.003 in {warmup} steps" in alt and "at step 200" in alt
    mine = [space["cosine_lr"](step, 3e-3, 20, 200) for step in range(221)]
    assert mine == pytest.approx([l1_ref.cosine_lr(step, 3e-3, 20, 200) for step in range(221)])


def test_nearly_all_numbers_decay(ran, space):
    assert "decay 0.1: 537,600 numbers\ndecay 0.0:   3,584 numbers" in ran.printed
    assert l1_ref.count_parameters(space["tiny"]) == 537_600 + 3_584
    vectors = [p for p in l1_ref.L1Model(space["tiny"]).parameters() if p.ndim < 2]
    assert {p.unique().item() for p in vectors} == {0, 1}  # biases, and the scales of the norms


def test_some_gradients_are_a_hundred_times_others(space):
    torch.manual_seed(0)
    model = l1_ref.L1Model(space["tiny"])
    l1_ref.cross_entropy(model(space["x"]), space["y"]).backward()
    sizes = torch.cat([p.grad.flatten() for p in model.parameters()]).abs()
    low, high = sizes.quantile(torch.tensor([0.05, 0.95]))
    assert high > 100 * low


def test_the_predictions(ran, space):
    assert "1. ['0.010', '0.010', '0.010']\n2. 1.00\n3. 0.0" in ran.printed
    assert space["distance"]([1, -1] * 50) < 0.05
    # "seven steps in one direction, and nothing is left of the start"
    assert 6 < space["tiny"].init_std / 0.003 < 7 and l1_ref.TrainingConfig().peak_rate(space["tiny"]) == 0.003


def test_the_readers_step_is_torchs_after_500_steps(ran):
    assert "after 500 steps, as torch's: True" in ran.printed


def test_decay_is_a_share_of_the_weight_and_pulls_a_scale_to_0():
    p, state = torch.ones(3), {}
    for _ in range(5000):
        l1_ref.adamw_step(p, torch.zeros(3), state, 0.01, (0.9, 0.99), 1e-8, 0.1)
    assert torch.allclose(p, torch.full((3,), (1 - 0.01 * 0.1) ** 5000), atol=1e-4) and p.max() < 0.01


def test_a_factor_common_to_all_gradients_falls_out():
    ends = []
    for factor in (1.0, 0.1):
        p, state = torch.zeros(20), {}
        chance = torch.Generator().manual_seed(0)
        for _ in range(50):
            gradient = factor * torch.randn(20, generator=chance)
            l1_ref.adamw_step(p, gradient, state, 0.01, (0.9, 0.99), 1e-8, 0.0)
        ends.append(p)
    assert torch.allclose(*ends, atol=1e-4)


def test_a_spike_sits_in_both_means_for_many_steps():
    state = {}
    for step in range(30):
        gradient = torch.full((1,), 10.0 if step == 10 else 1.0)
        l1_ref.adamw_step(torch.zeros(1), gradient, state, 0.01, (0.9, 0.99), 1e-8, 0.0)
    assert state["exp_avg"] > 1.05 and state["exp_avg_sq"] > 1.5 * (1 - 0.99**30)


def test_clipping_leaves_a_length_of_max_norm(ran):
    before, after = map(float, re.findall(r"(?:length before:|and now: ) +([\d.]+)", ran.printed))
    assert before > 1.2 and after == pytest.approx(1, abs=1e-3)


# One batch, and the mean of means.


def test_one_batch_is_learned_down_to_its_floor(ran, space):
    losses, floor = space["losses"], space["batch_floor"](space["x"], space["y"])
    assert (space["x"][:, 0] == space["tokenizer"].end_of_text).all() and len(space["y"][:, 0].unique()) > 1
    assert losses[0] == pytest.approx(math.log(1000), abs=0.15)
    assert len(losses) == 60 and floor < losses[-1] < floor + 0.05 and min(losses) > floor
    assert f"to {losses[-1]:.3f} in 60 steps; its floor is {floor:.3f}." in ran.alt("Log chart: on one batch")


def test_the_floor_of_a_batch_counts_what_equal_beginnings_leave_open(space):
    x, y = torch.tensor([[9, 1], [9, 1], [9, 2]]), torch.tensor([[1, 4], [1, 5], [2, 6]])
    first = -(2 * math.log(2 / 3) + math.log(1 / 3))
    assert space["batch_floor"](x, y) == pytest.approx((first + 2 * math.log(2)) / 6)
    assert space["batch_floor"](x[:1], y[:1]) == 0


def test_without_a_causal_mask_the_loss_falls_below_the_floor(space, monkeypatch):
    def unmasked(q, k, v, *more, **settings):
        return F.scaled_dot_product_attention(q, k, v)

    torch.manual_seed(0)
    model = l1_ref.L1Model(space["tiny"])
    for block in model.blocks:
        monkeypatch.setattr(block.attention, "forward", _seeing(block.attention, unmasked))
    optimizer = l1_ref.build_optimizer(model, 3e-3)
    losses = [l1_ref.train_step(model, space["x"], space["y"], optimizer).item() for _ in range(60)]
    assert losses[-1] < 0.7 * space["lowest"]


def _seeing(attention, attend):
    """Return a forward pass of an attention layer in which every position sees the whole row."""

    def forward(x, cache=None):
        q, k, v = (l1_ref.split_heads(part, 4) for part in attention.qkv(x).chunk(3, dim=-1))
        return attention.proj(l1_ref.merge_heads(attend(q, k, v)))

    return forward


def test_the_broken_mean_weighs_a_small_batch_like_a_large_one(ran, space):
    broken, right = map(float, re.search(r"broken: ([\d.]+) nats .* gives ([\d.]+)", ran.printed).groups())
    assert space["sizes"][1] == 12 and space["sizes"][0] > 1000 and broken > right + 0.2
    assert f"mended: {right:.2f} nats" in ran.printed and "and is in it now: False" in ran.printed
    assert space["mean_loss"](space["trained"], space["batches"]) == pytest.approx(
        l1_ref.evaluate(space["trained"], space["batches"])
    )


# Towards the floor.


def test_the_floor_is_that_of_the_committed_run(space):
    assert space["floor"] == pytest.approx(space["metrics"]["floor"])
    assert space["n_tokens"] == len(space["corpus"].validation) - 1


def test_the_short_run_falls_and_the_full_one_is_close_to_the_floor(ran, space):
    short, full, floor = space["short"], space["metrics"], space["floor"]
    found = [point["validation_loss"] for point in short["curve"]]
    assert found == sorted(found, reverse=True) and 2 * floor < found[-1] < 1.8 and short["steps"] == 200
    assert f"falls from {found[0]:.1f} to {found[-1]:.2f}; the floor is {floor:.2f}" in ran.alt("Line chart: in 200")
    assert full["steps"] == 4000 and floor < full["validation_loss"] < 1.1 * floor
    assert all(point["training_loss"] > point["validation_loss"] for point in short["curve"][1:])
    assert f"4,000 steps, 8,192,000 tokens: loss {full['validation_loss']:.3f}" in ran.printed


def test_the_tale_begins_as_asked_in_words(ran, space):
    tale = space["tokenizer"].decode(space["ids"][0, 1:].tolist())
    assert tale.startswith("Near the little well lived") and "".join(plots.wrapped(tale)) in ran.printed
    known = set(re.findall(r"\w+", " ".join(space["tales"]["train"])))
    words = re.findall(r"\w+", tale.split("<|endoftext|>")[0])
    assert sum(word in known for word in words) > 0.85 * len(words)


# Warm-up and clipping.


def test_both_are_best_and_neither_is_far_above(space, ran):
    ends = space["ends"]
    assert list(ends) == ["both", "no warm-up", "no clipping", "neither"]
    assert max(ends["both"]) - min(ends["both"]) < 0.3
    assert min(ends["no warm-up"]) > max(ends["both"]) + 0.1
    assert min(ends["neither"]) > max(ends["both"]) + 0.5
    lost = [without - clipped for without, clipped in zip(ends["no clipping"], ends["both"], strict=True)]
    assert -0.05 < min(lost) < 0.15 and max(lost) > 0.3
    told = "; ".join(f"{name}: {', '.join(f'{end:.2f}' for end in found)}" for name, found in ends.items())
    assert told in ran.alt("Line chart. Mean loss")


def test_nothing_explodes_and_without_warm_up_the_start_is_false(space):
    runs = space["runs"]
    assert all(max(losses) < 8 for each in runs.values() for losses, _ in each)

    def mean(name, step):
        return sum(losses[step] for losses, _ in runs[name]) / 3

    for hasty, careful in (("no warm-up", "both"), ("neither", "no clipping")):
        assert mean(hasty, 7) < mean(careful, 7) - 0.3 and mean(hasty, 34) > mean(careful, 34)


def test_most_gradients_of_the_whole_recipe_are_clipped(space):
    lengths = [length for _, lengths in space["runs"]["both"] for length in lengths]
    assert sum(length > 1 for length in lengths) > 0.9 * len(lengths)


def test_the_unlucky_run_met_a_spike_and_stays_behind(space, ran):
    losses, lengths = space["pair"]["no clipping"]
    step = lengths.index(max(lengths)) + 1
    assert max(lengths) > 5 * sorted(lengths)[30] and space["runs"]["no clipping"][space["unlucky"]][0] is losses
    clipped, _ = space["pair"]["both"]
    gaps = [loss - other for loss, other in zip(losses, clipped, strict=True)]
    first = next(i for i, length in enumerate(lengths) if length > 5 * sorted(lengths)[30])
    assert max(map(abs, gaps[:first])) < 0.2 < min(gaps[step:])
    ends = space["ends"]
    assert ends["no clipping"][space["unlucky"]] > ends["both"][space["unlucky"]] + 0.3
    told = ran.alt("Two charts of seed")
    assert f"is {max(lengths):.1f}, at step {step}" in told
    assert f"no clipping {ends['no clipping'][space['unlucky']]:.2f}." in told


def test_at_a_third_of_the_rate_it_does_not_matter_but_all_are_slower(space):
    ends = [sum(space["short_run"](0, *kind, lr_peak=1e-3)[0][-10:]) / 10 for kind in space["KINDS"].values()]
    assert max(ends) - min(ends) < 0.3 and min(ends) > max(space["ends"]["both"]) + 0.5


# The figures.


def test_each_token_has_its_bar():
    (axes,) = figures.token_losses([" a", "b"], [2.0, 1.0], "title").axes
    assert [bar.get_height() for bar in axes.patches] == [2, 1]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["␣a", "b"]
    assert axes.lines[0].get_label() == "mean: 1.50 nats" and axes.get_title(loc="left") == "title"
    for tokens, nats in (([], []), (["a"], [1.0, 2.0])):
        with pytest.raises(ValueError, match="one loss a token"):
            figures.token_losses(tokens, nats)


def test_schedules_begin_at_step_0():
    (axes,) = figures.schedules({"one": [0.0, 0.5], "two": [1.0, 1.0]}, "title").axes
    assert [list(line.get_xdata()) for line in axes.lines] == [[0, 1], [0, 1]] and axes.get_ylim()[0] == 0
    with pytest.raises(ValueError, match="at least one schedule"):
        figures.schedules({})


def test_runs_are_thin_lines_and_their_mean_a_thick_one():
    (axes,) = figures.training_runs({"one": [[3.0, 1.0], [5.0, 2.0]], "two": [[4.0, 4.0]]}, floor=0.5, log=True).axes
    assert [list(line.get_ydata()) for line in axes.lines[:4]] == [[3, 1], [5, 2], [4, 1.5], [4, 4]]
    assert axes.lines[2].get_linewidth() > axes.lines[0].get_linewidth() and axes.get_yscale() == "log"
    assert axes.lines[4].get_label() == "floor 0.500" and list(axes.lines[2].get_xdata()) == [1, 2]
    for runs in ({}, {"one": []}, {"one": [[]]}, {"one": [[1.0], [1.0, 2.0]]}):
        with pytest.raises(ValueError, match="runs of one length"):
            figures.training_runs(runs)


def test_lengths_stand_above_the_losses_of_the_same_runs():
    upper, lower = figures.gradient_norms({"one": ([3.0, 2.0], [1.0, 30.0])}, max_norm=1.0).axes
    assert list(upper.lines[0].get_ydata()) == [1, 30] and list(lower.lines[0].get_ydata()) == [3, 2]
    assert upper.lines[1].get_label() == "max_norm 1" and upper.get_yscale() == "log"
    for runs in ({}, {"one": ([], [])}, {"one": ([1.0], [1.0, 2.0])}):
        with pytest.raises(ValueError, match="as many losses as lengths"):
            figures.gradient_norms(runs, 1.0)
