"""The notebooks: built ones match their sources, have all their parts, and the numbers in their prose hold.

The complete editions are run again and compared by nbval, outside this file: pytest --nbval notebooks. The blank ones
are run by test_classroom.py, as submissions.
"""

import ast
import math
import re

import nbformat
import pytest
import torch

import l1_ref
from l1_ref import checks
from l1_ref.course import build, sources
from l1_ref.data import make_document_corpus

NAMES = sources.names()
IMPORTS = (ast.Import, ast.ImportFrom)


def prose(name):
    cells = sources.load(name).cells
    return " ".join(" ".join(cell.source for cell in cells if cell.cell_type == "markdown").split())


def test_the_built_notebooks_match_their_sources():
    assert NAMES[0] == "00_start_here"
    assert build.check_built() == []


@pytest.mark.parametrize("name", NAMES)
def test_every_exercise_has_its_check_and_belongs_to_its_notebook(name):
    exercises = [c.metadata["name"] for c in sources.load(name).cells if "exercise" in sources.tags(c)]
    assert exercises == [each.name for each in checks.EXERCISES.values() if each.notebook == name]


def solutions(name):
    """Return what the exercise cells of a complete edition define, run behind the notebook's imports."""
    cells = [cell for cell in sources.load(name).cells if cell.cell_type == "code"]
    imports = [node for cell in cells for node in ast.parse(cell.source).body if isinstance(node, IMPORTS)]
    namespace: dict = {}
    exec(compile(ast.Module(imports, []), name, "exec"), namespace)
    for cell in cells:
        if "exercise" in sources.tags(cell):
            exec(cell.source, namespace)
    return namespace


@pytest.mark.parametrize("name", NAMES)
def test_the_notebooks_definitions_and_the_references_are_the_same(name):
    written = solutions(name)
    for exercise in [each for each in checks.EXERCISES.values() if each.notebook == name]:
        mine = written[exercise.name]
        verdict = exercise.diagnose(mine)
        assert verdict.state == "solved", verdict.text
        if not exercise.init:
            continue
        for probe in exercise.probes:
            inputs = probe.build(torch.Generator().manual_seed(0))
            ours, theirs = (make(*(inputs[key] for key in exercise.init)) for make in (mine, exercise.reference))
            ours.load_state_dict(theirs.state_dict(), strict=True)
            theirs.load_state_dict(ours.state_dict(), strict=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_has_all_its_parts(name):
    text = prose(name)
    names = [each.name for each in checks.EXERCISES.values() if each.notebook == name]
    assert re.search(r"\*\*Goals\.\*\*.*\*\*Time\.\*\*.*\*\*You need\.\*\*", text)
    assert "Predict before you run" in text and "Bug hunt" in text and "What you have now" in text
    assert len(names) >= (2 if name == NAMES[0] else 4), names


@pytest.mark.parametrize("name", NAMES)
def test_the_summary_names_what_exists(name):
    rows = re.findall(r"`l1_ref\.(\w+)`[^|]*?`l1_ref/(\w+)\.py`", prose(name))
    assert rows
    for what, module in rows:
        assert getattr(l1_ref, what).__module__ == f"l1_ref.{module}"


@pytest.mark.parametrize("name", NAMES)
def test_a_complete_edition_holds_no_progress_and_no_noise(name):
    notebook = nbformat.read(build.BUILT / f"{name}.ipynb", as_version=4)
    text = nbformat.writes(notebook)
    assert not re.search(r"/home/|/tmp/|/work/|iopub|SOLUTION|nbgrader", re.sub(r"base64,[^\"]+", "", text))
    assert all("execution" not in cell.metadata for cell in notebook.cells)


# What 00_start_here says in prose.


def test_a_float32_ends_where_the_prose_says():
    assert torch.finfo(torch.float32).max == pytest.approx(3.4e38, rel=0.01)
    assert torch.exp(torch.tensor(89.0)).isinf() and torch.exp(torch.tensor(88.0)).isfinite()


def test_a_step_of_one_divides_the_probability_by_e():
    p = l1_ref.softmax(torch.tensor([2.0, 1.0, 0.0, -1.0]), 0)
    assert torch.allclose(p[:-1] / p[1:], torch.full((3,), math.e)) and "2.718" in prose("00_start_here")


def test_the_alt_texts_of_the_bug_hunt_tell_the_truth():
    scores = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0])
    broken = [l1_ref.softmax(scores * t, -1).max() for t in (0.5, 1.0, 2.0)]
    mended = [checks.EXERCISES["tempered_softmax"].reference(scores, t).max() for t in (0.5, 1.0, 2.0)]
    assert broken == sorted(broken) and mended == sorted(mended, reverse=True)


@pytest.fixture(scope="module")
def tiny():
    return l1_ref.load_run(l1_ref.DATA_DIR / "tiny")


def test_ten_adjectives_share_the_probability_evenly(tiny):
    ids = [tiny.tokenizer.end_of_text, *tiny.tokenizer.encode("Behind the little bridge lived a")]
    chances = l1_ref.softmax(tiny.model(torch.tensor([ids]))[0, -1], dim=-1).topk(11).values
    assert chances[:10].sum() > 0.95 and chances[9] > 0.75 * chances[0] and chances[10] < 0.02


def test_the_curve_begins_at_knowing_nothing_and_training_lies_above_validation(tiny):
    first, *curve = tiny.metrics["curve"]
    assert first["step"] == 0 and first["validation_loss"] == pytest.approx(math.log(1000), abs=0.2)
    assert all(point["training_loss"] > point["validation_loss"] for point in curve)


def test_a_row_that_is_filled_up_with_the_next_tale_is_harder_to_guess(tiny):
    tales = l1_ref.load_tales("validation")
    corpus = make_document_corpus(tales, tales, tiny.tokenizer)
    rows = [corpus.batch(32, 128, torch.Generator().manual_seed(seed)) for seed in range(8)]
    whole = l1_ref.evaluate(tiny.model, corpus.validation_batches(128, 32))
    assert l1_ref.evaluate(tiny.model, rows) > whole + 0.02
