"""Every notebook's first screen, and every output of the complete editions, as JupyterLab shows them.

    python -m tests.journey.screenshots FOLDER [NOTEBOOK ...] [--first]

For each notebook FOLDER gets NAME/: `light.png`, `dark.png` and `narrow.png`, its first screen; `stored-CELL.png`, a
committed picture in a notebook that nobody has run yet; and after all was run light-CELL.png of each output, and
dark- and narrow-CELL.png of each picture. What a reader would stumble over (a picture without words, an output that is
cut) is printed. Look at the pictures: no program sees that a label is unreadable.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tests.journey.browser import DARK, LIGHT, NotebookPage, chromium
from tests.journey.lab import ROOT, Course

SIZE, NARROW = {"width": 1280, "height": 900}, {"width": 700, "height": 900}

_OUTPUTS = """
const shown = codes.filter(cell => cell.outputArea.layout.widgets.length);
const drawn = shown.filter(cell => cell.outputArea.node.querySelector('img, svg, .jupyter-widgets'));
return [shown, drawn].map(some => some.map(cell => cell.model.id));
"""


def main(arguments: list[str] | None = None) -> int:
    """Make the screenshots; return 1 where something is amiss."""
    names = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    parser = argparse.ArgumentParser(prog="python -m tests.journey.screenshots", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("names", nargs="*", metavar="NOTEBOOK", help="such as 06_training; all where none is named")
    parser.add_argument("--first", action="store_true", help="the first screens alone; no cell is run")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.names) - set(names):
        parser.error(f"NOTEBOOK must be one of {', '.join(names)}, got {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as place, chromium() as browser:
        flaws = _all(Path(place), browser, chosen.names or names, chosen.folder, chosen.first)
    print("\n".join(flaws) or "no picture without words, no output that is cut")
    return bool(flaws)


def _all(place: Path, browser: Any, names: list[str], folder: Path, first: bool) -> list[str]:
    course, workspace = Course(place), place / "workspace"
    course.l1("learn", workspace, "--no-lab")
    for name in names:
        shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", workspace)
    flaws = []
    with course.lab(workspace) as address:
        for name in tqdm(names, unit="notebook"):
            page = browser.new_page(viewport=SIZE)
            here = folder / name
            here.mkdir(parents=True, exist_ok=True)
            flaws += [f"{name}, {flaw}" for flaw in _one(page, _address_of(name, address), here, first)]
            page.close()
    return flaws


def _address_of(name: str, address: str) -> str:
    before, after = address.split("/lab/tree/")
    return f"{before}/lab/tree/{name}.ipynb?{after.split('?')[1]}"


def _one(page: Any, address: str, folder: Path, first: bool) -> list[str]:
    notebook = NotebookPage(page, address)
    shown, drawn = notebook.ask(_OUTPUTS)
    top = notebook.ask("return cells[0].model.id")
    if not first:
        _outputs(notebook, drawn, folder, "stored")
        notebook.menu("Run", "Run All Cells")
        notebook.wait_for_all()
    flaws = []
    for look, theme, size in (("light", LIGHT, SIZE), ("dark", DARK, SIZE), ("narrow", LIGHT, NARROW)):
        notebook.theme(theme)
        notebook.resize(size, sidebar=size is SIZE)
        flaws += [f"{look}: {flaw}" for flaw in notebook.flaws()]
        if not first:
            _outputs(notebook, shown if look == "light" else drawn, folder, look)
        notebook.node(top)
        page.screenshot(path=folder / f"{look}.png")
    notebook.ask("return panel.sessionContext.shutdown()")
    return flaws


def _outputs(notebook: NotebookPage, names: list[str], folder: Path, look: str) -> None:
    for name in names:
        area = notebook.node(name).query_selector(".jp-Cell-outputWrapper")
        area.screenshot(path=folder / f"{look}-{name}.png")


if __name__ == "__main__":
    sys.exit(main())
