"""FrequencyImages (FreD): its published budgets, an exact transform, the mask, resolutions."""

import math

import pytest
import torch
from scipy.fft import dctn

from gsdd_lib.data.normalization import ChannelNormalization
from gsdd_lib.parameterizations.budget import Budget
from gsdd_lib.parameterizations.frequency import (
    FrequencyImages,
    affordable_images,
    cosines,
    dct,
    inverse_dct,
    varying_most,
)


def made(images, frequencies, labels=None, **more):
    labels = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels
    channels = images.shape[1]
    normalization = ChannelNormalization((0.5,) * channels, (0.25,) * channels)
    more = {"frequencies": frequencies, "normalization": normalization, **more}
    return FrequencyImages.init_from(images, labels, **more)


@pytest.mark.parametrize(
    ("size", "frequencies", "ipc", "images"),
    [  # its code: floor(IPC * H * W / K) images per class, the mask not counted
        ((3, 32, 32), 64, 1, 16),
        ((3, 32, 32), 64, 2, 32),
        ((3, 128, 128), 2048, 1, 8),
        ((1, 28, 28), 98, 1, 8),
        ((3, 64, 64), 256, 1, 16),
    ],
)
def test_published_budgets(size, frequencies, ipc, images):
    channels, height, width = size
    budget = Budget(ipc, 1, 1, channels, height, width)
    stored = made(torch.rand(images, *size), frequencies)
    mask = height * width
    assert stored.bits == budget.budget_bits_per_class + mask
    assert affordable_images(budget, frequencies) == images - 1  # where the mask is counted
    assert affordable_images(budget, frequencies, "bf16") == 2 * images - 1


@pytest.mark.parametrize("size", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 128, 128)])
def test_all_frequencies_are_the_image(size):
    images = torch.rand(2, *size)
    rendered = made(images, size[1] * size[2]).pixels()
    torch.testing.assert_close(rendered, images, atol=2e-5, rtol=0)


def test_the_transform_is_the_orthonormal_one_but_for_a_factor():
    images = torch.rand(2, 5, 7, dtype=torch.float64)
    expected = dctn(images.numpy(), axes=(1, 2), norm="ortho") / math.sqrt(35)
    torch.testing.assert_close(dct(images), torch.from_numpy(expected))
    wave = cosines(6, 6)
    torch.testing.assert_close(wave @ wave.T / 6, torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(dct(images)[:, 0, 0], images.mean((1, 2)))


def test_the_mask_takes_what_varies_most_class_by_class():
    spectrum = torch.zeros(2, 6, 4, 4)
    spectrum[0, :, 0, 0] = torch.tensor([1.0, 2, 3, 1, 2, 3])
    spectrum[0, :, 2, 1] = torch.tensor([3.0, -3, 3, -3, 3, -3])
    spectrum[0, :, 3, 3] = 50.0  # large, but the same in all
    spectrum[1, :, 1, 3] = torch.tensor([0.0, 1, 2, 3, 4, 5])
    spectrum[1, :, 0, 2] = torch.tensor([0.0, 1, 0, 1, 0, 1])
    images = inverse_dct(spectrum.flatten(0, 1), (4, 4))[:, None].repeat(1, 3, 1, 1)
    labels = torch.tensor([0] * 6 + [1] * 6)
    assert varying_most(images, labels, 2, 2).tolist() == [[0, 9], [2, 7]]
    stored = made(images, 2, labels)
    assert stored.coefficients.shape == (12, 3, 2)
    torch.testing.assert_close(stored.coefficients[7, 0, 1], spectrum[1, 1, 1, 3])


def test_a_class_of_one_image_keeps_its_low_frequencies():
    assert varying_most(torch.rand(1, 1, 4, 4), torch.tensor([0]), 1, 3).tolist() == [[0, 1, 4]]


def test_another_resolution_samples_the_same_waves():
    spectrum = torch.zeros(1, 1, 8, 8)
    spectrum[0, 0, 2, 1] = 0.3
    small, large = (inverse_dct(spectrum, (size, size)) for size in (8, 24))
    torch.testing.assert_close(large[0, 0, 1::3, 1::3], small[0, 0])  # the same points
    stored = made(0.5 + small, 64)
    torch.testing.assert_close(stored.pixels(resolution=(24, 24)), 0.5 + large, atol=1e-5, rtol=0)
    assert stored.pixels(resolution=(4, 5)).shape == (1, 1, 4, 5)


def test_bf16_is_what_is_rendered():
    images = torch.rand(2, 1, 4, 4)
    exact, rounded = made(images, 16), made(images, 16, storage="bf16")
    assert rounded.bits == exact.bits - 2 * 16 * 16
    by_hand = made(images, 16)
    by_hand.coefficients.data = by_hand.coefficients.data.bfloat16().float()
    assert torch.equal(rounded.pixels(), by_hand.pixels())


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="17 frequencies of 16 pixels; choose 1 to 16"):
        made(torch.rand(2, 1, 4, 4), 17)
    with pytest.raises(ValueError, match="unknown storage 'uint8'; choose one of bf16, fp32"):
        made(torch.rand(2, 1, 4, 4), 3, storage="uint8")
