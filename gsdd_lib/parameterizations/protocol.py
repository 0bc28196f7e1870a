"""What a parameterization of one's own must keep, checked before it is distilled."""

import copy

import torch
from torch.func import functional_call

from gsdd_lib.core.errors import GsddError
from gsdd_lib.parameterizations.base import Parameterization


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
    mine = copy.deepcopy(images)
    pixels, state, (height, width) = (
        mine.pixels(),
        copy.deepcopy(mine.state_dict()),
        mine.resolution,
    )
    for size, found in (((height, width), pixels), ((9, 7), mine.pixels(resolution=(9, 7)))):
        due = [len(mine), *pixels.shape[1:2], *size]
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
