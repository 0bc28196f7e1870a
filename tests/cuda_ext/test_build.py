"""Building and caching the extension. Every build goes into a folder of its own, one is cold."""

import functools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import cuda_ext

ROOT = Path(cuda_ext.__file__).parent.parent
RENDER = """
    import torch
    from gsdd_lib.splatting.splat import backend_ready, splat
    params = torch.tensor([[[0.0, 0.0, 2.0, 0.0, 2.0, 1.0, 0.5]]])
    images = [splat(params, 3, 3) for _ in range(3)]
    print(backend_ready(), round(float(images[-1][0, 0, 1, 1]), 3))
"""


def python(code: str, cache: Path, **environment: str) -> subprocess.Popen:
    """A fresh interpreter running ``code`` with its own cache, in a process group of its own."""
    settings = os.environ | {"TORCH_EXTENSIONS_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=settings | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(code: str, cache: Path, **environment: str) -> tuple[str, str]:
    """What ``code`` printed on its standard output and on its standard error."""
    process = python(code, cache, **environment)
    output, complaints = process.communicate(timeout=240)
    assert process.returncode == 0, complaints
    return output, complaints


def path_without(program: str, folder: Path) -> str:
    """A PATH with every program of this one except ``program``, as links in ``folder``."""
    folder.mkdir()
    for place in reversed(os.environ["PATH"].split(os.pathsep)):
        for entry in Path(place).iterdir() if Path(place).is_dir() else ():
            (folder / entry.name).unlink(missing_ok=True)
            (folder / entry.name).symlink_to(entry)
    (folder / program).unlink(missing_ok=True)
    return str(folder)


def killed_build(cache: Path) -> None:
    """Start a build and kill it, compiler and all, while it compiles."""
    process = python("import cuda_ext; cuda_ext.load()", cache)
    deadline = time.monotonic() + 60
    while not list(cache.glob("gsdd/*/build.ninja")):
        assert process.poll() is None and time.monotonic() < deadline, "the build did not start"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# One cold build in the whole suite: after one that was killed, and with pip's ninja alone.


@pytest.fixture(scope="module")
def cold(tmp_path_factory) -> tuple[Path, str, str]:
    cache = tmp_path_factory.mktemp("cache")
    killed_build(cache)
    assert not list(cache.glob("gsdd/*.so"))
    path = path_without("ninja", tmp_path_factory.mktemp("bin") / "path")
    return cache, *run(RENDER, cache, PATH=path)


def test_a_cold_build_works_after_a_killed_one_and_without_a_ninja_on_the_path(cold):
    assert cold[1] == "True 0.492\n"


def test_a_build_is_quiet(cold):
    assert cold[2] == ""


def test_a_build_leaves_one_library_and_no_folder_of_its_own(cold):
    libraries = list((cold[0] / "gsdd").glob("*.so"))
    folders = [entry for entry in (cold[0] / "gsdd").iterdir() if entry.is_dir()]
    assert len(libraries) == 1 and len(folders) == 1  # the folder is the killed build's


def test_the_second_process_compiles_nothing(cold):
    assert run(RENDER, cold[0], CXX="no-such-compiler", PATH="") == ("True 0.492\n", "")


def test_importing_builds_nothing(tmp_path):
    code = """
        import sys, torch, cuda_ext, gsdd_lib.splatting.splat
        print("torch.utils.cpp_extension" in sys.modules, hasattr(torch.ops.gsdd, "splat"))
    """
    assert run(code, tmp_path) == ("False False\n", "")
    assert not list(tmp_path.iterdir())


def test_without_a_compiler_the_reference_serves_with_one_warning(tmp_path):
    output, complaints = run(RENDER, tmp_path, PATH="/nowhere", CXX="c++")
    assert output == "False 0.492\n" and complaints.count("UserWarning") == 1
    assert "(no C++ compiler 'c++' was found; install g++ (Debian: apt install g++))" in complaints
    assert "the plain torch version serves instead" in complaints


@pytest.fixture
def fresh(tmp_path, monkeypatch) -> Path:
    """As in a process that has not loaded the extension, with a cache that is empty."""
    again = functools.cache(cuda_ext._load_once.__wrapped__)
    monkeypatch.setattr(cuda_ext, "_load_once", again)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", "c++")
    return tmp_path


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("no-such-compiler", "no C.. compiler 'no-such-compiler' was found; install"),
        ("false", "'false', '--version'.* returned non-zero exit status 1"),
    ],
)
def test_a_compiler_that_does_not_work_is_named(fresh, monkeypatch, compiler, reason):
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(cuda_ext.BuildError, match=reason):
        cuda_ext.load()


def test_a_cache_that_cannot_be_written_is_named(fresh):
    (fresh / "cache").touch()
    with pytest.raises(cuda_ext.BuildError, match="cache"):
        cuda_ext.load()


def test_a_failed_build_is_told_in_one_line_remembered_and_raised_again(fresh, monkeypatch):
    shutil.copytree(cuda_ext.FOLDER, fresh / "sources")
    header = fresh / "sources" / "splat_math.h"
    header.write_text(header.read_text().replace("kGeometry = 5", "kGeometry = five"))
    monkeypatch.setattr(cuda_ext, "FOLDER", fresh / "sources")
    complaint = r"^\S*splat_math.h:\d+:\d+: error: .*five.*$"
    with pytest.raises(cuda_ext.BuildError, match=complaint) as first:
        cuda_ext.load()
    monkeypatch.setattr(cuda_ext, "_build", lambda *_: pytest.fail("it was built a second time"))
    with pytest.raises(cuda_ext.BuildError) as second:
        cuda_ext.load()
    assert second.value is first.value


@pytest.mark.parametrize("name", ["splat_math.h", "splat_simd.h", "splat_cpu.cpp", "splat_cuda.cu"])
def test_an_edited_source_gets_a_library_of_its_own(tmp_path, monkeypatch, name):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    before = cuda_ext._library_path(False)
    assert cuda_ext._library_path(False) == before
    shutil.copytree(cuda_ext.FOLDER, tmp_path / "sources")
    monkeypatch.setattr(cuda_ext, "FOLDER", tmp_path / "sources")
    assert cuda_ext._library_path(False) == before
    with open(tmp_path / "sources" / name, "a") as file:
        file.write("// edited\n")
    assert cuda_ext._library_path(False) != before


def test_every_source_is_in_the_librarys_name():
    known = {*cuda_ext.CPU_SOURCES, *cuda_ext.CUDA_SOURCES, *cuda_ext.HEADERS}
    present = {
        path.name for path in cuda_ext.FOLDER.iterdir() if path.suffix in {".h", ".cpp", ".cu"}
    }
    assert present == known
