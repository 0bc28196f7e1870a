"""The distilled-set file: one safetensors file that says everything needed to use it.

    from gsdd_lib.storage import load
    images = load("set.safetensors").render(64)          # [N, C, 64, 64] in [0, 1]
    dataset = load("set.safetensors").dataset()          # (normalized image, label) pairs
    real = load("set.safetensors").normalize(images)     # your own images, for networks so trained

Tensors: ``packed`` bf16 [N, M, 5 + C + opacity], ``labels``, and with learned labels
``label_logits`` bf16 [N, K]. Everything else is one JSON text in the file's metadata; nothing in
the file can be executed. The whitening of a set distilled with ``zca=True`` is many times its size
and the same for all sets of a data set: it is a file of its own beside them, which they name.

Version 2 added label logits, the settings to train with, and the whitening; since version 3 the
Gaussians of a whitened set add up to pixel values. Versions 1 and 2 are read too.
"""

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor
from torch.utils.data import TensorDataset

from gsdd_lib.config import EvalConfig, RenderConfig
from gsdd_lib.core.errors import GsddError
from gsdd_lib.core.files import write_atomically
from gsdd_lib.data import DataError, ImageData
from gsdd_lib.data.normalization import (
    ChannelNormalization,
    Whitening,
    read_whitening,
    write_whitening,
)
from gsdd_lib.distillation.soft_labels import SoftLabels
from gsdd_lib.parameterizations.gaussian import GaussianImages

FORMAT = "gsdd-distilled-set"
VERSION = 3
READS = ("1", "2", "3")
JUDGING = {"protocol", "networks"}  # of an evaluation, not of training a network
KEYS = ("dataset", "class_names", "resolution", "mean", "std", "render", "opacity", "space")


class StorageError(GsddError, ValueError):
    """A file is not a distilled set that this version can read; the message says why."""


@dataclass(frozen=True, eq=False)
class StoredWhitening:
    """The whitening of a set, in a file beside it that is read when it is first needed.

    shape: (C, H, W) of the set's images
    dataset: the name of the data set that it can be made of again
    """

    path: Path
    shape: tuple[int, int, int]
    dataset: str
    device: str | torch.device = "cpu"

    @cached_property
    def whitening(self) -> Whitening:
        """The whitening itself; raises :class:`StorageError` where the file cannot be used."""
        try:
            return read_whitening(self.path, self.shape).to(self.device)
        except DataError as error:
            raise StorageError(
                f"This set is for whitened images: {error} to the set's folder, or make it again:"
                " write_whitening(folder,"
                f" load_data(DataConfig(dataset='{self.dataset}', zca=True)).normalization)"
                f" writes '{self.path.name}' there."
            ) from None

    def apply(self, images: Tensor) -> Tensor:
        """Whitened images."""
        return self.whitening.apply(images)

    def invert(self, normalized: Tensor) -> Tensor:
        """Pixel values of whitened images."""
        return self.whitening.invert(normalized)

    def to(self, device: str | torch.device) -> Self:
        """The same whitening, to be read to another device."""
        return replace(self, device=device)

    @property
    def fingerprint(self) -> str:
        """The one in the file's name."""
        return self.path.stem.removeprefix("zca-")


@dataclass(frozen=True, eq=False)
class DistilledSet:
    """A distilled set as read from its file.

    soft_labels: learned labels, None where labels are the classes' numbers
    training: settings of the networks that it was judged with (fields of ``EvalConfig``: network,
        width, epochs, learning rate ...), empty where they are not known
    syn_lr: learning rate learned with the set by trajectory matching, else None
    whitening_bytes: size of the whitening's file, which ``file_bytes`` does not hold; 0 without one
    """

    gaussians: GaussianImages
    dataset_name: str
    class_names: tuple[str, ...]
    provenance: dict[str, Any]
    file_bytes: int
    soft_labels: SoftLabels | None = None
    training: dict[str, Any] = field(default_factory=dict)
    syn_lr: float | None = None
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
        """Pixel values [N, C, height, width], clamped to [0, 1], at any resolution."""
        return self.gaussians.pixels(resolution=_size(resolution)).clamp(0, 1)

    @torch.no_grad()
    def dataset(self, resolution: int | tuple[int, int] | None = None) -> TensorDataset:
        """Pairs of a normalized image [C, height, width] and its label, to train on.

        A whitened set has one resolution here, that of its whitening.
        """
        return TensorDataset(self.gaussians.render(resolution=_size(resolution)), self.targets)

    def normalize(self, images: Tensor) -> Tensor:
        """What a network trained on :meth:`dataset` expects of real images.

        images: [..., C, height, width], uint8, or floating point in [0, 1]. Gives (x - mean) / std,
        or the whitening, float32. Raises :class:`StorageError` where the whitening is not there.
        """
        return self.gaussians.normalization.apply(images)


def _size(resolution: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (resolution, resolution) if isinstance(resolution, int) else resolution


def save(
    path: Path | str,
    gaussians: GaussianImages,
    data: ImageData,
    provenance: dict[str, Any],
    *,
    soft_labels: SoftLabels | None = None,
    eval_config: EvalConfig | None = None,
    syn_lr: float | None = None,
) -> int:
    """Write ``gaussians`` atomically; returns the file's size in bytes.

    The whitening of whitened data is written beside it first, unless it is there already; its bytes
    are not in the number returned.

    Args:
        data: names, classes and normalization are taken from it, no image is.
        provenance: anything JSON can hold: settings, seed, commit, accuracy.
        soft_labels: learned labels, one per image.
        eval_config: how networks are to be trained on the set.
        syn_lr: the learning rate that trajectory matching learned with it.
    """
    path = Path(path)
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
    if eval_config is not None:
        about["training"] = eval_config.model_dump(exclude=JUDGING)
    if syn_lr is not None:
        about["syn_lr"] = syn_lr
    if isinstance(data.normalization, Whitening):
        companion = write_whitening(path.parent, data.normalization)
        about["whitening"] = {"file": companion.name, "bytes": companion.stat().st_size}
    content = serialize(
        _tensors(gaussians, data.num_classes, soft_labels),
        {"format": FORMAT, "version": str(VERSION), "about": json.dumps(about)},
    )
    write_atomically(path, content)
    return len(content)


def _tensors(
    gaussians: GaussianImages, num_classes: int, soft_labels: SoftLabels | None
) -> dict[str, Tensor]:
    small = num_classes <= 256
    tensors = {
        "packed": gaussians.packed.detach().to(torch.bfloat16).contiguous().cpu(),
        "labels": gaussians.labels.to(torch.uint8 if small else torch.int32).cpu(),
    }
    if soft_labels is not None:
        if list(soft_labels.logits.shape) != [len(gaussians), num_classes]:
            raise StorageError(
                f"learned labels {list(soft_labels.logits.shape)} do not fit {len(gaussians)} "
                f"images of {num_classes} classes"
            )
        tensors["label_logits"] = soft_labels.logits.detach().to(torch.bfloat16).cpu()
    return tensors


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
    companion = about.get("whitening")
    if companion is None:
        normalization = ChannelNormalization(tuple(about["mean"]), tuple(about["std"]))
    else:
        place = path.parent / Path(companion["file"]).name
        shape = (len(about["mean"]), *about["resolution"])
        normalization = StoredWhitening(place, shape, about["dataset"])
        if metadata["version"] != "3":
            about["space"] = "normalized"  # whitened values, whatever these versions say
    gaussians = GaussianImages(
        tensors["packed"].float(),
        tensors["labels"].long(),
        resolution=tuple(about["resolution"]),
        normalization=normalization,
        render_config=RenderConfig(**about["render"]),
        opacity=about["opacity"],
        space=about["space"],
    )
    logits = tensors.get("label_logits")
    return DistilledSet(
        gaussians.requires_grad_(False),
        about["dataset"],
        tuple(about["class_names"]),
        about.get("provenance", {}),
        path.stat().st_size,
        soft_labels=None if logits is None else SoftLabels(logits).requires_grad_(False),
        training=about.get("training", {}),
        syn_lr=about.get("syn_lr"),
        whitening_bytes=companion["bytes"] if companion else 0,
    )


def _about(name: str, metadata: dict[str, str]) -> dict[str, Any]:
    if metadata.get("format") != FORMAT:
        raise StorageError(f"'{name}' is a safetensors file, but not a distilled set of Gaussians.")
    if metadata.get("version") not in READS:
        raise StorageError(
            f"'{name}' has format version {metadata.get('version')}, and this library reads "
            f"versions {', '.join(READS)}; install the release that wrote it."
        )
    try:
        about = json.loads(metadata["about"])
        missing = [key for key in KEYS if key not in about]
    except (KeyError, TypeError, ValueError):
        raise StorageError(f"The description inside '{name}' is damaged; copy it again.") from None
    if missing:
        raise StorageError(f"The description inside '{name}' lacks {', '.join(missing)}.")
    companion = about.get("whitening")
    if companion is not None and not {"file", "bytes"} <= set(companion):
        raise StorageError(f"The description inside '{name}' does not name its whitening's file.")
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
    logits = tensors.get("label_logits")
    if logits is None:
        return
    if logits.dtype != torch.bfloat16 or list(logits.shape) != [len(packed), classes]:
        raise StorageError(
            f"'{name}' contradicts itself: learned labels {logits.dtype} {list(logits.shape)} for "
            f"{len(packed)} images of {classes} classes."
        )
    if not torch.isfinite(logits).all():
        raise StorageError(f"'{name}' has learned labels that are no numbers; copy it again.")
