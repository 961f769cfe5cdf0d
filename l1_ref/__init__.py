"""L1's reference: a decoder-only transformer of GPT-2's design, complete, one module a stage of the data path.

Every exercise of the course is importable from here under its own name: `l1_ref.softmax`, `l1_ref.L1Model`, … Names are
looked up when first used, so that importing the package stays quick. All of them, by module; `python -m pydoc
l1_ref.softmax` or, in a notebook, `l1_ref.softmax?` shows one. Each has an example, which takes for granted
`import torch` and `from l1_ref import *`.

attention:
    softmax                       Turn scores into probabilities along one axis, without overflow
    causal_mask                   Say which of S positions each of the last T may attend to: itself and all before it
    attention_weights             Say how much each query takes from each key
    scaled_dot_product_attention  Mix the values by the attention weights: the explicit twin of torch's fused function
    split_heads                   Cut the width into heads, and let each head see the whole sequence
    merge_heads                   Lay the heads side by side again: the inverse of `split_heads`
    MultiHeadAttention            Let every position gather from itself and those before it, in several ways at once
    KVCache                       Keep the keys and values of the tokens seen so far

config:
    L1Config                      Describe one decoder-only transformer; the defaults are GPT-2 small
    PRESETS                       The course's configurations by name: tiny, small, base, large, gpt2

data:
    DATA_DIR                      The folder of the course's corpus, its tokenizer and its trained model
    Corpus                        Encoded text, split in two
    next_token_batch              Draw windows of a stream, uniformly and with replacement

embeddings:
    TokenEmbedding                Look up one learned vector for each token id
    sinusoidal_positions          Return the fixed wave pattern that marks each position
    PositionalEmbedding           Look up one learned vector for each position
    InputEmbedding                Add token and position vectors, then apply dropout

generation:
    greedy                        Return the most likely id of each row
    apply_temperature             Sharpen (below 1) or flatten (above 1) the distribution
    top_k_filter                  Keep the k most likely tokens; the others become -inf
    top_p_filter                  Keep the fewest most likely tokens whose probabilities reach p; the others become -inf
    sample                        Draw the next id of each row: temperature, then top-k, then top-p on what remains
    generate                      Continue each row of ids, token by token
    stream                        Yield the next id of each row as soon as it is known

linear:
    Linear                        `nn.Linear`, with float32 products on the CPU done by oneDNN
    store_for_generation          Change how a model's matrices lie in memory

loss:
    cross_entropy                 Return the mean of -log p(target) over the targets that count
    linear_cross_entropy          Return `cross_entropy(hidden @ weight.T, targets)` without ever holding all the logits
    perplexity                    Return e^loss: among how many equally likely tokens the model hesitates

memory:
    flops_per_token               Count a training step's arithmetic
    saved_bytes                   Measure what the forward pass keeps for the backward pass, in bytes

optimization:
    cosine_lr                     Return the learning rate at a step: a straight line up to the peak
    parameter_groups              Split the trainable parameters: matrices decay
    adamw_step                    Take one AdamW step on one parameter, in place: the explicit twin of torch's optimizer
    clip_grad_norm                Shrink all gradients together so that their joint norm is at most `max_norm`, in place
    build_optimizer               Return torch's AdamW over `parameter_groups`, in its fused form

tales:
    generate_tale                 Draw one tale; the same state of `rng` gives the same tale on every machine
    log_probability               The exact log-probability of a tale, its end included
    entropy                       The exact entropy of the language, in nats a tale
    load_tales                    Read the committed tales of one split
    entropy_floor                 The cross-entropy that the true distribution itself reaches on these tales

tokenizer:
    count_pairs                   Count the neighbouring ids in a collection of words
    merge_pair                    Replace a pair of neighbouring ids by one id, from left to right
    train_bpe                     Learn a byte-pair vocabulary: join the most frequent pair of neighbours
    encode                        Turn text into ids with a byte-pair vocabulary: the same ids as tiktoken gives
    CharTokenizer                 One id for each character of a fixed list
    BPETokenizer                  A byte-level vocabulary, served by tiktoken
    GPT2Tokenizer                 GPT-2's vocabulary of 50,257 tokens, from tiktoken
    load_tokenizer                Read the tokenizer that `save_tokenizer` wrote

training:
    train_step                    Change the weights once so that the targets become more likely
    accumulate_gradients          Add up the gradients of several small batches: the same as those of one large batch
    loss_scaled_step              Take a step with the loss scaled up, by hand
    amp_train_step                Take a training step in mixed precision: half-precision products, float32 weights
    training_memory               Predict what one training step on full-length sequences holds in memory, by part
    TrainingConfig                Say how to train
    train                         Train a model, in place
    evaluate                      Return the mean loss over all targets of some batches, without dropout

transformer:
    layer_norm                    Give each vector mean 0 and variance 1 over its width, then a learned scale and shift
    gelu                          Let positive values through and fade negative ones out, smoothly: GPT-2's activation
    FeedForward                   Work on each position by itself: widen, bend, narrow
    TransformerBlock              Add what attention gathers, then what the feed-forward layer makes of it
    checkpointed                  Run a block without keeping its activations; the backward pass computes them again
    L1Model                       The whole decoder-only transformer: embedding, blocks, final normalisation, head
    init_weights                  Set a model's parameters to GPT-2's initial values, in place
    count_parameters              Return the number of parameters of a model, from its configuration alone

weights:
    save_model                    Write a model's weights and its configuration
    load_model                    Read what `save_model` wrote; the model comes in eval mode, stored for generation
    load_run                      Read a training run
    from_gpt2                     Build our model from GPT-2's weights under their Hugging Face names
    to_gpt2                       Return a model's weights under the names of Hugging Face's `GPT2LMHeadModel`
    load_gpt2                     Load GPT-2's weights from a folder, a safetensors file, or by their Hugging Face name
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
