"""What `l1 doctor` finds, and the ranges that it asks for. Needs nothing but Python itself."""

import os
import re
import shlex
import sys
from typing import NamedTuple

PYTHONS = ((3, 11), (3, 13))
TORCHES = ((2, 11), (2, 13))
GOOD, WARNING, BROKEN = "good", "warning", "broken"


class Finding(NamedTuple):
    """What one probe found.

    Args:
        what: What was looked at, such as "disk".
        state: "good", "warning" or "broken": the course needs what is broken.
        found: What is there.
        mend: How to mend it, one command or sentence; empty where all is good.
    """

    what: str
    state: str
    found: str
    mend: str = ""


def python_command(arguments: str) -> str:
    """Return a command for this environment's own Python, as a person would type it.

    Args:
        arguments: What follows the program's name.
    """
    program = f'& "{sys.executable}"' if os.name == "nt" else shlex.quote(sys.executable)
    return f"{program} {arguments}"


def in_range(version: str, allowed: tuple[tuple[int, int], tuple[int, int]]) -> bool:
    """Tell whether a version lies between two others, by its first two numbers.

    Args:
        version: Such as "2.13.0+cpu".
        allowed: The first and the last that are supported.
    """
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and allowed[0] <= (int(numbers[1]), int(numbers[2])) <= allowed[1]


def described(allowed: tuple[tuple[int, int], tuple[int, int]]) -> str:
    """Return a range of versions in words, such as "3.11 to 3.13"."""
    return " to ".join(".".join(map(str, each)) for each in allowed)


def last_line(said: object) -> str:
    """Return the last line of what was said, without colours, or nothing.

    Args:
        said: A text, or an exception.
    """
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(said)).strip().splitlines()
    return lines[-1] if lines else ""
