"""Imports run downwards only, and importing the library costs and changes nothing.

One package is one floor: a module may import its own package and those of lower floors.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = (  # from the ground up; packages on one line do not know each other
    {"core", "cuda_ext"},
    {"config"},
    {"data", "networks", "splatting", "experiment"},
    {"parameterizations"},
    {"training", "benchmarks"},
    {"evaluation"},
    {"distillation"},
    {"storage"},
    {"api"},
    {"cli"},
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
WIDGETS = {"parameterizations", "storage"}
# A parameter file is refused where its budget buys no Gaussian.
MAY_ALSO = {"widgets.py": WIDGETS, "parameters.py": {"parameterizations"}}
MAY_ALSO["gpu_parts.py"] = {"api"}  # it shows the whole library at work
MAY_ALSO["live.py"] = {"distillation"}  # it opens checkpoints
# What needs no tensors must not wait for torch, nor plots and tables for scikit-learn.
LIGHT = ("config", "core.files", "experiment.results", "experiment.plots", "experiment.tables")
LIGHT += ("cli", "experiment.parameters", "experiment.parameter_files", "experiment.runner")
SOURCES = sorted([*(ROOT / "gsdd_lib").rglob("*.py"), *(ROOT / "cuda_ext").rglob("*.py")])


def room(path: Path) -> str:
    """The module or package of the house that a source file belongs to; __init__ is its name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "cuda_ext" if parts[0] == "cuda_ext" else parts[1]


def imported(path: Path) -> set[str]:
    """Full dotted names that a file imports anywhere, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms_imported(path: Path) -> set[str]:
    """The rooms of the house that a file imports, itself left out."""
    rooms = set()
    for name in imported(path):
        top, _, rest = name.partition(".")
        if top == "cuda_ext":
            rooms.add("cuda_ext")
        elif top == "gsdd_lib" and rest:
            rooms.add(rest.partition(".")[0])
    return rooms - {room(path)}


def test_every_package_has_a_floor():
    unknown = {room(path) for path in SOURCES} - set(FLOOR) - {"__init__"}
    assert SOURCES and not unknown, f"give {sorted(unknown)} a floor in {Path(__file__).name}"


def test_every_floor_is_inhabited():
    assert set(FLOOR) <= {room(path) for path in SOURCES}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_run_downwards_only(path):
    own = room(path)
    if own == "__init__":
        return  # lazy: see test_importing_the_library_...
    allowed = {name for name, floor in FLOOR.items() if floor < FLOOR[own]}
    allowed |= MAY_ALSO.get(path.name, set())
    wrong = rooms_imported(path) - allowed
    assert not wrong, f"{own} imports {sorted(wrong)}, which is not on a floor below"


def test_only_widgets_import_ipywidgets():
    users = {path.name for path in SOURCES for name in imported(path) if "ipywidgets" in name}
    assert users == {"widgets.py", "live.py"}


def test_the_operator_knows_nothing_of_distillation():
    for path in SOURCES:
        if room(path) == "cuda_ext":
            assert not rooms_imported(path), path.name


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_library_loads_no_torch_and_draws_no_random_number():
    code = """if True:
        import random, sys, warnings
        state, filters = random.getstate(), list(warnings.filters)
        import gsdd_lib
        assert random.getstate() == state and list(warnings.filters) == filters
        print(sorted({"torch", "numpy", "matplotlib", "ipywidgets"} & set(sys.modules)))"""
    assert run_python(code) == "[]"


def test_modules_without_tensors_load_no_torch():
    imports = "; ".join(f"import gsdd_lib.{name}" for name in LIGHT)
    code = f"import sys; {imports}; print('torch' in sys.modules)"
    assert run_python(code) == "False"


def test_importing_every_module_leaves_torchs_generator_and_threads_alone():
    names = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in SOURCES
        if path.name != "widgets.py"
    )
    code = f"""if True:
        import importlib, torch
        state, threads = torch.get_rng_state(), torch.get_num_threads()
        for name in {names}:
            importlib.import_module(name)
        print(torch.equal(state, torch.get_rng_state()), threads == torch.get_num_threads())"""
    assert run_python(code) == "True True"
