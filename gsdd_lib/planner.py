"""Memory, time and files of a distillation before it starts: the planner's command.

    python -m gsdd_lib.planner params/paper/05_distill_cifar/ipc1.yaml
    python -m gsdd_lib.planner --check           # prediction against measurement, on this machine

A parameter file is planned for the memory of this machine, with measured times, and for one 80 GB
GPU, with an assumed throughput. What the file does not say is taken from the settings' defaults.
"""

import argparse
from pathlib import Path
from typing import Any

from gsdd_lib.budget import BudgetError
from gsdd_lib.config import (
    BudgetConfig,
    Config,
    ConfigError,
    DataConfig,
    DistillConfig,
    EvalConfig,
    ExpertConfig,
)
from gsdd_lib.data import DataError
from gsdd_lib.data.described import describe
from gsdd_lib.devices import GPU_80, Device, available_bytes, this_machine
from gsdd_lib.parameter_files import ParameterError, load_parameters
from gsdd_lib.plan_check import check_lines
from gsdd_lib.plans import Plan, PlanError, fit_to_memory, plan

__all__ = [
    "GPU_80",
    "Device",
    "Plan",
    "PlanError",
    "available_bytes",
    "fit_to_memory",
    "plan",
    "plan_file",
    "planned_line",
    "this_machine",
]


def plan_file(path: Path | str, device: Device | None = None) -> Plan:
    """The plan of a parameter file on ``device`` (default: this machine), as its settings are.

    Parameters that no settings model knows are left out. Experts are trained as the file says; for
    a name it lacks, as the matching networks are.

    Raises ParameterError, ConfigError, DataError or BudgetError, one sentence each.
    """
    return plan_parameters(load_parameters(Path(path)), device)


def plan_parameters(values: dict[str, Any], device: Device | None = None) -> Plan:
    """The same of the parameters themselves, flat by name."""
    config = _only(DistillConfig, values)
    experts = {"expert_network": config.network, "expert_width": config.width, **values}
    return plan(
        describe(_only(DataConfig, values)),
        _only(BudgetConfig, values),
        config,
        _only(EvalConfig, values),
        expert_config=_only(ExpertConfig, experts),
        device=device,
    )


def planned_line(path: Path | str, device: Device = GPU_80) -> str:
    """``planned: N hours, M GB on one 80 GB GPU (assumed X TFLOP/s)`` of a parameter file.

    The same text on every machine: memory and FLOPs are counted, the throughput is assumed.
    """
    return plan_file(path, device).line()


def _only(model: type[Config], values: dict[str, Any]) -> Config:
    return model.from_params(
        **{name: values[name] for name in model.model_fields if name in values}
    )


def main(arguments: list[str] | None = None) -> None:
    """Print the plans of parameter files, or the check."""
    parser = argparse.ArgumentParser(
        prog="python -m gsdd_lib.planner",
        description="Memory, time and files of a distillation before it starts.",
    )
    parser.add_argument("files", nargs="*", type=Path, help="parameter files")
    parser.add_argument("--check", action="store_true", help="predict and measure, on this machine")
    options = parser.parse_args(arguments)
    if not options.files and not options.check:
        parser.error("name a parameter file, or --check")
    for path in options.files:
        try:
            for device in (this_machine(), GPU_80):
                print(f"{path}: {plan_file(path, device)}\n", flush=True)
        except (ParameterError, ConfigError, DataError, BudgetError) as error:
            parser.error(str(error))
    if options.check:
        for line in check_lines():
            print(line, flush=True)


if __name__ == "__main__":
    main()
