"""One distilled set judged by several architectures, each trained at its own settings.

The paper trains AlexNet, VGG11, ResNet18 and ViT with a cosine schedule at the learning rates
below. Its text says Adam; its code has AdamW with weight decay 0.05, or SGD. Taken here: AdamW for
the two small rates, SGD for the two of 0.01, at which AdamW leaves both networks at chance: trained
on 20 random images of Fashion-MNIST, VGG11 for 40 epochs is right on 54.7 % of validation images
with SGD and on 7.7 % with Adam and with AdamW, ResNet18 for 15 epochs on 32.3 % and on 10.0 %.
"""

from collections.abc import Sequence

from torch import Tensor

from gsdd_lib.config import EvalConfig
from gsdd_lib.data import ImageData
from gsdd_lib.evaluation.evaluate import evaluate

SGD = {"eval_optimizer": "sgd", "eval_weight_decay": 5e-4, "eval_schedule": "cosine"}
ADAMW = {"eval_optimizer": "adamw", "eval_weight_decay": 0.05, "eval_schedule": "cosine"}
USUAL = {"eval_norm": "instance", "eval_pooling": "avg", "eval_activation": "relu"}  # of ConvNets
SETTINGS: dict[str, dict[str, float | str]] = {
    "AlexNet": {"eval_lr": 1e-3, **ADAMW},
    "VGG11": {"eval_lr": 1e-2, **SGD},
    "ResNet18": {"eval_lr": 1e-2, **SGD},
    "ViT": {"eval_lr": 5e-5, **ADAMW},
}


def settings_for(network: str, config: EvalConfig) -> EvalConfig:
    """``config`` with ``network`` and its settings of the table; a ConvNet keeps ``config``'s.

    >>> settings_for("ViT", EvalConfig()).eval_lr
    5e-05
    """
    own = SETTINGS[network] | USUAL if network in SETTINGS else {}
    return EvalConfig.from_params(**config.model_dump() | own | {"eval_network": network})


def evaluate_architectures(
    images: Tensor,
    labels: Tensor,
    data: ImageData,
    config: EvalConfig,
    networks: Sequence[str],
    *,
    seed: int,
    split: str = "validation",
) -> list[dict[str, float | int | str]]:
    """The rows of :func:`evaluate` for each of ``networks``, named in a column.

    images: normalized, [N, C, H, W]; labels as there.
    """
    rows = []
    for network in networks:
        own = settings_for(network, config)
        results = evaluate(images, labels, data, own, seed=seed, split=split)
        rows += [{"network": network, **row} for row in results]
    return rows
