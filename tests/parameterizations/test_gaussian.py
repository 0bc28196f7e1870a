"""GaussianImages: views, rounding, spaces, resolution, boundary."""

import math

import pytest
import torch

from gsdd_lib.core.rng import generator
from gsdd_lib.data.normalization import ChannelNormalization
from gsdd_lib.parameterizations.gaussian import MAX_POSITION, GaussianImages

NORMALIZATION = ChannelNormalization((0.3,) * 3, (0.5,) * 3)


def make(count: int = 3, points: int = 5, channels: int = 3, **settings) -> GaussianImages:
    draw = generator(0, "test")
    packed = torch.randn(count, points, 6 + channels, generator=draw)
    packed[..., :2] = packed[..., :2].tanh()
    settings = {
        "resolution": (12, 16),
        "normalization": ChannelNormalization((0.3,) * channels, (0.5,) * channels),
    } | settings
    if not settings.get("opacity", True):
        packed = packed[..., :-1]
    return GaussianImages(packed, torch.arange(count), **settings)


def test_views_cover_the_row_in_order() -> None:
    images = make()
    parts = [images.means, images.cholesky, images.colors, images.opacities[..., None]]
    assert torch.equal(torch.cat(parts, dim=-1), images.packed)
    assert (images.points, images.channels, len(images)) == (5, 3, 3)


def test_views_share_memory_with_the_packed_tensor() -> None:
    images = make()
    with torch.no_grad():
        images.means.zero_()
    assert images.packed[..., :2].abs().max() == 0


def test_without_opacity_the_row_is_shorter() -> None:
    images = make(opacity=False)
    assert images.packed.shape[-1] == 8 and images.opacities is None
    assert images.render().shape == (3, 3, 12, 16)


def test_forward_uses_bf16_and_the_gradient_goes_straight_through() -> None:
    images = make()
    rounded = make()
    with torch.no_grad():
        rounded.packed.copy_(images.packed.bfloat16().float())
    assert torch.equal(images.render(), rounded.render())
    images.render().sum().backward()
    rounded.render().sum().backward()
    assert torch.equal(images.packed.grad, rounded.packed.grad)  # not rounded a second time
    assert not torch.equal(images.packed.grad, images.packed.grad.bfloat16().float())


def test_without_storage_rounding_the_masters_render() -> None:
    images = make(store_bf16=False)
    assert not torch.equal(images.render(), make().render())


def test_unit_space_is_black_where_no_gaussian_is() -> None:
    images = make()
    with torch.no_grad():
        images.colors.zero_()
    assert torch.equal(images.pixels(), torch.zeros(3, 3, 12, 16))
    assert torch.allclose(images.render(), torch.full((3, 3, 12, 16), -0.3 / 0.5))


def test_normalized_space_has_the_mean_color_where_no_gaussian_is() -> None:
    images = make(space="normalized")
    with torch.no_grad():
        images.colors.zero_()
    assert images.render().abs().max() == 0
    assert torch.allclose(images.pixels(), torch.full((3, 3, 12, 16), 0.3))


def test_index_selects_images() -> None:
    images = make()
    assert torch.equal(images.render(torch.tensor([2, 0])), images.render()[[2, 0]])


def test_twice_the_resolution_shows_the_same_picture() -> None:
    images = make(store_bf16=False)
    with torch.no_grad():
        images.cholesky.copy_(torch.tensor([3.0, 0.5, 2.5]))
    small = images.render()
    large = images.render(resolution=(24, 32))
    assert large.shape == (3, 3, 24, 32)
    averaged = torch.nn.functional.avg_pool2d(large, 2)
    assert (averaged - small).abs().max() < 0.03 * small.abs().max()


def test_penalty_by_hand() -> None:
    images = make(count=1, points=2)
    with torch.no_grad():
        images.means.copy_(torch.tensor([[[0.5, 0.0], [0.0, -0.6]]]))
    expected = -(math.log(1 - 0.25) + math.log(1 - 0.36)) / 2
    assert images.penalty().item() == pytest.approx(expected, rel=1e-6)


def test_penalty_is_finite_on_the_border_and_pulls_inwards() -> None:
    images = make(count=1, points=1)
    with torch.no_grad():
        images.means.copy_(torch.tensor([[[0.99, -0.99]]]))
    images.penalty().backward()
    u, v = images.packed.grad[0, 0, :2]
    assert u > 0 > v
    with torch.no_grad():
        images.means.fill_(1)
    assert torch.isfinite(images.penalty())


def test_constrain_clips_to_a_position_that_bf16_keeps_inside() -> None:
    images = make()
    with torch.no_grad():
        images.means.fill_(7)
    images.constrain_()
    assert images.means.max() == MAX_POSITION
    assert images.means.bfloat16().max() < 1


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        GaussianImages(
            torch.zeros(2, 3, 9), torch.zeros(5), resolution=(8, 8), normalization=NORMALIZATION
        )
