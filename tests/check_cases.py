"""What the tests of every check share: the same verdict on twenty seeds, for wrong answers, right ones and stubs."""

from collections.abc import Callable, Iterable, Mapping

import pytest
import torch

from l1_ref import checks
from l1_ref.checks.engine import Exercise

SEEDS = range(20)


def cases(table: Mapping[str, Mapping[Callable, str] | Iterable[Callable]]) -> list:
    """Turn {exercise: candidates}, or {exercise: {candidate: words}}, into pytest's parameters, each with a name."""
    parameters = []
    for name, candidates in table.items():
        for i, candidate in enumerate(candidates):
            words = (candidates[candidate],) if isinstance(candidates, Mapping) else ()
            label = getattr(candidate, "__name__", type(candidate).__name__)
            parameters.append(pytest.param(checks.exercise(name), candidate, *words, id=f"{name}-{i}-{label}"))
    return parameters


def assert_named_first(exercise: Exercise, candidate: Callable, words: str, seeds: Iterable[int] = SEEDS) -> None:
    """A wrong answer is rejected, and the mistake that holds these words is named first, on every seed."""
    for seed in seeds:
        verdict = exercise.diagnose(candidate, seed)
        assert verdict.state == "wrong", f"seed {seed}: {verdict.text}"
        assert verdict.mistakes and words in verdict.mistakes[0], f"seed {seed}: {verdict.text}"


def assert_accepted(exercise: Exercise, candidate: Callable, seeds: Iterable[int] = SEEDS) -> None:
    """A right answer is solved on every seed."""
    for seed in seeds:
        verdict = exercise.diagnose(candidate, seed)
        assert verdict.state == "solved", f"seed {seed}: {verdict.text}"


def assert_rejected(exercise: Exercise, candidate: Callable, seeds: Iterable[int] = (0,)) -> None:
    """A stub, or any other wrong answer, is called wrong, whatever name it gets."""
    for seed in seeds:
        verdict = exercise.diagnose(candidate, seed)
        assert verdict.state == "wrong", f"seed {seed}: {verdict.text}"


def assert_all_told(exercise: Exercise, wrong: Mapping[Callable, str]) -> None:
    """Every mistake of the catalogue has a wrong answer among those of the tests."""
    untold = [m.name for m in exercise.mistakes if not any(words in m.name for words in wrong.values())]
    assert untold == []


def assert_same_on_two_threads(exercise: Exercise, right: Iterable[Callable], wrong: Mapping[Callable, str]) -> None:
    """The verdicts are those of one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for candidate in right:
            assert_accepted(exercise, candidate, [0])
        for candidate, words in wrong.items():
            assert_named_first(exercise, candidate, words, [0])
    finally:
        torch.set_num_threads(before)
