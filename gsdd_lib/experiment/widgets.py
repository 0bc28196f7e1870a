"""Looking into Gaussian images: sliders in JupyterLab, and the same view as a still figure.

    explore.gaussians(load("set.safetensors"))  # the last line of a cell
    figure = explore.static(load("set.safetensors"), images=[0, 7])

The sliders know nothing of pictures: they call ``anatomy.draw``, which knows nothing
of widgets, and close its figure. This is the one module that imports ipywidgets.
"""

from functools import partial
from io import BytesIO
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
from torch import Tensor

from gsdd_lib.experiment.anatomy import N_SIGMA, Source, by, check_originals, draw, static, unpack
from gsdd_lib.parameterizations.gaussian import GaussianImages

__all__ = ["N_SIGMA", "SCREEN_DPI", "draw", "gaussians", "static"]

ENLARGEMENTS = (1, 2, 4, 8, 16)  # times the native resolution, for the slider
SCREEN_DPI = 110


def gaussians(source: Source, originals: Tensor | None = None) -> widgets.VBox:
    """Sliders over image, number of Gaussians and resolution; a switch for the ellipses.

    Returns the widget; as the last line of a cell it is displayed. Its ``controls`` hold the
    sliders by name, its ``picture`` the png shown.

    Args:
        originals: pixel values [N, C, H, W] in [0, 1], one per Gaussian image, shown beside it.
    """
    images, names = unpack(source)
    check_originals(images, originals)
    controls = _controls(images)
    picture, caption = widgets.Image(format="png"), widgets.Label()
    redraw = partial(_redraw, images, names, originals, controls, picture, caption)
    for control in controls.values():
        control.observe(redraw, names="value")
    redraw()
    box = widgets.VBox([*controls.values(), caption, picture])
    box.controls, box.picture, box.caption = controls, picture, caption
    return box


def _controls(images: GaussianImages) -> dict[str, widgets.Widget]:
    """The sliders by the name of what they set; a picture is drawn when one is let go."""
    (height, width), points = images.resolution, images.points
    sizes = [(k * height, k * width) for k in ENLARGEMENTS]
    look: dict[str, Any] = {
        "continuous_update": False,
        "style": {"description_width": "9em"},
        "layout": widgets.Layout(width="32em"),
    }
    return {
        "image": widgets.IntSlider(0, 0, len(images) - 1, description="image", **look),
        "shown": widgets.IntSlider(points, 1, points, description="largest Gaussians", **look),
        "resolution": widgets.SelectionSlider(
            options=[(by(size), size) for size in sizes], description="pixels", **look
        ),
        "ellipses": widgets.Checkbox(True, description="ellipses", style=look["style"]),
    }


def _redraw(
    images: GaussianImages,
    names: tuple[str, ...],
    originals: Tensor | None,
    controls: dict[str, widgets.Widget],
    picture: widgets.Image,
    caption: widgets.Label,
    _change: Any = None,
) -> None:
    """Draw what the controls say into ``picture``.

    A png in an Image widget, not a figure in an Output: one picture whatever the matplotlib
    backend is, and nothing to clear.
    """
    image, shown, resolution, ellipses = (control.value for control in controls.values())
    original = None if originals is None else originals[image]
    figure = draw(images, image, shown, resolution, ellipses=ellipses, original=original)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=SCREEN_DPI)
    plt.close(figure)  # an open one would be shown a second time, at the cell's end
    picture.value = buffer.getvalue()
    label = int(images.labels[image])
    caption.value = f"class: {names[label] if label < len(names) else label}"
