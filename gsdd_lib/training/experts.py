"""Expert trajectories: networks trained on the real data, their parameters after every epoch.

A file (``expert_files``) is written when its expert is done, so that a run that was stopped goes on
with the first expert that is missing. Experts of other settings have folders of their own; nothing
here removes or replaces an expert.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gsdd_lib.config import ExpertConfig
from gsdd_lib.core.files import checksum
from gsdd_lib.core.progress import Progress
from gsdd_lib.core.rng import generator
from gsdd_lib.data import ImageData
from gsdd_lib.data.normalization import ChannelNormalization
from gsdd_lib.networks import flatten, network_for
from gsdd_lib.training.expert_files import (
    ExpertError,
    check_settings,
    expert_path,
    expert_paths,
    read_about,
    read_snapshots,
    write_expert,
)
from gsdd_lib.training.train import accuracy, train_epoch

Row = dict[str, float | int]


class Experts:
    """The experts of a folder, for matching: what they are, and snapshots read when asked for.

    Args:
        folder: of :func:`train_experts`, or the folder inside it of one of several settings
            (:func:`settings_folder`).

    Raises:
        ExpertError: there are none, or of several settings, or a file is damaged.
    """

    def __init__(self, folder: Path | str) -> None:
        folder = Path(folder)
        found = {path.parent for path in folder.glob("*/expert_*.safetensors")}
        if len(found) > 1 and not expert_paths(folder):
            names = ", ".join(sorted(path.name for path in found))
            raise ExpertError(
                f"'{folder}' holds experts of several settings ({names}); name one of these folders"
            )
        self.paths = expert_paths(folder) or [
            path for inner in found for path in expert_paths(inner)
        ]
        if not self.paths:
            raise ExpertError(
                f"There are no experts in '{folder}'; train them by train_experts (notebook 03) or "
                "name another folder."
            )
        self.about = [read_about(path) for path in self.paths]
        common = {k: v for k, v in self.about[0]["settings"].items() if k != "index"}  # version 1
        for path, about in zip(self.paths, self.about, strict=True):
            check_settings(path, about["settings"], common)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def epochs(self) -> int:
        """Epochs of training; there is one snapshot more."""
        return self.about[0]["settings"]["train_epochs"]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all descriptions: equal for equal experts, wherever they are."""
        return hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()

    def snapshots(self, index: int, *epochs: int) -> list[Tensor]:
        """Parameters [P] of expert ``index`` after each of ``epochs``; 0 is before training."""
        return read_snapshots(self.paths[index], epochs)

    def check(self, data: ImageData, network: str, width: int, epochs: int) -> None:
        """Refuse a matching that these experts do not fit.

        They must be of the same architecture and have seen images of the same size and classes,
        normalized in the same way, out of a data set that holds out the very same validation and
        test images. So they cannot have seen an image that a choice or a result depends on, while
        experts trained on fewer or more images per class of the same split
        (``DataConfig.max_per_class``) are welcome.

        Raises:
            ExpertError: naming what differs, or that they trained for less than ``epochs``.
        """
        wanted = {"expert_network": network, "expert_width": width, **_about_data(data)}
        check_settings(self.paths[0], self.about[0]["settings"], wanted)
        if self.epochs < epochs:
            raise ExpertError(
                f"The experts trained for {self.epochs} epochs, the matching needs {epochs} "
                "(max_start_epoch - 1 + expert_epochs); lower these or train longer."
            )


def distances(experts: Experts, expert_epochs: int) -> list[Row]:
    """How far each expert gets in ``expert_epochs`` epochs: the root of what divides the TM loss.

    Returns:
        Rows of expert, epoch (where the matched epochs start) and distance ``||start - target||``.
    """

    def distance(index: int, epoch: int) -> float:
        start, target = experts.snapshots(index, epoch, epoch + expert_epochs)
        return (start - target).norm().item()

    return [
        {"expert": index, "epoch": epoch, "distance": distance(index, epoch)}
        for index in range(len(experts))
        for epoch in range(experts.epochs - expert_epochs + 1)
    ]


# ------------------------------------------------------------------------------------ training


@dataclass(frozen=True)
class ExpertPlan:
    """What training the experts will take, known before it starts.

    total_bytes: of the parameters; a file's description adds a few kilobytes
    """

    files: int
    snapshots: int  # per file
    parameters: int
    steps: int  # SGD steps in all

    @property
    def total_bytes(self) -> int:
        return 4 * self.files * self.snapshots * self.parameters

    def __str__(self) -> str:
        return (
            f"{self.files} expert{'s' * (self.files != 1)} x {self.snapshots} snapshots x "
            f"{self.parameters:,} parameters: "
            f"{self.total_bytes / 2**20:,.1f} MiB on disk, {self.steps:,} SGD steps"
        )


def plan_experts(data: ImageData, config: ExpertConfig) -> ExpertPlan:
    """Size and work of :func:`train_experts`."""
    weights = generator(0, "expert", "plan")
    network = network_for(data, config.expert_network, config.expert_width, generator=weights)
    steps = -(-len(data.train) // config.expert_batch) * config.train_epochs * config.num_experts
    parameters = len(flatten(dict(network.named_parameters())))
    return ExpertPlan(config.num_experts, config.train_epochs + 1, parameters, steps)


def settings_folder(
    data: ImageData, config: ExpertConfig, folder: Path | str, *, seed: int
) -> Path:
    """Where in ``folder`` the experts of these settings are, or will be: for :class:`Experts`.

    ``folder/<hash of the settings>``; or ``folder`` itself, if it has experts of these settings.
    """
    folder, settings = Path(folder), _settings(data, config, seed)
    for path in expert_paths(folder):
        with contextlib.suppress(ExpertError):
            check_settings(path, read_about(path)["settings"], settings)
            return folder
    text = json.dumps(settings, sort_keys=True)
    return folder / hashlib.sha256(text.encode()).hexdigest()[:8]


def train_experts(
    data: ImageData, config: ExpertConfig, folder: Path | str, *, seed: int
) -> Iterator[Row]:
    """Train what ``folder`` does not have yet, in the :func:`settings_folder` of these settings.

    Expert i has generators of its own, so the files do not depend on where a run was stopped or on
    how many experts there are.

    Yields:
        A row per expert and epoch, also of experts that were there: expert, epoch, train_loss (0
        before training) and accuracy in percent on the validation split.

    Raises:
        ExpertError: a file is damaged, or the training diverges.
    """
    home, settings = settings_folder(data, config, folder, seed=seed), _settings(data, config, seed)
    with Progress(config.num_experts * config.train_epochs, "experts") as progress:
        for index in range(config.num_experts):
            path = expert_path(home, index)
            if path.exists():
                about = read_about(path)
                check_settings(path, about["settings"], settings)
                progress.update(config.train_epochs)
            else:
                snapshots, rows = _train_expert(data, config, seed, index, progress)
                about = {"settings": settings, "parameters": len(snapshots[0]), "rows": rows}
                write_expert(path, snapshots, about)
            yield from about["rows"]


def _train_expert(
    data: ImageData, config: ExpertConfig, seed: int, index: int, progress: Progress
) -> tuple[list[Tensor], list[Row]]:
    """Parameters after every epoch, the untrained ones first, and a row for each."""
    weights = generator(seed, "expert", index, "weights")
    network = network_for(data, config.expert_network, config.expert_width, generator=weights)
    optimizer = torch.optim.SGD(network.parameters(), lr=config.expert_lr)
    order = generator(seed, "expert", index, "training")
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
                generator=order,
                normalize=data.normalize,
            )
        held = data.validation
        percent = accuracy(network, held.images, held.labels, normalize=data.normalize)
        snapshots.append(flatten(dict(network.named_parameters())).cpu())
        if not torch.isfinite(snapshots[-1]).all():
            raise ExpertError(
                f"Expert {index} is non-finite after epoch {epoch}; lower its learning rate "
                f"(expert_lr={config.expert_lr}). The experts before it are kept."
            )
        rows.append({"expert": index, "epoch": epoch, "train_loss": loss, "accuracy": percent})
        if epoch:
            progress.update(expert=index, accuracy=percent)
    return snapshots, rows


def _settings(data: ImageData, config: ExpertConfig, seed: int) -> dict[str, Any]:
    """All that experts depend on, apart from their index; their number is not among it."""
    about = config.model_dump(exclude={"num_experts"}) | _about_data(data)
    return about | {"data": data.fingerprint, "train_images": len(data.train), "seed": seed}


def _about_data(data: ImageData) -> dict[str, Any]:
    """What of its data an expert must share with a matching; see :meth:`Experts.check`."""
    held = {"validation": data.validation.images, "validation labels": data.validation.labels}
    held |= {"test": data.test.images, "test labels": data.test.labels}
    channels = data.normalization if isinstance(data.normalization, ChannelNormalization) else None
    return {
        "dataset": data.name,
        "images": [data.channels, *data.resolution],
        "classes": data.num_classes,
        "mean": list(channels.mean) if channels else [0.0] * data.channels,
        "std": list(channels.std) if channels else [1.0] * data.channels,
        "whitening": None if channels else data.normalization.fingerprint,
        "held_out": checksum(held, {"classes": data.class_names}),
    }
