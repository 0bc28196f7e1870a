"""PixelImages: stored is what is rendered, equal bits, and a distillation's objective goes down."""

from typing import get_args

import pytest
import torch
from torch.nn import functional as F

from gsdd_lib.config import BudgetConfig, DataConfig, DistillConfig
from gsdd_lib.data import load_data
from gsdd_lib.data.normalization import ChannelNormalization
from gsdd_lib.distillation.losses import dm_step_loss
from gsdd_lib.distillation.state import State
from gsdd_lib.evaluation.baselines import RealImages
from gsdd_lib.parameterizations.budget import Budget, plan_budget
from gsdd_lib.parameterizations.frequency import FrequencyImages
from gsdd_lib.parameterizations.pixel import (
    BITS,
    DownsampledImages,
    PixelImages,
    Storage,
    affordable_images,
    random_real_pixels,
    stored_size,
)

NORMALIZATION = ChannelNormalization((0.4,) * 3, (0.2,) * 3)


@pytest.fixture(scope="module")
def data():
    return load_data(DataConfig(dataset="digits"))


def make(storage="uint8", pixels=None):
    pixels = torch.rand(4, 3, 6, 8) if pixels is None else pixels
    labels = torch.arange(len(pixels))
    return PixelImages(pixels, labels, normalization=NORMALIZATION, storage=storage)


def test_bytes_come_back_exactly():
    stored = torch.randint(0, 256, (4, 3, 6, 8), dtype=torch.uint8)
    images = make(pixels=stored / 255)
    assert torch.equal((images.pixels() * 255).round().to(torch.uint8), stored)
    expected = (stored / 255 - 0.4) / 0.2
    torch.testing.assert_close(images.render(), expected)


@pytest.mark.parametrize("storage", get_args(Storage))
def test_rendered_is_what_is_stored_and_the_gradient_goes_straight_through(storage):
    images = make(storage)
    rendered = images.pixels()
    distance = (rendered - images.packed).abs().max()
    levels = {"uint2": 3, "uint4": 15, "uint8": 255}
    limit = {"bf16": 2**-9, "fp32": 0} | {name: 0.5 / n + 1e-6 for name, n in levels.items()}
    assert distance <= limit[storage]
    if storage in levels:
        assert len(rendered.unique()) <= levels[storage] + 1
    assert (distance == 0) == (storage == "fp32")
    images.render().sum().backward()
    torch.testing.assert_close(images.packed.grad, torch.full((4, 3, 6, 8), 5.0))


def test_bits_by_hand():
    sizes = {storage: make(storage).bits for storage in BITS}
    assert sizes == {
        name: 4 * 144 * bits
        for name, bits in (("uint2", 2), ("uint4", 4), ("uint8", 8), ("bf16", 16), ("fp32", 32))
    }


@pytest.mark.parametrize(
    ("storage", "count"), [("uint4", 24), ("uint8", 12), ("bf16", 6), ("fp32", 3)]
)
def test_equal_bits(data, storage, count):
    budget = plan_budget(BudgetConfig(ipc=3, gpc=4), data)
    images = random_real_pixels(data, count, seed=0, storage=storage)
    assert images.bits == 10 * budget.budget_bits_per_class


def test_the_start_is_the_random_real_rival(data):
    images, (rival, labels) = (
        random_real_pixels(data, 3, seed=7),
        RealImages().choose(data, 3, seed=7),
    )
    torch.testing.assert_close(images.render(), rival, atol=1e-5, rtol=1e-5)
    assert torch.equal(images.labels, labels)


def test_index_and_other_resolutions():
    images = make()
    assert torch.equal(images.render(torch.tensor([2, 0])), images.render()[[2, 0]])
    assert images.render(resolution=(12, 16)).shape == (4, 3, 12, 16)


def test_constraint_and_penalty():
    wild = torch.tensor([-1.0, 0.5, 2.0]).view(1, 3, 1, 1)
    byte, free = make(pixels=wild), make("fp32", pixels=wild)
    byte.constrain_()
    free.constrain_()
    assert byte.packed.flatten().tolist() == [0, 0.5, 1]
    assert free.packed.flatten().tolist() == [-1, 0.5, 2]
    assert byte.penalty().item() == 0


@pytest.mark.parametrize(
    "made",
    [
        lambda *a, **k: PixelImages.init_from(*a, **k),
        lambda *a, **k: DownsampledImages.init_from(*a, **k),
        lambda *a, **k: FrequencyImages.init_from(*a, frequencies=20, **k),
    ],
    ids=["pixels", "downsampled", "frequencies"],
)
def test_every_rival_is_distilled_by_the_same_objective(data, made):
    start = random_real_pixels(data, 2, seed=0)
    images = made(start.pixels().detach(), start.labels, normalization=data.normalization)
    config = DistillConfig(network="ConvNetD2", width=8, batch_real=16)
    state = State(images, data, config)

    def objective(step):
        state.step = step
        return dm_step_loss(state, data, seed=0)

    def mean_objective():
        return sum(objective(step).item() for step in range(100, 108)) / 8

    before, optimizer = mean_objective(), torch.optim.Adam(images.parameters(), lr=0.01)
    for step in range(40):
        optimizer.zero_grad()
        (objective(step) + 0.1 * images.penalty()).backward()
        optimizer.step()
        images.constrain_()
    assert mean_objective() < 0.8 * before
    if isinstance(images, PixelImages):
        assert 0 <= images.pixels().min() and images.pixels().max() <= 1


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="do not fit"):
        PixelImages(torch.zeros(2, 3, 4, 4), torch.zeros(5), normalization=NORMALIZATION)
    with pytest.raises(
        ValueError, match="unknown storage 'int4'; choose one of uint2, uint4, uint8"
    ):
        make("int4")


# Downsampled (IDC): published budgets, what is stored, interpolation


def small(images, **more):
    labels = torch.arange(len(images))
    channels = images.shape[1]
    normalization = ChannelNormalization((0.5,) * channels, (0.25,) * channels)
    return DownsampledImages.init_from(images, labels, normalization=normalization, **more)


@pytest.mark.parametrize(
    ("size", "factor", "ipc", "images"),
    [  # IDC stores factor^2 images in the place of each of IPC
        ((1, 28, 28), 2, 1, 4),
        ((3, 32, 32), 2, 10, 40),
        ((3, 32, 32), 2, 50, 200),
        ((3, 64, 64), 2, 1, 4),
        ((3, 128, 128), 2, 1, 4),
        ((3, 224, 224), 3, 10, 90),
    ],
)
def test_published_budgets(size, factor, ipc, images):
    channels, height, width = size
    budget = Budget(ipc, 1, 1, channels, height, width)
    assert affordable_images(budget, factor=factor) >= images
    stored = small(torch.rand(images, *size), factor=factor)
    assert stored.bits <= budget.budget_bits_per_class
    if height % factor == 0:
        assert stored.bits == budget.budget_bits_per_class
        assert affordable_images(budget, factor=factor) == images
        assert affordable_images(budget, factor=factor, storage="uint4") == 8 * images


@pytest.mark.parametrize("size", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 128, 128)])
def test_every_size_of_the_paper(size):
    images = small(torch.rand(2, *size))
    assert images.render().shape == (2, *size)
    assert images.render(resolution=(40, 24)).shape == (2, size[0], 40, 24)


def test_stored_is_a_weighted_mean_and_rendered_its_interpolation():
    images = small(torch.tensor([[[[0.0, 0.0, 1.0, 1.0]] * 4]]))
    # A triangle two pixels wide each way; where it is cut off by the edge, the rest is rescaled.
    shares = torch.tensor([0.75, 0.75, 0.25])
    low = (shares[2] / shares.sum()).item()
    torch.testing.assert_close(images.packed[0, 0], torch.tensor([[low, 1 - low]] * 2))
    expected = F.interpolate(images.packed, (4, 4), mode="bilinear", align_corners=False)
    torch.testing.assert_close(images.pixels(), expected)


def test_other_resolutions_are_interpolated_from_what_is_stored():
    images = small(torch.rand(3, 3, 8, 8))
    assert torch.equal(images.pixels(resolution=(4, 4)), images.packed)
    expected = F.interpolate(images.packed, (16, 12), mode="bilinear", align_corners=False)
    torch.testing.assert_close(images.pixels(resolution=(16, 12)), expected)


def test_four_bits_are_rounded_before_they_are_interpolated():
    images = small(torch.rand(3, 1, 8, 8), storage="uint4")
    levels = images.pixels(resolution=(4, 4)) * 15
    torch.testing.assert_close(levels, levels.round())


def test_a_factor_of_one_is_the_image():
    full = torch.rand(2, 1, 5, 7)
    assert torch.equal(small(full, factor=1).pixels(), full)


def test_a_factor_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match="factor 9 leaves nothing of 8x8 pixels; choose 1 to 8"):
        stored_size(8, 8, 9)
