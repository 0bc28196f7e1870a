"""DownsampledImages (IDC): its published budgets, what is stored, interpolation, distillation."""

import pytest
import torch
from torch.nn import functional as F

from gsdd_lib.data.normalization import ChannelNormalization
from gsdd_lib.parameterizations.budget import Budget
from gsdd_lib.parameterizations.downsampled import (
    DownsampledImages,
    affordable_images,
    stored_size,
)

GRAY = ChannelNormalization((0.5,), (0.25,))


def made(images, **more):
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
    stored = made(torch.rand(images, *size), factor=factor)
    assert stored.bits <= budget.budget_bits_per_class
    if height % factor == 0:
        assert stored.bits == budget.budget_bits_per_class
        assert affordable_images(budget, factor=factor) == images
        assert affordable_images(budget, factor=factor, storage="uint4") == 8 * images


@pytest.mark.parametrize("size", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 128, 128)])
def test_every_size_of_the_paper(size):
    images = made(torch.rand(2, *size))
    assert images.render().shape == (2, *size)
    assert images.render(resolution=(40, 24)).shape == (2, size[0], 40, 24)


def test_stored_is_a_weighted_mean_and_rendered_its_interpolation():
    images = made(torch.tensor([[[[0.0, 0.0, 1.0, 1.0]] * 4]]))
    # A triangle two pixels wide each way; where it is cut off by the edge, the rest is rescaled.
    shares = torch.tensor([0.75, 0.75, 0.25])
    low = (shares[2] / shares.sum()).item()
    torch.testing.assert_close(images.packed[0, 0], torch.tensor([[low, 1 - low]] * 2))
    expected = F.interpolate(images.packed, (4, 4), mode="bilinear", align_corners=False)
    torch.testing.assert_close(images.pixels(), expected)


def test_other_resolutions_are_interpolated_from_what_is_stored():
    images = made(torch.rand(3, 3, 8, 8))
    assert torch.equal(images.pixels(resolution=(4, 4)), images.packed)
    expected = F.interpolate(images.packed, (16, 12), mode="bilinear", align_corners=False)
    torch.testing.assert_close(images.pixels(resolution=(16, 12)), expected)


def test_four_bits_are_rounded_before_they_are_interpolated():
    images = made(torch.rand(3, 1, 8, 8), storage="uint4")
    levels = images.pixels(resolution=(4, 4)) * 15
    torch.testing.assert_close(levels, levels.round())


def test_a_factor_of_one_is_the_image():
    full = torch.rand(2, 1, 5, 7)
    assert torch.equal(made(full, factor=1).pixels(), full)


def test_a_factor_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match="factor 9 leaves nothing of 8x8 pixels; choose 1 to 8"):
        stored_size(8, 8, 9)
