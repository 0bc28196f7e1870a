"""Fashion-MNIST on disk: what is accepted, what is refused, and the ways to get it.

A miniature of the four files (20 + 10 images of 2x2) stands for the real ones, whose own test is
skipped where they are not on the machine.
"""

import gzip
import hashlib
import http.server
import os
import shutil
import struct
import threading

import pytest
import torch

from gsdd_lib.config import DataConfig
from gsdd_lib.data import DataError, fashion_mnist, load_data
from gsdd_lib.data.__main__ import main
from gsdd_lib.data.normalization import channel_statistics

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def idx(shape, values):
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + bytes(values)


def miniature():
    """The four files' content by name: labels 0 to 9 in turn, every pixel a different level."""
    content = {}
    for prefix, count in (("train", 20), ("t10k", 10)):
        content[f"{prefix}-images-idx3-ubyte"] = idx((count, 2, 2), range(count * 4))
        content[f"{prefix}-labels-idx1-ubyte"] = idx((count,), [i % 10 for i in range(count)])
    return content


@pytest.fixture
def mini(tmp_path, monkeypatch):
    """An empty working folder in which the miniature is what was published; returns its content."""
    content = miniature()
    files = {stem: hashlib.sha256(data).hexdigest() for stem, data in content.items()}
    monkeypatch.setattr(fashion_mnist, "FILES", files)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setattr(fashion_mnist, "ADDRESSES", ("http://127.0.0.1:9/",))  # nothing listens
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))  # no apt-get
    monkeypatch.delenv("GSDD_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return content


def put(folder, content, packed=True):
    folder.mkdir(parents=True, exist_ok=True)
    for stem, data in content.items():
        (folder / f"{stem}{'.gz' * packed}").write_bytes(gzip.compress(data) if packed else data)
    return folder


def load(folder="", **fields):
    config = DataConfig(dataset="fashion_mnist", folder=str(folder), holdout=0.5, **fields)
    return load_data(config)


# Reading


@pytest.mark.parametrize("packed", [True, False])
def test_reads_packed_and_plain_files(mini, tmp_path, packed):
    data = load(put(tmp_path / "mine", mini, packed))
    assert (len(data.train), len(data.validation), len(data.test)) == (10, 10, 10)
    assert data.test.images[1].tolist() == [[[4, 5], [6, 7]]]
    assert data.test.labels.tolist() == list(range(10))
    assert data.class_names[9] == "Ankle boot"
    assert data.provenance == (
        "Fashion-MNIST from the folder given, SHA-256 verified,"
        " 50% of each class held out for validation"
    )


def test_the_order_of_the_places(mini, tmp_path, monkeypatch):
    put(tmp_path / "debian", mini)
    assert f"from {tmp_path.name}/debian" in load().provenance
    put(tmp_path / "data" / "fashion_mnist", mini)
    assert "from data/fashion_mnist" in load().provenance
    put(tmp_path / "data" / "fashion-mnist", mini)
    assert "from data/fashion-mnist" in load().provenance
    put(tmp_path / "root" / "fashion-mnist", mini)
    monkeypatch.setenv("GSDD_DATA", str(tmp_path / "root"))
    assert "from root/fashion-mnist" in load().provenance
    assert "the folder given" in load(tmp_path / "debian").provenance


def test_an_unfinished_folder_does_not_hide_a_complete_one(mini, tmp_path):
    put(tmp_path / "data" / "fashion-mnist", {TRAIN_IMAGES: mini[TRAIN_IMAGES]})
    put(tmp_path / "debian", mini)
    assert f"from {tmp_path.name}/debian" in load().provenance


def refused(folder, *fragments):
    with pytest.raises(DataError) as caught:
        load(folder)
    message = str(caught.value)
    for fragment in (*fragments, "run 'make data'", "(parameter 'folder')"):
        assert fragment in message, message
    assert "\n" not in message


def test_no_files_at_all(mini, tmp_path):
    put(tmp_path / "debian", mini)
    refused(tmp_path / "elsewhere", "its files are in none of ", "/elsewhere")
    shutil.rmtree(tmp_path / "debian")
    refused("", "its files are in none of ", "data/fashion-mnist")


def test_one_file_missing(mini, tmp_path):
    folder = put(tmp_path / "mine", mini)
    (folder / f"{TRAIN_LABELS}.gz").unlink()
    refused(folder, f"mine/{TRAIN_LABELS}.gz cannot be read (No such file")


def test_a_folder_in_place_of_a_file(mini, tmp_path):
    folder = put(tmp_path / "mine", mini)
    (folder / f"{TRAIN_LABELS}.gz").unlink()
    (folder / f"{TRAIN_LABELS}.gz").mkdir()
    refused(folder, f"{TRAIN_LABELS}.gz cannot be read (Is a directory)")


SPOILED_GZ = {
    "cut off": (lambda packed: packed[: len(packed) // 2], "is cut off, or too long"),
    "altered": (lambda packed: packed[:-6] + b"?" + packed[-5:], "is not a sound gzip file ("),
    "a web page": (lambda _: b"<!DOCTYPE html>", "is not a sound gzip file ("),
    "a bomb": (lambda _: gzip.compress(bytes(1001)), "is cut off, or too long"),
}


@pytest.mark.parametrize("case", SPOILED_GZ)
def test_refuses_a_gz_that_is_not_sound(case, mini, tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "MAX_BYTES", 1000)
    spoil, sentence = SPOILED_GZ[case]
    folder = put(tmp_path / "mine", mini)
    (folder / f"{TRAIN_IMAGES}.gz").write_bytes(spoil(gzip.compress(mini[TRAIN_IMAGES])))
    refused(folder, f"{TRAIN_IMAGES}.gz {sentence}")


def test_a_plain_file_is_not_read_beyond_the_bound(mini, tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "MAX_BYTES", 1000)
    folder = put(tmp_path / "mine", {**mini, TRAIN_IMAGES: bytes(5000)}, packed=False)
    refused(folder, "has 5,000 bytes; at most 1,000 are read")


SPOILED = {
    "one pixel altered": lambda data: data[:-1] + b"\x01",
    "a byte too few": lambda data: data[:-1],
    "wrong magic": lambda data: b"\x08" + data[1:],
    "empty": lambda _: b"",
}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("case", SPOILED)
def test_refuses_content_that_is_not_the_published(case, packed, mini, tmp_path):
    spoiled = {**mini, TRAIN_IMAGES: SPOILED[case](mini[TRAIN_IMAGES])}
    refused(put(tmp_path / "mine", spoiled, packed), TRAIN_IMAGES, "was altered or is not whole")


def test_the_real_files():
    try:
        data = load_data(DataConfig(dataset="fashion_mnist"))
    except DataError:
        pytest.skip("Fashion-MNIST is not on this machine; run 'make data'")
    assert torch.bincount(data.train.labels).tolist() == [5400] * 10
    assert torch.bincount(data.validation.labels).tolist() == [600] * 10
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10
    assert (data.channels, data.resolution) == (1, (28, 28))
    assert data.test.labels[:4].tolist() == [9, 2, 1, 1]  # as on the publisher's page
    sample = data.train.images[:1000]
    assert torch.equal((data.unit(data.normalize(sample)) * 255).round().byte(), sample)
    mean, std = channel_statistics(torch.cat([data.train.images, data.validation.images]))
    assert abs(mean[0] - data.mean[0]) < 1e-4 and abs(std[0] - data.std[0]) < 1e-4


# Fetching


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the server's ``content`` by path."""

    def do_GET(self):
        body = self.server.content.get(self.path)
        self.server.asked.append(self.path)
        self.send_response(404 if body is None else 200)
        body = body or b""
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Keep the tests' output clean."""


@pytest.fixture
def server(mini, monkeypatch):
    """A server of the miniature that is the publisher's second address."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content = {f"/{stem}.gz": gzip.compress(data) for stem, data in mini.items()}
        server.asked = []
        server.address = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(fashion_mnist, "ADDRESSES", (*fashion_mnist.ADDRESSES, server.address))
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def test_what_is_there_is_found(mini, tmp_path, capsys):
    put(tmp_path / "debian", mini)
    for arguments in ([], ["--fetch"]):
        assert main(["fashion_mnist", *arguments]) == 0
        output = capsys.readouterr()
        assert "/debian, SHA-256 verified" in output.out and not output.err


def test_nothing_is_fetched_or_installed_unasked(server, apt_get, tmp_path, capsys):
    assert main(["fashion_mnist"]) == 1
    assert "python -m gsdd_lib.data fashion_mnist --fetch" in capsys.readouterr().err
    assert not server.asked and not apt_get.exists() and not (tmp_path / "data").exists()


def test_fetching_says_what_from_where_and_goes_on_to_the_next_address(server, capsys):
    assert main(["fashion_mnist", "--fetch"]) == 0
    output = capsys.readouterr()
    first, second, third = output.err.splitlines()
    assert first.startswith("fetching Fashion-MNIST (30 MB) from http://127.0.0.1:9/ to /")
    assert second.startswith("that failed: ")
    assert third.startswith(f"fetching Fashion-MNIST (30 MB) from {server.address} to /")
    assert "from data/fashion-mnist, SHA-256 verified" in output.out
    assert len(load().test) == 10


def test_only_what_is_missing_or_altered_is_fetched(mini, server, tmp_path):
    folder = put(tmp_path / "mine", {**mini, TRAIN_LABELS: mini[TRAIN_LABELS][:-1] + b"\x01"})
    (folder / f"{TRAIN_IMAGES}.gz").unlink()
    assert main(["fashion_mnist", "--fetch", "--folder", str(folder)]) == 0
    assert sorted(server.asked) == [f"/{TRAIN_IMAGES}.gz", f"/{TRAIN_LABELS}.gz"]
    assert len(load(folder).test) == 10


def test_a_plain_file_in_the_way_is_named(mini, server, tmp_path, capsys):
    folder = put(tmp_path / "mine", mini)
    (folder / TRAIN_IMAGES).write_bytes(b"something else")
    assert main(["fashion_mnist", "--fetch", "--folder", str(folder)]) == 1
    assert f"{TRAIN_IMAGES} was altered" in (error := capsys.readouterr().err)
    assert "remove it and run this again" in error


def test_altered_files_are_never_kept(mini, server, tmp_path, capsys):
    server.content[f"/{TRAIN_IMAGES}.gz"] = gzip.compress(mini[TRAIN_IMAGES][:-1] + b"\x01")
    assert main(["fashion_mnist", "--fetch"]) == 1
    error = capsys.readouterr().err
    assert "was altered" in error and "put its four .gz files into" in error
    assert not (tmp_path / "data").exists()


@pytest.fixture
def apt_get(mini, tmp_path, monkeypatch):
    """Stand-ins for apt-get, which needs lists of its own, and dpkg-deb; returns their log."""
    put(tmp_path / "mirror", mini)
    log, tools = tmp_path / "log", tmp_path / "bin"
    tools.mkdir()
    (tools / "apt-get").write_text(
        f'#!/bin/sh\necho "apt-get $5" >> {log}\nlists="${{2#Dir::State::Lists=}}"\n'
        'if [ "$5" = update ]; then touch "$lists/known"; exit 0; fi\n'
        'if [ ! -e "$lists/known" ]; then echo "E: Unable to locate" >&2; exit 100; fi\n'
        'touch "$6_1.0_all.deb"\n'
    )
    (tools / "dpkg-deb").write_text(
        f'#!/bin/sh\necho "dpkg-deb $1" >> {log}\n'
        f'mkdir -p "$3{tmp_path}"\ncp -r {tmp_path}/mirror "$3{tmp_path}/debian"\n'
    )
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}/usr/bin{os.pathsep}/bin")
    return log


def test_debians_package_is_unpacked_but_not_installed(apt_get, tmp_path, capsys):
    assert main(["fashion_mnist", "--fetch"]) == 0
    output = capsys.readouterr()
    assert "from Debian's package dataset-fashion-mnist (apt-get download)" in output.err
    assert "from data/fashion-mnist, SHA-256 verified" in output.out
    assert apt_get.read_text().splitlines() == ["apt-get update", "apt-get download", "dpkg-deb -x"]
    assert not (tmp_path / "debian").exists()


def test_a_package_that_cannot_be_had(apt_get, tmp_path, capsys):
    (tmp_path / "bin" / "apt-get").write_text("#!/bin/sh\necho 'E: No network' >&2\nexit 100\n")
    assert main(["fashion_mnist", "--fetch"]) == 1
    assert "that failed: E: No network" in capsys.readouterr().err


# The command


def test_an_unknown_an_embedded_and_an_unfetchable_set(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GSDD_DATA", raising=False)
    assert main(["fashion_mnst"]) == 1
    assert "did you mean 'fashion_mnist'?" in capsys.readouterr().err
    assert main(["digits", "--fetch"]) == 0
    assert capsys.readouterr().out == "digits: digits (UCI, handwritten, 8x8), embedded in" + (
        " scikit-learn\n"
    )
    assert main(["cifar10", "--fetch"]) == 1
    assert "to get CIFAR-10, unpack cifar-10-python.tar.gz" in capsys.readouterr().err
