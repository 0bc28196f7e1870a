"""Parameterizations in one contest: the same data, storage, objective, steps and networks for all.

    budget = plan_budget(BudgetConfig(ipc=1, gpc=10), data)
    entries = [
        enter(method, STARTS[method](data, budget, FitConfig(), seed=0), data, distill_config,
              eval_config, seed=0, folder=folder)
        for method in ("gaussians", "pixels", "idc")
    ]
    rows = judge(entries, data, eval_config, seed=1)

A method of your own joins by a line: ``STARTS["mine"] = function``, called as the others are.
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from gsdd_lib.config import CodecConfig, DistillConfig, EvalConfig, FitConfig
from gsdd_lib.data import ImageData
from gsdd_lib.distillation.loop import distill
from gsdd_lib.evaluation import baselines
from gsdd_lib.evaluation.evaluate import format_accuracy, summarize
from gsdd_lib.evaluation.protocols import (
    Protocols,
    best_row,
    compare_protocols,
    learned_eval_config,
)
from gsdd_lib.parameterizations import downsampled, frequency
from gsdd_lib.parameterizations.base import Parameterization
from gsdd_lib.parameterizations.budget import Budget
from gsdd_lib.parameterizations.downsampled import DownsampledImages
from gsdd_lib.parameterizations.fit import initial_gaussians
from gsdd_lib.parameterizations.frequency import FrequencyImages
from gsdd_lib.parameterizations.neural_field import NeuralFields
from gsdd_lib.parameterizations.pixel import PixelImages, Storage, random_real_pixels
from gsdd_lib.training.experts import Experts

FIELD_STEPS = 500  # Adam steps of a neural field's warm-up; published: 5,000
Start = Callable[..., Parameterization]


def start_gaussians(
    data: ImageData, budget: Budget, fit_config: FitConfig, *, seed: int, **more: Any
) -> Parameterization:
    """Gaussians fitted to real images; ``more`` goes to :func:`initial_gaussians`."""
    return initial_gaussians(data, budget, fit_config, seed=seed, **more).gaussians


def start_pixels(storage: Storage, factor: int = 1) -> Start:
    """Random real images as pixels of that storage; ``factor``: of smaller sides (IDC)."""

    def start(data: ImageData, budget: Budget, _: FitConfig, *, seed: int) -> Parameterization:
        count = downsampled.affordable_images(budget, factor=factor, storage=storage)
        images, labels = _real(data, count, seed)
        more = {"normalization": data.normalization, "storage": storage}
        if factor == 1:
            return PixelImages.init_from(images, labels, **more).to(data.device)
        return DownsampledImages.init_from(images, labels, factor=factor, **more).to(data.device)

    return start


def start_frequencies(
    data: ImageData, budget: Budget, _: FitConfig, *, seed: int
) -> Parameterization:
    """Random real images by the frequencies that vary most (FreD), as many as Gaussian images."""
    values = budget.budget_bits_per_class // (32 * budget.channels)
    frequencies = min(budget.height * budget.width, max(1, values // budget.gpc))
    count = frequency.affordable_images(budget, frequencies)
    images, labels = _real(data, count, seed)
    more = {"frequencies": frequencies, "normalization": data.normalization}
    return FrequencyImages.init_from(images, labels, **more).to(data.device)


def start_fields(data: ImageData, budget: Budget, _: FitConfig, *, seed: int) -> Parameterization:
    """Small SIRENs fitted to random real images (DDiF): 2 x 6 to 32 pixels, 3 x 20 above."""
    layers, width, frequency_ = (2, 6, 10.0) if budget.height <= 32 else (3, 20, 40.0)
    shape = {"layers": layers, "width": width, "frequency": frequency_}
    labels = torch.zeros(1, dtype=torch.int64)
    one = NeuralFields(
        labels, data.channels, data.resolution, normalization=data.normalization, **shape
    )
    images, labels = _real(data, max(1, budget.budget_bits_per_class // one.bits), seed)
    more = {"normalization": data.normalization, "steps": FIELD_STEPS, **shape}
    return NeuralFields.init_from(images, labels, **more).to(data.device)


STARTS: dict[str, Start] = {
    "gaussians": start_gaussians,
    "pixels": start_pixels("uint8"),
    "pixels fp32": start_pixels("fp32"),
    "pixels bf16": start_pixels("bf16"),
    "idc": start_pixels("fp32", downsampled.FACTOR),
    "idc 4 bits": start_pixels("uint4", downsampled.FACTOR),
    "fred": start_frequencies,
    "ddif": start_fields,
}


@dataclass
class Entry:
    """One method's part in a contest.

    method: its name, as tables and figures say it
    images: the parameterization, at its best row on validation
    start: its parameters before distillation, a snapshot
    history: a row per evaluation, as ``distill`` yields them
    snapshots: the parameters of each of these rows
    eval_config: how its networks are trained; with the learning rate that TM learned
    seconds: of the distillation in this process; a resumed run's earlier part is not in it
    """

    method: str
    images: Parameterization
    start: dict[str, Tensor]
    history: list[dict[str, float]]
    snapshots: list[dict[str, Tensor]]
    eval_config: EvalConfig
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    @torch.no_grad()
    def render(self, snapshot: Mapping[str, Tensor] | None = None) -> Tensor:
        """Normalized images [N, C, H, W] as they are, or of a snapshot."""
        return functional_call(self.images, dict(snapshot or {}), ())

    @property
    def bits_per_class(self) -> float:
        """Bits of the images as stored, over the classes that occur."""
        return self.images.bits / len(self.images.labels.unique())


def enter(
    method: str,
    images: Parameterization,
    data: ImageData,
    config: DistillConfig,
    eval_config: EvalConfig,
    *,
    seed: int,
    folder: Path | None = None,
    experts: Experts | None = None,
    start: dict[str, float] | None = None,
    codec: CodecConfig | None = None,
) -> Entry:
    """Distill ``images`` in place and keep how it went; prints a line per evaluation.

    Args:
        method: its name.
        images: what :data:`STARTS` gives.
        folder: where checkpoints go, under the method's name; the same call goes on from there.
        experts: whose trajectories TM follows.
        start: the first row of another run from the same images, not evaluated again.
        codec: bits of stored numbers, rounded in the distillation, as ``distill`` takes it.
    """
    before = {name: value.detach().clone() for name, value in images.named_parameters()}
    began, history, snapshots = time.perf_counter(), [], []
    place = folder / method.replace(" ", "_") if folder else None
    more = {"folder": place, "experts": experts, "snapshots": snapshots, "start": start}
    more["codec"] = codec
    for row in distill(images, data, config, eval_config, seed=seed, **more):
        history.append(row)
        seconds = time.perf_counter() - began
        shown = f"step {row['step']:5d}: {format_accuracy(row)} on validation"
        print(f"{method}, {shown}  ({seconds:.0f} s)", flush=True)
    learned = learned_eval_config(eval_config, history)
    seconds = time.perf_counter() - began
    facts = {"objective": config.objective, "steps": config.steps, "images": len(images)}
    return Entry(method, images, before, history, snapshots, learned, seconds, facts)


def judge(
    entries: Sequence[Entry],
    data: ImageData,
    eval_config: EvalConfig,
    *,
    seed: int,
    initial: Sequence[str] = (),
) -> list[baselines.Row]:
    """A row per method and network: accuracy on the test split, networks trained on it alone.

    Every method gets the number of SGD steps that the first entry's set gets in
    ``eval_config.epochs``, so that fewer images are not trained on for less time.

    Args:
        entries: the first one sets the number of steps.
        seed: none of those that chose a row.
        initial: methods whose images before distillation are judged too, as "<method>, initial".
    """
    sets, configs = {}, {}
    for entry in entries:
        states = {entry.method: None}
        if entry.method in initial:
            states[f"{entry.method}, {baselines.INITIAL}"] = entry.start
        for name, snapshot in states.items():
            own = entry.eval_config if snapshot is None else eval_config
            sets[name] = (entry.render(snapshot), entry.images.labels)
            configs[name] = _equal_steps(own, entries, entry)
    return baselines.set_rows(sets, data, configs, seed=seed)


def compare(
    entries: Sequence[Entry],
    data: ImageData,
    eval_config: EvalConfig,
    *,
    seed: int,
    rows: Sequence[baselines.Row] = (),
) -> dict[str, Protocols]:
    """Both protocols of every entry, by method; the networks are trained as in :func:`judge`.

    Args:
        rows: of ``judge`` with the same entries, config and seed; not evaluated again.
    """
    found = {}
    for entry in entries:
        judged = [row for row in rows if row["method"] == entry.method]
        found[entry.method] = compare_protocols(
            entry.history,
            entry.snapshots,
            entry.render,
            entry.images.labels,
            data,
            _equal_steps(eval_config, entries, entry),
            seed=seed,
            known={best_row(entry.history): summarize(judged)} if judged else None,
        )
    return found


def repeat(images: Parameterization) -> Parameterization:
    """A copy to distill in another way from the same start."""
    return copy.deepcopy(images)


def _equal_steps(config: EvalConfig, entries: Sequence[Entry], entry: Entry) -> EvalConfig:
    return baselines.equal_steps(config, len(entries[0].images), len(entry.images))


def _real(data: ImageData, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pixel values [N, C, H, W] and labels of ``count`` random training images per class."""
    chosen = random_real_pixels(data, count, seed=seed, storage="uint8")
    return chosen.pixels().detach(), chosen.labels
