"""Tables: DataFrames to Markdown and LaTeX, and our results beside the published numbers. A ± of
ours is the 95 % interval of a mean over ``n`` networks; a published one is a deviation."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any

import pandas as pd
import yaml

from gsdd_lib.config import nearest
from gsdd_lib.core.errors import ConfigError

NOT_RUN, NOT_REPORTED = "not run", "not reported"
PAPER, AS_PAPER, SCALED = "the paper", "ours (the paper's settings)", "ours (scaled)"
WHAT = "scaled"  # the column that says what was scaled
KEYS = ["item", "method", "setting"]
NOT_SCORES = {"points", "k", "gpc"}  # settings that stand beside the results of an item


def to_markdown(frame: pd.DataFrame, *, digits: int = 2, missing: str = "") -> str:
    """``frame`` as a Markdown table: numbers to the right, floats with ``digits`` decimals."""
    texts, sides = _printed(frame, digits, missing)
    rule = ["---:" if side == "r" else "---" for side in sides]
    rows = [list(texts), rule, *texts.to_numpy().tolist()]
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)


def to_latex(frame: pd.DataFrame, *, digits: int = 2, missing: str = "") -> str:
    """``frame`` as a ``tabular`` with the rules of booktabs, aligned as in :func:`to_markdown`."""
    texts, sides = _printed(frame, digits, missing)
    latex = texts.to_latex(index=False, escape=True, column_format=sides)
    return latex.replace("±", r"$\pm$").replace("×", r"$\times$")


def _printed(frame: pd.DataFrame, digits: int, missing: str) -> tuple[pd.DataFrame, str]:
    def text(value: Any) -> str:
        if pd.api.types.is_scalar(value) and pd.isna(value):
            return missing
        return f"{value:.{digits}f}" if isinstance(value, float) else str(value).replace("\n", " ")

    sides = ["r" if pd.api.types.is_numeric_dtype(kind) else "l" for kind in frame.dtypes]
    return frame.astype(object).map(text).rename(columns=str), "".join(sides)


@cache
def paper_numbers() -> Mapping[str, Any]:
    text = resources.files(__package__).joinpath("paper_numbers.yaml").read_text("utf-8")
    return yaml.safe_load(text)


def paper_rows(item: str) -> pd.DataFrame:
    """One published table as tidy rows: ``item, method, setting, paper, deviation``."""
    numbers, rows = paper_numbers(), []
    axis = next((axis for start, axis in numbers["axes"].items() if item.startswith(start)), ())
    at = int(item.startswith(tuple(numbers["method_is_second"])))
    for path, value in _leaves(numbers[item], axis):
        score, deviation = value if isinstance(value, list) else (value, None)
        rows.append((item, path[at], ", ".join(path[:at] + path[at + 1 :]), score, deviation))
    kinds = {"paper": float, "deviation": float}
    return pd.DataFrame(rows, columns=[*KEYS, *kinds]).astype(kinds)


def _leaves(node: Any, axis: Iterable[str], path: tuple[str, ...] = ()) -> Iterator[tuple]:
    if isinstance(node, list) and len(node) == len(axis):
        node = dict(zip(axis, node, strict=True))
    if isinstance(node, dict):
        for key in filter(lambda key: key not in NOT_SCORES, node):
            yield from _leaves(node[key], axis, (*path, key))
    else:
        yield path, node


def paper_number(item: str, method: str, setting: str) -> pd.Series | None:
    """The row of :func:`paper_rows` that a run is to be read beside; None without a setting.
    Raises ConfigError for an unknown item, method or setting; it names the nearest."""
    rows = pd.DataFrame({"item": list(paper_numbers())})
    for key, name in zip(KEYS, (item, method, setting), strict=True):
        if not item or (not setting and key != "item"):
            return None
        if name not in (known := rows[key].tolist()):
            raise ConfigError(f"the paper has no {key} '{name}'{nearest(name, known)}")
        rows = paper_rows(item) if key == "item" else rows[rows[key] == name]
    return rows.iloc[0]


def beside_paper(ours: pd.DataFrame, *, protocol: str = "paper") -> pd.DataFrame:
    """Every result in the paper's tables with ours beside it, as text, scaled runs in their own
    column; of several runs beside one number, the last.

    Args:
        ours: rows of ``results.csv``: ``paper_item``, ``paper_method``, ``paper_setting``,
            ``protocol``, ``mean``, ``ci95``, ``n`` and ``scaled``, which says what was scaled;
            "nothing": the paper's settings. A row that does not say is scaled.
        protocol: of our rows; "paper" is the rule that the paper's numbers stand on, or "clean".
    """
    columns = [*(f"paper_{key}" for key in KEYS), "protocol", WHAT, "mean", "ci95", "n"]
    ours = ours.reindex(columns=columns).rename(columns=lambda name: name.removeprefix("paper_"))
    ours = ours[ours.protocol == protocol].astype(dict.fromkeys([*KEYS, WHAT], object))
    ours["setting"] = ours["setting"].fillna("")  # of an item without: a csv has none for ""
    ours[WHAT] = ours[WHAT].fillna("").replace("", "not said")
    full = ours[WHAT] == "nothing"
    left_out = tuple(paper_numbers()["settings_alone"])
    items = [name for name in paper_numbers() if name.startswith("table_")]
    rows = [paper_rows(item) for item in items if not item.startswith(left_out)]
    table = pd.concat(rows, ignore_index=True)
    for heading, part in {AS_PAPER: ours[full], SCALED: ours[~full]}.items():
        found = _joined(table, part.drop_duplicates(KEYS, keep="last"), KEYS)
        table[heading] = found.ours
    table = table.assign(**{PAPER: found.published, WHAT: found[WHAT].fillna("")})
    return table[[*KEYS, PAPER, AS_PAPER, SCALED, WHAT]]


def compare(paper: pd.DataFrame, ours: pd.DataFrame, *, source: str = "") -> pd.DataFrame:
    """Our numbers beside the published ones, every published row kept: strings, ready to print.

    Args:
        paper: ``method, setting, paper, deviation``, as :func:`paper_rows` gives.
        ours: ``method, setting, mean`` and where known ``ci95`` (half-width) and ``n``.
        source: heads the published column; empty: the paper of the whole file.
    """
    keys = ["method", "setting"]
    ours = ours.reindex(columns=[*keys, "mean", "ci95", "n"])
    order = pd.concat([paper[keys], ours[keys]]).drop_duplicates()
    rows = _joined(order.merge(paper, on=keys, how="left"), ours, keys)
    heading = f"published ({source or paper_numbers()['sources']['gsdd']})"
    return rows[[*keys, "ours", "published"]].rename(columns={"published": heading})


def _joined(paper: pd.DataFrame, ours: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    rows = paper.merge(ours, on=keys, how="left")
    mine, theirs = rows[["mean", "ci95", "n"]], rows[["paper", "deviation"]]
    rows["ours"] = [_number(*row) or NOT_RUN for row in mine.to_numpy(float)]
    rows["published"] = [_number(*row) or NOT_REPORTED for row in theirs.to_numpy(float)]
    return rows


def _number(mean: float, spread: float, n: float = float("nan")) -> str:
    parts = {"{:.1f}": mean, " ± {:.1f}": spread, " (n={:.0f})": n}
    known = (form.format(part) for form, part in parts.items() if not pd.isna(part))
    return "" if pd.isna(mean) else "".join(known)
