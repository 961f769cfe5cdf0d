"""Attention against torch's, against loops, and the fused path against its explicit twin."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from l1_ref.attention import (
    KVCache,
    MultiHeadAttention,
    attention_weights,
    causal_mask,
    merge_heads,
    scaled_dot_product_attention,
    softmax,
    split_heads,
)
from l1_ref.config import L1Config
from tests.plain_python import answers

TOY = L1Config(vocab_size=11, max_seq_length=8, n_layers=2, n_heads=3, n_embd=12, dropout=0.0)
# Float32 sums in another order: gradients reach 50 here, and cancel; float64 shows that nothing else differs.
TOLERANCE = {torch.float32: {"rtol": 1e-4, "atol": 2e-5}, torch.float64: {"rtol": 1e-12, "atol": 1e-12}}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def queries_keys_values(B=2, H=3, T=4, S=6, D=5, dtype=torch.float32):
    return [torch.randn(B, H, n, D, dtype=dtype, requires_grad=True) for n in (T, S, S)]


def values_and_gradients(function, inputs):
    y = function(*inputs)
    upstream = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return y, *torch.autograd.grad(y, inputs, upstream)


def assert_all_close(actual, expected, dtype=torch.float32):
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, **TOLERANCE[dtype])


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
@DTYPES
def test_softmax_equals_torch_in_values_and_gradients(dtype, dim):
    x = (10 * torch.randn(3, 4, 5, dtype=dtype)).requires_grad_()
    ours = values_and_gradients(lambda x: softmax(x, dim), [x])
    assert_all_close(ours, values_and_gradients(lambda x: torch.softmax(x, dim), [x]), dtype)
    torch.testing.assert_close(ours[0].sum(dim), torch.ones_like(ours[0].sum(dim)))


def test_softmax_is_stable_and_leaves_its_input_alone():
    x = torch.tensor([[1e4, 1e4 - 1, -1e4], [-1e30, -1e30, -1e30], [3e38, 0.0, -3e38], [0.0, -math.inf, -math.inf]])
    before = x.clone()
    p = softmax(x, dim=-1)
    e = math.exp(-1)
    expected = [[1 / (1 + e), e / (1 + e), 0], [1 / 3] * 3, [1, 0, 0], [1, 0, 0]]
    torch.testing.assert_close(p, torch.tensor(expected))
    assert torch.equal(x, before)


@pytest.mark.parametrize("T, S", [(1, 1), (4, 4), (1, 5), (3, 5)])
def test_causal_mask_lets_each_query_see_itself_and_what_is_before(T, S):
    mask = causal_mask(T, S)
    assert mask.dtype == torch.bool
    assert mask.tolist() == [[s <= S - T + t for s in range(S)] for t in range(T)]


@pytest.mark.parametrize("T, S", [(3, 2), (0, 2), (-1, 4)])
def test_causal_mask_refuses_more_queries_than_keys(T, S):
    with pytest.raises(ValueError, match=rf"T must be in 1\.\.S, .* got T={T}, S={S}"):
        causal_mask(T, S)


def masks(B=2, H=3, T=4, S=6):
    generator = torch.Generator().manual_seed(1)
    padding = torch.arange(S) < torch.tensor([[6], [2]])
    anything = torch.rand(B, H, T, S, generator=generator) < 0.5
    anything[0, 1, 2] = False  # one query that may attend to nothing
    return {
        "none": None,
        "causal (T, S)": causal_mask(T, S),
        "padding (B, 1, 1, S)": padding[:, None, None],
        "padding and causal (B, 1, T, S)": padding[:, None, None] & causal_mask(T, S),
        "a row empty (B, H, T, S)": anything,
        "all empty (1, 1, 1, 1)": torch.zeros(1, 1, 1, 1, dtype=torch.bool),
    }


MASKS = pytest.mark.parametrize("mask", masks().values(), ids=masks().keys())


@MASKS
@DTYPES
def test_attention_equals_torch_in_values_and_gradients(dtype, mask):
    inputs = queries_keys_values(dtype=dtype)
    ours = values_and_gradients(lambda q, k, v: scaled_dot_product_attention(q, k, v, mask), inputs)
    torchs = values_and_gradients(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask), inputs)
    assert_all_close(ours, torchs, dtype)


@MASKS
def test_attention_weights_equal_a_loop_over_queries(mask):
    q, k, _ = (x.detach() for x in queries_keys_values(dtype=torch.float64))
    weights = attention_weights(q, k, mask)
    allowed = torch.ones(2, 3, 4, 6, dtype=torch.bool) if mask is None else mask.expand(2, 3, 4, 6)
    for b, h, t in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(4)).tolist():
        exponentials = [
            math.exp(q[b, h, t].dot(k[b, h, s]) / math.sqrt(5)) if allowed[b, h, t, s] else 0.0 for s in range(6)
        ]
        total = sum(exponentials) or 1.0  # nothing allowed: zeros
        expected = torch.tensor([e / total for e in exponentials], dtype=torch.float64)
        torch.testing.assert_close(weights[b, h, t], expected, rtol=1e-12, atol=1e-12)


def test_a_fully_masked_query_gives_zeros_and_finite_gradients():
    inputs = queries_keys_values(T=6)
    mask = causal_mask(6, 6).logical_and(torch.arange(6)[:, None] != 2)
    y, *gradients = values_and_gradients(lambda q, k, v: scaled_dot_product_attention(q, k, v, mask), inputs)
    assert not y[:, :, 2].any()
    assert y[:, :, [0, 1, 3, 4, 5]].abs().amin() > 0
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0][:, :, 2].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_masked_attention_works_in_half_precision(dtype):
    inputs = queries_keys_values(dtype=dtype)
    mask = masks()["a row empty (B, H, T, S)"]
    ours = scaled_dot_product_attention(*inputs, mask)
    exact = scaled_dot_product_attention(*(x.double() for x in inputs), mask)
    assert ours.dtype == dtype and ours.isfinite().all()
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_dropout_in_the_function_drops_weights_whenever_it_is_not_zero():
    q, k, _ = queries_keys_values(B=8, T=16, S=16, D=16)
    identity = torch.eye(16).expand(8, 3, 16, 16)  # as values, it shows the weights
    weights = attention_weights(q, k)
    dropped = scaled_dot_product_attention(q, k, identity, dropout_p=0.25)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], weights[kept] / 0.75)
    assert 0.70 < kept.float().mean() < 0.80
    torch.testing.assert_close(scaled_dot_product_attention(q, k, identity), weights)


@pytest.mark.parametrize("n_heads", [1, 2, 3, 6])
def test_split_and_merge_are_inverses_and_cut_the_width(n_heads):
    x = torch.randn(2, 5, 6)
    heads = split_heads(x, n_heads)
    D = 6 // n_heads
    assert heads.shape == (2, n_heads, 5, D)
    for h in range(n_heads):
        assert torch.equal(heads[:, h], x[..., h * D : (h + 1) * D])
    assert torch.equal(merge_heads(heads), x)


def test_split_heads_takes_a_view_that_is_not_contiguous():
    x = torch.randn(2, 6, 5).transpose(1, 2)
    assert torch.equal(split_heads(x, 3), split_heads(x.contiguous(), 3))


def test_split_heads_refuses_a_width_that_does_not_divide():
    with pytest.raises(ValueError, match="C must be a multiple of n_heads, got C=6, n_heads=4"):
        split_heads(torch.randn(1, 2, 6), 4)


def attention_layer(config=TOY, layer=0, dtype=torch.float32):
    """Return a layer whose biases are not zero."""
    torch.manual_seed(3)
    module = MultiHeadAttention(config, layer).to(dtype).eval()
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return module


PATHS = pytest.mark.parametrize("path", ["fused", "explicit"])


@PATHS
def test_layer_equals_a_loop_over_heads(path):
    module = attention_layer(replace(TOY, attention=path), dtype=torch.float64)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    W, bias = module.qkv.weight, module.qkv.bias
    heads = []
    for h in range(3):  # rows [q | k | v], each head's four rows together
        q, k, v = (x @ W[start : start + 4].T + bias[start : start + 4] for start in (4 * h, 12 + 4 * h, 24 + 4 * h))
        scores = (q @ k.mT / 2).masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
        heads.append(scores.softmax(-1) @ v)
    expected = torch.cat(heads, dim=-1) @ module.proj.weight.T + module.proj.bias
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("T", [1, 2, 8])
@DTYPES
def test_the_two_paths_agree_in_values_and_gradients(dtype, T):
    results = []
    for path in ("fused", "explicit"):
        module = attention_layer(replace(TOY, attention=path), dtype=dtype)
        torch.manual_seed(5)
        x = torch.randn(3, T, 12, dtype=dtype, requires_grad=True)
        y = module(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])))
    assert_all_close(*results, dtype)


@pytest.mark.parametrize("chunks", [(1, 1, 1), (3, 1, 4), (1, 7), (8,), (2, 2, 2, 2)], ids=str)
@PATHS
def test_a_cached_layer_equals_the_whole_sequence(path, chunks):
    module = attention_layer(replace(TOY, attention=path), layer=1, dtype=torch.float64)
    x = torch.randn(2, sum(chunks), 12, dtype=torch.float64)
    cache = KVCache(TOY, 2, dtype=torch.float64)
    parts = []
    for chunk in x.split(chunks, dim=1):
        parts.append(module(chunk, cache))
        cache.length += chunk.shape[1]  # the model's task, once for all layers
    torch.testing.assert_close(torch.cat(parts, dim=1), module(x), rtol=1e-12, atol=1e-12)
    assert not cache.keys[0].any() and cache.keys[1, :, :, : cache.length].any()


@PATHS
def test_dropout_works_in_training_only(path):
    module = attention_layer(replace(TOY, attention=path, dropout=0.5))
    x = torch.randn(2, 8, 12)
    assert torch.equal(module(x), module(x))
    dropped = module.train()(x)
    assert 0.3 < (dropped == 0).float().mean() < 0.7  # after proj
    module.proj.weight.data.copy_(torch.eye(12))
    module.proj.bias.data.zero_()
    module.dropout = 0.999999  # no weight survives, nor anything else
    assert not module(x).any()


def test_a_new_cache_is_empty_and_as_large_as_the_context():
    cache = KVCache(TOY, 2, dtype=torch.float64)
    assert cache.length == 0
    assert cache.keys.shape == cache.values.shape == (2, 2, 3, 8, 4)
    assert cache.keys.dtype == cache.values.dtype == torch.float64
    assert KVCache(TOY, 1).keys.dtype == torch.float32


def test_append_returns_all_so_far_and_leaves_the_length_to_the_caller():
    cache = KVCache(TOY, 2)
    k, v = torch.randn(2, 2, 3, 5, 4)
    for layer in range(2):
        keys, values = cache.append(layer, k, v)
        assert torch.equal(keys, k) and torch.equal(values, v)
    assert cache.length == 0
    cache.length = 5
    more_k, more_v = torch.randn(2, 2, 3, 3, 4)
    keys, values = cache.append(1, more_k, more_v)
    assert torch.equal(keys, torch.cat((k, more_k), dim=2))
    assert torch.equal(values, torch.cat((v, more_v), dim=2))
    assert torch.equal(cache.keys[0, :, :, :5], k) and not cache.keys[0, :, :, 5:].any()


@pytest.mark.parametrize("length, T", [(0, 9), (8, 1), (6, 3)])
def test_append_refuses_what_does_not_fit(length, T):
    cache = KVCache(TOY, 1)
    cache.length = length
    with pytest.raises(ValueError, match=rf"room for max_seq_length=8 tokens, got length={length}.* T={T} more"):
        cache.append(0, *torch.randn(2, 1, 3, T, 4))
    assert cache.length == length


@pytest.mark.parametrize("B", [1, 3])
def test_append_refuses_another_batch(B):
    with pytest.raises(ValueError, match=f"made for batch_size=2, got a batch of {B}"):
        KVCache(TOY, 2).append(0, *torch.randn(2, B, 3, 1, 4))


def test_a_cache_needs_a_sequence():
    setup = "from l1_ref.attention import KVCache; from l1_ref.config import L1Config"
    expected = {
        f"KVCache(L1Config.preset('tiny'), {wrong!r})": "ValueError: batch_size must be a whole number of at least 1, "
        f"got batch_size={wrong!r}"
        for wrong in (0, -1, 2.5, True, "x")
    }
    assert answers(setup, list(expected)) == expected
