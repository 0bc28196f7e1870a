"""IDX files, the format of MNIST and its kin, read with every check the format allows.

Layout: two zero bytes, a type (8: unsigned byte), the number of dimensions, each dimension as a
big-endian 32-bit integer, then the values, row by row.
"""

import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gsdd_lib.data.dataset import DataError

UNSIGNED_BYTE = 8
GZIP = 31  # zlib's window bits for: gzip header and checksum expected


def read_content(path: Path, max_bytes: int) -> bytes:
    """The content of ``path``, inflated if its name ends in ``.gz``.

    Raises :class:`DataError` when it cannot be read, is damaged, or holds more than ``max_bytes``;
    more than that is never read or inflated, whatever the file claims.
    """
    try:
        with open(path, "rb") as file:
            # gzip lengthens what it cannot compress by less than this
            content = file.read(max_bytes + max_bytes // 256 + 1024)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from None
    if path.suffix == ".gz":
        return inflate(content, max_bytes, source=str(path))
    if len(content) > max_bytes:
        raise DataError(_too_long(str(path), max_bytes))
    return content


def inflate(content: bytes, max_bytes: int, *, source: str) -> bytes:
    """Decompress gzip data; ``source`` is its name in the :class:`DataError` it may raise."""
    stream = zlib.decompressobj(GZIP)
    try:
        inflated = stream.decompress(content, max_bytes + 1)
    except zlib.error as error:
        raise DataError(f"{source} is not a sound gzip file ({error})") from None
    if len(inflated) > max_bytes:
        raise DataError(_too_long(source, max_bytes))
    if not stream.eof:
        raise DataError(
            f"{source} is truncated: its compressed data breaks off"
            f" after {len(inflated):,} bytes of content"
        )
    return inflated


def parse_idx(content: bytes, *, source: str) -> Tensor:
    """The uint8 tensor in ``content``, with the dimensions its header names.

    Raises :class:`DataError` (with ``source`` as the file's name) on any other content.

    >>> parse_idx(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]), source="labels")
    tensor([7, 9], dtype=torch.uint8)
    """
    if len(content) < 4 or content[:3] != bytes([0, 0, UNSIGNED_BYTE]):
        raise DataError(
            f"{source} is not an IDX file of bytes: it begins with"
            f" '{content[:4].hex(' ')}', expected '00 00 08' and the number of dimensions"
        )
    start = 4 + 4 * content[3]
    if start == 4 or len(content) < start:
        raise DataError(f"{source} is truncated: its header of {start} bytes is not complete")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    expected = start + math.prod(shape)
    if len(content) != expected:
        fault = "truncated" if len(content) < expected else "too long"
        raise DataError(
            f"{source} is {fault}: {len(content):,} bytes, expected {expected:,}"
            f" for the dimensions {list(shape)} in its header"
        )
    values = np.frombuffer(content, np.uint8, offset=start)
    return torch.from_numpy(values.copy()).reshape(shape)  # a copy: bytes are read-only


def _too_long(source: str, max_bytes: int) -> str:
    return f"{source} is too long: more than the {max_bytes:,} bytes expected"
