"""The form in the index: filled from a file, refused, run, watched, stopped and gone on with."""

import json
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
    return lab.all(".jp-OutputArea .widget-vbox")[0].text


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


def test_a_run_is_watched_stopped_and_gone_on_with(form: Lab, project: Path):
    enter(form, "steps", "1500")
    press(form, "Run")
    form.until(lambda: "running" in said(form) and "dm " in said(form), "progress", RUN)
    form.until(lambda: form.all(".jp-OutputArea img"), "curves", RUN)
    form.shot("form_running")
    press(form, "Stop")
    form.until(lambda: "goes on from the last checkpoint" in said(form), "end of the run", 60)
    form.shot("form_stopped")
    enter(form, "steps", "61")
    press(form, "Run")
    form.until(lambda: "done" in said(form) and "results in" in said(form), "result", RUN)
    form.shot("form_done")
    links = [link.get_attribute("href") for link in form.all(".jp-OutputArea a")]
    assert any("history.png" in link for link in links) and "/lab/tree/figures/own" in links[0]
    (made,) = (project / "figures/own/00_quickstart").iterdir()
    assert "steps = 61" in (made / f"{made.name}.ipynb").read_text("utf-8")
