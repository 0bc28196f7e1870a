"""Recorded steps do what plain calls do; tasks return what they return; gpu: to the same bits."""

import gc
import warnings

import pytest
import torch

from gsdd_lib.config import EvalConfig, FitConfig
from gsdd_lib.core.graph import WARM_UP, Recorded, run_together, set_rate
from gsdd_lib.core.rng import generator
from gsdd_lib.data.normalization import ChannelNormalization
from gsdd_lib.networks import make_network
from gsdd_lib.parameterizations import fit as fit_module
from gsdd_lib.parameterizations.fit import fit_rows
from gsdd_lib.parameterizations.gaussian import GaussianImages
from gsdd_lib.training import train as train_module
from gsdd_lib.training.train import train_network, training

CPU = torch.device("cpu")
CONFIG = EvalConfig(eval_width=16, epochs=24, eval_batch=16, eval_network="ConvNetD2")


def test_on_a_cpu_a_recorded_function_is_the_function():
    calls = []
    recorded = Recorded(lambda *tensors, **settings: calls.append((tensors, settings)), CPU)
    one = torch.ones(2)
    recorded(one, kind=3)
    assert calls == [((one,), {"kind": 3})] and not recorded.graphs


def test_tasks_return_in_their_order_and_on_a_cpu_run_one_after_another():
    seen = []

    def task(name, steps):
        for step in range(steps):
            seen.append((name, step))
            yield
        return name.upper()

    assert run_together([task("a", 2), task("b", 0), task("c", 1)], CPU) == ["A", "B", "C"]
    assert seen == [("a", 0), ("a", 1), ("c", 0)]


def test_a_task_that_fails_says_so():
    def task():
        yield
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run_together([task()], CPU)


def test_the_rate_is_set_in_place_where_it_is_a_tensor():
    weight, rate = torch.nn.Parameter(torch.ones(2)), torch.tensor(0.5)
    plain = torch.optim.SGD([weight], lr=0.5)
    held = torch.optim.SGD([weight], lr=rate)
    set_rate(plain, 0.25)
    set_rate(held, 0.25)
    assert plain.param_groups[0]["lr"] == 0.25 == rate.item()
    assert held.param_groups[0]["lr"] is rate


class FakeGraph:
    """Stands for torch's on a machine without a GPU; fails at one call of a recording."""

    failing = ""

    def capture_begin(self, **how):
        self._reach("capture_begin")

    def capture_end(self):
        self._reach("capture_end")

    def replay(self):
        pass

    def _reach(self, call):
        assert not gc.isenabled(), f"garbage may be collected at {call}"
        if call == self.failing:
            raise RuntimeError(f"{call} failed\nand more lines")


@pytest.fixture
def collection():
    yield
    gc.enable()


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("failing", ["", "capture_begin", "function", "capture_end"])
def test_nothing_is_collected_while_a_graph_is_recorded(collection, monkeypatch, failing, enabled):
    """Freed during a recording, an older graph would spoil it; afterwards all is as before."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(FakeGraph, "failing", failing)
    collected = []  # whether collection was on, call by call

    def function(values):
        collected.append(gc.isenabled())
        if failing == "function" and len(collected) == WARM_UP + 1:
            raise RuntimeError("function failed")

    recorded = Recorded(function, CPU)
    recorded.recording, recorded.pool = True, None  # as on a GPU
    (gc.enable if enabled else gc.disable)()
    for _ in range(WARM_UP):
        recorded._call((torch.ones(2),), {})
    if failing:
        with pytest.warns(UserWarning, match=rf"without a CUDA graph \({failing} failed\)"):
            recorded._call((torch.ones(2),), {})
    else:
        recorded._call((torch.ones(2),), {})
    assert gc.isenabled() == enabled and recorded.recording == (not failing)
    during = [False] * (failing != "capture_begin")  # then, if it failed, as it is
    assert collected == [enabled] * WARM_UP + during + [enabled] * bool(failing)


@pytest.fixture
def cuda(monkeypatch):
    """A GPU that computes the same bits again, and refuses to go on without a graph."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="steps run without a CUDA graph")
        yield torch.device("cuda:0")


class Plain(Recorded):
    """Never records, but on the same stream."""

    def _call(self, tensors, settings):
        self.function(*tensors, **settings)


@pytest.mark.gpu
def test_a_recording_replays_with_new_inputs(cuda):
    total = torch.zeros(3, device=cuda)
    recorded = Recorded(lambda values, factor: total.add_(values * factor), cuda)
    for number in range(WARM_UP + 4):
        recorded(torch.full((3,), float(number), device=cuda), factor=2)
    assert total.tolist() == [2.0 * sum(range(WARM_UP + 4))] * 3 and len(recorded.graphs) == 1


@pytest.mark.gpu
def test_what_cannot_be_recorded_runs_as_it_is():
    device = torch.device("cuda:0")
    total = torch.zeros((), device=device)
    recorded = Recorded(lambda values: total.add_(values.sum().item()), device)  # waits
    with pytest.warns(UserWarning, match="without a CUDA graph"):
        for _ in range(WARM_UP + 3):
            recorded(torch.ones(2, device=device))
    assert total.item() == 2 * (WARM_UP + 3) and not recorded.graphs


def _data(device, shape=(3, 32, 32), count=40):
    draw = generator(0, "images")
    images = torch.randn(count, *shape, generator=draw).to(device)
    return images, (torch.arange(count) % 10).to(device)


def _network(device, index=0, name="ConvNetD2"):
    more = {"channels": 3, "num_classes": 10, "resolution": (32, 32), "width": 16}
    return make_network(name, generator=generator(index, "weights"), **more).to(device)


def _weights(network):
    return torch.cat([value.detach().double().flatten() for value in network.state_dict().values()])


@pytest.mark.gpu
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"eval_schedule": "published"},
        {"eval_schedule": "cosine", "eval_optimizer": "adam"},
        {"eval_ema": 0.9},
        {"eval_precision": "tf32"},
        {"eval_precision": "bf16", "eval_channels_last": True},
    ],
)
def test_recorded_training_gives_the_bits_of_plain_training(cuda, monkeypatch, changes):
    config, made = CONFIG.model_copy(update=changes), []

    def train(kind):
        monkeypatch.setattr(train_module, "Recorded", lambda *a: made.append(kind(*a)) or made[-1])
        network = _network(cuda)
        loss = train_network(*_data(cuda), network, config, generator=generator(0, "order"))
        return _weights(network), loss

    plain, recorded = train(Plain), train(Recorded)
    assert made[-1].graphs and torch.equal(plain[0], recorded[0]) and plain[1] == recorded[1]


@pytest.mark.gpu
def test_a_network_with_dropout_trains_without_a_recording(cuda):
    network = _network(cuda, name="ViT")
    config = CONFIG.model_copy(update={"epochs": 2, "eval_optimizer": "adamw", "eval_lr": 1e-4})
    assert train_network(*_data(cuda), network, config, generator=generator(0, "order")) > 0


@pytest.mark.gpu
def test_networks_trained_side_by_side_are_those_trained_one_by_one(cuda):
    networks = [[_network(cuda, index) for index in range(3)] for _ in range(2)]
    data = _data(cuda)

    def task(index):
        yield from training(*data, networks[0][index], CONFIG, generator=generator(index, "order"))

    run_together([task(index) for index in range(3)], cuda)
    for index, network in enumerate(networks[1]):
        train_network(*data, network, CONFIG, generator=generator(index, "order"))
        assert torch.equal(_weights(network), _weights(networks[0][index]))


@pytest.mark.gpu
def test_a_recorded_fit_gives_the_bits_of_a_plain_one(cuda, monkeypatch):
    targets = torch.rand(6, 3, 32, 32, generator=generator(0, "targets")).to(cuda)
    config, made = FitConfig(fit_steps=60), []

    def fit(kind):
        monkeypatch.setattr(fit_module, "Recorded", lambda *a: made.append(kind(*a)) or made[-1])
        labels = torch.arange(6, device=cuda)
        how = {
            "points": 12,
            "seed": 0,
            "normalization": ChannelNormalization((0.5,) * 3, (0.25,) * 3),
        }
        gaussians = GaussianImages.init_from(targets, labels, **how)
        return list(fit_rows(gaussians, targets, config)), gaussians.packed.detach()

    plain, recorded = fit(Plain), fit(Recorded)
    assert made[-1].graphs and plain[0] == recorded[0] and torch.equal(plain[1], recorded[1])
