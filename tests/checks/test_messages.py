"""What a check accepts no more, and what it says where no named mistake fits."""

import math
import warnings

import pytest
import torch

from l1_ref import checks
from l1_ref.checks import marks
from l1_ref.checks.compare import difference
from l1_ref.checks.start_here import SOFTMAX, TEMPERED_SOFTMAX


def exponents_clamped(x, dim):
    e = (x - x.amax(dim, keepdim=True)).clamp(min=-20).exp()
    return e / e.sum(dim, keepdim=True)


def largest_five(x, dim):
    kept = x.topk(min(5, x.shape[dim]), dim).values.amin(dim, keepdim=True)
    return x.masked_fill(x < kept, -math.inf).softmax(dim)


def sum_with_a_little_more(x, dim):
    e = (x - x.amax(dim, keepdim=True)).exp()
    return e / (e.sum(dim, keepdim=True) + 1e-5)


@pytest.mark.parametrize(
    "candidate",
    [
        lambda x, dim: x.masked_fill(x == -math.inf, -1e4).softmax(dim),
        lambda x, dim: x.softmax(dim).clamp(1e-6, 1),
        exponents_clamped,
        largest_five,
        sum_with_a_little_more,
    ],
)
def test_a_nearly_right_softmax_is_wrong(candidate):
    assert all(SOFTMAX.diagnose(candidate, seed).state == "wrong" for seed in range(10))


@pytest.mark.parametrize("least", [0.1, 0.05])
def test_a_temperature_may_be_low(least):
    assert TEMPERED_SOFTMAX.diagnose(lambda x, t: (x / max(t, least)).softmax(-1)).state == "wrong"


def test_a_row_of_zeros_where_x_is_masked_is_a_rule():
    assert "a rule is broken: the result is exactly 0 where x is -inf" in SOFTMAX.diagnose(exponents_clamped).text


def test_a_cut_gradient_is_told_without_torchs_warning():
    def cut(x, dim):
        e = (x - x.amax(dim, keepdim=True)).exp()
        float(e.flatten()[0])
        return (e / e.sum(dim, keepdim=True) if x.ndim < 3 else torch.softmax(x, dim)).detach() + 0 * (x.ndim > 3)

    def partly(x, dim):
        return torch.softmax(x if x.ndim > 1 else x.detach(), dim)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SOFTMAX.diagnose(cut).mistakes == ("no gradient gets through",)
    text = SOFTMAX.diagnose(partly).text
    assert "no gradient reaches x: math functions" in text and "return missing" not in text


def test_an_overwritten_value_is_told():
    def overwritten(x, dim):
        e = (x - x.amax(dim, keepdim=True)).exp()
        e /= e.sum(dim, keepdim=True)
        return e

    text = SOFTMAX.diagnose(overwritten).text
    assert "an in-place operation (-=, /=, *=) overwrote" in text and "modified by" not in text


def test_no_rule_is_called_broken_after_a_wrong_type():
    assert "broken rule" not in SOFTMAX.diagnose(lambda x, dim: x.softmax(dim).tolist()).text
    assert "broken rule" not in SOFTMAX.diagnose(lambda x, dim: x.softmax(dim).sum(dim)).text


def test_chance_is_told():
    text = SOFTMAX.diagnose(lambda x, dim: x.softmax(dim) + 1e-3 * torch.rand_like(x)).text
    assert "two calls on the same input differ" in text and "precision" not in text


def test_as_many_digits_are_shown_as_tell_two_numbers_apart():
    found = difference(torch.tensor([0.50001]), torch.tensor([0.50003]))
    assert (found.expected, found.got) == ("0.50001", "0.50003")
    assert difference(1.00001, 1.00002).expected != difference(1.00001, 1.00002).got


def test_the_slice_along_dim_is_shown_with_its_index():
    want = torch.zeros(2, 3, 4)
    got = want.clone()
    got[1, 2, 3] = 5
    found = difference(want, got, "B V T", dim=1)
    assert (found.where, found.expected, found.got) == ("[1, :, 3]", "0 0 0", "0 0 5")
    assert difference(torch.zeros(3), torch.ones(3)).where == ""
    assert " at [:, " in SOFTMAX.diagnose(lambda x, dim: x.softmax(-1)).text


def test_a_function_stands_for_its_name(capsys):
    def softmax(x, dim):
        return x

    checks.hint(softmax, n=1)
    assert "hint 1 of 3 · softmax" in capsys.readouterr().out
    assert checks.give(softmax) is SOFTMAX.reference


def test_a_folder_that_is_no_workspace_is_told(tmp_path, capsys):
    checks.progress(tmp_path)
    assert capsys.readouterr().out == f"{tmp_path} is no workspace; l1 learn {tmp_path} makes one\n"
    (tmp_path / marks.MARKER).write_text("")
    checks.progress(tmp_path)
    assert f"of {len(checks.EXERCISES)} solved" in capsys.readouterr().out
