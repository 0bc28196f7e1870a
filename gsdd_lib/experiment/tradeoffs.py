"""What a budget buys, and what can be taken away: two widgets, each over a function that draws.

The picture first shown stays in the saved notebook, for readers without a kernel.
"""

from collections.abc import Callable
from functools import cache, partial

import matplotlib.pyplot as plt
import pandas as pd
import torch
from ipywidgets import Dropdown
from matplotlib.figure import Figure
from torch import Tensor

from gsdd_lib.config import CodecConfig, FitConfig
from gsdd_lib.experiment.pictures import panels, show_image
from gsdd_lib.experiment.plots import PAGE
from gsdd_lib.experiment.widgets import LOOK, Sliders, choice, slider
from gsdd_lib.parameterizations.budget import PIXEL_BITS
from gsdd_lib.parameterizations.codec import Codec
from gsdd_lib.parameterizations.fit import fit_rows, psnr
from gsdd_lib.parameterizations.gaussian import GaussianImages

BITS = (3, 4, 5, 6, 8, 16)  # of each number; 16: bf16, the others as the codec rounds
POINTS = (1, 2, 3, 4, 6, 9, 13, 20, 30, 44, 65, 100, 150, 220)  # Gaussians per image
BUDGETS = (1, 2, 5, 10, 20, 50)  # fp32 images per class


@torch.no_grad()
def budget(
    pixels: Tensor, fitted: GaussianImages, *, ipc: int, gpc: int, bits: int, classes: int
) -> Figure:
    """Images [n, C, H, W] above the Gaussians fitted to them, and what ``gpc`` such a class cost.

    Args:
        ipc: fp32 images per class, whose bits are the budget.
        bits: of each number, before entropy coding.
    """
    fitted.codec = None
    if bits < BITS[-1]:
        kinds = ("means", "cholesky", "color", "chroma", "opacity")
        grids = CodecConfig(**{f"{kind}_bits": bits for kind in kinds})
        fitted.codec = Codec.fit(fitted.packed, grids, channels=fitted.channels)
    drawn, numbers = fitted.pixels(), fitted.packed.shape[-1]
    cost, allowed = gpc * fitted.points * numbers * bits, ipc * pixels[0].numel() * PIXEL_BITS
    figure, axes = panels(2, len(pixels), (PAGE, 2 * PAGE / len(pixels) + 0.4))
    for ax, picture in zip(axes.flat, [*pixels, *drawn], strict=True):
        show_image(ax, picture)
    figure.suptitle(
        f"GPC {gpc} × {fitted.points} Gaussians × {numbers * bits} bits = {cost:,} bits per class, "
        f"{cost / allowed:.0%} of IPC {ipc}, which buys {allowed // (gpc * numbers * bits)}\n"
        f"{classes} classes: {cost * classes // 8:,} bytes; {psnr(drawn, pixels).mean():.1f} dB",
        fontsize=8,
    )
    return figure


def budget_chooser(pixels: Tensor, config: FitConfig, *, classes: int, **more: object) -> Sliders:
    """Sliders for :func:`budget`; more: of ``GaussianImages.init_from``, seed and normalization."""

    @cache
    def fitted(points: int) -> GaussianImages:
        labels = torch.zeros(len(pixels))
        made = GaussianImages.init_from(pixels, labels, points=points, **more)
        for _ in fit_rows(made, pixels, config):
            pass
        return made

    def view(ipc: int, gpc: int, points: int, bits: int) -> Figure:
        return budget(pixels, fitted(points), ipc=ipc, gpc=gpc, bits=bits, classes=classes)

    controls = {"ipc": choice("budget: IPC", BUDGETS), "gpc": slider("images: GPC", 1, 50, 3)}
    controls |= {"points": choice("Gaussians each", POINTS, 6)}
    return Sliders(view, controls | {"bits": choice("bits of a number", BITS, BITS[-1])})


def pruning(
    table: pd.DataFrame, prune: Callable[[str, float], Tensor], order: str, share: float
) -> Figure:
    """The measured accuracy without a share of the Gaussians, and the images without it.

    Args:
        table: columns order, share (0 to 1) and mean, percent.
        prune: images [n, C, H, W] without that share of their Gaussians.
    """
    figure, pictures = plt.figure(figsize=(PAGE, 2.2), layout="constrained"), prune(order, share)
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.3])
    ax = left.subplots()
    for name, part in table.groupby("order", sort=False):
        look = {"lw": 2, "marker": "o", "ms": 3} if name == order else {"lw": 0.7, "color": "0.7"}
        ax.plot(100 * part["share"], part["mean"], **look)
    ax.axvline(100 * share, color="0.3", lw=0.8, ls=":")
    ax.set(xlabel=f"Gaussians removed (%), {order}", ylabel="test accuracy (%)", ylim=(0, None))
    columns = -(-len(pictures) // 2)
    for number, spot in enumerate(right.subplots(2, columns, squeeze=False).flat):
        spot.set_axis_off()
        if number < len(pictures):
            show_image(spot, pictures[number])
    right.suptitle(f"without {share:.0%} of their Gaussians", fontsize=8)
    return figure


def pruner(table: pd.DataFrame, prune: Callable[[str, float], Tensor]) -> Sliders:
    """Sliders for :func:`pruning`."""
    named = [(f"{percent} %", percent / 100) for percent in range(0, 100, 5)]
    orders = Dropdown(options=list(table.order.unique()), description="removed", **LOOK)
    controls = {"order": orders, "share": choice("share removed", named, 0.5)}
    return Sliders(partial(pruning, table, prune), controls)
