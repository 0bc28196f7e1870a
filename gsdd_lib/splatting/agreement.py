"""Independent checks of the splatting operator, and the error between two of its implementations.

Notebook 01 compares the operator with gsplat's own torch code for the footprint of a single
Gaussian, with the exact mean of a Gaussian over each pixel, and with its other implementations
(formula, oracle, CPU, CUDA), attribute by attribute.
"""

import sys
from collections.abc import Callable
from types import ModuleType
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from gsdd_lib.splatting.reference import (
    MINIMUM_VARIANCE,
    PREFILTER_VARIANCE,
    SUPPORT,
    covariance_matrix,
    pixel_center,
    published_mask,
    sample_grid,
)
from gsdd_lib.splatting.splat import GEOMETRY, splat

GSPLAT_MAX_ALPHA = 0.999  # gsplat clamps a weight here, ours at 1: compare below


def exact_pixels(params: Tensor, height: int, width: int, *, per_axis: int = 16) -> Tensor:
    """What a perfect camera sees: the Gaussians themselves averaged over each pixel's square.

    There is no pre-filter, and the variance that keeps Sigma invertible is added in pixels of the
    fine grid, where it is negligible.

    Args:
        params: ``[B, M, 6 + C]`` with opacity, as the operator takes them.
        per_axis: samples per pixel and axis, even.

    Returns:
        ``[B, C, height, width]``.
    """
    fine = _magnified(params, per_axis // 2)
    size = (height * per_axis // 2, width * per_axis // 2)
    return F.avg_pool2d(splat(fine, *size, prefilter=False), per_axis // 2)


def _magnified(params: Tensor, factor: int) -> Tensor:
    """The same Gaussians measured in pixels ``factor`` times smaller."""
    scale = torch.ones_like(params[0, 0])
    scale[2:GEOMETRY] = factor
    return params * scale


def keep_light(params: Tensor) -> Tensor:
    """Opacities divided by how much the pre-filter makes a Gaussian's total light grow.

    The factor is ``sqrt(det(L L^T) / det(L L^T + I / 12))``, gsplat's "compensation". The paper
    does not do this.
    """
    grown = covariance_matrix(params[..., 2:GEOMETRY]).det().sqrt()
    factor = (params[..., 2] * params[..., 4]).abs() / grown
    return torch.cat([params[..., :-1], params[..., -1:] * factor[..., None]], dim=-1)


def fullest_tile(params: Tensor, height: int, width: int) -> int:
    """Most Gaussians ``[B, M, R]`` that the published kernel lists for a tile; it adds 256."""
    center = pixel_center(params[..., :2], height, width)
    covariance = covariance_matrix(params[..., 2:GEOMETRY])
    listed = params.new_zeros(len(params), height * width)
    for part in torch.arange(params.shape[1]).split(256):  # so that its limit never acts
        full = params.new_ones(len(params), len(part), height * width)
        listed += published_mask(full, center[:, part], covariance[:, part], height, width).sum(1)
    return int(listed.max())


# -------------------------------------------------------------------------- gsplat's torch code


def gsplat_images(
    params: Tensor, height: int, width: int, *, prefilter: bool = True, supersample: bool = True
) -> Tensor:
    """Render with the torch code inside gsplat, one Gaussian at a time, and add up.

    gsplat's are: the projection of position and covariance (an orthographic camera), the variance
    added to it, the conic, and ``alpha = opacity exp(-sigma)`` at the pixel centers. Ours are
    ``L L^T``, which pixels belong to the support, the sum over Gaussians, and the 2x2 samples,
    which are the pixels of an image twice as large. gsplat's CUDA kernels are not involved, and
    nothing is compiled. Differentiable.

    Args:
        params: ``[B, M, 6 + C]``, opacities in [0, 0.999).

    Returns:
        ``[B, C, height, width]``. Raises ImportError where gsplat is not installed.
    """
    samples = 2 if supersample else 1
    size = (samples * height, samples * width)
    colors = params[..., GEOMETRY:-1].flatten(0, 1)
    centers, conics = _gsplat_project(params, size, samples, prefilter)
    with torch.no_grad():  # which samples have exp(-sigma) >= 1/255, by gsplat's own falloff
        half = torch.full_like(centers[..., 0], 0.5)
        white = torch.ones_like(centers[..., :1])
        falloff = 2 * _gsplat_alpha(centers, conics, half, white, size, None)
    inside = (falloff >= SUPPORT).flatten().nonzero().squeeze(1)
    opacities = params[..., -1:].flatten(0, 1)  # [I, 1]
    single = _gsplat_alpha(centers, conics, opacities, colors[:, None], size, inside)
    images = single.unflatten(0, params.shape[:2]).sum(1).movedim(-1, 1)
    return F.avg_pool2d(images, samples)


def _gsplat_project(
    params: Tensor, size: tuple[int, int], samples: int, prefilter: bool
) -> tuple[Tensor, Tensor]:
    """Centers ``[I, 1, 2]`` and conics ``[I, 1, 3]`` of I Gaussians, each an image of its own."""
    from gsplat.cuda import _torch_impl

    rows = params.flatten(0, 1)
    height, width = size
    flat = pixel_center(rows[:, :2], height // samples, width // samples)
    means = F.pad(flat, (0, 1), value=1.0)[:, None]  # at depth 1, which does not matter here
    l11, l21, l22 = rows[:, 2:GEOMETRY].unbind(-1)
    flat_covariance = torch.stack([l11**2, l11 * l21, l11 * l21, l21**2 + l22**2], -1)
    covariance = F.pad(flat_covariance.unflatten(-1, (2, 2)), (0, 1, 0, 1))[:, None]
    camera = torch.diag(rows.new_tensor([samples, samples, 1.0])).expand(len(rows), 1, 3, 3)
    variance = (PREFILTER_VARIANCE if prefilter else MINIMUM_VARIANCE) * samples**2
    pose = torch.eye(4).to(rows).expand(len(rows), 1, 4, 4)
    _, centers, _, conics, _ = _torch_impl._fully_fused_projection(
        means, covariance, pose, camera, width, height, eps2d=variance, camera_model="ortho"
    )
    return centers[:, 0], conics[:, 0]


def _gsplat_alpha(
    centers: Tensor,
    conics: Tensor,
    opacities: Tensor,
    colors: Tensor,
    size: tuple[int, int],
    samples: Tensor | None,
) -> Tensor:
    """``alpha * color`` of I single Gaussians at the given samples: ``[I, height, width, C]``.

    gsplat hands the compositing to nerfacc. With one Gaussian per image there is nothing to
    composite (its weight is its alpha), so a stand-in of that one case takes nerfacc's place.
    """
    from gsplat.cuda import _torch_impl

    height, width = size
    if samples is None:
        samples = torch.arange(len(centers) * height * width)
    image, pixel = samples // (height * width), samples % (height * width)
    with mock.patch.dict(sys.modules, nerfacc=_single_layer()):
        images, _ = _torch_impl.accumulate(
            centers, conics, opacities, colors, torch.zeros_like(image), pixel, image, width, height
        )
    return images


def _single_layer() -> ModuleType:
    """The two functions of nerfacc that gsplat calls, for rays that meet one Gaussian."""

    def render_weight_from_alpha(alphas, ray_indices, n_rays):
        return alphas, torch.ones_like(alphas)

    def accumulate_along_rays(weights, values, ray_indices, n_rays):
        terms = weights[:, None] if values is None else weights[:, None] * values
        return terms.new_zeros(n_rays, terms.shape[1]).index_add(0, ray_indices, terms)

    module = ModuleType("nerfacc")
    module.render_weight_from_alpha = render_weight_from_alpha
    module.accumulate_along_rays = accumulate_along_rays
    return module


# ------------------------------------------------------------------------------ two implementations


def image_and_gradient(
    render: Callable[[Tensor], Tensor], params: Tensor, cotangent: Tensor
) -> tuple[Tensor, Tensor]:
    """``render(params)`` and the gradient of ``sum(cotangent * image)``, on any device."""
    leaf = params.detach().clone().requires_grad_()
    image = render(leaf)
    (gradient,) = torch.autograd.grad(image, leaf, cotangent.to(image))
    return image.detach(), gradient


def agreement(
    result: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor], decided: Tensor
) -> dict[str, float]:
    """Largest errors of one implementation (image and gradient) against another.

    Args:
        decided: ``[B, 1, H, W]``, pixels that count (:func:`decided_pixels`); the gradients must
            be of a cotangent that is zero at the others.

    Returns:
        ``image``: the largest absolute error. ``position``, ``cholesky``, ``color``, ``opacity``:
        that of the gradient, over the attribute's largest gradient.
    """
    (image, gradient), (image0, gradient0) = result, reference
    error = (gradient.cpu().double() - gradient0.cpu().double()).abs()
    image_error = (image.cpu().double() - image0.cpu().double()).abs() * decided
    errors = {"image": image_error.max().item()}
    for name, columns in attributes(params_row=gradient0.shape[-1]).items():
        largest = gradient0[..., columns].abs().max().item()
        errors[name] = error[..., columns].max().item() / largest
    return errors


def attributes(params_row: int) -> dict[str, slice]:
    """Columns of a packed row with opacity.

    >>> attributes(9)["color"]
    slice(5, 8, None)
    """
    return {
        "position": slice(0, 2),
        "cholesky": slice(2, GEOMETRY),
        "color": slice(GEOMETRY, params_row - 1),
        "opacity": slice(params_row - 1, params_row),
    }


def decided_pixels(
    params: Tensor,
    height: int,
    width: int,
    *,
    opacity: bool = True,
    saturate: bool = True,
    prefilter: bool = True,
    supersample: bool = True,
    margin: float = 2e-5,
) -> Tensor:
    """Pixels ``[B, 1, H, W]`` on which two exact renderers must agree.

    The operator jumps at the rim of the support and bends where a weight reaches 1. A sample
    within ``margin`` of either may be rounded to the other side; its pixel is left out.
    """
    per_axis = 2 if supersample else 1
    grid = sample_grid(height, width, per_axis).to(params)
    center = pixel_center(params[..., :2], height, width)
    conic = torch.linalg.inv(covariance_matrix(params[..., 2:5], prefilter))
    alpha = params[..., -1] if opacity else torch.ones_like(params[..., 0])
    undecided = torch.zeros(len(params), len(grid), dtype=torch.bool, device=params.device)
    for k in range(params.shape[1]):
        offset = grid - center[:, k, None]  # [B, S, 2]
        falloff = torch.exp(-0.5 * ((offset @ conic[:, k]) * offset).sum(-1))
        strength = alpha[:, k, None]
        undecided |= (strength.abs().clamp(min=1) * falloff / SUPPORT - 1).abs() < margin
        if saturate:
            undecided |= (strength * falloff - 1).abs() < margin
    return ~undecided.view(len(params), 1, height, width, per_axis**2).any(-1)
