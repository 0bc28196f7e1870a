"""Every notebook with every parameter file of a profile; `make reproduce` calls it.

    ONLY=04 snakemake --cores 2 --nolock --config profile=demo

ONLY, where it is set, is a notebook, a case or a table of the paper, as for the runner.

One job per params/<profile>/<stem>/<case>.yaml. Its output is a marker in runs/, not the results:
those are committed, and a fresh clone's would look done. Checkpoints are no outputs, so Snakemake
deletes none of them, and a killed job goes on.

--nolock: Snakemake's own lock outlives a killed run, and every later one would stop and ask for
--unlock. The runner locks each case instead, and the system releases that lock with the process.

A case that names the experts of another (experts_folder: runs/<profile>/<stem>/<case>/experts)
waits for it.

--config nproc=2: a notebook that distills, trains experts or evaluates runs in two processes, which
share the work; threads=4: of each. gpus=2: a job asks for a GPU per process, two at most, of those
that --resources gpu=4 says there are. On a Slurm cluster: snakemake --profile profiles/slurm.
"""

import os
import sys
from pathlib import Path

from gsdd_lib.experiment.parameter_files import load_parameters
from gsdd_lib.experiment.runner import cases

PROFILE = config.get("profile", "demo")
REPORT = "99_report"  # reads the results of all others, so it waits for them
# Threads per notebook. Two notebooks side by side, a thread each, train as many networks an hour
# as one after the other with two threads each, and never wait for one another's threads (measured:
# 20 epochs in 6.1 and 7.3 s at once, against 3.4 s with two threads). What is timed runs alone.
THREADS = {"02_image_fitting": 2, "12_efficiency": 2}
DEFAULT_THREADS = int(config.get("threads", 1))
NPROC, GPUS = int(config.get("nproc", 1)), int(config.get("gpus", 0))  # of a job
# Nothing in these is shared by processes, or they measure time.
ALONE = {"01_kernel_validation", "02_image_fitting", "12_efficiency", "13_imagenet1k", REPORT}
WITHOUT_GPU = {REPORT}

SOURCES = ("gsdd_lib/**/*.py", "cuda_ext/*.py", "cuda_ext/*.h", "cuda_ext/*.c*")
LIBRARY = sorted(str(path) for pattern in SOURCES for path in Path().glob(pattern))


def markers(only=""):
    chosen = cases(Path("params", PROFILE), only)
    return [f"runs/{PROFILE}/{path.parent.name}/{path.stem}/done" for path in chosen]


EVERY = markers()
WANTED = markers(os.environ.get("ONLY", ""))  # --config would read 04 as a number


def before(wildcards):
    if wildcards.stem == REPORT:
        return [marker for marker in WANTED if Path(marker).parts[2] != REPORT]
    case = Path("params", PROFILE, wildcards.stem, f"{wildcards.case}.yaml")
    experts = Path(load_parameters(case).get("experts_folder") or "none")
    marker = str(experts.with_name("done"))
    return [marker] if marker in EVERY else []


def ranks(wildcards):
    return 1 if wildcards.stem in ALONE else NPROC


rule all:
    input:
        WANTED,


rule notebook:
    input:
        notebook="notebooks/{stem}.ipynb",
        params=f"params/{PROFILE}/{{stem}}/{{case}}.yaml",
        library=LIBRARY,
        before=before,
    output:
        touch(f"runs/{PROFILE}/{{stem}}/{{case}}/done"),
    log:
        f"runs/{PROFILE}/{{stem}}/{{case}}/run.log",
    params:
        ranks=ranks,
        threads=lambda wildcards: THREADS.get(wildcards.stem, DEFAULT_THREADS),
    threads: lambda wildcards: ranks(wildcards) * THREADS.get(wildcards.stem, DEFAULT_THREADS)
    resources:
        gpu=lambda wildcards: 0 if wildcards.stem in WITHOUT_GPU else min(GPUS, ranks(wildcards)),
    shell:
        "OMP_NUM_THREADS={params.threads} {sys.executable:q}"
        " -m gsdd_lib.experiment.runner --ranks {params.ranks} {input.notebook:q} {input.params:q}"


# What others wait for comes first.
use rule notebook as experts with:
    wildcard_constraints:
        stem="03_expert_trajectories",
    output:
        touch(f"runs/{PROFILE}/{{stem}}/{{case}}/done"),
    priority: 1


ruleorder: experts > notebook
