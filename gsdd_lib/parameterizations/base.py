"""What distillation asks of a parameterization: labeled images that its parameters render to."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gsdd_lib.core.errors import GsddError
from gsdd_lib.data.normalization import Normalization

Size = tuple[int, int] | None  # (height, width) in pixels; None: the native one
Storage = Literal["uint2", "uint4", "uint8", "bf16", "fp32"]
BITS: dict[Storage, int] = {"uint2": 2, "uint4": 4, "uint8": 8, "bf16": 16, "fp32": 32}


class StraightThrough(torch.autograd.Function):
    """Forward: ``stored``, what is left of ``values`` in a file. Backward: the identity."""

    forward = staticmethod(lambda ctx, values, stored: stored.view_as(stored))
    backward = staticmethod(lambda ctx, gradient: (gradient, None))


def as_stored(values: Tensor, storage: Storage) -> Tensor:
    """Values as a file holds them, integers in [0, 1]; the gradient goes straight through."""
    if storage == "fp32":
        return values
    exact, top = values.detach(), 2 ** BITS[storage] - 1
    if storage == "bf16":
        return StraightThrough.apply(values, exact.to(torch.bfloat16).to(values.dtype))
    return StraightThrough.apply(values, (exact * top).round().clamp(0, top) / top)


class Parameterization(nn.Module):
    """``N`` labeled images whose parameters are what distillation changes.

    One of your own implements :meth:`pixels`, :attr:`bits` and what it needs of the rest. Called as
    a function it renders, for ``torch.func.functional_call(images, snapshot, ())``.

    Args:
        labels: int64 [N].
        resolution: (height, width) in pixels at which images are rendered by default.
        normalization: from pixel values to what networks see.
    """

    labels: Tensor

    def __init__(self, labels: Tensor, resolution: Any, normalization: Normalization) -> None:
        super().__init__()
        self.register_buffer("labels", labels.to(torch.int64))
        self.resolution, self.normalization = tuple(resolution), normalization

    @classmethod
    def init_from(cls, images: Tensor, labels: Tensor, **more: Any) -> Self:
        """Parameters that render to pixel values [N, C, H, W] in [0, 1], or to something near."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.labels)

    def forward(self, index: Tensor | None = None, resolution: Size = None) -> Tensor:
        return self.render(index, resolution)

    def render(self, index: Tensor | None = None, resolution: Size = None) -> Tensor:
        """Normalized images [n, C, height, width], of an ``index`` int64 [n]; differentiable."""
        return self.normalization.apply(self.pixels(index, resolution))

    def pixels(self, index: Tensor | None = None, resolution: Size = None) -> Tensor:
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
        """Make the last step, from ``before``, ``ratio`` times as long in what pixels measure."""

    def constrain_(self) -> None:
        """Bring the parameters back into their range, if they have one; called after each step."""

    def _check(self, values: Tensor, form: str, storage: str = "fp32", known: Any = BITS) -> None:
        if values.dim() != form.count(",") + 1 or len(values) != len(self):
            shapes = f"values {list(values.shape)} and labels {list(self.labels.shape)}"
            raise ValueError(f"{shapes} do not fit: expected {form} and [N].")
        if storage not in known:
            raise ValueError(f"unknown storage '{storage}'; choose one of {', '.join(known)}")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.normalization = self.normalization.to(self.labels.device)
        return self


class ProtocolError(GsddError, TypeError):
    """A parameterization breaks a promise that distillation relies on; one sentence says which."""


@torch.no_grad()
def check_parameterization(images: Parameterization) -> None:
    """Check sizes, gradients, bits, snapshots and copies; ``images`` stay as they are.

    Raises:
        ProtocolError: the first promise that is broken.
    """

    def require(fits: object, fault: str) -> None:
        if not fits:
            raise ProtocolError(f"{type(images).__name__}: {fault}")

    def alike(one: torch.Tensor, other: torch.Tensor) -> bool:
        return one.shape == other.shape and torch.allclose(one, other, atol=1e-3)

    require(isinstance(images, Parameterization), "it must be a subclass of Parameterization")
    require([*images.parameters()], "it has no nn.Parameter, so nothing can be distilled")
    mine, state = copy.deepcopy(images), copy.deepcopy(images.state_dict())
    pixels = mine.pixels()
    for size in (mine.resolution, (9, 7)):
        found, due = mine.pixels(resolution=size), [len(mine), *pixels.shape[1:2], *size]
        require(list(found.shape) == due, f"at {size} pixels() is {list(found.shape)}, not {due}")
    require(pixels.isfinite().all(), "pixels() has non-finite values")
    index = torch.tensor([len(mine) - 1, 0, len(mine) - 1], device=mine.labels.device)
    require(alike(mine.pixels(index), pixels[index]), "pixels(index) differs from pixels()[index]")
    then = mine.render()
    require(alike(then, mine.normalization.apply(pixels)), "render() is not normalized pixels()")
    require(isinstance(mine.bits, int) and mine.bits > 0, f"bits is {mine.bits!r}, not an int > 0")
    with torch.enable_grad():
        weights = torch.linspace(0.5, 1.5, then.numel()).to(then).view_as(then)
        loss = (mine.render() * weights).sum()
        loss.backward() if loss.requires_grad else None
    for name, value in mine.named_parameters():
        reached = value.grad is not None and value.grad.isfinite().all() and value.grad.any()
        require(reached, f"no finite gradient of render() reaches '{name}'")
    before = {name: value.clone() for name, value in mine.named_parameters()}
    for value in mine.parameters():
        value.mul_(0.5).add_(0.01)
    require(not alike(mine.render(), then), "render() does not follow its parameters")
    require(alike(functional_call(mine, before, ()), then), "a snapshot renders something else")
    mine.constrain_()
    once = [value.clone() for value in mine.parameters()]
    mine.constrain_()
    fixed = all(map(torch.equal, once, mine.parameters()))
    require(fixed, "constrain_() changes what it has constrained")
    mine.load_state_dict(state)
    require(alike(mine.render(), then), "its state_dict() does not bring it back")
