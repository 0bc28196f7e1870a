"""What is handed to gsplat's rasterizer, which itself runs on a GPU alone."""

import pytest
import torch

from gsdd_lib.benchmarks import gsplat as gsplat_raster
from gsdd_lib.splatting.reference import covariance_matrix, pixel_center
from gsdd_lib.splatting.splat import splat


def scene() -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    params = torch.rand(2, 5, 9, generator=draw)
    params[..., 2:5] *= 3
    return params


def test_gsplats_projection_of_what_it_is_given_is_ours():
    torch_impl = pytest.importorskip("gsplat.cuda._torch_impl")
    params, size = scene(), (12, 20)
    given = gsplat_raster._arguments(params, *size)
    _, centers, _, conics, _ = torch_impl._fully_fused_projection(
        given["means"], given["covars"], given["viewmats"], given["Ks"], 40, 24,
        eps2d=given["eps2d"], camera_model=given["camera_model"],
    )  # fmt: skip
    assert torch.allclose(centers[:, 0], 2 * pixel_center(params[..., :2], *size), atol=1e-4)
    inverse = torch.linalg.inv(covariance_matrix(params[..., 2:5])) / 4  # in half pixels
    ours = torch.stack([inverse[..., 0, 0], inverse[..., 0, 1], inverse[..., 1, 1]], -1)
    assert torch.allclose(conics[:, 0], ours, rtol=1e-3, atol=1e-5)


def test_it_says_why_it_cannot_run(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gsplat_raster.available() == "no CUDA device"


@pytest.mark.gpu
def test_a_single_gaussian_is_drawn_as_ours():
    pytest.importorskip("gsplat")
    params = scene()[:, :1].cuda()
    params[..., -1] = 0.8
    theirs, ours = gsplat_raster.rasterize(params, 12, 20), splat(params, 12, 20)
    assert (theirs - ours).abs().max() < 0.01  # supports differ at weights of 1/255
