"""Weights on disk: save and load our own as safetensors, and take GPT-2's in and out."""

import json
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from l1_ref.config import L1Config
from l1_ref.downloads import fetch
from l1_ref.files import read_json, replacing, write_json
from l1_ref.linear import is_stored_in_few_bits, store_for_generation
from l1_ref.tokenizer import Tokenizer, load_tokenizer
from l1_ref.transformer import L1Model, count_parameters

MODEL_FILE, CONFIG_FILE, METRICS_FILE = "model.safetensors", "config.json", "metrics.json"
_STATE = "state"  # the entry of the header with checksum and state


def write_tensors(path: Path, tensors: dict[str, Tensor], state: dict[str, Any] | None = None) -> None:
    """Write named tensors, and a state that JSON can hold, as one safetensors file: whole or not at all.

    The header holds a checksum of all that is in the file, by which `read_tensors` knows damage.

    Args:
        path: The file.
        tensors: Saved from the CPU; no two may share memory.
        state: Kept in the file's header.

    Raises:
        OSError: The file cannot be written; an older one stays as it was.
    """
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(state)
    # One entry: of several, safetensors would write any first, and equal weights would make unequal files.
    metadata = {_STATE: f"{_checksum(on_cpu, text)} {text}"}
    with replacing(path) as temporary:
        try:
            save_file(on_cpu, temporary, metadata)
        except SafetensorError as error:  # how safetensors reports a full disk
            reason = re.search(r"I/O error: (.*?) \(os error", str(error))
            raise OSError(f"cannot write {path}: {reason[1] if reason else error}") from None


def _checksum(tensors: dict[str, Tensor], text: str) -> str:
    checksum = zlib.crc32(text.encode())
    for name, tensor in sorted(tensors.items()):
        checksum = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), checksum)
        if tensor.numel():
            checksum = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy(), checksum)
    return f"{checksum:08x}"


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Read what `write_tensors` wrote.

    Raises:
        OSError: There is no such file, or it cannot be read.
        ValueError: The file is cut short or damaged, or is no safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights must be a safetensors file, found none at {path}")
    try:
        path.open("rb").close()  # safetensors would call a file that is kept from us missing
    except OSError as error:
        raise type(error)(f"cannot read {path}: {error.strerror}") from None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
            entry = (file.metadata() or {}).get(_STATE)
        if entry is None:  # another program's
            return tensors, None
        checksum, _, text = entry.partition(" ")
        if checksum != _checksum(tensors, text):
            raise ValueError("its checksum does not fit, so it was changed or damaged since it was written")
        return tensors, json.loads(text)
    except Exception as error:  # whatever the parsers meet in bytes from anywhere
        raise ValueError(f"weights must be a whole safetensors file, {path} is not: {error}") from None


def assign_parameters(model: nn.Module, tensors: dict[str, Tensor], origin: str | Path) -> None:
    """Copy tensors into the parameters of the same name; every name and shape must fit.

    Args:
        model: A parameter that is shared is expected once, under its first name.
        tensors: Values by name.
        origin: Where they come from, for the error.

    Raises:
        ValueError: They do not fit, as `check_parameters` has it; nothing is changed then.
    """
    check_parameters(model, tensors, origin)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name])


def check_parameters(model: nn.Module, tensors: dict[str, Tensor], origin: str | Path) -> None:
    """Refuse tensors that cannot be a model's parameters.

    Args:
        model: A parameter that is shared is expected once, under its first name.
        tensors: Values by name.
        origin: Where they come from, for the error.

    Raises:
        ValueError: A name is missing, unknown, or has another shape; or a value is no finite number.
    """
    parameters = dict(model.named_parameters())
    missing, unknown = sorted(parameters.keys() - tensors.keys()), sorted(tensors.keys() - parameters.keys())
    if missing or unknown:
        raise ValueError(
            f"the weights of {origin} must have the model's names; "
            f"missing {missing[:3] or 'none'} ({len(missing)}), unknown {unknown[:3] or 'none'} ({len(unknown)})"
        )
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise ValueError(
                f"{name} of {origin} must have shape {tuple(parameter.shape)}, got {tuple(tensors[name].shape)}"
            )
        if not tensors[name].is_floating_point():
            raise ValueError(f"{name} of {origin} must hold floating-point numbers, got {tensors[name].dtype}")
        if not tensors[name].float().isfinite().all():
            raise ValueError(f"{name} of {origin} must hold finite numbers, got inf or nan")


def save_model(model: L1Model, folder: str | Path) -> None:
    """Write a model's weights and its configuration.

    Args:
        model: The model.
        folder: Made where it does not exist; gets `model.safetensors` and `config.json`.

    Raises:
        OSError: The folder cannot be written to.
        ValueError: The model was stored in fewer bits; nothing is written.

    Example:
        >>> import tempfile
        >>> model, ids = L1Model(L1Config.preset("tiny")), torch.tensor([[1, 2, 3]])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_model(model, folder)
        ...     again = load_model(folder)
        >>> torch.allclose(again(ids), model(ids), atol=1e-5)
        True
    """
    if is_stored_in_few_bits(model):
        raise ValueError("a model must be saved in float32; this one was stored in fewer bits, for generation alone")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / MODEL_FILE, dict(model.named_parameters()))
    write_json(folder / CONFIG_FILE, model.config.to_dict())


def load_config(folder: str | Path) -> L1Config:
    """Read the configuration of a model.

    Raises:
        FileNotFoundError: The folder has no `config.json`.
        ValueError: It is no configuration of ours.
    """
    path = Path(folder) / CONFIG_FILE
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(values).__name__}")
    try:
        return L1Config.from_dict(values)
    except ValueError as error:
        raise ValueError(f"{path} must hold an L1Config: {error}") from None


def load_model(folder: str | Path, stored_as: str = "float32") -> L1Model:
    """Read what `save_model` wrote; the model comes in eval mode, stored for generation.

    Args:
        folder: Holds `model.safetensors` and `config.json`.
        stored_as: As for `store_for_generation`; in fewer bits than float32 the model can only generate.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is cut short, or belongs to another model.

    Example:
        >>> model = load_model(DATA_DIR / "tiny")  # trained on the course's tales
        >>> model.config == L1Config.preset("tiny"), model.training
        (True, False)
    """
    config = load_config(folder)
    path = Path(folder) / MODEL_FILE
    tensors, _ = read_tensors(path)
    n_parameters, n_found = count_parameters(config), sum(tensor.numel() for tensor in tensors.values())
    if n_parameters > 4 * n_found + 100_000:  # told before so large a model is built
        raise ValueError(
            f"{Path(folder) / CONFIG_FILE} must belong to {path}, got {n_parameters:,} parameters and "
            f"{n_found:,} weights"
        )
    table = config.max_seq_length * config.n_embd if config.position_encoding == "sinusoidal" else 0
    require_memory(32 * table + 4 * n_parameters, f"max_seq_length={config.max_seq_length}, n_embd={config.n_embd}")
    model = L1Model(config)
    assign_parameters(model, tensors, path)
    return store_for_generation(model, stored_as).eval()


def require_memory(n_bytes: int, settings: str) -> None:
    """Refuse what cannot fit into this machine's memory, before the machine is brought to a standstill.

    Args:
        n_bytes: What is needed.
        settings: What asks for it, for the error.

    Raises:
        ValueError: The machine has less.
    """
    try:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows does not say; no machine of a reader has this much
        available = 2**42
    if n_bytes > available:
        raise ValueError(
            f"the memory must hold at least {n_bytes / 1e9:,.1f} GB for {settings}; this machine has "
            f"{available / 1e9:,.1f} GB"
        )


@dataclass(frozen=True)
class Run:
    """A finished training run: what `l1 train` leaves in its folder.

    Args:
        model: The trained model, in eval mode.
        tokenizer: What its ids mean.
        metrics: The contents of `metrics.json`.
    """

    model: L1Model
    tokenizer: Tokenizer
    metrics: dict[str, Any]


def load_run(folder: str | Path, stored_as: str = "float32") -> Run:
    """Read a training run.

    Args:
        folder: Holds `model.safetensors`, `config.json`, `tokenizer.json` and `metrics.json`.
        stored_as: As for `load_model`.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, or they do not belong together.

    Example:
        >>> run = load_run(DATA_DIR / "tiny")
        >>> ids = torch.tensor([run.tokenizer.encode("One sunny morning")])
        >>> run.tokenizer.decode(run.model.generate(ids, max_new_tokens=20)[0]).startswith("One sunny morning")
        True
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"a run must be a folder that `l1 train` wrote, found none at {folder}")
    model, tokenizer = load_model(folder, stored_as), load_tokenizer(folder)
    if tokenizer.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"tokenizer and model of {folder} must have one vocabulary, "
            f"got {tokenizer.vocab_size} and {model.config.vocab_size} tokens"
        )
    return Run(model, tokenizer, _load_metrics(folder / METRICS_FILE))


def _load_metrics(path: Path) -> dict[str, Any]:
    metrics = read_json(path)
    if not isinstance(metrics, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(metrics).__name__}")
    documents = metrics.get("documents", 1)
    if isinstance(documents, bool) or not isinstance(documents, int) or documents < 1:
        raise ValueError(f"documents of {path} must be a whole number of at least 1, got {documents!r}")
    return metrics


# Our name of each part of a block, and GPT-2's.
_BLOCK_NAMES = {
    "norm_1": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.proj": "attn.c_proj",
    "norm_2": "ln_2",
    "feed_forward.fc": "mlp.c_fc",
    "feed_forward.proj": "mlp.c_proj",
}


def _gpt2_names(n_layers: int) -> dict[str, str]:
    """Return GPT-2's name of each of our parameters, but for the head."""
    names = {"embedding.token.weight": "wte.weight", "embedding.position.weight": "wpe.weight"}
    parts = {f"blocks.{i}.{ours}": f"h.{i}.{theirs}" for i in range(n_layers) for ours, theirs in _BLOCK_NAMES.items()}
    for ours, theirs in (parts | {"norm": "ln_f"}).items():
        names |= {f"{ours}.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias")}
    return names


def _turned(name: str, tensor: Tensor) -> Tensor:
    """Transpose the matrices that GPT-2 stores as (in, out) and `nn.Linear` as (out, in)."""
    return tensor.t() if tensor.ndim == 2 and name.startswith("blocks.") else tensor


def from_gpt2(state_dict: dict[str, Tensor], n_heads: int, dropout: float = 0.1) -> L1Model:
    """Build our model from GPT-2's weights under their Hugging Face names.

    Args:
        state_dict: Of `GPT2Model` or `GPT2LMHeadModel`; masks kept as buffers are passed over.
        n_heads: Number of heads, which the weights do not tell (12 for GPT-2 small).
        dropout: Of our model.

    Returns:
        A model in eval mode.

    Raises:
        ValueError: A weight is missing, unknown or of the wrong shape.

    Example:
        >>> model, ids = L1Model(L1Config.preset("tiny")), torch.tensor([[1, 2, 3]])
        >>> again = from_gpt2(to_gpt2(model), n_heads=4)
        >>> torch.allclose(again(ids), model(ids), atol=1e-5)
        True

    Source: Radford et al. 2019.
    """
    theirs = {name.removeprefix("transformer."): tensor for name, tensor in state_dict.items()}
    theirs = {name: t for name, t in theirs.items() if not name.endswith((".attn.bias", ".attn.masked_bias"))}
    n_layers = len({name.split(".")[1] for name in theirs if name.startswith("h.")})
    needed = ("wte.weight", "wpe.weight", "h.0.mlp.c_fc.weight")
    absent = [name for name in needed if name not in theirs]
    if absent:
        raise ValueError(f"a GPT-2 state dict must hold {', '.join(needed)}; missing {', '.join(absent)}")
    for name in needed:
        if theirs[name].ndim != 2:
            raise ValueError(f"{name} of a GPT-2 state dict must have two axes, got shape {tuple(theirs[name].shape)}")
    head = theirs.pop("lm_head.weight", theirs["wte.weight"])
    tied = torch.equal(head, theirs["wte.weight"])
    (V, C), T, F_ = theirs["wte.weight"].shape, len(theirs["wpe.weight"]), theirs["h.0.mlp.c_fc.weight"].shape[1]
    model = L1Model(L1Config(V, T, n_layers, n_heads, C, F_, dropout, tie_weights=tied))
    ours_of = {theirs_: ours for ours, theirs_ in _gpt2_names(n_layers).items()}
    ours = {ours_of.get(name, name): _turned(ours_of.get(name, name), tensor) for name, tensor in theirs.items()}
    assign_parameters(model, ours if tied else ours | {"head.weight": head}, "the GPT-2 state dict")
    return model.eval()


def to_gpt2(model: L1Model) -> dict[str, Tensor]:
    """Return a model's weights under the names of Hugging Face's `GPT2LMHeadModel`: the way back of `from_gpt2`.

    Args:
        model: With learned positions.

    Raises:
        ValueError: The model has sinusoidal positions, which GPT-2 does not.

    Example:
        >>> weights = to_gpt2(L1Model(L1Config.preset("tiny")))
        >>> weights["transformer.h.0.attn.c_attn.weight"].shape  # (in, out), where nn.Linear has (out, in)
        torch.Size([128, 384])
    """
    if model.config.position_encoding != "learned":
        raise ValueError(f"GPT-2 has learned positions, got position_encoding={model.config.position_encoding!r}")
    ours = model.state_dict()
    names = _gpt2_names(model.config.n_layers)
    theirs = {f"transformer.{name}": _turned(our, ours[our]).contiguous() for our, name in names.items()}
    return theirs | {"lm_head.weight": ours["head.weight"]}


def load_gpt2(source: str | Path, n_heads: int | None = None, stored_as: str = "float32") -> L1Model:
    """Load GPT-2's weights from a folder, a safetensors file, or by their Hugging Face name; stored for generation.

    Args:
        source: A folder with `model.safetensors` and `config.json`; a safetensors file; or a name, such as "gpt2" or
            "openai-community/gpt2-medium", which is downloaded once into `~/.cache/l1`.
        n_heads: Number of heads; by default what the `config.json` beside the weights says, else C / 64, GPT-2's rule.
        stored_as: As for `load_model`.

    Raises:
        FileNotFoundError: There is no such folder or file.
        OSError: The download failed; the message says what to do instead.
        ValueError: These are not GPT-2's weights.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> weights = to_gpt2(L1Model(L1Config.preset("tiny")))
        >>> del weights["lm_head.weight"]  # tied: it is the token embedding's
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file(weights, f"{folder}/model.safetensors")
        ...     load_gpt2(folder, n_heads=4).config.n_layers
        2
    """
    path = Path(source)
    if not path.exists():
        if path.suffix or path.is_absolute() or str(source).count("/") > 1:
            raise FileNotFoundError(f"GPT-2's weights must be a folder, a file or a Hugging Face name, got {source}")
        path = _download_gpt2(str(source))
    if path.is_dir():
        path = path / MODEL_FILE
    tensors, _ = read_tensors(path)
    config = read_json(path.parent / CONFIG_FILE) if (path.parent / CONFIG_FILE).is_file() else {}
    if not isinstance(config, dict):
        raise ValueError(f"{path.parent / CONFIG_FILE} must hold a JSON object, got {type(config).__name__}")
    if config.get("model_type", "gpt2") != "gpt2":
        raise ValueError(f"{path.parent / CONFIG_FILE} must say model_type gpt2, got {config['model_type']!r}")
    width = next((len(tensor) for name, tensor in tensors.items() if name.endswith("ln_f.weight")), 64)
    return store_for_generation(from_gpt2(tensors, n_heads or config.get("n_head") or max(1, width // 64)), stored_as)


def _download_gpt2(name: str) -> Path:
    repository = name if "/" in name else f"openai-community/{name}"
    path = Path.home() / ".cache" / "l1" / repository.replace("/", "--") / MODEL_FILE
    if not path.is_file():
        instead = "give its folder to load_gpt2"
        fetch(f"https://huggingface.co/{repository}/resolve/main/{MODEL_FILE}", path, None, instead)
    return path
