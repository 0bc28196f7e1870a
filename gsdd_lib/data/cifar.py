"""``cifar10`` and ``cifar100``: 50,000 + 10,000 RGB images of 32x32 (Krizhevsky, 2009).

Read from the publisher's archives, the python or the binary version, packed or unpacked; CIFAR-100
also from PNG files in a folder per class. The published MD5 is checked wherever it is known, and
always before a pickle is read; the number of images of each class is checked in any case.
"""

import hashlib
import io
import pickle
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor

from gsdd_lib.config import DataConfig
from gsdd_lib.core.errors import DataError
from gsdd_lib.data.dataset import ImageSet, RawData
from gsdd_lib.data.folder import decoded_splits
from gsdd_lib.data.sources import folder_tree, list_folder, read_bytes, roots
from gsdd_lib.data.tensors import channel_statistics

TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar.html"
MEAN, STD = (
    (0.4914, 0.4822, 0.4465),
    (0.2023, 0.1994, 0.2010),
)  # of CIFAR-10, used for both
COUNTS = {"train": 50_000, "test": 10_000}
PIXELS = 3 * 32 * 32
MAX_BYTES = 2**28  # of one file; the longest archive has 170,498,071
# CIFAR-100 in a folder per class: the number of classes, and the mean of its training pixels.
CLASS_FOLDERS, FOLDERS_MEAN, TOLERANCE = 100, (0.5071, 0.4865, 0.4409), 0.0005


@dataclass(frozen=True)
class Archive:
    """One published archive, as ``cifar_archives.yaml`` describes it."""

    md5: str
    folder: str
    train: list[str]
    test: list[str]
    names: str
    label_bytes: int
    files: dict[str, str]

    @property
    def contents(self) -> list[str]:
        """All files that are read."""
        return [*self.train, *self.test, self.names]


def _read_archives() -> dict[str, dict[str, Archive]]:
    table = yaml.safe_load(Path(__file__).with_name("cifar_archives.yaml").read_text("utf-8"))
    return {s: {name: Archive(**row) for name, row in rows.items()} for s, rows in table.items()}


ARCHIVES = _read_archives()


def read_cifar(dataset: str, config: DataConfig) -> RawData:
    """All images of a data set, in the published order where there is one.

    Args:
        dataset: a key of :data:`ARCHIVES`.
        config: ``folder`` is a folder or an archive.

    Raises:
        DataError: which file, what is wrong with it, and how to get a good one.
    """
    try:
        path, name = _find(dataset, config.folder)
        return _read_class_folders(path) if not name else _read_archive(dataset, path, name)
    except DataError as error:
        best = next(iter(ARCHIVES[dataset]))
        raise DataError(
            f"{error}; to get {TITLES[dataset]}, fetch {best} from {ADDRESS} and name it"
            " (parameter 'folder') or put it into data/"
        ) from None


def _find(dataset: str, folder: str) -> tuple[Path, str]:
    """Path of an archive or of a folder, and the archive's name; empty: a folder per class."""
    archives, places = ARCHIVES[dataset], roots(folder)
    if not folder:
        places = [place for root in places for place in (root / dataset, root)]
    for enough in (all, any):  # failing all, one that is incomplete, to say what it lacks
        for place in places:
            for name, archive in archives.items():
                for path in (place, place / name):
                    if path.name == name and path.is_file():
                        return path, name
                for path in (place, place / archive.folder):
                    if enough((path / file).is_file() for file in archive.contents):
                        return path, name
            named = folder or place.name == dataset
            if dataset == "cifar100" and named and (place / "train").is_dir():
                return place, ""
    looked = ", ".join(str(place) for place in places)
    raise DataError(f"none of {', '.join(archives)} or their unpacked folders is in {looked}")


def _check(content: bytes, expected: str, path: Path, advice: str = "") -> bytes:
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != expected:
        fault = f"{path} was altered or is not whole: its MD5 is {found}, not {expected}"
        raise DataError(fault + advice)
    return content


def _read_archive(dataset: str, path: Path, name: str) -> RawData:
    archive = ARCHIVES[dataset][name]
    if path.is_dir():
        contents = _unpacked(path, archive)
        note = f"unpacked, {'MD5' if archive.files else 'sizes and labels'} verified"
    else:
        contents, note = _packed(path, archive), "MD5 verified"
    names = _class_names(contents, archive)
    splits = [_read_split(contents, archive, split, len(names)) for split in COUNTS]
    return RawData(names, MEAN, STD, *splits, f"{TITLES[dataset]} from {name}, {note}")


def _packed(path: Path, archive: Archive) -> dict[str, bytes]:
    """The files of an archive by name, after its checksum; nothing is unpacked to the disk."""
    content = _check(read_bytes(path, MAX_BYTES), archive.md5, path)
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
        members = {f"{archive.folder}/{name}": name for name in archive.contents}
        return {name: tar.extractfile(member).read() for member, name in members.items()}


def _unpacked(path: Path, archive: Archive) -> dict[str, bytes]:
    contents = {name: read_bytes(path / name, MAX_BYTES) for name in archive.contents}
    if not archive.label_bytes:  # a pickle can run any code: only the published bytes are read
        advice = "; use the binary version, which is read without this check"
        for name, content in contents.items():
            _check(content, archive.files[name], path / name, advice)
    return contents


def _class_names(contents: dict[str, bytes], archive: Archive) -> tuple[str, ...]:
    if archive.label_bytes:
        return tuple(contents[archive.names].decode("utf-8", "replace").split())
    table = pickle.loads(contents[archive.names], encoding="latin1")
    return tuple(table.get("fine_label_names") or table["label_names"])


def _read_split(
    contents: dict[str, bytes], archive: Archive, split: str, num_classes: int
) -> ImageSet:
    files = archive.train if split == "train" else archive.test
    read = _read_records if archive.label_bytes else _read_batch
    parts = [read(contents.pop(name), name, archive.label_bytes) for name in files]
    images, labels = (torch.cat(both) for both in zip(*parts, strict=True))
    if len(images) != COUNTS[split]:
        found = f"{len(images):,} images, expected {COUNTS[split]:,}"
        raise DataError(f"{', '.join(files)} hold {found}")
    if not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise DataError(f"{', '.join(files)} hold labels outside of the {num_classes} classes")
    if len(torch.bincount(labels, minlength=num_classes).unique()) > 1:
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
    table = pickle.loads(content, encoding="latin1")
    labels = table.get("fine_labels") or table["labels"]
    return torch.from_numpy(np.array(table["data"])).view(-1, 3, 32, 32), torch.tensor(labels)


def _read_class_folders(path: Path) -> RawData:
    """CIFAR-100 from ``train/<class>/*.png`` and ``test/<class>/*.png``, in any order."""
    tree = folder_tree(path, tuple(COUNTS))
    names = tuple(tree["train"])
    for split, total in COUNTS.items():
        expected = dict.fromkeys(names, total // CLASS_FOLDERS)
        found = {name: len(files) for name, files in tree.get(split, {}).items()}
        if len(names) != CLASS_FOLDERS or found != expected:
            raise DataError(
                f"{path / split} does not hold {total // CLASS_FOLDERS} images in each of"
                f" {CLASS_FOLDERS} class folders"
            )
    labels = {name: label for label, name in enumerate(names)}
    listing = list_folder(path, tree, labels, train="train")
    train, test = decoded_splits("cifar100", listing, (32, 32), resize="exact")
    mean, _ = channel_statistics(train.images)
    if any(abs(a - b) > TOLERANCE for a, b in zip(mean, FOLDERS_MEAN, strict=True)):
        shown = ", ".join(f"{value:.4f}" for value in mean)
        raise DataError(f"{path} does not hold CIFAR-100: the means of its channels are {shown}")
    note = "from a folder per class, in another order than published; numbers and means verified"
    return RawData(names, MEAN, STD, train, test, f"CIFAR-100 {note}")
