"""The checks of 02_embeddings: the two tables and their sum; `vectors` holds those of its functions."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe, Property
from l1_ref.checks.names import NO_PARAMETER, ON_ITS_SIDE, OTHER_NAME, observe_by_name, observe_table
from l1_ref.checks.observe import OUTPUT, Observation, filled
from l1_ref.checks.vectors import NEAREST_TOKENS, NOTEBOOK, SINUSOIDAL_POSITIONS
from l1_ref.config import L1Config
from l1_ref.embeddings import (
    InputEmbedding,
    PositionalEmbedding,
    TokenEmbedding,
)


def _same_in_training(module: nn.Module, **inputs) -> bool:
    """Say whether training mode leaves the answer as it is; dropout comes later, on the sum."""
    still = module(*inputs.values())
    return torch.equal(module.train()(*inputs.values()), still)


# TokenEmbedding.


def _ids(*shape: int, V: int, C: int, ids: list | None = None) -> Callable[[torch.Generator], Inputs]:
    """Return the builder of a probe: fixed ids, or random ones among which id 0 and the last id always are."""

    def build(generator: torch.Generator) -> Inputs:
        drawn = torch.randint(V, shape, generator=generator)
        if ids is None:
            drawn.view(-1)[0], drawn.view(-1)[-1], drawn.view(-1)[1] = 0, V - 1, 0
        return {"vocab_size": V, "n_embd": C, "ids": drawn if ids is None else torch.tensor(ids)}

    return build


class _Tokens(TokenEmbedding):
    """The reference with switches for what goes wrong."""

    def __init__(self, vocab_size: int, n_embd: int, *, look: str = "", scale: float = 0.0, after: str = ""):
        super().__init__(vocab_size, n_embd)
        self.look, self.after = look, after
        self.scale = n_embd**scale

    def _rows(self, ids: Tensor) -> Tensor:
        if self.look == "padding":
            return F.embedding(ids, self.weight, padding_idx=0)
        if self.look == "zero":
            return F.embedding(ids, self.weight) * (ids != 0)[..., None]
        if self.look == "frequency":
            return F.embedding(ids, self.weight, scale_grad_by_freq=True)
        table = F.normalize(self.weight, dim=-1) if self.look == "length 1" else self.weight
        if self.look == "at most 1":
            return F.embedding(ids, self.weight, max_norm=1.0)
        return table[ids - 1] if self.look == "from 1" else table[ids]

    def forward(self, ids: Tensor) -> Tensor:
        x = self._rows(ids) * self.scale
        if self.after == "sum":
            return x.sum(-2)
        if self.after == "mean":
            return x.mean(-2)
        if self.after == "flat":
            return x.reshape(-1, x.shape[-1])
        if self.after == "detach":
            return x.detach()
        return x.transpose(-1, -2) if self.after == "swap" else x


class _Alike(TokenEmbedding):
    def __init__(self, vocab_size: int, n_embd: int):
        super().__init__(vocab_size, n_embd)
        self.weight.data.zero_()


class _OneHot(TokenEmbedding):
    def forward(self, ids: Tensor) -> Tensor:
        return F.one_hot(ids, len(self.weight)).to(self.weight.dtype)


TOKEN_EMBEDDING = Exercise(
    name="TokenEmbedding",
    notebook=NOTEBOOK,
    reference=TokenEmbedding,
    init=("vocab_size", "n_embd"),
    observe=partial(observe_table, init=("vocab_size", "n_embd"), reference=TokenEmbedding),
    probes=(
        Probe("one row of ids, one of them twice", _ids(V=5, C=4, ids=[[3, 0, 3]]), "B T C", picture=True),
        Probe("a batch", _ids(2, 3, V=7, C=4), "B T C"),
        Probe("a longer batch", _ids(3, 8, V=11, C=6), "B T C"),
        Probe("a single id", _ids(V=3, C=2, ids=[[2]]), "B T C", edge=True),
        Probe("vectors of width 1", _ids(2, 3, V=4, C=1), "B T C", edge=True),
    ),
    mistakes=(
        NO_PARAMETER,
        OTHER_NAME,
        ON_ITS_SIDE,
        Mistake(
            "all rows of the table begin alike",
            "with equal rows no token differs from another at the start: draw random numbers.",
            _Alike,
        ),
        Mistake(
            "the vectors are multiplied by sqrt(C), or divided by it",
            "the transformer of 2017 multiplied, GPT-2 does not; the trained weights know nothing of the factor.",
            partial(_Tokens, scale=0.5),
            (partial(_Tokens, scale=-0.5),),
        ),
        Mistake(
            "row 0 never learns: id 0 is treated as padding",
            "here id 0 is an ordinary token, and no token stands for padding.",
            partial(_Tokens, look="padding"),
            (partial(_Tokens, look="zero"),),
        ),
        Mistake(
            "the vectors are brought to a fixed length",
            "how long a vector is, is learned too; max_norm, or a normalisation, takes that away.",
            partial(_Tokens, look="length 1"),
            (partial(_Tokens, look="at most 1"),),
        ),
        Mistake(
            "rows are counted from 1",
            "ids begin at 0: with ids - 1, id 0 gets the last row.",
            partial(_Tokens, look="from 1"),
        ),
        Mistake(
            "no gradient gets through to the table",
            "detach, .data and no_grad cut the way back, and the table would never be trained.",
            partial(_Tokens, after="detach"),
        ),
        Mistake(
            "an id that occurs several times gets only the mean of its gradients",
            "each place where a token stands has its say; the gradients add up.",
            partial(_Tokens, look="frequency"),
        ),
        Mistake(
            "the vectors of a sequence are merged into one",
            "every id keeps a vector of its own; mixing them is the work of attention, later.",
            partial(_Tokens, after="sum"),
            (partial(_Tokens, after="mean"),),
        ),
        Mistake(
            "batch and time are merged into one axis",
            "the result must be (B, T, C): the shape of ids, and the width behind it.",
            partial(_Tokens, after="flat"),
        ),
        Mistake(
            "the last two axes are swapped",
            "every later layer expects the width C last.",
            partial(_Tokens, after="swap"),
        ),
        Mistake(
            "the one-hot vectors come back, without the product",
            "a one-hot vector is as long as the vocabulary, and all tokens are equally far apart in it.",
            _OneHot,
        ),
    ),
    properties=(
        Property("training mode changes nothing", _same_in_training),
        Property(
            "a vector does not depend on the other ids",
            lambda module, ids: torch.allclose(module(ids)[..., -1:, :], module(ids[..., -1:])),
        ),
    ),
    hints=(
        "A look-up needs no arithmetic. What does a matrix give back when you index it with a list of row numbers?",
        "Make one nn.Parameter of V rows and C columns in __init__. forward picks rows of it, and nothing else.",
        "Call super().__init__() first. Keep random numbers of shape (vocab_size, n_embd), wrapped in nn.Parameter, as "
        "self.weight. In forward, index self.weight with the whole tensor of ids at once: its shape comes along.",
    ),
)


# PositionalEmbedding.


def _range(max_seq_length: int, n_embd: int, T: int, *offset: int) -> Callable[[torch.Generator], Inputs]:
    given = {"max_seq_length": max_seq_length, "n_embd": n_embd, "T": T}
    return lambda generator: given | ({"offset": offset[0]} if offset else {})


class _Positions(PositionalEmbedding):
    """The reference with switches for what goes wrong."""

    def __init__(
        self, max_seq_length: int, n_embd: int, *, rows: Callable | None = None, scale: float = 0.0, after: str = ""
    ):
        super().__init__(max_seq_length, n_embd)
        self.rows, self.scale, self.after = rows, n_embd**scale, after

    def forward(self, T: int, offset: int = 0) -> Tensor:
        x = self.rows(self.weight, T, offset) if self.rows else self.weight[offset : offset + T]
        x = x * self.scale
        if self.after == "batch":
            return x[None]
        if self.after == "swap":
            return x.transpose(0, -1)
        return x.detach() if self.after == "detach" else x


def _picked(name: str, why: str, *rows: Callable) -> Mistake:
    wrong, *versions = (partial(_Positions, rows=each) for each in rows)
    return Mistake(name, why, wrong, tuple(versions))


def _arange(w: Tensor, start: int, end: int) -> Tensor:
    return w[torch.arange(start, end)]


POSITIONAL_EMBEDDING = Exercise(
    name="PositionalEmbedding",
    notebook=NOTEBOOK,
    reference=PositionalEmbedding,
    init=("max_seq_length", "n_embd"),
    observe=partial(observe_by_name, init=("max_seq_length", "n_embd"), reference=PositionalEmbedding),
    probes=(
        Probe("from the beginning, without an offset", _range(6, 4, 3), "T C", picture=True),
        Probe("from an offset on", _range(9, 4, 3, 2), "T C", picture=True),
        Probe("an offset larger than T", _range(11, 3, 2, 7), "T C", picture=True),
        Probe("a single position behind others", _range(7, 4, 1, 4), "T C"),
        Probe("offset 0, given", _range(8, 6, 5, 0), "T C"),
        Probe("all positions", _range(5, 4, 5), "T C", edge=True),
        Probe("up to the last position", _range(8, 2, 3, 5), "T C", edge=True),
    ),
    mistakes=(
        NO_PARAMETER,
        OTHER_NAME,
        ON_ITS_SIDE,
        _picked(
            "the offset is ignored",
            "with a cache the new token is not the first: it would get position 0 every time.",
            lambda w, T, offset: w[:T],
        ),
        _picked(
            "the rows end at T, not at offset + T",
            "T counts the rows that are wanted; the last of them is offset + T - 1.",
            lambda w, T, offset: w[offset:T],
            lambda w, T, offset: _arange(w, offset, T),
        ),
        _picked(
            "the whole table comes back, or all of its rest",
            "only T tokens are there to be added to.",
            lambda w, T, offset: w,
            lambda w, T, offset: w[offset:],
            lambda w, T, offset: w[: offset + T],
        ),
        _picked(
            "the rows are taken from the end of the table",
            "position 0 is the first row, however short the text.",
            lambda w, T, offset: w[-T:],
            lambda w, T, offset: w[len(w) - T - offset : len(w) - offset],
        ),
        _picked(
            "the first row is one too far",
            "positions begin at 0: offset tokens have been seen, so the next one has position offset.",
            lambda w, T, offset: w[offset + 1 : offset + T + 1],
            lambda w, T, offset: _arange(w, offset + 1, offset + T + 1),
        ),
        _picked(
            "there is one row too many or too few",
            "the end of a slice or of an arange is not included, so offset + T is the right end.",
            lambda w, T, offset: w[offset : offset + T + 1],
            lambda w, T, offset: w[offset : offset + T - 1],
            lambda w, T, offset: _arange(w, offset, offset + T + 1),
            lambda w, T, offset: _arange(w, offset, offset + T - 1),
        ),
        _picked(
            "only one row comes back",
            "T tokens need T positions, all different.",
            lambda w, T, offset: w[offset],
            lambda w, T, offset: w[offset + T - 1],
            lambda w, T, offset: w[offset + T],
            lambda w, T, offset: w[T],
            lambda w, T, offset: w[T + offset : T + offset + 1],
        ),
        _picked(
            "the same row stands at every place",
            "then the model again cannot tell one place from another.",
            lambda w, T, offset: w[offset].expand(T, -1),
            lambda w, T, offset: w[torch.full((T,), offset + T - 1)],
        ),
        _picked(
            "T and offset have changed places",
            "T says how many rows are wanted, and offset how many stand before them.",
            lambda w, T, offset: w[T : T + offset],
            lambda w, T, offset: _arange(w, T, T + offset),
        ),
        _picked(
            "the offset is multiplied",
            "offset counts tokens, not pieces of T tokens.",
            lambda w, T, offset: w[offset * T : offset * T + T],
            lambda w, T, offset: _arange(w, offset * T, offset * T + T),
        ),
        _picked(
            "the offset is added to the vectors",
            "it says which rows to take; the numbers in them stay as they are.",
            lambda w, T, offset: w[:T] + offset,
            lambda w, T, offset: w[offset : offset + T] + offset,
        ),
        _picked(
            "the positions run backwards",
            "the first of the new tokens stands furthest in front.",
            lambda w, T, offset: w[offset : offset + T].flip(0),
        ),
        Mistake(
            "there is an axis too many in front",
            "the result is (T, C); it is added to each sequence of a batch by broadcasting.",
            partial(_Positions, after="batch"),
        ),
        Mistake(
            "rows and columns are swapped",
            "one row for each position: the result is (T, C).",
            partial(_Positions, after="swap"),
        ),
        Mistake(
            "the vectors are multiplied by sqrt(C)",
            "GPT-2 adds its positions as they are.",
            partial(_Positions, scale=0.5),
        ),
        Mistake(
            "no gradient gets through to the table",
            "detach, .data and no_grad cut the way back, and the positions would never be learned.",
            partial(_Positions, after="detach"),
        ),
    ),
    properties=(
        Property("training mode changes nothing", _same_in_training),
        Property(
            "the result has T rows",
            lambda module, T, offset=0: len(module(T, offset)) == T,
        ),
    ),
    hints=(
        "It is the token table once more. What takes the place of the ids?",
        "The ids are the positions: offset, offset + 1, … and T of them. They lie side by side in the table.",
        "Make self.weight an nn.Parameter of shape (max_seq_length, n_embd). In forward, return the slice of its rows "
        "that begins at offset and ends before offset + T.",
    ),
)


# InputEmbedding.


def _config(T: int = 9, C: int = 4, p: float = 0.0, encoding: str = "learned") -> L1Config:
    return L1Config(
        vocab_size=7, max_seq_length=T, n_layers=1, n_heads=1, n_embd=C, dropout=p, position_encoding=encoding
    )


def _call(B: int, n: int, *offset: int, **fields) -> Callable[[torch.Generator], Inputs]:
    def build(generator: torch.Generator) -> Inputs:
        ids = torch.randint(7, (B, n), generator=generator)
        return {"config": _config(**fields), "ids": ids} | ({"offset": offset[0]} if offset else {})

    return build


class _Input(InputEmbedding):
    """The reference with switches for what goes wrong."""

    def __init__(
        self, config: L1Config, *, join: str = "", count: str = "", start: str = "", scale: float = 0.0,
        drop: str = "", alike: bool = False, after: str = "", encoding: str = ""
    ):  # fmt: skip
        chosen = {"position_encoding": encoding} if encoding else {}
        super().__init__(L1Config.from_dict(config.to_dict() | chosen))
        self.join, self.count, self.start, self.drop, self.after = join, count, start, drop, after
        self.alike = alike  # whether dropout falls on the same positions in every sequence
        self.scale = config.n_embd**scale
        p = config.dropout
        rates = {"left out": 0.0, "kept": 1 - p, "half": 0.5, "a tenth": 0.1}
        self.p = rates.get(drop, p) if p else 0.0

    def forward(self, ids: Tensor, offset: int = 0) -> Tensor:
        B, T = ids.shape
        token = self.token(ids) * self.scale
        n = {"batch": B, "one": 1, "all": self._longest()}.get(self.count, T)
        first = {"ignored": 0, "one too far": offset + 1, "times T": offset * T}.get(self.start, offset)
        position = self.position(n, first)
        if self.start == "ignored by waves" and not isinstance(self.position, PositionalEmbedding):
            position = self.position(n, 0)
        if self.drop in ("tokens", "separately", "tokens, sum"):
            token = F.dropout(token, self.p, self.training)
        if self.drop in ("positions", "separately"):
            position = F.dropout(position if self.alike else position.expand_as(token), self.p, self.training)
        return self._finish(self._joined(token, position))

    def _longest(self) -> int:
        position = self.position
        return len(position.weight if isinstance(position, PositionalEmbedding) else position.table)

    def _joined(self, token: Tensor, position: Tensor) -> Tensor:
        if self.count == "batch, own axis":
            position = self.position(len(token), 0)[:, None]
        if self.join == "tokens alone":
            return token
        if self.join == "product":
            return token * position
        if self.join == "concatenated":
            return torch.cat((token, position.expand_as(token)), dim=-1)
        return position.expand_as(token) if self.join == "positions alone" else token + position

    def _finish(self, x: Tensor) -> Tensor:
        if self.after == "norm":
            x = F.layer_norm(x, x.shape[-1:])
        if self.drop in ("tokens", "positions", "separately", "left out"):
            return x
        if self.drop == "unscaled":
            return x * (torch.rand_like(x) >= self.p) if self.training and self.p else x
        if self.drop == "sum, sum":
            x = F.dropout(x, self.p, self.training)
        return F.dropout(x, self.p, self.training or self.drop == "always")


def _mixed(name: str, why: str, *switches: dict) -> Mistake:
    wrong, *versions = (partial(_Input, **each) for each in switches)
    return Mistake(name, why, wrong, tuple(versions))


class _OtherNames(nn.Module):
    """Right shapes under wrong names."""

    def __init__(self, config: L1Config):
        super().__init__()
        self.tok = TokenEmbedding(config.vocab_size, config.n_embd)
        if config.position_encoding == "learned":
            self.pos = PositionalEmbedding(config.max_seq_length, config.n_embd)

    def forward(self, ids: Tensor, offset: int = 0) -> Tensor:
        return self.tok(ids)


def observe_input(candidate: Callable, inputs: Inputs, gradient: bool, seed: int) -> Observation:
    """Observe an input embedding, and with dropout also whether two passes in training differ at all.

    Args:
        candidate: The class.
        inputs: The config, then the arguments of the call.
        gradient: Whether to record gradients.
        seed: Fixes the random numbers.
    """
    seen = observe_by_name(candidate, inputs, gradient, seed, ("config",), InputEmbedding)
    config, *call = inputs.values()
    if config.dropout and isinstance(seen.get(OUTPUT), Tensor):
        module = filled(candidate(config), seed).train()
        seen["two passes in training"] = "the same" if torch.equal(module(*call), module(*call)) else "different"
    return seen


def _drops_single_numbers(module: nn.Module, ids: Tensor, offset: int = 0) -> bool:
    gone = module.train()(ids[:1].expand(64, -1), offset) == 0  # (64, T, C)
    return not gone.any() or not torch.equal(gone.any(-1), gone.all(-1))


INPUT_EMBEDDING = Exercise(
    name="InputEmbedding",
    notebook=NOTEBOOK,
    reference=InputEmbedding,
    init=("config",),
    observe=observe_input,
    probes=(
        Probe("one sequence", _call(1, 3), "B T C"),
        Probe("a batch", _call(2, 3), "B T C"),
        Probe("as many sequences as tokens", _call(3, 3), "B T C"),
        Probe("behind two tokens in a cache", _call(2, 4, 2), "B T C"),
        Probe("dropout", _call(2, 6, 1, T=8, C=16, p=0.25), "B T C"),
        Probe("sinusoidal positions", _call(2, 3, 2, encoding="sinusoidal"), "B T C"),
        Probe("as long as the context", _call(2, 5, T=5), "B T C", edge=True),
        Probe("a single token", _call(2, 1, 6), "B T C", edge=True),
    ),
    mistakes=(
        Mistake(
            "the parts are not called token and position",
            "saved weights are found again by their names: token.weight and position.weight.",
            _OtherNames,
        ),
        _mixed(
            "the sinusoidal positions are learned",
            'with position_encoding "sinusoidal" the waves are fixed: only the token table is a parameter.',
            {"encoding": "learned"},
        ),
        _mixed(
            "the positions are never learned",
            'with position_encoding "learned" the position table is a parameter too.',
            {"encoding": "sinusoidal", "count": "", "start": ""},
        ),
        _mixed(
            "the positions are left out",
            "without them the same tokens in another order look the same.",
            {"join": "tokens alone"},
        ),
        _mixed(
            "the tokens are left out",
            "the model would know where something stands, but not what.",
            {"join": "positions alone"},
        ),
        _mixed(
            "tokens and positions are multiplied, not added",
            "a product with a small number wipes the token out; a sum keeps both.",
            {"join": "product"},
        ),
        _mixed(
            "tokens and positions are concatenated, not added",
            "that doubles the width; every later layer expects C.",
            {"join": "concatenated"},
        ),
        _mixed(
            "the offset is ignored",
            "with a cache the new token is not the first: it would get position 0 every time.",
            {"start": "ignored"},
            {"start": "ignored by waves"},
        ),
        _mixed(
            "the positions are shifted",
            "the first new token has position offset, neither one more nor a multiple of T.",
            {"start": "one too far"},
            {"start": "times T"},
        ),
        _mixed(
            "the positions run along the batch, not along the text",
            "ids are (B, T): T is the second axis. Sequences side by side all begin at the same position.",
            {"count": "batch"},
            {"count": "batch, own axis"},
        ),
        _mixed(
            "every token gets the same position",
            "then the model again cannot tell one place from another.",
            {"count": "one"},
        ),
        _mixed(
            "all positions of the context are fetched, not T of them",
            "a text shorter than the context has no token to add them to.",
            {"count": "all", "start": ""},
        ),
        _mixed(
            "the token vectors are multiplied by sqrt(C)",
            "the transformer of 2017 did so, GPT-2 does not.",
            {"scale": 0.5},
        ),
        _mixed(
            "the sum is normalised",
            "in GPT-2 the normalisation comes later, inside each block.",
            {"after": "norm"},
        ),
        _mixed(
            "there is no dropout",
            "training needs it against learning by heart: config.dropout says how much.",
            {"drop": "left out"},
        ),
        _mixed(
            "dropout stays on in eval mode",
            "a finished model must give the same answer to the same input; F.dropout needs training=self.training.",
            {"drop": "always"},
        ),
        _mixed(
            "dropout falls on one of the two alone",
            "it falls on the sum: a number that is dropped loses token and position at once.",
            {"drop": "tokens"},
            {"drop": "positions"},
            {"drop": "positions", "alike": True},
        ),
        _mixed(
            "dropout falls on tokens and positions separately",
            "it falls once, on the sum.",
            {"drop": "separately"},
            {"drop": "separately", "alike": True},
        ),
        _mixed(
            "dropout falls twice",
            "it falls once, on the sum; twice drops more than config.dropout says.",
            {"drop": "sum, sum"},
            {"drop": "tokens, sum"},
        ),
        _mixed(
            "dropout has another rate than config.dropout",
            "config.dropout is the probability that a number is dropped; nn.Dropout() alone drops half.",
            {"drop": "half"},
            {"drop": "kept"},
            {"drop": "a tenth"},
        ),
        _mixed(
            "what dropout leaves is not scaled up",
            "the kept numbers are divided by 1 - p, so that the sum stays as large, on average, as in eval mode.",
            {"drop": "unscaled"},
        ),
    ),
    properties=(
        Property(
            "every sequence of a batch is treated alike",
            lambda module, ids, offset=0: torch.allclose(
                module(ids, offset)[-1], module(ids[-1:], offset)[0], atol=1e-5
            ),
        ),
        Property("dropout drops single numbers, not whole vectors", _drops_single_numbers),
    ),
    hints=(
        "Three parts: a table for the tokens, one for the places, and dropout. What goes into the second, if not ids?",
        "self.position wants to be told how many tokens there are, and after how many others: T is ids.shape[1].",
        "In __init__ choose the kind of positions by config.position_encoding, and make self.dropout with "
        "config.dropout. In forward, fetch (B, T, C) from the tokens and (T, C) from the positions, add them (the "
        "batch comes by broadcasting), and send the sum through the dropout.",
    ),
)


EXERCISES = (TOKEN_EMBEDDING, SINUSOIDAL_POSITIONS, POSITIONAL_EMBEDDING, INPUT_EMBEDDING, NEAREST_TOKENS)
