"""The limits that strangers' code runs in: what this system can hold, and how a process takes them on itself.

Linux holds them with what every user may use: a user namespace (no network, no process left behind), Landlock (no file
outside the allowed ones) and resource limits. No name of a student's file, and no setting of a teacher's, gets in. What
all of this cannot hold needs a container or a virtual machine: the disk's total space, a fault of the kernel itself,
sockets of the machine's services that any user may write to, and more than one process's memory at a time.
"""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_NEW_USER, _NEW_NET, _NEW_PID, _NEW_IPC = 0x10000000, 0x40000000, 0x20000000, 0x08000000
_NAMESPACES = _NEW_USER | _NEW_NET | _NEW_PID | _NEW_IPC
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # Landlock's system calls, the same on every processor
_SET_DEATH_SIGNAL, _SET_NO_NEW_PRIVILEGES = 1, 38
# Landlock's rights over files: by the version of its interface that brought them.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE, _DEVICES = 1, 2, 4, 8, 1 << 14, 1 << 15
_ALL = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _DEVICES
_TCP, _SCOPES = 0b11, 0b11  # bind and connect; abstract sockets and signals to processes outside
_SYSTEM = """
/usr /lib /lib32 /lib64 /bin /sbin /etc/ld.so.cache /etc/localtime /etc/passwd /etc/nsswitch.conf /etc/fonts /etc/ssl
/dev/urandom /dev/random /dev/zero /proc/self /proc/cpuinfo /proc/meminfo /proc/stat /sys/devices/system
""".split()


@dataclass(frozen=True)
class Limits:
    """What one notebook may take.

    Args:
        cell_s: Longest time of one cell, in seconds.
        memory_mb: Largest address space of a process, in MiB, beside what torch and the course's packages take: some
            600 where torch is built for CPUs alone, 3,000 where it is built for CUDA too.
        file_mb: Largest file, in MiB.
        processes: Most processes and threads at a time.
        output_mb: Most output of one cell, in MiB.

    Raises:
        ValueError: A limit is not positive, or the memory is too small for torch.
    """

    cell_s: float = 60.0
    memory_mb: int = 4096
    file_mb: int = 64
    processes: int = 128
    output_mb: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.cell_s <= 86_400:
            raise ValueError(f"--timeout must be seconds above 0, at most a day (86,400), got {self.cell_s:g}")
        if self.memory_mb < 1024:
            raise ValueError(f"--memory must be at least 1024 MiB, which the notebooks need, got {self.memory_mb}")

    @property
    def notebook_s(self) -> float:
        """Longest time of a whole notebook, by the clock and of the processor, in seconds."""
        return max(15 * self.cell_s, 300.0)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


@cache
def landlock_version() -> int:
    """Return the version of Landlock's interface that the system offers; 0 where it has none."""
    if not sys.platform.startswith("linux"):
        return 0
    return max(_libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(1)), 0)


@cache
def has_namespaces() -> bool:
    """Say whether a process may move into namespaces of its own; a child tries it."""
    if not sys.platform.startswith("linux"):
        return False
    trial = "import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare(int(sys.argv[1])) != 0)"
    return subprocess.run([sys.executable, "-IS", "-c", trial, str(_NAMESPACES)], capture_output=True).returncode == 0


def holding() -> dict[str, tuple[str, str]]:
    """Return, for each limit, whether it holds on this system ("yes", "partly" or "no"), and what that means."""
    landlock, spaces, unix = landlock_version(), has_namespaces(), os.name == "posix"
    linux = sys.platform.startswith("linux")
    files = ("yes", "only the course's packages are readable, only the submission's own folder is writable")
    network = ("yes", "none: the kernel has a network of its own without a way out")
    if not spaces:
        network = ("partly", "no TCP; UDP is open, for this system allows no user namespaces")
    gone = ("yes", "all end with the notebook")
    few = ("yes", "limited in number") if unix and spaces and os.getuid() else ("no", "as many as the system allows")
    return {
        "time": ("yes", "a cell's and a notebook's"),
        "memory": ("yes", "of each process") if linux else ("no", "this system does not limit address space"),
        "file size": ("yes", "of each file") if unix else ("no", "this system has no such limit"),
        "files": files if landlock >= 3 else ("no", "this system has no Landlock of version 3 (Linux 6.2) or newer"),
        "network": network if spaces or landlock >= 4 else ("no", "neither user namespaces nor Landlock 4 (Linux 6.7)"),
        "left-over processes": gone if spaces else ("partly", "all end but those that left their session"),
        "number of processes": few,
    }


def missing() -> list[str]:
    """Return the limits without which strangers' code should not run here, and which this system does not hold."""
    needed = ("memory", "files", "network")
    return [f"{name}: {holding()[name][1]}" for name in needed if holding()[name][0] == "no"]


def separate() -> bool:
    """Move this process, which must have one thread, to a network without a way out; its children to new numbers.

    Returns:
        Whether the system allowed it.
    """
    user, group = os.getuid(), os.getgid()
    if not sys.platform.startswith("linux") or _libc().unshare(_NAMESPACES):
        return False
    with suppress(OSError):  # without a map the process is nobody, and can still read what all may read
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    return True


def die_with_parent() -> None:
    """Let the system end this process when its parent ends, where it can."""
    if sys.platform.startswith("linux"):
        _libc().prctl(_SET_DEATH_SIGNAL, 9, 0, 0, 0)


def restrict(limits: Limits, own: Path, readable: Iterable[Path | str], separated: bool) -> None:
    """Take the limits on this process and all that it starts; there is no way back.

    Args:
        limits: How much.
        own: The one folder that may be written to.
        readable: Files and folders that may be read, beside the system's own.
        separated: Whether the process is in namespaces of its own.

    Raises:
        OSError: The system refuses what it offers.
    """
    import resource

    mebibyte = 2**20
    amounts = {
        "CPU": int(limits.notebook_s) + 1,
        "FSIZE": limits.file_mb * mebibyte,
        "NPROC": limits.processes,
        "NOFILE": 1024,
        "CORE": 0,
    }
    if not separated:
        del amounts["NPROC"]  # it would count all processes of the teacher too
    if sys.platform.startswith("linux"):
        amounts["AS"] = _address_space() + limits.memory_mb * mebibyte
    for name, amount in amounts.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        most = resource.getrlimit(kind)[1]
        amount = amount if most == resource.RLIM_INFINITY else min(amount, most)
        resource.setrlimit(kind, (amount, amount))
    if landlock_version() >= 3:
        _keep_to(own, [*_SYSTEM, *readable])


def _address_space() -> int:
    """Return the bytes of address space that this process has now."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[0]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _keep_to(own: Path, readable: Iterable[Path | str]) -> None:
    """Enter a Landlock domain: nothing is opened, and no TCP socket used, save what the rules name."""
    version = landlock_version()
    every = _ALL.get(version, (1 << 16) - 1)
    handled = (ctypes.c_uint64 * 3)(every, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _checked(_libc().syscall(_CREATE_RULESET, handled, ctypes.c_size_t(size), ctypes.c_uint(0)))
    for path in readable:
        _allow(ruleset, path, _EXECUTE | _READ_FILE | _READ_DIR)
    _allow(ruleset, "/dev/null", _READ_FILE | _WRITE_FILE)
    _allow(ruleset, own, every & ~_EXECUTE & ~_DEVICES)
    _checked(_libc().prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    _checked(_libc().syscall(_RESTRICT_SELF, ruleset, ctypes.c_uint(0)))
    os.close(ruleset)


def _allow(ruleset: int, path: Path | str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what is not there needs no rule
    try:
        if not os.path.isdir(path):
            rights &= _ON_FILES
        rule = rights.to_bytes(8, sys.byteorder) + descriptor.to_bytes(4, sys.byteorder)
        _checked(_libc().syscall(_ADD_RULE, ruleset, ctypes.c_int(1), rule, ctypes.c_uint(0)))
    finally:
        os.close(descriptor)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"the system refuses a limit of graded code: {os.strerror(number)}")
    return result
