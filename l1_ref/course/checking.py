"""Run the checks of notebooks without a browser: on copies in memory, each in its own kernel, within time limits."""

import asyncio
import json
import os
import re
import shlex
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from l1_ref.checks import EXERCISES, marks, messages
from l1_ref.checks.messages import STUB_MESSAGE
from l1_ref.course import build, editions, sources
from l1_ref.course.blank import load_blank
from l1_ref.course.outcomes import UNREACHED, Outcome, Result
from l1_ref.files import read_bytes

LIMIT_S = 60.0  # of a cell
_GRACE_S = 5.0  # from the interruption of a cell to the end of a kernel that swallows it
_BLANK = f"NotImplementedError: {STUB_MESSAGE}"


class _Silent(NotebookClient):
    """Runs cells without keeping what they show: a loop that prints for a minute would fill the memory."""

    def output(self, *_: Any, **__: Any) -> None:
        """Leave an output where it is."""


class NotebookRun:
    """One notebook's run, and what was seen of it.

    Args:
        path: The notebook's file, which is read now and never written.
        timeout_s: How long a cell may take.
        jobs: How many notebooks run at the same time and share the cores.

    Raises:
        OSError: The file cannot be read.
    """

    def __init__(self, path: Path, timeout_s: float = LIMIT_S, jobs: int = 1) -> None:
        self.path, self.timeout_s, self.jobs = path, timeout_s, jobs
        self.ended = False
        self.stopped = ""  # why it did not run to its end
        self.notebook = self._read()
        code = [i for i, c in enumerate(self.notebook.cells) if c.cell_type == "code" and c.source.strip()]
        self._number = {index: n for n, index in enumerate(code, start=1)}  # as in Jupyter's [n], run from the top
        self.n_cells = len(code)
        self._errors: dict[int, str] = {}  # by the cell's index, as all below
        self._verdicts: dict[int, list[dict[str, Any]]] = {}
        self._seconds: dict[int, float] = {}
        self._current: int | None = None
        self._begun, self._elapsed_s, self._n_told = 0.0, 0.0, 0
        self._watch: asyncio.Task | None = None
        self._client: NotebookClient | None = None
        self._abandoned = False

    def _read(self) -> NotebookNode:
        try:
            with warnings.catch_warnings(action="ignore"):  # cells without ids, as older programs write them
                return editions.as_notebook(read_bytes(self.path))
        except ValueError as error:
            self.stopped = f"{self.path.name} is no notebook: {str(error)[:200]}"
            return nbformat.v4.new_notebook()

    async def run(self, tell: Callable[[str], None] = str) -> Outcome:
        """Run all cells, and return what came of the checks.

        Args:
            tell: Called with the notebook's name before each cell.
        """
        if self.stopped:
            return self.outcome()
        if self._is_as_handed_out():
            return self._unwritten(tell)
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "verdicts.jsonl"

            async def begin(cell: NotebookNode, cell_index: int) -> None:
                tell(self.path.stem)
                self._current, self._begun = cell_index, time.monotonic()
                self._watch = asyncio.ensure_future(self._limit(client))

            def end(cell: NotebookNode, cell_index: int, execute_reply: dict[str, Any]) -> None:
                self._note(cell_index, execute_reply["content"], file)

            hooks = {"on_cell_execute": begin, "on_cell_executed": end}
            client = build.client(self.notebook, self.path.parent, _Silent, allow_errors=True, timeout=None, **hooks)
            self._client = client
            await self._execute(client, file)
        self._elapsed_s, self.ended = time.monotonic() - began, True
        return self.outcome()

    def _is_as_handed_out(self) -> bool:
        """Say whether nothing is written, so that there is nothing to run."""
        if self.path.stem not in sources.names():
            return False
        of_course = load_blank(self.path.stem).cells
        return [c.source for c in self.notebook.cells if c.cell_type == "code"] == [
            c.source for c in of_course if c.cell_type == "code"
        ]

    def _unwritten(self, tell: Callable[[str], None]) -> Outcome:
        for index in self._number:
            tell(self.path.stem)
            name = str(self.notebook.cells[index].metadata.get("name", ""))
            if name.endswith(sources.CHECK):
                name = name.removesuffix(sources.CHECK)
                verdict = {"exercise": name, "state": "unwritten", "mistakes": [], "text": messages.unwritten(name)}
                self._verdicts[index], self._seconds[index] = [verdict], 0.0
        self.ended = True
        return self.outcome()

    async def _execute(self, client: NotebookClient, verdicts: Path) -> None:
        # No workspace: what these checks found is recorded once, by who asked for them.
        environment = {marks.VERDICTS: str(verdicts), "L1_WORKSPACE": os.devnull}
        if self.jobs > 1 and "OMP_NUM_THREADS" not in os.environ:  # threads that wait for each other's cores are slow
            environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // self.jobs))
        try:
            # Its own streams, past Jupyter's: a warning of the kernel's must not stand between the lines of our JSON.
            streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            await client.async_execute(env=build.kernel_environment(**environment), **streams)
        except (RuntimeError, OSError, KeyError) as error:  # KeyError: no kernel of that name is installed
            if self._abandoned:  # nbclient takes the end of its task for the kernel's
                raise asyncio.CancelledError from None
            self.stopped = self._why_stopped(error)
        finally:
            self._unwatch()
            if client.km is not None and client.km.has_kernel:  # it was stopped while it started
                await client.km.shutdown_kernel(now=True)

    def _why_stopped(self, error: Exception) -> str:
        if self._current is None:
            return f"no kernel started: {error}"
        late = self._errors.get(self._current) == self._too_long()
        why = f"{self._too_long()}, and it could not be interrupted" if late else "the kernel died"
        return f"{self._label(self._current)}: {why}"

    def abandon(self) -> None:
        """Let the kernel be killed, not asked to end, when the run is cancelled."""
        self._abandoned = True
        if self._client is not None:
            self._client.shutdown_kernel = "immediate"

    async def _limit(self, client: NotebookClient) -> None:
        """Interrupt the cell that runs when its time is over, and end a kernel that does not heed that."""
        await asyncio.sleep(self.timeout_s)
        self._errors[self._current] = self._too_long()
        with suppress(RuntimeError, ProcessLookupError):  # it has just died by itself
            await client.km.interrupt_kernel()
            await asyncio.sleep(_GRACE_S)
            await client.km.provisioner.kill()

    def _too_long(self) -> str:
        return f"no end after {self.timeout_s:g} s"

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()

    def _note(self, index: int, reply: dict[str, Any], file: Path) -> None:
        self._unwatch()
        self._seconds[index] = time.monotonic() - self._begun
        if reply["status"] == "error":
            said = f"{reply['ename']}: {reply['evalue']}".strip().partition("\n")[0]
            said = re.sub(r"\(\d+\.py, (line \d+)\)$", r"(\1)", said)  # the number is IPython's name for the cell
            self._errors.setdefault(index, said[:200])
        if file.exists():
            lines = file.read_text(encoding="utf-8").splitlines()
            self._verdicts[index] = [json.loads(line) for line in lines[self._n_told :]]
            self._n_told = len(lines)

    def _label(self, index: int) -> str:
        cell = self.notebook.cells[index]
        return f"cell [{self._number[index]}] ({cell.metadata.get('name') or cell.source.strip().splitlines()[0][:40]})"

    def outcome(self) -> Outcome:
        """Return what came of each exercise: those of the course's notebook of this name, then others of the file."""
        names = [each.name for each in EXERCISES.values() if each.notebook == self.path.stem]
        for cell in self.notebook.cells:
            if {"exercise", "check"} & set(sources.tags(cell)) and isinstance(cell.metadata.get("name"), str):
                names.append(cell.metadata["name"].removesuffix(sources.CHECK))
        names += [verdict["exercise"] for told in self._verdicts.values() for verdict in told]
        results = tuple(self._result(name) for name in dict.fromkeys(names))
        return Outcome(self.path.stem, self.path, results, self._elapsed_s, self.stopped)

    def _result(self, name: str) -> Result:
        places = [i for i in self._named(f"{name}{sources.CHECK}") if i in self._number]
        # A try in a cell of the reader's own does not count where the exercise has its check.
        told = [(i, v) for i in places or self._verdicts for v in self._verdicts.get(i, ()) if v["exercise"] == name]
        if not told:
            return Result(name, UNREACHED, (), self._why_unreached(name, places))
        index, verdict = told[-1]
        return Result(name, verdict["state"], tuple(verdict["mistakes"]), verdict["text"], self._seconds[index])

    def _named(self, name: str) -> list[int]:
        return [i for i, cell in enumerate(self.notebook.cells) if cell.metadata.get("name") == name]

    def _why_unreached(self, name: str, places: list[int]) -> str:
        """Say what kept an exercise from its check: its own cell, the check, or what failed before."""
        own = next((i for i in self._named(name) if i in self._errors and self._errors[i] != _BLANK), None)
        error = next((self._errors[i] for i in places if i in self._errors), None)
        if own is not None:
            return f"{self._label(own)} failed: {self._errors[own]}"
        if error is None:
            return self.stopped or ("the check gave no verdict" if places else "its check is not in the notebook")
        if error == self._too_long():
            return f"{self._label(places[-1])} failed: {error}"
        before = [i for i, text in self._errors.items() if i < places[-1] and text != _BLANK]
        # The cell that would have defined what is missing, else the first that failed.
        missing = re.search(r"^NameError: name '(\w+)' is not defined", error)
        guilty = [i for i in before if missing and re.search(rf"\b{missing[1]}\b", self.notebook.cells[i].source)]
        first = next(iter(guilty[-1:] or before), None)
        return error + ("" if first is None else f"; before, {self._label(first)} failed: {self._errors[first]}")


def run_all(
    runs: Iterable[NotebookRun],
    jobs: int = 1,
    tell: Callable[[str], None] = str,
    done: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """Run notebooks, several at a time; when it is interrupted, the kernels are ended before it raises.

    Args:
        runs: What to run.
        jobs: How many at a time.
        tell: Called with a notebook's name before each of its cells, from another thread.
        done: Called with what came of each notebook as it ends, from another thread.

    Returns:
        What came of each, in the order of the runs.

    Raises:
        KeyboardInterrupt: As it came.
    """
    team = _Team(list(runs), jobs, tell, done)
    # nbclient takes SIGINT for itself where it runs in the main thread.
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(team.work)
        try:
            while not wait([future], timeout=0.5).done:  # Windows hears Ctrl-C only between two waits
                pass
        except BaseException:
            team.stop()
            raise
        return future.result()


class _Team:
    """The runs that go on at the same time in one event loop."""

    def __init__(self, runs: list[NotebookRun], jobs: int, tell: Callable, done: Callable) -> None:
        self.runs, self.jobs, self.tell, self.done = runs, jobs, tell, done
        self.loop = asyncio.SelectorEventLoop()  # zmq's sockets need this kind, on Windows too
        self.task: asyncio.Task | None = None
        self.stopping = False

    def work(self) -> list[Outcome]:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            return runner.run(self._all())

    def stop(self) -> None:
        self.stopping = True
        for run in self.runs:
            run.abandon()
        with suppress(RuntimeError):  # the loop has ended by itself
            self.loop.call_soon_threadsafe(lambda: self.task and self.task.cancel())

    async def _all(self) -> list[Outcome]:
        self.task = asyncio.current_task()
        if self.stopping:
            raise asyncio.CancelledError
        free = asyncio.Semaphore(self.jobs)

        async def one(run: NotebookRun) -> Outcome:
            async with free:
                outcome = await run.run(self.tell)
            self.done(outcome)
            return outcome

        # All come to their end, also when the task is cancelled: none is cancelled twice, amid its tidying up.
        found = await asyncio.gather(*map(one, self.runs), return_exceptions=True)
        for each in found:
            if isinstance(each, BaseException):
                raise each
        return found


def find(names: Iterable[str], workspace: Path) -> list[Path]:
    """Return the notebooks that are asked for; all of the course that the workspace holds where none is.

    Args:
        names: Such as "03", "03_attention", or a path that ends in ".ipynb".
        workspace: Where the first two are looked for.

    Raises:
        ValueError: There is no such notebook.
    """
    held = [path for name in sources.names() if (path := workspace / f"{name}.ipynb").is_file()]
    found = [_one(name, held, workspace) for name in names] or held
    if not found:
        quoted = shlex.quote(str(workspace))
        raise ValueError(f"{workspace} holds no notebook of the course; l1 learn {quoted} adds them")
    return list(dict.fromkeys(found))


def _one(name: str, held: list[Path], workspace: Path) -> Path:
    if name.endswith(".ipynb"):
        path = next((path for path in (Path(name), workspace / name) if path.is_file()), None)
    else:
        asked = name.zfill(2) if name.isdecimal() else name
        path = next((path for path in held if asked in (path.stem, *path.stem.split("_", 1))), None)
    if path is None:
        known = ", ".join(path.stem for path in held) or "none"
        hint = f"; {name} is an exercise of {EXERCISES[name].notebook}" if name in EXERCISES else ""
        raise ValueError(f"NOTEBOOK must name a notebook that is there, got {name!r}{hint}; {workspace} holds: {known}")
    return path


def record(outcome: Outcome) -> None:
    """Note what a run found in the progress of the notebook's workspace; a state reached before is not another try.

    Args:
        outcome: Of one notebook; where that lies in no workspace, nothing is noted.
    """
    workspace = marks.find_workspace(outcome.path.parent)
    for result in outcome.results if workspace is not None else ():
        if result.state in ("solved", "given", "wrong"):
            marks.record(result.exercise, result.state, folder=workspace, again=True)
