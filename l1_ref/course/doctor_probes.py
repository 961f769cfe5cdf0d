"""What `l1 doctor` looks at, one probe a thing. Needs nothing but Python itself until a probe asks for more."""

import atexit
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import webbrowser
from collections.abc import Iterator
from pathlib import Path

from l1_ref.course.findings import (
    BROKEN,
    GOOD,
    PYTHONS,
    TORCHES,
    WARNING,
    Finding,
    described,
    in_range,
    last_line,
    python_command,
)
from l1_ref.files import DATA_DIR

# `make data` gives these to the byte on every machine. Weights may differ in their last digits.
DATA_SHA256 = {
    "tales-train.txt": "f25687d7bba8c79f3a494240e605cd4e7ae47509ac2e192ac3ecf886b08107a8",
    "tales-validation.txt": "343117260d6cca18fb964253848dea6ce48d02e99c6fe684bdea67c5acefb7a3",
    "tokenizer.json": "e4bf2dc307b3830e615337e0c5f9af2f1270e7f7b748796a39744d77c3c09547",
    "tiny/tokenizer.json": "e4bf2dc307b3830e615337e0c5f9af2f1270e7f7b748796a39744d77c3c09547",
}
DISK_BYTES, MEMORY_BYTES = 10**9, 4 * 10**9
TORCH_TIMEOUT_S, KERNEL_TIMEOUT_S = 90, 60
_ROOT = Path(__file__).resolve().parents[2]
_ANOTHER_FOLDER = "name a folder elsewhere: l1 learn FOLDER"
_FROM_KERNEL = "import json, sys, l1_ref; print(json.dumps([sys.prefix, l1_ref.__file__]))"


def probe_python(_: Path) -> Finding:
    """Look at Python's version."""
    version = ".".join(map(str, sys.version_info[:3]))
    if in_range(version, PYTHONS):
        return Finding("Python", GOOD, f"{version}, {sys.executable}")
    mend = f"install one of Python {described(PYTHONS)}, and make the environment anew with it"
    return Finding("Python", BROKEN, f"{version}; the course needs {described(PYTHONS)}", mend)


def probe_packages(_: Path) -> Finding:
    """Compare the installed packages with those that the course was tested with."""
    missing, other, n_right = [], [], 0
    for requirement in importlib.metadata.requires("l1_ref") or []:
        pinned = re.match(r"([\w.-]+)\s*==\s*([^\s;]+)\s*(;.*extra.*)?$", requirement)
        if pinned is None or pinned[3]:
            continue
        try:
            version = importlib.metadata.version(pinned[1])
        except importlib.metadata.PackageNotFoundError:
            missing.append(f"{pinned[1]}=={pinned[2]}")
            continue
        n_right += version == pinned[2]
        other += [] if version == pinned[2] else [f"{pinned[1]}=={pinned[2]} (here {version})"]
    pins = " ".join(each.split()[0] for each in missing + other)
    mend = python_command(f"-m pip install {pins}")
    if missing:
        return Finding("packages", BROKEN, f"missing: {', '.join(missing)}", mend)
    if other:
        return Finding("packages", WARNING, f"not the tested versions: {', '.join(other)}", mend)
    return Finding("packages", GOOD, f"{n_right}, each of the tested version")


def probe_torch(_: Path) -> Iterator[Finding]:
    """Let a process of its own look at all that needs torch."""
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "l1_ref.course.doctor_torch"]
    output, ending = "", ""
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, encoding="utf-8", errors="replace", timeout=TORCH_TIMEOUT_S
        )
        output = done.stdout
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            ending = f"the process that tried it ended: {last.strip()}"
    except subprocess.TimeoutExpired as late:
        output = late.stdout or b""
        output = output.decode("utf-8", "replace") if isinstance(output, bytes) else output
        ending = f"no answer within {TORCH_TIMEOUT_S} seconds"
    told = [Finding(*json.loads(line)) for line in output.splitlines() if line.startswith("[")]
    yield from told
    if ending:
        what = "torch" if not told else f"torch, after {told[-1].what}"
        mend = python_command(f'-m pip install --force-reinstall "torch>={TORCHES[0][0]}.{TORCHES[0][1]},')
        yield Finding(what, BROKEN, ending, f'{mend}<{TORCHES[1][0]}.{TORCHES[1][1] + 1}"')


def probe_jupyterlab(_: Path) -> Finding:
    """Look whether JupyterLab is there."""
    mend = python_command("-m pip install jupyterlab")
    try:
        return Finding("JupyterLab", GOOD, importlib.metadata.version("jupyterlab"))
    except importlib.metadata.PackageNotFoundError:
        return Finding("JupyterLab", BROKEN, "not installed in this environment", mend)


def probe_kernel(_: Path) -> Finding:
    """Start the kernel that notebooks ask for, and see that it is this environment's and finds l1_ref."""
    import nbformat
    from nbclient import NotebookClient

    mend = python_command(f"-m ipykernel install --name python3 {_kernel_home()}")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(_FROM_KERNEL)])
    client = NotebookClient(notebook, kernel_name="python3", timeout=KERNEL_TIMEOUT_S, startup_timeout=KERNEL_TIMEOUT_S)
    with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryFile() as said:
        client.resources = {"metadata": {"path": empty}}
        try:
            client.execute(stderr=said)
            prefix, package = json.loads(notebook.cells[0].outputs[0]["text"])
        except Exception as error:
            said.seek(0)
            # A kernel that died says why by itself; one that lives says it in the error of the cell.
            why = last_line(said.read().decode("utf-8", "replace") if "died" in str(error) else error)
            return Finding("Jupyter kernel", BROKEN, f"python3 does not work: {why}", mend)
        finally:
            atexit.unregister(client._cleanup_kernel)  # nbclient forgets that where the kernel never started
    if not _same(prefix, sys.prefix):
        return Finding("Jupyter kernel", BROKEN, f"python3 belongs to another environment, {prefix}", mend)
    if not _same(Path(package).parent, _ROOT / "l1_ref"):
        mend = "remove the copy that is not meant: a kernel should find the l1_ref whose doctor you run"
        return Finding("Jupyter kernel", WARNING, f"python3 finds another l1_ref, {Path(package).parent}", mend)
    return Finding("Jupyter kernel", GOOD, "python3 runs a cell, in this environment")


def _kernel_home() -> str:
    return "--sys-prefix" if sys.prefix != sys.base_prefix or os.environ.get("CONDA_PREFIX") else "--user"


def _same(path: Path | str, other: Path | str) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)


def probe_data(_: Path) -> Finding:
    """Compare the course's own files with their checksums, and see that the trained model's are whole."""
    wrong = []
    for name, checksum in DATA_SHA256.items():
        path = DATA_DIR / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != checksum:
            wrong.append(f"{name} is not the course's")
    tiny = DATA_DIR / "tiny"
    whole = {"config.json": _is_json, "metrics.json": _is_json, "model.safetensors": _are_weights}
    wrong += [f"tiny/{name} is missing or cut short" for name, is_whole in whole.items() if not is_whole(tiny / name)]
    if wrong:
        mend = "in a checkout: git checkout -- data; otherwise install the course again"
        return Finding("data files", BROKEN, f"{', '.join(wrong)} (in {DATA_DIR})", mend)
    return Finding("data files", GOOD, "the tales, their tokenizer and the trained model are whole")


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return True


def _are_weights(path: Path) -> bool:
    """Tell whether a safetensors file is as long as its header says."""
    try:
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        ends = [each["data_offsets"][1] for name, each in header.items() if name != "__metadata__"]
        return start + max(ends) == len(data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _nearest(folder: Path) -> Path:
    """Return the folder, or the first above it that exists."""
    folder = Path(os.path.abspath(folder.expanduser()))
    return next(each for each in (folder, *folder.parents) if each.is_dir())


def probe_disk(folder: Path) -> Finding:
    """Look how much room is left where the workspace is, or would be."""
    place = _nearest(folder)
    free = shutil.disk_usage(place).free
    found = f"{free / 1e9:.1f} GB free at {place}"
    if free >= DISK_BYTES:
        return Finding("disk", GOOD, found)
    mend = f"free some room, or {_ANOTHER_FOLDER}"
    return Finding("disk", BROKEN, f"{found}; the course asks for {DISK_BYTES / 1e9:.0f} GB", mend)


def probe_workspace(folder: Path) -> Finding:
    """Look whether the workspace can be written."""
    place = _nearest(folder)
    if os.path.lexists(folder.expanduser()) and not folder.expanduser().is_dir():
        return Finding("workspace", BROKEN, f"{folder} is a file", _ANOTHER_FOLDER)
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"room")
    except OSError as error:
        return Finding("workspace", BROKEN, f"{place} cannot be written: {error.strerror or error}", _ANOTHER_FOLDER)
    there = "can be written" if place == Path(os.path.abspath(folder.expanduser())) else "can be made"
    return Finding("workspace", GOOD, f"{folder} {there}")


def probe_memory(_: Path) -> Finding:
    """Look how much memory this machine, or this container, has."""
    total = memory_bytes()
    if total is None:
        return Finding("memory", GOOD, "this system does not tell; 4 GB are enough")
    if total >= MEMORY_BYTES:
        return Finding("memory", GOOD, f"{total / 1e9:.0f} GB")
    mend = "close other programs, and shut down the kernels of notebooks that you are done with"
    return Finding("memory", WARNING, f"{total / 1e9:.1f} GB, less than {MEMORY_BYTES / 1e9:.0f}", mend)


def memory_bytes() -> int | None:
    """Return the bytes of memory that processes here may use in all, or None where the system does not tell."""
    limits = []
    if hasattr(os, "sysconf"):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):
            continue
    if os.name == "nt":
        import ctypes

        kilobytes = ctypes.c_ulonglong()
        if ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes)):
            limits.append(1024 * kilobytes.value)
    return min(limits, default=None)


def probe_browser(_: Path) -> Finding:
    """Look whether JupyterLab can open a browser."""
    if has_browser():
        return Finding("browser", GOOD, "found")
    mend = "open the address that JupyterLab prints, in a browser on this machine or through a tunnel to it"
    return Finding("browser", WARNING, "none that `l1 learn` could open", mend)


def has_browser() -> bool:
    """Tell whether a browser can be opened here."""
    if os.environ.get("CI") or (sys.platform == "linux" and not os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY"}):
        return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True
