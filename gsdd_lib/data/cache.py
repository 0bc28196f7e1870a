"""Encoded images decoded once, into a uint8 file that later runs map into memory.

A file lies in the cache folder beside a small JSON text that describes it and is written last: a
decoding that was interrupted left no such text and is done again.
"""

import hashlib
import io
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gsdd_lib.core.files import cache_folder, write_atomically
from gsdd_lib.core.progress import Progress
from gsdd_lib.data.dataset import DataError, ImageSet, check_size
from gsdd_lib.data.sources import Listing

VERSION = 1  # of how pixels are made: a change makes all files anew
SPARE_BYTES = 2**26
BATCH = 64  # encoded images held at once


def decoded(name: str, listing: Listing, size: tuple[int, int], *, channels: int = 3) -> Tensor:
    """uint8 [N, channels, height, width] of all images listed, mapped from a file.

    size: (height, width); an image is resized to cover it, then cropped at its center.
    channels: 3 or 1 (gray).

    Raises :class:`DataError`: an image that cannot be decoded, by name; or no space on the disk.
    """
    shape = (len(listing.entries), channels, *size)
    path = cache_folder() / f"{name}-{_key(listing, shape)}.uint8"
    about = path.with_suffix(".json")
    if not (_described(about) == list(shape) and path.is_file()):
        check_size(name, shape[0], channels=channels, resolution=max(size))
        try:
            _write(path, listing, shape, name)
            write_atomically(about, json.dumps({"shape": shape}).encode())
        except OSError as error:
            raise DataError(
                f"decoded images cannot be kept in {path.parent} ({error.strerror or error});"
                " name another folder in $GSDD_CACHE"
            ) from None
    return _mapped(path, shape)


def split_decoded(images: Tensor, listing: Listing) -> tuple[ImageSet, ImageSet]:
    """Training and test images of what :func:`decoded` gave; views, nothing is copied."""
    labels = torch.tensor([entry.label for entry in listing.entries])
    count = sum(entry.train for entry in listing.entries)
    return ImageSet(images[:count], labels[:count]), ImageSet(images[count:], labels[count:])


def headers(listing: Listing) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """(path, Pillow's mode, (width, height)) of every image; pixels are not decoded."""
    for position, content in listing.read():
        path = listing.entries[position].path
        with _opened(content, path) as image:
            yield path, image.mode, image.size


def decode_image(content: bytes, size: tuple[int, int], *, channels: int, source: str) -> Tensor:
    """uint8 [channels, height, width]: shorter side resized (bilinear, anti-aliased), center crop.

    Colors are RGB without transparency, or gray for one channel. Raises :class:`DataError`, with
    ``source`` as the image's name.
    """
    try:
        with _opened(content, source) as image:
            image = _covering(image.convert("RGB" if channels == 3 else "L"), size)
            values = np.asarray(image).reshape(*size, channels)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{source} cannot be decoded ({error}); replace or remove it") from None
    return torch.from_numpy(values.transpose(2, 0, 1).copy())


def _covering(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = size
    scale = max(height / image.height, width / image.width)
    resized = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    if image.size != resized:
        image = image.resize(resized, Image.Resampling.BILINEAR)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _opened(content: bytes, source: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise DataError(f"{source} is not an image; replace or remove it") from None


def _key(listing: Listing, shape: tuple[int, ...]) -> str:
    return hashlib.sha256(f"{VERSION} {shape} {listing.key}".encode()).hexdigest()[:32]


def _described(about: Path) -> list[int] | None:
    try:
        return json.loads(about.read_bytes())["shape"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, listing: Listing, shape: tuple[int, ...], name: str) -> None:
    """Decode everything into ``path``, under another name until it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    needed, free = int(np.prod(shape)), shutil.disk_usage(path.parent).free
    if needed + SPARE_BYTES > free:
        raise DataError(
            f"'{name}' decoded needs {needed / 2**30:.1f} GiB in {path.parent}, which has"
            f" {free / 2**30:.1f} GiB free; name another folder in $GSDD_CACHE"
        )
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        pixels = np.memmap(temporary, np.uint8, "w+", shape=shape)
        with Progress(shape[0], f"decode {name}") as progress:
            for position, image in _decoded(listing, shape):
                pixels[position] = image.numpy()
                progress.update()
        if progress.done != shape[0]:
            raise DataError(f"'{name}' changed while it was decoded; do it again")
        pixels.flush()
        del pixels
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _decoded(listing: Listing, shape: tuple[int, ...]) -> Iterator[tuple[int, Tensor]]:
    """(position, image) of everything listed, on all cores: Pillow lets other threads run."""

    def decode(item: tuple[int, bytes]) -> tuple[int, Tensor]:
        position, content = item
        source = listing.entries[position].path
        return position, decode_image(content, shape[2:], channels=shape[1], source=source)

    items = listing.read()
    with ThreadPoolExecutor() as pool:
        while batch := list(islice(items, BATCH)):
            yield from pool.map(decode, batch)


def _mapped(path: Path, shape: tuple[int, ...]) -> Tensor:
    size = int(np.prod(shape))
    if path.stat().st_size != size:
        raise DataError(f"{path} is not whole; remove it, it will be made again")
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).view(shape)
