"""Checkpoints: all that a run needs to go on exactly where it was, in one file that is whole or absent."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from l1_ref.weights import assign_parameters, read_tensors, write_tensors

CHECKPOINT_FILE = "checkpoint.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> Path:
    """Write weights, optimizer moments and the state of the run.

    One file, so that weights and moments can never be from different steps.

    Args:
        folder: The run's folder.
        model: The model in training.
        optimizer: An AdamW over the model's parameters.
        state: Whatever else JSON can hold: the step, the settings, the curve.

    Returns:
        The file.

    Raises:
        OSError: It cannot be written; the last checkpoint stays.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"model/{name}"] = parameter
        for moment in _MOMENTS:
            if moment in optimizer.state[parameter]:
                tensors[f"{moment}/{name}"] = optimizer.state[parameter][moment]
    path = Path(folder) / CHECKPOINT_FILE
    write_tensors(path, tensors, state)
    return path


def read_checkpoint_state(folder: Path) -> dict[str, Any]:
    """Return the state of the run from its last checkpoint.

    Raises:
        FileNotFoundError: There is no checkpoint.
        ValueError: It is damaged, or no checkpoint of a run.
    """
    return _read(folder)[1]


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put weights and optimizer back as `save_checkpoint` found them.

    Args:
        folder: The run's folder.
        model: Gets the weights.
        optimizer: Gets the moments.

    Returns:
        The state that was saved with them.

    Raises:
        FileNotFoundError: There is no checkpoint.
        ValueError: It is damaged, or of another model.
    """
    tensors, state = _read(folder)
    path = Path(folder) / CHECKPOINT_FILE
    by_kind: dict[str, dict[str, Tensor]] = {"model": {}} | {moment: {} for moment in _MOMENTS}
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        by_kind.setdefault(kind, {})[name] = tensor
    assign_parameters(model, by_kind["model"], path)
    for name, parameter in model.named_parameters():
        if name in by_kind["exp_avg"]:
            moments = {moment: by_kind[moment][name] for moment in _MOMENTS}
            # AdamW's fused kernel wants its step counter beside the parameter.
            optimizer.state[parameter] = {moment: value.to(parameter.device) for moment, value in moments.items()}
    return state


def _read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = Path(folder) / CHECKPOINT_FILE
    if not path.is_file():
        raise FileNotFoundError(f"to resume, {folder} must hold a {CHECKPOINT_FILE}; there is none")
    tensors, state = read_tensors(path)
    if not isinstance(state, dict) or not {"step", "curve", "model", "training", "corpus"} <= state.keys():
        raise ValueError(f"{path} must be a checkpoint that `l1 train` wrote; its header holds no state of a run")
    return tensors, state
