"""Run a submitted notebook so that a cell which hangs, crashes or floods costs that cell, and nothing else."""

import asyncio
import logging
import shutil
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from nbgrader.preprocessors import NbGraderPreprocessor
from nbgrader.utils import is_grade
from traitlets import Bool, Float, Integer

from l1_ref.course.integrity import require_verdicts
from l1_ref.course.kernels import Kernel, KernelError, Launcher
from l1_ref.course.limits import Limits
from l1_ref.course.results import verdicts_of
from l1_ref.course.sources import CHECK, grade_id
from l1_ref.files import write_atomic

_GRACE_S = 5.0  # for a cell to end after an interrupt, before its kernel is ended
_QUIET = logging.getLogger("l1_ref.course.grading")
_QUIET.addHandler(logging.NullHandler())
_QUIET.propagate = False
Key = tuple[str, str, str]  # student, assignment, notebook
# What `l1 grade` ran beforehand, several at a time: nbgrader's own run takes it from here.
ALREADY_RUN: dict[Key, NotebookNode] = {}


class _Client(NotebookClient):
    """Runs cells in a kernel that it is given; one that is too long or too loud is interrupted, then ended."""

    def __init__(self, notebook: NotebookNode, kernel: Kernel, limits: Limits) -> None:
        super().__init__(
            notebook, timeout=limits.cell_s, allow_errors=True, record_timing=False, coalesce_streams=True,
            raise_on_iopub_timeout=False, store_widget_state=False, log=_QUIET,
        )  # fmt: skip
        self.kc, self.kernel, self.most = kernel.client, kernel, limits.output_mb * 2**20
        self.why, self.reply, self._n_bytes, self._ending = "", None, 0, None
        self.on_cell_executed = self._note
        self.reset_execution_trackers()

    async def run_cell(self, cell: NotebookNode, index: int) -> bool:
        """Run one cell in place, and say whether the kernel lives on."""
        self.why, self.reply, self._n_bytes, alive = "", None, 0, True
        try:
            await self.async_execute_cell(cell, index)
        except DeadKernelError:
            if asyncio.current_task().cancelling():  # nbclient takes every cancelled wait for a dead kernel
                raise asyncio.CancelledError from None
            alive = False
            self.why = self.why or "the kernel ended while this cell ran: it ran out of memory or of time, or was ended"
        finally:
            if self._ending is not None:
                self._ending.cancel()
                self._ending = None
        content = self.reply["content"] if self.reply else {}
        if self.why:
            cell.outputs.append(_error("CellFailed", self.why))
        elif content.get("status") == "error" and not any(each.output_type == "error" for each in cell.outputs):
            cell.outputs.append(_error(content["ename"], content["evalue"]))
        return alive

    def _note(self, execute_reply: dict[str, Any], **_: Any) -> None:
        self.reply = execute_reply

    async def _async_check_alive(self) -> None:
        if not self.kernel.is_alive():
            raise DeadKernelError("Kernel died")

    async def _async_handle_timeout(self, timeout: float, cell: NotebookNode | None = None) -> None:
        self._stop(f"this cell took longer than {timeout:g} seconds: does a loop never end?")

    def output(self, outs: list, msg: dict, display_id: str | None, cell_index: int) -> NotebookNode | None:
        """Keep an output, unless there is too much of it."""
        self._n_bytes += sum(len(str(value)) for value in msg["content"].values())
        if self._n_bytes > self.most:
            self._stop(f"this cell wrote more than {self.most // 2**20} MiB")
            return None
        return super().output(outs, msg, display_id, cell_index)

    def _stop(self, why: str) -> None:
        if self._ending is None:
            self.why = why
            self.kernel.interrupt()
            self._ending = asyncio.get_running_loop().call_later(_GRACE_S, self._end)

    def _end(self) -> None:
        self.kernel.kill()
        self.task_poll_for_reply.cancel()  # after a time-out nbclient no longer looks whether the kernel is alive


def _error(name: str, why: str) -> NotebookNode:
    return nbformat.v4.new_output("error", ename=name, evalue=why, traceback=[f"{name}: {why}"])


async def run_apart(notebook: NotebookNode, launcher: Launcher, folder: Path) -> None:
    """Run a notebook in place; after a cell that ended the kernel, a fresh one goes on without that cell.

    A fresh kernel runs again what came before, except checks, cells that took too long, and the exercise whose check
    ended the kernel.

    Args:
        notebook: The submission, cleaned up.
        launcher: Starts its kernels.
        folder: The one folder that the submission may write to.

    Raises:
        KernelError: Not even the first kernel started.
    """
    deadline: float | None = None  # the time begins when the first kernel is ready: waiting for it is not the student's
    left_out: set[int] = set()
    position = 0  # the first cell that has not run
    while position < len(notebook.cells):
        if deadline is not None and time.monotonic() >= deadline:
            _give_up(notebook.cells[position:], f"the notebook's {launcher.limits.notebook_s:g} seconds were over")
            return
        kernel = Kernel(launcher, folder)
        ending = None
        try:
            await kernel.ready()
            deadline = deadline or time.monotonic() + launcher.limits.notebook_s
            ending = asyncio.get_running_loop().call_later(deadline - time.monotonic(), kernel.kill)
            position = await _run_from(position, notebook, _Client(notebook, kernel, launcher.limits), left_out)
        except KernelError as error:
            if deadline is None:
                raise  # not this student's doing
            _give_up(notebook.cells[position:], str(error))
            return
        finally:
            if ending is not None:
                ending.cancel()
            kernel.end()


async def _run_from(position: int, notebook: NotebookNode, client: _Client, left_out: set[int]) -> int:
    """Run the cells before a position again, then those from it on, while the kernel lives; return where to go on."""
    for index, cell in enumerate(notebook.cells):
        again = index < position
        if cell.cell_type != "code" or index in left_out or (again and is_grade(cell)):
            continue
        running = deepcopy(cell) if again else cell
        alive = await client.run_cell(running, index)
        notebook.cells[index] = cell
        if client.why:
            left_out.add(index)
        if not alive:
            left_out.update(_its_exercise(notebook, index))
            return max(position, index + 1)
    return len(notebook.cells)


def _its_exercise(notebook: NotebookNode, index: int) -> Iterable[int]:
    """Yield where the exercise of a check is."""
    if is_grade(notebook.cells[index]):
        name = grade_id(notebook.cells[index]).removesuffix(CHECK)
        for i, cell in enumerate(notebook.cells):
            if grade_id(cell) == name:
                yield i


def _give_up(cells: Iterable[NotebookNode], why: str) -> None:
    for cell in cells:
        if cell.cell_type == "code":
            cell.outputs = [_error("CellFailed", why)]


def settle(notebook: NotebookNode) -> None:
    """Make a check's points depend on one thing: whether it raised.

    nbgrader takes points away for a warning on standard error, and gives those that an output names.

    Args:
        notebook: Has been run.
    """
    for cell in notebook.cells:
        if cell.cell_type != "code" or not is_grade(cell):
            continue
        for output in cell.outputs:
            if output.output_type == "stream":
                output.name = "stdout"
            elif output.output_type == "execute_result":
                output.output_type = "display_data"
                output.pop("execution_count", None)


async def run_submission(
    notebook: NotebookNode, launcher: Launcher, course: Path, student: str, assignment: str
) -> None:
    """Run a submission in a folder of its own, beside copies of its files, and keep what its checks told.

    Args:
        notebook: Cleaned up; is run in place.
        launcher: Starts its kernels.
        course: The classroom's folder.
        student: The student's id.
        assignment: Its name.
    """
    with tempfile.TemporaryDirectory(prefix="l1-", ignore_cleanup_errors=True) as place:
        folder = Path(place).resolve()
        work = folder / "work"
        work.mkdir()
        for source in (course / "release" / assignment, course / "submitted" / student / assignment):
            if source.is_dir():
                shutil.copytree(source, work, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.ipynb"))
        await run_apart(notebook, launcher, folder)
        told = folder / "verdicts.jsonl"
        whole = told.is_file() and not told.is_symlink() and told.stat().st_size <= 2**24
        verdicts = told.read_bytes() if whole else b""
        write_atomic(verdicts_of(course, student, assignment), verdicts)
    settle(notebook)
    require_verdicts(notebook, verdicts, launcher.key_of(folder))


class RunApart(NbGraderPreprocessor):
    """In nbgrader's autograde: runs a submission inside the limits, or takes what `l1 grade` has just run."""

    cell_s = Float(60.0, help="Longest time of one cell, in seconds").tag(config=True)
    memory_mb = Integer(4096, help="MiB of address space for a process, beside torch's own").tag(config=True)
    with_limits = Bool(True, help="Whether the limits are applied").tag(config=True)

    def preprocess(self, nb: NotebookNode, resources: dict) -> tuple[NotebookNode, dict]:
        """Run a submission.

        Args:
            nb: Cleaned up by the steps before.
            resources: nbgrader's.
        """
        key = tuple(resources["nbgrader"][part] for part in ("student", "assignment", "notebook"))
        ran = ALREADY_RUN.pop(key, None)
        if ran is not None and [cell.source for cell in ran.cells] == [cell.source for cell in nb.cells]:
            return ran, resources
        student, assignment, _ = key
        with Launcher(Limits(self.cell_s, self.memory_mb), self.with_limits) as launcher, ThreadPoolExecutor(1) as pool:
            # In a thread, because JupyterLab's formgrader calls this where a loop of events runs already.
            run = run_submission(nb, launcher, Path.cwd(), student, assignment)  # nbgrader moves to the course's folder
            pool.submit(asyncio.run, run).result()
        return nb, resources
