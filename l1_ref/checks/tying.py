"""The check of the bug hunt of 05_model: tying the head to the token table."""

import copy
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from l1_ref.checks.compare import Failure
from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe, Property
from l1_ref.checks.initial import PAIR, ShownModel, tied
from l1_ref.checks.observe import OUTPUT, Observation, filled
from l1_ref.config import L1Config
from l1_ref.loss import cross_entropy
from l1_ref.transformer import L1Model

_STEP = "the gap between the two matrices after one step of training"


def tie_weights(model: nn.Module) -> None:
    """Make a model's head and its token table one Parameter: the table's.

    Args:
        model: Has `head.weight` and `embedding.token.weight`, of one shape; changed in place.

    Source: Press and Wolf 2017, "Using the Output Embedding to Improve Language Models", section 3.
    """
    model.head.weight = model.embedding.token.weight


@lru_cache(maxsize=4)
def _untied_model(seed: int, **settings: Any) -> L1Model:
    """Build an untied model with numbers of a moderate size; code gets a copy."""
    with torch.random.fork_rng(devices=[]):
        return filled(ShownModel(L1Config(dropout=0.0, tie_weights=False, **settings)), seed).train()


def _to_tie(**settings: Any) -> Callable[[torch.Generator], Inputs]:
    return lambda generator: {"model": _untied_model(generator.initial_seed(), **settings)}


def _observe_tie(candidate: Callable, inputs: Inputs, gradient: bool, seed: int) -> Observation:
    """Record what the function returns, what became of the two matrices, and how far one step drives them apart."""
    model = copy.deepcopy(inputs["model"])
    table = model.embedding.token.weight
    try:
        output = candidate(model)
        seen = {OUTPUT: "a model" if isinstance(output, nn.Module) else output}
        seen[PAIR] = tied(model)
        seen["the head's parameters"] = [name for name, _ in model.head.named_parameters()]
        seen["the token table"] = "the same Parameter" if model.embedding.token.weight is table else "another Parameter"
        seen["head.weight afterwards"] = model.head.weight.detach().clone()
        seen["embedding.token.weight afterwards"] = model.embedding.token.weight.detach().clone()
        seen["head.weight can be trained"] = model.head.weight.requires_grad
    except Exception as error:
        return {OUTPUT: Failure(error)}
    return seen | {_STEP: _gap_after_a_step(model)}


def _gap_after_a_step(model: nn.Module) -> Any:
    ids = torch.arange(4)[None] % model.embedding.token.weight.shape[0]
    try:
        cross_entropy(model(ids[:, :-1]), ids[:, 1:]).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.5 * parameter.grad
        return (model.head.weight - model.embedding.token.weight).detach().abs().max().item()
    except Exception as error:
        return Failure(error)


def _copying(model: nn.Module) -> None:
    model.head.weight.data = model.embedding.token.weight.data.clone()


def _wrapping(model: nn.Module) -> None:
    model.head.weight = nn.Parameter(model.embedding.token.weight)


def _other_way(model: nn.Module) -> None:
    model.embedding.token.weight = model.head.weight


def _other_copy(model: nn.Module) -> None:
    model.embedding.token.weight.data = model.head.weight.data.clone()


def _tied_to(make: Callable[[nn.Module], Tensor]) -> Callable:
    """Return a version that ties both to a new Parameter."""

    def tie(model: nn.Module) -> None:
        model.embedding.token.weight = model.head.weight = nn.Parameter(make(model).detach().clone())

    return tie


def _values_of(make: Callable[[nn.Module], Tensor]) -> Callable:
    """Return a version that ties to the token table, with other numbers in it."""

    def tie(model: nn.Module) -> None:
        model.embedding.token.weight.data = make(model).detach().clone()
        tie_weights(model)

    return tie


def _frozen(model: nn.Module) -> None:
    tie_weights(model)
    model.head.weight.requires_grad_(False)


def _replaced_head(model: nn.Module) -> None:
    model.head = model.embedding.token


def _misspelt(model: nn.Module) -> None:
    model.head.weights = model.embedding.token.weight


def _tied_and_returned(model: nn.Module) -> nn.Module:
    tie_weights(model)
    return model


def _tied_copy(model: nn.Module) -> nn.Module:
    return _tied_and_returned(copy.deepcopy(model))


def _mean(model: nn.Module) -> Tensor:
    return (model.head.weight + model.embedding.token.weight) / 2


TIE_WEIGHTS = Exercise(
    name="tie_weights",
    notebook="05_model",
    reference=tie_weights,
    observe=_observe_tie,
    probes=(
        Probe("one block", _to_tie(vocab_size=5, max_seq_length=4, n_layers=1, n_heads=1, n_embd=3), "V C", False),
        Probe("two blocks", _to_tie(vocab_size=7, max_seq_length=4, n_layers=2, n_heads=2, n_embd=4), "V C", False),
        Probe("a square table", _to_tie(vocab_size=4, max_seq_length=3, n_layers=1, n_heads=1, n_embd=4), "V C", False),
    ),
    mistakes=(
        Mistake(
            "the numbers are copied: there are still two Parameters",
            "a copy is equal once; the first step of training drives the two apart.",
            _copying,
        ),
        Mistake(
            "both use the same numbers, but as two Parameters",
            "an optimizer lists both and moves the numbers twice, each time with half of the gradient.",
            _wrapping,
        ),
        Mistake(
            "it is the other way round: the token table takes the head's Parameter",
            "the token table is to stay, and the head to take it: else the table's numbers are lost.",
            _other_way,
        ),
        Mistake(
            "the head's numbers are copied into the token table",
            "it is the wrong direction, and a copy: the two part at the first step.",
            _other_copy,
        ),
        Mistake(
            "the model is left as it was",
            "the model itself must change: assign to model.head.weight.",
            lambda model: None,
            (_tied_copy,),
        ),
        Mistake(
            "the token table's Parameter is given another name of the head",
            "the layer reads its attribute weight, and no other.",
            _misspelt,
        ),
        Mistake(
            "both get a new Parameter",
            "an optimizer that knows the token table would go on with the old one; let the head take the table's own.",
            _tied_to(lambda model: model.embedding.token.weight),
        ),
        Mistake(
            "the numbers of the token table are not kept",
            "tying shares the table as it is; drawing, averaging or clearing it loses what it has learned.",
            _values_of(_mean),
            (
                _values_of(lambda model: model.head.weight),
                _values_of(lambda model: torch.zeros_like(model.head.weight)),
                _tied_to(_mean),
            ),
        ),
        Mistake(
            "the shared Parameter is frozen",
            "it must go on learning: keep requires_grad.",
            _frozen,
        ),
        Mistake(
            "the head is replaced by the embedding",
            "an embedding takes ids, and the head takes vectors: share the Parameter, not the module.",
            _replaced_head,
        ),
        Mistake(
            "the model is returned",
            "what works in place returns nothing, so that nobody takes it for a copy.",
            _tied_and_returned,
        ),
    ),
    properties=(
        Property(
            "there is one Parameter less afterwards",
            lambda f, model: _n_after(f, model) == len(list(model.parameters())) - 1,
        ),
    ),
    hints=(
        "Look at the numbers before the step and after it. Equal numbers, and then not: how many matrices are there?",
        "In Python, a = b makes a second name for one thing. What does clone() do?",
        "One assignment is enough: to the head's attribute weight, without .data and without a copy.",
    ),
)


def _n_after(candidate: Callable, model: nn.Module) -> int:
    mine = copy.deepcopy(model)
    candidate(mine)
    return len(list(mine.parameters()))


EXERCISES = (TIE_WEIGHTS,)
