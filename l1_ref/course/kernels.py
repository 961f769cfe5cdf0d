"""Kernels for graded notebooks: a launcher that has imported everything forks each of them into its limits."""

import hmac
import json
import os
import secrets
import signal
import subprocess
import sys
import sysconfig
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from l1_ref.course import limits as limiting
from l1_ref.course.limits import Limits

# What a kernel may know of the teacher's environment.
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "TIKTOKEN_CACHE_DIR", "LD_LIBRARY_PATH", "SYSTEMROOT")
# What notebooks import: once for all kernels of a run.
_PRELOADED = (
    "ipykernel.kernelapp matplotlib.pyplot matplotlib_inline.backend_inline ipywidgets l1_ref.checks l1_ref.plots "
    "l1_ref.checks.integrity l1_ref.training l1_ref.generation l1_ref.data l1_ref.tales"
).split()


class KernelError(OSError):
    """A kernel did not start; the message ends with what it wrote."""


class Launcher:
    """A process that has imported torch and the course, and forks a kernel in two hundredths of a second.

    Args:
        limits: What each kernel may take.
        with_limits: Whether they are applied at all.
    """

    def __init__(self, limits: Limits, with_limits: bool = True) -> None:
        self.limits, self.with_limits = limits, with_limits
        self._process: subprocess.Popen | None = None
        self._secret = secrets.token_bytes(32)

    def __enter__(self) -> "Launcher":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._process is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()

    def key_of(self, folder: Path) -> str:
        """Return the key with which the checks of the kernels in a folder seal their verdicts."""
        return hmac.new(self._secret, str(folder).encode(), "sha256").hexdigest()

    def launch(self, folder: Path, home: Path) -> int:
        """Start a kernel, and return its process's number.

        Args:
            folder: All that it may write to; the notebook runs in `work` below it.
            home: Its home below that, which holds its connection file.
        """
        if self._process is None or not sys.platform.startswith("linux"):
            self._begin()
        job = {"folder": str(folder), "home": str(home), "key": self.key_of(folder)}
        job["limits"] = asdict(self.limits) if self.with_limits else None
        answer = ""
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        if not answer.strip().isdigit():
            raise KernelError("the launcher of kernels ended before it started one; what it wrote stands above")
        return int(answer)

    def _begin(self) -> None:
        root = str(Path(limiting.__file__).parents[2])
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        environment |= {
            "L1_GRADED": "1",  # the checks are on their guard
            "PYTHONPATH": root,
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        self.__exit__()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "l1_ref.course.kernels"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True,
        )  # fmt: skip


class Kernel:
    """One confined kernel, and the client that talks to it.

    Args:
        launcher: Starts it.
        folder: Its own folder; all that it may write to.
    """

    def __init__(self, launcher: Launcher, folder: Path) -> None:
        from jupyter_client.asynchronous import AsyncKernelClient
        from jupyter_client.connect import write_connection_file

        home = folder / f"kernel-{time.monotonic_ns()}"  # a new one, for what the last kernel wrote could stop this one
        home.mkdir()
        file, _ = write_connection_file(
            str(home / "connection.json"),
            ip=str(home / "s"),
            transport="ipc",
            key=os.urandom(16).hex().encode(),
        )
        self.client = AsyncKernelClient()
        self.client.load_connection_file(file)
        self.client._async_is_alive = self._answers_for  # by its process: a heart is slow on a busy machine
        self._log = home / "kernel.log"
        self._number = launcher.launch(folder, home)

    async def ready(self, timeout_s: float = 120.0) -> None:
        """Wait until the kernel answers.

        Raises:
            KernelError: It ended, or does not answer.
        """
        self.client.start_channels(hb=False)
        self.client.allow_stdin = False
        try:
            await self.client.wait_for_ready(timeout=timeout_s)
        except RuntimeError:
            said = self._log.read_text(errors="replace")[-2000:] if self._log.exists() else ""
            raise KernelError(
                f"a kernel did not start within its limits: {said.strip() or 'it said nothing'}"
            ) from None

    async def _answers_for(self) -> bool:
        return self.is_alive()

    def is_alive(self) -> bool:
        """Say whether the kernel runs."""
        try:
            os.kill(self._number, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt in the cell that runs."""
        self._send(signal.SIGINT)

    def end(self) -> None:
        """End the kernel, all that it started, and the channels to it."""
        self.kill()
        self.client.stop_channels()

    def kill(self) -> None:
        """End the kernel and all that it started."""
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._number, number)


# From here on: inside the launcher.


def main() -> None:
    """Read one job a line from standard input, fork a kernel for it, and answer with its process's number."""
    import importlib

    for name in _PRELOADED:
        importlib.import_module(name)
    forking = sys.platform.startswith("linux")
    if forking:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the kernels
    for line in sys.stdin:
        job = json.loads(line)
        number = os.fork() if forking else 0
        if number == 0:
            answers = None if forking else sys.stdout
            _guard(job, answers)
            os._exit(0)
        try:
            print(number, flush=True)
        except BrokenPipeError:  # the grader was ended; the kernels end with this process
            os._exit(1)


def _guard(job: dict, answers: Any) -> None:
    """Lead a session of its own, move it out of the network, start the kernel in it, and wait."""
    if answers is None:
        os.setsid()
    else:  # the launcher is this kernel's alone, and leads a session already
        print(os.getpid(), file=answers, flush=True)
    limiting.die_with_parent()
    folder, home = Path(job["folder"]), Path(job["home"])
    _redirect(home / "kernel.log")
    limits = Limits(**job["limits"]) if job["limits"] else None
    separated = limits is not None and limiting.separate()
    if separated:  # only a child is in the new space of process numbers
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        child = os.fork()
        if child:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            os.waitpid(child, 0)
            return
        limiting.die_with_parent()
    _run_kernel(folder, home, limits, separated, job["key"])


def _redirect(path: Path) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)


def _run_kernel(folder: Path, home: Path, limits: Limits | None, separated: bool, key: str) -> None:
    import torch
    from ipykernel.kernelapp import IPKernelApp

    from l1_ref.checks import integrity, marks

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ |= {
        "HOME": str(home), "TMPDIR": str(home), "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(home), "MPLCONFIGDIR": str(home), marks.VERDICTS: str(folder / "verdicts.jsonl"),
    }  # fmt: skip
    os.environ.pop("PYTHONPATH", None)
    os.chdir(folder / "work")
    if limits is not None:
        limiting.restrict(limits, folder, _readable(), separated)
    torch.set_num_threads(1)
    sys.argv = ["kernel"]
    arguments = ["-f", str(home / "connection.json"), "--HistoryManager.hist_file=:memory:", "--quiet"]
    kernel = IPKernelApp.instance()
    kernel.initialize(arguments)
    # ipykernel leaves the shell's own method here, which the checks' guard would take for a student's.
    vars(kernel.shell).pop("_showtraceback", None)
    integrity.arm(key)
    kernel.start()


def _readable() -> list[Path | str]:
    """Return what a notebook needs of this machine: Python, its packages, the course and its data."""
    from l1_ref.files import DATA_DIR

    package = Path(limiting.__file__).parents[1]
    paths = [sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), package, DATA_DIR]
    return [*paths, *filter(None, [os.environ.get("TIKTOKEN_CACHE_DIR")])]


if __name__ == "__main__":
    main()
