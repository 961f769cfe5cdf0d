# %% [markdown]
# # Embeddings
#
# Notebook 01 ended with numbers: a text is now a row of ids. But an id is only a label, and a model calculates. This
# notebook turns each id into a vector that a model can work with, and tells it where in the text the id stands.
#
# **Goals.** Write the table that holds a vector for each token. See what training wrote into one. See what a model
# cannot know without positions. Give it positions, in two ways: by waves and by learning.
#
# **Time.** About 70 minutes.
#
# **Difficulty.** Medium.
#
# **You need.** Notebooks 00 and 01. What a matrix product is. Sine and cosine.
#
# Words and letters: [glossary](glossary.md).

# %%
import torch
import torch.nn.functional as F
from torch import nn

import l1_ref
from l1_ref import checks, plots
from l1_ref.embeddings import SinusoidalEmbedding

run = l1_ref.load_run(l1_ref.DATA_DIR / "tiny")
model, tokenizer = run.model.eval(), run.tokenizer
trained = model.embedding.token.weight.detach()  # (V, C)
print("the trained model's table (V, C):", tuple(trained.shape))

# %% [markdown]
# ## An id says nothing
#
# Here are three tokens and their ids. Does the difference between two ids mean anything?


# %%
def id_of(word):
    """Return the id of a text that is a single token."""
    (i,) = tokenizer.encode(word)
    return i


for word in (" fox", " dog", " Monday"):
    i = id_of(word)
    print(f"{i:4d} {word!r:12} one further: {i + 1:4d} {tokenizer.decode([i + 1])!r}")

# %% [markdown]
# It does not. " fox" and " dog" are six apart, but " late" and "dd" stand right behind them. An id tells when the
# tokenizer made the token, and nothing of what it means. So give each token a vector of C numbers, C being the *width*,
# and let training choose them. The vectors stand in a table, one row for each of the V tokens. Such a vector is called
# an *embedding*. (Bengio, Ducharme, Vincent and Jauvin 2003, section 2.)
#
# Papers often write the look-up as a product. A *one-hot* vector has a 1 at the place of the id, and zeros elsewhere.
# Times the table, it picks one row. Move the slider: the first id of three changes.


# %% tags=["nbval-ignore-output"]
def draw_look_up(first_id):
    table = torch.tensor([[0.4, -1.2, 0.9], [1.5, 0.3, -0.7], [-0.2, 2.0, 0.1], [-1.1, -0.5, 1.3], [0.8, 1.0, -1.8]])
    ids = torch.tensor([first_id, 0, 3])
    one_hot = F.one_hot(ids, num_classes=5).float()  # (T, V)
    figure = plots.look_up(one_hot, table, one_hot @ table)
    alt = f"Three one-hot rows times a table of five rows: the result holds its rows {first_id}, 0 and 3."
    return figure, alt


plots.explore(draw_look_up, first_id=[3, 0, 1, 2, 4])

# %% [markdown]
# Nobody computes it so: all products but one are with zero. Indexing fetches the row at once. And training? The
# *gradient* says how the loss changes with each number of the table, and training moves them by it (notebook 06).
# `backward()` computes it and leaves it in `table.grad`. Here id 2 occurs twice, and the "loss" is the sum of all that
# comes out.

# %%
table = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
ids = torch.tensor([2, 0, 2])
print("same as the product:", torch.equal(table[ids], F.one_hot(ids, 4).float() @ table))
table[ids].sum().backward()
print(table.grad)

# %% [markdown]
# Row 2 stands at two places and gets the gradients of both, added up. Rows 1 and 3 get zeros: a token that never
# occurs at the input learns nothing there.
#
# ## Your first module
#
# In PyTorch a piece of a model is a class, an `nn.Module`. It keeps what training may change in an `nn.Parameter`, and
# `forward` does the work. Calling the object runs `forward`. `super().__init__()` comes first.


# %%
class Shift(nn.Module):
    """Add a learned number to each column."""

    def __init__(self, n_embd):
        super().__init__()
        self.amount = nn.Parameter(torch.zeros(n_embd))

    def forward(self, x):
        return x + self.amount


shift = Shift(3)
print([(name, tuple(parameter.shape)) for name, parameter in shift.named_parameters()])
print(shift(torch.ones(2, 3)).tolist())

# %% [markdown]
# The parameter got its name from `self.amount`. Names matter: a saved model is a dictionary from names to numbers.
#
# ## Exercise: `TokenEmbedding`
#
# Write the table as a module. Its only parameter is called `weight`, with V rows and C columns. Fill it with whatever
# random numbers you like; GPT-2 takes small ones, normal with standard deviation 0.02. `forward(ids)` takes integers
# (int64) of shape (B, T) and returns the row of each: (B, T, C). Gradients must reach the table. Every id is an
# ordinary token, id 0 too. Rows come out as they are, not scaled.


# %% tags=["exercise"] name="TokenEmbedding" points=1 difficulty="easy" minutes=8
class TokenEmbedding(nn.Module):
    """Look up one learned vector for each token id.

    Args:
        vocab_size: Number of ids V.
        n_embd: Width C of a vector.
    """

    def __init__(self, vocab_size, n_embd):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(vocab_size, n_embd) * 0.02)

    def forward(self, ids):
        """Return the row of each id."""
        return self.weight[ids]


# %% tags=["check"]
checks.TokenEmbedding(TokenEmbedding)

# %% [markdown]
# Your module takes the trained table: its name and shape fit. `load_state_dict` copies saved numbers in, by name.

# %%
mine = TokenEmbedding(*trained.shape)
mine.load_state_dict({"weight": trained})
ids = torch.tensor([tokenizer.encode("Everyone near the old mill knew a shy girl called Nell.")])
print("ids (B, T):", tuple(ids.shape), "  vectors (B, T, C):", tuple(mine(ids).shape))
print("as the trained model's:", torch.equal(mine(ids), model.embedding.token(ids)))

# %% [markdown]
# ## What training wrote into the table
#
# At the start the rows were random. Which rows are similar now? A common measure is the *cosine* of the angle between
# two vectors: the sum of their products, column by column (the *dot product*), divided by both their lengths. It is 1
# where they point the same way, 0 at a right angle, -1 in opposite directions.
#
# $$\cos(a, b) = \frac{a \cdot b}{|a| \, |b|}$$

# %% tags=["nbval-ignore-output"]
for word in (" Nell", " fox", " red", " Monday", " sadly", " bridge", " she"):
    cosines = F.cosine_similarity(trained, trained[id_of(word)], dim=-1)
    best = cosines.topk(6)
    pairs = zip(best.indices.tolist()[1:], best.values.tolist()[1:], strict=True)
    print(f"{word:8}", "  ".join(f"{tokenizer.decode([i])} {value:.2f}" for i, value in pairs))

# %% [markdown]
# Names stand near names, animals near animals, colours near colours. Two girls' names have a mean cosine of 0.47, a
# girl's and a boy's 0.20. Nobody told the model what a colour is. It had to guess the next token. Where one colour
# fits, so do the others, and after "girl called" only girls' names fit: similar rows make similar guesses. Bengio and
# his colleagues hoped for that: what is learned from one sentence carries over to others like it.
#
# A table with 128 columns has no picture, but two directions can be drawn. *Principal components* are the directions in
# which the rows differ most. Here are the first two, for words of seven kinds.


# %%
KINDS = {
    "girls and boys": "Ada Nell Rosa Tess Ivy Mina Dora Lulu Tom Otto Finn Milo Hugo Jack Ned Sam",
    "places": "bridge mill barn orchard tower market forest church canal station school well",
    "colours": "red blue green yellow white black pink orange spotted striped silver",
    "animals": "mouse frog mole fox dog owl goose crow goat pig",
    "numbers": "two three four five six seven eight nine ten eleven twelve",
    "days": "Monday Tuesday Thursday Friday Saturday Sunday",
    "manner": "sadly kindly slowly crossly proudly politely gladly wisely",
}


def principal_components(rows):
    """Return each row's place along the two directions in which the rows differ most."""
    centred = rows - rows.mean(0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:2]  # (2, C)
    return centred @ directions.T


# %% tags=["nbval-ignore-output"]
words = [word for text in KINDS.values() for word in text.split()]
places = principal_components(trained[[id_of(f" {word}") for word in words]])
place_of = dict(zip(words, places.tolist(), strict=True))
groups = {kind: {word: place_of[word] for word in text.split()} for kind, text in KINDS.items()}
alt = f"{len(words)} words as points, coloured by kind: words of one kind lie together, apart from the other kinds."
plots.show(plots.token_map(groups, "Two directions of the trained table"), alt=alt)

# %% [markdown]
# Two directions hide much: "bridge" lies beside "Tuesday", but their cosine is 0.02. With "mill" it is 0.46.
#
# ## What is lost
#
# Each token now has its vector, wherever it stands. And there lies a problem.
#
# ### Predict before you run
#
# "the dog followed Nell and" and "Nell followed the dog and" hold the same tokens, and both end in "and".
#
# 1. Add up the five vectors of each. Are the two sums equal?
# 2. *Attention*, the subject of the next notebook, makes a new vector for each token: a weighted sum over this token
#    and all before it, with weights that depend on the vectors alone. Is the last token's new vector the same for both?

# %%
orders = (" the dog followed Nell and", " Nell followed the dog and")
first, second = (trained[torch.tensor(tokenizer.encode(text))] for text in orders)  # (T, C) each


def attend(x):
    """Return what the trained model's first attention layer makes of the last token (norm_1: notebook 04)."""
    block = model.blocks[0]
    return block.attention(block.norm_1(x[None]))[0, -1].detach()


print("1. equal sums:", torch.allclose(first.sum(0), second.sum(0), atol=1e-5))
print("2. equal after attention:", torch.allclose(attend(first), attend(second), atol=1e-5))

# %% [markdown]
# <details><summary>Why?</summary>
#
# A sum does not know the order of its terms. A weighted sum does not either, if each weight belongs to a vector and not
# to a place. Who followed whom is lost: to this layer the text is a bag of words.
#
# </details>
#
# Now add to each vector the trained model's vector for its *place*, and let attention work again. Each point is one of
# the 128 numbers of its result: across in the first order, upwards in the second. On the dotted line they are equal.

# %% tags=["nbval-ignore-output"]
learned = model.embedding.position.weight.detach()  # (max_seq_length, C)
placed = [x + learned[: len(x)] for x in (first, second)]
pairs = {"without positions": (attend(first), attend(second)), "with positions": (attend(placed[0]), attend(placed[1]))}
alt = "Two scatter plots: without positions all points lie on the diagonal, with positions many lie beside it."
plots.show(plots.order_effect(pairs, (orders[0].strip(" "), orders[1].strip(" "))), alt=alt)

# %% [markdown]
# How much does the trained model need its positions? Take them away, and measure the loss on forty tales that it was
# not trained on. Knowing nothing costs 6.91 nats. (A stack of layers can still learn something of the order, since each
# token sees only those before it. This model never had to.)


# %% tags=["nbval-ignore-output"]
def mean_loss(model, tales):
    """Return a model's loss on some tales, in nats per token."""
    total, n_tokens = 0.0, 0
    for tale in tales:
        ids = torch.tensor([[tokenizer.end_of_text, *tokenizer.encode(tale)]])[:, :128]  # there are 128 places
        with torch.no_grad():
            total += F.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:], reduction="sum").item()
        n_tokens += ids.shape[1] - 1
    return total / n_tokens


tales = l1_ref.load_tales("validation")[:40]
unplaced = l1_ref.load_run(l1_ref.DATA_DIR / "tiny").model.eval()
unplaced.embedding.position.weight.data.zero_()
print(f"with positions {mean_loss(model, tales):.2f}, without {mean_loss(unplaced, tales):.2f} nats per token")

# %% [markdown]
# ## Positions as waves
#
# So each place needs a vector too. The plain number 0, 1, 2 … would grow beyond the other numbers in a long text.
# Vaswani et al. (2017, section 3.5) use waves instead. Think of the hands of a clock: one turns fast, one slowly,
# together they tell the time. Here each pair of columns is a hand, with two coordinates, a sine and a cosine. At
# position t the columns 2i and 2i + 1 of pair i (i = 0, 1, 2 …) hold
#
# $$\sin\left(\frac{t}{10000^{2i/C}}\right) \qquad\text{and}\qquad \cos\left(\frac{t}{10000^{2i/C}}\right)$$
#
# The first pair turns by one radian a step, a full turn in about six. Each later pair turns more slowly, down towards a
# ten-thousandth of that. In the table on the left, the last hands hardly move: sine near 0, cosine near 1. On the right
# is the dot product of one row with all rows. (Attention will compare vectors so.) Move the slider to another row.


# %% tags=["nbval-ignore-output"]
def draw_waves(position):
    table = l1_ref.sinusoidal_positions(64, 32)
    alt = (
        "Left, the table of waves as a picture: the first columns change fast from row to row, the last hardly. "
        f"Right, the dot products of row {position} with all rows: {(table[position] @ table[position]).item():.0f} "
        "with itself, less with every other row, and most of those with its neighbours."
    )
    return plots.waves(table, position), alt


plots.explore(draw_waves, position=[24, 0, 8, 16, 32, 40, 48, 56, 63])

# %% [markdown]
# The curve moves along and keeps its shape. The dot product depends only on how far two places are apart. Vaswani et
# al. chose waves because the row a fixed number of steps ahead is a linear function of the row here. Each hand just
# turns by a fixed angle.
#
# ## Exercise: `sinusoidal_positions`
#
# Return the whole table, one row for each of the positions 0 … T - 1, T being `max_seq_length`: shape (T, C), float32.
# Sines stand on the even columns 0, 2, 4 …, cosines on the odd ones, taking turns. C is even. Nothing here is learned:
# the table must not require a gradient.


# %% tags=["exercise"] name="sinusoidal_positions" points=1 difficulty="medium" minutes=15
def sinusoidal_positions(max_seq_length, n_embd):
    """Return the fixed wave pattern that marks each position.

    Args:
        max_seq_length: Number of positions T, at least 1.
        n_embd: Width C, an even number.
    """
    t = torch.arange(max_seq_length).unsqueeze(1)  # (T, 1)
    even = torch.arange(0, n_embd, 2)  # 2i, for each pair i
    angle = t / 10000 ** (even / n_embd)  # (T, C / 2)
    table = torch.zeros(max_seq_length, n_embd)
    table[:, 0::2] = torch.sin(angle)
    table[:, 1::2] = torch.cos(angle)
    return table


# %% tags=["check"]
checks.sinusoidal_positions(sinusoidal_positions)

# %% [markdown]
# The same with your table, in numbers:

# %%
table = sinusoidal_positions(64, 32)
for distance in (0, 1, 2, 8):
    dots = (table[: 64 - distance] * table[distance:]).sum(-1)  # of all pairs of rows so far apart
    print(f"distance {distance}: dot products from {dots.min():.2f} to {dots.max():.2f}")

# %% [markdown]
# ## Positions that are learned
#
# GPT (Radford et al. 2018, equation 2) makes it simpler: a second table, with one row for each place, filled by
# training. It knows no place beyond its last row; waves can be computed for any. Vaswani et al. tried both and found
# nearly the same results.
#
# ## Exercise: `PositionalEmbedding`
#
# The parameter is called `weight` again, of shape (`max_seq_length`, C). `forward(T, offset=0)` returns the rows of the
# T positions offset, offset + 1 and so on: shape (T, C), as they stand in the table, and gradients must reach it. You
# may assume that all these positions exist.
#
# What is the offset for? A model that writes a text will keep what it computed for the earlier tokens (notebook 08).
# Then only one new token comes in, T = 1, and `offset` says how many have gone before.


# %% tags=["exercise"] name="PositionalEmbedding" points=1 difficulty="easy" minutes=6
class PositionalEmbedding(nn.Module):
    """Look up one learned vector for each position.

    Args:
        max_seq_length: Number of positions in the table.
        n_embd: Width C of a vector.
    """

    def __init__(self, max_seq_length, n_embd):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(max_seq_length, n_embd) * 0.02)

    def forward(self, T, offset=0):
        """Return the vectors of positions offset … offset + T - 1."""
        return self.weight[offset : offset + T]


# %% tags=["check"]
checks.PositionalEmbedding(PositionalEmbedding)

# %% [markdown]
# What did the trained model make of its places? Its table stands on the left, waves in the same shape on the right.
# Below each, how similar its rows are.


# %% tags=["nbval-ignore-output"]
def cosines_of(table):
    """Return the cosine of each row with each, (T, T)."""
    directions = F.normalize(table, dim=-1)
    return directions @ directions.T


tables = {"learned": learned, "waves": l1_ref.sinusoidal_positions(*learned.shape)}
similarities = {title: cosines_of(table) for title, table in tables.items()}
near, far = (similarities["learned"].diagonal(d).mean().item() for d in (1, 32))
alt = (
    "Two tables of positions above the cosines of their rows. Both are highest along the diagonal. In the learned "
    f"one, neighbours have a mean cosine of {near:.2f}, places 32 apart one of {far:.2f}."
)
plots.show(plots.tables_compared(tables, similarities), alt=alt)

# %% [markdown]
# Far into a text, neighbours became similar, although nobody told the model that 65 comes after 64. From there on,
# their mean cosine is 0.80; for the first eight pairs it is 0.23. Place 0 always holds the end-of-text mark, and near
# the beginning each place has tokens of its own. Later, neighbours hold much the same ones.
#
# ## Adding both
#
# The input of the model is the sum of both vectors, token and place. Why a sum, when it mixes the two? In 128 columns
# there is room for both, and the layers that follow can learn to look in the right directions. Laying them side by side
# would need wider vectors.
#
# In training, *dropout* follows (Srivastava et al. 2014): each number is set to zero with probability p, and what is
# left is divided by 1 - p, so that the mean stays the same. The model cannot rely on any single number, and learns less
# by heart. (Ours had p = 0.) In use, in *eval mode*, dropout does nothing; `.eval()` switches to it.

# %%
dropout, ones = nn.Dropout(0.25), torch.ones(100_000)
torch.manual_seed(0)
print(f"training: {(dropout(ones) == 0).float().mean():.2f} are zero, the mean is {dropout(ones).mean():.2f}")
print("eval mode: nothing changes:", torch.equal(dropout.eval()(ones), ones))

# %% [markdown]
# ## Exercise: `InputEmbedding`
#
# Put the parts together. The settings come in one record, an `L1Config`. Use the reference's parts, so that you can
# write this whatever became of the exercises above:
#
# - `self.token`: `l1_ref.TokenEmbedding(config.vocab_size, config.n_embd)`
# - `self.position`: `l1_ref.PositionalEmbedding(config.max_seq_length, config.n_embd)` where `config.position_encoding`
#   is `"learned"`, and `SinusoidalEmbedding(…)` of the same size where it is `"sinusoidal"`. That one, imported above,
#   is called in the same way and returns rows of waves. It has no parameter.
# - `self.dropout`: `nn.Dropout(config.dropout)`. It falls once, on the sum.
#
# `forward(ids, offset=0)` takes ids (B, T) and returns (B, T, C). All sequences of the batch begin at position offset.


# %% tags=["exercise"] name="InputEmbedding" points=1 difficulty="medium" minutes=12
class InputEmbedding(nn.Module):
    """Add token and position vectors, then apply dropout.

    Args:
        config: Gives `vocab_size`, `max_seq_length`, `n_embd`, `dropout` and `position_encoding`.
    """

    def __init__(self, config):
        super().__init__()
        learned = config.position_encoding == "learned"
        positions = l1_ref.PositionalEmbedding if learned else SinusoidalEmbedding
        self.token = l1_ref.TokenEmbedding(config.vocab_size, config.n_embd)
        self.position = positions(config.max_seq_length, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids, offset=0):
        """Return the input of the model's first layer."""
        T = ids.shape[1]
        x = self.token(ids) + self.position(T, offset)  # (B, T, C) + (T, C)
        return self.dropout(x)


# %% tags=["check"]
checks.InputEmbedding(InputEmbedding)

# %% [markdown]
# Your piece goes into the trained model, in place of its own.

# %%
mine = InputEmbedding(model.config).eval()
mine.load_state_dict(model.embedding.state_dict())
whole = l1_ref.load_run(l1_ref.DATA_DIR / "tiny").model.eval()
ids = torch.tensor([[tokenizer.end_of_text, *tokenizer.encode("Near the old mill lived a shy girl called")]])
before = whole(ids)
whole.embedding = mine
print("the same scores as before:", torch.equal(whole(ids), before))
likeliest = tokenizer.decode([whole(ids)[0, -1].argmax().item()])
print("likeliest next token is a name:", likeliest.strip() in KINDS["girls and boys"])

# %% [markdown]
# ## Bug hunt: strange neighbours
#
# `broken` is to list the k tokens most similar to token i by the cosine, best first, and without i itself. For " Nell"
# it finds names. For "M" its answers are strange. The number behind each token is the length of its vector.


# %% tags=["nbval-ignore-output"]
def broken(weight, i, k):
    """Return the ids of the k tokens most similar to token i."""
    similarity = weight @ weight[i]
    similarity[i] = -torch.inf
    return similarity.topk(k).indices


def show_neighbours(function, words=(" Nell", "M")):
    for word in words:
        i = id_of(word)
        found = [(tokenizer.decode([j]), trained[j].norm()) for j in function(trained, i, 5).tolist()]
        print(f"{word!r} ({trained[i].norm():.1f}):", "  ".join(f"{token!r} ({norm:.1f})" for token, norm in found))


show_neighbours(broken)

# %% [markdown]
# Find the line, say in one sentence what it does wrong, and write the mended version. It must return a 1-D int64 tensor
# of k ids, best first, without i, and leave `weight` as it was. No row is all zeros, and k is at most V - 1.


# %% tags=["exercise"] name="nearest_tokens" points=1 difficulty="easy" minutes=8
def nearest_tokens(weight, i, k):
    """Return the ids of the k tokens most similar to token i by the cosine, best first; i itself is left out.

    Args:
        weight: A table of vectors, (V, C).
        i: The id of the token.
        k: How many others to return.
    """
    directions = F.normalize(weight, dim=-1)
    similarity = directions @ directions[i]
    similarity[i] = -torch.inf
    return similarity.topk(k).indices


# %% tags=["check"]
checks.nearest_tokens(nearest_tokens)

# %% tags=["nbval-ignore-output"]
show_neighbours(nearest_tokens)

# %% [markdown]
# In the tales "M" only begins the word "My", where somebody begins to speak. Its neighbours now begin a speech too.
#
# And the strange ones? They are pieces that occur in no tale; the tokenizer only passed through them on its way to
# longer tokens. They learn nothing at the input. But here the same table also gives the scores at the output (notebook
# 05), and there training pushed them away from all that does occur, in one direction, and far.

# %% tags=["nbval-ignore-output"]
seen = {i for tale in l1_ref.load_tales("train") for i in tokenizer.encode(tale)}
unseen = sorted(set(range(len(trained))) - seen)
lengths = trained.norm(dim=-1)
print(f"{len(unseen)} of {len(trained)} tokens occur in no tale")
print(f"median length: {lengths[unseen].median():.1f}, of the others {lengths[sorted(seen)].median():.1f}")

# %% [markdown]
# ## What you have now
#
# | idea | in the reference |
# |---|---|
# | a vector for each token | `l1_ref.TokenEmbedding`, in `l1_ref/embeddings.py` |
# | positions as waves | `l1_ref.sinusoidal_positions`, in `l1_ref/embeddings.py` |
# | a vector for each position | `l1_ref.PositionalEmbedding`, in `l1_ref/embeddings.py` |
# | their sum, with dropout | `l1_ref.InputEmbedding`, in `l1_ref/embeddings.py` |
#
# - An embedding is a row of a table. Only rows that were picked learn at the input.
# - Training puts tokens that fit the same places near each other.
# - Attention alone sees a bag of tokens. Positions, waves or learned ones, are added to tell the order.
# - The cosine compares directions; a dot product also rewards length.
#
# Each token now knows what it is and where it stands, but nothing of the others. Next is 03, attention: each looks
# back at those before it.

# %%
checks.progress()
