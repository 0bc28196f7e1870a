"""How long a step's passes take on this machine: a few images through the real networks, timed."""

from functools import partial

import torch
from torch import Tensor

from gsdd_lib.profiling import median_ms
from gsdd_lib.splat import splat
from gsdd_lib.step_cost import StepCost

CALIBRATION_FLOPS = 8e9  # of one timed pass: a quarter of a second on a core
REPEATS = 3
BLOCK = 2**14  # numbers; small enough to come from the heap
RENDERED = 64  # images rendered to time the renderer


def pass_seconds(step: StepCost, work: dict[str, float], kind: str) -> float:
    """Seconds for ``work``: images by pass, as ``step.work`` gives them."""
    return sum(n * _seconds_per_image(step, name, n, kind) for name, n in work.items() if n)


def _seconds_per_image(step: StepCost, name: str, images: float, kind: str) -> float:
    counted = step.passes[name]
    at_a_time = _at_a_time(step, name, images)
    count = max(1, min(at_a_time, int(CALIBRATION_FLOPS / counted.flops_per_image)))
    if count > counted.piece:  # whole pieces, as in the run
        count -= count % counted.piece
    bench = counted.bench.on(kind)
    job = partial(counted.call, bench, count)
    kept = _keep_heap(counted.bytes(count)) if kind == "cpu" else []
    job()
    seconds = 1e-3 * median_ms(job, REPEATS, kind)
    del kept
    return seconds / count


def _keep_heap(size: int) -> list[Tensor]:
    """Have ``size`` bytes of heap, and hold its end so that the C library does not give it back.

    In a run there is always something at its end. A pass alone would return its memory each time
    and find all pages new the next, which took a third of the time of embedding images.
    """
    blocks = [torch.zeros(BLOCK) for _ in range(size // (4 * BLOCK) + 1)]
    return blocks[-1:]


def fixed_seconds(step: StepCost, kind: str) -> float:
    """A step's seconds outside the network: a fresh one made, the Gaussians rendered and moved."""
    bench, count = step.passes["embed_real"].bench, min(RENDERED, step.synthetic)
    rows = (count, step.budget.points, step.budget.numbers_per_gaussian)
    packed = torch.rand(rows, device=kind).requires_grad_()
    optimizer = torch.optim.Adam([packed], lr=0.0)

    def render() -> list[Tensor]:
        images = splat(packed, step.about.height, step.about.width, opacity=step.budget.opacity)
        (images * 2).sum().backward()
        optimizer.step()
        return [images]

    made = median_ms(partial(bench.on, kind), REPEATS, kind)
    return 1e-3 * (made + median_ms(render, REPEATS, kind) * step.synthetic / count)


def _at_a_time(step: StepCost, name: str, images: float) -> int:
    """How many images of a step go through the pass together."""
    most = {
        "embed_synthetic": max(step.budget.gpc, step.config.micro_batch),
        "match_gradients": min(step.budget.gpc, step.config.micro_batch),
        "kept_step": step.batch_syn,
        "recomputed_step": step.batch_syn,
        "train": min(step.eval_config.eval_batch, step.synthetic),
    }
    return max(1, min(int(images), most.get(name, step.config.micro_batch)))
