"""Run code on inputs and record all that can be seen from outside, as a flat dict: an observation."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from l1_ref.checks.compare import Failure, same

Inputs = dict[str, Any]
Observation = dict[str, Any]


@contextmanager
def apart() -> Iterator[None]:
    """Keep what runs here apart from the reader's session: its random numbers, gradient mode and threads."""
    n_threads = torch.get_num_threads()
    # The inputs are tiny: more threads would only wait for each other.
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
            # The check itself says that no gradient gets through.
            warnings.filterwarnings("ignore", message="Converting a tensor with requires_grad=True")
            yield
    finally:
        torch.set_num_threads(n_threads)


def observe_call(candidate: Callable, inputs: Inputs, gradient: bool, seed: int) -> Observation:
    """Call a function and record all that can be seen from outside.

    Args:
        candidate: The function.
        inputs: Its arguments, in order; it gets copies.
        gradient: Whether to record the gradients of a fixed weighted sum of the output.
        seed: Fixes torch's random numbers during the call, and the weights of that sum.
    """
    given = copies(inputs)
    try:
        torch.default_generator.manual_seed(seed)
        output = candidate(*given.values())
    except Exception as error:
        return {"output": Failure(error)}
    seen, unchanged = {"output": _detached(output)}, True
    for name, value in inputs.items():
        if isinstance(value, Tensor | list | dict | set):
            kept = same(value, given[name], 0.0)
            seen[f"the input {name}"] = "as it was" if kept else "changed in place"
            unchanged = unchanged and kept
    # Behind a NaN, gradients are NaN in places that depend on style: they tell nothing more.
    if gradient and unchanged and not (_is_float(output) and output.isnan().any()):
        seen |= _gradients(candidate, inputs, seed)
    return seen


def copies(inputs: Inputs) -> Inputs:
    """Return inputs that code may write into without harm to the originals."""
    return {name: value.clone() if isinstance(value, Tensor) else _copied(value) for name, value in inputs.items()}


def _copied(value: Any) -> Any:
    return type(value)(value) if isinstance(value, list | dict | set) else value


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return type(value)(map(_detached, value)) if type(value) in (list, tuple) else value


def _gradients(candidate: Callable, inputs: Inputs, seed: int) -> Observation:
    leaves = {k: v.clone().requires_grad_() for k, v in inputs.items() if _is_float(v)}
    if not leaves:
        return {}
    try:
        torch.default_generator.manual_seed(seed)
        # Clones, so that code which writes into its input meets an ordinary tensor, not a leaf.
        output = candidate(*({**copies(inputs), **{k: v.clone() for k, v in leaves.items()}}.values()))
        if not (_is_float(output) and output.requires_grad):
            return {f"the gradient of {name}": None for name in leaves}
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        gradients = torch.autograd.grad((output * weights.to(output)).sum(), list(leaves.values()), allow_unused=True)
    except Exception as error:
        return {f"the gradient of {name}": Failure(error) for name in leaves}
    return {f"the gradient of {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
