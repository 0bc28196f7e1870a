"""Images are decoded once, into files that later runs verify and map into memory.

A file is named by a hash of the content of the encoded images, wherever they are stored, and of how
they are decoded. It begins with the SHA-256 of the pixels that follow.
"""

import contextlib
import fcntl
import hashlib
import io
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gsdd_lib.core.errors import DataError
from gsdd_lib.core.files import cache_folder
from gsdd_lib.core.progress import Progress
from gsdd_lib.data.sources import FORMATS, Listing

VERSION = 2  # of how pixels are made: a change decodes everything again
MAX_PIXELS = 2**26  # of one encoded image: 200 MB as RGB
MARK = 32  # bytes of a SHA-256
SPARE_BYTES = 2**26
BATCH = 32  # images decoded at a time


def decoded(
    name: str, listing: Listing, size: tuple[int, int], *, channels: int = 3, resize: str = "crop"
) -> Tensor:
    """The pixels of all listed images, decoded now or taken from the cache.

    Args:
        name: of the data set, for messages and the file's name.
        size: (height, width).
        channels: 3, or 1 for gray.
        resize: see :func:`decode_image`.

    Returns:
        uint8 [N, channels, height, width], mapped from a file.

    Raises:
        DataError: an image cannot be decoded, and which; or the disk is full.
    """
    shape = (len(listing.entries), channels, *size)
    about = f"{VERSION} {shape} {resize} {listing.key}"
    path = cache_folder() / f"{name}-{hashlib.sha256(about.encode()).hexdigest()[:32]}.pixels"
    try:
        if not _is_intact(path, shape):
            _decode_all(path, listing, shape, resize)
        pixels = np.memmap(path, np.uint8, "c", MARK, shape)  # changes stay in memory
    except OSError as error:
        raise DataError(
            f"decoded images cannot be kept in {path.parent} ({error.strerror or error});"
            " free some space or name another folder in $GSDD_CACHE"
        ) from None
    return torch.from_numpy(pixels)


def headers(listing: Listing) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """(path, Pillow's mode, (width, height)) of every image; pixels are not decoded."""
    for position, read in listing.read():
        path = listing.entries[position].path
        with _opened(read(), path) as image:
            yield path, image.mode, image.size


def decode_image(
    content: bytes, size: tuple[int, int], *, channels: int = 3, resize: str = "crop", source: str
) -> Tensor:
    """Decode one image.

    Args:
        content: the encoded image.
        size: (height, width).
        channels: 3 for RGB, 1 for gray; transparency is dropped, 16 bits are scaled to 8.
        resize: ``"crop"``: resized to cover the size, then cropped at the center; ``"squash"``:
            both sides resized, whatever their ratio; ``"exact"``: the image must have the size
            already. Bilinear, anti-aliased.
        source: name of the image in messages.

    Returns:
        uint8 [channels, height, width].

    Raises:
        DataError: it is damaged, too large, or of another format or size.
    """
    with _opened(content, source) as image:
        try:
            image = _in_8_bits(image).convert("RGB" if channels == 3 else "L")
            values = np.array(_resized(image, size, resize)).reshape(*size, channels)
        except Exception as error:  # a damaged image fails in any way
            raise DataError(f"{source} cannot be decoded ({error}); replace or remove it") from None
    return torch.from_numpy(values.transpose(2, 0, 1).copy())


def _opened(content: bytes, source: str) -> Image.Image:
    kinds = sorted(set(FORMATS.values()))
    try:
        image = Image.open(io.BytesIO(content), formats=kinds)
        pixels = image.width * image.height
    except Image.DecompressionBombError:
        pixels = MAX_PIXELS + 1
    except Exception:  # a damaged header fails in any way
        fault = f"{source} is not an image ({', '.join(kinds)}); replace or remove it"
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
        raise ValueError(f"it has {image.width}x{image.height} pixels instead of {width}x{height}")
    if resize == "squash":
        return image.resize((width, height), Image.Resampling.BILINEAR)
    scale = max(height / image.height, width / image.width)
    covering = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    if covering[0] * covering[1] > MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels are too unequal to crop")
    if image.size != covering:
        image = image.resize(covering, Image.Resampling.BILINEAR)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _is_intact(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether ``path`` exists and holds what was written, bit for bit."""
    if not path.is_file() or path.stat().st_size != MARK + math.prod(shape):
        return False
    with open(path, "rb") as file:
        return file.read(MARK) == hashlib.file_digest(file, "sha256").digest()


def _decode_all(path: Path, listing: Listing, shape: tuple[int, ...], resize: str) -> None:
    """Decode everything into ``path``, unless another process has just done so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / ".lock", "a") as lock:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)  # one process decodes at a time: these are left over
            for left in path.parent.glob(".decoding-*.tmp"):
                warnings.warn(f"removed {left}, left by a decoding that was killed", stacklevel=2)
                left.unlink()
        if _is_intact(path, shape):
            return
        if path.exists():
            warnings.warn(f"{path} is damaged: decoding its images again", stacklevel=2)
        needed, free = math.prod(shape), shutil.disk_usage(path.parent).free
        if needed + SPARE_BYTES > free:
            raise DataError(
                f"the decoded images need {needed / 2**30:.1f} GiB in {path.parent}, which has"
                f" {free / 2**30:.1f} GiB free; name another folder in $GSDD_CACHE"
            )
        temporary = path.parent / f".decoding-{path.stem}.tmp"
        try:
            _write(temporary, listing, shape, resize)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _write(path: Path, listing: Listing, shape: tuple[int, ...], resize: str) -> None:
    # Ordinary writes: on a full disk they fail, where a mapped file would end the process.
    with open(path, "w+b") as file, Progress(shape[0], "decode images") as progress:
        for position, image in _decoded(listing, shape, resize):
            file.seek(MARK + position * image.numel())
            file.write(image.numpy())
            progress.update()
        if progress.done != shape[0]:
            raise DataError("the data set was changed while it was decoded; load it again")
        file.seek(MARK)
        mark = hashlib.file_digest(file, "sha256").digest()
        file.seek(0)
        file.write(mark)
        file.flush()
        os.fsync(file.fileno())


def _decoded(listing: Listing, shape: tuple[int, ...], resize: str) -> Iterator[tuple[int, Tensor]]:
    """(position, image) of all listed images, on several cores: Pillow releases the GIL."""

    def decode(position: int, read: Callable[[], bytes]) -> tuple[int, Tensor]:
        about = {"channels": shape[1], "resize": resize, "source": listing.entries[position].path}
        return position, decode_image(read(), shape[2:], **about)

    items = listing.read()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        while batch := list(islice(items, BATCH)):
            yield from pool.map(decode, *zip(*batch, strict=True))
