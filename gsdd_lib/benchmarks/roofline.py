"""The roofline of the splatting operator on this CPU: the time that no kernel can beat. Counted are
the fewest vector instructions of each sample inside a Gaussian's support (alive), and the colors of
its pixels, each as a fused multiply-add of a matrix product; parameters, images and gradients pass
once through memory as in a copy. Not counted: exponentials, support tests, set-up."""

import functools
import timeit
from collections.abc import Callable

import torch
from torch import Tensor

from gsdd_lib.benchmarks.timing import PASSES
from gsdd_lib.splatting.reference import SUPPORT, falloffs

SAMPLE_FORWARD = 3  # G R, R Q, sum of G
SAMPLE_BACKWARD = 7  # G R, R Q, sum of G, G t, sum of G t, G t t, sum of G t t
SAMPLES_PER_PIXEL = 4


def alive_samples(params: Tensor, height: int, width: int) -> float:
    """Mean number of alive samples of an image, over the images of ``params [B, M, 6 + C]``."""
    limits = SUPPORT / params.detach()[..., -1:].abs().clamp(min=1)
    each = zip(falloffs(params.detach(), height, width), limits.unbind(1), strict=True)
    return sum(int((falloff >= limit).sum()) for falloff, limit in each) / max(1, len(params))


def instructions(alive: float, channels: int, which: str) -> float:
    """Fewest lane instructions for ``alive`` samples in one of the ``PASSES``."""
    pixels = alive / SAMPLES_PER_PIXEL
    forward = alive * SAMPLE_FORWARD + pixels * channels
    backward = alive * SAMPLE_BACKWARD + pixels * (2 * channels + 3)  # dL/dw, colors, moments
    return forward if which == PASSES[0] else forward + backward


def traffic_bytes(images: int, points: int, numbers: int, image_size: int, which: str) -> int:
    """Bytes that pass through memory at least once: float32 parameters, images and gradients."""
    once = 4 * images * (points * numbers + image_size)
    return once if which == PASSES[0] else 2 * once + 4 * images * points * numbers


def roofline_ms(alive: float, images: int, points: int, channels: int, size, which) -> float:
    """The roofline in milliseconds for ``images`` images of ``alive`` alive samples each."""
    arithmetic = images * instructions(alive, channels, which) / fma_per_second()
    traffic = traffic_bytes(images, points, 6 + channels, channels * size[0] * size[1], which)
    return 1e3 * max(arithmetic, traffic / bytes_per_second())


@functools.cache
def fma_per_second(side: int = 1024) -> float:
    """Fused multiply-adds a second in float32 with torch's threads: the best of eight products."""
    a = torch.ones(side, side)
    return side**3 / _fastest(lambda: a @ a)


@functools.cache
def bytes_per_second(mib: int = 64) -> float:
    """Bytes read or written a second with torch's threads: the best of eight copies."""
    source = torch.ones(mib * 2**18)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _fastest(lambda: target.copy_(source))


def _fastest(work: Callable[[], Tensor]) -> float:
    return min(timeit.repeat(work, number=1, repeat=8))
