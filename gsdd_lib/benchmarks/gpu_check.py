"""``make gpu-check``: all that needs a GPU, in ten minutes. Every part is a process of its own, so
that what ends one, be it a crash, keeps no other from running. With --quick and --device cpu it is
a trial on any machine, which measures nothing.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from gsdd_lib.benchmarks.gpu_parts import FOLDER, LEFT_OUT, NotRun, keep
from gsdd_lib.benchmarks.timing import markdown
from gsdd_lib.core.files import project_root, write_atomically

# Seconds after which a part is stopped: 600 in all, and more than each should need on an H100.
LIMITS = {"kernels": 120, "tests": 140, "sanitizer": 60, "operator": 90}
LIMITS |= {"tables": 100, "distillation": 90}
LOGS = Path("runs/gpu-check")


def command(name: str, options: argparse.Namespace) -> list[str]:
    """What the process of a part runs; raises :class:`NotRun` where it cannot."""
    python, device = sys.executable, options.device
    if name == "kernels":
        return [python, "-c", f"from cuda_ext import load; load({device!r}); print('built')"]
    if name == "tests":
        return [python, "-m", "pytest", "-m", "gpu", "--disable-warnings", "tests"]
    if name == "sanitizer":
        if device == "cpu" or not shutil.which("compute-sanitizer"):
            raise NotRun("compute-sanitizer is not on the PATH, or there is no GPU to watch")
        return ["compute-sanitizer", "--error-exitcode=9", python, "-m", "cuda_ext.sanitize"]
    own = [name, "--device", device, "--folder", str(options.folder)]
    return [python, "-m", "gsdd_lib.benchmarks.gpu_parts", *own, *["--quick"] * options.quick]


def run_part(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run a part in a process, stopped at its limit; a row: part, status, seconds, last line."""
    began, lines = time.perf_counter(), [""]
    try:
        quiet = {"PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1", "MPLBACKEND": "Agg"}
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        more = {"env": os.environ | quiet, "cwd": project_root(), "start_new_session": True}
        process = subprocess.Popen(command(name, options), errors="replace", **pipe, **more)
        stop = threading.Timer(LIMITS[name], os.killpg, (process.pid, signal.SIGKILL))
        stop.start()
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                lines.append(line)
            code = process.wait()
        finally:
            stop.cancel()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    except NotRun as why:
        lines, code = [f"not run: {why}\n"], LEFT_OUT
        print(lines[0], end="")
    write_atomically(project_root() / LOGS / f"{name}.txt", "".join(lines).encode())
    seconds, last = round(time.perf_counter() - began, 1), "".join(lines).strip().split("\n")[-1]
    status = {0: "ok", LEFT_OUT: "not run"}.get(code, "failed")
    last = f"stopped after {LIMITS[name]} s" if seconds >= LIMITS[name] and code else last
    last = last.strip("= ") or f"exit code {code}"
    return {"part": name, "status": status, "seconds": seconds, "last line": last}


def main(arguments: list[str] | None = None) -> int:
    """Run every part, print a line for each; returns 1 if one failed."""
    parser = argparse.ArgumentParser("python -m gsdd_lib.benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--folder", type=Path, default=project_root() / FOLDER, help="of results")
    parser.add_argument("--only", nargs="+", choices=LIMITS, default=LIMITS, help="parts to run")
    options = parser.parse_args(arguments)
    rows = []
    for name in options.only:
        print(f"\n{name}, at most {LIMITS[name]} s", flush=True)
        rows.append(run_part(name, options))
    keep(options.folder, "gpu_check", options.device, parts=rows)
    print(f"\n{markdown(rows)}")
    return int(any(row["status"] == "failed" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
