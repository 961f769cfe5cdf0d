"""The configuration: what stands when nothing is said, what is refused, and how it travels."""

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest

from l1_ref.config import PRESETS, L1Config
from tests.plain_python import answers

NAN, INF = float("nan"), float("inf")


def test_defaults_are_gpt2_small():
    config = L1Config()
    assert (config.vocab_size, config.max_seq_length, config.n_layers, config.n_heads) == (50257, 1024, 12, 12)
    assert (config.n_embd, config.n_inner, config.dropout, config.head_width) == (768, 3072, 0.1, 64)
    assert config.tie_weights and config.position_encoding == "learned"
    assert config == L1Config(
        vocab_size=50257, max_seq_length=1024, n_layers=12, n_heads=12, n_embd=768, n_inner=3072, dropout=0.1
    )


@pytest.mark.parametrize(
    "name, layers, heads, width, vocabulary, context",
    [
        ("tiny", 2, 4, 128, 1_000, 128),
        ("small", 6, 6, 384, 32_000, 1_024),
        ("base", 12, 12, 768, 32_000, 1_024),
        ("large", 24, 16, 1_024, 32_000, 1_024),
    ],
)
def test_presets_are_those_of_the_design(name, layers, heads, width, vocabulary, context):
    c = L1Config.preset(name)
    assert c is PRESETS[name]
    assert (c.n_layers, c.n_heads, c.n_embd, c.vocab_size, c.max_seq_length) == (
        layers, heads, width, vocabulary, context,
    )  # fmt: skip
    assert c.n_inner == 4 * width and c.tie_weights


def test_an_unknown_preset_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"preset must be one of tiny, small, base, large.*, got 'huge'"):
        L1Config.preset("huge")


@pytest.mark.parametrize("n_inner, expected", [(None, 96), (96, 96), (50, 50), (1, 1)])
def test_n_inner_is_a_number_once_the_config_stands(n_inner, expected):
    assert L1Config(n_embd=24, n_heads=2, n_inner=n_inner).n_inner == expected


COUNTS = ["vocab_size", "max_seq_length", "n_layers", "n_heads", "n_embd", "n_inner"]


@pytest.mark.parametrize("field", COUNTS)
@pytest.mark.parametrize("value", [0, -3])
def test_a_count_below_one_is_refused(field, value):
    with pytest.raises(ValueError) as error:
        L1Config(**{field: value})
    assert str(error.value) == f"{field} must be a whole number of at least 1, got {field}={value}"


@pytest.mark.parametrize(
    "values, rule",
    [
        ({"n_embd": 130, "n_heads": 4}, "n_embd must be a multiple of n_heads, got n_embd=130, n_heads=4"),
        ({"dropout": 1.0}, "dropout must be a number in [0, 1), got dropout=1.0"),
        ({"dropout": -0.1}, "dropout must be a number in [0, 1), got dropout=-0.1"),
        ({"dropout": NAN}, "dropout must be a number in [0, 1), got dropout=nan"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps must be a number above 0, got layer_norm_eps=0.0"),
        ({"layer_norm_eps": INF}, "layer_norm_eps must be a number above 0, got layer_norm_eps=inf"),
        ({"init_std": -0.02}, "init_std must be a number at least 0, got init_std=-0.02"),
        ({"init_std": NAN}, "init_std must be a number at least 0, got init_std=nan"),
        (
            {"position_encoding": "rotary"},
            "position_encoding must be one of 'learned', 'sinusoidal', got position_encoding='rotary'",
        ),
        ({"attention": "flash"}, "attention must be one of 'fused', 'explicit', got attention='flash'"),
        (
            {"position_encoding": "sinusoidal", "n_embd": 15, "n_heads": 3},
            "n_embd must be even for sinusoidal positions, got n_embd=15",
        ),
    ],
)
def test_an_error_names_the_field_the_rule_and_the_value(values, rule):
    with pytest.raises(ValueError) as error:
        L1Config(**values)
    assert str(error.value) == rule


@pytest.mark.parametrize(
    "values",
    [
        {"dropout": 0.0},
        {"dropout": 0.999},
        {"init_std": 0.0},
        {"n_embd": 15, "n_heads": 3},
        {"n_heads": 1, "n_embd": 1, "vocab_size": 1, "max_seq_length": 1, "n_layers": 1, "n_inner": 1},
    ],
    ids=repr,
)
def test_the_edges_of_the_rules_are_allowed(values):
    config = L1Config(**values)
    assert {name: getattr(config, name) for name in values} == values


WRONG_TYPES = [
    *[(field, value) for field in COUNTS for value in (2.0, True, "4", NAN)],
    *[(field, None) for field in COUNTS if field != "n_inner"],
    *[(field, value) for field in ("dropout", "layer_norm_eps", "init_std") for value in ("0.1", None, True)],
    *[("position_encoding", None), ("attention", 1), ("tie_weights", 1), ("tie_weights", "false")],
]
PLAIN_PYTHON = """
from l1_ref.config import L1Config
nan = float("nan")
assert L1Config(dropout=0, init_std=0, layer_norm_eps=1).dropout == 0
for field, value in {cases}:
    try:
        L1Config(**{{field: value}})
    except ValueError as error:
        assert str(error).startswith(f"{{field}} must be "), error
        assert str(error).endswith(f" got {{field}}={{value!r}}"), error
    else:
        raise AssertionError(f"{{field}}={{value!r}} was accepted")
"""


def test_values_of_the_wrong_type_are_refused_by_the_same_words():
    # In a process of its own: under pytest the hook on annotations would refuse them first, in its own words.
    code = PLAIN_PYTHON.format(cases=WRONG_TYPES)
    root = Path(__file__).resolve().parents[1]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_from_dict_and_preset_refuse_what_names_nothing():
    known = ", ".join(field.name for field in fields(L1Config))
    expected = {
        **{
            f"L1Config.from_dict({values!r})": f"values must be a dict of the fields of L1Config, got values={values!r}"
            for values in ([1], None, "tiny")
        },
        "L1Config.from_dict({1: 2})": f"the fields of L1Config are {known}; got unknown 1",
        **{
            f"L1Config.preset({name!r})": f"preset must be one of {', '.join(PRESETS)}, got {name!r}"
            for name in ([], None, "huge")
        },
    }
    found = answers("from l1_ref.config import L1Config", list(expected))
    assert found == {call: f"ValueError: {rule}" for call, rule in expected.items()}


def test_a_config_is_frozen_and_hashable():
    config = L1Config.preset("tiny")
    for field in fields(config):
        with pytest.raises(FrozenInstanceError):
            setattr(config, field.name, getattr(config, field.name))
    assert len({config, L1Config.preset("tiny"), replace(config, dropout=0.1)}) == 2


def test_replace_checks_the_rules_again():
    with pytest.raises(ValueError, match="n_heads=5"):
        replace(L1Config.preset("tiny"), n_heads=5)


@pytest.mark.parametrize(
    "config",
    [*PRESETS.values(), L1Config(n_inner=7, position_encoding="sinusoidal", tie_weights=False, attention="explicit")],
)
def test_a_config_survives_json(config):
    assert L1Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_from_dict_names_unknown_fields_and_checks_the_known():
    with pytest.raises(ValueError, match=r"fields of L1Config are vocab_size, .*; got unknown n_head, width$"):
        L1Config.from_dict({"width": 3, "n_head": 2, "n_embd": 128})
    with pytest.raises(ValueError, match="n_layers=0"):
        L1Config.from_dict({"n_layers": 0})
