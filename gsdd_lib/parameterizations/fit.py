"""Initialize Gaussians from real images: choose images, place Gaussians, fit them (section 3.4).

``real`` and ``kmeans`` choose images of each class and fit one Gaussian image to each by the mean
squared error; ``warmup`` fits all to the data set's mean color, which spreads and sizes the
Gaussians without showing them an image; ``random`` does not fit at all (paper, table 17).
"""

from collections.abc import Callable
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
from gsdd_lib.parameterizations.initialization import place


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
    whitened = data.whitening is not None  # Gaussians then add up to whitened values in any space
    canvas = images if whitened or space == "normalized" else data.unit(images)
    gaussians = GaussianImages(
        place_gaussians(canvas.cpu(), budget, seed=seed),
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
    unit = data.unit if whitened else None
    return Fit(gaussians, images, fit_images(gaussians, images, config, unit=unit))


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
    """Packed Gaussians [N, M, 5 + C + opacity] of a budget (:func:`place`)."""
    return place(images, budget.points, opacity=budget.opacity, seed=seed)


def fit_images(
    gaussians: GaussianImages,
    targets: Tensor,
    config: FitConfig,
    *,
    unit: Callable[[Tensor], Tensor] | None = None,
) -> list[dict[str, float]]:
    """Fit ``gaussians`` in place to ``targets`` (:func:`fit_packed`).

    Args:
        targets: normalized [N, C, H, W], one per Gaussian image.
        unit: brings normalized images to pixel values, ``data.unit``; needed for whitened ones,
            whose PSNR is that of pixels too.

    Returns:
        The curve: rows of step and PSNR in dB (:func:`psnr`), about 25 of them.
    """
    plan = Plan(config.fit_steps, config.fit_lr, config.fit_schedule, config.fit_relocate)
    canvas, packed = gaussians.canvas(targets), gaussians.packed.detach()
    curve = []

    def pixels(error: Tensor) -> Tensor:
        if unit is None:
            return error * gaussians.canvas_std
        return unit(error) - unit(torch.zeros_like(error[:1]))  # unit is linear up to a constant

    rows = fit_packed(packed, canvas, gaussians.splat_packed, plan, pixels=pixels)
    with Progress(config.fit_steps, "fit") as progress:
        for row in rows:
            curve.append(row)
            progress.update(row["step"] - progress.done, psnr_db=row["psnr_db"])
    return curve


def psnr(rendered: Tensor, targets: Tensor, std: Tensor) -> Tensor:
    """Peak signal-to-noise ratio [N] in dB of normalized images, for pixel values in [0, 1]."""
    error = ((rendered - targets) * std).square().flatten(1).mean(1)
    return -10 * torch.log10(error.clamp(min=1e-12))
