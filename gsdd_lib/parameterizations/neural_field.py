"""Images as neural fields (DDiF): one small SIREN per image, all of a batch decoded by ``bmm``.

The rival of notebook 12. A field maps a pixel's coordinates to its color,

    h_0 = (x, y) in [-1, 1]^2,   h_l = sin(w_l (W_l h_{l-1} + b_l)),   color = W h_L + b,

with ``w_1 = 30`` and ``w_l`` a setting (40 at 128 pixels, 10 at 32). Settings and initialization
follow the published ones (Sitzmann et al. 2020; DDiF, table of decoders). The published code calls
one network after the other; here all images go through each layer at once, so that a comparison
measures the method and not the loop around it.
"""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

FIRST_FREQUENCY = 30.0
COORDINATES = 2


class NeuralFields(nn.Module):
    """``N`` images, each a SIREN of ``layers`` sine layers of ``width`` units.

    Args:
        labels: int64 [N].
        channels: colors of a pixel.
        resolution: (height, width) in pixels at which ``render`` draws unless told otherwise.
        layers, width: 3 x 20 at 128 pixels, 2 x 6 at 32 (DDiF at IPC 1 and 10).
        frequency: ``w_l`` of the layers after the first.
        generator: the source of the initial weights, which are uniform.
    """

    def __init__(
        self,
        labels: Tensor,
        channels: int,
        resolution: tuple[int, int],
        *,
        layers: int = 3,
        width: int = 20,
        frequency: float = 40.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if layers < 1 or width < 1:
            raise ValueError(f"a field needs a layer and a unit, got {layers} x {width}.")
        self.register_buffer("labels", labels.to(torch.int64))
        self.resolution, self.frequency = tuple(resolution), frequency
        sizes = [COORDINATES, *[width] * layers, channels]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for depth, (size_in, size_out) in enumerate(pairwise(sizes)):
            bound = 1 / size_in if depth == 0 else (6 / size_in) ** 0.5 / frequency
            for group, rows in ((self.weights, size_in), (self.biases, 1)):
                uniform = torch.rand(len(labels), rows, size_out, generator=generator)
                group.append(nn.Parameter(bound * (2 * uniform - 1)))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def numbers_per_image(self) -> int:
        """Weights and biases of one field; stored as fp32, four bytes each."""
        return sum(part[0].numel() for part in self.parameters())

    def forward(
        self, index: Tensor | None = None, resolution: tuple[int, int] | None = None
    ) -> Tensor:
        """:meth:`render`."""
        return self.render(index, resolution)

    def render(
        self, index: Tensor | None = None, resolution: tuple[int, int] | None = None
    ) -> Tensor:
        """Images [n, C, height, width] at any resolution, differentiable in all weights."""
        height, width = resolution or self.resolution
        like = self.weights[0]
        picked = slice(None) if index is None else index
        hidden = pixel_coordinates(height, width).to(like).expand(len(like[picked]), -1, -1)
        last = len(self.weights) - 1
        for depth, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias[picked], hidden, weight[picked])
            if depth < last:
                hidden = torch.sin((self.frequency if depth else FIRST_FREQUENCY) * hidden)
        return hidden.transpose(1, 2).unflatten(2, (height, width)).contiguous()

    def penalty(self) -> Tensor:
        """A field has no place to escape to: 0."""
        return self.weights[0].new_zeros(())

    def scale_step_(self, before: Mapping[str, Tensor], ratio: float) -> None:
        """Nothing: no weight is measured in pixels."""

    def constrain_(self) -> None:
        """Weights may be any number: nothing to do."""


def pixel_coordinates(height: int, width: int) -> Tensor:
    """Centers of the pixels as (x, y) in [-1, 1]: [height * width, 2], row by row."""
    y = (torch.arange(height) + 0.5) / height * 2 - 1
    x = (torch.arange(width) + 0.5) / width * 2 - 1
    return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).flatten(0, 1)
