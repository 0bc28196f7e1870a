"""Neural fields: DDiF's numbers, the batched decoder against one field at a time, gradients."""

import math

import pytest
import torch

from gsdd_lib.parameterizations.neural_field import NeuralFields, pixel_coordinates


def fields(count: int = 3, **settings) -> NeuralFields:
    draw = torch.Generator().manual_seed(0)
    return NeuralFields(torch.arange(count), 3, (5, 7), generator=draw, **settings)


@pytest.mark.parametrize(("layers", "width", "numbers"), [(3, 20, 963), (2, 6, 81), (1, 4, 27)])
def test_numbers_per_image(layers, width, numbers):
    assert fields(layers=layers, width=width).numbers_per_image == numbers


def test_coordinates_are_pixel_centers_row_by_row():
    grid = pixel_coordinates(2, 4)
    assert grid.tolist()[:5] == [
        [-0.75, -0.5], [-0.25, -0.5], [0.25, -0.5], [0.75, -0.5], [-0.75, 0.5]
    ]  # fmt: skip


def test_a_batch_is_each_field_by_itself():
    many = fields(layers=2, width=4, frequency=10.0)
    images = many.render()
    for k in range(3):
        x, y = 2 * (3 + 0.5) / 7 - 1, 2 * (1 + 0.5) / 5 - 1
        hidden = torch.tensor([x, y])
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
    assert torch.autograd.gradcheck(lambda *_: many.render(), leaves)
    assert many.penalty() == 0 and many.constrain_() is None and len(many) == 1


def test_initial_weights_are_in_the_bounds_of_a_siren():
    many = fields(20)
    assert many.weights[0].abs().max() <= 0.5
    assert many.weights[1].abs().max() <= math.sqrt(6 / 20) / 40


def test_a_field_without_units_is_refused():
    with pytest.raises(ValueError, match="needs a layer and a unit, got 0 x 20"):
        fields(layers=0)
