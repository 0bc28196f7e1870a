"""Images of a fraction of the resolution (IDC): ``factor^2`` as many of them in the same bits.
Published (Kim et al., ICML 2022, arXiv 2205.14959; its code at ceac95a): float32 pixels clamped to
[0, 1], from every other pixel of real images of the class; here the area is averaged. SGD with
momentum 0.5 at a learning rate of 5e-3 on CIFAR-10 and 1e-4 on Fashion-MNIST."""

from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from gsdd_lib.parameterizations.base import BITS, Storage
from gsdd_lib.parameterizations.budget import Budget
from gsdd_lib.parameterizations.pixel import PixelImages

FACTOR = 2  # published: up to 64 pixels; 3 on ImageNet


class DownsampledImages(PixelImages):
    """``N`` images of ``1 / factor`` of the resolution, interpolated where they are rendered."""

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
