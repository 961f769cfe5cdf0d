"""The project as a whole: its pins agree, its modules keep the import order and stay short, its files are clean."""

import ast
import importlib
import re
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "l1_ref").rglob("*.py"))
# The data path, upstream first: a module imports only what stands before it.
IMPORT_ORDER = """
files signals config bpe tokenizer downloads data grammar tales_grammar tales linear embeddings attention transformer
loss optimization steps memory weights checkpoint training decoding generation runs parallel
checks course plots cli __main__
""".split()
# Lines outside docstrings. The aims are about 300 and 25; the limits leave room for "about".
MODULE_LINES, FUNCTION_LINES = 320, 30
CATALOGUE_LINES = 600  # of a module of checks: mostly a list of mistakes, which is data
# DESIGN's exercise table: every exercise's reference is `l1_ref.NAME`.
EXERCISES = """
softmax count_pairs merge_pair train_bpe encode next_token_batch
TokenEmbedding sinusoidal_positions PositionalEmbedding InputEmbedding
causal_mask attention_weights scaled_dot_product_attention split_heads merge_heads MultiHeadAttention
layer_norm gelu FeedForward TransformerBlock count_parameters init_weights L1Model
cross_entropy cosine_lr parameter_groups adamw_step clip_grad_norm train_step perplexity
accumulate_gradients loss_scaled_step amp_train_step checkpointed training_memory
greedy apply_temperature top_k_filter top_p_filter sample KVCache generate
""".split()
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)
DISTRIBUTION_OF = {"IPython": "ipython", "jupyter_core": "jupyter-core", "yaml": "PyYAML"}


@cache
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(*extras: str) -> list[str]:
    return project()["dependencies"] + [r for extra in extras for r in project()["optional-dependencies"][extra]]


def environment() -> tuple[list[str], list[str]]:
    """Return what environment.yml takes from conda and what from pip."""
    entries = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    (pip,) = [entry["pip"] for entry in entries if isinstance(entry, dict)]
    return [entry for entry in entries if isinstance(entry, str)], pip


def version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def files() -> list[Path]:
    """Return the project's own text files, without looking into what tools and readers put beside them."""
    folders = ("l1_ref", "tests", "notebooks", "data", "LICENSES", ".ci", ".github")
    suffixes = {".py", ".md", ".toml", ".yml", ".json", ".ipynb", ".txt", ""}
    found = [path for path in ROOT.iterdir() if path.is_file() and not path.name.startswith((".git", ".coverage"))]
    found += [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    found += [ROOT / ".gitignore", ROOT / ".gitattributes"]
    ignored = {"__pycache__", ".ipynb_checkpoints"}
    return sorted(path for path in found if path.suffix in suffixes and not ignored & set(path.parts))


def test_environment_and_pyproject_name_the_same_packages_and_versions():
    _, pip = environment()
    assert "-e ." in pip
    pinned = {r for r in pip if r != "-e ." and not r.startswith("torch==")}
    assert pinned == {r for r in requirements("test") if not r.startswith("torch>")}
    assert len(pip) == len(set(pip)) == len(pinned) + 2


def test_every_requirement_but_torch_is_an_exact_pin():
    for requirement in requirements("test", "bench", "journey"):
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9.]*|torch>=\d+\.\d+,<\d+\.\d+", requirement), requirement


def test_torch_is_one_pin_inside_the_range():
    (low, high) = re.search(r"torch>=([\d.]+),<([\d.]+)", " ".join(project()["dependencies"])).groups()
    (in_environment,) = [r.removeprefix("torch==") for r in environment()[1] if r.startswith("torch==")]
    in_makefile = re.search(r"^TORCH \?= (\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert in_environment == in_makefile
    assert version(low) <= version(in_makefile) < version(high)
    tested = re.search(r"torch: \[(.*)\]", (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))[1]
    oldest, newest = (text.strip(' "') for text in tested.split(","))
    assert version(oldest)[:2] == version(low) and newest == in_makefile


def test_python_versions_agree():
    low, high = re.fullmatch(r">=([\d.]+),<([\d.]+)", project()["requires-python"]).groups()
    (python,) = [r.removeprefix("python=") for r in environment()[0] if r.startswith("python=")]
    assert version(low) <= version(python) < version(high)
    assert version(low) <= sys.version_info[:2] < version(high)


def test_every_imported_package_is_declared():
    declared = {re.split(r"[=<>]", r)[0].lower() for r in requirements("test", "bench", "journey")}
    for path in [*SOURCES, *(ROOT / "tests").rglob("*.py")]:
        for name in imported_names(ast.walk(ast.parse(path.read_text(encoding="utf-8")))):
            top = name.split(".")[0]
            if top not in sys.stdlib_module_names and top not in {"l1_ref", "tests"}:
                assert DISTRIBUTION_OF.get(top, top).lower() in declared, f"{path.name} imports {name}"


def imported_names(nodes) -> list[str]:
    names = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports name the package in full"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_follow_the_data_path(path):
    parts = path.relative_to(ROOT / "l1_ref").with_suffix("").parts
    if parts == ("__init__",):
        return  # hands out every module's names, each when it is first used; the next test looks at it
    here = IMPORT_ORDER.index(parts[0])
    module_level = ast.parse(path.read_text(encoding="utf-8")).body
    for name in imported_names(module_level):
        top, *rest = name.split(".")
        if top == "l1_ref" and rest[0] in IMPORT_ORDER and rest[0] != parts[0]:
            assert IMPORT_ORDER.index(rest[0]) < here, f"{parts[0]} imports {name}, which is downstream of it"


def test_the_package_itself_imports_no_module():
    tree = ast.parse((ROOT / "l1_ref/__init__.py").read_text(encoding="utf-8"))
    assert not [name for name in imported_names(tree.body) if name.startswith("l1_ref")]


@pytest.mark.parametrize("name", EXERCISES)
def test_every_exercise_has_its_reference(name):
    import l1_ref

    assert name in l1_ref.__all__
    assert getattr(l1_ref, name).__doc__


def test_every_exported_name_exists():
    import l1_ref

    missing = [name for name in l1_ref.__all__ if not hasattr(l1_ref, name)]
    assert missing == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_modules_and_functions_stay_short(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    documented = [node for node in ast.walk(tree) if isinstance(node, DOCUMENTED) and ast.get_docstring(node)]
    docstring_lines = sum(node.body[0].end_lineno - node.body[0].lineno + 1 for node in documented)
    limit = CATALOGUE_LINES if "EXERCISES = (" in text else MODULE_LINES
    assert len(text.splitlines()) - docstring_lines <= limit
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert body_lines(node) <= FUNCTION_LINES, f"{node.name} has {body_lines(node)} lines of body"


def body_lines(function: ast.FunctionDef) -> int:
    """Count the lines of a function after its signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_no_file_names_a_registry_or_reads_pickles():
    hosts = ("py" + "pi.org", "pythonhosted" + ".org", "anaconda" + ".", "download.pytorch" + ".org", "forge" + ".net")
    words = (*hosts, "torch." + "load(", "import pick" + "le", "pickle" + ".load")
    for path in files():
        text = path.read_text(encoding="utf-8")
        assert [word for word in words if word in text] == [], path


def test_files_are_clean_text():
    corpus = set((ROOT / "data").glob("*.txt"))  # its bytes are the grammar's, to the last one
    for path in set(files()) - corpus:
        data = path.read_bytes()
        assert data.endswith(b"\n") and not data.endswith(b"\n\n"), f"{path} must end in one newline"
        assert b"\r" not in data and (b"\t" not in data or path.name == "Makefile"), path


def test_makefile_help_and_readme_name_the_same_targets():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    phony = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())
    assert phony == set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    offered = set(re.findall(r'echo "make ([a-z-]+) ', makefile))
    assert offered == {"environment", "learn", "test", "notebooks", "data", "bench", "journey", "clean"}
    assert offered <= set(re.findall(r"make ([a-z-]+)", readme)) <= phony


def test_the_command_and_the_wheel_are_declared():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert project()["scripts"] == {"l1": "l1_ref.cli:main"}
    assert callable(importlib.import_module("l1_ref.cli").main)
    wheel = tomllib.loads(text)["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["sources"] == {"data": "l1_ref/_data", "notebooks/src": "l1_ref/_notebooks"}
    assert wheel["only-include"] == ["l1_ref", *wheel["sources"]]
    assert all((ROOT / folder).is_dir() for folder in wheel["only-include"])


def test_licences_are_whole():
    for name, last in (("MIT", "SOFTWARE."), ("CC-BY-4.0", "creativecommons.org."), ("CC0-1.0", "Work.")):
        licence = (ROOT / f"LICENSES/{name}.txt").read_text(encoding="utf-8")
        assert licence.rstrip().endswith(last)
        assert f"LICENSES/{name}.txt" in (ROOT / "LICENSE").read_text(encoding="utf-8")
