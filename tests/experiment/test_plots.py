"""Figures show the data they are given, ellipses lie where the Gaussians do, files are exact."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from gsdd_lib.experiment import plots, tables, timing_plots


@pytest.fixture(autouse=True)
def _style():
    plots.use_style()
    yield
    plt.close("all")


def test_saved_files_are_the_same_bytes_twice(tmp_path):
    def draw(folder):
        figure = plots.psnr_curve(pd.DataFrame({"step": [0, 1], "psnr": [10.0, 20.0]}))
        path = plots.save(figure, tmp_path / folder, "psnr")
        return path.read_bytes(), path.with_suffix(".pdf").read_bytes()

    first, second = draw("a"), draw("b")
    assert first == second
    assert first[0].startswith(b"\x89PNG") and first[1].startswith(b"%PDF")
    assert b"CreationDate" not in first[1]


def test_image_grid_shows_each_image_once_clipped():
    images = torch.linspace(-1, 2, 5 * 3 * 4 * 6).reshape(5, 3, 4, 6)
    figure = plots.image_grid(images, rows=2, titles=list("abc"))
    shown = [ax for ax in figure.axes if ax.images]
    assert len(shown) == 5
    assert [ax.get_title() for ax in shown] == ["a", "b", "c", "", ""]
    expected = images[1].clamp(0, 1).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(shown[1].images[0].get_array(), expected)


def test_image_grid_of_two_channels_or_too_many_titles_is_refused():
    with pytest.raises(ValueError, match="1 or 3 channels, not 2"):
        plots.image_grid(np.zeros((1, 2, 4, 4)))
    with pytest.raises(ValueError, match="3 titles fit neither 4 images nor 2 columns"):
        plots.image_grid(np.zeros((4, 1, 4, 4)), rows=2, titles=list("abc"))


def test_ellipse_is_the_level_set_of_its_gaussian():
    """Every outline point x has (x - mu)^T (L L^T)^-1 (x - mu) = n_sigma^2."""
    means = torch.tensor([[0.0, 0.5], [-0.5, -0.25]])
    cholesky = torch.tensor([[2.0, 1.0, 0.5], [0.7, -3.0, 1.5]])
    _, ax = plt.subplots()
    drawn = plots.gaussian_ellipses(
        ax, means, cholesky, torch.rand(2, 1), size=(20, 40), n_sigma=2.0
    )
    np.testing.assert_allclose(drawn.get_offsets(), [[20, 15], [10, 7.5]])
    turn = np.linspace(0, 2 * np.pi, 50)
    for index in range(2):
        width, height = drawn.get_widths()[index], drawn.get_heights()[index]
        angle = np.deg2rad(drawn.get_angles()[index])
        x, y = width / 2 * np.cos(turn), height / 2 * np.sin(turn)
        points = np.stack(
            [x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)]
        )
        l11, l21, l22 = cholesky[index].tolist()
        factor = np.array([[l11, 0], [l21, l22]])
        np.testing.assert_allclose(
            np.sum(np.linalg.solve(factor, points) ** 2, axis=0), 4.0, rtol=1e-5
        )


def test_ellipses_of_no_gaussian_draw_nothing():
    _, ax = plt.subplots()
    drawn = plots.gaussian_ellipses(
        ax, torch.zeros(0, 2), torch.zeros(0, 3), torch.zeros(0, 1), size=(8, 8)
    )
    assert len(drawn.get_offsets()) == 0


def test_one_channel_ellipses_are_red_where_they_light_and_blue_where_they_darken():
    _, ax = plt.subplots()
    still, cholesky = torch.zeros(2, 2), torch.tensor([[1.0, 0.0, 1.0]] * 2)
    drawn = plots.gaussian_ellipses(ax, still, cholesky, torch.tensor([[1.0], [-1.0]]), size=(8, 8))
    light, dark = drawn.get_edgecolor()
    assert light[0] > light[2] and dark[2] > dark[0]


def test_psnr_curve_has_a_line_per_number_of_gaussians():
    frame = pd.DataFrame({"step": [0, 10] * 2, "psnr": [9, 20, 10, 25], "points": [5, 5, 22, 22]})
    ax = plots.psnr_curve(frame).axes[0]
    assert [line.get_ydata().tolist() for line in ax.lines] == [[9, 20], [10, 25]]
    assert ax.get_ylabel() == "PSNR (dB)"
    assert ax.get_legend().get_title().get_text() == "Gaussians\nper image"


def test_history_draws_the_mean_and_the_interval():
    frame = pd.DataFrame({"step": [0, 5], "mean": [71.0, 80.0], "ci95": [12.5, float("nan")]})
    ax = plots.history(frame).axes[0]
    assert ax.lines[0].get_ydata().tolist() == [71.0, 80.0]
    low, high = np.array(ax.collections[0].get_datalim(ax.transData))[:, 1]
    np.testing.assert_allclose([low, high], [58.5, 83.5])


def test_expert_curves_draw_every_expert_and_the_mean():
    frame = pd.DataFrame(
        {"expert": [0, 0, 1, 1], "epoch": [0, 1, 0, 1], "accuracy": [9, 70, 11, 80]}
    )
    ax = plots.expert_curves(frame, "accuracy", "validation accuracy (%)").axes[0]
    drawn = [line.get_ydata().tolist() for line in ax.lines]
    assert drawn == [[9, 70], [11, 80], [10.0, 75.0]]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one expert", "mean"]


def test_accuracy_bars_mark_published_numbers_as_such():
    frame = pd.DataFrame(
        {"method": ["distilled", "initial"], "mean": [79.0, 74.0], "ci95": [0.4, None]}
    )
    ax = plots.accuracy_bars(frame, published=tables.fashion_mnist_rivals(1)).axes[0]
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names[:2] == ["Gaussians, distilled", "Gaussians, before distillation"]
    assert names[2:] == ["DC (published)", "DSA (published)", "KIP (published)"]
    assert [text.get_text() for text in ax.texts] == ["79.0", "74.0", "70.5", "70.6", "76.7"]


def test_benchmark_ratios_label_each_bar_and_skip_what_was_not_measured():
    frame = pd.DataFrame(
        {
            "size": ["s", "s", "m"],
            "pass": ["forward", "forward+backward", "forward"],
            "ratio": [62.24, 41, 100],
        }
    )
    ax = timing_plots.benchmark_ratios(frame).axes[0]
    assert sorted(text.get_text() for text in ax.texts) == ["100×", "41×", "62.2×"]


def test_a_method_has_one_colour_and_an_unknown_one_is_grey():
    assert plots.color("distilled") != plots.color("initial")
    assert plots.color("never heard of") == plots.color("dc")
    assert plots.label("never heard of") == "never heard of"
