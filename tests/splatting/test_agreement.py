"""The checks of notebook 01, by hand and by breaking what they should notice."""

import math

import pytest
import torch
from splat_cases import scene

from gsdd_lib.splatting.agreement import (
    agreement,
    attributes,
    decided_pixels,
    exact_pixels,
    fullest_tile,
    gsplat_images,
    gsplat_scene,
    image_and_gradient,
    keep_light,
)
from gsdd_lib.splatting.reference import (
    SUPPORT,
    covariance_matrix,
    pixel_center,
    splat_reference,
)

HEIGHT, WIDTH = 11, 14


@pytest.fixture
def params():
    generator = torch.Generator().manual_seed(3)
    made = scene(generator, 2, 5, HEIGHT, WIDTH)
    made[..., -1] = made[..., -1].clamp(max=0.9)  # where gsplat does not clamp
    return made


def one_gaussian(size: float, opacity: float = 1.0, x: float = 8.0, y: float = 8.0) -> torch.Tensor:
    """A round Gaussian at pixel coordinates (x, y) of a 16 x 16 image."""
    row = [x / 8 - 1, y / 8 - 1, size, 0, size, 1, opacity]
    return torch.tensor([[row]], dtype=torch.float64)


@pytest.mark.parametrize("size", [0.1, 0.5, 2.0])
def test_exact_pixels_hold_the_integral_of_the_gaussian(size):
    image = exact_pixels(one_gaussian(size, opacity=0.5), 16, 16, per_axis=32)
    # Inside the support lies 1 - 1/255 of it.
    assert image.sum().item() == pytest.approx(
        0.5 * 2 * math.pi * size**2 * (1 - SUPPORT), rel=0.03
    )
    assert torch.allclose(image, image.flip(-1)) and torch.allclose(image, image.mT)


@pytest.mark.parametrize("size", [0.2, 1.0])
def test_keep_light_makes_the_prefiltered_light_that_of_the_gaussian(size):
    image = splat_reference(keep_light(one_gaussian(size, opacity=0.5)), 16, 16)
    assert image.sum().item() == pytest.approx(math.pi * size**2, rel=0.03)


@pytest.mark.parametrize("prefilter", [True, False])
@pytest.mark.parametrize("supersample", [True, False])
def test_gsplats_torch_code_gives_the_oracles_image_and_gradient(params, prefilter, supersample):
    pytest.importorskip("gsplat")
    switches = {"prefilter": prefilter, "supersample": supersample}
    cotangent = torch.randn(2, 3, HEIGHT, WIDTH, dtype=torch.float64)
    both = [
        image_and_gradient(
            lambda rows, render=render: render(rows, HEIGHT, WIDTH, **switches), params, cotangent
        )
        for render in (gsplat_images, splat_reference)
    ]
    errors = agreement(*both, torch.ones(2, 1, HEIGHT, WIDTH, dtype=torch.bool))
    assert max(errors.values()) < 1e-12


def test_gsplats_projection_of_what_it_is_given_is_ours(params):
    torch_impl = pytest.importorskip("gsplat.cuda._torch_impl")
    given = gsplat_scene(params, HEIGHT, WIDTH)
    placed = [given[name] for name in ("means", "covars", "viewmats", "Ks")]
    more = {"eps2d": given["eps2d"], "camera_model": given["camera_model"]}
    size = (2 * WIDTH, 2 * HEIGHT)
    _, centers, _, conics, _ = torch_impl._fully_fused_projection(*placed, *size, **more)
    assert torch.allclose(centers[:, 0], 2 * pixel_center(params[..., :2], HEIGHT, WIDTH))
    inverse = torch.linalg.inv(covariance_matrix(params[..., 2:5])) / 4  # in half pixels
    ours = torch.stack([inverse[..., 0, 0], inverse[..., 0, 1], inverse[..., 1, 1]], -1)
    assert torch.allclose(conics[:, 0], ours, rtol=1e-6)


def test_agreement_finds_the_attribute_that_is_wrong(params):
    cotangent = torch.ones(2, 3, HEIGHT, WIDTH)
    image, gradient = image_and_gradient(
        lambda rows: splat_reference(rows, HEIGHT, WIDTH), params, cotangent
    )
    wrong = gradient.clone()
    wrong[1, 2, attributes(9)["cholesky"]] += 0.5 * gradient[..., 2:5].abs().max()
    errors = agreement((image, wrong), (image, gradient), torch.ones(2, 1, HEIGHT, WIDTH))
    assert errors.pop("cholesky") == pytest.approx(0.5)
    assert set(errors.values()) == {0.0}


def test_agreement_of_images_leaves_undecided_pixels_out(params):
    image = splat_reference(params, HEIGHT, WIDTH)
    wrong = image.clone()
    wrong[0, 1, 2, 3] += 0.25
    everywhere = torch.ones(2, 1, HEIGHT, WIDTH, dtype=torch.bool)
    elsewhere = everywhere.clone()
    elsewhere[0, 0, 2, 3] = False
    assert agreement((wrong, params), (image, params), everywhere)["image"] == pytest.approx(0.25)
    assert agreement((wrong, params), (image, params), elsewhere)["image"] == 0


def test_without_gaussians_every_pixel_is_decided():
    assert decided_pixels(torch.zeros(2, 0, 9), 3, 4).all()


def test_a_pixel_on_the_rim_of_the_support_is_undecided():
    # One sample a pixel; variance size^2 + 1/12, so that pixel (12, 8) has 255 exp(-sigma) = 1.
    variance = 4.0**2 / (2 * math.log(255))
    rim = one_gaussian(math.sqrt(variance - 1 / 12), 0.5, x=8.5, y=8.5)
    undecided = ~decided_pixels(rim, 16, 16, supersample=False)
    assert undecided.sum() == 4 and undecided[0, 0, 8, 12] and undecided[0, 0, 4, 8]


def test_a_pixel_where_a_weight_reaches_one_is_undecided():
    bend = one_gaussian(2.0, opacity=1.0, x=8.5, y=8.5)
    assert (~decided_pixels(bend, 16, 16, supersample=False)).nonzero().tolist() == [[0, 0, 8, 8]]


def test_fullest_tile_counts_what_the_published_kernel_lists():
    near = one_gaussian(1.0, x=4, y=4).repeat(1, 300, 1)  # reaches 4 pixels, so one tile of four
    far = one_gaussian(1.0, x=28, y=28).repeat(1, 7, 1)
    near[..., :2] = 2 * 4 / 32 - 1
    far[..., :2] = 2 * 28 / 32 - 1
    assert fullest_tile(torch.cat([near, far], dim=1), 32, 32) == 300
