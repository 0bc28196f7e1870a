"""Figures of speed and memory: how much faster, over which size, and how far from the floor."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gsdd_lib.experiment.plots import COLUMN, PAGE, annotate_value, color


def benchmark_ratios(frame: pd.DataFrame) -> Figure:
    """How many times faster than the oracle, on a logarithmic axis, one bar per size and pass.

    Args:
        frame: columns ``size`` (as printed), ``pass`` ("forward", "forward+backward"), ``ratio``.
    """
    sizes, passes = list(dict.fromkeys(frame["size"])), list(dict.fromkeys(frame["pass"]))
    figure, ax = plt.subplots(figsize=(COLUMN * 1.25, 0.6 + 0.22 * len(sizes) * len(passes)))
    thick = 0.8 / len(passes)
    shades = [color(method) for method in ("initial", "distilled", "whole data")]
    for order, (name, shade) in enumerate(zip(passes, shades, strict=False)):
        rows = frame[frame["pass"] == name].set_index("size").ratio.reindex(sizes)
        places = np.arange(len(sizes)) + (order - (len(passes) - 1) / 2) * thick
        ax.barh(places, rows - 1, left=1, height=thick * 0.9, color=shade, label=name)
        for place, ratio in zip(places, rows, strict=True):
            if np.isfinite(ratio):
                annotate_value(ax, ratio, place, f"{ratio:.3g}×")
    ax.set(xscale="log", xlabel="times faster than the oracle", yticks=range(len(sizes)))
    ax.set_yticklabels(sizes)
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.tick_params(axis="y", length=0)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3), ncols=len(passes))
    return figure


def efficiency(frame: pd.DataFrame, x: str, y: str, *, xlabel: str, ylabel: str) -> Figure:
    """One panel per pass, one line per method over ``x``, both axes logarithmic; the floor dashed.

    Args:
        frame: columns ``pass``, ``method``, ``x`` and ``y``; where ``y`` is "ms", also ``floor_ms``
            (NaN where a method has none).
    """
    passes = list(dict.fromkeys(frame["pass"]))
    figure, axes = plt.subplots(1, len(passes), figsize=(PAGE, 2.3), sharey=True, squeeze=False)
    for ax, name in zip(axes[0], passes, strict=True):
        rows = frame[frame["pass"] == name]
        for method, part in rows.groupby("method", sort=False):
            shade = color(method)
            ax.plot(part[x], part[y], marker="o", ms=3, color=shade, label=method)
            if y == "ms" and part.floor_ms.notna().all():
                named = f"{method}, floor"
                ax.plot(part[x], part.floor_ms, ls="--", lw=1, color=shade, label=named)
        ax.set(xscale="log", yscale="log", xlabel=xlabel, title=name)
        ticks = sorted(rows[x].unique())
        ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        ax.minorticks_off()
        ax.grid(axis="y")
    axes[0, 0].set_ylabel(ylabel)
    axes[0, -1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
