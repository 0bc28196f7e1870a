"""``fashion_mnist``: 60,000 + 10,000 gray images of 28x28 in ten classes (Xiao et al., 2017).

Four IDX files, plain or ``.gz``, looked for in the usual places. Their content must have the
published SHA-256, whoever packed them. Loading never touches the network;
:func:`fetch_fashion_mnist` does, when asked.
"""

import hashlib
import http.client
import shutil
import struct
import subprocess
import tempfile
import urllib.request
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gsdd_lib.config import DataConfig
from gsdd_lib.core.errors import DataError
from gsdd_lib.core.files import write_atomically
from gsdd_lib.data.dataset import ImageSet, RawData
from gsdd_lib.data.sources import read_bytes, roots

CLASS_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
MEAN, STD = (0.2861,), (0.3530,)
FILES = {  # SHA-256 of the content, uncompressed
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
MAX_BYTES = 2**26  # of content; the longest file has 47,040,016
GZIP = 31  # zlib's window bits for: gzip header and checksum expected
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
PACKAGE = "dataset-fashion-mnist"
# Both are the publisher's own. The second has no https; the SHA-256 is what is trusted.
ADDRESSES = (
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
TIMEOUT_S, APT_TIMEOUT_S = 30, 600
HOW_TO_GET = (
    "to get Fashion-MNIST (30 MB), run 'make data' or 'python -m gsdd_lib.data fashion_mnist"
    " --fetch', or name its folder (parameter 'folder')"
)


def read_fashion_mnist(config: DataConfig) -> RawData:
    """All 70,000 images from ``config.folder`` or the usual places.

    Raises:
        DataError: the file, what is wrong with it, and how to get a good one.
    """
    try:
        folder, label = _find(config.folder)
        train, test = (_read_split(folder, prefix) for prefix in ("train", "t10k"))
    except DataError as error:
        raise DataError(f"{error}; {HOW_TO_GET}") from None
    provenance = f"Fashion-MNIST from {label}, SHA-256 verified"
    return RawData(CLASS_NAMES, MEAN, STD, train, test, provenance)


def _places(folder: str) -> dict[Path, str]:
    """Where to look, best first, and how to call each place without a path of the machine."""
    places = roots(folder)
    if folder:
        return {places[0]: "the folder given"}
    labels = ("$GSDD_DATA", "data")[-len(places) :]
    inside = {
        place / name: f"{label}/{name}"
        for place, label in zip(places, labels, strict=True)
        for name in ("fashion-mnist", "fashion_mnist")
    }
    return inside | {DEBIAN_FOLDER: f"Debian's package {PACKAGE}"}


def _find(folder: str) -> tuple[Path, str]:
    """The first place with all four files, and what to call it."""
    places = _places(folder)
    missing = {p: [s for s in FILES if not _locate(p, s).exists()] for p in places}
    for place, label in places.items():
        if not missing[place]:
            return place, label
    for place, stems in missing.items():
        if folder or len(stems) < len(FILES):
            raise DataError(f"{place / stems[0]}.gz (or without .gz) is missing")
    looked = ", ".join(str(place) for place in places)
    raise DataError(f"{next(iter(FILES))}.gz and its three siblings are in none of {looked}")


def _locate(folder: Path, stem: str) -> Path:
    """The path of one file: the plain one if it is there, else the compressed one."""
    plain = folder / stem
    return plain if plain.is_file() else folder / f"{stem}.gz"


def _read_split(folder: Path, prefix: str) -> ImageSet:
    images, labels = (
        _values(_content(_locate(folder, stem), stem)) for stem in FILES if stem.startswith(prefix)
    )
    return ImageSet(images.unsqueeze(1), labels.long())


def _values(content: bytes) -> Tensor:
    """The tensor in an IDX file: 0, 0, 8 (bytes), the number of dimensions, these, the values."""
    start = 4 + 4 * content[3]
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).copy()).view(shape)


def _content(path: Path, stem: str) -> bytes:
    """The content of a file, decompressed, if it is what was published as ``stem``."""
    return _verified(read_bytes(path, MAX_BYTES), stem, path.name.endswith(".gz"), str(path))


def _verified(content: bytes, stem: str, compressed: bool, source: str) -> bytes:
    if compressed:
        stream = zlib.decompressobj(GZIP)
        try:
            content = stream.decompress(content, MAX_BYTES)
        except zlib.error as error:
            raise DataError(f"{source} is not a sound gzip file ({error})") from None
        if not stream.eof:
            raise DataError(f"{source} is cut off, or too long")
    found = hashlib.sha256(content).hexdigest()
    if found != FILES[stem]:
        raise DataError(
            f"{source} was altered or is not whole: the SHA-256 of its content begins with"
            f" {found[:12]}, expected {FILES[stem][:12]}"
        )
    return content


def fetch_fashion_mnist(folder: str = "", *, say: Callable[[str], None] = print) -> Path:
    """Fetch the files that are missing or damaged, verify them, and install nothing.

    The publisher's addresses are tried first, then Debian's package, which is unpacked in a
    temporary folder by ``apt-get download`` and ``dpkg-deb``.

    Args:
        folder: where they go; empty: ``fashion-mnist`` in $GSDD_DATA or ``data``.
        say: is told what is about to be fetched from where, and what failed.

    Returns:
        The folder.

    Raises:
        DataError: why each way failed.
    """
    target = next(iter(_places(folder)))
    wanted = [stem for stem in FILES if not _is_sound(target, stem)]
    ways = {address: partial(_fetch_files, address) for address in ADDRESSES}
    if shutil.which("apt-get") and shutil.which("dpkg-deb"):
        ways[f"Debian's package {PACKAGE} (apt-get download)"] = _fetch_package
    for source, fetch in ways.items():
        say(f"fetching Fashion-MNIST (30 MB) from {source} to {target}")
        try:
            fetch(target, wanted)
            return target
        except (OSError, http.client.HTTPException, DataError) as error:
            say(f"that failed: {getattr(error, 'reason', '') or error}")
    raise DataError(
        "Fashion-MNIST could not be fetched; where the network is closed, put its four .gz files"
        f" into {target} by hand"
    )


def _is_sound(folder: Path, stem: str) -> bool:
    path = _locate(folder, stem)
    try:
        _content(path, stem)
    except DataError as fault:
        if path.suffix != ".gz":  # it would hide the compressed file that is fetched
            raise DataError(f"{fault}; remove it and run this again") from None
        return False
    return True


def _keep(content: bytes, folder: Path, stem: str) -> None:
    """Write a fetched ``.gz`` file, if it is what was published."""
    _verified(content, stem, True, f"{stem}.gz")
    write_atomically(folder / f"{stem}.gz", content)


def _fetch_files(address: str, target: Path, wanted: list[str]) -> None:
    for stem in wanted:
        with urllib.request.urlopen(f"{address}{stem}.gz", timeout=TIMEOUT_S) as response:
            content = response.read(MAX_BYTES + 1)
            expected = response.headers.get("Content-Length", "")
        if expected.isdecimal() and len(content) < int(expected):  # read() itself does not tell
            raise DataError(f"the connection broke after {len(content):,} of {expected} bytes")
        _keep(content, target, stem)


def _fetch_package(target: Path, wanted: list[str]) -> None:
    """Take the files out of Debian's package, with package lists in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder)
        for place in ("lists/partial", "cache/archives/partial", "package"):
            (own / place).mkdir(parents=True)
        options = ("-o", f"Dir::State::Lists={own / 'lists'}", "-o", f"Dir::Cache={own / 'cache'}")
        _run("apt-get", *options, "update", folder=own)
        _run("apt-get", *options, "download", PACKAGE, folder=own)
        (package,) = own.glob("*.deb")
        _run("dpkg-deb", "-x", str(package), str(own / "package"), folder=own)
        unpacked = own / "package" / DEBIAN_FOLDER.relative_to("/")
        for stem in wanted:
            _keep(read_bytes(unpacked / f"{stem}.gz", MAX_BYTES), target, stem)


def _run(*command: str, folder: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=APT_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise DataError(f"{command[0]} took longer than {APT_TIMEOUT_S} seconds") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise DataError(f"{command[0]}: {lines[-1]}")
