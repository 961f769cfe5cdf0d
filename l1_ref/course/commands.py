"""The course's own commands: a workspace and the progress made in it. `l1_ref.cli` puts them beside the others."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

# A path may hold what Rich would take for markup; and a line is for the terminal to break, not for a pipe.
out = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def learn(
    folder: Annotated[Path, typer.Argument(help="Your workspace; made if it is not there.")] = Path("workspace"),
    lab: Annotated[bool, typer.Option("--lab/--no-lab", help="Open JupyterLab on the first notebook.")] = True,
) -> None:
    """Make your workspace, or go on in it, and open JupyterLab; what you wrote is never overwritten."""
    from l1_ref.course import workspace

    notebook = workspace.learn(folder)
    out.print(f"workspace: {folder}   next: {notebook.name}")
    if lab:
        sys.exit(workspace.open_lab(notebook))


def progress(
    folder: Annotated[Path, typer.Argument(help="Your workspace.")] = Path("workspace"),
) -> None:
    """Show which exercises of a workspace are solved."""
    from l1_ref import checks

    checks.progress(folder)


COMMANDS = (learn, progress)
