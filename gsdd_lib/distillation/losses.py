"""What a step lowers: one function per objective, all of one signature, and what they sample.

Every random number of step ``t`` comes from generators made for ``(seed, t)``. Memory is bounded
and the gradient exact: the synthetic images are rendered once, the loss is differentiated in them
class by class, and at most ``micro_batch`` images are in the network at a time. Ranks share the
classes, or a student's batches (tm); what they compute alike, they hold alike.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gsdd_lib.config import OBJECTIVES, DistillConfig
from gsdd_lib.core import ranks
from gsdd_lib.core.errors import ConfigError
from gsdd_lib.core.rng import generator
from gsdd_lib.data import ImageData, ImageSet
from gsdd_lib.data.dataset import class_members, sample_per_class
from gsdd_lib.distillation.dc import batch_gradients, gradient_distance
from gsdd_lib.distillation.dm import class_means, dm_loss, kernel_loss
from gsdd_lib.distillation.microbatch import class_groups, map_micro_batches, sum_over_groups
from gsdd_lib.distillation.state import State
from gsdd_lib.distillation.tm import student_path, synthetic_batches, tm_loss
from gsdd_lib.networks import flatten, network_for, unflatten
from gsdd_lib.training.augment import DsaParams, apply_dsa, sample_dsa


def sample_network(data: ImageData, config: DistillConfig, seed: int, step: int) -> nn.Module:
    """An untrained network, in evaluation mode: dropout would differ when a batch is run again."""
    rng = generator(seed, "distill", step, "network")
    return network_for(data, config.network, config.width, generator=rng).eval()


def sample_matched(
    state: State, data: ImageData, seed: int, only: int | None = None
) -> tuple[DsaParams, ImageSet]:
    """An augmentation per class, which real and synthetic images share, and real images.

    These are ``batch_real`` of every class, or the same ones of class ``only``.
    """
    config, classes = state.config, data.num_classes
    rng = generator(seed, "distill", state.step, "dsa")
    augmentation = sample_dsa(config.dsa, classes, data.resolution, generator=rng, mixed=True)
    rng = generator(seed, "distill", state.step, "real")
    index = sample_per_class(state.members, config.batch_real, generator=rng)
    if only is not None:
        index = index[data.train.labels.cpu()[index] == only]
    return augmentation, data.train.select(index)


def dm_step_loss(state: State, data: ImageData, *, seed: int, only: int | None = None) -> Tensor:
    """Distribution matching of one step, by a fresh network (arXiv 2110.04181).

    Args:
        only: the one class that is matched, a term of the sum; all of them without it.
    """
    config, images = state.config, state.parameterization
    network = sample_network(data, config, seed, state.step).requires_grad_(False)
    augmentation, batch = sample_matched(state, data, seed, only)

    def embed(pixels: Tensor, labels: Tensor) -> Tensor:
        return network.embed(apply_dsa(data.normalize(pixels), augmentation, labels))

    @torch.no_grad()
    def embed_real(real: ImageSet) -> Tensor:
        return map_micro_batches(embed, config.micro_batch, real.images, real.labels)

    if state.soft_labels is not None:  # all images have a share in every class's mean
        classes, own = batch.labels.unique(return_inverse=True)
        means = class_means(embed_real(batch), own, len(classes))
        synthetic = apply_dsa(images.render(), augmentation, images.labels)
        embeddings = map_micro_batches(network.embed, config.micro_batch, synthetic)
        return dm_loss(means, embeddings, state.soft_labels.probabilities()[:, classes])

    def group_loss(group: Tensor, index: Tensor) -> Tensor:
        own = labels[index]
        classes, members = own.unique(return_inverse=True)
        real = batch.select(torch.isin(batch.labels, classes))
        embedded = embed_real(real)
        group = apply_dsa(group, augmentation, own)
        embeddings = map_micro_batches(network.embed, config.micro_batch, group)
        if config.dm_match == "kernel":
            return kernel_loss(embedded, real.labels, embeddings, own)
        real_members = torch.searchsorted(classes, real.labels)
        means = class_means(embedded, real_members, len(classes))
        return dm_loss(means, embeddings, members)

    index = None if only is None else (images.labels == only).nonzero().flatten()
    labels = images.labels if index is None else images.labels[index]
    groups = class_groups(labels, config.micro_batch)
    return sum_over_groups(images.render(index), groups, group_loss)


def dc_step_loss(state: State, data: ImageData, *, seed: int) -> Tensor:
    """Gradient matching of one step (arXiv 2006.05929, algorithm 1).

    A network serves ``outer_loop`` steps; before each but its first it trains for ``inner_loop``
    epochs on the synthetic images. ``state.network`` is moved on. With learned labels, an image is
    still matched with the real images of its own class.
    """
    config, labels = state.config, state.parameterization.labels
    iteration, update = divmod(state.step, config.outer_loop)
    network = sample_network(data, config, seed, iteration)
    images, targets = state.parameterization.render(), state.targets()
    params = dict(network.named_parameters())
    if update:
        params = _train_inner(state, network, images.detach(), targets.detach(), seed)
    state.network = flatten(params) if update + 1 < config.outer_loop else None
    augmentation, batch = sample_matched(state, data, seed)
    real_members = class_members(batch.labels)

    def class_loss(group: Tensor, *soft_and_index: Tensor) -> Tensor:
        own = labels[soft_and_index[-1]]
        one, real = augmentation.select(own[:1]), batch.select(real_members[int(own[0])])
        syn_targets = own if state.soft_labels is None else soft_and_index[0]

        def prepare(images: Tensor) -> Tensor:
            return apply_dsa(data.normalize(images), one)

        both = [(real.images, real.labels, prepare), (apply_dsa(group, one), syn_targets, None)]
        few = config.micro_batch
        gradients = [batch_gradients(network, params, *each, micro_batch=few) for each in both]
        return gradient_distance(*gradients)

    soft = None if state.soft_labels is None else targets
    return sum_over_groups(images, class_groups(labels, 1), class_loss, soft)


def _train_inner(
    state: State, network: nn.Module, images: Tensor, targets: Tensor, seed: int
) -> dict[str, Tensor]:
    """Parameters after ``inner_loop`` epochs of plain SGD on synthetic images."""
    config, params, size = state.config, unflatten(state.network, network), tuple(images.shape[2:])
    rng = generator(seed, "distill", state.step, "inner")
    for _ in range(config.inner_loop):
        for index in torch.randperm(len(images), generator=rng).split(config.inner_batch):
            batch = apply_dsa(
                images[index], sample_dsa(config.dsa, len(index), size, generator=rng)
            )
            few = {"micro_batch": config.micro_batch}
            grads = batch_gradients(network, params, batch, targets[index], **few)
            moved = zip(params.items(), grads, strict=True)
            params = {name: value.detach() - config.inner_lr * g for (name, value), g in moved}
    ranks.agree(*params.values())
    return params


def tm_step_loss(state: State, data: ImageData, *, seed: int) -> Tensor:
    """Trajectory matching of one step (arXiv 2203.11932), differentiable in ``log_syn_lr`` too.

    A random expert, a random epoch below ``max_start_epoch``, ``syn_steps`` steps of a student
    against the expert's ``expert_epochs`` epochs. As published, each image of a student's batch
    has its own parameters of one transformation.
    """
    config, images = state.config, state.parameterization
    device = images.labels.device
    expert, order, dsa = (
        generator(seed, "distill", state.step, name) for name in ("expert", "order", "dsa")
    )
    which = int(torch.randint(len(state.experts), (), generator=expert))
    epoch = int(torch.randint(config.max_start_epoch, (), generator=expert))
    pair = state.experts.snapshots(which, epoch, epoch + config.expert_epochs)
    start, target = (params.to(device) for params in pair)
    batches = synthetic_batches(len(images), config.batch_syn, config.syn_steps, generator=order)
    used = torch.cat(batches).unique()
    augmentations = [
        sample_dsa(config.dsa, len(batch), data.resolution, generator=dsa) for batch in batches
    ]
    student = student_path(
        sample_network(data, config, seed, state.step),
        start,
        images.render(used.to(device)),
        state.targets(used.to(device)),
        state.log_syn_lr.exp().to(device),
        batches=[torch.searchsorted(used, batch).to(device) for batch in batches],
        augment=lambda images, which, *, step: apply_dsa(images, augmentations[step], which),
        keep_steps=config.keep_steps,
    )
    return tm_loss(student, start, target)


STEP_LOSSES = {"dm": dm_step_loss, "dc": dc_step_loss, "tm": tm_step_loss}


def add_objective(name: str, step_loss: Callable[..., Tensor]) -> None:
    """Let ``DistillConfig(objective=name)`` mean a loss of one's own, for the rest of the process.

    A checkpoint knows the name, not the code: give a changed loss another name or folder.

    Raises:
        ConfigError: the name is the library's.
    """
    if name in ("dm", "dc", "tm"):
        raise ConfigError(f"objective '{name}' is the library's own; choose another name")
    STEP_LOSSES[name] = step_loss
    OBJECTIVES[:] = STEP_LOSSES
