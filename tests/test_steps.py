"""One training step in its several forms: each equals the plain one, or leaves everything as it was."""

import copy

import pytest
import torch

from l1_ref.config import L1Config
from l1_ref.loss import cross_entropy
from l1_ref.optimization import build_optimizer, clip_grad_norm
from l1_ref.steps import (
    accumulate_gradients,
    amp_train_step,
    batch_loss,
    evaluate,
    loss_scaled_step,
    scaled_update,
    train_step,
)
from l1_ref.transformer import L1Model
from tests.plain_python import answers

TOY = L1Config(vocab_size=17, max_seq_length=8, n_layers=2, n_heads=2, n_embd=16, dropout=0.0)
HALVES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def toy(config=TOY, lr=1e-2, dtype=torch.float32):
    """Return a model and its optimizer, the same at each call."""
    torch.manual_seed(3)
    model = L1Model(config).to(dtype)
    return model, build_optimizer(model, lr)


def sgd(model, lr=0.1):
    """Return the optimizer whose step shows the gradient as it is; Adam would hide a wrong scale."""
    return torch.optim.SGD(model.parameters(), lr)


def batch(B=4, seed=5, padded=()):
    ids = torch.randint(17, (B, 9), generator=torch.Generator().manual_seed(seed))
    x, y = ids[:, :-1].clone(), ids[:, 1:].clone()
    for row, kept in enumerate(padded):
        y[row, kept:] = -100
    return x, y


def scaler(scale=2.0**10, enabled=True):
    return torch.amp.GradScaler("cpu", init_scale=scale, enabled=enabled)


def everything(model, optimizer):
    """Return copies of all weights and of the optimizer's state."""
    return copy.deepcopy([model.state_dict(), optimizer.state_dict()["state"]])


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return all(map(same, one, other))
    return torch.equal(one, other)


def assert_close_models(one, other, **room):
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, **room, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("max_norm", [1.0, 0.01])
def test_train_step_equals_the_manual_sequence(max_norm):
    (model, _), (manual, _) = toy(), toy()
    # Not AdamW: it would make a full step of the rounding noise that is all the gradient of the keys' biases.
    optimizer, manual_optimizer = (torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, manual))
    for seed in range(3):
        x, y = batch(seed=seed)
        loss = train_step(model, x, y, optimizer, max_norm)
        manual_optimizer.zero_grad()
        expected = cross_entropy(manual(x), y)
        expected.backward()
        torch.nn.utils.clip_grad_norm_(manual.parameters(), max_norm)
        manual_optimizer.step()
        # The step takes its logits in pieces, so sums are in another order.
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=0)
        assert not loss.requires_grad
    assert_close_models(model, manual, rtol=1e-4, atol=1e-6)


def test_train_step_forgets_old_gradients_and_clips_at_one():
    (model, _), (other, _) = toy(), toy()
    x, y = batch()
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e3)
    train_step(model, x, y, sgd(model, lr=1.0))
    train_step(other, x, y, sgd(other, lr=1.0), max_norm=1.0)
    assert_close_models(model, other, rtol=0, atol=0)
    model, other = toy(TOY)[0], toy(TOY)[0]
    before = copy.deepcopy(model)
    train_step(model, x, y, sgd(model, lr=1.0), max_norm=0.01)
    change = torch.cat([(p - q).flatten() for p, q in zip(model.parameters(), before.parameters(), strict=True)])
    assert change.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_a_repeated_batch_is_learnt():
    model, optimizer = toy()
    x, y = batch()
    losses = [train_step(model, x, y, optimizer).item() for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]


PADDINGS = {
    "none": ((), (), ()),
    "uneven": ((8, 3, 8, 1), (0, 0, 2, 0), (5, 5, 5, 8)),
    "one micro-batch all padding": ((8, 8, 8, 8), (0, 0, 0, 0), (4, 8, 8, 8)),
}


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("paddings", PADDINGS.values(), ids=PADDINGS.keys())
def test_accumulated_gradients_equal_those_of_the_large_batch(paddings, label_smoothing):
    (model, _), (large, _) = toy(dtype=torch.float64), toy(dtype=torch.float64)
    micro_batches = [batch(seed=seed, padded=padded) for seed, padded in enumerate(paddings)]
    loss = accumulate_gradients(model, iter(micro_batches), label_smoothing=label_smoothing)
    x, y = (torch.cat(parts) for parts in zip(*micro_batches, strict=True))
    expected = cross_entropy(large(x), y, label_smoothing)
    expected.backward()
    # Room for shares of the batch that are worked out in float32.
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=0)
    for p, q in zip(model.parameters(), large.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-8)


def test_accumulation_adds_to_what_is_there_and_detaches():
    model, _ = toy(dtype=torch.float64)
    assert not accumulate_gradients(model, [batch()]).requires_grad
    once = [p.grad.clone() for p in model.parameters()]
    accumulate_gradients(model, [batch()])
    for p, gradient in zip(model.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, 2 * gradient)


DTYPE_RULE = "dtype must be one of torch.float32, torch.bfloat16, torch.float16, got dtype"
REFUSED = {
    "accumulate_gradients(model, [])": "micro_batches must hold at least one batch, got none",
    "accumulate_gradients(model, iter([]))": "micro_batches must hold at least one batch, got none",
    "accumulate_gradients(model, [(x, x)], torch.float64)": f"{DTYPE_RULE}=torch.float64",
    "accumulate_gradients(model, [(x, x)], 'bfloat16')": f"{DTYPE_RULE}='bfloat16'",
    "amp_train_step(model, x, x, optimizer, scaler, torch.float64)": f"{DTYPE_RULE}=torch.float64",
    "evaluate(model, [(x, x)], 'float16')": f"{DTYPE_RULE}='float16'",
    **{
        f"loss_scaled_step(model, x, x, optimizer, {scale})": f"scale must be a number above 0, got scale={scale}"
        for scale in (0, -1.0, "nan", True)
    },
    **{
        f"scaled_update(model, optimizer, torch.amp.GradScaler('cpu', {scale}), 1.0)": (
            f"scale must be a number above 0, got scale={scale}"
        )
        for scale in (0.0, -2.0, "nan")
    },
    "train_step(model, x, x, optimizer, -1.0)": "max_norm must be a number above 0, got max_norm=-1.0",
}


def test_settings_out_of_their_rules_are_refused_and_change_no_weight():
    setup = """
import torch
from math import nan
from l1_ref import *
from l1_ref.steps import scaled_update
model = L1Model(L1Config(vocab_size=17, max_seq_length=8, n_layers=1, n_heads=1, n_embd=4))
before = [p.clone() for p in model.parameters()]
optimizer, x = build_optimizer(model, 0.1), torch.tensor([[1, 2]])
scaler = torch.amp.GradScaler("cpu")
"""
    expected = {call: f"ValueError: {rule}" for call, rule in REFUSED.items()}
    expected["torch.testing.assert_close([p.data for p in model.parameters()], before)"] = "accepted"
    assert answers(setup, list(expected)) == expected


@pytest.mark.parametrize("scale", [2.0**-8, 1.0, 2.0**10, 2.0**16])
def test_a_power_of_two_as_scale_changes_nothing(scale):
    (model, optimizer), (plain, plain_optimizer) = toy(), toy()
    for seed in range(3):
        x, y = batch(seed=seed)
        loss = loss_scaled_step(model, x, y, optimizer, scale)
        expected = train_step(plain, x, y, plain_optimizer, max_norm=1e9)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)  # unscaled
        assert not loss.requires_grad
    assert_close_models(model, plain, rtol=1e-5, atol=1e-5)


class FaintHalf(torch.nn.Module):
    """Compute in float16, and shrink the gradient on its way back until float16 cannot hold it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        with torch.autocast("cpu", torch.float16):
            logits = self.model(ids)
        logits.register_hook(lambda gradient: gradient * 2.0**-24)
        return logits


def test_the_scale_saves_gradients_too_small_for_float16():
    model = FaintHalf(toy()[0])
    x, y = batch()
    largest = {}
    for scale in (1.0, 2.0**20):
        loss_scaled_step(model, x, y, sgd(model, lr=0.0), scale)
        largest[scale] = max(p.grad.abs().max().item() for p in model.parameters())
    assert largest[1.0] == 0 < largest[2.0**20] < 2.0**-20


@pytest.mark.parametrize("scale", [1e39, 2.0**127], ids=["the loss overflows", "at the edge of float32"])
def test_an_overflow_skips_the_whole_step(scale):
    model, optimizer = toy()
    x, y = batch()
    loss_scaled_step(model, x, y, optimizer, 2.0**10)  # so that the optimizer has a state to lose
    for p in model.parameters():
        p.register_hook(lambda gradient: gradient * 4096)
    before = everything(model, optimizer)
    loss = loss_scaled_step(model, x, y, optimizer, scale)
    assert same(everything(model, optimizer), before)
    assert loss.isfinite() and loss.item() == pytest.approx(cross_entropy(model(x), y).item())


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["embedding.token.weight", "blocks.0.norm_1.bias", "norm.weight"])
def test_one_overflow_anywhere_is_enough(name, value):
    model, optimizer = toy()
    x, y = batch()
    loss_scaled_step(model, x, y, optimizer, 1.0)
    before = everything(model, optimizer)

    def overflow(gradient):
        gradient = gradient.clone()
        gradient.view(-1)[-1] = value
        return gradient

    handle = model.get_parameter(name).register_hook(overflow)
    loss_scaled_step(model, x, y, optimizer, 1.0)
    assert same(everything(model, optimizer), before)
    handle.remove()
    loss_scaled_step(model, x, y, optimizer, 1.0)
    assert not same(everything(model, optimizer), before)  # the next step is taken again


@HALVES
def test_mixed_precision_trains_and_keeps_float32_weights(dtype):
    model, optimizer = toy()
    x, y = batch()
    scaled = scaler(enabled=dtype == torch.float16)
    losses = [amp_train_step(model, x, y, optimizer, scaled, dtype) for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]
    assert all(loss.dtype == torch.float32 and not loss.requires_grad for loss in losses)
    assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters()} == {torch.float32}


@HALVES
def test_mixed_precision_computes_products_in_that_precision(dtype):
    model, optimizer = toy()
    seen = []
    model.blocks[0].feed_forward.fc.register_forward_hook(lambda module, inputs, y: seen.append(y.dtype))
    amp_train_step(model, *batch(), optimizer, scaler(enabled=False), dtype)
    assert seen == [dtype]


@pytest.mark.parametrize("enabled", [True, False])
def test_without_mixed_precision_it_is_the_plain_step(enabled):
    (model, optimizer), (plain, plain_optimizer) = toy(), toy()
    for seed in range(3):
        x, y = batch(seed=seed)
        loss = amp_train_step(model, x, y, optimizer, scaler(enabled=enabled), torch.float32)
        torch.testing.assert_close(loss, train_step(plain, x, y, plain_optimizer), rtol=1e-5, atol=0)
    assert_close_models(model, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("max_norm", [0.01, 1e9])
def test_gradients_are_unscaled_before_they_are_clipped(max_norm):
    (model, _), (plain, _) = toy(), toy()
    x, y = batch()
    amp_train_step(model, x, y, sgd(model, lr=1.0), scaler(2.0**16), torch.float32, max_norm)
    train_step(plain, x, y, sgd(plain, lr=1.0), max_norm)
    assert_close_models(model, plain, rtol=1e-4, atol=1e-6)


def test_an_overflow_in_float16_skips_the_step_and_lowers_the_scale():
    model, optimizer = toy()
    x, y = batch()
    scaled = scaler(2.0**10)
    amp_train_step(model, x, y, optimizer, scaled, torch.float16)
    before = everything(model, optimizer)
    scaled = scaler(2.0**40)
    loss = amp_train_step(model, x, y, optimizer, scaled, torch.float16)
    assert same(everything(model, optimizer), before) and loss.isfinite()
    assert scaled.get_scale() == 2.0**39
    for _ in range(40):
        amp_train_step(model, x, y, optimizer, scaled, torch.float16)
    assert scaled.get_scale() < 2.0**30 and not same(everything(model, optimizer), before)  # it found its way down


def test_accumulation_in_float16_takes_one_scaled_update():
    (model, _), (plain, _) = toy(), toy()
    halves = [batch(2, seed=1), batch(2, seed=2)]
    scaled, optimizer = scaler(2.0**10), sgd(model, lr=1.0)
    loss = accumulate_gradients(model, halves, torch.float16, scaled)
    scaled_update(model, optimizer, scaled, 1.0)
    expected = accumulate_gradients(plain, halves)
    clip_grad_norm(plain.parameters(), 1.0)
    sgd(plain, lr=1.0).step()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
    assert_close_models(model, plain, rtol=0, atol=2e-3)  # gradients of norm 1, rounded to eleven bits


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_weighs_by_targets_without_dropout_and_restores_the_mode(training):
    model, _ = toy(L1Config.from_dict(TOY.to_dict() | {"dropout": 0.5}))
    batches = [batch(4, 1), batch(1, 2, (2,)), batch(3, 3, (0, 8, 1)), batch(2, 4, (0, 0))]
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    expected = cross_entropy(model.eval()(x), y).item()
    model.train(training)
    loss = evaluate(model, iter(batches))
    assert isinstance(loss, float) and loss == pytest.approx(expected, rel=1e-5)
    assert model.training == model.blocks[0].feed_forward.dropout.training == training
    assert all(p.grad is None for p in model.parameters())
    assert evaluate(model, batches, torch.bfloat16) == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("batches", [[], [batch(2, padded=(0, 0))]], ids=["no batch", "only padding"])
def test_evaluate_needs_a_target(batches):
    with pytest.raises(ValueError, match="batches must hold at least one target, got none"):
        evaluate(toy()[0], batches)


def test_evaluate_restores_the_mode_after_an_error_too():
    model, _ = toy()
    with pytest.raises(ValueError, match="ids must be in"):
        evaluate(model.train(), [(torch.full((1, 3), 99), torch.zeros(1, 3, dtype=torch.long))])
    assert model.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_loss_in_pieces_is_that_of_the_whole_logits(dtype):
    (model, _), (plain, _) = toy(), toy()
    x, y = batch(padded=(8, 3, 0, 1))
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss, expected = batch_loss(model, x, y, 0.1), cross_entropy(plain(x), y, 0.1)
    loss.backward()
    expected.backward()
    room = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.05, "atol": 2e-3}
    torch.testing.assert_close(loss, expected, **room)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, **room)


def test_a_models_own_forward_is_not_passed_by():
    class Twice(L1Model):
        def forward(self, ids):
            return 2 * super().forward(ids)

    x, y = batch()
    for model in (Twice(TOY), torch.nn.Sequential(L1Model(TOY))):
        assert torch.equal(batch_loss(model, x, y), cross_entropy(model(x), y))
