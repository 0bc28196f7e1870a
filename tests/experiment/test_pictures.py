"""The pictures of a distilled set show each class's own images, in its own row."""

import numpy as np
import pytest
import torch

from gsdd_lib.experiment import pictures, plots

NAMES = ["ant", "bee", "cow"]


@pytest.fixture(autouse=True)
def _style():
    plots.use_style()


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


def test_gaussians_take_the_color_of_the_picture_where_they_are():
    images = torch.zeros(1, 3, 4, 4)
    images[0, :, 1, 2] = torch.tensor([0.1, 0.2, 0.3])  # row 1, column 2
    packed = torch.zeros(1, 2, 9)
    packed[0, 0, :2] = torch.tensor([2.5 / 4 * 2 - 1, 1.5 / 4 * 2 - 1])  # x, y of its center
    packed[0, 1, :2] = torch.tensor([0.5 / 4 * 2 - 1, 0.5 / 4 * 2 - 1])
    colored = pictures.colored_by(packed, images)
    assert torch.allclose(colored[0, 0, 5:8], torch.tensor([0.1, 0.2, 0.3]), atol=1e-6)
    assert colored[0, 1, 5:8].abs().max() < 1e-6 and torch.equal(
        packed[..., 5:8], torch.zeros(1, 2, 3)
    )
