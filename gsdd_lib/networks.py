"""The field's convolutional networks: blocks of convolution, instance norm, ReLU, average pooling.

``make_network(name, ...)`` draws every weight from a generator that is passed in, with torch's
default distributions; the global generator is neither read nor moved. A new architecture is a
class with ``embed`` and ``forward`` and a line in :data:`NETWORKS`.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsdd_lib.config import ConfigError, nearest

# Images whose first activation fills this many bytes go through the blocks together on a CPU.
# Larger tensors come fresh from the kernel and are zeroed page by page: at width 64, 28x28,
# 640 images, two cores, one piece takes 0.36 s forward and pieces of 8 MiB take 0.14 s.
CHUNK_BYTES = 8 * 2**20


class ConvNet(nn.Module):
    """``depth`` blocks of 3x3 convolution, instance norm, ReLU and 2x2 mean, then one linear layer.

    The ConvNet of dataset condensation (arXiv 2006.05929). Its published code pads the first
    convolution of one-channel images by 3, so that 28x28 becomes 32x32; here that is done for
    28x28 alone, as an 8x8 image would mostly become padding.
    """

    def __init__(
        self,
        *,
        depth: int,
        channels: int,
        num_classes: int,
        resolution: tuple[int, int],
        width: int,
    ) -> None:
        super().__init__()
        self.input_shape = (channels, *resolution)
        first_padding = 3 if self.input_shape == (1, 28, 28) else 1
        height, width_px = (side + 2 * first_padding - 2 for side in resolution)
        _check_depth(depth, (height, width_px), resolution)
        blocks = [Block(channels, width, padding=first_padding)]
        blocks += [Block(width, width) for _ in range(depth - 1)]
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(width * (height >> depth) * (width_px >> depth), num_classes)
        self._image_bytes = 4 * width * height * width_px  # of the first activation, in float32

    def embed(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to the features before the linear layer, [N, features]."""
        if images.shape[1:] != self.input_shape:
            raise ValueError(
                f"the network was made for images of shape {list(self.input_shape)}, "
                f"not {list(images.shape[1:])}; make one for these"
            )
        if images.device.type != "cpu":
            return self.blocks(images).flatten(1)
        pieces = max(1, math.ceil(len(images) * self._image_bytes / CHUNK_BYTES))
        return torch.cat([self.blocks(part).flatten(1) for part in images.chunk(pieces)])

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to logits [N, num_classes]."""
        return self.classifier(self.embed(images))


class Block(nn.Module):
    """3x3 convolution, instance norm with learned scale and shift, ReLU, 2x2 mean."""

    def __init__(self, in_channels: int, out_channels: int, *, padding: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=padding)
        self.norm = nn.GroupNorm(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] to [N, out, H // 2, W // 2] (two more pixels per side if padded by 3)."""
        return mean_pool(F.relu(self.norm(self.conv(x)), inplace=True))


def mean_pool(x: Tensor) -> Tensor:
    """Mean of 2x2 pixels, an odd last row or column left out: [N, C, H, W] to half the size.

    On a CPU as a depthwise convolution, which is vectorized where ``avg_pool2d`` is not: 0.75 ms
    against 3.4 ms for [32, 64, 32, 32] on two cores.
    """
    if x.device.type != "cpu":
        return F.avg_pool2d(x, 2)
    channels = x.shape[1]
    return F.conv2d(x, x.new_full((channels, 1, 2, 2), 0.25), stride=2, groups=channels)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    f"ConvNetD{depth}": partial(ConvNet, depth=depth) for depth in range(1, 7)
}


def make_network(
    name: str,
    *,
    channels: int,
    num_classes: int,
    resolution: tuple[int, int],
    width: int = 128,
    generator: torch.Generator,
) -> nn.Module:
    """A network with fresh weights, on the generator's device.

    Args:
        name: a key of :data:`NETWORKS`.
        resolution: (height, width) of the images, in pixels.
        width: filters per convolution.
        generator: the source of the weights; equal states give equal weights.

    The result maps images [N, C, H, W] to logits, and by ``.embed`` to [N, features]. Raises
    :class:`ConfigError` for an unknown name and for images too small for the depth.

    >>> net = make_network("ConvNetD3", channels=3, num_classes=10, resolution=(32, 32),
    ...                    generator=torch.Generator().manual_seed(0))
    >>> sum(parameter.numel() for parameter in net.parameters())
    320010
    """
    if name not in NETWORKS:
        known = ", ".join(NETWORKS)
        raise ConfigError(
            f"unknown network '{name}'{nearest(name, list(NETWORKS))}; known: {known}"
        )
    with torch.device("meta"):  # no weights yet, so nothing is drawn from the global generator
        network = NETWORKS[name](
            channels=channels, num_classes=num_classes, resolution=tuple(resolution), width=width
        )
    network.to_empty(device=generator.device)
    initialize_(network, generator)
    return network


def initialize_(network: nn.Module, generator: torch.Generator) -> None:
    """Fill all weights with torch's defaults, drawn from ``generator`` in torch's own order."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        elif isinstance(module, nn.GroupNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif any(True for _ in module.parameters(recurse=False)):
            raise TypeError(f"no initialization is known for {type(module).__name__}; add one here")


def _check_depth(depth: int, padded: tuple[int, int], resolution: tuple[int, int]) -> None:
    if min(padded) >> depth == 0:
        height, width = resolution
        deepest = min(padded).bit_length() - 1
        advice = f"ConvNetD{deepest} or " if deepest else ""
        raise ConfigError(
            f"ConvNetD{depth} halves an image {depth} times and needs {2**depth} pixels per side, "
            f"not {height}x{width}; choose {advice}larger images"
        )
