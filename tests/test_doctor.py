"""`l1 doctor`: every fault is found, named, and answered with how to mend it; and no fault ends the doctor."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import webbrowser
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import pytest

from l1_ref.course import commands, doctor, doctor_probes, doctor_torch
from l1_ref.course.findings import BROKEN, GOOD, PYTHONS, TORCHES, WARNING, Finding, in_range, last_line

ROOT = Path(__file__).parents[1]
HERE = Path("workspace")
Version = namedtuple("Version", "major minor micro")
SAME_EVERYWHERE = [
    "Python", "packages", "torch", "torch computes", "threads", "GPU", "16-bit numbers", "tokenizer", "JupyterLab",
    "Jupyter kernel", "data files", "workspace", "disk", "memory", "browser",
]  # fmt: skip


def told(finding: Finding, state: str, *words: str) -> None:
    """Assert what a probe found, and that whatever is not good says how to mend it."""
    text = f"{finding.found} | {finding.mend}"
    assert finding.state == state, text
    assert bool(finding.mend) == (state != GOOD), text
    for word in words:
        assert word in text, text


def run_doctor(tmp_path, **environment) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "l1_ref.course.doctor", "workspace", "--json"]
    return subprocess.run(command, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True)


# The real thing.


def test_a_good_installation_is_found_good(tmp_path):
    done = run_doctor(tmp_path, PYTHONPATH=str(ROOT))
    answer = json.loads(done.stdout)
    states = {each["what"]: each["state"] for each in answer["findings"]}
    assert list(states) == SAME_EVERYWHERE and done.stderr == ""
    assert {what for what, state in states.items() if state == BROKEN} == set(), done.stdout
    assert (answer["works"], done.returncode) == (True, 0)
    assert states["torch computes"] == states["tokenizer"] == states["Jupyter kernel"] == states["data files"] == GOOD
    assert list(tmp_path.iterdir()) == []


def test_without_torch_the_doctor_still_runs_and_says_so(tmp_path):
    (tmp_path / "torch.py").write_text('raise OSError("libtorch_cpu.so: cannot open shared object file")\n')
    done = run_doctor(tmp_path, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    findings = {each["what"]: Finding(**each) for each in json.loads(done.stdout)["findings"]}
    told(findings["torch"], BROKEN, "libtorch_cpu.so: cannot open", "-m pip install --force-reinstall")
    assert done.returncode == 1 and {"Jupyter kernel", "browser"} <= set(findings)


# Each probe, with a fault.


def test_the_ranges_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (low, high), (first, last) = (((a, b), (c, d + 1)) for (a, b), (c, d) in (PYTHONS, TORCHES))
    assert project["requires-python"] == f">={low[0]}.{low[1]},<{high[0]}.{high[1]}"
    assert f"torch>={first[0]}.{first[1]},<{last[0]}.{last[1]}" in project["dependencies"]


@pytest.mark.parametrize(
    ("version", "inside"),
    [("2.10.9", False), ("2.11.0", True), ("2.13.4+cpu", True), ("2.14.0a0", False), ("3.0", False), ("odd", False)],
)
def test_a_version_is_compared_by_its_numbers(version, inside):
    assert in_range(version, TORCHES) is inside


@pytest.mark.parametrize(("version", "state"), [((3, 10, 9), BROKEN), ((3, 14, 0), BROKEN), ((3, 12, 1), GOOD)])
def test_pythons_version(monkeypatch, version, state):
    monkeypatch.setattr(sys, "version_info", Version(*version))
    told(doctor_probes.probe_python(HERE), state, ".".join(map(str, version)))


def test_packages_that_are_missing_or_of_another_version(monkeypatch):
    versions = {"numpy": "1.26.0", "rich": "15.0.0"}
    monkeypatch.setattr(
        metadata,
        "requires",
        lambda _: ["torch<3,>=2", "numpy==2.4.6", "rich==15.0.0", "pytest==9.2.0; extra == 'test'"],
    )

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    told(doctor_probes.probe_packages(HERE), WARNING, "numpy==2.4.6 (here 1.26.0)", "pip install numpy==2.4.6")
    del versions["rich"]
    told(doctor_probes.probe_packages(HERE), BROKEN, "missing: rich==15.0.0", "pip install rich==15.0.0 numpy==2.4.6")
    versions.update(rich="15.0.0", numpy="2.4.6")
    told(doctor_probes.probe_packages(HERE), GOOD, "2, each")
    del versions["rich"]
    told(doctor_probes.probe_jupyterlab(HERE), BROKEN, "pip install jupyterlab")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise ImportError('DLL load failed')", "ImportError: DLL load failed"),
        ("import os; os._exit(7)", "exit status 7"),
        ("import threading; threading.Event().wait()", "no answer within 0.5 seconds"),
    ],
)
def test_a_torch_that_fails_crashes_or_hangs_is_one_line(monkeypatch, tmp_path, code, words):
    (tmp_path / "torch.py").write_text(code + "\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    if "wait" in code:
        monkeypatch.setattr(doctor_probes, "TORCH_TIMEOUT_S", 0.5)
    (finding,) = doctor_probes.probe_torch(HERE)
    assert finding.what == "torch"
    told(finding, BROKEN, words, 'pip install --force-reinstall "torch>=2.11,<2.14"')


def test_what_torch_told_before_it_crashed_is_kept(monkeypatch):
    before = json.dumps(Finding("torch", GOOD, "2.13.0")) + "\n"
    result = subprocess.CompletedProcess([], -4, before, "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: result)
    first, second = doctor_probes.probe_torch(HERE)
    assert first.state == GOOD and second.what == "torch, after torch"
    told(second, BROKEN, "exit status -4")


@pytest.mark.parametrize("version", ["2.10.0", "2.14.0"])
def test_torchs_version(monkeypatch, version):
    monkeypatch.setattr(doctor_torch.torch, "__version__", version)
    told(doctor_torch.probe_version(), BROKEN, version, "2.11 to 2.13", '"torch>=2.11,<2.14"')


def test_a_torch_that_computes_nonsense(monkeypatch):
    told(doctor_torch.probe_arithmetic(), GOOD)
    monkeypatch.setattr(doctor_torch.torch.Tensor, "trace", lambda self: 0.5 * self.diagonal().sum())
    told(doctor_torch.probe_arithmetic(), BROKEN, "14.5 where 29 is right")


def fake_seconds(monkeypatch, *taken):
    answers = iter(taken)
    monkeypatch.setattr(doctor_torch, "seconds", lambda work, turns=0: (work(), next(answers))[1])


def test_threads_that_wait_for_each_other(monkeypatch):
    monkeypatch.setattr(doctor_torch.torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(doctor_torch.torch, "set_num_threads", lambda n: None)
    fake_seconds(monkeypatch, 3.0, 1.0)
    told(doctor_torch.probe_threads(), WARNING, "3.0 times as long", "OMP_NUM_THREADS")
    fake_seconds(monkeypatch, 0.6, 1.0)
    told(doctor_torch.probe_threads(), GOOD, "2; a small product takes 0.60 times")
    monkeypatch.setattr(doctor_torch.torch, "get_num_threads", lambda: 1)
    told(doctor_torch.probe_threads(), GOOD, "1")


def test_a_time_is_a_median_of_turns_that_count():
    calls = []
    assert doctor_torch.seconds(lambda: calls.append(1), turns=3) >= 0 and len(calls) == 4


def test_a_gpu_that_torch_sees_and_one_that_it_does_not(monkeypatch):
    torch = doctor_torch.torch
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    told(doctor_torch.probe_gpu(), GOOD, "none")
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/" + name)
    told(doctor_torch.probe_gpu(), WARNING, "torch sees none", "CUDA build")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12_000_000_000)
    told(doctor_torch.probe_gpu(), GOOD, "MPS", "12.0 GB")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (6_000_000_000, 8_000_000_000))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A Card")
    told(doctor_torch.probe_gpu(), GOOD, "A Card, 6.0 of 8.0 GB free")


def test_slow_16_bit_numbers_are_named(monkeypatch):
    fake_seconds(monkeypatch, 1.0, 0.5, 12.0)
    told(doctor_torch.probe_half(), GOOD, "bfloat16 takes 0.5 times", "float16 is slow on this", "use float32")
    fake_seconds(monkeypatch, 1.0, 0.5, 0.5)
    assert "slow" not in doctor_torch.probe_half().found


def test_a_tokenizer_that_loses_text_or_asks_for_the_network(monkeypatch):
    from l1_ref import tokenizer

    hooks = []
    monkeypatch.setattr(sys, "addaudithook", hooks.append)  # a real one could never be taken away again
    told(doctor_torch.probe_tokenizer(), GOOD, "without a network")
    (hook,) = hooks
    hook("open", ())
    with pytest.raises(PermissionError, match="asked for the network"):
        hook("socket.connect", ())
    monkeypatch.setattr(tokenizer.BPETokenizer, "decode", lambda self, ids: "")
    told(doctor_torch.probe_tokenizer(), BROKEN, "does not come back", "tiktoken")


def test_a_probe_of_torch_that_fails_is_a_line(monkeypatch, capsys):
    def fail():
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(doctor_torch, "PROBES", (("GPU", fail), ("tokenizer", fail)))
    doctor_torch.main()
    gpu, tokenizer = (Finding(*json.loads(line)) for line in capsys.readouterr().out.splitlines())
    told(gpu, WARNING, "RuntimeError: no kernel image")
    told(tokenizer, BROKEN, "RuntimeError: no kernel image")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["/gone/python", "-m", "ipykernel_launcher"], "/gone/python"),
        ([sys.executable, "-c", "raise SystemExit('No module named ipykernel')"], "No module named ipykernel"),
    ],
)
def test_a_kernel_that_does_not_start(monkeypatch, tmp_path, command, words):
    spec = {"argv": [*command, "-f", "{connection_file}"], "display_name": "Python 3", "language": "python"}
    folder = tmp_path / "kernels" / "python3"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    told(
        doctor_probes.probe_kernel(HERE), BROKEN, "python3 does not work", words, "-m ipykernel install --name python3"
    )


@pytest.mark.parametrize(
    ("prefix", "package", "state", "words"),
    [
        ("/elsewhere", str(ROOT / "l1_ref/__init__.py"), BROKEN, "another environment, /elsewhere"),
        (sys.prefix, "/copy/l1_ref/__init__.py", WARNING, "another l1_ref"),
        (sys.prefix, str(ROOT / "l1_ref/__init__.py"), GOOD, "in this environment"),
    ],
)
def test_a_kernel_of_another_environment(monkeypatch, prefix, package, state, words):
    import nbclient

    def execute(self, **_):
        self.nb.cells[0].outputs = [{"text": json.dumps([prefix, package])}]

    monkeypatch.setattr(nbclient.NotebookClient, "execute", execute)
    told(doctor_probes.probe_kernel(HERE), state, words)


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("tales-train.txt", lambda path: path.write_bytes(path.read_bytes() + b"x"), "is not the course's"),
        ("tokenizer.json", Path.unlink, "tokenizer.json is missing"),
        ("tiny/config.json", lambda path: path.write_text("{"), "tiny/config.json is missing or cut short"),
        ("tiny/model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-1]), "is missing or cut short"),
        ("tiny/model.safetensors", lambda path: path.write_bytes(b"<html>"), "is missing or cut short"),
        ("tiny/metrics.json", Path.unlink, "tiny/metrics.json is missing"),
    ],
)
def test_damaged_data(monkeypatch, tmp_path, name, damage, words):
    shutil.copytree(doctor_probes.DATA_DIR, tmp_path / "data")
    monkeypatch.setattr(doctor_probes, "DATA_DIR", tmp_path / "data")
    told(doctor_probes.probe_data(HERE), GOOD)
    damage(tmp_path / "data" / name)
    told(doctor_probes.probe_data(HERE), BROKEN, words, "git checkout")


def test_a_full_disk(monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=300_000_000))
    told(doctor_probes.probe_disk(tmp_path / "a" / "b"), BROKEN, f"0.3 GB free at {tmp_path}", "l1 learn FOLDER")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=2_000_000_000))
    told(doctor_probes.probe_disk(tmp_path / "a"), GOOD, "2.0 GB")


def test_a_workspace_that_cannot_be_written(monkeypatch, tmp_path):
    told(doctor_probes.probe_workspace(tmp_path / "new"), GOOD, "can be made")
    told(doctor_probes.probe_workspace(tmp_path), GOOD, "can be written")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    told(doctor_probes.probe_workspace(tmp_path / "file"), BROKEN, "is a file")

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor_probes.tempfile, "TemporaryFile", refuse)
    told(doctor_probes.probe_workspace(tmp_path), BROKEN, "Permission denied", "l1 learn FOLDER")


def test_little_memory(monkeypatch):
    assert doctor_probes.memory_bytes() > 10**8
    monkeypatch.setattr(doctor_probes, "memory_bytes", lambda: 2_000_000_000)
    told(doctor_probes.probe_memory(HERE), WARNING, "2.0 GB", "shut down the kernels")
    monkeypatch.setattr(doctor_probes, "memory_bytes", lambda: None)
    told(doctor_probes.probe_memory(HERE), GOOD, "does not tell")


def test_no_browser(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(webbrowser, "get", lambda: None)
    told(doctor_probes.probe_browser(HERE), GOOD)

    def none():
        raise webbrowser.Error

    monkeypatch.setattr(webbrowser, "get", none)
    told(doctor_probes.probe_browser(HERE), WARNING, "open the address")
    monkeypatch.setenv("CI", "true")
    assert not doctor_probes.has_browser()


# The report.


def test_a_probe_that_fails_is_a_line_and_the_others_go_on():
    def fail(_):
        raise KeyError("odd")

    def breaks_off(_):
        yield Finding("first", GOOD, "well")
        raise ValueError("half-way")

    found = list(doctor.examine(HERE, [("x", fail), ("disk", fail), ("y", breaks_off)]))
    assert [(each.what, each.state) for each in found] == [
        ("x", BROKEN), ("disk", WARNING), ("first", GOOD), ("y", BROKEN)
    ]  # fmt: skip
    told(found[0], BROKEN, "KeyError: 'odd'", "README")


@pytest.fixture
def patient(monkeypatch):
    """Return a function that makes the doctor find these states, and nothing else."""

    def be(*states):
        findings = [Finding(f"part {n}", state, "[x]", "y" * (state != GOOD)) for n, state in enumerate(states)]
        monkeypatch.setattr(doctor, "examine", lambda folder: findings)

    return be


def run_command(*arguments) -> int:
    with pytest.raises(SystemExit) as stop:
        commands.doctor(*arguments)
    return stop.value.code


def test_the_lines_and_the_exit_status(patient, capsys):
    patient(GOOD, WARNING)
    assert run_command(HERE) == 0
    assert capsys.readouterr().out.splitlines() == [
        "✓ part 0          [x]",
        "! part 1          [x]",
        "                  to mend it: y",
        "the course works here; 1 to know about",
    ]
    patient(GOOD, BROKEN, WARNING)
    assert run_command(HERE) == 1
    assert "1 broken: mend this first" in capsys.readouterr().out
    patient(GOOD)
    assert run_command(HERE, True) == 0
    finding = {"what": "part 0", "state": "good", "found": "[x]", "mend": ""}
    assert json.loads(capsys.readouterr().out) == {"works": True, "findings": [finding]}


def test_the_last_line_is_what_matters():
    assert last_line(ValueError("one\n\x1b[31mtwo\x1b[0m\n")) == "two" and last_line("") == ""
