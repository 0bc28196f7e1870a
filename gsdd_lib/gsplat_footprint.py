"""One Gaussian as gsplat draws it, with gsplat's own torch code, on any device.

gsplat's fast rasterizer needs CUDA, and it blends Gaussians front to back where ours adds them. For
a single Gaussian the two agree, and for that its plain torch functions serve: the orthographic
projection gives center, dilated covariance and conic, ``accumulate`` gives alpha at every pixel.
Importing gsplat compiles nothing as long as none of its CUDA functions is called.

``accumulate`` wants two functions of nerfacc, whose own versions need CUDA as well. With one
Gaussian on a ray they come to "weight = alpha" and a sum per pixel, which is put in their place.
"""

import sys
import types
from unittest import mock

import torch
from torch import Tensor


def gsplat_footprint(
    means: Tensor, cholesky: Tensor, height: int, width: int, *, variance: float = 1 / 12
) -> Tensor:
    """``exp(-sigma)`` of each Gaussian alone at every pixel's center, ``[M, height, width]``.

    Differentiable, and without any support: gsplat's rasterizer cuts where opacity times this is
    below 1/255.

    Args:
        means: ``[M, 2]`` in [-1, 1], x right, y down.
        cholesky: ``[M, 3]``, l11, l21, l22 in pixels.
        variance: added to the covariance's diagonal; gsplat's own choice is 0.3.
    """
    from gsplat.cuda._torch_impl import accumulate  # an optional dependency

    points = len(means)
    center, conic = _project(means, cholesky, height, width, variance)
    half = means.new_full((points, 1), 0.5)  # below gsplat's clamp of alpha at 0.999, and undone
    pixels = torch.arange(height * width, device=means.device)
    with mock.patch.dict(sys.modules, nerfacc=_one_gaussian_per_ray()):
        image, _ = accumulate(
            center[:, None],
            conic[:, None],
            half,
            2 * torch.ones_like(half)[..., None],
            gaussian_ids=torch.zeros_like(pixels).repeat(points),
            pixel_ids=pixels.repeat(points),
            image_ids=torch.arange(points, device=means.device).repeat_interleave(len(pixels)),
            image_width=width,
            image_height=height,
        )
    return image[..., 0]


def _project(
    means: Tensor, cholesky: Tensor, height: int, width: int, variance: float
) -> tuple[Tensor, Tensor]:
    """Centers ``[M, 2]`` and conics ``[M, 3]`` of flat Gaussians seen by an orthographic camera."""
    from gsplat.cuda._torch_impl import _fully_fused_projection

    size = means.new_tensor([width, height])
    position = torch.cat([0.5 * (means + 1) * size, torch.ones_like(means[:, :1])], dim=-1)
    l11, l21, l22 = cholesky.unbind(-1)
    zero = torch.zeros_like(l11)
    factor = torch.stack([l11, zero, zero, l21, l22, zero, zero, zero, zero], -1).view(-1, 3, 3)
    eye4, eye3 = torch.eye(4).to(means)[None], torch.eye(3).to(means)[None]
    _, center, _, conic, _ = _fully_fused_projection(
        position, factor @ factor.mT, eye4, eye3, width, height, variance, camera_model="ortho"
    )
    return center[0], conic[0]


def _one_gaussian_per_ray() -> types.ModuleType:
    """nerfacc, where every ray meets one Gaussian: nothing lies in front, the weight is alpha."""

    def render_weight_from_alpha(alphas: Tensor, ray_indices: Tensor, n_rays: int):
        return alphas, torch.ones_like(alphas)

    def accumulate_along_rays(weights: Tensor, values, ray_indices: Tensor, n_rays: int) -> Tensor:
        terms = weights[:, None] if values is None else weights[:, None] * values
        return terms.new_zeros(n_rays, terms.shape[1]).index_add(0, ray_indices, terms)

    module = types.ModuleType("nerfacc")
    module.render_weight_from_alpha = render_weight_from_alpha
    module.accumulate_along_rays = accumulate_along_rays
    return module
