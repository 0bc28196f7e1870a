"""The cosine schedule of learning rates, for evaluation, distillation and fitting alike."""

import math


def cosine(step: float, steps: float) -> float:
    """Falls from 1 at step 0 to 0 at ``steps``. Source: arXiv 1608.03983, eq. 5, one period."""
    return (1 + math.cos(math.pi * step / steps)) / 2
