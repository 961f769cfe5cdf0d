"""Name the mistake: find the wrong version of the reference that behaves as the reader's code does."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

from l1_ref.checks.compare import Failure, holds_floats, largest_difference, same
from l1_ref.checks.observe import OUTPUT, Observation

if TYPE_CHECKING:
    from l1_ref.checks.engine import Exercise, Mistake

Place = tuple[int, str]  # the index of a probe, the name of something seen
_MISSING = object()


@dataclass(frozen=True)
class Diagnosis:
    """The mistakes that explain an answer.

    Args:
        mistakes: One, or two.
        gap: Largest difference left between the wrong version and the answer; None where they hold no floats.
        ordinary_only: Whether extreme inputs are left unexplained.
        side_by_side: Whether each thing seen is as one of two mistakes makes it; else it is as all of them make it.
    """

    mistakes: "tuple[Mistake, ...]"
    gap: float | None
    ordinary_only: bool = False
    side_by_side: bool = False


class Suspect:
    """A wrong version of the reference, run on a probe only when its answer is needed, and then kept.

    Args:
        exercise: Gives the probes.
        mistakes: What is wrong with it.
        version: The code.
        seed: Of the probes.
    """

    def __init__(self, exercise: "Exercise", mistakes: "tuple[Mistake, ...]", version: Any, seed: int):
        self.exercise, self.mistakes, self.version, self.seed = exercise, mistakes, version, seed
        self.tolerance = max((m.tolerance for m in mistakes if m.tolerance is not None), default=None)
        self._seen: dict[int, Observation] = {}

    def seen(self, index: int) -> Observation:
        """Return what is seen of it on one probe."""
        if index not in self._seen:
            self._seen[index] = self.exercise.observation(self.version, index, self.seed)
        return self._seen[index]

    def unlike(self, others: list[Observation], indexes: Iterable[int] | None = None) -> Iterator[Place]:
        """Yield the places where its answers are not the others', on all probes or on those named, in that order."""
        for index in range(len(others)) if indexes is None else indexes:
            yield from differing(self.exercise, index, self.seen(index), others[index], self.tolerance)

    def may_explain(self, got: list[Observation], index: int) -> bool:
        """Say by a quick run on one probe, without gradients, whether its answers can be the reader's."""
        quick = self.exercise.observation(self.version, index, self.seed, gradient=False)
        return not any(name in quick for _, name in differing(self.exercise, index, quick, got[index], self.tolerance))

    def explains(self, got: list[Observation], indexes: Iterable[int]) -> bool:
        """Say whether its answers are the reader's on these probes."""
        return next(self.unlike(got, indexes), None) is None

    def gap(self, got: list[Observation], indexes: Iterable[int]) -> float | None:
        """Return the largest difference between its answers and the reader's on these probes; None without floats."""
        pairs = [
            (seen[name], got[i][name]) for i in indexes for seen in [self.seen(i)] for name in seen if name in got[i]
        ]
        gaps = [largest_difference(a, b) for a, b in pairs if holds_floats(a)]
        return max(gaps, default=None)


def differing(
    exercise: "Exercise", index: int, a: Observation, b: Observation, tolerance: float | None = None
) -> Iterator[Place]:
    """Yield the place of each thing that two observations of one probe do not have in common.

    Args:
        exercise: Gives the tolerances.
        index: Of the probe.
        a: What was seen of one candidate.
        b: What was seen of the other.
        tolerance: At least this much is allowed.
    """
    allowed = max(tolerance or 0.0, exercise.probes[index].tolerance or exercise.tolerance)
    for name in a | b:
        if not same(a.get(name, _MISSING), b.get(name, _MISSING), allowed):
            yield index, name


def is_answer(seen: list[Observation], index: int, name: str) -> bool:
    """Say whether something was seen at a place, and no exception."""
    return name in seen[index] and not isinstance(seen[index][name], Failure)


def explain(
    exercise: "Exercise", places: list[Place], expected: list[Observation], got: list[Observation], seed: int
) -> Diagnosis | None:
    """Find the mistakes that make the reference behave as the reader's code does.

    One mistake alone is looked for first; then two together; then one on all but extreme inputs; then two that show
    side by side, each at its own places.

    Args:
        exercise: Gives the catalogue.
        places: Where the reader's code differs from the reference, at least one.
        expected: What was seen of the reference, a probe each.
        got: What was seen of the reader's code.
        seed: Of the probes.
    """
    if all(isinstance(seen.get(OUTPUT), Failure) for seen in got):
        return None  # code that never answers is told by its own error
    # The telling place comes first: an answer tells more than a failure, an ordinary input more than an extreme one.
    telling = min(places, key=lambda place: (not is_answer(got, *place), exercise.probes[place[0]].edge))
    everywhere = range(len(got))
    index, singles = telling[0], _singles(exercise, seed)
    for suspect in singles:
        if suspect.explains(got, [index, *everywhere]):
            return Diagnosis(suspect.mistakes, suspect.gap(got, everywhere))
    for suspect in _pairs(exercise, seed):
        if suspect.may_explain(got, index) and suspect.explains(got, everywhere):
            return Diagnosis(suspect.mistakes, suspect.gap(got, everywhere))
    ordinary = [i for i, probe in enumerate(exercise.probes) if not probe.edge]
    for suspect in singles if index in ordinary else ():
        if suspect.explains(got, [index, *ordinary]):
            return Diagnosis(suspect.mistakes, suspect.gap(got, ordinary), ordinary_only=True)
    return _side_by_side(expected, got, telling, [s for s in singles if s.tolerance is None])


@lru_cache(maxsize=64)
def _singles(exercise: "Exercise", seed: int) -> list[Suspect]:
    """List all wrong versions; what is seen of them is kept, so that the next wrong answer is judged at once."""
    return [Suspect(exercise, (m,), version, seed) for m in exercise.mistakes for version in (m.wrong, *m.versions)]


@lru_cache(maxsize=64)
def _pairs(exercise: "Exercise", seed: int) -> list[Suspect]:
    """List two mistakes in one version, where both are switches (`functools.partial`) of the same function or class."""
    switches = [m for m in exercise.mistakes if isinstance(m.wrong, partial)]
    return [
        Suspect(exercise, (a, b), partial(a.wrong, **b.wrong.keywords), seed)
        for a, b in combinations(switches, 2)
        if a.wrong.func is b.wrong.func and not a.wrong.keywords.keys() & b.wrong.keywords.keys()
    ]


def forget() -> None:
    """Forget what was seen of all wrong versions, so that the next check runs them again."""
    _singles.cache_clear()
    _pairs.cache_clear()


def _side_by_side(
    expected: list[Observation], got: list[Observation], telling: Place, suspects: list[Suspect]
) -> Diagnosis | None:
    """Find two mistakes such that each thing seen is as one of them makes it: the telling place as the first does."""
    for one in suspects:
        if telling in one.unlike(got, [telling[0]]):
            continue
        left = next(one.unlike(got), None)
        for other in suspects:
            if left is None or one.mistakes == other.mistakes or left in other.unlike(got, [left[0]]):
                continue
            if _fit_together(expected, got, one, other):
                both = sorted(one.mistakes + other.mistakes, key=one.exercise.mistakes.index)
                return Diagnosis(tuple(both), None, side_by_side=True)
    return None


def _fit_together(expected: list[Observation], got: list[Observation], one: Suspect, other: Suspect) -> bool:
    changes, others_changes = (set(suspect.unlike(expected)) for suspect in (one, other))
    unlike, others_unlike = (set(suspect.unlike(got)) for suspect in (one, other))
    # Where only one of the two changes something, it must be as that one makes it.
    alone = unlike & (changes - others_changes) or others_unlike & (others_changes - changes)
    return not (unlike & others_unlike or alone)
