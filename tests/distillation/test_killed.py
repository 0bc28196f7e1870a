"""``kill -9`` at random moments: what was killed and started again ends with the same bits.

A process of its own, with one thread, forks the runs to be killed: that costs no start each time.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from torch.nn.functional import one_hot

from gsdd_lib.config import (
    BudgetConfig,
    DataConfig,
    DistillConfig,
    EvalConfig,
    ExpertConfig,
    FitConfig,
)
from gsdd_lib.data import load_data
from gsdd_lib.distillation.loop import distill
from gsdd_lib.distillation.soft_labels import SoftLabels
from gsdd_lib.parameterizations.budget import plan_budget
from gsdd_lib.parameterizations.fit import initial_gaussians
from gsdd_lib.training.experts import Experts, train_experts

KILLS = 10
SMALL = {"network": "ConvNetD2", "width": 4, "batch_real": 8, "select_networks": 1}
OBJECTIVES = {
    "dm": {},
    "dc": {"outer_loop": 3},
    "tm": {"syn_steps": 3, "batch_syn": 6, "max_start_epoch": 2, "syn_lr_init": 0.05},
}
LABELS = " labels"  # after an objective's name: labels are learned too
CASES = [*OBJECTIVES, "dm" + LABELS]


def run(case: str, folder: Path, experts: Path) -> None:
    """A whole distillation, or the rest of one; its end goes to ``folder/end.pt``."""
    objective = case.removesuffix(LABELS)
    data = load_data(DataConfig(dataset="digits", max_per_class=20))
    budget = plan_budget(BudgetConfig(ipc=1, gpc=1), data)
    gaussians = initial_gaussians(data, budget, FitConfig(fit_steps=3), seed=0).gaussians
    settings = {"objective": objective, "steps": 12, "eval_every": 4, "checkpoint_every": 1}
    config = DistillConfig(**settings, **SMALL, **OBJECTIVES[objective])
    evaluation = EvalConfig(eval_network="ConvNetD2", eval_width=4, epochs=3)
    trained = Experts(experts) if objective == "tm" else None
    soft = SoftLabels(4.4 * one_hot(gaussians.labels, 10)) if case.endswith(LABELS) else None
    more = {"folder": folder, "experts": trained, "soft_labels": soft}
    rows = list(distill(gaussians, data, config, evaluation, seed=0, **more))
    end = {"packed": gaussians.packed.detach(), "rows": repr(rows)}
    end["logits"] = torch.zeros(0) if soft is None else soft.logits.detach()
    torch.save(end, folder / "end.tmp")
    os.replace(folder / "end.tmp", folder / "end.pt")


def fork(objective: str, folder: Path, experts: Path) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            run(objective, folder, experts)
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return pid


def end(folder: Path) -> tuple[bytes, bytes, str]:
    saved = torch.load(folder / "end.pt", weights_only=True)
    return saved["packed"].numpy().tobytes(), saved["logits"].numpy().tobytes(), saved["rows"]


def kill_and_compare(objective: str, folder: Path, experts: Path) -> dict[str, int]:
    rng, counts = random.Random(objective), {"killed": 0, "finished": 0, "equal": 0}
    (folder / "whole").mkdir()
    started = time.monotonic()
    assert os.waitpid(fork(objective, folder / "whole", experts), 0)[1] == 0
    longest = time.monotonic() - started
    while counts["killed"] < KILLS or not counts["finished"]:
        attempt = Path(tempfile.mkdtemp(dir=folder))
        while not (attempt / "end.pt").exists():
            pid = fork(objective, attempt, experts)
            enough = counts["killed"] >= KILLS
            time.sleep(rng.uniform(0.05, 0.8) * longest if not enough else 0)
            if not enough:
                os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
            assert status in (0, signal.SIGKILL), "the resumed run failed"
            counts["killed"] += status == signal.SIGKILL
        counts["finished"] += 1
        counts["equal"] += end(attempt) == end(folder / "whole")
    return counts


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("objective", CASES)
def test_a_killed_run_ends_with_the_same_bits(objective: str, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, __file__, objective, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["killed"] >= KILLS and counts["equal"] == counts["finished"] >= 1, counts


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, place = sys.argv[1], Path(sys.argv[2])
    small = ExpertConfig(
        num_experts=1, train_epochs=3, expert_network="ConvNetD2", expert_width=4, expert_lr=0.05
    )
    if name == "tm":
        digits = load_data(DataConfig(dataset="digits", max_per_class=20))
        list(train_experts(digits, small, place / "experts", seed=0))
    print(json.dumps(kill_and_compare(name, place, place / "experts")))
