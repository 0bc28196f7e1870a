"""The splatting operator against the dense oracle.

    python -m gsdd_lib.benchmarks.operator [--json FILE]

Both render the same fitted Gaussians in the same process with the same threads. The oracle's time
and memory grow with Gaussians times samples, so where a whole batch would take minutes it renders
some of the images and its time is scaled to the batch; the table says how many. Where a GPU and
gsplat are available, gsplat's rasterizer is measured as well. Two more tables time a fit and a call
(:mod:`gsdd_lib.benchmarks.fitting`).
"""

import argparse
import itertools
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gsdd_lib.benchmarks import fitting as fit_benchmark
from gsdd_lib.benchmarks import gsplat as gsplat_raster
from gsdd_lib.benchmarks.roofline import alive_samples, roofline_ms
from gsdd_lib.benchmarks.timing import Job, machine, markdown, peaks_alone, time_job
from gsdd_lib.core.files import write_atomically
from gsdd_lib.core.rng import generator
from gsdd_lib.splatting.reference import splat_reference
from gsdd_lib.splatting.splat import backend_ready, splat

ORACLE_ELEMENTS = 21_000_000  # Gaussians x samples that the oracle renders in one measurement
FITTED = 8  # distinct images, repeated to fill the batch
RENDERERS = {"operator": splat, "oracle": splat_reference, "gsplat": gsplat_raster.rasterize}
PASSES = ("forward", "forward + backward")
NOTE = """\
ms: median (and quartiles) for all images; the oracle rendered "oracle images" of them, and its time
is scaled to all. roofline: the time that no kernel on this CPU can beat (roofline.py says what is
counted), and the fraction of it that the operator reaches. MiB: peak memory beyond inputs and
outputs, for the images rendered. gsplat: its CUDA rasterizer on the same Gaussians, which it blends
instead of adding: {gsplat}."""


@dataclass(frozen=True)
class Workload:
    """A batch of images of ``points`` Gaussians each."""

    images: int
    points: int
    height: int
    width: int
    channels: int

    def rendered_by(self, renderer: str) -> int:
        """How many of the images ``renderer`` renders."""
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
    """``[8, C, H, W]``: twelve discs of random place, size and color, one over the other."""
    y = torch.arange(work.height)[:, None] / work.height
    x = torch.arange(work.width) / work.width
    image = torch.zeros(FITTED, work.channels, work.height, work.width)
    for _ in range(12):
        place = torch.rand(FITTED, 3, 1, 1, generator=random)
        color = torch.randn(FITTED, work.channels, 1, 1, generator=random)
        inside = (x - place[:, 0]).square() + (y - place[:, 1]).square() < 0.08 * place[:, 2]
        image = torch.where(inside[:, None], color, image)
    return image


def _job(
    renderer: str, which: str, fitted: np.ndarray, work: Workload, device: str, *, few: bool = False
) -> Job:
    """Renders a batch, or one image, and differentiates it where ``which`` says so."""
    count = 1 if few else work.rendered_by(renderer)
    params = torch.from_numpy(fitted).repeat(math.ceil(count / FITTED), 1, 1)[:count].to(device)
    size = (work.height, work.width)
    if which == "forward":
        return lambda: [RENDERERS[renderer](params, *size)]
    shape = (count, work.channels, *size)
    v_image = torch.randn(shape, generator=generator(1, "benchmark")).to(device)
    params = params.clone().requires_grad_()

    def forward_backward() -> list[Tensor]:
        image = RENDERERS[renderer](params, *size)
        return [image, *torch.autograd.grad(image, params, v_image)]

    return forward_backward


def _renderers(device: str) -> list[str]:
    """What renders on ``device``: gsplat only on a GPU, and only where it is installed."""
    with_gsplat = device != "cpu" and not gsplat_raster.available()
    return [name for name in RENDERERS if name != "gsplat" or with_gsplat]


def measure(work: Workload, *, repeats: int, device: str = "cpu") -> list[dict]:
    """Time and memory of a workload.

    Returns:
        One row per pass: the workload, and for each renderer the median milliseconds for the whole
        batch with their quartiles (``_ms``, ``_low``, ``_high``), the peak memory (``_mib``) and
        the number of images rendered (``_images``); ``ratio``, and on a CPU ``roofline_ms`` and
        ``of_roofline``.
    """
    fitted = fitted_gaussians(work).numpy()
    cases = [(*one, fitted, work, device) for one in itertools.product(_renderers(device), PASSES)]
    peaks = iter(peaks_alone(_job, cases, device))
    rows = {which: {**asdict(work), "pass": which} for which in PASSES}
    for renderer, which, *others in cases:
        count = work.rendered_by(renderer)
        timing = time_job(_job(renderer, which, *others), repeats, device)
        for name, value in zip(("ms", "low", "high"), timing, strict=True):
            rows[which][f"{renderer}_{name}"] = value * work.images / count
        rows[which] |= {f"{renderer}_mib": next(peaks), f"{renderer}_images": count}
    size = (work.height, work.width)
    for which, row in rows.items():
        row["ratio"] = row["oracle_ms"] / row["operator_ms"]
        if device == "cpu":  # a GPU's roofline is not measured
            alive = alive_samples(torch.from_numpy(fitted), *size)
            limit = roofline_ms(alive, work.images, work.points, work.channels, size, which)
            row |= {"roofline_ms": limit, "of_roofline": limit / row["operator_ms"]}
    return list(rows.values())


def shown(row: dict) -> dict:
    """A row of :func:`measure` as the table shows it."""
    cells = {"images": row["images"], "Gaussians": row["points"]}
    cells |= {"size": f"{row['height']}x{row['width']}x{row['channels']}", "pass": row["pass"]}
    for name in RENDERERS:
        cells[f"{name} ms"] = None
        if f"{name}_ms" in row:
            ms, low, high = (row[f"{name}_{end}"] for end in ("ms", "low", "high"))
            cells[f"{name} ms"] = f"{ms:.2f} ({low:.2f} to {high:.2f})"
        cells[f"{name} MiB"] = row.get(f"{name}_mib")
    cells |= {"oracle images": row["oracle_images"], "ratio": f"{row['ratio']:.0f}x"}
    cells["roofline ms"] = row.get("roofline_ms")
    cells["of roofline"] = f"{row['of_roofline']:.0%}" if "of_roofline" in row else None
    return cells


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table as it grows, and write the numbers to ``--json FILE``."""
    options = _options(arguments)
    device, repeats = options.device, options.repeats
    about = machine(device)
    print("{device}, {threads} threads, torch {torch}, kernels: {kernels}\n".format(**about))
    rows = []
    for work in QUICK if options.quick else WORKLOADS:
        new = measure(work, repeats=repeats, device=device)
        lines = markdown([shown(row) for row in new]).splitlines()
        print("\n".join(lines[2:] if rows else lines), flush=True)
        rows += new
    print("\n" + NOTE.format(gsplat=_gsplat_state(device)))
    case = fit_benchmark.QUICK_FITTING if options.quick else fit_benchmark.FITTING[device]
    fitting = None
    try:
        fitting = fit_benchmark.measure_fitting(case, repeats=repeats, device=device)
        print(f"\n{fit_benchmark.fitting_table(fitting)}", flush=True)
    except ImportError as error:  # a bare torch, as on a borrowed GPU
        print(f"\nThe fit was not measured ({error}); install the library's requirements.")
    calls = fit_benchmark.call_costs(device)
    print(f"\n{fit_benchmark.call_line(calls)}")
    if options.json:
        numbers = {"machine": about, "rows": rows, "fitting": fitting, "call_us": calls}
        write_atomically(options.json, f"{json.dumps(numbers, indent=2)}\n".encode())


def _gsplat_state(device: str) -> str:
    why_not = "no CUDA device" if device == "cpu" else gsplat_raster.available()
    return f"not run, {why_not}" if why_not else "run"


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m gsdd_lib.benchmarks.operator",
        description="Time and memory of the splatting operator against the dense oracle.",
    )
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
