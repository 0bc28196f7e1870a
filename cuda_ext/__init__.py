"""The kernels of the splatting operator: built at first use, cached, and verified before loading.

:func:`load` returns a library of C functions for one kind of device; ``splat_call.h`` says how
they are called. Nothing is built at import. The CPU's kernels need a C++ compiler alone, and a CUDA
build that fails leaves them as they are.

A library's file name carries a hash of its sources, its flags, torch's version and the GPU
architectures it is for. The library's SHA-256 stands beside it: a truncated library would end the
process with a bus error, so one that does not match is built anew.
"""

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import io
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
SOURCES = {"cpu": "splat_cpu.cpp", "cuda": "splat_cuda.cu"}
SHARED_HEADERS = ("splat_call.h", "splat_math.h", "splat_sample.h")
HEADERS = {
    "cpu": (*SHARED_HEADERS, "splat_simd.h"),
    "cuda": (*SHARED_HEADERS, "splat_gather.h", "splat_render.h", "splat_warp.h"),
}
# No -ffast-math (it removes the rounding inside exp) and no -march (dispatch is at run time).
CFLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-Wno-psabi")
CUDA_CFLAGS = ("-O3", "--expt-relaxed-constexpr", "-lineinfo")


class BuildError(RuntimeError):
    """The kernels could not be built or loaded; the message says why in one sentence."""


class Call(ctypes.Structure):
    """Pointers and numbers of a call, as ``splat_call.h`` declares them."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("params", "index", "v_images", "out", "slots")),
        *((name, ctypes.c_int64) for name in ("stored", "points", "row")),
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "dtype")),
        *((name, ctypes.c_int64) for name in ("opacity", "saturate", "prefilter", "supersample")),
        *((name, ctypes.c_int64) for name in ("device", "stream")),
    ]


def load(device: str = "cpu") -> ctypes.CDLL:
    """The kernels for a kind of device, built if need be.

    Args:
        device: ``"cpu"`` or ``"cuda"``.

    Returns:
        The library. It is remembered for the process, and so is a failure.

    Raises:
        BuildError: it cannot be built or loaded here.
    """
    outcome = _load_once(device)
    if isinstance(outcome, BuildError):
        raise outcome
    return outcome


@functools.cache
def _load_once(device: str) -> ctypes.CDLL | BuildError:
    try:
        library = _obtain(device)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return error if isinstance(error, BuildError) else BuildError(_one_line(error))
    for name in ("splat_render", "splat_gather"):
        function = getattr(library, name)
        function.argtypes, function.restype = [ctypes.POINTER(Call)], ctypes.c_int64
    if device == "cuda":
        library.splat_slots.argtypes = [ctypes.POINTER(Call)]
        library.splat_slots.restype = ctypes.c_int64
        library.splat_cuda_message.argtypes = [ctypes.c_int64]
        library.splat_cuda_message.restype = ctypes.c_char_p
    return library


def _obtain(device: str) -> ctypes.CDLL:
    flags = [*CFLAGS] if device == "cpu" else [*CUDA_CFLAGS, *_arch_flags()]
    path = cache_folder() / f"splat_{device}_{_key(device, flags)}.so"
    if _intact(path):
        return ctypes.CDLL(str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path.with_suffix(".lock"), "w")  # noqa: SIM115 - closed below
    except OSError:  # a cache that cannot be written: the library serves this process alone
        with tempfile.TemporaryDirectory() as folder:
            return ctypes.CDLL(str(_compile(device, flags, path.stem, Path(folder))))
    with lock:
        # One build at a time. The lock ends with its process, so a killed build blocks no other.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _intact(path):
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                built = _compile(device, flags, path.stem, Path(folder))
                digest = built.with_suffix(".sha256")
                digest.write_text(_sha256(built))
                os.replace(built, path)
                os.replace(digest, path.with_suffix(".sha256"))
        return ctypes.CDLL(str(path))


def cache_folder() -> Path:
    """Where libraries are kept: ``$TORCH_EXTENSIONS_DIR/gsdd``, by default below ``~/.cache``."""
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions"
    return Path(root) / "gsdd"


def _intact(path: Path) -> bool:
    try:
        return path.with_suffix(".sha256").read_text() == _sha256(path)
    except (OSError, UnicodeDecodeError):
        return False


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _key(device: str, flags: list[str]) -> str:
    digest = hashlib.sha256(repr((torch.__version__, platform.machine(), flags)).encode())
    for name in (SOURCES[device], *HEADERS[device]):
        digest.update(name.encode() + (FOLDER / name).read_bytes())
    return digest.hexdigest()[:16]


def nvcc() -> str:
    """The CUDA compiler: of ``CUDA_HOME`` where that is set, else of the PATH."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return str(Path(home) / "bin" / "nvcc") if home else "nvcc"


def arch_flags(archs: Iterator[str] | tuple[str, ...]) -> list[str]:
    """What nvcc is told of the architectures ``"sm_90"``, ...: code for these and no others."""
    return [f"-gencode=arch=compute_{arch[3:]},code={arch}" for arch in archs]


def _arch_flags() -> list[str]:
    if not torch.cuda.is_available():
        raise BuildError("torch sees no CUDA device")
    if shutil.which(nvcc()) is None:
        raise BuildError("nvcc was not found; install the CUDA toolkit or set CUDA_HOME")
    devices = range(torch.cuda.device_count())
    present = {torch.cuda.get_device_capability(device) for device in devices}
    return arch_flags(tuple(f"sm_{major}{minor}" for major, minor in sorted(present)))


def _compile(device: str, flags: list[str], name: str, folder: Path) -> Path:
    """Compile into ``folder``; the library's path."""
    compiler = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    if shutil.which(compiler[0]) is None:
        raise BuildError(
            f"no C++ compiler '{compiler[0]}' was found; install g++ (Debian: apt install g++)"
        )
    with _only_errors("torch.utils.cpp_extension"):  # it warns of an nvcc where no GPU is
        from torch.utils.cpp_extension import load_inline  # slow to import, and needed only here

    source = (FOLDER / SOURCES[device]).read_text()
    with _quiet() as output, _build_environment():
        try:
            load_inline(
                name,
                [source] if device == "cpu" else [],
                [source] if device == "cuda" else None,
                extra_cflags=flags if device == "cpu" else None,
                extra_cuda_cflags=flags if device == "cuda" else None,
                extra_include_paths=[str(FOLDER)],
                build_directory=str(folder),
                is_python_module=False,
                no_implicit_headers=True,
            )
        except (OSError, RuntimeError, ImportError, subprocess.SubprocessError) as error:
            raise BuildError(_one_line(error, output.getvalue())) from error
    return folder / f"{name}.so"


def _one_line(error: Exception, output: str = "") -> str:
    lines = [line for line in f"{output}\n{error}".splitlines() if line.strip()]
    # The compiler's or the linker's own complaint says more than torch's line on the command.
    marks = ("error: ", "cannot find ", "undefined reference")
    telling = [line for mark in marks for line in lines if mark in line and "collect2" not in line]
    return (telling or lines or [repr(error)])[0].strip()[:300]


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
def _build_environment() -> Iterator[None]:
    """What torch's build reads from the environment, for as long as it builds.

    pip's ninja lies beside the interpreter, and PATH has that folder only in an active environment.
    torch checks a compiler's ABI by running CXX as one word, which ``ccache g++`` is not.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])
    before = dict(os.environ)
    os.environ |= {"PATH": path, "TORCH_DONT_CHECK_COMPILER_ABI": "1"}
    try:
        yield
    finally:
        for name in ("PATH", "TORCH_DONT_CHECK_COMPILER_ABI"):
            os.environ.pop(name)
            if name in before:
                os.environ[name] = before[name]
