"""Run `l1` in forks of one process that has everything imported, and strike each at a given moment.

A fork costs a tenth of a second where a new process takes seconds, so that a test can afford many. Started by
`tests/test_interruptions.py` as `python -m tests.forked`: each line of input is a command, each line of output what
became of it.
"""

import ctypes
import io
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import torch

from l1_ref import cli, plots

# What Python announces before it changes a file: moments that come in the same order on every machine.
CHANGES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def strike(at: int, numbers: list[int], limit: int | None) -> None:
    """Send this process signals, one a moment, from the moment on that bears the number `at`; or limit its files."""
    moment, waiting = 0, list(numbers)

    def hook(event: str, arguments: tuple) -> None:
        nonlocal moment
        if event not in CHANGES and not (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        if str(arguments[0]).startswith("/dev/"):
            return
        moment += 1
        if moment == at and limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        if moment >= at and waiting:
            os.kill(os.getpid(), waiting.pop(0))

    sys.addaudithook(hook)


def drop_capabilities() -> None:
    """Make root an owner like any other: what its folders forbid, it may no longer do."""
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None).capset(header, none):
        raise OSError("the capabilities could not be dropped")


def child(command: dict, errors: Path) -> None:
    """Be the command, and never come back."""
    os.chdir(command["folder"])
    for number, path in ((1, os.devnull), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    sys.argv = ["l1", *command["arguments"]]
    for number, usual in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        signal.signal(number, usual)  # whatever started the tests may ignore it: nohup, a shell's &
    if command["ignored"]:
        signal.signal(command["ignored"], signal.SIG_IGN)  # as nohup does
    if command["powerless"] and os.geteuid() == 0:
        drop_capabilities()
    if command["at"] is not None:
        strike(command["at"], command["signals"], command["limit"])
    status = 0
    try:
        cli.main()
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run(command: dict, errors: Path) -> dict:
    """Run one command in a fork; its status is negative where a signal ended it."""
    errors.write_text("")
    pid = os.fork()
    if pid == 0:
        child(command, errors)
    if command["delay"] is not None:
        time.sleep(command["delay"])
        os.kill(pid, signal.SIGKILL)
    return {
        "status": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]),
        "errors": errors.read_text("utf-8", errors="replace"),
    }


def warm_up() -> None:
    """Have everything imported that is imported late: what the optimizer needs, and what draws a figure."""
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    point = {"step": 0, "tokens": 0, "training_loss": None, "validation_loss": 1.0}
    plots.loss_curve([point, point], None).savefig(io.BytesIO(), format="png")


if __name__ == "__main__":
    warm_up()
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line), Path(sys.argv[1]))), flush=True)
