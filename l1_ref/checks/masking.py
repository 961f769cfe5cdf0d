"""The checks of 03_attention, first part: the mask."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from l1_ref import attention as ref
from l1_ref.checks.engine import Exercise, Mistake, Probe, Property


def _mask(
    T: int,
    S: int,
    *,
    shift: Callable[[int, int], int] = lambda T, S: S - T,
    triangle: Callable[[Tensor, int], Tensor] = torch.tril,
    size: Callable[[int, int], tuple[int, int]] = lambda T, S: (T, S),
    turn: Callable[[Tensor], Tensor] = lambda mask: mask,
    finish: Callable[[Tensor], Tensor] = lambda mask: mask,
) -> Tensor:
    """Make the mask; each keyword is one place where it can go wrong."""
    mask = torch.ones(size(T, S), dtype=torch.bool)
    return finish(turn(triangle(mask, shift(T, S))))


def _additive(mask: Tensor, low: float = -math.inf) -> Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, low)


def _only_new_keys(T: int, S: int) -> Tensor:
    return torch.cat([torch.zeros(T, S - T, dtype=torch.bool), torch.ones(T, T, dtype=torch.bool).tril()], dim=1)


def _sizes(T: int, S: int):
    return lambda generator: {"T": T, "S": S}


CAUSAL_MASK = Exercise(
    name="causal_mask",
    notebook="03_attention",
    reference=ref.causal_mask,
    probes=(
        Probe("three tokens, none before them", _sizes(3, 3), "T S", gradient=False, picture=True),
        Probe("two new tokens behind three earlier ones", _sizes(2, 5), "T S", gradient=False, picture=True),
        Probe("one new token behind three earlier ones", _sizes(1, 4), "T S", gradient=False, picture=True),
        Probe("four new tokens behind one earlier one", _sizes(4, 5), "T S", gradient=False, picture=True),
        Probe("one token alone", _sizes(1, 1), "T S", gradient=False),
        Probe("many tokens", _sizes(20, 33), "T S", gradient=False),
    ),
    mistakes=(
        Mistake(
            "the future is allowed instead of the past: it is the upper triangle",
            "a token that sees what comes next has nothing left to predict.",
            partial(_mask, triangle=torch.triu),
            (lambda T, S: torch.ones(T, S, dtype=torch.bool).triu(),),
        ),
        Mistake(
            "True and False have changed places: True marks what is forbidden",
            "here True means that a query may attend; some libraries mark the forbidden places instead.",
            partial(_mask, turn=torch.logical_not),
        ),
        Mistake(
            "the mask is one off: a position may not attend to itself",
            "the first token would have nothing to attend to, and every other would miss its own meaning.",
            partial(_mask, shift=lambda T, S: S - T - 1),
        ),
        Mistake(
            "the mask is one off: each position also sees the next one",
            "the next token is just what the model must predict: the loss falls, and nothing is learnt.",
            partial(_mask, shift=lambda T, S: S - T + 1),
        ),
        Mistake(
            "the queries are taken for the first T of the S positions, not the last",
            "new tokens stand behind all earlier ones, and must see them.",
            partial(_mask, shift=lambda T, S: 0),
        ),
        Mistake(
            "the triangle is shifted the wrong way: by T - S, not by S - T",
            "new tokens stand behind all earlier ones, so their triangle begins further to the right.",
            partial(_mask, shift=lambda T, S: T - S),
        ),
        Mistake(
            "the earlier S - T keys are hidden",
            "they are the past: every new token may attend to all of them.",
            _only_new_keys,
        ),
        Mistake(
            "the mask holds floats, 1.0 and 0.0, not True and False",
            "torch's own attention adds a float mask to the scores instead of hiding anything, and ~mask fails.",
            partial(_mask, finish=lambda mask: mask.float()),
        ),
        Mistake(
            "the mask holds integers, 1 and 0, not True and False",
            "of integers, ~mask gives -2 and -1, and as an index they pick positions 0 and 1.",
            partial(_mask, finish=lambda mask: mask.long()),
            tuple(partial(_mask, finish=lambda mask, dtype=d: mask.to(dtype)) for d in (torch.int32, torch.uint8)),
        ),
        Mistake(
            "it is an additive mask: 0 and a very low number instead of True and False",
            "that is what gets added to scores; this function only says yes or no.",
            partial(_mask, finish=_additive),
            (
                lambda T, S: _additive(_mask(T, S), -1e9),
                lambda T, S: _additive(_mask(T, S), torch.finfo(torch.float32).min),
            ),
        ),
        Mistake(
            "axes of length 1 stand in front: the shape must be (T, S)",
            "two axes broadcast over batch and heads by themselves.",
            partial(_mask, finish=lambda mask: mask[None, None]),
            (lambda T, S: _mask(T, S)[None],),
        ),
        Mistake(
            "rows and columns have changed places: the shape is (S, T)",
            "row i belongs to query i, and column j to key j.",
            partial(_mask, turn=lambda mask: mask.T),
        ),
        Mistake(
            "there is a row for every key: the shape is (S, S)",
            "only the T new tokens ask; the earlier ones have had their turn.",
            partial(_mask, size=lambda T, S: (S, S), shift=lambda T, S: 0),
        ),
        Mistake(
            "there is a column for new tokens only: the shape is (T, T)",
            "the new tokens attend to all S positions.",
            partial(_mask, size=lambda T, S: (T, T), shift=lambda T, S: 0),
        ),
        Mistake(
            "everything is allowed",
            "each token would see the one that it must predict.",
            partial(_mask, triangle=lambda mask, shift: mask),
        ),
        Mistake(
            "each position sees only itself",
            "attention is there to gather from the past as well.",
            partial(_mask, triangle=lambda mask, shift: mask.tril(shift).triu(shift)),
            (lambda T, S: torch.eye(T, S).bool(),),
        ),
    ),
    properties=(
        Property("the last query may attend to every key", lambda f, T, S: bool(f(T, S)[-1].all())),
        Property("every query may attend to the first key", lambda f, T, S: bool(f(T, S)[:, 0].all())),
        Property(
            "each query may attend to one key more than the query before it",
            lambda f, T, S: f(T, S).sum(1).tolist() == list(range(S - T + 1, S + 1)),
        ),
    ),
    hints=(
        "Draw T=3, S=3 on paper: which of the nine places is a token allowed to look at? Itself is one of them.",
        "The T queries are the last of the S positions: query i stands at position S - T + i, and may attend to every "
        "key up to there. torch.tril cuts a matrix along a diagonal that you choose.",
        "Plan: a (T, S) matrix of True; keep what lies on or below the diagonal number S - T; the dtype stays bool.",
    ),
)

EXERCISES = (CAUSAL_MASK,)
