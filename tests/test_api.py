"""One call on one's own images: tensors, arrays, folders; what it chooses; what it refuses."""

import numpy as np
import pytest
import torch
from PIL import Image

import gsdd_lib
from gsdd_lib.api import (
    as_image_data,
    distill_images,
    suggested_epochs,
    suggested_gpc,
    suggested_network,
)
from gsdd_lib.config import DataConfig, ExpertConfig
from gsdd_lib.core.errors import GsddError
from gsdd_lib.data import load_data
from gsdd_lib.data.synthetic import make_shapes
from gsdd_lib.storage import load
from gsdd_lib.training.experts import train_experts

QUICK = {"steps": 2, "width": 4, "epochs": 3}


@pytest.fixture(scope="module")
def shapes():
    """uint8 [48, 3, 8, 8] and labels of eight classes."""
    made = make_shapes(6, 8, seed=0)
    return made.images, made.labels


@pytest.fixture(scope="module")
def result(shapes):
    return distill_images(*shapes, ipc=1, **QUICK)


def test_from_tensors(result, tmp_path):
    assert [row["step"] for row in result.history] == [0, 1, 2]
    assert result.bits_per_class <= 3 * 8 * 8 * 32  # of one fp32 image
    assert result.labels.tolist() == sorted(list(range(8)) * (len(result) // 8))
    assert result.render(16).shape == (len(result.labels), 3, 16, 16)
    assert len(result.dataset()) == len(result.labels)
    assert result.evaluate()["n"] == 5
    size = result.save(tmp_path / "set.safetensors")
    assert load(tmp_path / "set.safetensors").file_bytes == size
    read_back = load(tmp_path / "set.safetensors").render()
    assert torch.allclose(read_back, result.render(), atol=1e-5)


def test_the_public_name_and_the_global_generator(shapes, result):
    before = torch.get_rng_state()
    again = gsdd_lib.distill_images(*shapes, ipc=1, **QUICK)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(again.gaussians.packed, result.gaussians.packed)


def test_from_a_folder(shapes, tmp_path):
    for i, (image, label) in enumerate(zip(*shapes, strict=True)):
        path = tmp_path / "mine" / f"class {label}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GSDD_CACHE", str(tmp_path / "cache"))
        small = distill_images(tmp_path / "mine", gpc=1, **QUICK, folder=tmp_path / "run")
    assert small.data.class_names == tuple(f"class {i}" for i in range(8))
    assert len(small.render()) == 8
    assert len(list((tmp_path / "run").glob("checkpoint.*.pt"))) == 1


def test_from_a_labeled_array():
    draw = np.random.default_rng(0)
    array, names = draw.random((30, 12, 10)), ["ant", "bee", "cow"] * 10
    small = distill_images((array, names), **QUICK)
    assert small.data.class_names == ("ant", "bee", "cow")
    assert (small.data.channels, small.data.resolution) == (1, (12, 10))


def test_what_is_taken_becomes_the_same_data(shapes):
    images, labels = shapes
    expected = as_image_data(images, labels).train
    forms = [
        (images.numpy(), labels.tolist()),
        (images.permute(0, 2, 3, 1).numpy(), labels.numpy()),
        (images, labels * 10 - 30),  # numbers with gaps
    ]
    for form in forms:
        found = as_image_data(*form).train
        assert torch.equal(found.images, expected.images)
        assert torch.equal(found.labels, expected.labels)
    assert as_image_data(images, labels * 10 - 30).class_names[0] == "-30"
    data = load_data(DataConfig(dataset="digits"))
    assert as_image_data(data) is data


def test_the_paper_s_depths_and_counts():
    sides = {8: 1, 28: 3, 32: 3, 64: 4, 128: 5, 256: 6}
    assert [suggested_network((s, s)) for s in sides] == [f"ConvNetD{d}" for d in sides.values()]
    assert suggested_network((12, 40)) == "ConvNetD2"
    assert suggested_network((512, 512)) == "ConvNetD6"
    cifar = as_image_data(torch.randint(0, 256, (30, 3, 32, 32)).byte(), torch.arange(30) % 3)
    assert suggested_gpc(cifar, ipc=1) == 31  # the paper: 30 images of 22 Gaussians
    digits = load_data(DataConfig(dataset="digits"))
    assert suggested_gpc(digits, ipc=1) == 4


BAD = {
    "no labels": (lambda x, y: (x,), "images need labels"),
    "labels of floats": (lambda x, y: (x, y / 2), "labels must be integers or names"),
    "labels in two dimensions": (lambda x, y: (x, y[:, None]), r"of shape \[48, 1\]"),
    "few labels": (lambda x, y: (x, y[:-1]), "of one length, got 48 and 47"),
    "floats up to 255": (lambda x, y: (x.float(), y), r"must lie in \[0, 1\]"),
    "no folder": (
        lambda x, y: ("no such folder",),
        "there is no folder .*/no such folder; name one",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(case, shapes):
    spoil, sentence = BAD[case]
    with pytest.raises(GsddError, match=sentence) as caught:
        distill_images(*spoil(*shapes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"ipc": "1"}, "^ipc must be a whole number, got '1'$"),
        ({"gpc": 1.5}, "gpc must be a whole number, got 1.5"),
        ({"ipc": 0}, "ipc must be at least 1, got 0"),
        ({"objective": "dmm"}, "unknown objective 'dmm', did you mean 'dm'"),
        ({"objective": "tm"}, "follows experts; pass the folder of train_experts"),
        ({"objective": "tm", "experts": "no/such/folder"}, "There are no experts in"),
        ({"dm_networks": "trained"}, "dm_networks='trained' takes experts; pass the folder of"),
        ({"dm_networks": "train"}, "dm_networks: Input should be 'untrained' or 'trained'"),
        ({"fit_step": 3}, "unknown setting 'fit_step', did you mean 'fit_steps'"),
        ({"lr": -1.0}, "DistillConfig: lr: Input should be greater than 0"),
    ],
)
def test_settings_are_refused_in_one_sentence(more, sentence, shapes):
    with pytest.raises(GsddError, match=sentence) as caught:
        distill_images(*shapes, **QUICK, **more)
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_are_taken(shapes, result):
    again = distill_images(*shapes, ipc=np.int64(1), seed=np.int32(0), **QUICK)
    assert torch.equal(again.gaussians.packed, result.gaussians.packed)


def test_it_says_beforehand_what_it_holds_out_and_what_the_budget_buys(shapes, capsys):
    distill_images(*shapes, ipc=1, gpc=4, **QUICK)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == (
        "32 images of 8 classes are distilled; held out: 8 to choose the best step, 8 to test"
    )
    assert said[1].startswith("IPC 1 (6,144 bits per class) -> GPC 4 x ")


def test_it_never_makes_more_images_than_it_was_given(shapes, capsys):
    small = distill_images(*shapes, gpc=9, **QUICK)
    assert len(small) == 32 == len(small.data.train)
    assert "4 Gaussian images per class, not 9: no more than" in capsys.readouterr().out
    assert suggested_gpc(small.data, 1) > 4  # what is suggested is capped too
    assert len(distill_images(*shapes, **QUICK)) == 32


def test_every_setting_can_be_given(shapes):
    more = {"fit_steps": 3, "eval_every": 1, "network": "ConvNetD2", "eval_width": 3}
    small = distill_images(*shapes, **QUICK, gpc=2, **more, opacity=False)
    assert small.training["eval_network"] == "ConvNetD2" and small.training["eval_width"] == 3
    assert not small.gaussians.opacity and [row["step"] for row in small.history] == [0, 1, 2]


@pytest.fixture
def experts(shapes, tmp_path):
    """Their folder, and the width that is none of theirs."""
    settings = {"num_experts": 1, "train_epochs": 3, "expert_network": "ConvNetD1"}
    config = ExpertConfig(**settings, expert_width=4)
    list(train_experts(as_image_data(*shapes), config, tmp_path, seed=0))
    return {"experts": tmp_path, "width": 99}


@pytest.mark.parametrize("objective", ["dc", "tm"])
def test_the_other_objectives(objective, shapes, experts):
    more = {"objective": objective, **QUICK}
    small = distill_images(*shapes, **more | (experts if objective == "tm" else {}))
    assert small.provenance["objective"] == objective
    assert (small.syn_lr is not None) == (objective == "tm")
    if objective == "tm":
        assert small.training["eval_lr"] == small.syn_lr and small.training["eval_width"] == 4


def test_distributions_are_matched_in_trained_networks(shapes, experts):
    small = distill_images(*shapes, **QUICK | experts, dm_networks="trained")
    assert small.training["eval_network"] == "ConvNetD1" and small.training["eval_width"] == 4
    other = distill_images(*shapes, **QUICK | {"width": 4}, network="ConvNetD1")
    assert small.history[-1]["loss"] != other.history[-1]["loss"]


def test_a_relative_folder_counts_from_the_project(shapes, tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    distill_images(*shapes, **QUICK, folder="runs/mine")
    assert list((tmp_path / "runs" / "mine").glob("checkpoint*.pt"))


def test_epochs_follow_from_the_size_of_the_set():
    assert [suggested_epochs(count) for count in (8, 100, 300, 1000, 10**5)] == [
        300,
        300,
        100,
        50,
        50,
    ]


def test_learned_labels(shapes, tmp_path):
    soft = distill_images(*shapes, ipc=2, **QUICK, soft_labels=True)
    assert soft.soft_labels.bits == len(soft) * 8 * 16
    assert soft.bits_per_class <= 2 * 3 * 8 * 8 * 32  # labels included
    images, targets = soft.dataset()[:]
    assert targets.shape == (len(images), 8) and soft.evaluate()["n"] == 5
    assert torch.allclose(targets.sum(1), torch.ones(len(images))) and targets.max() < 1
    soft.save(tmp_path / "soft.safetensors")
    loaded = load(tmp_path / "soft.safetensors")
    assert torch.equal(loaded.dataset()[:][1], targets)
    assert loaded.training["epochs"] == QUICK["epochs"]


def test_whitened_digits(tmp_path, monkeypatch):
    monkeypatch.setenv("GSDD_CACHE", str(tmp_path / "cache"))
    data = load_data(DataConfig(dataset="digits", zca=True, max_per_class=10))
    small = distill_images(data, gpc=2, **QUICK)
    small.save(tmp_path / "white.safetensors")
    read_back = load(tmp_path / "white.safetensors").render()
    assert torch.allclose(read_back, small.render(), atol=1e-5)
    assert small.render(16).shape[2:] == (16, 16)  # pictures need no whitening
