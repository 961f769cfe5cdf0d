"""Predicted memory against what autograd really keeps and what the optimizer really holds."""

from dataclasses import replace

import pytest
import torch

from l1_ref.config import PRESETS, L1Config
from l1_ref.loss import cross_entropy
from l1_ref.memory import flops_per_token, saved_bytes, training_memory
from l1_ref.optimization import build_optimizer
from l1_ref.steps import train_step
from l1_ref.transformer import L1Model
from tests.plain_python import answers

ODD = L1Config(vocab_size=311, max_seq_length=48, n_layers=3, n_heads=2, n_embd=48, n_inner=100)
SIZES = pytest.mark.parametrize("config, batch_size", [(PRESETS["tiny"], 2), (ODD, 3)], ids=["tiny", "odd"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
PARTS = {"parameters", "gradients", "optimizer", "activations", "recomputed"}


def step_inputs(config, batch_size):
    return torch.randint(config.vocab_size, (2, batch_size, config.max_seq_length)).unbind()


def measured(config, batch_size, dtype, checkpointing):
    """Return the bytes that one forward pass and loss keep."""
    model = L1Model(config).train()
    model.checkpointing = checkpointing
    x, y = step_inputs(config, batch_size)

    def loss():
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return cross_entropy(model(x), y)

    return saved_bytes(model, loss)


@SIZES
@DTYPES
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("path", ["fused", "explicit"])
def test_activations_are_predicted_within_one_percent(config, batch_size, dtype, path, dropout, checkpointing):
    config = replace(config, attention=path, dropout=dropout)
    predicted = training_memory(config, batch_size, dtype, checkpointing)["activations"]
    assert predicted == pytest.approx(measured(config, batch_size, dtype, checkpointing), rel=0.01)


@pytest.mark.parametrize(
    ("name", "dtype", "checkpointing"),
    [
        ("small", torch.float32, False),
        ("small", torch.bfloat16, True),
        ("gpt2", torch.float32, True),
    ],
)
def test_a_batch_of_one_of_the_larger_presets_is_predicted_within_three_percent(name, dtype, checkpointing):
    config = PRESETS[name]
    predicted = training_memory(config, 1, dtype, checkpointing)["activations"]
    assert predicted == pytest.approx(measured(config, 1, dtype, checkpointing), rel=0.03)


@DTYPES
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("variant", [{"position_encoding": "sinusoidal"}, {"tie_weights": False}], ids=str)
def test_variants_are_predicted_within_one_percent(variant, checkpointing, dtype):
    config = replace(ODD, **variant)
    predicted = training_memory(config, 3, dtype, checkpointing)["activations"]
    assert predicted == pytest.approx(measured(config, 3, dtype, checkpointing), rel=0.01)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("path", ["fused", "explicit"])
@DTYPES
def test_what_is_recomputed_is_one_block(dtype, path, dropout):
    config = replace(ODD, attention=path, dropout=dropout)
    block = L1Model(config).blocks[0]
    x = torch.randn(3, 48, 48, requires_grad=True)

    def run():
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return block(x)

    recomputed = training_memory(config, 3, dtype, True)["recomputed"]
    assert recomputed == pytest.approx(saved_bytes(block, run), rel=0.01)
    assert training_memory(config, 3, dtype, False)["recomputed"] == 0


@SIZES
def test_weights_gradients_and_moments_are_what_a_step_leaves_behind(config, batch_size):
    model = L1Model(config)
    optimizer = build_optimizer(model, lr=1e-3)
    train_step(model, *step_inputs(config, batch_size), optimizer)
    parts = training_memory(config, batch_size, torch.float32, False)
    assert parts["parameters"] == sum(p.nbytes for p in model.parameters())
    assert parts["gradients"] == sum(p.grad.nbytes for p in model.parameters())
    states = optimizer.state.values()
    assert parts["optimizer"] == sum(state[m].nbytes for state in states for m in ("exp_avg", "exp_avg_sq"))


@SIZES
@DTYPES
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_the_parts_are_whole_bytes_and_add_up(config, batch_size, dtype, checkpointing):
    parts = training_memory(config, batch_size, dtype, checkpointing)
    assert parts.keys() == PARTS | {"total"}
    assert all(isinstance(n_bytes, int) for n_bytes in parts.values())
    assert parts["total"] == sum(parts[part] for part in PARTS)


BATCH_RULE = "batch_size must be a whole number of at least 1, got batch_size"
DTYPE_RULE = "dtype must be one of torch.float32, torch.bfloat16, torch.float16, got dtype"
REFUSED = {
    "training_memory(config, -1, torch.float32, False)": f"{BATCH_RULE}=-1",
    "training_memory(config, 0, torch.float32, False)": f"{BATCH_RULE}=0",
    "training_memory(config, 2.5, torch.float32, False)": f"{BATCH_RULE}=2.5",
    "training_memory(config, 1, 'float32', False)": f"{DTYPE_RULE}='float32'",
    "training_memory(config, 1, torch.float64, False)": f"{DTYPE_RULE}=torch.float64",
    "training_memory(config, 1, torch.int8, False)": f"{DTYPE_RULE}=torch.int8",
    "training_memory(config, 1, torch.float32, 1)": "checkpointing must be one of True, False, got checkpointing=1",
}


def test_what_has_no_such_memory_is_refused():
    setup = "import torch; from l1_ref.config import L1Config; from l1_ref.memory import training_memory\n"
    found = answers(f"{setup}config = L1Config.preset('tiny')", list(REFUSED))
    assert found == {call: f"ValueError: {rule}" for call, rule in REFUSED.items()}


def test_checkpointing_and_half_precision_save_memory_at_full_size():
    config = L1Config(dropout=0.0)
    plain, checkpointed = (training_memory(config, 8, torch.float32, on)["total"] for on in (False, True))
    half = training_memory(config, 8, torch.bfloat16, False)["total"]
    assert checkpointed < half < plain and checkpointed < 0.6 * plain


def test_saved_bytes_counts_each_storage_once_and_no_parameter():
    layer = torch.nn.Linear(5, 5, bias=False)
    x = torch.randn(7, 5)
    assert saved_bytes(layer, lambda: layer(x)) == x.nbytes
    assert saved_bytes(layer, lambda: layer(x) + layer(x)) == x.nbytes
    assert saved_bytes(layer, lambda: layer(layer(x))) == 2 * x.nbytes
    with torch.no_grad():
        assert saved_bytes(layer, lambda: layer(x)) == 0


@pytest.mark.parametrize("variant", [{}, {"tie_weights": False}, {"position_encoding": "sinusoidal"}], ids=str)
def test_flops_are_six_for_each_weight_in_a_product_and_those_of_attention(variant):
    config = replace(ODD, **variant)
    linear = [layer for layer in L1Model(config).modules() if isinstance(layer, torch.nn.Linear)]
    norms_and_biases = sum(p.numel() for p in L1Model(config).parameters() if p.ndim < 2)
    products = sum(layer.weight.numel() for layer in linear)
    attention = 12 * config.n_layers * config.n_embd * config.max_seq_length
    assert flops_per_token(config) == 6 * (products + norms_and_biases) + attention
