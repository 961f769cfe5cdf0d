"""The check of 01_tokens on batches: next_token_batch."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from l1_ref.checks.compare import kind
from l1_ref.checks.engine import Exercise, Inputs, Mistake, Probe, Property
from l1_ref.checks.observe import OUTPUT, Observation, copies, observe_draws
from l1_ref.data import next_token_batch

_ROW_X, _ROW_Y = "a row of x, which begins at s", "a row of y, where x begins at s"
_TWICE = "a start twice in a batch"
_MANY = 1000  # starts from which a rule between those of one batch is no chance


def _stream(n: int, batch_size: int, context: int, dtype: torch.dtype = torch.int64) -> Callable:
    """Return the builder of a probe: distinct even ids in random order, so that each tells its place."""

    def build(generator: torch.Generator) -> Inputs:
        ids = 2 * torch.randperm(n, generator=generator) + 2 * n
        return {"ids": ids.to(dtype), "batch_size": batch_size, "context": context, "generator": None}

    return build


def _pair(output: Any) -> bool:
    return isinstance(output, tuple | list) and len(output) == 2 and all(isinstance(x, Tensor) for x in output)


def _rows(tensor: Tensor) -> list[list]:
    return tensor.reshape(len(tensor), -1).tolist() if tensor.numel() and tensor.ndim else []


def _described(output: Any, inputs: Inputs) -> Observation:
    """Say what a batch looks like, without the starts that chance chose."""
    if not _pair(output):
        parts = map(kind, output[:3]) if isinstance(output, tuple | list) else ()
        return {OUTPUT: f"a {type(output).__name__} of {len(output)}: {', '.join(parts)}" if parts else kind(output)}
    x, y = output
    seen: Observation = {OUTPUT: "two tensors: x and y"}
    for name, tensor in (("x", x), ("y", y)):
        layout = "" if tensor.is_contiguous() else ", not contiguous"
        seen[f"the kind of {name}"] = f"{tensor.dtype}, shape {tuple(tensor.shape)}{layout}"
    places = {i: place for place, i in enumerate(inputs["ids"].tolist())}
    x_rows, y_rows = _rows(x), _rows(y)
    starts = [places.get(row[0]) if row else None for row in x_rows]
    seen[_ROW_X] = _common(starts, x_rows, places)
    seen[_ROW_Y] = _common(starts, y_rows, places)
    if len(x_rows) == len(y_rows) and all(b == [i + 1 for i in a] for a, b in zip(x_rows, y_rows, strict=True)):
        seen[_ROW_Y] = "the ids of x, plus 1"
    if len(places) > _MANY:
        seen["the starts of one batch"] = _spacing(starts)
    return seen


def _spacing(starts: list) -> str:
    if None in starts or len(starts) < 2:
        return "?"
    steps = {b - a for a, b in pairwise(starts)}
    return "here and there" if len(steps) > 1 else "all the same" if steps == {0} else "in equal steps"


def _common(starts: list, rows: list[list], places: dict[int, int]) -> str:
    """Write what all rows have in common, as places after the row's start s."""
    if len(starts) != len(rows):
        return f"{len(rows)} rows"
    if all(row and row[-1] in range(len(places)) and {b - a for a, b in pairwise(row)} <= {1} for row in rows):
        return "places, not the ids that stand there"
    texts = {" ".join(_place(i, start, places) for i in row) for start, row in zip(starts, rows, strict=True)}
    return texts.pop() if len(texts) == 1 else "another rule in each row"


def _place(i: Any, start: int | None, places: dict[int, int]) -> str:
    if i not in places or start is None:
        return "?" if i not in (0, -1, -100) else f"({i})"
    return f"s{places[i] - start:+d}" if places[i] != start else "s"


def _starts(output: Any, inputs: Inputs) -> list:
    """List the places where the rows of a batch begin."""
    if not _pair(output):
        return []
    places = {i: place for place, i in enumerate(inputs["ids"].tolist())}
    starts = [places[row[0]] for row in _rows(output[0]) if row and row[0] in places]
    return starts + [_TWICE] * (len(set(starts)) < len(starts))


def _observe_batch(candidate: Callable, inputs: Inputs, gradient: bool, seed: int, n_calls: int = 0) -> Observation:
    """Record what one batch looks like, how it follows the generator, and, over many calls, which starts are drawn."""
    seen = observe_draws(candidate, inputs, gradient, seed, _described, _starts, n_calls)
    if OUTPUT not in seen or not isinstance(seen[OUTPUT], dict):
        return seen
    described, drawn = seen.pop(OUTPUT), seen.pop("how often each was drawn")
    seen = described | seen | _called_again(candidate, inputs, seed)
    if drawn:
        seen[_TWICE] = "comes" if drawn.pop(_TWICE, None) else "never comes"
    # Of a batch that is always the same, it depends on its seed which starts it holds, unless it holds them all.
    if drawn and inputs["batch_size"] > len(inputs["ids"]) - inputs["context"]:
        seen["the starts that are drawn"] = sorted(drawn)
        seen["how often they are drawn"] = _evenness(
            [share.value for share in drawn.values()], n_calls * inputs["batch_size"]
        )
    return seen


def _evenness(shares: list[float], n_drawn: int) -> str:
    """Say whether all starts were drawn equally often, up to five standard deviations of chance."""
    shares, fair = [share / sum(shares) for share in shares], 1 / len(shares)
    allowed = 5 * (fair * (1 - fair) / n_drawn) ** 0.5
    return "equally often" if all(abs(share - fair) <= allowed for share in shares) else "some more often than others"


def _called_again(candidate: Callable, inputs: Inputs, seed: int) -> Observation:
    """Say whether further calls draw anew, with a generator and without one, and whether the stream stays as it was."""
    given = copies(inputs)
    seen: Observation = {}
    for name, generator in (
        ("a second call with the same generator", torch.Generator().manual_seed(seed)),
        ("a second call without a generator", None),
    ):
        torch.default_generator.manual_seed(seed)
        try:
            batches = [candidate(*{**given, "generator": generator}.values()) for _ in range(4)]
            alike = all(torch.equal(batch[0], batches[0][0]) for batch in batches)
        except Exception as error:
            seen[name] = type(error).__name__
            continue
        seen[name] = "the same batch" if alike else "another batch"
    seen["the input ids"] = "as it was" if torch.equal(given["ids"], inputs["ids"]) else "changed in place"
    return seen


# Wrong versions.


def _drawn(n: int, batch_size: int, generator: torch.Generator | None) -> Tensor:
    return torch.randint(n, (batch_size,), generator=generator)


def _batch(
    ids: Tensor,
    batch_size: int,
    context: int,
    generator: torch.Generator | None = None,
    *,
    draw: Callable = _drawn,
    room: int = 0,
    width: int = 0,
    targets: Callable = lambda ids, s, context: ids[s + 1 : s + 1 + context],
    finish: Callable = lambda x, y: (x.long().contiguous(), y.long().contiguous()),
) -> Any:
    """Draw a batch as the reference does; each switch is a mistake."""
    starts = draw(len(ids) - context - room, batch_size, generator).tolist()
    context += width
    x = torch.stack([ids[s : s + context] for s in starts])
    return finish(x, torch.stack([targets(ids, s, context) for s in starts]))


def _own_seed(n: int, batch_size: int, generator: torch.Generator | None) -> Tensor:
    return torch.randint(n, (batch_size,), generator=torch.Generator().manual_seed(42))


def _seed_again(n: int, batch_size: int, generator: torch.Generator | None) -> Tensor:
    seed = generator.initial_seed() if generator is not None else torch.initial_seed()
    return torch.randint(n, (batch_size,), generator=torch.Generator().manual_seed(seed))


def _own_generator(n: int, batch_size: int, generator: torch.Generator | None) -> Tensor:
    return torch.randint(n, (batch_size,), generator=_unseeded())


def _fallback(make: Callable[[], torch.Generator | None]) -> Callable:
    """Draw from a source of its own where no generator is given."""
    return lambda n, b, g: _drawn(n, b, make() if g is None else g)


def _unseeded() -> torch.Generator:
    fresh = torch.Generator()
    fresh.seed()
    return fresh


def _extended(more: Callable[[Tensor, int], Tensor]) -> Callable:
    """Draw from the whole stream: windows that reach over its end are filled up."""
    return lambda ids, batch_size, context, generator=None: _batch(
        torch.cat([ids, more(ids, context)]), batch_size, context, generator
    )


def _side_by_side(n: int, batch_size: int, generator: torch.Generator | None, *, step: int) -> Tensor:
    first = _drawn(max(1, n - (batch_size - 1) * step), 1, generator)
    return first + step * torch.arange(batch_size)


def _in_blocks(ids: Tensor, batch_size: int, context: int, generator: torch.Generator | None = None):
    def draw(n: int, batch_size: int, generator: torch.Generator | None) -> Tensor:
        return _drawn((n - 1) // context + 1, batch_size, generator) * context

    return _batch(ids, batch_size, context, generator, draw=draw)


def _in_order(n: int, batch_size: int, generator: torch.Generator | None) -> Tensor:
    return torch.arange(batch_size) % n


def _next_row(ids: Tensor, s: int, context: int) -> Tensor:
    return ids[s + context : s + context + 1]


def _padded(value: int | None) -> Callable:
    """Return targets that end inside the window: the last is made up, by a number or by the last id again."""
    return lambda ids, s, context: torch.cat(
        [ids[s + 1 : s + context], ids[s + context - 1 :][:1] if value is None else ids.new_tensor([value])]
    )


def _as_windows(ids: Tensor, batch_size: int, context: int, generator: torch.Generator | None = None):
    starts = _drawn(len(ids) - context, batch_size, generator)
    windows = ids.long()[starts[:, None] + torch.arange(context + 1)]
    return windows[:, :-1], windows[:, 1:]


def _drawn_apart(ids: Tensor, batch_size: int, context: int, generator: torch.Generator | None = None):
    x, _ = _batch(ids, batch_size, context, generator)
    return x, _batch(ids, batch_size, context, generator)[1]


def _places(ids: Tensor, batch_size: int, context: int, generator: torch.Generator | None = None):
    return _batch(torch.arange(len(ids)), batch_size, context, generator)


NEXT_TOKEN_BATCH = Exercise(
    name="next_token_batch",
    notebook="01_tokens",
    reference=next_token_batch,
    observe=_observe_batch,
    probes=tuple(
        partial(Probe, gradient=False)(*each, **more)
        for *each, more in (
            ("five rows of two ids", _stream(12, 5, 2), {}),
            ("three rows of five ids", _stream(60, 3, 5), {}),
            ("ids that are int32", _stream(60, 3, 4, torch.int32), {}),
            ("a long stream", _stream(4000, 5, 3), {}),
            ("four starts, fifty batches", _stream(7, 16, 3), {"observe": partial(_observe_batch, n_calls=50)}),
            ("eight starts, eight rows", _stream(12, 8, 4), {"observe": partial(_observe_batch, n_calls=50)}),
            ("one row of one id", _stream(900, 1, 1), {"edge": True}),
            ("more rows than starts", _stream(6, 8, 4), {"edge": True}),
            ("room for one start only", _stream(4, 2, 3), {"edge": True}),
        )
    ),
    mistakes=(
        Mistake(
            "the targets are not shifted: y is x",
            "the model would be asked for the id that it has just read, and learn to copy.",
            partial(_batch, targets=lambda ids, s, context: ids[s : s + context]),
        ),
        Mistake(
            "the targets are shifted by two",
            "the target is the very next id; this one skips it.",
            partial(_batch, room=1, targets=lambda ids, s, context: ids[s + 2 : s + 2 + context]),
        ),
        Mistake(
            "y is the whole window behind x",
            "each place of x has its own target, the id right behind it: y is x moved on by one, not by a window.",
            lambda ids, batch_size, context, generator=None: _batch(
                ids,
                batch_size,
                context,
                generator,
                room=context - 1,
                targets=lambda ids, s, context: ids[s + context : s + 2 * context],
            ),
        ),
        Mistake(
            "the targets are shifted the wrong way: y lies before x",
            "the model has read the id before already; it must guess the one after.",
            partial(_batch, targets=lambda ids, s, context: ids.roll(1)[s : s + context]),
            (
                partial(
                    _batch,
                    draw=lambda n, b, g: _drawn(n, b, g) + 1,
                    targets=lambda ids, s, context: ids[s - 1 : s - 1 + context],
                ),
            ),
        ),
        Mistake(
            "the last target is not the next id of the stream",
            "the window needs one id more than x shows: y ends with the id behind it.",
            partial(_batch, targets=lambda ids, s, context: ids[s : s + context].roll(-1)),
            (
                partial(_batch, targets=_padded(0)),
                partial(_batch, targets=_padded(-100)),
                partial(_batch, targets=_padded(-1)),
                partial(_batch, targets=_padded(None)),
            ),
        ),
        Mistake(
            "y holds one id a row, the one behind the window",
            "every place of x has a target, so one row gives `context` lessons instead of one.",
            partial(_batch, targets=_next_row),
            (partial(_batch, targets=lambda ids, s, context: ids[s + context]),),
        ),
        Mistake(
            "the rows are one id short",
            "x and y both have `context` ids a row, so the window needs context + 1.",
            partial(_batch, width=-1),
            (partial(_batch, width=-1, room=-1),),
        ),
        Mistake(
            "the rows are one id long",
            "x and y both have `context` ids a row; only the window of both together has one more.",
            partial(_batch, width=1, room=1),
        ),
        Mistake(
            "one is added to the ids",
            "the next id of the stream is no greater by one: move along the stream, not along the vocabulary.",
            partial(_batch, targets=lambda ids, s, context: ids[s : s + context] + 1),
        ),
        Mistake(
            "places come back, not the ids that stand there",
            "a start tells where to look; the model reads the ids.",
            _places,
        ),
        Mistake(
            "x and y are drawn apart",
            "draw the starts once: y is the same windows, moved on by one.",
            _drawn_apart,
        ),
        Mistake(
            "the axes are swapped: time first",
            "rows are examples: x is (B, T).",
            partial(_batch, finish=lambda x, y: (x.long().T.contiguous(), y.long().T.contiguous())),
            (partial(_batch, finish=lambda x, y: (x.long().T, y.long().T)),),
        ),
        Mistake(
            "the ids keep their dtype",
            "an embedding and a loss want int64, and streams are often stored as int32 to save memory.",
            partial(_batch, finish=lambda x, y: (x.contiguous(), y.contiguous())),
            (
                partial(_batch, finish=lambda x, y: (x.int(), y.int())),
                partial(_batch, finish=lambda x, y: (x, y.long())),
                partial(_batch, finish=lambda x, y: (x.long(), y)),
            ),
        ),
        Mistake(
            "x and y are not contiguous",
            "slices of one tensor of windows skip memory, and view() fails on them: call contiguous().",
            _as_windows,
            (
                partial(_batch, finish=lambda x, y: (x.long(), torch.cat([x[:, :1], y], 1).long()[:, 1:])),
                partial(_batch, finish=lambda x, y: (torch.cat([x, y[:, -1:]], 1).long()[:, :-1], y.long())),
            ),
        ),
        Mistake(
            "the generator is not used",
            "a seeded generator must give the same batches again, or no run can be repeated.",
            partial(_batch, draw=lambda n, b, g: torch.randint(n, (b,))),
            (partial(_batch, draw=_own_generator),),
        ),
        Mistake(
            "a seed is set inside: every call draws the same batch",
            "the model would see one batch for ever; the seed is the caller's choice.",
            partial(_batch, draw=_own_seed),
            (partial(_batch, draw=_seed_again),),
        ),
        Mistake(
            "without a generator, torch's own is not used",
            "None means torch's own: pass it on as it is, so that torch.manual_seed rules it.",
            partial(_batch, draw=_fallback(torch.Generator)),
            (partial(_batch, draw=_fallback(_unseeded)),),
        ),
        Mistake(
            "the last start is never drawn",
            "the last window begins at len(ids) - context - 1, and randint leaves out its upper end.",
            partial(_batch, room=1),
            (partial(_batch, room=2),),
        ),
        Mistake(
            "the first start is never drawn",
            "the first window begins at 0.",
            partial(_batch, draw=lambda n, b, g: _drawn(n - 1, b, g) + 1),
        ),
        Mistake(
            "some starts lie too near to the end",
            "y needs one id more than x, so the last start is len(ids) - context - 1; later ones reach over the end.",
            partial(_batch, room=-1),
            (
                partial(_batch, draw=lambda n, b, g: _drawn(n + 1, b, g), room=-1),
                _extended(lambda ids, context: ids[:context]),
                _extended(lambda ids, context: ids.new_zeros(context)),
            ),
        ),
        Mistake(
            "all rows begin at the same place",
            "a batch of equal rows teaches no more than one row: draw a start for each.",
            partial(_batch, draw=lambda n, b, g: _drawn(n, 1, g).expand(b)),
        ),
        Mistake(
            "the rows follow each other in the stream",
            "neighbours are alike; starts drawn one by one make a batch that stands for the whole text.",
            partial(_batch, draw=partial(_side_by_side, step=1)),
            (partial(_batch, draw=lambda n, b, g: (_drawn(n, 1, g) + torch.arange(b)) % n),),
        ),
        Mistake(
            "nothing is drawn: the rows are always the first ones",
            "the model would never see the rest of the text.",
            partial(_batch, draw=_in_order),
            (partial(_batch, draw=lambda n, b, g: torch.zeros(b, dtype=torch.int64)),),
        ),
        Mistake(
            "no start comes twice in a batch",
            "with replacement each row is drawn like any other, and there may be more rows than starts.",
            partial(_batch, draw=lambda n, b, g: torch.randperm(n, generator=g)[:b]),
            (partial(_batch, draw=lambda n, b, g: torch.randperm(n, generator=g)[:b] if b <= n else _drawn(n, b, g)),),
        ),
        Mistake(
            "the starts are multiples of the context",
            "then each id stands always at the same place of a row; any start teaches more.",
            _in_blocks,
        ),
        Mistake(
            "some starts are drawn more often than others",
            "all windows should be equally likely: draw with torch.randint.",
            partial(_batch, draw=lambda n, b, g: torch.randint(n + 1, (b,), generator=g).clamp(max=n - 1)),
        ),
    ),
    properties=(
        Property(
            "x and y are int64, of shape (batch_size, context)",
            lambda f, ids, batch_size, context, generator: all(
                each.dtype == torch.int64 and each.shape == (batch_size, context)
                for each in f(ids, batch_size, context, generator)
            ),
        ),
        Property(
            "in each row, y without its last id is x without its first",
            lambda f, **given: torch.equal(*(part for x, y in [f(*given.values())] for part in (x[:, 1:], y[:, :-1]))),
        ),
    ),
    hints=(
        "Write down one row by hand: ids 10 11 12 13, context 3. Which numbers are x, which are y, and how many ids "
        "does the row use?",
        "If a row uses context + 1 ids, what is the last place where it can start? torch.randint(n, (B,), generator=…) "
        "draws from 0 to n - 1.",
        "Plan: draw batch_size starts below len(ids) - context. For each take ids[s : s + context] as a row of x, and "
        "the same moved on by one as a row of y; torch.stack makes rows into a tensor. Both as int64.",
    ),
)

EXERCISES = (NEXT_TOKEN_BATCH,)
