"""``shapes`` and ``digits``, the two data sets that need no files of their own.

Shapes are one of eight figures at random on a shaded ground, the same scene at every resolution.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gsdd_lib.config import DataConfig
from gsdd_lib.core.rng import generator
from gsdd_lib.data.dataset import ImageSet, RawData, check_size, split_test

NATIVE = 32
TRAIN_PER_CLASS, TEST_PER_CLASS = 200, 100
MEAN, STD = (0.48, 0.48, 0.48), (0.30, 0.30, 0.30)  # at any resolution, rounded
DIGITS_MEAN, DIGITS_STD = (0.3059,), (0.3762,)  # of the training split; a test computes them
CHUNK_PIXELS = 2**16  # pixels rasterized at a time: what a cache holds

Array = np.ndarray
Figure = Callable[[Array, Array], Array]


def _box(x: Array, y: Array, half_width: float, half_height: float) -> Array:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


FIGURES: dict[str, Figure] = {  # (x right, y down) to a signed distance; of a radius of about 1
    "disc": lambda x, y: np.hypot(x, y) - 1,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.75) - 0.25,
    "half disc": lambda x, y: np.maximum(np.hypot(x, y) - 1, y),
    "square": lambda x, y: _box(x, y, 0.8, 0.8),
    "triangle": lambda x, y: np.maximum(math.sqrt(0.75) * np.abs(x) - 0.5 * y, y) - 0.5,
    "cross": lambda x, y: np.minimum(_box(x, y, 0.95, 0.3), _box(x, y, 0.3, 0.95)),
    "stripes": lambda x, y: np.maximum(
        _box(x, y, 0.8, 0.8), np.abs(x - 0.64 * np.rint(x / 0.64)) - 0.16
    ),
    "checkers": lambda x, y: np.minimum(
        _box(x - 0.4, y - 0.4, 0.4, 0.4), _box(x + 0.4, y + 0.4, 0.4, 0.4)
    ),
}


def read_shapes(config: DataConfig) -> RawData:
    """Generate both splits at ``config.resolution`` (0: 32), the same for any seed."""
    resolution = config.resolution or NATIVE
    count = len(FIGURES) * (TRAIN_PER_CLASS + TEST_PER_CLASS)
    check_size("shapes", count, channels=3, resolution=resolution)
    counts = {"train": TRAIN_PER_CLASS, "test": TEST_PER_CLASS}
    splits = [make_shapes(n, resolution, seed=0, split=split) for split, n in counts.items()]
    return RawData("shapes", tuple(FIGURES), MEAN, STD, *splits, "shapes, generated")


def make_shapes(per_class: int, resolution: int, *, seed: int, split: str = "train") -> ImageSet:
    """Images of the eight figures, class by class; other ``seed`` or ``split``, other scenes."""
    chunk, images = max(1, CHUNK_PIXELS // resolution**2), []
    for name, figure in FIGURES.items():
        scenes = _sample_scenes(per_class, generator(seed, "data", "shapes", split, name))
        images += [_rasterize(figure, part.numpy(), resolution) for part in scenes.split(chunk)]
    labels = torch.arange(len(FIGURES)).repeat_interleave(per_class)
    return ImageSet(torch.from_numpy(np.concatenate(images)), labels)


def _sample_scenes(count: int, rng: torch.Generator) -> Tensor:
    """Scenes [count, 13] in half sides: place 2, radius, angle, two colors, shading 3."""

    def uniform(low: float, high: float, columns: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(count, columns, generator=rng)

    dark, light = uniform(0.0, 0.4, 3), uniform(0.55, 0.95, 3)
    swap = torch.rand(count, 1, generator=rng) < 0.5  # light on dark, or dark on light
    figure, ground = torch.where(swap, dark, light), torch.where(swap, light, dark)
    # shading: direction, phase, and waves per half side times 2 pi
    shading = torch.cat([uniform(0, 2 * math.pi, 2), uniform(3, 9)], dim=1)
    place, radius, angle = uniform(-0.35, 0.35, 2), uniform(0.35, 0.6), uniform(-0.4, 0.4)
    return torch.cat([place, radius, angle, figure, ground, shading], dim=1)


def _rasterize(figure: Figure, scenes: Array, resolution: int) -> Array:
    """Scenes [n, 13] to uint8 [n, 3, R, R]; numpy, as torch's threads would only slow it down."""
    axis = ((np.arange(resolution) + 0.5) * (2 / resolution) - 1).astype(np.float32)
    y, x = axis.reshape(1, -1, 1), axis.reshape(1, 1, -1)
    columns = scenes.T.reshape(13, -1, 1, 1)
    left, top, radius, angle = columns[:4]
    dx, dy, cos, sin = (x - left) / radius, (y - top) / radius, np.cos(angle), np.sin(angle)
    distance = radius * figure(cos * dx + sin * dy, cos * dy - sin * dx)
    coverage = np.clip(0.5 - distance * (resolution / 2), 0, 1)[:, None]  # [n, 1, R, R]
    colors = scenes.reshape(-1, 13, 1, 1)
    direction, phase, waves = columns[10:13]
    along = np.cos(direction) * x + np.sin(direction) * y
    shade = 0.08 * along + 0.06 * np.sin(waves * along + phase)  # [n, R, R]
    ground = np.clip(colors[:, 7:10] + shade[:, None], 0, 1)
    image = ground + coverage * (colors[:, 4:7] - ground)
    return np.rint(image * 255).astype(np.uint8)


def read_digits(config: DataConfig) -> RawData:
    """1,797 handwritten digits of 8x8, embedded in scikit-learn; a test split of our own."""
    from sklearn.datasets import load_digits  # takes a second to import

    digits = load_digits()
    levels = (digits.images[:, None] * 255 + 8) // 16
    whole = ImageSet(torch.from_numpy(levels.astype(np.uint8)), torch.from_numpy(digits.target))
    about = *split_test(whole, "digits"), "digits (UCI, handwritten, 8x8), embedded in scikit-learn"
    return RawData("digits", tuple("0123456789"), DIGITS_MEAN, DIGITS_STD, *about)
