"""The distilled-set file: its bytes, a round trip in a fresh process, files that are refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gsdd_lib.config import DataConfig, RenderConfig
from gsdd_lib.data import ImageData, load_data
from gsdd_lib.parameterizations.gaussian import GaussianImages
from gsdd_lib.rng import generator
from gsdd_lib.storage import StorageError, load, save


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig(dataset="digits"))


@pytest.fixture
def gaussians(data: ImageData) -> GaussianImages:
    packed = torch.rand(20, 4, 7, generator=generator(0, "test"))
    return GaussianImages(
        packed,
        torch.arange(10).repeat_interleave(2),
        resolution=data.resolution,
        mean=data.mean,
        std=data.std,
        render_config=RenderConfig(saturate=False),
    )


@pytest.fixture
def path(tmp_path: Path, gaussians: GaussianImages, data: ImageData) -> Path:
    save(tmp_path / "set.safetensors", gaussians, data, {"seed": 3})
    return tmp_path / "set.safetensors"


def test_round_trip(path: Path, gaussians: GaussianImages, data: ImageData) -> None:
    loaded = load(path)
    assert torch.equal(loaded.gaussians.render(), gaussians.render())
    assert loaded.class_names == data.class_names and loaded.dataset_name == "digits"
    assert loaded.provenance == {"seed": 3}
    assert loaded.gaussians.render_config == RenderConfig(saturate=False)
    images, labels = loaded.dataset()[:]
    assert images.shape == (20, 1, 8, 8) and torch.equal(labels, gaussians.labels)
    assert torch.equal(images, gaussians.render())


def test_render_is_in_unit_range_at_any_resolution(path: Path) -> None:
    images = load(path).render(20)
    assert images.shape == (20, 1, 20, 20)
    assert 0 <= images.min() and images.max() <= 1


def test_size_is_the_numbers_the_labels_and_a_header(path: Path) -> None:
    size = path.stat().st_size
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert size == 8 + header + 20 * 4 * 7 * 2 + 20
    assert load(path).file_bytes == size
    assert header < 1024


def test_a_process_that_knows_nothing_else_can_use_it(
    path: Path, gaussians: GaussianImages
) -> None:
    code = (
        "import sys; from gsdd_lib.storage import load\n"
        "images = load(sys.argv[1]).render()\n"
        "print(list(images.shape), round(float(images.double().sum()), 3))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    expected = gaussians.render_unit().clamp(0, 1).double().sum().item()
    assert done.stdout.strip() == f"[20, 1, 8, 8] {round(expected, 3)}", done.stderr


def test_truncated_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StorageError, match="truncated"):
        load(path)


def test_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"\x89PNG not a tensor file at all")
    with pytest.raises(StorageError, match="not a safetensors file"):
        load(tmp_path / "image.png")


def test_safetensors_of_somebody_else(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(StorageError, match="not a distilled set"):
        load(tmp_path / "model.safetensors")


def rewrite(path: Path, tensors: dict | None = None, **metadata: str) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        kept = {name: file.get_tensor(name) for name in ("packed", "labels")} | (tensors or {})
        old = file.metadata()
    save_file(kept, path, metadata=old | metadata)


def test_another_version(path: Path) -> None:
    rewrite(path, version="99")
    with pytest.raises(StorageError, match="version 99.*reads version 1"):
        load(path)


def test_damaged_description(path: Path) -> None:
    rewrite(path, about="{")
    with pytest.raises(StorageError, match="damaged"):
        load(path)


def test_incomplete_description(path: Path) -> None:
    rewrite(path, about=json.dumps({"dataset": "digits"}))
    with pytest.raises(StorageError, match="lacks class_names"):
        load(path)


def test_labels_that_do_not_fit(path: Path) -> None:
    rewrite(path, {"labels": torch.zeros(7, dtype=torch.uint8)})
    with pytest.raises(StorageError, match="contradicts itself"):
        load(path)


def test_label_of_no_class(path: Path) -> None:
    rewrite(path, {"labels": torch.full((20,), 10, dtype=torch.uint8)})
    with pytest.raises(StorageError, match="label 10 but only 10 classes"):
        load(path)


def test_wrong_type_of_gaussians(path: Path) -> None:
    rewrite(path, {"packed": torch.zeros(20, 4, 7)})
    with pytest.raises(StorageError, match="lacks its Gaussians"):
        load(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no distilled set at"):
        load(tmp_path / "nothing.safetensors")
