"""What a fit costs, the paper's (table 20), and what a call costs: two rows of the benchmark."""

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gsdd_lib.benchmarks.timing import Job, median_ms, peaks_alone
from gsdd_lib.core.rng import generator
from gsdd_lib.splatting.splat import splat

PAPER_IMAGES = 1000


@dataclass(frozen=True)
class Fitting:
    """A fit of ``images`` images of ``size`` x ``size`` by ``points`` Gaussians each."""

    images: int
    points: int
    size: int
    steps: int


FITTING = {"cpu": Fitting(100, 170, 128, 1000), "cuda": Fitting(1000, 170, 128, 1000)}
QUICK_FITTING = Fitting(3, 5, 12, 40)


def photographs(count: int, size: int) -> Tensor:
    """``[count, 3, size, size]`` in [0, 1], cut at random from the two photographs of sklearn."""
    from sklearn.datasets import load_sample_images

    random = generator(0, "benchmark", "photographs")
    sources, crops = load_sample_images().images, []
    for number in range(count):
        source = torch.tensor(sources[number % len(sources)]).permute(2, 0, 1)
        ends = [side - size + 1 for side in source.shape[1:]]
        top, left = (int(torch.randint(end, (), generator=random)) for end in ends)
        crops.append(source[:, top : top + size, left : left + size] / 255)
    return torch.stack(crops)


def _start(case: Fitting, device: str) -> tuple[Any, Tensor]:
    """Gaussians before the fit, and what they are fitted to."""
    from gsdd_lib.data.normalization import ChannelNormalization  # needs more than torch
    from gsdd_lib.parameterizations.gaussian import GaussianImages

    targets = photographs(case.images, case.size).to(device)
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
    start = _start(replace(case, images=1) if few else case, device)
    return lambda: _fit(*start, 3)[:0]


def measure_fitting(case: Fitting, *, repeats: int, device: str = "cpu") -> dict[str, Any]:
    """Seconds, PSNR, memory and milliseconds per step of a fit, beside the bare operator's."""
    gaussians, targets = _start(case, device)
    (mib,) = peaks_alone(_fit_job, [(case, device)], device)
    start = time.perf_counter()
    curve = _fit(gaussians, targets, case.steps)  # its last row waits for the device
    seconds = time.perf_counter() - start
    size = (case.size, case.size)
    rows, v_images = gaussians.packed.detach().clone().requires_grad_(), torch.ones_like(targets)
    operator = lambda: [*torch.autograd.grad(splat(rows, *size), rows, v_images)]  # noqa: E731
    return asdict(case) | {
        "seconds": seconds,
        "seconds_1000_images": seconds * PAPER_IMAGES / case.images,
        "psnr_db": curve[-1]["psnr_db"],
        "mib": mib,
        "step_ms": 1e3 * seconds / case.steps,
        "operator_ms": median_ms(operator, repeats, device),
    }


def call_costs(device: str = "cpu", *, calls: int = 200, repeats: int = 9) -> dict[str, float]:
    """Microseconds of a call that renders one Gaussian on one pixel, by how it is made."""
    params = torch.zeros(1, 1, 9, device=device)
    leaf, v_image = params.clone().requires_grad_(), torch.ones(1, 3, 1, 1, device=device)
    switches = (1, 1, True, True, True, True, None)
    splat(params, 1, 1)  # loads the operator
    ways = {
        "kernel's op": lambda: torch.ops.gsdd.splat.default(params, *switches),
        "splat": lambda: splat(params, 1, 1),
        "splat, for a gradient": lambda: splat(leaf, 1, 1),
        "splat and its gradient": lambda: torch.autograd.grad(splat(leaf, 1, 1), leaf, v_image),
    }
    costs = {}
    for way, call in ways.items():
        many = lambda call=call: [call() for _ in range(calls)]  # noqa: E731
        costs[way] = 1e3 * median_ms(many, repeats, device) / calls
    return costs
