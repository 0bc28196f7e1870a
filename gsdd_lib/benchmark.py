"""The splatting operator against the dense oracle: ``python -m gsdd_lib.benchmark``, ``make bench``.

Both render the same fitted Gaussians in the same process with the same threads. The oracle's time
and memory grow with Gaussians times samples, so where a whole batch would take minutes it renders
a few of the images and its time is scaled to the batch; the table says how many.
"""

import argparse
import ctypes
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from gsdd_lib.files import write_atomically
from gsdd_lib.rng import generator
from gsdd_lib.splat import backend_ready, splat
from gsdd_lib.splat_reference import splat_reference

ORACLE_ELEMENTS = 2**25  # Gaussians x samples that the oracle renders in one measurement
FITTED = 8  # distinct images, repeated to fill the batch
RENDERERS = {"operator": splat, "oracle": splat_reference}
PASSES = ("forward", "forward + backward")


@dataclass(frozen=True)
class Workload:
    """A batch of images of ``points`` Gaussians each."""

    images: int
    points: int
    height: int
    width: int
    channels: int

    @property
    def oracle_images(self) -> int:
        """How many of the images the oracle renders."""
        each = self.points * self.height * self.width * 4  # samples per pixel
        return min(self.images, max(1, ORACLE_ELEMENTS // each))

    def rendered_by(self, renderer: str) -> int:
        """How many of the images ``renderer`` renders."""
        return self.images if renderer == "operator" else self.oracle_images


WORKLOADS = (
    Workload(300, 22, 28, 28, 1),  # Fashion-MNIST at IPC 1, thirty images per class
    Workload(8000, 136, 32, 32, 3),
    Workload(2000, 170, 128, 128, 3),
)
QUICK = (Workload(6, 5, 12, 10, 1), Workload(4, 7, 9, 14, 3))


# ------------------------------------------------------------------------------------------- inputs


def fitted_gaussians(work: Workload, *, steps: int = 100) -> Tensor:
    """``[8, points, 6 + channels]``: what a short fit of generated images leaves, sizes included."""
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


def _job(fitted: Tensor, work: Workload, renderer: str, which: str, count: int) -> Callable:
    """A function without arguments that renders ``count`` images and returns the results."""
    render = RENDERERS[renderer]
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


# --------------------------------------------------------------------------------------------- time


def median_ms(job: Callable, repeats: int, device: str) -> float:
    """Median milliseconds of ``repeats`` runs after one that does not count."""
    job()
    return statistics.median(_durations(job, repeats, device))


def _durations(job: Callable, repeats: int, device: str) -> Iterator[float]:
    for _ in range(repeats):
        if device == "cpu":
            start = time.perf_counter()
            job()
            yield 1e3 * (time.perf_counter() - start)
        else:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            job()
            end.record()
            end.synchronize()
            yield begin.elapsed_time(end)


# ------------------------------------------------------------------------------------------- memory


def peaks_mib(fitted: Tensor, work: Workload, renderer: str, device: str) -> list[float | None]:
    """Peak memory of each pass beyond its inputs and outputs; None where it cannot be told."""
    if device != "cpu":
        return [_peak_mib(fitted, work, renderer, which) for which in PASSES]
    # In a process of its own: what an earlier run left with the allocator would hide the peak.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        arguments = (fitted.numpy(), work, renderer)
        return [pool.submit(_peak_of_numpy, *arguments, which).result() for which in PASSES]


def _peak_of_numpy(fitted, work: Workload, renderer: str, which: str) -> float | None:
    return _peak_mib(torch.from_numpy(fitted), work, renderer, which)


def _peak_mib(fitted: Tensor, work: Workload, renderer: str, which: str) -> float | None:
    _job(fitted, work, renderer, which, 1)()  # loads what stays loaded: libraries, threads
    job = _job(fitted, work, renderer, which, work.rendered_by(renderer))
    if fitted.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results = job()
        peak = torch.cuda.max_memory_allocated()
    elif sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0) if platform.libc_ver()[0] == "glibc" else None
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
        before = _status_bytes("VmRSS")
        results = job()
        peak = _status_bytes("VmHWM")
    else:
        return None
    outputs = sum(result.numel() * result.element_size() for result in results)
    return max(0, peak - before - outputs) / 2**20


def _status_bytes(entry: str) -> int:
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(entry + ":"))


# -------------------------------------------------------------------------------------- the command


def measure(work: Workload, *, repeats: int, device: str = "cpu") -> list[dict]:
    """One row per pass: milliseconds for the whole batch, their ratio, peak memory in MiB."""
    fitted = fitted_gaussians(work).to(device)
    peaks = {name: peaks_mib(fitted, work, name, device) for name in RENDERERS}
    rows = []
    for index, which in enumerate(PASSES):
        row = {**asdict(work), "pass": which, "oracle_images": work.oracle_images}
        for name in RENDERERS:
            count = work.rendered_by(name)
            job = _job(fitted, work, name, which, count)
            row[f"{name}_ms"] = median_ms(job, repeats, device) * work.images / count
            row[f"{name}_mib"] = peaks[name][index]
        rows.append(row | {"ratio": row["oracle_ms"] / row["operator_ms"]})
    return rows


def machine(device: str) -> dict[str, str | int]:
    """What the numbers were measured on."""
    name = torch.cuda.get_device_name() if device != "cpu" else _cpu_name()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "kernels": "cuda" if device != "cpu" else cpu_kernels(),
    }


def cpu_kernels() -> str:
    """The instruction set that the CPU kernels run with: portable, v3 or v4 (of x86-64)."""
    levels = ["portable", "v3", "v4"]
    here = {"AVX2": "v3", "AVX512": "v4"}.get(torch.backends.cpu.get_cpu_capability(), "portable")
    asked = os.environ.get("GSDD_CPU", "v4")
    return min(here, asked if asked in levels else "v4", key=levels.index)


def _cpu_name() -> str:
    if not Path("/proc/cpuinfo").exists():
        return platform.processor() or platform.machine()
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


HEADER = (
    "| images | Gaussians | size | pass | operator ms | oracle ms | ratio "
    "| operator MiB | oracle MiB | oracle images |\n" + "| --: " * 3 + "| :-- " + "| --: " * 6 + "|"
)
NOTE = (
    "ms: median, of the whole batch; the oracle rendered as many images as the last column says and "
    "its time is scaled to the batch. MiB: peak memory beyond inputs and outputs, not scaled."
)


def table_line(row: dict) -> str:
    """A row of :func:`measure` as a line of the Markdown table."""
    mib = [f"{x:.1f}" if x is not None else "–" for x in (row["operator_mib"], row["oracle_mib"])]
    cells = [row["images"], row["points"], f"{row['height']}x{row['width']}x{row['channels']}"]
    cells += [row["pass"], f"{row['operator_ms']:.2f}", f"{row['oracle_ms']:.0f}"]
    cells += [f"{row['ratio']:.0f}x", *mib, row["oracle_images"]]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, and write it to ``--json FILE``."""
    parser = argparse.ArgumentParser(prog="python -m gsdd_lib.benchmark", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=3, help="runs that the median is taken of")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; leave out --device to measure the CPU kernels")
    if not backend_ready():
        parser.error("there is no compiled operator to measure; the warning above says why")
    about = machine(options.device)
    print("{device}, {threads} threads, torch {torch}, kernels: {kernels}\n".format(**about))
    print(HEADER)
    rows = []
    for work in QUICK if options.quick else WORKLOADS:
        for row in measure(work, repeats=options.repeats, device=options.device):
            rows.append(row)
            print(table_line(row), flush=True)
    print(f"\n{NOTE}")
    if options.json:
        text = json.dumps({"machine": about, "rows": rows}, indent=2) + "\n"
        write_atomically(options.json, text.encode())


if __name__ == "__main__":
    main()
