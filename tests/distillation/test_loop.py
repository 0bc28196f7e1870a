"""The outer loop: it lowers its loss, resumes bit for bit, and is not disturbed by evaluating."""

import math
from pathlib import Path

import pytest
import torch

import gsdd_lib.distillation.loop as module
from gsdd_lib.config import (
    BudgetConfig,
    DataConfig,
    DistillConfig,
    EvalConfig,
    ExpertConfig,
    FitConfig,
)
from gsdd_lib.data import ImageData, load_data
from gsdd_lib.distillation.loop import distill
from gsdd_lib.distillation.losses import STEP_LOSSES
from gsdd_lib.distillation.soft_labels import SoftLabels, labels_of_classes
from gsdd_lib.distillation.state import DistillError, begin, read_checkpoint
from gsdd_lib.evaluation.protocols import learned_eval_config
from gsdd_lib.parameterizations.budget import plan_budget
from gsdd_lib.parameterizations.fit import initial_gaussians
from gsdd_lib.parameterizations.gaussian import MAX_POSITION, GaussianImages
from gsdd_lib.parameterizations.pixel import random_real_pixels
from gsdd_lib.training.experts import Experts, train_experts

# Two blocks are what an 8x8 image has room for.
SMALL = {"network": "ConvNetD2", "width": 8, "batch_real": 16}
CONFIG = DistillConfig(
    steps=8, lr=0.01, eval_every=4, checkpoint_every=2, select_networks=2, **SMALL
)
CONFIGS = {
    "dm": CONFIG,
    "dc": CONFIG.model_copy(update={"objective": "dc", "outer_loop": 3, "lr_schedule": "cosine"}),
    "tm": CONFIG.model_copy(
        update={"objective": "tm", "syn_steps": 3, "batch_syn": 8, "max_start_epoch": 2}
    ),
}
JUDGES = EvalConfig(eval_network="ConvNetD2", eval_width=8, epochs=6)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig(dataset="digits"))


@pytest.fixture(scope="module")
def start(data: ImageData) -> torch.Tensor:
    return make(data).packed.detach().clone()


@pytest.fixture(scope="module")
def experts(data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Experts:
    folder = tmp_path_factory.mktemp("experts")
    config = ExpertConfig(
        num_experts=2, train_epochs=3, expert_network="ConvNetD2", expert_width=8, expert_lr=0.05
    )
    list(train_experts(data, config, folder, seed=0))
    return Experts(folder)


def make(data: ImageData) -> GaussianImages:
    budget = plan_budget(BudgetConfig(ipc=4, gpc=2), channels=1, height=8, width=8)
    return initial_gaussians(data, budget, FitConfig(fit_steps=30), seed=0).gaussians


def run(
    data: ImageData,
    folder: Path | None = None,
    config: DistillConfig = CONFIG,
    *,
    seed: int = 0,
    experts: Experts | None = None,
    start: dict[str, float] | None = None,
):
    gaussians, more = make(data), {"folder": folder, "experts": experts, "start": start}
    rows = list(distill(gaussians, data, config, JUDGES, seed=seed, **more))
    return gaussians, rows


def last(
    data: ImageData, config: DistillConfig, *, seed: int = 0, experts: Experts | None = None
) -> torch.Tensor:
    """The Gaussians after the last step, before the best row's take their place."""
    gaussians = make(data)
    for row in distill(gaussians, data, config, JUDGES, seed=seed, experts=experts):
        if row["step"] == config.steps:
            return gaussians.packed.detach().clone()
    raise AssertionError("no row for the last step")


def only_checkpoint(folder: Path) -> dict:
    (path,) = folder.glob("checkpoint.*.pt")
    return read_checkpoint(path)


def same(one: list[dict], other: list[dict]) -> bool:
    return repr(one) == repr(other)  # NaN equals NaN, floats to the last bit


def test_history_has_a_row_per_evaluation(data: ImageData) -> None:
    gaussians, rows = run(data)
    assert [row["step"] for row in rows] == [0, 4, 8]
    assert set(rows[0]) >= {"step", "loss", "mean", "std", "n", "ci95"}
    assert all(row["n"] == 2 for row in rows)
    assert gaussians.means.abs().max() <= MAX_POSITION


def test_the_best_row_is_what_is_kept(data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def scripted(images, labels, data, config, *, seed, split):
        assert split == "validation"
        seen.append(images.clone())
        return [{"accuracy": [50.0, 70.0, 60.0][len(seen) - 1]}] * 2

    monkeypatch.setattr(module, "evaluate", scripted)
    gaussians, rows = run(data)
    assert [row["mean"] for row in rows] == [50.0, 70.0, 60.0]
    assert torch.equal(gaussians.render(), seen[1])


@pytest.mark.parametrize(
    "objective, steps, lr, factor",
    [("dm", 60, 0.02, 0.8), ("dc", 20, 0.02, 0.95), ("tm", 15, 0.02, 0.95)],
)
def test_distilling_lowers_the_objective(
    data: ImageData, experts: Experts, objective: str, steps: int, lr: float, factor: float
) -> None:
    settings = {"objective": objective, "steps": steps, "lr": lr, "max_start_epoch": 2, **SMALL}
    config = DistillConfig(
        eval_every=steps, select_networks=1, syn_lr_init=0.03, lr_lr=0.0, **settings
    )
    gaussians = make(data)
    state = begin(gaussians, data, config, experts=experts)

    def mean_loss() -> float:
        losses = []
        for state.step in range(8):
            losses.append(STEP_LOSSES[objective](state, data, seed=99))
        return torch.stack(losses).mean().item()

    before = mean_loss()
    distilled = last(data, config, experts=experts)
    with torch.no_grad():
        gaussians.packed.copy_(distilled)
    assert mean_loss() < factor * before


def test_equal_seeds_give_equal_bits_and_others_do_not(data: ImageData) -> None:
    assert torch.equal(last(data, CONFIG), last(data, CONFIG))
    assert not torch.equal(last(data, CONFIG), last(data, CONFIG, seed=1))


@pytest.mark.parametrize("objective", CONFIGS)
def test_evaluating_more_often_changes_nothing(
    data: ImageData, experts: Experts, objective: str
) -> None:
    config = CONFIGS[objective]
    often = config.model_copy(update={"eval_every": 1})
    assert torch.equal(*[last(data, each, experts=experts) for each in (config, often)])


@pytest.mark.parametrize("objective", CONFIGS)
def test_the_global_generator_is_left_alone(
    data: ImageData, experts: Experts, objective: str
) -> None:
    before = torch.random.get_rng_state()
    run(data, config=CONFIGS[objective], experts=experts)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.fixture(scope="module")
def whole_runs(data: ImageData, experts: Experts) -> dict[str, tuple]:
    """Of each objective the Gaussians and the history of a run that nothing cut off."""
    return {name: run(data, config=config, experts=experts) for name, config in CONFIGS.items()}


@pytest.mark.parametrize("stop_after", range(1, 8))
@pytest.mark.parametrize("objective", CONFIGS)
def test_a_run_cut_off_anywhere_resumes_to_the_same_bits(
    data: ImageData,
    experts: Experts,
    whole_runs: dict[str, tuple],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    objective: str,
    stop_after: int,
) -> None:
    steps = 0

    def cut(*arguments, **named):
        nonlocal steps
        steps += 1
        if steps > stop_after:
            raise OSError("power cut")
        return original(*arguments, **named)

    config, original = CONFIGS[objective], module.take_step
    monkeypatch.setattr(module, "take_step", cut)
    with pytest.raises(OSError, match="power cut"):
        run(data, tmp_path, config, experts=experts)
    monkeypatch.setattr(module, "take_step", original)
    resumed, resumed_rows = run(data, tmp_path, config, experts=experts)
    whole, rows = whole_runs[objective]
    assert torch.equal(whole.packed, resumed.packed) and same(rows, resumed_rows)


def test_the_learned_learning_rate_is_in_the_history_and_judges(
    data: ImageData, experts: Experts, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, original = [], module.evaluate

    def watched(images, labels, data, config, **named):
        seen.append(config.eval_lr)
        return original(images, labels, data, config, **named)

    monkeypatch.setattr(module, "evaluate", watched)
    config = CONFIGS["tm"].model_copy(update={"lr_lr": 10.0})
    _, rows = run(data, config=config, experts=experts)
    rates = [row["syn_lr"] for row in rows]
    assert seen == rates and rates[0] == pytest.approx(config.syn_lr_init) and rates[2] != rates[0]
    best = max(rows, key=lambda row: row["mean"])
    assert learned_eval_config(JUDGES, rows).eval_lr == best["syn_lr"]


@pytest.mark.parametrize("objective", ["dm", "dc", "tm"])
def test_a_start_that_was_judged_alike_is_not_judged_again(
    data: ImageData, experts: Experts, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"steps": 1, "eval_every": 1}
    config = CONFIGS[objective].model_copy(update=own | {"syn_lr_init": JUDGES.eval_lr})
    whole, rows = run(data, config=config, experts=experts)
    first, seen, original = run(data, config=CONFIGS["dm"])[1][0], [], module.evaluate
    monkeypatch.setattr(module, "evaluate", lambda *a, **k: seen.append(1) or original(*a, **k))
    again, shared = run(data, config=config, experts=experts, start=first)
    assert len(seen) == 1 and same(shared, rows) and torch.equal(whole.packed, again.packed)
    other = config.model_copy(update={"syn_lr_init": 0.5})  # tm judges its start with that rate
    run(data, config=other, experts=experts, start=first)
    assert len(seen) == (3 if objective == "tm" else 2)


def test_other_objectives_learn_no_learning_rate(whole_runs: dict[str, tuple]) -> None:
    for name in ("dm", "dc"):
        assert "syn_lr" not in whole_runs[name][1][0]
        assert learned_eval_config(JUDGES, whole_runs[name][1]) == JUDGES


def test_a_finished_run_is_read_back_without_a_step(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, rows = run(data, tmp_path)
    monkeypatch.setattr(module, "take_step", None)
    monkeypatch.setattr(module, "evaluate", None)
    again, again_rows = run(data, tmp_path)
    assert torch.equal(first.packed, again.packed) and same(rows, again_rows)


def test_a_run_goes_on_with_less_memory(data: ImageData, tmp_path: Path) -> None:
    first, _ = run(data, tmp_path)
    less = CONFIG.model_copy(update={"micro_batch": 3, "keep_steps": 1})
    again, _ = run(data, tmp_path, less)
    assert torch.equal(first.packed, again.packed)


@pytest.mark.parametrize("broken", ["loss", "gradient"])
@pytest.mark.parametrize("objective", CONFIGS)
def test_a_non_finite_loss_stops_the_run(
    data: ImageData,
    experts: Experts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    objective: str,
    broken: str,
) -> None:
    original = STEP_LOSSES[objective]

    def explode(state, *arguments, **named):
        loss = original(state, *arguments, **named)
        if state.step < 5:
            return loss
        # the root of 0 is finite and its derivative is not
        packed = state.parameterization.packed
        return loss * math.nan if broken == "loss" else loss + (packed * 0).sum().sqrt()

    monkeypatch.setitem(STEP_LOSSES, objective, explode)
    sentence = r"non-finite at step 6: run again with a lower lr \(now 0.01\).*which starts anew\. "
    sentence += r"The checkpoint of step 4 is kept: .*checkpoint\.\w{8}\.pt"
    with pytest.raises(DistillError, match=sentence):
        run(data, tmp_path, CONFIGS[objective], experts=experts)
    saved = only_checkpoint(tmp_path)
    assert saved["step"] == 4 and torch.isfinite(saved["parameters"]["packed"]).all()
    monkeypatch.undo()  # the advice is true
    lower = CONFIGS[objective].model_copy(update={"lr": 0.001, "steps": 1})
    assert run(data, tmp_path, lower, experts=experts)[1][-1]["step"] == 1


def test_a_student_gone_astray_does_not_end_the_run(data: ImageData, experts: Experts) -> None:
    settings = {"syn_lr_init": 3.0, "syn_steps": 6}
    config = CONFIGS["tm"].model_copy(update=settings)
    _, rows = run(data, config=config, experts=experts)
    assert rows[1]["loss"] > 10  # far beyond where it started
    rates = [row["syn_lr"] for row in rows]
    assert 1 > rates[1] / rates[0] > math.exp(-4 * 2 * 0.1)  # four steps of lr_lr, momentum 1/2


def test_a_learned_learning_rate_that_explodes_names_the_checkpoint(
    data: ImageData, experts: Experts, tmp_path: Path
) -> None:
    config = CONFIGS["tm"].model_copy(update={"lr_lr": 1e4, "eval_every": 1, "checkpoint_every": 1})
    with pytest.raises(DistillError, match=r"non-finite .* is kept: .*checkpoint\.\w{8}\.pt"):
        run(data, tmp_path, config, experts=experts)


def test_ctrl_c_names_the_checkpoint(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = module.take_step, 0

    def interrupted(*arguments, **named):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return original(*arguments, **named)

    monkeypatch.setattr(module, "take_step", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"step 3\..*step 2 is kept.*The same call goes on"):
        run(data, tmp_path)


def test_pixels_are_distilled_by_the_same_loop(data: ImageData, tmp_path: Path) -> None:
    pixels = random_real_pixels(data, 2, seed=0)
    start = pixels.packed.detach().clone()
    rows = list(distill(pixels, data, CONFIG, JUDGES, seed=0, folder=tmp_path))
    assert [row["step"] for row in rows] == [0, 4, 8]
    saved = only_checkpoint(tmp_path)["parameters"]["packed"]
    assert not torch.equal(saved, start)
    assert 0 <= saved.min() and saved.max() <= 1


# Learned labels


def run_labels(
    data: ImageData, folder: Path | None = None, config: DistillConfig = CONFIG, **named
) -> tuple[GaussianImages, SoftLabels, list[dict], list]:
    gaussians, snapshots = make(data), []
    soft = labels_of_classes(gaussians.labels, data.num_classes)
    named |= {"folder": folder, "soft_labels": soft, "snapshots": snapshots}
    rows = list(distill(gaussians, data, config, JUDGES, seed=0, **named))
    return gaussians, soft, rows, snapshots


@pytest.mark.parametrize("objective", CONFIGS)
def test_learned_labels_survive_a_cut(
    data: ImageData,
    experts: Experts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    objective: str,
) -> None:
    config, original, steps = CONFIGS[objective], module.take_step, 0

    def cut(*arguments, **named):
        nonlocal steps
        steps += 1
        if steps > 5:
            raise OSError("power cut")
        return original(*arguments, **named)

    whole = run_labels(data, config=config, experts=experts)
    monkeypatch.setattr(module, "take_step", cut)
    with pytest.raises(OSError, match="power cut"):
        run_labels(data, tmp_path, config, experts=experts)
    monkeypatch.setattr(module, "take_step", original)
    resumed = run_labels(data, tmp_path, config, experts=experts)
    assert torch.equal(whole[0].packed, resumed[0].packed)
    assert torch.equal(whole[1].logits, resumed[1].logits) and same(whole[2], resumed[2])
    for one, other in zip(whole[3], resumed[3], strict=True):
        assert list(one) == ["packed", "label_logits"]
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(whole[3][0]["label_logits"], whole[3][2]["label_logits"])


def test_the_labels_of_the_best_row_are_kept_and_judged(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def scripted(images, labels, data, config, *, seed, split):
        seen.append((images.clone(), labels.clone()))
        return [{"accuracy": [50.0, 70.0, 60.0][len(seen) - 1]}] * 2

    monkeypatch.setattr(module, "evaluate", scripted)
    gaussians, soft, _, _ = run_labels(data)
    assert torch.equal(gaussians.render(), seen[1][0])
    assert torch.equal(soft.probabilities(), seen[1][1])
    assert not torch.equal(seen[1][1], seen[0][1]) and not torch.equal(seen[1][1], seen[2][1])


def test_fixed_labels_stay_as_they_began(data: ImageData) -> None:
    fixed = CONFIG.model_copy(update={"label_lr": 0.0})
    _, soft, _, _ = run_labels(data, config=fixed)
    assert torch.equal(soft.logits, labels_of_classes(make(data).labels, 10).logits)


def test_labels_of_other_images_are_refused(data: ImageData) -> None:
    soft = labels_of_classes(torch.arange(10), 10)
    with pytest.raises(ValueError, match=r"must be \[20, 10\].*got \[10, 10\]"):
        list(distill(make(data), data, CONFIG, JUDGES, seed=0, soft_labels=soft))
