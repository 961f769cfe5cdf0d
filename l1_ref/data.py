"""Texts to corpora of ids, and ids to (x, y) batches: the only place where targets are shifted.

Example:
    >>> sorted(path.name for path in DATA_DIR.glob("tales-*.txt"))  # the course's own corpus
    ['tales-train.txt', 'tales-validation.txt']
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64, Integer
from torch import Tensor

from l1_ref.downloads import download as download
from l1_ref.files import DATA_DIR as DATA_DIR
from l1_ref.files import PathLike, read_bytes
from l1_ref.tokenizer import Tokenizer

# Sizes are left open: in a list of batches the last one may be smaller.
Batch = tuple[Int64[Tensor, "_ _"], Int64[Tensor, "_ _"]]

_BOM = b"\xef\xbb\xbf"


def read_document(path: PathLike) -> str:
    """Read a text file.

    A byte-order mark is left out, and the line ends of Windows and of old Macs become "\\n", so that a text gives the
    same ids wherever it was saved.

    Args:
        path: a file of UTF-8 text.

    Returns:
        The text, at least one character.

    Raises:
        OSError: the file is missing, is a folder or cannot be read.
        ValueError: the file is empty, binary or not UTF-8; the message names the first byte at fault.
    """
    data = read_bytes(path)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{path} must be UTF-8 text, it begins with the mark of UTF-16: save it again as UTF-8")
    if (zero := data.find(0)) >= 0:
        raise ValueError(f"{path} must be text, it is binary: a zero byte at offset {zero}")
    skipped = len(_BOM) if data.startswith(_BOM) else 0
    try:
        text = data[skipped:].decode("utf-8")
    except UnicodeDecodeError as error:
        offset = error.start + skipped
        raise ValueError(f"{path} must be UTF-8 text, got byte 0x{data[offset]:02x} at offset {offset}") from None
    if not text:
        raise ValueError(f"{path} must hold text, it is empty")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_documents(paths: Iterable[PathLike]) -> list[str]:
    """Read several text files, each one document.

    Args:
        paths: files of UTF-8 text, at least one.

    Returns:
        The texts, in the order of the files.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: there is no file, or one is empty, binary or not UTF-8.
    """
    documents = [read_document(path) for path in paths]
    if not documents:
        raise ValueError("paths must name at least one file, got none")
    return documents


@dataclass(frozen=True)
class Corpus:
    """Encoded text, split in two.

    Args:
        train: ids to learn from.
        validation: ids to measure on, never trained on.
        document_starts: where documents start in `train`, each at the end-of-text id before it; None for plain text.

    Example:
        >>> corpus = Corpus(train=torch.arange(90), validation=torch.arange(90, 100))
        >>> x, y = corpus.batch(batch_size=2, context=8)
        >>> x.shape, torch.equal(y, x + 1)
        (torch.Size([2, 8]), True)
    """

    train: Integer[Tensor, " N"]
    validation: Integer[Tensor, " M"]
    document_starts: Integer[Tensor, " D"] | None = None

    def check(self, context: int) -> None:
        """Refuse a context that the training part cannot fill.

        Raises:
            ValueError: the training part has no window of that length, or the validation part no target.
        """
        if len(self.train) <= context or len(self.validation) < 2:
            raise ValueError(
                f"the text must give at least {context + 1} ids to train on (context {context}, and one more) and 2 to "
                f"validate on, got {len(self.train)} and {len(self.validation)}; a longer text or a smaller "
                "max_seq_length helps"
            )

    def batch(self, batch_size: int, context: int, generator: torch.Generator | None = None) -> Batch:
        """Draw a training batch: rows that begin with a document where borders are known, any window elsewhere.

        Args:
            batch_size: rows, B.
            context: ids in a row, T.
            generator: source of the random starts; None is torch's own.
        """
        if self.document_starts is None:
            return next_token_batch(self.train, batch_size, context, generator)
        return document_batch(self.train, self.document_starts, batch_size, context, generator)

    def validation_batches(self, context: int, batch_size: int) -> list[Batch]:
        """Cut the validation part into batches in which each id is a target exactly once.

        Args:
            context: most ids in a row, T.
            batch_size: rows, B.

        Returns:
            x and y; targets of -100 do not count. Where document borders are known, each document from its beginning.
        """
        if self.document_starts is not None:
            end_of_text = int(self.validation[0])
            documents = split_documents(self.validation, end_of_text)
            return list(padded_documents(documents, context, end_of_text, batch_size=batch_size))
        return list(consecutive_batches(self.validation, batch_size, context))

    def fingerprint(self) -> str:
        """Return a checksum of all ids, by which a resumed run knows its corpus again."""
        digest = hashlib.sha256(self.train.cpu().numpy().tobytes())
        digest.update(self.validation.cpu().numpy().tobytes())
        return digest.hexdigest()


def make_corpus(documents: Sequence[str], tokenizer: Tokenizer, validation_fraction: float = 0.1) -> Corpus:
    """Encode plain text and keep the end of it for validation.

    Args:
        documents: at least one; where the tokenizer has an end-of-text id, it stands between two documents.
        tokenizer: text to ids.
        validation_fraction: share of the ids, between 0 and 1, taken from the end.

    Returns:
        The corpus, without document starts.

    Raises:
        ValueError: the fraction is not between 0 and 1, there are fewer than two ids, or the tokenizer cannot encode.
    """
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction must be between 0 and 1, got validation_fraction={validation_fraction}")
    between = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    ids: list[int] = []
    for i, document in enumerate(documents):
        ids += (between if i else []) + tokenizer.encode(document)
    if len(ids) < 2:
        raise ValueError(f"a corpus must hold at least 2 ids, one for each part, got {len(ids)}")
    n_train = min(max(int(len(ids) * (1 - validation_fraction)), 1), len(ids) - 1)
    stream = torch.tensor(ids, dtype=torch.int32)
    return Corpus(stream[:n_train], stream[n_train:])


def make_document_corpus(train: Sequence[str], validation: Sequence[str], tokenizer: Tokenizer) -> Corpus:
    """Encode documents whose borders matter: an end-of-text id before each, and one after the last.

    Args:
        train: documents to learn from, at least one.
        validation: documents to measure on, at least one.
        tokenizer: text to ids; it must have an end-of-text id.

    Returns:
        The corpus, with document starts.

    Raises:
        ValueError: a part has no document, or the tokenizer has no end-of-text id.
    """
    if tokenizer.end_of_text is None:
        raise ValueError(f"documents need a tokenizer with an end-of-text id, {type(tokenizer).__name__} has none")
    if not train or not validation:
        raise ValueError(f"both parts must hold a document, got {len(train)} train and {len(validation)} validation")
    train_ids, starts = _document_stream(train, tokenizer)
    return Corpus(train_ids, _document_stream(validation, tokenizer)[0], starts)


def _document_stream(documents: Sequence[str], tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    ids: list[int] = []
    starts: list[int] = []
    for document in documents:
        starts.append(len(ids))
        ids += [tokenizer.end_of_text, *tokenizer.encode(document)]
    ids.append(tokenizer.end_of_text)
    return torch.tensor(ids, dtype=torch.int32), torch.tensor(starts)


def split_documents(ids: Integer[Tensor, " N"], end_of_text: int) -> list[Integer[Tensor, " _"]]:
    """Cut a stream of ids at its end-of-text ids.

    Args:
        ids: the stream.
        end_of_text: the id that stands between documents; it is in none of them.

    Returns:
        The documents that hold at least one id, in order.
    """
    borders = (ids == end_of_text).nonzero().flatten()
    parts = torch.tensor_split(ids, borders.cpu())
    return [part for part in (part[part != end_of_text] for part in parts) if part.numel()]


def next_token_batch(
    ids: Integer[Tensor, " N"], batch_size: int, context: int, generator: torch.Generator | None = None
) -> tuple[Int64[Tensor, "B T"], Int64[Tensor, "B T"]]:
    """Draw windows of a stream, uniformly and with replacement, with the next id of each position as its target.

    Args:
        ids: the stream, of any integer dtype; at least context + 1 ids.
        batch_size: windows, B, at least 1.
        context: ids in a window, T, at least 1.
        generator: source of the random starts; None is torch's own.

    Returns:
        x and y, both int64 and contiguous; y is x moved on by one.

    Raises:
        ValueError: a size is below 1, or the stream is too short or not one-dimensional.

    Example:
        >>> x, y = next_token_batch(torch.arange(100), batch_size=4, context=8)
        >>> x.shape, torch.equal(y, x + 1)
        (torch.Size([4, 8]), True)
    """
    _check_batch(ids, batch_size, context)
    if len(ids) <= context:
        raise ValueError(f"ids must hold at least context + 1 ids, got len(ids)={len(ids)}, context={context}")
    starts = _draw(len(ids) - context, batch_size, generator).to(ids.device)
    return _shift(ids.unfold(0, context + 1, 1)[starts])


def consecutive_batches(
    ids: Integer[Tensor, " N"], batch_size: int, context: int, ignore_index: int = -100
) -> Iterator[Batch]:
    """Cut a stream into windows side by side, so that each id but the first is a target exactly once.

    Args:
        ids: the stream, at least 2 ids.
        batch_size: windows in a batch, B; the last batch may be smaller.
        context: ids in a window, T.
        ignore_index: target that fills up the last window.

    Yields:
        x and y.

    Raises:
        ValueError: a size is below 1, or there are fewer than 2 ids.
    """
    _check_batch(ids, batch_size, context)
    if len(ids) < 2:
        raise ValueError(f"ids must hold at least 2 ids, got len(ids)={len(ids)}")
    x, y = _shift(ids[None])
    missing = -x.shape[1] % context
    x = torch.nn.functional.pad(x, (0, missing), value=int(x[0, 0])).view(-1, context)
    y = torch.nn.functional.pad(y, (0, missing), value=ignore_index).view(-1, context)
    yield from zip(x.split(batch_size), y.split(batch_size), strict=True)


def document_batch(
    ids: Integer[Tensor, " N"],
    document_starts: Integer[Tensor, " D"],
    batch_size: int,
    context: int,
    generator: torch.Generator | None = None,
) -> tuple[Int64[Tensor, "B T"], Int64[Tensor, "B T"]]:
    """Draw rows that begin with a document, its end-of-text id first, and run on through the documents behind it.

    After the last document the stream goes on with the first, so each document is drawn equally often.

    Args:
        ids: a stream that begins and ends with the end-of-text id.
        document_starts: places in `ids` of the end-of-text ids before the documents.
        batch_size: rows, B, at least 1.
        context: ids in a row, T, at least 1.
        generator: source of the random documents; None is torch's own.

    Returns:
        x and y, both int64 and contiguous; y is x moved on by one.

    Raises:
        ValueError: a size is below 1, the stream does not end as it begins, or a start lies outside it.
    """
    _check_batch(ids, batch_size, context)
    if len(ids) < 2 or ids[0] != ids[-1]:
        raise ValueError("ids must begin and end with the end-of-text id")
    last = len(ids) - 2
    if document_starts.numel() == 0 or document_starts.min() < 0 or document_starts.max() > last:
        raise ValueError(f"document_starts must hold places in 0..{last}, got {document_starts.tolist()[:5]} …")
    drawn = _draw(len(document_starts), batch_size, generator).to(document_starts.device)
    places = document_starts[drawn, None].to(ids.device) + torch.arange(context + 1, device=ids.device)
    return _shift(ids[places % (len(ids) - 1)])  # the last end-of-text id is the first one again


def padded_documents(
    documents: Sequence[Integer[Tensor, " _"] | Sequence[int]],
    context: int,
    end_of_text: int,
    ignore_index: int = -100,
    batch_size: int = 32,
) -> Iterator[tuple[Int64[Tensor, "B T"], Int64[Tensor, "B T"]]]:
    """Give every document from its beginning, so that each of its ids, and the end-of-text after it, is a target once.

    A document longer than the context goes on in further rows. Such a row reads the last half context again, with
    those targets ignored, so that no id is predicted from less than half a context.

    Args:
        documents: ids of each document, without end-of-text.
        context: most ids in a row, at least 1.
        end_of_text: the id that x begins with and y ends with; x is padded with it too.
        ignore_index: target that the loss leaves out: padding, and what was a target before.
        batch_size: rows in a batch, at least 1; the last batch may be smaller.

    Yields:
        x and y, as wide as the longest row of the batch.

    Raises:
        ValueError: a size is below 1.
    """
    if context < 1 or batch_size < 1:
        raise ValueError(f"context and batch_size must be at least 1, got context={context}, batch_size={batch_size}")
    rows = [row for document in documents for row in _document_rows(document, context, end_of_text, ignore_index)]
    for first in range(0, len(rows), batch_size):
        x, y = zip(*rows[first : first + batch_size], strict=True)
        pad = torch.nn.utils.rnn.pad_sequence
        yield pad(x, batch_first=True, padding_value=end_of_text), pad(y, batch_first=True, padding_value=ignore_index)


def _document_rows(
    document: Tensor | Sequence[int], context: int, end_of_text: int, ignore_index: int
) -> Iterator[tuple[Tensor, Tensor]]:
    border = torch.tensor([end_of_text])
    stream = torch.cat([border, torch.as_tensor(document, dtype=torch.int64).cpu(), border])
    n_targets, overlap, start = len(stream) - 1, context // 2, 0
    while True:
        x, y = stream[:-1][start : start + context], stream[1:][start : start + context].clone()
        if start:
            y[:overlap] = ignore_index
        yield x, y
        if start + context >= n_targets:
            return
        start += context - overlap


def _check_batch(ids: Tensor, batch_size: int, context: int) -> None:
    if ids.ndim != 1:
        raise ValueError(f"ids must be one-dimensional, got shape {tuple(ids.shape)}")
    if batch_size < 1 or context < 1:
        raise ValueError(f"batch_size and context must be at least 1, got batch_size={batch_size}, context={context}")


def _draw(n: int, batch_size: int, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else "cpu"
    return torch.randint(n, (batch_size,), generator=generator, device=device)


def _shift(windows: Tensor) -> tuple[Tensor, Tensor]:
    windows = windows.long()  # (B, T + 1)
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
