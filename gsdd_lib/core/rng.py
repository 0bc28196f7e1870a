"""Random numbers by (seed, purpose); nothing reads torch's global generator."""

import hashlib

import torch


def generator(
    seed: int, *purpose: str | int, device: str | torch.device = "cpu"
) -> torch.Generator:
    """A generator whose stream depends on ``seed`` and ``purpose`` alone.

    ``purpose``: what the numbers are for, e.g. ``("evaluate", "network", 3)``.
    """
    text = "/".join(str(part) for part in (int(seed), *purpose))
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
