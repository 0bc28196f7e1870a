"""Checkpoints: whole or refused, found again by their own run, never lost to another one."""

import os
import pickle
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distillation.test_loop import CONFIG, EVALUATION, make
from torch.nn.functional import one_hot

from gsdd_lib.config import CodecConfig, DataConfig
from gsdd_lib.core.files import FolderInUseError, lock_folder, seal, unseal
from gsdd_lib.data import ImageData, load_data
from gsdd_lib.distillation.loop import distill
from gsdd_lib.distillation.soft_labels import SoftLabels
from gsdd_lib.distillation.state import Checkpoint, DistillError, State, read_checkpoint
from gsdd_lib.parameterizations.codec import Codec, LabelCodec

SHORT = CONFIG.model_copy(update={"steps": 2, "eval_every": 2, "select_networks": 1})


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig(dataset="digits", max_per_class=20))


@pytest.fixture(scope="module")
def written(data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a finished run; copies of it are damaged."""
    return only(run(data, tmp_path_factory.mktemp("written")))


def run(
    data: ImageData, folder: Path, config=SHORT, evaluation=EVALUATION, seed: int = 0, **named
) -> Path:
    gaussians = named.pop("gaussians", None) or make(data)
    list(distill(gaussians, data, config, evaluation, seed=seed, folder=folder, **named))
    return folder


def only(folder: Path) -> Path:
    (path,) = folder.glob("checkpoint.*.pt")
    return path


def test_a_flipped_bit_anywhere_is_refused(data: ImageData, written: Path, tmp_path: Path) -> None:
    content, path = bytearray(written.read_bytes()), tmp_path / written.name
    places = [0, 31, 32, len(content) - 1]
    places += random.Random(0).choices(range(len(content)), k=60)
    for place in places:
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        content[place] ^= 1 << place % 8
        with pytest.raises(DistillError, match=r"checkpoint\.\w{8}\.pt is damaged"):
            read_checkpoint(path)
    path.write_bytes(content[:-1])
    with pytest.raises(DistillError, match=r"is damaged .*; put back a copy, or move it away"):
        run(data, tmp_path)
    path.write_bytes(content)
    run(data, tmp_path)


class Malice:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_a_malicious_checkpoint_gets_one_sentence(
    data: ImageData, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"settings": Malice()}, "evil")
    for evil in (Path("evil").read_bytes(), pickle.dumps(Malice(), protocol=2), b"", b"\x80"):
        (tmp_path / written.name).write_bytes(seal(evil))
        with pytest.raises(DistillError) as caught:
            run(data, tmp_path)
        assert "was not written by a distillation" in str(caught.value)
        assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)
        assert caught.value.__cause__ is None and caught.value.__suppress_context__
    assert not Path("executed").exists()


@pytest.mark.parametrize("content", [{}, {"settings": {}}, [1, 2], {"settings": None, "step": 1}])
def test_other_content_is_refused(data: ImageData, written: Path, tmp_path: Path, content) -> None:
    torch.save(content, tmp_path / "other")
    (tmp_path / written.name).write_bytes(seal((tmp_path / "other").read_bytes()))
    with pytest.raises(DistillError, match="is damaged or was not written by"):
        run(data, tmp_path)


def test_a_file_that_cannot_be_read_is_named(
    data: ImageData, written: Path, tmp_path: Path
) -> None:
    (tmp_path / written.name).mkdir()  # what root cannot read either
    with pytest.raises(DistillError, match=r"cannot be read \(Is a directory\); change its perm"):
        run(data, tmp_path)


def test_a_checkpoint_of_another_device_is_read(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, found = make(data), make(data)
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    run(data, tmp_path, gaussians=whole, snapshots=[])
    monkeypatch.undo()
    content = unseal(only(tmp_path).read_bytes())
    (tmp_path / "bare").write_bytes(content)
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(tmp_path / "bare", weights_only=True)
    run(data, tmp_path, gaussians=found, snapshots=[])
    assert torch.equal(whole.packed, found.packed)


def other_data(data: ImageData) -> ImageData:
    """Inverted images: the same name, sizes and labels."""
    return replace(data, train=replace(data.train, images=255 - data.train.images))


CHANGES = {
    "lr 0.01 -> 0.5": lambda data: {"config": SHORT.model_copy(update={"lr": 0.5})},
    "epochs 6 -> 5": lambda data: {"evaluation": EVALUATION.model_copy(update={"epochs": 5})},
    "seed 0 -> 1": lambda data: {"seed": 1},
    "data": lambda data: {"data": other_data(data), "gaussians": make(data)},
    "start": lambda data: {"soft_labels": SoftLabels(4.4 * one_hot(make(data).labels, 10))},
    "snapshots False -> True": lambda data: {"snapshots": []},
}


@pytest.mark.parametrize("said", CHANGES)
def test_other_settings_start_anew_and_the_old_ones_are_found_again(
    data: ImageData, written: Path, tmp_path: Path, capsys: pytest.CaptureFixture, said: str
) -> None:
    (tmp_path / written.name).write_bytes(written.read_bytes())
    run(**{"data": data, "folder": tmp_path, **CHANGES[said](data)})
    line = f"settings changed ({said}): starting anew; the old checkpoint is kept as {written.name}"
    assert line in capsys.readouterr().out
    assert len(list(tmp_path.glob("checkpoint.*.pt"))) == 2
    assert (tmp_path / written.name).read_bytes() == written.read_bytes()
    run(data, tmp_path)
    assert "the run is finished; read from" in capsys.readouterr().out


def test_another_storage_of_equal_numbers_is_another_start(data: ImageData) -> None:
    starts = []
    for bits, label_bits in ((16, 16), (32, 16), (8, 16), (7, 16), (16, 4)):
        made = make(data)
        soft = SoftLabels(4.4 * one_hot(made.labels, 10))
        made.store_bf16 = bits == 16
        if bits < 16:
            codec = CodecConfig(color_bits=bits)
            made.codec = Codec.fit(made.packed, codec, channels=1)
        soft.codec = LabelCodec.fit(soft.logits) if label_bits == 4 else None
        state = State(made, data, SHORT, soft_labels=soft)
        starts.append(Checkpoint(Path(), state, data, EVALUATION, 0).path)
    assert len(set(starts)) == 5


def test_many_changes_are_counted(
    data: ImageData, written: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / written.name).write_bytes(written.read_bytes())
    many = {"lr": 0.5, "width": 4, "boundary": 0.0, "dsa": "", "batch_real": 8, "steps": 1}
    run(data, tmp_path, SHORT.model_copy(update=many))
    assert "(steps 2 -> 1, lr 0.01 -> 0.5, " in (out := capsys.readouterr().out)
    assert ", 2 more): starting anew" in out


def test_a_damaged_old_checkpoint_does_not_stop_another_run(
    data: ImageData, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "checkpoint.00000000.pt").write_bytes(b"cut off")
    run(data, tmp_path)
    assert "settings changed" not in capsys.readouterr().out
    assert (tmp_path / "checkpoint.00000000.pt").read_bytes() == b"cut off"


def test_what_changes_no_step_goes_on(
    data: ImageData, written: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / written.name).write_bytes(written.read_bytes())
    evaluation = EVALUATION.model_copy(update={"networks": 9, "protocol": "paper"})
    run(data, tmp_path, SHORT.model_copy(update={"micro_batch": 3, "keep_steps": 1}), evaluation)
    assert "the run is finished" in capsys.readouterr().out


def test_resuming_says_where(
    data: ImageData, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = SHORT.model_copy(update={"steps": 3, "eval_every": 1})
    rows = distill(make(data), data, config, EVALUATION, seed=0, folder=tmp_path)
    assert [next(rows)["step"], next(rows)["step"]] == [0, 1]
    rows.close()
    capsys.readouterr()
    run(data, tmp_path, config)
    assert capsys.readouterr().out.splitlines()[0] == "resuming at step 1 of 3"


def test_a_folder_in_use_is_refused_before_work(data: ImageData, tmp_path: Path) -> None:
    with lock_folder(tmp_path), pytest.raises(FolderInUseError, match="is at work in"):
        run(data, tmp_path)
    assert not list(tmp_path.glob("checkpoint.*.pt"))
    run(data, tmp_path)


def test_the_state_goes_through_a_file(data: ImageData, tmp_path: Path) -> None:
    state, other = State(make(data), data, CONFIG), State(make(data), data, CONFIG)
    files = [Checkpoint(tmp_path, each, data, EVALUATION, 0) for each in (state, other)]
    with torch.no_grad():
        state.log_syn_lr.add_(0.3)
        state.parameterization.packed.add_(0.1)
    state.network, state.step = torch.randn(4), 5
    files[0].save(state)
    assert files[1].load(other) == "resuming at step 5 of 8"
    assert other.syn_lr == state.syn_lr != CONFIG.syn_lr_init
    assert torch.equal(other.network, state.network)
    assert torch.equal(other.parameterization.packed, state.parameterization.packed)
