"""The distilled-set file: one safetensors file that says everything needed to use it.

    from gsdd_lib.storage import load
    images = load("set.safetensors").render(64)          # [N, C, 64, 64] in [0, 1]
    dataset = load("set.safetensors").dataset()          # (normalized image, label) pairs

Tensors: ``packed`` bf16 [N, M, 5 + C + opacity] and ``labels``. Everything else is one JSON text in
the file's metadata; nothing in the file can be executed.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor
from torch.utils.data import TensorDataset

from gsdd_lib.config import RenderConfig
from gsdd_lib.data import ImageData
from gsdd_lib.files import write_atomically
from gsdd_lib.parameterizations.gaussian import GaussianImages

FORMAT = "gsdd-distilled-set"
VERSION = 1
KEYS = ("dataset", "class_names", "resolution", "mean", "std", "render", "opacity", "space")


class StorageError(ValueError):
    """A file is not a distilled set that this version can read; the message says why."""


@dataclass(frozen=True)
class DistilledSet:
    """A distilled set as read from its file."""

    gaussians: GaussianImages
    dataset_name: str
    class_names: tuple[str, ...]
    provenance: dict[str, Any]
    file_bytes: int

    @property
    def labels(self) -> Tensor:
        """int64 [N]."""
        return self.gaussians.labels

    @torch.no_grad()
    def render(self, resolution: int | tuple[int, int] | None = None) -> Tensor:
        """Pixel values [N, C, height, width], clamped to [0, 1], at any resolution."""
        return self.gaussians.render_unit(resolution=_pair(resolution)).clamp(0, 1)

    @torch.no_grad()
    def dataset(self, resolution: int | tuple[int, int] | None = None) -> TensorDataset:
        """Pairs of a normalized image [C, height, width] and its label, to train on."""
        return TensorDataset(self.gaussians.render(resolution=_pair(resolution)), self.labels)

    def normalize(self, images: Tensor) -> Tensor:
        """What a network trained on :meth:`dataset` expects: (x - mean) / std, x in [0, 1]."""
        return (images - self.gaussians.mean) / self.gaussians.std


def _pair(resolution: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (resolution, resolution) if isinstance(resolution, int) else resolution


def save(
    path: Path | str, gaussians: GaussianImages, data: ImageData, provenance: dict[str, Any]
) -> int:
    """Write ``gaussians`` atomically; returns the file's size in bytes.

    Args:
        data: names, classes and normalization are taken from it, no image is.
        provenance: anything JSON can hold: settings, seed, commit, accuracy.
    """
    about = {
        "dataset": data.name,
        "class_names": list(data.class_names),
        "resolution": list(gaussians.resolution),
        "mean": list(data.mean),
        "std": list(data.std),
        "render": gaussians.render_config.model_dump(),
        "opacity": gaussians.opacity,
        "space": gaussians.space,
        "provenance": provenance,
    }
    small = data.num_classes <= 256
    tensors = {
        "packed": gaussians.packed.detach().to(torch.bfloat16).contiguous().cpu(),
        "labels": gaussians.labels.to(torch.uint8 if small else torch.int32).cpu(),
    }
    metadata = {"format": FORMAT, "version": str(VERSION), "about": json.dumps(about)}
    content = serialize(tensors, metadata=metadata)
    write_atomically(Path(path), content)
    return len(content)


def load(path: Path | str) -> DistilledSet:
    """Read a distilled set. Raises :class:`StorageError` with one sentence for any other file."""
    path = Path(path)
    if not path.is_file():
        raise StorageError(f"There is no distilled set at '{path}'; check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise StorageError(
            f"'{path.name}' is truncated or is not a safetensors file ({error}); copy it again."
        ) from None
    about = _about(path.name, metadata)
    _check_tensors(path.name, tensors, about)
    gaussians = GaussianImages(
        tensors["packed"].float(),
        tensors["labels"].long(),
        resolution=tuple(about["resolution"]),
        mean=tuple(about["mean"]),
        std=tuple(about["std"]),
        render_config=RenderConfig(**about["render"]),
        opacity=about["opacity"],
        space=about["space"],
    )
    return DistilledSet(
        gaussians.requires_grad_(False),
        about["dataset"],
        tuple(about["class_names"]),
        about.get("provenance", {}),
        path.stat().st_size,
    )


def _about(name: str, metadata: dict[str, str]) -> dict[str, Any]:
    if metadata.get("format") != FORMAT:
        raise StorageError(f"'{name}' is a safetensors file, but not a distilled set of Gaussians.")
    if metadata.get("version") != str(VERSION):
        raise StorageError(
            f"'{name}' has format version {metadata.get('version')}, and this library reads "
            f"version {VERSION}; install the release that wrote it."
        )
    try:
        about = json.loads(metadata["about"])
        missing = [key for key in KEYS if key not in about]
    except (KeyError, TypeError, ValueError):
        raise StorageError(f"The description inside '{name}' is damaged; copy it again.") from None
    if missing:
        raise StorageError(f"The description inside '{name}' lacks {', '.join(missing)}.")
    return about


def _check_tensors(name: str, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    packed, labels = tensors.get("packed"), tensors.get("labels")
    if packed is None or labels is None or packed.dim() != 3 or packed.dtype != torch.bfloat16:
        raise StorageError(f"'{name}' lacks its Gaussians (bf16 [N, M, numbers]) or its labels.")
    classes, row = len(about["class_names"]), 5 + len(about["mean"]) + about["opacity"]
    if packed.shape[2] != row or len(labels) != len(packed):
        raise StorageError(
            f"'{name}' contradicts itself: {list(packed.shape)} Gaussians with "
            f"{len(labels)} labels where its description wants {row} numbers each and a label "
            "per image."
        )
    if len(labels) and int(labels.max()) >= classes:
        raise StorageError(f"'{name}' has a label {int(labels.max())} but only {classes} classes.")
