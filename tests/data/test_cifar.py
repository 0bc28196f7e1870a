"""CIFAR-10 and CIFAR-100: what is accepted, what is refused, only published pickles are read.

Miniatures of the unpacked archives in the publisher's formats, the pickles as Python 2 wrote them,
stand for the real ones; their checksums take the place of the published ones.
"""

import hashlib
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from gsdd_lib.config import DataConfig
from gsdd_lib.data import DataError, cifar, load_data
from gsdd_lib.data.__main__ import main

NAMES = ["apple", "bear", "cup"]  # CIFAR-100 has these, too
TRAIN, TEST = 12, 6  # images, a third of each class


# Writing as the publisher did


def py2(value) -> bytes:
    """``value`` in Python 2's protocol 2, without the frame of PROTO and STOP."""
    if isinstance(value, str | bytes):
        raw = value.encode() if isinstance(value, str) else value
        return b"T" + struct.pack("<I", len(raw)) + raw
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if value is None:
        return b"N"
    if isinstance(value, list):
        return b"](" + b"".join(map(py2, value)) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(py2, value)) + b"t"
    if isinstance(value, dict):
        return b"}(" + b"".join(py2(k) + py2(v) for k, v in value.items()) + b"u"
    start = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + py2((0,)) + py2("b") + b"tR"
    )
    dtype = b"cnumpy\ndtype\n" + py2(("u1", 0, 1)) + b"R"
    dtype += py2((3, "|", None, None, None, -1, -1, 0)) + b"b"
    state = b"(" + py2(1) + py2(value.shape) + dtype + b"\x89" + py2(value.tobytes()) + b"tb"
    return start + state


def pickled(value) -> bytes:
    return b"\x80\x02" + py2(value) + b"."


def table(count: int, first: int):
    """uint8 [count, 3072], a level of its own per image and channel, and labels 0, 1, 2, 0, ..."""
    levels = np.arange(count)[:, None] * 3 + np.arange(3)[None] + first
    pixels = np.repeat(levels.astype(np.uint8), 1024, axis=1)
    return pixels, [i % 3 for i in range(count)]


def python_files(form, label_key, names_key):
    contents, per_file = {form["names"]: pickled({names_key: NAMES})}, TRAIN // len(form["train"])
    for i, name in enumerate(form["train"]):
        pixels, labels = table(per_file, first=30 * i)
        contents[name] = pickled({"batch_label": name, label_key: labels, "data": pixels})
    pixels, labels = table(TEST, first=150)
    contents[form["test"][0]] = pickled({label_key: labels, "data": pixels})
    return contents


def binary_files(form):
    contents = {form["names"]: "\n".join([*NAMES, "", ""]).encode()}
    per_file = TRAIN // len(form["train"])
    for i, name in enumerate((*form["train"], *form["test"])):
        testing = name in form["test"]
        pixels, labels = table(TEST if testing else per_file, first=150 if testing else 30 * i)
        coarse = b"\x07" if form["label_bytes"] == 2 else b""
        records = (coarse + bytes([y]) + x.tobytes() for x, y in zip(pixels, labels, strict=True))
        contents[name] = b"".join(records)
    return contents


CASES = [(dataset, name) for dataset, forms in cifar.FORMS.items() for name in forms]


@pytest.fixture(params=CASES, ids=[name for _, name in CASES])
def mini(request, tmp_path, monkeypatch):
    """(dataset, folder): a miniature that is what was published."""
    return request.param[0], make(*request.param, tmp_path, monkeypatch)


@pytest.fixture
def python10(tmp_path, monkeypatch):
    return make("cifar10", "cifar-10-batches-py", tmp_path, monkeypatch)


def make(dataset, name, tmp_path, monkeypatch, spoil=None):
    """The folder with the files of one form."""
    form = dict(cifar.FORMS[dataset][name])
    form["train"] = form["train"][:2]
    keys = (
        ("labels", "label_names") if dataset == "cifar10" else ("fine_labels", "fine_label_names")
    )
    contents = binary_files(form) if form["label_bytes"] else python_files(form, *keys)
    form["md5"] = {file: hashlib.md5(content).hexdigest() for file, content in contents.items()}
    if spoil:
        spoil(contents)
    folder = tmp_path / "else" / name
    folder.mkdir(parents=True)
    for file, content in contents.items():
        (folder / file).write_bytes(content)
    monkeypatch.setitem(cifar.FORMS[dataset], name, form)
    monkeypatch.setattr(cifar, "COUNTS", {"train": TRAIN, "test": TEST})
    monkeypatch.delenv("GSDD_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return folder


def load(dataset, folder=""):
    return load_data(DataConfig(dataset=dataset, folder=str(folder), holdout=0.3))


# Reading


def check(data):
    assert data.class_names == tuple(NAMES)
    assert (data.channels, data.resolution) == (3, (32, 32))
    assert (data.mean, data.std) == (cifar.MEAN, cifar.STD)
    assert (len(data.train) + len(data.validation), len(data.test)) == (TRAIN, TEST)
    assert data.test.labels.tolist() == [0, 1, 2] * 2
    levels = data.test.images[:, :, 0, 0]
    assert levels.tolist() == [[150 + 3 * i, 151 + 3 * i, 152 + 3 * i] for i in range(TEST)]
    assert torch.equal(data.test.images, levels[:, :, None, None].expand(-1, -1, 32, 32))


def test_every_form_is_read(mini, tmp_path):
    dataset, folder = mini
    for named in (folder, folder.parent):
        data = load(dataset, named)
        check(data)
        assert f"{cifar.TITLES[dataset]} from {folder.name}, " in data.provenance
        assert " verified, 30% of" in data.provenance and str(tmp_path) not in data.provenance


def test_the_usual_places_are_searched(python10, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    python10.rename(tmp_path / "data" / "cifar10")
    check(load("cifar10"))
    (tmp_path / "data" / "cifar10").rename(tmp_path / "data" / "cifar-10-batches-py")
    check(load("cifar10"))
    (tmp_path / "data").rename(tmp_path / "mine")
    monkeypatch.setenv("GSDD_DATA", str(tmp_path / "mine"))
    check(load("cifar10"))


def test_make_data_says_what_it_found(python10, capsys):
    assert main(["cifar10", "--folder", str(python10)]) == 0
    out = capsys.readouterr().out
    assert out == "cifar10: CIFAR-10 from cifar-10-batches-py, MD5 verified\n"
    assert main(["cifar100", "--folder", str(python10)]) == 1
    assert "to get CIFAR-100, unpack cifar-100-python.tar.gz" in capsys.readouterr().err


def test_the_published_checksums():
    # of the test images, as in the archives on the data sets' page
    assert cifar.FORMS["cifar10"]["cifar-10-batches-py"]["md5"]["test_batch"] == (
        "40351d587109b95175f43aff81a1287e"
    )
    assert cifar.FORMS["cifar100"]["cifar-100-python"]["md5"]["test"] == (
        "f0ef6b0ae62326f3e7ffdfab6717acfc"
    )


# Refusing


def refused(sentence, dataset, folder=""):
    with pytest.raises(DataError, match=sentence) as caught:
        load(dataset, folder)
    assert "\n" not in str(caught.value) and "(parameter 'folder')" in str(caught.value)


def test_nothing_there(tmp_path, monkeypatch):
    monkeypatch.delenv("GSDD_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    refused("its files are in none of .*/data/cifar10/cifar-10-batches-py, .*; to get", "cifar10")


def test_a_file_in_the_place_of_the_folder(python10, tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"")
    refused(
        "in none of .*unpack cifar-10-python.tar.gz", "cifar10", tmp_path / "cifar-10-python.tar.gz"
    )


def test_a_folder_without_a_file(python10):
    (python10 / "test_batch").unlink()
    refused("cifar-10-batches-py/test_batch cannot be read", "cifar10", python10)


class Malicious:
    def __reduce__(self):
        return eval, ("__import__('pathlib').Path('harm').touch()",)


def test_only_the_published_pickles_are_read(python10, tmp_path):
    (python10 / "test_batch").write_bytes(pickle.dumps(Malicious()))
    refused("test_batch was altered or is not whole: its MD5 is", "cifar10", python10)
    assert not (tmp_path / "harm").exists()


def spoiled_batch(pixels, labels):
    def spoil(contents):
        records = (bytes([y]) + x.tobytes() for x, y in zip(pixels, labels, strict=True))
        contents["data_batch_1.bin"] = b"".join(records)

    return spoil


BAD_BATCHES = {
    "few": (spoiled_batch(*table(3, 0)), "hold 9 images, expected 12"),
    "a label too large": (spoiled_batch(table(6, 0)[0], [0, 1, 7] * 2), "outside of the 3 classes"),
    "unequal classes": (spoiled_batch(table(6, 0)[0], [0] * 6), "equally many images of each"),
    "no names": (
        lambda contents: contents.update({"batches.meta.txt": b"\n"}),
        "labels outside of the 0 classes",
    ),
}


@pytest.mark.parametrize("case", BAD_BATCHES)
def test_bad_batches(case, tmp_path, monkeypatch):
    spoil, sentence = BAD_BATCHES[case]
    refused(
        sentence, "cifar10", make("cifar10", "cifar-10-batches-bin", tmp_path, monkeypatch, spoil)
    )


def test_records_of_another_length(tmp_path, monkeypatch):
    def spoil(contents):
        contents["train.bin"] += b"x"

    folder = make("cifar100", "cifar-100-binary", tmp_path, monkeypatch, spoil)
    refused(r"train.bin has 36,889 bytes, not a multiple of 3,074", "cifar100", folder)


# CIFAR-100 in a folder per class


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Three classes of 4 training and 2 test images, each of one level; returns the folder."""
    monkeypatch.setattr(cifar, "COUNTS", {"train": TRAIN, "test": TEST})
    monkeypatch.setattr(cifar, "CLASS_FOLDERS", 3)
    monkeypatch.setattr(cifar, "FOLDERS_MEAN", (66 / 255,) * 3)  # 0, 12, ..., 132
    monkeypatch.setenv("GSDD_CACHE", str(tmp_path / "cache"))
    for split, count in {"train": 4, "test": 2}.items():
        for label, name in enumerate(NAMES):
            for i in range(count):
                save(tmp_path / "cifar100" / split / name / f"{i}.png", 12 * (4 * label + i))
    return tmp_path / "cifar100"


def save(path, level, size=(32, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level,) * 3).save(path)


def test_a_folder_per_class_is_read(folders, monkeypatch):
    monkeypatch.setenv("GSDD_DATA", str(folders.parent))
    for named in (folders, ""):
        data = load("cifar100", named)
        assert data.class_names == tuple(NAMES)
        assert data.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert data.test.images[:, 0, 0, 0].tolist() == [0, 12, 48, 60, 96, 108]
        assert "a folder per class, in another order than published" in data.provenance


def test_a_folder_per_class_that_lacks_an_image(folders):
    (folders / "test" / "bear" / "1.png").unlink()
    refused("cifar100/test does not hold 2 images in each of 3 class folders", "cifar100", folders)


def test_a_folder_per_class_of_other_images(folders):
    save(folders / "train" / "bear" / "1.png", 255)
    refused("does not hold CIFAR-100: the means of its channels are 0.32", "cifar100", folders)
    save(folders / "train" / "bear" / "1.png", 60, size=(64, 64))
    refused("bear/1.png cannot be decoded .it has 64x64 pixels instead of", "cifar100", folders)
