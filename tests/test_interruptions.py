"""Runs that are killed, stopped, starved of disk or blown up: what is left is whole, and goes on to the same weights.

`l1` itself is struck, in forks of one process (`tests/forked.py`), at moments that are numbered or drawn from a seed.
"""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import pytest
import torch

from l1_ref.checkpoint import CHECKPOINT_FILE, read_checkpoint_state
from l1_ref.config import L1Config
from l1_ref.data import make_corpus
from l1_ref.runs import RunSpec, train_run
from l1_ref.tokenizer import CharTokenizer
from l1_ref.training import TrainingConfig, train
from l1_ref.transformer import L1Model
from l1_ref.weights import read_tensors

ROOT = Path(__file__).parents[1]
TEXT = "the cat sat on the mat, and the dog sat on the log.\n" * 40
SETTINGS = [
    "--set", "n_layers=1", "n_heads=2", "n_embd=16", "max_seq_length=16", "dropout=0.1", "--batch-size", "2",
    "--steps", "8", "--save-every", "2", "--evaluate-every", "3",
]  # fmt: skip
RUN_FILES = [
    ".lock", "checkpoint.safetensors", "config.json", "loss.png", "metrics.json", "model.safetensors", "run.json",
    "tokenizer.json",
]  # fmt: skip
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not fork a process with torch safely")


class Forked:
    """The command `l1` in one folder, struck where a test says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "cats.txt").write_text(TEXT)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked", str(folder / "errors.txt")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment(),
        )  # fmt: skip

    def __call__(
        self, *arguments, at=None, signals=(), limit=None, delay=None, powerless=False, ignored=None
    ) -> tuple[int, str]:
        """Return status and standard error of `l1 ARGUMENTS`.

        Args:
            arguments: Of the command.
            at: The number of the moment, of all at which it changes a file, at which it is struck.
            signals: What it gets then, and at the moments after.
            limit: Largest size of a file from then on, in bytes.
            delay: Seconds after which it is killed.
            powerless: Whether root gives up its power to write anywhere.
            ignored: A signal that it ignores from the beginning.
        """
        command = {
            "arguments": [str(argument) for argument in arguments], "folder": str(self.folder), "at": at,
            "signals": list(map(int, signals)), "limit": limit, "delay": delay, "powerless": powerless,
            "ignored": ignored,
        }  # fmt: skip
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["status"], answer["errors"]

    def attempt(self, name: str, **strike) -> tuple[int, str]:
        """Begin a run, or go on with one that was begun, as a person would."""
        begun = (self.folder / name / "run.json").exists()
        return self("train", *(["--resume"] if begun else ["cats.txt", *SETTINGS]), "--out", name, **strike)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def l1(tmp_path_factory):
    """Return the command in a folder that holds `whole`, a run that nothing disturbed."""
    forked = Forked(tmp_path_factory.mktemp("forked"))
    status, errors = forked.attempt("whole")
    assert status == 0, errors
    yield forked
    forked.process.stdin.close()
    forked.process.wait()
    forked.process.stdout.close()


def assert_as_undisturbed(folder: Path, whole: Path) -> None:
    """Hold a finished run against another one, bit by bit: weights, moments and curve; and nothing else is left."""
    # On Windows what a killed process left is removed when it is an hour old.
    found = sorted(path.name for path in folder.iterdir() if os.name != "nt" or path.suffix != ".tmp")
    assert found == RUN_FILES
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    ours, theirs = (read_tensors(each / CHECKPOINT_FILE)[0] for each in (folder, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    ours, theirs = (json.loads((each / "metrics.json").read_text()) for each in (folder, whole))
    assert ours["curve"] == theirs["curve"]


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")] if folder.exists() else []


@on_linux
def test_a_run_killed_at_each_change_of_a_file_ends_with_the_same_weights(l1):
    most_left = 0
    for moment in count(1):  # the later the moment, the farther each attempt comes
        status, errors = l1.attempt("killed", at=moment, signals=[signal.SIGKILL])
        if status != -signal.SIGKILL:
            break
        most_left = max(most_left, len(leftovers(l1.folder / "killed")))
    assert (status, "Traceback" in errors) == (0, False), errors
    assert moment > 20 and most_left == 1  # what a killed attempt leaves, the next one clears away
    assert_as_undisturbed(l1.folder / "killed", l1.folder / "whole")


@on_linux
def test_a_run_killed_at_random_moments_ends_with_the_same_weights(l1):
    chance = random.Random(0)
    statuses = [l1.attempt("chance", delay=chance.uniform(0.05, 0.5))[0] for _ in range(15)]
    assert set(statuses) <= {0, -signal.SIGKILL}
    status, errors = l1.attempt("chance")
    assert status == 0, errors
    assert_as_undisturbed(l1.folder / "chance", l1.folder / "whole")


@on_linux
def test_what_is_missing_after_the_last_checkpoint_is_made_good(l1):
    for name in ("metrics.json", "loss.png", "model.safetensors", CHECKPOINT_FILE):  # each time one more
        folder = l1.folder / f"without {name}"
        shutil.copytree(l1.folder / "whole", folder)
        for missing in ("metrics.json", "loss.png", "model.safetensors", CHECKPOINT_FILE):
            (folder / missing).unlink()
            if missing == name:
                break
        status, errors = l1.attempt(folder.name)
        assert status == 0, errors
        assert_as_undisturbed(folder, l1.folder / "whole")


@on_linux
@pytest.mark.parametrize("signal_name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_at_any_moment_is_answered_with_where_the_run_stopped(l1, signal_name):
    name, number = f"stopped by {signal_name}", getattr(signal, signal_name)
    folder, statuses = l1.folder / name, []
    for moment in range(1, 100, 4):
        twice = moment % 8 == 1  # and once more while it stops
        status, errors = l1.attempt(name, at=moment, signals=[number, number] if twice else [number])
        statuses.append(status)
        if status == 0:
            break
        assert status == 130, errors
        assert "stopped" in errors and "Traceback" not in errors
        assert (f"go on with: l1 train --resume --out '{name}'" in errors) == (folder / "run.json").exists()
        # A first signal may come while something is tidied up; then the next attempt does it.
        assert len(leftovers(folder)) <= 1
        if (step := re.search(r"stopped after step (\d+) of 8; .* holds a checkpoint", errors)) is not None:
            assert read_checkpoint_state(folder)["step"] == int(step[1])
    assert len(statuses) > 5 and statuses[-1] == 0
    assert_as_undisturbed(folder, l1.folder / "whole")


@on_linux
def test_a_signal_that_is_ignored_stays_ignored(l1):
    assert l1.attempt("patient", at=20, signals=[signal.SIGHUP] * 5, ignored=signal.SIGHUP)[0] == 0
    assert_as_undisturbed(l1.folder / "patient", l1.folder / "whole")


@pytest.fixture(scope="module")
def begun(l1) -> tuple[Path, int]:
    """Return a run that was killed after its first checkpoint, to be copied, and the step of that checkpoint."""
    folder = l1.folder / "begun"
    for moment in count(20):
        l1.attempt("begun", at=moment, signals=[signal.SIGKILL])
        if (folder / CHECKPOINT_FILE).exists():
            return folder, read_checkpoint_state(folder)["step"]


@on_linux
def test_a_file_that_may_not_grow_stops_the_run_with_the_last_checkpoint_whole(l1, begun):
    folder, step = shutil.copytree(begun[0], l1.folder / "limited"), begun[1]
    before = (folder / CHECKPOINT_FILE).read_bytes()
    status, errors = l1.attempt("limited", at=1, limit=20_000)
    said = f"error: cannot write limited/{CHECKPOINT_FILE}: File too large; stopped at step {step + 2}, the last good "
    assert status == 1
    assert f"{said}checkpoint is limited/{CHECKPOINT_FILE}, of step {step}\n" in errors
    assert (folder / CHECKPOINT_FILE).read_bytes() == before
    assert leftovers(folder) == []
    assert l1.attempt("limited")[0] == 0
    assert_as_undisturbed(folder, l1.folder / "whole")


@on_linux
def test_a_run_that_cannot_write_its_end_says_that_its_steps_are_done(l1):
    shutil.copytree(l1.folder / "whole", l1.folder / "at the end")
    (l1.folder / "at the end" / "metrics.json").unlink()
    status, errors = l1.attempt("at the end", at=1, limit=1_000)
    assert status == 1
    assert "cannot write at the end/model.safetensors: File too large; all steps are done" in errors
    assert l1.attempt("at the end")[0] == 0
    assert_as_undisturbed(l1.folder / "at the end", l1.folder / "whole")


@on_linux
def test_a_full_disk_stops_the_run_with_the_last_checkpoint_whole(l1, begun):
    disk = l1.folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o"]
    if subprocess.run([*mount, "size=100k", "tmpfs", disk], capture_output=True).returncode:
        # No right to mount: a file of the size of the rest of such a disk stands in for it.
        shutil.copytree(begun[0], disk / "run")
        status, errors = l1.attempt("disk/run", at=1, limit=20_000)
        reason = "File too large"
    else:
        status, errors = l1.attempt("disk/run")  # the first checkpoint finds room, the second does not
        reason = "No space left on device"
        assert read_checkpoint_state(disk / "run")["step"] == 2
    try:
        assert status == 1
        assert f"cannot write disk/run/{CHECKPOINT_FILE}: {reason}; stopped at step 4, the last good " in errors
        assert leftovers(disk / "run") == []
        if reason == "No space left on device":
            subprocess.run([*mount, "remount,size=1m", "tmpfs", disk], check=True)
        assert l1.attempt("disk/run")[0] == 0
        assert_as_undisturbed(disk / "run", l1.folder / "whole")
    finally:
        if reason == "No space left on device":
            subprocess.run(["umount", disk], check=True)


@on_linux
def test_a_folder_that_becomes_read_only_stops_the_run_with_the_last_checkpoint_whole(l1, begun):
    folder, step = shutil.copytree(begun[0], l1.folder / "locked"), begun[1]
    folder.chmod(0o555)
    try:
        status, errors = l1.attempt("locked", powerless=True)
    finally:
        folder.chmod(0o755)
    assert status == 1
    said = f"error: cannot write locked/{CHECKPOINT_FILE}: Permission denied; stopped at step {step + 2}, the last good"
    assert said in errors
    assert read_checkpoint_state(folder)["step"] == step
    assert l1.attempt("locked")[0] == 0
    assert_as_undisturbed(folder, l1.folder / "whole")


@on_linux
def test_a_rate_that_blows_the_run_up_is_named_with_step_and_checkpoint(l1):
    status, errors = l1("train", "cats.txt", *SETTINGS, "--out", "wild", "--lr-peak", "1e30", "--save-every", "1")
    assert status == 1
    said = (
        r"error: the loss must stay finite, got (nan|inf) at step (\d), rate [\d.]+e\+\d+; the last good checkpoint is "
    )
    found = re.search(rf"{said}wild/{CHECKPOINT_FILE}, of step (\d)\. ", errors)
    assert found and int(found[3]) == int(found[2]) - 1 == read_checkpoint_state(l1.folder / "wild")["step"]
    assert "Traceback" not in errors


def test_a_killed_process_of_its_own_goes_on_to_the_same_weights(tmp_path):
    (tmp_path / "cats.txt").write_text(TEXT)
    l1 = [sys.executable, "-m", "l1_ref.cli", "train", "--out", "killed"]
    options = {"cwd": tmp_path, "env": environment(), "stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    process = subprocess.Popen([*l1, "cats.txt", *SETTINGS], **options)
    while process.poll() is None and not (tmp_path / "killed" / CHECKPOINT_FILE).exists():
        time.sleep(0.001)
    process.kill()
    process.wait()
    subprocess.run([*l1, "--resume"], check=True, **options)
    model = {"n_layers": 1, "n_heads": 2, "n_embd": 16, "max_seq_length": 16, "dropout": 0.1}
    training = {"steps": 8, "batch_size": 2, "save_every": 2, "evaluate_every": 3}
    spec = RunSpec([str(tmp_path / "cats.txt")], model=model, training=training)
    train_run(spec, tmp_path / "whole", say=str, progress=False)
    assert_as_undisturbed(tmp_path / "killed", tmp_path / "whole")


# In this process: what no signal and no disk can bring about.

MODEL = L1Config(vocab_size=len(set(TEXT)), max_seq_length=16, n_layers=1, n_heads=2, n_embd=16, dropout=0.1)
QUICK = TrainingConfig(steps=6, batch_size=2, evaluate_every=5, save_every=2)


@pytest.fixture(scope="module")
def corpus():
    return make_corpus([TEXT], CharTokenizer("".join(sorted(set(TEXT)))))


def new_model(config: L1Config = MODEL) -> L1Model:
    torch.manual_seed(1)
    return L1Model(config)


def test_weights_that_are_no_longer_numbers_are_never_saved(corpus, tmp_path):
    model = new_model()
    calls = count(1)
    # The gradients of step 4 ruin the weights after the loss of step 4 was found good, and a save is due then.
    model.norm.weight.register_hook(lambda gradient: gradient * (math.nan if next(calls) == 4 else 1))
    with pytest.raises(
        FloatingPointError, match=rf"weights must stay finite, .* at step 4, .*{CHECKPOINT_FILE}, of step 2"
    ):
        train(model, corpus, QUICK, tmp_path, progress=False)
    assert read_checkpoint_state(tmp_path)["step"] == 2
    assert all(tensor.isfinite().all() for tensor in read_tensors(tmp_path / CHECKPOINT_FILE)[0].values())


@pytest.mark.parametrize(("folder", "kept"), [(None, "no checkpoint was kept"), ("run", "there is no checkpoint yet")])
def test_where_there_is_no_checkpoint_the_error_says_so(corpus, tmp_path, folder, kept):
    model = new_model()
    model.norm.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(FloatingPointError, match=f"loss must stay finite, got nan at step 2, .*; {kept}"):
        train(model, corpus, QUICK, folder and tmp_path / folder, progress=False)


def test_a_validation_loss_that_is_no_number_stops_the_run(corpus):
    model = new_model()
    with torch.no_grad():
        model.norm.weight.fill_(math.inf)
    with pytest.raises(FloatingPointError, match="validation loss must stay finite, got nan at step 0, rate"):
        train(model, corpus, QUICK, progress=False)


class Stop(Exception):
    """Raised by a test in the middle of a run, as a crash would."""


def test_with_two_threads_a_resumed_run_ends_with_the_same_weights(corpus, tmp_path):
    def crash(point):
        if point["step"] == 2:
            raise Stop

    # Wide enough that torch shares the work of a layer out among its threads: 33,280 numbers an activation.
    wide = L1Config(vocab_size=MODEL.vocab_size, max_seq_length=65, n_layers=1, n_heads=2, n_embd=64, dropout=0.1)
    config = TrainingConfig(steps=2, batch_size=8, evaluate_every=2, save_every=1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        unbroken, resumed = new_model(wide), new_model(wide)
        train(unbroken, corpus, config, progress=False)
        with pytest.raises(Stop):
            train(new_model(wide), corpus, config, tmp_path, on_evaluation=crash, progress=False)
        assert read_checkpoint_state(tmp_path)["step"] == 1
        train(resumed, corpus, config, tmp_path, resume=True, progress=False)
    finally:
        torch.set_num_threads(before)
    pairs = zip(unbroken.parameters(), resumed.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
