"""The fitting loop: its plan, its determinism, what it must never do."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gsdd_lib.parameterizations import fit_loop
from gsdd_lib.parameterizations.fit_loop import Plan, column_rates, fit_packed
from gsdd_lib.parameterizations.initialization import MAX_POSITION, place
from gsdd_lib.splatting.splat import splat

SIDE = 16


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def render(rows: Tensor) -> Tensor:
    return splat(rows, SIDE, SIDE)


def targets(images: int = 3) -> Tensor:
    x = torch.linspace(0, 1, SIDE)
    waves = torch.stack([torch.sin((3 + k) * x) for k in range(images)])
    disc = ((x[:, None] - 0.6) ** 2 + (x - 0.4) ** 2 < 0.06).float()
    return (0.5 + 0.3 * waves[:, None, None] * disc).expand(-1, 3, -1, -1).contiguous()


def fitted(plan: Plan, images: int = 3) -> tuple[Tensor, list[dict]]:
    goal = targets(images)
    packed = place(goal, 14, seed=0)
    return packed, list(fit_packed(packed, goal, render, plan))


def test_the_learning_rate_stays_and_then_falls_by_half_a_cosine():
    plan = Plan(100, lr=0.5)
    rates = [plan.rate(step) for step in range(100)]
    assert rates[:51] == [0.5] * 51 and rates == sorted(rates, reverse=True)
    assert rates[75] == pytest.approx(0.5 * 0.51) and rates[-1] < 0.5 * 0.022
    assert Plan(100, lr=0.5, schedule="constant").rate(99) == 0.5


def test_gaussians_move_in_the_first_two_fifths_and_only_in_long_fits():
    assert Plan(1000).moves() == {50, 100, 150, 200, 250, 300, 350, 400}
    assert Plan(10).moves() == set() == Plan(1000, relocate=0).moves()


def test_steps_are_in_proportion_to_the_spacing():
    rates = column_rates(100, 40, 80, 9)  # a spacing of sqrt(32) pixels
    apart = math.sqrt(32)
    assert rates[2:5].tolist() == pytest.approx([fit_loop.CHOLESKY_RATE * apart] * 3)
    in_pixels = rates[:2] * torch.tensor([40.0, 20.0])  # [-1, 1] is 80 x 40 pixels
    assert in_pixels.tolist() == pytest.approx([fit_loop.POSITION_RATE * apart] * 2)
    assert (rates[5:] == 1).all()


def test_the_first_step_of_every_number_is_its_rate():
    goal = targets()
    start = place(goal, 14, seed=0)
    packed = start.clone()
    list(fit_packed(packed, goal, render, Plan(1, lr=0.01)))
    step = (packed - start).abs() / column_rates(14, SIDE, SIDE, 9)
    inside = (start[..., :2].abs() < 0.9).all(-1)
    assert torch.allclose(step[inside], torch.tensor(0.01), rtol=1e-2)


def test_a_fit_fits_and_reports_as_it_goes():
    packed, rows = fitted(Plan(300))
    assert rows[0]["step"] == 0 and rows[-1]["step"] == 300 and 20 <= len(rows) <= 30
    assert rows[-1]["psnr_db"] > max(28, rows[0]["psnr_db"] + 15)
    mse = (render(packed) - targets()).square().flatten(1).mean(1)
    assert rows[-1]["psnr_db"] == pytest.approx(-10 * mse.log10().mean().item(), abs=1e-4)
    assert packed[..., :2].abs().max() <= MAX_POSITION


def test_equal_arguments_give_equal_bits():
    one, same = fitted(Plan(120))[0], fitted(Plan(120))[0]
    assert torch.equal(one, same)


def test_without_steps_nothing_changes():
    goal = targets()
    start = place(goal, 14, seed=0)
    packed = start.clone()
    (row,) = fit_packed(packed, goal, render, Plan(0))
    assert torch.equal(packed, start) and row["step"] == 0


def test_relocation_helps():
    assert fitted(Plan(300))[1][-1]["psnr_db"] > fitted(Plan(300, relocate=0))[1][-1]["psnr_db"]


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
        _, rows = fitted(Plan(100, relocate=0.2))
    assert reads.count == len(rows)
