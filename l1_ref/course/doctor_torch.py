"""What `l1 doctor` asks of torch, in a process of its own: each finding is one line of JSON on standard output."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from l1_ref.course.findings import BROKEN, GOOD, TORCHES, WARNING, Finding, described, in_range, python_command

SLOW = 1.5  # times as long: what is below is chance, or not worth a word
_LOW, _HIGH = (".".join(map(str, each)) for each in (TORCHES[0], (TORCHES[1][0], TORCHES[1][1] + 1)))
_INSTALL = python_command(f'-m pip install "torch>={_LOW},<{_HIGH}"')
_OFFLINE_TEXT = "Once upon a time a bold hare lived behind the mill."


def probe_version() -> Finding:
    """Look at torch's version."""
    if in_range(torch.__version__, TORCHES):
        return Finding("torch", GOOD, torch.__version__)
    return Finding("torch", BROKEN, f"{torch.__version__}; the course needs {described(TORCHES)}", _INSTALL)


def probe_arithmetic() -> Finding:
    """Let torch compute a number, and a gradient, that are known."""
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    value = (x @ x).trace()  # 1 + 6 + 6 + 16; its gradient is twice the transpose of x
    value.backward()
    right = value.item() == 29.0 and x.grad is not None and torch.equal(x.grad, 2 * x.detach().T)
    if right:
        return Finding("torch computes", GOOD, "a product and its gradient are right")
    return Finding("torch computes", BROKEN, f"a product is {value.item()} where 29 is right", _INSTALL)


def seconds(work: Callable[[], Any], turns: int = 9) -> float:
    """Return how long some work takes, the median of several turns after one that does not count.

    Args:
        work: What is timed.
        turns: How often.
    """
    taken = []
    for turn in range(turns + 1):
        start = time.perf_counter()
        work()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        taken += [time.perf_counter() - start] if turn else []
    return median(taken)


def probe_threads() -> Finding:
    """Measure whether the threads that torch takes are slower than one, on products as small as the course's."""
    n = torch.get_num_threads()
    if n == 1:
        because = " (OMP_NUM_THREADS=1)" if os.environ.get("OMP_NUM_THREADS") == "1" else ""
        return Finding("threads", GOOD, f"1{because}")
    x, weight = torch.randn(256, 128), torch.randn(128, 512)

    def work() -> None:
        for _ in range(50):
            torch.nn.functional.gelu(x @ weight)

    together = seconds(work)
    torch.set_num_threads(1)
    alone = seconds(work)
    torch.set_num_threads(n)
    if together <= SLOW * alone:
        return Finding("threads", GOOD, f"{n}; a small product takes {together / alone:.2f} times as long as with 1")
    setting = '$env:OMP_NUM_THREADS = "1"; l1 learn' if os.name == "nt" else "OMP_NUM_THREADS=1 l1 learn"
    found = (
        f"{n}, and a small product takes {together / alone:.1f} times as long as with 1: other work is on this machine"
    )
    return Finding("threads", WARNING, found, f"start the course with one: {setting}")


def probe_gpu() -> Finding:
    """Look for a GPU that torch can use."""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return Finding("GPU", GOOD, f"{name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free")
    if torch.backends.mps.is_available():
        return Finding("GPU", GOOD, f"Apple's (MPS), {torch.mps.recommended_max_memory() / 1e9:.1f} GB")
    if shutil.which("nvidia-smi"):
        found = "torch sees none, though NVIDIA's driver is here; the notebooks do not need one"
        mend = "for `l1 train` on it, install torch's CUDA build: its selector is on pytorch.org, under Get started"
        return Finding("GPU", WARNING, found, mend)
    return Finding("GPU", GOOD, "none, and the notebooks do not need one")


def probe_half() -> Finding:
    """Measure products in 16 bits beside those in float32, on the GPU, or on one core."""
    n = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for each other would hide what is asked
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    size = 256 if device.type == "cpu" else 2048
    times = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = torch.randn(size, size, device=device).to(dtype)
        times[dtype] = seconds(lambda x=x: x @ x, turns=5)
    torch.set_num_threads(n)
    ratios = {str(dtype).removeprefix("torch."): times[dtype] / times[torch.float32] for dtype in list(times)[1:]}
    where = "this processor" if device.type == "cpu" else "this GPU"
    found = ", ".join(f"{name} takes {ratio:.2g} times as long as float32" for name, ratio in ratios.items())
    slow = [name for name, ratio in ratios.items() if ratio > SLOW]
    if slow:
        found += (
            f"; {' and '.join(slow)} {'is' if len(slow) == 1 else 'are'} slow on {where}: the notebooks use float32"
        )
    return Finding("16-bit numbers", GOOD, found)


def probe_tokenizer() -> Finding:
    """Let the course's tokenizer work where no network can be had."""
    from l1_ref.files import DATA_DIR
    from l1_ref.tokenizer import load_tokenizer

    sys.addaudithook(_deny_network)
    tokenizer = load_tokenizer(DATA_DIR)
    ids = tokenizer.encode(_OFFLINE_TEXT)
    if tokenizer.decode(ids) == _OFFLINE_TEXT:
        return Finding("tokenizer", GOOD, f"the course's own, through tiktoken, without a network: {len(ids)} tokens")
    mend = python_command("-m pip install --force-reinstall tiktoken")
    return Finding("tokenizer", BROKEN, "text does not come back from its tokens", mend)


def _deny_network(event: str, _: tuple) -> None:
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise PermissionError(f"the tokenizer asked for the network ({event})")


# The last one forbids the network for the rest of the process.
PROBES = (
    ("torch", probe_version),
    ("torch computes", probe_arithmetic),
    ("threads", probe_threads),
    ("GPU", probe_gpu),
    ("16-bit numbers", probe_half),
    ("tokenizer", probe_tokenizer),
)
_NOT_NEEDED = ("threads", "GPU", "16-bit numbers")


def main() -> None:
    """Print what each probe finds; one that fails itself is a finding too."""
    for what, probe in PROBES:
        try:
            finding = probe()
        except Exception as error:
            state = WARNING if what in _NOT_NEEDED else BROKEN
            finding = Finding(what, state, f"the probe failed: {type(error).__name__}: {error}", _INSTALL)
        print(json.dumps(finding), flush=True)


if __name__ == "__main__":
    main()
