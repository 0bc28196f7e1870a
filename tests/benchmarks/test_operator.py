"""The benchmark's table and its numbers' structure; never its times."""

import itertools
import json
import sys

import pytest
import torch

from gsdd_lib.benchmarks import operator as benchmark
from gsdd_lib.benchmarks.operator import (
    QUICK,
    WORKLOADS,
    Fitting,
    Workload,
    call_costs,
    fitted_gaussians,
    main,
    measure_fitting,
    photographs,
)
from gsdd_lib.benchmarks.timing import PASSES
from gsdd_lib.splatting.splat import splat


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """On tensors this small, threads mostly wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> tuple[str, dict]:
    """What a quick run prints, and what it writes."""
    file = tmp_path_factory.mktemp("benchmark") / "new folder" / "numbers.json"
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *text, **_: printed.append(*text))
        main(["--quick", "--repeats", "1", "--json", str(file)])
    return "\n".join(printed), json.loads(file.read_text())


def test_the_table_has_a_line_for_every_workload_pass_and_renderer(quick):
    lines = [line for line in quick[0].splitlines() if line.startswith("|")]
    lines = lines[: 2 + len(QUICK) * len(PASSES) * 2]  # other tables come after
    assert lines[0].startswith("| images | points | height | width | channels | pass | renderer |")
    assert lines[2].startswith("| 6 | 5 | 12 | 10 | 1 | forward | operator | 6 | ")
    assert lines[-1].startswith("| 4 | 7 | 9 | 14 | 3 | forward + backward | oracle | 4 | ")
    assert len({line.count("|") for line in lines}) == 1
    assert "gsplat was not run: no CUDA device" in quick[0]


def test_the_machine_is_named_above_the_table(quick):
    about = quick[1]["machine"]
    first = quick[0].splitlines()[0]
    assert all(str(value) in first for value in about.values())
    assert about["torch"] == torch.__version__ and about["threads"] == torch.get_num_threads()


def test_the_numbers_behind_the_table(quick):
    rows = quick[1]["rows"]
    ways = [(row["pass"], row["renderer"]) for row in rows]
    assert ways == list(itertools.product(PASSES, ["operator", "oracle"])) * len(QUICK)
    for ours, oracle in zip(rows[::2], rows[1::2], strict=True):
        assert 0 < ours["ms_low"] <= ours["ms"] <= ours["ms_high"] and ours["mib"] >= 0
        assert ours["ratio"] == pytest.approx(oracle["ms"] / ours["ms"]) and oracle["ratio"] == 1
        assert 0 < ours["roofline_ms"] and oracle["roofline_ms"] is None
        assert ours["rendered"] == ours["images"]


def test_a_fit_and_a_call_are_timed_as_well(quick):
    fitting, calls = quick[1]["fitting"], quick[1]["call_us"]
    assert (fitting["images"], fitting["points"], fitting["steps"]) == (3, 5, 40)
    assert "| 3 | 5 | 12 | 40 |" in quick[0] and "| kernel's op | splat |" in quick[0]
    assert 0 < calls["kernel's op"] and calls["splat and its gradient"] > calls["splat"] > 0


def test_gsplat_says_why_it_cannot_run(monkeypatch):
    assert benchmark.without_gsplat("cpu") == "no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda _: None)
    assert benchmark.without_gsplat("cuda") == "gsplat is not installed"
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda _: True)
    assert benchmark.without_gsplat("cuda") == ""


@pytest.mark.gpu
def test_gsplat_draws_a_single_gaussian_as_ours():
    pytest.importorskip("gsplat")
    params = torch.rand(2, 1, 9, generator=torch.Generator().manual_seed(0)).cuda()
    params[..., 2:5] *= 3
    params[..., -1] = 0.8
    theirs = benchmark.gsplat_rasterize(params, 12, 20)
    assert (theirs - splat(params, 12, 20)).abs().max() < 0.01  # supports differ at 1/255


def test_the_oracle_renders_as_many_images_as_it_can_in_seconds():
    assert [work.rendered_by("operator") for work in WORKLOADS] == [300, 8000, 2000]
    assert [work.rendered_by("oracle") for work in WORKLOADS] == [300, 37, 1]
    assert Workload(5, 10_000, 512, 512, 3).rendered_by("oracle") == 1


def test_a_subset_is_scaled_to_the_batch(monkeypatch):
    def measured(*_) -> list[dict]:
        return [{"ms": 2.0, "ms_low": 1.0, "ms_high": 4.0, "mib": float(k)} for k in range(4)]

    monkeypatch.setattr(benchmark, "ORACLE_ELEMENTS", 4 * 3 * 8 * 8 * 5)  # five images
    monkeypatch.setattr(benchmark, "measure_jobs", measured)
    rows = benchmark.measure(Workload(20, 3, 8, 8, 1), repeats=1)
    times = [(row["rendered"], row["ms_low"], row["ms"], row["ms_high"]) for row in rows]
    assert times == [(20, 1, 2, 4), (5, 4, 8, 16)] * 2
    assert [row["mib"] for row in rows] == [0, 1, 2, 3]  # of what was rendered
    assert [row["ratio"] for row in rows] == [4, 1] * 2


def test_the_gaussians_are_fitted_and_the_same_every_time():
    work = Workload(10, 30, 20, 24, 3)
    start, fitted = fitted_gaussians(work, steps=0), fitted_gaussians(work)
    assert fitted.shape == (8, 30, 9) and torch.equal(fitted, fitted_gaussians(work))
    target = benchmark._discs(work, benchmark.generator(0, "benchmark", 10, 30, 20, 24, 3))
    error = [(splat(params, 20, 24) - target).square().mean() for params in (start, fitted)]
    assert error[1] < 0.2 * error[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--device", "cuda"], "torch sees no CUDA device; leave out --device"),
    ],
)
def test_bad_arguments(arguments, sentence, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        main(arguments)
    assert sentence in capsys.readouterr().err


def test_without_the_compiled_operator_there_is_nothing_to_measure(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "backend_ready", lambda: False)
    with pytest.raises(SystemExit):
        main(["--quick"])
    assert "no compiled operator to measure" in capsys.readouterr().err


@pytest.fixture(scope="module")
def row() -> dict:
    return measure_fitting(Fitting(4, 6, 16, 60), repeats=1)


def test_a_fit_is_measured(row):
    assert (row["images"], row["points"], row["size"], row["steps"]) == (4, 6, 16, 60)
    assert row["seconds"] > 0 and row["seconds_1000_images"] == pytest.approx(250 * row["seconds"])
    assert row["step_ms"] == pytest.approx(1e3 * row["seconds"] / 60) and row["operator_ms"] > 0
    assert 10 < row["psnr_db"] < 60


def test_memory_is_measured_in_a_process_of_its_own(row):
    if sys.platform != "linux":
        pytest.skip("only Linux tells the peak")
    assert 0 <= row["mib"] < 100


def test_the_photographs_are_real_distinct_and_the_same_every_time():
    images = photographs(6, 32)
    assert images.shape == (6, 3, 32, 32)
    assert 0 <= images.min() and images.max() <= 1 and len(images.unique(dim=0)) == 6
    assert torch.equal(images, photographs(6, 32))


def test_a_calls_cost_is_told_by_how_it_is_made():
    costs = call_costs(calls=3, repeats=1)
    assert len(costs) == 4 and all(cost > 0 for cost in costs.values())
