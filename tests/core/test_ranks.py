"""Two processes under torchrun give what one gives, and one that is killed ends the run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed
from core import ranks_program as program

from gsdd_lib.core import ranks

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this torch has no gloo",
)
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def two_ranks(case: str, folder: Path) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([os.getcwd(), str(Path(__file__).parents[1])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [*LAUNCH, program.__file__, case, str(folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> dict:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield program.everything(tmp_path_factory.mktemp("one"))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict]:
    """What each of two ranks has in the end."""
    folder = tmp_path_factory.mktemp("two")
    done = two_ranks("everything", folder)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"everything.{rank}.pt", weights_only=True) for rank in range(2)]


def same_bits(first: dict, second: dict) -> bool:
    pairs = list(zip(first["snapshots"], second["snapshots"], strict=True))
    assert len(pairs) == 3
    return repr(first["rows"]) == repr(second["rows"]) and all(
        torch.equal(a[name], b[name]) for a, b in pairs for name in a
    )


@pytest.mark.parametrize("case", ["dm", "kernel", "dc"])
def test_a_distillation_has_the_same_bits(case: str, one, two):
    first, *_, last = one[case]["snapshots"]
    assert all((first[name] - last[name]).abs().max() > 0.01 for name in first)
    assert same_bits(one[case], two[0][case]) and same_bits(one[case], two[1][case])


def test_trajectory_matching_is_the_same_to_rounding(one, two):
    assert same_bits(two[0]["tm"], two[1]["tm"])
    for a, b in zip(one["tm"]["snapshots"], two[0]["tm"]["snapshots"], strict=True):
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


def test_a_students_path_in_double_is_the_same_to_rounding(one, two):
    """Loss and gradients in images, rate and labels, recomputed or kept; a batch of one too."""
    for rank in two:
        for path, other in zip(one["paths"], rank["paths"], strict=True):
            for a, b in zip(path, other, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


def test_evaluations_and_experts_give_the_same_rows(one, two):
    assert len({row["accuracy"] for row in one["real"]}) > 1
    for name in ("real", "experts"):
        assert one[name] == two[0][name] == two[1][name]


def test_an_error_of_one_rank_is_raised_on_all(two):
    assert [rank["error"] for rank in two] == ["the second is refused"] * 2


def test_a_killed_rank_ends_the_run_in_a_sentence_and_one_rank_goes_on(one, tmp_path, capsys):
    done = two_ranks("die", tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("another process of this run has died or no longer answers") == 1
    assert "SIGKILL" in done.stderr and not list(tmp_path.glob("die.*"))
    resumed = program.distilled("dm", tmp_path, folder=tmp_path / "run")
    assert "resuming at step 2 of 4" in capsys.readouterr().out
    assert same_bits(one["dm"], resumed)


def test_without_torchrun_everything_is_the_identity():
    tensor = torch.tensor([1.0, -0.0], requires_grad=True)
    assert (ranks.rank(), ranks.world(), ranks.share([1, 2])) == (0, 1, [1, 2])
    assert ranks.spread(lambda item: item + 1, [1, 2]) == [2, 3]
    assert ranks.sum_up(tensor) is tensor and ranks.fan_out(tensor) == (tensor,)
    ranks.combine(tensor), ranks.agree(tensor), ranks.meet()
    assert not torch.distributed.is_initialized()
