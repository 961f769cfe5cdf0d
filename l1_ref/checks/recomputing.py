"""The check of 07_efficiency on checkpointing: checkpointed."""

import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from l1_ref.checks.compare import Failure, same
from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe
from l1_ref.checks.observe import GRADIENT, OUTPUT, Observation, filled
from l1_ref.config import L1Config
from l1_ref.memory import saved_bytes
from l1_ref.transformer import TransformerBlock, checkpointed

_FAR = 7919  # from the seeds that code would set by itself
_KEPT = "the bytes kept for the backward pass"
_FORWARD, _BACKWARD = "the runs of the block, forward", "the runs of the block, in the backward pass"


class ToyBlock(nn.Module):
    """Widen, bend, drop, narrow, and add: a block that counts how often it runs.

    Args:
        width: C.
        dropout: Share of hidden values that are dropped in training.
    """

    def __init__(self, width: int, dropout: float = 0.0):
        super().__init__()
        self.widen, self.narrow = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.dropout = dropout
        self.n_runs = 0

    def __repr__(self) -> str:
        return f"a block of width {self.narrow.out_features}, dropout {self.dropout}"

    def forward(self, x: Tensor) -> Tensor:
        """Return x and what the block adds."""
        self.n_runs += 1
        return x + self.narrow(F.dropout(F.gelu(self.widen(x)), self.dropout, self.training))


class CountedBlock(TransformerBlock):
    """A transformer block that counts how often it runs."""

    n_runs = 0

    def __repr__(self) -> str:
        return "a TransformerBlock"

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        """Return the residual stream after the block."""
        self.n_runs += 1
        return super().forward(x, cache)


@lru_cache(maxsize=1)
def _warmed() -> None:
    """Call `checkpoint` once: its first call imports torch's compiler, and these seconds are not the reader's."""
    checkpoint(nn.Identity(), torch.zeros(1, requires_grad=True), use_reentrant=False)


def _to_run(make: Callable[[], nn.Module], *shape: int, needed: bool = True, training: bool = True) -> Callable:
    """Return the builder of a probe: a block with fixed numbers, and its input."""

    def build(generator: torch.Generator) -> Inputs:
        _warmed()
        with torch.random.fork_rng(devices=[]):
            block = filled(make(), generator.initial_seed()).train(training)
        return {"block": block, "x": torch.randn(*shape, generator=generator).requires_grad_(needed)}

    return build


def _observe_run(candidate: Callable, inputs: Inputs, gradient: bool, seed: int) -> Observation:
    """Record the output, what is kept, how often the block runs, and the gradients."""
    block, x = inputs["block"], inputs["x"].detach().clone().requires_grad_(inputs["x"].requires_grad)
    training, outputs = block.training, []
    torch.default_generator.manual_seed(_FAR + seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's, about use_reentrant: the check says what it means
        try:
            n_bytes = saved_bytes(block, lambda: outputs.append(candidate(block, x)))
        except Exception as error:
            return {OUTPUT: Failure(error)}
        output, forward = outputs[0], block.n_runs
        seen: Observation = {OUTPUT: output.detach().clone() if isinstance(output, Tensor) else output}
        seen[_FORWARD] = forward
        seen["the input x"] = "as it was" if same(x.detach(), inputs["x"].detach(), 0.0) else "changed in place"
        seen["the block's mode"] = "as it was" if block.training == training else "changed"
        little = n_bytes <= 2 * x.nbytes
        seen[_KEPT] = "no more than its input" if little else f"{n_bytes:,}; its input has {x.nbytes:,}"
        return seen | _backward(block, x, output, seed)


def _backward(block: nn.Module, x: Tensor, output: Any, seed: int) -> Observation:
    leaves = {"x": x} | dict(block.named_parameters())
    n_runs = block.n_runs
    if isinstance(output, Tensor) and output.requires_grad:
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed))
        torch.rand(3)  # another layer draws meanwhile
        try:
            (output * weights).sum().backward()
        except Exception as error:
            return {"the backward pass": Failure(error)}
    seen: Observation = {f"{GRADIENT}{name}": leaf.grad for name, leaf in leaves.items()}
    return {_BACKWARD: block.n_runs - n_runs} | seen


# Wrong versions.


class _OnlyTheInput(torch.autograd.Function):
    """Compute the block again in the backward pass, for the gradient of its input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: nn.Module) -> Tensor:
        ctx.block, ctx.state = block, torch.get_rng_state()
        ctx.save_for_backward(x)
        with torch.no_grad():
            return block(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            torch.set_rng_state(ctx.state)
            x = x.detach().requires_grad_()
            return torch.autograd.grad(ctx.block(x), x, gradient)[0], None


def _run(
    block: nn.Module,
    x: Tensor,
    *,
    recompute: bool = True,
    reentrant: bool = False,
    keep_rng: bool = True,
    before: Callable = lambda block, x: x,
    after: Callable = lambda x, y: y,
) -> Tensor:
    """Run a block with switches: each mistake sets one."""
    given = before(block, x)
    if recompute:
        return after(x, checkpoint(block, given, use_reentrant=reentrant, preserve_rng_state=keep_rng))
    return after(x, block(given))


def _unrecorded(block: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return block(x)


def _kept_elsewhere(block: nn.Module, x: Tensor) -> Tensor:
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.clone(), lambda tensor: tensor):
        return block(x)


def _seeded(block: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    return x


def _in_eval_mode(block: nn.Module, x: Tensor) -> Tensor:
    block.eval()
    return x


def _without_dropout(block: nn.Module, x: Tensor) -> Tensor:
    training = block.training
    y = checkpoint(block.eval(), x, use_reentrant=False)
    block.train(training)
    return y


def _once_more(block: nn.Module, x: Tensor) -> Tensor:
    block(x)
    return x


CHECKPOINTED = Exercise(
    name="checkpointed",
    notebook="07_efficiency",
    reference=checkpointed,
    observe=_observe_run,
    probes=tuple(
        Probe(name, build, "B T C")
        for name, build in (
            ("no dropout", _to_run(lambda: ToyBlock(4), 2, 3, 4)),
            ("dropout in training", _to_run(lambda: ToyBlock(6, 0.4), 3, 4, 6)),
            (
                "x needs no gradient, the block's parameters do",
                _to_run(lambda: ToyBlock(4, 0.2), 2, 5, 4, needed=False),
            ),
            ("eval mode", _to_run(lambda: ToyBlock(5, 0.4), 2, 3, 5, training=False)),
            (
                "a transformer block",
                _to_run(lambda: CountedBlock(L1Config(n_embd=12, n_heads=3, dropout=0.2)), 2, 5, 12),
            ),
        )
    ),
    mistakes=(
        Mistake(
            "the block runs as always: nothing is forgotten, nothing computed again",
            "all activations stay in memory until the backward pass; that is what checkpointing is to save.",
            partial(_run, recompute=False),
        ),
        Mistake(
            "nothing is recorded, so the backward pass stops here",
            "no_grad and detach save memory too, but then neither the block nor what lies before it learns.",
            _unrecorded,
            (
                lambda block, x: _unrecorded(block, x).requires_grad_(),
                partial(_run, after=lambda x, y: y.detach()),
                partial(_run, recompute=False, after=lambda x, y: y.detach()),
            ),
        ),
        Mistake(
            "x is cut off: no gradient reaches what lies before the block",
            "the layers before would not learn: hand x over as it is.",
            partial(_run, before=lambda block, x: x.detach()),
        ),
        Mistake(
            "use_reentrant is True: where x needs no gradient, the parameters get none either",
            "the first block's input may need none, and that block would not learn: use_reentrant=False.",
            partial(_run, reentrant=True),
        ),
        Mistake(
            "the block's parameters get no gradient",
            "the block itself is to learn: its parameters need gradients as well as x.",
            lambda block, x: _OnlyTheInput.apply(x, block),
        ),
        Mistake(
            "dropout is drawn anew when the block is computed again",
            "the gradient then belongs to another network than the one that gave the loss: keep the random state.",
            partial(_run, keep_rng=False),
        ),
        Mistake(
            "the activations are kept in another place, not computed again",
            "that moves the memory, and does not save it.",
            _kept_elsewhere,
        ),
        Mistake(
            "the block is put into eval mode",
            "in training dropout must drop: the mode is the caller's choice.",
            partial(_run, before=_in_eval_mode),
            (_without_dropout, partial(_run, recompute=False, before=_in_eval_mode)),
        ),
        Mistake(
            "a seed is set inside",
            "then dropout drops the same entries at every step; checkpoint keeps the random state by itself.",
            partial(_run, before=_seeded),
            (partial(_run, before=_seeded, keep_rng=False),),
        ),
        Mistake(
            "x is added to the block's output",
            "the block adds its input itself.",
            partial(_run, after=lambda x, y: x + y),
        ),
        Mistake(
            "the block runs twice in the forward pass",
            "once is enough there; the second run belongs into the backward pass.",
            partial(_run, before=_once_more),
        ),
        Mistake(
            "the block is not run: x comes back",
            "the output is the block's.",
            lambda block, x: x,
            (lambda block, x: x.clone(),),
        ),
    ),
    properties=(),
    hints=(
        "What does the backward pass of a block need, and what of that can be had again from x?",
        "torch.utils.checkpoint.checkpoint calls a function for you, and calls it again in the backward pass. What "
        "does its argument use_reentrant do?",
        "One line: hand the block itself, not its output, and x to checkpoint, with use_reentrant=False, and return "
        "what comes back.",
    ),
)

EXERCISES = (CHECKPOINTED,)
