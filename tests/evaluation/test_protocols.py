"""Both protocols on scripted accuracies and on a real run; the snapshots they are read from."""

from dataclasses import replace

import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import one_hot

from gsdd_lib.config import BudgetConfig, DataConfig, DistillConfig, EvalConfig, FitConfig
from gsdd_lib.data import load_data
from gsdd_lib.data.dataset import class_members
from gsdd_lib.distillation.loop import distill
from gsdd_lib.distillation.soft_labels import SoftLabels
from gsdd_lib.evaluation import protocols as module
from gsdd_lib.evaluation.baselines import set_rows
from gsdd_lib.evaluation.evaluate import evaluate, summarize
from gsdd_lib.evaluation.protocols import (
    SETTINGS,
    compare_protocols,
    settings_for,
)
from gsdd_lib.parameterizations.budget import plan_budget
from gsdd_lib.parameterizations.fit import initial_gaussians

JUDGES = EvalConfig(networks=2, eval_network="ConvNetD2", eval_width=8, epochs=4)
RUN = DistillConfig(
    steps=4, eval_every=2, network="ConvNetD2", width=8, batch_real=8, select_networks=1
)


class Untouched:
    def __len__(self):
        return 1  # data sets check that no split is empty

    def __getattr__(self, name):
        raise AssertionError(f"the validation split was read: {name}")


def rendered_by(gaussians):
    """A function of a snapshot that gives the images of ``gaussians`` with its numbers."""
    return lambda snapshot: functional_call(gaussians, snapshot, ())


@pytest.fixture(scope="module")
def data():
    return load_data(DataConfig(dataset="digits"))


def start(data):
    budget = plan_budget(BudgetConfig(ipc=4, gpc=2), data)
    return initial_gaussians(data, budget, FitConfig(fit_steps=20), seed=0).gaussians


def scripted(monkeypatch, tests, validation, protocol="clean", known=None):
    """Protocols of a run whose row i has these accuracies; and the order of the test reads."""
    reads = []

    def judge(images, labels, data, config, *, seed, split):
        reads.append(int(images))
        assert split == "test"
        return [{"accuracy": tests[int(images)]}]

    monkeypatch.setattr(module, "evaluate", judge)
    history = [{"step": 10 * row, "mean": value} for row, value in enumerate(validation)]
    snapshots = [torch.tensor(row) for row in range(len(tests))]
    config = EvalConfig(protocol=protocol)
    told = {"seed": 0, "known": known}
    return compare_protocols(history, snapshots, torch.abs, None, None, config, **told), reads


def test_clean_is_chosen_on_validation_and_paper_on_test(monkeypatch):
    result, reads = scripted(monkeypatch, tests=[70.0, 72.0, 75.0], validation=[60, 80, 79])
    assert (result.clean["step"], result.clean["mean"]) == (10, 72)
    assert (result.paper["step"], result.paper["mean"]) == (20, 75)
    assert result.reported is result.clean
    assert reads == [1, 0, 2]  # the chosen row first, and every row once
    assert [row["validation"] for row in result.rows] == [60, 80, 79]


def test_the_protocol_asked_for_is_reported(monkeypatch):
    result, _ = scripted(monkeypatch, [70.0, 72.0, 75.0], [60, 80, 79], protocol="paper")
    assert result.reported is result.paper


def test_one_row_where_the_choices_agree(monkeypatch):
    result, _ = scripted(monkeypatch, tests=[70.0, 75.0, 75.0], validation=[60, 79, 80])
    assert result.paper == result.clean and result.clean["step"] == 20


def test_what_is_known_is_not_read_again(monkeypatch):
    known = {0: {"mean": 76.0, "std": 1.0, "n": 3, "ci95": 2.5}}
    result, reads = scripted(monkeypatch, [70.0, 72.0, 75.0], [60, 80, 79], known=known)
    assert reads == [1, 2] and result.paper["step"] == 0 and result.paper["mean"] == 76


def test_rows_without_their_snapshots_are_refused(data):
    with pytest.raises(ValueError, match="1 history rows and 0 snapshots.*pass snapshots="):
        compare_protocols([{"step": 0, "mean": 1.0}], [], None, None, data, JUDGES, seed=0)


def test_a_real_run_keeps_a_snapshot_per_row(data):
    gaussians, snapshots = start(data), []
    first = gaussians.packed.detach().clone()
    rows = list(distill(gaussians, data, RUN, JUDGES, seed=0, snapshots=snapshots))
    assert len(rows) == len(snapshots) == 3 and torch.equal(snapshots[0]["packed"], first)
    assert not torch.equal(snapshots[1]["packed"], snapshots[2]["packed"])
    blind = replace(data, validation=Untouched())
    result = compare_protocols(
        rows, snapshots, rendered_by(gaussians), gaussians.labels, blind, JUDGES, seed=5
    )
    best = max(rows, key=lambda row: row["mean"])
    assert result.clean["step"] == best["step"]
    assert result.paper["mean"] >= result.clean["mean"]
    with torch.no_grad():  # what distill leaves behind is the clean choice
        images = gaussians.render()
    alone = summarize(evaluate(images, gaussians.labels, blind, JUDGES, seed=5, split="test"))
    assert alone["mean"] == result.clean["mean"]


def test_snapshots_change_nothing_and_survive_a_resumption(data, tmp_path):
    plain = start(data)
    list(distill(plain, data, RUN, JUDGES, seed=0))
    whole, again = [], []
    kept = start(data)
    list(distill(kept, data, RUN, JUDGES, seed=0, folder=tmp_path, snapshots=whole))
    assert torch.equal(plain.packed, kept.packed)
    list(distill(start(data), data, RUN, JUDGES, seed=0, folder=tmp_path, snapshots=again))
    assert len(again) == 3
    assert all(torch.equal(a["packed"], b["packed"]) for a, b in zip(whole, again, strict=True))


def test_snapshots_asked_for_afterwards_start_anew(data, tmp_path, capsys):
    list(distill(start(data), data, RUN, JUDGES, seed=0, folder=tmp_path))
    capsys.readouterr()
    snapshots = []
    list(distill(start(data), data, RUN, JUDGES, seed=0, folder=tmp_path, snapshots=snapshots))
    assert len(snapshots) == 3
    assert "settings changed (snapshots False -> True)" in capsys.readouterr().out


def test_learned_labels_are_those_of_the_row(data):
    gaussians, snapshots = start(data), []
    soft = SoftLabels(4.4 * one_hot(gaussians.labels, 10))
    named = {"snapshots": snapshots, "soft_labels": soft}
    rows = list(distill(gaussians, data, RUN, JUDGES, seed=0, **named))
    result = compare_protocols(
        rows,
        snapshots,
        rendered_by(gaussians),
        lambda snapshot: SoftLabels(snapshot["label_logits"]).probabilities(),
        data,
        JUDGES,
        seed=5,
    )
    with torch.no_grad():  # what distill leaves behind is the clean choice
        images, labels = gaussians.render(), soft.probabilities()
    alone = summarize(evaluate(images, labels, data, JUDGES, seed=5, split="test"))
    assert alone["mean"] == result.clean["mean"]


def test_a_row_with_a_learned_rate_is_judged_with_it(monkeypatch):
    rates = {}

    def judge(images, labels, data, config, *, seed, split):
        rates[int(images)] = config.eval_lr
        return [{"accuracy": 50.0}]

    monkeypatch.setattr(module, "evaluate", judge)
    history = [{"step": 0, "mean": 1.0, "syn_lr": 0.02}, {"step": 9, "mean": 2.0, "syn_lr": 0.03}]
    snapshots = [torch.tensor(0), torch.tensor(1)]
    compare_protocols(history, snapshots, torch.abs, None, None, EvalConfig(), seed=0)
    assert rates == {0: 0.02, 1: 0.03}


# ------------------------------------------------------------------------------ other architectures


def test_the_papers_rates():
    rates = {name: settings_for(name, JUDGES).eval_lr for name in SETTINGS}
    assert rates == {"AlexNet": 1e-3, "VGG11": 1e-2, "ResNet18": 1e-2, "ViT": 5e-5}
    assert {settings_for(name, JUDGES).eval_schedule for name in SETTINGS} == {"cosine"}
    assert settings_for("ViT", JUDGES).eval_weight_decay == 0.05


def test_a_convnet_keeps_its_settings_and_its_choices_stay_with_it():
    config = EvalConfig(eval_norm="batch", eval_lr=0.3)
    assert settings_for("ConvNetD4", config) == config.model_copy(
        update={"eval_network": "ConvNetD4"}
    )
    assert settings_for("VGG11", config).eval_norm == "instance"


def test_every_architecture_is_evaluated_with_its_own_settings(data):
    index = torch.cat([members[:1] for members in class_members(data.train.labels)])
    images, labels = data.normalize(data.train.images[index]), data.train.labels[index]
    config = JUDGES.model_copy(update={"networks": 1, "epochs": 2})
    configs = {name: settings_for(name, config) for name in ("ConvNetD1", "AlexNet")}
    sets = dict.fromkeys(configs, (images, labels))
    rows = set_rows(sets, data, configs, seed=0, split="validation")
    assert [row["method"] for row in rows] == list(configs)
    for row in rows:
        (alone,) = evaluate(images, labels, data, configs[row["method"]], seed=0)
        assert (row["accuracy"], row["train_loss"]) == (alone["accuracy"], alone["train_loss"])
