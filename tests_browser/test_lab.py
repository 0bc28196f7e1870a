"""A visit: the index, the quickstart run, changed, misspelt, explored, saved and opened again.

The tests are in the order of a visit, and later ones find what earlier ones left. Screenshots lie
in tests_browser/artifacts/.
"""

import json
import re
import statistics
import time
from pathlib import Path

import pytest
from selenium.webdriver import Keys

from tests_browser.conftest import git
from tests_browser.lab import BROKEN, Lab

QUICKSTART = "notebooks/00_quickstart.ipynb"
SETUP, DISTILL, EXPLORER = "parameters.pick(", " distill(gaussians", "explore.Explorer("
RUN = 300  # seconds that a smoke run may take on a busy machine
SLIDERS = ["image", "largest Gaussians", "pixels"]
KEYS_EACH = 10  # timed presses per slider


def find(lab: Lab, text: str) -> int:
    """The number of the code cell whose source has ``text``, among all cells."""
    cells = lab.notebook()["cells"]
    kinds = (cell["cell_type"] == "code" and text in "".join(cell["source"]) for cell in cells)
    return list(kinds).index(True)


def outputs(lab: Lab, text: str, kind: str) -> list[dict]:
    """Outputs of one kind of the code cell whose source has ``text``."""
    made = lab.notebook()["cells"][find(lab, text)]["outputs"]
    return [output for output in made if output["output_type"] == kind]


def printed(lab: Lab, text: str) -> str:
    return "".join("".join(output["text"]) for output in outputs(lab, text, "stream"))


def pictures(lab: Lab) -> list[dict]:
    made = [output for cell in lab.code_cells() for output in cell["outputs"]]
    return [output for output in made if "image/png" in output.get("data", {})]


def errors(lab: Lab) -> list[dict]:
    cells = lab.code_cells()
    return [o for cell in cells for o in cell["outputs"] if o["output_type"] == "error"]


def broken(text: str) -> list[str]:
    """What a page says where a widget or an output cannot be shown."""
    return [words for words in (*BROKEN, "VBox(", "IntSlider(") if words in text]


def test_make_lab_opens_the_index_and_its_links_and_pictures_work(lab: Lab):
    lab.open()
    assert lab.js("return panel.context.path") == "notebooks/index.ipynb"
    text = "".join(lab.pages("index"))
    assert not broken(text) and "PosixPath" not in text
    links, pictures = set(), {}
    for cell in range(len(lab.notebook()["cells"])):
        lab.show(cell)
        links |= {link.get_attribute("href") for link in lab.all(".jp-Notebook a[href]")}
        pictures |= {picture.get_attribute("src"): picture for picture in lab.all(".jp-Cell img")}
    inside = [link for link in links if ".ipynb" in link]
    assert len(inside) >= len(list(Path("notebooks").glob("[0-9]*.ipynb"))) and len(pictures) > 3
    for address in [*inside, *pictures]:
        code = "return (await fetch(arguments[0])).status"
        assert lab.driver.execute_script(code, address.partition("#")[0]) == 200, address


def test_every_notebook_links_to_its_neighbors_and_to_nothing_that_is_not_there(project: Path):
    paths = sorted((project / "notebooks").glob("[0-9]*.ipynb"))
    for before, path, after in zip([None, *paths], paths, [*paths[1:], None], strict=False):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        links = re.findall(r"\]\(((?!http)[^)#]+\.\w+)", "\n".join(texts))
        missing = [link for link in links if not (path.parent / link).exists()]
        assert not missing, f"{path.name}: {missing}"
        neighbors = {near.name for near in (before, after) if near}
        assert {"index.ipynb", *neighbors} <= set(links), f"{path.name} names {links}"


def test_a_link_of_the_index_opens_its_notebook(lab: Lab):
    lab.open()
    lab.show(0)
    link = lab.until(lambda: lab.all(".jp-MarkdownOutput a[href*='00_quickstart']")[0], "link")
    lab.until(lambda: "files/" in link.get_dom_attribute("href"), "resolved link")
    link.click()
    lab.until(lambda: lab.js("return panel.context.path") == QUICKSTART, "quickstart")
    lab.ready()
    lab.until(lambda: "ipc: int" in json.dumps(lab.notebook()), "its cells")


@pytest.mark.parametrize("stem", ["index", "00_quickstart", "02_image_fitting"])
def test_opening_and_saving_a_notebook_changes_nothing(lab: Lab, project: Path, stem: str):
    lab.open(f"notebooks/{stem}.ipynb")
    assert not lab.modified()
    lab.save()
    assert git(project, "diff") == ""


def test_an_untrusted_notebook_shows_no_bare_widget(lab: Lab):
    lab.open(QUICKSTART)
    assert not broken("".join(lab.pages("quickstart_first_visit")))


def test_run_all_runs_without_an_error(lab: Lab, capsys):
    began = time.monotonic()
    lab.open(QUICKSTART)
    opened = time.monotonic() - began
    began = time.monotonic()
    lab.menu("Run", "Run All Cells")  # takes the saved pictures away
    lab.until(lambda: pictures(lab), "first picture", RUN)
    first = time.monotonic() - began
    with capsys.disabled():
        print(f"\nmake lab to the index's idle kernel: {lab.started:.1f} s", end="")
        print(f"; opening the quickstart: {opened:.1f} s", end="")
        print(f"; Run All to its first picture: {first:.1f} s", end="")
        print(f"; together {lab.started + opened + first:.1f} s")
    lab.done(RUN)
    counts = [cell["execution_count"] for cell in lab.code_cells()]
    assert not errors(lab) and counts == list(range(1, len(counts) + 1))
    assert not broken("".join(lab.pages("quickstart_run")))


def test_the_sliders_change_the_picture(lab: Lab):
    lab.show(find(lab, EXPLORER))
    for name, keys in zip(
        SLIDERS, [Keys.ARROW_RIGHT, Keys.ARROW_LEFT, Keys.ARROW_RIGHT], strict=True
    ):
        before = shown(lab)
        lab.latency(slider(lab, name), keys)
        assert shown(lab) != before, name
    before = shown(lab)
    lab.latency(lab.all(".jp-OutputArea .widget-checkbox input")[0])
    assert shown(lab) != before
    lab.shot("explorer_moved")


def slider(lab: Lab, name: str):
    """The handle of the slider with this description."""
    for each in lab.all(".jp-OutputArea .widget-hslider"):
        if each.find_element("css selector", ".widget-label").text.strip() == name:
            return each.find_element("css selector", ".noUi-handle")
    raise AssertionError(f"no slider '{name}'")


def shown(lab: Lab) -> str:
    """The explorer's picture."""
    script = """const cell = panel.content.widgets[arguments[0]].node;
      return cell.querySelector('.jp-OutputArea-output img, .widget-image').src"""
    return lab.js(script, find(lab, EXPLORER))


def test_saved_and_opened_again_everything_is_shown(lab: Lab):
    lab.save()
    picture = shown(lab)
    lab.reload()
    assert not broken("".join(lab.pages("quickstart_reloaded")))
    assert not errors(lab)
    lab.show(find(lab, EXPLORER))
    assert shown(lab).partition(",")[2] == picture.partition(",")[2] or "blob:" in picture
    lab.shut_down()
    lab.open(QUICKSTART)
    assert not broken("".join(lab.pages("quickstart_next_day")))


def test_a_changed_setting_starts_anew_and_says_so(lab: Lab):
    lab.open(QUICKSTART)
    lab.type_line(find(lab, "ipc: int"), "ipc:", "ipc: int = 2  # budget: fp32 images per class")
    lab.run_all(RUN)
    assert not errors(lab)
    assert "settings changed" in (said := printed(lab, DISTILL)) and "starting anew" in said
    lab.show(find(lab, DISTILL))
    lab.shot("quickstart_ipc2")


def test_a_misspelt_parameter_is_refused_in_the_setup_cell(lab: Lab):
    """The second time, with all imported, it fails before the other cells reach the kernel."""
    lab.open(QUICKSTART)
    lab.type_line(find(lab, "ipc: int"), "ipc:", "ipcc: int = 2  # budget")
    for _ in range(2):
        lab.run_all(RUN)
        lab.shot("quickstart_misspelt")
        (error,) = outputs(lab, SETUP, "error")
        (sentence,) = error["traceback"]
        assert "unknown parameter 'ipcc'" in sentence and "ipc" in sentence
        assert "\n" not in sentence and len(errors(lab)) == 1
        cells = lab.code_cells()
        failed = next(n for n, cell in enumerate(cells) if SETUP in "".join(cell["source"]))
        assert not any(cell["execution_count"] for cell in cells[failed + 1 :])
    lab.show(find(lab, SETUP))
    lab.shot("quickstart_misspelt_setup")


def test_a_stopped_cell_goes_on_from_its_checkpoint(lab: Lab):
    lab.open(QUICKSTART)
    lab.type_line(find(lab, "ipc: int"), "steps:", "steps: int = 4000  # distillation steps")
    lab.menu("Run", "Run All Cells")
    bar = "return JSON.stringify(panel.content.model.cells.get(arguments[0]).outputs.toJSON())"
    cell = find(lab, DISTILL)
    lab.until(lambda: re.search(r"dm: [4-9]\d/4000", lab.js(bar, cell)), "forty steps", RUN)
    began = time.monotonic()
    lab.menu("Kernel", "Interrupt Kernel")
    lab.until(lambda: outputs(lab, DISTILL, "error"), "message of the stopped cell", 30)
    seconds = time.monotonic() - began
    (error,) = outputs(lab, DISTILL, "error")
    assert "checkpoint" in error["evalue"] and seconds < 20
    lab.show(cell).find_element("css selector", ".cm-content").click()
    lab.shot("quickstart_stopped")
    lab.keys(Keys.CONTROL, Keys.ENTER)
    lab.until(lambda: "resuming at step" in printed(lab, DISTILL), "line that says so")
    lab.menu("Kernel", "Interrupt Kernel")
    lab.until(lambda: outputs(lab, DISTILL, "error"), "message of the stopped cell", 30)


def test_sliders_follow_within_a_second_at_28_pixels(lab: Lab, project: Path, capsys):
    """Fashion-MNIST's size: the committed set of 25 kbit a class."""
    source = (
        "from gsdd_lib.experiment import widgets as explore\n"
        "from gsdd_lib.storage import load\n"
        "explore.Explorer(load('../distilled/fashion_mnist_25kbit.safetensors'))"
    )
    cell = {"cell_type": "code", "execution_count": None, "id": "a", "metadata": {}, "outputs": []}
    kernel = json.loads((project / QUICKSTART).read_text("utf-8"))["metadata"]
    made = {"cells": [cell | {"source": source}], "metadata": kernel, "nbformat": 4}
    (project / "notebooks/explorer.ipynb").write_text(json.dumps(made | {"nbformat_minor": 5}))
    lab.open("notebooks/explorer.ipynb")
    lab.run_all(RUN)
    assert not errors(lab)
    lab.shot("explorer_28")
    medians = {}
    for name in SLIDERS:
        handle = slider(lab, name)
        first = Keys.ARROW_LEFT if name == "largest Gaussians" else Keys.ARROW_RIGHT
        back = Keys.ARROW_RIGHT if first == Keys.ARROW_LEFT else Keys.ARROW_LEFT
        presses = [first if n % 2 == 0 else back for n in range(KEYS_EACH)]
        medians[name] = statistics.median(lab.latency(handle, key) for key in presses)
    box = lab.all(".jp-OutputArea .widget-checkbox input")[0]
    medians["ellipses"] = statistics.median(lab.latency(box) for _ in range(KEYS_EACH))
    with capsys.disabled():
        for name, seconds in medians.items():
            print(f"\n{name}: {1000 * seconds:.0f} ms from the key to the picture", end="")
        print(f" (medians of {KEYS_EACH}, 28x28)")
    assert max(medians.values()) < 1
