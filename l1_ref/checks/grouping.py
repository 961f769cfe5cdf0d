"""The check of parameter_groups of 06_training: which parameters decay."""

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from l1_ref.checks.compare import Failure, kind
from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe
from l1_ref.checks.initial import ShownModel
from l1_ref.checks.observe import OUTPUT, Observation
from l1_ref.config import L1Config
from l1_ref.optimization import parameter_groups

_Build = Callable[[torch.Generator], Inputs]


class _Shown(nn.Module):
    """A model made of the parts given, which prints in a few words."""

    def __init__(self, text: str, **parts: nn.Module | Tensor):
        super().__init__()
        self.text = text
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def __repr__(self) -> str:
        return self.text


def _two_layers() -> nn.Module:
    return _Shown("a Linear and a LayerNorm", fc=nn.Linear(3, 4), norm=nn.LayerNorm(4))


def _tied_and_frozen() -> nn.Module:
    model = _Shown(
        "an Embedding tied to the head, a frozen Linear, a LayerNorm",
        token=nn.Embedding(5, 4),
        frozen=nn.Linear(4, 4),
        norm=nn.LayerNorm(4),
        head=nn.Linear(4, 5),
    )
    model.frozen.requires_grad_(False)
    model.head.weight = model.token.weight
    return model


def _odd_names() -> nn.Module:
    return _Shown(
        "parameters of 0 to 3 axes, whose names mislead",
        bias_table=torch.zeros(3, 2),
        norm_mix=torch.zeros(2, 2),
        weight_gain=torch.ones(4),
        filters=torch.zeros(2, 3, 2),
        temperature=torch.ones(()),
    )


def _blocks() -> nn.Module:
    block = _Shown("", norm=nn.LayerNorm(2), proj=nn.Linear(2, 2))
    return _Shown(
        "two blocks between an Embedding and a LayerNorm",
        token=nn.Embedding(3, 2),
        blocks=nn.ModuleList([block, copy.deepcopy(block)]),
        norm=nn.LayerNorm(2),
    )


def _of_the_course(tie_weights: bool) -> nn.Module:
    sizes = {"vocab_size": 3, "max_seq_length": 3, "n_layers": 1, "n_heads": 1, "n_embd": 2}
    return ShownModel(L1Config(**sizes, tie_weights=tie_weights))


def _named_as_gpt2() -> nn.Module:
    return _Shown(
        "parts that are named as GPT-2's",
        wte=nn.Embedding(3, 2),
        wpe=nn.Embedding(4, 2),
        c_fc=nn.Linear(2, 4),
        lm_head=nn.Linear(2, 3, bias=False),
    )


@lru_cache(maxsize=8)
def _model(make: Callable) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return make()


def _to_group(make: Callable, weight_decay: float) -> _Build:
    return lambda generator: {"model": _model(make), "weight_decay": weight_decay}


def _members(group: dict) -> list:
    """List the parameters of a group, which may come with their names, as torch allows."""
    params = group["params"]
    members = [params] if isinstance(params, Tensor) else list(params)
    return [each[1] if isinstance(each, tuple) and len(each) == 2 else each for each in members]


def _described(output: Any) -> str:
    if isinstance(output, torch.optim.Optimizer):
        return "an optimizer"
    if not isinstance(output, list | tuple):
        return kind(output)
    if not all(isinstance(group, dict) for group in output):
        return f"a {type(output).__name__} of {len(output)}: {', '.join(kind(group) for group in output[:3])}"
    if any(isinstance(group.get("params"), set) for group in output):
        return "dicts with sets of params"
    keys = ["params" in group for group in output]
    return f"{len(output)} dict{'s' * (len(output) != 1)}" + (", each with params" if all(keys) else ", without params")


def _observe_groups(candidate: Callable, inputs: Inputs, gradient: bool, seed: int) -> Observation:
    """Record in which group each parameter is, and how the groups decay."""
    model = copy.deepcopy(inputs["model"])
    named = dict(model.named_parameters())
    trainable = [p.requires_grad for p in named.values()]
    numbers = {name: p.detach().clone() for name, p in named.items()}
    try:
        output = candidate(model, inputs["weight_decay"])
        seen = {OUTPUT: _described(output)}
        if not seen[OUTPUT].endswith("each with params"):
            return seen
        members = [_members(group) for group in output]
    except Exception as error:
        return {OUTPUT: Failure(error)}
    groups = list(enumerate(members, start=1))
    places = {name: [n for n, group in groups for each in group if each is p] for name, p in named.items()}
    known = set(map(id, named.values()))
    # Short, since a message shows four of them in a line: 1, 2, "none" or "1 and 2".
    seen["the group of each parameter"] = {
        name: where[0] if len(where) == 1 else " and ".join(map(str, where)) or "none" for name, where in places.items()
    }
    seen["the weight_decay of the groups"] = [group.get("weight_decay", "not given") for group in output]
    seen["what else is in the groups"] = [kind(each) for group in members for each in group if id(each) not in known]
    kept = trainable == [p.requires_grad for p in named.values()]
    # A name for the group is welcome; another number, such as a learning rate, is a setting of the optimizer.
    seen["other settings of the groups"] = sorted(
        str(key) for group in output for key, n in group.items() if key != "weight_decay" and isinstance(n, int | float)
    )
    same = all(torch.equal(numbers[name], p) for name, p in named.items())
    seen["the parameters' numbers"] = "as they were" if same else "changed"
    return seen | {"which parameters can be trained": "those of before" if kept else "others"}


def _named(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    return model.named_parameters()


def _is_trained(p: nn.Parameter) -> bool:
    return p.requires_grad


def _is_matrix(name: str, p: Tensor, model: nn.Module) -> bool:
    return p.ndim >= 2


def _two_dicts(first: list, second: list, weight_decay: float) -> Any:
    return [{"params": first, "weight_decay": weight_decay}, {"params": second, "weight_decay": 0.0}]


def _groups(
    model: nn.Module,
    weight_decay: float,
    *,
    named: Callable = _named,
    taken: Callable = _is_trained,
    decays: Callable = _is_matrix,
    member: Callable = lambda name, p: p,
    made: Callable = _two_dicts,
) -> Any:
    """Group the parameters as the reference does, with one part or another replaced."""
    wanted = [(name, p) for name, p in named(model) if taken(p)]
    first = [member(name, p) for name, p in wanted if decays(name, p, model)]
    second = [member(name, p) for name, p in wanted if not decays(name, p, model)]
    return made(first, second, weight_decay)


def _with_repeats(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    return model.named_parameters(remove_duplicate=False)


def _of_top(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of the parts that stand in the model itself, not of those further in."""
    for name, part in model.named_children():
        yield from ((f"{name}.{inner}", p) for inner, p in part.named_parameters(recurse=False))
    yield from model.named_parameters(recurse=False)


def _of_state_dict(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    return model.state_dict().items()


def _weight_of(*kinds: type) -> Callable:
    """Return what says whether a parameter is the weight of a module of some type."""

    def decides(name: str, p: Tensor, model: nn.Module) -> bool:
        return any(getattr(m, "weight", None) is p for m in model.modules() if isinstance(m, kinds))

    return decides


def _is_in_a_norm(name: str, p: Tensor, model: nn.Module) -> bool:
    return any(p is own for m in model.modules() if isinstance(m, nn.LayerNorm) for own in m.parameters())


def _unfreezing(model: nn.Module, weight_decay: float) -> list[dict]:
    return parameter_groups(model.requires_grad_(True), weight_decay)


def _of_top_once(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    return [(name, p) for p, name in {p: name for name, p in _of_top(model)}.items()]


def _by_name(*words: str) -> Callable:
    return lambda name, p, model: not any(word in name.lower() for word in words)


def _sparing(*words: str) -> tuple[Callable, ...]:
    """Return two versions that spare what has a word in its name: beside the vectors, and beside biases and norms."""
    spared = _by_name(*words)
    return (
        partial(_groups, decays=lambda name, p, model: p.ndim >= 2 and spared(name, p, model)),
        partial(_groups, decays=_by_name("bias", "norm", *words)),
    )


_AXES = "matrices decay, and all else with two or more axes: p.ndim >= 2."
_NAMES = f"names and types change from model to model, the number of axes tells all: {_AXES}"
_STAY = "a bias, or the scale of a norm, has no reason to be near 0."
_STAY_BY_AXES = f"{_STAY} And {_NAMES}"

PARAMETER_GROUPS = Exercise(
    name="parameter_groups",
    notebook="06_training",
    reference=parameter_groups,
    observe=_observe_groups,
    probes=(
        Probe("two layers", _to_group(_two_layers, 0.1), gradient=False),
        Probe("one Parameter shared, one layer frozen", _to_group(_tied_and_frozen, 0.3), gradient=False),
        Probe("parts within parts", _to_group(_blocks, 0.05), gradient=False),
        Probe("names that mislead", _to_group(_odd_names, 0.2), gradient=False),
        Probe("the course's model", _to_group(partial(_of_the_course, False), 0.1), gradient=False),
        Probe("the course's model, tied", _to_group(partial(_of_the_course, True), 0.1), gradient=False),
        Probe("GPT-2's names", _to_group(_named_as_gpt2, 0.1), gradient=False),
    ),
    mistakes=(
        Mistake(
            "the group that decays comes second",
            "the order is agreed, so that both groups can be told apart: the one that decays comes first.",
            partial(_groups, made=lambda first, second, decay: _two_dicts(first, second, decay)[::-1]),
        ),
        Mistake(
            "the vectors decay, and the matrices do not",
            f"{_AXES} And {_STAY}",
            partial(_groups, decays=lambda *given: not _is_matrix(*given)),
            (partial(_groups, made=lambda first, second, decay: _two_dicts(second, first, decay)[::-1]),),
        ),
        Mistake(
            "everything decays",
            _STAY,
            partial(_groups, decays=lambda *given: True),
            (partial(_groups, made=lambda first, second, decay: [{"params": first + second, "weight_decay": decay}]),),
        ),
        Mistake(
            "both groups get the weight_decay",
            "two groups are needed only because the second one decays by 0.",
            partial(
                _groups,
                made=lambda first, second, decay: [{"params": each, "weight_decay": decay} for each in (first, second)],
            ),
        ),
        Mistake("nothing decays", _AXES, partial(_groups, decays=lambda *given: False)),
        Mistake(
            "the scales of the norms decay too: only biases are spared",
            _STAY_BY_AXES,
            partial(_groups, decays=_by_name("bias")),
            (
                partial(_groups, decays=lambda name, p, model: name.endswith("weight")),
                partial(_groups, decays=lambda name, p, model: not name.endswith(".bias")),
                partial(_groups, decays=lambda name, p, model: not name.endswith("bias")),
            ),
        ),
        Mistake(
            "the biases decay too: only norms are spared",
            _STAY_BY_AXES,
            partial(_groups, decays=_by_name("norm")),
            (partial(_groups, decays=lambda *given: not _is_in_a_norm(*given)),),
        ),
        Mistake(
            "it is decided by name, or by the type of the layer",
            _NAMES,
            partial(_groups, decays=_by_name("bias", "norm")),
            (
                partial(_groups, decays=lambda name, p, model: not name.endswith(".bias") and "norm" not in name),
                partial(_groups, decays=lambda name, p, model: not name.endswith("bias") and "norm" not in name),
                partial(_groups, decays=lambda name, p, model: name.endswith("weight") and "norm" not in name),
                partial(_groups, decays=lambda name, p, model: "weight" in name and "norm" not in name),
                partial(_groups, decays=_by_name("bias", "norm", "token")),
                partial(_groups, decays=_weight_of(nn.Linear)),
                partial(_groups, decays=_weight_of(nn.Linear, nn.Embedding)),
            ),
        ),
        Mistake(
            "embeddings do not decay",
            _AXES,
            partial(_groups, decays=lambda *given: _is_matrix(*given) and not _weight_of(nn.Embedding)(*given)),
            (partial(_groups, decays=lambda name, p, model: p.ndim >= 2 and "token" not in name),),
        ),
        Mistake(
            "some matrices are spared by their names: embeddings, positions or the head",
            _NAMES,
            _sparing("emb")[0],
            tuple(
                version
                for words in (
                    ("pos",),
                    ("head",),
                    ("emb", "head"),
                    ("lm_head",),
                    ("emb", "lm_head"),
                    ("pos", "head"),
                    ("wte", "wpe"),
                    ("wte",),
                    ("wpe",),
                    ("emb", "wte", "wpe"),
                    ("emb", "pos", "wte", "wpe"),
                    ("wte", "wpe", "head"),
                    ("emb", "pos", "wte", "wpe", "head"),
                )
                for version in _sparing(*words)
            )
            + _sparing("emb")[1:],
            tolerance=1e-5,  # too many versions to be looked for side by side with others
        ),
        Mistake(
            "only what has exactly two axes decays",
            _AXES,
            partial(_groups, decays=lambda name, p, model: p.ndim == 2),
        ),
        Mistake(
            "the limit is not at two axes",
            _AXES,
            partial(_groups, decays=lambda name, p, model: p.ndim >= 1),
            (partial(_groups, decays=lambda name, p, model: p.ndim > 2),),
        ),
        Mistake(
            "frozen parameters are in the groups",
            "who freezes a layer wants it to stay: ask p.requires_grad.",
            partial(_groups, taken=lambda p: True),
        ),
        Mistake(
            "frozen parameters are made trainable",
            "who freezes a layer wants it to stay: leave requires_grad as it is, and the parameter out.",
            _unfreezing,
        ),
        Mistake(
            "a shared Parameter is listed twice",
            "it would move twice at each step, or torch refuses it: model.parameters() names each one once.",
            partial(_groups, named=_with_repeats),
        ),
        Mistake(
            "what does not decay is left out",
            "a parameter that no group holds is never trained.",
            partial(_groups, made=lambda first, second, decay: [{"params": first, "weight_decay": decay}]),
            (partial(_groups, made=lambda first, second, decay: _two_dicts(first, [], decay)),),
        ),
        Mistake(
            "a parameter of no axes, or of more than two, is left out",
            "a parameter that no group holds is never trained: the second group takes all that the first does not.",
            partial(_groups, taken=lambda p: p.requires_grad and p.ndim >= 1),
            (
                partial(_groups, taken=lambda p: p.requires_grad and p.ndim <= 2),
                partial(_groups, taken=lambda p: p.requires_grad and p.ndim in (1, 2)),
            ),
        ),
        Mistake(
            "parts within parts are left out",
            "a parameter that no group holds is never trained: model.parameters() goes all the way down.",
            partial(_groups, named=_of_top_once),
            (
                partial(_groups, named=_of_top),
                partial(_groups, named=lambda model: model.named_parameters(recurse=False)),
            ),
        ),
        Mistake(
            "the matrices are in both groups",
            "torch refuses a parameter that two groups hold.",
            partial(_groups, made=lambda first, second, decay: _two_dicts(first, first + second, decay)),
        ),
        Mistake(
            "weight_decay is not used",
            "the caller chooses it.",
            partial(_groups, made=lambda first, second, decay: _two_dicts(first, second, 0.1)),
            (partial(_groups, made=lambda first, second, decay: _two_dicts(first, second, 0.01)),),
        ),
        Mistake(
            "the second group does not say weight_decay",
            "AdamW then decays it by its own default, 0.01: write 0.0.",
            partial(
                _groups,
                made=lambda first, second, decay: [{"params": first, "weight_decay": decay}, {"params": second}],
            ),
        ),
        Mistake(
            "weight_decay is missing in the groups",
            "AdamW then decays both by its own default, 0.01.",
            partial(_groups, made=lambda first, second, decay: [{"params": first}, {"params": second}]),
            (
                partial(
                    _groups,
                    made=lambda first, second, decay: [{"params": first}, {"params": second, "weight_decay": 0.0}],
                ),
            ),
        ),
        Mistake(
            "the groups hold names, not Parameters",
            "the optimizer changes tensors: it needs the Parameters themselves.",
            partial(_groups, member=lambda name, p: name),
        ),
        Mistake(
            "the groups hold copies, not the Parameters themselves",
            "the optimizer would change tensors that the model does not use: no .data, detach, clone or state_dict().",
            partial(_groups, member=lambda name, p: p.detach()),
            (lambda model, decay: _groups(model, decay, named=_of_state_dict, taken=lambda p: True),),
        ),
        Mistake(
            "the groups hold sets",
            "the order in a set differs from run to run, so torch refuses it: make lists.",
            partial(_groups, made=lambda first, second, decay: _two_dicts(set(first), set(second), decay)),
        ),
        Mistake(
            'the key is not "params"',
            'an optimizer looks for "params" in each group.',
            partial(_groups, made=lambda first, second, decay: [{"parameters": first}, {"parameters": second}]),
        ),
        Mistake(
            "two lists of Parameters are returned, without dicts",
            'a group is a dict: {"params": …, "weight_decay": …}.',
            partial(_groups, made=lambda first, second, decay: (first, second)),
            (partial(_groups, made=lambda first, second, decay: [first, second]),),
        ),
        Mistake(
            "one dict is returned, not a list of two",
            "an optimizer takes a list of groups, each a dict of its own.",
            partial(_groups, made=lambda first, second, decay: {"decay": first, "no_decay": second}),
        ),
        Mistake(
            "an optimizer is returned, not its groups",
            "the groups are wanted; which optimizer takes them, the caller decides.",
            lambda model, decay: torch.optim.AdamW.__new__(torch.optim.AdamW),  # its __init__ takes a second
        ),
    ),
    properties=(),
    hints=(
        "Go through the parameters once. Two questions to each: can it be trained at all, and how many axes has it?",
        "model.parameters() goes through everything, and names a shared Parameter once. p.ndim is the number of axes, "
        "p.requires_grad says whether it is trained. What must the second dict say, so that nothing in it decays?",
        "Plan: a list of what can be trained; from it, those with two or more axes and those with fewer; a list of two "
        'dicts, each with "params" and "weight_decay", the decayed one first.',
    ),
)

EXERCISES = (PARAMETER_GROUPS,)
