"""Images as plain pixels: the rival of every other parameterization at the same bits.

Stored as bytes, 4 images take the bits of one image of the field's fp32 pixels; so at equal bits
this rival has more images than the field gives it, at a precision that costs it nothing visible.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsdd_lib.core.rng import generator
from gsdd_lib.data import ImageData
from gsdd_lib.data.dataset import keep_per_class
from gsdd_lib.parameterizations.budget import Budget, pixel_bits_per_class
from gsdd_lib.parameterizations.gaussian import RoundToBf16

Storage = Literal["uint8", "bf16", "fp32"]
BITS: dict[Storage, int] = {"uint8": 8, "bf16": 16, "fp32": 32}


class RoundToByte(torch.autograd.Function):
    """Forward: the nearest of 0, 1/255, ..., 1. Backward: the identity (straight through)."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        return (values * 255).round().clamp(0, 255) / 255

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient


class PixelImages(nn.Module):
    """``N`` images as their pixel values.

    Args:
        pixels: float [N, C, H, W]; 0 is black and 1 is white.
        labels: int64 [N].
        mean, std: per channel, of pixel values in [0, 1]; the normalization networks expect.
        storage: what a number is stored as. Rendered is what is stored, and the gradient goes
            straight through to the float32 masters, called ``packed`` as those of Gaussians are.
            Bytes are kept in [0, 1]; bf16 and fp32 pixels are free, as the field's are.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        storage: Storage = "uint8",
    ) -> None:
        super().__init__()
        if pixels.dim() != 4 or len(labels) != len(pixels) or len(mean) != pixels.shape[1]:
            raise ValueError(
                f"pixels {list(pixels.shape)}, labels {list(labels.shape)} and {len(mean)} channel "
                "means do not fit: expected [N, C, H, W], [N] and C values."
            )
        if storage not in BITS:
            raise ValueError(f"unknown storage '{storage}'; choose one of {', '.join(BITS)}")
        self.packed = nn.Parameter(pixels.to(torch.float32, copy=True))
        self.register_buffer("labels", labels.to(torch.int64))
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        self.resolution, self.storage = tuple(pixels.shape[2:]), storage

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def bits(self) -> int:
        """Bits of all pixels; labels and a file's description come on top."""
        return self.packed.numel() * BITS[self.storage]

    def forward(
        self, index: Tensor | None = None, resolution: tuple[int, int] | None = None
    ) -> Tensor:
        """:meth:`render`."""
        return self.render(index, resolution)

    def render(
        self, index: Tensor | None = None, resolution: tuple[int, int] | None = None
    ) -> Tensor:
        """Normalized images [n, C, height, width]; bilinear where that is not the native size."""
        return (self.render_unit(index, resolution) - self.mean) / self.std

    def render_unit(
        self, index: Tensor | None = None, resolution: tuple[int, int] | None = None
    ) -> Tensor:
        """Pixel values as stored: [n, C, height, width]."""
        stored = self._stored(self.packed if index is None else self.packed[index])
        if resolution is None or tuple(resolution) == self.resolution:
            return stored
        return F.interpolate(stored, tuple(resolution), mode="bilinear", antialias=True)

    def penalty(self) -> Tensor:
        """0: a pixel cannot leave its image."""
        return self.packed.new_zeros(())

    def scale_step_(self, before: Mapping[str, Tensor], ratio: float) -> None:
        """Nothing: all numbers of an image are of one kind."""

    @torch.no_grad()
    def constrain_(self) -> None:
        """Clip what is stored in bytes to what a byte can hold."""
        if self.storage == "uint8":
            self.packed.clamp_(0, 1)

    def _stored(self, pixels: Tensor) -> Tensor:
        if self.storage == "uint8":
            return RoundToByte.apply(pixels)
        return RoundToBf16.apply(pixels) if self.storage == "bf16" else pixels


def affordable_images(budget: Budget, storage: Storage = "uint8") -> int:
    """Images per class that the bits of ``budget`` buy as pixels: 4, 2 or 1 times its IPC."""
    size = {"channels": budget.channels, "height": budget.height, "width": budget.width}
    return budget.budget_bits_per_class // pixel_bits_per_class(1, bits=BITS[storage], **size)


def random_real_pixels(
    data: ImageData, per_class: int, *, seed: int, storage: Storage = "uint8"
) -> PixelImages:
    """``per_class`` random training images of each class.

    A rival as it is, the very images of ``baselines.random_real_images`` with the same seed, and
    what the distillation of pixels starts from.
    """
    draw = generator(seed, "evaluate", "random real")
    chosen = data.train.select(keep_per_class(data.train.labels, per_class, generator=draw))
    return PixelImages(
        chosen.images.float() / 255, chosen.labels, mean=data.mean, std=data.std, storage=storage
    )
