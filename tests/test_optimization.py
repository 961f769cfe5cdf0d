"""AdamW, its groups, its schedule and clipping, against torch's and against formulas."""

import math

import pytest
import torch
from torch import nn

from l1_ref.config import L1Config
from l1_ref.optimization import adamw_step, build_optimizer, clip_grad_norm, cosine_lr, parameter_groups
from l1_ref.transformer import L1Model
from tests.plain_python import answers

TOY = L1Config(vocab_size=13, max_seq_length=6, n_layers=2, n_heads=2, n_embd=8)


@pytest.mark.parametrize(
    "step, warmup_steps, expected",
    [
        (0, 10, 0.0),
        (1, 10, 0.1),
        (9, 10, 0.9),
        (10, 10, 1.0),  # the peak
        (60, 10, 0.6),  # half way down, from 1 to 0.2
        (35, 10, 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4))),
        (109, 10, 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * 0.99))),
        (110, 10, 0.2),
        (111, 10, 0.2),
        (10**9, 10, 0.2),
        (0, 0, 1.0),  # no warm-up: the peak at once
        (55, 0, 0.6),
        (110, 0, 0.2),
        (109, 110, 109 / 110),  # nothing but warm-up
        (110, 110, 0.2),
    ],
)
def test_cosine_lr_at_its_landmarks(step, warmup_steps, expected):
    lr = cosine_lr(step, lr_peak=3.0, warmup_steps=warmup_steps, total_steps=110, lr_min=0.6)
    assert lr == pytest.approx(3.0 * expected, abs=1e-12)


def test_cosine_lr_rises_then_falls_to_zero_without_lr_min():
    rates = [cosine_lr(step, 1e-3, 20, 100) for step in range(101)]
    assert rates[:21] == sorted(rates[:21]) and rates[20:] == sorted(rates[20:], reverse=True)
    assert max(rates) == rates[20] == 1e-3 and rates[0] == rates[100] == 0.0


def test_cosine_lr_of_a_run_of_no_steps_is_its_end():
    assert cosine_lr(0, 1.0, 0, 0, lr_min=0.1) == 0.1


PEAK_RULE, END_RULE = "lr_peak must be a number at least 0", "lr_min must be a number from 0 to lr_peak=1.0"
REFUSED = {
    "cosine_lr(-1, 1.0, 2, 6)": "step must be a whole number of at least 0, got step=-1",
    "cosine_lr(0.5, 1.0, 2, 6)": "step must be a whole number of at least 0, got step=0.5",
    "cosine_lr(1, 1.0, -2, 6)": "warmup_steps must be a whole number of at least 0, got warmup_steps=-2",
    "cosine_lr(1, 1.0, 2, nan)": "total_steps must be a whole number of at least 0, got total_steps=nan",
    "cosine_lr(1, nan, 2, 6)": f"{PEAK_RULE}, got lr_peak=nan",
    "cosine_lr(1, -1.0, 2, 6)": f"{PEAK_RULE}, got lr_peak=-1.0",
    "cosine_lr(1, 1.0, 2, 6, nan)": f"{END_RULE}, got lr_min=nan",
    "cosine_lr(1, 1.0, 2, 6, -0.1)": f"{END_RULE}, got lr_min=-0.1",
    "cosine_lr(9, 1.0, 2, 6, 1.5)": f"{END_RULE}, got lr_min=1.5",
    "adamw(lr=-0.1)": "lr must be a number at least 0, got lr=-0.1",
    "adamw(lr=nan)": "lr must be a number at least 0, got lr=nan",
    "adamw(lr='fast')": "lr must be a number at least 0, got lr='fast'",
    "adamw(eps=-1e-8)": "eps must be a number at least 0, got eps=-1e-08",
    "adamw(weight_decay=-1.0)": "weight_decay must be a number at least 0, got weight_decay=-1.0",
    "adamw(betas=(1.0, 1.0))": "betas must be two numbers in [0, 1), got betas=(1.0, 1.0)",
    "adamw(betas=(0.9, nan))": "betas must be two numbers in [0, 1), got betas=(0.9, nan)",
    "adamw(betas=0.9)": "betas must be two numbers in [0, 1), got betas=0.9",
    "adamw(betas=(0.9,))": "betas must be two numbers in [0, 1), got betas=(0.9,)",
    "adamw(grad=torch.ones(1))": "grad must have the shape of p, (2,), got (1,)",
    "adamw(grad=torch.ones(3, 2))": "grad must have the shape of p, (2,), got (3, 2)",
    "clip_grad_norm([p], 0)": "max_norm must be a number above 0, got max_norm=0",
    "clip_grad_norm([p], -1.0)": "max_norm must be a number above 0, got max_norm=-1.0",
    "clip_grad_norm([p], nan)": "max_norm must be a number above 0, got max_norm=nan",
    "clip_grad_norm([p], None)": "max_norm must be a number above 0, got max_norm=None",
}
SETUP = """
import torch
from math import nan
from l1_ref.optimization import adamw_step, clip_grad_norm, cosine_lr
p = torch.nn.Parameter(torch.ones(2))
p.grad = torch.ones(2)
def adamw(grad=p.grad, lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0):
    adamw_step(p, grad, {}, lr, betas, eps, weight_decay)
"""


def test_settings_out_of_their_rules_are_refused_and_change_nothing():
    unchanged = "torch.testing.assert_close([p.data, p.grad], [torch.ones(2), torch.ones(2)])"
    expected = {call: f"ValueError: {rule}" for call, rule in REFUSED.items()} | {unchanged: "accepted"}
    assert answers(SETUP, list(expected)) == expected


def names_of(model, groups):
    names = {p: name for name, p in model.named_parameters()}
    return [[names[p] for p in group["params"]] for group in groups]


@pytest.mark.parametrize("tie_weights", [True, False])
def test_groups_are_made_by_number_of_axes(tie_weights):
    model = L1Model(L1Config.from_dict(TOY.to_dict() | {"tie_weights": tie_weights}))
    decayed, rest = groups = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim >= 2 for p in decayed["params"]) and all(p.ndim < 2 for p in rest["params"])
    listed = [name for names in names_of(model, groups) for name in names]
    assert sorted(listed) == sorted(name for name, _ in model.named_parameters())  # each once, a tied one too
    assert "embedding.token.weight" in names_of(model, [decayed])[0]
    assert ("head.weight" in listed) == (not tie_weights)
    torch.optim.AdamW(groups)  # torch refuses a parameter listed twice


def test_frozen_parameters_stay_out_of_the_groups():
    model = L1Model(TOY)
    model.embedding.requires_grad_(False)
    model.blocks[0].norm_1.bias.requires_grad_(False)
    every = {p for group in parameter_groups(model, 0.1) for p in group["params"]}
    assert every == {p for p in model.parameters() if p.requires_grad}
    assert [len(group["params"]) for group in parameter_groups(model.requires_grad_(False), 0.1)] == [0, 0]


def test_build_optimizer_hands_on_its_settings():
    optimizer = build_optimizer(L1Model(TOY), lr=0.25, betas=(0.8, 0.9), weight_decay=0.5)
    assert isinstance(optimizer, torch.optim.AdamW)
    for group, decay in zip(optimizer.param_groups, (0.5, 0.0), strict=True):
        assert (group["lr"], group["betas"], group["weight_decay"], group["eps"]) == (0.25, (0.8, 0.9), decay, 1e-8)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("betas, eps", [((0.9, 0.99), 1e-8), ((0.5, 0.7), 1e-2), ((0.0, 0.9), 1e-8)])
@pytest.mark.parametrize("shape", [(4, 3), (5,), ()], ids=str)
def test_adamw_equals_torch_over_fifty_steps(shape, betas, eps, weight_decay):
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, math.prod(shape)).double().view(shape)) for _ in range(2))
    optimizer = torch.optim.AdamW([theirs], lr=0.0, betas=betas, eps=eps, weight_decay=weight_decay)
    state = {}
    for step in range(50):
        lr = cosine_lr(step + 1, 0.05, 5, 50)
        # Sizes from 1e-5 to 10, and one gradient of zero.
        theirs.grad = torch.randn(shape, dtype=torch.float64) * 10.0 ** (step % 7 - 5) * (step != 9)
        before = theirs.grad.clone()
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        assert adamw_step(ours, before, state, lr, betas, eps, weight_decay) is None
        assert torch.equal(before, theirs.grad)  # the gradient is only read
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert ours.requires_grad and ours.grad is None and ours.is_leaf


def test_the_first_step_is_lr_times_the_sign_after_decay():
    p = nn.Parameter(torch.tensor([2.0, -4.0, 1.0]))
    adamw_step(p, torch.tensor([0.001, -50.0, 0.0]), {}, 0.1, (0.9, 0.99), 0.0 + 1e-12, 0.5)
    torch.testing.assert_close(p.detach(), torch.tensor([2.0, -4.0, 1.0]) * 0.95 - 0.1 * torch.tensor([1.0, -1.0, 0.0]))


def parameters_with(*gradients):
    parameters = [nn.Parameter(torch.zeros(3)) for _ in gradients]
    for p, gradient in zip(parameters, gradients, strict=True):
        p.grad = None if gradient is None else torch.tensor(gradient)
    return parameters


@pytest.mark.parametrize("max_norm, scale", [(6.5, 0.5), (13.0, 1.0), (100.0, 1.0), (math.inf, 1.0)])
def test_clipping_measures_all_gradients_together(max_norm, scale):
    parameters = parameters_with([3.0, 0.0, 4.0], None, [0.0, 12.0, 0.0])  # norms 5 and 12, together 13
    norm = clip_grad_norm((p for p in parameters), max_norm)
    assert float(norm) == pytest.approx(13.0)
    torch.testing.assert_close(parameters[0].grad, torch.tensor([3.0, 0.0, 4.0]) * scale)
    torch.testing.assert_close(parameters[2].grad, torch.tensor([0.0, 12.0, 0.0]) * scale)
    assert parameters[1].grad is None


def test_a_single_tensor_is_one_parameter():
    (p,) = parameters_with([3.0, 0.0, 4.0])
    assert float(clip_grad_norm(p, 2.5)) == 5.0
    torch.testing.assert_close(p.grad, torch.tensor([1.5, 0.0, 2.0]))


def test_gradients_below_the_limit_are_not_touched():
    (p,) = parameters_with([0.1, -0.2, 0.3])
    clip_grad_norm([p], 1.0)
    assert torch.equal(p.grad, torch.tensor([0.1, -0.2, 0.3]))


def test_clipping_nothing_is_harmless():
    assert float(clip_grad_norm(iter([]), 1.0)) == 0.0
    assert float(clip_grad_norm(parameters_with(None, None), 1.0)) == 0.0
