"""What the outer loop asks of a parameterization: labels, images, a penalty, a constraint."""

from collections.abc import Iterator, Mapping
from typing import Protocol

from torch import Tensor, nn


class Parameterization(Protocol):
    """Parameters that render to labeled images: Gaussians, and pixels as their rival."""

    labels: Tensor  # int64 [N]

    def parameters(self) -> "Iterator[nn.Parameter]":
        """The tensors that a distillation changes."""

    def named_parameters(self) -> "Iterator[tuple[str, nn.Parameter]]":
        """The same with their names, which a snapshot has."""

    def render(self, index: Tensor | None = None) -> Tensor:
        """Normalized images [n, C, H, W], differentiable; all of them without an index."""

    def penalty(self) -> Tensor:
        """A scalar added to the objective, weighted by the outer loop."""

    def scale_step_(self, before: Mapping[str, Tensor], ratio: float) -> None:
        """Make a step from ``before`` ``ratio`` times as long in what is measured in pixels."""

    def constrain_(self) -> None:
        """Bring the parameters back to where they may be; called after each step."""
