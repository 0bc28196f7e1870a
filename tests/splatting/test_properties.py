"""What must hold for any scene, for numbers no renderer likes, and for arguments that are wrong."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from splat_cases import scene
from torch import Tensor

from gsdd_lib.splatting.splat import SplatError, splat

SEEDS = st.integers(0, 10_000)
BAD = (float("nan"), float("inf"), float("-inf"))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradient_of(params: Tensor, height: int, width: int, **switches: bool) -> tuple[Tensor, Tensor]:
    params = params.detach().requires_grad_()
    image = splat(params, height, width, **switches)
    (gradient,) = torch.autograd.grad(image.sum(), params)
    return image.detach(), gradient


# --------------------------------------------------------------------------------------- properties


@given(seed=SEEDS, factor=st.floats(-4, 4), channels=st.integers(1, 4))
def test_the_image_is_linear_in_the_colors(seed, factor, channels):
    first = scene(seeded(seed), 2, 7, 11, 14, channels=channels)
    second = first.clone()
    second[..., 5:-1] = torch.randn(second[..., 5:-1].shape, generator=seeded(seed)).double()
    both = first.clone()
    both[..., 5:-1] = first[..., 5:-1] + factor * second[..., 5:-1]
    parts = splat(first, 11, 14) + factor * splat(second, 11, 14)
    assert torch.allclose(splat(both, 11, 14), parts, rtol=0, atol=1e-13)


@given(seed=SEEDS, points=st.integers(2, 40))
def test_the_order_of_the_gaussians_changes_rounding_alone(seed, points):
    params = scene(seeded(seed), 1, points, 13, 10).float()
    order = torch.randperm(points, generator=seeded(seed))
    image, gradient = gradient_of(params, 13, 10)
    shuffled_image, shuffled_gradient = gradient_of(params[:, order], 13, 10)
    assert torch.allclose(shuffled_image, image, rtol=0, atol=3e-6)
    assert torch.equal(shuffled_gradient, gradient[:, order])  # a Gaussian's own sums, same order


@given(seed=SEEDS, right=st.integers(-9, 9), down=st.integers(-9, 9))
def test_moving_the_gaussians_by_whole_pixels_moves_the_image(seed, right, down):
    params = scene(seeded(seed), 1, 6, 16, 32, spread=0.6)
    moved = params.clone()
    moved[..., 0] += 2 * right / 32
    moved[..., 1] += 2 * down / 16
    frame = F.pad(splat(params, 16, 32), (9, 9, 9, 9), value=torch.nan)
    expected = frame[..., 9 - down : 25 - down, 9 - right : 41 - right]
    inside = ~expected.isnan()
    assert torch.allclose(splat(moved, 16, 32)[inside], expected[inside], rtol=0, atol=1e-12)


@given(seed=SEEDS)
def test_mirroring_the_gaussians_mirrors_the_image(seed):
    params = scene(seeded(seed), 1, 6, 15, 22)
    mirrored = params * params.new_tensor([-1, 1, -1, 1, 1, 1, 1, 1, 1])  # u and l11, so also l21
    assert torch.allclose(splat(mirrored, 15, 22), splat(params, 15, 22).flip(-1), atol=1e-12)
    turned = params * params.new_tensor([1, -1, 1, -1, 1, 1, 1, 1, 1])
    assert torch.allclose(splat(turned, 15, 22), splat(params, 15, 22).flip(-2), atol=1e-12)


@given(seed=SEEDS)
def test_supersampling_is_twice_the_resolution_averaged_down(seed):
    params = scene(seeded(seed), 1, 6, 20, 24, size=1.3)
    large = params * params.new_tensor([1, 1, 2, 2, 2, 1, 1, 1, 1])
    # Without the pre-filter the samples are the same points; only the added variance differs.
    fine = splat(large, 40, 48, prefilter=False, supersample=False)
    image = splat(params, 20, 24, prefilter=False)
    assert (F.avg_pool2d(fine, 2) - image).abs().max() <= 0.01


@given(seed=SEEDS)
def test_a_set_rendered_larger_and_averaged_down_stays_close(seed):
    params = scene(seeded(seed), 1, 6, 20, 24, size=1.3)
    large = params * params.new_tensor([1, 1, 2, 2, 2, 1, 1, 1, 1])
    image, averaged = splat(params, 20, 24), F.avg_pool2d(splat(large, 40, 48), 2)
    assert (averaged - image).square().mean().sqrt() <= 0.03 * image.square().mean().sqrt()


@given(seed=SEEDS, channels=st.integers(1, 4))
def test_without_opacity_is_with_opacity_one(seed, channels):
    params = scene(seeded(seed), 1, 6, 9, 12, channels=channels)
    params[..., -1] = 1
    image, gradient = gradient_of(params, 9, 12, saturate=False)
    bare_image, bare_gradient = gradient_of(params[..., :-1], 9, 12, opacity=False)
    assert torch.equal(bare_image, image) and torch.equal(bare_gradient, gradient[..., :-1])


# ------------------------------------------------------------------- numbers that no renderer likes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("opacity", [True, False])
def test_a_number_that_is_not_finite_kills_its_gaussian_alone(opacity, dtype):
    good = scene(seeded(0), 1, 6, 13, 17, opacity=opacity).to(dtype)
    numbers = good.shape[2]
    params = good.repeat(len(BAD) * numbers, 1, 1)  # one image per bad number and position
    for image, (value, position) in enumerate((b, p) for b in BAD for p in range(numbers)):
        params[image, 2, position] = value
    others = [0, 1, 3, 4, 5]
    image, gradient = gradient_of(params, 13, 17, opacity=opacity)
    want_image, want_gradient = gradient_of(good[:, others], 13, 17, opacity=opacity)
    assert torch.equal(image, want_image.expand_as(image))
    assert torch.equal(gradient[:, others], want_gradient.expand_as(gradient[:, others]))
    assert torch.equal(gradient[:, 2], torch.zeros_like(gradient[:, 2]))


@pytest.mark.parametrize("saturate", [True, False])
@pytest.mark.parametrize("value", [1e30, -1e30, 1e15, 1e-30, 1e-42])
def test_extreme_numbers_stay_finite_and_harm_no_neighbor(value, saturate):
    good = scene(seeded(0), 1, 6, 13, 17).float()
    places = [[p] for p in range(9)] + [[0, 1], [2, 4], [0, 2], [2, 3, 4], [5, 8], list(range(9))]
    params = good.repeat(len(places), 1, 1)
    for image, columns in enumerate(places):
        params[image, 2, columns] = value
    others = [0, 1, 3, 4, 5]
    image, gradient = gradient_of(params, 13, 17, saturate=saturate)
    assert image.isfinite().all() and gradient[:, others].isfinite().all()
    neighbors = gradient_of(good[:, others], 13, 17, saturate=saturate)[1]
    assert torch.equal(gradient[:, others], neighbors.expand_as(gradient[:, others]))


def test_a_product_that_overflows_renders_nothing():
    params = scene(seeded(0), 1, 6, 13, 17).float()
    others = splat(params[:, 1:], 13, 17, saturate=False)
    params[0, 0, 5:] = 1e30  # colors and opacity
    assert torch.equal(splat(params, 13, 17, saturate=False), others)


@pytest.mark.parametrize("shape", [(0, 5, 9), (2, 0, 9), (0, 0, 9)])
def test_nothing_to_render_is_black_and_differentiable(shape):
    image, gradient = gradient_of(torch.zeros(shape), 6, 7)
    assert image.shape == (shape[0], 3, 6, 7) and not image.any() and gradient.shape == shape


# ------------------------------------------------------------------------------------ bad arguments

ROWS = torch.zeros(1, 2, 11)
ARGUMENTS = {
    "a list": ([[[0.0]]], 4, 4, "must be a .* tensor .* got <class 'list'>"),
    "integers": (ROWS.long(), 4, 4, "float64 or bfloat16 tensor .* got torch.int64"),
    "half": (ROWS.half(), 4, 4, "float64 or bfloat16 tensor .* got torch.float16"),
    "two axes": (ROWS[0], 4, 4, r"numbers\], got torch.float32 \[2, 11\]"),
    "no color": (ROWS[..., :6], 4, 4, "6 numbers .* 0 colors with an opacity"),
    "an empty row": (ROWS[..., :0], 4, 4, "params has 0 numbers per Gaussian"),
    "five colors": (ROWS, 4, 4, "makes 5 colors with an opacity; 1 to 4"),
    "no rows": (ROWS[..., :9], 0, 4, "at least 1 pixel, got 0 x 4"),
    "negative width": (ROWS[..., :9], 4, -1, "at least 1 pixel, got 4 x -1"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_bad_arguments_get_one_sentence(name):
    params, height, width, sentence = ARGUMENTS[name]
    with pytest.raises(SplatError, match=sentence) as caught:
        splat(params, height, width)
    assert "\n" not in str(caught.value)


def test_five_colors_without_opacity_are_named_so():
    with pytest.raises(SplatError, match="makes 5 colors without an opacity; 1 to 4"):
        splat(ROWS[..., :10], 4, 4, opacity=False)
