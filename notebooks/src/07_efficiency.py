# %% [markdown]
# # Efficiency
#
# A step of training costs memory and time. Here it becomes cheaper, and does nearly the same: it works in pieces, with
# half as many bits, and forgets what can be computed again.
#
# **Goals.** Say what a training step holds in memory. Accumulate gradients. Know what float16 and bfloat16 lose, and
# train with them. Trade time for memory. Predict bytes from a config, and hold seconds against arithmetic.
#
# **Time.** About two hours, in two sittings: a good place to stop is before checkpointing.
#
# **Difficulty.** Medium.
#
# **You need.** Notebook 06: the training step, AdamW, clipping, targets of -100. Notebook 05: the config and the count.
#
# Words and letters: [glossary](glossary.md).

# %%
import copy
import dataclasses
import itertools
import math
import time
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import l1_ref
from l1_ref import checks, plots

run = l1_ref.load_run(l1_ref.DATA_DIR / "tiny")
model, tokenizer = run.model, run.tokenizer
tales = l1_ref.load_tales("train")[:40]
all_ids = torch.tensor([i for tale in tales for i in (tokenizer.end_of_text, *tokenizer.encode(tale))])
x, y = l1_ref.next_token_batch(all_ids, 16, 128, torch.Generator().manual_seed(0))

# %% [markdown]
# ## What a step holds
#
# In the middle of a step four kinds of numbers lie in memory:
#
# - the *parameters*;
# - a *gradient* for each of them;
# - the *optimizer's state*: AdamW keeps two running means for each;
# - the *activations*: what the forward pass leaves for the backward pass. The gradient of a product $xW$ needs $x$.
#
# A float32 number takes 4 bytes, so the first three take 4 + 4 + 8 = 16 bytes a parameter. Activations grow with the
# batch. `l1_ref.saved_bytes(model, loss)` calls the function `loss` and counts the bytes that *autograd* keeps, the
# part of torch that records steps for `backward`; parameters are left out.

# %% tags=["nbval-ignore-output"]
n_parameters = l1_ref.count_parameters(model.config)
print(f"parameters, gradients, optimizer: {plots.bytes_label(16 * n_parameters)}")
for B in (1, 4, 16):
    kept = l1_ref.saved_bytes(model, lambda B=B: l1_ref.cross_entropy(model(x[:B]), y[:B]))
    print(f"activations, batch {B:>2}:            {plots.bytes_label(kept)}")

# %% [markdown]
# (1 MiB is $2^{20}$ bytes, 1 GiB is $2^{30}$.)
#
# ## The same batch in pieces
#
# `backward()` *adds* to `.grad`: that is why a step begins by clearing it. Here that is a gift. Cut the batch into
# *micro-batches*, run forward and backward for one after the other, and take one step at the end. Only one
# micro-batch's activations exist at a time, and the gradient is that of the whole batch.
#
# But each must count by its size. The loss of a batch is the *mean over its targets*. Say that one micro-batch has 1
# target and loss 2.0, another has 3 and loss 4.0. The mean over all four is (2 + 3 · 4) / 4 = 3.5, not 3.0. So a
# micro-batch with n of all N targets counts n/N. Padding, with target -100, is no target.
#
# ## Exercise: `accumulate_gradients`
#
# `micro_batches` is a list of pairs `(x, y)`, ids and targets, both `(B, T)`, whose sizes may differ. Let each
# parameter's `.grad` *grow* by the gradient of the mean loss over all targets of all pairs, targets of -100 left out.
# Clear nothing and take no step: that is for the caller. Return that mean loss, a tensor with one number, detached.
#
# Run `backward` once for each micro-batch, so that its activations can go. There is at least one target in all, but a
# pair may hold nothing but padding. The mean over no targets is NaN, and NaN times 0 is NaN: such a pair must add
# nothing.


# %% tags=["exercise"] name="accumulate_gradients" points=2 difficulty="medium" minutes=15
def accumulate_gradients(model, micro_batches):
    """Add the gradient of the mean loss over all targets to .grad, and return that loss.

    Args:
        model: Maps ids (B, T) to logits (B, T, V).
        micro_batches: A list of (x, y); targets of -100 do not count.
    """
    counts = [(y != -100).sum() for _, y in micro_batches]
    total = torch.tensor(0.0)
    for (x, y), n in zip(micro_batches, counts, strict=True):
        if n > 0:
            loss = l1_ref.cross_entropy(model(x), y) * n / sum(counts)
            loss.backward()
            total += loss.detach()
    return total


# %% tags=["check"]
checks.accumulate_gradients(accumulate_gradients)

# %% [markdown]
# Is it the same? Sixteen sequences at once, and in pieces:


# %%
def gradient_of(function):
    """Return all gradients of the model as one long vector, after a function has made them."""
    model.zero_grad()
    function()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def relative_error(found, exact):
    """Return the length of the difference of two vectors, by the length of the exact one."""
    return ((found - exact).norm() / exact.norm()).item()


whole = gradient_of(lambda: l1_ref.cross_entropy(model(x), y).backward())
for sizes in ([4, 4, 4, 4], [1, 2, 5, 8]):
    pieces = list(zip(x.split(sizes), y.split(sizes), strict=True))
    found = gradient_of(lambda pieces=pieces: accumulate_gradients(model, pieces))
    print(f"pieces of {sizes}: the same gradient: {relative_error(found, whole) < 1e-5}")

# %% [markdown]
# Up to rounding: a sum in another order rounds otherwise. So any batch size is possible, and only takes longer.
# GPT-2's is 512 sequences of 1,024 tokens (Radford et al. 2019, section 2.3). (Dropout draws other numbers for each
# piece: with it the two are alike, not equal.)
#
# ## Sixteen bits
#
# Half the bits are half the bytes to keep and move, and circuits made for them multiply faster. But which half to drop?
# A floating-point number is a sign, an *exponent*, and a *fraction*, in binary digits:
#
# $$\pm\, 1.\text{fraction} \times 2^{\text{exponent}}$$
#
# float32 has 8 bits for the exponent and 23 for the fraction, float16 5 and 10, bfloat16 8 and 7. The exponent says how
# far the numbers reach, the fraction how close they lie: from 1 to 2 there are $2^{10}$ steps in float16, $2^7$ in
# bfloat16. From 2 to 4 there are as many, so the gaps double with each power of 2.

# %% tags=["nbval-ignore-output"]
dtypes = [torch.float32, torch.float16, torch.bfloat16]
told = ", ".join(f"{str(d)[6:]} up to {torch.finfo(d).max:.3g} in steps of {torch.finfo(d).eps:.2g}" for d in dtypes)
alt = f"Bars and ticks, largest number and step above 1: {told}. bfloat16 reaches as far as float32; float16 does not."
plots.show(plots.number_formats(dtypes), alt=alt)

# %% [markdown]
# Hatched: at the lower end the fraction loses digit after digit. The smallest number of float16 is $2^{-24}$, and up to
# half of it all becomes 0.
#
# ### Predict before you run
#
# Write down your answers first:
#
# 1. What is 2048 + 1 in float16?
# 2. Start from 0 and add 1, ten thousand times, in bfloat16. Where do you end?
# 3. What are 70,000 and 0.00000001 in float16? And in bfloat16?
# 4. A weight is 1, and the step wants to change it by -0.001. What is the weight afterwards, in bfloat16?

# %%
half, brain = torch.float16, torch.bfloat16
print("1.", (torch.tensor(2048, dtype=half) + 1).item())
total = torch.tensor(0, dtype=brain)
for _ in range(10_000):
    total += 1
print("2.", total.item())
for dtype in (half, brain):
    print("3.", str(dtype)[6:], *(f"{torch.tensor(number, dtype=dtype).item():.4g}" for number in (70_000, 1e-8)))
print("4.", (torch.tensor(1, dtype=brain) - 0.001).item())

# %% [markdown]
# <details><summary>Why?</summary>
#
# 1. 2048. From $2^{11}$ on the gaps of float16 are 2 wide: 2049 lies in the middle, and the middle goes to the
#    neighbour whose fraction ends in a 0.
# 2. At 256. From $2^8$ on the gaps of bfloat16 are 2 wide: 256 + 1 is 256, for ever.
# 3. In float16 inf and 0: the largest number is 65,504, and half of the smallest is about 0.00000003. In bfloat16
#    70,144 and nearly $10^{-8}$: coarse, but there.
# 4. 1. Just below 1 the gaps are $2^{-8}$, about 0.004 wide; 0.001 is less than half. The step is lost, and so is
#    the next one.
#
# </details>
#
# So long sums and small changes of weights stay in float32. *Mixed precision* (Micikevicius et al. 2018) does the
# matrix products, where the time goes, in 16 bits, and keeps the weights and the optimizer's means in float32. Inside
# torch's `autocast` products run in a *half dtype*, float16 or bfloat16, on copies of the weights made on the way. The
# residual stream stays float32: float32 plus 16 bits is float32.

# %%
layer, stream = nn.Linear(4, 4), torch.ones(1, 4)
with torch.autocast("cpu", torch.bfloat16):
    product = layer(stream)
print("product:", product.dtype, " stream:", (stream + product).dtype, " weight:", layer.weight.dtype)
product.sum().backward()
print("gradient of the weight:", layer.weight.grad.dtype)

# %% [markdown]
# ## What float16 loses
#
# Gradients are small. Here is every number that flows back through the trained model's layers for half of our batch, by
# size, computed in float32. A factor on the loss is, by the chain rule, a factor on every gradient: the slider sets it.


# %%
def flowing_back(model, x, y):
    """Return all entries of the loss's gradient by the outputs of the model's linear layers and norms."""
    found = []

    def note(layer, inputs, output):
        output.register_hook(lambda gradient: found.append(gradient.flatten()))

    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Linear, nn.LayerNorm))]
    handles = [layer.register_forward_hook(note) for layer in layers]
    l1_ref.cross_entropy(model(x), y).backward()
    for handle in handles:
        handle.remove()
    return torch.cat(found)


gradients = flowing_back(model, x[:8], y[:8])
gradients = gradients[gradients != 0]


# %% tags=["nbval-ignore-output"]
def draw_sizes(power):
    """Draw the sizes of the gradients times 2 to a power, and what float16 makes of them."""
    scaled = (gradients * 2.0**power).half()
    lost, over = (100 * share.float().mean() for share in (scaled == 0, scaled.isinf()))
    alt = f"Histogram, loss times 2^{power}: {lost:.1f} % of the gradients become 0 in float16, {over:.2g} % too large."
    return plots.float16_histogram(gradients.abs().log2(), power), alt


plots.explore(draw_sizes, power=[0, 5, 10, 15, 20, 25])

# %% [markdown]
# Without a factor about a third becomes 0: *underflow*. At $2^{15}$ most of these are saved. At $2^{25}$ the largest
# numbers do not fit any more.
#
# How much does it matter to the weights? Compare their gradients, the factor divided out again, with those of float32,
# here for 128 targets. Factors below 1 stand for larger batches: a mean over more targets divides by more.


# %%
def half_gradient(dtype, factor):
    """Return the gradient of the weights, products in a half dtype, loss times a factor, the factor divided out."""

    def scaled_loss():
        with torch.autocast("cpu", dtype):
            logits = model(x[:2, :64])
        (factor * l1_ref.cross_entropy(logits, y[:2, :64])).backward()

    return gradient_of(scaled_loss) / factor


# %% tags=["nbval-ignore-output"]
exact = gradient_of(lambda: l1_ref.cross_entropy(model(x[:2, :64]), y[:2, :64]).backward())
powers = [-16, -14, -12, -8, -4, 0, 4, 8, 12, 16, 20]
errors = {}
for dtype in (half, brain):
    found = [half_gradient(dtype, 2.0**power) for power in powers]
    errors[str(dtype)[6:]] = [relative_error(g, exact) if g.isfinite().all() else float("inf") for g in found]
at = dict(zip(powers, errors["float16"], strict=True))
alt = (
    f"Log chart of errors. float16: {at[-12]:.1%} at 2^-12, {at[0]:.2%} at 1, {at[12]:.2%} at 2^12, overflow at 2^20. "
    f"bfloat16: {errors['bfloat16'][0]:.1%} throughout."
)
marks = {"128 targets, as here": 0, "512 × 1,024 targets": -12}
plots.show(plots.scale_errors(powers, errors, marks), alt=alt)

# %% [markdown]
# With 128 targets float16 is hardly troubled: what became 0 was the smallest, and the sums do not miss it. GPT-2's
# batch has $2^{12}$ times as many targets: there the error is a tenth, and a factor on the loss cures it. Too large a
# factor overflows. bfloat16 needs no factor. Its error is the same everywhere, several times float16's at its best.
#
# ## Exercise: `loss_scaled_step`
#
# The cure by hand: clear the gradients, compute the loss (`l1_ref.cross_entropy`), call `backward` on `scale` times the
# loss, and divide all gradients by `scale` again. If every entry of every gradient is then finite, take a step of the
# optimizer. If one is inf or NaN, take none: weights and optimizer stay as they were. A parameter may have no gradient
# (None). Do not clip, and add no autocast: how the model computes is its own affair. Return the loss without the
# factor, detached, step or no step. (The first optimizer in a session may take seconds: torch loads what it needs.)


# %% tags=["exercise"] name="loss_scaled_step" points=2 difficulty="medium" minutes=15
def loss_scaled_step(model, x, y, optimizer, scale):
    """Take a step with the loss scaled up, unless a gradient overflows; return the loss.

    Args:
        model: Maps ids (B, T) to logits (B, T, V).
        x: Input ids, (B, T).
        y: Targets, (B, T).
        optimizer: Holds the model's parameters.
        scale: Factor on the loss.
    """
    optimizer.zero_grad()
    loss = l1_ref.cross_entropy(model(x), y)
    (loss * scale).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    for gradient in gradients:
        gradient /= scale
    if all(gradient.isfinite().all() for gradient in gradients):
        optimizer.step()
    return loss.detach()


# %% tags=["check"]
checks.loss_scaled_step(loss_scaled_step)


# %%
class InFloat16(nn.Module):
    """A model whose products run in float16."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        with torch.autocast("cpu", torch.float16):
            return self.model(ids)


for power in (10, 24):
    learner = InFloat16(copy.deepcopy(model))
    loss_scaled_step(learner, x[:1, :64], y[:1, :64], torch.optim.SGD(learner.parameters(), lr=0.1), 2.0**power)
    changed = not torch.equal(learner.model.head.weight, model.head.weight)
    print(f"scale 2^{power}: a step was taken: {changed}")

# %% [markdown]
# ## The library's version
#
# Which factor? `torch.amp.GradScaler` looks for one: it starts high, halves it when a gradient overflows, and doubles
# it after 2,000 steps without.
#
# | call | what it does |
# |---|---|
# | `scaler.scale(loss)` | returns the loss times the factor |
# | `scaler.unscale_(optimizer)` | divides the optimizer's gradients by it, in place, and looks for inf and NaN |
# | `scaler.step(optimizer)` | calls `optimizer.step()`, unless it found any; unscales first if nobody did |
# | `scaler.update()` | sets the next factor |
#
# Made with `enabled=False` it does none of this: `scale` gives back the loss, `step` just steps. So one code serves all
# dtypes.
#
# ## Exercise: `amp_train_step`
#
# The `train_step` of notebook 06 in mixed precision. The forward pass runs in `torch.autocast` for the type of `x`'s
# device (`x.device.type`) and for `dtype`; if that is `torch.float32`, autocast is off (its argument `enabled`).
# `backward()` runs outside of it: each gradient takes the dtype of its forward product by itself. The loss is to be
# float32, which `l1_ref.cross_entropy` sees to. Use the scaler, and clip with `l1_ref.clip_grad_norm`: the limit
# `max_norm` means the true gradients, not the scaled ones. Return the loss without the factor, detached.


# %% tags=["exercise"] name="amp_train_step" points=2 difficulty="medium" minutes=15
def amp_train_step(model, x, y, optimizer, scaler, dtype, max_norm=1.0):
    """Take a training step in mixed precision; return the loss.

    Args:
        model: Maps ids (B, T) to logits (B, T, V).
        x, y: Input ids and targets, (B, T).
        optimizer: Holds the model's parameters.
        scaler: A `torch.amp.GradScaler`, enabled or not.
        dtype: Of the products: torch.float32, torch.bfloat16 or torch.float16.
        max_norm: Largest joint norm of the gradients.
    """
    optimizer.zero_grad()
    with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
        loss = l1_ref.cross_entropy(model(x), y)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    l1_ref.clip_grad_norm(model.parameters(), max_norm)
    scaler.step(optimizer)
    scaler.update()
    return loss.detach()


# %% tags=["check"]
checks.amp_train_step(amp_train_step)

# %% [markdown]
# Eight steps in three dtypes, from the trained weights, on one small batch. The factor starts at $2^{20}$, which is too
# high. On a CUDA device only `device` differs.

# %% tags=["nbval-ignore-output"]
device = "cuda" if torch.cuda.is_available() else "cpu"
losses, factors = {}, []
for dtype in dtypes:
    learner = copy.deepcopy(model).to(device)
    optimizer = l1_ref.build_optimizer(learner, lr=1e-4)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**20, enabled=dtype == half)
    inputs = [t[:2, :64].to(device) for t in (x, y)]
    for _ in range(8):
        losses.setdefault(dtype, []).append(amp_train_step(learner, *inputs, optimizer, scaler, dtype).item())
        if dtype == half:
            factors.append(scaler.get_scale())
print("step  float32  float16  bfloat16  factor afterwards")
for step, (*row, factor) in enumerate(zip(*losses.values(), factors, strict=True)):
    print(f"{step:>4}  {row[0]:7.3f}  {row[1]:7.3f}  {row[2]:8.3f}  {factor:>9,.0f}")

# %% [markdown]
# Where float16's loss repeats, a step was skipped. After that all three learn alike. What 16 bits gain in time depends
# on the hardware: on a CPU float16 can even be slower than float32.
#
# ## Checkpointing: compute it twice
#
# *Checkpointing* (Chen et al. 2016) throws activations away: of each block only the input is kept. When the backward
# pass comes to the block, it runs it forward once more from that input. So one block's activations exist at a time. The
# price is a second forward pass: a third more arithmetic, as a backward pass takes twice that of a forward pass.
# Dropout must drop the same numbers both times, or the gradient belongs to another network.
#
# ## Exercise: `checkpointed`
#
# Return `block(x)` with little kept, but with the same gradients of `x` and of the block's parameters, and the same
# dropout. Use `checkpoint` from `torch.utils.checkpoint`, imported above: it takes a function and its inputs, and
# restores the state of the random numbers for the second run. Hand it `use_reentrant=False`: its older way loses the
# parameters' gradients where `x` itself asks for none.


# %% tags=["exercise"] name="checkpointed" points=1 difficulty="easy" minutes=5
def checkpointed(block, x):
    """Run a block without keeping its activations; the backward pass computes them again.

    Args:
        block: A module that maps (B, T, C) to (B, T, C).
        x: Its input, (B, T, C).
    """
    return checkpoint(block, x, use_reentrant=False)


# %% tags=["check"]
checks.checkpointed(checkpointed)

# %% [markdown]
# A stack of eight blocks, with dropout, both ways.

# %%
torch.manual_seed(0)
deep = dataclasses.replace(model.config, n_layers=8, dropout=0.1)
blocks = nn.ModuleList(l1_ref.TransformerBlock(deep) for _ in range(deep.n_layers))
stream = torch.randn(4, 128, deep.n_embd)


def pass_through(wrap):
    """Send the stream through all blocks, each called by wrap(block, x), and return a number to minimise."""
    torch.manual_seed(1)
    hidden = stream
    for block in blocks:
        hidden = wrap(block, hidden)
    return hidden.square().mean()


ways = {"plain": lambda block, x: block(x), "checkpointed": checkpointed}
grads = [torch.autograd.grad(pass_through(wrap), list(blocks.parameters())) for wrap in ways.values()]
print("the same gradients:", all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True)))

# %% tags=["nbval-ignore-output"]
kept_bytes = {name: l1_ref.saved_bytes(blocks, lambda wrap=wrap: pass_through(wrap)) for name, wrap in ways.items()}
times = {name: ([], []) for name in ways}  # of the forward and of the backward pass, in ms
for _ in range(5):
    for name, wrap in ways.items():
        start = time.perf_counter()
        loss = pass_through(wrap)
        middle = time.perf_counter()
        loss.backward()
        times[name][0].append(1000 * (middle - start))
        times[name][1].append(1000 * (time.perf_counter() - middle))
for name, (forward, backward) in times.items():
    print(f"{name:<13} kept {plots.bytes_label(kept_bytes[name]):>8}, ", end="")
    print(f"forward {min(forward):.0f} ms, backward {min(backward):.0f} ms")

# %% [markdown]
# More than a third: on a CPU, drawing dropout's masks makes a forward pass as slow as a backward pass. Without dropout
# it is a third.
#
# In `l1_ref`, `model.checkpointing = True` switches it on for all blocks.
#
# ## The bill in advance
#
# Memory can be counted from the config, as the parameters could: `vocab_size` V, `max_seq_length` T, `n_layers` L,
# `n_heads` H, `n_embd` C, `n_inner` F. A batch has B · T tokens. `w` is the bytes of a number in a product: 4 for
# float32, 2 for the half dtypes.
#
# **A block keeps, in bytes a token:**
#
# | what | bytes |
# |---|---|
# | two norms: input, mean and deviation, in float32 | 8C + 16 |
# | inputs of `qkv`, of attention's `proj`, of `fc` | 3wC |
# | inputs of GELU and of the feed-forward layer's `proj` | 2wF |
# | attention, if `dropout` is 0: q, k, v, and one number a head | 3wC + 4H |
# | attention, if not: q, k, v and three tables (H, T, T), in float32 | 12C + 12HT |
# | masks of the dropout after each `proj`, if it is not 0 | 2wC |
#
# The fifth row is the CPU's: torch's fused attention holds no table of weights, but on a CPU it knows no dropout, so
# with dropout torch goes the long way.
#
# **Around the blocks, in bytes a token:** the last norm 4C + 8, the head's input wC, the loss 4V + 8 (log-probabilities
# and the target), and 4C for the embedding's dropout mask if `dropout` is not 0.
#
# **In the half dtypes**, once, whatever the batch: the 16-bit copies of the weights, 2 bytes for each of a block's
# $4C^2 + 2CF + 5C + F$, and for each of the output head's VC.
#
# ## Exercise: `training_memory`
#
# Return a dict of bytes, all of them ints:
#
# - `parameters`, `gradients`, `optimizer`: 4, 4 and 8 bytes a parameter, in every dtype (`l1_ref.count_parameters`);
# - `activations`: of all blocks and around them, with all 16-bit copies. With checkpointing, of each block only its
#   input in float32, 4C a token, and no copies but the head's;
# - `recomputed`: 0; with checkpointing, what one block keeps, its copies with it;
# - `total`: the sum of the five.
#
# `activations` and `recomputed` may be off by a tenth, the first three by nothing. `config.attention` is `"fused"`.


# %% tags=["exercise"] name="training_memory" points=3 difficulty="hard" minutes=25
def training_memory(config, batch_size, dtype, checkpointing):
    """Predict the bytes of a training step on full-length sequences: a dict of ints, by part."""
    V, C, F, H, T = config.vocab_size, config.n_embd, config.n_inner, config.n_heads, config.max_seq_length
    N, tokens, w = l1_ref.count_parameters(config), batch_size * T, 4 if dtype == torch.float32 else 2
    attention = 12 * C + 12 * H * T + 2 * w * C if config.dropout else 3 * w * C + 4 * H
    block = tokens * (8 * C + 16 + 3 * w * C + 2 * w * F + attention)
    around = tokens * (4 * C + 8 + w * C + 4 * V + 8 + (4 * C if config.dropout else 0))
    if w == 2:
        block += 2 * (4 * C * C + 2 * C * F + 5 * C + F)
        around += 2 * V * C
    parts = {
        "parameters": 4 * N,
        "gradients": 4 * N,
        "optimizer": 8 * N,
        "activations": around + config.n_layers * (4 * tokens * C if checkpointing else block),
        "recomputed": block if checkpointing else 0,
    }
    return parts | {"total": sum(parts.values())}


# %% tags=["check"]
checks.training_memory(training_memory)

# %% [markdown]
# Now measure `tiny`, and `small` in float32.


# %%
def measured_total(config, dtype, checkpointing):
    """Return the bytes of a step at batch 1: 16 for each parameter, the kept activations, and one block's again."""
    learner = l1_ref.L1Model(config)
    learner.checkpointing = checkpointing
    ids, targets = torch.randint(config.vocab_size, (2, 1, config.max_seq_length))
    hidden = torch.randn(1, config.max_seq_length, config.n_embd, requires_grad=True)

    def run(function):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return function()

    kept = l1_ref.saved_bytes(learner, lambda: l1_ref.cross_entropy(run(lambda: learner(ids)), targets))
    if checkpointing:
        kept += l1_ref.saved_bytes(learner.blocks[0], lambda: run(lambda: learner.blocks[0](hidden)))
    return kept + 4 * sum(p.nbytes for p in learner.parameters())


# %%
WAYS = {
    "float32": (torch.float32, False),
    "checkpointed float32": (torch.float32, True),
    "bfloat16": (torch.bfloat16, False),
    "checkpointed bfloat16": (torch.bfloat16, True),
}
cases = [("tiny", way) for way in WAYS] + [("small", way) for way in list(WAYS)[:2]]
measured = {}
for name, way in cases:
    config = l1_ref.PRESETS[name]
    measured.setdefault(name, {})[way] = measured_total(config, *WAYS[way])
    predicted = training_memory(config, 1, *WAYS[way])["total"]
    print(f"{name:<5} {way:<22}: within 10 %: {abs(predicted / measured[name][way] - 1) < 0.1}")


# %% tags=["nbval-ignore-output"]
def draw_bill(batch_size, dropout):
    """Draw the predicted bytes of all presets, and where we measured, the measured ones."""
    bills, told = {}, {}
    for (name, config), (way, how) in itertools.product(l1_ref.PRESETS.items(), WAYS.items()):
        config = config if dropout == "as in the preset" else dataclasses.replace(config, dropout=0.0)
        bill = training_memory(config, batch_size, *how)
        told.setdefault(name, []).append(plots.bytes_label(bill["total"]))
        bills.setdefault(name, {})[way] = {part: n for part, n in bill.items() if part != "total"}
    title = f"a training step, batch {batch_size}, dropout {dropout}"
    dots = measured if batch_size == 1 and dropout == "as in the preset" else {}
    totals = "; ".join(f"{name} {', '.join(each)}" for name, each in told.items())
    return plots.memory_bars(bills, dots, title), f"Stacked bars, {title}; {', '.join(WAYS)}. Totals: {totals}."


plots.explore(draw_bill, batch_size=[1, 2, 4, 8, 16, 32, 64], dropout=["as in the preset", "0"])

# %% [markdown]
# The larger the batch, the larger the share of activations, and the deeper the model, the more of
# them checkpointing takes away. From `small` on most of them are attention's tables, which only dropout calls up. These
# are float32, so the half dtypes save little; at batch 1, with checkpointing, their copies of the weights even cost
# more than they save. Switch dropout off, and see.
#
# ## What a token costs
#
# In a product each weight does a multiplication and an addition for each token: 2 FLOPs (*floating-point
# operations*). The backward pass needs two such products, for the gradient of the input and for that of the weights.
# Together 6 a weight: 6N. Attention multiplies without weights: T scores and T values of width C in each of L layers,
# 4CT forward, 12CT with the backward pass (Chowdhery et al. 2022, appendix B). So
#
# $$\text{FLOPs a token} = 6N + 12\,L\,C\,T$$
#
# with N the parameters in products. `l1_ref.flops_per_token(config)` counts this (as if attention looked both ways).

# %%
for name, config in l1_ref.PRESETS.items():
    flops, attention = l1_ref.flops_per_token(config), 12 * config.n_layers * config.n_embd * config.max_seq_length
    print(f"{name:<5} {flops / 1e6:>8,.1f} million FLOPs a token, attention {attention / flops:.0%} of them")

# %% [markdown]
# Measured tokens a second, times FLOPs a token, are FLOP/s. How near is that to what this machine can do? The best of
# several matrix products shows it: (m × k) times (k × n) takes 2mkn FLOPs.


# %%
def per_second(works, rounds=4, for_s=0.1):
    """Return how often each function can run in a second, by its best time; in turns, so a slow moment hits all."""
    best = dict.fromkeys(works, math.inf)
    for _ in range(rounds):
        for name, work in works.items():
            end = time.perf_counter() + for_s
            while (start := time.perf_counter()) < end:
                work()
                best[name] = min(best[name], time.perf_counter() - start)
    return {name: 1 / seconds for name, seconds in best.items()}


# %% tags=["nbval-ignore-output"]
products, training = {}, {}
for m, k, n in ((2048, 768, 768), (1024, 384, 1536), (1024, 384, 384)):
    for kind in (nn.Linear, l1_ref.Linear):
        products[m, k, n, kind] = partial(kind(k, n, bias=False), torch.randn(m, k))
wide = dataclasses.replace(l1_ref.PRESETS["small"], n_layers=2, vocab_size=1000, max_seq_length=128, dropout=0.0)
for config in (model.config, wide):
    learner = l1_ref.L1Model(config)
    training[config] = partial(l1_ref.train_step, learner, x, y, l1_ref.build_optimizer(learner, lr=1e-4))
rates = per_second(products | training)
best = max(2 * m * k * n * rates[m, k, n, kind] for m, k, n, kind in products)
print(f"the best product: {best / 1e9:6.1f} billion FLOP/s")
for name, config in zip(("tiny", "wider"), training, strict=True):
    tokens_per_s = x.numel() * rates[config]
    achieved = tokens_per_s * l1_ref.flops_per_token(config)
    print(f"training {name:<6} : {achieved / 1e9:6.1f} billion FLOP/s at {tokens_per_s:,.0f} tokens/s: ", end="")
    print(f"{achieved / best:.0%} of the product's")

# %% [markdown]
# This share is the *utilisation*. What is missing goes into work of few FLOPs: norms, GELU, softmax, the optimizer.
#
# ## Bug hunt: one step for four pieces
#
# The function below is meant to be a whole step: the gradient of all micro-batches together, clipped, one step of the
# optimizer. The loss that it returns is right, and so is passing over a micro-batch without targets.


# %%
def broken(model, micro_batches, optimizer, max_norm=1.0):
    """Take one step for all micro-batches together; return the mean loss of all targets."""
    counts = [(y != -100).sum() for _, y in micro_batches]
    total = 0.0
    for (x, y), n in zip(micro_batches, counts, strict=True):
        if n == 0:
            continue
        optimizer.zero_grad()
        loss = l1_ref.cross_entropy(model(x), y) * n / sum(counts)
        loss.backward()
        l1_ref.clip_grad_norm(model.parameters(), max_norm)
        total = total + loss.detach()
    optimizer.step()
    return total


# %% [markdown]
# Here is a test for any such step: exchange one micro-batch for another, and see how far the weights end up elsewhere.


# %%
def weights_after(step, micro_batches):
    """Return all weights after one step from the trained model, as one long vector."""
    learner = copy.deepcopy(model)
    step(learner, micro_batches, torch.optim.SGD(learner.parameters(), lr=1.0))
    return torch.cat([p.detach().flatten() for p in learner.parameters()])


def effects_of(step):
    """Return how far the weights move when the i-th of four micro-batches is exchanged for a fifth."""
    *four, fifth = zip(x[:10].split(2), y[:10].split(2), strict=True)
    usual = weights_after(step, four)
    exchanged = [[*four[:i], fifth, *four[i + 1 :]] for i in range(4)]
    return [(weights_after(step, pieces) - usual).norm().item() for pieces in exchanged]


# %% tags=["nbval-ignore-output"]
effects = {"broken": effects_of(broken)}
told = ", ".join(f"{effect:.2f}" for effect in effects["broken"])
plots.show(plots.piece_effects(effects), alt=f"Bars, broken step: exchanging micro-batch 0, 1, 2, 3 changes {told}.")

# %% [markdown]
# What should this picture look like? Say in one sentence why the broken step forgets. There is a second fault, hidden
# behind the first: which gradient is `max_norm` about? Then write the mended step (`l1_ref.accumulate_gradients`, or
# yours, may serve). Gradients left by an earlier step do not count. Return the mean loss of all targets, detached.


# %% tags=["exercise"] name="accumulated_step" points=1 difficulty="easy" minutes=10
def accumulated_step(model, micro_batches, optimizer, max_norm=1.0):
    """Take one step for all micro-batches together; return the mean loss of all targets.

    Args:
        model: Maps ids (B, T) to logits (B, T, V).
        micro_batches: A list of (x, y); targets of -100 do not count.
        optimizer: Holds the model's parameters.
        max_norm: Largest joint norm of the whole gradient.
    """
    optimizer.zero_grad()
    loss = l1_ref.accumulate_gradients(model, micro_batches)
    l1_ref.clip_grad_norm(model.parameters(), max_norm)
    optimizer.step()
    return loss


# %% tags=["check"]
checks.accumulated_step(accumulated_step)

# %% tags=["nbval-ignore-output"]
effects["mended"] = effects_of(accumulated_step)
least, most = (extreme(effects["mended"]) for extreme in (min, max))
alt = (
    f"Bars: the broken step heeds the last micro-batch only; in the mended one each changes {least:.2f} to {most:.2f}."
)
plots.show(plots.piece_effects(effects), alt=alt)

# %% [markdown]
# Now each counts.
#
# ## What you have now
#
# | idea | in the reference |
# |---|---|
# | a large batch in pieces | `l1_ref.accumulate_gradients`, in `l1_ref/steps.py` |
# | a factor on the loss, by hand | `l1_ref.loss_scaled_step`, in `l1_ref/steps.py` |
# | the step in mixed precision | `l1_ref.amp_train_step`, in `l1_ref/steps.py` |
# | compute twice, keep little | `l1_ref.checkpointed`, in `l1_ref/transformer.py` |
# | bytes in advance | `l1_ref.training_memory`, in `l1_ref/memory.py` |
# | arithmetic of a token | `l1_ref.flops_per_token`, in `l1_ref/memory.py` |
#
# `l1_ref.train_step` saves once more: its `l1_ref.linear_cross_entropy` keeps no logits.
#
# - Parameters, gradients and AdamW take 16 bytes a parameter; activations grow with the batch.
# - A micro-batch counts by its targets. Clear once, clip once, step once.
# - float16 is fine but narrow, bfloat16 coarse but wide. Weights stay float32.
#
# Next is 08, generation: the same arithmetic, one token at a time.

# %%
checks.progress()
