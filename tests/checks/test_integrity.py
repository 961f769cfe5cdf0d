"""The guard in a kernel that grades: what it refuses while code runs, and what it lets be.

All runs in one process of its own, armed as a grader's kernel is, with a fork for each case, so that what a case
patches is gone with it. The guard meets the package as it is there, without the hook that checks types under pytest.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HONEST = "def softmax(x, dim): return torch.softmax(x, dim)\n"
TRACED = "import warnings; warnings.simplefilter('ignore')\n"
OWN, KEPT = "it calls the course's own softmax", "that the check keeps"

# Each way of cheating: the code of the notebook, and words of the reason.
CHEATS = {
    "the reference": ("softmax = l1_ref.softmax", "handed in"),
    "a partial of it": ("import functools; softmax = functools.partial(l1_ref.softmax, dim=0)", "handed in"),
    "its bound call": ("softmax = l1_ref.softmax.__call__", "handed in"),
    "its code in another function": (
        "import types; softmax = types.FunctionType(l1_ref.softmax.__code__, vars(l1_ref.attention))",
        "handed in",
    ),
    "a wrapper": (
        "import functools\n@functools.wraps(l1_ref.softmax)\ndef softmax(*a): return l1_ref.softmax(*a)",
        "handed in",
    ),
    "a call": ("def softmax(x, dim): return l1_ref.softmax(x, dim)", OWN),
    "a name that nobody can read": (
        "def softmax(x, dim): return getattr(l1_ref, ''.join(map(chr, [115, 111, 102, 116, 109, 97, 120])))(x, dim)",
        OWN,
    ),
    "a call without a frame": ("def softmax(x, dim): return next(map(l1_ref.softmax, [x], [dim]))", OWN),
    "an object that calls": (
        "class S:\n    def __call__(self, x, dim): return l1_ref.softmax(x, dim)\nsoftmax = S()",
        OWN,
    ),
    "a call on a thread": (
        "import threading\ndef softmax(x, dim):\n    out = []\n"
        "    t = threading.Thread(target=lambda: out.append(l1_ref.softmax(x, dim)))\n    t.start(); t.join()\n"
        "    return out[0]",
        OWN,
    ),
    "a call on a thread that an earlier cell started": (
        "import queue, threading\nq, out = queue.Queue(), queue.Queue()\n"
        "def work():\n    while True: out.put(l1_ref.softmax(*q.get()))\n"
        "threading.Thread(target=work, daemon=True).start()\n"
        "def softmax(x, dim):\n    q.put((x, dim))\n    return out.get()",
        OWN,
    ),
    "its code under another name": (
        "import types\nf = l1_ref.softmax\n"
        "softmax = types.FunctionType(f.__code__.replace(co_name='mine'), f.__globals__)",
        "handed in",
    ),
    "its code under another name, called": (
        "import types\nf = l1_ref.softmax\n"
        "g = types.FunctionType(f.__code__.replace(co_name='mine'), f.__globals__)\n"
        "def softmax(x, dim): return g(x, dim)",
        OWN,
    ),
    "a class of copied methods": (
        "import types\ncell = types.CellType(None)\ndef copied(f):\n    code = f.__code__.replace(co_name='mine')\n"
        "    return types.FunctionType(code, f.__globals__, 'mine', f.__defaults__, f.__closure__ and (cell,))\n"
        "class FeedForward(torch.nn.Module):\n    __init__ = copied(l1_ref.FeedForward.__init__)\n"
        "    forward = copied(l1_ref.FeedForward.forward)\ncell.cell_contents = FeedForward",
        "it calls the course's own FeedForward",
    ),
    "a second copy of the course's module": (
        "import importlib.util as u\ns = u.spec_from_file_location('second', l1_ref.attention.__file__)\n"
        "m = u.module_from_spec(s); s.loader.exec_module(m)\ndef softmax(x, dim): return m.softmax(x, dim)",
        OWN,
    ),
    "a graph made of it": (
        TRACED + "g = torch.jit.trace(l1_ref.gelu, torch.randn(3))\ndef gelu(x): return g(x)",
        "a graph that torch made of the course's own gelu",
    ),
    "a graph made of it, somewhere inside": (
        TRACED
        + "class N: pass\nn = N(); n.all = [{'a': torch.jit.trace(lambda x: l1_ref.gelu(x) * 1, torch.randn(3))}]\n"
        "gelu = lambda x: n.all[0]['a'](x)",
        "a graph that torch made of the course's own gelu",
    ),
    "a graph of torch.fx": (
        TRACED + "from torch.fx.experimental.proxy_tensor import make_fx\n"
        "class Gelu:\n    g = make_fx(l1_ref.gelu)(torch.randn(3))\n    def __call__(self, x): return self.g(x)\n"
        "gelu = Gelu()",
        "a graph of torch.fx",
    ),
    "compiled": (
        "g = torch.compile(l1_ref.gelu, backend='eager')\ng(torch.ones(3))\ndef gelu(x): return g(x)",
        "it calls the course's own gelu",
    ),
    "the watch taken over": (
        "import cProfile\np = cProfile.Profile()\n"
        "def softmax(x, dim):\n    p.enable()\n    y = l1_ref.softmax(x, dim)\n    p.disable()\n    return y",
        "it takes the profiler's place",
    ),
    "threads kept from the watch": (
        HONEST + "import threading; threading.setprofile(None)",
        "threading.setprofile was called",
    ),
    "a call behind torch": (
        "class S(torch.nn.Module):\n    def __init__(self): super().__init__(); self.forward = l1_ref.softmax\n"
        "softmax = S()",
        OWN,
    ),
    "a version of the catalogue": (
        "def count_pairs(words):\n    m = next(m for m in checks.count_pairs.mistakes if hasattr(m.wrong, 'func'))\n"
        "    return m.wrong.func(words)",
        KEPT,
    ),
    "by way of the function that uses it": (
        "def greedy(logits): return l1_ref.sample(logits, temperature=0.0)",
        "it calls the course's own greedy",
    ),
    "by way of another function of the course": (
        "def softmax(x, dim):\n    l1_ref.attention_weights(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))\n"
        "    return torch.softmax(x, dim)",
        OWN,
    ),
    "a subclass with something added": (
        "class TokenEmbedding(l1_ref.TokenEmbedding):\n    def more(self): return 1",
        "it inherits from the course's own TokenEmbedding",
    ),
    "a module inside": (
        "class TokenEmbedding(torch.nn.Module):\n    def __new__(cls, *a): return l1_ref.TokenEmbedding(*a)",
        "it calls the course's own TokenEmbedding",
    ),
    "a module that was built before": (
        "inner = l1_ref.TokenEmbedding(7, 5)\nclass TokenEmbedding(torch.nn.Module):\n    def __init__(self, V, C):\n"
        "        super().__init__(); self.weight = torch.nn.Parameter(torch.randn(V, C)); inner.weight = self.weight\n"
        "        self.forward = inner.forward",
        "it calls the course's own TokenEmbedding",
    ),
    "the watch switched off": (
        "import sys\ndef softmax(x, dim):\n    sys.setprofile(None)\n    return l1_ref.softmax(x, dim)",
        "it calls sys.setprofile",
    ),
    "the frames above": (
        "import sys\ndef softmax(x, dim):\n    f = sys._getframe()\n    return torch.softmax(x, dim)",
        "it calls sys._getframe",
    ),
    "the frames above, by inspect": (
        "import inspect\ndef softmax(x, dim):\n    inspect.currentframe()\n    return torch.softmax(x, dim)",
        "it calls inspect.currentframe",
    ),
    "a text run as code": (
        "def softmax(x, dim): return eval('torch.soft' + 'max')(x, dim)",
        "it calls eval",
    ),
    "every object of the process": (
        "import gc\ndef softmax(x, dim): gc.get_objects(0); return torch.softmax(x, dim)",
        "it calls gc.get_objects",
    ),
    "an end of the process": ("def softmax(x, dim): raise SystemExit", "raises SystemExit, which would end the check"),
    "a tensor that answers for itself": (
        "class T(torch.Tensor): pass\ndef softmax(x, dim): return torch.softmax(x, dim).as_subclass(T)",
        "a tensor of its own kind",
    ),
    "torch patched": (HONEST + "setattr(torch, 'all' + 'close', lambda *a, **k: True)", "torch.allclose was replaced"),
    "a tensor's method patched": (HONEST + "torch.Tensor.double = lambda t: 0", "torch.Tensor.double was replaced"),
    "every module patched": (HONEST + "torch.nn.Module.__call__ = None", "nn.Module.__call__ was replaced"),
    "Python patched": (HONEST + "import builtins; builtins.all = lambda a: True", "all was replaced"),
    "the comparison patched": (
        HONEST + "l1_ref.checks.compare.same = lambda *a: True",
        "l1_ref.checks.compare.same was replaced",
    ),
    "the comparison's code patched": (
        HONEST + "l1_ref.checks.compare.same.__code__ = (lambda a, b, tolerance: True).__code__",
        "l1_ref.checks.compare.same.__code__ was replaced",
    ),
    "the verdict patched, during the check": (
        "def softmax(x, dim):\n    type(checks.softmax)._judge = lambda self, *a: self._solved()\n    return x",
        "Exercise._judge was replaced",
    ),
    "the failure patched": (
        HONEST + "checks.CheckFailed._render_traceback_ = lambda self: []",
        "CheckFailed._render_traceback_ was replaced",
    ),
    "the exercise's inputs taken away": (
        HONEST + "object.__setattr__(checks.softmax, 'probes', ())",
        "checks.softmax.probes was replaced",
    ),
    "an exercise exchanged": (
        HONEST + "import dataclasses\nchecks.EXERCISES['softmax'] = dataclasses.replace(checks.softmax, probes=())",
        "checks.softmax was replaced",
    ),
    "the reference exchanged": (
        HONEST + "l1_ref.attention.softmax.__code__ = (lambda x, dim: x).__code__",
        "l1_ref.attention.softmax.__code__ was replaced",
    ),
    "a mode between torch and the check": (
        HONEST + "class Mode(torch.overrides.TorchFunctionMode):\n"
        "    def __torch_function__(self, f, types, args=(), kwargs=None): return f(*args, **(kwargs or {}))\n"
        "mode = Mode(); mode.__enter__()",
        "a Mode stands between torch and the check",
    ),
    "the switch taken away": (HONEST + "import os; del os.environ['L1_GRADED']", "L1_GRADED was changed"),
    "verdicts somewhere else": (HONEST + "import os; os.environ['L1_VERDICTS'] = 'x'", "L1_VERDICTS was changed"),
    "a verdict written": (
        HONEST + "import os; open(os.environ['L1_VERDICTS'], 'a').write('{}')",
        "written by other hands",
    ),
    "patched, and put right for the next": (
        HONEST + "kept, torch.equal = torch.equal, max\ntry: checks.softmax(softmax)\nexcept AssertionError: pass\n"
        "torch.equal = kept",
        "torch.equal was replaced",
    ),
}
# Honest code: what the check then says.
LET_BE = {
    "a right answer": (HONEST, "solved"),
    "a right answer twice": (HONEST + "checks.softmax(softmax)", "solved"),
    "given, which is said and earns nothing": ('softmax = checks.give("softmax")', "given"),
    "given, then written": ('softmax = checks.give("softmax")\n' + HONEST, "solved"),
    "a log of what comes in": (
        "def softmax(x, dim):\n    print(x.shape, file=open('log.txt', 'a'))\n    return torch.softmax(x, dim)",
        "solved",
    ),
    "modules and tensors shown in another way": (
        HONEST + "torch.nn.Module.__repr__ = torch.Tensor.__repr__ = lambda self: 'mine'; torch.nn.Module.mine = max",
        "solved",
    ),
    "a comparison beside it": (HONEST + "l1_ref.softmax(torch.ones(2), 0)", "solved"),
    "the reference of another exercise": (
        "def tempered_softmax(logits, temperature): return l1_ref.softmax(logits / temperature, -1)",
        "solved",
    ),
    "a warning": (
        "import warnings\ndef softmax(x, dim): warnings.warn('slow'); return torch.softmax(x, dim)",
        "solved",
    ),
    "torch's settings": (HONEST + "torch.set_default_device('cpu'); torch.set_printoptions(3)", "solved"),
    "a profile that is left open": (HONEST + "import cProfile; p = cProfile.Profile(); p.enable()", "solved"),
    "one's own thread": (
        "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(1)\n"
        "pool.submit(l1_ref.softmax, torch.ones(2), 0).result()\n"
        "def softmax(x, dim): return pool.submit(torch.softmax, x, dim).result()",
        "solved",
    ),
    "one's own graph": (
        TRACED + "f = torch.jit.script(lambda x: x) if 0 else torch.jit.trace(torch.nn.GELU('tanh'), torch.randn(3))\n"
        "def gelu(x): return f(x)",
        "solved",
    ),
    "a graph of the course's own beside it": (
        TRACED + "g = torch.jit.trace(l1_ref.gelu, torch.randn(3))\n"
        "def gelu(x): return torch.nn.functional.gelu(x, approximate='tanh')",
        "solved",
    ),
    "one's own, compiled": (
        "@torch.compile(backend='eager')\n"
        "def greedy(logits): return logits.argmax(-1, keepdim=True)\ngreedy(torch.ones(2, 3))",
        "solved",
    ),
    "a call that is kept, and a table": (
        "table = list(range(10 ** 5)) + [torch, l1_ref, checks]\nimport functools\n@functools.lru_cache\n"
        "def scale(n): return table[n]\n"
        "def softmax(x, dim): return torch.softmax(x * scale(1), dim)",
        "solved",
    ),
    "an exercise of one's own": (
        HONEST + "import dataclasses\nchecks.add(dataclasses.replace(checks.softmax, name='mine'))",
        "solved",
    ),
    "a wrong answer": ("def softmax(x, dim): return torch.softmax(x, -1)", "wrong"),
    "an answer without an end": ("def softmax(x, dim):\n    while True: pass", "wrong"),
    "a blank": ("def softmax(x, dim): raise NotImplementedError('not written yet')", "unwritten"),
}
RUNNER = """
import contextlib, importlib, io, json, os, sys
import torch
torch.set_num_threads(1)
import l1_ref
from l1_ref import checks
from l1_ref.checks import integrity, observe
observe.limited.__wrapped__.__defaults__ = (2.0,)  # seconds for an endless loop
integrity.arm()

def run(source):
    errors = io.StringIO()
    space = {"__name__": "__main__", "torch": torch, "l1_ref": l1_ref, "checks": checks}
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        exec(compile(source, "<cell>", "exec"), space)
        name = next(name for name in reversed(space) if name in checks.EXERCISES)
        state = "solved"
        try:
            checks.exercise(name)(space[name])
        except AssertionError as error:
            state = str(error)
        except Exception as error:
            state = repr(error)
    return [state, errors.getvalue()]

for name, source in json.load(sys.stdin).items():
    sys.stdout.flush()
    if not (child := os.fork()):
        try:
            print(json.dumps([name, *run(source)]), flush=True)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    if os.path.exists(os.environ["L1_VERDICTS"]):
        os.remove(os.environ["L1_VERDICTS"])
observe.limited.__wrapped__.__defaults__ = (observe.LIMIT_S,)
for path in sys.argv[1:]:
    right = importlib.import_module("tests.checks." + path).RIGHT
    for name, answers in (right if isinstance(right, dict) else {"softmax": right}).items():
        verdict, reason = integrity.judge(checks.exercise(name), next(iter(answers)))
        print(json.dumps(["right: " + name, getattr(verdict, "state", ""), reason]))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, list]:
    """Return what was said in each case, by its name."""
    folder = tmp_path_factory.mktemp("guard")
    environment = {**os.environ, "L1_GRADED": "1", "L1_VERDICTS": str(folder / "verdicts"), "PYTHONPATH": str(ROOT)}
    modules = [path.stem for path in MODULES]
    cases = json.dumps({name: source for name, (source, _) in (CHEATS | LET_BE).items()})
    command = [sys.executable, "-c", RUNNER, *modules]
    done = subprocess.run(command, input=cases, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {name: rest for name, *rest in lines}


MODULES = [path for path in sorted(Path(__file__).parent.glob("test_*.py")) if "\nRIGHT = " in path.read_text()]


@pytest.mark.parametrize("way", CHEATS)
def test_cheating_is_refused_and_the_reason_told(told, way):
    said, _ = told[way]
    assert "refused: " in said and CHEATS[way][1] in said


@pytest.mark.parametrize("case", LET_BE)
def test_honest_code_gets_its_own_verdict(told, case):
    said, errors = told[case]
    given = "· given: this is the course's own version\n  a given answer earns no points"
    expected = {"wrong": "✗ softmax · ", "unwritten": "not written yet", "given": given}.get(LET_BE[case][1], "solved")
    assert expected in said and "refused" not in said
    assert errors == ""


def test_a_right_answer_of_every_exercise_is_let_be(told):
    from l1_ref import checks

    right = {name.removeprefix("right: "): rest for name, rest in told.items() if name.startswith("right: ")}
    assert right == {name: ["solved", None] for name in checks.EXERCISES if name != "tempered_softmax"}  # see LET_BE


def test_at_least_25_ways_are_tried():
    assert len(CHEATS) >= 25


def test_without_a_grader_nothing_is_guarded(monkeypatch):
    from l1_ref import checks
    from l1_ref.checks import integrity

    monkeypatch.delenv("L1_GRADED", raising=False)
    assert not integrity.is_graded()
    assert checks.softmax.diagnose(checks.softmax.reference).state == "given"
    with integrity.watching(checks.softmax, max) as look:
        assert sys.getprofile() is None
        assert look({}) == {}
