"""Parameterizations in one contest: the same data, storage, objective, steps and networks for all.
Each starts from :data:`STARTS`, is distilled by :func:`enter` and evaluated by :func:`judge`. A
method of your own joins by a line: ``STARTS["mine"] = function``, called as the others are."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from gsdd_lib.config import DistillConfig, EvalConfig, FitConfig
from gsdd_lib.data import ImageData
from gsdd_lib.distillation.loop import distill
from gsdd_lib.evaluation import baselines, protocols
from gsdd_lib.evaluation.evaluate import format_accuracy, summarize
from gsdd_lib.parameterizations import frequency, pixel
from gsdd_lib.parameterizations.base import Parameterization
from gsdd_lib.parameterizations.budget import Budget
from gsdd_lib.parameterizations.fit import initial_gaussians
from gsdd_lib.parameterizations.frequency import FrequencyImages
from gsdd_lib.parameterizations.neural_field import NeuralFields
from gsdd_lib.parameterizations.pixel import (
    DownsampledImages,
    PixelImages,
    Storage,
    random_real_pixels,
)

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
        count = pixel.affordable_images(budget, factor=factor, storage=storage)
        if factor == 1:
            return _of_real(PixelImages, data, count, seed, storage=storage)
        return _of_real(DownsampledImages, data, count, seed, storage=storage, factor=factor)

    return start


def start_frequencies(
    data: ImageData, budget: Budget, _: FitConfig, *, seed: int
) -> Parameterization:
    """Random real images by the frequencies that vary most (FreD), as many as Gaussian images."""
    values = budget.budget_bits_per_class // (32 * budget.channels)
    frequencies = min(budget.height * budget.width, max(1, values // budget.gpc))
    count = frequency.affordable_images(budget, frequencies)
    return _of_real(FrequencyImages, data, count, seed, frequencies=frequencies)


def start_fields(data: ImageData, budget: Budget, _: FitConfig, *, seed: int) -> Parameterization:
    """Small SIRENs fitted to random real images (DDiF): 2 x 6 to 32 pixels, 3 x 20 above."""
    layers, width, rate = (2, 6, 10.0) if budget.height <= 32 else (3, 20, 40.0)
    shape = {"layers": layers, "width": width, "frequency": rate}
    more = {"normalization": data.normalization, **shape}
    one = NeuralFields(torch.zeros(1), data.channels, data.resolution, **more)
    count = max(1, budget.budget_bits_per_class // one.bits)
    return _of_real(NeuralFields, data, count, seed, steps=FIELD_STEPS, **shape)


def _of_real(kind: Any, data: ImageData, count: int, seed: int, **more: Any) -> Parameterization:
    real = random_real_pixels(data, count, seed=seed, storage="uint8")
    more |= {"normalization": data.normalization}
    return kind.init_from(real.pixels().detach(), real.labels, **more).to(data.device)


STARTS: dict[str, Start] = {
    "gaussians": start_gaussians,
    "pixels": start_pixels("uint8"),
    "pixels fp32": start_pixels("fp32"),
    "pixels bf16": start_pixels("bf16"),
    "idc": start_pixels("fp32", pixel.FACTOR),
    "idc 4 bits": start_pixels("uint4", pixel.FACTOR),
    "fred": start_frequencies,
    "ddif": start_fields,
}


@dataclass
class Entry:
    """One method's part in a contest."""

    method: str  # its name, as tables and figures say it
    images: Parameterization  # at its best row on validation
    start: dict[str, Tensor]  # its parameters before distillation, a snapshot
    history: list[dict[str, float]]  # a row per evaluation, as ``distill`` yields them
    snapshots: list[dict[str, Tensor]]  # the parameters of each of these rows
    eval_config: EvalConfig  # how its networks are trained; with the rate that TM learned
    seconds: float  # of the distillation in this process, without a resumed run's earlier part
    facts: dict[str, Any]  # objective, steps, images

    @torch.no_grad()
    def render(self, snapshot: Mapping[str, Tensor] | None = None) -> Tensor:
        return functional_call(self.images, dict(snapshot or {}), ())

    # Bits of the images as stored, over the classes that occur.
    bits_per_class = property(lambda self: self.images.bits / len(self.images.labels.unique()))


def enter(
    method: str,
    images: Parameterization,
    data: ImageData,
    config: DistillConfig,
    eval_config: EvalConfig,
    **more: Any,
) -> Entry:
    """Distill ``images``, as :data:`STARTS` gives them, in place and keep how it went; prints a
    line per evaluation. ``more``: of :func:`~gsdd_lib.distillation.loop.distill`, seed, experts,
    start, codec, and folder, where checkpoints go under the method's name, to go on from."""
    before = {name: value.detach().clone() for name, value in images.named_parameters()}
    folder = more.get("folder")
    began, history, snapshots = time.perf_counter(), [], []
    more |= {"folder": folder and folder / method.replace(" ", "_"), "snapshots": snapshots}
    for row in distill(images, data, config, eval_config, **more):
        history.append(row)
        shown = f"step {row['step']:5d}: {format_accuracy(row)} on validation"
        print(f"{method}, {shown}  ({time.perf_counter() - began:.0f} s)", flush=True)
    learned = protocols.learned_eval_config(eval_config, history)
    seconds = time.perf_counter() - began
    facts = {"objective": config.objective, "steps": config.steps, "images": len(images)}
    return Entry(method, images, before, history, snapshots, learned, seconds, facts)


def judge(
    entries: Sequence[Entry], data: ImageData, eval_config: EvalConfig, *, seed: int, initial=()
) -> list[baselines.Row]:
    """A row per method and network: accuracy on the test split, networks trained on it alone.

    Every method gets the number of SGD steps that the first entry's set gets in
    ``eval_config.epochs``, so that fewer images are not trained on for less time.

    Args:
        seed: none of those that chose a row.
        initial: methods whose images before distillation are judged too, as "<method>, initial".
    """
    sets, configs = {}, {}
    for entry in entries:
        states = {entry.method: (None, entry.eval_config)}
        if entry.method in initial:
            states[f"{entry.method}, {baselines.INITIAL}"] = (entry.start, eval_config)
        for name, (snapshot, own) in states.items():
            sets[name] = (entry.render(snapshot), entry.images.labels)
            configs[name] = baselines.equal_steps(own, len(entries[0].images), len(entry.images))
    return baselines.set_rows(sets, data, configs, seed=seed)


def compare(
    entries: Sequence[Entry], data: ImageData, eval_config: EvalConfig, *, seed: int, rows=()
) -> dict[str, protocols.Protocols]:
    """Both protocols of every entry, by method; the networks are trained as in :func:`judge`.
    ``rows``: of ``judge`` with the same entries, config and seed; not evaluated again."""
    found = {}
    for entry in entries:
        judged = [row for row in rows if row["method"] == entry.method]
        known = {protocols.best_row(entry.history): summarize(judged)} if judged else None
        run = (entry.history, entry.snapshots, entry.render, entry.images.labels, data)
        config = baselines.equal_steps(eval_config, len(entries[0].images), len(entry.images))
        both = protocols.compare_protocols(*run, config, seed=seed, known=known)
        found[entry.method] = both
    return found
