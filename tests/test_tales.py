"""The tales: one derivation each, exact probabilities, an exact entropy, and a corpus that is what it says."""

import math
import random
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise, permutations

import pytest

import l1_ref
from l1_ref import tales
from l1_ref.grammar import Case, Choice, Grammar, Recall, Step
from l1_ref.tokenizer import END_OF_TEXT, build_tokenizer


@pytest.fixture(scope="module")
def small() -> Grammar:
    """A language small enough to write out in full, with memory, articles, cases, weights and nested choices."""
    rules = {
        "tale": "{A new colour} {new pet} [met a <friend by pet>[!*3|?]|saw {a new child}, and <end by he>]",
        "friend cat": "[mouse|{new bird} and {a colour} {bird}]",
        "friend dog": "cat",
        "end she": "{he} [ran|saw {a colour} {pet}*3].",
        "end he": "sang.¶{He} was [{colour}|old [and <bird>like|but <colour>]].",
    }
    words = {
        "colour": "colour; red*3, orange, blue",
        "pet": "pet; cat*2, dog",
        "bird": "bird; wren, owl",
        "child": "child / he; girl*2 / she; boy, uncle / he",
    }
    return Grammar(rules, words)


@pytest.fixture(scope="module")
def drawn() -> list[tuple[str, list[Step]]]:
    """Twelve thousand tales, each with the choices that wrote it."""
    rng = random.Random(7)
    return [tales.grammar().generate(rng) for _ in range(12_000)]


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return tales.load_tales("train") + tales.load_tales("validation")


def every_choice(sequence: tuple) -> list[Choice]:
    """All choices below a sequence of parts."""
    found = []
    for part in sequence:
        if isinstance(part, Choice):
            found += [part, *(choice for option in part.options for choice in every_choice(option.body))]
        elif isinstance(part, Case):
            found += [choice for body in part.branches.values() for choice in every_choice(body)]
    return found


def values(grammar: Grammar) -> dict[str, set[str]]:
    """Every word that each variable can remember."""
    found: dict[str, set[str]] = {}
    for choice in every_choice(grammar.start):
        for option in choice.options:
            for variable, word in option.remembers.items():
                found.setdefault(variable, set()).add(word)
    return found


def leads(sequence: tuple, known: dict[str, set[str]]) -> set[str]:
    """Every fixed text that a sequence can begin with."""
    first = sequence[0]
    if isinstance(first, str):
        return {first}
    if isinstance(first, Recall):
        return {first.text({first.variable: word}) for word in known[first.variable]}
    bodies = [o.body for o in first.options] if isinstance(first, Choice) else first.branches.values()
    return {lead for body in bodies for lead in leads(body, known)}


def clashes(grammar: Grammar) -> list[tuple[str, str, str]]:
    """Options of one choice of which one can begin with all that another begins with."""
    known = values(grammar)
    return [
        (choice.name, a, b)
        for choice in every_choice(grammar.start)
        for one, other in permutations(choice.options, 2)
        for a in leads(one.body, known)
        for b in leads(other.body, known)
        if b.startswith(a)
    ]


def test_every_choice_is_a_prefix_code_so_every_tale_of_the_language_has_one_derivation():
    # Given the memory, no two options can both match at one place of a text: reading from the left never has a choice.
    assert len(every_choice(tales.grammar().start)) > 200
    assert clashes(tales.grammar()) == []


def test_the_proof_sees_an_ambiguity_and_so_does_the_parser():
    grammar = Grammar({"tale": "The [owl|owl and the] [.| owl.]"}, {})
    assert ("tale 1", "owl", "owl and the") in clashes(grammar)
    twice = Grammar({"tale": "[a|ab][b|bb|c]"}, {})
    assert len(twice.derivations("abb")) == 2


def test_parsing_gives_back_exactly_the_choices_that_wrote_each_tale(drawn):
    for tale, steps in drawn[:3000]:
        assert tales.grammar().derivations(tale) == [steps]


def test_every_tale_of_the_corpus_has_exactly_one_derivation(corpus):
    assert all(len(tales.grammar().derivations(tale)) == 1 for tale in corpus)


def test_an_ambiguous_tale_is_refused(monkeypatch):
    twice = Grammar({"tale": "[a|ab][b|bb|c]"}, {})
    monkeypatch.setattr(tales, "grammar", lambda: twice)
    with pytest.raises(ValueError, match="one derivation, got 2"):
        tales.log_probability("abb")


def test_small_language_sums_to_one_and_its_entropy_is_the_sum_over_all_texts(small):
    texts = list(small.texts())
    probabilities = Counter()
    for text, probability in texts:
        probabilities[text] += probability
    assert clashes(small) == [] and len(texts) == len(probabilities) > 100
    assert math.fsum(probabilities.values()) == pytest.approx(1, abs=1e-12)
    assert small.entropy() == pytest.approx(-math.fsum(p * math.log(p) for p in probabilities.values()), abs=1e-12)
    for text, probability in texts:
        (steps,) = small.derivations(text)
        assert math.prod(step.probability for step in steps) == pytest.approx(probability, rel=1e-12)


def test_small_language_is_drawn_as_often_as_it_should_be(small):
    rng, n = random.Random(3), 10_000
    counts = Counter(small.generate(rng)[0] for _ in range(n))
    exact = dict(small.texts())
    assert counts.keys() <= exact.keys()
    for text, probability in exact.items():
        assert abs(counts[text] - n * probability) < 5 * math.sqrt(n * probability) + 5


def test_entropy_agrees_with_the_mean_over_tales(drawn):
    nats = [-math.fsum(math.log(step.probability) for step in steps) for _, steps in drawn]
    mean = math.fsum(nats) / len(nats)
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in nats) / len(nats))
    assert abs(mean - tales.entropy()) < 4 * deviation / math.sqrt(len(nats))


def test_log_probability_is_the_sum_over_the_derivation(drawn):
    for tale, steps in drawn[:200]:
        assert tales.derivation(tale) == steps
        assert tales.log_probability(tale) == pytest.approx(sum(math.log(step.probability) for step in steps))
        assert tales.log_probability(tale) < -20


def test_a_tale_that_was_tampered_with_is_not_in_the_language(drawn):
    names = re.compile(r"\b(Ada|Nell|Rosa|Tom|Otto|Finn)\b")
    swapped = 0
    for tale, _ in drawn[:300]:
        hits = list(names.finditer(tale))
        if len(hits) > 1:
            swapped += 1
            start, end = hits[-1].span()
            assert tales.log_probability(f"{tale[:start]}Bartholomew{tale[end:]}") == -math.inf
            other = "Nell" if hits[-1].group() != "Nell" else "Tess"
            assert tales.log_probability(tale[:start] + other + tale[end:]) == -math.inf
        words = tale.split(" ")
        middle = len(words) // 2
        assert tales.log_probability(" ".join([*words[:middle], "very", *words[middle:]])) == -math.inf
        assert tales.log_probability(tale[:-1]) == tales.log_probability(tale + " ") == -math.inf
    assert swapped > 100 and tales.log_probability("") == tales.log_probability("Once upon a time.") == -math.inf


def test_a_colour_remembered_wrongly_is_not_in_the_language(drawn):
    snow = next(tale for tale, _ in drawn if "built a snowman" in tale)
    colour, wear = re.search(r" and an? (\w+) (\w+)\.\n", snow).groups()
    end = snow.rindex(f"{colour} {wear}")
    wrong = "red" if colour != "red" else "blue"
    changed = snow[:end] + snow[end:].replace(colour, wrong, 1)
    assert changed != snow and tales.log_probability(changed) == -math.inf


def test_english_of_the_tales(drawn):
    vowel = re.compile(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]")
    for tale, _ in drawn[:5000]:
        assert not vowel.search(tale), tale
        words = re.findall(r"\w+", tale.lower())
        assert all(a != b for a, b in pairwise(words)), tale
        girl = " girl called " in tale
        assert not re.search(r"\b(he|him|his)\b" if girl else r"\b(she|her)\b", tale, re.IGNORECASE), tale
        assert girl or " boy called " in tale
        assert tale[-1] in '."' and tale.count('"') % 2 == 0 and "  " not in tale and " \n" not in tale
        assert all(line[0].isupper() or line[0] == '"' for line in re.split(r"\n|(?<=[.]) ", tale)), tale


def test_the_hero_returns_in_every_tale(drawn):
    for tale, _ in drawn[:2000]:
        hero = re.search(r"(?:girl|boy) called (\w+)", tale).group(1)
        assert len(re.findall(rf"\b{hero}\b", tale)) >= 2, tale


def test_weights_choose_as_they_say():
    grammar = Grammar({"tale": "<pet> [a*3|b]"}, {"pet": "pet; cat*4, dog"})
    probabilities = dict(grammar.texts())
    assert probabilities == pytest.approx({"cat a": 0.6, "cat b": 0.2, "dog a": 0.15, "dog b": 0.05})


@pytest.mark.parametrize("template", ["a [b", "a [b|c", "a ] b", "a {b"])
def test_a_template_with_loose_brackets_names_its_rule(template):
    with pytest.raises(ValueError, match=r"brackets must match.*'tale'"):
        Grammar({"tale": template}, {})


def test_an_empty_option_is_an_error():
    with pytest.raises(ValueError, match="every option must write something"):
        Grammar({"tale": "a[|b]"}, {})


def test_every_case_has_a_branch_for_every_value_it_can_meet():
    def cases(sequence: tuple) -> list[Case]:
        inside = [part.branches.values() for part in sequence if isinstance(part, Case)]
        inside += [[o.body for o in part.options] for part in sequence if isinstance(part, Choice)]
        found = [part for part in sequence if isinstance(part, Case)]
        return found + [case for bodies in inside for body in bodies for case in cases(body)]

    known = values(tales.grammar())
    found = cases(tales.grammar().start)
    assert {case.variable for case in found} == tales.grammar().cases
    assert all(known[case.variable] == set(case.branches) for case in found)


def test_a_template_that_names_nothing_is_an_error():
    with pytest.raises(KeyError, match="ghost"):
        Grammar({"tale": "<ghost>"}, {})


def test_the_committed_corpus_is_what_the_seed_gives(tmp_path):
    tales.write_corpus(tmp_path)
    for name in tales.FILES.values():
        assert (tmp_path / name).read_bytes() == (l1_ref.DATA_DIR / name).read_bytes()


def test_corpus_size_form_and_splits(corpus):
    train, validation = tales.load_tales("train"), tales.load_tales("validation")
    assert (len(train), len(validation)) == (tales.N_TRAIN, tales.N_VALIDATION)
    assert len(validation) * 9 == len(train) and not set(train) & set(validation)
    assert len(set(corpus)) == len(corpus)
    size = sum((l1_ref.DATA_DIR / name).stat().st_size for name in tales.FILES.values())
    assert 900_000 < size < 1_200_000
    raw = b"".join((l1_ref.DATA_DIR / name).read_bytes() for name in tales.FILES.values())
    assert b"\r" not in raw and raw.isascii()
    assert f"\n{END_OF_TEXT}\n" == tales.SEPARATOR and all(END_OF_TEXT not in tale for tale in corpus)


def test_tales_fit_the_tiny_model_under_their_own_tokenizer(corpus):
    tokenizer = build_tokenizer("bpe:1000", tales.load_tales("train"))
    lengths = [len(tokenizer.encode(tale)) for tale in corpus]
    assert max(lengths) <= 126
    n_tokens = sum(lengths) + len(lengths)
    assert 0.4 < tales.entropy_floor(corpus, n_tokens) < 1.3
    assert tales.entropy_floor(corpus, n_tokens) == pytest.approx(tales.entropy() * len(corpus) / n_tokens, rel=0.02)


def test_no_tale_of_the_language_is_long():
    def longest(sequence: tuple) -> int:
        total = 0
        for part in sequence:
            if isinstance(part, str | Recall):
                texts = {part} if isinstance(part, str) else leads((part,), known)
                total += max(len(re.findall(r"\w+|[^\w\s]+", text)) for text in texts)
            else:
                ways = [o.body for o in part.options] if isinstance(part, Choice) else part.branches.values()
                total += max(longest(body) for body in ways)
        return total

    known = values(tales.grammar())
    assert longest(tales.grammar().start) <= 126


def test_every_plot_is_told_often(corpus):
    marks = "lost h|took |cooked a|a secret one|there was a|afraid of the dark|The moon is|built a snowman"
    marks += "|will help you|Who needs|and wanted a|It worked|broke, and"
    counts = Counter(match for tale in corpus for match in set(re.findall(marks, tale)))
    plots = [mark for mark in marks.split("|") if counts[mark] > 100]
    assert len(plots) >= 10


def test_entropy_floor_is_nats_a_token_and_refuses_strangers():
    some = tales.generate_tales(20, seed=5)
    expected = -sum(tales.log_probability(tale) for tale in some) / 1000
    assert tales.entropy_floor(iter(some), 1000) == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"every tale must be in the language, got 'A stranger'"):
        tales.entropy_floor([*some, "A stranger"], 1000)
    with pytest.raises(ValueError, match=r"n_tokens must be at least 1, got 0"):
        tales.entropy_floor(some, 0)


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match=r"split must be one of train, validation, got 'test'"):
        tales.load_tales("test")


def test_the_same_seed_gives_the_same_tales():
    assert tales.generate_tales(5, seed=1) == tales.generate_tales(5, seed=1) != tales.generate_tales(5, seed=2)
    assert tales.generate_tales(1, seed=1) == [tales.generate_tale(random.Random(1))]


def test_the_module_loads_without_torch():
    code = "import sys, l1_ref.tales; print('torch' in sys.modules, 'tiktoken' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_the_sizes_that_the_readme_names(corpus):
    readme = (l1_ref.DATA_DIR / "README.md").read_text(encoding="utf-8")
    for split, name in tales.FILES.items():
        size = (l1_ref.DATA_DIR / name).stat().st_size
        assert f"| `{name}` | {len(tales.load_tales(split)):,} | {size:,} |" in readme
    assert f"one seed, {tales.SEED}," in readme
