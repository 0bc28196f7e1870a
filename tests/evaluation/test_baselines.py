"""Rivals: real images at equal storage, the whole data set, and differences network by network."""

from types import SimpleNamespace

import pytest
import torch

from gsdd_lib.config import BudgetConfig, DataConfig, EvalConfig
from gsdd_lib.data import load_data
from gsdd_lib.data.dataset import class_members
from gsdd_lib.evaluation import baselines
from gsdd_lib.evaluation.baselines import REAL, RealImages
from gsdd_lib.evaluation.evaluate import evaluate
from gsdd_lib.parameterizations.budget import plan_budget
from gsdd_lib.parameterizations.pixel import BITS

CONFIG = EvalConfig(networks=2, eval_network="ConvNetD1", eval_width=4, epochs=2)


@pytest.fixture(scope="module")
def data():
    return load_data(DataConfig(dataset="digits"))


@pytest.fixture(scope="module")
def budget():
    return plan_budget(BudgetConfig(ipc=1, gpc=2), load_data(DataConfig()))


def test_rows_are_those_of_evaluate_with_the_name_of_their_set(data, capsys):
    images, labels = RealImages().choose(data, 2, seed=0)
    slow = CONFIG.model_copy(update={"eval_lr": 1e-3})
    rows = baselines.set_rows(
        {"a": (images, labels), "b": (images, labels)}, data, {"a": CONFIG, "b": slow}, seed=3
    )
    assert [row["method"] for row in rows] == ["a", "a", "b", "b"]
    expected = evaluate(images, labels, data, CONFIG, seed=3, split="test")
    assert [row["accuracy"] for row in rows[:2]] == [row["accuracy"] for row in expected]
    assert [row["train_loss"] for row in rows[:2]] != [row["train_loss"] for row in rows[2:]]
    assert capsys.readouterr().out.startswith("a: ")


def test_every_network_has_real_images_of_its_own(data, budget):
    rows = baselines.real_rows("random real", data, budget, CONFIG, seed=5)
    one = CONFIG.model_copy(update={"networks": 1})
    for index, row in enumerate(rows):
        images, labels = RealImages().choose(data, 4, seed=5 + index)
        (expected,) = evaluate(images, labels, data, one, seed=5 + index, split="test")
        assert row["accuracy"] == expected["accuracy"] and row["network_index"] == index
        assert row["method"] == "random real"
    first, second = (RealImages().choose(data, 4, seed=5 + index)[0] for index in range(2))
    assert not torch.equal(first, second)


# ------------------------------------------------------------------------- what is stored, and cost


@pytest.mark.parametrize(("name", "expected"), list(zip(REAL, (4, 8, 32, 4), strict=True)))
def test_equal_storage(budget, name, expected):
    """One fp32 image of 8x8 is 2,048 bits: 4 images of bytes, 8 of 4 bits, 32 of 4x4 and 4 bits."""
    assert REAL[name].per_class(budget) == expected
    bits = expected * (8 // REAL[name].factor) ** 2 * BITS[REAL[name].storage]
    assert bits == budget.budget_bits_per_class == 2048


def test_random_images_of_bytes_are_training_images_as_they_are(data):
    images, labels = RealImages().choose(data, 3, seed=0)
    assert labels.bincount().tolist() == [3] * 10
    real = data.normalize(data.train.images)
    for image, label in zip(images, labels, strict=True):
        same = (real - image).abs().flatten(1).amax(1) < 1e-5
        assert same.any() and (data.train.labels[same] == label).all()


def test_four_bits_are_sixteen_levels_at_half_the_size(data):
    images, _ = RealImages(storage="uint4").choose(data, 3, seed=0)
    levels = data.unit(images) * 15
    assert (levels - levels.round()).abs().max() < 1e-4 and levels.round().unique().numel() == 16
    whole, _ = RealImages().choose(data, 3, seed=0)
    assert (data.unit(images) - data.unit(whole)).abs().max() <= 0.5 / 15 + 1e-6
    small, _ = RealImages(storage="uint4", factor=2).choose(data, 3, seed=0)
    assert small.shape == whole.shape and torch.linalg.matrix_rank(small[0, 0]) <= 5
    error = (data.unit(small) - data.unit(whole)).square().mean()
    assert 0 < error < 0.5 * data.unit(whole).var()


def test_a_coreset_represents_its_class_better_than_chance(data):
    def distance(rival, seed):
        """Mean distance of a training image to the nearest chosen one of its class."""
        images, labels = rival.choose(data, 4, seed=seed)
        parts = [data.normalize(data.train.images[m]).flatten(1) for m in members]
        chosen = [images[labels == label].flatten(1) for label in range(10)]
        return torch.cat(
            [torch.cdist(a, b).amin(1) for a, b in zip(parts, chosen, strict=True)]
        ).mean()

    members = class_members(data.train.labels)
    assert RealImages(coreset=True).choose(data, 4, seed=0)[1].bincount().tolist() == [4] * 10
    random = min(distance(RealImages(), seed) for seed in range(3))
    assert distance(RealImages(coreset=True), 0) < 0.97 * random


@pytest.mark.parametrize("coreset", [False, True])
def test_a_class_of_few_images_gives_all(data, coreset):
    few = load_data(DataConfig(dataset="digits", max_per_class=3))
    images, labels = RealImages(coreset=coreset).choose(few, 5, seed=0)
    assert len(images) == 30 and labels.bincount().tolist() == [3] * 10


# ------------------------------------------------------------------------------------- whole data


def test_the_whole_data_set_is_an_upper_row(data):
    config = CONFIG.model_copy(update={"eval_network": "ConvNetD2", "eval_width": 8, "epochs": 20})
    config = config.model_copy(update={"networks": 1, "eval_lr": 0.05, "eval_batch": 64})
    (whole,) = baselines.whole_data_rows(data, config, seed=0, steps=200)
    (few,) = baselines.set_rows({"few": RealImages().choose(data, 1, seed=0)}, data, config, seed=0)
    assert whole["method"] == "whole data" and whole["split"] == "test"
    assert whole["accuracy"] > 85 > few["accuracy"] > 10


def test_the_whole_data_set_has_the_steps_asked_for(data, monkeypatch):
    epochs = []

    def spy(images, labels, data, config, *, seed, split):
        epochs.append(config.epochs)
        assert len(images) == len(data.train) and images.dtype == torch.uint8
        return [{"accuracy": 50.0}]

    monkeypatch.setattr(baselines, "evaluate", spy)
    batches = -(-len(data.train) // CONFIG.eval_batch)
    for steps in (1, batches, batches + 1):
        baselines.whole_data_rows(data, CONFIG, seed=0, steps=steps)
    assert epochs == [1, 1, 2]


# ------------------------------------------------------------------------------------------ tables


def three(method, accuracies, seeds=(1, 1, 1)):
    pairs = enumerate(zip(accuracies, seeds, strict=True))
    return [
        {"method": method, "network_index": index, "seed": seed, "accuracy": accuracy}
        for index, (accuracy, seed) in pairs
    ]


def test_summary_keeps_the_order_and_counts_each_method():
    accuracies = {"late": [1.0, 3.0], "early": [5.0]}
    rows = [{"method": m, "accuracy": a} for m, values in accuracies.items() for a in values]
    table = baselines.summary_table(rows)
    assert table.method.tolist() == ["late", "early"]
    assert table["mean"].tolist() == [2.0, 5.0] and table["n"].tolist() == [2, 1]


def test_any_two_methods_are_compared_network_by_network():
    rows = three("dm", [71.0, 73.5, 74.5]) + three("dc", [70.0, 72.0, 74.0])[::-1]
    found = baselines.paired(rows, "dm", "dc")  # differences 1, 1.5 and 0.5
    assert (found["method"], found["over"], found["n"]) == ("dm", "dc", 3)
    assert found["gain"] == pytest.approx(1.0) and found["std"] == pytest.approx(0.5)
    assert found["ci95"] == pytest.approx(4.302653 * 0.5 / 3**0.5, rel=1e-5)
    assert baselines.paired(rows, "dc", "dm")["gain"] == pytest.approx(-1.0)
    with pytest.raises(ValueError, match="'dm' and 'real' were not evaluated by the same networks"):
        baselines.paired(rows + three("real", [60.0] * 3, (1, 2, 3)), "dm", "real")
    with pytest.raises(ValueError, match="'tm' and 'dm' were not"):
        baselines.paired(rows, "tm", "dm")


@pytest.mark.parametrize(
    ("gain", "ci95", "found"),
    [
        (2.0, 1.0, "above"),
        (-2.0, 1.0, "below"),
        (1.0, 1.0, "undecided against"),
        (-0.5, 1.0, "undecided against"),
        (9.0, float("nan"), "undecided against"),
    ],
)
def test_a_finding_is_decided_only_outside_its_interval(gain, ci95, found):
    pair = SimpleNamespace(method="a", over="b", gain=gain, ci95=ci95)
    assert baselines.finding(pair) == f"`a` is {found} `b`: {gain:+.1f} ± {ci95:.1f} points."
