"""Gaussian images taken apart: from their largest Gaussians, at any resolution, as ellipses.

The figures are pyplot's, as all of ``plots``: a notebook shows them at the end of the
cell. :mod:`gsdd_lib.experiment.widgets` puts sliders over them.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from gsdd_lib.experiment import plots
from gsdd_lib.parameterizations.gaussian import GaussianImages
from gsdd_lib.storage import DistilledSet

Source = GaussianImages | DistilledSet

PANEL = 2.0  # inches: the height of one picture on the screen
TITLE = 0.2  # inches, for a line of text
N_SIGMA = 1.5  # deviations from a Gaussian's center to its outline


def draw(
    gaussians: GaussianImages,
    image: int,
    shown: int,
    resolution: tuple[int, int] | int,
    *,
    ellipses: bool = False,
    original: Tensor | None = None,
) -> Figure:
    """One image from its ``shown`` largest Gaussians; beside it, if wanted, what they are.

    Args:
        image: which one, from 0.
        shown: how many Gaussians, those of the largest area first; 1 to ``gaussians.points``.
        resolution: (height, width) in pixels, or the height alone, keeping the proportions.
        ellipses: a panel with the Gaussians' outlines over the faded image.
        original: pixel values [C, H, W] in [0, 1], shown first.

    Raises:
        ValueError: there is no such image, or not so many Gaussians.
    """
    part = _largest(gaussians, image, shown)
    size = _size(gaussians, resolution)
    count = 1 + (original is not None) + ellipses
    figure, axes = _panels(1, count, gaussians)
    places = iter(axes[0])
    if original is not None:
        _original(next(places), original)
    title = f"{shown} of {gaussians.points} Gaussians, {by(size)}"
    _rendering(next(places), part, size, title=title)
    if ellipses:
        _outlines(next(places), part, size, title=f"their {N_SIGMA:g}-sigma ellipses")
    return figure


def static(
    source: Source, originals: Tensor | None = None, *, images: Sequence[int] = (0, 1, 2)
) -> Figure:
    """What the sliders show, as one figure for a page without a kernel; a row per image.

    From left to right: the original, a quarter, half and all of the Gaussians, all of them at four
    times the resolution, and their ellipses.

    Args:
        originals: pixel values [N, C, H, W] in [0, 1], one per Gaussian image; None: left out.
        images: which ones.
    """
    gaussians, _ = unpack(source)
    check_originals(gaussians, originals)
    points, native = gaussians.points, gaussians.resolution
    large = (4 * native[0], 4 * native[1])
    columns = 5 + (originals is not None)
    inches = plots.PAGE / columns * native[0] / native[1]
    figure, axes = _panels(len(images), columns, gaussians, inches=inches)
    for row, image in zip(axes, images, strict=True):
        places = iter(row)
        if originals is not None:
            _original(next(places), originals[image])
        for shown in (max(1, points // 4), max(1, points // 2), points):
            title = f"{shown} of {points}, {by(native)}"
            _rendering(next(places), _largest(gaussians, image, shown), native, title=title)
        everything = _largest(gaussians, image, points)
        _rendering(next(places), everything, large, title=f"all, {by(large)}")
        _outlines(next(places), everything, native, title="ellipses")
    for ax in axes[1:].flat:
        ax.set_title("")  # the first row's titles serve for all
    return figure


def unpack(source: Source) -> tuple[GaussianImages, tuple[str, ...]]:
    """The Gaussians and the names of their classes, where these are known."""
    if isinstance(source, DistilledSet):
        return source.gaussians, source.class_names
    return source, ()


def check_originals(images: GaussianImages, originals: Tensor | None) -> None:
    """Raise ValueError unless there is one original per Gaussian image, or none at all."""
    if originals is not None and (originals.dim() != 4 or len(originals) != len(images)):
        raise ValueError(
            f"originals must be [{len(images)}, C, H, W], one per Gaussian image, "
            f"got {list(originals.shape)}."
        )


def _size(gaussians: GaussianImages, resolution: tuple[int, int] | int) -> tuple[int, int]:
    if isinstance(resolution, int):
        height, width = gaussians.resolution
        return resolution, max(1, round(resolution * width / height))
    return resolution


@torch.no_grad()
def _largest(gaussians: GaussianImages, image: int, shown: int) -> GaussianImages:
    """Image ``image`` alone, of its ``shown`` Gaussians of the largest area."""
    if not 0 <= image < len(gaussians):
        raise ValueError(f"There is no image {image}; there are 0 to {len(gaussians) - 1}.")
    if not 1 <= shown <= gaussians.points:
        raise ValueError(f"{shown} Gaussians cannot be shown; an image has {gaussians.points}.")
    rows = gaussians.packed[image]
    area = (rows[:, 2] * rows[:, 4]).abs()  # det L = l11 l22: the ellipse's area up to pi
    order = area.argsort(descending=True, stable=True)
    return GaussianImages(
        rows[order[:shown]][None].clone(),
        gaussians.labels[image : image + 1],
        resolution=gaussians.resolution,
        normalization=gaussians.normalization,
        render_config=gaussians.render_config,
        opacity=gaussians.opacity,
        space=gaussians.space,
        store_bf16=gaussians.store_bf16,
    ).to(rows.device)


def _panels(
    rows: int, columns: int, gaussians: GaussianImages, *, inches: float = PANEL
) -> tuple[Figure, Any]:
    """A figure and its axes [rows, columns] of the images' proportions."""
    height, width = gaussians.resolution
    size = (columns * inches * width / height, rows * inches + TITLE)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    return figure, axes


def by(size: tuple[int, int]) -> str:
    """``height×width``, as titles say it."""
    return f"{size[0]}×{size[1]}"


def _original(ax: Axes, original: Tensor) -> None:
    plots.show_image(ax, original)
    ax.set_title("original", pad=3)


def _rendering(ax: Axes, part: GaussianImages, size: tuple[int, int], *, title: str) -> None:
    plots.show_image(ax, _pixels(part, size))
    ax.set_title(title, pad=3)


def _outlines(ax: Axes, part: GaussianImages, size: tuple[int, int], *, title: str) -> None:
    """The ellipses over the image, which fades so that they stand out."""
    pixels = _pixels(part, size)
    plots.show_image(ax, 0.95 - 0.3 * pixels if part.channels == 1 else 0.7 + 0.3 * pixels)
    scale = [size[1] / part.resolution[1], *[size[0] / part.resolution[0]] * 2]
    packed = part.packed[0].detach()
    plots.gaussian_ellipses(
        ax,
        part.means[0],
        packed[:, 2:5] * packed.new_tensor(scale),
        part.colors[0],
        size=size,
        opacities=None if part.opacities is None else part.opacities[0],
        n_sigma=N_SIGMA,
    )
    ax.set_title(title, pad=3)


@torch.no_grad()
def _pixels(part: GaussianImages, size: tuple[int, int]) -> Tensor:
    return part.pixels(resolution=size)[0].clamp(0, 1)
