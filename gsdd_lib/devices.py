"""Where a run shall take place: the memory that is there, and how fast it computes."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

GB = 10**9


@dataclass(frozen=True)
class Device:
    """Where a run shall take place.

    memory_bytes: what a run may use
    tflops: assumed throughput in 10^12 FLOPs per second; None: the time is measured, here
    kind: ``cpu`` or ``cuda``
    """

    name: str
    memory_bytes: int
    tflops: float | None = None
    kind: str = "cpu"


# A sustained 10 TFLOP/s is half of what an A100's fp32 units can do at most; assumed, not measured.
GPU_80 = Device("one 80 GB GPU", 80 * GB, 10.0, "cuda")


def this_machine(kind: str = "cpu") -> Device:
    """This machine's CPU, or its GPU, with the memory that is free now."""
    name = "this machine" if kind == "cpu" else torch.cuda.get_device_name()
    return Device(name, available_bytes(kind), None, kind)


def available_bytes(kind: str = "cpu") -> int:
    """Free memory of the GPU, or of the machine within the limit of this process's group."""
    if kind != "cpu":
        return torch.cuda.mem_get_info()[0]
    found = [_meminfo()]
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        numbers = [_number(Path(limit)), _number(Path(used))]
        if None not in numbers:
            found.append(numbers[0] - numbers[1])
    return max(0, min(found))


def _meminfo() -> int:
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if "MemAvailable" in line)
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _number(path: Path) -> int | None:
    """None where there is no such file, or no limit ("max")."""
    try:
        return int(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
