"""Initialization: what is chosen, where Gaussians start, and that fitting fits."""

import pytest
import torch

from gsdd_lib.config import BudgetConfig, DataConfig, FitConfig
from gsdd_lib.data import ImageData, load_data
from gsdd_lib.parameterizations.budget import Budget, plan_budget
from gsdd_lib.parameterizations.fit import initial_gaussians, psnr


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig(dataset="digits"))


@pytest.fixture(scope="module")
def budget(data: ImageData) -> Budget:
    return plan_budget(BudgetConfig(ipc=4, gpc=3), data)


def is_real(data: ImageData, targets: torch.Tensor, label: int) -> bool:
    members = data.train.images[data.train.labels == label] / 255
    return all(any(torch.allclose(image, member) for member in members) for image in targets)


@pytest.mark.parametrize("init", ["real", "kmeans"])
def test_targets_are_distinct_training_images_of_the_right_class(
    data: ImageData, budget: Budget, init: str
) -> None:
    fit = initial_gaussians(data, budget, FitConfig(init=init, fit_steps=1), seed=0)
    assert fit.gaussians.labels.tolist() == [c for c in range(10) for _ in range(3)]
    for label in range(10):
        targets = fit.targets[3 * label : 3 * label + 3]
        assert is_real(data, targets, label)
        assert len(targets.flatten(1).unique(dim=0)) == 3


def test_random_images_depend_on_the_seed_alone(data: ImageData, budget: Budget) -> None:
    config = FitConfig(fit_steps=20)
    one, same, other = (initial_gaussians(data, budget, config, seed=s) for s in (1, 1, 2))
    assert torch.equal(one.gaussians.packed, same.gaussians.packed)
    assert not torch.equal(one.targets, other.targets)


def test_the_global_generator_is_left_alone(data: ImageData, budget: Budget) -> None:
    before = torch.random.get_rng_state()
    initial_gaussians(data, budget, FitConfig(init="kmeans", fit_steps=3), seed=0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_fitting_raises_psnr_and_reports_the_curve(data: ImageData, budget: Budget) -> None:
    fit = initial_gaussians(data, budget, FitConfig(fit_steps=300), seed=0)
    steps, values = zip(*((row["step"], row["psnr_db"]) for row in fit.curve), strict=True)
    assert steps[0] == 0 and steps[-1] == 300 and 20 <= len(steps) <= 30
    assert values[-1] > values[0] + 10 and values[-1] > 20
    rendered = fit.gaussians.pixels()
    assert psnr(rendered, fit.targets).mean().item() == pytest.approx(values[-1])


def test_warm_up_spreads_the_gaussians_over_a_solid_color(data: ImageData, budget: Budget) -> None:
    fit = initial_gaussians(data, budget, FitConfig(init="warmup", fit_steps=200), seed=0)
    assert torch.allclose(fit.targets, torch.tensor(data.mean).view(1, -1, 1, 1))
    assert fit.curve[-1]["psnr_db"] > 25


def test_random_initialization_fits_nothing(data: ImageData, budget: Budget) -> None:
    fit = initial_gaussians(data, budget, FitConfig(init="random"), seed=0)
    assert fit.curve == [] and torch.isfinite(fit.gaussians.packed).all()


def test_psnr_by_hand() -> None:
    images = torch.full((1, 1, 2, 2), 0.1)
    assert psnr(images, torch.zeros(1, 1, 2, 2)).item() == pytest.approx(20.0, abs=1e-4)
