"""The table of settings is what trains the networks; optimizers and schedules by hand."""

import math

import pytest
import torch

from gsdd_lib.config import DataConfig, EvalConfig
from gsdd_lib.core.errors import ConfigError
from gsdd_lib.core.rng import generator
from gsdd_lib.data import load_data
from gsdd_lib.evaluation import evaluate as module
from gsdd_lib.evaluation.protocols import SETTINGS, evaluate_architectures, settings_for
from gsdd_lib.networks import make_network
from gsdd_lib.training.train import learning_rate, train_network

BASE = EvalConfig(networks=1, eval_network="ConvNetD2", eval_width=4, epochs=2, eval_dsa="")


@pytest.fixture(scope="module")
def data():
    return load_data(DataConfig(dataset="digits"))


def test_the_papers_rates():
    rates = {name: settings_for(name, BASE).eval_lr for name in SETTINGS}
    assert rates == {"AlexNet": 1e-3, "VGG11": 1e-2, "ResNet18": 1e-2, "ViT": 5e-5}
    assert {settings_for(name, BASE).eval_schedule for name in SETTINGS} == {"cosine"}
    assert settings_for("ViT", BASE).eval_weight_decay == 0.05


def test_a_convnet_keeps_its_settings_and_its_choices_stay_with_it():
    config = EvalConfig(eval_norm="batch", eval_lr=0.3)
    assert settings_for("ConvNetD4", config) == config.model_copy(
        update={"eval_network": "ConvNetD4"}
    )
    assert settings_for("VGG11", config).eval_norm == "instance"


def test_rows_name_their_network(data):
    images, labels = data.normalize(data.train.images[:10]), data.train.labels[:10]
    names = ["ConvNetD1", "ViT"]
    rows = evaluate_architectures(images, labels, data, BASE, names, seed=0)
    assert [row["network"] for row in rows] == names
    assert all(0 <= row["accuracy"] <= 100 for row in rows)


def test_a_choice_of_the_convnet_reaches_it(data):
    images, labels = data.normalize(data.train.images[:10]), data.train.labels[:10]
    losses = [
        module.evaluate(images, labels, data, config, seed=0)[0]["train_loss"]
        for config in (BASE, BASE.model_copy(update={"eval_norm": "none"}))
    ]
    assert losses[0] != losses[1]
    wrong = BASE.model_copy(update={"eval_norm": "batch", "eval_network": "ResNet18"})
    with pytest.raises(ConfigError, match="norm can be chosen for a ConvNet alone"):
        module.evaluate(images, labels, data, wrong, seed=0)


def test_the_cosine_by_hand():
    config = EvalConfig(epochs=4, eval_lr=0.2, eval_schedule="cosine")
    expected = [0.2, 0.1 * (1 + math.sqrt(0.5)), 0.1, 0.1 * (1 - math.sqrt(0.5))]
    assert [learning_rate(config, epoch) for epoch in range(4)] == pytest.approx(expected)


@pytest.mark.parametrize(("name", "kind"), [("adam", "Adam"), ("adamw", "AdamW")])
def test_the_optimizer_is_the_one_named(data, monkeypatch, name, kind):
    made = []

    class Spy(getattr(torch.optim, kind)):
        def __init__(self, parameters, **settings):
            made.append(settings)
            super().__init__(parameters, **settings)

    monkeypatch.setattr(torch.optim, kind, Spy)
    network = make_network(
        "ConvNetD1",
        channels=1,
        num_classes=10,
        resolution=(8, 8),
        width=4,
        generator=generator(0, "t"),
    )
    config = BASE.model_copy(update={"eval_optimizer": name, "eval_weight_decay": 0.05})
    images, labels = data.normalize(data.train.images[:10]), data.train.labels[:10]
    train_network(images, labels, network, config, generator=generator(0, "t"))
    assert made == [{"lr": 0.01, "weight_decay": 0.05}]
