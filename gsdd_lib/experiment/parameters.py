"""Parameter files: every wrong name, type or value is found before a notebook starts.

papermill itself only warns about an unknown parameter and then runs with the default, so a typing
mistake would cost hours and look like a result. A file is a flat mapping that overrides literals of
the notebook's one ``parameters`` cell; the notebook's metadata ``{"gsdd": {"configs": [...]}}``
names the settings models of :mod:`gsdd_lib.config` that also have to accept the values.
"""

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gsdd_lib import config
from gsdd_lib.config import Config, nearest
from gsdd_lib.core.errors import ConfigError, GsddError

# Where a run writes follows from the parameter file's own place, so a file may not set these.
FOLDERS = ("output_folder", "run_folder")

SCALARS: Mapping[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "str": (str,),
}


class ParameterError(GsddError, ValueError):
    """A parameter file or a notebook's parameters cell is wrong; one sentence says how."""


@dataclass(frozen=True)
class Interface:
    """What a notebook can be told: parameter types and defaults, and the models that judge them."""

    types: Mapping[str, str]
    defaults: Mapping[str, Any]
    configs: tuple[str, ...]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core rules, so that ``1e-3`` is a number and ``no`` a word; no key twice."""

    yaml_implicit_resolvers: Mapping[str, Any] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                problem = f"'{key}' stands there twice"
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
    """The file's flat mapping of names to numbers, booleans, texts or flat lists of them."""
    try:
        values = yaml.load(path.read_text("utf-8"), Loader=_Loader)
    except OSError as error:
        raise ParameterError(f"{path}: cannot be read: {error.strerror}.") from None
    except yaml.MarkedYAMLError as error:
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise ParameterError(f"{path}: not valid YAML: {error.problem}{line}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParameterError(f"{path}: not a YAML text: {error}.".replace("\n", " ")) from None
    if values is None:
        raise ParameterError(f"{path}: holds no parameter; write {{}} to keep every default.")
    if not isinstance(values, dict):
        raise ParameterError(f"{path}: must be lines of 'name: value', not a {_kind(values)}.")
    for name, value in values.items():
        _require_flat(path, name, value)
    return values


def _require_flat(path: Path, name: Any, value: Any) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        raise ParameterError(f"{path}: {name!r} is not a parameter's name.")
    if value is None:
        raise ParameterError(f"{path}: '{name}' has no value; leave the line out for the default.")
    inner = value if isinstance(value, list) else [value]
    if any(isinstance(part, dict | list) or part is None for part in inner):
        raise ParameterError(f"{path}: '{name}' is nested; a value is a scalar or a flat list.")


def read_interface(notebook: Path) -> Interface:
    """Read the notebook's one ``parameters`` cell and the models that its metadata names."""
    try:
        content = json.loads(notebook.read_text("utf-8"))
        cells, facts = content["cells"], content.get("metadata", {}).get("gsdd", {})
        tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", ())]
    except OSError as error:
        raise ParameterError(f"{notebook}: cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ParameterError(f"{notebook}: not a Jupyter notebook (format 4).") from None
    if len(tagged) != 1:
        found = f"{len(tagged)} cells are" if tagged else "no cell is"
        raise ParameterError(f"{notebook}: {found} tagged 'parameters'; exactly one must be.")
    types, defaults = _read_cell(notebook, "".join(tagged[0]["source"]))
    return Interface(types, defaults, tuple(facts.get("configs", ())))


def _read_cell(notebook: Path, source: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Types and defaults of ``name: type = literal  # meaning`` lines."""
    types, defaults = {}, {}
    try:
        lines = ast.parse(source).body
    except SyntaxError as error:
        problem = f"parameters cell, line {error.lineno}: {error.msg}"
        raise ParameterError(f"{notebook}: {problem}.") from None
    for line in lines:
        try:
            name, kind = line.target.id, ast.unparse(line.annotation)
            value = ast.literal_eval(line.value)
        except (AttributeError, ValueError, TypeError):
            problem = f"parameters cell, line {line.lineno} is not 'name: type = literal'"
            raise ParameterError(f"{notebook}: {problem}.") from None
        if not fits(value, kind):
            raise ParameterError(f"{notebook}: parameters cell: '{name}' is not of type {kind}.")
        types[name], defaults[name] = kind, value
    return types, defaults


def fits(value: Any, kind: str) -> bool:
    """Whether ``value`` is of the annotated type: a SCALARS name, or ``list[...]`` of one.

    >>> fits(1, "float"), fits(True, "int"), fits([1, 2], "list[int]"), fits("1", "int")
    (True, False, True, False)
    """
    if kind.startswith("list[") and kind.endswith("]"):
        return isinstance(value, list) and all(fits(part, kind[5:-1]) for part in value)
    if isinstance(value, bool):
        return kind == "bool"
    return isinstance(value, SCALARS.get(kind, ()))


def check(notebook: Path, path: Path) -> dict[str, Any]:
    """The file's values, once its names, types and values are all right for the notebook."""
    values, interface = load_parameters(path), read_interface(notebook)
    if path.parent.name != notebook.stem:
        raise ParameterError(f"{path}: belongs to '{path.parent.name}', not to '{notebook.stem}'.")
    for name in FOLDERS:
        if interface.types.get(name) != "str":
            raise ParameterError(f"{notebook}: the parameters cell lacks '{name}: str = ...'.")
    faults = [_fault(name, value, interface.types) for name, value in values.items()]
    if not any(faults):
        faults = _model_faults(notebook, interface, dict(interface.defaults) | values)
    if any(faults):
        sentence = "; ".join(filter(None, faults))
        raise ParameterError(f"{path}: {sentence}{'' if sentence.endswith('?') else '.'}")
    return values


def _fault(name: str, value: Any, types: Mapping[str, str]) -> str:
    if name in FOLDERS:
        return f"'{name}' follows from the file's place and cannot be set"
    if name not in types:
        return f"unknown parameter '{name}'{nearest(name, list(types))}"
    if not fits(value, types[name]):
        return f"'{name}' must be {types[name]}, not {value!r} ({_kind(value)})"
    return ""


def _model_faults(notebook: Path, interface: Interface, values: Mapping[str, Any]) -> list[str]:
    """What the notebook's settings models object to, one sentence per model."""
    faults = []
    for name in interface.configs:
        model = getattr(config, name, None)
        if not (isinstance(model, type) and issubclass(model, Config)):
            raise ParameterError(f"{notebook}: metadata names no known model: {name!r}.")
        own = {field: values[field] for field in model.model_fields if field in values}
        try:
            model.from_params(**own)
        except ConfigError as error:
            faults.append(str(error))
    return faults


def _kind(value: Any) -> str:
    return {"str": "text", "dict": "mapping"}.get(type(value).__name__, type(value).__name__)
