"""The six ImageNet subsets of the paper, from ImageNet's own folders or the published archives.

Classes are chosen by WordNet id and labeled in the order of ``imagenet_subsets.yaml``, whatever
else a folder holds. Images are resized on the shorter side, cropped at the center, and decoded
once (:mod:`gsdd_lib.data.cache`). Nothing here touches the network.
"""

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import yaml

from gsdd_lib.config import DataConfig
from gsdd_lib.core.files import cache_folder, write_atomically
from gsdd_lib.data.cache import decoded, split_decoded
from gsdd_lib.data.dataset import DataError, RawData
from gsdd_lib.data.sources import Tree, archive_tree, folder_tree, list_archive, list_folder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESOLUTION = 128
TRAIN, TEST = "train", "val"
# Archives published for two of the subsets, of the full size and two smaller ones, best first.
PACKED = {
    name: tuple(f"{name}2{size}" for size in ("", "-320", "-160"))
    for name in ("imagenette", "imagewoof")
}
MD5 = {  # as far as more than one source gives it
    "imagenette2.tgz": "fe2fc210e6bb7c5664d602c3cd71e612",
    "imagenette2-320.tgz": "3df6f0d01a2c9592104656642f5e78a3",
    "imagenette2-160.tgz": "e793b78cc4c9e9a4ccc0c1155377a412",
}


@dataclass(frozen=True)
class WordNetClass:
    """A class of ImageNet: its index among the sorted ids, its id, a name."""

    index: int
    wnid: str
    name: str


def _read_subsets() -> dict[str, tuple[WordNetClass, ...]]:
    table = yaml.safe_load(Path(__file__).with_name("imagenet_subsets.yaml").read_text("utf-8"))
    return {name: tuple(WordNetClass(**row) for row in rows) for name, rows in table.items()}


SUBSETS = _read_subsets()


def read_imagenet_subset(name: str, config: DataConfig) -> RawData:
    """The subset ``name`` at ``config.resolution`` (0: 128).

    ``config.folder`` is a tree with train/ and val/ and a folder per WordNet id in each (all of
    ImageNet, or a part), or an archive of one such as imagenette2-320.tgz, or where one of these
    lies. Raises :class:`DataError`, naming every class that is missing.
    """
    path = _find(name, config.folder)
    classes = SUBSETS[name]
    labels = {one.wnid: label for label, one in enumerate(classes)}
    packed = path.is_file()
    tree = _archive_tree(path) if packed else folder_tree(path, (TRAIN, TEST))
    _check_classes(tree, classes, path)
    listing = (list_archive if packed else list_folder)(path, tree, labels, train=TRAIN)
    size = config.resolution or RESOLUTION
    train, test = split_decoded(decoded(name, listing, (size, size)), listing)
    published = {part for stem in PACKED.get(name, ()) for part in (stem, f"{stem}.tgz")}
    source = path.name if path.name in published else "a folder of ImageNet"
    return RawData(
        class_names=tuple(one.name for one in classes),
        mean=MEAN,
        std=STD,
        train=train,
        test=test,
        provenance=f"{name} by WordNet id from {source}, {size}x{size}, {len(listing.entries):,}"
        " images",
    )


def _find(name: str, folder: str) -> Path:
    """The tree or archive to read. Raises :class:`DataError` saying where was looked."""
    places = _places(folder)
    for place in places:
        if place.is_file():
            return place
        inside = [place / stem for stem in PACKED.get(name, ())]
        trees = [place, *inside, place / "imagenet"]
        archives = [path.with_name(f"{path.name}.tgz") for path in inside]
        for path in trees:
            if (path / TRAIN).is_dir():
                return path
        for path in archives:
            if path.is_file():
                return path
    looked = ", ".join(str(place) for place in places)
    packed = f", or fetch {PACKED[name][1]}.tgz of fast.ai and name it" if name in PACKED else ""
    raise DataError(
        f"no folder '{TRAIN}' of ImageNet is in {looked}; to get {name}, name a folder with train/"
        f" and val/ and a folder per WordNet id in each (parameter 'folder'){packed}"
    )


def _places(folder: str) -> list[Path]:
    if folder:
        return [Path(folder).expanduser()]
    own = os.environ.get("GSDD_DATA")
    return ([Path(own).expanduser()] if own else []) + [Path("data")]


def _archive_tree(path: Path) -> Tree:
    """What an archive holds; checked and listed once, as that takes as long as inflating it."""
    status = path.stat()
    about = f"{path.name} {status.st_size} {status.st_mtime_ns}".encode()
    kept = cache_folder() / f"archive-{hashlib.sha256(about).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError):
        return json.loads(kept.read_bytes())
    _check_md5(path)
    tree = archive_tree(path, (TRAIN, TEST))
    with contextlib.suppress(OSError):
        write_atomically(kept, json.dumps(tree).encode())
    return tree


def _check_md5(path: Path) -> None:
    if path.name not in MD5:
        return
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    if digest.hexdigest() != MD5[path.name]:
        raise DataError(
            f"{path} was altered or is not whole: its MD5 is {digest.hexdigest()}, not"
            f" {MD5[path.name]}; fetch it again"
        )


def _check_classes(tree: Tree, classes: tuple[WordNetClass, ...], path: Path) -> None:
    for split in (TRAIN, TEST):
        if split not in tree:
            raise DataError(f"{path} has no '{split}' with a folder per WordNet id in it")
        missing = [one for one in classes if not tree[split].get(one.wnid)]
        if not missing:
            continue
        names = ", ".join(f"{one.wnid} ('{one.name}')" for one in missing)
        others = sorted(set(tree[split]) - {one.wnid for one in classes})
        found = f"; it has {', '.join(others[:3])}{' ...' * (len(others) > 3)}" if others else ""
        raise DataError(f"'{split}' of {path} has no images of {names}{found}")
