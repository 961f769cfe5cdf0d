"""Weights on disk, and GPT-2's weights in and out."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import save_file

from l1_ref.config import L1Config
from l1_ref.tokenizer import CharTokenizer, save_tokenizer
from l1_ref.transformer import L1Model
from l1_ref.weights import from_gpt2, load_gpt2, load_model, load_run, read_tensors, save_model, to_gpt2

CONFIG = L1Config(vocab_size=11, max_seq_length=8, n_layers=2, n_heads=2, n_embd=8, dropout=0.0)
VARIANTS = [{}, {"tie_weights": False}, {"position_encoding": "sinusoidal"}, {"n_inner": 12}]


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, CONFIG.vocab_size, (2, 8))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_model_comes_back_the_same(tmp_path, ids, variant):
    model = L1Model(replace(CONFIG, **variant)).eval()
    save_model(model, tmp_path / "new" / "folder")
    loaded = load_model(tmp_path / "new" / "folder")
    assert loaded.config == model.config
    assert not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    torch.testing.assert_close(loaded(ids), model(ids))


def test_a_tied_matrix_is_saved_once_and_still_tied_when_loaded(tmp_path):
    model = L1Model(CONFIG)
    save_model(model, tmp_path)
    tensors, _ = read_tensors(tmp_path / "model.safetensors")
    assert "head.weight" not in tensors
    loaded = load_model(tmp_path)
    assert loaded.head.weight is loaded.embedding.token.weight


def test_missing_truncated_and_foreign_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_model(tmp_path)
    save_model(L1Model(CONFIG), tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-10], whole[:20], b"", b"PK\x03\x04 a pickle in a zip"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"must be a whole safetensors file, .*model\.safetensors is not"):
            load_model(tmp_path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"missing .*blocks\.0.* unknown \['weight'\] \(1\)"):
        load_model(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="must be a safetensors file, found none"):
        load_model(tmp_path)


def test_one_changed_bit_is_noticed(tmp_path):
    save_model(L1Model(CONFIG), tmp_path)
    path = tmp_path / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="its checksum does not fit, so it was changed or damaged"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("tensor", "rule"),
    [
        (torch.full((11, 8), torch.nan), "must hold finite numbers, got inf or nan"),
        (torch.ones(11, 8, dtype=torch.int32), "must hold floating-point numbers, got torch.int32"),
    ],
)
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path, tensor, rule):
    save_model(L1Model(CONFIG), tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = read_tensors(path)[0] | {"embedding.token.weight": tensor}
    save_file({name: each.clone() for name, each in tensors.items()}, path)
    with pytest.raises(ValueError, match=rf"embedding\.token\.weight of .* {rule}"):
        load_model(tmp_path)


def test_equal_weights_make_equal_files(tmp_path):
    torch.manual_seed(0)
    first = L1Model(CONFIG)
    for name in ("a", "b", "c", "d"):
        save_model(first, tmp_path / name)
    assert len({(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b", "c", "d")}) == 1


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"n_layers": 10**9}, r"config\.json must belong to .*model\.safetensors, got .* parameters and"),
        ({"max_seq_length": 2**31 - 1, "position_encoding": "sinusoidal"}, "the memory must hold at least"),
    ],
)
def test_a_configuration_far_beyond_the_weights_is_refused_before_it_is_built(tmp_path, change, rule):
    save_model(L1Model(CONFIG), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict() | change))
    with pytest.raises(ValueError, match=rule):
        load_model(tmp_path)


def test_weights_of_another_shape_are_refused_by_name(tmp_path):
    save_model(L1Model(CONFIG), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(replace(CONFIG, vocab_size=12).to_dict()))
    with pytest.raises(ValueError, match=r"embedding\.token\.weight .* must have shape \(12, 8\), got \(11, 8\)"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[1]", "must hold a JSON object, got list"),
        ('{"n_layers": 0}', "n_layers must be"),
        ('{"layers": 2}', "unknown layers"),
        ('{"n_layers"', "is not JSON"),
    ],
)
def test_a_configuration_that_is_none_is_named(tmp_path, text, named):
    save_model(L1Model(CONFIG), tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.json.*{named}"):
        load_model(tmp_path)


def test_a_run_whose_tokenizer_has_another_vocabulary_is_refused(tmp_path):
    save_model(L1Model(CONFIG), tmp_path)
    save_tokenizer(CharTokenizer("abc"), tmp_path)
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match="must have one vocabulary, got 3 and 11 tokens"):
        load_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="must be a folder that `l1 train` wrote"):
        load_run(tmp_path / "nowhere")


def gpt2(n_layers: int, n_heads: int = 4, n_embd: int = 64, vocab_size: int = 300, seed: int = 0):
    """Return a `transformers` GPT-2 whose weights are random in every part, biases and norms too."""
    config = transformers.GPT2Config(
        vocab_size=vocab_size, n_positions=64, n_embd=n_embd, n_layer=n_layers, n_head=n_heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.mark.parametrize(("n_layers", "n_heads", "n_embd"), [(2, 4, 64), (3, 2, 32), (12, 12, 768)])
def test_gpt2_gives_the_same_logits_here_and_there(n_layers, n_heads, n_embd):
    theirs = gpt2(n_layers, n_heads, n_embd)
    ours = from_gpt2(theirs.state_dict(), n_heads)
    ids = torch.randint(0, 300, (2, 64))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=2e-3)


def test_gpt2_writes_the_same_greedy_text_here_and_there():
    theirs = gpt2(3)
    ours = from_gpt2(theirs.state_dict(), 4)
    prompt = torch.randint(0, 300, (2, 5))
    expected = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=40, do_sample=False, use_cache=True
    )
    assert torch.equal(ours.generate(prompt, 40, do_sample=False), expected)


def test_the_way_back_to_gpt2_loads_strictly_and_loses_nothing():
    theirs = gpt2(2)
    state = to_gpt2(from_gpt2(theirs.state_dict(), 4))
    other = gpt2(2, seed=1)
    other.load_state_dict(state, strict=True)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_an_untied_head_stays_untied_both_ways():
    model = L1Model(replace(CONFIG, tie_weights=False))
    again = from_gpt2(to_gpt2(model), CONFIG.n_heads)
    assert not again.config.tie_weights
    assert torch.equal(again.head.weight, model.head.weight)


def test_gpt2_weights_are_read_from_a_folder_or_a_file_with_and_without_their_prefix(tmp_path, ids):
    model = L1Model(CONFIG).eval()
    state = {name: tensor.clone() for name, tensor in to_gpt2(model).items()}
    bare = {name.removeprefix("transformer."): t for name, t in state.items() if name != "lm_head.weight"}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)  # older files hold the mask
    save_file(state, tmp_path / "model.safetensors")
    save_file(bare, tmp_path / "bare.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_head": 2}))
    for source in (tmp_path, tmp_path / "model.safetensors", tmp_path / "bare.safetensors"):
        torch.testing.assert_close(load_gpt2(source)(ids), model(ids))


def test_what_are_not_gpt2_weights_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"must hold wte\.weight.*missing wte\.weight"):
        from_gpt2({"layers.0.weight": torch.zeros(2)}, 2)
    state = to_gpt2(L1Model(CONFIG))
    del state["transformer.h.1.ln_1.bias"]
    with pytest.raises(ValueError, match=r"missing \['blocks\.1\.norm_1\.bias'\]"):
        from_gpt2(state, 2)
    with pytest.raises(ValueError, match=r"wte\.weight of a GPT-2 state dict must have two axes, got shape \(3,\)"):
        from_gpt2(state | {"transformer.wte.weight": torch.zeros(3)}, 2)
    with pytest.raises(ValueError, match="learned positions"):
        to_gpt2(L1Model(replace(CONFIG, position_encoding="sinusoidal")))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    save_file({"ln_f.weight": torch.zeros(64)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="must say model_type gpt2, got 'bert'"):
        load_gpt2(tmp_path)
    with pytest.raises(FileNotFoundError, match="must be a folder, a file or a Hugging Face name"):
        load_gpt2(tmp_path / "nowhere.safetensors")
