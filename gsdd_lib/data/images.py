"""Images in files, a folder per class: listed in one order, decoded once and kept in a cache.

A cached file is named by a hash of the images' content and of how they are decoded.
"""

import contextlib
import io
import math
import os
import shutil
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gsdd_lib.core.errors import DataError
from gsdd_lib.core.files import cache_folder, write_atomically
from gsdd_lib.core.progress import Progress
from gsdd_lib.data.dataset import ImageSet, check_size
from gsdd_lib.data.sources import read_bytes

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # no other is ever opened
MAX_BYTES, MAX_PIXELS = 2**26, 2**26  # of one image: encoded, and decoded (200 MB as RGB)
VERSION = 2  # of how pixels are made: a change decodes everything again
MARK, SPARE_BYTES = 32, 2**26  # bytes of the SHA-256 in front, and those left on a disk
BILINEAR = Image.Resampling.BILINEAR

Tree = dict[str, dict[str, list[str]]]  # split folder -> class folder -> image names, sorted


@dataclass(frozen=True)
class Listing:
    """Images below ``root``: the ``train`` training images first, class by class, by file name."""

    root: Path
    paths: list[str]
    labels: list[int]
    train: int

    def read(self, position: int) -> bytes:
        return read_bytes(self.root / self.paths[position], MAX_BYTES)


def folder_tree(root: Path, splits: Sequence[str]) -> Tree:
    """The class folders of each of ``splits`` (``""``: the root itself) that exists."""
    tree: Tree = {split: {} for split in splits if (root / split).is_dir()}
    for split, classes in tree.items():
        for folder in sorted((root / split).iterdir()):
            if folder.is_dir() and not folder.name.startswith("."):
                names = sorted(file.name for file in folder.iterdir() if file.name[0] != ".")
                classes[folder.name] = [n for n in names if n.lower().endswith(SUFFIXES)]
    return tree


def list_images(root: Path, tree: Tree, classes: Sequence[str], *, train: str) -> Listing:
    """The images of ``classes``, labeled in their order; those of the split ``train`` first."""
    found = [
        (split, label, "/".join(filter(None, (split, folder, name))))
        for split in sorted(tree, key=lambda split: split != train)
        for label, folder in enumerate(classes)
        for name in tree[split].get(folder, ())
    ]
    splits, labels, paths = (list(column) for column in zip(*found, strict=True))
    return Listing(root, paths, labels, splits.count(train))


def decoded(
    name: str, listing: Listing, size: tuple[int, int], *, channels: int = 3, resize: str = "crop"
) -> tuple[ImageSet, ImageSet]:
    """Training and test images of data set ``name``, mapped from a file; see decode_image."""
    shape = (len(listing.paths), channels, *size)
    check_size(name, shape[0], channels=channels, resolution=max(size))
    with ThreadPoolExecutor(8) as pool:
        hashes = list(pool.map(lambda i: sha256(listing.read(i)).digest(), range(shape[0])))
    about = f"{VERSION} {shape} {resize} {sha256(b''.join(hashes)).hexdigest()}"
    path = cache_folder() / f"{name}-{sha256(about.encode()).hexdigest()[:32]}.pixels"
    try:
        if not _is_intact(path):
            if path.exists():
                warnings.warn(f"{path} is damaged: decoding its images again", stacklevel=2)
            path.parent.mkdir(parents=True, exist_ok=True)
            needed = math.prod(shape) + SPARE_BYTES
            if needed > shutil.disk_usage(path.parent).free:  # known before the work
                raise OSError(f"{needed / 2**30:.1f} GiB are not free")
            pixels = _decode_all(listing, shape, resize)
            write_atomically(path, sha256(pixels).digest(), pixels.data)
        pixels = np.memmap(path, np.uint8, "c", MARK, shape)  # changes stay in memory
    except OSError as error:
        fault = f"decoded images cannot be kept in {path.parent} ({error.strerror or error})"
        hint = "free some space or name another folder in $GSDD_CACHE"
        raise DataError(f"{fault}; {hint}") from None
    whole = ImageSet(torch.from_numpy(pixels), torch.tensor(listing.labels))
    return whole.select(slice(listing.train)), whole.select(slice(listing.train, None))


def decode_image(
    content: bytes, size: tuple[int, int], *, channels: int = 3, resize: str = "crop", source: str
) -> Tensor:
    """Decode one image to uint8 [channels, height, width].

    Args:
        channels: 3 for RGB, 1 for gray; transparency is dropped, 16 bits are scaled to 8.
        resize: bilinear; "crop": to cover the size (height, width), then cropped at the center;
            "squash": both sides, whatever their ratio; "exact": it must have the size.

    Raises:
        DataError: ``source`` is damaged, too large, or of another format or size.
    """
    with open_image(content, source) as image:
        try:
            image = _in_8_bits(image).convert("RGB" if channels == 3 else "L")
            values = np.array(_resized(image, size, resize)).reshape(*size, channels)
        except Exception as error:  # a damaged image fails in any way
            raise DataError(f"{source} cannot be decoded ({error}); replace or remove it") from None
    return torch.from_numpy(values.transpose(2, 0, 1).copy())


def open_image(content: bytes, source: str) -> Image.Image:
    """Pillow's image, its pixels not decoded yet; raises :class:`DataError` where it is none."""
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        pixels = image.width * image.height
    except Image.DecompressionBombError:
        pixels = MAX_PIXELS + 1
    except Exception:  # a damaged header fails in any way
        fault = f"{source} is not an image ({', '.join(FORMATS)}); replace or remove it"
        raise DataError(fault) from None
    if pixels > MAX_PIXELS:
        raise DataError(f"{source} has more than {MAX_PIXELS:,} pixels; make it smaller")
    return image


def _in_8_bits(image: Image.Image) -> Image.Image:
    """A gray image of 16 bits scaled to 8; Pillow itself would clip it to white."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        levels = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((levels * 255 + 32_767) // 65_535).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its levels have no known maximum: save it with 8 or 16 bits")
    return image


def _resized(image: Image.Image, size: tuple[int, int], resize: str) -> Image.Image:
    height, width = size
    if resize == "exact" and image.size != (width, height):
        found = f"it has {image.width}x{image.height} pixels instead of {width}x{height}"
        raise ValueError(f"{found}; choose a resolution")
    if resize == "squash":
        return image.resize((width, height), BILINEAR)
    scale = max(height / image.height, width / image.width)
    covering = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    if covering[0] * covering[1] > MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels are too unequal to crop")
    image = image.resize(covering, BILINEAR) if image.size != covering else image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _is_intact(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        return file.read(MARK) == file_digest(file, "sha256").digest()
    return False


def _decode_all(listing: Listing, shape: tuple, resize: str) -> np.ndarray:
    pixels = np.empty(shape, np.uint8)

    def decode(position: int) -> None:
        how = {"channels": shape[1], "resize": resize, "source": listing.paths[position]}
        pixels[position] = decode_image(listing.read(position), shape[2:], **how)

    workers = min(8, os.cpu_count() or 1)  # Pillow releases the GIL
    with ThreadPoolExecutor(workers) as pool, Progress(shape[0], "decode images") as progress:
        for _ in pool.map(decode, range(shape[0])):
            progress.update()
    return pixels
