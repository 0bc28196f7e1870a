"""The splatting operator against the dense oracle.

    python -m gsdd_lib.benchmarks.operator [--json FILE]

Both render the same fitted Gaussians in the same process with the same threads. The oracle's time
and memory grow with Gaussians times samples, so where a whole batch would take minutes it renders
some of the images and its time is scaled to the batch; the table says how many. Where a GPU and
gsplat are there, gsplat's rasterizer stands beside them. Two more tables time a fit and a call
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

from cuda_ext import BuildError
from cuda_ext.report import compile_report
from gsdd_lib.benchmarks import fitting as fit_benchmark
from gsdd_lib.benchmarks import gsplat as gsplat_raster
from gsdd_lib.benchmarks.roofline import alive_samples, floor_ms
from gsdd_lib.benchmarks.timing import Job, machine, median_ms, peak_mib, run_alone
from gsdd_lib.core.files import write_atomically
from gsdd_lib.core.rng import generator
from gsdd_lib.splatting.reference import splat_reference
from gsdd_lib.splatting.splat import backend_ready, splat

ORACLE_ELEMENTS = 21_000_000  # Gaussians x samples that the oracle renders in one measurement
FITTED = 8  # distinct images, repeated to fill the batch
RENDERERS = {"operator": splat, "oracle": splat_reference}
BESIDE = {"gsplat": gsplat_raster.rasterize}  # where there is a GPU for it
PASSES = ("forward", "forward + backward")
COLUMNS = (
    "images", "Gaussians", "size", "pass", "operator ms", "oracle ms", "ratio",
    "floor ms", "of floor", "operator MiB", "oracle MiB", "oracle images",
    "gsplat ms", "gsplat MiB",
)  # fmt: skip
NOTE = """\
ms: median, for all images; the oracle rendered as many images as the last column says, and its
time is scaled to all. Floor: what no kernel on this CPU can go below (gsdd_lib/floor.py says what
is counted), and the fraction of it that the operator reaches. MiB: peak memory beyond inputs and
outputs, for the images rendered. gsplat: its CUDA rasterizer on the same Gaussians, which it blends
in the place of adding them up (gsdd_lib/gsplat_raster.py): {gsplat}."""


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
    draw = generator(0, "benchmark", *asdict(work).values())
    target = _discs(work, draw)
    spacing = math.sqrt(work.height * work.width / work.points)
    params = torch.zeros(FITTED, work.points, 6 + work.channels)
    params[..., :2] = 2 * torch.rand(FITTED, work.points, 2, generator=draw) - 1
    params[..., 2] = params[..., 4] = 0.5 * spacing
    params[..., 5:-1] = 0.1 * torch.randn(FITTED, work.points, work.channels, generator=draw)
    params[..., -1] = 1
    optimizer = torch.optim.Adam([params.requires_grad_()], lr=0.03)
    for _ in range(steps):
        loss = (splat(params, work.height, work.width) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return params.detach()


def _discs(work: Workload, draw: torch.Generator) -> Tensor:
    """``[8, C, H, W]``: twelve discs of random place, size and color, one over the other."""
    y = torch.arange(work.height)[:, None] / work.height
    x = torch.arange(work.width) / work.width
    image = torch.zeros(FITTED, work.channels, work.height, work.width)
    for _ in range(12):
        place = torch.rand(FITTED, 3, 1, 1, generator=draw)
        color = torch.randn(FITTED, work.channels, 1, 1, generator=draw)
        inside = (x - place[:, 0]).square() + (y - place[:, 1]).square() < 0.08 * place[:, 2]
        image = torch.where(inside[:, None], color, image)
    return image


def _job(fitted: Tensor, work: Workload, renderer: str, which: str, count: int) -> Job:
    """Renders ``count`` images, and differentiates them where ``which`` says so."""
    render = (RENDERERS | BESIDE)[renderer]
    params = fitted.repeat(math.ceil(count / FITTED), 1, 1)[:count].contiguous()
    if which == "forward":
        return lambda: [render(params, work.height, work.width)]
    shape = (count, work.channels, work.height, work.width)
    v_image = torch.randn(shape, generator=generator(1, "benchmark")).to(fitted.device)
    params.requires_grad_()

    def forward_backward() -> list[Tensor]:
        image = render(params, work.height, work.width)
        return [image, *torch.autograd.grad(image, params, v_image)]

    return forward_backward


def _renderers(device: str) -> list[str]:
    """Who renders on ``device``: gsplat only on a GPU, and only where it is installed."""
    beside = [] if device == "cpu" or gsplat_raster.available() else list(BESIDE)
    return [*RENDERERS, *beside]


def _peaks(fitted: np.ndarray, work: Workload, device: str) -> dict[str, list[float | None]]:
    """Peak memory in MiB of each pass, by renderer."""
    params = torch.from_numpy(fitted).to(device)
    peaks = {name: [] for name in _renderers(device)}
    for name, which in itertools.product(peaks, PASSES):
        _job(params, work, name, which, 1)()  # loads what stays loaded
        job = _job(params, work, name, which, work.rendered_by(name))
        peaks[name].append(peak_mib(job, device))
    return peaks


def measure(work: Workload, *, repeats: int, device: str = "cpu") -> list[dict]:
    """One row per pass: milliseconds for the whole batch, their ratio, peak memory in MiB."""
    fitted = fitted_gaussians(work)
    peaks = run_alone(_peaks, fitted.numpy(), work, device)
    size = (work.height, work.width)
    alive = alive_samples(fitted, *size) if device == "cpu" else None
    rows = []
    for index, which in enumerate(PASSES):
        row = {**asdict(work), "pass": which}
        for name in _renderers(device):
            count = work.rendered_by(name)
            job = _job(fitted.to(device), work, name, which, count)
            row[f"{name}_ms"] = median_ms(job, repeats, device) * work.images / count
            row[f"{name}_mib"] = peaks[name][index]
            row[f"{name}_images"] = count
        if alive is not None:  # on a GPU the floor is not measured
            floor = floor_ms(alive, work.images, work.points, work.channels, size, which)
            row |= {"floor_ms": floor, "of_floor": floor / row["operator_ms"]}
        rows.append(row | {"ratio": row["oracle_ms"] / row["operator_ms"]})
    return rows


def table_line(row: dict) -> str:
    """A row of :func:`measure` as a line of the Markdown table."""
    size = f"{row['height']}x{row['width']}x{row['channels']}"
    peaks = (row["operator_mib"], row["oracle_mib"])
    cells = [row["images"], row["points"], size, row["pass"]]
    cells += [f"{row['operator_ms']:.2f}", f"{row['oracle_ms']:.0f}", f"{row['ratio']:.0f}x"]
    known = "floor_ms" in row
    cells += [f"{row['floor_ms']:.2f}", f"{row['of_floor']:.0%}"] if known else ["not told"] * 2
    cells += ["not told" if peak is None else f"{peak:.1f}" for peak in peaks]
    cells.append(row["oracle_images"])
    beside = "gsplat_ms" in row
    cells += [f"{row['gsplat_ms']:.2f}", f"{row['gsplat_mib']:.1f}"] if beside else ["not run"] * 2
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table as it grows, and write the numbers to ``--json FILE``."""
    options = _options(arguments)
    about = machine(options.device)
    print("{device}, {threads} threads, torch {torch}, kernels: {kernels}\n".format(**about))
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    rows = []
    for work in QUICK if options.quick else WORKLOADS:
        for row in measure(work, repeats=options.repeats, device=options.device):
            rows.append(row)
            print(table_line(row), flush=True)
    print("\n" + NOTE.format(gsplat=_gsplat_state(options.device)))
    case = fit_benchmark.QUICK_FITTING if options.quick else fit_benchmark.FITTING[options.device]
    fitting = None
    try:
        fitting = fit_benchmark.measure_fitting(
            case, repeats=options.repeats, device=options.device
        )
        print(f"\n{fit_benchmark.fitting_table(fitting)}", flush=True)
    except ImportError as error:  # a bare torch, as on a borrowed GPU
        print(f"\nThe fit was not measured ({error}); install the library's requirements.")
    calls = fit_benchmark.call_costs(options.device)
    print(f"\n{fit_benchmark.call_line(calls)}")
    if options.kernels:
        print(f"\n{kernels_table()}")
    if options.json:
        text = json.dumps(
            {"machine": about, "rows": rows, "fitting": fitting, "call_us": calls}, indent=2
        )
        write_atomically(options.json, f"{text}\n".encode())


def _gsplat_state(device: str) -> str:
    why_not = "no CUDA device" if device == "cpu" else gsplat_raster.available()
    return f"not run, {why_not}" if why_not else "run"


def kernels_table(archs: tuple[str, ...] = ("sm_90",)) -> str:
    """What nvcc makes of the CUDA kernels, as Markdown; one sentence where there is no nvcc."""
    try:
        rows = compile_report(*archs)
    except BuildError as error:
        return f"CUDA kernels: not compiled ({error})."
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *(row.values() for row in rows)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m gsdd_lib.benchmarks.operator",
        description="Time and memory of the splatting operator against the dense oracle.",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=5, help="runs that the median is taken of")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument(
        "--kernels", action="store_true", help="also compile the CUDA kernels, which takes minutes"
    )
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
