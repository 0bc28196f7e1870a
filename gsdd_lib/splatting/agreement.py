"""Independent checks of the splatting operator, and the error between two of its implementations:
gsplat's torch code for the footprint of a single Gaussian, and the exact mean over each pixel."""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from gsdd_lib.splatting import reference as oracle
from gsdd_lib.splatting.splat import GEOMETRY, splat

Pair = tuple[Tensor, Tensor]  # image and gradient


def exact_pixels(params: Tensor, height: int, width: int, *, per_axis: int = 16) -> Tensor:
    """What a perfect camera sees: Gaussians ``[B, M, 6 + C]`` averaged over each pixel's square.
    There is no pre-filter; the variance that keeps Sigma invertible is added on the fine grid.
    ``per_axis``: samples per pixel and axis, even."""
    factor = per_axis // 2  # pixels of the fine grid have two samples
    scale = torch.ones_like(params[0, 0])
    scale[2:GEOMETRY] = factor
    fine = splat(params * scale, factor * height, factor * width, prefilter=False)
    return F.avg_pool2d(fine, factor)


def keep_light(params: Tensor) -> Tensor:
    """Opacities times ``sqrt(det(L L^T) / det(L L^T + I / 12))``, gsplat's "compensation", which
    the paper does not have: the pre-filter does not make a Gaussian's total light grow."""
    grown = oracle.covariance_matrix(params[..., 2:GEOMETRY]).det().sqrt()
    factor = (params[..., 2] * params[..., 4]).abs() / grown
    return torch.cat([params[..., :-1], params[..., -1:] * factor[..., None]], dim=-1)


def fullest_tile(params: Tensor, height: int, width: int) -> int:
    """Most Gaussians ``[B, M, R]`` that the published kernel lists for a tile; it adds 256."""
    center = oracle.pixel_center(params[..., :2], height, width)
    covariance = oracle.covariance_matrix(params[..., 2:GEOMETRY])
    listed = params.new_zeros(len(params), height * width)
    for part in torch.arange(params.shape[1]).split(256):  # so that its limit never acts
        full = params.new_ones(len(params), len(part), height * width)
        listed += oracle.published_mask(
            full, center[:, part], covariance[:, part], height, width
        ).sum(1)
    return int(listed.max())


def gsplat_scene(params: Tensor, height: int, width: int, *, samples=2, prefilter=True) -> dict:
    """Gaussians ``[B, M, 6 + C]`` as gsplat's rasterizer takes them, all but the image's size. An
    orthographic camera per image, all Gaussians at one depth, ``samples`` per axis and pixel."""
    l11, l21, l22 = params[..., 2:GEOMETRY].unbind(-1)
    flat = torch.stack([l11**2, l11 * l21, l11 * l21, l21**2 + l22**2], -1).unflatten(-1, (2, 2))
    camera = torch.diag(params.new_tensor([samples, samples, 1.0]))
    return {
        "means": F.pad(oracle.pixel_center(params[..., :2], height, width), (0, 1), value=1.0),
        "covars": F.pad(flat, (0, 1, 0, 1)),
        "quats": None,
        "scales": None,
        "opacities": params[..., -1],
        "colors": params[..., GEOMETRY:-1],
        "viewmats": torch.eye(4).to(params).expand(len(params), 1, 4, 4),
        "Ks": camera.expand(len(params), 1, 3, 3),
        "eps2d": (oracle.PREFILTER_VARIANCE if prefilter else oracle.MINIMUM_VARIANCE) * samples**2,
        "camera_model": "ortho",
        "packed": False,
    }


def gsplat_images(
    params: Tensor, height: int, width: int, *, prefilter: bool = True, supersample: bool = True
) -> Tensor:
    """Render with the torch code inside gsplat, one Gaussian at a time, and add up; differentiable.
    gsplat's are projection, added variance, conic, and ``alpha = opacity exp(-sigma)``. Ours are
    ``L L^T``, the support, the sum, and the samples, pixels of an image twice as large. ``params``:
    ``[B, M, 6 + C]``, opacities in [0, 0.999). Raises ImportError without gsplat."""
    from gsplat.cuda import _torch_impl

    samples = 2 if supersample else 1
    rows = params.flatten(0, 1)[:, None]  # each Gaussian an image of its own
    size = (samples * width, samples * height)
    scene = gsplat_scene(rows, height, width, samples=samples, prefilter=prefilter)
    placed = [scene[name] for name in ("means", "covars", "viewmats", "Ks")]
    more = {"eps2d": scene["eps2d"], "camera_model": scene["camera_model"]}
    _, centers, _, conics, _ = _torch_impl._fully_fused_projection(*placed, *size, **more)
    every = [torch.arange(count) for count in (len(rows), size[0] * size[1])]
    image, sample = (index.flatten() for index in torch.meshgrid(*every, indexing="ij"))
    rays = (torch.zeros_like(image), sample, image, *size)
    # gsplat has nerfacc composite; of one Gaussian there is nothing to: a stand-in takes its place
    nerfacc = SimpleNamespace(
        render_weight_from_alpha=lambda alphas, **_: (alphas, alphas),
        accumulate_along_rays=lambda w, values, **_: w[:, None] * (1 if values is None else values),
    )

    def colored(opacities: Tensor, colors: Tensor) -> Tensor:  # alpha * color, [I, H, W, C]
        return _torch_impl.accumulate(centers[:, 0], conics[:, 0], opacities, colors, *rays)[0]

    with mock.patch.dict(sys.modules, nerfacc=nerfacc):
        half, white = torch.full_like(rows[..., -1], 0.5), torch.ones_like(rows[..., :1])
        inside = 2 * colored(half, white) >= oracle.SUPPORT  # exp(-sigma), by gsplat's own falloff
        single = colored(scene["opacities"], scene["colors"]) * inside
    return F.avg_pool2d(single.unflatten(0, params.shape[:2]).sum(1).movedim(-1, 1), samples)


def image_and_gradient(render: Callable, params: Tensor, cotangent: Tensor) -> Pair:
    """``render(params)`` and the gradient of ``sum(cotangent * image)``, on any device."""
    leaf = params.detach().clone().requires_grad_()
    image = render(leaf)
    (gradient,) = torch.autograd.grad(image, leaf, cotangent.to(image))
    return image.detach(), gradient


def agreement(result: Pair, reference: Pair, decided: Tensor) -> dict[str, float]:
    """Largest errors of one implementation (image and gradient) against another: absolute of the
    ``image``; of ``position``, ``cholesky``, ``color``, ``opacity`` over their largest gradient.
    ``decided``: ``[B, 1, H, W]``, pixels that count (:func:`decided_pixels`); the gradients must be
    of a cotangent that is zero at the others."""
    pairs = zip(result, reference, strict=True)
    image, gradient = ((one.cpu().double() - two.cpu().double()).abs() for one, two in pairs)
    errors = {"image": (image * decided).max().item()}
    for name, columns in attributes(gradient.shape[-1]).items():
        largest = reference[1][..., columns].abs().max().item()
        errors[name] = gradient[..., columns].max().item() / largest
    return errors


def attributes(params_row: int) -> dict[str, slice]:
    """Columns of a packed row of so many numbers, with opacity."""
    ends = (0, 2, GEOMETRY, params_row - 1, params_row)
    names = ("position", "cholesky", "color", "opacity")
    return {name: slice(*ends[k : k + 2]) for k, name in enumerate(names)}


def decided_pixels(
    params: Tensor, height: int, width: int, *, margin: float = 2e-5, **switches: bool
) -> Tensor:
    """Pixels ``[B, 1, H, W]`` on which two exact renderers with these switches must agree. The
    operator jumps at the rim of the support and bends where a weight reaches 1. A sample within
    ``margin`` of either may be rounded to the other side; its pixel is left out."""
    opacity, saturate = (switches.pop(name, True) for name in ("opacity", "saturate"))
    per_pixel = 4 if switches.get("supersample", True) else 1
    size = (len(params), height * width * per_pixel)
    undecided = torch.zeros(size, dtype=torch.bool, device=params.device)
    for k, falloff in enumerate(oracle.falloffs(params, height, width, **switches)):
        strength = params[:, k, -1:] if opacity else torch.ones_like(falloff)
        undecided |= (strength.abs().clamp(min=1) * falloff / oracle.SUPPORT - 1).abs() < margin
        if saturate:
            undecided |= (strength * falloff - 1).abs() < margin
    return ~undecided.view(len(params), 1, height, width, per_pixel).any(-1)
