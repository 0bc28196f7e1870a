"""What the CUDA compiler makes of the kernels: registers, shared memory and spills.

It needs ``nvcc`` and no GPU, so a spill shows on any machine that has the compiler.
"""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from cuda_ext import CUDA_CFLAGS, FOLDER, SOURCES, BuildError, arch_flags, nvcc

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(sm_\w+)'")
KERNEL = re.compile(r"\d(render|gather|add_parts)_kernelI([fd])((?:Li\d+E)+)E")
NUMBERS = {
    "registers": re.compile(r"Used (\d+) registers"),
    "shared": re.compile(r"(\d+) bytes smem"),
    "spills": re.compile(r"(\d+) bytes spill stores"),
    "stack": re.compile(r"(\d+) bytes stack frame"),
}


def compile_report(*archs: str, folder: Path | None = None) -> list[dict[str, str | int]]:
    """What nvcc makes of the kernels for the architectures ``"sm_90"``, ...

    Args:
        folder: where the object file ``splat.o`` and the PTX stay; by default they do not.

    Returns:
        One row per kernel and architecture, in the compiler's order: ``kernel``, ``arch``,
        ``registers`` per thread, ``shared`` bytes per block, and bytes per thread of ``spills`` and
        of the ``stack``.

    Raises:
        BuildError: there is no nvcc, or the source does not compile.
    """
    if shutil.which(nvcc()) is None:
        raise BuildError("nvcc was not found; install the CUDA toolkit or set CUDA_HOME")
    with tempfile.TemporaryDirectory() as own:
        place = str(folder or own)
        command = [nvcc(), "-std=c++17", *CUDA_CFLAGS, f"-I{FOLDER}", *arch_flags(archs)]
        command += ["--threads", "0", "--keep", "--keep-dir", place, "-Xptxas", "-v"]
        command += ["-c", "-o", f"{place}/splat.o", str(FOLDER / SOURCES["cuda"])]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "error" in line]
        raise BuildError("".join(errors[:1]) or f"nvcc ended with {done.returncode}")
    return parse(done.stdout + done.stderr)


def parse(output: str) -> list[dict[str, str | int]]:
    """The rows in what ``ptxas -v`` printed.

    >>> parse('''Compiling entry function '_ZN13render_kernelIfLi3ELi2EEEvPKT_' for 'sm_90'
    ... 0 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
    ... Used 48 registers, used 1 barriers, 12288 bytes smem''')[0]["registers"]
    48
    """
    rows = []
    for line in output.splitlines():
        if entry := ENTRY.search(line):
            rows.append(
                {"kernel": readable(entry[1]), "arch": entry[2], **dict.fromkeys(NUMBERS, 0)}
            )
        for name, pattern in NUMBERS.items():
            if rows and (number := pattern.search(line)):
                rows[-1][name] = int(number[1])
    return rows


def readable(symbol: str) -> str:
    """The kernel's name with its type, channels and samples per axis, from its mangled symbol.

    >>> readable("_ZN5splat13render_kernelIfLi3ELi2EEEvPKT_")
    'render<float, 3, 2>'
    """
    found = KERNEL.search(symbol)
    if not found:
        return symbol
    scalar = {"f": "float", "d": "double"}[found[2]]
    return f"{found[1]}<{', '.join([scalar, *re.findall(r'[0-9]+', found[3])])}>"
