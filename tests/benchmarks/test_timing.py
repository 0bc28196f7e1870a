"""Time, memory and machine: what is measured, on jobs whose cost is known."""

import os
import subprocess
import sys

import pytest
import torch

from gsdd_lib.benchmarks.timing import cpu_kernels, machine, median_ms, peak_mib, run_alone

MIB = 2**18  # float32 numbers


def known_peak() -> float | None:
    """48 MiB of scratch beside the 16 MiB that come back."""

    def job() -> list[torch.Tensor]:
        scratch = torch.ones(48 * MIB)
        return [torch.full((16 * MIB,), float(scratch[7]))]

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
    assert machine().keys() == {"device", "threads", "torch", "kernels"} and machine()["device"]


def test_neither_profiling_nor_the_benchmark_needs_more_than_torch_and_numpy():
    code = """import sys, gsdd_lib.benchmarks.operator
print([name for name in ("pydantic", "pandas") if name in sys.modules])"""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
