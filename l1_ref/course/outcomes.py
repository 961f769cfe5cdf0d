"""What came of a notebook's checks, as JSON and as the JUnit XML that CI systems read."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from l1_ref.checks import marks

UNREACHED = "unreached"
# What XML 1.0 cannot hold, not even escaped: most control characters, and half a surrogate pair.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Result:
    """What came of one exercise.

    Args:
        exercise: Its name.
        state: That of the verdict: "solved", "given", "wrong" or "unwritten"; "unreached" where the check gave none.
        mistakes: Names of the mistakes that explain the answer; empty where none does.
        text: The check's message, or why no check was reached.
        elapsed_s: How long the check took.
    """

    exercise: str
    state: str
    mistakes: tuple[str, ...]
    text: str
    elapsed_s: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the exercise is solved or given."""
        return self.state in marks.DONE

    @property
    def detail(self) -> str:
        """The mistakes' names, or else the message's first line without the name; empty where nothing is wrong."""
        if self.passed or self.state == "unwritten":
            return ""
        head = self.text.partition("\n")[0]
        return ", and ".join(self.mistakes) or re.sub(rf"^\S {re.escape(self.exercise)} · ", "", head)


@dataclass(frozen=True)
class Outcome:
    """What came of one notebook.

    Args:
        notebook: Its name, such as "03_attention".
        path: Its file.
        results: One an exercise.
        elapsed_s: How long it ran.
        stopped: Why it did not run to its end; empty where it did.
    """

    notebook: str
    path: Path
    results: tuple[Result, ...]
    elapsed_s: float
    stopped: str = ""


def all_passed(outcomes: Iterable[Outcome]) -> bool:
    """Say whether every exercise is solved or given, and every notebook ran to its end.

    Args:
        outcomes: Of the notebooks.
    """
    return all(not each.stopped and all(result.passed for result in each.results) for each in outcomes)


def counts(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """Count the exercises by state; the known states first, and always there.

    Args:
        outcomes: Of the notebooks.
    """
    found = dict.fromkeys((*marks.DONE, "wrong", "unwritten", UNREACHED), 0)
    for result in (result for each in outcomes for result in each.results):
        found[result.state] = found.get(result.state, 0) + 1
    return found


def as_json(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """Return what `l1 check --json` prints; keys may be added later, none is renamed or removed.

    `{"passed": bool, "counts": {state: number}, "notebooks": [{"notebook", "path", "elapsed_s", "stopped",
    "exercises": [{"exercise", "state", "mistakes", "text", "elapsed_s"}]}]}`, as `Outcome` and `Result` describe them.

    Args:
        outcomes: Of the notebooks.
    """
    outcomes = list(outcomes)
    notebooks = [
        {
            "notebook": each.notebook,
            "path": str(each.path),
            "elapsed_s": round(each.elapsed_s, 3),
            "stopped": each.stopped,
            "exercises": [
                {
                    "exercise": result.exercise,
                    "state": result.state,
                    "mistakes": list(result.mistakes),
                    "text": result.text,
                    "elapsed_s": round(result.elapsed_s, 3),
                }
                for result in each.results
            ],
        }
        for each in outcomes
    ]
    return {"passed": all_passed(outcomes), "counts": counts(outcomes), "notebooks": notebooks}


def as_junit(outcomes: Iterable[Outcome]) -> str:
    """Write JUnit XML: a suite a notebook, a case an exercise; what is wrong or not written fails, as `l1 check` does.

    A check that was not reached is an error of its case. A notebook that did not run to its end has a case for that.

    Args:
        outcomes: Of the notebooks.
    """
    root = ElementTree.Element("testsuites", name="l1 check")
    totals: dict[str, float] = {}
    for each in outcomes:
        suite = ElementTree.SubElement(root, "testsuite", name=_xml(each.notebook))
        for result in each.results:
            _case(suite, each.notebook, result.exercise, result.elapsed_s, *_problem(result))
        if each.stopped:
            _case(suite, each.notebook, "the notebook runs to its end", 0.0, "error", UNREACHED, each.stopped, "")
        sums = {"tests": len(suite)} | {f"{kind}s": len(suite.findall(f"*/{kind}")) for kind in ("failure", "error")}
        sums["time"] = each.elapsed_s
        for key, value in sums.items():
            suite.set(key, f"{value:.3f}" if key == "time" else str(value))
            totals[key] = totals.get(key, 0) + value
    for key, value in totals.items():
        root.set(key, f"{value:.3f}" if key == "time" else str(value))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _problem(result: Result) -> tuple[str, str, str, str]:
    if result.passed:
        return "", "", "", ""
    kind = "error" if result.state == UNREACHED else "failure"
    return kind, result.state, result.detail or "not written yet", result.text


def _case(
    suite: ElementTree.Element, notebook: str, name: str, elapsed_s: float, kind: str, type_: str, what: str, text: str
) -> None:
    case = ElementTree.SubElement(
        suite, "testcase", classname=_xml(f"l1.{notebook}"), name=_xml(name), time=f"{elapsed_s:.3f}"
    )
    if kind:
        ElementTree.SubElement(case, kind, type=_xml(type_), message=_xml(what)).text = _xml(text)


def _xml(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
