"""The checks of 01_tokens: mistakes in other words than the catalogue's, right answers in many styles, stubs."""

import codecs
import contextlib
import random
import re
from collections import Counter, defaultdict, deque, namedtuple
from functools import cache
from itertools import chain, pairwise, zip_longest

import numpy as np
import pytest
import regex
import tiktoken
import torch

from l1_ref import checks
from l1_ref.checks import texts
from l1_ref.tokenizer import GPT2_SPLIT_PATTERN
from tests.check_cases import (
    SEEDS,
    assert_accepted,
    assert_all_told,
    assert_named_first,
    assert_rejected,
    assert_same_on_two_threads,
    cases,
)

EXERCISES = ("count_pairs", "merge_pair", "train_bpe", "encode", "next_token_batch", "decode")
# How many seeds are tried: chance builds one probe of the first two, each of the third, and none of the others.
N_SEEDS = {"train_bpe": 2, "encode": 2, "next_token_batch": 6}


# count_pairs: wrong


def unweighted(words):
    return Counter(pair for word in words for pair in pairwise(word))


def no_overlap(words):
    counts = Counter()
    for word, n in words.items():
        i, previous = 0, None
        while i < len(word) - 1:
            pair = (word[i], word[i + 1])
            counts[pair] += 0 if pair == previous else n
            previous = None if pair == previous else pair
            i += 1
    return counts


def once_a_word(words):
    counts = defaultdict(int)
    for word, n in words.items():
        for pair in set(pairwise(word)):
            counts[pair] += n
    return dict(counts)


def ordered_pairs(words):
    counts = Counter()
    for word, n in words.items():
        for a, b in pairwise(word):
            counts[min(a, b), max(a, b)] += n
    return counts


def reversed_pairs(words):
    counts = Counter()
    for word, n in words.items():
        for i in range(1, len(word)):
            counts[word[i], word[i - 1]] += n
    return counts


def one_pair_short(words):
    counts = Counter()
    for word, n in words.items():
        for i in range(len(word) - 2):
            counts[word[i], word[i + 1]] += n
    return counts


def from_the_second(words):
    counts = Counter()
    for word, n in words.items():
        for i in range(1, len(word) - 1):
            counts[word[i], word[i + 1]] += n
    return counts


def with_the_id_before(words):
    counts = Counter()
    for word, n in words.items():
        for i in range(len(word)):
            counts[word[i - 1], word[i]] += n
    return counts


def two_by_two(words):
    counts = {}
    for word, n in words.items():
        for i in range(0, len(word) - 1, 2):
            counts[word[i : i + 2]] = counts.get(word[i : i + 2], 0) + n
    return counts


def every_two(words):
    counts = Counter()
    for word, n in words.items():
        for i in range(len(word)):
            for j in range(i + 1, len(word)):
                counts[word[i], word[j]] += n
    return counts


def ids_only(words):
    counts = Counter()
    for word, n in words.items():
        for one in word:
            counts[one] += n
    return counts


def one_long_stream(words):
    stream = [i for word in words.elements() for i in word]
    return Counter(pairwise(stream))


def set_not_added(words):
    return {(a, b): n for word, n in words.items() for a, b in pairwise(word)}


def taken_out(words):
    counts = Counter()
    while words:
        word, n = words.popitem()
        for pair in pairwise(word):
            counts[pair] += n
    return counts


def pairs_alone(words):
    return {(a, b) for word in words for a, b in pairwise(word)}


def most_common_list(words):
    return count_by_update(words).most_common()


# count_pairs: right


def count_by_update(words):
    counts = Counter()
    for word, n in words.items():
        counts.update({pair: n * k for pair, k in Counter(pairwise(word)).items()})
    return counts


def count_by_loops(words):
    counts = {}
    for word in words:
        for i in range(len(word) - 1):
            counts.setdefault((word[i], word[i + 1]), 0)
            counts[(word[i], word[i + 1])] += words[word]
    return counts


def count_by_defaultdict(words):
    counts = defaultdict(int)
    for word, n in words.items():
        for a, b in pairwise(word):
            counts[a, b] += n
    return counts


def count_every_element(words):
    return Counter(pair for word in Counter(words).elements() for pair in pairwise(word))


def count_by_sum(words):
    return sum((Counter({w[i : i + 2]: n}) for w, n in words.items() for i in range(len(w) - 1)), Counter())


def count_with_zeros(words):
    counts = count_by_update(words)
    counts[-1, -1] += 0
    return counts


# merge_pair: wrong


def as_list(word, pair, new_id):
    return list(merge_by_loop(word, pair, new_id))


def first_place_only(word, pair, new_id):
    for i in range(len(word) - 1):
        if word[i : i + 2] == pair:
            return (*word[:i], new_id, *word[i + 2 :])
    return word


def from_the_right(word, pair, new_id):
    out, i = [], len(word) - 1
    while i >= 0:
        hit = i > 0 and (word[i - 1], word[i]) == pair
        out.insert(0, new_id if hit else word[i])
        i -= 2 if hit else 1
    return tuple(out)


def vectorised(word, pair, new_id):
    x = torch.tensor(word, dtype=torch.long)
    hit = (x[:-1] == pair[0]) & (x[1:] == pair[1])
    x[:-1][hit] = new_id
    keep = torch.ones(len(x), dtype=torch.bool)
    keep[1:][hit] = False
    return tuple(x[keep].tolist())


def left_id_only(word, pair, new_id):
    out, i = [], 0
    while i < len(word):
        out.append(new_id if word[i] == pair[0] else word[i])
        i += 2 if word[i] == pair[0] else 1
    return tuple(out)


def right_id_only(word, pair, new_id):
    out, i = [], 0
    while i < len(word):
        if i + 1 < len(word) and word[i + 1] == pair[1]:
            out.append(new_id)
            i += 1
        else:
            out.append(word[i])
        i += 1
    return tuple(out)


def either_order(word, pair, new_id):
    out, i = [], 0
    while i < len(word):
        if word[i : i + 2] in (pair, pair[::-1]):
            out.append(new_id)
            i += 2
        else:
            out.append(word[i])
            i += 1
    return tuple(out)


def any_member(word, pair, new_id):
    out = []
    for one in word:
        out.append(new_id if one == pair[0] or one == pair[1] else one)
    return tuple(out)


def no_last(word, pair, new_id):
    out, i = [], 0
    while i + 1 < len(word):
        if word[i] == pair[0] and word[i + 1] == pair[1]:
            out.append(new_id)
            i += 1
        else:
            out.append(word[i])
        i += 1
    return tuple(out)


def last_twice(word, pair, new_id):
    return no_last(word, pair, new_id) + ((word[-1],) if word else ())


def not_at_the_end(word, pair, new_id):
    out, i = [], 0
    while i < len(word):
        if i < len(word) - 2 and word[i] == pair[0] and word[i + 1] == pair[1]:
            out.append(new_id)
            i += 2
        else:
            out.append(word[i])
            i += 1
    return tuple(out)


def beyond_the_end(word, pair, new_id):
    out, i = [], 0
    while i < len(word):
        if word[i] == pair[0] and word[i + 1] == pair[1]:
            out.append(new_id)
            i += 2
        else:
            out.append(word[i])
            i += 1
    return tuple(out)


def always_beyond_the_end(word, pair, new_id):
    out, i = [], 0
    while i < len(word):
        left, right = word[i], word[i + 1]
        out.append(new_id if (left, right) == pair else left)
        i += 2 if (left, right) == pair else 1
    return tuple(out)


def one_step(word, pair, new_id):
    return tuple(new_id if word[i : i + 2] == pair else word[i] for i in range(len(word)))


def three_steps(word, pair, new_id):
    out, skip = [], 0
    for i in range(len(word)):
        if skip:
            skip -= 1
        elif word[i : i + 2] == pair:
            out.append(new_id)
            skip = 2
        else:
            out.append(word[i])
    return tuple(out)


def inserted(word, pair, new_id):
    out = []
    for i, one in enumerate(word):
        out.append(one)
        if i and (word[i - 1], one) == pair:
            out.append(new_id)
    return tuple(out)


def removed(word, pair, new_id):
    out = list(merge_by_loop(word, pair, "gone"))
    while "gone" in out:
        out.remove("gone")
    return tuple(out)


def by_string(word, pair, new_id):
    text = " ".join(str(i) for i in word).replace(f"{pair[0]} {pair[1]}", str(new_id))
    return tuple(map(int, text.split()))


def by_bytes(word, pair, new_id):
    return tuple(bytearray(word).replace(bytearray(pair), bytearray([new_id])))


def nothing_built(word, pair, new_id):
    merge_by_loop(word, pair, new_id)
    return word


# merge_pair: right


def merge_by_loop(word, pair, new_id):
    out, i = [], 0
    while i < len(word):
        if i + 1 < len(word) and word[i] == pair[0] and word[i + 1] == pair[1]:
            out.append(new_id)
            i += 2
        else:
            out.append(word[i])
            i += 1
    return tuple(out)


def merge_by_stack(word, pair, new_id):
    out, free = [], True
    for one in word:
        if out and free and (out[-1], one) == pair:
            out[-1], free = new_id, False
        else:
            out.append(one)
            free = True
    return tuple(out)


def merge_recursively(word, pair, new_id):
    for i in range(len(word) - 1):
        if word[i : i + 2] == pair:
            return (*word[:i], new_id, *merge_recursively(word[i + 2 :], pair, new_id))
    return word


def merge_with_skip(word, pair, new_id):
    merged = ()
    skip = False
    for a, b in zip_longest(word, word[1:]):
        if skip:
            skip = False
            continue
        skip = (a, b) == tuple(pair)
        merged += (new_id if skip else a,)
    return merged


def merge_by_deletion(word, pair, new_id):
    ids, i = list(word), 0
    while i < len(ids) - 1:
        if (ids[i], ids[i + 1]) == pair:
            ids[i] = new_id
            del ids[i + 1]
        i += 1
    return tuple(ids)


def merge_by_queue(word, pair, new_id):
    rest, out = deque(word), []
    while rest:
        one = rest.popleft()
        if rest and (one, rest[0]) == pair:
            rest.popleft()
            one = new_id
        out.append(one)
    return tuple(out)


def merge_by_regex(word, pair, new_id):
    text = "".join(map(chr, word))
    return tuple(map(ord, re.sub("".join(re.escape(chr(i)) for i in pair), lambda m: chr(new_id), text)))


# train_bpe: one naive trainer, whose parts the wrong answers replace


def greatest(counts, tokens):
    return max(counts, key=lambda p: (counts[p], tokens[p[0]], tokens[p[1]]))


def gpt2_pieces(text):
    return regex.findall(GPT2_SPLIT_PATTERN, text)


def naive(
    text, vocab_size, pieces=gpt2_pieces, choose=greatest, tally=Counter, merges=None, stats=count_by_loops, done=None
):
    documents = [text] if isinstance(text, str) else text
    words = tally(tuple(piece.encode("utf-8")) for document in documents for piece in pieces(document))
    words = dict(words) if isinstance(words, dict) else dict.fromkeys(words, 1)
    tokens = [bytes([i]) for i in range(256)]
    for new_id in range(256, vocab_size if merges is None else merges(vocab_size)):
        counts = stats(words)
        if not counts or (done and done(counts)):
            break
        pair = choose(counts, tokens)
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        words = {merge_by_loop(word, pair, new_id): n for word, n in words.items()}
    return dict(zip(tokens, range(len(tokens)), strict=True))


def tie_to_smallest(text, vocab_size):
    return naive(text, vocab_size, choose=lambda c, t: min(c, key=lambda p: (-c[p], t[p[0]], t[p[1]])))


def tie_to_smallest_ids(text, vocab_size):
    return naive(text, vocab_size, choose=lambda c, t: sorted(c, key=lambda p: (-c[p], p))[0])


def tie_to_first(text, vocab_size):
    return naive(text, vocab_size, choose=lambda c, t: Counter(c).most_common(1)[0][0])


def tie_to_last(text, vocab_size):
    def choose(counts, tokens):
        best = None
        for pair, n in counts.items():
            if best is None or n >= counts[best]:
                best = pair
        return best

    return naive(text, vocab_size, choose=choose)


def tie_by_ids(text, vocab_size):
    return naive(text, vocab_size, choose=lambda c, t: max(c.items(), key=lambda item: (item[1], item[0]))[0])


def tie_by_joined(text, vocab_size):
    return naive(text, vocab_size, choose=lambda c, t: max(c, key=lambda p: (c[p], t[p[0]] + t[p[1]])))


def whole_text(text, vocab_size):
    return naive(text, vocab_size, pieces=lambda document: [document])


def white_space_lost(text, vocab_size):
    return naive(text, vocab_size, pieces=str.split)


def words_and_signs(text, vocab_size):
    return naive(text, vocab_size, pieces=lambda document: re.findall(r"\w+|[^\w\s]+", document))


def spaces_alone(text, vocab_size):
    return naive(text, vocab_size, pieces=lambda document: re.split(r"(\s+)", document))


def space_before_each(text, vocab_size):
    return naive(text, vocab_size, pieces=lambda document: [f" {word}" for word in document.split()])


def letters_of_ascii_only(text, vocab_size):
    pattern = GPT2_SPLIT_PATTERN.replace(r"\p{L}", "a-zA-Z").replace(r"\p{N}", "0-9")
    pattern = pattern.replace("| ?a-zA-Z+| ?0-9+", "| ?[a-zA-Z]+| ?[0-9]+")
    return naive(text, vocab_size, pieces=lambda document: re.findall(pattern, document))


def by_characters(text, vocab_size):
    documents = [text] if isinstance(text, str) else text
    words = Counter(tuple(piece) for document in documents for piece in gpt2_pieces(document))
    ranks = {bytes([i]): i for i in range(256)}
    while len(ranks) < vocab_size:
        counts = Counter()
        for word, n in words.items():
            for pair in pairwise(word):
                counts[pair] += n
        if not counts:
            break
        pair = max(counts, key=lambda p: (counts[p], p[0].encode(), p[1].encode()))
        words = Counter({merge_by_loop(word, pair, "".join(pair)): n for word, n in words.items()})
        ranks["".join(pair).encode()] = len(ranks)
    return ranks


def ascii_only(text, vocab_size):
    documents = [text] if isinstance(text, str) else text
    pieces = [p.encode("ascii", errors="ignore").decode() for d in documents for p in gpt2_pieces(d)]
    return naive("", vocab_size, pieces=lambda _: pieces)


def as_many_merges(text, vocab_size):
    return naive(text, vocab_size, merges=lambda n: 256 + n)


def one_more(text, vocab_size):
    return naive(text, vocab_size, merges=lambda n: n + 1)


def one_fewer(text, vocab_size):
    return naive(text, vocab_size, merges=lambda n: n - 1)


def no_bytes(text, vocab_size):
    return {token: rank for token, rank in naive(text, vocab_size).items() if rank >= 256}


def bytes_of_the_text(text, vocab_size):
    data = text if isinstance(text, str) else "".join(text)
    alphabet = sorted({bytes([b]) for b in data.encode()})
    tokens = alphabet + list(naive(text, 256 + vocab_size - len(alphabet)))[256:]
    return {token: rank for rank, token in enumerate(tokens)}


def ranks_from_zero(text, vocab_size):
    return {token: rank if rank < 256 else rank - 256 for token, rank in naive(text, vocab_size).items()}


def upside_down(text, vocab_size):
    return {rank: token for token, rank in naive(text, vocab_size).items()}


def the_merges(text, vocab_size):
    merges = {}
    naive(text, vocab_size, choose=lambda c, t: merges.setdefault(p := greatest(c, t), len(t)) and p)
    return merges


def list_of_tokens(text, vocab_size):
    return list(naive(text, vocab_size))


def keys_of_text(text, vocab_size):
    return {token.decode("utf-8", errors="replace"): rank for token, rank in naive(text, vocab_size).items()}


def set_of_words(text, vocab_size):
    return naive(text, vocab_size, tally=lambda pieces: list(dict.fromkeys(pieces)))


def overlap_once(text, vocab_size):
    return naive(text, vocab_size, stats=no_overlap)


def runs_dry(text, vocab_size):
    return naive(text, vocab_size, stats=lambda words: count_by_update(words) or {max(count_by_update(words)): 1})


def twice_at_least(text, vocab_size):
    return naive(text, vocab_size, done=lambda counts: max(counts.values()) <= 1)


def counted_only_once(text, vocab_size):
    documents = [text] if isinstance(text, str) else text
    counts = count_by_update(Counter(tuple(p.encode()) for d in documents for p in gpt2_pieces(d)))
    ranks = {bytes([i]): i for i in range(256)}
    for pair in sorted(counts, key=lambda p: (-counts[p], -p[0], -p[1])):
        if len(ranks) < vocab_size:
            ranks[bytes(pair)] = len(ranks)
    return ranks


def never_merged(text, vocab_size):
    documents = [text] if isinstance(text, str) else text
    counts = count_by_update(Counter(tuple(p.encode()) for d in documents for p in gpt2_pieces(d)))
    ranks = {bytes([i]): i for i in range(256)}
    for new_id in range(256, vocab_size if counts else 0):
        ranks[bytes(greatest(counts, [bytes([i]) for i in range(256)]))] = new_id
    return ranks


def joined_documents(text, vocab_size):
    return naive("".join(text), vocab_size)


def documents_joined_by_lines(text, vocab_size):
    return naive(text if isinstance(text, str) else "\n".join(text), vocab_size)


def as_str(text, vocab_size):
    return naive(str(text), vocab_size)


def first_document(text, vocab_size):
    return naive(text if isinstance(text, str) else text[0], vocab_size)


def always_documents(text, vocab_size):
    words = Counter(tuple(piece.encode()) for document in text for piece in gpt2_pieces(document))
    return naive("", vocab_size, tally=lambda _: words)


def strings_only(text, vocab_size):
    return naive([text], vocab_size)


# train_bpe: right


def naive_on_a_list_of_pieces(text, vocab_size):
    """Keep every piece as a list of byte strings, without counts or ids."""
    documents = [text] if isinstance(text, str) else list(text)
    pieces = [
        [bytes([b]) for b in m.group().encode()] for d in documents for m in regex.finditer(GPT2_SPLIT_PATTERN, d)
    ]
    ranks = {bytes([i]): i for i in range(256)}
    while len(ranks) < vocab_size:
        counts = Counter(pair for piece in pieces for pair in pairwise(piece))
        if not counts:
            return ranks
        top = max(counts.values())
        best = max(pair for pair, n in counts.items() if n == top)
        ranks[best[0] + best[1]] = len(ranks)
        pieces = [list(merge_by_stack(piece, best, b"".join(best))) for piece in pieces]
    return ranks


def naive_with_updates(text, vocab_size):
    """Correct the counts at the words that changed only."""
    documents = (text,) if isinstance(text, str) else tuple(text)
    words = Counter(tuple(p.encode()) for d in documents for p in gpt2_pieces(d))
    vocabulary = {i: bytes([i]) for i in range(256)}
    counts = count_by_update(words)
    for new_id in range(256, vocab_size):
        counts = +counts
        if not counts:
            break
        pair = max(counts, key=lambda p: (counts[p], (vocabulary[p[0]], vocabulary[p[1]])))
        vocabulary[new_id] = vocabulary[pair[0]] + vocabulary[pair[1]]
        for word in [word for word in words if pair in pairwise(word)]:
            n, new = words.pop(word), merge_by_queue(word, pair, new_id)
            counts.subtract(count_by_update({word: n}))
            counts.update(count_by_update({new: n}))
            words[new] += n
    return {token: rank for rank, token in vocabulary.items()}


def by_our_own_exercises(text, vocab_size):
    return naive(text, vocab_size, stats=checks.give("count_pairs"))


def in_another_order(text, vocab_size):
    return dict(reversed(naive_with_updates(text, vocab_size).items()))


# encode: wrong


def pieces_of(text):
    return [piece.encode("utf-8") for piece in gpt2_pieces(text)]


def join_all(text, ranks, pick, pieces=pieces_of):
    ids = []
    for piece in pieces(text):
        parts = [piece[i : i + 1] for i in range(len(piece))]
        while True:
            places = [i for i in range(len(parts) - 1) if parts[i] + parts[i + 1] in ranks]
            if not places:
                break
            i = pick(places, lambda i, p=parts: ranks[p[i] + p[i + 1]])
            parts = [*parts[:i], parts[i] + parts[i + 1], *parts[i + 2 :]]
        ids.extend(ranks[part] for part in parts)
    return ids


def lowest(places, rank_at):
    return min(places, key=rank_at)


def longest_match(text, ranks):
    ids = []
    for piece in pieces_of(text):
        i = 0
        while i < len(piece):
            j = len(piece)
            while piece[i:j] not in ranks:
                j -= 1
            ids.append(ranks[piece[i:j]])
            i = j
    return ids


def longest_match_unsplit(text, ranks):
    data, ids = text.encode(), []
    while data:
        token = max((t for t in ranks if data.startswith(t)), key=len)
        ids.append(ranks[token])
        data = data[len(token) :]
    return ids


def left_to_right(text, ranks):
    return join_all(text, ranks, lambda places, rank_at: places[0])


def right_to_left(text, ranks):
    return join_all(text, ranks, lambda places, rank_at: places[-1])


def highest_first(text, ranks):
    return join_all(text, ranks, lambda places, rank_at: max(places, key=rank_at))


def last_of_equals(text, ranks):
    return join_all(text, ranks, lambda places, rank_at: min(reversed(places), key=rank_at))


def all_overlaps(text, ranks):
    token_of = {rank: token for token, rank in ranks.items()}
    ids = []
    for piece in pieces_of(text):
        word = tuple(ranks[bytes([b])] for b in piece)
        while len(word) > 1:
            found = {ranks[joined]: p for p in pairwise(word) if (joined := token_of[p[0]] + token_of[p[1]]) in ranks}
            if not found:
                break
            word = vectorised(word, found[min(found)], min(found))
        ids += word
    return ids


def one_merge(text, ranks):
    ids = []
    for piece in pieces_of(text):
        parts = [bytes([b]) for b in piece]
        places = [i for i in range(len(parts) - 1) if parts[i] + parts[i + 1] in ranks]
        if places:
            i = min(places, key=lambda i: ranks[parts[i] + parts[i + 1]])
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [ranks[part] for part in parts]
    return ids


def bytes_only_joined(text, ranks):
    ids = []
    for piece in pieces_of(text):
        i = 0
        while i < len(piece):
            two = piece[i : i + 2]
            width = 2 if len(two) == 2 and two in ranks else 1
            ids.append(ranks[piece[i : i + width]])
            i += width
    return ids


def only_bytes(text, ranks):
    return [ranks[bytes([b])] for b in text.encode()]


def whole_words_or_bytes(text, ranks):
    ids = []
    for piece in pieces_of(text):
        ids += [ranks[piece]] if piece in ranks else [ranks[bytes([b])] for b in piece]
    return ids


def unsplit(text, ranks):
    return join_all(text, ranks, lowest, pieces=lambda text: [text.encode()])


def spaces_lost(text, ranks):
    return join_all(text, ranks, lowest, pieces=lambda text: [word.encode() for word in text.split()])


def other_split(text, ranks):
    return join_all(text, ranks, lowest, pieces=lambda text: [p.encode() for p in re.split(r"(\s+)", text)])


def ordinals(text, ranks):
    ids = []
    for piece in gpt2_pieces(text):
        parts = list(piece)
        while places := [i for i in range(len(parts) - 1) if (parts[i] + parts[i + 1]).encode() in ranks]:
            i = min(places, key=lambda i: ranks[(parts[i] + parts[i + 1]).encode()])
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [ranks.get(part.encode(), ord(part[0])) for part in parts]
    return ids


def characters_must_be_known(text, ranks):
    ids = []
    for piece in gpt2_pieces(text):
        parts = [character.encode() for character in piece]
        while places := [i for i in range(len(parts) - 1) if parts[i] + parts[i + 1] in ranks]:
            i = min(places, key=lambda i: ranks[parts[i] + parts[i + 1]])
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [ranks[part] for part in parts]
    return ids


def ascii_kept(text, ranks):
    return join_all("".join(c for c in text if c.isascii()), ranks, lowest)


def byte_is_id(text, ranks):
    token_of = {rank: token for token, rank in ranks.items() if len(token) > 1}
    ids = []
    for piece in pieces_of(text):
        for i in join_all(piece.decode(), ranks, lowest):
            ids += [i] if i in token_of else [next(t for t, r in ranks.items() if r == i)[0]]
    return ids


def each_word_once(text, ranks):
    return [i for piece in Counter(gpt2_pieces(text)) for i in join_all(piece, ranks, lowest)]


def tokens_of_text(text, ranks):
    token_of = {rank: token for token, rank in ranks.items()}
    return [token_of[i] for i in join_all(text, ranks, lowest)]


def nested(text, ranks):
    ids = []
    for piece in gpt2_pieces(text):
        ids.append(join_all(piece, ranks, lowest))
    return ids


def returned_too_early(text, ranks):
    for piece in gpt2_pieces(text):
        return join_all(piece, ranks, lowest)
    return []


def only_the_last(text, ranks):
    ids = []
    for piece in gpt2_pieces(text):
        ids = join_all(piece, ranks, lowest)
    return ids


def special_token(text, ranks):
    ids = []
    for i, part in enumerate(re.split(r"<\|endoftext\|>", text)):
        ids += [max(ranks.values()) + 1] * (i > 0) + join_all(part, ranks, lowest)
    return ids


def stripped(text, ranks):
    return join_all(text.strip(), ranks, lowest)


def lowered(text, ranks):
    return join_all(text.lower(), ranks, lowest)


# encode: right


def encode_plainly(text, ranks):
    return join_all(text, ranks, lowest)


def encode_rank_by_rank(text, ranks):
    """Apply each merge of the training once, in the order in which it was learned."""
    merges = {}
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            earlier = {t: r for t, r in ranks.items() if len(t) == 1 or r < rank}
            a, b = join_all_bytes(token, earlier)
            merges[a, b] = rank
    ids = []
    for piece in pieces_of(text):
        word = tuple(ranks[bytes([b])] for b in piece)
        for pair, rank in merges.items():
            word = merge_by_loop(word, pair, rank)
        ids += word
    return ids


def join_all_bytes(data, ranks):
    return join_all("?", ranks, lowest, pieces=lambda _: [data])


def encode_by_pairs(text, ranks):
    """All places of the lowest pair at once, over ids, with the exercise before this one."""
    token_of = {rank: token for token, rank in ranks.items()}
    ids = []
    for piece in pieces_of(text):
        word = tuple(ranks[bytes([b])] for b in piece)
        while True:
            pairs = set(pairwise(word))
            best = min(pairs, key=lambda p: ranks.get(token_of[p[0]] + token_of[p[1]], float("inf")), default=None)
            if best is None or token_of[best[0]] + token_of[best[1]] not in ranks:
                break
            word = merge_by_stack(word, best, ranks[token_of[best[0]] + token_of[best[1]]])
        ids.extend(word)
    return ids


@cache
def tiktokens(ranks):
    return tiktoken.Encoding("test", pat_str=GPT2_SPLIT_PATTERN, mergeable_ranks=dict(ranks), special_tokens={})


def encode_by_tiktoken(text, ranks):
    return tiktokens(frozenset(ranks.items())).encode_ordinary(text)


def encode_with_a_shortcut(text, ranks):
    known = {}
    for piece in gpt2_pieces(text):
        if piece not in known:
            known[piece] = [ranks[piece.encode()]] if piece.encode() in ranks else join_all(piece, ranks, lowest)
    return list(chain.from_iterable(known[piece] for piece in gpt2_pieces(text)))


# next_token_batch: wrong


def starts_of(ids, batch_size, context, generator):
    return torch.randint(0, len(ids) - context, (batch_size,), generator=generator)


def windows(ids, starts, context):
    return torch.stack([ids[s : s + context].long() for s in starts])


def copied_targets(ids, batch_size, context, generator=None):
    s = starts_of(ids, batch_size, context, generator)
    return windows(ids, s, context), windows(ids, s, context)


def skipping_targets(ids, batch_size, context, generator=None):
    s = torch.randint(len(ids) - context - 1, (batch_size,), generator=generator)
    return windows(ids, s, context), windows(ids, s + 2, context)


def targets_before(ids, batch_size, context, generator=None):
    s = starts_of(ids, batch_size, context, generator)
    return windows(ids, s + 1, context), windows(ids, s, context)


def rolled_targets(ids, batch_size, context, generator=None):
    x = windows(ids, starts_of(ids, batch_size, context, generator), context)
    return x, torch.roll(x, shifts=-1, dims=1)


def zero_at_the_end(ids, batch_size, context, generator=None):
    x = windows(ids, starts_of(ids, batch_size, context, generator), context)
    return x, torch.nn.functional.pad(x[:, 1:], (0, 1))


def one_target_a_row(ids, batch_size, context, generator=None):
    s = starts_of(ids, batch_size, context, generator)
    return windows(ids, s, context), ids[s + context].long()


def short_rows(ids, batch_size, context, generator=None):
    w = windows(ids, starts_of(ids, batch_size, context, generator), context)
    return w[:, :-1].contiguous(), w[:, 1:].contiguous()


def long_rows(ids, batch_size, context, generator=None):
    s = torch.randint(len(ids) - context - 1, (batch_size,), generator=generator)
    return windows(ids, s, context + 1), windows(ids, s + 1, context + 1)


def plus_one(ids, batch_size, context, generator=None):
    x = windows(ids, starts_of(ids, batch_size, context, generator), context)
    return x, x + 1


def only_places(ids, batch_size, context, generator=None):
    x = starts_of(ids, batch_size, context, generator)[:, None] + torch.arange(context)
    return x, x + 1


def two_draws(ids, batch_size, context, generator=None):
    x, y = (windows(ids, starts_of(ids, batch_size, context, generator) + shift, context) for shift in (0, 1))
    return x, y


def time_first(ids, batch_size, context, generator=None):
    s = starts_of(ids, batch_size, context, generator)
    columns = [torch.stack([ids[i + o : i + o + context] for i in s.tolist()], dim=1).long() for o in (0, 1)]
    return tuple(columns)


def as_they_come(ids, batch_size, context, generator=None):
    s = starts_of(ids, batch_size, context, generator)
    return torch.stack([ids[i : i + context] for i in s]), torch.stack([ids[i + 1 : i + 1 + context] for i in s])


def sliced_windows(ids, batch_size, context, generator=None):
    w = windows(ids, starts_of(ids, batch_size, context, generator), context + 1)
    return w[:, :-1], w[:, 1:]


def torchs_own(ids, batch_size, context, generator=None):
    s = torch.randint(len(ids) - context, (batch_size,))
    return windows(ids, s, context), windows(ids, s + 1, context)


def pythons_own(ids, batch_size, context, generator=None):
    s = torch.tensor([random.randrange(len(ids) - context) for _ in range(batch_size)])
    return windows(ids, s, context), windows(ids, s + 1, context)


def seeded_inside(ids, batch_size, context, generator=None):
    torch.manual_seed(1337)
    s = torch.randint(len(ids) - context, (batch_size,))
    return windows(ids, s, context), windows(ids, s + 1, context)


def seeded_by_the_generator(ids, batch_size, context, generator=None):
    if generator is not None:
        generator.manual_seed(generator.initial_seed())
    return right_windows(ids, batch_size, context, generator or torch.Generator().manual_seed(torch.initial_seed()))


def last_never(ids, batch_size, context, generator=None):
    s = torch.randint(0, len(ids) - context - 1, (batch_size,), generator=generator)
    return windows(ids, s, context), windows(ids, s + 1, context)


def first_never(ids, batch_size, context, generator=None):
    s = torch.randint(1, len(ids) - context, (batch_size,), generator=generator)
    return windows(ids, s, context), windows(ids, s + 1, context)


def one_too_far(ids, batch_size, context, generator=None):
    s = torch.randint(0, len(ids) - context + 1, (batch_size,), generator=generator)
    return windows(ids, s, context), windows(ids, s + 1, context)


def one_start(ids, batch_size, context, generator=None):
    s = torch.randint(len(ids) - context, (1,), generator=generator).repeat(batch_size)
    return windows(ids, s, context), windows(ids, s + 1, context)


def neighbours(ids, batch_size, context, generator=None):
    first = torch.randint(max(len(ids) - context - batch_size + 1, 1), (1,), generator=generator).item()
    s = range(first, first + batch_size)
    return windows(ids, s, context), windows(ids, [i + 1 for i in s], context)


def from_the_top(ids, batch_size, context, generator=None):
    s = [i % (len(ids) - context) for i in range(batch_size)]
    return windows(ids, s, context), windows(ids, [i + 1 for i in s], context)


def shuffled(ids, batch_size, context, generator=None):
    s = torch.randperm(len(ids) - context, generator=generator)[:batch_size]
    return windows(ids, s, context), windows(ids, s + 1, context)


def blocks(ids, batch_size, context, generator=None):
    s = torch.randint(-(-(len(ids) - context) // context), (batch_size,), generator=generator) * context
    return windows(ids, s, context), windows(ids, s + 1, context)


def clamped(ids, batch_size, context, generator=None):
    s = torch.randint(len(ids) - context + 1, (batch_size,), generator=generator)
    s = torch.minimum(s, torch.tensor(len(ids) - context - 1))
    return windows(ids, s, context), windows(ids, s + 1, context)


# next_token_batch: right


def right_windows(ids, batch_size, context, generator=None):
    s = starts_of(ids, batch_size, context, generator)
    return windows(ids, s, context), windows(ids, s + 1, context)


def right_by_index(ids, batch_size, context, generator):
    places = torch.randint(len(ids) - context, (batch_size, 1), generator=generator) + torch.arange(context)
    return ids[places].to(torch.int64), ids[places + 1].to(torch.int64)


def right_by_slices(ids, batch_size, context, generator=None):
    w = windows(ids, starts_of(ids, batch_size, context, generator), context + 1)
    return w[:, :-1].clone(memory_format=torch.contiguous_format), w[:, 1:].contiguous()


def right_by_rand(ids, batch_size, context, generator=None):
    s = (torch.rand(batch_size, generator=generator, dtype=torch.float64) * (len(ids) - context)).long()
    return windows(ids, s, context), windows(ids, s + 1, context)


def right_by_multinomial(ids, batch_size, context, generator=None):
    s = torch.multinomial(torch.ones(len(ids) - context), batch_size, replacement=True, generator=generator)
    return windows(ids, s, context), windows(ids, s + 1, context)


def right_one_by_one(ids, batch_size, context, generator=None):
    x = torch.empty(batch_size, context, dtype=torch.long)
    y = torch.empty_like(x)
    for row in range(batch_size):
        s = int(torch.randint(high=ids.numel() - context, size=(), generator=generator))
        x[row], y[row] = ids[s : s + context], ids[s + 1 : s + context + 1]
    return x, y


def right_as_list(ids, batch_size, context, generator=None):
    s = starts_of(ids, batch_size, context, generator).tolist()
    rows = [ids.tolist()[i : i + context + 1] for i in s]
    return [torch.tensor([row[:-1] for row in rows]), torch.tensor([row[1:] for row in rows])]


def right_by_permutations(ids, batch_size, context, generator=None):
    s = torch.stack([torch.randperm(len(ids) - context, generator=generator)[0] for _ in range(batch_size)])
    return windows(ids, s, context), windows(ids, s + 1, context)


# decode: wrong


def turned(ranks):
    return dict(zip(ranks.values(), ranks.keys(), strict=True))


def token_by_token(ids, ranks):
    text = ""
    for i in ids:
        text += turned(ranks)[i].decode("utf-8", errors="replace")
    return text


def left_out(ids, ranks):
    return b"".join(map(turned(ranks).get, ids)).decode(errors="ignore")


def strict(ids, ranks):
    return b"".join(map(turned(ranks).get, ids)).decode()


def escaped(ids, ranks):
    return b"".join(map(turned(ranks).get, ids)).decode(errors="backslashreplace")


def chr_of_bytes(ids, ranks):
    return "".join(chr(byte) for i in ids for byte in turned(ranks)[i])


def ascii_bytes(ids, ranks):
    return str(b"".join(turned(ranks)[i] for i in ids), "ascii", "replace")


def with_spaces(ids, ranks):
    return b" ".join([turned(ranks)[i] for i in ids]).decode("utf-8", "replace")


def still_bytes(ids, ranks):
    data = b""
    for i in ids:
        data += turned(ranks)[i]
    return data


def shown_bytes(ids, ranks):
    return f"{still_bytes(ids, ranks)!r}"


def list_of_texts(ids, ranks):
    return [turned(ranks)[i].decode(errors="replace") for i in ids]


def place_in_dict(ids, ranks):
    keys = [*ranks.keys()]
    return b"".join(keys[i] for i in ids).decode(errors="replace")


def id_is_byte(ids, ranks):
    return b"".join(bytes((i,)) if i <= 255 else turned(ranks)[i] for i in ids).decode(errors="replace")


def stripped_text(ids, ranks):
    return still_bytes(ids, ranks).decode(errors="replace").strip()


def unfinished_left_out(ids, ranks):
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return "".join(decoder.decode(turned(ranks)[i]) for i in ids)


# decode: right


def decode_by_bytearray(ids, ranks):
    data = bytearray()
    for i in ids:
        data.extend(next(token for token, rank in ranks.items() if rank == i))
    return str(data, encoding="utf-8", errors="replace")


def decode_by_sorting(ids, ranks):
    tokens = sorted(ranks, key=ranks.get)
    return b"".join(tokens[i] for i in ids).decode(errors="replace")


def decode_step_by_step(ids, ranks):
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return "".join([*(decoder.decode(turned(ranks)[i]) for i in ids), decoder.decode(b"", final=True)])


def decode_by_tiktoken(ids, ranks):
    return tiktokens(frozenset(ranks.items())).decode(ids)


def decode_by_single_bytes(ids, ranks):
    return bytes(byte for i in ids for byte in turned(ranks)[i]).decode("utf8", "replace")


# What fooled the checks once: written by somebody who had not read them.


def slices_too_many(words):
    counts = Counter()
    for word in words:
        for i in range(len(word)):
            counts[word[i : i + 2]] += words[word]
    return counts


def index_of_the_next(words):
    counts = Counter()
    for word, n in words.items():
        for i in range(len(word)):
            counts[(word[i], word[i + 1])] += n
    return counts


def short_words_skipped(words):
    counts = Counter()
    for word, n in words.items():
        if len(word) <= 2:
            continue
        for pair in pairwise(word):
            counts[pair] += n
    return counts


def returned_in_the_loop(words):
    counts = Counter()
    for word, n in words.items():
        for pair in pairwise(word):
            counts[pair] += n
        return counts


def lists_for_keys(words):
    counts = Counter()
    for word, n in words.items():
        for i in range(len(word) - 1):
            counts[[word[i], word[i + 1]]] += n
    return counts


def items_forgotten(words):
    counts = Counter()
    for word, n in words:
        for pair in pairwise(word):
            counts[pair] += n
    return counts


def count_in_numpy(words):
    counts = Counter()
    for word, n in words.items():
        ids = np.array(word, dtype=int)
        for left, right in pairwise(ids):
            counts[left, right] += n
    return counts


def round_brackets(word, pair, new_id):
    out, i = [], 0
    while i < len(word):
        found = (*word[i : i + 2],) == pair
        out.append(new_id if found else word[i])
        i += 1 + found
    return (one for one in out)


def second_appended_too(word, pair, new_id):
    out, i = [], 0
    while i < len(word):
        if word[i : i + 2] == pair:
            out += [new_id, word[i + 1]]
            i += 2
        else:
            out.append(word[i])
            i += 1
    return tuple(out)


def nothing_in_its_place(word, pair, new_id):
    ids = list(word)
    for i in range(len(ids) - 1):
        if ids[i] == pair[0] and ids[i + 1] == pair[1]:
            ids[i], ids[i + 1] = new_id, None
    return tuple(ids)


def zeros_filtered_out(word, pair, new_id):
    ids = list(word)
    for i in range(len(ids) - 1):
        if (ids[i], ids[i + 1]) == pair:
            ids[i], ids[i + 1] = new_id, 0
    return tuple(i for i in ids if i)


def merge_in_numpy(word, pair, new_id):
    ids, out, i = np.array(word, dtype=int), [], 0
    while i < len(ids):
        found = i + 1 < len(ids) and ids[i] == pair[0] and ids[i + 1] == pair[1]
        out.append(new_id if found else ids[i])
        i += 2 if found else 1
    return tuple(out)


def tied(key):
    """Return a training that settles ties by a key of the pair's two byte strings."""
    return lambda text, vocab_size: naive(
        text,
        vocab_size,
        choose=lambda counts, tokens: max(counts, key=lambda p: (counts[p], key(*map(tokens.__getitem__, p)))),
    )


def tokens_as_bytes_of_ids(text, vocab_size):
    documents = [text] if isinstance(text, str) else text
    words = Counter(tuple(piece.encode()) for document in documents for piece in gpt2_pieces(document))
    ranks = {bytes([i]): i for i in range(256)}
    while len(ranks) < vocab_size and (counts := count_by_update(words)):
        pair = max(counts, key=lambda p: (counts[p], bytes([p[0]]), bytes([p[1]])))
        words = {merge_by_loop(word, pair, len(ranks)): n for word, n in words.items()}
        ranks[bytes(pair)] = len(ranks)
    return ranks


def right_before_left(text, vocab_size):
    documents = [text] if isinstance(text, str) else text
    words = Counter(tuple(piece.encode()) for document in documents for piece in gpt2_pieces(document))
    tokens = [bytes([i]) for i in range(256)]
    while len(tokens) < vocab_size and (counts := count_by_update(words)):
        pair = max(counts, key=lambda p: (counts[p], tokens[p[0]], tokens[p[1]]))
        words = {merge_by_loop(word, pair, len(tokens)): n for word, n in words.items()}
        tokens.append(tokens[pair[1]] + tokens[pair[0]])
    return {token: i for i, token in enumerate(tokens)}


def pairs_in_a_set(text, vocab_size):
    documents = [text] if isinstance(text, str) else text
    words = Counter(tuple(piece.encode()) for document in documents for piece in gpt2_pieces(document))
    tokens = [bytes([i]) for i in range(256)]
    while len(tokens) < vocab_size and (counts := once_a_word(words)):
        pair = max(counts, key=lambda p: (counts[p], tokens[p[0]], tokens[p[1]]))
        words = {merge_by_loop(word, pair, len(tokens)): n for word, n in words.items()}
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
    return {token: i for i, token in enumerate(tokens)}


def small_letters(text, vocab_size):
    return naive(text.lower() if isinstance(text, str) else [t.lower() for t in text], vocab_size)


def trimmed(text, vocab_size):
    return naive(text.strip() if isinstance(text, str) else [t.strip() for t in text], vocab_size)


def different_documents(text, vocab_size):
    return naive([text] if isinstance(text, str) else sorted(set(text)), vocab_size)


def with_end_of_text(text, vocab_size):
    ranks = naive(text, vocab_size)
    ranks[b"<|endoftext|>"] = len(ranks)
    return ranks


def line_by_line(text, vocab_size):
    return naive([line for t in ([text] if isinstance(text, str) else text) for line in t.split("\n")], vocab_size)


def one_merge_at_least(text, vocab_size):
    return naive(text, vocab_size if vocab_size > 256 else 257)


def ranks_in_numpy(text, vocab_size):
    return {token: np.int64(rank) for token, rank in naive(text, vocab_size).items()}


def kept_whole(join):
    """Return an encoding that looks up whole words first, and lets `join` make parts of the others."""
    return lambda text, ranks: [
        ranks[part] for piece in pieces_of(text) for part in ([piece] if piece in ranks else join(piece, ranks))
    ]


def joinable(parts, ranks):
    return [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]


def by_choice(choose, rounds=999):
    def join(piece, ranks):
        parts = [piece[i : i + 1] for i in range(len(piece))]
        for _ in range(rounds):
            if not (found := joinable(parts, ranks)):
                break
            _, i = choose(found)
            parts = [*parts[:i], parts[i] + parts[i + 1], *parts[i + 2 :]]
        return parts

    return join


def walk(again):
    def join(piece, ranks):
        parts, i = [piece[i : i + 1] for i in range(len(piece))], 0
        while i < len(parts) - 1:
            if parts[i] + parts[i + 1] in ranks:
                parts[i : i + 2] = [parts[i] + parts[i + 1]]
                i -= again
            i += 1
        return parts

    return join


def most_frequent_first(piece, ranks):
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while counts := Counter(p for p in pairwise(parts) if p[0] + p[1] in ranks):
        best, i = max(counts, key=counts.get), 0
        while i < len(parts) - 1:
            if (parts[i], parts[i + 1]) == best:
                parts[i : i + 2] = [best[0] + best[1]]
            i += 1
    return parts


def min_of_nothing(text, ranks):
    ids = []
    for piece in pieces_of(text):
        parts = [piece] if piece in ranks else [bytes([byte]) for byte in piece]
        while True:
            i = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], 10**9))
            if parts[i] + parts[i + 1] not in ranks:
                break
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [ranks[part] for part in parts]
    return ids


leftmost_but_whole = kept_whole(by_choice(lambda found: found[0]))
walk_but_whole = kept_whole(walk(again=True))
walk_on_but_whole = kept_whole(walk(again=False))
rightmost_but_whole = kept_whole(by_choice(lambda found: found[-1]))
highest_but_whole = kept_whole(by_choice(max))
one_round_but_whole = kept_whole(by_choice(min, rounds=1))
frequent_but_whole = kept_whole(most_frequent_first)


def known_words_only(text, ranks):
    return [ranks[piece] for piece in pieces_of(text) if piece in ranks]


def ids_in_numpy(text, ranks):
    return list(np.array(encode_plainly(text, ranks), dtype=np.int64))


def both(ids, starts, context):
    return windows(ids, starts, context), torch.stack([ids[s + 1 : s + 1 + context].long() for s in starts])


def seeded_without_generator(ids, batch_size, context, generator=None):
    generator = generator or torch.Generator().manual_seed(0)
    return both(ids, torch.randint(len(ids) - context, (batch_size,), generator=generator), context)


def torch_seeded(ids, batch_size, context, generator=None):
    torch.manual_seed(42)
    return both(ids, torch.randint(len(ids) - context, (batch_size,), generator=generator), context)


def pythons_without_generator(ids, batch_size, context, generator=None):
    n = len(ids) - context
    if generator is None:
        return both(ids, [random.randrange(n) for _ in range(batch_size)], context)
    return both(ids, torch.randint(n, (batch_size,), generator=generator), context)


def next_window(ids, batch_size, context, generator=None):
    starts = torch.randint(len(ids) - 2 * context + 1, (batch_size,), generator=generator)
    x = torch.stack([ids[s : s + context] for s in starts])
    return x.long(), torch.stack([ids[s + context : s + 2 * context] for s in starts]).long()


def round_the_end(ids, batch_size, context, generator=None):
    places = torch.randint(len(ids), (batch_size, 1), generator=generator) + torch.arange(context)
    return ids[places % len(ids)].long(), ids[(places + 1) % len(ids)].long()


def zeros_behind(ids, batch_size, context, generator=None):
    starts = torch.randint(len(ids), (batch_size,), generator=generator)
    return both(torch.cat([ids, torch.zeros(context + 1, dtype=ids.dtype)]), starts, context)


def rows_in_a_ring(ids, batch_size, context, generator=None):
    first = torch.randint(len(ids) - context, (1,), generator=generator).item()
    return both(ids, [(first + i) % (len(ids) - context) for i in range(batch_size)], context)


def shuffled_where_it_can_be(ids, batch_size, context, generator=None):
    n = len(ids) - context
    if batch_size > n:
        return both(ids, torch.randint(n, (batch_size,), generator=generator), context)
    return both(ids, torch.randperm(n, generator=generator)[:batch_size], context)


XY = namedtuple("XY", "x y")


def right_as_named(ids, batch_size, context, generator=None):
    return XY(*right_by_slices(ids, batch_size, context, generator))


def right_in_numpy(ids, batch_size, context, generator=None):
    stream = ids.numpy().astype(np.int64)
    starts = torch.randint(len(stream) - context, (batch_size,), generator=generator).numpy()
    places = starts[:, None] + np.arange(context)
    return torch.from_numpy(stream[places]), torch.from_numpy(stream[places + 1])


def stream_overwritten(ids, batch_size, context, generator=None):
    x, y = right_by_slices(ids, batch_size, context, generator)
    ids[-1] = 0
    return x, y


def fallback(otherwise):
    def decode(ids, ranks):
        data = b"".join(turned(ranks)[i] for i in ids)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return otherwise(ids, ranks)

    return decode


fallback_to_tokens = fallback(token_by_token)
fallback_to_one_sign = fallback(lambda ids, ranks: "\N{REPLACEMENT CHARACTER}")
fallback_to_nothing = fallback(lambda ids, ranks: "")


def buffer_never_given_up(ids, ranks):
    text, buffer = "", bytearray()
    for i in ids:
        buffer += turned(ranks)[i]
        with contextlib.suppress(UnicodeDecodeError):
            text += buffer.decode()
            buffer.clear()
    return text


def question_marks(ids, ranks):
    return decode_by_bytearray(ids, ranks).replace("\N{REPLACEMENT CHARACTER}", "?")


def other_line_ends(ids, ranks):
    return "\n".join(decode_by_bytearray(ids, ranks).splitlines())


def mark_removed(ids, ranks):
    return b"".join(turned(ranks)[i] for i in ids).decode("utf-8-sig", "replace")


def decoder_not_finished(ids, ranks):
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return "".join(decoder.decode(turned(ranks)[i]) for i in ids)


WRONG = {
    "count_pairs": {
        unweighted: "a word counts once",
        no_overlap: "overlaps with the one before",
        once_a_word: "counts once a word",
        ordered_pairs: "order within a pair",
        reversed_pairs: "in reverse",
        one_pair_short: "last pair of each word",
        from_the_second: "first pair of each word",
        with_the_id_before: "paired with its first",
        two_by_two: "side by side",
        every_two: "no neighbours",
        ids_only: "single ids",
        one_long_stream: "from one word into the next",
        set_not_added: "overwritten",
        taken_out: "words are changed",
        pairs_alone: "without their counts",
        most_common_list: "a list of pairs and numbers",
        slices_too_many: "counted alone",
        index_of_the_next: "past the end",
        short_words_skipped: "two ids are passed over",
        returned_in_the_loop: "only the first word",
    },
    "merge_pair": {
        as_list: "a list comes back",
        first_place_only: "only the first occurrence",
        from_the_right: "from the right",
        vectorised: "overlap are all merged",
        left_id_only: "only the first id",
        right_id_only: "only the second id",
        either_order: "in reverse too",
        any_member: "any id of the pair",
        no_last: "the last id is lost",
        last_twice: "added again",
        not_at_the_end: "at the end of the word is missed",
        beyond_the_end: "past the end",
        always_beyond_the_end: "past the end",
        one_step: "stays behind",
        three_steps: "behind each merged pair is lost",
        inserted: "the pair stays",
        removed: "the pair is removed",
        by_string: "compared as text",
        by_bytes: "put into bytes",
        nothing_built: "unchanged",
        round_brackets: "a generator comes back",
        second_appended_too: "stays behind",
        nothing_in_its_place: "a gap stays",
        zeros_filtered_out: "the id 0 is lost",
    },
    "train_bpe": {
        tie_to_smallest: "a tie goes to the smallest",
        tie_to_smallest_ids: "a tie goes to the smallest",
        tie_to_first: "met first",
        tie_to_last: "met last",
        tie_by_ids: "by the ids",
        tie_by_joined: "by the joined bytes",
        whole_text: "not split into words",
        white_space_lost: "loses the spaces",
        words_and_signs: "loses the spaces",
        spaces_alone: "by another rule",
        space_before_each: "by another rule",
        letters_of_ascii_only: "by another rule",
        by_characters: "characters are the smallest",
        ascii_only: "outside ASCII",
        as_many_merges: "counts the merges",
        one_more: "one merge too many",
        one_fewer: "one merge too few",
        no_bytes: "single bytes are missing",
        bytes_of_the_text: "only the bytes that the text holds",
        ranks_from_zero: "do not begin at 256",
        upside_down: "from rank to token",
        the_merges: "the merges are returned",
        list_of_tokens: "a list of tokens",
        keys_of_text: "tokens are strings",
        set_of_words: "a word counts once",
        overlap_once: "overlaps with the one before",
        runs_dry: "fails when no pair is left",
        twice_at_least: "when no pair occurs twice",
        counted_only_once: "those of the beginning",
        never_merged: "never merged",
        joined_documents: "joined into one text",
        documents_joined_by_lines: "joined into one text",
        as_str: "by str()",
        first_document: "only one of the documents",
        always_documents: "taken for a list of documents",
        strings_only: "cannot be read",
        tied(lambda left, right: [[-byte for byte in left], [-byte for byte in right]]): "a tie goes to the smallest",
        tied(lambda left, right: (right, left)): "by the right token first",
        tied(lambda left, right: left): "by the left token alone",
        tied(lambda left, right: (len(left) + len(right), left, right)): "the longest token",
        tied(lambda left, right: (repr(left), repr(right))): "by text",
        tied(lambda left, right: (left.decode(errors="replace"), right.decode(errors="replace"))): "by text",
        tokens_as_bytes_of_ids: "put into bytes",
        right_before_left: "stand in reverse",
        pairs_in_a_set: "counts once a word",
        small_letters: "changed first",
        trimmed: "changed first",
        different_documents: "comes again is left out",
        with_end_of_text: "<|endoftext|>",
        line_by_line: "another rule",
        one_merge_at_least: "room for none",
    },
    "encode": {
        longest_match: "the longest token",
        longest_match_unsplit: "the longest token",
        left_to_right: "from left to right",
        right_to_left: "from right to left",
        highest_first: "the highest rank",
        last_of_equals: "of equal pairs",
        all_overlaps: "overlap are all merged",
        one_merge: "only one merge",
        bytes_only_joined: "pairs of single bytes",
        only_bytes: "nothing is merged",
        whole_words_or_bytes: "a token itself",
        unsplit: "not split into words",
        spaces_lost: "loses the spaces",
        other_split: "by another rule",
        ordinals: "characters are looked up",
        characters_must_be_known: "characters are looked up",
        ascii_kept: "outside ASCII",
        byte_is_id: "taken for its id",
        each_word_once: "comes again",
        tokens_of_text: "tokens come back",
        nested: "a list of their own",
        returned_too_early: "only the first word",
        only_the_last: "only the first word",
        special_token: "an id of its own",
        stripped: "changed first",
        lowered: "changed first",
        leftmost_but_whole: "from left to right",
        walk_but_whole: "from left to right",
        walk_on_but_whole: "only pairs of single bytes",
        rightmost_but_whole: "from right to left",
        highest_but_whole: "highest rank",
        one_round_but_whole: "only one merge",
        frequent_but_whole: "most frequent pair",
        min_of_nothing: "a single part is left",
        known_words_only: "no tokens are left out",
    },
    "next_token_batch": {
        copied_targets: "y is x",
        skipping_targets: "shifted by two",
        targets_before: "the wrong way",
        rolled_targets: "not the next id of the stream",
        zero_at_the_end: "not the next id of the stream",
        one_target_a_row: "one id a row",
        short_rows: "one id short",
        long_rows: "one id long",
        plus_one: "one is added",
        only_places: "places come back",
        two_draws: "drawn apart",
        time_first: "time first",
        as_they_come: "keep their dtype",
        sliced_windows: "not contiguous",
        torchs_own: "generator is not used",
        pythons_own: "generator is not used",
        seeded_inside: "a seed is set inside",
        seeded_by_the_generator: "a seed is set inside",
        last_never: "last start is never",
        first_never: "first start is never",
        one_too_far: "too near to the end",
        one_start: "at the same place",
        neighbours: "follow each other",
        from_the_top: "nothing is drawn",
        shuffled: "twice in a batch",
        blocks: "multiples of the context",
        clamped: "more often",
        seeded_without_generator: "without a generator",
        torch_seeded: "without a generator",
        pythons_without_generator: "without a generator",
        next_window: "the whole window behind",
        round_the_end: "too near to the end",
        zeros_behind: "too near to the end",
        rows_in_a_ring: "follow each other",
        shuffled_where_it_can_be: "no start comes twice",
    },
    "decode": {
        token_by_token: "each token is decoded by itself",
        left_out: "are left out",
        strict: "stop the code",
        escaped: "written as codes",
        chr_of_bytes: "Latin-1",
        ascii_bytes: "ASCII",
        with_spaces: "between the tokens",
        still_bytes: "the bytes come back",
        shown_bytes: "by str()",
        list_of_texts: "a list of texts",
        place_in_dict: "a place in the dict",
        id_is_byte: "taken for a byte",
        stripped_text: "are removed",
        unfinished_left_out: "at the end is left out",
        fallback_to_tokens: "spoils the whole text",
        fallback_to_one_sign: "spoils the whole text",
        fallback_to_nothing: "spoils the whole text",
        buffer_never_given_up: "behind a bad byte is lost",
        question_marks: "another sign",
        other_line_ends: "line ends",
        mark_removed: "byte-order mark",
        decoder_not_finished: "at the end is left out",
    },
}

RIGHT = {
    "count_pairs": [
        count_by_update,
        count_by_loops,
        count_by_defaultdict,
        count_every_element,
        count_by_sum,
        count_with_zeros,
        count_in_numpy,
    ],
    "merge_pair": [
        merge_by_loop,
        merge_by_stack,
        merge_recursively,
        merge_with_skip,
        merge_by_deletion,
        merge_by_queue,
        merge_by_regex,
        merge_in_numpy,
    ],
    "train_bpe": [
        naive,
        naive_on_a_list_of_pieces,
        naive_with_updates,
        by_our_own_exercises,
        in_another_order,
        ranks_in_numpy,
    ],
    "encode": [
        encode_plainly,
        encode_rank_by_rank,
        encode_by_pairs,
        encode_by_tiktoken,
        encode_with_a_shortcut,
        ids_in_numpy,
    ],
    "next_token_batch": [
        right_windows,
        right_by_index,
        right_by_slices,
        right_by_rand,
        right_by_multinomial,
        right_one_by_one,
        right_as_list,
        right_by_permutations,
        right_as_named,
        right_in_numpy,
    ],
    "decode": [
        decode_by_bytearray,
        decode_by_sorting,
        decode_step_by_step,
        decode_by_tiktoken,
        decode_by_single_bytes,
    ],
}

STUBS = {
    "count_pairs": [
        lists_for_keys,
        items_forgotten,
        lambda words: None,
        lambda words: words,
        lambda words: Counter(),
        lambda words: {(1, 2): 1},
        lambda words: Counter({pair: 1.5 * n for pair, n in count_by_update(words).items()}),
        lambda words: Counter({pair: str(n) for pair, n in count_by_update(words).items()}),
        lambda words: {f"{a} {b}": n for (a, b), n in count_by_update(words).items()},
        lambda words: [1, 2],
        lambda words: count_by_update(words).total(),
        lambda words: (n for n in words),
        lambda: None,
    ],
    "merge_pair": [
        lambda word, pair, new_id: tuple(map(float, merge_by_loop(word, pair, new_id))),
        lambda word, pair, new_id: None,
        lambda word, pair, new_id: (),
        lambda word, pair, new_id: (new_id,),
        lambda word, pair, new_id: (*word, new_id),
        lambda word, pair, new_id: pair,
        lambda word, pair, new_id: torch.tensor(merge_by_loop(word, pair, new_id)),
        lambda word, pair, new_id: str(merge_by_loop(word, pair, new_id)),
        lambda word, pair, new_id: iter(merge_by_loop(word, pair, new_id)),
        lambda word, pair, new_id: merge_by_loop(word, pair, new_id)[::-1],
        lambda word: word,
    ],
    "train_bpe": [
        lambda text, vocab_size: None,
        lambda text, vocab_size: {},
        lambda text, vocab_size: {bytes([i]): i for i in range(256)},
        lambda text, vocab_size: text,
        lambda text, vocab_size: dict.fromkeys(naive(text, vocab_size), 0),
        lambda text, vocab_size: {token: rank + 0.5 for token, rank in naive(text, vocab_size).items()},
        lambda text, vocab_size: {token: float(rank) for token, rank in naive(text, vocab_size).items()},
        lambda text, vocab_size: {token: str(rank) for token, rank in naive(text, vocab_size).items()},
        lambda text, vocab_size: naive(text, vocab_size) | {b"": 999},
        lambda text, vocab_size: naive(text, vocab_size) | {"a": 97},
        lambda text, vocab_size: (naive(text, vocab_size), []),
        lambda text: {},
    ],
    "encode": [
        lambda text, ranks: [float(i) for i in encode_plainly(text, ranks)],
        lambda text, ranks: None,
        lambda text, ranks: [],
        lambda text, ranks: text,
        lambda text, ranks: list(text.encode()),
        lambda text, ranks: [0] * len(text),
        lambda text, ranks: tuple(encode_plainly(text, ranks)),
        lambda text, ranks: torch.tensor(encode_plainly(text, ranks)),
        lambda text, ranks: encode_plainly(text, ranks)[::-1],
        lambda text, ranks: iter(encode_plainly(text, ranks)),
        lambda text, ranks: [str(i) for i in encode_plainly(text, ranks)],
        lambda text, ranks: ranks.clear() or [],
        lambda text: [],
    ],
    "next_token_batch": [
        stream_overwritten,
        lambda ids, batch_size, context, generator: None,
        lambda ids, batch_size, context, generator: (ids, ids),
        lambda ids, batch_size, context, generator: (torch.zeros(batch_size, context).long(),) * 2,
        lambda ids, batch_size, context, generator: (torch.ones(batch_size, context),) * 2,
        lambda ids, batch_size, context, generator: (
            (torch.randint(99, (batch_size, context), generator=generator),) * 2
        ),
        lambda ids, batch_size, context, generator: right_windows(ids, batch_size, context, generator)[0],
        lambda ids, batch_size, context, generator: torch.stack(right_windows(ids, batch_size, context, generator)),
        lambda ids, batch_size, context, generator: [t.tolist() for t in right_windows(ids, batch_size, context)],
        lambda ids, batch_size, context, generator: (*right_windows(ids, batch_size, context, generator), None),
        lambda ids, batch_size, context, generator: right_windows(ids[:-1], batch_size, context, generator),
        lambda ids, batch_size, context, generator: [
            t.float() for t in right_windows(ids, batch_size, context, generator)
        ],
        lambda ids, batch_size, context, generator: right_windows(ids, 1, context, generator),
        lambda ids, batch_size, context, generator: [t[..., None] for t in right_windows(ids, batch_size, context)],
        lambda ids, batch_size, context, generator: (ids[0], ids[1]),
        lambda ids, batch_size, context, generator: (ids[:0], ids[:0]),
        lambda ids, batch_size, context, generator: [t > 0 for t in right_windows(ids, batch_size, context)],
        lambda ids: ids,
    ],
    "decode": [
        lambda ids, ranks: None,
        lambda ids, ranks: ids,
        lambda ids, ranks: "",
        lambda ids, ranks: str(ids),
        lambda ids, ranks: "".join(map(chr, ids)),
        lambda ids, ranks: list(decode_by_sorting(ids, ranks)),
        lambda ids, ranks: decode_by_sorting(ids, ranks).lower(),
        lambda ids, ranks: decode_by_sorting(ids, ranks)[::-1],
        lambda ids, ranks: decode_by_sorting(ids[::-1], ranks),
        lambda ids, ranks: decode_by_sorting(ids, ranks).replace("\ufffd", "?"),
        lambda ids: "",
    ],
}


def seeds_of(exercise):
    return SEEDS[: N_SEEDS.get(exercise.name, 1)]


@pytest.mark.parametrize(("exercise", "candidate", "words"), cases(WRONG))
def test_a_mistake_is_named_first(exercise, candidate, words):
    assert_named_first(exercise, candidate, words, seeds_of(exercise))


@pytest.mark.parametrize("name", EXERCISES)
def test_every_mistake_of_the_catalogue_has_a_wrong_answer_here(name):
    assert_all_told(checks.exercise(name), WRONG[name])


@pytest.mark.parametrize(("exercise", "candidate"), cases(RIGHT))
def test_every_right_style_is_accepted(exercise, candidate):
    assert_accepted(exercise, candidate, seeds_of(exercise))


@pytest.mark.parametrize(("exercise", "candidate"), cases(STUBS))
def test_nothing_else_passes(exercise, candidate):
    assert_rejected(exercise, candidate)


@pytest.mark.parametrize("name", EXERCISES)
def test_the_number_of_threads_changes_nothing(name):
    assert_same_on_two_threads(checks.exercise(name), RIGHT[name], WRONG[name])


def test_the_exercises_stand_in_the_order_of_the_notebook():
    assert tuple(each.name for each in checks.EXERCISES.values() if each.notebook == "01_tokens") == EXERCISES
    assert all(checks.exercise(name).diagnose(checks.give(name)).state == "given" for name in EXERCISES)


def test_the_names_of_the_parameters_do_not_matter():
    assert checks.count_pairs.diagnose(lambda w: count_by_update(w)).passed
    assert checks.merge_pair.diagnose(lambda w, p, i: merge_by_loop(w, p, i)).passed
    assert checks.train_bpe.diagnose(lambda t, n: naive(t, n)).passed
    assert checks.encode.diagnose(lambda t, r: encode_plainly(t, r)).passed
    assert checks.next_token_batch.diagnose(lambda i, b, c, g: right_windows(i, b, c, g)).passed
    assert checks.decode.diagnose(lambda i, r: decode_by_sorting(i, r)).passed


# What the probes rest on.


def test_the_vocabularies_of_the_probes_are_such_as_training_makes():
    """Each token joins two of lower rank, and its own bytes are encoded as that token."""
    found = [probe.build(torch.Generator())["ranks"] for probe in texts.ENCODE.probes]
    for ranks in found:
        assert sorted(ranks.values()) == list(range(len(ranks)))
        for token in ranks.tokens:
            earlier = {t: r for t, r in ranks.items() if len(t) == 1 or r < ranks[token]}
            assert len(join_all_bytes(token, earlier)) == 2
            assert join_all_bytes(token, ranks) == [ranks[token]]


# Messages.


def test_a_vocabulary_is_shown_by_what_was_learned():
    text = checks.train_bpe.diagnose(tie_to_first).text
    assert "train_bpe(text='abcabcab', vocab_size=258)" in text
    assert "expected  {b'cab': 257}     got  {b'abc': 257}" in text


def test_ranks_are_shown_without_the_256_bytes():
    text = checks.encode.diagnose(longest_match).text
    assert "encode(text='abc', ranks={byte i: i, b'bc': 256, b'ab': 257})" in text


def test_the_rows_of_a_batch_are_told_by_their_places():
    text = checks.next_token_batch.diagnose(copied_targets).text
    assert "expected  's+1 s+2'     got  's s+1'     [a row of y, where x begins at s]" in text


def test_a_last_start_that_is_never_drawn_is_shown():
    text = checks.next_token_batch.diagnose(last_never).text
    assert "expected  [0, 1, 2, 3]     got  [0, 1, 2]" in text


def test_two_mistakes_together_are_both_named():
    def alone_and_left_out(ids, ranks):
        return "".join(turned(ranks)[i].decode(errors="ignore") for i in ids)

    verdict = checks.decode.diagnose(alone_and_left_out)
    assert len(verdict.mistakes) == 2 and "by itself" in verdict.text and "left out" in verdict.text

    def first_tie_unweighted(text, vocab_size):
        pieces = lambda found: list(dict.fromkeys(found))  # noqa: E731
        return naive(text, vocab_size, tally=pieces, choose=lambda c, t: max(c, key=c.get))

    assert len(checks.train_bpe.diagnose(first_tie_unweighted).mistakes) == 2


def test_an_endless_training_is_told():
    def waits(text, vocab_size):
        if vocab_size > 280:
            raise TimeoutError("no answer after 4 seconds: does a loop never end?")
        return naive(text, vocab_size)

    assert "does a loop never end" in checks.train_bpe.diagnose(waits).text


@pytest.mark.parametrize(
    ("candidate", "words"), [(lists_for_keys, "unhashable type"), (items_forgotten, "unpack")], ids=["lists", "items"]
)
def test_another_exception_is_not_taken_for_a_step_past_the_end(candidate, words):
    verdict = checks.count_pairs.diagnose(candidate)
    assert not verdict.mistakes and words in verdict.text


def test_a_string_or_an_id_as_a_key_of_ranks_is_explained():
    text = checks.encode.diagnose(lambda text, ranks: [ranks[word] for word in text.split()]).text
    assert "'abc' is a string: the keys of ranks are bytes" in text
    text = checks.decode.diagnose(lambda ids, ranks: b"".join(ranks[i] for i in ids).decode()).text
    assert "195 is an id: the keys of ranks are bytes" in text


def test_a_vocabulary_turned_round_is_shown_by_what_was_learned():
    assert "expected  {b'ab': 256}     got  {256: b'ab'}" in checks.train_bpe.diagnose(upside_down).text


def test_floats_are_shown_as_they_are():
    text = checks.encode.diagnose(lambda text, ranks: [float(i) for i in encode_plainly(text, ranks)]).text
    assert "expected  [97, 256]     got  [97.0, 256.0]" in text
