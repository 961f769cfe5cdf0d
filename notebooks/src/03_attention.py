# %% [markdown]
# # Attention
#
# So far each token's vector knows what the token is and where it stands, and nothing about the others. Attention is the
# one part of a transformer where positions look at each other.
#
# **Goals.** Say what query, key and value are for. Write the causal mask, attention, and attention with several heads.
# Mend a leak from the future. See how a trained model finds a name again that it read almost sixty tokens ago.
#
# **Time.** About two hours, in two sittings: a good place to stop is after the bug hunt.
#
# **Difficulty.** Medium.
#
# **You need.** `softmax` from notebook 00, and from notebook 02 that a text becomes a tensor `(B, T, C)`. Matrix
# products: `a @ b`, which works on the last two axes of tensors with more.
#
# Words and letters: [glossary](glossary.md).

# %%
import math
import re

import torch
import torch.nn.functional as F
from torch import nn

import l1_ref
from l1_ref import checks, plots

# %% [markdown]
# ## Why look back
#
# In a tale a name is introduced, and comes back much later. Here is one. Look for the name.

# %%
run = l1_ref.load_run(l1_ref.DATA_DIR / "tiny")
model, tokenizer = run.model, run.tokenizer
tales = l1_ref.load_tales("validation")
tale = tales[158]
print(*plots.wrapped(tale), sep="")


# %% [markdown]
# The trained model from notebook 00 reads this tale up to "whispered". Which token does it expect next? We ask three
# times, and only the first sentence changes: the girl is called Nell, Rosa, or Mina.


# %%
def as_ids(text):
    """Return the ids of a text, behind the mark that begins a tale."""
    return [tokenizer.end_of_text, *tokenizer.encode(text)]


def next_chances(text):
    """Return the model's probabilities for the token that follows a text."""
    with torch.no_grad():
        return l1_ref.softmax(model(torch.tensor([as_ids(text)]))[0, -1], dim=-1)


names = sorted({re.search(r"called (\w+)", each)[1] for each in tales})
name_ids = [tokenizer.encode(" " + name)[0] for name in names]  # every name is one token
print(", ".join(names))

# %% tags=["nbval-ignore-output"]
beginning = tale[: tale.rindex(" Nell")]
girls = ["Ada", "Mina", "Nell", "Rosa", "Tess"]
girl_ids = [tokenizer.encode(" " + name)[0] for name in girls]
panels = {
    f"… called {name} …": next_chances(beginning.replace("Nell", name))[girl_ids] for name in ("Nell", "Rosa", "Mina")
}
sure = min(chances.max() for chances in panels.values())
alt = f"Three bar charts: after '… whispered' the girl's own name has at least {sure:.3f} of the probability."
plots.show(plots.probabilities(girls, panels), alt=alt)

# %% [markdown]
# One word changes, almost sixty tokens back, and the prediction follows. At "whispered" the model reads the same word
# each time, so it cannot live on that word alone. Something carries the name over. That something is attention.
#
# ## A weighted mean
#
# Early neural translators squeezed a whole sentence into one vector. Bahdanau, Cho and Bengio (2015) let theirs look
# back instead: for each word to write, it took a *weighted mean* of vectors, one for each word of the sentence, with
# weights computed afresh (their equations 5 and 6). Vaswani et al. (2017) built a whole model around this step.
#
# A weighted mean multiplies each vector by a weight and adds up. The weights are not negative and sum to 1. Put 0.9 on
# one vector, and the result is nearly that vector. So choosing weights means choosing where to look. Unlike in a hard
# choice, small changes of the weights change the result a little, so training can follow them.
#
# ## Question, label, content
#
# Where do the weights come from? Every position has three vectors:
#
# - a *query*, the question it asks: "who did this?"
# - a *key*, the label under which others find it: "I am a person"
# - a *value*, the content it hands over when found.
#
# A query is compared with all keys by the *dot product*: multiply component by component, and add up. It is large when
# two vectors point the same way, 0 at a right angle, negative when they point apart. Softmax turns these scores into
# weights.
#
# Our toy sentence is "Ada found a bun". Its queries and keys are two wide, and we gave the columns a meaning: the first
# stands for "a person", the second for "an action". The columns of the values have no such meaning.

# %%
toy = {  # query, key, value
    "Ada": ([0.0, 1.0], [2.0, 0.0], [10.0, 0.0]),  # asks for an action; is a person
    "found": ([2.0, 0.0], [0.0, 2.0], [0.0, 10.0]),  # asks for a person; is an action
    "a": ([0.0, 0.0], [0.0, 0.0], [0.0, 0.0]),  # asks nothing; is neither
    "bun": ([1.0, 2.0], [-1.0, -1.0], [5.0, 5.0]),  # asks for both; is neither: negative in both columns
}
words = list(toy)
q, k, v = (torch.tensor(rows) for rows in zip(*toy.values(), strict=True))  # each (4, 2): a row a word


# %% tags=["nbval-ignore-output"]
def turned(angle):
    """Draw a query of length 2 at an angle in degrees, and what it takes from the toy's keys."""
    query = 2 * torch.tensor([math.cos(math.radians(angle)), math.sin(math.radians(angle))])
    weights = l1_ref.softmax(k @ query, dim=-1)
    alt = f"Arrows and bars: a query at {angle} degrees puts {weights.max():.2f} on '{words[weights.argmax()]}'."
    return plots.dot_products(query, k, words, weights), alt


plots.explore(turned, angle=[30, 0, 15, *range(45, 360, 15)])

# %% [markdown]
# Turn the query with the slider, and watch the weights follow. At 45 degrees two keys share. (The key of "a" is zero:
# always score 0, which is not weight 0.)
#
# In a trained model nobody gives the columns a meaning. Training finds queries, keys and values that lower the loss,
# and most are hard to read.
#
# ## All positions at once
#
# All positions ask at the same time. Put the queries in the rows of a matrix $Q$, the keys in the rows of $K$: then
# $Q K^T$ holds all scores, row *t* those of query *t*. Softmax goes along each row, over the keys.

# %% tags=["nbval-ignore-output"]
scores = q @ k.T
weights = l1_ref.softmax(scores, dim=-1)
panels = {"scores q·k": scores, "softmax of each row": weights}
alt = (
    f"Two heat maps. 'found' has score {scores[1, 0]:.0f} with 'Ada', which becomes weight {weights[1, 0]:.2f}. "
    f"All weights of 'a' are {weights[2, 0]:.2f}."
)
plots.show(plots.heat_maps(panels, words, words, "query of", "key of"), alt=alt)

# %% [markdown]
# "found" asked for a person, and found Ada. "a" asked nothing, so it takes the same from everybody.
#
# ## No looking ahead
#
# "Ada" puts most of its weight on "found", a word that comes later. A model that learns to predict the next token must
# not see it. So each position may attend to itself and to those before it: the *causal mask* (section 3.2.3 of the
# paper). Our mask is a boolean matrix, and True means: *may attend*. (Some libraries mark the forbidden places.)
#
# Usually every position asks. But when a model writes a token at a time, the keys of earlier tokens are already there,
# and only the new tokens ask: T queries, S keys. The queries are then the *last* T of the S positions.

# %% tags=["nbval-ignore-output"]
alt = "Two masks. With 5 queries and 5 keys: a triangle. With 2 queries and 5 keys: the last two rows of that triangle."
panels = {"T = 5, S = 5": l1_ref.causal_mask(5, 5), "T = 2, S = 5": l1_ref.causal_mask(2, 5)}
plots.show(plots.masks(panels), alt=alt)

# %% [markdown]
# ## Exercise: `causal_mask`
#
# Write `causal_mask(T, S)`. It returns a tensor `(T, S)` of dtype `torch.bool`: True where the query of that row may
# attend to the key of that column. T is at least 1 and at most S.


# %% tags=["exercise"] name="causal_mask" points=1 difficulty="easy" minutes=10
def causal_mask(T, S):
    """Say which of S positions each of the last T may attend to: itself and all before it.

    Args:
        T: Number of queries; they are the last T of the S positions.
        S: Number of keys, at least T.
    """
    queries = torch.arange(S - T, S).unsqueeze(1)  # (T, 1): where each query stands
    keys = torch.arange(S)
    return keys <= queries


# %% tags=["check"]
checks.causal_mask(causal_mask)

# %% [markdown]
# ## Why divide by √D
#
# One thing is missing before you write the weights. Take random queries and keys of width D, each component with mean 0
# and variance 1. A dot product adds up D products of two components. Each product again has mean 0 and variance 1, and
# the variances of independent numbers add up: to D. So the standard deviation of the score is $\sqrt{D}$: wider vectors
# give larger scores. (A footnote of the paper's section 3.2.1.)
#
# Softmax of large scores is *saturated*: one weight is nearly 1, the others nearly 0, and small changes of the scores
# change next to nothing. So for most queries almost no gradient gets through: they learn next to nothing, while a few
# get large jolts. Dividing the scores by $\sqrt{D}$ brings their standard deviation back to 1, for every D. The next
# cell measures the spread, the largest weight and the gradient, over 16 keys.


# %%
def measure(D, n=300, S=16):
    """Return n random queries' dot products with S keys, and what softmax makes of them."""
    generator = torch.Generator().manual_seed(D)
    queries, keys = (torch.randn(n, count, D, generator=generator) for count in (1, S))
    dots, found = (queries @ keys.mT).squeeze(1), {"D": D}
    upstream = torch.randn(n, S, generator=generator)  # what arrives from behind, the same for both
    for name, scale in (("", 1.0), (" divided", math.sqrt(D))):
        scores = (dots / scale).requires_grad_()
        weights = l1_ref.softmax(scores, dim=-1)
        (weights * upstream).sum().backward()
        found["largest" + name] = weights.amax(-1).mean().item()
        found["gradient" + name] = scores.grad.norm(dim=-1).median().item()  # of the 300 queries
    return dots, found


measured = {D: measure(D) for D in (1, 4, 16, 64, 256, 1024)}
print("standard deviation of the dot products / √D, for each D:")
print({D: round(dots.std().item() / math.sqrt(D), 1) for D, (dots, _) in measured.items()})


# %% tags=["nbval-ignore-output"]
def saturated(D):
    """Draw what was measured, with the dot products of one head width."""
    dots, found = measured[D]
    alt = (
        f"Head width {D}: the dot products have standard deviation {dots.std():.1f}. The largest weight is "
        f"{found['largest']:.2f}, divided by the root of D {found['largest divided']:.2f}; the median gradient "
        f"is {found['gradient']:.3f} and {found['gradient divided']:.3f}."
    )
    return plots.saturation([record for _, record in measured.values()], D, dots), alt


plots.explore(saturated, D=[64, 1, 4, 16, 256, 1024])

# %% [markdown]
# Move D. The orange scores spread out, the blue ones stay. Undivided, the gradient of a typical query falls away from
# D = 16 on.
#
# ## Exercise: `attention_weights`
#
# Now all of it: scores, division, mask, softmax. This is the left half of equation 1 of the paper:
#
# $$\mathrm{Attention}(Q, K, V) = \mathrm{softmax}\left(\frac{Q K^T}{\sqrt{d_k}}\right) V$$
#
# where $d_k$ is the width of the keys, our D. `q` is `(B, H, T, D)`, `k` is `(B, H, S, D)`, the result `(B, H, T, S)`
# with the dtype of `q`. H counts heads, which come later: here B and H only stand in front.
#
# - `mask` is None, or boolean and broadcasts to `(B, H, T, S)`: a `(T, S)` mask serves every head of every text. Where
#   it is False, the weight is exactly 0, and the others of the row sum to 1.
# - A mask need not be causal. A query that may attend to *nothing* (padding in a batch can cause it) gets zeros, not
#   NaN, and no NaN in the gradient.
# - Scores far above 100, hidden or not, must work: use `l1_ref.softmax`, or yours. Gradients reach `q` and `k`; both
#   stay as they were.
#
# To keep a key out, replace its score *before* softmax by a number so low that `exp` makes 0 of it. Your tools:
# `x.transpose(-2, -1)` swaps the last two axes (`.T` would reverse all four), `x.masked_fill(~mask, number)` writes a
# number where the mask is False, and `torch.finfo(dtype).min` is the lowest finite number of a dtype.


# %% tags=["exercise"] name="attention_weights" points=2 difficulty="medium" minutes=15
def attention_weights(q, k, mask=None):
    """Say how much each query takes from each key.

    Args:
        q: Queries, (B, H, T, D).
        k: Keys, (B, H, S, D).
        mask: Broadcasts to (B, H, T, S); True where attention is allowed.
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, T, S)
    if mask is None:
        return l1_ref.softmax(scores, dim=-1)
    lowest = torch.finfo(scores.dtype).min  # finite, so that a row with nothing allowed has no NaN
    weights = l1_ref.softmax(scores.masked_fill(~mask, lowest), dim=-1)
    return weights.masked_fill(~mask, 0.0)


# %% tags=["check"]
checks.attention_weights(attention_weights)

# %% [markdown]
# The toy sentence again, step by step; the last panel is your code. (`q[None, None]` adds the axes B and H.)

# %% tags=["nbval-ignore-output"]
mask = l1_ref.causal_mask(4, 4)
scores = q @ k.T / math.sqrt(2)
panels = {
    "q·k / √D": scores,
    "masked": scores.masked_fill(~mask, -math.inf),
    "your weights": attention_weights(q[None, None], k[None, None], mask)[0, 0],
}
alt = "Three heat maps: scores; the same with -∞ above the diagonal; weights that are 0 there, each row with sum 1."
plots.show(plots.heat_maps(panels, words, words, "query of", "key of"), alt=alt)

# %% [markdown]
# ### Predict before you run
#
# Four tokens with random queries, keys and values, and the causal mask. Write down your answers first:
#
# 1. What is the first row of the weights?
# 2. All queries are zero. What is the third row?
# 3. The first two tokens swap their keys and values. Does the *last* output change?

# %%
random = torch.Generator().manual_seed(0)
a, b, c = (torch.randn(1, 1, 4, 8, generator=random) for _ in range(3))
mask, swap = l1_ref.causal_mask(4, 4), [1, 0, 2, 3]
print("1.", [round(w, 2) for w in l1_ref.attention_weights(a, b, mask)[0, 0, 0].tolist()])
print("2.", [round(w, 2) for w in l1_ref.attention_weights(0 * a, b, mask)[0, 0, 2].tolist()])
before = l1_ref.scaled_dot_product_attention(a, b, c, mask)
after = l1_ref.scaled_dot_product_attention(a, b[:, :, swap], c[:, :, swap], mask)
print("3. last output changed:", not torch.allclose(before[0, 0, 3], after[0, 0, 3], atol=1e-6))

# %% [markdown]
# <details><summary>Why?</summary>
#
# 1. 1, 0, 0, 0, whatever the vectors are: the first token may attend to nothing but itself.
# 2. Equal weights on the three keys that it may see. All scores are 0, and softmax of equal scores is even.
# 3. No. A mean does not know the order of what goes in. That is why notebook 02 put positions into the vectors.
#
# </details>
#
# ## Exercise: `scaled_dot_product_attention`
#
# The right half of equation 1: the weights times the values. `v` is `(B, H, S, D)`, the result `(B, H, T, D)`.
#
# Between the two comes *dropout*: each weight is set to 0 with probability `dropout_p`, and the others are divided by
# `1 - dropout_p`, so that the mean stays. In training it keeps a model from relying on single weights. Use
# `F.dropout`. It is active whenever `dropout_p` is not 0: who calls says when. The mask works as before; take
# `l1_ref.attention_weights`, or yours.


# %% tags=["exercise"] name="scaled_dot_product_attention" points=1 difficulty="easy" minutes=10
def scaled_dot_product_attention(q, k, v, mask=None, dropout_p=0.0):
    """Mix the values by the attention weights.

    Args:
        q: Queries, (B, H, T, D).
        k: Keys, (B, H, S, D).
        v: Values, (B, H, S, D).
        mask: Broadcasts to (B, H, T, S); True where attention is allowed.
        dropout_p: Probability of dropping a weight; active whenever it is not 0.
    """
    weights = l1_ref.attention_weights(q, k, mask)
    return F.dropout(weights, dropout_p) @ v  # (B, H, T, D)


# %% tags=["check"]
checks.scaled_dot_product_attention(scaled_dot_product_attention)

# %% [markdown]
# For the toy, "found" now holds mostly what Ada had to say, and "a" the mean of the three values that it may see:

# %%
mixed = scaled_dot_product_attention(q[None, None], k[None, None], v[None, None], l1_ref.causal_mask(4, 4))[0, 0]
for word, row in zip(words, mixed.tolist(), strict=True):
    print(f"{word:6}", [round(x, 1) for x in row])

# %% [markdown]
# ## Bug hunt: a leak from the future
#
# The function below is meant to be causal attention. It runs, and all weights above the diagonal are 0.


# %%
def broken(q, k, v):
    """Let each position gather from itself and those before it."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    weights = l1_ref.softmax(scores, dim=-1)
    mask = l1_ref.causal_mask(q.shape[-2], k.shape[-2])
    return (weights * mask) @ v


def influence(attend, T=5):
    """Return how far each output moves when the key and the value of each token change: (output, token)."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, other = (torch.randn(1, 1, T, 8, generator=generator) for _ in range(4))
    moved = []
    for s in range(T):
        here = (torch.arange(T) == s).unsqueeze(1)
        changed = attend(q, torch.where(here, other, k), torch.where(here, other, v))
        moved.append((changed - attend(q, k, v))[0, 0].norm(dim=-1))
    return torch.stack(moved, dim=1)


# %% [markdown]
# Here is a test for any attention. Change one token, and see which outputs move: column *s* is the token that was
# changed, row *t* the output.

# %% tags=["nbval-ignore-output"]
places = [str(t) for t in range(5)]
alt = "Heat map of the broken function: entries above the diagonal are not 0, so outputs move when later tokens change."
plots.show(
    plots.heat_maps({"broken: what moves": influence(broken)}, places, places, "output at", "changed token"), alt=alt
)

# %% [markdown]
# What should this picture look like? Say in one sentence how a later token gets into an earlier output, although its
# weight is 0. Then mend the function. `q`, `k` and `v` are all `(B, H, T, D)`: every position asks.


# %% tags=["exercise"] name="causal_attention" points=1 difficulty="medium" minutes=10
def causal_attention(q, k, v):
    """Let each position gather from itself and those before it.

    Args:
        q: Queries, (B, H, T, D).
        k: Keys, (B, H, T, D).
        v: Values, (B, H, T, D).
    """
    mask = l1_ref.causal_mask(q.shape[-2], k.shape[-2])
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    weights = l1_ref.softmax(scores.masked_fill(~mask, -math.inf), dim=-1)
    return weights @ v


# %% tags=["check"]
checks.causal_attention(causal_attention)

# %% tags=["nbval-ignore-output"]
alt = "Heat map of the mended function: every entry above the diagonal is 0."
plots.show(
    plots.heat_maps({"mended: what moves": influence(causal_attention)}, places, places, "output at", "changed token"),
    alt=alt,
)

# %% [markdown]
# ## Several heads
#
# One set of weights is one way of looking: what one key gets, the others lose. But "whispered" may want to know who is
# there, *and* whether it is a girl. So the width C is cut into H *heads* of width D = C / H. Each head has its own
# queries, keys and values, and looks where it likes (section 3.2.2). The results are laid side by side again. The
# scores of all heads take as many multiplications as those of one head of width C.
#
# Cutting takes two steps. Below, each entry tells where it came from.

# %% tags=["nbval-ignore-output"]
x = (10 * torch.arange(4).unsqueeze(1) + torch.arange(6)).unsqueeze(0)  # (1, 4, 6)
alt = (
    "Diagram: (1, 4, 6) is viewed as (1, 4, 3, 2), then transposed to (1, 3, 4, 2): head 0 holds columns 0 and 1 of "
    "all four positions. A single view to (1, 3, 4, 2) puts 00 01, 02 03, 04 05 and 10 11 into head 0."
)
plots.show(plots.heads_diagram(x, n_heads=3), alt=alt)

# %% [markdown]
# `view` never moves an entry. It reads the same numbers in the same order, in rows of another length. So
# `x.view(B, H, T, D)`, on the right, gives the right *shape*, but head 0 got all of token 0 and a piece of token 1, as
# if they were four positions. No error tells you. `transpose` is what swaps axes.
#
# ## Exercise: `split_heads`
#
# Turn `(B, T, C)` into `(B, H, T, D)`. Head 0 gets the first D columns of every position, head 1 the next D, and so on;
# H divides C. Any dtype; values and gradients pass unchanged.


# %% tags=["exercise"] name="split_heads" points=1 difficulty="easy" minutes=5
def split_heads(x, n_heads):
    """Cut the width into heads, and let each head see the whole sequence.

    Args:
        x: Hidden states, (B, T, C).
        n_heads: Number of heads H; divides C.
    """
    B, T, C = x.shape
    return x.view(B, T, n_heads, C // n_heads).transpose(1, 2)  # (B, H, T, D)


# %% tags=["check"]
checks.split_heads(split_heads)

# %% [markdown]
# ## Exercise: `merge_heads`
#
# The way back: `(B, H, T, D)` to `(B, T, C)`, with C = H · D, such that merging what was split gives x again. After
# a transpose the entries no longer lie in memory in the order of their axes, and `view` refuses such a tensor.
# `reshape` and `flatten` copy where they must.


# %% tags=["exercise"] name="merge_heads" points=1 difficulty="easy" minutes=5
def merge_heads(x):
    """Lay the heads side by side again: the inverse of `split_heads`.

    Args:
        x: One sequence of D-wide vectors for each head, (B, H, T, D).
    """
    B, H, T, D = x.shape
    return x.transpose(1, 2).reshape(B, T, H * D)  # (B, T, C)


# %% tags=["check"]
checks.merge_heads(merge_heads)

# %% [markdown]
# ## Where queries, keys and values come from
#
# From the position's own vector: three learnt matrices, the *projections*, turn it into its query, its key and its
# value. GPT-2's code (Radford et al. 2019) does the three in one product, the linear layer `qkv`. A last linear layer,
# `proj`, mixes what the heads found (the paper's $W^O$).
#
# ## Exercise: `MultiHeadAttention`
#
# An `nn.Module`. Its `config` has `n_embd` (C), `n_heads` (H) and `dropout`. The layers, both with bias:
#
# - `self.qkv`: `nn.Linear` from C to 3C, whose output holds q, then k, then v, each with its heads in order;
# - `self.proj`: `nn.Linear` from C to C.
#
# `forward(x)` takes `(B, T, C)` and returns `(B, T, C)`: project, split, attend with the causal mask, merge, project.
# In training (`self.training`) dropout of probability `config.dropout` falls on the attention weights, and again on
# what comes out of `proj`. In eval mode there is none. Take the parts from `l1_ref`, or yours.


# %% tags=["exercise"] name="MultiHeadAttention" points=3 difficulty="hard" minutes=20
class MultiHeadAttention(nn.Module):
    """Let every position gather from itself and those before it, in several ways at once.

    Args:
        config: Gives `n_embd`, `n_heads` and `dropout`.
    """

    def __init__(self, config):
        super().__init__()
        self.n_heads, self.dropout = config.n_heads, config.dropout
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x):
        q, k, v = (l1_ref.split_heads(part, self.n_heads) for part in self.qkv(x).chunk(3, dim=-1))
        mask, p = l1_ref.causal_mask(x.shape[1], x.shape[1]), self.dropout if self.training else 0.0
        y = l1_ref.scaled_dot_product_attention(q, k, v, mask, p)  # (B, H, T, D)
        return F.dropout(self.proj(l1_ref.merge_heads(y)), p)


# %% tags=["check"]
checks.MultiHeadAttention(MultiHeadAttention)

# %% [markdown]
# Now your layer takes the weights of the trained model's first attention layer, and gives them back. Loading is strict:
# every name and every shape must fit.

# %%
trained = model.blocks[0].attention
mine = MultiHeadAttention(model.config).eval()
print(mine.load_state_dict(trained.state_dict()))
print(trained.load_state_dict(mine.state_dict()))
# What this layer meets in the model. norm_1 is a normalisation: notebook 04.
x = model.blocks[0].norm_1(model.embedding(torch.tensor([as_ids(tale)])))
print("same output:", torch.allclose(mine(x), trained(x), atol=1e-5))

# %% [markdown]
# ## What trained heads look at
#
# The trained model has two attention layers, 0 and 1, with four heads each. Layer 1 reads vectors into which layer 0
# has already written what it found. So a name can travel in two hops.
#
# Back to "whispered". Which of the heads looks at the name? In a second copy of the model we replace the function that
# attends by one that takes notes, and lets us choose the mask. From here on there is no need to follow the code; look
# at the pictures.

# %%
watched = l1_ref.load_run(l1_ref.DATA_DIR / "tiny").model


def watch(ids, mask):
    """Return the probabilities of each next token, and the weights of all heads: (n_layers, H, T, S)."""
    seen = []

    def attend(q, k, v, dropout_p):
        seen.append(l1_ref.attention_weights(q, k, mask))
        return seen[-1] @ v

    for block in watched.blocks:
        block.attention.attend = attend
    with torch.no_grad():
        logits = watched(torch.tensor([ids]))
    return l1_ref.softmax(logits[0], dim=-1), torch.cat(seen)


# %% tags=["nbval-ignore-output"]
ids = as_ids(tale)
name_at, back_at = (t for t, i in enumerate(ids) if i in name_ids)
at = back_at - 1  # "whispered", where the name is to be predicted
_, tale_weights = watch(ids, l1_ref.causal_mask(len(ids), len(ids)))
tokens = ["<end>", *(tokenizer.decode([i]) for i in ids[1:])]
best = divmod(tale_weights[:, :, at, name_at].flatten().argmax().item(), model.config.n_heads)
alt = (
    f"Heat map, a row a head, a column a token: from '{tokens[at]}', layer {best[0]}, head {best[1]} puts "
    f"{tale_weights[*best, at, name_at]:.2f} on '{tokens[name_at]}', more than any other head."
)
plots.show(plots.heads_over_text(tokens[: at + 1], tale_weights[:, :, at, : at + 1], name_at), alt=alt)

# %% [markdown]
# Head 1 of layer 0 looks at the name, almost sixty tokens back. So does head 0 of layer 1, with less weight. Another
# head finds "girl". In the next figure choose place, layer and head. (`<end>` is the mark in front of a tale; what is
# grey lies in the future.)


# %% tags=["nbval-ignore-output"]
def looks(place, layer, head):
    """Shade the tale by the weights of one head from one place."""
    row = tale_weights[layer, head, place]
    alt = f"Text: from '{tokens[place]}', layer {layer}, head {head} looks most at '{tokens[row.argmax()]}'."
    title = f"layer {layer}, head {head}, from {plots.visible(tokens[place])}"
    return plots.weights_over_text(tokens, row, place, title), alt


choices = [at, *(t for t in range(1, len(ids)) if t != at)]
plots.explore(looks, place=choices, layer=[0, 1], head=[1, 0, 2, 3])

# %% [markdown]
# One tale proves little. So we measure, on all 250 validation tales, the mean weight on the name's first place, from
# three kinds of later places: the name comes next after a word of speaking such as "whispered"; it comes next after
# another word; it does not come next.


# %%
speaking = {tokenizer.encode(" " + verb)[0] for verb in "said shouted whispered sang sighed yawned".split()}


def sorted_places(ids):
    """Return where the name first stands, and the places after it, by kind."""
    at = [t for t, i in enumerate(ids) if i in name_ids]
    kinds = {"after a word of speaking": [], "after another word": [], "name not next": []}
    for t in range(at[0] + 1, len(ids) - 1):
        spoken = "after a word of speaking" if ids[t] in speaking else "after another word"
        kinds[spoken if t + 1 in at else "name not next"].append(t)
    return at[0], kinds


# %% tags=["nbval-ignore-output"]
found, after_others = {}, []
for each_ids in (as_ids(each)[:128] for each in tales):
    chances, weights = watch(each_ids, l1_ref.causal_mask(len(each_ids), len(each_ids)))
    start, kinds = sorted_places(each_ids)
    for kind, spots in kinds.items():
        found.setdefault(kind, []).append(weights[:, :, spots, start])  # (n_layers, H, places)
    after_others += chances[kinds["after another word"], each_ids[start]].tolist()
means = {kind: torch.cat(each, dim=-1).mean(-1) for kind, each in found.items()}
heads = [f"head {h}" for h in range(model.config.n_heads)]
speak, other, rest = (each[0, 1].item() for each in means.values())
alt = (
    f"Three heat maps, layers by heads. Layer 0, head 1 puts {speak:.2f} on the name after a word of speaking, "
    f"{other:.2f} after another word, and {rest:.2f} where no name comes next."
)
plots.show(plots.heat_maps(means, ["layer 0", "layer 1"], heads), alt=alt)
sure = sum(after_others) / len(after_others)
print(f"after another word, {len(after_others)} places: the right name has probability {sure:.3f}")

# %% [markdown]
# So there is a head with a trade: after a word of speaking, it looks for who speaks. At most other places where the
# name comes next, such as sentence starts, it looks elsewhere. Yet the right name has a mean probability of 0.998
# there: the model finds it in another way.
#
# ## Looking and using
#
# Does the model use what its heads look at? The mask can tell. Forbid the key of the name, and see what is predicted.
# We take the tales in which the name first comes back after a word of speaking.


# %%
def hiding(n, start):
    """Return three masks for n tokens: one causal, and two that also hide the token at `start` from later ones."""
    here, ever = l1_ref.causal_mask(n, n), l1_ref.causal_mask(n, n)
    here[-1, start] = False
    ever[start + 1 :, start] = False
    return {"nowhere": l1_ref.causal_mask(n, n), "from the last place": here, "from all later places": ever}


# %% tags=["nbval-ignore-output"]
found = {}
for each_ids in (as_ids(each) for each in tales):
    start, back = [t for t, i in enumerate(each_ids) if i in name_ids][:2]
    if each_ids[back - 1] in speaking:
        for what, hidden in hiding(back, start).items():
            p = watch(each_ids[:back], hidden)[0][-1]
            found.setdefault(what, []).append([p[each_ids[start]].item(), p[name_ids].sum().item()])
right, some = torch.tensor(list(found.values())).mean(1).T
print(f"{len(found['nowhere'])} tales")
alt = (
    f"Bars: the right name has probability {right[0]:.2f} with nothing hidden, {right[1]:.2f} where it is hidden from "
    f"the last place, {right[2]:.2f} where from all later ones; some name has {some.min():.2f} or more throughout."
)
panels = {"the right name": right, "some name": some}
plots.show(plots.probabilities(list(found), panels, "where the name is hidden"), alt=alt)

# %% [markdown]
# Hidden from the last place alone, the right name keeps about half of the probability: places in between had looked at
# it already, and passed it on. Hidden from all of them, it keeps about a tenth: no better than guessing among the eight
# names for girls (the first picture shows five) or the eight for boys. That *some* name comes next, and whether a
# girl's or a boy's, the model knows all along; which one, it has from looking back.
#
# ## What you have now
#
# | idea | in the reference |
# |---|---|
# | who may look at whom | `l1_ref.causal_mask`, in `l1_ref/attention.py` |
# | how much each query takes from each key | `l1_ref.attention_weights`, in `l1_ref/attention.py` |
# | equation 1 | `l1_ref.scaled_dot_product_attention`, in `l1_ref/attention.py` |
# | the width cut into heads, and back | `l1_ref.split_heads` and `l1_ref.merge_heads`, in `l1_ref/attention.py` |
# | all of it as a layer | `l1_ref.MultiHeadAttention`, in `l1_ref/attention.py` |
#
# - Attention is a weighted mean of values. Softmax of query times key, divided by $\sqrt{D}$, gives the weights.
# - The mask acts before softmax. After it, the future has already leaked in.
# - Heads look at several things at once. `view` cuts, `transpose` swaps.
#
# The reference's layer usually calls torch's own fused version, which gives the same numbers faster.
#
# Next is 04, blocks: attention gathers, a feed-forward layer digests, and a path around both keeps deep models
# trainable.

# %%
checks.progress()
