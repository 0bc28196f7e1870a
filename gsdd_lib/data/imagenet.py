"""The six ImageNet subsets of the paper, from ImageNet's own folders or the published archives.

Classes are chosen by WordNet id and labeled in the order of ``imagenet_subsets.yaml``, whatever
else a folder holds. Images are decoded once (:mod:`gsdd_lib.data.cache`).
"""

import contextlib
import json
import re
from pathlib import Path

import yaml

from gsdd_lib.config import DataConfig
from gsdd_lib.core.errors import DataError
from gsdd_lib.core.files import cache_folder, seal, unseal, write_atomically
from gsdd_lib.data.dataset import RawData
from gsdd_lib.data.folder import decoded_splits
from gsdd_lib.data.sources import (
    Listing,
    Tree,
    archive_tree,
    file_hash,
    folder_tree,
    list_archive,
    list_folder,
    roots,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESOLUTION = 128
TRAIN, TEST = "train", "val"
# The names of fast.ai's archives and folders: the full size, or that of the shorter side.
PUBLISHED = re.compile(r"(imagenette|imagewoof)2(-(?P<side>\d+))?(\.tgz)?")
MD5 = {  # where more than one source gives it
    "imagenette2.tgz": "fe2fc210e6bb7c5664d602c3cd71e612",
    "imagenette2-320.tgz": "3df6f0d01a2c9592104656642f5e78a3",
    "imagenette2-160.tgz": "e793b78cc4c9e9a4ccc0c1155377a412",
}
TABLE = Path(__file__).with_name("imagenet_subsets.yaml")
SUBSETS: dict[str, dict[str, str]] = {  # WordNet ids and names of the classes, in order
    name: {row["wnid"]: row["name"] for row in rows}
    for name, rows in yaml.safe_load(TABLE.read_text("utf-8")).items()
}


def read_imagenet_subset(name: str, config: DataConfig) -> RawData:
    """One of the subsets, at ``config.resolution`` (0: 128).

    Args:
        name: a key of :data:`SUBSETS`.
        config: ``folder`` is a folder with train/ and val/ and a folder per WordNet id in each (all
            of ImageNet or a part), an archive of one such as imagenette2-320.tgz, or a folder
            that holds one of these.

    Raises:
        DataError: what is missing or damaged; missing classes are named.
    """
    path = _find(name, config.folder)
    listing = _listed(path, SUBSETS[name])
    size = config.resolution or RESOLUTION
    source = path.name if PUBLISHED.fullmatch(path.name) else "a folder of ImageNet"
    return RawData(
        tuple(SUBSETS[name].values()),
        MEAN,
        STD,
        *decoded_splits(name, listing, (size, size), resize=config.resize),
        f"{name} by WordNet id from {source}, {len(listing.entries):,} images,"
        f" {config.resize} to {size}x{size}",
    )


def _find(name: str, folder: str) -> Path:
    """The folder or archive to read; of fast.ai's several sizes the largest."""
    places = roots(folder)
    for place in places:
        if place.is_file():
            return place
        inside = [p for p in place.glob(f"{name}2*") if PUBLISHED.fullmatch(p.name)]
        inside.sort(key=lambda p: -int(PUBLISHED.fullmatch(p.name)["side"] or 2**20))
        for path in (place, *inside, place / "imagenet"):
            if (path / TRAIN).is_dir():
                return path
        for path in inside:
            if path.is_file():
                return path
    looked = ", ".join(str(place) for place in places)
    packed = f"{name}2-320.tgz"
    packed = f", or fetch fast.ai's {packed} and name it" if PUBLISHED.fullmatch(packed) else ""
    raise DataError(
        f"no folder '{TRAIN}' of ImageNet is in {looked}; to get {name}, name a folder with train/"
        f" and val/ and a folder per WordNet id in each (parameter 'folder'){packed}"
    )


def _listed(path: Path, classes: dict[str, str]) -> Listing:
    labels = {wnid: label for label, wnid in enumerate(classes)}
    if path.is_dir():
        tree = folder_tree(path, (TRAIN, TEST))
        _check_classes(tree, classes, path)
        return list_folder(path, tree, labels, train=TRAIN)
    digest = file_hash(path)
    tree = _archive_tree(path, digest)
    _check_classes(tree, classes, path)
    return list_archive(path, tree, labels, train=TRAIN, digest=digest)


def _archive_tree(path: Path, digest: str) -> Tree:
    """What an archive holds; listed once, because that decompresses all of it."""
    kept = cache_folder() / f"archive-{digest[:32]}.json"
    with contextlib.suppress(OSError, ValueError):
        return json.loads(unseal(kept.read_bytes()))
    if path.name in MD5 and (found := file_hash(path, "md5")) != MD5[path.name]:
        raise DataError(
            f"{path} was altered or is not whole: its MD5 is {found}, not {MD5[path.name]}; fetch"
            " it again"
        )
    tree = archive_tree(path, (TRAIN, TEST))
    with contextlib.suppress(OSError):
        write_atomically(kept, seal(json.dumps(tree).encode()))
    return tree


def _check_classes(tree: Tree, classes: dict[str, str], path: Path) -> None:
    for split in (TRAIN, TEST):
        if split not in tree:
            raise DataError(f"{path} has no '{split}' with a folder per WordNet id in it")
        if missing := [wnid for wnid in classes if not tree[split].get(wnid)]:
            names = ", ".join(f"{wnid} ('{classes[wnid]}')" for wnid in missing)
            others = sorted(set(tree[split]) - set(classes))
            found = f"; it has {', '.join(others[:3])}{' ...' * (len(others) > 3)}" * bool(others)
            raise DataError(f"'{split}' of {path} has no images of {names}{found}")
