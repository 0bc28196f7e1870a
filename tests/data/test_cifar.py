"""CIFAR-10 and CIFAR-100 archives: what is accepted, what is refused, no pickle is ever run.

Miniature archives in the publisher's formats, the pickles as Python 2 wrote them, stand for the
real ones; their checksums take the published ones' place.
"""

import hashlib
import io
import pickle
import struct
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from gsdd_lib.config import DataConfig
from gsdd_lib.data import DataError, cifar, load_data
from gsdd_lib.data.__main__ import main
from gsdd_lib.data.plain_pickle import load_plain

NAMES = ["apple", "bear", "cup"]
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


def python_files(published, label_key, names_key):
    contents, per_file = (
        {published.names: pickled({names_key: NAMES})},
        TRAIN // len(published.train),
    )
    for i, name in enumerate(published.train):
        pixels, labels = table(per_file, first=30 * i)
        contents[name] = pickled({"batch_label": name, label_key: labels, "data": pixels})
    pixels, labels = table(TEST, first=150)
    contents[published.test[0]] = pickled({label_key: labels, "data": pixels})
    return contents


def binary_files(published):
    contents = {published.names: "\n".join([*NAMES, "", ""]).encode()}
    per_file = TRAIN // len(published.train)
    for i, name in enumerate((*published.train, *published.test)):
        testing = name in published.test
        pixels, labels = table(TEST if testing else per_file, first=150 if testing else 30 * i)
        coarse = b"\x07" if published.label_bytes == 2 else b""
        records = (coarse + bytes([y]) + x.tobytes() for x, y in zip(pixels, labels, strict=True))
        contents[name] = b"".join(records)
    return contents


def pack(path, folder, contents):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


CASES = [(dataset, archive) for dataset, table in cifar.PUBLISHED.items() for archive in table]


@pytest.fixture(params=CASES, ids=[archive for _, archive in CASES])
def mini(request, tmp_path, monkeypatch):
    """(dataset, archive, path, contents): a miniature that is what was published."""
    return make(*request.param, tmp_path, monkeypatch)


@pytest.fixture
def python10(tmp_path, monkeypatch):
    return make("cifar10", "cifar-10-python.tar.gz", tmp_path, monkeypatch)


@pytest.fixture
def binary100(tmp_path, monkeypatch):
    return make("cifar100", "cifar-100-binary.tar.gz", tmp_path, monkeypatch)


def make(dataset, archive, tmp_path, monkeypatch, spoil=None):
    published = cifar.PUBLISHED[dataset][archive]
    if len(published.train) > 1:
        published = replace(published, train=(published.train[0], published.train[1]))
    keys = (
        ("labels", "label_names") if dataset == "cifar10" else ("fine_labels", "fine_label_names")
    )
    python = published.label_bytes == 0
    contents = python_files(published, *keys) if python else binary_files(published)
    if spoil:
        spoil(contents)
    path = pack(tmp_path / archive, published.folder, contents)
    published = replace(
        published,
        md5=md5(path.read_bytes()),
        images=(TRAIN, TEST),
        files={name: md5(contents[name]) for name in published.files if name in contents},
    )
    monkeypatch.setitem(cifar.PUBLISHED[dataset], archive, published)
    monkeypatch.delenv("GSDD_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return dataset, archive, path, contents


def load(dataset, folder=""):
    return load_data(DataConfig(dataset=dataset, folder=str(folder), holdout=0.3))


def unpack(mini, target):
    dataset, archive, _, contents = mini
    folder = target / cifar.PUBLISHED[dataset][archive].folder
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


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


def test_an_archive_is_read(mini):
    dataset, archive, path, _ = mini
    data = load(dataset, path)
    check(data)
    assert data.provenance == f"{cifar.TITLES[dataset]} from {archive}, MD5 verified"


def test_an_unpacked_archive_is_read(mini, tmp_path):
    folder = unpack(mini, tmp_path / "else")
    for named in (folder, folder.parent):
        data = load(mini[0], named)
        check(data)
        assert "unpacked" in data.provenance and str(tmp_path) not in data.provenance


def test_the_usual_places_are_searched(python10, tmp_path, monkeypatch):
    _, archive, path, _ = python10
    (tmp_path / "data" / "cifar10").mkdir(parents=True)
    path.rename(tmp_path / "data" / "cifar10" / archive)
    check(load("cifar10"))
    (tmp_path / "data").rename(tmp_path / "mine")
    monkeypatch.setenv("GSDD_DATA", str(tmp_path / "mine"))
    check(load("cifar10"))


def test_an_archive_of_another_name_is_known_by_its_content(python10, tmp_path):
    python10[2].rename(tmp_path / "download (1).tar.gz")
    check(load("cifar10", tmp_path / "download (1).tar.gz"))


def test_make_data_says_what_it_found(python10, tmp_path, capsys):
    assert main(["cifar10", "--folder", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out == "cifar10: found: CIFAR-10 from cifar-10-python.tar.gz, MD5 verified\n"
    assert main(["cifar100", "--folder", str(tmp_path)]) == 1
    assert "to get CIFAR-100, fetch cifar-100-python.tar.gz" in capsys.readouterr().err


def test_the_published_checksums():
    # as published on the data sets' page
    published = {name: a.md5 for group in cifar.PUBLISHED.values() for name, a in group.items()}
    assert published == {
        "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
        "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
        "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
        "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
    }


# Refusing


def refused(sentence, dataset, folder=""):
    with pytest.raises(DataError, match=sentence) as caught:
        load(dataset, folder)
    assert "\n" not in str(caught.value) and "(parameter 'folder')" in str(caught.value)


def test_nothing_there(tmp_path, monkeypatch):
    monkeypatch.delenv("GSDD_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    refused("none of cifar-10-python.tar.gz, .* is in data/cifar10, data; to get", "cifar10")


def test_an_altered_archive(mini):
    content = bytearray(mini[2].read_bytes())
    content[40] ^= 1
    mini[2].write_bytes(content)
    refused("was altered or is not whole: its MD5 is", mini[0], mini[2])


def test_some_other_file(python10, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    refused("is neither a folder nor one of cifar-10-python", "cifar10", tmp_path / "notes.txt")


def test_an_archive_without_a_file(tmp_path, monkeypatch):
    archive = "cifar-10-python.tar.gz"
    made = make("cifar10", archive, tmp_path, monkeypatch, lambda c: c.pop("data_batch_2"))
    refused("lacks cifar-10-batches-py/data_batch_2", "cifar10", made[2])


def test_what_is_no_archive(python10, monkeypatch):
    path, archive = python10[2], python10[1]
    path.write_bytes(b"not an archive")
    published = replace(cifar.PUBLISHED["cifar10"][archive], md5=md5(b"not an archive"))
    monkeypatch.setitem(cifar.PUBLISHED["cifar10"], archive, published)
    refused("is not a readable .tar.gz archive", "cifar10", path)


def test_an_unpacked_folder_without_a_file(python10, tmp_path):
    folder = unpack(python10, tmp_path / "else")
    (folder / "test_batch").unlink()
    refused("cifar-10-batches-py/test_batch is missing", "cifar10", folder)


def test_an_altered_unpacked_file(python10, tmp_path):
    folder = unpack(python10, tmp_path / "else")
    (folder / "test_batch").write_bytes(pickled({"labels": [], "data": table(0, 0)[0]}))
    refused("test_batch was altered or is not whole", "cifar10", folder)


def spoiled_pickle(**changes):
    def spoil(contents):
        pixels, labels = table(TRAIN // 2, first=0)
        contents["data_batch_1"] = pickled({"labels": labels, "data": pixels} | changes)

    return spoil


BAD_BATCHES = {
    "no data": (spoiled_pickle(data=[1, 2]), "data_batch_1 does not hold uint8 'data'"),
    "no labels": (spoiled_pickle(labels="abc"), "of 3072 columns and labels"),
    "few": (spoiled_pickle(data=table(3, 0)[0], labels=[0, 1, 2]), "hold 9 images, expected 12"),
    "a label too large": (spoiled_pickle(labels=[0, 1, 7] * 2), "outside of the 3 classes"),
    "unequal classes": (spoiled_pickle(labels=[0] * 6), "equally many images of each class"),
    "no names": (lambda c: c.update({"batches.meta": pickled({"x": []})}), "no names of classes"),
}


@pytest.mark.parametrize("case", BAD_BATCHES)
def test_bad_pickles(case, tmp_path, monkeypatch):
    spoil, sentence = BAD_BATCHES[case]
    made = make("cifar10", "cifar-10-python.tar.gz", tmp_path, monkeypatch, spoil)
    refused(sentence, "cifar10", made[2])


def test_records_of_another_length(tmp_path, monkeypatch):
    def spoil(contents):
        contents["train.bin"] += b"x"

    made = make("cifar100", "cifar-100-binary.tar.gz", tmp_path, monkeypatch, spoil)
    refused(r"train.bin has 36,889 bytes, not a multiple of 3,074", "cifar100", made[2])


# Pickles


class Malicious:
    def __reduce__(self):
        return eval, ("__import__('pathlib').Path('harm').touch()",)


def test_a_malicious_pickle_does_nothing(tmp_path, monkeypatch):
    def spoil(contents):
        contents["test_batch"] = pickle.dumps({"data": Malicious()}, protocol=2)

    made = make("cifar10", "cifar-10-python.tar.gz", tmp_path, monkeypatch, spoil)
    refused(r"test_batch is not a pickle of plain .*it names __builtin__\.eval", "cifar10", made[2])
    assert not (tmp_path / "harm").exists()


def test_arrays_of_todays_numpy_are_read():
    values = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "b": [1, (2.5, "x")], "c": b"raw"}
    for protocol in range(2, 5):
        found = load_plain(pickle.dumps(values, protocol=protocol), source="file")
        assert np.array_equal(found["a"], values["a"]) and found["a"].dtype == np.int32
        assert found["b"] == values["b"] and found["c"] == b"raw"


def test_column_order_and_byte_order_are_kept():
    value = np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3))
    assert load_plain(pickle.dumps(value, protocol=2), source="f").tolist() == value.tolist()


BAD_PICKLES = {
    "objects": pickle.dumps(np.array([{}, 1], dtype=object), protocol=2),
    "a class": pickle.dumps(DataConfig, protocol=2),
    "a type of numpy": b"\x80\x02cnumpy\nndarray\n.",
    "a bare type of numbers": pickle.dumps(np.dtype("u1"), protocol=2),
    "an array without values": b"\x80\x02cnumpy\nndarray\n)R.",
    "a wrong size": pickled(np.zeros((2, 3072), np.uint8)).replace(
        b"J\2\0\0\0J\0\x0c", b"J\3\0\0\0J\0\x0c"
    ),
    "a codec": b"\x80\x02c_codecs\nencode\n" + py2(("x", "zlib")) + b"R.",
    "a program": pickle.dumps(Malicious(), protocol=4),
    "a path to a program": b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.data\x93.",
    "an extension": b"\x80\x02\x82\x01.",
    "a persistent name": b"\x80\x02U\x01xQ.",
    "attributes of a stand-in": b"\x80\x02cnumpy\ndtype\n}U\x01aK\x01sb.",
    "cut off": pickled({"a": 1})[:-3],
    "empty": b"",
}


@pytest.mark.parametrize("case", BAD_PICKLES)
def test_load_plain_refuses(case):
    with pytest.raises(DataError, match="file is not a pickle of plain containers"):
        load_plain(BAD_PICKLES[case], source="file")
