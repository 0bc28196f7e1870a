"""Fit Gaussians to images by the mean squared error (paper, section 3.4). The published code's fit:
``FitConfig(init="first", fit_relocate=0, fit_start="published", fit_rates="uniform",
fit_schedule="halving")``."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gsdd_lib.config import FitConfig
from gsdd_lib.core.graph import Recorded, set_rate
from gsdd_lib.core.progress import Progress
from gsdd_lib.core.rng import generator
from gsdd_lib.core.schedule import cosine
from gsdd_lib.data import ImageData
from gsdd_lib.parameterizations.budget import Budget
from gsdd_lib.parameterizations.gaussian import GaussianImages
from gsdd_lib.parameterizations.initialization import MAX_POSITION, choose_images, relocate, spacing
from gsdd_lib.splatting.splat import GEOMETRY

# Pixels that a position, or a Cholesky factor, moves per unit of spacing and learning rate.
POSITION_RATE, CHOLESKY_RATE = 3.0, 1.0
# Of Adam; ours has a short memory of the squares: a fit lasts a few hundred steps.
BETAS = {"spaced": (0.9, 0.98), "uniform": (0.9, 0.999)}
CONSTANT, LAST_RATE = 0.5, 0.02  # cosine: share of the steps before it falls, and to what share
HALF_LIFE = 20_000  # steps of the halving schedule
MOVES, MOVE_EVERY, STEPS_TO_MOVE = 8, 0.05, 40  # relocations, the fits' share between two, minimum
CURVE_POINTS = 25
Row = dict[str, float]  # step, psnr_db


@dataclass
class Fit:
    """Fitted Gaussians, the images they were fitted to, and how it went."""

    gaussians: GaussianImages
    targets: Tensor  # pixel values [N, C, H, W] in [0, 1]
    curve: list[Row] = field(default_factory=list)


def initial_gaussians(
    data: ImageData, budget: Budget, config: FitConfig, *, seed: int, **more: Any
) -> Fit:
    """``budget.gpc`` Gaussian images per class of the training split, initialized by ``config``;
    ``more`` goes to :class:`GaussianImages`, as ``render_config`` and ``space``."""
    images = choose_images(data, budget.gpc, config.init, seed=seed)
    labels = torch.arange(data.num_classes).repeat_interleave(budget.gpc)
    more |= {"points": budget.points, "opacity": budget.opacity, "start": config.fit_start}
    more |= {"normalization": data.normalization, "seed": seed}
    gaussians = GaussianImages.init_from(images, labels, **more)
    curve = [] if config.init == "random" else fit_images(gaussians, images, config)
    return Fit(gaussians, images, curve)


def fit_images(gaussians: GaussianImages, targets: Tensor, config: FitConfig) -> list[Row]:
    """Fit ``gaussians`` in place and show the progress; returns the rows of :func:`fit_rows`."""
    curve = []
    with Progress(config.fit_steps, "fit") as progress:
        for row in fit_rows(gaussians, targets, config):
            curve.append(row)
            progress.update(row["step"] - progress.done, psnr_db=row["psnr_db"])
    return curve


def fit_rows(gaussians: GaussianImages, targets: Tensor, config: FitConfig) -> Iterator[Row]:
    """Fit in place to ``targets`` [N, C, H, W] in [0, 1], by the error in the Gaussians' own space.
    ``config.init`` and ``fit_start`` come before. Yields about 25 times ``step`` and the images'
    mean ``psnr_db``; nothing else waits for the device."""
    # All numbers in one tensor, each measured in its own rate: one fused kernel steps them all.
    rates = column_rates(gaussians, config).to(targets.device)
    packed, scaled = gaussians.packed, (gaussians.packed.detach() / rates).requires_grad_()
    unit, normalization = gaussians.space == "unit", gaussians.normalization
    goal = targets if unit else normalization.apply(targets)
    bound, gpu = MAX_POSITION / rates[:2], targets.device.type == "cuda"
    draw = generator(0, "fit", "relocate", device=targets.device if gpu else "cpu")
    rate = torch.tensor(config.fit_lr, device=targets.device) if gpu else config.fit_lr
    adam = torch.optim.Adam(
        [scaled], lr=rate, betas=BETAS[config.fit_rates], fused=True, capturable=gpu
    )
    every, moves = max(1, config.fit_steps // CURVE_POINTS), relocation_steps(config)
    count = max(1, round(config.fit_relocate * gaussians.points))
    seen: dict[str, Tensor] = {}  # what the last step rendered, and its error

    def row(step: int, images: Tensor) -> Row:
        pixels = images if unit else normalization.invert(images)
        return {"step": step, "psnr_db": psnr(pixels, targets).mean().item()}

    def take_step() -> None:
        with torch.no_grad():
            packed.copy_(scaled * rates)
        images = gaussians.splat()
        seen["images"], seen["error"] = images.detach(), images.detach() - goal
        # Of half the sum of squares, to the rows: Adam sees no difference in a gradient's scale.
        (scaled.grad,) = torch.autograd.grad(images, packed, seen["error"])
        adam.step()
        with torch.no_grad():
            scaled[..., :2].clamp_(-bound, bound)

    recorded = Recorded(take_step, targets.device)
    for step in range(config.fit_steps):
        set_rate(adam, learning_rate(config, step))
        recorded()
        if step % every == 0:
            yield row(step, seen["images"])
        if step + 1 in moves:  # they start again, without Adam's moments
            with torch.no_grad():
                least, rows = relocate(scaled * rates, -seen["error"], count, draw)
                scaled.scatter_(1, least.expand_as(rows), rows / rates)
                for moment in ("exp_avg", "exp_avg_sq"):
                    adam.state[scaled][moment].scatter_(1, least.expand_as(rows), 0)
    with torch.no_grad():
        if config.fit_steps:
            packed.copy_(scaled * rates)
            gaussians.constrain_()
        last = row(config.fit_steps, gaussians.splat())
    yield last


def learning_rate(config: FitConfig, step: int) -> float:
    """The rate of a step, counted from 0, of colors and opacities."""
    if config.fit_schedule == "constant":
        return config.fit_lr
    if config.fit_schedule == "halving":
        return config.fit_lr * 0.5 ** (step // HALF_LIFE)
    fallen = max(0.0, (step / config.fit_steps - CONSTANT) / (1 - CONSTANT))
    return config.fit_lr * (LAST_RATE + (1 - LAST_RATE) * cosine(fallen, 1))


def column_rates(gaussians: GaussianImages, config: FitConfig) -> Tensor:
    """Learning rates [numbers] of the columns of a packed row, over that of colors and opacity."""
    rates = torch.ones(gaussians.packed.shape[-1])
    if config.fit_rates == "spaced":
        height, width = gaussians.resolution
        apart = spacing(gaussians.points, height, width)
        rates[:2] = torch.tensor([POSITION_RATE * apart * 2 / size for size in (width, height)])
        rates[2:GEOMETRY] = CHOLESKY_RATE * apart
    return rates


def relocation_steps(config: FitConfig) -> set[int]:
    """The steps before which Gaussians are relocated: in the first two fifths of the fit."""
    if config.fit_relocate == 0 or config.fit_steps < STEPS_TO_MOVE:
        return set()
    return {round(MOVE_EVERY * config.fit_steps * (turn + 1)) for turn in range(MOVES)}


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio [N] in dB, of pixel values [N, C, H, W] in [0, 1]."""
    error = (images - targets).square().flatten(1).mean(1)
    return -10 * torch.log10(error.clamp(min=1e-12))
