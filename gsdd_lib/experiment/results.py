"""What a run leaves behind: its record (``run.json``) and its tables (csv, Markdown and LaTeX).

A record says what produced the numbers beside it, and nothing about whose machine it was: an
absolute path among the parameters is reduced to its last part.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any, Self

import pandas as pd

from gsdd_lib.core.device import cpu_name
from gsdd_lib.core.files import project_root, write_atomically
from gsdd_lib.experiment.tables import to_latex, to_markdown

RECORD = "run.json"
COMMITS = "commits.json"  # in a run's folder: whose code worked there, the oldest first


def open_folder(folder: str | Path) -> Path:
    """``folder``, created where missing; a relative one is counted from the project's root."""
    path = project_root() / folder
    path.mkdir(parents=True, exist_ok=True)
    return path


def open_run(output_folder: str, run_folder: str) -> Path:
    """Print where the results of a run go, and whether it may go on from other code's checkpoints.

    Checkpoints are used where settings, data and seed are the same, whatever the code is; the
    record then says ``resumed_from``.

    Returns:
        ``run_folder``, made where it was missing.
    """
    folder = open_folder(run_folder)
    print(f"Figures and tables: {output_folder}; checkpoints: {run_folder}")
    now = _commit()["commit"]
    known = _commits(folder) if any(folder.rglob("*checkpoint*")) else []
    if earlier := [commit[:10] for commit in known if commit != now]:
        print(f"Checkpoints of commit {', '.join(earlier)} serve where the settings are the same.")
    commits = [*(commit for commit in known if commit != now), now]
    write_atomically(folder / COMMITS, json.dumps(commits).encode())
    return folder


def _commits(folder: Path) -> list[str]:
    try:
        return [str(commit) for commit in json.loads((folder / COMMITS).read_text("utf-8"))]
    except (OSError, ValueError, TypeError):
        return []


class Recorder:
    """Seconds since it was made, and the process's peak memory.

    >>> with Recorder() as recorder:
    ...     numbers = [0] * 1000
    >>> recorder.seconds >= 0 and recorder.peak_mib > 1
    True
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._stop: float | None = None

    def __enter__(self) -> Self:
        self._start, self._stop = time.perf_counter(), None
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Wall-clock seconds so far, or of the finished ``with`` block."""
        return (self._stop or time.perf_counter()) - self._start

    @property
    def peak_mib(self) -> float:
        """Peak resident memory of this process since it began, in MiB."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)


def run_record(
    parameters: Mapping[str, Any],
    *,
    seconds: float,
    extra: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Everything needed to read the numbers of a run: parameters, code, machine, cost.

    Args:
        parameters: the notebook's parameters, as run.
        seconds: wall-clock time of the run.
        extra: further entries, e.g. the budget's line; they may not replace one of the record's.
        device: where the tensors were; ``"cuda..."`` names the GPU and adds its peak memory.
    """
    source = _commit()
    worked = _commits(project_root() / str(parameters.get("run_folder", "")))
    record = {
        "parameters": {name: _portable(value) for name, value in parameters.items()},
        **source,
        "resumed_from": [commit for commit in worked if commit != source["commit"]],
        **_versions(),
        **_machine(device),
        "seconds": round(float(seconds), 2),
        "peak_memory_mib": round(Recorder().peak_mib, 1),
    }
    taken = sorted(set(record) & set(extra or {}))
    if taken:
        raise ValueError(f"the run record has its own {', '.join(taken)}; name the extra another.")
    return record | {name: _portable(value) for name, value in (extra or {}).items()}


def write_record(folder: str | Path, record: Mapping[str, Any]) -> Path:
    """Write ``run.json`` into ``folder``, atomically; returns its path."""
    path = open_folder(folder) / RECORD
    write_atomically(path, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())
    return path


def write_table(folder: str | Path, name: str, frame: pd.DataFrame, *, digits: int = 2) -> Path:
    """Write ``name.csv`` (six digits), ``name.md`` and ``name.tex`` (``digits`` decimals).

    Returns:
        The path of the csv.
    """
    path = open_folder(folder) / f"{name}.csv"
    csv = frame.to_csv(index=False, lineterminator="\n", float_format=_six_digits)
    write_atomically(path, csv.encode())
    for suffix, printed in {".md": to_markdown, ".tex": to_latex}.items():
        write_atomically(path.with_suffix(suffix), printed(frame, digits=digits).encode())
    return path


def _six_digits(value: float) -> str:
    return repr(float(f"{value:.6g}"))  # "79.0" stays a float when it is read back


def read_results(folder: str | Path, table: str = "results") -> pd.DataFrame:
    """Every ``<notebook>/<case>/<table>.csv`` under ``folder`` in one frame.

    Columns ``notebook`` and ``case`` come first. A table that has them already was gathered from
    others, by the report, and is left out. Nothing there: an empty frame with those two.
    """
    frames = []
    for path in sorted((project_root() / folder).glob(f"*/*/{table}.csv")):
        frame = pd.read_csv(path)
        if {"notebook", "case"} <= set(frame):
            continue
        frame.insert(0, "case", path.parent.name)
        frame.insert(0, "notebook", path.parent.parent.name)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True) if frames else _nothing()


def read_records(folder: str | Path) -> pd.DataFrame:
    """Every ``<notebook>/<case>/run.json`` under ``folder``, one row each, as in read_results."""
    rows = []
    for path in sorted((project_root() / folder).glob(f"*/*/{RECORD}")):
        place = {"notebook": path.parent.parent.name, "case": path.parent.name}
        rows.append(place | json.loads(path.read_text("utf-8")))
    return pd.DataFrame(rows) if rows else _nothing()


_nothing = partial(pd.DataFrame, columns=["notebook", "case"])


def _portable(value: Any) -> Any:
    """``value`` as JSON can hold it, with no path of this machine in it."""
    if isinstance(value, Mapping):
        return {str(name): _portable(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_portable(inner) for inner in value]
    if isinstance(value, PurePath) or (isinstance(value, str) and value.startswith(("/", "~"))):
        return PurePath(value).name
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return value.item() if hasattr(value, "item") else str(value)  # a numpy or torch scalar


def _commit() -> dict[str, Any]:
    """The source's commit, and whether the sources differ from it; results do not count."""
    try:
        commit = _git("rev-parse", "HEAD")
        changes = _git("status", "--porcelain", "--", ".", ":(exclude)figures")
    except (OSError, subprocess.SubprocessError):
        return {"commit": "unknown", "modified": None}
    return {"commit": commit, "modified": bool(changes)}


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(project_root()), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    loaded = getattr(sys.modules.get("torch"), "__version__", None)  # tells its build too
    return {
        "gsdd": _version("gsdd"),
        "torch": loaded or _version("torch"),
        "numpy": _version("numpy"),
        "python": platform.python_version(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _machine(device: str) -> dict[str, Any]:
    # A run that records itself has loaded torch already; reading results need not load it.
    torch = sys.modules.get("torch")
    machine: dict[str, Any] = {"device": cpu_name(), "threads": os.cpu_count()}
    if torch is not None:
        machine["threads"] = torch.get_num_threads()
        if device.startswith("cuda"):
            machine["device"] = torch.cuda.get_device_name(device)
            peak = torch.cuda.max_memory_allocated(device) / 2**20
            machine["peak_gpu_memory_mib"] = round(peak, 1)
    return machine
