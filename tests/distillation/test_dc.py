"""Gradient matching: gradients and distances by hand, through the renderer, and what is refused."""

import math

import pytest
import torch
from torch import Tensor, nn

from gsdd_lib.distillation.dc import batch_gradients, gradient_distance
from gsdd_lib.networks import make_network
from gsdd_lib.splatting.splat import splat


class TwoParameters(nn.Module):
    """Logits (w x, 0) of images [N, 2]: the gradient in w is (sigmoid(w x) - [label 0]) x."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, 2, dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        z = images @ self.w.T
        return torch.cat([z, torch.zeros_like(z)], dim=1)


def numbers(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def gradients(network: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    return batch_gradients(network, dict(network.named_parameters()), images, labels)


def test_gradient_by_hand():
    images, labels = numbers([1.0, 0.0], [2.0, 4.0]), torch.tensor([0, 1])
    (gradient,) = gradients(TwoParameters(), images, labels)
    # sigmoid(0) = 1/2: the mean of -1/2 (1, 0) and +1/2 (2, 4)
    torch.testing.assert_close(gradient, numbers([0.25, 1.0]))


def test_gradient_is_taken_at_the_parameters_given():
    params = {"w": numbers([1.0, 0.0])}
    images, labels = numbers([2.0, 1.0]), torch.tensor([0])
    (gradient,) = batch_gradients(TwoParameters(), params, images, labels)
    factor = 1 / (1 + math.exp(-2.0)) - 1
    torch.testing.assert_close(gradient, factor * numbers([2.0, 1.0]))


def test_distance_by_hand():
    network, zero, one = TwoParameters(), torch.tensor([0]), torch.tensor([1])
    real = gradients(network, numbers([1.0, 0.0]), zero)
    cosine = 3 / 5  # of (1, 0) and (3, 4)
    alike = gradient_distance(real, gradients(network, numbers([3.0, 4.0]), zero))
    opposed = gradient_distance(real, gradients(network, numbers([3.0, 4.0]), one))
    assert alike.item() == pytest.approx(1 - cosine) and opposed.item() == pytest.approx(1 + cosine)


def test_nodes_and_layers_are_summed_and_vectors_left_out():
    real = [numbers([1.0, 0.0], [1.0, 0.0]), torch.ones(3), torch.ones(1, 2, 1, 1).double()]
    syn = [numbers([0.0, 1.0], [-2.0, 0.0]), torch.zeros(3), torch.ones(1, 2, 1, 1).double()]
    assert gradient_distance(real, syn).item() == pytest.approx(1 + 2 + 0)


def test_equal_batches_are_at_distance_zero():
    network = make_network(
        "ConvNetD2",
        channels=1,
        num_classes=3,
        resolution=(8, 8),
        width=4,
        generator=torch.Generator().manual_seed(0),
    ).double()
    images, labels = torch.randn(9, 1, 8, 8, dtype=torch.float64), torch.arange(9) % 3
    order = torch.randperm(9)
    one = gradients(network, images, labels)
    other = gradients(network, images[order], labels[order])
    assert gradient_distance(one, one).abs() < 1e-12
    assert gradient_distance(one, other).abs() < 1e-9


def test_gradient_through_the_renderer():
    """Analytic against central differences in double, along random directions."""
    torch.manual_seed(3)
    layers = [nn.Flatten(), nn.Linear(36, 5), nn.Tanh(), nn.Linear(5, 2)]
    network = nn.Sequential(*layers).double()
    real = gradients(network, torch.randn(6, 1, 6, 6).double(), torch.zeros(6).long())
    packed = torch.rand(2, 3, 7, dtype=torch.float64)  # two images of three Gaussians
    packed[..., 2:5] += 0.5

    def loss(packed: Tensor) -> Tensor:
        images, labels = splat(packed, 6, 6), torch.zeros(2).long()
        return gradient_distance(real, gradients(network, images, labels))

    leaf = packed.clone().requires_grad_()
    (analytic,) = torch.autograd.grad(loss(leaf), leaf)
    for _ in range(5):
        way = torch.randn_like(packed)
        numeric = (loss(packed + 1e-6 * way) - loss(packed - 1e-6 * way)) / 2e-6
        torch.testing.assert_close((analytic * way).sum(), numeric, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("micro_batch", [1, 4, 6])
def test_gradients_in_micro_batches_are_those_of_the_batch_in_double(micro_batch, soft):
    made = {"channels": 1, "num_classes": 3, "resolution": (8, 8), "width": 4}
    network = make_network("ConvNetD2", **made, generator=torch.Generator().manual_seed(0)).double()
    params = dict(network.named_parameters())
    images = torch.randn(7, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(7) % 3
    if soft:
        labels = torch.rand(7, 3).double().softmax(1).requires_grad_()
    wanted = [images, labels] if soft else [images]
    real = gradients(network, torch.randn(5, 1, 8, 8).double(), torch.arange(5) % 3)
    found = []
    for size in (7, micro_batch):
        grads = batch_gradients(network, params, images, labels, micro_batch=size)
        loss = gradient_distance(real, grads)
        found.append([*grads, loss, *torch.autograd.grad(loss, wanted)])
    for one, other in zip(*found, strict=True):
        # a bias before an instance norm has a gradient of 0, but for rounding
        assert (one - other).norm() < 1e-10 * one.norm() + 1e-15


def test_a_gradient_of_zero_does_not_make_nan():
    real, syn = [torch.zeros(2, 3)], torch.zeros(2, 3, requires_grad=True)
    distance = gradient_distance(real, [syn])
    distance.backward()
    assert distance == 2 and torch.equal(syn.grad, torch.zeros(2, 3))
