"""A distilled set, and the file that says everything needed to use it.

    from gsdd_lib import load
    small = load("set.safetensors")
    small.render(64)            # pixel values [N, C, 64, 64] in [0, 1]
    small.dataset()             # (normalized image, label) pairs to train on
    small.normalize(images)     # your own images, for networks so trained
    small.export("folder")      # PNG files and plain tensors

The file holds the tensors ``packed`` (bf16 [N, M, 5 + C + opacity]), ``labels`` and, with learned
labels, ``label_logits`` (bf16 [N, K]), a description in JSON, and a checksum over all of it;
nothing in it can be executed. Of a set with a codec (:meth:`DistilledSet.coded`), ``packed`` and
``label_logits`` are the codecs' bytes, and ``counts``, images per class, may stand for the labels.
The whitening of a set distilled with ``zca=True`` is many times its size and the same for all sets
of a data set: it is a file of its own beside them, which they name.

Version 3 added the checksum; since then the Gaussians of a whitened set add up to pixel values.
Version 2 added learned labels, the settings to train with, and the whitening. All are read.
"""

import base64
import contextlib
import copy
import html
import io
import json
import math
import os
import re
import reprlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from PIL import Image
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import TensorDataset

from gsdd_lib.config import CodecConfig, Config, ConfigError, EvalConfig, RenderConfig
from gsdd_lib.core.errors import GsddError
from gsdd_lib.core.files import METADATA_KEY, DamagedFileError, read_tensors, write_tensors
from gsdd_lib.data import DataError, ImageData
from gsdd_lib.data.normalization import (
    ChannelNormalization,
    read_whitening,
    write_whitening,
)
from gsdd_lib.distillation.soft_labels import SoftLabels
from gsdd_lib.parameterizations.codec import Codec, decode, encode
from gsdd_lib.parameterizations.entropy import DamagedCodeError
from gsdd_lib.parameterizations.gaussian import GaussianImages
from gsdd_lib.parameterizations.label_codec import LabelCodec, decode_labels, encode_labels
from gsdd_lib.splatting.splat import GEOMETRY

FORMAT, VERSION = "gsdd-distilled-set", 3
EVALUATION_ONLY = {"protocol", "networks"}  # fields of EvalConfig that do not say how to train
SHOWN = 10  # pictures in a notebook
BYTES = torch.uint8

Resolution = int | tuple[int, int] | None


class StorageError(GsddError, ValueError):
    """A file is not a distilled set that this version can read; the message says why."""


@dataclass(frozen=True, eq=False, repr=False)
class DistilledSet:
    """A distilled set in memory, just made or read from its file.

    soft_labels: learned labels, None where labels are the classes' numbers
    training: how networks are to be trained on it (fields of ``EvalConfig``), empty where unknown
    syn_lr: learning rate learned with the set by trajectory matching, else None
    file_bytes: size of the file it was read from, 0 if there is none; a whitening not included
    data, history: the data it was distilled from and the rows of the run, where it was just made
    """

    gaussians: GaussianImages
    dataset_name: str
    class_names: tuple[str, ...]
    provenance: dict[str, Any] = field(default_factory=dict)
    soft_labels: SoftLabels | None = None
    training: dict[str, Any] = field(default_factory=dict)
    syn_lr: float | None = None
    file_bytes: int = 0
    data: ImageData | None = None
    history: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        gaussians: GaussianImages,
        data: ImageData,
        provenance: dict[str, Any] | None = None,
        *,
        eval_config: EvalConfig | None = None,
        **more: Any,
    ) -> Self:
        """A set distilled from ``data``.

        Args:
            provenance: anything JSON can hold: settings, seed, commit, accuracy.
            eval_config: how networks are to be trained on the set.
            more: other fields of the class.

        Raises:
            StorageError: the learned labels do not fit.
        """
        training = eval_config.model_dump(exclude=EVALUATION_ONLY) if eval_config else {}
        made = cls(gaussians, data.name, data.class_names, provenance or {}, data=data, **more)
        logits = None if made.soft_labels is None else list(made.soft_labels.logits.shape)
        if logits not in (None, [len(gaussians), data.num_classes]):
            raise StorageError(
                f"learned labels {logits} do not fit {len(gaussians)} images of"
                f" {data.num_classes} classes"
            )
        return replace(made, training=training)

    def __len__(self) -> int:
        return len(self.gaussians)

    @property
    def labels(self) -> Tensor:
        """int64 [N]: each image's own class, also where labels are learned."""
        return self.gaussians.labels

    @property
    @torch.no_grad()
    def targets(self) -> Tensor:
        """What to train on: learned labels as probabilities [N, K], or the classes' numbers."""
        return self.labels if self.soft_labels is None else self.soft_labels.probabilities()

    @property
    def bits_per_class(self) -> int:
        """Bits of the Gaussians and learned labels of a class, rounded up."""
        labels = 0 if self.soft_labels is None else self.soft_labels.bits
        return -(-(self.gaussians.bits + labels) // len(self.class_names))

    @torch.no_grad()
    def render(self, resolution: Resolution = None) -> Tensor:
        """Pixel values [N, C, height, width], clamped to [0, 1], at any resolution."""
        return self.gaussians.pixels(resolution=_size(resolution)).clamp(0, 1)

    @torch.no_grad()
    def dataset(self, resolution: Resolution = None) -> TensorDataset:
        """Pairs of a normalized image [C, height, width] and its label, to train on.

        A whitened set has one resolution here, that of its whitening.
        """
        return TensorDataset(self.gaussians.render(resolution=_size(resolution)), self.targets)

    def normalize(self, images: Tensor) -> Tensor:
        """What a network trained on :meth:`dataset` expects of real images, float32.

        Args:
            images: [..., C, height, width], uint8, or floating point in [0, 1].

        Raises:
            DataError: the images do not fit, or the file of the whitening cannot be used.
        """
        return self.gaussians.normalization.apply(images).float()

    def evaluate(
        self,
        data: ImageData | None = None,
        *,
        split: Literal["test", "validation"] = "test",
        config: EvalConfig | None = None,
        seed: int = 1,
    ) -> dict[str, float]:
        """Mean, std, n and ci95 of the accuracy in percent of fresh networks trained on the set.

        Args:
            data: real images to test on; left out, those the set was just made from.
            config: how to train; left out, as :attr:`training` says.

        Raises:
            StorageError: there are no data, or it is not known how to train.
        """
        from gsdd_lib.evaluation.evaluate import evaluate, summarize  # scipy takes a second

        data = data or self.data
        if not isinstance(data, ImageData):
            raise StorageError(
                "this set needs images to be tested on: evaluate(load_data(...), split='test')"
            )
        if config is None and not self.training:
            raise StorageError(
                "this set does not say how to train; pass evaluate(..., config=EvalConfig(...))"
            )
        config = config or EvalConfig.pick(self.training)
        images, targets = self.dataset().tensors
        return summarize(evaluate(images, targets, data, config, seed=seed, split=split))

    @torch.no_grad()
    def coded(self, config: CodecConfig, *, label_bits: int = 4) -> Self:
        """The same set in a few bits per number: rounded, rendered, counted and saved so.

        Grids that the Gaussians or the learned labels have already, as after a distillation with
        rounding, are kept.
        """
        keep = {id(self.data): self.data}
        keep[id(self.gaussians.normalization)] = self.gaussians.normalization
        made = copy.deepcopy(self, keep)
        gaussians, soft = made.gaussians, made.soft_labels
        packed, channels = gaussians.packed, gaussians.channels
        gaussians.codec = gaussians.codec or Codec.fit(packed, config, channels=channels)
        if soft is not None:
            soft.codec = soft.codec or LabelCodec.fit(soft.logits, label_bits)
        return made

    def save(self, path: Path | str) -> int:
        """Write the file atomically, after the whitening of a whitened set beside it.

        Returns:
            The file's size in bytes, that of the whitening not included.
        """
        path, normalization = Path(path), self.gaussians.normalization
        about: dict[str, Any] = {
            "dataset": self.dataset_name,
            "class_names": list(self.class_names),
            "resolution": list(self.gaussians.resolution),
            "render": self.gaussians.render_config.model_dump(),
            "opacity": self.gaussians.opacity,
            "space": self.gaussians.space,
            "provenance": self.provenance,
            "training": self.training,
            "syn_lr": self.syn_lr,
        }
        if isinstance(normalization, ChannelNormalization):
            about |= {"mean": list(normalization.mean), "std": list(normalization.std)}
        else:
            companion = write_whitening(path.parent, normalization)
            about["whitening"] = {"file": companion.name, "bytes": companion.stat().st_size}
        return write_tensors(path, self._tensors(), about | {"format": FORMAT, "version": VERSION})

    def export(self, folder: Path | str, resolution: Resolution = None) -> Path:
        """Write the set in formats that need no library, to a new folder.

        ``images.pt`` and ``labels.pt`` are the tensors of :meth:`dataset`, for ``torch.load``;
        ``png/<number>_<class>/<index>.png`` the pictures of :meth:`render`, for ``ImageFolder``.

        Raises:
            StorageError: there is something in the folder.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StorageError(f"'{folder}' exists and is not empty; choose a new folder.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as made:
            made = Path(made) / "set"  # renamed at the end: the folder is whole or not there
            made.mkdir()
            for name, tensor in zip(("images", "labels"), self.dataset(resolution)[:], strict=True):
                torch.save(tensor.clone(), made / f"{name}.pt")
            for index, pixels in enumerate(self.render(resolution)):
                label = int(self.labels[index])
                name = re.sub(r"[^\w .-]", "_", self.class_names[label])
                place = made / "png" / f"{label:03d}_{name}"
                place.mkdir(parents=True, exist_ok=True)
                (place / f"{index:05d}.png").write_bytes(_png(pixels))
            os.replace(made, folder)
        return folder

    def __repr__(self) -> str:
        facts = ", ".join(f"{name} {value}" for name, value in self._facts().items())
        return f"DistilledSet({facts})"

    @torch.no_grad()
    def _repr_html_(self) -> str:
        """A table of facts above a strip of pictures, one of each of the first classes."""
        facts, labels = self._facts(), self.labels.tolist()
        head = "".join(f"<th>{html.escape(name)}</th>" for name in facts)
        row = "".join(f"<td>{html.escape(value)}</td>" for value in facts.values())
        firsts = [labels.index(label) for label in sorted(set(labels))[:SHOWN]]
        pixels = self.gaussians.pixels(torch.tensor(firsts, device=self.labels.device))
        png = base64.b64encode(_png(torch.cat([*pixels.clamp(0, 1)], dim=-1))).decode()
        names = html.escape(", ".join(self.class_names[labels[index]] for index in firsts))
        return (
            f"<table><tr>{head}</tr><tr>{row}</tr></table>"
            f'<img src="data:image/png;base64,{png}" alt="{names}" title="{names}" height="56">'
        )

    def _facts(self) -> dict[str, str]:
        facts = {
            "data set": self.dataset_name,
            "classes": f"{len(self.class_names)}",
            "images": f"{len(self)}",
            "Gaussians each": f"{self.gaussians.points}",
            "bits per class": f"{self.bits_per_class:,}",
        }
        accuracy = self.provenance.get("accuracy")
        with contextlib.suppress(TypeError, ValueError, KeyError):  # a file may say anything
            mean, interval = accuracy["mean"], accuracy.get("ci95", math.nan)
            text = f"{mean:.1f}" + ("" if math.isnan(interval) else f" ± {interval:.1f}")
            facts[f"{accuracy['split']} accuracy (%)"] = text
        return facts

    def _tensors(self) -> dict[str, Tensor]:
        """What the file holds of the set; :func:`_gaussians` undoes it."""
        labels, gaussians, soft = self.labels, self.gaussians, self.soft_labels
        tensors = {"packed": _stored(gaussians.packed, gaussians.codec, encode)}
        if gaussians.codec is not None and (labels.diff() >= 0).all():
            counts = labels.bincount(minlength=len(self.class_names))
            tensors["counts"] = counts.to(torch.int32)
        else:
            small = len(self.class_names) <= 256
            tensors["labels"] = labels.to(torch.uint8 if small else torch.int32)
        if soft is not None:
            tensors["label_logits"] = _stored(soft.logits, soft.codec, encode_labels)
        return tensors


class _Companion(Config):
    """The whitening's file."""

    file: str = Field(pattern=r"^zca-[0-9a-f]+\.safetensors$")
    bytes: int = Field(ge=0)


class _About(Config):
    """The description in a file: ``mean`` and ``std``, or ``whitening``."""

    dataset: str
    class_names: list[str] = Field(min_length=1, max_length=2**16)
    resolution: list[Annotated[int, Field(ge=1, le=2**14)]] = Field(min_length=2, max_length=2)
    mean: list[float] = Field([])
    std: list[float] = Field([])
    whitening: _Companion | None = None
    render: RenderConfig
    opacity: bool
    space: Literal["unit", "normalized"]
    provenance: dict[str, Any] = Field({})
    training: dict[str, Any] = Field({})
    syn_lr: float | None = Field(None, gt=0)


def load(path: Path | str) -> DistilledSet:
    """Read a distilled set.

    Raises:
        StorageError: any other file, or one in which a bit has changed; one sentence.
    """
    path = Path(path)
    if not path.is_file():
        raise StorageError(f"There is no distilled set at '{path}'; check the path.")
    try:
        tensors, described = read_tensors(path, FORMAT)
    except DamagedFileError as error:
        tensors, described = _read_old(path, error)
    version = described.pop("version", None)
    if version not in (1, 2, VERSION):
        raise StorageError(
            f"'{path.name}' has format version {reprlib.repr(version)}, and this library reads"
            f" versions 1 to {VERSION}; install the release that wrote it."
        )
    try:
        about = _About(**{name: value for name, value in described.items() if name != "format"})
        codecs = _decode(tensors, len(about.class_names))
        gaussians = _gaussians(tensors, about, version, path.parent, codecs)
    except (ConfigError, DataError, StorageError) as error:
        text = str(error).removeprefix("_About: ")
        raise StorageError(f"'{path.name}' is not a usable distilled set: {text}") from None
    logits, soft = tensors.get("label_logits"), None
    if logits is not None:
        soft = SoftLabels(logits, codecs["label_logits"]).requires_grad_(False)
    return DistilledSet(
        gaussians.requires_grad_(False),
        about.dataset,
        tuple(about.class_names),
        about.provenance,
        soft_labels=soft,
        training=about.training,
        syn_lr=about.syn_lr,
        file_bytes=path.stat().st_size,
    )


def _read_old(path: Path, error: Exception) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a file that is not of version 3, for which ``error`` says why."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        metadata = {METADATA_KEY: ""}
    if METADATA_KEY in metadata:
        raise StorageError(f"'{path.name}' cannot be used: {error}; copy it again.")
    if metadata.get("format") != FORMAT:
        raise StorageError(f"'{path.name}' is a safetensors file, but not a distilled set.")
    version = {"1": 1, "2": 2}.get(metadata.get("version"), metadata.get("version"))
    try:
        return tensors, {**json.loads(metadata["about"]), "version": version}
    except (KeyError, TypeError, ValueError, RecursionError):
        raise StorageError(
            f"The description inside '{path.name}' is damaged; copy it again."
        ) from None


def _gaussians(
    tensors: dict[str, Tensor], about: _About, version: int, folder: Path, codecs: dict[str, Any]
) -> GaussianImages:
    """The Gaussians of a file; raises StorageError where tensors and description do not fit."""
    _check_tensors(tensors, about, codecs)
    channels, space = tensors["packed"].shape[2] - GEOMETRY - about.opacity, about.space
    coded = codecs["packed"]
    _require(coded is None or coded.channels == channels, f"its codec is not for {channels} colors")
    if about.whitening is None:
        _require(len(about.mean) == channels, f"mean {about.mean} for {channels} channels")
        normalization = ChannelNormalization(tuple(about.mean), tuple(about.std))
    else:
        name = about.whitening.file
        remedy = (
            f" to the set's folder, or make it again: write_whitening(folder, load_data(DataConfig("
            f"dataset='{about.dataset}', zca=True)).normalization) writes '{name}' there"
        )
        shape = (channels, *about.resolution)
        normalization = read_whitening(folder / name, shape, remedy)
        space = space if version == VERSION else "normalized"  # whatever older versions say
    return GaussianImages(
        tensors["packed"].float(),
        tensors["labels"].long(),
        resolution=tuple(about.resolution),
        normalization=normalization,
        render_config=about.render,
        opacity=about.opacity,
        space=space,
        codec=coded,
    )


def _stored(values: Tensor, codec: Any, encode: Callable[..., bytes]) -> Tensor:
    """What a file holds of ``values``: bf16, or the bytes of their codec."""
    if codec is None:
        return values.to(torch.bfloat16)
    return torch.frombuffer(bytearray(encode(codec.quantize(values.detach()), codec)), dtype=BYTES)


def _decode(tensors: dict[str, Tensor], classes: int) -> dict[str, Any]:
    """Undo :func:`_stored` and counts, in place: values as float32; gives the codecs by name."""
    codecs = {}
    for name, read in (("packed", decode), ("label_logits", decode_labels)):
        coded, codecs[name] = tensors.get(name), None
        if coded is not None and coded.dtype == BYTES:
            try:
                ints, codecs[name] = read(coded.numpy().tobytes())
            except DamagedCodeError as error:
                raise StorageError(f"its {name} cannot be decoded, {error}") from None
            tensors[name] = codecs[name].dequantize(ints)
    if "counts" in tensors and codecs["packed"] is not None:
        counts, images = tensors.pop("counts").long(), len(tensors["packed"])
        fits = counts.shape == (classes,) and (counts >= 0).all() and counts.sum() == images
        _require(fits, f"its counts are not those of {images} images of {classes} classes")
        tensors["labels"] = torch.arange(classes, dtype=torch.int32).repeat_interleave(counts)
    return codecs


def _check_tensors(tensors: dict[str, Tensor], about: _About, codecs: dict[str, Any]) -> None:
    required = {"packed", "labels"}
    fits = required <= tensors.keys() <= required | {"label_logits"}
    _require(fits, f"it holds {reprlib.repr(sorted(tensors))} in place of Gaussians and labels")
    packed, labels, logits = (tensors.get(name) for name in ("packed", "labels", "label_logits"))
    fits = packed.dim() == 3 and 1 <= packed.shape[2] - GEOMETRY - about.opacity <= 4
    fits = fits and packed.dtype == _dtype(codecs["packed"]) and packed.numel()
    _require(fits, f"its Gaussians are {_kind(packed)}, not bfloat16 [N, M, numbers]")
    _require(packed.isfinite().all(), "its Gaussians have non-finite numbers")
    fits = labels.dtype in (torch.uint8, torch.int32) and labels.shape == packed.shape[:1]
    _require(fits, f"its labels are {_kind(labels)}, not an integer per image, {len(packed)}")
    low, high, classes = int(labels.min()), int(labels.max()), len(about.class_names)
    _require(0 <= low <= high < classes, f"its labels are {low} to {high} for {classes} classes")
    if logits is not None:
        fits = logits.dtype == _dtype(codecs["label_logits"])
        fits = fits and list(logits.shape) == [len(packed), classes]
        _require(fits, f"its learned labels are {_kind(logits)} for {classes} classes")
        _require(logits.isfinite().all(), "its learned labels have non-finite numbers")


def _dtype(codec: Any) -> torch.dtype:
    """Of values when they are read."""
    return torch.bfloat16 if codec is None else torch.float32


def _require(fits: object, fault: str) -> None:
    if not fits:
        raise StorageError(fault)


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def _size(resolution: Resolution) -> tuple[int, int] | None:
    return (resolution, resolution) if isinstance(resolution, int) else resolution


def _png(pixels: Tensor) -> bytes:
    """A PNG file of pixel values [C, H, W] in [0, 1], 1 to 4 channels."""
    values = (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(values.squeeze(-1) if len(pixels) == 1 else values).save(file, "PNG")
    return file.getvalue()
