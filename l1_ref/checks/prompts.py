"""Models and prompts for the check of `generate`: greedy texts that are known, rows that stop, and sure chances."""

import copy
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from l1_ref.checks.caches import toy_model
from l1_ref.checks.engine import Inputs
from l1_ref.transformer import L1Model

SETTINGS = ("temperature", "top_k", "top_p", "stop_token", "generator")
_CONFIG = {
    "vocab_size": 9,
    "max_seq_length": 16,
    "n_layers": 1,
    "n_heads": 2,
    "n_embd": 12,
    "dropout": 0.0,
    "tie_weights": False,
}
NARROW = {"max_seq_length": 5}
_GAP = 0.02  # between the two highest scores, so that no rounding changes a greedy text


@lru_cache(maxsize=64)
def _author(seed: int, **config: Any) -> L1Model:
    """Build a model whose greedy texts are varied, and depend on all that it sees."""
    model = copy.deepcopy(toy_model(seed, **(_CONFIG | config)))
    with torch.no_grad():
        model.embedding.position.weight *= 2
        for block in model.blocks:
            block.attention.qkv.weight[: 2 * model.config.n_embd] *= 1.7
            block.attention.proj.weight *= 3
    return model


@torch.no_grad()
def _greedy_texts(model: L1Model, ids: Tensor, n: int) -> Tensor:
    """Continue prompts greedily, and leave out those where two scores are nearly the same."""
    gap = torch.full((len(ids),), math.inf)
    for _ in range(n):
        best = model(ids[:, -model.config.max_seq_length :])[:, -1].topk(2)
        gap = gap.minimum(best.values[:, 0] - best.values[:, 1])
        ids = torch.cat((ids, best.indices[:, :1]), 1)
    return ids[gap > _GAP]


@lru_cache(maxsize=256)
def _texts(seed: int, B: int, T: int, n: int, **config: Any) -> tuple[int, Tensor]:
    """Return the seed of a model, and prompts whose greedy continuations differ from each other."""
    while True:
        model = _author(seed, **config)
        ids = torch.randint(model.config.vocab_size, (8 * B, T), generator=torch.Generator().manual_seed(seed))
        texts = {tuple(text[T:]): text for text in _greedy_texts(model, ids, n).tolist()}
        if len(texts) >= B:
            return seed, torch.tensor(list(texts.values())[:B])
        seed += 7919  # this model writes too much alike: take another


def prompts(
    B: int, T: int, max_new_tokens: int, *settings: Any, training: bool = False, **config: Any
) -> Callable[[torch.Generator], Inputs]:
    """Return the builder of a probe: a model, prompts, and settings in the order of the call.

    Args:
        B: Rows.
        T: Length of the prompts.
        max_new_tokens: As for `generate`.
        settings: What follows it in the call.
        training: Whether the model comes in training mode.
        config: Of the model, where it is not the usual one.
    """

    def build(generator: torch.Generator) -> Inputs:
        seed, texts = _texts(generator.initial_seed(), B, T, max(1, max_new_tokens), **config)
        model = copy.deepcopy(_author(seed, **config)).train(training)
        return _named(model, texts[:, :T].clone(), max_new_tokens, *settings)

    return build


def _named(*values: Any) -> Inputs:
    return dict(zip(("model", "ids", "max_new_tokens", *SETTINGS), values, strict=False))


@lru_cache(maxsize=64)
def _stopping(seed: int, plan: tuple, n: int, stop: int | None, place: int, T: int = 3) -> tuple[int, Tensor, int]:
    """Find prompts whose greedy continuations draw a stop token at given steps, and go on with other tokens.

    Args:
        seed: Where the search begins.
        plan: The step of each row, counted from 1; None where it never comes within n.
        n: Number of steps.
        stop: The stop token, which then stands in each prompt; any, and in no prompt, where None.
        place: Where in the prompt.
        T: Length of a prompt.

    Returns:
        The seed of the model, the prompts and the stop token.
    """
    V = _CONFIG["vocab_size"]
    while True:
        ids = torch.randint(V, (250, T), generator=torch.Generator().manual_seed(seed))
        if stop is not None:
            ids[:, place] = stop
        texts = _greedy_texts(_author(seed), ids, n)
        for token in range(1, V) if stop is None else [stop]:
            rows = [_with_stop(texts, token, step, n, T, anywhere=stop is not None) for step in plan]
            if all(map(len, rows)):
                return seed, torch.stack([found[0] for found in rows])[:, :T], token
        seed += 7919


def _with_stop(texts: Tensor, token: int, step: int | None, n: int, T: int, anywhere: bool) -> Tensor:
    """Return the texts that draw the token at this step alone, or never where that is None."""
    came = texts[:, T : T + n] == token
    fits = ~came.any(1) if step is None else came[:, step - 1] & (came.sum(1) == 1)
    return texts[fits] if anywhere else texts[fits & ~(texts[:, :T] == token).any(1)]


def stops(
    *plan: int | None, n: int, stop: int | None = None, place: int = 0, training: bool = False
) -> Callable[[torch.Generator], Inputs]:
    """Return the builder of a probe: prompts whose rows draw the stop token at these steps.

    Args:
        plan: The step of each row, counted from 1; None where it never comes.
        n: Number of steps.
        stop: The stop token, which then stands in each prompt; any, and in no prompt, where None.
        place: Where in the prompt.
        training: Whether the model comes in training mode.
    """

    def build(generator: torch.Generator) -> Inputs:
        seed, ids, token = _stopping(generator.initial_seed(), plan, n, stop, place)
        model = copy.deepcopy(_author(seed)).train(training)
        return _named(model, ids.clone(), n, 0.0, None, None, token)

    return build


def loaded(chances: Sequence[float], *settings: Any, B: int = 1, n: int = 1) -> Callable[[torch.Generator], Inputs]:
    """Return the builder of a probe: a model that expects the same at every place, and a short prompt.

    Args:
        chances: Of the next token, whatever stands before it; the order of the ids is drawn.
        settings: What follows the number of new tokens in the call.
        B: Rows, all with the same prompt.
        n: Number of new tokens.
    """

    def build(generator: torch.Generator) -> Inputs:
        V = len(chances)
        model = copy.deepcopy(toy_model(0, **(_CONFIG | {"vocab_size": V})))
        order = torch.randperm(V, generator=generator)
        with torch.no_grad():
            model.norm.weight.zero_()
            model.norm.bias.copy_(torch.eye(_CONFIG["n_embd"])[0])
            model.head.weight[order, 0] = torch.tensor(chances).log() + 4.0
        return _named(model, torch.randint(V, (1, 2), generator=generator).repeat(B, 1), n, *settings)

    return build
