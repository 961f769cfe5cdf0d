"""Files that are either whole or absent: atomic writing, JSON, and errors that name the file."""

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PathLike = str | os.PathLike[str]

_PACKAGED_DATA = Path(__file__).resolve().parent / "_data"
_BEING_WRITTEN: set[Path] = set()  # the temporary folders of this process
DATA_DIR = _PACKAGED_DATA if _PACKAGED_DATA.is_dir() else _PACKAGED_DATA.parents[1] / "data"


@contextmanager
def replacing(path: PathLike) -> Iterator[Path]:
    """Lend a temporary name; it becomes `path` when the block ends well, and is removed when it does not.

    The name lies in a hidden folder of its own beside `path`, so that whatever else the block leaves there goes with
    it. Where the process is killed meanwhile, the folder stays, and the next one that writes `path` removes it.

    Args:
        path: the file to write; missing parent folders are made, an existing file stays until the last moment.

    Yields:
        The temporary path. The block creates the file and may leave it closed but unsynced.

    Raises:
        OSError: the folder or the disk refuses; the same subclass, with a message that names `path`.
    """
    path = Path(path)
    folder = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    temporary = folder / path.name
    _BEING_WRITTEN.add(folder)
    try:
        if path.is_dir():
            raise IsADirectoryError(f"cannot write {path}: it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        folder.mkdir()
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        # Some writers make files that only their owner may read; what was there keeps its rights.
        temporary.chmod((path if path.exists() else folder).stat().st_mode & 0o666)
        os.replace(temporary, path)
    except OSError as error:
        if error.strerror is None:  # the message is already a sentence of ours
            raise
        reason = f"{path.parent} is a file" if isinstance(error, FileExistsError) else error.strerror
        raise type(error)(f"cannot write {path}: {reason}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _BEING_WRITTEN.discard(folder)


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary folders that killed processes left when they wrote this file."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.(\d+)-[0-9a-f]{{8}}\.tmp")
    with suppress(OSError):  # a folder may be writable and not readable
        for entry in path.parent.iterdir():
            match = ours.fullmatch(entry.name)
            if match and entry not in _BEING_WRITTEN and not _may_be_written(entry, int(match[1])):
                shutil.rmtree(entry, ignore_errors=True)


def _may_be_written(folder: Path, pid: int) -> bool:
    """Tell whether the process of that number may still be at work in a temporary folder."""
    if pid == os.getpid():
        return False  # our number was another process's before
    if os.name == "nt":  # Windows has no signal that only asks
        return time.time() - folder.stat().st_mtime < 3_600
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is another user's
        return True
    return True


@contextmanager
def alone(path: PathLike) -> Iterator[None]:
    """Keep every other process out of a block that names the same file; the file stays, and holds nothing.

    A process that is killed lets the others in again. Where the file system knows no locks, nobody is kept out.

    Args:
        path: the file; missing parent folders are made.

    Raises:
        OSError: another process is inside, or the file cannot be made.
    """
    from filelock import FileLock, Timeout  # not before a lock is needed

    lock = FileLock(path)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(f"another process holds {path}; wait until it has ended") from None
    except NotImplementedError:
        pass
    except OSError as error:
        raise type(error)(f"cannot write {path}: {error.strerror or error}") from None
    try:
        yield
    finally:
        lock.release()


def write_atomic(path: PathLike, data: bytes | str) -> None:
    """Write a whole file, or leave what was there.

    Args:
        path: the file to write; missing parent folders are made.
        data: the bytes, or a text that is stored as UTF-8 with its newlines as they are.

    Raises:
        OSError: the folder or the disk refuses.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)


def write_json(path: PathLike, obj: Any) -> None:
    """Write an object as indented JSON, atomically.

    Args:
        path: the file to write.
        obj: anything that `json` can write.

    Raises:
        OSError: the folder or the disk refuses.
        TypeError: `json` cannot write the object.
    """
    write_atomic(path, json.dumps(obj, indent=2) + "\n")


def read_bytes(path: PathLike) -> bytes:
    """Read a whole file.

    Args:
        path: the file to read.

    Returns:
        Its bytes.

    Raises:
        OSError: there is no such file, or it cannot be read; the message is one sentence that names it.
    """
    path = Path(path)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except OSError as error:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder, a file is needed") from None
        raise type(error)(f"cannot read {path}: {error.strerror}") from None


def read_json(path: PathLike) -> Any:
    """Read a JSON file.

    Args:
        path: the file to read.

    Returns:
        What the file holds.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not JSON, for example because it is cut short; the message says where.
    """
    data = read_bytes(path)
    try:
        return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not JSON: it is not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error.msg}, line {error.lineno}, column {error.colno}") from None
    except ValueError as error:  # a number of thousands of digits
        raise ValueError(f"{path} is not JSON that can be read: {error}") from None
    except RecursionError:
        raise ValueError(f"{path} is not JSON that can be read: it is nested too deeply") from None
