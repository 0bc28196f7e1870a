"""Pictures: images in a grid, Gaussians as ellipses, and what became of each class. Images are
[.., C, H, W], tensors or arrays, C = 1 or 3, clipped to [0, 1]."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure

from gsdd_lib.experiment.plots import PAGE

NAMES = 0.7  # inches beside the rows of class_rows
LETTER = 0.055  # inches: the width of a letter of a class's name
BESIDE = {"xycoords": "axes fraction", "ha": "right", "va": "center"}  # a row's name


def panels(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """A figure of ``size`` inches and its axes [rows, columns], close together, without frames."""
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.02, hspace=0.02)
    for ax in axes.flat:
        ax.set_axis_off()
    return figure, axes


def image_grid(images: Any, *, rows=1, titles: Sequence[str] = (), width=PAGE) -> Figure:
    """``images`` [N, C, H, W] in ``rows``, in a figure of ``width`` inches. ``titles``: one per
    image, or one per column, above the first row only."""
    pictures = _array(images)
    count, channels, height, wide = pictures.shape
    columns = -(-count // rows)
    if channels not in (1, 3):
        raise ValueError(f"image_grid shows 1 or 3 channels, not {channels}.")
    if len(titles) not in (0, columns, count):
        raise ValueError(f"{len(titles)} titles fit neither {count} images nor {columns} columns.")
    head = 0.2 * (rows if len(titles) > columns else bool(titles))
    figure, axes = panels(rows, columns, (width, width / columns * rows * height / wide + head))
    for ax, picture in zip(axes.flat, pictures, strict=False):
        show_image(ax, picture)
    for ax, title in zip(axes.flat, titles, strict=False):
        ax.set_title(title, pad=2)
    return figure


def show_image(ax: Axes, image: Any) -> None:
    """One image ``[C, H, W]`` in [0, 1] on ``ax``, pixel i from i to i + 1 on either axis."""
    picture = np.clip(_array(image), 0, 1).transpose(1, 2, 0)
    height, width, _ = picture.shape
    shown = picture[..., 0] if picture.shape[2] == 1 else picture
    look = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
    ax.imshow(shown, extent=(0, width, height, 0), **look)
    ax.set_axis_off()


def gaussian_ellipses(
    ax: Axes, means: Any, cholesky: Any, colors: Any, *, size: Any, opacities=None, n_sigma=1.0
) -> EllipseCollection:
    """Gaussians as outlines over an image that :func:`show_image` drew.

    Args:
        means, cholesky: [M, 2] and [M, 3], as :func:`splat` takes them.
        colors: [M, C]. Three channels: the color itself, clipped. One: blue darkens, red lights.
        size: (height, width) in pixels.
        opacities: [M]; a faint Gaussian has a faint fill. None: all alike.
        n_sigma: deviations from the center to the outline.
    """
    height, width = size
    colors, factor = _array(colors), np.zeros((len(cholesky), 2, 2))
    factor[:, 0, 0], factor[:, 1, 0], factor[:, 1, 1] = _array(cholesky).T
    turn, lengths, _ = np.linalg.svd(factor)  # the columns of `turn` are the ellipse's axes
    if colors.shape[1] == 3:
        outline = np.concatenate([np.clip(colors, 0, 1), np.ones((len(colors), 1))], axis=1)
    else:
        strength = colors.mean(axis=1)
        scale = max(np.abs(strength).max(initial=0), 1e-12)
        outline = mpl.colormaps["coolwarm"](0.5 + 0.5 * strength / scale)
    fill = outline.copy()
    fill[:, 3] = 0.25 if opacities is None else 0.35 * np.clip(np.abs(_array(opacities)), 0, 1)
    angles = np.degrees(np.arctan2(turn[:, 1, 0], turn[:, 0, 0]))
    look = {"units": "xy", "edgecolors": outline, "facecolors": fill, "linewidths": 0.7}
    look |= {"offsets": (_array(means) + 1) / 2 * size[::-1], "offset_transform": ax.transData}
    ellipses = EllipseCollection(*(2 * n_sigma * lengths.T), angles, **look)
    ax.add_collection(ellipses)
    ax.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    ax.set_axis_off()
    return ellipses


def class_panels(
    rows: Mapping[str, Any], class_names: Sequence[str], *, size: tuple[int, int], opacity=True
) -> Figure:
    """One column per class, one labeled row per kind of picture.

    Args:
        rows: name -> images [K, C, H, W], or packed Gaussians [K, M, 5 + C + opacity] to outline.
        size: (height, width) of the images in pixels.
    """
    count = len(class_names)
    cell = PAGE / (count + 0.6)
    figure, axes = panels(len(rows), count, (PAGE, cell * len(rows) * size[0] / size[1] + 0.25))
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for ax, picture in zip(line, _array(pictures), strict=True):
            show_image(ax, picture if picture.ndim == 3 else np.full((1, *size), 0.97))
            if picture.ndim == 2:
                means, cholesky, colors = picture[:, :2], picture[:, 2:5], picture[:, 5:]
                colors, weights = (colors[:, :-1], colors[:, -1]) if opacity else (colors, None)
                gaussian_ellipses(ax, means, cholesky, colors, size=size, opacities=weights)
        line[0].annotate(name, (-0.04, 0.5), rotation=90, fontsize=7, **BESIDE)
    for ax, name in zip(axes[0], class_names, strict=True):
        ax.set_title(_wrapped(name, cell), fontsize=6.5, pad=2)
    return figure


def class_rows(
    images: Any, labels: Any, class_names: Sequence[str], *, classes: int, per_class: int
) -> Figure:
    """The first images of the first classes, a named row per class (paper, figures 10 to 12)."""
    images, labels = _array(images), _array(labels)
    cell = min((PAGE - NAMES) / per_class, 0.85)
    size = (cell * per_class + NAMES, cell * classes * images.shape[2] / images.shape[3])
    figure, axes = panels(classes, per_class, size)
    for label, line in enumerate(axes):
        for ax, image in zip(line, images[labels == label][:per_class], strict=False):
            show_image(ax, image)
        name = _wrapped(class_names[label], NAMES)
        line[0].annotate(name, (-0.08, 0.5), fontsize=6.5, **BESIDE)
    return figure


def _wrapped(name: str, inches: float) -> str:
    first = name.partition(",")[0].replace("_", " ")
    return textwrap.fill(first, max(6, int(inches / LETTER)))


def _array(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu().float()
    return np.asarray(values, dtype=float)
