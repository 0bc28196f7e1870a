"""What a distillation is made of at one moment, and the file that keeps it.

Written atomically, so that a run killed at any moment finds the last whole one, and goes on from it
to the same bits (:mod:`gsdd_lib.distillation.loop`).
"""

import hashlib
import io
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from gsdd_lib.config import DistillConfig, EvalConfig
from gsdd_lib.core.errors import GsddError
from gsdd_lib.core.files import write_atomically
from gsdd_lib.distillation.carried import Carried
from gsdd_lib.parameterizations.base import Parameterization
from gsdd_lib.training.experts import Experts

# How much is in memory at once changes rounding alone: a run may go on where there is less of it.
MEMORY_SETTINGS = {"micro_batch", "keep_steps"}


class DistillError(GsddError, RuntimeError):
    """A distillation cannot go on; the message says why and names the last good checkpoint."""


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
