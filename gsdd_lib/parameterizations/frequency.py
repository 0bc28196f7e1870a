"""Images as a few of their frequencies (FreD): DCT coefficients under a mask per class.

    pixel(y, x) = 1/2 + sum_(u, v) c(u, v) a(u) a(v) cos(pi u (2y+1) / 2H) cos(pi v (2x+1) / 2W),

``a(0) = 1``, else ``sqrt(2)``: a coefficient is an amplitude in pixel values at any resolution.
Published (Shin et al., NeurIPS 2023, arXiv 2311.08819; its code at 9f35a7a): float32, variances of
the initial real images, ``floor(IPC * H * W / K)`` images per class; K = 64 on CIFAR-10 at IPC 1,
2,048 on ImageNet subsets at 128 pixels; SGD with momentum 0.5. The mask is not counted there.
"""

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from gsdd_lib.parameterizations.base import BITS, Parameterization, Size, as_stored
from gsdd_lib.parameterizations.budget import Budget

GRAY = 0.5  # of an image without any coefficient


class FrequencyImages(Parameterization):
    """``N`` images of ``K`` frequencies each.

    Args:
        coefficients: float [N, C, K], in the order of ``places``; ``storage`` is bf16 or fp32.
        places: int64 [classes, K], different numbers ``u * W + v`` in each row: the mask.
    """

    def __init__(
        self, coefficients: Tensor, labels: Tensor, places: Tensor, *, storage="fp32", **more: Any
    ) -> None:
        super().__init__(labels, **more)
        self._check(coefficients, "[N, C, K]", storage, ("bf16", "fp32"))
        if coefficients.shape[2] != places.shape[1]:
            raise ValueError(f"{coefficients.shape[2]} coefficients need as many places")
        self.coefficients = nn.Parameter(coefficients.to(torch.float32, copy=True))
        self.register_buffer("places", places, persistent=False)
        self.storage = storage

    @classmethod
    @torch.no_grad()
    def init_from(cls, images: Tensor, labels: Tensor, *, frequencies: int, **more: Any) -> Self:
        """The ``frequencies`` per channel that vary most within a class of these images, as
        published; ValueError for too many."""
        most = images[0, 0].numel()
        if not 1 <= frequencies <= most:
            raise ValueError(f"{frequencies} frequencies of {most} pixels; choose 1 to {most}")
        places = varying_most(images, labels, int(labels.max()) + 1, frequencies)
        spectrum = dct(images - GRAY).flatten(2)
        chosen = spectrum.gather(2, places[labels][:, None].expand(-1, images.shape[1], -1))
        return cls(chosen, labels, places, resolution=images.shape[2:], **more)

    @property
    def bits(self) -> int:
        """Of the coefficients, and a bit per frequency and class for the mask."""
        mask_bits = len(self.places) * math.prod(self.resolution)
        return self.coefficients.numel() * BITS[self.storage] + mask_bits

    def pixels(self, index: Tensor | None = None, resolution: Size = None) -> Tensor:
        """Higher frequencies are 0 at a higher resolution."""
        chosen = slice(None) if index is None else index
        stored = as_stored(self.coefficients[chosen], self.storage)
        places = self.places[self.labels[chosen], None].expand(-1, stored.shape[1], -1)
        spectrum = stored.new_zeros(*stored.shape[:2], math.prod(self.resolution))
        spectrum = spectrum.scatter(2, places, stored).unflatten(2, self.resolution)
        return GRAY + inverse_dct(spectrum, resolution or self.resolution)


def dct(images: Tensor) -> Tensor:
    """Coefficients [..., H, W] of images [..., H, W]: orthonormal DCT-II over ``sqrt(H W)``."""
    rows, columns = (cosines(size, size).to(images) for size in images.shape[-2:])
    return rows @ images @ columns.T / images.shape[-2:].numel()


def inverse_dct(spectrum: Tensor, resolution: tuple[int, int]) -> Tensor:
    """Images [..., height, width] of [..., H, W], without frequencies that they cannot show."""
    shown = spectrum[..., : resolution[0], : resolution[1]]
    rows, columns = map(cosines, shown.shape[-2:], resolution)
    return rows.to(shown).T @ shown @ columns.to(shown)


def cosines(frequencies: int, pixels: int) -> Tensor:
    """``a(u) cos(pi u (2x+1) / 2 pixels)``, float64 [frequencies, pixels]."""
    angle = torch.arange(frequencies)[:, None] * (torch.arange(pixels, dtype=torch.float64) + 0.5)
    wave = math.sqrt(2) * torch.cos(angle * (math.pi / pixels))
    wave[0] = 1
    return wave


def varying_most(images: Tensor, labels: Tensor, classes: int, count: int) -> Tensor:
    """The ``count`` frequencies of each class that vary most: int64 [classes, count], ascending; of
    equal variance, as where a class has a single image, the lower ones."""
    height, width = images.shape[2:]
    rows, columns = torch.arange(height) / height, torch.arange(width) / width
    rising = (rows.square()[:, None] + columns.square()).flatten().argsort(stable=True)
    rising, places = rising.to(images.device), []
    spectrum = dct(images.mean(1)).flatten(1)[:, rising]
    for label in range(classes):
        members = spectrum[labels == label]
        order = (members - members.mean(0)).square().sum(0).argsort(descending=True, stable=True)
        places.append(rising[order[:count]].sort().values)
    return torch.stack(places)


def affordable_images(budget: Budget, frequencies: int, storage: str = "fp32") -> int:
    """Images per class that the bits of ``budget`` buy beside the class's mask."""
    bits = budget.budget_bits_per_class - budget.height * budget.width
    return bits // (budget.channels * frequencies * BITS[storage])
