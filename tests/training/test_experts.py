"""Expert trajectories: what is written, resumed, found again, read back, and refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import gsdd_lib.training.experts as module
from gsdd_lib.config import DataConfig, ExpertConfig
from gsdd_lib.core.files import write_tensors
from gsdd_lib.data import ImageData, load_data
from gsdd_lib.data.normalization import ChannelNormalization
from gsdd_lib.networks import network_for, unflatten
from gsdd_lib.training.experts import (
    ExpertError,
    Experts,
    distances,
    plan_experts,
    read_about,
    settings_folder,
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
QUICK = CONFIG.model_copy(update={"num_experts": 1, "train_epochs": 1, "expert_batch": 256})


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig(dataset="digits", max_per_class=40))


@pytest.fixture(scope="module")
def trained(data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("experts")
    return folder, list(train_experts(data, CONFIG, folder, seed=0))


def copy(trained: tuple[Path, list[dict]], to: Path) -> Path:
    """The experts in a folder that is named itself."""
    to.mkdir(exist_ok=True)
    for path in Experts(trained[0]).paths:
        (to / path.name).write_bytes(path.read_bytes())
    return to


def test_a_row_per_expert_and_epoch(trained):
    _, rows = trained
    assert [(row["expert"], row["epoch"]) for row in rows] == [
        (expert, epoch) for expert in range(2) for epoch in range(4)
    ]
    assert all(rows[4 * expert + 3]["accuracy"] > 40 for expert in range(2))


def test_the_plan_is_what_is_written(data: ImageData, trained):
    (plan, total_bytes), experts = plan_experts(data, CONFIG), Experts(trained[0])
    read = [experts.snapshots(index, *range(4)) for index in range(2)]
    assert total_bytes == sum(4 * params.numel() for each in read for params in each)
    parameters = f"{read[0][0].numel():,} parameters: {total_bytes / 2**20:.1f} MiB on disk"
    assert plan == f"2 experts x 4 snapshots x {parameters}, {2 * 3 * 25} SGD steps"


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


def test_experts_differ_and_repeat(data: ImageData, trained, tmp_path: Path):
    experts = Experts(trained[0])
    assert not torch.equal(*[experts.snapshots(index, 0)[0] for index in range(2)])
    one = CONFIG.model_copy(update={"num_experts": 1})
    list(train_experts(data, one, tmp_path, seed=0))
    assert Experts(tmp_path).paths[0].read_bytes() == experts.paths[0].read_bytes()


def test_finished_experts_are_skipped_also_in_a_flat_folder(
    data: ImageData, trained, tmp_path: Path, monkeypatch
):
    folder = copy(trained, tmp_path)
    (folder / "expert_000.safetensors").unlink()
    done, original = [], module._train_expert

    def watched(data, config, seed, index, progress):
        done.append(index)
        return original(data, config, seed, index, progress)

    monkeypatch.setattr(module, "_train_expert", watched)
    assert list(train_experts(data, CONFIG, folder, seed=0)) == trained[1]
    assert done == [0] and not [path for path in folder.iterdir() if path.is_dir()]
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
    assert [path.name for path in tmp_path.glob("*/*")] == ["expert_000.safetensors"]


def test_other_settings_train_in_a_folder_of_their_own_and_are_found_again(
    data: ImageData, tmp_path: Path
):
    first = list(train_experts(data, QUICK, tmp_path, seed=0))
    before = Experts(tmp_path).paths[0].read_bytes()
    other = QUICK.model_copy(update={"expert_lr": 0.1})
    assert list(train_experts(data, other, tmp_path, seed=0)) != first
    with pytest.raises(ExpertError, match=r"holds experts of several settings \(\w{8}, \w{8}\)"):
        Experts(tmp_path)
    mine, theirs = (settings_folder(data, each, tmp_path, seed=0) for each in (QUICK, other))
    assert mine != theirs and Experts(mine).about[0]["settings"]["expert_lr"] == 0.05
    assert Experts(mine).paths[0].read_bytes() == before
    assert list(train_experts(data, QUICK, tmp_path, seed=0)) == first
    assert settings_folder(data, QUICK, tmp_path, seed=1) not in (mine, theirs)
    more = QUICK.model_copy(update={"num_experts": 9})  # of the same settings
    assert settings_folder(data, more, tmp_path, seed=0) == mine


def test_no_experts(tmp_path: Path):
    with pytest.raises(ExpertError, match="There are no experts in"):
        Experts(tmp_path)


def test_a_learning_rate_that_explodes(data: ImageData, tmp_path: Path):
    wild = CONFIG.model_copy(update={"expert_lr": 1e30})
    with pytest.raises(ExpertError, match="Expert 0 is non-finite after epoch 1; lower"):
        list(train_experts(data, wild, tmp_path, seed=0))


# ------------------------------------------------------------------------- experts know their data


def test_another_architecture_is_refused(data: ImageData, trained):
    experts = Experts(trained[0])
    experts.check(data, "ConvNetD2", 8, 3)
    with pytest.raises(ExpertError, match="expert_width 8, wanted 16"):
        experts.check(data, "ConvNetD2", 16, 3)
    with pytest.raises(ExpertError, match="trained for 3 epochs, the matching needs 4"):
        experts.check(data, "ConvNetD2", 8, 4)


@pytest.mark.parametrize("per_class", [0, 10])
def test_more_or_fewer_images_of_the_same_split_are_welcome(trained, per_class):
    other = load_data(DataConfig(dataset="digits", max_per_class=per_class))
    Experts(trained[0]).check(other, "ConvNetD2", 8, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("mean", r"mean \[.*\], wanted \[0.5\]"),
        ("zca", "whitening None, wanted [0-9a-f]+"),
        ("inverted", "held_out .*may have seen images that are held out here"),
        ("seed", "held_out .*may have seen images that are held out here"),
        ("holdout", "held_out .*may have seen images that are held out here"),
    ],
)
def test_other_data_are_refused(data: ImageData, trained, change, message):
    def inverted(split):
        return replace(split, images=255 - split.images)

    names = ("train", "validation", "test")
    other = {
        "mean": lambda: replace(data, normalization=ChannelNormalization((0.5,), data.std)),
        "zca": lambda: load_data(DataConfig(dataset="digits", max_per_class=40, zca=True)),
        "inverted": lambda: replace(
            data, **{name: inverted(getattr(data, name)) for name in names}
        ),
        "seed": lambda: load_data(DataConfig(dataset="digits", max_per_class=40), seed=1),
        "holdout": lambda: load_data(DataConfig(dataset="digits", max_per_class=40, holdout=0.2)),
    }[change]()
    with pytest.raises(ExpertError, match=message):
        Experts(trained[0]).check(other, "ConvNetD2", 8, 3)


# ------------------------------------------------------------------------------------------- files


def test_only_the_snapshots_asked_for_are_read(trained):
    experts = Experts(trained[0])
    start, end = experts.snapshots(0, 1, 3)
    whole = load_file(experts.paths[0])
    assert torch.equal(start, whole["epoch_001"]) and torch.equal(end, whole["epoch_003"])


def test_a_file_cut_off(data: ImageData, trained, tmp_path: Path):
    path = copy(trained, tmp_path) / "expert_001.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ExpertError, match="expert_001.safetensors' cannot be read"):
        Experts(tmp_path)
    with pytest.raises(ExpertError, match="move it away and the same call trains it again"):
        list(train_experts(data, CONFIG, tmp_path, seed=0))
    assert path.exists()


def test_every_flipped_bit_is_refused(trained, tmp_path: Path):
    path = tmp_path / "expert_000.safetensors"
    content = Experts(trained[0]).paths[0].read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    places = [*range(0, header, 37), *range(header, len(content), len(content) // 50)]
    for number, place in enumerate(places):
        damaged = bytearray(content)
        damaged[place] ^= 1 << number % 8
        path.unlink(missing_ok=True)
        path.write_bytes(damaged)
        with pytest.raises(ExpertError, match=r"cannot be read \((it is|its checksum)"):
            read_about(path)


def test_a_file_of_something_else(tmp_path: Path):
    save_file({"epoch_000": torch.zeros(3)}, tmp_path / "expert_000.safetensors")
    with pytest.raises(ExpertError, match="expert_000.safetensors' cannot be read"):
        Experts(tmp_path)


def test_a_file_that_cannot_be_opened_is_not_called_damaged(tmp_path: Path):
    (tmp_path / "expert_000.safetensors").mkdir()  # what is not readable for root too
    with pytest.raises(ExpertError, match=r"cannot be read \(Is a directory\); make it readable"):
        Experts(tmp_path)


def test_an_absurd_number_of_epochs_is_refused_at_once(tmp_path: Path):
    about = {"format": "gsdd-expert", "version": 2, "settings": {"train_epochs": 10**9}}
    write_tensors(tmp_path / "expert_000.safetensors", {"epoch_000": torch.zeros(3)}, about)
    with pytest.raises(ExpertError, match="snapshots are missing"):
        Experts(tmp_path)


def test_a_file_of_another_version_is_refused(tmp_path: Path):
    about = {"format": "gsdd-expert", "version": 3, "settings": {"train_epochs": 0}}
    write_tensors(tmp_path / "expert_000.safetensors", {"epoch_000": torch.zeros(3)}, about)
    with pytest.raises(ExpertError, match="has version 3 of the format, not 2.*move it away"):
        Experts(tmp_path)
