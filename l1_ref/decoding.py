"""One token at a time through the model, by its arithmetic alone: for small models Python's modules cost more."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from l1_ref.attention import KVCache, MultiHeadAttention
from l1_ref.embeddings import InputEmbedding, PositionalEmbedding, SinusoidalEmbedding, TokenEmbedding
from l1_ref.linear import Linear, StoredLinear, packed, suits_onednn
from l1_ref.transformer import FeedForward, L1Model, TransformerBlock, gelu

_MODULES = {
    *(L1Model, InputEmbedding, TokenEmbedding, PositionalEmbedding, SinusoidalEmbedding, TransformerBlock),
    *(MultiHeadAttention, FeedForward, Linear, StoredLinear, nn.LayerNorm, nn.Dropout, nn.ModuleList),
}


class Decoder:
    """Compute what `model.head(model.hidden(ids, cache))` computes in eval mode, for one new token in each row.

    A step makes the same calls of torch as the modules do, which are its explicit twin, and nothing else.

    Args:
        model: One for which `is_plain` holds. Its parameters are taken now, so make a new decoder after a change.
        cache: Holds the tokens so far; each step appends one.
        n_steps: How many steps there will be at most. For many of them matrices may be copied into a faster order.
    """

    @torch.no_grad()  # which library suits a product depends on whether gradients are wanted
    def __init__(self, model: L1Model, cache: KVCache, n_steps: int = 1):
        config, self.cache = model.config, cache
        B = cache.keys.shape[1]
        self.row = (config.n_embd,) if B == 1 else (B, config.n_embd)  # the shape of x: without B where it is 1
        self.heads = (B, 3, config.n_heads, 1, config.head_width)
        self.tokens, self.positions = model.embedding.token.weight, model.embedding.position(config.max_seq_length)
        self.blocks = [_parts(block, B, n_steps) for block in model.blocks]
        self.norm, self.head = _norm(model.norm), _product(model.head, B, n_steps)

    @torch.inference_mode()
    def step(self, ids: Int[Tensor, "B 1"]) -> Float[Tensor, "B V"]:
        """Return the scores of the token after `ids`.

        Args:
            ids: The newest token of each row, in 0 … vocab_size - 1.

        Raises:
            IndexError: The cache is full.
        """
        cache = self.cache
        x = torch.embedding(self.tokens, ids).view(self.row) + self.positions[cache.length]
        for layer, (norm_1, qkv, attend, proj, norm_2, fc, fc_proj) in enumerate(self.blocks):
            q, k, v = qkv(torch.layer_norm(x, *norm_1)).view(self.heads).unbind(1)  # (B, H, 1, D)
            k, v = cache.append(layer, k, v)  # (B, H, S, D)
            x = x + proj(attend(q, k, v, 0.0).reshape(self.row))
            x = x + fc_proj(gelu(fc(torch.layer_norm(x, *norm_2))))
        cache.length += 1
        return self.head(torch.layer_norm(x, *self.norm)).view(len(ids), -1)


def is_plain(model: nn.Module) -> bool:
    """Say whether a model is L1's own, with nothing changed and nobody watching: no other layers or methods, no hooks.

    Args:
        model: Any model.
    """
    return type(model) is L1Model and all(
        type(module) in _MODULES and not _is_watched(module) and not {"forward", "hidden"} & vars(module).keys()
        for module in model.modules()
    )


def _is_watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _parts(block: TransformerBlock, B: int, n_steps: int) -> tuple:
    attention, feed_forward = block.attention, block.feed_forward
    layers = (attention.qkv, attention.proj, feed_forward.fc, feed_forward.proj)
    qkv, proj, fc, fc_proj = (_product(layer, B, n_steps) for layer in layers)
    return _norm(block.norm_1), qkv, attention.attend, proj, _norm(block.norm_2), fc, fc_proj


def _norm(norm: nn.LayerNorm) -> tuple:
    return norm.normalized_shape, norm.weight, norm.bias, norm.eps


def _product(layer: Linear | StoredLinear, B: int, n_steps: int) -> Callable[[Tensor], Tensor]:
    if isinstance(layer, StoredLinear):
        return layer
    if B > 1:
        return packed(layer, B, n_steps) or layer
    weight, bias = layer.weight.detach(), layer.bias
    if weight.dtype != torch.float32 or weight.device.type != "cpu" or suits_onednn(weight[:1], weight):
        return layer
    if bias is None:
        return lambda x: torch.mv(weight, x)
    return lambda x: torch.addmv(bias, weight, x)
