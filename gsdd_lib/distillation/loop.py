"""The outer loop: change a parameterization until networks cannot tell it from the real data.

One step moves the parameters down the gradient of the objective (``losses``). Every
random number of step ``t`` comes from generators made for ``(seed, t)``, so a run that was killed
and resumed is bit for bit the run that was not, and an evaluation in between changes nothing.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from gsdd_lib.config import DistillConfig, EvalConfig
from gsdd_lib.core.progress import Progress
from gsdd_lib.data import ImageData
from gsdd_lib.distillation.losses import STEP_LOSSES
from gsdd_lib.distillation.soft_labels import SoftLabels
from gsdd_lib.distillation.state import (
    Carried,
    Checkpoint,
    Distillation,
    DistillError,
    Snapshot,
    begin,
)
from gsdd_lib.evaluation.evaluate import EvaluationError, evaluate
from gsdd_lib.evaluation.summary import SUMMARY, summarize
from gsdd_lib.parameterizations.base import Parameterization
from gsdd_lib.training.expert_files import Experts

SYN_LR_MOMENTUM = 0.5  # of the SGD that learns the students' learning rate, as published
# Largest gradient of its logarithm that counts; the published code has no limit and goes NaN.
SYN_LR_CLIP = 1.0


def distill(
    gaussians: Parameterization,
    data: ImageData,
    config: DistillConfig,
    eval_config: EvalConfig,
    *,
    seed: int,
    folder: Path | None = None,
    experts: Experts | None = None,
    snapshots: list[Snapshot] | None = None,
    soft_labels: SoftLabels | None = None,
    start: dict[str, float] | None = None,
) -> Iterator[dict[str, float]]:
    """Distill ``data.train`` into ``gaussians`` in place; yields a history row per evaluation.

    A row holds step, loss, and the validation accuracy's mean, std, n and ci95; with trajectory
    matching also syn_lr, the learned learning rate, which the row's networks were trained with
    (:func:`learned_eval_config` gives it to those of the final evaluation). After the last row
    ``gaussians`` are those of the best one: the choice is made on the validation split, and the
    test split is never read here.

    Args:
        gaussians: what is distilled into; any other parameterization will do, pixels for one.
        eval_config: how a row's networks are trained; ``config.select_networks`` says how many.
        folder: where ``checkpoint.pt`` is written every few steps and read at the start. A
            checkpoint of other settings is refused.
        experts: whose paths trajectory matching follows; the other objectives need none.
        snapshots: a list that receives the packed Gaussians of every row, for
            ``protocols.compare_protocols``; the checkpoint then holds them too. With learned
            labels an entry is a pair of these and the labels' logits.
        soft_labels: learned labels, one per image, moved in place by the objective's gradient at
            ``config.label_lr``; a row's networks train on their probabilities, and at the end they
            are those of the best row.
        start: the first row of another run from the same Gaussians, judged with the same settings
            and seed, so that they are not evaluated again. Not taken with learned labels, nor where
            the students' learning rate is not ``eval_config``'s: such a start is judged otherwise.

    Raises:
        DistillError: the loss or its gradient is not a number, or the checkpoint does not fit.
            ctrl-C stops between two steps with a KeyboardInterrupt that names the checkpoint.
        ExpertError: there are no experts, or not those that the settings ask for.
        ValueError: the learned labels are not one per image and class.
    """
    carried = begin(data, config, experts)
    carried.soft = _checked(soft_labels, gaussians, data)
    optimizers = optimizers_of(gaussians, carried, config)
    state = Distillation(gaussians, carried, optimizers, snapshots=snapshots)
    checkpoint = Checkpoint(folder, state, config, eval_config, seed, experts)
    checkpoint.load(state)
    judges = eval_config.model_copy(update={"networks": config.select_networks})
    yield from state.history
    try:
        with Progress(config.steps, config.objective, done=state.step) as progress:
            if not state.history:
                known = start if _judged_alike(carried, config, eval_config) else None
                row = _evaluate(state, data, config, judges, seed=seed, loss=math.nan, known=known)
                checkpoint.save(state)
                yield row
            while state.step < config.steps:
                loss = take_step(state, data, config, seed=seed)
                if not torch.isfinite(loss):
                    raise DistillError(
                        f"The loss is not a number at step {state.step}; {advice(config)}"
                    )
                progress.update(loss=loss.item())
                evaluated = state.step % config.eval_every == 0 or state.step == config.steps
                if evaluated:
                    row = _evaluate(state, data, config, judges, seed=seed, loss=loss.item())
                if evaluated or state.step % config.checkpoint_every == 0:
                    checkpoint.save(state)
                if evaluated:
                    yield row
    except (DistillError, EvaluationError) as error:
        raise DistillError(f"{error}. {checkpoint.sentence()}") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Stopped at step {state.step}. {checkpoint.sentence()}") from None
    if state.best is not None:
        state.restore(state.best)


def _checked(
    soft: SoftLabels | None, gaussians: Parameterization, data: ImageData
) -> SoftLabels | None:
    expected = [len(gaussians.labels), data.num_classes]
    if soft is not None and list(soft.logits.shape) != expected:
        raise ValueError(
            f"learned labels must be {expected}, a number per image and class, got "
            f"{list(soft.logits.shape)}; make them of these images"
        )
    return soft


def _judged_alike(carried: Carried, config: DistillConfig, eval_config: EvalConfig) -> bool:
    """Whether the start is judged as it would be with any other objective."""
    own_rate = config.objective == "tm" and not math.isclose(
        config.syn_lr_init, eval_config.eval_lr
    )
    return carried.soft is None and not own_rate


def _evaluate(
    state: Distillation,
    data: ImageData,
    config: DistillConfig,
    judges: EvalConfig,
    *,
    seed: int,
    loss: float,
    known: dict[str, float] | None = None,
) -> dict[str, float]:
    """The history row of this moment, kept in ``state``; known: a row with its accuracy."""
    learned = {}
    if config.objective == "tm":
        learned["syn_lr"] = state.carried.syn_lr
        judges = judges.model_copy(update={"eval_lr": learned["syn_lr"]})
    if known is None:
        with torch.no_grad():
            images = state.gaussians.render()
            labels = state.carried.targets(state.gaussians.labels)
        rows = evaluate(images, labels, data, judges, seed=seed, split="validation")
        summary = summarize(rows)
    else:
        summary = {name: known[name] for name in SUMMARY}
    row = {"step": state.step, "loss": loss, **learned, **summary}
    state.history.append(row)
    if state.snapshots is not None:
        state.snapshots.append(state.snapshot())
    if summary["mean"] > state.best_accuracy:
        state.best_accuracy = summary["mean"]
        state.best = state.snapshot()
    return row


def optimizers_of(
    gaussians: Parameterization, carried: Carried, config: DistillConfig
) -> tuple[torch.optim.Optimizer, ...]:
    """Of the Gaussians, of the students' learning rate, and of labels that are learned."""
    adam = torch.optim.Adam(gaussians.parameters(), lr=config.lr)
    sgd = torch.optim.SGD([carried.log_syn_lr], lr=config.lr_lr, momentum=SYN_LR_MOMENTUM)
    if carried.soft is None:
        return adam, sgd
    carried.soft.requires_grad_(config.label_lr > 0)
    if not config.label_lr:
        return adam, sgd
    return adam, sgd, torch.optim.Adam(carried.soft.parameters(), lr=config.label_lr)


def outer_rate(config: DistillConfig, step: int) -> float:
    """Adam's learning rate at one of ``config.steps``, counted from 0.

    >>> [outer_rate(DistillConfig(lr=1.0, steps=2, lr_schedule="cosine"), t) for t in (0, 1)]
    [1.0, 0.5]
    """
    if config.lr_schedule == "constant":
        return config.lr
    return config.lr * (1 + math.cos(math.pi * step / config.steps)) / 2


def take_step(state: Distillation, data: ImageData, config: DistillConfig, *, seed: int) -> Tensor:
    """One step; the loss, or NaN where it, its gradient or the new learning rate is no number."""
    gaussians, carried = state.gaussians, state.carried
    for optimizer in state.optimizers:
        optimizer.zero_grad(set_to_none=True)
    step_loss = STEP_LOSSES[config.objective]
    loss = step_loss(gaussians, data, config, carried, seed=seed, step=state.step)
    total = loss + config.boundary * gaussians.penalty()
    total.backward()
    state.optimizers[0].param_groups[0]["lr"] = outer_rate(config, state.step)
    state.step += 1
    moved = [p for optimizer in state.optimizers for p in optimizer.param_groups[0]["params"]]
    if not all(p.grad.isfinite().all() for p in moved if p.grad is not None):
        return torch.full_like(total, math.nan)
    if carried.log_syn_lr.grad is not None:  # one student gone astray must not end the run
        carried.log_syn_lr.grad.clamp_(-SYN_LR_CLIP, SYN_LR_CLIP)
    before = gaussians.packed.detach().clone()
    for optimizer in state.optimizers:
        optimizer.step()
    gaussians.scale_step_(before, config.cholesky_lr_ratio)
    gaussians.constrain_()
    return total.detach() if math.isfinite(carried.syn_lr) else torch.full_like(total, math.nan)


def advice(config: DistillConfig) -> str:
    """What to change where a loss is not a number."""
    if config.objective == "tm":
        return f"lower lr={config.lr}, lr_lr={config.lr_lr} or syn_lr_init={config.syn_lr_init}"
    return f"lower the learning rate (lr={config.lr})"
