"""What every test shares: the same chance on every run, one thread, and real text where a test asks for it."""

import os
import random
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# A folder `shared` beside the checkout may hold what would otherwise be downloaded.
SHARED = ROOT.parent / "shared"

# One thread, in other processes too: the models of the tests are so small that a second one costs more than it gives,
# and a run is the same to the last bit only on the same number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before any import that reads them. l1_ref itself is imported only inside tests: jaxtyping's hook comes first.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "agg")
if (SHARED / "tiktoken-cache").is_dir():
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken-cache"))

import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

settings.register_profile(
    "l1", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("l1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start each test from the same random state, so that its order and its neighbours do not matter."""
    torch.manual_seed(0)
    random.seed(0)


@pytest.fixture(scope="session")
def tiny_shakespeare(tmp_path_factory) -> Path:
    """Return the path of Tiny Shakespeare: the shared copy, or a download with its checksum verified."""
    shared = SHARED / "corpora" / "tinyshakespeare.txt"
    if shared.is_file():
        return shared
    from l1_ref.data import download

    return download("tinyshakespeare", tmp_path_factory.mktemp("corpora"))


@pytest.fixture
def l1(monkeypatch, capsys):
    """Return a function that runs `l1` and gives its exit status, output and errors."""
    from l1_ref import cli

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["l1", *map(str, arguments)])
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
