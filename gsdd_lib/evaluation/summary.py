"""What several networks say together: mean, deviation and the interval for the mean."""

import math
from collections.abc import Sequence

import torch
from scipy import stats

SUMMARY = ("mean", "std", "n", "ci95")  # what :func:`summarize` gives


def summarize(rows: Sequence[dict[str, float | int | str]]) -> dict[str, float]:
    """Mean accuracy in percent, standard deviation, number, and half-width of the 95 % interval.

    ``std`` is that of a sample (n - 1); ``ci95`` is Student's t times std / sqrt(n), an interval
    for the mean over networks. Both are NaN for one network.

    >>> summarize([{"accuracy": 70.0}, {"accuracy": 72.0}])["mean"]
    71.0
    """
    if not rows:
        raise ValueError("no rows to summarize; evaluate at least one network")
    values = torch.tensor([float(row["accuracy"]) for row in rows], dtype=torch.float64)
    n = len(values)
    std = values.std(correction=1).item() if n > 1 else math.nan
    ci95 = float(stats.t.ppf(0.975, n - 1)) * std / math.sqrt(n) if n > 1 else math.nan
    return dict(zip(SUMMARY, (values.mean().item(), std, n, ci95), strict=True))


def format_accuracy(summary: dict[str, float]) -> str:
    """Mean ± standard deviation over networks, in percent, as the field prints it.

    >>> format_accuracy({"mean": 78.81, "std": 0.43, "n": 5, "ci95": 0.53})
    '78.8 ± 0.4 (n=5)'
    """
    mean, std, n = summary["mean"], summary["std"], summary["n"]
    spread = "" if math.isnan(std) else f" ± {std:.1f}"
    return f"{mean:.1f}{spread} (n={n:.0f})"
