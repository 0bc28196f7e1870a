"""Expert trajectories: networks trained on the real data, their parameters after every epoch.

One safetensors file per expert: ``epoch_000`` (before training), ``epoch_001``, ... each float32
[P] in the order of ``network.named_parameters()``, and in the metadata one JSON text that says how
it was trained and how well it does. A file is written when its expert is done, in one move, so a
killed run goes on with the first expert that has none. Matching reads the two snapshots it needs
and nothing else.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from gsdd_lib.config import ExpertConfig
from gsdd_lib.core.errors import GsddError
from gsdd_lib.core.files import write_atomically
from gsdd_lib.core.progress import Progress
from gsdd_lib.core.rng import generator
from gsdd_lib.data import ImageData
from gsdd_lib.networks import flatten, network_for
from gsdd_lib.training.train import accuracy, train_epoch

FORMAT = "gsdd-expert"
VERSION = 1
HEADER_BYTES = 4096  # about what names and metadata take in a file


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


@dataclass(frozen=True)
class ExpertPlan:
    """What training the experts will write, known before it starts."""

    files: int
    snapshots: int  # per file
    parameters: int
    steps: int  # SGD steps in all

    @property
    def total_bytes(self) -> int:
        return self.files * (4 * self.parameters * self.snapshots + HEADER_BYTES)

    def __str__(self) -> str:
        return (
            f"{self.files} expert{'s' * (self.files != 1)} x {self.snapshots} snapshots x "
            f"{self.parameters:,} parameters: "
            f"{self.total_bytes / 2**20:,.1f} MiB on disk, {self.steps:,} SGD steps"
        )


def plan_experts(data: ImageData, config: ExpertConfig) -> ExpertPlan:
    """Size and work of :func:`train_experts`, within a few kilobytes per file."""
    weights = generator(0, "expert", "plan")
    network = network_for(data, config.expert_network, config.expert_width, generator=weights)
    steps = -(-len(data.train) // config.expert_batch) * config.train_epochs * config.num_experts
    parameters = sum(value.numel() for value in network.parameters())
    return ExpertPlan(config.num_experts, config.train_epochs + 1, parameters, steps)


def train_experts(
    data: ImageData, config: ExpertConfig, folder: Path | str, *, seed: int
) -> Iterator[dict[str, float | int]]:
    """Train what ``folder`` does not have yet; yields a row per expert and epoch, old ones too.

    A row holds expert, epoch, train_loss (0 before training: none) and accuracy in percent on the
    validation split. Expert i draws from generators of its own, so the files do not depend on
    where a run was cut or on how many experts there are.

    Raises:
        ExpertError: a file in ``folder`` is damaged or was trained with other settings.
    """
    plan = plan_experts(data, config)
    with Progress(config.num_experts * config.train_epochs, "experts") as progress:
        for index in range(config.num_experts):
            path = expert_path(folder, index)
            settings = _settings(data, config, seed, index)
            if path.exists():
                about = read_about(path)
                check_settings(path, about["settings"], settings)
                progress.update(config.train_epochs)
            else:
                snapshots, rows = _train_expert(data, config, seed, index, progress)
                about = {"settings": settings, "parameters": plan.parameters, "rows": rows}
                write_expert(path, snapshots, about)
            yield from about["rows"]


def _settings(data: ImageData, config: ExpertConfig, seed: int, index: int) -> dict[str, Any]:
    """All that the parameters depend on; the number of experts is not among it."""
    return {
        **config.model_dump(exclude={"num_experts"}),
        "dataset": data.name,
        "images": [data.channels, *data.resolution],
        "classes": data.num_classes,
        "train_images": len(data.train),
        "mean": list(data.mean),
        "std": list(data.std),
        "seed": seed,
        "index": index,
    }


def _train_expert(
    data: ImageData, config: ExpertConfig, seed: int, index: int, progress: Progress
) -> tuple[list[Tensor], list[dict[str, float | int]]]:
    """Parameters after every epoch, the untrained ones first, and a row for each."""
    weights = generator(seed, "expert", index, "weights")
    network = network_for(data, config.expert_network, config.expert_width, generator=weights)
    optimizer = torch.optim.SGD(network.parameters(), lr=config.expert_lr)
    draw = generator(seed, "expert", index, "training")
    snapshots, rows, loss = [], [], 0.0
    for epoch in range(config.train_epochs + 1):
        if epoch:
            loss = train_epoch(
                network,
                optimizer,
                data.train.images,
                data.train.labels,
                batch=config.expert_batch,
                dsa=config.expert_dsa,
                generator=draw,
                normalize=data.normalize,
            )
        held = data.validation
        percent = accuracy(network, held.images, held.labels, normalize=data.normalize)
        snapshots.append(flatten(dict(network.named_parameters())).cpu())
        if not torch.isfinite(snapshots[-1]).all():
            raise ExpertError(
                f"Expert {index} is not a number after epoch {epoch}; lower its learning rate "
                f"(expert_lr={config.expert_lr}). The experts before it are kept."
            )
        rows.append({"expert": index, "epoch": epoch, "train_loss": loss, "accuracy": percent})
        if epoch:
            progress.update(expert=index, accuracy=percent)
    return snapshots, rows
