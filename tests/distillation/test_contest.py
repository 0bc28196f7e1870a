"""A contest is fair: equal storage, equal steps, the same networks; and anyone may enter."""

import pytest
import torch

from gsdd_lib.config import BudgetConfig, DataConfig, DistillConfig, EvalConfig, FitConfig
from gsdd_lib.data import load_data
from gsdd_lib.distillation import contest
from gsdd_lib.distillation.contest import STARTS, enter, judge
from gsdd_lib.evaluation import protocols
from gsdd_lib.parameterizations.budget import plan_budget

FIT = FitConfig(fit_steps=10)
CONFIG = DistillConfig(steps=2, eval_every=2, width=4, batch_real=8, select_networks=1)
EVAL = EvalConfig(epochs=2, eval_width=4, networks=2)


@pytest.fixture(scope="module")
def data():
    return load_data(DataConfig(dataset="shapes", max_per_class=40))


@pytest.fixture(scope="module")
def budget(data):
    return plan_budget(BudgetConfig(ipc=1, gpc=8), data)


@pytest.fixture(autouse=True)
def _short_fit_of_fields(monkeypatch):
    monkeypatch.setattr(contest, "FIELD_STEPS", 2)


@pytest.mark.parametrize("method", STARTS)
def test_every_method_spends_the_budget_and_no_more(data, budget, method):
    images = STARTS[method](data, budget, FIT, seed=0)
    bits = images.bits / data.num_classes
    assert 0.8 * budget.budget_bits_per_class < bits <= budget.budget_bits_per_class
    counts = torch.bincount(images.labels)
    assert len(counts) == data.num_classes and len(counts.unique()) == 1


@pytest.mark.parametrize("method", STARTS)
def test_every_method_is_distilled_by_the_same_loop(data, budget, method):
    entry = enter(method, STARTS[method](data, budget, FIT, seed=0), data, CONFIG, EVAL, seed=0)
    assert [row["step"] for row in entry.history] == [0, 2]
    assert len(entry.snapshots) == 2
    moved = [
        not torch.equal(after, entry.snapshots[0][name])
        for name, after in entry.snapshots[1].items()
    ]
    assert any(moved)
    assert torch.equal(entry.render(entry.start), entry.render(entry.snapshots[0]))


def test_a_method_of_ones_own_joins_by_a_line(data, budget, monkeypatch):
    monkeypatch.setitem(STARTS, "mine", STARTS["pixels fp32"])
    images = STARTS["mine"](data, budget, FIT, seed=0)
    entries = [enter("mine", images, data, CONFIG, EVAL, seed=0)]
    rows = judge(entries, data, EVAL, seed=1, initial=["mine"])
    assert [row["method"] for row in rows] == 2 * ["mine"] + 2 * ["mine, initial"]


def test_fewer_images_are_trained_on_for_as_many_steps(data, budget, monkeypatch):
    seen = {}

    def note(sets, data, config, *, seed):
        seen.update(config)
        return []

    monkeypatch.setattr(contest.baselines, "set_rows", note)
    few = STARTS["pixels fp32"](data, budget, FIT, seed=0)  # 8 images, one batch
    many = STARTS["gaussians"](data, budget, FIT, seed=0)  # 64 images, two batches
    config = EVAL.model_copy(update={"eval_batch": 32})
    zero = CONFIG.model_copy(update={"steps": 0})
    entries = [
        enter(str(n), each, data, zero, config, seed=0) for n, each in enumerate([many, few])
    ]
    judge(entries, data, config, seed=1)
    assert (seen["0"].epochs, seen["1"].epochs) == (2, 4)


def test_a_resumed_entry_goes_on_from_its_checkpoint(data, budget, tmp_path):
    def run():
        images = STARTS["pixels fp32"](data, budget, FIT, seed=0)
        return enter("pixels fp32", images, data, CONFIG, EVAL, seed=0, folder=tmp_path)

    first, again = run(), run()
    assert repr(first.history) == repr(again.history)
    assert torch.equal(first.render(), again.render())
    assert (tmp_path / "pixels_fp32").is_dir()


def test_protocols_do_not_train_again_what_was_judged(data, budget, monkeypatch):
    images = STARTS["pixels fp32"](data, budget, FIT, seed=0)
    entries = [enter("pixels fp32", images, data, CONFIG, EVAL, seed=0)]
    anew = contest.compare(entries, data, EVAL, seed=1)["pixels fp32"]
    rows, evaluated = judge(entries, data, EVAL, seed=1), []
    original = protocols.evaluate

    def counted(*arguments, **named):
        evaluated.append(named["seed"])
        return original(*arguments, **named)

    monkeypatch.setattr(protocols, "evaluate", counted)
    again = contest.compare(entries, data, EVAL, seed=1, rows=rows)["pixels fp32"]
    assert again.rows == anew.rows and len(anew.rows) == 2 and evaluated == [1]
