"""Images as neural fields (DDiF): one small SIREN per image, all of a batch decoded by ``bmm``.

    h_0 = (row, column) in [-1, 1]^2,   h_l = sin(w_l (W_l h_{l-1} + b_l)),   color = W h_L + b,

with the published settings, initialization and coordinates (Sitzmann et al. 2020; DDiF).
"""

from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn

from gsdd_lib.data.normalization import Normalization
from gsdd_lib.parameterizations.base import Parameterization, Size

FIRST_FREQUENCY = 30.0
COORDINATES = 2
FIT_LR = 5e-4  # the published warm-up's, for 5,000 steps


class NeuralFields(Parameterization):
    """``N`` images, each a SIREN of ``layers`` sine layers of ``width`` units.

    Args:
        layers, width: 3 x 20 at 128 pixels, 2 x 6 at 32 (DDiF at IPC 1 and 10).
        frequency: ``w_l`` of the layers after the first: 40 at 128 pixels, 10 at 32.
        generator: the source of the initial weights, which are uniform.
    """

    def __init__(
        self,
        labels: Tensor,
        channels: int,
        resolution: tuple[int, int],
        *,
        normalization: Normalization,
        layers: int = 3,
        width: int = 20,
        frequency: float = 40.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(labels, resolution, normalization)
        if layers < 1 or width < 1:
            raise ValueError(f"a field needs a layer and a unit, got {layers} x {width}.")
        self.frequency = frequency
        sizes = [COORDINATES, *[width] * layers, channels]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for depth, (size_in, size_out) in enumerate(pairwise(sizes)):
            bound = 1 / size_in if depth == 0 else (6 / size_in) ** 0.5 / frequency
            for group, rows in ((self.weights, size_in), (self.biases, 1)):
                uniform = torch.rand(len(labels), rows, size_out, generator=generator)
                group.append(nn.Parameter(bound * (2 * uniform - 1)))

    @classmethod
    def init_from(cls, images: Tensor, labels: Tensor, *, steps: int = 5000, **more: Any) -> Self:
        """Fields fitted to the images by ``steps`` of Adam on the squared error, as published."""
        fields = cls(labels, images.shape[1], images.shape[2:], **more).to(images.device)
        adam = torch.optim.Adam(fields.parameters(), lr=FIT_LR)
        for _ in range(steps):
            (fields.pixels() - images).square().flatten(1).mean(1).sum().backward()
            adam.step()
            adam.zero_grad(set_to_none=True)
        return fields

    numbers_per_image = property(lambda self: sum(part[0].numel() for part in self.parameters()))
    bits = property(lambda self: len(self) * self.numbers_per_image * 32)

    def pixels(self, index: Tensor | None = None, resolution: Size = None) -> Tensor:
        height, width = resolution or self.resolution
        like = self.weights[0]
        picked = slice(None) if index is None else index
        hidden = pixel_coordinates(height, width).to(like).expand(len(like[picked]), -1, -1)
        last = len(self.weights) - 1
        for depth, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias[picked], hidden, weight[picked])
            if depth < last:
                hidden = torch.sin((self.frequency if depth else FIRST_FREQUENCY) * hidden)
        return hidden.mT.unflatten(2, (height, width)).contiguous()


def pixel_coordinates(height: int, width: int) -> Tensor:
    """(row, column) of each pixel [height * width, 2], from -1 to 1 between the centers of the
    outer ones, as in the published code; 0 of a single one."""
    ends = (torch.linspace(-1, 1, size) if size > 1 else torch.zeros(1) for size in (height, width))
    return torch.cartesian_prod(*ends)
