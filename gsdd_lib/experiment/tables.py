"""Tables: DataFrames to Markdown and LaTeX, and our results beside the published numbers.

The published numbers stand in ``paper_numbers.yaml`` and only ever appear in columns that say so;
what was not run here reads "not run", never blank. A ± of ours is the 95 % interval of a mean over
``n`` networks; a published one is a deviation, as its authors print it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import pandas as pd
import yaml

from gsdd_lib.config import IMAGENET_SUBSETS, nearest
from gsdd_lib.core.errors import ConfigError

TEX = str.maketrans({sign: f"\\{sign}" for sign in "&%$#_{}"} | {"±": r"$\pm$", "×": r"$\times$"})
NOT_RUN = "not run"
NOT_REPORTED = "not reported"

CIFAR = tuple(f"{name} IPC {ipc}" for name in ("CIFAR-10", "CIFAR-100") for ipc in (1, 10, 50))
# What the positions of a list mean, by the item's first words.
AXES = {
    "table_1_": IMAGENET_SUBSETS,
    "table_2_": IMAGENET_SUBSETS,
    "table_3_": IMAGENET_SUBSETS,
    "table_4_": IMAGENET_SUBSETS,
    "table_15_": CIFAR,
    "table_16_": IMAGENET_SUBSETS,
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
# Items all of whose rows are GSDD; elsewhere its rows have "gsdd" in their name.
ALL_OWN = ("table_6_", "table_13_", "table_14_", "table_20_")
PAPER, AS_PAPER, SCALED, WHAT = (
    "the paper",
    "ours (the paper's settings)",
    "ours (scaled)",
    "scaled",
)


def to_markdown(frame: pd.DataFrame, *, digits: int = 2, missing: str = "") -> str:
    """``frame`` as a Markdown table: numbers to the right, floats with ``digits`` decimals.

    >>> print(to_markdown(pd.DataFrame({"method": ["a"], "PSNR (dB)": [22.345]})))
    | method | PSNR (dB) |
    | --- | ---: |
    | a | 22.34 |
    <BLANKLINE>
    """
    rows, numeric = _cells(frame, digits, missing)
    rows.insert(1, ["---:" if number else "---" for number in numeric])
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)


def to_latex(frame: pd.DataFrame, *, digits: int = 2, missing: str = "") -> str:
    """``frame`` as a ``tabular`` with the rules of booktabs, aligned as in :func:`to_markdown`.

    >>> print(to_latex(pd.DataFrame({"method": ["a_1"], "%": [22.345]})))
    \\begin{tabular}{lr}
    \\toprule
    method & \\% \\\\
    \\midrule
    a\\_1 & 22.34 \\\\
    \\bottomrule
    \\end{tabular}
    <BLANKLINE>
    """
    rows, numeric = _cells(frame, digits, missing)
    columns = "".join("r" if number else "l" for number in numeric)
    head, *body = (" & ".join(cell.translate(TEX) for cell in row) + r" \\" for row in rows)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _cells(frame: pd.DataFrame, digits: int, missing: str) -> tuple[list[list[str]], list[bool]]:
    """The head and every row as text, and which columns are numbers."""
    body = frame.itertuples(index=False, name=None)
    rows = [[_cell(value, digits, missing) for value in values] for values in body]
    numeric = [pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]
    return [[str(name) for name in frame.columns], *rows], numeric


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
    """The published number that a run is to be read beside; None without item or setting.

    Raises:
        ConfigError: there is no such item, method or setting; it names the nearest.

    >>> str(paper_number("table_15_cifar_tm", "gsdd", "CIFAR-10 IPC 1"))
    '67.6 ± 0.4 (table 15, CIFAR-10 IPC 1)'
    """
    if not item:
        return None
    rows = pd.DataFrame({"item": list(paper_numbers())})
    for name, value in {"item": item, "method": method, "setting": setting}.items():
        if not setting and name != "item":
            return None
        found = rows[rows[name] == value]
        if found.empty:
            hint = nearest(value, rows[name].unique().tolist())
            raise ConfigError(f"the paper has no {name} '{value}'{hint}")
        rows = paper_rows(item) if name == "item" else found
    row = rows.iloc[0]
    return PaperNumber(item, method, setting, float(row.paper), float(row.deviation))


def beside_paper(ours: pd.DataFrame, *, protocol: str = "paper") -> pd.DataFrame:
    """Every result in the paper's tables with ours beside it, scaled runs in their own column.

    Args:
        ours: what runs left: ``paper_item, paper_method, paper_setting`` say what a row is to be
            read beside, ``protocol`` how it was reported, ``scaled`` what was smaller than in the
            paper ("nothing": the paper's settings), ``mean, ci95, n`` are its numbers. A row that
            does not say what was scaled counts as scaled.
        protocol: "paper", the rule that published numbers stand on, or "clean".

    Returns:
        Strings, with columns ``item, method, setting``, :data:`PAPER`, :data:`AS_PAPER`,
        :data:`SCALED` and :data:`WHAT`. Where several runs are to be read beside one number, the
        last one is shown.
    """
    keys = ["item", "method", "setting"]
    columns = [*(f"paper_{key}" for key in keys), "protocol", WHAT, "mean", "ci95", "n"]
    ours = ours.reindex(columns=columns).set_axis([*keys, *columns[3:]], axis=1)
    texts = dict.fromkeys([*keys, WHAT], object)  # columns without any text are read as numbers
    ours = ours[ours.protocol == protocol].astype(texts)
    ours["setting"] = ours["setting"].fillna("")  # of an item without: a csv has none for ""
    ours[WHAT] = [text if isinstance(text, str) and text else "not said" for text in ours[WHAT]]
    full = ours[WHAT] == "nothing"
    items = [name for name in paper_numbers() if name.startswith("table_")]
    parts = [paper_rows(item) for item in items if not item.startswith(SETTINGS)]
    rows = pd.concat(parts, ignore_index=True)
    table = rows[keys].assign(**{PAPER: _texts(_published, rows[["paper", "deviation"]])})
    for heading, part in ((AS_PAPER, ours[full]), (SCALED, ours[~full])):
        part = part.drop_duplicates(keys, keep="last")
        found = rows[keys].merge(part, on=keys, how="left")
        table[heading] = _texts(_ours, found[["mean", "ci95", "n"]])
    return table.assign(**{WHAT: found[WHAT].where(found[WHAT].notna(), "")})


def coverage(table: pd.DataFrame, cases: Iterable[Mapping[str, Any]] = ()) -> pd.DataFrame:
    """How many of GSDD's own numbers have a case and were run, by item, and in all.

    Args:
        table: of :func:`beside_paper`.
        cases: parameters of the cases there are; ``paper_item`` and, where a case is about one
            number, ``paper_method`` and ``paper_setting``.
    """
    own = table[table.method.str.contains("gsdd") | table["item"].str.startswith(ALL_OWN)]
    keys = ("paper_item", "paper_method", "paper_setting")
    listed = {
        tuple(case.get(key, "gsdd" if "method" in key else "") for key in keys) for case in cases
    }
    whole = {item for item, _, setting in listed if not setting}
    places = own[["item", "method", "setting"]].itertuples(index=False, name=None)
    counted = pd.DataFrame(
        {
            "item": own["item"],
            "own numbers": 1,
            "with a case": [int(place in listed or place[0] in whole) for place in places],
            "run at the paper's settings": (own[AS_PAPER] != NOT_RUN).astype(int),
            "run scaled": (own[SCALED] != NOT_RUN).astype(int),
        }
    )
    counted = counted.groupby("item", sort=False).sum()
    counted.loc["all"] = counted.sum()
    return counted.reset_index()


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
            "ours": _texts(_ours, rows[["mean", "ci95", "n"]]),
            published: _texts(_published, rows[["paper", "deviation"]]),
        }
    )


def _texts(printed: Callable[..., str], numbers: pd.DataFrame) -> list[str]:
    return [printed(*values) for values in numbers.to_numpy(dtype=float)]


def _ours(mean: float, ci95: float, n: float) -> str:
    if pd.isna(mean):
        return NOT_RUN
    interval = "" if pd.isna(ci95) else f" ± {ci95:.1f}"
    return f"{mean:.1f}{interval}" + ("" if pd.isna(n) else f" (n={n:.0f})")


def _published(score: float, deviation: float) -> str:
    if pd.isna(score):
        return NOT_REPORTED
    return f"{score:.1f}" + ("" if pd.isna(deviation) else f" ± {deviation:.1f}")
