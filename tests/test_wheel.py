"""The wheel holds what an installation needs: sources of the operator, tables, the command."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("gsdd_lib", "cuda_ext")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """Built from a copy: a build leaves folders of its own beside the sources."""
    copy = tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", copy / "built"]
    command = [sys.executable, "-m", "pip", "wheel", *options, copy]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = (copy / "built").glob("gsdd-*.whl")
    return zipfile.ZipFile(path)


def test_it_holds_every_file_of_the_packages_and_nothing_else(wheel):
    files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    here = {
        path.relative_to(ROOT).as_posix()
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert files == here
    for name in ("cuda_ext/splat_cuda.cu", "cuda_ext/splat_math.h", "cuda_ext/splat_cpu.cpp"):
        assert name in files
    assert "gsdd_lib/experiment/paper_numbers.yaml" in files


def test_it_says_its_command_and_licence(wheel):
    (folder,) = {name.partition("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    entries = wheel.read(f"{folder}/entry_points.txt").decode()
    assert "gsdd = gsdd_lib.cli:main" in entries
    assert f"{folder}/licenses/LICENSE" in wheel.namelist()
