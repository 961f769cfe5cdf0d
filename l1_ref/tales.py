"""A language of short tales whose every probability is known: sampling, exact log-probability, exact entropy.

A grammar with memory writes each tale. Text is fixed, or chosen among weighted options; what is chosen can be remembered
and comes back later. So the loss that no model can beat is a number here, and not a guess.

Source: Chomsky 1956, "Three Models for the Description of Language" (grammars that generate); Booth and Thompson 1973,
"Applying Probability Measures to Abstract Languages" (a probability for every rule); Eldan and Li 2023, "TinyStories"
(short tales for small models).
"""

import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from l1_ref.files import DATA_DIR, PathLike, write_atomic
from l1_ref.tales_grammar import RULES, WORDS

SEED = 1948
N_TRAIN, N_VALIDATION = 2250, 250
SEPARATOR = "\n<|endoftext|>\n"
FILES = {"train": "tales-train.txt", "validation": "tales-validation.txt"}


@dataclass(frozen=True)
class Option:
    """One way on from a choice: its probability, the parts it writes, and what it leaves in memory."""

    label: str
    probability: float
    body: tuple
    remembers: dict[str, str] = field(default_factory=dict)

    @property
    def lead(self) -> str:
        """The fixed text that the option begins with, if it begins with any."""
        return self.body[0] if isinstance(self.body[0], str) else ""


@dataclass(frozen=True)
class Choice:
    """A weighted choice: the only part of a grammar that carries information."""

    name: str
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Recall:
    """Writes what a variable remembers, behind "a" or "an" if `article` says so."""

    variable: str
    article: str = ""

    def text(self, memory: dict[str, str]) -> str:
        """The words that the part writes, given the memory; a capital in the variable's name is passed on."""
        word = memory[self.variable.lower()]
        return with_article(self.article, word.capitalize() if self.variable[0].isupper() else word)


@dataclass(frozen=True)
class Case:
    """Goes on with the branch that the remembered value of a variable names."""

    variable: str
    branches: dict[str, tuple]


class Step(NamedTuple):
    """One choice of a derivation: which choice it was, the option taken, and its probability."""

    choice: str
    option: str
    probability: float


def with_article(article: str, word: str) -> str:
    """The word behind "a" or "an" ("A" or "An"), or alone where `article` is empty."""
    return f"{article}{'n' if word[0] in 'aeiou' else ''} {word}" if article else word


class Grammar:
    """A grammar with memory: a finite tree of choices, compiled from the notation of `tales_grammar`.

    A sequence is a tuple of parts, each a `str`, `Choice`, `Recall` or `Case`. No rule leads back to itself, so the
    language is finite, and so is every sum over it.

    Args:
        rules: template of each rule by name; "tale" is the start.
        words: word list of each kind by name.

    Raises:
        KeyError: a template names a rule or a word list that does not exist.
        ValueError: the brackets of a template do not match.
    """

    def __init__(self, rules: dict[str, str], words: dict[str, str]):
        self._rules, self._words = rules, words
        self.cases: set[str] = set()
        self.start = self._template("tale", rules["tale"])

    def generate(self, rng: random.Random) -> tuple[str, list[Step]]:
        """Draw one text, with the choices that made it; only `rng.random()` is used, which no Python version changes."""
        memory, steps = {}, []
        text, choice, todo = _write(self.start, memory)
        while choice:
            option = _draw(choice, rng.random())
            memory |= option.remembers
            steps.append(Step(choice.name, option.label, option.probability))
            piece, choice, todo = _write(option.body + todo, memory)
            text += piece
        return text, steps

    def derivations(self, text: str) -> list[list[Step]]:
        """Find every way in which the grammar can write the text, by trying all options of all choices."""
        found, pending = [], [(0, self.start, {}, None)]
        while pending:
            position, todo, memory, trail = pending.pop()
            piece, choice, todo = _write(todo, memory)
            if not text.startswith(piece, position):
                continue
            position += len(piece)
            if choice is None and position == len(text):
                found.append(_unwind(trail))
            for option in choice.options if choice else ():
                if text.startswith(option.lead, position):
                    step = Step(choice.name, option.label, option.probability)
                    pending.append((position, option.body + todo, memory | option.remembers, (trail, step)))
        return found

    def texts(self) -> Iterator[tuple[str, float]]:
        """Every text of the language with its probability, one for each derivation: for small grammars only."""
        pending = [("", 1.0, self.start, {})]
        while pending:
            text, probability, todo, memory = pending.pop()
            piece, choice, todo = _write(todo, memory)
            if choice is None:
                yield text + piece, probability
            for option in choice.options if choice else ():
                later = (probability * option.probability, option.body + todo, memory | option.remembers)
                pending.append((text + piece, *later))

    def entropy(self) -> float:
        """The exact entropy, in nats a text: over all choices, the chance to meet it times the entropy of its options.

        It is the entropy of the derivations, and of the texts too where each text has one derivation.

        Source: Shannon 1948, "A Mathematical Theory of Communication", sections 6 and 7; Soule 1974, "Entropies of
        Probabilistic Grammars".
        """
        return self._entropy(self.start, Counter({frozenset(): 1.0}))[0]

    def _entropy(self, sequence: tuple, reach: Counter) -> tuple[float, Counter]:
        """Nats of a sequence, and how likely each memory is behind it; `reach` says how likely each is before it."""
        nats = 0.0
        for part in sequence:
            if isinstance(part, str | Recall):
                continue
            before, reach = reach, Counter()
            for body, entering, local in self._ways(part, before):
                inner, leaving = self._entropy(body, entering)
                nats += local + inner
                reach.update(leaving)
        return nats, reach

    def _ways(self, part: Choice | Case, reach: Counter) -> Iterator[tuple[tuple, Counter, float]]:
        """Each way through a part: its body, the memories that enter it, and the nats that the decision costs there.

        Of a memory only what some case asks for is kept, so that few memories have to be told apart.
        """
        options = part.options if isinstance(part, Choice) else ()
        for option in options:
            kept = {variable: word for variable, word in option.remembers.items() if variable in self.cases}
            entering = Counter()
            for memory, mass in reach.items():
                entering[frozenset((dict(memory) | kept).items())] += mass * option.probability
            yield option.body, entering, -reach.total() * option.probability * math.log(option.probability)
        for value, body in part.branches.items() if isinstance(part, Case) else ():
            entering = {memory: mass for memory, mass in reach.items() if dict(memory)[part.variable] == value}
            yield body, Counter(entering), 0.0

    def _template(self, name: str, text: str) -> tuple:
        """Compile a template; its own choices are named after the rule and numbered."""
        text = re.sub(r"(?<=[\[|])\s*\n\s*|\s*\n\s*(?=[|\]])", "", text.strip())
        text = re.sub(r" *¶ *", "\n", re.sub(r"\s+", " ", text))
        tokens = re.findall(r"\{[^{}]*\}|<[^<>]*>|[\[\]|]|[^\[\]{}<>|]+", text)
        numbers = iter(range(1, len(tokens) + 1))
        body, rest = self._sequence(name, tokens, numbers)
        if rest or "".join(tokens) != text:
            raise ValueError(f"brackets must match in a template, got {text!r} for {name!r}")
        return body

    def _sequence(self, name: str, tokens: list[str], numbers: Iterator[int]) -> tuple[tuple, list[str]]:
        """Compile tokens up to the end, a "|" or a "]" of an outer choice; return the parts and the tokens left."""
        parts = []
        while tokens and tokens[0] not in ("|", "]"):
            token, *tokens = tokens
            if token == "[":
                label, weighted = f"{name} {next(numbers)}", []
                while token != "]":
                    inside, (body, rest) = tokens, self._sequence(name, tokens, numbers)
                    if not rest:
                        raise ValueError(f"every [ needs its ], got a template without one for {name!r}")
                    source, weight = _weight("".join(inside[: len(inside) - len(rest)]))
                    body = tuple(_weight(part)[0] if isinstance(part, str) else part for part in body)
                    weighted.append((source, weight, tuple(part for part in body if part), {}))
                    token, *tokens = rest
                parts.append(_choice(label, weighted))
            else:
                parts += self._slot(token) if token[0] in "{<" else [token]
        return tuple(parts), tokens

    def _slot(self, token: str) -> tuple:
        """The parts that a `{slot}` or a `<slot>` stands for."""
        article, new, name = re.fullmatch(r"[{<](?:(a|A) )?(new )?(.+)[}>]", token).groups(default="")
        if token[0] == "{" and not new:
            return (Recall(name, article),)
        if " by " in name:
            stem, variable = name.split(" by ")
            self.cases.add(variable)
            rules = {rule: rule.removeprefix(stem + " ") for rule in self._rules if rule.startswith(stem + " ")}
            return (Case(variable, {value: self._template(rule, self._rules[rule]) for rule, value in rules.items()}),)
        if name in self._rules:
            return self._template(name, self._rules[name])
        return (self._word_list(name, article, bool(new)),)

    def _word_list(self, name: str, article: str, new: bool) -> Choice:
        """The choice among the words of a list; `new` words and their companions go to memory."""
        head, *rows = re.split(r"(?<!,)\n|;", self._words[name].strip())
        variables, weighted = head.strip().split(" / "), []
        for row in rows:
            group, *companions = row.strip().split(" / ")
            for source in group.split(","):
                word, weight = _weight(source.strip())
                memory = dict(zip(variables, [word, *companions], strict=True)) if new else {}
                weighted.append((word, weight, self._template(name, with_article(article, word)), memory))
        return _choice(name, weighted)


def _weight(source: str) -> tuple[str, int]:
    text, weight = re.fullmatch(r"(.*?)(?:\*(\d+))?", source, re.DOTALL).groups()
    return text, int(weight or 1)


def _choice(name: str, weighted: list[tuple[str, int, tuple, dict[str, str]]]) -> Choice:
    total = sum(weight for _, weight, _, _ in weighted)
    return Choice(name, tuple(Option(label, weight / total, *rest) for label, weight, *rest in weighted))


def _draw(choice: Choice, u: float) -> Option:
    for option in choice.options:
        u -= option.probability
        if u < 0:
            return option
    return choice.options[-1]


def _unwind(trail: tuple | None) -> list[Step]:
    steps = []
    while trail:
        trail, step = trail
        steps.append(step)
    return steps[::-1]


def _write(todo: tuple, memory: dict[str, str]) -> tuple[str, Choice | None, tuple]:
    """Write what needs no decision: the text up to the next choice, that choice, and the parts behind it."""
    text = ""
    while todo:
        part, todo = todo[0], todo[1:]
        if isinstance(part, Choice):
            return text, part, todo
        if isinstance(part, Case):
            todo = part.branches[memory[part.variable]] + todo
        else:
            text += part if isinstance(part, str) else part.text(memory)
    return text, None, ()


@cache
def grammar() -> Grammar:
    """The grammar of the tales, compiled at its first use."""
    return Grammar(RULES, WORDS)


def generate_tale(rng: random.Random) -> str:
    """Draw one tale; the same state of `rng` gives the same tale on every machine."""
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
    """
    steps = derivation(tale)
    return math.fsum(math.log(step.probability) for step in steps) if steps else -math.inf


def entropy() -> float:
    """The exact entropy of the language, in nats a tale: the mean of `-log_probability` over all tales.

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
    """
    if split not in FILES:
        raise ValueError(f"split must be one of {', '.join(FILES)}, got {split!r}")
    return (DATA_DIR / FILES[split]).read_text(encoding="utf-8").split(SEPARATOR)
