"""Every notebook with every parameter file of a profile; `make reproduce` calls it.

    snakemake --cores 2 --config profile=demo

One job per params/<profile>/<stem>/<case>.yaml. Its output is a marker in runs/, not the results:
those are committed, and a fresh clone's would look done. The executed notebook is a log, because
Snakemake deletes the outputs of a failed job; checkpoints are neither, so a killed job goes on.

A case that names the experts of another (experts_folder: runs/<profile>/<stem>/<case>/experts)
waits for it. Where there is one GPU, one notebook at a time: --cores 1, or make CORES=1.
"""

import sys
from pathlib import Path

from gsdd_lib.experiment.parameters import load_parameters
from gsdd_lib.experiment.runner import SOURCES

PROFILE = config.get("profile", "demo")
REPORT = "99_report"  # reads the results of all others, so it waits for them
# Threads per notebook. Two notebooks side by side, a thread each, train as many networks an hour
# as one after the other with two threads each, and never wait for one another's threads (measured:
# 20 epochs in 6.1 and 7.3 s at once, against 3.4 s with two threads). What is timed runs alone.
THREADS = {"02_image_fitting": 2, "12_efficiency": 2}
DEFAULT_THREADS = 1

LIBRARY = sorted(str(path) for pattern in SOURCES for path in Path().glob(pattern))
CASES = sorted(Path("params", PROFILE).glob("*/*.yaml"))
DONE = [f"runs/{PROFILE}/{path.parent.name}/{path.stem}/done" for path in CASES]


def before(wildcards):
    if wildcards.stem == REPORT:
        return [marker for marker in DONE if Path(marker).parts[2] != REPORT]
    case = Path("params", PROFILE, wildcards.stem, f"{wildcards.case}.yaml")
    experts = Path(load_parameters(case).get("experts_folder") or "none")
    marker = str(experts.with_name("done"))
    return [marker] if marker in DONE else []


rule all:
    input:
        DONE,


rule notebook:
    input:
        notebook="notebooks/{stem}.ipynb",
        params=f"params/{PROFILE}/{{stem}}/{{case}}.yaml",
        library=LIBRARY,
        before=before,
    output:
        touch(f"runs/{PROFILE}/{{stem}}/{{case}}/done"),
    log:
        f"runs/{PROFILE}/{{stem}}/{{case}}.ipynb",
    threads: lambda wildcards: THREADS.get(wildcards.stem, DEFAULT_THREADS)
    shell:
        "OMP_NUM_THREADS={threads} {sys.executable:q}"
        " -m gsdd_lib.experiment.runner {input.notebook:q} {input.params:q}"


# What others wait for comes first.
use rule notebook as experts with:
    wildcard_constraints:
        stem="03_expert_trajectories",
    output:
        touch(f"runs/{PROFILE}/{{stem}}/{{case}}/done"),
    priority: 1


ruleorder: experts > notebook
