"""How long each check takes: the first time it meets a wrong answer, again, and on a right one.

    python -m tests.bench_checks [NAME …]

The first time is the longest, since all wrong versions of the catalogue are run then. No test depends on these seconds.
"""

import argparse
import time
from functools import partial

import torch
from rich.console import Console
from rich.table import Table

from l1_ref import checks
from l1_ref.checks import diagnosis


def seconds(call) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(exercise: checks.Exercise) -> tuple[float, float, float]:
    """Return the longest first check of a wrong answer, the longest later one, and that of a right answer."""
    first, later = [], []
    # A catalogue that is searched to its end: nothing in it explains this answer.
    strange = lambda *inputs: "no answer"  # noqa: E731
    for candidate in (strange, *(mistake.wrong for mistake in exercise.mistakes)):
        diagnosis.forget()
        first.append(seconds(partial(exercise.diagnose, candidate)))
        later.append(seconds(partial(exercise.diagnose, candidate)))
    # A wrapper, since the reference itself would be recognised and not run.
    right = seconds(partial(exercise.diagnose, lambda *inputs: exercise.reference(*inputs)))
    return max(first), max(later), right


def main() -> None:
    """Print a line for each exercise, the slowest first."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench_checks", description=__doc__)
    parser.add_argument("names", nargs="*", help="exercises; all where none is named")
    names = parser.parse_args().names or list(checks.EXERCISES)
    # torch's own start is not the check's: its first optimizer takes a second.
    checks.softmax.diagnose(lambda x, dim: x)
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    rows = [(name, *measure(checks.exercise(name))) for name in names]
    table = Table("exercise", "first wrong answer, s", "later, s", "right answer, s")
    for name, *times in sorted(rows, key=lambda row: -row[1]):
        table.add_row(name, *(f"{t:.3f}" for t in times))
    Console().print(table)


if __name__ == "__main__":
    main()
