"""``fashion_mnist``: 60,000 + 10,000 gray images of 28x28 in ten classes (Xiao et al., 2017).

Four IDX files, plain or ``.gz``, looked for in the usual places and never taken on trust: the
header, the dimensions and the SHA-256 of the content must be the published ones. Loading never
touches the network; :func:`obtain_fashion_mnist` does, when asked.
"""

import hashlib
import http.client
import math
import os
import shutil
import struct
import subprocess
import urllib.request
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from gsdd_lib.config import DataConfig
from gsdd_lib.core.files import write_atomically
from gsdd_lib.data.dataset import DataError, ImageSet, RawData

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
MEAN, STD = (0.2861,), (0.3530,)
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
HOW_TO_GET = (
    "to get Fashion-MNIST, name its folder (parameter 'folder'), install Debian's package"
    " 'dataset-fashion-mnist' with apt-get, or run 'make data'"
)


@dataclass(frozen=True)
class IdxFile:
    """What a file must hold: its dimensions, and the SHA-256 of its content, uncompressed."""

    shape: tuple[int, ...]
    sha256: str


# One digest serves every packing: the publisher's .gz, Debian's .gz (packed anew) and plain files.
FILES = {
    "train-images-idx3-ubyte": IdxFile(
        (60_000, 28, 28), "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
    ),
    "train-labels-idx1-ubyte": IdxFile(
        (60_000,), "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
    ),
    "t10k-images-idx3-ubyte": IdxFile(
        (10_000, 28, 28), "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
    ),
    "t10k-labels-idx1-ubyte": IdxFile(
        (10_000,), "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
    ),
}
MAX_BYTES = 2**26  # of content; the longest file has 47,040,016


@dataclass(frozen=True)
class Place:
    """A folder that may hold the files, and how to speak of it without a path of the machine."""

    folder: Path
    label: str

    def complete(self) -> bool:
        """Whether all four files are there, by name."""
        return all(locate(self.folder, stem).exists() for stem in FILES)


def places(folder: str = "") -> list[Place]:
    """Where to look, best first: ``folder`` alone if given, else the usual places.

    These are $GSDD_DATA/fashion-mnist, ./data/fashion-mnist and Debian's system folder.
    """
    if folder:
        return [Place(Path(folder).expanduser(), "the folder given")]
    usual = [
        Place(Path("data/fashion-mnist"), "data/fashion-mnist"),
        Place(DEBIAN_FOLDER, "Debian's package dataset-fashion-mnist"),
    ]
    if root := os.environ.get("GSDD_DATA"):
        own = Path(root).expanduser() / "fashion-mnist"
        usual.insert(0, Place(own, "$GSDD_DATA/fashion-mnist"))
    return usual


def find(folder: str = "") -> Place:
    """The first place with all four files. Raises :class:`DataError` naming what is missing."""
    candidates = places(folder)
    for place in candidates:
        if place.complete():
            return place
    started = [p for p in candidates if any(locate(p.folder, s).exists() for s in FILES)]
    if folder or started:
        place = started[0] if started else candidates[0]
        stem = next(s for s in FILES if not locate(place.folder, s).exists())
        fault = f"{place.folder / stem}.gz (or without .gz) is missing"
    else:
        looked = ", ".join(str(place.folder) for place in candidates)
        fault = f"{next(iter(FILES))}.gz and its three siblings are in none of {looked}"
    raise DataError(f"{fault}; {HOW_TO_GET}")


def locate(folder: Path, stem: str) -> Path:
    """The path of one file: the plain one if it is there, else the compressed one."""
    plain = folder / stem
    return plain if plain.is_file() else folder / f"{stem}.gz"


def read_file(path: Path, stem: str) -> Tensor:
    """One file, checked: uint8 of ``FILES[stem].shape``. Raises :class:`DataError`."""
    return verified(read_content(path, MAX_BYTES), stem, source=str(path))


def verified(content: bytes, stem: str, *, source: str) -> Tensor:
    """What ``content`` holds, if it is what was published as ``stem``.

    Raises :class:`DataError` otherwise, with ``source`` as the file's name.
    """
    expected, values = FILES[stem], parse_idx(content, source=source)
    shape = tuple(values.shape)
    if shape != expected.shape:
        raise DataError(f"{source} holds {list(shape)} values, expected {list(expected.shape)}")
    found = hashlib.sha256(content).hexdigest()
    if found != expected.sha256:
        raise DataError(
            f"{source} was altered: the SHA-256 of its content begins with {found[:12]},"
            f" expected {expected.sha256[:12]}"
        )
    return values


def read_fashion_mnist(config: DataConfig) -> RawData:
    """All 70,000 images from ``config.folder`` or the usual places, every byte checked.

    Raises :class:`DataError`: the file, what was expected, and the three ways to get it.
    """
    place = find(config.folder)
    train, test = (read_split(place.folder, prefix) for prefix in ("train", "t10k"))
    provenance = f"Fashion-MNIST from {place.label}, SHA-256 verified"
    return RawData(CLASS_NAMES, MEAN, STD, train, test, provenance)


def read_split(folder: Path, prefix: str) -> ImageSet:
    """Images and labels of ``prefix`` ("train" or "t10k") in ``folder``."""
    stems = [stem for stem in FILES if stem.startswith(prefix)]
    try:
        images, labels = (read_file(locate(folder, stem), stem) for stem in stems)
    except DataError as error:
        raise DataError(f"{error}; {HOW_TO_GET}") from None
    return ImageSet(images.unsqueeze(1), labels.long())


UNSIGNED_BYTE = 8
GZIP = 31  # zlib's window bits for: gzip header and checksum expected


def read_content(path: Path, max_bytes: int) -> bytes:
    """The content of ``path``, inflated if its name ends in ``.gz``.

    Raises :class:`DataError` when it cannot be read, is damaged, or holds more than ``max_bytes``;
    more than that is never read or inflated, whatever the file claims.
    """
    try:
        with open(path, "rb") as file:
            # gzip lengthens what it cannot compress by less than this
            content = file.read(max_bytes + max_bytes // 256 + 1024)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from None
    if path.suffix == ".gz":
        return inflate(content, max_bytes, source=str(path))
    if len(content) > max_bytes:
        raise DataError(_too_long(str(path), max_bytes))
    return content


def inflate(content: bytes, max_bytes: int, *, source: str) -> bytes:
    """Decompress gzip data; ``source`` is its name in the :class:`DataError` it may raise."""
    stream = zlib.decompressobj(GZIP)
    try:
        inflated = stream.decompress(content, max_bytes + 1)
    except zlib.error as error:
        raise DataError(f"{source} is not a sound gzip file ({error})") from None
    if len(inflated) > max_bytes:
        raise DataError(_too_long(source, max_bytes))
    if not stream.eof:
        raise DataError(
            f"{source} is truncated: its compressed data breaks off"
            f" after {len(inflated):,} bytes of content"
        )
    return inflated


def parse_idx(content: bytes, *, source: str) -> Tensor:
    """The uint8 tensor in ``content``, with the dimensions its header names.

    Raises :class:`DataError` (with ``source`` as the file's name) on any other content.

    >>> parse_idx(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]), source="labels")
    tensor([7, 9], dtype=torch.uint8)
    """
    if len(content) < 4 or content[:3] != bytes([0, 0, UNSIGNED_BYTE]):
        raise DataError(
            f"{source} is not an IDX file of bytes: it begins with"
            f" '{content[:4].hex(' ')}', expected '00 00 08' and the number of dimensions"
        )
    start = 4 + 4 * content[3]
    if start == 4 or len(content) < start:
        raise DataError(f"{source} is truncated: its header of {start} bytes is not complete")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    expected = start + math.prod(shape)
    if len(content) != expected:
        fault = "truncated" if len(content) < expected else "too long"
        raise DataError(
            f"{source} is {fault}: {len(content):,} bytes, expected {expected:,}"
            f" for the dimensions {list(shape)} in its header"
        )
    values = np.frombuffer(content, np.uint8, offset=start)
    return torch.from_numpy(values.copy()).reshape(shape)  # a copy: bytes are read-only


def _too_long(source: str, max_bytes: int) -> str:
    return f"{source} is too long: more than the {max_bytes:,} bytes expected"


TIMEOUT_S = 30
PIECE_BYTES = 2**16


def fetch(
    addresses: Sequence[str],
    path: Path,
    *,
    check: Callable[[bytes], object],
    max_bytes: int,
    progress: bool = True,
) -> str:
    """Write to ``path`` what one of ``addresses`` holds; returns that address.

    check: called with the bytes, raises :class:`DataError` on wrong ones. It is what is trusted,
        not the address, and nothing is written before it has passed.
    max_bytes: no more than this is read

    Raises :class:`DataError` with what each address answered, or that ``path`` cannot be written.
    """
    faults = []
    for address in addresses:
        try:
            content = download(address, max_bytes=max_bytes, progress=progress)
            check(content)
        except (OSError, http.client.HTTPException, DataError) as error:
            reason = getattr(error, "reason", "") or error or type(error).__name__
            faults.append(f"{address}: {reason}")
            continue
        try:
            write_atomically(path, content)
        except OSError as error:
            raise DataError(f"{path} cannot be written ({error.strerror or error})") from None
        return address
    raise DataError(f"{path.name} could not be fetched ({'; '.join(faults)})")


def download(address: str, *, max_bytes: int, progress: bool = True) -> bytes:
    """The bytes at ``address``, at most ``max_bytes`` of them.

    Raises an :class:`OSError`, an ``http.client.HTTPException`` or a :class:`DataError`.
    """
    with urllib.request.urlopen(address, timeout=TIMEOUT_S) as response:
        length = response.headers.get("Content-Length", "")
        expected = int(length) if length.isdecimal() else None
        content = bytearray()
        name = address.rsplit("/", 1)[-1]
        shown = {"desc": name, "unit": "B", "unit_scale": True, "disable": not progress}
        with tqdm(total=expected, **shown) as bar:
            while piece := response.read(PIECE_BYTES):
                content += piece
                bar.update(len(piece))
                if len(content) > max_bytes:
                    raise DataError(f"more than the {max_bytes:,} bytes expected")
    if expected is not None and len(content) != expected:
        raise DataError(f"the connection broke after {len(content):,} of {expected:,} bytes")
    return bytes(content)


PACKAGE = "dataset-fashion-mnist"
APT_TIMEOUT_S = 600
# Both are the publisher's own. The second has no https; the content's SHA-256 is what is trusted.
ADDRESSES = (
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)

Say = Callable[[str], None]


def obtain_fashion_mnist(folder: str = "", *, fetch_only: bool = False, say: Say = print) -> str:
    """Find, install or fetch Fashion-MNIST; returns one line that says which.

    folder: look there and fetch to there; empty: the usual places
    fetch_only: do not look elsewhere and do not install, fetch what is missing
    say: is told what takes time, and what did not work, one line each

    Raises :class:`DataError` when nothing works.
    """
    if not fetch_only:
        try:
            return f"found in {_verified(folder)}"
        except DataError as fault:
            say(f"not usable as it is: {str(fault).removesuffix(f'; {HOW_TO_GET}')}")
        if not folder and (apt_get := apt_get_command()):
            say(f"installing Debian's package {PACKAGE} with apt-get")
            try:
                install_package(apt_get)
                return f"Debian's package {PACKAGE}, installed in {_verified(str(DEBIAN_FOLDER))}"
            except DataError as fault:
                say(str(fault))
    target = places(folder)[0].folder
    source = fetch_files(target, say=say)
    return f"fetched from {source} to {target}" if source else f"complete in {target}"


def _verified(folder: str) -> Path:
    """The folder where all the files are, after reading every byte of them."""
    read_fashion_mnist(DataConfig(dataset="fashion_mnist", folder=folder))
    return find(folder).folder


def apt_get_command() -> list[str]:
    """``apt-get`` with the rights to install, through password-less sudo if need be, or []."""
    if not shutil.which("apt-get"):
        return []
    if os.geteuid() == 0:
        return ["apt-get"]
    if shutil.which("sudo") and _run(["sudo", "-n", "true"]).returncode == 0:
        return ["sudo", "-n", "apt-get"]
    return []


def install_package(apt_get: list[str]) -> None:
    """Install the package, with fresh package lists if the present ones do not know it."""
    install = [*apt_get, "install", "-y", "--no-install-recommends", PACKAGE]
    result = _run(install)
    if result.returncode:
        _run([*apt_get, "update"])
        result = _run(install)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        raise DataError(f"apt-get could not install {PACKAGE} ({lines[-1]})")


def _run(command: list[str]) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            timeout=APT_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def fetch_files(folder: Path, *, say: Say = print) -> str:
    """Fetch to ``folder`` each file that is not there intact; returns the last address used.

    The empty string says that all were there. A plain file that fails its check is in the way of
    the compressed one that would be fetched, so that is an error for the user to resolve.
    """
    source = ""
    for stem in FILES:
        present = locate(folder, stem)
        try:
            read_file(present, stem)
            continue
        except DataError as fault:
            if present.suffix != ".gz":
                raise DataError(f"{fault}; remove it and run this again") from None
        name = f"{stem}.gz"
        say(f"fetching {name}")
        source = _fetch_file(folder / name, stem).removesuffix(name)
    return source


def _fetch_file(path: Path, stem: str) -> str:
    """Fetch one ``.gz`` file; returns the address it came from."""

    def check(content: bytes) -> None:
        verified(inflate(content, MAX_BYTES, source=path.name), stem, source=path.name)

    addresses = [base + path.name for base in ADDRESSES]
    try:
        return fetch(addresses, path, check=check, max_bytes=MAX_BYTES)
    except DataError as fault:
        by_hand = f"where the network is closed, put the four .gz files into {path.parent} by hand"
        raise DataError(f"{fault}; {by_hand}") from None
