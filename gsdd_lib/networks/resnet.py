"""ResNet18 as the field evaluates it: a 3x3 stem for small images, and instance norm.

The definition of github.com/VICO-UoE/DatasetCondensation and github.com/GeorgeCazenavette/glad
(networks/resnet.py): four stages of two basic blocks, the later three halving the image.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from gsdd_lib.core.errors import ConfigError
from gsdd_lib.networks.layers import Network

STAGES = (64, 128, 256, 512)


def resnet18(shape: tuple[int, int, int], num_classes: int) -> Network:
    """17 convolutions with instance norm in residual blocks, the mean over pixels, one linear."""
    channels, height, width = shape
    if max(height, width) <= 8:  # the instance norm of a single pixel is a constant
        raise ConfigError(
            f"ResNet18 ends in one pixel for images of {height}x{width}, which its instance "
            "norm turns into a constant; choose a ConvNet or images of more than 8 pixels"
        )
    layers, before = nn.Sequential(*_conv_norm(channels, STAGES[0], 3), nn.ReLU(True)), STAGES[0]
    for filters in STAGES:
        layers.append(BasicBlock(before, filters, stride=1 if filters == before else 2))
        layers.append(BasicBlock(filters, filters, stride=1))
        before = filters
    layers.append(MeanOverPixels())
    return Network(shape, num_classes, layers, STAGES[-1], 4 * STAGES[0] * height * width)


class BasicBlock(nn.Module):
    """``relu(x + norm(conv(relu(norm(conv(x))))))``, x brought to shape by a 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv_norm(in_channels, out_channels, 3, stride)
        self.conv2, self.norm2 = _conv_norm(out_channels, out_channels, 3)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut.extend(_conv_norm(in_channels, out_channels, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] to [N, out, ceil(H / stride), ceil(W / stride)]."""
        inner = F.relu_(self.norm1(self.conv1(x)))
        return F.relu_(self.norm2(self.conv2(inner)) + self.shortcut(x))


class MeanOverPixels(nn.Module):
    """[N, C, H, W] to [N, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def _conv_norm(inputs: int, filters: int, kernel: int, stride: int = 1) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(inputs, filters, kernel, stride, padding=kernel // 2, bias=False)
    return conv, nn.GroupNorm(filters, filters)
