"""The reader's workspace: a folder with the blank notebooks and the progress made in them."""

import os
import subprocess
import sys
import webbrowser
from pathlib import Path

from l1_ref.checks import marks, progress_table
from l1_ref.course import sources
from l1_ref.course.blank import load_blank
from l1_ref.course.build import as_text
from l1_ref.files import write_atomic

_NOTE = "This folder is a workspace of the L1 course: your notebooks, and progress.json. l1 learn goes on in it.\n"

_JUPYTER = Path(__file__).with_name("jupyter")


class WorkspaceError(ValueError):
    """A folder cannot serve as a workspace; the message says why and what to do."""


def learn(folder: Path | str = "workspace") -> Path:
    """Make a workspace, or go on in one; a notebook that is there is never touched.

    Args:
        folder: Where; made if missing. An existing folder must be empty or a workspace.

    Returns:
        The notebook to open: the first that has an exercise not yet solved or given.

    Raises:
        WorkspaceError: The folder is a file, cannot be written, or holds something else.
    """
    folder = Path(folder).expanduser()
    _require_usable(folder)
    try:
        if not (folder / marks.MARKER).exists():
            write_atomic(folder / marks.MARKER, _NOTE)
        for name in sources.names():
            path = folder / f"{name}.ipynb"
            if not os.path.lexists(path):
                write_atomic(path, as_text(load_blank(name)))
    except OSError as error:
        raise WorkspaceError(
            f"the workspace {folder} cannot be written ({error.strerror or error}); choose another: l1 learn FOLDER"
        ) from None
    return folder / f"{_next_notebook(folder)}.ipynb"


def _require_usable(folder: Path) -> None:
    if folder.is_dir():
        try:
            # Hidden files are not the reader's own work: .DS_Store, .ipynb_checkpoints.
            others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        except OSError as error:
            raise WorkspaceError(f"the workspace {folder} cannot be read: {error.strerror}") from None
        if others and not (folder / marks.MARKER).is_file():
            raise WorkspaceError(
                f"{folder} holds other files ({', '.join(others[:3])}{', …' if len(others) > 3 else ''}) and is no "
                "workspace of this course; choose an empty or a new folder: l1 learn FOLDER"
            )
    elif os.path.lexists(folder):
        raise WorkspaceError(f"the workspace must be a folder, got the file {folder}; choose another: l1 learn FOLDER")


def _next_notebook(folder: Path) -> str:
    done = {"solved", "given"}
    unfinished = [row.notebook for row in progress_table(folder) if row.state not in done]
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
    if not _has_browser():
        command.append("--no-browser")
        print("no browser here: open the address that JupyterLab prints below; Ctrl-C ends it", flush=True)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # a container's only user, as a rule
    try:
        environment = {**os.environ, "JUPYTER_CONFIG_PATH": settings}
        return subprocess.run([*command, notebook.name], cwd=notebook.parent, env=environment).returncode
    except KeyboardInterrupt:
        return 0


def _has_browser() -> bool:
    if os.environ.get("CI") or (sys.platform == "linux" and not os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY"}):
        return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True
