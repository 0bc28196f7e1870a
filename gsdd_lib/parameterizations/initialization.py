"""Where Gaussians start: the images they are fitted to, their first places, and relocation."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from gsdd_lib.core.rng import generator
from gsdd_lib.data import ImageData
from gsdd_lib.data.dataset import class_members
from gsdd_lib.splatting.splat import GEOMETRY

# The largest bf16 number below 1: a position clipped to it stays inside when it is stored.
MAX_POSITION = 1 - 2**-8
START_SIZE, MOVED_SIZE = 0.4, 0.3  # standard deviation over the spacing of the Gaussians
PUBLISHED_OFFSET = 0.5  # that the published code adds to the diagonal of a stored Cholesky factor


def choose_images(data: ImageData, count: int, init: str, *, seed: int) -> Tensor:
    """Pixel values [classes * count, C, H, W] of training images to fit (paper, table 17).
    ``init``: ``real``, random images of each class; ``first``, its first ones, as published;
    ``kmeans``, the ones nearest to k-means centers of the class; ``warmup`` and ``random``, the
    data set's mean color. A small class gives its images again."""
    if init in ("warmup", "random"):
        solid = torch.tensor(data.mean, device=data.device).view(1, -1, 1, 1)
        return solid.expand(count * data.num_classes, -1, *data.resolution).contiguous()
    chosen = []
    for members in class_members(data.train.labels):
        if init == "kmeans" and len(members) > count:
            order = representatives(data.train.images[members], count, seed=seed)
        elif init == "first":
            order = torch.arange(len(members))
        else:
            draw = generator(seed, "fit", "real", int(data.train.labels[members[0]]))
            order = torch.randperm(len(members), generator=draw)
        chosen.append(members[order.repeat(-(-count // len(order)))[:count]])
    return data.train.images[torch.cat(chosen)].float() / 255


def representatives(images: Tensor, count: int, *, seed: int) -> Tensor:
    """Indices [count] of the images [N, C, H, W] nearest to as many k-means centers."""
    from sklearn.cluster import MiniBatchKMeans  # takes a second to import

    flat = images.flatten(1).float().cpu()
    kmeans = MiniBatchKMeans(count, n_init=1, batch_size=1024, random_state=seed % 2**32)
    centers = torch.from_numpy(kmeans.fit(flat.numpy()).cluster_centers_).float()
    return torch.cdist(centers, flat).argmin(1)


def spacing(points: int, height: int, width: int) -> float:
    """Pixels between neighbors if ``points`` Gaussians were spread evenly."""
    return math.sqrt(height * width / max(1, points))


def place(images: Tensor, points: int, *, opacity: bool = True, seed: int) -> Tensor:
    """Packed Gaussians [N, points, 5 + C + opacity], sampled where the images have steep gradients.
    Sizes follow from the spacing; colors are half of the image's there, since neighbors overlap."""
    height, width = images.shape[2:]
    gray = pad(images.mean(1, keepdim=True), (1, 0, 1, 0), mode="replicate")[:, 0]
    vertical = (gray[:, 1:, 1:] - gray[:, :-1, 1:]).abs()
    steep = (gray[:, 1:, 1:] - gray[:, 1:, :-1]).abs() + vertical
    detail = steep.flatten(1) + 0.1 * images.abs().mean(1).flatten(1)
    weight = detail + 0.02 * detail.mean(1, keepdim=True) + 1e-6
    draw = generator(seed, "fit", "place", device=images.device)
    pixel = torch.multinomial(weight, points, replacement=points > height * width, generator=draw)
    return _gaussians_at(pixel, 0.5 * images, START_SIZE * spacing(points, height, width), opacity)


def place_as_published(images: Tensor, points: int, *, opacity: bool = True, seed: int) -> Tensor:
    """Packed Gaussians [N, points, 5 + C + opacity] that do not depend on the images: uniform are
    positions in [-1, 1], colors and stored Cholesky factors in [0, 1]; opacities are 1."""
    draw = generator(seed, "fit", "place")
    packed = torch.rand(len(images), points, GEOMETRY + images.shape[1] + opacity, generator=draw)
    packed[..., :2] = 2 * packed[..., :2] - 1
    packed[..., [2, 4]] += PUBLISHED_OFFSET
    packed[..., GEOMETRY + images.shape[1] :] = 1
    return packed


def _gaussians_at(pixel: Tensor, images: Tensor, size: float, opacity: bool) -> Tensor:
    channels, height, width = images.shape[1:]
    packed = images.new_ones(*pixel.shape, GEOMETRY + channels + opacity)
    packed[..., 0] = (pixel % width + 0.5) / width * 2 - 1
    packed[..., 1] = (pixel // width + 0.5) / height * 2 - 1
    packed[..., 2:GEOMETRY] = packed.new_tensor([size, 0, size])
    colors = images.flatten(2).gather(2, pixel[:, None].expand(-1, channels, -1))
    packed[..., GEOMETRY : GEOMETRY + channels] = colors.mT
    return packed


def relocate(packed: Tensor, missing: Tensor, count: int, draw: Any) -> tuple[Tensor, Tensor]:
    """Indices [N, count, 1] and new rows of the Gaussians that do least, now where most is wrong. A
    Gaussian does as much as the square of its peak times its area. It starts again, small and
    round, at a pixel sampled by the fourth power of the smoothed error, with the error's color.
    ``missing``: the images less what is rendered of ``packed``, [N, C, H, W]."""
    channels, height, width = missing.shape[1:]
    apart = spacing(packed.shape[1], height, width)
    window = 2 * int(apart / 4) + 1
    smooth = avg_pool2d(missing, window, 1, window // 2, count_include_pad=False)
    colors, opacity = packed[..., GEOMETRY:].tensor_split([channels], -1)
    peak = colors.abs().amax(-1) * opacity.abs().prod(-1)
    area = (packed[..., 2].abs() + 0.3) * (packed[..., 4].abs() + 0.3)  # 0.3: the pre-filter's
    least = (peak.square() * area).topk(count, dim=1, largest=False).indices
    weight = smooth.square().sum(1).flatten(1).square()
    weight = weight / weight.amax(1, keepdim=True).clamp(min=1e-30) + 1e-9
    weight = weight.to(draw.device)  # a CPU takes most of a second to sample for 1,000 images
    pixel = torch.multinomial(weight, count, replacement=count > height * width, generator=draw)
    rows = _gaussians_at(pixel.to(missing.device), smooth, MOVED_SIZE * apart, opacity.shape[-1])
    return least[..., None], rows
