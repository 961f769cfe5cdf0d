"""The check of 08_generation on drawing: sample."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from l1_ref.checks.compare import Failure
from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe, Property
from l1_ref.checks.nucleus import from_chances
from l1_ref.checks.observe import OUTPUT, Observation, copies, observe_draws
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
from l1_ref.generation import sample, top_k_filter, top_p_filter

_N_KINDS = 3  # of rows, where the generator is looked at
_N_COPIES = 600  # of each row, where draws are counted


def _observe_repeats(candidate: Callable, inputs: Inputs, gradient: bool, seed: int) -> Observation:
    """Record what a draw looks like, and how it follows the generator: two calls with one, and torch's own."""

    def draw(seed: int) -> list[int]:
        torch.default_generator.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        return candidate(*(copies(inputs) | {"generator": generator}).values()).flatten().tolist()

    seen = observe_draws(candidate, inputs, gradient, seed, lambda output, given: looks(output), _nothing, n_calls=0)
    if isinstance(seen.get(OUTPUT), Failure):
        return seen
    seen.pop("how often each was drawn")
    if seen[OUTPUT] == f"torch.int64, shape ({len(inputs['logits'])}, 1)":
        if together(draw(seed), _N_KINDS, lambda n: draw(seed + n)[:_N_KINDS]):
            return {OUTPUT: seen[OUTPUT], TOGETHER: ALL_THE_SAME}
        seen = {OUTPUT: seen[OUTPUT], TOGETHER: ITSELF} | seen  # told first: where it is wrong, nothing else is seen
    torch.default_generator.manual_seed(987_654_321 + seed)  # a seed that no code sets itself
    before = torch.get_rng_state()
    draw_apart = copies(inputs) | {"generator": torch.Generator().manual_seed(seed)}
    candidate(*draw_apart.values())
    still = torch.equal(before, torch.get_rng_state())
    seen["torch's own random numbers, with a generator given"] = "left alone" if still else "drawn from, or seeded"
    given = copies(inputs)
    for name, generator in (
        ("a second call with the same generator", torch.Generator().manual_seed(seed)),
        ("a second call without a generator", None),
    ):
        torch.default_generator.manual_seed(seed)
        draws = [candidate(*{**given, "generator": generator}.values()) for _ in range(4)]
        seen[name] = "the same draw" if all(same_ids(draws[0], draw) for draw in draws[1:]) else "another draw"
    return seen


def _nothing(output: Any, inputs: Inputs) -> list:
    return []


def _observe_counts(candidate: Callable, inputs: Inputs, gradient: bool, seed: int) -> Observation:
    """Draw once for many copies of each row, and count."""
    rows = inputs["logits"]
    given = {"logits": rows.repeat(_N_COPIES, 1)}

    def draw(logits: Tensor, seed: int) -> Any:
        torch.default_generator.manual_seed(seed)
        generator = {"generator": torch.Generator().manual_seed(seed)} if "generator" in inputs else {}
        return candidate(*(inputs | {"logits": logits} | generator).values())

    try:
        mine = given["logits"].clone()
        output = draw(mine, seed)
        if not isinstance(output, Tensor) or output.shape != (len(mine), 1) or output.is_floating_point():
            return {COLUMN: looks(output)}
        ids = output.flatten().tolist()
        if together(ids, len(rows), lambda n: draw(rows.clone(), seed + n).flatten().tolist()):
            return {COLUMN: looks(output), TOGETHER: ALL_THE_SAME}
    except Exception as error:
        return {OUTPUT: Failure(error)}
    kept = torch.equal(mine, given["logits"])
    seen = {COLUMN: looks(output), TOGETHER: ITSELF, "the input logits": "as it was" if kept else "changed in place"}
    return seen | counted(ids, len(rows)) | defaults_of(candidate)


# Wrong versions: a way from scores to ids, with switches.


def _heat(logits: Tensor, temperature: float, k: int | None, p: float | None) -> Tensor:
    return logits / temperature


def _cut_k(logits: Tensor, temperature: float, k: int | None, p: float | None) -> Tensor:
    return logits if k is None else top_k_filter(logits, k)


def _cut_p(logits: Tensor, temperature: float, k: int | None, p: float | None) -> Tensor:
    return logits if p is None else top_p_filter(logits, p)


def _cut_one(logits: Tensor, temperature: float, k: int | None, p: float | None) -> Tensor:
    return top_k_filter(logits, k) if k is not None else _cut_p(logits, temperature, k, p)


def _cut_other(logits: Tensor, temperature: float, k: int | None, p: float | None) -> Tensor:
    return top_p_filter(logits, p) if p is not None else _cut_k(logits, temperature, k, p)


def _cut_both_only(logits: Tensor, temperature: float, k: int | None, p: float | None) -> Tensor:
    return logits if k is None or p is None else top_p_filter(top_k_filter(logits, k), p)


def _cut_apart(logits: Tensor, temperature: float, k: int | None, p: float | None) -> Tensor:
    """Keep what both filters keep of the whole distribution."""
    both = [cut(logits, temperature, k, p) == -math.inf for cut in (_cut_k, _cut_p)]
    return logits.masked_fill(both[0] | both[1], -math.inf)


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(-1)


def _draw(chances: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.multinomial(chances, 1, generator=generator)


def _likeliest(chances: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return chances.argmax(-1, keepdim=True)


def _greedy(logits: Tensor, **settings: Any) -> Tensor:
    return logits.argmax(-1, keepdim=True)


def _divided_first(logits: Tensor, top_k: int | None, top_p: float | None, **_: Any) -> Tensor:
    """Divide by 0, and take the first of the scores that have become infinite."""
    return _likeliest(_cut_p(_cut_k(logits / 0, 0, top_k, None), 0, None, top_p))


def _sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    *,
    steps: Sequence[Callable] = (_heat, _cut_k, _cut_p),
    zero: Callable | None = _greedy,
    scores: Callable[[Tensor], Tensor] = lambda logits: logits,
    chances: Callable[[Tensor], Tensor] = _softmax,
    draw: Callable[[Tensor, torch.Generator | None], Tensor] = _draw,
    finish: Callable[[Tensor, Tensor], Any] = lambda ids, logits: ids,
) -> Any:
    """Draw with switches: each mistake sets one, or a few."""
    if zero is not None and temperature == 0:
        return zero(logits, top_k=top_k, top_p=top_p, generator=generator)
    heated = scores(logits)
    for step in steps:
        heated = step(heated, temperature, top_k, top_p)
    return finish(draw(chances(heated), generator), heated)


def _as_rank(ids: Tensor, heated: Tensor) -> Tensor:
    """Return places in the sorted list, where ids of the vocabulary are wanted."""
    return heated.argsort(-1, descending=True).argsort(-1).gather(-1, ids)


def _rank_among(place: int) -> Callable:
    """Return a version whose draw is a place in the sorted list where this setting is given."""

    def ranked(*given: Any) -> Tensor:
        cut = len(given) > place and given[place] is not None and given[1] != 0
        return _sample(*given, finish=_as_rank if cut else lambda ids, heated: ids)

    return ranked


def _colder(limit: float) -> Callable:
    """Return a version that is greedy below this temperature."""
    return lambda *given: _sample(*given[:1], *(t if t >= limit else 0 for t in given[1:2]), *given[2:])


def _other_heat(changed: Callable[[float], float]) -> Callable:
    """Return a version that divides by something made of the temperature."""
    return lambda *given: _sample(*given, steps=(lambda x, t, k, p: x / changed(t), _cut_k, _cut_p))


def _other_heats() -> tuple[Callable, ...]:
    """Return versions with other factors: on all temperatures, on the hot ones and on the cold ones."""
    factors = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.03, 1.05, 1.1, 1.15, 1.2, 1.3)
    places = (lambda t: True, lambda t: t > 1, lambda t: t < 1)
    pairs = [(factor, where) for where in places for factor in factors]
    return tuple(_other_heat(lambda t, f=factor, where=where: f * t if where(t) else t) for factor, where in pairs)


def _cut_unless_high(logits: Tensor, temperature: float, k: int | None, p: float | None) -> Tensor:
    return logits if p is None or p >= 0.95 else top_p_filter(logits, p)


def _own_generator(chances: Tensor, generator: torch.Generator | None) -> Tensor:
    fresh = torch.Generator()
    fresh.seed()
    return _draw(chances, fresh)


def _seeded_by_chance(chances: Tensor, generator: torch.Generator | None) -> Tensor:
    torch.seed()
    return _draw(chances, None)


def _fixed_seed(chances: Tensor, generator: torch.Generator | None) -> Tensor:
    return _draw(chances, torch.Generator().manual_seed(42))


def _global_seed(chances: Tensor, generator: torch.Generator | None) -> Tensor:
    torch.manual_seed(0)
    return _draw(chances, generator)


def _reseeded(chances: Tensor, generator: torch.Generator | None) -> Tensor:
    if generator is not None:
        generator.manual_seed(generator.initial_seed())
    return _draw(chances, generator)


def _same_start(chances: Tensor, generator: torch.Generator | None) -> Tensor:
    return _draw(chances, torch.Generator().manual_seed(0) if generator is None else generator)


def _unseeded_if_none(chances: Tensor, generator: torch.Generator | None) -> Tensor:
    return _own_generator(chances, None) if generator is None else _draw(chances, generator)


def _one_for_all(chances: Tensor, generator: torch.Generator | None) -> Tensor:
    u = torch.rand(1, generator=generator)
    return (chances.cumsum(-1) < u).sum(-1, keepdim=True).clamp(max=chances.shape[-1] - 1)


def _row_by_row_anew(chances: Tensor, generator: torch.Generator | None) -> Tensor:
    """Begin each row with a generator of the same seed."""
    if generator is None:
        return _draw(chances, None)
    fresh = torch.Generator().manual_seed(generator.initial_seed())
    return (chances / torch.empty_like(chances[:1]).exponential_(generator=fresh)).argmax(-1, keepdim=True)


def _by_first_row(chances: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.multinomial(chances[0], len(chances), replacement=True, generator=generator)[:, None]


def _flat(chances: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.multinomial(chances.mean(0), len(chances), replacement=True, generator=generator)[:, None]


def _zero_kept(logits: Tensor) -> Tensor:
    return logits.masked_fill(logits == -math.inf, 0.0).softmax(-1)


def _heated_in_place(logits: Tensor, *settings: Any) -> Tensor:
    if settings and settings[0]:
        logits /= settings[0]
        return _sample(logits, 1.0, *settings[1:])
    return _sample(logits, *settings)


def _drawing_in_place(logits: Tensor, *settings: Any) -> Tensor:
    ids = _sample(logits, *settings)
    logits /= settings[0] if settings and settings[0] else 1.0
    logits -= logits.max()
    return ids


# Probes. Each chance is 0, or large enough to be met; each mistake changes which ids come, or how often by far.

_DEFAULT = (0.83, 0.065, 0.06, 0.045)
_FLAT = (0.36, 0.28, 0.2, 0.16)
_COLD = (0.4, 0.3, 0.2, 0.1)
_MILD = (0.31, 0.27, 0.23, 0.19), (0.3, 0.28, 0.23, 0.19)
_NEARLY_EVEN = (0.258, 0.25, 0.247, 0.245)
_SIX, _OTHER_SIX = (0.34, 0.22, 0.16, 0.12, 0.09, 0.07), (0.41, 0.19, 0.15, 0.11, 0.08, 0.06)
_RARE = (0.5, 0.462, 0.038), (0.51, 0.453, 0.037)  # the last is cut off by a p of 0.96
# The first two of these hold a little less, or a little more, than _AT_EDGE.
EDGE, _OTHER_EDGE, _AT_EDGE = (0.36, 0.32, 0.17, 0.15), (0.37, 0.315, 0.165, 0.15), 0.6825


def before_heat(temperature: float, *chances: float) -> tuple[float, ...]:
    """Return the chances that a temperature turns into the given ones.

    Where p cuts these close to one of their sums, another temperature changes which ids come, and not only how often.

    Args:
        temperature: Above 0.
        chances: What it is to make of them.
    """
    powers = [chance**temperature for chance in chances]
    return tuple(power / sum(powers) for power in powers)


def _rows(*rows: Sequence[float], **settings: Any) -> Callable[[torch.Generator], Inputs]:
    return lambda generator: {"logits": from_chances(rows, generator, level=1.5), **settings, "generator": None}


def _edges(temperature: float) -> Callable[[torch.Generator], Inputs]:
    """Return the builder of a probe: of two rows, one loses an id if it is colder, the other gains one if hotter."""
    rows = (before_heat(temperature, *row) for row in (EDGE, _OTHER_EDGE))
    return _rows(*rows, temperature=temperature, top_k=None, top_p=_AT_EDGE)


def _only_logits(generator: torch.Generator) -> Inputs:
    return {"logits": from_chances((_DEFAULT,), generator, level=4.0)}


def _repeated(generator: torch.Generator) -> Inputs:
    logits = from_chances((_FLAT, _COLD, _FLAT), generator).repeat(8, 1)
    return {"logits": logits, "temperature": 1.5, "top_k": 3, "top_p": 0.95, "generator": None}


_ORDER = "temperature, then k, then p: whoever reads your settings expects this order."
_SOURCE = "whoever hands in a generator of the same seed must get the same draws again, or no text can be repeated."

SAMPLE = Exercise(
    name="sample",
    notebook="08_generation",
    reference=sample,
    observe=_observe_counts,
    probes=tuple(
        partial(Probe, gradient=False)(*each, **more)
        for *each, more in (
            ("rows that follow the generator", _repeated, {"observe": _observe_repeats}),
            ("nothing but the scores", _only_logits, {}),
            ("cold", _rows(*_MILD, temperature=0.4, top_k=None, top_p=None), {}),
            ("very cold", _rows(_NEARLY_EVEN, _NEARLY_EVEN, temperature=0.05, top_k=None, top_p=None), {}),
            ("hot", _rows((0.55, 0.27, 0.18), (0.5, 0.31, 0.19), temperature=3.0, top_k=None, top_p=None), {}),
            ("top-k alone", _rows(_SIX, _OTHER_SIX, temperature=1.0, top_k=2, top_p=None), {}),
            ("top-p alone", _rows(_SIX, _OTHER_SIX, temperature=1.0, top_k=None, top_p=0.65), {}),
            ("top-k and top-p", _rows(_SIX, _OTHER_SIX, temperature=1.0, top_k=4, top_p=0.65), {}),
            ("hot, with top-p", _rows(_SIX, _OTHER_SIX, temperature=3.0, top_k=None, top_p=0.64), {}),
            ("hot, with all settings", _rows(_SIX, _OTHER_SIX, temperature=3.0, top_k=4, top_p=0.62), {}),
            ("cold, with all settings", _rows(_SIX, _OTHER_SIX, temperature=0.5, top_k=3, top_p=0.885), {}),
            ("temperature 0", _rows(_FLAT, _COLD, temperature=0.0, top_k=None, top_p=None), {"edge": True}),
            ("temperature 0 and top-k", _rows(_FLAT, _COLD, temperature=0.0, top_k=3, top_p=None), {"edge": True}),
            ("hot, and p close to a sum of chances", _edges(3.0), {}),
            ("cold, and p close to a sum of chances", _edges(0.5), {}),
            ("very cold, and p close to a sum of chances", _edges(0.05), {}),
            ("a high top-p", _rows(*_RARE, temperature=1.0, top_k=None, top_p=0.96), {}),
        )
    ),
    mistakes=(
        Mistake(
            "the temperature is ignored",
            "it decides how bold the draws are; it acts before the filters.",
            partial(_sample, steps=(_cut_k, _cut_p)),
        ),
        Mistake(
            "the scores are multiplied by the temperature",
            "a hot distribution must be flat: divide.",
            lambda *given: _sample(*given, steps=(lambda x, t, k, p: x * t, _cut_k, _cut_p)),
        ),
        Mistake(
            "the temperature comes after top-p",
            f"p is then measured on other chances than those that are drawn from. {_ORDER.capitalize()}",
            partial(_sample, steps=(_cut_k, _cut_p, _heat)),
        ),
        Mistake(
            "top-p is measured before top-k",
            f"p is a share of what k has left. {_ORDER.capitalize()}",
            partial(_sample, steps=(_heat, _cut_p, _cut_k)),
            (lambda *given: _sample(*given, steps=(_heat, _cut_apart)),),
        ),
        Mistake(
            "the order is turned round: top-p, top-k, temperature",
            _ORDER.capitalize(),
            lambda *given: _sample(*given, steps=(_cut_p, _cut_k, _heat)),
        ),
        Mistake(
            "top_k is ignored",
            "None alone keeps all tokens.",
            partial(_sample, steps=(_heat, _cut_p)),
        ),
        Mistake(
            "p is turned round: the tokens reach 1 - p",
            "a p of 0.9 keeps nine tenths of the probability.",
            lambda *given: _sample(*given, steps=(_heat, _cut_k, lambda x, t, k, p: _cut_p(x, t, k, p and 1 - p))),
        ),
        Mistake(
            "top_p is ignored",
            "None alone keeps all tokens.",
            partial(_sample, steps=(_heat, _cut_k)),
        ),
        Mistake(
            "top_k and top_p are both ignored",
            "a filter returns a new tensor: go on with that one.",
            lambda *given: _sample(*given, steps=(_heat,)),
        ),
        Mistake(
            "of two filters only one is applied",
            "with else or elif the second is passed over; each has an if of its own.",
            lambda *given: _sample(*given, steps=(_heat, _cut_one)),
            (
                lambda *given: _sample(*given, steps=(_heat, _cut_other)),
                lambda *given: _sample(*given, steps=(_heat, _cut_both_only)),
            ),
        ),
        Mistake(
            "softmax is missing: it draws by the scores",
            "multinomial takes weights: scores below 0 are none, and the others are not the shares that softmax gives.",
            partial(_sample, chances=lambda heated: heated),
            (lambda *given: _sample(*given, chances=lambda heated: heated.clamp(min=0)),),
        ),
        Mistake(
            "softmax is applied twice",
            "probabilities taken for scores come out nearly even.",
            lambda *given: _sample(*given, scores=_softmax),
            (
                lambda *given: _sample(*given, chances=lambda heated: _softmax(_softmax(heated))),
                lambda *given: _sample(*given, steps=(_heat, lambda x, t, k, p: _softmax(x), _cut_k, _cut_p)),
            ),
        ),
        Mistake(
            "softmax goes along the batch (dim=0)",
            "each row is a text of its own, with its own probabilities.",
            lambda *given: _sample(*given, chances=lambda heated: heated.softmax(0).nan_to_num(0.0)),
            (lambda *given: _sample(*given, chances=lambda heated: heated.softmax(0)),),
        ),
        Mistake(
            "removed tokens are drawn all the same: their scores become 0, not -inf",
            "softmax gives a score of 0 its share; only -inf becomes a chance of 0.",
            lambda *given: _sample(*given, chances=_zero_kept),
        ),
        Mistake(
            "nothing is drawn: the likeliest id comes each time",
            "that is greedy, for temperature 0 alone.",
            lambda *given: _sample(*given, draw=_likeliest),
        ),
        Mistake(
            "all ids that are left are drawn equally often",
            "the likelier token must come more often.",
            lambda *given: _sample(*given, chances=lambda heated: (heated.softmax(-1) > 0).float()),
        ),
        Mistake(
            "there is one draw for the whole batch",
            "each row is a text of its own: the same chance number for all ties them together.",
            lambda *given: _sample(*given, draw=_one_for_all),
        ),
        Mistake(
            "each row draws with a generator of the same seed",
            "the same chance number for all rows ties them together: one generator goes through all rows.",
            lambda *given: _sample(*given, draw=_row_by_row_anew),
        ),
        Mistake(
            "the chances of one row are used for all rows",
            "each row has its own scores.",
            lambda *given: _sample(*given, draw=_by_first_row),
            (lambda *given: _sample(*given, draw=_flat),),
        ),
        Mistake(
            "a place in the sorted scores comes back, not an id of the vocabulary",
            "what was drawn from sorted or chosen scores must be looked up in their indices: gather.",
            lambda *given: _sample(*given, zero=None if len(given) < 2 or given[1] else _greedy, finish=_as_rank),
            (_rank_among(2), _rank_among(3)),
        ),
        Mistake(
            "the axis is lost: (B,) comes back, not (B, 1)",
            "the ids are appended to (B, T) as one more column.",
            lambda *given: _sample(*given)[:, 0],
            (lambda *given: _sample(*given, zero=None if len(given) > 1 and given[1] else _greedy)[:, 0],),
        ),
        Mistake(
            "at temperature 0 the axis is lost: (B,), not (B, 1)",
            "both ways through the function must return a column.",
            lambda *given: _sample(*given, zero=lambda logits, **settings: logits.argmax(-1)),
        ),
        Mistake(
            "where it draws, the axis is lost: (B,), not (B, 1)",
            "both ways through the function must return a column: multinomial returns one already.",
            lambda *given: _sample(*given, finish=lambda ids, heated: ids[:, 0]),
        ),
        Mistake(
            "more than one id a row is drawn",
            "num_samples=1: one id a row.",
            lambda *given: _sample(*given, draw=lambda c, g: torch.multinomial(c, 2, replacement=True, generator=g)),
        ),
        Mistake(
            "a score or a probability comes back, not an id",
            "return what multinomial drew.",
            lambda *given: _sample(*given, finish=lambda ids, heated: heated.softmax(-1).gather(-1, ids)),
            (
                lambda *given: _sample(*given, finish=lambda ids, heated: heated),
                lambda *given: _sample(*given, finish=lambda ids, heated: heated.softmax(-1)),
            ),
        ),
        Mistake(
            "temperature 0 divides by zero",
            "0 is the limit of colder and colder draws: the likeliest id, without a division.",
            lambda *given: _sample(*given, zero=None),
            (
                lambda *given: _sample(*given, zero=_divided_first),
                lambda *given: _sample(*given, zero=lambda logits, **_: (logits / 0).softmax(-1).argmax(-1, True)),
            ),
        ),
        Mistake(
            "temperature 0 is taken for 1: ids are drawn",
            "0 is greedy; `if temperature` is false for 0.",
            lambda *given: _sample(*given, zero=lambda logits, **settings: _sample(logits, 1.0, *settings.values())),
        ),
        Mistake(
            "a low temperature is taken for 0: the likeliest id comes each time",
            "0 alone is greedy; any temperature above it has chances of its own.",
            _colder(0.101),
            tuple(_colder(limit) for limit in (0.3, 0.45, 0.5001, 0.99)),
        ),
        Mistake(
            "the temperature acts twice",
            "divide once: what is colder or hotter already must not be divided again.",
            lambda *given: _sample(*given, steps=(_heat, _heat, _cut_k, _cut_p)),
        ),
        Mistake(
            "the generator is not used",
            _SOURCE,
            lambda *given: _sample(*given, draw=lambda chances, generator: _draw(chances, None)),
            (
                lambda *given: _sample(*given, draw=_own_generator),
                lambda *given: _sample(*given, draw=_seeded_by_chance),
            ),
        ),
        Mistake(
            "a seed is set inside: every call draws the same",
            "the seed is the caller's choice; with yours, each step of a text would meet the same chance.",
            lambda *given: _sample(*given, draw=_fixed_seed),
            (lambda *given: _sample(*given, draw=_reseeded),),
        ),
        Mistake(
            "torch's own seed is set inside",
            "the seed is the caller's choice, and torch.manual_seed changes all that is drawn afterwards.",
            lambda *given: _sample(*given, draw=_global_seed),
            (lambda *given: _sample(*given, draw=lambda chances, generator: _global_seed(chances, None)),),
        ),
        Mistake(
            "without a generator, torch's own is not used",
            "None means torch's own: pass it on as it is, so that torch.manual_seed rules it.",
            lambda *given: _sample(*given, draw=_same_start),
            (lambda *given: _sample(*given, draw=_unseeded_if_none),),
        ),
        Mistake(
            "a setting that is not given has another default",
            "without settings it draws by the model's own chances: temperature 1, and all tokens.",
            with_defaults(_sample, temperature=0.3),
            other_defaults(_sample),
        ),
        Mistake(
            "logits is changed in place",
            "the caller may still need the scores.",
            _drawing_in_place,
            (_heated_in_place,),
        ),
        Mistake(
            "a high top_p is taken for 1: it cuts nothing",
            "None and 1 alone keep all tokens; below 1, p cuts off what is too rare, however little that is.",
            lambda *given: _sample(*given, steps=(_heat, _cut_k, _cut_unless_high)),
        ),
        Mistake(
            "the temperature is not the one that was asked for",
            "what counts is the caller's number: divide by the temperature itself, without a factor or a limit.",
            _other_heat(math.sqrt),
            (_other_heat(lambda t: max(t, 0.1)), *_other_heats()),
        ),
    ),
    properties=(
        Property(
            "the result is whole numbers of shape (B, 1)",
            lambda f, **given: (
                (ids := f(*given.values())).shape == (len(given["logits"]), 1) and ids.dtype == torch.int64
            ),
        ),
    ),
    hints=(
        "Five steps in a row, each on what the one before left. Which of them may be missing, and when?",
        "`is not None` tells a setting that was given. Temperature 0 needs a way of its own, before the division.",
        "Plan: at temperature 0 return greedy. Divide; if there is a k, filter by it; if there is a p, filter what is "
        "left; softmax along the vocabulary; multinomial with one sample and the generator.",
    ),
)

EXERCISES = (SAMPLE,)
