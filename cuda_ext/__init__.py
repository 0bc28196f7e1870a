"""The splatting operator's extension: built at first use, cached, quiet.

:func:`load` registers ``torch.ops.gsdd.splat`` and ``torch.ops.gsdd.splat_backward``. Importing
this package builds nothing. A build is remembered for the process, a failed one as well, and the
cache's file name carries a hash of every source, the flags and torch's version, so that an edited
header can never meet an old library.
"""

import contextlib
import fcntl
import functools
import hashlib
import io
import logging
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
CPU_SOURCES = ("splat_cpu.cpp",)
CUDA_SOURCES = ("splat_cuda.cu",)
HEADERS = (
    "splat_checks.h",
    "splat_gather.h",
    "splat_math.h",
    "splat_render.h",
    "splat_simd.h",
    "splat_warp.h",
)
# No -ffast-math (it removes the rounding inside exp) and no -march (dispatch is at run time).
CFLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-Wno-psabi")
CUDA_CFLAGS = ("-O3", "--expt-relaxed-constexpr", "-lineinfo")


class BuildError(RuntimeError):
    """The extension could not be built; the message says why in one sentence."""


def load() -> bool:
    """Register the operator. Returns whether its CUDA kernels are in it; raises BuildError."""
    outcome = _load_once()
    if isinstance(outcome, BuildError):
        raise outcome
    return outcome


@functools.cache
def _load_once() -> bool | BuildError:
    with_cuda = torch.cuda.is_available() and shutil.which(_nvcc()) is not None
    try:
        library = _library_path(with_cuda)
        with _locked(library.with_suffix(".lock")):
            if library.exists():
                torch.ops.load_library(str(library))
            else:
                _build(library, with_cuda)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return error if isinstance(error, BuildError) else BuildError(_one_line(error))
    return with_cuda


def _nvcc() -> str:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return str(Path(home) / "bin" / "nvcc") if home else "nvcc"


def _library_path(with_cuda: bool) -> Path:
    digest = hashlib.sha256(repr((torch.__version__, CFLAGS, CUDA_CFLAGS, with_cuda)).encode())
    for name in CPU_SOURCES + CUDA_SOURCES + HEADERS:
        digest.update(name.encode() + (FOLDER / name).read_bytes())
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions"
    folder = Path(root) / "gsdd"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"splat_{digest.hexdigest()[:16]}.so"


def _build(library: Path, with_cuda: bool) -> None:
    """Compile in a folder of its own, then move the library to its place in one step."""
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise BuildError(
            f"no C++ compiler '{compiler}' was found; install g++ (Debian: apt install g++)"
        )
    with _only_errors("torch.utils.cpp_extension"):  # it warns of an nvcc where no GPU is
        from torch.utils.cpp_extension import load_inline  # slow to import, and needed only here

    place = tempfile.TemporaryDirectory(dir=library.parent)
    with place as folder, _quiet() as output, _ninja_on_path():
        try:
            load_inline(
                library.stem,
                [(FOLDER / name).read_text() for name in CPU_SOURCES],
                [(FOLDER / name).read_text() for name in CUDA_SOURCES] if with_cuda else None,
                extra_cflags=list(CFLAGS),
                extra_cuda_cflags=list(CUDA_CFLAGS),
                extra_include_paths=[str(FOLDER)],
                build_directory=folder,
                is_python_module=False,
                no_implicit_headers=True,
            )
        except (OSError, RuntimeError, ImportError, subprocess.SubprocessError) as error:
            raise BuildError(_one_line(error, output.getvalue())) from error
        os.replace(Path(folder) / library.name, library)


def _one_line(error: Exception, output: str = "") -> str:
    lines = [line for line in f"{output}\n{error}".splitlines() if line.strip()]
    # The compiler's own complaint says more than torch's line about the failed command.
    telling = [line for line in lines if "error: " in line] or lines or [repr(error)]
    return telling[0].strip()[:300]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One build at a time; the lock goes with the process, so a killed build blocks nobody."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _only_errors(logger: str) -> Iterator[None]:
    log = logging.getLogger(logger)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


@contextlib.contextmanager
def _quiet() -> Iterator[io.StringIO]:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        yield output


@contextlib.contextmanager
def _ninja_on_path() -> Iterator[None]:
    """pip's ninja lies beside the interpreter; PATH has that folder only in an active venv."""
    before = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = os.pathsep.join([before, sysconfig.get_path("scripts")])
    try:
        yield
    finally:
        os.environ["PATH"] = before
