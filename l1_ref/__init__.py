"""L1's reference: a decoder-only transformer of GPT-2's design, complete, one module a stage of the data path.

Every exercise of the course is importable from here under its own name: `l1_ref.softmax`, `l1_ref.L1Model`, … Names are
looked up when first used, so that importing the package stays quick.
"""

from importlib import import_module

__version__ = "0.1.0"

_NAMES = {
    "attention": "softmax causal_mask attention_weights scaled_dot_product_attention split_heads merge_heads "
    "MultiHeadAttention KVCache",
    "config": "L1Config PRESETS",
    "data": "DATA_DIR Corpus next_token_batch",
    "embeddings": "TokenEmbedding sinusoidal_positions PositionalEmbedding InputEmbedding",
    "generation": "greedy apply_temperature top_k_filter top_p_filter sample generate stream",
    "linear": "Linear store_for_generation",
    "loss": "cross_entropy linear_cross_entropy perplexity",
    "memory": "flops_per_token saved_bytes",
    "optimization": "cosine_lr parameter_groups adamw_step clip_grad_norm build_optimizer",
    "tales": "generate_tale log_probability entropy load_tales entropy_floor",
    "tokenizer": "count_pairs merge_pair train_bpe encode CharTokenizer BPETokenizer GPT2Tokenizer load_tokenizer",
    "training": "train_step accumulate_gradients loss_scaled_step amp_train_step training_memory TrainingConfig train "
    "evaluate",
    "transformer": "layer_norm gelu FeedForward TransformerBlock checkpointed L1Model init_weights count_parameters",
    "weights": "save_model load_model load_run from_gpt2 to_gpt2 load_gpt2",
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'l1_ref' has no attribute {name!r}")
    value = getattr(import_module(f"l1_ref.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
