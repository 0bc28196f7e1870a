"""The ConvNet of dataset condensation (arXiv 2006.05929), the field's main network; AlexNet, VGG11.

All three are blocks of convolution, norm, activation and 2x2 pooling, then one linear layer.
AlexNet and VGG11 are as the field shrinks them to small images: github.com/VICO-UoE/
DatasetCondensation, networks.py, and, above 32 pixels, github.com/GeorgeCazenavette/glad,
networks/, which the cross-architecture tables of the field use.
"""

from torch import Tensor, nn

from gsdd_lib.core.errors import ConfigError
from gsdd_lib.networks.layers import (
    ACTIVATIONS,
    GROUPS,
    NORMS,
    POOLINGS,
    Network,
    check_choice,
)

Plan = tuple[tuple[int, int, bool], ...]  # filters, kernel size, and whether pooled, per block
ALEXNET: Plan = (
    (128, 5, True), (192, 5, True), (256, 3, False), (192, 3, False), (192, 3, True),
)  # fmt: skip
VGG11: Plan = (
    (64, 3, True), (128, 3, True), (256, 3, False), (256, 3, True),
    (512, 3, False), (512, 3, True), (512, 3, False), (512, 3, True),
)  # fmt: skip
VGG_GRID = 7  # GLaD pools larger images to 7x7 before the linear layer


def convnet(
    input_shape: tuple[int, int, int], num_classes: int, *, depth: int, width: int, **choices: str
) -> Network:
    """``depth`` blocks of 3x3 convolutions with ``width`` filters.

    Args:
        choices: ``norm``, ``pooling``, ``activation``; the field uses the defaults of
            :func:`blocks`.
    """
    plan = ((width, 3, True),) * depth
    return blocks(f"ConvNetD{depth}", input_shape, num_classes, plan, **choices)


def alexnet(input_shape: tuple[int, int, int], num_classes: int) -> Network:
    """Two 5x5 and three 3x3 convolutions with ReLU, three 2x2 maxima; no norm, no dropout."""
    return blocks("AlexNet", input_shape, num_classes, ALEXNET, norm="none", pooling="max")


def vgg11(input_shape: tuple[int, int, int], num_classes: int) -> Network:
    """Eight 3x3 convolutions with instance norm and ReLU, five 2x2 maxima.

    Images of 32 pixels end as one pixel. Larger ones end in an adaptive maximum over a 7x7 grid.
    """
    return blocks("VGG11", input_shape, num_classes, VGG11, pooling="max", grid=VGG_GRID)


def blocks(
    name: str,
    input_shape: tuple[int, int, int],
    num_classes: int,
    plan: Plan,
    *,
    norm: str = "instance",
    pooling: str = "avg",
    activation: str = "relu",
    grid: int = 0,
) -> Network:
    """A network of the blocks of ``plan``.

    Args:
        name: for messages.
        norm, pooling, activation: keys of the tables in :mod:`gsdd_lib.networks.layers`.
        grid: where more than one pixel is left, its maximum over so many cells per side; 0: not.

    Raises:
        ConfigError: a choice is unknown, or nothing is left of an image.
    """
    check_choice("norm", norm, NORMS)
    check_choice("pooling", pooling, POOLINGS)
    check_choice("activation", activation, ACTIVATIONS)
    # The published codes pad one-channel images of any size by two more; so 28x28 becomes 32x32,
    # and 8x8 would mostly become padding.
    extra = 2 if tuple(input_shape) == (1, 28, 28) else 0
    channels, *size = input_shape[0], *(side + 2 * extra for side in input_shape[1:])
    times = 0 if pooling == "none" else sum(pooled for _, _, pooled in plan)
    if min(size) >> times == 0:
        deepest = min(min(size).bit_length() - 1, 6)
        raise ConfigError(
            f"{name} halves an image {times} times and needs {2**times} pixels per side, not "
            f"{input_shape[1]}x{input_shape[2]}; choose "
            + f"ConvNetD{deepest} or " * (deepest > 0)
            + "larger images"
        )
    image_bytes, layers = 4 * plan[0][0] * size[0] * size[1], nn.Sequential()
    for filters, kernel, pooled in plan:
        if norm == "group" and filters % GROUPS:
            raise ConfigError(f"group norm needs a width divisible by {GROUPS}, got {filters}")
        conv = nn.Conv2d(channels, filters, kernel, padding=kernel // 2 + extra)
        pool = pooling if pooled else "none"
        layers.append(Block(conv, NORMS[norm](filters, size), activation, pool))
        size = size if pool == "none" else [side // 2 for side in size]
        channels, extra = filters, 0
    if grid and size != [1, 1]:
        layers.append(nn.AdaptiveMaxPool2d(grid))
        size = [grid, grid]
    return Network(
        input_shape,
        num_classes,
        layers,
        num_features=channels * size[0] * size[1],
        image_bytes=image_bytes,
        in_pieces=norm != "batch",
    )


class Block(nn.Module):
    """Convolution, norm, activation, 2x2 pooling: [N, in, H, W] to [N, out, H // 2, W // 2]."""

    def __init__(self, conv: nn.Module, norm: nn.Module, activation: str, pooling: str) -> None:
        super().__init__()
        self.conv, self.norm, self.activation, self.pooling = conv, norm, activation, pooling

    def forward(self, x: Tensor) -> Tensor:
        return POOLINGS[self.pooling](ACTIVATIONS[self.activation](self.norm(self.conv(x))))
