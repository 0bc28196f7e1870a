"""``fashion_mnist``: 60,000 + 10,000 gray images of 28x28 in ten classes (Xiao et al., 2017).

Four IDX files, plain or ``.gz``, looked for in the usual places and never taken on trust: the
header, the dimensions and the SHA-256 of the content must be the published ones. Nothing here
touches the network; :mod:`gsdd_lib.data.obtain` does, when asked.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gsdd_lib.config import DataConfig
from gsdd_lib.data.dataset import DataError, ImageSet, RawData
from gsdd_lib.data.idx import parse_idx, read_content

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
