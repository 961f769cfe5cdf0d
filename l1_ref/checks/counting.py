"""The check of the count of parameters, a closed form: wrong counts differ by parts of the model."""

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

from torch import nn

from l1_ref.checks.compare import Failure
from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe, Property
from l1_ref.checks.observe import OUTPUT, Observation, observe_call
from l1_ref.config import PRESETS, L1Config
from l1_ref.transformer import L1Model, count_parameters

_BUILT, _TYPE = "what is built to count", "the type of the count"


def _observe_count(candidate: Callable, inputs: Inputs, gradient: bool, seed: int) -> Observation:
    """Record the count, its type, and whether modules were built to get it: a closed form needs none."""
    built: list[str] = []
    original = nn.Module.__init__

    def spied(module: nn.Module, *arguments: Any, **keywords: Any) -> None:
        built.append(type(module).__name__)
        original(module, *arguments, **keywords)

    with mock.patch.object(nn.Module, "__init__", spied):
        seen = observe_call(candidate, inputs, gradient, seed)
    if OUTPUT not in seen or isinstance(seen[OUTPUT], Failure):
        return seen
    return seen | {_TYPE: type(seen[OUTPUT]).__name__, _BUILT: "modules" if built else "nothing"}


def _probe(name: str, **settings: Any) -> Probe:
    """Return a probe whose input is a configuration alone."""
    return Probe(name, lambda generator: {"config": L1Config(**settings)}, gradient=False)


_UNTIED = {
    "n_layers": 3,
    "n_heads": 3,
    "n_embd": 6,
    "n_inner": 7,
    "tie_weights": False,
    "position_encoding": "sinusoidal",
}


def _count(
    config: L1Config,
    *,
    head: Callable = lambda config: not config.tie_weights,
    head_bias: bool = False,
    token: bool = True,
    positions: Callable = lambda config: config.position_encoding == "learned",
    in_bias: float = 3,
    out_bias: float = 1,
    qkv: Callable = lambda C, H: 3 * C * C,
    out: bool = True,
    inner: Callable = lambda config: config.n_inner,
    fc_bias: bool = True,
    ff_bias: bool = True,
    n_matrices: int = 2,
    norm: float = 2,
    n_norms: Callable = lambda L: 2 * L + 1,
    n_blocks: Callable = lambda config: config.n_layers,
    extra: Callable = lambda config: 0,
) -> int:
    """Count with switches: each mistake sets one, or a few."""
    V, C, L = config.vocab_size, config.n_embd, n_blocks(config)
    F_ = inner(config)
    attention = qkv(C, config.n_heads) + in_bias * C + (C * C if out else 0) + out_bias * C
    feed_forward = n_matrices * C * F_ + fc_bias * F_ + ff_bias * C
    n = (
        token * V * C
        + positions(config) * config.max_seq_length * C
        + head(config) * V * C
        + (head_bias and head(config)) * V
    )
    return n + L * (attention + feed_forward) + n_norms(L) * norm * C + extra(config)


def _thumb(config: L1Config, with_positions: bool = False, with_table: bool = True) -> int:
    V, T, C = config.vocab_size, config.max_seq_length, config.n_embd
    return 12 * config.n_layers * C * C + with_table * V * C + with_positions * T * C


def _own_head(config: L1Config) -> int:
    return 0 if config.tie_weights else config.vocab_size * config.n_embd


def _as_gpt2(config: L1Config) -> int:
    own = {"tie_weights": True, "position_encoding": "learned", "n_inner": None}
    return _count(L1Config(**config.to_dict() | own))


def _built(config: L1Config) -> int:
    return sum(parameter.numel() for parameter in L1Model(config).parameters())


_SHORT = "the shortfall tells the place: compare it with C, 2C and 4C of the configuration."

COUNT_PARAMETERS = Exercise(
    name="count_parameters",
    notebook="05_model",
    reference=count_parameters,
    observe=_observe_count,
    probes=(
        _probe("one block", vocab_size=7, max_seq_length=5, n_layers=1, n_heads=1, n_embd=2, n_inner=3),
        _probe("two heads", vocab_size=11, max_seq_length=3, n_layers=2, n_heads=2, n_embd=4, n_inner=6),
        _probe("untied, fixed waves as positions", vocab_size=13, max_seq_length=6, **_UNTIED),
        _probe(
            "untied, learned positions",
            vocab_size=5,
            max_seq_length=17,
            n_layers=4,
            n_heads=1,
            n_embd=10,
            tie_weights=False,
        ),
        _probe(
            "a wide hidden layer, many heads",
            vocab_size=19,
            max_seq_length=23,
            n_layers=5,
            n_heads=4,
            n_embd=8,
            n_inner=50,
        ),
        _probe("the trained tiny model", **PRESETS["tiny"].to_dict()),
    ),
    mistakes=(
        Mistake(
            "the head is counted although it is tied",
            "a tied head is the token table itself: its numbers exist once.",
            partial(_count, head=lambda config: True),
        ),
        Mistake(
            "the head is left out although it is untied",
            "with tie_weights=False the head has V x C numbers of its own.",
            partial(_count, head=lambda config: False),
        ),
        Mistake(
            "tie_weights is turned round",
            "tied means shared: the head then adds nothing.",
            partial(_count, head=lambda config: config.tie_weights),
        ),
        Mistake(
            "a bias is counted for the head, which has none",
            "the head is one matrix, V x C; the course's head adds nothing to its scores.",
            partial(_count, head_bias=True),
            (lambda config: _count(config) + config.vocab_size,),
        ),
        Mistake(
            "the token table is left out",
            "its V x C numbers are learned; in a small model they are a large share.",
            lambda config: _count(config, token=False),
            (lambda config: _count(config, token=not config.tie_weights),),
        ),
        Mistake(
            "the positions are left out",
            "learned positions are a table of max_seq_length rows.",
            partial(_count, positions=lambda config: False),
        ),
        Mistake(
            "the sinusoidal positions are counted",
            "these waves are computed, not learned, so they are no parameters.",
            partial(_count, positions=lambda config: True),
        ),
        Mistake(
            "the biases of the linear layers are left out",
            "qkv has 3C of them, proj C, fc n_inner, and the second proj C.",
            partial(_count, in_bias=0, out_bias=0, fc_bias=False, ff_bias=False),
        ),
        Mistake(
            "each block is 4C short: the biases of attention, or the two norms",
            _SHORT,
            partial(_count, in_bias=0, out_bias=0),
        ),
        Mistake(
            "each block is n_inner + C short: the biases of the feed-forward layer",
            "fc has n_inner biases, and proj has C.",
            partial(_count, fc_bias=False, ff_bias=False),
        ),
        Mistake(
            "each block is n_inner short: the biases of fc",
            "a linear layer has as many biases as outputs, and fc has n_inner outputs.",
            partial(_count, fc_bias=False),
        ),
        Mistake("each block is C short: the biases of a proj", _SHORT, lambda config: _count(config, out_bias=0)),
        Mistake("each block is 3C short: the biases of qkv", _SHORT, lambda config: _count(config, in_bias=0)),
        Mistake(
            "each block is 2C short: one of its two norms, or qkv's biases counted as C",
            _SHORT,
            lambda config: _count(config, in_bias=1),
        ),
        Mistake(
            "the bias of fc is counted as C",
            "a linear layer has as many biases as outputs, and fc has n_inner outputs.",
            lambda config: _count(config, extra=lambda c: c.n_layers * (c.n_embd - c.n_inner)),
        ),
        Mistake(
            "the bias of the feed-forward layer's proj is counted as n_inner",
            "a linear layer has as many biases as outputs, and this one leads back to C outputs.",
            lambda config: _count(config, extra=lambda c: c.n_layers * (c.n_inner - c.n_embd)),
        ),
        Mistake(
            "the norms are left out",
            "each has a scale and a shift of width C: two a block, and a last one.",
            partial(_count, norm=0),
        ),
        Mistake(
            "a norm is counted with one vector of C, not two",
            "layer normalisation learns a scale and a shift.",
            partial(_count, norm=1),
        ),
        Mistake(
            "the last norm is left out",
            "after the last block the stream is normalised once more: 2C numbers.",
            partial(_count, n_norms=lambda L: 2 * L),
        ),
        Mistake(
            "the last norm is counted once a block",
            "there is one for the whole model, behind the last block.",
            lambda config: _count(config, n_norms=lambda L: 3 * L),
        ),
        Mistake(
            "n_inner is ignored: 4C stands in its place",
            "the width of the hidden layer is the configuration's to choose.",
            partial(_count, inner=lambda config: 4 * config.n_embd),
        ),
        Mistake(
            "attention's output projection is left out",
            "behind the heads stands proj: C x C numbers and C biases.",
            lambda config: _count(config, out=False, out_bias=0),
            (lambda config: _count(config, out=False),),
        ),
        Mistake(
            "queries, keys and values are counted once, not three times",
            "qkv is three matrices in one: 3C x C.",
            lambda config: _count(config, qkv=lambda C, H: C * C, in_bias=1),
            (lambda config: _count(config, qkv=lambda C, H: C * C),),
        ),
        Mistake(
            "qkv is counted once a head",
            "the heads share the width: each gets C / n_heads of it, and the total stays 3C x C.",
            lambda config: _count(config, qkv=lambda C, H: H * (3 * C * C + 3 * C), in_bias=0),
            (
                lambda config: _count(config, qkv=lambda C, H: 3 * C * C * H),
                lambda config: _count(
                    config, extra=lambda c: c.n_layers * (c.n_heads - 1) * 4 * (c.n_embd**2 + c.n_embd)
                ),
                lambda config: _count(config, extra=lambda c: c.n_layers * (c.n_heads - 1) * 4 * c.n_embd**2),
            ),
        ),
        Mistake(
            "only one head is counted",
            "C / n_heads is the width of one head; all n_heads of them together are C wide.",
            lambda config: _count(config, qkv=lambda C, H: 3 * C * (C // H)),
            (lambda config: _count(config, qkv=lambda C, H: 3 * C * (C // H) + 3 * (C // H), in_bias=0),),
        ),
        Mistake(
            "the feed-forward layer is counted with one matrix",
            "it widens and it narrows: two matrices of C x n_inner.",
            lambda config: _count(config, n_matrices=1, ff_bias=False),
            (
                lambda config: _count(config, n_matrices=1),
                lambda config: _count(config, n_matrices=1, fc_bias=False),
            ),
        ),
        Mistake(
            "everything is counted once a block",
            "only the blocks are there n_layers times; the tables and the last norm stand once.",
            lambda config: config.n_layers * _count(config),
        ),
        Mistake(
            "one block is counted, not n_layers of them",
            "each block has numbers of its own.",
            lambda config: _count(config, n_blocks=lambda c: 1),
        ),
        Mistake(
            "the number of blocks is off by one",
            "there are n_layers of them.",
            lambda config: _count(config, n_blocks=lambda c: c.n_layers - 1),
            (lambda config: _count(config, n_blocks=lambda c: c.n_layers + 1),),
        ),
        Mistake(
            "the causal mask is counted",
            "the mask is fixed, not learned, so it is no parameter.",
            lambda config: _count(config, extra=lambda c: c.n_layers * c.max_seq_length**2),
            (lambda config: _count(config, extra=lambda c: c.max_seq_length**2),),
        ),
        Mistake(
            "it is the rule of thumb 12 x n_layers x C²",
            "the rule leaves out biases, norms and positions, and takes n_inner to be 4C.",
            _thumb,
            (
                lambda config: _thumb(config, with_positions=True),
                lambda config: _thumb(config, with_table=False),
                lambda config: _thumb(config, with_positions=config.position_encoding == "learned"),
                lambda config: _thumb(config, config.position_encoding == "learned") + _own_head(config),
            ),
        ),
        Mistake(
            "it is the count of GPT-2's own design: tied, learned positions, n_inner = 4C",
            "three settings decide otherwise: tie_weights, position_encoding and n_inner.",
            _as_gpt2,
        ),
        Mistake(
            "the count is a float",
            "a number of things is whole: / makes a float, // keeps an int.",
            lambda config: float(_count(config)),
        ),
        Mistake(
            "a model is built to be counted",
            "a closed form needs the configuration alone; the largest models do not even fit into memory.",
            _built,
        ),
    ),
    properties=(
        Property("the count is an int above 0", lambda f, config: isinstance(f(config), int) and f(config) > 0),
        Property(
            "heads cost nothing: one head has as many parameters as several",
            lambda f, config: f(L1Config(**config.to_dict() | {"n_heads": 1})) == f(config),
        ),
    ),
    hints=(
        "Write the five parts on lines of their own: token table, positions, attention, feed-forward, norms. "
        "Which of them stand once, and which once a block?",
        "nn.Linear(a, b) has a * b weights and b biases; LayerNorm(C) has 2C. Two parts depend on a setting: "
        "the positions on position_encoding, the head on tie_weights.",
        "Plan: V * C, and max_seq_length * C where the positions are learned. A block: Linear(C, 3C), Linear(C, C), "
        "Linear(C, n_inner), Linear(n_inner, C), two norms. Times n_layers. Then the last norm, and V * C once more "
        "where the head is untied.",
    ),
)

EXERCISES = (COUNT_PARAMETERS,)
