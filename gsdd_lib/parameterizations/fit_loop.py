"""The loop that fits packed Gaussians to images; it needs torch and the operator, nothing else.

Adam moves every number by about its learning rate per step. Positions and Cholesky factors take
steps in proportion to the spacing of the Gaussians, so that one ``lr`` suits any resolution and
number of Gaussians. All numbers are one tensor, each measured in its own rate: one fused kernel
steps them all. Within the loop nothing waits for the device but a row of the curve and a relocation
now and then.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gsdd_lib.core.rng import generator
from gsdd_lib.core.schedule import cosine
from gsdd_lib.parameterizations.initialization import MAX_POSITION, relocate, spacing
from gsdd_lib.splatting.splat import GEOMETRY

POSITION_RATE = 3.0  # pixels that a position moves per unit of spacing and learning rate
CHOLESKY_RATE = 1.0  # the same for a Cholesky factor
BETAS = (0.9, 0.98)  # a short memory of the squares: a fit lasts a few hundred steps
HELD = 0.5  # the share of the steps after which the learning rate falls
LAST_RATE = 0.02  # of the cosine schedule, over the first
MOVES, MOVE_EVERY, STEPS_TO_MOVE = 8, 0.05, 40  # relocations, the fits' share between two, minimum
CURVE_POINTS = 25


@dataclass(frozen=True)
class Plan:
    """How long and how fast to fit; ``relocate`` is the share of the Gaussians moved at a time."""

    steps: int
    lr: float = 0.045
    schedule: str = "cosine"  # or constant
    relocate: float = 0.1
    betas: tuple[float, float] = BETAS

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        if self.schedule == "constant":
            return self.lr
        fallen = max(0.0, (step / self.steps - HELD) / (1 - HELD))
        return self.lr * (LAST_RATE + (1 - LAST_RATE) * cosine(fallen, 1))

    def moves(self) -> set[int]:
        """The steps before which Gaussians are relocated: in the first two fifths of the fit."""
        if self.relocate == 0 or self.steps < STEPS_TO_MOVE:
            return set()
        return {round(MOVE_EVERY * self.steps * (turn + 1)) for turn in range(MOVES)}


def column_rates(points: int, height: int, width: int, numbers: int) -> Tensor:
    """Learning rates [numbers] of the columns of a packed row, over that of colors and opacity."""
    rates = torch.ones(numbers)
    apart = spacing(points, height, width)
    rates[0] = POSITION_RATE * apart * 2 / width
    rates[1] = POSITION_RATE * apart * 2 / height
    rates[2:GEOMETRY] = CHOLESKY_RATE * apart
    return rates


def fit_packed(
    packed: Tensor,
    targets: Tensor,
    render: Callable[[Tensor], Tensor],
    plan: Plan,
    *,
    pixels: Callable[[Tensor], Tensor] | None = None,
    rates: Tensor | None = None,
) -> Iterator[dict[str, float]]:
    """Fit ``packed`` [N, M, 5 + C + opacity] to ``targets`` [N, C, H, W] by the squared error.

    A generator: every row of the curve, ``step`` and ``psnr_db`` (the mean over the images, of
    values in [0, 1]), comes as soon as it is known, about 25 of them; ``packed`` is up to date at
    the last one. Equal arguments give equal numbers, bit for bit.

    Args:
        render: packed numbers to images in the space of ``targets``, differentiable.
        pixels: an error in that space to one of pixel values in [0, 1]; left out, they are equal.
        rates: of the columns, [numbers]; by default :func:`column_rates`.
    """
    points, numbers = packed.shape[1:]
    if rates is None:
        rates = column_rates(points, *targets.shape[2:], numbers)
    rates = rates.to(packed.device)
    scaled = packed / rates
    bound = MAX_POSITION / rates[:2]
    adam = torch.optim.Adam([scaled.requires_grad_()], betas=plan.betas, fused=True)
    draw = generator(0, "fit", "relocate")
    every, moves = max(1, plan.steps // CURVE_POINTS), plan.moves()
    for step in range(plan.steps):
        rows = (scaled.detach() * rates).requires_grad_()
        images = render(rows)
        error = images.detach() - targets
        if step % every == 0:
            yield {"step": step, "psnr_db": _psnr_db(pixels(error) if pixels else error)}
        # Of half the sum of squares, to the rows: Adam sees no difference in a gradient's scale.
        (scaled.grad,) = torch.autograd.grad(images, rows, error)
        adam.param_groups[0]["lr"] = plan.rate(step)
        adam.step()
        with torch.no_grad():
            scaled[..., :2].clamp_(-bound, bound)
            if step + 1 in moves:
                _move(scaled, rates, -error, round(plan.relocate * points), adam, draw)
    if plan.steps:
        packed.copy_(scaled.detach() * rates)
        packed[..., :2].clamp_(-MAX_POSITION, MAX_POSITION)
    with torch.no_grad():
        error = render(packed) - targets
        yield {"step": plan.steps, "psnr_db": _psnr_db(pixels(error) if pixels else error)}


def _move(
    scaled: Tensor,
    rates: Tensor,
    missing: Tensor,
    count: int,
    adam: torch.optim.Adam,
    draw: torch.Generator,
) -> None:
    """Relocate ``count`` Gaussians of each image, at least one, and forget where they moved."""
    least, rows = relocate(scaled * rates, missing, max(1, count), draw)
    where = least.expand_as(rows)
    scaled.scatter_(1, where, rows / rates)
    for moment in ("exp_avg", "exp_avg_sq"):
        adam.state[scaled][moment].scatter_(1, where, torch.zeros_like(rows))


def _psnr_db(error: Tensor) -> float:
    """Mean over the images of their peak signal-to-noise ratio in dB, for values in [0, 1]."""
    squares = error.square().flatten(1).mean(1).clamp(min=1e-12)
    return float(-10 * squares.log10().mean())
