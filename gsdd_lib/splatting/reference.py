"""The splatting operator in plain torch: the oracle that every kernel is tested against, line by
line ``image(x) = mean over samples of sum_k opacity_k * exp(-sigma_k(x)) * color_k`` (paper, eq.
2-4) with ``sigma = 0.5 * d^T Sigma^-1 d``, ``d = x - center``, for any dtype and device."""

from collections.abc import Iterator

import torch
from torch import Tensor

SUPPORT = 1 / 255
PREFILTER_VARIANCE = 1 / 12  # a unit pixel box (paper, section 3.3)
MINIMUM_VARIANCE = 1 / 256  # keeps Sigma invertible without the pre-filter: 1/16 pixel of deviation
MAX_ELEMENTS = 2**24  # Gaussians x samples held at once; larger batches go image by image


def splat_reference(
    params: Tensor, height: int, width: int, *, index=None, published_support=False, **switches
) -> Tensor:
    """Render as :func:`gsdd_lib.splatting.splat.splat`, densely, in any number of colors.
    ``published_support``: use the published kernel's support rule (:func:`published_mask`)."""
    if index is not None:
        params = params.index_select(0, index)
    samples = height * width * (4 if switches.get("supersample", True) else 1)
    parts = params.split(max(1, MAX_ELEMENTS // max(1, params.shape[1] * samples)))
    return torch.cat([_render(p, height, width, published_support, **switches) for p in parts])


def _render(
    params, height, width, published, opacity=True, saturate=True, prefilter=True, supersample=True
) -> Tensor:
    batch, points, row = params.shape
    channels = row - 5 - opacity
    if points == 0:
        return params.new_zeros(batch, channels, height, width) + 0 * params.sum()
    params = torch.where(params.isfinite().all(-1, keepdim=True), params, torch.zeros_like(params))
    center = pixel_center(params[..., :2], height, width)
    covariance = covariance_matrix(params[..., 2:5], prefilter)
    alpha = params[..., -1] if opacity else torch.ones_like(params[..., 0])
    grid = sample_grid(height, width, 2 if supersample else 1).to(params)  # [S, 2]
    offset = grid - center[:, :, None]  # [B, M, S, 2]
    conic = torch.linalg.inv(covariance)
    falloff = torch.exp(-0.5 * torch.einsum("bmsi,bmij,bmsj->bms", offset, conic, offset))
    weight = alpha[..., None] * falloff
    if published:
        support = published_mask(weight, center, covariance, height, width)
    else:
        support = alpha.abs().clamp(min=1)[..., None] * falloff >= SUPPORT
    if saturate:
        weight = weight.clamp(max=1)
    weight = torch.where(support, weight, torch.zeros_like(weight))
    image = torch.einsum("bms,bmc->bcs", weight, params[..., 5 : 5 + channels])
    return image.unflatten(2, (height, width, 4 if supersample else 1)).mean(-1)


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
    """Sample positions ``[height * width * per_axis**2, 2]`` as (x, y), a pixel's samples together:
    one at its center; two per axis at 0.25 and 0.75 (paper, section 3.3)."""
    inside = (torch.arange(per_axis, dtype=torch.float64) + 0.5) / per_axis
    rows, columns = (torch.arange(size, dtype=torch.float64) for size in (height, width))
    y, x, dy, dx = torch.meshgrid(rows, columns, inside, inside, indexing="ij")
    return torch.stack([(x + dx).flatten(), (y + dy).flatten()], dim=-1)


def falloffs(
    params: Tensor, height: int, width: int, *, prefilter: bool = True, supersample: bool = True
) -> Iterator[Tensor]:
    """``exp(-sigma)`` ``[B, S]`` at the samples, of one Gaussian of each image after the other."""
    grid = sample_grid(height, width, 2 if supersample else 1).to(params)
    center = pixel_center(params[..., :2], height, width)
    conic = torch.linalg.inv(covariance_matrix(params[..., 2:5], prefilter))
    for k in range(params.shape[1]):
        offset = grid - center[:, k, None]  # [B, S, 2]
        yield torch.exp(-0.5 * ((offset @ conic[:, k]) * offset).sum(-1))


def published_mask(
    weight: Tensor, center: Tensor, covariance: Tensor, height: int, width: int, tile: int = 16
) -> Tensor:
    """Where the published kernel adds a Gaussian, its two faults included; for notebook 01 only.
    Beside the cut at 1/255 of the ``weight`` [B, M, S] it drops a Gaussian (1) in every 16-pixel
    tile that the square of ``ceil(3 sqrt(lambda_max))`` around its center does not touch, and (2)
    where 256 Gaussians came before it in the tile."""
    radius = (3 * torch.linalg.eigvalsh(covariance)[..., -1].sqrt()).ceil()[..., None]
    low = ((center - radius) / tile).floor() * tile  # first pixel of the first tile touched
    high = ((center + radius) / tile).floor() * tile + tile
    pixel = sample_grid(height, width, 1).to(center).floor()
    touched = ((pixel >= low[:, :, None]) & (pixel < high[:, :, None])).all(-1)
    in_tile = touched & (touched.cumsum(1) <= 256)
    return in_tile.repeat_interleave(weight.shape[-1] // len(pixel), dim=-1) & (weight >= SUPPORT)
