"""ZCA whitening: images turned so that their pixels are uncorrelated, and back.

    W = U (S + eps)^(-1/2) U^T,   covariance of the training pixels = U S U^T,   z = (x - mean) W

The definition of kornia's ZCAWhitening (unbiased covariance, eps added to its singular values) with
the field's eps of 0.1. A covariance is symmetric and has no negative eigenvalue, so its eigenvalues
are its singular values; the eigendecomposition takes a third of the time of an SVD at 3,072 values.
"""

import hashlib
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from gsdd_lib.core.files import write_atomically
from gsdd_lib.core.progress import Progress
from gsdd_lib.data.cache import cache_folder
from gsdd_lib.data.dataset import DataError

REGULARIZATION = 0.1
MAX_VALUES = 3 * 64 * 64  # of an image: its matrices then take 1.2 GB each
FORMAT, VERSION = "gsdd-whitening", "1"
PARTS = ("mean", "matrix", "inverse")
CHUNK = 1_024  # images summed in float32: pixels are within 128 of 128, and 1,024 * 128^2 = 2^24


@dataclass(frozen=True, eq=False)
class Whitening:
    """The transform of images with D = C * H * W values, float32.

    mean: [D], of pixels in [0, 1]
    matrix, inverse: [D, D], symmetric, the inverse of each other
    source: hash of the images that it was fitted to; the matrices may differ from machine to
        machine by rounding, this does not
    """

    mean: Tensor
    matrix: Tensor
    inverse: Tensor
    source: str

    @property
    def file_name(self) -> str:
        """What a file with this whitening is called: one name for one set of images."""
        return f"zca-{self.source}.safetensors"

    def apply(self, images: Tensor) -> Tensor:
        """(x - mean) W for images [..., C, H, W] in [0, 1], float32, differentiable."""
        flat = images.flatten(-3).to(torch.float32)
        return ((flat - self.mean) @ self.matrix).view(images.shape)

    def invert(self, whitened: Tensor) -> Tensor:
        """Undo :meth:`apply`: [..., C, H, W] back to [0, 1], not clamped."""
        flat = whitened.flatten(-3) @ self.inverse + self.mean
        return flat.view(whitened.shape)

    def to(self, device: str | torch.device) -> Self:
        """The same transform on another device."""
        parts = {name: getattr(self, name).to(device) for name in PARTS}
        return replace(self, **parts)


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
    return Whitening(*(part.float() for part in parts), _content_hash(images))


def cached_whitening(images: Tensor, *, folder: Path | None = None) -> Whitening:
    """:func:`fit_whitening`, or what it gave for the same images before.

    folder: of the cache, by default :func:`gsdd_lib.data.cache.cache_folder`. A file there that is
        damaged is made anew; where none can be written, a warning says so.
    """
    folder = folder or cache_folder()
    try:
        return read_whitening(folder / f"zca-{_content_hash(images)}.safetensors")
    except DataError:
        made = fit_whitening(images)
    try:
        write_whitening(folder, made)
    except OSError as error:
        reason = error.strerror or error
        warnings.warn(f"The whitening could not be kept for next time ({reason}).", stacklevel=2)
    return made


def write_whitening(folder: Path | str, whitening: Whitening) -> Path:
    """Write ``folder/zca-<source>.safetensors`` atomically; left alone where it is there and whole.

    8 D^2 bytes: 75 MB for images of 3,072 values.
    """
    path = Path(folder) / whitening.file_name
    try:
        read_whitening(path)
    except DataError:
        parts = {name: getattr(whitening, name).cpu().contiguous() for name in PARTS}
        about = {"format": FORMAT, "version": VERSION, "source": whitening.source}
        content = serialize(parts, about | {"checksum": _checksum(parts)})
        write_atomically(path, content)
    return path


def read_whitening(path: Path | str) -> Whitening:
    """A file of :func:`write_whitening`, checked; raises :class:`DataError` for any other."""
    name = Path(path).name
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            parts = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"the whitening '{name}' is missing or cut off ({error}); copy it again"
        ) from None
    if about.get("format") != FORMAT or about.get("version") != VERSION:
        raise DataError(f"'{name}' is no whitening of format version {VERSION}; copy it again")
    if set(parts) != set(PARTS) or about.get("checksum") != _checksum(parts):
        raise DataError(f"the whitening '{name}' is damaged; copy it again")
    found = Whitening(**parts, source=about.get("source", ""))
    if found.file_name != name:
        raise DataError(f"'{name}' holds the whitening '{found.file_name}'; copy the right one")
    return found


def _checksum(parts: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in PARTS:
        digest.update(f"{name} {parts[name].dtype} {list(parts[name].shape)}".encode())
        digest.update(parts[name].numpy())
    return digest.hexdigest()


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
