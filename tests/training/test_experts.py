"""Expert trajectories: what is written, resumed, read back, and refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import gsdd_lib.training.experts as module
from gsdd_lib.config import DataConfig, ExpertConfig
from gsdd_lib.data import ImageData, load_data
from gsdd_lib.networks import network_for, unflatten
from gsdd_lib.training.experts import (
    ExpertError,
    Experts,
    distances,
    expert_path,
    plan_experts,
    train_experts,
)
from gsdd_lib.training.train import accuracy

CONFIG = ExpertConfig(
    num_experts=2,
    train_epochs=3,
    expert_network="ConvNetD2",
    expert_width=8,
    expert_lr=0.05,
    expert_batch=16,
)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig(dataset="digits", max_per_class=40))


@pytest.fixture(scope="module")
def trained(data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("experts")
    return folder, list(train_experts(data, CONFIG, folder, seed=0))


def copy(folder: Path, to: Path) -> Path:
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def test_a_row_per_expert_and_epoch(trained):
    _, rows = trained
    assert [(row["expert"], row["epoch"]) for row in rows] == [
        (expert, epoch) for expert in range(2) for epoch in range(4)
    ]
    assert all(rows[4 * expert + 3]["accuracy"] > 40 for expert in range(2))


def test_the_plan_is_what_is_written(data: ImageData, trained):
    plan = plan_experts(data, CONFIG)
    on_disk = sum(path.stat().st_size for path in trained[0].iterdir())
    assert 0 <= plan.total_bytes - on_disk < 2 * module.HEADER_BYTES
    assert (plan.files, plan.snapshots, plan.steps) == (2, 4, 2 * 3 * 25)
    assert "2 experts x 4 snapshots" in str(plan) and "MiB on disk" in str(plan)


def test_snapshots_are_the_networks_that_were_measured(data: ImageData, trained):
    folder, rows = trained
    experts = Experts(folder)
    assert len(experts) == 2 and experts.epochs == 3
    network = network_for(data, "ConvNetD2", 8, generator=torch.Generator())
    for epoch, params in enumerate(experts.snapshots(1, 0, 1, 2, 3)):
        network.load_state_dict(unflatten(params, network))
        held = data.validation
        percent = accuracy(network, held.images, held.labels, normalize=data.normalize)
        assert percent == rows[4 + epoch]["accuracy"]


def test_distances_are_those_between_snapshots(trained):
    experts = Experts(trained[0])
    rows = distances(experts, 2)
    assert [(row["expert"], row["epoch"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    start, target = experts.snapshots(1, 0, 2)
    assert rows[2]["distance"] == (start - target).norm().item() > 0


def test_a_step_is_timed_without_a_trace(data: ImageData):
    before = torch.random.get_rng_state()
    assert torch.equal(before, torch.random.get_rng_state())


def test_experts_differ_and_repeat(data: ImageData, trained, tmp_path: Path):
    experts = Experts(trained[0])
    assert not torch.equal(*[experts.snapshots(index, 0)[0] for index in range(2)])
    one = CONFIG.model_copy(update={"num_experts": 1})
    list(train_experts(data, one, tmp_path, seed=0))
    assert expert_path(tmp_path, 0).read_bytes() == experts.paths[0].read_bytes()


def test_finished_experts_are_skipped(data: ImageData, trained, tmp_path: Path, monkeypatch):
    folder = copy(trained[0], tmp_path)
    expert_path(folder, 0).unlink()
    done, original = [], module._train_expert

    def watched(data, config, seed, index, progress):
        done.append(index)
        return original(data, config, seed, index, progress)

    monkeypatch.setattr(module, "_train_expert", watched)
    assert list(train_experts(data, CONFIG, folder, seed=0)) == trained[1]
    assert done == [0]
    assert Experts(folder).fingerprint == Experts(trained[0]).fingerprint


def test_an_expert_cut_off_leaves_no_file(data: ImageData, tmp_path: Path, monkeypatch):
    calls, original = 0, module.train_epoch

    def cut(*arguments, **named):
        nonlocal calls
        calls += 1
        if calls == 5:
            raise OSError("power cut")
        return original(*arguments, **named)

    monkeypatch.setattr(module, "train_epoch", cut)
    with pytest.raises(OSError, match="power cut"):
        list(train_experts(data, CONFIG, tmp_path, seed=0))
    assert [path.name for path in tmp_path.iterdir()] == ["expert_000.safetensors"]


def test_only_the_snapshots_asked_for_are_read(trained):
    start, end = Experts(trained[0]).snapshots(0, 1, 3)
    whole = load_file(expert_path(trained[0], 0))
    assert torch.equal(start, whole["epoch_001"]) and torch.equal(end, whole["epoch_003"])


def test_training_leaves_the_global_generator_alone(data: ImageData, tmp_path: Path):
    before = torch.random.get_rng_state()
    list(train_experts(data, CONFIG.model_copy(update={"num_experts": 1}), tmp_path, seed=3))
    assert torch.equal(before, torch.random.get_rng_state())


def test_no_experts(tmp_path: Path):
    with pytest.raises(ExpertError, match="There are no experts in"):
        Experts(tmp_path)


def test_a_file_cut_off(data: ImageData, trained, tmp_path: Path):
    path = expert_path(copy(trained[0], tmp_path), 1)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ExpertError, match="expert_001.safetensors is damaged or cut off"):
        Experts(tmp_path)
    with pytest.raises(ExpertError, match="delete it and train again"):
        list(train_experts(data, CONFIG, tmp_path, seed=0))


def test_other_settings_are_refused(data: ImageData, trained):
    other = CONFIG.model_copy(update={"expert_lr": 0.1})
    with pytest.raises(ExpertError, match=r"other settings \(expert_lr 0.05, wanted 0.1\)"):
        list(train_experts(data, other, trained[0], seed=0))


def test_another_architecture_is_refused(data: ImageData, trained):
    experts = Experts(trained[0])
    experts.check(data, "ConvNetD2", 8, 3)
    with pytest.raises(ExpertError, match="expert_width 8, wanted 16"):
        experts.check(data, "ConvNetD2", 16, 3)
    with pytest.raises(ExpertError, match="trained for 3 epochs, the matching needs 4"):
        experts.check(data, "ConvNetD2", 8, 4)


def test_a_learning_rate_that_explodes(data: ImageData, tmp_path: Path):
    wild = CONFIG.model_copy(update={"expert_lr": 1e30})
    with pytest.raises(ExpertError, match="Expert 0 is not a number after epoch 1; lower"):
        list(train_experts(data, wild, tmp_path, seed=0))


def test_a_file_of_something_else(trained, tmp_path: Path):
    save_file({"epoch_000": torch.zeros(3)}, expert_path(tmp_path, 0))
    with pytest.raises(ExpertError, match="expert_000.safetensors is no expert file"):
        Experts(tmp_path)
