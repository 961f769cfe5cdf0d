import errno
import json
import os
import subprocess
import sys

import pytest

from l1_ref import files
from l1_ref.files import read_bytes, read_json, replacing, write_atomic, write_json


@pytest.mark.parametrize("data", [b"", b"\x00\xff\r\n", "", "line\r\nnext \u00e9 \U0001f600\n"])
def test_write_atomic_stores_exactly_what_it_was_given(tmp_path, data):
    path = tmp_path / "new" / "folder" / "file.bin"
    write_atomic(path, data)
    assert path.read_bytes() == (data.encode("utf-8") if isinstance(data, str) else data)
    write_atomic(str(path), b"again")
    assert path.read_bytes() == b"again"
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, function):
    path = tmp_path / "file.txt"
    write_atomic(path, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, function, full)
    with pytest.raises(OSError, match=r"cannot write .*file\.txt: No space left on device"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_removes_what_a_failed_block_wrote(tmp_path):
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "file.txt") as temporary:
        temporary.write_text("half")
        assert temporary.parent.parent == tmp_path
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next_one_that_writes_the_file(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = {
        "dead": f".file.txt.{dead.pid}-0123abcd.tmp",
        "alive": f".file.txt.{os.getppid()}-0123abcd.tmp",
        "number taken over": f".file.txt.{os.getpid()}-0123abcd.tmp",
        "other": f".other.txt.{dead.pid}-0123abcd.tmp",
        "foreign": ".file.txt.backup.tmp",
    }
    for name in names.values():
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("half")
    with replacing(tmp_path / "file.txt") as temporary:
        write_atomic(tmp_path / "file.txt", "meanwhile")  # what is being written is left alone
        temporary.write_text("whole")
    assert (tmp_path / "file.txt").read_text() == "whole"
    left = {path.name for path in tmp_path.iterdir()} - {"file.txt"}
    kept = ["other", "foreign", *(["alive"] if os.name != "nt" else ["alive", "dead"])]  # Windows: younger than an hour
    assert left == {names[kind] for kind in kept}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_file_gets_the_mode_of_any_new_file_whatever_wrote_it(tmp_path):
    (tmp_path / "plain").write_text("")
    with replacing(tmp_path / "file") as temporary:
        temporary.touch(mode=0o600)
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no such rights")
def test_a_file_that_is_replaced_keeps_its_rights(tmp_path):
    path = tmp_path / "mine"
    write_atomic(path, "a")
    path.chmod(0o600)
    write_atomic(path, "b")
    assert path.read_text() == "b" and path.stat().st_mode & 0o777 == 0o600


def test_writing_into_an_impossible_place_names_it(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match=r"cannot write .*inner\.txt: .*file is a file"):
        write_atomic(tmp_path / "file" / "inner.txt", "x")
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        write_atomic(tmp_path, "x")
    with pytest.raises(OSError, match="cannot write"):
        write_atomic(tmp_path / ("n" * 400), "x")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_json_comes_back_as_it_went_in(tmp_path):
    obj = {"text": "\u00e9\u0000\ud800", "list": [1, 2.5, None, True], "nested": {"a": []}}
    write_json(tmp_path / "x.json", obj)
    assert read_json(tmp_path / "x.json") == obj
    assert json.loads((tmp_path / "x.json").read_text("ascii")) == obj


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not JSON: Expecting value, line 1, column 1"),
        (b'{"a": 1,\n "b"', "is not JSON: Expecting ':' delimiter, line 2, column 5"),
        (b'"\xff"', "is not JSON: it is not UTF-8 at byte 1"),
        (b"[" * 200_000, "is not JSON"),
        (b"9" * 5_000, "is not JSON that can be read: Exceeds the limit"),
    ],
)
def test_read_json_says_where_a_file_is_broken(tmp_path, data, message):
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_reading_what_is_not_a_file_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist"):
        read_json(tmp_path / "none.json")
    with pytest.raises(IsADirectoryError, match="is a folder, a file is needed"):
        read_bytes(tmp_path)


def test_the_data_folder_is_the_repositorys_or_the_packages():
    assert files.DATA_DIR.name in ("data", "_data")
    assert files.DATA_DIR.is_absolute()
