"""In which arithmetic networks compute: float32, tf32 or bf16, for the time of a block."""

import contextlib
from collections.abc import Iterator

import torch

from gsdd_lib.config import Precision
from gsdd_lib.core.errors import ConfigError

TF32 = {"fp32": "ieee", "tf32": "tf32"}  # torch's names of how a GPU multiplies float32 numbers


@contextlib.contextmanager
def precision(name: Precision, device: torch.device) -> Iterator[None]:
    """Compute inside in arithmetic ``name``; torch's settings are as they were afterwards.

    ``auto`` is whatever torch is set to: by default, on a GPU, tf32 in convolutions and float32 in
    matrix products. ``bf16`` is torch's autocast: weights and their gradients stay float32.

    Raises:
        ConfigError: tf32 is asked of something that is no GPU.
    """
    if name == "tf32" and device.type == "cpu":
        raise ConfigError("precision 'tf32' is a GPU's; choose 'auto' or 'bf16' on a CPU")
    if name == "bf16":  # no cache: its copies of weights would outlive a step that is recorded
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            yield
        return
    units = (torch.backends.cuda.matmul, torch.backends.cudnn.conv) if name in TF32 else ()
    before = [unit.fp32_precision for unit in units]
    try:
        for unit in units:
            unit.fp32_precision = TF32[name]
        yield
    finally:
        for unit, value in zip(units, before, strict=True):
            unit.fp32_precision = value
