"""Writing a file so that a reader sees the old one or the new one, never half of it."""

import contextlib
import os
import secrets
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``; missing folders are made, an existing file is replaced.

    The bytes go to a temporary name in the same folder, are flushed to the disk, and only then
    take the final name. When anything fails (a full disk, ctrl-C) the old file stays as it was,
    the temporary one is removed, and the error (an :class:`OSError`) goes to the caller.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
