"""The distilled set: its file bit by bit, old files, files that are refused, export, display."""

import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from gsdd_lib.config import CodecConfig, DataConfig, EvalConfig, RenderConfig
from gsdd_lib.core.files import project_root, read_tensors, write_tensors
from gsdd_lib.core.rng import generator
from gsdd_lib.data import DataError, ImageData, load_data
from gsdd_lib.data.normalization import write_whitening
from gsdd_lib.distillation.soft_labels import SoftLabels
from gsdd_lib.parameterizations.budget import Budget
from gsdd_lib.parameterizations.gaussian import GaussianImages
from gsdd_lib.storage import DistilledSet, load
from gsdd_lib.storage.files import StorageError

OLD = Path(__file__).parents[1] / "old_sets"  # written by the library as it was at versions 1 and 2


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
    DistilledSet.of(gaussians, data, {"seed": 3}).save(tmp_path / "set.safetensors")
    return tmp_path / "set.safetensors"


def test_round_trip(path: Path, gaussians: GaussianImages, data: ImageData) -> None:
    loaded = load(path)
    assert torch.equal(loaded.gaussians.render(), gaussians.render())
    assert loaded.class_names == data.class_names and loaded.dataset_name == "digits"
    assert loaded.provenance == {"seed": 3}
    assert loaded.gaussians.render_config == RenderConfig(saturate=False)
    assert loaded.gaussians.normalization.fingerprint == data.normalization.fingerprint
    images, labels = loaded.dataset()[:]
    assert images.shape == (20, 1, 8, 8) and torch.equal(labels, gaussians.labels)
    assert torch.equal(images, gaussians.render())


def test_equal_sets_are_equal_bytes_and_a_loaded_set_saves_as_it_was(path: Path) -> None:
    content, again = path.read_bytes(), path.with_name("again.safetensors")
    for _ in range(3):
        load(path).save(again)
        assert again.read_bytes() == content


def flipped(content: bytes, count: int) -> Iterator[bytes]:
    """``content`` with another bit changed each time."""
    for bit in random.Random(0).sample(range(8 * len(content)), count):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        yield bytes(damaged)


def test_every_flipped_bit_is_refused(path: Path) -> None:
    content = path.read_bytes()
    for damaged in flipped(content, 300):
        path.write_bytes(damaged)
        with pytest.raises(
            StorageError, match=r"'set.safetensors' .*copy it again|not a distilled"
        ):
            load(path)


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


def test_images_of_other_channels_are_not_broadcast(path: Path) -> None:
    loaded = load(path)
    assert loaded.normalize(torch.rand(2, 1, 5, 5).double()).dtype == torch.float32
    with pytest.raises(DataError, match=r"\[2, 3, 8, 8\] do not fit the normalization"):
        loaded.normalize(torch.rand(2, 3, 8, 8))


# Files that are refused


def test_truncated_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StorageError, match="cannot be used: it is cut off"):
        load(path)


def test_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"\x89PNG not a tensor file at all")
    with pytest.raises(StorageError, match="cannot be used: it is cut off, altered, or of another"):
        load(tmp_path / "image.png")


def test_safetensors_of_somebody_else(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(StorageError, match="not a distilled set"):
        load(tmp_path / "model.safetensors")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no distilled set at"):
        load(tmp_path / "nothing.safetensors")


def rewrite_new(path: Path, tensors: dict | None = None, **about) -> None:
    """The file with other content, and the checksum of that."""
    kept, old = read_tensors(path, "gsdd-distilled-set")
    write_tensors(path, kept | (tensors or {}), old | about)


def rewrite_old(path: Path, tensors: dict | None = None, **about) -> None:
    """A file of version 2 with the content of ``path``, changed."""
    kept, old = read_tensors(path, "gsdd-distilled-set")
    described = {k: v for k, v in old.items() if k not in ("format", "version")} | about
    metadata = {"format": "gsdd-distilled-set", "version": "2", "about": json.dumps(described)}
    save_file(kept | (tensors or {}), path, metadata)


BF16 = torch.bfloat16
FAULTS = {  # tensors, description, what the sentence says
    "NaN Gaussians": ({"packed": torch.full((20, 4, 7), torch.nan, dtype=BF16)}, {}, "non-finite"),
    "no Gaussians": ({"packed": torch.zeros(20, 0, 7, dtype=BF16)}, {}, r"\[20, 0, 7\], not"),
    "fp32": ({"packed": torch.zeros(20, 4, 7)}, {}, r"float32 \[20, 4, 7\], not bfloat16"),
    "one number": ({"packed": torch.zeros((), dtype=BF16)}, {}, r"bfloat16 \[\], not bfloat16"),
    "another opacity": ({}, {"opacity": False}, r"mean \[0.3059\] for 2 channels"),
    "few labels": ({"labels": torch.zeros(7, dtype=torch.uint8)}, {}, r"uint8 \[7\], not an int"),
    "label 10": ({"labels": torch.full((20,), 10, dtype=torch.uint8)}, {}, "10 to 10 for 10 class"),
    "label -5": ({"labels": torch.full((20,), -5, dtype=torch.int32)}, {}, "-5 to -5 for 10 class"),
    "label 2.7": ({"labels": torch.full((20,), 2.7)}, {}, "labels are torch.float32"),
    "a stranger": ({"weight": torch.zeros(2)}, {}, "in place of Gaussians and labels"),
    "mean NaN": ({}, {"mean": [float("nan")]}, "mean.0: Input should be a finite number"),
    "mean of 3": ({}, {"mean": [0.1] * 3}, "for 1 channels"),
    "std 0": ({}, {"std": [0.0]}, "a positive deviation per channel"),
    "no std": ({}, {"std": []}, "a positive deviation per channel"),
    "space": ({}, {"space": "hello"}, "space: Input should be 'unit' or 'normalized'"),
    "names": ({}, {"class_names": 5}, r"class_names: Input should be a valid list \(got 5\)"),
    "no names": ({}, {"class_names": []}, "class_names: List should have at least 1 item"),
    "render": ({}, {"render": {"blur": True}}, "render: .*unknown parameter 'blur'"),
    "resolution": ({}, {"resolution": [8, 10**9]}, "resolution.1: Input should be less than"),
    "sides": ({}, {"resolution": [8]}, "resolution: List should have at least 2 items"),
    "unknown": ({}, {"colour": 1}, "unknown parameter 'colour'"),
    "syn_lr": ({}, {"syn_lr": -1.0}, "syn_lr: Input should be greater than 0"),
    "elsewhere": (
        {},
        {"whitening": {"file": "../../etc/passwd", "bytes": 1}},
        "whitening.*file: String should match pattern",
    ),
}


@pytest.mark.parametrize("rewrite", [rewrite_new, rewrite_old], ids=["version 3", "version 2"])
@pytest.mark.parametrize("case", FAULTS)
def test_content_that_cannot_be(path: Path, rewrite, case: str) -> None:
    tensors, about, sentence = FAULTS[case]
    rewrite(path, tensors, **about)
    with pytest.raises(StorageError, match=f"'set.safetensors' is not a usable.*{sentence}") as e:
        load(path)
    assert "\n" not in str(e.value) and len(str(e.value)) < 300


def test_descriptions_that_lack_something_or_are_of_another_version(path: Path) -> None:
    kept, old = read_tensors(path, "gsdd-distilled-set")
    del old["dataset"]
    write_tensors(path, kept, old)
    with pytest.raises(StorageError, match="dataset: Field required"):
        load(path)
    write_tensors(path, kept, old | {"version": 99})
    with pytest.raises(StorageError, match="format version 99, .* reads versions 1 to 3"):
        load(path)


@pytest.mark.parametrize(
    "text", ["{", "5", "[" * 10**5, '{"a": ' * 10**5, "null", '{"dataset": 1}']
)
def test_old_descriptions_that_are_none(path: Path, text: str) -> None:
    kept, _ = read_tensors(path, "gsdd-distilled-set")
    save_file(kept, path, {"format": "gsdd-distilled-set", "version": "2", "about": text})
    with pytest.raises(StorageError, match="is damaged; copy it again|is not a usable"):
        load(path)


def test_old_files_of_an_unknown_version(path: Path) -> None:
    kept, _ = read_tensors(path, "gsdd-distilled-set")
    for version in ("99", "12", "", "3"):
        save_file(kept, path, {"format": "gsdd-distilled-set", "version": version, "about": "{}"})
        with pytest.raises(StorageError, match="has format version|is not a usable"):
            load(path)


# Old files


@pytest.mark.parametrize("name", ["version_1", "version_2"])
def test_files_of_old_versions_give_what_they_gave(name: str, tmp_path: Path) -> None:
    expected = json.loads((OLD / "expected.json").read_text())[name]
    loaded = load(OLD / f"{name}.safetensors")
    loaded.save(tmp_path / "new.safetensors")
    for one in (loaded, load(tmp_path / "new.safetensors")):
        images, targets = one.dataset()[:]
        assert images.shape == (3, 1, 28, 28) and one.labels.tolist() == [0, 1, 9]
        sums = one.render().double().flatten(1).sum(1)
        assert sums.tolist() == pytest.approx(expected["pixel_sums"], rel=1e-6)
        sums = images.double().flatten(1).sum(1)
        assert sums.tolist() == pytest.approx(expected["dataset_sums"], rel=1e-5)
        assert torch.allclose(targets, torch.tensor(expected["targets"]))
        assert one.dataset_name == "fashion_mnist" and one.provenance == {"seed": 0}
        known = (one.training.get("epochs"), one.syn_lr)
        assert known == ((7, 0.125) if name == "version_2" else (None, None))


def test_an_old_whitened_set_gives_what_it_gave(tmp_path: Path) -> None:
    expected = json.loads((OLD / "expected.json").read_text())["version_2_whitened"]
    expected = {key: torch.tensor(value) for key, value in expected.items()}
    loaded = load(OLD / "version_2_whitened.safetensors")
    loaded.save(tmp_path / "new.safetensors")
    for one in (loaded, load(tmp_path / "new.safetensors")):
        assert one.gaussians.space == "normalized"
        assert torch.allclose(one.render(), expected["pixels"], atol=1e-5)
        assert torch.allclose(one.dataset()[:][0], expected["dataset"], atol=1e-6)
        assert torch.allclose(one.normalize(expected["of"].byte()), expected["normalized"])
    assert (tmp_path / "zca-b1ca134c8c1dea83947d0013d2e43700.safetensors").is_file()


# Learned labels, and what to train with


@pytest.fixture
def soft() -> SoftLabels:
    return SoftLabels(torch.randn(20, 10, generator=generator(0, "logits")))


@pytest.fixture
def soft_path(tmp_path: Path, gaussians: GaussianImages, data: ImageData, soft: SoftLabels) -> Path:
    path, config = tmp_path / "soft.safetensors", EvalConfig(epochs=7, eval_width=16)
    more = {"soft_labels": soft, "eval_config": config, "syn_lr": 0.125}
    DistilledSet.of(gaussians, data, **more).save(path)
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
    counted = 10 * budget.bits_per_class // 8
    assert soft_path.stat().st_size - 8 - header == counted + 20  # class numbers
    assert load(soft_path).bits_per_class == budget.bits_per_class


@pytest.mark.parametrize(
    ("logits", "sentence"),
    [
        (torch.zeros(20, 9, dtype=torch.bfloat16), r"labels are torch.bfloat16 \[20, 9\] for 10"),
        (torch.zeros(20, 10), "learned labels are torch.float32"),
        (torch.full((20, 10), torch.nan, dtype=torch.bfloat16), "learned labels have non-finite"),
    ],
)
def test_label_logits_that_do_not_fit(soft_path: Path, logits, sentence: str) -> None:
    rewrite_new(soft_path, {"label_logits": logits})
    with pytest.raises(StorageError, match=sentence):
        load(soft_path)


@pytest.fixture
def coded_path(tmp_path: Path, gaussians, data: ImageData, soft: SoftLabels) -> Path:
    made = DistilledSet.of(gaussians, data, soft_labels=soft)
    made.coded(CodecConfig()).save(tmp_path / "coded.safetensors")
    return tmp_path / "coded.safetensors"


def test_a_coded_set_is_smaller_and_what_it_was_when_it_was_made(
    coded_path: Path, gaussians: GaussianImages, data: ImageData, soft: SoftLabels
) -> None:
    plain = DistilledSet.of(gaussians, data, soft_labels=soft)
    made, loaded = plain.coded(CodecConfig()), load(coded_path)
    assert plain.gaussians.codec is None and plain.soft_labels.codec is None
    torch.testing.assert_close(loaded.render(), made.render())
    assert not torch.allclose(loaded.render(), plain.render())
    assert torch.equal(loaded.targets, made.targets.detach())
    assert torch.equal(loaded.labels, gaussians.labels)
    header = int.from_bytes(coded_path.read_bytes()[:8], "little")
    code = made.gaussians.bits + made.soft_labels.bits
    counts = 4 * 10
    assert coded_path.stat().st_size == 8 + header + code // 8 + counts
    assert loaded.bits_per_class == -(-code // 10) < plain.bits_per_class


def test_a_coded_set_is_saved_again_as_it_was(coded_path: Path, tmp_path: Path) -> None:
    loaded = load(coded_path)
    loaded.coded(CodecConfig(means_bits=2)).save(tmp_path / "again.safetensors")  # grids are kept
    assert (tmp_path / "again.safetensors").read_bytes() == coded_path.read_bytes()


def test_labels_in_any_order_are_stored_one_by_one(gaussians, data, tmp_path: Path) -> None:
    gaussians.labels.copy_(torch.arange(20) % 10)
    DistilledSet.of(gaussians, data).coded(CodecConfig()).save(tmp_path / "set.safetensors")
    assert torch.equal(load(tmp_path / "set.safetensors").labels, gaussians.labels)


def test_every_flipped_bit_of_a_coded_set_is_refused(coded_path: Path) -> None:
    content = coded_path.read_bytes()
    for damaged in flipped(content, 60):
        coded_path.write_bytes(damaged)
        with pytest.raises(StorageError):
            load(coded_path)


@pytest.mark.parametrize(
    ("tensors", "about", "sentence"),
    [
        ({"packed": torch.arange(90, dtype=torch.uint8)}, {}, "its packed cannot be decoded, its"),
        ({"packed": torch.zeros(0, dtype=torch.uint8)}, {}, "decoded, it is cut off"),
        ({"label_logits": torch.zeros(9, dtype=torch.uint8)}, {}, "label_logits cannot be decoded"),
        ({"counts": torch.zeros(10, dtype=torch.int32)}, {}, "its counts are not those of 20 im"),
        ({"counts": torch.tensor([30, -10] + [0] * 8).int()}, {}, "its counts are not those"),
        ({"counts": torch.tensor([20]).int()}, {}, "its counts are not those of 20 images of 10"),
        ({}, {"opacity": False}, "its codec is not for 2 colors"),
    ],
)
def test_coded_content_that_cannot_be(coded_path: Path, tensors, about, sentence: str) -> None:
    rewrite_new(coded_path, tensors, **about)
    with pytest.raises(StorageError, match=f"'coded.safetensors' is not a usable.*{sentence}"):
        load(coded_path)


def test_labels_of_other_images_are_refused(gaussians: GaussianImages, data: ImageData) -> None:
    with pytest.raises(StorageError, match=r"learned labels \[3, 10\] do not fit 20 images"):
        DistilledSet.of(gaussians, data, soft_labels=SoftLabels(torch.zeros(3, 10)))


def test_evaluation_needs_data_and_settings(path: Path, data: ImageData, gaussians) -> None:
    quick = EvalConfig(eval_network="ConvNetD1", eval_width=4, epochs=2, networks=2)
    made = DistilledSet.of(gaussians, data, eval_config=quick)
    assert made.evaluate(config=quick) == made.evaluate(data, config=quick)
    made.save(path)
    loaded = load(path)
    for wrong in ({}, {"data": "validation"}):
        with pytest.raises(StorageError, match="needs images to be tested on"):
            loaded.evaluate(**wrong)
    assert loaded.evaluate(data, split="validation")["n"] == 5
    DistilledSet.of(gaussians, data).save(path)
    with pytest.raises(StorageError, match="does not say how to train"):
        load(path).evaluate(data)


# Export and display


def test_export(path: Path, soft_path: Path, tmp_path: Path) -> None:
    folder = load(path).export(tmp_path / "out" / "plain")
    images = torch.load(folder / "images.pt", weights_only=True)
    labels = torch.load(folder / "labels.pt", weights_only=True)
    assert torch.equal(images, load(path).dataset()[:][0]) and labels.dtype == torch.int64
    pictures = sorted(folder.glob("png/*/*.png"))
    assert len(pictures) == 20 and pictures[3].relative_to(folder / "png").as_posix() == (
        "001_1/00003.png"
    )
    expected = (load(path).render()[3, 0] * 255).round().byte().numpy()
    assert np.array_equal(np.asarray(Image.open(pictures[3])), expected)
    soft = load(soft_path).export(tmp_path / "soft", resolution=16)
    assert torch.load(soft / "labels.pt", weights_only=True).shape == (20, 10)
    assert Image.open(next(soft.glob("png/*/*.png"))).size == (16, 16)


def test_export_overwrites_nothing_and_leaves_nothing_half_done(path: Path, tmp_path: Path) -> None:
    loaded = load(path)
    loaded.export(tmp_path / "out")
    with pytest.raises(StorageError, match="is not empty; choose a new folder"):
        loaded.export(tmp_path / "out")
    with pytest.raises(StorageError, match="is not empty"):
        loaded.export(path)
    bad = DistilledSet(loaded.gaussians, "digits", ("only one",))
    with pytest.raises(IndexError):
        bad.export(tmp_path / "bad")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out", "set.safetensors"]


def test_class_names_cannot_leave_the_folder(gaussians, data, tmp_path: Path) -> None:
    names = ("../up", "a/b", *"cdefghij")
    made = DistilledSet(gaussians, "digits", names)
    made.export(tmp_path / "out")
    folders = sorted(each.name for each in (tmp_path / "out" / "png").iterdir())
    assert folders[:2] == ["000_.._up", "001_a_b"] and len(folders) == 10
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_it_says_briefly_what_it_is(path: Path, soft_path: Path, gaussians, data) -> None:
    expected = "data set digits, classes 10, images 20, Gaussians each 4, bits per class 896"
    assert repr(load(path)) == f"DistilledSet({expected})"
    summary = {"mean": 71.25, "std": 1.0, "n": 5, "ci95": 1.2, "split": "validation"}
    scored = DistilledSet.of(gaussians, data, {"accuracy": summary})
    assert "validation accuracy (%) 71.2 ± 1.2" in repr(scored)
    for wrong in ("high", {"mean": "high", "ci95": [], "n": {}, "split": 1}):
        assert "DistilledSet(" in repr(DistilledSet.of(gaussians, data, {"accuracy": wrong}))


def test_a_notebook_shows_a_table_and_pictures(path: Path, gaussians) -> None:
    page = load(path)._repr_html_()
    assert page.count("<th>") == page.count("<td>") == 5 and "data:image/png;base64," in page
    assert len(page) < 5_000
    sly = DistilledSet(gaussians, "<script>", ("<b>",) * 10)._repr_html_()
    assert "<script>" not in sly and "<b>" not in sly


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
    DistilledSet.of(gaussians, whitened).save(tmp_path / "white.safetensors")
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
    assert companion(white_path).stat().st_size > 2 * 4 * 64**2
    assert loaded.file_bytes == white_path.stat().st_size < 4_000


def test_sets_share_a_whitening_that_is_written_once(white_path: Path, whitened: ImageData) -> None:
    before, other = companion(white_path).stat().st_mtime_ns, white_path.with_name("b.safetensors")
    made = DistilledSet.of(load(white_path).gaussians, whitened)
    made.gaussians.normalization = whitened.normalization
    made.save(other)
    assert companion(white_path).stat().st_mtime_ns == before
    companion(white_path).write_bytes(b"damaged")
    made.save(other)
    assert load(other).normalize(whitened.test.images[:1]).isfinite().all()


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
        with pytest.raises(DataError, match=f"'{name}' cannot be used .*write_whitening") as caught:
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
    with pytest.raises(DataError, match="cannot be used .*copy it again to the set's folder"):
        load(white_path).normalize(torch.zeros(1, 1, 8, 8))


def test_a_whitened_set_has_one_resolution(white_path: Path) -> None:
    loaded = load(white_path)
    with pytest.raises(DataError, match=r"\[20, 1, 16, 16\] do not fit the whitening"):
        loaded.dataset(16)
    with pytest.raises(DataError, match=r"\[1, 1, 9, 9\] do not fit the whitening"):
        loaded.normalize(torch.zeros(1, 1, 9, 9))


BUDGETS = {"25kbit": 25_088, "98kbit": 98_304, "251kbit": 250_880, "983kbit": 983_040}
BUDGETS |= {"1254kbit": 1_254_400, "2kbit": 2_560, "8kbit": 8_192, "10kbit": 10_240}


@pytest.mark.parametrize("path", sorted(project_root().glob("distilled/*.safetensors")))
def test_the_committed_sets_load_and_weigh_what_their_name_says(path):
    small, budget = load(path), BUDGETS[re.search(r"\d+kbit", path.stem)[0]]
    assert 8 * small.file_bytes / len(small.class_names) <= budget
    assert small.labels.bincount().unique().numel() == 1
    assert torch.isfinite(small.render()).all()
