"""The pictures of a distilled set show each class's own images, in its own row."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from gsdd_lib.experiment import pictures, plots

NAMES = ["ant", "bee", "cow"]


@pytest.fixture(autouse=True)
def _style():
    plots.use_style()
    yield
    plt.close("all")


def shown(ax) -> float:
    (image,) = ax.get_images()
    return float(np.asarray(image.get_array()).mean())


def test_a_row_per_class_with_its_name_and_its_own_images():
    labels = torch.tensor([0, 1, 0, 2, 1, 2])
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 4, 4) / 10
    figure = pictures.class_rows(images, labels, NAMES, classes=3, per_class=2)
    axes = np.array(figure.axes).reshape(3, 2)
    values = [[shown(ax) for ax in line] for line in axes]
    assert values == [
        [0.0, pytest.approx(0.2)],
        [pytest.approx(0.1), pytest.approx(0.4)],
        [pytest.approx(0.3), pytest.approx(0.5)],
    ]
    assert [line[0].texts[0].get_text() for line in axes] == NAMES


def test_a_class_with_fewer_images_leaves_gaps():
    images, labels = torch.zeros(3, 3, 4, 4), torch.tensor([0, 0, 1])
    figure = pictures.class_rows(images, labels, NAMES, classes=2, per_class=2)
    assert [len(ax.get_images()) for ax in figure.axes] == [1, 1, 1, 0]


def test_a_long_class_name_is_wrapped_and_of_synonyms_the_first_is_shown():
    figure = pictures.class_panels(
        {"real": torch.zeros(10, 3, 4, 4)}, ["golden_retriever dog, a pet"] * 10, size=(4, 4)
    )
    assert figure.axes[0].get_title() == "golden\nretriever\ndog"


def test_image_grid_shows_each_image_once_clipped():
    images = torch.linspace(-1, 2, 5 * 3 * 4 * 6).reshape(5, 3, 4, 6)
    figure = pictures.image_grid(images, rows=2, titles=list("abc"))
    shown = [ax for ax in figure.axes if ax.images]
    assert len(shown) == 5
    assert [ax.get_title() for ax in shown] == ["a", "b", "c", "", ""]
    expected = images[1].clamp(0, 1).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(shown[1].images[0].get_array(), expected)


def test_image_grid_of_two_channels_or_too_many_titles_is_refused():
    with pytest.raises(ValueError, match="1 or 3 channels, not 2"):
        pictures.image_grid(np.zeros((1, 2, 4, 4)))
    with pytest.raises(ValueError, match="3 titles fit neither 4 images nor 2 columns"):
        pictures.image_grid(np.zeros((4, 1, 4, 4)), rows=2, titles=list("abc"))


def test_ellipse_is_the_level_set_of_its_gaussian():
    """Every outline point x has (x - mu)^T (L L^T)^-1 (x - mu) = n_sigma^2."""
    means = torch.tensor([[0.0, 0.5], [-0.5, -0.25]])
    cholesky = torch.tensor([[2.0, 1.0, 0.5], [0.7, -3.0, 1.5]])
    _, ax = plt.subplots()
    drawn = pictures.gaussian_ellipses(
        ax, means, cholesky, torch.rand(2, 1), size=(20, 40), n_sigma=2.0
    )
    np.testing.assert_allclose(drawn.get_offsets(), [[20, 15], [10, 7.5]])
    turn = np.linspace(0, 2 * np.pi, 50)
    for index in range(2):
        width, height = drawn.get_widths()[index], drawn.get_heights()[index]
        angle = np.deg2rad(drawn.get_angles()[index])
        x, y = width / 2 * np.cos(turn), height / 2 * np.sin(turn)
        points = np.stack(
            [x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)]
        )
        l11, l21, l22 = cholesky[index].tolist()
        factor = np.array([[l11, 0], [l21, l22]])
        np.testing.assert_allclose(
            np.sum(np.linalg.solve(factor, points) ** 2, axis=0), 4.0, rtol=1e-5
        )


def test_ellipses_of_no_gaussian_draw_nothing():
    _, ax = plt.subplots()
    drawn = pictures.gaussian_ellipses(
        ax, torch.zeros(0, 2), torch.zeros(0, 3), torch.zeros(0, 1), size=(8, 8)
    )
    assert len(drawn.get_offsets()) == 0


def test_one_channel_ellipses_are_red_where_they_light_and_blue_where_they_darken():
    _, ax = plt.subplots()
    still, cholesky = torch.zeros(2, 2), torch.tensor([[1.0, 0.0, 1.0]] * 2)
    drawn = pictures.gaussian_ellipses(
        ax, still, cholesky, torch.tensor([[1.0], [-1.0]]), size=(8, 8)
    )
    light, dark = drawn.get_edgecolor()
    assert light[0] > light[2] and dark[2] > dark[0]
