"""The form of a run: filled from a file, refused, run, watched, stopped and gone on with."""

import json
import re
from pathlib import Path

import pytest
from selenium.webdriver import Keys

from tests_browser.lab import Lab

FORM = "live.form("
RUN = 300  # seconds that a smoke run may take on a busy machine


@pytest.fixture(scope="module")
def form(lab: Lab, project: Path) -> Lab:
    """A notebook with the form of the quickstart alone, its cell run."""
    source = 'from gsdd_lib.experiment import live\n\nlive.form("00_quickstart")'
    cell = {"cell_type": "code", "execution_count": None, "id": "a", "metadata": {}, "outputs": []}
    kernel = json.loads((project / "notebooks/index.ipynb").read_text("utf-8"))["metadata"]
    made = {"cells": [cell | {"source": source}], "metadata": kernel, "nbformat": 4}
    (project / "notebooks/form.ipynb").write_text(json.dumps(made | {"nbformat_minor": 5}))
    lab.open("notebooks/form.ipynb")
    lab.run_all(60)
    lab.until(lambda: lab.all(".jp-OutputArea .widget-text input"), "fields")
    return lab


def field(lab: Lab, name: str):
    for each in lab.all(".jp-OutputArea .widget-text"):
        if each.find_element("css selector", "label").text == name:
            return each.find_element("css selector", "input")
    raise AssertionError(f"no field '{name}'")


def enter(lab: Lab, name: str, value: str) -> None:
    field(lab, name).click()
    lab.keys(Keys.CONTROL, "a")
    lab.keys(value)
    lab.keys(Keys.ENTER)


def press(lab: Lab, name: str) -> None:
    next(each for each in lab.all(".jp-OutputArea button") if each.text.strip() == name).click()


def said(lab: Lab) -> str:
    box = lab.all(".jp-OutputArea .widget-vbox")[0]
    box.location_once_scrolled_into_view  # noqa: B018  out of view its text is empty
    return box.text


def test_a_file_of_parameters_fills_the_form(form: Lab):
    form.shot("form")
    assert field(form, "dataset").get_attribute("value") == "digits"
    form.all(".jp-OutputArea .widget-dropdown option")[1].click()
    value = lambda: field(form, "dataset").get_attribute("value")  # noqa: E731
    form.until(lambda: value() == "fashion_mnist", "values of the file")
    form.all(".jp-OutputArea .widget-dropdown option")[0].click()
    form.until(lambda: value() == "digits", "values of the notebook")


def test_a_wrong_value_is_refused_in_one_sentence(form: Lab, project: Path):
    enter(form, "steps", "many")
    press(form, "Run")
    form.until(lambda: "'steps' must be int, not 'many'" in said(form), "sentence")
    form.shot("form_refused")
    assert not (project / "runs/forms").exists()


def test_a_run_is_watched_stopped_and_gone_on_with(form: Lab):
    enter(form, "steps", "1500")
    press(form, "Run")
    form.until(lambda: "running" in said(form) and "dm:" in said(form), "progress", RUN)
    form.until(lambda: form.all(".jp-OutputArea img"), "curves", RUN)
    form.shot("form_running")
    press(form, "Stop")
    form.until(lambda: "goes on from the last checkpoint" in said(form), "end of the run", 60)
    form.shot("form_stopped")
    press(form, "Run")
    form.until(lambda: "resuming at step" in said(form), "line that says so", RUN)
    press(form, "Stop")
    form.until(lambda: "goes on from the last checkpoint" in said(form), "end of the run", 60)


def test_a_finished_run_links_to_its_notebook_and_figures(form: Lab, project: Path):
    enter(form, "steps", "61")
    press(form, "Run")
    form.until(lambda: "results in figures/own" in said(form), "result", RUN)
    form.shot("form_done")
    case = re.search(r"results in figures/own/00_quickstart/(\w+)", said(form))[1]
    path = f"figures/own/00_quickstart/{case}/{case}.ipynb"
    assert "steps = 61" in (project / path).read_text("utf-8")
    links = {link.text: link for link in form.all(".jp-OutputArea a")}
    assert {f"{case}.ipynb", "history.png"} <= set(links)
    links[f"{case}.ipynb"].click()
    form.until(lambda: form.js("return panel.context.path") == path, "executed notebook")


@pytest.mark.parametrize(
    ("stem", "cell"), [("index", "explore.Sliders("), ("02_image_fitting", "explore.Sliders(")]
)
def test_the_picture_of_a_widget_is_there_before_a_kernel_is(lab: Lab, stem: str, cell: str):
    lab.open(f"notebooks/{stem}.ipynb")
    sources = ["".join(each["source"]) for each in lab.notebook()["cells"]]
    (number,) = (number for number, source in enumerate(sources) if cell in source)
    lab.show(number)
    lab.until(lambda: lab.all(".jp-OutputArea img"), "picture")
    lab.shot(f"widget_{stem}")
