"""The guard inside a kernel that grades: with L1_GRADED=1 a check refuses what is not the student's own.

The grader's launcher calls `arm` before any code of the student's runs. It remembers which function stands where in
l1_ref, torch and builtins. Each check then watches the candidate's calls while it runs, by `sys.setprofile`, and looks
before and after whether one of those functions was replaced. A verdict that an answer is right is sealed with a key of
the grader's. `l1_ref.course.integrity` reads the code before it runs, and asks for that seal afterwards.

What is done in a process can be undone in it. Who knows these files, and how Python keeps its objects, can still lift
the guard, find the key in memory and seal a verdict, or answer from a table that the reference made beforehand; and
nothing here knows the course's own code when it is pasted as an answer. A container holds only what leaves the process.
Against the rest a look at the code is the answer.
"""

import gc
import hmac
import inspect
import io
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from l1_ref.checks import marks, messages, observe
from l1_ref.checks.graphs import borrowed_graph, is_readers_file
from l1_ref.checks.relied_on import standing

Place = tuple[str, int]  # a file, and the line where a function begins
GRADED = "L1_GRADED"
GIVEN: set[str] = set()  # exercises whose version `checks.give` handed over: no cheating, and no points
_PACKAGE = str(Path(__file__).resolve().parents[1]) + os.sep
_CHECKS = str(Path(__file__).resolve().parent) + os.sep
# What no answer needs, and what would show it the course's own: the frames above it, every object, text run as code.
_TOOLS = {
    id(tool): name
    for name, tool in {
        "sys.setprofile": sys.setprofile,
        "sys.settrace": sys.settrace,
        "sys._getframe": sys._getframe,
        "gc.get_objects": gc.get_objects,
        "gc.get_referrers": gc.get_referrers,
        "exec": exec,
        "eval": eval,
        "inspect.currentframe": inspect.currentframe.__code__,
        "inspect.stack": inspect.stack.__code__,
        "inspect.getsource": inspect.getsource.__code__,
    }.items()
}
_PROBED = {observe._seeded.__code__, observe.observe_module.__code__}  # they call the candidate itself
_SHELL = ("showtraceback", "_showtraceback", "run_cell", "run_code", "set_custom_exc", "displayhook", "display_pub")


class _Guard:
    """What the guard knows: how things stood when it was armed, and what it has found since."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.right: set[str] = set()  # exercises whose answer was found right
        self.environment = {name: os.environ.get(name) for name in (GRADED, marks.VERDICTS)}
        self.stood = standing()
        self.verdicts = _size()
        self.tampered: str | None = None
        self.candidate: Any = None
        self.watch: Callable | None = None
        self.found: list[str] = []


_guard: _Guard | None = None


def is_graded() -> bool:
    """Say whether checks are guarded here: the guard is armed, or L1_GRADED is 1."""
    return _guard is not None or os.environ.get(GRADED) == "1"


def arm(key: str = "") -> None:
    """Remember how the course, torch and Python stand; to be called before any of the student's code runs.

    Args:
        key: Of the grader's, to seal verdicts with; without one none is sealed.
    """
    global _guard
    if _guard is None:
        threading.setprofile(_in_threads)  # from now on: a thread of an earlier cell may answer
        _guard = _Guard(key)


def judge(exercise: Any, candidate: Any) -> tuple[Any, str | None]:
    """Check an answer under guard.

    Args:
        exercise: Whose check it is.
        candidate: The student's function or class.

    Returns:
        The verdict, None where there is none, and why the answer is refused, None where it is not.
    """
    arm()
    _guard.found, verdict = [], None
    reason = (
        _tampered()
        or _handed_in(exercise, candidate)
        or borrowed_graph(candidate, exercise.name, _code_of(exercise.reference))
    )
    if reason is None:
        _guard.candidate = candidate
        try:
            # nbgrader takes a warning in a check's output for an error.
            with redirect_stderr(io.StringIO()):
                verdict = exercise.diagnose(candidate)
        except (SystemExit, GeneratorExit) as error:
            reason = f"it raises {type(error).__name__}, which would end the check"
        finally:
            _guard.candidate = None
    # An answer that is wrong anyway, and called nothing of the course's, keeps its diagnosis.
    forged = [text for text in _guard.found if verdict is None or verdict.passed or text.startswith("it calls")]
    reason = _tampered() or reason or next(iter(forged), None)
    if reason is None and verdict.state == "solved" and _guard.stood.get(f"checks.{exercise.name}") is exercise:
        _guard.right.add(exercise.name)
    return verdict, reason


def refuse(name: str, reason: str) -> NoReturn:
    """Refuse an answer without running it, for a grader that has read why; the verdict is told as a check tells it.

    Args:
        name: The exercise.
        reason: What rule is broken, and where.

    Raises:
        CheckFailed: Always, with the reason.
    """
    __tracebackhide__ = True
    from l1_ref.checks import exercise

    tell(exercise=name, notebook=exercise(name).notebook, state="refused", mistakes=(), text=refusal(name, reason))
    raise messages.failure(refusal(name, reason))


def refusal(name: str, reason: str) -> str:
    """Write the message of an answer that is refused."""
    return f"✗ {name} · refused: {reason}\n  a refused answer earns no points; your teacher can see why, and decide"


def seal(key: str, name: str) -> str:
    """Return what stands in a verdict that an answer is right: nobody makes it without the grader's key.

    Args:
        key: The grader's, of this run.
        name: The exercise.
    """
    return hmac.new(key.encode(), name.encode(), "sha256").hexdigest()


def tell(**verdict: Any) -> None:
    """Append a verdict as `marks.tell` does, sealed where `judge` found it, and remember how long the file is then."""
    if _guard is not None and _guard.key and verdict["state"] == "solved" and verdict["exercise"] in _guard.right:
        verdict["seal"] = seal(_guard.key, verdict["exercise"])
    marks.tell(**verdict)
    if _guard is not None:
        _guard.verdicts = _size()


# What an answer calls.


@contextmanager
def watching(exercise: Any, candidate: Any) -> Iterator[Callable[[Any], Any]]:
    """Watch what a candidate calls while this lasts; does nothing for any other than the one that is judged.

    Args:
        exercise: Whose reference and catalogue must not be called.
        candidate: What runs.

    Yields:
        A function that looks at what was observed, and hands it on.
    """
    if _guard is None or candidate is not _guard.candidate:
        yield lambda seen: seen
        return
    codes, boundary = _codes(exercise), sys._getframe(2)  # the engine, behind contextlib

    def watch(frame: Any, event: str, called: Any) -> None:
        if event == "call" and _place(frame.f_code) in codes and _is_blamed(frame, boundary):
            _note(f"it calls {codes[_place(frame.f_code)]}")
        elif event == "call" and id(frame.f_code) in _TOOLS and _is_readers(frame.f_back):
            _note(f"it calls {_TOOLS[id(frame.f_code)]}, which no answer needs")
        elif event == "c_call" and id(called) in _TOOLS and _is_readers(frame):
            _note(f"it calls {_TOOLS[id(called)]}, which no answer needs")

    before, _guard.watch = sys.getprofile(), watch
    sys.setprofile(watch)
    try:
        yield _look
    finally:
        if sys.getprofile() is not watch:
            _note("it takes the profiler's place (sys.setprofile, cProfile), which the grader needs for itself")
        sys.setprofile(before if callable(before) else None)  # an open cProfile is none that can be set
        _guard.watch = None


def _in_threads(*event: Any) -> None:
    """Watch, while a check runs, what the threads call that Python code started."""
    if _guard is not None and (watch := _guard.watch) is not None:
        watch(*event)


def _note(text: str) -> None:
    if text not in _guard.found:
        _guard.found.append(text)


def _look(seen: Any) -> Any:
    """Note tensors that answer for themselves when they are compared."""
    for value in seen.values() if isinstance(seen, dict) else ():
        kind = type(value)
        if isinstance(value, Tensor) and not kind.__module__.startswith("torch"):
            _note(f"its answer is a {kind.__name__}, a tensor of its own kind, which the check cannot trust")
    return seen


@lru_cache(maxsize=128)
def _codes(exercise: Any) -> dict[Place, str]:
    """Return where an exercise's reference stands, and the right and wrong versions in its catalogue, with names."""
    found = dict.fromkeys(map(_place, _code_of(exercise.reference)), f"the course's own {exercise.name}")
    for mistake in exercise.mistakes:
        for version in (mistake.wrong, *mistake.versions):
            # A mistake may be made by a function that anyone may call, such as torch.sigmoid.
            codes = [code for code in _code_of(version) if code.co_filename.startswith(_CHECKS)]
            found |= dict.fromkeys(map(_place, codes), f"a version of {exercise.name} that the check keeps")
    return found


def _place(code: types.CodeType) -> Place:
    """Return where code stands: a copy of a function, or of its module, still stands in the same place."""
    return code.co_filename, code.co_firstlineno


def _code_of(thing: Any) -> list[types.CodeType]:
    while isinstance(thing, partial):
        thing = thing.func
    members = vars(thing).values() if isinstance(thing, type) else [thing]
    functions = [inspect.unwrap(getattr(each, "__func__", getattr(each, "fget", each))) for each in members if each]
    codes = [function.__code__ for function in functions if isinstance(function, types.FunctionType)]
    return [code for code in codes if code.co_filename.startswith(_PACKAGE)]


def _is_blamed(frame: Any, boundary: Any) -> bool:
    """Say whether the student's code has this call made: it stands above it, or is itself what the check calls."""
    caller = frame.f_back
    while caller is not None and not _is_course(caller) and not _is_readers(caller):
        caller = caller.f_back  # torch's and Python's own frames
    if caller is None or caller.f_code in _PROBED:
        return True  # on a thread of its own, or behind a wrapper that leaves no frame
    while caller is not None and caller is not boundary:
        if _is_readers(caller):
            return True
        caller = caller.f_back
    return False


def _is_course(frame: Any) -> bool:
    return frame.f_code.co_filename.startswith(_PACKAGE)


def _is_readers(frame: Any) -> bool:
    return is_readers_file(frame.f_code.co_filename)


def _handed_in(exercise: Any, candidate: Any, depth: int = 10) -> str | None:
    """Say whether the candidate is the course's own version, be it wrapped, bound, copied or a bare subclass."""
    own = f"it is the course's own {exercise.name}, handed in"
    for _ in range(depth):
        if candidate is exercise.reference:
            return own
        if isinstance(candidate, type):
            inherits = isinstance(exercise.reference, type) and exercise.reference in candidate.__mro__
            return f"it inherits from the course's own {exercise.name}" if inherits else None
        if isinstance(candidate, types.FunctionType) and _place(candidate.__code__) in _codes(exercise):
            return own
        inner = (getattr(candidate, name, None) for name in ("func", "__wrapped__", "__func__", "__self__"))
        candidate = next((each for each in inner if callable(each)), None)
    return None


# What stands where.


def _tampered() -> str | None:
    """Say what was replaced since the guard was armed; once found, it is said of every later check too."""
    if _guard.tampered is None:
        _guard.tampered = _patched() or _changed()
    return _guard.tampered


def _patched() -> str | None:
    now = standing()
    for name, thing in _guard.stood.items():
        if now.get(name) is not thing and not _wraps(now.get(name), thing):
            return f"{name} was replaced while the notebook ran"
    if threading.getprofile() is not _in_threads:
        return "threading.setprofile was called while the notebook ran"
    for mode in torch.overrides._get_current_function_mode_stack():
        if not type(mode).__module__.startswith("torch"):
            return f"a {type(mode).__name__} stands between torch and the check"
    return _patched_shell()


def _wraps(now: Any, before: Any) -> bool:
    """Say whether this is torch.compile's wrapper around something: it puts one around nn.Module's methods."""
    guard = sys.modules.get("torch._dynamo.mutation_guard")
    if guard is None or not isinstance(now, types.FunctionType) or now.__globals__ is not vars(guard):
        return False
    inside = [cell.cell_contents for cell in now.__closure__ or ()]
    return now.__code__ in guard.install_generation_tagging_init.__code__.co_consts and before in inside


def _patched_shell() -> str | None:
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = get_ipython() if get_ipython else None
    for name in _SHELL if shell is not None else ():
        own = vars(shell).get(name)  # ipykernel puts some of the class's own methods there
        usual = isinstance(own, types.MethodType) and own.__func__ is getattr(type(shell), name, None)
        if isinstance(own, types.FunctionType | types.MethodType) and not usual:
            return f"get_ipython().{name} was replaced while the notebook ran"
    if getattr(shell, "custom_exceptions", ()):
        shell.custom_exceptions = ()  # or this very message would be swallowed
        return "an exception handler of its own (set_custom_exc) would swallow what a check raises"
    return None


def _changed() -> str | None:
    for name, value in _guard.environment.items():
        if os.environ.get(name) != value:
            return f"{name} was changed in the environment"
    return "the file of verdicts was written by other hands" if _size() != _guard.verdicts else None


def _size() -> int:
    try:
        return os.path.getsize(os.environ.get(marks.VERDICTS) or "")
    except OSError:
        return 0
