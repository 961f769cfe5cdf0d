"""The check of 07_efficiency on memory: training_memory, a closed form for the bytes of a training step."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from l1_ref.checks.compare import Failure, kind
from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe
from l1_ref.checks.observe import OUTPUT, Observation
from l1_ref.config import PRESETS, L1Config, is_number
from l1_ref.memory import training_memory
from l1_ref.transformer import count_parameters

EXACT, ROUGH = ("parameters", "gradients", "optimizer"), ("activations", "recomputed")
PARTS = (*EXACT, *ROUGH)
_ALLOWED, _ALIKE = 0.1, 0.03  # of the right number; of each other, where both are wrong
_LEFT = "total, less the sum of the other five"


class Bytes:
    """A number of bytes that may be off by a tenth.

    Args:
        value: As predicted.
        right: What the reference predicts.
    """

    def __init__(self, value: float, right: float):
        self.value, self.fine = value, abs(value - right) <= _ALLOWED * right

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Bytes):
            return NotImplemented
        near = abs(self.value - other.value) <= _ALIKE * max(abs(self.value), abs(other.value))
        return (self.fine and other.fine) or (self.fine == other.fine and near)

    __hash__ = None

    def __repr__(self) -> str:
        return f"{self.value:,.0f}"


def _observe_bill(candidate: Callable, inputs: Inputs, gradient: bool, seed: int) -> Observation:
    """Record the parts, those that may be rough as such, and whether the total is their sum."""
    try:
        bill = candidate(*inputs.values())
    except Exception as error:
        return {OUTPUT: Failure(error)}
    if not isinstance(bill, dict):
        return {OUTPUT: None if bill is None else kind(bill)}
    seen: Observation = {OUTPUT: {str(part): "a number" if is_number(n) else kind(n) for part, n in bill.items()}}
    numbers = {part: n for part, n in bill.items() if is_number(n)}
    right = training_memory(*inputs.values())
    for part, n in numbers.items():
        seen |= {part: Bytes(n, right[part])} if part in ROUGH else {part: n} if part in EXACT else {}
    if {*PARTS, "total"} <= numbers.keys():
        seen[_LEFT] = Bytes(numbers["total"] - sum(numbers[part] for part in PARTS), 0)
    if any(isinstance(n, float) for n in numbers.values()):
        seen["floats among the numbers"] = ", ".join(str(part) for part, n in numbers.items() if isinstance(n, float))
    return seen


def _probe(name: str, config: L1Config, batch_size: int, dtype: torch.dtype, checkpointing: bool) -> Probe:
    inputs = {"config": config, "batch_size": batch_size, "dtype": dtype, "checkpointing": checkpointing}
    return Probe(name, lambda generator: dict(inputs), gradient=False)


def _config(V: int, T: int, L: int, H: int, C: int, inner: int | None = None, dropout: float = 0.0, **more: Any):
    return L1Config(V, T, L, H, C, inner, dropout, **more)


_FULL, _BRAIN, _HALF = torch.float32, torch.bfloat16, torch.float16


# Wrong versions. A switch that is a number is a factor, or the bytes of what it names.


def _block(
    config: L1Config,
    tokens: int,
    w: float,
    *,
    four: float,
    norms: float,
    inputs: float,
    hidden: Callable,
    qkv: float,
    tables: Callable,
    masks: float,
) -> float:
    """Return what one block keeps, without the copies of its weights."""
    C, H = config.n_embd, config.n_heads
    drops = bool(config.dropout)
    heads = 0 if drops else four * H
    attention = qkv * 3 * C * (four if drops else w) + tables(config, four, w) * H * config.max_seq_length + heads
    token = norms * 2 * (four * C + 2 * four) + inputs * 3 * w * C + 2 * w * hidden(config)
    return tokens * (token + attention + masks * drops * 2 * w * C)


def _three_tables(config: L1Config, four: float, w: float) -> float:
    return 3 * four if config.dropout else 0


def _bill(
    config: L1Config,
    batch_size: int,
    dtype: torch.dtype,
    checkpointing: bool,
    *,
    count: Callable[[L1Config], int] = count_parameters,
    parameters: Callable[[float], float] = lambda w: 4,
    gradients: Callable[[float], float] = lambda w: 4,
    optimizer: Callable[[float], float] = lambda w: 8,
    tokens: Callable[[int, int], int] = lambda B, T: B * T,
    blocks: Callable[[int], int] = lambda L: L,
    width: Callable[[torch.dtype], float] = lambda dtype: 4 if dtype == _FULL else 2,
    four: Callable[[float], float] = lambda w: 4,
    norms: float = 1,
    inputs: float = 1,
    hidden: Callable[[L1Config], int] = lambda config: config.n_inner,
    qkv: float = 1,
    tables: Callable = _three_tables,
    masks: float = 1,
    last: float = 1,
    loss: Callable[[float], float] = lambda w: 4,
    copies: float = 1,
    head_copy: float = 1,
    kept: Callable = lambda L, tokens, C, w: 4 * L * tokens * C,
    obey: bool = True,
    once_more: Callable = lambda block, copied, L, checkpointing: (block + copied) * checkpointing,
    total: Callable[[dict], float] = lambda parts: sum(parts.values()),
    unit: Callable[[float], float] = int,
) -> dict[str, float]:
    """Predict with switches: each mistake sets one, or a few."""
    N, n, w = count(config), tokens(batch_size, config.max_seq_length), width(dtype)
    V, C, F, L, f = config.vocab_size, config.n_embd, config.n_inner, blocks(config.n_layers), four(w)
    half = dtype != _FULL
    block = _block(config, n, w, four=f, norms=norms, inputs=inputs, hidden=hidden, qkv=qkv, tables=tables, masks=masks)
    copied = half * copies * min(w, 2) * (4 * C * C + 2 * C * F + 5 * C + F)
    around = last * n * ((f + w) * C + 2 * f + bool(config.dropout) * f * C) + n * (loss(w) / 4 * f * V + 8)
    in_blocks = kept(L, n, C, w) * f / 4 if checkpointing and obey else L * (block + copied)
    parts = {
        "parameters": parameters(w) * N,
        "gradients": gradients(w) * N,
        "optimizer": optimizer(w) * N,
        "activations": in_blocks + around + half * head_copy * min(w, 2) * V * C,
        "recomputed": once_more(block, copied, L, checkpointing),
    }
    bill = parts | {"total": total(parts)}
    return {part: unit(n_bytes) for part, n_bytes in bill.items()}


def _own_head(config: L1Config) -> int:
    return count_parameters(config) + config.tie_weights * config.vocab_size * config.n_embd


def _thumb(config: L1Config) -> int:
    return 12 * config.n_layers * config.n_embd**2


def _tables(full: float = 0, of_width: float = 0) -> Callable:
    """Return how many bytes an entry of attention's tables takes: so many numbers of 4 bytes, and of the dtype's."""
    return lambda config, four, w: full * four + of_width * w if config.dropout else 0


def _never_spared(full: float, of_width: float = 0, always: bool = False) -> Callable:
    """Return the same without dropout too, where none are kept; with dropout as many only if always so."""

    def tables(config: L1Config, four: float, w: float) -> float:
        return 3 * four if config.dropout and not always else full * four + of_width * w

    return tables


def _no_recomputed(parts: dict[str, float]) -> float:
    return sum(parts.values()) - parts["recomputed"]


def _by_dtype(known: torch.dtype, config: L1Config, batch_size: int, dtype: torch.dtype, checkpointing: bool) -> dict:
    """Treat the other half dtype as float32, without copies."""
    return _bill(config, batch_size, dtype if dtype == known else _FULL, checkpointing)


_STATE = "autocast makes copies in half precision; weights, gradients and AdamW's means stay float32."

TRAINING_MEMORY = Exercise(
    name="training_memory",
    notebook="07_efficiency",
    reference=training_memory,
    observe=_observe_bill,
    probes=(
        _probe("tiny, batch 1", PRESETS["tiny"], 1, _FULL, False),
        _probe("a narrow hidden layer, bfloat16", _config(40, 64, 4, 2, 32, 32), 8, _BRAIN, False),
        _probe("many ids, float16", _config(900, 64, 2, 4, 32), 6, _HALF, False),
        _probe("dropout, a long context", _config(50, 64, 3, 4, 16, 48, dropout=0.1), 2, _FULL, False),
        _probe("dropout, a long context, bfloat16", _config(50, 96, 2, 3, 24, 40, dropout=0.1), 3, _BRAIN, False),
        _probe("dropout, a short context", _config(30, 4, 6, 1, 32, 32, dropout=0.2), 16, _FULL, False),
        _probe("dropout, a short context, float16", _config(30, 4, 5, 1, 32, 32, dropout=0.2), 64, _HALF, False),
        _probe("wide, a few tokens, bfloat16", _config(900, 4, 3, 4, 64, tie_weights=False), 1, _BRAIN, False),
        _probe("twelve blocks, checkpointing", _config(100, 32, 12, 2, 32), 4, _FULL, True),
        _probe("one block, checkpointing", _config(8, 16, 1, 2, 64, 96), 3, _FULL, True),
        _probe(
            "wide, checkpointing, float16",
            _config(300, 16, 4, 4, 64, position_encoding="sinusoidal"),
            2,
            _HALF,
            True,
        ),
        _probe("small, batch 8, bfloat16", PRESETS["small"], 8, _BRAIN, False),
        _probe("GPT-2, batch 4, checkpointing", PRESETS["gpt2"], 4, _BRAIN, True),
    ),
    mistakes=(
        Mistake(
            "the parameters shrink with the dtype",
            _STATE,
            partial(_bill, parameters=lambda w: w),
        ),
        Mistake(
            "the gradients shrink with the dtype",
            _STATE,
            partial(_bill, gradients=lambda w: w),
        ),
        Mistake(
            "the optimizer's state shrinks with the dtype",
            _STATE,
            partial(_bill, optimizer=lambda w: 2 * w),
        ),
        Mistake(
            "parameters, gradients and the optimizer's state all shrink with the dtype",
            _STATE,
            partial(_bill, parameters=lambda w: w, gradients=lambda w: w, optimizer=lambda w: 2 * w),
        ),
        Mistake(
            "the optimizer keeps one mean for each parameter",
            "AdamW keeps two: of the gradient, and of its square.",
            partial(_bill, optimizer=lambda w: 4),
        ),
        Mistake(
            "the optimizer keeps three numbers for each parameter",
            "the weights are float32 already, so there is no further copy of them: two means, 8 bytes.",
            partial(_bill, optimizer=lambda w: 12),
            (partial(_bill, optimizer=lambda w: 8 if w == 4 else 12),),
        ),
        Mistake(
            "a number takes one byte: numbers are counted",
            "a float32 takes 4 bytes, a half dtype 2.",
            partial(
                _bill,
                parameters=lambda w: 1,
                gradients=lambda w: 1,
                optimizer=lambda w: 2,
                width=lambda dtype: 1,
                four=lambda w: 1,
            ),
        ),
        Mistake(
            "bits are counted, not bytes",
            "a byte has 8 bits: a float32 takes 4 bytes.",
            partial(_bill, unit=lambda n: int(8 * n)),
        ),
        Mistake(
            "other units than bytes come back",
            "bytes were asked for, so that sums are exact; divide when you print.",
            partial(_bill, unit=lambda n: n / 2**20),
            tuple(
                partial(_bill, unit=unit)
                for unit in (
                    lambda n: n / 1e6,
                    lambda n: n / 1e9,
                    lambda n: n / 2**30,
                    lambda n: n / 1024,
                    lambda n: int(n) // 2**20,
                )
            ),
        ),
        Mistake(
            "the numbers are floats",
            "bytes are counted: use whole numbers, and // where you divide.",
            partial(_bill, unit=float),
        ),
        Mistake(
            "the batch size is ignored",
            "each sequence of the batch leaves its activations.",
            partial(_bill, tokens=lambda B, T: T),
        ),
        Mistake(
            "the length of the sequences is ignored",
            "each token leaves its activations: there are batch_size times max_seq_length of them.",
            partial(_bill, tokens=lambda B, T: B),
        ),
        Mistake(
            "one block is counted, not all of them",
            "every block keeps its activations until the backward pass reaches it.",
            partial(_bill, blocks=lambda L: 1),
        ),
        Mistake(
            "the dtype is ignored: products take 4 bytes a number",
            "under autocast the inputs of products are half as wide.",
            partial(_bill, width=lambda dtype: 4),
            (partial(_bill, width=lambda dtype: 4, copies=0, head_copy=0),),
        ),
        Mistake(
            "only one of the half dtypes is known as such",
            "float16 and bfloat16 both take 2 bytes: ask whether it is float32.",
            partial(_bill, width=lambda dtype: 2 if dtype == _BRAIN else 4),
            (
                partial(_bill, width=lambda dtype: 2 if dtype == _HALF else 4),
                partial(_by_dtype, _BRAIN),
                partial(_by_dtype, _HALF),
            ),
        ),
        Mistake(
            "all activations shrink with the dtype",
            "norms, attention's tables and the loss stay in float32: only inputs of products shrink.",
            partial(_bill, four=lambda w: w),
        ),
        Mistake(
            "the loss's part is left out: 4V a token",
            "the log-probabilities are as large as the logits, and with many ids they outweigh a block.",
            partial(_bill, loss=lambda w: 0),
        ),
        Mistake(
            "the loss's part shrinks with the dtype",
            "the loss is computed in float32.",
            partial(_bill, loss=lambda w: w),
        ),
        Mistake(
            "the logits are kept as well as the log-probabilities",
            "the backward pass of the loss needs the log-probabilities only.",
            partial(_bill, loss=lambda w: 8),
            (partial(_bill, loss=lambda w: 4 + w), partial(_bill, loss=lambda w: 12)),
        ),
        Mistake(
            "what the norms keep is left out",
            "each of a block's two norms keeps its input, in float32.",
            partial(_bill, norms=0),
            (partial(_bill, norms=0.5),),
        ),
        Mistake(
            "the inputs of qkv, proj and fc are left out",
            "the gradient of a product x W needs x.",
            partial(_bill, inputs=0),
            (partial(_bill, inputs=1 / 3),),
        ),
        Mistake(
            "the feed-forward layer's hidden values are left out",
            "GELU keeps its input, and the product behind it its own: 2 w F a token.",
            partial(_bill, hidden=lambda config: 0),
            (partial(_bill, hidden=lambda config: config.n_inner / 2),),
        ),
        Mistake(
            "the hidden width is taken as 4 C",
            "n_inner may be another number.",
            partial(_bill, hidden=lambda config: 4 * config.n_embd),
        ),
        Mistake(
            "q, k and v are left out",
            "the backward pass of attention needs all three.",
            partial(_bill, qkv=0),
            (partial(_bill, qkv=1 / 3),),
        ),
        Mistake(
            "attention's tables are left out where there is dropout",
            "the CPU's fused attention knows no dropout, so three tables (H, T, T) are kept.",
            partial(_bill, tables=_tables()),
        ),
        Mistake(
            "attention's tables are counted where there is no dropout",
            "fused attention never holds them.",
            partial(_bill, tables=_never_spared(3)),
            tuple(
                partial(_bill, tables=_never_spared(full, of_width, always))
                for full, of_width in ((1, 0), (2, 0), (0, 1), (0, 2), (0, 3))
                for always in (False, True)
            ),
        ),
        Mistake(
            "fewer of attention's tables are counted than are kept",
            "with dropout there are three: the weights, the mask and what is left of the weights.",
            partial(_bill, tables=_tables(1)),
            (partial(_bill, tables=_tables(2)), partial(_bill, tables=_tables(0, 1))),
        ),
        Mistake(
            "attention's tables shrink with the dtype",
            "on the way with dropout they are float32.",
            partial(_bill, tables=_tables(0, 3)),
        ),
        Mistake(
            "one head's tables are counted",
            "each of the H heads has its own.",
            partial(_bill, tables=lambda config, four, w: bool(config.dropout) * 3 * four / config.n_heads),
        ),
        Mistake(
            "the masks of dropout are left out",
            "dropout must know again what it dropped.",
            partial(_bill, masks=0),
        ),
        Mistake(
            "only the blocks are counted: the last norm and the head keep their inputs too",
            "around the blocks there are 4C + 8 and wC a token.",
            partial(_bill, last=0),
        ),
        Mistake(
            "the 16-bit copies of the blocks' weights are left out",
            "autocast makes them, and the backward pass needs them.",
            partial(_bill, copies=0),
        ),
        Mistake(
            "the 16-bit copy of the head's weights is left out",
            "the head is a product as well: 2 V C bytes.",
            partial(_bill, head_copy=0),
        ),
        Mistake(
            "all 16-bit copies of the weights are left out",
            "autocast makes them, and the backward pass needs them.",
            partial(_bill, copies=0, head_copy=0),
        ),
        Mistake(
            "checkpointing is ignored: all blocks keep all activations",
            "with checkpointing a block keeps its input only.",
            partial(_bill, obey=False),
        ),
        Mistake(
            "with checkpointing the blocks keep nothing",
            "each keeps its input: from that it is computed again.",
            partial(_bill, kept=lambda L, tokens, C, w: 0),
        ),
        Mistake(
            "with checkpointing only one block keeps its input",
            "each block keeps its own.",
            partial(_bill, kept=lambda L, tokens, C, w: 4 * tokens * C),
        ),
        Mistake(
            "the blocks' inputs shrink with the dtype",
            "the residual stream is float32.",
            partial(_bill, kept=lambda L, tokens, C, w: w * L * tokens * C),
        ),
        Mistake(
            "recomputed is left at 0",
            "the block that is computed again is in memory, with all that it keeps.",
            partial(_bill, once_more=lambda block, copied, L, checkpointing: 0),
        ),
        Mistake(
            "recomputed holds all blocks",
            "one block at a time is computed again.",
            partial(_bill, once_more=lambda block, copied, L, checkpointing: L * (block + copied) * checkpointing),
        ),
        Mistake(
            "recomputed is not 0 without checkpointing",
            "then nothing is computed again.",
            partial(_bill, once_more=lambda block, copied, L, checkpointing: block + copied),
        ),
        Mistake(
            "recomputed holds no 16-bit copies of the block's weights",
            "the block that is computed again makes them again.",
            partial(_bill, once_more=lambda block, copied, L, checkpointing: block * checkpointing),
        ),
        Mistake(
            "the total leaves out what is recomputed",
            "it is in memory too: the total is the sum of all five.",
            partial(_bill, total=_no_recomputed),
        ),
        Mistake(
            "the total leaves out the optimizer",
            "the total is the sum of all five.",
            partial(_bill, total=lambda parts: sum(parts.values()) - parts["optimizer"]),
        ),
        Mistake(
            "the total leaves out the gradients",
            "the total is the sum of all five.",
            partial(_bill, total=lambda parts: sum(parts.values()) - parts["gradients"]),
        ),
        Mistake(
            "the total is twice the sum: it counts itself",
            "the total is the sum of the other five.",
            partial(_bill, total=lambda parts: 2 * sum(parts.values())),
        ),
        Mistake(
            "the total is the activations' alone",
            "the total is the sum of all five.",
            partial(_bill, total=lambda parts: parts["activations"] + parts["recomputed"]),
            (partial(_bill, total=lambda parts: parts["activations"]),),
        ),
        Mistake(
            "the tied head is counted as parameters of its own",
            "it shares the token table's.",
            partial(_bill, count=_own_head),
        ),
        Mistake(
            "the parameters are estimated: 12 L C^2, or with the token table",
            "l1_ref.count_parameters counts them exactly.",
            partial(_bill, count=_thumb),
            (partial(_bill, count=lambda config: _thumb(config) + config.vocab_size * config.n_embd),),
        ),
    ),
    properties=(),
    hints=(
        "Three of the six numbers need only the number of parameters. Write these first, and the total.",
        "Count what one token leaves in one block. What multiplies it: tokens, blocks? What comes once, around the "
        "blocks, and what once for the weights?",
        "Plan: tokens = batch_size * max_seq_length, w = 4 or 2. One line for a block, from the table, times tokens; "
        "in a half dtype add its copies. One line for what lies around. Activations are L blocks, or with checkpoints "
        "L inputs, and what lies around. Whichever it is, the total is a sum of the dict's values.",
    ),
)

EXERCISES = (TRAINING_MEMORY,)
