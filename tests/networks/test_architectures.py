"""AlexNet, VGG11, ResNet18, ViT, and the ConvNet's choices: the field's sizes, nobody's globals."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gsdd_lib.core.errors import ConfigError
from gsdd_lib.core.rng import generator
from gsdd_lib.networks import NETWORKS, make_network
from gsdd_lib.networks.layers import Dropout, initialize_

OTHERS = ("AlexNet", "VGG11", "ResNet18", "ResNet18BN", "ViT")


def build(name, channels=3, side=32, num_classes=10, seed=0, **choices):
    return make_network(
        name,
        channels=channels,
        num_classes=num_classes,
        resolution=(side, side),
        generator=generator(seed, "test"),
        **choices,
    )


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def conv(inputs, outputs, kernel, bias=True):
    return inputs * outputs * kernel**2 + bias * outputs


def alexnet_by_hand(side, classes):
    convs = conv(3, 128, 5) + conv(128, 192, 5) + conv(192, 256, 3) + conv(256, 192, 3)
    return convs + conv(192, 192, 3) + (192 * (side // 8) ** 2 + 1) * classes


def vgg11_by_hand(features, classes):
    widths = (3, 64, 128, 256, 256, 512, 512, 512, 512)
    convs = sum(conv(a, b, 3) + 2 * b for a, b in itertools.pairwise(widths))
    return convs + (features + 1) * classes


def resnet18_by_hand(classes):
    widths = (64, 64, 64, 64, 64, 128, 128, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512)
    convs = conv(3, 64, 3, False) + sum(conv(a, b, 3, False) for a, b in itertools.pairwise(widths))
    shortcuts = sum(conv(a, 2 * a, 1, False) + 2 * 2 * a for a in (64, 128, 256))
    return convs + 2 * sum(widths) + shortcuts + 513 * classes


def vit_by_hand(side, patch, depth, normed, classes=10, dim=512):
    tokens = (3 * patch**2 + 1) * dim + ((side // patch) ** 2 + 2) * dim  # positions, class token
    attention = 3 * dim * dim + (dim + 1) * dim
    block = attention + 2 * (dim + 1) * dim + normed * 2 * 2 * dim
    return tokens + depth * block + normed * 2 * dim + (dim + 1) * classes


@pytest.mark.parametrize(
    ("name", "side", "by_hand"),
    [
        ("AlexNet", 32, alexnet_by_hand(32, 10)),
        ("AlexNet", 128, alexnet_by_hand(128, 10)),
        ("VGG11", 32, vgg11_by_hand(512, 10)),
        ("VGG11", 128, vgg11_by_hand(512 * 49, 10)),
        ("ResNet18", 128, resnet18_by_hand(10)),
        ("ResNet18BN", 128, resnet18_by_hand(10)),
        ("ViT", 32, vit_by_hand(32, 4, 6, True)),
        ("ViT", 128, vit_by_hand(128, 16, 10, False)),
    ],
)
def test_parameter_counts_of_the_published_definitions(name, side, by_hand):
    assert count(build(name, side=side)) == by_hand


def test_published_parameter_counts_for_cifar10():
    """NeuralFuse, arXiv 2306.16869, table 7; batch norm has as many as the field's instance norm.

    No count of the field's AlexNet and ViT was found in print; theirs are those by hand.
    """
    assert count(build("VGG11")) == 9_231_114
    assert count(build("ResNet18")) == 11_173_962
    assert (alexnet_by_hand(32, 10), vit_by_hand(32, 4, 6, True)) == (1_872_202, 9_523_722)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 28)])
def test_images_become_features_and_logits(name, channels, side):
    if (name, side) == ("VGG11", 28):
        assert channels == 1  # padded to 32x32, which is what it needs
    network = build(name, channels, side).eval()
    images = torch.randn(2, channels, side, side)
    features = network.embed(images)
    assert features.shape == (2, network.num_features)
    assert torch.equal(network.classifier(features), network(images))
    torch.testing.assert_close(network.embed(images[1:]), features[1:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "features"), [("VGG11", 25088), ("ViT", 512)])
def test_features_of_128_pixels(name, features):
    assert build(name, side=128).eval().embed(torch.randn(1, 3, 128, 128)).shape == (1, features)


@pytest.mark.parametrize("name", OTHERS)
def test_every_weight_comes_from_the_given_generator(name):
    before = torch.get_rng_state()
    first, again, other = build(name), build(name), build(name, seed=1)
    first(torch.zeros(2, 3, 32, 32))  # in training mode: dropout draws too
    assert torch.equal(before, torch.get_rng_state())
    for a, b, c in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b) and torch.isfinite(a).all()
        assert a.dim() == 1 or not torch.equal(a, c)


@pytest.mark.parametrize("name", ["ResNet18", "VGG11"])
def test_outputs_are_those_of_torchs_own_modules(name):
    """Written down once more, from the definition, with torch's modules and default weights."""
    torch.manual_seed(3)
    plain = (plain_resnet18 if name == "ResNet18" else plain_vgg11)().eval()
    ours = build(name).eval()
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        mine.data.copy_(theirs)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(images), plain(images), atol=1e-4, rtol=1e-4)


def plain_vgg11():
    layers, before = [], 3
    for width, pooled in zip(
        (64, 128, 256, 256, 512, 512, 512, 512), (1, 1, 0, 1, 0, 1, 0, 1), strict=True
    ):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.GroupNorm(width, width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] * pooled
        before = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


class PlainBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.GroupNorm(outputs, outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.GroupNorm(outputs, outputs),
        )
        self.short = nn.Sequential()
        if inputs != outputs:
            self.short = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.GroupNorm(outputs, outputs)
            )

    def forward(self, x):
        return F.relu(self.path(x) + self.short(x))


def plain_resnet18():
    layers = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.GroupNorm(64, 64), nn.ReLU()]
    for inputs, outputs in ((64, 64), (64, 128), (128, 256), (256, 512)):
        layers += [PlainBlock(inputs, outputs, outputs // inputs), PlainBlock(outputs, outputs, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def test_attention_is_torchs_own():
    from gsdd_lib.networks.vit import Attention

    attention = Attention().eval()
    nn.init.normal_(attention.qkv.weight, std=0.02)
    x = torch.randn(2, 5, 512)
    q, k, v = attention.qkv(x).chunk(3, -1)
    q, k, v = (t.unflatten(-1, (8, 64)).transpose(1, 2) for t in (q, k, v))
    expected = attention.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x), expected, atol=1e-5, rtol=1e-4)


def test_dropout_draws_from_its_own_generator_and_keeps_the_mean():
    layer = Dropout(0.25)
    layer.initialize_(generator(0, "dropout"))
    before, ones = torch.get_rng_state(), torch.ones(40_000)
    first = layer(ones)
    assert torch.equal(before, torch.get_rng_state())
    assert first.unique().tolist() == pytest.approx([0, 4 / 3])
    assert first.mean().item() == pytest.approx(1, abs=0.02)
    assert not torch.equal(first, layer(ones))
    layer.initialize_(generator(0, "dropout"))
    assert torch.equal(first, layer(ones)) and layer.eval()(ones) is ones


@pytest.mark.parametrize("norm", ["instance", "batch", "layer", "group", "none"])
@pytest.mark.parametrize("pooling", ["avg", "max", "none"])
def test_the_convnets_choices_against_torchs_own_modules(norm, pooling):
    activation = {"avg": "relu", "max": "leakyrelu", "none": "sigmoid"}[pooling]
    ours = build(
        "ConvNetD2", side=8, width=8, norm=norm, pooling=pooling, activation=activation
    ).double()
    layers, size = [], 8
    for inputs in (3, 8):
        layers += [nn.Conv2d(inputs, 8, 3, padding=1)]
        layers += {
            "instance": lambda: [nn.GroupNorm(8, 8)],
            "batch": lambda: [nn.BatchNorm2d(8)],
            "layer": lambda size=size: [nn.LayerNorm([8, size, size])],
            "group": lambda: [nn.GroupNorm(4, 8)],
            "none": list,
        }[norm]()
        layers += [
            {"relu": nn.ReLU, "leakyrelu": nn.LeakyReLU, "sigmoid": nn.Sigmoid}[activation]()
        ]
        layers += {"avg": [nn.AvgPool2d(2)], "max": [nn.MaxPool2d(2)], "none": []}[pooling]
        size = size if pooling == "none" else size // 2
    plain = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * size**2, 10)).double()
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        theirs.data.copy_(mine)
    images = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(images), plain(images))
    torch.testing.assert_close(ours.eval()(images), plain.eval()(images))  # running statistics


def test_batch_norm_sees_the_whole_batch_and_starts_from_clean_statistics(monkeypatch):
    from gsdd_lib.networks import layers

    monkeypatch.setattr(layers, "CHUNK_BYTES", 1)  # a piece per image, were it cut
    network = build("ConvNetD1", side=8, width=4, norm="batch")
    state = dict(network.named_buffers())
    assert (state["features.0.norm.running_mean"] == 0).all()
    assert (state["features.0.norm.running_var"] == 1).all()
    network(torch.randn(6, 3, 8, 8))
    assert state["features.0.norm.num_batches_tracked"] == 1


@pytest.mark.parametrize("name", ["ConvNetD2", *OTHERS])
def test_the_gradient_of_a_gradient_reaches_the_images(name):
    network = build(name, width=4).eval()
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    loss = F.cross_entropy(network(images), torch.tensor([1]))
    last = list(network.parameters())[-2:]
    grads = torch.autograd.grad(loss, last, create_graph=True)
    (second,) = torch.autograd.grad(sum(g.square().sum() for g in grads), images)
    assert torch.isfinite(second).all() and second.abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("VGG11", {"side": 16}, "VGG11 halves an image 5 times and needs 32 pixels per side"),
        ("ViT", {"side": 30}, "patches of 4x4 pixels and 30x30 is not a multiple of that"),
        ("ResNet18", {"side": 8}, "ends in one pixel for images of 8x8, which its instance norm"),
        ("AlexNet", {"side": 4}, "needs 8 pixels per side, not 4x4; choose ConvNetD2 or larger"),
        ("ConvNetD4", {"side": 8, "width": 4}, "16 pixels per side, not 8x8; choose ConvNetD3 or"),
        ("ConvNetD1", {"side": 1}, "needs 2 pixels per side, not 1x1; choose larger images"),
        ("ResNet18", {"norm": "batch"}, "norm can be chosen for a ConvNet only; ResNet18 is as"),
        ("ConvNetD2", {"norm": "instanse"}, "unknown norm 'instanse', did you mean 'instance'"),
        ("ConvNetD2", {"pooling": "mean"}, "unknown pooling 'mean'.*known: avg, max, none"),
        ("ConvNetD2", {"activation": "gelu"}, "unknown activation 'gelu'.*known: relu"),
        ("ConvNetD2", {"norm": "group", "width": 6}, "divisible by 4, got 6"),
        ("ResNet", {}, "unknown network 'ResNet', did you mean 'ResNet18'"),
    ],
)
def test_what_does_not_fit_is_answered_in_a_sentence(name, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build(name, **settings)


def test_a_layer_without_known_weights_is_refused():
    with pytest.raises(TypeError, match="no initialization is known for Bilinear"):
        initialize_(nn.Sequential(nn.Bilinear(2, 2, 2)), generator(0))


def test_every_network_is_named():
    assert set(NETWORKS) >= {"ConvNetD3", "ConvNetD4", "ConvNetD5", "ConvNetD6", *OTHERS}
