"""Shared settings of the tests: no display, no bars, fixed randomness, GPU tests skipped aloud."""

import os
import re

# Before anything imports matplotlib or tqdm, which read these once.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TQDM_DISABLE", "1")

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile(
    "repeatable", deadline=None, derandomize=True, max_examples=40, database=None
)
hypothesis.settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    """With ``-m gpu``, a file that needs a package which is not installed is skipped by its name.

    A GPU machine often has torch and little else. Anywhere else such a file is an error.
    """
    report = yield
    missing = re.search(
        r"ModuleNotFoundError: No module named '((?!gsdd_lib|cuda_ext)\w+)", str(report.longrepr)
    )
    if collector.config.option.markexpr == "gpu" and report.failed and missing:
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 1, f"Skipped: needs {missing[1]}")
    return report


@pytest.fixture(autouse=True)
def _fixed_global_generator() -> None:
    """Tests may draw from torch's global generator; the library may not."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def fashion_mnist():
    """Fashion-MNIST, or a skip where its files are not: no test downloads anything."""
    from gsdd_lib.config import DataConfig
    from gsdd_lib.data import DataError, load_data

    try:
        return load_data(DataConfig(dataset="fashion_mnist"))
    except DataError:
        pytest.skip("Fashion-MNIST is not on this machine; 'make data' finds or fetches it")
