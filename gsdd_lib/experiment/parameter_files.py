"""Parameter files: flat YAML that overrides a notebook's parameters, checked before it runs.
papermill only warns of an unknown parameter and then runs with the default, for hours."""

import ast
import json
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gsdd_lib import config
from gsdd_lib.core.files import project_root
from gsdd_lib.experiment.parameters import Interface, ParameterError, kind_of, read_cell

# Where a run writes follows from the parameter file's own place, so a file may not set these.
FOLDERS = ("output_folder", "run_folder")


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core rules, so that ``1e-3`` is a number and ``no`` a word; no key twice."""

    yaml_implicit_resolvers: Mapping[str, Any] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            problem = f"{reprlib.repr(twice[0])} stands there twice"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)


for _tag, _pattern in {
    "null": r"null|~|",
    "bool": r"true|false",
    "int": r"[-+]?(0|[1-9][0-9]*)",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?",
}.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"({_pattern})$"), None)


def load_parameters(path: Path) -> dict[str, Any]:
    """The file's flat mapping of names to numbers, booleans, texts or flat lists of them.
    Raises ParameterError, in one sentence, whatever is wrong with it."""
    try:
        values = yaml.load(path.read_text("utf-8"), Loader=_Loader)
    except OSError as error:
        raise ParameterError(path, f"cannot be read: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise ParameterError(path, f"not valid YAML: {error.problem}{line}") from None
    except Exception as error:  # what a tag's constructor raises is anything
        problem = str(error).partition("\n")[0]
        raise ParameterError(path, f"not a YAML text of parameters: {problem}") from None
    if values is None:
        raise ParameterError(path, "holds no parameter; write {} to keep every default")
    if not isinstance(values, dict):
        raise ParameterError(path, f"must be lines of 'name: value', not a {kind_of(values)}")
    for name, value in values.items():
        inner = value if isinstance(value, list) else [value]
        if not isinstance(name, str) or not name.isidentifier():
            raise ParameterError(path, f"{reprlib.repr(name)} is not a parameter's name")
        if value is None:
            raise ParameterError(path, f"'{name}' has no value; leave the line out for the default")
        if not all(isinstance(element, int | float | str) for element in inner):
            raise ParameterError(path, f"'{name}' is nested; a value is a scalar or a flat list")
    return values


def place(notebook: Path, path: Path) -> Path:
    """Where results go in figures/: ``<profile>/<notebook>/<case>``; else own/<notebook>/<case>."""
    params = (project_root() / "params").resolve()
    if not path.resolve().is_relative_to(params):
        return Path("own", notebook.stem, path.stem)
    inside = path.resolve().relative_to(params).with_suffix("")
    if len(inside.parts) != 3:
        raise ParameterError(path, "must be params/<profile>/<notebook>/<case>.yaml, or elsewhere")
    if inside.parts[1] != notebook.stem:
        raise ParameterError(path, f"belongs to '{inside.parts[1]}', not to '{notebook.stem}'")
    return inside


def check(notebook: Path, path: Path) -> dict[str, Any]:
    """The file's values, once its names, types and values are all right for the notebook."""
    values, face = load_parameters(path), read_interface(notebook)
    place(notebook, path)
    faults = [f"'{name}' follows from the file's place" for name in FOLDERS if name in values]
    if faults := faults or face.faults(values):
        raise ParameterError(path, *faults)
    return values


def read_interface(notebook: Path) -> Interface:
    """Read the notebook's one ``parameters`` cell, and the models that its setup cell picks."""
    try:
        cells = json.loads(notebook.read_text("utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", ())]
    except OSError as error:
        raise ParameterError(notebook, f"cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise ParameterError(notebook, "not a Jupyter notebook (format 4)") from None
    if len(tagged) != 1:
        found = f"{len(tagged)} cells are" if tagged else "no cell is"
        raise ParameterError(notebook, f"{found} tagged 'parameters'; exactly one must be")
    where = f"{notebook}: parameters cell"
    types, defaults = read_cell(where, "".join(tagged[0]["source"]))
    if missing := [name for name in FOLDERS if types.get(name) != "str"]:
        raise ParameterError(where, f"lacks '{missing[0]}: str = ...'")
    models, own = [config.RunConfig], None
    trees = [ast.parse(source) for source in code if "parameters.pick(" in source]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for call in (call for call in calls if ast.unparse(call.func) == "parameters.pick"):
        names = [ast.literal_eval(key.value) for key in call.keywords if key.arg == "own"]
        own = frozenset(names[0] if names else ())
        for name in map(ast.unparse, call.args[1:]):
            models.append(getattr(config, name.split(".")[-1], None))
            if models[-1] is None:
                raise ParameterError(notebook, f"gsdd_lib.config has no model '{name}'")
    face = Interface(types, defaults, tuple(models), own)
    if faults := face.unknown():
        raise ParameterError(where, *faults)
    return face
