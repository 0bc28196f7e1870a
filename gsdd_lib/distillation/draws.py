"""What a step of the outer loop draws, from generators made for ``(seed, step)`` alone.

So that a resumed run draws what the run that was not killed would have drawn.
"""

from torch import Tensor, nn

from gsdd_lib.config import DistillConfig
from gsdd_lib.core.rng import generator
from gsdd_lib.data import ImageData, ImageSet
from gsdd_lib.data.dataset import sample_per_class
from gsdd_lib.networks import network_for
from gsdd_lib.training.augment import DsaParams, sample_dsa


def fresh_network(data: ImageData, config: DistillConfig, seed: int, step: int) -> nn.Module:
    """An untrained network; evaluation mode, as dropout would differ when a part is run again."""
    weights = generator(seed, "distill", step, "network")
    return network_for(data, config.network, config.width, generator=weights).eval()


def class_augmentation(data: ImageData, config: DistillConfig, seed: int, step: int) -> DsaParams:
    """A draw per class, which its real and synthetic images share."""
    draw = generator(seed, "distill", step, "dsa")
    count = data.num_classes
    draws = sample_dsa(
        config.dsa, count, data.resolution, generator=draw, siamese=False, mixed=True
    )
    return draws.to(data.device)


def real_batch(
    data: ImageData, config: DistillConfig, members: list[Tensor], seed: int, step: int
) -> ImageSet:
    """``batch_real`` training images of every class; ``members``: the indices of each class's."""
    draw = generator(seed, "distill", step, "real")
    return data.train.select(sample_per_class(members, config.batch_real, generator=draw))
