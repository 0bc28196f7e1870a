"""Expert trajectories: networks trained on the real data, their parameters after every epoch.

A file is written when its expert is done, in one move, so a killed run goes on with the first
expert that has none. What a file holds and how it is read is in ``expert_files``, whose
public names can be had from here too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsdd_lib.config import ExpertConfig
from gsdd_lib.core.progress import Progress
from gsdd_lib.core.rng import generator
from gsdd_lib.data import ImageData
from gsdd_lib.networks import flatten, make_network
from gsdd_lib.training.augment import apply_dsa, sample_dsa
from gsdd_lib.training.expert_files import (
    ExpertError,
    Experts,
    check_settings,
    distances,
    expert_path,
    read_about,
    write_expert,
)
from gsdd_lib.training.train import accuracy

__all__ = [
    "ExpertError",
    "ExpertPlan",
    "Experts",
    "distances",
    "expert_path",
    "plan_experts",
    "read_about",
    "train_experts",
]

HEADER_BYTES = 4096  # about what names and metadata take in a file


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
    network = _network(data, config, generator(0, "expert", "plan"))
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
        "normalization": data.normalization.fingerprint,
        "seed": seed,
        "index": index,
    }


def _network(data: ImageData, config: ExpertConfig, draw: torch.Generator) -> nn.Module:
    return make_network(
        config.expert_network,
        channels=data.channels,
        num_classes=data.num_classes,
        resolution=data.resolution,
        width=config.expert_width,
        generator=draw,
    ).to(data.device)


def _train_expert(
    data: ImageData, config: ExpertConfig, seed: int, index: int, progress: Progress
) -> tuple[list[Tensor], list[dict[str, float | int]]]:
    """Parameters after every epoch, the untrained ones first, and a row for each."""
    network = _network(data, config, generator(seed, "expert", index, "weights"))
    optimizer = torch.optim.SGD(network.parameters(), lr=config.expert_lr)
    draw = generator(seed, "expert", index, "training")
    snapshots, rows, loss = [], [], 0.0
    for epoch in range(config.train_epochs + 1):
        if epoch:
            loss = _train_epoch(data, config, network, optimizer, draw)
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


def _train_epoch(
    data: ImageData,
    config: ExpertConfig,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    draw: torch.Generator,
) -> float:
    """One pass over the training split in a new order; the mean loss over images."""
    total = 0.0
    for index in torch.randperm(len(data.train), generator=draw).split(config.expert_batch):
        batch = data.train.select(index)
        augmentation = sample_dsa(
            config.expert_dsa, len(index), data.resolution, generator=draw, siamese=False
        )
        images = apply_dsa(data.normalize(batch.images), augmentation)
        loss = F.cross_entropy(network(images), batch.labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(index)
    return total / len(data.train)
