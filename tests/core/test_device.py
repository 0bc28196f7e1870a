"""Everything of a step is on the images' device, and there gives what it gives on the CPU."""

import platform
import subprocess

import pytest
import torch
from pretend_device import Pretended, pretended_gpu

from gsdd_lib.config import (
    BudgetConfig,
    DataConfig,
    DistillConfig,
    EvalConfig,
    ExpertConfig,
    FitConfig,
)
from gsdd_lib.core import device as core_device
from gsdd_lib.core.device import choose_device, commit, cpu_name, gpu_driver
from gsdd_lib.core.errors import ConfigError
from gsdd_lib.data import load_data
from gsdd_lib.distillation.loop import distill
from gsdd_lib.evaluation.baselines import RealImages
from gsdd_lib.evaluation.evaluate import evaluate
from gsdd_lib.parameterizations.budget import plan_budget
from gsdd_lib.parameterizations.fit import initial_gaussians
from gsdd_lib.training.experts import Experts, train_experts

NETWORK = {"network": "ConvNetD2", "width": 8}
DISTILL = {"steps": 2, "eval_every": 2, "batch_real": 4, "select_networks": 1, "micro_batch": 8}
OBJECTIVES = {
    "dm": {},
    "dc": {"outer_loop": 2, "inner_loop": 1},
    "tm": {"syn_steps": 3, "batch_syn": 7, "max_start_epoch": 1, "expert_epochs": 1},
}
EVAL = EvalConfig(networks=1, eval_network="ConvNetD2", eval_width=8, epochs=2)
EXPERT = ExpertConfig(
    num_experts=1, train_epochs=1, expert_network="ConvNetD2", expert_width=8, expert_batch=64
)


def load(zca=False):
    return load_data(DataConfig(dataset="shapes", resolution=16, max_per_class=8, zca=zca))


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    list(train_experts(load(), EXPERT, folder, seed=0))
    return Experts(folder)


def plain(tensor):
    return tensor.inner if isinstance(tensor, Pretended) else tensor


def run(data, objective, experts):
    """Packed Gaussians, history rows and a test accuracy of a tiny run on ``data.device``."""
    budget = plan_budget(BudgetConfig(gpc=2), data)
    gaussians = initial_gaussians(data, budget, FitConfig(fit_steps=2), seed=0).gaussians
    config = DistillConfig(objective=objective, **NETWORK, **DISTILL, **OBJECTIVES[objective])
    rows = list(distill(gaussians, data, config, EVAL, seed=0, experts=experts))
    images = gaussians.render().detach()
    assert images.device.type == data.device.type
    tested = evaluate(images, gaussians.labels, data, EVAL, seed=0, split="test")
    return plain(gaussians.packed.detach()), [row["mean"] for row in rows], tested[0]["accuracy"]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_run_on_another_device_gives_the_same_bits(objective, experts):
    packed, rows, tested = run(load(), objective, experts)
    with pretended_gpu() as device:
        packed_there, rows_there, tested_there = run(load().to(device), objective, experts)
    assert torch.equal(packed, packed_there) and rows == rows_there and tested == tested_there


def test_experts_trained_on_another_device_have_the_same_bits(experts, tmp_path):
    with pretended_gpu() as device:
        rows = list(train_experts(load().to(device), EXPERT, tmp_path, seed=0))
    assert rows == experts.about[0]["rows"]
    (there,), (here,) = Experts(tmp_path).snapshots(0, 1), experts.snapshots(0, 1)
    assert torch.equal(there, here)


@pytest.mark.parametrize("init", ["kmeans", "warmup", "random"])
def test_every_start_is_made_on_the_images_device(init):
    data = load(zca=True)
    budget = plan_budget(BudgetConfig(gpc=2), data)
    config = FitConfig(init=init, fit_steps=1)
    here = initial_gaussians(data, budget, config, seed=0).gaussians
    with pretended_gpu() as device:
        there = initial_gaussians(load(zca=True).to(device), budget, config, seed=0).gaussians
        assert isinstance(there.labels, Pretended)
        assert torch.equal(plain(there.packed.detach()), here.packed)


def test_random_real_images_come_from_the_device():
    images, labels = RealImages().choose(load(), 2, seed=0)
    with pretended_gpu() as device:
        there, labels_there = RealImages().choose(load().to(device), 2, seed=0)
        assert torch.equal(plain(there), images) and torch.equal(plain(labels_there), labels)


def test_the_pretended_device_notices_a_mix():
    with pretended_gpu() as device, pytest.raises(RuntimeError, match="on the cpu"):
        torch.ones(3).to(device) + torch.ones(3)


def test_auto_is_the_cpu_where_there_is_no_other(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    for name in ("cuda", "gpu", "mps"):
        with pytest.raises(ConfigError, match="auto"):
            choose_device(name)


def test_auto_is_the_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cuda:0").index == 0
    with pytest.raises(ConfigError, match="has 1 CUDA"):
        choose_device("cuda:1")


def test_the_processors_name_is_the_systems(tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nmodel name\nmodel name\t: A Fine CPU: 2\nmodel name\t: x\n")
    monkeypatch.setattr(core_device, "CPU_INFO", info)
    assert cpu_name() == "A Fine CPU: 2"


def test_a_processor_without_a_name_is_called_by_its_architecture(tmp_path, monkeypatch):
    monkeypatch.setattr(core_device, "CPU_INFO", tmp_path / "missing")
    assert cpu_name() in (platform.processor(), platform.machine())
    assert cpu_name()


def program(folder, name: str, text: str, monkeypatch) -> None:
    """An own ``name`` on the PATH, and nothing else."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_the_driver_is_the_first_gpus(tmp_path, monkeypatch):
    program(tmp_path, "nvidia-smi", "echo 580.65; echo 580.65", monkeypatch)
    assert gpu_driver() == "580.65"
    program(tmp_path, "nvidia-smi", "exit 9", monkeypatch)
    assert gpu_driver() == "unknown"
    (tmp_path / "nvidia-smi").unlink()
    assert gpu_driver() == "unknown"


def test_a_copy_without_git_is_of_the_commit_that_it_is_told(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("GSDD_COMMIT", "c0ffee")
    assert commit() == {"commit": "c0ffee", "modified": None}
    monkeypatch.delenv("GSDD_COMMIT")
    assert commit() == {"commit": "unknown", "modified": None}


def test_git_goes_before_what_it_is_told(tmp_path, monkeypatch):
    identity = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "pyproject.toml").touch()
    for arguments in (["init"], ["add", "."], ["commit", "-m", "first"]):
        subprocess.run([*identity, *arguments], check=True, capture_output=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GSDD_COMMIT", "c0ffee")
    found = commit()
    assert len(found["commit"]) == 40 and found["modified"] is False
    (tmp_path / "pyproject.toml").write_text("# changed")
    assert commit() == found | {"modified": True}
