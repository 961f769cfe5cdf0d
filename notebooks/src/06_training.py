# %% [markdown]
# # Training
#
# You have a model, and its numbers were given to you. In this notebook you make your own: you measure how wrong a model
# is, find the direction in which it gets better, and take a step. Then again, a few hundred times.
#
# **Goals.** Turn scores into a loss. Know what a gradient, AdamW, weight decay, a schedule and clipping do. Put them
# into one training step. Test it on a single batch, then watch a model fall towards the entropy floor.
#
# **Time.** About 120 minutes, in several sittings if you like.
#
# **Difficulty.** Medium.
#
# **You need.** Notebook 05. From PyTorch: `loss.backward()` leaves in `p.grad` of every parameter `p` how fast the loss
# rises when `p` grows.
#
# Words and letters: [glossary](glossary.md).

# %%
import collections
import math

import torch

import l1_ref
from l1_ref import checks, plots
from l1_ref.data import make_document_corpus

run = l1_ref.load_run(l1_ref.DATA_DIR / "tiny")
trained, tokenizer, tiny = run.model, run.tokenizer, l1_ref.PRESETS["tiny"]
tales = {split: l1_ref.load_tales(split) for split in ("train", "validation")}
corpus = make_document_corpus(tales["train"], tales["validation"], tokenizer)

# %% [markdown]
# ## What a token costs
#
# For each position the model gives V scores, and softmax turns them into probabilities. Then the true next token comes,
# and the model pays $-\ln p$, where $p$ is the probability it gave to that token. If it was sure and right ($p = 1$),
# it pays nothing. If it gave 1 %, it pays $\ln 100 = 4.6$ nats. Here is what the trained model pays along a tale that
# it has never seen.


# %% tags=["nbval-ignore-output"]
@torch.no_grad()
def draw_costs(tale, n_tokens=36):
    """Draw what each of the first tokens of a validation tale costs the trained model."""
    ids = tokenizer.encode(tales["validation"][tale])[:n_tokens]
    log_p = trained(torch.tensor([[tokenizer.end_of_text, *ids[:-1]]]))[0].log_softmax(-1)  # (T, V)
    nats = [-log_p[position, i].item() for position, i in enumerate(ids)]
    tokens = [tokenizer.decode([i]) for i in ids]
    dearest = max(range(len(ids)), key=nats.__getitem__)
    alt = (
        f"Bars, one a token of '{''.join(tokens)}'. {sum(cost < 0.1 for cost in nats)} of {len(nats)} tokens cost less "
        f"than 0.1 nats. The dearest is '{tokens[dearest]}' with {nats[dearest]:.1f}; the mean is "
        f"{sum(nats) / len(nats):.2f}."
    )
    return plots.token_losses(tokens, nats, "what each token costs the trained model"), alt


plots.explore(draw_costs, tale=[0, 1, 2, 3, 4, 5, 6, 7])

# %% [markdown]
# Many tokens are nearly free: grammar, or something said before, forces them. The dear ones are choices. Where the tale
# picks one of ten adjectives, the best reader in the world pays $\ln 10 = 2.3$ nats. In the first tale `an` is dear,
# since few words that may come begin with a vowel. But once it is paid, `orange` is free. So the mean cannot reach 0.
# The lowest it can get on average is the *entropy floor* of notebook 00.
#
# The mean of all these costs is the *cross-entropy*, the loss that language models are trained on (Bengio et al. 2003,
# section 2):
#
# $$\text{loss} = -\frac{1}{N} \sum_{i=1}^{N} \ln p_i(\text{target}_i)$$
#
# Three details:
#
# - **Take the logarithm safely.** $\ln \mathrm{softmax}(z)_j = z_j - \ln \sum_k e^{z_k}$. Computed in two steps, a
#   small probability can become 0, and its logarithm $-\infty$. `log_softmax` computes it in one.
# - **Some targets do not count.** Rows of a batch are equally long, tales are not. The rest of a row is *padding*, with
#   the target -100. Such places are left out of the sum, and out of N.
# - **Label smoothing** (Szegedy et al. 2016, section 7) asks the model not to be too sure. With smoothing $s$, the
#   target is no longer the true token alone. It is a share $1 - s$ of the true token, and $s$ spread evenly over all V
#   tokens, the true one too. With the costs $c_k = -\ln p_k$ of all tokens, a place then costs
#   $(1 - s)\, c_\text{true} + \frac{s}{V} \sum_k c_k$.
#
# ## Exercise: `cross_entropy`
#
# Write it by hand. `logits` are the scores (B, T, V), `targets` are ids (B, T): target $t$ belongs to the scores at
# position $t$, since `next_token_batch` has moved them on already. Watch one thing: an ignored target, such as -100, is
# no index.


# %% tags=["exercise"] name="cross_entropy" points=2 difficulty="medium" minutes=20
def cross_entropy(logits, targets, label_smoothing=0.0, ignore_index=-100):
    """Return the mean cost in nats of the targets that count, a tensor of no axes, in the dtype of the logits.

    Neither input is changed, and gradients reach the logits. Where no target counts, the answer is NaN.

    Args:
        logits: Scores, (B, T, V); large ones, such as 200, must not overflow.
        targets: Ids, (B, T).
        label_smoothing: s, the share that is spread evenly over all V.
        ignore_index: Targets of this value do not count; it may be any number, 0 too.
    """
    counts = targets != ignore_index  # (B, T)
    costs = -logits.log_softmax(-1)  # (B, T, V)
    true = costs.gather(-1, targets.where(counts, 0)[..., None])[..., 0]  # (B, T)
    mixed = (1 - label_smoothing) * true + label_smoothing * costs.mean(-1)
    return (mixed * counts).sum() / counts.sum()


# %% tags=["check"]
checks.cross_entropy(cross_entropy)

# %%
x, y = corpus.batch(4, 64, torch.Generator().manual_seed(0))
logits = trained(x).detach()
print("logits", tuple(logits.shape), "targets", tuple(y.shape))
print("as torch has it:", torch.allclose(cross_entropy(logits, y), torch.nn.functional.cross_entropy(logits.mT, y)))
for s in (0.0, 0.1):
    sure = [cross_entropy(torch.tensor([[[k] + [0.0] * 9]]), torch.tensor([[0]]), s).item() for k in (0, 2, 4, 6, 8)]
    print(f"smoothing {s}, the true score 0, 2, 4, 6, 8 above nine others:", *(f"{cost:.2f}" for cost in sure))

# %% [markdown]
# Without smoothing, being surer always pays. With it, there is a best degree of sureness, and beyond it the loss rises
# again. The runs below use none: then the loss is in plain nats, and can be held against the floor.
#
# ## Exercise: `perplexity`
#
# A loss of $\ln 10$ is what a fair choice among ten costs. So $e^{\text{loss}}$ says among how many equally likely
# tokens the model hesitates. It is called *perplexity* (Jelinek et al. 1977), and papers report it beside the loss or
# in its place.


# %% tags=["exercise"] name="perplexity" points=1 difficulty="easy" minutes=3
def perplexity(loss):
    """Return e to the power of the loss, unrounded.

    Args:
        loss: In nats, a float or a tensor; a tensor is not changed.
    """
    return loss.exp() if isinstance(loss, torch.Tensor) else math.exp(loss)


# %% tags=["check"]
checks.perplexity(perplexity)

# %% tags=["nbval-ignore-output"]
metrics = run.metrics
losses = {"fresh model": metrics["curve"][0], "trained": metrics}
losses = {name: found["validation_loss"] for name, found in losses.items()} | {"entropy floor": metrics["floor"]}
for name, loss in losses.items():
    print(f"{name:<14} loss {loss:.2f}, perplexity {perplexity(loss):,.2f}")

# %% [markdown]
# A fresh model hesitates among all 1,000 tokens. It is even a little worse than an equal guess, since its scores are
# chance. The trained one hesitates, on average, among fewer than two.
#
# ## Downhill
#
# `loss.backward()` computes the *gradient*: for each parameter, how fast the loss rises when that number grows. So move
# every number a little the other way. How far, the *learning rate* says:

# %%
torch.manual_seed(0)
model = l1_ref.L1Model(tiny)
before = l1_ref.cross_entropy(model(x), y)
before.backward()
with torch.no_grad():
    for parameter in model.parameters():
        parameter -= 0.1 * parameter.grad
    print("lower:", (l1_ref.cross_entropy(model(x), y) < before).item())

# %% [markdown]
# All of training is this step, again and again, with better answers to four questions. How large is the rate at each
# moment? What keeps the weights from growing? Is the plain gradient the best direction? And what if one gradient is
# huge?
#
# ## How large a step: the schedule
#
# A large rate learns fast, but then it jumps around the valley. A small rate settles well, but takes forever to arrive.
# So begin large and end small: the rate falls along half a cosine (Loshchilov and Hutter 2017, equation 5). And the
# very first steps are dangerous, for a reason that you will see, so in the beginning the rate climbs from 0 in a
# straight line. That is the *warm-up* (Goyal et al. 2017, section 2.2).

# %% tags=["nbval-ignore-output"]
STEPS = 200


def draw_schedule(warmup_steps):
    """Draw the schedule with some length of warm-up, down to 0 and down to a tenth of the peak."""
    ends = {"down to 0": 0.0, "lr_min a tenth of the peak": 3e-4}
    curves = {
        name: [l1_ref.cosine_lr(step, 3e-3, warmup_steps, STEPS, lr_min) for step in range(STEPS + 21)]
        for name, lr_min in ends.items()
    }
    alt = (
        f"Line chart: the rate climbs to 0.003 in {warmup_steps} steps, then falls along half a cosine to its minimum, "
        f"0 or 0.0003, at step {STEPS}, and stays there."
    )
    return plots.schedules(curves, f"peak 0.003, warm-up {warmup_steps} steps, {STEPS} steps in all"), alt


plots.explore(draw_schedule, warmup_steps=[20, 0, 10, 50, 100])

# %% [markdown]
# ## Exercise: `cosine_lr`
#
# With $w$ = `warmup_steps` and $n$ = `total_steps`, the rate at a step is
#
# - below $w$: $\text{lr\_peak} \cdot \text{step} / w$. So step 0 has rate 0, and step $w$ is the first at the peak.
# - from $w$ on: half a cosine, from `lr_peak` at step $w$ down to `lr_min` at step $n$. The angle is $\pi$ times the
#   share of the way from $w$ to $n$ that lies behind.
# - from $n$ on: `lr_min`.
#
# With `warmup_steps` 0 there is no straight line, and step 0 is at the peak.


# %% tags=["exercise"] name="cosine_lr" points=1 difficulty="easy" minutes=10
def cosine_lr(step, lr_peak, warmup_steps, total_steps, lr_min=0.0):
    """Return the learning rate at a step, a number.

    Args:
        step: Steps taken so far; 0, or any number above, also behind the end.
        lr_peak: The largest rate.
        warmup_steps: Length of the straight line, less than `total_steps`; may be 0.
        total_steps: Where the cosine arrives at `lr_min`.
        lr_min: The last rate, reached by the cosine itself: neither added to it nor cutting it off.
    """
    if step >= total_steps:
        return lr_min
    if step < warmup_steps:
        return lr_peak * step / warmup_steps
    behind = (step - warmup_steps) / (total_steps - warmup_steps)
    return lr_min + (lr_peak - lr_min) * (1 + math.cos(math.pi * behind)) / 2


# %% tags=["check"]
checks.cosine_lr(cosine_lr)

# %% [markdown]
# ## What keeps the weights small: decay
#
# At each step, *weight decay* takes a small share, rate times `weight_decay`, off every weight. What the gradients do
# not renew fades away. But not everything should fade. A matrix gets by with smaller numbers. The scale of a norm
# starts at 1, and decay would pull it to 0, where its column is silent; a bias is a single number that sets a level.
# So: what has two or more axes decays, what has fewer does not.
#
# ## Exercise: `parameter_groups`
#
# Torch's optimizers take a list of *groups*: dicts of parameters, under `"params"`, with settings of their own. Write
# `parameter_groups(model, weight_decay)`. It returns a list of two dicts, each with the keys `"params"` and
# `"weight_decay"`. First come the parameters that decay, those with two or more axes. Then the rest, whose decay is 0.


# %% tags=["exercise"] name="parameter_groups" points=1 difficulty="easy" minutes=10
def parameter_groups(model, weight_decay):
    """Return two groups of parameters for an optimizer: those that decay, then those that do not.

    Args:
        model: Any module. The groups hold its Parameters themselves, in lists; frozen ones (`requires_grad` is False)
            stay out and stay frozen; one that is shared is listed once.
        weight_decay: Of the first group; the second has 0.
    """
    learning = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = [p for p in learning if p.ndim >= 2], [p for p in learning if p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


# %% tags=["check"]
checks.parameter_groups(parameter_groups)

# %%
for group in parameter_groups(model, 0.1):
    print(f"decay {group['weight_decay']}: {sum(p.numel() for p in group['params']):>7,} numbers")

# %% [markdown]
# Nearly all numbers decay: the vectors are few.
#
# ## A better direction: AdamW
#
# One rate for all parameters does not fit. Some have gradients a hundred times those of others, and each batch pulls
# in another direction. *Adam* (Kingma and Ba 2015, algorithm 1) keeps two running means for every single number: $m$,
# of its gradient $g$, and $v$, of the square $g^2$. Each step is the rate times $m / \sqrt{v}$, downhill. The first
# mean smooths out the batches. The root of the second is the usual size of the gradient, and dividing by it removes
# that size. *AdamW* (Loshchilov and Hutter 2019, algorithm 2) adds weight decay, apart from the gradient. At step
# $n = 1, 2, 3, \dots$:
#
# $$\begin{aligned}
# p &\leftarrow p - \text{lr} \cdot \text{weight\_decay} \cdot p \\
# m &\leftarrow \beta_1 m + (1 - \beta_1)\, g, \qquad v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2 \\
# p &\leftarrow p - \text{lr} \cdot \frac{m / (1 - \beta_1^n)}{\sqrt{v / (1 - \beta_2^n)} + \varepsilon}
# \end{aligned}$$
#
# Both means begin at 0, so at first they are too small. The divisors $1 - \beta^n$ repair that exactly, and go to 1
# later. $\varepsilon$ keeps the quotient finite where all gradients were 0.
#
# ### Predict before you run
#
# One number, rate 0.01, betas 0.9 and 0.99, no decay. Write down your answers first:
#
# 1. The gradient is 1000 in one case, 1 in another, 0.001 in a third. How far does the *first* step go in each?
# 2. One hundred steps whose gradients are all 1. How far in all?
# 3. One hundred steps whose gradients are 1, -1, 1, -1, … How far now?


# %%
def distance(gradients):
    """Return how far a number travels from 0 under AdamW."""
    p, state = torch.zeros(1), {}
    for gradient in gradients:
        l1_ref.adamw_step(p, torch.tensor([float(gradient)]), state, 0.01, (0.9, 0.99), 1e-8, 0.0)
    return abs(p.item())


print("1.", [f"{distance([gradient]):.3f}" for gradient in (1000, 1, 0.001)])
print("2.", f"{distance([1] * 100):.2f}")
print("3.", f"{distance([1, -1] * 50):.2f}")

# %% [markdown]
# <details><summary>Why?</summary>
#
# 1. 0.01, the rate itself, each time. After one step the corrected means are $g$ and $g^2$, and $g / \sqrt{g^2}$ is 1
#    or -1, whatever the size.
# 2. 1.00. The means stay at 1, and each step has the size of the rate.
# 3. Almost nowhere. Squares do not cancel, so $v$ stays at 1, but the gradients do, so $m$ stays near 0. Where batches
#    disagree, Adam walks slowly.
#
# The first answer is the danger that we spoke of. The first step moves *every* number by the full rate, on the word of
# one batch. In `tiny` weights start with a standard deviation of 0.02, and the rate is 0.003: seven steps in one
# direction, and nothing is left of the start.
#
# </details>
#
# ## Exercise: `adamw_step`
#
# Write one step for one parameter. `state` is a dict, empty before the first step, that is handed to you again at each
# later one: keep in it what you need, under keys of your choice. Change `p` in place, inside `torch.no_grad()`, since
# it requires a gradient and must go on doing so. Leave `grad` as it is, and return nothing.


# %% tags=["exercise"] name="adamw_step" points=2 difficulty="medium" minutes=20
def adamw_step(p, grad, state, lr, betas, eps, weight_decay):
    """Take one AdamW step, in place, exactly as in the formulas above.

    Args:
        p: The parameter, of any shape.
        grad: Its gradient, of the same shape.
        state: Empty before the first step; yours to fill.
        lr: The rate of this step; it may be another one at the next.
        betas: The two betas.
        eps: Added to the root, behind the correction.
        weight_decay: Times lr, the share of p that is taken off first.
    """
    with torch.no_grad():
        m, v, n = state.get("means", (torch.zeros_like(p), torch.zeros_like(p), 0))
        m, v, n = betas[0] * m + (1 - betas[0]) * grad, betas[1] * v + (1 - betas[1]) * grad**2, n + 1
        state["means"] = m, v, n
        p -= lr * weight_decay * p
        p -= lr * (m / (1 - betas[0] ** n)) / ((v / (1 - betas[1] ** n)).sqrt() + eps)


# %% tags=["check"]
checks.adamw_step(adamw_step)

# %%
torch.manual_seed(0)
mine, theirs, state = torch.nn.Parameter(torch.ones(50)), torch.nn.Parameter(torch.ones(50)), {}
settings = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
optimizer = torch.optim.AdamW([theirs], **settings)
for _ in range(500):
    theirs.grad = torch.randn(50)
    adamw_step(mine, theirs.grad, state, **settings)
    optimizer.step()
print("after 500 steps, as torch's:", torch.allclose(mine, theirs, atol=1e-4))

# %% [markdown]
# ## What if a gradient is huge: clipping
#
# Now and then a gradient is ten times as long as usual. It would sit in both running means for many steps. So its
# length is limited (Pascanu et al. 2013, algorithm 1). Think of the gradients of *all* parameters laid end to end as
# one vector. If its length, the root of the sum of all squares, is above `max_norm`, multiply all of it by `max_norm` /
# length. The direction stays, only the length changes.
#
# ## Exercise: `clip_grad_norm`


# %% tags=["exercise"] name="clip_grad_norm" points=1 difficulty="easy" minutes=10
def clip_grad_norm(parameters, max_norm):
    """Shorten all gradients together to a joint length of at most max_norm, in place; return the length before.

    Args:
        parameters: Any iterable of them, also a generator, which can be walked through once only. Those whose `grad`
            is None are passed over. The parameters themselves stay as they are.
        max_norm: The length allowed, above 0. Gradients that are no longer than that, or all 0, stay as they are.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    length = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    if length > max_norm:
        for gradient in gradients:
            gradient *= max_norm / length
    return length


# %% tags=["check"]
checks.clip_grad_norm(clip_grad_norm)

# %% tags=["nbval-ignore-output"]
model.zero_grad()
l1_ref.cross_entropy(model(x), y).backward()
print(f"length before: {clip_grad_norm(model.parameters(), 1.0):.3f}")
print(f"and now:       {clip_grad_norm(model.parameters(), 1.0):.3f}")

# %% [markdown]
# ## Exercise: `train_step`
#
# Now all together, in this order: clear the gradients that the last step left (`backward` adds to what is there);
# forward, to the loss; `backward`; clip; let the optimizer take its step. Return the loss of this batch as it was
# *before* the step, detached from its graph, so that nothing keeps the whole pass in memory. Use the optimizer's own
# `zero_grad()` and `step()`, and the parts above: yours, or `l1_ref`'s. Leave the model in the mode in which it came.


# %% tags=["exercise"] name="train_step" points=1 difficulty="medium" minutes=10
def train_step(model, x, y, optimizer, max_norm=1.0):
    """Change the model's weights once, so that the targets become likelier; return the loss before, detached.

    Args:
        model: Maps ids (B, T) to logits (B, T, V).
        x: Input ids, (B, T).
        y: Targets, (B, T), moved on already; -100 does not count. No smoothing.
        optimizer: Holds the model's parameters.
        max_norm: Longest joint gradient allowed.
    """
    optimizer.zero_grad()
    loss = l1_ref.cross_entropy(model(x), y)
    loss.backward()
    l1_ref.clip_grad_norm(model.parameters(), max_norm)
    optimizer.step()
    return loss.detach()


# %% tags=["check"]
checks.train_step(train_step)

# %% [markdown]
# ## The first test: one batch
#
# Before engineers let a model see a whole corpus, they train it on *one batch*, over and over. It should learn it by
# heart within seconds. If it cannot, something is broken, and no amount of text will help.
#
# Even here there is a floor. All four rows begin with the same end-of-text token, and what comes next differs.
# `batch_floor` gives the loss of a reader who knows the batch by heart but must guess wherever equal beginnings go on
# differently.


# %%
def batch_floor(x, y):
    """Return the lowest loss that anyone can have on a batch: nats a token, where equal beginnings differ later."""
    followers = collections.defaultdict(collections.Counter)
    for row, targets in zip(x.tolist(), y.tolist(), strict=True):
        for position, target in enumerate(targets):
            followers[tuple(row[: position + 1])][target] += 1
    nats = [-n * math.log(n / found.total()) for found in followers.values() for n in found.values()]
    return sum(nats) / y.numel()


print(f"floor of the batch: {batch_floor(x, y):.3f} nats")

# %% tags=["nbval-ignore-output"]
torch.manual_seed(0)
model = l1_ref.L1Model(tiny)
optimizer = torch.optim.AdamW(l1_ref.parameter_groups(model, 0.1), lr=3e-3, betas=(0.9, 0.99))
losses = [float(train_step(model, x, y, optimizer)) for _ in range(60)]
lowest = batch_floor(x, y)
alt = f"Log chart: on one batch the loss falls from {losses[0]:.1f} to {losses[-1]:.3f} in {len(losses)} steps; "
plots.show(plots.training_runs({"one batch": [losses]}, lowest, log=True), alt=f"{alt}its floor is {lowest:.3f}.")

# %% [markdown]
# It begins near $\ln 1000 = 6.9$ and ends almost at the floor. A loss that stays high here is a bug in the model, the
# targets or the step. And had it gone *below* the floor, the model would be seeing the answers: that is how a missing
# causal mask looks.
#
# ## Bug hunt: a mean of means
#
# A training loss says how well the model does on what it is just learning. To know what it makes of new tales, measure
# the loss on some batches from the validation part, with dropout off (`model.eval()`) and no gradients. This function
# is meant to do so.


# %% tags=["nbval-ignore-output"]
def broken(model, batches):
    """Return the mean loss over all targets of some batches."""
    model.eval()
    with torch.no_grad():
        losses = [l1_ref.cross_entropy(model(x), y) for x, y in batches]
    return sum(losses).item() / len(losses)


whole, other = corpus.validation_batches(128, 16)[:2]
batches = [whole, (other[0][:2, :6], other[1][:2, :6])]  # whole tales, then the beginnings of two
sizes = [(targets != -100).sum().item() for _, targets in batches]
model.train()
print(f"{sizes[0]} targets, then {sizes[1]}")
print(f"broken: {broken(trained, batches):.2f} nats a token, where each target counted once gives", end=" ")
print(f"{l1_ref.evaluate(trained, batches):.2f}")
broken(model, batches)
print("the model came in training mode, and is in it now:", model.training)

# %% [markdown]
# Two bugs. How much does one target of the small batch weigh, how much one of the large? And what becomes of dropout in
# the steps that follow? Write the mended version, `mean_loss(model, batches)`.


# %% tags=["exercise"] name="mean_loss" points=1 difficulty="medium" minutes=10
def mean_loss(model, batches):
    """Return the mean loss over all targets of some batches, in nats a token, as a float.

    The model is judged in eval mode and without gradients, and afterwards is in the mode in which it came.

    Args:
        model: Maps ids to logits.
        batches: Pairs (x, y) of any sizes. Targets of -100 do not count; a batch may hold no others, and then has no
            say. In one batch at least there is a target.
    """
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for x, y in batches:
            n = (y != -100).sum().item()
            total += l1_ref.cross_entropy(model(x), y).item() * n if n else 0.0
            count += n
    model.train(was_training)
    return total / count


# %% tags=["check"]
checks.mean_loss(mean_loss)

# %% tags=["nbval-ignore-output"]
print(f"mended: {mean_loss(trained, batches):.2f} nats a token")

# %% [markdown]
# ## Towards the floor
#
# All pieces are there. `l1_ref.train` is the loop around them: draw a batch, set the rate, take a step, evaluate now
# and then. (It also keeps checkpoints, and goes on exactly where it was stopped.) Here `tiny` learns from the tales, in
# a short run. The floor is computed from the grammar that wrote the tales: their exact cost, divided by the number of
# tokens.

# %% tags=["nbval-ignore-output"]
n_tokens = sum(len(tokenizer.encode(tale)) + 1 for tale in tales["validation"])  # + 1: the end of a tale
floor = l1_ref.entropy_floor(tales["validation"], n_tokens)
torch.manual_seed(0)
model = l1_ref.L1Model(tiny)
config = l1_ref.TrainingConfig(steps=STEPS, batch_size=6, betas=(0.9, 0.95), evaluate_every=50)
short = l1_ref.train(model, corpus, config, floor=floor, progress=False)
loss = short["validation_loss"]
alt = f"Line chart: in {STEPS} steps the validation loss falls from {short['curve'][0]['validation_loss']:.1f} to "
plots.show(plots.loss_curve(short["curve"], floor, "a short run"), alt=f"{alt}{loss:.2f}; the floor is {floor:.2f}.")
for name, found in {"here": short, "the full run": metrics}.items():
    loss, size = found["validation_loss"], f"{found['steps']:>5,} steps, {found['tokens']:>9,} tokens"
    print(f"{name:<13} {size}: loss {loss:.3f}, {loss / floor:.2f} times the floor")

# %% [markdown]
# The training line lies above the other, since each of its points is the mean of the 50 steps before it: losses of
# earlier, worse models.
#
# The second line printed is the run that made `data/tiny`, with the same code. What can a model do after so few steps?
# Let it tell a tale.

# %% tags=["nbval-ignore-output"]
beginning = torch.tensor([[tokenizer.end_of_text, *tokenizer.encode("Near the little well lived")]])
chance = torch.Generator().manual_seed(1)
ids = l1_ref.generate(model, beginning, 70, temperature=0.7, generator=chance)
print(*plots.wrapped(tokenizer.decode(ids[0, 1:].tolist())), sep="")

# %% [markdown]
# It has the words of the tales, and stretches of their sentences. Now read it for sense: who did what, with which
# thing, and does it stay so to the end?
#
# ## Do warm-up and clipping matter?
#
# Do not believe it: try it. Four kinds of short runs at the course's own rate, 0.003, three seeds each: with both,
# without one, without the other, without either. Guess the order before you look.


# %%
def short_run(seed, warmup_steps, max_norm, lr_peak=3e-3, n_steps=60):
    """Train a tiny model briefly; return its losses, and the length of its gradient before clipping, by step."""
    torch.manual_seed(seed)
    model, chance = l1_ref.L1Model(tiny), torch.Generator().manual_seed(seed)
    optimizer = l1_ref.build_optimizer(model, lr_peak)  # torch's AdamW over your two groups
    losses, lengths = [], []
    for step in range(n_steps):
        for group in optimizer.param_groups:
            group["lr"] = l1_ref.cosine_lr(step + 1, lr_peak, warmup_steps, n_steps + 1)  # + 1: no step with rate 0
        x, y = corpus.batch(4, 64, chance)
        optimizer.zero_grad()
        loss = l1_ref.cross_entropy(model(x), y)
        loss.backward()
        lengths.append(l1_ref.clip_grad_norm(model.parameters(), max_norm).item())
        optimizer.step()
        losses.append(loss.item())
    return losses, lengths


# %% tags=["nbval-ignore-output"]
KINDS = {"both": (20, 1.0), "no warm-up": (0, 1.0), "no clipping": (20, math.inf), "neither": (0, math.inf)}
runs = {name: [short_run(seed, *kind) for seed in range(3)] for name, kind in KINDS.items()}
ends = {name: [sum(losses[-10:]) / 10 for losses, _ in each] for name, each in runs.items()}
told = "; ".join(f"{name}: {', '.join(f'{end:.2f}' for end in found)}" for name, found in ends.items())
curves = {name: [losses for losses, _ in each] for name, each in runs.items()}
figure = plots.training_runs(curves, title="rate 0.003, three seeds each (thin) and their mean (thick)")
plots.show(figure, alt=f"Line chart. Mean loss of the last ten steps, three seeds each: {told}.")

# %% [markdown]
# With both, all three seeds end close together, and lowest. Without either, all three end far above. Without clipping,
# it is a matter of luck: one seed loses almost nothing, another a lot.
#
# Nothing explodes, and that is what makes it treacherous: you see a slow run, and no error. Without warm-up the loss
# even falls *faster* at first. It is a false start: half-way through, the careful runs have overtaken. Remember the
# first prediction: each early step moves every number by the full rate, on the word of a batch or two.
#
# What happens to an unlucky seed? Here is the run without clipping that met the longest gradient of all, beside the
# clipped run of the same seed.

# %% tags=["nbval-ignore-output"]
unlucky = max(range(3), key=lambda seed: max(runs["no clipping"][seed][1]))
pair = {name: runs[name][unlucky] for name in ("both", "no clipping")}
lengths = pair["no clipping"][1]
longest, median = max(lengths), sorted(lengths)[len(lengths) // 2]
told = (
    f"without clipping the longest gradient is {longest:.1f}, at step {lengths.index(longest) + 1}, the median "
    f"{median:.1f}. With clipping the longest is {max(pair['both'][1]):.1f}. Mean loss of the last ten steps: "
)
told += ", ".join(f"{name} {ends[name][unlucky]:.2f}" for name in pair)
plots.show(plots.gradient_norms(pair, 1.0), alt=f"Two charts of seed {unlucky}: {told}.")

# %% [markdown]
# The two runs part where the long gradients come, and the one without clipping stays behind to the end. With clipping
# the gradient is longer than `max_norm` nearly all the time, so nearly *every* one is shortened. For AdamW that is
# harmless: it divides by the usual size, so a factor that stays nearly the same falls out. What clipping changes are
# the spikes.
#
# What these runs do not show: that it must be so at every rate and size. At a third of the rate the four kinds end
# close together, and all of them far above the fast runs with both. What the two buy, here, is the fast rate. Large
# models are trained with the same parts: GPT-3 had Adam with betas 0.9 and 0.95, clipping at 1.0, a warm-up, a cosine
# down to a tenth of the peak, and a weight decay of 0.1 (Brown et al. 2020, appendix B).
#
# ## What you have now
#
# | idea | in the reference |
# |---|---|
# | the loss, and its exponential | `l1_ref.cross_entropy`, `l1_ref.perplexity`, in `l1_ref/loss.py` |
# | the rate at each step | `l1_ref.cosine_lr`, in `l1_ref/optimization.py` |
# | what decays | `l1_ref.parameter_groups`, in `l1_ref/optimization.py` |
# | AdamW, and clipping | `l1_ref.adamw_step`, `l1_ref.clip_grad_norm`, in `l1_ref/optimization.py` |
# | one step, and evaluation | `l1_ref.train_step`, `l1_ref.evaluate`, in `l1_ref/steps.py` |
# | the whole loop | `l1_ref.train`, in `l1_ref/training.py` |
#
# - A token costs $-\ln p$. Average over tokens, never over means, and leave padding out.
# - For AdamW the size of a gradient hardly matters. Whether the gradients of many batches agree does.
# - First overfit one batch. Then look where the floor is.
#
# Next is 07, efficiency: the same step in less memory and less time.

# %%
checks.progress()
