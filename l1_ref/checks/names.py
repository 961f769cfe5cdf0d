"""Observe a module by the names of its parameters: where they are wrong, they alone are told."""

from collections.abc import Callable

from l1_ref.checks.observe import PARAMETERS, Inputs, Observation, observe_module

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
