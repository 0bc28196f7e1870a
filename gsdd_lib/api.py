"""One call that distills your own images, with settings that suit most of them.

    from gsdd_lib import distill_images
    small = distill_images("my_photos/", resolution=32)     # a folder with a folder per class
    small = distill_images(images, labels, ipc=1)           # tensors, or arrays
    small.save("small.safetensors"); small.render(64); small.dataset()

Every step is a public function of the library; notebook 00 takes them one by one.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from gsdd_lib.config import BudgetConfig, DataConfig, DistillConfig, EvalConfig, FitConfig
from gsdd_lib.data import DataError, ImageData, from_tensors, load_data
from gsdd_lib.distillation.loop import distill
from gsdd_lib.distillation.soft_labels import SoftLabels, labels_of_teacher, train_teacher
from gsdd_lib.evaluation.evaluate import evaluate, summarize
from gsdd_lib.parameterizations.budget import GEOMETRY, Budget, plan_budget, points_per_image
from gsdd_lib.parameterizations.fit import initial_gaussians
from gsdd_lib.parameterizations.gaussian import GaussianImages
from gsdd_lib.storage import save

POINTS_AT_32 = 22  # Gaussians per image of 32x32 in the paper (table 7), 170 at 128x128:
POINTS_EXPONENT = 1.5  # growing by this power of the side


@dataclass(frozen=True)
class DistilledImages:
    """What :func:`distill_images` gives: the set, the data it was made of, how it went."""

    gaussians: GaussianImages
    data: ImageData
    budget: Budget
    eval_config: EvalConfig
    seed: int
    history: list[dict[str, float]] = field(default_factory=list)
    soft_labels: SoftLabels | None = None

    @property
    def labels(self) -> Tensor:
        """int64 [N], each image's own class; the names are ``data.class_names``."""
        return self.gaussians.labels

    @property
    @torch.no_grad()
    def targets(self) -> Tensor:
        """What to train on: learned labels as probabilities [N, K], or the classes' numbers."""
        return self.labels if self.soft_labels is None else self.soft_labels.probabilities()

    @torch.no_grad()
    def render(self, resolution: int | None = None) -> Tensor:
        """Pixel values [N, C, height, width] in [0, 1], at any resolution."""
        size = (resolution, resolution) if resolution else None
        return self.gaussians.pixels(resolution=size).clamp(0, 1)

    @torch.no_grad()
    def dataset(self) -> TensorDataset:
        """Pairs of an image as ``data.normalize`` gives it and its label, to train on."""
        return TensorDataset(self.gaussians.render(), self.targets)

    def evaluate(self, split: str = "test") -> dict[str, float]:
        """Mean, std, n and ci95 of the accuracy in percent of fresh networks trained on the set."""
        images, config = self.gaussians.render(), self.eval_config
        rows = evaluate(images, self.targets, self.data, config, seed=self.seed + 1, split=split)
        return summarize(rows)

    def save(self, path: Path | str) -> int:
        """Write the distilled-set file (:mod:`gsdd_lib.storage`); returns its size in bytes."""
        about = {"made_by": "distill_images", "seed": self.seed, "ipc": self.budget.ipc}
        learned = {"soft_labels": self.soft_labels, "eval_config": self.eval_config}
        return save(path, self.gaussians, self.data, about, **learned)


def distill_images(
    images: Any,
    labels: Any = None,
    *,
    ipc: int = 1,
    gpc: int | None = None,
    steps: int = 200,
    seed: int = 0,
    folder: Path | str | None = None,
    resolution: int = 0,
    width: int = 64,
    epochs: int = 300,
    soft_labels: bool = False,
) -> DistilledImages:
    """Distill a labeled set of images into Gaussians, by distribution matching.

    Args:
        images: a folder with a folder per class; a tensor or array [N, H, W], [N, C, H, W] or
            [N, H, W, C], uint8 or floating point in [0, 1]; a pair of images and labels; or an
            :class:`ImageData`.
        labels: of a tensor or array, [N]: integers or names of classes.
        ipc: budget, in fp32 images per class.
        gpc: Gaussian images per class; left out, as many as leave each the paper's detail.
        folder: where checkpoints go; the same call goes on from there after an interruption.
        resolution: pixels per side of images from a folder (0: their own).
        width: filters per convolution of the networks.
        epochs: passes over the distilled set when a network is trained on it.
        soft_labels: whether labels are learned too, from what a small network of the same
            architecture says that is trained here on at most 2,000 of the images; their bytes are
            taken from the budget.

    Raises one of the library's errors, one sentence on what to change.
    """
    data = as_image_data(images, labels, resolution=resolution, seed=seed)
    gpc = gpc or suggested_gpc(data, ipc, soft_labels=soft_labels)
    spending = BudgetConfig.from_params(ipc=ipc, gpc=gpc, soft_labels=soft_labels)
    budget = plan_budget(spending, data)
    network = suggested_network(data.resolution)
    eval_config = EvalConfig.from_params(eval_network=network, eval_width=width, epochs=epochs)
    config = DistillConfig.from_params(
        network=network,
        width=width,
        steps=steps,
        eval_every=max(1, math.ceil(steps / 4)),
        select_networks=1,
    )
    gaussians = initial_gaussians(data, budget, FitConfig(), seed=seed).gaussians
    soft = _initial_labels(gaussians, data, eval_config, seed) if soft_labels else None
    more = {"folder": Path(folder) if folder else None, "soft_labels": soft}
    history = list(distill(gaussians, data, config, eval_config, seed=seed, **more))
    return DistilledImages(gaussians, data, budget, eval_config, seed, history, soft)


def _initial_labels(
    gaussians: GaussianImages, data: ImageData, config: EvalConfig, seed: int
) -> SoftLabels:
    teacher = train_teacher(data, config, seed=seed)
    with torch.no_grad():
        images = gaussians.render()
    return labels_of_teacher(teacher, images, gaussians.labels)


def as_image_data(
    images: Any, labels: Any = None, *, resolution: int = 0, seed: int = 0
) -> ImageData:
    """An :class:`ImageData` of anything that :func:`distill_images` takes."""
    if isinstance(images, ImageData):
        return images
    if isinstance(images, str | Path):
        config = DataConfig(dataset="imagefolder", folder=str(images), resolution=resolution)
        return load_data(config, seed)
    if labels is None and isinstance(images, tuple | list) and len(images) == 2:
        images, labels = images
    if labels is None:
        raise DataError("images need labels: distill_images(images, labels), or a folder per class")
    numbers, names = _numbered(labels)
    return from_tensors(_channels_first(images), numbers, class_names=names, seed=seed)


def suggested_network(resolution: tuple[int, int]) -> str:
    """The ConvNet whose last features are about 4x4: D3 for 28 and 32 pixels, D5 for 128.

    >>> [suggested_network((side, side)) for side in (8, 28, 32, 64, 128, 256)]
    ['ConvNetD1', 'ConvNetD3', 'ConvNetD3', 'ConvNetD4', 'ConvNetD5', 'ConvNetD6']
    """
    depth = round(math.log2(min(resolution))) - 2
    return f"ConvNetD{min(max(depth, 1), 6)}"


def suggested_gpc(data: ImageData, ipc: int, *, soft_labels: bool = False) -> int:
    """Gaussian images per class that leave each about as many Gaussians as the paper's have.

    soft_labels: whether each image pays for a learned label too.
    """
    height, width = data.resolution
    sizes = {"height": height, "width": width, "channels": data.channels}
    affordable = points_per_image(ipc=ipc, gpc=1, **sizes)
    wanted = POINTS_AT_32 * (math.sqrt(height * width) / 32) ** POINTS_EXPONENT
    label = soft_labels * data.num_classes / (GEOMETRY + data.channels + 1)  # in Gaussians
    return max(1, int(affordable / (max(wanted, 4) + label)))


def _channels_first(images: Any) -> Tensor:
    """[N, C, H, W] of a tensor or array that may lack its channel or have it last."""
    images = images if isinstance(images, Tensor) else torch.as_tensor(np.asarray(images))
    if images.dim() == 3:
        return images[:, None]
    if images.dim() == 4 and images.shape[1] > 4 >= images.shape[3]:
        return images.permute(0, 3, 1, 2).contiguous()
    return images


def _numbered(labels: Any) -> tuple[Tensor, list[str]]:
    """int64 [N] in [0, classes), and the names of the classes in their sorted order."""
    values = labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.ndim != 1 or values.dtype.kind not in "iuUS":
        raise DataError(
            f"labels must be integers or names of shape [N], got {values.dtype} of shape"
            f" {list(values.shape)}"
        )
    names, numbers = np.unique(values, return_inverse=True)
    return torch.from_numpy(numbers.reshape(-1)).long(), [str(name) for name in names]
