"""Differentiable siamese augmentation (DSA, arXiv 2102.08259) of *normalized* images.

As in the published code, the zeros that fill in are the mean color of the data set, not black.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from gsdd_lib.config import check_choice

CROP = 0.125  # largest shift, as a fraction of a side
CUTOUT = 0.5  # side of the square, as a fraction of the image's
SCALE = 1.2  # largest factor; the smallest is its inverse
ROTATE = math.radians(15)  # largest angle


@dataclass(frozen=True, eq=False)
class DsaParams:
    """G sets of parameters for images of ``size`` (height, width) pixels."""

    size: tuple[int, int]
    kind: Tensor  # int64 [G], on the CPU, the transformation, index into TRANSFORMS; -1: none
    packed: Tensor  # float32 [G, 11], all the numbers, exactly: one copy takes them to a device

    brightness = property(lambda self: self.packed[:, 0])  # in [-0.5, 0.5], added
    saturation = property(lambda self: self.packed[:, 1])  # factor about a pixel's mean, in [0, 2]
    contrast = property(lambda self: self.packed[:, 2])  # about the image's mean, in [0.5, 1.5]
    shift = property(lambda self: self.packed[:, 3:5].long())  # of crop's window: rows, columns
    cutout = property(lambda self: self.packed[:, 5:7].long())  # the square's center: row, column
    flip = property(lambda self: self.packed[:, 7].bool())  # whether left and right are exchanged
    scale = property(lambda self: self.packed[:, 8:10])  # of the grid's x, y: above 1 it shrinks
    angle = property(lambda self: self.packed[:, 10])  # radians by which the sampling grid turns

    def __len__(self) -> int:
        return len(self.kind)

    def select(self, index: Tensor) -> "DsaParams":
        """The parameters at ``index``, with repetition, in its order."""
        parts = (values[index.to(values.device)] for values in (self.kind, self.packed))
        return DsaParams(self.size, *parts)

    def to(self, device: torch.device) -> "DsaParams":
        """The numbers on ``device``; ``kind`` stays, since Python chooses the transformation."""
        return replace(self, packed=self.packed.to(device, non_blocking=True))


def sample_dsa(
    strategy: str, count: int, size: tuple[int, ...], *, generator: Generator, mixed: bool = False
) -> DsaParams:
    """Sample ``count`` sets of parameters for images of ``size`` (height, width).

    Args:
        strategy: names of :data:`TRANSFORMS` joined by ``_``, one is chosen at random; may be "".
        mixed: chosen for each set, as DM's published code does per class, in place of one for all.

    Raises:
        ConfigError: naming the nearest known transformation.
    """
    names = [name for name in strategy.split("_") if name]
    for name in names:
        check_choice("augmentation", TRANSFORMS, name)
    source = {"generator": generator, "device": generator.device}

    def uniform(low: float, high: float, columns: int = 1) -> Tensor:
        return low + (high - low) * torch.rand((count, columns), **source)

    def integers(low: int, high: int) -> Tensor:  # high is excluded
        return torch.randint(low, high, (count, 1), **source)

    kinds = torch.tensor([list(TRANSFORMS).index(name) for name in names] or [-1])
    if names:
        chosen = torch.randint(len(names), (count if mixed else 1,), **source)
        kinds = kinds.to(generator.device)[chosen]
    reach = [_round(side * CROP) for side in size]
    # A square of even side has its center between two pixels, so there is one more place for it.
    places = [side + 1 - _round(side * CUTOUT) % 2 for side in size]
    columns = [uniform(-0.5, 0.5), uniform(0.0, 2.0), uniform(0.5, 1.5)]  # as in DsaParams
    columns += [integers(-r, r + 1) for r in reach] + [integers(0, p) for p in places]
    columns += [uniform(0.0, 1.0) < 0.5, uniform(1 / SCALE, SCALE, 2), uniform(-ROTATE, ROTATE)]
    packed = torch.cat([column.float() for column in columns], 1)
    return DsaParams(tuple(size), kinds.to(generator.device).expand(count), packed)


def apply_dsa(images: Tensor, params: DsaParams, groups: Tensor | None = None) -> Tensor:
    """Augment normalized images; differentiable in them.

    Args:
        params: one set for all images, one for each, or one for each group.
        groups: int64 [N]; image n uses the parameters at ``groups[n]``, e.g. the labels.

    Raises:
        ValueError: the parameters are for other images, or their number does not fit.
    """
    index = _index(images, params, groups)
    params = params if index is None else params.select(index)
    transforms, kinds = list(TRANSFORMS.values()), params.kind.unique().tolist()
    if not kinds or kinds[0] < 0:
        return images
    if len(kinds) == 1:
        return transforms[kinds[0]](images, params.to(images.device))
    order, transformed = [], []
    for kind in kinds:  # each image goes through its own transformation only
        order.append((params.kind == kind).nonzero().flatten())
        own = images.index_select(0, order[-1].to(images.device, non_blocking=True))
        transformed.append(transforms[kind](own, params.select(order[-1]).to(images.device)))
    back = torch.cat(order).argsort().to(images.device, non_blocking=True)
    return torch.cat(transformed).index_select(0, back)


def color(images: Tensor, params: DsaParams) -> Tensor:
    """Brightness, saturation and contrast, in turn; saturation leaves one channel as it is."""
    images = images + _per_image(params.brightness, images)
    gray = images.mean(1, keepdim=True)
    images = torch.lerp(gray, images, _per_image(params.saturation, images))
    level = images.mean((1, 2, 3), keepdim=True)
    return torch.lerp(level, images, _per_image(params.contrast, images))


def crop(images: Tensor, params: DsaParams) -> Tensor:
    """The window of the image's size moved by ``shift``, zero outside the image."""
    height, width = params.size
    row = torch.arange(height, device=images.device) + params.shift[:, :1]
    column = torch.arange(width, device=images.device) + params.shift[:, 1:]
    row, column = row[:, None, :, None], column[:, None, None, :]  # [N, 1, H, 1], [N, 1, 1, W]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)  # [N, 1, H, W]
    pixel = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    pixel = pixel.flatten(2).expand(-1, images.shape[1], -1)  # [N, C, H * W]
    return images.flatten(2).gather(2, pixel).view_as(images) * inside


def cutout(images: Tensor, params: DsaParams) -> Tensor:
    """Zero in a square about ``cutout``, as much of it as lies in the image."""
    hidden = []
    for axis, side in enumerate(params.size):
        length = _round(side * CUTOUT)
        offset = torch.arange(side, device=images.device) - params.cutout[:, axis, None]
        hidden.append((offset >= -(length // 2)) & (offset < length - length // 2))  # [N, side]
    return images.masked_fill(hidden[0][:, None, :, None] & hidden[1][:, None, None], 0.0)


def flip(images: Tensor, params: DsaParams) -> Tensor:
    return torch.where(params.flip[:, None, None, None], images.flip(3), images)


def scale(images: Tensor, params: DsaParams) -> Tensor:
    """Each axis stretched about the center, bilinear, zero outside."""
    return _resample(images, torch.diag_embed(params.scale))


def rotate(images: Tensor, params: DsaParams) -> Tensor:
    """Turned about the center, bilinear, zero outside."""
    cos, sin = params.angle.cos(), params.angle.sin()
    return _resample(images, torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2))


TRANSFORMS: dict[str, Callable[..., Tensor]] = {
    transform.__name__: transform for transform in (color, crop, cutout, flip, scale, rotate)
}


def _resample(images: Tensor, matrix: Tensor) -> Tensor:
    # matrix [N, 2, 2] takes output to input coordinates, (x, y) in [-1, 1] at the outer pixels
    theta = F.pad(matrix, (0, 1)).to(images.dtype)  # no translation: [N, 2, 3]
    grid = F.affine_grid(theta, list(images.shape), align_corners=True)
    return F.grid_sample(images, grid, align_corners=True)


def _index(images: Tensor, params: DsaParams, groups: Tensor | None) -> Tensor | None:
    # Of an image's parameters, beside them; None: each image has its own
    count, last = len(images), len(params) - 1
    if tuple(images.shape[2:]) != params.size:
        wanted, size = ("{}x{}".format(*pair) for pair in (params.size, images.shape[2:]))
        fault = f"the augmentation was sampled for images of {wanted} pixels, these are {size}"
        raise ValueError(f"{fault}; sample one for their size")
    if groups is None:
        if last + 1 == count:
            return None
        groups = torch.arange(last + 1) if last else torch.zeros(count, dtype=torch.int64)
    groups = groups.to(params.kind.device)
    low, high = (int(end) for end in groups.aminmax()) if groups.numel() else (0, last)
    if groups.shape != (count,) or low < 0 or high > last:
        wanted = f"groups must be [{count}] in 0 to {last}, one per image"
        found = f"not {list(groups.shape)} in {low} to {high}"
        raise ValueError(f"{last + 1} sets of parameters for {count} images: {wanted}, {found}")
    return groups


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    return values.to(images.dtype)[:, None, None, None]


def _round(pixels: float) -> int:
    return int(pixels + 0.5)  # half upwards, as in the published code: 3.5 pixels are 4
