"""What one step of a distillation leaves to the next, beside the Gaussians themselves."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gsdd_lib.config import DistillConfig
from gsdd_lib.data import ImageData
from gsdd_lib.data.dataset import class_members
from gsdd_lib.distillation.soft_labels import SoftLabels
from gsdd_lib.training.experts import ExpertError, Experts


@dataclass
class Carried:
    """What a step finds beside the Gaussians; the tensors of it belong to a checkpoint.

    members: of each class, the indices of its training images
    log_syn_lr: logarithm of the students' learning rate, learned (tm)
    experts: whose paths are followed (tm)
    network: parameters [P] of the network that the next step goes on with (dc); None: a fresh one
    soft: learned labels, one per image; None: the labels are the classes' numbers
    """

    members: list[Tensor]
    log_syn_lr: nn.Parameter
    experts: Experts | None = None
    network: Tensor | None = None
    soft: SoftLabels | None = None

    @property
    def syn_lr(self) -> float:
        """The students' learning rate."""
        return self.log_syn_lr.detach().exp().item()

    def targets(self, labels: Tensor, index: Tensor | None = None) -> Tensor:
        """What networks learn to say of the images at ``index`` (all of them without one).

        Probabilities [n, num_classes], differentiable, where labels are learned, else ``labels``
        themselves: int64 [n] of [N].
        """
        if self.soft is not None:
            return self.soft.probabilities(index)
        return labels if index is None else labels[index]

    def state(self) -> dict[str, Tensor | None]:
        """What a checkpoint keeps."""
        state = {"log_syn_lr": self.log_syn_lr.detach().clone(), "network": self.network}
        return state if self.soft is None else state | {"soft": self.soft.logits.detach().clone()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor | None]) -> None:
        """Take over what :meth:`state` gave."""
        self.log_syn_lr.copy_(state["log_syn_lr"])
        self.network = state["network"]
        if self.soft is not None:
            self.soft.logits.copy_(state["soft"])


def begin(data: ImageData, config: DistillConfig, experts: Experts | None = None) -> Carried:
    """What the first step finds. Raises :class:`ExpertError` where the experts do not fit."""
    if config.objective == "tm":
        if experts is None:
            raise ExpertError(
                "Trajectory matching follows experts; train some by train_experts (notebook 03) "
                "and pass experts=Experts(folder)."
            )
        last = config.max_start_epoch - 1 + config.expert_epochs
        experts.check(data, config.network, config.width, last)
    log_syn_lr = nn.Parameter(torch.tensor(math.log(config.syn_lr_init)))
    return Carried(class_members(data.train.labels), log_syn_lr, experts)
