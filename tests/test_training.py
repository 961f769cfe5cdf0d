"""The training loop: it learns, it resumes exactly, it stops cleanly, and it refuses what does not fit."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from l1_ref.checkpoint import CHECKPOINT_FILE, load_checkpoint, read_checkpoint_state
from l1_ref.config import L1Config
from l1_ref.data import Corpus, make_corpus, make_document_corpus
from l1_ref.tokenizer import BPETokenizer, CharTokenizer
from l1_ref.training import TrainingConfig, evaluate, train
from l1_ref.transformer import L1Model

TEXT = "the cat sat on the mat, and the dog sat on the log. " * 60
MODEL = L1Config(vocab_size=1, max_seq_length=16, n_layers=2, n_heads=2, n_embd=16, dropout=0.1)
QUICK = TrainingConfig(steps=12, batch_size=4, evaluate_every=5, save_every=4, lr_peak=1e-2)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return make_corpus([TEXT], CharTokenizer("".join(sorted(set(TEXT)))))


def new_model(dropout: float = 0.1) -> L1Model:
    torch.manual_seed(1)
    return L1Model(replace(MODEL, vocab_size=len(set(TEXT)), dropout=dropout))


def weights(model: L1Model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


class Stop(Exception):
    """Raised by a test in the middle of a run, as a crash would."""


def crash_at(step: int):
    def on_evaluation(point: dict) -> None:
        if point["step"] >= step:
            raise Stop

    return on_evaluation


def test_training_learns_a_simple_text(corpus):
    model = new_model(dropout=0.0)
    before = evaluate(model, corpus.validation_batches(16, 8))
    config = replace(QUICK, steps=150, batch_size=16, lr_peak=2e-2, warmup_steps=5)
    metrics = train(model, corpus, config, progress=False)
    assert before > 2.5
    assert metrics["validation_loss"] < 0.8


def test_metrics_tell_what_was_done(corpus):
    metrics = train(new_model(), corpus, QUICK, progress=False, floor=0.5)
    assert [point["step"] for point in metrics["curve"]] == [0, 5, 10, 12]
    assert metrics["curve"][0]["training_loss"] is None
    assert metrics["curve"][0]["validation_loss"] == pytest.approx(math.log(len(set(TEXT))), abs=0.3)
    assert metrics["tokens"] == 12 * 4 * 16
    assert metrics["validation_loss"] == metrics["curve"][-1]["validation_loss"]
    assert metrics["floor"] == 0.5
    assert metrics["tokens_per_s"] == pytest.approx(metrics["tokens"] / metrics["elapsed_s"])
    json.dumps(metrics)


def test_the_final_loss_is_that_of_the_whole_validation_part(corpus):
    model = new_model()
    metrics = train(model, corpus, QUICK, progress=False)
    assert metrics["validation_loss"] == pytest.approx(evaluate(model, corpus.validation_batches(16, 3)), rel=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_resumed_run_ends_bit_for_bit_where_an_unbroken_one_does(corpus, tmp_path, dtype):
    config = replace(QUICK, dtype=dtype, accumulation=2)
    unbroken = new_model()
    metrics = train(unbroken, corpus, config, progress=False)
    with pytest.raises(Stop):
        train(new_model(), corpus, config, tmp_path, on_evaluation=crash_at(10), progress=False)
    assert read_checkpoint_state(tmp_path)["step"] == 8
    resumed = new_model()
    torch.manual_seed(99)  # whatever the random state was, it must not matter
    metrics_resumed = train(resumed, corpus, config, tmp_path, resume=True, progress=False)
    assert_same(weights(unbroken), weights(resumed))
    assert metrics_resumed["curve"] == metrics["curve"]


@pytest.mark.parametrize("kind", ["partly frozen", "float64"])
def test_a_run_of_a_model_of_another_kind_resumes_exactly_too(corpus, tmp_path, kind):
    def model() -> L1Model:
        made = new_model()
        if kind == "float64":
            return made.double()
        made.embedding.requires_grad_(False)
        return made

    whole, stopped, resumed = model(), model(), model()
    train(whole, corpus, QUICK, progress=False)
    with pytest.raises(Stop):
        train(stopped, corpus, QUICK, tmp_path, on_evaluation=crash_at(5), progress=False)
    train(resumed, corpus, QUICK, tmp_path, resume=True, progress=False)
    assert_same(weights(whole), weights(resumed))


def test_a_model_without_a_parameter_to_train_is_refused(corpus):
    with pytest.raises(ValueError, match="must have a parameter to train"):
        train(new_model().requires_grad_(False), corpus, QUICK, progress=False)


def test_a_folder_with_a_checkpoint_is_not_begun_anew(corpus, tmp_path):
    train(new_model(), corpus, QUICK, tmp_path, progress=False)
    before = (tmp_path / CHECKPOINT_FILE).read_bytes()
    with pytest.raises(ValueError, match=f"{tmp_path} holds a checkpoint: resume it"):
        train(new_model(), corpus, replace(QUICK, steps=2), tmp_path, progress=False)
    assert (tmp_path / CHECKPOINT_FILE).read_bytes() == before
    with pytest.raises(ValueError, match="must have a folder, got folder=None"):
        train(new_model(), corpus, QUICK, resume=True, progress=False)


@pytest.mark.parametrize(("steps", "warmup_steps"), [(1, 0), (1, 1), (2, 2), (20, 5)])
def test_no_step_has_a_rate_of_0_and_the_peak_is_reached(corpus, monkeypatch, steps, warmup_steps):
    rates, step = [], torch.optim.AdamW.step

    def noted(optimizer, *given):
        rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *given)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    config = replace(QUICK, steps=steps, warmup_steps=warmup_steps, lr_peak=0.5)
    train(new_model(), corpus, config, progress=False)
    assert len(rates) == steps and min(rates) > 0
    assert not warmup_steps or rates[warmup_steps - 1] == max(rates) == 0.5
    assert rates == sorted(rates[:warmup_steps]) + sorted(rates[warmup_steps:], reverse=True)


def test_a_signal_within_a_step_of_many_micro_batches_drops_that_step(corpus, tmp_path):
    model, fed, before = new_model(), [], {}

    def interrupt() -> None:
        fed.append(1)
        if len(fed) == 100:
            before.update(weights(model))
            signal.raise_signal(signal.SIGTERM)

    config = replace(QUICK, batch_size=1, accumulation=60, save_every=100)
    model.embedding.register_forward_hook(lambda *_: interrupt() if model.training else None)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 1 of 12"):
        train(model, corpus, config, tmp_path, progress=False)
    assert len(fed) == 100
    assert_same(weights(model), before)
    whole, resumed = new_model(), new_model()
    train(whole, corpus, config, progress=False)
    train(resumed, corpus, config, tmp_path, resume=True, progress=False)
    assert_same(weights(whole), weights(resumed))


def test_resuming_a_finished_run_changes_nothing(corpus, tmp_path):
    model = new_model()
    metrics = train(model, corpus, QUICK, tmp_path, progress=False)
    again = new_model()
    assert train(again, corpus, QUICK, tmp_path, resume=True, progress=False)["curve"] == metrics["curve"]
    assert_same(weights(model), weights(again))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "training.seed: 0 then, 1 now"),
        ({"steps": 13}, "training.steps: 12 then, 13 now"),
        ({"batch_size": 5}, "training.batch_size"),
    ],
)
def test_resuming_with_other_settings_is_refused_by_name(corpus, tmp_path, change, named):
    train(new_model(), corpus, QUICK, tmp_path, progress=False)
    with pytest.raises(ValueError, match=named):
        train(new_model(), corpus, replace(QUICK, **change), tmp_path, resume=True, progress=False)


def test_resuming_on_another_corpus_or_model_is_refused(corpus, tmp_path):
    train(new_model(), corpus, QUICK, tmp_path, progress=False)
    other = Corpus(corpus.train.flip(0), corpus.validation)
    with pytest.raises(ValueError, match="corpus: "):
        train(new_model(), other, QUICK, tmp_path, resume=True, progress=False)
    wider = L1Model(replace(new_model().config, n_embd=32, n_inner=None))
    with pytest.raises(ValueError, match="must have shape"):
        train(wider, corpus, QUICK, tmp_path, resume=True, progress=False)


def test_resuming_without_a_checkpoint_says_so(corpus, tmp_path):
    with pytest.raises(FileNotFoundError, match=CHECKPOINT_FILE):
        train(new_model(), corpus, QUICK, tmp_path, resume=True, progress=False)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\x00" * 100])
def test_a_damaged_checkpoint_is_named_and_nothing_is_loaded(corpus, tmp_path, damage):
    train(new_model(), corpus, QUICK, tmp_path, progress=False)
    path = tmp_path / CHECKPOINT_FILE
    path.write_bytes(damage(path.read_bytes()))
    model = new_model()
    before = weights(model)
    with pytest.raises(ValueError, match="must be a whole safetensors file"):
        load_checkpoint(tmp_path, model, torch.optim.AdamW(model.parameters()))
    assert_same(before, weights(model))


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(corpus, tmp_path, monkeypatch):
    before = []

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    def fill(point: dict) -> None:
        if point["step"] == 5:
            before.append((tmp_path / CHECKPOINT_FILE).read_bytes())
            monkeypatch.setattr(os, "replace", full_disk)

    with pytest.raises(OSError, match="No space left on device"):
        train(new_model(), corpus, QUICK, tmp_path, on_evaluation=fill, progress=False)
    assert [(tmp_path / CHECKPOINT_FILE).read_bytes()] == before
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT_FILE]


def test_a_loss_that_is_no_number_stops_the_run_and_names_step_rate_and_checkpoint(corpus, tmp_path):
    model = new_model()

    def poison(point: dict) -> None:
        if point["step"] == 5:
            with torch.no_grad():
                model.norm.weight.fill_(math.nan)

    with pytest.raises(FloatingPointError, match=rf"nan at step 6, rate .*{tmp_path.name}"):
        train(model, corpus, QUICK, tmp_path, on_evaluation=poison, progress=False)
    assert read_checkpoint_state(tmp_path)["step"] == 4


def test_checkpointing_and_accumulation_leave_the_result_as_it_is(corpus):
    plain, saving, split = new_model(), new_model(), new_model(dropout=0.0)
    train(plain, corpus, QUICK, progress=False)
    train(saving, corpus, replace(QUICK, checkpointing=True), progress=False)
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(saving)[name], value, rtol=1e-4, atol=1e-5)
    metrics = train(split, corpus, replace(QUICK, accumulation=3), progress=False)
    assert metrics["tokens"] == 12 * 4 * 3 * 16


def test_two_seeds_give_two_runs_and_one_seed_gives_one(corpus):
    runs = []
    for seed in (0, 0, 1):
        model = new_model()
        train(model, corpus, replace(QUICK, seed=seed), progress=False)
        runs.append(weights(model))
    assert_same(runs[0], runs[1])
    assert not torch.equal(runs[0]["norm.weight"], runs[2]["norm.weight"])


def test_documents_are_trained_on_from_their_beginning():
    words = ["one two three", "two three four", "three four five six"]
    tokenizer = BPETokenizer({bytes([i]): i for i in range(256)})
    corpus = make_document_corpus(words * 20, words, tokenizer)
    x, y = corpus.batch(8, 6)
    assert (x[:, 0] == tokenizer.end_of_text).all()
    assert torch.equal(x[:, 1:], y[:, :-1])
    targets = sum(int((y != -100).sum()) for _, y in corpus.validation_batches(32, 2))
    assert targets == sum(len(word) + 1 for word in words)


def test_a_text_that_is_too_short_for_the_context_is_refused():
    tokenizer = CharTokenizer("ab")
    with pytest.raises(ValueError, match=r"at least 17 ids to train on .* got 9 and 1"):
        train(new_model(), make_corpus(["ab" * 5], tokenizer), QUICK, progress=False)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("steps", 0, "whole number of at least 1"),
        ("batch_size", -1, "whole number of at least 1"),
        ("batch_size", 2.5, "whole number of at least 1"),
        ("lr_peak", 0.0, "above 0"),
        ("lr_peak", math.nan, "above 0"),
        ("warmup_steps", 13, "between 0 and steps"),
        ("betas", (0.9, 1.0), "two numbers in"),
        ("weight_decay", -0.1, "at least 0"),
        ("max_norm", 0.0, "above 0"),
        ("label_smoothing", 1.0, "in"),
        ("dtype", "float8", "one of 'float32', 'bfloat16', 'float16'"),
        ("seed", -1, "whole number of at least 0"),
        ("seed", 2**63, "whole number of at least 0 and below 2"),
        ("steps", 2**31, "at most 2,147,483,647"),
        ("lr_peak", "0.1", "above 0"),
        ("betas", 0.9, "two numbers in"),
        ("betas", (0.9, None), "two numbers in"),
        ("warmup_steps", 2.0, "between 0 and steps"),
        ("dtype", ["float32"], "one of 'float32'"),
        ("checkpointing", "yes", "one of True, False"),
    ],
)
def test_a_setting_that_breaks_its_rule_is_named_with_its_value(field, value, rule):
    with pytest.raises(ValueError, match=f"{field} must be (a |a number |a whole number )?{rule}.*got {field}="):
        replace(QUICK, **{field: value})


RUN = """
import sys
from l1_ref.cli import main
sys.argv = ["l1", "train", "{text}", "--out", "{out}", "--steps", "100000", "--save-every", "1", "--batch-size", "2",
            "--set", "n_layers=1", "n_heads=1", "n_embd=8", "max_seq_length=8", "--evaluate-every", "5"]
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to send")
def test_a_stopped_run_leaves_a_checkpoint_and_says_how_far_it_came(tmp_path):
    text, folder = tmp_path / "text.txt", tmp_path / "run"
    text.write_text(TEXT)
    process = subprocess.Popen(
        [sys.executable, "-c", RUN.format(text=text, out=folder)],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (folder / CHECKPOINT_FILE).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # the others, and each moment: tests/test_interruptions.py
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    step = read_checkpoint_state(folder)["step"]
    assert f"stopped after step {step} of 100000; {folder} holds a checkpoint to resume from" in errors
