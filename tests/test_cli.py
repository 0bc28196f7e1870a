"""The command line: on digits from distilling to PNG files; what it refuses, and its exit codes."""

import re
import subprocess
import sys

import pytest
import torch
from PIL import Image

from gsdd_lib import api, cli
from gsdd_lib.config import DistillConfig, EvalConfig, ExpertConfig
from gsdd_lib.storage import load
from gsdd_lib.training.experts import train_experts

QUICK = ["--steps=2", "--fit-steps=5", "--width=4", "--epochs=3", "--max-per-class=12"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The file of a set distilled from the digits."""
    path = tmp_path_factory.mktemp("cli") / "small.safetensors"
    assert cli.main(["distill", *QUICK, "--gpc", "2", "--seed=3", "--output", str(path)]) == 0
    return path


def test_distill_says_what_it_made(tmp_path, capsys):
    path = tmp_path / "small.safetensors"
    assert cli.main(["distill", *QUICK, "--gpc", "2", "--output", str(path)]) == 0
    *_, budget, last = capsys.readouterr().out.splitlines()
    assert budget.startswith("IPC 1 (2,048 bits per class) -> GPC 2 x ")
    assert f"{path}: {path.stat().st_size:,} bytes" in last and "digits" in last


def test_the_set_is_that_of_the_same_call_in_python(made):
    more = {"gpc": 2, "fit_steps": 5, "steps": 2, "width": 4, "epochs": 3, "seed": 3}
    data = cli._data({"dataset": "digits", "max_per_class": 12}, 3)
    small = api.distill_images(data, **more)
    assert torch.equal(load(made).render(), small.render())


def test_evaluate(made, capsys):
    assert cli.main(["evaluate", str(made), "--networks", "2", "--epochs", "2"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"[\d.]+ ± [\d.]+ \(n=2\) % on the test split, ConvNetD1 of 4", last)
    assert cli.main(["evaluate", str(made), "--split=validation", "--networks=1"]) == 0
    assert "(n=1) % on the validation split" in capsys.readouterr().out


def test_render_and_export(made, tmp_path, capsys):
    picture, folder = tmp_path / "all.png", tmp_path / "out"
    assert cli.main(["render", str(made), "--output", str(picture)]) == 0
    assert Image.open(picture).height > 200
    assert cli.main(["export", str(made), "--output", str(folder), "--resolution", "16"]) == 0
    assert torch.load(folder / "images.pt", weights_only=True).shape == (20, 1, 16, 16)
    assert len(list(folder.glob("png/*/*.png"))) == 20
    assert cli.main(["export", str(made), "--output", str(folder)]) == 1
    assert "exists and is not empty; choose a new folder" in capsys.readouterr().err


def test_learned_labels_and_few_bits(tmp_path, capsys):
    path, folder = tmp_path / "small.safetensors", tmp_path / "run"
    more = [
        "--gpc=2",
        "--ipc=2",
        "--soft-labels",
        "--coded",
        "--means-bits=4",
        "--output",
        str(path),
    ]
    command = ["distill", *QUICK, *more, "--checkpoints", str(folder)]
    assert cli.main(command) == 0
    small = load(path)
    assert small.soft_labels is not None and small.gaussians.codec is not None
    capsys.readouterr()
    assert cli.main(command) == 0
    assert "the run is finished" in capsys.readouterr().out


def test_trajectory_matching_follows_experts_in_a_folder(tmp_path):
    data = cli._data({"dataset": "digits", "max_per_class": 12}, 0)
    settings = {"num_experts": 1, "train_epochs": 3, "expert_network": "ConvNetD1"}
    list(train_experts(data, ExpertConfig(**settings, expert_width=4), tmp_path, seed=0))
    path = tmp_path / "small.safetensors"
    more = ["--objective", "tm", "--syn-steps", "2", "--experts", str(tmp_path)]
    assert cli.main(["distill", *QUICK, "--gpc=2", *more, "--output", str(path)]) == 0
    assert load(path).syn_lr > 0


@pytest.mark.parametrize(
    ("command", "code", "sentence"),
    [
        ("", 2, "the following arguments are required: COMMAND; see gsdd --help"),
        ("distil", 2, "unknown command 'distil', did you mean 'distill'?"),
        ("distill --ipcc 3", 2, "unknown option '--ipcc', did you mean '--ipc'?"),
        ("distill --step=3", 2, "unknown option '--step=3', did you mean '--steps'?"),
        ("distill --ipc x", 2, "BudgetConfig: ipc: Input should be a valid integer (got 'x')"),
        (
            "distill --zca maybe",
            2,
            "DataConfig: zca: Input should be a valid boolean (got 'maybe')",
        ),
        ("distill --lr inf", 2, "DistillConfig: lr: Input should be a finite number (got inf)"),
        ("distill --dataset cifar-10", 2, "unknown data set 'cifar-10', did you mean 'cifar10'?"),
        ("distill --device gpu", 2, "RunConfig: device: String should match"),
        ("distill --output no/such.safetensors", 2, "file in a folder that exists"),
        ("distill --output set.pt", 2, "'set.pt' must be a .safetensors file"),
        ("distill --objective tm", 2, "follows experts; pass the folder"),
        ("evaluate", 2, "the following arguments are required: set; see gsdd evaluate --help"),
        ("evaluate none.safetensors", 1, "There is no distilled set at 'none.safetensors'"),
        ("evaluate none.safetensors --split tset", 2, "invalid choice: 'tset'"),
        ("render none.safetensors --resolution x", 2, "--resolution: invalid int value: 'x'"),
        ("render none.safetensors --gpc 3", 2, "unknown option '--gpc'"),
    ],
)
def test_refused_in_one_sentence(command, code, sentence, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(command.split()) == code
    said = capsys.readouterr().err
    assert said.startswith("gsdd: ") and sentence in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_set_is_tested_on_its_own_data(made, capsys):
    assert cli.main(["evaluate", str(made), "--dataset", "shapes"]) == 1
    assert "to be tested on 'shapes'" in capsys.readouterr().err


def test_interrupted(made, monkeypatch, capsys):
    def stop(_):
        raise KeyboardInterrupt("Stopped after step 1.")

    monkeypatch.setitem(cli.COMMANDS, "distill", stop)
    assert cli.main(["distill"]) == 130
    assert capsys.readouterr().err == "Stopped after step 1.\n"


@pytest.mark.parametrize("command", ["", "distill", "evaluate", "render", "export"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command.split(), "--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and text.startswith("usage: gsdd")
    if command == "distill":
        assert "Adam's learning rate; the paper: 1e-3 (0.005)" in " ".join(text.split())
        assert "--width INT filters per convolution of the matching networks --" in " ".join(
            text.split()
        )
        assert all(f"--{name} " in text for name in DistillConfig.model_fields)
    if command == "evaluate":
        assert all(f"--{name} " in text for name in EvalConfig.model_fields)


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "gsdd_lib.cli", "--version"], capture_output=True)
    assert done.returncode == 0 and done.stdout.startswith(b"gsdd ")
