"""Looking into Gaussian images and runs: sliders in JupyterLab, and the same as a still figure.

    from gsdd_lib.experiment import widgets as explore
    explore.Explorer(load("set.safetensors"))  # the last line of a cell
    figure = explore.static(load("set.safetensors"), images=[0, 7])

A widget is a :class:`Sliders`: a pure function that draws, and a control for each of its arguments.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from gsdd_lib.core.files import project_root
from gsdd_lib.experiment.pictures import gaussian_ellipses, panels, show_image
from gsdd_lib.experiment.plots import PAGE
from gsdd_lib.experiment.results import RECORD
from gsdd_lib.parameterizations.gaussian import GaussianImages
from gsdd_lib.storage import DistilledSet

Source = GaussianImages | DistilledSet

PANEL = 2.0  # inches: the height of one picture on the screen
TITLE = 0.2  # inches, for a line of text
N_SIGMA = 1.5  # deviations from a Gaussian's center to its outline
ENLARGEMENTS = (1, 2, 4, 8, 16)  # times the native resolution, for the slider
SCREEN_DPI = 100  # the picture has twice as many dots, for sharp screens
LOOK: Mapping[str, Any] = {"style": {"description_width": "9em"}, "layout": {"width": "32em"}}
# What a part of the Gaussians has in common with all of them.
FACTS = ("resolution", "normalization", "render_config", "opacity", "space", "store_bf16", "codec")
LET_GO = {"continuous_update": False}  # a picture is drawn when a slider is let go
VIEW = "application/vnd.jupyter.widget-view+json"
# Opened again without its kernel, a control is a node of JupyterLab's with the text "model not
# found" and no element in it; this rule, saved in the notebook, hides it.
CAPTION = """<style>.jp-OutputArea-output.jupyter-widgets:not(:has(*)) { display: none }</style>
<small>The controls need a kernel: run this cell to use them.</small>"""


class Sliders:
    """A picture and the controls that it depends on; displays itself.

    The picture is an ordinary output and no widget, so the one last looked at stays in the saved
    notebook, and is all that is there when it is opened without a kernel.

    Args:
        draw: makes the figure, from the controls' values by name.
        controls: ipywidgets with a ``value``, by the name of what they set.

    Attributes:
        controls: as given.
        png: the picture shown.
    """

    def __init__(self, draw: Callable[..., Figure], controls: dict[str, Any]) -> None:
        self._draw, self.controls, self._output = draw, controls, None
        self._redraw()
        for control in controls.values():
            control.observe(self._redraw, names="value")

    def _redraw(self, _change: Any = None) -> None:
        figure = self._draw(**{name: control.value for name, control in self.controls.items()})
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=2 * SCREEN_DPI)
        self._width = round(figure.get_figwidth() * SCREEN_DPI)
        plt.close(figure)  # an open one would be shown a second time, at the cell's end
        self.png = buffer.getvalue()
        if self._output:
            self._output.update(**self.bundle(), raw=True)

    def bundle(self) -> dict[str, dict[str, Any]]:
        """The picture as Jupyter displays it, and the width it is shown at."""
        data = {"image/png": self.png, "text/plain": "a picture with sliders"}
        return {"obj": data, "metadata": {"image/png": {"width": self._width}}}

    def _ipython_display_(self) -> None:
        shown = self.bundle()
        self._output = display(shown["obj"], metadata=shown["metadata"], raw=True, display_id=True)
        display(HTML(CAPTION))
        view = ipywidgets.VBox(list(self.controls.values()))._repr_mimebundle_()[VIEW]
        display({VIEW: view, "text/plain": ""}, raw=True)


def slider(name: str, least: int, most: int, value: int | None = None) -> Any:
    """A control for a whole number."""
    return ipywidgets.IntSlider(value, least, most, description=name, **LOOK, **LET_GO)


def choice(name: str, options: Sequence[Any], value: Any = None) -> Any:
    """A slider over a few ordered values, or pairs of a text and a value."""
    look = LOOK | LET_GO | ({} if value is None else {"value": value})
    return ipywidgets.SelectionSlider(options=options, description=name, **look)


class Explorer(Sliders):
    """An image from its largest Gaussians on, at any resolution, and its Gaussians as ellipses.

    Args:
        originals: pixel values [N, C, H, W] in [0, 1], one per Gaussian image, shown beside it.
    """

    def __init__(self, source: Source, originals: Tensor | None = None) -> None:
        gaussians, names = _unpack(source, originals)
        (height, width), points = gaussians.resolution, gaussians.points
        sizes = [(k * height, k * width) for k in ENLARGEMENTS]
        controls = {
            "image": slider("image", 0, len(gaussians) - 1),
            "shown": slider("largest Gaussians", 1, points, points),
            "resolution": choice("pixels", [(_by(size), size) for size in sizes]),
            "ellipses": ipywidgets.Checkbox(True, description="ellipses", style=LOOK["style"]),
        }

        def view(image: int, **values: Any) -> Figure:
            label, original = int(gaussians.labels[image]), originals
            name = names[label] if label < len(names) else f"class {label}"
            original = None if originals is None else originals[image]
            return draw(gaussians, image, **values, original=original, name=name)

        super().__init__(view, controls)


def draw(
    gaussians: GaussianImages,
    image: int,
    shown: int,
    resolution: tuple[int, int],
    *,
    ellipses: bool = False,
    original: Tensor | None = None,
    name: str = "",
) -> Figure:
    """One image from its ``shown`` largest Gaussians; beside it, if wanted, what they are.

    Args:
        image: which one, from 0.
        shown: how many Gaussians, those of the largest area first; 1 to ``gaussians.points``.
        resolution: (height, width) in pixels.
        ellipses: a panel with the Gaussians' outlines over the faded image.
        original: pixel values [C, H, W] in [0, 1], shown first.
        name: of the class, before the title.

    Raises:
        ValueError: there is no such image, or not so many Gaussians.
    """
    part = _largest(gaussians, image, shown)
    height, width = gaussians.resolution
    count = 1 + (original is not None) + ellipses
    figure, axes = panels(1, count, (count * PANEL * width / height, PANEL + TITLE))
    title = f"{name}: " * bool(name) + f"{shown} of {gaussians.points} Gaussians, {_by(resolution)}"
    if original is not None:
        _picture(axes[0, 0], original, "original")
    _view(axes[0, count - 1 - ellipses], part, resolution, title)
    if ellipses:
        title = f"their {N_SIGMA:g}-sigma ellipses"
        _view(axes[0, -1], part, resolution, title, ellipses=True)
    return figure


def static(
    source: Source, originals: Tensor | None = None, *, images: Sequence[int] = (0, 1, 2)
) -> Figure:
    """What the sliders show, as one figure for a page without a kernel; a row per image.

    From left to right: the original, if given, a quarter, half and all of the Gaussians, all of
    them at four times the resolution, and their ellipses.
    """
    gaussians, _ = _unpack(source, originals)
    points, (height, width) = gaussians.points, gaussians.resolution
    counts = (max(1, points // 4), max(1, points // 2), points)
    large, columns = (4 * height, 4 * width), 5 + (originals is not None)
    inches = PAGE / columns * height / width * len(images) + TITLE
    figure, axes = panels(len(images), columns, (PAGE, inches))
    for row, image in zip(axes, images, strict=True):
        if originals is not None:
            _picture(row[0], originals[image], "original")
        for ax, shown in zip(row[-5:-2], counts, strict=True):
            part = _largest(gaussians, image, shown)
            _view(ax, part, part.resolution, f"{shown} of {points}, {_by(part.resolution)}")
        _view(row[-2], part, large, f"all, {_by(large)}")
        _view(row[-1], part, part.resolution, "ellipses", ellipses=True)
    for ax in axes[1:].flat:
        ax.set_title("")  # the first row's titles serve for all
    return figure


def _unpack(source: Source, originals: Tensor | None) -> tuple[GaussianImages, tuple[str, ...]]:
    """The Gaussians and the names of their classes, where these are known."""
    own = isinstance(source, DistilledSet)
    images, names = (source.gaussians, source.class_names) if own else (source, ())
    if originals is not None and (originals.dim() != 4 or len(originals) != len(images)):
        wanted = f"originals must be [{len(images)}, C, H, W], one per Gaussian image"
        raise ValueError(f"{wanted}, got {list(originals.shape)}.")
    return images, names


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
    own = {name: getattr(gaussians, name) for name in FACTS}
    label = gaussians.labels[image : image + 1]
    return GaussianImages(rows[order[:shown]][None].clone(), label, **own).to(rows.device)


def _picture(ax: Axes, image: Tensor, title: str) -> None:
    show_image(ax, image)
    ax.set_title(title, pad=3)


@torch.no_grad()
def _view(
    ax: Axes, part: GaussianImages, size: tuple[int, int], title: str, *, ellipses: bool = False
) -> None:
    """The image at ``size``; under the ellipses it fades, so that they stand out."""
    pixels = part.pixels(resolution=size)[0].clamp(0, 1)
    faded = 0.95 - 0.3 * pixels if part.channels == 1 else 0.7 + 0.3 * pixels
    _picture(ax, faded if ellipses else pixels, title)
    if ellipses:
        down, right = (new / old for new, old in zip(size, part.resolution, strict=True))
        cholesky = part.cholesky[0] * part.packed.new_tensor([right, down, down])
        opacities = {} if part.opacities is None else {"opacities": part.opacities[0]}
        more = {"size": size, "n_sigma": N_SIGMA} | opacities
        gaussian_ellipses(ax, part.means[0], cholesky, part.colors[0], **more)


class RunBrowser(Sliders):
    """The figures of one of the runs that are recorded under some folders, ``shown`` at first."""

    def __init__(self, *folders: str, shown: str) -> None:
        runs = list(recorded_runs(*folders).run)
        control = ipywidgets.Dropdown(options=runs, value=shown, description="run", **LOOK)
        super().__init__(run_figures, {"run": control})


def recorded_runs(*folders: str) -> pd.DataFrame:
    """A row per ``run.json`` in ``folders``, such as "figures": where, seconds, device, commit."""
    root, columns = project_root(), ["run", "seconds", "device", "commit"]
    paths = sorted(path for folder in folders for path in (root / folder).rglob(RECORD))
    rows = [json.loads(path.read_text("utf-8")) for path in paths]
    frame = pd.DataFrame(rows, columns=columns)
    frame["run"] = [path.parent.relative_to(root).as_posix() for path in paths]
    return frame.assign(commit=frame.commit.str[:10])


def run_figures(run: str) -> Figure:
    """The figures in a run's folder, counted from the project, three in a row, with their names."""
    paths = sorted((project_root() / run).glob("*.png"))
    lines = max(1, -(-len(paths) // 3))
    figure, axes = panels(lines, 3, (PAGE, 1.8 * lines))
    for ax, path in zip(axes.flat, paths, strict=False):
        ax.imshow(plt.imread(path))
        ax.set_title(path.stem, pad=3, fontsize=8)
    return figure


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"
