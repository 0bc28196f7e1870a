"""``imagefolder``: a user's own images in files, a folder per class.

``train/`` and, if there is one, ``test/`` hold the class folders; without ``train/`` the folder
itself holds them. Where there is no test split, a stratified fifth is split off, always the same.
"""

from pathlib import Path

import torch

from gsdd_lib.config import DataConfig
from gsdd_lib.core.errors import DataError
from gsdd_lib.core.rng import generator
from gsdd_lib.data.cache import decoded, headers
from gsdd_lib.data.dataset import ImageSet, RawData, check_size, stratified_split
from gsdd_lib.data.sources import Listing, Tree, folder_tree, list_folder, roots
from gsdd_lib.data.tensors import channel_statistics

TRAIN, TEST = "train", "test"
GRAY_MODES = ("1", "L", "I", "I;16", "I;16L", "I;16B")
TEST_FRACTION = 0.2
AT_LEAST = 3  # images of a class: one each to train on, to hold out and to test on


def read_imagefolder(config: DataConfig) -> RawData:
    """The images below ``config.folder`` at ``config.resolution`` (0: their own, if all agree).

    Labels are the positions of the class folders in alphabetical order. Gray files alone give one
    channel, anything else three.

    Raises:
        DataError: one sentence on what to change.
    """
    if not config.folder:
        raise DataError("data set 'imagefolder' needs the parameter 'folder': a folder per class")
    (root,) = roots(config.folder)
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; name one with a folder per class in it")
    train = TRAIN if (root / TRAIN).is_dir() else ""
    tree = folder_tree(root, (train, TEST) if train else (train,))
    names = _class_names(tree, train, root)
    labels = {name: label for label, name in enumerate(names)}
    listing = list_folder(root, tree, labels, train=train)
    size, channels = _size_and_channels(listing, config.resolution)
    resize = config.resize if config.resolution else "exact"
    train_set, test_set = decoded_splits(
        "imagefolder", listing, size, channels=channels, resize=resize
    )
    note = "its test split"
    if TEST not in tree:
        train_set, test_set, note = *_split_off(train_set), "a fifth split off to test"
    mean, std = channel_statistics(train_set.images)
    shape = f"{config.resize} to " * bool(config.resolution) + f"{size[1]}x{size[0]}"
    source = f"imagefolder, {len(listing.entries):,} images of the folder given"
    return RawData(names, mean, std, train_set, test_set, f"{source}, {shape}, {note}")


def decoded_splits(
    name: str, listing: Listing, size: tuple[int, int], *, channels: int = 3, resize: str = "crop"
) -> tuple[ImageSet, ImageSet]:
    """Training and test images of a listing: :func:`gsdd_lib.data.cache.decoded` and the labels."""
    check_size(name, len(listing.entries), channels=channels, resolution=max(size))
    images = decoded(name, listing, size, channels=channels, resize=resize)
    labels = torch.tensor([entry.label for entry in listing.entries])
    count = sum(entry.train for entry in listing.entries)
    return ImageSet(images[:count], labels[:count]), ImageSet(images[count:], labels[count:])


def _class_names(tree: Tree, train: str, root: Path) -> tuple[str, ...]:
    place = root / train
    names = tuple(tree[train])
    if len(names) < 2:
        raise DataError(
            f"{place} holds {len(names)} class folders; classification needs at least two, each"
            " with its images in it"
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
    rng = generator(0, "data", "imagefolder", "test")
    kept, held = stratified_split(whole.labels, TEST_FRACTION, generator=rng)
    return whole.select(kept), whole.select(held)
