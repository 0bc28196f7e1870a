"""JupyterLab in a headless Chromium: what a person does there, and what that person sees.

Keys and clicks are real ones. What stands in the cells is read from JupyterLab's own model, since
the page holds only the cells in view.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

PANEL = "const panel = window.jupyterapp.shell.currentWidget;"
SCROLLER = ".jp-WindowedPanel-outer"
BROKEN = ("Error displaying widget", "model not found", "Loading widget", "Javascript Error")

# The time from the first key or click to the first picture that is decoded and ready to be painted.
PROBE = """
window.probe = {began: null, ended: null};
const probe = window.probe, start = () => { probe.began ??= performance.now(); };
for (const kind of ['keydown', 'mousedown']) document.addEventListener(kind, start, true);
const watch = new MutationObserver(changes => {
  for (const image of document.querySelectorAll('.jp-OutputArea-output img'))
    if (changes.some(c => c.target === image || c.target.contains(image)) && probe.began)
      image.decode().then(() => {
        probe.ended ??= performance.now();
        watch.disconnect();
      });
});
watch.observe(document.body, {subtree: true, childList: true, attributeFilter: ['src']});
"""


class Lab:
    """One tab of JupyterLab.

    Args:
        address: of the server, without a path.
        start: the page that `make lab` opens, with its token.
        pictures: the folder of the screenshots.

    ``started`` are the seconds from `make lab` to an idle kernel of the notebook that it opens.
    """

    started: float

    def __init__(self, driver: Chrome, address: str, start: str, pictures: Path) -> None:
        self.driver, self.address, self.start, self.pictures = driver, address, start, pictures

    def until(self, true: Callable[[], Any], what: str, seconds: float = 60) -> Any:
        """Wait for ``true()``; ``what`` is named where it does not come about."""
        end, last = time.monotonic() + seconds, None
        while time.monotonic() < end:
            try:
                if found := true():
                    return found
            except Exception as error:  # the page is being built
                last = error
            time.sleep(0.2)
        self.shot("failed")
        raise AssertionError(f"after {seconds:.0f} s: no {what} ({last})")

    def js(self, code: str, *values: Any) -> Any:
        """Run JavaScript in which ``panel`` is the open notebook."""
        return self.driver.execute_script(PANEL + code, *values)

    def all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def decline_news(self) -> None:
        """Answer JupyterLab's question of the first visit, which would cover part of the page."""
        question = "//*[contains(@class, 'Toastify')]//button[text()='No']"
        self.until(lambda: self.driver.find_elements(By.XPATH, question)[0], "question").click()

    # Notebooks

    def open(self, path: str = "") -> None:
        """Open a notebook by its path from the project; without one, what `make lab` opens.

        ``reset`` forgets the tabs of before: one that JupyterLab shows again would seem ready, and
        be put in front once more later.
        """
        self.driver.get(f"{self.address}/lab/tree/{path}?reset" if path else f"{self.start}&reset")
        self.ready()

    def ready(self) -> None:
        """Wait until the notebook in front is loaded and its kernel idle."""
        self.until(lambda: self.js("return !!panel.content.model"), "notebook")
        code = "return panel.context.isReady && panel.sessionContext.kernelDisplayStatus === 'idle'"
        self.until(lambda: self.js(code), "idle kernel")
        self.js("return panel.context.ready")

    def reload(self) -> None:
        """Load the page anew; the kernel goes on."""
        self.driver.refresh()
        self.ready()

    def shut_down(self) -> None:
        """End the kernel."""
        self.js("return panel.sessionContext.shutdown()")

    def notebook(self) -> dict[str, Any]:
        """The notebook as it would be saved now."""
        return json.loads(self.js("return JSON.stringify(panel.content.model.toJSON())"))

    def code_cells(self) -> list[dict[str, Any]]:
        return [cell for cell in self.notebook()["cells"] if cell["cell_type"] == "code"]

    def modified(self) -> bool:
        return self.js("return panel.content.model.dirty")

    def save(self) -> None:
        """Ctrl+S, and wait until it is done."""
        self.js(
            "window.saved = false; panel.context.saveState.connect("
            "(_, state) => { window.saved = state.startsWith('completed'); })"
        )
        self.keys(Keys.CONTROL, "s")
        self.until(lambda: self.js("return window.saved"), "saved file")

    def run_all(self, seconds: float) -> None:
        """Run > Run All Cells, and wait until nothing runs any more."""
        self.menu("Run", "Run All Cells")
        self.done(seconds)

    def done(self, seconds: float) -> None:
        """Wait until no cell runs any more."""
        code = """return panel.sessionContext.session.kernel.status === 'idle'
          && !panel.content.widgets.some(cell => cell.prompt === '*')"""
        time.sleep(1)
        self.until(lambda: self.js(code), "end of Run All Cells", seconds)
        time.sleep(0.5)
        self.until(lambda: self.js(code), "end of Run All Cells", seconds)

    # Keys, clicks, pictures

    def menu(self, name: str, command: str) -> None:
        """Click an entry of the menu bar."""

        def click(css: str, text: str) -> None:
            def labelled() -> WebElement | None:
                found = [label for label in self.all(css) if label.text.strip() == text]
                return found[0] if found else None

            self.until(labelled, f"menu entry '{text}'").click()

        click(".lm-MenuBar-itemLabel", name)
        click(".lm-Menu-itemLabel", command)

    def keys(self, *keys: str, times: int = 1) -> None:
        """Press a key ``times`` times, with the others held down."""
        *held, key = keys
        chain = ActionChains(self.driver)
        for each in held:
            chain.key_down(each)
        for _ in range(times):
            chain.send_keys(key)
        for each in held:
            chain.key_up(each)
        chain.perform()

    def show(self, cell: int) -> WebElement:
        """Scroll to a cell, counted from 0."""
        self.js("return panel.content.scrollToItem(arguments[0], 'start')", cell)
        css = f".jp-Cell[data-windowed-list-index='{cell}']"
        return self.until(lambda: self.all(css)[0], f"cell {cell}")

    def type_line(self, cell: int, begins: str, line: str) -> None:
        """Replace the line of a cell that begins with ``begins``."""
        element = self.show(cell)

        def found() -> WebElement | None:
            lines = element.find_elements(By.CSS_SELECTOR, ".cm-line")
            return next((each for each in lines if each.text.startswith(begins)), None)

        self.until(found, f"line '{begins}'").click()
        self.keys(Keys.HOME)
        self.keys(Keys.SHIFT, Keys.END)
        ActionChains(self.driver).send_keys(line).send_keys(Keys.ESCAPE).perform()

    def shot(self, name: str) -> None:
        self.driver.save_screenshot(str(self.pictures / f"{name}.png"))

    def pages(self, name: str) -> Iterator[str]:
        """Page through the notebook: a screenshot of each page, and the text that stands on it."""
        top, number = 0, 1
        while True:
            self.js(f"document.querySelector('{SCROLLER}').scrollTop = arguments[0]", top)
            time.sleep(0.7)
            self.shot(f"{name}_{number:02d}")
            yield self.js(f"return document.querySelector('{SCROLLER}').innerText")
            height, whole = self.js(
                f"const e = document.querySelector('{SCROLLER}');"
                "return [e.clientHeight, e.scrollHeight]"
            )
            top, number = top + round(0.9 * height), number + 1
            if top + 0.1 * height >= whole:
                return

    def latency(self, element: WebElement, *keys: str) -> float:
        """Seconds from a key on ``element``, or a click on it, to the new picture."""
        if keys:
            self.driver.execute_script("arguments[0].focus()", element)
        self.driver.execute_script(PROBE)
        self.keys(*keys) if keys else element.click()
        ended = "return window.probe.ended && window.probe.ended - window.probe.began"
        return self.until(lambda: self.driver.execute_script(ended), "new picture") / 1000
