"""Generation beside transformers and litgpt: one row, a batch, a long text, and weights in fewer bits."""

import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from l1_ref import DATA_DIR, L1Config, evaluate, load_run, store_for_generation
from l1_ref.data import make_document_corpus
from l1_ref.linear import STORED_AS
from l1_ref.tales import load_tales
from tests.bench import Turn, build_models, measure, show, summary, timed

PROMPT_TOKENS = 16


@dataclass(frozen=True)
class Task:
    """One generation workload, greedy, each library with its own cache."""

    name: str
    config: L1Config
    batch_size: int
    new_tokens: int


def tasks(quick: bool) -> list[Task]:
    """Return the workloads: GPT-2 small for one row and for eight, and a thousand tokens of a tiny model."""
    small, tiny = L1Config(dropout=0.0), replace(L1Config.preset("tiny"), dropout=0.0, max_seq_length=1024)
    new = 16 if quick else 64
    return [
        Task("124M, batch 1", small, 1, new),
        Task("124M, batch 8", small, 8, new),
        Task("tiny with context 1024, batch 1", tiny, 1, 1000),
    ]


def copy_rate(device: str) -> Turn:
    """Measure a large copy, bytes/s read and written."""
    source = torch.ones(2**26, device=device)  # 256 MiB, beyond any cache
    target = torch.empty_like(source)
    return lambda: timed(lambda: target.copy_(source), 2 * source.nbytes, device)


def sum_rate(device: str) -> Turn:
    """Measure a large sum, bytes/s read: the most that the memory gives."""
    numbers = torch.ones(2**26, device=device)
    return lambda: timed(lambda: numbers.sum(), numbers.nbytes, device)


def read_rate(device: str) -> Turn:
    """Measure a large matrix by a vector, bytes/s read: what generating one token is made of."""
    matrix, vector = torch.ones(2**15, 2**11, device=device), torch.ones(2**11, device=device)
    return lambda: timed(lambda: matrix @ vector, matrix.nbytes, device)


def peers_ways(models: dict[str, nn.Module], prompt: Tensor, new_tokens: int, device: str) -> dict[str, Callable]:
    """Return how each library continues the prompt; litgpt's function takes one row alone."""
    from litgpt.generate.base import generate as litgpt_generate

    ours, theirs, litgpt = models.values()
    length = prompt.shape[1] + new_tokens
    options = {"do_sample": False, "use_cache": True, "pad_token_id": 0, "attention_mask": torch.ones_like(prompt)}
    ways: dict[str, Callable] = {
        "L1": lambda: ours.generate(prompt, max_new_tokens=new_tokens, do_sample=False),
        "transformers": lambda: theirs.generate(prompt, max_new_tokens=new_tokens, **options),
    }
    if len(prompt) == 1:
        litgpt.max_seq_length = length
        litgpt.set_kv_cache(batch_size=1, device=torch.device(device))
        ways["litgpt"] = lambda: litgpt_generate(litgpt, prompt[0], length, temperature=0.0)
    return ways


def bench(task: Task, device: str, rounds: int) -> dict:
    """Measure new tokens/s of the whole batch, L1 in float32 as stored for such a batch, and in fewer bits."""
    torch.manual_seed(0)
    models = {name: model.eval() for name, model in build_models(task.config, device).items()}
    prompt = torch.randint(task.config.vocab_size, (task.batch_size, PROMPT_TOKENS), device=device)
    few_bits = {name: store_for_generation(copy.deepcopy(models["L1"]), name) for name in ("bfloat16", "int8")}
    store_for_generation(models["L1"], batch_size=task.batch_size)
    ways = peers_ways(models, prompt, task.new_tokens, device)
    texts = {name: way() for name, way in ways.items()}
    assert all(text.numel() == task.batch_size * (PROMPT_TOKENS + task.new_tokens) for text in texts.values())
    # Two libraries round differently, so at a tie an untrained model may take the other token; most rows agree.
    same = (texts["L1"][:, : PROMPT_TOKENS + 8] == texts["transformers"][:, : PROMPT_TOKENS + 8]).all(1)
    assert same.float().mean() >= 0.5, "equal weights must write the same text"
    for name, model in few_bits.items():
        ways[name] = partial(model.generate, prompt, max_new_tokens=task.new_tokens, do_sample=False)
    new = task.batch_size * task.new_tokens
    turns = {name: partial(timed, way, new, device) for name, way in ways.items()}
    rates = measure(turns | {"sum": sum_rate(device), "copy": copy_rate(device), "read": read_rate(device)}, rounds)
    result = {"name": f"{task.name}, {PROMPT_TOKENS} + {task.new_tokens} tokens"} | summary(rates)
    weights = sum(p.nbytes for p in models["L1"].parameters()) - models["L1"].embedding.position.weight.nbytes
    used = result["median"]["L1"] / task.batch_size * weights
    best = [
        max(of_round) for of_round in zip(*(rates[peer] for peer in result["ratio"]), strict=True)
    ]  # peer, by round
    result["few_bits"] = {
        name: statistics.median(rate / peer for rate, peer in zip(rates[name], best, strict=True)) for name in few_bits
    }
    return result | {"share_of_bandwidth": used / max(result["median"][name] for name in ("read", "sum", "copy"))}


def quality() -> dict[str, float]:
    """Return the loss of the trained tiny model on validation tales, nats a token, by how its weights are stored."""
    run = load_run(DATA_DIR / "tiny")
    corpus = make_document_corpus(load_tales("train")[:1], load_tales("validation"), run.tokenizer)
    batches = corpus.validation_batches(run.model.config.max_seq_length, 16)
    return {
        stored_as: evaluate(store_for_generation(copy.deepcopy(run.model), stored_as), batches)
        for stored_as in STORED_AS
    }


def run(device: str, rounds: int, quick: bool, title: str) -> dict:
    """Measure all workloads and print them."""
    results = [bench(task, device, rounds) for task in tasks(quick)]
    show(f"generation, new tokens/s, {title}", results)
    for result in results:
        copied, read, summed = (result["median"][name] / 1e9 for name in ("copy", "read", "sum"))
        few = ", ".join(f"{name} {ratio:.2f} times the best peer" for name, ratio in result["few_bits"].items())
        print(
            f"    {result['name']}: weights read at {result['share_of_bandwidth']:.0%} of the memory's rate "
            f"(a matrix by a vector {read:.1f} GB/s, a sum {summed:.1f}, a copy {copied:.1f}); {few}"
        )
    losses = quality()
    told = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
    print(f"    loss of the trained tiny model on tales, nats a token: {told}", flush=True)
    return {"tasks": results, "loss": losses}
