"""Figures of numbers: DataFrames in, a matplotlib Figure out; pictures have their own module. A
method has one color and an objective one line and marker in all figures; sizes are a paper's column
widths in inches; a saved file has the same bytes whenever it is made again."""

import sys
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gsdd_lib.core.files import write_atomically
from gsdd_lib.experiment.results import open_folder

COLUMN = 3.4  # inches: one column of a two-column page
PAGE = 7.0
DPI = 200  # of saved figures and of those in a notebook, which shows them at half that

_BLUE, _ORANGE, _GREEN, _RED, _PURPLE, _BROWN, _, _GREY, _, _CYAN = sns.color_palette("colorblind")
_BLACK = (0.25, 0.25, 0.25)
# Every method's name in print, and its one color. "pixels dm" is "pixels" by DM, and "pixels dm,
# initial" the same before distillation.
METHODS: Mapping[str, tuple[str, Any]] = {
    "distilled": ("Gaussians, distilled", _BLUE),
    "Gaussians": ("Gaussians", _BLUE),
    "gaussians": ("Gaussians", _BLUE),
    "gsdd": ("GSDD", _BLUE),
    "initial": ("Gaussians, before distillation", _CYAN),
    "random real": ("random real images, at equal storage", _ORANGE),
    "pixels": ("pixels", _PURPLE),
    "downsampled": ("downsampled pixels (IDC)", _GREEN),
    "idc": ("IDC", _GREEN),
    "frequency": ("frequencies (FreD)", _BROWN),
    "fred": ("FreD", _BROWN),
    "neural field": ("neural field (DDiF)", _RED),
    "ddif": ("DDiF", _RED),
    "whole data": ("all real images", _BLACK),
    "dc": ("DC", _GREY),
    "dsa": ("DSA", _GREY),
    "kip_convnet": ("KIP", _GREY),
}
OBJECTIVES = {"dm": ("-", "o"), "dc": ("--", "s"), "tm": (":", "^")}  # lines and markers


def _look(method: str) -> dict[str, Any]:
    plain = method.removesuffix(", initial")
    base, _, objective = plain.rpartition(" ")
    if not base or objective not in OBJECTIVES:
        base, objective = plain, ""
    name, shade = METHODS.get(base, (base, _GREY))
    line, marker = OBJECTIVES.get(objective, ("-", "o"))
    name += f" by {objective.upper()}" * bool(objective)
    look = {"color": shade, "ls": line, "marker": marker, "label": name}
    before = {"mfc": "white", "label": f"{name}, before distillation"}
    return look | before if plain != method else look


def color(method: str) -> Any:
    """The method's color in every figure; one that it does not know is grey."""
    return _look(method)["color"]


def label(method: str) -> str:
    return _look(method)["label"]


def use_style() -> None:
    """The one style of all figures; call it once, in a notebook's setup cell."""
    small = ("xtick.labelsize", "ytick.labelsize", "legend.fontsize", "legend.title_fontsize")
    normal = ("font.size", "axes.titlesize", "axes.labelsize")
    thin = ("axes.linewidth", "xtick.major.width", "ytick.major.width")
    sizes = dict.fromkeys(small, 7) | dict.fromkeys(normal, 8) | dict.fromkeys(thin, 0.6)
    lines = {"lines.linewidth": 1.4, "grid.linewidth": 0.4, "grid.color": "0.88"}
    frame = {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    page = {"figure.figsize": (COLUMN, 2.3), "figure.dpi": DPI / 2, "pdf.fonttype": 42}
    rules = sizes | lines | frame | page | {"figure.constrained_layout.use": True}
    sns.set_theme(context="paper", style="ticks", palette="colorblind", rc=rules)
    if (shell := getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()) is not None:
        shell.run_line_magic("config", "InlineBackend.figure_format = 'retina'")


def save(figure: Figure, folder: str | Path, name: str) -> Path:
    """Write ``name.png`` and ``name.pdf``, cropped, into ``folder``; returns the png's path."""
    path = open_folder(folder) / f"{name}.png"
    undated = {".png": {"Software": None}, ".pdf": {"CreationDate": None, "Producer": None}}
    look = {"dpi": DPI, "bbox_inches": "tight", "pad_inches": 0.02}
    for suffix, facts in undated.items():
        buffer = BytesIO()
        figure.savefig(buffer, format=suffix[1:], metadata=facts, **look)
        write_atomically(path.with_suffix(suffix), buffer.getvalue())
    return path


def history(frame: pd.DataFrame, *, hue: str = "method") -> Figure:
    """Validation accuracy over distillation steps: mean line and 95 % interval. ``frame``: columns
    ``step``, ``mean`` and ``ci95`` (half-width), percent; of several runs, ``hue`` names each."""
    figure, ax = plt.subplots()
    ax.set(xlabel="distillation step", ylabel="validation accuracy (%)")
    ax.grid(axis="y")
    runs = frame.groupby(hue, sort=False) if hue in frame else [("distilled", frame)]
    for name, rows in runs:
        look, half = _look(str(name)), rows.ci95.fillna(0.0)  # one network has no interval
        low, high = ((rows["mean"] + sign * half).clip(0, 100) for sign in (-1, 1))
        ax.plot(rows.step, rows["mean"], markersize=2.5, **look)
        ax.fill_between(rows.step, low, high, color=look["color"], alpha=0.12, lw=0)
    if len(runs) > 1:
        ax.legend()
    return figure


def accuracy_bars(frame: pd.DataFrame, *, published: pd.DataFrame | None = None) -> Figure:
    """Test accuracy per method, a dot with its 95 % interval; published numbers hollow, below.

    Args:
        frame: columns ``method``, ``mean`` and ``ci95`` (half-width), percent; top to bottom.
        published: columns ``method`` and ``paper``, percent, as ``tables.paper_rows`` gives.
    """
    rivals = [] if published is None else list(published[["method", "paper"]].to_numpy())
    count = len(frame) + len(rivals)
    figure, ax = plt.subplots(figsize=(COLUMN * 1.25, 0.5 + 0.26 * count))
    ours = zip(frame.method, frame["mean"], frame.ci95.fillna(0.0), strict=True)
    marks = [(mean, half, _look(method) | {"ls": ""}) for method, mean, half in ours]
    hollow = {"marker": "o", "mfc": "white", "color": _GREY}
    for name, mean in rivals:
        marks.append((mean, 0.0, hollow | {"label": f"{label(name)} (published)"}))
    for row, (mean, half, look) in enumerate(marks):
        ax.errorbar(mean, row, xerr=half or None, ms=5, capsize=2.5, **look)
        annotate_value(ax, mean + half, row, f"{mean:.1f}")
    ax.set(yticks=range(count), yticklabels=[look["label"] for *_, look in marks])
    ax.set(ylim=(count - 0.5, -0.5), xlabel="test accuracy (%)")
    ax.margins(x=0.2)  # room for the last number
    ax.grid(axis="x")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    return figure


def annotate_value(ax: Axes, x: float, y: float, text: str) -> None:
    ax.annotate(text, (x, y), (5, 0), textcoords="offset points", va="center", fontsize=7)
