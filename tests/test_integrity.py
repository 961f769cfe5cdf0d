"""Ways of cheating that are read from a submission before it runs, or from its outputs; and honest work, let be."""

import ast
import asyncio
import json
import os
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from l1_ref import checks
from l1_ref.checks import integrity
from l1_ref.course import sources
from l1_ref.course.blank import instructor
from l1_ref.course.execution import run_submission
from l1_ref.course.integrity import RefuseCheats, look, refuse, require_verdicts
from l1_ref.course.kernels import Launcher
from l1_ref.course.limits import Limits

SETUP = "import math\n\nimport torch\n\nimport l1_ref\nfrom l1_ref import checks"
HONEST = (
    "def softmax(x, dim):\n    e = torch.exp(x - x.amax(dim, keepdim=True))\n    return e / e.sum(dim, keepdim=True)"
)
TEMPERED = "def tempered_softmax(logits, temperature):\n    return l1_ref.softmax(logits / temperature, -1)"
BOTH, ONE = ["softmax", "tempered_softmax"], ["softmax"]


def check_cell(name: str, **more) -> nbformat.NotebookNode:
    grading = {"grade": True, "grade_id": f"{name}-check", "locked": True, "points": 1, "schema_version": 3}
    grading |= {"solution": False, "task": False}
    return new_code_cell(f"checks.{name}({name})", metadata={"nbgrader": grading}, **more)


def submission(answer: str = HONEST, before: str = "", after: str = "") -> nbformat.NotebookNode:
    """Make a notebook of two exercises: the first with a cell before and a cell behind it, the second honest."""
    own = [new_code_cell(source) for source in (SETUP, before, answer, after)]
    return new_notebook(cells=[*own, check_cell("softmax"), new_code_cell(TEMPERED), check_cell("tempered_softmax")])


def body(*lines: str) -> dict[str, str]:
    return {"answer": "def softmax(x, dim):\n" + "".join(f"    {line}\n" for line in lines)}


def before(*lines: str) -> dict[str, str]:
    return {"before": "\n".join(lines)}


# Each way: the cells that differ from an honest notebook, words of the reason, and whose points it costs.
CHEATS = {
    "the reference called": (body("return l1_ref.softmax(x, dim)"), "the course's own softmax (l1_ref.softmax)", ONE),
    "the reference as the answer": ({"answer": "softmax = l1_ref.softmax"}, "the course's own softmax", ONE),
    "the reference imported": (
        {"answer": "from l1_ref import softmax as s\n\nsoftmax = lambda x, dim: s(x, dim)"},
        "the course's own softmax",
        ONE,
    ),
    "the reference imported inside": (
        body("from l1_ref.attention import softmax as s", "return s(x, dim)"),
        "(l1_ref.attention.softmax)",
        ONE,
    ),
    "the package under another name": (
        {"before": "import l1_ref as numpy_helpers", **body("return numpy_helpers.softmax(x, dim)")},
        "the course's own softmax",
        ONE,
    ),
    "a name put together": (
        body('return getattr(l1_ref, "soft" + "max")(x, dim)'),
        "the course's own softmax",
        ONE,
    ),
    "a name turned round": (body('return vars(l1_ref)["xamtfos"[::-1]](x, dim)'), "the course's own softmax", ONE),
    "a name that is computed": (
        body("return getattr(l1_ref, chr(115) + rest)(x, dim)"),
        "by a name that is computed",
        ONE,
    ),
    "given by checks": (body('return checks.give("softmax")(x, dim)'), "the course's own softmax", ONE),
    "the exercise's own field": (body("return checks.softmax.reference(x, dim)"), "the course's own softmax", ONE),
    "the table of exercises": (
        body('return checks.EXERCISES["softmax"].reference(x, dim)'),
        "the course's own softmax",
        ONE,
    ),
    "a version of the catalogue": (body("return checks.softmax.mistakes[0].wrong(x, dim)"), "inner parts", ONE),
    "a module of the checks": (
        body("from l1_ref.checks.start_here import tempered_softmax as t", "return t(x.movedim(dim, -1), 1.0)"),
        "inner parts",
        ONE,
    ),
    "through a helper": (
        {"before": "def helper(*a):\n    return l1_ref.softmax(*a)", **body("return helper(x, dim)")},
        "the course's own softmax",
        ONE,
    ),
    "through a partial": (
        {"before": "import functools\n\nhelper = functools.partial(l1_ref.softmax)", **body("return helper(x, dim)")},
        "the course's own softmax",
        ONE,
    ),
    "written over behind the answer": ({"after": "softmax = l1_ref.softmax"}, "the course's own softmax", ONE),
    "importlib": (
        body("import importlib", 'return importlib.import_module("l1_ref").softmax(x, dim)'),
        "the course's own softmax",
        ONE,
    ),
    "__import__": (body('return __import__("l1_" + "ref").softmax(x, dim)'), "the course's own softmax", ONE),
    "sys.modules": (
        {"before": "import sys", **body('return sys.modules["l1_ref.attention"].softmax(x, dim)')},
        "the course's own softmax",
        ONE,
    ),
    "exec of a text": (body("exec(text, globals())", "return answer(x, dim)"), "exec, which no answer needs", ONE),
    "eval of a text": (body("return eval(text)(x, dim)"), "eval, which no answer needs", ONE),
    "the source of the reference": (
        {"before": "import inspect", **body("source = inspect.getsource(helper)", "return x")},
        "inspect.getsource, which no answer needs",
        ONE,
    ),
    "the course's files read": (body("text = open(l1_ref.__file__).read()", "return x"), "inner parts", ONE),
    "a wrapper of what stood there before": (
        {"answer": "import functools\n\nsoftmax = l1_ref.softmax\nsoftmax = functools.partial(softmax)"},
        "the course's own softmax",
        ONE,
    ),
    "overwritten on one way only": (
        {"answer": f"{HONEST}\n\nif torch.rand(1) < 2:\n    softmax = l1_ref.softmax"},
        "the course's own softmax",
        ONE,
    ),
    "every object of the process": (
        {"before": "import gc", **body("return [o for o in gc.get_objects() if callable(o)][0](x, dim)")},
        "gc.get_objects, which no answer needs",
        ONE,
    ),
    "the frames above": (
        body("try:", "    1 / 0", "except Exception as e:", "    return e.__traceback__.tb_frame.f_back.f_locals"),
        "which no answer needs",
        ONE,
    ),
    "an answer that equals anything": (
        {"before": "class Any:\n    def __eq__(self, other):\n        return True", **body("return Any()")},
        "answer for themselves",
        ONE,
    ),
    "a tensor that answers for itself": (
        {
            "before": "class T(torch.Tensor):\n    @classmethod\n    def __torch_function__(cls, f, *a, **k):\n"
            "        return True",
            **body("return x.as_subclass(T)"),
        },
        "__torch_function__",
        ONE,
    ),
    "the class changed": (body("x.__class__ = T", "return x"), "__class__", ONE),
    "checks replaced": (before("class checks:", "    softmax = print"), "in the place of checks", BOTH),
    "checks of one's own imported": (before("import checks"), "in the place of checks", BOTH),
    "checks assigned": (before("checks = None"), "in the place of checks", BOTH),
    "checks replaced through globals": (
        before('globals()["che" + "cks"] = None'),
        "replaces a part of __main__",
        BOTH,
    ),
    "checks replaced through the shell": (
        before('get_ipython().push({"checks": None})'),
        "the notebook's shell (get_ipython().push)",
        BOTH,
    ),
    "checks replaced inside a function": (
        before("def f():", "    global checks", "    checks = None", "f()"),
        "in the place of checks",
        BOTH,
    ),
    "a check replaced": (before("checks.softmax = print"), "replaces checks.softmax", BOTH),
    "a check altered": (
        before("from l1_ref.checks.engine import Exercise", "Exercise.__call__ = lambda self, f: None"),
        "replaces checks.engine.Exercise.__call__",
        BOTH,
    ),
    "a check altered through its type": (
        before("type(checks.softmax).__call__ = lambda self, f: None"),
        "replaces checks.softmax.__class__.__call__",
        BOTH,
    ),
    "a frozen field set": (
        before('object.__setattr__(checks.softmax, "probes", ())'),
        "replaces checks.softmax.probes",
        BOTH,
    ),
    "the exercises replaced": (before('checks.EXERCISES["softmax"] = print'), "a part of checks.EXERCISES", BOTH),
    "the failure made harmless": (
        before("from l1_ref.checks import CheckFailed", "CheckFailed.__init__ = None"),
        "replaces checks.CheckFailed.__init__",
        BOTH,
    ),
    "the reference made wrong": (before("l1_ref.softmax = torch.softmax"), "replaces l1_ref.softmax", BOTH),
    "setattr": (before('setattr(l1_ref.attention, "softmax", print)'), "replaces l1_ref.attention.softmax", BOTH),
    "the table of a module": (before("l1_ref.__dict__.update(softmax=1)"), "a part of l1_ref.__dict__", BOTH),
    "torch.allclose always true": (before("torch.allclose = lambda *a, **k: True"), "replaces torch.allclose", BOTH),
    "torch patched inside the answer": (body("torch.equal = max", "return x"), "replaces torch.equal", BOTH),
    "a builtin replaced": (before("import builtins", "builtins.all = any"), "replaces all", BOTH),
    "mock": (
        before("from unittest import mock", 'mock.patch("torch.allclose", max).start()'),
        "replaces torch.allclose",
        BOTH,
    ),
    "mock of an object": (
        before("from unittest import mock", 'mock.patch.object(torch, "allclose", max).start()'),
        "replaces torch.allclose",
        BOTH,
    ),
    "pytest's monkeypatch": (
        before("import pytest", 'pytest.MonkeyPatch().setattr(torch, "allclose", max)'),
        "replaces torch.allclose",
        BOTH,
    ),
    "modules replaced": (before("import sys", 'sys.modules["l1_ref.checks"] = None'), "a part of sys.modules", BOTH),
    "errors swallowed": (
        before("ip = get_ipython()", "ip.set_custom_exc((Exception,), lambda *a, **k: None)"),
        "the notebook's shell (get_ipython().set_custom_exc)",
        BOTH,
    ),
    "each later cell rewritten": (
        before("get_ipython().ast_transformers.append(None)"),
        "the notebook's shell (get_ipython().ast_transformers)",
        BOTH,
    ),
    "a cell run when the check runs": (
        before('get_ipython().events.register("pre_run_cell", print)'),
        "the notebook's shell (get_ipython().events)",
        BOTH,
    ),
    "a number shown as the score": (
        before("def show(*a):", "    get_ipython().displayhook(1)"),
        "the notebook's shell (get_ipython().displayhook)",
        BOTH,
    ),
    "the grader's switch": (before("import os", 'del os.environ["L1_GRADED"]'), "grader keeps (L1_GRADED)", BOTH),
    "a verdict forged": (
        before("import os", 'open(os.environ["L1_VERD" "ICTS"], "a").write("{}")'),
        "grader keeps (L1_VERDICTS)",
        BOTH,
    ),
    "a verdict told": (before("from l1_ref.checks import marks", "marks.tell(state='solved')"), "marks.tell", BOTH),
    "progress forged": (before('open("progress.json", "w").write("{}")'), "grader keeps (progress.json)", BOTH),
    "the gradebook": (before('import sqlite3; sqlite3.connect("../../gradebook.db")'), "(gradebook.db)", BOTH),
    "a file overwritten by a command": (
        before("!cp mine.py $(pip show l1)/l1_ref/checks.py"),
        "a command of the",
        BOTH,
    ),
    "a shell cell": (before("%%bash", "echo >> $L1_VERDICTS"), "grader keeps (L1_VERDICTS)", BOTH),
    "inside a timed cell": (before("%%time", "torch.allclose = max"), "replaces torch.allclose", BOTH),
    "the watch switched off": (before("import sys", "sys.setprofile(None)"), "sys.setprofile", BOTH),
    "reloaded": (before("import importlib", "importlib.reload(checks)"), "replaces checks", BOTH),
}


@pytest.mark.parametrize("way", CHEATS)
def test_cheating_costs_the_points_and_says_why(way):
    cells, words, lost = CHEATS[way]
    notebook = submission(**cells)
    found = look(notebook)
    assert any(words in each.rule for each in found), found
    refuse(notebook, found)
    refused = [
        cell.metadata.nbgrader.grade_id.removesuffix("-check")
        for cell in notebook.cells
        if "nbgrader" in cell.metadata and "integrity.refuse" in cell.source
    ]
    assert refused == lost
    assert {cell.metadata.nbgrader.points for cell in notebook.cells if "nbgrader" in cell.metadata} == {1}


def test_at_least_25_ways_are_tried():
    assert len(CHEATS) >= 25


def test_the_refusal_names_the_line_and_scores_0(monkeypatch, tmp_path):
    monkeypatch.setenv("L1_VERDICTS", str(tmp_path / "verdicts"))
    notebook = submission(**CHEATS["the reference called"][0])
    notebook, _ = RefuseCheats().preprocess(notebook, {})
    with pytest.raises(checks.CheckFailed) as failed:
        exec(notebook.cells[4].source, {})
    assert "refused: the answer is made of the course's own softmax" in str(failed.value)
    assert "(code cell 3, line 2: return l1_ref.softmax(x, dim))" in str(failed.value)
    assert '"state": "refused"' in (tmp_path / "verdicts").read_text(encoding="utf-8")


def test_a_cell_that_tampers_does_not_run_and_earlier_points_stay():
    notebook = submission()
    notebook.cells.insert(5, new_code_cell("torch.allclose = max"))
    refuse(notebook, look(notebook))
    assert notebook.cells[4].source == "checks.softmax(softmax)"
    assert "integrity.refuse('tempered_softmax'" in notebook.cells[7].source
    assert ast.parse(notebook.cells[5].source).body == []
    assert "# torch.allclose = max" in notebook.cells[5].source


def test_the_teachers_locked_cells_are_not_read_and_a_students_lock_does_not_help():
    notebook = submission(before="torch.allclose = max")
    notebook.cells[1].metadata["nbgrader"] = {"locked": True, "grade_id": "hidden"}
    assert look(notebook, locked={"hidden"}) == []
    assert look(notebook, locked={"softmax-check"}) != []


# Honest work.

HONEST_CELLS = {
    "a comparison with the reference in a cell of one's own": {"after": "print(l1_ref.softmax(torch.ones(2), 0))"},
    "a comparison below the answer": {
        "answer": HONEST + "\n\nx = torch.ones(2)\nassert torch.allclose(softmax(x, 0), l1_ref.softmax(x, 0))"
    },
    "looked up, then written": {"before": 'ours = checks.give("softmax")\nexpected = ours(torch.ones(2), 0)'},
    "given, then written": {"before": 'softmax = checks.give("softmax")'},
    "borrowed at first, then written": {
        "before": "def softmax(x, dim):\n    return l1_ref.softmax(x, dim)\n\n\nx = softmax(torch.ones(2), 0)"
    },
    "a helper that was another before": {
        "before": "total = l1_ref.softmax\n\n\ndef total(x, dim):\n    return x.exp().sum(dim, keepdim=True)",
        "answer": "def softmax(x, dim):\n    return x.exp() / total(x, dim)",
    },
    "borrowed behind its check": {"after": "mine = softmax", "answer": HONEST + "\n\n\nours = l1_ref.softmax"},
    "a log of what comes in": body(
        "with open('log.txt', 'a') as file:", "    print(x.shape, file=file)", "return torch.softmax(x, dim)"
    ),
    "memory given back": body("import gc", "gc.collect()", "return torch.softmax(x, dim)"),
    "names of one's own put beside torch's": {
        "before": "import torch.nn.functional as F\nF.my = 1\ntorch.softmx = torch.softmax\n"
        "torch.Tensor.show = lambda self: print(self.shape)\nsetattr(l1_ref, 'mine', 1)"
    },
    "tensors and modules shown in another way": {
        "before": "torch.nn.Module.__repr__ = lambda self: 'a module'\n"
        "torch.Tensor.__repr__ = lambda self: f'Tensor{tuple(self.shape)}'"
    },
    "an argument called like an alias": {
        "before": "x = l1_ref.softmax",
        "answer": "def softmax(x, dim):\n    return torch.softmax(x, dim)",
    },
    "the reference shown": {"before": "import inspect\nprint(inspect.getsource(l1_ref.softmax))\n?l1_ref.softmax"},
    "torch's settings": {
        "before": "torch.backends.cuda.matmul.allow_tf32 = True\ntorch.manual_seed(0)\ntorch.set_printoptions(3)"
    },
    "magics": {"before": "%matplotlib inline\n%timeit torch.ones(2)\n!pip list\n!ls"},
    "a timed answer": {"answer": "%%time\n" + HONEST},
    "names of builtins": {"before": "sum, max, all = 0, 1, 2\nlist = [1]\nfile = open('notes.txt', 'w')"},
    "a syntax error": {"before": "def f(:\n"},
    "attributes of one's own": {
        "before": "class Model(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.head = torch.nn.Linear(2, 2)\n        self.head.weight = self.head.weight\n\n"
        "model = Model()\nmodel.eval()\nmodel.forward = None\nmodel.__dict__['a'] = 1\nsetattr(model, 'b', 1)"
    },
    "exec and reflection beside the answer": {"before": "exec('a = 1')\nprint(type(model).__name__, vars(torch.nn))"},
    "a local variable called checks": {"before": "def f():\n    checks = [1]\n    return checks"},
    "checks imported in other ways": {"before": "import l1_ref.checks as checks\nchecks = l1_ref.checks"},
    "hints and progress": {"before": 'checks.hint("softmax")\nchecks.progress()\nchecks.softmax.diagnose(max)'},
}


@pytest.mark.parametrize("case", HONEST_CELLS)
def test_honest_work_is_let_be(case):
    assert look(submission(**HONEST_CELLS[case])) == []


@pytest.mark.parametrize("name", sources.names())
def test_the_complete_editions_are_let_be(name):
    assert look(instructor(sources.load(name))) == []


# What came out.

KEY = "the key of a run"


def told(name: str = "softmax", state: str = "solved", **more) -> bytes:
    return json.dumps({"exercise": name, "state": state, "seal": integrity.seal(KEY, name)} | more).encode() + b"\n"


def shown(verdicts: bytes, *outputs) -> str:
    notebook = new_notebook(cells=[check_cell("softmax", outputs=list(outputs))])
    outputs = require_verdicts(notebook, verdicts, KEY).cells[0].outputs
    return outputs[0].get("evalue", "") if outputs else ""


def passed() -> nbformat.NotebookNode:
    return new_output("stream", name="stdout", text="✓ softmax · right on 6 inputs, 2 of them extreme: values\n")


def test_a_check_that_passed_or_failed_stays_as_it_is():
    assert shown(told(), passed()) == ""
    assert shown(b"", new_output("error", ename="CheckFailed", evalue="wrong", traceback=[])) == "wrong"


def test_what_a_cell_prints_is_no_matter_as_long_as_the_verdict_is_the_checks():
    assert shown(told()) == ""  # such as after sys.stdout = io.StringIO()
    assert shown(b"not JSON\n[]\n{}\n" + told(state="wrong") + told()) == ""


@pytest.mark.parametrize(
    "verdicts",
    [
        b"",
        told("gelu"),
        told(state="given"),
        told(seal="0"),
        told(seal=None),
        told(seal=integrity.seal("another key", "softmax")),
        told(seal=integrity.seal(KEY, "gelu")),
        told(exercise=["softmax"]),
        told().replace(b'"seal"', b'"sea"'),
    ],
)
def test_words_without_a_sealed_verdict_are_no_passed_check(verdicts):
    assert "did not run to its end, or was replaced" in shown(verdicts, passed())


@pytest.mark.parametrize("output", [passed(), new_output("error", ename="E", evalue="", traceback=[])])
def test_a_number_is_no_passed_check(output):
    number = new_output("execute_result", data={"text/plain": "1"})
    assert "a value of its own" in shown(told(), number, output)


def test_only_the_courses_checks_are_asked_for_a_verdict():
    cell = check_cell("softmax", outputs=[])
    cell.metadata.nbgrader.grade_id = "the-teachers-own"
    assert require_verdicts(new_notebook(cells=[cell]), b"", KEY).cells[0].outputs == []


# What is only seen when it runs, as `l1 grade` runs it: a check that another thing stands in for.

FAKE = """class Fake:
    def __getattr__(self, name):
        return lambda f: print(f"✓ {name} · right on 6 inputs, 2 of them extreme: values")
"""
OWN = "class N: pass\nn = N()\n"
FORGED = {
    "checks bound by a pattern": FAKE + "match Fake():\n    case checks:\n        pass",
    "checks bound in a function's own table": FAKE + "(lambda: 0).__globals__['checks'] = Fake()",
    "checks bound by a text": FAKE + "text = 'checks = Fake()'\nexec(text)",
    "checks bound by a module handed in beside": "import forge",
    "checks imported with all of a module": "from forge import *",
    "checks bound by a program that is run": "%run -i forge.py",
    "checks bound behind an attribute": FAKE + OWN + "n.ip = get_ipython()\nn.ip.user_ns['checks'] = Fake()",
    "checks bound before each cell": FAKE
    + OWN
    + "n.ip = get_ipython()\n"
    + "n.ip.events.register('pre_run_cell', lambda *a: n.ip.user_ns.update({'che' + 'cks': Fake()}))",
    "checks bound by a hidden exec": FAKE + "vars(__import__('builtins'))['ex' + 'ec']('checks = Fake()')",
    "an exercise of another class": OWN
    + "n.e = checks.softmax\nclass Fake(type(n.e)):\n    def __call__(self, f): print('✓ softmax · right on 6')\n"
    + "object.__setattr__(n.e, '__class__', Fake)",
    "an exercise of another class, that judges": OWN
    + "n.e = checks.softmax\nclass Fake(type(n.e)):\n    def diagnose(self, f): return self._solved()\n"
    + "object.__setattr__(n.e, '__class__', Fake)",
    "an exercise of the same name": OWN
    + "import dataclasses\nn.c = checks\nother = dataclasses.replace(checks.softmax, probes=(), properties=())\n"
    + FAKE
    + "other(lambda x, dim: x)\n(lambda: 0).__globals__['checks'] = Fake()",
    "a verdict told by one's own hand": OWN
    + FAKE
    + "from l1_ref.checks import integrity\nn.i = integrity\n"
    + "n.i.tell(exercise='softmax', notebook='00_start_here', state='solved', mistakes=(), text='')\n"
    + "(lambda: 0).__globals__['checks'] = Fake()",
    "a guard of one's own": OWN
    + FAKE
    + "from l1_ref.checks import integrity\nn.i = integrity\nn.i._guard = None\nn.i.arm('mine')\n"
    + "checks.softmax(lambda x, dim: torch.softmax(x, dim))\n(lambda: 0).__globals__['checks'] = Fake()",
    "no check at all": "get_ipython().run_line_magic('xmode', 'Minimal')\n" + FAKE + "import sys\n"
    "vars(sys.modules['__main__'])['che' + 'cks'] = Fake()",
}
FORGE = "import __main__\n" + FAKE + "checks = __main__.checks = Fake()\n"
RUN_HONEST = {
    "an answer in full": "",
    "standard output kept": "import io, sys\nsys.stdout = io.StringIO()",
    "given, then written": 'softmax = checks.give("softmax")',
    "modules shown in another way": "torch.nn.Module.__repr__ = lambda self: 'a module'",
    "a profile that is left open": "import cProfile\np = cProfile.Profile()\np.enable()",
    "something compiled": "@torch.compile(backend='eager')\ndef twice(x):\n    return 2 * x\n\n\ntwice(torch.ones(2))",
    "the same check in a cell of one's own": "checks.softmax(lambda x, dim: torch.softmax(x, dim))",
}


@pytest.fixture(scope="module")
def launcher():
    with Launcher(Limits(), with_limits=False) as launcher:
        yield launcher


def graded(launcher, folder: Path, notebook: nbformat.NotebookNode) -> list[str]:
    """Return what the page says of each check, "" where it passed."""
    place = folder / "submitted" / "ada" / "00_start_here"
    place.mkdir(parents=True)
    (place / "forge.py").write_text(FORGE, encoding="utf-8")
    notebook = refuse(notebook, look(notebook))
    asyncio.run(run_submission(notebook, launcher, folder, "ada", "00_start_here"))
    checked = [cell for cell in notebook.cells if "nbgrader" in cell.metadata]
    return ["".join(each.evalue for each in cell.outputs if each.output_type == "error") for cell in checked]


@pytest.mark.skipif(os.name == "nt", reason="grading needs Linux or macOS")
@pytest.mark.parametrize("way", FORGED)
def test_a_forged_check_earns_nothing_and_the_page_says_why(launcher, tmp_path, way):
    first, _ = graded(launcher, tmp_path, submission("def softmax(x, dim):\n    return x * 0", FORGED[way]))
    assert "refused: " in first


@pytest.mark.skipif(os.name == "nt", reason="grading needs Linux or macOS")
@pytest.mark.parametrize("case", RUN_HONEST)
def test_an_honest_notebook_earns_its_points(launcher, tmp_path, case):
    assert graded(launcher, tmp_path, submission(before=RUN_HONEST[case])) == ["", ""]
