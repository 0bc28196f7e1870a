"""A notebook's parameters: every wrong name, type or value is found before any work is done.

A notebook has one ``parameters`` cell of ``name: type = literal  # meaning`` lines, and its setup
cell builds ``settings = parameters.pick(globals(), DataConfig, BudgetConfig, own=("photos",))``.
A name is known if it is a field of :class:`RunConfig` or of a model named there (``ipc``); such a
field for one objective (``dm_steps``); the plural of one, for a list of values to compare
(``objectives``); or one of ``own``, which the notebook alone uses. The same holds for a file.
"""

import ast
import math
import re
import reprlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from gsdd_lib.config import DATASETS, BudgetConfig, Config, DataConfig, RunConfig, nearest
from gsdd_lib.core.errors import ConfigError, GsddError
from gsdd_lib.experiment.tables import paper_number

PREFIX = re.compile("^(dm|dc|tm)_")
SCALARS = {"int": (int,), "float": (float, int), "bool": (bool,), "str": (str,)}
LONGEST = 220  # characters of a message's faults
ARRIVAL = 1.0  # seconds in which the other cells of a Run All reach the kernel


class ParameterError(GsddError, ValueError):
    """A parameter file or a notebook's parameters cell is wrong; one sentence says how."""

    def __init__(self, where: object, *faults: str) -> None:
        sentence = "; ".join(faults[:2]) + f"; and {len(faults) - 2} more" * bool(faults[2:])
        if len(sentence) > LONGEST:
            sentence = f"{sentence[:LONGEST]} ..."
        super().__init__(f"{where}: {sentence}" + "." * (not sentence.endswith("?")))


@dataclass(frozen=True)
class Interface:
    """What a notebook can be told: types and defaults by name, and what checks the values."""

    types: Mapping[str, str]
    defaults: Mapping[str, Any]  # and what follows from parameters
    models: tuple[type[Config], ...]
    own: frozenset[str] | None  # None: not said, so any other name may be the notebook's own

    def field(self, name: str) -> tuple[type[Config], str, bool] | None:
        """The model and field that ``name`` stands for, and whether it lists several values."""
        plural = {name[:-1]: True} if "list" in self.types.get(name, "") else {}
        for field, many in ({name: False, PREFIX.sub("", name): False} | plural).items():
            for model in self.models:
                if field in model.model_fields:
                    return model, field, many
        return None

    def unknown(self) -> list[str]:
        """A sentence for each name of the cell that nothing answers to."""
        own = self.types if self.own is None else self.own
        fields = [field for model in self.models for field in model.model_fields]
        known = [*own, *(f"{start}{f}" for start in ("", "dm_", "dc_", "tm_") for f in fields)]
        wrong = [name for name in self.types if not (name in own or self.field(name))]
        return [f"unknown parameter '{name}'{nearest(name, known)}" for name in wrong]

    def faults(self, values: Mapping[str, Any]) -> list[str]:
        """A sentence for each wrong value; if there is none, what is wrong with them together."""
        if faults := [fault for item in values.items() if (fault := self._fault(*item))]:
            return faults
        try:
            picked = {model: model.pick({**self.defaults, **values}) for model in self.models}
            run, budget, data = map(picked.get, (RunConfig, BudgetConfig, DataConfig))
            paper_number(run.paper_item, run.paper_method, run.paper_setting)
            if budget and data and (size := DATASETS[data.dataset]):
                from gsdd_lib.parameterizations.budget import points_per_image

                side, how = data.resolution or size[1], budget.model_dump(exclude={"soft_labels"})
                points_per_image(channels=size[0], height=side, width=side, **how)
        except GsddError as error:
            return [str(error)]
        return []

    def _fault(self, name: str, value: Any) -> str:
        shown, elements = reprlib.repr(value), value if isinstance(value, list) else [value]
        if name not in self.types:
            return f"unknown parameter {reprlib.repr(name)}{nearest(name, self.types)}"
        if not fits(value, self.types[name]):
            return f"'{name}' must be {self.types[name]}, not {shown} ({kind_of(value)})"
        if not elements:
            return f"'{name}' is an empty list"
        if not (found := self.field(name)):
            sound = all(isinstance(e, str) or (math.isfinite(e) and e >= 0) for e in elements)
            return "" if sound else f"'{name}' must be finite and not negative, not {shown}"
        model, field, many = found
        try:
            for element in elements if many else [value]:
                model(**{field: element})
        except ConfigError as error:
            return f"'{name}': {str(error).partition(f'{field}: ')[2]}"
        return ""


def pick(
    namespace: dict[str, Any], *models: type[Config], own: Iterable[str] = (), **others: Any
) -> SimpleNamespace:
    """All settings of a notebook, built by name from its parameters cell: one per model, called by
    its name (``data`` is a DataConfig), and ``values``, every parameter and field by name.

    A fault also takes an earlier run's ``settings`` out of the namespace, and ends a Run All: its
    other cells are not executed; cells that the reader runs afterwards are.

    Args:
        namespace: the notebook's ``globals()``. IPython keeps there the source of the cells that
            were run, which tells the parameters from other variables.
        models: what is built, beside :class:`RunConfig`.
        own: parameters that belong to no model.
        others: fields that follow from parameters, such as ``eval_width=width``.

    Raises:
        ParameterError: an unknown name, a wrong type or a wrong value.
    """
    try:
        return _picked(namespace, models, own, others)
    except ParameterError:
        namespace.pop("settings", None)  # an earlier run's, which a cell run by hand would use
        if "get_ipython" in namespace:
            # When a cell fails, the kernel aborts those that are waiting, but ipykernel 7 executes
            # those that arrive later, whatever its stop_on_error_timeout says. This cell may fail
            # before the rest of a Run All is there.
            time.sleep(ARRIVAL)
        raise


def _picked(
    namespace: Mapping[str, Any],
    models: Iterable[type[Config]],
    own: Iterable[str],
    others: Mapping[str, Any],
) -> SimpleNamespace:
    where = "The parameters cell"
    types, assigned = _executed(where, namespace)
    face = Interface(types, others, (RunConfig, *models), frozenset(own))
    values = {name: namespace.get(name) for name in dict.fromkeys([*types, *assigned])}
    if wrong := others.keys() - {field for model in face.models for field in model.model_fields}:
        raise ParameterError("parameters.pick", f"no model has a field '{min(wrong)}'")
    if faults := face.unknown() or face.faults(values):
        raise ParameterError(where, *faults)
    settings = SimpleNamespace(values={})
    for model in face.models:
        picked = model.pick({**values, **others})
        setattr(settings, model.__name__.removesuffix("Config").lower(), picked)
        settings.values |= picked.model_dump()
    settings.values |= values
    return settings


def _executed(where: str, namespace: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    cells = namespace.get("_ih", ())
    if ours := [at for at, cell in enumerate(cells) if re.search(r"(?m)^output_folder\s*:", cell)]:
        added = [cell for cell in cells[ours[-1] :] if cell.startswith("# Parameters")]
        names = [_target(line) for line in ast.parse("\n".join(added)).body]
        return read_cell(where, cells[ours[-1]])[0], names
    kinds = namespace.get("__annotations__", {})  # a notebook that was exported as a script
    if "output_folder" not in kinds:
        raise ParameterError(where, "was not run; run it before this one")
    return {n: k.__name__ if type(k) is type else str(k) for n, k in kinds.items()}, []


def _target(line: ast.stmt) -> str:
    targets = getattr(line, "targets", None) or [getattr(line, "target", None)]
    return getattr(targets[0], "id", "")


def read_cell(where: str, source: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Types and defaults of a parameters cell, ``name: type = literal  # meaning`` lines."""
    types, defaults = {}, {}
    try:
        lines = ast.parse(source).body
    except SyntaxError as error:
        raise ParameterError(where, f"line {error.lineno}: {error.msg}") from None
    typed = [_target(line) for line in lines if isinstance(line, ast.AnnAssign)]
    for line in lines:
        name, place = _target(line), f"line {line.lineno}"
        if name and not isinstance(line, ast.AnnAssign):
            hint = nearest(name, typed) or f"; write '{name}: type = value'"
            raise ParameterError(where, f"{place} sets '{name}', which has no type{hint}")
        try:
            types[name] = ast.unparse(line.annotation)
            defaults[name] = ast.literal_eval(line.value if name else None)
        except (AttributeError, ValueError, TypeError, RecursionError):
            raise ParameterError(where, f"{place} is not 'name: type = literal'") from None
        if not fits(defaults[name], types[name]):
            raise ParameterError(where, f"'{name}' is not of type {types[name]}")
    return types, defaults


def fits(value: Any, kind: str) -> bool:
    """Whether ``value`` is of the annotated type: a SCALARS name, or ``list[...]`` of one."""
    if kind.startswith("list[") and kind.endswith("]"):
        return isinstance(value, list) and all(fits(element, kind[5:-1]) for element in value)
    return isinstance(value, SCALARS.get(kind, ())) and isinstance(value, bool) == (kind == "bool")


def kind_of(value: Any) -> str:
    """The type of ``value``, as YAML's users call it."""
    return {"str": "text", "dict": "mapping"}.get(type(value).__name__, type(value).__name__)
