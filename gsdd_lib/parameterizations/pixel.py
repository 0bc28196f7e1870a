"""Images as plain pixels: the rival of every other parameterization at the same bits.

Stored as bytes, 4 images take the bits of one image of the field's fp32 pixels; so at equal bits
this rival has more images than the field gives it, at a precision that costs it nothing visible.
"""

from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsdd_lib.core.rng import generator
from gsdd_lib.data import ImageData
from gsdd_lib.data.dataset import keep_per_class
from gsdd_lib.data.normalization import Normalization
from gsdd_lib.parameterizations.base import Parameterization, StraightThrough
from gsdd_lib.parameterizations.gaussian import RoundToBf16

Storage = Literal["uint2", "uint4", "uint8", "bf16", "fp32"]
BITS: dict[Storage, int] = {"uint2": 2, "uint4": 4, "uint8": 8, "bf16": 16, "fp32": 32}


class PixelImages(Parameterization):
    """``N`` images as their pixel values.

    Args:
        pixels: float [N, C, H, W]; 0 is black and 1 is white.
        labels: int64 [N].
        normalization: from pixel values to what networks see.
        storage: what a number is stored as. Rendered is what is stored, and the gradient goes
            straight through to the float32 masters. Integers are kept in [0, 1]; bf16 and fp32
            pixels are free, as the field's are.
        resolution: (height, width) at which images are rendered by default, where that is not
            the size of ``pixels``; they are then interpolated.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        *,
        normalization: Normalization,
        storage: Storage = "uint8",
        resolution: tuple[int, int] | None = None,
    ) -> None:
        if pixels.dim() != 4 or len(labels) != len(pixels):
            raise ValueError(
                f"pixels {list(pixels.shape)} and labels {list(labels.shape)} do not fit: expected "
                "[N, C, H, W] and [N]."
            )
        if storage not in BITS:
            raise ValueError(f"unknown storage '{storage}'; choose one of {', '.join(BITS)}")
        super().__init__(labels, resolution or pixels.shape[2:], normalization)
        self.packed = nn.Parameter(pixels.to(torch.float32, copy=True))
        self.storage = storage

    @classmethod
    def init_from(cls, images: Tensor, labels: Tensor, **more) -> Self:
        """The images themselves; ``more``: ``normalization``, and other arguments of the class."""
        return cls(images, labels, **more)

    @property
    def bits(self) -> int:
        """Bits of all pixels as they are stored."""
        return self.packed.numel() * BITS[self.storage]

    def pixels(
        self, index: Tensor | None = None, resolution: tuple[int, int] | None = None
    ) -> Tensor:
        """Pixel values as stored [n, C, height, width]; bilinear at other than the stored size."""
        stored = self._stored(self.packed if index is None else self.packed[index])
        size = tuple(resolution or self.resolution)
        if size == stored.shape[2:]:
            return stored
        return F.interpolate(stored, size, mode="bilinear", antialias=True)

    @torch.no_grad()
    def constrain_(self) -> None:
        """Clip what is stored as integers to what they can hold."""
        if self.storage.startswith("uint"):
            self.packed.clamp_(0, 1)

    def _stored(self, pixels: Tensor) -> Tensor:
        if self.storage.startswith("uint"):
            top = 2 ** BITS[self.storage] - 1
            levels = (pixels.detach() * top).round().clamp(0, top)
            return StraightThrough.apply(pixels, levels / top)
        return RoundToBf16.apply(pixels) if self.storage == "bf16" else pixels


def random_real_pixels(
    data: ImageData, per_class: int, *, seed: int, storage: Storage = "uint8"
) -> PixelImages:
    """``per_class`` random training images of each class.

    A rival as it is, the very images of ``baselines.RealImages`` with the same seed, and
    what the distillation of pixels starts from.
    """
    draw = generator(seed, "evaluate", "random real")
    chosen = data.train.select(keep_per_class(data.train.labels, per_class, generator=draw))
    pixels = chosen.images.float() / 255
    return PixelImages(pixels, chosen.labels, normalization=data.normalization, storage=storage)
