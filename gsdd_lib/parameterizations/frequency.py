"""Images as a few of their frequencies (FreD): DCT coefficients under a mask per class.

The rival that stores what varies most. An image of ``H x W`` pixels is the sum of cosines

    pixel(y, x) = 1/2 + sum_(u, v) c(u, v) a(u) a(v) cos(pi u (2y+1) / 2H) cos(pi v (2x+1) / 2W),

``a(0) = 1`` and ``a = sqrt(2)`` otherwise: the orthonormal DCT-II divided by ``sqrt(H W)``, so that
a coefficient is an amplitude in pixel values at any resolution. Only ``K`` coefficients of each
channel are stored and learned: those whose variance over real images of the class is largest,
averaged over channels first.

Published settings (Shin et al., NeurIPS 2023, arXiv 2311.08819; its code at 9f35a7a): float32, one
mask per class, whose variances are those of the initial real images; ``floor(IPC * H * W / K)``
images per class, the mask not counted; K = 64 on CIFAR-10 at IPC 1, 2,048 on ImageNet subsets at
128 pixels; SGD with momentum 0.5. Here the mask is counted, as a bit per frequency and class.
"""

import math
from typing import Literal, Self

import torch
from torch import Tensor, nn

from gsdd_lib.data.normalization import Normalization
from gsdd_lib.parameterizations.base import Parameterization
from gsdd_lib.parameterizations.budget import Budget
from gsdd_lib.parameterizations.gaussian import RoundToBf16

BITS = {"bf16": 16, "fp32": 32}
GRAY = 0.5  # of an image without any coefficient


class FrequencyImages(Parameterization):
    """``N`` images of ``K`` frequencies each.

    Args:
        coefficients: float [N, C, K], in the order of ``places``.
        labels: int64 [N].
        places: int64 [classes, K], different numbers ``u * W + v`` in each row: the mask.
        resolution: (height, width) in pixels that the frequencies belong to.
        normalization: from pixel values to what networks see.
        storage: what a coefficient is stored as. Rendered is what is stored, and the gradient goes
            straight through to the float32 masters.
    """

    def __init__(
        self,
        coefficients: Tensor,
        labels: Tensor,
        places: Tensor,
        *,
        resolution: tuple[int, int],
        normalization: Normalization,
        storage: Literal["bf16", "fp32"] = "fp32",
    ) -> None:
        if coefficients.dim() != 3 or coefficients.shape[2] != places.shape[1]:
            raise ValueError(
                f"coefficients {list(coefficients.shape)} and places {list(places.shape)} do not "
                "fit: expected [N, C, K] and [classes, K]."
            )
        if storage not in BITS:
            raise ValueError(f"unknown storage '{storage}'; choose one of {', '.join(BITS)}")
        super().__init__(labels, resolution, normalization)
        self.coefficients = nn.Parameter(coefficients.to(torch.float32, copy=True))
        self.register_buffer("places", places, persistent=False)
        self.storage = storage

    @classmethod
    @torch.no_grad()
    def init_from(
        cls,
        images: Tensor,
        labels: Tensor,
        *,
        frequencies: int,
        real: tuple[Tensor, Tensor] | None = None,
        **more,
    ) -> Self:
        """The frequencies of images that vary most within their class.

        Args:
            images: pixel values [N, C, H, W] in [0, 1].
            labels: int64 [N].
            frequencies: K, stored per channel.
            real: images and labels to measure the variance of; left out, ``images``, as published.
            more: ``normalization``, and ``storage``.

        Raises:
            ValueError: there are fewer than K frequencies.
        """
        height, width = images.shape[2:]
        if not 1 <= frequencies <= height * width:
            raise ValueError(
                f"{frequencies} frequencies of {height}x{width} pixels; choose 1 to "
                f"{height * width}"
            )
        places = varying_most(*(real or (images, labels)), int(labels.max()) + 1, frequencies)
        spectrum = dct(images - GRAY).flatten(2)
        chosen = spectrum.gather(2, places[labels][:, None].expand(-1, images.shape[1], -1))
        return cls(chosen, labels, places, resolution=(height, width), **more)

    @property
    def bits(self) -> int:
        """Bits of all coefficients, and a bit per frequency and class for the mask."""
        mask = len(self.places) * math.prod(self.resolution)
        return self.coefficients.numel() * BITS[self.storage] + mask

    def pixels(
        self, index: Tensor | None = None, resolution: tuple[int, int] | None = None
    ) -> Tensor:
        """Pixel values [n, C, height, width]; higher frequencies are 0 at a higher resolution."""
        chosen = slice(None) if index is None else index
        stored, places = self.coefficients[chosen], self.places[self.labels[chosen]]
        if self.storage == "bf16":
            stored = RoundToBf16.apply(stored)
        count, channels = stored.shape[:2]
        spectrum = stored.new_zeros(count, channels, math.prod(self.resolution))
        spectrum = spectrum.scatter(2, places[:, None].expand(-1, channels, -1), stored)
        spectrum = spectrum.view(count, channels, *self.resolution)
        return GRAY + inverse_dct(spectrum, resolution or self.resolution)


def dct(images: Tensor) -> Tensor:
    """Coefficients [..., H, W] of images [..., H, W]: orthonormal DCT-II over ``sqrt(H W)``."""
    height, width = images.shape[-2:]
    rows, columns = cosines(height, height).to(images), cosines(width, width).to(images)
    return rows @ images @ columns.T / (height * width)


def inverse_dct(spectrum: Tensor, resolution: tuple[int, int]) -> Tensor:
    """Images [..., height, width] of coefficients [..., H, W], at any resolution.

    Frequencies that a lower resolution cannot show are left out.
    """
    height, width = resolution
    spectrum = spectrum[..., :height, :width]
    rows = cosines(spectrum.shape[-2], height).to(spectrum)
    columns = cosines(spectrum.shape[-1], width).to(spectrum)
    return rows.T @ spectrum @ columns


def cosines(frequencies: int, pixels: int) -> Tensor:
    """``a(u) cos(pi u (2x+1) / 2 pixels)``, float64 [frequencies, pixels]."""
    angle = torch.arange(frequencies)[:, None] * (torch.arange(pixels, dtype=torch.float64) + 0.5)
    wave = math.sqrt(2) * torch.cos(angle * (math.pi / pixels))
    wave[0] = 1
    return wave


def varying_most(images: Tensor, labels: Tensor, classes: int, count: int) -> Tensor:
    """The ``count`` frequencies of each class that vary most: int64 [classes, count], ascending.

    Of equal variance, as where a class has a single image, the lower frequency comes first.
    """
    height, width = images.shape[2:]
    spectrum = dct(images.mean(1)).flatten(1)
    u, v = torch.arange(height), torch.arange(width)
    rising = ((u[:, None] / height) ** 2 + (v / width) ** 2).flatten().argsort(stable=True)
    rising, places = rising.to(images.device), []
    for label in range(classes):
        members = spectrum[labels == label]
        variance = (
            members.var(0, correction=0) if len(members) else spectrum.new_zeros(height * width)
        )
        order = variance[rising].argsort(descending=True, stable=True)
        places.append(rising[order[:count]].sort().values)
    return torch.stack(places)


def affordable_images(budget: Budget, frequencies: int, storage: str = "fp32") -> int:
    """Images per class that the bits of ``budget`` buy beside the class's mask."""
    bits = budget.budget_bits_per_class - budget.height * budget.width
    return bits // (budget.channels * frequencies * BITS[storage])
