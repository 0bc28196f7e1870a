"""``fashion_mnist``: 60,000 + 10,000 gray images of 28x28 in ten classes (Xiao et al., 2017).

Four IDX files, plain or ``.gz``, whose content must have the published SHA-256.
"""

import http.client
import shutil
import struct
import subprocess
import sys
import tempfile
import urllib.request
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from gsdd_lib.config import DataConfig
from gsdd_lib.core.errors import DataError
from gsdd_lib.core.files import write_atomically
from gsdd_lib.data.dataset import ImageSet, RawData
from gsdd_lib.data.sources import first_complete, read_bytes, roots, verified

CLASS_NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker")
CLASS_NAMES += ("Bag", "Ankle boot")
MEAN, STD = (0.2861,), (0.3530,)
FILES = {  # SHA-256 of the content, uncompressed
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
MAX_BYTES = 2**26  # of content; the longest file has 47,040,016
DEBIAN_FOLDER, PACKAGE = Path("/usr/share/datasets/fashion-mnist"), "dataset-fashion-mnist"
ADDRESSES = (  # the publisher's own; the SHA-256 is what is trusted
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
TIMEOUT_S, APT_TIMEOUT_S = 30, 600
APT = f"""mkdir -p lists/partial cache/archives/partial
apt="apt-get -o Dir::State::Lists=$PWD/lists -o Dir::Cache=$PWD/cache"
$apt update && $apt download {PACKAGE} && dpkg-deb -x *.deb ."""
FETCH = "run 'make data' or 'python -m gsdd_lib.data fashion_mnist --fetch'"


def read_fashion_mnist(config: DataConfig) -> RawData:
    """All 70,000 images from ``config.folder`` or the usual places; never from the network."""
    try:
        places = _places(config.folder)
        folder = first_complete({p: [_locate(p, stem) for stem in FILES] for p in places})
        train, test = (_read_split(folder, prefix) for prefix in ("train", "t10k"))
    except DataError as error:
        hint = f"to get Fashion-MNIST (30 MB), {FETCH}, or name its folder (parameter 'folder')"
        raise DataError(f"{error}; {hint}") from None
    source = "the folder given" if config.folder else f"{folder.parent.name}/{folder.name}"
    provenance = f"Fashion-MNIST from {source}, SHA-256 verified"
    return RawData("fashion_mnist", CLASS_NAMES, MEAN, STD, train, test, provenance)


def fetch_fashion_mnist(folder: str = "") -> None:
    """Fetch missing files to ``folder`` ("": where loading looks first); installs nothing."""
    target, wanted = _places(folder)[0], []
    for stem in FILES:
        try:
            _sound(stem, _locate(target, stem))
        except DataError as fault:
            if (target / stem).is_file():  # it would hide the compressed file that is fetched
                raise DataError(f"{fault}; remove it and run this again") from None
            wanted.append(target / f"{stem}.gz")
    ways = {address: partial(_from_address, address) for address in ADDRESSES}
    if shutil.which("apt-get") and shutil.which("dpkg-deb"):
        ways[f"Debian's package {PACKAGE} (apt-get download)"] = _from_package
    for source, fetch in ways.items():
        print(f"fetching Fashion-MNIST (30 MB) from {source} to {target}", file=sys.stderr)
        try:
            contents = fetch([path.name for path in wanted])
            for path, content in zip(wanted, contents, strict=True):
                _sound(path.stem, path, content)
                write_atomically(path, content)
            return
        except (OSError, http.client.HTTPException, subprocess.SubprocessError, DataError) as error:
            print(f"that failed: {getattr(error, 'reason', '') or error}", file=sys.stderr)
    hint = f"where the network is closed, put its four .gz files into {target} by hand"
    raise DataError(f"Fashion-MNIST could not be fetched; {hint}")


def _places(folder: str) -> list[Path]:
    """Where to look, best first."""
    if folder:
        return roots(folder)
    names = ("fashion-mnist", "fashion_mnist")
    return [*(root / name for root in roots() for name in names), DEBIAN_FOLDER]


def _locate(folder: Path, stem: str) -> Path:
    plain = folder / stem
    return plain if plain.is_file() else folder / f"{stem}.gz"


def _read_split(folder: Path, prefix: str) -> ImageSet:
    """An IDX file is 0, 0, 8 (bytes), the number of dimensions, these, the values."""
    tensors = []
    for stem in (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"):
        content = _sound(stem, _locate(folder, stem))
        start = 4 + 4 * content[3]
        shape = struct.unpack(f">{content[3]}I", content[4:start])
        values = np.frombuffer(content, np.uint8, offset=start).copy()
        tensors.append(torch.from_numpy(values).view(shape))
    return ImageSet(tensors[0].unsqueeze(1), tensors[1].long())


def _sound(stem: str, path: Path, content: bytes | None = None) -> bytes:
    """The content of a file, decompressed, if it is what was published as ``stem``."""
    content = read_bytes(path, MAX_BYTES) if content is None else content
    if path.suffix == ".gz":
        stream = zlib.decompressobj(zlib.MAX_WBITS | 16)  # gzip header and checksum expected
        try:
            content = stream.decompress(content, MAX_BYTES)
        except zlib.error as error:
            raise DataError(f"{path} is not a sound gzip file ({error})") from None
        if not stream.eof:
            raise DataError(f"{path} is cut off, or too long")
    return verified(content, FILES[stem], path, algorithm="sha256")


def _from_address(address: str, names: list[str]) -> Iterator[bytes]:
    for name in names:
        with urllib.request.urlopen(address + name, timeout=TIMEOUT_S) as response:
            yield response.read(MAX_BYTES + 1)


def _from_package(names: list[str]) -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        options = {"cwd": folder, "capture_output": True, "text": True, "timeout": APT_TIMEOUT_S}
        done = subprocess.run(["sh", "-ec", APT], **options)
        if done.returncode:
            raise DataError(done.stderr.strip().rpartition("\n")[2])
        for name in names:
            yield read_bytes(Path(folder) / DEBIAN_FOLDER.relative_to("/") / name, MAX_BYTES)
