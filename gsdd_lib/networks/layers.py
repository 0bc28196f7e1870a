"""What the networks are made of: their common class, the selectable layers, their initialization.

Nothing here reads torch's global generator.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Images whose first activation fills this many bytes go through a network together on a CPU.
# Larger tensors come fresh from the kernel and are zeroed page by page, which takes twice the time.
CHUNK_BYTES = 8 * 2**20
GROUPS = 4  # of a group norm, as in the published ConvNet


class Network(nn.Module):
    """``features``, flattened, then one linear layer; every architecture is one of these.

    Args:
        input_shape: (channels, height, width) of the images.
        num_classes: logits.
        features: [N, C, H, W] to [N, ...].
        num_features: numbers per image that ``features`` gives.
        image_bytes: size of one image's first activation in float32, which sets the pieces.
        in_pieces: whether an image's features are independent of the others' (no batch norm).
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        features: nn.Module,
        num_features: int,
        image_bytes: int,
        *,
        in_pieces: bool = True,
    ) -> None:
        super().__init__()
        self.input_shape, self.num_classes = tuple(input_shape), num_classes
        self.num_features, self.image_bytes, self.in_pieces = num_features, image_bytes, in_pieces
        self.features = features
        self.classifier = nn.Linear(num_features, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to the features before the linear layer, [N, num_features]."""
        if images.shape[1:] != self.input_shape:
            raise ValueError(
                f"the network was made for images of shape {list(self.input_shape)}, "
                f"not {list(images.shape[1:])}; make one for these"
            )
        if images.device.type != "cpu" or not self.in_pieces:
            return self.features(images).flatten(1)
        pieces = max(1, math.ceil(len(images) * self.image_bytes / CHUNK_BYTES))
        return torch.cat([self.features(part).flatten(1) for part in images.chunk(pieces)])

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to logits [N, num_classes]."""
        return self.classifier(self.embed(images))


def mean_pool(x: Tensor) -> Tensor:
    """Mean of 2x2 pixels, an odd last row or column left out: [N, C, H, W] to half the size.

    On a CPU as a depthwise convolution, which is vectorized where ``avg_pool2d`` is not.
    """
    if x.device.type != "cpu":
        return F.avg_pool2d(x, 2)
    channels = x.shape[1]
    return F.conv2d(x, x.new_full((channels, 1, 2, 2), 0.25), stride=2, groups=channels)


# The published ConvNet's choices. A norm is made for (channels, (height, width)).
NORMS = {
    "instance": lambda channels, size: nn.GroupNorm(channels, channels),
    "batch": lambda channels, size: nn.BatchNorm2d(channels),
    "layer": lambda channels, size: nn.LayerNorm([channels, *size]),
    "group": lambda channels, size: nn.GroupNorm(GROUPS, channels),
    "none": lambda channels, size: nn.Identity(),
}
POOLINGS = {"avg": mean_pool, "max": partial(F.max_pool2d, kernel_size=2), "none": lambda x: x}
ACTIVATIONS = {
    "relu": F.relu_,
    "leakyrelu": partial(F.leaky_relu, negative_slope=0.01, inplace=True),
    "sigmoid": torch.sigmoid,
}


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
        elif hasattr(module, "initialize_"):
            module.initialize_(generator)
        elif any(True for _ in module.parameters(recurse=False)):
            raise TypeError(f"no initialization is known for {type(module).__name__}; add one here")
