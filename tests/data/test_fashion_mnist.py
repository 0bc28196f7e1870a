"""Fashion-MNIST on disk: what is accepted, what is refused, and the ways to get it.

A miniature of the four files (20 + 8 images of 2x2) stands for the real ones, whose own test is
skipped where they are not installed.
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
from gsdd_lib.data.fashion_mnist import download, fetch, inflate, parse_idx, read_content
from gsdd_lib.data.tensors import channel_statistics

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
THREE_WAYS = "(parameter 'folder'), install Debian's package 'dataset-fashion-mnist'"


def idx(shape, values, kind=8):
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, kind, len(shape), *shape) + bytes(values)


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
    files = {
        stem: fashion_mnist.IdxFile(
            struct.unpack(f">{data[3]}I", data[4 : 4 + 4 * data[3]]),
            hashlib.sha256(data).hexdigest(),
        )
        for stem, data in content.items()
    }
    for module in (fashion_mnist,):
        monkeypatch.setattr(module, "FILES", files)
        monkeypatch.setattr(module, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setattr(
        fashion_mnist, "ADDRESSES", ("http://127.0.0.1:9/",)
    )  # nothing listens there
    monkeypatch.setattr(fashion_mnist, "apt_get_command", list)
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


# IDX


def test_parse_idx_by_hand():
    values = parse_idx(idx((2, 3), [1, 2, 3, 4, 5, 6]), source="file")
    assert values.tolist() == [[1, 2, 3], [4, 5, 6]] and values.dtype == torch.uint8


BAD_IDX = {
    "empty": (b"", "begins with ''"),
    "wrong magic": (b"\x01" + idx((1,), [0])[1:], "begins with '01 00 08 01', expected '00 00 08'"),
    "floats": (idx((1,), [0] * 4, kind=13), "not an IDX file of bytes"),
    "no dimensions": (bytes([0, 0, 8, 0]), "header of 4 bytes is not complete"),
    "header cut short": (idx((2, 2), [])[:9], "header of 12 bytes is not complete"),
    "values cut short": (idx((2, 2), [1, 2, 3]), r"truncated: 15 bytes, expected 16 .* \[2, 2\]"),
    "a value too many": (idx((2,), [1, 2, 3]), "too long: 11 bytes, expected 10"),
    "enormous dimensions": (idx((2**32 - 1,) * 3, []), "is truncated"),
}


@pytest.mark.parametrize("case", BAD_IDX)
def test_parse_idx_refuses(case):
    content, sentence = BAD_IDX[case]
    with pytest.raises(DataError, match=f"^file .*{sentence}"):
        parse_idx(content, source="file")


def test_inflate_stops_at_the_bound():
    bomb = gzip.compress(bytes(10**7))
    with pytest.raises(DataError, match="too long: more than the 1,000 bytes expected"):
        inflate(bomb, 1000, source="bomb.gz")
    assert inflate(bomb, 10**7, source="bomb.gz") == bytes(10**7)


def test_a_plain_file_is_not_read_beyond_the_bound(tmp_path):
    path = tmp_path / "plain"
    path.write_bytes(bytes(5000))
    with pytest.raises(DataError, match="too long"):
        read_content(path, 1000)


# Reading Fashion-MNIST


@pytest.mark.parametrize("packed", [True, False])
def test_reads_packed_and_plain_files(mini, tmp_path, packed):
    data = load(put(tmp_path / "mine", mini, packed))
    assert (len(data.train), len(data.validation), len(data.test)) == (10, 10, 10)
    assert data.test.images[1].tolist() == [[[4, 5], [6, 7]]]
    assert data.test.labels.tolist() == list(range(10))
    assert data.class_names[9] == "Ankle boot"
    assert str(tmp_path) not in data.provenance


def test_the_order_of_the_places(mini, tmp_path, monkeypatch):
    put(tmp_path / "debian", mini)
    assert "Debian's package" in load().provenance
    put(tmp_path / "data" / "fashion-mnist", mini)
    assert "from data/fashion-mnist" in load().provenance
    put(tmp_path / "root" / "fashion-mnist", mini)
    monkeypatch.setenv("GSDD_DATA", str(tmp_path / "root"))
    assert "from $GSDD_DATA/fashion-mnist" in load().provenance
    assert "the folder given" in load(tmp_path / "debian").provenance


def test_a_folder_given_is_the_only_place(mini, tmp_path):
    put(tmp_path / "debian", mini)
    with pytest.raises(DataError, match=r"elsewhere/train-images-idx3-ubyte.gz .* is missing"):
        load(tmp_path / "elsewhere")


def test_an_unfinished_folder_does_not_hide_a_complete_one(mini, tmp_path):
    put(tmp_path / "data" / "fashion-mnist", {TRAIN_IMAGES: mini[TRAIN_IMAGES]})
    put(tmp_path / "debian", mini)
    assert "Debian's package" in load().provenance


def refused(folder, *fragments):
    with pytest.raises(DataError) as caught:
        load(folder)
    message = str(caught.value)
    for fragment in (*fragments, THREE_WAYS, "run 'make data'"):
        assert fragment in message, message
    assert "\n" not in message


def test_no_files_at_all(mini, tmp_path):
    refused("", "train-images-idx3-ubyte.gz and its three siblings are in none of data/fashion-mn")


def test_one_file_missing(mini, tmp_path):
    folder = put(tmp_path / "mine", mini)
    (folder / f"{TRAIN_LABELS}.gz").unlink()
    refused(folder, f"mine/{TRAIN_LABELS}.gz (or without .gz) is missing")


def test_a_folder_in_place_of_a_file(mini, tmp_path):
    folder = put(tmp_path / "mine", mini)
    (folder / f"{TRAIN_LABELS}.gz").unlink()
    (folder / f"{TRAIN_LABELS}.gz").mkdir()
    refused(folder, f"{TRAIN_LABELS}.gz cannot be read (Is a directory)")


def test_a_truncated_gz(mini, tmp_path):
    folder = put(tmp_path / "mine", mini)
    packed = gzip.compress(mini[TRAIN_IMAGES])
    (folder / f"{TRAIN_IMAGES}.gz").write_bytes(packed[: len(packed) // 2])
    refused(folder, f"{TRAIN_IMAGES}.gz is truncated: its compressed data breaks off after")


def test_a_byte_altered_in_a_gz(mini, tmp_path):
    folder = put(tmp_path / "mine", mini)
    packed = bytearray(gzip.compress(mini[TRAIN_IMAGES]))
    packed[-6] ^= 1  # in the checksum
    (folder / f"{TRAIN_IMAGES}.gz").write_bytes(packed)
    refused(folder, f"{TRAIN_IMAGES}.gz is not a sound gzip file")


def test_a_web_page_in_place_of_a_gz(mini, tmp_path):
    folder = put(tmp_path / "mine", mini)
    (folder / f"{TRAIN_IMAGES}.gz").write_bytes(b"<!DOCTYPE html>")
    refused(folder, f"{TRAIN_IMAGES}.gz is not a sound gzip file (")


SPOILED = {
    "one pixel altered": (TRAIN_IMAGES, lambda d: d[:-1] + b"\x01", "altered: the SHA-256"),
    "one label altered": (TRAIN_LABELS, lambda d: d[:-1] + b"\x01", "altered: the SHA-256"),
    "a byte too few": (TRAIN_IMAGES, lambda d: d[:-1], "truncated: 95 bytes, expected 96"),
    "wrong magic": (TRAIN_IMAGES, lambda d: b"\x08" + d[1:], "not an IDX file"),
    "a label too few": (
        TRAIN_LABELS,
        lambda _: idx((19,), range(19)),
        "[19] values, expected [20]",
    ),
    "labels as images": (TRAIN_IMAGES, lambda _: idx((20,), range(20)), "expected [20, 2, 2]"),
}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("case", SPOILED)
def test_refuses_a_file_that_is_not_the_published_one(case, packed, mini, tmp_path):
    stem, spoil, sentence = SPOILED[case]
    folder = put(tmp_path / "mine", {**mini, stem: spoil(mini[stem])}, packed)
    refused(folder, stem, sentence)


def test_the_real_files():
    try:
        fashion_mnist.find()
    except DataError:
        pytest.skip("Fashion-MNIST is not on this machine; run 'make data'")
    data = load_data(DataConfig(dataset="fashion_mnist"))
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
    """Serves the server's ``content`` by path; ``promised`` adds bytes that never come."""

    def do_GET(self):
        body = self.server.content.get(self.path)
        self.server.asked.append(self.path)
        self.send_response(404 if body is None else 200)
        body = body or b""
        self.send_header("Content-Length", str(len(body) + self.server.promised))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Keep the tests' output clean."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.asked, server.promised = {}, [], 0
        server.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def accept_hello(content):
    if content != b"hello":
        raise DataError("not what was published")


def test_fetch_takes_the_first_address_with_the_right_content(server, tmp_path):
    server.content = {"/bad": b"HELLO", "/good": b"hello"}
    addresses = [f"{server.address}/{name}" for name in ("none", "bad", "good", "unused")]
    path = tmp_path / "new" / "file"
    assert fetch(addresses, path, check=accept_hello, max_bytes=10, progress=False) == addresses[2]
    assert path.read_bytes() == b"hello"
    assert server.asked == ["/none", "/bad", "/good"]


def test_fetch_writes_nothing_that_fails_the_check(server, tmp_path):
    server.content = {"/bad": b"HELLO"}
    path = tmp_path / "file"
    addresses = [f"{server.address}/bad", f"{server.address}/none"]
    with pytest.raises(DataError, match=r"bad: not what was published; .*none: Not Found\)$"):
        fetch(addresses, path, check=accept_hello, max_bytes=10, progress=False)
    assert not path.exists()


def test_download_refuses_more_than_asked_for(server):
    server.content = {"/file": bytes(100)}
    with pytest.raises(DataError, match="more than the 99 bytes"):
        download(f"{server.address}/file", max_bytes=99, progress=False)


def test_download_notices_a_broken_connection(server):
    server.content, server.promised = {"/file": bytes(100)}, 50
    with pytest.raises(DataError, match="broke after 100 of 150 bytes"):
        download(f"{server.address}/file", max_bytes=999, progress=False)


# make data


def serve(server, monkeypatch, content):
    server.content = {f"/{stem}.gz": gzip.compress(data) for stem, data in content.items()}
    monkeypatch.setattr(fashion_mnist, "ADDRESSES", (f"{server.address}/",))


def test_make_data_finds_what_is_there(mini, tmp_path, capsys):
    put(tmp_path / "debian", mini)
    assert main(["fashion_mnist"]) == 0
    assert capsys.readouterr().out == f"fashion_mnist: found in {tmp_path / 'debian'}\n"


def test_make_data_fetches_and_load_data_finds_it(mini, server, tmp_path, monkeypatch, capsys):
    serve(server, monkeypatch, mini)
    assert main(["fashion_mnist"]) == 0
    output = capsys.readouterr()
    assert output.out == f"fashion_mnist: fetched from {server.address}/ to data/fashion-mnist\n"
    assert "are in none of" in output.err
    assert "data/fashion-mnist" in load().provenance


def test_make_data_fetches_only_what_is_missing_or_altered(mini, server, tmp_path, monkeypatch):
    folder = put(tmp_path / "mine", {**mini, TRAIN_LABELS: mini[TRAIN_LABELS][:-1] + b"\x01"})
    (folder / f"{TRAIN_IMAGES}.gz").unlink()
    serve(server, monkeypatch, mini)
    assert main(["fashion_mnist", "--folder", str(folder)]) == 0
    assert sorted(server.asked) == [f"/{TRAIN_IMAGES}.gz", f"/{TRAIN_LABELS}.gz"]
    assert len(load(folder).test) == 10


def test_make_data_names_a_plain_file_that_is_in_the_way(mini, server, tmp_path, monkeypatch):
    folder = put(tmp_path / "mine", mini)
    (folder / TRAIN_IMAGES).write_bytes(b"something else")
    serve(server, monkeypatch, mini)
    with pytest.raises(DataError, match=f"{TRAIN_IMAGES} is not an IDX file.*; remove it"):
        fashion_mnist.obtain_fashion_mnist(str(folder), say=lambda _: None)


def test_make_data_never_keeps_altered_files(mini, server, tmp_path, monkeypatch, capsys):
    serve(server, monkeypatch, {**mini, TRAIN_IMAGES: mini[TRAIN_IMAGES][:-1] + b"\x01"})
    assert main(["fashion_mnist"]) == 1
    error = capsys.readouterr().err
    assert "was altered" in error and "put the four .gz files into data/fashion-mnist" in error
    assert not (tmp_path / "data").exists()


@pytest.fixture
def apt_get(mini, tmp_path, monkeypatch):
    """A stand-in for apt-get that knows the package once ``update`` ran; returns its log."""
    put(tmp_path / "mirror", mini)
    log, tool = tmp_path / "log", tmp_path / "bin" / "apt-get"
    tool.parent.mkdir()
    tool.write_text(
        f'#!/bin/sh\necho "$@" >> {log}\n'
        f'if [ "$1" = update ]; then touch {tmp_path}/lists; exit 0; fi\n'
        f"if [ ! -e {tmp_path}/lists ]; then echo 'E: Unable to locate' >&2; exit 100; fi\n"
        f"cp -r {tmp_path}/mirror {tmp_path}/debian\n"
    )
    tool.chmod(0o755)
    monkeypatch.setattr(fashion_mnist, "apt_get_command", lambda: [str(tool)])
    return log


def test_make_data_installs_the_package(apt_get, tmp_path, capsys):
    assert main(["fashion_mnist"]) == 0
    line = f"Debian's package dataset-fashion-mnist, installed in {tmp_path / 'debian'}"
    assert capsys.readouterr().out == f"fashion_mnist: {line}\n"
    install = "install -y --no-install-recommends dataset-fashion-mnist"
    assert apt_get.read_text().splitlines() == [install, "update", install]


def test_make_data_fetches_where_installing_fails(apt_get, mini, server, monkeypatch, tmp_path):
    shutil.rmtree(tmp_path / "mirror")
    serve(server, monkeypatch, mini)
    said = []
    assert fashion_mnist.obtain_fashion_mnist(say=said.append).startswith("fetched from")
    assert any("apt-get could not install dataset-fashion-mnist" in line for line in said)


@pytest.mark.parametrize("arguments", [["--fetch"], ["--folder", "here"]])
def test_make_data_installs_nothing_when_told_where(arguments, apt_get, mini, server, monkeypatch):
    serve(server, monkeypatch, mini)
    assert main(["fashion_mnist", *arguments]) == 0
    assert not apt_get.exists()


def test_apt_get_needs_rights(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fashion_mnist.apt_get_command() == []
    for tool, status in (("apt-get", 0), ("sudo", 1)):
        (tmp_path / tool).write_text(f"#!/bin/sh\nexit {status}\n")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert fashion_mnist.apt_get_command() == []  # sudo asks for a password
    (tmp_path / "sudo").write_text("#!/bin/sh\nexit 0\n")
    assert fashion_mnist.apt_get_command() == ["sudo", "-n", "apt-get"]
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert fashion_mnist.apt_get_command() == ["apt-get"]


def test_make_data_of_an_unknown_or_embedded_set(capsys):
    assert main(["fashion_mnst"]) == 1
    assert "did you mean 'fashion_mnist'?" in capsys.readouterr().err
    assert main(["digits"]) == 0
    assert "nothing to get" in capsys.readouterr().out
