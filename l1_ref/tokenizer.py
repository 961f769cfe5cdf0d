"""Text to ids and back: characters, byte-pair encoding trained here, and GPT-2's vocabulary."""

import codecs
import hashlib
import os
import tempfile
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import index
from pathlib import Path
from typing import Any

import regex
import tiktoken
from jaxtyping import Integer
from torch import Tensor

from l1_ref.bpe import GPT2_SPLIT_PATTERN as GPT2_SPLIT_PATTERN
from l1_ref.bpe import count_pairs as count_pairs
from l1_ref.bpe import encode as encode
from l1_ref.bpe import merge_pair as merge_pair
from l1_ref.bpe import train_bpe as train_bpe
from l1_ref.files import DATA_DIR, PathLike, read_json, write_json

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_FILE = "tokenizer.json"
_GPT2_FILES = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"
_GPT2_TIMEOUT_S = 10.0
# tiktoken's regex engine overflows its stack on about a million white-space characters in a row.
_LONG_WHITE_SPACE = regex.compile(r"\s{100000}")

Ids = Sequence[int] | Integer[Tensor, " T"]


def _checked_ids(ids: Ids, vocab_size: int) -> list[int]:
    """Give the ids as a list of ints, or an error that names the first one out of range."""
    if isinstance(ids, Tensor):
        if ids.ndim != 1:
            raise ValueError(f"ids must be one-dimensional, got shape {tuple(ids.shape)}")
        ids = ids.tolist()
    checked = [index(i) for i in ids]
    for position, i in enumerate(checked):
        if not 0 <= i < vocab_size:
            raise ValueError(f"ids must lie in 0..{vocab_size - 1}, got {i} at position {position}")
    return checked


class CharTokenizer:
    """One id for each character of a fixed list.

    Args:
        characters: the characters, each once, in the order of their ids.

    Raises:
        ValueError: the list is empty, or holds a character twice or one that UTF-8 cannot store.

    Example:
        >>> tokenizer = CharTokenizer("abc")
        >>> tokenizer.encode("cab"), tokenizer.decode([2, 0, 1])
        ([2, 0, 1], 'cab')
    """

    end_of_text: int | None = None

    def __init__(self, characters: str) -> None:
        if not characters:
            raise ValueError("characters must hold at least one character, got an empty text")
        self.characters = characters
        self._ids = {character: i for i, character in enumerate(characters)}
        if len(self._ids) < len(characters):
            twice = next(c for i, c in enumerate(characters) if self._ids[c] != i)
            raise ValueError(f"characters must hold each character once, got {twice!r} more than once")
        if surrogates := [c for c in characters if "\ud800" <= c <= "\udfff"]:
            raise ValueError(f"characters must be Unicode text, got the lone surrogate {surrogates[0]!r}")

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self.characters)

    def encode(self, text: str) -> list[int]:
        """Turn text into ids, one a character.

        Args:
            text: characters of the tokenizer's list only.

        Returns:
            The ids.

        Raises:
            ValueError: the text holds characters that the tokenizer does not know; the message names them.
        """
        try:
            return [self._ids[character] for character in text]
        except KeyError:
            unknown = {c: text.index(c) for c in dict.fromkeys(text) if c not in self._ids}
        named = ", ".join(f"{c!r} at {position}" for c, position in list(unknown.items())[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        known = f"the tokenizer knows {self.vocab_size} characters"
        raise ValueError(f"{known}; the text has unknown ones: {named}{more}")

    def decode(self, ids: Ids) -> str:
        """Turn ids into text.

        Args:
            ids: 1-D, each in 0..vocab_size-1.

        Returns:
            The text.

        Raises:
            ValueError: an id is out of range.
        """
        return "".join(self.characters[i] for i in _checked_ids(ids, self.vocab_size))

    def decode_bytes(self, ids: Ids) -> bytes:
        """Turn ids into the UTF-8 bytes of their text; Args and Raises as for `decode`."""
        return self.decode(ids).encode("utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Describe the tokenizer in values that JSON can hold."""
        return {"kind": "chars", "characters": self.characters}


class BPETokenizer:
    """A byte-level vocabulary, served by tiktoken.

    Args:
        ranks: rank, which is also the id, of each token: 0..n-1, each once, with all 256 single bytes.
        with_end_of_text: add the special token `<|endoftext|>` with the last id, n.

    Raises:
        ValueError: the ranks are not such a vocabulary.

    Example:
        >>> tokenizer = BPETokenizer(train_bpe("low lower lowest", vocab_size=259))
        >>> tokenizer.encode("lowest"), tokenizer.vocab_size
        ([258, 115, 116], 260)
        >>> tokenizer.decode([258, 115, 116])
        'lowest'
    """

    def __init__(self, ranks: Mapping[bytes, int], with_end_of_text: bool = True) -> None:
        if sorted(ranks.values()) != list(range(len(ranks))):
            raise ValueError(f"ranks must be 0..n-1, each once, got {len(ranks)} tokens with other ranks")
        if missing := [bytes([byte]) for byte in range(256) if bytes([byte]) not in ranks]:
            raise ValueError(f"ranks must hold all 256 single bytes, {missing[0]!r} is missing")
        if b"" in ranks:
            raise ValueError("ranks must hold tokens of at least one byte, got b''")
        special = {END_OF_TEXT: len(ranks)} if with_end_of_text else {}
        self._serve(
            tiktoken.Encoding(
                "l1",
                pat_str=GPT2_SPLIT_PATTERN,
                mergeable_ranks=dict(ranks),
                special_tokens=special,
                explicit_n_vocab=len(ranks) + len(special),
            ),
            special.get(END_OF_TEXT),
        )

    def _serve(self, encoding: tiktoken.Encoding, end_of_text: int | None) -> None:
        self.encoding = encoding
        self.end_of_text = end_of_text
        self.ranks: dict[bytes, int] = encoding._mergeable_ranks

    @property
    def vocab_size(self) -> int:
        """Number of ids, the one of `<|endoftext|>` included."""
        return self.encoding.n_vocab

    def encode(self, text: str) -> list[int]:
        """Turn text into ids.

        Args:
            text: any string; `<|endoftext|>` is plain text here, and a lone surrogate becomes U+FFFD.

        Returns:
            The ids.
        """
        if _LONG_WHITE_SPACE.search(text):
            return encode(text, self.ranks)
        return self.encoding.encode_ordinary(text)

    def decode(self, ids: Ids) -> str:
        """Turn ids into text; bytes that are not UTF-8 become U+FFFD.

        Args:
            ids: 1-D, each in 0..vocab_size-1.

        Returns:
            The text.

        Raises:
            ValueError: an id is out of range.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Ids) -> bytes:
        """Turn ids into the bytes that they stand for; Args and Raises as for `decode`."""
        return self.encoding.decode_bytes(_checked_ids(ids, self.vocab_size))

    def to_dict(self) -> dict[str, Any]:
        """Describe the tokenizer in values that JSON can hold; the bytes of a token are written as Latin-1."""
        tokens = sorted(self.ranks, key=self.ranks.__getitem__)
        return {
            "kind": "bpe",
            "end_of_text": self.end_of_text is not None,
            "tokens": [token.decode("latin-1") for token in tokens],
        }


class GPT2Tokenizer(BPETokenizer):
    """GPT-2's vocabulary of 50,257 tokens, from tiktoken, which downloads it once and keeps it.

    Raises:
        ConnectionError: the vocabulary is not on this machine and its host cannot be reached.

    Example:
        >>> GPT2Tokenizer().encode("Hello world")
        [15496, 995]
    """

    def __init__(self) -> None:
        try:
            if not _gpt2_is_cached():
                # tiktoken waits without limit for a silent network, so ask first, with a limit.
                head = urllib.request.Request(f"{_GPT2_FILES}/vocab.bpe", method="HEAD")
                urllib.request.urlopen(head, timeout=_GPT2_TIMEOUT_S).close()
            encoding = tiktoken.get_encoding("gpt2")
        except (OSError, ValueError) as error:
            raise ConnectionError(
                f"GPT-2's vocabulary is not on this machine and could not be downloaded ({error}); set "
                "TIKTOKEN_CACHE_DIR to a folder that holds it, or use --tokenizer bpe:N or --tokenizer chars"
            ) from None
        self._serve(encoding, encoding.eot_token)

    def to_dict(self) -> dict[str, Any]:
        """Describe the tokenizer in values that JSON can hold; the vocabulary itself stays with tiktoken."""
        return {"kind": "gpt2"}


Tokenizer = CharTokenizer | BPETokenizer | GPT2Tokenizer


def _gpt2_is_cached() -> bool:
    """Tell whether tiktoken would find GPT-2's two files without the network."""
    if "gpt2" in tiktoken.registry.ENCODINGS:
        return True
    default = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", default))
    names = [hashlib.sha1(f"{_GPT2_FILES}/{name}".encode()).hexdigest() for name in ("vocab.bpe", "encoder.json")]
    return folder != "" and all(Path(folder, name).is_file() for name in names)


def build_tokenizer(spec: str, documents: Sequence[str]) -> Tokenizer:
    """Make the tokenizer that a specification names.

    Args:
        spec: `chars` (the characters of the documents, sorted), `bpe:N` (trained on the documents; N counts the 256
            bytes and `<|endoftext|>`, and the vocabulary is smaller where no pair is left to join), `gpt2`, or `tales`
            (the course's own, of 1,000 tokens).
        documents: the texts to build from; `gpt2` and `tales` do not look at them.

    Returns:
        The tokenizer.

    Raises:
        ValueError: the specification is none of these, or N is not a whole number in 257..2**31 - 1.
        OSError: the vocabulary of `gpt2` or `tales` cannot be read.
    """
    if spec == "chars":
        return CharTokenizer("".join(sorted(set().union(*documents))))
    if spec == "gpt2":
        return GPT2Tokenizer()
    if spec == "tales":
        return load_tokenizer(DATA_DIR)
    if not spec.startswith("bpe:"):
        raise ValueError(f"tokenizer must be chars, bpe:N, gpt2 or tales, got {spec!r}")
    size = spec.removeprefix("bpe:")
    if not (size.isascii() and size.isdigit() and len(size) <= 10 and 257 <= int(size) < 2**31):
        rule = f"N in bpe:N must be a whole number of at least 257 (256 bytes and {END_OF_TEXT}) and below 2**31"
        raise ValueError(f"{rule}, got {spec!r}")
    return BPETokenizer(train_bpe(documents, int(size) - 1))


def save_tokenizer(tokenizer: Tokenizer, folder: PathLike) -> None:
    """Write a tokenizer as `tokenizer.json`.

    Args:
        tokenizer: what to write.
        folder: where; made if it is missing.

    Raises:
        OSError: the folder or the disk refuses.
    """
    write_json(Path(folder) / TOKENIZER_FILE, tokenizer.to_dict())


def load_tokenizer(folder: PathLike) -> Tokenizer:
    """Read the tokenizer that `save_tokenizer` wrote.

    Args:
        folder: the folder that holds `tokenizer.json`.

    Returns:
        The tokenizer.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: the file is not a tokenizer of this course; the message names the file and the rule.

    Example:
        >>> tokenizer = load_tokenizer(DATA_DIR)  # the course's own, trained on its tales
        >>> tokenizer.vocab_size, tokenizer.decode(tokenizer.encode("a blue glove"))
        (1000, 'a blue glove')
    """
    path = Path(folder) / TOKENIZER_FILE
    obj = read_json(path)
    try:
        return _from_dict(obj)
    except ValueError as error:
        raise ValueError(f"{path} is not a tokenizer of this course: {error}") from None


def _from_dict(obj: Any) -> Tokenizer:
    kind = _field(obj, "kind", str)
    if kind == "chars":
        return CharTokenizer(_field(obj, "characters", str))
    if kind == "gpt2":
        return GPT2Tokenizer()
    if kind != "bpe":
        raise ValueError(f"'kind' must be chars, bpe or gpt2, got {kind!r}")
    ranks: dict[bytes, int] = {}
    for rank, token in enumerate(_field(obj, "tokens", list)):
        if not isinstance(token, str) or max(token, default="") > "\xff":
            raise ValueError(f"'tokens' must hold bytes written as Latin-1 text, got {token!r} at {rank}")
        if ranks.setdefault(token.encode("latin-1"), rank) != rank:
            raise ValueError(f"'tokens' must hold each token once, got {token!r} again at {rank}")
    return BPETokenizer(ranks, _field(obj, "end_of_text", bool))


def _field(obj: Any, name: str, kind: type) -> Any:
    if not isinstance(obj, dict):
        raise ValueError(f"it must hold an object, got {type(obj).__name__}")
    if name not in obj:
        raise ValueError(f"the field {name!r} is missing")
    if not isinstance(obj[name], kind):
        raise ValueError(f"the field {name!r} must be {kind.__name__}, got {type(obj[name]).__name__}")
    return obj[name]


def stream_text(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """Turn ids into text as they come, whole characters only: one character can be spread over several tokens.

    Args:
        tokenizer: what made the ids.
        ids: one id at a time, each in 0..vocab_size-1.

    Yields:
        Text that is not empty; joined, it is `tokenizer.decode` of all the ids.

    Raises:
        ValueError: an id is out of range.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for i in ids:
        if text := decoder.decode(tokenizer.decode_bytes([i])):
            yield text
    if rest := decoder.decode(b"", final=True):
        yield rest
