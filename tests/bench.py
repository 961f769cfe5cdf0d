"""How fast L1 trains and generates beside transformers' GPT-2 and litgpt's GPT, and beside what this machine can do.

    make bench                                   or, with the `bench` extra installed:
    python -m tests.bench [--quick] [--only training|generation|costs] [--json FILE] [--threads N] [--device cpu|cuda]

Everything is measured in turns (L1, transformers, litgpt, the machine, L1, …), so that a slow minute of the machine
falls on all of them. A figure is the median of its turns; a ratio is the median over rounds of L1's rate by the peer's
rate in the same round; above 1 L1 is faster. All three train with the same batches, the same loss, clipping at 1.0 and
fused AdamW, in float32 on a CPU and in bfloat16 autocast on CUDA, with dropout 0 and tied weights. L1 and transformers
hold equal weights, and no clock starts before they agree on the loss. litgpt has no learned positions: it gets rotary
ones, on a quarter of each head (its default), and is otherwise GPT-2's design.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers reads it

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l1_ref import (
    L1Config,
    L1Model,
    amp_train_step,
    build_optimizer,
    count_parameters,
    from_gpt2,
    train_step,
)
from l1_ref.files import write_json
from l1_ref.memory import flops_per_token

LR, BETAS, WEIGHT_DECAY, MAX_NORM = 1e-4, (0.9, 0.99), 0.1, 1.0
COLUMNS = {"L1": 10, "transformers": 14, "litgpt": 10}  # of the printed table, and their widths
# Dense bfloat16 TFLOP/s by the makers' data sheets; the first name found in the device's name counts.
CUDA_PEAK_TFLOPS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "RTX 4090": 165}

Turn = Callable[[], float]  # runs once and returns its rate


@dataclass(frozen=True)
class Size:
    """One training workload: a model, a batch of sequences as long as its context."""

    name: str
    config: L1Config
    batch_size: int


def sizes(device: str) -> list[Size]:
    """Return the workloads: three small ones everywhere, GPT-2 small too where there is a GPU."""
    chosen = [
        Size("4 layers x 128, context 64, batch 12", L1Config(65, 64, 4, 4, 128, dropout=0.0), 12),
        Size("tiny, context 128, batch 16", replace(L1Config.preset("tiny"), dropout=0.0), 16),
        Size("6 layers x 384, context 256, batch 8", L1Config(8192, 256, 6, 6, 384, dropout=0.0), 8),
    ]
    return chosen + [Size("GPT-2 small, context 1024, batch 8", L1Config(dropout=0.0), 8)] * (device == "cuda")


def transformers_model(config: L1Config) -> nn.Module:
    """Build transformers' GPT-2 of the same shape, with its fused attention."""
    from transformers import GPT2Config, GPT2LMHeadModel

    theirs = GPT2Config(
        vocab_size=config.vocab_size,
        n_positions=config.max_seq_length,
        n_embd=config.n_embd,
        n_layer=config.n_layers,
        n_head=config.n_heads,
        n_inner=config.n_inner,
        resid_pdrop=config.dropout,
        embd_pdrop=config.dropout,
        attn_pdrop=config.dropout,
        attn_implementation="sdpa",
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(theirs)


def litgpt_model(config: L1Config) -> nn.Module:
    """Build litgpt's GPT as close to GPT-2 as its options allow: rotary positions are what remains."""
    from litgpt import GPT, Config

    theirs = Config(
        block_size=config.max_seq_length,
        n_layer=config.n_layers,
        n_embd=config.n_embd,
        n_head=config.n_heads,
        vocab_size=config.vocab_size,
        padded_vocab_size=config.vocab_size,
        intermediate_size=config.n_inner,
        norm_class_name="LayerNorm",
        mlp_class_name="GptNeoxMLP",
        gelu_approximate="tanh",
        parallel_residual=False,
        bias=True,
        attn_bias=True,
    )
    model = GPT(theirs)
    model.apply(model._init_weights)
    model.lm_head.weight = model.transformer.wte.weight
    return model


def build_models(config: L1Config, device: str) -> dict[str, nn.Module]:
    """Build the three models and make sure that they are the same work; L1 gets transformers' weights."""
    theirs = transformers_model(config)
    ours = from_gpt2(theirs.state_dict(), config.n_heads, dropout=config.dropout)
    models = {"L1": ours, "transformers": theirs, "litgpt": litgpt_model(config)}
    counts = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    positions = config.max_seq_length * config.n_embd  # litgpt's rotary positions have no parameters
    assert counts["L1"] == counts["transformers"] == counts["litgpt"] + positions == count_parameters(config), counts
    models = {name: model.to(device) for name, model in models.items()}
    ids = torch.randint(config.vocab_size, (2, config.max_seq_length), device=device)
    with torch.no_grad():
        ours, theirs = (F.cross_entropy(logits(models[n], ids)[0], ids[0]).item() for n in ("L1", "transformers"))
    assert abs(ours - theirs) < 1e-4 * theirs, f"equal weights must have equal losses, got {ours} and {theirs}"
    return models


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    """Return a model's scores, whichever library it is from."""
    return model(ids) if not hasattr(model, "generation_config") else model(ids, use_cache=False).logits


def training_step(model: nn.Module, device: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a step of L1's own, or the same step for a peer."""
    optimizer = build_optimizer(model.train(), LR, BETAS, WEIGHT_DECAY)
    if isinstance(model, L1Model):
        if device == "cpu":
            return lambda x, y: train_step(model, x, y, optimizer, MAX_NORM)
        off = torch.amp.GradScaler(enabled=False)  # bfloat16 needs no loss scaling
        return lambda x, y: amp_train_step(model, x, y, optimizer, off, torch.bfloat16, MAX_NORM)

    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            loss = F.cross_entropy(logits(model, x).flatten(0, 1), y.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        return loss.detach()

    return step


def timed(work: Callable[[], object], amount: float, device: str) -> float:
    """Run some work and return its amount per second."""
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return amount / (time.perf_counter() - begin)


def measure(turns: dict[str, Turn], rounds: int) -> dict[str, list[float]]:
    """Let everyone take a turn, round after round; the first round only warms up."""
    rates = [{name: turn() for name, turn in turns.items()} for _ in range(rounds + 1)][1:]
    return {name: [rate[name] for rate in rates] for name in turns}


def summary(rates: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Return medians, and the medians of L1's ratios to its peers within each round."""
    peers = [name for name in ("transformers", "litgpt") if name in rates]
    ratios = {name: [ours / peer for ours, peer in zip(rates["L1"], rates[name], strict=True)] for name in peers}
    return {
        "median": {name: statistics.median(values) for name, values in rates.items()},
        "ratio": {name: statistics.median(values) for name, values in ratios.items()},
        "ratio_low": {name: min(values) for name, values in ratios.items()},
        "ratio_high": {name: max(values) for name, values in ratios.items()},
    }


def matmul_rate(device: str) -> Turn:
    """Measure matrix products, FLOP/s: what training is made of. float32 on a CPU, bfloat16 on CUDA."""
    n, times = (1024, 20) if device == "cpu" else (8192, 20)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    out = torch.empty_like(a)
    return lambda: timed(lambda: [torch.mm(a, b, out=out) for _ in range(times)], times * 2 * n**3, device)


def bench_training(size: Size, device: str, rounds: int, turn_s: float) -> dict:
    """Measure training, tokens/s."""
    torch.manual_seed(0)
    shape = (size.batch_size, size.config.max_seq_length)
    ids = torch.randint(size.config.vocab_size, (shape[0], shape[1] + 1), device=device)
    x, y = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    steps = {name: training_step(model, device) for name, model in build_models(size.config, device).items()}
    warm = [timed(lambda: steps["L1"](x, y), 1, device) for _ in range(3)]
    times = max(2, round(turn_s * warm[-1]))
    tokens = times * x.numel()

    def repeat(step: Callable) -> None:
        for _ in range(times):
            step(x, y)

    turns = {name: partial(timed, partial(repeat, step), tokens, device) for name, step in steps.items()}
    rates = measure(turns | {"matmul": matmul_rate(device)}, rounds)
    result = {"name": size.name, "flops_per_token": flops_per_token(size.config)} | summary(rates)
    used = result["median"]["L1"] * result["flops_per_token"]
    result["share_of_matmul"] = used / result["median"]["matmul"]
    if device == "cuda":
        found = [peak for name, peak in CUDA_PEAK_TFLOPS.items() if name in torch.cuda.get_device_name()]
        result["share_of_peak"] = used / (found[0] * 1e12) if found else None
    return result


def show(title: str, results: list[dict]) -> None:
    """Print one table: rates, then L1's ratio to each peer with its range."""
    print(f"\n{title:44}{'L1':>10}{'transformers':>14}{'litgpt':>10}   {'L1 / transformers':22}L1 / litgpt")
    for result in results:
        median, low, high = result["median"], result["ratio_low"], result["ratio_high"]
        digits = ".0f" if median["L1"] >= 100 else ".1f"
        rates = "".join(f"{median[n]:{w},{digits}}" if n in median else " " * w for n, w in COLUMNS.items())
        ratios = [f"{ratio:.2f} ({low[name]:.2f} to {high[name]:.2f})" for name, ratio in result["ratio"].items()]
        print(f"{result['name']:44}{rates}   {''.join(f'{ratio:22}' for ratio in ratios)}", flush=True)


def show_share(result: dict) -> None:
    """Print how much of this machine's matrix products a training step reaches."""
    peak = result.get("share_of_peak")
    of_peak = f", {peak:.1%} of the device's peak" if peak else ""
    rate = result["median"]["matmul"] / 1e9
    print(f"    matrix products of the same rounds {rate:,.0f} GFLOP/s; L1 {result['share_of_matmul']:.0%}{of_peak}")


def about(device: str) -> dict:
    """Return what the figures depend on."""
    names = ("torch", "transformers", "litgpt")
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "system": platform.platform(),
        "dtype": "float32" if device == "cpu" else "bfloat16 autocast in training, float32 in generation",
    } | {name: version(name) for name in names}


def main() -> None:
    """Measure, print, and write JSON where asked."""
    from tests import bench_costs, bench_generation

    parser = argparse.ArgumentParser(description="L1's speed beside transformers and litgpt")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns: a few minutes")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--threads", type=int, nargs="*", help="CPU threads; one, and torch's choice, where not given")
    parser.add_argument("--only", choices=("training", "generation", "costs"), help="one part alone")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    most = torch.get_num_threads()
    threads = options.threads or (sorted({1, most}) if options.device == "cpu" else [most])
    rounds, turn_s = (3, 0.5) if options.quick else (9, 2.0)
    results: dict = {"about": about(options.device), "rounds": rounds}
    print("\n".join(f"{name:14}{value}" for name, value in results["about"].items()), flush=True)
    for n in threads:
        torch.set_num_threads(n)
        title = f"{n} thread{'s' * (n > 1)}"
        if options.only in (None, "training"):
            training = [bench_training(size, options.device, rounds, turn_s) for size in sizes(options.device)]
            show(f"training, tokens/s, {title}", training)
            for result in training:
                show_share(result)
            results[f"training, {title}"] = training
        if options.only in (None, "generation"):
            results[f"generation, {title}"] = bench_generation.run(options.device, rounds, options.quick, title)
    torch.set_num_threads(most)
    if options.only in (None, "costs"):
        results["costs"] = bench_costs.run(options.device, options.quick)
    if options.json:
        write_json(options.json, results)


if __name__ == "__main__":
    main()
