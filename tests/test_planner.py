"""The planner: counts by hand, what grows with what, refusals, files, memory as measured."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

import gsdd_lib.devices as devices
import gsdd_lib.plans as plans
from gsdd_lib.budget import plan_budget
from gsdd_lib.config import (
    BudgetConfig,
    ConfigError,
    DataConfig,
    DistillConfig,
    EvalConfig,
    ExpertConfig,
)
from gsdd_lib.data import DataError, load_data
from gsdd_lib.data.described import DataDescription, describe
from gsdd_lib.devices import Device, available_bytes
from gsdd_lib.distill import distill
from gsdd_lib.experts import expert_path, train_experts
from gsdd_lib.fit import FitConfig, initial_gaussians
from gsdd_lib.network_cost import cost_of, count_parameters, counting_network
from gsdd_lib.passes import Bench, embed_synthetic, match_gradients, real_gradients
from gsdd_lib.plan_check import MIB, SMALL, median_mib, predicted, step_bytes
from gsdd_lib.planner import GPU_80, PlanError, fit_to_memory, main, plan, plan_file, planned_line
from gsdd_lib.plans import set_bytes
from gsdd_lib.step_cost import StepCost
from gsdd_lib.storage import save

# few images to judge by, so that the steps are what takes the most memory
CIFAR = dataclasses.replace(describe(DataConfig(dataset="cifar10")), validation=16)
SMALL_NET = {"network": "ConvNetD2", "width": 8}
JUDGES = EvalConfig(eval_network="ConvNetD2", eval_width=8, epochs=2, eval_batch=16)


def tiny(objective: str, **changes) -> DistillConfig:
    return DistillConfig.from_params(
        objective=objective, **{**SMALL_NET, "batch_real": 16, "syn_steps": 4, **changes}
    )


def gpu(config: DistillConfig, about: DataDescription = CIFAR, **more):
    return plan(about, BudgetConfig(gpc=more.pop("gpc", 10)), config, JUDGES, device=GPU_80, **more)


# ------------------------------------------------------------------------------ counts by hand


def test_a_product_by_hand():
    def work() -> None:
        a, b = torch.zeros(3, 4, device="meta"), torch.zeros(4, 5, device="meta")  # 12, 20 numbers
        c = a @ b  # 15 numbers
        del a, b
        torch.cat([c, c])  # 30 numbers beside 15

    cost = cost_of(work)
    assert cost.flops == 2 * 3 * 4 * 5 and cost.peak_bytes == 4 * max(12 + 20 + 15, 15 + 30)


def test_the_fields_network_by_hand():
    network = counting_network("ConvNetD3", (3, 32, 32), num_classes=10, width=128, kind="cuda")
    assert count_parameters(network) == 320_010
    with torch.no_grad():
        cost = cost_of(lambda: network.features(torch.zeros(2, 3, 32, 32, device="meta")))
    multiplied = 128 * 32**2 * 27 + 128 * 9 * 128 * (16**2 + 8**2)  # three convolutions
    assert cost.flops == 2 * 2 * multiplied


def test_a_blocks_activations_by_hand():
    """Forward of a block: image, convolution, norm (activated in place), a quarter pooled."""
    network = counting_network("ConvNetD1", (3, 8, 8), num_classes=2, width=16, kind="cuda")
    network.requires_grad_(False)
    images = torch.zeros(5, 3, 8, 8, device="meta", requires_grad=True)
    cost = cost_of(lambda: network.features(images))
    statistics = 2 * 5 * 16  # mean and deviation of each channel
    assert cost.peak_bytes == 4 * (5 * 16 * 64 * (1 + 1 + 1 / 4) + statistics)


def test_meta_counts_what_the_cpu_holds():
    """The same work on real tensors: piece by piece, second derivatives and all."""
    about = dataclasses.replace(CIFAR, num_classes=4)
    network = counting_network("ConvNetD3", (3, 32, 32), num_classes=4, width=64, kind="cpu")
    bench = Bench(network, ("ConvNetD3", 64), about, "color")
    for work in (embed_synthetic, real_gradients, match_gradients):
        counted = cost_of(lambda work=work: work(bench, 40)).peak_bytes
        real = bench.on("cpu")
        held = cost_of(lambda work=work, real=real: work(real, 40)).peak_bytes
        assert counted == pytest.approx(held, rel=0.05), work.__name__


def test_larger_batches_are_extrapolated_to_what_is_counted():
    budget = plan_budget(BudgetConfig(), channels=3, height=32, width=32)
    step = StepCost(CIFAR, budget, tiny("dc", width=64), JUDGES, "cpu")
    for name in ("embed_real", "embed_synthetic", "real_gradients", "match_gradients"):
        counted = step.passes[name]
        count = 4 * counted.piece
        exact = counted._cost(count).peak_bytes
        growth = counted.bytes(count) - counted.bytes(2 * counted.piece)
        found = counted._cost(2 * counted.piece).peak_bytes + growth / counted.heap
        assert found == pytest.approx(exact, rel=0.02), name


# ------------------------------------------------------------------------- what grows with what


@pytest.mark.parametrize("objective", ["dm", "dc", "tm"])
def test_memory_time_and_files_grow(objective: str):
    config = tiny(objective)
    least = gpu(config)
    wider = gpu(config.model_copy(update={"width": 16}))
    more = gpu(config, gpc=20)
    finer = gpu(config, dataclasses.replace(CIFAR, height=64, width=64))
    for made in (wider, more, finer):
        assert step_bytes(made) > step_bytes(least) and made.hours > least.hours
        assert made.seconds_per_step > least.seconds_per_step
    richer = plan(CIFAR, BudgetConfig(ipc=9, gpc=10), config, JUDGES, device=GPU_80)  # more points
    assert richer.peak_bytes > least.peak_bytes and richer.set_bytes > 8 * least.set_bytes
    assert richer.checkpoint_bytes > 7 * least.checkpoint_bytes


@pytest.mark.parametrize("objective", ["dm", "dc"])
def test_memory_grows_with_the_batch_and_the_micro_batch(objective: str):
    peaks = [
        step_bytes(gpu(tiny(objective, width=64, batch_real=batch, micro_batch=micro), gpc=32))
        for batch, micro in ((64, 1), (64, 8), (64, 64), (256, 256))
    ]
    assert peaks == sorted(peaks) and peaks[0] < 0.7 * peaks[2] < 0.7 * peaks[3]


def test_memory_grows_with_kept_steps_and_time_falls():
    made = [gpu(tiny("tm", keep_steps=kept, syn_steps=6)) for kept in range(7)]
    peaks, seconds = [step_bytes(m) for m in made], [m.seconds_per_step for m in made]
    assert peaks[1:] == sorted(peaks[1:]) and peaks[6] > 3 * peaks[0]
    assert seconds == sorted(seconds, reverse=True) and seconds[6] < seconds[0]


def test_time_of_an_assumed_device_by_hand():
    config = tiny("dm", steps=100, eval_every=50, select_networks=2)
    made = gpu(config)
    assert made.seconds_per_step == pytest.approx(made.flops_per_step / 10e12)
    networks = (1 + 2) * 2 + 5
    total = 100 * made.seconds_per_step + networks * made.evaluation_seconds
    assert made.hours == pytest.approx(total / 3600)
    assert "assumed 10 TFLOP/s, not measured" in str(made)


def test_a_plan_for_this_machine_is_timed():
    here = Device("this machine", available_bytes())
    about = describe(DataConfig(dataset="digits"))
    made = plan(about, BudgetConfig(ipc=4, gpc=2), tiny("dm"), JUDGES, device=here)
    assert 0 < made.seconds_per_step < 60 and "assumed" not in str(made) and made.fits


# ------------------------------------------------------------------------- fitting and refusing


@pytest.mark.parametrize("objective", ["dm", "dc", "tm"])
def test_the_largest_that_fits(objective: str):
    name = "keep_steps" if objective == "tm" else "micro_batch"
    config = tiny(objective, batch_real=64, width=64, syn_steps=8, batch_syn=20)
    ends = (2, 6) if objective == "tm" else (8, 64)
    low, high = (gpu(config.model_copy(update={name: n}), gpc=32) for n in ends)
    memory = (low.peak_bytes + high.peak_bytes) // 2
    device = dataclasses.replace(GPU_80, memory_bytes=int(memory / plans.USABLE))
    fitted, made = fit_to_memory(CIFAR, BudgetConfig(gpc=32), config, JUDGES, device=device)
    value = getattr(fitted, name)
    assert ends[0] <= value < ends[1] and made.fits and getattr(made, name) == value
    assert fitted == config.model_copy(update={name: value})
    larger = plan(
        CIFAR,
        BudgetConfig(gpc=32),
        config.model_copy(update={name: value + 1}),
        JUDGES,
        device=device,
    )
    assert not larger.fits and "DOES NOT FIT" in str(larger)


def test_plenty_of_memory_keeps_everything():
    config, _ = fit_to_memory(CIFAR, BudgetConfig(), tiny("tm"), JUDGES, device=GPU_80)
    assert config.keep_steps == config.syn_steps
    config, _ = fit_to_memory(CIFAR, BudgetConfig(), tiny("dc"), JUDGES, device=GPU_80)
    assert config.micro_batch == 16  # a class's real images; no more are ever together


def test_nothing_fits():
    device = Device("a watch", 10**7, 1.0, "cuda")
    said = r"^tm needs at least [\d.]+ GB \(student\) and a watch has 0.009 GB to give; lower batch"
    with pytest.raises(PlanError, match=said):
        fit_to_memory(CIFAR, BudgetConfig(), tiny("tm"), JUDGES, device=device)
    judges = JUDGES.model_copy(update={"eval_width": 256})
    with pytest.raises(PlanError, match=r"\(evaluation\).*lower eval_batch or eval_width"):
        fit_to_memory(CIFAR, BudgetConfig(), tiny("dm"), judges, device=device)


def test_a_network_that_the_images_do_not_fit():
    with pytest.raises(ConfigError, match="pixels"):
        gpu(tiny("dm", network="ConvNetD6"))


def test_memory_that_is_there(monkeypatch: pytest.MonkeyPatch):
    assert 10**7 < available_bytes() < 10**14
    monkeypatch.setattr(devices, "_number", {"limit": 5 * 10**7, "used": 10**7}.get)
    monkeypatch.setattr(devices, "_meminfo", lambda: 10**9)
    monkeypatch.setattr(
        devices, "Path", lambda name: "limit" if "max" in name or "limit" in name else "used"
    )
    assert available_bytes() == 4 * 10**7


# ---------------------------------------------------------------------------------------- files


def test_files_against_those_written(tmp_path: Path):
    data = load_data(DataConfig(dataset="digits", max_per_class=20))
    config = tiny("dc", steps=1, batch_real=4, outer_loop=2, select_networks=1)
    budget_config = BudgetConfig(ipc=40, gpc=5)
    budget = plan_budget(budget_config, channels=1, height=8, width=8)
    gaussians = initial_gaussians(data, budget, FitConfig(fit_steps=1), seed=0).gaussians
    list(distill(gaussians, data, config, JUDGES, seed=0, folder=tmp_path))
    made = plan(DataDescription.of(data), budget_config, config, JUDGES, device=GPU_80)
    written = (tmp_path / "checkpoint.pt").stat().st_size
    assert made.checkpoint_bytes == pytest.approx(written, rel=0.05)
    content = save(tmp_path / "set.safetensors", gaussians, data, {})
    header = int.from_bytes((tmp_path / "set.safetensors").read_bytes()[:8], "little") + 8
    assert content - header == made.set_bytes == set_bytes(budget, 10)


def test_experts_against_those_written(tmp_path: Path):
    data = load_data(DataConfig(dataset="digits", max_per_class=10))
    config = ExpertConfig(
        num_experts=1, train_epochs=6, expert_network="ConvNetD2", expert_width=32
    )
    list(train_experts(data, config, tmp_path, seed=0))
    about, wide = DataDescription.of(data), tiny("tm", width=32)
    budget = BudgetConfig(ipc=4, gpc=2)
    made = plan(about, budget, wide, JUDGES, expert_config=config, device=GPU_80)
    assert made.expert_bytes == pytest.approx(expert_path(tmp_path, 0).stat().st_size, rel=0.03)
    assert made.expert_hours > 0 and "experts" in str(made)
    assert plan(about, budget, wide, JUDGES, device=GPU_80).expert_bytes == 0


def test_described_data_is_what_is_loaded():
    for name in ("digits", "shapes"):
        config = DataConfig(dataset=name, max_per_class=20)
        found, wanted = describe(config), DataDescription.of(load_data(config))
        assert dataclasses.replace(found, train=0, validation=0) == dataclasses.replace(
            wanted, train=0, validation=0
        )
        assert found.train == pytest.approx(wanted.train, abs=10)
    with pytest.raises(DataError, match="known: digits"):
        describe(DataConfig(dataset="imagefolder"))


# ------------------------------------------------------------------------------ parameter files


@pytest.fixture
def case(tmp_path: Path) -> Path:
    path = tmp_path / "ipc1.yaml"
    lines = ["dataset: cifar10", "ipc: 1", "gpc: 30", "objective: tm", "batch_syn: 30", "zca: true"]
    lines += ["syn_steps: 8", "width: 16", "steps: 1000", "num_experts: 3", "seed: 1", "title: x"]
    path.write_text("\n".join(lines))
    return path


def test_a_parameter_file(case: Path):
    made = plan_file(case, GPU_80)
    assert (
        made.objective == "tm" and made.expert_bytes > 0 and made.set_bytes == 300 * (22 * 18 + 1)
    )
    line = planned_line(case)
    assert line == planned_line(case) and line == made.line()
    assert line.startswith("planned: ") and line.endswith("one 80 GB GPU (assumed 10 TFLOP/s)")


def test_the_command_says_what_is_wrong(case: Path, capsys: pytest.CaptureFixture):
    case.write_text("dataset: cifar11")
    with pytest.raises(SystemExit):
        main([str(case)])
    assert "did you mean 'cifar10'" in capsys.readouterr().err


# --------------------------------------------------------------------------- memory as measured


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.parametrize("case", SMALL, ids=[case.objective for case in SMALL])
def test_memory_is_predicted_within_a_fifth(case, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plans, "pass_seconds", lambda *_: 0.0)  # no need to time it
    monkeypatch.setattr(plans, "fixed_seconds", lambda *_: 0.0)
    assert step_bytes(predicted(case)) / MIB == pytest.approx(median_mib(case), rel=0.2)
