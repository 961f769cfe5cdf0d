"""The page of the class report: one HTML file that needs nothing else, with tables and two pictures."""

import base64
import html
import math
import textwrap
from collections.abc import Iterable, Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure

from l1_ref.course.results import REFUSED, STATES, Assignment, Submission

MOST = 20  # mistakes in the picture; the table has all
_BINS = 12
_HEAD = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
th, td { padding: .25rem .75rem; border-bottom: 1px solid #8886; text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td { overflow-wrap: anywhere; }
img { background: white; max-width: 100%; height: auto; }
"""


def page(assignment: Assignment) -> str:
    """Write the report of one assignment as HTML.

    Args:
        assignment: With at least one submission.
    """
    title = f"{assignment.name}: class report"
    mistakes = assignment.mistakes()
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        *_overview(assignment),
        *_scores(assignment),
        *_exercises(assignment),
        *_mistakes(mistakes),
        *_refused(assignment),
        *_students(assignment),
    ]
    head = f"{_HEAD}<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _overview(assignment: Assignment) -> Iterable[str]:
    n = len(assignment.submissions)
    by_status: dict[str, list[str]] = {}
    for each in assignment.submissions:
        by_status.setdefault(each.status, []).append(each.student.id)
    yield f"<p>{_count(len(assignment.graded), 'submission')} with a score, of {_count(n, 'student')} in the class.</p>"
    yield _table(
        ("submission", "students", "who"),
        [(status, len(ids), _folded(ids)) for status, ids in sorted(by_status.items(), key=lambda x: -len(x[1]))],
    )
    waiting = [each.student.id for each in assignment.submissions if each.by_hand]
    if waiting:
        yield f"<p>A cell waits for points by hand in {_count(len(waiting), 'submission')}:</p>{_folded(waiting)}"
    if assignment.unreadable:
        yield f"<p>{_count(assignment.unreadable, 'line')} of the verdicts could not be read and do not count.</p>"


def _scores(assignment: Assignment) -> Iterable[str]:
    scores = sorted(each.score for each in assignment.graded)
    yield "<h2>Scores</h2>"
    if not scores:
        yield "<p>Nothing was graded.</p>"
        return
    half = len(scores) // 2
    median = scores[half] if len(scores) % 2 else (scores[half - 1] + scores[half]) / 2
    mean = sum(scores) / len(scores)
    most = f"{assignment.max_score:g}"
    told = f"Of {most} points: median {median:.3g}, mean {mean:.3g}, from {scores[0]:.3g} to {scores[-1]:.3g}."
    yield f"<p>{told}</p>"
    labels, counts = histogram(scores, assignment.max_score)
    bars = ", ".join(f"{label} points: {n}" for label, n in zip(labels, counts, strict=True) if n)
    yield _picture(score_figure(labels, counts, most), f"How many submissions have how many points. {bars}.")


def _exercises(assignment: Assignment) -> Iterable[str]:
    yield "<h2>Exercises</h2>"
    yield "<p>No verdict: the check did not finish (a crash, a time limit), or it was not there to be run.</p>"
    rows = []
    for name in assignment.exercises:
        ended = assignment.ended(name)
        rows.append((name, *(ended[state] for state in STATES)))
    yield _table(("exercise", *STATES), rows)


def _mistakes(mistakes: list[tuple[str, str, list[str]]]) -> Iterable[str]:
    yield "<h2>Mistakes</h2>"
    if not mistakes:
        yield "<p>No answer was wrong.</p>"
        return
    shown = [(exercise, name, len(ids)) for exercise, name, ids in mistakes[:MOST]]
    if len(mistakes) > MOST:
        yield f"<p>The picture has the {MOST} most frequent of {len(mistakes)}; the table has all.</p>"
    bars = "; ".join(f"{exercise}, {name}: {n}" for exercise, name, n in shown)
    yield _picture(mistake_figure(shown), f"How many students made which mistake. {bars}.")
    rows = [(exercise, name, len(ids), _folded(ids)) for exercise, name, ids in mistakes]
    yield _table(("exercise", "mistake", "students", "who"), rows)


def _refused(assignment: Assignment) -> Iterable[str]:
    rows = [
        (exercise, each.student.id, outcome.text)
        for exercise in assignment.exercises
        for each in assignment.submissions
        for outcome in [(each.outcomes or {}).get(exercise)]
        if outcome is not None and outcome.state == REFUSED
    ]
    if rows:
        yield "<h2>Refused</h2>"
        yield f"<details><summary>{_count(len(rows), 'answer')}</summary>"
        yield _table(("exercise", "student", "why"), rows)
        yield "</details>"


def _students(assignment: Assignment) -> Iterable[str]:
    yield "<h2>Students</h2>"
    yield f"<details><summary>{_count(len(assignment.submissions), 'student')}</summary>"
    rows = [
        (each.student.id, "" if each.score is None else f"{each.score:g}", each.status, _open(each))
        for each in assignment.submissions
    ]
    yield _table(("student", "score", "submission", "not solved"), rows)
    yield "</details>"


def _open(submission: Submission) -> str:
    outcomes = (submission.outcomes or {}).items()
    return submission.problem or ", ".join(
        f"{name} ({outcome.state})" for name, outcome in outcomes if outcome.state != STATES[0]
    )


class _Html(str):
    """A piece of HTML, not to be escaped again."""


def _folded(ids: Sequence[str]) -> _Html:
    listed = ", ".join(html.escape(each) for each in ids)
    return _Html(f"<details><summary>{_count(len(ids), 'student')}</summary>{listed}</details>")


def _count(n: int, thing: str) -> str:
    return f"{n} {thing}{'s' * (n != 1)}"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    def cell(tag: str, value: object, number: bool) -> str:
        text = value if isinstance(value, _Html) else html.escape(str(value))
        kind = ' class="number"' if number else ""
        return f"<{tag}{kind}>{text}</{tag}>"

    rows = list(rows)
    numbers = [isinstance(value, int) for value in rows[0]] if rows else [False] * len(head)
    lines = ["".join(cell("th", value, number) for value, number in zip(head, numbers, strict=True))]
    lines += ["".join(cell("td", value, isinstance(value, int)) for value in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _picture(figure: Figure, alt: str) -> str:
    from l1_ref.plots.style import png

    data, width = base64.b64encode(png(figure)).decode(), round(figure.get_figwidth() * 96)
    return f'<p><img alt="{html.escape(alt)}" width="{width}" src="data:image/png;base64,{data}"></p>'


def histogram(scores: Sequence[float], max_score: float) -> tuple[list[str], list[int]]:
    """Count scores in groups of whole points.

    Args:
        scores: At least one, none below 0.
        max_score: What can be had; extra credit may go beyond.

    Returns:
        The groups' labels, such as "3" or "4-5", and how many scores each has.
    """
    most = math.floor(max(max_score, *scores))
    width = math.ceil((most + 1) / _BINS)
    starts = range(0, most + 1, width)
    counts = [0] * len(starts)
    for score in scores:
        counts[int(score // width)] += 1
    ends = [min(start + width - 1, most) for start in starts]
    labels = [f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True)]
    return labels, counts


def score_figure(labels: Sequence[str], counts: Sequence[int], most: str) -> Figure:
    """Draw how many submissions have how many points.

    Args:
        labels: Of the groups of points.
        counts: Submissions in each.
        most: The points that can be had.
    """
    from l1_ref.plots.style import BLUE, STYLE

    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 2.6), layout="constrained")
        axes = figure.subplots()
        bars = axes.bar(range(len(labels)), counts, color=BLUE)
        axes.bar_label(bars, labels=[str(n) if n else "" for n in counts], padding=2, fontsize=8)
        axes.set_xticks(range(len(labels)), labels)
        axes.set(xlabel=f"points, of {most}", ylabel="submissions", ylim=(0, 1.15 * max(counts)))
        axes.yaxis.get_major_locator().set_params(integer=True)
    return figure


def mistake_figure(mistakes: Sequence[tuple[str, str, int]]) -> Figure:
    """Draw how many students made which mistake, the most frequent on top.

    Args:
        mistakes: (exercise, mistake, students) of each; at least one.
    """
    from l1_ref.plots.style import STYLE, VERMILION

    # A dollar sign would begin a formula.
    labels = [textwrap.fill(f"{exercise}: {name}", 52).replace("$", r"\$") for exercise, name, _ in mistakes]
    counts = [n for _, _, n in mistakes]
    lines = [label.count("\n") + 1 for label in labels]
    # Each bar has the room that its label needs.
    places = [sum(lines[:i]) + lines[i] / 2 + 0.6 * i for i in range(len(lines))]
    height = 0.19 * (sum(lines) + 0.6 * len(lines)) + 0.7
    with rc_context(STYLE):
        figure = Figure(figsize=(8.4, height), layout="constrained")
        axes = figure.subplots()
        bars = axes.barh(places, counts, height=0.9, color=VERMILION)
        axes.bar_label(bars, padding=3, fontsize=8)
        axes.set_yticks(places, labels)
        axes.set(xlabel="students", xlim=(0, 1.1 * max(counts)), ylim=(places[-1] + lines[-1] / 2 + 0.4, -0.4))
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure
