"""The checks of 01_tokens on text and ids: encode, and the bug hunt in decode."""

import codecs
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import pairwise

import torch

from l1_ref.bpe import encode, split_text, train_bpe
from l1_ref.checks.engine import Exercise, Inputs, Mistake, Property
from l1_ref.checks.observe import observe_through
from l1_ref.checks.pairs import Probe, given, merged, plain


class Ranks(dict):
    """A vocabulary that shows what it holds beside the single bytes.

    Args:
        tokens: Tokens of two bytes or more, in the order of their ranks; each joins two tokens that stand before it.
        turned: Whether byte i has the id 255 - i in place of i; it then stands last in the dict, too.
    """

    def __init__(self, *tokens: bytes, turned: bool = False) -> None:
        singles = {bytes([byte]): 255 - byte if turned else byte for byte in range(256)}
        merged = {token: 256 + i for i, token in enumerate(tokens)}
        super().__init__(merged | singles if turned else singles | merged)
        self.tokens, self.turned = tokens, turned

    def __repr__(self) -> str:
        singles = "byte i: 255 - i" if self.turned else "byte i: i"
        return "{" + ", ".join([singles, *(f"{token}: {self[token]}" for token in self.tokens)]) + "}"

    def __missing__(self, key: object) -> None:
        kind = {str: "a string", int: "an id", tuple: "a tuple"}.get(type(key))
        raise KeyError(f"{key!r} is {kind}: the keys of ranks are bytes" if kind else key)

    def __copy__(self) -> "Ranks":
        return type(self)(*self.tokens, turned=self.turned)


# encode


def _best(found: list[tuple[int, int]]) -> int:
    return min(found)[1]


def _encoded(
    text: str,
    ranks: Mapping[bytes, int],
    *,
    split: Callable = split_text,
    choose: Callable = _best,
    rounds: int = 10**6,
    look_up: Callable = lambda part, ranks: [ranks[part]],
    fresh: bool = False,
    known: Callable = lambda piece, ranks: False,
    last: bool = True,
) -> list[int]:
    """Encode as the reference does; each switch is a mistake."""
    ids: list[int] = []
    for piece in dict.fromkeys(split(text)) if fresh else split(text):
        parts = [piece] if known(piece, ranks) else [bytes([byte]) for byte in piece]
        for _ in range(rounds):
            found = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
            if not found and (last or len(parts) > 1):
                break
            i = choose(found)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [i for part in parts for i in look_up(part, ranks)]
    return ids


def _longest(text: str, ranks: Mapping[bytes, int], *, split: Callable = split_text, backwards=False) -> list[int]:
    """Take the longest token at each place, from the left or from the right."""
    ids: list[int] = []
    for piece in split(text):
        found: list[int] = []
        while piece:
            ends = range(len(piece), 0, -1)
            part = next(p for p in ((piece[-n:] if backwards else piece[:n]) for n in ends) if p in ranks)
            piece = piece[: -len(part)] if backwards else piece[len(part) :]
            found.append(ranks[part])
        ids += found[::-1] if backwards else found
    return ids


def _one_pass(text: str, ranks: Mapping[bytes, int], *, again: bool, known=lambda piece, ranks: False) -> list[int]:
    """Walk through each piece from the left and join what can be joined."""
    ids: list[int] = []
    for piece in split_text(text):
        parts: list[bytes] = []
        for byte in piece:
            parts.append(bytes([byte]))
            if len(parts) > 1 and parts[-2] + parts[-1] in ranks and (again or len(parts[-2]) == 1):
                parts[-2:] = [parts[-2] + parts[-1]]
        ids += [ranks[part] for part in ([piece] if known(piece, ranks) else parts)]
    return ids


def _most_frequent(text: str, ranks: Mapping[bytes, int], *, known: Callable = lambda piece, ranks: False) -> list[int]:
    """In each round, join the pair that the word holds most often, of equals the first, wherever it stands."""
    ids: list[int] = []
    for piece in split_text(text):
        parts = (piece,) if known(piece, ranks) else tuple(bytes([byte]) for byte in piece)
        while counts := Counter(pair for pair in pairwise(parts) if b"".join(pair) in ranks):
            pair = max(counts, key=counts.__getitem__)
            parts = merged(parts, pair, b"".join(pair))
        ids += [ranks[part] for part in parts]
    return ids


def _all_at_once(text: str, ranks: Mapping[bytes, int]) -> list[int]:
    """In each round, write the merged token at every place where the best pair stands, overlapping or not."""
    ids: list[int] = []
    for piece in split_text(text):
        parts = [bytes([byte]) for byte in piece]
        while found := [(ranks[a + b], (a, b)) for a, b in pairwise(parts) if a + b in ranks]:
            pair = min(found)[1]
            hit = [two == pair for two in pairwise(parts)]
            kept = [i for i in range(len(parts)) if not (i and hit[i - 1])]
            parts = [b"".join(pair) if i < len(hit) and hit[i] else parts[i] for i in kept]
        ids += [ranks[part] for part in parts]
    return ids


def _of_characters(text: str, ranks: Mapping[bytes, int], *, look_up: Callable) -> list[int]:
    """Begin with the characters in place of their bytes."""
    ids: list[int] = []
    for piece in split_text(text):
        parts = [c.encode() for c in piece.decode()]
        while found := [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]:
            i = min(found)[1]
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [i for part in parts for i in ([ranks[part]] if part in ranks else look_up(part, ranks))]
    return ids


def _rewritten(change: Callable[[str], str]) -> Callable:
    return lambda text, ranks: _encoded(change(text), ranks)


def _special(text: str, ranks: Mapping[bytes, int]) -> list[int]:
    first, *rest = (encode(part, ranks) for part in text.split("<|endoftext|>"))
    return first + [i for ids in rest for i in (len(ranks), *ids)]


_ASCII_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?[a-zA-Z]+| ?[0-9]+| ?[^\sa-zA-Z0-9]+|\s+(?!\S)|\s+"


def _by_pattern(pattern: str) -> Callable[[str], Iterator[bytes]]:
    return lambda text: (match.group().encode() for match in re.finditer(pattern, text))


def _by_piece(text: str, ranks: Mapping[bytes, int], *, joined: Callable) -> list:
    """Give something else than one flat list of ids."""
    by_id = {i: token for token, i in ranks.items()}
    return joined([[(by_id[i], i) for i in _encoded(text, ranks, split=lambda _, p=p: [p])] for p in split_text(text)])


def _whole(piece: bytes, ranks: Mapping[bytes, int]) -> bool:
    return piece in ranks


_RIGHT_FIRST = Ranks(b"bc", b"ab")
_LONG = Ranks(b"lo", b"er", b"low", b"we", b"wer")
_SPACES = Ranks(b"n ", b"he", b" t", b" the", b"en")
_ACCENTS = Ranks(b"\xc3\xa9", b"\xc3\x9f", b"f\xc3\xa9", b"\xf0\x9f", b"\x98\x80")
_MIXED = Ranks(b"it", b"'s", b"it's", b"10", b"0:", b":3", b"30", b"!!", b"\n\n", b"  ", b"\n\n ", b"'t", b"n't")
_TURNED = Ranks(b"at", b" a", b" at", b"ca", b"cat", turned=True)


def _encoding(text: str, ranks: Ranks) -> Callable:
    return given(text=text, ranks=ranks)


@cache
def _trained_ranks() -> Ranks:
    ranks = train_bpe("abracadabra bar carb cab barb crab bracer arc grab cobra car bab arab abba", 284)
    return Ranks(*list(ranks)[256:])


def _random_text(generator: torch.Generator) -> Inputs:
    letters = torch.randint(7, (60,), generator=generator).tolist()
    return {"text": "".join("aabbrc "[i] for i in letters), "ranks": _trained_ranks()}


ENCODE = Exercise(
    name="encode",
    notebook="01_tokens",
    reference=encode,
    observe=partial(observe_through, plain),
    probes=(
        Probe("the pair on the right has the lower rank", _encoding("abc", _RIGHT_FIRST)),
        Probe("three merges, each on the left", _encoding("abcd", Ranks(b"bc", b"bcd", b"abcd", b"ab"))),
        Probe("three merges, and a letter behind them", _encoding("abcde", Ranks(b"bc", b"bcd", b"abcd", b"ab"))),
        Probe("three merges, and a letter before them", _encoding("xabcd", Ranks(b"bc", b"abc", b"abcd", b"cd"))),
        Probe("three merges, the last on the right", _encoding("abcd", Ranks(b"bc", b"abc", b"abcd", b"cd"))),
        Probe("five letters, two tokens", _encoding("lower", _LONG)),
        Probe("the same pair in a row", _encoding("aaaaaaa", Ranks(b"aa"))),
        Probe("the frequent pair has the higher rank", _encoding("abcxbc", Ranks(b"ab", b"bc"))),
        Probe("a pair twice in a word", _encoding("xabyabz", Ranks(b"ab", b"yz"))),
        Probe("words, and tokens that reach over their edges", _encoding("then the  Hen ", _SPACES)),
        Probe("é, ß and an emoji", _encoding("é fée ßä 😀", _ACCENTS)),
        Probe("digits, signs, apostrophes, lines", _encoding("it's 10:30!!\n\n  don't", _MIXED)),
        Probe("byte i has the id 255 - i", _encoding("a cat at", _TURNED)),
        Probe("a trained vocabulary", _random_text),
        Probe("end-of-text is plain text", _encoding("at<|endoftext|>at", Ranks(b"at", b"en", b"end")), edge=True),
        Probe("one letter", _encoding("a", Ranks(b"ab")), edge=True),
        Probe("no text", _encoding("", Ranks(b"ab")), edge=True),
    ),
    mistakes=(
        Mistake(
            "the longest token is taken at each place",
            "the merges of the training decide; the longest match from the left may cut a word elsewhere.",
            _longest,
            (
                partial(_longest, backwards=True),
                partial(_longest, split=lambda text: [text.encode()]),
            ),
        ),
        Mistake(
            "merges go from left to right, whatever their rank",
            "the pair of the lowest rank was learned first, and must be joined first.",
            partial(_encoded, choose=lambda found: min(i for _, i in found)),
            (
                partial(_encoded, choose=lambda found: min(i for _, i in found), known=_whole),
                partial(_one_pass, again=True),
                partial(_one_pass, again=True, known=_whole),
            ),
        ),
        Mistake(
            "the most frequent pair of the word is merged first",
            "frequency decided in the training; now the rank, the place in the order of learning, decides.",
            _most_frequent,
            (partial(_most_frequent, known=_whole),),
        ),
        Mistake(
            "merges go from right to left, whatever their rank",
            "the pair of the lowest rank was learned first, and must be joined first.",
            partial(_encoded, choose=lambda found: max(i for _, i in found)),
            (partial(_encoded, choose=lambda found: max(i for _, i in found), known=_whole),),
        ),
        Mistake(
            "the highest rank is merged first",
            "a low rank was learned early, from a frequent pair: it comes first.",
            partial(_encoded, choose=lambda found: min((-rank, i) for rank, i in found)[1]),
            (
                partial(_encoded, choose=lambda found: max(found)[1]),
                partial(_encoded, choose=lambda found: min((-rank, i) for rank, i in found)[1], known=_whole),
                partial(_encoded, choose=lambda found: max(found)[1], known=_whole),
            ),
        ),
        Mistake(
            "of equal pairs the last one is merged first",
            'the leftmost comes first: "aaa" becomes "aa" and "a".',
            partial(_encoded, choose=lambda found: -min((rank, -i) for rank, i in found)[1]),
        ),
        Mistake(
            "pairs that overlap are all merged",
            'once two tokens are joined, neither is free for another: "aaa" becomes "aa" and "a".',
            _all_at_once,
        ),
        Mistake(
            "only one merge is made in each word",
            "go on until no neighbours join.",
            partial(_encoded, rounds=1),
            (partial(_encoded, rounds=1, known=_whole),),
        ),
        Mistake(
            "only pairs of single bytes are merged",
            "merged tokens can be joined again: go on until no neighbours join.",
            partial(_one_pass, again=False),
            (partial(_one_pass, again=False, known=_whole),),
        ),
        Mistake(
            "nothing is merged",
            "ranks also holds longer tokens; neighbours that join to one of them must be joined.",
            partial(_encoded, rounds=0),
        ),
        Mistake(
            "only a word that is a token itself gets one id",
            "any other word is built from tokens too: join neighbours until none join.",
            partial(_encoded, rounds=0, known=_whole),
        ),
        Mistake(
            "words that are no tokens are left out",
            "any other word is built from tokens too, at worst from single bytes: no text is lost.",
            lambda text, ranks: [ranks[piece] for piece in split_text(text) if piece in ranks],
        ),
        Mistake(
            "the code fails when a single part is left",
            "a single part has no neighbours, and min() of nothing is an error: stop before it.",
            partial(_encoded, last=False),
        ),
        Mistake(
            "the text is not split into words first",
            "the vocabulary was trained on pieces of text, so no token may reach over the edge of a piece.",
            partial(_encoded, split=lambda text: [text.encode()]),
        ),
        Mistake(
            "the split loses the spaces",
            "the ids must give back the text exactly; GPT-2's pattern keeps every character.",
            partial(_encoded, split=lambda text: (word.encode() for word in text.split())),
            (
                partial(_encoded, split=_by_pattern(r"\w+|[^\w\s]+")),
                partial(_encoded, split=lambda text: (word.encode() for word in text.split(" "))),
            ),
        ),
        Mistake(
            "the text is split by another rule than GPT-2's pattern",
            "text must be split as it was in training; use GPT2_SPLIT_PATTERN with the package regex.",
            partial(_encoded, split=_by_pattern(r"\S+|\s+")),
            (
                partial(_encoded, split=_by_pattern(r"\s*\S+|\s+")),
                partial(_encoded, split=_by_pattern(r"\S+\s*|\s+")),
                partial(_encoded, split=_by_pattern(r" ?\w+| ?[^\w\s]+|\s+")),
                partial(_encoded, split=_by_pattern(r"\w+|[^\w\s]+|\s+")),
                partial(_encoded, split=_by_pattern(_ASCII_PATTERN)),
                partial(_encoded, split=lambda text: (b" " + word.encode() for word in text.split())),
            ),
        ),
        Mistake(
            "characters are looked up, not bytes",
            "a character outside ASCII takes two to four bytes in UTF-8; begin with single bytes.",
            partial(_of_characters, look_up=lambda part, ranks: [ord(part.decode())]),
            (
                partial(_of_characters, look_up=lambda part, ranks: [ranks[part]]),
                partial(_of_characters, look_up=lambda part, ranks: []),
                _rewritten(lambda text: text.encode("latin-1", "replace").decode("latin-1")),
            ),
        ),
        Mistake(
            "characters outside ASCII are left out",
            "their UTF-8 bytes are bytes like any others; encode the text as UTF-8, and nothing is lost.",
            _rewritten(lambda text: text.encode("ascii", "ignore").decode()),
            (_rewritten(lambda text: text.encode("ascii", "replace").decode()),),
        ),
        Mistake(
            "a byte's value is taken for its id",
            "GPT-2's vocabulary numbers the bytes otherwise: look up ranks[bytes([byte])].",
            partial(_encoded, look_up=lambda part, ranks: [part[0] if len(part) == 1 else ranks[part]]),
        ),
        Mistake(
            "a word that comes again is left out",
            "training counts distinct words; here every piece of the text gets its ids, in order.",
            partial(_encoded, fresh=True),
        ),
        Mistake(
            "the tokens come back, not their ids",
            "the model reads numbers: look up each token's rank.",
            partial(_by_piece, joined=lambda words: [token for word in words for token, _ in word]),
            (partial(_by_piece, joined=lambda words: [t.decode(errors="replace") for word in words for t, _ in word]),),
        ),
        Mistake(
            "each word's ids stay in a list of their own",
            "the ids of all pieces follow each other in one flat list.",
            partial(_by_piece, joined=lambda words: [[i for _, i in word] for word in words]),
        ),
        Mistake(
            "only the first word is encoded",
            "return after the loop over the pieces, not inside it.",
            partial(_encoded, split=lambda text: list(split_text(text))[:1]),
            (partial(_encoded, split=lambda text: list(split_text(text))[-1:]),),
        ),
        Mistake(
            "<|endoftext|> gets an id of its own",
            "here it is plain text; only a tokenizer that adds special tokens gives it one.",
            _special,
        ),
        Mistake(
            "the text is changed first",
            "the ids must give back the text exactly, with its capitals and with the spaces at its ends.",
            _rewritten(str.strip),
            (_rewritten(str.lower), _rewritten(lambda text: text.lower().strip())),
        ),
    ),
    properties=(
        Property(
            "the result is a list of ids that are in ranks",
            lambda f, text, ranks: type(ids := f(text, ranks)) is list and set(ids) <= set(ranks.values()),
        ),
        Property(
            "the tokens of the ids, joined, are the bytes of the text",
            lambda f, text, ranks: b"".join(_tokens_of(f(text, ranks), ranks)) == text.encode(),
        ),
        Property(
            "the ids of a text are those of its pieces, one piece after the other",
            lambda f, text, ranks: f(text, ranks) == [i for p in split_text(text) for i in f(p.decode(), ranks)],
        ),
    ),
    hints=(
        "Split as in training, and treat each piece by itself: begin with its single bytes. Which pairs of neighbours "
        "join to bytes that are in ranks?",
        "Of all pairs that join, the one of the lowest rank was learned first. Join it, and look again: the new token "
        "may join its neighbours in turn. When does that end? And when a single part is left?",
        "Plan: for each piece a list of single bytes. In a loop find the place i whose parts[i] + parts[i + 1] has the "
        "lowest rank; none: stop; else put the joined bytes in their place. Then add the rank of each part to the ids.",
    ),
)


# decode


def decode(ids: list[int], ranks: Mapping[bytes, int]) -> str:
    """Turn ids back into text: join the bytes of all tokens first, for a character may lie in several of them.

    Args:
        ids: Each the rank of some token.
        ranks: Rank, which is also the id, of each token.

    Returns:
        The text; bytes that are not UTF-8 become U+FFFD.
    """
    return b"".join(_tokens_of(ids, ranks)).decode("utf-8", errors="replace")


def _tokens_of(ids: Sequence[int], ranks: Mapping[bytes, int]) -> list[bytes]:
    token_of = {i: token for token, i in ranks.items()}
    return [token_of[i] for i in ids]


def _by_place(ids: Sequence[int], ranks: Mapping[bytes, int]) -> list[bytes]:
    tokens = list(ranks)
    return [tokens[i] for i in ids]


def _by_value(ids: Sequence[int], ranks: Mapping[bytes, int]) -> list[bytes]:
    token_of = {i: token for token, i in ranks.items()}
    return [bytes([i]) if i < 256 else token_of[i] for i in ids]


def _decoded(ids, ranks, *, look_up=_tokens_of, each=False, errors="replace", coding="utf-8", between="", after=str):
    """Decode as the reference does; each switch is a mistake."""
    tokens = look_up(ids, ranks)
    if each:
        return after(between.join(token.decode(coding, errors) for token in tokens))
    return after(between.encode().join(tokens).decode(coding, errors))


def _all_or_nothing(ids: list[int], ranks: Mapping[bytes, int], *, otherwise: Callable) -> str:
    """Try the strict way first, and do something else with the whole where it fails."""
    try:
        return _decoded(ids, ranks, errors="strict")
    except UnicodeDecodeError:
        return otherwise(ids, ranks)


def _held_back(ids: list[int], ranks: Mapping[bytes, int]) -> str:
    """Collect bytes until they are text; a bad byte never becomes text, nor does what stands behind it."""
    text, held = "", b""
    for token in _tokens_of(ids, ranks):
        held += token
        try:
            text, held = text + held.decode(), b""
        except UnicodeDecodeError:
            continue
    return text


def _whole_characters(ids: list[int], ranks: Mapping[bytes, int]) -> str:
    """Leave out a character that is not finished at the end."""
    data = b"".join(_tokens_of(ids, ranks))
    text = data.decode("utf-8", "replace")
    return text[:-1] if text.endswith("\ufffd") and not data.endswith(b"\xef\xbf\xbd") else text


DECODE = Exercise(
    name="decode",
    notebook="01_tokens",
    reference=decode,
    probes=(
        Probe("a character in two tokens", given(ids=[195, 169], ranks=Ranks())),
        Probe("letters", given(ids=[72, 105], ranks=Ranks())),
        Probe("longer tokens", given(ids=[256, 257, 33], ranks=Ranks(b"Hi", b" Zo\xc3\xab"))),
        Probe("a token ends inside a character", given(ids=[257, 169, 101], ranks=Ranks(b"f\xc3", b"caf\xc3"))),
        Probe("an emoji in three tokens", given(ids=[256, 152, 128, 33], ranks=Ranks(b"\xf0\x9f"))),
        Probe("spaces at both ends", given(ids=[256, 97, 32], ranks=Ranks(b"  "))),
        Probe("byte i has the id 255 - i", given(ids=[183, 150, 256, 60, 86], ranks=Ranks(b" ca", turned=True))),
        Probe("bytes that are no text", given(ids=[72, 255, 105, 195, 105], ranks=Ranks()), edge=True),
        Probe("an unfinished character at the end", given(ids=[72, 256], ranks=Ranks(b"\xf0\x9f")), edge=True),
        Probe("line ends of two kinds", given(ids=[97, 13, 10, 98, 10], ranks=Ranks()), edge=True),
        Probe("a byte-order mark", given(ids=[239, 187, 191, 97], ranks=Ranks()), edge=True),
        Probe("a character in two tokens, then a bad byte", given(ids=[195, 169, 255], ranks=Ranks()), edge=True),
        Probe("no ids", given(ids=[], ranks=Ranks()), edge=True),
    ),
    mistakes=(
        Mistake(
            "each token is decoded by itself",
            "a character can lie in several tokens; a part of it is no text yet, and becomes U+FFFD.",
            partial(_decoded, each=True),
        ),
        Mistake(
            "bytes that are no text are left out",
            "what the model wrote would be hidden; U+FFFD shows that something was there.",
            partial(_decoded, errors="ignore"),
        ),
        Mistake(
            "bytes that are no text stop the code",
            "a model can write any ids, also half a character; replace what is no UTF-8.",
            partial(_decoded, errors="strict"),
        ),
        Mistake(
            "bytes that are no text are written as codes",
            "one U+FFFD stands for what is no UTF-8, as in all other tools.",
            partial(_decoded, errors="backslashreplace"),
            (partial(_decoded, errors="surrogateescape"),),
        ),
        Mistake(
            "one bad byte spoils the whole text",
            "try and except replace the text as a whole; only the bytes that are no text must become U+FFFD.",
            partial(_all_or_nothing, otherwise=partial(_decoded, each=True)),
            (
                partial(_all_or_nothing, otherwise=lambda ids, ranks: "\ufffd"),
                partial(_all_or_nothing, otherwise=lambda ids, ranks: ""),
                partial(_all_or_nothing, otherwise=lambda ids, ranks: "\ufffd" * len(ids)),
                partial(_all_or_nothing, otherwise=partial(_decoded, coding="latin-1")),
            ),
        ),
        Mistake(
            "all text behind a bad byte is lost",
            "a byte that never becomes text holds back what follows it.",
            _held_back,
        ),
        Mistake(
            "another sign stands for bytes that are no text",
            "U+FFFD is made for this; a question mark may stand in the text itself.",
            partial(_decoded, after=lambda text: text.replace("\ufffd", "?")),
        ),
        Mistake(
            "line ends are changed",
            "a text that went through encode must come back as it was.",
            partial(_decoded, after=lambda text: text.replace("\r\n", "\n").replace("\r", "\n")),
            (
                partial(_decoded, after=lambda text: "\n".join(text.splitlines())),
                partial(_decoded, after=lambda text: text.replace("\r", "")),
            ),
        ),
        Mistake(
            "a byte-order mark at the beginning is lost",
            "a text that went through encode must come back as it was: read it as utf-8, not as utf-8-sig.",
            partial(_decoded, coding="utf-8-sig"),
        ),
        Mistake(
            "the bytes are read as Latin-1, one character each",
            "in UTF-8 a character takes up to four bytes.",
            partial(_decoded, coding="latin-1"),
            (partial(_decoded, coding="cp1252"),),
        ),
        Mistake(
            "the bytes are read as ASCII",
            "in UTF-8 all bytes above 127 are parts of characters.",
            partial(_decoded, coding="ascii"),
            (partial(_decoded, coding="ascii", errors="ignore"),),
        ),
        Mistake(
            "something is put between the tokens",
            "the tokens hold their spaces already: join them with nothing between.",
            partial(_decoded, between=" "),
            (partial(_decoded, between=","),),
        ),
        Mistake(
            "the bytes come back, not the text",
            "a reader wants a string: decode the bytes.",
            lambda ids, ranks: b"".join(_tokens_of(ids, ranks)),
            (lambda ids, ranks: _tokens_of(ids, ranks),),
        ),
        Mistake(
            "the bytes are turned into text by str()",
            "str() of bytes shows the quotes and codes of Python; decode them.",
            lambda ids, ranks: str(b"".join(_tokens_of(ids, ranks))),
            (lambda ids, ranks: "".join(str(token) for token in _tokens_of(ids, ranks)),),
        ),
        Mistake(
            "a list of texts comes back, not one text",
            "the text is one string.",
            lambda ids, ranks: [token.decode("utf-8", "replace") for token in _tokens_of(ids, ranks)],
        ),
        Mistake(
            "an id is taken for a place in the dict",
            "the dict need not be in the order of the ranks: turn it round, from rank to token.",
            partial(_decoded, look_up=_by_place),
        ),
        Mistake(
            "an id below 256 is taken for a byte",
            "GPT-2's vocabulary numbers the bytes otherwise: look up the token of each id.",
            partial(_decoded, look_up=_by_value),
        ),
        Mistake(
            "spaces at the ends of the text are removed",
            "they belong to the text: ids and text must stand for each other exactly.",
            partial(_decoded, after=str.strip),
            (partial(_decoded, after=str.lstrip), partial(_decoded, after=str.rstrip)),
        ),
        Mistake(
            "an unfinished character at the end is left out",
            "these ids are all there is: what is no UTF-8 becomes U+FFFD.",
            _whole_characters,
            (
                lambda ids, ranks: codecs.getincrementaldecoder("utf-8")("replace").decode(
                    b"".join(_tokens_of(ids, ranks))
                ),
            ),
        ),
    ),
    properties=(
        Property("the result is a string", lambda f, ids, ranks: type(f(ids, ranks)) is str),
        Property("no ids give an empty text", lambda f, ids, ranks: f([], ranks) == ""),
    ),
    hints=(
        'Print the bytes of "é", and the token of each id. Which part of the character does each token hold?',
        "A part of a character cannot become text. When is the whole character there?",
        "The steps are right, but two of them stand in the wrong order: turn bytes into text once, after the join.",
    ),
)

EXERCISES = (ENCODE, DECODE)
