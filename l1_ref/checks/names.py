"""Observe a module by the names of its parameters: where they are wrong, they alone are told."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from l1_ref.checks.engine import Mistake
from l1_ref.checks.observe import OUTPUT, PARAMETERS, Inputs, Observation, observe_module

NAMES = "the names of the parameters"


class Names:
    """Names of parameters: all that are right count as one behaviour, and all that are wrong as another.

    Args:
        names: As the reader chose them.
        right: Whether they are the reference's.
    """

    def __init__(self, names: list[str], right: bool):
        self.names, self.right = names, right

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Names) and other.right == self.right

    def __hash__(self) -> int:
        return hash(self.right)

    def __repr__(self) -> str:
        return ", ".join(self.names)


def observe_by_name(
    candidate: Callable, inputs: Inputs, gradient: bool, seed: int, init: tuple[str, ...], reference: Callable
) -> Observation:
    """Observe a module; where its parameters are not the reference's, those alone.

    What a module with other parameters computes depends on numbers that only its author knows, so it tells nothing.

    Args:
        candidate: The class.
        inputs: Arguments of the class, then those of the call.
        gradient: Whether to record gradients.
        seed: Fixes the random numbers.
        init: Names of the inputs that the class is built with.
        reference: The right class.
    """
    seen = observe_module(candidate, inputs, gradient, seed, init)
    if PARAMETERS not in seen:
        return seen
    module = reference(*(inputs[name] for name in init))
    wanted = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    found = seen[PARAMETERS]
    if found != wanted and sorted(found.values()) == sorted(wanted.values()) and found.keys() != wanted.keys():
        return {NAMES: Names(list(found), False)}
    right_names = {NAMES: Names(list(wanted), True)}
    return right_names | ({PARAMETERS: found} if found != wanted else seen)


def observe_table(
    candidate: Callable, inputs: Inputs, gradient: bool, seed: int, init: tuple[str, ...], reference: Callable
) -> Observation:
    """Observe a module with one table as `observe_by_name` does, and whether its rows begin unlike each other.

    Args:
        candidate: The class.
        inputs: Arguments of the class, then those of the call.
        gradient: Whether to record gradients.
        seed: Fixes the random numbers.
        init: Names of the inputs that the class is built with.
        reference: The right class.
    """
    seen = observe_by_name(candidate, inputs, gradient, seed, init, reference)
    if isinstance(seen.get(OUTPUT), Tensor):
        weight = candidate(*(inputs[name] for name in init)).weight.detach()
        seen["the rows of a fresh table"] = "all alike" if bool((weight == weight[:1]).all()) else "unlike each other"
    return seen


# A table under a wrong name, or in a wrong form.


class _Bare(nn.Module):
    """A module without any parameter."""

    def __init__(self, *sizes: int):
        super().__init__()

    def forward(self, *inputs) -> Tensor:
        return torch.zeros(())


class _Table(nn.Module):
    """A table of the given size, under a name of its own, or lying on its side."""

    def __init__(self, rows: int, columns: int, *, name: str = "weight", on_its_side: bool = False):
        super().__init__()
        shape = (columns, rows) if on_its_side else (rows, columns)
        self.register_parameter(name, nn.Parameter(torch.zeros(shape)))

    def forward(self, *inputs) -> Tensor:
        return torch.zeros(())


NO_PARAMETER = Mistake(
    "the table is not an nn.Parameter of the module",
    "the optimiser asks a module for its parameters; a table that is not among them is never trained, nor saved.",
    _Bare,
)
OTHER_NAME = Mistake(
    "the parameter is not called weight",
    "saved weights are found again by their names, and the trained model calls this one weight.",
    partial(_Table, name="table"),
)
ON_ITS_SIDE = Mistake(
    "the table lies on its side: one column for each vector, not one row",
    "a row lies in one piece in memory, and the trained weights are stored in rows.",
    partial(_Table, on_its_side=True),
)
