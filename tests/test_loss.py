"""The loss against an explicit sum in float64."""

import math

import pytest
import torch

from l1_ref import loss as module
from l1_ref.loss import cross_entropy, linear_cross_entropy, perplexity
from l1_ref.memory import saved_bytes


def explicit(logits, targets, smoothing=0.0, ignore_index=-100):
    """Return the mean loss, target by target, in Python's own floats."""
    V = logits.shape[-1]
    losses = []
    for row, target in zip(logits.double().reshape(-1, V).tolist(), targets.flatten().tolist(), strict=True):
        if target == ignore_index:
            continue
        largest = max(row)
        log_total = largest + math.log(sum(math.exp(score - largest) for score in row))
        wanted = [smoothing / V + (1 - smoothing) * (i == target) for i in range(V)]
        losses.append(sum(w * (log_total - score) for w, score in zip(wanted, row, strict=True)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_equals_the_explicit_sum(shape, smoothing):
    logits, targets = 5 * torch.randn(*shape, 7), torch.randint(7, shape)
    loss = cross_entropy(logits, targets, smoothing)
    assert loss.shape == () and loss.dtype == torch.float32
    assert loss.item() == pytest.approx(explicit(logits, targets, smoothing), rel=1e-5)
    assert cross_entropy(logits.double(), targets, smoothing).item() == pytest.approx(
        explicit(logits, targets, smoothing), rel=1e-12
    )


@pytest.mark.parametrize("ignore_index", [-100, 0, 6])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_ignored_targets_count_neither_above_nor_below_the_line(smoothing, ignore_index):
    logits, targets = torch.randn(3, 4, 7).double().requires_grad_(), torch.randint(1, 6, (3, 4))
    targets[0, 1:] = targets[2, 2] = ignore_index
    loss = cross_entropy(logits, targets, label_smoothing=smoothing, ignore_index=ignore_index)
    assert loss.item() == pytest.approx(explicit(logits.detach(), targets, smoothing, ignore_index), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.equal(gradient.abs().sum(-1) > 0, targets != ignore_index)


def test_nothing_but_ignored_targets_gives_nan():
    assert cross_entropy(torch.randn(2, 3, 7), torch.full((2, 3), -100)).isnan()


def test_the_gradient_is_probability_minus_truth():
    logits, targets = torch.randn(2, 3, 5).double().requires_grad_(), torch.randint(5, (2, 3))
    (gradient,) = torch.autograd.grad(cross_entropy(logits, targets), logits)
    expected = (logits.softmax(-1) - torch.eye(5).double()[targets]) / 6
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_logits_are_summed_in_float32(dtype):
    # 5,000 equal scores: a running sum in bfloat16 would stop at 256, in float16 at 2,048.
    logits = torch.full((2, 5_000), 3.0, dtype=dtype, requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([0, 4_999]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log(5_000), rel=1e-6)
    loss.backward()
    assert logits.grad.dtype == dtype


def test_large_logits_stay_finite():
    logits = torch.tensor([[1e30, 0.0, -1e30], [0.0, 1e4, 1e4]])
    assert cross_entropy(logits, torch.tensor([0, 2])).item() == pytest.approx(math.log(2) / 2)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16], ids=str)
def test_targets_may_be_narrow_integers(dtype):
    logits, targets = torch.randn(2, 3, 7), torch.randint(7, (2, 3))
    assert torch.equal(cross_entropy(logits, targets.to(dtype)), cross_entropy(logits, targets))


@pytest.mark.parametrize(
    "loss, expected", [(0.0, 1.0), (math.log(50257), 50257.0), (1e4, math.inf), (math.inf, math.inf)]
)
def test_perplexity_gives_back_what_it_takes(loss, expected):
    number, tensor = perplexity(loss), perplexity(torch.tensor(loss, dtype=torch.float64))
    assert isinstance(number, float) and number == pytest.approx(expected)
    assert isinstance(tensor, torch.Tensor) and tensor.item() == pytest.approx(expected)


@pytest.mark.parametrize("smoothing", [2, 1.001, -1, -1e-9, math.nan, True])
def test_a_smoothing_that_is_no_share_is_refused(smoothing):
    rule = rf"label_smoothing must be a number in \[0, 1\], got label_smoothing={smoothing}"
    targets = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=rule):
        cross_entropy(torch.zeros(2, 3), targets, smoothing)
    with pytest.raises(ValueError, match=rule):
        linear_cross_entropy(torch.zeros(2, 4), torch.zeros(3, 4), targets, smoothing)


def test_perplexity_is_the_number_of_equal_choices():
    loss = cross_entropy(torch.zeros(4, 9, dtype=torch.float64), torch.arange(4))
    assert perplexity(loss).item() == pytest.approx(9)
    assert math.isnan(perplexity(math.nan))


@pytest.mark.parametrize("rows_a_piece", [1, 4, 100])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("ignore_index", [-100, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_linear_cross_entropy_equals_its_explicit_twin(monkeypatch, rows_a_piece, smoothing, ignore_index, dtype):
    monkeypatch.setattr(module, "PIECE", 1)
    monkeypatch.setattr(module, "MIN_ROWS", rows_a_piece)
    hidden = (5 * torch.randn(3, 5, 6, dtype=dtype)).requires_grad_()
    weight = torch.randn(7, 6, dtype=dtype, requires_grad=True)
    targets = torch.randint(7, (3, 5))
    targets[0, :4] = ignore_index
    ours = linear_cross_entropy(hidden, weight, targets, smoothing, ignore_index)
    twin = cross_entropy(hidden @ weight.t(), targets, smoothing, ignore_index)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, twin, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(
        torch.autograd.grad(3 * ours, (hidden, weight)), torch.autograd.grad(3 * twin, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(hidden, weight, targets, smoothing, ignore_index), ours)


def test_linear_cross_entropy_of_nothing_but_padding_is_nan_with_gradients_of_zero():
    hidden, weight = torch.randn(2, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, torch.full((2,), -100))
    loss.backward()
    assert loss.isnan() and not hidden.grad.any() and not weight.grad.any()


def test_linear_cross_entropy_has_one_backward_pass_and_says_so():
    hidden, weight = torch.randn(6, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    targets = torch.randint(5, (6,))
    loss = linear_cross_entropy(hidden, weight, targets)
    loss.backward(retain_graph=True)
    once = hidden.grad.clone(), weight.grad.clone()
    with pytest.raises(RuntimeError, match="linear_cross_entropy must have one backward pass a loss, got a second"):
        loss.backward()
    assert torch.equal(hidden.grad, once[0]) and torch.equal(weight.grad, once[1])
    linear_cross_entropy(hidden, weight, targets).backward()  # a loss of its own
    torch.testing.assert_close(weight.grad, 2 * once[1])


def test_linear_cross_entropy_keeps_gradients_and_no_logits():
    hidden, weight = torch.randn(64, 4, requires_grad=True), torch.randn(500, 4, requires_grad=True)
    kept = saved_bytes(torch.nn.Module(), lambda: linear_cross_entropy(hidden, weight, torch.randint(500, (64,))))
    assert kept == hidden.nbytes + weight.nbytes + 8  # both gradients, and the number of targets
