"""The splatting operator against the dense oracle: python -m gsdd_lib.benchmarks.operator. The
oracle may render some of the images and its time is scaled. On a GPU gsplat's rasterizer is
measured too: it blends, so only its time and memory are compared.
"""

import argparse
import importlib.util
import itertools
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from gsdd_lib.benchmarks import timing
from gsdd_lib.benchmarks.roofline import alive_samples, roofline_ms
from gsdd_lib.benchmarks.timing import PASSES, Job, job_of, machine, markdown, measure_jobs
from gsdd_lib.core.files import write_atomically
from gsdd_lib.core.rng import generator
from gsdd_lib.splatting.agreement import gsplat_scene
from gsdd_lib.splatting.reference import splat_reference
from gsdd_lib.splatting.splat import backend_ready, splat

ORACLE_ELEMENTS = 21_000_000  # Gaussians x samples that the oracle renders in one measurement
FITTED = 8  # distinct images, repeated to fill the batch
NOTE = """
ms: median and quartiles for all images, scaled from those "rendered". mib: peak memory beyond
inputs and outputs, for the images rendered. ratio: the oracle's ms over the row's. roofline_ms: the
time that no kernel on this CPU can beat (roofline.py says what is counted).
gsplat {gsplat}.
Then microseconds of a call of one Gaussian on one pixel, and a fit of crops of two photographs.
"""


@dataclass(frozen=True)
class Workload:
    """A batch of images of ``points`` Gaussians each."""

    images: int
    points: int
    height: int
    width: int
    channels: int

    def rendered_by(self, renderer: str) -> int:
        each = self.points * self.height * self.width * 4  # samples per pixel
        few = min(self.images, max(1, ORACLE_ELEMENTS // each))
        return few if renderer == "oracle" else self.images


WORKLOADS = (
    Workload(300, 22, 28, 28, 1),  # Fashion-MNIST's bytes of IPC 1 as 30 images per class
    Workload(8000, 136, 32, 32, 3),
    Workload(2000, 170, 128, 128, 3),
)
QUICK = (Workload(6, 5, 12, 10, 1), Workload(4, 7, 9, 14, 3))


def fitted_gaussians(work: Workload, *, steps: int = 100) -> Tensor:
    """``[8, points, 6 + channels]``: what a short fit of generated images leaves."""
    random = generator(0, "benchmark", *asdict(work).values())
    target = _discs(work, random)
    spacing = math.sqrt(work.height * work.width / work.points)
    params = torch.zeros(FITTED, work.points, 6 + work.channels)
    params[..., :2] = 2 * torch.rand(FITTED, work.points, 2, generator=random) - 1
    params[..., 2] = params[..., 4] = 0.5 * spacing
    params[..., 5:-1] = 0.1 * torch.randn(FITTED, work.points, work.channels, generator=random)
    params[..., -1] = 1
    optimizer = torch.optim.Adam([params.requires_grad_()], lr=0.03)
    for _ in range(steps):
        loss = (splat(params, work.height, work.width) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return params.detach()


def _discs(work: Workload, random: torch.Generator) -> Tensor:
    y = torch.arange(work.height)[:, None] / work.height
    x = torch.arange(work.width) / work.width
    image = torch.zeros(FITTED, work.channels, work.height, work.width)
    for _ in range(12):
        place = torch.rand(FITTED, 3, 1, 1, generator=random)
        color = torch.randn(FITTED, work.channels, 1, 1, generator=random)
        inside = (x - place[:, 0]).square() + (y - place[:, 1]).square() < 0.08 * place[:, 2]
        image = torch.where(inside[:, None], color, image)
    return image


def gsplat_rasterize(params: Tensor, height: int, width: int) -> Tensor:
    """``params [B, M, 6 + C]`` on a GPU to ``[B, C, height, width]``; opacities in (0, 1]."""
    from gsplat import rasterization

    scene = gsplat_scene(params, height, width)  # 2x2 samples: twice as large, then the mean
    images, _, _ = rasterization(**scene, height=2 * height, width=2 * width)
    return avg_pool2d(images.squeeze(1).movedim(-1, 1), 2)


RENDERERS = {"operator": splat, "oracle": splat_reference, "gsplat": gsplat_rasterize}


def without_gsplat(device: str) -> str:
    """Why gsplat cannot run, empty where it can."""
    if device == "cpu" or not torch.cuda.is_available():
        return "no CUDA device"
    return "" if importlib.util.find_spec("gsplat") else "gsplat is not installed"


def render_job(
    renderer: str, which: str, fitted: Any, work: Workload, device: str, *, few: bool = False
) -> Job:
    """Rendering ``work`` in one of :data:`PASSES`; ``fitted``: distinct images, a numpy array."""
    count, size = 1 if few else work.rendered_by(renderer), (work.height, work.width)
    params = torch.from_numpy(fitted).repeat(math.ceil(count / FITTED), 1, 1)[:count].to(device)
    params = params.contiguous().requires_grad_()
    v_images = torch.ones(count, work.channels, *size, device=device)
    render = lambda: RENDERERS[renderer](params, *size)  # noqa: E731
    return job_of(render, [params], None if which == PASSES[0] else v_images)


def measure(work: Workload, *, repeats: int, device: str = "cpu") -> list[dict[str, Any]]:
    """Time and memory of a workload by each renderer and pass; :data:`NOTE` explains the rows."""
    fitted, size = fitted_gaussians(work), (work.height, work.width)
    alive = alive_samples(fitted, *size)
    renderers = [name for name in RENDERERS if name != "gsplat" or not without_gsplat(device)]
    ways = list(itertools.product(PASSES, renderers))
    jobs = [(renderer, which, fitted.numpy(), work, device) for which, renderer in ways]
    rows = []
    found = measure_jobs(render_job, jobs, repeats, device)
    for (which, renderer), row in zip(ways, found, strict=True):
        rendered, limit = work.rendered_by(renderer), None
        row |= {name: row[name] * work.images / rendered for name in ("ms", "ms_low", "ms_high")}
        if device == "cpu" and renderer == "operator":  # a GPU's roofline is not measured
            limit = roofline_ms(alive, work.images, work.points, work.channels, size, which)
        what = {"pass": which, "renderer": renderer, "rendered": rendered}
        rows.append(asdict(work) | what | row | {"roofline_ms": limit})
    oracle = {row["pass"]: row["ms"] for row in rows if row["renderer"] == "oracle"}
    return [row | {"ratio": oracle[row["pass"]] / row["ms"]} for row in rows]


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


def start_fit(targets: Tensor, points: int) -> Any:
    """``GaussianImages`` placed on photographs [N, 3, H, W], before their fit."""
    from gsdd_lib.data.normalization import ChannelNormalization  # needs more than torch
    from gsdd_lib.parameterizations.gaussian import GaussianImages

    labels = torch.zeros(len(targets), dtype=torch.int64)
    identity = ChannelNormalization((0.0,) * 3, (1.0,) * 3)
    more = {"points": points, "normalization": identity, "seed": 0}
    return GaussianImages.init_from(targets, labels, **more)


def _start(case: Fitting, device: str) -> tuple[Any, Tensor]:
    targets = photographs(case.images, case.size).to(device)
    return start_fit(targets, case.points), targets


def fit(gaussians: Any, targets: Tensor, steps: int) -> list[dict[str, float]]:
    """Fit in place by the library's defaults; the rows of its curve."""
    from gsdd_lib.config import FitConfig
    from gsdd_lib.parameterizations.fit import fit_rows

    return list(fit_rows(gaussians, targets, FitConfig(fit_steps=steps)))


def _fit_job(case: Fitting, device: str, *, few: bool = False) -> Job:
    start = _start(replace(case, images=1) if few else case, device)
    return lambda: fit(*start, 3)[:0]


def measure_fitting(case: Fitting, *, repeats: int, device: str = "cpu") -> dict[str, Any]:
    """Seconds, PSNR, memory and milliseconds per step of a fit, beside the bare operator's."""
    gaussians, targets = _start(case, device)
    (mib,) = timing.peaks_alone(_fit_job, [(case, device)], device)
    start = time.perf_counter()
    curve = fit(gaussians, targets, case.steps)  # its last row waits for the device
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
        "operator_ms": timing.median_ms(operator, repeats, device),
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
        costs[way] = 1e3 * timing.median_ms(many, repeats, device) / calls
    return costs


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the tables as they grow, and write the numbers to ``--json FILE``."""
    options = _options(arguments)
    device, repeats = options.device, options.repeats
    about, rows = machine(device), []
    print(", ".join(f"{name} {value}" for name, value in about.items()), end="\n\n")
    for work in QUICK if options.quick else WORKLOADS:
        new = measure(work, repeats=repeats, device=device)
        lines = markdown(new).splitlines()
        print("\n".join(lines[2:] if rows else lines), flush=True)
        rows += new
    missing = without_gsplat(device)
    print(NOTE.format(gsplat=f"was not run: {missing}" if missing else "blends instead of adding"))
    numbers = {"machine": about, "rows": rows, "call_us": call_costs(device), "fitting": None}
    print(markdown([numbers["call_us"]]), end="\n\n", flush=True)
    try:
        case = QUICK_FITTING if options.quick else FITTING[device]
        numbers["fitting"] = measure_fitting(case, repeats=repeats, device=device)
        print(markdown([numbers["fitting"]]))
    except ImportError as error:  # a bare torch, as on a borrowed GPU
        print(f"The fit was not measured ({error}); install the library's requirements.")
    if options.json:
        write_atomically(options.json, f"{json.dumps(numbers, indent=2)}\n".encode())


def _options(arguments: list[str] | None) -> argparse.Namespace:
    about = "Time and memory of the splatting operator against the dense oracle."
    parser = argparse.ArgumentParser("python -m gsdd_lib.benchmarks.operator", description=about)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=5, help="runs that the median is taken of")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {options.repeats}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; leave out --device to measure the CPU kernels")
    if not backend_ready():
        parser.error("there is no compiled operator to measure; the warning above says why")
    return options


if __name__ == "__main__":
    main()
