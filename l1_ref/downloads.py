"""Public corpora, downloaded only when asked for, and kept only when their checksum is right."""

import hashlib
import http.client
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from l1_ref.files import PathLike, read_bytes, replacing

_TIMEOUT_S = 20.0
_CHUNK_BYTES = 1 << 16


class DownloadError(OSError):
    """A file could not be downloaded; the message says why, and what to do instead."""


@dataclass(frozen=True)
class Source:
    """Where a corpus lies.

    Args:
        url: its address.
        file_name: its name once downloaded.
        sha256: its checksum, 64 hexadecimal digits; None means the one that the host declares.
    """

    url: str
    file_name: str
    sha256: str | None


SOURCES = {
    "tinyshakespeare": Source(
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "tinyshakespeare.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "tinystories": Source(
        "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4-valid.txt",
        "TinyStoriesV2-GPT4-valid.txt",
        None,
    ),
}


def download(name: str, folder: PathLike = ".", url: str | None = None) -> Path:
    """Download a public corpus, unless the folder holds it already.

    The file gets its name only after its size and checksum were found right. The checksum of `tinyshakespeare` is
    written down here. That of `tinystories` is the SHA-256 that its host declares in the header `X-Linked-ETag`: it
    shows that the file arrived whole, not that the host is honest.

    Args:
        name: `tinyshakespeare` (1.1 MB) or `tinystories` (22 MB, the validation part of TinyStories V2).
        folder: where to put it; made if it is missing.
        url: another address of the same file, for example a mirror.

    Returns:
        The path of the file.

    Raises:
        DownloadError: there is no network, the host refuses, the file is cut short or altered, or the disk is full.
        ValueError: the name is unknown, or the folder holds another file of that name.
    """
    if name not in SOURCES:
        raise ValueError(f"name must be one of {', '.join(SOURCES)}, got {name!r}")
    source = SOURCES[name]
    url = url or source.url
    path = Path(folder) / source.file_name
    if path.exists():
        if source.sha256 not in (None, found := hashlib.sha256(read_bytes(path)).hexdigest()):
            raise ValueError(f"{path} is not {name}: its SHA-256 is {found}; move it away, then download again")
        return path
    return fetch(url, path, source.sha256, "use the course's own corpus: l1 train with no FILE")


def fetch(url: str, path: PathLike, sha256: str | None, instead: str) -> Path:
    """Download one file, which gets its name only after its size and checksum were found right.

    Args:
        url: its address.
        path: the file to write; missing parent folders are made.
        sha256: its checksum; None means the one that the host declares in the header `X-Linked-ETag`.
        instead: what to do without it, for the error.

    Returns:
        The path of the file.

    Raises:
        DownloadError: there is no network, the host refuses, the file is cut short or altered, or the disk is full.
    """
    path = Path(path)
    try:
        with replacing(path) as temporary:
            _fetch(url, temporary, sha256, path.name)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise DownloadError(
            f"could not download {path.name}: {reason}. Save {url} by hand as {path}, or {instead}"
        ) from None
    return path


class _KeepDeclaredChecksum(urllib.request.HTTPRedirectHandler):
    """Follow redirects, and keep the checksum that the first host declares on the way."""

    checksum: str | None = None

    def note(self, headers: Any) -> None:
        """Take the checksum from the headers of an answer, if they hold one."""
        if match := re.fullmatch(r'"?([0-9a-f]{64})"?', headers.get("X-Linked-ETag", "")):
            self.checksum = match[1]

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Note the checksum, then go on as usual."""
        self.note(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(url: str, path: Path, sha256: str | None, name: str) -> None:
    """Stream an address to a file, and raise unless its size and checksum are right."""
    declared = _KeepDeclaredChecksum()
    with _open(urllib.request.build_opener(declared), url) as response:
        declared.note(response.headers)
        expected = sha256 or declared.checksum
        if expected is None:
            raise DownloadError("the host declares no checksum (X-Linked-ETag)")
        length = response.headers.get("Content-Length", "")
        n_bytes = int(length) if length.isdigit() else None
        with open(path, "wb") as file:
            found, n_received = _copy(response, file, n_bytes, name)
    if n_bytes not in (None, n_received):
        raise DownloadError(f"it is cut short, {n_received} bytes of {n_bytes}")
    if found != expected:
        raise DownloadError(f"its SHA-256 is {found}, expected {expected}")


def _open(opener: urllib.request.OpenerDirector, url: str) -> Any:
    try:
        return opener.open(url, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:  # it is an answer too, and holds the connection open
        with error:
            raise DownloadError(str(error)) from None


def _copy(response: Any, file: BinaryIO, n_bytes: int | None, name: str) -> tuple[str, int]:
    """Copy an answer to a file, with a progress bar on a terminal; give its SHA-256 and its size in bytes."""
    digest, n_received = hashlib.sha256(), 0
    with tqdm(total=n_bytes, unit="B", unit_scale=True, desc=name, disable=None) as bar:
        while chunk := _read(response):
            file.write(chunk)
            digest.update(chunk)
            n_received += len(chunk)
            bar.update(len(chunk))
    return digest.hexdigest(), n_received


def _read(response: Any) -> bytes:
    try:
        return response.read(_CHUNK_BYTES)
    except OSError as error:  # not the disk's fault: keep it apart from an error of `file.write`
        raise DownloadError(f"the connection broke ({error})") from None
