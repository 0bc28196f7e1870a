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
