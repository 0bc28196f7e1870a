"""The oracle against numbers worked out by hand, and the published kernel's support rule."""

import math
import sys

import pytest
import torch
from splat_cases import scene

from gsdd_lib.splatting.agreement import gsplat_images
from gsdd_lib.splatting.reference import (
    covariance_matrix,
    pixel_center,
    published_mask,
    sample_grid,
    splat_reference,
)
from gsdd_lib.splatting.splat import splat

PLAIN = {"prefilter": False, "supersample": False}


def gaussian(
    x: float,
    y: float,
    cholesky: tuple[float, float, float],
    colors: tuple[float, ...] = (1.0,),
    opacity: float = 1.0,
    *,
    size: tuple[int, int],
) -> torch.Tensor:
    """One packed row ``[1, 1, R]`` with its center at the pixel coordinates (x, y)."""
    height, width = size
    row = [2 * x / width - 1, 2 * y / height - 1, *cholesky, *colors, opacity]
    return torch.tensor([[row]], dtype=torch.float64)


def floored(variance: float) -> float:
    """The Cholesky entry that gives ``variance`` once 1/256 is added."""
    return math.sqrt(variance - 1 / 256)


# ---------------------------------------------------------------------------- values worked by hand


def test_sigma_counts_in_squared_pixels_from_the_pixels_center():
    params = gaussian(2.5, 1.5, (floored(1), 0, floored(2)), size=(4, 6))
    image = splat_reference(params, 4, 6, **PLAIN)[0, 0]
    assert image[1, 2] == pytest.approx(1)
    assert image[1, 3] == pytest.approx(math.exp(-1 / 2))  # one pixel right: 1 / (2 * 1)
    assert image[2, 2] == pytest.approx(math.exp(-1 / 4))  # one pixel down: 1 / (2 * 2)
    assert image[3, 0] == pytest.approx(math.exp(-2 - 1))  # two left, two down


def test_a_tilted_gaussian():
    # L = [[1, 0], [1, 1]] gives L L^T = [[1, 1], [1, 2]]; with the pre-filter's 1/12 added,
    # Sigma = [[13, 12], [12, 25]] / 12, its inverse [[25, -12], [-12, 13]] * 12 / 181
    params = gaussian(4.5, 4.5, (1, 1, 1), size=(9, 9))
    image = splat_reference(params, 9, 9, supersample=False)[0, 0]
    assert image[5, 5] == pytest.approx(math.exp(-0.5 * (25 - 24 + 13) * 12 / 181))  # right, down
    assert image[3, 5] == pytest.approx(math.exp(-0.5 * (25 + 24 + 13) * 12 / 181))  # right, up


def test_a_pixel_is_the_mean_of_four_samples():
    params = gaussian(2.0, 2.0, (floored(1), 0, floored(1)), size=(4, 4))
    image = splat_reference(params, 4, 4, prefilter=False)[0, 0]
    near, far = math.exp(-(0.25**2) / 2), math.exp(-(0.75**2) / 2)
    assert image[1, 1] == pytest.approx((near * near + 2 * near * far + far * far) / 4)


def test_colors_and_opacities_add_up():
    first = gaussian(1.5, 0.5, (3, 0, 3), (1.0, -2.0, 0.5), 0.5, size=(1, 3))
    second = gaussian(1.5, 0.5, (1, 0, 1), (0.25, 1.0, 8.0), -0.25, size=(1, 3))
    image = splat_reference(torch.cat([first, second], dim=1), 1, 3, **PLAIN)
    assert image[0, :, 0, 1].tolist() == pytest.approx([0.4375, -1.25, -1.75])


def test_saturation_clamps_the_weight_and_stops_its_gradient():
    params = gaussian(0.5, 0.5, (5, 0, 5), (2.0,), 3.0, size=(1, 1)).requires_grad_()
    clamped = splat_reference(params, 1, 1, **PLAIN)
    free = splat_reference(params, 1, 1, saturate=False, **PLAIN)
    assert clamped.item() == pytest.approx(2) and free.item() == pytest.approx(6)
    (gradient,) = torch.autograd.grad(clamped, params)
    assert gradient[0, 0].tolist() == pytest.approx([0, 0, 0, 0, 0, 1, 0])  # the color's alone
    (gradient,) = torch.autograd.grad(free, params)
    assert gradient[0, 0, 5:].tolist() == pytest.approx([3, 2])


@pytest.mark.parametrize(("opacity", "radius"), [(0.01, 3.3290), (1, 3.3290), (-10, 3.9608)])
def test_the_support_ends_where_its_rule_says(opacity, radius):
    params = gaussian(0.5, 0.5, (floored(1), 0, floored(1)), (1.0,), opacity, size=(1, 9))
    image = splat_reference(params, 1, 9, **PLAIN)[0, 0, 0]
    assert [bool(value != 0) for value in image] == [offset <= radius for offset in range(9)]
    params = gaussian(0.5, 0.5, (floored(100), 0, 1), (1.0,), opacity, size=(1, 90))
    image = splat_reference(params, 1, 90, **PLAIN)[0, 0, 0]
    assert int((image != 0).sum()) == 1 + math.floor(10 * radius)


def test_positions_and_samples():
    corners = torch.tensor([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]])
    assert pixel_center(corners, 4, 6).tolist() == [[0, 0], [3, 2], [6, 4]]
    assert sample_grid(1, 2, 1).tolist() == [[0.5, 0.5], [1.5, 0.5]]
    second_pixel = [[1.25, 0.25], [1.75, 0.25], [1.25, 0.75], [1.75, 0.75]]
    assert sample_grid(1, 2, 2)[4:].tolist() == second_pixel


def test_the_covariance_and_its_two_added_variances():
    cholesky = torch.tensor([2.0, 3.0, 1.0], dtype=torch.float64)
    product = torch.tensor([[4.0, 6.0], [6.0, 10.0]], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    assert torch.allclose(covariance_matrix(cholesky), product + eye / 12)
    assert torch.allclose(covariance_matrix(cholesky, prefilter=False), product + eye / 256)


def test_a_batch_too_large_at_once_goes_image_by_image(monkeypatch):
    params = torch.rand(5, 3, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = splat_reference(params, 6, 7)
    monkeypatch.setattr("gsdd_lib.splatting.reference.MAX_ELEMENTS", 1)
    assert torch.allclose(splat_reference(params, 6, 7), whole, rtol=0, atol=1e-14)


# ------------------------------------------------------------------ the published kernel's rule


def test_the_published_rule_drops_what_comes_after_256_in_a_tile():
    row = gaussian(24.0, 8.0, (2, 0, 2), (1.0,), 1.0, size=(16, 32))
    image = splat_reference(row.repeat(1, 300, 1), 16, 32, published_support=True)
    one = splat_reference(row, 16, 32)
    assert torch.allclose(image, 256 * one)  # and all 300 of them by the rule without the fault
    assert torch.allclose(splat_reference(row.repeat(1, 300, 1), 16, 32), 300 * one)


def test_the_published_limit_counts_every_tile_for_itself():
    left = gaussian(4.0, 8.0, (1, 0, 1), size=(16, 32))
    right = gaussian(28.0, 8.0, (1, 0, 1), size=(16, 32))
    params = torch.cat([left.repeat(1, 300, 1), right], dim=1)
    image = splat_reference(params, 16, 32, published_support=True)
    assert torch.allclose(image[..., 16:], splat_reference(right, 16, 32)[..., 16:])


def test_the_published_rule_cuts_at_tiles():
    # Deviation 2: the square reaches 6 pixels to x = 15.9, inside the first tile. The support
    # reaches 2 * 3.329 = 6.658, to the center of pixel 16 (6.6 away, weight exp(-5.445) > 1/255).
    params = gaussian(9.9, 8.5, (floored(4), 0, floored(4)), size=(16, 32))
    ours = splat_reference(params, 16, 32, **PLAIN)[0, 0]
    published = splat_reference(params, 16, 32, **PLAIN, published_support=True)[0, 0]
    assert ours[8, 16] == pytest.approx(math.exp(-5.445)) and published[8, 16] == 0
    assert torch.equal(published[:, :16], ours[:, :16])


def test_the_published_rule_loses_faint_gaussians():
    params = gaussian(4.0, 4.0, (2, 0, 2), (1.0,), 1 / 300, size=(8, 8)).requires_grad_()
    published = splat_reference(params, 8, 8, published_support=True)
    (gradient,) = torch.autograd.grad(published.sum(), params)
    assert not published.any() and not gradient.any()
    (gradient,) = torch.autograd.grad(splat_reference(params, 8, 8).sum(), params)
    assert gradient[0, 0, 6] > 1  # ours stays alive and may grow again


def test_the_published_mask_by_hand():
    center = torch.tensor([[[1.0, 0.5], [6.0, 0.5]]])
    covariance = torch.eye(2).expand(1, 2, 2, 2) / 9  # radius ceil(3 * 1/3) = 1, tiles of 4 pixels
    weight = torch.ones(1, 2, 8)
    weight[0, 0, 2] = 1 / 256
    mask = published_mask(weight, center, covariance, 1, 8, tile=4)
    # the first square spans x = 0 to 2: the first tile, without the faint sample; the second
    # spans 5 to 7: the second tile
    assert mask[0].int().tolist() == [[1, 1, 0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1]]


# ----------------------------------------------------- single Gaussians against gsplat's torch code


@pytest.mark.parametrize("render", [splat, splat_reference])
@pytest.mark.parametrize("prefilter", [True, False])
def test_the_footprint_of_a_single_gaussian_is_gsplats(render, prefilter):
    pytest.importorskip("gsplat")
    before = sys.modules.get("nerfacc")
    params = scene(
        torch.Generator().manual_seed(0), 24, 1, 19, 26, channels=1, size=0.3, spread=1.1
    )
    params[:3, 0, 2:5] = torch.tensor([[0.0, 0.0, 0.0], [9.0, 9.0, 0.0], [0.2, -7.0, 0.1]])
    params[..., -1] = 0.9  # gsplat clamps at 0.999
    params.requires_grad_()
    switches = {"prefilter": prefilter, "supersample": False}
    theirs = gsplat_images(params, 19, 26, **switches)
    ours = render(params, 19, 26, **switches)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12) and (ours != 0).sum() > 500

    cotangent = torch.randn(ours.shape, dtype=ours.dtype)
    (v_ours,) = torch.autograd.grad(ours, params, cotangent)
    (v_theirs,) = torch.autograd.grad(theirs, params, cotangent)
    assert torch.allclose(v_ours, v_theirs, rtol=1e-8, atol=1e-8)
    assert "gsplat.cuda._backend" not in sys.modules  # where importing it would compile
    assert sys.modules.get("nerfacc") is before
