"""Data sets: one table of names and readers, and what every reader's images become.

``load_data(DataConfig(dataset="fashion_mnist"))`` gives an :class:`ImageData`. A new data set is a
module with a reader ``DataConfig -> RawData`` and a line in :data:`READERS`.
"""

from collections.abc import Callable

from gsdd_lib.config import DataConfig, nearest
from gsdd_lib.data.digits import read_digits
from gsdd_lib.data.fashion_mnist import read_fashion_mnist
from gsdd_lib.data.image_data import DataError, ImageData, ImageSet, RawData, prepare
from gsdd_lib.data.shapes import read_shapes
from gsdd_lib.data.tensors import from_tensors

__all__ = ["READERS", "DataError", "ImageData", "ImageSet", "RawData", "from_tensors", "load_data"]

READERS: dict[str, Callable[[DataConfig], RawData]] = {
    "digits": read_digits,
    "shapes": read_shapes,
    "fashion_mnist": read_fashion_mnist,
}


def load_data(config: DataConfig, seed: int = 0) -> ImageData:
    """The data set named in ``config``, with a validation split drawn by ``seed``.

    The test images never depend on ``seed``. Never touches the network. Raises
    :class:`DataError`, one sentence, when the data set is unknown, missing or damaged.

    >>> load_data(DataConfig(dataset="digits")).train.images.shape[1:]
    torch.Size([1, 8, 8])
    """
    return prepare(
        config.dataset,
        reader(config.dataset)(config),
        resolution=config.resolution,
        max_per_class=config.max_per_class,
        holdout=config.holdout,
        seed=seed,
    )


def reader(name: str) -> Callable[[DataConfig], RawData]:
    """The reader of the data set ``name``; an unknown name is a :class:`DataError`."""
    if name not in READERS:
        known = ", ".join(READERS)
        raise DataError(f"unknown data set '{name}'{nearest(name, list(READERS))} (known: {known})")
    return READERS[name]
