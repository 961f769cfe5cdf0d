"""`l1 doctor`: what is wrong with an installation, and how to mend it.

Where torch cannot even be imported, `l1` cannot start; `python -m l1_ref.course.doctor` still can. Whatever needs torch
runs in a process of its own (`doctor_torch`), which may crash or hang without taking this one along.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from l1_ref.course import doctor_probes
from l1_ref.course.findings import BROKEN, GOOD, WARNING, Finding, last_line

Probe = Callable[[Path], Finding | Iterable[Finding]]
PROBES: tuple[tuple[str, Probe], ...] = (
    ("Python", doctor_probes.probe_python),
    ("packages", doctor_probes.probe_packages),
    ("torch", doctor_probes.probe_torch),
    ("JupyterLab", doctor_probes.probe_jupyterlab),
    ("Jupyter kernel", doctor_probes.probe_kernel),
    ("data files", doctor_probes.probe_data),
    ("workspace", doctor_probes.probe_workspace),
    ("disk", doctor_probes.probe_disk),
    ("memory", doctor_probes.probe_memory),
    ("browser", doctor_probes.probe_browser),
)
_NOT_NEEDED = ("disk", "memory", "browser")  # the course may work where these cannot be asked
_SIGNS = {GOOD: "✓", WARNING: "!", BROKEN: "✗"}
_ANEW = "make the environment anew, as the README says under Start"


def examine(folder: Path, probes: Iterable[tuple[str, Probe]] = PROBES) -> Iterator[Finding]:
    """Yield what each probe finds; one that fails itself is a finding too.

    Args:
        folder: Where the workspace is, or would be.
        probes: (what it looks at, the probe) of each.
    """
    for what, probe in probes:
        try:
            found = probe(folder)
            yield from [found] if isinstance(found, Finding) else found
        except Exception as error:
            state = WARNING if what in _NOT_NEEDED else BROKEN
            yield Finding(what, state, f"the probe failed: {type(error).__name__}: {last_line(error)}", _ANEW)


def report(folder: Path, as_json: bool = False) -> int:
    """Print what is found, each line as soon as it is known; or, at the end, all of it as JSON.

    Args:
        folder: Where the workspace is, or would be.
        as_json: Print one object: `works`, and `findings`, each with what, state, found and mend.

    Returns:
        1 where something is broken that the course needs, else 0.
    """
    findings = []
    for finding in examine(folder):
        findings.append(finding)
        if not as_json:
            print(f"{_SIGNS[finding.state]} {finding.what:<15} {finding.found}", flush=True)
            if finding.mend:
                print(f"  {'':<15} to mend it: {finding.mend}", flush=True)
    n_broken, n_warnings = (sum(each.state == state for each in findings) for state in (BROKEN, WARNING))
    if as_json:
        print(json.dumps({"works": not n_broken, "findings": [each._asdict() for each in findings]}, indent=1))
    elif n_broken:
        print(f"{n_broken} broken: mend this first, from the top")
    else:
        print("the course works here" + (f"; {n_warnings} to know about" if n_warnings else ""))
    return int(n_broken > 0)


def main(arguments: list[str] | None = None) -> int:
    """Run the self-test without `l1`, and so without torch; return the exit status."""
    sys.stdout.reconfigure(errors="replace")
    parser = argparse.ArgumentParser(prog="python -m l1_ref.course.doctor", description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("workspace"), help="your workspace")
    parser.add_argument("--json", action="store_true", dest="as_json", help="print JSON alone")
    chosen = parser.parse_args(arguments)
    return report(chosen.folder, chosen.as_json)


if __name__ == "__main__":
    sys.exit(main())
