"""The reader's workspace: a folder with the blank notebooks and the progress made in them."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from nbformat import NotebookNode

from l1_ref.checks import marks, progress_table
from l1_ref.course import editions, pages, sources
from l1_ref.course.blank import load_blank
from l1_ref.course.build import as_text
from l1_ref.course.doctor_probes import has_browser
from l1_ref.course.merging import is_of_edition
from l1_ref.files import alone, read_bytes, write_atomic

_NOTE = "This folder is a workspace of the L1 course: your notebooks, and progress.json. l1 learn goes on in it.\n"

_JUPYTER = Path(__file__).with_name("jupyter")


class WorkspaceError(ValueError):
    """A folder cannot serve as a workspace; the message says why and what to do."""


def learn(folder: Path | str = "workspace", say: Callable[[str], object] = lambda line: None) -> Path:
    """Make a workspace, or go on in one; a notebook that is there is never touched.

    Args:
        folder: Where; made if missing. An existing folder must be empty or a workspace.
        say: Is told where a newer edition is there, and what became of an update that was interrupted.

    Returns:
        The notebook to open: the first that has an exercise not yet solved or given.

    Raises:
        WorkspaceError: The folder is a file, cannot be written, or holds something else.
    """
    folder = Path(folder).expanduser()
    around = marks.find_workspace(folder.absolute().parent)
    if around is not None and not (folder / marks.MARKER).is_file():
        command = f"l1 learn {shlex.quote(str(around))}"
        raise WorkspaceError(f"{folder} lies inside the workspace {around}; go on in that one: {command}")
    _require_usable(folder)
    try:
        if not (folder / marks.MARKER).exists():
            write_atomic(folder / marks.MARKER, _NOTE)
        if editions.has_unfinished_changes(folder):
            with alone(folder / editions.LOCK):
                for line in editions.finish_changes(folder):
                    say(line)
        if _hand_out(folder):
            say(f"a newer edition is there: l1 update {shlex.quote(str(folder))}")
    except OSError as error:
        raise WorkspaceError(
            f"the workspace {folder} cannot be written ({error.strerror or error}); choose another: l1 learn FOLDER"
        ) from None
    return folder / f"{_next_notebook(folder)}.ipynb"


def _hand_out(folder: Path) -> bool:
    """Make the notebooks and pages that are missing; tell whether those that are there are of another edition."""
    handed_out, new = editions.read_editions(folder), {name: load_blank(name) for name in sources.names()}
    is_outdated = pages.hand_out(folder) or not handed_out.keys() <= new.keys()
    for name, notebook in new.items():
        path, text = folder / f"{name}.ipynb", as_text(notebook)
        if not os.path.lexists(path):
            # First the edition: a notebook without it could not be told from the reader's own work.
            write_atomic(folder / editions.EDITION / path.name, text)
            write_atomic(path, text)
        elif name in handed_out:
            is_outdated |= handed_out[name] != notebook
        elif _is_of_edition(path, notebook):  # made before editions were kept
            write_atomic(folder / editions.EDITION / path.name, text)
        else:
            is_outdated = True
    return is_outdated


def _is_of_edition(path: Path, notebook: NotebookNode) -> bool:
    try:
        return is_of_edition(editions.as_notebook(read_bytes(path)), notebook)
    except (OSError, ValueError):
        return False


def _require_usable(folder: Path) -> None:
    if folder.is_dir():
        try:
            # Hidden files are not the reader's own work: .DS_Store, .ipynb_checkpoints.
            others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        except OSError as error:
            raise WorkspaceError(f"the workspace {folder} cannot be read: {error.strerror}") from None
        # A copy made without its hidden files is known by the progress.
        if others and not marks.is_workspace(folder):
            raise WorkspaceError(
                f"{folder} holds other files ({', '.join(others[:3])}{', …' if len(others) > 3 else ''}) and is no "
                "workspace of this course; choose an empty or a new folder: l1 learn FOLDER"
            )
    elif os.path.lexists(folder):
        raise WorkspaceError(f"the workspace must be a folder, got the file {folder}; choose another: l1 learn FOLDER")


def _next_notebook(folder: Path) -> str:
    unfinished = [row.notebook for row in progress_table(folder) if row.state not in marks.DONE]
    return next((name for name in sources.names() if name in unfinished), sources.names()[0])


def open_lab(notebook: Path) -> int:
    """Run JupyterLab on a notebook until the reader ends it; where there is no browser, its address is printed.

    Args:
        notebook: In a workspace, which becomes JupyterLab's root folder.

    Returns:
        JupyterLab's exit status.
    """
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={notebook.parent.resolve()}"]
    # Nobody offline should be asked about news, or wait for them: this folder's settings switch the question off.
    command += ["--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    settings = os.pathsep.join(filter(None, [str(_JUPYTER), os.environ.get("JUPYTER_CONFIG_PATH")]))
    if not has_browser():
        command.append("--no-browser")
        print("no browser here: open the address that JupyterLab prints below; Ctrl-C ends it", flush=True)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # a container's only user, as a rule
    # So that the printed address, and `/`, lead to the notebook too.
    command += [f"--LabApp.default_url=/lab/tree/{notebook.name}", notebook.name]
    # So that a terminal in JupyterLab knows `l1`, though the course's environment was not activated.
    programs = os.pathsep.join(filter(None, [str(Path(sys.executable).parent), os.environ.get("PATH")]))
    environment = {**os.environ, "JUPYTER_CONFIG_PATH": settings, "PATH": programs}
    with subprocess.Popen(command, cwd=notebook.parent, env=environment) as lab:
        while True:
            try:
                return lab.wait()
            except KeyboardInterrupt:
                continue  # Ctrl-C reaches JupyterLab too: it asks whether to end, and shuts its kernels down
