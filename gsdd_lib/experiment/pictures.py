"""The pictures of a distilled set: real images, their Gaussians, and what became of them."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from gsdd_lib.experiment.plots import PAGE, gaussian_ellipses, show_image

NAMES = 0.7  # inches beside the rows of class_rows


def class_panels(
    rows: Mapping[str, Tensor | Sequence[Tensor]],
    class_names: Sequence[str],
    *,
    size: tuple[int, int],
    opacity: bool = True,
) -> Figure:
    """One column per class, one labeled row per kind of picture.

    Args:
        rows: name -> images [K, C, H, W] in [0, 1], or packed Gaussians [K, M, 5 + C + opacity],
            which are drawn as ellipses of one standard deviation.
        size: (height, width) of the images in pixels.
        opacity: whether packed rows end in an opacity.
    """
    count = len(class_names)
    cell = PAGE / (count + 0.6)
    figure, axes = plt.subplots(
        len(rows), count, figsize=(PAGE, cell * len(rows) + 0.25), squeeze=False
    )
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.02, hspace=0.02)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for ax, picture in zip(line, pictures, strict=True):
            if picture.dim() == 3:
                show_image(ax, picture)
            else:
                _draw_gaussians(ax, picture, size, opacity)
        line[0].set_axis_on()
        line[0].set(xticks=[], yticks=[])
        line[0].spines[:].set_visible(False)
        line[0].set_ylabel(name, fontsize=7)
    for ax, name in zip(axes[0], class_names, strict=True):
        ax.set_title(name, fontsize=6.5, pad=2)
    return figure


def class_rows(
    images: Tensor, labels: Tensor, class_names: Sequence[str], *, classes: int, per_class: int
) -> Figure:
    """The first ``per_class`` images of the first ``classes`` classes, a named row per class.

    images: [N, C, H, W] in [0, 1]; labels: int64 [N]. Paper, figures 10 to 12.
    """
    labels = labels.cpu()
    members = [(labels == label).nonzero().flatten()[:per_class] for label in range(classes)]
    cell = min((PAGE - NAMES) / per_class, 0.85)
    size = (cell * per_class + NAMES, cell * classes * images.shape[2] / images.shape[3])
    figure, axes = plt.subplots(classes, per_class, figsize=size, squeeze=False)
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.02, hspace=0.02)
    for row, (line, chosen) in enumerate(zip(axes, members, strict=True)):
        for ax in line:
            ax.set_axis_off()
        for ax, index in zip(line, chosen.tolist(), strict=False):
            show_image(ax, images[index])
        name = class_names[row]
        line[0].annotate(
            name, (-0.08, 0.5), xycoords="axes fraction", ha="right", va="center", fontsize=6.5
        )
    return figure


def _draw_gaussians(ax: Axes, packed: Tensor, size: tuple[int, int], opacity: bool) -> None:
    values = packed.detach().cpu().float().numpy()
    colors = values[:, 5:-1] if opacity else values[:, 5:]
    weights = values[:, -1] if opacity else None
    show_image(ax, np.full((1, *size), 0.97))
    gaussian_ellipses(
        ax, values[:, :2], values[:, 2:5], colors, size=size, opacities=weights, n_sigma=1.0
    )
