"""Recovery from batch norms: what is measured, what moves, and what stays as it was."""

import copy

import pytest
import torch
from torch import nn

from gsdd_lib.config import DataConfig
from gsdd_lib.core.rng import generator
from gsdd_lib.data import load_data
from gsdd_lib.distillation.sre2l import Recovery, logits_and_gap, recover
from gsdd_lib.distillation.state import DistillError
from gsdd_lib.networks import network_for
from gsdd_lib.parameterizations.gaussian import GaussianImages
from gsdd_lib.parameterizations.pixel import random_real_pixels

DATA = load_data(DataConfig(dataset="digits"))


def teacher(norm="batch"):
    """A network whose batch norms have seen real images."""
    rng = generator(0, "teacher")
    network = network_for(DATA, "ConvNetD2", 4, generator=rng, norm=norm).train()
    for few in DATA.train.images.split(64):
        network(DATA.normalize(few))
    return network.eval()


def gaussians(per_class=1):
    real = random_real_pixels(DATA, per_class, seed=0)
    more = {"points": 6, "seed": 0, "normalization": DATA.normalization}
    return GaussianImages.init_from(real.pixels().detach(), real.labels, **more)


def run(images, network, **config):
    settings = {"steps": 20, "lr": 0.05, "batch": 4, "weight": 0.1, "dsa": ""} | config
    return list(recover(images, network, Recovery(**settings), seed=0))


def test_the_gap_by_hand():
    norms = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.BatchNorm2d(2)).eval()
    images = torch.tensor([[3.0, 0.0], [5.0, 0.0]]).view(2, 2, 1, 1)
    # first: means (4, 0) against 0, variances (1, 0) against 1; it changes nothing but by its eps
    expected = 2 * (4 + 1) + (4 + 1)
    out, gap = logits_and_gap(norms, images, first=2.0)
    torch.testing.assert_close(gap, torch.tensor(float(expected)), rtol=1e-4, atol=0)
    torch.testing.assert_close(out, images, rtol=1e-4, atol=0)
    assert not any(module._forward_hooks for module in norms.modules())


def test_there_is_no_gap_where_the_statistics_are_the_network_s():
    norm, images = nn.BatchNorm2d(3), torch.randn(50, 3, 4, 4)
    norm.running_mean = images.mean((0, 2, 3))
    norm.running_var = images.var((0, 2, 3), correction=0)
    assert logits_and_gap(norm, images)[1] < 1e-5


@pytest.mark.parametrize("make", [gaussians, lambda: random_real_pixels(DATA, 1, seed=0)])
def test_recovery_moves_every_image_and_lowers_both_losses(make):
    images, network = make(), teacher()
    before, weights = images.packed.detach().clone(), copy.deepcopy(network.state_dict())
    rows = run(images, network)
    assert [row["batch"] for row in rows] == [0] * 20 + [1] * 20 + [2] * 20
    for batch in range(3):
        first, *_, last = (row for row in rows if row["batch"] == batch)
        assert last["cross_entropy"] < first["cross_entropy"] and last["gap"] < first["gap"]
    assert all((new != old).any() for new, old in zip(images.packed, before, strict=True))
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in weights.items())
    assert all(value.grad is None for value in network.parameters())


def test_the_same_seed_gives_the_same_images():
    one, other, network = gaussians(), gaussians(), teacher()
    run(one, network, dsa="crop_flip")
    run(other, network, dsa="crop_flip")
    assert torch.equal(one.packed, other.packed)


def test_positions_stay_inside():
    images = gaussians()
    run(images, teacher(), lr=2.0)
    assert images.means.abs().max() < 1


def test_a_teacher_without_batch_norms_is_refused():
    with pytest.raises(DistillError, match="needs a teacher with batch norms"):
        run(gaussians(), teacher("instance"))


def test_a_non_finite_loss_is_refused():
    network = teacher()
    network.classifier.bias.data.fill_(float("nan"))
    with pytest.raises(DistillError, match="non-finite at step 1"):
        run(gaussians(), network)
