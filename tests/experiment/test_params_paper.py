"""The paper's cases say what the paper says: its settings, its budgets, its numbers, each once."""

import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from gsdd_lib.data import READERS
from gsdd_lib.experiment.parameter_files import check, read_interface
from gsdd_lib.experiment.runner import check_all
from gsdd_lib.experiment.tables import paper_number, paper_numbers, paper_rows
from gsdd_lib.parameterizations.budget import points_per_image

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT / "params" / "paper"
CASES = sorted([*PAPER.glob("05_*/*.yaml"), *PAPER.glob("06_*/*.yaml")])
EXPERTS = sorted(PAPER.glob("03_*/*.yaml"))
FIRST_LINE = re.compile(r"# Table (\d+), .*\. The paper's number: ([\d.]+)(?: ± ([\d.]+))? %\.")
SUBSETS = ("nette", "woof", "fruit", "yellow", "meow", "squawk")
ITEMS = (
    "table_1_tm_imagenet_128_ipc1",
    "table_2_imagenet_128_ipc1",
    "table_3_dm_imagenet_256_ipc1",
    "table_15_cifar_tm",
)
# Where the settings of (data set, resolution, objective) stand, and what our names for them are.
SETTINGS = {
    ("cifar10", 32, "tm"): "table_7_cifar10_tm",
    ("cifar100", 32, "tm"): "table_8_cifar100_tm",
    ("image", 128, "tm"): "table_9_imagenet_128_tm",
    ("image", 128, "dm"): "table_10_imagenet_128_dm",
    ("image", 256, "dm"): "table_11_imagenet_256_dm",
    ("image", 128, "dc"): "table_12_imagenet_128_dc",
}
SAME = ("gpc", "syn_steps", "max_start_epoch", "expert_epochs", "batch_real", "zca")


@cache
def values_of(path):
    """All parameters of a case: the notebook's defaults and what the file says instead."""
    notebook = ROOT / "notebooks" / f"{path.parent.name}.ipynb"
    return dict(read_interface(notebook).defaults) | check(notebook, path)


def settings_of(values):
    """The paper's settings (tables 7 to 12) for a case."""
    data, resolution = values["dataset"], values["resolution"]
    family = data if data.startswith("cifar") else "image"
    return paper_numbers()[SETTINGS[family, resolution, values["objective"]]][f"ipc{values['ipc']}"]


def test_every_file_of_the_profile_is_valid():
    assert check_all(PAPER) == 0


def test_every_number_of_tables_1_2_3_and_15_has_exactly_one_case():
    rows = [paper_rows(item).query("method == 'gsdd'") for item in ITEMS]
    wanted = {(row.item, "gsdd", row.setting) for part in rows for row in part.itertuples()}
    keys = ("paper_item", "paper_method", "paper_setting")
    found = Counter(tuple(values_of(path)[key] for key in keys) for path in CASES)
    assert len(wanted) == 30 and set(found) == wanted
    assert set(found.values()) == {1}


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_number_in_the_first_line_is_the_paper_s(path):
    values = values_of(path)
    found = FIRST_LINE.fullmatch(path.read_text("utf-8").splitlines()[0])
    number = paper_number(values["paper_item"], values["paper_method"], values["paper_setting"])
    assert number["item"].startswith(f"table_{found[1]}_") and float(found[2]) == number.paper
    assert (float(found[3]) if found[3] else None) == (
        number.deviation if number.deviation == number.deviation else None
    )


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_case_has_the_data_and_the_objective_of_its_number(path):
    values = values_of(path)
    item, setting = values["paper_item"], values["paper_setting"]
    if item == "table_15_cifar_tm":
        name, ipc = setting.split(" IPC ")
        assert (values["dataset"], values["ipc"]) == (name.lower().replace("-", ""), int(ipc))
        assert values["objective"] == "tm" and values["network"] == "ConvNetD3"
        return
    objective, subset = re.fullmatch(r"(?:(dc|dm), )?(\w+)", setting).groups()
    assert values["objective"] == (objective or ("tm" if item.startswith("table_1_") else "dm"))
    assert values["dataset"] == f"image{subset}" and subset in SUBSETS
    size = 256 if item.startswith("table_3_") else 128
    assert values["resolution"] == size and values["ipc"] == 1
    assert values["network"] == {128: "ConvNetD5", 256: "ConvNetD6"}[size]


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_settings_are_those_of_tables_7_to_12(path):
    values, paper = values_of(path), settings_of(values_of(path))
    assert {key: values[key] for key in SAME if key in paper} == {
        key: paper[key] for key in SAME if key in paper
    }
    assert values["steps"] == paper.get("iterations", 15_000) and values["lr"] == 1e-3
    assert (values["width"], values["networks"], values["epochs"]) == (128, 5, 1000)
    if values["objective"] == "tm":
        assert values["batch_syn"] == paper["batch_syn"]
        assert values["syn_lr_init"] == paper["lr_init"]
        # the published step is of the rate, ours of its logarithm: d(log r) = dr / r, twice
        assert values["lr_lr"] == pytest.approx(paper["lr_lr"] / paper["lr_init"] ** 2)


@pytest.mark.parametrize("item", SETTINGS.values())
def test_the_budget_comes_out_as_in_tables_7_to_12(item):
    side = 32 if "cifar" in item else 256 if "256" in item else 128
    for ipc, row in paper_numbers()[item].items():
        size = {"height": side, "width": side, "channels": 3}
        assert points_per_image(ipc=int(ipc[3:]), gpc=row["gpc"], **size) == row["points"]


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_case_says_its_budget(path):
    values, paper = values_of(path), settings_of(values_of(path))
    assert f"{values['gpc']} images of {paper['points']} Gaussians per class" in path.read_text()


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_experts_named_by_a_case_are_those_of_a_case_of_notebook_03(path):
    values = values_of(path)
    if values["objective"] != "tm":
        return
    place = ROOT / values["experts_folder"]
    expert_case = PAPER / "03_expert_trajectories" / f"{place.parent.name}.yaml"
    stem = expert_case.parent.name
    assert values["experts_folder"] == f"runs/paper/{stem}/{expert_case.stem}/experts"
    theirs = values_of(expert_case)
    same = ("seed", "dataset", "resolution", "zca", "max_per_class", "num_experts", "train_epochs")
    same += ("expert_lr", "expert_batch")
    assert {key: values[key] for key in same} == {key: theirs[key] for key in same}
    network = theirs["expert_network"], theirs["expert_width"]
    assert network == (values["network"], values["width"])
    last = values["max_start_epoch"] - 1 + values["expert_epochs"]
    assert last <= theirs["train_epochs"] and theirs["num_experts"] == 100


def test_experts_are_planned_for_every_data_set_that_is_matched_by_trajectories():
    wanted = {values["dataset"] for values in map(values_of, CASES) if values["objective"] == "tm"}
    assert {path.stem for path in EXPERTS} == wanted and wanted <= set(READERS)


CROSS = sorted(PAPER.glob("07_*/*.yaml"))


def test_every_subset_has_a_case_of_other_networks_and_imagenette_one_of_other_resolutions():
    tables = {
        path.stem: {item.split("_")[1] for item in values_of(path)["paper_items"]} for path in CROSS
    }
    wanted = {f"image{subset}": {"4", "16"} for subset in SUBSETS}
    assert tables == wanted | {"imagenette": {"4", "16", "21"}}


@pytest.mark.parametrize("path", CROSS, ids=lambda path: path.stem)
def test_other_networks_judge_the_set_of_table_1(path):
    values = values_of(path)
    place = ROOT / values["checkpoints"]
    theirs = values_of(PAPER / place.parent.name / f"{place.name}.yaml")
    assert theirs["paper_item"].startswith("table_1_")
    later = {"networks", "eval_networks", "epochs", "paper_item", "paper_setting"}
    shared = theirs.keys() & values.keys() - later - {"output_folder", "run_folder", "methods"}
    assert {name: values[name] for name in shared} == {name: theirs[name] for name in shared}
    assert set(values["eval_networks"]) > {"AlexNet", "VGG11", "ResNet18", "ViT"}
    assert set(values["network_epochs"]) == {1000} and values["scaled"] == "nothing"


ABLATIONS = {  # a case of notebook 08 or 10, and the case whose other settings it has
    "08_ablation_components/table_6_imagenette": "06_distill_imagenet/tm_imagenette",
    "08_ablation_components/table_6_cifar10": "05_distill_cifar/cifar10_ipc10",
    "08_ablation_components/table_13": "06_distill_imagenet/tm_imagenette",
    "08_ablation_components/table_14": "06_distill_imagenet/tm_imagenette",
    "10_ablation_initialisation/table_17": "06_distill_imagenet/tm_imagenette",
}


@pytest.mark.parametrize(("ablation", "case"), ABLATIONS.items())
def test_an_ablation_has_the_settings_of_the_case_that_it_varies(ablation, case):
    own, whole = (values_of(PAPER / f"{name}.yaml") for name in (ablation, case))
    own |= {"steps": own.get("tm_steps", own.get("steps")), "lr": own.get("tm_lr", own.get("lr"))}
    own["fit_lr"] = own.get("published_lr", own["fit_lr"])
    places = {"paper_item", "paper_method", "paper_setting", "output_folder", "run_folder"}
    same = (own.keys() & whole.keys()) - places
    assert {name: own[name] for name in same} == {name: whole[name] for name in same}
    assert len(same) > 30 and whole["scaled"] == "nothing"


def test_every_number_of_tables_6_13_14_and_17_has_a_case():
    items = {values_of(PAPER / f"{name}.yaml")["paper_item"] for name in ABLATIONS}
    numbers = ("table_6_", "table_13_", "table_14_", "table_17_")
    assert items == {item for item in paper_numbers() if item.startswith(numbers)}


def test_every_number_of_table_18_has_a_case_with_its_images_per_class():
    paper = paper_numbers()["table_18_imagenet1k_224"]["sre2l_gsdd"]
    cases = [values_of(path) for path in sorted(PAPER.glob("13_*/*.yaml"))]
    found = {case["paper_setting"]: case["gpc"] for case in cases}
    assert found == paper["gpc"] and all(case["resolution"] == 224 for case in cases)
    assert all(case["paper_setting"] == f"ipc{case['ipc']}" for case in cases)
