"""What test_ranks runs with one process and, under torchrun, with two: ``CASE FOLDER``."""

import os
import signal
import sys
from pathlib import Path

import torch
from distillation.test_tm import path_gradients

from gsdd_lib.config import (
    BudgetConfig,
    DataConfig,
    DistillConfig,
    EvalConfig,
    ExpertConfig,
    FitConfig,
)
from gsdd_lib.core import ranks
from gsdd_lib.data import load_data
from gsdd_lib.distillation import loop
from gsdd_lib.evaluation import baselines
from gsdd_lib.parameterizations.budget import plan_budget
from gsdd_lib.parameterizations.fit import initial_gaussians
from gsdd_lib.training.experts import Experts, train_experts
from gsdd_lib.training.train import EvaluationError

EXPERT = {"expert_network": "ConvNetD2", "expert_width": 4, "expert_lr": 0.05}
SMALL = {"network": "ConvNetD2", "width": 4, "batch_real": 8, "select_networks": 2}
OBJECTIVES = {
    "dm": {},
    "kernel": {"objective": "dm", "dm_match": "kernel", "micro_batch": 3},
    "dc": {"objective": "dc", "outer_loop": 2},
    "tm": {"objective": "tm", "syn_steps": 3, "batch_syn": 7, "max_start_epoch": 1},
}
EVALUATION = EvalConfig(
    networks=3, eval_network="ConvNetD2", eval_width=4, epochs=10, eval_batch=8, eval_lr=0.1
)
DATA = load_data(DataConfig(dataset="digits", max_per_class=20))
BUDGET = plan_budget(BudgetConfig(ipc=1, gpc=2), DATA)


def distilled(case: str, home: Path, **more: object) -> dict[str, object]:
    """The parameters of every row of a run, and the rows."""
    images = initial_gaussians(DATA, BUDGET, FitConfig(fit_steps=3), seed=0).gaussians
    about = {"steps": 4, "eval_every": 2, "checkpoint_every": 1, **SMALL, **OBJECTIVES[case]}
    if case == "tm":
        more["experts"] = Experts(home / "experts")
    more["snapshots"] = snapshots = []
    config = DistillConfig(**about)
    rows = list(loop.distill(images, DATA, config, EVALUATION, seed=0, **more))
    return {"snapshots": snapshots, "rows": rows}


def everything(folder: Path) -> dict[str, object]:
    """Every case at once: a start of two processes takes longer than they do."""
    config = ExpertConfig(num_experts=3, train_epochs=2, **EXPERT)
    end: dict[str, object] = {
        "experts": list(train_experts(DATA, config, folder / "experts", seed=0))
    }
    end |= {case: distilled(case, folder) for case in OBJECTIVES}
    end["real"] = baselines.real_rows("random real", DATA, BUDGET, EVALUATION, seed=0)
    for row in end["real"]:
        del row["seconds"]
    soft = torch.rand(7, 3, generator=torch.Generator().manual_seed(3)).double().softmax(1)
    end["paths"] = [
        path_gradients(keep_steps, labels)[0]
        for keep_steps in (0, 2, 6)
        for labels in (torch.arange(7) % 3, soft.requires_grad_())
    ]
    try:
        ranks.spread(refuse_the_second, [0, 1, 2])
    except EvaluationError as error:
        end["error"] = str(error)
    return end


def refuse_the_second(item: int) -> int:
    if item == 1:
        raise EvaluationError("the second is refused")
    return item


def die_at_the_third_step(*arguments: object, seed: int) -> torch.Tensor:
    state = arguments[0]
    if state.step == 2 and ranks.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return loop_step(*arguments, seed=seed)


loop_step = loop.STEP_LOSSES["dm"]

if __name__ == "__main__":
    torch.set_num_threads(1)
    case, place = sys.argv[1], Path(sys.argv[2])
    if case == "everything":
        found = everything(place)
    else:
        if case == "die":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, which is as fast
            loop.STEP_LOSSES["dm"] = die_at_the_third_step
        try:
            found = distilled("dm", place, folder=place / "run")
        except ranks.RankError as error:
            print(error, file=sys.stderr)
            sys.exit(1)
    torch.save(found, place / f"{case}.{ranks.rank()}.pt")
