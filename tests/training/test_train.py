"""Training a network: schedules by hand, the order of the images, the loss, the moving average."""

import pytest
import torch

from gsdd_lib.config import EvalConfig
from gsdd_lib.core.errors import ConfigError
from gsdd_lib.core.rng import generator
from gsdd_lib.networks import make_network
from gsdd_lib.training import train as module
from gsdd_lib.training.train import EvaluationError, accuracy, learning_rate, train_network

QUICK = EvalConfig(networks=2, eval_network="ConvNetD2", eval_width=4, epochs=3, eval_batch=4)
IMAGES = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(10) % 2


def with_(**changes) -> EvalConfig:
    return QUICK.model_copy(update=changes)


def fresh_network(seed=0):
    weights = generator(seed, "weights")
    more = {"channels": 1, "num_classes": 2, "resolution": (8, 8), "width": 4}
    return make_network("ConvNetD2", generator=weights, **more)


def train(config, network=None, images=IMAGES, **more):
    network = network or fresh_network()
    loss = train_network(images, LABELS, network, config, generator=generator(0, "t"), **more)
    return network, loss


def equal(first, second):
    return all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


@pytest.fixture
def spied(monkeypatch):
    """Rates, momenta and the numbers of optimizers of every step of SGD."""
    steps, made = [], []

    class Spy(torch.optim.SGD):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            made.append(self)

        def step(self, closure=None):
            group = self.param_groups[0]
            assert group["momentum"] == 0.9 and group["weight_decay"] == 5e-4
            steps.append((group["lr"], len(made)))
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "SGD", Spy)
    return steps


def test_the_rate_falls_to_a_tenth_after_half_the_epochs(spied):
    train(with_(epochs=6, eval_batch=10, eval_lr=0.02))
    assert [rate for rate, _ in spied] == pytest.approx([0.02] * 4 + [0.002] * 2)
    assert {optimizer for _, optimizer in spied} == {1}


def test_the_published_schedule_has_an_epoch_more_and_a_new_optimizer(spied):
    train(with_(epochs=6, eval_batch=10, eval_lr=0.02, eval_schedule="published"))
    assert [rate for rate, _ in spied] == pytest.approx([0.02] * 5 + [0.002] * 2)
    assert [optimizer for _, optimizer in spied] == [1] * 5 + [2] * 2


def test_a_thousand_published_epochs_are_502_and_499():
    config = EvalConfig(epochs=1000, eval_schedule="published")
    rates = [learning_rate(config, epoch) for epoch in range(module.passes(config))]
    assert (rates.count(0.01), rates.count(0.001)) == (502, 499)


def test_the_cosine_falls_from_the_rate_to_nothing():
    config = EvalConfig(epochs=4, eval_lr=0.2, eval_schedule="cosine")
    expected = [0.2, 0.1 * (1 + 0.5**0.5), 0.1, 0.1 * (1 - 0.5**0.5)]
    assert [learning_rate(config, epoch) for epoch in range(4)] == pytest.approx(expected)


@pytest.mark.parametrize(("name", "kind"), [("adam", "Adam"), ("adamw", "AdamW")])
def test_the_optimizer_is_the_one_named(monkeypatch, name, kind):
    made = []

    class Spy(getattr(torch.optim, kind)):
        def __init__(self, parameters, **settings):
            made.append(settings)
            super().__init__(parameters, **settings)

    monkeypatch.setattr(torch.optim, kind, Spy)
    train(with_(eval_optimizer=name, eval_weight_decay=0.05))
    assert made == [{"lr": 0.01, "weight_decay": 0.05}]


def test_every_image_is_seen_once_per_epoch_in_a_new_order(monkeypatch):
    seen = []

    def spy(batch, params):
        matches = (batch[:, None] == IMAGES[None]).flatten(2).all(2)
        seen.append(matches.nonzero()[:, 1].tolist())
        assert len(params) == len(batch)  # parameters of its own for each image
        return batch

    monkeypatch.setattr(module, "apply_dsa", spy)
    train(QUICK)
    assert [len(batch) for batch in seen] == [4, 4, 2] * 3
    epochs = [[*seen[i], *seen[i + 1], *seen[i + 2]] for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_the_reported_loss_is_the_mean_over_images():
    network = fresh_network()
    expected = torch.nn.functional.cross_entropy(network(IMAGES), LABELS).item()
    _, loss = train(with_(epochs=1, eval_dsa="", eval_lr=1e-12), network)
    assert loss == pytest.approx(expected, rel=1e-5) and not network.training


def test_images_normalized_batch_by_batch_are_the_same_as_before():
    scaled, _ = train(QUICK, images=IMAGES * 2, normalize=lambda images: images / 2)
    assert equal(scaled, train(QUICK)[0])


def test_the_moving_average_by_hand():
    fast = {"eval_batch": 10, "eval_lr": 0.5}  # one step an epoch
    plain = {epochs: train(with_(epochs=epochs, **fast)) for epochs in (1, 2, 3)}
    one, two, three = (dict(network.named_parameters()) for network, _ in plain.values())
    averaged, loss = train(with_(epochs=3, eval_ema=0.75, **fast))
    for name, value in averaged.named_parameters():
        second = 0.75 * one[name] + 0.25 * two[name]  # it begins with the first step's weights
        torch.testing.assert_close(value, 0.75 * second + 0.25 * three[name])
    assert not equal(averaged, plain[3][0]) and loss == plain[3][1]


def test_accuracy_by_hand_in_several_batches(monkeypatch):
    monkeypatch.setattr(module, "TEST_BATCH", 3)
    logits = torch.tensor([[1.0, 2], [3, 0], [0, 1], [5, 4], [1, 0]])
    labels = torch.tensor([1, 0, 0, 0, 1])
    assert accuracy(torch.nn.Identity(), logits, labels) == 60.0
    assert accuracy(torch.nn.Identity(), logits, labels, normalize=torch.neg) == 40.0


def test_a_diverging_loss_stops():
    with pytest.raises(
        EvaluationError, match="training loss is (nan|inf) in epoch 1 of 3; .*eval_lr=1e"
    ):
        train(with_(eval_lr=1e38))


def test_bf16_trains_nearly_as_float32_does():
    plain, loss = train(with_(epochs=5))
    rounded, loss_there = train(with_(epochs=5, eval_precision="bf16"))
    assert loss_there == pytest.approx(loss, rel=0.02) and not equal(plain, rounded)
    assert all(value.dtype == torch.float32 for value in rounded.state_dict().values())


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_channels_last_changes_rounding_alone(ema):
    plain, loss = train(with_(epochs=3, eval_ema=ema))
    other, loss_there = train(with_(epochs=3, eval_ema=ema, eval_channels_last=True))
    assert loss_there == pytest.approx(loss, rel=1e-4)
    for own, there in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(own, there, atol=1e-4, rtol=1e-3)


def test_tf32_is_refused_on_a_cpu():
    with pytest.raises(ConfigError, match="is a GPU's"):
        train(with_(eval_precision="tf32"))
