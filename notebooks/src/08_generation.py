# %% [markdown]
# # Generation
#
# A model gives scores. A tale is made of choices. This notebook leads from the one to the other: how to choose a
# token, how not to do the same work twice, and how good and how varied the tales are that come out.
#
# **Goals.** Write greedy decoding, temperature, top-k and top-p, and put them together in the right order. Keep keys
# and values, so that each token is computed once. Write the loop that turns a prompt into a tale. Judge the tales.
#
# **Time.** About two and a half hours, in two sittings: a good place to stop is before "The same work, again and
# again".
#
# **Difficulty.** Medium.
#
# **You need.** `softmax` (00), queries, keys and values (03), the model (05).
#
# Words and letters: [glossary](glossary.md).

# %%
import collections
import itertools
import math
import re
import time

import torch

import l1_ref
from l1_ref import checks, plots
from l1_ref.tokenizer import stream_text

run = l1_ref.load_run(l1_ref.DATA_DIR / "tiny")
model, tokenizer = run.model, run.tokenizer
end = tokenizer.end_of_text

# %% [markdown]
# ## Three places
#
# Writing is a loop: ask the model for the scores behind the last token, choose a token, append it, start over. Only the
# choice is open. Here are three places in a tale, and what the trained model expects at each. Scores are $(B, V)$:
# B texts, a number for each of V tokens.


# %%
def as_ids(text):
    """Return the ids of a text, behind the mark that ends one tale and begins the next."""
    return [end, *tokenizer.encode(text)]


def scores_after(text):
    """Return the scores (1, V) of the token that follows a text."""
    with torch.no_grad():
        return model(torch.tensor([as_ids(text)]))[:, -1]


opening = "Behind the little bridge lived a"
places = {
    "… lived a": scores_after(opening),
    "… a shy girl": scores_after(f"{opening} shy girl"),
    "… girl called": scores_after(f"{opening} shy girl called"),
}


# %%
# From here on `what_is_left` draws these places. There is no need to follow its code.
def what_is_left(change, title, n=11):
    """Draw the chances at each place before and after a change of the scores, and count the tokens that are left."""
    panels, kept, others = {}, [], []
    for place, scores in places.items():
        before, after = (l1_ref.softmax(each, dim=-1)[0] for each in (scores, change(scores)))
        order = before.argsort(descending=True)
        labels = [*(tokenizer.decode([i]) for i in order[:n].tolist()), f"{len(order) - n} others"]
        bars = [[*each[order[:n]].tolist(), each[order[n:]].sum().item()] for each in (before, after)]
        kept.append((after > 0).sum().item())
        others.append(bars[1][-1])
        panels[f"{place}\n{kept[-1]:,} of {len(after):,} tokens left"] = (labels, *bars)
    return plots.reshaped(panels, title), kept, others


# %% tags=["nbval-ignore-output"]
figure, _, others = what_is_left(lambda scores: scores, "the model's own chances: nothing is changed yet")
likeliest = [l1_ref.softmax(scores, dim=-1).max() for scores in places.values()]
alt = f"Three bar charts. The likeliest token has {', '.join(f'{p:.2f}' for p in likeliest)}; all tokens behind the "
plots.show(figure, alt=f"{alt}first eleven together have {max(others):.3f} at most.")

# %% [markdown]
# Behind "a" ten words have about the same chance. Behind "girl" there is only one. Behind "called" come eight names,
# some more often than others. Whatever way we choose must do well at all three.
#
# ## Exercise: `greedy`
#
# The plainest way: take the token with the highest score. `logits` is (B, V), the result (B, 1), of torch's whole
# numbers (int64): one id a row, in a column, ready to be appended. On a tie, any of the tied will do.


# %% tags=["exercise"] name="greedy" points=1 difficulty="easy" minutes=5
def greedy(logits):
    """Return the most likely id of each row, (B, 1).

    Args:
        logits: Scores of the next token, (B, V).
    """
    return logits.argmax(dim=-1, keepdim=True)


# %% tags=["check"]
checks.greedy(greedy)

# %% [markdown]
# Now 48 beginnings go on for 15 tokens: greedy, and drawn by the model's chances. (`l1_ref.generate` is the loop that
# you will write below. Temperature 0 stands for greedy.) What are the heroes called?


# %%
def tales_of(ids):
    """Return the text of each row: what stands between the first mark and the next."""
    rows = (row[1:] for row in ids.tolist())
    return [tokenizer.decode(row[: row.index(end)] if end in row else row) for row in rows]


prepositions = ("Beside", "Behind", "Near", "Beyond")
spots = "bridge mill barn orchard tower market forest church canal station school well".split()
beginnings = [f"{where} the windy {spot} lived" for where in prepositions for spot in spots]
prompts = torch.tensor([as_ids(beginning) for beginning in beginnings])  # (48, 6)

# %% tags=["nbval-ignore-output"]
chance = torch.Generator().manual_seed(0)
for name, temperature in {"greedy": 0.0, "drawn": 1.0}.items():
    ids = l1_ref.generate(model, prompts, 15, temperature, generator=chance)
    heroes = collections.Counter(found[1] for tale in tales_of(ids) if (found := re.search(r"called (\w+)", tale)))
    often = ", ".join(f"{hero} {n}" for hero, n in heroes.most_common(6))
    print(f"{name:<7} {len(heroes):>2} names, the most frequent: {often}")

# %% [markdown]
# No name is much likelier than the next, but greedy takes few of them, again and again. What is likeliest need not be
# typical.
#
# It gets worse if we let it run on from "Once", past the end of the tale. The model sees the last 128 tokens, and
# always takes the likeliest, so nothing else decides what comes next. When the same 128 tokens come back, all that
# follows comes back too, for ever. Some day they must, since there are finitely many windows; here it is soon. In the
# picture a dot says: the eight tokens from this place on stood at that earlier place before.


# %%
def loop_of(ids, window):
    """Return how many ids stand before a loop, and how long the loop is; None where no window comes back."""
    seen = {}
    for start in range(len(ids) - window + 1):
        before = seen.setdefault(tuple(ids[start : start + window]), start)
        if before < start:
            return before, start - before
    return None


once, n_long = torch.tensor([as_ids("Once")]), 600
long_texts = {
    "greedy": l1_ref.generate(model, once, n_long, temperature=0.0)[0].tolist(),
    "drawn": l1_ref.generate(model, once, n_long, generator=torch.Generator().manual_seed(0))[0].tolist(),
}

# %% tags=["nbval-ignore-output"]
before, period = loop_of(long_texts["greedy"], model.config.max_seq_length)
shown_from = long_texts["greedy"].index(end, before) + 1
print(f"greedy: after {before} tokens the same {period} tokens for ever:\n")
print(*plots.wrapped(tokenizer.decode(long_texts["greedy"][shown_from : shown_from + period])), sep="")
print("\ndrawn, a loop:", loop_of(long_texts["drawn"], model.config.max_seq_length))
alt = (
    f"Two dot plots of runs of 8 tokens that occur twice. Greedy: one whole diagonal, {period} places late, and pieces "
)
plots.show(plots.repeats(long_texts), alt=f"{alt}of others. Drawn: hardly a dot.")

# %% [markdown]
# The whole diagonal is the loop; the pieces are sentences that come again within it.
#
# Why such poor tales? In training a tale stood at the start of the window, with the first words of the next behind it.
# A second tale, further on, is new to the model. But the loop comes from greedy: drawn tales fall apart here too, and
# do not repeat.
#
# Holtzman et al. (2020) found such loops in large models, and a cure: draw, but not from all tokens.
#
# ## Temperature
#
# Divide all scores by a *temperature* before softmax. Below 1, differences between scores grow, and the likely tokens
# get likelier; towards 0 it becomes greedy. Above 1, differences shrink, and chances become more even. (Ackley, Hinton
# and Sejnowski 1985, equation 5.)


# %% tags=["nbval-ignore-output"]
def at_temperature(temperature):
    """Draw the three places at a temperature."""
    figure, _, others = what_is_left(
        lambda scores: l1_ref.apply_temperature(scores, temperature), f"temperature {temperature}"
    )
    alt = f"Three bar charts, temperature {temperature}. The tokens behind the first eleven together have "
    return figure, alt + ", ".join(f"{p:.2f}" for p in others) + "."


plots.explore(at_temperature, temperature=[2.0, 0.1, 0.3, 0.5, 0.7, 1.0, 1.2, 1.5, 3.0])

# %% [markdown]
# Move the slider, and watch the last bar: the 989 tokens that hardly fit. One by one they have next to nothing, but
# they are many. At 2, they take about a quarter of the chances where a name should stand. And a tale has a hundred
# places where it can go wrong.
#
# ## Exercise: `apply_temperature`
#
# The scores divided by the temperature, a number above 0. Not probabilities: what comes out are scores again. `logits`
# stays as it was.


# %% tags=["exercise"] name="apply_temperature" points=1 difficulty="easy" minutes=5
def apply_temperature(logits, temperature):
    """Sharpen (below 1) or flatten (above 1) the distribution.

    Args:
        logits: Scores of the next token, (B, V).
        temperature: A number above 0.
    """
    return logits / temperature


# %% tags=["check"]
checks.apply_temperature(apply_temperature)

# %% [markdown]
# ## Top-k
#
# The tail is the trouble, so cut it off: keep the k likeliest tokens, remove the others (Fan, Lewis and Dauphin 2018,
# section 5.4). To remove a token, set its score to −∞: softmax makes exactly 0 of it, and shares its chance among the
# others.


# %% tags=["nbval-ignore-output"]
def with_top_k(k):
    """Draw what the k likeliest tokens make of the three places."""
    figure, kept, _ = what_is_left(lambda scores: l1_ref.top_k_filter(scores, k), f"top-k, k = {k}")
    return figure, f"Three bar charts, top-k with k = {k}: {', '.join(map(str, kept))} tokens are left."


plots.explore(with_top_k, k=[5, 1, 2, 3, 8, 10, 20, 100, 1000])

# %% [markdown]
# Try to find a good k. Five cuts away half of the good words behind "a", and leaves four wrong ones behind "girl". No k
# suits all places.
#
# ## Exercise: `top_k_filter`
#
# Each row keeps its own k highest scores as they are; the others become `-float("inf")`. k is at least 1. If k is above
# V, all stay. Tokens that tie with the k-th may all stay. `logits` stays as it was. `torch.topk` finds the highest,
# and `masked_fill` you know from notebook 03.


# %% tags=["exercise"] name="top_k_filter" points=1 difficulty="medium" minutes=10
def top_k_filter(logits, k):
    """Keep the k most likely tokens of each row; the others become -inf.

    Args:
        logits: Scores of the next token, (B, V).
        k: At least 1; above V it keeps all.
    """
    kth = logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1:]  # (B, 1)
    return logits.masked_fill(logits < kth, -math.inf)


# %% tags=["check"]
checks.top_k_filter(top_k_filter)

# %% [markdown]
# ## Top-p
#
# Holtzman et al. (2020, section 3.1) fix the share instead of the number. Go down the list from the likeliest token and
# add up the probabilities; stop as soon as the sum reaches p. Where the model is sure, that takes one token. Where much
# is possible, it takes many.


# %% tags=["nbval-ignore-output"]
def with_top_p(p):
    """Draw what the fewest tokens that reach p make of the three places."""
    figure, kept, _ = what_is_left(lambda scores: l1_ref.top_p_filter(scores, p), f"top-p, p = {p}")
    return figure, f"Three bar charts, top-p with p = {p}: {', '.join(map(str, kept))} tokens are left."


plots.explore(with_top_p, p=[0.95, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0])

# %% [markdown]
# With p = 0.95, what is left is just what fits: ten words, one word, eight names.
#
# ## Exercise: `top_p_filter`
#
# Keep the fewest likeliest tokens of each row whose probabilities sum to p or more. So the token that crosses p stays,
# and there is always at least one. The others become −∞, `logits` stays as it was. p is above 0 and at most 1; p = 1
# keeps every token. Scores may already be −∞: their probability is 0. Scores of several hundred must work:
# `l1_ref.softmax`, or yours, can do that.
#
# `logits.sort(dim=-1, descending=True)` gives the scores in order, and where each came from. `cumsum` adds up along an
# axis. The hard part is the way back: what you decide about sorted scores must reach the right tokens.
# `x.scatter(-1, order, values)` writes each value to the place that `order` names: with order 1, 2, 0 the values
# a, b, c go to places 1, 2, 0.


# %% tags=["exercise"] name="top_p_filter" points=2 difficulty="hard" minutes=20
def top_p_filter(logits, p):
    """Keep the fewest most likely tokens of each row whose probabilities reach p; the others become -inf.

    Args:
        logits: Scores of the next token, (B, V).
        p: Above 0, at most 1.
    """
    if p == 1:
        return logits
    ranked, order = logits.sort(dim=-1, descending=True)
    chances = l1_ref.softmax(ranked, dim=-1)
    before = chances.cumsum(dim=-1) - chances  # what the tokens ahead of this one hold
    removed = before >= p
    removed[:, 0] = False
    return logits.masked_fill(removed.scatter(-1, order, removed), -math.inf)


# %% tags=["check"]
checks.top_p_filter(top_p_filter)

# %% [markdown]
# Ties are the edge of both. Two tokens with the same score: our top-k keeps what ties with the k-th, and our top-p
# stops as soon as p is reached, so it must take one and leave its equal.

# %%
tied = torch.tensor([[1.0, 1.0, 0.0]])
print("k = 1:  ", l1_ref.top_k_filter(tied, 1).tolist())
print("p = 0.1:", l1_ref.top_p_filter(tied, 0.1).tolist())

# %% [markdown]
# ## Order matters
#
# Temperature and top-p cannot change places. Here is the third place at temperature 2 with p = 0.9, both ways.

# %% tags=["nbval-ignore-output"]
scores = places["… girl called"]
hot_first = l1_ref.top_p_filter(l1_ref.apply_temperature(scores, 2.0), 0.9)
cut_first = l1_ref.apply_temperature(l1_ref.top_p_filter(scores, 0.9), 2.0)
for name, each in {"temperature, then top-p": hot_first, "top-p, then temperature": cut_first}.items():
    print(f"{name}: {each.isfinite().sum().item()} tokens are left")

# %% [markdown]
# This course, like the transformers library, takes temperature first, then k, then p on what remains. So a hot
# temperature brings much of the tail in before p can cut it off. Ask for the order when you compare settings.
#
# ## Exercise: `sample`
#
# All together: temperature, then top-k, then top-p, then softmax, then draw one id a row. `logits` is (B, V) and
# stays as it was; the result is (B, 1), int64. Temperature 0 is greedy. `top_k` and `top_p` may be None: then all stay.
#
# `torch.multinomial(chances, num_samples=1, generator=generator)` draws by chances. The `generator` is the source of
# chance: whoever hands in one with the same seed gets the same draws. None is torch's own. Set no seed yourself.


# %% tags=["exercise"] name="sample" points=1 difficulty="medium" minutes=10
def sample(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    """Draw the next id of each row, (B, 1): temperature, then top-k, then top-p on what remains.

    Args:
        logits: Scores of the next token, (B, V).
        temperature: At least 0; 0 is greedy.
        top_k: How many tokens to keep; None keeps all.
        top_p: Which share to keep; None keeps all.
        generator: Source of chance; torch's own where None.
    """
    if temperature == 0:
        return l1_ref.greedy(logits)
    logits = l1_ref.apply_temperature(logits, temperature)
    if top_k is not None:
        logits = l1_ref.top_k_filter(logits, top_k)
    if top_p is not None:
        logits = l1_ref.top_p_filter(logits, top_p)
    return torch.multinomial(l1_ref.softmax(logits, dim=-1), num_samples=1, generator=generator)


# %% tags=["check"]
checks.sample(sample)

# %% [markdown]
# How can one test a draw? By counting. 10,000 rows with the same scores of eight names, one draw each, beside the
# chances that were asked for: with temperature 0.7 and k = 6.

# %% tags=["nbval-ignore-output"]
n_draws = 10_000
shown = scores[0].topk(8)
asked = l1_ref.softmax(l1_ref.top_k_filter(shown.values.unsqueeze(0) / 0.7, 6), dim=-1)[0]
drawn = sample(shown.values.expand(n_draws, -1), 0.7, top_k=6, generator=torch.Generator().manual_seed(0))
counted = drawn.flatten().bincount(minlength=len(asked)) / n_draws
panels = {"asked for": asked, "counted": counted}
alt = f"Two bar charts of eight names, alike: they differ by {(asked - counted).abs().max():.3f} at most; two have 0."
plots.show(plots.probabilities([tokenizer.decode([i]) for i in shown.indices.tolist()], panels), alt=alt)

# %% [markdown]
# ## The same work, again and again
#
# The plain loop feeds the whole text to the model at each step. But a token's vectors depend only on itself and on what
# stands before it: that is what the causal mask is for. So a new token changes nothing about the old ones, and the loop
# computes the same numbers again and again.
#
# What does a *new* token need from the old ones? Only their keys and values, in each layer. Keep these, and it is
# enough to feed the new token: its query meets the kept keys (Pope et al. 2022, section 2.1). Old queries are never
# asked for again. That store is the *KV cache*.
#
# ### Predict before you run
#
# The prompt is one token, and 100 new ones are written. Write down your answers first:
#
# 1. Without a cache: how many tokens go through the model, in all steps together?
# 2. With a cache?
# 3. From 50 to 100 new tokens: how many times the work, each way?


# %%
mark = torch.tensor([[end]])


def tokens_fed(n, use_cache):
    """Count the tokens that go through the model while it writes n behind a prompt of one."""
    fed = []
    hook = model.embedding.register_forward_hook(lambda module, inputs, output: fed.append(inputs[0].numel()))
    l1_ref.generate(model, mark, n, use_cache=use_cache)
    hook.remove()
    return sum(fed)


for use_cache in (False, True):
    half, full = (tokens_fed(n, use_cache) for n in (50, 100))
    print(f"with a cache: {use_cache!s:<5}  100 new tokens: {full:>5,}  times the work of 50: {full / half:.2f}")

# %% [markdown]
# <details><summary>Why?</summary>
#
# Without: 1 + 2 + … + 100 = 100 · 101 / 2 = 5,050. In general n (n + 1) / 2, which grows with the square of n. With a
# cache each token goes through once: 100. (The last token written is never fed.)
#
# </details>
#
# The next cell counts the arithmetic itself, and measures the time. A number in a weight matrix costs a multiplication
# and an addition for each token. In attention, each query meets each key, and each attention weight its value.


# %%
def flops(T, S, config):
    """Count the operations for T new tokens that look at S, and for the scores behind the last."""
    C, L = config.n_embd, config.n_layers
    in_blocks = L * (4 * C * C + 2 * C * config.n_inner) * T
    in_attention = L * 2 * C * T * S  # masked pairs are computed too
    return 2 * (in_blocks + in_attention + C * config.vocab_size)


def seconds(n, use_cache):
    """Measure when each of n new tokens is there, from the start."""
    started = time.perf_counter()
    new = l1_ref.stream(model, mark, n, use_cache=use_cache)
    return [time.perf_counter() - started for _ in new]


# %% tags=["nbval-ignore-output"]
steps = range(1, 101)
work = {
    "without a cache": list(itertools.accumulate(flops(t, t, model.config) / 1e9 for t in steps)),
    "with a cache": list(itertools.accumulate(flops(1, t, model.config) / 1e9 for t in steps)),
}
measured = {name: seconds(len(steps), name == "with a cache") for name in work}
panels = {"billion operations, counted": work, "seconds on this machine": measured}
times = work["without a cache"][-1] / work["with a cache"][-1]
alt = f"Line charts: without a cache the work bends upwards, to {times:.0f} times that with a cache after 100 tokens; "
figure = plots.curves_over(steps, panels, "tokens written")
plots.show(figure, alt=f"{alt}with a cache it is nearly straight.")

# %% [markdown]
# How much of the work saved is time saved depends on the machine: a small step has its fixed cost, whatever its
# arithmetic. And the cache is paid for in memory.

# %%
for name in ("tiny", "gpt2"):
    config = l1_ref.PRESETS[name]
    per_token = 2 * config.n_layers * config.n_embd * 4  # a key and a value in each layer, 4 bytes a number
    print(f"{name}: {per_token:,} bytes a token, {per_token * config.max_seq_length / 1e6:.1f} MB for a full context")

# %% [markdown]
# ## Exercise: `KVCache`
#
# The model asks two things of a cache: the number `length`, and the method `append`. Before a step, `length` is the
# number of tokens that the cache has seen; new positions go on from there. In each layer, attention hands over the keys
# and values of the T new tokens, and gets all so far back:
#
# `append(layer, k, v)` takes k and v, both (B, H, T, D), stores them behind the first `length` positions of that layer,
# and returns its keys and its values, each (B, H, `length` + T, D), old ones first. Layers are counted from 0, and do
# not mix. `append` leaves `length` alone, since every layer of a step needs the same one: the *model* adds T to it,
# once, when all layers are done. A new cache has `length` 0. T can be any number, and differ from step to step; all
# together never exceed `max_seq_length`.


# %% tags=["exercise"] name="KVCache" points=2 difficulty="medium" minutes=20
class KVCache:
    """Keep the keys and values of the tokens seen so far.

    Args:
        config: Gives `n_layers`, `n_heads`, `max_seq_length`, and D as `n_embd // n_heads`.
        batch_size: B, the number of sequences.
    """

    def __init__(self, config, batch_size):
        D = config.n_embd // config.n_heads
        self.keys = torch.zeros(config.n_layers, batch_size, config.n_heads, config.max_seq_length, D)
        self.values = torch.zeros_like(self.keys)
        self.length = 0

    def append(self, layer, k, v):
        """Store the new k and v (B, H, T, D) of a layer; return all its keys and all its values so far."""
        S = self.length + k.shape[2]
        self.keys[layer, :, :, self.length : S] = k
        self.values[layer, :, :, self.length : S] = v
        return self.keys[layer, :, :, :S], self.values[layer, :, :, :S]


# %% tags=["check"]
checks.KVCache(KVCache)

# %% [markdown]
# A cache must change nothing but the work. `model.hidden(ids, cache)` runs the blocks, `model.head` makes scores. Feed
# a whole tale one token at a time through your cache, and compare all its scores with those of one plain call.

# %%
tale = l1_ref.load_tales("validation")[0]
tale_ids = torch.tensor([as_ids(tale)])  # (1, S)
cache = KVCache(model.config, batch_size=1)
with torch.no_grad():
    one_by_one = [model.head(model.hidden(tale_ids[:, [t]], cache)) for t in range(tale_ids.shape[1])]
    plain = model(tale_ids)
print("tokens in the cache:", cache.length, "of", tale_ids.shape[1])
print("the same scores:", torch.allclose(torch.cat(one_by_one, dim=1), plain, atol=1e-3))

# %% [markdown]
# ## Exercise: `generate`
#
# The loop itself. `ids` (B, T) is a *batch of prompts*: all rows go on at the same time, each with its own draws. They
# must be equally long, since a tensor has no ragged rows.
#
# - It returns prompt and continuation, (B, S), with at most `max_new_tokens` more than the prompt; 0 adds none.
# - The next id comes from `l1_ref.sample`, or yours, with the settings that came in.
# - The model has positions for `max_seq_length` tokens (`model.config.max_seq_length`). When the text is longer, feed
#   its last `max_seq_length` ids; what is returned stays complete. A prompt can be too long, too.
# - `stop_token` ends a row: once it has *drawn* that token, the row is filled up with it while others go on (in a
#   prompt it means nothing). When all rows have drawn it, stop at once. None never stops.
# - No dropout, and no steps recorded for gradients: `model.eval()`, and `torch.no_grad()`. `model.training` says which
#   mode the model came in; give it back in that one, by `model.train(mode)`.
#
# Feed the whole text at each step: that is right, if slow. You may use a cache. Mind that in a full window every token
# moves by one, its position vector and its keys change, and the cache no longer holds.


# %% tags=["exercise"] name="generate" points=2 difficulty="hard" minutes=25
def generate(model, ids, max_new_tokens, temperature=1.0, top_k=None, top_p=None, stop_token=None, generator=None):
    """Continue each row of ids (B, T) by at most max_new_tokens; return prompt and continuation (B, S).

    A row that drew stop_token is filled up with it. The model is left in the mode in which it came.
    """
    mode, limit = model.training, model.config.max_seq_length
    model.eval()
    stopped = torch.zeros(len(ids), 1, dtype=torch.bool)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            logits = model(ids[:, -limit:])[:, -1]  # (B, V)
        new = l1_ref.sample(logits, temperature, top_k, top_p, generator)  # (B, 1)
        if stop_token is not None:
            new = new.masked_fill(stopped, stop_token)
            stopped |= new == stop_token
        ids = torch.cat((ids, new), dim=1)
        if stopped.all():
            break
    model.train(mode)
    return ids


# %% tags=["check"]
checks.generate(generate)

# %% tags=["nbval-ignore-output"]
starts = ["Near the grand market lived", "Beside the misty mill lived", "Beyond the old canal lived"]
batch = torch.tensor([as_ids(beginning) for beginning in starts])
chance = torch.Generator().manual_seed(3)
written = generate(model, batch, 120, temperature=0.8, top_p=0.95, stop_token=end, generator=chance)
print(tuple(batch.shape), "became", tuple(written.shape))
for row, text in zip(written, tales_of(written), strict=True):
    print(f"\nmarks at the end: {(row[1:] == end).sum().item()}", *plots.wrapped(f"\n{text}"), sep="")

# %% [markdown]
# ## Bug hunt: the wrong tokens
#
# Someone put the cache into the loop. The function below gives the scores behind the last token, and is called once a
# step with all ids so far. The first step is right; from the second on the scores are wrong.


# %%
def broken(model, ids, cache):
    """Return the scores of the token that follows ids."""
    return model.head(model.hidden(ids, cache)[:, -1])


@torch.no_grad()
def drift(step, n=10):
    """Return how far a step's scores are from those without a cache, for each of n tokens."""
    ids, cache, found = batch[:1], l1_ref.KVCache(model.config, 1), []
    for _ in range(n):
        right = model(ids)[:, -1]
        found.append((step(model, ids, cache) - right).abs().max().item())
        ids = torch.cat((ids, l1_ref.greedy(right)), dim=1)
    return found


# %% tags=["nbval-ignore-output"]
gaps = {"broken": drift(broken)}
alt = f"Line chart, broken: the largest difference is below 0.01 at first, then {gaps['broken'][1]:.1f} and more."
figure = plots.curves_over(range(1, 11), {"largest difference from right scores": gaps}, "step")
plots.show(figure, alt=alt)

# %% [markdown]
# And with `drift(broken, n=20)` it crashes. Look at `cache.length` after each step, beside the number of ids. Say in
# one sentence what the cache holds after the second step. Then write the mended version.
#
# `next_logits(model, ids, cache)` gets all ids (B, S) so far; the cache may have seen none of them, or some of the
# first, never all. It feeds the model only those that the cache has not seen, and returns the scores (B, V) behind the
# last.


# %% tags=["exercise"] name="next_logits" points=1 difficulty="medium" minutes=10
def next_logits(model, ids, cache):
    """Return the scores (B, V) of the token that follows ids, and leave all ids in the cache.

    Args:
        model: Has `hidden(ids, cache)` and `head`.
        ids: All ids so far, (B, S).
        cache: Has seen the first `cache.length` of them, fewer than S.
    """
    unseen = ids[:, cache.length :]
    return model.head(model.hidden(unseen, cache)[:, -1])


# %% tags=["check"]
checks.next_logits(next_logits)

# %% tags=["nbval-ignore-output"]
gaps["mended"] = drift(next_logits)
alt = f"Line chart: broken reaches {max(gaps['broken']):.1f}; mended stays below 0.01."
figure = plots.curves_over(range(1, 11), {"largest difference from right scores": gaps}, "step")
plots.show(figure, alt=alt)

# %% [markdown]
# <details><summary>What was in the cache?</summary>
#
# After the second step: six ids, and behind them all seven, so six are there twice. After 11 steps it holds
# 6 + 7 + … + 16 = 121; the next 17 do not fit into 128.
#
# </details>
#
# ## As it comes
#
# Nobody likes to wait for a whole tale. `l1_ref.stream` takes the same arguments as `generate`, and yields each (B, 1)
# as soon as it is drawn. One difficulty is left: a token need not be a whole character.

# %%
ids = tokenizer.encode("é!")
print([tokenizer.decode([i]) for i in ids], "one by one")
print(list(stream_text(tokenizer, ids)), "by stream_text, which waits for whole characters")

# %% tags=["nbval-ignore-output"]
new = l1_ref.stream(model, batch[1:2], 120, temperature=0.8, stop_token=end, generator=torch.Generator().manual_seed(5))
pieces = stream_text(tokenizer, (i.item() for i in new if i != end))
for word in plots.wrapped(itertools.chain([starts[1]], pieces)):
    print(word, end="", flush=True)

# %% [markdown]
# ## Is it a tale?
#
# Are hot tales worse, and cold ones dull? Elsewhere people must read and judge. Here the grammar that wrote the corpus
# can: `l1_ref.log_probability(tale)` is its exact log-probability, and −∞ if the grammar could never write it. It is
# strict: a single wrong word, and the tale is refused.

# %%
own = l1_ref.log_probability(tale)
print(f"a tale of the grammar: {own:.1f} nats")
(hero,) = re.findall(r"called (\w+)", tale)
print("the same with the hero renamed at the end:", l1_ref.log_probability("Rosa".join(tale.rsplit(hero, 1))))


# %%
def told(n=32, **settings):
    """Return n tales of the trained model."""
    settings |= {"stop_token": end, "generator": torch.Generator().manual_seed(0)}
    return tales_of(l1_ref.generate(model, mark.expand(n, 1), 127, **settings))


def accepted(tales):
    """Return the share of tales that the grammar can write."""
    return sum(l1_ref.log_probability(tale) > -math.inf for tale in tales) / len(tales)


def variety(tales, n=4):
    """Return the share of different runs among all runs of n words."""
    runs = [run for words in map(str.split, tales) for run in zip(*(words[i:] for i in range(n)), strict=False)]
    return len(set(runs)) / len(runs)


# %% [markdown]
# Even cool tales are mostly refused, many of them for one kind of word alone. In the tales a bold hero shouts, a shy
# one whispers, a grumpy one grumbles: the first sentence decides on the verb. What does the model expect, if only that
# sentence changes?

# %%
verbs = {"bold": "shouted", "brave": "shouted", "shy": "whispered", "timid": "whispered", "merry": "sang"}
verbs |= {"gloomy": "sighed", "sleepy": "yawned", "grumpy": "grumbled", "clever": "said", "quiet": "said"}
spoken = sorted(set(verbs.values()))
first_ids = [tokenizer.encode(f" {verb}")[0] for verb in spoken]
rest = (
    " girl called Nell. One cold morning, she took two nuts, a red cap and a tall owl up the hill. They walked for two"
    ' days in the rain.\nFrom there, home was like a nut. "A hen might eat it," hooted the owl sadly. "Oh dear,"'
)
panels = {
    f"a {trait} girl\n(right: {verbs[trait]})": l1_ref.softmax(scores_after(f"{opening} {trait}{rest}"), dim=-1)[
        0, first_ids
    ]
    for trait in ("bold", "shy", "grumpy")
}

# %% tags=["nbval-ignore-output"]
apart = max((a - b).abs().max().item() for a, b in itertools.combinations(panels.values(), 2))
alt = f"Three bar charts over seven verbs, for a bold, a shy and a grumpy girl: they differ by {apart:.2f} at most."
plots.show(plots.probabilities(spoken, panels, 'the verb behind … "Oh dear,"'), alt=alt)

# %% [markdown]
# Three times the same bars. The model knows how often each verb occurs, but not who uses which. (In notebook 03
# it carried a name over almost sixty tokens. This rule it has not found: about two fifths of what its loss has left
# above the floor is lost here.) So we also count in a gentler way: first put the verbs right, then ask the grammar.


# %%
def with_right_verbs(tale):
    """Return a tale in which the hero speaks as the first sentence demands."""
    found = re.search(r"(?:lived|knew) an? (\w+) \w+ called (\w+)", tale)
    if not found or found[1] not in verbs:
        return tale
    return re.sub(rf"\b(?:{'|'.join(spoken)}) {found[2]}\b", f"{verbs[found[1]]} {found[2]}", tale)


temperatures = [0.1, 1.0, 1.5]
plain = [told(temperature=t) for t in temperatures]
cut = [told(temperature=t, top_p=0.9) for t in temperatures]

# %% tags=["nbval-ignore-output"]
ways = {"as written": plain}
for name, each in {"verbs put right": plain, "top-p 0.9, verbs put right": cut}.items():
    ways[name] = [[with_right_verbs(tale) for tale in tales] for tales in each]
good, varied = ({name: [*map(measure, each)] for name, each in ways.items()} for measure in (accepted, variety))
del varied["as written"]
panels = {"share that the grammar accepts": good, "share of different runs of 4 words": varied}
true = variety(l1_ref.load_tales("validation")[: len(plain[0])])
lines = {"share of different runs of 4 words": ("true tales", true)}
alt = f"Line charts over the temperatures {temperatures}. Accepted: " + "; ".join(
    f"{name} {', '.join(f'{share:.2f}' for share in shares)}" for name, shares in good.items()
)
alt += f". Variety {', '.join(f'{share:.2f}' for share in varied['verbs put right'])}; of true tales {true:.2f}."
plots.show(plots.curves_over(temperatures, panels, "temperature", lines), alt=alt)

# %% [markdown]
# Left: of 32 tales each, so a share may be off by more than a tenth. At 1.5 hardly one survives, unless top-p cuts the
# tail. Right: at temperature 1 the tales are about as varied as true ones, since that is what training made the chances
# for. Colder, they repeat each other; hotter, the variety is that of mistakes. Top-p keeps it where it belongs.
#
# ## What you have now
#
# | idea | in the reference |
# |---|---|
# | the likeliest token | `l1_ref.greedy`, in `l1_ref/generation.py` |
# | sharper and flatter | `l1_ref.apply_temperature`, in `l1_ref/generation.py` |
# | a number of tokens, or a share | `l1_ref.top_k_filter`, in `l1_ref/generation.py`, and `top_p_filter` |
# | one draw | `l1_ref.sample`, in `l1_ref/generation.py` |
# | keys and values, kept | `l1_ref.KVCache`, in `l1_ref/attention.py` |
# | the loop, whole and as it comes | `l1_ref.generate` and `l1_ref.stream`, in `l1_ref/generation.py` |
# | judging a tale | `l1_ref.log_probability`, in `l1_ref/tales.py` |
#
# - Always the likeliest is not typical, and ends in loops. So we draw, by temperature, then k, then p.
# - The tail is the danger: single tokens of it are rare, all together they are not.
# - Causality makes old keys and values final. With a cache each token is computed once, and nothing else changes.
#
# That was the road: from bytes to tales, every part of it written by you. The same code also takes GPT-2's own weights
# (`l1_ref.load_gpt2`), and `l1 train` trains it on any text of yours.

# %%
checks.progress()
