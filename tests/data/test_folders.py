"""Images in files: the ImageNet subsets and a user's own folders, packed or not, decoded once.

Trees of a few small images in the formats and places of the real ones stand for ImageNet and for
the archives imagenette2 and imagewoof2.
"""

import hashlib
import io
import tarfile
import tomllib
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gsdd_lib.config import DataConfig
from gsdd_lib.data import DataError, imagenet, load_data
from gsdd_lib.data import cache as decoded
from gsdd_lib.data.imagenet import SUBSETS

NETTE = [one.wnid for one in SUBSETS["imagenette"]]
WOOF = [one.wnid for one in SUBSETS["imagewoof"]]
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


def pack(path, files, folder):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def load(dataset, folder="", resolution=8, **fields):
    config = DataConfig(dataset=dataset, folder=str(folder), resolution=resolution, **fields)
    return load_data(config)


def refused(sentence, *arguments, **fields):
    with pytest.raises(DataError, match=sentence) as caught:
        load(*arguments, **fields)
    assert "\n" not in str(caught.value)


# ImageNet subsets


def check_nette(data, wnids=NETTE, name="imagenette"):
    """Every image is labeled by its color, which says its class's place in ``wnids``."""
    assert data.class_names == tuple(one.name for one in SUBSETS[name])
    assert (data.mean, data.std) == (imagenet.MEAN, imagenet.STD)
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 10, 10)
    order = [one.wnid for one in SUBSETS[name]]
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
    assert data.provenance == ("imagenette by WordNet id from a folder of ImageNet, 8x8, 40 images")


def test_labels_follow_the_subset_not_the_folder(tmp_path):
    assert WOOF != sorted(WOOF)
    data = load("imagewoof", put(tmp_path / "imagewoof2-160", tree(WOOF)))
    check_nette(data, WOOF, "imagewoof")


def test_the_published_archive_packed_unpacked_and_searched_for(tmp_path, monkeypatch):
    files = tree(NETTE)
    path = pack(tmp_path / "data" / "imagenette2-160.tgz", files, "imagenette2-160")
    checksum = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(imagenet.MD5, path.name, checksum)
    packed = [load("imagenette", place) for place in (path, path.parent, "")]
    for data in packed:
        check_nette(data)
        assert "from imagenette2-160.tgz" in data.provenance
    folder = load("imagenette", put(tmp_path / "else" / "imagenette2-160", files).parent)
    assert torch.equal(folder.train.images, packed[0].train.images)
    monkeypatch.setenv("GSDD_DATA", str(tmp_path / "else"))
    check_nette(load("imagenette"))


def test_an_archive_in_another_order_gives_the_same_images(tmp_path):
    files = tree(NETTE)
    one = load("imagenette", pack(tmp_path / "a.tgz", files, "x"))
    backwards = dict(reversed(list(files.items())))
    other = load("imagenette", pack(tmp_path / "b.tgz", backwards, "./x"))
    assert torch.equal(one.train.images, other.train.images)
    assert torch.equal(one.train.labels, other.train.labels)


def test_an_archive_is_read_once(tmp_path, monkeypatch):
    path = pack(tmp_path / "imagenet.tgz", tree(NETTE), "imagenet")
    first = load("imagenette", path)
    monkeypatch.setattr("gsdd_lib.data.sources.tarfile", None)
    assert torch.equal(load("imagenette", path).train.images, first.train.images)


def test_the_default_resolution_is_128(tmp_path):
    data = load("imagenette", put(tmp_path / "x", tree(NETTE)), resolution=0)
    assert data.resolution == (128, 128)


def test_the_subsets_are_ten_classes_each_by_id():
    assert sorted(SUBSETS) == sorted(
        f"image{name}" for name in ("nette", "woof", "fruit", "yellow", "meow", "squawk")
    )
    every = [one for classes in SUBSETS.values() for one in classes]
    assert all(len(classes) == 10 for classes in SUBSETS.values())
    by_index = sorted({(one.index, one.wnid) for one in every})
    assert [wnid for _, wnid in by_index] == sorted({one.wnid for one in every})


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
    refused("no folder 'train' of ImageNet is in data; .*imagenette2-320.tgz", "imagenette")
    refused("to get imagefruit, name a folder with train/ and val/", "imagefruit", tmp_path / "no")


def test_an_altered_archive(tmp_path):
    path = pack(tmp_path / "imagenette2-160.tgz", tree(NETTE[:1]), "imagenette2-160")
    refused("imagenette2-160.tgz was altered or is not whole", "imagenette", path)


def test_a_cut_off_archive(tmp_path):
    path = pack(tmp_path / "imagenet.tgz", tree(NETTE), "imagenet")
    path.write_bytes(path.read_bytes()[:-4000])
    refused("imagenet.tgz is not a whole, readable .tgz archive", "imagenette", path)


def test_an_image_that_cannot_be_decoded(tmp_path, cache):
    files = tree(NETTE)
    name = f"val/{NETTE[2]}/{NETTE[2]}_0.JPEG"
    root = put(tmp_path / "x", files | {name: files[name][:-20]})
    refused(f"{name} cannot be decoded", "imagenette", root)
    put(root, {name: b"not an image"})
    refused(f"{name} is not an image; replace or remove it", "imagenette", root)
    assert not list(cache.iterdir())


def test_a_resolution_that_fills_the_disk(tmp_path, monkeypatch):
    usage = types.SimpleNamespace(free=2**20)
    monkeypatch.setattr(decoded.shutil, "disk_usage", lambda _: usage)
    root = put(tmp_path / "x", tree(NETTE))
    refused(r"'imagenette' decoded needs .* GiB free; name another", "imagenette", root, 256)


# Decoding


def test_decode_by_hand():
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, 2:6] = 200  # the center square
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    crop = decoded.decode_image(file.getvalue(), (4, 4), channels=3, source="x")
    assert torch.equal(crop, torch.full((3, 4, 4), 200, dtype=torch.uint8))
    gray = decoded.decode_image(file.getvalue(), (2, 2), channels=1, source="x")
    assert gray.shape == (1, 2, 2) and (gray == 200).float().mean() < 1  # the edge is smooth


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    content = picture(0, (5, 5), kind, mode)
    image = decoded.decode_image(content, (5, 5), channels=3, source="x")
    assert image.shape == (3, 5, 5) and image.dtype == torch.uint8


def test_images_are_decoded_once(tmp_path, monkeypatch, cache):
    root = put(tmp_path / "x", tree(NETTE))
    first = load("imagenette", root)
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".uint8"]
    monkeypatch.setattr(decoded, "decode_image", None)
    assert torch.equal(load("imagenette", root).train.images, first.train.images)


def test_a_changed_tree_or_resolution_is_decoded_again(tmp_path, cache):
    root = put(tmp_path / "x", tree(NETTE))
    load("imagenette", root)
    load("imagenette", root, 9)
    put(root, {f"train/{NETTE[0]}/more.png": picture((0, 0, 0))})
    assert len(load("imagenette", root).train) == 21
    assert len(list(cache.glob("*.uint8"))) == 3


def test_an_interrupted_decoding_is_done_again(tmp_path, cache, monkeypatch):
    root = put(tmp_path / "x", tree(NETTE))
    calls, plain = [], decoded.decode_image

    def interrupted(*arguments, **options):
        calls.append(0)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return plain(*arguments, **options)

    monkeypatch.setattr(decoded, "decode_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load("imagenette", root)
    assert not list(cache.iterdir())
    check_nette(load("imagenette", root))


def test_a_decoded_file_cut_short(tmp_path, cache):
    root = put(tmp_path / "x", tree(NETTE))
    load("imagenette", root)
    (path,) = cache.glob("*.uint8")
    path.write_bytes(b"short")
    refused("is not whole; remove it, it will be made again", "imagenette", root)


def test_a_cache_that_cannot_be_written(tmp_path, cache):
    cache.write_text("a file where the folder should be")
    root = put(tmp_path / "x", tree(NETTE))
    refused(r"cannot be kept in .*name another folder in \$GSDD_CACHE", "imagenette", root)


def test_raw_images_are_mapped_not_held(tmp_path):
    root = put(tmp_path / "x", tree(NETTE))
    raw = imagenet.read_imagenet_subset("imagenette", DataConfig(folder=str(root), resolution=8))
    both = (raw.train.images, raw.test.images)
    assert both[0].untyped_storage().data_ptr() == both[1].untyped_storage().data_ptr()
    raw.train.images[0] = 7  # a private copy of the page: the file stays as it was
    again = imagenet.read_imagenet_subset("imagenette", DataConfig(folder=str(root), resolution=8))
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
    assert "mine" not in data.provenance and "a fifth split off" in data.provenance
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
    "one class": (one_class, "holds 1 class folders; each class needs one"),
    "sizes": (sizes, r"differ in size \(b/00.png has 7x7, a/00.png another\); choose a resol"),
    "a strange class": (strange, "has a class folder 'c' that .*train lacks"),
    "an empty test": (empty_test, "test holds no images; add some, or remove it"),
    "no folder": (lambda root: None, "there is no folder .*mine; name one"),
}


@pytest.mark.parametrize("case", BAD)
def test_imagefolder_refuses(case, tmp_path):
    build, sentence = BAD[case]
    build(tmp_path / "mine")
    refused(sentence, "imagefolder", tmp_path / "mine", 0)


def test_imagefolder_without_a_folder():
    refused("'imagefolder' needs the parameter 'folder'", "imagefolder")
