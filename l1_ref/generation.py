"""Logits become the next id, and ids a text: greedy and sampled decoding, with a key-value cache."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from l1_ref.attention import KVCache, softmax
from l1_ref.config import is_number, require_whole
from l1_ref.decoding import Decoder, is_plain
from l1_ref.transformer import L1Model, require_ids


def greedy(logits: Float[Tensor, "B V"]) -> Int[Tensor, "B 1"]:
    """Return the most likely id of each row.

    Args:
        logits: Scores of the next token.

    Raises:
        ValueError: The logits break their rule: floats, (B, V), without NaN or +inf, a finite one in each row.

    Example:
        >>> greedy(torch.tensor([[0.1, 2.0, -1.0]])).tolist()
        [[1]]

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 3.7; the loops it falls
    into: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration".
    """
    _check_logits(logits)
    return logits.argmax(dim=-1, keepdim=True)  # (B, 1)


def apply_temperature(logits: Float[Tensor, "B V"], temperature: float) -> Float[Tensor, "B V"]:
    """Sharpen (below 1) or flatten (above 1) the distribution.

    Args:
        logits: Scores of the next token.
        temperature: Above 0; what the scores are divided by.

    Returns:
        The scores, divided.

    Raises:
        ValueError: The temperature is not above 0, or so small that a quotient is infinite; the logits as for `greedy`.

    Example:
        >>> apply_temperature(torch.tensor([[1.0, 2.0]]), temperature=0.5).tolist()
        [[2.0, 4.0]]

    Source: Ackley, Hinton and Sejnowski 1985, "A Learning Algorithm for Boltzmann Machines", equation 5.
    """
    if not is_number(temperature) or not temperature > 0:
        raise ValueError(f"temperature must be above 0, got temperature={temperature!r}")
    _check_logits(logits)
    heated = logits / temperature
    if not _has_finite_tops(heated):
        raise ValueError(f"temperature must leave the largest score finite, got temperature={temperature}")
    return heated


def top_k_filter(logits: Float[Tensor, "B V"], k: int) -> Float[Tensor, "B V"]:
    """Keep the k most likely tokens; the others become -inf.

    Args:
        logits: Scores of the next token.
        k: At least 1; above V it keeps all. Ties with the k-th all stay.

    Returns:
        The scores that stay, and -inf.

    Raises:
        ValueError: k is no whole number of at least 1; the logits as for `greedy`.

    Example:
        >>> top_k_filter(torch.tensor([[1.0, 3.0, 2.0]]), k=2).tolist()
        [[-inf, 3.0, 2.0]]

    Source: Fan, Lewis and Dauphin 2018, "Hierarchical Neural Story Generation", section 5.4.
    """
    _check_top_k(k)
    _check_logits(logits)
    return _keep_top_k(logits, k)


def _keep_top_k(logits: Tensor, k: int) -> Tensor:
    kth = logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1:]  # (B, 1)
    return logits.masked_fill(logits < kth, float("-inf"))


def top_p_filter(logits: Float[Tensor, "B V"], p: float) -> Float[Tensor, "B V"]:
    """Keep the fewest most likely tokens whose probabilities reach p; the others become -inf.

    Args:
        logits: Scores of the next token.
        p: In (0, 1]; the token that crosses p stays, so at least one does.

    Returns:
        The scores that stay, and -inf.

    Raises:
        ValueError: p is outside (0, 1]; the logits as for `greedy`.

    Example:
        >>> logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
        >>> top_p_filter(logits, p=0.7).isfinite().tolist()  # 0.5 is not enough: the token that crosses 0.7 stays
        [[True, True, False]]

    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1.
    """
    _check_top_p(p)
    _check_logits(logits)
    return _keep_top_p(logits, p)


def _keep_top_p(logits: Tensor, p: float) -> Tensor:
    if p == 1:
        return logits
    ranked, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = softmax(_in_full(ranked), dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # what the tokens ahead of this one hold
    removed = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= p)
    removed.scatter_(-1, order[:, :1], False)  # rounding must not cost the first one its place
    return logits.masked_fill(removed, float("-inf"))


def sample(
    logits: Float[Tensor, "B V"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "B 1"]:
    """Draw the next id of each row: temperature, then top-k, then top-p on what remains.

    Args:
        logits: Scores of the next token.
        temperature: At least 0; 0 is greedy.
        top_k: As in `top_k_filter`; None keeps all.
        top_p: As in `top_p_filter`; None keeps all.
        generator: Source of chance; torch's own where None.

    Raises:
        ValueError: A setting breaks its rule; the logits as for `greedy`.

    Example:
        >>> logits = torch.tensor([[0.0, 2.0, 1.0]])
        >>> draws = {sample(logits, temperature=0.8, top_k=2).item() for _ in range(50)}
        >>> draws <= {1, 2}
        True

    Source: Holtzman et al. 2020, sections 3.1 to 3.3, for each of the three; the order is that of transformers.
    """
    _check_sampling(temperature, top_k, top_p)
    if temperature == 0:
        return greedy(logits)
    _check_logits(logits)
    return _draw(logits, temperature, top_k, top_p, generator)


def _draw(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator | None
) -> Tensor:
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)  # (B, 1)
    logits = _in_full(logits)
    # With the largest score at 0, even the smallest temperature can only overflow downwards, to probability 0.
    logits = (logits - logits.amax(dim=-1, keepdim=True)).float() / float(min(max(temperature, 1e-30), 1e30))
    if top_k is not None:
        logits = _keep_top_k(logits, top_k)
    if top_p is not None:
        logits = _keep_top_p(logits, top_p)
    return torch.multinomial(softmax(logits, dim=-1), num_samples=1, generator=generator)  # (B, 1)


def _in_full(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()  # which could not hold all of a float64


def _check_logits(logits: Tensor) -> None:
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.numel() == 0 or not logits.is_floating_point():
        got = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"logits must be floats of shape (B, V) with B, V >= 1, got {got}")
    if not _has_finite_tops(logits):
        wrong = logits.amax(dim=-1)[~logits.amax(dim=-1).isfinite()][0].item()
        raise ValueError(f"the largest of each row of logits must be finite, without NaN or +inf, got {wrong}")


def _has_finite_tops(logits: Tensor) -> bool:
    return bool(logits.amax(dim=-1).isfinite().all())  # a row's largest is NaN where any is


def _check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    if not is_number(temperature) or not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be a finite number of at least 0, got temperature={temperature!r}")
    if top_k is not None:
        _check_top_k(top_k)
    if top_p is not None:
        _check_top_p(top_p)


def _check_top_k(k: int) -> None:
    require_whole("top_k", k, "of at least 1", lambda k: k >= 1)


def _check_top_p(p: float) -> None:
    if not is_number(p) or not 0 < p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got top_p={p!r}")


def generate(
    model: L1Model,
    ids: Int[Tensor, "B T"],
    max_new_tokens: int = 50,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    do_sample: bool = True,
    stop_token: int | None = None,
    use_cache: bool = True,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "B S"]:
    """Continue each row of ids, token by token.

    Past the context limit the oldest tokens fall out: the model sees the last `max_seq_length`. For several rows and
    many tokens, matrices may be copied for the time that it takes (`linear.packed`).

    Args:
        model: Left in the mode, train or eval, in which it came.
        ids: The prompt, at least one token, int64 or int32.
        max_new_tokens: How many tokens to add, at least 0; fewer where every row has stopped.
        temperature: As in `sample`.
        top_k: As in `sample`.
        top_p: As in `sample`.
        do_sample: False takes the most likely token each time.
        stop_token: A row that drew it is finished, and filled up with it while others go on.
        use_cache: False computes every token anew at each step: slower, the same answer.
        generator: Source of chance; torch's own where None.

    Returns:
        Prompt and continuation, in the dtype of the prompt.

    Raises:
        ValueError: A setting or the prompt breaks its rule, or the model's scores are not finite.

    Example:
        >>> model = L1Model(L1Config.preset("tiny"))
        >>> generate(model, torch.tensor([[1, 2, 3]]), max_new_tokens=4, temperature=0.8, top_k=50).shape
        torch.Size([1, 7])

    Source: Radford et al. 2019, section 2, equation 1: a text's probability is a product, one factor a token.
    """
    new = stream(model, ids, max_new_tokens, temperature, top_k, top_p, do_sample, stop_token, use_cache, generator)
    return torch.cat([ids, *new], dim=1)


def stream(
    model: L1Model,
    ids: Int[Tensor, "B T"],
    max_new_tokens: int = 50,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    do_sample: bool = True,
    stop_token: int | None = None,
    use_cache: bool = True,
    generator: torch.Generator | None = None,
) -> Iterator[Int[Tensor, "B 1"]]:
    """Yield the next id of each row as soon as it is known; the arguments are those of `generate`.

    While it runs the model is in eval mode; when it ends, or is closed, the model is back in the mode it came in.

    Args:
        model: As in `generate`.
        ids: As in `generate`.
        max_new_tokens: At most so many are yielded, at least 0; fewer where every row has stopped.
        temperature: As in `sample`.
        top_k: As in `sample`.
        top_p: As in `sample`.
        do_sample: As in `generate`.
        stop_token: As in `generate`; a finished row yields it while others go on.
        use_cache: As in `generate`.
        generator: As in `generate`.

    Returns:
        An iterator over the new ids, those of one step at a time, in the dtype of the prompt.

    Raises:
        ValueError: As for `generate`: at once for a setting or the prompt, on the way for the model's scores.

    Example:
        >>> model = L1Model(L1Config.preset("tiny"))
        >>> [next_ids.shape for next_ids in stream(model, torch.tensor([[1, 2, 3]]), max_new_tokens=2)]
        [torch.Size([1, 1]), torch.Size([1, 1])]

    Source: as for `generate`.
    """
    _check_prompt(model, ids, max_new_tokens, stop_token)
    _check_sampling(temperature, top_k, top_p)
    settings = (temperature if do_sample else 0.0, top_k, top_p, generator)
    return _stream(model, ids, max_new_tokens, settings, stop_token, use_cache)


def _stream(model, ids, max_new_tokens, settings, stop_token, use_cache) -> Iterator[Tensor]:
    was_training = model.training
    model.eval()
    try:
        predict = _Predictor(model, ids, use_cache, max_new_tokens)
        finished = torch.zeros(len(ids), 1, dtype=torch.bool, device=ids.device)
        for _ in range(max_new_tokens):
            logits = predict.logits()
            # One number tells it, nearly always: only where a float32 cannot hold the sum is each score looked at.
            if not math.isfinite(logits.sum(dtype=torch.float32)) and not logits.isfinite().all():
                raise ValueError(
                    "the model's scores must be finite, got inf or nan: its weights are too large, or damaged"
                )
            next_ids = _draw(logits, *settings).to(ids.dtype)
            if stop_token is not None:
                next_ids = next_ids.masked_fill(finished, stop_token)
                finished |= next_ids == stop_token
            yield next_ids
            if stop_token is not None and finished.all():
                return
            predict.append(next_ids)
    finally:
        model.train(was_training)


class _Predictor:
    """Hold the sequence so far and say what comes next, with the cached keys and values as long as they are valid."""

    def __init__(self, model: L1Model, ids: Tensor, use_cache: bool, max_new_tokens: int):
        self.model = model
        self.limit = model.config.max_seq_length
        self.parts = [ids[:, -self.limit :]]  # joined only where all of the sequence is wanted
        self.cache = self._new_cache() if use_cache and ids.shape[1] <= self.limit else None
        self.decoder = None
        if self.cache is not None and is_plain(model):  # the prompt gives the first token, and a step each other one
            self.decoder = Decoder(model, self.cache, min(max_new_tokens - 1, self.limit - ids.shape[1]))

    def _new_cache(self) -> KVCache:
        weight = self.model.embedding.token.weight
        return KVCache(self.model.config, len(self.parts[0]), weight.dtype, weight.device)

    def append(self, next_ids: Tensor) -> None:
        self.parts.append(next_ids)
        # In a full window every token moves to a new position, and its keys with it: what is cached no longer holds.
        if self.cache is not None and self.cache.length >= self.limit:
            self.cache = self.decoder = None

    @torch.no_grad()
    def logits(self) -> Tensor:
        """Return the scores of the next token, (B, V)."""
        if self.decoder is not None and self.cache.length > 0:
            return self.decoder.step(self.parts[-1])
        if self.cache is None:
            self.parts = [torch.cat(self.parts, dim=1)[:, -self.limit :]]
        return self.model.head(self.model.hidden(self.parts[-1], self.cache)[:, -1])


def _check_prompt(model: L1Model, ids: Tensor, max_new_tokens: int, stop_token: int | None) -> None:
    V = model.config.vocab_size
    require_ids(ids)
    if ids.numel() == 0:
        raise ValueError(f"ids must hold a token, B, T >= 1, got shape {tuple(ids.shape)}")
    low, high = ids.min().item(), ids.max().item()
    if low < 0 or high >= V:
        raise ValueError(f"ids must be in 0..{V - 1} (vocab_size={V}), got {low if low < 0 else high}")
    require_whole("max_new_tokens", max_new_tokens, "of at least 0", lambda n: n >= 0)
    if stop_token is not None:
        require_whole("stop_token", stop_token, f"in 0..{V - 1} (vocab_size={V})", lambda token: 0 <= token < V)
