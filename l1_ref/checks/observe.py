"""Run code on inputs and record all that can be seen from outside, as a flat dict: an observation.

There is one `observe_…` for each kind of code: plain functions, modules, functions that work in place, functions that
draw from a generator, and training steps. Each takes (candidate, inputs, gradient, seed); what else it needs is bound
with `functools.partial` where an exercise is declared.
"""

import contextlib
import copy
import io
import signal
import threading
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from l1_ref.checks.compare import Failure, Rough, same

Inputs = dict[str, Any]
Observation = dict[str, Any]

OUTPUT, REPEATED, PARAMETERS, SHARED = "output", "two calls on the same input", "the parameters", "shared parameters"
GRADIENT = "the gradient of "
LIMIT_S = 10.0


@contextlib.contextmanager
def apart(printed: io.StringIO | None = None) -> Iterator[None]:
    """Keep what runs here apart from the reader's session: random numbers, gradient mode, threads and what it prints.

    Args:
        printed: Takes what the code prints.
    """
    n_threads = torch.get_num_threads()
    # The inputs are tiny: more threads would only wait for each other.
    torch.set_num_threads(1)
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.enable_grad(),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(printed or io.StringIO()),
        ):
            # The check itself says that no gradient gets through.
            warnings.filterwarnings("ignore", message="Converting a tensor with requires_grad=True")
            yield
    finally:
        torch.set_num_threads(n_threads)


@contextlib.contextmanager
def limited(seconds: float = LIMIT_S) -> Iterator[None]:
    """End an endless loop: raise TimeoutError in the code that runs here, where the system has timers.

    Args:
        seconds: How long the code may take.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield  # Windows has no such timer, and signals reach the main thread only
        return

    def stop(*_) -> None:
        raise TimeoutError(f"no answer after {seconds:g} seconds: does a loop never end?")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def observe_call(
    candidate: Callable, inputs: Inputs, gradient: bool, seed: int, parameters: dict[str, Tensor] | None = None
) -> Observation:
    """Call a function and record its output, whether it changes its inputs, and gradients.

    Args:
        candidate: The function.
        inputs: Its arguments, in order; it gets copies.
        gradient: Whether to record the gradients of a fixed weighted sum of the output.
        seed: Fixes torch's random numbers during the call, and the weights of that sum.
        parameters: What else gradients are taken of.
    """
    given = copies(inputs)
    try:
        output = _seeded(candidate, given, seed)
        if not same(_detached(output), _detached(_seeded(candidate, copies(inputs), seed + 1)), 1e-6):
            return {REPEATED: "differ"}
    except Exception as error:
        return {OUTPUT: Failure(error)}
    seen, unchanged = {OUTPUT: _detached(output)}, True
    for name, value in inputs.items():
        if isinstance(value, Tensor | list | dict | set):
            kept = same(value, given[name], 0.0)
            seen[f"the input {name}"] = "as it was" if kept else "changed in place"
            unchanged = unchanged and kept
    # Behind a NaN, gradients are NaN in places that depend on style: they tell nothing more.
    if gradient and unchanged and not (_is_float(output) and output.isnan().any()):
        seen |= _gradients(candidate, inputs, seed, parameters or {})
    return seen


def observe_through(describe: Callable[[Any], Any], candidate: Callable, inputs: Inputs, *more: Any) -> Observation:
    """Call a function as `observe_call` does, and record what `describe` makes of its output.

    Args:
        describe: Takes the output, and makes alike what right answers may differ in.
        candidate: The function.
        inputs: Its arguments.
        more: As for `observe_call`.
    """
    return observe_call(lambda *given: describe(candidate(*given)), inputs, *more)


def _seeded(candidate: Callable, inputs: Inputs, seed: int) -> Any:
    torch.default_generator.manual_seed(seed)
    return candidate(*inputs.values())


def copies(inputs: Inputs) -> Inputs:
    """Return inputs that code may write into without harm to the originals."""
    return {name: value.clone() if isinstance(value, Tensor) else _copied(value) for name, value in inputs.items()}


def _copied(value: Any) -> Any:
    return copy.copy(value) if isinstance(value, list | dict | set) else value


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return type(value)(map(_detached, value)) if type(value) in (list, tuple) else value


def _gradients(candidate: Callable, inputs: Inputs, seed: int, parameters: dict[str, Tensor]) -> Observation:
    leaves = {k: v.clone().requires_grad_() for k, v in inputs.items() if _is_float(v)}
    watched = leaves | parameters
    if not watched:
        return {}
    try:
        # Clones, so that code which writes into its input meets an ordinary tensor, not a leaf.
        output = _seeded(candidate, {**copies(inputs), **{k: v.clone() for k, v in leaves.items()}}, seed)
        if not (_is_float(output) and output.requires_grad):
            return {f"{GRADIENT}{name}": None for name in watched}
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        gradients = torch.autograd.grad((output * weights.to(output)).sum(), list(watched.values()), allow_unused=True)
    except Exception as error:
        return {f"{GRADIENT}{name}": Failure(error) for name in watched}
    return {f"{GRADIENT}{name}": gradient for name, gradient in zip(watched, gradients, strict=True)}


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


# Modules.


def observe_module(
    candidate: Callable, inputs: Inputs, gradient: bool, seed: int, init: tuple[str, ...]
) -> Observation:
    """Build a module and record its parameters, then all that `observe_call` sees of it in eval mode.

    Its parameters are filled by name with fixed numbers, so that no style of initialisation matters. Where the
    inputs hold a config with dropout, what dropout does in training is recorded too, as rough figures.

    Args:
        candidate: The class.
        inputs: Arguments of the class, then those of the call.
        gradient: Whether to record gradients, of inputs and parameters.
        seed: Fixes the random numbers.
        init: Names of the inputs that the class is built with; the others go to the call.
    """
    given = {name: value for name, value in inputs.items() if name not in init}
    try:
        torch.default_generator.manual_seed(seed)
        module = candidate(*(inputs[name] for name in init))
    except Exception as error:
        return {OUTPUT: Failure(error)}
    if not isinstance(module, nn.Module):
        return {OUTPUT: Failure(TypeError(f"an nn.Module must be built, got a value of type {type(module).__name__}"))}
    parameters = _parameters(module)
    seen: Observation = {PARAMETERS: {name: tuple(p.shape) for name, p in parameters.items()}, SHARED: _shared(module)}
    filled(module, seed)
    seen |= observe_call(module, given, gradient, seed, parameters)
    if getattr(inputs.get("config"), "dropout", 0) and _is_float(seen.get(OUTPUT)):
        seen |= _dropout(module, given, seed)
    return seen


def _parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters by name, each once: shared ones by the first of their names in the alphabet."""
    first: dict[int, str] = {}
    named = sorted(module.named_parameters(remove_duplicate=False))
    for name, parameter in named:
        first.setdefault(id(parameter), name)
    return {name: parameter for name, parameter in named if first[id(parameter)] == name}


def _shared(module: nn.Module) -> list[tuple[str, ...]]:
    """Return the groups of names that stand for one and the same parameter."""
    groups: dict[int, list[str]] = {}
    for name, parameter in sorted(module.named_parameters(remove_duplicate=False)):
        groups.setdefault(id(parameter), []).append(name)
    return sorted(tuple(names) for names in groups.values() if len(names) > 1)


def filled(module: nn.Module, seed: int) -> nn.Module:
    """Give each parameter fixed numbers that depend on its name alone, and set eval mode.

    Args:
        module: Changed in place.
        seed: Of the numbers.

    Returns:
        The same module.
    """
    with torch.no_grad():
        for name, parameter in _parameters(module).items():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
            values = torch.randn(parameter.shape, generator=generator)
            # Matrices keep the size of what they multiply; scales of normalisation stay near 1, shifts near 0.
            scale, shift = (parameter.shape[-1] ** -0.5, 0.0) if parameter.ndim > 1 else (0.3, name.endswith("weight"))
            parameter.copy_(values * scale + shift)
    return module.eval()


def _dropout(module: nn.Module, inputs: Inputs, seed: int, n_rows: int = 512) -> Observation:
    """Measure dropout over many rows of the same input: which style draws the numbers does not matter."""
    rows = [v[:1].expand(n_rows, *v.shape[1:]) if isinstance(v, Tensor) and v.ndim > 1 else v for v in inputs.values()]
    try:
        still = module(*inputs.values()).detach()[:1]
        torch.default_generator.manual_seed(seed)
        output = module.train()(*rows).detach()
    except Exception as error:
        return {"the output in training mode": Failure(error)}
    finally:
        module.eval()
    if output.shape != (n_rows, *still.shape[1:]):
        return {}  # the batch is not the first axis: the output itself is wrong, and that is told
    spread = output.std(0).mean().item()
    return {
        "the share of zeros in training": Rough((output == 0).double().mean().item(), 0.03),
        "the spread that dropout makes in training": Rough(spread, 0.12 * spread),
        "the mean in training, beside the output in eval mode": Rough(
            ((output.mean(0) * still).sum() / still.square().sum()).item(), 0.08
        ),
    }


# Functions that work in place, that draw, and training steps.


def observe_in_place(
    candidate: Callable, inputs: Inputs, gradient: bool, seed: int, describe: Callable[[Any], Any] | None = None
) -> Observation:
    """Call a function and record what it returns and what its inputs are afterwards.

    Args:
        candidate: The function.
        inputs: Its arguments, in order; it gets one deep copy of them all, so that what they share stays shared.
        gradient: Without a meaning here.
        seed: Fixes torch's random numbers during the call.
        describe: Turns an input, afterwards, into what is compared; its state where None.
    """
    given = copy.deepcopy(inputs)
    try:
        output = _seeded(candidate, given, seed)
    except Exception as error:
        return {OUTPUT: Failure(error)}
    seen = {OUTPUT: _detached(output)}
    for name, value in given.items():
        if isinstance(value, Tensor | list | dict | set | nn.Module):
            seen[f"{name} afterwards"] = (describe or _state)(value)
    return seen


def _state(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return {name: parameter.detach().clone() for name, parameter in value.named_parameters()}
    if isinstance(value, dict):
        return {name: _detached(entry) for name, entry in value.items()}
    return _detached(value)


def observe_draws(
    candidate: Callable,
    inputs: Inputs,
    gradient: bool,
    seed: int,
    describe: Callable[[Any, Inputs], Any],
    outcomes: Callable[[Any, Inputs], list],
    n_calls: int = 100,
) -> Observation:
    """Call a function that draws from a generator; what is compared does not depend on how it draws.

    Args:
        candidate: The function.
        inputs: Its arguments, in order; "generator" among them is replaced by generators of known seeds.
        gradient: Without a meaning here.
        seed: Of the generators.
        describe: Takes an output and the inputs, and returns what is the same for every draw.
        outcomes: Takes an output and the inputs, and returns what was drawn, to be counted over many calls.
        n_calls: How many.
    """

    def draw(own: int | None, torchs: int) -> Any:
        generator = None if own is None else torch.Generator().manual_seed(own)
        return _seeded(candidate, {**copies(inputs), "generator": generator}, torchs)

    try:
        first = draw(seed, seed)
        seen = {OUTPUT: describe(first, inputs)}
        seen["a generator of the same seed"] = _compared(first, draw(seed, seed + 1))
        seen["a generator of another seed"] = _compared(first, *(draw(seed + n, seed) for n in (1, 2, 3)))
        seen["without a generator"] = _compared(draw(None, seed), draw(None, seed))
        drawn = Counter(each for n in range(n_calls) for each in outcomes(draw(1000 + seed + n, seed + n), inputs))
    except Exception as error:
        return {OUTPUT: Failure(error)}
    total = max(1, drawn.total())
    # Five standard deviations of the difference of two such shares, so that no right style falls out by chance.
    seen["how often each was drawn"] = {
        each: Rough(n / total, 5 * (2 * n / total * (1 - n / total) / total) ** 0.5 + 0.5 / total)
        for each, n in drawn.items()
    }
    return seen


def _compared(first: Any, *others: Any) -> str:
    return (
        "the same draw" if all(same(_detached(first), _detached(other), 1e-6) for other in others) else "another draw"
    )


def observe_step(
    candidate: Callable,
    inputs: Inputs,
    gradient: bool,
    seed: int,
    events: tuple[str, ...] = ("zero_grad", "unscale_", "clip_grad_norm_", "step", "update"),
) -> Observation:
    """Run one training step, with spies on the model's optimizer and scaler.

    Recorded are the loss returned, the order of the calls named by `events`, the gradients that the optimizer met, and
    the parameters and their gradients afterwards.

    Args:
        candidate: The step; takes the inputs in order.
        inputs: Among them "model" and "optimizer", and "scaler" where there is one.
        gradient: Without a meaning here.
        seed: Fixes torch's random numbers during the step.
        events: Methods whose calls are recorded, of the optimizer, the scaler, torch.nn.utils and torch.autograd; those
            on which right styles differ are left out.
    """
    given = copy.deepcopy(inputs)
    order: list[str] = []
    met: Observation = {}

    def on_step() -> None:
        met["the gradients that the optimizer meets"] = _gradients_of(given["model"])

    try:
        with contextlib.ExitStack() as spies:
            for owner in (given["optimizer"], given.get("scaler"), nn.utils, torch.autograd):
                for method in {*events, "step"}:
                    if hasattr(owner, method):
                        told = on_step if owner is given["optimizer"] and method == "step" else None
                        spies.enter_context(_spy(owner, method, order, told))
            output = _seeded(candidate, given, seed)
    except Exception as error:
        return {OUTPUT: Failure(error)}
    seen = {OUTPUT: _detached(output), "the loss keeps its graph": bool(getattr(output, "requires_grad", False))}
    seen["the order of the calls"] = [event for event in order if event in events]
    return seen | met | {"the parameters afterwards": _state(given["model"])}


def _gradients_of(model: nn.Module) -> dict[str, Any]:
    return {name: None if p.grad is None else p.grad.detach().clone() for name, p in model.named_parameters()}


@contextlib.contextmanager
def _spy(owner: Any, method: str, order: list[str], told: Callable[[], None] | None) -> Iterator[None]:
    """Record the calls of one method while this lasts."""
    original = getattr(owner, method)

    def spied(*arguments: Any, **keywords: Any) -> Any:
        order.append(method)
        if told is not None:
            told()
        return original(*arguments, **keywords)

    setattr(owner, method, spied)
    try:
        yield
    finally:
        setattr(owner, method, original)
