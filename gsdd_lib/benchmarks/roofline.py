"""The roofline of the splatting operator on this CPU: the time that no kernel can beat.

Only what every kernel has to do is counted. A sample inside a Gaussian's support (an alive sample)
costs the fewest vector instructions known to us: to render it, two products of the recurrence and
one sum; to differentiate it, the two products, the sum of the weights, and two instructions for
each of its moments in t. Every pixel of a Gaussian adds its colors. No exponential, support test or
set-up of a Gaussian is counted, and no idle lane. An instruction counts as one fused multiply-add
at the rate that a matrix product reaches here, all lanes full, the nearest to the peak that can be
measured without assembly; the parameters, images and gradients pass once through memory at the
rate of a copy. The roofline is the larger of the two times.
"""

import functools
import time

import torch
from torch import Tensor

from gsdd_lib.splatting.reference import SUPPORT, covariance_matrix, pixel_center, sample_grid

SAMPLE_FORWARD = 3  # G R, R Q, sum of G
SAMPLE_BACKWARD = 7  # G R, R Q, sum of G, G t, sum of G t, G t t, sum of G t t
SAMPLES_PER_PIXEL = 4


def alive_samples(params: Tensor, height: int, width: int) -> float:
    """Mean number of alive samples of an image, over the images of ``params [B, M, 6 + C]``.

    Counted one by one with the oracle's formula, an image at a time.
    """
    grid = sample_grid(height, width, 2).to(params)
    counts = [_alive(image, grid, height, width) for image in params.detach()]
    return sum(counts) / max(1, len(counts))


def _alive(image: Tensor, grid: Tensor, height: int, width: int) -> int:
    center = pixel_center(image[:, :2], height, width)
    conic = torch.linalg.inv(covariance_matrix(image[:, 2:5]))
    limit = torch.log(image[:, -1].abs().clamp(min=1) / SUPPORT)
    total = 0
    for point in range(len(image)):
        offset = grid - center[point]
        sigma = 0.5 * ((offset @ conic[point]) * offset).sum(-1)
        total += int((sigma <= limit[point]).sum())
    return total


def instructions(alive: float, channels: int, which: str) -> float:
    """Fewest lane instructions for ``alive`` samples; ``which`` as the benchmark names passes."""
    pixels = alive / SAMPLES_PER_PIXEL
    forward = alive * SAMPLE_FORWARD + pixels * channels
    backward = alive * SAMPLE_BACKWARD + pixels * (2 * channels + 3)  # dL/dw, colors, moments
    return forward if which == "forward" else forward + backward


def traffic_bytes(images: int, points: int, numbers: int, image_size: int, which: str) -> int:
    """Bytes that pass through memory at least once: float32 parameters, images and gradients."""
    once = 4 * images * (points * numbers + image_size)
    return once if which == "forward" else 2 * once + 4 * images * points * numbers


def roofline_ms(
    alive: float, images: int, points: int, channels: int, size: tuple[int, int], which: str
) -> float:
    """The roofline in milliseconds for ``images`` images of ``alive`` alive samples each."""
    arithmetic = images * instructions(alive, channels, which) / fma_per_second()
    traffic = traffic_bytes(images, points, 6 + channels, channels * size[0] * size[1], which)
    return 1e3 * max(arithmetic, traffic / bytes_per_second())


@functools.cache
def fma_per_second(side: int = 1024) -> float:
    """Fused multiply-adds a second in float32 with torch's threads: the best of eight products."""
    a = torch.ones(side, side)
    return side**3 / min(_seconds(lambda: a @ a) for _ in range(8))


@functools.cache
def bytes_per_second(mib: int = 64) -> float:
    """Bytes read or written a second with torch's threads: the best of eight copies."""
    source = torch.ones(mib * 2**18)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(_seconds(lambda: target.copy_(source)) for _ in range(8))


def _seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
