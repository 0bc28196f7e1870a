"""``cifar10`` and ``cifar100``: 50,000 + 10,000 RGB images of 32x32 (Krizhevsky, 2009).

Read from the publisher's archives, the python or the binary version, packed or unpacked, and never
taken on trust: an archive must have the published MD5, an unpacked file too where its MD5 is known,
and the images must be of the published number, equally many of each class. Nothing here touches
the network.
"""

import hashlib
import os
import tarfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gsdd_lib.config import DataConfig
from gsdd_lib.data.dataset import DataError, ImageSet, RawData
from gsdd_lib.data.plain_pickle import load_plain

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # CIFAR-10's; the field's for both
PIXELS = 3 * 32 * 32
MAX_BYTES = 2**28  # of one file; the longest has 155,249,918


TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar.html"


@dataclass(frozen=True)
class Published:
    """One published archive: its checksum, what it holds, and how a file of it is laid out.

    files: MD5 of the files inside, as far as they are known
    label_bytes: label bytes before the pixels of a binary record, the last one counts; 0: pickles
    images: in the training and the test files together
    """

    md5: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    label_bytes: int = 0
    images: tuple[int, int] = (50_000, 10_000)
    files: dict[str, str] = field(default_factory=dict)

    @property
    def contents(self) -> tuple[str, ...]:
        return (*self.train, *self.test, self.names)


PUBLISHED: dict[str, dict[str, Published]] = {
    "cifar10": {
        "cifar-10-python.tar.gz": Published(
            md5="c58f30108f718f92721af3b95e74349a",
            folder="cifar-10-batches-py",
            train=tuple(f"data_batch_{i}" for i in range(1, 6)),
            test=("test_batch",),
            names="batches.meta",
            files={
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
                "test_batch": "40351d587109b95175f43aff81a1287e",
                "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
            },
        ),
        "cifar-10-binary.tar.gz": Published(
            md5="c32a1d4ab5d03f1284b67883e8d87530",
            folder="cifar-10-batches-bin",
            train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
            test=("test_batch.bin",),
            names="batches.meta.txt",
            label_bytes=1,
        ),
    },
    "cifar100": {
        "cifar-100-python.tar.gz": Published(
            md5="eb9058c3a382ffc7106e4002c42a8d85",
            folder="cifar-100-python",
            train=("train",),
            test=("test",),
            names="meta",
            files={
                "train": "16019d7e3df5f24257cddd939b257f8d",
                "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
                "meta": "7973b15100ade9c7d40fb424638fde48",
            },
        ),
        "cifar-100-binary.tar.gz": Published(
            md5="03b5dce01913d631647c71ecec9e9cb8",
            folder="cifar-100-binary",
            train=("train.bin",),
            test=("test.bin",),
            names="fine_label_names.txt",
            label_bytes=2,
        ),
    },
}


def read_cifar10(config: DataConfig) -> RawData:
    """CIFAR-10 from ``config.folder`` (a folder or an archive) or the usual places."""
    return read_cifar("cifar10", config.folder)


def read_cifar100(config: DataConfig) -> RawData:
    """CIFAR-100 with its 100 fine labels, likewise."""
    return read_cifar("cifar100", config.folder)


def read_cifar(dataset: str, folder: str = "") -> RawData:
    """All images of ``dataset``, a key of :data:`PUBLISHED`, in the published order.

    Raises :class:`DataError`: which file, what is wrong with it, and how to get a good one.
    """
    try:
        path, archive = find(dataset, folder)
        published = PUBLISHED[dataset][archive]
        if path.is_dir():
            contents = _read_folder(path, published)
            how = f"unpacked, {'MD5' if published.files else 'sizes and labels'} verified"
        else:
            contents, how = _read_archive(path, archive, published), "MD5 verified"
        names = _class_names(contents[published.names], published)
        splits = [
            _read_split(contents, files, published, count=count, classes=len(names))
            for files, count in zip(
                (published.train, published.test), published.images, strict=True
            )
        ]
    except DataError as error:
        best = next(iter(PUBLISHED[dataset]))
        raise DataError(
            f"{error}; to get {TITLES[dataset]}, fetch {best} from {ADDRESS} and name it"
            " (parameter 'folder') or put it into data/"
        ) from None
    return RawData(names, MEAN, STD, *splits, f"{TITLES[dataset]} from {archive}, {how}")


def find(dataset: str, folder: str = "") -> tuple[Path, str]:
    """Path of an archive or of the unpacked folder, and the archive's name in :data:`PUBLISHED`.

    Looked for in ``folder`` alone if given (it may be the archive itself), else in $GSDD_DATA and
    ./data and in a folder named like the data set there. Raises :class:`DataError`.
    """
    archives = PUBLISHED[dataset]
    if folder and (given := Path(folder).expanduser()).is_file():
        return given, _recognized(given, archives)
    places = _places(dataset, folder)
    for place in places:
        for archive, published in archives.items():
            for path in (place, place / published.folder):
                if all((path / name).is_file() for name in published.contents):
                    return path, archive
        for archive in archives:
            if (place / archive).is_file():
                return place / archive, archive
    for place in places:  # an unpacked folder that lacks a file deserves to be named
        for published in archives.values():
            for path in (place / published.folder, place):
                missing = [name for name in published.contents if not (path / name).is_file()]
                if len(missing) < len(published.contents):
                    raise DataError(f"{path / missing[0]} is missing")
    looked = ", ".join(str(place) for place in places)
    raise DataError(f"none of {', '.join(archives)} or their unpacked folders is in {looked}")


def _places(dataset: str, folder: str) -> list[Path]:
    if folder:
        return [Path(folder).expanduser()]
    own = os.environ.get("GSDD_DATA")
    roots = ([Path(own).expanduser()] if own else []) + [Path("data")]
    return [place for root in roots for place in (root / dataset, root)]


def _recognized(path: Path, archives: dict[str, Published]) -> str:
    """The published name of the file ``path``: by its own name, or by its content."""
    if path.name in archives:
        return path.name
    found = _md5(path)
    for archive, published in archives.items():
        if published.md5 == found:
            return archive
    raise DataError(f"{path} is neither a folder nor one of {', '.join(archives)}")


def _md5(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from None


def _check(found: str, expected: str, path: Path) -> None:
    if found != expected:
        raise DataError(f"{path} was altered or is not whole: its MD5 is {found}, not {expected}")


def _read_archive(path: Path, archive: str, published: Published) -> dict[str, bytes]:
    """The files of an archive by name, after its checksum; nothing is unpacked to the disk."""
    _check(_md5(path), published.md5, path)
    wanted = {f"{published.folder}/{name}": name for name in published.contents}
    contents = {}
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                name = wanted.get(member.name.removeprefix("./"))
                if name and member.isfile() and member.size <= MAX_BYTES:
                    contents[name] = tar.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} is not a readable .tar.gz archive ({error})") from None
    for full, name in wanted.items():
        if name not in contents:
            raise DataError(f"{path} lacks {full}")
    return contents


def _read_folder(path: Path, published: Published) -> dict[str, bytes]:
    for name, expected in published.files.items():
        _check(_md5(path / name), expected, path / name)
    contents = {}
    for name in published.contents:
        try:
            if (path / name).stat().st_size > MAX_BYTES:
                raise DataError(f"{path / name} is far longer than what was published")
            contents[name] = (path / name).read_bytes()
        except OSError as error:
            raise DataError(f"{path / name} cannot be read ({error.strerror or error})") from None
    return contents


def _class_names(content: bytes, published: Published) -> tuple[str, ...]:
    if published.label_bytes:
        names = content.decode("utf-8", "replace").split()
    else:
        table = load_plain(content, source=published.names)
        key = "fine_label_names" if "fine_label_names" in table else "label_names"
        names = table.get(key) if isinstance(table, dict) else None
    if not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{published.names} holds no names of classes")
    return tuple(names)


def _read_split(
    contents: dict[str, bytes],
    files: tuple[str, ...],
    published: Published,
    *,
    count: int,
    classes: int,
) -> ImageSet:
    read = _read_records if published.label_bytes else _read_batch
    parts = [read(contents.pop(name), name, published.label_bytes) for name in files]
    images, labels = (torch.cat(both) for both in zip(*parts, strict=True))
    if len(labels) != count or len(images) != count:
        raise DataError(f"{', '.join(files)} hold {len(images):,} images, expected {count:,}")
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError(f"{', '.join(files)} hold labels outside of the {classes} classes")
    if len(torch.bincount(labels, minlength=classes).unique()) > 1:
        raise DataError(f"{', '.join(files)} do not hold equally many images of each class")
    return ImageSet(images, labels)


def _read_records(content: bytes, name: str, label_bytes: int) -> tuple[Tensor, Tensor]:
    """Binary version: label bytes, then 1,024 red, green and blue values, record after record."""
    size = label_bytes + PIXELS
    if not content or len(content) % size:
        raise DataError(f"{name} has {len(content):,} bytes, not a multiple of {size:,}")
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, size)
    images = records[:, label_bytes:].reshape(-1, 3, 32, 32)
    return images, records[:, label_bytes - 1].long()


def _read_batch(content: bytes, name: str, _: int) -> tuple[Tensor, Tensor]:
    """Python version: a pickled dictionary with ``data`` uint8 [n, 3072] and a list of labels."""
    table = load_plain(content, source=name)
    data = table.get("data") if isinstance(table, dict) else None
    labels = table.get("fine_labels", table.get("labels")) if data is not None else None
    good = isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.shape[1:] == (PIXELS,)
    if not good or not isinstance(labels, list) or not all(type(y) is int for y in labels):
        raise DataError(f"{name} does not hold uint8 'data' of {PIXELS} columns and labels")
    return torch.from_numpy(data.copy()).view(-1, 3, 32, 32), torch.tensor(labels).long()
