"""What a person looks up: an example for every public name, the table of names in pydoc, the map in the README."""

import ast
import doctest
import inspect
import io
import os
import pydoc
import re
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import l1_ref
from l1_ref import checks
from l1_ref.checks import EXERCISES

ROOT = Path(__file__).parents[1]
CONSTANTS = {"PRESETS": "l1_ref.config", "DATA_DIR": "l1_ref.data"}  # their examples stand in their modules' docstrings


@cache
def namespace() -> dict:
    """Return what the examples may use without importing it, as the package's docstring says."""
    names: dict = {}
    exec("import torch\nfrom l1_ref import *\nfrom l1_ref import checks", names)
    return names


def examples(name: str, package: Any = l1_ref) -> doctest.DocTest:
    """Return the example of a public name; of a constant, the one in its module's docstring."""
    there = import_module(CONSTANTS[name]) if name in CONSTANTS else getattr(package, name)
    (found,) = doctest.DocTestFinder(recurse=False).find(there, name, module=False, globs=dict(namespace()))
    return found


def run(test: doctest.DocTest) -> str:
    """Run an example; return what doctest has against it."""
    told = io.StringIO()
    doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF).run(test, out=told.write)
    return told.getvalue()


@pytest.mark.parametrize("name", l1_ref.__all__)
def test_every_public_name_has_an_example_that_is_true(name, request):
    if name == "GPT2Tokenizer":
        request.getfixturevalue("gpt2_vocabulary")
    test = examples(name)
    assert any(re.search(rf"\b{name}\b", each.source) for each in test.examples), f"{name} has no example of itself"
    assert any(each.want for each in test.examples), f"the example of {name} shows no result"
    assert run(test) == ""


@pytest.mark.parametrize("name", sorted(set(checks.__all__) - {"EXERCISES"}))
def test_every_public_name_of_the_checks_has_an_example_that_is_true(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # in no workspace
    monkeypatch.delenv("L1_WORKSPACE", raising=False)
    monkeypatch.setattr(checks, "EXERCISES", dict(EXERCISES))
    monkeypatch.setattr(checks, "_asked_to_show", set())
    test = examples(name, checks)
    assert any(re.search(rf"\bchecks\.{name}\b", each.source) for each in test.examples)
    assert any(each.want for each in test.examples)
    assert run(test) == ""


@pytest.fixture
def gpt2_vocabulary() -> None:
    from l1_ref.tokenizer import GPT2Tokenizer

    try:
        GPT2Tokenizer()
    except ConnectionError:
        if "CI" in os.environ:
            raise
        pytest.skip("GPT-2's vocabulary is neither on this machine nor within reach")


def test_an_example_that_is_wrong_is_noticed():
    wrong = doctest.DocTestParser().get_doctest(
        ">>> softmax(torch.zeros(2), 0).tolist()\n[0.5, 0.4]\n", namespace(), "", "", 0
    )
    assert "- [0.5, 0.4]" in run(wrong)


@pytest.mark.parametrize("name", sorted(set(l1_ref.__all__) - CONSTANTS.keys()))
def test_an_example_stands_where_it_is_looked_for(name):
    text = inspect.getdoc(getattr(l1_ref, name))
    parts = [part for part in re.findall(r"^(Args|Returns|Yields|Raises|Example|Source):", text, re.MULTILINE)]
    assert parts == sorted(parts, key=["Args", "Returns", "Yields", "Raises", "Example", "Source"].index)
    assert parts.count("Example") == 1
    assert len(examples(name).examples) <= 7 and max(map(len, text.splitlines())) <= 116


def summary(name: str) -> str:
    """Return the first sentence of a name's docstring."""
    paragraph = inspect.getdoc(getattr(l1_ref, name)).split("\n\n")[0]
    return " ".join(paragraph.split())


def listed() -> dict[str, dict[str, str]]:
    """Return the table in the package's docstring: by module, each name with its line."""
    table: dict[str, dict[str, str]] = {}
    for line in l1_ref.__doc__.splitlines():
        if module := re.fullmatch(r"([a-z_]+):", line):
            rows = table.setdefault(module[1], {})
        elif row := re.fullmatch(r"    (\w+) {2,}(\S.*)", line):
            rows[row[1]] = row[2]
    return table


def test_the_packages_docstring_lists_every_name_under_its_module():
    assert {module: " ".join(rows) for module, rows in listed().items()} == l1_ref._NAMES


@pytest.mark.parametrize("module", l1_ref._NAMES)
def test_each_line_of_the_list_is_the_beginning_of_that_names_docstring(module):
    for name, line in listed()[module].items():
        if name not in CONSTANTS:
            whole = summary(name)
            assert whole.startswith(line), f"{name}: {line!r} is not how its docstring begins: {whole!r}"
            assert re.match(r"[.:;,]| \(|$", whole[len(line) :]), f"{name}: {line!r} breaks off in the middle"


def test_pydoc_shows_the_list_first_and_finds_each_name():
    text = pydoc.render_doc("l1_ref", renderer=pydoc.plaintext)
    description = text[text.index("DESCRIPTION") : text.index("PACKAGE CONTENTS")]
    assert all(re.search(rf"^ +{name} {{2,}}\S", description, re.MULTILINE) for name in l1_ref.__all__)
    for name in ("softmax", "L1Model", "train_bpe"):
        page = pydoc.render_doc(f"l1_ref.{name}", renderer=pydoc.plaintext)
        assert f"{name} in l1_ref" in page.splitlines()[0] and summary(name)[:40] in page and "Example:" in page


def readme_map() -> list[tuple[str, str, str, str]]:
    """Return the rows of the README's map: idea, notebook, function, test."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"<!-- map -->\n(.*?)<!-- /map -->", text, re.DOTALL)
    head, rule, *rows = (tuple(map(str.strip, line.strip("|").split("|"))) for line in table.splitlines())
    assert head == ("idea", "notebook", "function", "test") and rule == ("---",) * 4
    assert rows and all(len(row) == 4 for row in rows)
    return rows


def defined(path: Path) -> set[str]:
    """Return the functions and classes that a file defines."""
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def cell(text: str) -> tuple[Path, str]:
    """Read a cell of the map, a name that links to its file: [`name`](path)."""
    name, path = re.fullmatch(r"\[`?([\w.]+)`?\]\(([\w./-]+)\)", text).groups()
    return ROOT / path, name


def test_the_map_leads_to_what_is_there():
    for idea, notebook, function, test in readme_map():
        path, name = cell(notebook)
        assert path.is_file() and path.stem == name, (idea, notebook)
        for text in (function, test):
            path, name = cell(text)
            assert path.is_file() and name in defined(path), (idea, text)
        assert cell(test)[1].startswith("test_")


def test_the_map_shows_every_exercise_in_the_notebook_that_teaches_it():
    notebook_of = {cell(function)[1]: cell(notebook)[1] for _, notebook, function, _ in readme_map()}
    taught = {name: each.notebook for name, each in EXERCISES.items() if name in l1_ref.__all__}
    assert {name: notebook_of.get(name) for name in taught} == taught


def test_the_map_has_one_line_an_idea():
    ideas = [row[0] for row in readme_map()]
    assert len(ideas) == len(set(ideas)) and all(len(idea) <= 60 for idea in ideas)
