"""Decoding a distilled set: Gaussians, neural fields and pixels side by side (paper, fig. 1b, 5).
Each makes the same images [B, 3, S, S] from ``storage`` bytes each, as near as its units allow. The
Gaussians are fitted ones, for random ones would distort what culling saves."""

import itertools
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn.functional import interpolate

from gsdd_lib.benchmarks.operator import Workload, fitted_gaussians
from gsdd_lib.benchmarks.roofline import alive_samples, roofline_ms
from gsdd_lib.benchmarks.timing import PASSES, Job, job_of, measure_jobs
from gsdd_lib.core.rng import generator
from gsdd_lib.data.normalization import ChannelNormalization
from gsdd_lib.parameterizations.neural_field import NeuralFields
from gsdd_lib.splatting.splat import splat

CHANNELS = 3
GAUSSIAN_BYTES = 2 * (6 + CHANNELS)  # bf16
FIELD_LAYERS = 3
METHODS = ("Gaussians", "neural field", "pixels")


@dataclass(frozen=True)
class Decoding:
    """``batch`` images of ``size`` x ``size`` from ``storage`` bytes each."""

    size: int
    batch: int
    storage: int

    # What the bytes buy: Gaussians, the side of an fp32 image in RGB, which is enlarged.
    points = property(lambda self: max(1, self.storage // GAUSSIAN_BYTES))
    pixel_side = property(lambda self: max(1, min(self.size, int((self.storage / 12) ** 0.5))))

    @property
    def field_width(self) -> int:
        """Units per layer of the widest field of three layers in fp32 within the bytes."""
        wider = (width for width in itertools.count(2) if 4 * field_numbers(width) > self.storage)
        return next(wider) - 1


def field_numbers(width: int) -> int:
    return 3 * width + (FIELD_LAYERS - 1) * width * (width + 1) + (width + 1) * CHANNELS


def decode_job(method: str, which: str, case: Decoding, gaussians: Any, *, few=False) -> Job:
    """Makes the batch once, or one image of it; differentiates it where ``which`` says so."""
    batch, size = 1 if few else case.batch, (case.size, case.size)
    random = generator(0, "efficiency", method)
    if method == "Gaussians":
        rows = torch.from_numpy(gaussians).repeat(-(-batch // len(gaussians)), 1, 1)
        leaves = [rows[:batch].contiguous().requires_grad_()]
        render = lambda: splat(*leaves, *size)  # noqa: E731
    elif method == "neural field":
        labels = torch.zeros(batch, dtype=torch.int64)
        identity = ChannelNormalization((0.0,) * CHANNELS, (1.0,) * CHANNELS)
        more = {"width": case.field_width, "normalization": identity, "generator": random}
        fields = NeuralFields(labels, CHANNELS, size, **more)
        leaves, render = list(fields.parameters()), fields.pixels
    else:
        side = case.pixel_side
        small = torch.rand(batch, CHANNELS, side, side, generator=random).requires_grad_()
        leaves, render = [small], lambda: interpolate(small, size, mode="nearest")
        if side == case.size:  # the pixels are the image: what is left is the copy into the batch
            render = small.clone
    v_images = None if which == PASSES[0] else torch.ones(batch, CHANNELS, *size)
    return job_of(render, leaves, v_images)


def measure(
    cases: list[Decoding], *, repeats: int, fit_steps: int, memory: bool = True
) -> list[dict[str, Any]]:
    """Time and memory of every case, method and pass: rows of ``size``, ``batch``, ``storage``,
    ``method``, ``pass``, the median ``ms`` with the quartiles ``ms_low`` and ``ms_high``, the peak
    ``mib`` beyond input and output (None where unknown), and for Gaussians ``roofline_ms``."""
    rows, jobs = [], []
    for case in cases:
        work = Workload(case.batch, case.points, case.size, case.size, CHANNELS)
        gaussians = fitted_gaussians(work, steps=fit_steps).numpy()
        alive = alive_samples(torch.from_numpy(gaussians), case.size, case.size)
        for method, which in itertools.product(METHODS, PASSES):
            jobs.append((method, which, case, gaussians))
            rows.append(asdict(case) | {"method": method, "pass": which})
            if method == "Gaussians":
                sizes = (case.batch, case.points, CHANNELS, (case.size, case.size))
                rows[-1]["roofline_ms"] = roofline_ms(alive, *sizes, which)
    found = measure_jobs(decode_job, jobs, repeats, "cpu", memory=memory)
    return [row | measured for row, measured in zip(rows, found, strict=True)]
