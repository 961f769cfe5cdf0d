"""The check of the bug hunt of 08_generation: next_logits."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from l1_ref.attention import KVCache
from l1_ref.checks.caches import toy_model
from l1_ref.checks.compare import Failure
from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe, Property
from l1_ref.checks.observe import OUTPUT, Observation


class ShownCache(KVCache):
    """A cache that a message can show in a few words."""

    def __repr__(self) -> str:
        return f"a cache of {self.length} token{'s' * (self.length != 1)}"


def next_logits(model: nn.Module, ids: Tensor, cache: Any) -> Tensor:
    """Return the scores of the token that follows ids, and leave all ids in the cache.

    Args:
        model: Has `hidden(ids, cache)` and `head`.
        ids: All ids so far, (B, S).
        cache: Has seen the first `cache.length` of them, fewer than S.

    Returns:
        Scores, (B, V).

    Source: Pope et al. 2022, "Efficiently Scaling Transformer Inference", section 2.1.
    """
    return model.head(model.hidden(ids[:, cache.length :], cache)[:, -1])


def _so_far(B: int, known: int, *lengths: int, **settings: Any) -> tuple[Callable, Callable]:
    """Return the builder of a probe and its observer: a cache that knows the first ids, and calls with more and more.

    Args:
        B: Rows.
        known: Number of ids that the cache has seen.
        lengths: Number of ids in each call.
        settings: Of the model's configuration.
    """

    def build(generator: torch.Generator) -> Inputs:
        model = copy.deepcopy(toy_model(generator.initial_seed(), **settings))
        ids = torch.randint(model.config.vocab_size, (B, max(lengths)), generator=generator)
        cache = ShownCache(model.config, B)
        if known:
            with torch.no_grad():
                model.hidden(ids[:, :known], cache)
        return {"model": model, "ids": ids, "cache": cache}

    return build, partial(_observe_next, lengths=lengths)


def _observe_next(
    candidate: Callable, inputs: Inputs, gradient: bool, seed: int, lengths: tuple[int, ...]
) -> Observation:
    """Call with more and more ids and one cache; record the scores, and what goes through the model."""
    model, ids, cache = inputs.values()
    fed: list[int] = []
    model.embedding.register_forward_pre_hook(lambda _, given: fed.append(given[0].numel()))
    seen: Observation = {}
    for call, length in enumerate(lengths, 1):
        mine = ids[:, :length].clone()
        fed.clear()
        try:
            with torch.no_grad():
                output = candidate(model, mine, cache)
        except Exception as error:
            return seen | {OUTPUT: Failure(error)}
        seen[f"the scores, call {call}"] = output.detach().clone() if isinstance(output, Tensor) else output
        seen[f"ids a row that go through the model, call {call}"] = sum(fed) / len(ids)
        seen[f"cache.length afterwards, call {call}"] = cache.length
        if not torch.equal(mine, ids[:, :length]):
            seen["the input ids"] = "changed in place"
    if cache.length == ids.shape[1]:  # else the lengths tell it already
        with torch.no_grad():
            seen["the scores of one step more with this cache"] = model.head(model.hidden(ids[:, :1], cache)[:, -1])
    return seen


def _next(
    model: nn.Module,
    ids: Tensor,
    cache: Any,
    *,
    unseen: Callable[[Tensor, int], Tensor] = lambda ids, length: ids[:, length:],
    place: Callable[[Tensor], Tensor] = lambda hidden: hidden[:, -1],
    read: Callable[[nn.Module, Tensor], Tensor] = lambda model, hidden: model.head(hidden),
    use: Callable[[Any], Any] = lambda cache: cache,
    after: Callable[[Any, Tensor], None] = lambda cache, ids: None,
) -> Tensor:
    """Feed with switches: each mistake sets one, or a few."""
    new = unseen(ids, cache.length)
    scores = read(model, place(model.hidden(new, use(cache))))
    after(cache, new)
    return scores


def _emptied(cache: Any) -> Any:
    cache.length = 0
    return cache


def _move_on(cache: Any, new: Tensor) -> None:
    cache.length += new.shape[1]


def _as_long(cache: Any, new: Tensor) -> None:
    cache.length = new.shape[1]


def _set_back(cache: Any, new: Tensor) -> None:
    cache.length -= new.shape[1]


_ALL = "the cache already holds the first ones: fed again they get new positions, and their keys stand there twice."

_NEXT_PROBES = (
    ("an empty cache, then one token more each time", (1, 0, 3, 4, 5), {"n_layers": 1, "n_heads": 1, "n_embd": 4}),
    ("two rows, and a cache that is three behind", (2, 4, 7, 8, 10), {"n_layers": 2, "n_heads": 2, "n_embd": 8}),
    ("three rows, several new tokens at a time", (3, 0, 2, 5, 9), {"n_layers": 1, "n_heads": 3, "n_embd": 9}),
)


def _next_probe(name: str, numbers: tuple[int, ...], settings: dict[str, int]) -> Probe:
    build, observe = _so_far(*numbers, vocab_size=7, max_seq_length=32, **settings)
    return Probe(name, build, "B V", False, observe=observe)


NEXT_LOGITS = Exercise(
    name="next_logits",
    notebook="08_generation",
    reference=next_logits,
    probes=tuple(_next_probe(*each) for each in _NEXT_PROBES),
    mistakes=(
        Mistake(
            "the whole sequence is fed each time",
            _ALL,
            partial(_next, unseen=lambda ids, length: ids),
        ),
        Mistake(
            "only the last id is fed, though the cache may be further behind",
            "the ids between are missing then: all from cache.length on are new.",
            partial(_next, unseen=lambda ids, length: ids[:, -1:]),
            (partial(_next, unseen=lambda ids, length: ids[:, -1:] if length else ids),),
        ),
        Mistake(
            "one id is fed again",
            "the cache holds places 0 to length - 1: the first new id stands at place `length`.",
            partial(_next, unseen=lambda ids, length: ids[:, max(0, length - 1) :]),
        ),
        Mistake(
            "one id is left out",
            "the cache holds places 0 to length - 1: the first new id stands at place `length`.",
            partial(
                _next, unseen=lambda ids, length: ids[:, length + 1 :] if ids.shape[1] > length + 1 else ids[:, -1:]
            ),
            (partial(_next, unseen=lambda ids, length: ids[:, length + 1 :]),),
        ),
        Mistake(
            "the ids that the cache knows are fed, not the new ones",
            "ids[:, n:] begins at place n; ids[:, :n] ends before it.",
            partial(_next, unseen=lambda ids, length: ids[:, :length] if length else ids),
            (partial(_next, unseen=lambda ids, length: ids[:, :length]),),
        ),
        Mistake(
            "the cache is not used",
            "the scores are right, but all is computed anew each time, and the cache stays as it was.",
            partial(_next, unseen=lambda ids, length: ids, use=lambda cache: None),
        ),
        Mistake(
            "the cache is not used, and its length is moved all the same",
            "length then promises tokens that the cache does not hold: whoever goes on with it meets empty places.",
            partial(_next, unseen=lambda ids, length: ids, use=lambda cache: None, after=_as_long),
        ),
        Mistake(
            "the cache is not handed to the model, though only new ids are fed",
            "the new ids then know nothing of those before them.",
            partial(_next, use=lambda cache: None),
            (partial(_next, use=lambda cache: None, after=_move_on),),
        ),
        Mistake(
            "the cache is emptied, and everything is fed again",
            "that is right, and as slow as no cache at all.",
            lambda model, ids, cache: _next(model, ids, cache, unseen=lambda ids, length: ids, use=_emptied),
        ),
        Mistake(
            "length is moved on a second time",
            "model.hidden moves it already.",
            partial(_next, after=_move_on),
        ),
        Mistake(
            "length is set back afterwards",
            "the cache has seen the ids now: it stays where the model moved it.",
            partial(_next, after=_set_back),
        ),
        Mistake(
            "the scores behind the first of the new ids come back",
            "the next token follows the last one.",
            partial(_next, place=lambda hidden: hidden[:, 0]),
        ),
        Mistake(
            "the scores behind every new id come back",
            "the last place is enough: (B, V).",
            partial(_next, place=lambda hidden: hidden),
            (partial(_next, place=lambda hidden: hidden[:, -1:]),),
        ),
        Mistake(
            "the last row comes back, not the last place",
            "hidden is (B, T, C): write [:, -1].",
            partial(_next, place=lambda hidden: hidden[-1]),
        ),
        Mistake(
            "hidden states come back, not scores: the head is missing",
            "model.head turns each vector of width C into V scores.",
            partial(_next, read=lambda model, hidden: hidden),
        ),
        Mistake(
            "probabilities come back, not scores",
            "temperature and the filters work on scores; softmax comes last.",
            partial(_next, read=lambda model, hidden: model.head(hidden).softmax(-1)),
            (partial(_next, read=lambda model, hidden: model.head(hidden).log_softmax(-1)),),
        ),
        Mistake(
            "an id comes back, not scores",
            "choosing is the caller's.",
            partial(_next, read=lambda model, hidden: model.head(hidden).argmax(-1, keepdim=True)),
            (partial(_next, read=lambda model, hidden: model.head(hidden).argmax(-1)),),
        ),
        Mistake(
            "the last norm is applied once more",
            "model.hidden ends with it already.",
            partial(_next, read=lambda model, hidden: model.head(model.norm(hidden))),
        ),
    ),
    properties=(
        Property(
            "the scores are those of a model without a cache",
            lambda f, model, ids, cache: torch.allclose(f(model, ids, cache), model(ids)[:, -1], atol=1e-5),
        ),
    ),
    hints=(
        "Print cache.length after each step, beside the number of ids. What should the two have to do with each other?",
        "The cache knows how many it has seen. Which ids are left for the model?",
        "Plan: cut ids along time from cache.length on; hidden with the cache; the last place; the head.",
    ),
)

EXERCISES = (NEXT_LOGITS,)
