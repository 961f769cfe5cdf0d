"""The checks of 03_attention, fourth part: splitting the width into heads, and merging them."""

import math

import torch
from torch import Tensor

from l1_ref import attention as ref
from l1_ref.checks.engine import Exercise, Mistake, Probe, Property


def _hidden(B: int, T: int, C: int, n_heads: int, dtype: torch.dtype = torch.float32):
    """Return the builder of a probe: normal hidden states, and the number of heads."""
    return lambda generator: {
        "x": torch.randn(B, T, C, generator=generator, dtype=torch.float64).to(dtype),
        "n_heads": n_heads,
    }


def _counted(*shape: int) -> Tensor:
    return torch.arange(math.prod(shape)).view(shape).float()


def cut_width(x: Tensor, n_heads: int) -> Tensor:
    """Return (B, T, H, D).

    Args:
        x: Hidden states, (B, T, C).
        n_heads: Number of heads.
    """
    return x.unflatten(-1, (n_heads, x.shape[-1] // n_heads))


_TOKENS_MIXED = "the numbers of several tokens end up in one {} vector: the shape is right, and the text is lost."
_HEAD_AXIS = "attention multiplies the last two axes, tokens and width; batch and heads must both stand in front."

SPLIT_HEADS = Exercise(
    name="split_heads",
    notebook="03_attention",
    reference=ref.split_heads,
    probes=(
        Probe("two tokens of width 4, two heads", lambda generator: {"x": _counted(1, 2, 4), "n_heads": 2}, "B H T D"),
        Probe("a batch", _hidden(2, 3, 20, 4), "B H T D"),
        Probe("all axes alike", _hidden(3, 3, 9, 3), "B H T D"),
        Probe("more tokens than heads", _hidden(3, 8, 4, 2), "B H T D"),
        Probe("one head", _hidden(2, 3, 4, 1), "B H T D"),
        Probe("heads of width 1, float64", _hidden(2, 4, 3, 3, torch.float64), "B H T D"),
    ),
    mistakes=(
        Mistake(
            "the width is not cut: x is viewed or reshaped as (B, H, T, D) at once",
            _TOKENS_MIXED.format("head's"),
            lambda x, n_heads: x.reshape(len(x), n_heads, x.shape[1], -1),
            (
                lambda x, n_heads: x.transpose(1, 2).reshape(len(x), n_heads, x.shape[1], -1),
                lambda x, n_heads: x.reshape(len(x), -1, n_heads, x.shape[1]).permute(0, 2, 3, 1),
            ),
        ),
        Mistake(
            "the heads are interleaved: head h gets every H-th column, not D neighbours",
            "each head's D numbers lie side by side in the width; the weights are stored in that order.",
            lambda x, n_heads: x.unflatten(-1, (-1, n_heads)).permute(0, 3, 1, 2),
        ),
        Mistake(
            "n_heads is taken as the width of a head",
            "n_heads says how many; the width D is what is left, C / n_heads.",
            lambda x, n_heads: x.unflatten(-1, (-1, n_heads)).transpose(1, 2),
        ),
        Mistake(
            "the heads' axis stays behind the tokens: (B, T, H, D)",
            _HEAD_AXIS,
            lambda x, n_heads: cut_width(x, n_heads),
        ),
        Mistake(
            "the heads' axis stands in front of the batch: (H, B, T, D)",
            _HEAD_AXIS,
            lambda x, n_heads: cut_width(x, n_heads).permute(2, 0, 1, 3),
        ),
        Mistake(
            "the last two axes have changed places as well: (B, H, D, T)",
            "that is k's shape inside the product; here every head gets tokens by width.",
            lambda x, n_heads: cut_width(x, n_heads).permute(0, 2, 3, 1),
        ),
        Mistake(
            "batch and heads share one axis",
            "a mask with an axis for the batch, or one for the heads, no longer fits.",
            lambda x, n_heads: cut_width(x, n_heads).transpose(1, 2).flatten(0, 1),
            (lambda x, n_heads: x.reshape(len(x) * n_heads, x.shape[1], -1),),
        ),
        Mistake(
            "the tokens are shared out among the heads, not the width",
            "every head must see the whole text, in a part of the width.",
            lambda x, n_heads: x.reshape(len(x), n_heads, -1, x.shape[2]),
        ),
        Mistake(
            "every head gets the whole width",
            "the heads share the width, so that many of them cost no more than one.",
            lambda x, n_heads: x[:, None].repeat(1, n_heads, 1, 1),
        ),
        Mistake(
            "the heads come back as a tuple or list, not as one tensor",
            "one tensor lets all heads be computed in one product.",
            lambda x, n_heads: x.chunk(n_heads, dim=-1),
            (lambda x, n_heads: list(x.chunk(n_heads, dim=-1)),),
        ),
    ),
    properties=(
        Property(
            "the first token's numbers stay together: read head by head, they are those of x",
            lambda f, x, n_heads: torch.equal(f(x, n_heads)[:, :, 0].flatten(1), x[:, 0]),
        ),
    ),
    hints=(
        "Two steps: cut the last axis in two, then bring the axes into the order (B, H, T, D).",
        "view can cut C into (n_heads, D), because the numbers of a head lie side by side. It must not move tokens: "
        "that takes a transpose. Which two axes change places?",
        "Plan: view as (B, T, n_heads, C // n_heads), then transpose axes 1 and 2.",
    ),
)


def merged(x: Tensor) -> Tensor:
    """Return (B, T, C).

    Args:
        x: Of every head, (B, H, T, D).
    """
    return x.transpose(1, 2).flatten(2)


def _per_head(B: int, H: int, T: int, D: int, dtype: torch.dtype = torch.float32):
    return lambda generator: {"x": torch.randn(B, H, T, D, generator=generator, dtype=torch.float64).to(dtype)}


MERGE_HEADS = Exercise(
    name="merge_heads",
    notebook="03_attention",
    reference=ref.merge_heads,
    probes=(
        Probe("two heads, two tokens, width 2", lambda generator: {"x": _counted(1, 2, 2, 2)}, "B T C"),
        Probe("a batch", _per_head(2, 3, 4, 5), "B T C"),
        Probe("all axes alike", _per_head(3, 3, 3, 3), "B T C"),
        Probe("one head", _per_head(2, 1, 3, 4), "B T C"),
        Probe("one token", _per_head(2, 3, 1, 4), "B T C"),
        Probe("float64", _per_head(2, 4, 3, 1, torch.float64), "B T C"),
    ),
    mistakes=(
        Mistake(
            "x is viewed or reshaped as (B, T, C) at once: the transpose is missing",
            _TOKENS_MIXED.format("token's"),
            lambda x: x.reshape(len(x), x.shape[2], -1),
            (lambda x: x.transpose(2, 3).reshape(len(x), x.shape[2], -1),),
        ),
        Mistake(
            "view cannot follow a transpose",
            "a transpose leaves the numbers where they are; reshape, flatten or contiguous() lay them out anew.",
            lambda x: x.transpose(1, 2).view(len(x), x.shape[2], -1),
        ),
        Mistake(
            "the heads are interleaved: number d of all heads, then number d + 1",
            "split_heads takes D neighbours for a head; merging must put them back side by side.",
            lambda x: x.permute(0, 2, 3, 1).flatten(2),
        ),
        Mistake(
            "the heads' last axis is not merged: the result is (B, T, H, D)",
            "the next layer multiplies the whole width C = H * D at once.",
            lambda x: x.transpose(1, 2),
        ),
        Mistake(
            "the heads are joined along the tokens: (B, H * T, D)",
            "a text of T tokens must stay one of T tokens.",
            lambda x: x.flatten(1, 2),
        ),
        Mistake(
            "the tokens are joined, not the heads: (B, H, T * D)",
            "the axes that belong together, H and D, must stand side by side first.",
            lambda x: x.flatten(2),
        ),
        Mistake(
            "tokens and width have changed places: (B, C, T)",
            "hidden states are (B, T, C) everywhere in the model.",
            lambda x: merged(x).transpose(1, 2),
        ),
        Mistake(
            "batch and tokens have changed places: (T, B, C)",
            "the batch comes first everywhere in the model.",
            lambda x: x.permute(2, 0, 1, 3).flatten(2),
        ),
        Mistake(
            "the batch is merged with the width, not the heads",
            "texts of a batch must not end up in one vector.",
            lambda x: x.permute(1, 2, 0, 3).flatten(2),
        ),
        Mistake(
            "the heads are averaged or added up, not laid side by side",
            "each head found something of its own; proj decides how to mix it.",
            lambda x: x.mean(1),
            (lambda x: x.sum(1),),
        ),
    ),
    properties=(
        Property(
            "splitting what was merged gives the heads back",
            lambda f, x: torch.equal(f(x).unflatten(2, (x.shape[1], -1)).transpose(1, 2), x),
        ),
        Property(
            "what split_heads returns is merged like any other tensor, however it lies in memory",
            lambda f, x: torch.equal(f(ref.split_heads(merged(x), x.shape[1])), f(x)),
        ),
    ),
    hints=(
        "It is split_heads backwards: undo the last step first.",
        "Bring the axes into the order (B, T, H, D); then H and D stand side by side and can become one.",
        "Plan: transpose axes 1 and 2, then flatten from axis 2 on, or reshape to (B, T, H * D).",
    ),
)

EXERCISES = (SPLIT_HEADS, MERGE_HEADS)
