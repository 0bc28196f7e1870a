"""The fitting case of the benchmark: its images, its row; never its times."""

import sys

import pytest
import torch

from gsdd_lib.benchmarks.fitting import Fitting, call_costs, measure_fitting, photographs


@pytest.fixture(scope="module")
def row() -> dict:
    return measure_fitting(Fitting(4, 6, 16, 60), repeats=1)


def test_a_fit_is_measured(row):
    assert (row["images"], row["points"], row["size"], row["steps"]) == (4, 6, 16, 60)
    assert row["seconds"] > 0 and row["seconds_1000_images"] == pytest.approx(250 * row["seconds"])
    assert row["step_ms"] == pytest.approx(1e3 * row["seconds"] / 60) and row["operator_ms"] > 0
    assert 10 < row["psnr_db"] < 60


def test_memory_is_measured_in_a_process_of_its_own(row):
    if sys.platform != "linux":
        pytest.skip("only Linux tells the peak")
    assert 0 <= row["mib"] < 100


def test_the_photographs_are_real_distinct_and_the_same_every_time():
    images = photographs(6, 32)
    assert images.shape == (6, 3, 32, 32)
    assert 0 <= images.min() and images.max() <= 1 and len(images.unique(dim=0)) == 6
    assert torch.equal(images, photographs(6, 32))


def test_a_calls_cost_is_told_by_how_it_is_made():
    costs = call_costs(calls=3, repeats=1)
    assert len(costs) == 4 and all(cost > 0 for cost in costs.values())
