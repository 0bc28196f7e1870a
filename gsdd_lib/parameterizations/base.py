"""What the outer loop asks of a parameterization: labels, images, a penalty, a constraint."""

from typing import Protocol

from torch import Tensor, nn


class Parameterization(Protocol):
    """Parameters that render to labeled images: Gaussians, and pixels as their rival."""

    packed: nn.Parameter  # float32 [N, ...], the numbers that a distillation changes
    labels: Tensor  # int64 [N]

    def parameters(self) -> "list[nn.Parameter]":
        """The tensors that a distillation changes."""

    def render(self, index: Tensor | None = None) -> Tensor:
        """Normalized images [n, C, H, W], differentiable; all of them without an index."""

    def render_packed(self, packed: Tensor) -> Tensor:
        """Images of other numbers in place of this object's own, e.g. of a snapshot."""

    def penalty(self) -> Tensor:
        """A scalar added to the objective, weighted by the outer loop."""

    def scale_step_(self, before: Tensor, ratio: float) -> None:
        """Make a step from ``before`` ``ratio`` times as long in what is measured in pixels."""

    def constrain_(self) -> None:
        """Bring the parameters back to where they may be; called after each step."""
