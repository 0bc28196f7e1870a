"""Figures show the data they are given, ellipses lie where the Gaussians do, files are exact."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from gsdd_lib.experiment import plots, tables


@pytest.fixture(autouse=True)
def _style():
    plots.use_style()
    yield
    plt.close("all")


def test_saved_files_are_the_same_bytes_twice(tmp_path):
    def draw(folder):
        frame = pd.DataFrame({"step": [0, 1], "mean": [10.0, 20.0], "ci95": 1.0})
        path = plots.save(plots.history(frame), tmp_path / folder, "history")
        return path.read_bytes(), path.with_suffix(".pdf").read_bytes()

    first, second = draw("a"), draw("b")
    assert first == second
    assert first[0].startswith(b"\x89PNG") and first[1].startswith(b"%PDF")
    assert b"CreationDate" not in first[1]


def test_history_draws_the_mean_and_the_interval():
    frame = pd.DataFrame({"step": [0, 5], "mean": [71.0, 80.0], "ci95": [12.5, float("nan")]})
    ax = plots.history(frame).axes[0]
    assert ax.lines[0].get_ydata().tolist() == [71.0, 80.0]
    low, high = np.array(ax.collections[0].get_datalim(ax.transData))[:, 1]
    np.testing.assert_allclose([low, high], [58.5, 83.5])


def test_history_draws_no_accuracy_beyond_what_there_is():
    frame = pd.DataFrame({"step": [0, 5], "mean": [95.0, 5.0], "ci95": [12.5, 12.5]})
    ax = plots.history(frame).axes[0]
    low, high = np.array(ax.collections[0].get_datalim(ax.transData))[:, 1]
    np.testing.assert_allclose([low, high], [0, 100])


def test_accuracy_bars_mark_published_numbers_as_such():
    frame = pd.DataFrame(
        {"method": ["distilled", "initial"], "mean": [79.0, 74.0], "ci95": [0.4, None]}
    )
    published = tables.paper_rows("fashion_mnist").query("setting == 'IPC 1'")
    ax = plots.accuracy_bars(frame, published=published).axes[0]
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names[:2] == ["Gaussians, distilled", "Gaussians, before distillation"]
    assert names[2:] == ["DC (published)", "DSA (published)", "KIP (published)"]
    assert [text.get_text() for text in ax.texts] == ["79.0", "74.0", "70.5", "70.6", "76.7"]


def test_a_method_has_one_color_and_an_objective_one_line():
    assert plots.color("distilled") == plots.color("distilled tm") == plots.color("Gaussians")
    assert plots.label("distilled dm") == "Gaussians, distilled by DM"
    assert plots.label("pixels tm") == "pixels by TM"
    methods = ("distilled", "initial", "random real", "pixels", "idc", "fred", "ddif", "dsa")
    assert len({plots.color(method) for method in methods}) == len(methods)
    runs = ["distilled dm", "distilled dc", "distilled tm"]
    frame = pd.DataFrame({"method": runs, "step": 0, "mean": 70.0, "ci95": 1.0})
    lines = plots.history(frame).axes[0].lines
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == 3


@pytest.mark.parametrize(
    ("name", "method", "printed"),
    [
        ("gaussians dm", "distilled", "Gaussians by DM"),
        ("gaussians dm, initial", "distilled", "Gaussians by DM, before distillation"),
        ("pixels dc", "pixels", "pixels by DC"),
        ("idc tm", "downsampled", "IDC by TM"),
        ("fred dm", "frequency", "FreD by DM"),
        ("ddif dm, initial", "neural field", "DDiF by DM, before distillation"),
        ("random real", "random real", "random real images, at equal storage"),
        ("whole data", "whole data", "all real images"),
        ("mine dm", "never heard of", "mine by DM"),
    ],
)
def test_the_names_of_a_contest_have_their_methods_color_and_read_well(name, method, printed):
    assert plots.color(name) == plots.color(method) and plots.label(name) == printed


def test_what_is_not_yet_distilled_has_a_hollow_mark_of_its_objective():
    frame = pd.DataFrame({"method": ["idc tm", "idc tm, initial"], "mean": 70.0, "ci95": 1.0})
    marks = [line for line in plots.accuracy_bars(frame).axes[0].lines if line.get_marker() == "^"]
    assert [mark.get_markerfacecolor() == "white" for mark in marks] == [False, True]


def test_a_method_that_no_figure_knows_is_grey():
    assert plots.color("never heard of") == plots.color("dc")
    assert plots.label("never heard of") == "never heard of"
