"""What a distillation will take, known before it starts: memory, time, files.

    about = describe(DataConfig(dataset="cifar10"))
    print(plan(about, BudgetConfig(gpc=30), DistillConfig(), EvalConfig(), device=GPU_80))
    config, made = fit_to_memory(about, BudgetConfig(gpc=30), config, EvalConfig())

No image is read. Memory and FLOPs are counted by :mod:`gsdd_lib.step_cost`; time is measured on
this machine, a pass at a time, or follows from the FLOPs and an assumed throughput.
"""

from dataclasses import dataclass, replace

from gsdd_lib.budget import Budget, plan_budget
from gsdd_lib.config import BudgetConfig, DistillConfig, EvalConfig, ExpertConfig
from gsdd_lib.data.described import DataDescription
from gsdd_lib.devices import GB, Device, this_machine
from gsdd_lib.experts import ExpertPlan
from gsdd_lib.pass_times import fixed_seconds, pass_seconds
from gsdd_lib.step_cost import NUMBER, StepCost

USABLE = 0.9  # of the memory that is there; the rest is left to kernels and to everybody else
CHECKPOINT_BYTES = 8192  # about what names, settings and history take in a checkpoint


class PlanError(ValueError):
    """A run would not fit; one sentence says what it needs, what there is and what to lower."""


@dataclass(frozen=True)
class Plan:
    """A distillation's cost.

    peak_bytes: at the most, beside the data set and the process itself (:mod:`gsdd_lib.step_cost`)
    phases: bytes in each part of a step, and in an evaluation
    hours: of all steps, of the history's evaluations and of the final one; not of fitting the start
    expert_hours, expert_bytes: of training what trajectory matching follows; 0 for the others
    """

    objective: str
    device: Device
    micro_batch: int
    keep_steps: int
    peak_bytes: int
    phases: dict[str, int]
    seconds_per_step: float
    evaluation_seconds: float
    hours: float
    flops_per_step: float
    set_bytes: int
    checkpoint_bytes: int
    expert_bytes: int
    expert_hours: float

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= USABLE * self.device.memory_bytes

    def line(self) -> str:
        """For a parameter file: hours and memory on a device whose throughput is assumed."""
        experts = f" + {self.expert_hours:.2g} hours of experts" if self.expert_bytes else ""
        tflops = self.device.tflops
        source = "measured here" if tflops is None else f"assumed {tflops:g} TFLOP/s"
        return (
            f"planned: {self.hours:.2g} hours{experts}, {self.peak_bytes / GB:.2g} GB on "
            f"{self.device.name} ({source})"
        )

    def __str__(self) -> str:
        most = max(self.phases, key=self.phases.get)
        how = f"keep_steps {self.keep_steps}" if self.objective == "tm" else ""
        how = how or f"micro_batch {self.micro_batch}"
        tflops = self.device.tflops
        source = "measured" if tflops is None else f"at an assumed {tflops:g} TFLOP/s, not measured"
        files = (
            f"distilled set {self.set_bytes:,} bytes, checkpoint {self.checkpoint_bytes:,} bytes"
        )
        if self.expert_bytes:
            files += f", experts {self.expert_bytes / GB:.2f} GB ({self.expert_hours:.2g} hours)"
        return (
            f"{self.objective} on {self.device.name}, {how}\n"
            f"memory: {self.peak_bytes / GB:.2f} GB ({most}) of "
            f"{self.device.memory_bytes / GB:.1f} GB{'' if self.fits else ': DOES NOT FIT'}\n"
            f"time: {self.seconds_per_step:.3g} s per step, {self.evaluation_seconds:.3g} s per "
            f"network evaluated, {self.hours:.3g} hours in all ({source}; "
            f"{self.flops_per_step / 1e12:.3g} TFLOP per step)\n"
            f"files: {files}"
        )


def plan(
    about: DataDescription,
    budget_config: BudgetConfig,
    config: DistillConfig,
    eval_config: EvalConfig,
    *,
    expert_config: ExpertConfig | None = None,
    device: Device | None = None,
) -> Plan:
    """What the distillation will take with the settings as they are; it may not fit.

    Args:
        about: the data set, described (:func:`gsdd_lib.data.described.describe`) or of one that is
            there (``DataDescription.of``).
        expert_config: how the experts of trajectory matching are trained.
        device: by default this machine, where passes are timed for a second or two.

    Raises BudgetError where the budget buys no Gaussian, ConfigError where a network does not fit.
    """
    device = device or this_machine()
    step, budget = _step_cost(about, budget_config, config, eval_config, device)
    return _plan(step, budget, config, expert_config, device)


def fit_to_memory(
    about: DataDescription,
    budget_config: BudgetConfig,
    config: DistillConfig,
    eval_config: EvalConfig,
    *,
    expert_config: ExpertConfig | None = None,
    device: Device | None = None,
) -> tuple[DistillConfig, Plan]:
    """``config`` with the largest ``micro_batch`` (dm, dc) or ``keep_steps`` (tm) that fits.

    Neither changes more than rounding. Raises :class:`PlanError` where not even the least fits.
    """
    device = device or this_machine()
    step, budget = _step_cost(about, budget_config, config, eval_config, device)
    name, least, most = "keep_steps", 0, config.syn_steps
    if config.objective == "dm":
        name, least, most = "micro_batch", 1, max(step.real, step.synthetic)
    elif config.objective == "dc":
        inner = min(config.inner_batch, step.synthetic) if config.outer_loop > 1 else 1
        name, least, most = "micro_batch", 1, max(step.real_per_class, budget.gpc, inner)
    chosen = {"micro_batch": config.micro_batch, "keep_steps": config.keep_steps}
    room = USABLE * device.memory_bytes

    def need(value: int) -> int:
        return step.peak_bytes(**{**chosen, name: value})

    if need(least) > room:
        raise PlanError(_refusal(step, {**chosen, name: least}, config, device))
    while least < most:  # need() does not fall as its argument grows
        middle = (least + most + 1) // 2
        least, most = (middle, most) if need(middle) <= room else (least, middle - 1)
    config = config.model_copy(update={name: least})
    return config, _plan(step, budget, config, expert_config, device)


def _refusal(step: StepCost, chosen: dict[str, int], config: DistillConfig, device: Device) -> str:
    phases = step.phases(**chosen)
    most = max(phases, key=phases.get)
    help_by = {
        "dm": "gpc, batch_real or width",
        "dc": "gpc, batch_real or width",
        "tm": "batch_syn, syn_steps or width",
    }
    lower = "eval_batch or eval_width" if most == "evaluation" else help_by[config.objective]
    return (
        f"{config.objective} needs at least {phases[most] / GB:.3g} GB ({most}) and {device.name} "
        f"has {USABLE * device.memory_bytes / GB:.3g} GB to give; lower {lower}"
    )


def _step_cost(
    about: DataDescription,
    budget_config: BudgetConfig,
    config: DistillConfig,
    eval_config: EvalConfig,
    device: Device,
) -> tuple[StepCost, Budget]:
    size = {"channels": about.channels, "height": about.height, "width": about.width}
    budget = plan_budget(budget_config, **size, num_classes=about.num_classes)
    return StepCost(about, budget, config, eval_config, device.kind), budget


def _plan(
    step: StepCost,
    budget: Budget,
    config: DistillConfig,
    expert_config: ExpertConfig | None,
    device: Device,
) -> Plan:
    chosen = {"micro_batch": config.micro_batch, "keep_steps": config.keep_steps}
    work, evaluation = step.work(**chosen), step.evaluation()
    if device.tflops is None:
        seconds = fixed_seconds(step, device.kind) + pass_seconds(step, work, device.kind)
        judging = pass_seconds(step, evaluation, device.kind)
    else:
        rate = 1e12 * device.tflops
        seconds, judging = step.flops(work) / rate, step.flops(evaluation) / rate
    rows = 1 + -(-config.steps // config.eval_every)
    networks = rows * config.select_networks + step.eval_config.networks
    phases = step.phases(**chosen)
    made = Plan(
        objective=config.objective,
        device=device,
        **chosen,
        peak_bytes=max(phases.values()),
        phases=phases,
        seconds_per_step=seconds,
        evaluation_seconds=judging,
        hours=(config.steps * seconds + networks * judging) / 3600,
        flops_per_step=step.flops(work),
        set_bytes=set_bytes(budget, step.about.num_classes),
        checkpoint_bytes=_checkpoint_bytes(step, config),
        expert_bytes=0,
        expert_hours=0.0,
    )
    if config.objective != "tm" or expert_config is None:
        return made
    return _with_experts(made, step, expert_config)


def set_bytes(budget: Budget, num_classes: int) -> int:
    """Of the distilled-set file, but for a header of one or two kilobytes."""
    labels = num_classes * budget.gpc * (1 if num_classes <= 256 else NUMBER)
    return budget.file_bytes(num_classes) + labels


def _checkpoint_bytes(step: StepCost, config: DistillConfig) -> int:
    """Gaussians, two moments, the best Gaussians, and a network on its way (dc)."""
    numbers = step.synthetic * step.budget.points * step.budget.numbers_per_gaussian
    network = step.network if config.objective == "dc" and config.outer_loop > 1 else 0
    return 4 * NUMBER * numbers + network + CHECKPOINT_BYTES


def _with_experts(made: Plan, step: StepCost, config: ExpertConfig) -> Plan:
    """Experts are networks like the matching ones; one of another width would be refused."""
    about = step.about
    work = {
        "real_gradients": config.num_experts * config.train_epochs * about.train,
        "test": config.num_experts * (config.train_epochs + 1) * about.validation,
    }
    if made.device.tflops is None:
        seconds = pass_seconds(step, work, made.device.kind)
    else:
        seconds = step.flops(work) / (1e12 * made.device.tflops)
    steps = -(-about.train // config.expert_batch) * config.train_epochs * config.num_experts
    files = ExpertPlan(config.num_experts, config.train_epochs + 1, step.parameters, steps)
    return replace(made, expert_bytes=files.total_bytes, expert_hours=seconds / 3600)
