"""The outer loop: it lowers its loss, resumes bit for bit, and is not disturbed by evaluating."""

from pathlib import Path

import pytest
import torch

import gsdd_lib.distill as module
from gsdd_lib.budget import plan_budget
from gsdd_lib.config import BudgetConfig, DataConfig, DistillConfig, EvalConfig, FitConfig
from gsdd_lib.data import ImageData, load_data
from gsdd_lib.data.sampling import class_members
from gsdd_lib.distill import DistillError, distill, dm_step_loss
from gsdd_lib.fit import initial_gaussians
from gsdd_lib.parameterizations.gaussian import MAX_POSITION, GaussianImages

# Two blocks are what an 8x8 image has room for.
SMALL = {"network": "ConvNetD2", "width": 8, "batch_real": 16}
CONFIG = DistillConfig(
    steps=8, lr=0.01, eval_every=4, checkpoint_every=2, select_networks=2, **SMALL
)
JUDGES = EvalConfig(eval_network="ConvNetD2", eval_width=8, epochs=6)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig(dataset="digits"))


@pytest.fixture(scope="module")
def start(data: ImageData) -> torch.Tensor:
    return make(data).packed.detach().clone()


def make(data: ImageData) -> GaussianImages:
    budget = plan_budget(BudgetConfig(ipc=4, gpc=2), channels=1, height=8, width=8)
    return initial_gaussians(data, budget, FitConfig(fit_steps=30), seed=0).gaussians


def run(data: ImageData, folder: Path | None = None, config: DistillConfig = CONFIG, seed: int = 0):
    gaussians = make(data)
    rows = list(distill(gaussians, data, config, JUDGES, seed=seed, folder=folder))
    return gaussians, rows


def last(data: ImageData, config: DistillConfig, seed: int = 0) -> torch.Tensor:
    """The Gaussians after the last step, before the best row's take their place."""
    gaussians = make(data)
    for row in distill(gaussians, data, config, JUDGES, seed=seed):
        if row["step"] == config.steps:
            return gaussians.packed.detach().clone()
    raise AssertionError("no row for the last step")


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


def test_distilling_lowers_the_objective(data: ImageData) -> None:
    config = DistillConfig(steps=60, lr=0.02, eval_every=60, select_networks=1, **SMALL)
    gaussians, members = make(data), class_members(data.train.labels)

    def objective() -> float:
        losses = [
            dm_step_loss(gaussians, data, config, members, seed=99, step=step) for step in range(8)
        ]
        return torch.stack(losses).mean().item()

    before = objective()
    distilled = last(data, config)
    with torch.no_grad():
        gaussians.packed.copy_(distilled)
    assert objective() < 0.8 * before


def test_equal_seeds_give_equal_bits_and_others_do_not(data: ImageData) -> None:
    assert torch.equal(last(data, CONFIG), last(data, CONFIG))
    assert not torch.equal(last(data, CONFIG), last(data, CONFIG, seed=1))


def test_evaluating_more_often_changes_nothing(data: ImageData) -> None:
    often = CONFIG.model_copy(update={"eval_every": 1})
    assert torch.equal(last(data, CONFIG), last(data, often))


def test_the_global_generator_is_left_alone(data: ImageData) -> None:
    before = torch.random.get_rng_state()
    run(data)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("stop_after", range(1, 8))
def test_a_run_cut_off_anywhere_resumes_to_the_same_bits(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    whole, rows = run(data)
    steps = 0

    def cut(*arguments, **named):
        nonlocal steps
        steps += 1
        if steps > stop_after:
            raise OSError("power cut")
        return original(*arguments, **named)

    original = module._step
    monkeypatch.setattr(module, "_step", cut)
    with pytest.raises(OSError, match="power cut"):
        run(data, tmp_path)
    monkeypatch.setattr(module, "_step", original)
    resumed, resumed_rows = run(data, tmp_path)
    assert torch.equal(whole.packed, resumed.packed) and same(rows, resumed_rows)


def test_a_finished_run_is_read_back_without_a_step(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, rows = run(data, tmp_path)
    monkeypatch.setattr(module, "_step", None)
    monkeypatch.setattr(module, "evaluate", None)
    again, again_rows = run(data, tmp_path)
    assert torch.equal(first.packed, again.packed) and same(rows, again_rows)


def test_a_checkpoint_of_other_settings_is_refused(data: ImageData, tmp_path: Path) -> None:
    run(data, tmp_path)
    with pytest.raises(DistillError, match="other settings; delete it"):
        run(data, tmp_path, CONFIG.model_copy(update={"lr": 0.5}))


def test_a_damaged_checkpoint_is_named(data: ImageData, tmp_path: Path) -> None:
    run(data, tmp_path)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DistillError, match=r"checkpoint\.pt is damaged"):
        run(data, tmp_path)


def test_a_loss_that_is_not_a_number_stops_the_run(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = module.dm_step_loss, 0

    def explode(*arguments, **named):
        nonlocal calls
        calls += 1
        return original(*arguments, **named) * (float("nan") if calls == 6 else 1)

    monkeypatch.setattr(module, "dm_step_loss", explode)
    with pytest.raises(DistillError, match=r"not a number at step 6.*checkpoint\.pt"):
        run(data, tmp_path)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 4 and torch.isfinite(saved["packed"]).all()


def test_ctrl_c_names_the_checkpoint(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = module._step, 0

    def interrupted(*arguments, **named):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return original(*arguments, **named)

    monkeypatch.setattr(module, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"step 3.*checkpoint\.pt; the same call goes on"):
        run(data, tmp_path)
