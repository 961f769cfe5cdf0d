"""A language of short tales whose every probability is known: sampling, exact log-probability, exact entropy.

A grammar with memory writes each tale, so that what is introduced early comes back later, and so that the loss which no
model can beat is a number here, and not a guess.

Source: Eldan and Li 2023, "TinyStories: How Small Can Language Models Be and Still Speak Coherent English?" (short
tales for small models); `grammar` names the sources of the method.
"""

import math
import random
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from l1_ref.files import DATA_DIR, PathLike, write_atomic
from l1_ref.grammar import Grammar, Step
from l1_ref.tales_grammar import RULES, WORDS

SEED = 1948
N_TRAIN, N_VALIDATION = 2250, 250
SEPARATOR = "\n<|endoftext|>\n"
FILES = {"train": "tales-train.txt", "validation": "tales-validation.txt"}


@cache
def grammar() -> Grammar:
    """The grammar of the tales, compiled at its first use."""
    return Grammar(RULES, WORDS)


def generate_tale(rng: random.Random) -> str:
    """Draw one tale; the same state of `rng` gives the same tale on every machine.

    Example:
        >>> import random
        >>> generate_tale(random.Random(7)).split(".")[0]
        'Beside the famous bridge lived a gloomy girl called Ada'
    """
    return grammar().generate(rng)[0]


def generate_tales(n: int, seed: int) -> list[str]:
    """Draw `n` tales from a generator seeded with `seed`."""
    rng = random.Random(seed)
    return [generate_tale(rng) for _ in range(n)]


def derivation(tale: str) -> list[Step]:
    """The choices that wrote a tale, in order; the product of their probabilities is the tale's.

    Args:
        tale: one whole tale, without a separator.

    Returns:
        The one derivation, or an empty list where the tale is not in the language.

    Raises:
        ValueError: the grammar can write the tale in more than one way; the tests prove that it never can.
    """
    found = grammar().derivations(tale)
    if len(found) > 1:
        raise ValueError(f"a tale must have one derivation, got {len(found)} for {tale[:60]!r}")
    return found[0] if found else []


def log_probability(tale: str) -> float:
    """The exact log-probability of a tale, its end included.

    Args:
        tale: one whole tale, without a separator.

    Returns:
        Nats, below 0; minus infinity where the tale is not in the language.

    Example:
        >>> round(log_probability(load_tales("validation")[0]), 2)
        -44.34
        >>> log_probability("Once upon a time there was a transformer.")
        -inf
    """
    steps = derivation(tale)
    return math.fsum(math.log(step.probability) for step in steps) if steps else -math.inf


def entropy() -> float:
    """The exact entropy of the language, in nats a tale: the mean of `-log_probability` over all tales.

    Example:
        >>> round(entropy(), 2)
        54.33

    Source: Shannon 1948, "A Mathematical Theory of Communication", section 6.
    """
    return grammar().entropy()


def entropy_floor(tales: Iterable[str], n_tokens: int) -> float:
    """The cross-entropy that the true distribution itself reaches on these tales: no model does better on average.

    Args:
        tales: tales of the language.
        n_tokens: how many tokens a model predicts in them, the end of each tale included.

    Returns:
        Nats a token.

    Raises:
        ValueError: a tale is not in the language, or `n_tokens` is not positive.

    Example:
        >>> tales, tokenizer = load_tales("validation"), load_tokenizer(DATA_DIR)
        >>> n_tokens = sum(len(tokenizer.encode(tale)) + 1 for tale in tales)  # and the end of each tale
        >>> round(entropy_floor(tales, n_tokens), 3)
        0.492
    """
    if n_tokens < 1:
        raise ValueError(f"n_tokens must be at least 1, got {n_tokens}")
    nats = 0.0
    for tale in tales:
        nats -= log_probability(tale)
        if math.isinf(nats):
            raise ValueError(f"every tale must be in the language, got {tale[:60]!r}")
    return nats / n_tokens


def write_corpus(folder: PathLike = DATA_DIR, seed: int = SEED) -> None:
    """Write the course's corpus: 2,250 tales to train on, then 250 for validation, all drawn from one seed."""
    tales = generate_tales(N_TRAIN + N_VALIDATION, seed)
    for split, part in {"train": tales[:N_TRAIN], "validation": tales[N_TRAIN:]}.items():
        write_atomic(Path(folder) / FILES[split], SEPARATOR.join(part))


def load_tales(split: str) -> list[str]:
    """Read the committed tales of one split.

    Args:
        split: "train" or "validation".

    Returns:
        The tales, without separators.

    Raises:
        ValueError: there is no such split.
        OSError: the corpus is missing; `make data` writes it.

    Example:
        >>> len(load_tales("train")), len(load_tales("validation"))
        (2250, 250)
    """
    if split not in FILES:
        raise ValueError(f"split must be one of {', '.join(FILES)}, got {split!r}")
    return (DATA_DIR / FILES[split]).read_text(encoding="utf-8").split(SEPARATOR)
