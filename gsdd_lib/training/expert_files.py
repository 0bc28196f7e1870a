"""The files of expert trajectories: what they say of themselves, and snapshots read on demand.

One safetensors file per expert: ``epoch_000`` (before training), ``epoch_001``, ... each float32
[P] in the order of ``network.named_parameters()``, and in the metadata one JSON text that says how
it was trained and how well it does. A file is written when its expert is done, in one move, so a
killed run goes on with the first expert that has none. Matching reads the two snapshots it needs
and nothing else.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from gsdd_lib.core.errors import GsddError
from gsdd_lib.core.files import write_atomically
from gsdd_lib.data import ImageData

FORMAT = "gsdd-expert"
VERSION = 1


class ExpertError(GsddError, RuntimeError):
    """Experts are missing, damaged, or of other settings; the message says what to do."""


def expert_path(folder: Path | str, index: int) -> Path:
    """The file of one expert."""
    return Path(folder) / f"expert_{index:03d}.safetensors"


class Experts:
    """The experts of a folder, for matching: what they are, and snapshots read when asked for."""

    def __init__(self, folder: Path | str) -> None:
        self.paths = sorted(Path(folder).glob("expert_*.safetensors"))
        if not self.paths:
            raise ExpertError(
                f"There are no experts in '{Path(folder)}'; train them by train_experts (notebook "
                "03) or name another folder."
            )
        self.about = [read_about(path) for path in self.paths]
        for path, about in zip(self.paths, self.about, strict=True):
            common = {**about["settings"], "index": 0}
            check_settings(path, common, {**self.about[0]["settings"], "index": 0})

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def epochs(self) -> int:
        """Epochs of training; there is one snapshot more."""
        return self.about[0]["settings"]["train_epochs"]

    @property
    def fingerprint(self) -> str:
        """Says whether two folders hold the same experts: a hash of all they say of themselves."""
        return hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()

    def snapshots(self, index: int, *epochs: int) -> list[Tensor]:
        """Parameters [P] of expert ``index`` after each of ``epochs``; 0 is before training."""
        path = self.paths[index]
        try:
            with safe_open(path, "pt") as file:
                return [file.get_tensor(_key(epoch)) for epoch in epochs]
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error

    def check(self, data: ImageData, network: str, width: int, epochs: int) -> None:
        """Raise :class:`ExpertError` unless these experts fit the matching that is to be done."""
        settings = self.about[0]["settings"]
        wanted = {
            "dataset": data.name,
            "expert_network": network,
            "expert_width": width,
            "images": [data.channels, *data.resolution],
            "classes": data.num_classes,
        }
        check_settings(self.paths[0], {key: settings[key] for key in wanted}, wanted)
        if self.epochs < epochs:
            raise ExpertError(
                f"The experts trained for {self.epochs} epochs, the matching needs {epochs} "
                "(max_start_epoch - 1 + expert_epochs); lower these or train longer."
            )


def distances(experts: Experts, expert_epochs: int) -> list[dict[str, float | int]]:
    """How far each expert gets in ``expert_epochs`` epochs: the root of what divides the TM loss.

    Rows of expert, epoch (where the matched epochs start) and distance ``||start - target||``.
    """
    rows = []
    for index in range(len(experts)):
        for epoch in range(experts.epochs - expert_epochs + 1):
            start, target = experts.snapshots(index, epoch, epoch + expert_epochs)
            distance = (start - target).norm().item()
            rows.append({"expert": index, "epoch": epoch, "distance": distance})
    return rows


def read_about(path: Path) -> dict[str, Any]:
    """What a file says of its expert; raises :class:`ExpertError` where it is no whole file."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
            if (about.get("format"), about.get("version")) != (FORMAT, VERSION):
                raise ExpertError(f"{path.name} is no expert file of version {VERSION}; remove it.")
            expected = {_key(epoch) for epoch in range(about["settings"]["train_epochs"] + 1)}
            if set(file.keys()) != expected:
                raise _damaged(path, "snapshots are missing")
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _damaged(path, error) from error
    return about


def _damaged(path: Path, reason: object) -> ExpertError:
    return ExpertError(
        f"The expert file {path.name} is damaged or cut off ({reason}); delete it and train again, "
        "the other experts are kept."
    )


def _key(epoch: int) -> str:
    return f"epoch_{epoch:03d}"


def write_expert(path: Path, snapshots: list[Tensor], about: dict[str, Any]) -> None:
    """One expert: parameters [P] after every epoch, and what is said of them."""
    tensors = {_key(epoch): params for epoch, params in enumerate(snapshots)}
    text = json.dumps({"format": FORMAT, "version": VERSION, **about})
    write_atomically(path, serialize(tensors, {"about": text}))  # one text: equal bytes


def check_settings(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise :class:`ExpertError`, naming what differs, unless ``found`` has all of ``wanted``."""
    other = [key for key in wanted if found.get(key) != wanted[key]]
    if other:
        listed = "; ".join(f"{key} {found.get(key)}, wanted {wanted[key]}" for key in other)
        raise ExpertError(
            f"The expert file {path.name} has other settings ({listed}); choose another folder, or "
            "delete it and train again."
        )
