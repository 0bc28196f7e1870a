"""Normalization: pixel values to what networks see, and back; by channel, or by ZCA whitening.

Both have one interface, :class:`Normalization`. ZCA turns images so that their pixels are
uncorrelated:

    W = U (S + eps)^(-1/2) U^T,   covariance of the training pixels = U S U^T,   z = (x - mean) W

The definition of kornia's ZCAWhitening (unbiased covariance, eps added to its singular values) with
the field's eps of 0.1. A covariance is symmetric and has no negative eigenvalue, so its eigenvalues
are its singular values; the eigendecomposition takes a third of the time of an SVD at 3,072 values.
"""

import hashlib
import json
import math
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gsdd_lib.core.errors import DataError
from gsdd_lib.core.files import DamagedFileError, cache_folder, read_tensors, write_tensors
from gsdd_lib.core.progress import Progress

REGULARIZATION = 0.1
MAX_VALUES = 3 * 64 * 64  # of an image: its matrices then take 1.2 GB each
FORMAT, VERSION = "gsdd-whitening", 2
PARTS = ("mean", "matrix", "inverse")
CHUNK = 1_024  # images summed in float32: pixels are within 128 of 128, and 1,024 * 128^2 = 2^24


class Normalization(Protocol):
    """What networks see in place of pixel values; immutable."""

    def apply(self, images: Tensor) -> Tensor:
        """Normalized images, float32 (float64 of float64 images), differentiable.

        Args:
            images: [..., C, H, W], uint8, or floating point in [0, 1], on any device.

        Raises:
            DataError: the images have another shape or an integer type other than uint8.
        """

    def invert(self, normalized: Tensor) -> Tensor:
        """Undo :meth:`apply`: [..., C, H, W] back to pixel values in [0, 1], not clamped."""

    def to(self, device: str | torch.device) -> Self:
        """The same normalization with its numbers on another device."""

    @property
    def fingerprint(self) -> str:
        """Equal for equal normalizations, whatever the machine that computed them."""


@dataclass(frozen=True)
class ChannelNormalization:
    """``(x - mean) / std`` for each channel.

    Args:
        mean, std: a number per channel, of pixel values in [0, 1].

    Raises:
        DataError: a number is not finite, a deviation is not positive, or they are not as many.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: str | torch.device = "cpu"

    def __post_init__(self) -> None:
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if not finite or len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise DataError(
                f"a normalization needs a finite mean and a positive deviation per channel, got"
                f" {list(self.mean)} and {list(self.std)}"
            )

    def apply(self, images: Tensor) -> Tensor:
        """Normalized images (:meth:`Normalization.apply`)."""
        mean, std = self._statistics_for(images)
        values = _floating(images)
        if images.dtype == torch.uint8:
            return values * (1 / (255.0 * std)) - mean / std
        return (values - mean) / std

    def invert(self, normalized: Tensor) -> Tensor:
        """Pixel values (:meth:`Normalization.invert`)."""
        mean, std = self._statistics_for(normalized)
        return normalized * std + mean

    def to(self, device: str | torch.device) -> Self:
        """The same numbers on another device."""
        return replace(self, device=device)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the numbers, in hexadecimal."""
        text = json.dumps([self.mean, self.std])
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def _statistics(self) -> Tensor:
        """Mean and deviation [2, C, 1, 1]."""
        return torch.tensor([self.mean, self.std], device=self.device).view(2, -1, 1, 1)

    def _statistics_for(self, images: Tensor) -> Tensor:
        if images.dim() < 3 or images.shape[-3] != len(self.mean):
            raise DataError(
                f"images of shape {list(images.shape)} do not fit the normalization;"
                f" pass [..., {len(self.mean)}, height, width]"
            )
        return self._statistics.to(images.device)


@dataclass(frozen=True, eq=False)
class Whitening:
    """ZCA whitening of images [C, H, W] with D = C * H * W values, float32.

    mean: [D], of pixel values in [0, 1]
    matrix, inverse: [D, D], symmetric, the inverse of each other
    shape: (C, H, W)
    fingerprint: hash of the images that it was fitted to; the matrices may differ from machine to
        machine by rounding, this does not
    """

    mean: Tensor
    matrix: Tensor
    inverse: Tensor
    shape: tuple[int, int, int]
    fingerprint: str

    @property
    def file_name(self) -> str:
        """What a file with this whitening is called: one name for one set of images."""
        return f"zca-{self.fingerprint}.safetensors"

    def apply(self, images: Tensor) -> Tensor:
        """Whitened images ``(x - mean) W`` (:meth:`Normalization.apply`)."""
        flat = self._flat(images)
        flat = flat / 255 if images.dtype == torch.uint8 else flat
        return ((flat - self.mean.to(flat)) @ self.matrix.to(flat)).view(images.shape)

    def invert(self, normalized: Tensor) -> Tensor:
        """Pixel values (:meth:`Normalization.invert`)."""
        flat = self._flat(normalized)
        return (flat @ self.inverse.to(flat) + self.mean.to(flat)).view(normalized.shape)

    def to(self, device: str | torch.device) -> Self:
        """The same matrices on another device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in PARTS})

    def _flat(self, images: Tensor) -> Tensor:
        """Floating-point [..., D]."""
        if tuple(images.shape[-3:]) != self.shape:
            channels, height, width = self.shape
            raise DataError(
                f"images of shape {list(images.shape)} do not fit the whitening, which is for"
                f" [..., {channels}, {height}, {width}]; resize them"
            )
        return _floating(images).flatten(-3)


def _floating(images: Tensor) -> Tensor:
    """Images as float32, or as float64 where they are; raises :class:`DataError` for integers."""
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise DataError(f"images are {images.dtype}; pass uint8, or floating point in [0, 1]")
    return images.to(torch.float64 if images.dtype == torch.float64 else torch.float32)


def fit_whitening(images: Tensor, *, eps: float = REGULARIZATION) -> Whitening:
    """The whitening of uint8 images [N, C, H, W], N at least 2; computed in double.

    Raises :class:`DataError` for images of more than :data:`MAX_VALUES` values.
    """
    values = images[0].numel()
    if values > MAX_VALUES:
        raise DataError(
            f"ZCA of images with {values:,} values needs matrices of {8 * values**2 / 2**30:,.0f}"
            f" GiB; it is for at most {MAX_VALUES:,} values, choose zca=False or a resolution of 64"
        )
    mean, covariance = _statistics(images)
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    root = (eigenvalues.clamp(min=0) + eps).sqrt()
    parts = (mean, (vectors / root) @ vectors.T, (vectors * root) @ vectors.T)
    mean, matrix, inverse = (part.float() for part in parts)
    return Whitening(mean, matrix, inverse, tuple(images.shape[1:]), _content_hash(images))


def cached_whitening(images: Tensor, *, folder: Path | None = None) -> Whitening:
    """:func:`fit_whitening`, or what it gave for the same images before.

    folder: of the cache, by default :func:`gsdd_lib.core.files.cache_folder`. A file there that is
        damaged is made anew; where none can be written, a warning says so.
    """
    folder = folder or cache_folder()
    try:
        path = folder / f"zca-{_content_hash(images)}.safetensors"
        return read_whitening(path, tuple(images.shape[1:]))
    except DataError:
        made = fit_whitening(images)
    try:
        write_whitening(folder, made)
    except OSError as error:
        reason = error.strerror or error
        warnings.warn(f"The whitening could not be kept for next time ({reason}).", stacklevel=2)
    return made


def write_whitening(folder: Path | str, whitening: Whitening) -> Path:
    """Write ``folder/zca-<fingerprint>.safetensors``; left alone where it is there and whole.

    8 D^2 bytes: 75 MB for images of 3,072 values.
    """
    path = Path(folder) / whitening.file_name
    try:
        read_whitening(path, whitening.shape)
    except DataError:
        about = {"format": FORMAT, "version": VERSION, "fingerprint": whitening.fingerprint}
        parts = {name: getattr(whitening, name) for name in PARTS}
        write_tensors(path, parts, about | {"shape": list(whitening.shape)})
    return path


def read_whitening(path: Path | str, shape: tuple[int, int, int]) -> Whitening:
    """Read a file of :func:`write_whitening`.

    Args:
        path: the file.
        shape: (C, H, W) of the images that it is wanted for.

    Raises:
        DataError: the file is missing, damaged, of another kind, or for other images.
    """
    name = Path(path).name
    try:
        parts, about = read_tensors(Path(path), FORMAT)
    except DamagedFileError as error:
        parts, about = _read_version_1(path)
        if not parts:
            raise DataError(
                f"the whitening '{name}' cannot be used ({error}); copy it again"
            ) from None
    if about["version"] not in (1, VERSION):
        raise DataError(
            f"the whitening '{name}' has format version {about['version']}, and this library reads"
            f" versions 1 and {VERSION}; install the release that wrote it"
        )
    found = Whitening(*(parts[part] for part in PARTS), shape, about["fingerprint"])
    if found.file_name != name:
        raise DataError(f"'{name}' holds the whitening '{found.file_name}'; copy the right one")
    if tuple(about.get("shape", shape)) != shape or found.mean.numel() != math.prod(shape):
        raise DataError(f"the whitening '{name}' is not for images of shape {list(shape)}")
    return found


@dataclass(frozen=True, eq=False)
class StoredWhitening:
    """A whitening that stays in its file until it is first needed; see :class:`Normalization`.

    shape: (C, H, W) of the images that it is for
    remedy: what the error says after its reason where the file cannot be used
    """

    path: Path
    shape: tuple[int, int, int]
    remedy: str
    device: str | torch.device = "cpu"

    @cached_property
    def whitening(self) -> Whitening:
        """The whitening itself; raises :class:`DataError` where the file cannot be used."""
        try:
            return read_whitening(self.path, self.shape).to(self.device)
        except DataError as error:
            raise DataError(f"{error}{self.remedy}") from None

    def apply(self, images: Tensor) -> Tensor:
        """Whitened images."""
        return self.whitening.apply(images)

    def invert(self, normalized: Tensor) -> Tensor:
        """Pixel values of whitened images."""
        return self.whitening.invert(normalized)

    def to(self, device: str | torch.device) -> Self:
        """The same file, to be read to another device."""
        return replace(self, device=device)

    @property
    def fingerprint(self) -> str:
        """That of the whitening."""
        return self.path.stem.removeprefix("zca-")


def _read_version_1(path: Path | str) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Tensors and description of a whole file of version 1; nothing of any other."""
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            parts = {name: file.get_tensor(name) for name in PARTS}
    except (OSError, SafetensorError):
        return {}, {}
    digest = hashlib.sha256()
    for name, part in parts.items():
        digest.update(f"{name} {part.dtype} {list(part.shape)}".encode())
        digest.update(part.numpy())
    if about.get("version") != "1" or about.get("checksum") != digest.hexdigest():
        return {}, {}
    return parts, {"version": 1, "fingerprint": about.get("source", "")}


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and unbiased covariance [D, D] in double of pixels in [0, 1].

    Sums of integers are exact in float32 up to 2^24 and in double up to 2^53, so the products of a
    chunk are exact though float32, which takes half the time, and centering comes at the end.
    """
    count, values = len(images), images[0].numel()
    total = torch.zeros(values, dtype=torch.float64)
    products = torch.zeros(values, values, dtype=torch.float64)
    with Progress(count, "covariance") as progress:
        for part in images.split(CHUNK):
            flat = part.flatten(1).float() - 128
            total += flat.sum(0)
            products += flat.T @ flat
            progress.update(len(part))
    mean = total / count
    covariance = (products - count * torch.outer(mean, mean)) / (count - 1)
    return (mean + 128) / 255, covariance / 255**2


def _content_hash(images: Tensor) -> str:
    """Of the definition, the shape and every pixel."""
    digest = hashlib.sha256(f"zca {REGULARIZATION} {list(images.shape)}".encode())
    for part in images.split(CHUNK):
        digest.update(part.contiguous().numpy())
    return digest.hexdigest()[:32]
