"""The paper's budget arithmetic, row by row, and that no budget is ever exceeded."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from gsdd_lib.config import BudgetConfig
from gsdd_lib.data import ImageData, ImageSet
from gsdd_lib.parameterizations.budget import (
    Budget,
    BudgetError,
    plan_budget,
    points_per_image,
)


def data_of(channels: int, height: int, width: int, classes: int = 10) -> ImageData:
    """A data set of which only the sizes matter."""
    images = torch.zeros(classes, channels, height, width, dtype=torch.uint8)
    one = ImageSet(images, torch.arange(classes))
    names, half = tuple(map(str, range(classes))), (0.5,) * channels
    return ImageData("sizes", names, half, half, one, one, "generated", one)


FASHION = data_of(1, 28, 28)

# Every row of the paper's tables 7 to 12, all of RGB images: resolution, ipc, gpc, points.
PAPER = {
    "table 7, CIFAR-10, TM, ipc 1": (32, 1, 30, 22),
    "table 7, CIFAR-10, TM, ipc 10": (32, 10, 160, 42),
    "table 7, CIFAR-10, TM, ipc 50": (32, 50, 250, 136),
    "table 8, CIFAR-100, TM, ipc 1": (32, 1, 30, 22),
    "table 8, CIFAR-100, TM, ipc 10": (32, 10, 80, 85),
    "table 8, CIFAR-100, TM, ipc 50": (32, 50, 400, 85),
    "table 9, ImageNet 128, TM, ipc 1": (128, 1, 64, 170),
    "table 9, ImageNet 128, TM, ipc 10": (128, 10, 640, 170),
    "table 10, ImageNet 128, DM, ipc 1": (128, 1, 200, 54),
    "table 11, ImageNet 256, DM, ipc 1": (256, 1, 120, 364),
    "table 12, ImageNet 128, DC, ipc 1": (128, 1, 200, 54),
}


@pytest.mark.parametrize("row", PAPER)
def test_the_papers_rows(row):
    resolution, ipc, gpc, printed = PAPER[row]
    points = points_per_image(ipc=ipc, gpc=gpc, height=resolution, width=resolution, channels=3)
    assert points == printed, f"{row}: the formula gives {points}, the paper prints {printed}"


def test_fashion_mnist_by_hand():
    # 28 * 28 fp32 numbers are 25,088 bits; 10 images x 22 Gaussians x 7 numbers x 16 bits
    budget = plan_budget(BudgetConfig(ipc=1, gpc=10), FASHION)
    assert budget == Budget(ipc=1, gpc=10, points=22, channels=1, height=28, width=28)
    assert budget.numbers_per_gaussian == 7
    assert budget.budget_bits_per_class == 25_088
    assert budget.bits_per_class == 24_640
    assert budget.describe() == (
        "IPC 1 (25,088 bits per class) -> "
        "GPC 10 x 22 points x 7 bf16 numbers = 24,640 bits per class"
    )


def test_learned_labels_are_paid_for():
    # 10 labels of 10 bf16 numbers take 1,600 of 25,088 bits: 23,488 / (10 * 7 * 16) = 20.97
    config = BudgetConfig(ipc=1, gpc=10, soft_labels=True)
    budget = plan_budget(config, FASHION)
    assert (budget.points, budget.label_bits, budget.bits_per_class) == (20, 160, 24_000)
    assert budget.budget_bits_per_class == 25_088  # what may be spent is the same
    assert "7 bf16 numbers + 10 labels of 160 bits = 24,000 bits" in budget.describe()


def test_leaving_out_the_opacity_buys_more_gaussians():
    config = BudgetConfig(ipc=1, gpc=10, opacity=False)
    budget = plan_budget(config, FASHION)
    assert (budget.numbers_per_gaussian, budget.points) == (6, 26)  # 1568 / (10 * 6) = 26.1


sizes = {
    "ipc": st.integers(1, 100),
    "gpc": st.integers(1, 2000),
    "height": st.integers(1, 300),
    "width": st.integers(1, 300),
    "channels": st.integers(1, 4),
}


@given(**sizes, opacity=st.booleans(), classes=st.integers(2, 100), soft=st.booleans())
def test_spends_all_it_can_and_never_more(
    ipc, gpc, height, width, channels, opacity, classes, soft
):
    numbers, label = 5 + channels + opacity, soft * classes
    assume(gpc * (numbers + label) * 16 <= ipc * channels * height * width * 32)
    config = BudgetConfig(ipc=ipc, gpc=gpc, opacity=opacity, soft_labels=soft)
    budget = plan_budget(config, data_of(channels, height, width, classes))
    assert budget.bits_per_class <= budget.budget_bits_per_class
    one_more = gpc * ((budget.points + 1) * numbers + label) * 16
    assert one_more > budget.budget_bits_per_class


@given(ipc=sizes["ipc"], side=st.integers(4, 300), channels=sizes["channels"], over=sizes["gpc"])
def test_the_gpc_named_in_the_error_is_the_largest_that_fits(ipc, side, channels, over):
    size = {"ipc": ipc, "height": side, "width": side, "channels": channels}
    largest = ipc * channels * side * side * 32 // ((6 + channels) * 16)
    with pytest.raises(BudgetError, match=f"the largest gpc that fits is {largest}$"):
        points_per_image(gpc=largest + over, **size)
    assert points_per_image(gpc=largest, **size) == 1


def test_a_budget_of_less_than_one_gaussian():
    with pytest.raises(BudgetError, match="less than one Gaussian; use larger images"):
        points_per_image(ipc=1, gpc=1, height=1, width=2, channels=1)


@pytest.mark.parametrize("name", ["ipc", "gpc", "height", "width", "channels"])
def test_a_size_of_zero(name):
    arguments = {"ipc": 1, "gpc": 1, "height": 32, "width": 32, "channels": 3, name: 0}
    with pytest.raises(BudgetError, match=f"^{name} must be at least 1, got 0$"):
        points_per_image(**arguments)
