"""Distribution matching: hand-computed means and distances, and what is refused."""

import math

import pytest
import torch
from torch import nn

from gsdd_lib.core.rng import generator
from gsdd_lib.distillation.dm import Matching, class_means, discrepancy, dm_loss, kernel_loss
from gsdd_lib.distillation.microbatch import map_micro_batches
from gsdd_lib.networks import make_network

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


KINDS = pytest.mark.parametrize("kind", ["means", "kernel"])


def images_of(count, classes=3, shape=(3, 16, 16)):
    draw = generator(0, "images", count)
    return torch.randn(count * classes, *shape, generator=draw)


def network_of(index):
    more = {"channels": 3, "num_classes": 3, "resolution": (16, 16), "width": 8}
    made = make_network("ConvNetD2", generator=generator(index, "weights"), **more)
    return made.eval().requires_grad_(False)


@KINDS
def test_whole_classes_are_matched_by_the_same_loss(kind):
    """By each of two networks, and in micro-batches; the gradient is that of the plain losses."""
    labels, own = (torch.arange(3).repeat_interleave(count) for count in (7, 4))
    real, synthetic = images_of(7), images_of(4).requires_grad_()
    matching = Matching(network_of(0), kind)
    for index in (0, 1):
        network = network_of(index)
        matching.use(network)
        embedded, embeddings = network.embed(real), network.embed(synthetic)
        if kind == "kernel":
            wanted = kernel_loss(embedded, labels, embeddings, own)
        else:
            wanted = dm_loss(class_means(embedded, labels, 3), embeddings, own)
        (gradient,) = torch.autograd.grad(wanted, synthetic)
        for micro_batch in (100, 5):
            found = matching(real, synthetic, classes=3, micro_batch=micro_batch)
            torch.testing.assert_close(found.detach(), wanted.detach())
            torch.testing.assert_close(torch.autograd.grad(2 * found, synthetic)[0], 2 * gradient)


def test_a_later_call_leaves_an_earlier_ones_gradient_alone():
    matching, synthetic = Matching(network_of(0), "means"), images_of(4).requires_grad_()
    first = matching(images_of(7), synthetic, classes=3, micro_batch=100)
    (wanted,) = torch.autograd.grad(first, synthetic, retain_graph=True)
    matching(images_of(9), 2 * synthetic.detach(), classes=3, micro_batch=100)
    assert torch.equal(torch.autograd.grad(first, synthetic)[0], wanted)


@pytest.mark.gpu
def test_a_gpus_losses_are_the_cpus():
    real, synthetic = torch.randn(21, 5), torch.randn(12, 5)
    labels, own = torch.arange(21) % 3, torch.arange(12) % 3
    here = kernel_loss(real, labels, synthetic, own)
    there = kernel_loss(real.cuda(), labels, synthetic.cuda(), own)
    torch.testing.assert_close(there.cpu(), here, atol=1e-4, rtol=1e-4)
    means = class_means(real.cuda(), labels, 3).cpu()
    torch.testing.assert_close(means, class_means(real, labels, 3), atol=1e-4, rtol=1e-4)


@pytest.mark.gpu
@KINDS
def test_recorded_matching_gives_the_bits_of_plain_matching(kind, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    found = []
    for recording in (True, False):
        matching = Matching(network_of(0).cuda(), kind)
        matching.recorded.recording = recording
        for step in range(6):
            matching.use(network_of(step).cuda())
            real, synthetic = (images_of(count).cuda() + step for count in (7, 4))
            loss = matching(real, synthetic.requires_grad_(), classes=3, micro_batch=100)
            found.append((loss.detach(), torch.autograd.grad(loss, synthetic)[0]))
        assert bool(matching.recorded.graphs) == recording
    for recorded, plain in zip(found[:6], found[6:], strict=True):
        assert all(map(torch.equal, recorded, plain))
