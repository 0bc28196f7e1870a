"""The passes through a network that the steps of a distillation are made of, each by itself.

A pass is called on the meta device to count its memory and FLOPs (:mod:`gsdd_lib.network_cost`)
and on a real one to time it; the functions of :mod:`gsdd_lib.objectives` do the work in both.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from gsdd_lib.augment import apply_dsa, color, sample_dsa
from gsdd_lib.data.described import DataDescription
from gsdd_lib.networks import make_network
from gsdd_lib.objectives.dc import gradient_distance, network_gradients
from gsdd_lib.objectives.tm import flatten, student_path


@dataclass(frozen=True)
class Bench:
    """A network and images of its size, on the meta device or a real one.

    architecture: name and width of the network
    dsa: augmentations; on the meta device they are counted as ``color``, the one that keeps most
    """

    network: nn.Module
    architecture: tuple[str, int]
    about: DataDescription
    dsa: str
    device: str = "meta"

    def on(self, device: str) -> "Bench":
        """The same on a device that computes."""
        about, (name, width) = self.about, self.architecture
        network = make_network(
            name,
            channels=about.channels,
            num_classes=about.num_classes,
            resolution=(about.height, about.width),
            width=width,
            generator=torch.Generator().manual_seed(0),
        )
        return replace(self, network=network.eval().to(device), device=device)

    def images(self, count: int) -> Tensor:
        """[count, C, H, W], to be differentiated in."""
        size = (count, self.about.channels, self.about.height, self.about.width)
        return torch.zeros(size, device=self.device).normal_().requires_grad_()

    def labels(self, count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.int64, device=self.device)

    def real(self, count: int) -> Tensor:
        """Drawn, normalized or whitened, and augmented as real images are."""
        about = self.about
        size = (count, about.channels, about.height, about.width)
        images = torch.zeros(size, dtype=torch.uint8, device=self.device)
        images = images.to(torch.float32) * (1 / 255) - 0.5
        if about.zca:
            matrix = torch.empty(about.values, about.values, device=self.device)
            images = ((images.flatten(1) - 0.5) @ matrix).view(size)
        return self.augment(images)

    def augment(self, images: Tensor, step: int = 0) -> Tensor:
        if not self.dsa:
            return images
        size = (self.about.height, self.about.width)
        draw = torch.Generator().manual_seed(step)
        params = sample_dsa(
            self.dsa, len(images), size, generator=draw, siamese=False, mixed=True
        ).to(torch.device(self.device))
        return color(images, params) if self.device == "meta" else apply_dsa(images, params)


def embed_real(bench: Bench, count: int) -> None:
    """Embeddings of real images, no gradient (dm)."""
    with torch.no_grad():
        bench.network.embed(bench.real(count))


def embed_synthetic(bench: Bench, count: int) -> None:
    """Embeddings of distilled images and the gradient in them; the network is fixed (dm)."""
    images = bench.images(count)
    loss = bench.network.requires_grad_(False).embed(bench.augment(images)).square().sum()
    torch.autograd.grad(loss, images)
    bench.network.requires_grad_(True)


def real_gradients(bench: Bench, count: int) -> None:
    """Gradients of a network's parameters on real images (dc, experts)."""
    _gradients(bench, bench.real(count))


def synthetic_gradients(bench: Bench, count: int) -> None:
    """The same on distilled images, without a further derivative (dc, evaluation)."""
    _gradients(bench, bench.augment(bench.images(count).detach()))


def _gradients(bench: Bench, images: Tensor, create_graph: bool = False) -> list[Tensor]:
    params, labels = dict(bench.network.named_parameters()), bench.labels(len(images))
    return network_gradients(bench.network, params, images, labels, create_graph=create_graph)


def match_gradients(bench: Bench, count: int) -> None:
    """Gradients on distilled images and their distance's gradient in the images (dc)."""
    images = bench.images(count)
    grads = _gradients(bench, bench.augment(images), create_graph=True)
    real = [torch.zeros_like(grad) for grad in grads]
    torch.autograd.grad(gradient_distance(real, grads), images)


def student_steps(bench: Bench, count: int, *, steps: int, keep_steps: int, drawn: int = 0) -> None:
    """``steps`` of a student on ``count`` of ``drawn`` images, there and back (tm)."""
    images = bench.images(max(count, drawn))
    lr = torch.full((), 1e-2, device=bench.device).requires_grad_()
    start = flatten(dict(bench.network.named_parameters()))
    end = student_path(
        bench.network,
        start,
        images,
        bench.labels(len(images)),
        lr,
        batches=[torch.arange(count, device=bench.device)] * steps,
        augment=bench.augment,
        keep_steps=keep_steps,
    )
    torch.autograd.grad((end - start).square().sum(), [images, lr])


def classify(bench: Bench, count: int) -> None:
    """Logits of real images as they are (evaluation)."""
    with torch.no_grad():
        size = (count, bench.about.channels, bench.about.height, bench.about.width)
        images = torch.zeros(size, dtype=torch.uint8, device=bench.device)
        bench.network(images.to(torch.float32) * (1 / 255) - 0.5)


Pass = Callable[[Bench, int], None]
kept_step: Pass = partial(student_steps, steps=1, keep_steps=1)
recomputed_step: Pass = partial(student_steps, steps=1, keep_steps=0)
