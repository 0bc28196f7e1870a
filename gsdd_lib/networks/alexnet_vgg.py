"""AlexNet and VGG11 as the field shrinks them to small images: convolutions, then one linear layer.

The definitions are those of the published codes of dataset condensation (github.com/VICO-UoE/
DatasetCondensation, networks.py) and, above 32 pixels, of GLaD (github.com/GeorgeCazenavette/glad,
networks/), which the cross-architecture tables of the field use.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from gsdd_lib.networks.layers import Network, first_padding, pooled_size

POOL = "pool"
VGG11_LAYERS = (64, POOL, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL)
ALEXNET_LAYERS = (128, POOL, 192, POOL, 256, 192, 192, POOL)
VGG_GRID = 7  # GLaD pools larger images to 7x7 before the linear layer


class AlexNet(Network):
    """Two 5x5 and three 3x3 convolutions with ReLU, three 2x2 maxima; no norm, no dropout."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        size = pooled_size("AlexNet", input_shape, 3)
        super().__init__(
            input_shape,
            num_classes,
            features=192 * size[0] * size[1],
            image_bytes=4 * 128 * input_shape[1] * input_shape[2],
        )
        kernels = (5, 5, 3, 3, 3)
        self.layers = _layers(ALEXNET_LAYERS, input_shape, kernels=kernels, norm=False)
        self.add_classifier()

    def features(self, images: Tensor) -> Tensor:
        return self.layers(images)


class VGG11(Network):
    """Eight 3x3 convolutions with instance norm and ReLU, five 2x2 maxima.

    Images of 32 pixels end as one pixel. Larger ones end in an adaptive maximum over a 7x7 grid.
    """

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        size = pooled_size("VGG11", input_shape, 5)
        self.grid = 1 if size == (1, 1) else VGG_GRID
        super().__init__(
            input_shape,
            num_classes,
            features=512 * self.grid**2,
            image_bytes=4 * 64 * input_shape[1] * input_shape[2],
        )
        self.layers = _layers(VGG11_LAYERS, input_shape, kernels=(3,) * 8, norm=True)
        self.add_classifier()

    def features(self, images: Tensor) -> Tensor:
        return F.adaptive_max_pool2d(self.layers(images), self.grid)


def _layers(
    plan: tuple[int | str, ...],
    input_shape: tuple[int, int, int],
    *,
    kernels: tuple[int, ...],
    norm: bool,
) -> nn.Sequential:
    """A convolution (norm, ReLU) for every number of ``plan``, a 2x2 maximum for every pool."""
    layers, channels, sizes = nn.Sequential(), input_shape[0], iter(kernels)
    for entry in plan:
        if entry == POOL:
            layers.append(nn.MaxPool2d(2))
            continue
        kernel = next(sizes)
        padding = kernel // 2 if layers else first_padding(input_shape, kernel // 2)
        layers.append(nn.Conv2d(channels, entry, kernel, padding=padding))
        if norm:
            layers.append(nn.GroupNorm(entry, entry))
        layers.append(nn.ReLU(inplace=True))
        channels = entry
    return layers
