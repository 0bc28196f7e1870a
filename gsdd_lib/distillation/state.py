"""What a distillation is made of at one moment, and the file that keeps it.

Written atomically, so that a run killed at any moment finds the last whole one, and goes on from it
to the same bits (:mod:`gsdd_lib.distillation.loop`).
"""

import hashlib
import io
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from gsdd_lib.config import DistillConfig, EvalConfig
from gsdd_lib.core.errors import GsddError
from gsdd_lib.core.files import write_atomically
from gsdd_lib.data import ImageData
from gsdd_lib.data.sampling import class_members
from gsdd_lib.distillation.soft_labels import SoftLabels
from gsdd_lib.parameterizations.base import Parameterization
from gsdd_lib.training.expert_files import ExpertError, Experts

# How much is in memory at once changes rounding alone: a run may go on where there is less of it.
MEMORY_SETTINGS = {"micro_batch", "keep_steps"}


class DistillError(GsddError, RuntimeError):
    """A distillation cannot go on; the message says why and names the last good checkpoint."""


@dataclass
class Carried:
    """What a step finds beside the Gaussians; the tensors of it belong to a checkpoint.

    members: of each class, the indices of its training images
    log_syn_lr: logarithm of the students' learning rate, learned (tm)
    experts: whose paths are followed (tm)
    network: parameters [P] of the network that the next step goes on with (dc); None: a fresh one
    soft: learned labels, one per image; None: the labels are the classes' numbers
    """

    members: list[Tensor]
    log_syn_lr: nn.Parameter
    experts: Experts | None = None
    network: Tensor | None = None
    soft: SoftLabels | None = None

    @property
    def syn_lr(self) -> float:
        """The students' learning rate."""
        return self.log_syn_lr.detach().exp().item()

    def targets(self, labels: Tensor, index: Tensor | None = None) -> Tensor:
        """What networks learn to say of the images at ``index`` (all of them without one).

        Probabilities [n, num_classes], differentiable, where labels are learned, else ``labels``
        themselves: int64 [n] of [N].
        """
        if self.soft is not None:
            return self.soft.probabilities(index)
        return labels if index is None else labels[index]

    def state(self) -> dict[str, Tensor | None]:
        """What a checkpoint keeps."""
        state = {"log_syn_lr": self.log_syn_lr.detach().clone(), "network": self.network}
        return state if self.soft is None else state | {"soft": self.soft.logits.detach().clone()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor | None]) -> None:
        """Take over what :meth:`state` gave."""
        self.log_syn_lr.copy_(state["log_syn_lr"])
        self.network = state["network"]
        if self.soft is not None:
            self.soft.logits.copy_(state["soft"])


def begin(data: ImageData, config: DistillConfig, experts: Experts | None = None) -> Carried:
    """What the first step finds. Raises :class:`ExpertError` where the experts do not fit."""
    if config.objective == "tm":
        if experts is None:
            raise ExpertError(
                "Trajectory matching follows experts; train some by train_experts (notebook 03) "
                "and pass experts=Experts(folder)."
            )
        last = config.max_start_epoch - 1 + config.expert_epochs
        experts.check(data, config.network, config.width, last)
    log_syn_lr = nn.Parameter(torch.tensor(math.log(config.syn_lr_init)))
    return Carried(class_members(data.train.labels), log_syn_lr, experts)


# Packed Gaussians; with learned labels, a pair of these and the labels' logits.
Snapshot = Tensor | tuple[Tensor, Tensor]


@dataclass
class Distillation:
    """Where a run stands: everything that a checkpoint holds."""

    gaussians: Parameterization
    carried: Carried
    optimizers: tuple[torch.optim.Optimizer, ...]
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: Snapshot | None = None  # of the best validation accuracy so far
    best_accuracy: float = float("-inf")
    snapshots: list[Snapshot] | None = None  # of every row, if they are asked for

    def snapshot(self) -> Snapshot:
        """A copy of what is distilled, as it is now."""
        packed, soft = self.gaussians.packed.detach().clone(), self.carried.soft
        return packed if soft is None else (packed, soft.logits.detach().clone())

    @torch.no_grad()
    def restore(self, snapshot: Snapshot) -> None:
        """Bring back what :meth:`snapshot` gave."""
        if self.carried.soft is None:
            self.gaussians.packed.copy_(snapshot)
            return
        packed, logits = snapshot
        self.gaussians.packed.copy_(packed)
        self.carried.soft.logits.copy_(logits)


class Checkpoint:
    """``checkpoint.pt``: tensors and plain numbers, written atomically, read with weights_only."""

    def __init__(
        self,
        folder: Path | None,
        start: Distillation,
        config: DistillConfig,
        eval_config: EvalConfig,
        seed: int,
        experts: Experts | None,
    ) -> None:
        self.path = Path(folder) / "checkpoint.pt" if folder else None
        settings = [
            config.model_dump(exclude=MEMORY_SETTINGS),
            eval_config.model_dump(),
            seed,
            list(start.gaussians.packed.shape),
            experts.fingerprint if experts else "",
        ]
        numbers = start.snapshot()
        parts = [numbers] if isinstance(numbers, Tensor) else numbers
        content = b"".join(part.cpu().numpy().tobytes() for part in parts)
        self.settings = json.dumps(settings) + hashlib.sha256(content).hexdigest()
        self.written = False

    @property
    def name(self) -> str:
        """Of the file, as messages say it."""
        return os.path.relpath(self.path)

    def sentence(self) -> str:
        """What a message says of the work done so far."""
        if not self.written:
            return "No checkpoint was written."
        return f"The last checkpoint is {self.name}; the same call goes on from there."

    def load(self, state: Distillation) -> None:
        """Bring ``state`` to where the file is; nothing where there is none.

        Raises :class:`DistillError` for a damaged file and for one of other settings.
        """
        if self.path is None or not self.path.exists():
            return
        try:
            saved = torch.load(self.path, weights_only=True)
        except Exception as error:  # any damage: unpickling raises whatever it meets
            raise DistillError(
                f"The checkpoint {self.name} is damaged ({error}); delete it to start over."
            ) from error
        if saved["settings"] != self.settings:
            raise DistillError(
                f"The checkpoint {self.name} belongs to a run with other settings; delete it to "
                "start over, or choose another folder."
            )
        if state.snapshots is not None:
            if saved.get("snapshots") is None:
                raise DistillError(
                    f"The checkpoint {self.name} was written without snapshots; delete it to "
                    "start over, or go on without them."
                )
            state.snapshots[:] = saved["snapshots"]
        with torch.no_grad():
            state.gaussians.packed.copy_(saved["packed"])
        state.carried.load(saved["carried"])
        for optimizer, numbers in zip(state.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(numbers)
        state.step, state.history = saved["step"], saved["history"]
        state.best, state.best_accuracy = saved["best"], saved["best_accuracy"]
        self.written = True

    def save(self, state: Distillation) -> None:
        """Write ``state`` in the place of what was there."""
        if self.path is None:
            return
        buffer = io.BytesIO()
        saved = {
            "settings": self.settings,
            "packed": state.gaussians.packed.detach(),
            "carried": state.carried.state(),
            "optimizers": [optimizer.state_dict() for optimizer in state.optimizers],
            "step": state.step,
            "history": state.history,
            "best": state.best,
            "best_accuracy": state.best_accuracy,
            "snapshots": state.snapshots,
        }
        torch.save(saved, buffer)
        write_atomically(self.path, buffer.getvalue())
        self.written = True
