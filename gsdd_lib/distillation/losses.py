"""What a step of the outer loop lowers: one function per objective, all of one signature.

``STEP_LOSSES[name](gaussians, data, config, carried, seed=, step=)`` gives a scalar, differentiable
in the Gaussians. Every random number comes from generators made for ``(seed, step)``; what a step
needs of the ones before it is in :class:`gsdd_lib.distillation.state.Carried`.

Memory is bounded and the gradient exact: the synthetic images are rendered once, and the loss is
differentiated in them class by class (:func:`sum_over_parts`). No more than ``micro_batch`` images
are in the network at a time, real or synthetic: where a class has more of them, its embeddings or
gradients are computed without a graph first, and again part by part for the gradient.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gsdd_lib.config import DistillConfig
from gsdd_lib.core.rng import generator
from gsdd_lib.data import ImageData, ImageSet
from gsdd_lib.data.sampling import class_members, draw_per_class
from gsdd_lib.distillation.dc import gradient_distance, gradients_in_parts, network_gradients
from gsdd_lib.distillation.dm import class_means, dm_loss, embed_in_parts
from gsdd_lib.distillation.microbatch import class_groups, sum_over_parts
from gsdd_lib.distillation.state import Carried
from gsdd_lib.distillation.tm import student_path, synthetic_batches, tm_loss
from gsdd_lib.networks import flatten, make_network, unflatten
from gsdd_lib.parameterizations.base import Parameterization
from gsdd_lib.training.augment import DsaParams, apply_dsa, sample_dsa


def fresh_network(data: ImageData, config: DistillConfig, seed: int, step: int) -> nn.Module:
    """An untrained network; evaluation mode, as dropout would differ when a part is run again."""
    network = make_network(
        config.network,
        channels=data.channels,
        num_classes=data.num_classes,
        resolution=data.resolution,
        width=config.width,
        generator=generator(seed, "distill", step, "network"),
    )
    return network.eval().to(data.device)


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
    return data.train.select(draw_per_class(members, config.batch_real, generator=draw))


def dm_step_loss(
    gaussians: Parameterization,
    data: ImageData,
    config: DistillConfig,
    carried: Carried,
    *,
    seed: int,
    step: int,
) -> Tensor:
    """Distribution matching of one step (arXiv 2110.04181).

    A fresh network, ``batch_real`` images per class, one augmentation per class that real and
    synthetic images share.
    """
    network = fresh_network(data, config, seed, step).requires_grad_(False)
    augmentation = class_augmentation(data, config, seed, step)
    batch = real_batch(data, config, carried.members, seed, step)
    real = _real_means(network, batch, data, augmentation, config.micro_batch)
    if carried.soft is not None:  # all images have a share in every class's mean
        images = apply_dsa(gaussians.render(), augmentation, gaussians.labels)
        embeddings = embed_in_parts(network.embed, images, config.micro_batch)
        return dm_loss(real, embeddings, carried.soft.probabilities())

    def part_loss(images: Tensor, index: Tensor) -> Tensor:
        labels = gaussians.labels[index]
        classes, own = labels.unique(return_inverse=True)
        images = apply_dsa(images, augmentation, labels)
        embeddings = embed_in_parts(network.embed, images, config.micro_batch)
        return dm_loss(real[classes], embeddings, own)

    parts = class_groups(gaussians.labels, config.micro_batch)
    return sum_over_parts(gaussians.render(), parts, part_loss)


def dc_step_loss(
    gaussians: Parameterization,
    data: ImageData,
    config: DistillConfig,
    carried: Carried,
    *,
    seed: int,
    step: int,
) -> Tensor:
    """Gradient matching of one step (arXiv 2006.05929, algorithm 1).

    A network serves ``outer_loop`` steps; before each but its first it trains for ``inner_loop``
    epochs on the synthetic images as they are. ``carried.network`` is moved on. With learned
    labels, an image is still matched with the real images of its own class.
    """
    iteration, update = divmod(step, config.outer_loop)
    network = fresh_network(data, config, seed, iteration)
    images, labels = gaussians.render(), gaussians.labels
    soft = None if carried.soft is None else carried.soft.probabilities()
    params = dict(network.named_parameters())
    if update:
        params = unflatten(carried.network, network)
        targets = labels if soft is None else soft.detach()
        params = _train_inner(network, params, images.detach(), targets, config, (seed, step))
    carried.network = flatten(params) if update + 1 < config.outer_loop else None
    augmentation = class_augmentation(data, config, seed, step)
    batch = real_batch(data, config, carried.members, seed, step)
    real_members = class_members(batch.labels)

    def class_loss(part: Tensor, *soft_and_index: Tensor) -> Tensor:
        own = labels[soft_and_index[-1]]
        targets = own if soft is None else soft_and_index[0]
        draw = augmentation.select(own[:1])
        real_batch = batch.select(real_members[int(own[0])])
        real = real_gradients(network, params, real_batch, data, draw, config.micro_batch)
        part = apply_dsa(part, draw)
        syn = gradients_in_parts(network, params, part, targets, micro_batch=config.micro_batch)
        return gradient_distance(real, syn)

    return sum_over_parts(images, class_groups(labels, 1), class_loss, soft)


def tm_step_loss(
    gaussians: Parameterization,
    data: ImageData,
    config: DistillConfig,
    carried: Carried,
    *,
    seed: int,
    step: int,
) -> Tensor:
    """Trajectory matching of one step (arXiv 2203.11932), differentiable in ``log_syn_lr`` too.

    A random expert, a random epoch below ``max_start_epoch``, ``syn_steps`` steps of a student
    against the expert's ``expert_epochs`` epochs. As published, each image of a student's batch
    has its own draw of one transformation.
    """
    draw = generator(seed, "distill", step, "expert")
    which = int(torch.randint(len(carried.experts), (), generator=draw))
    epoch = int(torch.randint(config.max_start_epoch, (), generator=draw))
    pair = carried.experts.snapshots(which, epoch, epoch + config.expert_epochs)
    device = gaussians.labels.device
    start, target = (params.to(device) for params in pair)
    order = generator(seed, "distill", step, "order")
    batches = synthetic_batches(len(gaussians), config.batch_syn, config.syn_steps, generator=order)
    drawn = torch.cat(batches).unique()
    dsa = generator(seed, "distill", step, "dsa")
    draws = [
        sample_dsa(config.dsa, len(batch), data.resolution, generator=dsa, siamese=False)
        for batch in batches
    ]
    student = student_path(
        fresh_network(data, config, seed, step),
        start,
        gaussians.render(drawn.to(device)),
        carried.targets(gaussians.labels, drawn.to(device)),
        carried.log_syn_lr.exp().to(device),
        batches=[torch.searchsorted(drawn, batch).to(device) for batch in batches],
        augment=lambda images, *, step: apply_dsa(images, draws[step]),
        keep_steps=config.keep_steps,
    )
    return tm_loss(student, start, target)


STEP_LOSSES: dict[str, Callable[..., Tensor]] = {
    "dm": dm_step_loss,
    "dc": dc_step_loss,
    "tm": tm_step_loss,
}


# ------------------------------------------------------- real images, a few at a time


def real_gradients(
    network: nn.Module,
    params: dict[str, Tensor],
    batch: ImageSet,
    data: ImageData,
    augmentation: DsaParams,
    micro_batch: int,
) -> list[Tensor]:
    """Gradients of the mean cross-entropy of a class's real images, ``micro_batch`` at a time.

    augmentation: one draw, for all of them.
    """
    total: list[Tensor] = []
    for start in range(0, len(batch), micro_batch):
        part = batch.select(slice(start, start + micro_batch))
        images = apply_dsa(data.normalize(part.images), augmentation)
        grads = network_gradients(network, params, images, part.labels, create_graph=False)
        grads = [grad * (len(part) / len(batch)) for grad in grads]
        total = [a + b for a, b in zip(total, grads, strict=True)] if total else grads
    return total


@torch.no_grad()
def _real_means(
    network: nn.Module, batch: ImageSet, data: ImageData, augmentation: DsaParams, micro_batch: int
) -> Tensor:
    parts = []
    for start in range(0, len(batch), micro_batch):
        part = batch.select(slice(start, start + micro_batch))
        images = apply_dsa(data.normalize(part.images), augmentation, part.labels)
        parts.append(network.embed(images))
    return class_means(torch.cat(parts), batch.labels, data.num_classes)


def _train_inner(
    network: nn.Module,
    params: dict[str, Tensor],
    images: Tensor,
    labels: Tensor,
    config: DistillConfig,
    moment: tuple[int, int],
) -> dict[str, Tensor]:
    """``inner_loop`` epochs of plain SGD on synthetic images; moment: (seed, step)."""
    draw = generator(moment[0], "distill", moment[1], "inner")
    size = tuple(images.shape[2:])
    for _ in range(config.inner_loop):
        order = torch.randperm(len(images), generator=draw)
        for index in order.split(config.inner_batch):
            draws = sample_dsa(config.dsa, len(index), size, generator=draw, siamese=False)
            part = apply_dsa(images[index], draws)
            few = config.micro_batch
            grads = gradients_in_parts(network, params, part, labels[index], micro_batch=few)
            moved = zip(params.items(), grads, strict=True)
            params = {name: value.detach() - config.inner_lr * g for (name, value), g in moved}
    return params
