"""Tables: DataFrames to Markdown, and our results beside the published numbers.

The published numbers stand in ``paper_numbers.yaml`` and only ever appear in columns that say so;
what was not run here reads "not run", never blank.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import pandas as pd
import yaml

from gsdd_lib.config import nearest
from gsdd_lib.core.errors import ConfigError

NOT_RUN = "not run"
NOT_REPORTED = "not reported"

SUBSETS = ("nette", "woof", "fruit", "yellow", "meow", "squawk")
CIFAR = tuple(f"{name} IPC {ipc}" for name in ("CIFAR-10", "CIFAR-100") for ipc in (1, 10, 50))
# What the positions of a list mean, by the item's first words.
AXES = {
    "table_1_": SUBSETS,
    "table_2_": SUBSETS,
    "table_3_": SUBSETS,
    "table_4_": SUBSETS,
    "table_15_": CIFAR,
    "table_16_": SUBSETS,
    "table_20_": ("21 points", "170 points", "682 points", "2730 points"),
    "table_21_": ("accuracy", "difference", "ratio"),
    "fashion_mnist": ("IPC 1", "IPC 10", "IPC 50"),
}
# Items whose method is not the first key but the second.
METHOD_IS_SECOND = ("table_2_", "table_6_", "table_16_", "table_21_")
# Facts beside the results in the same item: settings, not scores.
NOT_SCORES = {"points", "k", "gpc"}
# Items that hold settings alone; a test sees that params/paper/ follows them.
SETTINGS = tuple(f"table_{number}_" for number in range(7, 13))
# Both ways to report a run, and how the report's columns call ours (see ``protocols``).
PROTOCOLS = {"clean": "ours (clean)", "paper": "ours (the paper's rule)"}


def to_markdown(frame: pd.DataFrame, *, digits: int = 2, missing: str = "") -> str:
    """``frame`` as a Markdown table: numbers to the right, floats with ``digits`` decimals.

    >>> print(to_markdown(pd.DataFrame({"method": ["a"], "PSNR (dB)": [22.345]})))
    | method | PSNR (dB) |
    | --- | ---: |
    | a | 22.34 |
    <BLANKLINE>
    """
    numeric = [pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]
    lines = [
        _row(str(name) for name in frame.columns),
        _row("---:" if number else "---" for number in numeric),
    ]
    for values in frame.itertuples(index=False, name=None):
        lines.append(_row(_cell(value, digits, missing) for value in values))
    return "\n".join(lines) + "\n"


def _row(cells: Iterator[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _cell(value: Any, digits: int, missing: str) -> str:
    if value is None or (not isinstance(value, str) and pd.isna(value)):
        return missing
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value).replace("\n", " ")


@cache
def paper_numbers() -> Mapping[str, Any]:
    """The published numbers as they stand in ``paper_numbers.yaml``."""
    text = resources.files("gsdd_lib.experiment").joinpath("paper_numbers.yaml").read_text("utf-8")
    return yaml.safe_load(text)


def paper_rows(item: str) -> pd.DataFrame:
    """One published table as tidy rows: ``item, method, setting, paper, deviation``.

    Args:
        item: a key of ``paper_numbers.yaml``, e.g. ``"table_15_cifar_tm"``. Unknown: KeyError.
    """
    axis = next((axis for start, axis in AXES.items() if item.startswith(start)), ())
    method_at = 1 if item.startswith(METHOD_IS_SECOND) else 0
    rows = []
    for path, value in _leaves(paper_numbers()[item], axis, ()):
        method = path[method_at]
        setting = ", ".join(path[:method_at] + path[method_at + 1 :])
        score, deviation = value if isinstance(value, list) else (value, None)
        rows.append((item, method, setting, score, deviation))
    frame = pd.DataFrame(rows, columns=["item", "method", "setting", "paper", "deviation"])
    return frame.astype({"paper": float, "deviation": float})


def _leaves(node: Any, axis: tuple[str, ...], path: tuple[str, ...]) -> Iterator[tuple]:
    """Yield ``(path, value)``; a list as long as ``axis`` is one value per position."""
    if isinstance(node, dict):
        for key, child in node.items():
            if key not in NOT_SCORES:
                yield from _leaves(child, axis, (*path, key))
    elif isinstance(node, list) and len(node) == len(axis):
        for position, child in zip(axis, node, strict=True):
            yield (*path, position), child
    else:
        yield path, node


@dataclass(frozen=True)
class PaperNumber:
    """One published number: percent, and its deviation (NaN where there is none)."""

    item: str
    method: str
    setting: str
    value: float
    deviation: float

    def __str__(self) -> str:
        table, number = self.item.split("_")[:2]
        return f"{_published(self.value, self.deviation)} ({table} {number}, {self.setting})"


def paper_number(item: str, method: str, setting: str) -> PaperNumber | None:
    """The published number that a run is to be read beside; an empty ``item``: it has none.

    Raises :class:`ConfigError` naming the nearest item, method or setting that exists.

    >>> str(paper_number("table_15_cifar_tm", "gsdd", "CIFAR-10 IPC 1"))
    '67.6 ± 0.4 (table 15, CIFAR-10 IPC 1)'
    """
    if not item:
        return None
    rows = pd.DataFrame({"item": list(paper_numbers())})
    for name, value in {"item": item, "method": method, "setting": setting}.items():
        found = rows[rows[name] == value]
        if found.empty:
            hint = nearest(value, rows[name].unique().tolist())
            raise ConfigError(f"the paper has no {name} '{value}'{hint}")
        rows = paper_rows(item) if name == "item" else found
    row = rows.iloc[0]
    return PaperNumber(item, method, setting, float(row.paper), float(row.deviation))


def beside_paper(ours: pd.DataFrame) -> pd.DataFrame:
    """Every result in the paper's tables, ours beside it under both protocols: strings.

    Args:
        ours: what runs left: ``paper_item, paper_method, paper_setting`` say what a row is to be
            read beside, ``protocol`` is a key of :data:`PROTOCOLS`, ``mean, ci95, n`` are its
            numbers. Rows and columns that are missing count as not run.
    """
    keys = ["paper_item", "paper_method", "paper_setting", "protocol"]
    ours = ours.reindex(columns=[*keys, "mean", "ci95", "n"])
    ours = ours.rename(columns={"paper_method": "method", "paper_setting": "setting"})
    parts = []
    for item in paper_numbers():
        if not item.startswith("table_") or item.startswith(SETTINGS):
            continue
        columns = []
        for protocol, heading in PROTOCOLS.items():
            run = ours[(ours.paper_item == item) & (ours.protocol == protocol)]
            columns.append(compare(paper_rows(item), run).rename(columns={"ours": heading}))
        clean, paper = columns
        clean.insert(3, PROTOCOLS["paper"], paper[PROTOCOLS["paper"]])
        parts.append(clean.assign(item=item)[["item", *clean.columns]])
    return pd.concat(parts, ignore_index=True)


def fashion_mnist_rivals(ipc: int) -> pd.DataFrame:
    """Published results on Fashion-MNIST: ``method, accuracy, deviation, source`` (percent).

    >>> fashion_mnist_rivals(1).accuracy.tolist()
    [70.5, 70.6, 76.7]
    """
    rows = paper_rows("fashion_mnist")
    rows = rows[rows.setting == f"IPC {ipc}"]
    sources = [paper_numbers()["sources"][method] for method in rows.method]
    found = pd.DataFrame({"method": rows.method, "accuracy": rows.paper})
    return found.assign(deviation=rows.deviation, source=sources).reset_index(drop=True)


def compare(paper: pd.DataFrame, ours: pd.DataFrame, *, source: str = "") -> pd.DataFrame:
    """Our numbers beside the published ones, every published row kept: strings, ready to print.

    Args:
        paper: ``method, setting, paper, deviation``, as :func:`paper_rows` gives.
        ours: ``method, setting, mean`` and where known ``ci95`` (half-width) and ``n``; may be
            empty. Its methods and settings are matched by name.
        source: heads the published column; empty: the paper of the whole file.
    """
    published = f"published ({source or paper_numbers()['sources']['gsdd']})"
    ours = ours.reindex(columns=["method", "setting", "mean", "ci95", "n"])
    keys = ["method", "setting"]
    order = pd.concat([paper[keys], ours[keys]]).drop_duplicates()
    rows = order.merge(paper, on=keys, how="left").merge(ours, on=keys, how="left")
    return pd.DataFrame(
        {
            "method": rows.method,
            "setting": rows.setting,
            "ours": [_ours(*values) for values in rows[["mean", "ci95", "n"]].to_numpy()],
            published: [_published(*values) for values in rows[["paper", "deviation"]].to_numpy()],
        }
    )


def _ours(mean: float, ci95: float, n: float) -> str:
    if pd.isna(mean):
        return NOT_RUN
    interval = "" if pd.isna(ci95) else f" ± {ci95:.1f}"
    return f"{mean:.1f}{interval}" + ("" if pd.isna(n) else f" (n={n:.0f})")


def _published(score: float, deviation: float) -> str:
    if pd.isna(score):
        return NOT_REPORTED
    return f"{score:.1f}" + ("" if pd.isna(deviation) else f" ± {deviation:.1f}")
