"""Images in files: the ImageNet subsets and a user's own folders, decoded once.

Trees of a few small images in the formats and places of the real ones stand for ImageNet and for
the folders imagenette2 and imagewoof2.
"""

import io
import os
import resource
import tomllib
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from gsdd_lib.config import DataConfig
from gsdd_lib.data import DataError, folders, load_data
from gsdd_lib.data import images as decoding
from gsdd_lib.data.folders import SUBSETS

NETTE = list(SUBSETS["imagenette"])
WOOF = list(SUBSETS["imagewoof"])
COUNTS = {"train": 3, "val": 1}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GSDD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GSDD_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def picture(color, size=(40, 30), kind="PNG", mode="RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, color).save(file, kind)
    return file.getvalue()


def encoded(levels, kind="PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(levels).save(file, kind)
    return file.getvalue()


def tree(wnids, counts=COUNTS) -> dict[str, bytes]:
    """Path -> JPEG; image i of class k has red 20 * k and green 40 * i, in a size of its own."""
    return {
        f"{split}/{wnid}/{wnid}_{i}.JPEG": picture((20 * k, 40 * i, 99), (40 + i, 30 + k), "JPEG")
        for split, count in counts.items()
        for k, wnid in enumerate(wnids)
        for i in range(count)
    }


def put(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def load(dataset, folder="", resolution=8, **fields):
    config = DataConfig(dataset=dataset, folder=str(folder), resolution=resolution, **fields)
    return load_data(config)


def left_in(cache):
    """What decoding leaves behind."""
    return sorted(path.suffix for path in cache.glob("*"))


def refused(sentence, *arguments, **fields):
    with pytest.raises(DataError, match=sentence) as caught:
        load(*arguments, **fields)
    assert "\n" not in str(caught.value)


# ImageNet subsets


def check_nette(data, wnids=NETTE, name="imagenette"):
    """Every image is labeled by its color, which says its class's place in ``wnids``."""
    assert data.class_names == tuple(SUBSETS[name].values())
    assert (data.mean, data.std) == (folders.MEAN, folders.STD)
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 10, 10)
    order = list(SUBSETS[name])
    for split in (data.train, data.validation, data.test):
        assert split.images.dtype == torch.uint8
        red = split.images[:, 0].float().mean((1, 2)) / 20
        shown = [wnids[k] for k in red.round().int().tolist()]
        assert shown == [order[label] for label in split.labels.tolist()]


def test_a_tree_of_imagenet_holds_more_classes_than_the_subset(tmp_path):
    files = tree(sorted([*NETTE, *WOOF[:1]]))  # folders in another order than the subset's
    root = put(tmp_path / "ILSVRC", files)
    data = load("imagenette", root)
    check_nette(data, sorted([*NETTE, *WOOF[:1]]))
    assert data.resolution == (8, 8)
    assert data.provenance == (
        "imagenette by WordNet id from a folder of ImageNet, 40 images, crop to 8x8,"
        " 10% of each class held out for validation"
    )


def test_labels_follow_the_subset_not_the_folder(tmp_path):
    assert WOOF != sorted(WOOF)
    data = load("imagewoof", put(tmp_path / "imagewoof2-160", tree(WOOF)))
    check_nette(data, WOOF, "imagewoof")


def test_a_published_folder_is_searched_for(tmp_path, monkeypatch):
    folder = put(tmp_path / "data" / "imagenette2-160", tree(NETTE))
    found = [load("imagenette", place) for place in (folder, folder.parent, "")]
    for data in found:
        check_nette(data)
        assert "from imagenette2-160, 40 images" in data.provenance
    monkeypatch.setenv("GSDD_DATA", str((tmp_path / "data").rename(tmp_path / "else")))
    check_nette(load("imagenette"))


def test_an_archive_is_to_be_unpacked(tmp_path):
    (tmp_path / "imagenette2-160.tgz").write_bytes(b"")
    refused("unpack an archive first, as in 'tar -xzf", "imagenette", tmp_path)
    refused("unpack an archive first", "imagenette", tmp_path / "imagenette2-160.tgz")


def test_the_largest_of_several_copies_is_taken(tmp_path, monkeypatch):
    for side in (160, 320):
        put(tmp_path / "all" / f"imagewoof2-{side}", tree(WOOF))
    put(tmp_path / "all" / "imagewoof2-backup", tree(NETTE))
    monkeypatch.setenv("GSDD_DATA", str(tmp_path / "all"))
    assert "from imagewoof2-320, 40 images" in load("imagewoof").provenance


def test_the_default_resolution_is_128(tmp_path):
    data = load("imagenette", put(tmp_path / "x", tree(NETTE)), resolution=0)
    assert data.resolution == (128, 128)


def test_the_subsets_are_ten_classes_each_by_id():
    assert sorted(SUBSETS) == sorted(
        f"image{name}" for name in ("nette", "woof", "fruit", "yellow", "meow", "squawk")
    )
    assert all(len(classes) == 10 for classes in SUBSETS.values())
    every = [row for rows in yaml.safe_load(folders.TABLE.read_text()).values() for row in rows]
    by_index = sorted({(row["index"], row["wnid"]) for row in every})
    assert [wnid for _, wnid in by_index] == sorted({row["wnid"] for row in every})


def test_the_list_of_subsets_travels_with_the_package():
    root = Path(__file__).resolve().parents[2]
    settings = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    package = root / "gsdd_lib"
    packed = {p for one in settings["package-data"]["gsdd_lib"] for p in package.glob(one)}
    assert package / "data" / "imagenet_subsets.yaml" in packed


def test_missing_classes_are_named(tmp_path):
    files = tree(NETTE)
    kept = {k: v for k, v in files.items() if NETTE[3] not in k and f"val/{NETTE[7]}" not in k}
    root = put(tmp_path / "x", kept)
    refused("'train' of .*x has no images of n03000684 \\('chainsaw'\\)$", "imagenette", root)
    put(tmp_path / "x", {k: v for k, v in files.items() if NETTE[3] in k})
    refused("'val' of .*x has no images of n03425413 \\('gas pump'\\)$", "imagenette", root)


def test_wrong_classes_are_named(tmp_path):
    sentence = (
        "has no images of n02096294 \\('Australian Terrier'\\), .*n02105641 .*;"
        " it has n01440764, n02102040, n02979186 \\.\\.\\."
    )
    refused(sentence, "imagewoof", put(tmp_path / "x", tree(NETTE)))


def test_validation_images_without_class_folders(tmp_path):
    root = put(tmp_path / "x", tree(NETTE, {"train": 3}))
    refused("x has no 'val' with a folder per WordNet id", "imagenette", root)


def test_no_imagenet_at_all(tmp_path):
    refused("no folder 'train' of ImageNet is in .*/data, .*imagenette2-320.tgz'", "imagenette")
    refused("to get imagefruit, name a folder with train/ and val/", "imagefruit", tmp_path / "no")


def test_an_enormous_file(tmp_path):
    root = put(tmp_path / "x", tree(NETTE))
    with open(root / "train" / NETTE[0] / "sparse.png", "wb") as file:
        file.truncate(20 * 2**30)  # takes no space
    refused("sparse.png has 21,474,836,480 bytes; at most 67,108,864", "imagenette", root)


def test_an_image_that_cannot_be_decoded(tmp_path, cache):
    files = tree(NETTE)
    name = f"val/{NETTE[2]}/{NETTE[2]}_0.JPEG"
    root = put(tmp_path / "x", files | {name: files[name][:-20]})
    refused(f"{name} cannot be decoded", "imagenette", root)
    put(root, {name: b"not an image"})
    refused(f"{name} is not an image .*; replace or remove it", "imagenette", root)
    assert left_in(cache) == []


def test_a_resolution_that_fills_the_disk(tmp_path, monkeypatch):
    usage = types.SimpleNamespace(free=2**20)
    monkeypatch.setattr(decoding.shutil, "disk_usage", lambda _: usage)
    root = put(tmp_path / "x", tree(NETTE))
    refused(r"cannot be kept in .* GiB are not free.*name another folder", "imagenette", root, 256)


def test_a_disk_that_fills_while_images_are_decoded(tmp_path, cache):
    root = put(tmp_path / "x", tree(NETTE))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, hard))  # of 40 * 192 bytes
    try:
        refused("cannot be kept in .*; free some space", "imagenette", root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert left_in(cache) == []


# Decoding


def test_decode_by_hand():
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, 2:6] = 200  # the center square
    content = encoded(image)
    crop = decoding.decode_image(content, (4, 4), source="x")
    assert torch.equal(crop, torch.full((3, 4, 4), 200, dtype=torch.uint8))
    gray = decoding.decode_image(content, (2, 2), channels=1, source="x")
    assert gray.shape == (1, 2, 2) and (gray == 200).float().mean() < 1  # the edge is smooth
    squashed = decoding.decode_image(content, (4, 4), resize="squash", source="x")
    assert squashed[0, 0].tolist() == [29, 175, 175, 29]  # 50 / 1.75 and 200 * 1.75 / 2
    with pytest.raises(DataError, match="x cannot be decoded .it has 8x4 pixels instead of 4x4"):
        decoding.decode_image(content, (4, 4), resize="exact", source="x")


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    content = picture(0, (5, 5), kind, mode)
    image = decoding.decode_image(content, (5, 5), source="x")
    assert image.shape == (3, 5, 5) and image.dtype == torch.uint8


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_become_eight(kind):
    levels = np.array([[0, 257, 128 * 257, 65_535]], np.uint16)
    image = decoding.decode_image(encoded(levels, kind), (1, 4), channels=1, source="x")
    assert image.tolist() == [[[0, 1, 128, 255]]]


def test_levels_without_a_maximum_are_refused():
    content = encoded(np.ones((2, 2), np.float32), "TIFF")
    with pytest.raises(DataError, match="x cannot be decoded .*save it with 8 or 16 bits"):
        decoding.decode_image(content, (2, 2), source="x")


def test_other_formats_than_the_suffixes_name_are_not_opened():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    assert Image.open(io.BytesIO(postscript)).format == "EPS"  # Pillow would start Ghostscript
    with pytest.raises(DataError, match="x.png is not an image"):
        decoding.decode_image(postscript, (4, 4), source="x.png")


def test_an_image_of_too_many_pixels(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 99)
    decoding.decode_image(picture(0, (9, 11)), (4, 4), source="x")
    with pytest.raises(DataError, match="x has more than 99 pixels; make it smaller"):
        decoding.decode_image(picture(0, (10, 10)), (4, 4), source="x")
    with pytest.raises(DataError, match="x cannot be decoded .99x1 pixels are too unequal to crop"):
        decoding.decode_image(picture(0, (99, 1)), (4, 4), source="x")


def test_images_are_decoded_once(tmp_path, monkeypatch, cache):
    root = put(tmp_path / "x", tree(NETTE))
    first = load("imagenette", root)
    assert left_in(cache) == [".pixels"]
    monkeypatch.setattr(decoding, "decode_image", None)
    assert torch.equal(load("imagenette", root).train.images, first.train.images)
    moved = root.rename(tmp_path / "elsewhere")
    assert torch.equal(load("imagenette", moved).train.images, first.train.images)


def test_other_images_of_the_same_names_sizes_and_times_are_decoded_anew(tmp_path):
    for name, level in (("dark", 10), ("light", 240)):
        for split, count in COUNTS.items():
            for i in range(count):
                for wnid in NETTE:
                    path = f"{split}/{wnid}/{i}.bmp"
                    put(tmp_path / name, {path: picture((level,) * 3, (8, 8), "BMP")})
                    os.utime(tmp_path / name / path, (1_000, 1_000))
    dark, light = (load("imagenette", tmp_path / name) for name in ("dark", "light"))
    assert dark.train.images.unique().tolist() == [10]
    assert light.train.images.unique().tolist() == [240]


def test_a_changed_tree_resolution_or_way_to_resize_is_decoded_again(tmp_path, cache):
    root = put(tmp_path / "x", tree(NETTE))
    load("imagenette", root)
    load("imagenette", root, 9)
    assert "squash to 8x8" in load("imagenette", root, resize="squash").provenance
    put(root, {f"train/{NETTE[0]}/more.png": picture((0, 0, 0))})
    assert len(load("imagenette", root).train) == 21
    assert left_in(cache) == [".pixels"] * 4


def test_an_interrupted_decoding_is_done_again(tmp_path, cache, monkeypatch):
    root = put(tmp_path / "x", tree(NETTE))
    calls, plain = [], decoding.decode_image

    def interrupted(*arguments, **options):
        calls.append(0)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return plain(*arguments, **options)

    monkeypatch.setattr(decoding, "decode_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load("imagenette", root)
    assert left_in(cache) == []
    check_nette(load("imagenette", root))


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_damaged_pixels_are_decoded_anew(tmp_path, cache, damage):
    root = put(tmp_path / "x", tree(NETTE))
    first = load("imagenette", root).fingerprint
    (path,) = cache.glob("*.pixels")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content if damage == "flip" else content[:-1])
    with pytest.warns(UserWarning, match="is damaged: decoding its images again"):
        assert load("imagenette", root).fingerprint == first


def test_a_cache_that_cannot_be_written(tmp_path, cache):
    cache.write_text("a file where the folder should be")
    root = put(tmp_path / "x", tree(NETTE))
    refused(r"cannot be kept in .*name another folder in \$GSDD_CACHE", "imagenette", root)


def test_raw_images_are_mapped_not_held(tmp_path):
    config = DataConfig(folder=str(put(tmp_path / "x", tree(NETTE))), resolution=8)
    raw = folders.read_imagenet_subset("imagenette", config)
    both = (raw.train.images, raw.test.images)
    assert both[0].untyped_storage().data_ptr() == both[1].untyped_storage().data_ptr()
    raw.train.images[0] = 7  # a private copy of the page: the file stays as it was
    again = folders.read_imagenet_subset("imagenette", config)
    assert not torch.equal(again.train.images[0], raw.train.images[0])


# imagefolder


def own(root, counts, size=(6, 5), mode="RGB"):
    """A folder per class; image i of every class has level 10 * i."""
    for name, count in counts.items():
        color = [(10 * i,) * 3 if mode == "RGB" else 10 * i for i in range(count)]
        put(root / name, {f"{i:02}.png": picture(c, size, mode=mode) for i, c in enumerate(color)})
    return root


def test_a_folder_per_class_is_split(tmp_path):
    root = own(tmp_path / "mine", {"dog": 10, "cat": 20})
    data = load("imagefolder", root, 0)
    assert data.class_names == ("cat", "dog")
    assert (data.channels, data.resolution) == (3, (5, 6))
    assert torch.bincount(data.test.labels).tolist() == [4, 2]
    assert len(data.train) + len(data.validation) == 24
    assert "mine" not in data.provenance
    assert data.provenance == (
        "imagefolder, 30 images of the folder given, 6x5, a fifth split off to test,"
        " 10% of each class held out for validation"
    )
    levels = torch.cat([data.train.images, data.validation.images]).float() / 255
    assert data.mean[0] == pytest.approx(float(levels.mean()), abs=1e-6)
    other = load_data(DataConfig(dataset="imagefolder", folder=str(root)), seed=5)
    assert torch.equal(data.test.images, other.test.images)


def test_train_and_test_folders(tmp_path):
    own(tmp_path / "mine" / "train", {"a": 4, "b": 4})
    own(tmp_path / "mine" / "test", {"b": 3})
    data = load("imagefolder", tmp_path / "mine", 4)
    assert (len(data.train), len(data.validation), len(data.test)) == (6, 2, 3)
    assert data.test.labels.tolist() == [1, 1, 1] and data.resolution == (4, 4)


def test_train_alone_is_split(tmp_path):
    own(tmp_path / "mine" / "train", {"a": 5, "b": 5})
    assert len(load("imagefolder", tmp_path / "mine", 4).test) == 2


def test_gray_files_give_one_channel(tmp_path):
    root = own(tmp_path / "mine", {"a": 4, "b": 4}, mode="L")
    assert load("imagefolder", root).channels == 1
    own(root, {"c": 4})
    assert load("imagefolder", root).channels == 3


def test_hidden_and_strange_files_are_left_out(tmp_path):
    root = own(tmp_path / "mine", {"a": 4, "b": 4, ".hidden": 2})
    put(root / "a", {".x.png": b"", "notes.txt": b"hello"})
    data = load("imagefolder", root)
    assert data.class_names == ("a", "b")


def few(root):
    own(root, {"a": 4, "b": 2})


def one_class(root):
    own(root, {"a": 4})


def sizes(root):
    own(root, {"a": 4})
    own(root, {"b": 4}, size=(7, 7))


def strange(root):
    own(root / "train", {"a": 4, "b": 4})
    own(root / "test", {"c": 1})


def empty_test(root):
    own(root / "train", {"a": 4, "b": 4})
    (root / "test").mkdir()


BAD = {
    "few images": (few, "class folder 'b' of .* holds 2 images; each class needs at least 3"),
    "one class": (one_class, "holds 1 class folders; classification needs at least two"),
    "sizes": (
        sizes,
        r"b/00.png cannot be decoded \(it has 7x7 pixels instead of 6x5; choose a resol",
    ),
    "a strange class": (strange, "has a class folder 'c' that .*train lacks"),
    "an empty test": (empty_test, "test holds no images; add some, or remove it"),
    "no folder": (lambda root: None, "there is no folder .*mine; name one"),
}


@pytest.mark.parametrize("case", BAD)
def test_imagefolder_refuses(case, tmp_path):
    build, sentence = BAD[case]
    build(tmp_path / "mine")
    refused(sentence, "imagefolder", tmp_path / "mine", 0)


def test_relative_folders_count_from_the_project(tmp_path, monkeypatch):
    own(tmp_path / "mine", {"a": 4, "b": 4})
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert load("imagefolder", "mine").class_names == ("a", "b")
    refused("there is no folder .*/other; name one", "imagefolder", "other")


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    def closed(_):
        raise PermissionError(13, "Permission denied", "mine/a")

    own(tmp_path / "mine", {"a": 4, "b": 4})
    monkeypatch.setattr(Path, "iterdir", closed)
    refused("^mine/a cannot be read .Permission denied.$", "imagefolder", tmp_path / "mine")


def test_loading_prints_nothing(tmp_path, capfd):
    load("imagefolder", own(tmp_path / "mine", {"a": 4, "b": 4}))
    assert capfd.readouterr() == ("", "")


def test_imagefolder_without_a_folder():
    refused("'imagefolder' needs the parameter 'folder'", "imagefolder")
