"""What the networks are made of: their common base, the selectable layers, their initialization.

Nothing here reads torch's global generator: :func:`initialize_` samples every weight from the one
it is given, and :class:`Dropout` has a generator of its own.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsdd_lib.config import nearest
from gsdd_lib.core.errors import ConfigError

Norm = Literal["instance", "batch", "layer", "group", "none"]
Pooling = Literal["avg", "max", "none"]
Activation = Literal["relu", "leakyrelu", "sigmoid"]

# Images whose first activation fills this many bytes go through a network together on a CPU.
# Larger tensors come fresh from the kernel and are zeroed page by page: ConvNetD3 at width 64,
# 28x28, 640 images, two cores: one piece takes 0.36 s forward and pieces of 8 MiB take 0.14 s.
CHUNK_BYTES = 8 * 2**20
GROUPS = 4  # of a group norm, as in the published ConvNet


class Network(nn.Module):
    """Base of all networks: ``features`` (what a subclass defines), then one linear layer.

    Args:
        input_shape: (channels, height, width) of the images.
        features: features per image before the linear layer.
        image_bytes: size of one image's first activation in float32, which sets the pieces.
        in_pieces: whether an image's features are independent of the others' (no batch norm).
    """

    piece_devices = ("cpu",)  # where images go through in pieces

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        features: int,
        image_bytes: int,
        in_pieces: bool = True,
    ) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        self.image_bytes, self._in_pieces = image_bytes, in_pieces
        self.num_features, self.num_classes = features, num_classes

    def add_classifier(self) -> None:
        """The linear layer; called last by a subclass, so that weights are sampled in order."""
        self.classifier = nn.Linear(self.num_features, self.num_classes)

    def features(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to [N, ...], flattened by :meth:`embed`."""
        raise NotImplementedError

    def embed(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to the features before the linear layer, [N, features]."""
        if images.shape[1:] != self.input_shape:
            raise ValueError(
                f"the network was made for images of shape {list(self.input_shape)}, "
                f"not {list(images.shape[1:])}; make one for these"
            )
        if images.device.type not in self.piece_devices or not self._in_pieces:
            return self.features(images).flatten(1)
        pieces = max(1, math.ceil(len(images) * self.image_bytes / CHUNK_BYTES))
        return torch.cat([self.features(part).flatten(1) for part in images.chunk(pieces)])

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to logits [N, num_classes]."""
        return self.classifier(self.embed(images))


def first_padding(input_shape: tuple[int, int, int], usual: int) -> int:
    """Padding of the first convolution: two more for 1x28x28, which so becomes 32x32.

    The published codes do so for one-channel images of any size; 8x8 would mostly become padding.
    """
    return usual + 2 if tuple(input_shape) == (1, 28, 28) else usual


def pooled_size(name: str, input_shape: tuple[int, int, int], times: int) -> tuple[int, int]:
    """(height, width) after ``times`` 2x2 poolings.

    Raises:
        ConfigError: nothing is left, naming the deepest ConvNet that fits.
    """
    extra = 2 * first_padding(input_shape, 0)
    height, width = (side + extra for side in input_shape[1:])
    if min(height, width) >> times == 0:
        deepest = min(min(height, width).bit_length() - 1, 6)
        raise ConfigError(
            f"{name} halves an image {times} times and needs {2**times} pixels per side, not "
            f"{input_shape[1]}x{input_shape[2]}; choose "
            + f"ConvNetD{deepest} or " * (deepest > 0)
            + "larger images"
        )
    return height >> times, width >> times


def norm_layer(norm: Norm, channels: int, size: tuple[int, int]) -> nn.Module:
    """Normalization of [N, channels, *size] with learned scale and shift.

    ``instance`` is a group norm with a group per channel, ``group`` has 4 groups, ``layer``
    normalizes over channels and pixels together (the published ConvNet's five choices).
    """
    check_choice("norm", norm, get_args(Norm))
    if norm == "group" and channels % GROUPS:
        raise ConfigError(f"group norm needs a width divisible by {GROUPS}, got {channels}")
    match norm:
        case "instance":
            return nn.GroupNorm(channels, channels)
        case "group":
            return nn.GroupNorm(GROUPS, channels)
        case "batch":
            return nn.BatchNorm2d(channels)
        case "layer":
            return nn.LayerNorm([channels, *size])
    return nn.Identity()


def activate(x: Tensor, activation: Activation) -> Tensor:
    """The activation of ``x``, in place where that is possible."""
    if activation == "sigmoid":
        return torch.sigmoid(x)
    return F.leaky_relu(x, 0.01, inplace=True) if activation == "leakyrelu" else F.relu_(x)


def pool(x: Tensor, pooling: Pooling) -> Tensor:
    """2x2 pooling with stride 2, or none: [N, C, H, W] to half the size."""
    if pooling == "max":
        return F.max_pool2d(x, 2)
    return mean_pool(x) if pooling == "avg" else x


def mean_pool(x: Tensor) -> Tensor:
    """Mean of 2x2 pixels, an odd last row or column left out: [N, C, H, W] to half the size.

    On a CPU as a depthwise convolution, which is vectorized where ``avg_pool2d`` is not: 0.75 ms
    against 3.4 ms for [32, 64, 32, 32] on two cores.
    """
    if x.device.type != "cpu":
        return F.avg_pool2d(x, 2)
    channels = x.shape[1]
    return F.conv2d(x, x.new_full((channels, 1, 2, 2), 0.25), stride=2, groups=channels)


class Dropout(nn.Module):
    """Dropout with a generator of its own, seeded when the weights are initialized."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability, self.generator = probability, None

    def initialize_(self, generator: torch.Generator) -> None:
        """Seed this layer's own generator, which lives on the CPU, from ``generator``."""
        seed = torch.randint(2**62, (), generator=generator, device=generator.device)
        self.generator = torch.Generator().manual_seed(int(seed))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.probability:
            return x
        kept = torch.rand(x.shape, generator=self.generator) >= self.probability
        return x * (kept.to(x) / (1 - self.probability))


def initialize_(network: nn.Module, generator: torch.Generator) -> None:
    """Fill all weights with torch's defaults, sampled from ``generator`` in torch's own order."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        elif isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.BatchNorm2d):
            module.reset_parameters()  # ones, zeros and, of a batch norm, the running statistics
        elif module is not network and hasattr(module, "initialize_"):
            module.initialize_(generator)
        elif any(True for _ in module.parameters(recurse=False)):
            raise TypeError(f"no initialization is known for {type(module).__name__}; add one here")


def check_choice(what: str, choice: str, known: tuple[str, ...]) -> None:
    """Raise :class:`ConfigError` with the nearest known name if ``choice`` is not among them."""
    if choice not in known:
        raise ConfigError(
            f"unknown {what} '{choice}'{nearest(choice, list(known))}; known: {', '.join(known)}"
        )
