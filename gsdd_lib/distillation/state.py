"""Where a distillation stands, all that a step leaves to the next, and the checkpoint of it.

A checkpoint is written atomically, with a checksum over every bit.
"""

import io
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gsdd_lib.config import CodecConfig, Config, DistillConfig, EvalConfig
from gsdd_lib.core import ranks
from gsdd_lib.core.errors import GsddError
from gsdd_lib.core.files import checksum, seal, unseal, write_atomically
from gsdd_lib.data import ImageData
from gsdd_lib.data.dataset import class_members
from gsdd_lib.distillation.dm import Matching
from gsdd_lib.distillation.soft_labels import SoftLabels
from gsdd_lib.parameterizations.base import Parameterization
from gsdd_lib.parameterizations.codec import Codec, LabelCodec
from gsdd_lib.parameterizations.gaussian import GaussianImages
from gsdd_lib.training.experts import ExpertError, Experts

VERSION = 3  # of the checkpoint's format
PICTURES = 10  # images that a checkpoint shows
SYN_LR_MOMENTUM = 0.5  # of the SGD that learns the students' learning rate, as published
MEMORY_SETTINGS = {"micro_batch", "keep_steps"}  # they change rounding alone
REPORT_SETTINGS = {"protocol", "networks"}  # what is done with a run when it is over
HASHES = ("data", "experts", "start")  # settings that are told apart, but not shown
KEPT = ("network", "step", "history", "best", "best_accuracy", "snapshots")  # of a state, as it is
GRIDS = {"images": ("bits", "offset", "step", "channels"), "labels": ("step", "bits")}

# By name, as ``torch.func.functional_call`` takes them, and "label_logits" where they are learned
Snapshot = dict[str, Tensor]


class DistillError(GsddError, RuntimeError):
    """A distillation cannot go on; the message says why and names the last good checkpoint."""


class State:
    """What a step finds and what it leaves to the next; arguments and errors as of ``distill``."""

    def __init__(
        self,
        parameterization: Parameterization,
        data: ImageData,
        config: DistillConfig,
        *,
        experts: Experts | None = None,
        soft_labels: SoftLabels | None = None,
        snapshots: list[Snapshot] | None = None,
        codec: CodecConfig | None = None,
    ) -> None:
        self.parameterization, self.soft_labels, self.codec = parameterization, soft_labels, codec
        self.config = config  # its ``MEMORY_SETTINGS`` fall where memory runs out
        self.experts = experts if _follower(config) else None
        self._check(data)
        self.members = class_members(data.train.labels)
        self.network: Tensor | None = None  # parameters [P] that the next step goes on with (dc)
        self.matching: Matching | None = None  # what a GPU has recorded of a step (dm)
        self.step, self.history, self.snapshots = 0, [], snapshots  # a snapshot per row
        self.best, self.best_accuracy = None, -math.inf
        self.log_syn_lr = nn.Parameter(torch.tensor(math.log(config.syn_lr_init)))
        syn_lr = {"lr": config.lr_lr, "momentum": SYN_LR_MOMENTUM}
        adam = torch.optim.Adam(parameterization.parameters(), lr=config.lr)
        self.optimizers = [adam, torch.optim.SGD([self.log_syn_lr], **syn_lr)]
        if soft_labels is not None:
            logits = soft_labels.requires_grad_(config.label_lr > 0).parameters()
            own = [torch.optim.Adam(logits, lr=config.label_lr)] if config.label_lr else []
            self.optimizers += own

    def _check(self, data: ImageData) -> None:
        images, soft, config = self.parameterization, self.soft_labels, self.config
        low, high = (int(end) for end in images.labels.aminmax())
        if not 0 <= low <= high < data.num_classes:
            wrong = f"labels must lie in 0 to {data.num_classes - 1}, got {low} to {high}"
            raise DistillError(f"{wrong}; number the classes as '{data.name}' does")
        wanted = [len(images.labels), data.num_classes]
        if soft is not None and list(soft.logits.shape) != wanted:
            wrong = f"learned labels must be {wanted}, a number per image and class"
            raise DistillError(f"{wrong}, got {list(soft.logits.shape)}; make them of these images")
        if self.codec is not None and not isinstance(images, GaussianImages):
            kind = type(images).__name__
            raise DistillError(f"a codec is for Gaussians, not for {kind}; leave it out")
        if self.experts is not None:
            last = config.max_start_epoch - 1 + config.expert_epochs
            epochs = last if config.objective == "tm" else 0
            self.experts.check(data, config.network, config.width, epochs)
        elif what := _follower(config):
            remedy = "train some by train_experts (notebook 03) and pass experts=Experts(folder)"
            raise ExpertError(f"{what} experts; {remedy}.")

    # The students' learning rate
    syn_lr = property(lambda self: self.log_syn_lr.detach().exp().item())

    def targets(self, index: Tensor | None = None) -> Tensor:
        """Of the images at ``index``: learned probabilities [n, num_classes], or int64 [n]."""
        if self.soft_labels is not None:
            return self.soft_labels.probabilities(index)
        return self.parameterization.labels[... if index is None else index]

    def distilled(self) -> dict[str, nn.Parameter]:
        """The parameters that are distilled, by name."""
        logits = {} if self.soft_labels is None else {"label_logits": self.soft_labels.logits}
        return dict(self.parameterization.named_parameters()) | logits

    def snapshot(self) -> Snapshot:
        """A copy of what is distilled."""
        return {name: value.detach().clone() for name, value in self.distilled().items()}

    @torch.no_grad()
    def restore(self, snapshot: Snapshot) -> None:
        for name, value in self.distilled().items():
            value.copy_(snapshot[name])

    def fit_grids(self) -> None:
        """Fit the codec's grids; from now on Gaussians and learned labels are rounded to them."""
        images, soft = self.parameterization, self.soft_labels
        images.codec = Codec.fit(images.packed, self.codec, channels=images.channels)
        images.constrain_()
        if soft is not None:
            soft.codec = LabelCodec.fit(soft.logits)
        self.best, self.best_accuracy = None, -math.inf  # they were of numbers not rounded

    def content(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        codecs = {"images": getattr(self.parameterization, "codec", None)}
        codecs["labels"] = self.soft_labels and self.soft_labels.codec
        return {
            "grids": {
                kind: codec and {name: getattr(codec, name) for name in GRIDS[kind]}
                for kind, codec in codecs.items()
            },
            "parameters": self.snapshot(),
            "pictures": self._pictures(),
            "log_syn_lr": self.log_syn_lr.detach(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            **{name: getattr(self, name) for name in KEPT},
        }

    @torch.no_grad()
    def _pictures(self) -> Tensor:
        """uint8, some of all classes: for who looks into the file."""
        images = self.parameterization
        index = torch.linspace(0, len(images) - 1, min(PICTURES, len(images))).round().long()
        pixels = images.pixels(index.to(images.labels.device))
        return (255 * pixels.clamp(0, 1)).round().to(torch.uint8).cpu()

    def load(self, content: dict[str, Any]) -> None:
        """Take over what :meth:`content` gave."""
        self.restore(content["parameters"])
        if grids := content["grids"]["images"]:
            self.parameterization.codec = Codec(**grids).to(self.parameterization.labels.device)
        if grids := content["grids"]["labels"]:
            self.soft_labels.codec = LabelCodec(**grids)
        self.log_syn_lr.data.copy_(content["log_syn_lr"])
        for optimizer, numbers in zip(self.optimizers, content["optimizers"], strict=True):
            optimizer.load_state_dict(numbers)
        given = self.snapshots
        for name in KEPT:
            setattr(self, name, content[name])
        if given is not None:  # the caller's own list
            given[:] = self.snapshots
            self.snapshots = given


class Checkpoint:
    """``checkpoint.<hash>.pt`` in the folder of a run, named by all that the run depends on.

    A run of other settings, data or start begins anew beside it; no file is ever removed.
    """

    def __init__(
        self, folder: Path | None, state: State, data: ImageData, eval_config: EvalConfig, seed: int
    ) -> None:
        self.path, self.step = None, None  # step: of what is in the file
        if folder is None:
            return
        self.settings = state.config.told(exclude=MEMORY_SETTINGS)
        self.settings |= eval_config.told(exclude=REPORT_SETTINGS)
        experts = state.experts.fingerprint if state.experts else ""
        self.settings |= {"seed": seed, "data": data.fingerprint, "experts": experts}
        self.settings |= {"start": _fingerprint(state), "snapshots": state.snapshots is not None}
        self.settings |= state.codec.model_dump() if state.codec else {}
        self.settings["version"] = VERSION
        self.path = Path(folder) / f"checkpoint.{checksum({}, self.settings)[:8]}.pt"

    def load(self, state: State) -> str:
        """Bring ``state`` to where the file is; a line on that, or why the run begins anew.

        Raises:
            DistillError: the file is damaged, cannot be read, or is not a checkpoint.
        """
        if self.path is None or not self.path.exists():
            return self._why_anew()
        content = read_checkpoint(self.path, state.parameterization.labels.device)
        try:
            if content["settings"] != self.settings:
                raise KeyError
            state.load(content)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError):
            raise _damaged(self.path) from None
        self.step = state.step
        if state.step == state.config.steps:
            return f"the run is finished; read from {os.path.relpath(self.path)}"
        return f"resuming at step {state.step} of {state.config.steps}"

    def save(self, state: State) -> None:
        """Write ``state`` in the place of what was there; the first rank does."""
        if self.path is not None and not ranks.rank():
            buffer = io.BytesIO()
            torch.save({"settings": self.settings, **state.content()}, buffer)
            write_atomically(self.path, seal(buffer.getvalue()))
        self.step = state.step if self.path else None

    def __str__(self) -> str:
        if self.step is None:
            return "No checkpoint was written."
        return f"The checkpoint of step {self.step} is kept: {os.path.relpath(self.path)}."

    def _why_anew(self) -> str:
        others = self.path.parent.glob("checkpoint.*.pt") if self.path else []
        for path in sorted(others, key=os.path.getmtime, reverse=True):
            try:
                old = read_checkpoint(path)["settings"]
                new = {n: value for n, value in self.settings.items() if old.get(n) != value}
            except (DistillError, KeyError, TypeError, AttributeError):
                continue
            changes = [n if n in HASHES else f"{n} {old.get(n)} -> {new[n]}" for n in new]
            changes[4:] = [f"{len(changes) - 4} more"] if len(changes) > 4 else []
            kept = f"starting anew; the old checkpoint is kept as {path.name}"
            return f"settings changed ({', '.join(changes)}): {kept}"
        return ""


def read_checkpoint(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """The content of a checkpoint, every bit of it checked; nothing in it is executed.

    Raises:
        DistillError: the file is damaged, cannot be read, or is not a checkpoint.
    """
    try:
        content = io.BytesIO(unseal(Path(path).read_bytes()))
        return torch.load(content, map_location=device, weights_only=True)
    except OSError as error:
        reason = f"cannot be read ({error.strerror}); change its permissions"
        raise DistillError(f"The checkpoint {os.path.relpath(path)} {reason}.") from None
    except Exception:  # whatever unpickling meets; torch's own text advises to unpickle anything
        raise _damaged(path) from None


def _follower(config: DistillConfig) -> str:
    """What takes experts, as a sentence on it begins; empty: nothing does."""
    if config.dm_networks == "trained":
        return "Matching in trained networks takes"
    return "Trajectory matching follows" if config.objective == "tm" else ""


def _damaged(path: Path) -> DistillError:
    fault = "is damaged or was not written by a distillation; put back a copy, or move it away to"
    return DistillError(f"The checkpoint {os.path.relpath(path)} {fault} start anew.")


def _fingerprint(state: State) -> str:
    images, plain = state.parameterization, (bool, int, float, str, tuple, Config)
    about = {"kind": type(images).__name__, "normalization": images.normalization.fingerprint}
    for name, module in images.named_modules():
        own = {k: repr(v) for k, v in vars(module).items() if isinstance(v, plain) and k[0] != "_"}
        about[f"module {name}"] = own
    return checksum({**images.state_dict(), **state.snapshot(), "targets": state.targets()}, about)
