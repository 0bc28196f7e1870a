"""The outer loop: change a parameterization until networks cannot tell it from the real data.

One step draws a fresh network and a batch of real images per class, and moves the parameters down
the gradient of the objective. Every random number of step ``t`` comes from generators made for
``(seed, t)``, so a run that was killed and resumed is bit for bit the run that was not, and an
evaluation in between changes nothing.
"""

import hashlib
import io
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from gsdd_lib.augment import apply_dsa, sample_dsa
from gsdd_lib.config import DistillConfig, EvalConfig
from gsdd_lib.data import ImageData, ImageSet
from gsdd_lib.data.sampling import class_members, draw_per_class
from gsdd_lib.evaluate import evaluate, summarize
from gsdd_lib.files import write_atomically
from gsdd_lib.networks import make_network
from gsdd_lib.objectives.dm import class_means, dm_loss
from gsdd_lib.parameterizations.gaussian import GaussianImages
from gsdd_lib.progress import Progress
from gsdd_lib.rng import generator
from gsdd_lib.splat import GEOMETRY

MICRO_BATCH = 256  # real images embedded at once; their gradient is not needed, so it is free


class DistillError(RuntimeError):
    """A distillation cannot go on; the message says why and names the last good checkpoint."""


@dataclass
class Distillation:
    """Where a run stands: everything that a checkpoint holds."""

    gaussians: GaussianImages
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: Tensor | None = None  # packed Gaussians of the best validation accuracy so far
    best_accuracy: float = float("-inf")
    snapshots: list[Tensor] | None = None  # packed Gaussians of every row, if they are asked for


def distill(
    gaussians: GaussianImages,
    data: ImageData,
    config: DistillConfig,
    eval_config: EvalConfig,
    *,
    seed: int,
    folder: Path | None = None,
    snapshots: list[Tensor] | None = None,
) -> Iterator[dict[str, float]]:
    """Distill ``data.train`` into ``gaussians`` in place; yields a history row per evaluation.

    A row holds step, loss, penalty, and the validation accuracy's mean, std, n and ci95. After the
    last one ``gaussians`` are those of the best row: the choice is made on the validation split,
    and the test split is never read here.

    Args:
        eval_config: how a row's networks are trained; ``config.select_networks`` says how many.
        folder: where ``checkpoint.pt`` is written every few steps and read at the start. A
            checkpoint of other settings is refused.
        snapshots: a list that receives the packed Gaussians of every row, for
            ``protocols.compare_protocols``; the checkpoint then holds them too.

    Raises:
        DistillError: the loss is not a number, or the checkpoint does not fit. ctrl-C stops
            between two steps with a KeyboardInterrupt that names the checkpoint.
    """
    state = Distillation(gaussians, snapshots=snapshots)
    optimizer = torch.optim.Adam(gaussians.parameters(), lr=config.lr)
    checkpoint = _Checkpoint(folder, gaussians, config, eval_config, seed)
    checkpoint.load(state, optimizer)
    members = class_members(data.train.labels)
    judges = eval_config.model_copy(update={"networks": config.select_networks})
    yield from state.history
    try:
        with Progress(config.steps, config.objective, done=state.step) as progress:
            if not state.history:
                row = _evaluate(state, data, judges, seed, loss=math.nan)
                checkpoint.save(state, optimizer)
                yield row
            while state.step < config.steps:
                loss = _step(state, data, config, optimizer, members=members, seed=seed)
                if not torch.isfinite(loss):
                    raise DistillError(
                        f"The loss is not a number at step {state.step}; lower the learning rate "
                        f"(lr={config.lr}). {checkpoint.sentence()}"
                    )
                progress.update(loss=loss.item())
                evaluated = state.step % config.eval_every == 0 or state.step == config.steps
                if evaluated:
                    row = _evaluate(state, data, judges, seed, loss=loss.item())
                if evaluated or state.step % config.checkpoint_every == 0:
                    checkpoint.save(state, optimizer)
                if evaluated:
                    yield row
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Stopped at step {state.step}. {checkpoint.sentence()}") from None
    if state.best is not None:
        with torch.no_grad():
            gaussians.packed.copy_(state.best)


def _step(
    state: Distillation,
    data: ImageData,
    config: DistillConfig,
    optimizer: torch.optim.Optimizer,
    *,
    members: list[Tensor],
    seed: int,
) -> Tensor:
    gaussians = state.gaussians
    loss = dm_step_loss(gaussians, data, config, members, seed=seed, step=state.step)
    total = loss + config.boundary * gaussians.penalty()
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    before = gaussians.packed.detach().clone()
    optimizer.step()
    with torch.no_grad():  # Adam's step, longer where a number is measured in pixels
        moved = gaussians.cholesky - before[..., 2:GEOMETRY]
        gaussians.cholesky.copy_(before[..., 2:GEOMETRY] + config.cholesky_lr_ratio * moved)
    gaussians.constrain_()
    state.step += 1
    return total.detach()


def dm_step_loss(
    gaussians: GaussianImages,
    data: ImageData,
    config: DistillConfig,
    members: list[Tensor],
    *,
    seed: int,
    step: int,
) -> Tensor:
    """Distribution matching of one step (arXiv 2110.04181), differentiable in the Gaussians.

    members: of each class, the indices of its training images (``sampling.class_members``).

    A fresh network, ``batch_real`` images per class, one augmentation per class that real and
    synthetic images share.
    """
    network = make_network(
        config.network,
        channels=data.channels,
        num_classes=data.num_classes,
        resolution=data.resolution,
        width=config.width,
        generator=generator(seed, "distill", step, "network"),
    ).requires_grad_(False)
    augmentation = sample_dsa(
        config.dsa,
        data.num_classes,
        data.resolution,
        generator=generator(seed, "distill", step, "dsa"),
        siamese=False,
        mixed=True,
    )
    draw = generator(seed, "distill", step, "real")
    batch = data.train.select(draw_per_class(members, config.batch_real, generator=draw))
    real = _real_means(network, batch, data, augmentation)
    synthetic = apply_dsa(gaussians.render(), augmentation, gaussians.labels)
    return dm_loss(real, network.embed(synthetic), gaussians.labels)


@torch.no_grad()
def _real_means(network, batch: ImageSet, data: ImageData, augmentation) -> Tensor:
    parts = []
    for start in range(0, len(batch), MICRO_BATCH):
        part = batch.select(slice(start, start + MICRO_BATCH))
        images = apply_dsa(data.normalize(part.images), augmentation, part.labels)
        parts.append(network.embed(images))
    return class_means(torch.cat(parts), batch.labels, data.num_classes)


def _evaluate(
    state: Distillation, data: ImageData, config: EvalConfig, seed: int, *, loss: float
) -> dict[str, float]:
    with torch.no_grad():
        images = state.gaussians.render()
    rows = evaluate(images, state.gaussians.labels, data, config, seed=seed, split="validation")
    summary = summarize(rows)
    row = {"step": state.step, "loss": loss, **summary}
    state.history.append(row)
    if state.snapshots is not None:
        state.snapshots.append(state.gaussians.packed.detach().clone())
    if summary["mean"] > state.best_accuracy:
        state.best_accuracy = summary["mean"]
        state.best = state.gaussians.packed.detach().clone()
    return row


class _Checkpoint:
    """``checkpoint.pt``: tensors and plain numbers, written atomically, read with weights_only."""

    def __init__(
        self,
        folder: Path | None,
        gaussians: GaussianImages,
        config: DistillConfig,
        eval_config: EvalConfig,
        seed: int,
    ) -> None:
        self.path = Path(folder) / "checkpoint.pt" if folder else None
        settings = [
            config.model_dump(),
            eval_config.model_dump(),
            seed,
            list(gaussians.packed.shape),
        ]
        start = gaussians.packed.detach().numpy().tobytes()
        self.settings = json.dumps(settings) + hashlib.sha256(start).hexdigest()
        self.written = False

    @property
    def name(self) -> str:
        return os.path.relpath(self.path)

    def sentence(self) -> str:
        if not self.written:
            return "No checkpoint was written."
        return f"The last checkpoint is {self.name}; the same call goes on from there."

    def load(self, state: Distillation, optimizer: torch.optim.Optimizer) -> None:
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
        optimizer.load_state_dict(saved["optimizer"])
        state.step, state.history = saved["step"], saved["history"]
        state.best, state.best_accuracy = saved["best"], saved["best_accuracy"]
        self.written = True

    def save(self, state: Distillation, optimizer: torch.optim.Optimizer) -> None:
        if self.path is None:
            return
        buffer = io.BytesIO()
        saved = {
            "settings": self.settings,
            "packed": state.gaussians.packed.detach(),
            "optimizer": optimizer.state_dict(),
            "step": state.step,
            "history": state.history,
            "best": state.best,
            "best_accuracy": state.best_accuracy,
            "snapshots": state.snapshots,
        }
        torch.save(saved, buffer)
        write_atomically(self.path, buffer.getvalue())
        self.written = True
