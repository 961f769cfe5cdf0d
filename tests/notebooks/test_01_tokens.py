"""What 01_tokens says in prose and alt texts, and its figures."""

import itertools
import re
from collections import Counter

import pytest
import torch
from matplotlib.figure import Figure

import l1_ref
from l1_ref import plots
from l1_ref.bpe import split_text
from l1_ref.course import sources
from tests.test_notebooks import prose

PROSE = prose("01_tokens")
CODE = "\n".join(cell.source for cell in sources.load("01_tokens").cells if cell.cell_type == "code")
SMALL = "low" + " low" * 4 + " lower" * 2 + " newest" * 6 + " widest" * 3


@pytest.fixture(scope="module")
def tales():
    return l1_ref.load_tales("train")


@pytest.fixture(scope="module")
def tokenizer():
    return l1_ref.load_tokenizer(l1_ref.DATA_DIR)


def cut(text, ranks):
    tokens = list(ranks)
    return [tokens[i] for i in l1_ref.encode(text, ranks)]


def texts():
    """Return the sample texts that a cell of the notebook defines."""
    (cell,) = [cell for cell in sources.load("01_tokens").cells if cell.source.startswith("TEXTS = ")]
    namespace = {"tale": l1_ref.load_tales("train")[5].split("\n")[0]}
    exec(cell.source.split("def draw_text")[0], namespace)
    return namespace["TEXTS"]


# Bytes and words.


def test_characters_take_one_to_four_bytes():
    assert [len(character.encode()) for character in "cé€😀"] == [1, 2, 3, 4]
    assert "é has two bytes, the face four" in CODE


def test_no_tale_knows_a_lighthouse(tales):
    assert "lighthouse" not in " ".join(tales)


def test_the_pattern_cuts_as_the_prose_says():
    assert [*split_text("a dog! two")] == [b"a", b" dog", b"!", b" two"]
    words = [*split_text("Nell's can't 12ab  x")]
    assert words == [b"Nell", b"'s", b" can", b"'t", b" 12", b"ab", b" ", b" x"]


def test_the_most_frequent_words_are_no_tie(tales):
    words = Counter(piece for tale in tales for piece in split_text(tale))
    with_letters = [(word, n) for word, n in words.most_common() if word.strip().isalpha()]
    assert [word for word, _ in with_letters[:2]] == [b" the", b" a"]
    assert len({n for _, n in with_letters[:3]}) == 3


def test_the_pattern_leaves_fewer_words_than_white_space(tales):
    by_space = set(" ".join(tales).split())
    words = {piece for tale in tales for piece in split_text(tale)}
    assert {"dog", "dog."} <= by_space and b" dog" in words and b" dog." not in words
    assert f"were {len(by_space)} different words" in PROSE and f"The pattern leaves {len(words)}." in PROSE


# The small example.


def test_the_small_text_is_the_papers_example():
    counts = Counter(SMALL.split())
    assert counts == {"low": 5, "lower": 2, "newest": 6, "widest": 3} and len(set(split_text(SMALL))) == 5
    assert SMALL.startswith("low ") and "paper's four words" in PROSE and "five words.)" in PROSE


def test_the_papers_program_meets_es_first():
    words = {(*word, "mark"): n for word, n in Counter(SMALL.split()).items()}
    counts = Counter()
    for word, n_occurrences in words.items():
        for pair in itertools.pairwise(word):
            counts[pair] += n_occurrences
    assert max(counts, key=counts.get) == ("e", "s") and counts["e", "s"] == counts["s", "t"] == 9
    assert (b"e", b"s") < (b"s", b"t")


def test_two_pairs_are_tied_at_nine_and_our_rule_takes_st():
    words = Counter(tuple(piece) for piece in split_text(SMALL))
    counts = l1_ref.count_pairs(words)
    assert sorted(pair for pair, n in counts.items() if n == max(counts.values()) == 9) == [(*b"es",), (*b"st",)]
    assert list(l1_ref.train_bpe(SMALL, 257))[-1] == b"st" and "e + s and s + t both occur nine times" in PROSE


def test_the_slider_ends_where_no_pair_is_left():
    ranks = l1_ref.train_bpe(SMALL, 1000)
    assert len(ranks) == 256 + 15
    words = [cut(piece.decode(), ranks) for piece in set(split_text(SMALL))]
    assert all(len(word) == 1 for word in words)


def test_overlapping_pairs_count_twice_and_merge_once():
    assert l1_ref.count_pairs({(7, 7, 7): 1}) == {(7, 7): 2}
    assert l1_ref.merge_pair((7, 7, 7), (7, 7), 300) == (300, 7) and "becomes `(300, 7)`" in PROSE


def test_ids_and_byte_strings_settle_ties_differently():
    # A learned token has an id above that of every byte, and yet its bytes may come before theirs.
    ranks = l1_ref.train_bpe("ab", 257)
    assert b"ab" < b"b" and ranks[b"ab"] > ranks[b"b"]


# The course's tokenizer.


def test_the_first_entries_are_the_smaller_vocabulary(tales, tokenizer):
    smaller = {token: rank for token, rank in tokenizer.ranks.items() if rank < 300}
    assert l1_ref.train_bpe(tales, 300) == smaller and "its first 300 entries" in PROSE


def test_the_picture_of_one_word_marks_what_was_just_learned(tokenizer):
    tokens = list(tokenizer.ranks)
    rows = []
    for size in range(256, len(tokens) + 1):
        parts = cut(" whispered", {token: rank for token, rank in tokenizer.ranks.items() if rank < size})
        if parts not in rows:
            rows.append(parts)
            assert size == 256 or parts.count(tokens[size - 1]) == 1
    assert len(rows) == 10 and rows[-1] == [b" whispered"] and b"ispered" in rows[-2]


def test_the_predictions_come_true(tales, tokenizer):
    counts = [len(tokenizer.encode(text)) for text in (" moon", "moon", " Moon", " MOON", " 2024", "😀")]
    assert counts == [1, 2, 2, 4, 5, 4]
    assert cut("moo", tokenizer.ranks) == [b"m", b"oo"] and cut("moon", tokenizer.ranks) == [b"m", b"oon"]
    text = "\n".join(tales)
    assert text.isascii() and not re.search(r"\d|[A-Z]{2}|Moon|(?<! )moon", text)
    assert not {*cut(" moon", tokenizer.ranks)} & {*cut("moon", tokenizer.ranks)}
    assert tokenizer.encode("moo") + tokenizer.encode("n") != tokenizer.encode("moon")


def test_the_tokenizer_is_999_tokens_learned_from_the_tales_and_the_mark(tales, tokenizer):
    assert l1_ref.train_bpe(tales, 999) == tokenizer.ranks and tokenizer.vocab_size == 1000
    assert tokenizer.end_of_text == 999
    merges = len(tokenizer.ranks) - 256
    assert f"256 bytes, {merges} merges, and the mark" in PROSE


def merged_only(word, ranks):
    """Encode one word without the rule that a whole token is one id."""
    parts = [bytes([byte]) for byte in word]
    while options := [(ranks[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ranks]:
        _, i = min(options)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [ranks[part] for part in parts]


def test_merging_alone_finds_each_learned_token_but_not_every_token_made_elsewhere(tokenizer):
    small = l1_ref.train_bpe(["aaaa aaab abaab bbaba", "ab aab abb"], 300)
    for ranks in (tokenizer.ranks, small):
        assert all(merged_only(token, ranks) == [rank] for token, rank in ranks.items())
    elsewhere = {bytes([i]): i for i in range(256)} | {b"abc": 256}
    assert l1_ref.encode("abc", elsewhere) == [256] != merged_only(b"abc", elsewhere)


def test_gpt2s_vocabulary_adds_up():
    assert 256 + 50_000 + 1 == l1_ref.L1Config().vocab_size == 50_257 and "50,257: the 256 bytes, 50,000" in PROSE


# A larger vocabulary.


@pytest.fixture(scope="module")
def full(tales):
    return l1_ref.train_bpe(tales, 100_000)


@pytest.fixture(scope="module")
def words(tales):
    return set(itertools.chain.from_iterable(map(split_text, tales)))


def first(size, ranks):
    return {token: rank for token, rank in ranks.items() if rank < size}


def n_used(words, ranks):
    return len({i for word in words for i in l1_ref.encode(word.decode(), ranks) if i >= 256})


def test_the_gain_shrinks_and_ends_where_the_prose_says(full, words):
    samples = {"tales": "\n".join(l1_ref.load_tales("validation")[:50]), **texts()}
    assert all(word in full for word in words)

    def length(name, size):
        return len(samples[name]) / len(l1_ref.encode(samples[name], first(size, full)))

    for name in ("tales", "other English", "German"):
        early, late = length(name, 356) - length(name, 256), length(name, len(full)) - length(name, len(full) - 100)
        assert early > 1.5 * late >= 0
    assert length("German", 256) < 1 == length("tales", 256)
    assert length("other English", len(full)) == pytest.approx(2, abs=0.05)
    assert length("German", len(full)) == pytest.approx(1.4, abs=0.05)
    assert length("tales", len(full)) > 4


def test_most_of_the_later_merges_make_whole_words(full, words):
    learned = list(full)[256:]
    half = len(learned) // 2
    share = [sum(token in words for token in tokens) / len(tokens) for tokens in (learned[:half], learned[half:])]
    assert share[0] < 0.5 < 0.6 < share[1]


def test_steps_on_the_way_are_left_unused(full, words):
    used = {i for word in words for i in l1_ref.encode(word.decode(), full) if i >= 256}
    assert len(used) < 0.6 * (len(full) - 256) and full[b"ispered"] not in used


def test_the_line_of_used_tokens_falls_at_the_end(full, words):
    assert n_used(words, first(1100, full)) > n_used(words, full) > n_used(words, first(1000, full))
    counts = [n_used(words, first(size, full)) for size in range(1140, len(full) + 1)]
    # Each new token is used, so where the number falls by one, two old ones were lost.
    assert -1 in [after - before for before, after in itertools.pairwise(counts)]


# Training examples, and the way back.


def test_an_end_of_text_typed_by_hand_is_plain_text(tokenizer):
    assert tokenizer.end_of_text not in l1_ref.encode("<|endoftext|>", tokenizer.ranks)
    assert len("<|endoftext|>") == 13 and "thirteen characters of plain text" in PROSE
    assert tokenizer.decode_bytes([tokenizer.end_of_text]) == b"<|endoftext|>"
    assert "end-of-text mark" in prose("00_start_here")


def test_one_window_of_the_slider_reaches_from_one_tale_into_the_next(tales, tokenizer):
    ids = [i for tale in tales[:3] for i in (tokenizer.end_of_text, *tokenizer.encode(tale))]
    assert tokenizer.end_of_text in ids[115 : 115 + 9][2:-2] and "as at start 115" in PROSE
    assert "start=[0, 1, 2, 3, 4, 40, 115]" in CODE


def test_both_ends_can_be_drawn():
    x, y = l1_ref.next_token_batch(torch.arange(6), 200, 3, torch.Generator().manual_seed(0))
    assert set(x[:, 0].tolist()) == {0, 1, 2} and y.max() == 5


def test_a_character_is_cut_into_tokens_that_are_no_text(tokenizer):
    tokens = cut("café 😀", tokenizer.ranks)
    assert [len(token) for token in tokens] == [1] * 10 and tokens[3] == bytes([195])
    assert "".join(token.decode(errors="replace") for token in tokens) == "caf\ufffd\ufffd \ufffd\ufffd\ufffd\ufffd"
    assert "the token 195" in PROSE and "é".encode()[0] == 195


def test_in_the_tales_every_token_is_whole_characters(tales, tokenizer):
    assert all(tale.isascii() for tale in tales)
    assert all(token.isascii() for token, rank in tokenizer.ranks.items() if rank >= 256)


# The figures.


def labels(axes):
    return [text.get_text() for text in axes.texts if text.get_text()]


@pytest.mark.parametrize(
    ("token", "label"),
    [(b" a", "␣a"), (b"a\n", "a⏎"), ("é".encode(), "é"), (b"\xc3", "195"), (b"\x9f\x98", "159 152"), (b"\0", "0")],
)
def test_a_token_is_shown_as_text_or_by_its_bytes(token, label):
    assert plots.token_label(token) == label


def test_cuts_are_rows_of_boxes_as_wide_as_their_bytes():
    rows = {"characters": [b"a", "é".encode()], "bytes": [b"a", b"\xc3", b"\xa9"]}
    (axes,) = plots.cuts(rows, numbers=["bytes"], marked={"characters": 1}).axes
    assert labels(axes) == ["a", "é", "97", "195", "169"]
    assert [round(box.get_width(), 3) for box in axes.patches] == [0.9, 1.9, 0.9, 0.9, 0.9]
    fills = [box.get_facecolor() for box in axes.patches]
    assert fills[1] not in (fills[0], fills[2]) and fills[2] == fills[3] == fills[4]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["characters", "bytes"]


def test_cuts_of_different_bytes_are_an_error():
    for rows in ({}, {"one": [b"ab"], "two": [b"a", b"c"]}):
        with pytest.raises(ValueError, match=f"cuts of the same bytes, got {len(rows)} different"):
            plots.cuts(rows)


def test_the_state_of_the_merges_marks_the_pair_that_comes_next():
    words = {(b"a", b"a", b"a"): 2, (b"b", b"a"): 1}
    left, right = plots.merge_state(words, {(b"a", b"a"): 4, (b"b", b"a"): 1}, (b"a", b"a")).axes
    fills = [box.get_facecolor() for box in left.patches]
    assert fills[0] == fills[1] != fills[2] == fills[3] == fills[4]  # taken once, from the left
    assert [label.get_text() for label in left.get_yticklabels()] == ["2 ×", "1 ×"]
    assert [bar.get_width() for bar in right.patches] == [4, 1]
    assert [label.get_text() for label in right.get_yticklabels()] == ["a + a", "b + a"]
    assert right.patches[0].get_facecolor() != right.patches[1].get_facecolor()


def test_the_state_of_the_merges_says_when_no_pair_is_left_and_when_there_are_more():
    _, right = plots.merge_state({(b"ab",): 1}, {}, None).axes
    assert labels(right) == ["no pair is left"]
    words = {(b"a", b"b", b"c", b"d"): 1}
    counts = {pair: 1 for pair in itertools.pairwise((b"a", b"b", b"c", b"d"))}
    _, right = plots.merge_state(words, counts, None, n_shown=2).axes
    assert right.get_title(loc="left").endswith("the first 2 of 3") and len(right.patches) == 2


def test_coloured_tokens_break_at_the_edge_and_behind_a_line_end():
    panels = {"one": [b"abcd", b" ef", b"\n", b"g", b"h"]}
    (axes,) = plots.coloured_tokens(panels, columns=7).axes
    assert labels(axes) == ["abcd", "␣ef", "⏎", "g", "h"]
    assert [text.get_position()[1] for text in axes.texts] == [0, 0, 1, 2, 2]
    fills = [box.get_facecolor() for box in axes.patches]
    assert all(one != other for one, other in itertools.pairwise(fills))


def test_coloured_tokens_need_a_text():
    with pytest.raises(ValueError, match="at least one text"):
        plots.coloured_tokens({})


def test_the_growth_of_a_vocabulary_is_two_charts():
    figure = plots.vocabulary_growth([256, 300], {"tales": [1.0, 1.5]}, [0, 44], [0, 40])
    left, right = figure.axes
    assert left.lines[0].get_ydata().tolist() == [1.0, 1.5]
    assert [line.get_ydata().tolist() for line in right.lines] == [[0, 44], [0, 40]]
    with pytest.raises(ValueError, match="got 2 sizes, 1 values"):
        plots.vocabulary_growth([256, 300], {"tales": [1.0]}, [0, 44], [0, 40])


def test_a_row_of_ids_is_shown_as_its_examples():
    figure = plots.training_examples([b"a", b"b", b"c"], [b"b", b"c", b"d"])
    top, bottom = figure.axes
    assert labels(top) == ["a", "b", "c", "b", "c", "d"]
    assert labels(bottom) == ["a", "b", "a", "b", "c", "a", "b", "c", "d"]
    assert bottom.get_title(loc="left").startswith("3 examples")
    for x, y in (([], []), ([b"a"], [])):
        with pytest.raises(ValueError, match="equally long and not empty"):
            plots.training_examples(x, y)


@pytest.mark.parametrize("size", [256, 999])
def test_no_sign_of_the_sample_texts_is_missing_in_the_fonts(tokenizer, size):
    ranks = {token: rank for token, rank in tokenizer.ranks.items() if rank < size}
    figures: list[Figure] = [plots.coloured_tokens({name: cut(text, ranks) for name, text in texts().items()})]
    figures.append(plots.cuts({"characters": [c.encode() for c in "café 😀"]}))
    assert all(plots.png(figure) for figure in figures)  # a missing sign is a warning, and warnings are errors
