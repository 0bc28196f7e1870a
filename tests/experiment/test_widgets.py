"""The pictures are those of the Gaussians asked for, and the sliders only ask for them."""

import io

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.collections import EllipseCollection
from matplotlib.image import imread

from gsdd_lib.config import CodecConfig
from gsdd_lib.data.normalization import ChannelNormalization
from gsdd_lib.experiment import widgets as explore
from gsdd_lib.parameterizations.codec import Codec
from gsdd_lib.parameterizations.gaussian import GaussianImages
from gsdd_lib.storage import DistilledSet

HEIGHT, WIDTH, POINTS, IMAGES = 12, 16, 5, 3


def make_gaussians(channels: int = 3, *, opacity: bool = True) -> GaussianImages:
    """Areas l11 * l22 of every image: 4, 1, 9, 16, 6.25; the Cholesky factor may be negative."""
    packed = torch.rand(IMAGES, POINTS, 5 + channels + opacity)
    packed[..., :2] = packed[..., :2] * 1.6 - 0.8
    packed[..., 2] = packed[..., 4] = torch.tensor([2.0, 1.0, -3.0, 4.0, 2.5])
    normalization = ChannelNormalization((0.4,) * channels, (0.3,) * channels)
    labels = torch.tensor([2, 0, 1])
    return GaussianImages(
        packed, labels, resolution=(HEIGHT, WIDTH), opacity=opacity, normalization=normalization
    )


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture
def images() -> GaussianImages:
    return make_gaussians()


@pytest.fixture
def distilled(images: GaussianImages) -> DistilledSet:
    return DistilledSet(images, "shapes", ("disc", "ring", "square"), {}, 0)


def picture_of(ax) -> np.ndarray:
    return np.asarray(ax.images[0].get_array())


def decode(png: bytes) -> np.ndarray:
    return imread(io.BytesIO(png), format="png")


def test_all_gaussians_give_the_rendering_itself(images):
    figure = explore.draw(images, [1], [(POINTS, (HEIGHT, WIDTH), False)])
    expected = images.pixels()[1].detach().clamp(0, 1).permute(1, 2, 0).numpy()
    assert len(figure.axes) == 1
    np.testing.assert_allclose(picture_of(figure.axes[0]), expected, atol=1e-5)


def test_quantized_gaussians_are_shown_as_their_codec_rounds_them():
    images = make_gaussians(1)
    plain = images.pixels()[0].detach()
    images.codec = Codec.fit(images.packed, CodecConfig(color_bits=1), channels=1)
    expected = images.pixels()[0].detach().clamp(0, 1)
    shown = picture_of(explore.draw(images, [0], [(POINTS, (HEIGHT, WIDTH), False)]).axes[0])
    np.testing.assert_allclose(shown, expected[0].numpy(), atol=1e-5)
    assert not torch.allclose(expected, plain.clamp(0, 1), atol=1e-3)


def test_the_largest_come_first(images):
    """The three largest areas are those of the Gaussians 3, 2 and 4."""
    few = images.packed[:1, [3, 2, 4]].detach()
    facts = {"resolution": (HEIGHT, WIDTH), "normalization": images.normalization}
    expected = GaussianImages(few, torch.zeros(1), **facts).pixels()[0].detach().clamp(0, 1)
    figure = explore.draw(images, [0], [(3, (HEIGHT, WIDTH), False)])
    shown = picture_of(figure.axes[0])
    np.testing.assert_allclose(shown, expected.permute(1, 2, 0).numpy(), atol=1e-5)
    assert figure.axes[0].get_title() == "3 of 5, 12×16"


def test_any_resolution(images):
    figure = explore.draw(images, [0], [(POINTS, (24, 32), False)])
    assert picture_of(figure.axes[0]).shape == (24, 32, 3)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("opacity", [True, False])
def test_ellipses_follow_the_resolution(channels, opacity):
    """At twice the pixels an ellipse is twice as large and its center twice as far."""
    images = make_gaussians(channels, opacity=opacity)
    drawn = []
    for factor in (1, 2):
        size = (factor * HEIGHT, factor * WIDTH)
        figure = explore.draw(images, [0], [(4, size, True)])
        (ellipses,) = (
            part for part in figure.axes[-1].collections if isinstance(part, EllipseCollection)
        )
        drawn.append(ellipses)
    assert len(drawn[0].get_offsets()) == 4
    np.testing.assert_allclose(drawn[1].get_widths(), 2 * drawn[0].get_widths(), rtol=1e-5)
    np.testing.assert_allclose(drawn[1].get_offsets(), 2 * drawn[0].get_offsets(), rtol=1e-5)
    areas = drawn[0].get_widths() * drawn[0].get_heights() / (2 * explore.N_SIGMA) ** 2
    np.testing.assert_allclose(areas, [16, 9, 6.25, 4], rtol=1e-5)


def test_originals_of_other_images_are_refused(images):
    with pytest.raises(ValueError, match=r"originals must be \[3, C, H, W\]"):
        explore.Explorer(images, torch.rand(2, 3, HEIGHT, WIDTH))


def test_a_still_figure_has_a_row_per_image_and_one_line_of_titles(images):
    originals = torch.rand(IMAGES, 3, HEIGHT, WIDTH)
    size, large = (HEIGHT, WIDTH), (4 * HEIGHT, 4 * WIDTH)
    views = [(2, size, False), (POINTS, large, False), (POINTS, size, True)]
    figure = explore.draw(images, [2, 0], views, originals, width=7)
    axes = np.array(figure.axes).reshape(2, 4)
    assert [picture_of(ax).shape[:2] for ax in axes[0]] == [size, size, large, size]
    np.testing.assert_allclose(picture_of(axes[0, 0]), originals[2].permute(1, 2, 0), rtol=1e-6)
    np.testing.assert_allclose(picture_of(axes[1, 0]), originals[0].permute(1, 2, 0), rtol=1e-6)
    assert [bool(ax.get_title()) for ax in axes.flat] == [True] * 4 + [False] * 4
    assert figure.get_figwidth() == 7 and len(explore.draw(images, [1], views).axes) == 3


def test_the_sliders_leave_no_figure_open_to_be_shown_twice(images):
    explore.Explorer(images).controls["shown"].value = 2
    assert plt.get_fignums() == []


def test_each_control_redraws_the_picture(distilled):
    explorer = explore.Explorer(distilled)
    before = explorer.png
    settings = {"image": 1, "shown": 2, "resolution": (48, 64), "ellipses": False}
    assert list(explorer.controls) == list(settings)
    for name, value in settings.items():
        explorer.controls[name].value = value
        assert explorer.png != before, name
        before = explorer.png


def test_the_picture_is_what_draw_makes_at_twice_the_dots_of_the_screen(distilled):
    originals = torch.rand(IMAGES, 3, HEIGHT, WIDTH)
    explorer = explore.Explorer(distilled, originals)
    explorer.controls["image"].value, explorer.controls["shown"].value = 2, 3
    views = [(3, (HEIGHT, WIDTH), ellipses) for ellipses in (False, True)]
    figure = explore.draw(distilled, [2], views, originals)
    expected = io.BytesIO()
    figure.savefig(expected, format="png", dpi=2 * explore.SCREEN_DPI)
    np.testing.assert_array_equal(decode(explorer.png), decode(expected.getvalue()))
    assert [ax.get_title() for ax in figure.axes] == ["original", "3 of 5, 12×16", "ellipses"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["ring"]
    width = round(figure.get_figwidth() * explore.SCREEN_DPI)
    assert decode(explorer.png).shape[1] == pytest.approx(2 * width, abs=2)
    assert explorer.bundle()["metadata"] == {"image/png": {"width": width}}


def test_the_picture_is_an_output_of_its_own_that_outlives_the_kernel():
    """Opened again, a widget is an error line; the picture last looked at is still there."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    made = """import torch
from gsdd_lib.data.normalization import ChannelNormalization
from gsdd_lib.experiment import widgets as explore
from gsdd_lib.parameterizations.gaussian import GaussianImages
packed = torch.tensor([[[0.0, 0.0, 2.0, 0.0, 2.0, 1.0, 1.0]] * 2])
one = ChannelNormalization((0.0,), (1.0,))
images = GaussianImages(packed, torch.zeros(1), resolution=(8, 8), normalization=one)
explorer = explore.Explorer(images)
explorer"""
    let_go = """import base64
explorer.controls["shown"].value = 1
print(base64.b64encode(explorer.png).decode())"""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in (made, let_go)]
    )
    nbclient.NotebookClient(notebook, kernel_name="python3").execute()
    picture, caption, sliders = notebook.cells[0].outputs
    assert set(picture.data) == {"image/png", "text/plain"}
    assert picture.metadata["image/png"]["width"] == 400
    now = notebook.cells[1].outputs[0].text.strip()
    assert picture.data["image/png"].strip() == now  # the one last looked at
    assert "model not found" not in str(notebook) and "run this cell" in caption.data["text/html"]
    assert set(sliders.data) == {explore.MIME, "text/plain"}  # nothing is printed in its place
    assert sliders.data["text/plain"] == ""


def test_any_function_that_draws_can_have_controls():
    drawn = []

    def draw(height, color):
        drawn.append((height, color))
        return plt.figure(figsize=(2, height))

    controls = {"height": ipywidgets.IntSlider(1, 1, 3), "color": ipywidgets.Dropdown(options="rg")}
    sliders = explore.Sliders(draw, controls)
    sliders.controls["height"].value = 3
    assert drawn == [(1, "r"), (3, "r")] and plt.get_fignums() == []
    assert decode(sliders.png).shape[:2] == (600, 400)


def test_a_slider_draws_when_it_is_let_go(images):
    controls = explore.Explorer(images).controls
    assert not any(controls[name].continuous_update for name in ("image", "shown", "resolution"))
    assert (controls["shown"].min, controls["shown"].max) == (1, POINTS)
    assert controls["image"].max == IMAGES - 1


def test_one_image_of_one_gaussian_can_be_looked_at():
    packed = torch.tensor([[[0.0, 0.0, 2.0, 0.0, 2.0, 1.0, 1.0]]])
    identity = ChannelNormalization((0.0,), (1.0,))
    images = GaussianImages(packed, torch.zeros(1), resolution=(8, 8), normalization=identity)
    assert decode(explore.Explorer(images).png).any()
