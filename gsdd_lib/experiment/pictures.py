"""Pictures: images in a grid, Gaussians as ellipses, and what became of each class.

Images are [.., C, H, W] with values in [0, 1], C = 1 or 3, as tensors or arrays; what lies outside
is clipped.
"""

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


def panels(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """A figure of ``size`` inches and its axes [rows, columns], close together, without frames."""
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.02, hspace=0.02)
    for ax in axes.flat:
        ax.set_axis_off()
    return figure, axes


def image_grid(
    images: Any, *, rows: int = 1, titles: Sequence[str] = (), width: float = PAGE
) -> Figure:
    """``images`` [N, C, H, W], row by row.

    Args:
        rows: rows of the grid; columns follow from N.
        titles: one per image, or one per column, above the first row only.
        width: of the figure, in inches.
    """
    pictures = to_numpy(images)
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
    picture = np.clip(to_numpy(image), 0, 1)
    _, height, width = picture.shape
    shown = picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0)
    ax.imshow(
        shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest", extent=(0, width, height, 0)
    )
    ax.set_axis_off()


def gaussian_ellipses(
    ax: Axes,
    means: Any,
    cholesky: Any,
    colors: Any,
    *,
    size: tuple[int, int],
    opacities: Any = None,
    n_sigma: float = 1.0,
) -> EllipseCollection:
    """Gaussians as outlines over an image that :func:`show_image` drew.

    Args:
        means: [M, 2] in [-1, 1], x right, y down; pixel x is W * (u + 1) / 2.
        cholesky: [M, 3] in pixels, l11, l21, l22 of the covariance L L^T (the effective factor).
        colors: [M, C]. Three channels: the color itself, clipped. One: blue darkens, red lights.
        size: (height, width) in pixels.
        opacities: [M]; a faint Gaussian has a faint fill. None: all alike.
        n_sigma: deviations from the centre to the outline.
    """
    height, width = size
    diameters, angles = _axes_of(to_numpy(cholesky), n_sigma)
    centres = (to_numpy(means) + 1) / 2 * (width, height)
    outline = _display_colors(to_numpy(colors))
    fill = outline.copy()
    fill[:, 3] = 0.25 if opacities is None else 0.35 * np.clip(np.abs(to_numpy(opacities)), 0, 1)
    ellipses = EllipseCollection(
        diameters[:, 0],
        diameters[:, 1],
        angles,
        units="xy",
        offsets=centres,
        transOffset=ax.transData,
        edgecolors=outline,
        facecolors=fill,
        linewidths=0.7,
    )
    ax.add_collection(ellipses)
    ax.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    ax.set_axis_off()
    return ellipses


def _axes_of(cholesky: np.ndarray, n_sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Diameters [M, 2] in pixels and angles [M] in degrees of the outlines."""
    factor = np.zeros((len(cholesky), 2, 2))
    factor[:, 0, 0], factor[:, 1, 0], factor[:, 1, 1] = cholesky.T
    turn, lengths, _ = np.linalg.svd(factor)  # the columns of `turn` are the ellipse's axes
    return 2 * n_sigma * lengths, np.degrees(np.arctan2(turn[:, 1, 0], turn[:, 0, 0]))


def _display_colors(colors: np.ndarray) -> np.ndarray:
    """[M, C] to RGBA [M, 4]."""
    if colors.shape[1] == 3:
        return np.concatenate([np.clip(colors, 0, 1), np.ones((len(colors), 1))], axis=1)
    strength = colors.mean(axis=1)
    scale = max(np.abs(strength).max(initial=0), 1e-12)
    return mpl.colormaps["coolwarm"](0.5 + 0.5 * strength / scale)


def class_panels(
    rows: Mapping[str, Any],
    class_names: Sequence[str],
    *,
    size: tuple[int, int],
    opacity: bool = True,
) -> Figure:
    """One column per class, one labeled row per kind of picture.

    Args:
        rows: name -> images [K, C, H, W], or packed Gaussians [K, M, 5 + C + opacity], which are
            drawn as ellipses of one standard deviation.
        size: (height, width) of the images in pixels.
        opacity: whether packed rows end in an opacity.
    """
    count = len(class_names)
    cell = PAGE / (count + 0.6)
    figure, axes = panels(len(rows), count, (PAGE, cell * len(rows) * size[0] / size[1] + 0.25))
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for ax, picture in zip(line, to_numpy(pictures), strict=True):
            if picture.ndim == 3:
                show_image(ax, picture)
            else:
                _draw_gaussians(ax, picture, size, opacity)
        line[0].set_axis_on()
        line[0].set(xticks=[], yticks=[])
        line[0].spines[:].set_visible(False)
        line[0].set_ylabel(name, fontsize=7)
    for ax, name in zip(axes[0], class_names, strict=True):
        ax.set_title(_wrapped(name, cell), fontsize=6.5, pad=2)
    return figure


def class_rows(
    images: Any, labels: Any, class_names: Sequence[str], *, classes: int, per_class: int
) -> Figure:
    """The first ``per_class`` images of the first ``classes`` classes, a named row per class.

    images: [N, C, H, W]; labels: [N]. Paper, figures 10 to 12.
    """
    images, labels = to_numpy(images), to_numpy(labels)
    cell = min((PAGE - NAMES) / per_class, 0.85)
    size = (cell * per_class + NAMES, cell * classes * images.shape[2] / images.shape[3])
    figure, axes = panels(classes, per_class, size)
    for label, line in enumerate(axes):
        for ax, image in zip(line, images[labels == label][:per_class], strict=False):
            show_image(ax, image)
        look = {"xycoords": "axes fraction", "ha": "right", "va": "center", "fontsize": 6.5}
        line[0].annotate(_wrapped(class_names[label], NAMES), (-0.08, 0.5), **look)
    return figure


def _wrapped(name: str, inches: float) -> str:
    """A class's name in lines that fit ``inches``; of synonyms, the first."""
    first = name.partition(",")[0].replace("_", " ")
    return textwrap.fill(first, max(6, int(inches / LETTER)))


def _draw_gaussians(ax: Axes, packed: np.ndarray, size: tuple[int, int], opacity: bool) -> None:
    colors = packed[:, 5:-1] if opacity else packed[:, 5:]
    weights = packed[:, -1] if opacity else None
    show_image(ax, np.full((1, *size), 0.97))
    gaussian_ellipses(ax, packed[:, :2], packed[:, 2:5], colors, size=size, opacities=weights)


def to_numpy(values: Any) -> np.ndarray:
    """A float array of an array or of a tensor on any device, in any precision."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().float()
    return np.asarray(values, dtype=float)
