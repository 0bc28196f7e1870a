"""What a run leaves behind: its record (``run.json``) and its tables (csv, Markdown and LaTeX). A
record says nothing of whose machine it was: an absolute path is reduced to its last part."""

import json
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any, Self

import pandas as pd

from gsdd_lib.core.device import commit, cpu_name, gpu_driver
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
    """Make ``run_folder``; print where results go, and whose checkpoints serve there: those of the
    same settings, data and seed, whatever the code is; the record then says ``resumed_from``."""
    folder = open_folder(run_folder)
    print(f"Figures and tables: {output_folder}; checkpoints: {run_folder}")
    now = commit()["commit"]
    known = _commits(folder) if any(folder.rglob("*checkpoint*")) else []
    if earlier := [other for other in known if other != now]:
        short = ", ".join(other[:10] for other in earlier)
        print(f"Checkpoints of commit {short} serve where the settings are the same.")
    write_atomically(folder / COMMITS, json.dumps([*earlier, now]).encode())
    return folder


def _commits(folder: Path) -> list[str]:
    try:
        return [str(name) for name in json.loads((folder / COMMITS).read_text("utf-8"))]
    except (OSError, ValueError, TypeError):
        return []


class Recorder:
    """Seconds since it was made, or of a ``with`` block."""

    def __init__(self) -> None:
        self._start, self._stop = time.perf_counter(), None

    seconds = property(lambda self: (self._stop or time.perf_counter()) - self._start)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = time.perf_counter()


def run_record(parameters: Mapping[str, Any], *, seconds: float, extra=None, device="cpu") -> dict:
    """Everything needed to read the numbers of a run: its parameters, code, machine, cost.

    Args:
        seconds: wall-clock time of the run.
        extra: further entries by name; they may not replace one of the record's.
        device: where the tensors were; ``"cuda..."`` names the GPU and adds its peak memory.
    """
    source, torch = commit(), sys.modules.get("torch")  # reading results need not load torch
    worked = _commits(project_root() / str(parameters.get("run_folder", "")))
    record = {
        "parameters": _portable(parameters),
        **source,
        "resumed_from": [other for other in worked if other != source["commit"]],
        **{package: _version(package) for package in ("gsdd", "torch", "numpy")},
        "python": platform.python_version(),
        "device": cpu_name(),
        "threads": torch.get_num_threads() if torch else os.cpu_count(),
    }
    if torch and device.startswith("cuda"):
        record |= {"device": torch.cuda.get_device_name(device), "driver": gpu_driver()}
        record["peak_gpu_memory_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in KiB, on macOS in bytes
    peak /= 2**20 if sys.platform == "darwin" else 2**10
    record |= {"seconds": round(float(seconds), 2), "peak_memory_mib": round(peak, 1)}
    if taken := sorted(record.keys() & (extra or {}).keys()):
        raise ValueError(f"the run record has its own {', '.join(taken)}; name the extra another.")
    return record | _portable(extra or {})


def _version(package: str) -> str:
    try:
        return getattr(sys.modules.get(package), "__version__", None) or metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _portable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _portable(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_portable(inner) for inner in value]
    if isinstance(value, PurePath) or (isinstance(value, str) and value.startswith(("/", "~"))):
        return PurePath(value).name
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return value.item() if hasattr(value, "item") else str(value)  # a numpy or torch scalar


def write_record(folder: str | Path, record: Mapping[str, Any]) -> Path:
    """Write ``run.json`` into ``folder``, atomically; returns its path."""
    path = open_folder(folder) / RECORD
    write_atomically(path, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())
    return path


def write_table(folder: str | Path, name: str, frame: pd.DataFrame, *, digits: int = 2) -> Path:
    """Write ``name.csv`` (six digits), whose path comes back, ``.md`` and ``.tex`` (``digits``)."""
    path = open_folder(folder) / f"{name}.csv"
    # "79.0" stays a float when it is read back.
    look = {"lineterminator": "\n", "float_format": lambda value: repr(float(f"{value:.6g}"))}
    csv = frame.to_csv(index=False, **look)
    printed = {".md": to_markdown(frame, digits=digits), ".tex": to_latex(frame, digits=digits)}
    for suffix, text in {".csv": csv, **printed}.items():
        write_atomically(path.with_suffix(suffix), text.encode())
    return path


def read_results(folder: str | Path, table: str = "results") -> pd.DataFrame:
    """Every ``<notebook>/<case>/<table>.csv`` under ``folder`` in one frame, these columns first. A
    table that has them already was gathered from others, by the report, and is left out."""
    frames = [pd.DataFrame(columns=["notebook", "case"])]
    for path, place in _places(folder, f"{table}.csv"):
        frame = pd.read_csv(path) if path.read_bytes().strip() else pd.DataFrame()
        if not place.keys() <= set(frame):
            frames.append(pd.DataFrame(place, frame.index).join(frame))
    return pd.concat(frames[1:] or frames, ignore_index=True)


def read_records(folder: str | Path) -> pd.DataFrame:
    """Every ``<notebook>/<case>/run.json`` under ``folder``, one row each, as in read_results."""
    places = _places(folder, RECORD)
    rows = [place | json.loads(path.read_text("utf-8")) for path, place in places]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["notebook", "case"])


def _places(folder: str | Path, name: str) -> Iterator[tuple[Path, dict[str, str]]]:
    for path in sorted((project_root() / folder).glob(f"*/*/{name}")):
        yield path, {"notebook": path.parent.parent.name, "case": path.parent.name}
