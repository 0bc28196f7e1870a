"""Images in files, a folder per class: the six ImageNet subsets of the paper, and a user's own.

The subsets are in ImageNet's own folders or the published ones; ``imagefolder`` has ``train/`` and
``test/``, or the classes in the folder itself, of which a fifth is split off to test.
"""

from pathlib import Path

import yaml

from gsdd_lib.config import DataConfig
from gsdd_lib.core.errors import DataError
from gsdd_lib.data.dataset import RawData, split_test
from gsdd_lib.data.images import Tree, decoded, folder_tree, list_images, open_image
from gsdd_lib.data.normalization import channel_statistics
from gsdd_lib.data.sources import roots

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
RESOLUTION, TRAIN, VAL, TEST = 128, "train", "val", "test"
SIZES = ("2", "2-320", "2-160")  # fast.ai's folders: the full size, or that of the shorter side
TABLE = Path(__file__).with_name("imagenet_subsets.yaml")
SUBSETS: dict[str, dict[str, str]] = {  # WordNet ids and names of the classes, in order
    name: {row["wnid"]: row["name"] for row in rows}
    for name, rows in yaml.safe_load(TABLE.read_text("utf-8")).items()
}
GRAY = {"1", "L", "I", "I;16", "I;16L", "I;16B"}  # modes
AT_LEAST = 3  # images of a class: one each to train on, to hold out and to test on


def read_imagenet_subset(name: str, config: DataConfig) -> RawData:
    """One of :data:`SUBSETS`, at ``config.resolution`` (0: 128); missing classes are named."""
    (path, source), classes = _find_imagenet(name, config.folder), SUBSETS[name]
    tree = folder_tree(path, (TRAIN, VAL))
    for split in (TRAIN, VAL):
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


def _find_imagenet(name: str, folder: str) -> tuple[Path, str]:
    published = [name + size for size in SIZES]
    places = [root / sub for root in roots(folder) for sub in ("", *published, "imagenet")]
    for path in places:
        if (path / TRAIN).is_dir():
            return path, path.name if path.name in published else "a folder of ImageNet"
    fault = f"no folder '{TRAIN}' of ImageNet is in {', '.join(map(str, places))}; to get {name},"
    hint = "name a folder with train/ and val/ and in each a folder per WordNet id (parameter"
    archive = "unpack an archive first, as in 'tar -xzf imagenette2-320.tgz'"
    raise DataError(f"{fault} {hint} 'folder'); {archive}")


def read_imagefolder(config: DataConfig) -> RawData:
    """Labels are the alphabetical order of the class folders; all gray: one channel, else three."""
    if not config.folder:
        raise DataError("data set 'imagefolder' needs the parameter 'folder': a folder per class")
    (root,) = roots(config.folder)
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; name one with a folder per class in it")
    train_folder = TRAIN if (root / TRAIN).is_dir() else ""
    tree = folder_tree(root, (train_folder, TEST) if train_folder else ("",))
    _check_tree(tree, root / train_folder, root / TEST)
    names = tuple(tree[train_folder])
    listing = list_images(root, tree, names, train=train_folder)
    sizes, modes = [], set()
    for position, path in enumerate(listing.paths):  # their headers alone
        with open_image(listing.read(position), path) as image:
            sizes.append(image.size)
            modes.add(image.mode)
    size = (config.resolution,) * 2 if config.resolution else sizes[0][::-1]
    resize, channels = config.resize if config.resolution else "exact", 1 if modes <= GRAY else 3
    train, test = decoded("imagefolder", listing, size, channels=channels, resize=resize)
    note = "its test split"
    if TEST not in tree:
        train, test, note = *split_test(train, "imagefolder"), "a fifth split off to test"
    shape = f"{config.resize} to " * bool(config.resolution) + f"{size[1]}x{size[0]}"
    source = f"imagefolder, {len(listing.paths):,} images of the folder given"
    statistics = channel_statistics(train.images)
    return RawData("imagefolder", names, *statistics, train, test, f"{source}, {shape}, {note}")


def _check_tree(tree: Tree, train: Path, test: Path) -> None:
    (classes, *tests), needed, fault = tree.values(), AT_LEAST - (TEST in tree), ""
    few = [name for name, images in classes.items() if len(images) < needed]
    strange = sorted(name for split in tests for name in split if name not in classes)
    if len(classes) < 2:
        fault = f"{train} holds {len(classes)} class folders; classification needs at least two"
    elif few:
        found = f"class folder '{few[0]}' of {train} holds {len(classes[few[0]])} images"
        fault = f"{found}; each class needs at least {needed}"
    elif strange:
        fault = f"{test} has a class folder '{strange[0]}' that {train} lacks"
    elif tests and not any(tests[0].values()):
        fault = f"{test} holds no images; add some, or remove it"
    if fault:
        raise DataError(fault)
