"""Anything that a file, a setting or a command line can hold: an error that names it, or the right result."""

import contextlib
import io
import json
import math
import shutil
import sys
import tempfile
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from l1_ref import cli, runs
from l1_ref.checkpoint import CHECKPOINT_FILE, load_checkpoint
from l1_ref.config import L1Config
from l1_ref.data import make_corpus, read_document
from l1_ref.generation import sample
from l1_ref.optimization import build_optimizer
from l1_ref.runs import RunSpec, continue_text, train_run
from l1_ref.tokenizer import build_tokenizer
from l1_ref.training import TrainingConfig
from l1_ref.transformer import L1Model, count_parameters
from l1_ref.weights import load_model, load_run

TEXT = "the cat sat on the mat, and the dog sat on the log.\n" * 10
MODEL = {"n_layers": 1, "n_heads": 2, "n_embd": 8, "max_seq_length": 8}
TRAINING = {"steps": 2, "batch_size": 1, "evaluate_every": 1, "save_every": 1}


def examples(number: int) -> settings:
    return settings(max_examples=number, deadline=None, derandomize=True, database=None)


NUMBERS = st.one_of(
    st.integers(-3, 20),
    st.integers(),
    st.sampled_from([2**31 - 1, 2**31, 2**63, 2**64, 10**30, 10**400, -(10**400)]),
    st.floats(),
    st.sampled_from([5e-324, 1e-45, 1e38, 1.7e308, math.nan, math.inf]),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=5))
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


def some_fields(kind: type) -> st.SearchStrategy[dict]:
    return st.dictionaries(st.sampled_from([each.name for each in fields(kind)]), ANYTHING, max_size=3)


def json_bytes(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Return a finished run, not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "cats.txt").write_text(TEXT)
    spec = RunSpec([str(folder / "cats.txt")], model=MODEL, training=TRAINING)
    train_run(spec, folder / "run", say=str, progress=False)
    return folder / "run"


@contextlib.contextmanager
def changed(run: Path, name: str, data: bytes):
    """Lend a copy of a run in which one file holds other bytes."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "run"
        shutil.copytree(run, copy)
        (copy / name).write_bytes(data)
        yield copy


@st.composite
def damaged(draw, data: bytes) -> bytes:
    """Cut bytes short, or change, remove or insert some."""
    place = draw(st.integers(0, len(data) - 1))
    match draw(st.integers(0, 3)):
        case 0:
            return data[:place]
        case 1:
            return data[:place] + bytes([data[place] ^ (1 << draw(st.integers(0, 7)))]) + data[place + 1 :]
        case 2:
            return data[:place] + draw(st.binary(min_size=1, max_size=8)) + data[place:]
        case _:
            return data[:place] + data[place + draw(st.integers(1, 8)) :]


@examples(150)
@given(values=some_fields(L1Config))
def test_any_values_make_a_configuration_or_an_error_that_names_one(values):
    try:
        config = L1Config.from_dict(values)
    except ValueError as error:
        assert any(f"{name}=" in str(error) for name in [*values, "n_embd"])
    else:
        assert count_parameters(config) > 0
        assert L1Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@examples(150)
@given(values=some_fields(TrainingConfig))
def test_any_values_make_a_training_or_an_error_that_names_one(values):
    try:
        config = TrainingConfig(**values)
    except ValueError as error:
        assert any(f"{name}=" in str(error) for name in [*values, "warmup_steps"])
    else:
        assert config.steps >= 1 and config.peak_rate(L1Config()) > 0


SMALL = {
    "vocab_size": st.integers(1, 5), "max_seq_length": st.integers(1, 6), "n_layers": st.integers(1, 2),
    "n_heads": st.integers(1, 3), "n_embd": st.integers(1, 6), "n_inner": st.none() | st.integers(1, 5),
    "dropout": st.floats(0, 1), "layer_norm_eps": st.floats(0), "init_std": st.floats(0),
    "tie_weights": st.booleans(), "position_encoding": st.sampled_from(["learned", "sinusoidal"]),
    "attention": st.sampled_from(["fused", "explicit"]),
}  # fmt: skip


@examples(80)
@given(values=st.fixed_dictionaries({}, optional=SMALL))
def test_any_small_configuration_makes_a_model_or_an_error(values):
    values = {"vocab_size": 3, "max_seq_length": 4, "n_layers": 1, "n_heads": 1, "n_embd": 4} | values
    try:
        config = L1Config(**values)
    except ValueError as error:
        assert any(f"{name}=" in str(error) for name in values)
        return
    model = L1Model(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == count_parameters(config)
    assert model(torch.zeros(2, config.max_seq_length, dtype=torch.long)).shape[-1] == config.vocab_size


@examples(150)
@given(
    logits=st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=6),
    temperature=NUMBERS,
    top_k=st.none() | st.integers() | st.integers(0, 7),
    top_p=st.none() | NUMBERS | st.floats(0, 1),
)
def test_any_sampling_setting_gives_a_likely_id_or_an_error_that_names_it(logits, temperature, top_k, top_p):
    row = torch.tensor([logits])
    try:
        drawn = int(sample(row, temperature, top_k, top_p))
    except ValueError as error:
        assert any(f"{name}=" in str(error) for name in ("temperature", "top_k", "top_p"))
        return
    assert temperature >= 0 and (top_k is None or top_k >= 1) and (top_p is None or 0 < top_p <= 1)
    if temperature == 0:
        assert logits[drawn] == max(logits)
    if top_k is not None:
        assert logits[drawn] >= sorted(logits, reverse=True)[min(top_k, len(logits)) - 1]


@examples(150)
@given(data=st.binary(max_size=60) | st.text(max_size=30).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_a_text_or_an_error_that_names_the_file(data):
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "text.txt")
        path.write_bytes(data)
        try:
            text = read_document(path)
        except ValueError as error:
            assert str(path) in str(error)
            return
    assert text and "\r" not in text
    for name in ("chars", "bpe:260"):
        tokenizer = build_tokenizer(name, [text])
        assert tokenizer.decode(tokenizer.encode(text)) == text
        try:
            corpus = make_corpus([text], tokenizer)
        except ValueError as error:
            assert "at least 2 ids" in str(error)
        else:
            assert len(corpus.train) + len(corpus.validation) == len(tokenizer.encode(text))


@examples(60)
@given(spec=st.text(max_size=8) | st.text("bpe:0123456789", max_size=12) | st.just("bpe:" + "9" * 5_000))
def test_any_name_of_a_tokenizer_makes_one_or_is_named(spec):
    try:
        assert build_tokenizer(spec, ["some text"]).vocab_size >= 1
    except ValueError as error:
        assert repr(spec)[:20] in str(error)


@examples(60)
@given(data=st.data())
def test_a_damaged_checkpoint_is_refused_or_loads_what_was_saved(trained, data):
    whole = (trained / CHECKPOINT_FILE).read_bytes()
    loaded = [whole, data.draw(damaged(whole))]
    for i, content in enumerate(loaded):
        model = L1Model(load_run(trained).model.config)
        optimizer = build_optimizer(model, 1e-3, (0.9, 0.99), 0.1)
        with changed(trained, CHECKPOINT_FILE, content) as folder:
            try:
                state = load_checkpoint(folder, model, optimizer)
            except ValueError as error:
                assert i == 1 and str(folder / CHECKPOINT_FILE) in str(error)
                return
        loaded[i] = [state, *model.parameters(), *(t for moments in optimizer.state.values() for t in moments.values())]
    (state, *tensors), (other, *others) = loaded
    assert state == other and all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))


@examples(60)
@given(data=st.data())
def test_damaged_weights_are_refused_or_are_what_was_saved(trained, data):
    whole = (trained / "model.safetensors").read_bytes()
    expected = load_model(trained)
    with changed(trained, "model.safetensors", data.draw(damaged(whole))) as folder:
        try:
            model = load_model(folder)
        except ValueError as error:
            assert "model.safetensors" in str(error)
            return
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


@st.composite
def edited(draw, values: dict) -> bytes:
    """Put anything in the place of one value, leave one out, or add one."""
    values = json.loads(json.dumps(values))
    inner = [values, *(value for value in values.values() if isinstance(value, dict))]
    chosen = draw(st.sampled_from(inner))
    key = draw(st.sampled_from(sorted(chosen)) if chosen else st.just("new"))
    if draw(st.booleans()):
        chosen[key] = draw(ANYTHING)
    else:
        chosen[draw(st.sampled_from(["new", key]))] = draw(ANYTHING)
        if draw(st.booleans()):
            chosen.pop(key)
    return json_bytes(values)


def any_version(run: Path, name: str) -> st.SearchStrategy[bytes]:
    """Draw what a file of a run may hold: anything at all, itself with damage, or itself with one value changed."""
    whole = (run / name).read_bytes()
    nested = st.sampled_from([b"[" * 100_000, b'{"kind":' * 50_000, b"9" * 5_000, b'{"step": ' + b"9" * 5_000 + b"}"])
    return st.one_of(ANYTHING.map(json_bytes), nested, damaged(whole), edited(json.loads(whole)))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "metrics.json"])
@examples(60)
@given(data=st.data())
def test_whatever_a_file_of_a_run_holds_it_talks_or_says_why_not(trained, name, data):
    with changed(trained, name, data.draw(any_version(trained, name))) as folder:
        try:
            text = "".join(continue_text(folder, "the", max_new_tokens=2, do_sample=False))
        except (ValueError, FileNotFoundError) as error:
            # Text and ids of another tokenizer may not fit what is asked; all else names the file.
            assert str(folder) in str(error) or "unknown ones" in str(error) or "finite" in str(error), error
        else:
            assert isinstance(text, str)


@examples(60)
@given(data=st.data())
def test_whatever_run_json_holds_the_run_goes_on_or_says_why_not(trained, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "_draw_curve", lambda metrics, folder: None)
        patch.setattr(runs, "_training_tales", lambda: ["A tale."])  # where `files` is gone
        content = data.draw(any_version(trained, "run.json"))
        with changed(trained, "run.json", content) as folder:
            try:
                metrics = train_run(RunSpec(), folder, resume=True, say=str, progress=False)
            except (ValueError, OSError) as error:
                assert str(error) and "\n" not in str(error)
            else:
                assert metrics["curve"] == load_run(trained).metrics["curve"]


WORDS = st.one_of(
    st.sampled_from(
        ["", "-1", "0", "1", "2", "3", "nan", "inf", "-inf", "1e999", "1e-320", "0x10", "1_0", "9" * 5_000]
    ),
    st.sampled_from(["[/b]", "[bold]", ":smile:", "\udcff", "a=b", "=", "--", "-", "true", "None", "é", "\U0001f600"]),
    st.text(st.characters(exclude_characters="\x00", codec="utf-8"), max_size=4),
)
GENERATE = ["--max-new-tokens", "--temperature", "--top-k", "--top-p", "--seed", "--greedy", "--no-such"]
TRAIN = [
    "--preset", "--set", "--tokenizer", "--batch-size", "--accumulation", "--lr-peak", "--lr-min", "--warmup-steps",
    "--weight-decay", "--max-norm", "--label-smoothing", "--dtype", "--checkpointing", "--seed", "--evaluate-every",
    "--save-every", "--resume", "--device", "--out",
]  # fmt: skip


def l1(*arguments: str) -> tuple[int, str]:
    """Run the command here; return its status and standard error. Whatever leaves it but an exit is an error."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["l1", *arguments])
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = stop.code or 0
        streams[1].flush()
        return status, streams[1].buffer.getvalue().decode()


def assert_answered(status: int, errors: str) -> None:
    assert status in (0, 1, 2) and "Traceback" not in errors
    if status == 1:
        assert errors.splitlines()[-1].startswith("error: "), errors


@examples(60)
@given(options=st.lists(st.tuples(st.sampled_from(GENERATE), WORDS), max_size=2), prompt=WORDS)
def test_any_command_line_of_generate_is_answered(trained, options, prompt):
    words = [word for option in options for word in option]
    assert_answered(*l1("generate", str(trained), "--max-new-tokens", "3", *words, prompt))


@examples(50)
@given(options=st.lists(st.tuples(st.sampled_from(TRAIN), WORDS), max_size=2))
def test_any_command_line_of_train_is_answered(trained, options):
    words = [word for option in options for word in option]
    small = [f"{name}={value}" for name, value in MODEL.items()]
    quick = ["--steps", "1", "--batch-size", "1", "--device", "cpu"]
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place), pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "_draw_curve", lambda metrics, folder: None)
        text = str(trained.parent / "cats.txt")
        assert_answered(*l1("train", text, "--out", "run", *quick, "--set", *small, *words))
