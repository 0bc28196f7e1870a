"""The field's networks; a new one is a function that returns a ``Network``, and a line here."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gsdd_lib.config import check_choice
from gsdd_lib.core.errors import ConfigError
from gsdd_lib.networks import layers
from gsdd_lib.networks.convnet import ALEXNET, VGG11, VGG_GRID, blocks
from gsdd_lib.networks.layers import Network
from gsdd_lib.networks.resnet import resnet18
from gsdd_lib.networks.vit import vit

NETWORKS: dict[str, Callable[..., Network]] = {
    **{f"ConvNetD{depth}": partial(blocks, f"ConvNetD{depth}") for depth in range(1, 7)},
    "AlexNet": partial(blocks, "AlexNet", plan=ALEXNET, norm="none", pooling="max"),
    "VGG11": partial(blocks, "VGG11", plan=VGG11, pooling="max", grid=VGG_GRID),
    "ResNet18": resnet18,
    "ResNet18BN": partial(resnet18, norm="batch"),
    "ViT": vit,
}


def network_for(
    data: Any, name: str, width: int = 128, *, generator: torch.Generator, **choices: str
) -> Network:
    """:func:`make_network` for the images and classes of an ``ImageData``, on its device."""
    shape = {name: getattr(data, name) for name in ("channels", "num_classes", "resolution")}
    return make_network(name, **shape, width=width, generator=generator, **choices).to(data.device)


def make_network(
    name: str,
    *,
    channels: int,
    num_classes: int,
    resolution: tuple[int, int],
    width: int = 128,
    generator: torch.Generator,
    **choices: str,
) -> Network:
    """A network with fresh weights of torch's default distributions, on the generator's device.

    Args:
        width: filters per convolution of a ConvNet; the other networks' are fixed.
        choices: ``norm``, ``pooling`` and ``activation`` of a ConvNet (:func:`blocks`).

    Raises:
        ConfigError: the name or a choice is unknown, or the images are too small.
    """
    check_choice("network", NETWORKS, name)
    if name.startswith("ConvNet"):
        choices = {"plan": ((width, 3, True),) * int(name[-1]), **choices}
    elif choices:
        fault = f"{', '.join(choices)} can be chosen for a ConvNet only"
        raise ConfigError(f"{fault}; {name} is as published")
    with torch.device("meta"):  # takes no memory and no random numbers
        network = NETWORKS[name]((channels, *resolution), num_classes, **choices)
    network.to_empty(device=generator.device)
    layers.initialize_(network, generator)
    return network


def flatten(params: Mapping[str, Tensor]) -> Tensor:
    """All numbers of ``params``, one after the other: [P]."""
    return torch.cat([value.detach().flatten() for value in params.values()])


def unflatten(flat: Tensor, network: nn.Module) -> dict[str, Tensor]:
    """``flat`` [P] as the named parameters of ``network``; views, differentiable."""
    shapes = {name: value.shape for name, value in network.named_parameters()}
    sizes = [shape.numel() for shape in shapes.values()]
    if flat.shape != (sum(sizes),):
        fault = f"the network has {sum(sizes):,} parameters, not {list(flat.shape)}"
        raise ValueError(f"{fault}; use one of the architecture that they were made for")
    parts = zip(shapes.items(), flat.split(sizes), strict=True)
    return {name: part.view(shape) for (name, shape), part in parts}
