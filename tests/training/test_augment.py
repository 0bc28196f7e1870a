"""DSA: stored numbers, literal pixel-by-pixel versions, and which images share parameters."""

import math

import pytest
import torch

from gsdd_lib.core.errors import ConfigError
from gsdd_lib.core.rng import generator
from gsdd_lib.training.augment import TRANSFORMS, DsaParams, apply_dsa, sample_dsa

ALL = "color_crop_cutout_flip_scale_rotate"
KINDS = list(TRANSFORMS)


def draw(strategy=ALL, count=4, size=(8, 8), seed=0, mixed=False):
    return sample_dsa(strategy, count, size, generator=generator(seed, "dsa"), mixed=mixed)


def neutral(kind, count=1, size=(8, 8), **numbers):
    """Parameters that change nothing, but ``numbers``; a cutout of no pixels does not exist."""
    own = {"brightness": [0], "saturation": [1], "contrast": [1], "shift": [[0, 0]]}
    own |= {"cutout": [[0, 0]], "flip": [0], "scale": [[1, 1]], "angle": [0]} | numbers
    columns = [torch.tensor(value, dtype=torch.float32).view(1, -1) for value in own.values()]
    kinds = torch.full((count,), KINDS.index(kind))
    return DsaParams(size, kinds, torch.cat(columns, 1).repeat(count, 1))


def at(image, row, column):
    """The pixel [C], zero outside the image."""
    inside = 0 <= row < image.shape[1] and 0 <= column < image.shape[2]
    return image[:, row, column] if inside else torch.zeros(len(image), dtype=image.dtype)


def bilinear(image, x, y):
    """The image [C, H, W] at x, y in [-1, 1], with -1 and 1 the centers of the outer pixels."""
    column, row = (x + 1) / 2 * (image.shape[2] - 1), (y + 1) / 2 * (image.shape[1] - 1)
    left, top = math.floor(column), math.floor(row)
    return sum(
        at(image, top + i, left + j) * abs(1 - i - (row - top)) * abs(1 - j - (column - left))
        for i in (0, 1)
        for j in (0, 1)
    )


def resampled(image, matrix):
    (a, b), (c, d) = matrix
    _, height, width = image.shape
    out = torch.empty_like(image)
    for i in range(height):
        for j in range(width):
            x, y = 2 * j / (width - 1) - 1, 2 * i / (height - 1) - 1
            out[:, i, j] = bilinear(image, a * x + b * y, c * x + d * y)
    return out


def literal(image, params, n):
    """The transformation of one image [C, H, W] by draw n, as protocol and code describe it."""
    kind = KINDS[params.kind[n]]
    _, height, width = image.shape
    if kind == "color":
        image = image + params.brightness[n]
        gray = image.mean(0)
        image = (image - gray) * params.saturation[n] + gray
        return (image - image.mean()) * params.contrast[n] + image.mean()
    if kind == "flip":
        return image.flip(2) if params.flip[n] else image
    if kind == "scale":
        sx, sy = params.scale[n].tolist()
        return resampled(image, ((sx, 0), (0, sy)))
    if kind == "rotate":
        cos, sin = math.cos(params.angle[n]), math.sin(params.angle[n])
        return resampled(image, ((cos, -sin), (sin, cos)))
    out = image.clone()
    if kind == "crop":
        down, right = params.shift[n].tolist()
        for i in range(height):
            for j in range(width):
                out[:, i, j] = at(image, i + down, j + right)
        return out
    row, column = params.cutout[n].tolist()
    high, wide = int(height / 2 + 0.5), int(width / 2 + 0.5)
    for i in range(row - high // 2, row - high // 2 + high):
        for j in range(column - wide // 2, column - wide // 2 + wide):
            if 0 <= i < height and 0 <= j < width:
                out[:, i, j] = 0
    return out


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (7, 12)])
@pytest.mark.parametrize("kind", KINDS)
def test_each_transformation_is_the_literal_one(kind, size, channels):
    params = draw(kind, count=5, size=size)
    images = torch.randn(5, channels, *size, dtype=torch.float64)
    expected = torch.stack([literal(image, params, n) for n, image in enumerate(images)])
    torch.testing.assert_close(apply_dsa(images, params), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "cutout"])
def test_neutral_parameters_change_nothing(kind):
    images = torch.randn(3, 3, 8, 8)
    augmented = apply_dsa(images, neutral(kind))
    if kind in ("scale", "rotate"):  # bilinear weights of 1 and 0 up to rounding
        torch.testing.assert_close(augmented, images, atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(augmented, images)


def test_no_strategy_changes_nothing():
    images = torch.randn(4, 1, 8, 8)
    assert torch.equal(apply_dsa(images, draw("")), images)


NINE = [[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]
ONES = [[1.0] * 4] * 4
# The published code by hand, on one image and with these parameters.
PUBLISHED = {
    "color": (  # channels 0, 2 | 4, 2; + 0.25; halfway to 2.25, the gray; 1.5 times about 2.25
        [[[0.0, 2.0]], [[4.0, 2.0]]],
        {"brightness": [0.25], "saturation": [0.5], "contrast": [1.5]},
        [[[0.75, 2.25]], [[3.75, 2.25]]],
    ),
    "crop": ([NINE], {"shift": [[1, -1]]}, [[[0.0, 4, 5], [0, 7, 8], [0, 0, 0]]]),
    "cutout": (
        [ONES],
        {"cutout": [[1, 3]]},
        [[[1.0, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]],
    ),
    "flip": ([NINE], {"flip": [True]}, [[[3.0, 2, 1], [6, 5, 4], [9, 8, 7]]]),
    "scale": (  # columns at -0.2, 1, 2.2 and rows at 0.1, 1, 1.9; zero outside
        [NINE],
        {"scale": [[1.2, 0.9]]},
        [[[1.04, 2.3, 2.64], [3.2, 5, 4.8], [5.36, 7.7, 6.96]]],
    ),
    "rotate": (  # sine 9/41, cosine 40/41; the corners are sampled 8/41 outside the image
        [NINE],
        {"angle": [math.asin(9 / 41)]},
        [
            [
                [1683 / 1681, 94 / 41, 5049 / 1681],
                [138 / 41, 5, 272 / 41],
                [8481 / 1681, 316 / 41, 11847 / 1681],
            ]
        ],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_published_numbers(kind):
    image, parameters, expected = PUBLISHED[kind]
    image = torch.tensor([image])
    params = neutral(kind, size=tuple(image.shape[2:]), **parameters)
    torch.testing.assert_close(apply_dsa(image, params), torch.tensor([expected]))


@pytest.mark.parametrize(
    ("center", "area"), [((4, 4), 16), ((0, 0), 4), ((8, 8), 4), ((4, 0), 8), ((1, 4), 12)]
)
def test_area_of_the_cutout(center, area):
    params = neutral("cutout", cutout=[center])
    assert int((apply_dsa(torch.ones(1, 1, 8, 8), params) == 0).sum()) == area


def test_saturation_of_zero_is_gray_and_of_one_channel_nothing():
    params = neutral("color", 1, (1, 1), saturation=[0])
    assert (
        apply_dsa(torch.tensor([0.0, 3, 6]).view(1, 3, 1, 1), params).flatten().tolist()
        == [3.0] * 3
    )
    assert apply_dsa(torch.full((1, 1, 1, 1), 7.0), params).item() == 7.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_siamese_draw_is_shared_by_batches_of_any_size(kind):
    params = draw(kind, count=1)
    images = torch.randn(6, 2, 8, 8)
    augmented = apply_dsa(images, params)
    assert torch.equal(apply_dsa(images[:2], params), augmented[:2])
    assert torch.equal(apply_dsa(images[[3]], params), augmented[[3]])


def test_a_draw_per_image_is_of_one_kind_unless_mixed():
    one, many = draw(count=200), draw(count=200, mixed=True)
    assert len(one) == len(many) == 200
    assert len(one.kind.unique()) == 1 and len(one.angle.unique()) > 150
    assert many.kind.unique().tolist() == list(range(6))


def test_a_draw_per_class_serves_images_in_any_order():
    params = draw(count=10, mixed=True)
    assert len(params.kind.unique()) > 2
    labels = torch.randint(10, (25,))
    images = torch.randn(25, 3, 8, 8)
    augmented = apply_dsa(images, params, labels)
    for n in range(25):
        alone = apply_dsa(images[n : n + 1], params.select(labels[n : n + 1]))
        torch.testing.assert_close(augmented[n : n + 1], alone)


def test_draws_cover_their_ranges_and_no_more():
    params = draw(count=4000, size=(28, 32))
    assert params.shift.amin(0).tolist() == [-4, -4] and params.shift.amax(0).tolist() == [4, 4]
    assert params.cutout.amin(0).tolist() == [0, 0] and params.cutout.amax(0).tolist() == [28, 32]
    assert params.shift.dtype == params.cutout.dtype == torch.int64
    assert 0.45 < params.flip.float().mean() < 0.55
    for values, low, high in (
        (params.brightness, -0.5, 0.5),
        (params.saturation, 0, 2),
        (params.contrast, 0.5, 1.5),
        (params.scale, 1 / 1.2, 1.2),
        (params.angle, -math.pi / 12, math.pi / 12),
    ):
        slack = 0.01 * (high - low)
        assert low <= values.min() < low + slack and high - slack < values.max() <= high


def test_each_kind_is_drawn_about_equally_often():
    kinds = [int(draw(count=1, seed=seed).kind[0]) for seed in range(300)]
    counts = torch.bincount(torch.tensor(kinds), minlength=6)
    assert counts.min() > 25 and counts.sum() == 300


def test_equal_generators_give_equal_draws_and_the_global_one_is_left_alone():
    before = torch.get_rng_state()
    images = torch.linspace(0, 1, 4 * 64).view(4, 1, 8, 8)
    first, again = (apply_dsa(images, draw(mixed=True, seed=3)) for _ in range(2))
    other = apply_dsa(images, draw(mixed=True, seed=4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    params = draw(kind, count=2, size=(4, 4))
    images = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: apply_dsa(x, params), images)


def test_gradcheck_of_mixed_groups():
    params = draw(count=6, size=(4, 4), mixed=True, seed=1)
    assert len(params.kind.unique()) > 2
    images = torch.randn(5, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    groups = torch.tensor([5, 0, 2, 1, 0])
    assert torch.autograd.gradcheck(lambda x: apply_dsa(x, params, groups), images)


def test_no_images():
    groups = torch.empty(0, dtype=torch.int64)
    assert apply_dsa(torch.empty(0, 1, 8, 8), draw(mixed=True), groups).shape == (0, 1, 8, 8)


def test_unknown_augmentation():
    with pytest.raises(ConfigError, match="unknown augmentation 'colour', did you mean 'color'"):
        draw("colour_crop")


def test_images_of_another_size():
    with pytest.raises(ValueError, match="sampled for images of 8x8 pixels, these are 9x8"):
        apply_dsa(torch.zeros(4, 1, 9, 8), draw())


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (None, "4 sets of parameters for 3 images"),
        (
            torch.zeros(2, dtype=torch.int64),
            r"groups must be \[3\] in 0 to 3.* not \[2\]",
        ),
        (torch.tensor([0, 1, 4]), r"groups must be \[3\] in 0 to 3, .* in 0 to 4"),
    ],
)
def test_draws_that_fit_no_images(groups, message):
    with pytest.raises(ValueError, match=message):
        apply_dsa(torch.zeros(3, 1, 8, 8), draw(), groups)
