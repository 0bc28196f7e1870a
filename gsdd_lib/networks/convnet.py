"""The ConvNet of dataset condensation (arXiv 2006.05929); AlexNet and VGG11 as the field has them.

Source: github.com/VICO-UoE/DatasetCondensation; above 32 pixels, github.com/GeorgeCazenavette/glad.
"""

from torch import Tensor, nn

from gsdd_lib.config import check_choice
from gsdd_lib.core.errors import ConfigError
from gsdd_lib.networks.layers import ACTIVATIONS, GROUPS, NORMS, POOLINGS, Network, Shape

Plan = tuple[tuple[int, int, bool], ...]  # filters, kernel size, and whether pooled, per block
ALEXNET: Plan = (  # no norm, 2x2 maxima
    (128, 5, True), (192, 5, True), (256, 3, False), (192, 3, False), (192, 3, True),
)  # fmt: skip
VGG11: Plan = (  # 2x2 maxima
    (64, 3, True), (128, 3, True), (256, 3, False), (256, 3, True),
    (512, 3, False), (512, 3, True), (512, 3, False), (512, 3, True),
)  # fmt: skip
VGG_GRID = 7  # GLaD pools larger images to 7x7 before the linear layer


def blocks(
    name: str, shape: Shape, num_classes: int, plan: Plan, *, grid: int = 0, **choices: str
) -> Network:
    """A network of blocks of convolution, norm, activation and 2x2 pooling, then one linear layer.

    Args:
        shape: (channels, height, width) of the images.
        grid: where more than one pixel is left, its maximum over so many cells per side; 0: not.
        choices: ``norm`` ("instance"), ``pooling`` ("avg") and ``activation`` ("relu"); see layers.

    Raises:
        ConfigError: a choice is unknown, or nothing is left of an image.
    """
    tables = {"norm": NORMS, "pooling": POOLINGS, "activation": ACTIVATIONS}
    for what, choice in choices.items():
        check_choice(what, tables[check_choice("choice", tables, what)], choice)
    chosen = {"norm": "instance", "pooling": "avg", "activation": "relu"} | choices
    norm, pooling, activation = chosen.values()
    extra = 2 if tuple(shape) == (1, 28, 28) else 0  # as published, which pads any gray image
    channels, *size = shape[0], *(side + 2 * extra for side in shape[1:])
    times = 0 if pooling == "none" else sum(pooled for _, _, pooled in plan)
    if min(size) >> times == 0:
        deepest = min(min(size).bit_length() - 1, 6)
        needs = f"{name} halves an image {times} times and needs {2**times} pixels per side"
        hint = f"ConvNetD{deepest} or " * (deepest > 0) + "larger images"
        raise ConfigError(f"{needs}, not {shape[1]}x{shape[2]}; choose {hint}")
    layers = nn.Sequential()
    image_bytes = 0 if norm == "batch" else 4 * plan[0][0] * size[0] * size[1]
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
    return Network(shape, num_classes, layers, channels * size[0] * size[1], image_bytes)


class Block(nn.Module):
    """Convolution, norm, activation, 2x2 pooling: [N, in, H, W] to [N, out, H // 2, W // 2]."""

    def __init__(self, conv: nn.Module, norm: nn.Module, activation: str, pooling: str) -> None:
        super().__init__()
        self.conv, self.norm, self.activation, self.pooling = conv, norm, activation, pooling

    def forward(self, x: Tensor) -> Tensor:
        return POOLINGS[self.pooling](ACTIVATIONS[self.activation](self.norm(self.conv(x))))
