"""A real JupyterLab, started by `l1 learn` as a reader starts it, and ended as a reader ends it: Ctrl-C, then y."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120.0  # seconds that one thing may take before it counts as broken; a quiet machine needs a twentieth
_ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+/lab/tree/(\S+?\.ipynb)\?token=\w+")
_QUESTION = "Shut down this Jupyter server"


class Course:
    """A checkout of the course of its own, so that a `git pull` can be played by changing its sources.

    Args:
        folder: Where it goes; the reader's settings and JupyterLab's notes about itself are kept there too.
    """

    def __init__(self, folder: Path) -> None:
        self.checkout = folder / "checkout"
        unwanted = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        shutil.copytree(ROOT / "l1_ref", self.checkout / "l1_ref", ignore=unwanted)
        shutil.copytree(ROOT / "notebooks" / "src", self.checkout / "notebooks" / "src", ignore=unwanted)
        (self.checkout / "data").symlink_to(ROOT / "data")
        self.runtime = folder / "runtime"
        self.settings = folder / "settings"
        self.settings.mkdir()
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("JUPYTER", "L1_"))}
        self.environment = inherited | {
            "CI": "true",  # no browser of the reader's own opens; the address is printed
            "PYTHONPATH": str(self.checkout),
            "JUPYTER_CONFIG_DIR": str(self.settings),
            "JUPYTER_RUNTIME_DIR": str(self.runtime),
            "IPYTHONDIR": str(folder / "ipython"),
            "OMP_NUM_THREADS": "1",
        }

    def command(self, *words: object) -> list[str]:
        """Return the command line of `l1 WORDS` for this checkout."""
        return [sys.executable, "-c", "from l1_ref.cli import main; main()", *map(str, words)]

    def l1(self, *words: object) -> str:
        """Run `l1 WORDS` to its end and return what it says; an exit status other than 0 is an error.

        Args:
            *words: The command and its arguments.
        """
        done = subprocess.run(
            self.command(*words),
            env=self.environment,
            cwd=self.checkout.parent,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=PATIENCE,
        )
        assert done.returncode == 0, f"l1 {' '.join(map(str, words))}: {done.stdout}{done.stderr}"
        return done.stdout

    @contextmanager
    def lab(self, workspace: Path) -> Iterator[str]:
        """Run `l1 learn WORKSPACE`; yield the address that it prints, and at the end see that nothing is left.

        Args:
            workspace: The reader's.
        """
        log = self.checkout.with_name("jupyterlab.log")
        log.unlink(missing_ok=True)
        self._configure()
        keyboard, terminal = os.openpty()  # JupyterLab asks its question at a terminal only
        with (
            open(keyboard, "wb", buffering=0) as keys,
            open(terminal, "rb", buffering=0) as stdin,
            log.open("wb") as out,
            subprocess.Popen(
                self.command("learn", workspace),
                env=self.environment,
                cwd=self.checkout.parent,
                stdin=stdin,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # as a terminal's foreground group, which Ctrl-C reaches as a whole
            ) as process,
        ):
            try:
                address = _wait_for(_ADDRESS, log, process)[0]
                _wait_until_it_answers(address, log, process)
                yield address
                self._end(process, log, keys)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == 0, f"l1 learn ended with {process.returncode}:\n{_tail(log)}"
        self._require_nothing_left()

    def _configure(self) -> None:
        # The page tells the journey which cell is which, and whether the kernel is at work. JupyterLab looks for a free
        # port well before it takes it: of two that start at once, both may name the same, so each gets its own here.
        # Nothing else is unlike a reader's.
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        settings = {"LabApp": {"expose_app_in_browser": True}, "ServerApp": {"port": port}}
        (self.settings / "jupyter_server_config.json").write_text(json.dumps(settings), encoding="utf-8")

    def _end(self, process: subprocess.Popen, log: Path, keys: BinaryIO) -> None:
        os.killpg(process.pid, signal.SIGINT)
        _wait_for(re.compile(_QUESTION), log, process)
        keys.write(b"y\n")
        process.wait(PATIENCE)

    def _require_nothing_left(self) -> None:
        # JupyterLab and each kernel keep a file here while they run, and a kernel's command line names its file.
        assert sorted(path.name for path in self.runtime.glob("*.json")) == []
        assert [line for line in _commands() if str(self.runtime) in line] == []


def _commands() -> list[str]:
    if not Path("/proc/self/cmdline").is_file():
        return subprocess.run(["ps", "-axo", "command"], capture_output=True, text=True, check=True).stdout.splitlines()
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # it ended meanwhile
    return lines


def _wait_for(pattern: re.Pattern[str], log: Path, process: subprocess.Popen) -> re.Match[str]:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        if found := pattern.search(log.read_text(encoding="utf-8", errors="replace")):
            return found
        if ended:
            break
        time.sleep(0.05)
    raise AssertionError(f"JupyterLab did not say {pattern.pattern!r}:\n{_tail(log)}")


def _wait_until_it_answers(address: str, log: Path, process: subprocess.Popen) -> None:
    # The address is printed before JupyterLab listens there; another server would refuse this one's token.
    server, token = address.split("/lab/")[0], address.split("?token=")[1]
    deadline, problem = time.monotonic() + PATIENCE, "nothing"
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{server}/api/status?token={token}", timeout=PATIENCE):
                return
        except urllib.error.HTTPError as error:
            problem = f"{error.code}, as another server would"
        except OSError as error:
            problem = str(error)
        time.sleep(0.05)
    raise AssertionError(f"{server} does not answer with this JupyterLab ({problem}):\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:])
