"""The checks of 07_efficiency: mistakes in other words than the catalogue's, right answers in many styles, stubs."""

import contextlib
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import l1_ref
from l1_ref import checks
from l1_ref.checks import bill
from l1_ref.checks.accumulation import ACCUMULATE_GRADIENTS, ACCUMULATED_STEP
from l1_ref.checks.bill import TRAINING_MEMORY
from l1_ref.checks.mixed import AMP_TRAIN_STEP
from l1_ref.checks.recomputing import CHECKPOINTED
from l1_ref.checks.scaling import LOSS_SCALED_STEP
from tests.check_cases import (
    assert_accepted,
    assert_all_told,
    assert_named_first,
    assert_rejected,
    assert_same_on_two_threads,
    cases,
)

EXERCISES = (ACCUMULATE_GRADIENTS, LOSS_SCALED_STEP, AMP_TRAIN_STEP, CHECKPOINTED, TRAINING_MEMORY, ACCUMULATED_STEP)


def targets(y):
    return int((y != -100).sum())


def mean_loss(model, x, y):
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def sum_loss(model, x, y):
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum")


# accumulate_gradients: wrong answers, as learners write them.


def mean_of_means(model, micro_batches):
    total = 0.0
    for x, y in micro_batches:
        loss = l1_ref.cross_entropy(model(x), y) / len(micro_batches)
        loss.backward()
        total += loss.item()
    return torch.tensor(total)


def mean_of_means_of_the_full_ones(model, micro_batches):
    full = [(x, y) for x, y in micro_batches if targets(y)]
    losses = []
    for x, y in full:
        loss = l1_ref.cross_entropy(model(x), y)
        (loss / len(full)).backward()
        losses.append(loss.detach())
    return torch.stack(losses).mean()


def no_division(model, micro_batches):
    total = 0.0
    for x, y in micro_batches:
        loss = l1_ref.cross_entropy(model(x), y)
        loss.backward()
        total = total + loss.detach()
    return total


def all_positions(model, micro_batches):
    n = sum(y.numel() for _, y in micro_batches)
    total = 0.0
    for x, y in micro_batches:
        if targets(y) == 0:
            continue
        loss = l1_ref.cross_entropy(model(x), y) * y.numel() / n
        loss.backward()
        total += loss.detach()
    return total


def rows_as_weights(model, micro_batches):
    rows = sum(x.shape[0] for x, _ in micro_batches)
    total = torch.zeros(())
    for x, y in micro_batches:
        loss = l1_ref.cross_entropy(model(x), y) * (x.shape[0] / rows)
        if loss.isnan():
            continue
        loss.backward()
        total += loss.detach()
    return total


def sums_only(model, micro_batches):
    total = 0.0
    for x, y in micro_batches:
        loss = sum_loss(model, x, y)
        loss.backward()
        total += loss.item()
    return total


def divided_twice(model, micro_batches):
    n = sum(targets(y) for _, y in micro_batches)
    total = 0.0
    for x, y in micro_batches:
        loss = sum_loss(model, x, y) / n / len(micro_batches)
        loss.backward()
        total += loss.item()
    return total


def nan_from_padding(model, micro_batches):
    n = sum(targets(y) for _, y in micro_batches)
    total = 0.0
    for x, y in micro_batches:
        loss = l1_ref.cross_entropy(model(x), y) * targets(y) / n
        loss.backward()
        total += loss.item()
    return total


def right_gradients_mean_of_means(model, micro_batches):
    n, found = sum(targets(y) for _, y in micro_batches), []
    for x, y in micro_batches:
        loss = sum_loss(model, x, y)
        (loss / n).backward()
        if targets(y):
            found.append(loss.item() / targets(y))
    return sum(found) / len(found)


def right_gradients_sum(model, micro_batches):
    n, found = sum(targets(y) for _, y in micro_batches), 0.0
    for x, y in micro_batches:
        loss = sum_loss(model, x, y)
        (loss / n).backward()
        found += loss.item()
    return found


def last_loss(model, micro_batches):
    n = sum(targets(y) for _, y in micro_batches)
    for x, y in micro_batches:
        if targets(y):
            loss = l1_ref.cross_entropy(model(x), y)
            (loss * targets(y) / n).backward()
    return loss.detach()


def unweighted_backward(model, micro_batches):
    n = sum(targets(y) for _, y in micro_batches)
    total = 0.0
    for x, y in micro_batches:
        if targets(y):
            loss = l1_ref.cross_entropy(model(x), y)
            loss.backward()
            total += loss.item() * targets(y) / n
    return total


def gradients_of_the_mean_of_means(model, micro_batches):
    full = [(x, y) for x, y in micro_batches if targets(y)]
    n, total = sum(targets(y) for _, y in full), 0.0
    for x, y in full:
        loss = l1_ref.cross_entropy(model(x), y)
        (loss / len(full)).backward()
        total += loss.item() * targets(y) / n
    return total


def clearing(model, micro_batches):
    n, total = sum(targets(y) for _, y in micro_batches), 0.0
    for x, y in micro_batches:
        if not targets(y):
            continue
        for p in model.parameters():
            p.grad = None
        loss = l1_ref.cross_entropy(model(x), y) * (targets(y) / n)
        loss.backward()
        total += loss.item()
    return total


def clearing_first(model, micro_batches):
    model.zero_grad(set_to_none=False)
    return by_sums(model, micro_batches)


def clearing_last(model, micro_batches):
    loss = by_sums(model, micro_batches)
    for p in model.parameters():
        p.grad = None
    return loss


def with_graph(model, micro_batches):
    n, total = sum(targets(y) for _, y in micro_batches), 0.0
    for x, y in micro_batches:
        loss = sum_loss(model, x, y) / n
        loss.backward()
        total = total + loss
    return total


def one_backward(model, micro_batches):
    n = sum(targets(y) for _, y in micro_batches)
    loss = torch.stack([sum_loss(model, x, y) for x, y in micro_batches]).sum() / n
    loss.backward()
    return loss.detach()


def concatenated(model, micro_batches):
    x, y = (torch.cat(parts) for parts in zip(*micro_batches, strict=True))
    loss = l1_ref.cross_entropy(model(x), y)
    loss.backward()
    return loss.detach()


def no_backward(model, micro_batches):
    n = sum(targets(y) for _, y in micro_batches)
    return sum(sum_loss(model, x, y).detach() for x, y in micro_batches if targets(y)) / n


def return_in_the_loop(model, micro_batches):
    for x, y in micro_batches:
        loss = l1_ref.cross_entropy(model(x), y)
        loss.backward()
        return loss.detach()


def eval_first(model, micro_batches):
    model.eval()
    return by_sums(model, micro_batches)


ACCUMULATE_WRONG = {
    mean_of_means: "mean of the means",
    mean_of_means_of_the_full_ones: "mean of the means",
    no_division: "never divided",
    all_positions: "padding counts",
    rows_as_weights: "by its rows",
    sums_only: "never divided by the number of all targets",
    divided_twice: "divided once more by the number of micro-batches",
    nan_from_padding: "NaN",
    right_gradients_mean_of_means: "but the loss that is returned is the mean of the means",
    right_gradients_sum: "but the loss that is returned is a sum",
    last_loss: "only the last micro-batch's loss",
    unweighted_backward: "starts from the unweighted one",
    gradients_of_the_mean_of_means: "the gradients are those of the mean of the means",
    clearing: "cleared for each micro-batch",
    clearing_first: "cleared first",
    clearing_last: "cleared at the end",
    with_graph: "keeps its graph",
    one_backward: "once, at the end",
    concatenated: "joined to one large batch",
    no_backward: "backward() is missing",
    return_in_the_loop: "only the first micro-batch",
    eval_first: "eval mode",
}


# Right answers.


def by_sums(model, micro_batches):
    n, total = sum(targets(y) for _, y in micro_batches), 0.0
    for x, y in micro_batches:
        loss = sum_loss(model, x, y) / n
        loss.backward()
        total += loss.item()
    return total


def by_mask(model, micro_batches):
    """Padding is passed over by a mask, and gradients are weighed in backward()."""
    counts = torch.tensor([targets(y) for _, y in micro_batches])
    shares = counts / counts.sum()
    losses = []
    for (x, y), share in zip(micro_batches, shares, strict=True):
        kept = y != -100
        loss = -model(x).log_softmax(-1)[kept].gather(-1, y[kept][:, None]).sum() / kept.sum().clamp(min=1)
        loss.backward(share)
        losses.append(loss.detach())
    return (torch.stack(losses) * shares).sum()


def by_division_at_the_end(model, micro_batches):
    """Sums first; what was there before is put aside, and the new gradients are divided by the count."""
    before = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    total, n = 0.0, 0
    for x, y in micro_batches:
        loss = sum_loss(model, x, y)
        loss.backward()
        total, n = total + loss.item(), n + targets(y)
    for name, p in model.named_parameters():
        p.grad /= n
        if before[name] is not None:
            p.grad += before[name]
    return torch.tensor(total / n)


def by_nan_to_num(model, micro_batches):
    shares = torch.tensor([float(targets(y)) for _, y in micro_batches])
    shares /= shares.sum()
    total = torch.zeros(())
    for i in range(len(micro_batches)):
        x, y = micro_batches[i]
        if shares[i] == 0:
            continue
        part = shares[i] * mean_loss(model, x, y)
        part.backward()
        with torch.no_grad():
            total += part
    return total


def by_the_names(model, micro_batches):
    """Gradients by autograd.grad, added by hand."""
    n = torch.cat([y.flatten() for _, y in micro_batches]).ne(-100).sum()
    total = torch.zeros((), dtype=torch.float64)
    for x, y in reversed(list(reversed(micro_batches))):
        loss = sum_loss(model, x, y) / n
        for p, g in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
            p.grad = g.clone() if p.grad is None else p.grad + g
        total += loss.detach().double()
    return total


ACCUMULATE_RIGHT = [by_sums, by_mask, by_division_at_the_end, by_nan_to_num, by_the_names]
ACCUMULATE_STUBS = [
    lambda model, micro_batches: None,
    lambda model, micro_batches: torch.tensor(0.0),
    lambda model, micro_batches: torch.rand(()),
    lambda model, micro_batches: micro_batches,
    lambda model, micro_batches: by_sums(model, micro_batches) * torch.ones(1),
    lambda model, micro_batches: str(by_sums(model, micro_batches)),
    lambda model, micro_batches: by_sums(model, [(x.flip(1), y) for x, y in micro_batches]),
    lambda model, micro_batches: by_sums(model, [(x, x) for x, y in micro_batches]),
    lambda model, micro_batches: by_sums(model, micro_batches[::-1]),
    lambda model, micro_batches: by_sums(model, [(x, y.clamp_(min=0)) for x, y in micro_batches]),
    lambda model, micro_batches: [by_sums(model, micro_batches), [p.data.zero_() for p in model.parameters()]][0],
    lambda model, micro_batches: 1 / 0,
]


# accumulated_step.


def shown_in_the_notebook(model, micro_batches, optimizer, max_norm=1.0):
    n_targets = sum((y != -100).sum() for _, y in micro_batches)
    total = 0.0
    for x, y in micro_batches:
        optimizer.zero_grad()
        loss = l1_ref.cross_entropy(model(x), y) * (y != -100).sum() / n_targets
        loss.backward()
        l1_ref.clip_grad_norm(model.parameters(), max_norm)
        total = total + loss.detach()
    optimizer.step()
    return total


def step(before=None, each=None, after=None, loss=by_sums, norm=None):
    """Return a step in pieces: what happens before, for each micro-batch, and after all of them."""

    def run(model, micro_batches, optimizer, max_norm=1.0):
        limit = norm if norm is not None else max_norm

        def do(names):
            for name in names:
                if name == "clear":
                    for p in model.parameters():
                        p.grad = None
                elif name == "clip":
                    clip_by_hand(model.parameters(), limit)
                elif name == "values":
                    nn.utils.clip_grad_value_(model.parameters(), limit)
                else:
                    optimizer.step()

        n = sum(targets(y) for _, y in micro_batches)
        total = 0.0
        do(before if before is not None else ["clear"])
        if each is None:
            total = loss(model, micro_batches)
        for x, y in micro_batches if each is not None else ():
            if targets(y):
                part = sum_loss(model, x, y) / n
                part.backward()
                total += part.item()
                do(each)
        do(after if after is not None else ["clip", "step"])
        return total

    return run


def clip_by_hand(parameters, max_norm):
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return
    norm = torch.cat([g.flatten() for g in grads]).norm()
    if norm > max_norm:
        for g in grads:
            g.mul_(max_norm / norm)


def each_clipped_apart(model, micro_batches, optimizer, max_norm=1.0):
    n, total = sum(targets(y) for _, y in micro_batches), 0.0
    sums = [torch.zeros_like(p) for p in model.parameters()]
    for x, y in micro_batches:
        optimizer.zero_grad()
        loss = sum_loss(model, x, y) / n
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        for s, p in zip(sums, model.parameters(), strict=True):
            s += p.grad
        total += loss.item()
    for s, p in zip(sums, model.parameters(), strict=True):
        p.grad = s
    optimizer.step()
    return total


def train_each(model, micro_batches, optimizer, max_norm=1.0):
    n, total = sum(targets(y) for _, y in micro_batches), 0.0
    for x, y in micro_batches:
        if targets(y):
            optimizer.zero_grad()
            loss = l1_ref.cross_entropy(model(x), y) * targets(y) / n
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
            total += loss.item()
    return total


def with_other(gradients):
    """Return the step made with another way of accumulating."""
    made = step(loss=gradients)
    made.__name__ = gradients.__name__
    return made


STEP_WRONG = {
    shown_in_the_notebook: "cleared for each micro-batch",
    step(each=["clip"], after=["step"]): "each micro-batch is clipped",
    each_clipped_apart: "each micro-batch is clipped",
    step(each=["step"], after=[]): "a step is taken for each",
    train_each: "a step is taken for each",
    step(each=["clip", "step"], after=[]): "a step is taken for each",
    step(before=[]): "not cleared before backward",
    step(after=["clear", "clip", "step"]): "cleared before the step",
    step(after=["step"]): "not clipped",
    step(after=["step", "clip"]): "not clipped",
    step(norm=1.0): "max_norm is ignored",
    step(after=["clip"]): "the step is missing",
    step(after=["values", "step"]): "each entry is clipped",
    **{
        with_other(f): words
        for f, words in ACCUMULATE_WRONG.items()
        if f.__name__ not in ("clearing", "clearing_first", "clearing_last", "no_backward", "return_in_the_loop")
        and f is not eval_first
    },
}


def with_references(model, micro_batches, optimizer, max_norm=1.0):
    optimizer.zero_grad(set_to_none=False)
    loss = l1_ref.accumulate_gradients(model, micro_batches)
    l1_ref.clip_grad_norm(model.parameters(), max_norm)
    optimizer.step()
    return loss


STEP_RIGHT = [
    with_references,
    *(with_other(f) for f in ACCUMULATE_RIGHT),
    step(after=["clip", "step", "clear"]),
    step(each=[]),
]
STEP_STUBS = [
    lambda *inputs: None,
    lambda *inputs: torch.tensor(1.0),
    lambda model, micro_batches, optimizer, max_norm=1.0: by_sums(model, micro_batches),
    lambda model, micro_batches, optimizer, max_norm=1.0: optimizer.step(),
    step(after=["clip", "step", "step"]),
    lambda *inputs: [step()(*inputs)],
]


# loss_scaled_step.


def scaled(
    clear=lambda model, optimizer: optimizer.zero_grad(),
    loss_of=mean_loss,
    backward=lambda loss, scale: (scale * loss).backward(),
    unscale=lambda grads, scale: [g.mul_(1 / scale) for g in grads],
    fine=lambda grads, loss: math.isfinite(sum(g.abs().sum().item() for g in grads)),
    bad=lambda grads, optimizer: None,
    told=lambda loss, scale, fine: loss.item(),
):
    """Return a step in pieces, each of which can be another."""

    def run(model, x, y, optimizer, scale):
        clear(model, optimizer)
        loss = loss_of(model, x, y)
        backward(loss, scale)
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        unscale(grads, scale)
        is_fine = fine(grads, loss)
        if is_fine:
            optimizer.step()
        else:
            bad(grads, optimizer)
        return told(loss, scale, is_fine)

    return run


def lr_divided(model, x, y, optimizer, scale):
    optimizer.zero_grad()
    loss = mean_loss(model, x, y)
    (scale * loss).backward()
    if all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None):
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] / scale
        optimizer.step()
    return loss.detach()


def not_stored(model, x, y, optimizer, scale):
    optimizer.zero_grad()
    loss = mean_loss(model, x, y)
    (scale * loss).backward()
    for p in model.parameters():
        if p.grad is not None:
            p.grad / scale
    if all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None):
        optimizer.step()
    return loss.detach()


def step_before_dividing(model, x, y, optimizer, scale):
    optimizer.zero_grad()
    loss = mean_loss(model, x, y)
    (scale * loss).backward()
    optimizer.step()
    for p in model.parameters():
        if p.grad is not None:
            p.grad /= scale
    return loss.detach()


def clipped(grads, loss):
    norm = torch.cat([g.flatten() for g in grads]).norm()
    for g in grads:
        g.mul_((1 / norm).clamp(max=1))
    return bool(norm.isfinite())


def step_in_the_loop(model, x, y, optimizer, scale):
    optimizer.zero_grad()
    loss = l1_ref.cross_entropy(model(x), y)
    (loss * scale).backward()
    for p in model.parameters():
        if p.grad is not None:
            p.grad /= scale
    for p in model.parameters():
        if p.grad is not None and p.grad.isfinite().all():
            optimizer.step()
    return loss.detach()


def raises(grads, optimizer):
    raise OverflowError("overflow in the gradients")


def zero_and_step(grads, optimizer):
    for g in grads:
        g.zero_()
    optimizer.step()


def repair_and_step(grads, optimizer):
    for g in grads:
        g.copy_(torch.nan_to_num(g))
    optimizer.step()


def tested_early(is_fine):
    """Look at the gradients before they are divided."""

    def run(model, x, y, optimizer, scale):
        optimizer.zero_grad()
        loss = mean_loss(model, x, y)
        (loss * scale).backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        if is_fine(grads):
            for g in grads:
                g.div_(scale)
            optimizer.step()
        return loss.detach()

    return run


def each_sum(grads, loss=None):
    return all(torch.isfinite(g.sum()) for g in grads)


def one_sum(grads, loss=None):
    return bool(torch.isfinite(sum(g.sum() for g in grads)))


SCALED_WRONG = {
    tested_early(each_sum): "sums of scaled gradients",
    tested_early(one_sum): "sums of scaled gradients",
    tested_early(lambda grads: nn.utils.get_total_norm(grads).isfinite()): "sums of scaled gradients",
    scaled(unscale=lambda grads, scale: None): "not divided by the scale again",
    not_stored: "not divided by the scale again",
    scaled(backward=lambda loss, scale: loss.backward()): "the loss is not scaled",
    scaled(backward=lambda loss, scale: loss.backward(), unscale=lambda grads, scale: None): "nothing is scaled",
    scaled(
        backward=lambda loss, scale: (loss * scale / scale).backward(), unscale=lambda *a: None
    ): "nothing is scaled",
    scaled(
        backward=lambda loss, scale: (loss / scale).backward(), unscale=lambda grads, s: [g.mul_(s) for g in grads]
    ): "wrong way round",
    scaled(unscale=lambda grads, scale: [g.mul_(scale) for g in grads]): "multiplied by the scale once more",
    scaled(unscale=lambda grads, scale: [g.div_(scale).div_(scale) for g in grads]): "divided by the scale twice",
    scaled(backward=lambda loss, scale: (loss * scale).backward(torch.tensor(scale))): "the loss is scaled twice",
    lr_divided: "the learning rate is divided",
    scaled(unscale=lambda grads, scale: grads[0].div_(scale)): "only some of the gradients are divided",
    scaled(unscale=lambda grads, scale: grads[-1].div_(scale)): "only some of the gradients are divided",
    step_before_dividing: "divided after the step",
    scaled(fine=lambda grads, loss: True): "the step is taken although",
    scaled(fine=lambda grads, loss: not (loss.isnan() or loss.isinf())): "only the loss is tested",
    scaled(fine=lambda grads, loss: not any(g.isnan().any() for g in grads)): "only NaN counts",
    scaled(fine=lambda grads, loss: not any((g != g).any() for g in grads)): "only NaN counts",
    scaled(fine=lambda grads, loss: not any(g.isinf().any() for g in grads)): "only inf counts",
    scaled(fine=lambda grads, loss: max(g.max().item() for g in grads) != math.inf): "only inf counts",
    scaled(fine=lambda grads, loss: bool(grads[0].isfinite().all())): "only some of the gradients are tested",
    scaled(fine=lambda grads, loss: math.isfinite(grads[-1].sum().item())): "only some of the gradients are tested",
    scaled(bad=zero_and_step): "the bad entries are replaced",
    scaled(bad=repair_and_step): "the bad entries are replaced",
    scaled(fine=clipped): "the gradients are clipped",
    step_in_the_loop: "inside the loop",
    scaled(bad=raises): "an overflow raises an error",
    scaled(fine=lambda grads, loss: any((~g.isfinite()).any() for g in grads)): "the condition is turned round",
    scaled(fine=lambda grads, loss: None): "the step is missing",
    scaled(told=lambda loss, scale, fine: loss.item() if fine else None): "nothing comes back when",
    scaled(told=lambda loss, scale, fine: loss.item() * scale): "the scaled loss is returned",
    scaled(told=lambda loss, scale, fine: (loss * scale).item() / scale): "scaled up and divided again",
    scaled(told=lambda loss, scale, fine: loss): "keeps its graph",
    scaled(clear=lambda model, optimizer: None): "not cleared before backward",
    scaled(unscale=lambda grads, scale: [g.zero_() for g in grads]): "cleared after backward()",
}


def by_norm(grads, loss):
    return bool(nn.utils.get_total_norm(grads).isfinite())


def new_gradients(model, x, y, optimizer, scale):
    for p in model.parameters():
        p.grad = None
    loss = -model(x).log_softmax(-1)[y != -100].gather(-1, y[y != -100][:, None]).mean()
    (loss * torch.tensor(scale)).backward()
    overflow = False
    for p in model.parameters():
        if p.grad is None:
            continue
        overflow |= bool((~torch.isfinite(p.grad)).any())
        p.grad = p.grad / scale
    if overflow:
        return loss.detach()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def returns_early(model, x, y, optimizer, scale):
    optimizer.zero_grad(set_to_none=False)
    loss = l1_ref.cross_entropy(model(x), y)
    loss.backward(gradient=torch.tensor(scale, dtype=loss.dtype))
    for _, p in model.named_parameters():
        if p.grad is not None and not torch.all(torch.isfinite(p.grad)):
            optimizer.zero_grad()
            return loss.detach().clone()
    with torch.no_grad():
        torch._foreach_div_([p.grad for p in model.parameters() if p.grad is not None], scale)
    optimizer.step()
    return loss.detach().clone()


def by_numpy(grads, loss):
    return not any(g.numpy().__abs__().max() == math.inf or (g.numpy() != g.numpy()).any() for g in grads)


SCALED_RIGHT = [
    scaled(),
    scaled(fine=by_norm),
    scaled(fine=by_numpy),
    new_gradients,
    returns_early,
    # Divided, the gradients are small: a sum of them is inf only where an entry is.
    scaled(fine=each_sum),
    scaled(fine=one_sum),
    tested_early(lambda grads: all(g.isfinite().all() for g in grads)),
]
SCALED_STUBS = [
    lambda *inputs: None,
    lambda *inputs: torch.tensor(1.5),
    lambda model, x, y, optimizer, scale: mean_loss(model, x, y).detach(),
    lambda model, x, y, optimizer, scale: l1_ref.train_step(model, x, y, optimizer),
    scaled(loss_of=lambda model, x, y: model(x).square().mean()),
    scaled(loss_of=lambda model, x, y: mean_loss(model, y.clamp(min=0), y)),
    scaled(loss_of=sum_loss),
    scaled(unscale=lambda grads, scale: [g.div_(65536) for g in grads]),
    scaled(told=lambda loss, scale, fine: [loss.item()]),
]


# amp_train_step.


def amp(
    clear=lambda model, optimizer: optimizer.zero_grad(),
    cast=lambda x, dtype: torch.autocast(device_type=x.device.type, dtype=dtype, enabled=dtype is not torch.float32),
    passes=None,
    change=lambda model, dtype: None,
    loss_of=None,
    scale=lambda loss, scaler: scaler.scale(loss),
    then=("unscale", "clip", "step", "update"),
    clip=lambda model, max_norm: l1_ref.clip_grad_norm(model.parameters(), max_norm),
    told=lambda loss, scaler: loss.item(),
):
    """Return a step in pieces, each of which can be another."""

    def run(model, x, y, optimizer, scaler, dtype, max_norm=1.0):
        clear(model, optimizer)
        change(model, dtype)
        with cast(x, dtype):
            logits = model(x)
            if passes == "all":
                loss = l1_ref.cross_entropy(logits, y)
                scale(loss, scaler).backward()
            elif loss_of is None:
                loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1))
        if loss_of is not None:
            loss = loss_of(logits, y)
        if passes != "all":
            scale(loss, scaler).backward()
        actions = {
            "unscale": lambda: scaler.unscale_(optimizer),
            "clip": lambda: clip(model, max_norm),
            "step": lambda: scaler.step(optimizer),
            "plain": lambda: optimizer.step(),
            "update": lambda: scaler.update(),
            "clear": lambda: optimizer.zero_grad(),
            "divide": lambda: [p.grad.div_(scaler.get_scale()) for p in model.parameters()],
        }
        for name in then:
            actions[name]()
        return told(loss, scaler)

    return run


def own_scaler(model, x, y, optimizer, scaler, dtype, max_norm=1.0):
    scaler = torch.amp.GradScaler(device="cpu")
    return amp()(model, x, y, optimizer, scaler, dtype, max_norm)


def in_half(logits, y):
    return F.cross_entropy(logits.flatten(0, 1), y.flatten())


def no_autocast(x, dtype):
    return contextlib.nullcontext()


def default_autocast(x, dtype):
    return torch.autocast("cpu")


def always_float16(x, dtype):
    return torch.autocast("cpu", dtype=torch.half)


def cast_with_the_scaler(model, x, y, optimizer, scaler, dtype, max_norm=1.0):
    cast = None if scaler.is_enabled() else no_autocast
    return (amp(cast=cast) if cast else amp())(model, x, y, optimizer, scaler, dtype, max_norm)


def no_scaler(model, x, y, optimizer, scaler, dtype, max_norm=1.0):
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = mean_loss(model, x, y)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return loss.detach()


def scaled_loss_returned(model, x, y, optimizer, scaler, dtype, max_norm=1.0):
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = scaler.scale(mean_loss(model, x, y))
    loss.backward()
    scaler.unscale_(optimizer)
    l1_ref.clip_grad_norm(model.parameters(), max_norm)
    scaler.step(optimizer)
    scaler.update()
    return loss.item()


AMP_WRONG = {
    amp(then=("clip", "unscale", "step", "update")): "clipped while they are still scaled",
    amp(then=("clip", "step", "update")): "clipped while they are still scaled",
    amp(then=("step", "unscale", "clip", "update")): "unscale_ comes after the step",
    amp(then=("clip", "step", "unscale", "update")): "unscale_ comes after the step",
    amp(then=("unscale", "clip", "plain", "update")): "optimizer.step() is called",
    amp(then=("clip", "plain", "update")): "before the scaler has looked",
    amp(then=("update", "unscale", "clip", "step")): "before the scaler has looked",
    amp(then=("divide", "clip", "plain", "update")): "before the scaler has looked",
    amp(then=("unscale", "clip", "update", "step")): "scaler.update() comes before the step",
    amp(then=("unscale", "clip", "step")): "scaler.update() is missing",
    amp(then=("unscale", "step", "update")): "not clipped",
    amp(then=("step", "update")): "not clipped",
    amp(then=("unscale", "step", "clip", "update")): "not clipped",
    amp(scale=lambda loss, scaler: loss): "starts from the unscaled loss",
    no_scaler: "the scaler is not used",
    own_scaler: "another scaler",
    amp(then=("unscale", "divide", "clip", "step", "update")): "once more by hand",
    amp(
        scale=lambda loss, scaler: scaler.scale(loss) * scaler.get_scale()
    ): "multiplied by the scale once more by hand",
    amp(cast=no_autocast): "there is no autocast",
    cast_with_the_scaler: "without the scaler there is no autocast",
    amp(cast=default_autocast): "always bfloat16",
    amp(cast=always_float16): "always float16",
    amp(passes="all"): "runs under autocast too",
    amp(loss_of=in_half): "computed in half precision",
    amp(change=lambda model, dtype: model.to(dtype)): "turned to half precision",
    amp(change=lambda model, dtype: model.to(dtype), cast=no_autocast): "turned to half precision",
    amp(clip=lambda model, max_norm: nn.utils.clip_grad_norm_(model.parameters(), 1.0)): "max_norm is ignored",
    amp(clip=lambda model, max_norm: nn.utils.clip_grad_value_(model.parameters(), max_norm)): "each entry is clipped",
    amp(clear=lambda model, optimizer: None): "not cleared before backward",
    amp(then=("clear", "unscale", "clip", "step", "update")): "cleared after backward()",
    scaled_loss_returned: "the scaled loss is returned",
    amp(told=lambda loss, scaler: loss): "keeps its graph",
    amp(then=("unscale", "clip", "update")): "the step is missing",
}


def clip_to_the_scaled_norm(model, x, y, optimizer, scaler, dtype, max_norm=1.0):
    """Clips before unscaling, to a norm that is scaled as well: right, if unusual."""
    optimizer.zero_grad(set_to_none=False)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        logits = model(x)
    loss = l1_ref.cross_entropy(logits, y)
    scaler.scale(loss).backward()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm * scaler.get_scale())
    scaler.step(optimizer)
    scaler.update()
    return loss.detach()


def with_references_parts(model, x, y, optimizer, scaler, dtype, max_norm=1.0):
    for p in model.parameters():
        p.grad = None
    with torch.amp.autocast("cpu", dtype=dtype, enabled=dtype in (torch.float16, torch.bfloat16)):
        logits = model(x).float()
        loss = F.cross_entropy(logits.transpose(1, 2), y)
    if scaler.is_enabled():
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
    else:
        loss.backward()
    clip_by_hand(list(model.parameters()), max_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return loss.detach()


def by_hand(model, x, y, optimizer, scaler, dtype, max_norm=1.0):
    """The loss by hand, multiplied by get_scale(), and the step left out by hand."""
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=dtype) if dtype != torch.float32 else contextlib.nullcontext():
        logits = model(x)
    logits = logits.float()
    kept = y != -100
    loss = (logits.logsumexp(-1) - logits.gather(-1, y.clamp(min=0)[..., None])[..., 0])[kept].mean()
    (loss * scaler.get_scale()).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(list(model.parameters()), max_norm)
    if all(p.grad.isfinite().all() for p in model.parameters()):
        optimizer.step()
    scaler.update()
    return loss.detach()


AMP_RIGHT = [
    amp(),
    amp(loss_of=lambda logits, y: l1_ref.cross_entropy(logits, y), told=lambda loss, scaler: loss.detach()),
    clip_to_the_scaled_norm,
    with_references_parts,
    by_hand,
]
AMP_STUBS = [
    lambda *inputs: None,
    lambda *inputs: torch.tensor(1.5),
    lambda model, x, y, optimizer, scaler, dtype, max_norm=1.0: l1_ref.train_step(model, x, y, optimizer, max_norm),
    lambda model, x, y, optimizer, scaler, dtype, max_norm=1.0: mean_loss(model, x, y).detach(),
    amp(told=lambda loss, scaler: loss.detach()[None]),
    amp(loss_of=lambda logits, y: logits.float().square().mean()),
    amp(change=lambda model, dtype: model.eval()),
    amp(then=("unscale", "clip", "step", "step", "update")),
    amp(then=("unscale", "clip", "unscale", "step", "update")),
]


# checkpointed.


class ByHand(torch.autograd.Function):
    """Runs the block again in the backward pass; what it loses depends on how."""

    @staticmethod
    def forward(ctx, block, keep, x, *parameters):
        ctx.block, ctx.keep, ctx.state = block, keep, torch.random.get_rng_state()
        ctx.save_for_backward(x)
        with torch.no_grad():
            return block(x)

    @staticmethod
    def backward(ctx, gradient):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.random.fork_rng(), torch.enable_grad():
            if ctx.keep:
                torch.random.set_rng_state(ctx.state)
            y = ctx.block(x)
        parameters = list(ctx.block.parameters())
        x_gradient, *others = torch.autograd.grad(y, [x, *parameters], gradient)
        return (None, None, x_gradient, *others)[: len(ctx.needs_input_grad)]


def by_own_function(block, x):
    return ByHand.apply(block, True, x, *block.parameters())


def without_its_parameters(block, x):
    return ByHand.apply(block, True, x)


def without_the_random_state(block, x):
    return ByHand.apply(block, False, x, *block.parameters())


def plainly(block, x):
    return block.forward(x)


def without_recording(block, x):
    with torch.set_grad_enabled(False):
        y = block(x)
    return y


def output_detached(block, x):
    return checkpoint(block, x, use_reentrant=False).data


def input_detached(block, x):
    return checkpoint(block, x.data, use_reentrant=False)


def input_made_a_leaf(block, x):
    return checkpoint(block.forward, x.detach().clone().requires_grad_(), use_reentrant=False)


def reentrant(block, x):
    return checkpoint(block, x, use_reentrant=True)


def by_default(block, x):
    return checkpoint(block, x)


def random_state_forgotten(block, x):
    return checkpoint(lambda y: block(y), x, use_reentrant=False, preserve_rng_state=False)


def saved_on_the_cpu(block, x):
    with torch.autograd.graph.save_on_cpu():
        return block(x)


def eval_first_then_checkpoint(block, x):
    return checkpoint(block.eval(), x, use_reentrant=False)


def seeded(block, x):
    torch.manual_seed(42)
    return checkpoint(block, x, use_reentrant=False)


def seeded_with_zero(block, x):
    torch.manual_seed(0)
    return checkpoint(block, x, use_reentrant=False)


def added(block, x):
    return checkpoint(block, x, use_reentrant=False).add(x)


def run_before(block, x):
    y = block(x)
    del y
    return checkpoint(block, x, use_reentrant=False)


def passed_through(block, x):
    return x + 0


CHECKPOINT_WRONG = {
    plainly: "runs as always",
    without_recording: "nothing is recorded",
    output_detached: "nothing is recorded",
    input_detached: "x is cut off",
    reentrant: "use_reentrant is True",
    by_default: "use_reentrant is True",
    without_its_parameters: "the block's parameters get no gradient",
    without_the_random_state: "drawn anew",
    random_state_forgotten: "drawn anew",
    saved_on_the_cpu: "kept in another place",
    eval_first_then_checkpoint: "eval mode",
    seeded_with_zero: "a seed is set",
    added: "x is added",
    run_before: "runs twice in the forward pass",
    passed_through: "the block is not run",
}


def in_one_line(block, x):
    return checkpoint(block, x, use_reentrant=False)


def of_the_method(block, x):
    return torch.utils.checkpoint.checkpoint(block.forward, x, use_reentrant=False, determinism_check="none")


def of_a_closure(block, x):
    return checkpoint(lambda: block(x), use_reentrant=False, preserve_rng_state=True)


def of_a_copy_of_the_view(block, x):
    B, T, C = x.shape

    def run(flat):
        return block(flat.view(B, T, C))

    return checkpoint(run, x.reshape(-1), use_reentrant=False)


CHECKPOINT_RIGHT = [in_one_line, of_the_method, of_a_closure, of_a_copy_of_the_view, by_own_function]
CHECKPOINT_STUBS = [
    lambda block, x: None,
    lambda block, x: block,
    lambda block, x: torch.zeros_like(x),
    lambda block, x: torch.randn_like(x),
    lambda block, x: (checkpoint(block, x, use_reentrant=False),),
    lambda block, x: checkpoint(block, x, use_reentrant=False).double(),
    lambda block, x: checkpoint(block, x.mul(2), use_reentrant=False),
    lambda block, x: checkpoint(block, x[:1], use_reentrant=False).expand_as(x),
    lambda block, x: torch.cat([checkpoint(block, row[None], use_reentrant=False) for row in x]),
    input_made_a_leaf,
    seeded,
]

# training_memory.


def parts(config, batch_size, dtype, checkpointing):
    """Return the right bill, by hand, with the pieces of the activations by name."""
    c, w = config, {torch.float32: 4, torch.bfloat16: 2, torch.float16: 2}[dtype]
    n = batch_size * c.max_seq_length
    T, C, F_ = c.max_seq_length, c.n_embd, c.n_inner
    block = {"norms": n * (8 * C + 16), "inputs": 3 * n * w * C, "hidden": 2 * n * w * F_}
    if c.dropout > 0:
        block |= {"qkv": 12 * n * C, "tables": 12 * batch_size * c.n_heads * T * T, "masks": 2 * n * w * C}
    else:
        block |= {"qkv": 3 * n * w * C, "heads": 4 * n * c.n_heads}
    around = {"last": n * (4 * C + 8), "entry": n * w * C, "loss": n * (4 * c.vocab_size + 8)}
    if c.dropout > 0:
        around["mask"] = 4 * n * C
    copies = {}
    if w == 2:
        copies = {"block": 2 * (4 * C * C + 2 * C * F_ + 5 * C + F_), "head": 2 * c.vocab_size * C}
    return block, around, copies


def bill_of(
    drop=(),
    change=lambda block, around, copies: None,
    parts_of=parts,
    count=lambda c: l1_ref.count_parameters(c),
    state=(4, 4, 8),
    finish=lambda bill, config: bill,
    recomputed=lambda one, config, checkpointing: one if checkpointing else 0,
    inputs=lambda config, batch_size: 4 * batch_size * config.max_seq_length * config.n_embd * config.n_layers,
    total=sum,
):
    """Return a closed form in pieces, each of which can be another; pieces of the activations can be dropped."""

    def predict(config, batch_size, dtype, checkpointing):
        block, around, copies = parts_of(config, batch_size, dtype, checkpointing)
        change(block, around, copies)
        for each in (block, around, copies):
            for name in list(each):
                if name in drop:
                    del each[name]
        one = sum(block.values()) + copies.get("block", 0)
        blocks = inputs(config, batch_size) if checkpointing else config.n_layers * one
        shrink = state(dtype) if callable(state) else state
        p, g, o = (each * count(config) for each in shrink)
        a = blocks + sum(around.values()) + copies.get("head", 0)
        r = recomputed(one, config, checkpointing)
        names = ("parameters", "gradients", "optimizer", "activations", "recomputed")
        bill = dict(zip(names, (p, g, o, a, r), strict=True))
        return finish(bill | {"total": total(bill.values())}, config)

    return predict


def width_of(dtype):
    return torch.finfo(dtype).bits // 8


def all_in_width(config, batch_size, dtype, checkpointing):
    block, around, copies = parts(config, batch_size, torch.float32, checkpointing)
    w = width_of(dtype)
    _, _, copies = parts(config, batch_size, dtype, checkpointing)
    return {k: v * w // 4 for k, v in block.items()}, {k: v * w // 4 for k, v in around.items()}, copies


def always_four(config, batch_size, dtype, checkpointing):
    block, around, _ = parts(config, batch_size, torch.float32, checkpointing)
    return block, around, parts(config, batch_size, dtype, checkpointing)[2]


def tables_always(config, batch_size, dtype, checkpointing):
    block, around, copies = parts(config, batch_size, dtype, checkpointing)
    if not config.dropout:
        block["tables"] = batch_size * config.n_heads * config.max_seq_length**2 * 4
    return block, around, copies


def with_hidden_of_four(config, batch_size, dtype, checkpointing):
    block, around, copies = parts(config, batch_size, dtype, checkpointing)
    block["hidden"] = 2 * batch_size * config.max_seq_length * width_of(dtype) * 4 * config.n_embd
    return block, around, copies


def head_again(config):
    tied = config.vocab_size * config.n_embd if config.tie_weights else 0
    return l1_ref.count_parameters(config) + tied


def shrunk(*names):
    """Count some pieces in the width of the dtype."""

    def of(config, batch_size, dtype, checkpointing):
        groups = parts(config, batch_size, dtype, checkpointing)
        for group in groups:
            group |= {name: group[name] * width_of(dtype) // 4 for name in names if name in group}
        return groups

    return of


def inputs_shrunk(config, batch_size, dtype, checkpointing):
    inputs = lambda c, B: width_of(dtype) * B * c.max_seq_length * c.n_embd * c.n_layers  # noqa: E731
    return bill_of(inputs=inputs)(config, batch_size, dtype, checkpointing)


def all_shrunk(config, batch_size, dtype, checkpointing):
    inputs = lambda c, B: width_of(dtype) * B * c.max_seq_length * c.n_embd * c.n_layers  # noqa: E731
    return bill_of(parts_of=all_in_width, inputs=inputs)(config, batch_size, dtype, checkpointing)


def no_copies_again(config, batch_size, dtype, checkpointing):
    bill = bill_of()(config, batch_size, dtype, checkpointing)
    if checkpointing:
        bill["recomputed"] = sum(parts(config, batch_size, dtype, checkpointing)[0].values())
    bill.pop("total")
    return bill | {"total": sum(bill.values())}


def bits(bill, config):
    return {part: 8 * n for part, n in bill.items()}


def times(**factors):
    """Multiply pieces of the activations."""

    def change(*groups):
        for group in groups:
            for name, factor in factors.items():
                if name in group:
                    group[name] = group[name] * factor

    return change


def numbers(config, batch_size, dtype, checkpointing):
    block, around, _copies = parts(config, batch_size, torch.float32, checkpointing)
    half = {name: n // 2 for name, n in parts(config, batch_size, dtype, checkpointing)[2].items()}
    return {k: v // 4 for k, v in block.items()}, {k: v // 4 for k, v in around.items()}, half


def numbers_counted(config, batch_size, dtype, checkpointing):
    n_inputs = lambda c, B: B * c.max_seq_length * c.n_embd * c.n_layers  # noqa: E731
    predict = bill_of(parts_of=numbers, state=(1, 1, 2), inputs=n_inputs)
    return predict(config, batch_size, dtype, checkpointing)


def no_batch(config, batch_size, dtype, checkpointing):
    return bill_of()(config, 1, dtype, checkpointing)


def no_length(config, batch_size, dtype, checkpointing):
    """Only T = 1 is counted, in the positions' place."""
    short = lambda c, B, d, k: per_token(c, B, d)  # noqa: E731
    return bill_of(parts_of=short, inputs=lambda c, B: 4 * B * c.n_embd * c.n_layers)(
        config, batch_size, dtype, checkpointing
    )


def per_token(config, batch_size, dtype):
    block, around, copies = parts(config, batch_size, dtype, False)
    T = config.max_seq_length
    return {k: v // T for k, v in block.items()}, {k: v // T for k, v in around.items()}, copies


def one_layer(config, batch_size, dtype, checkpointing):
    right = bill_of()(config, batch_size, dtype, checkpointing)
    block, around, copies = parts(config, batch_size, dtype, checkpointing)
    one = sum(block.values()) + copies.get("block", 0)
    if checkpointing:
        one = 4 * batch_size * config.max_seq_length * config.n_embd
    right["activations"] = one + sum(around.values()) + copies.get("head", 0)
    right["total"] = sum(n for part, n in right.items() if part != "total")
    return right


def checkpointing_ignored(config, batch_size, dtype, checkpointing):
    kept = bill_of()(config, batch_size, dtype, False)["activations"]
    right = bill_of()(config, batch_size, dtype, checkpointing) | {"activations": kept}
    return right | {"total": sum(n for part, n in right.items() if part != "total")}


def only_bfloat16(config, batch_size, dtype, checkpointing):
    known = dtype if dtype == torch.bfloat16 else torch.float32
    return bill_of()(config, batch_size, known, checkpointing)


BILL_WRONG = {
    bill_of(state=lambda d: (width_of(d), 4, 8)): "the parameters shrink",
    bill_of(state=lambda d: (4, width_of(d), 8)): "the gradients shrink",
    bill_of(state=lambda d: (4, 4, 2 * width_of(d))): "the optimizer's state shrinks",
    bill_of(state=lambda d: (width_of(d), width_of(d), 2 * width_of(d))): "all shrink",
    bill_of(state=(4, 4, 4)): "one mean",
    bill_of(state=(4, 4, 12)): "three numbers",
    numbers_counted: "numbers are counted",
    bill_of(finish=bits): "bits are counted",
    bill_of(finish=lambda bill, config: {k: n / 1024**2 for k, n in bill.items()}): "other units",
    bill_of(finish=lambda bill, config: {k: n / 10**6 for k, n in bill.items()}): "other units",
    bill_of(finish=lambda bill, config: {k: n * 1.0 for k, n in bill.items()}): "floats",
    no_batch: "the batch size is ignored",
    no_length: "the length of the sequences is ignored",
    one_layer: "one block is counted",
    bill_of(parts_of=always_four): "the dtype is ignored",
    all_shrunk: "all activations shrink",
    inputs_shrunk: "the blocks' inputs shrink",
    no_copies_again: "recomputed holds no 16-bit",
    bill_of(parts_of=shrunk("loss")): "the loss's part shrinks",
    bill_of(parts_of=shrunk("tables")): "tables shrink with the dtype",
    only_bfloat16: "only one of the half dtypes",
    bill_of(drop=("loss",)): "the loss's part is left out",
    bill_of(change=times(loss=2)): "the logits are kept as well",
    bill_of(drop=("norms",)): "what the norms keep",
    bill_of(change=times(norms=0.5), finish=lambda b, c: {k: int(n) for k, n in b.items()}): "what the norms keep",
    bill_of(drop=("inputs",)): "the inputs of qkv, proj and fc",
    bill_of(drop=("hidden",)): "the feed-forward layer's hidden values",
    bill_of(change=times(hidden=0.5), finish=lambda b, c: {k: int(n) for k, n in b.items()}): "hidden values",
    bill_of(parts_of=with_hidden_of_four): "taken as 4 C",
    bill_of(drop=("qkv",)): "q, k and v",
    bill_of(drop=("tables",)): "left out where there is dropout",
    bill_of(parts_of=tables_always): "counted where there is no dropout",
    bill_of(change=times(tables=1 / 3), finish=lambda b, c: {k: round(n) for k, n in b.items()}): "fewer",
    bill_of(drop=("masks",)): "the masks of dropout",
    bill_of(drop=("last", "entry", "mask")): "only the blocks are counted",
    bill_of(change=lambda block, around, copies: copies.pop("block", None)): "copies of the blocks' weights",
    bill_of(change=lambda block, around, copies: copies.pop("head", None)): "copy of the head's weights",
    bill_of(change=lambda block, around, copies: copies.clear()): "all 16-bit copies",
    checkpointing_ignored: "checkpointing is ignored",
    bill_of(inputs=lambda config, batch_size: 0): "the blocks keep nothing",
    bill_of(inputs=lambda c, B: 4 * B * c.max_seq_length * c.n_embd): "only one block keeps its input",
    bill_of(recomputed=lambda one, config, checkpointing: 0): "recomputed is left at 0",
    bill_of(recomputed=lambda one, c, checkpointing: c.n_layers * one * checkpointing): "recomputed holds all blocks",
    bill_of(recomputed=lambda one, config, checkpointing: one): "not 0 without checkpointing",
    bill_of(total=lambda values: sum(list(values)[:4])): "leaves out what is recomputed",
    bill_of(total=lambda values: sum(values) - list(values)[2]): "leaves out the optimizer",
    bill_of(total=lambda values: sum(values) - list(values)[1]): "leaves out the gradients",
    bill_of(total=lambda values: sum(values) + sum(values)): "twice the sum",
    bill_of(total=lambda values: sum(list(values)[3:])): "the activations' alone",
    bill_of(count=head_again): "the tied head",
    bill_of(count=lambda c: 12 * c.n_layers * c.n_embd * c.n_embd): "estimated",
}


def one_headed(config, batch_size, dtype, checkpointing):
    block, around, copies = parts(config, batch_size, dtype, checkpointing)
    if "tables" in block:
        block["tables"] //= config.n_heads
    return block, around, copies


BILL_WRONG[bill_of(parts_of=one_headed)] = "one head's tables"


def block_by_block(config, batch_size, dtype, checkpointing):
    """Adds up layer by layer, and leaves out what is small: means, deviations, heads, biases and targets."""
    c, half = config, dtype.itemsize == 2
    B, T, C, w = batch_size, c.max_seq_length, c.n_embd, dtype.itemsize
    kept, block = 0, B * T * (2 * 4 * C + 3 * w * C + 2 * w * c.n_inner)
    block += B * T * 3 * C * (4 if c.dropout else w)
    if c.dropout:
        block += 3 * B * c.n_heads * T * T * 4 + 2 * B * T * C * w
    if half:
        block += 2 * (3 * C * C + C * C + C * c.n_inner + c.n_inner * C)
    for _ in range(c.n_layers):
        kept += B * T * C * 4 if checkpointing else block
    kept += B * T * (C * 4 + C * w + c.vocab_size * 4) + half * c.vocab_size * C * 2
    n = l1_ref.count_parameters(c) * 4
    bill = {"activations": kept, "recomputed": block if checkpointing else 0}
    bill |= {"parameters": n, "gradients": n, "optimizer": n + n}
    return {"total": sum(bill.values()), **bill}


def a_tenth_off(factor):
    def predict(config, batch_size, dtype, checkpointing):
        bill = bill_of()(config, batch_size, dtype, checkpointing)
        bill |= {part: round(factor * bill[part]) for part in ("activations", "recomputed")}
        return bill | {"total": sum(n for part, n in bill.items() if part != "total")}

    return predict


BILL_RIGHT = [
    bill_of(),
    block_by_block,
    a_tenth_off(0.91),
    a_tenth_off(1.09),
    bill_of(finish=lambda b, c: dict(sorted(b.items()))),
]
BILL_STUBS = [
    lambda *inputs: None,
    lambda *inputs: {},
    lambda *inputs: 12345,
    lambda *inputs: dict.fromkeys((*bill.PARTS, "total"), 0),
    lambda config, *inputs: 16 * l1_ref.count_parameters(config),
    lambda *inputs: list(bill_of()(*inputs).values()),
    lambda *inputs: {part: n for part, n in bill_of()(*inputs).items() if part != "total"},
    lambda *inputs: {part.upper(): n for part, n in bill_of()(*inputs).items()},
    lambda *inputs: {part: str(n) for part, n in bill_of()(*inputs).items()},
    lambda *inputs: {part: n + 4 for part, n in bill_of()(*inputs).items()},
    a_tenth_off(0.85),
    a_tenth_off(1.15),
    bill_of(drop=("hidden", "loss")),
]

# More wrong answers, of the kinds that once passed or went by a wrong name.


def eval_meanwhile(step):
    def wrong(model, *more):
        model.eval()
        loss = step(model, *more)
        model.train()
        return loss

    return wrong


def one_is_enough(grads, loss):
    return any(torch.isfinite(grad).all() for grad in grads)


ACCUMULATE_WRONG |= {eval_meanwhile(by_sums): "eval mode"}
STEP_WRONG |= {eval_meanwhile(step()): "eval mode"}
SCALED_WRONG |= {eval_meanwhile(scaled()): "eval mode", scaled(fine=one_is_enough): "any stands where all belongs"}
AMP_WRONG |= {eval_meanwhile(amp()): "eval mode"}

WRONG = {
    "accumulate_gradients": ACCUMULATE_WRONG,
    "loss_scaled_step": SCALED_WRONG,
    "amp_train_step": AMP_WRONG,
    "checkpointed": CHECKPOINT_WRONG,
    "training_memory": BILL_WRONG,
    "accumulated_step": STEP_WRONG,
}
RIGHT = {
    "accumulate_gradients": ACCUMULATE_RIGHT,
    "loss_scaled_step": SCALED_RIGHT,
    "amp_train_step": AMP_RIGHT,
    "checkpointed": CHECKPOINT_RIGHT,
    "training_memory": BILL_RIGHT,
    "accumulated_step": STEP_RIGHT,
}
STUBS = {
    "accumulate_gradients": ACCUMULATE_STUBS,
    "loss_scaled_step": SCALED_STUBS,
    "amp_train_step": AMP_STUBS,
    "checkpointed": CHECKPOINT_STUBS,
    "training_memory": BILL_STUBS,
    "accumulated_step": STEP_STUBS,
}


def seeds_of(exercise, *more):
    """Return a few of the seeds, since a training step takes its time; the bytes do not depend on them."""
    return [0] if exercise is TRAINING_MEMORY else [0, *more]


@pytest.mark.parametrize(("exercise", "candidate", "words"), cases(WRONG))
def test_a_mistake_is_rejected_and_named_first(exercise, candidate, words):
    assert_named_first(exercise, candidate, words, seeds_of(exercise))


@pytest.mark.parametrize(("exercise", "candidate"), cases(RIGHT))
def test_every_right_style_is_accepted(exercise, candidate):
    assert_accepted(exercise, candidate, seeds_of(exercise, 7, 13))


@pytest.mark.parametrize(("exercise", "candidate"), cases(STUBS))
def test_nothing_else_passes(exercise, candidate):
    assert_rejected(exercise, candidate, [0])


@pytest.mark.parametrize("name", WRONG)
def test_every_mistake_of_the_catalogue_has_a_wrong_answer_here(name):
    assert_all_told(checks.exercise(name), WRONG[name])


@pytest.mark.parametrize("name", WRONG)
def test_the_number_of_threads_changes_nothing(name):
    some = dict(list(WRONG[name].items())[:6])
    assert_same_on_two_threads(checks.exercise(name), RIGHT[name][:2], some)


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)
def test_the_reference_is_recognised_and_a_blank_is_not_written_yet(exercise):
    def blank(*inputs):
        raise NotImplementedError("not written yet")

    assert exercise.diagnose(exercise.reference).state == "given"
    assert exercise.diagnose(blank).state == "unwritten"
    assert exercise.diagnose(lambda *inputs: exercise.reference(*inputs)).state == "solved"


# Two mistakes together, and what the messages say.


@pytest.mark.parametrize(
    ("name", "candidate", "words"),
    [
        (
            "loss_scaled_step",
            scaled(fine=lambda grads, loss: True, clear=lambda *a: None),
            ("taken although", "not cleared before"),
        ),
        (
            "amp_train_step",
            amp(cast=no_autocast, then=("clip", "unscale", "step", "update")),
            ("clipped while", "no auto"),
        ),
        (
            "accumulated_step",
            step(before=[], each=["clip"], after=["step"]),
            ("by itself", "not cleared before backward"),
        ),
        ("accumulated_step", step(loss=mean_of_means, after=["step"]), ("mean of the means", "not clipped")),
        ("checkpointed", lambda block, x: x.detach() + block(x) - x.detach(), ("runs as always",)),
        ("training_memory", bill_of(drop=("loss",), state=(4, 4, 4)), ("the loss's part", "one mean")),
    ],
)
def test_mistakes_together_are_all_named(name, candidate, words):
    verdict = checks.exercise(name).diagnose(candidate)
    assert len(verdict.mistakes) == len(words) and all(any(w in m for m in verdict.mistakes) for w in words), (
        verdict.text
    )


def test_the_version_shown_in_the_notebook_is_named_and_then_its_second_fault():
    assert "the last one only" in ACCUMULATED_STEP.diagnose(shown_in_the_notebook).text
    assert "clip once" in ACCUMULATED_STEP.diagnose(step(each=["clip"], after=["step"])).text


def test_what_torch_says_is_told_where_no_mistake_explains_it():
    text = AMP_TRAIN_STEP.diagnose(amp(then=("unscale", "unscale", "clip", "step", "update"))).text
    assert "unscale_() has already been called on this optimizer" in text


@pytest.mark.parametrize("is_fine", [each_sum, one_sum])
def test_the_verdict_on_a_sum_of_gradients_does_not_depend_on_the_seed(is_fine):
    assert_named_first(LOSS_SCALED_STEP, tested_early(is_fine), "sums of scaled gradients")
    assert_accepted(LOSS_SCALED_STEP, scaled(fine=is_fine))


def test_a_gradient_that_is_missing_stops_the_reader_where_it_happens():
    def forgets_none(model, x, y, optimizer, scale):
        optimizer.zero_grad()
        loss = mean_loss(model, x, y)
        (scale * loss).backward()
        for p in model.parameters():
            p.grad.div_(scale)
        if all(p.grad.isfinite().all() for p in model.parameters()):
            optimizer.step()
        return loss.detach()

    text = LOSS_SCALED_STEP.diagnose(forgets_none).text
    assert "'NoneType' object has no attribute 'div_'" in text and "p.grad.div_(scale)" in text


def test_a_wrong_number_of_bytes_stands_beside_the_right_one():
    text = TRAINING_MEMORY.diagnose(bill_of(state=(4, 4, 4))).text
    n = l1_ref.count_parameters(l1_ref.L1Config.preset("tiny"))
    assert f"expected  {8 * n}     got  {4 * n}     [optimizer]" in text
    text = TRAINING_MEMORY.diagnose(
        lambda *inputs: {part: n for part, n in bill_of()(*inputs).items() if part[0] != "r"}
    ).text
    assert "missing: recomputed" in text


def test_the_wrong_versions_of_the_bill_start_from_the_right_one():
    for probe in TRAINING_MEMORY.probes:
        inputs = probe.build(torch.Generator()).values()
        assert bill._bill(*inputs) == l1_ref.training_memory(*inputs)


def test_what_is_kept_is_told_in_bytes():
    text = CHECKPOINTED.diagnose(plainly).text
    assert "expected  1     got  0     [the runs of the block, in the backward pass]" in text or "its input has" in text
