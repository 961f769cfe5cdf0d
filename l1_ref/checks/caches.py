"""The check of 08_generation on caches: KVCache."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from l1_ref.attention import KVCache
from l1_ref.checks.compare import Failure, kind
from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe
from l1_ref.checks.initial import ShownModel
from l1_ref.checks.observe import OUTPUT, Observation, filled
from l1_ref.config import L1Config
from l1_ref.transformer import L1Model

_NEW_LENGTH, _MOVED = "the length of a new cache", "the length after an append"
_STILL, _NOT_STILL = "what it was before", "not what it was before"
_REPLACED = "the number of new tokens, whatever it was before"
_PAIR = "what append returns"


class Chunks(tuple):
    """Numbers of new tokens, step by step."""

    def __repr__(self) -> str:
        return ", then ".join(map(str, self))


class ToyModel(ShownModel):
    """A small model that a message shows with what matters in generation."""

    def __repr__(self) -> str:
        mode = ", in training mode" if self.training else ""
        return f"a model with a context of {self.config.max_seq_length}{mode}"


@lru_cache(maxsize=32)
def toy_model(seed: int, **settings: Any) -> L1Model:
    """Build a model in eval mode with numbers of a moderate size; code gets a copy.

    Args:
        seed: Of the numbers.
        settings: Of its configuration.
    """
    with torch.random.fork_rng(devices=[]):
        return filled(ToyModel(L1Config(**{"dropout": 0.0, **settings})), seed)


# KVCache.


def _steps(batch_size: int, *chunks: int, **settings: Any) -> Callable[[torch.Generator], Inputs]:
    """Return the builder of a probe: what a cache is built with, and how many tokens come in each step."""
    return lambda generator: {
        "config": L1Config(vocab_size=11, **settings),
        "batch_size": batch_size,
        "new_tokens": Chunks(chunks),
    }


def _observe_cache(candidate: Callable, inputs: Inputs, gradient: bool, seed: int) -> Observation:
    """Use a cache as a model does, behind another one that has seen other tokens; record all that it returns."""
    config, batch_size, chunks = inputs.values()
    right: Observation = {_NEW_LENGTH: 0, _MOVED: _STILL}
    seen: Observation = {}
    watched = None
    with _as_defined(candidate):
        try:
            for cache in (candidate(config, batch_size), candidate(config, batch_size)):
                if int(cache.length) != 0:
                    return {_NEW_LENGTH: int(cache.length)}
                seen = {}
                seed += 1
                watched = _Watched(cache)
                _used(watched, config, batch_size, chunks, seed, seen)
                if watched.moved:
                    return {_NEW_LENGTH: 0, _MOVED: watched.moved}
        except Exception as error:
            if watched is not None and watched.moved:
                return {_NEW_LENGTH: 0, _MOVED: watched.moved}
            # What was seen before it counts too: the same step must fail.
            return seen | {OUTPUT: Failure(error)}
    return right | seen


@contextlib.contextmanager
def _as_defined(candidate: Any) -> Iterator[None]:
    """Give a class back what its body holds, as it was: what is shared there would go on into the next probe."""
    attributes = vars(candidate) if isinstance(candidate, type) else {}
    kept = {name: copy.deepcopy(value) for name, value in attributes.items() if isinstance(value, list | dict | Tensor)}
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(candidate, name, value)


def _used(cache: Any, config: L1Config, batch_size: int, chunks: tuple, seed: int, seen: Observation) -> None:
    """Append step by step, layer by layer, and move `length` on after each step."""
    generator = torch.Generator().manual_seed(seed)
    for step, T in enumerate(chunks, 1):
        shape = (2, config.n_layers, batch_size, config.n_heads, T, config.head_width)
        keys, values = torch.randn(shape, generator=generator).unbind()
        for layer in range(config.n_layers):
            k, v = keys[layer].clone(), values[layer].clone()
            _record(cache.append(layer, k, v), f"step {step}, layer {layer}", seen)
            if not (torch.equal(k, keys[layer]) and torch.equal(v, values[layer])):
                seen["the new k and v"] = "changed in place"
        cache.length += T


def _record(returned: Any, where: str, seen: Observation) -> None:
    """Record keys and values; what is no pair of tensors is told by its kind."""
    if returned is None:
        seen[f"{_PAIR}, {where}"] = None
        return
    # A stacked tensor of two is a pair as well: k, v = … takes it apart.
    parts = tuple(returned) if isinstance(returned, tuple | list | Tensor) and len(returned) == 2 else ()
    if not all(isinstance(part, Tensor) for part in parts) or not parts:
        lists = parts and all(isinstance(part, list | tuple) for part in parts)
        seen[f"{_PAIR}, {where}"] = "two lists" if lists else kind(returned)
        return
    seen[f"{_PAIR}, {where}"] = "keys and values"
    for name, part in zip(("keys", "values"), parts, strict=True):
        seen[f"the {name}, {where}"] = part.detach().clone()


class _Watched:
    """Hand everything on to a cache, note whether and how its append moves length, and undo that."""

    def __init__(self, cache: Any):
        self.cache, self.moved = cache, ""

    @property
    def length(self) -> int:
        """Return the cache's own."""
        return self.cache.length

    @length.setter
    def length(self, length: int) -> None:
        self.cache.length = length

    def append(self, layer: int, k: Tensor, v: Tensor) -> Any:
        """Return what the cache returns."""
        before = int(self.cache.length)
        returned = self.cache.append(layer, k, v)
        after = int(self.cache.length)
        if after != before:
            replaced = self.moved == _REPLACED or (before > 0 and after == k.shape[2])
            self.moved = _REPLACED if replaced else _NOT_STILL
            self.cache.length = before
        return returned


def _observe_in_a_model(candidate: Callable, inputs: Inputs, gradient: bool, seed: int) -> Observation:
    """Let the course's model use a cache, and record its scores."""
    config, batch_size, chunks = inputs.values()
    model = copy.deepcopy(toy_model(seed, **_changed(config)))
    ids = torch.randint(config.vocab_size, (batch_size, sum(chunks)), generator=torch.Generator().manual_seed(seed))
    watched = None
    try:
        with torch.no_grad(), _as_defined(candidate):
            watched = _Watched(candidate(config, batch_size))
            if int(watched.length) != 0:
                return {_NEW_LENGTH: int(watched.length)}
            scores = [model.head(model.hidden(chunk, watched)) for chunk in ids.split(list(chunks), dim=1)]
    except Exception as error:
        return {_NEW_LENGTH: 0, _MOVED: watched.moved} if watched and watched.moved else {OUTPUT: Failure(error)}
    if watched.moved:
        return {_NEW_LENGTH: 0, _MOVED: watched.moved}
    right = {_NEW_LENGTH: 0, _MOVED: _STILL, "its length afterwards": int(watched.length)}
    return right | {"the scores of a model that uses the cache": torch.cat(scores, 1)}


def _changed(config: L1Config) -> dict[str, Any]:
    return config.to_dict() | {"dropout": 0.0}


Stored = tuple[Tensor, Tensor]


def _room(config: L1Config, batch_size: int) -> Tensor:
    return torch.zeros(config.n_layers, batch_size, config.n_heads, config.max_seq_length, config.head_width)


class _Cache:
    """A cache in one buffer, with switches: each mistake sets one, or a few."""

    def __init__(
        self,
        config: L1Config,
        batch_size: int,
        *,
        room: Callable = _room,
        start: Callable = lambda length, T: length,
        layer_of: Callable = lambda layer: layer,
        store: Callable = lambda k, v: (k, v),
        read: Callable = lambda keys, values, length, T: (keys[:, :, : length + T], values[:, :, : length + T]),
        moves: Callable = lambda layer, T, config: 0,
        first_length: Any = 0,
    ):
        self.config, self.start, self.layer_of, self.store = config, start, layer_of, store
        self.read, self.moves = read, moves
        self.keys, self.values = room(config, batch_size), room(config, batch_size)
        self.length = first_length

    def append(self, layer: int, k: Tensor, v: Tensor) -> Any:
        """Store, and return what the switch says."""
        length, T, place = self.length, k.shape[2], self.layer_of(layer)
        begin = self.start(length, T)
        self.keys[place][:, :, begin : begin + T], self.values[place][:, :, begin : begin + T] = self.store(k, v)
        self.length += self.moves(layer, T, self.config)
        return self.read(self.keys[place], self.values[place], length, T)


class _Replacing(_Cache):
    """Set length to the number of new tokens."""

    def append(self, layer: int, k: Tensor, v: Tensor) -> Any:
        """Store, and forget how many there were."""
        returned = super().append(layer, k, v)
        self.length = k.shape[2]
        return returned


class _OverHeads(_Cache):
    """Take the number of heads for that of the tokens."""

    def append(self, layer: int, k: Tensor, v: Tensor) -> Any:
        """Store as many tokens as there are heads."""
        end = self.length + k.shape[1]
        self.keys[layer][:, :, self.length : end] = k
        self.values[layer][:, :, self.length : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]


class _Unkept(_Cache):
    """Join the new ones to a store in which nothing is ever put."""

    def append(self, layer: int, k: Tensor, v: Tensor) -> Any:
        """Join, and keep nothing."""
        old = self.keys[layer][:, :, : self.length], self.values[layer][:, :, : self.length]
        return _behind(old[0], k), _behind(old[1], v)


class _OnePlace(_Cache):
    """Write one token of a step, and read as many as came."""

    def append(self, layer: int, k: Tensor, v: Tensor) -> Any:
        """Store the last of the new tokens."""
        self.keys[layer][:, :, self.length], self.values[layer][:, :, self.length] = k[:, :, -1], v[:, :, -1]
        return self.read(self.keys[layer], self.values[layer], self.length, k.shape[2])


class _Joined:
    """A cache that joins old and new tensors, with switches."""

    def __init__(
        self, config: L1Config, batch_size: int, *, join: Callable, keep: Callable = lambda new, joined: joined
    ):
        self.join, self.keep, self.length = join, keep, 0
        self.pairs: dict[int, Stored] = {}

    def append(self, layer: int, k: Tensor, v: Tensor) -> Any:
        """Join, and return both."""
        old = self.pairs.get(layer)
        joined = (k, v) if old is None else (self.join(old[0], k), self.join(old[1], v))
        self.pairs[layer] = self.keep((k, v), joined)
        return joined


class _ForAll:
    """A cache whose store belongs to the class: all caches share it."""

    pairs: ClassVar[dict[int, Stored]] = {}

    def __init__(self, config: L1Config, batch_size: int):
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> Stored:
        """Join in the store of the class."""
        old = self.pairs.get(layer)
        self.pairs[layer] = (k, v) if old is None else (torch.cat([old[0], k], 2), torch.cat([old[1], v], 2))
        return self.pairs[layer]


class _OneStore(_Joined):
    """Join all layers' tensors in one store."""

    def append(self, layer: int, k: Tensor, v: Tensor) -> Any:
        """Join, whatever layer it is."""
        return super().append(0, k, v)


class _FirstStep(_Joined):
    """Remember what came first, and never more."""

    def append(self, layer: int, k: Tensor, v: Tensor) -> Any:
        """Join, and forget the new ones."""
        old = self.pairs.get(layer)
        joined = super().append(layer, k, v)
        self.pairs[layer] = joined if old is None else old
        return joined


class _OneToken(_Joined):
    """Keep one token of each step."""

    def __init__(self, config: L1Config, batch_size: int, *, which: int = 0):
        super().__init__(config, batch_size, join=_behind)
        self.which = which

    def append(self, layer: int, k: Tensor, v: Tensor) -> Any:
        """Join one of the new tokens."""
        return super().append(layer, k[:, :, [self.which]], v[:, :, [self.which]])


class _Listing:
    """Keep the steps in lists, and return these."""

    def __init__(self, config: L1Config, batch_size: int):
        self.steps: dict[int, tuple[list, list]] = {}
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> Any:
        """Return two lists."""
        keys, values = self.steps.setdefault(layer, ([], []))
        keys.append(k)
        values.append(v)
        return keys, values


def _behind(old: Tensor, new: Tensor) -> Tensor:
    return torch.cat([old, new], 2)


def _whole(keys: Tensor, values: Tensor, length: int, T: int) -> Stored:
    return keys, values


def _only_new(keys: Tensor, values: Tensor, length: int, T: int) -> Stored:
    return keys[:, :, length : length + T], values[:, :, length : length + T]


def _only_old(keys: Tensor, values: Tensor, length: int, T: int) -> Stored:
    return keys[:, :, :length], values[:, :, :length]


def _pair(keys: Tensor, values: Tensor, length: int, T: int) -> Stored:
    return keys[:, :, : length + T], values[:, :, : length + T]


def _read(change: Callable[[Tensor, Tensor], Any]) -> Callable:
    """Return a way to read that changes the right pair."""
    return lambda keys, values, length, T: change(*_pair(keys, values, length, T))


class _FirstRow(_Cache):
    """Keep the first sequence of the batch for all."""

    def append(self, layer: int, k: Tensor, v: Tensor) -> Any:
        """Store the first row."""
        return super().append(layer, k[:1].expand_as(k), v[:1].expand_as(v))


KV_CACHE = Exercise(
    name="KVCache",
    notebook="08_generation",
    reference=KVCache,
    observe=_observe_cache,
    probes=(
        Probe("one layer", _steps(1, 1, 1, max_seq_length=4, n_layers=1, n_heads=1, n_embd=2), "B H S D", False),
        Probe(
            "two layers, unequal steps",
            _steps(2, 4, 1, 3, max_seq_length=9, n_layers=2, n_heads=3, n_embd=15),
            "B H S D",
            False,
        ),
        Probe(
            "the whole context",
            _steps(3, 2, 2, 1, max_seq_length=5, n_layers=3, n_heads=2, n_embd=2),
            "B H S D",
            False,
        ),
        Probe(
            "in a model",
            _steps(2, 3, 1, 1, 2, max_seq_length=8, n_layers=2, n_heads=2, n_embd=6),
            "B T V",
            False,
            observe=_observe_in_a_model,
        ),
    ),
    mistakes=(
        Mistake(
            "append moves length",
            "every layer of a step needs the same length; the model moves it, once, when all layers are done.",
            lambda config, batch_size: _Cache(config, batch_size, moves=lambda layer, T, config: T),
            (
                lambda config, batch_size: _Cache(config, batch_size, moves=lambda layer, T, config: T * (layer == 0)),
                lambda config, batch_size: _Cache(
                    config, batch_size, moves=lambda layer, T, config: T * (layer == config.n_layers - 1)
                ),
            ),
        ),
        Mistake(
            "append sets length to the number of new tokens",
            "length counts all tokens that the cache has seen, and it is the model that moves it.",
            _Replacing,
        ),
        Mistake(
            "a new cache has a length other than 0",
            "length counts the tokens that the cache has seen: none yet.",
            lambda config, batch_size: _Cache(config, batch_size, first_length=1),
            (lambda config, batch_size: _Cache(config, batch_size, first_length=config.max_seq_length),),
        ),
        Mistake(
            "each step begins at place 0 again: the old ones are overwritten",
            "the new tokens belong behind the first `length` places.",
            partial(_Cache, start=lambda length, T: 0),
            (
                lambda config, batch_size: _Joined(
                    config, batch_size, join=lambda old, new: torch.cat([new, old[:, :, new.shape[2] :]], 2)
                ),
            ),
        ),
        Mistake(
            "the new tokens are stored one place too far",
            "places are counted from 0: the first free one is `length`.",
            partial(_Cache, start=lambda length, T: length + 1),
        ),
        Mistake(
            "the new tokens are stored one place too early",
            "places are counted from 0: the first free one is `length`.",
            partial(_Cache, start=lambda length, T: max(0, length - 1)),
        ),
        Mistake(
            "the new tokens are always stored at the end of the buffer",
            "attention asks for all so far in one piece, the old ones first.",
            lambda config, batch_size: _Cache(config, batch_size, start=lambda length, T: config.max_seq_length - T),
        ),
        Mistake(
            "all layers share one store",
            "each layer has keys and values of its own.",
            partial(_Cache, layer_of=lambda layer: 0),
            (partial(_OneStore, join=_behind),),
        ),
        Mistake(
            "keys and values are swapped",
            "queries meet keys, and take values: return the keys first.",
            partial(_Cache, store=lambda k, v: (v, k)),
        ),
        Mistake(
            "keys and values come back the same",
            "the two are different projections of a token: each needs a store of its own.",
            partial(_Cache, store=lambda k, v: (k, k)),
            (
                partial(_Cache, store=lambda k, v: (v, v)),
                lambda config, batch_size: _Cache(config, batch_size, read=_read(lambda k, v: (k, k))),
            ),
        ),
        Mistake(
            "only the new keys and values come back",
            "the new queries must meet all keys so far.",
            partial(_Cache, read=_only_new),
        ),
        Mistake(
            "only the old keys and values come back, without the new ones",
            "a token attends to itself too.",
            partial(_Cache, read=_only_old),
        ),
        Mistake(
            "the whole buffer comes back, with the part that is still empty",
            "zeros are keys like any others: each takes its share of the attention.",
            partial(_Cache, read=_whole),
        ),
        Mistake(
            "keys come back whole, but values do not, or the other way round",
            "each weight needs its value: both have length + T entries.",
            lambda config, batch_size: _Cache(
                config,
                batch_size,
                read=lambda k, v, length, T: (_pair(k, v, length, T)[0], _only_new(k, v, length, T)[1]),
            ),
            (
                lambda config, batch_size: _Cache(
                    config,
                    batch_size,
                    read=lambda k, v, length, T: (_only_new(k, v, length, T)[0], _pair(k, v, length, T)[1]),
                ),
                lambda config, batch_size: _Cache(
                    config, batch_size, read=lambda k, v, length, T: (_pair(k, v, length, T)[0], v)
                ),
            ),
        ),
        Mistake(
            "old and new are joined along the wrong axis",
            "(B, H, T, D): the tokens are axis 2.",
            partial(_Joined, join=lambda old, new: torch.cat([old, new], -1)),
            (
                partial(_Joined, join=lambda old, new: torch.cat([old, new], 0)),
                partial(_Joined, join=lambda old, new: torch.cat([old, new], 1)),
                partial(_Joined, join=lambda old, new: torch.stack([old, new], 2)),
            ),
        ),
        Mistake(
            "the new ones stand before the old ones",
            "the causal mask counts from the left: the oldest token comes first.",
            partial(_Joined, join=lambda old, new: torch.cat([new, old], 2)),
        ),
        Mistake(
            "old and new are added",
            "they stand side by side, each token with its own keys and values.",
            partial(_Joined, join=lambda old, new: old + new),
        ),
        Mistake(
            "only the last step is remembered",
            "keep what was joined, not only what came last.",
            partial(_Joined, join=_behind, keep=lambda new, joined: new),
            (
                partial(
                    _Joined,
                    join=_behind,
                    keep=lambda new, joined: tuple(part[:, :, -1:] for part in joined),
                ),
            ),
        ),
        Mistake(
            "only the first step is remembered",
            "keep what was joined, for the steps to come.",
            lambda config, batch_size: _FirstStep(config, batch_size, join=_behind),
        ),
        Mistake(
            "the keys and values of the first row are used for the whole batch",
            "each sequence has its own.",
            _FirstRow,
        ),
        Mistake(
            "the room is for one sequence alone",
            "the buffer needs an axis of batch_size.",
            lambda config, batch_size: _Cache(config, batch_size, room=lambda config, B: _room(config, 1)),
        ),
        Mistake(
            "all caches share one store: it belongs to the class",
            "what stands in the body of a class is one for all its objects; make it in __init__, as self.… .",
            _ForAll,
        ),
        Mistake(
            "only one token of a step is stored",
            "a step can bring several tokens, such as a whole prompt: T is k.shape[2].",
            _OneToken,
            (partial(_OneToken, which=-1), _OnePlace),
        ),
        Mistake(
            "the number of new tokens is taken from the axis of heads",
            "(B, H, T, D): T is k.shape[2].",
            _OverHeads,
        ),
        Mistake(
            "nothing is stored: the old ones that come back are empty",
            "what comes now must be there in the next step: write it into the store.",
            _Unkept,
        ),
        Mistake(
            "the store has the axis of tokens before that of heads",
            "k and v are (B, H, T, D): a store of this order can be cut along axis 2, without a transpose.",
            lambda config, batch_size: _Cache(
                config, batch_size, room=lambda config, B: _room(config, B).transpose(2, 3)
            ),
        ),
        Mistake(
            "lists come back, not tensors",
            "attention multiplies tensors: join the steps along the axis of time, with torch.cat.",
            _Listing,
        ),
        Mistake(
            "append returns nothing",
            "attention goes on with what append returns.",
            partial(_Cache, read=lambda *_: None),
        ),
        Mistake(
            "append returns one tensor",
            "two come back: the keys, and the values.",
            lambda config, batch_size: _Cache(config, batch_size, read=_read(lambda k, v: torch.cat([k, v], -1))),
            (
                lambda config, batch_size: _Cache(config, batch_size, read=_read(lambda k, v: k)),
                lambda config, batch_size: _Cache(config, batch_size, read=_read(lambda k, v: torch.cat([k, v], 2))),
            ),
        ),
        Mistake(
            "the axes of heads and tokens are swapped: (B, S, H, D)",
            "attention works on (B, H, S, D).",
            lambda config, batch_size: _Cache(
                config, batch_size, read=_read(lambda k, v: (k.transpose(1, 2), v.transpose(1, 2)))
            ),
        ),
        Mistake(
            "the keys come back transposed, (B, H, D, S)",
            "attention transposes them itself.",
            lambda config, batch_size: _Cache(config, batch_size, read=_read(lambda k, v: (k.transpose(2, 3), v))),
            (
                lambda config, batch_size: _Cache(
                    config, batch_size, read=_read(lambda k, v: (k.transpose(2, 3), v.transpose(2, 3)))
                ),
            ),
        ),
        Mistake(
            "keys and values are kept with fewer digits",
            "what comes back must be what went in: the same dtype.",
            lambda config, batch_size: _Cache(config, batch_size, room=lambda config, B: _room(config, B).half()),
            (
                lambda config, batch_size: _Cache(config, batch_size, read=_read(lambda k, v: (k.half(), v.half()))),
                lambda config, batch_size: _Cache(
                    config, batch_size, room=lambda config, B: _room(config, B).bfloat16()
                ),
            ),
        ),
    ),
    properties=(),
    hints=(
        "Draw the store of one layer as a row of places. Three tokens are in it, two come: where do they go, and how "
        "much of the row comes back?",
        "length is the same for all layers of a step, so append must not touch it. What would the second layer read, "
        "if the first had moved it?",
        "Plan: two buffers of shape (n_layers, batch_size, n_heads, max_seq_length, D). In append, write the layer's "
        "new entries from `length` on along the axis of time, and return the layer's buffers up to there. torch.cat of "
        "old and new works as well.",
    ),
)

EXERCISES = (KV_CACHE,)
