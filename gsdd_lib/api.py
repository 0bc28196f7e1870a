"""One call that distills your own images; notebook 00 takes its steps one by one."""

import math
import operator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsdd_lib import config
from gsdd_lib.config import BudgetConfig, DataConfig, DistillConfig, EvalConfig, FitConfig
from gsdd_lib.core.errors import ConfigError
from gsdd_lib.core.files import project_root
from gsdd_lib.core.progress import say
from gsdd_lib.data import DataError, ImageData, from_tensors, load_data
from gsdd_lib.distillation.loop import distill
from gsdd_lib.distillation.soft_labels import labels_of_teacher, train_teacher
from gsdd_lib.evaluation.protocols import learned_eval_config
from gsdd_lib.parameterizations.budget import GEOMETRY, plan_budget, points_per_image
from gsdd_lib.parameterizations.fit import initial_gaussians
from gsdd_lib.storage import DistilledSet
from gsdd_lib.training.experts import Experts

POINTS_AT_32 = 22  # Gaussians per image of 32x32 in the paper (table 7), 170 at 128x128:
POINTS_EXPONENT = 1.5  # growing by this power of the side
IMAGES_SEEN = 30_000  # by a network in its training on a distilled set, if in as many epochs as
LEAST_EPOCHS, MOST_EPOCHS = 50, 300
MODELS = (BudgetConfig, FitConfig, DistillConfig, EvalConfig)


def distill_images(
    images: Any,
    labels: Any = None,
    *,
    ipc: int = 1,
    gpc: int | None = None,
    objective: str = "dm",
    experts: Path | str | None = None,
    steps: int = 200,
    seed: int = 0,
    folder: Path | str | None = None,
    resolution: int = 0,
    width: int = 32,
    epochs: int | None = None,
    soft_labels: bool = False,
    **settings: Any,
) -> DistilledSet:
    """Distill a labeled set of images into Gaussians; says what it holds out and how long it takes.

    Args:
        images: a folder with a folder per class; a tensor or array [N, H, W], [N, C, H, W] or
            [N, H, W, C], uint8 or in [0, 1]; a pair of images and labels; or :class:`ImageData`.
        labels: of a tensor or array, [N]: integers or names of classes.
        ipc: budget, in fp32 images per class.
        gpc: Gaussian images per class; left out, as many as leave each the paper's detail.
        objective: what is matched: distributions (dm), gradients (dc), or trajectories (tm).
        experts: the folder of the experts that ``tm`` follows, or that ``dm_networks='trained'``
            takes (``train_experts``, notebook 03).
        folder: of checkpoints, from the project's root; the same call goes on from there.
        resolution: pixels per side of images from a folder (0: their own).
        width: filters per convolution of the networks; experts have their own.
        epochs: passes of a network over the distilled set; left out, fewer for larger sets.
        soft_labels: whether labels are learned too, from a small network's; the budget pays.
        settings: more of ``BudgetConfig``, ``FitConfig``, ``DistillConfig`` and ``EvalConfig``.

    Returns:
        The set, with the data it was made from and the rows of the run as ``history``.
    """
    numbers = {"ipc": ipc, "steps": steps, "seed": seed, "resolution": resolution, "width": width}
    ipc, steps, seed, resolution, width = (_whole(*item) for item in numbers.items())
    known = {name for model in MODELS for name in model.model_fields}
    if wrong := min(settings.keys() - known, default=""):
        raise ConfigError(f"unknown setting '{wrong}'{config.nearest(wrong, known)}")
    data = as_image_data(images, labels, size=resolution, seed=seed)
    held = f"{len(data.validation):,} to choose the best step, {len(data.test):,} to test"
    given = f"{len(data.train):,} images of {data.num_classes} classes"
    say(f"{given} are distilled; held out: {held}")
    gpc = suggested_gpc(data, ipc, soft_labels=soft_labels) if gpc is None else _whole("gpc", gpc)
    most = max(1, len(data.train) // data.num_classes)
    if gpc > most:
        say(f"{most} Gaussian images per class, not {gpc}: no more than there are real ones")
    spent = {"ipc": ipc, "gpc": min(gpc, most), "soft_labels": soft_labels}
    budget = plan_budget(BudgetConfig.pick(settings, **spent), data)
    say(budget.describe())
    network = settings.get("network", suggested_network(data.resolution))
    followed, starts = None, 1
    trained = settings.get("dm_networks") == "trained"
    if trained or objective == "tm":
        if experts is None:
            asked = "dm_networks='trained' takes" if trained else "objective='tm' follows"
            raise ConfigError(f"{asked} experts; pass the folder of train_experts")
        followed = Experts(_in_project(experts))
        theirs, starts = followed.about[0]["settings"], min(5, max(1, followed.epochs - 1))
        network, width = theirs["expert_network"], theirs["expert_width"]
    epochs = suggested_epochs(budget.gpc * data.num_classes) if epochs is None else epochs
    ours = {"eval_network": network, "eval_width": width, "select_networks": 1}
    ours |= {"eval_every": max(1, math.ceil(steps / 2)), "max_start_epoch": starts} | settings
    evaluation = EvalConfig.pick(ours, epochs=_whole("epochs", epochs))
    matching = {"objective": objective, "network": network, "width": width, "steps": steps}
    matched, fitted = DistillConfig.pick(ours, **matching), FitConfig.pick(settings)
    gaussians, soft = initial_gaussians(data, budget, fitted, seed=seed).gaussians, None
    if soft_labels:
        with torch.no_grad():
            pictures = gaussians.render()
        teacher = train_teacher(data, evaluation, seed=seed)
        soft = labels_of_teacher(teacher, pictures, gaussians.labels)
    more = {"folder": folder and _in_project(folder), "soft_labels": soft, "experts": followed}
    history = list(distill(gaussians, data, matched, evaluation, seed=seed, **more))
    best = max(history, key=lambda row: row["mean"])
    about = {"made_by": "distill_images", "objective": objective, "seed": seed, "ipc": ipc}
    about["accuracy"] = {"mean": best["mean"], "n": 1, "split": "validation"}
    more = {"soft_labels": soft, "syn_lr": best.get("syn_lr"), "history": history}
    more |= {"eval_config": learned_eval_config(evaluation, history)}
    return DistilledSet.of(gaussians, data, about | {"steps": best["step"]}, **more)


def _whole(name: str, value: Any) -> int:
    try:
        return operator.index(value)  # takes numpy's too
    except TypeError:
        raise ConfigError(f"{name} must be a whole number, got {value!r}") from None


def _in_project(folder: Path | str) -> Path:
    return project_root() / Path(folder).expanduser()


def as_image_data(images: Any, labels: Any = None, *, size: int = 0, seed: int = 0) -> ImageData:
    """An :class:`ImageData` of anything that :func:`distill_images` takes."""
    if labels is None and isinstance(images, tuple | list) and len(images) == 2:
        images, labels = images
    if isinstance(images, ImageData):
        return images
    if isinstance(images, str | Path):
        config = DataConfig(dataset="imagefolder", folder=str(images), resolution=size)
        return load_data(config, seed)
    if labels is None:
        raise DataError("images need labels: distill_images(images, labels), or a folder per class")
    images = images if isinstance(images, Tensor) else torch.as_tensor(np.asarray(images))
    if images.dim() == 3:
        images = images[:, None]
    elif images.dim() == 4 and images.shape[1] > 4 >= images.shape[3]:  # channels are last
        images = images.permute(0, 3, 1, 2).contiguous()
    values = labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.ndim != 1 or values.dtype.kind not in "iuUS":
        found = f"{values.dtype} of shape {list(values.shape)}"
        raise DataError(f"labels must be integers or names of shape [N], got {found}")
    names, numbers = np.unique(values, return_inverse=True)
    numbers, names = torch.from_numpy(numbers.reshape(-1)).long(), list(map(str, names))
    return from_tensors(images, numbers, class_names=names, seed=seed)


def suggested_network(resolution: tuple[int, int]) -> str:
    """The ConvNet whose last features are about 4x4: D3 for 28 and 32 pixels, D5 for 128."""
    depth = round(math.log2(min(resolution))) - 2
    return f"ConvNetD{min(max(depth, 1), 6)}"


def suggested_epochs(images: int) -> int:
    """Passes over a set of so many images that train a network well enough to compare sets."""
    return min(MOST_EPOCHS, max(LEAST_EPOCHS, round(IMAGES_SEEN / images)))


def suggested_gpc(data: ImageData, ipc: int, *, soft_labels: bool = False) -> int:
    """Gaussian images per class, paid-for labels included, that leave each the paper's detail."""
    height, width = data.resolution
    sizes = {"height": height, "width": width, "channels": data.channels}
    affordable = points_per_image(ipc=ipc, gpc=1, **sizes)
    wanted = POINTS_AT_32 * (math.sqrt(height * width) / 32) ** POINTS_EXPONENT
    label = soft_labels * data.num_classes / (GEOMETRY + data.channels + 1)  # in Gaussians
    return max(1, int(affordable / (max(wanted, 4) + label)))
