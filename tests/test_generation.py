"""From logits to text: filters, sampling, and generation with and without a cache, by batch and by stream."""

import math
from dataclasses import replace

import pytest
import torch

from l1_ref.config import L1Config
from l1_ref.decoding import Decoder
from l1_ref.generation import (
    apply_temperature,
    generate,
    greedy,
    sample,
    stream,
    top_k_filter,
    top_p_filter,
)
from l1_ref.transformer import L1Model
from tests.plain_python import answers

TOY = L1Config(vocab_size=23, max_seq_length=10, n_layers=2, n_heads=2, n_embd=12, dropout=0.5)
NONE = -math.inf
NAN = math.nan


def toy_model(config=TOY, dtype=torch.float64):
    """Return a model with sharp opinions; float64, so that no two scores are nearly equal."""
    torch.manual_seed(7)
    model = L1Model(config).double().eval()
    for p in model.parameters():
        p.data.add_((0.7 if p.ndim >= 2 else 0.2) * torch.randn_like(p))
    return model.to(dtype)


def prompt(B=3, T=4):
    return torch.randint(23, (B, T), generator=torch.Generator().manual_seed(11))


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def test_greedy_takes_the_largest():
    ids = greedy(torch.tensor([[0.1, 3.0, -1.0], [NONE, -5.0, NONE]]))
    assert ids.tolist() == [[1], [1]] and ids.dtype == torch.int64


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_divides(temperature):
    logits = torch.randn(2, 5)
    before = logits.clone()
    torch.testing.assert_close(apply_temperature(logits, temperature), before / temperature)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("temperature", [0.0, -1.0, NAN])
def test_apply_temperature_refuses_what_is_not_above_zero(temperature):
    with pytest.raises(ValueError, match=f"temperature must be above 0, got temperature={temperature}"):
        apply_temperature(torch.zeros(1, 3), temperature)


@pytest.mark.parametrize("temperature", [1e-320, 1e-38])
def test_apply_temperature_refuses_what_makes_a_score_infinite(temperature):
    for logits in (torch.tensor([[40.0, 0.0]]), torch.tensor([[-40.0, -50.0]])):
        with pytest.raises(ValueError, match=f"temperature must leave the largest score finite, got .*={temperature}"):
            apply_temperature(logits, temperature)
    assert apply_temperature(torch.tensor([[0.0, -40.0]]), 1e-38).tolist() == [[0.0, NONE]]  # chance 0, as it should


@pytest.mark.parametrize("k", [1, 2, 4, 5, 6, 1000])
def test_top_k_keeps_the_k_largest_of_each_row(k):
    logits = torch.stack([torch.randperm(5) for _ in range(4)]).float()
    before = logits.clone()
    kept = top_k_filter(logits, k)
    assert torch.equal(kept, torch.where(logits >= 5 - k, logits, NONE))
    assert torch.equal(logits, before)


def test_top_k_with_ties_keeps_at_least_k_and_nothing_smaller():
    kept = top_k_filter(torch.tensor([[2.0, 1.0, 1.0, 0.0, 1.0]]), 2).isfinite()[0]
    assert kept[0] and kept[[1, 2, 4]].any() and not kept[3]


@pytest.mark.parametrize("k", [0, -1])
def test_top_k_refuses_less_than_one(k):
    with pytest.raises(ValueError, match=f"top_k must be a whole number of at least 1, got top_k={k}"):
        top_k_filter(torch.zeros(1, 3), k)


@pytest.mark.parametrize(
    "p, kept",
    [
        (1e-12, 1),  # never fewer than one
        (0.39, 1),
        (0.41, 2),  # the token that crosses p stays
        (0.69, 2),
        (0.71, 3),
        (0.89, 3),
        (0.91, 4),
        (1.0, 4),
    ],
)
def test_top_p_keeps_the_fewest_that_reach_p(p, kept):
    probabilities = torch.tensor([0.4, 0.3, 0.2, 0.1])
    orders = torch.stack([torch.arange(4), torch.tensor([3, 1, 0, 2])])  # sorted, and not
    logits = probabilities.log()[orders] + torch.tensor([[0.0], [50.0]])  # a shift changes nothing
    before = logits.clone()
    assert torch.equal(top_p_filter(logits, p), torch.where(orders < kept, logits, NONE))
    assert torch.equal(logits, before)


def test_top_p_of_equal_scores_keeps_as_many_as_p_needs():
    assert top_p_filter(torch.zeros(2, 10), 0.45).isfinite().sum(-1).tolist() == [5, 5]
    assert top_p_filter(torch.zeros(1, 50_000), 1e-9).isfinite().sum() == 1


def test_top_p_passes_over_what_is_already_removed():
    kept = top_p_filter(torch.tensor([[NONE, 0.0, NONE, 0.0]]), 0.9)
    assert kept.tolist() == [[NONE, 0.0, NONE, 0.0]]


@pytest.mark.parametrize("p", [0.0, -0.5, 1.01, NAN])
def test_top_p_refuses_what_is_no_share(p):
    with pytest.raises(ValueError, match=rf"top_p must be in \(0, 1\], got top_p={p}"):
        top_p_filter(torch.zeros(1, 3), p)


LOGITS = torch.tensor([1.0, 0.2, -0.7, 1.6, 0.0, -2.0, 0.5, -0.1])


@pytest.mark.parametrize(
    "temperature, top_k, top_p",
    [(1.0, None, None), (0.5, None, None), (2.0, 5, None), (1.0, None, 0.8), (0.7, 6, 0.9), (1.5, 4, 0.7)],
)
def test_draws_follow_the_distribution(temperature, top_k, top_p):
    """Temperature, then k, then p on what remains; the distribution is worked out by hand."""
    ranked = sorted(range(8), key=lambda i: -LOGITS[i])[: top_k or 8]
    weight = {i: math.exp(LOGITS[i] / temperature) for i in ranked}
    total, reached, allowed = sum(weight.values()), 0.0, []
    for i in ranked:
        if top_p is None or reached < top_p:
            allowed.append(i)
        reached += weight[i] / total
    n = 20_000
    draws = sample(LOGITS.expand(n, 8), temperature, top_k, top_p, seeded())
    assert draws.shape == (n, 1) and draws.dtype == torch.int64
    counts = draws.flatten().bincount(minlength=8).tolist()
    expected = {i: n * weight[i] / sum(weight[j] for j in allowed) for i in allowed}
    assert all(counts[i] == 0 for i in range(8) if i not in allowed)
    chi_square = sum((counts[i] - e) ** 2 / e for i, e in expected.items())
    assert chi_square < 35  # at most seven degrees of freedom: by chance in fewer than one in 80,000


def test_draws_repeat_under_a_seeded_generator_and_only_there():
    logits = LOGITS.expand(200, 8)
    first = sample(logits, generator=seeded(1))
    assert torch.equal(sample(logits, generator=seeded(1)), first)
    assert not torch.equal(sample(logits, generator=seeded(2)), first)
    state = torch.get_rng_state()
    sample(logits, generator=seeded(1))
    assert torch.equal(torch.get_rng_state(), state)  # torch's own chance is left alone
    torch.manual_seed(4)
    without = sample(logits)
    torch.manual_seed(4)
    assert torch.equal(sample(logits), without)


def test_rows_are_drawn_each_from_its_own_scores():
    logits = torch.full((5, 8), NONE).fill_diagonal_(0.0)
    assert sample(logits, generator=seeded()).flatten().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_any_precision_can_be_drawn_from(dtype):
    draws = sample(LOGITS.to(dtype).expand(500, 8), 0.8, 5, 0.9, seeded())
    assert set(draws.flatten().tolist()) <= {0, 1, 3, 6, 7, 4}


def test_temperature_zero_is_greedy_whatever_the_filters():
    logits = torch.randn(20, 9)
    assert torch.equal(sample(logits, temperature=0.0), greedy(logits))
    assert torch.equal(sample(logits, temperature=0.0, top_k=3, top_p=0.1), greedy(logits))


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-45])
def test_a_tiny_temperature_is_as_good_as_greedy(temperature):
    logits = torch.tensor([[30.0, -20.0, 40.0], [-5.0, -4.0, -90.0]])
    assert torch.equal(sample(logits, temperature, generator=seeded()), greedy(logits))


@pytest.mark.parametrize(
    "settings, rule",
    [
        ({"temperature": -0.1}, "temperature must be a finite number of at least 0, got temperature=-0.1"),
        ({"temperature": NAN}, "temperature must be a finite number of at least 0, got temperature=nan"),
        ({"temperature": math.inf}, "temperature must be a finite number of at least 0, got temperature=inf"),
        ({"top_k": 0}, "top_k must be a whole number of at least 1, got top_k=0"),
        ({"top_k": 0, "temperature": 0.0}, "top_k must be a whole number of at least 1, got top_k=0"),
        ({"top_p": 0.0}, "top_p must be in (0, 1], got top_p=0.0"),
        ({"top_p": 1.5, "temperature": 0.0}, "top_p must be in (0, 1], got top_p=1.5"),
    ],
)
def test_wrong_settings_are_refused_by_sample_and_at_once_by_stream_and_generate(settings, rule):
    calls = (lambda **s: sample(torch.zeros(1, 3), **s), *(
        lambda f=f, **s: f(toy_model(), prompt(), 3, **s) for f in (generate, stream)
    ))  # fmt: skip
    for call in calls:
        with pytest.raises(ValueError) as error:
            call(**settings)
        assert str(error.value) == rule


IDS_RULE = "ids must be a tensor of int64 or int32 of shape (B, T), got"
STOP_RULE = "stop_token must be a whole number in 0..22 (vocab_size=23)"


@pytest.mark.parametrize(
    "ids, settings, rule",
    [
        (torch.tensor([[0, 23]]), {}, "ids must be in 0..22 (vocab_size=23), got 23"),
        (torch.tensor([[-2, 0]]), {}, "ids must be in 0..22 (vocab_size=23), got -2"),
        (torch.zeros(1, 0, dtype=torch.long), {}, "ids must hold a token, B, T >= 1, got shape (1, 0)"),
        (torch.zeros(0, 3, dtype=torch.long), {}, "ids must hold a token, B, T >= 1, got shape (0, 3)"),
        (torch.zeros(1, 3, dtype=torch.int16), {}, f"{IDS_RULE} torch.int16 (1, 3)"),
        (torch.zeros(1, 3, dtype=torch.int8), {}, f"{IDS_RULE} torch.int8 (1, 3)"),
        (
            prompt(),
            {"max_new_tokens": -1},
            "max_new_tokens must be a whole number of at least 0, got max_new_tokens=-1",
        ),
        (prompt(), {"stop_token": 23}, f"{STOP_RULE}, got stop_token=23"),
        (prompt(), {"stop_token": -1}, f"{STOP_RULE}, got stop_token=-1"),
    ],
)
def test_wrong_prompts_are_refused_before_anything_runs(ids, settings, rule):
    model = toy_model().train()
    for function in (generate, stream):
        with pytest.raises(ValueError) as error:
            function(model, ids, **settings)
        assert str(error.value).startswith(rule)
    assert model.training


SETUP = """
import torch
from l1_ref.config import L1Config
from l1_ref.generation import apply_temperature, generate, greedy, sample, stream, top_k_filter, top_p_filter
from l1_ref.transformer import L1Model
model = L1Model(L1Config(vocab_size=23, max_seq_length=10, n_layers=1, n_heads=1, n_embd=4))
ids, logits = torch.tensor([[1, 2]]), torch.zeros(1, 3)
"""
TEMPERATURE_RULE = "temperature must be a finite number of at least 0"
LOGITS_RULE = "logits must be floats of shape (B, V) with B, V >= 1"
OF_WRONG_TYPE = {
    **{
        f"{start}, temperature={value!r})": f"{TEMPERATURE_RULE}, got temperature={value!r}"
        for start in ("sample(logits", "generate(model, ids", "stream(model, ids")
        for value in ("hot", None, True)
    },
    "apply_temperature(logits, 'hot')": "temperature must be above 0, got temperature='hot'",
    "apply_temperature(logits, None)": "temperature must be above 0, got temperature=None",
    "top_p_filter(logits, 'x')": "top_p must be in (0, 1], got top_p='x'",
    "sample(logits, top_p='x')": "top_p must be in (0, 1], got top_p='x'",
    "generate(model, ids, top_p=True)": "top_p must be in (0, 1], got top_p=True",
    **{
        f"generate(model, ids, stop_token={value!r})": f"{STOP_RULE}, got stop_token={value!r}"
        for value in (2.5, True, "x")
    },
    "generate(model, ids.bool())": f"{IDS_RULE} torch.bool (1, 2)",
    "generate(model, ids.byte())": f"{IDS_RULE} torch.uint8 (1, 2)",
    "generate(model, ids.float())": f"{IDS_RULE} torch.float32 (1, 2)",
    "generate(model, ids[0])": f"{IDS_RULE} torch.int64 (2,)",
    "generate(model, [[1, 2]])": f"{IDS_RULE} list",
    "model.generate([[1, 2]])": f"{IDS_RULE} list",
    "model(ids[0])": f"{IDS_RULE} torch.int64 (2,)",
    "model(ids.bool())": f"{IDS_RULE} torch.bool (1, 2)",
    "model(7)": f"{IDS_RULE} int",
    **{
        f"{call}": f"{LOGITS_RULE}, got {got}"
        for logits, got in {
            "logits[0]": "torch.float32 (3,)",
            "logits[None]": "torch.float32 (1, 1, 3)",
            "logits[:, :0]": "torch.float32 (1, 0)",
            "logits.long()": "torch.int64 (1, 3)",
            "[[0.0, 1.0]]": "list",
        }.items()
        for call in (
            *(f"greedy({logits})", f"sample({logits})", f"apply_temperature({logits}, 1.0)"),
            *(f"top_k_filter({logits}, 2)", f"top_p_filter({logits}, 0.5)", f"sample({logits}, temperature=0)"),
        )
    },
}


def test_values_of_the_wrong_type_or_shape_are_refused_by_their_rule():
    assert answers(SETUP, list(OF_WRONG_TYPE)) == {call: f"ValueError: {rule}" for call, rule in OF_WRONG_TYPE.items()}


@pytest.mark.parametrize("wrong", [NAN, math.inf, NONE])
def test_a_row_without_a_finite_largest_score_is_refused(wrong):
    logits = torch.tensor([[1.0, 2.0, 3.0], [NONE, wrong, NONE]])
    for call in (
        *(greedy, sample, lambda logits: sample(logits, 0.0), lambda logits: apply_temperature(logits, 2.0)),
        *(lambda logits: top_k_filter(logits, 2), lambda logits: top_p_filter(logits, p=0.5)),
    ):
        with pytest.raises(ValueError) as error:
            call(logits)
        assert str(error.value) == f"the largest of each row of logits must be finite, without NaN or +inf, got {wrong}"


def test_scores_that_only_float64_holds_are_drawn_from():
    logits = torch.tensor([[1e300, -1e300, NONE]], dtype=torch.float64)
    assert greedy(logits).item() == sample(logits).item() == sample(logits, 0.5, top_k=2, top_p=0.9).item() == 0
    assert top_p_filter(logits, 0.5).tolist() == [[1e300, NONE, NONE]]


def model_with_scores(score, dtype, vocab_size=50_257):
    """Return a model that gives every token the same score."""
    config = L1Config(vocab_size=vocab_size, max_seq_length=8, n_layers=1, n_heads=1, n_embd=64, tie_weights=False)
    model = L1Model(config).to(dtype)
    model.norm.weight.data.zero_()
    model.norm.bias.data.fill_(1.0)
    model.head.weight.data.fill_(score / 64)
    return model


@pytest.mark.parametrize("dtype, score", [(torch.float16, 32), (torch.bfloat16, 1e36), (torch.float32, 1e36)], ids=str)
def test_a_sum_too_large_for_its_dtype_is_no_score_out_of_bounds(dtype, score):
    ids = torch.tensor([[1, 2]])
    assert generate(model_with_scores(score, dtype), ids, 3, generator=seeded()).shape == (1, 5)


@pytest.mark.parametrize("wrong", [NAN, math.inf, NONE])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_a_model_with_one_score_out_of_bounds_is_refused(dtype, wrong):
    model = model_with_scores(32.0, dtype)
    model.head.weight.data[7] = wrong
    with pytest.raises(ValueError, match="the model's scores must be finite, got inf or nan"):
        generate(model, torch.tensor([[1, 2]]), 3)


def test_the_call_of_the_design_works_as_written():
    model = L1Model(L1Config.preset("tiny"))
    input_ids = torch.randint(1_000, (2, 5))
    ids = model.generate(input_ids, max_new_tokens=50, temperature=0.8, top_k=50, top_p=0.9, do_sample=True)
    assert ids.shape == (2, 55) and ids.dtype == torch.int64
    assert torch.equal(ids[:, :5], input_ids)
    assert ids.min() >= 0 and ids.max() < 1_000
    assert model.generate(input_ids).shape == (2, 55)


def by_hand(model, ids, n, settings, generator):
    """Generate with no cache and no cleverness: the last tokens of the text, one whole forward pass a token."""
    with torch.no_grad():
        for _ in range(n):
            logits = model.eval()(ids[:, -model.config.max_seq_length :])[:, -1]
            ids = torch.cat([ids, sample(logits, **settings, generator=generator)], dim=1)
    return ids


SETTINGS = [{"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 1.3, "top_k": 8, "top_p": 0.9}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("T, n", [(1, 9), (4, 6), (4, 15), (9, 4), (10, 5), (13, 4)])
@pytest.mark.parametrize("position_encoding", ["learned", "sinusoidal"])
def test_generation_equals_a_loop_of_whole_passes_up_to_the_limit_and_past_it(position_encoding, T, n, settings):
    model = toy_model(replace(TOY, position_encoding=position_encoding))
    expected = by_hand(model, prompt(T=T), n, settings, seeded())
    for use_cache in (True, False):
        ids = generate(model, prompt(T=T), n, **settings, use_cache=use_cache, generator=seeded())
        assert torch.equal(ids, expected)


def test_the_cache_saves_work(monkeypatch):
    model, seen = toy_model(), []
    whole = model.hidden
    monkeypatch.setattr(model, "hidden", lambda ids, cache=None: seen.append(ids.shape[1]) or whole(ids, cache))
    generate(model, prompt(T=4), 8)
    assert seen == [4, 1, 1, 1, 1, 1, 1, 10]  # ten positions; after them, whole windows
    seen.clear()
    generate(model, prompt(T=4), 3, use_cache=False)
    assert seen == [4, 5, 6]


def test_do_sample_false_is_greedy_and_needs_no_chance():
    model = toy_model()
    state = torch.get_rng_state()
    ids = model.generate(prompt(), max_new_tokens=12, temperature=5.0, top_k=20, do_sample=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(ids, by_hand(model, prompt(), 12, {"temperature": 0.0}, None))


def test_rows_of_a_batch_go_their_own_ways():
    model = toy_model()
    together = generate(model, prompt(), 12, do_sample=False)
    alone = [generate(model, row[None], 12, do_sample=False) for row in prompt()]
    assert torch.equal(together, torch.cat(alone))
    assert len({tuple(row) for row in together[:, 4:].tolist()}) == 3


def stopped(free, T, stop):
    """Return what is left of free-running rows when each ends at its first stop token."""
    rows = []
    for row in free[:, T:].tolist():
        n = row.index(stop) + 1 if stop in row else len(row)
        rows.append(row[:n] + [stop] * (len(row) - n))
    longest = max(row.index(stop) + 1 if stop in row else len(row) for row in rows)
    return torch.cat([free[:, :T], torch.tensor(rows)[:, :longest]], dim=1)


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_stop_token_ends_its_row_and_the_last_one_ends_the_batch(use_cache):
    model = toy_model()
    free = generate(model, prompt(), 16, do_sample=False)
    ends_early = some_go_on = 0
    for stop in range(23):
        expected = stopped(free, 4, stop)
        ids = generate(model, prompt(), 16, do_sample=False, stop_token=stop, use_cache=use_cache)
        assert torch.equal(ids, expected), stop
        ends_early += ids.shape[1] < free.shape[1]
        some_go_on += 0 < (ids[:, -1] == stop).sum() < 3
    for row in range(3):  # alone, each row ends where it stops
        stop = free[row, 6].item()
        alone = generate(model, prompt()[row : row + 1], 16, do_sample=False, stop_token=stop)
        assert torch.equal(alone, stopped(free[row : row + 1], 4, stop))
        ends_early += alone.shape[1] < free.shape[1]
    assert ends_early and some_go_on  # both happened


def test_a_stop_token_in_the_prompt_stops_nothing():
    model = toy_model()
    free = generate(model, prompt(1), 6, do_sample=False)
    unused = next(token for token in range(23) if token not in free[0, 4:].tolist())
    ids = torch.cat([torch.tensor([[unused]]), prompt(1)], dim=1)
    assert generate(model, ids, 4, stop_token=unused, temperature=1.0, top_k=1).shape[1] > 6


@pytest.mark.parametrize("stop_token", [None, 3])
def test_a_stream_yields_what_generate_returns(stop_token):
    model = toy_model()
    settings = {"temperature": 1.2, "top_k": 10, "stop_token": stop_token}
    parts = list(stream(model, prompt(), 14, **settings, generator=seeded()))
    assert {part.shape for part in parts} == {(3, 1)} and {part.dtype for part in parts} == {torch.int64}
    ids = generate(model, prompt(), 14, **settings, generator=seeded())
    assert torch.equal(torch.cat([prompt(), *parts], dim=1), ids)


@pytest.mark.parametrize("training", [True, False])
class TestMode:
    """Dropout is off while text is made, and the mode comes back however it ends."""

    def test_after_generate(self, training):
        model = toy_model().train(training)
        ids = generate(model, prompt(), 6, do_sample=False)
        assert model.training == model.blocks[0].feed_forward.dropout.training == training
        assert torch.equal(ids, by_hand(model, prompt(), 6, {"temperature": 0.0}, None))

    def test_after_a_stream_that_is_closed_early(self, training):
        model = toy_model().train(training)
        parts = stream(model, prompt(), 6)
        assert model.training == training  # nothing has begun
        next(parts)
        assert not model.training and torch.is_grad_enabled()
        parts.close()
        assert model.training == training

    def test_after_an_error(self, training, monkeypatch):
        model = toy_model().train(training)
        parts = stream(model, prompt(), 6)
        next(parts)

        def fail(*_):
            raise ArithmeticError

        monkeypatch.setattr(Decoder, "step", fail)
        with pytest.raises(ArithmeticError):
            next(parts)
        assert model.training == training and torch.is_grad_enabled()


def test_no_new_tokens_is_the_prompt():
    model = toy_model().train()
    ids = generate(model, prompt(), 0)
    assert torch.equal(ids, prompt()) and ids.data_ptr() != prompt().data_ptr()
    assert list(stream(model, prompt(), 0)) == [] and model.training


def test_the_prompt_is_left_alone_and_nothing_records_gradients():
    ids, model = prompt(), toy_model()
    before = ids.clone()
    generate(model, ids, 3)
    assert torch.equal(ids, before)
    assert all(p.grad is None for p in model.parameters())


def test_narrow_integers_stay_narrow():
    ids = generate(toy_model(), prompt().int(), 12, do_sample=False)
    assert ids.dtype == torch.int32
    assert torch.equal(ids.long(), generate(toy_model(), prompt(), 12, do_sample=False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("attention", ["fused", "explicit"])
def test_models_in_other_precisions_generate_past_the_limit(attention, dtype):
    model = toy_model(replace(TOY, attention=attention), dtype)
    ids = generate(model, prompt(), 12, temperature=0.9, top_k=9, top_p=0.95, generator=seeded())
    assert ids.shape == (3, 16) and ids.min() >= 0 and ids.max() < 23
    again = generate(model, prompt(), 12, temperature=0.9, top_k=9, top_p=0.95, generator=seeded())
    assert torch.equal(ids, again)


def test_generation_works_under_autocast():
    model = toy_model(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert generate(model, prompt(), 12, do_sample=False).shape == (3, 16)
