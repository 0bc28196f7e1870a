"""What a fit costs, and what a call costs: the two small tables of the benchmark.

The fitting case is the paper's (table 20): images of 128 x 128, 170 Gaussians, 1,000 steps. On a
CPU a tenth of its 1,000 images are fitted, all of the steps. The images are cut from two
photographs that scikit-learn ships, and generated where it is not installed.
"""

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsdd_lib.benchmarks.timing import Job, markdown, median_ms, peaks_alone
from gsdd_lib.core.rng import generator
from gsdd_lib.splatting.splat import splat

PAPER_IMAGES = 1000
FIT_NOTE = """\
One fit of {images}, all attributes, bf16 as stored. "s for 1,000 images" is scaled from the
images fitted. MiB: peak memory beyond the targets and the Gaussians. ms per step: the fit's mean,
beside the median of the bare operator, forward + backward, on the same Gaussians.
The paper's numbers for the same size stand in its table 20 and in notebook 02."""


@dataclass(frozen=True)
class Fitting:
    """A fit of ``images`` images of ``size`` x ``size`` by ``points`` Gaussians each."""

    images: int
    points: int
    size: int
    steps: int


FITTING = {"cpu": Fitting(100, 170, 128, 1000), "cuda": Fitting(1000, 170, 128, 1000)}
QUICK_FITTING = Fitting(3, 5, 12, 40)


def photographs(count: int, size: int) -> tuple[Tensor, str]:
    """``[count, 3, size, size]`` in [0, 1], cut at random from two photographs, and a description.

    Sources: the sample images of scikit-learn. Without it, smooth generated images.
    """
    random = generator(0, "benchmark", "photographs")
    try:
        from sklearn.datasets import load_sample_images

        sources = [torch.from_numpy(np.array(one)) for one in load_sample_images().images]
    except ImportError:
        waves = torch.rand(count, 3, 4, 4, generator=random)
        smooth = torch.nn.functional.interpolate(waves, (size, size), mode="bilinear")
        return smooth, "smooth generated images"
    crops = []
    for number in range(count):
        source = sources[number % len(sources)]
        top, left = (
            int(torch.randint(s - size + 1, (), generator=random)) for s in source.shape[:2]
        )
        crops.append(source[top : top + size, left : left + size].permute(2, 0, 1) / 255)
    return torch.stack(crops), "crops of two photographs"


def _start(case: Fitting, device: str) -> tuple[Any, Tensor]:
    """Gaussians before the fit, and what they are fitted to."""
    from gsdd_lib.data.normalization import ChannelNormalization  # needs more than torch
    from gsdd_lib.parameterizations.gaussian import GaussianImages

    targets = photographs(case.images, case.size)[0].to(device)
    labels = torch.zeros(case.images, dtype=torch.int64)
    identity = ChannelNormalization((0.0,) * 3, (1.0,) * 3)
    more = {"points": case.points, "normalization": identity, "seed": 0}
    return GaussianImages.init_from(targets, labels, **more), targets


def _fit(gaussians: Any, targets: Tensor, steps: int) -> list[dict[str, float]]:
    from gsdd_lib.config import FitConfig
    from gsdd_lib.parameterizations.fit import fit_rows

    return list(fit_rows(gaussians, targets, FitConfig(fit_steps=steps)))


def _fit_job(case: Fitting, device: str, *, few: bool = False) -> Job:
    """Three steps of a fit, of one image if ``few``."""
    gaussians, targets = _start(replace(case, images=1) if few else case, device)

    def job() -> list[Tensor]:
        _fit(gaussians, targets, 3)
        return []

    return job


def measure_fitting(case: Fitting, *, repeats: int, device: str = "cpu") -> dict:
    """Seconds, PSNR, memory and milliseconds per step of a fit, and what was fitted."""
    gaussians, targets = _start(case, device)
    (mib,) = peaks_alone(_fit_job, [(case, device)], device)
    start = time.perf_counter()
    curve = _fit(gaussians, targets, case.steps)  # its last row waits for the device
    seconds = time.perf_counter() - start
    size = (case.size, case.size)
    rows, v_images = gaussians.packed.detach().clone().requires_grad_(), torch.ones_like(targets)
    operator = lambda: [*torch.autograd.grad(splat(rows, *size), rows, v_images)]  # noqa: E731
    return {
        "images": case.images,
        "points": case.points,
        "size": f"{case.size}x{case.size}x3",
        "steps": case.steps,
        "seconds": seconds,
        "seconds_1000_images": seconds * PAPER_IMAGES / case.images,
        "psnr_db": curve[-1]["psnr_db"],
        "mib": mib,
        "step_ms": 1e3 * seconds / case.steps,
        "operator_ms": median_ms(operator, repeats, device),
        "of": photographs(1, case.size)[1],
    }


def fitting_table(row: dict) -> str:
    """The row of :func:`measure_fitting` as Markdown, with its note."""
    heads = ("images", "Gaussians", "size", "steps", "s", "s for 1,000 images", "PSNR (dB)", "MiB")
    heads += ("ms per step", "operator's ms")
    values = [value for name, value in row.items() if name != "of"]
    table = markdown([dict(zip(heads, values, strict=True))])
    return f"{table}\n\n{FIT_NOTE.format(images=row['of'])}"


def call_costs(device: str = "cpu", *, calls: int = 200, repeats: int = 9) -> dict[str, float]:
    """Microseconds of a call that renders one Gaussian on one pixel, by how it is made."""
    params = torch.zeros(1, 1, 9, device=device)
    leaf, v_image = params.clone().requires_grad_(), torch.ones(1, 3, 1, 1, device=device)
    switches = (1, 1, True, True, True, True)
    splat(params, 1, 1)  # loads the operator

    def each(call) -> float:
        def job() -> list[Tensor]:
            for _ in range(calls):
                call()
            return []

        return 1e3 * median_ms(job, repeats, device) / calls

    return {
        "kernel's op": each(lambda: torch.ops.gsdd.splat.default(params, *switches, None)),
        "splat": each(lambda: splat(params, 1, 1)),
        "splat, for a gradient": each(lambda: splat(leaf, 1, 1)),
        "splat and its gradient": each(
            lambda: torch.autograd.grad(splat(leaf, 1, 1), leaf, v_image)
        ),
    }


def call_line(costs: dict[str, float]) -> str:
    """The costs in a sentence."""
    parts = [f"{name} {value:.1f}" for name, value in costs.items()]
    return f"A call of one Gaussian on one pixel, microseconds: {', '.join(parts)}."
