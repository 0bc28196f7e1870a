"""``from_tensors``: a user's own images, already in memory, checked before use."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gsdd_lib.core.rng import generator
from gsdd_lib.data.dataset import DataError, ImageData, ImageSet, RawData, prepare, stratified_split

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

    images: [N, C, H, W], C from 1 to 4, uint8, or floating point in [0, 1] (kept as 256 levels)
    labels: integers [N] in [0, number of classes), every class at least twice
    test_images, test_labels: the same; left out, a stratified fifth is split off, the same one
        whatever ``seed`` is
    holdout: fraction of the rest held out for validation, drawn by ``seed``

    Raises :class:`DataError`, one sentence on what to change.
    """
    train = ImageSet(_checked_images(images, "images"), _checked_labels(labels, "labels"))
    _check_lengths(train, "images", "labels")
    names = _checked_names(class_names, train.labels)
    if (test_images is None) != (test_labels is None):
        raise DataError("test_images and test_labels go together: give both, or neither")
    if test_images is None:
        _check_occupied(train.labels, names, at_least=3)
        draw = generator(0, "data", "tensors", "test")
        kept, held = stratified_split(train.labels, 0.2, generator=draw)
        train, test = train.select(kept), train.select(held)
    else:
        test = _checked_test(test_images, test_labels, train, len(names))
    _check_occupied(train.labels, names, at_least=2)
    mean, std = channel_statistics(train.images)
    raw = RawData(names, mean, std, train, test, f"{name}, tensors in memory")
    return prepare(name, raw, holdout=holdout, seed=seed)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels in [0, 1]; exact, by counting.

    images: uint8 [N, C, H, W]. Raises :class:`DataError` when a channel is constant.
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        share = counts / counts.sum()
        mean.append(float(share @ levels))
        std.append(float((share @ (levels - mean[-1]) ** 2).sqrt()))
        if std[-1] == 0:
            raise DataError(f"channel {channel} has one value in all images; leave it out")
    return tuple(mean), tuple(std)


def _checked_images(images: Tensor, what: str) -> Tensor:
    if not isinstance(images, Tensor):
        raise DataError(f"{what} must be a torch tensor, got {type(images).__name__}")
    shape = list(images.shape)
    if images.dim() != 4 or images.numel() == 0 or not 1 <= shape[1] <= 4:
        hint = ""
        if images.dim() == 3:
            hint = "; add a channel with images[:, None]"
        elif images.dim() == 4 and 1 <= shape[3] <= 4:
            hint = "; channels are last here, use images.permute(0, 3, 1, 2)"
        raise DataError(f"{what} must be [N, C, H, W] with C from 1 to 4, got {shape}{hint}")
    if images.dtype == torch.uint8:
        return images.cpu()
    if not images.is_floating_point():
        raise DataError(f"{what} must be uint8 or floating point in [0, 1], got {images.dtype}")
    low, high = float(images.min()), float(images.max())
    if not 0 <= low <= high <= 1:  # also false for a NaN
        raise DataError(
            f"{what} of floating point must lie in [0, 1], got {low:g} to {high:g};"
            " divide by the largest level, or pass uint8"
        )
    return (images.detach().cpu() * 255).round().to(torch.uint8)


def _checked_labels(labels: Tensor, what: str) -> Tensor:
    if not isinstance(labels, Tensor) or labels.dtype not in INTEGERS or labels.dim() != 1:
        found = type(labels).__name__
        if isinstance(labels, Tensor):
            found = f"{labels.dtype} of shape {list(labels.shape)}"
        raise DataError(f"{what} must be a tensor of integers of shape [N], got {found}")
    return labels.to("cpu", torch.int64)


def _check_lengths(split: ImageSet, images: str, labels: str) -> None:
    if len(split.images) != len(split.labels):
        raise DataError(
            f"{images} and {labels} must be of one length,"
            f" got {len(split.images)} and {len(split.labels)}"
        )


def _checked_names(class_names: Sequence[str] | None, labels: Tensor) -> tuple[str, ...]:
    if class_names is None:
        class_names = [str(label) for label in range(int(labels.max()) + 1)]
    _check_range(labels, len(class_names), "labels")
    return tuple(class_names)


def _check_range(labels: Tensor, num_classes: int, what: str) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise DataError(
            f"{what} must lie in 0 to {num_classes - 1} for {num_classes} classes,"
            f" got {low} to {high}"
        )


def _check_occupied(labels: Tensor, names: tuple[str, ...], *, at_least: int) -> None:
    counts = torch.bincount(labels, minlength=len(names)).tolist()
    poorest = min(range(len(names)), key=counts.__getitem__)
    if counts[poorest] < at_least:
        raise DataError(
            f"class {poorest} ('{names[poorest]}') has {counts[poorest]} training images, but each"
            f" needs at least {at_least}; number the classes without gaps or add images"
        )


def _checked_test(images: Tensor, labels: Tensor, train: ImageSet, num_classes: int) -> ImageSet:
    images, labels = _checked_images(images, "test_images"), _checked_labels(labels, "test_labels")
    test = ImageSet(images, labels)
    _check_lengths(test, "test_images", "test_labels")
    _check_range(labels, num_classes, "test_labels")
    if test.images.shape[1:] != train.images.shape[1:]:
        raise DataError(
            f"test_images are of shape {list(test.images.shape[1:])} but images of"
            f" {list(train.images.shape[1:])}; bring them to one shape"
        )
    return test
