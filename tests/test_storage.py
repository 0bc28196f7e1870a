"""The distilled-set file: its bytes, a round trip in a fresh process, files that are refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gsdd_lib.config import DataConfig, EvalConfig, RenderConfig
from gsdd_lib.core.rng import generator
from gsdd_lib.data import DataError, ImageData, load_data
from gsdd_lib.data.normalization import write_whitening
from gsdd_lib.distillation.soft_labels import SoftLabels
from gsdd_lib.parameterizations.budget import Budget
from gsdd_lib.parameterizations.gaussian import GaussianImages
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
        normalization=data.normalization,
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
    expected = gaussians.pixels().clamp(0, 1).double().sum().item()
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
        kept = {name: file.get_tensor(name) for name in file.keys()} | (tensors or {})  # noqa: SIM118
        old = file.metadata()
    save_file(kept, path, metadata=old | metadata)


def test_another_version(path: Path) -> None:
    rewrite(path, version="99")
    with pytest.raises(StorageError, match="version 99.*reads versions 1, 2, 3"):
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


def test_version_1_is_read(path: Path, gaussians: GaussianImages) -> None:
    rewrite(path, version="1")  # without labels and whitening it differs by this number alone
    assert torch.equal(load(path).gaussians.render(), gaussians.render())


# Learned labels, and what to train with


@pytest.fixture
def soft() -> SoftLabels:
    return SoftLabels(torch.randn(20, 10, generator=generator(0, "logits")))


@pytest.fixture
def soft_path(tmp_path: Path, gaussians: GaussianImages, data: ImageData, soft: SoftLabels) -> Path:
    path = tmp_path / "soft.safetensors"
    more = {"eval_config": EvalConfig(epochs=7, eval_width=16), "syn_lr": 0.125}
    save(path, gaussians, data, {}, soft_labels=soft, **more)
    return path


def test_learned_labels_come_back_as_targets(
    soft_path: Path, gaussians: GaussianImages, soft: SoftLabels
) -> None:
    loaded = load(soft_path)
    assert torch.equal(loaded.dataset()[:][1], soft.probabilities().detach())
    assert torch.equal(loaded.labels, gaussians.labels)
    assert loaded.syn_lr == 0.125
    assert (loaded.training["epochs"], loaded.training["eval_width"]) == (7, 16)
    assert EvalConfig(**loaded.training).eval_network == "ConvNetD3"


def test_a_file_with_learned_labels_is_what_the_budget_counts(soft_path: Path) -> None:
    budget = Budget(ipc=4, gpc=2, points=4, channels=1, height=8, width=8, label_bits=160)
    header = int.from_bytes(soft_path.read_bytes()[:8], "little")
    assert soft_path.stat().st_size - 8 - header == budget.file_bytes(10) + 20  # class numbers


@pytest.mark.parametrize(
    ("logits", "sentence"),
    [
        (torch.zeros(20, 9, dtype=torch.bfloat16), r"contradicts itself.*\[20, 9\] for 20 images"),
        (torch.zeros(20, 10), "contradicts itself: learned labels torch.float32"),
        (torch.full((20, 10), torch.nan, dtype=torch.bfloat16), "labels that are no numbers"),
    ],
)
def test_label_logits_that_do_not_fit(soft_path: Path, logits, sentence: str) -> None:
    rewrite(soft_path, {"label_logits": logits})
    with pytest.raises(StorageError, match=sentence):
        load(soft_path)


def test_labels_of_other_images_are_not_written(
    tmp_path: Path, gaussians: GaussianImages, data: ImageData
) -> None:
    soft = SoftLabels(torch.zeros(3, 10))
    with pytest.raises(StorageError, match=r"learned labels \[3, 10\] do not fit 20 images"):
        save(tmp_path / "set.safetensors", gaussians, data, {}, soft_labels=soft)
    assert not list(tmp_path.iterdir())


# Whitening


@pytest.fixture(scope="module")
def whitened(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GSDD_CACHE", str(tmp_path_factory.mktemp("cache")))
        return load_data(DataConfig(dataset="digits", zca=True))


@pytest.fixture
def white_path(tmp_path: Path, whitened: ImageData) -> Path:
    packed = torch.rand(20, 4, 7, generator=generator(0, "test"))
    labels, size = torch.arange(10).repeat_interleave(2), whitened.resolution
    gaussians = GaussianImages(
        packed, labels, resolution=size, normalization=whitened.normalization
    )
    save(tmp_path / "white.safetensors", gaussians, whitened, {})
    return tmp_path / "white.safetensors"


def companion(path: Path) -> Path:
    (found,) = path.parent.glob("zca-*.safetensors")
    return found


def test_whitening_of_real_images_and_pictures(white_path: Path, whitened: ImageData) -> None:
    loaded, real = load(white_path), whitened.test.images[:5]
    assert torch.equal(loaded.normalize(real), whitened.normalize(real))
    assert torch.equal(loaded.normalize(real / 255), whitened.normalize(real))
    rendered = loaded.gaussians.render()
    assert torch.equal(loaded.dataset()[:][0], rendered)
    assert torch.equal(rendered, whitened.normalize(loaded.gaussians.pixels()))
    assert torch.equal(loaded.render(8), loaded.render())


def test_the_whitening_is_a_file_of_its_own(white_path: Path) -> None:
    loaded = load(white_path)
    assert loaded.whitening_bytes == companion(white_path).stat().st_size > 2 * 4 * 64**2
    assert loaded.file_bytes == white_path.stat().st_size < 4_000


def test_sets_share_a_whitening_that_is_written_once(white_path: Path, whitened: ImageData) -> None:
    before = companion(white_path).stat().st_mtime_ns
    save(white_path.with_name("other.safetensors"), load(white_path).gaussians, whitened, {})
    assert companion(white_path).stat().st_mtime_ns == before
    companion(white_path).write_bytes(b"damaged")
    save(white_path.with_name("other.safetensors"), load(white_path).gaussians, whitened, {})
    assert load(white_path).normalize(whitened.test.images[:1]).isfinite().all()


def test_a_fresh_process_loads_renders_and_normalizes(
    white_path: Path, whitened: ImageData
) -> None:
    code = (
        "import sys, torch; from gsdd_lib.storage import load\n"
        "small = load(sys.argv[1]); real = torch.full((2, 1, 8, 8), 0.5)\n"
        "print(round(float(small.render().double().sum()), 3), len(small.dataset()),"
        " round(float(small.normalize(real).double().sum()), 3))"
    )
    done = subprocess.run([sys.executable, "-c", code, white_path], capture_output=True, text=True)
    here, real = load(white_path), torch.full((2, 1, 8, 8), 0.5)
    sums = [t.double().sum().item() for t in (here.render(), whitened.normalize(real))]
    assert done.stdout.strip() == f"{round(sums[0], 3)} 20 {round(sums[1], 3)}", done.stderr


def test_a_missing_whitening_is_named_and_can_be_made_again(
    white_path: Path, whitened: ImageData
) -> None:
    name = companion(white_path).name
    companion(white_path).unlink()
    loaded = load(white_path)
    assert loaded.render(16).shape == (20, 1, 16, 16)  # pictures need no whitening
    for use in (lambda: loaded.normalize(torch.zeros(1, 1, 8, 8)), loaded.dataset):
        with pytest.raises(
            StorageError, match=f"'{name}' cannot be used .*write_whitening"
        ) as caught:
            use()
        assert "\n" not in str(caught.value) and "dataset='digits', zca=True" in str(caught.value)
    write_whitening(white_path.parent, whitened.normalization)
    assert companion(white_path).name == name and len(loaded.dataset()) == 20


def spoil_bytes(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


SPOILED = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "one bit": spoil_bytes,
    "other kind": lambda path: save_file({"a": torch.zeros(2)}, path),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_whitening_that_cannot_be_used(white_path: Path, case: str) -> None:
    SPOILED[case](companion(white_path))
    with pytest.raises(StorageError, match="cannot be used .*copy it again to the set's folder"):
        load(white_path).normalize(torch.zeros(1, 1, 8, 8))


def test_a_whitened_set_has_one_resolution(white_path: Path) -> None:
    loaded = load(white_path)
    with pytest.raises(DataError, match=r"\[20, 1, 16, 16\] do not fit the whitening"):
        loaded.dataset(16)
    with pytest.raises(DataError, match=r"\[1, 1, 9, 9\] do not fit the whitening"):
        loaded.normalize(torch.zeros(1, 1, 9, 9))
