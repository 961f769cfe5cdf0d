"""Decoding a token at a time writes what the modules write, and leaves every changed or watched model to them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from l1_ref import linear
from l1_ref.attention import KVCache
from l1_ref.config import L1Config
from l1_ref.decoding import Decoder, is_plain
from l1_ref.linear import store_for_generation
from l1_ref.transformer import L1Model

SMALL = L1Config(vocab_size=40, max_seq_length=12, n_layers=3, n_heads=2, n_embd=16, dropout=0.5)


def model_for(config=SMALL):
    """Return a model in eval mode whose every parameter matters: biases and scales too."""
    model = L1Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def assert_decodes_like_its_modules(model, B, tolerance, n_steps=1):
    ids = torch.randint(40, (B, 12))
    dtype = model.embedding.token.weight.dtype
    by_modules, by_decoder = (KVCache(model.config, B, dtype) for _ in range(2))
    with torch.no_grad():
        for cache in (by_modules, by_decoder):
            model.hidden(ids[:, :4], cache)
        decoder = Decoder(model, by_decoder, n_steps)
        for t in range(4, 12):
            expected = model.head(model.hidden(ids[:, t : t + 1], by_modules)[:, -1])
            torch.testing.assert_close(decoder.step(ids[:, t : t + 1]), expected, rtol=tolerance, atol=tolerance)
            assert by_decoder.length == by_modules.length == t + 1
        torch.testing.assert_close(by_decoder.keys, by_modules.keys, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(by_decoder.values, by_modules.values, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize(
    "changes",
    [{}, {"position_encoding": "sinusoidal"}, {"tie_weights": False}, {"attention": "explicit"}, {"n_inner": 24}],
)
def test_it_computes_what_the_modules_compute(changes, B):
    assert_decodes_like_its_modules(model_for(replace(SMALL, **changes)), B, 1e-5)


@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.bfloat16, 0.05)])
def test_it_does_so_in_other_dtypes(dtype, tolerance, B):
    assert_decodes_like_its_modules(model_for().to(dtype), B, tolerance)


@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("stored_as, tolerance", [("float32", 1e-5), ("bfloat16", 0.05), ("int8", 0.05)])
def test_it_does_so_for_stored_models(stored_as, tolerance, B):
    assert_decodes_like_its_modules(store_for_generation(model_for(), stored_as, B), B, tolerance)


def test_a_large_layer_goes_to_the_library_that_suits_it():
    model = model_for(replace(SMALL, n_embd=256, n_inner=2048))
    for n_threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(n_threads)
        try:
            assert_decodes_like_its_modules(store_for_generation(model), 1, 1e-4)
        finally:
            torch.set_num_threads(before)


@pytest.mark.skipif(linear._ONEDNN is None, reason="this build of torch lacks oneDNN's product")
@pytest.mark.parametrize("n_threads", [1, 2])
def test_on_amd_large_products_go_to_onednn_wherever_a_decoder_is_made(monkeypatch, n_threads):
    monkeypatch.setattr(linear, "ON_AMD", True)
    before, used = torch.get_num_threads(), []
    monkeypatch.setattr(linear, "_ONEDNN", lambda x, *rest, op=linear._ONEDNN: used.append(x.shape) or op(x, *rest))
    torch.set_num_threads(n_threads)
    try:
        model = store_for_generation(model_for(replace(SMALL, n_layers=2, n_embd=256, n_inner=2048)))
        decoder = Decoder(model, KVCache(model.config, 1))  # where gradients are on, which asks more of a product
        decoder.step(torch.tensor([[5]]))
    finally:
        torch.set_num_threads(before)
    assert used == ([(2048,)] if n_threads == 1 else [(256,), (2048,)]) * 2  # one thread is faster by columns


@pytest.mark.skipif(linear._PACK is None, reason="this build of torch lacks oneDNN's own order")
def test_on_amd_matrices_are_packed_for_several_rows_and_many_steps(monkeypatch):
    monkeypatch.setattr(linear, "ON_AMD", True)
    packs = []
    monkeypatch.setattr(linear, "_PACK", lambda weight, n, op=linear._PACK: packs.append(n) or op(weight, n))
    model = model_for(replace(SMALL, n_layers=2, n_embd=256, n_inner=2048, tie_weights=False))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert_decodes_like_its_modules(model, 3, 1e-4, n_steps=linear.MIN_REPEATS)
    assert packs == [3, 3, 3] * 2  # qkv, fc and its projection; the others are small
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for B, n_steps in ((1, 100), (3, linear.MIN_REPEATS - 1), (linear.FEW_ROWS + 1, 100)):
        assert_decodes_like_its_modules(model, B, 1e-4, n_steps)
    assert len(packs) == 6
    ids = torch.randint(40, (2, 3))
    model.generate(ids, max_new_tokens=linear.MIN_REPEATS + 1, do_sample=False)  # more than the context holds
    assert len(packs) == 6
    long = model_for(replace(SMALL, n_layers=1, n_embd=256, n_inner=2048, max_seq_length=linear.MIN_REPEATS + 3))
    assert long.generate(ids, linear.MIN_REPEATS + 1).shape == (2, 3 + linear.MIN_REPEATS + 1)
    assert packs[6:] == [2, 2]  # for two rows qkv is small too


def test_a_full_cache_is_refused():
    model, cache = model_for(), KVCache(SMALL, 1)
    decoder, cache.length = Decoder(model, cache), 11
    decoder.step(torch.tensor([[5]]))
    with pytest.raises(IndexError, match="out of bounds for dimension 0 with size 12"):
        decoder.step(torch.tensor([[5]]))


class Louder(nn.LayerNorm):
    def forward(self, x):
        return 2 * super().forward(x)


def test_changed_and_watched_models_are_left_to_their_modules():
    assert is_plain(model_for()) and is_plain(store_for_generation(model_for(), "int8"))
    assert not is_plain(nn.Linear(3, 3))
    model = model_for()
    model.blocks[1].norm_2 = Louder(16)
    assert not is_plain(model)
    ids = torch.randint(40, (1, 4))
    torch.testing.assert_close(
        model.generate(ids, 6, do_sample=False), model.generate(ids, 6, do_sample=False, use_cache=False)
    )
    for register in ("register_forward_hook", "register_forward_pre_hook"):
        model, seen = model_for(), []
        handle = getattr(model.blocks[1].attention, register)(lambda *args, seen=seen: seen.append(1))
        assert not is_plain(model)
        model.generate(ids, 6)
        assert len(seen) == 6
        handle.remove()
        assert is_plain(model)
