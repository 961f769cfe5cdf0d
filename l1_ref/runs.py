"""Whole runs: from texts and settings to a folder with a trained model, and from such a folder back to text."""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, no_type_check

import torch

from l1_ref import tales
from l1_ref.checkpoint import CHECKPOINT_FILE, read_checkpoint_state
from l1_ref.config import PRESETS, L1Config
from l1_ref.data import DATA_DIR, Corpus, make_corpus, make_document_corpus, read_documents
from l1_ref.files import alone, read_json, replacing, write_atomic, write_json
from l1_ref.generation import stream
from l1_ref.memory import training_memory
from l1_ref.tokenizer import (
    TOKENIZER_FILE,
    BPETokenizer,
    Tokenizer,
    build_tokenizer,
    load_tokenizer,
    save_tokenizer,
    stream_text,
    train_bpe,
)
from l1_ref.training import DTYPES, TrainingConfig, train
from l1_ref.transformer import L1Model, count_parameters
from l1_ref.weights import CONFIG_FILE, METRICS_FILE, MODEL_FILE, load_run, require_memory, save_model

SPEC_FILE = "run.json"
LOCK = ".lock"
# Seen thirty times over, the committed tales would be learned by heart: a run draws more from the same grammar.
N_DRAWN_TALES, DRAWING_SEED = 37_750, 2023
TALES_TRAINING: dict[str, Any] = {"steps": 4_000, "betas": (0.9, 0.95)}
BLOCK_BYTES = 50_000  # what Python keeps for one block, whatever its width


@no_type_check  # it checks itself, with errors that name the rule
@dataclass(frozen=True)
class RunSpec:
    """Say what to train on what.

    Args:
        files: Texts; none means the course's own tales.
        tokenizer: `chars`, `bpe:N`, `gpt2` or `tales`; None means `chars`, and `tales` for the tales.
        preset: Name of the model's preset; None means `tiny`.
        model: Fields of `L1Config` that differ from the preset.
        training: Fields of `TrainingConfig` that differ from its defaults.

    Raises:
        ValueError: A value breaks its rule; the model's and the training's own rules come later.
    """

    files: list[str] = field(default_factory=list)
    tokenizer: str | None = None
    preset: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.files, list) or not all(isinstance(file, str) for file in self.files):
            raise ValueError(f"files must be a list of paths, got files={self.files!r}")
        for name in ("tokenizer", "preset"):
            if not isinstance(getattr(self, name), (str, type(None))):
                raise ValueError(f"{name} must be a text or None, got {name}={getattr(self, name)!r}")
        for name, kind in (("model", L1Config), ("training", TrainingConfig)):
            value, known = getattr(self, name), [each.name for each in dataclasses.fields(kind)]
            if not isinstance(value, dict) or not value.keys() <= set(known):
                raise ValueError(
                    f"{name} must hold fields of {kind.__name__} ({', '.join(known)}), got {name}={value!r}"
                )


def train_run(
    spec: RunSpec,
    folder: Path,
    resume: bool = False,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = print,
    progress: bool = True,
) -> dict[str, Any]:
    """Train as the spec says and leave a complete run in a folder.

    Args:
        spec: What to train on what. With `resume`, what it leaves open is taken from the run.
        folder: Gets tokenizer and configuration at the start, checkpoints on the way, weights and metrics at the end.
            One that holds a run is refused, unless that is resumed.
        resume: Go on from the folder's checkpoint; where the run ended before its first one, begin it again.
        device: Where to train.
        say: Gets a sentence on what is trained.
        progress: Show a bar.

    Returns:
        The metrics, as written to `metrics.json`.

    Raises:
        OSError: A text cannot be read, or the folder cannot be written to, or another process trains in it.
        ValueError: A text, a setting, the folder or the checkpoint breaks its rule.
    """
    folder = Path(folder)
    if not resume:
        _require_free(folder)  # before any work is done
    else:
        spec = _merged(_read_spec(folder), spec)
        resume = (folder / CHECKPOINT_FILE).exists()
        if resume:
            read_checkpoint_state(folder)  # a damaged checkpoint is told before any work is done
        else:
            say(f"{folder} holds no checkpoint yet: the run begins again")
    documents = read_documents(spec.files) if spec.files else _training_tales()
    tokenizer = load_tokenizer(folder) if resume else build_tokenizer(_tokenizer_name(spec), documents)
    corpus, floor = _corpus(spec, documents, tokenizer)
    training = TrainingConfig(**(({} if spec.files else TALES_TRAINING) | spec.training))
    torch.manual_seed(training.seed)
    config = _model_config(spec, tokenizer)
    corpus.check(config.max_seq_length)
    training.peak_rate(config)
    _require_room(config, training, torch.device(device))
    model = L1Model(config).to(device)
    with alone(folder / LOCK):
        if not resume:
            _require_free(folder)
            _begin(spec, config, tokenizer, folder)
        say(_in_words(config, corpus, device))
        metrics = train(model, corpus, training, folder, resume, floor, progress=progress)
        metrics |= {"documents": len(documents), "parameters": count_parameters(config)}
        _finish(model, metrics, folder)
    return metrics


def _in_words(config: L1Config, corpus: Corpus, device: torch.device | str) -> str:
    return (
        f"{count_parameters(config):,} parameters, {config.vocab_size:,} tokens in the vocabulary, "
        f"{len(corpus.train):,} to train on, {len(corpus.validation):,} to validate, on {device}"
    )


def _require_free(folder: Path) -> None:
    if (folder / METRICS_FILE).exists():
        raise ValueError(
            f"a run needs a folder of its own, {folder} holds a finished one; choose another (--out), or move it away"
        )
    if (folder / CHECKPOINT_FILE).exists():
        raise ValueError(
            f"a run needs a folder of its own, {folder} holds an unfinished one; go on with it (--resume), choose "
            "another (--out), or move it away"
        )


def _begin(spec: RunSpec, config: L1Config, tokenizer: Tokenizer, folder: Path) -> None:
    write_json(folder / CONFIG_FILE, config.to_dict())
    save_tokenizer(tokenizer, folder)
    files = [str(Path(file).resolve()) for file in spec.files]  # a run may be resumed from elsewhere
    write_json(folder / SPEC_FILE, dataclasses.asdict(spec) | {"files": files})  # last: with it, a run is begun


def _finish(model: L1Model, metrics: dict[str, Any], folder: Path) -> None:
    try:
        save_model(model, folder)
        _draw_curve(metrics, folder)
        write_json(folder / METRICS_FILE, metrics)  # last: a folder with metrics is a finished run
    except OSError as error:
        raise type(error)(f"{error}; all steps are done, and the last checkpoint is in {folder}") from None


def _read_spec(folder: Path) -> RunSpec:
    path = folder / SPEC_FILE
    if not path.exists() and not (folder / CHECKPOINT_FILE).exists():
        raise FileNotFoundError(
            f"to resume, {folder} must hold a {CHECKPOINT_FILE}, or at least the {SPEC_FILE} of a run that was begun; "
            "there is neither"
        )
    values = read_json(path)
    known = {each.name for each in dataclasses.fields(RunSpec)}
    if not isinstance(values, dict) or not values.keys() <= known:
        raise ValueError(f"{path} must hold an object with the fields {', '.join(sorted(known))}, got {values!r:.200}")
    try:
        return RunSpec(**values)
    except ValueError as error:
        raise ValueError(f"{path} must describe a run: {error}") from None


def _require_room(config: L1Config, training: TrainingConfig, device: torch.device) -> None:
    settings = f"{count_parameters(config):,} parameters in {config.n_layers:,} layers"
    needed = 4 * count_parameters(config) + BLOCK_BYTES * config.n_layers
    if device.type == "cpu":  # a GPU says itself what does not fit
        parts = training_memory(config, training.batch_size, DTYPES[training.dtype], training.checkpointing)
        ids = 16 * training.batch_size * training.accumulation * config.max_seq_length
        needed += parts["total"] - parts["parameters"] + ids
        settings += f", batch_size={training.batch_size}, accumulation={training.accumulation}"
    if config.position_encoding == "sinusoidal":
        needed += 32 * config.max_seq_length * config.n_embd
    require_memory(needed, settings)


def _merged(then: RunSpec, now: RunSpec) -> RunSpec:
    files = [str(Path(file).resolve()) for file in now.files] or then.files
    return RunSpec(
        files, now.tokenizer or then.tokenizer, now.preset or then.preset, then.model | now.model,
        then.training | now.training,
    )  # fmt: skip


def _tokenizer_name(spec: RunSpec) -> str:
    return spec.tokenizer or ("chars" if spec.files else "tales")


def _training_tales() -> list[str]:
    """Return the committed training tales, then fresh ones; none of them is in the validation part."""
    held_out = set(tales.load_tales("validation"))
    drawn = tales.generate_tales(N_DRAWN_TALES, DRAWING_SEED)
    return tales.load_tales("train") + [tale for tale in drawn if tale not in held_out]


def _corpus(spec: RunSpec, documents: list[str], tokenizer: Tokenizer) -> tuple[Corpus, float | None]:
    if spec.files:
        return make_corpus(documents, tokenizer), None
    validation = tales.load_tales("validation")
    corpus = make_document_corpus(documents, validation, tokenizer)
    return corpus, tales.entropy_floor(validation, len(corpus.validation) - 1)


def _model_config(spec: RunSpec, tokenizer: Tokenizer) -> L1Config:
    if "vocab_size" in spec.model:
        raise ValueError(f"vocab_size comes from the tokenizer ({tokenizer.vocab_size}), it cannot be set")
    preset = L1Config.preset(spec.preset or "tiny")
    # The inner width follows the width, unless it is set.
    inner = {} if "n_inner" in spec.model else {"n_inner": None}
    config = dataclasses.replace(preset, vocab_size=tokenizer.vocab_size, **(inner | spec.model))
    if "init_std" in spec.model:
        return config
    # GPT-2's 0.02 suits a width of about 1,000; a narrow model learns faster from larger numbers.
    # Source: Nguyen and Salazar 2019, "Transformers without Tears", section 2.2, SmallInit: sqrt(2 / (5 C)).
    return dataclasses.replace(config, init_std=round((2 / (5 * config.n_embd)) ** 0.5, 4))


def _draw_curve(metrics: dict[str, Any], folder: Path) -> None:
    from l1_ref import plots  # matplotlib is slow to import, and only a finished run needs it

    figure = plots.loss_curve(metrics["curve"], metrics["floor"])
    with replacing(folder / "loss.png") as temporary:
        figure.savefig(temporary, format="png")


def continue_text(folder: Path, prompt: str, stored_as: str = "float32", **options: Any) -> Iterator[str]:
    """Continue a prompt with the model of a run.

    Args:
        folder: The run.
        prompt: Text that its tokenizer can encode. Empty starts a new document, where the tokenizer can mark one.
        stored_as: As for `store_for_generation`.
        **options: As for `l1_ref.generation.generate`.

    Returns:
        The continuation, piece by piece, in whole characters.

    Raises:
        OSError: The run cannot be read.
        ValueError: The prompt or an option breaks its rule, or the run is damaged.
    """
    run = load_run(folder, stored_as)
    tokenizer, start = run.tokenizer, run.tokenizer.end_of_text
    knows_documents = start is not None and run.metrics.get("documents", 1) > 1
    ids = ([start] if knows_documents else []) + tokenizer.encode(prompt)
    if not ids:
        raise ValueError("the prompt must hold at least one character, got an empty one")
    if knows_documents:
        options.setdefault("stop_token", start)
    new_ids = stream(run.model, torch.tensor([ids]), **options)  # checks the options at once, not with the first piece
    return stream_text(tokenizer, (id_ for id_ in (int(row[0, 0]) for row in new_ids) if id_ != start))


def rebuild_data(say: Callable[[str], None] = print) -> dict[str, Any]:
    """Make everything in `data/` from nothing: corpus, tokenizer, trained model.

    Args:
        say: Gets a sentence on each part.

    Returns:
        The metrics of the trained model.

    Raises:
        OSError: The folder cannot be written to.
    """
    tales.write_corpus(DATA_DIR)
    documents = tales.load_tales("train")
    tokenizer = BPETokenizer(train_bpe(documents, PRESETS["tiny"].vocab_size - 1))
    save_tokenizer(tokenizer, DATA_DIR)
    say(f"{len(documents)} tales to train on, a vocabulary of {tokenizer.vocab_size} tokens")
    with tempfile.TemporaryDirectory() as run:
        # The committed model began with GPT-2's own initial weights, and the notebooks tell what it learned.
        metrics = train_run(RunSpec(model={"init_std": L1Config().init_std}), Path(run), say=say)
        for name in (CONFIG_FILE, TOKENIZER_FILE, MODEL_FILE, METRICS_FILE):
            write_atomic(DATA_DIR / "tiny" / name, (Path(run) / name).read_bytes())
    return metrics
