"""Settings are built from flat names, strictly, and every fault is one sentence."""

import pytest

from gsdd_lib.config import (
    AUGMENTATIONS,
    DATASETS,
    NETWORKS,
    BudgetConfig,
    DataConfig,
    DistillConfig,
    EvalConfig,
    RunConfig,
)
from gsdd_lib.core.errors import ConfigError


def test_pick_takes_its_own_fields_and_leaves_the_others_alone():
    parameters = {"ipc": 10, "gpc": 80, "seed": 3, "steps": 7, "_ih": [""]}
    assert BudgetConfig.pick(parameters) == BudgetConfig(ipc=10, gpc=80)
    assert DistillConfig.pick(parameters) == DistillConfig(steps=7)
    assert BudgetConfig.pick({}) == BudgetConfig()


def test_pick_lets_a_keyword_stand_in_place_of_the_mapping():
    parameters = {"steps": 7, "dm_steps": 40, "lr": 0.01}
    config = DistillConfig.pick(parameters, objective="dm", steps=parameters["dm_steps"])
    assert (config.objective, config.steps, config.lr) == ("dm", 40, 0.01)


def test_pick_refuses_a_wrong_value_and_a_keyword_that_is_no_field():
    with pytest.raises(ConfigError, match=r"BudgetConfig: ipc: .* \(got '1'\)"):
        BudgetConfig.pick({"ipc": "1"})
    with pytest.raises(ConfigError, match="unknown parameter 'ipcc', did you mean 'ipc'"):
        BudgetConfig.pick({}, ipcc=1)


def test_pick_lets_a_name_with_the_prefix_go_before_the_plain_one():
    parameters = {"steps": 7, "dm_steps": 40, "lr": 0.01}
    assert DistillConfig.pick(parameters, prefix="dm_") == DistillConfig(steps=40, lr=0.01)
    assert DistillConfig.pick(parameters, prefix="dc_") == DistillConfig(steps=7, lr=0.01)


@pytest.mark.parametrize(
    ("model", "fields", "sentence"),
    [
        (
            DataConfig,
            {"dataset": "cifar-10"},
            "unknown data set 'cifar-10', did you mean 'cifar10'",
        ),
        (DistillConfig, {"network": "ConvNet3"}, "unknown network 'ConvNet3', did you mean"),
        (DistillConfig, {"dsa": "color_flop"}, "unknown augmentation 'flop', did you mean 'flip'"),
        (DistillConfig, {"lr": float("inf")}, r"lr: .*finite number.* \(got inf\)"),
        (DistillConfig, {"objective": "tmm"}, "unknown objective 'tmm', did you mean 'tm'"),
        (EvalConfig, {"epochs": 0}, r"epochs: .*greater than or equal to 1 \(got 0\)"),
        (RunConfig, {"device": "gpu"}, "device: .*pattern"),
        (RunConfig, {"experts_folder": "/etc"}, "experts_folder: .* must lie in the project"),
        (
            RunConfig,
            {"experts_folder": "runs/../../x"},
            "experts_folder: .* must lie in the project",
        ),
    ],
)
def test_what_would_fail_later_is_refused_at_once(model, fields, sentence):
    with pytest.raises(ConfigError, match=sentence) as error:
        model(**fields)
    assert "\n" not in str(error.value) and len(str(error.value)) < 250


def test_a_very_long_value_makes_no_long_message():
    for value in ("x" * 500_000, ["y" * 1000] * 1000):
        with pytest.raises(ConfigError) as error:
            DataConfig(dataset=value)
        assert len(str(error.value)) < 300


def test_the_names_are_those_of_the_code_that_answers_to_them():
    from gsdd_lib import data, networks
    from gsdd_lib.training import augment

    assert set(DATASETS) == set(data.READERS)
    assert set(NETWORKS) == set(networks.NETWORKS)
    assert set(AUGMENTATIONS) == set(augment.TRANSFORMS)


@pytest.mark.parametrize("name", ["digits", "shapes"])
def test_native_sizes_are_those_of_the_images(name):
    from gsdd_lib.data import load_data

    data = load_data(DataConfig(dataset=name))
    assert (data.channels, *data.resolution) == (DATASETS[name][0], *DATASETS[name][1:] * 2)
