"""Where a run computes, what that is called, and by which commit of the code; random numbers are
always drawn on the CPU."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from gsdd_lib.core.errors import ConfigError
from gsdd_lib.core.files import project_root

CPU_INFO = Path("/proc/cpuinfo")
LOOK = {"capture_output": True, "text": True, "check": True, "timeout": 30}


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


def gpu_driver() -> str:
    """The version of the NVIDIA driver ("580.65"), or "unknown"."""
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(ask, **LOOK).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def commit() -> dict[str, Any]:
    """``commit`` and ``modified`` as git says, of files beside ``figures``. A copy without git is
    of the commit that $GSDD_COMMIT names, else "unknown"; whether it was modified, nobody knows."""
    git = ["git", "-C", str(project_root())]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], **LOOK).stdout.strip()
        status = [*git, "status", "--porcelain", "--", ".", ":(exclude)figures"]
        return {"commit": head, "modified": bool(subprocess.run(status, **LOOK).stdout.strip())}
    except (OSError, subprocess.SubprocessError):
        return {"commit": os.environ.get("GSDD_COMMIT") or "unknown", "modified": None}
