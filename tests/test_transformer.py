"""Blocks and the whole model: formulas, sizes, initial values, causality, and the cache against no cache."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from l1_ref.attention import KVCache
from l1_ref.config import PRESETS, L1Config
from l1_ref.loss import cross_entropy
from l1_ref.memory import saved_bytes
from l1_ref.transformer import (
    FeedForward,
    L1Model,
    TransformerBlock,
    checkpointed,
    count_parameters,
    gelu,
    init_weights,
    layer_norm,
)

TOY = L1Config(vocab_size=23, max_seq_length=9, n_layers=3, n_heads=2, n_embd=12, n_inner=20, dropout=0.0)
VARIANTS = {
    "fused": TOY,
    "explicit": replace(TOY, attention="explicit"),
    "sinusoidal": replace(TOY, position_encoding="sinusoidal"),
    "untied": replace(TOY, tie_weights=False),
}
VARIANT = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())


def toy_model(config=TOY, dtype=torch.float64, std=0.3):
    """Return a model far from its initial values: biases not zero, attention not even, norms not one."""
    torch.manual_seed(7)
    model = L1Model(config).double().eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=std)
    return model.to(dtype)


def toy_ids(B=3, T=9, V=23):
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(11))


def close(actual, expected, dtype=torch.float64):
    torch.testing.assert_close(actual, expected, **({"rtol": 1e-9, "atol": 1e-10} if dtype == torch.float64 else {}))


@pytest.mark.parametrize("shape", [(12,), (4, 12), (2, 3, 12)], ids=str)
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_layer_norm_equals_its_formula(shape, eps):
    x = (5 * torch.randn(shape) + 3).double().requires_grad_()
    weight, bias = torch.randn(2, 12).double()
    mean = x.sum(-1, keepdim=True) / 12
    variance = (x - mean).square().sum(-1, keepdim=True) / 12
    expected = (x - mean) / torch.sqrt(variance + eps) * weight + bias
    y = layer_norm(x, weight, bias, eps)
    close(y, expected)
    upstream = torch.randn_like(y)
    close(torch.autograd.grad(y, x, upstream), torch.autograd.grad(expected, x, upstream))


def test_layer_norm_adds_one_hundred_thousandth_to_the_variance():
    x = torch.tensor([0.001, -0.001], dtype=torch.float64)
    one, zero = torch.ones(2).double(), torch.zeros(2).double()
    close(layer_norm(x, one, zero), x / math.sqrt(1e-6 + 1e-5))


def test_gelu_equals_its_formula():
    x = torch.linspace(-6, 6, 97, dtype=torch.float64)
    expected = [0.5 * t * (1 + math.tanh(math.sqrt(2 / math.pi) * (t + 0.044715 * t**3))) for t in x.tolist()]
    close(gelu(x), torch.tensor(expected, dtype=torch.float64))
    assert (gelu(x) - torch.nn.functional.gelu(x)).abs().max() > 1e-4  # not the exact form


def test_feed_forward_widens_bends_and_narrows_each_position_by_itself():
    layer = FeedForward(TOY).double()
    x = torch.randn(2, 5, 12).double()
    inner = gelu(x @ layer.fc.weight.T + layer.fc.bias)
    assert inner.shape == (2, 5, 20)
    close(layer(x), inner @ layer.proj.weight.T + layer.proj.bias)
    close(layer(x[:, [3, 1]]), layer(x)[:, [3, 1]])


def test_a_block_normalises_before_each_part_and_adds_the_residual():
    block = toy_model().blocks[0]
    x = torch.randn(2, 5, 12).double()
    n1, n2 = block.norm_1, block.norm_2
    middle = x + block.attention(layer_norm(x, n1.weight, n1.bias))
    close(block(x), middle + block.feed_forward(layer_norm(middle, n2.weight, n2.bias)))


def test_layer_norms_take_the_epsilon_of_the_config():
    model = L1Model(replace(TOY, layer_norm_eps=0.25))
    norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 2 * 3 + 1 and {norm.eps for norm in norms} == {0.25}


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("tiny", 541_184),
        ("small", 23_328_768),
        ("base", 110_418_432),
        ("large", 336_128_000),
        ("gpt2", 124_439_808),
    ],
)
def test_the_five_parameter_counts(name, parameters):
    with torch.device("meta"):
        model = L1Model(PRESETS[name])
    assert sum(p.numel() for p in model.parameters()) == count_parameters(PRESETS[name]) == parameters


@pytest.mark.parametrize("tie_weights", [True, False])
@pytest.mark.parametrize("position_encoding", ["learned", "sinusoidal"])
@pytest.mark.parametrize("n_inner", [None, 7])
@pytest.mark.parametrize("n_layers", [1, 3])
def test_the_closed_form_counts_every_variant(n_layers, n_inner, position_encoding, tie_weights):
    config = replace(
        TOY, n_layers=n_layers, n_inner=n_inner, position_encoding=position_encoding, tie_weights=tie_weights
    )
    model = L1Model(config)
    assert count_parameters(config) == sum(p.numel() for p in model.parameters())
    assert (model.head.weight is model.embedding.token.weight) == tie_weights


def test_initial_weights_have_gpt2s_statistics():
    config = L1Config(vocab_size=400, max_seq_length=64, n_layers=8, n_heads=4, n_embd=64, tie_weights=False)
    for name, p in L1Model(config).named_parameters():
        if p.ndim < 2:
            expected = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            assert torch.equal(p, torch.full_like(p, expected)), name
            continue
        std = 0.02 / math.sqrt(2 * 8) if name.endswith("proj.weight") else 0.02
        # Five standard errors of a sample's deviation and of its mean.
        assert p.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * p.numel())), name
        assert abs(p.mean().item()) < 5 * std / math.sqrt(p.numel()), name


def test_init_std_and_the_seed_decide_the_initial_weights():
    def weights(seed, config=TOY):
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in L1Model(config).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    matrices = weights(1).abs() < 0.5  # scales of 1 and what is not normalisation
    torch.testing.assert_close(weights(1, replace(TOY, init_std=0.04))[matrices], 2 * weights(1)[matrices])


def test_init_weights_starts_a_trained_model_over():
    model = toy_model()
    init_weights(model, replace(TOY, init_std=0.0))
    assert model(toy_ids()).abs().max() == 0
    assert model.norm.weight.min() == 1


@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_the_initial_loss_is_that_of_a_blind_guess(preset):
    config = replace(PRESETS[preset], n_layers=2)
    ids = torch.randint(config.vocab_size, (2, 65))
    with torch.no_grad():
        loss = cross_entropy(L1Model(config)(ids[:, :-1]), ids[:, 1:])
    assert loss.item() == pytest.approx(math.log(config.vocab_size), abs=0.1)


@VARIANT
def test_forward_is_the_head_of_hidden(config):
    model = toy_model(config)
    logits = model(toy_ids())
    assert logits.shape == (3, 9, 23)
    assert torch.equal(logits, model.head(model.hidden(toy_ids())))


@pytest.mark.parametrize("T", [1, 4, 9])
def test_the_model_is_its_parts_in_order(T):
    model = toy_model()
    x = model.embedding.token.weight[toy_ids(T=T)] + model.embedding.position.weight[:T]
    for block in model.blocks:
        x = block(x)
    x = layer_norm(x, model.norm.weight, model.norm.bias)
    close(model(toy_ids(T=T)), x @ model.embedding.token.weight.T)


def test_names_of_the_parts_are_the_designs():
    parts = {name.split(".")[0] for name, _ in L1Model(TOY).named_parameters(remove_duplicate=False)}
    assert parts == {"embedding", "blocks", "norm", "head"}
    block = {name.rpartition(".")[0] for name, _ in TransformerBlock(TOY).named_parameters()}
    assert block == {
        "norm_1", "attention.qkv", "attention.proj", "norm_2", "feed_forward.fc", "feed_forward.proj",
    }  # fmt: skip


@VARIANT
def test_a_later_id_changes_no_earlier_logit(config):
    model = toy_model(config)
    ids = toy_ids()
    logits = model(ids)
    for t in range(1, 9):
        changed = ids.clone()
        changed[:, t] = (changed[:, t] + 1) % 23
        difference = (model(changed) - logits).abs().amax(dim=(0, 2))
        assert not difference[:t].any() and difference[t:].min() > 0


@VARIANT
def test_no_gradient_flows_from_a_logit_to_a_later_input(config):
    model = toy_model(config)
    x = model.embedding(toy_ids()).detach().requires_grad_()
    y = x
    for block in model.blocks:
        y = block(y)
    for t in range(9):
        (gradient,) = torch.autograd.grad(y[:, t].square().sum(), x, retain_graph=True)
        reach = gradient.abs().amax(dim=(0, 2))
        assert reach[: t + 1].min() > 0 and not reach[t + 1 :].any()


def test_rows_of_a_batch_do_not_mix():
    model = toy_model()
    ids = toy_ids()
    close(model(ids), torch.cat([model(row[None]) for row in ids]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_explicit_and_fused_models_agree_in_values_and_gradients(dtype):
    fused, explicit = (toy_model(VARIANTS[path], dtype) for path in ("fused", "explicit"))
    results = []
    for model in (fused, explicit):
        logits = model(toy_ids())
        results.append([logits, *torch.autograd.grad(logits.logsumexp(-1).mean(), [*model.parameters()])])
    for one, other in zip(*results, strict=True):
        # Float32: the logits reach 10 and pass through three blocks.
        room = {"rtol": 1e-9, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-4}
        torch.testing.assert_close(one, other, **room)


def test_dropout_is_active_in_training_only():
    model = toy_model(replace(TOY, dropout=0.3))
    plain = toy_model(TOY)
    assert torch.equal(model(toy_ids()), plain(toy_ids()))
    model.train()
    torch.manual_seed(1)
    first, second = model(toy_ids()), model(toy_ids())
    torch.manual_seed(1)
    assert torch.equal(model(toy_ids()), first) and not torch.equal(first, second)


CHUNKS = [(1,) * 9, (9,), (4, 1, 1, 1, 1, 1), (3, 3, 3), (1, 5, 2, 1), (8, 1)]


@VARIANT
@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_cached_logits_equal_uncached_at_every_position(config, B, chunks):
    model = toy_model(config)
    ids = toy_ids(B)
    cache = KVCache(config, B, dtype=torch.float64)
    parts = []
    for chunk in ids.split(chunks, dim=1):
        parts.append(model.head(model.hidden(chunk, cache)))
        assert cache.length == sum(part.shape[1] for part in parts)  # moves on once a call, not once a layer
    close(torch.cat(parts, dim=1), model(ids))


def test_cached_logits_equal_uncached_in_float32():
    model = toy_model(dtype=torch.float32, std=0.1)
    cache = KVCache(TOY, 3)
    parts = [model.head(model.hidden(chunk, cache)) for chunk in toy_ids().split((2, 1, 4, 1, 1), dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(toy_ids()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "ids, rule",
    [
        (toy_ids(2, 5), r"max_seq_length=9"),  # 5 + 5 positions
        (toy_ids(3, 2), r"batch_size=2, got a batch of 3"),
        (torch.tensor([[1, 2], [3, 23]]), r"0\.\.22 \(vocab_size=23\), got 23"),
        (torch.zeros(2, 0, dtype=torch.long), r"got T=0"),
    ],
)
def test_an_error_leaves_the_cache_as_it_was(ids, rule):
    model = toy_model()
    cache = KVCache(TOY, 2, dtype=torch.float64)
    start = toy_ids(2)
    model.hidden(start[:, :5], cache)
    with pytest.raises(ValueError, match=rule):
        model.hidden(ids, cache)
    assert cache.length == 5
    close(model.hidden(start[:, 5:], cache), model.hidden(start)[:, 5:])


@pytest.mark.parametrize("T", [10, 100])
def test_sequences_beyond_the_context_are_refused(T):
    with pytest.raises(ValueError, match=rf"max_seq_length=9, .*got T={T}, offset=0"):
        toy_model()(toy_ids(T=T))


@pytest.mark.parametrize("wrong", [-1, 23])
def test_ids_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=rf"ids must be in 0\.\.22 \(vocab_size=23\), got {wrong}"):
        toy_model()(torch.tensor([[0, wrong]]))


@pytest.mark.parametrize("path", ["fused", "explicit"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_checkpointing_changes_memory_but_not_loss_nor_gradients(path, dropout):
    results, kept = [], []
    ids = toy_ids()
    for checkpointing in (False, True):
        model = toy_model(replace(TOY, dropout=dropout, attention=path)).train()
        model.checkpointing = checkpointing
        torch.manual_seed(2)
        loss = cross_entropy(model(ids[:, :-1]), ids[:, 1:])
        loss.backward()
        results.append([loss, torch.rand(1), *(p.grad for p in model.parameters())])  # and chance goes on the same
        kept.append(saved_bytes(model, lambda model=model: cross_entropy(model(ids[:, :-1]), ids[:, 1:])))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    assert kept[1] < 0.5 * kept[0]


def test_a_checkpointed_block_gives_the_same_and_keeps_its_input_only():
    block = toy_model(replace(TOY, dropout=0.4)).blocks[1].train()
    x = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    results = []
    for run in (block, lambda x: checkpointed(block, x)):
        torch.manual_seed(4)
        y = run(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *block.parameters()])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    assert saved_bytes(block, lambda: checkpointed(block, x)) == x.nbytes


def test_checkpointing_does_not_disturb_inference():
    model = toy_model()
    expected = model(toy_ids())
    model.checkpointing = True
    with torch.no_grad():
        assert torch.equal(model(toy_ids()), expected)
    cache = KVCache(TOY, 3, dtype=torch.float64)
    close(model.head(model.hidden(toy_ids(), cache)), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@VARIANT
def test_copies_in_other_precisions_run_forward_backward_and_cached(config, dtype):
    exact, model = toy_model(config, torch.float64, std=0.1), toy_model(config, dtype, std=0.1)
    logits = model(toy_ids())
    assert logits.dtype == dtype
    # The weights are rounded, and every sum after them: some tens of roundings of values near 1.
    close_enough = {"rtol": 0.0, "atol": max(32 * torch.finfo(dtype).eps, 1e-6)}
    torch.testing.assert_close(logits.double(), exact(toy_ids()), **close_enough)
    cache = KVCache(config, 3, dtype=dtype)
    cached = torch.cat([model.head(model.hidden(c, cache)) for c in toy_ids().split(4, dim=1)], dim=1)
    torch.testing.assert_close(cached, logits, **close_enough)
    cross_entropy(logits, toy_ids()).backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in model.parameters())


def test_a_model_survives_its_state_dict():
    first, second = toy_model(), L1Model(TOY).double()
    second.load_state_dict(first.state_dict(), strict=True)
    assert torch.equal(second(toy_ids()), first(toy_ids()))
    assert second.head.weight is second.embedding.token.weight


COMPILED = """
import torch
from l1_ref.config import L1Config
from l1_ref.transformer import L1Model
torch.manual_seed(7)
model = L1Model(L1Config(vocab_size=23, max_seq_length=9, n_layers=1, n_heads=2, n_embd=12, dropout=0.0))
ids = torch.randint(23, (3, 9))
with torch.no_grad():
    for p in model.parameters():
        p.normal_(std=0.1)
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(compiled(ids), model(ids), rtol=1e-4, atol=1e-5)
"""


def test_the_compiler_sees_the_whole_model_as_one_graph_with_the_same_logits():
    # In a process of its own: the compiler cannot look through the hook on annotations. The graph is run as it was
    # captured, so that no C++ compiler is needed and the test takes seconds, not a minute.
    root = Path(__file__).resolve().parents[1]
    result = subprocess.run([sys.executable, "-c", COMPILED], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("on_amd", [True, False])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4), (3, 100_000)], ids=str)
def test_gelu_in_training_has_the_values_and_gradients_of_torchs(shape, on_amd, monkeypatch):
    monkeypatch.setattr("l1_ref.transformer.ON_AMD", on_amd)
    x = (3 * torch.randn(shape)).requires_grad_()
    ours, torchs = gelu(x), F.gelu(x, approximate="tanh")
    torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-6)
    direction = torch.randn(shape)
    (mine,), (theirs,) = (torch.autograd.grad(y, x, direction) for y in (ours, torchs))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("on_amd", [True, False])
def test_gelu_takes_what_is_not_contiguous_and_what_is_large(on_amd, monkeypatch):
    monkeypatch.setattr("l1_ref.transformer.ON_AMD", on_amd)
    x = torch.randn(6, 5).t().requires_grad_()
    torch.testing.assert_close(gelu(x), F.gelu(x, approximate="tanh"), rtol=1e-5, atol=1e-6)
    ends = torch.tensor([-1e4, -40.0, 0.0, 40.0, 1e4], requires_grad=True)
    gelu(ends).sum().backward()
    assert torch.equal(ends.grad, torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))
