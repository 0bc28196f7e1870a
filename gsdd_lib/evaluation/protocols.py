"""The two ways to report a run, side by side, and the settings of other architectures.

``clean``: the row of the best validation accuracy, read on the test split once. ``paper``: the best
test accuracy of all rows, as the paper's code and most of the field. By the same networks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gsdd_lib.config import EvalConfig
from gsdd_lib.data import ImageData
from gsdd_lib.evaluation.evaluate import SUMMARY, Row, evaluate, summarize

# Other architectures: a cosine schedule, the paper's learning rates; its text says Adam, its code
# AdamW or SGD. Here: SGD for the two of 0.01, at which AdamW leaves both at chance.
SGD = {"eval_optimizer": "sgd", "eval_weight_decay": 5e-4, "eval_schedule": "cosine"}
ADAMW = {"eval_optimizer": "adamw", "eval_weight_decay": 0.05, "eval_schedule": "cosine"}
LAYERS = {"eval_norm": "instance", "eval_pooling": "avg", "eval_activation": "relu"}  # of ConvNets
SETTINGS: dict[str, dict[str, float | str]] = {
    "AlexNet": {"eval_lr": 1e-3, **ADAMW},
    "VGG11": {"eval_lr": 1e-2, **SGD},
    "ResNet18": {"eval_lr": 1e-2, **SGD},
    "ViT": {"eval_lr": 5e-5, **ADAMW},
}


@dataclass(frozen=True)
class Protocols:
    """What both protocols say of one run."""

    rows: list[Row]  # per history row: step, validation (percent), and mean, std, n, ci95 on test
    clean: Row  # chosen on the validation split
    paper: Row  # chosen on the test split
    reported: Row  # the one of ``EvalConfig.protocol``


def best_row(history: Sequence[Mapping[str, float]]) -> int:
    """Index of the row with the best validation accuracy, the first of equals: the one kept."""
    return max(range(len(history)), key=lambda row: history[row]["mean"])


def compare_protocols(
    history: Sequence[Mapping[str, float]],
    snapshots: Sequence[Any],
    render: Callable[[Any], Tensor],
    labels: Tensor | Callable[[Any], Tensor],
    data: ImageData,
    config: EvalConfig,
    *,
    seed: int,
    known: Mapping[int, Mapping[str, float]] | None = None,
) -> Protocols:
    """Evaluate every row of a run on the test split; a row's syn_lr is the rate it is trained at.

    Args:
        history, snapshots: what ``distill(..., snapshots=[...])`` yielded, and filled.
        render: a snapshot to normalized images [N, C, H, W].
        labels: as of ``evaluate``; or, where a run learned them, a function of a snapshot.
        known: by row, ``summarize`` of what was read on the test split already.

    Raises:
        ValueError: rows and snapshots do not belong together.
    """
    if not history or len(history) != len(snapshots):
        counts = f"{len(history)} history rows and {len(snapshots)} snapshots: both protocols need"
        remedy = "pass snapshots=[] to the distillation that yields the rows"
        raise ValueError(f"{counts} one of each per evaluation; {remedy}")

    def test(row: int) -> Mapping[str, float]:
        with torch.no_grad():
            images = render(snapshots[row])
            own = labels(snapshots[row]) if callable(labels) else labels
        rate = learned_eval_config(config, [history[row]])
        return summarize(evaluate(images, own, data, rate, seed=seed, split="test"))

    chosen, tested = best_row(history), dict(known or {})
    order = [chosen, *(row for row in range(len(history)) if row != chosen)]
    tested |= {row: test(row) for row in order if row not in tested}
    rows = []
    for row, past in enumerate(history):
        read = {key: tested[row][key] for key in SUMMARY}
        rows.append({"step": past["step"], "validation": past["mean"], **read})
    clean = rows[chosen]
    paper = rows[max(order, key=lambda row: rows[row]["mean"])]  # the chosen one, if among equals
    return Protocols(rows, clean, paper, paper if config.protocol == "paper" else clean)


def learned_eval_config(config: EvalConfig, history: Sequence[Mapping[str, float]]) -> EvalConfig:
    """``config`` with the learned learning rate of the best history row, if it has one (tm)."""
    rate = history[best_row(history)].get("syn_lr", config.eval_lr)
    return config.model_copy(update={"eval_lr": rate})


def settings_for(network: str, config: EvalConfig) -> EvalConfig:
    """``config`` with ``network`` and its own :data:`SETTINGS`; a ConvNet keeps ``config``'s."""
    own = SETTINGS[network] | LAYERS if network in SETTINGS else {}
    return EvalConfig(**config.model_dump() | own | {"eval_network": network})
