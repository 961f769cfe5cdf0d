"""The checks of 00_start_here: mistakes in other words than the catalogue's, right answers in many styles, stubs."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from l1_ref import checks
from l1_ref.checks.start_here import SOFTMAX, TEMPERED_SOFTMAX, tempered_softmax

SEEDS = range(20)


# Wrong answers, as learners write them.


def no_maximum(x, dim):
    powers = math.e**x
    total = torch.sum(powers, dim=dim).unsqueeze(dim)
    return powers / total


def maximum_of_everything(x, dim):
    z = x - torch.max(x).item()
    return torch.div(z.exp(), z.exp().sum(dim=dim, keepdim=True))


def mean_subtracted(x, dim):
    z = torch.exp(x - torch.mean(x, dim).unsqueeze(dim))
    return z / z.sum(dim).unsqueeze(dim)


def minimum_subtracted(x, dim):
    z = (x - x.min(dim, keepdim=True)[0]).exp()
    return z / z.sum(dim, keepdim=True)


def always_last(x, dim=-1):
    return nn.Softmax(dim=-1)(x)


def last_without_maximum(x, dim):
    return x.exp() / x.exp().sum(-1, keepdim=True)


def always_first(x, dim):
    z = (x - x.max(0).values).exp()
    return z / z.sum(0)


def always_axis_one(x, dim):
    return F.softmax(x, dim=1)


def absolute_dim(x, dim):
    dim = -dim if dim < 0 else dim
    return torch.logsumexp(x, dim, keepdim=True).neg().add(x).exp()


def sum_of_everything(x, dim):
    exps = []
    top = x.max(dim, keepdim=True).values
    exps = (x - top).exp()
    return exps / torch.sum(exps)


def softmax_of_flat(x, dim):
    return torch.softmax(x.reshape(-1), dim=0).reshape(x.shape)


def sum_without_keepdim(x, dim):
    e = torch.exp(x - torch.max(x, dim, keepdim=True)[0])
    return e / torch.sum(e, dim=dim)


def naive_sum_without_keepdim(x, dim):
    return torch.exp(x) / torch.exp(x).sum(dim)


def maximum_without_keepdim(x, dim):
    e = torch.exp(x - torch.max(x, dim).values)
    return e / e.sum(dim).unsqueeze(dim)


def no_keepdim_at_all(x, dim):
    e = torch.exp(x - torch.max(x, dim)[0])
    return e / torch.sum(e, dim)


def not_moved_back(x, dim):
    y = torch.moveaxis(x, dim, x.ndim - 1)
    return F.softmax(y, dim=-1)


def no_exp(x, dim):
    return F.normalize(x, p=1, dim=dim) * 0 + x / torch.sum(x, dim, keepdim=True)


def no_exp_after_shift(x, dim):
    z = x - x.max(dim, keepdim=True)[0]
    return z.div(z.sum(dim, keepdim=True))


def sum_of_scores(x, dim):
    return torch.exp(x).div(torch.sum(x, dim=dim, keepdim=True))


def squared(x, dim):
    return x * x / (x * x).sum(dim, keepdim=True)


def negative(x, dim):
    return F.softmin(x, dim=dim)


def base_two(x, dim):
    p = 2 ** (x - x.amax(dim, keepdim=True))
    return p / p.sum(dim, keepdim=True)


def logarithm(x, dim):
    return x - x.logsumexp(dim, keepdim=True)


def logarithm_of_softmax(x, dim):
    return F.log_softmax(x, dim)


def not_divided(x, dim):
    return torch.exp(x - torch.max(x, dim, keepdim=True).values)


def divided_by_maximum(x, dim):
    e = torch.exp(x - x.amax(dim, keepdim=True))
    return e / torch.max(e, dim, keepdim=True).values


def only_exp(x, dim):
    return torch.exp(x)


def divided_by_mean(x, dim):
    return F.softmax(x, dim) * x.shape[dim]


def divided_by_norm(x, dim):
    return F.normalize(torch.exp(x - x.amax(dim, keepdim=True)), p=2.0, dim=dim)


def sigmoid(x, dim):
    return 1 / (1 + torch.exp(-x))


def twice(x, dim):
    layer = nn.Softmax(dim)
    return nn.Sequential(layer, layer)(x)


def argmax(x, dim):
    return (x == x.amax(dim, keepdim=True)).to(x.dtype)


def in_place(x, dim):
    x.sub_(x.max(dim, keepdim=True).values)
    x.exp_()
    x.div_(x.sum(dim, keepdim=True))
    return x


def in_place_exp(x, dim):
    x -= x.amax(dim, keepdim=True)
    e = torch.exp(x)
    return e / e.sum(dim, keepdim=True)


def detached(x, dim):
    with torch.no_grad():
        e = (x - x.amax(dim, keepdim=True)).exp()
        return e / e.sum(dim, keepdim=True)


def through_numpy(x, dim):
    a = x.detach().numpy().astype("float64")
    e = torch.from_numpy(a).sub(torch.from_numpy(a).amax(dim, keepdim=True)).exp()
    return (e / e.sum(dim, keepdim=True)).to(x.dtype)


def subtracted_after_exp(x, dim):
    e = torch.exp(x)
    e = e - torch.max(e, dim, keepdim=True)[0]
    return e / torch.sum(e, dim, keepdim=True)


def in_bfloat16(x, dim):
    return F.softmax(x.bfloat16(), dim=dim).to(x.dtype)


def rounded(x, dim):
    return torch.round(torch.softmax(x, dim) * 100) / 100


def absolute(x, dim):
    return F.normalize(x.abs(), p=1, dim=dim)


def rectified(x, dim):
    return x.clamp(min=0) / x.clamp(min=0).sum(dim, keepdim=True)


def padded_sum(x, dim):
    e = torch.exp(x - x.amax(dim, keepdim=True))
    return e / (e.sum(dim, keepdim=True) + 1e-3)


SOFTMAX_WRONG = {
    no_maximum: "the largest score is not subtracted",
    maximum_of_everything: "of the whole tensor is subtracted",
    mean_subtracted: "another number than the largest",
    minimum_subtracted: "another number than the largest",
    always_last: "always goes along the last axis",
    last_without_maximum: "always goes along the last axis",
    always_first: "always goes along the first axis",
    always_axis_one: "always goes along axis 1",
    absolute_dim: "a negative dim is counted from the front",
    sum_of_everything: "the sum runs over the whole tensor",
    softmax_of_flat: "the sum runs over the whole tensor",
    sum_without_keepdim: "keepdim is missing in the sum",
    naive_sum_without_keepdim: "keepdim is missing in the sum",
    maximum_without_keepdim: "keepdim is missing in the maximum",
    no_keepdim_at_all: "keepdim is missing in the maximum and in the sum",
    not_moved_back: "not moved back",
    no_exp: "exp is left out",
    no_exp_after_shift: "exp is left out",
    absolute: "the absolute values stand",
    rectified: "relu stands",
    sum_of_scores: "divided by the sum of the scores",
    squared: "squares stand where",
    negative: "the sign is turned",
    base_two: "the base is 2",
    logarithm: "the logarithm of the answer",
    logarithm_of_softmax: "the logarithm of the answer",
    not_divided: "not divided by their sum",
    divided_by_maximum: "not divided by their sum",
    only_exp: "not divided by their sum",
    divided_by_mean: "divided by their mean",
    divided_by_norm: "divided by their length",
    sigmoid: "it is a sigmoid",
    twice: "softmax is applied twice",
    argmax: "all goes to the largest score",
    in_place: "changed in place",
    in_place_exp: "changed in place",
    detached: "no gradient gets through",
    through_numpy: "no gradient gets through",
    subtracted_after_exp: "subtracted after exp",
    padded_sum: "a small number is added to the sum",
    in_bfloat16: "precision is lost",
    rounded: "precision is lost",
}


@pytest.mark.parametrize("candidate", SOFTMAX_WRONG, ids=lambda f: f.__name__)
def test_a_mistake_is_rejected_and_named_first(candidate):
    for seed in SEEDS[len(candidate.__name__) % 5 :: 5]:  # four of the twenty, others for others
        verdict = SOFTMAX.diagnose(candidate, seed)
        assert verdict.state == "wrong"
        assert verdict.mistakes and SOFTMAX_WRONG[candidate] in verdict.mistakes[0], f"seed {seed}: {verdict.text}"


def test_every_mistake_of_the_catalogue_has_a_wrong_answer_here():
    told = [m.name for m in SOFTMAX.mistakes if any(words in m.name for words in SOFTMAX_WRONG.values())]
    assert len(SOFTMAX.mistakes) >= 20
    assert [m.name for m in SOFTMAX.mistakes] == told


def test_two_mistakes_together_are_both_named():
    def negative_in_place(x, dim):
        x.neg_()
        return torch.softmax(x, dim)

    verdict = SOFTMAX.diagnose(negative_in_place)
    assert len(verdict.mistakes) == 2
    assert "sign is turned" in verdict.text and "changed in place" in verdict.text


def test_where_the_code_stops_with_an_error_no_equality_is_claimed():
    """A second mistake may hide there: without keepdim, the overflow of one without the maximum cannot be seen."""

    def neither(x, dim):
        return x.exp() / x.exp().sum(dim)

    text = " ".join(SOFTMAX.diagnose(neither).text.split())
    assert "keepdim is missing" in text and "with that one change" in text and "wherever your code gives one" in text
    text = SOFTMAX.diagnose(lambda x, dim: torch.softmax(-x, dim)).text
    assert "with that one change" in text and "wherever" not in text


# Right answers.


def by_logsumexp(x, dim):
    return torch.exp(x - torch.logsumexp(x, dim, keepdim=True))


def by_log_softmax(x, dim):
    return F.log_softmax(x, dim=dim).exp()


def in_float64(x, dim):
    z = x.double() - x.double().max(dim, keepdim=True).values
    return (z.exp() / z.exp().sum(dim, keepdim=True)).to(x.dtype)


def in_float32(x, dim):
    return F.softmax(x.float(), dim).to(x.dtype)


def by_loops(x, dim):
    def one(row):
        top = max(row.tolist())
        powers = [torch.exp(value - top) for value in row]
        return torch.stack([power / sum(powers) for power in powers])

    y = x.movedim(dim, -1)
    rows = torch.stack([one(row) for row in y.reshape(-1, y.shape[-1])])
    return rows.reshape(y.shape).movedim(-1, dim)


def by_unbinding(x, dim):
    top = x.detach().amax(dim, keepdim=True)
    powers = [(part - top.squeeze(dim)).exp() for part in x.unbind(dim)]
    total = torch.stack(powers).sum(0)
    return torch.stack([power / total for power in powers], dim=dim)


def by_einsum(x, dim):
    y = x.transpose(dim, -1)
    e = (y - y.max(-1, keepdim=True)[0]).exp()
    return torch.einsum("...v,...->...v", e, e.sum(-1).reciprocal()).transpose(dim, -1)


def on_a_copy_in_place(x, dim):
    y = torch.empty_like(x)
    y.copy_(x - x.amax(dim, keepdim=True))
    y.exp_()
    return y / y.sum(dim, keepdim=True)


def half_step(x, dim):
    """Subtract the maximum of the whole tensor first, then each row's own."""
    y = x - x.max()
    y = y - y.max(dim, keepdim=True).values
    return y.exp() / y.exp().sum(dim, keepdim=True)


RIGHT = [
    torch.softmax,
    F.softmax,
    lambda x, dim: x.softmax(dim),
    lambda x, dim: nn.Softmax(dim=dim)(x),
    lambda x, dim=-1: torch.special.softmax(x, dim),
    by_logsumexp,
    by_log_softmax,
    in_float64,
    in_float32,
    by_loops,
    by_unbinding,
    by_einsum,
    on_a_copy_in_place,
    half_step,
]


@pytest.mark.parametrize("candidate", RIGHT, ids=lambda f: f.__name__)
def test_every_right_style_is_accepted(candidate):
    for seed in SEEDS:
        verdict = SOFTMAX.diagnose(candidate, seed)
        assert verdict.state == "solved", f"seed {seed}: {verdict.text}"


STUBS = [
    lambda x, dim: None,
    lambda x, dim: x,
    lambda x, dim: x.clone(),
    lambda x, dim: torch.zeros_like(x),
    lambda x, dim: torch.ones_like(x),
    lambda x, dim: torch.full_like(x, 1 / x.shape[dim]),
    lambda x, dim: torch.randn_like(x),
    lambda x, dim: torch.rand_like(x).softmax(dim),
    lambda x, dim: x.softmax(dim).tolist(),
    lambda x, dim: x.softmax(dim).detach().numpy(),
    lambda x, dim: x.softmax(dim).to(torch.float32 if x.dtype == torch.float64 else torch.float64),
    lambda x, dim: x.softmax(dim).sum(dim),
    lambda x, dim: torch.nan_to_num(x.exp() / x.exp().sum(dim, keepdim=True)),
    lambda x, dim: x.clamp(-80, 80).softmax(dim),
    lambda x: x,
    lambda x, dim: x.no_such_thing(),
    lambda x, dim: 1 / 0,
    int,
]


@pytest.mark.parametrize("candidate", STUBS)
def test_nothing_else_passes(candidate):
    assert SOFTMAX.diagnose(candidate, 0).state == "wrong"


def test_a_blank_is_not_written_yet():
    def softmax(x, dim):
        raise NotImplementedError("not written yet")

    assert SOFTMAX.diagnose(softmax).state == "unwritten"
    with pytest.raises(checks.CheckFailed, match="softmax · not written yet"):
        checks.softmax(softmax)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_the_number_of_threads_changes_nothing(n_threads):
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        assert all(SOFTMAX.diagnose(candidate).passed for candidate in RIGHT)
        assert all(words in SOFTMAX.diagnose(candidate).mistakes[0] for candidate, words in SOFTMAX_WRONG.items())
    finally:
        torch.set_num_threads(before)


# The bug hunt.


def only_quotient(e):
    return e / e.sum(-1, keepdim=True)


HUNT_WRONG = {
    "multiplied": lambda logits, temperature: torch.softmax(temperature * logits, dim=-1),
    "has no effect": lambda logits, temperature: torch.softmax(logits + temperature, dim=-1),
    "divided, after softmax": lambda logits, temperature: F.softmax(logits, -1).div(temperature),
    "first axis": lambda logits, temperature: F.softmax(logits / temperature, dim=0),
    "squared": lambda logits, temperature: F.softmax(logits / (temperature * temperature), dim=-1),
    "root of the temperature": lambda logits, temperature: F.softmax(logits / temperature**0.5, -1),
    "changed in place": lambda logits, temperature: logits.div_(temperature).softmax(-1),
    "exp overflows": lambda logits, temperature: only_quotient((logits / temperature).exp()),
    "as an exponent": lambda logits, temperature: torch.pow(logits, temperature).softmax(-1),
}
WRONG = {"softmax": SOFTMAX_WRONG, "tempered_softmax": {answer: words for words, answer in HUNT_WRONG.items()}}


@pytest.mark.parametrize("words", HUNT_WRONG)
def test_the_bug_hunt_names_what_is_still_wrong(words):
    for seed in SEEDS[len(words) % 5 :: 5]:
        verdict = TEMPERED_SOFTMAX.diagnose(HUNT_WRONG[words], seed)
        assert verdict.mistakes and words in verdict.mistakes[0], verdict.text


def powers_of_probabilities(logits, temperature):
    p = torch.softmax(logits.double(), -1) ** (1 / temperature)
    return (p / p.sum(-1, keepdim=True)).to(logits.dtype)


@pytest.mark.parametrize(
    "candidate",
    [
        lambda logits, temperature: torch.softmax(logits / temperature, -1),
        lambda logits, temperature: F.softmax(logits * (1 / temperature), dim=logits.ndim - 1),
        lambda logits, temperature: (logits / temperature).log_softmax(-1).exp(),
        lambda logits, temperature: by_logsumexp(logits.div(temperature), -1),
        powers_of_probabilities,
    ],
)
def test_every_mended_version_is_accepted(candidate):
    for seed in SEEDS:
        verdict = TEMPERED_SOFTMAX.diagnose(candidate, seed)
        assert verdict.state == "solved", verdict.text


def test_stubs_do_not_pass_the_bug_hunt():
    for stub in (lambda a, b: None, lambda a, b: a, lambda a, b: torch.zeros_like(a), lambda a, b: torch.rand_like(a)):
        assert TEMPERED_SOFTMAX.diagnose(stub).state == "wrong"


def test_the_reference_is_recognised():
    assert SOFTMAX.diagnose(SOFTMAX.reference).state == "given"
    assert TEMPERED_SOFTMAX.diagnose(tempered_softmax).state == "given"
