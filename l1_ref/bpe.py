"""Byte-pair encoding as pure functions: train it on a text, then turn text into ids."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import no_type_check

import regex

GPT2_SPLIT_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

_SPLIT = regex.compile(GPT2_SPLIT_PATTERN)
_COMPLEMENT = bytes(range(255, -1, -1))
_MERGED = -1  # stands in for the id of a position that was merged into its left neighbour

Pair = tuple[int, int]


def count_pairs(words: Mapping[tuple[int, ...], int]) -> Counter[Pair]:
    """Count the neighbouring ids in a collection of words.

    Args:
        words: ids of each distinct word, with the number of times the word occurs.

    Returns:
        Occurrences of each pair, every word counted as often as it occurs; (1, 1, 1) holds the pair (1, 1) twice.

    Example:
        >>> dict(count_pairs({(1, 1, 1): 2, (1, 2): 5}))
        {(1, 1): 4, (1, 2): 5}
    """
    counts: Counter[Pair] = Counter()
    for word, n_occurrences in words.items():
        for pair in pairwise(word):
            counts[pair] += n_occurrences
    return counts


def merge_pair(word: tuple[int, ...], pair: Pair, new_id: int) -> tuple[int, ...]:
    """Replace a pair of neighbouring ids by one id, from left to right.

    Args:
        word: ids.
        pair: the two ids to join; occurrences that overlap are taken from the left.
        new_id: the id that stands for both.

    Returns:
        The word with every occurrence replaced.

    Example:
        >>> merge_pair((1, 2, 1, 2, 3), pair=(1, 2), new_id=9)
        (9, 9, 3)
    """
    merged: list[int] = []
    i = 0
    while i < len(word):
        if word[i : i + 2] == pair:
            merged.append(new_id)
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return tuple(merged)


def split_text(text: str) -> Iterator[bytes]:
    """Cut a text into the pieces that merges never cross: words, numbers, punctuation, white space.

    Args:
        text: any string; a lone surrogate, which UTF-8 cannot hold, becomes U+FFFD, as in tiktoken.

    Yields:
        The UTF-8 bytes of each piece; together they are the whole text.

    Source: Radford et al. 2019, Language Models are Unsupervised Multitask Learners, section 2.2 and its code.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    for match in _SPLIT.finditer(text):
        yield match.group().encode("utf-8")


def train_bpe(text: str | Sequence[str], vocab_size: int) -> dict[bytes, int]:
    """Learn a byte-pair vocabulary: join the most frequent pair of neighbours, again and again.

    Of pairs that are equally frequent the lexicographically greatest pair of byte strings is joined. Each merge costs
    time in proportion to the places where the pair occurs, not to the length of the text.

    Args:
        text: one text or several documents; no pair spans two documents.
        vocab_size: tokens in the vocabulary, the 256 single bytes included; at least 256.

    Returns:
        Rank, which is also the id, of each token; byte i has rank i. Fewer than `vocab_size` when no pair is left.

    Raises:
        ValueError: `vocab_size` is below 256.

    Example:
        >>> ranks = train_bpe("low lower lowest", vocab_size=259)
        >>> list(ranks)[256:]
        [b'ow', b'low', b'lowe']

    Source: Sennrich et al. 2016, Neural Machine Translation of Rare Words with Subword Units, algorithm 1.
    """
    if vocab_size < 256:
        raise ValueError(f"vocab_size must be at least 256, the number of single bytes, got vocab_size={vocab_size}")
    documents = [text] if isinstance(text, str) else text
    pairs = _PairIndex(Counter(piece for document in documents for piece in split_text(document)))
    while len(pairs.tokens) < vocab_size and (pair := pairs.most_frequent()) is not None:
        pairs.merge(pair)
    # Two pairs never join to the same bytes: wherever these bytes stand alone, the same merges have met them.
    return {token: rank for rank, token in enumerate(pairs.tokens)}


class _PairIndex:
    """Where each pair of neighbours occurs in the distinct words, kept up to date while pairs are merged.

    The words lie one after the other in flat lists, linked to their neighbours; -1 ends a word on either side. What
    runs once a place is left out of the type checks of the tests, which would take most of the time.
    """

    def __init__(self, words: Mapping[bytes, int]) -> None:
        self.tokens = [bytes([byte]) for byte in range(256)]
        self.ids: list[int] = []
        self.weight: list[int] = []
        self.left: list[int] = []
        self.right: list[int] = []
        self.places: defaultdict[Pair, list[int]] = defaultdict(list)
        for word, n_occurrences in words.items():
            first, last = len(self.ids), len(self.ids) + len(word) - 1
            self.ids += word
            self.weight += [n_occurrences] * len(word)
            self.left += [-1, *range(first, last)]
            self.right += [*range(first + 1, last + 1), -1]
            for place in range(first, last):
                self.places[self.ids[place], self.ids[place + 1]].append(place)
        self.counts = count_pairs({tuple(word): n_occurrences for word, n_occurrences in words.items()})
        self.heap = [self._entry(pair) for pair in self.counts]
        heapq.heapify(self.heap)

    @no_type_check
    def _entry(self, pair: Pair) -> tuple[int, str, str, Pair]:
        """Give the heap entry of a pair: the smallest is the most frequent pair, then the greatest bytes."""
        # Complemented bytes sort backwards; the end mark sorts after every byte, so a prefix comes last as it must.
        left, right = (self.tokens[i].translate(_COMPLEMENT).decode("latin-1") + "\u0100" for i in pair)
        return -self.counts[pair], left, right, pair

    def most_frequent(self) -> Pair | None:
        """Find the next pair to merge, or None when no pair is left."""
        while self.heap:
            n_occurrences, _, _, pair = heapq.heappop(self.heap)
            if -n_occurrences == self.counts[pair]:
                return pair
            if self.counts[pair] > 0:  # the count fell since: queue it again at its true place
                heapq.heappush(self.heap, self._entry(pair))
        return None

    def merge(self, pair: Pair) -> None:
        """Make a token of a pair: join every occurrence, and correct the counts of the pairs around it."""
        new_id = len(self.tokens)
        self.tokens.append(self.tokens[pair[0]] + self.tokens[pair[1]])
        grown: set[Pair] = set()
        for place in sorted(self.places.pop(pair)):
            after = self.right[place]
            if self.ids[place] != pair[0] or after < 0 or self.ids[after] != pair[1]:
                continue  # an earlier merge changed this place
            self._join(place, after, new_id, grown)
        self.counts.pop(pair)
        for changed in grown:
            if self.counts[changed] > 0:
                heapq.heappush(self.heap, self._entry(changed))

    @no_type_check
    def _join(self, place: int, after: int, new_id: int, grown: set[Pair]) -> None:
        ids, weight = self.ids, self.weight[place]
        before, beyond = self.left[place], self.right[after]
        if before >= 0:
            self.counts[ids[before], ids[place]] -= weight
            self._add((ids[before], new_id), before, weight, grown)
        if beyond >= 0:
            self.counts[ids[after], ids[beyond]] -= weight
            self._add((new_id, ids[beyond]), place, weight, grown)
            self.left[beyond] = place
        self.right[place] = beyond
        ids[place], ids[after] = new_id, _MERGED

    @no_type_check
    def _add(self, pair: Pair, place: int, weight: int, grown: set[Pair]) -> None:
        self.counts[pair] += weight
        self.places[pair].append(place)
        grown.add(pair)


def encode(text: str, ranks: Mapping[bytes, int]) -> list[int]:
    """Turn text into ids with a byte-pair vocabulary: the same ids as tiktoken gives.

    A piece of text that is itself a token is one id. In any other piece the neighbours that join to the token of the
    lowest rank are joined first, the leftmost of equals first, until no neighbours join.

    Args:
        text: any string; `<|endoftext|>` is plain text here, and a lone surrogate becomes U+FFFD.
        ranks: rank, which is also the id, of each token; GPT-2's ranks, where byte i is not id i, are as good.

    Returns:
        The ids. Characters newer than the Unicode tables of `regex` or of tiktoken may be split differently there.

    Raises:
        ValueError: a byte of the text is not in the vocabulary.

    Example:
        >>> ranks = train_bpe("low lower lowest", vocab_size=259)
        >>> encode("lowly", ranks)  # low, l, y
        [257, 108, 121]

    Source: Sennrich et al. 2016, section 3.2.
    """
    known: dict[bytes, list[int]] = {}
    ids: list[int] = []
    for piece in split_text(text):
        piece_ids = known.get(piece)
        if piece_ids is None:
            piece_ids = known[piece] = [ranks[piece]] if piece in ranks else _merge_piece(piece, ranks)
        ids += piece_ids
    return ids


@no_type_check
def _merge_piece(piece: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """Join neighbours, lowest rank first, with a heap over linked parts: n log n in the length of the piece."""
    stop = list(range(1, len(piece) + 1))  # where the part that starts here ends; 0 once it is merged away
    previous = list(range(-1, len(piece) - 1))  # where the part before starts
    heap: list[tuple[int, int, int, int]] = []
    changed: Sequence[int] = range(len(piece))  # parts that are new, or have a new part behind them
    while heap or changed:
        for start in changed:
            middle = stop[start]
            if middle < len(piece) and (rank := ranks.get(piece[start : stop[middle]])) is not None:
                heapq.heappush(heap, (rank, start, middle, stop[middle]))
        changed = ()
        if not heap:
            break
        _, start, middle, end = heapq.heappop(heap)
        if stop[start] != middle or stop[middle] != end:
            continue  # one of the two parts has grown since
        stop[start], stop[middle] = end, 0
        if end < len(piece):
            previous[end] = start
        changed = (start,) if start == 0 else (previous[start], start)
    return _ids_of_parts(piece, stop, ranks)


@no_type_check
def _ids_of_parts(piece: bytes, stop: list[int], ranks: Mapping[bytes, int]) -> list[int]:
    ids: list[int] = []
    start = 0
    while start < len(piece):
        part = piece[start : stop[start]]
        if part not in ranks:
            raise ValueError(f"ranks must hold every single byte of the text, {part!r} is missing")
        ids.append(ranks[part])
        start = stop[start]
    return ids
