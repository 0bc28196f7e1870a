"""Files that are whole or refused: written atomically, read back only if no bit has changed."""

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gsdd_lib.core.errors import GsddError

METADATA_KEY = "gsdd"  # one key: safetensors writes several in a random order


class FolderInUseError(GsddError, RuntimeError):
    """Another process is at work in a folder; the message names it."""


class DamagedFileError(GsddError, ValueError):
    """A file is missing, cut off, altered, or of another kind; the message is the bare reason."""


def project_root() -> Path:
    """The nearest folder upwards with ``pyproject.toml``; outside any, the working directory."""
    here = Path.cwd()
    return next((up for up in (here, *here.parents) if (up / "pyproject.toml").is_file()), here)


def cache_folder() -> Path:
    """$GSDD_CACHE, else gsdd in the user's cache folder. Nothing in it is needed: all is remade."""
    if own := os.environ.get("GSDD_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gsdd"


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Write ``parts`` to ``path``, or leave what was there; missing folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk says which file it could not hold
        raise


@contextlib.contextmanager
def lock_folder(folder: Path, name: str = ".lock") -> Iterator[None]:
    """Keep other processes out of ``folder``, made if missing, or raise FolderInUseError.

    ``name``: of the lock file; a program that starts another that locks needs one of its own.
    """
    path = Path(folder) / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115 (closed below, where errors mean something else)
    except OSError as error:
        why = f"cannot be written to ({error.strerror}); choose another"
        raise FolderInUseError(f"The folder '{path.parent}' {why}.") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released whenever the process ends
        except BlockingIOError:
            file.seek(0)
            busy = f"Process {file.read().strip() or 'unknown'} is at work in '{path.parent}'"
            hint = "wait for it to end, stop it, or choose another folder."
            raise FolderInUseError(f"{busy}; {hint}") from None
        except OSError:  # a file system without locks
            pass
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def write_tensors(path: Path, tensors: Mapping[str, Any], about: Mapping[str, Any]) -> int:
    """Write a safetensors file with a checksum; returns its size in bytes.

    ``about``: anything JSON can hold, with ``format`` and ``version``.
    """
    content = _serialized(tensors, about)
    write_atomically(path, content)
    return len(content)


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and ``about`` of a file of :func:`write_tensors`, whose ``format`` is ``kind``.

    Where it is not, or a bit has changed, :class:`DamagedFileError` says the bare reason.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        content = Path(path).read_bytes()
        header = int.from_bytes(content[:8], "little")
        text = json.loads(content[8 : 8 + header])["__metadata__"][METADATA_KEY]
        about, tensors = json.loads(text), load(content)
        del about["checksum"]
    except OSError as error:
        raise DamagedFileError(error.strerror or str(error)) from None
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamagedFileError("it is cut off, altered, or of another kind") from None
    if about.get("format") != kind:
        raise DamagedFileError(f"it is not a {kind} file")
    if _serialized(tensors, about) != content:
        raise DamagedFileError("its checksum does not fit its content")
    return tensors, about


def checksum(tensors: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """SHA-256 of names, types, shapes and every byte of ``tensors``, and of ``about`` as JSON."""
    import torch

    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()


def seal(content: bytes) -> bytes:
    """``content`` with its SHA-256 in front, for a file that has no metadata of its own."""
    return hashlib.sha256(content).digest() + content


def unseal(content: bytes) -> bytes:
    """Undo :func:`seal`; a changed bit raises :class:`DamagedFileError`."""
    if len(content) < 32 or seal(content[32:]) != content:
        raise DamagedFileError("it is cut off or altered")
    return content[32:]


def _serialized(tensors: Mapping[str, Any], about: Mapping[str, Any]) -> bytes:
    from safetensors.torch import save

    text = json.dumps({**about, "checksum": checksum(tensors, about)}, sort_keys=True)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(plain, {METADATA_KEY: text})
