"""Distribution matching: hand-computed means and distances, and what is refused."""

import math

import pytest
import torch
from torch import nn

from gsdd_lib.distillation.dm import class_means, discrepancy, dm_loss, kernel_loss
from gsdd_lib.distillation.microbatch import map_micro_batches

EMBEDDINGS = torch.tensor([[1.0, 2.0], [0.0, 10.0], [3.0, 6.0], [2.0, 20.0]])
LABELS = torch.tensor([0, 1, 0, 1])
MEANS = torch.tensor([[2.0, 4.0], [1.0, 15.0]])


def test_means_by_hand():
    assert torch.equal(class_means(EMBEDDINGS, LABELS, 2), MEANS)


def test_means_of_classes_of_unequal_size():
    labels = torch.tensor([1, 0, 1, 1])
    expected = torch.stack([EMBEDDINGS[1], EMBEDDINGS[[0, 2, 3]].mean(0)])
    torch.testing.assert_close(class_means(EMBEDDINGS, labels, 2), expected)


def test_loss_by_hand():
    real = torch.tensor([[2.0, 1.0], [3.0, 11.0]])
    assert dm_loss(real, EMBEDDINGS, LABELS) == 0 + 9 + 4 + 16


def test_gradient_by_hand():
    synthetic = EMBEDDINGS.clone().requires_grad_()
    dm_loss(torch.zeros(2, 2), synthetic, LABELS).backward()
    # d ||m||^2 / d x = 2 m / n for each of the n images of a class
    assert torch.equal(synthetic.grad, MEANS[LABELS])


def test_a_set_matches_itself_in_any_order():
    embeddings = torch.randn(30, 5)
    labels = torch.arange(30) % 3
    order = torch.randperm(30)
    means = class_means(embeddings, labels, 3)
    assert dm_loss(means, embeddings, labels) == 0
    assert dm_loss(means, embeddings[order], labels[order]) < 1e-10


def test_gradcheck():
    real = torch.randn(3, 4, dtype=torch.float64)
    synthetic = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 2, 1, 0, 0])
    assert torch.autograd.gradcheck(lambda x: dm_loss(real, x, labels), synthetic)


@pytest.mark.parametrize("micro_batch", [1, 4, 6])
def test_embeddings_in_micro_batches_are_those_of_the_batch_in_double(micro_batch):
    layers = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    images = torch.randn(7, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    real, labels = torch.randn(3, 4, dtype=torch.float64), torch.arange(7) % 3
    found = []
    for size in (7, micro_batch):
        loss = dm_loss(real, map_micro_batches(layers, size, images), labels)
        found.append((loss, *torch.autograd.grad(loss, images)))
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() < 1e-12 * one.norm()


def test_a_class_without_images():
    with pytest.raises(ValueError, match="class 2 of 3 has no images"):
        dm_loss(torch.zeros(3, 2), EMBEDDINGS, LABELS)


PROBABILITIES = torch.tensor([[0.75, 0.25], [0.0, 1.0], [0.25, 0.75], [1.0, 0.0]])


def test_means_weighted_by_probabilities_by_hand():
    first = (0.75 * EMBEDDINGS[0] + 0.25 * EMBEDDINGS[2] + EMBEDDINGS[3]) / 2
    second = (0.25 * EMBEDDINGS[0] + EMBEDDINGS[1] + 0.75 * EMBEDDINGS[2]) / 2
    means = class_means(EMBEDDINGS, PROBABILITIES, 2)
    torch.testing.assert_close(means, torch.stack([first, second]))


def test_certain_probabilities_are_class_numbers():
    certain = torch.nn.functional.one_hot(LABELS).float()
    assert torch.equal(class_means(EMBEDDINGS, certain, 2), MEANS)
    real = torch.randn(2, 2)
    assert dm_loss(real, EMBEDDINGS, certain) == dm_loss(real, EMBEDDINGS, LABELS)


def test_gradcheck_in_probabilities():
    real, embeddings = torch.randn(2, 4, dtype=torch.float64), torch.randn(5, 4).double()
    logits = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: dm_loss(real, embeddings, z.softmax(1)), logits)


def test_the_kernel_loss_by_hand():
    real, labels = torch.tensor([[0.0], [2.0]]), torch.tensor([0, 0])
    synthetic = torch.tensor([[1.0]], requires_grad=True)
    # distances among real 0, 4, 4, 0, their mean 2; of the synthetic one to both 1
    wanted = sum(
        1 - 2 * math.exp(-1 / (2 * bandwidth * 2)) + (1 + math.exp(-4 / (2 * bandwidth * 2))) / 2
        for bandwidth in (0.25, 1.0)
    )
    found = kernel_loss(real, labels, synthetic, torch.tensor([0]))
    assert found.item() == pytest.approx(wanted, rel=1e-6)
    (gradient,) = torch.autograd.grad(found, synthetic)
    assert gradient.abs().item() < 1e-6  # halfway: nowhere to go


def test_the_kernel_loss_is_zero_for_equal_sets_and_positive_for_equal_means():
    real, labels = torch.tensor([[-1.0], [1.0]]), torch.tensor([3, 3])
    assert kernel_loss(real, labels, real, labels).item() == pytest.approx(0, abs=1e-6)
    narrow = 0.1 * real
    assert kernel_loss(real, labels, narrow, labels).item() > 0.1
    assert dm_loss(real.mean(0, keepdim=True), narrow, torch.zeros(2).long()).item() == 0


def test_the_kernel_loss_in_double():
    draw = torch.Generator().manual_seed(0)
    real = torch.randn(6, 3, generator=draw, dtype=torch.float64)
    synthetic = torch.randn(4, 3, generator=draw, dtype=torch.float64, requires_grad=True)
    labels, own = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 1, 0, 1])
    assert torch.autograd.gradcheck(lambda s: kernel_loss(real, labels, s, own), synthetic)


def test_the_kernel_loss_of_several_classes_at_once_is_the_sum_of_theirs():
    real, synthetic = torch.randn(3, 7, 5), torch.randn(3, 4, 5)
    together = discrepancy(synthetic, real, torch.zeros(()))
    labels, own = (torch.arange(3).repeat_interleave(count) for count in (7, 4))
    apart = kernel_loss(real.flatten(0, 1), labels, synthetic.flatten(0, 1), own)
    torch.testing.assert_close(together, apart)
    assert discrepancy(synthetic[0], real[0], apart) > apart


@pytest.mark.gpu
def test_a_gpu_matches_all_classes_at_once_to_the_cpus_loss():
    real, synthetic = torch.randn(21, 5), torch.randn(12, 5)
    labels, own = torch.arange(21) % 3, torch.arange(12) % 3
    here = kernel_loss(real, labels, synthetic, own)
    there = kernel_loss(real.cuda(), labels, synthetic.cuda(), own)
    torch.testing.assert_close(there.cpu(), here, atol=1e-4, rtol=1e-4)
    means = class_means(real.cuda(), labels, 3).cpu()
    torch.testing.assert_close(means, class_means(real, labels, 3), atol=1e-4, rtol=1e-4)
