# %% [markdown]
# # Start here
#
# In this course you build a GPT from an empty cell. This first notebook shows where that leads, how the notebooks work,
# and ends with your first piece: `softmax`.
#
# **Goals.** See a small trained model tell a tale. Read a loss curve. Write a blank, check it, and mend a broken piece.
#
# **Time.** About 40 minutes.
#
# **Difficulty.** Easy.
#
# **You need.** Python: functions and loops. A little PyTorch: what a tensor is, and that `x.sum(dim)` adds along one
# axis. No GPU, no network.
#
# Words and letters: [glossary](glossary.md).
#
# Run each cell with Shift+Enter, from top to bottom.

# %%
import itertools
import math
import time

import torch

import l1_ref
from l1_ref import checks, plots
from l1_ref.tokenizer import stream_text

# %% [markdown]
# ## What you will have built
#
# The folder `data/tiny` holds a model that this course's own code trained on short tales. You will write every part of
# it: the tokens, the attention, the training, the sampling. `load_run` reads it from disk.

# %%
run = l1_ref.load_run(l1_ref.DATA_DIR / "tiny")
model, tokenizer = run.model, run.tokenizer
print(f"{l1_ref.count_parameters(model.config):,} parameters")
print(f"{tokenizer.vocab_size:,} tokens in its vocabulary")

# %% [markdown]
# Give it a beginning, and it goes on. A model like this one writes a *token* at a time: a short piece of text, often a
# whole word. Each new token is appended to the text, and the model reads it all again.
#
# In training the tales stood in one long row, with an end-of-text mark between them. So each began right behind a
# mark, and `as_ids` puts that mark in front of our beginning too.


# %%
def as_ids(text):
    """Return the ids of a text, behind the mark that begins a tale, as a batch of one."""
    return torch.tensor([[tokenizer.end_of_text, *tokenizer.encode(text)]])


# %% [markdown]
# The next cell asks the model for one token after another, and prints each as it comes. There is no need to follow
# this code yet.

# %% tags=["nbval-ignore-output"]
beginning = "Behind the little bridge lived"
ids = as_ids(beginning)
chance = torch.Generator().manual_seed(7)
new_ids = (i.item() for i in l1_ref.stream(model, ids, max_new_tokens=200, temperature=0.8, generator=chance))
tale = itertools.takewhile(lambda i: i != tokenizer.end_of_text, new_ids)

for word in plots.wrapped(itertools.chain([beginning], stream_text(tokenizer, tale))):
    print(word, end="", flush=True)

# %% [markdown]
# Try another seed in `manual_seed`, or another beginning, and run the cell again. The model knows only the small world
# of its tales, its places and its words: take it elsewhere, and it talks nonsense.
#
# ## How it decides
#
# The model never picks a token. For each token of its vocabulary it gives a number, a *score* (a *logit*). The function
# `softmax` turns all scores into probabilities. Then a token is drawn by these chances.
#
# The next cell writes twelve tokens, and always takes the likeliest. Watch the bars, one picture a second: at some
# places many tokens fit, at others only one. (␣ is a space: a token that begins a word carries it in front.)


# %%
def next_tokens(text, n_shown=8):
    """Return the likeliest next tokens and their probabilities."""
    with torch.no_grad():
        logits = model(as_ids(text))[0, -1]  # scores of the next token, one per vocabulary entry
    top = l1_ref.softmax(logits, dim=-1).topk(n_shown)
    return [tokenizer.decode([i]) for i in top.indices.tolist()], top.values


# %% tags=["nbval-ignore-output"]
text, slot = beginning, plots.Slot()
for _ in range(12):
    tokens, chances = next_tokens(text)
    picture = plots.probabilities(tokens, chances, "… " + " ".join(text.split()[-6:]) + " …")
    alt = f"Bars: after '{text}', the likeliest next token is '{tokens[0]}' with probability {chances[0]:.2f}."
    plots.show(picture, alt=alt, slot=slot)
    time.sleep(0.6)
    text += tokens[0]
print(text)

# %% [markdown]
# (Each `alt` says in words what a picture shows, for readers who cannot see it.)
#
# Here is a single place, right after the word "a". Which words could come next in a tale?

# %% tags=["nbval-ignore-output"]
place = beginning + " a"
tokens, chances = next_tokens(place, n_shown=12)
alt = f"Bars: after '{place}', the twelve likeliest tokens share {chances.sum():.2f}; the first is '{tokens[0]}'."
plots.show(plots.probabilities(tokens, chances, f"{place} …"), alt=alt)

# %% [markdown]
# Ten adjectives share nearly all of the probability, and each has about as much as the next. That is how the tales
# were made: at this place one of ten words was drawn, all with equal chances. The model was never told.
#
# ## How it learned
#
# Training asks one question over and over: which probability did you give to the token that really came next? The
# *loss* is minus the logarithm of that probability, averaged. With the natural logarithm its unit is called a *nat*. A
# sure and right answer costs 0 nats. A model that knows nothing spreads its chances evenly over all V tokens, and pays
# the logarithm of V.

# %%
print(f"knowing nothing: {math.log(tokenizer.vocab_size):.2f} nats per token")

# %% [markdown]
# The curve below begins about there, before the first step of training.
#
# The *validation* loss is measured on tales that the model has not been trained on.
#
# These tales come from a small grammar that the course wrote, so the probability of each tale is known exactly. That
# gives a line that few people ever see in such a picture: the *entropy floor*, the loss of a reader who knows the
# grammar by heart. On average, no model can do better. What is left above the line is what the model has not learned.
#
# Elsewhere the training loss often lies below the validation loss. Here it lies above, for two reasons. A training
# point is the mean over all steps since the last point, when the model knew less. And a row of training text is filled
# up with the next tale: it holds more beginnings, where names and places are drawn, and these are hard to guess.

# %% tags=["nbval-ignore-output"]
floor, loss = run.metrics["floor"], run.metrics["validation_loss"]
alt = (
    f"Line charts: the validation loss falls to {loss:.2f} nats per token, the entropy floor lies at {floor:.2f}. From "
    "step 500 on both losses come down slowly towards the floor, the training loss a little above the other."
)
plots.show(plots.loss_curve(run.metrics["curve"], floor, "tiny L1, trained on the tales", late=500), alt=alt)
print(f"validation loss {loss:.3f}, floor {floor:.3f}: {100 * (loss - floor) / floor:.1f} % above it")

# %% [markdown]
# ## The road
#
# | notebook | you build |
# |---|---|
# | 00 start here | `softmax` |
# | 01 tokens | text becomes numbers, and numbers become training examples |
# | 02 embeddings | numbers become vectors that know their place |
# | 03 attention | each position looks back at the others |
# | 04 blocks | normalisation, the feed-forward layer, the residual stream |
# | 05 model | all of it together; it loads the trained weights and tells a tale |
# | 06 training | loss, AdamW, the learning rate, the training step |
# | 07 efficiency | more batch, less memory, 16-bit numbers |
# | 08 generation | temperature, top-k, top-p, and a cache that makes it fast |
#
# All of them are in your workspace. `l1 update` brings newer editions of the course, and what you wrote stays.
#
# One set of letters names all axes of all tensors:
#
# | letter | meaning | letter | meaning |
# |---|---|---|---|
# | B | batch: sequences side by side | H | attention heads |
# | T | new tokens of a sequence | D | width of one head |
# | S | all tokens seen so far | F | width inside the feed-forward layer |
# | C | width of a token's vector | V | size of the vocabulary |
#
# ## How a blank works
#
# An exercise is a cell with `raise NotImplementedError("not written yet")` in it. Write your code in place of that
# line. The cell below it is the check. It runs your code on many inputs and compares it with `l1_ref`, the course's
# own version. There is no need to write it as we did: every right answer passes.
#
# A wrong answer is not just refused. The check looks for the mistake that explains what your code does, and names it.
# Here somebody took `sigmoid`, which squeezes each score by itself to between 0 and 1. (`diagnose` gives the message
# alone; it does not count as a try.)


# %%
def guess(x, dim):
    """A wrong answer to the exercise below."""
    return torch.sigmoid(x)


print(checks.softmax.diagnose(guess).text)

# %% [markdown]
# Five lines that help. Write them into a cell of your own (the + above the notebook makes one):
#
# | line | what it does |
# |---|---|
# | `checks.softmax(softmax)` | checks your code |
# | `checks.hint("softmax")` | gives the next hint; there are three, from a nudge to a plan |
# | `checks.show("softmax")` | shows our version, with its source; it is the answer, so call it twice |
# | `softmax = checks.give("softmax")` | hands you our version, so that you can go on |
# | `checks.progress()` | shows what you have solved; in a terminal: `l1 progress` |
#
# You can stop anywhere. Your notebooks and your progress stay in your workspace. In a terminal, `l1 check` runs all
# that you have written once more, from the top.
#
# ## From scores to probabilities
#
# Scores $x_1 \dots x_V$ can be any numbers. Probabilities must be positive and sum to 1. So: make each score positive
# with the exponential function, then divide by the sum.
#
# $$\mathrm{softmax}(x)_i = \frac{e^{x_i}}{\sum_j e^{x_j}}$$
#
# (Bridle 1990, in a paper on networks whose outputs are probabilities.)

# %% tags=["nbval-ignore-output"]
scores = torch.tensor([2.0, 1.0, 0.0, -1.0])
panels = {"softmax(scores)": l1_ref.softmax(scores, 0), "softmax(2 · scores)": l1_ref.softmax(2 * scores, 0)}
alt = "Two bar charts for the scores 2, 1, 0, -1: softmax favours the highest score, and twice the scores do so more."
plots.show(plots.probabilities([f"score {s:.0f}" for s in scores], panels), alt=alt)

# %% [markdown]
# Each step down by 1 divides the probability by the same factor, $e \approx 2.718$. Only differences between scores
# count, not their height.
#
# ### Predict before you run
#
# Two rows of scores: 1, 2, 3 and 1001, 1002, 1003. Write down your answers first:
#
# 1. Is softmax of the second row equal to softmax of the first?
# 2. What does `torch.exp` say to 1001, 1002, 1003?

# %%
low = torch.tensor([1.0, 2.0, 3.0])
high = low + 1000
print("1.", torch.allclose(l1_ref.softmax(low, 0), l1_ref.softmax(high, 0)))
print("2.", torch.exp(high))
print("   and divided by their sum:", torch.exp(high) / torch.exp(high).sum())

# %% [markdown]
# <details><summary>Why?</summary>
#
# 1. Equal. The differences are the same, and $e^{1001} = e^{1000} \cdot e^{1}$: the factor $e^{1000}$ stands above and
#    below the line, and cancels.
# 2. Infinity. A `float32` ends near $3.4 \cdot 10^{38}$, and $e^{89}$ is already more. Infinity divided by infinity is
#    NaN, "not a number". The formula is right, and a computer that follows it to the letter is wrong.
#
# The first fact cures the second: *you* may choose which number to subtract from all scores before `exp`.
#
# </details>

# %% [markdown]
# ## Exercise: `softmax`
#
# Write `softmax(x, dim)` yourself, with `torch.exp` and sums. The entries along `dim` must sum to 1, for a tensor with
# any number of axes, also for a negative `dim`. Scores of 10000 and of -10000 must work, and a score of -inf must get
# probability exactly 0 (in each row some score is finite). `x` itself must stay as it was. The result has its dtype.
#
# Use torch's operations on whole tensors, not `math.exp`, `.item()` or numpy: training will follow gradients through
# your code.


# %% tags=["exercise"] name="softmax" points=1 difficulty="easy" minutes=10
def softmax(x, dim):
    """Turn scores into probabilities along one axis.

    Args:
        x: Scores, a float tensor of any shape.
        dim: The axis whose entries are to sum to 1.
    """
    largest = x.amax(dim, keepdim=True)
    weights = torch.exp(x - largest)
    return weights / weights.sum(dim, keepdim=True)


# %% tags=["check"]
checks.softmax(softmax)

# %% [markdown]
# Now your code takes part: the model's scores go through *your* softmax.

# %%
ids = as_ids(beginning)
logits = model(ids).detach()
mine = softmax(logits, dim=-1)
print("logits (B, T, V):", tuple(logits.shape))
print("every row sums to 1:", torch.allclose(mine.sum(-1), torch.ones(1, ids.shape[1])))
print("likeliest tokens as before:", torch.equal(mine.argmax(-1), logits.argmax(-1)))

# %% [markdown]
# ## Bug hunt: hot and cold
#
# A model that always takes the likeliest token soon bores us. One that draws from all may ramble. *Temperature* is the
# knob between: below 1 the likely tokens become even likelier, above 1 the unlikely ones get a better chance. (Ackley,
# Hinton and Sejnowski 1985 took the idea from physics.)
#
# The function below is meant to do that. It is broken. Nothing crashes, and each row still sums to 1.


# %% tags=["nbval-ignore-output"]
def broken(logits, temperature):
    """Turn scores into probabilities, sharper below temperature 1 and flatter above it."""
    return l1_ref.softmax(logits * temperature, -1)


def panels_of(function):
    """Return the probabilities of five scores, cold, normal and hot."""
    return {f"temperature {t}": function(torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0]), t) for t in (0.5, 1.0, 2.0)}


alt = "Three bar charts of the broken function: flat at temperature 0.5, sharper at 1, sharpest at 2."
plots.show(plots.probabilities(["the", "a", "one", "her", "my"], panels_of(broken)), alt=alt)

# %% [markdown]
# Look at the picture first, then at the code. What should the right-hand panel look like? Then find the line, say
# in one sentence what it does wrong, and write the mended version here.


# %% tags=["exercise"] name="tempered_softmax" points=1 difficulty="easy" minutes=5
def tempered_softmax(logits, temperature):
    """Turn scores into probabilities, sharper below temperature 1 and flatter above it.

    Args:
        logits: Scores; the vocabulary is the last axis.
        temperature: A number above 0.
    """
    return l1_ref.softmax(logits / temperature, -1)


# %% tags=["check"]
checks.tempered_softmax(tempered_softmax)

# %% tags=["nbval-ignore-output"]
alt = "Three bar charts of the mended function: sharp at temperature 0.5, flatter at 1, flattest at 2."
plots.show(plots.probabilities(["the", "a", "one", "her", "my"], panels_of(tempered_softmax)), alt=alt)

# %% [markdown]
# ## What you have now
#
# | idea | in the reference |
# |---|---|
# | softmax, safe for large scores | `l1_ref.softmax`, in `l1_ref/attention.py` |
# | temperature | `l1_ref.apply_temperature`, in `l1_ref/generation.py` |
# | a trained run, read from disk | `l1_ref.load_run`, in `l1_ref/weights.py` |
# | tales, and their exact entropy | `l1_ref.generate_tale` and `l1_ref.entropy`, in `l1_ref/tales.py` |
#
# Put two question marks behind a name, as in `l1_ref.softmax??`, and run the cell: you see its source.
#
# - A model gives a score for every token. Softmax turns scores into probabilities.
# - Only differences between scores count. So subtract the largest, and nothing overflows.
# - Loss is minus the logarithm of the probability given to what really came. The entropy floor is the best there is.
# - Temperature divides the scores.
#
# Softmax comes back in notebook 03, at the heart of attention, and temperature in notebook 08. Next is 01, tokens:
# where do the model's numbers come from?

# %%
checks.progress()
