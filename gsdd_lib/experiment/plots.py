"""Every figure of the notebooks: arrays and DataFrames in, a matplotlib Figure out.

Nothing here reads a file or trains anything. A method has one colour in all figures, sizes are a
paper's column widths in inches, and a saved file has the same bytes whenever it is made again.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure

from gsdd_lib.core.files import write_atomically
from gsdd_lib.experiment.results import open_folder

COLUMN = 3.4  # inches: one column of a two-column page
PAGE = 7.0

_PALETTE = sns.color_palette("colorblind")
_BLUE, _ORANGE, _GREEN, _RED, _PURPLE, _, _, _GREY, _, _CYAN = _PALETTE
# Every method's name in print, and its one colour.
METHODS: Mapping[str, tuple[str, Any]] = {
    "distilled": ("Gaussians, distilled", _BLUE),
    "distilled dm": ("Gaussians, distilled by DM", _BLUE),
    "distilled dc": ("Gaussians, distilled by DC", _GREEN),
    "distilled tm": ("Gaussians, distilled by TM", _RED),
    "initial": ("Gaussians, before distillation", _CYAN),
    "random real": ("random real images, same bits", _ORANGE),
    "pixels": ("pixels, distilled, same bits", _PURPLE),
    "whole data": ("all real images", _GREEN),
    "gsdd": ("GSDD", _RED),
    "Gaussians": ("Gaussians", _BLUE),
    "neural field": ("neural field", _RED),
    "dc": ("DC", _GREY),
    "dsa": ("DSA", _GREY),
    "kip_convnet": ("KIP", _GREY),
}


def color(method: str) -> Any:
    """The method's colour in every figure; one it does not know is grey."""
    return METHODS.get(method, ("", _GREY))[1]


def label(method: str) -> str:
    """The method's name as figures print it."""
    return METHODS.get(method, (method,))[0]


def use_style() -> None:
    """The one style of all figures; call it once, in a notebook's setup cell."""
    sns.set_theme(context="paper", style="ticks", palette="colorblind")
    small = dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 7)
    normal = dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize"), 8)
    thin = dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.6)
    mpl.rcParams.update(small | normal | thin)
    mpl.rc("figure", figsize=(COLUMN, 2.3), dpi=120)
    mpl.rc("figure.constrained_layout", use=True)
    mpl.rc("axes.spines", top=False, right=False)
    mpl.rc("grid", linewidth=0.4, color="0.88")
    mpl.rc("lines", linewidth=1.4)
    mpl.rc("legend", frameon=False, title_fontsize=7)
    mpl.rc("pdf", fonttype=42)


def save(figure: Figure, folder: str | Path, name: str) -> Path:
    """Write ``name.png`` (150 dpi) and ``name.pdf`` into ``folder``; returns the png's path."""
    path = open_folder(folder) / f"{name}.png"
    undated = {".png": {"Software": None}, ".pdf": {"CreationDate": None, "Producer": None}}
    for suffix, facts in undated.items():
        buffer = BytesIO()
        figure.savefig(buffer, format=suffix[1:], dpi=150, metadata=facts)
        write_atomically(path.with_suffix(suffix), buffer.getvalue())
    return path


def image_grid(
    images: Any, *, rows: int = 1, titles: Sequence[str] = (), width: float = PAGE
) -> Figure:
    """``images [N, C, H, W]`` in [0, 1], C = 1 or 3, row by row; values outside are clipped.

    Args:
        rows: rows of the grid; columns follow from N.
        titles: one per image, or one per column, above the first row only.
        width: of the figure, in inches.
    """
    pictures = np.clip(_array(images), 0, 1)
    count, channels, height, wide = pictures.shape
    columns = -(-count // rows)
    if channels not in (1, 3):
        raise ValueError(f"image_grid shows 1 or 3 channels, not {channels}.")
    if len(titles) not in (0, columns, count):
        raise ValueError(f"{len(titles)} titles fit neither {count} images nor {columns} columns.")
    head = 0.2 * (rows if len(titles) > columns else bool(titles))
    size = (width, width / columns * rows * height / wide + head)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.02, hspace=0.02)
    for index, ax in enumerate(axes.flat):
        ax.set_axis_off()
        if index < count:
            show_image(ax, pictures[index])
        if index < len(titles):
            ax.set_title(titles[index], pad=2)
    return figure


def show_image(ax: Axes, image: Any) -> None:
    """One image ``[C, H, W]`` in [0, 1] on ``ax``, pixel i from i to i + 1 on either axis."""
    picture = np.clip(_array(image), 0, 1)
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
        colors: [M, C]. Three channels: the colour itself, clipped. One: blue darkens, red lights.
        size: (height, width) in pixels.
        opacities: [M]; a faint Gaussian has a faint fill. None: all alike.
        n_sigma: deviations from the centre to the outline.
    """
    height, width = size
    diameters, angles = _axes_of(_array(cholesky), n_sigma)
    centres = (_array(means) + 1) / 2 * (width, height)
    outline = _display_colors(_array(colors))
    fill = outline.copy()
    fill[:, 3] = 0.25 if opacities is None else 0.35 * np.clip(np.abs(_array(opacities)), 0, 1)
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


def psnr_curve(frame: pd.DataFrame, *, hue: str = "points", unit: str = "Gaussians") -> Figure:
    """PSNR over fitting steps, one line per value of ``hue``.

    Args:
        frame: columns ``step``, ``psnr`` (dB) and, where there are several lines, ``hue``.
        unit: what the values of ``hue`` count, for the legend's title.
    """
    figure, ax = plt.subplots()
    lines = frame.groupby(hue, sort=True) if hue in frame else [("", frame)]
    shades = sns.color_palette("crest", len(lines)) if len(lines) > 1 else [color("distilled")]
    for shade, (value, line) in zip(shades, lines, strict=True):
        curve = line.groupby("step").psnr.mean()
        ax.plot(curve.index, curve, color=shade, label=str(value))
    ax.set(xlabel="fitting step", ylabel="PSNR (dB)")
    ax.grid(axis="y")
    if len(lines) > 1:
        title = f"{unit}\nper image"
        ax.legend(title=title, loc="center left", bbox_to_anchor=(1, 0.5), reverse=True)
    return figure


def history(frame: pd.DataFrame, *, hue: str = "method") -> Figure:
    """Validation accuracy over distillation steps: mean line and 95 % interval.

    Args:
        frame: columns ``step``, ``mean`` and ``ci95`` (half-width), percent, as
            ``distill.distill`` yields them; where there are several runs, ``hue`` names them.
    """
    figure, ax = plt.subplots()
    runs = frame.groupby(hue, sort=False) if hue in frame else [("distilled", frame)]
    others = iter(_PALETTE[1:])
    for name, rows in runs:
        shade = color(name) if name in METHODS else next(others)
        mean, half = rows["mean"], rows.ci95.fillna(0.0)  # one network alone has no interval
        ax.plot(rows.step, mean, color=shade, marker="o", markersize=2.5, label=label(str(name)))
        ax.fill_between(rows.step, mean - half, mean + half, color=shade, alpha=0.18, lw=0)
    ax.set(xlabel="distillation step", ylabel="validation accuracy (%)")
    ax.grid(axis="y")
    if len(runs) > 1:
        ax.legend()
    return figure


def expert_curves(frame: pd.DataFrame, y: str, ylabel: str) -> Figure:
    """A number over epochs, a thin line per expert and a thick one for their mean.

    Args:
        frame: columns ``expert``, ``epoch`` and ``y``.
    """
    figure, ax = plt.subplots()
    for number, (_, rows) in enumerate(frame.groupby("expert")):
        named = {"label": "one expert"} if number == 0 else {}
        ax.plot(rows.epoch, rows[y], color=_GREY, lw=0.7, alpha=0.7, **named)
    mean = frame.groupby("epoch")[y].mean()
    ax.plot(mean.index, mean, color=color("whole data"), marker="o", markersize=2.5, label="mean")
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    ax.set(xlabel="epoch", ylabel=ylabel)
    ax.grid(axis="y")
    ax.legend()
    return figure


def accuracy_bars(frame: pd.DataFrame, *, published: pd.DataFrame | None = None) -> Figure:
    """Test accuracy per method, a dot with its 95 % interval; published numbers hollow, below.

    Args:
        frame: columns ``method``, ``mean`` and ``ci95`` (half-width), percent; top to bottom.
        published: columns ``method``, ``accuracy``, percent, as ``tables.fashion_mnist_rivals``.
    """
    rivals = (
        [] if published is None else list(zip(published.method, published.accuracy, strict=True))
    )
    count = len(frame) + len(rivals)
    figure, ax = plt.subplots(figsize=(COLUMN * 1.25, 0.5 + 0.26 * count))
    ours = zip(frame.method, frame["mean"], frame.ci95.fillna(0.0), strict=True)
    for row, (method, mean, half) in enumerate(ours):
        ax.errorbar(mean, row, xerr=half, fmt="o", ms=5, capsize=2.5, color=color(method))
        annotate_value(ax, mean + half, row, f"{mean:.1f}")
    for row, (_, mean) in enumerate(rivals, start=len(frame)):
        ax.plot(mean, row, "o", ms=5, mfc="white", mec=_GREY)
        annotate_value(ax, mean, row, f"{mean:.1f}")
    names = [label(name) for name in frame.method]
    names += [f"{label(name)} (published)" for name, _ in rivals]
    ax.set(yticks=range(count), yticklabels=names, ylim=(count - 0.5, -0.5))
    ax.set_xlabel("test accuracy (%)")
    ax.margins(x=0.15)
    ax.grid(axis="x")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    return figure


def annotate_value(ax: Axes, x: float, y: float, text: str) -> None:
    """A number printed just right of its mark."""
    ax.annotate(text, (x, y), (5, 0), textcoords="offset points", va="center", fontsize=7)


def _array(values: Any) -> np.ndarray:
    """A numpy float array of an array or of a tensor on any device, in any precision."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().float()
    return np.asarray(values, dtype=float)
