"""Records hold what a reader needs and no path of the machine; tables come back as written."""

import json
import shutil
import subprocess
import time

import numpy as np
import pandas as pd
import pytest
import torch

from gsdd_lib.experiment import results

needs_git = pytest.mark.skipif(not shutil.which("git"), reason="needs git")


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    return tmp_path


def test_folders_count_from_the_project_root_wherever_one_stands(project):
    assert results.open_folder("figures/demo/x/y") == project / "figures/demo/x/y"
    assert (project / "figures/demo/x/y").is_dir()
    assert results.open_folder(project / "elsewhere") == project / "elsewhere"


def test_record_has_the_facts_and_no_machine_path(project):
    parameters = {"seed": 0, "folder": "/data/secret/mnist", "steps": [1, 2], "lr": np.float64(0.5)}
    record = results.run_record(parameters, seconds=1.234, extra={"where": project / "a.bin"})
    path = results.write_record("figures/demo/x/y", record)
    text = path.read_text("utf-8")
    back = json.loads(text)
    assert str(project) not in text and "secret" not in text
    assert back["parameters"] == {"seed": 0, "folder": "mnist", "steps": [1, 2], "lr": 0.5}
    assert back["where"] == "a.bin"
    assert back["torch"] == torch.__version__ and back["threads"] == torch.get_num_threads()
    assert back["seconds"] == 1.23 and back["peak_memory_mib"] > 10
    assert back["device"]


def test_extra_may_not_replace_a_fact():
    with pytest.raises(ValueError, match="the run record has its own seconds"):
        results.run_record({}, seconds=1.0, extra={"seconds": 2.0})


def test_outside_git_the_commit_is_unknown(monkeypatch, project):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(project.parent))
    record = results.run_record({}, seconds=0.0)
    assert record["commit"] == "unknown" and record["modified"] is None


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@needs_git
def test_a_run_says_from_which_commits_checkpoints_it_may_have_gone_on(project, capsys):
    def run(checkpoint):
        """The record of a run that begins, leaves ``checkpoint``, and ends."""
        folder = results.open_run("figures/demo/x/y", "runs/demo/x/y")
        (folder / "dm").mkdir(exist_ok=True)
        (folder / "dm" / checkpoint).touch()
        record = results.run_record({"run_folder": "runs/demo/x/y"}, seconds=1.0)
        return record["commit"], record["resumed_from"]

    git(project, "init")
    commits = []
    for number in range(2):
        (project / "pyproject.toml").write_text(f"# {number}")
        git(project, "add", "pyproject.toml")
        git(project, "commit", "-m", "one more")
        for _ in range(2):  # the second run goes on from the first, at the same commit
            commit, resumed_from = run("checkpoint.pt")
            assert resumed_from == commits
        commits.append(commit)
    shown = capsys.readouterr().out
    assert "Figures and tables: figures/demo/x/y; checkpoints: runs/demo/x/y\n" in shown
    assert shown.count(f"Checkpoints of commit {commits[0][:10]} serve where") == 2
    (project / "runs/demo/x/y/dm/checkpoint.pt").unlink()  # nothing is left to go on from
    assert run("log.txt")[1] == []


@needs_git
def test_commit_and_whether_the_sources_differ_from_it(project):
    git(project, "init")
    git(project, "add", ".")
    git(project, "commit", "-m", "first")
    clean = results.run_record({}, seconds=0.0)
    assert len(clean["commit"]) == 40 and clean["modified"] is False
    results.write_record("figures/demo/x/y", clean)  # results are no change of the sources
    assert results.run_record({}, seconds=0.0)["modified"] is False
    (project / "pyproject.toml").write_text("[project]")
    assert results.run_record({}, seconds=0.0)["modified"] is True


def test_recorder_measures_the_block_and_then_stands_still():
    with results.Recorder() as recorder:
        time.sleep(0.02)
    assert 0.02 <= recorder.seconds < 1.0
    assert recorder.seconds == recorder.seconds


def test_a_record_sees_memory_that_was_given_back():
    before = results.run_record({}, seconds=0.0)["peak_memory_mib"]
    np.ones(int(before * 2**20 / 8) + 40 * 2**17)  # more than the peak so far, and 40 MiB
    assert results.run_record({}, seconds=0.0)["peak_memory_mib"] > before + 20


def test_tables_come_back_as_tidy_rows_with_their_place(project):
    for case, accuracy in (("ipc1", 79.123456), ("ipc10", 85.0)):
        frame = pd.DataFrame({"method": ["distilled"], "accuracy": [accuracy]})
        results.write_table(f"figures/demo/04_x/{case}", "results", frame)
    back = results.read_results("figures/demo")
    assert back.columns.tolist() == ["notebook", "case", "method", "accuracy"]
    assert back.values.tolist() == [
        ["04_x", "ipc1", "distilled", 79.1235],
        ["04_x", "ipc10", "distilled", 85.0],
    ]
    written = project / "figures/demo/04_x/ipc1/results.md"
    assert "| distilled | 79.12 |" in written.read_text()
    assert r"distilled & 79.12 \\" in written.with_suffix(".tex").read_text()


def test_a_table_that_a_report_gathered_is_not_read_as_a_result():
    frame = pd.DataFrame({"method": ["distilled"], "accuracy": [85.0]})
    results.write_table("figures/demo/04_x/ipc1", "budget", frame)
    gathered = results.read_results("figures/demo", "budget")
    results.write_table("figures/demo/99_report/report", "budget", gathered)
    assert results.read_results("figures/demo", "budget").equals(gathered)


def test_nothing_to_read_is_an_empty_frame():
    for empty in (results.read_results("figures/demo"), results.read_records("figures/demo")):
        assert empty.columns.tolist() == ["notebook", "case"] and empty.empty


def test_records_come_back_one_row_each():
    for case in ("a", "b"):
        results.write_record(f"figures/demo/x/{case}", results.run_record({}, seconds=2.0))
    records = results.read_records("figures/demo")
    assert records.case.tolist() == ["a", "b"] and records.seconds.tolist() == [2.0, 2.0]


def test_a_table_without_rows_has_none_to_read(tmp_path):
    for case, frame in {"a": pd.DataFrame(), "b": pd.DataFrame({"gain": [1.5]})}.items():
        results.write_table(tmp_path / "05_x" / case, "paired", frame)
    assert results.read_results(tmp_path, "paired").gain.tolist() == [1.5]
