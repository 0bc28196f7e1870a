"""What a data set's images look like, without having them: for planning a run before its data."""

from dataclasses import dataclass
from typing import Self

from gsdd_lib.config import DataConfig, nearest
from gsdd_lib.data.image_data import DataError, ImageData
from gsdd_lib.data.imagenet import SUBSETS

# channels, native pixels per side, classes, training images; ImageNet's subsets, about 1,300 per
# class, are decoded at a resolution of choice.
KNOWN: dict[str, tuple[int, int, int, int]] = {
    "digits": (1, 8, 10, 1438),
    "shapes": (3, 32, 8, 1600),
    "fashion_mnist": (1, 28, 10, 60_000),
    "cifar10": (3, 32, 10, 50_000),
    "cifar100": (3, 32, 100, 50_000),
    **{name: (3, 128, 10, 13_000) for name in SUBSETS},
}


@dataclass(frozen=True)
class DataDescription:
    """Shape and number of a data set's images.

    train, validation: images of the split
    zca: whether real images are whitened as they are drawn
    """

    name: str
    channels: int
    height: int
    width: int
    num_classes: int
    train: int
    validation: int
    zca: bool = False

    @property
    def values(self) -> int:
        """Numbers of an image."""
        return self.channels * self.height * self.width

    @classmethod
    def of(cls, data: ImageData) -> Self:
        """That of a data set that is there."""
        counts = (data.num_classes, len(data.train), len(data.validation))
        return cls(data.name, data.channels, *data.resolution, *counts, data.whitening is not None)


def describe(config: DataConfig) -> DataDescription:
    """What :func:`gsdd_lib.data.load_data` would give; reads nothing.

    Raises :class:`DataError` for a data set that no table knows, a user's own for one.

    >>> describe(DataConfig(dataset="cifar10")).train
    45000
    """
    if config.dataset not in KNOWN:
        raise DataError(
            f"the images of data set '{config.dataset}' are not known beforehand"
            f"{nearest(config.dataset, list(KNOWN))} (known: {', '.join(KNOWN)})"
        )
    channels, native, classes, images = KNOWN[config.dataset]
    side, held = config.resolution or native, round(images * config.holdout)
    train = images - held
    if config.max_per_class:  # of what is not held out
        train = min(train, classes * config.max_per_class)
    counts = (classes, train, held)
    return DataDescription(config.dataset, channels, side, side, *counts, config.zca)
