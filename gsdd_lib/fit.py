"""Initialize Gaussians from real images: choose images, place Gaussians, fit them (section 3.4).

``real`` and ``kmeans`` choose images of each class and fit one Gaussian image to each by the mean
squared error; ``warmup`` fits all to the data set's mean color, which spreads and sizes the
Gaussians without showing them an image; ``random`` does not fit at all (paper, table 17).
"""

from dataclasses import dataclass, field

import torch
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from gsdd_lib.budget import Budget
from gsdd_lib.config import FitConfig, RenderConfig
from gsdd_lib.data import ImageData
from gsdd_lib.data.sampling import class_members
from gsdd_lib.parameterizations.gaussian import MAX_POSITION, GaussianImages, Space
from gsdd_lib.progress import Progress
from gsdd_lib.rng import generator
from gsdd_lib.splat import GEOMETRY

# Adam moves every number by about its learning rate per step; a Cholesky factor is measured in
# pixels and wants longer steps than positions and colors (25.6 -> 26.3 dB on Fashion-MNIST).
CHOLESKY_LR_RATIO = 5.0
CURVE_POINTS = 25


@dataclass
class Fit:
    """Fitted Gaussians, the images they were fitted to, and how it went."""

    gaussians: GaussianImages
    targets: Tensor  # normalized [N, C, H, W]
    curve: list[dict[str, float]] = field(default_factory=list)  # step, psnr_db


def initial_gaussians(
    data: ImageData,
    budget: Budget,
    config: FitConfig,
    *,
    seed: int,
    render_config: RenderConfig | None = None,
    space: Space = "unit",
) -> Fit:
    """``budget.gpc`` Gaussian images per class, initialized as ``config.init`` says.

    Reads the training split only. Equal arguments give equal Gaussians, bit for bit.
    """
    labels = torch.arange(data.num_classes).repeat_interleave(budget.gpc)
    images = _targets(data, budget.gpc, config.init, seed)
    gaussians = GaussianImages(
        place_gaussians(data.unit(images).cpu(), budget, seed=seed),
        labels,
        resolution=(budget.height, budget.width),
        mean=data.mean,
        std=data.std,
        render_config=render_config,
        opacity=budget.opacity,
        space=space,
    ).to(data.device)
    if config.init == "random":
        return Fit(gaussians, images)
    return Fit(gaussians, images, fit_images(gaussians, images, config))


def _targets(data: ImageData, count: int, init: str, seed: int) -> Tensor:
    """Normalized images to fit, ``count`` per class in the classes' order."""
    if init in ("warmup", "random"):
        solid = torch.zeros(
            1, data.channels, 1, 1, device=data.device
        )  # the mean color after normalization
        return solid.expand(count * data.num_classes, -1, *data.resolution).contiguous()
    members = class_members(data.train.labels)
    pick = _random_images if init == "real" else _representatives
    return torch.cat([pick(data, part, count, seed) for part in members])


def _random_images(data: ImageData, members: Tensor, count: int, seed: int) -> Tensor:
    draw = generator(seed, "fit", "real", int(data.train.labels[members[0]]))
    order = torch.randperm(len(members), generator=draw)
    repeats = -(-count // len(members))  # a class smaller than gpc is used more than once
    return data.normalize(data.train.images[members[order.repeat(repeats)[:count]]])


def _representatives(data: ImageData, members: Tensor, count: int, seed: int) -> Tensor:
    """The real image nearest to each of ``count`` k-means centers of the class."""
    if len(members) <= count:
        return _random_images(data, members, count, seed)
    images = data.train.images[members]
    flat = images.flatten(1).float().cpu()
    kmeans = MiniBatchKMeans(count, n_init=1, batch_size=1024, random_state=seed % 2**32)
    centers = torch.from_numpy(kmeans.fit(flat.numpy()).cluster_centers_).float()
    return data.normalize(images[torch.cdist(centers, flat).argmin(1)])


def place_gaussians(images: Tensor, budget: Budget, *, seed: int) -> Tensor:
    """Packed Gaussians [N, M, 5 + C + opacity] before any fitting.

    Positions are drawn where an image has detail (its gradient's magnitude), sizes follow from the
    spacing of the Gaussians, colors are half of the image's there, since neighbors overlap.

    Args:
        images: [N, C, H, W] in the space that the Gaussians render to.
    """
    count, channels, height, width = images.shape
    points = budget.points
    detail = _gradient_magnitude(images).flatten(1) + 0.1 * images.abs().mean(1).flatten(1)
    weight = detail + 0.02 * detail.mean(1, keepdim=True) + 1e-6
    draw = generator(seed, "fit", "place")
    pixel = torch.multinomial(weight, points, replacement=points > height * width, generator=draw)
    x, y = pixel % width, pixel // width
    size = 0.4 * (height * width / points) ** 0.5
    packed = torch.zeros(count, points, budget.numbers_per_gaussian)
    packed[..., 0] = (x + 0.5) / width * 2 - 1
    packed[..., 1] = (y + 0.5) / height * 2 - 1
    packed[..., 2] = packed[..., 4] = size
    colors = images.flatten(2).gather(2, pixel[:, None].expand(-1, channels, -1))
    packed[..., GEOMETRY : GEOMETRY + channels] = 0.5 * colors.transpose(1, 2)
    if budget.opacity:
        packed[..., -1] = 1
    return packed


def _gradient_magnitude(images: Tensor) -> Tensor:
    """Sum of absolute differences to the left and upper neighbors: [N, H, W]."""
    gray = images.mean(1, keepdim=True)
    padded = torch.nn.functional.pad(gray, (1, 0, 1, 0), mode="replicate")
    vertical = (padded[..., 1:, 1:] - padded[..., :-1, 1:]).abs()
    return ((padded[..., 1:, 1:] - padded[..., 1:, :-1]).abs() + vertical)[:, 0]


def fit_images(
    gaussians: GaussianImages, targets: Tensor, config: FitConfig
) -> list[dict[str, float]]:
    """Fit ``gaussians`` in place to ``targets`` by Adam on the squared error.

    Args:
        targets: normalized [N, C, H, W], one per Gaussian image.

    Returns:
        The curve: rows of step and PSNR in dB (:func:`psnr`), about 25 of them.
    """
    with torch.no_grad():
        attributes = [gaussians.means, gaussians.cholesky, gaussians.packed[..., GEOMETRY:]]
        leaves = [part.detach().clone().requires_grad_() for part in attributes]
    ratios = (1.0, CHOLESKY_LR_RATIO, 1.0)
    groups = [
        {"params": [leaf], "lr": config.fit_lr * ratio}
        for leaf, ratio in zip(leaves, ratios, strict=True)
    ]
    optimizer = torch.optim.Adam(groups, fused=True)
    curve = []
    every = max(1, config.fit_steps // CURVE_POINTS)
    with Progress(config.fit_steps, "fit") as progress:
        for step in range(config.fit_steps):
            if step % every == 0:
                curve.append(_curve_row(step, gaussians, leaves, targets))
            optimizer.zero_grad(set_to_none=True)
            rendered = gaussians.render_packed(torch.cat(leaves, dim=-1))
            (rendered - targets).square().sum().backward()
            optimizer.step()
            with torch.no_grad():
                leaves[0].clamp_(-MAX_POSITION, MAX_POSITION)
            progress.update(psnr_db=curve[-1]["psnr_db"])
    curve.append(_curve_row(config.fit_steps, gaussians, leaves, targets))
    return curve


@torch.no_grad()
def _curve_row(
    step: int, gaussians: GaussianImages, leaves: list[Tensor], targets: Tensor
) -> dict[str, float]:
    gaussians.packed.copy_(torch.cat(leaves, dim=-1))
    mean_db = psnr(gaussians.render(), targets, gaussians.std).mean().item()
    return {"step": step, "psnr_db": mean_db}


def psnr(rendered: Tensor, targets: Tensor, std: Tensor) -> Tensor:
    """Peak signal-to-noise ratio [N] in dB of normalized images, for pixel values in [0, 1]."""
    error = ((rendered - targets) * std).square().flatten(1).mean(1)
    return -10 * torch.log10(error.clamp(min=1e-12))
