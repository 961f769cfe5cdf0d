"""The checks of 05_model: the whole model here; count, initial values and tied weights in modules of their own."""

from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from l1_ref.checks import counting, initial, tying
from l1_ref.checks.compare import Failure, Rough
from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe, Property
from l1_ref.checks.initial import SMALL, figures
from l1_ref.checks.names import Names
from l1_ref.checks.observe import OUTPUT, PARAMETERS, REPEATED, SHARED, Observation, filled, observe_module
from l1_ref.config import L1Config
from l1_ref.embeddings import InputEmbedding
from l1_ref.transformer import L1Model, TransformerBlock, init_weights

PARTS = "the parts of the model that hold parameters"
_NAMES = ("embedding", "blocks", "norm", "head")
_IDS = {"vocab_size": 7, "max_seq_length": 5, "n_layers": 2, "n_heads": 2, "n_embd": 8, "n_inner": 12, "dropout": 0.0}
_DROPPING = _IDS | {"n_layers": 1, "dropout": 0.3}
_STARTING = SMALL | {"n_embd": 24, "init_std": 0.05, "dropout": 0.0}
_DEEP = {
    "vocab_size": 11,
    "max_seq_length": 4,
    "n_layers": 2,
    "n_heads": 1,
    "n_embd": 6,
    "dropout": 0.0,
    "tie_weights": False,
    "position_encoding": "sinusoidal",
    "layer_norm_eps": 0.1,
}


def _ids(B: int, T: int, **settings: Any) -> Callable[[torch.Generator], Inputs]:
    """Return the builder of a probe: a configuration, and ids."""

    def build(generator: torch.Generator) -> Inputs:
        config = L1Config(**settings)
        return {"config": config, "ids": torch.randint(config.vocab_size, (B, T), generator=generator)}

    return build


def _observe_model(candidate: Callable, inputs: Inputs, gradient: bool, seed: int) -> Observation:
    """Observe a module; where the model does not know its blocks, what it answers is chance and tells nothing."""
    seen = observe_module(candidate, inputs, gradient, seed, ("config",))
    if PARAMETERS in seen and not any(name.startswith("blocks") for name in seen[PARAMETERS]):
        return {name: seen[name] for name in (PARAMETERS, SHARED, REPEATED) if name in seen}
    return _by_part(seen, inputs["config"]) if PARAMETERS in seen else seen


@lru_cache(maxsize=16)
def _shapes(config: L1Config) -> list[tuple[int, ...]]:
    return sorted(tuple(parameter.shape) for parameter in L1Model(config).parameters())


def _by_part(seen: Observation, config: L1Config) -> Observation:
    """Where the parameters are right but for the names of the parts, tell these alone: all else only follows."""
    parts = _parts_of((*seen[PARAMETERS], *(name for group in seen[SHARED] for name in group)))
    alike = sorted(seen[PARAMETERS].values()) == _shapes(config) and len(seen[SHARED]) == config.tie_weights
    return {PARTS: parts} if alike and not parts.right else seen | {PARTS: Names(list(_NAMES), True)}


def _parts_of(names: Iterable[str]) -> Names:
    """Return the first words of parameters' names: the parts of the model, in the order of the course."""
    found = {name.split(".")[0] for name in names}
    known = [name for name in _NAMES if name in found]
    return Names([*known, *sorted(found.difference(known))], found == set(_NAMES))


def _observe_fresh(candidate: Callable, inputs: Inputs, gradient: bool, seed: int) -> Observation:
    """Build a model and measure its parameters as they come; a name that is missing is told by the other probes."""
    try:
        torch.default_generator.manual_seed(seed)
        module = candidate(inputs["config"])
        parts = _parts_of(name for name, _ in module.named_parameters(remove_duplicate=False))
        return figures(module) if parts.right else {PARTS: parts}
    except Exception as error:
        return {OUTPUT: Failure(error)}


def _observe_dropping(candidate: Callable, inputs: Inputs, gradient: bool, seed: int, n_rows: int = 512) -> Observation:
    """Observe a module, and in training the share of zeros that enters its parts: dropout of the model's own shows."""
    seen = _observe_model(candidate, inputs, gradient, seed)
    if not isinstance(seen.get(OUTPUT), Tensor):
        return seen
    # A part that is not called, since the reader has a function in its place, counts as right.
    usual = {"blocks.0": inputs["config"].dropout, "norm": 0.0, "head": 0.0}
    met: dict[str, list[Tensor]] = {name: [] for name in usual}
    model = filled(candidate(inputs["config"]), seed).train()
    for name, part in model.named_modules():
        if name in met:
            part.register_forward_pre_hook(lambda _, given, name=name: met[name].append(given[0].flatten() == 0))
    model(inputs["ids"].expand(n_rows, -1))
    shares = {name: torch.cat(met[name]).double().mean().item() if met[name] else usual[name] for name in usual}
    return seen | {f"the share of zeros that enters {name}": Rough(share, 0.08) for name, share in shares.items()}


def _embed(model: nn.Module, ids: Tensor) -> Tensor:
    return model.embedding(ids)


def _through(model: nn.Module, x: Tensor) -> Tensor:
    for block in model.blocks:
        x = block(x)
    return x


def _read(model: nn.Module, x: Tensor) -> Tensor:
    return model.head(model.norm(x))


class _Model(nn.Module):
    """The model with switches: each mistake sets one, or a few."""

    def __init__(
        self,
        config: L1Config,
        *,
        stack: Callable = lambda make, n: nn.ModuleList(make() for _ in range(n)),
        bias: bool = False,
        tie: Callable = lambda config: config.tie_weights,
        share: Callable | None = None,
        eps: Callable = lambda config: config.layer_norm_eps,
        init: str = "last",
        embed: Callable = _embed,
        through: Callable = _through,
        read: Callable = _read,
    ):
        super().__init__()
        self.config, self.run = config, (embed, through, read)
        self.embedding = InputEmbedding(config)
        if init == "early":
            init_weights(self, config)
        self.blocks = stack(lambda: TransformerBlock(config), config.n_layers)
        self.norm = nn.LayerNorm(config.n_embd, eps(config))
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=bias)
        if tie(config):
            (share or _share)(self)
        if init == "last":
            init_weights(self, config)

    def forward(self, ids: Tensor) -> Any:
        embed, through, read = self.run
        return read(self, through(self, embed(self, ids)))


def _share(model: nn.Module) -> None:
    model.head.weight = model.embedding.token.weight


def _share_data(model: nn.Module) -> None:
    model.head.weight.data = model.embedding.token.weight.data


def _drop_head(model: nn.Module) -> None:
    model.head = None


def _last_only(model: nn.Module, x: Tensor) -> Tensor:
    for block in model.blocks:
        y = block(x)
    return y


def _reversed(model: nn.Module, x: Tensor) -> Tensor:
    for block in reversed(model.blocks):
        x = block(x)
    return x


def _added(model: nn.Module, x: Tensor) -> Tensor:
    for block in model.blocks:
        x = x + block(x)
    return x


def _normed_each_time(model: nn.Module, x: Tensor) -> Tensor:
    for block in model.blocks:
        x = model.norm(block(x))
    return x


def _first_only(model: nn.Module, x: Tensor) -> Tensor:
    return model.blocks[0](x)


def _read_tied(model: nn.Module, x: Tensor) -> Tensor:
    x = model.norm(x)
    return model.head(x) if model.head is not None else x @ model.embedding.token.weight.T


def _dropping(x: Tensor, model: nn.Module) -> Tensor:
    return nn.functional.dropout(x, model.config.dropout, model.training)


class _Renamed(_Model):
    """Give one part a name of its own."""

    def __init__(self, config: L1Config, *, part: str = "head"):
        super().__init__(config, read=_read_renamed)
        self.part = part
        self.other = getattr(self, part)
        delattr(self, part)


def _read_renamed(model: nn.Module, x: Tensor) -> Tensor:
    norm, head = (model.other if model.part == name else getattr(model, name) for name in ("norm", "head"))
    return head(norm(x))


class _FreshBlocks(_Model):
    """Make new blocks at each call."""

    def __init__(self, config: L1Config):
        super().__init__(config, stack=lambda make, n: (), through=self._through)

    @staticmethod
    def _through(model: nn.Module, x: Tensor) -> Tensor:
        for _ in range(model.config.n_layers):
            x = TransformerBlock(model.config).train(model.training)(x)
        return x


class _WithoutNorm(_Model):
    """Have no last norm at all."""

    def __init__(self, config: L1Config):
        super().__init__(config, read=lambda model, x: model.head(x))
        del self.norm


def _causal(model: nn.Module, ids: Tensor) -> bool:
    other = ids.clone()
    other[:, -1] = (other[:, -1] + 1) % model.head.weight.shape[0]
    return torch.allclose(model(ids)[:, :-1], model(other)[:, :-1], atol=1e-5)


def _rows_apart(model: nn.Module, ids: Tensor) -> bool:
    return torch.allclose(model(ids)[:1], model(ids[:1]), atol=1e-5)


L1_MODEL = Exercise(
    name="L1Model",
    notebook="05_model",
    reference=L1Model,
    init=("config",),
    observe=_observe_model,
    probes=(
        Probe("two blocks, tied", _ids(2, 3, **_IDS), "B T V"),
        # The gradients of one probe are enough, and they take time.
        Probe("untied, waves as positions, another epsilon, the whole context", _ids(2, 4, **_DEEP), "B T V", False),
        Probe("one block, one token; dropout", _ids(1, 1, **_DROPPING), "B T V", False, observe=_observe_dropping),
        Probe("the parameters as built, with init_std 0.05", _ids(1, 2, **_STARTING), observe=_observe_fresh),
    ),
    mistakes=(
        Mistake(
            "the parts are not called embedding, blocks, norm and head",
            "saved weights are found again by their names; with other names the trained ones do not fit.",
            lambda config: _Renamed(config),
            (lambda config: _Renamed(config, part="norm"),),
        ),
        Mistake(
            "the last norm is missing",
            "in a pre-norm model the stream has not been normalised since it was added to; the head needs it so.",
            partial(_Model, read=lambda model, x: model.head(x)),
            (_WithoutNorm,),
        ),
        Mistake(
            "the head has a bias",
            "the course's head is one matrix alone, which can be the token table; build it with bias=False.",
            partial(_Model, bias=True),
        ),
        Mistake(
            "the head is not tied to the token table",
            "with config.tie_weights both are one Parameter; equal numbers alone part at the first step.",
            partial(_Model, tie=lambda config: False),
        ),
        Mistake(
            "the head shares the numbers of the token table, but is another Parameter",
            "assign the Parameter itself, not its .data: else an optimizer moves the same numbers twice.",
            lambda config: _Model(config, share=_share_data),
        ),
        Mistake(
            "the head is tied although tie_weights is False",
            "the configuration decides.",
            lambda config: _Model(config, tie=lambda config: True),
        ),
        Mistake(
            "tie_weights is turned round",
            "True means that the head and the token table share one Parameter.",
            lambda config: _Model(config, tie=lambda config: not config.tie_weights),
        ),
        Mistake(
            "a tied model has no module head",
            "the course's weights and its generation ask for model.head; give it the token table's Parameter.",
            lambda config: _Model(config, share=_drop_head, read=_read_tied),
        ),
        Mistake(
            "softmax is applied to the logits",
            "the loss takes logits and applies softmax itself; twice flattens everything.",
            partial(_Model, read=lambda model, x: _read(model, x).softmax(-1)),
        ),
        Mistake(
            "log_softmax is applied to the logits",
            "the model gives scores; the loss and sampling make probabilities of them.",
            lambda config: _Model(config, read=lambda model, x: _read(model, x).log_softmax(-1)),
        ),
        Mistake(
            "the positions are missing",
            "call the whole embedding, not its token part: without positions order is lost.",
            partial(_Model, embed=lambda model, ids: model.embedding.dropout(model.embedding.token(ids))),
            (lambda config: _Model(config, embed=lambda model, ids: model.embedding.token(ids)),),
        ),
        Mistake(
            "all blocks are one and the same block",
            "[block] * n repeats one object; build a new block n times.",
            lambda config: _Model(config, stack=lambda make, n: nn.ModuleList([make()] * n)),
        ),
        Mistake(
            "the model does not know the blocks: they stand in a plain list, or there are none",
            "only a ModuleList or Sequential makes their parameters the model's; else no optimizer ever sees them.",
            lambda config: _Model(config, stack=lambda make, n: [make() for _ in range(n)]),
        ),
        Mistake(
            "the blocks are made anew at each call",
            "their numbers must last, so that they can learn: build the blocks in __init__.",
            _FreshBlocks,
        ),
        Mistake(
            "each block reads the embedding, and only the last one's output is used",
            "x = block(x): each block goes on with what the one before left.",
            lambda config: _Model(config, through=_last_only),
        ),
        Mistake(
            "only the first block is used",
            "x passes through all of them.",
            lambda config: _Model(config, through=_first_only),
        ),
        Mistake(
            "the blocks are passed over",
            "x passes through all of them before the last norm.",
            lambda config: _Model(config, through=lambda model, x: x),
        ),
        Mistake(
            "the blocks run in reverse order",
            "trained weights belong to their place: block 0 comes first.",
            lambda config: _Model(config, through=_reversed),
        ),
        Mistake(
            "x is added to each block's output once more",
            "the residual connections are inside the block.",
            lambda config: _Model(config, through=_added),
        ),
        Mistake(
            "the last norm is applied after every block",
            "it stands once, behind the last block; each block has norms of its own.",
            lambda config: _Model(config, through=_normed_each_time, read=lambda model, x: model.head(x)),
            (lambda config: _Model(config, through=_normed_each_time),),
        ),
        Mistake(
            "the last norm stands before the blocks",
            "it belongs behind them, in front of the head.",
            lambda config: _Model(
                config, embed=lambda model, ids: model.norm(_embed(model, ids)), read=lambda model, x: model.head(x)
            ),
        ),
        Mistake(
            "the number of blocks is not n_layers",
            "range(n) gives n turns.",
            lambda config: _Model(config, stack=lambda make, n: nn.ModuleList(make() for _ in range(n - 1))),
            (
                lambda config: _Model(config, stack=lambda make, n: nn.ModuleList(make() for _ in range(n + 1))),
                lambda config: _Model(config, stack=lambda make, n: nn.ModuleList([make()])),
            ),
        ),
        Mistake(
            "only the last position's logits are returned",
            "training learns from every position at once: logits are (B, T, V).",
            lambda config: _Model(config, read=lambda model, x: _read(model, x)[:, -1]),
            (lambda config: _Model(config, read=lambda model, x: _read(model, x[:, -1:])),),
        ),
        Mistake(
            "the token table is used in place of the head, tied or not",
            "an untied head has numbers of its own; call self.head, which is right in both cases.",
            lambda config: _Model(config, read=lambda model, x: model.norm(x) @ model.embedding.token.weight.T),
        ),
        Mistake(
            "the hidden states are returned: the head is not used",
            "the head turns each vector of width C into V scores.",
            lambda config: _Model(config, read=lambda model, x: model.norm(x)),
        ),
        Mistake(
            "a tuple is returned, logits and something else",
            "in this course a model returns logits alone, and the loss is a function outside.",
            lambda config: _Model(config, read=lambda model, x: (_read(model, x), None)),
        ),
        Mistake(
            "the embedding is multiplied by sqrt(C)",
            "that belongs to the original transformer (section 3.4); GPT-2 does not.",
            lambda config: _Model(
                config, embed=lambda model, ids: _embed(model, ids) * model.norm.weight.shape[0] ** 0.5
            ),
        ),
        Mistake(
            "the logits are divided by sqrt(C)",
            "the course's head is a plain matrix product.",
            lambda config: _Model(config, read=lambda model, x: _read(model, x) / x.shape[-1] ** 0.5),
        ),
        Mistake(
            "config.layer_norm_eps is ignored",
            "nn.LayerNorm takes it as its second argument; 1e-5 is only the default.",
            partial(_Model, eps=lambda config: 1e-5),
            (
                lambda config: _Model(config, eps=lambda config: 1e-6),
                lambda config: _Model(config, eps=lambda config: 1e-12),
            ),
        ),
        Mistake(
            "there is dropout outside the embedding and the blocks",
            "the embedding and each block bring their own; the stream and the head have none.",
            lambda config: _Model(config, embed=lambda model, ids: _dropping(_embed(model, ids), model)),
            (
                lambda config: _Model(config, read=lambda model, x: model.head(_dropping(model.norm(x), model))),
                lambda config: _Model(config, read=lambda model, x: _dropping(_read(model, x), model)),
                lambda config: _Model(config, through=lambda model, x: _dropping(_through(model, x), model)),
            ),
        ),
        Mistake(
            "init_weights is not called",
            "torch's own initial values are much larger, and so is the first loss.",
            partial(_Model, init="never"),
        ),
        Mistake(
            "init_weights is called before the blocks are built",
            "it can set only what is there: call it last.",
            partial(_Model, init="early"),
        ),
    ),
    properties=(
        Property("no logit depends on a later id", _causal),
        Property("each row of the batch is treated by itself", _rows_apart),
    ),
    hints=(
        "Four parts in the order of the data: embedding, blocks, norm, head. Each takes what the one before gives.",
        "A plain list of blocks hides their parameters; nn.ModuleList does not. Tying is one assignment of a "
        "Parameter, and init_weights comes last of all.",
        "Plan: InputEmbedding(config); a ModuleList of n_layers times TransformerBlock(config); nn.LayerNorm with the "
        "config's eps; nn.Linear from C to V without bias. If tied, the head's weight is the token table's. "
        "In forward: embed, loop over the blocks, norm, head.",
    ),
)

EXERCISES = (*counting.EXERCISES, *initial.EXERCISES, L1_MODEL, *tying.EXERCISES)
