"""Imports run downwards only, and importing the library costs and changes nothing.

The ranks are the house's floors: a module may import its own floor and those below, never one
above, and never in a circle.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = (
    (
        "config",
        "rng",
        "files",
        "processor",
        "progress",
        "results",
        "plots",
        "timing_plots",
        "pictures",
        "tables",
        "cuda_ext",
        "device",
    ),
    (
        "splat",
        "splat_reference",
        "placement",
        "fit_loop",
        "gsplat_raster",
        "floor",
        "footprint",
        "profiling",
        "budget",
        "data",
        "networks",
        "augment",
    ),
    ("parameterizations", "objectives"),
    (
        "distill",
        "outer_step",
        "checkpoint",
        "easy",
        "evaluate",
        "training",
        "summary",
        "protocols",
        "rivals",
        "soft_labels",
        "cross_architecture",
        "fit",
        "storage",
        "distilled_set",
        "experts",
        "expert_files",
        "draws",
        "carried",
        "matching",
        "explore",
        "anatomy",
        "parameter_files",
        "runner",
        "benchmark",
        "fit_benchmark",
        "efficiency",
        "devices",
        "network_cost",
        "passes",
        "step_cost",
        "pass_times",
        "plans",
        "plan_check",
        "planner",
    ),
)
RANK = {name: rank for rank, names in enumerate(FLOORS) for name in names}
# What needs no tensors must not wait for torch, nor plots and tables for scikit-learn.
LIGHT = (
    "config",
    "files",
    "processor",
    "results",
    "plots",
    "tables",
    "parameter_files",
    "runner",
)
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


def test_every_module_has_a_floor():
    unknown = {room(path) for path in SOURCES} - set(RANK) - {"__init__"}
    assert SOURCES and not unknown, f"give {sorted(unknown)} a floor in {Path(__file__).name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_run_downwards_only(path):
    if room(path) == "__init__":
        return  # lazy: see test_importing_the_library_...
    above = {name for name in rooms_imported(path) if RANK.get(name, 99) > RANK[room(path)]}
    assert not above, f"{room(path)} imports {sorted(above)} from a floor above"


def test_objectives_and_parameterizations_meet_in_distill_alone():
    for path in SOURCES:
        if room(path) in ("objectives", "parameterizations"):
            assert not rooms_imported(path) & {"objectives", "parameterizations"}, path.name


def test_no_circles():
    below: dict[str, set[str]] = {}
    for path in SOURCES:
        if room(path) != "__init__":
            below.setdefault(room(path), set()).update(rooms_imported(path))
    while below:  # take away what imports nothing that is left, until nothing is
        free = {name for name, rooms in below.items() if not rooms & set(below)}
        assert free, f"imports in a circle among {sorted(below)}"
        below = {name: rooms for name, rooms in below.items() if name not in free}


def test_only_explore_imports_ipywidgets():
    users = {room(path) for path in SOURCES for name in imported(path) if "ipywidgets" in name}
    assert users <= {"explore"}


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
    names = [name for name in LIGHT if (ROOT / "gsdd_lib" / f"{name}.py").exists()]
    code = f"import sys; from gsdd_lib import {', '.join(names)}; print('torch' in sys.modules)"
    assert run_python(code) == "False"


def test_importing_every_module_leaves_torchs_generator_and_threads_alone():
    names = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in SOURCES
        if room(path) != "explore"
    )
    code = f"""if True:
        import importlib, torch
        state, threads = torch.get_rng_state(), torch.get_num_threads()
        for name in {names}:
            importlib.import_module(name)
        print(torch.equal(state, torch.get_rng_state()), threads == torch.get_num_threads())"""
    assert run_python(code) == "True True"
