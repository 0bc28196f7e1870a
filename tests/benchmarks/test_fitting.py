"""The fitting case of the benchmark: its images, its row, the paper's line; never its times."""

import sys

import pytest
import torch

from gsdd_lib.benchmarks import fitting as fit_benchmark
from gsdd_lib.benchmarks.fitting import (
    Fitting,
    call_costs,
    fitting_table,
    measure_fitting,
)


@pytest.fixture(scope="module")
def row() -> dict:
    return measure_fitting(Fitting(4, 6, 16, 60), repeats=1)


def test_a_fit_is_measured(row):
    assert row["seconds"] > 0 and row["seconds_1000_images"] == pytest.approx(250 * row["seconds"])
    assert row["step_ms"] == pytest.approx(1e3 * row["seconds"] / 60) and row["operator_ms"] > 0
    assert 10 < row["psnr_db"] < 60


def test_memory_is_measured_in_a_process_of_its_own(row):
    if sys.platform != "linux":
        pytest.skip("only Linux tells the peak")
    assert 0 <= row["mib"] < 100


def test_the_table_says_what_was_fitted(row):
    text = fitting_table(row | {"points": 170})
    assert text.startswith("| images | Gaussians |") and "| 4 | 170 | 16x16x3 | 60 |" in text
    assert f"One fit of {row['of']}" in text


def test_the_photographs_are_real_distinct_and_the_same_every_time():
    images, what = fit_benchmark.photographs(6, 32)
    assert images.shape == (6, 3, 32, 32) and what == "crops of two photographs"
    assert 0 <= images.min() and images.max() <= 1 and len(images.unique(dim=0)) == 6
    assert torch.equal(images, fit_benchmark.photographs(6, 32)[0])


def test_without_scikit_learn_images_are_generated(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    images, what = fit_benchmark.photographs(3, 20)
    assert images.shape == (3, 3, 20, 20) and what == "smooth generated images"
    assert 0 <= images.min() and images.max() <= 1


def test_a_calls_cost_is_told_by_how_it_is_made():
    costs = call_costs(calls=3, repeats=1)
    assert len(costs) == 4 and all(cost > 0 for cost in costs.values())
    assert fit_benchmark.call_line(costs).startswith("A call of one Gaussian on one pixel")
