"""A data set in memory: a reader's :class:`RawData`, or a user's own tensors, and the
:class:`ImageData` made of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Generator, Tensor

from gsdd_lib.core.errors import DataError
from gsdd_lib.core.files import checksum
from gsdd_lib.core.rng import generator
from gsdd_lib.data.normalization import ChannelNormalization, Normalization, channel_statistics

MAX_BYTES = 32 * 2**30  # a resolution mistyped by a digit should be an error, not a full memory
SPLITS = ("train", "validation", "test")
TEST_FRACTION = 0.2  # where the images come without a test split
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One split: images uint8 [N, C, H, W], labels int64 [N] in [0, number of classes)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, index: Tensor | Sequence[int] | slice) -> Self:
        """The images at ``index`` (integers, a mask, or a slice), in its order."""
        return ImageSet(self.images[index], self.labels[index])

    def to(self, device: str | torch.device) -> Self:
        return ImageSet(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class RawData:
    """What a reader returns; ``provenance`` names no path of a user's folder."""

    name: str
    class_names: tuple[str, ...]
    mean: tuple[float, ...]  # of the training pixels in [0, 1], per channel
    std: tuple[float, ...]
    train: ImageSet
    test: ImageSet
    provenance: str


@dataclass(frozen=True, eq=False)
class ImageData(RawData):
    """A data set ready for use, with images to train on in every class, to validate and to test."""

    validation: ImageSet
    normalization: Normalization | None = None  # what networks see; None: by mean and std

    def __post_init__(self) -> None:
        faults = ["a single class; classification needs at least two"] * (self.num_classes < 2)
        empty = [split for split in SPLITS if not len(getattr(self, split))]
        faults += [f"no {split} images; each split needs some" for split in empty]
        missing = set(range(self.num_classes)) - set(self.train.labels.unique().tolist())
        names = [self.class_names[label] for label in sorted(missing)]
        faults += [f"no training images of class '{name}'; add some" for name in names]
        if faults:
            raise DataError(f"'{self.name}' has {faults[0]}")
        if self.normalization is None:
            default = ChannelNormalization(tuple(self.mean), tuple(self.std))
            object.__setattr__(self, "normalization", default.to(self.device))

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def resolution(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return tuple(self.train.images.shape[2:])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of images, labels, split and normalization, by which checkpoints know them."""
        about = {"normalization": self.normalization.fingerprint, "classes": self.class_names}
        parts = [(split, part) for split in SPLITS for part in ("images", "labels")]
        tensors = {f"{split} {part}": getattr(getattr(self, split), part) for split, part in parts}
        return checksum(tensors, about)

    @property
    def device(self) -> torch.device:
        """Where the images are; all that is computed with them happens there."""
        return self.train.images.device

    def normalize(self, images: Tensor) -> Tensor:
        """What networks see of images [..., C, H, W], uint8, or floating point in [0, 1]."""
        return self.normalization.apply(images)

    def unit(self, normalized: Tensor) -> Tensor:
        """Undo :meth:`normalize`: [..., C, H, W] back to [0, 1], not clamped."""
        return self.normalization.invert(normalized)

    def to(self, device: str | torch.device) -> Self:
        """The same data set on another device."""
        parts = (*SPLITS, "normalization")
        return replace(self, **{name: getattr(self, name).to(device) for name in parts})


def prepare(
    raw: RawData, *, resolution: int = 0, max_per_class: int = 0, holdout: float = 0.1, seed: int
) -> ImageData:
    """Hold out a validation split, thin the training images, resize all (see ``DataConfig``)."""
    if not 0 < holdout < 1:
        raise DataError(f"holdout must be greater than 0 and less than 1, got {holdout:g}")
    counts = torch.bincount(raw.train.labels, minlength=len(raw.class_names))
    if counts.min() < 2:
        rarest = int(counts.argmin())
        few = f"class {rarest} ('{raw.class_names[rarest]}') has {counts[rarest]} training images"
        hint = "number the classes without gaps or add images"
        raise DataError(f"{few} but needs at least 2, one to hold out; {hint}")
    rng = generator(seed, "data", "holdout")
    kept, held = stratified_split(raw.train.labels, holdout, rng)
    if max_per_class:
        rng = generator(seed, "data", "max_per_class")
        kept = kept[keep_per_class(raw.train.labels[kept], max_per_class, generator=rng)]
    parts = {"train": raw.train.select(kept), "validation": raw.train.select(held)}
    parts["test"], count = raw.test, len(kept) + len(held) + len(raw.test)
    check_size(raw.name, count, channels=raw.test.images.shape[1], resolution=resolution)
    sized = {n: ImageSet(resize(part.images, resolution), part.labels) for n, part in parts.items()}
    provenance = f"{raw.provenance}, {100 * holdout:g}% of each class held out for validation"
    return ImageData(**{**vars(raw), **sized, "provenance": provenance})


def check_size(name: str, count: int, *, channels: int, resolution: int) -> None:
    """Raise :class:`DataError` when ``count`` uint8 images would not fit a sensible memory."""
    needed = count * channels * resolution**2
    if needed > MAX_BYTES:
        takes = f"'{name}' at resolution {resolution} needs {needed / 2**30:,.0f} GiB for {count:,}"
        raise DataError(f"{takes} images; choose a smaller resolution or a smaller max_per_class")


def resize(images: Tensor, resolution: int) -> Tensor:
    """uint8 [N, C, H, W] to [N, C, resolution, resolution] (0: as it is), anti-aliased."""
    size = (resolution, resolution)
    if not resolution or tuple(images.shape[2:]) == size:
        return images
    return torch.nn.functional.interpolate(images, size, mode="bilinear", antialias=True)


def split_test(whole: ImageSet, name: str) -> tuple[ImageSet, ImageSet]:
    """Training and test images of a data set without a test split; the same for any seed."""
    rng = generator(0, "data", name, "test")
    kept, held = stratified_split(whole.labels, TEST_FRACTION, rng)
    return whole.select(kept), whole.select(held)


def stratified_split(labels: Tensor, fraction: float, generator: Generator) -> tuple[Tensor, ...]:
    """Ascending indices (kept, held) with the same share of each class held, never 0 or all."""
    kept, held = [], []
    for members in _shuffled_classes(labels, generator):
        share = min(max(round(len(members) * fraction), 1), len(members) - 1)
        held.append(members[:share])
        kept.append(members[share:])
    return torch.cat(kept).sort().values, torch.cat(held).sort().values


def keep_per_class(labels: Tensor, count: int, *, generator: Generator) -> Tensor:
    """Ascending indices of ``count`` random images of each class; a larger ``count`` adds some."""
    chosen = [members[:count] for members in _shuffled_classes(labels, generator)]
    return torch.cat(chosen).sort().values


def class_members(labels: Tensor) -> list[Tensor]:
    """For each class that occurs, in order, the ascending indices of its images, on the CPU."""
    labels = labels.cpu()
    order = torch.from_numpy(labels.numpy().argsort(kind="stable"))  # numpy's is a radix sort
    counts = torch.bincount(labels)
    return list(order.split(counts[counts > 0].tolist()))


def sample_per_class(members: list[Tensor], count: int, *, generator: Generator) -> Tensor:
    """``count`` random indices out of each of ``members``, all where there are fewer, by class."""
    return torch.cat([m[torch.randperm(len(m), generator=generator)[:count]] for m in members])


def _shuffled_classes(labels: Tensor, generator: Generator) -> list[Tensor]:
    labels = labels.cpu()
    shuffled = torch.randperm(len(labels), generator=generator)
    return [shuffled[members] for members in class_members(labels[shuffled])]


def from_tensors(
    images: Tensor,
    labels: Tensor,
    *,
    test_images: Tensor | None = None,
    test_labels: Tensor | None = None,
    class_names: Sequence[str] | None = None,
    name: str = "tensors",
    holdout: float = 0.1,
    seed: int = 0,
) -> ImageData:
    """A data set of your own.

    Args:
        images: [N, C, H, W], C from 1 to 4, uint8, or floating point in [0, 1], rounded to bytes.
        labels: integers [N] in [0, classes), each three times, or twice where test images are.
        test_images, test_labels: likewise; left out, a fifth is split off, the same for any seed.
        class_names: left out, the numbers.
        holdout: fraction of each class, test images aside, held out for validation, by ``seed``.

    Raises:
        DataError: one sentence on what to change.
    """
    if (test_images is None) != (test_labels is None):
        raise DataError("test_images and test_labels go together: give both, or neither")
    sets = {"": _checked(images, labels, "")}
    highest, shape = int(sets[""].labels.max()), list(images.shape[1:])
    if class_names is None and highest >= len(labels):
        fault = f"labels reach {highest} but there are only {len(labels)} images"
        raise DataError(f"{fault}; number the classes 0, 1, 2, ... without gaps")
    names = tuple(map(str, range(highest + 1)) if class_names is None else class_names)
    if test_images is not None:
        sets["test_"] = _checked(test_images, test_labels, "test_")
    for prefix, each in sets.items():
        low, high = (int(bound) for bound in each.labels.aminmax())
        if low < 0 or high >= len(names):
            known = f"0 to {len(names) - 1} for {len(names)} classes"
            raise DataError(f"{prefix}labels must lie in {known}, got {low} to {high}")
        if list(each.images.shape[1:]) != shape:
            fault = f"test_images are of shape {list(each.images.shape[1:])} but images of {shape}"
            raise DataError(f"{fault}; bring them to one shape")
    splits = sets.values() if len(sets) > 1 else split_test(sets[""], "tensors")
    statistics = channel_statistics(next(iter(splits)).images)
    raw = RawData(name, names, *statistics, *splits, f"{name}, tensors in memory")
    return prepare(raw, holdout=holdout, seed=seed)


def _checked(images: Tensor, labels: Tensor, prefix: str) -> ImageSet:
    ours, theirs = f"{prefix}images", f"{prefix}labels"
    for name, value in ((ours, images), (theirs, labels)):
        if not isinstance(value, Tensor):
            raise DataError(f"{name} must be a torch tensor, got {type(value).__name__}")
    shape, fault = list(images.shape), ""
    if len(shape) != 4 or images.numel() == 0 or not 1 <= shape[1] <= 4:
        hint = "; add a channel with images[:, None]" if len(shape) == 3 else ""
        if len(shape) == 4 and 1 <= shape[3] <= 4:
            hint = "; channels are last here, use images.permute(0, 3, 1, 2)"
        fault = f"{ours} must be [N, C, H, W] with C from 1 to 4, got {shape}{hint}"
    elif labels.dtype not in INTEGERS or labels.dim() != 1:
        fault = f"{theirs} must be integers of shape [N], got {labels.dtype} of shape "
        fault += str(list(labels.shape))
    elif len(images) != len(labels):
        fault = f"{ours} and {theirs} must be of one length, got {len(images)} and {len(labels)}"
    elif images.dtype != torch.uint8 and not images.is_floating_point():
        fault = f"{ours} must be uint8 or floating point in [0, 1], got {images.dtype}"
    elif images.dtype != torch.uint8:
        low, high = float(images.min()), float(images.max())
        if not 0 <= low <= high <= 1:  # also false for a NaN
            hint = "divide by the largest level, or remove what is not finite"
            fault = f"{ours} must lie in [0, 1], got {low:g} to {high:g}; {hint}"
        images = (images * 255).round()
    if fault:
        raise DataError(fault)
    return ImageSet(images.detach().to("cpu", torch.uint8), labels.to("cpu", torch.int64))
