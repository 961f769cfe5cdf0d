"""Files that are either whole or absent: atomic writing, JSON, and errors that name the file."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PathLike = str | os.PathLike[str]

_PACKAGED_DATA = Path(__file__).resolve().parent / "_data"
DATA_DIR = _PACKAGED_DATA if _PACKAGED_DATA.is_dir() else _PACKAGED_DATA.parents[1] / "data"


@contextmanager
def replacing(path: PathLike) -> Iterator[Path]:
    """Lend a temporary name beside `path`; it becomes `path` when the block ends well, and is removed when it does not.

    Args:
        path: the file to write; missing parent folders are made, an existing file stays until the last moment.

    Yields:
        The temporary path. The block creates the file and may leave it closed but unsynced.

    Raises:
        OSError: the folder or the disk refuses; the same subclass, with a message that names `path`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        if path.is_dir():
            raise IsADirectoryError(f"cannot write {path}: it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.strerror is None:  # the message is already a sentence of ours
            raise
        reason = f"{path.parent} is a file" if isinstance(error, FileExistsError) else error.strerror
        raise type(error)(f"cannot write {path}: {reason}") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


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
    except RecursionError:
        raise ValueError(f"{path} is not JSON that can be read: it is nested too deeply") from None
