"""Training at toy size: a model, an optimizer and a scaler that tell what was done to them."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l1_ref.checks.compare import Failure, same
from l1_ref.checks.observe import GRADIENT, OUTPUT, Inputs, Observation

_HUGE = 1e20
OLD = 0.5  # of gradients left from an earlier step
Flaw = tuple[str, float, int]  # a parameter, what one entry of its gradient becomes, in which call


class Notes:
    """What happened to a model in one call of the code."""

    def __init__(self):
        self.runs: list[str] = []  # of the model, forward and backward, in their order
        self.products: set[torch.dtype] = set()  # the dtypes of its products
        self.arrived: list[Tensor] = []  # gradients of the logits
        self.cast: list[bool] = []  # whether autocast was on when they arrived


class ToyModel(nn.Module):
    """A model of three layers, ids (B, T) to logits (B, T, V), which notes how it is run.

    Args:
        vocab_size: V.
        width: C.
        generator: Draws the weights.
        old: Whether gradients are left from an earlier step.
        idle: Whether there is a parameter that is not used, and gets no gradient.
    """

    def __init__(self, vocab_size: int, width: int, generator: torch.Generator, old: bool = False, idle: bool = False):
        super().__init__()
        if idle:
            self.idle = nn.Parameter(torch.randn(width, generator=generator))
        for name, shape in {"table": (vocab_size, width), "mix": (width, width), "head": (vocab_size, width)}.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=generator) * 1.5))
        self.shift = nn.Parameter(torch.randn(width, generator=generator))
        for parameter in (self.table, self.mix, self.head, self.shift) if old else ():
            parameter.grad = torch.full_like(parameter, OLD)
        self.notes = Notes()

    def __repr__(self) -> str:
        return f"a model of {self.table.shape[0]} tokens, width {self.table.shape[1]}"

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits."""
        x = F.linear(F.embedding(ids, self.table), self.mix, self.shift)
        x = x.tanh()
        logits = F.linear(x if self.training else x / 2, self.head)  # a stand-in for dropout, without chance
        self.notes.products.add(x.dtype)
        self.notes.runs.append(f"{len(ids)} rows forward" if len(ids) > 1 else "1 row forward")
        if logits.requires_grad:
            logits.register_hook(self._arrived)
        return logits

    def _arrived(self, gradient: Tensor) -> None:
        self.notes.runs.append("backward")
        self.notes.arrived.append(gradient.detach().clone())
        self.notes.cast.append(torch.is_autocast_enabled("cpu"))


class ShownSGD(torch.optim.SGD):
    """The optimizer whose step shows the gradient as it is: Adam would hide a wrong scale."""

    def __repr__(self) -> str:
        return f"SGD(lr={self.param_groups[0]['lr']})"


class ShownScaler(torch.amp.GradScaler):
    """Torch's scaler on the CPU, whose scale doubles after each step that was taken; it notes what it scales.

    Args:
        scale: The first scale; 0 turns the scaler off.
    """

    def __init__(self, scale: float):
        super().__init__("cpu", init_scale=scale or 1.0, growth_interval=1, enabled=scale > 0)
        super().scale(torch.ones(()))  # in use already: its first call sets it up
        self.scaled: list[torch.dtype] = []

    def __repr__(self) -> str:
        return f"GradScaler(init_scale={self.get_scale():g})" if self.is_enabled() else "GradScaler(enabled=False)"

    def scale(self, outputs: Any) -> Any:
        """Scale as torch does."""
        if isinstance(outputs, Tensor):
            self.scaled.append(outputs.dtype)
        return super().scale(outputs)


class MicroBatches(list):
    """Pairs of ids and targets, shown by their sizes."""

    def __repr__(self) -> str:
        shapes = " and ".join(str(tuple(x.shape)) for x, _ in self)
        return f"[(x, y) of shape {shapes}]"


def batch(vocab_size: int, B: int, T: int, generator: torch.Generator, padded: tuple[int, ...] = ()) -> tuple:
    """Draw ids and targets.

    Args:
        vocab_size: V.
        B: Rows.
        T: Ids a row.
        generator: Draws them.
        padded: How many targets of the first rows are padding, -100.
    """
    x, y = torch.randint(vocab_size, (2, B, T), generator=generator).unbind()
    y = y.clone()
    for row, n in enumerate(padded):
        y[row, T - n :] = -100
    return x, y


def one_batch(
    V: int,
    C: int,
    B: int,
    T: int,
    *padded: int,
    old: bool = False,
    idle: bool = False,
    step: float = 0.5,
    broken: float = 0.0,
    **more: Any,
) -> Callable:
    """Return the builder of a probe: a model, one batch, an optimizer, and what else the code takes, in its order.

    Args:
        V: Size of the vocabulary.
        C: Width of the model.
        B: Rows.
        T: Ids a row.
        padded: How many targets of the first rows are padding.
        old: Whether gradients are left from an earlier step.
        idle: Whether there is a parameter that is not used.
        step: The learning rate.
        broken: Is added to one weight.
        more: By name; a scaler is given by its first scale.
    """

    def build(generator: torch.Generator) -> Inputs:
        model = ToyModel(V, C, generator, old, idle)
        x, y = batch(V, B, T, generator, padded)
        with torch.no_grad():
            model.head[-1, -1] += broken
        optimizer = ShownSGD(model.parameters(), lr=step)
        scaler = {"scaler": ShownScaler(more["scaler"])} if "scaler" in more else {}
        return {"model": model, "x": x, "y": y, "optimizer": optimizer, **more, **scaler}

    return build


def overflow(name: str, value: float, n_calls: int = 1, call: int = 1, **more: Any) -> dict[str, Any]:
    """Return what makes a probe one with an overflow: one entry of the gradient of a parameter gets a value.

    Args:
        name: The parameter; every entry of all of them, where it is empty.
        value: Such as inf.
        n_calls: How often the code is called.
        call: In which of them.
        more: As for `observe_training`.
    """
    flaw: Flaw = (name, value, call)
    return {"edge": True, "observe": partial(observe_training, n_calls=n_calls, flaw=flaw, **more)}


def observe_training(
    candidate: Callable,
    inputs: Inputs,
    gradient: bool,
    seed: int,
    more: Callable[[Notes, Inputs, Any], Observation] = lambda notes, given, output: {},
    n_calls: int = 1,
    flaw: Flaw | None = None,
) -> Observation:
    """Let code train a `ToyModel`, and record the loss it returns, the gradients, the steps and the weights.

    Args:
        candidate: The function.
        inputs: Its arguments, in order, "model" among them. A probe builds them anew for each run, so the model, the
            optimizer and the scaler are used as they are.
        gradient: Without a meaning here.
        seed: Fixes torch's random numbers.
        more: Returns what else is compared after a call.
        n_calls: How often it is called, on the same inputs.
        flaw: An overflow: which gradient, what it becomes, and in which call.
    """
    given = {name: _copied(value) for name, value in inputs.items()}
    model, seen = given["model"], {}
    torch.default_generator.manual_seed(seed)
    for call in range(1, n_calls + 1):
        last = call == n_calls
        model.notes = Notes()
        spoiled = [p for name, p in model.named_parameters() if flaw and call == flaw[2] and flaw[0] in (name, "")]
        hooks = [p.register_hook(_spoiling(flaw[1], everywhere=not flaw[0])) for p in spoiled]
        try:
            with _autocast_kept():
                new = dict(_call(candidate, given, more))
            seen |= {(name if last else f"{name}, call {call}"): value for name, value in new.items()}
        except Exception as error:
            # Two failures count as the same behaviour. Of the scaler's, which say what is wrong, only the same one
            # does: its text becomes the name of something seen.
            told = {f"the error {type(error).__name__}: {error}": Failure(error)} if "scaler" in given else {}
            return seen | {OUTPUT: Failure(error)} | told
        for hook in hooks:
            hook.remove()
    for name, value in inputs.items():
        if isinstance(value, Tensor | MicroBatches):
            seen[f"the input {name}"] = "as it was" if same(value, given[name], 0.0) else "changed in place"
    return seen | {f"{name} afterwards": _finite(p) for name, p in model.named_parameters()}


def alone(version: Callable) -> Callable:
    """Return a wrong version that is not tried together with a second mistake, to save time.

    Args:
        version: The code.
    """
    return lambda *inputs: version(*inputs)


def in_eval_mode(step: Callable, after: Callable = nn.Module.eval) -> Callable:
    """Return a version that trains in eval mode.

    Args:
        step: The code; its first argument is the model.
        after: Sets the mode when all is done.
    """

    def wrong(model: nn.Module, *more: Any) -> Any:
        loss = step(model.eval(), *more)
        after(model)
        return loss

    return wrong


def _copied(value: Any) -> Any:
    if isinstance(value, MicroBatches):
        return MicroBatches((x.clone(), y.clone()) for x, y in value)
    return value.clone() if isinstance(value, Tensor) else value


def _spoiling(value: float, everywhere: bool) -> Callable[[Tensor], Tensor]:
    def spoil(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient.view(-1)[0 if everywhere else -1 :] = value
        return gradient

    return spoil


@contextlib.contextmanager
def _autocast_kept() -> Iterator[None]:
    """Set autocast back to what it was, so that code which leaves it on does not change what runs next."""
    before = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    try:
        yield
    finally:
        torch.set_autocast_enabled("cpu", before[0])
        torch.set_autocast_dtype("cpu", before[1])
        torch.clear_autocast_cache()


def _call(candidate: Callable, given: Inputs, more: Callable) -> Iterator[tuple[str, Any]]:
    """Call the code once, and yield what is seen, by name."""
    model, optimizer = given["model"], given.get("optimizer")
    met: list[dict[str, Any]] = []
    hook = optimizer and optimizer.register_step_pre_hook(lambda *_: met.append(_gradients(model)))
    output = candidate(*given.values())
    yield OUTPUT, _plain(output)
    yield "the loss keeps its graph", bool(getattr(output, "requires_grad", False))
    yield "the model's mode", "training" if model.training else "eval"
    yield from more(model.notes, given, output).items()
    if optimizer is not None:
        hook.remove()
        yield "calls of optimizer.step", len(met)
    for gradients in met[:1] if optimizer is not None else [_gradients(model)]:
        when = "at the step" if optimizer is not None else "afterwards"
        yield from ((f"{GRADIENT}{name} {when}", value) for name, value in gradients.items())


def _gradients(model: nn.Module) -> dict[str, Any]:
    return {name: None if p.grad is None else _finite(p.grad) for name, p in model.named_parameters()}


def _finite(tensor: Tensor) -> Any:
    """Copy a tensor; which entries are inf and which NaN after an overflow depends on style, so that is left out."""
    fine = bool((tensor.detach().abs() < _HUGE).all())
    return tensor.detach().clone() if fine else "inf or NaN, or huge"


def _plain(output: Any) -> Any:
    """Return a loss as a float, be it one, a tensor without axes or a number of numpy's."""
    if isinstance(output, Tensor):
        return output.item() if output.is_floating_point() and not output.ndim else output.detach().clone()
    return float(output) if hasattr(output, "item") and not getattr(output, "ndim", 1) else output
