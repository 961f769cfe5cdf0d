# %% [markdown]
# # The model
#
# You have all the pieces: tokens, embeddings, attention, blocks. This notebook puts them together into one model,
# counts its numbers, and gives them their first values. At the end your model takes the trained weights and tells a
# tale.
#
# **Goals.** Count parameters without building anything. Know the loss of an untrained model before you measure it.
# Start a deep stack so that it does not grow. Tie the output to the input. Assemble the model.
#
# **Time.** About 75 minutes.
#
# **Difficulty.** Medium.
#
# **You need.** Notebooks 02 and 04, and a PyTorch class with `__init__` and `forward`.
#
# Words and letters: [glossary](glossary.md).

# %%
import dataclasses
import math

import torch
from torch import nn

import l1_ref
from l1_ref import checks, plots

run = l1_ref.load_run(l1_ref.DATA_DIR / "tiny")
trained, tokenizer = run.model, run.tokenizer

# %% [markdown]
# ## Three lines
#
# The whole model is equation 2 of Radford et al. 2018, the first GPT. In the words of this course:
#
# 1. $x = \text{token vectors} + \text{position vectors}$
# 2. $x = \text{block}(x)$, once for each of the `n_layers` blocks
# 3. $\text{logits} = x \cdot W^\top$: the *head*, a matrix with one row for each token of the vocabulary
#
# GPT-2 added one more layer normalisation between lines 2 and 3 (Radford et al. 2019, section 2.3). In a pre-norm model
# nothing has normalised the residual stream itself on its way up; this *last norm* does it once. (The head has nothing
# to do with attention heads. The field uses one word for both.)
#
# Here are the shapes, step by step, in the trained model.

# %%
ids = torch.tensor([tokenizer.encode("Near the little well lived"), tokenizer.encode("Behind the little bridge lived")])
print("ids      ", tuple(ids.shape), " B, T")
stream = trained.embedding(ids)
print("embedding", tuple(stream.shape), " B, T, C")
for i, block in enumerate(trained.blocks):
    stream = block(stream)
    print(f"block {i}  ", tuple(stream.shape), " B, T, C")
logits = trained.head(trained.norm(stream))
print("head     ", tuple(logits.shape), " B, T, V")

# %% [markdown]
# ## One record says it all
#
# `L1Config` holds every decision about a model in one place. It is *frozen*: nobody changes it under a running model.
#
# | field | meaning |
# |---|---|
# | `vocab_size` | V, the number of tokens |
# | `max_seq_length` | the *context*: the longest sequence that has positions |
# | `n_layers` | the number of blocks |
# | `n_heads` | H, attention heads in a block |
# | `n_embd` | C, the width of the residual stream |
# | `n_inner` | F, the width inside the feed-forward layer; 4C if you leave it out |
# | `dropout` | the share of numbers that are dropped while training |
# | `position_encoding` | `"learned"`, a table, or `"sinusoidal"`, fixed waves |
# | `tie_weights` | whether head and token embedding share one matrix |
# | `layer_norm_eps` | the small number under the root of a layer normalisation |
# | `init_std` | the standard deviation of the first weights |
# | `attention` | `"fused"`, one fast call, or `"explicit"`, step by step |
#
# Its defaults are GPT-2 small, 12 blocks of width 768. `l1_ref.PRESETS` holds this and four others.

# %%
for name, config in l1_ref.PRESETS.items():
    sizes = f"{config.n_layers:>2} blocks, {config.n_heads:>2} heads, C {config.n_embd:>4}, V {config.vocab_size:>6,}"
    print(f"{name:<6} {sizes}, context {config.max_seq_length:>5,}")

# %% [markdown]
# ## Where the numbers are
#
# A *parameter* is one number that training can change. How many does a model have, and where? Built on torch's device
# "meta", a model has shapes but no numbers, so even a large one needs no memory.

# %%
PARTS = {"token": "token table", "position": "positions", "attention": "attention", "feed_forward": "feed-forward"}


def parts_of(config):
    """Return the number of parameters of each part of a model."""
    with torch.device("meta"):
        model = l1_ref.L1Model(config)
    counts = dict.fromkeys([*PARTS.values(), "norms"], 0)
    for name, parameter in model.named_parameters():
        part = next((part for word, part in PARTS.items() if word in name.split(".")), "norms")
        counts[part] += parameter.numel()
    return counts


# %% tags=["nbval-ignore-output"]
counts = {name: parts_of(config) for name, config in l1_ref.PRESETS.items()}
shares = {name: 100 * each["token table"] / sum(each.values()) for name, each in counts.items()}
told = ", ".join(f"{name} {share:.0f} %" for name, share in shares.items())
alt = f"Stacked bars, one a preset. Share of the token table: {told}. Most of the rest is feed-forward and attention."
plots.show(plots.parameter_parts(counts, "shares of all parameters, and their number"), alt=alt)

# %% [markdown]
# In every preset the feed-forward layers hold about twice as much as attention: two matrices of C × 4C against four of
# C × C (query, key and value, side by side in `qkv`, and `proj`). The token table grows with V · C and the blocks with
# C², so a table of many tokens weighs heavily in a narrow model: in `small` it is more than half. All norms together
# are too thin to see.
#
# ## Exercise: `count_parameters`
#
# Write the count as a *closed form*: arithmetic on the fields of the config, without building a model. That is how one
# plans models that do not fit into memory. Here is what there is to count in one block.

# %%
for name, parameter in trained.blocks[0].named_parameters():
    print(f"{name:<26} {tuple(parameter.shape)}")

# %% [markdown]
# Around the blocks stand the token table, V × C; the positions, if they are learned, `max_seq_length` × C (waves are
# computed, they count nothing); one last norm; and the head, V × C without a bias. A *tied* head is the token table
# itself and adds nothing (more on that below). Use `n_inner` as it stands in the config, where it is always a number.
# The result is an `int`.


# %% tags=["exercise"] name="count_parameters" points=1 difficulty="easy" minutes=15
def count_parameters(config):
    """Return the number of parameters of a model, as an int.

    Args:
        config: The model's configuration, an `L1Config`.
    """
    V, C, F, L = config.vocab_size, config.n_embd, config.n_inner, config.n_layers
    tables = V * C + (0 if config.tie_weights else V * C)
    if config.position_encoding == "learned":
        tables += config.max_seq_length * C
    attention = (C * 3 * C + 3 * C) + (C * C + C)
    feed_forward = (C * F + F) + (F * C + C)
    norm = 2 * C
    return tables + L * (attention + feed_forward + 2 * norm) + norm


# %% tags=["check"]
checks.count_parameters(count_parameters)

# %%
gpt2 = l1_ref.L1Config()
print(f"GPT-2 small:         {count_parameters(gpt2):,}")
untied = dataclasses.replace(gpt2, tie_weights=False)
print(f"with an untied head: {count_parameters(untied):,}")
one_head = dataclasses.replace(gpt2, n_heads=1)
print(f"one attention head:  {count_parameters(one_head):,}")

# %% [markdown]
# 124 million is the number by which the world knows GPT-2 small. (The paper's own table says 117 million. Its authors
# later called that an error: counting is easy to get wrong.) Attention heads are free: they only cut the width into
# pieces.
#
# ## The first loss
#
# An untrained model knows nothing. Then it should *say* nothing: give every token about the same chance, 1/V. The loss
# is then −ln(1/V) = ln V. This is the best test of a fresh model, and it takes one line.
#
# ### Predict before you run
#
# A tiny model with 1,000 tokens, no training. Write down your answers first:
#
# 1. Weights drawn with standard deviation 0.02: which loss, roughly?
# 2. Weights drawn with standard deviation 1: the same, lower, or higher?

# %% tags=["nbval-ignore-output"]
tales = l1_ref.load_tales("train")[:40]
all_ids = torch.tensor([i for tale in tales for i in (tokenizer.end_of_text, *tokenizer.encode(tale))])
x, y = l1_ref.next_token_batch(all_ids, 8, 128, torch.Generator().manual_seed(0))
tiny = l1_ref.PRESETS["tiny"]


@torch.no_grad()
def first_loss(init_std):
    """Return the loss of a fresh tiny model on real tales, and the standard deviation of its logits."""
    torch.manual_seed(0)
    logits = l1_ref.L1Model(dataclasses.replace(tiny, init_std=init_std))(x)  # (B, T, V)
    return l1_ref.cross_entropy(logits, y).item(), logits.std().item()


print(f"ln V: {math.log(tiny.vocab_size):.2f}")
for init_std in (0.02, 1.0):
    loss, spread = first_loss(init_std)
    print(f"init_std {init_std}: loss {loss:.1f}, logits with std {spread:.1f}")

# %% [markdown]
# <details><summary>Why?</summary>
#
# A logit is the dot product of a normalised vector, C numbers of size about 1, with a row of the head, C numbers of
# size `init_std`. Such a sum has standard deviation `init_std` · √C, by the same rule that gave a query times a key its
# √D in notebook 03. For C = 128 that is 0.02 · 11.3 = 0.23: nearly even chances. With `init_std` 1 the logits differ by
# 11 and more, so the model is *sure*, of nonsense. To be sure and wrong is much worse than to know nothing.
#
# </details>

# %% tags=["nbval-ignore-output"]
stds = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
losses = [first_loss(std)[0] for std in stds]
figure = plots.first_losses(stds, losses, math.log(tiny.vocab_size), marked=0.02)
alt = f"Log chart: up to init_std 0.02 the first loss lies on the line ln V, at 0.2 it is {losses[5]:.1f}, "
plots.show(figure, alt=f"{alt}at 1 it is {losses[-1]:.0f} nats per token.")

# %% [markdown]
# If your own model starts far above ln V, look at its initial weights before you look at anything else.
#
# ## A stack that does not grow
#
# So draw all matrices with 0.02, set biases to 0 and the scales of the norms to 1. One thing is missing. Each block
# adds to the residual stream twice: once at the end of attention, once at the end of the feed-forward layer. Each
# branch reads a normalised copy, so all add about the same amount. And independent random numbers add up by their
# *variance*, the square of the standard deviation: after N such additions the standard deviation has grown with √N.
#
# GPT-2's cure (section 2.3): the layers that write to the stream are drawn smaller, by 1/√N, "where N is the number of
# residual layers". We count two in each block, so N = 2 · `n_layers`. In this course both are named `proj`.


# %%
@torch.no_grad()
def stream_stds(n_layers, scaled):
    """Return the std of a fresh model's residual stream, before the first block and after each."""
    torch.manual_seed(0)
    model = l1_ref.L1Model(dataclasses.replace(tiny, n_layers=n_layers))
    if not scaled:
        for name, parameter in model.named_parameters():
            if name.endswith("proj.weight"):
                parameter.mul_(math.sqrt(2 * n_layers))  # undo the scaling
    stream = model.embedding(x[:2])
    found = [stream.std().item()]
    for block in model.blocks:
        stream = block(stream)
        found.append(stream.std().item())
    return found


# %% tags=["nbval-ignore-output"]
def draw_streams(n_layers):
    """Draw how the residual stream grows in a fresh model, with and without the scaling."""
    plain, scaled = stream_stds(n_layers, scaled=False), stream_stds(n_layers, scaled=True)
    curves = {"all matrices alike": plain, "proj divided by √(2 · n_layers)": scaled}
    alt = f"Line chart, {n_layers} blocks: the stream's std grows from {plain[0]:.2f} to {plain[-1]:.2f} without the "
    title = f"{n_layers} blocks, before training"
    figure = plots.by_depth(curves, "std of the residual stream", title, limits=(0, 0.4))
    (axes,) = figure.axes
    axes.set(xlabel="blocks passed", xlim=(-1, 37))  # the same for every depth, so that the curves can be compared
    axes.legend(loc="upper left", frameon=False)
    return figure, f"{alt}scaling, and to {scaled[-1]:.2f} with it."


plots.explore(draw_streams, n_layers=[24, 2, 6, 12, 36])

# %% [markdown]
# Move the slider. Without the scaling, the end of the stream depends on the depth: the deeper, the larger, and the
# embedding drowns in noise. With it, the end is about the same for every depth.
#
# ## Exercise: `init_weights`
#
# Write `init_weights(model, config)`. It gives every parameter of a model its first value, *in place*, and returns
# nothing:
#
# - matrices: normal, mean 0, standard deviation `config.init_std`;
# - matrices whose name ends in `proj.weight`: the same, divided by $\sqrt{2 \cdot \text{n\_layers}}$;
# - biases: 0, those of the norms too; scales of the norms (their `weight`): 1.
#
# The model has the course's names, as in the list of the block above, and `embedding.token.weight`,
# `embedding.position.weight` (if positions are learned), `norm.weight`, `norm.bias`, `head.weight`. Both embeddings are
# plain matrices of their own classes, not `nn.Embedding`. Write new numbers into the Parameters that are there and do
# not replace them: a tied head must stay tied. Set no random seed: that is the caller's business.
#
# Two things about torch. Its functions that end in an underscore work in place, such as `parameter.normal_(mean, std)`.
# And it refuses such a change of a Parameter while it records steps for gradients; inside `with torch.no_grad():` it
# records none.


# %% tags=["exercise"] name="init_weights" points=1 difficulty="medium" minutes=15
def init_weights(model, config):
    """Set a model's parameters to GPT-2's initial values, in place.

    Args:
        model: Names its parameters as the course does.
        config: Gives `init_std` and `n_layers`.
    """
    residual_std = config.init_std / math.sqrt(2 * config.n_layers)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, 0.0, residual_std if name.endswith("proj.weight") else config.init_std)
        elif name.endswith("weight"):
            nn.init.ones_(parameter)
        else:
            nn.init.zeros_(parameter)


# %% tags=["check"]
checks.init_weights(init_weights)

# %%
fresh = l1_ref.L1Model(tiny)
init_weights(fresh, tiny)
for name in ("embedding.token.weight", "blocks.0.attention.qkv.weight", "blocks.0.attention.proj.weight"):
    print(f"{name:<31} std {fresh.get_parameter(name).std():.3f}")

# %% [markdown]
# With two blocks, `proj` is drawn with 0.02/√4 = 0.01.
#
# ## One matrix, two jobs
#
# Token 42 has a row in the token table: the vector that goes in when 42 is read. It also has a row in the head: the
# vector that $x$ is multiplied with to score 42 as the next token. Both tables are V × C, and both say what token 42 is
# like. *Weight tying* uses one matrix for both (Press and Wolf 2017; Vaswani et al. 2017, section 3.4). The head costs
# nothing then, and each token learns from being read and from being predicted.
#
# What does such a row know? Take a few tokens of the trained model, and look up the nearest rows, by cosine as in
# notebook 02.

# %% tags=["nbval-ignore-output"]
table = trained.embedding.token.weight.detach()
print("one and the same Parameter:", trained.head.weight is trained.embedding.token.weight)
rows = table / table.norm(dim=1, keepdim=True)
for word in (" Monday", " seven", " whispered", " fox"):
    (i,) = tokenizer.encode(word)
    near = (rows @ rows[i]).topk(4).indices.tolist()[1:]
    print(f"{word:<10} is nearest to", *[tokenizer.decode([j]) for j in near])

# %% [markdown]
# Words that can take each other's place have similar rows. They are read alike, and they are likely in the same places:
# that is why one matrix can do both jobs.
#
# A fresh tied model shows what tying does on its own: the stream still holds the row of the token just read, so that
# token's own score comes out high.

# %% tags=["nbval-ignore-output"]
torch.manual_seed(0)
for tied in (True, False):
    fresh = l1_ref.L1Model(dataclasses.replace(tiny, tie_weights=tied))
    repeats = (fresh(x).argmax(-1) == x).float().mean()
    print(f"tied: {tied!s:<5}  the likeliest next token is the one just read: {100 * repeats:.0f} %")

# %% [markdown]
# Before training, a tied model stutters. But its chances are still nearly even, and training cures the rest.
#
# ## Exercise: `L1Model`
#
# Now all of it. `L1Model(config)` has four parts, under these names:
#
# - `embedding`: an `l1_ref.InputEmbedding(config)`;
# - `blocks`: `n_layers` of `l1_ref.TransformerBlock(config)`, in a `ModuleList` or a `Sequential`, so that the first is
#   `blocks.0`;
# - `norm`: the last layer normalisation, an `nn.LayerNorm` with `eps=config.layer_norm_eps`;
# - `head`: a linear layer from C to V without a bias.
#
# If `config.tie_weights` is true, `head.weight` and `embedding.token.weight` are one and the same Parameter; keep the
# module `head` in any case. Last of all, `__init__` calls `l1_ref.init_weights(self, config)`.
#
# `forward(ids)` takes ids (B, T) and returns the logits (B, T, V) of *every* position, nothing else: no softmax, no
# loss. It adds no dropout of its own; the embedding and the blocks bring theirs.


# %% tags=["exercise"] name="L1Model" points=2 difficulty="medium" minutes=20
class L1Model(nn.Module):
    """The whole model: ids (B, T) in, logits (B, T, V) out.

    Args:
        config: The model's configuration, an `L1Config`.
    """

    def __init__(self, config):
        super().__init__()
        self.embedding = l1_ref.InputEmbedding(config)
        self.blocks = nn.Sequential(*[l1_ref.TransformerBlock(config) for _ in range(config.n_layers)])
        self.norm = nn.LayerNorm(config.n_embd, config.layer_norm_eps)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_weights:
            self.head.weight = self.embedding.token.weight
        l1_ref.init_weights(self, config)

    def forward(self, ids):
        return self.head(self.norm(self.blocks(self.embedding(ids))))


# %% tags=["check"]
checks.L1Model(L1Model)

# %% [markdown]
# ## Your model tells a tale
#
# Your parts have the same names as the reference's, so the trained numbers fit. A *state dict* holds all parameters by
# name; `load_state_dict` is strict and refuses a name too few or too many. It works in both directions.


# %%
def with_trained_weights():
    """Return the reader's model with the trained weights in it."""
    mine = L1Model(trained.config).eval()
    mine.load_state_dict(trained.state_dict())
    return mine


with torch.no_grad():
    mine = with_trained_weights()
    print("the same logits:", torch.allclose(mine(x), trained(x), atol=1e-4))
    back = l1_ref.L1Model(trained.config).eval()
    print("and back again:", back.load_state_dict(mine.state_dict()))
    print(f"loss {l1_ref.cross_entropy(mine(x), y):.1f}, where a fresh model has {first_loss(0.02)[0]:.1f}")


# %% [markdown]
# To write, ask for the logits of the last position, draw the next token, append it, and start over. The model has no
# positions beyond its context, so it gets the last 128 tokens at most. Notebook 08 makes this loop fast; here it is
# plain.


# %% tags=["nbval-ignore-output"]
@torch.no_grad()
def tell(model, beginning, seed, max_new_tokens=120):
    """Return a tale that begins so, token by token from the model's own chances."""
    chance = torch.Generator().manual_seed(seed)
    ids = torch.tensor([[tokenizer.end_of_text, *tokenizer.encode(beginning)]])
    for _ in range(max_new_tokens):
        logits = model(ids[:, -trained.config.max_seq_length :])[:, -1]  # (B, V)
        new = l1_ref.sample(logits, temperature=0.7, generator=chance)  # (B, 1)
        if new.item() == tokenizer.end_of_text:
            break
        ids = torch.cat((ids, new), dim=1)
    return tokenizer.decode(ids[0, 1:].tolist())


print(*plots.wrapped(tell(with_trained_weights(), "Near the little well lived", seed=1)), sep="")

# %% [markdown]
# The numbers were trained for you; the model around them is yours. Try other beginnings and seeds.
#
# ## Bug hunt: tied for one step
#
# Someone has an untied model and wants to tie it. The function below is meant to do that. Right after the call, both
# matrices hold the same numbers. Then the model trains for a few steps: `backward()` finds the gradients, and each
# parameter moves a little against its own (notebook 06 does it properly).


# %%
def broken(model):
    """Make the head and the token table of a model share one matrix."""
    with torch.no_grad():
        model.head.weight.copy_(model.embedding.token.weight)


def gaps_of(tie, n_steps=8):
    """Tie a fresh untied model, train it a little, and return the largest gap between its two matrices by step."""
    torch.manual_seed(0)
    model = l1_ref.L1Model(dataclasses.replace(tiny, tie_weights=False))
    tie(model)
    found = []
    for _ in range(n_steps + 1):
        found.append((model.head.weight - model.embedding.token.weight).abs().max().item())
        model.zero_grad()
        l1_ref.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
    return found


# %% tags=["nbval-ignore-output"]
gaps = gaps_of(broken)
alt = (
    f"Line chart, broken version: the largest gap is 0 before training and {gaps[-1]:.2f} after {len(gaps) - 1} steps."
)
plots.show(plots.gaps({"broken": gaps}, "head and token table of one model"), alt=alt)

# %% [markdown]
# How many matrices do head and token table have between them? Say in one sentence what `broken` does, then write the
# mended version.
# `tie_weights(model)` changes the model in place and returns nothing. Afterwards `model.head.weight` is the very same
# Parameter as `model.embedding.token.weight`. It is the token table that stays, with its numbers, and the head that
# takes it. It must go on learning.


# %% tags=["exercise"] name="tie_weights" points=1 difficulty="easy" minutes=5
def tie_weights(model):
    """Make a model's head and its token table one Parameter: the table's.

    Args:
        model: Has `head.weight` and `embedding.token.weight`, both (V, C); changed in place.
    """
    model.head.weight = model.embedding.token.weight


# %% tags=["check"]
checks.tie_weights(tie_weights)

# %% tags=["nbval-ignore-output"]
curves = {"broken": gaps_of(broken), "mended": gaps_of(tie_weights)}
alt = f"Line chart: the broken version's gap grows to {curves['broken'][-1]:.2f}; the mended version's stays at 0."
plots.show(plots.gaps(curves, "head and token table of one model"), alt=alt)

# %% [markdown]
# ## What you have now
#
# | idea | in the reference |
# |---|---|
# | every decision about a model, in one record | `l1_ref.L1Config`, in `l1_ref/config.py` |
# | the closed form of its size | `l1_ref.count_parameters`, in `l1_ref/transformer.py` |
# | the first values | `l1_ref.init_weights`, in `l1_ref/transformer.py` |
# | the whole model | `l1_ref.L1Model`, in `l1_ref/transformer.py` |
# | a trained run, read from disk | `l1_ref.load_run`, in `l1_ref/weights.py` |
#
# - Embedding, blocks, last norm, head: ids become logits, a score for every token at every position.
# - Blocks grow with C², the token table with V · C. Attention heads cost nothing.
# - A fresh model should lose ln V. What writes to the stream starts smaller, by 1/√(2 · `n_layers`).
# - Tying means one Parameter, not equal numbers.
#
# The trained weights were given to you. Next is 06, training: you make your own.

# %%
checks.progress()
