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
