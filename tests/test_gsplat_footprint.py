"""Our Gaussians against gsplat's own torch code, one at a time."""

import sys

import pytest
import torch
from splat_cases import scene

from gsdd_lib.gsplat_footprint import gsplat_footprint
from gsdd_lib.splat import splat
from gsdd_lib.splat_reference import splat_reference

pytest.importorskip("gsplat")

HEIGHT, WIDTH, POINTS = 19, 26, 24


def one_per_image() -> torch.Tensor:
    """24 images of one white Gaussian each, also thin, tiny and outside ones."""
    generator = torch.Generator().manual_seed(0)
    params = scene(generator, POINTS, 1, HEIGHT, WIDTH, channels=1, size=0.3, spread=1.1)
    params[:3, 0, 2:5] = torch.tensor([[0.0, 0.0, 0.0], [9.0, 9.0, 0.0], [0.2, -7.0, 0.1]])
    params[..., 5:] = 1
    return params


@pytest.mark.parametrize("render", [splat, splat_reference])
@pytest.mark.parametrize("prefilter", [True, False])
def test_the_footprint_is_gsplats(render, prefilter):
    params = one_per_image().requires_grad_()
    variance = 1 / 12 if prefilter else 1 / 256
    rows = params[:, 0]
    theirs = gsplat_footprint(rows[:, :2], rows[:, 2:5], HEIGHT, WIDTH, variance=variance)
    ours = render(params, HEIGHT, WIDTH, prefilter=prefilter, supersample=False)[:, 0]
    theirs = torch.where(theirs >= 1 / 255, theirs, torch.zeros_like(theirs))  # its cut of alpha
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
    assert (ours > 0).sum() > 500

    cotangent = torch.randn(ours.shape, dtype=ours.dtype)
    (v_ours,) = torch.autograd.grad(ours, params, cotangent)
    (v_theirs,) = torch.autograd.grad(theirs, params, cotangent)
    assert torch.allclose(v_ours[..., :5], v_theirs[..., :5], rtol=1e-8, atol=1e-8)


def test_nothing_is_compiled_and_nothing_left_behind():
    before = sys.modules.get("nerfacc")
    gsplat_footprint(torch.zeros(1, 2), torch.ones(1, 3), 4, 4)
    assert "gsplat.cuda._backend" not in sys.modules
    assert sys.modules.get("nerfacc") is before
