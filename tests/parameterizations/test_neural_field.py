"""Neural fields: DDiF's numbers, the batched decoder against one field at a time, gradients."""

import math

import pytest
import torch

from gsdd_lib.data.normalization import ChannelNormalization
from gsdd_lib.parameterizations.neural_field import NeuralFields, pixel_coordinates

NORMALIZATION = ChannelNormalization((0.4,) * 3, (0.2,) * 3)


def fields(count: int = 3, **settings) -> NeuralFields:
    draw = torch.Generator().manual_seed(0)
    more = {"normalization": NORMALIZATION, "generator": draw} | settings
    return NeuralFields(torch.arange(count), 3, (5, 7), **more)


@pytest.mark.parametrize(("layers", "width", "numbers"), [(3, 20, 963), (2, 6, 81), (1, 4, 27)])
def test_numbers_per_image(layers, width, numbers):
    assert fields(layers=layers, width=width).numbers_per_image == numbers


def test_coordinates_are_rows_and_columns_with_the_outer_centers_at_one():
    assert pixel_coordinates(2, 3).tolist() == [
        [-1, -1], [-1, 0], [-1, 1], [1, -1], [1, 0], [1, 1]
    ]  # fmt: skip
    assert pixel_coordinates(1, 2).tolist() == [[0, -1], [0, 1]]


def test_a_batch_is_each_field_by_itself():
    many = fields(layers=2, width=4, frequency=10.0)
    images = many.pixels()
    for k in range(3):
        hidden = torch.tensor([2 * 1 / 4 - 1, 2 * 3 / 6 - 1])  # row 1 of 0-4, column 3 of 0-6
        for depth in range(2):
            weight, bias = many.weights[depth][k], many.biases[depth][k, 0]
            hidden = torch.sin((30.0, 10.0)[depth] * (hidden @ weight + bias))
        color = hidden @ many.weights[2][k] + many.biases[2][k, 0]
        assert torch.allclose(images[k, :, 1, 3], color, atol=1e-5)


def test_an_index_and_a_resolution():
    many, index = fields(), torch.tensor([2, 0])
    assert torch.allclose(many.render(index), many.render()[index], atol=1e-6)
    assert many.render(index, (9, 4)).shape == (2, 3, 9, 4)


def test_gradients():
    many = fields(1, layers=2, width=3, frequency=2.0).double()
    leaves = list(many.parameters())
    assert torch.autograd.gradcheck(lambda *_: many.pixels(), leaves)
    assert many.penalty() == 0 and many.constrain_() is None and len(many) == 1


def test_initial_weights_are_in_the_bounds_of_a_siren():
    many = fields(20)
    assert many.weights[0].abs().max() <= 0.5
    assert many.weights[1].abs().max() <= math.sqrt(6 / 20) / 40


def test_a_field_without_units_is_refused():
    with pytest.raises(ValueError, match="needs a layer and a unit, got 0 x 20"):
        fields(layers=0)
