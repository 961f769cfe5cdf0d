"""The learner's journey in a real JupyterLab: wrong, hint, right, progress, restart, update; once without a mouse."""

import json
import sys

import pytest

from tests.journey.lab import Course

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the journey ends JupyterLab by Ctrl-C and y")

SIZE = {"width": 1280, "height": 900}
NARROW = {"width": 700, "height": 900}
STUB = 'raise NotImplementedError("not written yet")'
HEAD = "def softmax(x, dim):\n"
WRONG = f"{HEAD}    return torch.sigmoid(x)"
LINES = ("weights = torch.exp(x - x.amax(dim, keepdim=True))", "return weights / weights.sum(dim, keepdim=True)")
RIGHT = HEAD + "\n".join(f"    {line}" for line in LINES)
MINE = 'checks.hint("softmax")'


@pytest.fixture
def course(tmp_path) -> Course:
    return Course(tmp_path)


def states(workspace) -> dict[str, str]:
    entries = json.loads((workspace / "progress.json").read_text(encoding="utf-8"))["exercises"]
    return {name: entry["state"] for name, entry in entries.items()}


def saved(workspace) -> dict[str, str]:
    cells = json.loads((workspace / "00_start_here.ipynb").read_text(encoding="utf-8"))["cells"]
    return {cell["id"]: "".join(cell["source"]) for cell in cells}


def test_wrong_hint_right_progress_restart_and_update(course, tmp_path, browser, keep):
    from tests.journey.browser import DARK, LIGHT, NotebookPage

    workspace = tmp_path / "workspace"
    assert "next: 00_start_here.ipynb" in course.l1("learn", workspace, "--no-lab")
    with course.lab(workspace) as address:
        page = browser.new_page(viewport=SIZE)
        notebook = NotebookPage(page, address)
        last = notebook.ask("return codes.at(-1).model.id")
        keep(page, "1-opened")

        notebook.menu("Run", "Run All Cells")
        notebook.wait_for_all()
        assert "softmax · not written yet" in notebook.output("softmax-check")
        assert notebook.flaws() == []
        keep(page, "2-not-written")

        notebook.write("softmax", WRONG)
        notebook.run("softmax")
        assert "looks like: it is a sigmoid" in notebook.click_and_run("softmax-check")
        keep(page, "3-wrong")

        notebook.page.keyboard.press("Escape")
        notebook.node("softmax-check").query_selector(".jp-InputPrompt").click()
        notebook.page.keyboard.press("b")  # a cell of the reader's own, below
        own = notebook.active()
        notebook.write(own, MINE)
        assert "hint 1 of 3 · softmax" in notebook.run(own)
        keep(page, "4-hint")

        notebook.write("softmax", RIGHT)
        notebook.run("softmax")
        assert "✓ softmax · right on" in notebook.click_and_run("softmax-check")
        keep(page, "5-right")
        assert "softmax" in notebook.click_and_run(last)
        keep(page, "6-progress")
        assert states(workspace)["softmax"] == "solved"

        notebook.theme(DARK)
        for name in ("softmax", last):
            notebook.node(name)
            keep(page, f"7-dark-{'progress' if name == last else name}")
        notebook.theme(LIGHT)
        notebook.resize(NARROW, sidebar=False)
        assert notebook.flaws() == []
        keep(page, "8-narrow")
        notebook.resize(SIZE, sidebar=True)

        notebook.menu("Kernel", "Restart Kernel and Run All Cells…")
        page.locator(".jp-Dialog-button.jp-mod-accept").click()
        notebook.wait_for_all()
        assert notebook.source("softmax") == RIGHT
        assert "✓ softmax · right on" in notebook.output("softmax-check")
        notebook.save()
        page.close()
    assert saved(workspace)[own] == MINE

    source = course.checkout / "notebooks" / "src" / "00_start_here.py"
    text = source.read_text(encoding="utf-8")
    source.write_text(text.replace("# # Start here\n", "# # Start here, again\n"), encoding="utf-8")
    assert f"l1 update {workspace}" in course.l1("learn", workspace, "--no-lab")
    report = course.l1("update", workspace)
    assert "00_start_here: carried 1 exercise, 1 of your own cells" in report
    assert "everything as it was before:" in report
    with course.lab(workspace) as address:
        page = browser.new_page(viewport=SIZE)
        notebook = NotebookPage(page, address)
        assert page.get_by_role("heading", name="Start here, again").is_visible()
        keep(page, "9-updated")
        assert notebook.source("softmax") == RIGHT
        assert MINE in notebook.ask("return cells.map(cell => cell.model.sharedModel.getSource())")
        notebook.menu("Run", "Run All Cells")
        notebook.wait_for_all()
        assert "✓ softmax · right on" in notebook.output("softmax-check")
        keep(page, "10-updated-and-run")
        page.close()


def test_an_exercise_is_solved_by_the_keyboard_alone(course, tmp_path, browser, keep):
    from tests.journey.browser import NotebookPage

    workspace = tmp_path / "workspace"
    course.l1("learn", workspace, "--no-lab")
    with course.lab(workspace) as address:
        page = browser.new_page(viewport=SIZE)
        notebook, press = NotebookPage(page, address), page.keyboard.press
        order = notebook.ask("return cells.map(cell => cell.model.id)")
        first = notebook.ask("return codes[0].model.id")

        assert notebook.active() == order[0]
        for _ in order[: order.index(first)]:
            press("j")
        notebook.run(first)  # Shift+Enter, which goes on to the next cell
        for _ in order[order.index(first) + 1 : order.index("softmax")]:
            press("j")
        assert notebook.active() == "softmax"
        keep(page, "keyboard-1-at-the-exercise")

        press("Enter")
        press("ControlOrMeta+End")
        press("Shift+Home")
        for i, line in enumerate(LINES):
            if i:
                press("Enter")  # the editor keeps the indent
            page.keyboard.type(line)
        written = notebook.source("softmax")
        assert STUB not in written and written.endswith("\n".join(f"    {line}" for line in LINES))
        notebook.run("softmax")
        assert notebook.active() == "softmax-check"
        assert "✓ softmax · right on" in notebook.run("softmax-check")
        keep(page, "keyboard-2-solved")

        press("Escape")
        press("k")
        press("k")
        assert notebook.active() == "softmax"
        notebook.save()
        page.close()
    assert saved(workspace)["softmax"] == written
    assert states(workspace)["softmax"] == "solved"
