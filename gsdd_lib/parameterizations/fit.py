"""Initialize Gaussians from real images: choose images, place Gaussians, fit them (section 3.4).

``real`` and ``kmeans`` choose images of each class and fit one Gaussian image to each by the mean
squared error; ``warmup`` fits all to the data set's mean color, which spreads and sizes the
Gaussians without showing them an image; ``random`` does not fit at all (paper, table 17).
"""

from dataclasses import dataclass, field

import torch
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from gsdd_lib.config import FitConfig, RenderConfig
from gsdd_lib.core.progress import Progress
from gsdd_lib.core.rng import generator
from gsdd_lib.data import ImageData
from gsdd_lib.data.dataset import class_members
from gsdd_lib.parameterizations.budget import Budget
from gsdd_lib.parameterizations.fit_loop import Plan, fit_packed
from gsdd_lib.parameterizations.gaussian import GaussianImages, Space


@dataclass
class Fit:
    """Fitted Gaussians, the images they were fitted to, and how it went."""

    gaussians: GaussianImages
    targets: Tensor  # pixel values [N, C, H, W]
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
    images = data.unit(_targets(data, budget.gpc, config.init, seed))
    gaussians = GaussianImages.init_from(
        images,
        labels,
        points=budget.points,
        seed=seed,
        opacity=budget.opacity,
        normalization=data.normalization,
        render_config=render_config,
        space=space,
    )
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
    return data.normalize(images[representatives(images, count, seed=seed)])


def representatives(images: Tensor, count: int, *, seed: int) -> Tensor:
    """Indices [count] of the images [N, C, H, W] nearest to as many k-means centers."""
    flat = images.flatten(1).float().cpu()
    kmeans = MiniBatchKMeans(count, n_init=1, batch_size=1024, random_state=seed % 2**32)
    centers = torch.from_numpy(kmeans.fit(flat.numpy()).cluster_centers_).float()
    return torch.cdist(centers, flat).argmin(1)


def fit_images(
    gaussians: GaussianImages, targets: Tensor, config: FitConfig
) -> list[dict[str, float]]:
    """Fit ``gaussians`` in place to ``targets`` (:func:`fit_packed`).

    Args:
        targets: pixel values [N, C, H, W] in [0, 1], one per Gaussian image.

    Returns:
        The curve: rows of step and PSNR in dB (:func:`psnr`), about 25 of them.
    """
    plan = Plan(config.fit_steps, config.fit_lr, config.fit_schedule, config.fit_relocate)
    packed, curve = gaussians.packed.detach(), []
    canvas, pixels = targets, None
    if gaussians.space == "normalized":
        invert = gaussians.normalization.invert
        canvas = gaussians.normalization.apply(targets)

        def pixels(error: Tensor) -> Tensor:
            return invert(error) - invert(torch.zeros_like(error))  # linear up to a constant

    rows = fit_packed(packed, canvas, gaussians._canvas, plan, pixels=pixels)
    with Progress(config.fit_steps, "fit") as progress:
        for row in rows:
            curve.append(row)
            progress.update(row["step"] - progress.done, psnr_db=row["psnr_db"])
    return curve


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio [N] in dB, of pixel values [N, C, H, W] in [0, 1]."""
    error = (images - targets).square().flatten(1).mean(1)
    return -10 * torch.log10(error.clamp(min=1e-12))
