"""Fitting: from a data set to Gaussians, the loop, its settings, its determinism."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gsdd_lib.config import BudgetConfig, DataConfig, FitConfig
from gsdd_lib.data import ImageData, load_data
from gsdd_lib.data.normalization import ChannelNormalization
from gsdd_lib.parameterizations import fit
from gsdd_lib.parameterizations.budget import Budget, plan_budget
from gsdd_lib.parameterizations.fit import (
    column_rates,
    fit_rows,
    initial_gaussians,
    learning_rate,
    psnr,
    relocation_steps,
)
from gsdd_lib.parameterizations.gaussian import GaussianImages
from gsdd_lib.parameterizations.initialization import MAX_POSITION


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig(dataset="digits"))


@pytest.fixture(scope="module")
def budget(data: ImageData) -> Budget:
    return plan_budget(BudgetConfig(ipc=4, gpc=3), data)


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
    made = initial_gaussians(data, budget, FitConfig(fit_steps=300), seed=0)
    steps, values = zip(*((row["step"], row["psnr_db"]) for row in made.curve), strict=True)
    assert steps[0] == 0 and steps[-1] == 300 and 20 <= len(steps) <= 30
    assert values[-1] > values[0] + 10 and values[-1] > 20
    rendered = made.gaussians.pixels()
    assert psnr(rendered, made.targets).mean().item() == pytest.approx(values[-1])


def test_warm_up_spreads_the_gaussians_over_a_solid_color(data: ImageData, budget: Budget) -> None:
    made = initial_gaussians(data, budget, FitConfig(init="warmup", fit_steps=200), seed=0)
    assert torch.allclose(made.targets, torch.tensor(data.mean).view(1, -1, 1, 1))
    assert made.curve[-1]["psnr_db"] > 25


def test_random_initialization_fits_nothing(data: ImageData, budget: Budget) -> None:
    made = initial_gaussians(data, budget, FitConfig(init="random"), seed=0)
    assert made.curve == [] and torch.isfinite(made.gaussians.packed).all()


def test_psnr_by_hand() -> None:
    images = torch.full((1, 1, 2, 2), 0.1)
    assert psnr(images, torch.zeros(1, 1, 2, 2)).item() == pytest.approx(20.0, abs=1e-4)


# The published fit

PUBLISHED = FitConfig(
    init="first",
    fit_start="published",
    fit_rates="uniform",
    fit_schedule="halving",
    fit_relocate=0.0,
    fit_lr=0.1,
    fit_steps=200,
)


def test_the_published_fit_by_plain_adam(data: ImageData, budget: Budget) -> None:
    """The published loop, written down: one rate, Adam's own betas, mean squared error."""
    start = initial_gaussians(
        data, budget, PUBLISHED.model_copy(update={"fit_steps": 0}), seed=0
    ).gaussians
    assert start.means.min() < -0.9 and start.means.max() > 0.9
    diagonal, corner = start.cholesky[..., [0, 2]], start.cholesky[..., 1]
    assert 0.5 <= diagonal.min() < 0.51 and 1.49 < diagonal.max() < 1.5
    assert 0 <= corner.min() < 0.01 and 0.99 < corner.max() < 1
    assert (start.opacities == 1).all() and 0 <= start.colors.min() <= start.colors.max() < 1
    few = PUBLISHED.model_copy(update={"fit_steps": 5})
    made = initial_gaussians(data, budget, few, seed=0)
    adam = torch.optim.Adam(start.parameters(), lr=0.1, eps=1e-12)
    for _ in range(5):
        adam.zero_grad()
        (start.pixels() - made.targets).square().mean().backward()
        adam.step()
        start.constrain_()
    assert torch.allclose(start.packed, made.gaussians.packed, atol=1e-4)


def test_the_published_fit_fits(data: ImageData, budget: Budget) -> None:
    made = initial_gaussians(data, budget, PUBLISHED, seed=0)
    first = torch.cat([data.train.images[data.train.labels == c][:3] for c in range(10)])
    assert torch.allclose(made.targets, first / 255, atol=1e-6)
    assert made.curve[-1]["psnr_db"] > made.curve[0]["psnr_db"] + 10


# The loop

SIDE = 16
IDENTITY = ChannelNormalization((0.0,) * 3, (1.0,) * 3)


@pytest.fixture
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def goal(images: int = 3) -> Tensor:
    x = torch.linspace(0, 1, SIDE)
    waves = torch.stack([torch.sin((3 + k) * x) for k in range(images)])
    disc = ((x[:, None] - 0.6) ** 2 + (x - 0.4) ** 2 < 0.06).float()
    return (0.5 + 0.3 * waves[:, None, None] * disc).expand(-1, 3, -1, -1).contiguous()


def placed(points: int = 14) -> GaussianImages:
    more = {"points": points, "normalization": IDENTITY, "seed": 0}
    return GaussianImages.init_from(goal(), torch.arange(3), **more)


def fitted(**settings) -> tuple[GaussianImages, list[dict]]:
    gaussians = placed()
    return gaussians, list(fit_rows(gaussians, goal(), FitConfig(**settings)))


def test_the_learning_rate_stays_and_then_falls_by_half_a_cosine():
    config = FitConfig(fit_steps=100, fit_lr=0.5)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[:51] == [0.5] * 51 and rates == sorted(rates, reverse=True)
    assert rates[75] == pytest.approx(0.5 * 0.51) and rates[-1] < 0.5 * 0.022
    constant = config.model_copy(update={"fit_schedule": "constant"})
    assert learning_rate(constant, 99) == 0.5
    halving = FitConfig(fit_steps=50_000, fit_lr=0.1, fit_schedule="halving")
    rates = [learning_rate(halving, step) for step in (0, 19_999, 20_000, 40_000, 49_999)]
    assert rates == [0.1, 0.1, 0.05, 0.025, 0.025]


def test_gaussians_move_in_the_first_two_fifths_and_only_in_long_fits():
    moves = relocation_steps(FitConfig(fit_steps=1000))
    assert moves == {50, 100, 150, 200, 250, 300, 350, 400}
    assert relocation_steps(FitConfig(fit_steps=10)) == set()
    assert relocation_steps(FitConfig(fit_steps=1000, fit_relocate=0.0)) == set()


def test_steps_are_in_proportion_to_the_spacing():
    packed = torch.zeros(1, 100, 9)
    gaussians = GaussianImages(packed, torch.zeros(1), resolution=(40, 80), normalization=IDENTITY)
    rates, apart = column_rates(gaussians, FitConfig()), math.sqrt(32)  # pixels
    assert rates[2:5].tolist() == pytest.approx([fit.CHOLESKY_RATE * apart] * 3)
    in_pixels = rates[:2] * torch.tensor([40.0, 20.0])  # [-1, 1] is 80 x 40 pixels
    assert in_pixels.tolist() == pytest.approx([fit.POSITION_RATE * apart] * 2)
    assert (rates[5:] == 1).all()
    assert (column_rates(gaussians, FitConfig(fit_rates="uniform")) == 1).all()


def test_the_first_step_of_every_number_is_its_rate():
    start = placed().packed.detach()
    gaussians, _ = fitted(fit_steps=1, fit_lr=0.01)
    step = (gaussians.packed - start).abs() / column_rates(gaussians, FitConfig())
    inside = (start[..., :2].abs() < 0.9).all(-1)
    assert torch.allclose(step[inside], torch.tensor(0.01), rtol=1e-2)


@pytest.mark.usefixtures("_one_thread")
def test_a_fit_fits_and_reports_as_it_goes():
    gaussians, rows = fitted(fit_steps=300)
    assert rows[0]["step"] == 0 and rows[-1]["step"] == 300 and 20 <= len(rows) <= 30
    assert rows[-1]["psnr_db"] > max(28, rows[0]["psnr_db"] + 15)
    with torch.no_grad():
        expected = psnr(gaussians.pixels(), goal()).mean().item()
    assert rows[-1]["psnr_db"] == pytest.approx(expected, abs=1e-4)
    assert gaussians.means.abs().max() <= MAX_POSITION


@pytest.mark.usefixtures("_one_thread")
def test_equal_arguments_give_equal_bits():
    one, same = fitted(fit_steps=120)[0], fitted(fit_steps=120)[0]
    assert torch.equal(one.packed, same.packed)


def test_without_steps_nothing_changes():
    gaussians, (row,) = fitted(fit_steps=0)
    assert torch.equal(gaussians.packed, placed().packed) and row["step"] == 0


@pytest.mark.usefixtures("_one_thread")
def test_relocation_helps():
    with_it, without = fitted(fit_steps=300)[1], fitted(fit_steps=300, fit_relocate=0.0)[1]
    assert with_it[-1]["psnr_db"] > without[-1]["psnr_db"]


class HostReads(TorchDispatchMode):
    """Counts the reads of a number by the host: each would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_the_host_reads_nothing_but_the_curve():
    with HostReads() as reads:
        _, rows = fitted(fit_steps=100, fit_relocate=0.2)
    assert reads.count == len(rows)
