"""The setup cell builds settings by name, and refuses what the parameters cell says wrongly."""

import time

import pytest

from gsdd_lib.config import BudgetConfig, DataConfig, DistillConfig, EvalConfig
from gsdd_lib.experiment.parameters import ParameterError, pick

CELL = """output_folder: str = "runs/smoke/04_x"
run_folder: str = "runs/smoke/04_x"
seed: int = 3
dataset: str = "digits"
ipc: int = 1
gpc: int = 3
width: int = 16
dm_steps: int = 40
objectives: list[str] = ["dm", "dc"]
photos: int = 8
"""
MODELS = (DataConfig, BudgetConfig, DistillConfig, EvalConfig)


def notebook(*cells: str) -> dict:
    """The ``globals()`` of a notebook in which the cells were run, as IPython keeps them."""
    namespace = {}
    for cell in cells:
        exec(cell, namespace)
    return namespace | {"_ih": ["", *cells, "settings = parameters.pick(globals())"]}


def refused(*cells: str) -> str:
    with pytest.raises(ParameterError) as error:
        pick(notebook(*cells), *MODELS, own=["photos"])
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
    return str(error.value)


def test_settings_are_built_by_name_and_called_by_their_models():
    settings = pick(notebook(CELL), *MODELS, own=["photos"], eval_width=16)
    assert settings.run.seed == 3 and settings.data == DataConfig(dataset="digits")
    assert settings.budget == BudgetConfig(ipc=1, gpc=3)
    assert (settings.distill.width, settings.eval.eval_width) == (16, 16)
    assert settings.values["photos"] == 8 and settings.values["epochs"] == EvalConfig().epochs
    assert DistillConfig.pick(settings.values, prefix="dm_").steps == 40


def test_other_variables_of_the_notebook_are_no_parameters():
    namespace = notebook(CELL, "folder = 3\nepochs = 'many'\nhistory = []")
    settings = pick(namespace, *MODELS, own=["photos"])
    assert settings.data.folder == "" and settings.eval == EvalConfig()


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        (CELL + "ipcc: int = 10\n", "unknown parameter 'ipcc', did you mean 'ipc'?"),
        (CELL + "ipcc = 10\n", "line 11 sets 'ipcc', which has no type, did you mean 'ipc'?"),
        (CELL + "dm_stesp: int = 3\n", "unknown parameter 'dm_stesp', did you mean 'dm_steps'?"),
        (CELL.replace("photos", "photo"), "unknown parameter 'photo', did you mean 'photos'?"),
        (CELL.replace("int = 1\n", "int = 0\n"), "'ipc': Input should be greater than or equal"),
        (CELL.replace("digits", "digit"), "'dataset': unknown data set 'digit', did you mean"),
        (CELL.replace('"dc"', '"tmm"'), "'objectives': unknown objective 'tmm', did you mean 'tm'"),
        (CELL.replace("gpc: int = 3", "gpc: int = 1000"), "the largest gpc that fits is 18"),
    ],
)
def test_a_fault_in_the_cell_is_one_sentence(cell, sentence):
    assert sentence in refused(cell)


def test_a_value_set_in_a_later_cell_is_the_one_that_counts():
    namespace = notebook(CELL, "ipc = 10")
    assert pick(namespace, *MODELS, own=["photos"]).budget.ipc == 10
    assert "'ipc' must be int, not '10' (text)" in refused(CELL, "ipc = '10'")


def test_what_papermill_injects_is_checked_too():
    injected = "# Parameters\nipc = 10\n"
    assert pick(notebook(CELL, injected), *MODELS, own=["photos"]).budget.ipc == 10
    assert "unknown parameter 'ipcc', did you mean" in refused(CELL, injected + "ipcc = 10\n")


def test_the_cell_as_it_was_last_run_is_the_one_that_counts():
    edited = CELL + "ipcc: int = 10\n"
    assert pick(notebook(edited, CELL), *MODELS, own=["photos"]).budget.ipc == 1
    assert "ipcc" in refused(CELL, edited)


def test_a_notebook_without_its_parameters_cell_run():
    assert refused("x = 1") == "The parameters cell: was not run; run it before this one."


def test_a_notebook_that_was_exported_as_a_script():
    namespace = {}
    exec(CELL, namespace)
    assert pick(namespace, *MODELS, own=["photos"]).budget.gpc == 3


def test_a_keyword_that_no_model_has():
    with pytest.raises(ParameterError, match="no model has a field 'eval_widht'"):
        pick(notebook(CELL), *MODELS, own=["photos"], eval_widht=3)


def test_in_a_kernel_the_first_run_is_refused_and_the_mended_one_goes_on():
    """The history that IPython keeps is the one that the rules above are tested with."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    setup = """from gsdd_lib.config import BudgetConfig
from gsdd_lib.experiment import parameters
try:
    print(parameters.pick(globals(), BudgetConfig).budget.ipc)
except parameters.ParameterError as error:
    print(error)"""
    cell = 'output_folder: str = ""\nrun_folder: str = ""\nipc: int = 4'
    cells = [cell + "\nipcc: int = 10", setup, cell, "# Parameters\nipc = 7", setup]
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(made, kernel_name="python3").execute()
    assert "unknown parameter 'ipcc', did you mean 'ipc'?" in made.cells[1].outputs[0].text
    assert made.cells[4].outputs[0].text == "7\n"


@pytest.mark.parametrize("cell", [CELL + "ipcc: int = 10\n", CELL + "ipcc = 10\n", "x = 1"])
def test_settings_of_an_earlier_run_do_not_survive_a_fault(cell):
    namespace = notebook(cell) | {"settings": "of the run before"}
    with pytest.raises(ParameterError):
        pick(namespace, *MODELS, own=["photos"])
    assert "settings" not in namespace


def test_a_cell_that_reaches_the_kernel_after_the_fault_is_not_executed():
    """As in JupyterLab's Run All; what the reader runs afterwards is executed."""
    manager = pytest.importorskip("jupyter_client").KernelManager(kernel_name="python3")
    manager.start_kernel()
    client = manager.client()
    client.start_channels()

    def reply(code: str) -> dict:
        return client.execute_interactive(code, timeout=60, output_hook=list)["content"]

    try:
        client.wait_for_ready(timeout=60)
        reply("from gsdd_lib.experiment import parameters")
        reply('output_folder: str = ""\nrun_folder: str = ""\nipcc: int = 10')
        client.execute("parameters.pick(globals())")
        code = ""
        while "pick" not in code:  # it is being executed
            code = client.get_iopub_msg(timeout=60)["content"].get("code", "")
        time.sleep(0.3)
        late = client.execute("late = True")
        status = {}
        while late not in status:
            message = client.get_shell_msg(timeout=60)
            status[message["parent_header"]["msg_id"]] = message["content"]
        (refused,) = (content for key, content in status.items() if key != late)
        assert "unknown parameter 'ipcc'" in refused["evalue"]
        assert status[late]["status"] == "aborted"
        assert reply("assert 'late' not in globals()")["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
