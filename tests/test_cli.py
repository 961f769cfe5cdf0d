"""The command line, as a person types it: what works, and what each mistake is answered with."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from l1_ref import cli

ROOT = Path(__file__).parents[1]
TEXT = "the cat sat on the mat, and the dog sat on the log.\n" * 40
SMALL = ["--set", "n_layers=1", "n_heads=2", "n_embd=16", "max_seq_length=16", "dropout=0"]
QUICK = [*SMALL, "--steps", "10", "--batch-size", "2", "--evaluate-every", "5", "--save-every", "5"]
RUN_FILES = {
    ".lock", "checkpoint.safetensors", "config.json", "loss.png", "metrics.json", "model.safetensors", "run.json",
    "tokenizer.json",
}  # fmt: skip


@pytest.fixture
def l1(l1, monkeypatch, tmp_path):
    """Return the function that runs `l1`, in a fresh folder."""
    monkeypatch.chdir(tmp_path)
    return l1


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "cats.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """Return the folder of one finished run, which the tests may copy but not change."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "cats.txt").write_text(TEXT)
    command = [sys.executable, "-m", "l1_ref.cli", "train", "cats.txt", "--out", "run", *QUICK]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    return folder / "run"


def test_a_run_holds_all_that_belongs_to_it(trained):
    assert {path.name for path in trained.iterdir()} == RUN_FILES
    metrics = json.loads((trained / "metrics.json").read_text())
    assert {"validation_loss", "tokens", "tokens_per_s", "elapsed_s", "curve", "floor"} <= metrics.keys()
    assert metrics["tokens"] == 10 * 2 * 16
    assert (trained / "loss.png").read_bytes().startswith(b"\x89PNG")
    config = json.loads((trained / "config.json").read_text())
    assert (config["n_layers"], config["n_embd"], config["n_inner"]) == (1, 16, 64)
    assert config["vocab_size"] == len(set(TEXT))


@pytest.mark.parametrize("tokenizer", ["chars", "bpe:300"])
def test_train_then_generate(l1, text, tokenizer):
    status, out, err = l1("train", text, *QUICK, "--tokenizer", tokenizer)
    assert status == 0, err
    assert "validation loss" in out
    assert (Path("runs") / "cats").is_dir()
    status, out, _ = l1("generate", "runs/cats", "the cat", "--max-new-tokens", 12, "--seed", 3)
    assert status == 0
    assert out.startswith("the cat")
    assert len(out) > len("the cat\n")
    assert l1("generate", "runs/cats", "the cat", "--max-new-tokens", 12, "--seed", 3)[1] == out


@pytest.mark.parametrize("stored_as", ["float32", "bfloat16", "int8"])
def test_text_comes_from_weights_in_fewer_bits_too(l1, trained, stored_as):
    status, out, err = l1("generate", trained, "the cat", "--max-new-tokens", 9, "--seed", 3, "--stored-as", stored_as)
    assert status == 0, err
    assert out.startswith("the cat") and len(out) > len("the cat\n")


def test_an_unknown_storage_is_named(l1, trained):
    status, _, err = l1("generate", trained, "the cat", "--stored-as", "int4")
    assert status != 0 and "one of float32, bfloat16, int8, got stored_as='int4'" in " ".join(err.split())


def test_greedy_text_needs_no_seed(l1, trained):
    first = l1("generate", trained, "the dog", "--greedy", "--max-new-tokens", 20)
    assert first == l1("generate", trained, "the dog", "--greedy", "--max-new-tokens", 20)
    assert first[1] == l1("generate", trained, "the dog", "--temperature", 0, "--max-new-tokens", 20)[1]


def test_every_sampling_option_is_taken(l1, trained):
    options = ["--temperature", 1.2, "--top-k", 5, "--top-p", 0.9, "--seed", 1, "--max-new-tokens", 30]
    status, out, _ = l1("generate", trained, "the ", *options)
    assert status == 0
    assert len(out) == len("the ") + 30 + 1  # one character a token, and the last line end


def test_every_training_option_reaches_the_run(l1, text):
    options = {
        "accumulation": 2, "lr_peak": 0.002, "lr_min": 0.0001, "warmup_steps": 3, "weight_decay": 0.2, "max_norm": 0.5,
        "label_smoothing": 0.1, "dtype": "bfloat16", "seed": 7,
    }  # fmt: skip
    arguments = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert l1("train", text, *QUICK, *arguments, "--checkpointing", "--preset", "tiny", "--device", "cpu")[0] == 0
    training = json.loads(Path("runs/cats/run.json").read_text())["training"]
    expected = options | {"checkpointing": True, "steps": 10, "batch_size": 2, "evaluate_every": 5, "save_every": 5}
    assert training == expected


def test_a_finished_run_is_not_overwritten(l1, text, trained):
    shutil.copytree(trained, "mine")
    before = Path("mine/metrics.json").read_bytes()
    status, _, err = l1("train", text, "--out", "mine", *QUICK)
    assert status == 1
    told = "error: a run needs a folder of its own, mine holds a finished one; choose another (--out), or move it away"
    assert err == f"{told}\n"
    assert Path("mine/metrics.json").read_bytes() == before


def test_an_unfinished_run_is_not_overwritten(l1, text, trained):
    shutil.copytree(trained, "mine")
    Path("mine/metrics.json").unlink()
    before = Path("mine/checkpoint.safetensors").read_bytes()
    status, _, err = l1("train", text, "--out", "mine", *QUICK)
    assert status == 1
    assert "a folder of its own, mine holds an unfinished one; go on with it (--resume)" in err
    assert Path("mine/checkpoint.safetensors").read_bytes() == before


def test_a_run_that_ended_before_its_first_checkpoint_begins_again(l1, trained):
    weights = (trained / "model.safetensors").read_bytes()
    shutil.copytree(trained, "mine")
    for name in ("checkpoint.safetensors", "metrics.json", "model.safetensors"):
        Path("mine", name).unlink()
    status, out, err = l1("train", "--resume", "--out", "mine")
    assert status == 0, err
    assert "mine holds no checkpoint yet: the run begins again" in out
    assert Path("mine/model.safetensors").read_bytes() == weights


def test_a_path_that_looks_like_markup_is_printed_as_it_is(l1, trained):
    shutil.copytree(trained, "a [bold] text")
    Path("a [bold] text", "metrics.json").unlink()
    status, out, err = l1("train", "--resume", "--out", "a [bold] text")
    assert status == 0, err
    assert "l1 generate 'a [bold] text'" in out


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has another error for a pipe that nobody reads")
def test_a_reader_that_has_read_enough_is_no_error(trained):
    # As in `l1 generate run | head -c 1`.
    command = [sys.executable, "-m", "l1_ref.cli", "generate", str(trained), "the", "--max-new-tokens", "100000"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


@pytest.mark.parametrize("error", [MemoryError("no room"), RuntimeError("DefaultCPUAllocator: not enough memory: you")])
def test_a_memory_that_is_too_small_is_one_line(l1, monkeypatch, text, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(cli, "train_run", refuse)
    status, _, err = l1("train", text)
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith(f"error: the memory is not enough: {error}; a smaller model")


def test_resume_takes_everything_from_the_run(l1, text):
    assert l1("train", text, "--out", "run", *QUICK)[0] == 0
    Path("run/metrics.json").unlink()
    weights = Path("run/model.safetensors").read_bytes()
    status, _, err = l1("train", "--resume", "--out", "run")
    assert status == 0, err
    assert Path("run/model.safetensors").read_bytes() == weights
    status, _, err = l1("train", "--resume", "--out", "run", "--steps", 20)
    assert status == 1
    assert "changed: training.steps: 10 then, 20 now" in err
    status, _, err = l1("train", "--resume", "--out", "elsewhere")
    assert (status, "Traceback" in err) == (1, False)
    assert "to resume, elsewhere must hold a checkpoint.safetensors" in err


def write(path: str, data: bytes) -> str:
    Path(path).write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (lambda: ["train", write("empty.txt", b"")], "empty.txt must hold text, it is empty"),
        (lambda: ["train", "missing.txt"], "missing.txt does not exist"),
        (lambda: ["train", write("image.txt", b"GIF89a\x00\x01")], "image.txt must be text, it is binary"),
        (lambda: ["train", write("latin.txt", b"caf\xe9 au lait")], "latin.txt must be UTF-8 text, got byte 0xe9 at"),
        (lambda: ["train", write("short.txt", b"too short")], "at least 129 ids to train on"),
        (lambda: ["train", "."], "is a folder"),
        (lambda: ["train", "cats.txt", "--preset", "huge"], "preset must be one of tiny, small, base, large, gpt2"),
        (lambda: ["train", "cats.txt", "--set", "n_heads=3"], "multiple of n_heads, got n_embd=128, n_heads=3"),
        (lambda: ["train", "cats.txt", "--set", "layers=3"], "tie_weights), got 'layers=3'"),
        (lambda: ["train", "cats.txt", "--set", "n_layers"], "got 'n_layers'"),
        (lambda: ["train", "cats.txt", "--set", "n_layers=two"], "n_layers must be a whole number of at least 1, got"),
        (lambda: ["train", "cats.txt", "--set", "vocab_size=9"], "vocab_size comes from the tokenizer"),
        (lambda: ["train", "cats.txt", "--tokenizer", "words"], "words"),
        (lambda: ["train", "cats.txt", "--tokenizer", "bpe:12"], "12"),
        (lambda: ["train", "cats.txt", "--dtype", "int8"], "dtype must be one of 'float32', 'bfloat16', 'float16'"),
        (lambda: ["train", "cats.txt", "--lr-min", "5"], "lr_min must be a number at most the peak rate 0.003, got"),
        (lambda: ["train", "cats.txt", "--steps", "0"], "steps must be a whole number of at least 1, got steps=0"),
        (lambda: ["train", "cats.txt", *SMALL, "n_layers=1000000000"], "layers, batch_size=16, accumulation=1; this"),
        (lambda: ["train", "cats.txt", *SMALL, "--batch-size", "1000000000"], "the memory must hold at least"),
        (lambda: ["train", "cats.txt", "--seed", "9" * 30], "seed must be a whole number of at least 0 and below"),
        (lambda: ["train", "cats.txt", "--tokenizer", "bpe:" + "9" * 5_000], "N in bpe:N must be a whole number of"),
        (lambda: ["train", "cats.txt", "--device", "tpu"], "--device must be auto, cpu or cuda, got 'tpu'"),
        (lambda: ["train", "cats.txt", *SMALL, "--out", write("file", b"x") + "/run"], "file"),
        (lambda: ["generate", "nowhere", "hi"], "must be a folder that `l1 train` wrote, found none at nowhere"),
        (lambda: ["generate", "."], "config.json does not exist"),
        (lambda: ["download", "wikipedia"], "name must be one of tinyshakespeare, tinystories, got 'wikipedia'"),
    ],
)  # fmt: skip
def test_bad_input_is_answered_with_one_line_that_names_rule_and_value(l1, text, arguments, named):
    status, _, err = l1(*arguments())
    assert status == 1
    assert err.startswith("error: ")
    assert named in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["the Zebra"], "'Z'"),
        ([""], "the prompt must hold at least one character"),
        (["the", "--temperature", -1], "temperature must be a finite number of at least 0, got temperature=-1"),
        (["the", "--top-k", 0], "top_k must be a whole number of at least 1, got top_k=0"),
        (["the", "--top-p", 1.5], "top_p must be in (0, 1], got top_p=1.5"),
        (["the", "--max-new-tokens", -2], "max_new_tokens must be a whole number of at least 0"),
        (["the", "--seed", 2**64], f"below 2**63, got seed={2**64}"),
        (["the", "--seed", -1], "seed must be a whole number of at least 0"),
    ],
)
def test_a_bad_prompt_or_setting_is_named(l1, trained, arguments, named):
    status, out, err = l1("generate", trained, *arguments)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert named in err


@pytest.mark.parametrize("name", sorted(RUN_FILES - {".lock", "loss.png", "run.json", "checkpoint.safetensors"}))
def test_a_run_with_a_damaged_or_missing_file_is_refused_by_its_name(l1, trained, name):
    shutil.copytree(trained, "run")
    path = Path("run") / name
    path.write_bytes(path.read_bytes()[:25])
    status, out, err = l1("generate", "run", "the")
    assert (status, out) == (1, "")
    assert name in err
    path.unlink()
    status, out, err = l1("generate", "run", "the")
    assert (status, out) == (1, "")
    assert name in err


@contextmanager
def as_nobody():
    """Give up root's power to write anywhere, for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no such permission on Windows")
def test_a_read_only_output_folder_is_named_and_left_empty(l1, monkeypatch):
    with tempfile.TemporaryDirectory() as place:  # not tmp_path: only its owner may look into that
        os.chmod(place, 0o755)
        monkeypatch.chdir(place)
        text, folder = Path(place, "cats.txt"), Path(place, "locked")
        text.write_text(TEXT)
        folder.mkdir(mode=0o555)
        with as_nobody():
            status, _, err = l1("train", text, "--out", folder / "run", *QUICK)
        assert status == 1
        assert err.startswith("error: ")
        assert "Permission denied" in err
        assert str(folder / "run") in err
        assert err.count("\n") == 1
        assert list(folder.iterdir()) == []
        monkeypatch.undo()


def test_help_is_there_for_every_command(l1):
    status, out, _ = l1("--help")
    assert status == 0
    for command in ("train", "generate", "download"):
        assert command in out
        assert l1(command, "--help")[0] == 0
