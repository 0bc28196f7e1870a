"""Where data sets are found, and the bytes of their files: bounded, and as they were published."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gsdd_lib.core.errors import DataError
from gsdd_lib.core.files import project_root


def roots(folder: str = "") -> list[Path]:
    """``folder`` if given, from the project root, else $GSDD_DATA and ``data``: where to look."""
    given = [folder] if folder else [os.environ.get("GSDD_DATA", ""), "data"]
    try:
        return [project_root() / Path(place).expanduser() for place in given if place]
    except RuntimeError as error:  # "~name" where there is no such user
        raise DataError(f"{given[0]} is not a folder ({error}); name another") from None


def first_complete(places: Mapping[Any, list[Path]]) -> Any:
    """The first place all of whose files exist; failing that, any, to say later what it lacks."""
    for enough in (all, any):
        for place, files in places.items():
            if enough(file.exists() for file in files):
                return place
    folders = dict.fromkeys(str(file.parent) for files in places.values() for file in files)
    raise DataError(f"its files are in none of {', '.join(folders)}")


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """The content of a file. Raises :class:`DataError` where it cannot be read or is larger."""
    try:
        with open(path, "rb") as file:
            if (size := os.fstat(file.fileno()).st_size) > max_bytes:
                raise DataError(f"{path} has {size:,} bytes; at most {max_bytes:,} are read")
            return file.read()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from None


def verified(content: bytes, published: str, source: str | Path, *, algorithm: str) -> bytes:
    """``content``, if its hash is the published one; else raises :class:`DataError`."""
    found = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()
    if found != published:
        fault = f"its {algorithm.upper()} is {found[:12]}..., not {published[:12]}..."
        raise DataError(f"{source} was altered or is not whole: {fault}")
    return content
