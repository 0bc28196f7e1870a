"""Looking into Gaussian images: sliders in JupyterLab, and the same as a still figure.

    from gsdd_lib.experiment import widgets as explore
    explore.Explorer(load("set.safetensors"))  # the last line of a cell

A widget is a :class:`Sliders`: a pure function that draws, and a control for each of its arguments.
"""

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import torch
from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from gsdd_lib.experiment.pictures import BESIDE, gaussian_ellipses, panels, show_image
from gsdd_lib.parameterizations.gaussian import GaussianImages
from gsdd_lib.storage import DistilledSet

Source = GaussianImages | DistilledSet
View = tuple[int, tuple[int, int], bool]  # Gaussians, (height, width), whether as ellipses

PANEL = 2.0  # inches: the height of one picture on the screen
TITLE = 0.2  # inches, for a line of text
N_SIGMA = 1.5  # deviations from a Gaussian's center to its outline
ENLARGEMENTS = (1, 2, 4, 8, 16)  # times the native resolution, for the slider
SCREEN_DPI = 100  # the picture has twice as many dots, for sharp screens
LOOK: Mapping[str, Any] = {"style": {"description_width": "9em"}, "layout": {"width": "32em"}}
# What a part of the Gaussians has in common with all of them.
FACTS = ("resolution", "normalization", "render_config", "opacity", "space", "store_bf16", "codec")
LET_GO = {"continuous_update": False}  # a picture is drawn when a slider is let go
MIME = "application/vnd.jupyter.widget-view+json"
# Opened again without its kernel, a control is a node of JupyterLab's with the text "model not
# found" and no element in it; this rule, saved in the notebook, hides it.
CAPTION = """<style>.jp-OutputArea-output.jupyter-widgets:not(:has(*)) { display: none }</style>
<small>The controls need a kernel: run this cell to use them.</small>"""


class Sliders:
    """A picture and the controls that it depends on; displays itself.

    The picture, ``png``, is an ordinary output and no widget, so the one last looked at stays in
    the saved notebook, and is all that is there when it is opened without a kernel.

    Args:
        draw: makes the figure, from the controls' values by name.
        controls: ipywidgets with a ``value``, by the name of what they set.
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
        view = ipywidgets.VBox(list(self.controls.values()))._repr_mimebundle_()[MIME]
        display({MIME: view, "text/plain": ""}, raw=True)


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
        gaussians = getattr(source, "gaussians", source)
        (height, width), points = gaussians.resolution, gaussians.points
        sizes = [(k * height, k * width) for k in ENLARGEMENTS]
        controls = {
            "image": slider("image", 0, len(gaussians) - 1),
            "shown": slider("largest Gaussians", 1, points, points),
            "resolution": choice("pixels", [(_by(size), size) for size in sizes]),
            "ellipses": ipywidgets.Checkbox(True, description="ellipses", style=LOOK["style"]),
        }

        def view(image: int, shown: int, resolution: tuple[int, int], ellipses: bool) -> Figure:
            views = [(shown, resolution, False), (shown, resolution, True)][: 1 + ellipses]
            return draw(source, [image], views, originals)

        super().__init__(view, controls)


@torch.no_grad()
def draw(
    source: Source,
    images: Sequence[int],
    views: Sequence[View],
    originals: Tensor | None = None,
    *,
    width: float | None = None,
) -> Figure:
    """A row per image: the original, if given, and the image from some of its Gaussians.

    Args:
        views: how many Gaussians, the largest first; at how many pixels; and whether they are
            drawn as ellipses, over the faded image.
        width: of the figure, in inches; None: as large as it is looked at on a screen.
    """
    gaussians, names = getattr(source, "gaussians", source), getattr(source, "class_names", ())
    if originals is not None and (originals.dim() != 4 or len(originals) != len(gaussians)):
        wanted = f"originals must be [{len(gaussians)}, C, H, W], one per Gaussian image"
        raise ValueError(f"{wanted}, got {list(originals.shape)}.")
    beside, (down, across) = originals is not None, gaussians.resolution
    count = beside + len(views)
    height = width / count * down / across if width else PANEL
    size = (width or count * PANEL * across / down, height * len(images) + TITLE)
    figure, axes = panels(len(images), count, size)
    for line, image in zip(axes, images, strict=True):
        if beside:
            show_image(line[0], originals[image])
        for ax, view in zip(line[beside:], views, strict=True):
            _view(ax, gaussians, image, view)
        if names:
            name = names[int(gaussians.labels[image])]
            line[0].annotate(name, (-0.04, 0.5), rotation=90, fontsize=7, **BESIDE)
    titles = [
        "ellipses" if ellipses else f"{shown} of {gaussians.points}, {_by(pixels)}"
        for shown, pixels, ellipses in views
    ]
    for ax, title in zip(axes[0], ["original"] * beside + titles, strict=True):
        ax.set_title(title, pad=3)
    return figure


def _view(ax: Axes, gaussians: GaussianImages, image: int, view: View) -> None:
    """One panel of :func:`draw`; under the ellipses it fades, so that they stand out."""
    (shown, size, ellipses), rows = view, gaussians.packed[image]
    area = (rows[:, 2] * rows[:, 4]).abs()  # det L = l11 l22: the ellipse's area up to pi
    rows = rows[area.argsort(descending=True, stable=True)[:shown]]
    own = {name: getattr(gaussians, name) for name in FACTS}
    part = GaussianImages(rows[None], gaussians.labels[[image]], **own).to(rows.device)
    pixels = part.pixels(resolution=size)[0].clamp(0, 1)
    faded = 0.95 - 0.3 * pixels if part.channels == 1 else 0.7 + 0.3 * pixels
    show_image(ax, faded if ellipses else pixels)
    if ellipses:
        down, right = (new / old for new, old in zip(size, part.resolution, strict=True))
        cholesky = part.cholesky[0] * part.packed.new_tensor([right, down, down])
        opacities = None if part.opacities is None else part.opacities[0]
        more = {"size": size, "n_sigma": N_SIGMA, "opacities": opacities}
        gaussian_ellipses(ax, part.means[0], cholesky, part.colors[0], **more)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"
