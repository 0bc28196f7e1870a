"""A distilled set in memory: made, rendered, evaluated, saved in one file and loaded from it."""

import base64
import contextlib
import copy
import html
import io
import math
import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset

from gsdd_lib.config import CodecConfig, EvalConfig
from gsdd_lib.core.files import write_tensors
from gsdd_lib.data import ImageData
from gsdd_lib.data.normalization import ChannelNormalization, write_whitening
from gsdd_lib.distillation.soft_labels import SoftLabels
from gsdd_lib.parameterizations.codec import Codec, LabelCodec, encode, encode_labels
from gsdd_lib.parameterizations.gaussian import GaussianImages
from gsdd_lib.storage.files import FORMAT, VERSION, read, require, stored

EVALUATION_ONLY = {"protocol", "networks"}  # fields of EvalConfig that do not say how to train
OWN = ("provenance", "training", "syn_lr")  # fields that a file holds as they are
SHOWN = 10  # pictures in a notebook

Resolution = int | tuple[int, int] | None


@dataclass(frozen=True, eq=False, repr=False)
class DistilledSet:
    """A distilled set in memory, just made or read from its file."""

    gaussians: GaussianImages
    dataset_name: str
    class_names: tuple[str, ...]
    provenance: dict[str, Any] = field(default_factory=dict)
    soft_labels: SoftLabels | None = None  # None: labels are the classes' numbers
    training: dict[str, Any] = field(default_factory=dict)  # of EvalConfig; empty: unknown
    syn_lr: float | None = None  # learned with the set by trajectory matching
    file_bytes: int = 0  # of the file it was read from, a whitening not included
    data: ImageData | None = None  # what it was just distilled from
    history: list[dict[str, float]] = field(default_factory=list)  # of the run

    @classmethod
    def of(
        cls, gaussians: GaussianImages, data: ImageData, provenance: Any = None, **more: Any
    ) -> Self:
        """A set distilled from ``data``.

        Args:
            provenance: anything JSON can hold by name: settings, seed, commit, accuracy.
            more: other fields of the class; ``eval_config``: how to train networks on the set.
        """
        how = more.pop("eval_config", None)
        training = how.told(exclude=EVALUATION_ONLY) if how else {}
        more |= {"provenance": provenance or {}, "training": training, "data": data}
        made = cls(gaussians, data.name, data.class_names, **more)
        logits = [] if made.soft_labels is None else list(made.soft_labels.logits.shape)
        wanted = f"{len(gaussians)} images of {data.num_classes} classes"
        fits = logits in ([], [len(gaussians), data.num_classes])
        require(fits, f"learned labels {logits} do not fit {wanted}")
        return made

    def __len__(self) -> int:
        return len(self.gaussians)

    @property
    def labels(self) -> Tensor:
        """int64 [N]: each image's own class, also where labels are learned."""
        return self.gaussians.labels

    @property
    @torch.no_grad()
    def targets(self) -> Tensor:
        """What to train on: learned labels as probabilities [N, K], or the classes' numbers."""
        return self.labels if self.soft_labels is None else self.soft_labels.probabilities()

    @property
    def bits_per_class(self) -> int:
        """Bits of the Gaussians and learned labels of a class, rounded up."""
        labels = 0 if self.soft_labels is None else self.soft_labels.bits
        return -(-(self.gaussians.bits + labels) // len(self.class_names))

    @torch.no_grad()
    def render(self, resolution: Resolution = None) -> Tensor:
        """Pixel values [N, C, height, width], clamped to [0, 1], at any resolution."""
        return self.gaussians.pixels(resolution=_size(resolution)).clamp(0, 1)

    @torch.no_grad()
    def dataset(self, resolution: Resolution = None) -> TensorDataset:
        """Pairs of a normalized image [C, H, W] (whitened: at its own size) and a label."""
        return TensorDataset(self.gaussians.render(resolution=_size(resolution)), self.targets)

    def normalize(self, images: Tensor) -> Tensor:
        """What networks so trained see of real images [..., C, H, W], uint8 or in [0, 1]."""
        return self.gaussians.normalization.apply(images).float()

    def evaluate(
        self, data: ImageData | None = None, *, config: EvalConfig | None = None, **more: Any
    ) -> dict[str, float]:
        """Mean, std, n and ci95 of the accuracy in percent of fresh networks trained on the set.

        Args:
            data: real images to test on; left out, those the set was just made from.
            config: how to train; left out, as :attr:`training` says.
            more: ``seed`` (1), ``split`` ("test", or "validation").
        """
        from gsdd_lib.evaluation.evaluate import evaluate, summarize  # scipy takes a second

        data = data or self.data
        need = "this set needs images to be tested on: evaluate(load_data(...), split='test')"
        require(isinstance(data, ImageData), need)
        need = "this set does not say how to train; pass evaluate(..., config=EvalConfig(...))"
        require(config or self.training, need)
        config, more = config or EvalConfig.pick(self.training), {"seed": 1, "split": "test"} | more
        return summarize(evaluate(*self.dataset().tensors, data, config, **more))

    @torch.no_grad()
    def coded(self, config: CodecConfig, *, label_bits: int = 4) -> Self:
        """The same set in a few bits per number; grids that it has already are kept."""
        made = copy.deepcopy(self, {id(x): x for x in (self.data, self.gaussians.normalization)})
        gaussians, soft = made.gaussians, made.soft_labels
        if gaussians.codec is None:
            gaussians.codec = Codec.fit(gaussians.packed, config, channels=gaussians.channels)
        if soft is not None and soft.codec is None:
            soft.codec = LabelCodec.fit(soft.logits, label_bits)
        return made

    def save(self, path: Path | str) -> int:
        """Write the file atomically, after the whitening beside it; returns the file's bytes."""
        gaussians, soft, classes = self.gaussians, self.soft_labels, self.class_names
        about: dict[str, Any] = {"dataset": self.dataset_name, "class_names": list(classes)}
        about |= {"resolution": [*gaussians.resolution], "render": dict(gaussians.render_config)}
        about |= {name: getattr(gaussians, name) for name in ("opacity", "space")}
        about |= {name: getattr(self, name) for name in OWN}
        normalization, labels = gaussians.normalization, self.labels
        if isinstance(normalization, ChannelNormalization):
            about |= {"mean": list(normalization.mean), "std": list(normalization.std)}
        else:
            companion = write_whitening(Path(path).parent, normalization)
            about["whitening"] = {"file": companion.name, "bytes": companion.stat().st_size}
        tensors = {"packed": stored(gaussians.packed, gaussians.codec, encode)}
        if gaussians.codec is not None and (labels.diff() >= 0).all():
            tensors["counts"] = labels.bincount(minlength=len(classes)).to(torch.int32)
        else:
            tensors["labels"] = labels.to(torch.uint8 if len(classes) <= 256 else torch.int32)
        if soft is not None:
            tensors["label_logits"] = stored(soft.logits, soft.codec, encode_labels)
        return write_tensors(Path(path), tensors, about | {"format": FORMAT, "version": VERSION})

    def export(self, folder: Path | str, resolution: Resolution = None) -> Path:
        """Write :meth:`dataset` as two .pt files and :meth:`render` as png, to a new folder."""
        folder = Path(folder)
        free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
        require(free, f"'{folder}' exists and is not empty; choose a new folder.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        pixels = self.render(resolution)
        with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as made:
            made = Path(made) / "set"  # renamed at the end: the folder is whole or not there
            made.mkdir()
            for name, tensor in zip(("images", "labels"), self.dataset(resolution)[:], strict=True):
                torch.save(tensor.clone(), made / f"{name}.pt")
            for index, label in enumerate(self.labels.tolist()):
                name = re.sub(r"[^\w .-]", "_", self.class_names[label])
                place = made / "png" / f"{label:03d}_{name}" / f"{index:05d}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(_png(pixels[index]))
            os.replace(made, folder)
        return folder

    def __repr__(self) -> str:
        return f"DistilledSet({', '.join(f'{name} {value}' for name, value in self._facts())})"

    @torch.no_grad()
    def _repr_html_(self) -> str:
        labels, columns = self.labels.tolist(), zip(*self._facts(), strict=True)
        head, row = ([html.escape(text) for text in column] for column in columns)
        firsts = [labels.index(label) for label in sorted(set(labels))[:SHOWN]]
        pixels = self.gaussians.pixels(torch.tensor(firsts, device=self.labels.device))
        png = base64.b64encode(_png(torch.cat([*pixels.clamp(0, 1)], dim=-1))).decode()
        names = html.escape(", ".join(self.class_names[labels[index]] for index in firsts))
        head, row = "</th><th>".join(head), "</td><td>".join(row)
        table = f"<table><tr><th>{head}</th></tr><tr><td>{row}</td></tr></table>"
        about = f'alt="{names}" title="{names}" height="56"'
        return f'{table}<img src="data:image/png;base64,{png}" {about}>'

    def _facts(self) -> list[tuple[str, str]]:
        facts = [("data set", self.dataset_name), ("classes", f"{len(self.class_names)}")]
        facts += [("images", f"{len(self)}"), ("Gaussians each", f"{self.gaussians.points}")]
        facts += [("bits per class", f"{self.bits_per_class:,}")]
        accuracy = self.provenance.get("accuracy")
        with contextlib.suppress(TypeError, ValueError, KeyError):  # a file may say anything
            mean, interval = accuracy["mean"], accuracy.get("ci95", math.nan)
            text = f"{mean:.1f}" + ("" if math.isnan(interval) else f" ± {interval:.1f}")
            facts.append((f"{accuracy['split']} accuracy (%)", text))
        return facts


def load(path: Path | str) -> DistilledSet:
    """Read a distilled set; any other file, or one with a changed bit, is a StorageError."""
    gaussians, soft, about = read(Path(path))
    more = {name: getattr(about, name) for name in OWN} | {"file_bytes": Path(path).stat().st_size}
    names = tuple(about.class_names)
    return DistilledSet(gaussians, about.dataset, names, soft_labels=soft, **more)


def _size(resolution: Resolution) -> tuple[int, int] | None:
    return (resolution, resolution) if isinstance(resolution, int) else resolution


def _png(pixels: Tensor) -> bytes:
    """A PNG file of pixel values [C, H, W] in [0, 1], 1 to 4 channels."""
    values = (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(values.squeeze(-1) if len(pixels) == 1 else values).save(file, "PNG")
    return file.getvalue()
