"""The arithmetic asked for is the one inside, and torch's settings are untouched afterwards."""

import pytest
import torch

from gsdd_lib.core.errors import ConfigError
from gsdd_lib.networks.precision import precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def settings():
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision


@pytest.mark.parametrize(("name", "inside"), [("fp32", "ieee"), ("tf32", "tf32")])
def test_a_gpus_float32_is_changed_inside_alone(name, inside):
    before = settings()
    with pytest.raises(ZeroDivisionError), precision(name, GPU):
        assert settings() == (inside, inside)
        raise ZeroDivisionError
    assert settings() == before


def test_the_usual_way_changes_nothing():
    before = settings()
    with precision("auto", GPU):
        assert settings() == before and not torch.is_autocast_enabled("cpu")


def test_bf16_multiplies_in_bf16_and_keeps_gradients_in_float32():
    layer = torch.nn.Linear(3, 2)
    with precision("bf16", CPU):
        made = layer(torch.ones(1, 3))
    made.float().sum().backward()
    assert made.dtype == torch.bfloat16 and layer.weight.grad.dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")


def test_tf32_is_refused_on_a_cpu():
    with (
        pytest.raises(ConfigError, match="'tf32' is a GPU's; choose 'auto'"),
        precision("tf32", CPU),
    ):
        pass
