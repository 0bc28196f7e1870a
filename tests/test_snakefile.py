"""The Snakefile in dry runs: processes and GPUs of a job, and the profile for Slurm without it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("snakemake")
ROOT = Path(__file__).parents[1]
SLURM = ["--profile", "profiles/slurm", "--executor", "dryrun"]  # its executor is not installed


@pytest.mark.parametrize(
    ("only", "ranks", "gpus"), [("04", "--ranks 2", "gpu=2"), ("12", "--ranks 1", "gpu=1")]
)
def test_processes_and_gpus_of_a_job(only: str, ranks: str, gpus: str):
    command = [sys.executable, "-m", "snakemake", *SLURM, "-n", "-p", "--forceall"]
    command += ["--config", "profile=demo", "nproc=2", "gpus=2"]
    environment = {**os.environ, "ONLY": only}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    jobs = (done.stdout + done.stderr).split("\nrule notebook:")[1:]
    assert jobs and all(ranks in job and gpus in job and "mem_mb=64000" in job for job in jobs)
