"""Checkpoints: all that a run needs to go on exactly where it was, in one file that is whole or absent."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from l1_ref.config import is_number
from l1_ref.weights import assign_parameters, check_parameters, read_tensors, write_tensors

CHECKPOINT_FILE = "checkpoint.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
# What the state of a run holds beside its settings.
_STATE = {
    "step": int, "elapsed_s": float, "curve": list, "losses": list, "scaler": dict, "model": dict, "training": dict,
    "corpus": str,
}  # fmt: skip
_POINT = ("step", "tokens", "training_loss", "validation_loss")


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
    parameters = dict(model.named_parameters())
    check_parameters(model, by_kind["model"], path)
    trainable = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    _check_moments({kind: found for kind, found in by_kind.items() if kind != "model"}, trainable, path)
    assign_parameters(model, by_kind["model"], path)
    for name in by_kind["exp_avg"]:
        # Beside the parameter, where AdamW's fused kernel wants its step counter; copied, so that the file is let go.
        device = parameters[name].device
        moments = {moment: by_kind[moment][name].to(device, copy=True) for moment in _MOMENTS}
        optimizer.state[parameters[name]] = moments
    return state


def _check_moments(moments: dict[str, dict[str, Tensor]], parameters: dict[str, nn.Parameter], path: Path) -> None:
    for moment, found in moments.items():
        if (
            moment not in _MOMENTS
            or found.keys() not in (set(), parameters.keys())
            or len(found) != len(moments["step"])
        ):
            raise ValueError(
                f"{path} must hold {', '.join(_MOMENTS)} of every trainable parameter or of none, got {moment} of "
                f"{len(found)} for {len(parameters)}"
            )
        for name, tensor in found.items():
            parameter = parameters[name]
            kind = (torch.float32, ()) if moment == "step" else (parameter.dtype, tuple(parameter.shape))
            if (tensor.dtype, tuple(tensor.shape)) != kind:
                raise ValueError(
                    f"{moment} of {name} in {path} must be {kind[0]} of shape {kind[1]}, got {tensor.dtype} of shape "
                    f"{tuple(tensor.shape)}"
                )


def _read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = Path(folder) / CHECKPOINT_FILE
    if not path.is_file():
        raise FileNotFoundError(f"to resume, {folder} must hold a {CHECKPOINT_FILE}; there is none")
    tensors, state = read_tensors(path)
    if not isinstance(state, dict) or not _STATE.keys() <= state.keys():
        raise ValueError(f"{path} must be a checkpoint that `l1 train` wrote; its header holds no state of a run")
    for name, kind in _STATE.items():
        if not isinstance(state[name], kind) or (name == "step" and state[name] < 1):
            raise ValueError(f"{name} in {path} must be {kind.__name__}, got {state[name]!r}")
    if not all(map(_is_finite, state["losses"])):
        raise ValueError(f"losses in {path} must be numbers, got {state['losses']!r}")
    for point in state["curve"]:
        whole = isinstance(point, dict) and point.keys() == set(_POINT)
        if not whole or not all(_is_finite(point[name]) for name in _POINT if point[name] is not None):
            raise ValueError(f"a point of the curve in {path} must hold numbers as {', '.join(_POINT)}, got {point!r}")
    return tensors, state


def _is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)
