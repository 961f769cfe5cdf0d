# %% [markdown]
# # Blocks
#
# Attention lets positions talk to each other. One layer of it is not a language model. A model stacks many layers, and
# a deep stack has troubles of its own. This notebook builds the *block*, the unit that can be stacked: attention, a
# layer that works on each position alone, and what holds the two together.
#
# **Goals.** See what depth does to numbers, and cure it with layer normalisation. Write the feed-forward layer. See the
# model as a stream that layers read from and write to. Put a block together, and load trained weights into it.
#
# **Time.** About 75 minutes.
#
# **Difficulty.** Easy.
#
# **You need.** Notebook 03, and a PyTorch class with `__init__` and `forward`.
#
# Words and letters: [glossary](glossary.md).

# %%
import itertools

import torch
from torch import nn

import l1_ref
from l1_ref import checks, plots

run = l1_ref.load_run(l1_ref.DATA_DIR / "tiny")
model, tokenizer = run.model, run.tokenizer

# %% [markdown]
# ## A deep stack multiplies
#
# Take a linear layer whose weights are random, and say that it makes its numbers 1.2 times as large. That looks
# harmless. Stack 30 of them:

# %%
for gain in (0.8, 1.0, 1.2):
    print(f"{gain} to the power of 30 = {gain**30:.2g}")

# %% [markdown]
# Whatever one layer does to the scale of its numbers, a stack does again and again. Let each layer be a random C × C
# matrix, whose entries have standard deviation gain/√C. A sum of C products has √C times their spread, as in notebook
# 03. So the layer multiplies the spread of the numbers by about *gain*. The second curve normalises after each layer;
# how that works comes next.


# %%
def spreads(gain, normalise, n_layers=30, C=128):
    """Return the standard deviation of 64 rows, at the input and after each of many random linear layers."""
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(64, C, generator=chance)
    found = [x.std().item()]
    for _ in range(n_layers):
        x = x @ torch.randn(C, C, generator=chance) * gain / C**0.5
        if normalise:
            x = l1_ref.layer_norm(x, torch.ones(C), torch.zeros(C))
        found.append(x.std().item())
    return found


# %% tags=["nbval-ignore-output"]
def draw_spreads(gain):
    """Draw the spread of the activations, layer by layer, with and without normalisation."""
    plain, normed = spreads(gain, normalise=False), spreads(gain, normalise=True)
    curves = {"linear layers": plain, "linear layers, each normalised": normed}
    alt = f"Log chart, gain {gain}: the spread goes from 1 to {plain[-1]:.2g} in 30 layers; normalised it stays at 1."
    figure = plots.by_depth(curves, "standard deviation", f"gain {gain}", log=True, limits=(1e-6, 1e6))
    return figure, alt


plots.explore(draw_spreads, gain=[1.2, 0.7, 0.8, 0.9, 1.0, 1.1, 1.5])

# %% [markdown]
# Move the slider. On this logarithmic axis the plain stack is nearly a straight line, up or down, unless the gain is
# close to 1. Gradients pass through the same matrices on their way back, so they explode or vanish too. And training
# changes the weights at every step: nobody can hold all gains at 1 by hand.
#
# ## Layer normalisation
#
# The cure: measure the scale, and divide by it. *Layer normalisation* takes the C numbers of one position, subtracts
# their mean $\mu$ and divides by their standard deviation $\sigma$, the root of their *variance* $\sigma^2$. Then each
# column $i$ gets a scale $w_i$ and a shift $b_i$ that are learned, so that the network can choose the size it wants.
#
# $$y_i = w_i \, \frac{x_i - \mu}{\sqrt{\sigma^2 + \varepsilon}} + b_i, \qquad
# \mu = \frac{1}{C}\sum_i x_i, \quad \sigma^2 = \frac{1}{C}\sum_i (x_i - \mu)^2$$
#
# (Ba, Kiros and Hinton 2016, equation 3 for $\mu$ and $\sigma$.) The small number $\varepsilon$, `eps`, keeps the root
# away from 0. Each position is treated alone: no other position or row of the batch has a say.

# %% tags=["nbval-ignore-output"]
chance = torch.Generator().manual_seed(0)
means, widths = torch.tensor([[0.0], [6.0], [-3.0]]), torch.tensor([[1.0], [0.3], [3.0]])
rows = means + widths * torch.randn(3, 24, generator=chance)
normed = l1_ref.layer_norm(rows, torch.ones(24), torch.zeros(24))
alt = "Dots on three lines. Before: one row lies near 0, one narrow near 6, one wide near -2. After: all three alike."
plots.show(plots.normalised_rows(rows, normed, ["usual", "narrow", "wide"]), alt=alt)

# %% [markdown]
# Each dot is one entry of a row. The tick above a row is its mean, the bar one standard deviation to each side. Within
# a row, the order and the relative distances stay; place and scale are gone.
#
# ### Predict before you run
#
# Let `x` be the row 1, 2, 3, 4, with scale 1 and shift 0. Write down your answers first:
#
# 1. Does the row 100, 200, 300, 400 give the same result as `x`?
# 2. Does 101, 102, 103, 104?
# 3. What becomes of 5, 5, 5, 5?

# %%
x = torch.tensor([1.0, 2.0, 3.0, 4.0])
norm = nn.LayerNorm(4)  # torch's own layer; it starts with scale 1 and shift 0
with torch.no_grad():
    print("x ->", [round(y, 2) for y in norm(x).tolist()])
    print("1.", torch.allclose(norm(100 * x), norm(x), atol=1e-4))
    print("2.", torch.allclose(norm(100 + x), norm(x), atol=1e-4))
    print("3.", norm(torch.full((4,), 5.0)).tolist())

# %% [markdown]
# <details><summary>Why?</summary>
#
# 1. Yes. The mean and the standard deviation grow a hundredfold too, and the factor cancels. (`eps` leaves a difference
#    in the sixth decimal.) This is why the curve above stayed flat for every gain.
# 2. Yes. The mean takes the 100 with it.
# 3. Zeros. Each entry less the mean is 0, and the variance is 0 as well. Without `eps` it would be 0 divided by 0.
#
# </details>
#
# ## Exercise: `layer_norm`
#
# Write `layer_norm(x, weight, bias, eps=1e-5)` with means, squares and roots. `x` has any number of axes; the mean and
# the variance run over the last one, of width C. The variance divides by C, not by C - 1, and `eps` is added to it
# *inside* the root. The result has the shape and the dtype of `x`. Leave `x` as it was, and use tensor operations, so
# that gradients reach `x`, `weight` and `bias`, finite ones also where all entries of a row are equal.


# %% tags=["exercise"] name="layer_norm" points=1 difficulty="easy" minutes=10
def layer_norm(x, weight, bias, eps=1e-5):
    """Give each vector mean 0 and variance 1 over its width, then a learned scale and shift.

    Args:
        x: Vectors of width C along the last axis; any axes before it.
        weight: Scale of each column, (C,).
        bias: Shift of each column, (C,).
        eps: Added to the variance, so that the root stays away from 0.
    """
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + eps) * weight + bias


# %% tags=["check"]
checks.layer_norm(layer_norm)

# %% [markdown]
# ## The feed-forward layer
#
# Attention moves information between positions: it adds up values, with weights. The *feed-forward layer* then works on
# what each position has gathered. It is a small network of two linear layers, the same one at every position:
#
# $$\mathrm{FFN}(x) = \mathrm{GELU}(x W_1 + b_1)\, W_2 + b_2$$
#
# (Vaswani et al. 2017, equation 2, which has ReLU, $\max(0, \cdot)$, in place of GELU.) $W_1$ widens from C to F,
# usually four times C, and $W_2$ narrows back to C. One way to read it: each of the F hidden numbers asks whether a
# certain pattern is there. If it is, the matching row of $W_2$ is added to the output (Geva et al. 2021). (`nn.Linear`
# keeps each matrix transposed: there, that row is a column of `weight`.)
#
# Two things to see. First, change position 2 alone, and look which positions of the output change:

# %%
block = model.blocks[0]
x = torch.randn(1, 6, model.config.n_embd, generator=torch.Generator().manual_seed(0))
changed = x.clone()
changed[0, 2] += 1
for name, layer in {"attention": block.attention, "feed-forward": block.feed_forward}.items():
    moved = (layer(x) - layer(changed)).abs().amax(-1)[0] > 1e-4
    print(f"{name:>12}: positions {moved.nonzero().flatten().tolist()} change")

# %% [markdown]
# Attention carries the change to position 2 and all later ones; the mask protects 0 and 1. The feed-forward layer keeps
# it at home.
#
# Second, the layer holds two thirds of a block's parameters. Attention has $3C^2 + C^2$ weights, the feed-forward layer
# has $2 \cdot C \cdot 4C = 8C^2$. (`preset` gives the sizes of a named model.)

# %%
for name in ("tiny", "gpt2"):
    parts = l1_ref.TransformerBlock(l1_ref.L1Config.preset(name))
    counts = [sum(p.numel() for p in part.parameters()) for part in (parts.attention, parts.feed_forward, parts)]
    print(f"{name}: attention {counts[0]:,}, feed-forward {counts[1]:,}: {counts[1] / counts[2]:.0%} of the block")

# %% [markdown]
# ### GELU
#
# Between the two linear layers stands a bend. Without it, two matrices in a row would be no more than one matrix.
#
# ReLU cuts every negative number to 0. There its slope is 0 too: where a hidden number is negative for all inputs, no
# gradient reaches its weights, and they stand still. *GELU* bends smoothly. It multiplies $x$ by the probability that a
# standard normal number is smaller than $x$ (Hendrycks and Gimpel 2016, section 2). So a large $x$ passes, a very
# negative one fades out, and in between there is a soft slope. GPT-2 uses the paper's approximation with tanh:
#
# $$\mathrm{gelu}(x) = \tfrac{1}{2}\, x \left(1 + \tanh\left(\sqrt{2/\pi}\,(x + 0.044715\, x^3)\right)\right)$$

# %% tags=["nbval-ignore-output"]
x = torch.linspace(-4, 4, 400, requires_grad=True)
curves = {}
for name, function in {"GELU": l1_ref.gelu, "ReLU": torch.relu}.items():
    y = function(x)
    curves[name] = (y.detach(), torch.autograd.grad(y.sum(), x)[0])
low = curves["GELU"][0].min()
alt = f"Two charts: GELU follows ReLU, but smoothly, with a dip to {low:.2f}; its slope has no jump, ReLU's jumps at 0."
plots.show(plots.activations(x.detach(), curves), alt=alt)

# %% [markdown]
# How far is the approximation from the exact function? Torch computes that one with the *error function*, `erf`:

# %%
x = torch.linspace(-6, 6, 10_001)
gap = (l1_ref.gelu(x) - nn.functional.gelu(x)).abs().max()
print(f"largest difference: {gap:.4f}")

# %% [markdown]
# ## Exercise: `gelu`
#
# Write `gelu(x)`, the tanh form above, for a float tensor of any shape. The result has its shape and dtype. Large
# inputs must work, gradients must get through, and `x` stays as it was. (The exact form fails the check.)


# %% tags=["exercise"] name="gelu" points=1 difficulty="easy" minutes=5
def gelu(x):
    """Let positive values through and fade negative ones out, smoothly: the tanh form.

    Args:
        x: Values, a float tensor of any shape.
    """
    inner = (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)
    return 0.5 * x * (1 + torch.tanh(inner))


# %% tags=["check"]
checks.gelu(gelu)

# %% [markdown]
# ## Exercise: `FeedForward`
#
# Write the layer as an `nn.Module`. `FeedForward(config)` has a linear layer `fc` from `config.n_embd` to
# `config.n_inner`, and a linear layer `proj` back to `config.n_embd`; both have a bias. `forward(x)` takes `(B, T, C)`
# and returns `(B, T, C)`: `fc`, GELU in its tanh form, `proj`, and last dropout with probability `config.dropout`, in
# training mode only. (`l1_ref.gelu` is there for you.)


# %% tags=["exercise"] name="FeedForward" points=1 difficulty="easy" minutes=10
class FeedForward(nn.Module):
    """Work on each position by itself: widen, bend, narrow.

    Args:
        config: Gives `n_embd` (C), `n_inner` (F) and `dropout`.
    """

    def __init__(self, config):
        super().__init__()
        self.fc = nn.Linear(config.n_embd, config.n_inner)
        self.proj = nn.Linear(config.n_inner, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        """Return what the layer makes of each position of x, (B, T, C)."""
        hidden = l1_ref.gelu(self.fc(x))  # (B, T, F)
        return self.dropout(self.proj(hidden))


# %% tags=["check"]
checks.FeedForward(FeedForward)

# %% [markdown]
# ## The residual stream
#
# A layer that replaces its input must pass on all that later layers need. He et al. 2016 (section 3.1) let it *add*
# instead: the output is $x + f(x)$, and $f$ need only learn what is to be changed. If nothing is, $f = 0$ will do.
#
# So picture a *residual stream* (Elhage et al. 2021): one vector of width C for each position, running from the
# embedding to the *head*, the last linear layer, which turns each vector into V scores (no kin of attention's heads).
# Each attention or feed-forward layer, a *sub-layer*, stands on a branch. It reads a copy of the stream, and adds its
# result to it. Nothing is overwritten. And the slope of $x + f(x)$ is $1 + f'(x)$: through the 1, gradients flow back
# to the bottom without passing any matrix.
#
# A block in which both branches write zeros changes nothing. Each branch ends in its `proj`, so zeros there are enough:

# %%
quiet = l1_ref.TransformerBlock(model.config)
for layer in (quiet.attention.proj, quiet.feed_forward.proj):
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
x = torch.randn(2, 5, model.config.n_embd)
print("output equals input:", torch.equal(quiet(x), x))

# %% [markdown]
# ## Bug hunt: the stream that forgets
#
# A branch should read a *normalised* copy of the stream, so that its input has the same scale at every depth. The
# function below is meant to do one step: normalise, run the sub-layer, add. It is broken, and nothing crashes.
#
# Send random vectors through twelve steps with random linear sub-layers, each of which adds about as much as the input
# had at the start. After $n$ steps the stream should hold $n + 1$ equal parts, and the first input is one of them.
# Random vectors of 256 numbers stand nearly at right angles. So, by Pythagoras, the sum of $n + 1$ equally long ones is
# $\sqrt{n + 1}$ times as long as one, and the cosine between the first input and the stream should be $1/\sqrt{n + 1}$,
# the dotted line. (The cosine of two vectors is 1 where they point the same way, and 0 at a right angle.)


# %%
def broken(x, norm, sublayer):
    """Add to the stream what the sub-layer makes of a normalised copy of it."""
    x = norm(x)
    return x + sublayer(x)


@torch.no_grad()
def first_share(step, n_steps=12, C=256):
    """Return the cosine between the first input and the stream, at the start and after each step."""
    chance = torch.Generator().manual_seed(0)
    x = first = torch.randn(64, C, generator=chance)
    shares = [1.0]
    for _ in range(n_steps):
        sublayer = nn.Linear(C, C, bias=False)
        sublayer.weight.normal_(std=C**-0.5, generator=chance)
        x = step(x, nn.LayerNorm(C), sublayer)
        shares.append(torch.cosine_similarity(first, x, dim=-1).mean().item())
    return shares


# %% tags=["nbval-ignore-output"]
def draw_shares(name, step):
    """Draw how much of the first input is left in the stream."""
    shares, even = first_share(step), [(n + 1) ** -0.5 for n in range(13)]
    alt = f"Line chart, {name} step: after 12 layers the cosine is {shares[-1]:.2f}; an even share is {even[-1]:.2f}."
    guide = ("an even share", even)
    return plots.by_depth({f"{name} step": shares}, "cosine with the first input", limits=(0, 1.05), guide=guide), alt


figure, alt = draw_shares("broken", broken)
plots.show(figure, alt=alt)

# %% [markdown]
# Which line lets the stream forget? Say in one sentence what is wrong with it. Then write the mended step:
# `residual_step(x, norm, sublayer)` takes the stream and two callables, and returns the new stream. `x` itself stays as
# it was, and gradients reach it.


# %% tags=["exercise"] name="residual_step" points=1 difficulty="easy" minutes=5
def residual_step(x, norm, sublayer):
    """Add to the stream what the sub-layer makes of a normalised copy of it.

    Args:
        x: The residual stream, (B, T, C).
        norm: Normalises vectors of width C.
        sublayer: Maps a tensor to one of the same shape.
    """
    return x + sublayer(norm(x))


# %% tags=["check"]
checks.residual_step(residual_step)

# %% tags=["nbval-ignore-output"]
figure, alt = draw_shares("mended", residual_step)
plots.show(figure, alt=alt)

# %% [markdown]
# The broken step shrank the stream to the size of one part before each addition. So whatever was in it lost a factor of
# about $\sqrt{2}$ each time: 0.70, 0.50, 0.36, 0.25, and at the end 0.01.
#
# ## Where to normalise: pre-norm and post-norm
#
# Normalisation can stand in two places:
#
# - *post-norm*: $\mathrm{norm}(x + f(x))$. The first transformer did this (Vaswani et al. 2017, section 3.1). The
#   stream itself is normalised after each addition.
# - *pre-norm*: $x + f(\mathrm{norm}(x))$. GPT-2 moved the normalisation to the input of each sub-layer, and put one
#   more at the very end, before the head (Radford et al. 2019, section 2.3).
#
# What does the order do to gradients? Build stacks of both kinds with random weights, of about the size that keeps a
# signal's scale on its way forward and back (Xavier's initialisation, Glorot and Bengio 2010). Run random data through
# each. Note how large a gradient the second matrix of each feed-forward layer gets (the one that Xiong et al. 2020 look
# at): its *length*, the root of the sum of the squares of all its entries (also called its norm; nothing to do with
# normalising). Nothing is trained here.


# %%
class PostNormBlock(l1_ref.TransformerBlock):
    """The same parts in the order of Vaswani et al. 2017."""

    def forward(self, x):
        x = self.norm_1(x + self.attention(x))
        return self.norm_2(x + self.feed_forward(x))


def gradient_lengths(kind, n_blocks, seed, C=64, V=100):
    """Return the length of the gradient of each block's second feed-forward matrix, before any training."""
    torch.manual_seed(seed)
    blocks = nn.Sequential(*(kind(l1_ref.L1Config(n_embd=C, n_heads=4, dropout=0.0)) for _ in range(n_blocks)))
    for matrix in (p for p in blocks.parameters() if p.ndim == 2):
        nn.init.xavier_normal_(matrix)
    ending = nn.Identity() if kind is PostNormBlock else nn.LayerNorm(C)
    head = nn.Linear(C, V, bias=False)
    x, y = torch.randn(8, 16, C), torch.randint(V, (8, 16))
    l1_ref.cross_entropy(head(ending(blocks(x))), y).backward()
    return torch.stack([block.feed_forward.proj.weight.grad.norm() for block in blocks])


# %% tags=["nbval-ignore-output"]
profiles, last = {}, {}  # 24 stacks: a second or two, or more on a busy machine
for name, kind in {"pre-norm": l1_ref.TransformerBlock, "post-norm": PostNormBlock}.items():
    means = {n: sum(gradient_lengths(kind, n, seed) for seed in range(3)) / 3 for n in (3, 6, 12, 24)}
    profiles[name] = means[24].tolist()
    last[name] = {n: sizes[-1].item() for n, sizes in means.items()}
pre, post = last["pre-norm"], last["post-norm"]
alt = (
    "Two charts. By block, in 24 blocks: pre-norm gradients fall towards the top, post-norm ones stay about level. "
    f"In the last block, from 3 to 24 blocks: pre-norm falls from {pre[3]:.2f} to {pre[24]:.2f}, "
    f"post-norm goes from {post[3]:.2f} to {post[24]:.2f}."
)
plots.show(plots.order_gradients(profiles, last), alt=alt)

# %% [markdown]
# With post-norm the gradient is about the same in every block, and about as large in a deep stack as in a shallow one.
# With pre-norm it falls from the bottom to the top, and in the last block it is smaller the deeper the stack is.
#
# Why? With pre-norm the stream grows, as every branch adds to it. The last normalisation divides by that length, and
# all gradients with it: so the last block of a deep stack gets a smaller one. And what a low block writes is read by
# all branches above it, each of which sends some gradient back. The top block has no reader but the head. So gradients
# fall from bottom to top. But slowly: by a factor of about 3 over 24 blocks, nothing like $0.8^{30}$.
#
# Xiong et al. derive a bound for the last layer (section 3.3, theorem 1). With post-norm it does not depend on the
# number of layers, with pre-norm it falls as one over its square root (dotted). They conclude that the large gradients
# near the output make post-norm training unstable at a large learning rate, so that it needs a slow start (*warm-up*,
# notebook 06); in their experiments pre-norm could do without. Our picture shows the gradients, not that conclusion,
# and no explosion in either order.
#
# ## Exercise: `TransformerBlock`
#
# Now the block, in pre-norm order as in GPT-2. First attention writes to the stream, then the feed-forward layer reads
# the *new* stream and writes to it. Build it from these parts, with these names:
#
# | name | part |
# |---|---|
# | `norm_1` | `nn.LayerNorm` over `config.n_embd`, with `eps=config.layer_norm_eps` |
# | `attention` | `l1_ref.MultiHeadAttention(config)` |
# | `norm_2` | as `norm_1`, with parameters of its own |
# | `feed_forward` | `l1_ref.FeedForward(config)` |
#
# `forward(x)` takes the stream `(B, T, C)` and returns it, changed, in the same shape. The parts bring their own
# dropout: add none. `x` itself stays as it was.


# %% tags=["exercise"] name="TransformerBlock" points=2 difficulty="easy" minutes=10
class TransformerBlock(nn.Module):
    """Add what attention gathers, then what the feed-forward layer makes of it, to the residual stream.

    Args:
        config: The model's configuration.
    """

    def __init__(self, config):
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_eps)
        self.attention = l1_ref.MultiHeadAttention(config)
        self.norm_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_eps)
        self.feed_forward = l1_ref.FeedForward(config)

    def forward(self, x):
        """Return the residual stream after this block; x, (B, T, C), is the stream before it."""
        x = x + self.attention(self.norm_1(x))
        return x + self.feed_forward(self.norm_2(x))


# %% tags=["check"]
checks.TransformerBlock(TransformerBlock)

# %% [markdown]
# ## Inside a trained model
#
# The two blocks of the tiny model have the same parts under the same names, so their weights fit yours. Here is a tale
# that it has never seen, and your block with the weights of its second one. `load_state_dict` is strict: a missing or
# an extra name is an error. Load both ways, into yours and back.

# %%
tale = l1_ref.load_tales("validation")[0]
ids = torch.tensor([[tokenizer.end_of_text, *tokenizer.encode(tale)]])
print(*plots.wrapped(tale), sep="")

# %%
trained = model.blocks[1]
mine = TransformerBlock(model.config).eval()
print(mine.load_state_dict(trained.state_dict()))
print(l1_ref.TransformerBlock(model.config).load_state_dict(mine.state_dict()))
with torch.no_grad():
    x = model.blocks[0](model.embedding(ids))
    print("your block does what the trained one does:", torch.allclose(mine(x), trained(x), atol=1e-4))

# %% [markdown]
# ### What the branches write
#
# Follow the stream through that tale, from the embedding past the four branches. `model.hidden(ids)` is what the head
# reads: the last stream, normalised.


# %%
@torch.no_grad()
def stream_of(ids):
    """Return the residual stream after the embedding and after each branch."""
    stages = [model.embedding(ids)]
    for block in model.blocks:
        stages.append(stages[-1] + block.attention(block.norm_1(stages[-1])))
        stages.append(stages[-1] + block.feed_forward(block.norm_2(stages[-1])))
    return stages


stages = stream_of(ids)
names = ["embedding", "attention 1", "feed-forward 1", "attention 2", "feed-forward 2"]
print("the head reads the last one:", torch.allclose(model.norm(stages[-1]), model.hidden(ids), atol=1e-4))

# %% tags=["nbval-ignore-output"]
added = [after - before for before, after in itertools.pairwise(stages)]
norms = [x.norm(dim=-1).mean().item() for x in stages]
lengths = [y.norm(dim=-1).mean().item() for y in added]
cosines = [torch.cosine_similarity(y, x, dim=-1).mean().item() for y, x in zip(added, stages, strict=False)]
alt = (
    f"Bars: the stream grows from length {norms[0]:.1f} to {norms[-1]:.1f}. The feed-forward layers add the most, "
    f"{lengths[1]:.1f} and {lengths[3]:.1f}. The first three cosines are at most {max(cosines[:3]):.2f}, "
    f"the last is {cosines[3]:.2f}."
)
plots.show(plots.residual_stream(names, norms, lengths, cosines), alt=alt)

# %% [markdown]
# The stream grows, as nothing in pre-norm holds it back: this is why one more normalisation stands before the head. The
# feed-forward layers write much more than attention. And the cosines of the first three branches are near 0: they add
# something new, nearly at a right angle to what was there. The last one also strengthens part of what is there. These
# are means over the tale: single positions differ widely.
#
# ### Reading along
#
# The stream has one width all the way. So the last normalisation and the head, which turn the *last* stream into a
# guess, can be tried on earlier stages. This is the *logit lens* (nostalgebraist 2020). Each column is a position. Read
# it downwards, and watch the guess at the next token take shape.


# %% tags=["nbval-ignore-output"]
tokens = [tokenizer.decode([i]) for i in ids[0].tolist()]
with torch.no_grad():
    chances, guesses = l1_ref.softmax(model.head(model.norm(torch.cat(stages))), dim=-1).max(-1)  # (stages, T)


def draw_lens(first_position):
    """Draw what the head would guess at every stage, for seven positions of the tale."""
    end = first_position + 7
    here, following = slice(first_position, end), tokens[first_position + 1 : end + 1]
    words = [[tokenizer.decode([i]) for i in row] for row in guesses[:, here].tolist()]
    story = [f"{name} '{row[-1]}' ({p:.2f})" for name, row, p in zip(names, words, chances[:, end - 1], strict=True)]
    alt = f"Table: after '{''.join(tokens[here])}', the guess at each stage is: {', '.join(story)}."
    return plots.logit_lens(tokens[here], names, words, chances[:, here], following), alt


sock = tokens.index(" sock")
plots.explore(draw_lens, first_position=[sock - 4, *range(0, len(tokens) - 8, 4)])

# %% [markdown]
# At the top the head mostly sees the token itself. This model uses one matrix for the embedding and for the head, so a
# token's score is the dot product with its own vector. (A word with many siblings, such as "striped", can show one of
# them.)
#
# Now the last column: "Then they hung a striped sock on the …". Through the whole first block the head cannot yet read
# on what. The second attention brings "lamp" to the top, a word that stands far back in the tale. The last sub-layer
# makes it nearly certain. Under "hung", the first feed-forward layer guesses "ry" (hung·ry), and the second attention
# corrects it to "a". After "a" and after "striped" the chances stay spread: nothing in the tale tells what will hang
# there.
#
# Move the slider to other places. Where is a guess settled early, and where only by the last block?
#
# ## What you have now
#
# | idea | in the reference |
# |---|---|
# | layer normalisation | `l1_ref.layer_norm`, in `l1_ref/transformer.py` |
# | GELU, the tanh form | `l1_ref.gelu`, in `l1_ref/transformer.py` |
# | the feed-forward layer | `l1_ref.FeedForward`, in `l1_ref/transformer.py` |
# | the pre-norm block | `l1_ref.TransformerBlock`, in `l1_ref/transformer.py` |
#
# - A stack multiplies scales. Layer normalisation sets the scale of each position's vector, whatever came in.
# - Attention moves information between positions. The feed-forward layer works on each alone.
# - Pre-norm: branches read a normalised copy of the residual stream and add to it. The stream itself is normalised only
#   at the end.
#
# Next is 05, the model: embedding, a stack of your blocks, a last normalisation, and the head. It will tell tales.

# %%
checks.progress()
