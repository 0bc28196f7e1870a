"""How good is a distilled set? Train fresh networks on it alone and test them on real images.

The ``validation`` split serves every choice; ``test`` is read only when it is asked for by name.
How a network is trained is in :mod:`gsdd_lib.training.train`, how rows are summed up in
:mod:`gsdd_lib.evaluation.summary`; their public names can be had from here too.

The networks are trained one after another: all five in one ``torch.func.vmap`` pass, whose
convolutions become grouped ones, are slower on a CPU. ConvNetD3 at width 64 on 28x28, two shared
cores, forward, backward and step of five: loop 0.07 s, vmap 0.19 s for 10 images; 0.85 s and 1.36 s
for 100.
"""

import time
from collections.abc import Sequence

from torch import Tensor

from gsdd_lib.config import EvalConfig
from gsdd_lib.core.progress import Progress
from gsdd_lib.core.rng import generator as make_generator
from gsdd_lib.data import ImageData
from gsdd_lib.data.dataset import keep_per_class
from gsdd_lib.evaluation.summary import format_accuracy, summarize
from gsdd_lib.networks import make_network
from gsdd_lib.training.train import EvaluationError, accuracy, learning_rate, train_network

__all__ = [
    "EvaluationError",
    "accuracy",
    "evaluate",
    "format_accuracy",
    "learned_eval_config",
    "learning_rate",
    "random_real_images",
    "summarize",
    "train_network",
]


def evaluate(
    images: Tensor,
    labels: Tensor,
    data: ImageData,
    config: EvalConfig,
    *,
    seed: int,
    split: str = "validation",
) -> list[dict[str, float | int | str]]:
    """Train ``config.networks`` networks on a distilled set; one row per network.

    Args:
        images: normalized, [N, C, H, W].
        labels: int64 [N], or probabilities [N, num_classes].
        data: real images to test on, and their normalization.
        split: ``validation`` or ``test``; the other one is not read.

    A row holds network_index, seed, split, accuracy (percent), train_loss (mean of the last epoch)
    and seconds. Network i draws from generators of its own: the same rows come out whatever was
    evaluated before, and the first rows are the same for any number of networks.
    """
    _check(images, labels, data, split)
    images, labels = images.detach(), labels.detach()
    with Progress(config.networks * config.epochs, f"evaluate on {split}") as progress:
        return [
            _train_and_test(
                images,
                labels,
                data,
                config,
                seed=seed,
                split=split,
                index=index,
                progress=progress,
            )
            for index in range(config.networks)
        ]


def learned_eval_config(eval_config: EvalConfig, rows: Sequence[dict[str, float]]) -> EvalConfig:
    """``eval_config`` with the learned learning rate of the row whose Gaussians were kept.

    Unchanged where ``rows`` hold none, which is so for every objective but trajectory matching.
    """
    best = max(rows, key=lambda row: row["mean"])
    return eval_config.model_copy(update={"eval_lr": best.get("syn_lr", eval_config.eval_lr)})


def random_real_images(data: ImageData, count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """The honest rival: ``count`` random training images per class, normalized, and their labels.

    What ``count`` the same bits buy as uint8 pixels says ``Budget.uint8_images_per_class``.
    """
    draw = make_generator(seed, "evaluate", "random real")
    chosen = data.train.select(keep_per_class(data.train.labels, count, generator=draw))
    return data.normalize(chosen.images), chosen.labels


def _train_and_test(
    images: Tensor,
    labels: Tensor,
    data: ImageData,
    config: EvalConfig,
    *,
    seed: int,
    split: str,
    index: int,
    progress: Progress,
) -> dict[str, float | int | str]:
    started, losses = time.perf_counter(), []

    def after_epoch(epoch: int, loss: float) -> None:
        losses.append(loss)
        progress.update(network=index + 1, loss=loss)

    network = make_network(
        config.eval_network,
        channels=images.shape[1],
        num_classes=data.num_classes,
        resolution=tuple(images.shape[2:]),
        width=config.eval_width,
        generator=make_generator(seed, "evaluate", index, "weights"),
        **_choices(config),
    ).to(images.device)
    draws = make_generator(seed, "evaluate", index, "training")
    train_network(images, labels, network, config, generator=draws, progress=after_epoch)
    real = getattr(data, split).to(images.device)
    percent = accuracy(network, real.images, real.labels, normalize=data.normalize)
    return {
        "network_index": index,
        "seed": seed,
        "split": split,
        "accuracy": percent,
        "train_loss": losses[-1],
        "seconds": time.perf_counter() - started,
    }


def _choices(config: EvalConfig) -> dict[str, str]:
    """The settings of a ConvNet that are not the usual ones; the other networks have none."""
    names = ("norm", "pooling", "activation")
    fields = EvalConfig.model_fields
    values = {name: getattr(config, f"eval_{name}") for name in names}
    return {name: v for name, v in values.items() if v != fields[f"eval_{name}"].default}


def _check(images: Tensor, labels: Tensor, data: ImageData, split: str) -> None:
    if split not in ("validation", "test"):
        raise ValueError(f"unknown split '{split}'; choose 'validation' or 'test'")
    expected = (data.channels, *data.resolution)
    if images.dim() != 4 or tuple(images.shape[1:]) != expected or not len(images):
        raise ValueError(
            f"images to evaluate must be [N, {', '.join(map(str, expected))}] to be tested on "
            f"'{data.name}', got {list(images.shape)}; render them at its resolution"
        )
    hard = labels.dim() == 1 and not labels.is_floating_point()
    soft = labels.shape[1:] == (data.num_classes,) and labels.is_floating_point()
    if len(labels) != len(images) or not (hard or soft):
        raise ValueError(
            f"labels must be integers [{len(images)}] or probabilities "
            f"[{len(images)}, {data.num_classes}], got {labels.dtype} {list(labels.shape)}"
        )
    if hard and not 0 <= int(labels.min()) <= int(labels.max()) < data.num_classes:
        raise ValueError(
            f"labels must lie in 0 to {data.num_classes - 1}, got {int(labels.min())} to "
            f"{int(labels.max())}; number the classes as '{data.name}' does"
        )
