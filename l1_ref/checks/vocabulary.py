"""The check of 01_tokens on training: train_bpe."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from l1_ref.bpe import split_text, train_bpe
from l1_ref.checks.engine import Exercise, Inputs, Mistake, Property
from l1_ref.checks.observe import Observation, observe_through
from l1_ref.checks.pairs import Probe, apart_pairs, counted, given, merged, plain

_BYTES = {bytes([byte]): byte for byte in range(256)}
_USUAL = _BYTES | {i: byte for byte, i in _BYTES.items()} | {chr(i): i for i in range(256)}


def _documents(text: str | Sequence[str]) -> Sequence[str]:
    return [text] if isinstance(text, str) else text


def _single_bytes(piece: bytes) -> tuple[bytes, ...]:
    return tuple(bytes([byte]) for byte in piece)


def _characters(piece: bytes) -> tuple[bytes, ...]:
    return tuple(character.encode() for character in piece.decode())


def _greatest(pair: tuple[bytes, bytes], place: int, tokens: list[bytes]) -> Any:
    return pair


def _ids(pair: tuple[bytes, bytes], place: int, tokens: list[bytes]) -> Any:
    return tuple(map(tokens.index, pair))


def _smallest(pair: tuple[bytes, bytes], place: int, tokens: list[bytes]) -> Any:
    # Complemented bytes, and an end mark above them all, sort in reverse.
    return tuple([*(255 - byte for byte in token), 256] for token in pair)


def _as_ranks(tokens: list[bytes], pairs: list) -> dict[bytes, int]:
    return {token: rank for rank, token in enumerate(tokens)}


def _trained(
    text: str | Sequence[str],
    vocab_size: int,
    *,
    documents: Callable = _documents,
    split: Callable = split_text,
    symbols: Callable = _single_bytes,
    pairs_of: Callable = pairwise,
    tie: Callable = _greatest,
    weighted: bool = True,
    extra: int = 0,
    least: int = 1,
    crash: bool = False,
    stale: bool = False,
    turned: bool = False,
    answer: Callable = _as_ranks,
) -> Any:
    """Train as the reference does, on words of bytes in place of ids; each switch is a mistake."""
    words = Counter(symbols(piece) for document in documents(text) for piece in split(document))
    tokens, merges = list(_BYTES), []
    while len(tokens) < vocab_size + extra:
        counts = counted(words, pairs=pairs_of, weighted=weighted)
        if not counts and not crash:
            break
        places = {pair: place for place, pair in enumerate(counts)}
        pair = max(counts, key=lambda p: (counts[p], tie(p, places[p], tokens)))
        if counts[pair] < least:
            break
        merges.append(pair)
        tokens.append(pair[turned] + pair[not turned])
        words = words if stale else {merged(word, pair, tokens[-1]): n for word, n in words.items()}
    return answer(tokens, merges)


def _in_bytes(text: str | Sequence[str], vocab_size: int, *, compared: bool) -> dict[bytes, int]:
    """Take the two ids of a pair for two bytes: to settle ties already, or only to name the new token."""

    def tie(pair: tuple[bytes, bytes], place: int, tokens: list[bytes]) -> Any:
        return bytes(_ids(pair, place, tokens)) if compared else _ids(pair, place, tokens)

    def answer(tokens: list[bytes], pairs: list) -> dict[bytes, int]:
        return {bytes(_ids(pair, 0, tokens)): 256 + i for i, pair in enumerate(pairs)}

    return _as_ranks([*_BYTES, *_trained(text, vocab_size, tie=tie, answer=answer)], [])


def _changed(change: Callable[[str], str]) -> Callable:
    return partial(_trained, documents=lambda text: [change(document) for document in _documents(text)])


def _by_lines(keep: bool) -> Callable:
    return lambda text: [piece for line in text.splitlines(keepends=keep) for piece in split_text(line)]


def _counted_once(text: str | Sequence[str], vocab_size: int) -> dict[bytes, int]:
    """Take the most frequent pairs of single bytes, all at one go."""
    counts = counted(Counter(_single_bytes(piece) for document in _documents(text) for piece in split_text(document)))
    best = sorted(counts, key=lambda pair: (counts[pair], pair), reverse=True)[: vocab_size - 256]
    return _as_ranks([*_BYTES, *(left + right for left, right in best)], [])


def _only_bytes_seen(text: str | Sequence[str], vocab_size: int, *, renumbered: bool) -> dict[bytes, int]:
    seen = {byte for document in _documents(text) for byte in document.encode()}
    size = vocab_size + (256 - len(seen) if renumbered else 0)
    ranks = _trained(text, size)
    kept = [token for token in ranks if len(token) > 1 or token[0] in seen]
    return {token: i if renumbered else ranks[token] for i, token in enumerate(kept)}


def _merges_from(first: int) -> Callable:
    return lambda tokens, pairs: {t: i if i < 256 else i - 256 + first for i, t in enumerate(tokens)}


def _by_pattern(pattern: str) -> Callable[[str], Iterator[bytes]]:
    return lambda text: (match.group().encode() for match in re.finditer(pattern, text))


def _joined(between: str) -> Callable:
    return lambda text: [text if isinstance(text, str) else between.join(text)]


def _without_spaces(text: str) -> list[bytes]:
    return [word.encode() for word in text.split()]


def _babble(generator: torch.Generator) -> Inputs:
    """Words of few letters in random order: many pairs, and many ties."""
    words = ["ba", "abba", "bab", "cab", "a", "Abe", "cc", "bé", "2", "cabs"]
    drawn = torch.randint(len(words), (24,), generator=generator).tolist()
    return {"text": " ".join(words[i] for i in drawn) + ".", "vocab_size": 268}


def _joins(token: bytes, rank: int, ranks: Mapping[bytes, int]) -> bool:
    cuts = ((token[:i], token[i:]) for i in range(1, len(token)))
    return len(token) == 1 or any(max(ranks.get(part, rank) for part in parts) < rank for parts in cuts)


def _learned(ranks: Any) -> Any:
    """Show a vocabulary by what it holds beside the single bytes in their places, in the order of the ranks."""
    if not isinstance(ranks, Mapping):
        return ranks
    # A dict turned round, or with strings for keys, is shown without its single bytes too; 65.0 is not 65.
    rest = {
        token: plain(rank)
        for token, rank in ranks.items()
        if token not in _USUAL or isinstance(rank, float) or rank != _USUAL[token]
    }
    return dict(sorted(rest.items(), key=lambda item: item[1] if isinstance(item[1], int) else 0))


def _single(ranks: Mapping) -> str:
    """Say whether the single bytes have their places in a vocabulary."""
    missing = [byte for byte in _BYTES if byte not in ranks]
    moved = [byte for byte, i in _BYTES.items() if isinstance(ranks.get(byte), float) or ranks.get(byte, i) != i]
    if missing:
        return f"{len(missing)} are missing, the first is {missing[0]}"
    return f"{moved[0]} has rank {ranks[moved[0]]}" if moved else "byte i has rank i"


def _observe_ranks(candidate: Callable, inputs: Inputs, *more: Any) -> Observation:
    answers: list = []

    def kept(*arguments: Any) -> Any:
        answers.append(candidate(*arguments))
        return answers[-1]

    seen = observe_through(_learned, kept, inputs, *more)
    if answers and isinstance(answers[0], Mapping):
        seen["the table of single bytes"] = _single(answers[0])
    return seen


TRAIN_BPE = Exercise(
    name="train_bpe",
    notebook="01_tokens",
    reference=train_bpe,
    observe=_observe_ranks,
    probes=(
        Probe("one merge", given(text="abab", vocab_size=257)),
        Probe("two merges, the second joins the first token", given(text="abcabcab", vocab_size=258)),
        Probe("five pairs, each once", given(text="ab da cb", vocab_size=257)),
        Probe("a tie between tokens of one and two bytes", given(text="abq abq abz xaby", vocab_size=259)),
        Probe("a frequent word among rare ones", given(text="sun sun sun sun met men me mend", vocab_size=258)),
        Probe("words with spaces before them", given(text="a cat, a hat, a cap", vocab_size=262)),
        Probe("the same letter four times", given(text="aaaa xy xy", vocab_size=258)),
        Probe("é, ß and an emoji", given(text="bé ébb 😀😀 ßé", vocab_size=266)),
        Probe("digits, signs, apostrophes, lines", given(text="it's 10:30!!\n\n  it'll be 10:35!!", vocab_size=270)),
        Probe("three documents", given(text=["ab", "cab", "cab"], vocab_size=258)),
        Probe("a document that comes twice", given(text=["xy", "ab", "ab"], vocab_size=257)),
        Probe("documents with lines", given(text=["to\n", "  be", "or\n", "  be so"], vocab_size=259)),
        Probe("random words", _babble),
        Probe("no pair is left before the vocabulary is full", given(text="ab ab", vocab_size=300), edge=True),
        Probe("no merge at all", given(text="abab", vocab_size=256), edge=True),
        Probe("an empty document among others", given(text=["", "abab", ""], vocab_size=257), edge=True),
        Probe("no text", given(text="", vocab_size=258), edge=True),
    ),
    mistakes=(
        Mistake(
            "a tie goes to the smallest pair",
            "of pairs equally frequent the greatest pair of byte strings wins, so that all get the same vocabulary.",
            partial(_trained, tie=_smallest),
            (
                partial(_trained, tie=lambda pair, place, tokens: tuple(-i for i in _ids(pair, place, tokens))),
                partial(_trained, tie=lambda pair, place, tokens: tuple([-byte for byte in each] for each in pair)),
            ),
        ),
        Mistake(
            "a tie goes to the pair that was met first",
            "the answer then depends on the order of the words; the greatest pair of byte strings must win.",
            partial(_trained, tie=lambda pair, place, tokens: -place),
        ),
        Mistake(
            "a tie goes to the pair that was met last",
            "the answer then depends on the order of the words; the greatest pair of byte strings must win.",
            partial(_trained, tie=lambda pair, place, tokens: place),
        ),
        Mistake(
            "a tie is settled by the ids, not by the bytes",
            "the id of a longer token says only when it was learned; compare the byte strings that the ids stand for.",
            partial(_trained, tie=_ids),
        ),
        Mistake(
            "a tie is settled by the joined bytes, not by the pair",
            "a pair is compared left token first, and the right one only where the left ones are equal.",
            partial(_trained, tie=lambda pair, place, tokens: pair[0] + pair[1]),
        ),
        Mistake(
            "a tie is settled by the right token first",
            "a pair is compared left token first, and the right one only where the left ones are equal.",
            partial(_trained, tie=lambda pair, place, tokens: pair[::-1]),
        ),
        Mistake(
            "a tie is settled by the left token alone",
            "where the left tokens are equal too, the greater right one must win, not the pair that was met first.",
            partial(_trained, tie=lambda pair, place, tokens: (pair[0], -place)),
        ),
        Mistake(
            "a tie goes to the longest token",
            '"lexicographically greatest" is no matter of length: the first byte that differs decides.',
            partial(_trained, tie=lambda pair, place, tokens: (len(b"".join(pair)), pair)),
            (partial(_trained, tie=lambda pair, place, tokens: (len(b"".join(pair)), -place)),),
        ),
        Mistake(
            "a tie is settled by text, not by bytes",
            "a token may hold half a character, which no text shows: compare the byte strings as they are.",
            partial(_trained, tie=lambda pair, place, tokens: tuple(map(str, pair))),
            (partial(_trained, tie=lambda pair, place, tokens: [each.decode("utf-8", "replace") for each in pair]),),
        ),
        Mistake(
            "ids are put into bytes",
            "a byte holds no more than 255: keep a list of the tokens' bytes, and look up both ids of a pair there.",
            partial(_in_bytes, compared=True),
            (partial(_in_bytes, compared=False),),
        ),
        Mistake(
            "the bytes of the new token stand in reverse",
            "the left token's bytes come first, as in the text.",
            partial(_trained, turned=True),
        ),
        Mistake(
            "the text is changed first",
            "capitals and white space are text too: every byte of it counts.",
            _changed(str.lower),
            (_changed(str.strip), _changed(lambda text: text.lower().strip())),
        ),
        Mistake(
            "the text is not split into words first",
            'without the split, tokens such as "e t" join pieces of two words.',
            partial(_trained, split=lambda text: [text.encode()]),
        ),
        Mistake(
            "the split loses the spaces",
            "GPT-2's pattern keeps the space in front of its word; a text without spaces cannot be put together again.",
            partial(_trained, split=_without_spaces),
            (
                partial(_trained, split=_by_pattern(r"\w+|[^\w\s]+")),
                partial(_trained, split=_by_pattern(r"\w+")),
                partial(_trained, split=lambda text: [word.encode() for word in text.split(" ")]),
            ),
        ),
        Mistake(
            "the text is split by another rule than GPT-2's pattern",
            "the pieces decide which pairs exist at all; use GPT2_SPLIT_PATTERN with the package regex.",
            partial(_trained, split=_by_pattern(r"\S+|\s+")),
            (
                partial(_trained, split=_by_pattern(r"\s*\S+|\s+")),
                partial(_trained, split=_by_pattern(r"\s?\S+")),
                partial(_trained, split=_by_lines(keep=True)),
                partial(_trained, split=_by_lines(keep=False)),
                partial(_trained, split=_by_pattern(r" ?\S+|\s+")),
                partial(_trained, split=_by_pattern(r"\S+\s*|\s+")),
                partial(_trained, split=_by_pattern(r" ?\w+| ?[^\w\s]+|\s+")),
                partial(_trained, split=_by_pattern(r"\w+|[^\w\s]+|\s+")),
                partial(
                    _trained,
                    split=_by_pattern(r"'s|'t|'re|'ve|'m|'ll|'d| ?[a-zA-Z]+| ?[0-9]+| ?[^\sa-zA-Z0-9]+|\s+(?!\S)|\s+"),
                ),
                partial(_trained, split=lambda text: [b" " + word for word in _without_spaces(text)]),
            ),
        ),
        Mistake(
            "characters are the smallest pieces, not bytes",
            "there are far more than 256 characters; with the 256 bytes of UTF-8 every text can be written.",
            partial(_trained, symbols=_characters),
            (partial(_trained, symbols=lambda piece: _single_bytes(piece.decode().encode("latin-1", "replace"))),),
        ),
        Mistake(
            "characters outside ASCII are left out",
            "their UTF-8 bytes are bytes like any others; encode the text as UTF-8, and nothing is lost.",
            partial(_trained, split=lambda text: (p.decode().encode("ascii", "ignore") for p in split_text(text))),
            (partial(_trained, split=lambda text: (p.decode().encode("ascii", "replace") for p in split_text(text))),),
        ),
        Mistake(
            "vocab_size counts the merges without the 256 bytes",
            "the single bytes are tokens too: vocab_size - 256 merges fill the vocabulary.",
            partial(_trained, extra=256),
        ),
        Mistake(
            "one merge too many",
            "the vocabulary, with the 256 bytes, must not grow beyond vocab_size.",
            partial(_trained, extra=1),
        ),
        Mistake(
            "a merge is made where there is room for none",
            "vocab_size may be 256: look at the size before the merge, not after it.",
            lambda text, vocab_size: _trained(text, max(vocab_size, 257)),
        ),
        Mistake(
            "one merge too few",
            "while pairs are left, the vocabulary, with the 256 bytes, must reach vocab_size.",
            partial(_trained, extra=-1),
        ),
        Mistake(
            "the single bytes are missing in the vocabulary",
            "they come first, with ranks 0 to 255, so that every text can be encoded.",
            partial(_trained, answer=lambda tokens, pairs: {t: i for i, t in enumerate(tokens) if i >= 256}),
            (partial(_trained, answer=lambda tokens, pairs: {t: i for i, t in enumerate(tokens[256:])}),),
        ),
        Mistake(
            "only the bytes that the text holds are in the vocabulary",
            "another text may hold other bytes: all 256 belong in, byte i with rank i.",
            partial(_only_bytes_seen, renumbered=True),
            (partial(_only_bytes_seen, renumbered=False),),
        ),
        Mistake(
            "the ranks of the merged tokens do not begin at 256",
            "a rank is an id too, and 0 to 255 belong to the single bytes.",
            partial(_trained, answer=_merges_from(0)),
            (partial(_trained, answer=_merges_from(1)), partial(_trained, answer=_merges_from(257))),
        ),
        Mistake(
            "the dict leads from rank to token",
            "encode asks for the rank of some bytes: the bytes are the keys.",
            partial(_trained, answer=lambda tokens, pairs: dict(enumerate(tokens))),
        ),
        Mistake(
            "the merges are returned, not the vocabulary",
            "the keys must be tokens, bytes joined together, and the single bytes belong in as well.",
            partial(_trained, answer=lambda tokens, pairs: {p: 256 + i for i, p in enumerate(pairs)}),
            (
                partial(_trained, answer=lambda tokens, pairs: pairs),
                partial(
                    _trained, answer=lambda t, pairs: {tuple(map(t.index, p)): 256 + i for i, p in enumerate(pairs)}
                ),
                partial(_trained, answer=lambda tokens, pairs: [tuple(map(tokens.index, pair)) for pair in pairs]),
            ),
        ),
        Mistake(
            "a list of tokens comes back, not a dict",
            "encode asks for the rank of some bytes, and a dict answers that at once.",
            partial(_trained, answer=lambda tokens, pairs: tokens),
        ),
        Mistake(
            "tokens are strings, not bytes",
            "a token may hold half a character, which no string can.",
            partial(_trained, answer=lambda tokens, pairs: {t.decode("latin-1"): i for i, t in enumerate(tokens)}),
            (partial(_trained, answer=lambda ts, pairs: {t.decode(errors="replace"): i for i, t in enumerate(ts)}),),
        ),
        Mistake(
            "a word counts once, however often it occurs",
            "pairs of frequent words must be merged first: weigh each word by its count.",
            partial(_trained, weighted=False),
        ),
        Mistake(
            "a pair that overlaps with the one before it is not counted",
            '"aaa" holds the pair (a, a) twice.',
            partial(_trained, pairs_of=apart_pairs),
        ),
        Mistake(
            "a pair counts once a word, however often it stands in it",
            "every place counts; a set forgets how often it met a pair.",
            partial(_trained, pairs_of=lambda word: dict.fromkeys(pairwise(word))),
        ),
        Mistake(
            "the code fails when no pair is left",
            "a short text has few pairs; training stops early then, with a smaller vocabulary.",
            partial(_trained, crash=True),
        ),
        Mistake(
            "training stops when no pair occurs twice",
            "it goes on while any pair is left, and the vocabulary has room.",
            partial(_trained, least=2),
        ),
        Mistake(
            "the counts are those of the beginning",
            "after each merge new pairs exist, and old ones are rarer: count again.",
            _counted_once,
        ),
        Mistake(
            "the pair is never merged in the words",
            "the same pair wins again and again, and no longer token can be found.",
            partial(_trained, stale=True),
        ),
        Mistake(
            "the documents are joined into one text",
            "no pair may span two documents: split each by itself.",
            partial(_trained, documents=_joined("")),
            (
                partial(_trained, documents=_joined(" ")),
                partial(_trained, documents=_joined("\n")),
                partial(_trained, documents=_joined("<|endoftext|>")),
            ),
        ),
        Mistake(
            "the list of documents is turned into text by str()",
            "its brackets, commas and quotes are then learned too.",
            partial(_trained, documents=lambda text: [str(text)]),
        ),
        Mistake(
            "only one of the documents is read",
            "a list holds several texts, and all of them count.",
            partial(_trained, documents=lambda text: _documents(text)[:1]),
            (partial(_trained, documents=lambda text: _documents(text)[-1:]),),
        ),
        Mistake(
            "a document that comes again is left out",
            "what is written twice counts twice.",
            partial(_trained, documents=lambda text: list(dict.fromkeys(_documents(text)))),
        ),
        Mistake(
            "<|endoftext|> is in the vocabulary",
            "it is not learned: a tokenizer adds it later, behind all others.",
            partial(_trained, answer=lambda tokens, pairs: _as_ranks([*tokens, b"<|endoftext|>"], [])),
        ),
        Mistake(
            "a single text is taken for a list of documents",
            "a loop over a string gives its letters: no word is left, and no pair. Make it a list of one text first.",
            partial(_trained, documents=list),
        ),
        Mistake(
            "a list of documents cannot be read",
            "text may be one string or a list of strings.",
            partial(_trained, documents=lambda text: [text.strip() and text]),
        ),
    ),
    properties=(
        Property(
            "the ranks are 0, 1, 2, … without a gap",
            lambda f, **given: sorted((r := f(*given.values())).values()) == list(range(len(r))),
        ),
        Property(
            "the vocabulary holds the 256 bytes, and never more than vocab_size tokens",
            lambda f, text, vocab_size: 256 <= len(f(text, vocab_size)) <= vocab_size,
        ),
        Property(
            "each token after the bytes joins two tokens of lower rank",
            lambda f, **given: all(_joins(token, rank, r) for r in [f(*given.values())] for token, rank in r.items()),
        ),
        Property(
            "no token reaches over the edge of a piece",
            lambda f, text, vocab_size: all(
                len(token) == 1
                or any(token in piece for document in _documents(text) for piece in split_text(document))
                for token in f(text, vocab_size)
            ),
        ),
    ),
    hints=(
        "Split each document with GPT-2's pattern, turn each piece into a tuple of byte values, and count these words "
        "in a Counter. count_pairs and merge_pair do most of the rest.",
        "One round: count the pairs, choose one, name a new token, merge it in every word. max with a key can settle "
        "ties: which two byte strings does a pair of ids stand for? And what does max do when nothing is left?",
        "Plan: tokens is a list of 256 single bytes. While it is shorter than vocab_size: count; stop if there is no "
        "pair; choose by (count, left bytes, right bytes); merge it in all words; append left + right. At the end a "
        "dict from each token to its place.",
    ),
)

EXERCISES = (TRAIN_BPE,)
