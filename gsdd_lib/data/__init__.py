"""Data sets: one table of names and readers, and what every reader's images become.

One of your own: a reader ``DataConfig -> RawData``, a line in :data:`READERS` and in
:data:`gsdd_lib.config.DATASETS`.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from gsdd_lib.config import DataConfig
from gsdd_lib.core.errors import DataError
from gsdd_lib.data.cifar import read_cifar
from gsdd_lib.data.dataset import ImageData, ImageSet, RawData, from_tensors, prepare, resize
from gsdd_lib.data.fashion_mnist import read_fashion_mnist
from gsdd_lib.data.folders import SUBSETS, read_imagefolder, read_imagenet_subset
from gsdd_lib.data.normalization import cached_whitening
from gsdd_lib.data.synthetic import read_digits, read_shapes

__all__ = ["READERS", "DataError", "ImageData", "ImageSet", "from_tensors", "load_data"]

READERS: dict[str, Callable[[DataConfig], RawData]] = {
    "digits": read_digits,
    "shapes": read_shapes,
    "fashion_mnist": read_fashion_mnist,
    "cifar10": partial(read_cifar, "cifar10"),
    "cifar100": partial(read_cifar, "cifar100"),
    **{name: partial(read_imagenet_subset, name) for name in SUBSETS},
    "imagefolder": read_imagefolder,
}


def load_data(config: DataConfig, seed: int = 0) -> ImageData:
    """Load a data set, with a validation split, by ``seed``, held out; never from the network.

    Raises:
        DataError: the data set is missing or damaged; one sentence on what to do.
    """
    raw = read_data(config)
    chosen = config.model_dump(include={"resolution", "max_per_class", "holdout"})
    data = prepare(raw, seed=seed, **chosen)
    if config.zca:  # of all training images as published, as mean and std are
        images = resize(raw.train.images, config.resolution)
        note = f"{data.provenance}, ZCA"
        return replace(data, normalization=cached_whitening(images), provenance=note)
    return data


def read_data(config: DataConfig) -> RawData:
    """The training and test images as published. Raises :class:`DataError` like load_data."""
    try:
        return READERS[config.dataset](config)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{error.filename or config.dataset} cannot be read ({reason})") from None
