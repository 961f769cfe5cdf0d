"""Publish the blank editions: a folder that becomes a branch, whose notebooks open in Colab and in Binder.

Only there does a notebook need a cell that installs L1. A workspace has none, since `l1` itself made it.
"""

import argparse
import re
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from l1_ref import __version__
from l1_ref.checks import marks
from l1_ref.course import pages, sources
from l1_ref.course.blank import load_blank
from l1_ref.course.build import as_text
from l1_ref.files import write_atomic

BRANCH = "notebooks"
# What notebooks need beside torch; whatever of it is there already stays as it is. The pins of pyproject.toml would
# exchange packages that the running kernel of Colab has loaded.
NEEDED = (
    "torch>=2.11,<2.14",
    "numpy",
    "safetensors",
    "tiktoken",
    "regex",
    "jaxtyping",
    "matplotlib",
    "tqdm",
    "ipywidgets",
)
_SET_UP = """# On Colab and Binder this cell installs L1. Anywhere else it does nothing.
import importlib.util
import os
import subprocess
import sys

hosted = "google.colab" in sys.modules or "BINDER_REPO_URL" in os.environ
if hosted and importlib.util.find_spec("l1_ref") is None:
    wheel = "{wheel}"
    packages = "{needed}".split()
    for what in (packages, ["--no-deps", wheel]):
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *what], check=True)
    importlib.invalidate_caches()
"""
_README = """# L1: build GPT from an empty cell

These are the blank notebooks of version {version}, made by the release of [{repository}](https://github.com/{repository}).
They open where nothing is installed. What you write there lasts as long as the session: download what you want to keep.

| notebook | | |
|---|---|---|
{rows}

The words and letters of all notebooks: [glossary](glossary.md).
"""


def wheel_address(repository: str) -> str:
    """Return where the release of this version keeps the wheel.

    Args:
        repository: Its owner and name, such as "owner/name".
    """
    name = f"l1_ref-{__version__}-py3-none-any.whl"
    return f"https://github.com/{repository}/releases/download/v{__version__}/{name}"


def load_published(name: str, repository: str) -> NotebookNode:
    """Return a blank edition that sets itself up in Colab and Binder, and whose links to pages are whole addresses.

    Args:
        name: Such as "00_start_here".
        repository: Its owner and name.
    """
    notebook = load_blank(name)
    source = _SET_UP.format(wheel=wheel_address(repository), needed=" ".join(NEEDED)).strip()
    hidden = {"name": "set-up", "tags": ["set-up"], "jupyter": {"source_hidden": True}}
    notebook.cells.insert(1, nbformat.v4.new_code_cell(source, id="set-up", metadata=hidden))
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for page in pages.texts():
                address = f"https://github.com/{repository}/blob/{BRANCH}/{page}"
                cell.source = cell.source.replace(f"]({page}", f"]({address}")
    return notebook


def publish(folder: Path, repository: str, torch_index: str | None = None) -> list[Path]:
    """Write the folder that becomes the branch.

    Args:
        folder: Empty, or not there yet.
        repository: Its owner and name.
        torch_index: An index of torch's CPU builds for Binder, whose machines have no GPU; none where None or empty.

    Returns:
        The files written.

    Raises:
        ValueError: The repository is not of the form owner/name, or the folder holds something.
        OSError: A file cannot be written.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ValueError(f"--repository must be owner/name, got {repository!r}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"the folder to publish must be empty or new, got {folder}")
    index = f"--extra-index-url {torch_index}\n" if torch_index else ""
    files = {f"{name}.ipynb": as_text(load_published(name, repository)) for name in sources.names()} | pages.texts()
    files |= {
        "README.md": _readme(repository),
        ".binder/requirements.txt": f"{index}l1_ref @ {wheel_address(repository)}\n",
        ".binder/runtime.txt": "python-3.11\n",
        marks.MARKER: "This file makes the folder a workspace of the L1 course: a session keeps its progress.\n",
    }
    for name, text in files.items():
        write_atomic(folder / name, text)
    return [folder / name for name in files]


def _readme(repository: str) -> str:
    rows = []
    for name in sources.names():
        colab = f"https://colab.research.google.com/github/{repository}/blob/{BRANCH}/{name}.ipynb"
        binder = f"https://mybinder.org/v2/gh/{repository}/{BRANCH}?labpath={name}.ipynb"
        rows.append(f"| [{name}]({name}.ipynb) | [open in Colab]({colab}) | [open in Binder]({binder}) |")
    return _README.format(version=__version__, repository=repository, rows="\n".join(rows))


def main(arguments: list[str] | None = None) -> int:
    """Publish into a folder; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m l1_ref.course.publish", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="empty, or not there yet")
    parser.add_argument("--repository", required=True, help="owner/name, whose release holds the wheel")
    parser.add_argument("--torch-index", help="an index of torch's CPU builds, for Binder")
    chosen = parser.parse_args(arguments)
    try:
        for path in publish(chosen.folder, chosen.repository, chosen.torch_index):
            print(f"written: {path}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
