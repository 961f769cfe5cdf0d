import errno
import hashlib
import http.server
import os
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from l1_ref import downloads
from l1_ref.data import (
    document_batch,
    download,
    make_corpus,
    make_document_corpus,
    next_token_batch,
    padded_documents,
    read_document,
    read_documents,
    split_documents,
)
from l1_ref.downloads import DownloadError, Source
from l1_ref.tokenizer import BPETokenizer, CharTokenizer, build_tokenizer

SHAKESPEARE = Path(__file__).resolve().parents[2] / "shared" / "corpora" / "tinyshakespeare.txt"
BYTES = BPETokenizer({bytes([byte]): byte for byte in range(256)})  # end of text is 256
REPEATABLE = settings(deadline=None, derandomize=True, database=None, max_examples=100)
# Under type checks the annotations refuse a wrong shape first, with an error of their own.
WRONG_SHAPE = (ValueError, TypeError)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain\n", "plain\n"),
        (b"\xef\xbb\xbfmark", "mark"),
        (b"one\r\ntwo\rthree\n\r\n", "one\ntwo\nthree\n\n"),
        ("\u00e9\U0001f600\u2028".encode(), "\u00e9\U0001f600\u2028"),
        (b" ", " "),
    ],
)
def test_read_document_gives_the_text(tmp_path, data, text):
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    assert read_document(path) == text
    assert read_documents([path, str(path)]) == [text, text]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "must hold text, it is empty"),
        (b"\xef\xbb\xbf", "must hold text, it is empty"),
        (b"ab\x00c", "it is binary: a zero byte at offset 2"),
        (b"ab\xffc", "must be UTF-8 text, got byte 0xff at offset 2"),
        (b"\xef\xbb\xbfab\xe9", "must be UTF-8 text, got byte 0xe9 at offset 5"),
        ("text".encode("utf-16"), "begins with the mark of UTF-16"),
    ],
)
def test_read_document_names_what_is_wrong(tmp_path, data, message):
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        read_document(path)
    assert str(path) in str(caught.value)


def test_read_document_names_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.txt does not exist"):
        read_document(tmp_path / "none.txt")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        read_document(tmp_path)
    with pytest.raises(ValueError, match="at least one file"):
        read_documents([])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64])
def test_batches_are_int64_and_y_is_x_moved_on_by_one(dtype):
    ids = torch.arange(100).to(dtype)
    x, y = next_token_batch(ids, 16, 8, torch.Generator().manual_seed(0))
    assert x.shape == y.shape == (16, 8)
    assert x.dtype == y.dtype == torch.int64
    assert x.is_contiguous() and y.is_contiguous()
    assert torch.equal(y, x + 1)
    assert torch.equal(x, x[:, :1] + torch.arange(8))


def test_every_start_is_drawn_equally_often():
    ids = torch.arange(12)
    x, y = next_token_batch(ids, 20_000, 4, torch.Generator().manual_seed(0))
    counts = torch.bincount(x[:, 0], minlength=8)
    assert len(counts) == 8 and y.max() == 11
    assert ((counts - 2_500).abs() < 250).all()  # five standard deviations


def test_a_stream_of_one_window_and_repeatable_draws():
    x, y = next_token_batch(torch.tensor([5, 6, 7]), 3, 2)
    assert x.tolist() == [[5, 6]] * 3 and y.tolist() == [[6, 7]] * 3
    ids = torch.arange(1_000)
    first, again = (next_token_batch(ids, 8, 5, torch.Generator().manual_seed(1))[0] for _ in range(2))
    assert torch.equal(first, again)
    torch.manual_seed(3)
    from_torch = next_token_batch(ids, 8, 5)[0]
    torch.manual_seed(3)
    assert torch.equal(from_torch, next_token_batch(ids, 8, 5)[0])


def test_a_batch_is_a_copy():
    ids = torch.arange(10)
    x, y = next_token_batch(ids, 2, 3)
    x.zero_()
    assert torch.equal(ids, torch.arange(10)) and not torch.equal(x, y)


def test_next_token_batch_refuses_impossible_sizes():
    with pytest.raises(ValueError, match=r"at least context \+ 1 ids, got len\(ids\)=8, context=8"):
        next_token_batch(torch.arange(8), 1, 8)
    for batch_size, context in [(0, 2), (2, 0), (-1, 2)]:
        with pytest.raises(ValueError, match=f"got batch_size={batch_size}, context={context}"):
            next_token_batch(torch.arange(8), batch_size, context)
    with pytest.raises(WRONG_SHAPE):
        next_token_batch(torch.zeros(4, 4, dtype=torch.int64), 1, 2)


def test_plain_text_is_split_as_nanogpt_splits_it():
    text = "".join(chr(97 + i % 7) for i in range(1_115_394))
    tokenizer = build_tokenizer("chars", [text])
    corpus = make_corpus([text], tokenizer)
    assert (len(corpus.train), len(corpus.validation)) == (1_003_854, 111_540)
    assert tokenizer.decode(torch.cat([corpus.train, corpus.validation])) == text
    assert corpus.document_starts is None


def test_documents_are_separated_where_the_tokenizer_can():
    corpus = make_corpus(["abc", "de", "f"], BYTES, validation_fraction=0.5)
    assert corpus.train.tolist() == [97, 98, 99, 256] and corpus.validation.tolist() == [100, 101, 256, 102]
    chars = make_corpus(["abc", "de"], CharTokenizer("abcde"), validation_fraction=0.2)
    assert chars.train.tolist() == [0, 1, 2, 3] and chars.validation.tolist() == [4]


def test_make_corpus_refuses_what_cannot_be_split():
    for fraction in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match=f"got validation_fraction={fraction}"):
            make_corpus(["abc"], BYTES, fraction)
    with pytest.raises(ValueError, match="at least 2 ids, one for each part, got 1"):
        make_corpus(["a"], BYTES)
    assert len(make_corpus(["ab"], BYTES).validation) == 1


def test_a_document_corpus_has_end_of_text_around_each_document():
    corpus = make_document_corpus(["ab", "c"], ["d"], BYTES)
    assert corpus.train.tolist() == [256, 97, 98, 256, 99, 256]
    assert corpus.document_starts.tolist() == [0, 3]
    assert corpus.validation.tolist() == [256, 100, 256]
    assert [part.tolist() for part in split_documents(corpus.train, 256)] == [[97, 98], [99]]
    assert split_documents(torch.tensor([256, 256]), 256) == []
    assert [part.tolist() for part in split_documents(torch.tensor([1, 2]), 256)] == [[1, 2]]


def test_a_document_corpus_needs_documents_and_their_border():
    with pytest.raises(ValueError, match="CharTokenizer has none"):
        make_document_corpus(["a"], ["a"], CharTokenizer("a"))
    with pytest.raises(ValueError, match="got 1 train and 0 validation"):
        make_document_corpus(["a"], [], BYTES)


def test_document_batches_begin_with_a_document_and_go_round():
    corpus = make_document_corpus(["ab", "c", "def"], ["d"], BYTES)
    generator = torch.Generator().manual_seed(0)
    x, y = document_batch(corpus.train, corpus.document_starts, 3_000, 6, generator)
    assert x.dtype == y.dtype == torch.int64 and x.is_contiguous() and y.is_contiguous()
    assert torch.equal(x[:, 1:], y[:, :-1])
    rows = {tuple(row) for row in torch.cat([x, y[:, -1:]], 1).tolist()}
    assert rows == {
        (256, 97, 98, 256, 99, 256, 100),
        (256, 99, 256, 100, 101, 102, 256),
        (256, 100, 101, 102, 256, 97, 98),
    }
    counts = torch.bincount(x[:, 1])[[97, 99, 100]]
    assert ((counts - 1_000).abs() < 130).all()  # five standard deviations


def test_document_batch_refuses_streams_that_do_not_close():
    with pytest.raises(ValueError, match="begin and end with the end-of-text id"):
        document_batch(torch.tensor([256, 1, 2]), torch.tensor([0]), 1, 2)
    for starts in ([3], [-1], []):
        with pytest.raises(ValueError, match=r"document_starts must hold places in 0\.\.2"):
            document_batch(torch.tensor([256, 1, 2, 256]), torch.tensor(starts, dtype=torch.int64), 1, 2)


def test_padded_documents_fit_their_batch():
    ((x, y),) = padded_documents([[1, 2, 3], torch.tensor([4], dtype=torch.int32)], 8, 9)
    assert x.tolist() == [[9, 1, 2, 3], [9, 4, 9, 9]]
    assert y.tolist() == [[1, 2, 3, 9], [4, 9, -100, -100]]
    batches = list(padded_documents([[1]] * 5, 8, 9, ignore_index=-1, batch_size=2))
    assert [len(x) for x, _ in batches] == [2, 2, 1]
    assert list(padded_documents([], 8, 9)) == []


def test_a_long_document_goes_on_with_half_a_context_of_history():
    ((x, y),) = padded_documents([[1, 2, 3, 4, 5, 6]], 4, 9)
    assert x.tolist() == [[9, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 9]]
    assert y.tolist() == [[1, 2, 3, 4], [-100, -100, 5, 6], [-100, -100, 9, -100]]


@REPEATABLE
@given(
    st.lists(st.lists(st.integers(0, 8), max_size=30), min_size=1, max_size=5), st.integers(1, 12), st.integers(1, 4)
)
def test_every_id_of_every_document_is_a_target_once(documents, context, batch_size):
    targets = []
    for x, y in padded_documents(documents, context, 9, batch_size=batch_size):
        assert x.shape == y.shape and x.shape[1] <= context
        targets += y[y != -100].tolist()
        scored = (y[:, :-1] != -100) & (y[:, :-1] != 9)
        assert torch.equal(x[:, 1:][scored], y[:, :-1][scored])
    assert targets == [i for document in documents for i in [*document, 9]]


def test_padded_documents_refuse_impossible_sizes():
    with pytest.raises(ValueError, match="got context=0, batch_size=32"):
        list(padded_documents([[1]], 0, 9))


TEXT = b"a small corpus\n" * 9_000
SHA256 = hashlib.sha256(TEXT).hexdigest()


class Host(http.server.BaseHTTPRequestHandler):
    """A host on this machine whose paths stand for the ways in which a download goes right or wrong."""

    def do_GET(self):
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/file")
            self.send_header("X-Linked-ETag", f'"{SHA256}"')
            self.end_headers()
            return
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(TEXT)))
        if self.path == "/declared-wrong":
            self.send_header("X-Linked-ETag", f'"{"0" * 64}"')
        self.end_headers()
        body = {"/cut": TEXT[:-1], "/altered": TEXT[:-1] + b"!"}.get(self.path, TEXT)
        self.wfile.write(body)

    def log_message(self, *_):
        """Keep the test's output clean."""


@pytest.fixture(scope="module")
def host():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def known_sources(monkeypatch, request):
    if "host" in request.fixturenames:
        monkeypatch.setitem(downloads.SOURCES, "known", Source("http://unused.invalid/", "known.txt", SHA256))
        monkeypatch.setitem(downloads.SOURCES, "declared", Source("http://unused.invalid/", "declared.txt", None))
        monkeypatch.setenv("no_proxy", "*")


def test_a_download_arrives_whole_and_is_kept(host, tmp_path):
    path = download("known", tmp_path / "new", f"{host}/file")
    assert path == tmp_path / "new" / "known.txt"
    assert path.read_bytes() == TEXT
    assert download("known", tmp_path / "new", f"{host}/missing") == path
    assert list(path.parent.iterdir()) == [path]


def test_a_declared_checksum_is_taken_from_the_redirect(host, tmp_path):
    assert download("declared", tmp_path, f"{host}/redirect").read_bytes() == TEXT


@pytest.mark.parametrize(
    ("name", "place", "reason"),
    [
        ("known", "/missing", "HTTP Error 404: Not Found"),
        ("known", "/cut", f"it is cut short, {len(TEXT) - 1} bytes of {len(TEXT)}"),
        ("known", "/altered", f"its SHA-256 is [0-9a-f]{{64}}, expected {SHA256}"),
        ("declared", "/declared-wrong", f"its SHA-256 is {SHA256}, expected 0{{64}}"),
        ("declared", "/file", "the host declares no checksum"),
    ],
)
def test_a_failed_download_leaves_nothing_and_says_what_to_do(host, tmp_path, name, place, reason):
    with pytest.raises(DownloadError, match=rf"could not download {name}\.txt: {reason}") as caught:
        download(name, tmp_path, host + place)
    assert f"Save {host}{place} by hand as {tmp_path / name}.txt, or use the course's own corpus" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x", "http://no-such-host.invalid/x", "nonsense"])
def test_a_download_without_network_says_what_to_do(host, tmp_path, url):
    with pytest.raises(DownloadError, match=r"could not download known\.txt: .*Save .* by hand as .*known\.txt"):
        download("known", tmp_path, url)
    assert list(tmp_path.iterdir()) == []


def test_a_connection_that_breaks_is_not_blamed_on_the_disk(host, tmp_path, monkeypatch):
    def reset(*_):
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    monkeypatch.setattr("http.client.HTTPResponse.read", reset)
    with pytest.raises(DownloadError, match=r"could not download known\.txt: the connection broke \(.*reset by peer\)"):
        download("known", tmp_path, f"{host}/file")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named(host, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DownloadError, match=r"cannot write .*known\.txt: No space left on device\. Save"):
        download("known", tmp_path, f"{host}/file")
    assert list(tmp_path.iterdir()) == []


def test_another_file_of_that_name_is_left_alone(host, tmp_path):
    path = tmp_path / "known.txt"
    path.write_text("mine")
    with pytest.raises(ValueError, match=r"known\.txt is not known: its SHA-256 is .*; move it away"):
        download("known", tmp_path, f"{host}/file")
    assert path.read_text() == "mine"
    (tmp_path / "declared.txt").write_text("mine")
    assert download("declared", tmp_path, f"{host}/missing").read_text() == "mine"


def test_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="name must be one of tinyshakespeare, tinystories, got 'moby'"):
        download("moby", tmp_path)


def test_the_checksum_of_tiny_shakespeare_is_the_known_files(tmp_path):
    if SHAKESPEARE.is_file():
        (tmp_path / "tinyshakespeare.txt").write_bytes(SHAKESPEARE.read_bytes())
    try:
        path = download("tinyshakespeare", tmp_path)
    except DownloadError:
        if "CI" in os.environ:
            raise
        pytest.skip("Tiny Shakespeare is neither on this machine nor within reach")
    assert path.stat().st_size == 1_115_394
    assert read_document(path).startswith("First Citizen:\n")
