"""Distillation of what a file of few bits holds: grids fitted once, then part of a checkpoint."""

from typing import Any

from gsdd_lib.config import CodecConfig
from gsdd_lib.distillation.soft_labels import SoftLabels
from gsdd_lib.parameterizations.base import Parameterization
from gsdd_lib.parameterizations.codec import Codec
from gsdd_lib.parameterizations.gaussian import GaussianImages
from gsdd_lib.parameterizations.label_codec import LabelCodec


def fit_grids(images: GaussianImages, soft: SoftLabels | None, config: CodecConfig) -> None:
    """Fit grids to Gaussians and learned labels as they are; from now on they are rounded."""
    images.codec = Codec.fit(images.packed, config, channels=images.channels)
    images.constrain_()
    if soft is not None:
        soft.codec = LabelCodec.fit(soft.logits)


def grids_of(images: Parameterization, soft: SoftLabels | None) -> dict[str, Any]:
    """The grids that are in use: tensors and plain numbers, None where there are none."""
    codec, labels = getattr(images, "codec", None), soft and soft.codec
    names = ("bits", "offset", "step", "channels")
    return {
        "images": codec and {name: getattr(codec, name) for name in names},
        "labels": labels and {"step": labels.step, "bits": labels.bits},
    }


def set_grids(
    images: Parameterization, soft: SoftLabels | None, grids: dict[str, dict[str, Any] | None]
) -> None:
    """Bring back what :func:`grids_of` gave, from whatever device it came."""
    if grids["images"]:
        images.codec = Codec(**grids["images"]).to(images.labels.device)
    if grids["labels"]:
        soft.codec = LabelCodec(**grids["labels"])
