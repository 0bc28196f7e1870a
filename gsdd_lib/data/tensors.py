"""``from_tensors``: a user's own images, already in memory, checked before use."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gsdd_lib.core.errors import DataError
from gsdd_lib.data.dataset import ImageData, ImageSet, RawData, prepare, split_test
from gsdd_lib.data.normalization import channel_statistics

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


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
        labels: integers [N] in [0, number of classes), every class at least three times, or twice
            where there are test images.
        test_images, test_labels: likewise; left out, a fifth is split off, the same for any seed.
        class_names: one name per class; left out, the numbers.
        name: of the data set.
        holdout: fraction of each class, test images aside, held out for validation.
        seed: of the validation split.

    Raises:
        DataError: one sentence on what to change.
    """
    train = _checked(images, labels, "")
    names = _checked_names(class_names, train.labels)
    _check_range(train.labels, len(names), "labels")
    if (test_images is None) != (test_labels is None):
        raise DataError("test_images and test_labels go together: give both, or neither")
    if test_images is None:
        train, test = split_test(train, "tensors")
    else:
        test = _checked(test_images, test_labels, "test_")
        _check_range(test.labels, len(names), "test_labels")
        shapes = [list(split.images.shape[1:]) for split in (test, train)]
        if shapes[0] != shapes[1]:
            fault = f"test_images are of shape {shapes[0]} but images of {shapes[1]}"
            raise DataError(f"{fault}; bring them to one shape")
    statistics = channel_statistics(train.images)
    raw = RawData(names, *statistics, train, test, f"{name}, tensors in memory")
    return prepare(name, raw, holdout=holdout, seed=seed)


def _checked(images: Tensor, labels: Tensor, prefix: str) -> ImageSet:
    """Images and labels that go together, uint8 and int64 on the CPU."""
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
        found = f"{labels.dtype} of shape {list(labels.shape)}"
        fault = f"{theirs} must be integers of shape [N], got {found}"
    elif len(images) != len(labels):
        lengths = f"{len(images)} and {len(labels)}"
        fault = f"{ours} and {theirs} must be of one length, got {lengths}"
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


def _checked_names(class_names: Sequence[str] | None, labels: Tensor) -> tuple[str, ...]:
    if class_names is None:
        highest = int(labels.max())
        if highest >= len(labels):
            fault = f"labels reach {highest} but there are only {len(labels)} images"
            raise DataError(f"{fault}; number the classes 0, 1, 2, ... without gaps")
        return tuple(map(str, range(highest + 1)))
    listed = isinstance(class_names, Sequence) and not isinstance(class_names, str)
    if not listed or not all(isinstance(name, str) for name in class_names):
        raise DataError("class_names must be a list with the name of each class")
    return tuple(class_names)


def _check_range(labels: Tensor, num_classes: int, what: str) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        known = f"0 to {num_classes - 1} for {num_classes} classes"
        raise DataError(f"{what} must lie in {known}, got {low} to {high}")
