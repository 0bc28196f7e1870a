"""Runs with other parameters, started and watched from inside a notebook by :func:`form`. A run is
a process in a session of its own: closing the tab or ending the kernel loses nothing."""

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
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import ipywidgets
import papermill
from IPython import get_ipython
from IPython.display import display
from matplotlib.figure import Figure

from gsdd_lib.core.files import project_root, write_atomically
from gsdd_lib.distillation.state import PICTURES, DistillError, read_checkpoint
from gsdd_lib.experiment.parameter_files import FOLDERS, load_parameters, place, read_interface
from gsdd_lib.experiment.parameters import ParameterError
from gsdd_lib.experiment.pictures import show_image
from gsdd_lib.experiment.plots import PAGE
from gsdd_lib.experiment.widgets import CAPTION, MIME, SCREEN_DPI

PAUSE = 2.0  # seconds between two looks at a run
CURVES, LINES = 6, 4  # distillations and lines of the log that are shown
NO_READER = "To run this notebook with other parameters, open it in JupyterLab and run this cell."
PROGRESS = re.compile(r"([^:]+): (\d+)/(\d+)((?:  \w+ \S+)*)  \((\d+) s\)")


@dataclass(frozen=True)
class Run:
    """A notebook with a file of parameters, known by what it leaves in its folders."""

    notebook: Path
    params: Path

    def folder(self, kind: str = "runs") -> Path:
        """In runs/: checkpoints, logs and the notebook while it is unfinished; or in figures/."""
        return project_root() / kind / place(self.notebook, self.params)

    def start(self) -> subprocess.Popen:
        """Start the run in the background; what it prints goes to ``console.log``."""
        command = [sys.executable, "-m", "gsdd_lib.experiment.runner", self.notebook, self.params]
        self.folder().mkdir(parents=True, exist_ok=True)
        # Between two cells a kernel ignores SIGINT, and its children would inherit that.
        own = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
        own |= {"cwd": project_root(), "stdin": subprocess.DEVNULL, "start_new_session": True}
        with open(self.folder() / "console.log", "wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, **own)

    def stop(self) -> None:
        """Interrupt the run, as Ctrl-C in its terminal does; it can be resumed."""
        if owner := self.owner():
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
        if self.owner():
            return "running"
        for kind, state in (("runs", "stopped"), ("figures", "done")):
            if (self.folder(kind) / f"{self.params.stem}.ipynb").exists():
                return state
        return "not started"

    def lines(self, log: str = "run.log") -> list[str]:
        """What the notebook (``run.log``) or the runner (``console.log``) printed so far."""
        with contextlib.suppress(OSError):
            return (self.folder() / log).read_text("utf-8", errors="replace").splitlines()
        return []

    def checkpoints(self) -> dict[str, dict[str, Any]]:
        """Of each distillation, by its folder's name, the newest checkpoint; the newest last."""
        found: dict[str, dict[str, Any]] = {}
        for path in sorted(self.folder().rglob("checkpoint.*.pt"), key=os.path.getmtime)[-CURVES:]:
            inside = path.parent != self.folder()
            name = path.parent.name.replace("_", " ") if inside else "distilled"
            with contextlib.suppress(DistillError):
                content = read_checkpoint(path)
                if "pictures" in content:  # not of a network's training, nor of an older version
                    found = {key: found[key] for key in found if key != name} | {name: content}
        return found


def rows(lines: list[str]) -> list[dict[str, Any]]:
    """What a log counts last: label, done, total, seconds and the numbers shown, line by line."""
    found: list[dict[str, Any]] = []
    for match in filter(None, map(PROGRESS.fullmatch, lines)):
        label, done, total, numbers, seconds = match.groups()
        row = {"label": label, "done": int(done), "total": int(total), "seconds": int(seconds)}
        row |= {name: float(value) for name, value in re.findall(r"(\w+) (\S+)", numbers)}
        same = found and all(row[key] == found[-1][key] for key in ("label", "total"))
        found = [*found, row] if same and row["done"] >= found[-1]["done"] else [row]
    return found


def draw(lines: list[str], checkpoints: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Loss and validation accuracy over the steps, and the newest checkpoint's images."""
    figure = Figure((PAGE, 3.2), layout="constrained")  # without pyplot, for a thread's sake
    layout = [["loss"] * (PICTURES // 2) + ["mean"] * (PICTURES // 2), [*range(PICTURES)]]
    axes, pictures = figure.subplot_mosaic(layout, height_ratios=[2.2, 1]), []
    counted = [row for row in rows(lines) if "loss" in row]
    axes["loss"].plot(*([row[key] for row in counted] for key in ("done", "loss")), color="0.6")
    for key, label in (("loss", "loss"), ("mean", "validation accuracy (%)")):
        axes[key].set(xlabel="distillation step", ylabel=label)
        for name, content in checkpoints.items():
            columns = ([row[what] for row in content["history"]] for what in ("step", key))
            axes[key].plot(*columns, marker="o", ms=2.5, label=name)
    for name, newest in [*checkpoints.items()][-1:]:
        axes["mean"].legend()
        axes["loss"].set_title(f"{name}, step {newest['step']}", loc="left")
        pictures = newest["pictures"] / 255
    for number in range(PICTURES):
        axes[number].set_axis_off()
        if number < len(pictures):
            show_image(axes[number], pictures[number])
    return figure


def summary(run: Run, running: bool) -> str:
    """HTML: what the run does at this moment, or how it ended and where its results are."""
    lines, own = run.lines(), [line for line in run.lines("console.log") if line[:1] == "["]
    said = (own or [""])[-1].partition("] ")[2]  # a library may have the last word
    if running:
        head = next((line.strip("# ") for line in reversed(lines) if line[:1] == "#"), "starting")
        for row in rows(lines)[-1:]:
            head += f" · {row['label']} {row['done']}/{row['total']}"
        text = html.escape("\n".join(lines[-LINES:]))
        return f"<b>running</b> · {html.escape(head)}<pre>{text}</pre>"
    home = run.folder("figures" if run.state() == "done" else "runs")
    made = [home / f"{run.params.stem}.ipynb", *sorted(home.glob("*.png"))]
    paths = [path.relative_to(project_root()).as_posix() for path in made if path.exists()]
    links = " · ".join(f'<a href="../{path}">{Path(path).name}</a>' for path in paths)
    return f"<b>{html.escape(said or run.state())}</b><br>{links}"


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
    """Show the parameters of ``notebooks/<stem>.ipynb`` in fields, and a button that runs it, until
    the cell is run again; or one line where nobody can click."""
    shell = get_ipython()
    request = shell.kernel.get_parent("shell") if hasattr(shell, "kernel") else {}
    if not request.get("content", {}).get("allow_stdin"):  # papermill, nbconvert, nbval
        print(NO_READER)
        return
    made, cell = (
        Form(project_root() / "notebooks" / f"{stem}.ipynb"),
        request["metadata"].get("cellId"),
    )

    def end(info: Any) -> None:
        if info.cell_id == cell:
            made.closed.set()
            shell.events.unregister("pre_run_cell", end)

    shell.events.register("pre_run_cell", end)
    display({"text/html": CAPTION}, raw=True)
    display({MIME: made.view._repr_mimebundle_()[MIME], "text/plain": ""}, raw=True)


class Form:
    """A field per parameter of a notebook, and the state, curves and images of the run that was
    started with them, which a thread looks at until the run ends."""

    def __init__(self, notebook: Path) -> None:
        self.notebook, self.face, self.run = notebook, read_interface(notebook), None
        self.closed, self.shown, self.said = (
            threading.Event(),
            ipywidgets.Output(),
            ipywidgets.HTML(),
        )
        self.picture = ipywidgets.Image(layout={"width": f"{PAGE * SCREEN_DPI}px"})
        look = {"style": {"description_width": "11em"}, "layout": {"width": "25em"}}
        about, self.fields = papermill.inspect_notebook(str(notebook)), {}
        for name in [name for name in self.face.types if name not in FOLDERS]:
            kind = ipywidgets.Checkbox if self.face.types[name] == "bool" else ipywidgets.Text
            self.fields[name] = kind(description=name, **look)
            self.fields[name].continuous_update = False  # a click must not overtake what is typed
        labels = [ipywidgets.Label(about[name]["help"]) for name in self.fields]
        rows = [each for row in zip(self.fields.values(), labels, strict=True) for each in row]
        paths = sorted((project_root() / "params").glob(f"*/{notebook.stem}/*.yaml"))
        named = [("the smoke run", ""), *((f"{p.parts[-3]}: {p.stem}", p) for p in paths)]
        files = ipywidgets.Dropdown(options=named, description="start from", **look)
        files.observe(lambda change: self._fill(change["new"]), names="value")
        start = ipywidgets.Button(description="Run", button_style="primary", icon="play")
        start.on_click(self._start)
        self.stop = ipywidgets.Button(description="Stop", icon="stop", disabled=True)
        self.stop.on_click(lambda _: self.run.stop())
        grid = {"grid_template_columns": "26em 1fr", "max_height": "22em"}
        fields, line = ipywidgets.GridBox(rows, layout=grid), [start, self.stop, self.said]
        self.view = ipywidgets.VBox([files, fields, ipywidgets.HBox(line), self.shown])
        self._fill("")

    def _fill(self, path: Path | str) -> None:
        values = {**self.face.defaults, **(load_parameters(path) if path else {})}
        for name, field in self.fields.items():
            value = values[name]
            field.value = value if isinstance(value, str | bool) else repr(value)

    def _start(self, _button: Any) -> None:
        typed = {name: field.value for name, field in self.fields.items()}
        kinds = self.face.types
        values = {n: v if isinstance(v, bool) else parse(v, kinds[n]) for n, v in typed.items()}
        try:
            if not self.stop.disabled:
                raise ParameterError("The form", "a run is under way; stop it first")
            self.run = write(self.notebook, values)
        except ParameterError as error:
            self.said.value = f"<span style='color:firebrick'>{html.escape(str(error))}</span>"
            return
        self.said.value = f"values in runs/forms/{self.notebook.stem}/{self.run.params.name}"
        self.stop.disabled = False
        process = None if self.run.owner() else self.run.start()  # started before: shown again
        threading.Thread(target=self._look, args=(self.run, process), daemon=True).start()

    def _look(self, run: Run, process: subprocess.Popen | None) -> None:
        running, seen = True, None
        while running and not self.closed.is_set():
            # A process that was just started has not locked its folder yet.
            running = process.poll() is None if process else run.owner() > 0
            lines, checkpoints, buffer = run.lines(), run.checkpoints(), BytesIO()
            text = {"data": {"text/html": summary(run, running)}, "metadata": {}}
            self.shown.outputs = ({"output_type": "display_data", **text},)
            self.stop.disabled = not running
            now = [len(lines), *(content["step"] for content in checkpoints.values())]
            if now != seen and (checkpoints or rows(lines)):
                draw(lines, checkpoints).savefig(buffer, format="png", dpi=2 * SCREEN_DPI)
                seen, self.picture.value = now, buffer.getvalue()
                if self.picture not in self.view.children:
                    self.view.children += (self.picture,)
            self.closed.wait(PAUSE * running)
