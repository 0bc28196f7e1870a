"""Run a notebook with a parameter file through papermill, checked first, visible throughout. The
results of ``params/<profile>/<notebook>/<case>.yaml``, with the executed notebook, go to figures/
under this name; log, checkpoints and experts to runs/, where nothing is ever moved or deleted.
With ``--ranks``, or under torchrun, each rank executes the notebook in a kernel of its own, and the
kernels share the work (:mod:`gsdd_lib.core.ranks`). The results are those of the first one."""

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import papermill
from nbclient.exceptions import DeadKernelError
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from gsdd_lib.config import nearest
from gsdd_lib.core.errors import GsddError
from gsdd_lib.core.files import lock_folder, project_root, write_atomically
from gsdd_lib.experiment.parameter_files import check, load_parameters, place
from gsdd_lib.experiment.parameters import ParameterError
from gsdd_lib.experiment.results import RECORD

ENGINE = "gsdd"
UNKNOWN_TIME = "no earlier run says how long this takes"
GOES_ON = "the same command goes on from the last checkpoint"
# What glibc is told, unless the user says otherwise: freed memory stays with the process. Returned
# and asked for again, as every step does, each page would be cleared by the system, which takes up
# to half of a step's time on a CPU.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
INTERRUPTED, ENDED = f"interrupted, {GOES_ON}", f"another rank has ended, {GOES_ON}"


class _Lines:
    """A text stream that passes whole lines on to a log and, with a prefix, to the terminal."""

    def __init__(self, prefix: str, log: TextIO) -> None:
        self._prefix, self._log, self._rest = prefix, log, ""

    def write(self, text: str) -> None:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            shown = line.rstrip().rsplit("\r", 1)[-1]  # a progress bar: its last state alone
            if self._prefix:
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
    values, where = check(notebook, params), place(notebook, params)
    name = f"[{notebook.stem.partition('_')[0]} {params.stem}]"
    folder, output = project_root() / "runs" / where, project_root() / "figures" / where
    values |= {"output_folder": f"figures/{where}", "run_folder": f"runs/{where}"}
    if "RANK" in os.environ:
        signal.signal(signal.SIGTERM, _end)  # from torchrun, when a rank has ended
    if rank := int(os.environ.get("RANK", 0)):
        return _follow(notebook, folder, values, f"{name[:-1]}, rank {rank}]", rank)
    with lock_folder(folder, "case.lock"):
        seconds, device = _last_run(where)
        length = "under a minute" if seconds < 45 else f"about {round(seconds / 60)} min"
        earlier = f"{length} (last run: {_clock(seconds)} on {device})" if device else UNKNOWN_TIME
        print(f"{name} {earlier}; results go to figures/{where}", flush=True)
        started, executed = time.perf_counter(), folder / f"{params.stem}.ipynb"
        with open(folder / "run.log", "w", encoding="utf-8") as log:
            failure = _execute(notebook, executed, values, _Lines(name, log))
        if failure:
            left = os.path.relpath(executed)
            print(f"{name} stopped: {failure}; the executed notebook is {left}.", file=sys.stderr)
            return 130 if failure == INTERRUPTED else 1
        # Only a whole run replaces the notebook that stands beside the results.
        write_atomically(output / executed.name, executed.read_bytes())
        executed.unlink()
    print(f"{name} done in {_clock(time.perf_counter() - started)}, results in figures/{where}")
    return 0


def _follow(notebook: Path, folder: Path, values: dict[str, Any], name: str, rank: int) -> int:
    """Execute on a rank that works along: its figures, tables and notebook are not kept."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as scratch,
        open(folder / f"rank_{rank}.log", "w", encoding="utf-8") as log,
    ):
        values |= {"output_folder": scratch}
        failure = _execute(notebook, Path(scratch, notebook.name), values, _Lines("", log))
    if failure and not failure.endswith(GOES_ON):  # else the first rank says it
        print(f"{name} stopped: {failure}.", file=sys.stderr)
    return int(bool(failure))


def _end(*_: object) -> None:
    raise KeyboardInterrupt(ENDED)


def launch(count: int, notebook: Path, params: Path) -> int:
    """:func:`run` by ``count`` ranks of this machine under torchrun; returns the exit code."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    check(notebook, params)
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # we say it in a sentence
    where = ["--standalone", f"--nproc-per-node={count}", "-m", "gsdd_lib.experiment.runner"]
    try:
        torchrun([*where, str(notebook), str(params)])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if not rank and failure.exitcode < 0:  # no other rank speaks
            print(f"rank 0 was killed (signal {-failure.exitcode}), {GOES_ON}.", file=sys.stderr)
        return 1
    except SignalException:
        return 130
    return 0


def _execute(notebook: Path, executed: Path, parameters: dict[str, Any], lines: _Lines) -> str:
    os.environ["TQDM_DISABLE"] = "1"  # progress as lines, which papermill passes on
    os.environ |= KEEP_MEMORY | os.environ  # of the kernel, which starts below
    for name in ("asyncio", "papermill"):  # of a dead kernel, which has a sentence below
        logging.getLogger(name).setLevel(logging.CRITICAL)
    papermill_engines.register(ENGINE, _AnnouncingEngine)
    more = {"engine_name": ENGINE, "kernel_name": "python3", "progress_bar": False}
    more |= {"stdout_file": lines, "stderr_file": lines, "cwd": str(notebook.resolve().parent)}
    more |= {"extra_arguments": ["--log-level=CRITICAL"]}  # the kernel's own log, not the cells'
    # Kernels started at once, as by ranks, might be given one and the same port; these are names
    own = tempfile.TemporaryDirectory()
    sockets = {"transport": "ipc", "ip": f"{own.name}/kernel"} if os.name == "posix" else {}
    more |= {"config": Config({"KernelManager": sockets})}
    try:
        with own:
            paths = map(os.path.relpath, (notebook, executed))
            papermill.execute_notebook(*paths, parameters, **more)
    except PapermillExecutionError as error:
        reason = (error.evalue or "").strip().partition("\n")[0].rstrip(".")
        return f"{error.ename}: {reason}"
    except DeadKernelError:
        return "the kernel died, often for want of memory"
    except KeyboardInterrupt as error:
        return str(error) or INTERRUPTED
    return ""


def _last_run(where: Path) -> tuple[float, str]:
    try:
        record = json.loads((project_root() / "figures" / where / RECORD).read_text("utf-8"))
        return float(record["seconds"]), str(record["device"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0, ""


def _clock(seconds: float) -> str:
    return "{}:{:02d}".format(*divmod(round(seconds), 60))


def cases(folder: Path, only: str = "") -> list[Path]:
    """The parameter files of a profile, ``params/<profile>``; raises ParameterError without any.
    ``only``: those of one notebook ("04", or its whole name), of one item of the paper ("table_15")
    or of one name ("ipc1"); empty: all."""

    def chosen(path: Path) -> bool:
        names = path.parent.name, str(load_parameters(path).get("paper_item", ""))
        return path.stem == only or any(f"{name}_".startswith(f"{only}_") for name in names)

    files = sorted(folder.glob("*/*.yaml"))
    if not files:
        profiles = [path.name for path in folder.parent.glob("*") if path.is_dir()]
        raise ParameterError(folder, f"no parameter files{nearest(folder.name, profiles)}")
    if only and not (files := list(filter(chosen, files))):
        raise ParameterError(folder, f"no case is called '{only}', nor its notebook, nor its table")
    return files


def check_all(folder: Path, only: str = "") -> int:
    """Check the parameter files of a profile; prints a line per fault, returns the exit code."""
    files, faults, times = cases(folder, only), 0, []
    for path in files:
        notebook = project_root() / "notebooks" / f"{path.parent.name}.ipynb"
        try:
            check(notebook, path)
            times.append(_last_run(place(notebook, path)))
        except ParameterError as error:
            print(error, file=sys.stderr)
            faults += 1
    known = [seconds for seconds, device in times if device]
    total = f", {round(sum(known) / 60)} min by the last runs of {len(known)} of them" * bool(known)
    print(f"{len(files) - faults} of {len(files)} parameter files are valid{total}.", flush=True)
    return int(faults > 0)


def data_sets(folder: Path, only: str = "") -> list[str]:
    values = [load_parameters(path) for path in cases(folder, only)]
    named = {name for one in values for name in [one.get("dataset"), *one.get("datasets", [])]}
    return sorted(named - {None})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gsdd_lib.experiment.runner")
    parser.add_argument("notebook", type=Path, nargs="?", help="notebooks/<stem>.ipynb")
    parser.add_argument("params", type=Path, nargs="?", help="a parameter file, in params/ or not")
    parser.add_argument("--check-all", type=Path, metavar="FOLDER", help="check a whole profile")
    parser.add_argument("--data-sets", type=Path, metavar="FOLDER", help="print what it reads")
    parser.add_argument("--only", default="", help="a notebook, a case or a table of the paper")
    parser.add_argument("--ranks", type=int, default=1, help="processes that share the work")
    options = parser.parse_args(arguments)
    if not (options.params or options.check_all or options.data_sets):
        parser.error("a notebook and a parameter file are needed, or --check-all")
    try:
        if options.check_all:
            return check_all(options.check_all, options.only)
        if options.data_sets:
            print(*data_sets(options.data_sets, options.only))
        elif options.ranks > 1:
            return launch(options.ranks, options.notebook, options.params)
        else:
            return run(options.notebook, options.params)
    except GsddError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
