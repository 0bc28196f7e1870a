"""What a step lowers: one function per objective, all of one signature, and what they sample.

Images are rendered once and the loss differentiated in them class by class, which ranks share.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from gsdd_lib.config import OBJECTIVES, DistillConfig
from gsdd_lib.core import ranks
from gsdd_lib.core.errors import ConfigError
from gsdd_lib.core.rng import generator
from gsdd_lib.data import ImageData, ImageSet
from gsdd_lib.data.dataset import class_members, sample_per_class
from gsdd_lib.distillation.dc import batch_gradients, gradient_distance
from gsdd_lib.distillation.dm import Matching, class_means, dm_loss, kernel_loss
from gsdd_lib.distillation.microbatch import class_groups, map_micro_batches, sum_over_groups
from gsdd_lib.distillation.state import State
from gsdd_lib.distillation.tm import student_path, synthetic_batches, tm_loss
from gsdd_lib.networks import flatten, network_for, unflatten
from gsdd_lib.training.augment import DsaParams, apply_dsa, sample_dsa


def sample_network(data: ImageData, config: DistillConfig, seed: int, step: int) -> nn.Module:
    """An untrained network, in evaluation mode: dropout would differ when a batch is run again."""
    rng = generator(seed, "distill", step, "network")
    return network_for(data, config.network, config.width, generator=rng).eval()


def sample_embedding(state: State, data: ImageData, seed: int) -> nn.Module:
    """The network of a DM step, without gradients: a fresh one or, trained, between an expert's
    initial and last parameters, ``(1 - u) theta_0 + u theta_T`` (the pool of NCFM, CVPR 2025)."""
    network = sample_network(data, state.config, seed, state.step).requires_grad_(False)
    if state.config.dm_networks == "trained":
        draw = generator(seed, "distill", state.step, "expert")
        which = int(torch.randint(len(state.experts), (), generator=draw))
        start, end = state.experts.snapshots(which, 0, state.experts.epochs)
        between = torch.lerp(start, end, torch.rand((), generator=draw).item())
        vector_to_parameters(between.to(data.device), network.parameters())
    return network


def sample_matched(
    state: State, data: ImageData, seed: int, only: int | None = None
) -> tuple[DsaParams, ImageSet]:
    """An augmentation per class, and ``batch_real`` real images of each, or of class ``only``."""
    dsa, real = (generator(seed, "distill", state.step, name) for name in ("dsa", "real"))
    config, size = state.config, data.resolution
    augmentation = sample_dsa(config.dsa, data.num_classes, size, generator=dsa, mixed=True)
    index = sample_per_class(state.members, config.batch_real, generator=real)
    if only is not None:
        index = index[data.train.labels.cpu()[index] == only]
    return augmentation, data.train.select(index.to(data.device, non_blocking=True))


def dm_step_loss(state: State, data: ImageData, *, seed: int, only: int | None = None) -> Tensor:
    """Distribution matching by one network (arXiv 2110.04181), of class ``only`` or of all."""
    config, images = state.config, state.parameterization
    network = sample_embedding(state, data, seed)
    augmentation, batch = sample_matched(state, data, seed, only)

    def embed(pixels: Tensor, labels: Tensor) -> Tensor:
        return network.embed(apply_dsa(data.normalize(pixels), augmentation, labels))

    @torch.no_grad()
    def embed_real(pixels: Tensor, labels: Tensor) -> Tensor:
        return map_micro_batches(embed, config.micro_batch, pixels, labels)

    if state.soft_labels is not None:  # all images have a share in every class's mean
        classes, own = batch.labels.unique(return_inverse=True)
        means = class_means(embed_real(batch.images, batch.labels), own, len(classes))
        synthetic = apply_dsa(images.render(), augmentation, images.labels)
        embeddings = map_micro_batches(network.embed, config.micro_batch, synthetic)
        return dm_loss(means, embeddings, state.soft_labels.probabilities()[:, classes])

    real_labels, every = batch.labels.cpu(), images.labels.cpu()  # the step waits here alone
    if state.matching is None and data.device.type == "cuda":
        state.matching = Matching(network, config.dm_match)
    if state.matching is not None:
        state.matching.use(network)

    def group_loss(group: Tensor, index: Tensor) -> Tensor:
        own = labels[index]
        classes, members = own.unique(return_inverse=True)
        chosen = torch.isin(real_labels, classes).nonzero().flatten()
        real = batch.images[chosen.to(group.device, non_blocking=True)]
        own_real, group = real_labels[chosen], apply_dsa(group, augmentation, own)
        if state.matching is not None and _even(own) and _even(own_real):
            settings = {"classes": len(classes), "micro_batch": config.micro_batch}
            real = apply_dsa(data.normalize(real), augmentation, own_real)
            return state.matching(real, group, **settings)
        embedded = embed_real(real, own_real)
        embeddings = map_micro_batches(network.embed, config.micro_batch, group)
        if config.dm_match == "kernel":
            return kernel_loss(embedded, own_real, embeddings, own)
        real_members = torch.searchsorted(classes, own_real)
        return dm_loss(class_means(embedded, real_members, len(classes)), embeddings, members)

    index = None if only is None else (every == only).nonzero().flatten()
    labels, device = every if index is None else every[index], images.labels.device
    groups = class_groups(labels, config.micro_batch, device)
    rendered = images.render(None if index is None else index.to(device))
    return sum_over_groups(rendered, groups, group_loss)


def _even(labels: Tensor) -> bool:
    """Whether the classes come one after the other, each as often as the others."""
    classes, counts = labels.unique_consecutive(return_counts=True)
    return len(counts.unique()) == 1 and len(classes) == len(classes.unique())


def dc_step_loss(state: State, data: ImageData, *, seed: int) -> Tensor:
    """Gradient matching of one step (arXiv 2006.05929, algorithm 1); ``state.network`` moves on.

    A network serves ``outer_loop`` steps; before each but its first it trains for ``inner_loop``
    epochs on the synthetic images.
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
        own = labels[soft_and_index[-1]]  # also with learned labels, an image's class is its own
        one, real = augmentation.select(own[:1]), batch.select(real_members[int(own[0])])
        syn_targets = own if state.soft_labels is None else soft_and_index[0]

        def prepare(images: Tensor) -> Tensor:
            return apply_dsa(data.normalize(images), one)

        both = [(real.images, real.labels, prepare), (apply_dsa(group, one), syn_targets, None)]
        few = config.micro_batch
        gradients = [batch_gradients(network, params, *each, micro_batch=few) for each in both]
        return gradient_distance(*gradients)

    soft = [] if state.soft_labels is None else [targets]
    return sum_over_groups(images, class_groups(labels, 1), class_loss, *soft)


def _train_inner(
    state: State, network: nn.Module, images: Tensor, targets: Tensor, seed: int
) -> dict[str, Tensor]:
    config, params, size = state.config, unflatten(state.network, network), tuple(images.shape[2:])
    rng, few = generator(seed, "distill", state.step, "inner"), {"micro_batch": config.micro_batch}
    for _ in range(config.inner_loop):
        for index in torch.randperm(len(images), generator=rng).split(config.inner_batch):
            dsa = sample_dsa(config.dsa, len(index), size, generator=rng)
            batch = apply_dsa(images[index], dsa), targets[index]
            grads = batch_gradients(network, params, *batch, **few)
            moved = zip(params.items(), grads, strict=True)
            params = {name: value.detach() - config.inner_lr * g for (name, value), g in moved}
    ranks.agree(*params.values())
    return params


def tm_step_loss(state: State, data: ImageData, *, seed: int) -> Tensor:
    """Trajectory matching of one step (arXiv 2203.11932), differentiable in ``log_syn_lr`` too.

    ``syn_steps`` of a student against ``expert_epochs`` of a random expert from a random epoch on.
    """
    config, images = state.config, state.parameterization
    device, names = images.labels.device, ("expert", "order", "dsa")
    expert, order, dsa = (generator(seed, "distill", state.step, name) for name in names)
    which = int(torch.randint(len(state.experts), (), generator=expert))
    epoch = int(torch.randint(config.max_start_epoch, (), generator=expert))
    pair = state.experts.snapshots(which, epoch, epoch + config.expert_epochs)
    start, target = (params.to(device) for params in pair)
    batches = synthetic_batches(len(images), config.batch_syn, config.syn_steps, generator=order)
    how, used = {"size": data.resolution, "generator": dsa}, torch.cat(batches).unique()
    augmentations = [sample_dsa(config.dsa, len(batch), **how) for batch in batches]

    def augment(images: Tensor, which: Tensor, *, step: int) -> Tensor:
        return apply_dsa(images, augmentations[step], which)

    batches = [torch.searchsorted(used, batch).to(device) for batch in batches]
    used, lr = used.to(device), state.log_syn_lr.exp().to(device)
    network, how = sample_network(data, config, seed, state.step), {"batches": batches}
    how |= {"augment": augment, "keep_steps": config.keep_steps}
    synthetic = images.render(used), state.targets(used)
    return tm_loss(student_path(network, start, *synthetic, lr, **how), start, target)


STEP_LOSSES = {"dm": dm_step_loss, "dc": dc_step_loss, "tm": tm_step_loss}
OURS = tuple(STEP_LOSSES)


def add_objective(name: str, step_loss: Callable[..., Tensor]) -> None:
    """Let ``DistillConfig(objective=name)`` mean a loss of one's own; ConfigError: name taken.

    A checkpoint knows the name, not the code: give a changed loss another name or folder.
    """
    if name in OURS:
        raise ConfigError(f"objective '{name}' is the library's own; choose another name")
    STEP_LOSSES[name] = step_loss
    OBJECTIVES[:] = STEP_LOSSES
