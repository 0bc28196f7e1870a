"""The ConvNet of dataset condensation (arXiv 2006.05929): the field's main network."""

from typing import get_args

from torch import Tensor, nn

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
    pooled_size,
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
        halvings = [0 if pooling == "none" else block for block in range(depth + 1)]
        sizes = [pooled_size(f"ConvNetD{depth}", input_shape, times) for times in halvings]
        super().__init__(
            input_shape,
            num_classes,
            features=width * sizes[-1][0] * sizes[-1][1],
            image_bytes=4 * width * sizes[0][0] * sizes[0][1],
            in_pieces=norm != "batch",
        )
        self.blocks, channels = nn.Sequential(), input_shape[0]
        for block in range(depth):
            padding = 1 if block else first_padding(input_shape, 1)
            conv = nn.Conv2d(channels, width, kernel_size=3, padding=padding)
            self.blocks.append(
                Block(conv, norm_layer(norm, width, sizes[block]), pooling, activation)
            )
            channels = width
        self.add_classifier()

    def features(self, images: Tensor) -> Tensor:
        return self.blocks(images)


class Block(nn.Module):
    """Convolution, norm, activation, 2x2 pooling: [N, in, H, W] to [N, out, H // 2, W // 2]."""

    def __init__(
        self, conv: nn.Module, norm: nn.Module, pooling: Pooling, activation: Activation
    ) -> None:
        super().__init__()
        self.conv, self.norm, self.pooling, self.activation = conv, norm, pooling, activation

    def forward(self, x: Tensor) -> Tensor:
        return pool(activate(self.norm(self.conv(x)), self.activation), self.pooling)
