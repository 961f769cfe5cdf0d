"""Linear layers by oneDNN beside torch's own, and models stored for generation."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from l1_ref import linear as module
from l1_ref.config import L1Config
from l1_ref.data import make_document_corpus
from l1_ref.files import DATA_DIR
from l1_ref.linear import STORED_AS, Linear, StoredLinear, linear, store_for_generation, suits_onednn
from l1_ref.optimization import build_optimizer
from l1_ref.steps import evaluate, train_step
from l1_ref.tales import load_tales
from l1_ref.transformer import L1Model
from l1_ref.weights import load_run, save_model

# Sums of 48 products in float32, in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
TINY = replace(L1Config.preset("tiny"), dropout=0.0)


@pytest.fixture(params=[True, False], ids=["onednn", "fallback"])
def library(request, monkeypatch):
    """Send every product, however small, to oneDNN, or none at all, as on a build of torch without it."""
    if not request.param:
        monkeypatch.setattr(module, "_ONEDNN", None)
    monkeypatch.setattr(module, "ON_AMD", True)
    monkeypatch.setattr(module, "MIN_PRODUCTS", 1)
    monkeypatch.setattr(module, "MIN_PRODUCTS_WITH_GRADIENTS", 1)
    return request.param


@pytest.mark.parametrize("on_amd", [True, False])
@pytest.mark.parametrize("n_rows", [1, 2, 16, 17, 400])
def test_onednn_gets_what_it_is_faster_at(monkeypatch, on_amd, n_rows):
    monkeypatch.setattr(module, "ON_AMD", on_amd)
    x, weight, smaller = torch.zeros(n_rows, 800), torch.zeros(700, 800), torch.zeros(300, 800)
    with torch.no_grad():
        assert suits_onednn(x, weight) == (on_amd or n_rows in {2, 16})
        by_columns = weight.t().contiguous().t()
        assert suits_onednn(x, by_columns) == (on_amd and n_rows > 16)
    # With gradients a product must be larger: 17 rows of 800 by 300 are 4.08 million multiplications, below 2**22.
    assert suits_onednn(x, smaller) == (on_amd and n_rows == 400)


def test_this_torch_has_the_function_that_the_fast_path_is_made_of():
    assert module._ONEDNN is not None


@pytest.mark.parametrize("shape", [(48,), (1, 48), (7, 48), (2, 3, 48), (2, 3, 4, 48)], ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("by_columns", [True, False])
def test_values_and_gradients_are_those_of_torchs_linear(library, shape, with_bias, by_columns):
    x = torch.randn(shape, requires_grad=True)
    weight = torch.randn(20, 48)
    weight = (weight.t().contiguous().t() if by_columns else weight).requires_grad_()
    bias = torch.randn(20, requires_grad=True) if with_bias else None
    leaves = [each for each in (x, weight, bias) if each is not None]
    ours, torchs = linear(x, weight, bias), F.linear(x, weight, bias)
    torch.testing.assert_close(ours, torchs, **CLOSE)
    direction = torch.randn_like(torchs)
    for mine, theirs in zip(
        torch.autograd.grad(ours, leaves, direction), torch.autograd.grad(torchs, leaves, direction), strict=True
    ):
        torch.testing.assert_close(mine, theirs, **CLOSE)
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight, bias), torchs, **CLOSE)


@pytest.mark.parametrize("frozen", ["x", "weight", "bias"])
def test_no_gradient_is_made_that_nobody_wants(library, frozen):
    parts = {"x": torch.randn(6, 48), "weight": torch.randn(20, 48), "bias": torch.randn(20)}
    for name, tensor in parts.items():
        tensor.requires_grad_(name != frozen)
    linear(**parts).sum().backward()
    assert [name for name, tensor in parts.items() if tensor.grad is None] == [frozen]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_and_autocast_are_left_to_torch(library, dtype):
    x, weight = torch.randn(7, 48, dtype=dtype), torch.randn(20, 48, dtype=dtype)
    assert torch.equal(linear(x, weight), F.linear(x, weight))
    if dtype != torch.float64:
        with torch.autocast("cpu", dtype):
            assert linear(x.float(), weight.float()).dtype == dtype


def test_the_layer_is_torchs_layer_with_the_same_parameters():
    torch.manual_seed(0)
    ours = Linear(48, 20)
    torch.manual_seed(0)
    theirs = nn.Linear(48, 20)
    assert isinstance(ours, nn.Linear) and ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("n_threads", [1, 2])
def test_float32_storage_changes_where_numbers_lie_and_nothing_else(n_threads):
    before_threads = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        model = L1Model(TINY).eval()
        ids = torch.randint(0, 1_000, (2, 9))
        before, text = model(ids), model.generate(ids, 12, do_sample=False)
        assert store_for_generation(model) is model
        # These matrices are too small for threads to share: the longer side lies in order.
        assert model.head.weight.stride() == (1, 1_000)
        assert model.blocks[0].feed_forward.proj.weight.stride() == (512, 1)
        assert model.head.weight is model.embedding.token.weight
        torch.testing.assert_close(model(ids), before, rtol=1e-5, atol=1e-5)
        assert torch.equal(model.generate(ids, 12, do_sample=False), text)
        train_step(model, ids[:, :-1], ids[:, 1:], build_optimizer(model, 1e-3))
        assert model.blocks[0].attention.qkv.weight.grad.shape == (384, 128)
    finally:
        torch.set_num_threads(before_threads)


@pytest.mark.parametrize(
    "n_threads, batch_size, n_in, n_out, on_amd, by_rows",
    [
        (1, 1, 256, 2048, True, False),  # one thread runs through the columns
        (1, 1, 1024, 1024, True, True),  # but not where they are no longer than the rows
        (2, 1, 256, 4096, True, True),  # oneDNN's threads share the rows
        (2, 1, 256, 2048, False, False),  # MKL's threads share the columns
        (1, 8, 256, 4096, True, True),
        (2, 8, 256, 2048, False, True),
    ],
)
def test_large_matrices_are_stored_as_they_are_read_fastest(
    monkeypatch, n_threads, batch_size, n_in, n_out, on_amd, by_rows
):
    layer, before = Linear(n_in, n_out), torch.get_num_threads()
    monkeypatch.setattr("l1_ref.linear.ON_AMD", on_amd)
    torch.set_num_threads(n_threads)
    try:
        stride = store_for_generation(layer, batch_size=batch_size).weight.stride()
        assert stride == ((n_in, 1) if by_rows else (1, n_out))
    finally:
        torch.set_num_threads(before)


def test_a_batch_size_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"batch_size must be .* of at least 1, got batch_size=0"):
        store_for_generation(L1Model(TINY), batch_size=0)


@pytest.mark.parametrize("n_in", [8, 48, 50, 64])
@pytest.mark.parametrize("stored_as, error", [("bfloat16", 2**-8), ("int8", 1 / 254)])
def test_fewer_bits_keep_each_number_within_their_rounding(stored_as, error, n_in):
    layer = nn.Linear(n_in, 20)
    stored = StoredLinear(layer, stored_as)
    scale = 1.0 if stored.scale is None else stored.scale.float()[:, None]
    kept = stored.matrix.float() * scale
    largest = layer.weight.detach().abs().amax(1, keepdim=True)
    # Half a step of the row's largest number, and the scale itself rounds by 2^-8 at most.
    assert ((kept - layer.weight).abs() <= largest * (error + 2**-8)).all()
    x = torch.randn(2, 3, n_in)
    expected = F.linear(x, kept, layer.bias)
    torch.testing.assert_close(stored(x), expected.detach(), rtol=0.02, atol=0.05)  # the product is in bfloat16
    assert stored(x).dtype == torch.float32 and stored(x[0, 0]).shape == (20,)


def test_a_row_of_zeros_stays_a_row_of_zeros():
    layer = nn.Linear(8, 3)
    nn.init.zeros_(layer.weight)
    assert torch.equal(StoredLinear(layer, "int8")(torch.randn(2, 8)), layer.bias.detach().expand(2, 3))


@pytest.mark.parametrize("stored_as", ["bfloat16", "int8"])
@pytest.mark.parametrize(
    "x",
    [torch.ones(16, 3).t(), torch.ones(4, 2, 16).transpose(0, 1), torch.ones(0, 16), torch.ones(2, 3, 16)[:, -1]],
    ids=["transposed", "turned", "empty", "a slice"],
)
def test_fewer_bits_take_inputs_however_they_lie_in_memory(stored_as, x):
    stored = StoredLinear(nn.Linear(16, 5), stored_as)
    assert torch.equal(stored(x), stored(x.contiguous())) and stored(x).shape == (*x.shape[:-1], 5)


@pytest.mark.parametrize("stored_as", ["bfloat16", "int8"])
def test_fewer_bits_cost_the_trained_model_little(stored_as):
    run = load_run(DATA_DIR / "tiny")
    model, tales = run.model, load_tales("validation")[:40]
    batches = make_document_corpus(tales[:1], tales, run.tokenizer).validation_batches(128, 16)
    exact = evaluate(model, batches)
    n_bytes = sum(p.nbytes for p in model.parameters())
    store_for_generation(model, stored_as)
    assert abs(evaluate(model, batches) - exact) < 0.005  # nats a token
    assert 0.4 < exact < 0.6
    left = sum(each.nbytes for layer in model.modules() if isinstance(layer, StoredLinear) for each in layer.buffers())
    assert left < n_bytes / (1.8 if stored_as == "bfloat16" else 3.5)
    prompt = batches[0][0][:2, :5]
    ids = model.generate(prompt, 7, do_sample=False)
    assert ids.shape == (2, 12) and torch.equal(ids[:, :5], prompt)


def test_a_model_in_fewer_bits_is_stored_once_and_not_saved(tmp_path):
    model = store_for_generation(L1Model(TINY), "int8")
    with pytest.raises(ValueError, match="stored_as must be chosen once, got stored_as='bfloat16'"):
        store_for_generation(model, "bfloat16")
    with pytest.raises(ValueError, match="saved in float32"):
        save_model(model, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_storage_is_named_with_those_that_are_known():
    with pytest.raises(ValueError, match="one of float32, bfloat16, int8, got stored_as='int4'"):
        store_for_generation(L1Model(TINY), "int4")
    assert STORED_AS == ("float32", "bfloat16", "int8")
