"""Every way to get a parameter file wrong ends in one sentence that says how to get it right."""

import json
from pathlib import Path

import pytest

from gsdd_lib.experiment.parameter_files import check, load_parameters, place, read_interface
from gsdd_lib.experiment.parameters import ParameterError

CELL = """output_folder: str = "runs/smoke/04_x"
run_folder: str = "runs/smoke/04_x"
dataset: str = "digits"  # a name = a data set
networks: int = 2  # how many
eval_lr: float = 0.01  # per step
sizes: list[int] = [5, 10]
flip: bool = True
objectives: list[str] = ["dm"]
dm_lr: float = 0.005
"""
MODELS = ("DataConfig", "DistillConfig", "EvalConfig")


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch) -> Path:
    """An empty project, as the working directory."""
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_notebook(folder: Path, *sources: str, models=MODELS, tag="parameters") -> Path:
    """A notebook of code cells, the first with ``tag``, in ``folder/notebooks/04_x.ipynb``.

    Its second cell picks ``models`` from the first.
    """
    picked = ", ".join(["globals()", *models])
    setup = "from gsdd_lib.experiment import parameters\nfrom gsdd_lib.config import *\n"
    setup += f'settings = parameters.pick({picked}, own=("sizes", "flip"))'
    sources = (sources[0], *([setup] if models else []), *sources[1:])
    cells = [
        {
            "cell_type": "code",
            "id": f"c{index}",
            "metadata": {"tags": [tag]} if index == 0 and tag else {},
            "execution_count": None,
            "outputs": [],
            "source": source,
        }
        for index, source in enumerate(sources)
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel}
    path = folder / "notebooks" / "04_x.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(content))
    return path


def write_case(folder: Path, text: str) -> Path:
    path = folder / "params" / "demo" / "04_x" / "ipc1.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def fault(folder: Path, text: str) -> str:
    """The one sentence that checking a file of ``text`` ends in."""
    with pytest.raises(ParameterError) as error:
        check(write_notebook(folder, CELL), write_case(folder, text))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_right_file_gives_its_values_and_nothing_else(tmp_path):
    case = write_case(tmp_path, "# a comment\nnetworks: 5\neval_lr: 1e-3\nsizes: [1, 2]\n")
    values = check(write_notebook(tmp_path, CELL), case)
    assert values == {"networks": 5, "eval_lr": 0.001, "sizes": [1, 2]}


def test_yaml_words_stay_words_and_exponents_are_numbers(tmp_path):
    values = load_parameters(write_case(tmp_path, "a: no\nb: on\nc: 1e3\nd: 1:30\ne: true\n"))
    assert values == {"a": "no", "b": "on", "c": 1000.0, "d": "1:30", "e": True}


def test_braces_keep_every_default(tmp_path):
    assert check(write_notebook(tmp_path, CELL), write_case(tmp_path, "{}")) == {}


def test_unknown_name_gives_the_nearest(tmp_path):
    assert "unknown parameter 'netwroks', did you mean 'networks'?" in fault(
        tmp_path, "netwroks: 3"
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("networks: five", "'networks' must be int, not 'five' (text)"),
        ("networks: 2.0", "'networks' must be int, not 2.0 (float)"),
        ("networks: true", "'networks' must be int, not True (bool)"),
        ("flip: 1", "'flip' must be bool, not 1 (int)"),
        ("sizes: [1, x]", "'sizes' must be list[int]"),
        ("sizes: 3", "'sizes' must be list[int], not 3 (int)"),
    ],
)
def test_wrong_type(tmp_path, text, sentence):
    assert sentence in fault(tmp_path, text)


def test_wrong_value_is_refused_by_the_settings_model(tmp_path):
    message = fault(tmp_path, "networks: 0\neval_lr: -1.0")
    assert "'networks': Input should be greater than or equal to 1 (got 0)" in message
    assert "'eval_lr': Input should be greater than 0 (got -1.0)" in message


def test_nested_value(tmp_path):
    assert "'networks' is nested" in fault(tmp_path, "networks:\n  count: 3")


def test_nested_list(tmp_path):
    assert "'sizes' is nested" in fault(tmp_path, "sizes: [[1, 2]]")


def test_name_without_value(tmp_path):
    assert "'networks' has no value" in fault(tmp_path, "networks:")


def test_duplicate_key(tmp_path):
    assert "'networks' stands there twice" in fault(tmp_path, "networks: 3\nnetworks: 4")


def test_empty_file(tmp_path):
    assert "write {} to keep every default" in fault(tmp_path, "# nothing but a comment\n")


def test_invalid_yaml_names_the_line(tmp_path):
    message = fault(tmp_path, "networks: 3\nsizes: [1, 2\n")
    assert "not valid YAML" in message and "(line 3)" in message


def test_not_a_mapping(tmp_path):
    assert "must be lines of 'name: value', not a list" in fault(tmp_path, "- networks")


def test_binary_file(tmp_path):
    case = write_case(tmp_path, "")
    case.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ParameterError, match="not a YAML text"):
        load_parameters(case)


def test_name_that_is_no_name(tmp_path):
    assert "3 is not a parameter's name" in fault(tmp_path, "3: 4")


def test_folders_cannot_be_set(tmp_path):
    assert "'output_folder' follows from the file's place" in fault(tmp_path, "output_folder: x")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("dataset: cifar-10", "'dataset': unknown data set 'cifar-10', did you mean 'cifar10'?"),
        ("objectives: [dm, tmm]", "'objectives': unknown objective 'tmm', did you mean 'tm'"),
        ("objectives: []", "'objectives' is an empty list"),
        ("dm_lr: 0", "'dm_lr': Input should be greater than 0 (got 0)"),
        ("dm_lr: 1e400", "'dm_lr': Input should be a finite number (got inf)"),
        ("sizes: [3, -1]", "'sizes' must be finite and not negative, not [3, -1]"),
    ],
)
def test_what_would_fail_after_hours_is_refused_now(tmp_path, text, sentence):
    assert sentence in fault(tmp_path, text)


def test_a_budget_that_buys_nothing_is_refused_where_the_size_is_known(tmp_path):
    cell = CELL + "ipc: int = 1\ngpc: int = 3\nresolution: int = 0\n"
    notebook = write_notebook(tmp_path, cell, models=("DataConfig", "BudgetConfig", *MODELS[1:]))
    for size in ("dataset: fashion_mnist", "dataset: imagenette\nresolution: 64"):
        with pytest.raises(ParameterError, match=r"the largest gpc that fits is \d+"):
            check(notebook, write_case(tmp_path, f"{size}\ngpc: 100000"))
    check(notebook, write_case(tmp_path, "dataset: imagefolder\ngpc: 100000"))


def test_a_number_that_the_paper_does_not_have_is_refused(tmp_path):
    cell = CELL + 'paper_item: str = ""\npaper_setting: str = ""\n'
    notebook = write_notebook(tmp_path, cell)
    check(notebook, write_case(tmp_path, "paper_item: table_5_image_fitting"))
    for text in ("paper_item: table_15", "paper_item: table_15_cifar_tm\npaper_setting: IPC 1"):
        with pytest.raises(ParameterError, match="the paper has no (item|setting)"):
            check(notebook, write_case(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    [
        "networks: !!int 'abc'",
        "networks: " + "[" * 2000 + "]" * 2000,
        "networks: " + "9" * 5000,
        "dataset: " + "x" * 500_000,
        "networks: !!python/object:os.system x",
        "networks: !!timestamp 'x'",
        "networks: !!binary 3",
        "? [1, 2]\n: 3",
        "x" * 100_000 + ": 3",
    ],
    ids=lambda text: text[:24],
)
def test_whatever_yaml_raises_is_one_short_sentence(tmp_path, text):
    message = fault(tmp_path, text)
    assert len(message) < 300 + len(str(tmp_path)), message


def test_many_faults_are_named_in_one_short_sentence(tmp_path):
    lines = "\n".join(f"wrong_{number}: 1" for number in range(100))
    assert "; and 98 more" in fault(tmp_path, lines)


def test_no_such_parameter_file(tmp_path):
    with pytest.raises(ParameterError, match=r"ipc2\.yaml: cannot be read: No such file"):
        check(write_notebook(tmp_path, CELL), tmp_path / "params" / "demo" / "04_x" / "ipc2.yaml")


def test_file_of_another_notebook(tmp_path):
    notebook = write_notebook(tmp_path, CELL).rename(tmp_path / "notebooks" / "05_y.ipynb")
    with pytest.raises(ParameterError, match="belongs to '04_x', not to '05_y'"):
        check(notebook, write_case(tmp_path, "networks: 3"))


def test_a_file_may_lie_anywhere(tmp_path):
    notebook, case = write_notebook(tmp_path, CELL), write_case(tmp_path, "networks: 3")
    assert place(notebook, case) == Path("demo/04_x/ipc1")
    elsewhere = case.rename(tmp_path / "mine.yaml")
    assert check(notebook, elsewhere) == {"networks": 3}
    assert place(notebook, elsewhere) == Path("own/04_x/mine")


def test_a_file_at_the_wrong_depth_of_params_is_refused(tmp_path):
    case = write_case(tmp_path, "networks: 3").rename(tmp_path / "params" / "ipc1.yaml")
    with pytest.raises(ParameterError, match="must be params/<profile>/<notebook>/<case>.yaml"):
        check(write_notebook(tmp_path, CELL), case)


def test_no_such_notebook(tmp_path):
    with pytest.raises(ParameterError, match=r"04_x\.ipynb: cannot be read: No such file"):
        check(tmp_path / "04_x.ipynb", write_case(tmp_path, "networks: 3"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cells": 3}', '{"cells": [1]}', "\0"])
def test_not_a_notebook(tmp_path, text):
    path = tmp_path / "04_x.ipynb"
    path.write_text(text)
    with pytest.raises(ParameterError, match="not a Jupyter notebook"):
        read_interface(path)


def test_no_parameters_cell(tmp_path):
    with pytest.raises(ParameterError, match="no cell is tagged 'parameters'"):
        read_interface(write_notebook(tmp_path, CELL, tag=""))


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        ("ipc = 1", "line 1 sets 'ipc', which has no type; write 'ipc: type = value'"),
        ("ipc: int = 1\nipcc = 10", "line 2 sets 'ipcc', which has no type, did you mean 'ipc'"),
        ("seed: int = 0\nimport os", "line 2 is not 'name: type = literal'"),
        ("ipc: int = 1 + x", "line 1 is not 'name: type = literal'"),
        ("ipc: int", "line 1 is not 'name: type = literal'"),
        ("ipc.x: int = 1", "line 1 is not 'name: type = literal'"),
        ("ipc: int = 1.5", "'ipc' is not of type int"),
        ("ipc: integer = 1", "'ipc' is not of type integer"),
        ("ipc: int =", "line 1: invalid syntax"),
    ],
)
def test_parameters_cell_holds_typed_literals_alone(tmp_path, cell, sentence):
    with pytest.raises(ParameterError, match=f"parameters cell.*{sentence}"):
        read_interface(write_notebook(tmp_path, cell))


def test_notebook_without_its_folders(tmp_path):
    with pytest.raises(ParameterError, match="lacks 'output_folder: str"):
        check(write_notebook(tmp_path, "networks: int = 2"), write_case(tmp_path, "networks: 3"))


def test_unknown_settings_model(tmp_path):
    notebook = write_notebook(tmp_path, CELL, models=["EvalConfg"])
    with pytest.raises(ParameterError, match="gsdd_lib.config has no model 'EvalConfg'"):
        check(notebook, write_case(tmp_path, "networks: 3"))


def test_a_name_in_the_parameters_cell_that_nothing_answers_to(tmp_path):
    notebook = write_notebook(tmp_path, CELL + "epoch: int = 3\n")
    with pytest.raises(ParameterError, match="unknown parameter 'epoch', did you mean 'epochs'"):
        check(notebook, write_case(tmp_path, "{}"))


ROOT = Path(__file__).resolve().parents[2]
COMMITTED = sorted((ROOT / "params").glob("*/*/*.yaml"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_committed_parameter_files_are_right(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    check(ROOT / "notebooks" / f"{path.parent.name}.ipynb", path)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_papermill_reads_the_same_parameters(path, monkeypatch):
    papermill = pytest.importorskip("papermill")
    monkeypatch.chdir(path.parent)
    seen = papermill.inspect_notebook(path.name)
    assert list(seen) == list(read_interface(path).types)
    silent = [name for name, facts in seen.items() if not facts["help"]]
    assert not silent, f"{path.name}: a comment of unit and meaning is missing at {silent}"
