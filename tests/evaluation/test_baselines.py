"""Every rival is judged by the same networks; real images are drawn anew for each of them."""

import pytest
import torch

from gsdd_lib.config import BudgetConfig, DataConfig, EvalConfig
from gsdd_lib.data import load_data
from gsdd_lib.evaluation import baselines as rivals
from gsdd_lib.evaluation.baselines import random_real_images
from gsdd_lib.evaluation.evaluate import evaluate
from gsdd_lib.parameterizations.budget import plan_budget

CONFIG = EvalConfig(networks=2, eval_network="ConvNetD1", eval_width=4, epochs=2)


def test_rows_are_those_of_evaluate_with_the_name_of_their_set(capsys):
    data = load_data(DataConfig(), 0)
    images, labels = random_real_images(data, 2, seed=0)
    slow = CONFIG.model_copy(update={"eval_lr": 1e-3})
    rows = rivals.judge(
        {"a": (images, labels), "b": (images, labels)}, data, {"a": CONFIG, "b": slow}, seed=3
    )
    assert [row["method"] for row in rows] == ["a", "a", "b", "b"]
    expected = evaluate(images, labels, data, CONFIG, seed=3, split="test")
    assert [row["accuracy"] for row in rows[:2]] == [row["accuracy"] for row in expected]
    assert [row["train_loss"] for row in rows[:2]] != [row["train_loss"] for row in rows[2:]]
    assert capsys.readouterr().out.startswith("a: ")


def test_every_network_sees_a_draw_of_its_own():
    data = load_data(DataConfig(), 0)
    rows = rivals.random_real_rows(data, 2, CONFIG, seed=5)
    one = CONFIG.model_copy(update={"networks": 1})
    for draw, row in enumerate(rows):
        images, labels = random_real_images(data, 2, seed=5 + draw)
        (expected,) = evaluate(images, labels, data, one, seed=5 + draw, split="test")
        assert row["accuracy"] == expected["accuracy"] and row["network_index"] == draw
    first, second = (random_real_images(data, 2, seed=5 + draw)[0] for draw in range(2))
    assert not torch.equal(first, second)


def test_summary_keeps_the_order_and_counts_each_method():
    accuracies = {"late": [1.0, 3.0], "early": [5.0]}
    rows = [{"method": m, "accuracy": a} for m, values in accuracies.items() for a in values]
    table = rivals.summary_table(rows)
    assert table.method.tolist() == ["late", "early"]
    assert table["mean"].tolist() == [2.0, 5.0] and table["n"].tolist() == [2, 1]


def test_a_gain_is_taken_network_by_network():
    def three(method, accuracies, seeds=(1, 1, 1)):
        pairs = enumerate(zip(accuracies, seeds, strict=True))
        return [
            {"method": method, "network_index": index, "seed": seed, "accuracy": accuracy}
            for index, (accuracy, seed) in pairs
        ]

    start = three(rivals.INITIAL, [70.0, 72.0, 74.0])
    ours, real = three("ours", [71.0, 73.5, 74.5]), three("real", [60.0] * 3, (1, 2, 3))
    table = rivals.gain_table([*ours[::-1], *start, *real])  # networks of other seeds: left out
    assert table.method.tolist() == ["ours"]
    assert table.gain[0] == pytest.approx(1.0) and table.n[0] == 3
    assert table.ci95[0] == pytest.approx(4.302653 * 0.5 / 3**0.5, rel=1e-5)


def test_costs_never_exceed_the_budget():
    budget = plan_budget(BudgetConfig(ipc=1, gpc=10), channels=1, height=28, width=28)
    costs = rivals.cost_table({"dm": 31_000}, budget)
    assert costs.method.tolist() == ["dm", "initial", "random real"]
    assert (costs.bits_per_class <= budget.budget_bits_per_class).all()
    assert costs.bits_per_class.tolist() == [24_640, 24_640, 25_088]
