"""The distilled-set file: one safetensors file that says everything needed to use it.

    from gsdd_lib.storage import load
    images = load("set.safetensors").render(64)          # [N, C, 64, 64] in [0, 1]
    dataset = load("set.safetensors").dataset()          # (normalized image, label) pairs
    real = load("set.safetensors").normalize(images)     # your own images, for networks so trained

Tensors: ``packed`` bf16 [N, M, 5 + C + opacity], ``labels``, and with learned labels
``label_logits`` bf16 [N, K]. Everything else is one JSON text in the file's metadata; nothing in
the file can be executed. The whitening of a set distilled with ``zca=True`` is many times its size
and the same for all sets of a data set: it is a file of its own beside them, which they name.

Version 2 added label logits, the settings to train with, and the whitening; version 1 is read too.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from gsdd_lib.config import EvalConfig, RenderConfig
from gsdd_lib.data import ImageData
from gsdd_lib.data.zca import write_whitening
from gsdd_lib.distilled_set import DistilledSet, StorageError
from gsdd_lib.files import write_atomically
from gsdd_lib.parameterizations.gaussian import GaussianImages
from gsdd_lib.soft_labels import SoftLabels

FORMAT = "gsdd-distilled-set"
VERSION = 2
READS = ("1", "2")
JUDGING = {"protocol", "networks"}  # of an evaluation, not of training a network
KEYS = ("dataset", "class_names", "resolution", "mean", "std", "render", "opacity", "space")


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
    if data.whitening is not None:
        companion = write_whitening(path.parent, data.whitening)
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
    logits, companion = tensors.get("label_logits"), about.get("whitening")
    return DistilledSet(
        gaussians.requires_grad_(False),
        about["dataset"],
        tuple(about["class_names"]),
        about.get("provenance", {}),
        path.stat().st_size,
        soft_labels=None if logits is None else SoftLabels(logits).requires_grad_(False),
        training=about.get("training", {}),
        syn_lr=about.get("syn_lr"),
        whitening_path=path.parent / Path(companion["file"]).name if companion else None,
        whitening_bytes=companion["bytes"] if companion else 0,
    )


def _about(name: str, metadata: dict[str, str]) -> dict[str, Any]:
    if metadata.get("format") != FORMAT:
        raise StorageError(f"'{name}' is a safetensors file, but not a distilled set of Gaussians.")
    if metadata.get("version") not in READS:
        raise StorageError(
            f"'{name}' has format version {metadata.get('version')}, and this library reads "
            f"versions {' and '.join(READS)}; install the release that wrote it."
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
