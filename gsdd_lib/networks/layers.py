"""What the networks are made of: their class, the selectable layers, their initialization."""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# First activations that go through a network together on a CPU; larger ones take twice the time.
CHUNK_BYTES = 8 * 2**20
Shape = tuple[int, int, int]
GROUPS = 4  # of a group norm, as in the published ConvNet


class Network(nn.Module):
    """``features``, flattened, then one linear layer; every architecture is one of these.

    Args:
        shape: (channels, height, width) of the images.
        num_features: numbers per image that ``features`` gives.
        image_bytes: of an image's first activation, which sets the pieces; 0: all images at once.
    """

    def __init__(
        self, shape: Shape, classes: int, features: nn.Module, num_features: int, image_bytes: int
    ) -> None:
        super().__init__()
        self.input_shape, self.num_classes = tuple(shape), classes
        self.num_features, self.image_bytes = num_features, image_bytes
        self.features, self.classifier = features, nn.Linear(num_features, classes)

    def embed(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to the features before the linear layer, [N, num_features]."""
        if images.shape[1:] != self.input_shape:
            made = f"the network was made for images of shape {list(self.input_shape)}"
            raise ValueError(f"{made}, not {list(images.shape[1:])}; make one for these")
        if images.device.type != "cpu" or not self.image_bytes:
            return self.features(images).flatten(1)
        pieces = max(1, math.ceil(len(images) * self.image_bytes / CHUNK_BYTES))
        return torch.cat([self.features(part).flatten(1) for part in images.chunk(pieces)])

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.embed(images))


def mean_pool(x: Tensor) -> Tensor:
    """Mean of 2x2 pixels, an odd last row or column left out: [N, C, H, W] to half the size."""
    if x.device.type != "cpu":  # on a CPU the convolution is vectorized, where this is not
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
