"""The codec: exact round trips, rounding that training sees, length, order and signs for free."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import functional_call

from gsdd_lib.config import CodecConfig
from gsdd_lib.data.normalization import ChannelNormalization
from gsdd_lib.parameterizations.codec import (
    MAX_PER_BYTE,
    Codec,
    LabelCodec,
    coordinates_at,
    decode,
    decode_labels,
    encode,
    encode_labels,
    places_along,
)
from gsdd_lib.parameterizations.entropy import DamagedCodeError
from gsdd_lib.parameterizations.gaussian import GaussianImages
from gsdd_lib.splatting.splat import splat


def gaussians(images=6, points=9, channels=3, opacity=True, seed=0):
    """Packed rows with Cholesky factors of both signs and correlated colors."""
    random = torch.Generator().manual_seed(seed)
    packed = torch.randn(images, points, 5 + channels + opacity, generator=random)
    packed[..., :2] = packed[..., :2].tanh()
    packed[..., 2:5] *= 2
    packed[..., 6 : 5 + channels] = packed[..., 5:6] + 0.2 * packed[..., 6 : 5 + channels]
    return packed


def fitted(packed, channels=3, **bits):
    return Codec.fit(packed, CodecConfig(**bits), channels=channels)


def rows(ints):
    """The Gaussians of each image as a sorted list, to compare without their order."""
    return [sorted(image) for image in ints.tolist()]


@given(
    st.integers(0, 4),
    st.integers(0, 7),
    st.integers(1, 4),
    st.booleans(),
    st.integers(1, 9),
    st.integers(1, 8),
    st.randoms(use_true_random=False),
)
def test_round_trip(images, points, channels, opacity, means_bits, bits, random):
    grid = [means_bits] * 2 + [bits] * (3 + channels + opacity)
    codec = Codec(grid, torch.zeros(len(grid)), torch.full((len(grid),), 0.25), channels=channels)
    ints = torch.tensor(
        [[[random.randrange(2**b) for b in grid] for _ in range(points)] for _ in range(images)],
        dtype=torch.int64,
    ).reshape(images, points, len(grid))
    content = encode(ints, codec)
    back, again = decode(content)
    assert back.shape == ints.shape and rows(back) == rows(ints)
    assert again.bits == codec.bits and again.channels == channels
    assert encode(back, again) == content  # canonical: what was read is written the same


def test_the_grids_come_back_exactly():
    packed = gaussians()
    codec = fitted(packed)
    again = decode(encode(codec.quantize(packed), codec))[1]
    assert torch.equal(again.offset, codec.offset) and torch.equal(again.step, codec.step)


def test_equal_integers_give_equal_bytes_in_any_order():
    packed = gaussians()
    codec = fitted(packed)
    ints = codec.quantize(packed)
    shuffled = ints[:, torch.randperm(ints.shape[1])]
    assert encode(ints, codec) == encode(shuffled, codec) == encode(ints.clone(), codec)


def test_a_grid_by_hand():
    codec = Codec([1, 1, 2, 2, 2, 3], torch.zeros(6), torch.full((6,), 0.5), channels=1)
    sizes = 2 * torch.tensor([0.0, 0.5, 1.0, 1.5]).sinh()  # in pixels: 0, 1.04, 2.35, 4.26
    packed = torch.tensor([[[0.3, 9.0, -1.5, 0.9, -2.2, -4.0]]])
    ints = codec.quantize(packed)  # both columns of the factor change their signs
    assert ints.tolist() == [[[1, 1, 1, 0, 2, 0]]]
    expected = torch.tensor([0.5, 0.5, sizes[1], 0, sizes[2], 0])
    torch.testing.assert_close(codec.dequantize(ints)[0, 0], expected)
    signs = torch.tensor([1, 1, -1, -1, -1, 1])
    torch.testing.assert_close(codec.round_packed(packed)[0, 0], signs * expected)
    codec.clip_(packed)
    expected = torch.tensor([0.3, 0.5, -1.5, 0, -2.2, 0])
    torch.testing.assert_close(packed[0, 0], expected)


def test_colors_are_turned_by_a_rotation():
    codec = Codec([6] * 2 + [5] * 6, torch.full((8,), -2.0), torch.full((8,), 0.125), channels=3)
    packed = torch.zeros(1, 1, 8)
    packed[..., 5:] = torch.tensor([0.5, 0.5, 0.5])
    assert (codec.quantize(packed) - 16).tolist() == [[[0, 0, 0, 0, 0, 7, 0, 0]]]  # 0.5 sqrt(3)
    packed[..., 5:] = torch.tensor([0.5, 0, -0.5])
    assert (codec.quantize(packed) - 16).tolist() == [[[0, 0, 0, 0, 0, 0, 6, 0]]]  # 0.5 sqrt(2)
    torch.testing.assert_close(codec.dequantize(codec.quantize(packed)), packed, atol=0.05, rtol=0)


def test_fitted_grids_reach_from_quantile_to_quantile_and_positions_stay_inside():
    packed = gaussians(40, 20, channels=1)
    codec = fitted(packed, channels=1, means_bits=5, tail=0.1)
    assert codec.offset[0] == -1 + 1 / 32 and codec.step[1] == 2 / 32
    colors = packed[..., 5].flatten().sort().values
    assert codec.offset[5] == colors[80]
    torch.testing.assert_close(codec.offset[5] + 31 * codec.step[5], colors[719])
    sizes = packed[..., 2].abs().flatten().sort().values
    torch.testing.assert_close(codec.offset[2].sinh() * 2, sizes[80])
    assert codec.dequantize(codec.quantize(packed))[..., :2].abs().max() < 1


def test_rounding_is_at_most_half_a_step_and_repeats_itself():
    packed = gaussians(channels=2)  # colors are not turned
    codec = fitted(packed, channels=2, tail=0.0)
    stored = codec.round_packed(packed)
    widest = codec.step.expand(packed.shape).clone()
    widest[..., 2:5] *= 1.2 * (4 + packed[..., 2:5] ** 2).sqrt()  # the slope of 2 sinh
    assert ((stored - packed).abs() <= 0.501 * widest).all()
    assert torch.equal(codec.round_packed(stored), stored)


def test_training_sees_the_image_that_is_stored():
    packed = gaussians()
    codec = fitted(packed)
    trained = splat(codec.round_packed(packed), 16, 16)
    stored, codec = decode(encode(codec.quantize(packed), codec))
    torch.testing.assert_close(splat(codec.dequantize(stored), 16, 16), trained)


def test_the_gradient_goes_straight_through():
    packed = gaussians().requires_grad_()
    codec = fitted(packed, means_bits=2, color_bits=1)
    weights = torch.randn_like(packed)
    (codec.round_packed(packed) * weights).sum().backward()
    assert torch.equal(packed.grad, weights)
    assert not list(codec.parameters())


def test_length_is_the_entropy_of_the_numbers_and_less_for_positions():
    images, points = 200, 20
    packed = gaussians(images, points, channels=1)
    packed[..., :2] = 2 * torch.rand(images, points, 2) - 1
    codec = fitted(packed, channels=1)
    ints = codec.quantize(packed)
    content = encode(ints, codec)
    others = 0
    for column in range(2, 7):
        shares = np.bincount(ints[..., column].flatten()) / (images * points)
        others -= (shares[shares > 0] * np.log2(shares[shares > 0])).sum() * images * points
    positions = images * (12 * points - math.lgamma(points + 1) / math.log(2))
    header = 9 + 9 * 7 + 4 + 5 * 34 + 48 + 5 * content[9 + 9 * 7]
    assert len(content) < 1.03 * (others + positions) / 8 + header
    assert len(content) < 0.95 * sum(codec.bits) * images * points / 8


def test_what_channels_share_is_paid_once():
    gray, color = gaussians(100, 20, channels=1), gaussians(100, 20, channels=3)
    color[..., 5:8] = gray[..., 5:6]
    color[..., 8] = gray[..., 6]
    color[..., :5] = gray[..., :5]
    sizes = [
        len(encode(codec.quantize(packed), codec))
        for packed, codec in ((gray, fitted(gray, channels=1)), (color, fitted(color)))
    ]
    assert sizes[1] - sizes[0] < 2 * (9 + 3) + 20  # grids and histograms of constants, no more


def test_many_equal_gaussians_cannot_ask_for_more_memory_than_their_bytes_allow():
    codec = Codec([6] * 2 + [4] * 5, torch.zeros(7), torch.ones(7), channels=1)
    ints = torch.zeros(2_000, 50, 7, dtype=torch.int64)
    content = encode(ints, codec)
    assert len(content) >= ints.numel() // MAX_PER_BYTE
    assert torch.equal(decode(content)[0], ints)
    cut = content[: len(content) // 2]
    with pytest.raises(DamagedCodeError, match="cut off"):
        decode(cut)


@pytest.mark.parametrize("opacity", [True, False])
def test_gaussians_with_a_codec_are_rendered_and_counted_as_stored(opacity):
    packed, labels = gaussians(opacity=opacity), torch.arange(6)
    more = {"resolution": (16, 16), "opacity": opacity}
    more["normalization"] = ChannelNormalization((0.5,) * 3, (0.2,) * 3)
    images = GaussianImages(packed.clone(), labels, **more)
    before = {name: value.detach().clone() for name, value in images.named_parameters()}
    images.codec = fitted(packed)
    content = encode(images.codec.quantize(packed), images.codec)
    assert images.bits == 8 * len(content)
    ints, codec = decode(content)
    again = GaussianImages(codec.dequantize(ints), labels, codec=codec, **more)
    torch.testing.assert_close(again.pixels(), images.pixels())
    assert again.bits == images.bits
    torch.testing.assert_close(functional_call(images, before, ()), images.render())
    images.render().square().sum().backward()
    assert [name for name, _ in images.named_parameters()] == ["packed"]
    with torch.no_grad():
        images.packed.mul_(100)
    images.constrain_()
    assert torch.equal(images.codec.quantize(images.packed), images.codec.quantize(100 * packed))
    once = images.packed.detach().clone()
    images.constrain_()
    torch.testing.assert_close(images.packed.detach(), once)


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(content):
    with pytest.raises(DamagedCodeError):
        decode(content)


@given(st.data())
def test_changed_bytes_are_refused_or_give_numbers_in_their_grids(data):
    packed = gaussians(3, 4)
    codec = fitted(packed)
    content = bytearray(encode(codec.quantize(packed), codec))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        ints, codec = decode(bytes(content))
    except DamagedCodeError:
        return
    assert (ints >= 0).all() and (ints <= codec.top).all()
    assert torch.isfinite(codec.dequantize(ints)).all()


def test_every_truncation_is_refused():
    packed = gaussians(3, 4)
    codec = fitted(packed)
    content = encode(codec.quantize(packed), codec)
    for size in range(len(content)):
        with pytest.raises(DamagedCodeError):
            decode(content[:size])


@pytest.mark.parametrize(
    "bits", [[6, 5, 5, 5, 5, 5, 5], [10, 10, 5, 5, 5, 5, 5], [6, 6, 5, 5, 0, 5, 5], [6, 6, 5]]
)
def test_unusable_grids_are_refused(bits):
    with pytest.raises(ValueError, match="bits"):
        Codec(bits, torch.zeros(7), torch.ones(7), channels=1)


def test_integers_outside_their_grids_are_refused():
    codec = Codec([6] * 2 + [4] * 5, torch.zeros(7), torch.ones(7), channels=1)
    with pytest.raises(ValueError, match="must be below"):
        encode(torch.full((1, 1, 7), 16), codec)


def test_the_morton_curve_of_a_square_of_four_by_four():
    coordinates = np.stack(np.meshgrid(range(4), range(4)), -1)  # rows of y, columns of x
    assert places_along(coordinates, 2).tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]


def test_along_the_morton_curve_and_back():
    places = np.arange(4**5).reshape(8, -1)
    assert np.array_equal(places_along(coordinates_at(places, 5), 5), places)


# Learned labels


def test_levels_of_labels_by_hand():
    codec = LabelCodec(0.5, bits=2)
    logits = torch.tensor([[3.0, 2.4, -7.0], [0.0, -0.2, -0.8]])
    levels = codec.quantize(logits)
    assert levels.tolist() == [[0, 1, 3], [0, 0, 2]]
    assert codec.dequantize(levels).tolist() == [[0, -0.5, -1.5], [0, 0, -1]]


@given(st.integers(0, 5), st.integers(1, 6), st.integers(1, 8), st.randoms(use_true_random=False))
def test_round_trip_of_labels(images, classes, bits, random):
    levels = torch.tensor([random.randrange(2**bits) for _ in range(images * classes)])
    levels = levels.long().reshape(images, classes)
    codec = LabelCodec(0.3, bits)
    content = encode_labels(levels, codec)
    back, again = decode_labels(content)
    assert torch.equal(back, levels) and encode_labels(back, again) == content
    assert (again.step, again.bits) == (codec.step, bits)


def test_four_bits_lose_little_and_cost_less_than_40_bits_an_image():
    logits = 3 * torch.randn(330, 10)
    logits[torch.arange(330), torch.arange(330) % 10] += 8
    codec = LabelCodec.fit(logits)
    difference = codec.round(logits).softmax(1) - logits.softmax(1)
    assert difference.abs().max() < 0.08 and difference.abs().mean() < 3e-3
    assert 8 * len(encode_labels(codec.quantize(logits), codec)) < 330 * 40 + 8 * 60


def test_the_gradient_of_labels_goes_straight_through():
    logits = torch.randn(4, 3, requires_grad=True)
    weights = torch.randn(4, 3)
    (LabelCodec.fit(logits).round(logits) * weights).sum().backward()
    assert torch.equal(logits.grad, weights)


def test_equal_logits_have_a_grid():
    codec = LabelCodec.fit(torch.zeros(2, 3))
    assert torch.equal(codec.round(torch.zeros(2, 3)), torch.zeros(2, 3))


@given(st.binary(max_size=120))
def test_random_bytes_are_no_labels(content):
    with pytest.raises(DamagedCodeError):
        decode_labels(content)


@given(st.integers(0, 10**6), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_gives_levels_in_their_grid(position, value):
    codec = LabelCodec(0.4)
    content = bytearray(encode_labels(torch.arange(60).reshape(6, 10) % 16, codec))
    content[position % len(content)] = value
    try:
        levels, codec = decode_labels(bytes(content))
    except DamagedCodeError:
        return
    assert (levels >= 0).all() and (levels < 2**codec.bits).all()


def test_unusable_grids_of_labels_are_refused():
    for step, bits in ((0.0, 4), (float("nan"), 4), (0.5, 0), (0.5, 9)):
        with pytest.raises(ValueError, match="1 to 8 bits"):
            LabelCodec(step, bits)
