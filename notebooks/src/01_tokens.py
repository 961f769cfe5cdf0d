# %% [markdown]
# # Tokens
#
# A model computes with numbers, and a text is made of letters. Here you write what stands between them.
#
# **Goals.** Learn a vocabulary from a text. Turn any text into ids, and ids back into text. Cut a long stream of ids
# into training examples.
#
# **Time.** About two hours.
#
# **Difficulty.** Medium.
#
# **You need.** Notebook 00, and Python's dictionaries, tuples and `Counter`. No GPU, no network.
#
# Words and letters: [glossary](glossary.md).

# %%
import time
from collections import Counter
from itertools import pairwise

import torch

import l1_ref
from l1_ref import checks, plots
from l1_ref.bpe import GPT2_SPLIT_PATTERN, split_text

tales = l1_ref.load_tales("train")
tokenizer = l1_ref.load_tokenizer(l1_ref.DATA_DIR)

# %% [markdown]
# ## Text is bytes
#
# A computer stores text as *bytes*, numbers from 0 to 255. The rule that turns characters into bytes is called UTF-8.
# A plain English letter takes one byte. Other characters take two, three or four. (Cells that draw, like the next one,
# can be run unread.)

# %% tags=["nbval-ignore-output"]
text = "café 😀"
rows = {"characters": [c.encode() for c in text], "bytes": [bytes([byte]) for byte in text.encode()]}
alt = f"Two rows of boxes: {len(text)} characters above {len(text.encode())} bytes; é has two bytes, the face four."
plots.show(plots.cuts(rows, numbers=["bytes"]), alt=alt)

# %% [markdown]
# (␣ is a space.) So text consists of numbers already. Why not give these to the model? A piece of text that the model
# treats as one is a *token*, its number is the token's *id*, and the list of all tokens is the *vocabulary*. The tokens
# could be bytes, 256 that can write everything. Or words. Here are both, on one tale:

# %%
known_words = set(" ".join(tales).split())
print("one tale as bytes:", len(tales[5].encode()), "tokens, of a vocabulary of 256")
print("one tale as words:", len(tales[5].split()), "tokens, of a vocabulary of", len(known_words))
print("does it know 'lighthouse'?", "lighthouse" in known_words)

# %% [markdown]
# A byte is too small a piece. Texts become long, and the model must spell every word. A word is too large. The list of
# words never ends (names, typing errors, other languages), and what is not in it cannot be written at all.
#
# **Byte-pair encoding** finds the middle: frequent words stay whole, rare ones fall into parts. Gage (1994) invented it
# to make files smaller: take the pair of neighbouring bytes that occurs most often, put one unused byte in its place,
# and repeat. Sennrich et al. (2016) saw that the pairs make a good vocabulary. Radford et al. (2019, section 2.2) used
# it for GPT-2, on bytes, so that every text has ids.
#
# ## The first cut
#
# Left alone, merging would spend tokens on a "dog!" beside a "dog?" and a "dog." (Radford et al. 2019, section 2.2). So
# for GPT-2 a fixed pattern first cuts the text into pieces, and no pair may span two of them. `split_text` applies that
# pattern and yields the bytes of each piece, one after another. You need not read the pattern; look at what it does.

# %%
print(GPT2_SPLIT_PATTERN)
print(*split_text("Nell's owl can't read 2 maps, or 1948!"), sep="\n")

# %% [markdown]
# A piece holds letters, or digits, or punctuation. One space in front belongs to it. Other white space makes pieces of
# its own, and endings such as 's and 't are cut off. From here on we call the pieces *words*.
#
# The same words come again and again. So count each of them once, and work on the counts. We write a word as a tuple of
# ids, because a list cannot be the key of a dictionary. At the start the ids are the bytes: **byte i has id i**.

# %%
words = Counter(tuple(piece) for tale in tales for piece in split_text(tale))
print(f"{words.total():,} words in the tales, {len(words)} different ones")
with_letters = [(word, n) for word, n in words.most_common() if bytes(word).strip().isalpha()]
print("the most frequent that have letters:", with_letters[:2])
print("the first of these, as text:", bytes(with_letters[0][0]))

# %% [markdown]
# Split at white space, as above, there were 812 different words: "dog" and "dog." were two. The pattern leaves 485.
#
# ## Merges
#
# Now join the most frequent pair of neighbours into a new token, and repeat. That is all of byte-pair encoding
# (Sennrich et al. 2016, algorithm 1). Here it is on the small example of that paper, with the number of times that each
# word occurs. (The paper's four words have a mark at the end. Ours have the space in front. So the very first "low",
# without one, is a word of its own: five words.) Orange is what is joined next. Move the slider to see the vocabulary
# grow.


# %%
SMALL = "low" + " low" * 4 + " lower" * 2 + " newest" * 6 + " widest" * 3


def after(n_merges):
    """Return the words of SMALL after some merges, as ids with their counts, and the tokens by their ids."""
    ranks = l1_ref.train_bpe(SMALL, 256 + n_merges)
    words = {tuple(l1_ref.encode(piece.decode(), ranks)): n for piece, n in Counter(split_text(SMALL)).items()}
    return words, list(ranks)


# %% tags=["nbval-ignore-output"]
def draw(merges):
    """Return the picture of SMALL after some merges, and its text."""
    (words, tokens), (_, later) = after(merges), after(merges + 1)
    counts = {(tokens[a], tokens[b]): n for (a, b), n in l1_ref.count_pairs(words).items()}
    shown = {tuple(tokens[i] for i in word): n for word, n in words.items()}
    chosen = next((pair for pair in counts if b"".join(pair) == later[-1]), None)
    alt = f"Five words in boxes after {merges} merges, and bars that count {len(counts)} pairs of neighbours."
    if chosen:
        alt += f" Next: {chosen[0].decode()!r} and {chosen[1].decode()!r}, which occur {counts[chosen]} times."
    return plots.merge_state(shown, counts, chosen, f"after {merges} merges"), alt


plots.explore(draw, merges=list(range(16)))

# %% [markdown]
# ## Exercise: `count_pairs`
#
# Write the right-hand side of the picture. `words` maps each word, a tuple of ids, to the number of times it occurs.
# Return a `Counter` that maps each pair `(left, right)` of neighbouring ids to its number of occurrences. (In a
# `Counter`, a dictionary, a missing key counts 0. So `counts[pair] += n` just works.)
#
# - A word that occurs six times adds six to each of its pairs.
# - Count every place: the word `(7, 7, 7)` holds the pair `(7, 7)` twice.
# - A word of one id, or of none, has no pairs. `words` stays as it was.


# %% tags=["exercise"] name="count_pairs" points=1 difficulty="easy" minutes=10
def count_pairs(words):
    """Count the neighbouring ids in a collection of words.

    Args:
        words: Maps each word, a tuple of ids, to the number of times it occurs.
    """
    counts = Counter()
    for word, n_occurrences in words.items():
        for pair in pairwise(word):
            counts[pair] += n_occurrences
    return counts


# %% tags=["check"]
checks.count_pairs(count_pairs)

# %% [markdown]
# ## Exercise: `merge_pair`
#
# Now the left-hand side. Return the word with each occurrence of `pair` replaced by `new_id`, as a tuple.
#
# Go from left to right. Where occurrences overlap, the left one is taken: with the pair `(7, 7)` and the new id 300 the
# word `(7, 7, 7)` becomes `(300, 7)`. So this pair counts twice in that word, and is joined once.


# %% tags=["exercise"] name="merge_pair" points=1 difficulty="easy" minutes=10
def merge_pair(word, pair, new_id):
    """Replace a pair of neighbouring ids by one id, from left to right.

    Args:
        word: A tuple of ids.
        pair: The two ids to join, a tuple.
        new_id: The id that stands for both.
    """
    merged, i = [], 0
    while i < len(word):
        found = word[i : i + 2] == pair
        merged.append(new_id if found else word[i])
        i += 2 if found else 1
    return tuple(merged)


# %% tags=["check"]
checks.merge_pair(merge_pair)

# %% [markdown]
# ## One word, merge by merge
#
# The course's tokenizer was made this way, from the tales. A token's id is also its *rank*, its place in the order in
# which tokens were learned. So its first 300 entries are exactly what training that stops at 300 tokens would give.
# Below, one word at growing vocabulary sizes V: a row for each merge that changes it, with the new token in orange.


# %% tags=["nbval-ignore-output"]
def cut(text, size=999):
    """Return the tokens of a text, as bytes, cut by the first tokens of the course's vocabulary."""
    ranks = {token: rank for token, rank in tokenizer.ranks.items() if rank < size}
    return [tokenizer.decode_bytes([i]) for i in l1_ref.encode(text, ranks)]


word, rows, marked = " whispered", {}, {}
for size in range(256, len(tokenizer.ranks) + 1):
    tokens = cut(word, size)
    if tokens not in rows.values():
        rows[f"V = {size}"] = tokens
        marked |= {f"V = {size}": tokens.index(list(tokenizer.ranks)[size - 1])} if size > 256 else {}
alt = f"Rows of boxes: {word!r} begins as {len(word)} bytes; after {len(rows) - 1} merges it is one token."
plots.show(plots.cuts(rows, marked=marked), alt=alt)

# %% [markdown]
# Merges build on merges. And some tokens are only steps on the way: who needs "ispered" once the whole word is there?
#
# ## Exercise: `train_bpe`
#
# Put the two together: learn a vocabulary from a text. Return *ranks*, a dictionary from the bytes of each token to its
# rank: the 256 single bytes, byte i with rank i, and then, from 256 on, one token for each merge.
#
# - `text` is one string, or a list of documents. No pair spans two documents. Cut each with `split_text`.
# - `vocab_size` counts the 256 bytes. It is at least 256.
# - **Stop early**, with fewer tokens, when no pair is left. While one is left, go on, even if it occurs only once.
# - **Ties.** In the picture of the five words, before the first merge, e + s and s + t both occur nine times. Any rule
#   will do, as long as it is fixed. Without one, two computers could learn different vocabularies, and a saved model
#   would read other tokens than it was trained on. Our rule: of equally frequent pairs take the lexicographically
#   greatest *pair of byte strings*. That is the order of a dictionary, by byte values, and the last one wins: s + t.
#   Python compares tuples of `bytes` so: left parts first, then right parts. Ids will not do, because id 300 is larger
#   than every byte, whatever it stands for.
#
# Use `l1_ref.count_pairs` and `l1_ref.merge_pair`, or your own.


# %% tags=["exercise"] name="train_bpe" points=2 difficulty="hard" minutes=25
def train_bpe(text, vocab_size):
    """Learn a byte-pair vocabulary: a dictionary from the bytes of each token to its rank.

    Args:
        text: One string, or a list of documents.
        vocab_size: Tokens to learn at most, the 256 single bytes included.
    """
    documents = [text] if isinstance(text, str) else text
    words = Counter(tuple(piece) for document in documents for piece in split_text(document))
    tokens = [bytes([i]) for i in range(256)]
    while len(tokens) < vocab_size and (counts := l1_ref.count_pairs(words)):
        pair = max(counts, key=lambda p: (counts[p], tokens[p[0]], tokens[p[1]]))
        words = {l1_ref.merge_pair(word, pair, len(tokens)): n for word, n in words.items()}
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
    return {token: rank for rank, token in enumerate(tokens)}


# %% tags=["check"]
checks.train_bpe(train_bpe)

# %% [markdown]
# We ask your code for 1,000 tokens from the small text. It should stop early, when each of the five words is one token.
# Of equals, the paper's program joins the one that it happens to meet first, "es". Ours joins "st". That is the tie: s
# comes after e, so (s, t) is the greater pair.

# %%
learned = list(train_bpe(SMALL, 1000))
print(len(learned), "tokens; the merges:", *learned[256:])

# %% [markdown]
# ## Exercise: `encode`
#
# The vocabulary stands, and a new text comes. Cut it into words, as in training, and do the merges again (Sennrich et
# al. 2016, section 3.2):
#
# 1. A word that is itself a token is that one id.
# 2. Any other word starts as single bytes. Look at all neighbours that join to a token of the vocabulary. Join the two
#    whose token has the **lowest rank**, the leftmost of equals. Repeat until no neighbours join.
#
# For a vocabulary from `train_bpe`, rule 2 alone gives the same ids. Rule 1 saves time, and vocabularies made elsewhere
# may need it. Taking the longest token that fits is another method, with other answers.
#
# Write `encode(text, ranks)`. Return all ids in one list of ints; the empty text gives an empty list. `ranks` holds all
# 256 bytes, but look up their ids too: vocabularies made elsewhere may number them otherwise. `<|endoftext|>` is how
# GPT-2 writes the end-of-text mark of notebook 00. Here it is thirteen characters of plain text.


# %% tags=["exercise"] name="encode" points=2 difficulty="hard" minutes=25
def encode(text, ranks):
    """Turn text into ids.

    Args:
        text: Any string.
        ranks: Maps the bytes of each token to its rank, which is also its id.
    """
    ids = []
    for word in split_text(text):
        parts = [word] if word in ranks else [bytes([byte]) for byte in word]
        while True:
            joined = [left + right for left, right in pairwise(parts)]
            options = [(ranks[token], i) for i, token in enumerate(joined) if token in ranks]
            if not options:
                break
            _, i = min(options)
            parts[i : i + 2] = [joined[i]]
        ids += [ranks[part] for part in parts]
    return ids


# %% tags=["check"]
checks.encode(encode)

# %% [markdown]
# Here is a paragraph of a tale at three vocabulary sizes. The colours only show where one token ends and the next
# begins. They mean nothing else.

# %% tags=["nbval-ignore-output"]
tale = tales[5].split("\n")[0]
panels, facts = {}, []
for size in (256, 400, 999):
    tokens = cut(tale, size)
    panels[f"V = {size}: {len(tokens)} tokens, {len(tale) / len(tokens):.2f} characters each"] = tokens
    facts.append(f"{len(tokens)} tokens at V = {size}")
alt = f"A paragraph of a tale, cut into coloured tokens: {', '.join(facts)}."
plots.show(plots.coloured_tokens(panels), alt=alt)

# %% [markdown]
# And other texts, with the same vocabulary. None is refused: what is strange falls into small parts, at worst into
# single bytes. A byte that is no character by itself is shown as its number.

# %% tags=["nbval-ignore-output"]
TEXTS = {
    "other English": "The committee approved the annual budget after a long discussion about taxes and harbours.",
    "German": "Über dem stillen Fluss lag früh am Morgen ein dünner Nebel, und die Mühle schlief.",
    "code": "for i in range(10):\n    total += weights[i] * values[i]  # 10 products",
    "a tale": tale,
}


def draw_text(text, V):
    """Return the picture of one text at one vocabulary size, and its text."""
    tokens = cut(TEXTS[text], V)
    fact = f"{len(tokens)} tokens, {len(TEXTS[text]) / len(tokens):.2f} characters each"
    return plots.coloured_tokens({f"{text}, V = {V}: {fact}": tokens}), f"Coloured tokens of {text} at V = {V}: {fact}."


plots.explore(draw_text, text=list(TEXTS), V=[999, 256, 300, 400, 600])

# %% [markdown]
# ### Predict before you run
#
# The course's tokenizer holds " moon", with its space, as one token. How many tokens are:
#
# 1. "moon" without the space?
# 2. " Moon", and " MOON"?
# 3. " 2024"?
# 4. the one character "😀"?
# 5. Do the ids of "moo", followed by those of "n", make the ids of "moon"?

# %%
for text in (" moon", "moon", " Moon", " MOON", " 2024", "😀"):
    tokens = cut(text)
    print(f"{text!r:8} {len(tokens)}  {tokens}")
print("'moo' and 'n':", cut("moo"), cut("n"), "  'moon':", cut("moon"))
print("the same ids: ", tokenizer.encode("moo") + tokenizer.encode("n") == tokenizer.encode("moon"))

# %% [markdown]
# <details><summary>Why?</summary>
#
# 1. Two. In the tales the moon always has a space in front. Merges know bytes, not meaning: " moon" and "moon" share no
#    token here.
# 2. Two, and four. The tales hold neither, and never two capitals side by side, so no capitals were joined. That all of
#    these mean the same a model must learn by itself.
# 3. Five: the space and each digit. The tales write their numbers as words.
# 4. Four, one for each byte. The tales hold no such character, and still it has ids.
# 5. No. "moo" is m and oo, then comes n. But in "moon" the neighbours oo and n are joined too. A text has
#    one right cut, and a model meets no other in training.
#
# </details>

# %% [markdown]
# ## Is a larger vocabulary better?
#
# We let training on the tales run until no pair is left. Then we measure how many characters a token holds, at each
# size, in tales that were kept out of training and in two of the texts above.

# %%
full = l1_ref.train_bpe(tales, 100_000)
print(f"{len(full):,} tokens, then no pair is left: each of the {len(words)} words is one token")

# %% tags=["nbval-ignore-output"]
sizes = [256, 280, 320, 360, *range(400, len(full), 100), len(full)]
samples = {
    "tales": "\n".join(l1_ref.load_tales("validation")[:50]),
    **{name: TEXTS[name] for name in ("other English", "German")},
}
lengths, used = {name: [] for name in samples}, []
for size in sizes:
    ranks = {token: rank for token, rank in full.items() if rank < size}
    for name, sample in samples.items():
        lengths[name].append(len(sample) / len(l1_ref.encode(sample, ranks)))
    used.append(len({i for word in words for i in l1_ref.encode(bytes(word).decode(), ranks) if i >= 256}))
learned = [size - 256 for size in sizes]
ends = ", ".join(f"{values[-1]:.1f} for {name}" for name, values in lengths.items())
alt = (
    f"Two line charts up to V = {sizes[-1]}. Left, characters per token rise, first fast and then slowly, to {ends}. "
    f"Right, of {learned[-1]} learned tokens {used[-1]} are left in the training text."
)
plots.show(plots.vocabulary_growth(sizes, lengths, learned, used), alt=alt)

# %% [markdown]
# Left: longer tokens make a text shorter, and a shorter text means fewer steps to compute. But the gain shrinks. Other
# English stops near 2 characters a token, German near 1.4, while the tales pass 4: most of the later merges make whole
# words of the tales. German even begins below 1, because ü has two bytes.
#
# Right: the grey area is tokens that were only steps on the way. The training text, once encoded, holds none of them.
# At the end the green line even falls a little: one new token can make two old ones useless. Yet each token costs the
# model a vector, C numbers (notebook 02). And a model cannot learn the meaning of a token that it never sees.
#
# So the size is a choice. GPT-2 took 50,257: the 256 bytes, 50,000 merges, and one token that stands between documents.
#
# ## From ids to examples
#
# That last token is the mark `<|endoftext|>`. It is not learned; its id comes after all others. Our tales are put into
# one long *stream* of ids, each tale behind such a mark.

# %%
ids = torch.tensor([i for tale in tales for i in (tokenizer.end_of_text, *tokenizer.encode(tale))])
print(f"{len(ids):,} ids; the mark has the id {tokenizer.end_of_text}; the stream begins {ids[:5].tolist()}")

# %% [markdown]
# A language model has one task: guess the next token. So no person needs to write down the right answers. Cut any
# window of T ids out of the stream and call it the input `x`. The target `y` is the window that begins one id later.


# %% tags=["nbval-ignore-output"]
def draw_window(start):
    """Return the picture of one window of the stream, and its text."""
    tokens = [tokenizer.decode_bytes([i]) for i in ids[start : start + 9].tolist()]
    x, y = tokens[:-1], tokens[1:]
    alt = f"Eight inputs from {x[0].decode()!r} on, the next token below each; the last target is {y[-1].decode()!r}."
    return plots.training_examples(x, y), alt + " Then eight examples: one input, two, three …, and the token to guess."


plots.explore(draw_window, start=[0, 1, 2, 3, 4, 40, 115])

# %% [markdown]
# One window, a row of T ids, holds T examples. At each position the model sees all tokens up to there, and guesses the
# next one. (In notebook 03 a mask keeps it from looking to the right.) A window may reach from one tale into the next,
# as at start 115. The mark between them tells the model.
#
# ## Exercise: `next_token_batch`
#
# A *batch* is B such rows side by side, each from a random place. Write `next_token_batch(ids, batch_size, context,
# generator=None)`, where B is `batch_size` and T is `context`. `ids` is a tensor with one axis, of any integer dtype.
#
# - Return `(x, y)`, both of shape `(B, T)`, dtype `torch.int64`, and contiguous, that is, laid out in memory without
#   gaps; `torch.stack` gives such tensors.
# - Draw the B starts with `torch.randint` and the given `generator`. `None` means torch's own. The same generator state
#   gives the same batch.
# - All starts from 0 to `len(ids) - context - 1` are equally likely, both ends included. The same start may come twice.
# - `ids` stays as it was.
#
# Remember: only here is `y` moved on by one. The loss in notebook 06 compares the scores at each place with
# `y` at the same place.


# %% tags=["exercise"] name="next_token_batch" points=1 difficulty="medium" minutes=15
def next_token_batch(ids, batch_size, context, generator=None):
    """Draw windows of a stream of ids, and the same windows moved on by one.

    Args:
        ids: The stream, a tensor with one axis, at least context + 1 long.
        batch_size: Windows to draw, B.
        context: Ids in a window, T.
        generator: Source of the random starts; None is torch's own.
    """
    starts = torch.randint(len(ids) - context, (batch_size,), generator=generator).tolist()
    x = torch.stack([ids[start : start + context] for start in starts])
    y = torch.stack([ids[start + 1 : start + context + 1] for start in starts])
    return x.long(), y.long()


# %% tags=["check"]
checks.next_token_batch(next_token_batch)

# %%
x, y = next_token_batch(ids, batch_size=4, context=16, generator=torch.Generator().manual_seed(0))
print("x:", tuple(x.shape), " y:", tuple(y.shape), f" training examples: {y.numel()}")
print("y is x moved on by one:", torch.equal(x[:, 1:], y[:, :-1]))

# %% [markdown]
# ## Bug hunt: the way back
#
# `decode` turns ids into text. Somebody wrote the version below, and tried it on all the tales.


# %%
def broken(ids, ranks):
    """Turn ids into text."""
    tokens = {rank: token for token, rank in ranks.items()}
    return "".join(tokens[i].decode("utf-8", errors="replace") for i in ids)


ranks = tokenizer.ranks
print("all the tales come back:", all(broken(tokenizer.encode(each), ranks) == each for each in tales))
print("and café 😀:", broken(tokenizer.encode("café 😀"), ranks))

# %% [markdown]
# Then a reader typed "café 😀". The sign � is U+FFFD, which stands for bytes that are not UTF-8. `errors="replace"`
# asks for it, in place of an exception. Here are the characters, and their tokens:

# %% tags=["nbval-ignore-output"]
text = "café 😀"
rows = {"characters": [c.encode() for c in text], "tokens": cut(text)}
alt = f"Two rows: {len(text)} characters above {len(rows['tokens'])} tokens; é is cut into two, the face into four."
plots.show(plots.cuts(rows), alt=alt)

# %% [markdown]
# What did the version above do to the token 195? Why did no tale show it? Say in one sentence what is wrong, then write
# the mended version. It takes a list of ids and the ranks, in any order, and returns a string. Text that went through
# `encode` must come back as it was. Ids whose bytes are not UTF-8, even together, must still give U+FFFD and not an
# exception: a model may write anything.


# %% tags=["exercise"] name="decode" points=1 difficulty="easy" minutes=5
def decode(ids, ranks):
    """Turn ids into text; bytes that are not UTF-8 become U+FFFD.

    Args:
        ids: A list of ids.
        ranks: Maps the bytes of each token to its rank, which is also its id.
    """
    tokens = {rank: token for token, rank in ranks.items()}
    return b"".join(tokens[i] for i in ids).decode("utf-8", errors="replace")


# %% tags=["check"]
checks.decode(decode)

# %%
print(decode(tokenizer.encode("café 😀"), tokenizer.ranks))
print(decode(tokenizer.encode("café 😀")[:-1], tokenizer.ranks), "(the last id is missing)")

# %% [markdown]
# <details><summary>Why?</summary>
#
# The token 195 is the first half of é. Alone it is no UTF-8, so it became U+FFFD, and so did the other half. The tales
# hold only characters of one byte, so there every token is whole characters. A test on plain English would not have
# found this.
#
# </details>
#
# ## Yours beside ours
#
# The course's tokenizer has 1,000 ids: 256 bytes, 743 merges, and the mark. Does your `train_bpe` find the same merges?

# %% tags=["nbval-ignore-output"]
start = time.perf_counter()
mine = train_bpe(tales, 999)
print(f"the same vocabulary: {mine == tokenizer.ranks}   ({time.perf_counter() - start:.1f} s)")

# %% [markdown]
# The reference gives the same answer without counting all pairs again after each merge: it only corrects the counts
# around the places that were joined. For real text, with many more different words, that makes the difference.
#
# In use, the ranks go to `tiktoken`, a fast tokenizer library by the makers of GPT-2. `tokenizer.encoding` is one of
# its `Encoding` objects. Your `encode` should give the same ids.

# %%
text = "\n".join(l1_ref.load_tales("validation")[:20]) + "Über 2024 maps!!  <|endoftext|> 😀"
print("encode agrees with tiktoken:", encode(text, tokenizer.ranks) == tokenizer.encoding.encode_ordinary(text))
print("decode gives the text back: ", decode(tokenizer.encoding.encode_ordinary(text), tokenizer.ranks) == text)

# %% [markdown]
# ## What you have now
#
# | idea | in the reference |
# |---|---|
# | the pattern that cuts a text first | `l1_ref.bpe.split_text`, in `l1_ref/bpe.py` |
# | counting and joining pairs | `l1_ref.count_pairs` and `l1_ref.merge_pair`, in `l1_ref/bpe.py` |
# | learning a vocabulary, fast | `l1_ref.train_bpe`, in `l1_ref/bpe.py` |
# | text to ids | `l1_ref.encode`, in `l1_ref/bpe.py` |
# | a tokenizer served by tiktoken, with `decode` | `l1_ref.BPETokenizer`, in `l1_ref/tokenizer.py` |
# | text that appears token by token, whole characters only | `l1_ref.tokenizer.stream_text`, in `l1_ref/tokenizer.py` |
# | training batches | `l1_ref.next_token_batch`, in `l1_ref/data.py` |
#
# - 256 bytes can write every text. Merges of frequent pairs make it short.
# - Encoding does the merges again, lowest rank first.
# - Tokens are bytes, not characters: join first, then decode.
# - A row of T ids, with targets moved on by one, holds T training examples.
#
# An id is only a name: id 511 is no more than id 510. Next is 02, embeddings: each id becomes a vector, in which the
# model can write down what it learns about the token.

# %%
checks.progress()
