"""The check of 08_generation on the loop: generate."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from l1_ref.checks import loops
from l1_ref.checks.compare import Failure
from l1_ref.checks.draws import EDGE, before_heat
from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe, Property
from l1_ref.checks.observe import OUTPUT, REPEATED, Observation, copies
from l1_ref.checks.prompts import NARROW, SETTINGS, loaded, prompts, stops
from l1_ref.checks.tallies import (
    ALL_THE_SAME,
    COLUMN,
    ITSELF,
    TOGETHER,
    counted,
    defaults_of,
    looks,
    other_defaults,
    same_ids,
    together,
    with_defaults,
)
from l1_ref.generation import generate, sample

_STEPS = "the steps of a row"
_MODE, _RECORDED, _AFTER = "the model's mode afterwards", "steps recorded for gradients", "gradients afterwards"
_TRAINABLE = "the model's parameters afterwards"


# What is seen.


def _by_name(candidate: Callable) -> Callable:
    """Hand over settings by their names: the reference takes more of them, in another order."""
    return lambda model, ids, n, *settings: candidate(model, ids, n, **dict(zip(SETTINGS, settings, strict=False)))


@torch.enable_grad()
def _observe_writing(candidate: Callable, inputs: Inputs, gradient: bool, seed: int) -> Observation:
    """Let code write without chance; record the ids, and what becomes of the model and of the gradients."""
    model, ids, *settings = inputs.values()
    was_training, recorded, fed = model.training, [], []
    model.embedding.register_forward_pre_hook(lambda module, given: fed.append(given[0].shape[-1]))
    model.embedding.register_forward_hook(lambda module, given, output: recorded.append(output.requires_grad))
    outputs = []
    try:
        for n in range(2 if len(ids) > 1 else 4):  # what is drawn for one row alone is easily the same twice
            mine = ids.clone()
            torch.default_generator.manual_seed(seed + n)
            model.train(was_training)
            outputs.append(_by_name(candidate)(model, mine, *settings))
    except Exception as error:
        return {OUTPUT: Failure(error, at=fed[-1:])}  # how many tokens the model met last
    gradients_on = torch.is_grad_enabled()  # as the code left it; behind this function they are on again
    if not all(_alike(outputs[0], other) for other in outputs):
        return {REPEATED: "differ"}
    output = outputs[0]
    seen: Observation = {OUTPUT: output.detach().clone() if isinstance(output, Tensor) else output}
    seen["the input ids"] = "as it was" if torch.equal(mine, ids) else "changed in place"
    modes = {module.training for module in model.modules()}
    seen[_MODE] = "mixed" if len(modes) > 1 else "training" if modes == {True} else "eval"
    seen[_RECORDED] = "yes" if any(recorded) else "no"
    seen[_AFTER] = "as before" if gradients_on else "turned off"
    seen[_TRAINABLE] = "as before" if all(p.requires_grad for p in model.parameters()) else "frozen"
    return seen


def _alike(a: Any, b: Any) -> bool:
    return same_ids(a, b) if isinstance(a, Tensor) else type(a) is type(b)


def _are_texts(output: Any, B: int, S: int) -> bool:
    return isinstance(output, Tensor) and output.shape == (B, S) and not output.is_floating_point()


@torch.enable_grad()
def _observe_counts(candidate: Callable, inputs: Inputs, gradient: bool, seed: int, n_rows: int = 400) -> Observation:
    """Let code write one token behind many copies of a prompt, and count what was drawn."""
    model, ids, n, *settings = inputs.values()
    given = settings[:-1] if "generator" in inputs else settings

    def write(B: int, seed: int) -> Any:
        torch.default_generator.manual_seed(seed)
        generator = [torch.Generator().manual_seed(seed)] if "generator" in inputs else []
        return _by_name(candidate)(model, ids.repeat(B, 1), n, *given, *generator)

    try:
        output = write(n_rows, seed)
        if not _are_texts(output, n_rows, ids.shape[1] + n):
            return {COLUMN: looks(output)}
        drawn = output[:, -1].tolist()
        if together(drawn, 1, lambda n: write(1, seed + n)[:, -1].tolist()):
            return {COLUMN: looks(output), TOGETHER: ALL_THE_SAME}
    except Exception as error:
        return {OUTPUT: Failure(error)}
    return {COLUMN: looks(output), TOGETHER: ITSELF} | counted(drawn, 1) | defaults_of(candidate)


@torch.enable_grad()
def _observe_kept(candidate: Callable, inputs: Inputs, gradient: bool, seed: int, n_rows: int = 120) -> Observation:
    """Let code write one token behind many copies of a prompt, and record which ids come, however often."""
    model, ids, n, *settings, _ = inputs.values()
    torch.default_generator.manual_seed(seed)
    try:
        given = (*settings, torch.Generator().manual_seed(seed))
        output = _by_name(candidate)(model, ids.repeat(n_rows, 1), n, *given)
        if not _are_texts(output, n_rows, ids.shape[1] + n):
            return {COLUMN: looks(output)}
        drawn = sorted(set(output[:, -1].tolist()))
    except Exception as error:
        return {OUTPUT: Failure(error)}
    # Which one it is may be chance: it is told apart elsewhere.
    return {COLUMN: looks(output), "the set of ids drawn": drawn if len(drawn) > 1 else "one id alone"}


def _calls(candidate: Callable, inputs: Inputs, seed: int) -> tuple[Any, ...]:
    """Return texts: two of one generator, of another seed, of the first seed; two of torch's own, and one again."""

    def write(generator: torch.Generator | None) -> Any:
        return _by_name(candidate)(*(copies(inputs) | {"generator": generator}).values())

    def seeded(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    torch.default_generator.manual_seed(seed)
    generator = seeded(seed)
    first, second, unlike_it = write(generator), write(generator), write(seeded(seed + 1))
    torch.default_generator.manual_seed(seed + 1)
    again, own, own_second = write(seeded(seed)), write(None), write(None)
    torch.default_generator.manual_seed(seed + 1)
    write(seeded(seed))
    return first, second, unlike_it, again, own, own_second, write(None)


@torch.enable_grad()
def _observe_steps(candidate: Callable, inputs: Inputs, gradient: bool, seed: int) -> Observation:
    """Record how draws follow the generator, and whether rows and steps meet chances of their own."""
    try:
        first, second, unlike_it, again, own, own_second, own_again = _calls(candidate, inputs, seed)
    except Exception as error:
        return {OUTPUT: Failure(error)}
    ids, T = inputs["ids"], inputs["ids"].shape[1]
    if not isinstance(first, Tensor) or first.shape != (len(ids), T + inputs["max_new_tokens"]):
        return {COLUMN: looks(first)}
    new, changes = first[:, T:], not same_ids(first, second) or not same_ids(first, unlike_it)
    if changes and bool((new == new[:1]).all()):
        return {COLUMN: looks(first), TOGETHER: ALL_THE_SAME}
    if changes and bool((new == new[:, :1]).all()):
        return {COLUMN: looks(first), TOGETHER: ITSELF, _STEPS: "all draw with the same chance"}
    seen = {COLUMN: looks(first), TOGETHER: ITSELF, _STEPS: ITSELF}
    pairs = {
        "a generator of the same seed": again,
        "a generator of another seed": unlike_it,
        "a second call with the same generator": second,
    }
    seen |= {name: _compared(first, other) for name, other in pairs.items()}
    seen["torch's own generator, with the same seed"] = _compared(own, own_again)
    return seen | {"a second call without a generator": _compared(own, own_second)}


def _compared(a: Any, b: Any) -> str:
    return "the same draw" if same_ids(a, b) else "another draw"


SURE, SIX = (0.83, 0.065, 0.06, 0.045), (0.34, 0.22, 0.16, 0.12, 0.09, 0.07)
_AT_EDGES = {"observe": _observe_kept}  # the first two hold 0.68 of the chances: p lies a little below, or above
_RARE = (0.5, 0.462, 0.038)  # the last is cut off by a p of 0.96
_LAST = "the model sees as much of the text as it has positions for: its last max_seq_length tokens."
_ENDS = "a row that has drawn the stop token is finished; the others go on, and all stay equally long."
_PASS = "the caller's settings must reach the draw."
_UNDISTURBED = "whoever calls this may be in the middle of training: leave the model as it came."

# Two mistakes side by side are looked for among the common ones: those with a tolerance of their own are left out.
_rare = partial(Mistake, tolerance=1e-5)

GENERATE = Exercise(
    name="generate",
    notebook="08_generation",
    reference=generate,
    observe=_observe_writing,
    probes=tuple(
        partial(Probe, axes="B S", gradient=False)(*each, **more)
        for *each, more in (
            ("three prompts, greedy", prompts(3, 3, 3, 0.0), {}),
            ("a model in training mode, with dropout", prompts(4, 2, 4, 0.0, training=True, dropout=0.5), {}),
            ("the rows stop one after the other", stops(2, 3, 1, n=5, training=True), {}),
            ("one row never stops, and stop_token is 0", stops(1, None, 3, n=5, stop=0), {}),
            ("hot, with top_k = 1", prompts(5, 3, 4, 3.0, 1), {}),
            ("hot, with a small top_p", prompts(5, 3, 4, 3.0, None, 0.01), {}),
            (
                "nothing but the model, the prompts and a number",
                loaded(SURE),
                {"observe": _observe_counts},
            ),
            # What stays is told apart from what stays at another temperature, or with another k or p.
            ("all settings", loaded(SIX, 3.0, 4, 0.58, None, None), {"observe": _observe_counts}),
            ("cold, with top_p", loaded(SIX, 0.5, None, 0.86, None, None), {"observe": _observe_counts}),
            (
                "rows that follow the generator",
                loaded(SIX, 1.5, None, None, None, None, B=12, n=2),
                {"observe": _observe_steps},
            ),
            ("a text that grows beyond the context", prompts(6, 3, 6, 0.0, **NARROW), {"edge": True}),
            ("prompts that are longer than the context", prompts(6, 8, 2, 0.0, **NARROW), {"edge": True}),
            ("no new tokens", prompts(2, 4, 0, 0.0, training=True), {"edge": True}),
            ("one prompt, which ends in the stop token", stops(2, n=3, stop=4, place=-1), {}),
            *(
                (
                    f"{word}, and p close to a sum of chances",
                    loaded(before_heat(t, *EDGE), t, None, p, None, None),
                    _AT_EDGES,
                )
                for word, t in (("hot", 3.0), ("cold", 0.5))
                for p in (0.6775, 0.6825)
            ),
            ("a high top_p", loaded(_RARE, 1.0, None, 0.96, None, None), {"observe": _observe_counts}),
        )
    ),
    mistakes=(
        # These three show in the dearest probe alone: first, so that few versions are run there.
        Mistake(
            "the generator is not used",
            "whoever hands in a generator of the same seed must get the same text again.",
            partial(loops.write, draw=loops.setting(generator=None)),
        ),
        _rare(
            "each step draws with the same seed",
            "the same chance number at each step makes texts that no model would write; set no seed.",
            loops.alone(draw=loops.seeded_each_time),
        ),
        _rare(
            "torch's own seed is set inside",
            "without a generator two calls must differ, unless the caller sets a seed.",
            loops.alone(begin=loops.seeded_inside),
            (loops.alone(begin=loops.seeded_inside, draw=loops.setting(generator=None)),),
        ),
        _rare(
            "the scores behind the first token are used, not those behind the last",
            "the next token follows the last one: [:, -1].",
            loops.alone(scores=lambda model, window: model(window)[:, 0]),
        ),
        _rare(
            "only the newest token is fed, without a cache",
            "without keys and values of the others the model knows nothing of what stands before.",
            loops.alone(window=lambda ids, limit: ids[:, -1:]),
            (loops.newest_behind_prompt,),
        ),
        _rare(
            "only the prompt is fed, at every step",
            "each new token becomes part of the text: ids = torch.cat(…).",
            loops.prompt_only,
        ),
        _rare(
            "the cache is fed the whole text at each step",
            "it holds the first ones already: feed only what it has not seen.",
            loops.fed_all_each_time,
        ),
        Mistake(
            "there is no crop: a text longer than the context stops with an error",
            _LAST,
            partial(loops.write, window=lambda ids, limit: ids),
        ),
        _rare(
            "the crop leaves one token too many",
            _LAST,
            loops.alone(window=lambda ids, limit: ids[:, -(limit + 1) :]),
        ),
        _rare(
            "the cache is not filled anew when the window is full",
            "each token moves by one there, and its keys change: feed the last max_seq_length ids, without old keys.",
            loops.cached(loops.kept),
            tuple(map(loops.cached, (loops.rolled, loops.shortened, loops.emptied))),
        ),
        Mistake(
            "the text is cropped on the wrong side: the model sees its beginning",
            _LAST,
            loops.alone(window=lambda ids, limit: ids[:, :limit]),
        ),
        _rare(
            "the crop takes one token too many away",
            _LAST,
            loops.alone(window=lambda ids, limit: ids[:, -(limit - 1) :]),
            (loops.alone(window=lambda ids, limit: ids[:, -(limit - 1) :] if ids.shape[1] >= limit else ids),),
        ),
        Mistake(
            "what is returned has been cropped too",
            "only what the model sees is cropped; the text itself stays complete.",
            loops.alone(join=loops.cropped),
            (
                loops.alone(join=loops.cropped_before),
                loops.cropped_prompt,
                partial(loops.cropped_prompt, join=loops.cropped_before),
            ),
        ),
        Mistake(
            "the prompt is left out of what comes back",
            "prompt and continuation, (B, S).",
            partial(loops.write, finish=lambda ids, T: ids[:, T:]),
        ),
        _rare(
            "only the last step's ids come back",
            "prompt and continuation, (B, S).",
            loops.alone(finish=lambda ids, T: ids[:, -1:]),
        ),
        Mistake(
            "one token too many is written",
            "range(n) gives n turns; draw nothing before or behind the loop.",
            partial(loops.write, steps=lambda n, ids: n + 1),
            (loops.alone(steps=lambda n, ids: max(1, n)),),
        ),
        _rare(
            "one token too few is written",
            "range(n) gives n turns.",
            partial(loops.write, steps=lambda n, ids: n - 1),
        ),
        _rare(
            "max_new_tokens is taken for the length of prompt and continuation together",
            "it counts the new ones.",
            loops.alone(steps=lambda n, ids: n - ids.shape[1]),
        ),
        Mistake(
            "dropout is active: the model is not put into eval mode",
            "dropout is for training; here it spoils the scores, differently at each step.",
            loops.alone(begin=lambda model: None),
            (loops.alone(begin=lambda model: model.train()),),
        ),
        Mistake(
            "the model is left in eval mode",
            _UNDISTURBED,
            loops.alone(end=loops.stay),
        ),
        _rare(
            "the mode is not given back where it returns early",
            "a return inside the loop, or before it, passes over what stands behind it: use break, or try and finally.",
            loops.alone(returns_inside=True),
            (loops.back_at_once, loops.back_wherever),
        ),
        _rare(
            "the model's parameters stay frozen",
            _UNDISTURBED,
            loops.alone(end=loops.frozen),
        ),
        _rare(
            "the model is always left in training mode",
            _UNDISTURBED,
            loops.alone(end=loops.train),
        ),
        Mistake(
            "steps are recorded for gradients",
            "nobody trains here, and the records cost memory: torch.no_grad() leaves them out.",
            loops.alone(recording=True),
        ),
        _rare(
            "gradients stay turned off afterwards",
            "with torch.no_grad(): turns them off for its block alone; set_grad_enabled(False) lasts.",
            loops.alone(end=loops.gradients_off),
        ),
        Mistake(
            "a row that has stopped is not filled with the stop token",
            _ENDS,
            partial(loops.write, fill=loops.not_filled),
        ),
        _rare(
            "the end waits for the stop token in all rows at the same step",
            "rows stop at different times: remember which have drawn it.",
            loops.alone(fill=loops.not_filled, stopped_by=loops.at_once),
        ),
        _rare(
            "it works for one row only: .item() asks for the end",
            "ids is a batch: keep one truth value for each row.",
            loops.for_one_row,
        ),
        _rare(
            "a row that has stopped is filled with another token",
            _ENDS,
            loops.alone(fill=lambda new, stopped, stop: new.masked_fill(stopped, 0), stopped_by=loops.ever),
            (loops.alone(fill=lambda new, stopped, stop: new.masked_fill(stopped, -1)),),
        ),
        Mistake(
            "all ends as soon as one row has stopped",
            _ENDS,
            partial(loops.write, enough=torch.any),
            (loops.alone(enough=torch.any, fill=loops.not_filled),),
        ),
        _rare(
            "only the first row decides about the end",
            _ENDS,
            loops.alone(enough=lambda stopped: stopped[0]),
            (loops.alone(enough=lambda stopped: stopped[0], fill=loops.not_filled),),
        ),
        _rare(
            "the last row decides about the end",
            _ENDS,
            loops.alone(enough=lambda stopped: stopped[-1]),
        ),
        Mistake(
            "nothing ends early, though all rows have stopped",
            "the work behind the last stop token is for nothing.",
            loops.alone(enough=loops.never),
        ),
        Mistake(
            "the stop token is ignored",
            "None alone never stops.",
            loops.alone(none=lambda stop: True),
        ),
        Mistake(
            "stop_token 0 is taken for None",
            "0 is a token like others, and `if stop_token` is false for it: ask `is not None`.",
            partial(loops.write, none=lambda stop: not stop),
        ),
        _rare(
            "a stop token in the prompt counts",
            "what the prompt holds was not drawn; only new tokens can stop a row.",
            loops.alone(stopped_by=loops.anywhere),
            (loops.alone(stopped_by=loops.anywhere, fill=loops.not_filled), *loops.counting_prompts()),
        ),
        _rare(
            "a stop token at the end of the prompt counts",
            "the last id of a text may still be the prompt's: remember for each row whether it has drawn the token.",
            loops.asks_last_first,
            tuple(loops.alone(start=loops.at_the_end, asks_first=first) for first in (False, True)),
        ),
        _rare(
            "the last stop token is left out",
            "the token that was drawn belongs to the text: append it, then end.",
            loops.alone(drop_last=True),
        ),
        Mistake(
            "the temperature is ignored",
            _PASS,
            partial(loops.write, draw=loops.setting(temperature=1.0)),
        ),
        _rare(
            "temperature 0 is taken for 1",
            "0 is greedy, and false as well: `temperature or 1.0` gives 1.",
            loops.alone(draw=loops.never_zero),
        ),
        _rare(
            "the temperature acts twice",
            "sample divides by it already.",
            loops.alone(draw=loops.heated_twice),
        ),
        Mistake(
            "top_k is ignored",
            _PASS,
            loops.alone(draw=loops.setting(top_k=None)),
        ),
        Mistake(
            "top_p is ignored",
            _PASS,
            loops.alone(draw=loops.setting(top_p=None)),
        ),
        _rare(
            "top_k and top_p have changed places",
            "hand them on by their names.",
            loops.alone(draw=lambda logits, heat, k, p, generator: sample(logits, heat, p, k, generator)),
        ),
        _rare(
            "top_k and top_p are both ignored",
            _PASS,
            loops.alone(draw=loops.setting(top_k=None, top_p=None)),
        ),
        _rare(
            "all settings are ignored",
            _PASS,
            loops.alone(draw=loops.setting(temperature=1.0, top_k=None, top_p=None)),
            (loops.alone(draw=loops.setting(temperature=1.0, top_k=None, top_p=None, generator=None)),),
        ),
        _rare(
            "nothing is drawn: it is greedy at every temperature",
            "l1_ref.sample draws; it is greedy at temperature 0.",
            loops.alone(draw=loops.likeliest),
        ),
        _rare(
            "there is one draw for the whole batch",
            "each row is a text of its own, and draws for itself.",
            loops.alone(draw=loops.one_for_all),
        ),
        _rare(
            "softmax is applied before the draw",
            "sample wants scores: probabilities taken for scores come out nearly even.",
            loops.alone(draw=loops.twice_soft),
        ),
        _rare(
            "a setting that is not given has another default",
            "without settings it draws by the model's own chances: temperature 1, and all tokens.",
            with_defaults(loops.write, temperature=0.3),
            other_defaults(loops.write),
        ),
        _rare(
            "only the first row is continued",
            "ids is a batch: all rows go on together.",
            loops.first_row_only,
            (loops.alone(finish=lambda ids, T: ids[0]),),
        ),
        _rare(
            "a list comes back, not a tensor",
            "the caller decodes rows of one tensor, (B, S).",
            loops.alone(finish=lambda ids, T: ids.tolist()),
        ),
        _rare(
            "the axes are swapped, (S, B)",
            "rows are texts: (B, S).",
            loops.alone(finish=lambda ids, T: ids.T),
        ),
        _rare(
            "the axis of the batch is lost where there is one row",
            "one prompt is a batch of one: (1, S).",
            loops.alone(finish=lambda ids, T: ids.squeeze(0)),
        ),
        _rare(
            "a high top_p is taken for 1: it cuts nothing",
            _PASS,
            loops.alone(draw=loops.high_p_dropped),
        ),
        _rare(
            "the temperature is not the one that was asked for",
            _PASS,
            loops.heated_by(0.9),
            tuple(map(loops.heated_by, (0.7, 0.75, 0.8, 0.95, 1.05, 1.1, 1.2, 1.3))),
        ),
    ),
    properties=(
        Property(
            "what comes back begins with the prompt",
            lambda f, **given: torch.equal(f(*given.values())[:, : given["ids"].shape[1]], given["ids"]),
        ),
    ),
    hints=(
        "One turn of the loop: which ids does the model see, which of its scores matter, and what becomes of the id "
        "that was drawn?",
        "Keep one truth value for each row: has it drawn the stop token? Fill first, then remember, then append, and "
        "then ask whether all have stopped.",
        "Plan: remember the mode, eval, no_grad. In each turn: the last max_seq_length ids; the scores behind the "
        "last; sample; fill finished rows; append; end if all have stopped. Afterwards give the mode back.",
    ),
)


EXERCISES = (GENERATE,)
