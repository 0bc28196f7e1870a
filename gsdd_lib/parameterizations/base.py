"""What distillation asks of a parameterization: labeled images that its parameters render to."""

from collections.abc import Callable, Mapping
from typing import Self

import torch
from torch import Tensor, nn

from gsdd_lib.data.normalization import Normalization


class StraightThrough(torch.autograd.Function):
    """Forward: ``stored``, what is left of ``values`` in a file. Backward: the identity."""

    @staticmethod
    def forward(ctx, values: Tensor, stored: Tensor) -> Tensor:
        return stored.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class Parameterization(nn.Module):
    """``N`` labeled images whose parameters are what distillation changes.

    A parameterization of your own implements :meth:`pixels` and :attr:`bits`, and whichever of
    :meth:`penalty`, :meth:`scale_step_` and :meth:`constrain_` it needs. Called as a function it
    renders, so that ``torch.func.functional_call(images, snapshot, ())`` renders other parameters.

    Args:
        labels: int64 [N].
        resolution: (height, width) in pixels at which images are rendered by default.
        normalization: from pixel values to what networks see.
    """

    labels: Tensor

    def __init__(
        self, labels: Tensor, resolution: tuple[int, int], normalization: Normalization
    ) -> None:
        super().__init__()
        self.register_buffer("labels", labels.to(torch.int64))
        self.resolution = tuple(resolution)
        self.normalization = normalization

    def __len__(self) -> int:
        return len(self.labels)

    def forward(
        self, index: Tensor | None = None, resolution: tuple[int, int] | None = None
    ) -> Tensor:
        """:meth:`render`."""
        return self.render(index, resolution)

    def render(
        self, index: Tensor | None = None, resolution: tuple[int, int] | None = None
    ) -> Tensor:
        """Normalized images [n, C, height, width], differentiable in all parameters.

        Args:
            index: int64 [n], which images; all of them without one.
            resolution: (height, width); left out, the native one.
        """
        return self.normalization.apply(self.pixels(index, resolution))

    def pixels(
        self, index: Tensor | None = None, resolution: tuple[int, int] | None = None
    ) -> Tensor:
        """Pixel values [n, C, height, width], in [0, 1] up to overshoot; as :meth:`render`."""
        raise NotImplementedError

    @property
    def bits(self) -> int:
        """Bits of all images as they are stored; labels are not counted."""
        raise NotImplementedError

    def penalty(self) -> Tensor:
        """A scalar that the outer loop adds to the objective, with a weight; 0 by default."""
        return next(self.parameters()).new_zeros(())

    def scale_step_(self, before: Mapping[str, Tensor], ratio: float) -> None:
        """Make the last step ``ratio`` times as long in what is measured in pixels, if anything is.

        Args:
            before: the parameters before the step, by name.
            ratio: a positive number.
        """

    def constrain_(self) -> None:
        """Bring the parameters back into their range, if they have one; called after each step."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.normalization = self.normalization.to(self.labels.device)
        return self
