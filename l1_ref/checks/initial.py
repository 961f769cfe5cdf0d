"""The check of the initial values: chance draws them, so what is compared is their mean, deviation and shape."""

import copy
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from l1_ref.checks.compare import Failure, Rough
from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe, Property
from l1_ref.checks.observe import OUTPUT, Observation, observe_in_place
from l1_ref.config import L1Config
from l1_ref.transformer import L1Model, init_weights

_ONE, _TWO = "one Parameter", "two Parameters"
PAIR, SHAPES = "the pair head.weight, embedding.token.weight", "the shapes and dtypes"


class ShownModel(L1Model):
    """A model that a message can show in a few words, and that is copied quickly."""

    def __repr__(self) -> str:
        return f"L1Model of {len(self.blocks)} block{'s' if len(self.blocks) > 1 else ''}"

    def __deepcopy__(self, memo: dict) -> "ShownModel":
        return _copied(self, {})


def _copied(module: nn.Module, known: dict[nn.Parameter, nn.Parameter]) -> nn.Module:
    """Copy a module and all below it; what is one Parameter stays one. `copy.deepcopy` takes ten times as long."""
    new = module.__class__.__new__(module.__class__)
    new.__dict__ = {key: value.copy() if isinstance(value, dict) else value for key, value in vars(module).items()}
    for name, parameter in module._parameters.items():
        if parameter is not None:
            new._parameters[name] = known.setdefault(parameter, nn.Parameter(parameter.detach().clone()))
    for name, part in module._modules.items():
        new._modules[name] = _copied(part, known)
    return new


@lru_cache(maxsize=16)
def _odd_model(**settings: Any) -> L1Model:
    """Build a model all of whose parameters are 0.5, so that what is left alone shows; code gets a copy."""
    with torch.random.fork_rng(devices=[]):
        model = ShownModel(L1Config(dropout=0.0, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    return model


def _to_initialise(init_std: float, **settings: Any) -> Callable[[torch.Generator], Inputs]:
    """Return the builder of a probe: a model, and a configuration that differs from its own in init_std alone."""
    return lambda generator: {
        "model": _odd_model(**settings),
        "config": L1Config(dropout=0.0, init_std=init_std, **settings),
    }


def figures(model: nn.Module) -> Observation:
    """Measure each parameter, roughly; five standard errors of the difference are allowed."""
    named = dict(model.named_parameters(remove_duplicate=False))
    seen: Observation = {SHAPES: {name: f"{tuple(p.shape)} {p.dtype}" for name, p in named.items()}}
    standardised = []
    for name, parameter in named.items():
        values, n = parameter.detach(), parameter.numel()
        std, mean = (x.item() for x in torch.std_mean(values))
        seen[f"the mean of {name}"] = Rough(mean, 5 * std * (2 / n) ** 0.5 + 1e-6)
        # Small vectors tell too little for five errors: what is drawn must still differ from what is constant.
        seen[f"the std of {name}"] = Rough(std, min(5 / n**0.5, 0.9) * std + 1e-6)
        if parameter.ndim > 1 and std > 1e-6:
            standardised.append(((values - mean) / std).flatten())
    tails = torch.cat(standardised).double().pow(4).mean().item() if standardised else 0.0
    return seen | {"the kurtosis of the matrices (3 where the numbers are normal)": Rough(tails, 0.35)}


def tied(model: nn.Module) -> str:
    return _ONE if model.head.weight is model.embedding.token.weight else _TWO


def _observe_init(candidate: Callable, inputs: Inputs, gradient: bool, seed: int) -> Observation:
    """Record what the function returns, whether the Parameters are still the same objects, and rough figures."""
    replaced: list[str] = []

    def call(model: nn.Module, config: L1Config) -> Any:
        before = dict(model.named_parameters(remove_duplicate=False))
        output = candidate(model, config)
        after = model.named_parameters(remove_duplicate=False)
        replaced.extend(name for name, parameter in after if parameter is not before.get(name))
        return "a model" if isinstance(output, nn.Module) else output

    def describe(model: nn.Module) -> Observation:
        first, last = (model.blocks[i].attention.qkv.weight for i in (0, -1))
        return figures(model) | {
            PAIR: tied(model),
            "Parameters replaced by new ones": replaced or "none",
            "the numbers of the first and of the last block": "equal" if first.equal(last) else "others",
            "frozen Parameters": sum(not parameter.requires_grad for parameter in model.parameters()),
        }

    seen = observe_in_place(call, inputs, gradient, seed, describe)
    return seen if isinstance(seen[OUTPUT], Failure) else {OUTPUT: seen[OUTPUT]} | seen["model afterwards"]


def _is_residual(name: str) -> bool:
    return name.endswith("proj.weight")


def _normal(parameter: Tensor, std: float) -> None:
    parameter.normal_(0.0, std)


@torch.no_grad()
def _init(
    model: nn.Module,
    config: L1Config,
    *,
    root: Callable[[int], float] = lambda n_layers: (2 * n_layers) ** 0.5,
    scaled: Callable[[str], bool] = _is_residual,
    std: Callable[[L1Config], float] = lambda config: config.init_std,
    draw: Callable[[Tensor, float], Any] = _normal,
    bias: Callable[[Tensor], Any] = lambda p: p.zero_(),
    shift: Callable[[Tensor], Any] | None = None,
    scale: Callable[[Tensor], Any] = lambda p: p.fill_(1.0),
    token: Callable[[Tensor, float], Any] | None = None,
    position: Callable[[Tensor, float], Any] | None = None,
    left: Callable[[str], bool] = lambda name: False,
) -> None:
    """Initialise with switches: each mistake sets one, or a few."""
    special = {"embedding.token.weight": token, "embedding.position.weight": position}
    for name, parameter in model.named_parameters():
        if left(name):
            continue
        if parameter.ndim < 2:
            (scale if name.endswith("weight") else shift or bias if "norm" in name else bias)(parameter)
        else:
            size = std(config) / (root(config.n_layers) if scaled(name) else 1)
            (special.get(name) or draw)(parameter, size)


def _leave(p: Tensor, std: float = 0.0) -> None:
    """Do nothing."""


def _replacing(model: nn.Module, config: L1Config) -> None:
    """Draw into new Parameters, so that the head and the token table part."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach().clone()))
    _init(model, config)


def _replacing_once(model: nn.Module, config: L1Config) -> None:
    """Replace each Parameter under its first name alone, so that a tied head keeps the old one."""
    for name, parameter in list(model.named_parameters()):
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, nn.Parameter(parameter.detach().clone()))
    _init(model, config, left=lambda name: config.tie_weights and name == "head.weight")


def _by_depth(model: nn.Module, config: L1Config) -> None:
    _init(model, config)
    with torch.no_grad():
        for depth, block in enumerate(model.blocks, start=1):
            for proj in (block.attention.proj, block.feed_forward.proj):
                proj.weight.mul_((config.n_layers / depth) ** 0.5)


def _drawing_proj_biases(model: nn.Module, config: L1Config) -> None:
    _init(model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("proj.bias"):
                parameter.normal_(0.0, config.init_std / (2 * config.n_layers) ** 0.5)


def _returning(model: nn.Module, config: L1Config) -> nn.Module:
    _init(model, config)
    return model


def _on_a_copy(model: nn.Module, config: L1Config) -> nn.Module:
    return _returning(copy.deepcopy(model), config)


def _seeding(model: nn.Module, config: L1Config) -> None:
    def draw(parameter: Tensor, std: float) -> None:
        torch.manual_seed(0)
        parameter.normal_(0.0, std)

    _init(model, config, draw=draw)


def _fanned(kind: Callable) -> Callable:
    """Let the shape of a matrix decide, as xavier and kaiming do."""
    return partial(_init, draw=lambda p, std: kind(p))


def _unit(parameter: Tensor, std: float) -> None:
    parameter.normal_()


def _linear_only(name: str) -> bool:
    return name.startswith("embedding")


def _draws_anew(candidate: Callable, model: nn.Module, config: L1Config) -> bool:
    models = [copy.deepcopy(model) for _ in range(2)]
    for each in models:
        candidate(each, config)
    return not models[0].head.weight.equal(models[1].head.weight)


SMALL = {"vocab_size": 40, "max_seq_length": 24, "n_layers": 2, "n_heads": 2, "n_embd": 32, "n_inner": 48}
_UNTIED = {
    "vocab_size": 50,
    "max_seq_length": 9,
    "n_layers": 3,
    "n_heads": 4,
    "n_embd": 40,
    "n_inner": 64,
    "tie_weights": False,
    "position_encoding": "sinusoidal",
}
_RESIDUAL = "all n_layers blocks add to one stream, twice each; this factor keeps the sum from growing with depth."
_NEW = "the numbers must change inside the Parameters that the model has: an optimizer and a tied head hold on to them."

INIT_WEIGHTS = Exercise(
    name="init_weights",
    notebook="05_model",
    reference=init_weights,
    observe=_observe_init,
    probes=(
        Probe("two blocks, tied", _to_initialise(0.02, **SMALL), gradient=False),
        Probe("three blocks, untied, fixed waves", _to_initialise(0.1, **_UNTIED), gradient=False),
    ),
    mistakes=(
        Mistake(
            "the residual projections are not scaled down",
            _RESIDUAL,
            partial(_init, scaled=lambda name: False),
        ),
        Mistake(
            "the root of n_layers is taken, not of 2 * n_layers",
            "each block writes to the residual stream twice, so N, the number of residual layers, is 2 * n_layers.",
            partial(_init, root=lambda n_layers: n_layers**0.5),
        ),
        Mistake(
            "the residual projections are divided by 2 * n_layers, without the root",
            "independent sums grow with the root of their number: variances add up, deviations do not.",
            partial(_init, root=lambda n_layers: 2 * n_layers),
        ),
        Mistake(
            "the residual projections are multiplied by the root, not divided",
            _RESIDUAL,
            partial(_init, root=lambda n_layers: (2 * n_layers) ** -0.5),
        ),
        Mistake(
            "each block is scaled by its own depth, not by n_layers",
            "the rule names one factor for all blocks: 1 / sqrt(2 * n_layers).",
            _by_depth,
        ),
        Mistake(
            "all matrices are scaled down",
            "only those that write to the residual stream are: the ones named proj.",
            partial(_init, scaled=lambda name: True),
            (lambda model, config: _init(model, config, scaled=lambda name: name.startswith("blocks")),),
        ),
        Mistake(
            "only attention's proj is scaled down",
            "the feed-forward layer's proj writes to the residual stream too.",
            partial(_init, scaled=lambda name: name.endswith("attention.proj.weight")),
        ),
        Mistake(
            "only the feed-forward layer's proj is scaled down",
            "attention's proj writes to the residual stream too.",
            partial(_init, scaled=lambda name: name.endswith("feed_forward.proj.weight")),
        ),
        Mistake(
            "the wrong layers are scaled down: fc or qkv",
            "these read the stream; the layers that write to it are named proj.",
            lambda model, config: _init(model, config, scaled=lambda name: name.endswith("fc.weight")),
            (
                lambda model, config: _init(model, config, scaled=lambda name: name.endswith("qkv.weight")),
                lambda model, config: _init(
                    model, config, scaled=lambda name: name.endswith(("fc.weight", "attention.proj.weight"))
                ),
                lambda model, config: _init(
                    model, config, scaled=lambda name: name.endswith(("fc.weight", "proj.weight"))
                ),
            ),
        ),
        Mistake(
            "config.init_std is ignored: 0.02 is written in the code",
            "the configuration decides; 0.02 is only its default.",
            partial(_init, std=lambda config: 0.02),
        ),
        Mistake(
            "init_std is taken for the variance",
            "normal_(mean, std) takes the standard deviation, as init_std is.",
            lambda model, config: _init(model, config, std=lambda config: config.init_std**0.5),
            (lambda model, config: _init(model, config, std=lambda config: config.init_std**2),),
        ),
        Mistake(
            "the biases are left as they were",
            "they start at 0; torch's linear layers come with random ones.",
            partial(_init, bias=_leave),
            (lambda model, config: _init(model, config, bias=_leave, shift=lambda p: p.zero_()),),
        ),
        Mistake(
            "the norms are left as they were",
            "a function that initialises a model must set every parameter: scales 1, shifts 0.",
            lambda model, config: _init(model, config, left=lambda name: "norm" in name),
            (lambda model, config: _init(model, config, scale=_leave),),
        ),
        Mistake(
            "the last norm is left as it was",
            "it is called norm, without a number behind it; the blocks' norms are norm_1 and norm_2.",
            lambda model, config: _init(model, config, left=lambda name: name.startswith("norm")),
        ),
        Mistake(
            "biases and norms are left as they were",
            "a function that initialises a model must set every parameter: biases 0, scales 1.",
            lambda model, config: _init(model, config, bias=_leave, scale=_leave),
        ),
        Mistake(
            "the biases are drawn at random",
            "they start at 0.",
            lambda model, config: _init(model, config, bias=lambda p: p.normal_(0, config.init_std)),
            (
                lambda model, config: _init(
                    model, config, bias=lambda p: p.normal_(0, config.init_std), shift=lambda p: p.zero_()
                ),
            ),
        ),
        Mistake(
            "the biases of proj are drawn too",
            "only names that end in proj.weight are meant; a bias starts at 0.",
            _drawing_proj_biases,
        ),
        Mistake(
            "the scales of the norms are drawn at random",
            "they start at 1, so that normalised vectors pass as they are.",
            lambda model, config: _init(model, config, scale=lambda p: p.normal_(0, config.init_std)),
        ),
        Mistake(
            "every parameter is drawn, biases and norms too",
            "biases start at 0, and the scales of the norms at 1.",
            lambda model, config: _init(
                model,
                config,
                bias=lambda p: p.normal_(0, config.init_std),
                scale=lambda p: p.normal_(0, config.init_std),
            ),
        ),
        Mistake(
            "the scales of the norms are 0",
            "a norm then gives zeros, and no gradient reaches what stands before it; scales start at 1.",
            partial(_init, scale=lambda p: p.zero_()),
        ),
        Mistake(
            "the biases are 1",
            "biases start at 0; only the scales of the norms start at 1.",
            partial(_init, bias=lambda p: p.fill_(1.0)),
            (lambda model, config: _init(model, config, shift=lambda p: p.fill_(1.0)),),
        ),
        Mistake(
            "the embeddings are left as they were",
            "TokenEmbedding and PositionalEmbedding are no nn.Linear and no nn.Embedding; their matrices count too.",
            lambda model, config: _init(model, config, left=_linear_only),
            # With a tied head the layer nn.Linear brings the token table along.
            (
                lambda model, config: _init(
                    model, config, left=lambda n: _linear_only(n) and not (config.tie_weights and "token" in n)
                ),
            ),
        ),
        Mistake(
            "the positions are left as they were",
            "their table is a matrix like the others.",
            partial(_init, position=_leave),
        ),
        Mistake(
            "the head is left as it was",
            "an untied head has a matrix of its own.",
            lambda model, config: _init(model, config, left=lambda name: name == "head.weight"),
        ),
        Mistake(
            "only the top of the model is reached",
            "children() gives the modules one step down; modules() and named_parameters() go all the way.",
            lambda model, config: _init(model, config, left=lambda n: n.startswith(("embedding.position", "blocks"))),
            (
                lambda model, config: _init(
                    model,
                    config,
                    left=lambda n: (
                        n.startswith("blocks") or (not config.tie_weights and "token" in n) or "position" in n
                    ),
                ),
                lambda model, config: _init(model, config, left=lambda n: n.startswith("blocks")),
            ),
        ),
        Mistake(
            "the embeddings are drawn with std 1",
            "a tied table with std 1 makes scores of the size of sqrt(C): the first loss is far above ln V.",
            lambda model, config: _init(model, config, token=_unit, position=_unit),
            (
                lambda model, config: _init(model, config, token=_unit),
                lambda model, config: _init(model, config, position=_unit),
            ),
        ),
        Mistake(
            "the positions get half of the deviation",
            "GPT-2's own code gives them 0.01; here one init_std holds for all.",
            partial(_init, position=lambda p, std: p.normal_(0, std / 2)),
            (lambda model, config: _init(model, config, position=lambda p, std: p.normal_(0, 0.01)),),
        ),
        Mistake(
            "the positions are 0",
            "their table is drawn like the other matrices.",
            lambda model, config: _init(model, config, position=lambda p, std: p.zero_()),
        ),
        Mistake(
            "the residual projections are 0",
            "they are drawn too, with init_std / sqrt(2 * n_layers).",
            lambda model, config: _init(model, config, root=lambda n_layers: float("inf")),
        ),
        Mistake(
            "the numbers are uniform, not normal",
            "GPT-2's matrices are drawn from the bell curve, with init_std as its standard deviation.",
            lambda model, config: _init(model, config, draw=lambda p, std: p.uniform_(-std, std)),
            (
                lambda model, config: _init(
                    model, config, draw=lambda p, std: p.uniform_(-(3**0.5) * std, 3**0.5 * std)
                ),
            ),
        ),
        Mistake(
            "the numbers are all positive",
            "torch.rand lies between 0 and 1; the mean must be 0.",
            lambda model, config: _init(model, config, draw=lambda p, std: p.uniform_(0, std)),
            (lambda model, config: _init(model, config, draw=lambda p, std: p.normal_(0, std).abs_()),),
        ),
        Mistake(
            "the bell curve is cut off at two deviations",
            "cut off there, its deviation is a tenth too small.",
            lambda model, config: _init(
                model, config, draw=lambda p, std: nn.init.trunc_normal_(p, std=std, a=-2 * std, b=2 * std)
            ),
        ),
        Mistake(
            "mean and deviation have changed places",
            "normal_(mean, std): the mean comes first, and it is 0.",
            lambda model, config: _init(model, config, draw=lambda p, std: p.fill_(std)),
        ),
        Mistake(
            "the shape of each matrix decides (xavier, kaiming), not init_std",
            "here one deviation holds for all shapes.",
            _fanned(nn.init.xavier_normal_),
            (
                _fanned(nn.init.xavier_uniform_),
                _fanned(nn.init.kaiming_normal_),
                _fanned(nn.init.kaiming_uniform_),
                _fanned(partial(nn.init.kaiming_uniform_, a=5**0.5)),
                _fanned(nn.init.orthogonal_),
            ),
        ),
        Mistake(
            "every matrix gets the same random numbers",
            "a seed that is set again before each draw makes layers alike; setting seeds is the caller's business.",
            _seeding,
        ),
        Mistake("the Parameters are replaced by new ones", _NEW, _replacing, (_replacing_once,)),
        Mistake(
            "the model is left as it was",
            _NEW,
            lambda model, config: None,
            (_on_a_copy,),
        ),
        Mistake(
            "the model is returned",
            "what works in place returns nothing, so that nobody takes it for a copy.",
            _returning,
        ),
    ),
    properties=(Property("two calls must draw different numbers: init_weights sets no seed", _draws_anew),),
    hints=(
        "model.named_parameters() gives every parameter once, with its name. Three kinds are enough: matrices, "
        "scales of norms, everything else.",
        "parameter.ndim tells matrices from vectors; the end of the name tells proj.weight from other matrices, and "
        "a norm's weight from a bias. parameter.normal_(mean, std) and fill_(value) write in place; torch wants them "
        "under torch.no_grad().",
        "Plan: under no_grad, for each name and parameter: a matrix gets normal_(0, init_std), divided by "
        "sqrt(2 * n_layers) if its name ends in proj.weight; a vector gets 1 if its name ends in weight, and else 0.",
    ),
)

EXERCISES = (INIT_WEIGHTS,)
