"""One step of each objective: exact gradients in micro-batches, samples by step, the state."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch.nn.functional import one_hot

from gsdd_lib.config import (
    OBJECTIVES,
    BudgetConfig,
    DataConfig,
    DistillConfig,
    ExpertConfig,
    FitConfig,
)
from gsdd_lib.core.errors import ConfigError
from gsdd_lib.data import ImageData, load_data
from gsdd_lib.distillation import losses as matching
from gsdd_lib.distillation import soft_labels
from gsdd_lib.distillation.dc import batch_gradients, gradient_distance
from gsdd_lib.distillation.dm import Matching, class_means, dm_loss
from gsdd_lib.distillation.losses import STEP_LOSSES
from gsdd_lib.distillation.microbatch import class_groups, map_micro_batches, sum_over_groups
from gsdd_lib.distillation.soft_labels import SoftLabels
from gsdd_lib.distillation.state import State
from gsdd_lib.networks import flatten, make_network
from gsdd_lib.parameterizations.budget import plan_budget
from gsdd_lib.parameterizations.fit import initial_gaussians
from gsdd_lib.parameterizations.gaussian import GaussianImages
from gsdd_lib.training.augment import apply_dsa, sample_dsa
from gsdd_lib.training.experts import ExpertError, Experts, train_experts

CONFIG = DistillConfig(
    network="ConvNetD2", width=8, batch_real=16, syn_steps=3, max_start_epoch=2, expert_epochs=1
)


TRAINED = {"dm_networks": "trained"}


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig(dataset="digits", max_per_class=40))


@pytest.fixture(scope="module")
def experts(data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Experts:
    folder: Path = tmp_path_factory.mktemp("experts")
    config = ExpertConfig(num_experts=2, train_epochs=2, expert_network="ConvNetD2", expert_width=8)
    list(train_experts(data, config, folder, seed=0))
    return Experts(folder)


@pytest.fixture
def gaussians(data: ImageData) -> GaussianImages:
    budget = plan_budget(BudgetConfig(ipc=4, gpc=2), data)
    return initial_gaussians(data, budget, FitConfig(fit_steps=10), seed=0).gaussians


def loss_and_gradient(gaussians, data, experts, step=0, seed=0, soft=None, **changes):
    config = CONFIG.model_copy(update=changes)
    state = State(gaussians, data, config, experts=experts, soft_labels=soft)
    state.step = step
    loss = STEP_LOSSES[config.objective](state, data, seed=seed)
    gaussians.packed.grad = None
    loss.backward()
    return loss.detach(), gaussians.packed.grad.clone(), state


@pytest.mark.parametrize("objective", ["dm", "dc", "tm"])
def test_a_step_samples_by_seed_and_step_alone(gaussians, data, experts, objective):
    first, gradient, _ = loss_and_gradient(gaussians, data, experts, objective=objective)
    again, same, _ = loss_and_gradient(gaussians, data, experts, objective=objective)
    other, _, _ = loss_and_gradient(gaussians, data, experts, step=1, objective=objective)
    assert torch.equal(first, again) and torch.equal(gradient, same) and first != other
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize(
    "changes", [{}, TRAINED, {"objective": "dc"}], ids=["dm", "dm trained", "dc"]
)
def test_micro_batches_change_rounding_alone(gaussians, data, experts, changes):
    one = loss_and_gradient(gaussians, data, experts, **changes, micro_batch=10**6)
    other = loss_and_gradient(gaussians, data, experts, **changes, micro_batch=3)
    torch.testing.assert_close(one[0], other[0], rtol=1e-4, atol=0)
    assert (one[1] - other[1]).norm() < 1e-3 * one[1].norm()


class DoubleData(ImageData):
    """Images normalized to double."""

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        return super().normalize(images).double()


@pytest.mark.parametrize(
    "changes",
    [{"objective": "dm"}, {"objective": "dc"}, {"objective": "dc", "outer_loop": 2}],
    ids=["dm", "dc", "dc trained"],
)
def test_micro_batches_give_the_plain_gradient_in_double(gaussians, data, changes, monkeypatch):
    """Two images per class, so that micro-batches of 1 cut a class; equal samples for all."""
    fresh = matching.sample_network
    monkeypatch.setattr(matching, "sample_network", lambda *given: fresh(*given).double())
    named = {each.name: getattr(data, each.name) for each in fields(data)}
    data, gaussians = DoubleData(**named), gaussians.double()
    config = CONFIG.model_copy(update={"batch_real": 3, **changes})
    found = {}
    for micro_batch in (10**6, 1, 7):
        own = config.model_copy(update={"micro_batch": micro_batch})
        state, losses = State(gaussians, data, own), []
        gaussians.packed.grad = None
        for state.step in range(config.outer_loop):
            losses.append(STEP_LOSSES[config.objective](state, data, seed=0))
        sum(losses).backward()
        found[micro_batch] = torch.stack(losses).detach(), gaussians.packed.grad.clone()
    for micro_batch in (1, 7):
        for plain, split in zip(found[10**6], found[micro_batch], strict=True):
            assert (plain - split).norm() < 1e-10 * plain.norm()


def test_matching_networks_have_no_dropout(data):
    """It would be another one when a micro-batch is computed again for its gradient."""
    assert not matching.sample_network(data, CONFIG, 0, 0).training


# Matching in trained networks


def test_a_network_is_somewhere_between_an_experts_ends(gaussians, data, experts):
    config = CONFIG.model_copy(update=TRAINED)
    state, found = State(gaussians, data, config, experts=experts), []
    for state.step in range(12):
        network = matching.sample_embedding(state, data, 0)
        assert not network.training
        assert not any(value.requires_grad for value in network.parameters())
        own = flatten(dict(network.named_parameters()))
        for expert in range(2):
            start, end = experts.snapshots(expert, 0, 2)
            share = ((own - start) @ (end - start) / (end - start).square().sum()).item()
            if (own - torch.lerp(start, end, share)).norm() < 1e-5 * start.norm():
                found.append((expert, share))
    assert len(found) == 12  # each on one of the two lines
    assert {expert for expert, _ in found} == {0, 1}
    shares = [share for _, share in found]
    assert all(0 <= share <= 1 for share in shares) and max(shares) - min(shares) > 0.5
    plain = State(gaussians, data, CONFIG, experts=experts)
    fresh = matching.sample_embedding(plain, data, 0).state_dict()
    wanted = matching.sample_network(data, CONFIG, 0, 0).state_dict()
    assert all(torch.equal(fresh[name], wanted[name]) for name in wanted)


def test_class_by_class_the_losses_in_trained_networks_are_those_of_all(gaussians, data, experts):
    config = CONFIG.model_copy(update=TRAINED)
    state = State(gaussians, data, config, experts=experts)
    whole = STEP_LOSSES["dm"](state, data, seed=0)
    parts = sum(STEP_LOSSES["dm"](state, data, seed=0, only=label) for label in range(10))
    torch.testing.assert_close(whole, parts)


def test_trained_networks_want_experts_that_fit(gaussians, data, experts):
    config = CONFIG.model_copy(update=TRAINED)
    with pytest.raises(ExpertError, match="Matching in trained networks takes experts; train some"):
        State(gaussians, data, config)
    with pytest.raises(ExpertError, match="expert_width 8, wanted 4"):
        State(gaussians, data, config.model_copy(update={"width": 4}), experts=experts)


def test_kept_steps_change_rounding_alone(gaussians, data, experts):
    one = loss_and_gradient(gaussians, data, experts, objective="tm", keep_steps=3)
    other = loss_and_gradient(gaussians, data, experts, objective="tm", batch_syn=0)
    torch.testing.assert_close(one[0], other[0], rtol=1e-5, atol=0)
    assert (one[1] - other[1]).norm() < 1e-4 * one[1].norm()
    torch.testing.assert_close(one[2].log_syn_lr.grad, other[2].log_syn_lr.grad)


def test_a_students_batches_may_leave_images_out(gaussians, data, experts):
    _, gradient, _ = loss_and_gradient(gaussians, data, experts, objective="tm", batch_syn=4)
    moved = gradient.flatten(1).abs().sum(1) > 0
    assert moved.sum() == 12 and len(moved) == 20  # three steps of four images


def double_convnet():
    rng = torch.Generator().manual_seed(0)
    made = {"channels": 1, "num_classes": 3, "resolution": (8, 8), "width": 4}
    return make_network("ConvNetD2", **made, generator=rng).double()


def test_prepared_images_in_micro_batches_are_those_of_the_batch():
    network = double_convnet()
    params = dict(network.named_parameters())
    images = torch.randint(0, 256, (11, 1, 8, 8), dtype=torch.uint8)
    labels, rng = torch.ones(11, dtype=torch.int64), torch.Generator().manual_seed(1)
    augmentation = sample_dsa("crop_flip", 1, (8, 8), generator=rng)

    def prepare(images):
        return apply_dsa(images.double() / 255, augmentation)

    ready = prepare(images)
    whole = batch_gradients(network, params, ready, labels)
    for micro_batch in (1, 4, 11):
        named = {"prepare": prepare, "micro_batch": micro_batch}
        found = batch_gradients(network, params, images, labels, **named)
        for one, other in zip(whole, found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-14)


def test_class_by_class_is_the_plain_gradient_in_double():
    network = double_convnet()
    params = dict(network.named_parameters())
    images, labels = torch.randn(9, 1, 8, 8).double(), torch.arange(9) % 3
    real = batch_gradients(network, params, images, labels)
    source = torch.randn(9, 1, 8, 8, dtype=torch.float64, requires_grad=True)

    def class_loss(group, index):
        grads = batch_gradients(network, params, group, labels[index])
        return gradient_distance(real, grads)

    groups = class_groups(labels, 1)
    split = sum_over_groups(source.tanh(), groups, class_loss)
    plain = sum(class_loss(source.tanh()[index], index) for index in groups)
    assert split.item() == pytest.approx(plain.item(), rel=1e-13)
    one, other = (torch.autograd.grad(loss, source)[0] for loss in (split, plain))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)


def test_a_loss_of_all_embeddings_in_micro_batches_is_the_plain_one_in_double():
    network, labels = double_convnet(), torch.arange(9) % 3
    source = torch.randn(9, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        real = class_means(network.embed(torch.randn(9, 1, 8, 8).double()), labels, 3)

    def loss(embeddings):
        return dm_loss(real, embeddings, logits.softmax(1))

    plain = loss(network.embed(source.tanh()))
    split = loss(map_micro_batches(network.embed, 4, source.tanh()))
    assert split.item() == pytest.approx(plain.item(), rel=1e-13)
    both = [torch.autograd.grad(value, (source, logits)) for value in (split, plain)]
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-15)


def test_a_network_of_dc_serves_its_outer_loop(gaussians, data, experts):
    config = CONFIG.model_copy(update={"objective": "dc", "outer_loop": 3, "inner_loop": 2})
    state, networks = State(gaussians, data, config), []
    for state.step in range(4):
        STEP_LOSSES["dc"](state, data, seed=0)
        networks.append(state.network)
    assert not torch.equal(networks[0], networks[1])  # trained in between
    assert networks[2] is None and not torch.equal(networks[3], networks[0])  # a fresh one


def test_tm_wants_experts_that_fit(gaussians, data, experts):
    tm = CONFIG.model_copy(update={"objective": "tm"})
    with pytest.raises(ExpertError, match="follows experts; train some"):
        State(gaussians, data, tm)
    with pytest.raises(ExpertError, match="expert_width 8, wanted 4"):
        State(gaussians, data, tm.model_copy(update={"width": 4}), experts=experts)
    with pytest.raises(ExpertError, match="the matching needs 6"):
        State(gaussians, data, tm.model_copy(update={"max_start_epoch": 6}), experts=experts)


def test_groups_hold_whole_classes():
    labels = torch.tensor([2, 0, 1, 0, 2, 2])
    assert [g.tolist() for g in class_groups(labels, 1)] == [[1, 3], [2], [0, 4, 5]]
    assert [g.tolist() for g in class_groups(labels, 100)] == [[1, 3], [2], [0, 4, 5]]
    labels = torch.tensor([1, 0, 2] + 3 * list(range(3, 40)))  # 40 classes, three to a group
    assert [len(g) for g in class_groups(labels, 100)] == [3, *12 * [9], 3]
    assert [len(g) for g in class_groups(labels, 6)] == [3, *18 * [6], 3]
    gpu = torch.device("cuda")  # small groups take as long there as large ones
    assert [len(g) for g in class_groups(labels, 1000, gpu)] == [len(labels)]
    assert [len(g) for g in class_groups(labels, 6, gpu)] == 19 * [6]


# Learned labels


def sharp_labels(gaussians: GaussianImages) -> SoftLabels:
    """Learned labels that are certain in float32."""
    return SoftLabels(200.0 * one_hot(gaussians.labels, 10))


@pytest.mark.parametrize("objective", ["dm", "dc", "tm"])
def test_certain_learned_labels_are_class_numbers(gaussians, data, experts, objective):
    plain = loss_and_gradient(gaussians, data, experts, objective=objective)
    soft = sharp_labels(gaussians)
    learned = loss_and_gradient(gaussians, data, experts, objective=objective, soft=soft)
    torch.testing.assert_close(plain[0], learned[0], rtol=1e-5, atol=0)
    assert (plain[1] - learned[1]).norm() < 1e-4 * plain[1].norm()


@pytest.mark.parametrize("objective", ["dm", "dc"])
def test_micro_batches_with_learned_labels(gaussians, data, experts, objective):
    found = []
    for micro_batch in (10**6, 3):
        soft = SoftLabels(4.4 * one_hot(gaussians.labels, 10))
        named = {"objective": objective, "micro_batch": micro_batch, "soft": soft, "batch_real": 4}
        loss, gradient, _ = loss_and_gradient(gaussians, data, experts, **named)
        found.append((loss, gradient, soft.logits.grad))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=0)
    for one, other in zip(found[0][1:], found[1][1:], strict=True):
        assert 0 < one.norm() and (one - other).norm() < 1e-3 * one.norm()


class Doubles:
    """Fixed images in double in the place of Gaussians."""

    def __init__(self, gaussians: GaussianImages) -> None:
        self.images, self.labels = gaussians.render().detach().double(), gaussians.labels

    def __len__(self) -> int:
        return len(self.labels)

    def render(self, index: torch.Tensor | None = None) -> torch.Tensor:
        return self.images if index is None else self.images[index]


@pytest.mark.parametrize("objective", ["dm", "dc", "tm"])
def test_the_gradient_of_a_step_in_the_labels_is_exact(
    gaussians, data, experts, monkeypatch, objective
):
    """A whole step in double, against finite differences in the logits."""
    fresh, normalize = matching.sample_network, ImageData.normalize
    monkeypatch.setattr(matching, "sample_network", lambda *given: fresh(*given).double())
    monkeypatch.setattr(
        ImageData, "normalize", lambda self, images: normalize(self, images).double()
    )
    # The rounding to bf16 has not the gradient of a step function.
    monkeypatch.setattr(soft_labels, "as_stored", lambda values, _: values)
    snapshots = experts.snapshots
    monkeypatch.setattr(
        experts, "snapshots", lambda *asked: [each.double() for each in snapshots(*asked)]
    )
    images, start = Doubles(gaussians), torch.randn(20, 10).double()
    settings = {"objective": objective, "micro_batch": 7, "batch_syn": 6, "batch_real": 2}
    config = CONFIG.model_copy(update=settings)

    def loss(logits: torch.Tensor) -> tuple[torch.Tensor, SoftLabels]:
        soft = SoftLabels(logits).double()
        soft.logits.data.copy_(logits)
        state = State(gaussians, data, config, experts=experts, soft_labels=soft)
        state.parameterization = images
        state.log_syn_lr = torch.nn.Parameter(state.log_syn_lr.detach().double())
        return STEP_LOSSES[objective](state, data, seed=0), soft

    value, soft = loss(start)
    value.backward()
    assert soft.logits.grad.dtype == torch.float64 and soft.logits.grad.norm() > 0
    for _ in range(3):
        way = torch.randn_like(start)
        numeric = (loss(start + 1e-5 * way)[0] - loss(start - 1e-5 * way)[0]) / 2e-5
        found = (soft.logits.grad * way).sum()
        torch.testing.assert_close(found, numeric.detach(), rtol=1e-5, atol=1e-9)


def test_an_objective_of_one_s_own_is_called_by_its_name(gaussians, data, monkeypatch):
    monkeypatch.setattr(matching, "STEP_LOSSES", dict(STEP_LOSSES))
    names = list(OBJECTIVES)
    try:
        matching.add_objective(
            "mine", lambda state, data, *, seed: state.parameterization.packed.sum()
        )
        assert DistillConfig(objective="mine").objective == "mine"
        matching.add_objective("mine", lambda state, data, *, seed: torch.tensor(3.0))
        assert matching.STEP_LOSSES["mine"](None, None, seed=0) == 3 and OBJECTIVES == [
            *names,
            "mine",
        ]
        with pytest.raises(ConfigError, match="objective 'dm' is the library's own"):
            matching.add_objective("dm", lambda: None)
    finally:
        OBJECTIVES[:] = names
    with pytest.raises(ConfigError, match="unknown objective 'mine'"):
        DistillConfig(objective="mine")


@pytest.mark.parametrize("kind", ["means", "kernel"])
@pytest.mark.parametrize("changes", [{}, TRAINED], ids=["untrained", "trained"])
@pytest.mark.parametrize("per_class", [False, True])
def test_a_step_that_a_gpu_records_has_the_same_loss_and_gradient(
    gaussians, data, experts, kind, changes, per_class
):
    """Where classes are of equal size; another step takes another network."""
    config = CONFIG.model_copy(update={"dm_match": kind, **changes})
    plain, recorded = (State(gaussians, data, config, experts=experts) for _ in range(2))
    network = matching.sample_network(data, config, 9, 9).requires_grad_(False)
    recorded.matching = Matching(network, kind)
    for step in range(2):
        found = []
        for state in (plain, recorded):
            state.step = step
            only = {"only": 3} if per_class else {}
            loss = STEP_LOSSES["dm"](state, data, seed=0, **only)
            found.append((loss.detach(), *torch.autograd.grad(loss, gaussians.packed)))
        for one, other in zip(*found, strict=True):
            assert (one - other).norm() < 1e-5 * one.norm()
    assert recorded.matching.results  # it was used


@pytest.mark.parametrize(
    "labels, even",
    [
        ([4, 4, 7, 7], True),
        ([2], True),
        ([4, 4, 7], False),  # unequal
        ([4, 7, 4, 7], False),  # not class after class
        ([4, 4, 7, 7, 4, 4], False),
    ],
)
def test_whole_classes_of_equal_size_alone_are_recorded(labels, even):
    assert matching._even(torch.tensor(labels)) == even
