"""Run the reader's code beside the reference, and where they differ, name the mistake.

An exercise declares probes (inputs), properties (rules), a catalogue of mistakes (wrong versions of the reference) and
hints. Every run ends in an observation: a flat dict of all that can be seen from outside, such as the output, the
gradients, and whether an input was changed. A mistake whose observations equal the reader's is the diagnosis.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any

import torch

from l1_ref.checks import marks, messages
from l1_ref.checks.compare import Failure, largest_difference, same
from l1_ref.checks.observe import Inputs, Observation, apart, copies, observe_call

Place = tuple[int, str]  # the index of a probe, the name of something seen
_MISSING = object()


@dataclass(frozen=True)
class Probe:
    """One set of inputs to try the code on.

    Args:
        name: What is special about them, in a few words.
        build: Makes the inputs, by name and in the order of the call, from a seeded generator.
        axes: Names of the output's axes, such as "B T V".
        gradient: Whether gradients are compared too.
        edge: Whether these are extreme inputs; a mistake is first told by its answers to ordinary ones.
        tolerance: Largest absolute difference allowed here; the exercise's own where None.
    """

    name: str
    build: Callable[[torch.Generator], Inputs]
    axes: str = ""
    gradient: bool = True
    edge: bool = False
    tolerance: float | None = None


@dataclass(frozen=True)
class Property:
    """A rule that every right answer keeps.

    Args:
        name: The rule, as a sentence.
        holds: Takes the candidate and one probe's inputs by name.
    """

    name: str
    holds: Callable[..., bool]


@dataclass(frozen=True)
class Mistake:
    """A wrong version of the reference that learners really write.

    Args:
        name: What is wrong, in a few words.
        why: Why it matters, in one sentence.
        wrong: The reference with that one change.
        versions: Other ways to make the same mistake, where they behave differently.
        tolerance: How closely outputs must agree to be this mistake; the exercise's own where None.
    """

    name: str
    why: str
    wrong: Callable
    versions: tuple[Callable, ...] = ()
    tolerance: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What a check found.

    Args:
        state: "solved", "given" (the reference handed in), "unwritten" or "wrong".
        text: The message for the reader.
        mistakes: Names of the mistakes that explain the answer; empty where none does.
    """

    state: str
    text: str
    mistakes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the reader may go on."""
        return self.state in ("solved", "given")


@dataclass(frozen=True, eq=False)
class Exercise:
    """One blank of a notebook, and all that is needed to judge what is written there.

    Args:
        name: Its name: the function, the check and the notebook cell share it.
        notebook: The notebook it belongs to, such as "00_start_here".
        reference: A right version.
        probes: Inputs, the smallest first.
        mistakes: The catalogue; where two look alike, the first is named.
        properties: Rules, in the order in which they are to be told.
        hints: From a nudge to a plan.
        observe: Runs a candidate on one probe's inputs; `observe_call` for functions.
        tolerance: Largest absolute difference from the reference; relative, ten times that.
    """

    name: str
    notebook: str
    reference: Callable
    probes: tuple[Probe, ...]
    mistakes: tuple[Mistake, ...]
    properties: tuple[Property, ...]
    hints: tuple[str, str, str]
    observe: Callable[[Callable, Inputs, bool, int], Observation] = observe_call
    tolerance: float = 1e-5

    def __call__(self, candidate: Any) -> None:
        """Check what the reader wrote: print one line where it is right, raise `CheckFailed` where it is not.

        Args:
            candidate: The reader's function or class.

        Raises:
            CheckFailed: With the diagnosis.
        """
        __tracebackhide__ = True
        verdict = self.diagnose(candidate)
        marks.record(self.name, verdict.state)
        if not verdict.passed:
            raise messages.failure(self.name, verdict.text)
        print(verdict.text)

    check = __call__

    def diagnose(self, candidate: Any, seed: int = 0) -> Verdict:
        """Judge what the reader wrote, without printing or raising.

        Args:
            candidate: The reader's function or class.
            seed: Of the probes' random numbers.
        """
        if candidate is self.reference:
            return Verdict("given", messages.given(self.name))
        if not callable(candidate):
            return Verdict("wrong", messages.not_callable(self.name, candidate))
        with apart():
            return self._judge(candidate, seed)

    def _judge(self, candidate: Callable, seed: int) -> Verdict:
        expected = self.observations(self.reference, seed)
        got = self.observations(candidate, seed)
        if any(messages.is_unwritten(value) for seen in got for value in seen.values()):
            return Verdict("unwritten", messages.unwritten(self.name))
        case = next(self._differences(expected, got), None)
        broken = self._broken_rule(candidate, seed, None if case is None else case[0])
        if case is None and broken is None:
            return Verdict("solved", messages.solved(self))
        if case is not None and self._is_noisy(candidate, seed, case[0]):
            return Verdict("wrong", messages.noisy(self, self._inputs(seed)[case[0]]))
        found = self._explain(expected, got, seed) if case else None
        if found is None:
            return Verdict("wrong", messages.unexplained(self, self._inputs(seed), expected, got, case, broken))
        mistakes, gap, ordinary_only = found
        # The picture of a mistake is an answer, where there is one, not an exception.
        shown = next((place for place in self._differences(expected, got) if _is_value(got, *place)), case)
        return Verdict(
            "wrong",
            messages.explained(self, self._inputs(seed), expected, got, shown, mistakes, gap, ordinary_only),
            tuple(mistake.name for mistake in mistakes),
        )

    def observations(self, candidate: Callable, seed: int = 0) -> list[Observation]:
        """Run a candidate on every probe.

        Args:
            candidate: The function or class.
            seed: Of the probes' random numbers.
        """
        pairs = zip(self.probes, self._inputs(seed), strict=True)
        return [self.observe(candidate, inputs, probe.gradient, seed) for probe, inputs in pairs]

    def _inputs(self, seed: int) -> list[Inputs]:
        return [p.build(torch.Generator().manual_seed(1000 * seed + i)) for i, p in enumerate(self.probes)]

    def _differences(
        self, a: list[Observation], b: list[Observation], tolerance: float | None = None
    ) -> Iterator[Place]:
        """Yield the index of the probe and the name of the value for all that differs."""
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            allowed = max(tolerance or 0.0, self.probes[index].tolerance or self.tolerance)
            for name in x | y:
                if not same(x.get(name, _MISSING), y.get(name, _MISSING), allowed):
                    yield index, name

    def _is_noisy(self, candidate: Callable, seed: int, index: int) -> bool:
        """Say whether two calls on the same input differ, as the reference's do not."""
        inputs = self._inputs(seed)[index]

        def differs(code: Callable) -> bool:
            one, two = (self.observe(code, inputs, False, s).get("output") for s in (seed, seed + 1))
            return isinstance(one, torch.Tensor) and not same(one, two, self.tolerance)

        return differs(candidate) and not differs(self.reference)

    def _broken_rule(self, candidate: Callable, seed: int, index: int | None) -> tuple[str, int] | None:
        """Return the first rule that breaks and its probe: the one at `index`, or any where that is None."""
        for i, inputs in enumerate(self._inputs(seed)):
            for rule in self.properties if index in (None, i) else ():
                try:
                    torch.default_generator.manual_seed(seed)
                    if not rule.holds(candidate, **copies(inputs)):
                        return rule.name, i
                except Exception:
                    return rule.name, i
        return None

    def _explain(self, expected: list[Observation], got: list[Observation], seed: int):
        """Find the mistakes that make the reference behave as the reader's code does.

        Returns:
            The mistakes, the largest difference left, and whether only ordinary probes are explained; or None.
        """
        suspects = _suspects(self, seed)
        for s in suspects:
            if not any(self._differences(s.seen, got, s.mistake.tolerance)):
                return (s.mistake,), _gap(s.seen, got), False
        unlike = [set(self._differences(s.seen, got, s.mistake.tolerance)) for s in suspects]
        ordinary = [i for i, probe in enumerate(self.probes) if not probe.edge]
        if any(i in ordinary for i, _ in self._differences(expected, got)):
            for s, places in zip(suspects, unlike, strict=True):
                if not any(i in ordinary for i, _ in places):
                    return (s.mistake,), _gap([s.seen[i] for i in ordinary], [got[i] for i in ordinary]), True
        exact = [(s, places) for s, places in zip(suspects, unlike, strict=True) if s.mistake.tolerance is None]
        for (a, unlike_a), (b, unlike_b) in combinations(exact, 2):
            # Each thing seen is as one of the two makes it; where only one changes it, as that one does.
            alone = unlike_a & (a.changes - b.changes) or unlike_b & (b.changes - a.changes)
            if a.mistake is not b.mistake and not (unlike_a & unlike_b or alone):
                return (a.mistake, b.mistake), None, False
        return None


@dataclass(frozen=True)
class _Suspect:
    """A wrong version: what it does, and where that is unlike the reference."""

    mistake: Mistake
    seen: list[Observation]
    changes: set[Place]


@lru_cache(maxsize=64)
def _suspects(exercise: Exercise, seed: int) -> list[_Suspect]:
    """Run all wrong versions; they are kept, so that the next wrong answer is judged at once."""
    expected, found = exercise.observations(exercise.reference, seed), []
    for mistake in exercise.mistakes:
        for version in (mistake.wrong, *mistake.versions):
            seen = exercise.observations(version, seed)
            found.append(_Suspect(mistake, seen, set(exercise._differences(expected, seen))))
    return found


def _is_value(seen: list[Observation], index: int, name: str) -> bool:
    return name in seen[index] and not isinstance(seen[index][name], Failure)


def _gap(a: list[Observation], b: list[Observation]) -> float:
    return max(largest_difference(x[name], y[name]) for x, y in zip(a, b, strict=True) for name in x if name in y)
