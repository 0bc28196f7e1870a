"""Trajectory matching: steps by hand, memory for time at the same gradient, the renderer."""

import math
import weakref
from functools import partial

import pytest
import torch
from distillation.test_dc import TwoParameters, numbers
from torch import Tensor, nn

from gsdd_lib.distillation.tm import student_path, synthetic_batches, tm_loss
from gsdd_lib.networks import flatten, make_network, unflatten
from gsdd_lib.splatting.splat import splat
from gsdd_lib.training.augment import apply_dsa, sample_dsa
from gsdd_lib.training.experts import ExpertError

WHOLE = [torch.tensor([0])] * 2


def convnet() -> nn.Module:
    rng = torch.Generator().manual_seed(0)
    made = {"channels": 1, "num_classes": 3, "resolution": (8, 8), "width": 4}
    return make_network("ConvNetD2", **made, generator=rng).double()


def test_flat_parameters_and_back():
    network = convnet()
    params = dict(network.named_parameters())
    again = unflatten(flatten(params), network)
    assert list(again) == list(params)
    assert all(torch.equal(again[name], params[name]) for name in params)
    with pytest.raises(ValueError, match=r"parameters, not \[7\]; use one of the architecture"):
        unflatten(torch.zeros(7), network)


@pytest.mark.parametrize("keep_steps", [0, 1, 2])
def test_two_steps_by_hand(keep_steps: int):
    image, lr = numbers([1.0, 2.0]), numbers([0.4]).squeeze()
    start = torch.zeros(2, dtype=torch.float64)
    named = {"batches": WHOLE, "keep_steps": keep_steps}
    end = student_path(TwoParameters(), start, image, torch.tensor([0]), lr, **named)
    first = 0.4 * 0.5  # lr (1 - sigmoid(0)), times the image
    second = 0.4 * (1 - 1 / (1 + math.exp(-5 * first)))  # w x = first (1 + 4)
    torch.testing.assert_close(end, (first + second) * image[0])


@pytest.mark.parametrize("keep_steps", [0, 1])
def test_loss_and_its_gradient_in_the_learning_rate_by_hand(keep_steps: int):
    image = numbers([1.0, 2.0])
    lr = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    start, target = torch.zeros(2, dtype=torch.float64), numbers([2.0, 0.0])[0]
    named = {"batches": WHOLE[:1], "keep_steps": keep_steps}
    end = student_path(TwoParameters(), start, image, torch.tensor([0]), lr, **named)
    loss = tm_loss(end, start, target)
    loss.backward()
    # || lr (1/2, 1) - (2, 0) ||^2 / 4
    assert loss.item() == pytest.approx(((0.2 - 2) ** 2 + 0.4**2) / 4)
    assert lr.grad.item() == pytest.approx((2 * 0.4 * 1.25 - 2) / 4)


def test_one_at_the_start_and_zero_at_the_target():
    start, target = torch.randn(50), torch.randn(50)
    assert tm_loss(start, start, target) == 1 and tm_loss(target, start, target) == 0


@pytest.mark.parametrize("target", [torch.ones(4), torch.full((4,), math.nan)])
def test_an_expert_that_does_not_move(target: Tensor):
    with pytest.raises(ExpertError, match="equal or non-finite at the start and at the end"):
        tm_loss(torch.zeros(4), torch.ones(4), target)


class Kept:
    """A tensor that a graph keeps, for as long as the graph lives."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def path_gradients(keep_steps: int, labels: Tensor) -> tuple[list[Tensor], int]:
    """Of the loss in images, learning rate and labels; and the numbers that its graph keeps."""
    torch.manual_seed(1)
    network = convnet()
    start = flatten(dict(network.named_parameters()))
    images = torch.randn(7, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    rng = torch.Generator().manual_seed(2)
    batches = synthetic_batches(7, 3, 6, generator=rng)
    sample = partial(sample_dsa, "color_crop_cutout_flip_scale_rotate")
    augmentations = [sample(len(batch), (8, 8), generator=rng) for batch in batches]
    alive: weakref.WeakSet[Kept] = weakref.WeakSet()

    def keep(tensor: Tensor) -> Kept:
        alive.add(box := Kept(tensor))
        return box

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda box: box.tensor):
        end = student_path(
            network,
            start,
            images,
            labels,
            lr,
            batches=batches,
            augment=lambda images, which, *, step: apply_dsa(images, augmentations[step], which),
            keep_steps=keep_steps,
        )
    kept = {box.tensor.data_ptr(): box.tensor.numel() for box in alive}
    wanted = [images, lr] + ([labels] if labels.requires_grad else [])
    loss = tm_loss(end, start, start + 0.1)
    return [loss.detach(), *torch.autograd.grad(loss, wanted)], sum(kept.values())


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("keep_steps", [0, 2, 5])
def test_recomputed_steps_give_the_gradient_of_kept_ones(keep_steps: int, soft: bool):
    labels = torch.arange(7) % 3
    if soft:
        labels = torch.rand(7, 3).double().softmax(1).requires_grad_()
    plain, _ = path_gradients(6, labels)
    recomputed, _ = path_gradients(keep_steps, labels)
    for one, other in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)


def test_recomputed_steps_keep_less():
    labels = torch.arange(7) % 3
    kept = [path_gradients(keep_steps, labels)[1] for keep_steps in (0, 3, 6)]
    assert kept[0] < kept[1] < kept[2] and kept[0] < 0.3 * kept[2]


def test_gradient_through_the_renderer():
    """Analytic against central differences in double, along random directions."""
    torch.manual_seed(4)
    layers = [nn.Flatten(), nn.Linear(36, 5), nn.Tanh(), nn.Linear(5, 2)]
    network = nn.Sequential(*layers).double()
    start = flatten(dict(network.named_parameters()))
    target = start + 0.1 * torch.randn_like(start)
    packed = torch.rand(2, 3, 7, dtype=torch.float64)  # two images of three Gaussians
    packed[..., 2:5] += 0.5
    batches = [torch.tensor([0, 1]), torch.tensor([1]), torch.tensor([0])]
    labels = torch.tensor([0, 1])

    def loss(packed: Tensor, log_lr: Tensor) -> Tensor:
        lr, images = log_lr.exp(), splat(packed, 6, 6)
        end = student_path(network, start, images, labels, lr, batches=batches, keep_steps=1)
        return tm_loss(end, start, target)

    log_lr = torch.tensor(-1.0, dtype=torch.float64)
    leaves = [value.clone().requires_grad_() for value in (packed, log_lr)]
    analytic = torch.autograd.grad(loss(*leaves), leaves)
    for _ in range(5):
        way = torch.randn_like(packed), torch.randn_like(log_lr)
        plus = loss(packed + 1e-6 * way[0], log_lr + 1e-6 * way[1])
        minus = loss(packed - 1e-6 * way[0], log_lr - 1e-6 * way[1])
        slope = sum((a * w).sum() for a, w in zip(analytic, way, strict=True))
        torch.testing.assert_close(slope, (plus - minus) / 2e-6, rtol=1e-6, atol=1e-8)


def test_batches_use_the_set_up_before_they_start_over():
    batches = synthetic_batches(7, 3, 8, generator=torch.Generator().manual_seed(0))
    assert [len(batch) for batch in batches] == [3, 3, 1, 3, 3, 1, 3, 3]
    for first in (0, 3):
        assert sorted(torch.cat(batches[first : first + 3]).tolist()) == list(range(7))
    assert not torch.equal(torch.cat(batches[:3]), torch.cat(batches[3:6]))


def test_the_whole_set_at_every_step():
    batches = synthetic_batches(4, 0, 3, generator=torch.Generator().manual_seed(0))
    assert [sorted(batch.tolist()) for batch in batches] == [[0, 1, 2, 3]] * 3
