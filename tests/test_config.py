"""Settings are built from flat names, strictly, and every fault is one sentence."""

import pytest

from gsdd_lib.config import BudgetConfig, DistillConfig
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
