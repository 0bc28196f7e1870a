"""``imagefolder``: a user's own images, a folder per class.

``train/`` and, if there is one, ``test/`` hold the class folders; without ``train/`` the folder
itself holds them. Where there is no test split, a stratified fifth is split off, always the same.
"""

from pathlib import Path

from gsdd_lib.config import DataConfig
from gsdd_lib.core.rng import generator
from gsdd_lib.data.cache import decoded, headers, split_decoded
from gsdd_lib.data.dataset import DataError, ImageSet, RawData, stratified_split
from gsdd_lib.data.sources import Listing, Tree, folder_tree, list_folder
from gsdd_lib.data.tensors import channel_statistics

TRAIN, TEST = "train", "test"
GRAY_MODES = frozenset({"1", "L"})
TEST_FRACTION = 0.2
AT_LEAST = 3  # images of a class: one each to train on, to hold out and to test on


def read_imagefolder(config: DataConfig) -> RawData:
    """The images below ``config.folder`` at ``config.resolution`` (0: their own, if all agree).

    Labels are the positions of the class folders in alphabetical order. Gray files alone give one
    channel, anything else three. Raises :class:`DataError`, one sentence on what to change.
    """
    if not config.folder:
        raise DataError("data set 'imagefolder' needs the parameter 'folder': a folder per class")
    root = Path(config.folder).expanduser()
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; name one with a folder per class in it")
    train = TRAIN if (root / TRAIN).is_dir() else ""
    tree = folder_tree(root, (train, TEST) if train else (train,))
    names = _class_names(tree, train, root)
    labels = {name: label for label, name in enumerate(names)}
    listing = list_folder(root, tree, labels, train=train)
    size, channels = _size_and_channels(listing, config.resolution)
    images = decoded("imagefolder", listing, size, channels=channels)
    train_set, test_set = split_decoded(images, listing)
    note = "its test split"
    if TEST not in tree:
        train_set, test_set, note = *_split_off(train_set), "a fifth split off to test"
    mean, std = channel_statistics(train_set.images)
    provenance = f"imagefolder, {len(listing.entries):,} images of the folder given, {note}"
    return RawData(names, mean, std, train_set, test_set, provenance)


def _class_names(tree: Tree, train: str, root: Path) -> tuple[str, ...]:
    place = f"{root / train}"
    names = tuple(tree[train])
    if len(names) < 2:
        raise DataError(
            f"{place} holds {len(names)} class folders; each class needs one, with its images in it"
        )
    for name, images in tree[train].items():
        needed = AT_LEAST if TEST not in tree else AT_LEAST - 1
        if len(images) < needed:
            raise DataError(
                f"class folder '{name}' of {place} holds {len(images)} images; each class needs at"
                f" least {needed}"
            )
    if strange := sorted(set(tree.get(TEST, {})) - set(names)):
        raise DataError(f"{root / TEST} has a class folder '{strange[0]}' that {place} lacks")
    if TEST in tree and not any(tree[TEST].values()):
        raise DataError(f"{root / TEST} holds no images; add some, or remove it")
    return names


def _size_and_channels(listing: Listing, resolution: int) -> tuple[tuple[int, int], int]:
    """((height, width), channels) to decode at."""
    first, sizes, gray = "", set(), True
    for path, mode, size in headers(listing):
        sizes.add(size)
        gray &= mode in GRAY_MODES
        if len(sizes) > 1 and not resolution:
            raise DataError(
                f"images of the folder differ in size ({path} has {size[0]}x{size[1]}, {first}"
                " another); choose a resolution"
            )
        first = first or path
    width, height = (resolution, resolution) if resolution else sizes.pop()
    return (height, width), 1 if gray else 3


def _split_off(whole: ImageSet) -> tuple[ImageSet, ImageSet]:
    draw = generator(0, "data", "imagefolder", "test")
    kept, held = stratified_split(whole.labels, TEST_FRACTION, generator=draw)
    return whole.select(kept), whole.select(held)
