"""The outer loop: change a parameterization until networks cannot tell it from the real data.

Random numbers of step ``t`` come from generators made for ``(seed, t)``, so a run that was killed
and resumed is bit for bit the run that was not (on the CPU).
"""

import contextlib
import gc
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gsdd_lib.config import DistillConfig, EvalConfig
from gsdd_lib.core import ranks
from gsdd_lib.core.files import lock_folder
from gsdd_lib.core.graph import set_rate
from gsdd_lib.core.progress import Progress, say
from gsdd_lib.core.schedule import cosine
from gsdd_lib.data import ImageData
from gsdd_lib.distillation.losses import STEP_LOSSES
from gsdd_lib.distillation.state import Checkpoint, DistillError, State
from gsdd_lib.evaluation.evaluate import SUMMARY, evaluate, summarize
from gsdd_lib.parameterizations.base import Parameterization
from gsdd_lib.training.train import EvaluationError

SYN_LR_CLIP = 1.0  # largest gradient of the learned rate's logarithm; published: none
Row = dict[str, float]


def distill(
    parameterization: Parameterization,
    data: ImageData,
    config: DistillConfig,
    eval_config: EvalConfig,
    *,
    seed: int,
    folder: Path | None = None,
    start: Row | None = None,
    **more: Any,
) -> Iterator[Row]:
    """Distill ``data.train`` into ``parameterization`` in place; a history row per evaluation.

    After the last row the parameterization is that of the best one, chosen on the validation split;
    the test split is never read. Where memory runs out, a step is repeated with less in memory.
    Ranks (:mod:`gsdd_lib.core.ranks`) share every step, to the same bits as one (tm: to rounding).

    Args:
        eval_config: how a row's ``config.select_networks`` networks are trained.
        folder: of checkpoints, locked meanwhile: the same call goes on from there, and one with
            other settings, seed, data or start begins anew beside it.
        start: the first row of another run from the same parameters, settings and seed, taken in
            place of an evaluation where this one would be evaluated alike.
        experts: ``Experts`` whose paths ``tm`` follows, or for ``dm_networks='trained'``.
        snapshots: a list that receives the parameters of every row, for ``compare_protocols``.
        soft_labels: ``SoftLabels``, one per image, moved in place at ``config.label_lr``; a row's
            networks train on their probabilities.
        codec: ``CodecConfig``: after ``config.round_from`` of the steps Gaussians are rounded to
            grids of so few bits, learned labels to 4; no row before that is the best one.

    Yields:
        step, loss, the validation accuracy's mean, std, n, ci95; tm: syn_lr, learned and used here.

    Raises:
        DistillError: the loss or its gradient is non-finite, memory does not suffice, the
            checkpoint is damaged, or labels do not fit the data.
        ExpertError: there are no experts, or not those that the settings ask for.
        FolderInUseError: another process is at work in ``folder``.
        RankError: another rank has died.
        KeyboardInterrupt: at Ctrl-C; it names the checkpoint.
    """
    state = State(parameterization, data, config, **more)
    ranks.agree(*state.distilled().values())
    with lock_folder(folder) if folder and not ranks.rank() else contextlib.nullcontext():
        checkpoint = Checkpoint(folder, state, data, eval_config, seed)
        if line := checkpoint.load(state):
            say(line)
        ranks.meet()  # the first rank writes to the file when all have read it
        yield from state.history
        try:
            yield from _rows(state, data, eval_config, checkpoint, seed, start or {})
        except (DistillError, EvaluationError) as error:
            raise DistillError(f"{error}. {checkpoint}") from error
        except KeyboardInterrupt:
            on = " The same call goes on from there." if checkpoint.step is not None else ""
            said = f"Stopped after step {state.step}. {checkpoint}{on}"
            raise KeyboardInterrupt(said) from None
    if state.best is not None:
        state.restore(state.best)


def _rows(
    state: State, data: ImageData, judge: EvalConfig, checkpoint: Checkpoint, seed: int, start: Row
) -> Iterator[Row]:
    config, learned = state.config, state.config.objective == "tm"
    judge = judge.model_copy(update={"networks": config.select_networks})
    alike = not learned or math.isclose(config.syn_lr_init, judge.eval_lr)
    known = start if alike and state.soft_labels is None else {}  # evaluated as this one is

    def add_row(loss: float, known: Row) -> None:
        own = {"syn_lr": state.syn_lr} if learned else {}
        if not known:
            how = judge.model_copy(update={"eval_lr": own.get("syn_lr", judge.eval_lr)})
            with torch.no_grad():
                images, labels = state.parameterization.render(), state.targets()
            known = summarize(evaluate(images, labels, data, how, seed=seed, split="validation"))
        own |= {name: known[name] for name in SUMMARY}
        state.history.append({"step": state.step, "loss": loss, **own})
        if state.snapshots is not None:
            state.snapshots.append(state.snapshot())
        if known["mean"] > state.best_accuracy:
            state.best_accuracy, state.best = known["mean"], state.snapshot()

    with Progress(config.steps, config.objective, done=state.step) as progress:
        if not state.history:
            add_row(math.nan, known)
            checkpoint.save(state)
            yield state.history[-1]
        while state.step < config.steps:
            loss = take_step(state, data, seed=seed).item()
            progress.update(loss=loss)
            due = state.step % config.eval_every == 0 or state.step == config.steps
            if due:
                add_row(loss, {})
            if due or state.step % config.checkpoint_every == 0:
                checkpoint.save(state)
            if due:
                yield state.history[-1]


def take_step(state: State, data: ImageData, *, seed: int) -> Tensor:
    """One step, in place, or one per class (``update_per_class``); errors as of ``distill``."""
    config, images = state.config, state.parameterization
    if state.codec is not None and state.step == int(config.round_from * config.steps):
        state.fit_grids()
    one_by_one = config.update_per_class and config.objective == "dm"
    terms = [{"only": own} for own in images.labels.unique().tolist()] if one_by_one else [{}]
    factor = cosine(state.step, config.steps) if config.lr_schedule == "cosine" else 1
    set_rate(state.optimizers[0], config.lr * factor)
    total = 0.0
    for term in terms:
        # The boundary loss counts once in all terms; the published code adds it anew in each
        loss = _differentiate(state, data, seed, config.boundary / len(terms), term)
        params = [p for optimizer in state.optimizers for p in optimizer.param_groups[0]["params"]]
        gradients = [param.grad for param in params if param.grad is not None]
        ranks.agree(loss, *gradients)
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


def _differentiate(
    state: State, data: ImageData, seed: int, boundary: float, term: dict[str, int]
) -> Tensor:
    network = state.network
    while True:
        for optimizer in state.optimizers:
            optimizer.zero_grad(set_to_none=True)
        try:
            loss = STEP_LOSSES[state.config.objective](state, data, seed=seed, **term)
            loss = loss + boundary * state.parameterization.penalty()
            loss.backward()
            return loss.detach()
        except (RuntimeError, MemoryError) as error:
            text = str(error).lower()
            said = "out of memory" in text or "can't allocate memory" in text
            if not said and not isinstance(error, torch.OutOfMemoryError | MemoryError):
                raise
        loss = None  # with it goes the graph
        state.network, state.matching = network, None
        _use_less_memory(state, data)


def _use_less_memory(state: State, data: ImageData) -> None:
    config, step = state.config, state.step + 1
    images = max(len(state.parameterization.labels), config.batch_real * data.num_classes)
    name, most, least, smaller = "micro_batch", images, 1, "gpc or width"
    if config.objective == "tm":
        name, most, least, smaller = "keep_steps", config.syn_steps, 0, "batch_syn, gpc or width"
    now = min(getattr(config, name), most)
    short = f"Memory does not suffice for step {step}"
    if now <= least:
        remedy = f"run again with a smaller {smaller}, which starts anew"
        raise DistillError(f"{short} even with {name}={now}: {remedy}")
    if ranks.world() > 1:  # the others are in the middle of the step
        remedy = f"run again with {name}={now // 2}, which goes on"
        raise DistillError(f"{short} on rank {ranks.rank()}: {remedy}")
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
    fault = f"The loss is non-finite at step {state.step + 1}"
    return DistillError(f"{fault}: run again with {lower}, which starts anew")
