"""Evaluation: repeatable, blind to the split it was not asked for, and right on easy images."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from gsdd_lib.config import DataConfig, EvalConfig
from gsdd_lib.core.errors import ConfigError
from gsdd_lib.core.rng import generator
from gsdd_lib.data import ImageData, ImageSet, load_data
from gsdd_lib.evaluation.evaluate import evaluate, format_accuracy, summarize
from gsdd_lib.training.train import EvaluationError

QUICK = EvalConfig(networks=2, eval_network="ConvNetD2", eval_width=4, epochs=3, eval_batch=4)
THOROUGH = EvalConfig(
    networks=1,
    eval_network="ConvNetD2",
    eval_width=4,
    epochs=40,
    eval_batch=16,
    eval_lr=0.05,
    eval_dsa="",
)


class Forbidden:
    """A split that must not be touched."""

    def __len__(self):
        return 1  # data sets check that no split is empty

    def __getattr__(self, name):
        raise AssertionError(f"the split was read: {name}")


def stripes(count, seed):
    """Two classes, told apart at a glance: dark above and light below, or the reverse."""
    labels = torch.arange(count) % 2
    rows = torch.arange(8) < 4
    dark = torch.where(labels[:, None] == 0, rows, ~rows)[:, None, :, None].expand(-1, 1, 8, 8)
    noise = torch.randint(0, 60, dark.shape, generator=generator(seed, "noise"))
    return ImageSet((dark * 180 + noise).to(torch.uint8), labels)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Networks this small only wait for a second thread, for seconds on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data():
    splits = {name: stripes(40, seed) for seed, name in enumerate(("train", "validation", "test"))}
    return ImageData("stripes", ("up", "down"), (0.47,), (0.35,), provenance="generated", **splits)


@pytest.fixture(scope="module")
def distilled(data):
    return data.normalize(data.train.images[:10]), data.train.labels[:10]


def without_seconds(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_two_calls_with_one_seed_are_bitwise_equal(data, distilled):
    first, again = (evaluate(*distilled, data, QUICK, seed=3) for _ in range(2))
    other = evaluate(*distilled, data, QUICK, seed=4)
    assert without_seconds(first) == without_seconds(again)
    assert first[0]["train_loss"] != other[0]["train_loss"]


def test_rows_are_tidy_and_each_network_is_its_own(data, distilled):
    rows = evaluate(*distilled, data, QUICK, seed=3, split="test")
    assert [row["network_index"] for row in rows] == [0, 1]
    assert {row["split"] for row in rows} == {"test"} and {row["seed"] for row in rows} == {3}
    names = ["network_index", "seed", "split", "accuracy", "train_loss", "seconds"]
    assert list(rows[0]) == names and all(row["seconds"] > 0 for row in rows)
    assert rows[0]["train_loss"] != rows[1]["train_loss"]


def test_a_network_does_not_depend_on_how_many_follow(data, distilled):
    one = evaluate(*distilled, data, QUICK.model_copy(update={"networks": 1}), seed=3)
    assert without_seconds(one) == without_seconds(evaluate(*distilled, data, QUICK, seed=3))[:1]


def test_easy_images_are_learned_completely(data, distilled):
    config = THOROUGH.model_copy(update={"eval_dsa": "flip_cutout"})
    assert evaluate(*distilled, data, config, seed=0, split="test")[0]["accuracy"] == 100


def test_wrong_labels_are_learned_too(data, distilled):
    images, labels = distilled
    assert evaluate(images, 1 - labels, data, THOROUGH, seed=0)[0]["accuracy"] == 0


def test_digits_are_learned_far_above_chance_at_smoke_scale():
    digits = load_data(DataConfig(dataset="digits"))
    some = digits.train.select(slice(0, 200))
    config = THOROUGH.model_copy(update={"eval_width": 8, "epochs": 20})
    images = digits.normalize(some.images)
    (row,) = evaluate(images, some.labels, digits, config, seed=0, split="test")
    assert row["accuracy"] > 75  # chance is 10 %
    (shuffled,) = evaluate(images, some.labels.roll(1), digits, config, seed=0, split="test")
    assert shuffled["accuracy"] < 25


def test_real_images_may_be_bytes(data, distilled):
    images, labels = distilled
    rows = evaluate(images, labels, data, QUICK, seed=3)
    raw = evaluate(data.train.images[:10], labels, data, QUICK, seed=3)
    assert without_seconds(rows) == without_seconds(raw)


def test_a_choice_of_the_convnet_reaches_it_and_another_network_refuses_it(data, distilled):
    none = QUICK.model_copy(update={"eval_norm": "none"})
    rows = [evaluate(*distilled, data, config, seed=0)[0] for config in (QUICK, none)]
    assert rows[0]["train_loss"] != rows[1]["train_loss"]
    wrong = QUICK.model_copy(update={"eval_norm": "batch", "eval_network": "AlexNet"})
    with pytest.raises(ConfigError, match="norm can be chosen for a ConvNet only"):
        evaluate(*distilled, data, wrong, seed=0)


@pytest.mark.parametrize(("split", "other"), [("validation", "test"), ("test", "validation")])
def test_the_other_split_is_not_touched(data, distilled, split, other):
    guarded = replace(data, **{other: Forbidden()})
    assert len(evaluate(*distilled, guarded, QUICK, seed=0, split=split)) == 2
    with pytest.raises(AssertionError, match="the split was read"):
        evaluate(*distilled, guarded, QUICK, seed=0, split=other)


def test_validation_is_the_default(data, distilled):
    assert evaluate(*distilled, replace(data, test=Forbidden()), QUICK, seed=0)


def test_the_state_of_the_process_is_left_alone(data, distilled):
    def state():
        modes = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()
        flags = torch.are_deterministic_algorithms_enabled(), torch.is_inference_mode_enabled()
        return modes, flags, random.getstate(), np.random.get_state()[1].tolist()

    images, labels = distilled
    images = images.clone().requires_grad_()
    before, rng_before, pixels = state(), torch.get_rng_state(), images.detach().clone()
    evaluate(images, labels, data, QUICK, seed=0)
    assert state() == before and torch.equal(torch.get_rng_state(), rng_before)
    assert torch.equal(images, pixels) and images.grad is None


def test_certain_soft_labels_train_as_hard_ones(data, distilled):
    images, labels = distilled
    soft = torch.nn.functional.one_hot(labels, 2).float()
    hard_rows = evaluate(images, labels, data, QUICK, seed=0)
    soft_rows = evaluate(images, soft, data, QUICK, seed=0)
    assert soft_rows[0]["train_loss"] == pytest.approx(hard_rows[0]["train_loss"], rel=1e-4)


def test_summary_by_hand():
    summary = summarize([{"accuracy": a} for a in (70.0, 72.0, 77.0)])
    assert summary["mean"] == pytest.approx(73) and summary["n"] == 3
    assert summary["std"] == pytest.approx(math.sqrt(13))
    low, high = stats.t.interval(0.95, 2, loc=73, scale=math.sqrt(13 / 3))
    assert summary["ci95"] == pytest.approx((high - low) / 2)
    assert summary["ci95"] == pytest.approx(4.302653 * math.sqrt(13 / 3), rel=1e-6)


def test_one_network_has_no_deviation():
    summary = summarize([{"accuracy": 70.0}])
    assert summary["mean"] == 70 and math.isnan(summary["std"]) and math.isnan(summary["ci95"])
    assert format_accuracy(summary) == "70.0 (n=1)"


def test_accuracy_is_printed_with_its_interval():
    summary = summarize([{"accuracy": a} for a in (70.0, 72.0, 77.0)])
    assert format_accuracy(summary) == "73.0 ± 9.0 (n=3)"  # 4.30 * sqrt(13 / 3), not sqrt(13)


def test_no_rows():
    with pytest.raises(ValueError, match="no rows to summarize"):
        summarize([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "train"}, "unknown split 'train'; choose 'validation' or 'test'"),
        ({"images": torch.zeros(10, 1, 9, 9)}, r"must be \[N, 1, 8, 8\].*render them at its"),
        ({"images": torch.zeros(0, 1, 8, 8)}, r"got \[0, 1, 8, 8\]"),
        ({"labels": torch.zeros(9, dtype=torch.int64)}, r"labels must be integers \[10\]"),
        ({"labels": torch.zeros(10, 3)}, r"or probabilities \[10, 2\]"),
        (
            {"labels": torch.full((10,), 2)},
            r"integers \[10\] in 0 to 1, .* in 2 to 2",
        ),
        ({"labels": torch.zeros(10, dtype=torch.int64)}, "no image to train on is of class 'down'"),
        ({"labels": torch.eye(2)[[0] * 10]}, "no image to train on is of class 'down'"),
        ({"images": torch.full((10, 1, 8, 8), torch.nan)}, "non-finite pixels"),
    ],
)
def test_bad_input(data, distilled, change, message):
    given = dict(zip(("images", "labels"), distilled, strict=True)) | {"split": "test"} | change
    with pytest.raises(EvaluationError, match=message):
        evaluate(given["images"], given["labels"], data, QUICK, seed=0, split=given["split"])
