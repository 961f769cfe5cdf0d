"""A notebook in a browser: found by the names of its cells, worked with mouse and keyboard as a reader does."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import ElementHandle, Page, sync_playwright

from tests.journey.lab import PATIENCE

HOW_TO_GET_ONE = (
    "get one by `playwright install chromium` in the course's environment, or on Debian and Ubuntu by "
    "`apt install chromium`; then: make journey"
)
DARK, LIGHT = "JupyterLab Dark", "JupyterLab Light"
_CELLS = """
const panel = jupyterapp.shell.currentWidget;
const content = panel?.content;
const cells = content?.widgets ?? [];
const find = name => cells.find(cell => cell.model.id === name);
const kernel = panel?.sessionContext?.session?.kernel;
const codes = cells.filter(cell => cell.model.type === 'code');
"""
# What a page must not do: show a picture without words for it, or hide a part of code or of an output at the right.
_FLAWS = """
const flaws = [];
for (const cell of cells) {
  const say = (what, node) => flaws.push(`${cell.model.id}: ${what}: ${node.textContent.trim().slice(0, 60)}`);
  for (const image of cell.node.querySelectorAll('.jp-RenderedHTMLCommon img, .jp-RenderedImage img'))
    if (!image.alt.trim()) say('a picture without alt text', cell.node);
  for (const drawing of cell.node.querySelectorAll('.jp-RenderedHTMLCommon svg'))
    if (!(drawing.getAttribute('aria-label') || drawing.closest('[aria-hidden=true], mjx-container')))
      say('a drawing without a label', cell.node);
  const places = '.jp-OutputArea-output, .jp-MarkdownOutput, .jp-RenderedHTMLCommon, .jp-InputArea .cm-scroller';
  for (const node of cell.node.querySelectorAll(places))
  {
    const [wide, place] = [node.scrollWidth, node.clientWidth];
    if (wide > place + 1) say(`${wide} px in ${place} px`, node);
  }
}
return flaws;
"""


@contextmanager
def chromium() -> Iterator[Any]:
    """Yield a headless Chromium, Playwright's own or the machine's; `LookupError` says how to get one."""
    with sync_playwright() as playwright:
        names = ("chromium", "chromium-browser", "google-chrome", "chrome")
        own = playwright.chromium.executable_path
        path = own if Path(own).is_file() else next(filter(None, map(shutil.which, names)), None)
        if path is None:
            raise LookupError(f"no Chromium is here; {HOW_TO_GET_ONE}")
        browser = playwright.chromium.launch(executable_path=path)
        try:
            yield browser
        finally:
            browser.close()


class NotebookPage:
    """One notebook, open in JupyterLab.

    Args:
        page: Of the browser.
        address: Of the notebook, with the token.
        kernel: Whether to wait for its kernel.
    """

    def __init__(self, page: Page, address: str, kernel: bool = True) -> None:
        self.page = page
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(address)
        page.wait_for_function("window.jupyterapp !== undefined")
        self.wait(f"panel?.context?.isReady && content && {'kernel?.status' if kernel else repr('idle')} === 'idle'")

    def ask(self, script: str, argument: Any = None) -> Any:
        """Return what a script of the page returns; it may use `panel`, `cells`, `find(name)`, `kernel`, `argument`."""
        return self.page.evaluate(f"argument => {{ {_CELLS} {script} }}", argument)

    def wait(self, condition: str, argument: Any = None, patience: float = PATIENCE) -> None:
        """Wait until a condition of the page holds; it may use what `ask` may use."""
        script = f"argument => {{ {_CELLS} return {condition}; }}"
        self.page.wait_for_function(script, arg=argument, timeout=1000 * patience)

    def node(self, name: str) -> ElementHandle:
        """Return a cell on the page, scrolled into view."""
        # JupyterLab attaches the cells of a fresh page one after another, and some of them twice.
        self.wait("find(argument)?.node.isConnected && cells.every(cell => cell.isAttached)", name)
        scrolled = "const node = find(argument).node; node.scrollIntoViewIfNeeded(); return node;"
        return self.page.evaluate_handle(f"argument => {{ {_CELLS} {scrolled} }}", name).as_element()

    def source(self, name: str) -> str:
        """Return what a cell holds."""
        return self.ask("return find(argument).model.sharedModel.getSource()", name)

    def output(self, name: str) -> str:
        """Return what a reader meets below a cell: the text, then the words of its pictures."""
        area = self.node(name).query_selector(".jp-Cell-outputWrapper")
        drawn = "(node => node?.innerText.trim() || node?.querySelector('img, [aria-label]'))"
        place = "find(argument[0]).node.querySelector('.jp-Cell-outputWrapper')"
        # What a kernel has sent is drawn a moment later.
        self.wait(f"!find(argument[0]).model.outputs?.length || {drawn}({place})", [name])
        words = "nodes => nodes.map(node => node.alt ?? node.ariaLabel).join('\\n')"
        return f"{area.inner_text()}\n{area.eval_on_selector_all('img, [aria-label]', words)}" if area else ""

    def active(self) -> str:
        """Return the name of the cell that JupyterLab marks as the current one."""
        return self.ask("return content.activeCell.model.id")

    def menu(self, *labels: str) -> None:
        """Click through a menu, such as "Run", "Run All Cells"."""
        first, *rest = labels
        self.page.locator(".lm-MenuBar-itemLabel").get_by_text(first, exact=True).click()
        for label in rest:
            self.page.locator(".lm-Menu-itemLabel").get_by_text(label, exact=True).click()

    def wait_for_all(self) -> None:
        """Wait until every cell has run, in its order, since the kernel started."""
        counted = "cell.model.executionCount === i + 1 && cell.model.executionState === 'idle'"
        written = "codes.filter(cell => cell.model.sharedModel.getSource().trim())"
        condition = f"kernel?.status === 'idle' && {written}.every((cell, i) => {counted})"
        self.wait(condition, patience=5 * PATIENCE)

    def write(self, name: str, text: str) -> None:
        """Put a text in the place of all that a cell holds, by mouse and clipboard."""
        self.node(name).query_selector(".cm-content").click()
        self.page.keyboard.press("ControlOrMeta+A")
        self.page.keyboard.insert_text(text)
        assert self.source(name) == text

    def run(self, name: str) -> str:
        """Run the current cell, which is this one, with Shift+Enter; return its output."""
        assert self.active() == name, f"the current cell is {self.active()!r}, not {name!r}"
        before = self.ask("return Math.max(0, ...codes.map(cell => cell.model.executionCount ?? 0))")
        self.page.keyboard.press("Shift+Enter")
        ran = (
            "find(argument[0]).model.executionCount > argument[1] && find(argument[0]).model.executionState === 'idle'"
        )
        self.wait(f"{ran} && kernel.status === 'idle'", [name, before])
        return self.output(name)

    def click_and_run(self, name: str) -> str:
        """Click left of a cell and run it; return its output."""
        self.node(name).query_selector(".jp-InputPrompt").click()
        return self.run(name)

    def save(self) -> None:
        """Save with Ctrl-S and wait until it is done."""
        self.page.keyboard.press("ControlOrMeta+S")
        self.wait("!panel.context.model.dirty")

    def theme(self, name: str) -> None:
        """Change to a theme by its name, DARK or LIGHT."""
        self.menu("Settings", "Theme", name)
        self.page.wait_for_function("name => document.body.dataset.jpThemeName === name", arg=name)

    def resize(self, size: dict[str, int], sidebar: bool) -> None:
        """Give the window another size, and fold the list of files away or open it with Ctrl-B.

        Args:
            size: Its "width" and "height" in pixels.
            sidebar: Whether the list is to be seen.
        """
        self.page.set_viewport_size(size)
        if self.page.evaluate("jupyterapp.shell.leftCollapsed") is sidebar:
            self.page.keyboard.press("ControlOrMeta+B")
        self.page.wait_for_function("open => jupyterapp.shell.leftCollapsed !== open", arg=sidebar)

    def flaws(self) -> list[str]:
        """Return what a reader would stumble over: pictures without words, outputs wider than their place."""
        return self.ask(_FLAWS)
