"""The six ImageNet subsets of the paper, from ImageNet's own folders or the published subsets'."""

from pathlib import Path

import yaml

from gsdd_lib.config import DataConfig
from gsdd_lib.core.errors import DataError
from gsdd_lib.data.dataset import RawData
from gsdd_lib.data.images import decoded, folder_tree, list_images
from gsdd_lib.data.sources import roots

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESOLUTION, TRAIN, TEST = 128, "train", "val"
SIZES = ("2", "2-320", "2-160")  # fast.ai's folders: the full size, or that of the shorter side
TABLE = Path(__file__).with_name("imagenet_subsets.yaml")
SUBSETS: dict[str, dict[str, str]] = {  # WordNet ids and names of the classes, in order
    name: {row["wnid"]: row["name"] for row in rows}
    for name, rows in yaml.safe_load(TABLE.read_text("utf-8")).items()
}


def read_imagenet_subset(name: str, config: DataConfig) -> RawData:
    """One of :data:`SUBSETS`, at ``config.resolution`` (0: 128); missing classes are named."""
    (path, source), classes = _find(name, config.folder), SUBSETS[name]
    tree = folder_tree(path, (TRAIN, TEST))
    for split in (TRAIN, TEST):
        if split not in tree:
            raise DataError(f"{path} has no '{split}' with a folder per WordNet id in it")
        if missing := [wnid for wnid in classes if not tree[split].get(wnid)]:
            names = ", ".join(f"{wnid} ('{classes[wnid]}')" for wnid in missing)
            others = sorted(set(tree[split]) - set(classes))
            found = f"; it has {', '.join(others[:3])}{' ...' * (len(others) > 3)}" * bool(others)
            raise DataError(f"'{split}' of {path} has no images of {names}{found}")
    listing = list_images(path, tree, list(classes), train=TRAIN)
    size = config.resolution or RESOLUTION
    splits = decoded(name, listing, (size, size), resize=config.resize)
    about = f"{len(listing.paths):,} images, {config.resize} to {size}x{size}"
    provenance = f"{name} by WordNet id from {source}, {about}"
    return RawData(name, tuple(classes.values()), MEAN, STD, *splits, provenance)


def _find(name: str, folder: str) -> tuple[Path, str]:
    places, published = roots(folder), [name + size for size in SIZES]
    for place in places:
        for path in (place, *(place / folder for folder in (*published, "imagenet"))):
            if (path / TRAIN).is_dir():
                return path, path.name if path.name in published else "a folder of ImageNet"
    fault = (
        f"no folder '{TRAIN}' of ImageNet is in {', '.join(map(str, places))}; to get {name}, name"
    )
    hint = "a folder with train/ and val/ and a folder per WordNet id in each (parameter 'folder')"
    archive = "unpack an archive first, as in 'tar -xzf imagenette2-320.tgz'"
    raise DataError(f"{fault} {hint}; {archive}")
