"""Learned labels: a number per class and image in place of the class's number alone.

They start from what a network trained on real data says of the images, and are stored and paid for.
"""

import torch
from torch import Tensor, nn

from gsdd_lib.config import EvalConfig
from gsdd_lib.core.rng import generator
from gsdd_lib.data import ImageData
from gsdd_lib.data.dataset import keep_per_class
from gsdd_lib.networks import network_for
from gsdd_lib.parameterizations.base import as_stored
from gsdd_lib.parameterizations.budget import LABEL_BITS
from gsdd_lib.parameterizations.codec import LabelCodec, encode_labels
from gsdd_lib.training.train import train_network

BATCH = 256  # images shown to the teacher at once
TEACHER_IMAGES, TEACHER_BATCH = 2_000, 64  # real images a teacher trains on; of them per step


class SoftLabels(nn.Module):
    """Logits [N, num_classes], stored in bf16 or on the grid of a ``codec``, set at any time."""

    def __init__(self, logits: Tensor, codec: LabelCodec | None = None) -> None:
        super().__init__()
        if logits.dim() != 2 or not torch.isfinite(logits).all():
            found = list(logits.shape)
            raise ValueError(f"soft labels need finite logits [N, num_classes], got {found}")
        self.logits = nn.Parameter(logits.detach().to(torch.float32, copy=True))
        self.codec = codec

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def bits(self) -> int:
        """Of all labels as they are stored."""
        if self.codec is None:
            return self.logits.numel() * LABEL_BITS
        return 8 * len(encode_labels(self.codec.quantize(self.logits.detach()), self.codec))

    def probabilities(self, index: Tensor | None = None) -> Tensor:
        """[n, num_classes], rows that sum to 1, of the logits as stored; differentiable."""
        logits = self.logits if index is None else self.logits[index]
        stored = self.codec.round(logits) if self.codec else as_stored(logits, "bf16")
        return stored.softmax(1)


@torch.no_grad()
def labels_of_teacher(teacher: nn.Module, images: Tensor, labels: Tensor) -> SoftLabels:
    """What ``teacher`` says of normalized images [N, C, H, W].

    Where it prefers another class than the image's own, int64 [N], the two logits are exchanged.
    """
    was_training = teacher.training
    logits = torch.cat([teacher.eval()(few) for few in images.split(BATCH)])
    teacher.train(was_training)
    rows, top = torch.arange(len(logits), device=logits.device), logits.argmax(1)
    own, highest = logits[rows, labels], logits[rows, top]
    logits[rows, top], logits[rows, labels] = own, highest  # in this order: they may be the same
    return SoftLabels(logits)


def train_teacher(data: ImageData, config: EvalConfig, *, seed: int, epochs: int = 20) -> nn.Module:
    """``config.eval_network`` trained on at most :data:`TEACHER_IMAGES` random training images."""
    purposes = ("images", "weights", "training")
    images, weights, training = (generator(seed, "soft labels", what) for what in purposes)
    per_class = max(1, TEACHER_IMAGES // data.num_classes)
    real = data.train.select(keep_per_class(data.train.labels, per_class, generator=images))
    network = network_for(data, config.eval_network, config.eval_width, generator=weights)
    short = config.model_copy(update={"epochs": epochs, "eval_batch": TEACHER_BATCH})
    train_network(data.normalize(real.images), real.labels, network, short, generator=training)
    return network
