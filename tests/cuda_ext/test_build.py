"""Building and caching the extension. Every build goes into a folder of its own, one is cold."""

import functools
import hashlib
import os
import re
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


# One cold build in the whole suite: after one that was killed, with pip's ninja alone, and with a
# compiler that is named by two words, as "ccache g++" is.


@pytest.fixture(scope="module")
def cold(tmp_path_factory) -> tuple[Path, str, str]:
    cache = tmp_path_factory.mktemp("cache")
    killed_build(cache)
    assert not list(cache.glob("gsdd/*.so"))
    path = path_without("ninja", tmp_path_factory.mktemp("bin") / "path")
    return cache, *run(RENDER, cache, PATH=path, CXX="env c++")


def test_a_cold_build_works_after_a_killed_one_without_ninja_and_with_two_words_for_cxx(cold):
    assert cold[1] == "True 0.492\n"


def test_a_build_is_quiet(cold):
    assert cold[2] == ""


def test_a_build_leaves_one_library_and_no_folder_of_its_own(cold):
    libraries = list((cold[0] / "gsdd").glob("*.so"))
    folders = [entry for entry in (cold[0] / "gsdd").iterdir() if entry.is_dir()]
    assert len(libraries) == 1 and len(folders) == 1  # the folder is the killed build's


def test_the_second_process_compiles_nothing_and_writes_nothing(cold):
    """So that a warm cache may be read-only."""
    watch = """
    import os, sys
    def refuse(event, arguments):
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes and os.environ["TORCH_EXTENSIONS_DIR"] in str(arguments[0]):
            raise PermissionError(arguments[0])
        if event in ("os.mkdir", "os.rename", "os.remove"):
            raise PermissionError(arguments[0])
    sys.addaudithook(refuse)
    """
    code = textwrap.dedent(watch) + textwrap.dedent(RENDER)
    assert run(code, cold[0], CXX="no-such-compiler", PATH="") == ("True 0.492\n", "")


def truncate(library: Path) -> None:
    os.truncate(library, library.stat().st_size // 2)


def flip_a_bit(library: Path) -> None:
    content = bytearray(library.read_bytes())
    content[len(content) // 2] ^= 1
    library.write_bytes(content)


DAMAGES = {
    "truncated": truncate,
    "empty": lambda library: os.truncate(library, 0),
    "a bit flipped": flip_a_bit,
    "no digest": lambda library: library.with_suffix(".sha256").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_library_is_never_loaded(cold, tmp_path, damage):
    shutil.copytree(cold[0], tmp_path / "cache")
    DAMAGES[damage](*(tmp_path / "cache" / "gsdd").glob("*.so"))
    output, complaints = run(RENDER, tmp_path / "cache", CXX="no-such-compiler")
    assert output == "False 0.492\n" and "no C++ compiler 'no-such-compiler'" in complaints


def test_importing_builds_nothing(tmp_path):
    code = """
        import sys, torch, cuda_ext, gsdd_lib.splatting.splat
        print("torch.utils.cpp_extension" in sys.modules, hasattr(torch.ops.gsdd, "splat"))
    """
    assert run(code, tmp_path) == ("False True\n", "")
    assert not list(tmp_path.iterdir())


def test_without_a_compiler_the_reference_serves_with_one_warning(tmp_path):
    output, complaints = run(RENDER, tmp_path, PATH="/nowhere", CXX="c++")
    assert output == "False 0.492\n" and complaints.count("UserWarning") == 1
    assert "(no C++ compiler 'c++' was found; install g++ (Debian: apt install g++))" in complaints
    assert "the plain torch version serves instead" in complaints


@pytest.fixture
def fresh(tmp_path, monkeypatch) -> Path:
    """As in a process that has not loaded the kernels, with a cache that is empty."""
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


@pytest.fixture
def compiler(cold, fresh, monkeypatch) -> list[Path]:
    """Where libraries were compiled, by one that takes no time: it copies the cold build's."""
    asked = []
    (library,) = (cold[0] / "gsdd").glob("*.so")

    def compile(device: str, flags: list[str], name: str, folder: Path) -> Path:
        asked.append(folder)
        return Path(shutil.copy(library, folder / f"{name}.so"))

    monkeypatch.setattr(cuda_ext, "_compile", compile)
    return asked


def test_a_damaged_library_is_built_anew(compiler, fresh):
    folder = fresh / "cache" / "gsdd"
    cuda_ext.load()
    (library,) = folder.glob("*.so")
    good = library.read_bytes()
    library.unlink()  # this process has it open
    library.write_bytes(good[:1000])
    cuda_ext._load_once.cache_clear()
    cuda_ext.load()
    assert len(compiler) == 2 and library.read_bytes() == good
    assert library.with_suffix(".sha256").read_text() == hashlib.sha256(good).hexdigest()


def test_where_the_cache_cannot_be_written_the_kernels_serve_this_process(compiler, fresh):
    (fresh / "cache").touch()  # a file in the place of the folder
    assert cuda_ext.load().splat_render
    assert len(compiler) == 1 and not compiler[0].exists()


def test_a_cuda_build_that_fails_leaves_the_cpus_kernels(compiler, monkeypatch):
    pretend_gpus(monkeypatch, (9, 0))
    fake = cuda_ext._compile

    def compile(device: str, *arguments) -> Path:
        if device == "cuda":
            raise cuda_ext.BuildError("nvcc: internal error")
        return fake(device, *arguments)

    monkeypatch.setattr(cuda_ext, "_compile", compile)
    with pytest.raises(cuda_ext.BuildError, match="nvcc: internal error"):
        cuda_ext.load("cuda")
    assert cuda_ext.load("cpu").splat_render


def pretend_gpus(monkeypatch, *capabilities: tuple[int, int]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(capabilities))
    monkeypatch.setattr("torch.cuda.get_device_capability", capabilities.__getitem__)
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")


def test_a_library_is_compiled_for_the_gpus_that_are_there_and_named_by_them(monkeypatch):
    names = set()
    for capabilities in ([(9, 0)], [(8, 0)], [(9, 0), (8, 0)], [(9, 0), (9, 0)]):
        pretend_gpus(monkeypatch, *capabilities)
        flags = cuda_ext._arch_flags()
        wanted = [f"sm_{major}{minor}" for major, minor in sorted(set(capabilities))]
        assert [flag.rsplit("=")[-1] for flag in flags] == wanted
        names.add(cuda_ext._key("cuda", flags))
    assert len(names) == 3


def test_flags_and_torchs_version_are_in_a_librarys_name(monkeypatch):
    names = {cuda_ext._key("cpu", ["-O3"]), cuda_ext._key("cpu", ["-O2"])}
    monkeypatch.setattr("torch.__version__", "2.10.1")
    assert len(names | {cuda_ext._key("cpu", ["-O3"])}) == 3


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("collect2: error: ld returned 1 exit status", "/usr/bin/ld: cannot find -lcudart"),
        ("ninja: build stopped", "a.cu:7: error: expected a ;"),
    ],
)
def test_the_compilers_own_complaint_is_told(line, told):
    assert cuda_ext._one_line(RuntimeError("failed"), f"[1/2]\n{line}\n{told}\n") == told


def test_a_failed_build_is_told_in_one_line_remembered_and_raised_again(fresh, monkeypatch):
    shutil.copytree(cuda_ext.FOLDER, fresh / "sources")
    header = fresh / "sources" / "splat_math.h"
    header.write_text(header.read_text().replace("kGeometry = 5", "kGeometry = five"))
    monkeypatch.setattr(cuda_ext, "FOLDER", fresh / "sources")
    complaint = r"^\S*splat_math.h:\d+:\d+: error: .*five.*$"
    with pytest.raises(cuda_ext.BuildError, match=complaint) as first:
        cuda_ext.load()
    monkeypatch.setattr(cuda_ext, "_compile", lambda *_: pytest.fail("it was built a second time"))
    with pytest.raises(cuda_ext.BuildError) as second:
        cuda_ext.load()
    assert second.value is first.value


@pytest.mark.parametrize("device", cuda_ext.SOURCES)
def test_an_edited_source_gets_a_library_of_its_own(tmp_path, monkeypatch, device):
    shutil.copytree(cuda_ext.FOLDER, tmp_path / "sources")
    before = cuda_ext._key(device, [])
    monkeypatch.setattr(cuda_ext, "FOLDER", tmp_path / "sources")
    assert cuda_ext._key(device, []) == before
    for name in (cuda_ext.SOURCES[device], *cuda_ext.HEADERS[device]):
        with open(tmp_path / "sources" / name, "a") as file:
            file.write("// edited\n")
        assert cuda_ext._key(device, []) != before, name
        before = cuda_ext._key(device, [])


@pytest.mark.parametrize("device", cuda_ext.SOURCES)
def test_every_included_file_is_in_the_librarys_name(device):
    included, left = set(), [cuda_ext.SOURCES[device]]
    while left:
        text = (cuda_ext.FOLDER / left.pop()).read_text()
        found = set(re.findall(r'#include "(\w+\.h)"', text)) - included
        included |= found
        left += found
    assert included == set(cuda_ext.HEADERS[device])
