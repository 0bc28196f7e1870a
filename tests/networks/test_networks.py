"""The field's networks: their size, their weights' source, and the short cuts they take."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gsdd_lib.core.errors import ConfigError
from gsdd_lib.core.rng import generator
from gsdd_lib.networks import layers, make_network, network_for
from gsdd_lib.networks.layers import mean_pool


def build(name="ConvNetD3", channels=3, num_classes=10, resolution=(32, 32), width=128, seed=0):
    return make_network(
        name,
        channels=channels,
        num_classes=num_classes,
        resolution=resolution,
        width=width,
        generator=generator(seed, "test"),
    )


def plain_convnet(depth, channels, width, features, num_classes, first_padding=1):
    """The published definition, with torch's own modules."""
    layers = []
    for block in range(depth):
        padding = first_padding if block == 0 else 1
        layers += [nn.Conv2d(width if block else channels, width, 3, padding=padding)]
        layers += [nn.GroupNorm(width, width), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, num_classes))


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("num_classes", "expected"), [(10, 320_010), (100, 504_420)])
def test_the_published_parameter_counts(num_classes, expected):
    assert count(build(num_classes=num_classes)) == expected


@pytest.mark.parametrize(("depth", "side"), [(3, 32), (4, 64), (5, 128), (6, 256)])
def test_every_depth_at_its_resolution_has_four_by_four_features(depth, side):
    network = build(f"ConvNetD{depth}", resolution=(side, side), width=4)
    images = torch.rand(2, 3, side, side)
    assert network.embed(images).shape == (2, 4 * 4 * 4)
    assert network(images).shape == (2, 10)


@pytest.mark.parametrize(
    ("channels", "resolution", "side"), [(1, (28, 28), 4), (3, (28, 28), 3), (1, (8, 8), 1)]
)
def test_only_one_channel_of_28x28_is_padded_to_32x32(channels, resolution, side):
    network = build(channels=channels, resolution=resolution, width=4)
    assert network.embed(torch.rand(1, channels, *resolution)).shape == (1, 4 * side * side)


def test_non_square_images_and_odd_sides():
    network = build(channels=2, resolution=(9, 30), width=4)
    assert network.embed(torch.rand(3, 2, 9, 30)).shape == (3, 4 * 1 * 3)


@pytest.mark.parametrize(("channels", "side", "padding"), [(1, 28, 3), (3, 32, 1)])
def test_weights_and_outputs_are_those_of_torchs_own_modules(channels, side, padding):
    torch.manual_seed(5)
    plain = plain_convnet(3, channels, 8, 8 * 16, 10, padding)
    ours = make_network(
        "ConvNetD3",
        channels=channels,
        num_classes=10,
        resolution=(side, side),
        width=8,
        generator=torch.Generator().manual_seed(5),
    )
    assert count(plain) == count(ours)
    for a, b in zip(plain.parameters(), ours.parameters(), strict=True):
        assert torch.equal(a, b)
    images = torch.randn(5, channels, side, side)
    torch.testing.assert_close(ours(images), plain(images), atol=1e-5, rtol=1e-4)
    F.cross_entropy(ours(images), torch.arange(5)).backward()
    F.cross_entropy(plain(images), torch.arange(5)).backward()
    for a, b in zip(plain.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-3)


def test_equal_generators_give_equal_weights_and_others_other_ones():
    first, again, other = build(width=4), build(width=4), build(width=4, seed=1)
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not torch.equal(pairs[0][0], pairs[0][2])


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    build(width=4)
    assert torch.equal(torch.get_rng_state(), before)


def test_chunks_change_neither_outputs_nor_gradients(monkeypatch):
    network = build(resolution=(8, 8), width=4).double()
    images = torch.randn(7, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    whole = network.embed(images)
    (whole_grad,) = torch.autograd.grad(whole.square().sum(), images)
    monkeypatch.setattr(layers, "CHUNK_BYTES", 3 * 4 * 4 * 8 * 8)
    parts = network.embed(images)
    (parts_grad,) = torch.autograd.grad(parts.square().sum(), images)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(parts_grad, whole_grad)


def test_embedding_no_images_gives_no_rows():
    network = build(resolution=(8, 8), width=4)
    assert network.embed(torch.empty(0, 3, 8, 8)).shape == (0, 4)


@pytest.mark.parametrize("size", [(2, 2), (5, 8), (7, 7)])
def test_the_mean_of_two_by_two_pixels(size):
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    ours, reference = mean_pool(x), F.avg_pool2d(x, 2)
    torch.testing.assert_close(ours, reference)
    v = torch.randn_like(ours)
    pairs = (torch.autograd.grad(y, x, v)[0] for y in (ours, reference))
    torch.testing.assert_close(*pairs)


def test_the_gradient_of_a_gradient_reaches_the_images():
    network = build(resolution=(8, 8), width=4).double()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    loss = F.cross_entropy(network(images), torch.tensor([0, 1]))
    grads = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
    (second,) = torch.autograd.grad(sum(g.square().sum() for g in grads), images)
    assert second.abs().sum() > 0


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="unknown network 'convnetD3', did you mean 'ConvNetD3'"):
        build("convnetD3")


def test_images_too_small_for_the_depth():
    with pytest.raises(ConfigError, match="needs 32 pixels per side, not 16x16; choose ConvNetD4"):
        build("ConvNetD5", resolution=(16, 16))


def test_images_of_another_shape_than_the_network():
    with pytest.raises(ValueError, match=r"made for images of shape \[3, 32, 32\], not \[3, 28"):
        build(width=4).embed(torch.rand(1, 3, 28, 28))


def test_a_network_for_a_data_set_is_made_for_its_images_and_classes():
    data = SimpleNamespace(
        channels=1, num_classes=7, resolution=(9, 12), device=torch.device("cpu")
    )
    ours = network_for(data, "ConvNetD2", 6, generator=generator(0, "test"), norm="batch")
    plain = make_network(
        "ConvNetD2",
        channels=1,
        num_classes=7,
        resolution=(9, 12),
        width=6,
        generator=generator(0, "test"),
        norm="batch",
    )
    assert ours.eval()(torch.rand(2, 1, 9, 12)).shape == (2, 7)
    assert all(map(torch.equal, ours.state_dict().values(), plain.state_dict().values()))


def test_an_unknown_choice_of_a_convnet_names_the_nearest():
    sizes = {"channels": 1, "num_classes": 2, "resolution": (8, 8)}
    with pytest.raises(ConfigError, match="unknown choice 'norms', did you mean 'norm'"):
        make_network("ConvNetD1", **sizes, generator=generator(0), norms="batch")
