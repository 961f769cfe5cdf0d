"""The training loop: batches, schedule, mixed precision, evaluation, checkpoints and exact resume."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, no_type_check

import torch
from tqdm import tqdm

from l1_ref.checkpoint import load_checkpoint, save_checkpoint
from l1_ref.config import L1Config
from l1_ref.data import Corpus
from l1_ref.memory import training_memory
from l1_ref.optimization import build_optimizer, cosine_lr
from l1_ref.steps import (
    DTYPES,
    Batch,
    accumulate_gradients,
    amp_train_step,
    evaluate,
    loss_scaled_step,
    scaled_update,
    train_step,
)
from l1_ref.transformer import L1Model

__all__ = [
    "DTYPES", "TrainingConfig", "accumulate_gradients", "amp_train_step", "evaluate", "loss_scaled_step", "train",
    "train_step", "training_memory",
]  # fmt: skip

EVALUATION_TOKENS = 4_096  # in one forward pass without gradients
QUICK_EVALUATION_TOKENS = 32_768  # of the validation part, while training
FULL_EVALUATION_TOKENS = 2_000_000  # of the validation part, at the end


@no_type_check  # it checks itself, with errors that name the rule
@dataclass(frozen=True)
class TrainingConfig:
    """Say how to train.

    Args:
        steps: Number of optimizer steps.
        batch_size: Sequences in a micro-batch.
        accumulation: Micro-batches in a step.
        lr_peak: Peak learning rate; None means 0.384 / n_embd: 3e-3 at width 128, 5e-4 at 768.
        lr_min: Last learning rate.
        warmup_steps: Steps of linear warm-up; None means a twentieth of all.
        betas: Of AdamW.
        weight_decay: Of the parameters with two or more axes.
        max_norm: Of the gradients, before a step.
        label_smoothing: In [0, 1).
        dtype: "float32", "bfloat16" or "float16" for the matrix products.
        checkpointing: Recompute activations in the backward pass instead of keeping them.
        compile: Use `torch.compile`.
        seed: Of the batches and of dropout; the initial weights are the caller's.
        evaluate_every: Steps between two evaluations.
        save_every: Steps between two checkpoints.

    Raises:
        ValueError: A value breaks its rule.
    """

    steps: int = 2_000
    batch_size: int = 16
    accumulation: int = 1
    lr_peak: float | None = None
    lr_min: float = 0.0
    warmup_steps: int | None = None
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.1
    max_norm: float = 1.0
    label_smoothing: float = 0.0
    dtype: str = "float32"
    checkpointing: bool = False
    compile: bool = False
    seed: int = 0
    evaluate_every: int = 250
    save_every: int = 500

    def __post_init__(self) -> None:
        if self.warmup_steps is None:
            object.__setattr__(self, "warmup_steps", self.steps // 20)
        object.__setattr__(self, "betas", tuple(self.betas))
        for name in ("steps", "batch_size", "accumulation", "evaluate_every", "save_every"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {name}={value!r}")
        rules: dict[str, tuple[str, Callable[[Any], bool]]] = {
            "lr_peak": ("above 0", lambda v: v is None or 0 < v < math.inf),
            "lr_min": ("at least 0", lambda v: 0 <= v < math.inf),
            "warmup_steps": ("between 0 and steps", lambda v: 0 <= v <= self.steps),
            "betas": ("two numbers in [0, 1)", lambda v: len(v) == 2 and all(0 <= b < 1 for b in v)),
            "weight_decay": ("at least 0", lambda v: 0 <= v < math.inf),
            "max_norm": ("above 0", lambda v: v > 0),
            "label_smoothing": ("in [0, 1)", lambda v: 0 <= v < 1),
            "dtype": (f"one of {', '.join(DTYPES)}", lambda v: v in DTYPES),
            "seed": ("at least 0", lambda v: v >= 0),
        }
        for name, (rule, holds) in rules.items():
            if not holds(getattr(self, name)):
                raise ValueError(f"{name} must be {rule}, got {name}={getattr(self, name)!r}")

    def peak_rate(self, model: L1Config) -> float:
        """Return the peak learning rate for a model: the given one, or the rule of thumb by width."""
        return self.lr_peak if self.lr_peak is not None else 0.384 / model.n_embd


def train(
    model: L1Model,
    corpus: Corpus,
    config: TrainingConfig,
    folder: Path | None = None,
    resume: bool = False,
    floor: float | None = None,
    on_evaluation: Callable[[dict[str, Any]], None] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a model, in place.

    Every step draws its batch and its dropout from a seed of its own, made of `config.seed` and the step's number. So a
    run that was stopped and resumed ends with the very same weights (on one machine's CPU) as one that was not.

    Args:
        model: Trained where it is; a CUDA model trains on CUDA.
        corpus: Token ids to train and to validate on.
        config: How to train.
        folder: Gets checkpoints; None keeps none.
        resume: Go on from the folder's checkpoint.
        floor: Loss in nats a token that no model can beat, where it is known; shown and kept in the metrics.
        on_evaluation: Called with each new point of the curve.
        progress: Show a bar with loss, tokens a second and time left.

    Returns:
        The metrics: `validation_loss`, `training_loss`, `floor`, `tokens`, `tokens_per_s`, `elapsed_s`, `steps` and
        `curve`.

    Raises:
        ValueError: The corpus or the checkpoint does not fit.
        FloatingPointError: The loss is no longer a number.
        KeyboardInterrupt: SIGINT or SIGTERM came; a checkpoint was written first where there is a folder.
    """
    loop = _Loop(model, corpus, config, folder, floor, on_evaluation)
    if resume:
        loop.restore()
    with (
        _stop_signals() as stop,
        tqdm(total=config.steps, initial=loop.step, unit="step", disable=not progress, dynamic_ncols=True) as bar,
    ):
        model.train()
        if loop.step == 0:
            loop.evaluate(QUICK_EVALUATION_TOKENS)
        while loop.step < config.steps:
            loop.take_step()
            bar.update()
            loop.show(bar)
            if stop.is_set():
                raise KeyboardInterrupt(loop.stopped())
    return loop.finish()


class _Loop:
    """The state of one run of `train`: everything that changes from step to step."""

    def __init__(self, model, corpus, config, folder, floor, on_evaluation):
        self.model, self.corpus, self.config, self.folder, self.floor = model, corpus, config, folder, floor
        self.on_evaluation = on_evaluation or (lambda point: None)
        self.device = next(model.parameters()).device
        self.dtype = DTYPES[config.dtype]
        self.lr_peak = config.peak_rate(model.config)
        self.optimizer = build_optimizer(model, self.lr_peak, config.betas, config.weight_decay)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.dtype == "float16")
        model.checkpointing = config.checkpointing
        self.forward = torch.compile(model) if config.compile else model
        context = model.config.max_seq_length
        corpus.check(context)
        self.validation = corpus.validation_batches(context, max(1, EVALUATION_TOKENS // context))
        self.fingerprint = corpus.fingerprint()  # once: every checkpoint holds it
        self.step, self.elapsed_s, self.curve, self.losses = 0, 0.0, [], []
        self.tokens_per_step = config.batch_size * config.accumulation * context

    def take_step(self) -> None:
        """Do one optimizer step, and what is due after it."""
        started = time.perf_counter()
        seed = _step_seed(self.config.seed, self.step)
        torch.manual_seed(seed)
        batches = self._draw(torch.Generator().manual_seed(seed))
        config = self.config
        lr = cosine_lr(self.step + 1, self.lr_peak, config.warmup_steps, config.steps, config.lr_min)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        loss = accumulate_gradients(self.forward, batches, self.dtype, self.scaler, config.label_smoothing)
        self._check(loss, lr)
        scaled_update(self.model, self.optimizer, self.scaler, config.max_norm)
        self.step += 1
        self.losses.append(loss)
        self.elapsed_s += time.perf_counter() - started
        if self.step % config.evaluate_every == 0 and self.step < config.steps:
            self.evaluate(QUICK_EVALUATION_TOKENS)
        if self.step % config.save_every == 0 and self.step < config.steps:
            self.save()

    def _draw(self, generator: torch.Generator) -> list[Batch]:
        context = self.model.config.max_seq_length
        batches = (
            self.corpus.batch(self.config.batch_size, context, generator) for _ in range(self.config.accumulation)
        )
        return [(x.to(self.device), y.to(self.device)) for x, y in batches]

    def _check(self, loss: torch.Tensor, lr: float) -> None:
        # On CUDA reading the loss would make the processor wait, so there it is read now and then, and before a save.
        due = self.device.type == "cpu" or self.step % 20 == 0 or (self.step + 1) % self.config.save_every == 0
        if due and not math.isfinite(loss.item()):
            kept = f"the last good checkpoint is in {self.folder}" if self.folder else "no checkpoint was kept"
            raise FloatingPointError(
                f"the loss must stay finite, got {loss.item()} at step {self.step + 1}, rate {lr:.3g}; {kept}. "
                "A lower peak rate or a longer warm-up usually helps."
            )

    def evaluate(self, tokens: int) -> None:
        """Add a point to the curve, from about so many tokens of the validation part."""
        every = max(1, math.ceil(sum(y.numel() for _, y in self.validation) / tokens))
        validation_loss = evaluate(self.model, self.validation[::every], self.dtype)
        # The mean since the last point; before the first step there is none.
        training_loss = torch.stack(self.losses).mean().item() if self.losses else None
        point = {
            "step": self.step,
            "tokens": self.step * self.tokens_per_step,
            "training_loss": training_loss,
            "validation_loss": validation_loss,
        }
        self.losses.clear()
        self.curve.append(point)
        self.on_evaluation(point)

    def show(self, bar: tqdm) -> None:
        """Put loss, floor and tokens per second behind the bar."""
        if not bar.disable and (self.step % 10 == 0 or self.step == self.config.steps) and self.losses:
            floor = "" if self.floor is None else f", floor {self.floor:.3f}"
            bar.set_postfix_str(f"loss {self.losses[-1].item():.3f}{floor}, {self._tokens_per_s():,.0f} tokens/s")

    def _tokens_per_s(self) -> float:
        return self.step * self.tokens_per_step / self.elapsed_s

    def save(self) -> None:
        """Write a checkpoint, where there is a folder for it."""
        if self.folder is not None:
            save_checkpoint(self.folder, self.model, self.optimizer, self._state())

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "curve": self.curve,
            "losses": [loss.item() for loss in self.losses],
            "scaler": self.scaler.state_dict(),
            "model": self.model.config.to_dict(),
            "training": asdict(self.config),
            "corpus": self.fingerprint,
        }

    def restore(self) -> None:
        """Go back to the last checkpoint.

        Raises:
            ValueError: It is of a run with other settings or another corpus.
        """
        state = load_checkpoint(self.folder, self.model, self.optimizer)
        here = self._state()
        changed = [
            f"{part}.{name}: {state[part].get(name)!r} then, {value!r} now"
            for part in ("model", "training")
            for name, value in here[part].items()
            if name != "save_every" and state[part].get(name) != (list(value) if isinstance(value, tuple) else value)
        ]
        if state["corpus"] != here["corpus"]:
            changed.append(f"corpus: {state['corpus']} then, {here['corpus']} now")
        if changed:
            raise ValueError(f"to resume, the run must have the settings it began with; changed: {'; '.join(changed)}")
        self.step, self.elapsed_s, self.curve = state["step"], state["elapsed_s"], state["curve"]
        self.losses = list(torch.tensor(state["losses"]))
        self.scaler.load_state_dict(state["scaler"])

    def stopped(self) -> str:
        """Save, and return the sentence that says where the run stopped."""
        self.save()
        where = "" if self.folder is None else f"; {self.folder} holds a checkpoint to resume from"
        return f"stopped after step {self.step} of {self.config.steps}{where}"

    def finish(self) -> dict[str, Any]:
        """Evaluate on the validation part and return the metrics."""
        if not self.curve or self.curve[-1]["step"] != self.step:
            self.evaluate(FULL_EVALUATION_TOKENS)
            self.save()
        return {
            "validation_loss": self.curve[-1]["validation_loss"],
            "training_loss": self.curve[-1]["training_loss"],
            "floor": self.floor,
            "tokens": self.step * self.tokens_per_step,
            "tokens_per_s": self._tokens_per_s(),
            "elapsed_s": self.elapsed_s,
            "steps": self.step,
            "curve": self.curve,
        }


def _step_seed(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) % 2**32


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into an event that the loop looks at between steps."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return
    previous = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
