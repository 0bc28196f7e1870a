"""Data sets: one table of names and readers, and what every reader's images become.

``load_data(DataConfig(dataset="fashion_mnist"))`` gives an :class:`ImageData`. A new data set is a
module with a reader ``DataConfig -> RawData`` and a line in :data:`READERS`.
"""

from collections.abc import Callable
from functools import partial

from gsdd_lib.config import DataConfig, nearest
from gsdd_lib.data.cifar import read_cifar10, read_cifar100
from gsdd_lib.data.dataset import DataError, ImageData, ImageSet, RawData, prepare, resize
from gsdd_lib.data.fashion_mnist import read_fashion_mnist
from gsdd_lib.data.folder import read_imagefolder
from gsdd_lib.data.imagenet import SUBSETS, read_imagenet_subset
from gsdd_lib.data.normalization import cached_whitening
from gsdd_lib.data.synthetic import read_digits, read_shapes
from gsdd_lib.data.tensors import from_tensors

__all__ = ["READERS", "DataError", "ImageData", "ImageSet", "RawData", "from_tensors", "load_data"]

READERS: dict[str, Callable[[DataConfig], RawData]] = {
    "digits": read_digits,
    "shapes": read_shapes,
    "fashion_mnist": read_fashion_mnist,
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    **{name: partial(read_imagenet_subset, name) for name in SUBSETS},
    "imagefolder": read_imagefolder,
}


def load_data(config: DataConfig, seed: int = 0) -> ImageData:
    """The data set named in ``config``, with a validation split drawn by ``seed``.

    The test images never depend on ``seed``. Never touches the network. Raises
    :class:`DataError`, one sentence, when the data set is unknown, missing or damaged.

    >>> load_data(DataConfig(dataset="digits")).train.images.shape[1:]
    torch.Size([1, 8, 8])
    """
    raw = reader(config.dataset)(config)
    data = prepare(
        config.dataset,
        raw,
        resolution=config.resolution,
        max_per_class=config.max_per_class,
        holdout=config.holdout,
        seed=seed,
    )
    if not config.zca:
        return data
    # of all training images as published, as mean and std are: no test image, and one for all seeds
    images = resize(raw.train.images, config.resolution) if config.resolution else raw.train.images
    return data.whitened(cached_whitening(images))


def reader(name: str) -> Callable[[DataConfig], RawData]:
    """The reader of the data set ``name``; an unknown name is a :class:`DataError`."""
    if name not in READERS:
        known = ", ".join(READERS)
        raise DataError(f"unknown data set '{name}'{nearest(name, list(READERS))} (known: {known})")
    return READERS[name]
