"""``cifar10`` and ``cifar100``: 50,000 + 10,000 RGB images of 32x32 (Krizhevsky, 2009).

From the publisher's python or binary version, unpacked; CIFAR-100 also from a folder per class.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from gsdd_lib.config import DataConfig
from gsdd_lib.core.errors import DataError
from gsdd_lib.data.dataset import ImageSet, RawData
from gsdd_lib.data.images import decoded, folder_tree, list_images
from gsdd_lib.data.normalization import channel_statistics
from gsdd_lib.data.sources import first_complete, read_bytes, roots, verified

TABLE = Path(__file__).with_name("cifar.yaml").read_text("utf-8")
FORMS: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load(TABLE)
TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar.html"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # of CIFAR-10, used for both
COUNTS = {"train": 50_000, "test": 10_000}
PIXELS = 3 * 32 * 32
MAX_BYTES = 2**28  # of one file
# CIFAR-100 in a folder per class: the number of classes, and the mean of its training pixels.
CLASS_FOLDERS, FOLDERS_MEAN, TOLERANCE = 100, (0.5071, 0.4865, 0.4409), 0.0005


def read_cifar(dataset: str, config: DataConfig) -> RawData:
    try:
        path, name = _find(dataset, config.folder)
        return _read_form(dataset, path, name) if name else _read_class_folders(path)
    except DataError as error:
        archive = f"{TITLES[dataset].lower()}-python.tar.gz from {ADDRESS} (tar -xzf)"
        hint = f"unpack {archive} in data/ or name its folder (parameter 'folder')"
        raise DataError(f"{error}; to get {TITLES[dataset]}, {hint}") from None


def _find(dataset: str, folder: str) -> tuple[Path, str]:
    """The folder with the files, and the name of their form; empty: a folder per class."""
    found: dict[tuple[Path, str], list[Path]] = {}
    for place in (path for root in roots(folder) for path in (root / dataset, root)):
        for name, form in FORMS[dataset].items():
            for path in (place, place / name):
                found[path, name] = [path / file for file in _files(form)]
        if dataset == "cifar100":  # "apple": one of its classes
            found[place, ""] = [place / split / "apple" for split in COUNTS]
    return first_complete(found)


def _files(form: dict[str, Any]) -> list[str]:
    return [*form["train"], *form["test"], form["names"]]


def _read_form(dataset: str, path: Path, name: str) -> RawData:
    form = FORMS[dataset][name]
    contents = {file: read_bytes(path / file, MAX_BYTES) for file in _files(form)}
    if form["label_bytes"]:
        names, note = contents[form["names"]].decode("utf-8", "replace").split(), "sizes and labels"
    else:
        for file, content in contents.items():  # a pickle can run any code
            verified(content, form["md5"][file], path / file, algorithm="md5")
        table = pickle.loads(contents[form["names"]], encoding="latin1")
        names, note = table.get("fine_label_names") or table["label_names"], "MD5"
    splits = [_read_split(contents, form, split, len(names)) for split in COUNTS]
    provenance = f"{TITLES[dataset]} from {name}, {note} verified"
    return RawData(dataset, tuple(names), MEAN, STD, *splits, provenance)


def _read_split(contents: dict[str, bytes], form: dict, split: str, classes: int) -> ImageSet:
    parts = [_read_file(contents.pop(file), file, form["label_bytes"]) for file in form[split]]
    images, labels = (torch.cat(both) for both in zip(*parts, strict=True))
    per_class = torch.bincount(labels, minlength=classes)
    for wrong, fault in (
        (len(images) != COUNTS[split], f"{len(images):,} images, expected {COUNTS[split]:,}"),
        (len(per_class) > classes, f"labels outside of the {classes} classes"),
        (len(per_class.unique()) > 1, "unequally many images of each class"),
    ):
        if wrong:
            raise DataError(f"{', '.join(form[split])} hold {fault}")
    return ImageSet(images, labels)


def _read_file(content: bytes, name: str, label_bytes: int) -> tuple[Tensor, Tensor]:
    """uint8 [n, 3, 32, 32] and labels of a pickled dictionary, or of records (labels, RGB)."""
    if not label_bytes:
        table = pickle.loads(content, encoding="latin1")
        labels = torch.tensor(table.get("fine_labels") or table["labels"])
        return torch.from_numpy(np.array(table["data"])).view(-1, 3, 32, 32), labels
    size = label_bytes + PIXELS
    if not content or len(content) % size:
        raise DataError(f"{name} has {len(content):,} bytes, not a multiple of {size:,}")
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, size)
    return records[:, label_bytes:].reshape(-1, 3, 32, 32), records[:, label_bytes - 1].long()


def _read_class_folders(path: Path) -> RawData:
    tree = folder_tree(path, tuple(COUNTS))
    names = tuple(tree["train"])
    for split, total in COUNTS.items():
        each, found = total // CLASS_FOLDERS, {n: len(files) for n, files in tree[split].items()}
        if len(names) != CLASS_FOLDERS or found != dict.fromkeys(names, each):
            fault = f"does not hold {each} images in each of {CLASS_FOLDERS} class folders"
            raise DataError(f"{path / split} {fault}")
    listing = list_images(path, tree, names, train="train")
    train, test = decoded("cifar100", listing, (32, 32), resize="exact")
    mean, _ = channel_statistics(train.images)
    if any(abs(a - b) > TOLERANCE for a, b in zip(mean, FOLDERS_MEAN, strict=True)):
        shown = ", ".join(f"{value:.4f}" for value in mean)
        raise DataError(f"{path} does not hold CIFAR-100: the means of its channels are {shown}")
    note = "from a folder per class, in another order than published; numbers and means verified"
    return RawData("cifar100", names, MEAN, STD, train, test, f"CIFAR-100 {note}")
