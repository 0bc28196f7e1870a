"""Where a run computes, and what it is called; random numbers are always drawn on the CPU."""

import os
import platform
from pathlib import Path
from typing import Any

from gsdd_lib.core.errors import ConfigError

CPU_INFO = Path("/proc/cpuinfo")


def choose_device(name: str = "auto") -> Any:
    """The ``torch.device`` of that name, if there is one; ``auto``: a CUDA device, else the CPU.
    Of several ranks (:mod:`gsdd_lib.core.ranks`) each takes a CUDA device of its own."""
    import torch  # here: reading records needs a processor's name and no torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        device = torch.device(("cuda" if count else "cpu") if name == "auto" else name)
    except RuntimeError:
        device = None
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if device and device.type == "cuda" and device.index is None and count and ranks > 1:
        if ranks > count:
            wanted = f"{ranks} ranks want a CUDA device each and there are {count}"
            raise ConfigError(f"{wanted}; start fewer, or choose the device 'cpu'")
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
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
