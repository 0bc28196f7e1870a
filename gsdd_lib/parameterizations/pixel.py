"""Images as plain pixels, of the full resolution or a fraction of it: rivals at the same bits."""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsdd_lib.core.rng import generator
from gsdd_lib.data import ImageData
from gsdd_lib.data.dataset import keep_per_class
from gsdd_lib.parameterizations.base import BITS, Parameterization, Size, Storage, as_stored
from gsdd_lib.parameterizations.budget import Budget

FACTOR = 2  # published: up to 64 pixels; 3 on ImageNet


class PixelImages(Parameterization):
    """``N`` images as their pixel values.

    Args:
        pixels: float [N, C, H, W]; 0 is black and 1 is white. ``resolution`` is theirs by default.
        storage: what a number is stored as, and rendered from. Integers are kept in [0, 1]; bf16
            and fp32 pixels are free, as the field's are.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, storage: Storage = "uint8", **more: Any):
        super().__init__(labels, **{"resolution": pixels.shape[2:]} | more)
        self._check(pixels, "[N, C, H, W]", storage)
        self.packed = nn.Parameter(pixels.to(torch.float32, copy=True))
        self.storage = storage

    @classmethod
    def init_from(cls, images: Tensor, labels: Tensor, **more: Any) -> Self:
        return cls(images, labels, **more)

    bits = property(lambda self: self.packed.numel() * BITS[self.storage])

    def pixels(self, index: Tensor | None = None, resolution: Size = None) -> Tensor:
        """As stored; bilinear at other than the stored size."""
        stored = as_stored(self.packed if index is None else self.packed[index], self.storage)
        size = tuple(resolution or self.resolution)
        same = size == stored.shape[2:]
        return stored if same else F.interpolate(stored, size, mode="bilinear", antialias=True)

    @torch.no_grad()
    def constrain_(self) -> None:
        """Clip what is stored as integers to what they can hold."""
        if self.storage.startswith("uint"):
            self.packed.clamp_(0, 1)


class DownsampledImages(PixelImages):
    """Images of ``1 / factor`` of the resolution (IDC), interpolated where they are rendered:
    ``factor^2`` as many of them in the same bits.

    Published (Kim et al., ICML 2022, arXiv 2205.14959; its code at ceac95a): float32 pixels clamped
    to [0, 1], from every other pixel of real images of the class; here the area is averaged. SGD
    with momentum 0.5 at a learning rate of 5e-3 on CIFAR-10 and 1e-4 on Fashion-MNIST.
    """

    @classmethod
    def init_from(cls, images: Tensor, labels: Tensor, *, factor=FACTOR, **more: Any) -> Self:
        """Images shrunk by averaging, each side ``factor`` times, stored as fp32 by default; raises
        ValueError where nothing is left of an image."""
        size = tuple(images.shape[2:])
        small = F.interpolate(images, stored_size(*size, factor), mode="bilinear", antialias=True)
        return cls(small, labels, **{"resolution": size, "storage": "fp32"} | more)

    @torch.no_grad()
    def constrain_(self) -> None:
        """Clip the pixels to [0, 1], as published, whatever they are stored as."""
        self.packed.clamp_(0, 1)


def stored_size(height: int, width: int, factor: float) -> tuple[int, int]:
    """Height and width that are stored of an image; ValueError where nothing is left of it."""
    if not 1 <= factor <= (most := min(height, width)):
        what = f"factor {factor} leaves nothing of {height}x{width} pixels"
        raise ValueError(f"{what}; choose 1 to {most}")
    return int(height // factor), int(width // factor)


def affordable_images(budget: Budget, *, factor: int = FACTOR, storage: Storage = "fp32") -> int:
    """Images per class that the bits of ``budget`` buy: IPC times ``factor^2`` in fp32."""
    height, width = stored_size(budget.height, budget.width, factor)
    return budget.budget_bits_per_class // (budget.channels * height * width * BITS[storage])


def random_real_pixels(data: ImageData, per_class: int, *, seed: int, **more: Any) -> PixelImages:
    """``per_class`` random training images of each class, those of ``baselines.RealImages``."""
    draw = generator(seed, "evaluate", "random real")
    chosen = data.train.select(keep_per_class(data.train.labels, per_class, generator=draw))
    pixels = chosen.images.float() / 255
    return PixelImages(pixels, chosen.labels, normalization=data.normalization, **more)
