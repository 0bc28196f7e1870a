"""Runs with other parameters, started and watched from inside a notebook.

    live.form("04_distill_fashion_mnist")
    live.watch("04_distill_fashion_mnist", "params/demo/04_distill_fashion_mnist/ipc1.yaml")

A run is a process in a session of its own: closing the tab or ending the kernel loses nothing.
"""

import ast
import contextlib
import fcntl
import hashlib
import html
import json
import os
import re
import signal
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import ipywidgets
import papermill
import torch
from IPython import get_ipython
from IPython.display import HTML, display
from matplotlib.figure import Figure
from torch import Tensor

from gsdd_lib.core.files import project_root, write_atomically
from gsdd_lib.data.normalization import ChannelNormalization
from gsdd_lib.distillation.state import DistillError, read_checkpoint
from gsdd_lib.experiment.parameter_files import FOLDERS, load_parameters, place, read_interface
from gsdd_lib.experiment.parameters import ParameterError
from gsdd_lib.experiment.pictures import show_image
from gsdd_lib.experiment.plots import PAGE, color
from gsdd_lib.experiment.widgets import CAPTION, SCREEN_DPI, VIEW
from gsdd_lib.parameterizations.codec import Codec
from gsdd_lib.parameterizations.gaussian import GaussianImages

PAUSE = 2.0  # seconds between two looks at a run
PICTURES, CURVES, LINES = 10, 6, 4  # images, distillations and lines of the log that are shown
NO_READER = "To run this notebook with other parameters, open it in JupyterLab and run this cell."
PROGRESS = re.compile(r"([^:]+): (\d+)/(\d+)((?:  \w+ \S+)*)  \((\d+) s\)")
Content = Mapping[str, Any]  # of a checkpoint


@dataclass(frozen=True)
class Run:
    """A notebook, a file of parameters for it, and the folders where the run leaves its traces."""

    notebook: Path
    params: Path

    def folder(self, kind: str = "runs") -> Path:
        """In runs/ checkpoints, logs and an unfinished notebook; in figures/ the results."""
        return project_root() / kind / place(self.notebook, self.params)

    def command(self) -> list[str]:
        """The command line, the same as in a terminal."""
        runner = [sys.executable, "-m", "gsdd_lib.experiment.runner"]
        return [*runner, str(self.notebook), str(self.params)]

    def start(self) -> subprocess.Popen:
        """Start the run in the background; what it prints goes to ``console.log``."""
        self.folder().mkdir(parents=True, exist_ok=True)
        with open(self.folder() / "console.log", "wb") as log:
            return subprocess.Popen(
                self.command(),
                cwd=project_root(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Between two cells a kernel ignores SIGINT, and its children would inherit that.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def stop(self) -> None:
        """Interrupt the run, as Ctrl-C in its terminal does; it can be resumed."""
        if owner := self.owner():
            with contextlib.suppress(ProcessLookupError):
                os.kill(owner, signal.SIGINT)

    def owner(self) -> int:
        """The number of the process that works in the folder; 0: none does."""
        with contextlib.suppress(OSError, ValueError), open(self.folder() / "case.lock") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read())
        return 0

    def state(self) -> str:
        """One of "running", "stopped", "done" and "not started"."""
        executed = f"{self.params.stem}.ipynb"
        if self.owner():
            return "running"
        if (self.folder() / executed).exists():  # a whole run takes it away
            return "stopped"
        return "done" if (self.folder("figures") / executed).exists() else "not started"

    def lines(self, log: str = "run.log") -> list[str]:
        """What the notebook (``run.log``) or the runner (``console.log``) printed so far."""
        with contextlib.suppress(OSError):
            return (self.folder() / log).read_text("utf-8", errors="replace").splitlines()
        return []

    def checkpoints(self) -> dict[str, Content]:
        """Of each distillation, by its folder's name, the newest checkpoint; the newest last."""
        found: dict[str, Content] = {}
        for path in sorted(self.folder().rglob("checkpoint.*.pt"), key=os.path.getmtime)[-CURVES:]:
            name = str(path.parent.relative_to(self.folder())).replace("_", " ")
            with contextlib.suppress(DistillError):
                content = read_checkpoint(path)
                if "history" in content:  # not of a network's training
                    found.pop(name, None)
                    found[{".": "distilled"}.get(name, name)] = content
        return found


def rows(lines: list[str]) -> list[dict[str, Any]]:
    """The progress of what a log counts last: label, done, total, seconds and the numbers shown."""
    found: list[dict[str, Any]] = []
    for match in filter(None, map(PROGRESS.fullmatch, lines)):
        label, done, total, numbers, seconds = match.groups()
        row = {"label": label, "done": int(done), "total": int(total), "seconds": int(seconds)}
        row |= {name: float(value) for name, value in re.findall(r"(\w+) (\S+)", numbers)}
        what = found and (found[-1]["label"], found[-1]["total"]) == (label, row["total"])
        found = [*found, row] if what and row["done"] >= found[-1]["done"] else [row]
    return found


def seconds_left(counted: list[dict[str, Any]]) -> float:
    """What the rest of the :func:`rows` will take at their pace."""
    first, last = counted[0] if len(counted) > 1 else {"done": 0, "seconds": 0}, counted[-1]
    pace = (last["seconds"] - first["seconds"]) / max(1, last["done"] - first["done"])
    return pace * (last["total"] - last["done"])


def images(checkpoint: Content) -> Tensor | None:
    """At most PICTURES of a checkpoint's images [n, C, H, W] as they are; None: no Gaussians."""
    packed, size = checkpoint["parameters"].get("packed"), checkpoint.get("resolution")
    if packed is None or size is None:
        return None
    channels, grids = 3 if packed.shape[2] >= 8 else 1, checkpoint["grids"]["images"]
    made = GaussianImages(
        packed,
        torch.zeros(len(packed)),
        resolution=tuple(size),
        normalization=ChannelNormalization((0.0,) * channels, (1.0,) * channels),
        opacity=packed.shape[2] % 2 == 1,  # 5 + 1 or 5 + 3 numbers are without one
        codec=Codec(**grids) if grids else None,
    )
    index = torch.linspace(0, len(packed) - 1, min(PICTURES, len(packed)))  # over all classes
    return made.pixels(index.round().long()).detach()


def draw(lines: list[str], checkpoints: Mapping[str, Content]) -> Figure:
    """Loss and validation accuracy over the steps, and the newest checkpoint's images."""
    figure = Figure((PAGE, 3.2), layout="constrained")  # without pyplot, for a thread's sake
    above, below = figure.subfigures(2, 1, height_ratios=[2.2, 1])
    axes = dict(zip(("loss", "mean"), above.subplots(1, 2), strict=True))
    if counted := [row for row in rows(lines) if "loss" in row]:
        loss = [row["loss"] for row in counted]
        axes["loss"].plot([row["done"] for row in counted], loss, color="0.6", lw=1, zorder=0)
    for number, (name, content) in enumerate(checkpoints.items()):
        look = {"label": name, "marker": "o", "ms": 2.5, "color": f"C{number}"}
        look |= {"color": color("distilled")} if len(checkpoints) == 1 else {}
        for key, ax in axes.items():
            steps = [row["step"] for row in content["history"]]
            ax.plot(steps, [row[key] for row in content["history"]], **look)
    for ax, label in zip(axes.values(), ("loss", "validation accuracy (%)"), strict=True):
        ax.set(xlabel="distillation step", ylabel=label)
        ax.grid(axis="y", lw=0.4, color="0.88")
    if len(checkpoints) > 1:
        axes["mean"].legend()
    name, newest = next(reversed(checkpoints.items()), ("", None))
    pixels = None if newest is None else images(newest)
    for ax, picture in zip(below.subplots(1, PICTURES), pixels or [], strict=False):
        show_image(ax, picture)
    return figure


def summary(run: Run, running: bool) -> str:
    """HTML: what the run does at this moment, or how it ended and where its results are."""
    lines, said = run.lines(), (run.lines("console.log") or [""])[-1].partition("] ")[2]
    if running:
        head = next((line.strip("# ") for line in reversed(lines) if line[:1] == "#"), "starting")
        if counted := rows(lines):
            label, done, total = (counted[-1][key] for key in ("label", "done", "total"))
            head += f" · {label} {done}/{total}, {seconds_left(counted):.0f} s left of it"
        text = html.escape("\n".join(lines[-LINES:]))
        return f"<b>running</b> · {html.escape(head)}<pre>{text}</pre>"
    home = run.folder("figures" if run.state() == "done" else "runs")
    made = [home / f"{run.params.stem}.ipynb", *sorted(home.glob("*.png"))]
    paths = [path.relative_to(project_root()).as_posix() for path in made if path.exists()]
    links = [f'<a href="../{path}">{Path(path).name}</a>' for path in paths]
    return f"<b>{run.state()}</b> · {html.escape(said)}<br>{' · '.join(links)}"


def parse(text: str, kind: str) -> Any:
    """What was typed, as a value of the type ``kind``; where it is none, the text itself."""
    with contextlib.suppress(ValueError, SyntaxError):
        return text if kind == "str" else ast.literal_eval(text.strip())
    return text


def write(notebook: Path, values: Mapping[str, Any]) -> Run:
    """Write those of ``values`` that are not the notebook's own to a file under runs/forms/.

    The file's name follows from its content: with equal values the same run goes on.

    Raises:
        ParameterError: a value is wrong; nothing is written.
    """
    face = read_interface(notebook)
    changed = {name: value for name, value in values.items() if value != face.defaults.get(name)}
    if faults := face.faults(changed):
        raise ParameterError("The form", *faults)
    text = "".join(f"{name}: {json.dumps(value)}\n" for name, value in changed.items()) or "{}\n"
    case = f"form_{hashlib.sha256(text.encode()).hexdigest()[:8]}.yaml"
    path = project_root() / "runs" / "forms" / notebook.stem / case
    write_atomically(path, text.encode())
    return Run(notebook, path)


def form(stem: str) -> None:
    """Show the parameters of ``notebooks/<stem>.ipynb`` in fields, and a button that runs it."""
    _show(lambda: Form(project_root() / "notebooks" / f"{stem}.ipynb"))


def watch(stem: str, params: str | Path) -> None:
    """Show a run of ``notebooks/<stem>.ipynb`` live, wherever it was started."""
    root = project_root()
    _show(lambda: Watch().follow(Run(root / "notebooks" / f"{stem}.ipynb", root / params)))


def _show(make: Callable[[], "Watch"]) -> None:
    """Display controls until the cell is run again; or one line where nobody can click them."""
    shell = get_ipython()
    request = shell.kernel.get_parent("shell") if hasattr(shell, "kernel") else {}
    if not request.get("content", {}).get("allow_stdin"):  # papermill, nbconvert, nbval
        print(NO_READER)
        return
    made, cell = make(), request["metadata"].get("cellId")

    def end(info: Any) -> None:
        if info.cell_id == cell:
            made.close()
            shell.events.unregister("pre_run_cell", end)

    shell.events.register("pre_run_cell", end)
    display(HTML(CAPTION))
    display({VIEW: made.view._repr_mimebundle_()[VIEW], "text/plain": ""}, raw=True)


class Watch:
    """A run's state, curves and images, which a thread looks at until the run ends."""

    def __init__(self) -> None:
        self.run, self._closed = None, threading.Event()
        self.stop = ipywidgets.Button(description="Stop", icon="stop", disabled=True)
        self.stop.on_click(lambda _: self.run.stop())
        self.shown = ipywidgets.Output()
        self.view = ipywidgets.VBox([self.stop, self.shown])

    def follow(self, run: Run, process: subprocess.Popen | None = None) -> Self:
        """Show ``run``; ``process``: the one that was started for it, if it was just now."""
        self.run = run
        threading.Thread(target=self._look, args=(run, process), daemon=True).start()
        return self

    def close(self) -> None:
        """End the thread, and take the controls away; the run goes on."""
        self._closed.set()
        self.view.close()

    def _look(self, run: Run, process: subprocess.Popen | None) -> None:
        running, seen, picture = True, None, []
        while running and not self._closed.is_set():
            # A process that was just started has not locked its folder yet.
            running = process.poll() is None if process else run.owner() > 0
            lines, checkpoints = run.lines(), run.checkpoints()
            now = [len(lines), *(content["step"] for content in checkpoints.values())]
            if now != seen and (checkpoints or rows(lines)):
                seen, buffer = now, BytesIO()
                draw(lines, checkpoints).savefig(buffer, format="png", dpi=2 * SCREEN_DPI)
                data = {"image/png": b64encode(buffer.getvalue()).decode()}
                shown = {"image/png": {"width": round(PAGE * SCREEN_DPI)}}
                picture = [{"output_type": "display_data", "data": data, "metadata": shown}]
            said = {"output_type": "display_data", "metadata": {}}
            said |= {"data": {"text/html": summary(run, running)}}
            self.stop.disabled, self.shown.outputs = not running, (said, *picture)
            self._closed.wait(PAUSE * running)


class Form(Watch):
    """A field per parameter above what a :class:`Watch` shows."""

    def __init__(self, notebook: Path) -> None:
        super().__init__()
        self.notebook, self.face = notebook, read_interface(notebook)
        about, rows = papermill.inspect_notebook(str(notebook)), []
        look = {"style": {"description_width": "11em"}, "layout": ipywidgets.Layout(width="25em")}
        self.fields: dict[str, Any] = {}
        for name in self.face.types.keys() - set(FOLDERS):
            kind = ipywidgets.Checkbox if self.face.types[name] == "bool" else ipywidgets.Text
            self.fields[name] = kind(description=name, **look)
            rows += [self.fields[name], ipywidgets.Label(about[name]["help"])]
        files = sorted((project_root() / "params").glob(f"*/{notebook.stem}/*.yaml"))
        named = [(f"{path.parts[-3]}: {path.stem}", path) for path in files]
        options = [("the smoke run", None), *named]
        self.files = ipywidgets.Dropdown(options=options, description="start from", **look)
        self.files.observe(lambda change: self.fill(change["new"]), names="value")
        self.start = ipywidgets.Button(description="Run", button_style="primary", icon="play")
        self.start.on_click(self._start)
        self.said = ipywidgets.HTML()
        grid = ipywidgets.Layout(grid_template_columns="26em 1fr", max_height="22em")
        buttons = ipywidgets.HBox([self.start, self.stop, self.said])
        parts = [self.files, ipywidgets.GridBox(rows, layout=grid), buttons, self.shown]
        self.view = ipywidgets.VBox(parts)
        self.fill(None)

    def fill(self, path: Path | None) -> None:
        """Put the values of a file of parameters into the fields."""
        values = {**self.face.defaults, **(load_parameters(path) if path else {})}
        for name, field in self.fields.items():
            value = values[name]
            field.value = value if isinstance(value, str | bool) else repr(value)

    def values(self) -> dict[str, Any]:
        """What stands in the fields."""
        kinds = self.face.types
        typed = {name: field.value for name, field in self.fields.items()}
        return {n: v if isinstance(v, bool) else parse(v, kinds[n]) for n, v in typed.items()}

    def _start(self, _button: Any) -> None:
        if self.run and self.run.owner():
            self.said.value = "a run is under way; stop it first"
            return
        try:
            run = write(self.notebook, self.values())
        except ParameterError as error:
            self.said.value = f"<span style='color:firebrick'>{html.escape(str(error))}</span>"
            return
        self.said.value = f"values in runs/forms/{self.notebook.stem}/{run.params.name}"
        self.follow(run, run.start())
