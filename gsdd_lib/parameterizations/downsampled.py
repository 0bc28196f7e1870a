"""Images of a fraction of the resolution (IDC): more of them in the same bits.

The rival that trades detail for number. Where the field stores an image, IDC stores
``factor x factor`` small ones side by side, and decodes each by bilinear interpolation to the full
size. Which small image lies where is of no consequence, so they are held one by one.

Published settings (Kim et al., ICML 2022, arXiv 2205.14959; its code at ceac95a): factor 2 up to
64 pixels and 3 on ImageNet, float32 pixels clamped to [0, 1], real images of the class to begin
with, SGD with momentum 0.5 at a learning rate of 5e-3 on CIFAR-10 and 1e-4 on Fashion-MNIST. That
code shrinks them by taking every other pixel; here the area is averaged, which is no worse.
"""

from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from gsdd_lib.parameterizations.budget import Budget
from gsdd_lib.parameterizations.pixel import BITS, PixelImages, Storage

FACTOR = 2  # published: up to 64 pixels; 3 on ImageNet


class DownsampledImages(PixelImages):
    """``N`` images of ``1 / factor`` of the resolution, interpolated where they are rendered.

    Built by :meth:`init_from`, or as :class:`PixelImages` is with a ``resolution`` of more pixels
    than are stored. At equal storage with ``n`` full images there are ``factor^2 * n`` of them.
    With ``storage="uint4"`` and without distillation they are the strongest simple rival.
    """

    @classmethod
    def init_from(
        cls,
        images: Tensor,
        labels: Tensor,
        *,
        factor: float = FACTOR,
        storage: Storage = "fp32",
        **more,
    ) -> Self:
        """Images shrunk by averaging.

        Args:
            images: pixel values [N, C, H, W] in [0, 1].
            labels: int64 [N].
            factor: how many times smaller each side is stored, rounded down to whole pixels.
            storage: of a value; published: ``fp32``.
            more: ``normalization``, and other arguments of the class.

        Raises:
            ValueError: nothing is left of an image.
        """
        height, width = images.shape[2:]
        size = stored_size(height, width, factor)
        small = F.interpolate(images, size, mode="bilinear", antialias=True)
        return cls(small, labels, resolution=(height, width), storage=storage, **more)

    @torch.no_grad()
    def constrain_(self) -> None:
        """Clip the pixels to [0, 1], as published, whatever they are stored as."""
        self.packed.clamp_(0, 1)


def stored_size(height: int, width: int, factor: float) -> tuple[int, int]:
    """Pixels that are stored of an image: ``factor^2`` of them fit into one of full size.

    >>> stored_size(28, 28, 2), stored_size(128, 128, 3)
    ((14, 14), (42, 42))
    """
    if not 1 <= factor <= min(height, width):
        raise ValueError(
            f"factor {factor} leaves nothing of {height}x{width} pixels; choose 1 to "
            f"{min(height, width)}"
        )
    return int(height // factor), int(width // factor)


def affordable_images(budget: Budget, *, factor: int = FACTOR, storage: Storage = "fp32") -> int:
    """Images per class that the bits of ``budget`` buy: IPC times ``factor^2`` in fp32."""
    height, width = stored_size(budget.height, budget.width, factor)
    return budget.budget_bits_per_class // (budget.channels * height * width * BITS[storage])
