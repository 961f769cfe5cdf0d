"""Grammars with memory: a notation, sampling, parsing, and the exact entropy of what they write.

A grammar writes a text from left to right. Text is fixed, or chosen among weighted options; what is chosen can be
remembered and comes back later. `tales_grammar` explains the notation and holds the grammar of the tales.

Source: Chomsky 1956, "Three Models for the Description of Language" (grammars that generate); Booth and Thompson 1973,
"Applying Probability Measures to Abstract Languages" (a probability for every rule).
"""

import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Option:
    """One way on from a choice: its probability, the parts it writes, and what it leaves in memory."""

    label: str
    probability: float
    body: tuple
    remembers: dict[str, str]


@dataclass(frozen=True)
class Choice:
    """A weighted choice: the only part of a grammar that carries information."""

    name: str
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Recall:
    """Writes what a variable remembers, behind "a" or "an" if there is an article, with a capital if there is one."""

    variable: str
    article: str = ""
    capital: bool = False

    def text(self, memory: dict[str, str]) -> str:
        """The words that the part writes, given the memory."""
        word = memory[self.variable]
        return with_article(self.article, word.capitalize() if self.capital else word)


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
        ValueError: the brackets of a template do not match, or an option is empty.
    """

    def __init__(self, rules: dict[str, str], words: dict[str, str]):
        self._rules, self._words = rules, words
        self.cases: set[str] = set()
        self.start = self._template("tale", rules["tale"])

    def generate(self, rng: random.Random) -> tuple[str, list[Step]]:
        """Draw one text, with the choices that made it.

        Only `rng.random()` is used, which gives the same numbers in every version of Python.
        """
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
                lead = option.body[0]
                if not isinstance(lead, str) or text.startswith(lead, position):
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
        body, rest = self._sequence(name, tokens, itertools.count(1))
        if rest or "".join(tokens) != text:
            raise ValueError(f"brackets must match in a template, got {text!r} for {name!r}")
        return body

    def _sequence(self, name: str, tokens: list[str], numbers: Iterator[int]) -> tuple[tuple, list[str]]:
        """Compile tokens up to a "|" or "]" that ends the sequence; return the parts, and the tokens that are left."""
        parts: list[str | Choice | Recall | Case] = []
        while tokens and tokens[0] not in ("|", "]"):
            token, *tokens = tokens
            if token == "[":
                choice, tokens = self._options(name, tokens, numbers)
                parts.append(choice)
            else:
                parts += self._slot(token) if token[0] in "{<" else (token,)
        return tuple(parts), tokens

    def _options(self, name: str, tokens: list[str], numbers: Iterator[int]) -> tuple[Choice, list[str]]:
        """Compile the options of a choice behind its "["; return the choice, and the tokens behind its "]"."""
        label, weighted, end = f"{name} {next(numbers)}", [], "|"
        while end == "|":
            body, rest = self._sequence(name, tokens, numbers)
            source, weight = _weight("".join(tokens[: len(tokens) - len(rest)]))
            if weight > 1:
                body = (*body[:-1], *filter(None, _weight(body[-1])[:1]))
            if not body:
                raise ValueError(f"every option must write something, got an empty one in a template for {name!r}")
            weighted.append((source, weight, body, {}))
            end, *tokens = rest or ["nothing"]
        if end != "]":
            raise ValueError(f"brackets must match in a template, got a [ without its ] for {name!r}")
        return _choice(label, weighted), tokens

    def _slot(self, token: str) -> tuple:
        """The parts that a `{slot}` or a `<slot>` stands for."""
        article, new, name = re.fullmatch(r"[{<](?:(a|A) )?(new )?(.+)[}>]", token).groups(default="")
        if token[0] == "{" and not new:
            return (Recall(name.lower(), article, name[0].isupper()),)
        if " by " in name:
            stem, variable = name.split(" by ")
            self.cases.add(variable)
            rules = [rule for rule in self._rules if rule.startswith(f"{stem} ")]
            branches = {rule.removeprefix(f"{stem} "): self._template(rule, self._rules[rule]) for rule in rules}
            return (Case(variable, branches),)
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
