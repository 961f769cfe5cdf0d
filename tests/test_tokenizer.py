import os
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from l1_ref import bpe, tokenizer
from l1_ref.downloads import DownloadError, download
from l1_ref.tokenizer import (
    END_OF_TEXT,
    GPT2_SPLIT_PATTERN,
    BPETokenizer,
    CharTokenizer,
    GPT2Tokenizer,
    build_tokenizer,
    count_pairs,
    encode,
    load_tokenizer,
    merge_pair,
    save_tokenizer,
    stream_text,
    train_bpe,
)

SHARED = Path(__file__).resolve().parents[2] / "shared"
BYTES = {bytes([byte]): byte for byte in range(256)}
# Characters that this Python does not know are left out: two libraries may classify them by different tables.
ANY_TEXT = st.text(st.characters(exclude_categories=["Cn"]), max_size=60)
TIES = st.one_of(st.text("ab ", max_size=40), st.text("aaab \n", max_size=60), st.text("a", max_size=30))
REPEATABLE = settings(deadline=None, derandomize=True, database=None, max_examples=150)

SAMPLES = [
    "",
    " ",
    "The quick brown fox jumps over the lazy dog. It's what they'd've said, isn't it? I'LL go!",
    "for i in range(10):\n    print(f'{i:>4}')\t# comment\n\n\n    return x[i] != 0x1F\n",
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 \u2764\ufe0f \U0001f44d\U0001f3fd",
    "e\u0301a\u0308\u0323 Z\u0351\u036b\u0343 \u0e19\u0e49\u0e33 \u0915\u094d\u0937",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u0661\u0662\u0663 \u202eabc\u202c",
    "one\r\ntwo\r\n\r\nthree\rfour \r\n x",
    bytes(range(256)).decode("latin-1") * 2,
    "\ufeffmark \u00a0 nbsp\u3000wide\u2028line\u2029paragraph\x85next\x1c\x1d",
    "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3002\u4e2d\u6587 \ud55c\uad6d\uc5b4 \u00bd\u00b2\u2167 1234567890",
    f"a{END_OF_TEXT}b {END_OF_TEXT}",
    "lone \ud800 and \udc00\ud800 and \ud83d\ude00 pair",
    "a" * 300 + " " * 300 + "x" + "\n" * 200 + "ab" * 150,
]


@pytest.fixture(scope="module")
def gpt2():
    with pytest.MonkeyPatch.context() as patch:
        if (SHARED / "tiktoken-cache").is_dir():
            patch.setenv("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken-cache"))
        try:
            yield GPT2Tokenizer()
        except ConnectionError:
            if "CI" in os.environ:
                raise
            pytest.skip("GPT-2's vocabulary is neither on this machine nor within reach")


@pytest.fixture(scope="module")
def shakespeare(tmp_path_factory):
    try:
        path = SHARED / "corpora" / "tinyshakespeare.txt"
        path = path if path.is_file() else download("tinyshakespeare", tmp_path_factory.mktemp("corpus"))
        return path.read_text("utf-8")
    except DownloadError:
        if "CI" in os.environ:
            raise
        pytest.skip("Tiny Shakespeare is neither on this machine nor within reach")


@pytest.fixture(scope="module")
def ranks(shakespeare):
    return train_bpe(shakespeare, 1256)


@pytest.fixture(scope="module")
def trained(ranks):
    return served(ranks)


def served(ranks):
    return tiktoken.Encoding("test", pat_str=GPT2_SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={})


def train_by_counting_again(text, vocab_size):
    """The oracle: count all pairs anew for every merge; no two pairs may join to the same bytes."""
    documents = [text] if isinstance(text, str) else text
    words = Counter(tuple(piece) for document in documents for piece in bpe.split_text(document))
    ranks = dict(BYTES)
    while len(ranks) < vocab_size and (counts := count_pairs(words)):
        tokens = list(ranks)
        pair = max(counts, key=lambda pair: (counts[pair], tokens[pair[0]], tokens[pair[1]]))
        joined = tokens[pair[0]] + tokens[pair[1]]
        assert joined not in ranks
        ranks[joined] = new_id = len(ranks)
        merged = Counter()
        for word, n_occurrences in words.items():
            merged[merge_pair(word, pair, new_id)] += n_occurrences
        words = merged
    return ranks


def test_count_pairs_weighs_each_word_and_counts_overlaps():
    words = Counter({(7, 7, 7): 2, (7, 8): 3, (9,): 5, (): 1})
    assert count_pairs(words) == Counter({(7, 7): 4, (7, 8): 3})
    assert count_pairs(Counter()) == Counter()


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ((1, 1, 1), (9, 1)),
        ((1, 1, 1, 1), (9, 9)),
        ((2, 1, 1, 2), (2, 9, 2)),
        ((1,), (1,)),
        ((), ()),
        ((1, 2, 1), (1, 2, 1)),
    ],
)
def test_merge_pair_goes_from_left_to_right(word, expected):
    assert merge_pair(word, (1, 1), 9) == expected


@REPEATABLE
@given(st.lists(st.integers(0, 2)), st.tuples(st.integers(0, 2), st.integers(0, 2)))
def test_merge_pair_leaves_no_pair_and_loses_nothing(word, pair):
    merged = merge_pair(tuple(word), pair, 9)
    assert [i for token in merged for i in (pair if token == 9 else (token,))] == word
    assert pair not in pairwise(merged)


@REPEATABLE
@given(st.one_of(TIES, ANY_TEXT, st.lists(TIES, max_size=4)), st.integers(256, 300))
def test_train_bpe_equals_counting_again(text, vocab_size):
    trained = train_bpe(text, vocab_size)
    assert list(trained.items()) == list(train_by_counting_again(text, vocab_size).items())


def test_train_bpe_equals_counting_again_on_prose_and_code(shakespeare):
    code = Path(bpe.__file__).read_text("utf-8")
    for text, vocab_size in [(shakespeare[:20_000], 350), (code, 350), (shakespeare[:2_000] * 3, 3_000)]:
        expected = train_by_counting_again(text, vocab_size)
        assert list(train_bpe(text, vocab_size).items()) == list(expected.items())


@REPEATABLE
@given(st.lists(st.integers(1, 24), max_size=8))
def test_train_bpe_equals_counting_again_on_runs_of_one_letter(lengths):
    text = " ".join("a" * length for length in lengths)
    assert list(train_bpe(text, 330).items()) == list(train_by_counting_again(text, 330).items())


def test_ties_go_to_the_greatest_pair_of_byte_strings():
    assert list(train_bpe("xy|zw", 258))[256:] == [b"zw", b"xy"]
    # ("a", "b...") against ("ab", ...): a prefix is the smaller string, so the pair with the longer left side wins.
    assert list(train_bpe("ab ab abc|ac", 258))[256] == b"ab"
    assert list(train_bpe("\u00e9|zz", 257))[256] == "\u00e9".encode()


def test_train_bpe_stops_when_no_pair_is_left():
    assert list(train_bpe("abc", 1_000))[256:] == [b"bc", b"abc"]
    assert train_bpe("", 1_000) == BYTES
    assert train_bpe([], 1_000) == BYTES
    assert train_bpe("plenty of pairs", 256) == BYTES


def test_no_pair_spans_two_documents():
    assert train_bpe(["a", "b"], 300) == BYTES
    assert train_bpe("ab", 300) != BYTES
    assert train_bpe(["one text"], 300) == train_bpe("one text", 300)


def test_train_bpe_refuses_a_vocabulary_without_all_bytes():
    with pytest.raises(ValueError, match=r"at least 256.*got vocab_size=255"):
        train_bpe("text", 255)


def test_tokens_join_two_earlier_tokens(ranks):
    assert len(ranks) == 1256
    assert list(ranks.values()) == list(range(1256))
    for token, rank in list(ranks.items())[256:]:
        halves = [(token[:i], token[i:]) for i in range(1, len(token))]
        assert any(ranks.get(left, rank) < rank and ranks.get(right, rank) < rank for left, right in halves)


@pytest.mark.parametrize("text", SAMPLES)
def test_encode_agrees_with_tiktoken(text, ranks, gpt2):
    assert encode(text, gpt2.ranks) == gpt2.encoding.encode_ordinary(text)
    assert encode(text, ranks) == served(ranks).encode_ordinary(text)
    assert encode(text, BYTES) == served(BYTES).encode_ordinary(text)


def test_encode_agrees_with_tiktoken_on_every_known_character(gpt2):
    known = [chr(i) for i in range(0x110000) if unicodedata.category(chr(i)) not in ("Cn", "Cs", "Co")]
    for between in ("", " a1!"):
        text = between.join(known)
        assert encode(text, gpt2.ranks) == gpt2.encoding.encode_ordinary(text)


def test_encode_agrees_with_tiktoken_on_tiny_shakespeare(shakespeare, ranks, gpt2):
    assert encode(shakespeare, gpt2.ranks) == gpt2.encoding.encode_ordinary(shakespeare)
    assert encode(shakespeare, ranks) == served(ranks).encode_ordinary(shakespeare)


def test_encode_agrees_with_tiktoken_on_the_standard_library(gpt2, ranks, trained):
    sources = sorted(Path(os.__file__).parent.glob("*.py"))
    assert len(sources) > 100
    for path in sources:
        text = path.read_bytes().decode("latin-1")
        assert encode(text, gpt2.ranks) == gpt2.encoding.encode_ordinary(text), path.name
        assert encode(text[:5_000], ranks) == trained.encode_ordinary(text[:5_000]), path.name


@REPEATABLE
@given(text=st.one_of(ANY_TEXT, TIES, st.text("'srtvemdl \nA1\u00e9", max_size=40)))
def test_encode_agrees_with_tiktoken_on_any_text(text, gpt2, ranks, trained):
    assert encode(text, gpt2.ranks) == gpt2.encoding.encode_ordinary(text)
    assert encode(text, ranks) == trained.encode_ordinary(text)


@REPEATABLE
@given(corpus=st.text("ab ", min_size=1, max_size=60), text=st.text("ab ", max_size=60))
def test_encode_agrees_with_tiktoken_for_vocabularies_full_of_ties(corpus, text):
    own = train_bpe(corpus, 290)
    assert encode(text, own) == served(own).encode_ordinary(text)


@pytest.mark.parametrize("unit", ["a", "ab", " ", "\n", "7", "!", "\u4e2d", "\U0001f600", "x\u0301"])
def test_one_huge_piece_is_encoded_as_tiktoken_does(unit, gpt2):
    text = unit * (100_000 // len(unit)) + "z"
    assert encode(text, gpt2.ranks) == gpt2.encoding.encode_ordinary(text)


def test_a_piece_that_is_a_token_is_one_id_whatever_its_merges():
    unreachable = {**BYTES, b"abc": 256}
    assert encode("abc abcabc", unreachable) == [256, *b" abcabc"]
    assert encode("abc abcabc", unreachable) == served(unreachable).encode_ordinary("abc abcabc")


def test_encode_names_a_byte_that_the_ranks_lack():
    with pytest.raises(ValueError, match=r"every single byte of the text, b'b' is missing"):
        encode("ab", {b"a": 0})


def test_end_of_text_is_plain_text(gpt2, ranks):
    for one in (gpt2, BPETokenizer(ranks)):
        ids = one.encode(END_OF_TEXT)
        assert one.end_of_text not in ids
        assert one.decode(ids) == END_OF_TEXT == one.decode([one.end_of_text])
        assert one.end_of_text == one.vocab_size - 1


@REPEATABLE
@given(text=st.text(max_size=60))
def test_any_text_comes_back(text, gpt2, ranks):
    for one in (gpt2, BPETokenizer(ranks, with_end_of_text=False)):
        ids = one.encode(text)
        assert one.decode(ids) == text
        assert one.decode_bytes(ids) == text.encode("utf-8")
        assert one.encode(one.decode(ids)) == ids
        assert "".join(stream_text(one, iter(ids))) == text
    if text:
        chars = build_tokenizer("chars", [text])
        assert chars.decode(chars.encode(text)) == text
        assert chars.decode_bytes(chars.encode(text)) == text.encode("utf-8")


def test_a_million_spaces_do_not_upset_the_served_tokenizer(ranks):
    text = " " * 1_200_000 + "x"
    one = BPETokenizer(ranks)
    assert one.decode(one.encode(text)) == text
    shorter = " " * 150_000 + "x"
    assert one.encode(shorter) == one.encoding.encode_ordinary(shorter)


@REPEATABLE
@given(ids=st.lists(st.integers(0, 1255), max_size=30))
def test_streaming_any_ids_gives_whole_characters_and_what_decode_gives(ids, ranks):
    one = BPETokenizer(ranks)
    pieces = list(stream_text(one, iter(ids)))
    assert all(pieces)
    assert "".join(pieces) == one.decode(ids)


def test_streaming_waits_for_the_whole_character():
    one = BPETokenizer(BYTES)
    assert list(stream_text(one, iter("a\u00e9\U0001f600".encode()))) == ["a", "\u00e9", "\U0001f600"]
    assert list(stream_text(one, iter(b"a\xf0\x9f"))) == ["a", "\ufffd"]
    assert list(stream_text(one, iter([256, 98]))) == [END_OF_TEXT, "b"]


def test_characters_get_ids_in_order():
    one = build_tokenizer("chars", ["hello", "world\n"])
    assert one.characters == "\ndehlorw"
    assert (one.vocab_size, one.end_of_text) == (8, None)
    assert one.encode("hold") == [3, 5, 4, 1]
    assert one.decode(torch.tensor([3, 5, 4, 1], dtype=torch.int32)) == "hold"


def test_unknown_characters_are_named_with_their_places():
    one = CharTokenizer("abc")
    with pytest.raises(
        ValueError, match=r"the tokenizer knows 3 characters; the text has unknown ones: 'é' at 3, '\?' at 5$"
    ):
        one.encode("abc\u00e9a?\u00e9")
    with pytest.raises(ValueError, match=r"and 2 more$"):
        one.encode("1234567")


@pytest.mark.parametrize(
    ("characters", "message"),
    [("", "at least one character"), ("aba", "each character once, got 'a'"), ("a\ud800", "lone surrogate")],
)
def test_character_lists_are_checked(characters, message):
    with pytest.raises(ValueError, match=message):
        CharTokenizer(characters)


@pytest.mark.parametrize("one", [CharTokenizer("abc"), BPETokenizer(BYTES)], ids=["chars", "bpe"])
def test_ids_are_checked(one):
    size = one.vocab_size
    for bad in (-1, size, 2**70):
        with pytest.raises(ValueError, match=rf"ids must lie in 0\.\.{size - 1}, got {bad} at position 1"):
            one.decode([0, bad])
    with pytest.raises((ValueError, TypeError)):  # a shape that annotations may refuse first
        one.decode(torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(TypeError):
        one.decode([0.5])
    assert one.decode([]) == ""


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ({b"a": 0}, "all 256 single bytes"),
        ({**BYTES, b"ab": 300}, r"ranks must be 0\.\.n-1"),
        ({**BYTES, b"ab": 255}, r"ranks must be 0\.\.n-1"),
        ({**BYTES, b"": 256}, "at least one byte"),
    ],
)
def test_vocabularies_are_checked(ranks, message):
    with pytest.raises(ValueError, match=message):
        BPETokenizer(ranks)


def test_gpt2_is_the_vocabulary_of_50257(gpt2):
    assert (gpt2.vocab_size, gpt2.end_of_text, len(gpt2.ranks)) == (50257, 50256, 50256)
    assert gpt2.encode("Hello world") == [15496, 995]


@pytest.mark.parametrize("cached", [False, True], ids=["nothing cached", "a broken cache"])
def test_gpt2_without_network_says_what_to_do(tmp_path, monkeypatch, cached):
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    if cached:
        monkeypatch.setattr(tokenizer, "_gpt2_is_cached", lambda: True)
    with pytest.raises(ConnectionError, match="set TIKTOKEN_CACHE_DIR to a folder that holds it, or use --tokenizer"):
        GPT2Tokenizer()


def test_bpe_n_counts_bytes_and_end_of_text():
    one = build_tokenizer("bpe:300", ["some text, and some more text " * 5])
    assert one.vocab_size == 300 or one.vocab_size == len(one.ranks) + 1 < 300
    assert one.end_of_text == one.vocab_size - 1
    assert build_tokenizer("bpe:258", ["aaaa"]).vocab_size == 258
    assert build_tokenizer("bpe:257", ["aaaa"]).ranks == BYTES
    assert build_tokenizer("bpe:999", ["ab"]).vocab_size == 258


@pytest.mark.parametrize(
    "spec", ["bpe:abc", "bpe:10", "bpe:256", "bpe:", "bpe:-5", "bpe:1e3", "bpe:\u0663\u0663\u0663"]
)
def test_a_bad_size_is_named(spec):
    with pytest.raises(ValueError, match=rf"N in bpe:N must be a whole number of at least 257.*got '{spec}'"):
        build_tokenizer(spec, ["text"])


@pytest.mark.parametrize("spec", ["foo", "", "BPE:300", "bpe"])
def test_a_bad_specification_is_named(spec):
    with pytest.raises(ValueError, match=f"tokenizer must be chars, bpe:N, gpt2 or tales, got '{spec}'"):
        build_tokenizer(spec, ["text"])


def test_tales_is_the_courses_own_tokenizer(tmp_path, monkeypatch):
    save_tokenizer(build_tokenizer("bpe:260", ["aaaa bbbb"]), tmp_path)
    monkeypatch.setattr(tokenizer, "DATA_DIR", tmp_path)
    assert build_tokenizer("tales", []).vocab_size == 260


def test_saved_tokenizers_come_back(tmp_path, ranks, gpt2):
    text = "All: we know't, we know't.\n"
    for one in (
        CharTokenizer("".join(sorted(set(text))) + "\x00\u00e9\U0001f600"),
        BPETokenizer(ranks),
        BPETokenizer(gpt2.ranks, with_end_of_text=False),
        gpt2,
    ):
        save_tokenizer(one, tmp_path / "run")
        back = load_tokenizer(tmp_path / "run")
        assert type(back) is type(one)
        assert (back.vocab_size, back.end_of_text) == (one.vocab_size, one.end_of_text)
        assert back.encode(text) == one.encode(text)
        assert back.to_dict() == one.to_dict()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"kind": "bpe", "tok', "is not JSON"),
        ("[]", "it must hold an object, got list"),
        ('{"version": "1.0", "model": {"type": "BPE"}}', "the field 'kind' is missing"),
        ('{"kind": "wordpiece"}', "'kind' must be chars, bpe or gpt2, got 'wordpiece'"),
        ('{"kind": 3}', "the field 'kind' must be str, got int"),
        ('{"kind": "chars"}', "the field 'characters' is missing"),
        ('{"kind": "chars", "characters": "aa"}', "each character once"),
        ('{"kind": "bpe", "tokens": ["a"], "end_of_text": true}', "all 256 single bytes"),
        ('{"kind": "bpe", "tokens": ["a", "a"], "end_of_text": true}', "each token once, got 'a' again at 1"),
        ('{"kind": "bpe", "tokens": ["\u4e2d"], "end_of_text": true}', "Latin-1 text, got '\u4e2d' at 0"),
        ('{"kind": "bpe", "tokens": [7], "end_of_text": true}', "Latin-1 text, got 7 at 0"),
        ('{"kind": "bpe", "tokens": [], "end_of_text": 1}', "the field 'end_of_text' must be bool, got int"),
    ],
)
def test_a_foreign_file_is_refused_with_its_name_and_the_rule(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    path.write_text(content, "utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert str(path) in str(caught.value)


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json does not exist"):
        load_tokenizer(tmp_path)
