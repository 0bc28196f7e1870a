"""The file of one expert: written whole, described, and read back only if no bit has changed.

A safetensors file of ``epoch_000`` (before training), ``epoch_001``, ... each float32 [P] in the
order of ``network.named_parameters()``, and a description: how the expert was trained, on which
data, and its accuracy after every epoch. Version 1 had no checksum and knew less of its data.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gsdd_lib.core.errors import GsddError
from gsdd_lib.core.files import DamagedFileError, read_tensors, write_tensors

FORMAT, VERSION = "gsdd-expert", 2


class ExpertError(GsddError, RuntimeError):
    """Experts are missing, damaged, or of other settings; the message says what to do."""


def expert_path(folder: Path | str, index: int) -> Path:
    """The file of one expert."""
    return Path(folder) / f"expert_{index:03d}.safetensors"


def expert_paths(folder: Path) -> list[Path]:
    """The files of all experts in a folder, in their order."""
    return sorted(folder.glob("expert_*.safetensors"))


def write_expert(path: Path, snapshots: Sequence[Tensor], about: Mapping[str, Any]) -> None:
    """Write parameters [P] after every epoch, and what is said of them, atomically."""
    tensors = {_key(epoch): params for epoch, params in enumerate(snapshots)}
    write_tensors(path, tensors, {"format": FORMAT, "version": VERSION, **about})


def read_snapshots(path: Path, epochs: Sequence[int]) -> list[Tensor]:
    """The parameters [P] after each of ``epochs``; nothing else is read."""
    try:
        with safe_open(path, "pt") as file:
            return [file.get_tensor(_key(epoch)) for epoch in epochs]
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from None


def read_about(path: Path) -> dict[str, Any]:
    """The description in an expert's file, every bit of the file checked once per process.

    Raises:
        ExpertError: the file cannot be read, is damaged, or is no expert's.
    """
    try:
        with open(path, "rb"):
            status = path.stat()
    except OSError as error:
        raise ExpertError(
            f"The expert file '{path}' cannot be read ({error.strerror}); change its permissions."
        ) from None
    return _checked(path.resolve(), status.st_size, status.st_mtime_ns)


@cache
def _checked(path: Path, size: int, mtime_ns: int) -> dict[str, Any]:
    try:
        tensors, about = read_tensors(path, FORMAT)
    except DamagedFileError as error:
        tensors, about = _read_version_1(path, error)
    if about.get("version") not in (1, VERSION):
        raise ExpertError(f"{path.name} was written by a newer release; install that one.")
    epochs = about["settings"]["train_epochs"]
    if len(tensors) != epochs + 1 or set(tensors) != {_key(epoch) for epoch in range(epochs + 1)}:
        raise _damaged(path, "snapshots are missing")
    return about


def _read_version_1(path: Path, reason: DamagedFileError) -> tuple[dict[str, Tensor], dict]:
    """A file without a checksum: its tensors must at least be whole, alike and finite."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        alike = {(value.dtype, *value.shape) for value in tensors.values()}
        sound = alike == {(torch.float32, about["parameters"])}
        sound = sound and about["format"] == FORMAT and about["version"] == 1
        sound = sound and all(torch.isfinite(value).all() for value in tensors.values())
        sound = sound and isinstance(about["settings"]["train_epochs"], int)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError):
        raise _damaged(path, reason) from None
    if not sound:
        raise _damaged(path, "it contradicts itself")
    return tensors, about


def check_settings(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise :class:`ExpertError` unless ``found`` has all of ``wanted`` that its version knows."""
    other = [key for key in wanted if found.get(key, wanted[key]) != wanted[key]]
    if not other:
        return
    listed = "; ".join(f"{key} {found[key]}, wanted {wanted[key]}" for key in other)
    seen = "these experts may have seen images that are held out here, " * ("held_out" in other)
    raise ExpertError(
        f"The expert file {path.name} has other settings ({listed}); {seen}train experts for this "
        "run or name another folder."
    )


def _damaged(path: Path, reason: object) -> ExpertError:
    return ExpertError(
        f"The expert file '{path}' is damaged or not an expert ({reason}); move it away and the "
        "same call trains it again, the other experts are kept."
    )


def _key(epoch: int) -> str:
    return f"epoch_{epoch:03d}"
