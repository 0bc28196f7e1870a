"""Progress is text: one line that renews itself, and a line that says what is done at the end."""

import io
import re
import sys

import pytest

from gsdd_lib.core import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def watch(monkeypatch) -> Terminal:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(sys, "stderr", Terminal())
    return sys.stderr


def test_a_terminal_sees_one_line_renewed_and_the_last_state(monkeypatch):
    terminal = watch(monkeypatch)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_UPDATES", 0)
    with progress.Progress(4, "fit") as bar:
        for _ in range(4):
            bar.update(psnr_db=25.125)
    text = terminal.getvalue()
    assert text.count("\n") == 1 and text.endswith("\n")
    assert "fit: 2/4  psnr_db 25.12" in text and re.search(r"\(0 s, \d:\d\d:\d\d left\)", text)
    assert text.rsplit("\r", 1)[1].startswith("fit: 4/4  psnr_db 25.12  (0 s)")


def test_frequent_updates_do_not_flood_the_terminal(monkeypatch):
    terminal = watch(monkeypatch)
    with progress.Progress(1000, "fit") as bar:
        for _ in range(1000):
            bar.update()
    assert 1 <= terminal.getvalue().count("\r") < 10


def test_a_batch_run_prints_a_line_now_and_then(monkeypatch, capsys):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    with progress.Progress(3, "distil", done=1) as bar:
        bar.update(loss=0.5)
        monkeypatch.setattr(bar, "_pause", 0)
        bar.update(loss=0.25)
    assert capsys.readouterr().out == "distil: 3/3  loss 0.25  (0 s)\n"


def test_what_is_shown_says_how_long_the_rest_takes(monkeypatch, capsys):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    with progress.Progress(400, "distil", done=100) as bar:
        bar._started -= 20
        bar._pause = 0
        bar.update(100)
    assert capsys.readouterr().out == "distil: 200/400  (20 s, 0:00:40 left)\n"


def test_a_notebook_keeps_one_text_output_and_no_widget(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("TQDM_DISABLE", "0")
    source = """from gsdd_lib.core.progress import Progress
with Progress(3, "fit") as bar:
    for _ in range(3):
        bar.update(psnr_db=30.0)"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbclient.NotebookClient(notebook, kernel_name="python3").execute()
    (output,) = notebook.cells[0].outputs
    assert output.data == {"text/plain": "fit: 3/3  psnr_db 30  (0 s)"}
    assert "widgets" not in notebook.metadata
