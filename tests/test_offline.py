"""The commands without a network: all that need none run where no socket can be had.

The cells of the notebooks are run so too: `tests/notebooks/conftest.py`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Python announces each socket before it makes it, and each name before it looks it up.
DENY = """
import sys

def deny(event, arguments):
    if event.startswith("socket."):
        raise PermissionError(f"no network here: {event}")

sys.addaudithook(deny)
"""
COMMANDS = """
from l1_ref import cli

SMALL = "--steps 1 --batch-size 1 --set n_layers=1 n_heads=1 n_embd=8 max_seq_length=8".split()
for words in (
    ["--help"],
    ["train", "cats.txt", "--out", "run", *SMALL],
    ["train", "cats.txt", "--out", "bytes", "--tokenizer", "bpe:260", *SMALL],
    ["generate", "run", "the", "--max-new-tokens", "2"],
    ["generate", TINY, "Once", "--max-new-tokens", "2"],
    ["learn", "workspace", "--no-lab"],
    ["progress", "workspace"],
):
    sys.argv = ["l1", *words]
    try:
        cli.main()
    except SystemExit as stop:
        assert not stop.code, words
"""


def run(code: str, folder: Path, **names) -> None:
    """Run code in a process of its own that can have no socket."""
    given = "".join(f"{name} = {value!r}\n" for name, value in names.items())
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", DENY + given + code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_every_command_that_needs_no_network_runs_without_one(tmp_path):
    (tmp_path / "cats.txt").write_text("the cat sat on the mat.\n" * 20)
    run(COMMANDS, tmp_path, TINY=str(ROOT / "data" / "tiny"))


def test_a_socket_is_really_denied(tmp_path):
    for code in ("import socket; socket.socket()", "import socket; socket.getaddrinfo('localhost', 80)"):
        with pytest.raises(AssertionError, match="no network here: socket"):
            run(code, tmp_path)
