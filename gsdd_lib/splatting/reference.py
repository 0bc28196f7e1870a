"""The splatting operator in plain torch: the oracle that every kernel is tested against.

It follows the equations line by line, for any dtype and device, and lets autograd differentiate
them. It costs memory for every Gaussian at every sample, so it is also the slow end of every
benchmark and the fallback where no compiler is found.

The equation (paper, eq. 2-4): ``image(x) = mean over samples of sum_k w_k(x) * color_k`` with
``w_k(x) = opacity_k * exp(-sigma_k(x))``, ``sigma = 0.5 * d^T Sigma^-1 d``, ``d = x - center``.
"""

import math

import torch
from torch import Tensor

SUPPORT = 1 / 255
PREFILTER_VARIANCE = 1 / 12  # a unit pixel box (paper, section 3.3)
MINIMUM_VARIANCE = 1 / 256  # keeps Sigma invertible without the pre-filter: 1/16 pixel of deviation
MAX_ELEMENTS = 2**24  # Gaussians x samples held at once; larger batches go image by image


def splat_reference(
    params: Tensor,
    height: int,
    width: int,
    *,
    opacity: bool = True,
    saturate: bool = True,
    prefilter: bool = True,
    supersample: bool = True,
    index: Tensor | None = None,
    published_support: bool = False,
) -> Tensor:
    """Render ``params [B, M, 5 + C + opacity]`` to ``[B, C, height, width]``, densely.

    Args:
        published_support: use the published kernel's support rule, faults included
            (:func:`published_mask`). All other arguments are the operator's
            (:func:`gsdd_lib.splatting.splat.splat`).
    """
    if index is not None:
        params = params.index_select(0, index)
    samples = height * width * (4 if supersample else 1)
    step = max(1, MAX_ELEMENTS // max(1, params.shape[1] * samples))
    images = [
        _render(chunk, height, width, opacity, saturate, prefilter, supersample, published_support)
        for chunk in params.split(step)
    ]
    return torch.cat(images)


def _render(
    params: Tensor,
    height: int,
    width: int,
    opacity: bool,
    saturate: bool,
    prefilter: bool,
    supersample: bool,
    published: bool,
) -> Tensor:
    batch, points, row = params.shape
    channels = row - 5 - opacity
    if points == 0:
        return params.new_zeros(batch, channels, height, width) + 0 * params.sum()
    params = torch.where(params.isfinite().all(-1, keepdim=True), params, torch.zeros_like(params))
    center = pixel_center(params[..., :2], height, width)
    covariance = covariance_matrix(params[..., 2:5], prefilter)
    colors = params[..., 5 : 5 + channels]
    alpha = params[..., -1] if opacity else torch.ones_like(params[..., 0])

    grid = sample_grid(height, width, 2 if supersample else 1).to(params)  # [S, 2]
    offset = grid - center[:, :, None]  # [B, M, S, 2]
    conic = torch.linalg.inv(covariance)
    sigma = 0.5 * torch.einsum("bmsi,bmij,bmsj->bms", offset, conic, offset)
    falloff = torch.exp(-sigma)
    weight = alpha[..., None] * falloff
    if published:
        support = published_mask(weight, center, covariance, height, width)
    else:
        support = alpha.abs().clamp(min=1)[..., None] * falloff >= SUPPORT
    if saturate:
        weight = weight.clamp(max=1)
    weight = torch.where(support, weight, torch.zeros_like(weight))
    image = torch.einsum("bms,bmc->bcs", weight, colors)
    per_pixel = len(grid) // (height * width)
    return image.view(batch, channels, height, width, per_pixel).mean(-1)


def pixel_center(means: Tensor, height: int, width: int) -> Tensor:
    """Positions in [-1, 1] to pixel coordinates, where pixel ``i`` spans ``[i, i + 1]``."""
    return 0.5 * (means + 1) * means.new_tensor([width, height])


def covariance_matrix(cholesky: Tensor, prefilter: bool = True) -> Tensor:
    """``Sigma = L L^T + v I`` in squared pixels, ``[..., 3] -> [..., 2, 2]`` (paper, eq. 3)."""
    l11, l21, l22 = cholesky.unbind(-1)
    variance = PREFILTER_VARIANCE if prefilter else MINIMUM_VARIANCE
    entries = [l11**2 + variance, l11 * l21, l11 * l21, l21**2 + l22**2 + variance]
    return torch.stack(entries, dim=-1).unflatten(-1, (2, 2))


def sample_grid(height: int, width: int, per_axis: int) -> Tensor:
    """Sample positions ``[height * width * per_axis**2, 2]`` as (x, y), a pixel's samples together.

    One sample lies at the pixel's center; two per axis lie at 0.25 and 0.75 (paper, section 3.3).
    """
    inside = (torch.arange(per_axis, dtype=torch.float64) + 0.5) / per_axis
    rows = torch.arange(height, dtype=torch.float64)
    columns = torch.arange(width, dtype=torch.float64)
    y, x, dy, dx = torch.meshgrid(rows, columns, inside, inside, indexing="ij")
    return torch.stack([(x + dx).flatten(), (y + dy).flatten()], dim=-1)


def published_mask(
    weight: Tensor, center: Tensor, covariance: Tensor, height: int, width: int, tile: int = 16
) -> Tensor:
    """Where the published kernel adds a Gaussian, its two faults included; for notebook 01 only.

    Beside the cut at 1/255 of the weight it drops a Gaussian (1) in every 16-pixel tile that the
    square of ``ceil(3 sqrt(lambda_max))`` around its center does not touch, and (2) in every tile
    where 256 Gaussians came before it.

    Args:
        weight: opacity times falloff, ``[B, M, S]``, samples ordered as :func:`sample_grid` does.
    """
    radius = (3 * torch.linalg.eigvalsh(covariance)[..., -1].sqrt()).ceil()[..., None]
    low = ((center - radius) / tile).floor() * tile  # first pixel of the first tile touched
    high = ((center + radius) / tile).floor() * tile + tile
    per_pixel = weight.shape[-1] // (height * width)
    pixel = sample_grid(height, width, 1).to(center).floor()
    touched = ((pixel >= low[:, :, None]) & (pixel < high[:, :, None])).all(-1)
    first_256 = touched.cumsum(1) <= 256
    in_tile = (touched & first_256).repeat_interleave(per_pixel, dim=-1)
    return in_tile & (weight >= SUPPORT)


def support_radius(opacity: float = 1.0) -> float:
    """How far a Gaussian reaches, in standard deviations: ``sqrt(2 ln(255 max(1, |opacity|)))``."""
    return math.sqrt(2 * math.log(255 * max(1.0, abs(opacity))))
