"""The field's networks: ConvNetD1 to D6, AlexNet, VGG11, ResNet18 and ViT.

``make_network(name, ...)`` draws every weight from a generator that is passed in, with torch's
default distributions; the global generator is neither read nor moved. A new architecture is a
subclass of :class:`~gsdd_lib.networks.layers.Network` and a line in :data:`NETWORKS`.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from gsdd_lib.core.errors import ConfigError
from gsdd_lib.networks.alexnet_vgg import VGG11, AlexNet
from gsdd_lib.networks.convnet import ConvNet
from gsdd_lib.networks.layers import Network, check_choice, initialize_
from gsdd_lib.networks.resnet import ResNet18
from gsdd_lib.networks.vit import ViT

CONVNETS: dict[str, Callable[..., Network]] = {
    f"ConvNetD{depth}": partial(ConvNet, depth=depth) for depth in range(1, 7)
}
NETWORKS: dict[str, Callable[..., Network]] = {
    **CONVNETS,
    "AlexNet": AlexNet,
    "VGG11": VGG11,
    "ResNet18": ResNet18,
    "ViT": ViT,
}

__all__ = [
    "CONVNETS",
    "NETWORKS",
    "Network",
    "empty_network",
    "flatten",
    "initialize_",
    "make_network",
    "unflatten",
]


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
    """A network with fresh weights, on the generator's device.

    Args:
        name: a key of :data:`NETWORKS`.
        resolution: (height, width) of the images, in pixels.
        width: filters per convolution of a ConvNet; the other networks' are fixed.
        generator: the source of the weights; equal states give equal weights.
        choices: of a ConvNet, ``norm`` (instance, batch, layer, group, none), ``pooling`` (avg,
            max, none) and ``activation`` (relu, leakyrelu, sigmoid).

    The result maps images [N, C, H, W] to logits, and by ``.embed`` to [N, features]. Raises
    :class:`ConfigError` for an unknown name or choice and for images that do not fit it.

    >>> net = make_network("ConvNetD3", channels=3, num_classes=10, resolution=(32, 32),
    ...                    generator=torch.Generator().manual_seed(0))
    >>> sum(parameter.numel() for parameter in net.parameters())
    320010
    """
    size = (channels, *resolution)
    network = empty_network(name, size, num_classes=num_classes, width=width, **choices)
    network.to_empty(device=generator.device)
    initialize_(network, generator)
    return network


def empty_network(
    name: str, size: tuple[int, int, int], *, num_classes: int, width: int = 128, **choices: str
) -> Network:
    """The network of :func:`make_network` without its weights, on the meta device.

    size: (channels, height, width) of the images

    It takes no memory and computes shapes alone, and no random number is drawn for it.
    """
    check_choice("network", name, tuple(NETWORKS))
    if name in CONVNETS:
        choices = {"width": width, **choices}
    elif choices:
        raise ConfigError(
            f"{', '.join(choices)} can be chosen for a ConvNet alone; {name} is as published"
        )
    with torch.device("meta"):
        return NETWORKS[name](size, num_classes, **choices)


def flatten(params: Mapping[str, Tensor]) -> Tensor:
    """All numbers of ``params``, one after the other: [P]."""
    return torch.cat([value.detach().flatten() for value in params.values()])


def unflatten(flat: Tensor, network: nn.Module) -> dict[str, Tensor]:
    """``flat`` [P] as the named parameters of ``network``; views, differentiable."""
    shapes = {name: value.shape for name, value in network.named_parameters()}
    sizes = [shape.numel() for shape in shapes.values()]
    if flat.shape != (sum(sizes),):
        raise ValueError(
            f"the network has {sum(sizes):,} parameters, not {list(flat.shape)}; use one of the "
            "architecture that the parameters were made for"
        )
    parts = zip(shapes.items(), flat.split(sizes), strict=True)
    return {name: part.view(shape) for (name, shape), part in parts}
