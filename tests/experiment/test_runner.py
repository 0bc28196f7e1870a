"""The runner end to end in a project of its own, with the kernel of the Python under test."""

import json
from pathlib import Path

import pytest

pytest.importorskip("papermill")

from experiment.test_parameter_files import CELL, write_case, write_notebook

from gsdd_lib.core.files import lock_folder
from gsdd_lib.experiment import runner

WORK = """import json, os, pathlib, sys
root = pathlib.Path.cwd().parent
print("half a line, ", end="")
print(f"{networks} networks")
print("bar  50%\\rbar 100%", file=sys.stderr)
folder = root / output_folder
folder.mkdir(parents=True, exist_ok=True)
seen = [networks, eval_lr, run_folder, os.environ["TQDM_DISABLE"]]
seen += [os.environ["MALLOC_MMAP_MAX_"], os.environ["MALLOC_TRIM_THRESHOLD_"]]
(folder / "seen.json").write_text(json.dumps(seen))
"""


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """An empty project, as the working directory."""
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_case_runs_with_its_parameters_and_its_folders(project, capsys, monkeypatch):
    monkeypatch.delenv("MALLOC_MMAP_MAX_", raising=False)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "5000")  # the user's own choice
    notebook = write_notebook(project, CELL, WORK).relative_to(project)
    case = write_case(project, "networks: 3\n").relative_to(project)
    assert runner.main([str(notebook), str(case)]) == 0
    seen = json.loads((project / "figures/demo/04_x/ipc1/seen.json").read_text())
    assert seen == [3, 0.01, "runs/demo/04_x/ipc1", "1", "0", "5000"]
    shown = capsys.readouterr().out
    assert "[04 ipc1] half a line, 3 networks\n" in shown
    assert "[04 ipc1] bar 100%\n" in shown and "50%" not in shown
    assert "[04 ipc1] done in 0:0" in shown
    assert "half a line, 3 networks" in (project / "runs/demo/04_x/ipc1/run.log").read_text()
    executed = (project / "figures/demo/04_x/ipc1/ipc1.ipynb").read_text()
    assert str(project) not in executed and "half a line" in executed


def test_a_failing_cell_is_one_sentence_and_exit_code_one(project, capsys):
    notebook = write_notebook(project, CELL, "raise RuntimeError('no such luck\\nsecond line')")
    assert runner.main([str(notebook), str(write_case(project, "{}"))]) == 1
    sentence = capsys.readouterr().err.strip().splitlines()[-1]
    assert sentence == (
        "[04 ipc1] stopped: RuntimeError: no such luck; "
        "the executed notebook is runs/demo/04_x/ipc1/ipc1.ipynb."
    )
    assert "no such luck" in (project / "runs/demo/04_x/ipc1/ipc1.ipynb").read_text()
    assert not (project / "figures").exists()


def test_a_wrong_file_stops_before_anything_runs(project, capsys):
    notebook = write_notebook(project, CELL, WORK)
    assert runner.main([str(notebook), str(write_case(project, "networks: 0\n"))]) == 1
    assert "'networks': Input should be" in capsys.readouterr().err
    assert not (project / "runs").exists() and not (project / "figures").exists()


def test_check_all_names_every_fault(project, capsys):
    write_notebook(project, CELL)
    case = write_case(project, "networks: 3\n")
    case.with_name("ipc10.yaml").write_text("network: 3\n")
    case.with_name("ipc50.yaml").write_text("eval_lr: fast\n")
    assert runner.main(["--check-all", "params/demo"]) == 1
    shown = capsys.readouterr()
    assert shown.out == "1 of 3 parameter files are valid.\n"
    assert "did you mean 'networks'?" in shown.err and "'eval_lr' must be float" in shown.err
    assert not (project / "runs").exists()


def test_check_all_of_an_unknown_profile_names_the_nearest(project, capsys):
    write_case(project, "{}")
    assert runner.main(["--check-all", "params/demos"]) == 1
    assert "no parameter files, did you mean 'demo'?" in capsys.readouterr().err


def test_nothing_in_a_runs_folder_is_moved_or_deleted_by_an_edit(project):
    """Experts and checkpoints survive edits of the library, the notebook and the parameters."""
    notebook, case = write_notebook(project, CELL, "pass"), write_case(project, "{}")
    experts = project / "runs/demo/04_x/ipc1/experts/expert_000.safetensors"
    experts.parent.mkdir(parents=True)
    experts.write_text("hours of work")
    for edit in (
        lambda: (project / "gsdd_lib.py").write_text("# a comment"),
        lambda: write_notebook(project, CELL, "pass  # a comment"),
        lambda: case.write_text("networks: 3"),
    ):
        edit()
        assert runner.main([str(notebook), str(case)]) == 0
    assert experts.read_text() == "hours of work"
    assert [path.name for path in (project / "runs/demo/04_x").iterdir()] == ["ipc1"]


def test_a_second_run_of_a_case_at_once_is_refused_in_one_sentence(project, capsys):
    notebook, case = write_notebook(project, CELL, WORK), write_case(project, "{}")
    with lock_folder(project / "runs/demo/04_x/ipc1", "case.lock"):
        assert runner.main([str(notebook), str(case)]) == 1
    sentence = capsys.readouterr().err
    assert "is at work in" in sentence and sentence.count("\n") == 1
    assert not (project / "figures").exists()
    assert runner.main([str(notebook), str(case)]) == 0


def test_the_last_run_says_how_long_the_next_one_takes(project, capsys):
    notebook, case = write_notebook(project, CELL, "pass"), write_case(project, "{}")
    record = project / "figures/demo/04_x/ipc1/run.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"seconds": 171.2, "device": "AMD EPYC"}))
    assert runner.main(["--check-all", "params/demo"]) == 0
    assert "valid, 3 min by the last runs of 1 of them." in capsys.readouterr().out
    assert runner.main([str(notebook), str(case)]) == 0
    assert "[04 ipc1] about 3 min (last run: 2:51 on AMD EPYC); " in capsys.readouterr().out


def test_a_file_of_ones_own_says_where_its_results_go(project, capsys):
    notebook = write_notebook(project, CELL, WORK)
    (project / "mine.yaml").write_text("networks: 3")
    assert runner.main([str(notebook), "mine.yaml"]) == 0
    assert "results go to figures/own/04_x/mine" in capsys.readouterr().out
    assert (project / "figures/own/04_x/mine/seen.json").is_file()


@pytest.mark.parametrize(
    ("only", "names"),
    [
        ("", ["a", "b", "c"]),
        ("04", ["a", "b"]),
        ("04_x", ["a", "b"]),
        ("b", ["b"]),
        ("table_1", ["a"]),
        ("table_15", ["c"]),
    ],
)
def test_only_chooses_by_notebook_case_or_table(project, only, names):
    for place, text in {
        "04_x/a": "paper_item: table_1_tm_imagenet_128_ipc1\ndataset: imagewoof",
        "04_x/b": "dataset: digits  # small\n",
        "12_y/c": "paper_item: table_15_cifar_tm\ndatasets: [cifar10, digits]",
    }.items():
        path = project / "params/demo" / f"{place}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    folder = Path("params/demo")
    assert [path.stem for path in runner.cases(folder, only)] == names
    assert runner.data_sets(folder) == ["cifar10", "digits", "imagewoof"]


def test_only_that_chooses_nothing_says_so(project, capsys):
    write_case(project, "{}")
    assert runner.main(["--check-all", "params/demo", "--only", "99"]) == 1
    assert "no case is called '99', nor its notebook, nor its table" in capsys.readouterr().err


RANKED = """import json, os, pathlib, time
rank, place = os.environ["RANK"], pathlib.Path.cwd().parent / output_folder
place.mkdir(parents=True, exist_ok=True)
(place / "seen.json").write_text(json.dumps([rank, os.environ["WORLD_SIZE"], run_folder]))
print(f"here is rank {rank}")
"""


@pytest.fixture
def from_here(monkeypatch) -> None:
    """The kernels and torchrun's processes find the library, whatever the working directory."""
    monkeypatch.setenv("PYTHONPATH", str(Path(runner.__file__).parents[2]))


def test_the_first_of_two_ranks_leaves_the_results(project, from_here, capfd):
    notebook = write_notebook(project, CELL, RANKED)
    assert runner.main([str(notebook), str(write_case(project, "{}")), "--ranks", "2"]) == 0
    seen = json.loads((project / "figures/demo/04_x/ipc1/seen.json").read_text())
    assert seen == ["0", "2", "runs/demo/04_x/ipc1"]
    shown = capfd.readouterr().out
    assert shown.count("[04 ipc1] here is rank 0\n") == 1 and "rank 1" not in shown
    assert "here is rank 1" in (project / "runs/demo/04_x/ipc1/rank_1.log").read_text()
    kept = [path.name for path in (project / "figures/demo/04_x/ipc1").iterdir()]
    assert sorted(kept) == ["ipc1.ipynb", "seen.json"]


def test_kernels_share_no_ports(project, from_here):
    code = "from ipykernel.connect import get_connection_file as own; from pathlib import Path\n"
    code += 'assert \'"transport": "ipc"\' in Path(own()).read_text()'
    notebook = write_notebook(project, CELL, code)
    assert runner.main([str(notebook), str(write_case(project, "{}"))]) == 0


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_one_sentence(rank: int, project, from_here, capfd):
    code = f"if rank == '{rank}': os.kill(os.getppid(), 9)\ntime.sleep(60)"
    cell = CELL.replace("a name = a data set", "a data set")  # which papermill cannot parse
    notebook = write_notebook(project, cell, RANKED + code)
    assert runner.main([str(notebook), str(write_case(project, "{}")), "--ranks", "2"]) == 1
    shown = capfd.readouterr().err
    assert len(shown.strip().splitlines()) == 1, shown
    sentence = shown.strip()
    assert sentence.startswith(
        "rank 0 was killed (signal 9), the same command goes on from the last checkpoint."
        if rank == 0
        else "[04 ipc1] stopped: another rank has ended, the same command goes on from the last"
    )
