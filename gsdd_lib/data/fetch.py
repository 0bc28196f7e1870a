"""Fetching one file: from the first address that answers with the right content."""

import http.client
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm.auto import tqdm

from gsdd_lib.core.files import write_atomically
from gsdd_lib.data.dataset import DataError

TIMEOUT_S = 30
PIECE_BYTES = 2**16


def fetch(
    addresses: Sequence[str],
    path: Path,
    *,
    check: Callable[[bytes], object],
    max_bytes: int,
    progress: bool = True,
) -> str:
    """Write to ``path`` what one of ``addresses`` holds; returns that address.

    check: called with the bytes, raises :class:`DataError` on wrong ones. It is what is trusted,
        not the address, and nothing is written before it has passed.
    max_bytes: no more than this is read

    Raises :class:`DataError` with what each address answered, or that ``path`` cannot be written.
    """
    faults = []
    for address in addresses:
        try:
            content = download(address, max_bytes=max_bytes, progress=progress)
            check(content)
        except (OSError, http.client.HTTPException, DataError) as error:
            reason = getattr(error, "reason", "") or error or type(error).__name__
            faults.append(f"{address}: {reason}")
            continue
        try:
            write_atomically(path, content)
        except OSError as error:
            raise DataError(f"{path} cannot be written ({error.strerror or error})") from None
        return address
    raise DataError(f"{path.name} could not be fetched ({'; '.join(faults)})")


def download(address: str, *, max_bytes: int, progress: bool = True) -> bytes:
    """The bytes at ``address``, at most ``max_bytes`` of them.

    Raises an :class:`OSError`, an ``http.client.HTTPException`` or a :class:`DataError`.
    """
    with urllib.request.urlopen(address, timeout=TIMEOUT_S) as response:
        length = response.headers.get("Content-Length", "")
        expected = int(length) if length.isdecimal() else None
        content = bytearray()
        name = address.rsplit("/", 1)[-1]
        shown = {"desc": name, "unit": "B", "unit_scale": True, "disable": not progress}
        with tqdm(total=expected, **shown) as bar:
            while piece := response.read(PIECE_BYTES):
                content += piece
                bar.update(len(piece))
                if len(content) > max_bytes:
                    raise DataError(f"more than the {max_bytes:,} bytes expected")
    if expected is not None and len(content) != expected:
        raise DataError(f"the connection broke after {len(content):,} of {expected:,} bytes")
    return bytes(content)
