"""Blank editions for Colab and Binder: their set-up cell installs L1 there, and is silent anywhere else."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from importlib import util
from pathlib import Path

import nbformat
import pytest
import yaml

import l1_ref
from l1_ref.course import publish, sources
from l1_ref.course.blank import load_blank

ROOT = Path(__file__).parents[1]
RELEASE = ROOT / ".github" / "workflows" / "release.yml"
WHEEL = "https://github.com/some/where/releases/download/v0.1.0/l1_ref-0.1.0-py3-none-any.whl"
# Imports whatever the notebooks import, where nothing can be imported that the set-up cell does not install.
IMPORTS = """
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ImportError(name)

sys.meta_path.insert(0, Absent())
import l1_ref
from l1_ref import checks, plots
for name in l1_ref.__all__:
    getattr(l1_ref, name)
checks.hint("softmax")
for code in CODE:
    exec(code, {})
"""


@pytest.fixture(scope="module")
def notebook():
    return publish.load_published("00_start_here", "some/where")


@pytest.fixture
def hosted(notebook, monkeypatch):
    """Return a function that runs the set-up cell as somewhere else, and gives the commands that it ran."""

    def run(colab=False, binder=False, installed=False) -> list[list[str]]:
        commands = []
        with monkeypatch.context() as patch:
            patch.setattr(util, "find_spec", lambda name: object() if installed else None)
            patch.setattr(subprocess, "run", lambda command, check: commands.append(command))
            patch.delitem(sys.modules, "google.colab", raising=False)
            patch.delenv("BINDER_REPO_URL", raising=False)
            if colab:
                patch.setitem(sys.modules, "google.colab", object())
            if binder:
                patch.setenv("BINDER_REPO_URL", "https://example.org")
            exec(notebook.cells[1].source, {})
        return commands

    return run


@pytest.mark.parametrize("where", ["colab", "binder"])
def test_where_l1_is_missing_the_cell_installs_it(hosted, where):
    packages, wheel = hosted(**{where: True})
    assert packages[:5] == wheel[:5] == [sys.executable, "-m", "pip", "install", "--quiet"]
    assert packages[5:] == list(publish.NEEDED) and wheel[5:] == ["--no-deps", WHEEL]


def test_anywhere_else_the_cell_does_nothing(hosted, capsys):
    assert hosted() == hosted(installed=True) == hosted(colab=True, installed=True) == []
    assert capsys.readouterr() == ("", "")


def test_the_cell_stands_second_and_only_where_it_is_published(notebook):
    plain = load_blank("00_start_here")
    assert [cell["id"] for cell in notebook.cells if cell["id"] != "set-up"] == [cell["id"] for cell in plain.cells]
    assert notebook.cells[1]["id"] == "set-up" and "nbgrader" not in notebook.cells[1].metadata
    assert len(notebook.cells[1].source.splitlines()) <= sources.MAX_CELL_LINES


def test_links_to_pages_lead_to_the_branch(notebook):
    text = notebook.cells[0].source
    assert "[glossary](https://github.com/some/where/blob/notebooks/glossary.md)" in text and "](glossary" not in text


def test_what_it_installs_is_all_that_the_notebooks_import():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {re.split(r"[=<>]", each)[0] for each in project["dependencies"]}
    needed = {re.split(r"[=<>]", each)[0] for each in publish.NEEDED}
    assert needed <= names and publish.NEEDED[0] in project["dependencies"]
    # Whoever runs a notebook has IPython and its kernel; rich and typer are among what Colab has.
    absent = sorted(names - needed - {"ipython", "ipykernel"})
    code = [line for name in sources.names() for line in import_lines(name)]
    program = f"ABSENT = {absent!r}\nCODE = {sorted(set(code))!r}\n{IMPORTS}"
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr


def import_lines(name: str) -> list[str]:
    cells = [cell.source for cell in sources.load(name).cells if cell.cell_type == "code"]
    nodes = [node for source in cells for node in ast.walk(ast.parse(source))]
    return [ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]


def test_the_wheel_has_the_name_of_this_version():
    assert l1_ref.__version__ == importlib.metadata.version("l1_ref")
    assert publish.wheel_address("some/where") == WHEEL.replace("0.1.0", l1_ref.__version__)


@pytest.mark.parametrize(
    ("index", "line"), [(None, ""), ("", ""), ("https://x/cpu", "--extra-index-url https://x/cpu\n")]
)
def test_a_folder_to_publish(tmp_path, monkeypatch, index, line):
    monkeypatch.setattr(sources, "names", lambda: ["00_start_here"])
    publish.publish(tmp_path / "out", "some/where", index)
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {
        "00_start_here.ipynb",
        "glossary.md",
        "README.md",
        ".l1-workspace",
        ".binder/requirements.txt",
        ".binder/runtime.txt",
    }
    nbformat.validate(nbformat.read(tmp_path / "out" / "00_start_here.ipynb", as_version=4))
    readme = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "https://colab.research.google.com/github/some/where/blob/notebooks/00_start_here.ipynb" in readme
    assert "https://mybinder.org/v2/gh/some/where/notebooks?labpath=00_start_here.ipynb" in readme
    assert (tmp_path / "out" / ".binder" / "requirements.txt").read_text() == f"{line}l1_ref @ {WHEEL}\n"


def test_bad_input_is_one_line(tmp_path, capsys):
    assert publish.main([str(tmp_path / "new"), "--repository", "https://github.com/some/where"]) == 1
    assert capsys.readouterr().err == "error: --repository must be owner/name, got 'https://github.com/some/where'\n"
    (tmp_path / "mine.txt").write_text("mine")
    assert publish.main([str(tmp_path), "--repository", "some/where"]) == 1
    assert "must be empty or new" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# The workflow.


def steps() -> list[dict]:
    return yaml.safe_load(RELEASE.read_text(encoding="utf-8"))["jobs"]["release"]["steps"]


def test_the_workflow_uses_the_actions_of_the_others_and_commands_that_exist():
    others = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    assert all(f"uses: {step['uses']}\n" in others for step in steps() if "uses" in step)
    script = "\n".join(step.get("run", "") for step in steps())
    for module in re.findall(r"-m (l1_ref[\w.]*)", script):
        assert util.find_spec(module), module
    assert f'"$commit:refs/heads/{publish.BRANCH}"' in script and ".ci/run" in script


@pytest.mark.skipif(os.name == "nt", reason="the release runs on Linux")
def test_the_branch_holds_the_published_files_and_nothing_else(tmp_path):
    """Run the workflow's own last step on a small repository."""
    origin, checkout = tmp_path / "origin.git", tmp_path / "checkout"
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-c", "init.defaultBranch=main"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment |= {"RUNNER_TEMP": str(tmp_path), "GITHUB_REF_NAME": "v0.1.0"}

    def run(*command: str, cwd: Path = checkout) -> str:
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(*git, "init", "--bare", str(origin), cwd=tmp_path)
    run(*git, "clone", str(origin), str(checkout), cwd=tmp_path)
    (checkout / "code.py").write_text("x = 1\n")
    (checkout / ".gitignore").write_text("*.ipynb\n")
    run(*git, "add", "--all")
    run(*git, "commit", "--message", "code")
    (checkout / "published" / ".binder").mkdir(parents=True)
    (checkout / "published" / "00.ipynb").write_text("{}\n")
    (checkout / "published" / ".binder" / "runtime.txt").write_text("python-3.11\n")
    for _ in range(2):  # a second release replaces the branch
        run("bash", "-e", "-c", steps()[-1]["run"])
    listed = run(*git, "ls-tree", "-r", "--name-only", publish.BRANCH, cwd=origin)
    assert listed.split() == [".binder/runtime.txt", "00.ipynb"]
    assert run(*git, "status", "--porcelain").split() == ["??", "published/"]
