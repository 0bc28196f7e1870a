"""Looking into Gaussian images: sliders in JupyterLab, and the same view as a still figure.

    from gsdd_lib.experiment import widgets as explore
    explore.Explorer(load("set.safetensors"))  # the last line of a cell
    figure = explore.static(load("set.safetensors"), images=[0, 7])

Gaussians are shown from the largest on, at any resolution, and as ellipses. This is the one module
that imports ipywidgets.
"""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import torch
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from gsdd_lib.experiment.pictures import gaussian_ellipses, panels, show_image
from gsdd_lib.experiment.plots import PAGE
from gsdd_lib.parameterizations.gaussian import GaussianImages
from gsdd_lib.storage import DistilledSet

Source = GaussianImages | DistilledSet

PANEL = 2.0  # inches: the height of one picture on the screen
TITLE = 0.2  # inches, for a line of text
N_SIGMA = 1.5  # deviations from a Gaussian's center to its outline
ENLARGEMENTS = (1, 2, 4, 8, 16)  # times the native resolution, for the slider
SCREEN_DPI = 100  # the picture has twice as many dots, for sharp screens


class Explorer:
    """A picture, and sliders over image, number of Gaussians and resolution; displays itself.

    The picture is an ordinary output and no widget, so the one last looked at stays in the saved
    notebook and is there when it is opened without a kernel.

    Args:
        originals: pixel values [N, C, H, W] in [0, 1], one per Gaussian image, shown beside it.

    Attributes:
        controls: the sliders by the name of what they set.
        png: the picture shown.
    """

    def __init__(self, source: Source, originals: Tensor | None = None) -> None:
        self._images, self._names = _unpack(source)
        _check_originals(self._images, originals)
        self._originals = originals
        (height, width), points = self._images.resolution, self._images.points
        sizes = [(k * height, k * width) for k in ENLARGEMENTS]
        look: dict[str, Any] = {
            "continuous_update": False,  # a picture is drawn when a slider is let go
            "style": {"description_width": "9em"},
            "layout": ipywidgets.Layout(width="32em"),
        }
        slider, choice = ipywidgets.IntSlider, ipywidgets.SelectionSlider
        named = [(_by(size), size) for size in sizes]
        self.controls = {
            "image": slider(0, 0, len(self._images) - 1, description="image", **look),
            "shown": slider(points, 1, points, description="largest Gaussians", **look),
            "resolution": choice(options=named, description="pixels", **look),
            "ellipses": ipywidgets.Checkbox(True, description="ellipses", style=look["style"]),
        }
        self._output = None
        self._redraw()
        for control in self.controls.values():
            control.observe(self._redraw, names="value")

    def _redraw(self, _change: Any = None) -> None:
        image, shown, size, ellipses = (control.value for control in self.controls.values())
        label, names = int(self._images.labels[image]), self._names
        figure = draw(
            self._images,
            image,
            shown,
            size,
            ellipses=ellipses,
            original=None if self._originals is None else self._originals[image],
            name=names[label] if label < len(names) else f"class {label}",
        )
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=2 * SCREEN_DPI)
        self._width = round(figure.get_figwidth() * SCREEN_DPI)
        plt.close(figure)  # an open one would be shown a second time, at the cell's end
        self.png = buffer.getvalue()
        if self._output:
            self._output.update(**self.bundle(), raw=True)

    def bundle(self) -> dict[str, dict[str, Any]]:
        """The picture as Jupyter displays it, and the width it is shown at."""
        text = f"image {self.controls['image'].value} of {len(self._images)}"
        data = {"image/png": self.png, "text/plain": text}
        return {"obj": data, "metadata": {"image/png": {"width": self._width}}}

    def _ipython_display_(self) -> None:
        shown = self.bundle()
        self._output = display(shown["obj"], metadata=shown["metadata"], raw=True, display_id=True)
        display(ipywidgets.VBox(list(self.controls.values())))


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
    places = iter(axes[0])
    if original is not None:
        _picture(next(places), original, "original")
    title = f"{name}: " * bool(name) + f"{shown} of {gaussians.points} Gaussians, {_by(resolution)}"
    _picture(next(places), _pixels(part, resolution), title)
    if ellipses:
        _outlines(next(places), part, resolution, f"their {N_SIGMA:g}-sigma ellipses")
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
    gaussians, _ = _unpack(source)
    _check_originals(gaussians, originals)
    points, native = gaussians.points, gaussians.resolution
    large = (4 * native[0], 4 * native[1])
    columns = 5 + (originals is not None)
    inches = PAGE / columns * native[0] / native[1] * len(images) + TITLE
    figure, axes = panels(len(images), columns, (PAGE, inches))
    for row, image in zip(axes, images, strict=True):
        places = iter(row)
        if originals is not None:
            _picture(next(places), originals[image], "original")
        for shown in (max(1, points // 4), max(1, points // 2), points):
            part = _largest(gaussians, image, shown)
            _picture(next(places), _pixels(part, native), f"{shown} of {points}, {_by(native)}")
        _picture(next(places), _pixels(part, large), f"all, {_by(large)}")
        _outlines(next(places), part, native, "ellipses")
    for ax in axes[1:].flat:
        ax.set_title("")  # the first row's titles serve for all
    return figure


def _unpack(source: Source) -> tuple[GaussianImages, tuple[str, ...]]:
    """The Gaussians and the names of their classes, where these are known."""
    if isinstance(source, DistilledSet):
        return source.gaussians, source.class_names
    return source, ()


def _check_originals(images: GaussianImages, originals: Tensor | None) -> None:
    if originals is not None and (originals.dim() != 4 or len(originals) != len(images)):
        raise ValueError(
            f"originals must be [{len(images)}, C, H, W], one per Gaussian image, "
            f"got {list(originals.shape)}."
        )


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


@torch.no_grad()
def _pixels(part: GaussianImages, size: tuple[int, int]) -> Tensor:
    return part.pixels(resolution=size)[0].clamp(0, 1)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"


def _picture(ax: Axes, image: Tensor, title: str) -> None:
    show_image(ax, image)
    ax.set_title(title, pad=3)


def _outlines(ax: Axes, part: GaussianImages, size: tuple[int, int], title: str) -> None:
    """The ellipses over the image, which fades so that they stand out."""
    pixels = _pixels(part, size)
    _picture(ax, 0.95 - 0.3 * pixels if part.channels == 1 else 0.7 + 0.3 * pixels, title)
    scale = [size[1] / part.resolution[1], *[size[0] / part.resolution[0]] * 2]
    gaussian_ellipses(
        ax,
        part.means[0],
        part.cholesky[0].detach() * part.packed.new_tensor(scale),
        part.colors[0],
        size=size,
        opacities=None if part.opacities is None else part.opacities[0],
        n_sigma=N_SIGMA,
    )
