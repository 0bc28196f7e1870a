"""What a piece of work costs: time with its spread, peak memory, and on which machine."""

import ctypes
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsdd_lib.core.device import commit, cpu_name, gpu_driver

LEVELS = ("portable", "v3", "v4")  # instruction sets of the CPU kernels, narrow to wide
PASSES = ("forward", "forward + backward")

Job = Callable[[], list[Tensor]]  # does its work and returns what it made


def time_job(job: Job, repeats: int, device: str = "cpu") -> tuple[float, float, float]:
    """Median and lower and upper quartile in ms of ``repeats`` runs after one not counted."""
    job()
    once = _cpu_ms if device == "cpu" else _cuda_ms
    times = [once(job) for _ in range(repeats)]
    return tuple(np.quantile(times, (0.5, 0.25, 0.75)).tolist())


def median_ms(job: Job, repeats: int, device: str = "cpu") -> float:
    return time_job(job, repeats, device)[0]


def job_of(render: Callable[[], Tensor], leaves: list[Tensor], v_image: Tensor | None) -> Job:
    """Renders, and where ``v_image`` is given differentiates by the leaves."""
    if v_image is None:
        return torch.no_grad()(lambda: [render()])
    return lambda: [image := render(), *torch.autograd.grad(image, leaves, v_image)]


def _cpu_ms(job: Job) -> float:
    start = time.perf_counter()
    job()
    return 1e3 * (time.perf_counter() - start)


def _cuda_ms(job: Job) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    job()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def peak_mib(job: Job, device: str = "cpu") -> float | None:
    """Peak memory of ``job`` in MiB, beyond what is allocated before it and what it returns. On the
    CPU the process's resident memory, of which an allocator may have kept some: measure by
    :func:`peaks_alone`. None where there is no Linux."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before, made = torch.cuda.memory_allocated(), job()
        peak = torch.cuda.max_memory_allocated()
    elif sys.platform == "linux":
        if platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM, the high-water mark, starts again
        before, made = _status_bytes("VmRSS"), job()
        peak = _status_bytes("VmHWM")
    else:
        return None
    return max(0, peak - before - sum(tensor.nbytes for tensor in made)) / 2**20


def _status_bytes(entry: str) -> int:
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{entry}:"))


def run_alone(function: Callable, *arguments: Any) -> Any:
    """``function(*arguments)`` in a fresh process; all must be picklable, tensors are not."""
    # A fork would share the parent's memory; so would a tensor, of which ``.numpy()`` is a copy.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(function, *arguments).result()


def peaks_alone(make: Callable[..., Job], cases: list[tuple], device: str = "cpu") -> list:
    """:func:`peak_mib` of the jobs ``make(*case)`` in a fresh process, each after a small job of
    the same kind, ``make(*case, few=True)``, which loads what stays loaded."""
    return run_alone(_peaks, make, cases, device)


def _peaks(make: Callable[..., Job], cases: list[tuple], device: str) -> list[float | None]:
    found = []
    for case in cases:
        make(*case, few=True)()
        found.append(peak_mib(make(*case), device))
    return found


def measure_jobs(
    make: Callable[..., Job], cases: list[tuple], repeats: int, device: str, *, memory: bool = True
) -> list[dict[str, float | None]]:
    """A row per job ``make(*case)``: ``ms``, quartiles ``ms_low`` and ``ms_high``, peak ``mib``."""
    peaks = peaks_alone(make, cases, device) if memory else [None] * len(cases)
    times = [time_job(make(*case), repeats, device) for case in cases]
    names = ("ms", "ms_low", "ms_high", "mib")
    return [dict(zip(names, (*t, mib), strict=True)) for t, mib in zip(times, peaks, strict=True)]


def markdown(rows: list[dict[str, Any]]) -> str:
    """Rows of equal keys as a Markdown table; None is a dash, floats get two decimals."""
    cells = [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in r.values()] for r in rows]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines).replace(" None ", " - ")


def machine(device: str = "cpu") -> dict[str, str | int]:
    """What a measurement was made on, and of: device, a GPU's driver, threads, torch's version, the
    operator's kernels, the code's commit."""
    if device == "cpu":
        hardware, kernels = {"device": cpu_name()}, cpu_kernels()
    else:
        hardware = {"device": torch.cuda.get_device_name(), "driver": gpu_driver()}
        kernels = "cuda"
    facts = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    return {**hardware, **facts, "kernels": kernels, "commit": commit()["commit"]}


def cpu_kernels() -> str:
    """The instruction set of the CPU kernels: the widest there is, or GSDD_CPU's if narrower."""
    capability = torch.backends.cpu.get_cpu_capability()
    widest = {"AVX2": "v3", "AVX512": "v4"}.get(capability, "portable")
    asked = os.environ.get("GSDD_CPU")
    return min(widest, asked if asked in LEVELS else "v4", key=LEVELS.index)
