"""The benchmark's table and its numbers' structure; never its times."""

import json

import pytest
import torch

from gsdd_lib.benchmarks import operator as benchmark
from gsdd_lib.benchmarks.operator import (
    PASSES,
    QUICK,
    RENDERERS,
    WORKLOADS,
    Workload,
    fitted_gaussians,
    main,
)
from gsdd_lib.benchmarks.timing import Timing
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


def test_the_table_has_a_line_for_every_workload_and_pass(quick):
    lines = [line for line in quick[0].splitlines() if line.startswith("|")]
    lines = lines[: 2 + len(QUICK) * len(PASSES)]  # the table of fitting comes after
    assert lines[0].startswith("| images | Gaussians | size | pass | operator ms |")
    assert lines[-1].startswith(f"| {QUICK[-1].images} | {QUICK[-1].points} |")
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| 6 | 5 | 12x10x1 | forward | ")


def test_the_machine_is_named_above_the_table(quick):
    about = quick[1]["machine"]
    first = quick[0].splitlines()[0]
    assert all(str(value) in first for value in about.values())
    assert about["torch"] == torch.__version__ and about["threads"] == torch.get_num_threads()


def test_the_numbers_behind_the_table(quick):
    rows = quick[1]["rows"]
    assert [row["pass"] for row in rows] == list(PASSES) * len(QUICK)
    for row in rows:
        assert row["operator_ms"] > 0 and row["oracle_ms"] > 0
        assert row["ratio"] == pytest.approx(row["oracle_ms"] / row["operator_ms"])
        assert 0 < row["of_roofline"] == pytest.approx(row["roofline_ms"] / row["operator_ms"])
        assert row["operator_images"] == row["images"] and row["operator_mib"] >= 0
        assert row["operator_low"] <= row["operator_ms"] <= row["operator_high"]


def test_a_fit_and_a_call_are_timed_as_well(quick):
    fitting, calls = quick[1]["fitting"], quick[1]["call_us"]
    assert (fitting["images"], fitting["points"], fitting["steps"]) == (3, 5, 40)
    assert (
        "| 3 | 5 | 12x12x3 | 40 |" in quick[0] and "instead of adding: not run, no CUDA" in quick[0]
    )
    assert 0 < calls["kernel's op"] and calls["splat and its gradient"] > calls["splat"] > 0
    assert "microseconds: kernel's op " in quick[0]


ROW = {"images": 1, "points": 2, "height": 3, "width": 4, "channels": 1, "pass": "forward"}
ROW |= {f"{name}_{end}": 2.5 for name in ("operator", "oracle") for end in ("ms", "low", "high")}
ROW |= {"operator_mib": None, "oracle_mib": 2.0, "oracle_images": 1, "ratio": 3.0}


def test_gsplat_stands_beside_on_a_gpu_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(benchmark.gsplat_raster, "available", lambda: "")
    assert benchmark._renderers("cuda") == list(RENDERERS)
    assert benchmark._renderers("cpu") == ["operator", "oracle"]
    assert benchmark.shown(ROW)["gsplat ms"] is None
    times = {"gsplat_ms": 2.5, "gsplat_low": 2.0, "gsplat_high": 3.0, "gsplat_mib": 7.0}
    assert benchmark.shown(ROW | times)["gsplat ms"] == "2.50 (2.00 to 3.00)"


def test_the_oracle_renders_as_many_images_as_it_can_in_seconds():
    assert [work.rendered_by("operator") for work in WORKLOADS] == [300, 8000, 2000]
    assert [work.rendered_by("oracle") for work in WORKLOADS] == [300, 37, 1]
    assert Workload(5, 10_000, 512, 512, 3).rendered_by("oracle") == 1


def test_a_subset_is_scaled_to_the_batch(monkeypatch):
    monkeypatch.setattr(benchmark, "ORACLE_ELEMENTS", 4 * 3 * 8 * 8 * 5)  # five images
    monkeypatch.setattr(benchmark, "time_job", lambda *_: Timing(2.0, 1.0, 4.0))
    monkeypatch.setattr(benchmark, "peaks_alone", lambda *_: [1.0, 2.0, 3.0, 4.0])
    rows = benchmark.measure(Workload(20, 3, 8, 8, 1), repeats=1)
    assert [(row["operator_ms"], row["operator_mib"]) for row in rows] == [(2, 1), (2, 2)]
    assert [(row["oracle_ms"], row["oracle_low"], row["oracle_high"]) for row in rows] == [
        (8, 4, 16)
    ] * 2
    assert [(row["oracle_images"], row["oracle_mib"]) for row in rows] == [(5, 3), (5, 4)]


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
