"""The runner end to end in a project of its own, with the kernel of the Python under test."""

import json
from pathlib import Path

import pytest

pytest.importorskip("papermill")

from experiment.test_parameters import CELL, write_case, write_notebook

from gsdd_lib.experiment import runner

WORK = """import json, os, pathlib, sys
root = pathlib.Path.cwd().parent
print("half a line, ", end="")
print(f"{networks} networks")
print("bar  50%\\rbar 100%", file=sys.stderr)
folder = root / output_folder
folder.mkdir(parents=True)
seen = [networks, eval_lr, run_folder, os.environ["TQDM_DISABLE"]]
(folder / "seen.json").write_text(json.dumps(seen))
"""


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """An empty project, as the working directory."""
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_case_runs_with_its_parameters_and_its_folders(project, capsys):
    notebook = write_notebook(project, CELL, WORK).relative_to(project)
    case = write_case(project, "networks: 3\n").relative_to(project)
    assert runner.main([str(notebook), str(case)]) == 0
    seen = json.loads((project / "figures/demo/04_x/ipc1/seen.json").read_text())
    assert seen == [3, 0.01, "runs/demo/04_x/ipc1", "1"]
    shown = capsys.readouterr().out
    assert "[04 ipc1] half a line, 3 networks\n" in shown
    assert "[04 ipc1] bar 100%\n" in shown and "50%" not in shown
    assert "[04 ipc1] done in 0:0" in shown
    assert "half a line, 3 networks" in (project / "runs/demo/04_x/ipc1.log").read_text()
    executed = (project / "runs/demo/04_x/ipc1.ipynb").read_text()
    assert str(project) not in executed


def test_a_failing_cell_is_one_sentence_and_exit_code_one(project, capsys):
    notebook = write_notebook(project, CELL, "raise RuntimeError('no such luck\\nsecond line')")
    assert runner.main([str(notebook), str(write_case(project, "{}"))]) == 1
    sentence = capsys.readouterr().err.strip().splitlines()[-1]
    assert sentence == (
        "[04 ipc1] stopped: RuntimeError: no such luck; "
        "the executed notebook is runs/demo/04_x/ipc1.ipynb."
    )
    assert "no such luck" in (project / "runs/demo/04_x/ipc1.ipynb").read_text()


def test_a_wrong_file_stops_before_anything_runs(project, capsys):
    notebook = write_notebook(project, CELL, WORK)
    assert runner.main([str(notebook), str(write_case(project, "networks: 0\n"))]) == 1
    assert "EvalConfig: networks" in capsys.readouterr().err
    assert not (project / "runs").exists() and not (project / "figures").exists()


def test_check_runs_nothing(project, capsys):
    notebook, case = write_notebook(project, CELL, WORK), write_case(project, "networks: 3\n")
    assert runner.main([str(notebook), str(case), "--check"]) == 0
    assert capsys.readouterr().out.endswith("ipc1.yaml: valid.\n")
    assert not (project / "runs").exists()


def test_check_all_names_every_fault(project, capsys):
    write_notebook(project, CELL)
    case = write_case(project, "networks: 3\n")
    case.with_name("ipc10.yaml").write_text("network: 3\n")
    case.with_name("ipc50.yaml").write_text("eval_lr: fast\n")
    assert runner.main(["--check-all", "params/demo"]) == 1
    shown = capsys.readouterr()
    assert shown.out == "1 of 3 parameter files are valid.\n"
    assert "did you mean 'networks'?" in shown.err and "'eval_lr' must be float" in shown.err


def test_check_all_of_an_unknown_profile_names_the_nearest(project, capsys):
    write_case(project, "{}")
    assert runner.main(["--check-all", "params/demos"]) == 1
    assert "no parameter files, did you mean 'demo'?" in capsys.readouterr().err


def test_same_inputs_keep_their_checkpoints_and_others_are_set_aside(project):
    folder = project / "runs/demo/04_x/ipc1"
    runner._open_run(folder, "a")
    (folder / "checkpoint").write_text("of a")
    runner._open_run(folder, "a")
    assert (folder / "checkpoint").read_text() == "of a"
    runner._open_run(folder, "b")
    assert not (folder / "checkpoint").exists()
    assert (folder.parent / "ipc1.before" / "checkpoint").read_text() == "of a"


def test_fingerprint_sees_cells_parameters_and_library_but_no_outputs(project):
    notebook, case = write_notebook(project, CELL, WORK), write_case(project, "{}")
    library = project / "gsdd_lib" / "x.py"
    library.parent.mkdir()
    prints = [runner._fingerprint(notebook, case)]
    content = json.loads(notebook.read_text())
    content["cells"][1]["execution_count"] = 7
    notebook.write_text(json.dumps(content))
    assert runner._fingerprint(notebook, case) == prints[0]
    for change in (
        lambda: library.write_text("x = 1"),
        lambda: case.write_text("networks: 3"),
        lambda: write_notebook(project, CELL, WORK + "1"),
    ):
        change()
        prints.append(runner._fingerprint(notebook, case))
    assert len(set(prints)) == 4
