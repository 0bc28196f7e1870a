"""Tables print exactly, and a published number never stands where ours is missing."""

from io import StringIO

import pandas as pd
import pytest

from gsdd_lib.core.errors import ConfigError
from gsdd_lib.experiment import tables

SCORES = [
    name
    for name in tables.paper_numbers()
    if name.startswith(("table_", "fashion_mnist"))
    and not name.startswith(tuple(tables.paper_numbers()["settings_alone"]))
]


@pytest.mark.parametrize("item", SCORES)
def test_every_table_of_scores_has_rows_with_one_score_each(item):
    rows = tables.paper_rows(item)
    assert not rows.duplicated(["method", "setting"]).any()
    assert rows.paper.dropna().between(0, 2000).all() and rows.paper.notna().sum() >= 4


def test_markdown_aligns_numbers_escapes_bars_and_marks_what_is_missing():
    frame = pd.DataFrame({"name": ["a|b", None], "value": [1.234, float("nan")], "n": [1, 2]})
    assert tables.to_markdown(frame, digits=1, missing="not run") == (
        "| name | value | n |\n"
        "| --- | ---: | ---: |\n"
        "| a\\|b | 1.2 | 1 |\n"
        "| not run | not run | 2 |\n"
    )


def test_paper_rows_of_each_shape():
    def only(item, **where):
        rows = tables.paper_rows(item)
        for name, value in where.items():
            rows = rows[rows[name] == value]
        assert len(rows) == 1
        return rows.iloc[0]

    assert only("table_1_tm_imagenet_128_ipc1", method="gsdd", setting="squawk").paper == 73.2
    assert only("table_2_imagenet_128_ipc1", method="gsdd", setting="dm, fruit").paper == 52.0
    assert only("table_5_image_fitting", method="ddif", setting="psnr_db").paper == 23.23
    cifar = only("table_15_cifar_tm", method="gsdd", setting="CIFAR-100 IPC 10")
    assert (cifar.paper, cifar.deviation) == (47.4, 0.3)
    assert only("table_17_initialisation_imagenette", method="gsdd_real").paper == 76.4
    assert only("table_18_imagenet1k_224", method="sre2l_gsdd", setting="ipc10").paper == 46.2
    fitted = only("table_20_rasterizer_across_gpus", method="a100", setting="psnr_db, 682 points")
    assert fitted.paper == 31.06


def test_not_reported_stays_a_gap():
    rows = tables.paper_rows("table_15_cifar_tm").query("method == 'idc'")
    assert rows.paper.notna().tolist() == [True, True, True, False, False, False]


def test_unknown_item():
    with pytest.raises(KeyError, match="table_99"):
        tables.paper_rows("table_99")


def test_published_numbers_on_fashion_mnist_at_ten_images_per_class():
    rivals = tables.paper_rows("fashion_mnist").query("setting == 'IPC 10'")
    assert rivals.method.tolist() == ["dc", "dsa", "kip_convnet"]
    assert rivals.paper.tolist() == [82.3, 84.6, 88.8]
    assert rivals.deviation.tolist() == [0.4, 0.3, 0.1]


def test_compare_keeps_every_row_and_labels_the_published_column():
    paper = tables.paper_rows("table_1_tm_imagenet_128_ipc1").query("method in ['gsdd', 'glad']")
    ours = pd.DataFrame(
        {
            "method": ["gsdd", "pixels"],
            "setting": ["nette", "nette"],
            "mean": [75.04, 50.0],
            "ci95": [0.52, None],
            "n": [5, None],
        }
    )
    table = tables.compare(paper, ours).set_index(["method", "setting"])
    assert table.columns.tolist() == ["ours", "published (arXiv 2509.26219)"]
    assert len(table) == 13
    assert table.loc[("gsdd", "nette")].tolist() == ["75.0 ± 0.5 (n=5)", "76.4"]
    assert table.loc[("gsdd", "woof")].tolist() == ["not run", "46.4"]
    assert table.loc[("glad", "yellow")].tolist() == ["not run", "not reported"]
    assert table.loc[("pixels", "nette")].tolist() == ["50.0", "not reported"]


def test_compare_with_nothing_run():
    rows = tables.paper_rows("fashion_mnist")
    table = tables.compare(rows, pd.DataFrame(), source="KIP paper")
    assert table.ours.unique().tolist() == ["not run"]
    assert table["published (KIP paper)"].tolist()[0] == "70.5 ± 0.6"


def test_a_paper_number_is_looked_up_by_its_place():
    number = tables.paper_number("table_2_imagenet_128_ipc1", "gsdd", "dc, squawk")
    assert number.tolist()[:4] == ["table_2_imagenet_128_ipc1", "gsdd", "dc, squawk", 69.4]
    assert tables.paper_number("table_15_cifar_tm", "gsdd", "CIFAR-10 IPC 1").deviation == 0.4
    assert tables.paper_number("", "gsdd", "") is None
    assert tables.paper_number("table_5_image_fitting", "gsdd", "") is None  # all its numbers


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (("table_15_cifar", "gsdd", ""), "no item 'table_15_cifar', did you mean"),
        (("table_15_cifar_tm", "gsd", "CIFAR-10 IPC 1"), "no method 'gsd', did you mean 'gsdd'"),
        (("table_15_cifar_tm", "gsdd", "CIFAR-10 IPC 2"), "no setting 'CIFAR-10 IPC 2', did you"),
    ],
)
def test_a_paper_number_that_is_not_there_names_the_nearest(place, message):
    with pytest.raises(ConfigError, match=message):
        tables.paper_number(*place)


def ours_at(scaled, mean, protocol="paper", setting="CIFAR-10 IPC 10"):
    place = {"paper_item": "table_15_cifar_tm", "paper_method": "gsdd", "paper_setting": setting}
    numbers = {"mean": mean, "ci95": 0.4, "n": 5, "method": "distilled"}
    return place | numbers | {"protocol": protocol, "scaled": scaled}


def of(table, setting):
    rows = table[(table["item"] == "table_15_cifar_tm") & (table.method == "gsdd")]
    return rows[rows.setting == setting].iloc[0, 3:].tolist()


def test_ours_stand_beside_the_paper_and_a_scaled_run_in_a_column_of_its_own():
    ours = [ours_at("nothing", 71.0), ours_at("width 32", 60.0), ours_at("nothing", 70.0, "clean")]
    ours += [ours_at("width 32", 50.0, setting="CIFAR-10 IPC 1"), {"mean": 99.0}]
    table = tables.beside_paper(pd.DataFrame(ours))
    assert table.columns.tolist()[3:] == [
        "the paper",
        "ours (the paper's settings)",
        "ours (scaled)",
        "scaled",
    ]
    full, scaled = "71.0 ± 0.4 (n=5)", "60.0 ± 0.4 (n=5)"
    assert of(table, "CIFAR-10 IPC 10") == ["75.5 ± 0.3", full, scaled, "width 32"]
    assert of(table, "CIFAR-10 IPC 1")[1:] == ["not run", "50.0 ± 0.4 (n=5)", "width 32"]
    assert (table[tables.AS_PAPER] != tables.NOT_RUN).sum() == 1
    assert (table[tables.SCALED] != tables.NOT_RUN).sum() == 2
    clean = tables.beside_paper(pd.DataFrame(ours), protocol="clean")
    assert of(clean, "CIFAR-10 IPC 10")[1:] == ["70.0 ± 0.4 (n=5)", "not run", ""]


@pytest.mark.parametrize("scaled", [None, float("nan"), ""])
def test_a_run_that_does_not_say_what_was_scaled_never_stands_in_the_papers_place(scaled):
    table = tables.beside_paper(pd.DataFrame([ours_at(scaled, 99.0)]))
    assert (table[tables.AS_PAPER] == tables.NOT_RUN).all()
    assert of(table, "CIFAR-10 IPC 10")[2] == "99.0 ± 0.4 (n=5)"


def test_nothing_run_is_said_for_every_result_of_the_paper():
    table = tables.beside_paper(pd.DataFrame(columns=["notebook", "case"]))
    assert (table[[tables.AS_PAPER, tables.SCALED]] == tables.NOT_RUN).all().all()
    assert table["item"].nunique() == 14 and not table.duplicated().any()


def test_latex_escapes_what_it_would_read_as_a_command():
    frame = pd.DataFrame({"a_b": ["50 % & {x} ± 1"], "%": [22.345]})
    assert tables.to_latex(frame).splitlines() == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"a\_b & \% \\",
        r"\midrule",
        r"50 \% \& \{x\} $\pm$ 1 & 22.34 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_results_that_name_no_item_of_the_paper_are_no_ones_counterpart():
    empty = {"paper_item": float("nan"), "paper_method": "gsdd", "paper_setting": float("nan")}
    ours = pd.DataFrame([{**empty, "protocol": "paper", "mean": 70.0, "ci95": 1.0, "n": 3}])
    table = tables.beside_paper(ours)
    assert (table[[tables.AS_PAPER, tables.SCALED]] == tables.NOT_RUN).all(axis=None)


def test_an_item_without_settings_is_found_again_in_a_csv():
    ours = ours_at("width 32", 60.0, setting="")
    ours |= {"paper_item": "table_17_initialisation_imagenette", "paper_method": "gsdd_real"}
    read = pd.read_csv(StringIO(pd.DataFrame([ours]).to_csv(index=False)))
    table = tables.beside_paper(read)
    found = table[table.method == "gsdd_real"].iloc[0, 3:].tolist()
    assert found == ["76.4", "not run", "60.0 ± 0.4 (n=5)", "width 32"]
