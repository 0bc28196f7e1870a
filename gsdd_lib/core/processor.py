"""The processor's name, for the records of what numbers were measured on."""

import platform
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")


def cpu_name() -> str:
    """As the system calls the processor ("AMD EPYC"); where it has no name, its architecture."""
    try:
        lines = CPU_INFO.read_text("utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
