"""The outer loop: it lowers its loss, resumes bit for bit, and is not disturbed by evaluating."""

import math
import weakref
from pathlib import Path

import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import one_hot

import gsdd_lib.distillation.loop as module
from gsdd_lib.config import (
    BudgetConfig,
    CodecConfig,
    DataConfig,
    DistillConfig,
    EvalConfig,
    ExpertConfig,
    FitConfig,
)
from gsdd_lib.data import ImageData, load_data
from gsdd_lib.distillation.loop import distill
from gsdd_lib.distillation.losses import OURS, STEP_LOSSES
from gsdd_lib.distillation.soft_labels import SoftLabels
from gsdd_lib.distillation.state import DistillError, State, read_checkpoint
from gsdd_lib.evaluation.protocols import learned_eval_config
from gsdd_lib.parameterizations.base import Parameterization
from gsdd_lib.parameterizations.budget import plan_budget
from gsdd_lib.parameterizations.fit import initial_gaussians
from gsdd_lib.parameterizations.gaussian import MAX_POSITION, GaussianImages
from gsdd_lib.parameterizations.neural_field import NeuralFields
from gsdd_lib.parameterizations.pixel import random_real_pixels
from gsdd_lib.training.experts import Experts, train_experts

# Two blocks are what an 8x8 image has room for.
SMALL = {"network": "ConvNetD2", "width": 8, "batch_real": 16}
CONFIG = DistillConfig(
    steps=8, lr=0.01, eval_every=4, checkpoint_every=2, select_networks=2, **SMALL
)
CONFIGS = {
    "dm": CONFIG,
    "dm, trained networks": CONFIG.model_copy(
        update={"dm_networks": "trained", "dm_match": "kernel"}
    ),
    "dc": CONFIG.model_copy(update={"objective": "dc", "outer_loop": 3, "lr_schedule": "cosine"}),
    "tm": CONFIG.model_copy(
        update={"objective": "tm", "syn_steps": 3, "batch_syn": 8, "max_start_epoch": 2}
    ),
}
EVALUATION = EvalConfig(eval_network="ConvNetD2", eval_width=8, epochs=6)


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
    budget = plan_budget(BudgetConfig(ipc=4, gpc=2), data)
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
    rows = list(distill(gaussians, data, config, EVALUATION, seed=seed, **more))
    return gaussians, rows


def last(
    data: ImageData, config: DistillConfig, *, seed: int = 0, experts: Experts | None = None
) -> torch.Tensor:
    """The Gaussians after the last step, before the best row's take their place."""
    gaussians = make(data)
    for row in distill(gaussians, data, config, EVALUATION, seed=seed, experts=experts):
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
    state = State(gaussians, data, config, experts=experts)

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


def test_the_learned_learning_rate_is_in_the_history_and_evaluates(
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
    assert learned_eval_config(EVALUATION, rows).eval_lr == best["syn_lr"]


@pytest.mark.parametrize("objective", ["dm", "dc", "tm"])
def test_a_start_that_was_evaluated_alike_is_not_evaluated_again(
    data: ImageData, experts: Experts, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"steps": 1, "eval_every": 1}
    config = CONFIGS[objective].model_copy(update=own | {"syn_lr_init": EVALUATION.eval_lr})
    whole, rows = run(data, config=config, experts=experts)
    first, seen, original = run(data, config=CONFIGS["dm"])[1][0], [], module.evaluate
    monkeypatch.setattr(module, "evaluate", lambda *a, **k: seen.append(1) or original(*a, **k))
    again, shared = run(data, config=config, experts=experts, start=first)
    assert len(seen) == 1 and same(shared, rows) and torch.equal(whole.packed, again.packed)
    other = config.model_copy(update={"syn_lr_init": 0.5})  # tm evaluation its start with that rate
    run(data, config=other, experts=experts, start=first)
    assert len(seen) == (3 if objective == "tm" else 2)


def test_other_objectives_learn_no_learning_rate(whole_runs: dict[str, tuple]) -> None:
    for name in ("dm", "dc"):
        assert "syn_lr" not in whole_runs[name][1][0]
        assert learned_eval_config(EVALUATION, whole_runs[name][1]) == EVALUATION


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
@pytest.mark.parametrize("objective", OURS)
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
    rows = list(distill(pixels, data, CONFIG, EVALUATION, seed=0, folder=tmp_path))
    assert [row["step"] for row in rows] == [0, 4, 8]
    saved = only_checkpoint(tmp_path)["parameters"]["packed"]
    assert not torch.equal(saved, start)
    assert 0 <= saved.min() and saved.max() <= 1


def make_fields(data: ImageData) -> NeuralFields:
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(10).repeat_interleave(2)
    named = {"normalization": data.normalization, "layers": 1, "width": 4, "generator": rng}
    return NeuralFields(labels, 1, (8, 8), **named)


@pytest.mark.parametrize("stop_after", [1, 4])
@pytest.mark.parametrize("objective", CONFIGS)
@pytest.mark.parametrize("kind", ["pixels", "fields"])
def test_any_parameterization_resumes_to_the_same_bits(
    data: ImageData,
    experts: Experts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    objective: str,
    stop_after: int,
) -> None:
    config = CONFIGS[objective].model_copy(update={"steps": 5, "select_networks": 1})

    def whole(folder: Path | None) -> tuple[Parameterization, list[dict], list[dict]]:
        made = make_fields(data) if kind == "fields" else random_real_pixels(data, 2, seed=0)
        named = {"experts": experts, "folder": folder, "snapshots": []}
        rows = list(distill(made, data, config, EVALUATION, seed=0, **named))
        return made, rows, named["snapshots"]

    def cut(state, *arguments, **named):
        if state.step >= stop_after:
            raise OSError("power cut")
        return original(state, *arguments, **named)

    expected, rows, snapshots = whole(None)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="power cut"):
        original = module.take_step
        patch.setattr(module, "take_step", cut)
        whole(tmp_path)
    resumed, resumed_rows, resumed_snapshots = whole(tmp_path)
    assert same(rows, resumed_rows)
    names = [name for name, _ in expected.named_parameters()]
    for one, other in zip(snapshots, resumed_snapshots, strict=True):
        assert list(one) == list(other) == names
        assert all(torch.equal(one[name], other[name]) for name in names)
    assert any(not torch.equal(snapshots[0][name], snapshots[2][name]) for name in names)
    best = max(range(3), key=lambda row: rows[row]["mean"])
    shown = functional_call(resumed, snapshots[best], ())
    assert torch.equal(shown, expected.render()) and torch.equal(shown, resumed.render())


# Memory that runs out


MEMORY_ERRORS = {
    "dm": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "dc": lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: 12 bytes"),
    "tm": MemoryError,
}


@pytest.mark.parametrize("objective", OURS)
def test_a_step_is_repeated_with_less_memory(
    data: ImageData,
    experts: Experts,
    whole_runs: dict[str, tuple],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    objective: str,
) -> None:
    original, failed = STEP_LOSSES[objective], []

    def short(state, *arguments, **named):
        loss = original(state, *arguments, **named)
        if state.step == 4 and not failed:
            failed.append(weakref.ref(loss))
            loss.register_hook(fail)  # in the backward pass, when all else is done
        elif state.step == 4:
            assert failed[0]() is None  # with its graph
        return loss

    def fail(_):
        raise MEMORY_ERRORS[objective]()

    monkeypatch.setitem(STEP_LOSSES, objective, short)
    config = CONFIGS[objective].model_copy(update={"keep_steps": 3})
    gaussians, rows = run(data, config=config, experts=experts)
    less = "keep_steps=1" if objective == "tm" else "micro_batch=80"
    said = f"out of memory at step 5: going on with {less}"
    assert said in capsys.readouterr().out.splitlines()
    whole, whole_rows = whole_runs[objective]  # the same random numbers, the same gradient
    torch.testing.assert_close(gaussians.packed, whole.packed, rtol=1e-3, atol=2e-4)
    for one, other in zip(rows[1:], whole_rows[1:], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


@pytest.mark.parametrize("objective", OURS)
def test_where_memory_never_suffices(
    data: ImageData, experts: Experts, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    tried, few = [], {"micro_batch": 4, "keep_steps": 3}

    def short(state, *arguments, **named):
        tried.append((state.config.micro_batch, state.config.keep_steps))
        raise MEMORY_ERRORS[objective]()

    monkeypatch.setitem(STEP_LOSSES, objective, short)
    least = "keep_steps=0" if objective == "tm" else "micro_batch=1"
    sentence = f"Memory does not suffice for step 1 even with {least}: run again with a smaller .*"
    with pytest.raises(DistillError, match=sentence + "No checkpoint was written"):
        run(data, config=CONFIGS[objective].model_copy(update=few), experts=experts)
    assert tried == ([(4, 3), (4, 1), (4, 0)] if objective == "tm" else [(4, 3), (2, 3), (1, 3)])


def test_other_errors_are_not_taken_for_memory(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*arguments, **named):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setitem(STEP_LOSSES, "dm", wrong)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run(data)


# Updates after each class


def test_the_terms_of_the_classes_are_those_of_the_sum(data: ImageData) -> None:
    state = State(make(data), data, CONFIG)
    parameter = state.parameterization.packed
    losses = [STEP_LOSSES["dm"](state, data, seed=0, only=own) for own in range(10)]
    whole = STEP_LOSSES["dm"](state, data, seed=0)
    torch.testing.assert_close(torch.stack(losses).sum(), whole, rtol=1e-5, atol=0)
    one, other = (torch.autograd.grad(loss, parameter)[0] for loss in (sum(losses), whole))
    assert (one - other).norm() < 1e-4 * other.norm()
    (gradient,) = torch.autograd.grad(STEP_LOSSES["dm"](state, data, seed=0, only=3), parameter)
    moved = gradient.flatten(1).abs().sum(1) > 0
    assert torch.equal(moved, state.parameterization.labels == 3)


@pytest.mark.parametrize("soft", [False, True])
def test_adam_steps_after_each_class(data: ImageData, soft: bool) -> None:
    config = CONFIG.model_copy(update={"update_per_class": True, "boundary": 0.2})
    made = [make(data), make(data)]
    labels = [SoftLabels(4.4 * one_hot(made[0].labels, 10)) if soft else None for _ in made]
    pairs = zip(made, labels, strict=True)
    states = [State(each, data, config, soft_labels=own) for each, own in pairs]
    optimizers, total = states[1].optimizers, 0.0
    for own in range(10):  # by hand
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = STEP_LOSSES["dm"](states[1], data, seed=0, only=own)
        loss = loss + 0.1 * 0.2 * made[1].penalty()  # a tenth of the boundary loss for each class
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        made[1].constrain_()
        total += loss.item()
    loss = module.take_step(states[0], data, seed=0)
    assert loss.item() == pytest.approx(total, rel=1e-5) and states[0].step == 1
    torch.testing.assert_close(made[0].packed, made[1].packed, rtol=1e-5, atol=1e-6)
    assert (made[0].packed - make(data).packed).abs().max() > 2 * config.lr  # more than one step
    if soft:
        torch.testing.assert_close(labels[0].logits, labels[1].logits)


def test_updates_after_each_class_survive_a_cut(data: ImageData, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"update_per_class": True, "steps": 4, "eval_every": 2})
    whole, rows = run(data, config=config)
    cut = distill(make(data), data, config, EVALUATION, seed=0, folder=tmp_path)
    assert next(cut)["step"] == 0 and next(cut)["step"] == 2
    cut.close()
    resumed, resumed_rows = run(data, tmp_path, config)
    assert torch.equal(whole.packed, resumed.packed) and same(rows, resumed_rows)


# Learned labels


def run_labels(
    data: ImageData, folder: Path | None = None, config: DistillConfig = CONFIG, **named
) -> tuple[GaussianImages, SoftLabels, list[dict], list]:
    gaussians, snapshots = make(data), []
    soft = SoftLabels(4.4 * one_hot(gaussians.labels, 10))
    named |= {"folder": folder, "soft_labels": soft, "snapshots": snapshots}
    rows = list(distill(gaussians, data, config, EVALUATION, seed=0, **named))
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


def test_rounding_starts_where_it_should_and_survives_a_cut(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, original = CONFIG.model_copy(update={"round_from": 0.5}), module.take_step
    rounded, cut = [], {"after": math.inf}

    def watched(state, *arguments, **named):
        if state.step >= cut["after"]:
            raise OSError("power cut")
        loss = original(state, *arguments, **named)
        rounded.append(state.parameterization.codec is not None)
        return loss

    monkeypatch.setattr(module, "take_step", watched)
    whole = run_labels(data, config=config, codec=CodecConfig())
    assert rounded == [False] * 4 + [True] * 4
    for cut["after"] in (3, 7):  # before and after
        with pytest.raises(OSError, match="power cut"):
            run_labels(data, tmp_path, config, codec=CodecConfig())
    cut["after"] = math.inf
    resumed = run_labels(data, tmp_path, config, codec=CodecConfig())
    assert same(whole[2], resumed[2])
    for one, other in zip(whole[:2], resumed[:2], strict=True):
        state, again = one.state_dict(), other.state_dict()
        assert all(torch.equal(state[name], again[name]) for name in state)
        assert one.bits == other.bits
    assert torch.equal(whole[0].render(), resumed[0].render())
    assert torch.equal(whole[1].probabilities(), resumed[1].probabilities())


def test_a_row_before_rounding_is_never_the_best(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted = iter([90.0, 80.0, 10.0])  # steps 0, 4 and 8; rounding starts after 4
    monkeypatch.setattr(module, "evaluate", lambda *_, **__: [{"accuracy": next(scripted)}] * 2)
    config, snapshots = CONFIG.model_copy(update={"round_from": 0.5}), []
    gaussians, more = make(data), {"snapshots": snapshots, "codec": CodecConfig()}
    list(distill(gaussians, data, config, EVALUATION, seed=0, **more))
    assert torch.equal(gaussians.packed, snapshots[2]["packed"])
    assert gaussians.codec is not None


def test_a_codec_for_pixels_is_refused(data: ImageData) -> None:
    pixels = random_real_pixels(data, 1, seed=0)
    with pytest.raises(DistillError, match="a codec is for Gaussians, not for PixelImages"):
        list(distill(pixels, data, CONFIG, EVALUATION, seed=0, codec=CodecConfig()))


def test_the_labels_of_the_best_row_are_kept_and_evaluated(
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
    assert torch.equal(soft.logits, SoftLabels(4.4 * one_hot(make(data).labels, 10)).logits)


def test_labels_of_other_images_are_refused(data: ImageData) -> None:
    soft = SoftLabels(4.4 * one_hot(torch.arange(10), 10))
    with pytest.raises(DistillError, match=r"must be \[20, 10\].*got \[10, 10\]"):
        list(distill(make(data), data, CONFIG, EVALUATION, seed=0, soft_labels=soft))


def test_labels_of_other_classes_are_refused(data: ImageData) -> None:
    gaussians = make(data)
    gaussians.labels += 1
    with pytest.raises(DistillError, match="must lie in 0 to 9, got 1 to 10; number the classes"):
        list(distill(gaussians, data, CONFIG, EVALUATION, seed=0))
