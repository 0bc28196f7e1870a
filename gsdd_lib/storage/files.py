"""The file of a distilled set: what it holds, how it is read, and what in it is refused.

It holds :class:`About` and, as tensors, ``packed`` (the Gaussians: bf16 [N, M, 5 + C + opacity], or
the bytes of their codec), ``labels`` (uint8 or int32 [N], or, with a codec, ``counts`` int32 [K] of
images per class) and, where labels are learned, ``label_logits`` (bf16 [N, K], or bytes). A
whitening is a file beside it. Files of versions 1 and 2 had no checksum, and Gaussians of whitened
images added up to normalized values.
"""

import contextlib
import json
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gsdd_lib.config import Config, ConfigError, RenderConfig
from gsdd_lib.core.errors import GsddError
from gsdd_lib.core.files import METADATA_KEY, DamagedFileError, read_tensors
from gsdd_lib.data import DataError
from gsdd_lib.data.normalization import ChannelNormalization, read_whitening
from gsdd_lib.distillation.soft_labels import SoftLabels
from gsdd_lib.parameterizations.codec import Codec, decode, decode_labels
from gsdd_lib.parameterizations.entropy import DamagedCodeError
from gsdd_lib.parameterizations.gaussian import GaussianImages
from gsdd_lib.splatting.splat import GEOMETRY

FORMAT, VERSION, OLD_VERSIONS = "gsdd-distilled-set", 3, {"1": 1, "2": 2}


class StorageError(GsddError, ValueError):
    """A file is not a distilled set that this version can read; the message says why."""


class _Companion(Config):
    file: str = Field(pattern=r"^zca-[0-9a-f]+\.safetensors$")
    bytes: int = Field(ge=0)


class About(Config):
    """The description in a file, with mean and std, or whitening."""

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


def read(path: Path) -> tuple[GaussianImages, SoftLabels | None, About]:
    """What a file holds; any other file, or one with a changed bit, is a StorageError."""
    require(path.is_file(), f"There is no distilled set at '{path}'; check the path.")
    try:
        tensors, about = read_tensors(path, FORMAT)
    except DamagedFileError as error:
        tensors, about = _read_old(path, error)
    del about["format"]
    version = about.pop("version", None)
    found = f"'{path.name}' has format version {reprlib.repr(version)}"
    reads = f"this library reads versions 1 to {VERSION}; install the release that wrote it."
    require(version in (*OLD_VERSIONS.values(), VERSION), f"{found}, and {reads}")
    try:
        about = About(**about)
        codecs = _decode(tensors, len(about.class_names))
        _check(tensors, about, codecs)
        gaussians = _gaussians(tensors, about, version, path.parent, codecs["packed"])
    except (ConfigError, DataError, StorageError) as error:
        text = str(error).removeprefix("About: ")
        raise StorageError(f"'{path.name}' is not a usable distilled set: {text}") from None
    logits, soft = tensors.get("label_logits"), None
    if logits is not None:
        soft = SoftLabels(logits, codecs["label_logits"]).requires_grad_(False)
    return gaussians.requires_grad_(False), soft, about


def _read_old(path: Path, error: Exception) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a file that is of another version; ``error`` says why."""
    metadata = {METADATA_KEY: ""}
    with contextlib.suppress(OSError, SafetensorError), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    require(METADATA_KEY not in metadata, f"'{path.name}' cannot be used: {error}; copy it again.")
    ours = metadata.pop("format", None) == FORMAT
    require(ours, f"'{path.name}' is a safetensors file, but not a distilled set.")
    version = metadata.get("version")
    with contextlib.suppress(KeyError, TypeError, ValueError, RecursionError):
        own = {"format": FORMAT, "version": OLD_VERSIONS.get(version, version)}
        return tensors, json.loads(metadata["about"]) | own
    raise StorageError(f"The description inside '{path.name}' is damaged; copy it again.")


def stored(values: Tensor, codec: Any, encode: Callable[..., bytes]) -> Tensor:
    """What a file holds of ``values``: bf16, or the bytes of their codec."""
    if codec is None:
        return values.to(torch.bfloat16)
    content = bytearray(encode(codec.quantize(values.detach()), codec))
    return torch.frombuffer(content, dtype=torch.uint8)


def _decode(tensors: dict[str, Tensor], classes: int) -> dict[str, Any]:
    """Undo :func:`stored` and counts, in place: values as float32; gives the codecs by name."""
    codecs = {}
    for name, read in (("packed", decode), ("label_logits", decode_labels)):
        coded, codecs[name] = tensors.get(name), None
        if coded is not None and coded.dtype == torch.uint8:
            try:
                ints, codecs[name] = read(coded.numpy().tobytes())
            except DamagedCodeError as error:
                raise StorageError(f"its {name} cannot be decoded, {error}") from None
            tensors[name] = codecs[name].dequantize(ints)
    if "counts" in tensors and codecs["packed"] is not None:
        counts, images = tensors.pop("counts").long(), len(tensors["packed"])
        fits = counts.shape == (classes,) and (counts >= 0).all() and counts.sum() == images
        require(fits, f"its counts are not those of {images} images of {classes} classes")
        tensors["labels"] = torch.arange(classes, dtype=torch.int32).repeat_interleave(counts)
    return codecs


def _check(tensors: dict[str, Tensor], about: About, codecs: dict[str, Any]) -> None:
    required, classes = {"packed", "labels"}, len(about.class_names)
    fits = required <= tensors.keys() <= required | {"label_logits"}
    require(fits, f"it holds {reprlib.repr(sorted(tensors))} in place of Gaussians and labels")
    packed, labels, logits = (tensors.get(name) for name in ("packed", "labels", "label_logits"))
    channels = packed.shape[-1] - GEOMETRY - about.opacity if packed.dim() == 3 else 0
    images, whole = packed.shape[:1], (torch.uint8, torch.int32)
    kinds = {n: torch.float32 if codec else torch.bfloat16 for n, codec in codecs.items()}
    full = 1 <= channels <= 4 and packed.numel() and packed.dtype == kinds["packed"]
    one_each = labels.dtype in whole and labels.shape == images
    learned = logits is None or logits.dtype == kinds["label_logits"]
    learned = learned and (logits is None or logits.shape == (*images, classes))
    for what, values, fits, wanted in (
        ("Gaussians", packed, full, ", not bfloat16 [N, M, numbers]"),
        ("labels", labels, one_each, f", not an integer per image, {list(images)}"),
        ("learned labels", logits, learned, f" for {classes} classes"),
    ):
        if values is not None:
            require(fits, f"its {what} are {values.dtype} {list(values.shape)}{wanted}")
            require(values.isfinite().all(), f"its {what} have non-finite numbers")
    low, high = int(labels.min()), int(labels.max())
    require(0 <= low <= high < classes, f"its labels are {low} to {high} for {classes} classes")
    codec, known = codecs["packed"], len(about.mean) == channels or about.whitening is not None
    require(codec is None or codec.channels == channels, f"its codec is not for {channels} colors")
    require(known, f"mean {about.mean} for {channels} channels")


def _gaussians(
    tensors: dict[str, Tensor], about: About, version: int, folder: Path, codec: Codec | None
) -> GaussianImages:
    space = about.space
    if about.whitening is None:
        normalization = ChannelNormalization(tuple(about.mean), tuple(about.std))
    else:
        name, channels = about.whitening.file, tensors["packed"].shape[2] - GEOMETRY - about.opacity
        data = f"load_data(DataConfig(dataset='{about.dataset}', zca=True))"
        remedy = f" to the set's folder, or make it again: write_whitening(folder, {data}"
        remedy += f".normalization) writes '{name}' there"
        normalization = read_whitening(folder / name, (channels, *about.resolution), remedy)
        space = space if version == VERSION else "normalized"  # whatever older versions say
    more = {"render_config": about.render, "opacity": about.opacity, "space": space, "codec": codec}
    more |= {"resolution": tuple(about.resolution), "normalization": normalization}
    return GaussianImages(tensors["packed"].float(), tensors["labels"].long(), **more)


def require(fits: object, fault: str) -> None:
    if not fits:
        raise StorageError(fault)
