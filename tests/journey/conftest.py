"""The journey's options, and its browser, where there is one."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add two options; pytest knows them where this folder is named on the command line, as `make journey` does."""
    group = parser.getgroup("the learner's journey")
    group.addoption("--screenshots", type=Path, metavar="FOLDER", help="keep screenshots of the journey in FOLDER")
    group.addoption("--need-browser", action="store_true", help="without a browser fail, in place of a skip")


@pytest.fixture
def browser(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Yield a headless Chromium; without one the test is reported as not run, and fails with --need-browser."""
    absent = pytest.fail if request.config.getoption("--need-browser", default=False) else pytest.skip
    with ExitStack() as stack:
        try:
            from tests.journey.browser import chromium

            started = stack.enter_context(chromium())
        except ModuleNotFoundError as error:
            absent(f"the journey was not run: {error.name} is not installed; make journey installs it and runs")
        except LookupError as error:
            absent(f"the journey was not run: {error}")
        yield started


@pytest.fixture
def keep(request: pytest.FixtureRequest) -> Callable[[Any, str], None]:
    """Return what keeps a screenshot under a name, where --screenshots names a folder."""
    folder = request.config.getoption("--screenshots", default=None)

    def kept(page: Any, name: str) -> None:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=folder / f"{name}.png")

    return kept
