"""The parts of make gpu-check: one that fails, hangs or lacks something keeps no other back."""

import json
import sys
import time

import pytest

from gsdd_lib.benchmarks import gpu_check
from gsdd_lib.benchmarks.gpu_parts import LEFT_OUT, NotRun

CODES = {  # what a part's process does instead
    "kernels": "print('built')",
    "tests": "print('1 failed, 9 passed'); raise SystemExit(1)",
    "sanitizer": None,
    "operator": "import os; os.kill(os.getpid(), 11)",
    "tables": "import time; print('working', flush=True); time.sleep(60)",
    "distillation": f"print('not run: no data'); raise SystemExit({LEFT_OUT})",
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)

    def command(name, options):
        if CODES[name] is None:
            raise NotRun("nothing to watch")
        return [sys.executable, "-c", CODES[name]]

    monkeypatch.setattr(gpu_check, "command", command)
    monkeypatch.setitem(gpu_check.LIMITS, "tables", 3)
    return tmp_path


def test_every_part_runs_whatever_became_of_the_others(project, capsys):
    began = time.perf_counter()
    assert gpu_check.main(["--device", "cpu"]) == 1
    assert time.perf_counter() - began < 30  # the part that hangs was stopped
    written = json.loads((project / "figures/gpu/gpu_check.json").read_text())
    found = {row["part"]: (row["status"], row["last line"]) for row in written["parts"]}
    assert found == {
        "kernels": ("ok", "built"),
        "tests": ("failed", "1 failed, 9 passed"),
        "sanitizer": ("not run", "not run: nothing to watch"),
        "operator": ("failed", "exit code -11"),
        "tables": ("failed", "stopped after 3 s"),
        "distillation": ("not run", "not run: no data"),
    }
    assert {"device", "torch", "commit"} <= written["machine"].keys()
    assert (project / "runs/gpu-check/tables.txt").read_text() == "working\n"
    assert "| distillation | not run |" in capsys.readouterr().out


def test_what_is_not_run_is_no_failure(project):
    assert gpu_check.main(["--device", "cpu", "--only", "kernels", "sanitizer"]) == 0


def test_all_parts_end_within_ten_minutes():
    assert sum(gpu_check.LIMITS.values()) <= 600


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_memory_checker_is_left_out_where_it_cannot_watch(device, monkeypatch):
    options = gpu_check.argparse.Namespace(device=device)
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: name if device == "cpu" else None)
    with pytest.raises(NotRun, match="compute-sanitizer is not on the PATH"):
        gpu_check.command("sanitizer", options)
