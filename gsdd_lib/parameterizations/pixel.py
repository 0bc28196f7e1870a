"""Images as plain pixels: the rival of every other parameterization at the same bits."""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsdd_lib.core.rng import generator
from gsdd_lib.data import ImageData
from gsdd_lib.data.dataset import keep_per_class
from gsdd_lib.parameterizations.base import BITS, Parameterization, Size, Storage, as_stored


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


def random_real_pixels(data: ImageData, per_class: int, *, seed: int, **more: Any) -> PixelImages:
    """``per_class`` random training images of each class, those of ``baselines.RealImages``."""
    draw = generator(seed, "evaluate", "random real")
    chosen = data.train.select(keep_per_class(data.train.labels, per_class, generator=draw))
    pixels = chosen.images.float() / 255
    return PixelImages(pixels, chosen.labels, normalization=data.normalization, **more)
