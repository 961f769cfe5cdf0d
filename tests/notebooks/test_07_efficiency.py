"""The notebook on efficiency: every number and claim of its prose and alt texts, and the figures' own functions."""

import dataclasses
import itertools
import math
import re

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import l1_ref
from l1_ref import plots
from l1_ref.plots import efficiency as figures
from l1_ref.steps import batch_loss
from tests.notebook_runs import Ran, run
from tests.test_notebooks import prose

NAME = "07_efficiency"
HALF, BRAIN = torch.float16, torch.bfloat16


@pytest.fixture(scope="module")
def ran() -> Ran:
    return run(NAME, every=False)


@pytest.fixture(scope="module")
def space(ran) -> dict:
    return ran.space


# What a step holds, and accumulation.


def test_sixteen_bytes_a_parameter_and_activations_that_grow_with_the_batch(space, ran):
    model, x, y = space["model"], space["x"], space["y"]
    assert f"parameters, gradients, optimizer: {plots.bytes_label(16 * 541_184)}" in ran.printed
    optimizer = l1_ref.build_optimizer(model, lr=0.0)
    l1_ref.cross_entropy(model(x[:1]), y[:1]).backward()
    optimizer.step()
    held = [p.nbytes + p.grad.nbytes for p in model.parameters()]
    held += [state[mean].nbytes for state in optimizer.state.values() for mean in ("exp_avg", "exp_avg_sq")]
    assert sum(held) == 16 * l1_ref.count_parameters(model.config)
    kept = [l1_ref.saved_bytes(model, lambda B=B: l1_ref.cross_entropy(model(x[:B]), y[:B])) for B in (1, 4, 16)]
    assert kept[1] / kept[0] == pytest.approx(4, rel=0.02) and kept[2] / kept[0] == pytest.approx(16, rel=0.02)


def test_a_mean_over_targets_is_not_a_mean_of_means():
    assert (2 + 3 * 4) / 4 == 3.5 and (2 + 4) / 2 == 3.0
    nothing = l1_ref.cross_entropy(torch.zeros(1, 2, 3), torch.full((1, 2), -100))
    assert nothing.isnan() and (0 * nothing).isnan()


def test_pieces_give_the_gradient_of_the_whole_unless_dropout_draws(space, ran):
    assert ran.printed.count(": the same gradient: True") == 2
    x, y = space["x"][:4], space["y"][:4]
    model = l1_ref.L1Model(dataclasses.replace(space["model"].config, dropout=0.1))
    found = []
    for pieces in ([(x, y)], list(zip(x.split(1), y.split(1), strict=True))):
        torch.manual_seed(0)
        model.zero_grad()
        space["accumulate_gradients"](model, pieces)
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.cosine_similarity(*found, dim=0) > 0.9 and not torch.allclose(*found, atol=1e-4)


# Numbers of sixteen bits.


@pytest.mark.parametrize(
    ("dtype", "exponent_bits", "fraction_bits"), [(torch.float32, 8, 23), (HALF, 5, 10), (BRAIN, 8, 7)]
)
def test_the_bits_are_those_of_the_prose(dtype, exponent_bits, fraction_bits):
    limits, name = torch.finfo(dtype), str(dtype)[6:]
    assert 1 + exponent_bits + fraction_bits == limits.bits and limits.eps == 2.0**-fraction_bits
    assert limits.tiny == 2.0 ** (2 - 2 ** (exponent_bits - 1))
    assert re.search(rf"{name} (has )?{exponent_bits} (bits for the exponent )?and {fraction_bits}", prose(NAME))
    for start in (1.0, 2.0, 4.0):  # as many steps in each power of 2
        above = torch.nextafter(torch.tensor(start, dtype=dtype), torch.tensor(math.inf, dtype=dtype))
        assert above.item() - start == start * limits.eps


def test_the_smallest_float16_is_two_to_the_minus_24_and_half_of_it_is_nothing():
    smallest = torch.tensor(2.0**-24)
    assert smallest.half() == smallest and (smallest / 2).half() == 0 and (0.51 * smallest).half() == smallest
    assert f"{2**-25:.8f}" == "0.00000003"


def test_the_predictions(ran):
    assert "1. 2048.0\n2. 256.0\n3. float16 inf 0\n3. bfloat16 7.014e+04 1.001e-08\n4. 1.0\n" in ran.printed
    assert torch.tensor(70_000.0).bfloat16() == 70_144 and torch.finfo(HALF).max == 65_504
    even, odd = torch.tensor([2048.0, 2049.0, 2050.0, 2051.0, 2052.0]).half()[[0, 4]], torch.tensor(2049.0)
    assert odd.half() == even[0] and torch.tensor(2051.0).half() == even[1]  # the middle goes to a last bit of 0
    bits = torch.tensor([2048.0, 2050.0, 2052.0]).half().view(torch.int16) % 2
    assert bits.tolist() == [0, 1, 0] and 0.001 < 2**-8 / 2
    below = torch.nextafter(torch.tensor(1, dtype=BRAIN), torch.tensor(0, dtype=BRAIN))
    assert 1 - below.item() == 2**-8 and abs(2**-8 - 0.004) < 2e-4


def test_autocast_makes_halves_of_products_only(ran, space):
    assert "product: torch.bfloat16  stream: torch.float32  weight: torch.float32" in ran.printed
    assert "gradient of the weight: torch.float32" in ran.printed
    for dtype in (HALF, BRAIN):
        with torch.autocast("cpu", dtype):
            stream = space["model"].embedding(space["x"][:1, :4])
            for block in space["model"].blocks:
                stream = block(stream)
                assert stream.dtype == torch.float32


# What float16 loses, and loss scaling.


def test_a_third_of_the_gradients_vanishes_and_a_factor_saves_them(space, ran):
    gradients = space["gradients"]
    vanish = gradients.half() == 0
    assert gradients[vanish].abs().sum() < 1e-4 * gradients.abs().sum()  # the sums do not miss them
    lost = {power: ((gradients * 2.0**power).half() == 0).float().mean().item() for power in (0, 15)}
    over = {power: (gradients * 2.0**power).half().isinf().float().mean().item() for power in (0, 15, 20, 25)}
    assert 0.25 < lost[0] < 0.4 and lost[15] < lost[0] / 3
    assert over[0] == over[15] == 0 and over[25] > 0
    assert f"{100 * lost[0]:.1f} % of the gradients become 0" in ran.alt("Histogram, loss times 2^0")
    figure, told = space["draw_sizes"](15)
    (axes,) = figure.axes
    assert axes.texts[0].get_text() == f"becomes 0\n{100 * lost[15]:.1f} %" and f"{100 * lost[15]:.1f} %" in told
    shares = [float(re.search(r"([\d.]+) %", text.get_text())[1]) for text in axes.texts]
    assert sum(shares) == pytest.approx(100, abs=0.2)


def test_gradients_are_found_for_every_linear_layer_and_norm(space):
    model, x, y = space["model"], space["x"][:1, :8], space["y"][:1, :8]
    C, V, T = model.config.n_embd, model.config.vocab_size, 8
    blocks = model.config.n_layers * (C + 3 * C + C + C + 4 * C + C)
    assert len(space["flowing_back"](model, x, y)) == T * (blocks + C + V)
    assert not any(layer._forward_hooks for layer in model.modules())


def test_float16_is_fine_but_narrow_and_bfloat16_coarse_but_wide(space, ran):
    assert 128 * 2**12 == 512 * 1024 and space["x"][:2, :64].numel() == 128
    at, brain = space["at"], space["errors"]["bfloat16"]
    assert 0.05 < at[-12] < 0.2 and at[-16] > 0.9 and at[20] == math.inf
    assert at[0] < 0.003 and all(at[power] == pytest.approx(at[12], rel=0.1) for power in (4, 8))
    assert max(brain) / min(brain) < 1.01 and brain[0] > 4 * at[0]
    assert f"{at[-12]:.1%} at 2^-12" in ran.alt("Log chart") and f"{brain[0]:.1%} throughout" in ran.alt("Log chart")


def test_a_step_is_taken_unless_a_gradient_overflows(ran):
    assert "scale 2^10: a step was taken: True\nscale 2^24: a step was taken: False\n" in ran.printed


def test_the_scaler_does_what_the_table_says():
    weight = nn.Parameter(torch.tensor([2.0]))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    scaler = torch.amp.GradScaler("cpu")
    assert (scaler.get_backoff_factor(), scaler.get_growth_factor(), scaler.get_growth_interval()) == (0.5, 2, 2000)
    loss = (3 * weight).sum()
    scaler.scale(loss).backward()
    assert scaler.get_scale() == 2**16 and weight.grad == 3 * 2**16
    scaler.step(optimizer)  # unscales, since nobody did
    assert weight.grad == 3 and weight.item() == 0.5
    scaler.update()
    assert scaler.get_scale() == 2**16
    scaler.scale((math.inf * weight).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert weight.item() == 0.5 and scaler.get_scale() == 2**15
    off = torch.amp.GradScaler("cpu", enabled=False)
    assert off.scale(loss) is loss


def test_skipped_steps_repeat_the_loss_and_the_three_learn_alike(space):
    exact, half, brain = space["losses"].values()
    scales = [2.0**20, *space["factors"]]
    skipped = [after == before / 2 for before, after in itertools.pairwise(scales)]
    n = sum(skipped)
    assert 0 < n < 6 and skipped == [True] * n + [False] * (8 - n)
    assert half[: n + 1] == [half[0]] * (n + 1)
    assert half[n:] == pytest.approx(exact[: 8 - n], abs=0.02) and brain == pytest.approx(exact, abs=0.02)
    assert exact[-1] < exact[0] - 0.5


# Checkpointing.


def test_checkpointing_keeps_the_inputs_alone_and_the_gradients_the_same(space, ran):
    assert "the same gradients: True" in ran.printed
    plain, few = (space["kept_bytes"][name] for name in ("plain", "checkpointed"))
    inputs = space["deep"].n_layers * space["stream"].nbytes
    assert few == pytest.approx(inputs, rel=0.2) and few < plain / 20


def test_a_backward_pass_does_twice_the_arithmetic_of_a_forward_pass(monkeypatch):
    monkeypatch.setattr(l1_ref.linear, "_ONEDNN", None)  # torch's counter does not know that one
    config = dataclasses.replace(l1_ref.PRESETS["tiny"], attention="explicit")
    model, (x, y) = l1_ref.L1Model(config), torch.randint(1000, (2, 2, 128))
    with FlopCounterMode(display=False) as forward:
        loss = l1_ref.cross_entropy(model(x), y)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    assert backward.get_total_flops() == 2 * forward.get_total_flops()
    a_token = 3 * forward.get_total_flops() / x.numel()
    assert a_token == pytest.approx(l1_ref.flops_per_token(config), rel=0.01)  # norms and biases are counted with N


def test_the_older_way_loses_the_parameters_gradients():
    layer, x = nn.Linear(3, 3), torch.ones(1, 3)
    with pytest.warns(UserWarning, match="None of the inputs have requires_grad"):
        assert not checkpoint(layer, x, use_reentrant=True).requires_grad
    assert checkpoint(layer, x, use_reentrant=False).requires_grad


def test_both_runs_drop_the_same_numbers():
    dropped = []
    layer = nn.Sequential(nn.Dropout(0.5), nn.Linear(100, 1))
    layer[0].register_forward_hook(lambda _, inputs, output: dropped.append(output.detach()))
    checkpoint(layer, torch.ones(100, requires_grad=True), use_reentrant=False).backward()
    first, second = dropped
    assert torch.equal(first, second) and 0 < (first == 0).sum() < 100


# The bill.


@pytest.mark.parametrize("name", l1_ref.PRESETS)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_table_is_the_references_count(space, name, dropout):
    config = dataclasses.replace(l1_ref.PRESETS[name], dropout=dropout)
    for dtype in (torch.float32, HALF, BRAIN):
        for checkpointing in (False, True):
            mine = space["training_memory"](config, 3, dtype, checkpointing)
            assert mine == l1_ref.training_memory(config, 3, dtype, checkpointing)


def test_what_was_measured_is_within_a_tenth(space, ran):
    assert ran.printed.count(": within 10 %: True") == len(space["cases"]) == 6


def test_the_bill_shows_what_the_prose_says(space, ran):
    def activations(name, batch_size, dtype, checkpointing, **changes):
        config = dataclasses.replace(l1_ref.PRESETS[name], **changes)
        bill = l1_ref.training_memory(config, batch_size, dtype, checkpointing)
        return bill["activations"] + bill["recomputed"]

    names = sorted(l1_ref.PRESETS, key=lambda name: l1_ref.PRESETS[name].n_layers)
    assert names == ["tiny", "small", "base", "gpt2", "large"]
    left = [activations(name, 64, torch.float32, True) / activations(name, 64, torch.float32, False) for name in names]
    assert left[0] > left[1] > max(left[2:4]) and min(left[2:4]) > left[4]
    for name in names[1:]:
        config, plain = l1_ref.PRESETS[name], activations(name, 8, torch.float32, False)
        tables = 12 * 8 * config.max_seq_length**2 * config.n_heads * config.n_layers
        assert tables > plain / 2
        assert activations(name, 8, BRAIN, False) > 0.85 * plain
        without = [activations(name, 8, dtype, False, dropout=0.0) for dtype in (torch.float32, BRAIN)]
        assert without[1] < 0.85 * without[0] and without[0] < plain / 2
    for name in names:  # at batch 1 the copies of the weights cost more than the halves save
        assert activations(name, 1, BRAIN, True) > activations(name, 1, torch.float32, True)
    tiny = l1_ref.training_memory(l1_ref.PRESETS["tiny"], 1, torch.float32, False)
    assert f"tiny {plots.bytes_label(tiny['total'])}, " in ran.alt("Stacked bars")
    figure, told = space["draw_bill"](64, "0")
    assert "dropout 0; float32, checkpointed float32" in told and "as in the preset" not in told
    assert not any(line.get_marker() == "D" for axes in figure.axes for line in axes.lines)


def test_the_tables_of_weights_are_kept_with_dropout_only():
    config = l1_ref.L1Config(vocab_size=7, max_seq_length=64, n_layers=1, n_heads=2, n_embd=8)
    for dropout, tables in ((0.0, 0), (0.1, 3)):
        block = l1_ref.TransformerBlock(dataclasses.replace(config, dropout=dropout))
        shapes = []

        def pack(tensor, shapes=shapes):
            shapes.append(tensor.shape[-2:] == (64, 64) and tensor.numel() == 2 * 64 * 64)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            block(torch.randn(1, 64, 8, requires_grad=True))
        assert sum(shapes) == tables


# What a token costs.


def test_flops_are_those_of_the_formula(space, ran):
    for name, config in l1_ref.PRESETS.items():
        attention = 12 * config.n_layers * config.n_embd * config.max_seq_length
        positions = config.max_seq_length * config.n_embd
        flops = l1_ref.flops_per_token(config)
        assert flops == 6 * (l1_ref.count_parameters(config) - positions) + attention
        assert re.search(
            rf"{name} +{flops / 1e6:,.1f} million FLOPs a token, attention {attention / flops:.0%}", ran.printed
        )
    assert space["best"] > 0 and space["achieved"] > 0


def test_a_product_takes_two_flops_for_each_of_its_mkn():
    with FlopCounterMode(display=False) as counter:
        torch.randn(3, 5) @ torch.randn(5, 7)
    assert counter.get_total_flops() == 2 * 3 * 5 * 7


# The bug hunt.


def test_the_broken_step_heeds_the_last_micro_batch_alone(space, ran):
    broken, mended = space["effects"]["broken"], space["effects"]["mended"]
    assert broken[:3] == [0, 0, 0] and broken[3] > 0.1 and min(mended) > 0.05
    assert f"changes 0.00, 0.00, 0.00, {broken[3]:.2f}." in ran.alt("Bars, broken step")
    assert f"{min(mended):.2f} to {max(mended):.2f}" in ran.alt("Bars: the broken step")


def test_the_broken_steps_loss_is_right_and_its_second_fault_is_hidden_behind_the_first(space):
    x, y, model = space["x"][:4], space["y"][:4], space["model"]
    pieces = list(zip(x.split(1), y.split(1), strict=True))
    for more in ([], [(x, torch.full_like(y, -100))]):  # one without targets is passed over
        loss = space["broken"](model, pieces + more, torch.optim.SGD(model.parameters(), lr=0.0))
        assert torch.allclose(loss, l1_ref.cross_entropy(model(x), y), atol=1e-5)

    def clipped_each(model, micro_batches, optimizer, max_norm=1.0):
        optimizer.zero_grad()
        for x, y in micro_batches:
            (l1_ref.cross_entropy(model(x), y) / len(micro_batches)).backward()
            l1_ref.clip_grad_norm(model.parameters(), max_norm)
        optimizer.step()

    ends = [space["weights_after"](step, pieces) for step in (clipped_each, space["accumulated_step"])]
    assert not torch.allclose(*ends, atol=1e-3)


def test_the_loss_of_the_references_train_step_keeps_no_logits(space):
    model, x, y = space["model"], space["x"][:1, :96], space["y"][:1, :96]
    logits = x.numel() * model.config.vocab_size
    for loss, kept in ((lambda: l1_ref.cross_entropy(model(x), y), True), (lambda: batch_loss(model, x, y), False)):
        sizes = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss()
        assert (logits in sizes) == kept


def test_the_summary_names_what_exists():
    rows = re.findall(r"`l1_ref\.(\w+)`, in `l1_ref/(\w+)\.py`", prose(NAME))
    assert len(rows) == 6
    assert all(getattr(l1_ref, name).__module__ == f"l1_ref.{module}" for name, module in rows)


# The figures.


def test_a_format_reaches_from_its_smallest_to_its_largest_number():
    left, right = figures.number_formats([torch.float32, HALF]).axes
    reach = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in left.patches]
    assert reach[2] == pytest.approx((-14, 16), abs=0.01) and reach[3] == (-24, -14)
    assert "up to 65,504" in left.texts[1].get_text()
    ticks = right.lines[0].get_xdata()
    assert len(ticks) == 33 and all(torch.tensor(float(x)).half().item() == x for x in ticks)
    with pytest.raises(ValueError, match="at least one type"):
        figures.number_formats([])


def test_a_histogram_says_what_becomes_of_its_gradients():
    sizes = torch.tensor([-30.5, -20.5, -5.5, -5.5])
    for exponent, told in ((0, ("25.0", "25.0", "50.0", "0.0")), (25, ("0.0", "0.0", "50.0", "50.0"))):
        (axes,) = figures.float16_histogram(sizes, exponent).axes
        names = ("becomes 0", "loses digits", "fits", "too large")
        expected = [f"{name}\n{share} %" for name, share in zip(names, told, strict=True)]
        assert [text.get_text() for text in axes.texts] == expected
    with pytest.raises(ValueError, match="at least one gradient"):
        figures.float16_histogram(torch.tensor([]), 0)


def test_an_overflow_is_a_cross_above_the_curve():
    (axes,) = figures.scale_errors([0, 1, 2], {"a": [0.1, 0.2, math.inf], "b": [0.3] * 3}, {"here": 1}).axes
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines[:3]}
    assert lines == {"a": ([0, 1], [0.1, 0.2]), "a: overflow": ([2], [2.0]), "b": ([0, 1, 2], [0.3] * 3)}
    for errors in ({}, {"a": [0.1]}):
        with pytest.raises(ValueError, match="one error an exponent"):
            figures.scale_errors([0, 1], errors)


def test_memory_bars_stack_the_parts_and_dots_mark_what_was_measured():
    bills = {"m": {"plain": {"x": 2**20, "y": 3 * 2**20}, "half": {"x": 2**20, "y": 2**20}}}
    panel, legend = figures.memory_bars(bills, {"m": {"half": 5 * 2**20}}, "title").axes
    assert [(bar.get_x(), bar.get_width()) for bar in panel.patches] == [(0, 1), (0, 1), (1, 3), (1, 1)]
    assert [text.get_text() for text in panel.texts] == ["4.00 MiB", "2.00 MiB"]
    assert panel.texts[1].get_position()[0] > 5.0  # the text stands right of the dot
    dots = [line for line in panel.lines if len(line.get_xdata())]
    assert [(list(dot.get_xdata()), list(dot.get_ydata())) for dot in dots] == [([5.0], [1])]
    assert [text.get_text() for text in legend.get_legend().texts] == ["x", "y", "measured"]
    with pytest.raises(ValueError, match="at least one model"):
        figures.memory_bars({}, {})


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (42 * 2**20, "42.0 MiB"),
        (2**40, "1,024 GiB"),
        (594 * 2**20, "594 MiB"),
    ],
)
def test_bytes_have_three_digits_and_a_unit(n_bytes, text):
    assert figures.bytes_label(n_bytes) == text


def test_the_effect_of_each_piece_is_a_bar():
    broken, mended = figures.piece_effects({"broken": [0.0, 1.0], "mended": [0.5, 0.5]}).axes
    assert [bar.get_height() for bar in broken.patches] == [0.0, 1.0] and mended.get_title(loc="left") == "mended"
    for effects in ({}, {"a": []}):
        with pytest.raises(ValueError, match="at least one version"):
            figures.piece_effects(effects)
