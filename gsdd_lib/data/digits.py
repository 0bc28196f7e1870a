"""``digits``: 1,797 handwritten digits of 8x8 pixels that travel inside scikit-learn's wheel."""

import gzip
import importlib.metadata
import io

import numpy as np
import torch

from gsdd_lib.config import DataConfig
from gsdd_lib.core.rng import generator
from gsdd_lib.data.dataset import DataError, ImageSet, RawData
from gsdd_lib.data.sampling import stratified_split

TEST_FRACTION = 0.2
MEAN, STD = (0.3059,), (0.3762,)  # of the training split below; a test computes them


def read_digits(config: DataConfig) -> RawData:
    """The digits, gray levels 0 to 16 stretched to 0 to 255, with a test split of our own.

    The publisher has no split, so a stratified fifth is drawn once and for all: it depends on no
    seed. ``config.folder`` has no meaning here.
    """
    images, labels = _read_table()
    whole = ImageSet(images, labels)
    draw = generator(0, "data", "digits", "test")
    train, test = stratified_split(labels, TEST_FRACTION, generator=draw)
    return RawData(
        class_names=tuple("0123456789"),
        mean=MEAN,
        std=STD,
        train=whole.select(train),
        test=whole.select(test),
        provenance="digits (UCI, handwritten, 8x8), embedded in scikit-learn",
    )


def _read_table() -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 [1797, 1, 8, 8] and int64 [1797].

    Read from the wheel's file, not by importing scikit-learn, which takes two seconds.
    """
    try:
        wheel = importlib.metadata.distribution("scikit-learn")
        path = wheel.locate_file("sklearn/datasets/data/digits.csv.gz")
        content = gzip.decompress(path.read_bytes())
    except (importlib.metadata.PackageNotFoundError, OSError) as error:
        raise DataError(
            f"the digits inside scikit-learn cannot be read ({error});"
            " install scikit-learn 1.3 or newer"
        ) from None
    table = np.loadtxt(io.BytesIO(content), delimiter=",", dtype=np.int64)  # [1797, 64 + 1]
    if table.shape != (1797, 65) or table.min() < 0 or table[:, :64].max() != 16:
        raise DataError("the digits inside scikit-learn are not the known ones; install it anew")
    levels = (table[:, :64] * 255 + 8) // 16
    images = torch.from_numpy(levels.astype(np.uint8)).reshape(-1, 1, 8, 8)
    return images, torch.from_numpy(table[:, 64].copy())
