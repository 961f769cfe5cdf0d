"""The checks of 04_blocks: mistakes in other words than the catalogue's, right answers in many styles, stubs."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import l1_ref
from l1_ref import checks
from tests.check_cases import (
    SEEDS,
    assert_accepted,
    assert_all_told,
    assert_named_first,
    assert_rejected,
    assert_same_on_two_threads,
    cases,
)

# layer_norm: wrong answers, as learners write them.


def torchs_var(x, weight, bias, eps=1e-5):
    mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True)
    return weight * (x - mean) / torch.sqrt(var + eps) + bias


def annotated(x, weight, bias, eps=1e-5):
    """Two mistakes at once: std divides by C - 1, and eps stands outside the root."""
    return weight * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + eps) + bias


def std_and_eps(x, weight, bias, eps=1e-5):
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (torch.std(x, dim=-1, keepdim=True, unbiased=False) + eps) * weight + bias


def no_root(x, weight, bias, eps=1e-5):
    var, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
    return torch.addcmul(bias, (x - mean) / (var + eps), weight)


def squared_root(x, weight, bias, eps=1e-5):
    var, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
    return (x - mean) / (var + eps) ** 2 * weight + bias


def root_of_std(x, weight, bias, eps=1e-5):
    std = x.std(-1, keepdim=True, correction=0)
    return (x - x.mean(-1, keepdim=True)) / torch.sqrt(std + eps) * weight + bias


def times_root(x, weight, bias, eps=1e-5):
    var, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
    return (x - mean) * torch.sqrt(var + eps) * weight + bias


def no_eps(x, weight, bias, eps=1e-5):
    d = x - x.mean(-1, keepdim=True)
    return d / d.pow(2).mean(-1, keepdim=True).sqrt() * weight + bias


def own_eps(x, weight, bias, eps=1e-5):
    return nn.functional.layer_norm(x, (x.size(-1),), weight=weight, bias=bias)


def small_eps(x, weight, bias, eps=1e-5):
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps=1e-8)


def bert_default(x, weight, bias, eps=1e-12):
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def over_the_batch(x, weight, bias, eps=1e-5):
    d = x - x.mean(0)
    return d * torch.rsqrt(d.square().mean(0) + eps) * weight + bias


def batch_norm(x, weight, bias, eps=1e-5):
    dims = list(range(x.ndim - 1))
    mean, var = x.mean(dims, keepdim=True), x.var(dims, keepdim=True, unbiased=False)
    return (x - mean) / (var + eps).sqrt() * weight + bias


def over_positions(x, weight, bias, eps=1e-5):
    var, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
    return (x - mean) / (var + eps).sqrt() * weight + bias


def over_last_but_one(x, weight, bias, eps=1e-5):
    y = F.layer_norm(x.transpose(-1, -2), (x.shape[-2],), eps=eps).transpose(-1, -2)
    return y * weight + bias


def over_sequence(x, weight, bias, eps=1e-5):
    return F.layer_norm(x, x.shape[-2:], None, None, eps) * weight + bias


def over_everything(x, weight, bias, eps=1e-5):
    return (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + eps) * weight + bias


def no_keepdim_mean(x, weight, bias, eps=1e-5):
    mean = torch.mean(x, -1)
    var = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(var + eps) * weight + bias


def no_keepdim_var(x, weight, bias, eps=1e-5):
    d = x - x.mean(-1, keepdim=True)
    return d / torch.sqrt(torch.mean(d * d, dim=-1) + eps) * weight + bias


def no_keepdim(x, weight, bias, eps=1e-5):
    mean, var = x.mean(dim=-1), x.var(dim=-1, unbiased=False)
    return (x - mean) / torch.sqrt(var + eps) * weight + bias


def no_keepdim_by_hand(x, weight, bias, eps=1e-5):
    d = x - x.mean(dim=-1)
    return d / torch.sqrt((d**2).mean(dim=-1) + eps) * weight + bias


def sum_of_squares(x, weight, bias, eps=1e-5):
    d = x - x.mean(-1, keepdim=True)
    return d / torch.sqrt((d**2).sum(-1, keepdim=True) + eps) * weight + bias


def mean_distance(x, weight, bias, eps=1e-5):
    d = x - x.mean(-1, keepdim=True)
    m = d.abs().mean(-1, keepdim=True)
    return d / torch.sqrt(m * m + eps) * weight + bias


def rms(x, weight, bias, eps=1e-5):
    return F.rms_norm(x, x.shape[-1:], weight, eps) + bias


def mean_stays(x, weight, bias, eps=1e-5):
    return x * torch.rsqrt(x.var(-1, correction=0, keepdim=True) + eps) * weight + bias


def spread_around_zero(x, weight, bias, eps=1e-5):
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def mean_divided(x, weight, bias, eps=1e-5):
    return (x - x.mean(-1, keepdim=True) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + eps)) * weight + bias


def mean_divided_and_scaled(x, weight, bias, eps=1e-5):
    var, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return x - mean / torch.sqrt(var + eps) * weight + bias


def mean_minus_x(x, weight, bias, eps=1e-5):
    return bias - (F.layer_norm(x, x.shape[-1:], weight, bias, eps) - bias)


def bare(x, weight, bias, eps=1e-5):
    return F.layer_norm(x, x.shape[-1:], eps=eps)


def no_weight(x, weight, bias, eps=1e-5):
    return F.layer_norm(x, x.shape[-1:], bias=bias, eps=eps)


def no_bias(x, weight, bias, eps=1e-5):
    return F.layer_norm(x, x.shape[-1:], weight=weight, eps=eps)


def bias_first(x, weight, bias, eps=1e-5):
    return weight * (bias + F.layer_norm(x, x.shape[-1:], eps=eps))


def swapped_parameters(x, weight, bias, eps=1e-5):
    return F.layer_norm(x, x.shape[-1:], bias, weight, eps)


def weight_added(x, weight, bias, eps=1e-5):
    return F.layer_norm(x, x.shape[-1:], eps=eps) + (weight + bias)


def one_plus_weight(x, weight, bias, eps=1e-5):
    y = F.layer_norm(x, x.shape[-1:], eps=eps)
    return y + y * weight + bias


def weight_on_x(x, weight, bias, eps=1e-5):
    return F.layer_norm(torch.addcmul(bias, x, weight), x.shape[-1:], eps=eps)


def frozen_statistics(x, weight, bias, eps=1e-5):
    with torch.no_grad():
        var, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) / (var + eps).sqrt() * weight + bias


def frozen_mean(x, weight, bias, eps=1e-5):
    mean = torch.tensor(x.detach().mean(-1, keepdim=True).numpy())
    return (x - mean) / (((x - x.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True) + eps) ** 0.5 * weight + bias


def data_only(x, weight, bias, eps=1e-5):
    return F.layer_norm(x.data, x.shape[-1:], weight, bias, eps)


def through_lists(x, weight, bias, eps=1e-5):
    return torch.tensor(F.layer_norm(x, x.shape[-1:], weight, bias, eps).tolist(), dtype=x.dtype)


def minus_equals(x, weight, bias, eps=1e-5):
    x -= x.mean(-1, keepdim=True)
    x /= (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return x * weight + bias


LAYER_NORM_WRONG = {
    torchs_var: "divided by C - 1",
    annotated: "divided by C - 1",
    std_and_eps: "eps stands outside the root",
    no_root: "divided by the variance",
    squared_root: "divided by the variance",
    root_of_std: "the root is taken twice",
    times_root: "multiplied by the root",
    no_eps: "eps is left out",
    own_eps: "the argument eps is ignored",
    small_eps: "the argument eps is ignored",
    bert_default: "another default",
    over_the_batch: "along the first axis",
    batch_norm: "along the first axis",
    over_positions: "along the positions T",
    over_last_but_one: "along the positions T",
    over_sequence: "positions and width together",
    over_everything: "of the whole tensor",
    no_keepdim_mean: "keepdim is missing in the mean",
    no_keepdim_var: "keepdim is missing in the variance",
    no_keepdim: "keepdim is missing in the mean and in the variance",
    no_keepdim_by_hand: "keepdim is missing in the mean and in the variance",
    sum_of_squares: "summed, not averaged",
    mean_distance: "mean distance from the mean",
    rms: "RMS norm",
    mean_stays: "the mean is not subtracted",
    spread_around_zero: "taken around 0",
    mean_divided: "brackets are missing",
    mean_divided_and_scaled: "brackets are missing",
    mean_minus_x: "the sign is turned",
    bare: "weight and bias are both left out",
    no_weight: "weight is left out",
    no_bias: "bias is left out",
    bias_first: "before the weight multiplies",
    swapped_parameters: "weight and bias are swapped",
    weight_added: "the weight is added",
    one_plus_weight: "1 + weight",
    weight_on_x: "applied to x, before it is normalised",
    frozen_statistics: "no gradient flows through the mean and the variance",
    frozen_mean: "no gradient flows through the mean and the variance",
    data_only: "no gradient gets through",
    through_lists: "no gradient gets through",
    minus_equals: "x is changed in place",
}


# layer_norm: right answers.


def by_hand(x, weight, bias, eps=1e-5):
    mean = x.mean(dim=-1, keepdim=True)
    var = x.var(dim=-1, keepdim=True, unbiased=False)
    return weight * ((x - mean) / torch.sqrt(var + eps)) + bias


def by_var_mean(x, weight, bias, eps=0.00001):
    var, mean = torch.var_mean(x, dim=x.ndim - 1, correction=0, keepdim=True)
    return torch.addcmul(bias, (x - mean) * torch.rsqrt(var + eps), weight)


def by_einsum(x, weight, bias, eps=1e-5):
    C = x.shape[-1]
    d = x - (torch.einsum("...c->...", x) / C)[..., None]
    var = torch.einsum("...c,...c->...", d, d) / C
    return torch.einsum("...c,...,c->...c", d, (var + eps) ** -0.5, weight) + bias


def by_matrices(x, weight, bias, eps=1e-5):
    C = x.shape[-1]
    d = x @ (torch.eye(C, dtype=x.dtype) - 1 / C)
    return d / (d.pow(2).sum(-1, keepdim=True) / C + eps).pow(0.5) * weight + bias


def mean_of_squares(x, weight, bias, eps=1e-5):
    mean, square = x.mean(-1, True), x.pow(2).mean(-1, True)
    return (x - mean) / torch.sqrt(square - mean**2 + eps) * weight + bias


def row_by_row(x, weight, bias, eps=1e-5):
    rows = []
    for row in x.reshape(-1, x.shape[-1]):
        mean = sum(row) / len(row)
        var = sum((value - mean) ** 2 for value in row) / len(row)
        rows.append(torch.stack([(value - mean) / (var + eps) ** 0.5 for value in row]) * weight + bias)
    return torch.stack(rows).reshape(x.shape)


def in_float64(x, weight, bias, eps=1e-5):
    return by_hand(x.double(), weight.double(), bias.double(), eps).to(x.dtype)


def in_float32(x, weight, bias, eps=1e-5):
    return by_hand(x.float(), weight.float(), bias.float(), eps).type_as(x)


def through_std(x, weight, bias, eps=1e-5):
    d = x - torch.mean(x, -1).unsqueeze(-1)
    std = torch.std(x, -1, correction=0).unsqueeze(-1)
    return d / torch.hypot(std, torch.full_like(std, math.sqrt(eps))) * weight + bias


def unbiased_put_right(x, weight, bias, eps=1e-5):
    C = x.shape[-1]
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) * (C - 1) / C + eps).sqrt() * weight + bias


def through_a_module(x, weight, bias, eps=1e-5):
    norm = nn.LayerNorm(x.shape[-1], eps=eps, elementwise_affine=False)
    return norm(x) * weight + bias


def on_a_copy(x, weight, bias, eps=1e-5):
    y = x.clone()
    y -= x.mean(-1, keepdim=True)
    return y * (1 / (y.square().mean(-1, keepdim=True) + eps).sqrt()) * weight + bias


def as_group_norm(x, weight, bias, eps=1e-5):
    return F.group_norm(x.reshape(-1, x.shape[-1]), 1, weight, bias, eps).reshape(x.shape)


LAYER_NORM_RIGHT = [
    lambda x, weight, bias, eps=1e-5: F.layer_norm(x, x.shape[-1:], weight, bias, eps),
    torch.compiler.disable(by_hand),
    by_hand,
    by_var_mean,
    by_einsum,
    by_matrices,
    mean_of_squares,
    row_by_row,
    in_float64,
    in_float32,
    through_std,
    unbiased_put_right,
    through_a_module,
    on_a_copy,
    as_group_norm,
]

LAYER_NORM_STUBS = [
    lambda x, weight, bias, eps=1e-5: None,
    lambda x, weight, bias, eps=1e-5: x,
    lambda x, weight, bias, eps=1e-5: x * weight + bias,
    lambda x, weight, bias, eps=1e-5: torch.zeros_like(x),
    lambda x, weight, bias, eps=1e-5: torch.ones_like(x),
    lambda x, weight, bias, eps=1e-5: bias.expand_as(x),
    lambda x, weight, bias, eps=1e-5: torch.randn_like(x),
    lambda x, weight, bias, eps=1e-5: by_hand(x, weight, bias, eps).tolist(),
    lambda x, weight, bias, eps=1e-5: by_hand(x, weight, bias, eps).detach().numpy(),
    lambda x, weight, bias, eps=1e-5: by_hand(x, weight, bias, eps).float(),
    lambda x, weight, bias, eps=1e-5: by_hand(x, weight, bias, eps).half().to(x.dtype),
    lambda x, weight, bias, eps=1e-5: by_hand(x, weight, bias, eps).flatten(),
    lambda x, weight, bias, eps=1e-5: (by_hand(x, weight, bias, eps), None),
    lambda x, weight, bias, eps=1e-5: torch.softmax(x, -1) * weight + bias,
    lambda x, weight, bias, eps=1e-5: torch.nan_to_num(no_eps(x, weight, bias)),
    lambda x, weight, bias, eps: by_hand(x, weight, bias, eps),
    lambda x: x,
    nn.LayerNorm,
]


# gelu: wrong answers.

ROOT = math.sqrt(2 / math.pi)


def erf_form(x):
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def module_of_torch(x):
    return nn.GELU()(x)


def sigmoid_form(x):
    return x / (1 + torch.exp(-1.702 * x))


def swish(x):
    return x * x.sigmoid()


def rectified(x):
    return x.clamp(min=0)


def only_positive(x):
    return F.gelu(x, approximate="tanh") * (x > 0)


def squeezed(x):
    return F.tanh(x)


def digit_lost(x):
    return 0.5 * x * (1 + torch.tanh(ROOT * (x + 0.44715 * torch.pow(x, 3))))


def digits_turned(x):
    return 0.5 * x * (1 + torch.tanh(ROOT * (x + 0.04475 * x**3)))


def root_of_two_pi(x):
    return 0.5 * x * (1 + torch.tanh((2 * torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


def no_root_of_two_over_pi(x):
    return x / 2 * (1 + torch.tanh(2 / math.pi * (x + 0.044715 * x * x * x)))


def rounded_root(x):
    return x / 2 * (1 + torch.tanh(0.7979 * (x + 0.044715 * x**3)))


def school_pi(x):
    return x / 2 * (1 + torch.tanh((2 / 3.14) ** 0.5 * (x + 0.044715 * x**3)))


def rounded_cubic(x):
    return x / 2 * (1 + torch.tanh(ROOT * (x + 0.0447 * x**3)))


def three_times(x):
    return x / 2 * (1 + torch.tanh(ROOT * (x + 0.044715 * (x * 3))))


def half_of_one(x):
    return x * (0.5 * 1 + torch.tanh(ROOT * (x + 0.044715 * x**3)))


def square(x):
    return 0.5 * x * (1 + torch.tanh(ROOT * (x + 0.044715 * x.pow(2))))


def no_power(x):
    return 0.5 * x * (1 + torch.tanh(ROOT * 1.044715 * x))


def no_cubic_term(x):
    return 0.5 * x * (1 + (ROOT * x).tanh())


def cube_of_all(x):
    return 0.5 * x * (1 + torch.tanh(ROOT * (x + 0.044715 * x) ** 3))


def cube_of_product(x):
    return 0.5 * x * (1 + torch.tanh(ROOT * (x + torch.pow(0.044715 * x, 3))))


def root_on_x_only(x):
    return 0.5 * x * (1 + torch.tanh(x * ROOT + 0.044715 * x**3))


def constants_swapped(x):
    return 0.5 * x * (1 + torch.tanh(0.044715 * (x + ROOT * x**3)))


def no_half(x):
    return x * (1 + torch.tanh(ROOT * (x + 0.044715 * x**3)))


def only_the_gate(x):
    return torch.sigmoid(2 * ROOT * (x + 0.044715 * x**3))


def no_one(x):
    return 0.5 * x * torch.tanh(ROOT * (x + 0.044715 * x**3))


def one_outside(x):
    return 0.5 * x * torch.tanh(ROOT * (x + 0.044715 * x**3)) + 1.0


def fades_positive(x):
    return x - F.gelu(x, approximate="tanh")


def no_tanh(x):
    return 0.5 * x * (1 + ROOT * (x + 0.044715 * x**3))


def sigmoid_for_tanh(x):
    return 0.5 * x * (1 + F.sigmoid(ROOT * (x + 0.044715 * x**3)))


def quotient_of_exponentials(x):
    u = ROOT * (x + 0.044715 * x**3)
    up, down = torch.exp(u), torch.exp(-u)
    return 0.5 * x * (1 + (up - down) / (up + down))


def in_numpy(x):
    y = x.detach().numpy()
    return torch.from_numpy(0.5 * y * (1 + np.tanh(ROOT * (y + 0.044715 * y**3)))).to(x.dtype)


def gelu_minus_equals(x):
    gate = 0.5 * (1 + torch.tanh(ROOT * (x + 0.044715 * x**3)))
    x *= gate
    return x


GELU_WRONG = {
    erf_form: "exact form, with erf",
    module_of_torch: "exact form, with erf",
    sigmoid_form: "sigmoid form",
    swish: "SiLU",
    rectified: "ReLU",
    only_positive: "ReLU",
    squeezed: "tanh or sigmoid alone",
    digit_lost: "0.044715 is another number",
    digits_turned: "0.044715 is another number",
    root_of_two_pi: "sqrt(2 / pi) is another number",
    no_root_of_two_over_pi: "sqrt(2 / pi) is another number",
    rounded_root: "a constant is rounded",
    school_pi: "a constant is rounded",
    rounded_cubic: "a constant is rounded",
    three_times: "the power of x is missing",
    half_of_one: "the brackets around 1 + tanh",
    square: "squared where it should be cubed",
    no_power: "the power of x is missing",
    no_cubic_term: "the cubic term is left out",
    cube_of_all: "the cube takes in too much",
    cube_of_product: "the cube takes in too much",
    root_on_x_only: "multiplies only x",
    constants_swapped: "the two constants are swapped",
    no_half: "the factor 0.5 is missing",
    only_the_gate: "the factor x is missing",
    no_one: "1 is not added",
    one_outside: "the brackets around 1 + tanh",
    fades_positive: "the sign of the tanh",
    no_tanh: "the tanh is left out",
    sigmoid_for_tanh: "sigmoid stands where tanh belongs",
    quotient_of_exponentials: "which overflows",
    in_numpy: "no gradient gets through",
    gelu_minus_equals: "x is changed in place",
}


# gelu: right answers.


def by_formula(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def by_sigmoid(x):
    return x * torch.sigmoid(2 * ROOT * (x + 0.044715 * x**3))


def by_horner(x):
    return x * 0.5 * (1 + torch.tanh(x * 0.7978845608028654 * (1 + 0.044715 * x * x)))


def number_by_number(x):
    flat = [0.5 * v * (1 + torch.tanh(ROOT * (v + 0.044715 * v * v * v))) for v in x.flatten()]
    return torch.stack(flat).view(x.shape)


def with_tensor_constants(x):
    root = torch.sqrt(torch.tensor(2.0) / torch.pi).to(x.dtype)
    return torch.mul(x, torch.add(torch.tanh(root * torch.add(x, torch.pow(x, 3), alpha=0.044715)), 1)).div(2)


def gelu_in_float64(x):
    return by_formula(x.double()).to(x.dtype)


def gelu_in_float32(x):
    return by_formula(x.float()).to(x.dtype)


def safe_exponentials(x):
    u = ROOT * (x + 0.044715 * x**3)
    e = torch.exp(-2 * u.abs())
    return 0.5 * x * (1 + torch.sign(u) * (1 - e) / (1 + e))


GELU_RIGHT = [
    lambda x: F.gelu(x, approximate="tanh"),
    nn.GELU("tanh"),
    by_formula,
    by_sigmoid,
    by_horner,
    number_by_number,
    with_tensor_constants,
    gelu_in_float64,
    gelu_in_float32,
    safe_exponentials,
]

GELU_STUBS = [
    lambda x: None,
    lambda x: x,
    lambda x: torch.zeros_like(x),
    lambda x: torch.ones_like(x),
    lambda x: torch.randn_like(x),
    lambda x: by_formula(x).tolist(),
    lambda x: by_formula(x).float(),
    lambda x: by_formula(x).half().to(x.dtype),
    lambda x: by_formula(x).flatten(),
    lambda x: by_formula(x.clamp(-5, 5)),
    lambda x: by_formula(x).detach().numpy(),
    lambda x: 0.5 * x * (1 + math.tanh(ROOT * (x + 0.044715 * x**3))),
    lambda x: F.softplus(x),
    F.mish,
    lambda x, y: x,
    nn.GELU,
]


# FeedForward: wrong answers.


class Layers(nn.Module):
    """What most of the versions below begin with; each writes its own forward."""

    def __init__(self, config):
        super().__init__()
        self.fc = nn.Linear(config.n_embd, config.n_inner)
        self.proj = nn.Linear(config.n_inner, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.act = nn.GELU(approximate="tanh")
        self.p = config.dropout


class FourTimes(Layers):
    def __init__(self, config):
        super().__init__(config)
        self.fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        return self.dropout(self.proj(self.act(self.fc(x))))


class NotWidened(FourTimes):
    def __init__(self, config):
        super().__init__(config)
        self.fc, self.proj = (nn.Linear(config.n_embd, config.n_embd) for _ in range(2))


class FirstProj(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.proj = nn.Linear(config.n_embd, config.n_inner)
        self.fc = nn.Linear(config.n_inner, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        return self.dropout(self.fc(l1_ref.gelu(self.proj(x))))


class WidthsTurned(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc = nn.Linear(config.n_inner, config.n_embd)
        self.proj = nn.Linear(config.n_embd, config.n_inner)

    def forward(self, x):
        return self.proj(l1_ref.gelu(self.fc(x)))


class NoBiases(FourTimes):
    def __init__(self, config):
        super().__init__(config)
        self.fc = nn.Linear(config.n_embd, config.n_inner, bias=False)
        self.proj = nn.Linear(config.n_inner, config.n_embd, bias=False)


class NoFirstBias(NoBiases):
    def __init__(self, config):
        super().__init__(config)
        self.proj = nn.Linear(config.n_inner, config.n_embd)


class NoLastBias(NoBiases):
    def __init__(self, config):
        super().__init__(config)
        self.fc = nn.Linear(config.n_embd, config.n_inner)


class BendAtTheEnd(Layers):
    def forward(self, x):
        return self.dropout(self.act(self.proj(self.fc(x))))


class BendFirst(Layers):
    def forward(self, x):
        return self.dropout(self.proj(self.fc(self.act(x))))


class BendTwicePlaces(Layers):
    def forward(self, x):
        h = self.act(self.fc(x))
        return self.dropout(self.act(self.proj(h)))


class BendTwice(Layers):
    def forward(self, x):
        return self.dropout(self.proj(self.act(self.act(self.fc(x)))))


class NoBend(Layers):
    def forward(self, x):
        return self.dropout(self.proj(self.fc(x)))


class Rectified(Layers):
    def forward(self, x):
        return self.dropout(self.proj(torch.clamp(self.fc(x), min=0)))


class WithErf(Layers):
    def __init__(self, config):
        super().__init__(config)
        self.act = nn.GELU()

    def forward(self, x):
        return self.dropout(self.proj(self.act(self.fc(x))))


class WithSiLU(WithErf):
    def __init__(self, config):
        super().__init__(config)
        self.act = nn.SiLU()


class WithSigmoidForm(Layers):
    def forward(self, x):
        h = self.fc(x)
        return self.dropout(self.proj(h * (1.702 * h).sigmoid()))


class WithTanh(WithErf):
    def __init__(self, config):
        super().__init__(config)
        self.act = nn.Tanh()


class AlwaysDropping(Layers):
    def forward(self, x):
        return F.dropout(self.proj(self.act(self.fc(x))), self.p)


class DropsHiddenAlways(Layers):
    def forward(self, x):
        return self.proj(F.dropout(self.act(self.fc(x)), p=self.p, training=True))


class NoDropout(Layers):
    def forward(self, x):
        return self.proj(self.act(self.fc(x)))


class DropsBeforeProj(Layers):
    def forward(self, x):
        return self.proj(self.dropout(self.act(self.fc(x))))


class DropsInput(Layers):
    def forward(self, x):
        return self.proj(self.act(self.fc(self.dropout(x))))


class DropsInputAndOutput(Layers):
    def forward(self, x):
        return self.dropout(self.proj(self.act(self.fc(self.dropout(x)))))


class DropsEverywhere(Layers):
    def forward(self, x):
        return self.dropout(self.proj(self.dropout(self.act(self.fc(self.dropout(x))))))


class AddsXBeforeDropout(Layers):
    def forward(self, x):
        return self.dropout(x + self.proj(self.act(self.fc(x))))


class DropsTwice(Layers):
    def forward(self, x):
        return self.dropout(self.proj(self.dropout(self.act(self.fc(x)))))


class TorchsRate(FourTimes):
    def __init__(self, config):
        Layers.__init__(self, config)
        self.dropout = nn.Dropout(0.5 if config.dropout else 0)


class KeepsRate(Layers):
    def forward(self, x):
        y = self.proj(self.act(self.fc(x)))
        return F.dropout(y, 1 - self.p if self.p else 0.0, self.training)


class AddsX(Layers):
    def forward(self, x):
        return x + self.dropout(self.proj(self.act(self.fc(x))))


class NormalisesX(Layers):
    def forward(self, x):
        x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, correction=0) + 1e-5)
        return self.dropout(self.proj(self.act(self.fc(x))))


class NormalisesOutput(Layers):
    def forward(self, x):
        y = self.proj(self.act(self.fc(x)))
        return self.dropout(F.layer_norm(y, (y.shape[-1],)))


class CutsGradient(Layers):
    def forward(self, x):
        with torch.no_grad():
            h = self.act(self.fc(x))
        return self.dropout(self.proj(h))


FEED_FORWARD_WRONG = {
    FourTimes: "4 * n_embd",
    NotWidened: "nothing is widened",
    FirstProj: "fc and proj are swapped",
    NoFirstBias: "fc has no bias",
    NoLastBias: "proj has no bias",
    NoBiases: "fc and proj have no bias",
    BendAtTheEnd: "the activation is after proj",
    BendFirst: "the activation is before fc",
    BendTwicePlaces: "an activation after proj too",
    BendTwice: "the activation is applied twice",
    NoBend: "the activation is missing",
    Rectified: "the activation is ReLU",
    WithErf: "the exact GELU, with erf",
    WithSiLU: "the activation is SiLU",
    WithSigmoidForm: "the sigmoid form of GELU",
    WithTanh: "the activation is tanh or sigmoid",
    AlwaysDropping: "active in eval mode",
    DropsHiddenAlways: "active in eval mode",
    NoDropout: "dropout is missing",
    DropsBeforeProj: "dropout is before proj",
    DropsInput: "dropout is before proj",
    DropsTwice: "dropout falls more than once",
    DropsInputAndOutput: "dropout falls more than once",
    DropsEverywhere: "dropout falls more than once",
    TorchsRate: "the dropout rate is not config.dropout",
    KeepsRate: "the dropout rate is not config.dropout",
    AddsX: "x is added inside",
    AddsXBeforeDropout: "x is added inside",
    NormalisesX: "x is normalised inside",
    NormalisesOutput: "the output is normalised inside",
    CutsGradient: "no gradient gets through",
}


# FeedForward: right answers.


class Plain(Layers):
    def forward(self, x):
        return self.dropout(self.proj(self.act(self.fc(x))))


class Functional(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.proj = nn.Linear(config.n_inner, config.n_embd)
        self.fc = nn.Linear(config.n_embd, config.n_inner)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x):
        h = F.gelu(F.linear(x, self.fc.weight, self.fc.bias), approximate="tanh")
        return F.dropout(F.linear(h, self.proj.weight, self.proj.bias), self.config.dropout, self.training)


class Affine(nn.Module):
    """A linear layer by hand."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(n_out, n_in)), nn.Parameter(torch.zeros(n_out))

    def forward(self, x):
        return torch.einsum("...i,oi->...o", x, self.weight) + self.bias


class ByHand(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc, self.proj = Affine(config.n_embd, config.n_inner), Affine(config.n_inner, config.n_embd)
        self.keep = 1 - config.dropout
        self.register_buffer("unused", torch.ones(2))

    def forward(self, x):
        y = self.proj(by_sigmoid(self.fc(x)))
        return y * (torch.rand_like(y) < self.keep) / self.keep if self.training else y


class Flattened(Layers):
    def forward(self, x):
        rows = x.reshape(-1, x.shape[-1])
        return self.dropout(torch.addmm(self.proj.bias, by_formula(self.fc(rows)), self.proj.weight.T)).view(x.shape)


class PositionByPosition(Layers):
    def forward(self, x):
        return torch.stack([self.dropout(self.proj(self.act(self.fc(x[:, t])))) for t in range(x.shape[1])], dim=1)


class Registered(nn.Module):
    def __init__(self, config: l1_ref.L1Config) -> None:
        super().__init__()
        self.add_module("fc", nn.Linear(config.n_embd, config.n_inner, bias=True))
        self.add_module("act", nn.GELU("tanh"))
        self.add_module("proj", nn.Linear(config.n_inner, config.n_embd, bias=True))
        self.add_module("drop", nn.Dropout(p=config.dropout))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            x = layer(x)
        return x


class Double(Layers):
    def forward(self, x):
        h = by_formula(F.linear(x.double(), self.fc.weight.double(), self.fc.bias.double()))
        y = F.linear(h, self.proj.weight.double(), self.proj.bias.double())
        return self.dropout(y.to(x.dtype))


FEED_FORWARD_RIGHT = [Plain, Functional, ByHand, Flattened, PositionByPosition, Registered, Double]


class Identity(Layers):
    def forward(self, x):
        return x


class Nothing(Layers):
    def forward(self, x):
        self.proj(self.fc(x))


class Zeros(Layers):
    def forward(self, x):
        return torch.zeros_like(x)


class Noise(Layers):
    def forward(self, x):
        return torch.randn_like(x)


class Ones(Layers):
    def forward(self, x):
        return torch.ones_like(x) + 0 * self.proj(self.fc(x))


class DoubleOut(Plain):
    def forward(self, x):
        return super().forward(x).double()


class HalfInside(Layers):
    def forward(self, x):
        return self.proj(self.act(self.fc(x)).half().float())


class TupleOut(Plain):
    def forward(self, x):
        return (super().forward(x),)


class OtherNames(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(config.n_embd, config.n_inner),
            nn.GELU("tanh"),
            nn.Linear(config.n_inner, config.n_embd),
            nn.Dropout(config.dropout),
        )

    def forward(self, x):
        return self.net(x)


class OverPositions(Plain):
    def forward(self, x):
        return super().forward(x).flip(1)


class NoInit(nn.Module):
    def __init__(self, config):
        self.fc = nn.Linear(config.n_embd, config.n_inner)


class InPlaceGELU(Plain):
    def forward(self, x):
        x *= 1.0
        x += 1.0
        return super().forward(x)


FEED_FORWARD_STUBS = [
    Identity,
    Nothing,
    Zeros,
    Noise,
    Ones,
    DoubleOut,
    HalfInside,
    TupleOut,
    OtherNames,
    OverPositions,
    NoInit,
    WidthsTurned,
    InPlaceGELU,
    nn.Identity,
    lambda config: lambda x: x,
    lambda config: None,
]


# The bug hunt.


def still_broken(x, norm, sublayer):
    x = norm(x)
    return x + sublayer(x)


def torch_post_norm(x, norm, sublayer):
    return norm(torch.add(sublayer(x), x))


def normalised_again(x, norm, sublayer):
    h = norm(x)
    h = x + sublayer(h)
    return norm(h)


def norm_on_the_stream(x, norm, sublayer):
    return norm(x) + sublayer(x)


def forgets_norm(x, norm, sublayer):
    return sublayer(x) + x


def forgets_x(x, norm, sublayer):
    y = norm(x)
    return sublayer(y)


def norm_of_answer(x, norm, sublayer):
    y = sublayer(x)
    return x + norm(y)


def sandwich(x, norm, sublayer):
    return torch.add(x, norm(sublayer(norm(x))))


def sum_inside(x, norm, sublayer):
    return sublayer(norm(x) + x)


def x_twice(x, norm, sublayer):
    y = x + sublayer(norm(x))
    return x + y


def adds_norm_too(x, norm, sublayer):
    y = norm(x)
    return x + y + sublayer(y)


def no_sublayer(x, norm, sublayer):
    return norm(x) + x


def minus(x, norm, sublayer):
    return x - sublayer(norm(x))


def norm_twice(x, norm, sublayer):
    y = norm(x)
    return x + sublayer(norm(y))


def sublayer_twice(x, norm, sublayer):
    y = sublayer(norm(x))
    return x + sublayer(y)


def average(x, norm, sublayer):
    return torch.stack([x, sublayer(norm(x))]).mean(0)


def over_root_two(x, norm, sublayer):
    return (x + sublayer(norm(x))) * 0.5**0.5


def product(x, norm, sublayer):
    return torch.mul(sublayer(norm(x)), x)


def cut_stream(x, norm, sublayer):
    return x.data + sublayer(norm(x))


def cut_branch(x, norm, sublayer):
    with torch.no_grad():
        y = sublayer(norm(x))
    return x + y


def plus_equals(x, norm, sublayer):
    return x.add_(sublayer(norm(x)))


RESIDUAL_WRONG = {
    still_broken: "from the normalised x",
    torch_post_norm: "post-norm",
    normalised_again: "the sum is normalised too",
    norm_on_the_stream: "norm falls on the stream",
    forgets_norm: "norm is left out",
    forgets_x: "x is not added",
    norm_of_answer: "norm is applied to the sublayer's output",
    sandwich: "norm is applied to the sublayer's output",
    sum_inside: "x is added before the sublayer",
    x_twice: "x is added twice",
    adds_norm_too: "the normalised x is added as well",
    no_sublayer: "the sublayer is left out",
    minus: "subtracted",
    norm_twice: "norm is applied twice",
    sublayer_twice: "the sublayer is applied twice",
    average: "halved",
    over_root_two: "halved",
    product: "multiplied",
    cut_stream: "part of the gradient",
    cut_branch: "part of the gradient",
    plus_equals: "changed in place",
}


def step_by_step(x, norm, sublayer):
    residual = x
    x = norm(x)
    x = sublayer(x)
    return residual + x


def step_on_a_copy(x, norm, sublayer):
    y = x.clone()
    y += sublayer(norm(x))
    return y


def step_into_new(x, norm, sublayer):
    h = sublayer(norm(x))
    h += x
    return h


RESIDUAL_RIGHT = [
    step_by_step,
    step_on_a_copy,
    step_into_new,
    lambda x, norm, sublayer: torch.add(sublayer(norm(x)), x),
    lambda stream, norm, layer: sum([layer(norm(stream)), stream]),
    lambda x, norm, sublayer: torch.stack([x, sublayer(norm(x))]).sum(0),
    lambda x, norm, sublayer: (x.double() + sublayer(norm(x)).double()).to(x.dtype),
]

RESIDUAL_STUBS = [
    lambda x, norm, sublayer: None,
    lambda x, norm, sublayer: x,
    lambda x, norm, sublayer: x.clone(),
    lambda x, norm, sublayer: torch.zeros_like(x),
    lambda x, norm, sublayer: torch.ones_like(x),
    lambda x, norm, sublayer: torch.randn_like(x),
    lambda x, norm, sublayer: sublayer(x),
    lambda x, norm, sublayer: (x + sublayer(norm(x))).double(),
    lambda x, norm, sublayer: (x + sublayer(norm(x))).tolist(),
    lambda x, norm, sublayer: torch.cat([x, sublayer(norm(x))], -1),
    lambda x, norm, sublayer: F.dropout(x + sublayer(norm(x)), 0.1),
    lambda x, norm, sublayer: x + sublayer(F.layer_norm(x, x.shape[-1:])),
    lambda x: x,
]


# TransformerBlock: wrong answers.


class Parts(nn.Module):
    """What most of the blocks below begin with; each writes its own forward."""

    def __init__(self, config):
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_eps)
        self.attention = l1_ref.MultiHeadAttention(config)
        self.norm_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_eps)
        self.feed_forward = l1_ref.FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)


class PostNorm(Parts):
    def forward(self, x):
        x = self.norm_1(x + self.attention(x))
        return self.norm_2(x + self.feed_forward(x))


class PostNormFirst(Parts):
    def forward(self, x):
        x = self.norm_1(x + self.attention(x))
        return x + self.feed_forward(self.norm_2(x))


class PostNormSecond(Parts):
    def forward(self, x):
        x = x + self.attention(self.norm_1(x))
        return self.norm_2(x + self.feed_forward(x))


class Overwrites(Parts):
    def forward(self, x):
        x = self.norm_1(x)
        x = x + self.attention(x)
        x = self.norm_2(x)
        return x + self.feed_forward(x)


class OverwritesFirst(Parts):
    def forward(self, x):
        x = self.norm_1(x)
        x = x + self.attention(x)
        return x + self.feed_forward(self.norm_2(x))


class OverwritesSecond(Parts):
    def forward(self, x):
        y = x + self.attention(self.norm_1(x))
        y = self.norm_2(y)
        y = y + self.feed_forward(y)
        return y


class ReplacesWithAttention(Parts):
    def forward(self, x):
        x = self.attention(self.norm_1(x))
        return self.feed_forward(self.norm_2(x)).add(x)


class ReplacesWithFeedForward(Parts):
    def forward(self, x):
        return self.feed_forward(self.norm_2(x + self.attention(self.norm_1(x))))


class NoFirstNorm(Parts):
    def forward(self, x):
        x = x + self.attention(x)
        return x + self.feed_forward(self.norm_2(x))


class NormForFeedForwardOnly(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attention, self.feed_forward = l1_ref.MultiHeadAttention(config), l1_ref.FeedForward(config)
        self.norm_2 = nn.LayerNorm(config.n_embd, config.layer_norm_eps)

    def forward(self, x):
        x = x + self.attention(x)
        return x + self.feed_forward(self.norm_2(x))


class NoSecondNorm(Parts):
    def forward(self, x):
        x = x + self.attention(self.norm_1(x))
        return x + self.feed_forward(x)


class SameNorm(Parts):
    def forward(self, x):
        for part in (self.attention, self.feed_forward):
            x = x + part(self.norm_1(x))
        return x


class SharedNorm(Parts):
    def __init__(self, config):
        super().__init__(config)
        self.norm_1 = self.norm_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_eps)

    def forward(self, x):
        x = x + self.attention(self.norm_1(x))
        return x + self.feed_forward(self.norm_2(x))


class OnlyNorm(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.n_embd, config.layer_norm_eps)
        self.attention, self.feed_forward = l1_ref.MultiHeadAttention(config), l1_ref.FeedForward(config)

    def forward(self, x):
        x = x + self.attention(self.norm_1(x))
        return x + self.feed_forward(self.norm_1(x))


class SecondNormTwice(Parts):
    def forward(self, x):
        x = x + self.attention(self.norm_2(x))
        return x + self.feed_forward(self.norm_2(x))


class NormsSwapped(Parts):
    def forward(self, x):
        x = x + self.attention(self.norm_2(x))
        return x + self.feed_forward(self.norm_1(x))


class BareNorms(Parts):
    def __init__(self, config):
        super().__init__(config)
        for name in ("norm_1", "norm_2"):
            setattr(self, name, nn.LayerNorm(config.n_embd, elementwise_affine=False))

    def forward(self, x):
        x = x + self.attention(self.norm_1(x))
        return x + self.feed_forward(self.norm_2(x))


class SideBySide(Parts):
    def forward(self, x):
        gathered, worked = self.attention(self.norm_1(x)), self.feed_forward(self.norm_2(x))
        return x + gathered + worked


class FromTheStart(Parts):
    def forward(self, x):
        residual = x
        x = residual + self.attention(self.norm_1(x))
        return residual + self.feed_forward(self.norm_2(x))


class FromTheAnswer(Parts):
    def forward(self, x):
        gathered = self.attention(self.norm_1(x))
        return x + gathered + self.feed_forward(self.norm_2(gathered))


class OneResidual(Parts):
    def forward(self, x):
        return x + self.feed_forward(self.norm_2(self.attention(self.norm_1(x))))


class WorksFirst(Parts):
    def forward(self, x):
        x = x + self.feed_forward(self.norm_1(x))
        return x + self.attention(self.norm_2(x))


class WorksFirstOwnNorms(Parts):
    def forward(self, x):
        x = x + self.feed_forward(self.norm_2(x))
        return x + self.attention(self.norm_1(x))


class NormsAnswers(Parts):
    def forward(self, x):
        x = x + self.norm_1(self.attention(x))
        return x + self.norm_2(self.feed_forward(x))


class NormsSumsToo(Parts):
    def forward(self, x):
        x = self.norm_1(x + self.attention(self.norm_1(x)))
        return self.norm_2(x + self.feed_forward(self.norm_2(x)))


class NormsOutput(Parts):
    def forward(self, x):
        x = x + self.attention(self.norm_1(x))
        x = x + self.feed_forward(self.norm_2(x))
        return F.layer_norm(x, (x.shape[-1],))


class AddsTwice(Parts):
    def forward(self, x):
        x = x + x + self.attention(self.norm_1(x))
        return x + self.feed_forward(self.norm_2(x))


class TorchsEps(Parts):
    def __init__(self, config):
        super().__init__(config)
        self.norm_1, self.norm_2 = nn.LayerNorm(config.n_embd), nn.LayerNorm(config.n_embd)

    def forward(self, x):
        x = x + self.attention(self.norm_1(x))
        return x + self.feed_forward(self.norm_2(x))


class SeesAll(nn.Module):
    """Attention by hand, without a mask."""

    def __init__(self, config):
        super().__init__()
        self.qkv, self.proj = nn.Linear(config.n_embd, 3 * config.n_embd), nn.Linear(config.n_embd, config.n_embd)
        self.H, self.p = config.n_heads, config.dropout

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (self.H, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        p = self.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=False)
        return F.dropout(self.proj(y.transpose(1, 2).flatten(2)), p)


class NotCausal(TorchsEps):
    def __init__(self, config):
        Parts.__init__(self, config)
        self.attention = SeesAll(config)


class DropsAlways(Parts):
    def forward(self, x):
        x = x + F.dropout(self.attention(self.norm_1(x)), self.dropout.p)
        return x + F.dropout(self.feed_forward(self.norm_2(x)), self.dropout.p)


class DropsAgain(Parts):
    def forward(self, x):
        x = x + self.dropout(self.attention(self.norm_1(x)))
        return x + self.dropout(self.feed_forward(self.norm_2(x)))


class DropsFeedForwardAgain(Parts):
    def forward(self, x):
        x = x + self.attention(self.norm_1(x))
        return x + self.dropout(self.feed_forward(self.norm_2(x)))


class DropsAttentionAgain(Parts):
    def forward(self, x):
        x = x + self.dropout(self.attention(self.norm_1(x)))
        return x + self.feed_forward(self.norm_2(x))


class DropsStream(Parts):
    def forward(self, x):
        x = x + self.attention(self.norm_1(x))
        return self.dropout(x + self.feed_forward(self.norm_2(x)))


class PlusEquals(Parts):
    def forward(self, x):
        x += self.attention(self.norm_1(x))
        x += self.feed_forward(self.norm_2(x))
        return x


BLOCK_WRONG = {
    PostNorm: "post-norm",
    PostNormFirst: "post-norm in one of the halves",
    PostNormSecond: "post-norm in one of the halves",
    Overwrites: "normalised x, in both halves",
    OverwritesFirst: "normalised x, in the attention half",
    OverwritesSecond: "normalised x, in the feed-forward half",
    ReplacesWithAttention: "attention's answer is not added",
    ReplacesWithFeedForward: "feed-forward layer's answer is not added",
    NoFirstNorm: "without norm_1",
    NormForFeedForwardOnly: "without norm_1",
    NoSecondNorm: "without norm_2",
    SameNorm: "norm_1 is used in both halves",
    SharedNorm: "norm_1 is used in both halves",
    OnlyNorm: "norm_1 is used in both halves",
    SecondNormTwice: "norm_2 is used in both halves",
    NormsSwapped: "norm_1 and norm_2 are swapped",
    BareNorms: "the norms have no weight and bias",
    SideBySide: "both halves read the x that came in",
    FromTheStart: "the second sum starts again",
    FromTheAnswer: "attention's answer alone",
    OneResidual: "attention's answer alone",
    WorksFirst: "comes before attention",
    WorksFirstOwnNorms: "comes before attention",
    NormsAnswers: "applied to the answers",
    NormsSumsToo: "the sums are normalised too",
    NormsOutput: "the block's output is normalised",
    AddsTwice: "x is added twice",
    TorchsEps: "layer_norm_eps is ignored",
    NotCausal: "attention sees later positions",
    DropsAlways: "active in eval mode",
    DropsAgain: "the block adds dropout",
    DropsFeedForwardAgain: "the block adds dropout",
    DropsAttentionAgain: "the block adds dropout",
    DropsStream: "the block adds dropout",
    PlusEquals: "changed in place",
}


# TransformerBlock: right answers.


class PlainBlock(Parts):
    def forward(self, x):
        x = x + self.attention(self.norm_1(x))
        return x + self.feed_forward(self.norm_2(x))


class OwnNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width)), eps

    def forward(self, x):
        return by_hand(x, self.weight, self.bias, self.eps)


class OwnAttention(SeesAll):
    """Explicit, causal, with its mask in a buffer."""

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("mask", torch.ones(8, 8).triu(1).bool())
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.H, C // self.H).permute(2, 0, 3, 1, 4)
        scores = q @ k.mT / math.sqrt(C // self.H)
        weights = scores.masked_fill(self.mask[:T, :T], -math.inf).softmax(-1)
        return self.drop(self.proj((self.drop(weights) @ v).transpose(1, 2).reshape(B, T, C)))


class FromOwnParts(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.feed_forward = ByHand(config)
        self.attention = OwnAttention(config)
        self.norm_1, self.norm_2 = (OwnNorm(config.n_embd, config.layer_norm_eps) for _ in range(2))

    def forward(self, x):
        h = x + self.attention(self.norm_1(x))
        return h + self.feed_forward(self.norm_2(h))


class InSteps(Parts):
    def forward(self, x):
        x = step_by_step(x, self.norm_1, self.attention)
        return step_into_new(x, self.norm_2, self.feed_forward)


class InALoop(Parts):
    def forward(self, x):
        for norm, part in ((self.norm_1, self.attention), (self.norm_2, self.feed_forward)):
            x = torch.add(x, part(norm(x)))
        return x


class OneSum(Parts):
    def forward(self, x):
        gathered = self.attention(self.norm_1(x))
        return x + gathered + self.feed_forward(self.norm_2(x + gathered))


class WithCache(Parts):
    def forward(self, x, cache=None):
        x = x + self.attention(self.norm_1(x), cache)
        return x + self.feed_forward(self.norm_2(x))


class FunctionalNorms(Parts):
    def __init__(self, config):
        super().__init__(config)
        self.config = config

    def normalise(self, x, norm):
        return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, self.config.layer_norm_eps)

    def forward(self, x):
        y = self.attention(self.normalise(x, self.norm_1)) + x
        return self.feed_forward(self.normalise(y, self.norm_2)) + y


class SecondHalfInPlace(Parts):
    """The sum of the first half is the block's own tensor, so adding to it is allowed."""

    def forward(self, x):
        x = x + self.attention(self.norm_1(x))
        worked = self.feed_forward(self.norm_2(x))
        worked += x
        return worked


BLOCK_RIGHT = [PlainBlock, FromOwnParts, InSteps, InALoop, OneSum, WithCache, FunctionalNorms, SecondHalfInPlace]


class IdentityBlock(Parts):
    def forward(self, x):
        return x


class NothingBlock(Parts):
    def forward(self, x):
        self.attention(x)


class ZerosBlock(Parts):
    def forward(self, x):
        return torch.zeros_like(x)


class NoiseBlock(Parts):
    def forward(self, x):
        return x + torch.randn_like(x)


class GPT2Names(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1, self.ln_2 = (nn.LayerNorm(config.n_embd, config.layer_norm_eps) for _ in range(2))
        self.attn, self.mlp = l1_ref.MultiHeadAttention(config), l1_ref.FeedForward(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class OnlyAttention(Parts):
    def forward(self, x):
        return x + self.attention(self.norm_1(x))


class OnlyFeedForward(Parts):
    def forward(self, x):
        return x + self.feed_forward(self.norm_2(x))


class DoubleBlock(PlainBlock):
    def forward(self, x):
        return super().forward(x).double()


class FirstRowOnly(PlainBlock):
    def forward(self, x):
        return super().forward(x)[:1].expand_as(x)


class DetachedBlock(PlainBlock):
    def forward(self, x):
        return super().forward(x.detach())


class FailsInTraining(PlainBlock):
    def forward(self, x):
        if self.training:
            raise RuntimeError("not in training")
        return super().forward(x)


class RMSBlock(PlainBlock):
    def __init__(self, config):
        super().__init__(config)
        self.norm_1, self.norm_2 = (nn.RMSNorm(config.n_embd, config.layer_norm_eps) for _ in range(2))


BLOCK_STUBS = [
    IdentityBlock,
    NothingBlock,
    ZerosBlock,
    NoiseBlock,
    GPT2Names,
    OnlyAttention,
    OnlyFeedForward,
    DoubleBlock,
    FirstRowOnly,
    DetachedBlock,
    FailsInTraining,
    RMSBlock,
    nn.Identity,
    lambda config: nn.TransformerEncoderLayer(config.n_embd, config.n_heads, batch_first=True, norm_first=True),
    lambda config: None,
]


WRONG = {
    "layer_norm": LAYER_NORM_WRONG,
    "gelu": GELU_WRONG,
    "FeedForward": FEED_FORWARD_WRONG,
    "residual_step": RESIDUAL_WRONG,
    "TransformerBlock": BLOCK_WRONG,
}
RIGHT = {
    "layer_norm": LAYER_NORM_RIGHT,
    "gelu": GELU_RIGHT,
    "FeedForward": FEED_FORWARD_RIGHT,
    "residual_step": RESIDUAL_RIGHT,
    "TransformerBlock": BLOCK_RIGHT,
}
STUBS = {
    "layer_norm": LAYER_NORM_STUBS,
    "gelu": GELU_STUBS,
    "FeedForward": FEED_FORWARD_STUBS,
    "residual_step": RESIDUAL_STUBS,
    "TransformerBlock": BLOCK_STUBS,
}


def seeds_of(exercise):
    """Modules take longer, most of all their dropout: fewer seeds."""
    return SEEDS[:2] if exercise.init else SEEDS[:4]


@pytest.mark.parametrize(("exercise", "candidate", "words"), cases(WRONG))
def test_every_mistake_is_named_first(exercise, candidate, words):
    assert_named_first(exercise, candidate, words, seeds_of(exercise))


@pytest.mark.parametrize(("exercise", "candidate"), cases(RIGHT))
def test_every_right_style_is_accepted(exercise, candidate):
    assert_accepted(exercise, candidate, seeds_of(exercise))


@pytest.mark.parametrize(("exercise", "candidate"), cases(STUBS))
def test_nothing_else_passes(exercise, candidate):
    assert_rejected(exercise, candidate)


@pytest.mark.parametrize("name", WRONG)
def test_every_mistake_of_the_catalogue_is_told(name):
    assert_all_told(checks.exercise(name), WRONG[name])


@pytest.mark.parametrize("name", WRONG)
def test_the_number_of_threads_changes_nothing(name):
    assert_same_on_two_threads(checks.exercise(name), RIGHT[name], WRONG[name])


@pytest.mark.parametrize("name", WRONG)
def test_the_reference_is_recognised(name):
    assert checks.exercise(name).diagnose(checks.give(name)).state == "given"


# Two mistakes at once.


class PostNormWithTorchsEps(TorchsEps):
    def forward(self, x):
        x = self.norm_1(x + self.attention(x))
        return self.norm_2(x + self.feed_forward(x))


class NoNormAtAll(Parts):
    def forward(self, x):
        x = x + self.attention(x)
        return x + self.feed_forward(x)


class ErfAndNoDropout(Layers):
    def forward(self, x):
        return self.proj(F.gelu(self.fc(x)))


@pytest.mark.parametrize(
    ("name", "candidate", "both"),
    [
        ("layer_norm", annotated, ("divided by C - 1", "eps stands outside the root")),
        ("FeedForward", ErfAndNoDropout, ("with erf", "dropout is missing")),
        ("TransformerBlock", PostNormWithTorchsEps, ("post-norm", "layer_norm_eps is ignored")),
        ("TransformerBlock", NoNormAtAll, ("without norm_1", "without norm_2")),
    ],
)
def test_two_mistakes_are_both_named(name, candidate, both):
    for seed in range(5):
        verdict = checks.exercise(name).diagnose(candidate, seed)
        assert len(verdict.mistakes) == 2, verdict.text
        assert all(words in mistake for words, mistake in zip(both, verdict.mistakes, strict=True)), verdict.text


# What a message says.


@pytest.mark.parametrize(
    ("name", "candidate", "words"),
    [
        ("FeedForward", OtherNames, "missing: fc.bias, fc.weight, proj.bias, proj.weight; not expected: net.0.bias"),
        ("TransformerBlock", GPT2Names, "missing: attention.proj.bias, attention.proj.weight"),
        ("TransformerBlock", GPT2Names, "not expected: attn.proj.bias"),
        ("TransformerBlock", RMSBlock, "missing: norm_1.bias, norm_2.bias"),
        ("residual_step", still_broken, "residual_step(x=[1, 2, 6], norm=minus_mean, sublayer=ten_times)"),
        ("residual_step", lambda x, norm, sublayer: x, "residual_step(x=[1, 2, 6], norm=minus_mean"),
        ("layer_norm", torchs_var, "layer_norm(x=[1, 2, 3, 6], weight=[1, 2, 1, 0.5], bias=[0, 1, 0, -1]"),
        ("FeedForward", WidthsTurned, "mat1 and mat2 shapes cannot be multiplied"),
        ("gelu", lambda x: 0.5 * x * (1 + math.tanh(x)), "your code stopped with"),
    ],
)
def test_a_message_says_what_is_needed(name, candidate, words):
    assert words in checks.exercise(name).diagnose(candidate).text


class Unmasked(PlainBlock):
    """Leaks later positions in a way that the catalogue does not know."""

    def forward(self, x):
        return super().forward(x + 0.1 * x.mean(1, keepdim=True))


class MixesRows(PlainBlock):
    def forward(self, x):
        return super().forward(torch.lerp(x, x.mean(0, keepdim=True), 0.1))


class MixesPositions(Plain):
    def forward(self, x):
        return super().forward(x.roll(1, 1))


def gate_off(x):
    return 0.6 * by_formula(x)


@pytest.mark.parametrize(
    ("name", "candidate", "rule"),
    [
        ("TransformerBlock", Unmasked, "does not depend on later ones"),
        ("TransformerBlock", MixesRows, "every row of the batch is treated alone"),
        ("FeedForward", MixesPositions, "each position is treated alone"),
        ("gelu", gate_off, "gelu(x) - gelu(-x) is x"),
    ],
)
def test_a_broken_rule_is_told_where_no_mistake_fits(name, candidate, rule):
    texts = [checks.exercise(name).diagnose(candidate, seed).text for seed in range(3)]
    assert all("broken rule: " in text and rule in text for text in texts), texts[0]


def root_of_a_root(x, weight, bias, eps=1e-5):
    """Right values, but the root of a variance of 0 has no finite gradient."""
    d = x - x.mean(-1, keepdim=True)
    std = d.square().mean(-1, keepdim=True).sqrt()
    return d / (std**2 + eps).sqrt() * weight + bias


def test_a_gradient_that_is_not_finite_is_told():
    for seed in SEEDS:
        text = checks.layer_norm.diagnose(root_of_a_root, seed).text
        assert "a rule is broken: the gradient is finite" in text, text
