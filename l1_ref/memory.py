"""What training costs: memory, predicted from the configuration and measured, and arithmetic."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from l1_ref.config import L1Config, require_choice, require_count
from l1_ref.steps import DTYPES
from l1_ref.transformer import count_parameters


def training_memory(config: L1Config, batch_size: int, dtype: torch.dtype, checkpointing: bool) -> dict[str, int]:
    """Predict what one training step on full-length sequences holds in memory, by part, in bytes.

    Weights, gradients and AdamW's two moments are float32 whatever the dtype. Activations are what the backward pass
    needs, on the CPU; on CUDA the fused kernel keeps no attention weights even with dropout, so it takes less. The
    half-precision copies of the weights are counted with the activations, since the backward pass holds them. The step
    is the textbook's, `cross_entropy(model(x), y)`; `train_step` holds fewer logits (see `linear_cross_entropy`).

    Args:
        config: The model's configuration.
        batch_size: Sequences in a batch, at least 1.
        dtype: Of the matrix products: torch.float32, torch.bfloat16 or torch.float16.
        checkpointing: Whether each block keeps its input only, and one block at a time is computed again.

    Returns:
        Bytes of `parameters`, `gradients`, `optimizer`, `activations` (kept from the forward pass), `recomputed` (one
        block's, with checkpointing) and their sum, `total`.

    Raises:
        ValueError: `batch_size`, `dtype` or `checkpointing` breaks its rule.

    Example:
        >>> config = L1Config.preset("tiny")
        >>> parts = training_memory(config, batch_size=8, dtype=torch.float32, checkpointing=False)
        >>> parts["parameters"] == 4 * count_parameters(config), parts["optimizer"] == 2 * parts["parameters"]
        (True, True)

    Source: Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", section 4.
    """
    require_count("batch_size", batch_size)
    require_choice("dtype", dtype, tuple(DTYPES.values()))
    require_choice("checkpointing", checkpointing, (True, False))
    half = dtype != torch.float32
    n_parameters, V, T = count_parameters(config), config.vocab_size, config.max_seq_length
    C, F_ = config.n_embd, config.n_inner
    tokens, width = batch_size * T, 2 if half else 4
    # The final norm's input with mean and deviation, the head's input, the log-probabilities and the targets.
    ends = tokens * (4 * C + 8 + width * C + 4 * V + 8) + (4 * tokens * C if config.dropout else 0)
    block = _block_activations(config, batch_size, width)
    casts = 2 * config.n_layers * (4 * C * C + 2 * C * F_ + 5 * C + F_) if half else 0
    head_cast = 2 * V * C if half else 0
    kept = config.n_layers * 4 * tokens * C if checkpointing else config.n_layers * block + casts
    parts = {
        "parameters": 4 * n_parameters,
        "gradients": 4 * n_parameters,
        "optimizer": 8 * n_parameters,
        "activations": kept + ends + head_cast,
        "recomputed": block + casts // config.n_layers if checkpointing else 0,
    }
    return parts | {"total": sum(parts.values())}


def _block_activations(config: L1Config, batch_size: int, width: int) -> int:
    """Return the bytes that one block keeps, its input among them; `width` is the bytes of a product's input."""
    C, H, T = config.n_embd, config.n_heads, config.max_seq_length
    tokens, scores = batch_size * T, batch_size * H * T * T
    norms = tokens * 2 * (4 * C + 8)  # float32 inputs, mean and deviation
    products = tokens * width * (6 * C + 2 * config.n_inner)  # inputs of qkv, attention (q, k, v), proj, fc, gelu, proj
    masks = tokens * width * 2 * C if config.dropout else 0
    if config.attention == "explicit":
        # The mask twice, and each row's largest score and sum.
        attention = scores * width * (4 if config.dropout else 3) + 2 * T * T + 8 * tokens * H
    elif config.dropout:  # the CPU has no fused kernel with dropout: torch falls back to float32 weights
        attention = scores * 12 + tokens * 3 * C * (4 - width)
    else:
        attention = tokens * H * 4  # one logarithm a query
    return norms + products + masks + attention


def flops_per_token(config: L1Config) -> int:
    """Count a training step's arithmetic: 6 for each parameter that is not only looked up, and 12 L C T for attention.

    A weight in a product costs a multiplication and an addition forwards, and twice that backwards. Biases and norms,
    a small part, are counted as if they cost the same.

    Args:
        config: The model's configuration.

    Returns:
        Floating-point operations a token, forward and backward; attention is counted as if it looked both ways.

    Example:
        >>> flops_per_token(L1Config.preset("tiny"))
        3542016

    Source: Chowdhery et al. 2022, "PaLM", appendix B.
    """
    positions = config.max_seq_length * config.n_embd if config.position_encoding == "learned" else 0
    looked_up = 0 if config.tie_weights else config.vocab_size * config.n_embd  # tied, it is the head's matrix
    in_products = count_parameters(config) - positions - looked_up
    return 6 * in_products + 12 * config.n_layers * config.n_embd * config.max_seq_length


class _Meter:
    """Count the bytes that autograd keeps, each storage once, but for the parameters'."""

    def __init__(self, model: nn.Module):
        self.seen = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.kept: list[Tensor] = []
        self.n_bytes = 0

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.kept.append(tensor.detach())  # kept alive, so that no address is met twice
            self.n_bytes += storage.nbytes()
        return tensor


def saved_bytes(model: nn.Module, loss: Callable[[], Tensor]) -> int:
    """Measure what the forward pass keeps for the backward pass, in bytes, parameters left out.

    Args:
        model: Its parameters do not count.
        loss: Runs the forward pass.

    Example:
        >>> layer, x = torch.nn.Linear(4, 3), torch.randn(2, 4)
        >>> saved_bytes(layer, lambda: layer(x).sum())  # x itself: 2 * 4 numbers of 4 bytes
        32
    """
    meter = _Meter(model)
    with torch.autograd.graph.saved_tensors_hooks(meter.pack, lambda tensor: tensor):
        loss()
    return meter.n_bytes
