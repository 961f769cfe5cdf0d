"""What training and importing cost: peak memory beside transformers and litgpt, each in a process of its own."""

import json
import os
import statistics
import subprocess
import sys

PEERS = ("L1", "transformers", "litgpt")
BATCH_SIZE, STEPS = 2, 2
MEASURE = """
import dataclasses, json, resource, sys
import psutil
import torch
from l1_ref import L1Config
from tests.bench import litgpt_model, training_step, transformers_model
from l1_ref import L1Model

name, checkpointing, dropout, batch_size, steps, device = json.loads(sys.argv[1])
config = dataclasses.replace(L1Config.preset("small"), dropout=dropout)
torch.manual_seed(0)
model = {"L1": L1Model, "transformers": transformers_model, "litgpt": litgpt_model}[name](config).to(device)
if checkpointing and name == "L1":
    model.checkpointing = True
elif checkpointing and name == "transformers":
    model.gradient_checkpointing_enable({"use_reentrant": False})
elif checkpointing:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
    from litgpt.model import Block
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, Block))
step = training_step(model, device)
ids = torch.randint(config.vocab_size, (batch_size, config.max_seq_length + 1), device=device)
x, y = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
before = psutil.Process().memory_info().rss  # now, not at its highest: imports took more for a moment
for _ in range(steps):
    step(x, y)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
weights = sum(p.nbytes for p in model.parameters())
peak = torch.cuda.max_memory_allocated() if device == "cuda" else after - before + weights
print(json.dumps(peak))
"""
IMPORT = "import time, torch; begin = time.perf_counter(); import {}; print(time.perf_counter() - begin)"
IMPORTS = {
    "l1_ref": "l1_ref",
    "model, training and generation": "l1_ref.training, l1_ref.generation",
    "the checks": "l1_ref.checks",
}


def in_a_process(*arguments: str) -> str:
    """Run Python with these arguments and return what it prints."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, env=environment)
    return done.stdout


def peak_bytes(name: str, checkpointing: bool, dropout: float, device: str) -> int:
    """Return the most memory that two training steps of `small` took: weights, gradients, moments, activations."""
    settings = json.dumps([name, checkpointing, dropout, BATCH_SIZE, STEPS, device])
    return json.loads(in_a_process("-c", MEASURE, settings).splitlines()[-1])


def import_s(modules: str, times: int) -> float:
    """Return the median seconds that an import adds once torch is there."""
    return statistics.median(float(in_a_process("-c", IMPORT.format(modules))) for _ in range(times))


def run(device: str, quick: bool) -> dict:
    """Measure and print; litgpt has no dropout."""
    peaks = {}
    print(f"\n{f'peak memory of training small, batch {BATCH_SIZE}':44}{'plain':>12}{'checkpointed':>14}{'ratio':>8}")
    for dropout in (0.1, 0.0):
        for name in PEERS if dropout == 0 else PEERS[:2]:
            plain, checkpointed = (peak_bytes(name, on, dropout, device) for on in (False, True))
            title = f"{name}, dropout {dropout}"
            megabytes = f"{plain / 2**20:>8,.0f} MiB{checkpointed / 2**20:>10,.0f} MiB"
            print(f"{title:44}{megabytes}{checkpointed / plain:8.0%}", flush=True)
            peaks[title] = {"plain": plain, "checkpointed": checkpointed}
    imports = {name: import_s(modules, 3 if quick else 7) for name, modules in IMPORTS.items()}
    print("\nimports, seconds added to torch's: " + ", ".join(f"{name} {s:.3f}" for name, s in imports.items()))
    return {"peak_bytes": peaks, "import_s": imports}
