"""A GPU machine with torch, numpy and pytest alone: what needs more is skipped by name."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MISSING = ("pydantic", "ipywidgets", "papermill", "kornia", "matplotlib")
BLOCK = f"""
import sys

class Block:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {MISSING}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Block)
"""


def run(tmp_path: Path, *arguments: str) -> str:
    """What a Python without those packages prints; it must end well."""
    (tmp_path / "sitecustomize.py").write_text(BLOCK)
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_the_gpu_tests_are_collected_and_what_needs_more_is_skipped_by_name(tmp_path):
    files = ["tests/splatting/test_cuda.py", "tests/core/test_device.py"]
    options = ["--collect-only", "-m", "gpu", "-p", "no:cacheprovider"]
    text = run(tmp_path, "-m", "pytest", *options, *files)
    assert "test_cuda.py::test_the_sanitizers_script_runs" in text
    assert text.count("SKIPPED") == 1 and "test_device.py:1: needs pydantic" in text


def test_the_operator_and_its_benchmark_need_no_more_than_torch_and_numpy(tmp_path):
    code = "import gsdd_lib.splatting.splat, gsdd_lib.benchmarks.operator, cuda_ext.sanitize"
    run(tmp_path, "-c", code)
