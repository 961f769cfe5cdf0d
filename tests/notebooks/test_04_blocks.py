"""The notebook on blocks: every number and claim of its prose and alt texts, and the figures' own functions."""

import math
import re

import pytest
import torch
from torch import nn

import l1_ref
from l1_ref.plots import blocks as figures
from tests.notebook_runs import Ran, run
from tests.test_notebooks import prose

NAME = "04_blocks"


@pytest.fixture(scope="module")
def ran() -> Ran:
    return run(NAME)


@pytest.fixture(scope="module")
def space(ran) -> dict:
    return ran.space


# A deep stack multiplies, and layer normalisation.


@pytest.mark.parametrize("gain", [0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5])
def test_a_stack_multiplies_and_a_normalised_one_does_not(space, gain):
    plain, normed = space["spreads"](gain, normalise=False), space["spreads"](gain, normalise=True)
    assert len(plain) == 31 and max(abs(spread - 1) for spread in normed) < 0.01
    # Nearly a straight line on a logarithmic axis: every third of the way multiplies by about gain to the power of 10.
    for begin in (0, 10, 20):
        assert plain[begin + 10] / plain[begin] == pytest.approx(gain**10, rel=0.1)
    assert min(plain) > 1e-6 and max(plain) < 1e6


def test_thirty_layers_are_what_the_first_cell_prints(ran):
    for gain, power in (("0.8", "0.0012"), ("1.0", "1"), ("1.2", "2.4e+02")):
        assert f"{gain} to the power of 30 = {power}\n" in ran.printed
    assert "goes from 1 to 2.6e+02 in 30 layers" in ran.alt("Log chart, gain 1.2")


def test_gradients_pass_the_same_matrices_and_shrink_or_grow_with_them():
    for gain, far in ((0.8, 0.8**30), (1.2, 1.2**30)):
        x = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)).requires_grad_()
        y = x
        for n in range(30):
            y = y @ torch.randn(128, 128, generator=torch.Generator().manual_seed(n + 1)) * gain / 128**0.5
        direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(99))
        (gradient,) = torch.autograd.grad((y * direction).sum(), x)
        assert 0.3 < (gradient.norm() / direction.norm() / far) < 3


def test_a_sum_of_c_products_has_root_c_times_their_spread():
    products = torch.randn(5000, 128, generator=torch.Generator().manual_seed(0))
    assert products.sum(-1).std() / products.std() == pytest.approx(math.sqrt(128), rel=0.03)


def test_the_standard_deviation_is_the_root_of_the_variance_over_c():
    x = torch.randn(24, dtype=torch.float64)
    assert x.std(correction=0) == pytest.approx(math.sqrt((x - x.mean()).square().mean()))


def test_the_three_rows_lie_where_the_alt_text_says_and_keep_their_order(ran):
    before, after = ran.space["rows"], ran.space["normed"]
    assert [round(mean) for mean in before.mean(-1).tolist()] == [0, 6, -2]
    usual, narrow, wide = before.std(-1, correction=0)
    assert narrow < usual / 2 and wide > 2 * usual
    assert torch.allclose(after.mean(-1), torch.zeros(3), atol=1e-5)
    assert torch.allclose(after.std(-1, correction=0), torch.ones(3), atol=1e-3)
    assert torch.equal(before.argsort(-1), after.argsort(-1))


def test_the_predictions(ran):
    assert "x -> [-1.34, -0.45, 0.45, 1.34]\n1. True\n2. True\n3. [0.0, 0.0, 0.0, 0.0]\n" in ran.printed
    x, norm = torch.tensor([1.0, 2.0, 3.0, 4.0]).double(), nn.LayerNorm(4).double()
    # "a difference in the sixth decimal"
    assert 1e-6 < (norm(100 * x) - norm(x)).abs().max() < 1e-5
    five = torch.full((4,), 5.0)
    assert l1_ref.layer_norm(five, torch.ones(4), torch.zeros(4), eps=0.0).isnan().all()


# The feed-forward layer.


def test_attention_moves_information_and_the_feed_forward_layer_does_not(ran):
    assert "attention: positions [2, 3, 4, 5] change" in ran.printed
    assert "feed-forward: positions [2] change" in ran.printed


def test_nn_linear_keeps_a_matrix_transposed_so_that_a_row_is_a_column():
    layer = l1_ref.TransformerBlock(l1_ref.L1Config.preset("tiny")).feed_forward
    config = l1_ref.L1Config.preset("tiny")
    assert layer.fc.weight.shape == (config.n_inner, config.n_embd)
    assert layer.proj.weight.shape == (config.n_embd, config.n_inner)
    hidden = torch.zeros(config.n_inner)
    hidden[3] = 1.0  # one pattern is there: one row of W_2, a column of weight, is added
    assert torch.allclose(layer.proj(hidden) - layer.proj.bias, layer.proj.weight[:, 3], atol=1e-6)


def test_the_feed_forward_layer_is_two_thirds_of_a_block_and_four_times_as_wide(ran):
    assert ran.printed.count(": 66% of the block") == 1 and ran.printed.count(": 67% of the block") == 1
    for config in (l1_ref.L1Config.preset("tiny"), l1_ref.L1Config.preset("gpt2")):
        assert config.n_inner == 4 * config.n_embd
        block, C = l1_ref.TransformerBlock(config), config.n_embd
        for part, weights in ((block.attention, 3 * C**2 + C**2), (block.feed_forward, 8 * C**2)):
            assert sum(p.numel() for p in part.parameters() if p.ndim == 2) == weights


def test_gelu_is_what_the_prose_says(ran):
    x = torch.linspace(-6, 6, 10_001).double()
    smaller = (1 + torch.erf(x / math.sqrt(2))) / 2  # the probability that a standard normal number is below x
    gap = (l1_ref.gelu(x) - x * smaller).abs().max()
    assert 0.0004 < gap < 0.0005 and "largest difference: 0.0005\n" in ran.printed
    assert torch.allclose(nn.functional.gelu(x), x * smaller)
    assert "with a dip to -0.17" in ran.alt("Two charts: GELU")


def test_the_slope_of_gelu_has_no_jump_and_relu_s_has(space):
    steps = {name: slopes.diff().abs().max().item() for name, (_, slopes) in space["curves"].items()}
    assert steps["GELU"] < 0.03 and steps["ReLU"] == 1.0
    below = space["curves"]["ReLU"][1][:200]
    assert (below == 0).all()  # 200 of the 400 points lie below 0


def test_two_matrices_without_a_bend_are_one():
    first, second, x = (torch.randn(5, 5).double() for _ in range(3))
    assert torch.allclose((x @ first) @ second, x @ (first @ second))


# The residual stream.


def test_a_block_whose_branches_write_zeros_changes_nothing(ran):
    assert "output equals input: True" in ran.printed


def test_each_branch_ends_in_its_proj():
    block, seen = l1_ref.TransformerBlock(l1_ref.L1Config(n_embd=8, n_heads=2, dropout=0.0)), []
    for part in (block.attention, block.feed_forward):
        part.proj.register_forward_hook(lambda module, inputs, y: seen.append(y))
        assert torch.equal(part(torch.randn(1, 3, 8)), seen[-1])


def test_the_head_is_a_linear_layer_from_a_vector_to_one_score_a_token(space):
    model = space["model"]
    assert isinstance(model.head, nn.Linear)
    assert (model.head.in_features, model.head.out_features) == (model.config.n_embd, model.config.vocab_size)


def test_the_slope_of_a_residual_step_holds_a_one():
    x = torch.randn(4, dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(lambda x: x + torch.sin(x), x)
    assert torch.allclose(slope, torch.eye(4, dtype=torch.float64) + torch.cos(x).diag())


def test_the_broken_step_forgets_and_the_mended_one_keeps_an_even_share(ran):
    space = ran.space
    broken, mended = space["first_share"](space["broken"]), space["first_share"](space["residual_step"])
    even = [(n + 1) ** -0.5 for n in range(13)]
    assert broken[-1] < 0.1 * even[-1] and broken[1] == pytest.approx(even[1], abs=0.02)
    assert mended == pytest.approx(even, abs=0.02)
    assert "broken step: after 12 layers the cosine is 0.01; an even share is 0.28" in ran.alt("Line chart, broken")
    assert "mended step: after 12 layers the cosine is 0.27; an even share is 0.28" in ran.alt("Line chart, mended")


def test_the_broken_step_loses_a_root_of_two_each_time(space):
    broken = space["first_share"](space["broken"])
    assert broken == pytest.approx([2 ** (-n / 2) for n in range(13)], abs=0.015)
    assert [f"{share:.2f}" for share in broken[1:5]] == ["0.70", "0.50", "0.36", "0.25"]
    assert f"{broken[-1]:.2f}" == "0.01" and "0.70, 0.50, 0.36, 0.25, and at the end 0.01" in prose(NAME)
    x = 3 * torch.randn(64, 256)
    normed = nn.LayerNorm(256)(x)
    # One part is as long as the first input, a random vector: about the root of 256.
    assert normed.norm(dim=-1).mean().item() == pytest.approx(16, rel=0.01)


def test_random_vectors_stand_nearly_at_right_angles_and_add_up_by_pythagoras():
    vectors = torch.randn(13, 256, generator=torch.Generator().manual_seed(0))
    cosines = torch.cosine_similarity(vectors[:, None], vectors[None], dim=-1)
    assert (cosines - torch.eye(13)).abs().max() < 0.25
    alike = vectors / vectors.norm(dim=-1, keepdim=True)
    for n in (1, 4, 12):
        assert alike[: n + 1].sum(0).norm() == pytest.approx(math.sqrt(n + 1), rel=0.1)


# Pre-norm and post-norm.


def test_post_norm_gradients_are_level_and_pre_norm_ones_fall(space):
    post, pre = space["profiles"]["post-norm"], space["profiles"]["pre-norm"]
    assert len(post) == len(pre) == 24 and max(post) < 1.4 * min(post)
    assert 2.5 < pre[0] / pre[-1] < 3.5  # "about 3 over 24 blocks, nothing like 0.8 to the power of 30"
    assert 0.01 * pre[-1] / pre[0] > 0.8**30
    thirds = [sum(pre[n : n + 8]) for n in (0, 8, 16)]
    assert thirds == sorted(thirds, reverse=True)


def test_in_the_last_block_pre_norm_falls_with_the_root_of_the_depth_and_post_norm_does_not(ran):
    pre, post = ran.space["last"]["pre-norm"], ran.space["last"]["post-norm"]
    assert list(pre) == list(post) == [3, 6, 12, 24]
    assert list(pre.values()) == sorted(pre.values(), reverse=True)
    assert pre[3] / pre[24] == pytest.approx(math.sqrt(8), rel=0.25)
    assert max(post.values()) < 1.25 * min(post.values())
    assert [pre[3], pre[24], post[3], post[24]] == pytest.approx([0.22, 0.09, 0.28, 0.315], abs=0.02)
    falls, goes = (f"from {sizes[3]:.2f} to {sizes[24]:.2f}" for sizes in (pre, post))
    assert f"pre-norm falls {falls}, post-norm goes {goes}." in ran.alt("Two charts. By block")


def test_pre_norm_gradients_fall_because_of_the_readers_above():
    """Cut the gradient that comes back through the branches, and it is the same in every block."""
    ratios = {}
    for cut in (False, True):
        torch.manual_seed(0)
        blocks = [l1_ref.TransformerBlock(l1_ref.L1Config(n_embd=64, n_heads=4, dropout=0.0)) for _ in range(24)]
        for matrix in (p for block in blocks for p in block.parameters() if p.ndim == 2):
            nn.init.xavier_normal_(matrix)
        x, head = torch.randn(8, 16, 64), nn.Linear(64, 100, bias=False)
        for block in blocks:
            x = x + block.attention(block.norm_1(x.detach() if cut else x))
            x = x + block.feed_forward(block.norm_2(x.detach() if cut else x))
        l1_ref.cross_entropy(head(nn.LayerNorm(64)(x)), torch.randint(100, (8, 16))).backward()
        sizes = [block.feed_forward.proj.weight.grad.norm().item() for block in blocks]
        ratios[cut] = sizes[0] / sizes[-1]
    assert 2.5 < ratios[False] < 3.7 and 0.8 < ratios[True] < 1.2


def test_the_last_normalisation_divides_gradients_by_the_length_of_the_stream():
    x, direction = torch.randn(5, 64), torch.randn(5, 64)
    sizes = []
    for factor in (1.0, 10.0):
        stream = (factor * x).requires_grad_()
        (gradient,) = torch.autograd.grad((nn.LayerNorm(64)(stream) * direction).sum(), stream)
        sizes.append(gradient.norm().item())
    assert sizes[0] / sizes[1] == pytest.approx(10, rel=1e-3)


def test_a_pre_norm_stream_grows_and_a_post_norm_one_cannot(space):
    config = l1_ref.L1Config(n_embd=64, n_heads=4, dropout=0.0)
    x = torch.randn(8, 32, 64)
    for kind, least, most in ((l1_ref.TransformerBlock, 1.5, 9.0), (space["PostNormBlock"], 0.9, 1.1)):
        y = x
        for _ in range(12):
            block = kind(config)
            for matrix in (p for p in block.parameters() if p.ndim == 2):
                nn.init.xavier_normal_(matrix)
            y = block(y)
        assert least < y.norm() / x.norm() < most


# Inside the trained model.


def test_the_reader_s_block_takes_the_trained_weights_both_ways(ran):
    assert ran.printed.count("<All keys matched successfully>") == 2
    assert "your block does what the trained one does: True" in ran.printed
    assert "the head reads the last one: True" in ran.printed


def test_the_tale_was_not_trained_on_and_the_head_shares_its_matrix(space):
    assert space["tale"] not in l1_ref.load_tales("train")
    assert space["model"].head.weight is space["model"].embedding.token.weight


def test_the_stream_grows_and_its_branches_stand_nearly_at_right_angles(ran):
    norms, lengths, cosines = (ran.space[name] for name in ("norms", "lengths", "cosines"))
    assert norms == sorted(norms) and "from length 1.3 to 24.7" in ran.alt("Bars: the stream")
    assert min(lengths[1], lengths[3]) > 3 * max(lengths[0], lengths[2])
    assert all(0 <= cosine < 0.12 for cosine in cosines[:3]) and 0.2 < cosines[3] < 0.3
    assert "The first three cosines are at most 0.11, the last is 0.26." in ran.alt("Bars: the stream")


def test_single_positions_differ_widely_in_their_cosines(space):
    for added, before in zip(space["added"], space["stages"], strict=False):
        single = torch.cosine_similarity(added, before, dim=-1)
        assert single.max() - single.min() > 0.4


def test_lamp_comes_with_the_second_attention(space):
    words, place = space["tokens"], space["sock"] + 2
    assert "".join(words[place - 6 : place + 2]) == " they hung a striped sock on the lamp"
    guessed = [space["tokenizer"].decode([i]) for i in space["guesses"][:, place].tolist()]
    assert " lamp" not in guessed[:3] and guessed[3:] == [" lamp", " lamp"]
    assert space["chances"][4, place] > 0.95
    first = words.index(" lamp")
    assert place - first > 40 and " lamp" not in words[first + 1 : place + 1]
    scores = space["model"].head(space["model"].norm(space["stages"][2][0, place]))
    assert l1_ref.softmax(scores, -1)[space["ids"][0, place + 1]] < 0.05


def test_what_hangs_there_stays_open_and_the_embedding_sees_the_token_itself(space):
    place = space["sock"]
    assert space["tokens"][place - 2 : place] == [" a", " striped"]
    assert (space["chances"][4, place - 2 : place] < 0.2).all()
    assert " sock" not in space["tokens"][:place] and " striped" not in space["tokens"][: place - 1]
    same = space["guesses"][0] == space["ids"][0]
    assert same.double().mean() > 0.85 and not same[place - 1]
    assert space["tokenizer"].decode([space["guesses"][0, place - 1].item()]) == " blue"  # a sibling of "striped"


def test_one_matrix_makes_a_score_the_dot_product_with_the_tokens_own_vector(space):
    model = space["model"]
    x = torch.randn(3, model.config.n_embd)
    assert model.head.bias is None and torch.allclose(model.head(x), x @ model.embedding.token.weight.T, atol=1e-4)


def test_hung_is_first_read_as_hungry_and_corrected_by_the_second_attention(space):
    place, decode = space["sock"] - 3, space["tokenizer"].decode
    assert space["tokens"][place : place + 2] == [" hung", " a"]
    assert [decode([i]) for i in space["guesses"][2:, place].tolist()] == ["ry", " a", " a"]
    assert [decode([i]) for i in space["tokenizer"].encode(" hungry")] == [" hung", "ry"]


def test_the_summary_names_what_exists():
    rows = re.findall(r"`l1_ref\.(\w+)`, in `l1_ref/(\w+)\.py`", prose(NAME))
    assert len(rows) == 4
    for name, module in rows:
        assert getattr(l1_ref, name).__module__ == f"l1_ref.{module}"


# The figures.


def test_by_depth_holds_its_curves_and_the_guide():
    figure = figures.by_depth({"a": [1.0, 10.0], "b": [1.0, 1.0]}, "size", "t", True, (0.1, 100), ("even", [1.0, 2.0]))
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["a", "b", "even"]
    assert list(axes.lines[0].get_ydata()) == [1.0, 10.0]
    assert axes.get_yscale() == "log" and axes.get_ylim() == (0.1, 100)
    assert figures.by_depth({"a": [1.0]}, "size").axes[0].get_yscale() == "linear"
    with pytest.raises(ValueError, match="at least one curve"):
        figures.by_depth({}, "size")


def test_normalised_rows_are_dots_with_mean_and_spread():
    before = torch.tensor([[1.0, 3.0], [0.0, 8.0]])
    figure = figures.normalised_rows(before, before / 2, ["a", "b"])
    dots, bar, tick = figure.axes[0].lines[:3]
    assert list(dots.get_xdata()) == [1.0, 3.0]
    assert list(bar.get_xdata()) == [1.0, 3.0] and list(tick.get_xdata()) == [2.0]
    assert list(figure.axes[1].lines[3].get_xdata()) == [0.0, 4.0]
    with pytest.raises(ValueError, match=r"one label a row, got \(2, 2\) and \(2, 2\), 1 labels"):
        figures.normalised_rows(before, before, ["a"])


def test_activations_stand_beside_their_slopes():
    x = torch.tensor([-1.0, 0.0, 1.0])
    left, right = figures.activations(x, {"square": (x**2, 2 * x)}).axes
    assert list(left.lines[0].get_ydata()) == [1.0, 0.0, 1.0]
    assert list(right.lines[0].get_ydata()) == [-2.0, 0.0, 2.0]


def test_order_gradients_hold_the_profile_and_the_last_block():
    last = {"pre": {2: 0.4, 8: 0.1}, "post": {2: 0.4, 8: 0.4}}
    left, right = figures.order_gradients({"pre": [0.4, 0.1], "post": [0.4, 0.4]}, last).axes
    assert list(left.lines[0].get_xdata()) == [1, 2] and list(left.lines[1].get_ydata()) == [0.4, 0.4]
    assert list(right.lines[0].get_ydata()) == [0.4, 0.1]
    assert list(right.lines[2].get_ydata()) == pytest.approx([0.4, 0.2])


def test_the_residual_stream_has_a_bar_a_step_and_one_a_branch():
    figure = figures.residual_stream(["embedding", "branch"], [1.0, 12.0], [11.5], [0.25])
    left, right = figure.axes
    assert [bar.get_width() for bar in left.patches] == [1.0, 12.0, 11.5]
    assert [text.get_text() for text in left.texts] == ["1.0", "12.0", "11.5"]
    assert [text.get_text() for text in right.texts] == ["0.25"]
    with pytest.raises(ValueError, match="got 2 steps, 2 norms, 2 added, 1 cosines"):
        figures.residual_stream(["embedding", "branch"], [1.0, 12.0], [11.5, 1.0], [0.25])


def test_the_logit_lens_is_a_table_with_right_guesses_in_bold():
    chances = torch.tensor([[0.9, 0.1], [0.5, 0.8]])
    guesses = [[" a", " b"], [" c", " d"]]
    axes = figures.logit_lens([" a", " c"], ["first", "second"], guesses, chances, [" c", " e"]).axes[0]
    assert [text.get_text() for text in axes.texts] == ["␣a", "␣b", "␣c", "␣d"]
    assert [text.get_weight() for text in axes.texts] == ["normal", "normal", "bold", "normal"]
    with pytest.raises(ValueError, match="1 rows of guesses"):
        figures.logit_lens([" a", " c"], ["first", "second"], guesses[:1], chances, [" c", " e"])
