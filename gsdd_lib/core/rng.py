"""Random numbers by (seed, purpose): every consumer draws from a generator of its own.

Nothing reads torch's global generator, so evaluating more often never changes a distillation.
"""

import hashlib

import torch


def generator(
    seed: int, *purpose: str | int, device: str | torch.device = "cpu"
) -> torch.Generator:
    """A generator whose stream depends on ``seed`` and ``purpose`` alone.

    Args:
        seed: the run's seed, any integer.
        purpose: what the numbers are for, e.g. ``("evaluate", "network", 3)``.
    """
    text = "/".join(str(part) for part in (int(seed), *purpose))
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
