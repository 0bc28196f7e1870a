"""What a run leaves behind says how it goes; the form writes and starts only what is right."""

import contextlib
import io
import json
import math
import os
import signal
import time
from pathlib import Path

import ipywidgets
import nbclient
import nbformat
import pytest
import torch

from gsdd_lib.config import CodecConfig, DataConfig, DistillConfig, EvalConfig
from gsdd_lib.core.files import lock_folder
from gsdd_lib.data import load_data
from gsdd_lib.distillation.loop import distill
from gsdd_lib.experiment import live
from gsdd_lib.experiment.parameter_files import check, load_parameters
from gsdd_lib.experiment.parameters import ParameterError
from gsdd_lib.parameterizations.codec import Codec
from gsdd_lib.parameterizations.gaussian import GaussianImages

ROOT = Path(__file__).parents[2]
PARAMETERS = """steps: int = 60  # distillation steps
lr: float = 0.01  # learning rate
names: list[str] = ["a"]  # compared
fast: bool = False  # or slow
output_folder: str = "runs/smoke/01_small"  # figures
run_folder: str = "runs/smoke/01_small"  # checkpoints"""
SLOW = "import time\nprint('dm: 3/60  loss 1.5  (4 s)')\ntime.sleep(60 * (not fast))"


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of one small notebook; its second cell lasts a minute, but for ``fast``."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks").mkdir()
    head = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    title, body = nbformat.v4.new_markdown_cell("## Work"), nbformat.v4.new_code_cell(SLOW)
    made = nbformat.v4.new_notebook(cells=[head, title, body])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
    path = tmp_path / "notebooks" / "01_small.ipynb"
    nbformat.write(made, path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return path


def wait(true, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.1)


LOG = """# 04 · Fashion-MNIST
fit: 90/300  psnr_db 21.4  (10 s)
## Distill
about 2 min for 56 steps (0.26 s a step), until 11:04
gaussians dm, step     0: 76.9 (n=1) on validation  (9 s)
dm: 6/60  loss 23.93  (10 s)
dm: 31/60  loss nan  syn_lr 1e-02  (25 s)"""


def test_a_log_becomes_the_rows_of_what_is_counted_now():
    first, last = live.rows(LOG.splitlines())
    counted = {"label": "dm", "done": 6, "total": 60, "seconds": 10, "loss": 23.93}
    assert first == counted
    assert math.isnan(last.pop("loss"))
    counted = {"label": "dm", "done": 31, "total": 60, "seconds": 25, "syn_lr": 0.01}
    assert last == counted
    (fit,) = live.rows(LOG.splitlines()[:3])
    assert fit["label"] == "fit" and fit["psnr_db"] == 21.4
    assert live.rows(["", "nothing: 1 of 2"]) == []


def test_a_second_run_of_the_same_length_is_counted_from_its_own_beginning():
    lines = ["dm: 50/60  loss 1  (40 s)", "dm: 10/60  loss 3  (10 s)"]
    assert [row["done"] for row in live.rows(lines)] == [10]


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("3", "int", 3),
        (" 1e-3 ", "float", 0.001),
        ('["dm", "tm"]', "list[str]", ["dm", "tm"]),
        ("3", "str", "3"),
        ("many", "int", "many"),
        ("[1,", "list[int]", "[1,"),
    ],
)
def test_what_is_typed_becomes_a_value_of_its_type_or_stays_text(text, kind, value):
    assert live.parse(text, kind) == value


def test_a_form_writes_changed_values_that_the_runner_takes(notebook):
    values = {"steps": 7, "lr": 1e-5, "names": ["a"], "fast": True}
    run = live.write(notebook, values)
    expected = {"steps": 7, "lr": 1e-5, "fast": True}
    assert check(notebook, run.params) == load_parameters(run.params) == expected
    assert run.params.parent == Path.cwd() / "runs/forms/01_small"
    assert run.folder() == Path.cwd() / "runs/own/01_small" / run.params.stem
    assert live.write(notebook, values) == run != live.write(notebook, values | {"steps": 8})
    assert load_parameters(live.write(notebook, {"steps": 60}).params) == {}


@pytest.mark.parametrize("wrong", [{"steps": "many"}, {"stepz": 3}, {"lr": float("nan")}])
def test_a_wrong_value_writes_nothing(notebook, wrong):
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        live.write(notebook, wrong)
    assert not Path("runs").exists()


def test_a_runs_folders_say_in_what_state_it_is(notebook):
    run = live.write(notebook, {"steps": 7})
    assert run.state() == "not started" and run.owner() == 0
    with lock_folder(run.folder(), "case.lock"):
        assert run.state() == "running" and run.owner() == os.getpid()
    executed = f"{run.params.stem}.ipynb"
    (run.folder() / executed).touch()
    assert run.state() == "stopped"
    (run.folder() / executed).unlink()
    run.folder("figures").mkdir(parents=True)
    (run.folder("figures") / executed).touch()
    assert run.state() == "done"


def test_a_run_in_the_background_is_seen_at_work_and_stopped(notebook, monkeypatch):
    """SIGINT is ignored here, as by a kernel between two cells; the run hears it all the same."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = (run := live.write(notebook, {"steps": 7})).start()
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        assert os.getsid(process.pid) == process.pid != os.getsid(0)
        wait(lambda: live.rows(run.lines()))
        text = live.summary(run, True)
        assert run.owner() == process.pid and "Work · dm 3/60" in text
        run.stop()
        assert process.wait(60) == 130 and run.state() == "stopped"
        assert "goes on from the last checkpoint" in live.summary(run, False)
    finally:
        process.kill()


def test_how_a_run_ended_is_said_though_a_library_has_the_last_word(notebook):
    run = live.Run(notebook, Path("case.yaml"))
    run.folder().mkdir(parents=True)
    text = "[01 case] 3 images\n[01 case] stopped: interrupted.\nTraceback:\n  Kernel died\n"
    (run.folder() / "console.log").write_text(text)
    assert "<b>stopped: interrupted.</b>" in live.summary(run, False)


def test_a_finished_run_links_to_its_notebook(notebook):
    run = live.write(notebook, {"fast": True})
    assert run.start().wait(120) == 0 and run.state() == "done"
    text, stem = live.summary(run, False), run.params.stem
    assert "done in 0:" in text
    assert f'href="../figures/own/01_small/{stem}/{stem}.ipynb"' in text
    assert "steps" not in load_parameters(run.params)


@pytest.fixture
def distilled(notebook) -> tuple[live.Run, GaussianImages]:
    """A run's folder with a checkpoint, and the Gaussians that it is of."""
    data = load_data(DataConfig(dataset="digits"))
    packed, labels = torch.rand(20, 4, 7) + 0.5, torch.arange(10).repeat_interleave(2)
    more = {"resolution": data.resolution, "normalization": data.normalization}
    made, run = GaussianImages(packed, labels, **more), live.Run(notebook, Path("case.yaml"))
    config = DistillConfig(steps=2, eval_every=1, batch_real=2, width=4, select_networks=1)
    judged = EvalConfig(eval_network="ConvNetD1", eval_width=4, epochs=1)
    folder = run.folder() / "gaussians_dm"
    list(distill(made, data, config, judged, seed=0, folder=folder, codec=CodecConfig()))
    return run, made


def test_the_newest_checkpoint_is_drawn_with_its_history(distilled):
    run, _ = distilled
    (run.folder() / "checkpoint.00000000.pt").write_bytes(b"damaged")
    kept = run.checkpoints()
    assert list(kept) == ["gaussians dm"] and kept["gaussians dm"]["step"] == 2
    loss, accuracy, *pictures = live.draw(["dm: 1/2  loss 4  (1 s)"], kept).axes
    printed, history = loss.lines
    assert list(printed.get_ydata()) == [4.0] and list(history.get_xdata()) == [0, 1, 2]
    means = [row["mean"] for row in kept["gaussians dm"]["history"]]
    assert list(accuracy.lines[0].get_ydata()) == means
    assert sum(len(ax.images) for ax in pictures) == live.PICTURES


def test_a_checkpoints_images_are_those_of_its_parameters_as_they_are_rounded(distilled):
    run, made = distilled
    kept = run.checkpoints()["gaussians dm"]
    made.packed.data.copy_(kept["parameters"]["packed"])
    index = torch.linspace(0, 19, live.PICTURES).round().long()
    shown = (255 * made.pixels(index).clamp(0, 1)).round()
    assert isinstance(made.codec, Codec) and torch.equal(kept["pictures"].float(), shown)


def test_without_anything_yet_the_view_is_empty(notebook):
    run = live.Run(notebook, Path("case.yaml"))
    assert run.lines() == [] and run.checkpoints() == {}
    assert "starting" in live.summary(run, True) and "not started" in live.summary(run, False)
    assert all(not line.get_xdata().size for line in live.draw([], {}).axes[0].lines)


def test_the_form_has_a_field_for_each_parameter_and_files_fill_it(notebook):
    path = Path("params/demo/01_small/quick.yaml").resolve()
    path.parent.mkdir(parents=True)
    path.write_text("fast: true\nsteps: 9\n")
    form = live.Form(notebook)
    values = {name: field.value for name, field in form.fields.items()}
    assert values == {"steps": "60", "lr": "0.01", "names": "['a']", "fast": False}
    assert not form.fields["steps"].continuous_update  # a click would overtake it
    (files,) = [each for each in form.view.children if isinstance(each, ipywidgets.Dropdown)]
    assert [name for name, _ in files.options] == ["the smoke run", "demo: quick"]
    files.value = path
    assert form.fields["steps"].value == "9" and form.fields["fast"].value is True


def test_the_button_refuses_in_one_sentence_and_starts_nothing(notebook, monkeypatch):
    monkeypatch.setattr(live.Run, "start", lambda run: pytest.fail("it was started"))
    form = live.Form(notebook)
    form.fields["steps"].value = "many"
    form._start(None)
    assert "&#x27;steps&#x27; must be int, not &#x27;many&#x27; (text)." in form.said.value


def test_a_run_that_is_at_work_is_shown_and_not_started_again(notebook, monkeypatch):
    monkeypatch.setattr(live.Run, "start", lambda run: pytest.fail("it was started again"))
    form, run = live.Form(notebook), live.write(notebook, {"steps": 7})
    form.fields["steps"].value = "7"
    with lock_folder(run.folder(), "case.lock"):
        form._start(None)
        wait(lambda: form.shown.outputs)
        assert "running" in str(form.shown.outputs) and not form.stop.disabled
        form._start(None)
        assert "stop it first" in form.said.value
    wait(lambda: "not started" in str(form.shown.outputs) and form.stop.disabled)


def test_where_nobody_can_click_one_line_is_all(notebook):
    """papermill, nbconvert and nbval ask for no input; nothing of a widget is kept."""
    cell = nbformat.v4.new_code_cell('from gsdd_lib.experiment import live\nlive.form("01_small")')
    made = nbformat.v4.new_notebook(cells=[cell])
    nbclient.NotebookClient(made, kernel_name="python3").execute()
    (output,) = cell.outputs
    assert output.text == f"{live.NO_READER}\n"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):  # nor in a Python without a notebook
        live.form("01_small")
    assert printed.getvalue() == f"{live.NO_READER}\n"


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_every_notebook_ends_in_its_form(path):
    *_, text, last = json.loads(path.read_text("utf-8"))["cells"]
    source = "".join(last["source"])
    stem = "00_quickstart" if path.stem == "index" else path.stem
    assert "".join(text["source"]).startswith("## Run with other parameters")
    assert source == f'from gsdd_lib.experiment import live\n\nlive.form("{stem}")'
    assert last["metadata"]["tags"] == ["nbval-ignore-output"]
    assert ["".join(output["text"]) for output in last["outputs"]] == [f"{live.NO_READER}\n"]
