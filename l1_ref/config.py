"""The model's configuration: one frozen, validated record, and the presets of the course.

Example:
    >>> {name: config.n_layers for name, config in PRESETS.items()}
    {'tiny': 2, 'small': 6, 'base': 12, 'large': 24, 'gpt2': 12}
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, no_type_check

POSITION_ENCODINGS = ("learned", "sinusoidal")
ATTENTION_PATHS = ("fused", "explicit")
# What torch can count with, and what a float32 can hold.
LARGEST_COUNT, LARGEST_NUMBER = 2**31 - 1, 3.4e38


@no_type_check  # it checks itself, with errors that name the rule
@dataclass(frozen=True)
class L1Config:
    """Describe one decoder-only transformer; the defaults are GPT-2 small.

    Args:
        vocab_size: Number of token ids V, at least 1.
        max_seq_length: Context length in tokens, at least 1: the longest sequence that has positions.
        n_layers: Number of transformer blocks, at least 1.
        n_heads: Number of attention heads H, at least 1.
        n_embd: Width C of the hidden states; a multiple of `n_heads`.
        n_inner: Width F inside the feed-forward layers; None means `4 * n_embd`.
        dropout: Probability in [0, 1) of zeroing an activation while training.
        position_encoding: "learned" (GPT-2) or "sinusoidal" (the original transformer).
        tie_weights: Whether the output head shares the token embedding's matrix.
        layer_norm_eps: Added to the variance in layer normalisation, above 0.
        init_std: Standard deviation of the initial weights, at least 0.
        attention: "fused" (one library call) or "explicit" (the same arithmetic, step by step).

    Raises:
        ValueError: A field breaks its rule; the message names the field, the rule and the value.

    Example:
        >>> config = L1Config(n_layers=2, n_heads=4, n_embd=128)
        >>> config.n_inner, config.head_width
        (512, 32)
        >>> L1Config(n_heads=4, n_embd=130)
        Traceback (most recent call last):
            ...
        ValueError: n_embd must be a multiple of n_heads, got n_embd=130, n_heads=4

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3.
    """

    vocab_size: int = 50257
    max_seq_length: int = 1024
    n_layers: int = 12
    n_heads: int = 12
    n_embd: int = 768
    n_inner: int | None = None
    dropout: float = 0.1
    position_encoding: str = "learned"
    tie_weights: bool = True
    layer_norm_eps: float = 1e-5
    init_std: float = 0.02
    attention: str = "fused"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "max_seq_length", "n_layers", "n_heads", "n_embd"):
            require_count(name, getattr(self, name))
        if self.n_inner is None:
            object.__setattr__(self, "n_inner", 4 * self.n_embd)
        require_count("n_inner", self.n_inner)
        if self.n_embd % self.n_heads:
            raise ValueError(f"n_embd must be a multiple of n_heads, got n_embd={self.n_embd}, n_heads={self.n_heads}")
        require_number("dropout", self.dropout, "in [0, 1)", lambda p: 0 <= p < 1)
        require_number("layer_norm_eps", self.layer_norm_eps, "above 0", lambda eps: 0 < eps < float("inf"))
        require_number("init_std", self.init_std, "at least 0", lambda std: 0 <= std < float("inf"))
        require_choice("position_encoding", self.position_encoding, POSITION_ENCODINGS)
        require_choice("attention", self.attention, ATTENTION_PATHS)
        require_choice("tie_weights", self.tie_weights, (True, False))
        if self.position_encoding == "sinusoidal" and self.n_embd % 2:
            raise ValueError(f"n_embd must be even for sinusoidal positions, got n_embd={self.n_embd}")

    @property
    def head_width(self) -> int:
        """Return the width D of one attention head."""
        return self.n_embd // self.n_heads

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "L1Config":
        """Build a configuration from a dict, refusing fields that do not exist.

        Raises:
            ValueError: Not a dict, an unknown field, or a value that breaks its rule.
        """
        if not isinstance(values, dict):
            raise ValueError(f"values must be a dict of the fields of L1Config, got values={values!r}")
        known = [field.name for field in fields(cls)]
        unknown = sorted(map(str, values.keys() - set(known)))
        if unknown:
            raise ValueError(f"the fields of L1Config are {', '.join(known)}; got unknown {', '.join(unknown)}")
        return cls(**values)

    @classmethod
    def preset(cls, name: str) -> "L1Config":
        """Return one of the course's presets by name.

        Raises:
            ValueError: There is no such preset.
        """
        if not isinstance(name, str) or name not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
        return PRESETS[name]


def require_count(name: str, value: Any) -> None:
    """Refuse what is no whole number of at least 1 that torch can count with."""
    require_whole(name, value, "of at least 1", lambda n: n >= 1)
    if value > LARGEST_COUNT:
        raise ValueError(f"{name} must be at most {LARGEST_COUNT:,}, got {name}={value!r}")


def require_whole(name: str, value: Any, rule: str, holds: Callable[[int], bool]) -> None:
    """Refuse what is no whole number, or breaks the rule."""
    if isinstance(value, bool) or not isinstance(value, int) or not holds(value):
        raise ValueError(f"{name} must be a whole number {rule}, got {name}={value!r}")


def is_number(value: Any) -> bool:
    """Say whether a value is a whole number or a float; True and False are neither."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def require_number(
    name: str, value: Any, rule: str, holds: Callable[[float], bool], largest: float = LARGEST_NUMBER
) -> None:
    """Refuse what is no number, breaks the rule, or is above the largest: by default what a float32 can hold."""
    if not is_number(value) or not holds(value) or value > largest:
        raise ValueError(f"{name} must be a number {rule}, got {name}={value!r}")


def require_betas(betas: Any) -> None:
    """Refuse what are no two memories of AdamW's running means."""
    two = isinstance(betas, (list, tuple)) and len(betas) == 2
    if not two or not all(is_number(beta) and 0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must be two numbers in [0, 1), got betas={betas!r}")


def require_choice(name: str, value: Any, choices: tuple) -> None:
    """Refuse what is none of the choices."""
    if type(value) is not type(choices[0]) or value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"{name} must be one of {listed}, got {name}={value!r}")


PRESETS = {
    # No dropout: a model this small learns too little by heart to need it.
    "tiny": L1Config(vocab_size=1_000, max_seq_length=128, n_layers=2, n_heads=4, n_embd=128, dropout=0.0),
    "small": L1Config(vocab_size=32_000, n_layers=6, n_heads=6, n_embd=384),
    "base": L1Config(vocab_size=32_000),
    "large": L1Config(vocab_size=32_000, n_layers=24, n_heads=16, n_embd=1_024),
    "gpt2": L1Config(),
}
