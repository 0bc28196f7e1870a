"""A distilled set as its user has it: images to train on and to look at, and their space.

:func:`gsdd_lib.storage.load` reads one.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from gsdd_lib.data import DataError
from gsdd_lib.data.zca import Whitening, read_whitening
from gsdd_lib.parameterizations.gaussian import GaussianImages
from gsdd_lib.soft_labels import SoftLabels


class StorageError(ValueError):
    """A file is not a distilled set that this version can read; the message says why."""


@dataclass(frozen=True, eq=False)
class DistilledSet:
    """A distilled set as read from its file.

    soft_labels: learned labels, None where labels are the classes' numbers
    training: settings of the networks that it was judged with (fields of ``EvalConfig``: network,
        width, epochs, learning rate ...), empty where they are not known
    syn_lr: learning rate learned with the set by trajectory matching, else None
    whitening_path, whitening_bytes: the file of the whitening and its size, which ``file_bytes``
        does not hold; None and 0 without one
    """

    gaussians: GaussianImages
    dataset_name: str
    class_names: tuple[str, ...]
    provenance: dict[str, Any]
    file_bytes: int
    soft_labels: SoftLabels | None = None
    training: dict[str, Any] = field(default_factory=dict)
    syn_lr: float | None = None
    whitening_path: Path | None = None
    whitening_bytes: int = 0

    @property
    def labels(self) -> Tensor:
        """int64 [N]: each image's own class, also where labels are learned."""
        return self.gaussians.labels

    @property
    @torch.no_grad()
    def targets(self) -> Tensor:
        """What to train on: learned labels as probabilities [N, K], or the classes' numbers."""
        return self.labels if self.soft_labels is None else self.soft_labels.probabilities()

    @torch.no_grad()
    def render(self, resolution: int | tuple[int, int] | None = None) -> Tensor:
        """Pixel values [N, C, height, width], clamped to [0, 1], at any resolution.

        A whitened set needs its whitening here, and has one resolution.
        """
        size = self._size(resolution)
        if self.whitening_path is None:
            return self.gaussians.render_unit(resolution=size).clamp(0, 1)
        return self.whitening.invert(self.gaussians.render()).clamp(0, 1)

    @torch.no_grad()
    def dataset(self, resolution: int | tuple[int, int] | None = None) -> TensorDataset:
        """Pairs of a normalized image [C, height, width] and its label, to train on."""
        return TensorDataset(self.gaussians.render(resolution=self._size(resolution)), self.targets)

    def normalize(self, images: Tensor) -> Tensor:
        """What a network trained on :meth:`dataset` expects of real images.

        images: [..., C, height, width], uint8, or floating point in [0, 1]. Gives (x - mean) / std,
        or the whitening, float32. Raises :class:`StorageError` where the whitening is not there.
        """
        images = images / 255 if images.dtype == torch.uint8 else images
        if self.whitening_path is None:
            return (images - self.gaussians.mean) / self.gaussians.std
        expected = (self.gaussians.channels, *self.gaussians.resolution)
        if tuple(images.shape[-3:]) != expected:
            raise StorageError(
                f"images of shape {list(images.shape)} do not fit the whitening, which is for "
                f"[..., {', '.join(map(str, expected))}]; resize them"
            )
        return self.whitening.apply(images)

    @cached_property
    def whitening(self) -> Whitening:
        """The whitening of a set distilled with ``zca=True``, read when it is first needed."""
        try:
            found = read_whitening(self.whitening_path)
        except DataError as error:
            raise StorageError(f"This set is in whitened space: {error}{self._remedy()}") from None
        values = self.gaussians.channels * self.gaussians.resolution[0]
        if found.mean.numel() != values * self.gaussians.resolution[1]:
            raise StorageError(
                f"The whitening '{self.whitening_path.name}' is for images of other sizes than "
                "this set's; copy the right one."
            )
        return found

    def _remedy(self) -> str:
        config = f"DataConfig(dataset='{self.dataset_name}', zca=True)"
        return (
            f" to the set's folder, or make it again: write_whitening(folder, load_data({config})"
            f".whitening) writes '{self.whitening_path.name}' there."
        )

    def _size(self, resolution: int | tuple[int, int] | None) -> tuple[int, int] | None:
        size = (resolution, resolution) if isinstance(resolution, int) else resolution
        if size and self.whitening_path is not None and tuple(size) != self.gaussians.resolution:
            raise StorageError(
                f"A whitened set has one resolution, {self.gaussians.resolution[0]}x"
                f"{self.gaussians.resolution[1]}: its whitening is of these pixels; leave the "
                "resolution out, and resize the pictures."
            )
        return size
