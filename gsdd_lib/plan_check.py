"""The planner's prediction against a measurement: whole steps, each run in a fresh process."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gsdd_lib.budget import plan_budget
from gsdd_lib.carried import Carried
from gsdd_lib.config import BudgetConfig, DataConfig, DistillConfig, EvalConfig
from gsdd_lib.data import ImageData, load_data
from gsdd_lib.data.described import DataDescription
from gsdd_lib.data.sampling import class_members
from gsdd_lib.devices import Device
from gsdd_lib.matching import STEP_LOSSES
from gsdd_lib.networks import make_network
from gsdd_lib.objectives.tm import flatten
from gsdd_lib.parameterizations.gaussian import GaussianImages
from gsdd_lib.plans import Plan, plan
from gsdd_lib.profiling import peak_mib, run_alone
from gsdd_lib.rng import generator

MIB = 2**20
STEPS = 3  # that the time is the median of
PROCESSES = 3  # that the memory is the median of: where the heap has holes is chance, some 10 %
HERE = Device("this machine", 2**62)


@dataclass(frozen=True)
class Case:
    """A distillation of generated images."""

    objective: str
    resolution: int
    gpc: int
    network: str
    width: int
    more: tuple[tuple[str, int], ...] = ()

    @property
    def config(self) -> DistillConfig:
        return DistillConfig(
            objective=self.objective, network=self.network, width=self.width, **dict(self.more)
        )

    @property
    def budget(self) -> BudgetConfig:
        return BudgetConfig(gpc=self.gpc)

    @property
    def data(self) -> DataConfig:
        return DataConfig(dataset="shapes", resolution=self.resolution)

    def __str__(self) -> str:
        more = ", ".join(f"{name} {value}" for name, value in self.more)
        size = f"{self.resolution} pixels, gpc {self.gpc}, {self.network} x {self.width}"
        return f"{self.objective}, {size}, {more}"


SMALL = (
    Case("dm", 32, 10, "ConvNetD3", 32, (("batch_real", 32), ("micro_batch", 64))),
    Case("dc", 32, 24, "ConvNetD3", 32, (("batch_real", 32), ("micro_batch", 32))),
    Case("tm", 32, 10, "ConvNetD3", 32, (("syn_steps", 4), ("batch_syn", 40))),
)
CASES = (
    *SMALL,
    Case("dm", 32, 40, "ConvNetD3", 128, (("batch_real", 64), ("micro_batch", 256))),
    Case("dm", 128, 20, "ConvNetD5", 32, (("batch_real", 16), ("micro_batch", 8))),
    Case("dc", 32, 20, "ConvNetD3", 128, (("batch_real", 64), ("micro_batch", 256))),
    Case("dc", 64, 40, "ConvNetD4", 64, (("batch_real", 64), ("micro_batch", 16))),
    Case("tm", 32, 30, "ConvNetD3", 64, (("syn_steps", 6), ("batch_syn", 60))),
    Case("tm", 32, 10, "ConvNetD3", 64, (("syn_steps", 4), ("keep_steps", 3))),
    Case("tm", 64, 10, "ConvNetD4", 64, (("syn_steps", 3), ("batch_syn", 40))),
)


class _Made:
    """Experts that were never trained: two snapshots to match, as cheap as reading them."""

    def __init__(self, network: torch.nn.Module) -> None:
        self._start = flatten(dict(network.named_parameters()))

    def __len__(self) -> int:
        return 1

    def snapshots(self, index: int, *epochs: int) -> list[Tensor]:
        return [self._start.clone(), self._start + 0.01]


def stepper(case: Case) -> Callable[[int], list[Tensor]]:
    """Takes a step by its number: objective, boundary loss, Adam, as the outer loop does."""
    data, config = load_data(case.data), case.config
    sizes = {"channels": data.channels, "num_classes": data.num_classes}
    sizes |= {"resolution": data.resolution, "width": case.width}
    carried = Carried(
        class_members(data.train.labels),
        torch.nn.Parameter(torch.tensor(-4.6)),
        _Made(make_network(case.network, **sizes, generator=generator(0, "check"))),
    )

    def begin() -> tuple[GaussianImages, torch.optim.Optimizer]:
        gaussians = _gaussians(data, case)
        return gaussians, torch.optim.Adam(gaussians.parameters(), lr=config.lr)

    state: list[Any] = []

    def step(number: int) -> list[Tensor]:
        state[:] = state or begin()
        gaussians, adam = state
        adam.zero_grad(set_to_none=True)
        step_loss = STEP_LOSSES[config.objective]
        loss = step_loss(gaussians, data, config, carried, seed=0, step=number)
        (loss + config.boundary * gaussians.penalty()).backward()
        adam.step()
        return []

    return step


def _gaussians(data: ImageData, case: Case) -> GaussianImages:
    height, width = data.resolution
    budget = plan_budget(case.budget, channels=data.channels, height=height, width=width)
    rows = (data.num_classes * case.gpc, budget.points, budget.numbers_per_gaussian)
    return GaussianImages(
        torch.rand(rows, generator=generator(0, "check")),
        torch.arange(data.num_classes).repeat_interleave(case.gpc),
        resolution=data.resolution,
        mean=data.mean,
        std=data.std,
    )


def measured_mib(case: Case) -> float | None:
    """Peak memory of a case's first steps; call it in a fresh process."""
    few = Case(case.objective, 8, 1, "ConvNetD2", 4, (("batch_real", 2), ("syn_steps", 1)))
    stepper(few)(0)  # loads what stays loaded
    step = stepper(case)
    return peak_mib(lambda: [*step(0), *step(1)])


def median_mib(case: Case) -> float | None:
    """The median of :func:`measured_mib` over fresh processes; None where the system tells none."""
    found = [run_alone(measured_mib, case) for _ in range(PROCESSES)]
    return None if None in found else statistics.median(found)


def measured_seconds(case: Case) -> float:
    """Median seconds of a step after one that does not count."""
    step = stepper(case)
    step(0)
    times = []
    for number in range(1, STEPS + 1):
        start = time.perf_counter()
        step(number)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def predicted(case: Case) -> Plan:
    """The plan of the same case, timed here."""
    about = DataDescription.of(load_data(case.data))
    judges = EvalConfig(eval_network=case.network, eval_width=1, epochs=1, eval_batch=1)
    return plan(about, case.budget, case.config, judges, device=HERE)


def step_bytes(made: Plan) -> int:
    """The peak of a step alone."""
    return max(size for name, size in made.phases.items() if name != "evaluation")


def compare(case: Case) -> dict[str, Any]:
    """Predicted and measured MiB and seconds of a step, and their ratios."""
    made, mib = predicted(case), median_mib(case)
    seconds = run_alone(measured_seconds, case)
    row = {"case": str(case), "predicted_mib": step_bytes(made) / MIB, "measured_mib": mib}
    row |= {"predicted_s": made.seconds_per_step, "measured_s": seconds}
    row["memory"] = row["predicted_mib"] / mib if mib else float("nan")
    return row | {"time": row["predicted_s"] / seconds}


def check_lines(cases: tuple[Case, ...] = CASES) -> Iterator[str]:
    """A Markdown table, a line at a time."""
    yield "| case | MiB predicted | measured | ratio | s per step predicted | measured | ratio |"
    yield "|---|---|---|---|---|---|---|"
    for case in cases:
        row = compare(case)
        yield (
            f"| {row['case']} | {row['predicted_mib']:.0f} | {row['measured_mib']:.0f} | "
            f"{row['memory']:.2f} | {row['predicted_s']:.3f} | {row['measured_s']:.3f} | "
            f"{row['time']:.2f} |"
        )
