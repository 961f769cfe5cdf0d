"""The checks of 01_tokens on pairs: count_pairs and merge_pair."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import combinations, pairwise
from numbers import Integral
from typing import Any

import torch

from l1_ref.bpe import count_pairs, merge_pair, split_text
from l1_ref.checks import engine
from l1_ref.checks.compare import same
from l1_ref.checks.engine import Exercise, Inputs, Mistake, Property
from l1_ref.checks.observe import observe_through

Probe = partial(engine.Probe, gradient=False)  # ids and texts have no gradients


def given(**inputs: Any) -> Callable[[torch.Generator], Inputs]:
    """Return the builder of a probe whose inputs are always the same."""
    return lambda generator: dict(inputs)


class Inexact(str):
    """A float where whole numbers belong: it equals no number, and is shown as it is."""

    __repr__ = str.__str__


@cache
def _iterator(kind: str) -> Any:
    return type(kind, (), {})()


def plain(value: Any) -> Any:
    """Make whole numbers of every kind alike, such as numpy's, keep floats apart, and name iterators by their kind."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        return Inexact(repr(value))
    if isinstance(value, Iterator):
        return _iterator(type(value).__name__)  # two of them are never equal
    return type(value)(map(plain, value)) if type(value) in (list, tuple) else value


def _as_counter(counts: Any) -> Any:
    """Give any mapping as a Counter, without the pairs that never occur; anything else as it is."""
    if not isinstance(counts, Mapping):
        return counts
    return Counter({pair: n for pair, n in counts.items() if not same(n, 0, 0.0)})


def counted(words: Mapping, *, pairs: Callable = pairwise, weighted=True, added=True, emptied=False, make=Counter):
    """Count as the reference does; each switch is a mistake."""
    counts: Counter = Counter()
    for word, n_occurrences in list(words.items()):
        for pair in pairs(word):
            counts[pair] = added * counts[pair] + (n_occurrences if weighted else 1)
    if emptied:
        words.clear()
    return make(counts)


def apart_pairs(word: Sequence) -> Iterator[tuple]:
    """Yield the neighbours, but not those that overlap with an equal pair just before."""
    last: tuple = (None, -2)
    for i, pair in enumerate(pairwise(word)):
        if last != (pair, i - 1):
            last = (pair, i)
            yield pair


def _first_word(words: Mapping, *, nothing: Any) -> Any:
    """Return inside the loop over the words."""
    for word, n_occurrences in words.items():
        return count_pairs({word: n_occurrences})
    return nothing


def _past_end(words: Mapping) -> Counter:
    """Index the neighbour of every id: the last one has none."""
    return counted(words, pairs=lambda word: [(word[i], word[i + 1]) for i in range(len(word))])


def _across(words: Mapping, *, repeated: bool, weight: Callable = min) -> Counter:
    """Count over the words laid end to end, each as often as it occurs or once with its weight."""
    if repeated:
        return Counter(pairwise([i for word, n in words.items() for i in word * n]))
    counts = count_pairs(words)
    for (left, n_left), (right, n_right) in pairwise((w, n) for w, n in words.items() if w):
        counts[left[-1], right[0]] += weight(n_left, n_right)
    return counts


COUNT_PAIRS = Exercise(
    name="count_pairs",
    notebook="01_tokens",
    reference=count_pairs,
    observe=partial(observe_through, _as_counter),
    probes=(
        Probe("one word that occurs twice", given(words=Counter({(1, 2, 3): 2}))),
        Probe("two words with a pair in common", given(words=Counter({(1, 2, 3): 4, (5, 1, 2): 3}))),
        Probe("falling ids", given(words=Counter({(9, 4, 6): 2, (4, 9): 5, (6, 4): 7}))),
        Probe("the same id three times", given(words=Counter({(7, 7, 7): 2}))),
        Probe("a pair twice in one word", given(words=Counter({(3, 8, 3, 8): 5, (8,): 2, (8, 3, 3, 3, 3): 1}))),
        Probe(
            "the bytes of a text",
            given(words=Counter(tuple(w) for w in split_text("the cat and the rat and the hat, all in all"))),
        ),
        Probe("a word of one id", given(words=Counter({(5,): 3, (256, 5): 1})), edge=True),
        Probe("no other word than one of one id", given(words=Counter({(5,): 3}))),
        Probe("a word of no ids", given(words=Counter({(): 2}))),
        Probe("no word", given(words=Counter()), edge=True),
    ),
    mistakes=(
        Mistake(
            "a word counts once, however often it occurs",
            "a frequent word must weigh more than a rare one: that is why the words come with their counts.",
            partial(counted, weighted=False),
        ),
        Mistake(
            "a pair that overlaps with the one before it is not counted",
            "(1, 1, 1) has two places with a neighbour on the right, so it holds (1, 1) twice.",
            partial(counted, pairs=apart_pairs),
        ),
        Mistake(
            "a pair counts once a word, however often it stands in it",
            "every place counts; a set forgets how often it met a pair.",
            partial(counted, pairs=lambda word: dict.fromkeys(pairwise(word))),
        ),
        Mistake(
            "the order within a pair is lost",
            '"th" and "ht" are two different pairs, and become two different tokens.',
            partial(counted, pairs=lambda word: (tuple(sorted(pair)) for pair in pairwise(word))),
            (partial(counted, pairs=lambda word: map(frozenset, pairwise(word))),),
        ),
        Mistake(
            "each pair stands in reverse",
            "a pair reads from left to right, as the text does.",
            partial(counted, pairs=lambda word: (pair[::-1] for pair in pairwise(word))),
        ),
        Mistake(
            "the last pair of each word is missed",
            "a word of n ids has n - 1 pairs; the last one begins at the last id but one.",
            partial(counted, pairs=lambda word: pairwise(word[:-1])),
        ),
        Mistake(
            "the first pair of each word is missed",
            "a word of n ids has n - 1 pairs; the first one begins at its first id.",
            partial(counted, pairs=lambda word: pairwise(word[1:])),
        ),
        Mistake(
            "the last id of each word is counted alone",
            "a slice word[i : i + 2] is one id short at the last place: a word of n ids has n - 1 pairs.",
            partial(counted, pairs=lambda word: (word[i : i + 2] for i in range(len(word)))),
        ),
        Mistake(
            "the code looks one id past the end of a word",
            "the last id has no neighbour on its right: a word of n ids has n - 1 pairs.",
            _past_end,
        ),
        Mistake(
            "words of two ids are passed over",
            "a word of two ids has one pair; only shorter words have none.",
            partial(counted, pairs=lambda word: pairwise(word) if len(word) > 2 else ()),
        ),
        Mistake(
            "only the first word is counted",
            "return after the loop over the words, not inside it.",
            partial(_first_word, nothing=None),
            (partial(_first_word, nothing=Counter()),),
        ),
        Mistake(
            "the last id of a word is paired with its first",
            "a word is no ring; word[i - 1] with i = 0 is its last id.",
            partial(counted, pairs=lambda word: zip(word, word[1:] + word[:1], strict=True)),
            (partial(counted, pairs=lambda word: pairwise(word + word[:1]) if len(word) > 1 else ()),),
        ),
        Mistake(
            "a word is cut into pairs side by side",
            "each id but the last begins a pair: (1, 2, 3) holds (1, 2) and (2, 3).",
            partial(counted, pairs=lambda word: zip(word[::2], word[1::2], strict=False)),
        ),
        Mistake(
            "ids that are no neighbours are paired too",
            "only neighbours can be merged into one token.",
            partial(counted, pairs=lambda word: combinations(word, 2)),
            (partial(counted, pairs=lambda word: zip(word, word[2:], strict=False)),),
        ),
        Mistake(
            "single ids are counted, not pairs",
            "a merge joins two neighbours, so the two must be counted together.",
            partial(counted, pairs=iter),
        ),
        Mistake(
            "pairs reach from one word into the next",
            "a token never spans two words, and the words stand in no order here.",
            partial(_across, repeated=True),
            (
                partial(_across, repeated=False),
                partial(_across, repeated=False, weight=max),
                partial(_across, repeated=False, weight=lambda left, right: left),
                partial(_across, repeated=False, weight=lambda left, right: right),
                partial(_across, repeated=False, weight=lambda left, right: 1),
                lambda words: Counter(pairwise([i for word in words for i in word])),
            ),
        ),
        Mistake(
            "a count is overwritten when the pair comes again",
            "a pair can occur many times, in one word or in several; its counts must be added up.",
            partial(counted, added=False),
        ),
        Mistake(
            "the words are changed",
            "training still needs them for the merge.",
            partial(counted, emptied=True),
        ),
        Mistake(
            "the pairs come back without their counts",
            "the next step picks the most frequent pair, and needs the counts for it.",
            partial(counted, make=set),
            (partial(counted, make=list),),
        ),
        Mistake(
            "the counts come back as a list of pairs and numbers",
            "the next step looks up a pair's count; a Counter does that.",
            partial(counted, make=lambda counts: counts.most_common()),
            (partial(counted, make=lambda counts: list(counts.items())),),
        ),
    ),
    properties=(
        Property(
            "every key is a pair: a tuple of two ids",
            lambda f, words: all(isinstance(pair, tuple) and len(pair) == 2 for pair in f(words)),
        ),
        Property(
            "a word of n ids adds n - 1 to the sum of all counts, each time it occurs",
            lambda f, words: sum(f(words).values()) == sum(n * max(len(word) - 1, 0) for word, n in words.items()),
        ),
    ),
    hints=(
        "Take one word by hand: which pairs of neighbours does (1, 2, 3) hold, and how many (1, 1, 1)?",
        "A word that occurs five times adds five to each of its pairs, at each place where the pair stands.",
        "Plan: begin with an empty Counter. For each word and its count, go through the neighbours (`pairwise`, "
        "imported above, is one way), and add the count to the pair's.",
    ),
)


# merge_pair


def _first(two: tuple, pair: tuple) -> bool:
    return two[0] == pair[0]


def _second(two: tuple, pair: tuple) -> bool:
    return two[-1] == pair[1]


def merged(word, pair, new_id, *, match=tuple.__eq__, skip=2, stop=0, tail=True, once=False, turned=False, make=tuple):
    """Merge as the reference does; each switch is a mistake."""
    word, pair = (word[::-1], pair[::-1]) if turned else (word, pair)
    merged: list = []
    i = 0
    while i < len(word) - stop:
        if match(word[i : i + 2], pair) and not (once and new_id in merged):
            merged.append(new_id)
            i += skip
        else:
            merged.append(word[i])
            i += 1
    merged += word[i:] if tail else ()
    return make(merged[::-1] if turned else merged)


def _merged_with_gap(word, pair, new_id, *, gap: Any, kept: Callable = lambda i: True):
    """Write into a copy of the word: the new id, and something in the place of the second id, to be left out later."""
    longer = list(word)
    for i in range(len(word) - 1):
        if (longer[i], longer[i + 1]) == pair:
            longer[i : i + 2] = [new_id, gap]
    return tuple(filter(kept, longer))


def _second_kept(word, pair, new_id):
    return tuple(i for one in merged(word, pair, None) for i in ((new_id, pair[1]) if one is None else (one,)))


def _merged_past_end(word, pair, new_id, *, both: bool):
    merged, i = [], 0
    while i < len(word):
        if (both or word[i] == pair[0]) and (word[i], word[i + 1]) == pair:
            merged.append(new_id)
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return tuple(merged)


def _merged_at_once(word, pair, new_id, *, chained: bool):
    """Find all matches first, then write: what overlaps is lost, or written twice."""
    found = [two == pair for two in pairwise(word)]
    kept = [i for i in range(len(word)) if not (i and found[i - 1]) or (chained and i < len(found) and found[i])]
    return tuple(new_id if i < len(found) and found[i] else word[i] for i in kept)


def _merged_as_text(word, pair, new_id):
    text = ",".join(map(str, word)).replace(",".join(map(str, pair)), str(new_id))
    return tuple(int(part) for part in text.split(",") if part)


def _inserted(word, pair, new_id, *, place: int):
    """Keep the pair, and write the new id before, between or behind it."""
    longer = list(word)
    for i in reversed(range(len(word) - 1)):
        if word[i : i + 2] == pair:
            longer.insert(i + place, new_id)
    return tuple(longer)


def _merged_at_first_place(word, pair, new_id):
    return (new_id, *(i for i in word if i not in pair)) if pair in pairwise(word) else word


def _merged_in_bytes(word, pair, new_id):
    return tuple(bytes(word).replace(bytes(pair), bytes([new_id])))


def _last_again(word, pair, new_id):
    return merged(word, pair, new_id, stop=1, tail=False) + word[-1:]


MERGE_PAIR = Exercise(
    name="merge_pair",
    notebook="01_tokens",
    reference=merge_pair,
    observe=partial(observe_through, plain),
    probes=(
        Probe("the pair at the beginning", given(word=(1, 2, 3), pair=(1, 2), new_id=9)),
        Probe("the pair at the end", given(word=(3, 4, 1, 2), pair=(1, 2), new_id=9)),
        Probe("the pair twice", given(word=(1, 2, 5, 1, 2, 4), pair=(1, 2), new_id=9)),
        Probe("either id alone, and the pair in reverse", given(word=(2, 1, 3, 1, 4, 2, 5), pair=(1, 2), new_id=9)),
        Probe("the word ends as the pair begins", given(word=(1, 2, 3, 1), pair=(1, 2), new_id=9)),
        Probe("the same id three times", given(word=(7, 7, 7), pair=(7, 7), new_id=9)),
        Probe("the same id four and five times", given(word=(7,) * 4 + (3,) + (7,) * 5, pair=(7, 7), new_id=9)),
        Probe("one pair right behind another", given(word=(4, 1, 2, 1, 2, 1, 2), pair=(1, 2), new_id=9)),
        Probe("ids that look alike when written", given(word=(11, 2, 5, 1, 2, 21), pair=(1, 2), new_id=9)),
        Probe("ids above 255", given(word=(256, 101, 300, 256, 101), pair=(256, 101), new_id=301)),
        Probe("the pair is not there", given(word=(3, 1, 4), pair=(1, 2), new_id=9)),
        Probe("the id 0", given(word=(0, 1, 2, 0), pair=(1, 2), new_id=9)),
        Probe("the word is the pair", given(word=(1, 2), pair=(1, 2), new_id=9), edge=True),
        Probe("one id", given(word=(1,), pair=(1, 2), new_id=9), edge=True),
    ),
    mistakes=(
        Mistake(
            "a list comes back, not a tuple",
            "words are keys of a Counter, and a list cannot be a key.",
            partial(merged, make=list),
        ),
        Mistake(
            "a generator comes back, not a tuple",
            "a comprehension in round brackets makes no tuple; words are keys of a Counter, so put tuple(...) around.",
            partial(merged, make=lambda ids: (i for i in ids)),
        ),
        Mistake(
            "only the first occurrence is merged",
            "every place where the pair stands must become the new id, or the counts no longer fit the words.",
            partial(merged, once=True),
        ),
        Mistake(
            "occurrences that overlap are taken from the right",
            "all who use a vocabulary must cut (7, 7, 7) the same way: from the left, (new, 7).",
            partial(merged, turned=True),
        ),
        Mistake(
            "occurrences that overlap are all merged",
            "once two ids are merged, neither is free for another pair: (7, 7, 7) becomes (new, 7).",
            partial(_merged_at_once, chained=False),
            (partial(_merged_at_once, chained=True),),
        ),
        Mistake(
            "only the first id of the pair is compared",
            "both ids must fit; otherwise ids that are not in the pair vanish.",
            partial(merged, match=_first),
            (partial(merged, match=lambda two, pair: len(two) == 2 and _first(two, pair)),),
        ),
        Mistake(
            "only the second id of the pair is compared",
            "both ids must fit; otherwise ids that are not in the pair vanish.",
            partial(merged, match=lambda two, pair: len(two) == 2 and _second(two, pair)),
        ),
        Mistake(
            "the pair is found in reverse too",
            "(2, 1) is another pair than (1, 2), and stands for other text.",
            partial(merged, match=lambda two, pair: sorted(two) == sorted(pair)),
            (partial(merged, match=lambda two, pair: set(two) == set(pair)),),
        ),
        Mistake(
            "any id of the pair is replaced",
            "the two must stand side by side, in this order.",
            lambda word, pair, new_id: tuple(new_id if i in pair else i for i in word),
            (_merged_at_first_place,),
        ),
        Mistake(
            "the last id is lost",
            "the last id has no neighbour on its right, but it belongs to the word.",
            partial(merged, stop=1, tail=False),
        ),
        Mistake(
            "the last id is added again after a pair at the end",
            "it is part of the new id already.",
            _last_again,
        ),
        Mistake(
            "a pair at the end of the word is missed",
            "the last pair begins at the last id but one.",
            partial(merged, stop=2),
        ),
        Mistake(
            "the code looks one id past the end of the word",
            "the last id has no neighbour on its right; a slice word[i : i + 2] is short there, an index fails.",
            partial(_merged_past_end, both=False),
            (partial(_merged_past_end, both=True),),
        ),
        Mistake(
            "the second id of the pair stays behind the new one",
            "the new id stands for both; the search must go on two places further.",
            partial(merged, skip=1),
            (_second_kept,),
        ),
        Mistake(
            "a gap stays where the second id of the pair stood",
            "a merge makes the word shorter: two ids become one.",
            partial(_merged_with_gap, gap=None),
            (partial(_merged_with_gap, gap=-1),),
        ),
        Mistake(
            "the id 0 is lost",
            "0 is an id like any other, byte 0, but Python takes it for False: ask for None, or leave no gap at all.",
            partial(_merged_with_gap, gap=None, kept=bool),
        ),
        Mistake(
            "the id behind each merged pair is lost",
            "the new id stands for two ids, so the search goes on two places further, not three.",
            partial(merged, skip=3),
        ),
        Mistake(
            "the new id is inserted, and the pair stays",
            "a merge makes the word shorter: two ids become one.",
            partial(_inserted, place=0),
            (partial(_inserted, place=1), partial(_inserted, place=2)),
        ),
        Mistake(
            "the pair is removed, and nothing stands in its place",
            "the new id must be appended for it.",
            lambda word, pair, new_id: tuple(i for i in merged(word, pair, None) if i is not None),
        ),
        Mistake(
            "ids are compared as text",
            'the end of "11" looks like "1"; compare numbers, not their digits.',
            _merged_as_text,
        ),
        Mistake(
            "ids are put into bytes",
            "a byte holds no more than 255, and every merged id lies above that.",
            _merged_in_bytes,
        ),
        Mistake(
            "the word comes back unchanged",
            "a tuple never changes; the new word has to be built and returned.",
            lambda word, pair, new_id: word,
        ),
    ),
    properties=(
        Property("the result is a tuple", lambda f, **given: type(f(*given.values())) is tuple),
        Property("the pair is nowhere left", lambda f, **given: given["pair"] not in pairwise(f(*given.values()))),
        Property(
            "put back two ids for each new one, and the old word is there",
            lambda f, word, pair, new_id: (
                word == tuple(i for one in f(word, pair, new_id) for i in (pair if one == new_id else (one,)))
            ),
        ),
    ),
    hints=(
        "You cannot change a tuple. Build a list beside it, and turn it into a tuple at the end.",
        "Walk with a place i of your own: where the pair stands, go on by two, elsewhere by one. What is different at "
        "the last id?",
        "Plan: a while loop as long as i is inside the word. Compare the slice of two ids at i with the pair: at the "
        "end it is shorter, and never equal. Append the new id or the old one, move i, and return tuple(...).",
    ),
)

EXERCISES = (COUNT_PAIRS, MERGE_PAIR)
