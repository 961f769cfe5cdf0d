"""Run the reader's code beside the reference, and where they differ, name the mistake.

An exercise declares probes (inputs), properties (rules), a catalogue of mistakes (wrong versions of the reference) and
hints. Every run ends in an observation: a flat dict of all that can be seen from outside, such as the output, the
gradients, and whether an input was changed. A mistake whose observations equal the reader's is the diagnosis.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from l1_ref.checks import integrity, marks, messages, pictures
from l1_ref.checks.compare import Failure
from l1_ref.checks.diagnosis import differing, explain, is_answer
from l1_ref.checks.observe import (
    Inputs,
    Observation,
    apart,
    copies,
    filled,
    limited,
    observe_call,
    observe_module,
)

Observer = Callable[[Callable, Inputs, bool, int], Observation]


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
        observe: How a candidate is run on these inputs; the exercise's own way where None.
        picture: Whether a wrong output is drawn beside the right one.

    Example:
        >>> probe = checks.Probe("a square", lambda generator: {"x": torch.randn(3, 3, generator=generator)}, "B C")
        >>> probe.build(torch.Generator().manual_seed(0))["x"].shape
        torch.Size([3, 3])
    """

    name: str
    build: Callable[[torch.Generator], Inputs]
    axes: str = ""
    gradient: bool = True
    edge: bool = False
    tolerance: float | None = None
    observe: Observer | None = None
    picture: bool = False


@dataclass(frozen=True)
class Property:
    """A rule that every right answer keeps.

    Args:
        name: The rule, as a sentence.
        holds: Takes the candidate and one probe's inputs by name. Of an exercise with `init` it takes the module,
            built, filled with fixed numbers and in eval mode, and the inputs of the call.

    Example:
        >>> rule = checks.Property("nothing is below 0", lambda f, x: bool((f(x) >= 0).all()))
        >>> rule.holds(torch.relu, torch.tensor([-1.0, 2.0]))
        True
    """

    name: str
    holds: Callable[..., bool]


@dataclass(frozen=True)
class Mistake:
    """A wrong version of the reference that learners really write.

    Args:
        name: What is wrong, in a few words.
        why: Why it matters, in one sentence.
        wrong: The reference with that one change. Where several mistakes are switches of one function or class,
            each a `functools.partial` of it, two of them together are recognised too.
        versions: Other ways to make the same mistake, where they behave differently.
        tolerance: How closely outputs must agree to be this mistake; the exercise's own where None.

    Example:
        >>> mistake = checks.Mistake("squared", "twice was asked for.", lambda x: x**2)
        >>> mistake.wrong(torch.tensor(3.0)).item()
        9.0
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
        state: "solved", "given" (the reference handed in), "unwritten" or "wrong"; "refused" where a grader's guard
            found that the answer is not the student's own.
        text: The message for the reader.
        mistakes: Names of the mistakes that explain the answer; empty where none does.
        picture: HTML that shows the answer beside the right one; empty where a picture says nothing.
    """

    state: str
    text: str
    mistakes: tuple[str, ...] = ()
    picture: str = ""

    @property
    def passed(self) -> bool:
        """Whether the reader may go on."""
        return self.state in marks.DONE


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
        init: Names of the inputs that a module is built with; empty for functions.
        observe: Runs a candidate on one probe's inputs; where None, `observe_module` for an exercise with `init`,
            and `observe_call` for any other.
        tolerance: Largest absolute difference from the reference; relative, ten times that.

    Example:
        >>> probe = checks.Probe("one row", lambda generator: {"x": torch.randn(3, generator=generator)}, "C")
        >>> hints = "What is x + x?", "A number times x.", "Return 2 * x."
        >>> twice = checks.Exercise("twice", "my_class", lambda x: 2 * x, (probe,), (), (), hints)
        >>> twice.diagnose(lambda x: x + x).state
        'solved'
    """

    name: str
    notebook: str
    reference: Callable
    probes: tuple[Probe, ...]
    mistakes: tuple[Mistake, ...]
    properties: tuple[Property, ...]
    hints: tuple[str, str, str]
    init: tuple[str, ...] = ()
    observe: Observer | None = None
    tolerance: float = 1e-5

    def __call__(self, candidate: Any) -> None:
        """Check what the reader wrote: print one line where it is right, raise `CheckFailed` where it is not.

        Args:
            candidate: The reader's function or class.

        Raises:
            CheckFailed: With the diagnosis.
        """
        __tracebackhide__ = True
        verdict = self._guarded(candidate) if integrity.is_graded() else self.diagnose(candidate)
        marks.record(self.name, verdict.state)
        told = {"state": verdict.state, "mistakes": verdict.mistakes, "text": verdict.text}
        integrity.tell(exercise=self.name, notebook=self.notebook, **told)
        if not verdict.passed or (verdict.state == "given" and integrity.is_graded()):
            raise messages.failure(verdict.text, verdict.picture)
        print(verdict.text)

    check = __call__

    def _guarded(self, candidate: Any) -> Verdict:
        verdict, reason = integrity.judge(self, candidate)
        if self.name in integrity.GIVEN and self._is_reference(candidate):
            return Verdict("given", f"{messages.given(self.name)}\n  a given answer earns no points")
        return Verdict("refused", integrity.refusal(self.name, reason)) if reason else verdict

    def diagnose(self, candidate: Any, seed: int = 0) -> Verdict:
        """Judge what the reader wrote, without printing or raising.

        Args:
            candidate: The reader's function or class.
            seed: Of the probes' random numbers.
        """
        if self._is_reference(candidate):
            return Verdict("given", messages.given(self.name))
        if not callable(candidate) or (self.init and isinstance(candidate, nn.Module)):
            return Verdict("wrong", messages.not_the_code(self, candidate))
        printed = io.StringIO()
        with apart(printed):
            return self._judge(candidate, seed, printed)

    def _is_reference(self, candidate: Any) -> bool:
        """Say whether the reference itself was handed in, be it behind an empty partial or as a bare subclass."""
        while isinstance(candidate, partial) and not candidate.args and not candidate.keywords:
            candidate = candidate.func
        inherits = isinstance(candidate, type) and self.reference in candidate.__mro__
        return candidate is self.reference or (inherits and not any(map(callable, vars(candidate).values())))

    def _judge(self, candidate: Callable, seed: int, printed: io.StringIO) -> Verdict:
        expected, got = self.observations(self.reference, seed), self.observations(candidate, seed)
        if any(messages.is_unwritten(value) for seen in got for value in seen.values()):
            return Verdict("unwritten", messages.unwritten(self.name))
        places = [place for i in range(len(got)) for place in differing(self, i, expected[i], got[i])]
        # Where the code failed, what else is missing only follows from that.
        failed = {i for i, seen in enumerate(got) if any(isinstance(value, Failure) for value in seen.values())}
        places = [(i, name) for i, name in places if i not in failed or name in got[i]]
        story = messages.Story(self, self._inputs(seed), expected, got, printed.getvalue())
        if not places:
            broken = self._broken_rule(candidate, seed)
            return Verdict("wrong", messages.unexplained(story, None, broken)) if broken else self._solved()
        found = explain(self, places, expected, got, seed)
        answers = [place for place in places if is_answer(got, *place)]
        failures = [(i, name) for i, name in places if isinstance(got[i].get(name), Failure)]
        if found is None:
            # An exception comes first: what else differs on that input may only follow from it.
            case = next((p for p in failures if p[0] == places[0][0]), places[0])
            broken = self._broken_rule(candidate, seed, case[0]) if case in answers else None
            return Verdict("wrong", messages.unexplained(story, case, broken), (), pictures.of(story, case))
        # What is shown of a mistake is an answer, where there is one, not an exception.
        case = (answers or failures or places)[0]
        names = tuple(mistake.name for mistake in found.mistakes)
        return Verdict("wrong", messages.explained(story, case, found), names, pictures.of(story, case))

    def _solved(self) -> Verdict:
        return Verdict("solved", messages.solved(self))

    def observation(self, candidate: Callable, index: int, seed: int = 0, gradient: bool = True) -> Observation:
        """Run a candidate on one probe.

        Args:
            candidate: The function or class.
            index: Of the probe.
            seed: Of the probe's random numbers.
            gradient: Whether gradients are looked at, where the probe asks for them.
        """
        probe, inputs = self.probes[index], self._input(index, seed)
        usual = partial(observe_module, init=self.init) if self.init else observe_call
        with limited(), integrity.watching(self, candidate) as look:
            return look((probe.observe or self.observe or usual)(candidate, inputs, probe.gradient and gradient, seed))

    def observations(self, candidate: Callable, seed: int = 0) -> list[Observation]:
        """Run a candidate on every probe; after an endless loop the others are not waited for.

        Args:
            candidate: The function or class.
            seed: Of the probes' random numbers.
        """
        found: list[Observation] = []
        for index in range(len(self.probes)):
            stuck = found and any(
                isinstance(v, Failure) and isinstance(v.error, TimeoutError) for v in found[-1].values()
            )
            found.append(found[-1] if stuck else self.observation(candidate, index, seed))
        return found

    def _inputs(self, seed: int) -> list[Inputs]:
        return [self._input(index, seed) for index in range(len(self.probes))]

    def _input(self, index: int, seed: int) -> Inputs:
        return self.probes[index].build(torch.Generator().manual_seed(1000 * seed + index))

    def _broken_rule(self, candidate: Callable, seed: int, index: int | None = None) -> tuple[str, int] | None:
        """Return the first rule that breaks and its probe: the one at `index`, or any where that is None."""
        for i, inputs in enumerate(self._inputs(seed)):
            for rule in self.properties if index in (None, i) else ():
                try:
                    torch.default_generator.manual_seed(seed)
                    with limited(), integrity.watching(self, candidate):
                        if not self._holds(rule, candidate, copies(inputs), seed):
                            return rule.name, i
                except Exception:
                    return rule.name, i
        return None

    def _holds(self, rule: Property, candidate: Callable, inputs: Inputs, seed: int) -> bool:
        if self.init:
            candidate = filled(candidate(*(inputs.pop(name) for name in self.init)), seed)
        return rule.holds(candidate, **inputs)
