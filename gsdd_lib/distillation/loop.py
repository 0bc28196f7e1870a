"""The outer loop: change a parameterization until networks cannot tell it from the real data.

One step moves the parameters down the gradient of the objective
(:mod:`gsdd_lib.distillation.losses`). Every random number of step ``t`` comes from generators made
for ``(seed, t)``, so a run that was killed and resumed is bit for bit the run that was not (on the
CPU), and an evaluation in between changes nothing.
"""

import contextlib
import gc
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from gsdd_lib.config import CodecConfig, DistillConfig, EvalConfig
from gsdd_lib.core.files import lock_folder
from gsdd_lib.core.progress import Progress, say
from gsdd_lib.core.schedule import cosine
from gsdd_lib.data import ImageData
from gsdd_lib.distillation.losses import STEP_LOSSES
from gsdd_lib.distillation.rounding import fit_grids
from gsdd_lib.distillation.soft_labels import SoftLabels
from gsdd_lib.distillation.state import Checkpoint, DistillError, Snapshot, State, begin
from gsdd_lib.evaluation.evaluate import SUMMARY, evaluate, summarize
from gsdd_lib.parameterizations.base import Parameterization
from gsdd_lib.training.experts import Experts
from gsdd_lib.training.train import EvaluationError

# Largest gradient of the learned rate's logarithm that counts; the published code has no limit and
# becomes non-finite.
SYN_LR_CLIP = 1.0


def distill(
    parameterization: Parameterization,
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
    codec: CodecConfig | None = None,
) -> Iterator[dict[str, float]]:
    """Distill ``data.train`` into ``parameterization`` in place; a history row per evaluation.

    A row holds step, loss, and the validation accuracy's mean, std, n and ci95; with trajectory
    matching also syn_lr, the learned learning rate, which the row's networks were trained with
    (``learned_eval_config`` gives it to those of the final evaluation). After the last row the
    parameterization is that of the best one: the choice is made on the validation split, and the
    test split is never read here. Where memory runs out, a step is repeated with less in memory
    at once, which changes rounding alone.

    Args:
        parameterization: what is distilled into: Gaussians, pixels, neural fields, or your own.
        eval_config: how a row's networks are trained; ``config.select_networks`` says how many.
        folder: where ``checkpoint.<hash>.pt`` is written every few steps and read at the start:
            the same call goes on from there, and one with other settings, seed, data or start
            begins anew beside it. Locked against other processes meanwhile.
        experts: whose paths trajectory matching follows; the other objectives need none.
        snapshots: a list that receives the parameters of every row by name (see ``Snapshot``), for
            ``protocols.compare_protocols``; the checkpoint then holds them too. With learned
            labels also their ``label_logits``.
        soft_labels: learned labels, one per image, moved in place by the objective's gradient at
            ``config.label_lr``; a row's networks train on their probabilities, and at the end they
            are those of the best row.
        start: the first row of another run from the same parameters, evaluated with the same
            settings and seed, so that they are not evaluated again. Not taken with learned labels,
            nor where the students' learning rate is not ``eval_config``'s: such a start is
            evaluated otherwise.
        codec: bits per number of Gaussians that are stored in few (:mod:`.codec`), 4 per learned
            label. Grids are fitted after ``config.round_from`` of the steps, and the rest of the
            distillation is of rounded numbers; a row before that is never the best one.

    Raises:
        DistillError: the loss or its gradient is non-finite, memory does not suffice, the
            checkpoint is damaged, or labels do not fit the data.
        ExpertError: there are no experts, or not those that the settings ask for.
        FolderInUseError: another process is at work in ``folder``.
        KeyboardInterrupt: at Ctrl-C; it names the checkpoint.
    """
    more = {"experts": experts, "soft_labels": soft_labels, "snapshots": snapshots, "codec": codec}
    state = begin(parameterization, data, config, **more)
    with lock_folder(folder) if folder else contextlib.nullcontext():
        checkpoint = Checkpoint(folder, state, data, eval_config, seed)
        if line := checkpoint.load(state):
            say(line)
        yield from state.history
        try:
            yield from _rows(state, data, eval_config, checkpoint, seed=seed, start=start)
        except (DistillError, EvaluationError) as error:
            raise DistillError(f"{error}. {checkpoint.sentence()}") from error
        except KeyboardInterrupt:
            on = " The same call goes on from there." if checkpoint.step is not None else ""
            said = f"Stopped after step {state.step}. {checkpoint.sentence()}{on}"
            raise KeyboardInterrupt(said) from None
    if state.best is not None:
        state.restore(state.best)


def _rows(
    state: State,
    data: ImageData,
    eval_config: EvalConfig,
    checkpoint: Checkpoint,
    *,
    seed: int,
    start: dict[str, float] | None,
) -> Iterator[dict[str, float]]:
    """The rows that are not in the checkpoint, which is kept up to date."""
    config = state.config
    select = eval_config.model_copy(update={"networks": config.select_networks})
    facts = {"done": state.step, "every": config.eval_every}
    with Progress(config.steps, config.objective, **facts) as progress:
        if not state.history:
            known = start if _evaluated_alike(state, eval_config) else None
            row = _evaluate(
                state, data, select, seed=seed, loss=math.nan, known=known, progress=progress
            )
            checkpoint.save(state)
            yield row
        while state.step < config.steps:
            with progress.timed("step"):
                loss = take_step(state, data, seed=seed).item()
            progress.update(loss=loss)
            row = None
            if state.step % config.eval_every == 0 or state.step == config.steps:
                row = _evaluate(state, data, select, seed=seed, loss=loss, progress=progress)
            if row or state.step % config.checkpoint_every == 0:
                checkpoint.save(state)
            if row:
                yield row


def take_step(state: State, data: ImageData, *, seed: int) -> Tensor:
    """One step of the outer loop, in place.

    Returns:
        The loss, boundary loss included.

    Raises:
        DistillError: the loss, its gradient or the new learning rate is non-finite, or memory does
            not suffice.
    """
    config, images = state.config, state.parameterization
    if state.codec is not None and state.step == int(config.round_from * config.steps):
        fit_grids(images, state.soft_labels, state.codec)
        state.best, state.best_accuracy = None, -math.inf  # of numbers that are not rounded
    one_by_one = config.update_per_class and config.objective == "dm"
    terms = [{"only": own} for own in images.labels.unique().tolist()] if one_by_one else [{}]
    state.optimizers[0].param_groups[0]["lr"] = outer_rate(config, state.step)
    total = 0.0
    for term in terms:
        loss = _differentiate(state, data, seed=seed, share=1 / len(terms), **term)
        params = [p for optimizer in state.optimizers for p in optimizer.param_groups[0]["params"]]
        gradients = [param.grad for param in params if param.grad is not None]
        if not all(value.isfinite().all() for value in [loss, *gradients]):
            raise _non_finite(state)
        if state.log_syn_lr.grad is not None:  # one student gone astray must not end the run
            state.log_syn_lr.grad.clamp_(-SYN_LR_CLIP, SYN_LR_CLIP)
        before = state.snapshot()
        for optimizer in state.optimizers:
            optimizer.step()
        images.scale_step_(before, config.cholesky_lr_ratio)
        images.constrain_()
        total = total + loss
    if not math.isfinite(state.syn_lr):
        raise _non_finite(state)
    state.step += 1
    return total


def outer_rate(config: DistillConfig, step: int) -> float:
    """Adam's learning rate at one of ``config.steps``, counted from 0.

    >>> [outer_rate(DistillConfig(lr=1.0, steps=2, lr_schedule="cosine"), t) for t in (0, 1)]
    [1.0, 0.5]
    """
    if config.lr_schedule == "constant":
        return config.lr
    return config.lr * cosine(step, config.steps)


def _differentiate(
    state: State, data: ImageData, *, seed: int, share: float, **term: int
) -> Tensor:
    """Put the gradient of the loss, or of a term of it, where the optimizers look for it.

    share: of the boundary loss that is added to this term
    """
    network = state.network
    while True:
        for optimizer in state.optimizers:
            optimizer.zero_grad(set_to_none=True)
        try:
            loss = STEP_LOSSES[state.config.objective](state, data, seed=seed, **term)
            loss = loss + share * state.config.boundary * state.parameterization.penalty()
            loss.backward()
            return loss.detach()
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
        loss = None  # with it goes the graph
        state.network = network
        _use_less_memory(state, data)


def _out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    said = "out of memory" in text or "can't allocate memory" in text
    return said or isinstance(error, torch.OutOfMemoryError | MemoryError)


def _use_less_memory(state: State, data: ImageData) -> None:
    """Halve what is in memory at once. Raises :class:`DistillError` at the minimum."""
    config, step = state.config, state.step + 1
    images = max(len(state.parameterization.labels), config.batch_real * data.num_classes)
    name, most, least = "micro_batch", images, 1
    if config.objective == "tm":
        name, most, least = "keep_steps", config.syn_steps, 0
    now = min(getattr(config, name), most)
    if now <= least:
        smaller = "batch_syn, gpc or width" if config.objective == "tm" else "gpc or width"
        raise DistillError(
            f"Memory does not suffice for step {step} even with {name}={now}: run again with a "
            f"smaller {smaller}, which starts anew"
        )
    state.config = config.model_copy(update={name: now // 2})
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    say(f"out of memory at step {step}: going on with {name}={now // 2}")


def _non_finite(state: State) -> DistillError:
    config = state.config
    lower = f"a lower lr (now {config.lr})"
    if config.objective == "tm":
        lower += f", lr_lr ({config.lr_lr}) or syn_lr_init ({config.syn_lr_init})"
    return DistillError(
        f"The loss is non-finite at step {state.step + 1}: run again with {lower}, which starts "
        "anew"
    )


def _evaluated_alike(state: State, eval_config: EvalConfig) -> bool:
    """Whether the start is evaluated as it would be with any other objective."""
    config = state.config
    same_rate = math.isclose(config.syn_lr_init, eval_config.eval_lr)
    return state.soft_labels is None and (config.objective != "tm" or same_rate)


def _evaluate(
    state: State,
    data: ImageData,
    select: EvalConfig,
    *,
    seed: int,
    loss: float,
    progress: Progress,
    known: dict[str, float] | None = None,
) -> dict[str, float]:
    """The history row of this moment, kept in ``state``; known: a row with its accuracy."""
    learned = {}
    if state.config.objective == "tm":
        learned["syn_lr"] = state.syn_lr
        select = select.model_copy(update={"eval_lr": learned["syn_lr"]})
    if known is None:
        with torch.no_grad():
            images, labels = state.parameterization.render(), state.targets()
        with progress.timed("evaluation"):
            rows = evaluate(images, labels, data, select, seed=seed, split="validation")
        summary = summarize(rows)
    else:
        summary = {name: known[name] for name in SUMMARY}
    row = {"step": state.step, "loss": loss, **learned, **summary}
    state.history.append(row)
    if state.snapshots is not None:
        state.snapshots.append(state.snapshot())
    if summary["mean"] > state.best_accuracy:
        state.best_accuracy, state.best = summary["mean"], state.snapshot()
    return row
