"""Where a run computes, and what it is called; random numbers are always drawn on the CPU."""

import platform
from pathlib import Path
from typing import TYPE_CHECKING

from gsdd_lib.core.errors import ConfigError

if TYPE_CHECKING:  # imported where it is used: reading records needs a processor's name, no torch
    import torch

CPU_INFO = Path("/proc/cpuinfo")


def choose_device(name: str = "auto") -> "torch.device":
    """The device of that name, if there is one; ``auto``: a CUDA device, or else the CPU."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        device = torch.device(("cuda" if count else "cpu") if name == "auto" else name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu or cuda (or cuda:1 ...), got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= count:
        has = f"which has {count} CUDA devices; choose 'auto' or 'cpu'"
        raise ConfigError(f"device '{name}' is not on this machine, {has}")
    return device


def cpu_name() -> str:
    """As the system calls the processor ("AMD EPYC"); where it has no name, its architecture."""
    lines = CPU_INFO.read_text("utf-8").splitlines() if CPU_INFO.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, models), "") or platform.processor() or platform.machine()
