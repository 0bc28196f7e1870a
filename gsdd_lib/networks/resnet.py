"""ResNet18 as the field evaluates it: a 3x3 stem for small images, and instance or batch norm.

Source: github.com/VICO-UoE/DatasetCondensation, github.com/GeorgeCazenavette/glad.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from gsdd_lib.core.errors import ConfigError
from gsdd_lib.networks.layers import NORMS, Network, Shape

STAGES = (64, 128, 256, 512)


def resnet18(shape: Shape, num_classes: int, *, norm: str = "instance") -> Network:
    """17 convolutions in residual blocks with a ``norm`` (``instance``, or ``batch``), the mean."""
    channels, height, width = shape
    # The instance norm of a single pixel is a constant.
    if norm == "instance" and max(height, width) <= 8:
        fault = f"ResNet18 ends in one pixel for images of {height}x{width}, which its instance"
        hint = "choose a ConvNet or images of more than 8 pixels"
        raise ConfigError(f"{fault} norm turns into a constant; {hint}")
    stem = _conv_norm(channels, STAGES[0], 3, norm=norm)
    layers, before = nn.Sequential(*stem, nn.ReLU(True)), STAGES[0]
    for filters in STAGES:
        layers.append(BasicBlock(before, filters, stride=1 if filters == before else 2, norm=norm))
        layers.append(BasicBlock(filters, filters, stride=1, norm=norm))
        before = filters
    layers.append(nn.AdaptiveAvgPool2d(1))
    memory = 0 if norm == "batch" else 4 * STAGES[0] * height * width
    return Network(shape, num_classes, layers, STAGES[-1], memory)


class BasicBlock(nn.Module):
    """``relu(x + norm(conv(relu(norm(conv(x))))))``, x brought to shape by a 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv_norm(in_channels, out_channels, 3, stride, norm=norm)
        self.conv2, self.norm2 = _conv_norm(out_channels, out_channels, 3, norm=norm)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut.extend(_conv_norm(in_channels, out_channels, 1, stride, norm=norm))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu_(self.norm1(self.conv1(x)))
        return F.relu_(self.norm2(self.conv2(inner)) + self.shortcut(x))


def _conv_norm(channels: int, filters: int, kernel: int, stride: int = 1, *, norm: str) -> tuple:
    conv = nn.Conv2d(channels, filters, kernel, stride, padding=kernel // 2, bias=False)
    return conv, NORMS[norm](filters, None)
