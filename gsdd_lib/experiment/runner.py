"""Run a notebook with a parameter file through papermill, checked first, visible throughout.

    python -m gsdd_lib.experiment.runner notebooks/04_x.ipynb params/demo/04_x/ipc1.yaml [--check]
    python -m gsdd_lib.experiment.runner --check-all params/demo

``params/<profile>/<stem>/<case>.yaml`` writes its results to ``figures/<profile>/<stem>/<case>/``;
the executed notebook, its log and its checkpoints go to ``runs/<profile>/<stem>/<case>*``.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import papermill
from nbclient.exceptions import DeadKernelError
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from gsdd_lib.config import nearest
from gsdd_lib.core.files import project_root, write_atomically
from gsdd_lib.experiment.parameters import ParameterError, check

ENGINE = "gsdd"
SOURCES = ("gsdd_lib/**/*.py", "cuda_ext/*.py", "cuda_ext/*.h", "cuda_ext/*.c*")


class _Lines:
    """A text stream that passes whole lines on to the terminal and to a log, with a prefix."""

    def __init__(self, prefix: str, log: TextIO) -> None:
        self._prefix, self._log, self._rest = prefix, log, ""

    def write(self, text: str) -> None:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            shown = line.rstrip().rsplit("\r", 1)[-1]  # a progress bar: its last state alone
            print(f"{self._prefix} {shown}", flush=True)
            print(shown, file=self._log, flush=True)

    def flush(self) -> None:
        pass  # whole lines are flushed as they come


class _AnnouncingEngine(NBClientEngine):
    """papermill's engine, which also prints each heading when the run comes to it."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **options):  # papermill's signature
        start = nb_man.cell_start

        def announce(cell, cell_index=None, **more):
            first = cell.source.partition("\n")[0]
            if cell.cell_type == "markdown" and first.startswith(("# ", "## ")):
                options["stdout_file"].write(f"{first}\n")
            start(cell, cell_index, **more)

        nb_man.cell_start = announce
        return super().execute_managed_notebook(nb_man, kernel_name, **options)


def run(notebook: Path, params: Path) -> int:
    """Check, then execute; returns the exit code: 0 done, 1 failed, 130 interrupted."""
    values = check(notebook, params)
    place = Path(*params.resolve().with_suffix("").parts[-3:])  # profile/stem/case
    folder = project_root() / "runs" / place
    _open_run(folder, _fingerprint(notebook, params))
    folders = {"output_folder": f"figures/{place}", "run_folder": f"runs/{place}"}
    name = f"[{notebook.stem.partition('_')[0]} {params.stem}]"
    started = time.perf_counter()
    with open(folder.with_name(f"{folder.name}.log"), "w", encoding="utf-8") as log:
        failure = _execute(notebook, folder, values | folders, _Lines(name, log))
    if failure:
        executed = os.path.relpath(_executed(folder))
        print(f"{name} stopped: {failure}; the executed notebook is {executed}.", file=sys.stderr)
        return 130 if failure == INTERRUPTED else 1
    minutes, seconds = divmod(round(time.perf_counter() - started), 60)
    print(f"{name} done in {minutes}:{seconds:02d}, results in figures/{place}", flush=True)
    return 0


INTERRUPTED = "interrupted, the same command goes on from the last checkpoint"


def _execute(notebook: Path, folder: Path, parameters: dict, lines: _Lines) -> str:
    """Execute in a kernel of this Python; returns what went wrong, or nothing."""
    os.environ["TQDM_DISABLE"] = "1"  # a saved bar stays at 0 %; the library prints lines instead
    papermill_engines.register(ENGINE, _AnnouncingEngine)
    try:
        papermill.execute_notebook(
            os.path.relpath(notebook),
            os.path.relpath(_executed(folder)),
            parameters=parameters,
            engine_name=ENGINE,
            kernel_name="python3",
            progress_bar=False,
            stdout_file=lines,
            stderr_file=lines,
            cwd=str(notebook.resolve().parent),  # as in JupyterLab
            extra_arguments=["--log-level=CRITICAL"],  # the kernel's own log, not the cells'
        )
    except PapermillExecutionError as error:
        reason = (error.evalue or "").strip().partition("\n")[0].rstrip(".")
        return f"{error.ename}: {reason}"
    except DeadKernelError:
        return "the kernel died, often for want of memory"
    except KeyboardInterrupt:
        return INTERRUPTED
    return ""


def _executed(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.ipynb")


def _open_run(folder: Path, fingerprint: str) -> None:
    """Keep the checkpoints of the same inputs; move those of others aside, to ``<case>.before``.

    Without this, a run repeated after a change of the code would go on from the old code's
    finished checkpoint and report the old code's numbers.
    """
    stamp = folder / "inputs.sha256"
    known = stamp.read_text("utf-8") if stamp.is_file() else ""
    if known != fingerprint and folder.is_dir() and any(folder.iterdir()):
        before = folder.with_name(f"{folder.name}.before")
        shutil.rmtree(before, ignore_errors=True)
        folder.rename(before)
    write_atomically(stamp, fingerprint.encode())


def _fingerprint(notebook: Path, params: Path) -> str:
    """Hash of what decides the results: the notebook's cells, the parameters, the library."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    digest = hashlib.sha256(json.dumps([cell["source"] for cell in cells]).encode())
    digest.update(params.read_bytes())
    root = project_root()
    for path in sorted(path for pattern in SOURCES for path in root.glob(pattern)):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def check_all(folder: Path) -> int:
    """Check every parameter file of a profile; prints a line per fault, returns the exit code."""
    files = sorted(folder.glob("*/*.yaml"))
    if not files:
        profiles = [path.name for path in folder.parent.glob("*") if path.is_dir()]
        print(f"{folder}: no parameter files{nearest(folder.name, profiles)}", file=sys.stderr)
        return 1
    faults = []
    for path in files:
        try:
            check(project_root() / "notebooks" / f"{path.parent.name}.ipynb", path)
        except ParameterError as error:
            faults.append(str(error))
    print("\n".join(faults), file=sys.stderr, end="\n" if faults else "")
    print(f"{len(files) - len(faults)} of {len(files)} parameter files are valid.")
    return 1 if faults else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m gsdd_lib.experiment.runner", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("notebook", type=Path, nargs="?", help="notebooks/<stem>.ipynb")
    parser.add_argument("params", type=Path, nargs="?", help="params/<profile>/<stem>/<case>.yaml")
    parser.add_argument("--check", action="store_true", help="check the file and run nothing")
    parser.add_argument("--check-all", type=Path, metavar="FOLDER", help="check a whole profile")
    options = parser.parse_args(arguments)
    if options.check_all:
        return check_all(options.check_all)
    if not options.params:
        parser.error("a notebook and a parameter file are needed, or --check-all")
    try:
        if not options.check:
            return run(options.notebook, options.params)
        check(options.notebook, options.params)
    except ParameterError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{options.params}: valid.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
