"""Odd scenes for the splatting operator, and what every backend is compared by.

A case is made from a generator, in double, and its numbers are rounded to float32, so that every
backend and every precision renders the very same Gaussians. The tolerances stand here once.

Two places of the function are discontinuous, the rim of the support and (in the gradient) the
clamp at weight 1. A sample that happens to lie there within rounding may fall on either side, so
pixels with such a sample are left out of a comparison: :func:`decided_pixels` says which stay.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gsdd_lib.splatting.agreement import decided_pixels
from gsdd_lib.splatting.reference import splat_reference
from gsdd_lib.splatting.splat import splat

SWITCHES = ("opacity", "saturate", "prefilter", "supersample")
SETTINGS = list(itertools.product([True, False], repeat=len(SWITCHES)))
# Image error relative to max(1, largest sum of |weight * color|) of any pixel, and gradient error
# relative to the largest entry in the same column of the parameters.
IMAGE_TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}
GRADIENT_TOLERANCE = {torch.float32: 3e-4, torch.float64: 1e-9}


class Case(NamedTuple):
    """Parameters ``[B, M, 5 + C + opacity]`` in double, the image's size, keyword arguments."""

    params: Tensor
    height: int
    width: int
    switches: dict[str, bool]


class Expected(NamedTuple):
    """What the oracle says of a case."""

    params: Tensor  # [B, M, R], double with the values of float32
    image: Tensor  # [B, C, H, W]
    cotangent: Tensor  # dL/dimage, zero at undecided pixels
    gradient: Tensor  # dL/dparams
    decided: Tensor  # [B, 1, H, W], bool
    scale: float  # of the image's tolerance


def scene(
    generator: torch.Generator,
    images: int,
    points: int,
    height: int,
    width: int,
    *,
    channels: int = 3,
    spread: float = 1.0,
    size: float = 1.0,
    opacity: bool = True,
) -> Tensor:
    """Gaussians as a fit leaves them: ``size`` times as wide as their spacing, any tilt."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    spacing = size * math.sqrt(height * width / max(1, points))
    means = spread * (2 * uniform(images, points, 2) - 1)
    diagonal = spacing * (0.3 + 0.6 * uniform(images, points, 2))
    tilt = spacing * (uniform(images, points, 1) - 0.5)
    cholesky = torch.cat([diagonal[..., :1], tilt, diagonal[..., 1:]], dim=-1)
    colors = 2 * uniform(images, points, channels) - 1
    alpha = 0.2 + 1.2 * uniform(images, points, int(opacity))
    return torch.cat([means, cholesky, colors, alpha], dim=-1)


def expected(case: Case) -> Expected:
    """The oracle's image and gradient, for a cotangent that is the same in every run."""
    params = case.params.float().double().requires_grad_()
    image = splat_reference(params, case.height, case.width, **case.switches)
    decided = decided_pixels(params.detach(), case.height, case.width, **case.switches)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(image.shape, generator=generator, dtype=torch.float64).float().double()
    cotangent = noise * decided
    (gradient,) = torch.autograd.grad(image, params, cotangent)
    bright = params.detach().clone()
    channels = image.shape[1]
    bright[..., 5 : 5 + channels].abs_()
    if case.switches.get("opacity", True):
        bright[..., -1].abs_()
    sums = splat_reference(bright, case.height, case.width, **case.switches)
    scale = max(1.0, float(sums.max())) if sums.numel() else 1.0
    return Expected(params.detach(), image.detach(), cotangent, gradient, decided, scale)


def check_image(image: Tensor, want: Expected) -> None:
    """Assert that ``image`` is the oracle's, within the tolerance of its dtype."""
    error = (image.double() - want.image).abs() * want.decided
    worst = float(error.max()) / want.scale if error.numel() else 0.0
    assert worst <= IMAGE_TOLERANCE[image.dtype], f"image is off by {worst:.2e}"


def check_gradient(gradient: Tensor, want: Expected) -> None:
    """Assert that every column of ``gradient`` is the oracle's, within the tolerance."""
    error = (gradient.double() - want.gradient).abs().flatten(0, 1)
    largest = want.gradient.abs().flatten(0, 1)
    for column in range(error.shape[1] if error.shape[0] else 0):
        worst = float(error[:, column].max()) / max(float(largest[:, column].max()), 1e-30)
        assert worst <= GRADIENT_TOLERANCE[gradient.dtype], (
            f"the gradient of column {column} is off by {worst:.2e} of its largest entry"
        )


# ------------------------------------------------------------------------------ the table of cases


def _sized(images: int, points: int, height: int, width: int, channels: int = 3) -> Callable:
    def make(generator: torch.Generator) -> Case:
        params = scene(generator, images, points, height, width, channels=channels)
        return Case(params, height, width, {})

    return make


def _switched(**switches: bool) -> Callable:
    def make(generator: torch.Generator) -> Case:
        opacity = switches["opacity"]
        params = scene(generator, 2, 9, 11, 14, opacity=opacity, size=0.8)
        if opacity:
            params[:, :3, -1] = torch.tensor([2.5, -0.7, 0.0], dtype=torch.float64)
        return Case(params, 11, 14, switches)

    return make


def _with(columns: slice, *rows: list[float], spread: float = 1.0, **switches: bool) -> Callable:
    """A scene in which the first Gaussians have the given numbers in ``columns``."""

    def make(generator: torch.Generator) -> Case:
        params = scene(generator, 2, len(rows) + 4, 19, 26, spread=spread)
        params[:, : len(rows), columns] = torch.tensor(rows, dtype=torch.float64)
        return Case(params, 19, 26, switches)

    return make


def _without_prefilter(make: Callable) -> Callable:
    return lambda generator: make(generator)._replace(switches={"prefilter": False})


_POSITION, _CHOLESKY, _OPACITY = slice(0, 2), slice(2, 5), slice(-1, None)
_OUTSIDE = _with(
    _POSITION, [-1.2, 0.1], [1.15, -1.15], [0.0, 1.3], [3.0, 3.0], [-40.0, 0.0], [-1.0, 1.0]
)
_NEEDLES = _with(
    _CHOLESKY,
    [9.0, 9.0, 0.0],
    [12.0, -7.0, 0.05],
    [0.0, 0.0, 15.0],
    [20.0, 0.0, 0.0],
    [0.1, 8.0, 0.0],
)
_SUB_PIXEL = _with(
    _CHOLESKY, [0.02, 0.0, 0.02], [0.1, 0.1, 0.1], [0.2, -0.2, 0.01], [1e-4, 0.0, 1e-4]
)
_NEGATIVE_DIAGONAL = _with(_CHOLESKY, [-2.0, 1.0, 1.5], [2.0, 1.0, -1.5], [-2.0, -1.0, -1.5])
_MIXED_OPACITY = _with(_OPACITY, [-1.0], [-3.0], [0.0], [1e-4], [3.0], [40.0], [1.0])

CASES: dict[str, Callable[[torch.Generator], Case]] = {
    "fills no tile": _sized(2, 20, 13, 37),
    "one pixel": _sized(3, 4, 1, 1),
    "one row": _sized(2, 6, 1, 41),
    "one column": _sized(2, 6, 41, 1),
    "wide": _sized(2, 25, 5, 300),
    "tall": _sized(2, 25, 300, 5),
    "no images": _sized(0, 5, 9, 9),
    "no Gaussians": _sized(2, 0, 9, 12),
    "one Gaussian": _sized(3, 1, 12, 9),
    "700 Gaussians": _sized(2, 700, 14, 11),
    "1 channel": _sized(2, 12, 15, 18, channels=1),
    "2 channels": _sized(2, 12, 15, 18, channels=2),
    "4 channels": _sized(2, 12, 15, 18, channels=4),
    "center outside": _OUTSIDE,
    "far larger than the image": _with(_CHOLESKY, [60.0, 20.0, 90.0], [500.0, 0.0, 3.0]),
    "needles": _NEEDLES,
    "needles, no pre-filter": _without_prefilter(_NEEDLES),
    "sub-pixel": _SUB_PIXEL,
    "sub-pixel, no pre-filter": _without_prefilter(_SUB_PIXEL),
    "zero Cholesky": _with(_CHOLESKY, [0.0, 0.0, 0.0]),
    "zero Cholesky, no pre-filter": _with(_CHOLESKY, [0.0, 0.0, 0.0], prefilter=False),
    "negative diagonal": _NEGATIVE_DIAGONAL,
    "opacities": _MIXED_OPACITY,
    "opacities, not clamped": lambda generator: _MIXED_OPACITY(generator)._replace(
        switches={"saturate": False}
    ),
    "several bands": _sized(3, 8, 150, 150, channels=4),
    "one image, several bands": _sized(1, 10, 200, 220),
} | {
    "switches " + "".join("+" if on else "-" for on in setting): _switched(
        **dict(zip(SWITCHES, setting, strict=True))
    )
    for setting in SETTINGS
}


@functools.cache
def wanted(name: str) -> tuple[Case, Expected]:
    """A case of the table and what the oracle says of it."""
    case = CASES[name](seeded())
    return case, expected(case)


# ------------------------------------------------------------- tests that every device has to pass


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def render(params: Tensor, case: Case, cotangent: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The operator's image and gradient on the device of ``params``; a random cotangent if none."""
    params = params.detach().requires_grad_()
    image = splat(params, case.height, case.width, **case.switches)
    if cotangent is None:
        cotangent = torch.randn(image.shape, generator=seeded(1), dtype=image.dtype)
    (gradient,) = torch.autograd.grad(image, params, cotangent.to(params.device))
    return image.detach(), gradient


def settled(images: int, opacities: tuple[float, ...] = (), **switches: bool) -> Tensor:
    """Gaussians without a sample so near a discontinuity that a finite difference crosses it."""
    for seed in itertools.count():
        opacity = switches.get("opacity", True)
        params = scene(seeded(seed), images, 3, 4, 5, channels=2, opacity=opacity)
        if opacity and opacities:
            params[:, : len(opacities), -1] = torch.tensor(opacities, dtype=params.dtype)
        if decided_pixels(params, 4, 5, **switches, margin=1e-4).all():
            return params


def check_finite_differences(setting: tuple[bool, ...], device: str) -> None:
    switches = dict(zip(SWITCHES, setting, strict=True))
    params = settled(2, (2.5, -0.6), **switches).to(device).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: splat(rows, 4, 5, **switches), params)


VIEWS = {
    "transposed": lambda rows: rows.transpose(1, 2).contiguous().transpose(1, 2),
    "columns of a wider tensor": lambda rows: torch.cat([rows, rows], dim=2)[..., 9:],
    "expanded": lambda rows: rows[:1].expand(3, -1, -1),
    "every second": lambda rows: rows[:, ::2],
    "not the first": lambda rows: rows[1:],
}


def check_view(view: str, device: str) -> None:
    """Parameters and cotangent of any strides give the bits of contiguous ones."""
    case = Case(scene(seeded(), 3, 8, 12, 10), 12, 10, {})
    rows = VIEWS[view](case.params.to(device))
    v_images = torch.randn(len(rows), 12, 10, 3, dtype=torch.float64).permute(0, 3, 1, 2)
    plain = render(rows.clone(memory_format=torch.contiguous_format), case, v_images.contiguous())
    strided = render(rows, case, v_images)
    assert torch.equal(strided[0], plain[0]) and torch.equal(strided[1], plain[1])


def check_repeated_images(device: str) -> None:
    """Gradients of an image that an index shows more than once add up."""
    params = scene(seeded(), 4, 9, 20, 13).to(device).requires_grad_()
    index = torch.tensor([1, 3, 1, 1], device=device)
    v_images = torch.randn(4, 3, 20, 13, generator=seeded(1), dtype=torch.float64).to(device)
    (gradient,) = torch.autograd.grad(splat(params, 20, 13, index=index), params, v_images)
    (gathered,) = torch.autograd.grad(splat(params[index], 20, 13), params, v_images)
    assert torch.allclose(gradient, gathered, rtol=1e-12, atol=1e-12)
    assert (gradient[[0, 2]] == 0).all()


FIT_TOLERANCE = 0.01  # dB between two backends after 500 steps


def fitted_psnr(
    render: Callable, *, points: int = 24, side: int = 16, images: int = 3, steps: int = 500
) -> float:
    """PSNR in dB of smooth images after ``steps`` steps of Adam, whose rate falls to zero.

    Args:
        render: ``(params [B, M, 9] float32, height, width) -> images``, differentiable.
    """
    source = scene(seeded(5), images, points // 2, side, side, size=1.2).float()
    target = splat_reference(source, side, side)
    params = scene(seeded(6), images, points, side, side, size=0.9).float().requires_grad_()
    optimizer = torch.optim.Adam([params])
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / steps)
        loss = (render(params, side, side) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(-10 * loss.detach().log10())
