"""Expert trajectories: networks trained on the real data, their parameters after every epoch.

A safetensors file per expert: ``epoch_000`` (untrained), ..., float32 [P], and a description.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from gsdd_lib.config import USUAL, ExpertConfig
from gsdd_lib.core import ranks
from gsdd_lib.core.errors import GsddError
from gsdd_lib.core.files import DamagedFileError, checksum, read_tensors, write_tensors
from gsdd_lib.core.graph import run_together
from gsdd_lib.core.progress import Progress
from gsdd_lib.core.rng import generator
from gsdd_lib.data import ImageData
from gsdd_lib.data.normalization import ChannelNormalization
from gsdd_lib.networks import flatten, network_for
from gsdd_lib.training.train import Step, accuracy, optimizer_for, train_epoch

TOGETHER = 8  # experts that a GPU trains side by side
FORMAT, VERSION = "gsdd-expert", 2
FILES = "expert_*.safetensors"
Row = dict[str, float | int]
_key = "epoch_{:03d}".format


class ExpertError(GsddError, RuntimeError):
    """Experts are missing, damaged, or of other settings; the message says what to do."""


class Experts:
    """The experts in ``folder``, or of one :func:`settings_folder` in it; snapshots when asked for.

    Raises:
        ExpertError: there are none, or of several settings, or a file is damaged.
    """

    def __init__(self, folder: Path | str) -> None:
        folder = Path(folder)
        self.paths = sorted(folder.glob(FILES)) or sorted(folder.glob(f"*/{FILES}"))
        homes = dict.fromkeys(path.parent.name for path in self.paths)
        if not homes:
            remedy = "train them by train_experts (notebook 03) or name another folder"
            raise ExpertError(f"There are no experts in '{folder}'; {remedy}.")
        if len(homes) > 1:
            held = f"holds experts of several settings ({', '.join(homes)})"
            raise ExpertError(f"'{folder}' {held}; name one of these folders.")
        self.about = [read_about(path) for path in self.paths]
        for path, about in zip(self.paths, self.about, strict=True):
            _require(path, about["settings"], self.about[0]["settings"])

    def __len__(self) -> int:
        return len(self.paths)

    # Epochs of training (there is one snapshot more); equal for equal experts, wherever they are
    epochs = property(lambda self: self.about[0]["settings"]["train_epochs"])
    fingerprint = property(lambda self: checksum({}, self.about))

    def snapshots(self, index: int, *epochs: int) -> list[Tensor]:
        """Parameters [P] of expert ``index`` after each of ``epochs``; 0 is before training."""
        with safe_open(self.paths[index], "pt") as file:
            return [file.get_tensor(_key(epoch)) for epoch in epochs]

    def check(self, data: ImageData, network: str, width: int, epochs: int) -> None:
        """Refuse another architecture, other held-out images, or less training than ``epochs``.

        Raises:
            ExpertError: naming what differs; how many training images they saw does not matter.
        """
        wanted = {"expert_network": network, "expert_width": width, **_about_data(data)}
        _require(self.paths[0], self.about[0]["settings"], wanted)
        if self.epochs < epochs:
            needs = f"the matching needs {epochs} (max_start_epoch - 1 + expert_epochs)"
            trained = f"The experts trained for {self.epochs} epochs"
            raise ExpertError(f"{trained}, {needs}; lower these or train longer.")


def distances(experts: Experts, expert_epochs: int) -> list[Row]:
    """Rows of expert, epoch (the first of the matched ones) and distance ``||start - target||``."""
    rows = []
    for index in range(len(experts)):
        for epoch in range(experts.epochs - expert_epochs + 1):
            start, target = experts.snapshots(index, epoch, epoch + expert_epochs)
            far = (start - target).norm().item()
            rows.append({"expert": index, "epoch": epoch, "distance": far})
    return rows


def plan_experts(data: ImageData, config: ExpertConfig) -> tuple[str, int]:
    """What :func:`train_experts` will take, in a sentence, and the bytes of all parameters."""
    count, epochs = config.num_experts, config.train_epochs
    weights = generator(0, "expert", "plan")
    network = network_for(data, config.expert_network, config.expert_width, generator=weights)
    parameters = sum(value.numel() for value in network.parameters())
    steps = -(-len(data.train) // config.expert_batch) * epochs * count
    total = 4 * count * (epochs + 1) * parameters
    experts = f"{count} expert{'s' * (count != 1)} x {epochs + 1} snapshots"
    cost = f"{total / 2**20:,.1f} MiB on disk, {steps:,} SGD steps"
    return f"{experts} x {parameters:,} parameters: {cost}", total


def settings_folder(
    data: ImageData, config: ExpertConfig, folder: Path | str, *, seed: int
) -> Path:
    """``folder``, if it has experts of these settings, else ``folder/<hash of the settings>``."""
    folder, settings = Path(folder), _settings(data, config, seed)
    for path in sorted(folder.glob(FILES)):
        with contextlib.suppress(ExpertError):
            _require(path, read_about(path)["settings"], USUAL | settings)
            return folder
    return folder / checksum({}, settings)[:8]


def train_experts(
    data: ImageData, config: ExpertConfig, folder: Path | str, *, seed: int
) -> Iterator[Row]:
    """Train what is missing in :func:`settings_folder`; nothing is ever removed or replaced.

    Expert i has generators of its own: where a run was stopped, and how many there are, changes
    nothing. Ranks share the experts, as many at a time as there are ranks; a GPU trains several.

    Yields:
        Rows, also of experts that were there: expert, epoch (0: untrained), train_loss, and
        accuracy in percent on the validation split.

    Raises:
        ExpertError: a file is damaged, or the training diverges.
    """
    home, settings = settings_folder(data, config, folder, seed=seed), _settings(data, config, seed)
    paths = [home / FILES.replace("*", f"{index:03d}") for index in range(config.num_experts)]
    there = [path.exists() for path in paths]
    ranks.meet()  # all look before one writes

    def rows_of(index: int) -> Iterator[list[Row]]:
        if there[index]:
            about = read_about(paths[index])
            _require(paths[index], about["settings"], USUAL | settings)
            progress.update(config.train_epochs)
            return about["rows"]
        tensors, rows = yield from _train_expert(data, config, seed, index, progress)
        about = {"format": FORMAT, "version": VERSION, "settings": settings}
        about |= {"parameters": len(tensors[_key(0)]), "rows": rows}
        write_tensors(paths[index], tensors, about)
        return rows

    def together(indices: Sequence[int]) -> list[list[Row]]:
        return run_together([rows_of(index) for index in indices], data.device)

    size = TOGETHER if data.device.type == "cuda" else 1
    with Progress(config.num_experts * config.train_epochs, "experts") as progress:
        for first in range(0, config.num_experts, ranks.world() * size):
            at_once = range(config.num_experts)[first : first + ranks.world() * size]
            for rows in ranks.spread_groups(together, at_once, size):
                yield from rows


def read_about(path: Path) -> dict[str, Any]:
    """The description in an expert's file, every bit of the file checked once per process.

    Raises:
        ExpertError: the file cannot be read, is damaged, of another version, or no expert's.
    """
    try:
        status = path.stat()
        return _checked(path.resolve(), status.st_size, status.st_mtime_ns)
    except (DamagedFileError, OSError) as error:
        fault = f"The expert file '{path}' cannot be read ({error}); make it readable, or move it"
        kept = "away and the same call trains it again, the other experts are kept"
        raise ExpertError(f"{fault} {kept}.") from None


@cache
def _checked(path: Path, size: int, mtime_ns: int) -> dict[str, Any]:
    tensors, about = read_tensors(path, FORMAT)
    if about["version"] != VERSION:
        raise DamagedFileError(f"it has version {about['version']} of the format, not {VERSION}")
    snapshots = {_key(epoch) for epoch in range(len(tensors))}
    if set(tensors) != snapshots or len(tensors) != about["settings"]["train_epochs"] + 1:
        raise DamagedFileError("snapshots are missing")
    return about


def _train_expert(
    data: ImageData, config: ExpertConfig, seed: int, index: int, progress: Progress
) -> Iterator[tuple[dict[str, Tensor], list[Row]]]:
    weights, order = (generator(seed, "expert", index, what) for what in ("weights", "training"))
    network = network_for(data, config.expert_network, config.expert_width, generator=weights)
    real, held, loss = data.train, data.validation, torch.zeros(())
    how = {"precision": config.expert_precision, "channels_last": config.expert_channels_last}
    how["normalize"] = data.normalize
    optimizer = optimizer_for(network, "sgd", config.expert_lr)
    step = Step(network, optimizer, real.images, real.labels, **how)
    snapshots, rows = {}, []
    for epoch in range(config.train_epochs + 1):
        if epoch:
            loss = train_epoch(step, config.expert_batch, config.expert_dsa, order)
        yield  # before Python waits for the device
        percent = accuracy(network, held.images, held.labels, normalize=data.normalize)
        params = flatten(dict(network.named_parameters())).cpu()
        if not params.isfinite().all():
            lower = f"lower its learning rate (expert_lr={config.expert_lr})"
            fault = f"Expert {index} is non-finite after epoch {epoch}; {lower}."
            raise ExpertError(f"{fault} The experts before it are kept.")
        snapshots[_key(epoch)] = params
        row = {"expert": index, "epoch": epoch, "train_loss": loss.item(), "accuracy": percent}
        rows.append(row)
        if epoch:
            progress.update(expert=index, accuracy=percent)
    return snapshots, rows


def _settings(data: ImageData, config: ExpertConfig, seed: int) -> dict[str, Any]:
    about = config.told(exclude={"num_experts"}) | _about_data(data)
    return about | {"data": data.fingerprint, "train_images": len(data.train), "seed": seed}


def _about_data(data: ImageData) -> dict[str, Any]:
    # What of its data an expert must share with a matching
    held = {"validation": data.validation.images, "validation labels": data.validation.labels}
    held |= {"test": data.test.images, "test labels": data.test.labels}
    norm, mean, std = data.normalization, [0.0] * data.channels, [1.0] * data.channels
    if channels := isinstance(norm, ChannelNormalization):
        mean, std = list(norm.mean), list(norm.std)
    about = {"dataset": data.name, "images": [data.channels, *data.resolution]}
    about |= {"classes": data.num_classes, "mean": mean, "std": std}
    about["whitening"] = None if channels else norm.fingerprint
    return about | {"held_out": checksum(held, {"classes": data.class_names})}


def _require(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    found = {**USUAL, **found}
    other = [key for key in wanted if found.get(key) != wanted[key]]
    if other:
        listed = "; ".join(f"{key} {found.get(key)}, wanted {wanted[key]}" for key in other)
        seen = "these experts may have seen images that are held out here, " * ("held_out" in other)
        fault = f"The expert file {path.name} has other settings ({listed}); {seen}"
        raise ExpertError(f"{fault}train experts for this run or name another folder.")
