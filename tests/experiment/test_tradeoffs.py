"""What a budget chooser says is what the paper's formula says, and pictures are those asked for."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from gsdd_lib.config import FitConfig
from gsdd_lib.data.normalization import ChannelNormalization
from gsdd_lib.experiment import tradeoffs
from gsdd_lib.parameterizations.budget import points_per_image
from gsdd_lib.parameterizations.fit import psnr
from gsdd_lib.parameterizations.gaussian import GaussianImages

NORMALIZATION = ChannelNormalization((0.5,), (0.5,))
PIXELS = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture
def fitted() -> GaussianImages:
    more = {"points": 6, "seed": 0, "normalization": NORMALIZATION}
    return GaussianImages.init_from(PIXELS, torch.zeros(4), **more)


def picture(ax) -> np.ndarray:
    return np.asarray(ax.images[0].get_array())


def test_the_title_counts_as_the_papers_formula_does(fitted):
    figure = tradeoffs.budget(PIXELS, fitted, ipc=1, gpc=3, bits=16, classes=10)
    buys = points_per_image(ipc=1, gpc=3, height=8, width=8, channels=1)
    assert figure.get_suptitle() == (
        "GPC 3 × 6 Gaussians × 112 bits = 2,016 bits per class, 98% of IPC 1, which buys "
        f"{buys}\n10 classes: 2,520 bytes; {psnr(fitted.pixels(), PIXELS).mean():.1f} dB"
    )
    many = tradeoffs.budget(PIXELS, fitted, ipc=2, gpc=30, bits=4, classes=100).get_suptitle()
    assert "30 × 6 Gaussians × 28 bits = 5,040 bits per class, 123% of IPC 2" in many
    assert "buys 4\n100 classes: 63,000 bytes" in many


def test_fewer_bits_are_seen_in_the_lower_row(fitted):
    exact = tradeoffs.budget(PIXELS, fitted, ipc=1, gpc=1, bits=16, classes=10)
    whole = fitted.pixels().detach().clamp(0, 1)
    coarse = tradeoffs.budget(PIXELS, fitted, ipc=1, gpc=1, bits=3, classes=10)
    rounded = fitted.pixels().detach().clamp(0, 1)
    for figure, expected in ((exact, whole), (coarse, rounded)):
        shown = [picture(ax) for ax in figure.axes]
        np.testing.assert_allclose(shown[:4], PIXELS[:, 0], rtol=1e-6)
        np.testing.assert_allclose(shown[4:], expected[:, 0], atol=1e-6)
    assert not torch.allclose(whole, rounded, atol=1e-2)


def test_a_number_of_gaussians_is_fitted_once(monkeypatch):
    fits, rows = [], tradeoffs.fit_rows
    monkeypatch.setattr(tradeoffs, "fit_rows", lambda *all_: fits.append(1) or rows(*all_))
    config = FitConfig(fit_steps=3)
    more = {"seed": 0, "normalization": NORMALIZATION}
    chooser = tradeoffs.budget_chooser(PIXELS, config, classes=10, **more)
    pictures = {chooser.png}
    for name, value in {"bits": 4, "ipc": 5, "gpc": 2, "points": 9}.items():
        chooser.controls[name].value = value
        pictures.add(chooser.png)
    chooser.controls["points"].value = 6
    assert len(fits) == 2 and len(pictures) == 5


TABLE = pd.DataFrame(
    {
        "order": ["largest first"] * 2 + ["at random"] * 2,
        "share": [0.0, 0.5] * 2,
        "mean": [80.0, 30.0, 80.0, 60.0],
    }
)


def test_the_measured_curve_stands_beside_the_images_at_the_share():
    asked = []

    def prune(order: str, share: float) -> torch.Tensor:
        asked.append((order, share))
        return PIXELS * (1 - share)

    figure = tradeoffs.pruning(TABLE, prune, "at random", 0.25)
    curves, *pictures = figure.axes
    largest, random, here = curves.lines
    assert list(random.get_xdata()) == [0, 50] and list(random.get_ydata()) == [80, 60]
    assert random.get_linewidth() > largest.get_linewidth() and list(here.get_xdata()) == [25, 25]
    odd = tradeoffs.pruning(TABLE, lambda order, share: PIXELS[:3], "at random", 0.25)
    assert sum(len(ax.images) for ax in odd.axes) == 3
    assert asked == [("at random", 0.25)] and len(pictures) == 4
    np.testing.assert_allclose(picture(pictures[0]), 0.75 * PIXELS[0, 0], rtol=1e-6)


def test_the_pruner_offers_the_orders_of_the_table():
    pruner = tradeoffs.pruner(TABLE, lambda order, share: PIXELS * (1 - share))
    assert pruner.controls["order"].options == ("largest first", "at random")
    before = pruner.png
    pruner.controls["share"].value = 0.75
    assert pruner.png != before
