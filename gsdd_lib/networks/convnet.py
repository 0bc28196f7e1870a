"""The ConvNet of dataset condensation (arXiv 2006.05929): the field's main network."""

from typing import get_args

from torch import Tensor, nn

from gsdd_lib.core.errors import ConfigError
from gsdd_lib.networks.layers import (
    Activation,
    Network,
    Norm,
    Pooling,
    activate,
    check_choice,
    first_padding,
    norm_layer,
    pool,
)


class ConvNet(Network):
    """``depth`` blocks of 3x3 convolution, norm, activation and 2x2 pooling, then a linear layer.

    Args:
        width: filters per convolution.
        norm, pooling, activation: the published choices; the field uses the defaults.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        depth: int,
        width: int,
        norm: Norm = "instance",
        pooling: Pooling = "avg",
        activation: Activation = "relu",
    ) -> None:
        check_choice("pooling", pooling, get_args(Pooling))
        check_choice("activation", activation, get_args(Activation))
        channels, *resolution = input_shape
        padding = first_padding(input_shape, 1)
        size = tuple(side + 2 * padding - 2 for side in resolution)
        if pooling != "none":
            _check_depth(depth, size, resolution)
        sizes = [size if pooling == "none" else _halved(size, block) for block in range(depth + 1)]
        super().__init__(
            input_shape,
            num_classes,
            features=width * sizes[depth][0] * sizes[depth][1],
            image_bytes=4 * width * size[0] * size[1],
            in_pieces=norm != "batch",
        )
        self.blocks = nn.Sequential()
        for block in range(depth):
            self.blocks.append(
                Block(
                    width if block else channels,
                    width,
                    padding=1 if block else padding,
                    norm=norm_layer(norm, width, sizes[block]),
                    pooling=pooling,
                    activation=activation,
                )
            )
        self.add_classifier()

    def features(self, images: Tensor) -> Tensor:
        return self.blocks(images)


class Block(nn.Module):
    """3x3 convolution, norm, activation, 2x2 pooling: [N, in, H, W] to [N, out, H // 2, W // 2]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        padding: int,
        norm: nn.Module,
        pooling: Pooling,
        activation: Activation,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=padding)
        self.norm = norm
        self.pooling, self.activation = pooling, activation

    def forward(self, x: Tensor) -> Tensor:
        return pool(activate(self.norm(self.conv(x)), self.activation), self.pooling)


def _halved(size: tuple[int, ...], times: int) -> tuple[int, ...]:
    return tuple(side >> times for side in size)


def _check_depth(depth: int, padded: tuple[int, ...], resolution: list[int]) -> None:
    if min(padded) >> depth == 0:
        height, width = resolution
        deepest = min(padded).bit_length() - 1
        advice = f"ConvNetD{deepest} or " if deepest else ""
        raise ConfigError(
            f"ConvNetD{depth} halves an image {depth} times and needs {2**depth} pixels per side, "
            f"not {height}x{width}; choose {advice}larger images"
        )
