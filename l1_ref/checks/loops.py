"""Wrong ways to write the loop of `generate`, for its check."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from l1_ref.attention import KVCache
from l1_ref.generation import sample
from l1_ref.transformer import L1Model


def _window(ids: Tensor, limit: int) -> Tensor:
    return ids[:, -limit:]


def _scores(model: nn.Module, window: Tensor) -> Tensor:
    return model(window)[:, -1]


def _filled(new: Tensor, stopped: Tensor, stop: int) -> Tensor:
    return new.masked_fill(stopped, stop)


def _none_yet(ids: Tensor, stop: int | None) -> Tensor:
    return torch.zeros(len(ids), 1, dtype=torch.bool)


def ever(stopped: Tensor, new: Tensor, ids: Tensor, stop: int) -> Tensor:
    return stopped | (new == stop)


def _off(model: nn.Module) -> None:
    model.eval()


def _restored(model: nn.Module, was_training: bool) -> None:
    model.train(was_training)


def write(
    model: L1Model,
    ids: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_token: int | None = None,
    generator: torch.Generator | None = None,
    *,
    steps: Callable[[int, Tensor], int] = lambda n, ids: n,
    window: Callable[[Tensor, int], Tensor] = _window,
    scores: Callable[[nn.Module, Tensor], Tensor] = _scores,
    draw: Callable[..., Tensor] = sample,
    begin: Callable[[nn.Module], None] = _off,
    end: Callable[[nn.Module, bool], None] = _restored,
    recording: bool = False,
    fill: Callable[[Tensor, Tensor, int], Tensor] = _filled,
    stopped_by: Callable = ever,
    enough: Callable[[Tensor], Tensor] = torch.all,
    none: Callable[[int | None], bool] = lambda stop: stop is None,
    join: Callable[[Tensor, Tensor, int], Tensor] = lambda ids, new, limit: torch.cat((ids, new), 1),
    drop_last: bool = False,
    start: Callable[[Tensor, int | None], Tensor] = _none_yet,
    asks_first: bool = False,
    returns_inside: bool = False,
    finish: Callable[[Tensor, int], Any] = lambda ids, T: ids,
) -> Any:
    """Write with switches: each mistake sets one, or a few."""
    was_training, limit, T = model.training, model.config.max_seq_length, ids.shape[1]
    begin(model)
    stopped = start(ids, stop_token)
    for _ in range(steps(max_new_tokens, ids)):
        if asks_first and enough(stopped):
            break
        with torch.set_grad_enabled(recording):
            logits = scores(model, window(ids, limit))
        new = draw(logits, temperature, top_k, top_p, generator)
        if not none(stop_token):
            new = fill(new, stopped, stop_token)
            stopped = stopped_by(stopped, new, ids, stop_token)
            if drop_last and enough(stopped):
                break
        ids = join(ids, new, limit)
        if not none(stop_token) and enough(stopped):
            if returns_inside:
                return finish(ids, T)
            break
    end(model, was_training)
    return finish(ids, T)


def alone(**switches: Any) -> Callable:
    """Return a version that is not tried together with others: all pairs would take too long."""
    return lambda *given, **settings: write(*given, **settings, **switches)


def setting(**other: Any) -> Callable:
    """Return a version that draws with one of the settings replaced."""

    def draw(logits: Tensor, *settings: Any) -> Tensor:
        named = dict(zip(("temperature", "top_k", "top_p", "generator"), settings, strict=True))
        return sample(logits, **(named | other))

    return draw


def likeliest(logits: Tensor, *settings: Any) -> Tensor:
    return logits.argmax(-1, keepdim=True)


def one_for_all(logits: Tensor, temperature: float, k: int | None, p: float | None, generator: Any) -> Tensor:
    return sample(logits[:1], temperature, k, p, generator).expand(len(logits), 1)


def seeded_each_time(logits: Tensor, temperature: float, k: int | None, p: float | None, generator: Any) -> Tensor:
    fresh = torch.Generator().manual_seed(0 if generator is None else generator.initial_seed())
    return sample(logits, temperature, k, p, fresh)


def seeded_inside(model: nn.Module) -> None:
    torch.manual_seed(0)
    model.eval()


def twice_soft(logits: Tensor, *settings: Any) -> Tensor:
    return sample(logits.softmax(-1), *settings)


def train(model: nn.Module, was_training: bool) -> None:
    model.train()


def stay(model: nn.Module, was_training: bool) -> None:
    return None


def frozen(model: nn.Module, was_training: bool) -> None:
    model.train(was_training).requires_grad_(False)


def gradients_off(model: nn.Module, was_training: bool) -> None:
    model.train(was_training)
    torch.set_grad_enabled(False)


def fed_all_each_time(model: L1Model, ids: Tensor, n: int, **settings: Any) -> Any:
    """Hand the cache the whole window at each step."""
    cache = KVCache(model.config, len(ids))
    return write(model, ids, n, **settings, scores=lambda model, window: model.head(model.hidden(window, cache)[:, -1]))


def cached(in_full_window: Callable[[KVCache], KVCache]) -> Callable:
    """Return a version that feeds a cache the newest token alone, also when the window is full.

    Args:
        in_full_window: What becomes of the full cache before the next token.
    """

    def version(model: L1Model, ids: Tensor, n: int, *given: Any, **settings: Any) -> Tensor:
        caches: list[KVCache] = []

        def scores(model: L1Model, window: Tensor) -> Tensor:
            if caches and caches[0].length >= model.config.max_seq_length:
                caches[0] = in_full_window(caches[0])
            new = window[:, -1:] if caches else window
            caches[:] = caches or [KVCache(model.config, len(ids))]
            return model.head(model.hidden(new, caches[0])[:, -1])

        return write(model, ids, n, *given, **settings, scores=scores)

    return version


def kept(cache: KVCache) -> KVCache:
    return cache


def rolled(cache: KVCache) -> KVCache:
    cache.keys, cache.values = cache.keys.roll(-1, 3), cache.values.roll(-1, 3)
    return shortened(cache)


def shortened(cache: KVCache) -> KVCache:
    cache.length -= 1
    return cache


def emptied(cache: KVCache) -> KVCache:
    cache.length = 0
    return cache


def for_one_row(model: L1Model, ids: Tensor, n: int, *given: Any, **settings: Any) -> Tensor:
    """Ask for the end with .item(), which one row alone has."""
    return write(
        model,
        ids,
        n,
        *given,
        **settings,
        fill=not_filled,
        stopped_by=lambda stopped, new, ids, stop: torch.tensor([[new.item() == stop]]),
    )


def back_at_once(model: L1Model, ids: Tensor, n: int, *given: Any, **settings: Any) -> Tensor:
    """Return the prompt where there is nothing to do, behind model.eval()."""
    if n == 0:
        model.eval()
        return ids
    return write(model, ids, n, *given, **settings)


def back_wherever(model: L1Model, ids: Tensor, n: int, *given: Any, **settings: Any) -> Tensor:
    """Return early in both cases."""
    return back_at_once(model, ids, n, *given, **settings, returns_inside=True)


def asks_last_first(model: L1Model, ids: Tensor, n: int, *given: Any, **settings: Any) -> Tensor:
    """Write nothing where all prompts end in the stop token."""
    stop = given[3] if len(given) > 3 else settings.get("stop_token")
    return write(model, ids, 0 if stop is not None and bool((ids[:, -1] == stop).all()) else n, *given, **settings)


def within(ids: Tensor, stop: int | None) -> Tensor:
    return (ids == (-1 if stop is None else stop)).any(1, keepdim=True)


def counting_prompts() -> tuple[Callable, ...]:
    """Return versions in which a stop token of the prompt has ended its row before the first step."""
    return tuple(
        alone(start=within, fill=fill, asks_first=first) for fill in (_filled, not_filled) for first in (False, True)
    )


def at_the_end(ids: Tensor, stop: int | None) -> Tensor:
    return ids[:, -1:] == (-1 if stop is None else stop)


def heated_twice(logits: Tensor, temperature: float, *settings: Any) -> Tensor:
    return sample(logits / (temperature or 1.0), temperature, *settings)


def heated_by(factor: float) -> Callable:
    """Return a version that draws at another temperature."""
    return alone(draw=lambda logits, temperature, *settings: sample(logits, factor * temperature, *settings))


def never_zero(logits: Tensor, temperature: float, *settings: Any) -> Tensor:
    return sample(logits, temperature or 1.0, *settings)


def high_p_dropped(logits: Tensor, temperature: float, k: int | None, p: float | None, generator: Any) -> Tensor:
    return sample(logits, temperature, k, None if p is None or p >= 0.95 else p, generator)


def first_row_only(model: L1Model, ids: Tensor, n: int, **settings: Any) -> Tensor:
    return write(model, ids[:1], n, **settings)


def prompt_only(model: L1Model, ids: Tensor, n: int, **settings: Any) -> Tensor:
    """Feed the prompt at every step."""
    return write(model, ids, n, **settings, window=lambda _, limit: ids[:, -limit:])


def newest_behind_prompt(model: L1Model, ids: Tensor, n: int, **settings: Any) -> Any:
    """Feed the prompt at first, and then only the newest token."""
    T = ids.shape[1]
    return write(
        model,
        ids,
        n,
        **settings,
        window=lambda ids, limit: ids[:, -limit:] if ids.shape[1] == T else ids[:, -1:],
    )


def cropped_prompt(model: L1Model, ids: Tensor, n: int, **settings: Any) -> Tensor:
    """Forget the beginning of a long prompt."""
    return write(model, _window(ids, model.config.max_seq_length), n, **settings)


def not_filled(new: Tensor, stopped: Tensor, stop: int) -> Tensor:
    return new


def at_once(stopped: Tensor, new: Tensor, ids: Tensor, stop: int) -> Tensor:
    return new == stop


def anywhere(stopped: Tensor, new: Tensor, ids: Tensor, stop: int) -> Tensor:
    return stopped | (torch.cat((ids, new), 1) == stop).any(1, keepdim=True)


def never(stopped: Tensor) -> bool:
    return False


def cropped(ids: Tensor, new: Tensor, limit: int) -> Tensor:
    return torch.cat((ids, new), 1)[:, -limit:]


def cropped_before(ids: Tensor, new: Tensor, limit: int) -> Tensor:
    return torch.cat((ids[:, -limit:], new), 1)
