"""Normalization: pixel values to what networks see, and back; by channel, or by ZCA whitening.

ZCA as kornia's: z = (x - mean) W, W = U (S + 0.1)^(-1/2) U^T, unbiased covariance U S U^T.
"""

import contextlib
import hashlib
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from gsdd_lib.core.errors import DataError
from gsdd_lib.core.files import DamagedFileError, cache_folder, read_tensors, write_tensors
from gsdd_lib.core.progress import Progress

REGULARIZATION = 0.1
MAX_VALUES = 3 * 64 * 64  # of an image: its matrices then take 1.2 GB each
FORMAT, VERSION, PARTS = "gsdd-whitening", 2, ("mean", "matrix", "inverse")
CHUNK = 1_024  # images summed exactly in float32: pixels are 128 +- 128, 1,024 * 128^2 = 2^24


@dataclass(frozen=True)
class ChannelNormalization:
    """``(x - mean) / std`` for each channel, of pixel values in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: str | torch.device = "cpu"

    def __post_init__(self) -> None:
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if not finite or len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            needs = "a normalization needs a finite mean and a positive deviation per channel"
            raise DataError(f"{needs}, got {list(self.mean)} and {list(self.std)}")

    def apply(self, images: Tensor) -> Tensor:
        """Of [..., C, H, W], uint8 or floating point in [0, 1]: float32, float64 of float64."""
        values = _fitting(images, (len(self.mean),))
        mean, std = self._statistics.to(images.device)
        if images.dtype == torch.uint8:
            return values * (1 / (255.0 * std)) - mean / std
        return (values - mean) / std

    def invert(self, normalized: Tensor) -> Tensor:
        """Undo :meth:`apply`: [..., C, H, W] back to pixel values in [0, 1], not clamped."""
        mean, std = self._statistics.to(normalized.device)
        return _fitting(normalized, (len(self.mean),)) * std + mean

    def to(self, device: str | torch.device) -> Self:
        return replace(self, device=device)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the numbers, in hexadecimal."""
        return hashlib.sha256(json.dumps([self.mean, self.std]).encode()).hexdigest()

    @cached_property
    def _statistics(self) -> Tensor:  # [2, C, 1, 1]
        return torch.tensor([self.mean, self.std], device=self.device).view(2, -1, 1, 1)


@dataclass(frozen=True, eq=False)
class Whitening:
    """ZCA whitening of images of ``shape`` (C, H, W) with D = C * H * W values.

    ``fingerprint`` is a hash of the images it was fitted to; ``read`` gives mean [D], in [0, 1],
    matrix and inverse [D, D], float32, when they are first needed.
    """

    shape: tuple[int, int, int]
    fingerprint: str
    read: Callable[[], tuple[Tensor, ...]]
    device: str | torch.device = "cpu"

    @cached_property
    def parts(self) -> tuple[Tensor, ...]:
        """Mean, matrix and inverse. Raises :class:`DataError` where their file cannot be used."""
        return tuple(part.to(self.device) for part in self.read())

    def apply(self, images: Tensor) -> Tensor:
        """Whitened images ``(x - mean) W`` (see :class:`ChannelNormalization`)."""
        flat, (mean, matrix, _) = _fitting(images, self.shape).flatten(-3), self.parts
        flat = flat / 255 if images.dtype == torch.uint8 else flat
        return ((flat - mean.to(flat)) @ matrix.to(flat)).view(images.shape)

    def invert(self, normalized: Tensor) -> Tensor:
        """Undo :meth:`apply`: pixel values."""
        flat, (mean, _, inverse) = _fitting(normalized, self.shape).flatten(-3), self.parts
        return (flat @ inverse.to(flat) + mean.to(flat)).view(normalized.shape)

    def to(self, device: str | torch.device) -> Self:
        return replace(self, device=device)


Normalization = ChannelNormalization | Whitening


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 [N, C, H, W], in [0, 1]; exact."""
    levels, mean, std = torch.arange(256, dtype=torch.float64) / 255, [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        share = counts / counts.sum()
        mean.append(float(share @ levels))
        std.append(float((share @ (levels - mean[-1]) ** 2).sqrt()))
        if std[-1] == 0:
            raise DataError(f"channel {channel} has one value in all images; leave it out")
    return tuple(mean), tuple(std)


def fit_whitening(images: Tensor, *, eps: float = REGULARIZATION) -> Whitening:
    """The whitening of uint8 images [N, C, H, W], N at least 2; computed in double."""
    if (values := images[0].numel()) > MAX_VALUES:
        fault = f"ZCA of images with {values:,} values takes too much memory"
        raise DataError(f"{fault}; choose zca=False or a resolution of 64")
    mean, covariance = _statistics(images)
    eigenvalues, vectors = torch.linalg.eigh(covariance)  # a third of the time of an SVD
    root = (eigenvalues.clamp(min=0) + eps).sqrt()
    parts = (mean, (vectors / root) @ vectors.T, (vectors * root) @ vectors.T)
    parts = tuple(part.float() for part in parts)
    return Whitening(tuple(images.shape[1:]), _content_hash(images), lambda: parts)


def cached_whitening(images: Tensor) -> Whitening:
    """:func:`fit_whitening`, or what it gave for the same images before, from the cache."""
    path = cache_folder() / f"zca-{_content_hash(images)}.safetensors"
    kept = read_whitening(path, tuple(images.shape[1:]))
    with contextlib.suppress(DataError):
        return replace(kept, read=lambda parts=kept.parts: parts)
    made = fit_whitening(images)
    try:
        write_whitening(path.parent, made)
    except OSError as error:
        warnings.warn(f"The whitening could not be kept for next time ({error}).", stacklevel=2)
    return made


def write_whitening(folder: Path | str, whitening: Whitening) -> Path:
    """Write ``folder/zca-<fingerprint>.safetensors``; left alone where it is there and whole."""
    path = Path(folder) / f"zca-{whitening.fingerprint}.safetensors"
    try:
        _ = read_whitening(path, whitening.shape).parts
    except DataError:
        about = {"format": FORMAT, "version": VERSION, "fingerprint": whitening.fingerprint}
        parts = dict(zip(PARTS, whitening.parts, strict=True))
        write_tensors(path, parts, about | {"shape": list(whitening.shape)})
    return path


def read_whitening(path: Path, shape: tuple[int, int, int], remedy: str = "") -> Whitening:
    """The whitening of images of ``shape`` in a file, which is read when it is first needed.

    Then a missing or unusable file raises :class:`DataError`, to which ``remedy`` is added.
    """
    known = {"version": VERSION, "fingerprint": path.stem.removeprefix("zca-"), "shape": [*shape]}

    def read() -> tuple[Tensor, ...]:
        try:
            tensors, about = read_tensors(path, FORMAT)
            for name, value in known.items():
                if about.get(name) != value:
                    raise DamagedFileError(f"its {name} is {about.get(name)}, not {value}")
        except DamagedFileError as error:
            fault = f"the whitening '{path.name}' cannot be used ({error}); copy it again{remedy}"
            raise DataError(fault) from None
        return tuple(tensors[name] for name in PARTS)

    return Whitening(shape, known["fingerprint"], read)


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and unbiased covariance [D, D] in double of pixels in [0, 1]."""
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


def _fitting(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Images as float32, or as float64 where they are; ``shape``: (C,) or (C, H, W) of them."""
    if images.dim() < 3 or images.shape[-3:][: len(shape)] != shape:
        fault = f"images of shape {list(images.shape)} do not fit the "
        fault += "whitening" if len(shape) == 3 else "normalization"
        wanted = ", ".join(map(str, (*shape, "height", "width")[:3]))
        raise DataError(f"{fault}; pass [..., {wanted}]")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise DataError(f"images are {images.dtype}; pass uint8, or floating point in [0, 1]")
    return images.to(torch.float64 if images.dtype == torch.float64 else torch.float32)


def _content_hash(images: Tensor) -> str:
    digest = hashlib.sha256(f"zca {REGULARIZATION} {list(images.shape)}".encode())
    for part in images.split(CHUNK):
        digest.update(part.contiguous().numpy())
    return digest.hexdigest()[:32]
