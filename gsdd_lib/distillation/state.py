"""Where a distillation stands, all that a step leaves to the next, and the checkpoint of it.

A checkpoint is written atomically, with a checksum over every bit, so that a run killed at any
moment goes on from the last one and ends bit for bit as it would have (on the CPU).
"""

import io
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gsdd_lib.config import CodecConfig, Config, DistillConfig, EvalConfig
from gsdd_lib.core.errors import GsddError
from gsdd_lib.core.files import checksum, seal, unseal, write_atomically
from gsdd_lib.data import ImageData
from gsdd_lib.data.dataset import class_members
from gsdd_lib.distillation.rounding import grids_of, set_grids
from gsdd_lib.distillation.soft_labels import SoftLabels
from gsdd_lib.parameterizations.base import Parameterization
from gsdd_lib.parameterizations.gaussian import GaussianImages
from gsdd_lib.training.experts import ExpertError, Experts

VERSION = 3  # of the checkpoint's format
SYN_LR_MOMENTUM = 0.5  # of the SGD that learns the students' learning rate, as published
# How much is in memory at once changes rounding alone: a run may go on where there is less of it.
MEMORY_SETTINGS = {"micro_batch", "keep_steps"}
REPORT_SETTINGS = {"protocol", "networks"}  # what is done with a run when it is over
HASHES = ("data", "experts", "start")  # settings that are told apart, but not shown
KEPT = ("network", "step", "history", "best", "best_accuracy", "snapshots")  # of a state, as it is

# Parameters by name, as ``named_parameters`` has them, and "label_logits" where labels are learned.
# ``torch.func.functional_call(parameterization, snapshot, ())`` renders it.
Snapshot = dict[str, Tensor]


class DistillError(GsddError, RuntimeError):
    """A distillation cannot go on; the message says why and names the last good checkpoint."""


@dataclass
class State:
    """What a step finds and what it leaves to the next.

    parameterization: what is distilled into
    config: of the run; ``micro_batch`` and ``keep_steps`` are lowered where memory runs out
    members: of each class, the indices of its training images
    log_syn_lr: logarithm of the students' learning rate, learned (tm)
    optimizers: of the parameterization, of ``log_syn_lr``, and of labels that are learned
    experts: whose paths are followed (tm)
    soft_labels: learned labels, one per image; None: the labels are the classes' numbers
    codec: how many bits numbers are rounded to in the end; None: as they are stored now
    network: parameters [P] of the network that the next step goes on with (dc); None: a fresh one
    step: how many have been taken
    best: of the best validation accuracy so far
    snapshots: of every row of the history, where they are asked for
    """

    parameterization: Parameterization
    config: DistillConfig
    members: list[Tensor]
    log_syn_lr: nn.Parameter
    optimizers: list[torch.optim.Optimizer]
    experts: Experts | None = None
    soft_labels: SoftLabels | None = None
    codec: CodecConfig | None = None
    network: Tensor | None = None
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: Snapshot | None = None
    best_accuracy: float = float("-inf")
    snapshots: list[Snapshot] | None = None

    @property
    def syn_lr(self) -> float:
        """The students' learning rate."""
        return self.log_syn_lr.detach().exp().item()

    def targets(self, index: Tensor | None = None) -> Tensor:
        """Of the images at ``index``: learned probabilities [n, num_classes], or int64 [n]."""
        if self.soft_labels is not None:
            return self.soft_labels.probabilities(index)
        labels = self.parameterization.labels
        return labels if index is None else labels[index]

    def distilled(self) -> dict[str, nn.Parameter]:
        """The parameters that are distilled, by name."""
        named = dict(self.parameterization.named_parameters())
        if self.soft_labels is not None:
            named["label_logits"] = self.soft_labels.logits
        return named

    def snapshot(self) -> Snapshot:
        """A copy of what is distilled, as it is now."""
        return {name: value.detach().clone() for name, value in self.distilled().items()}

    @torch.no_grad()
    def restore(self, snapshot: Snapshot) -> None:
        """Bring back what :meth:`snapshot` gave."""
        for name, value in self.distilled().items():
            value.copy_(snapshot[name])

    def content(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "grids": grids_of(self.parameterization, self.soft_labels),
            "parameters": self.snapshot(),
            "log_syn_lr": self.log_syn_lr.detach(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            **{name: getattr(self, name) for name in KEPT},
        }

    def load(self, content: dict[str, Any]) -> None:
        """Take over what :meth:`content` gave, from whatever device it came."""
        self.restore(content["parameters"])
        set_grids(self.parameterization, self.soft_labels, content["grids"])
        self.log_syn_lr.data.copy_(content["log_syn_lr"])
        for optimizer, numbers in zip(self.optimizers, content["optimizers"], strict=True):
            optimizer.load_state_dict(numbers)
        given, device = self.snapshots, self.parameterization.labels.device
        for name in KEPT:
            setattr(self, name, _moved(content[name], device))
        if given is not None:  # the caller's own list
            given[:] = self.snapshots
            self.snapshots = given


def begin(
    parameterization: Parameterization,
    data: ImageData,
    config: DistillConfig,
    *,
    experts: Experts | None = None,
    soft_labels: SoftLabels | None = None,
    snapshots: list[Snapshot] | None = None,
    codec: CodecConfig | None = None,
) -> State:
    """What the first step finds.

    Raises:
        DistillError: a label is not one of the data's classes, the learned labels are not one per
            image and class, or there is a codec for other than Gaussians.
        ExpertError: the experts do not fit, or trajectory matching has none.
    """
    labels, classes = parameterization.labels, data.num_classes
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DistillError(
            f"labels must lie in 0 to {classes - 1}, got {int(labels.min())} to "
            f"{int(labels.max())}; number the classes as '{data.name}' does"
        )
    if soft_labels is not None and soft_labels.logits.shape != (len(labels), classes):
        raise DistillError(
            f"learned labels must be {[len(labels), classes]}, a number per image and class, got "
            f"{list(soft_labels.logits.shape)}; make them of these images"
        )
    if codec is not None and not isinstance(parameterization, GaussianImages):
        raise DistillError(
            f"a codec is for Gaussians, not for {type(parameterization).__name__}; leave it out"
        )
    if config.objective != "tm":
        experts = None
    elif experts is None:
        raise ExpertError(
            "Trajectory matching follows experts; train some by train_experts (notebook 03) "
            "and pass experts=Experts(folder)."
        )
    else:
        last = config.max_start_epoch - 1 + config.expert_epochs
        experts.check(data, config.network, config.width, last)
    log_syn_lr = nn.Parameter(torch.tensor(math.log(config.syn_lr_init)))
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Adam(parameterization.parameters(), lr=config.lr),
        torch.optim.SGD([log_syn_lr], lr=config.lr_lr, momentum=SYN_LR_MOMENTUM),
    ]
    if soft_labels is not None:
        soft_labels.requires_grad_(config.label_lr > 0)
        if config.label_lr:
            optimizers.append(torch.optim.Adam(soft_labels.parameters(), lr=config.label_lr))
    members, own = class_members(data.train.labels), {"snapshots": snapshots}
    own |= {"experts": experts, "soft_labels": soft_labels, "codec": codec}
    return State(parameterization, config, members, log_syn_lr, optimizers, **own)


class Checkpoint:
    """``checkpoint.<hash>.pt`` in the folder of a run, named by all that the run depends on.

    So a run finds its own file again, whatever else was run in the folder meanwhile, and a run of
    other settings, data or start begins anew beside it; no file is ever removed.
    """

    def __init__(
        self, folder: Path | None, state: State, data: ImageData, eval_config: EvalConfig, seed: int
    ) -> None:
        self.path, self.step = None, None  # step: of what is in the file
        if folder is None:
            return
        self.settings = {
            **state.config.model_dump(exclude=MEMORY_SETTINGS),
            **eval_config.model_dump(exclude=REPORT_SETTINGS),
            "seed": seed,
            "data": data.fingerprint,
            "experts": state.experts.fingerprint if state.experts else "",
            "start": _fingerprint(state),
            "snapshots": state.snapshots is not None,
            **(state.codec.model_dump() if state.codec else {}),
            "version": VERSION,
        }
        self.path = Path(folder) / f"checkpoint.{checksum({}, self.settings)[:8]}.pt"

    def load(self, state: State) -> str:
        """Bring ``state`` to where the file is, if there is one.

        Returns:
            A line that says where the run goes on, or why it begins anew; may be empty.

        Raises:
            DistillError: the file is damaged, cannot be read, or is not a checkpoint.
        """
        if self.path is None or not self.path.exists():
            return self._why_anew()
        content = read_checkpoint(self.path)
        try:
            if content["settings"] != self.settings:
                raise KeyError
            state.load(content)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError):
            raise _damaged(self.path) from None
        self.step = state.step
        if state.step == state.config.steps:
            return f"the run is finished; read from {os.path.relpath(self.path)}"
        return f"resuming at step {state.step} of {state.config.steps}"

    def save(self, state: State) -> None:
        """Write ``state`` in the place of what was there."""
        if self.path is None:
            return
        buffer = io.BytesIO()
        torch.save({"settings": self.settings, **state.content()}, buffer)
        write_atomically(self.path, seal(buffer.getvalue()))
        self.step = state.step

    def sentence(self) -> str:
        """What a message says of the work done so far."""
        if self.step is None:
            return "No checkpoint was written."
        return f"The checkpoint of step {self.step} is kept: {os.path.relpath(self.path)}."

    def _why_anew(self) -> str:
        """What differs from the newest other checkpoint in the folder that can be read."""
        others = self.path.parent.glob("checkpoint.*.pt") if self.path else []
        for path in sorted(others, key=os.path.getmtime, reverse=True):
            try:
                old = read_checkpoint(path)["settings"]
                changes = [
                    name if name in HASHES else f"{name} {old.get(name)} -> {value}"
                    for name, value in self.settings.items()
                    if old.get(name) != value
                ]
            except (DistillError, KeyError, TypeError, AttributeError):
                continue
            more = [f"{len(changes) - 4} more"] if len(changes) > 4 else []
            return (
                f"settings changed ({', '.join(changes[:4] + more)}): starting anew; the old "
                f"checkpoint is kept as {path.name}"
            )
        return ""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU, every bit of it checked; nothing in it is executed.

    Raises:
        DistillError: the file is damaged, cannot be read, or is not a checkpoint.
    """
    try:
        sealed = Path(path).read_bytes()
    except OSError as error:
        reason = f"cannot be read ({error.strerror}); change its permissions"
        raise DistillError(f"The checkpoint {os.path.relpath(path)} {reason}.") from None
    try:
        return torch.load(io.BytesIO(unseal(sealed)), map_location="cpu", weights_only=True)
    except Exception:  # whatever unpickling meets; torch's own text advises to unpickle anything
        raise _damaged(path) from None


def _damaged(path: Path) -> DistillError:
    return DistillError(
        f"The checkpoint {os.path.relpath(path)} is damaged or was not written by a distillation; "
        "put back a copy, or move it away to start anew."
    )


def _moved(tree: Any, device: torch.device) -> Any:
    if isinstance(tree, dict):
        return {name: _moved(value, device) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_moved(value, device) for value in tree]
    return tree.to(device) if isinstance(tree, Tensor) else tree


def _fingerprint(state: State) -> str:
    """SHA-256 of what is distilled, as it is: all numbers, and the settings of every module."""
    images, plain = state.parameterization, (bool, int, float, str, tuple, Config)
    about = {"kind": type(images).__name__, "normalization": images.normalization.fingerprint}
    for name, module in images.named_modules():
        own = {k: repr(v) for k, v in vars(module).items() if isinstance(v, plain) and k[0] != "_"}
        about[f"module {name}"] = own
    return checksum({**images.state_dict(), **state.snapshot(), "targets": state.targets()}, about)
