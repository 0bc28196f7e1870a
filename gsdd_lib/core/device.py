"""Where a run computes: a CUDA device where there is one, else the CPU.

Random numbers are drawn on the CPU and networks are made there, so that a seed means the same
everywhere; images, Gaussians and networks are then moved. ``ImageData.to`` is where it starts:
everything made for a data set is made on its device.
"""

import torch

from gsdd_lib.core.errors import ConfigError


def choose_device(name: str = "auto") -> torch.device:
    """The device called ``name``; ``auto`` is the CUDA device if there is one, else the CPU.

    Raises :class:`ConfigError` for a device that is not there.

    >>> choose_device("cpu")
    device(type='cpu')
    """
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu or cuda (or cuda:1 ...), got {name!r}")
    if device.type == "cuda" and not (available and (device.index or 0) < _count()):
        raise ConfigError(
            f"device '{name}' is not on this machine, which has {_count()} CUDA devices; choose "
            "'auto' or 'cpu'"
        )
    return device


def _count() -> int:
    return torch.cuda.device_count()
