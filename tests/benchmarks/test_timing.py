"""Time, memory and machine: what is measured, on jobs whose cost is known."""

import os
import subprocess
import sys

import pytest
import torch

from gsdd_lib.benchmarks.timing import (
    cpu_kernels,
    machine,
    markdown,
    median_ms,
    peak_mib,
    peaks_alone,
    run_alone,
    time_job,
)

MIB = 2**18  # float32 numbers


def known_peak() -> float | None:
    """48 MiB of scratch beside the 16 MiB that come back, after a small job that loads the rest."""

    def job(mib: int = 16) -> list[torch.Tensor]:
        scratch = torch.ones(3 * mib * MIB)
        return [torch.full((mib * MIB,), float(scratch[7]))]

    job(1)
    return peak_mib(job)


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_the_peak_is_what_is_neither_there_before_nor_returned():
    assert run_alone(known_peak) == pytest.approx(48, abs=3)


def test_alone_means_in_another_process():
    assert run_alone(os.getpid) != os.getpid()


def test_an_error_in_the_other_process_comes_back():
    with pytest.raises(ZeroDivisionError):
        run_alone(divmod, 1, 0)


def test_the_first_run_does_not_count():
    times, calls = iter([0.0, 0.001, 0.0, 0.003, 0.0, 0.002]), []  # three runs' start and end
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.perf_counter", lambda: next(times))
        assert median_ms(lambda: calls.append(1), 3) == pytest.approx(2)
    assert len(calls) == 4


def test_a_timing_has_its_quartiles():
    with pytest.MonkeyPatch.context() as patch:
        times = iter([0, 0.005, 0, 0.001, 0, 0.002, 0, 0.004, 0, 0.003])  # five starts and ends
        patch.setattr("time.perf_counter", lambda: next(times))
        assert time_job(lambda: [], 5) == pytest.approx((3, 2, 4))


def sized(mib: int, *, few: bool = False):
    """Fills and drops ``mib`` MiB, or one if ``few``."""

    def job() -> list[torch.Tensor]:
        torch.ones((1 if few else mib) * MIB).sum()
        return []

    return job


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_peaks_are_measured_one_by_one_in_one_process():
    assert peaks_alone(sized, [(40,), (10,)]) == pytest.approx([40, 10], abs=3)


def test_a_table_has_a_dash_for_what_was_not_measured():
    text = markdown([{"a": 1, "b": 2.345}, {"a": "x", "b": None}])
    assert text == "| a | b |\n| --- | --- |\n| 1 | 2.35 |\n| x | - |"


@pytest.mark.parametrize(
    ("capability", "asked", "level"),
    [
        ("AVX512", None, "v4"),
        ("AVX512", "v3", "v3"),
        ("AVX2", "v4", "v3"),
        ("AVX2", "portable", "portable"),
        ("AVX512", "no such level", "v4"),
        ("DEFAULT", None, "portable"),
    ],
)
def test_the_kernels_are_the_narrower_of_there_and_asked(capability, asked, level, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.delenv("GSDD_CPU", raising=False)
    if asked:
        monkeypatch.setenv("GSDD_CPU", asked)
    assert cpu_kernels() == level


def test_the_machine_is_described():
    assert machine().keys() == {"device", "threads", "torch", "kernels", "commit"}


def test_neither_profiling_nor_the_benchmark_needs_more_than_torch_and_numpy():
    code = """import sys, gsdd_lib.benchmarks.operator
print([name for name in ("pydantic", "pandas") if name in sys.modules])"""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
