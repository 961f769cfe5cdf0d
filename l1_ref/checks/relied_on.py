"""What a check relies on, as it stands now: the guard compares it with how it stood before the student's code ran."""

import builtins
import copy
import inspect
import math
import sys
import types
from typing import Any

import torch
from torch import Tensor, nn

# IPython puts its own in these places.
_FRONT_ENDS = "input exit quit help display get_ipython breakpoint copyright credits license".split()
_TORCH = "allclose equal isclose isfinite isnan randn tensor stack cat zeros Generator enable_grad no_grad autograd nn"
_TENSOR = """
double float abs all any eq ne sub mul sum max min item tolist clone detach isnan isfinite to copy_ argmax masked_fill
nan_to_num is_floating_point requires_grad_ shape dtype device __eq__ __ne__ __sub__ __mul__ __bool__
""".split()
SHOWING = {"__repr__", "__str__", "__format__", "_repr_html_", "extra_repr", "_get_name"}  # no check relies on these


def standing() -> dict[str, Any]:
    """Return, by name, what checks rely on: the course's functions and classes, and some of torch and Python."""
    from l1_ref.checks import EXERCISES

    found: dict[str, Any] = {}
    for module in [each for name, each in sys.modules.items() if name.split(".")[0] == "l1_ref"]:
        found |= {f"{module.__name__}.{name}": thing for name, thing in vars(module).items() if _is_relied_on(thing)}
    for name, thing in list(found.items()):
        found |= _parts(name, thing)
    for name, exercise in EXERCISES.items():
        found |= {f"checks.{name}": exercise, f"checks.{name}.__class__": type(exercise)}
        found |= {f"checks.{name}.{part}": each for part, each in vars(exercise).items()}
    found |= {f"torch.{name}": getattr(torch, name, None) for name in _TORCH.split()}
    found |= {f"torch.Tensor.{name}": inspect.getattr_static(Tensor, name) for name in _TENSOR}
    modules = {name: thing for name, thing in vars(nn.Module).items() if callable(thing) and name not in SHOWING}
    found |= {f"nn.Module.{name}": thing for name, thing in modules.items()}
    found |= {f"math.{name}": thing for name, thing in vars(math).items() if callable(thing)}
    found |= {
        name: thing
        for name, thing in vars(builtins).items()
        if callable(thing) and name not in _FRONT_ENDS and (name[0] != "_" or name in ("__import__", "__build_class__"))
    }
    return found | {"torch.autograd.grad": torch.autograd.grad, "copy.deepcopy": copy.deepcopy}


def _is_relied_on(thing: Any) -> bool:
    return isinstance(thing, types.FunctionType | types.BuiltinFunctionType | types.ModuleType | type)


def _parts(name: str, thing: Any) -> dict[str, Any]:
    """Return what a function or a class of the course's is made of, by name."""
    if isinstance(thing, types.FunctionType) and str(thing.__module__).startswith("l1_ref"):
        return {f"{name}.{part}": getattr(thing, part) for part in ("__code__", "__defaults__", "__kwdefaults__")}
    if isinstance(thing, type) and str(thing.__module__).startswith("l1_ref"):
        members = vars(thing).items()
        found = {f"{name}.{key}": each for key, each in members if callable(each) or isinstance(each, property)}
        codes = {key: each.__code__ for key, each in found.items() if isinstance(each, types.FunctionType)}
        return found | {f"{key}.__code__": code for key, code in codes.items()}
    return {}
