"""The training loop: batches, schedule, mixed precision, evaluation, checkpoints and exact resume."""

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, no_type_check

import torch
from tqdm import tqdm

from l1_ref.checkpoint import CHECKPOINT_FILE, load_checkpoint, save_checkpoint
from l1_ref.config import L1Config, require_betas, require_choice, require_count, require_number, require_whole
from l1_ref.data import Corpus
from l1_ref.memory import training_memory
from l1_ref.optimization import build_optimizer, cosine_lr
from l1_ref.signals import handling
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
        lr_min: What the learning rate falls to, one step after the last; at most the peak.
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

    Example:
        >>> config = TrainingConfig(steps=200)
        >>> config.warmup_steps, config.peak_rate(L1Config.preset("tiny"))
        (10, 0.003)
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
        for name in ("steps", "batch_size", "accumulation", "evaluate_every", "save_every"):
            require_count(name, getattr(self, name))
        if self.warmup_steps is None:
            object.__setattr__(self, "warmup_steps", self.steps // 20)
        require_whole("warmup_steps", self.warmup_steps, "between 0 and steps", lambda n: 0 <= n <= self.steps)
        require_whole("seed", self.seed, "of at least 0 and below 2**63", lambda n: 0 <= n < 2**63)
        if self.lr_peak is not None:
            require_number("lr_peak", self.lr_peak, "above 0", lambda v: v > 0)
            _require_below("lr_min", self.lr_min, self.lr_peak)
        for name in ("lr_min", "weight_decay"):
            require_number(name, getattr(self, name), "at least 0", lambda v: v >= 0)
        if self.max_norm != math.inf:  # which clips nothing
            require_number("max_norm", self.max_norm, "above 0", lambda v: v > 0)
        require_number("label_smoothing", self.label_smoothing, "in [0, 1)", lambda v: 0 <= v < 1)
        require_choice("dtype", self.dtype, tuple(DTYPES))
        require_choice("checkpointing", self.checkpointing, (True, False))
        require_choice("compile", self.compile, (True, False))
        require_betas(self.betas)
        object.__setattr__(self, "betas", tuple(self.betas))  # JSON has no tuples

    def peak_rate(self, model: L1Config) -> float:
        """Return the peak learning rate for a model: the given one, or the rule of thumb by width.

        Raises:
            ValueError: It is below `lr_min`.
        """
        peak = self.lr_peak if self.lr_peak is not None else 0.384 / model.n_embd
        _require_below("lr_min", self.lr_min, peak)
        return peak


def _require_below(name: str, value: float, peak: float) -> None:
    require_number(name, value, f"at most the peak rate {peak:g}", lambda v: v <= peak)


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
        folder: Gets checkpoints; None keeps none. One that holds a checkpoint must be resumed.
        resume: Go on from the folder's checkpoint.
        floor: Loss in nats a token that no model can beat, where it is known; shown and kept in the metrics.
        on_evaluation: Called with each new point of the curve.
        progress: Show a bar with loss, tokens a second and time left.

    Returns:
        The metrics: `validation_loss`, `training_loss`, `floor`, `tokens`, `tokens_per_s`, `elapsed_s`, `steps` and
        `curve`.

    Raises:
        ValueError: The corpus, the model, the folder or the checkpoint does not fit.
        OSError: A checkpoint cannot be written; the last one stays.
        FloatingPointError: The loss or a weight is no longer a number; the message names the last good checkpoint.
        KeyboardInterrupt: SIGINT, SIGTERM or SIGHUP came; a checkpoint was written first where there is a folder.

    Example:
        >>> ids = torch.arange(400) % 10
        >>> model = L1Model(L1Config(vocab_size=10, max_seq_length=8, n_layers=1, n_heads=1, n_embd=8, dropout=0.0))
        >>> config = TrainingConfig(steps=20, batch_size=4, lr_peak=0.01)
        >>> metrics = train(model, Corpus(ids[:300], ids[300:]), config, progress=False)
        >>> metrics["steps"], metrics["validation_loss"] < metrics["curve"][0]["validation_loss"]
        (20, True)
    """
    stop = threading.Event()  # looked at between micro-batches
    with handling(lambda *_: stop.set()):
        loop = _Loop(model, corpus, config, folder, floor, on_evaluation, stop)
        if resume:
            loop.restore()
        elif folder is not None and (Path(folder) / CHECKPOINT_FILE).exists():
            raise ValueError(
                f"a run needs a folder of its own, {folder} holds a checkpoint: resume it, or take another"
            )
        with tqdm(total=config.steps, initial=loop.step, unit="step", disable=not progress, dynamic_ncols=True) as bar:
            model.train()
            try:
                while True:
                    loop.do_what_is_due()
                    if loop.step == config.steps:
                        return loop.metrics()
                    loop.leave_if_stopped()
                    loop.take_step()
                    loop.leave_if_stopped()
                    bar.update()
                    loop.show(bar)
            except _Stopped:
                raise KeyboardInterrupt(loop.stopped()) from None


class _Stopped(Exception):
    """A signal asked the run to end, and the loop is at a place where it can."""


class _Loop:
    """The state of one run of `train`: everything that changes from step to step."""

    def __init__(self, model, corpus, config, folder, floor, on_evaluation, stop):
        self.model, self.corpus, self.config, self.folder, self.floor = model, corpus, config, folder, floor
        self.stop = stop
        self.on_evaluation = on_evaluation or (lambda point: None)
        self.device = next(model.parameters()).device
        self.dtype = DTYPES[config.dtype]
        self.lr_peak = config.peak_rate(model.config)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError("the model must have a parameter to train, got one in which all are frozen")
        self.optimizer = build_optimizer(model, self.lr_peak, config.betas, config.weight_decay)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.dtype == "float16")
        model.checkpointing = config.checkpointing
        self.forward = torch.compile(model) if config.compile else model
        context = model.config.max_seq_length
        corpus.check(context)
        self.validation = corpus.validation_batches(context, max(1, EVALUATION_TOKENS // context))
        self.fingerprint = corpus.fingerprint()  # once: every checkpoint holds it
        self.step, self.elapsed_s, self.curve, self.losses = 0, 0.0, [], []
        self.kept = None  # step and length of the curve in the last checkpoint
        self.tokens_per_step = config.batch_size * config.accumulation * context

    def take_step(self) -> None:
        """Do one optimizer step."""
        started = time.perf_counter()
        seed = _step_seed(self.config.seed, self.step)
        torch.manual_seed(seed)
        batches = self._draw(torch.Generator().manual_seed(seed))
        config = self.config
        lr = self._rate(self.step + 1)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        loss = accumulate_gradients(
            self.forward, batches, self.dtype, self.scaler, config.label_smoothing, self.leave_if_stopped
        )
        self._check(loss)
        scaled_update(self.model, self.optimizer, self.scaler, config.max_norm)
        self.step += 1
        self.losses.append(loss)
        self.elapsed_s += time.perf_counter() - started

    def do_what_is_due(self) -> None:
        """Evaluate and save where the step asks for it, and it is not done: a run may have been stopped in between."""
        last = self.step == self.config.steps
        evaluated = self.curve and self.curve[-1]["step"] == self.step
        if not evaluated and (last or self.step % self.config.evaluate_every == 0):
            self.evaluate(FULL_EVALUATION_TOKENS if last else QUICK_EVALUATION_TOKENS)
        due = last or (self.step and self.step % self.config.save_every == 0)
        if due and not self._is_kept():
            self.save()

    def _is_kept(self) -> bool:
        return self.kept == (self.step, len(self.curve))

    def leave_if_stopped(self) -> None:
        """Leave the loop where a signal asked for it."""
        if self.stop.is_set():
            raise _Stopped

    def _draw(self, generator: torch.Generator) -> list[Batch]:
        context = self.model.config.max_seq_length
        batches = (
            self.corpus.batch(self.config.batch_size, context, generator) for _ in range(self.config.accumulation)
        )
        return [(x.to(self.device), y.to(self.device)) for x, y in self._until_stopped(batches)]

    def _check(self, loss: torch.Tensor) -> None:
        # On CUDA reading the loss would make the processor wait, so there it is read now and then, and before a save.
        due = self.device.type == "cpu" or self.step % 20 == 0 or (self.step + 1) % self.config.save_every == 0
        if due and not math.isfinite(loss.item()):
            raise self._no_number("loss", loss.item(), self.step + 1)

    def _rate(self, step: int) -> float:
        config = self.config
        # + 1: a rate of 0 is for the step after the last.
        return cosine_lr(step, self.lr_peak, config.warmup_steps, config.steps + 1, config.lr_min)

    def _no_number(self, what: str, value: float, step: int) -> FloatingPointError:
        return FloatingPointError(
            f"the {what} must stay finite, got {value} at step {step}, rate {self._rate(step):.3g}; "
            f"{self._last_checkpoint()}. A lower peak rate or a longer warm-up usually helps."
        )

    def _last_checkpoint(self) -> str:
        if self.folder is None:
            return "no checkpoint was kept"
        if self.kept is None:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is {Path(self.folder) / CHECKPOINT_FILE}, of step {self.kept[0]}"

    def evaluate(self, tokens: int) -> None:
        """Add a point to the curve, from about so many tokens of the validation part."""
        every = max(1, math.ceil(sum(y.numel() for _, y in self.validation) / tokens))
        validation_loss = evaluate(self.model, self._until_stopped(self.validation[::every]), self.dtype)
        if not math.isfinite(validation_loss):
            raise self._no_number("validation loss", validation_loss, self.step)
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

    def _until_stopped(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self.leave_if_stopped()  # an evaluation can take minutes, and a step of many micro-batches too
            yield batch

    def show(self, bar: tqdm) -> None:
        """Put loss, floor and tokens per second behind the bar."""
        if not bar.disable and (self.step % 10 == 0 or self.step == self.config.steps) and self.losses:
            floor = "" if self.floor is None else f", floor {self.floor:.3f}"
            bar.set_postfix_str(f"loss {self.losses[-1].item():.3f}{floor}, {self._tokens_per_s():,.0f} tokens/s")

    def _tokens_per_s(self) -> float:
        return self.step * self.tokens_per_step / self.elapsed_s

    def save(self) -> None:
        """Write a checkpoint, where there is a folder for it; never of weights that are no longer numbers."""
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise self._no_number("weights", math.nan, self.step)
        if self.folder is None:
            return
        try:
            save_checkpoint(self.folder, self.model, self.optimizer, self._state())
        except OSError as error:
            raise type(error)(f"{error}; stopped at step {self.step}, {self._last_checkpoint()}") from None
        self.kept = self.step, len(self.curve)

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
        if self.folder is None:
            raise ValueError("to resume, a run must have a folder, got folder=None")
        state = load_checkpoint(Path(self.folder), self.model, self.optimizer)
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
        if state["scaler"].keys() != self.scaler.state_dict().keys() or state["step"] > self.config.steps:
            raise ValueError(
                f"{self.folder} must hold a checkpoint of this run, got step {state['step']}, scaler {state['scaler']}"
            )
        self.step, self.elapsed_s, self.curve = state["step"], state["elapsed_s"], state["curve"]
        self.losses = list(torch.tensor(state["losses"]))
        self.scaler.load_state_dict(state["scaler"])
        self.kept = self.step, len(self.curve)

    def stopped(self) -> str:
        """Save, and return the sentence that says where the run stopped."""
        if self.step and not self._is_kept():
            self.save()
        where = f"; {self.folder} holds a checkpoint to resume from" if self.folder and self.step else ""
        return f"stopped after step {self.step} of {self.config.steps}{where}"

    def metrics(self) -> dict[str, Any]:
        """Return what the run came to."""
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
