"""What is measured on a GPU, tried on a CPU: the structure of the numbers, never their size."""

import json

import pytest
import torch

from gsdd_lib.benchmarks import gpu_parts
from gsdd_lib.benchmarks.gpu_parts import FOLDER, LEFT_OUT, POINTS, main
from gsdd_lib.core.files import project_root
from gsdd_lib.data.dataset import ImageSet, RawData
from gsdd_lib.data.sources import roots


def part(name: str, folder) -> int:
    return main([name, "--device", "cpu", "--quick", "--folder", str(folder)])


def numbers(path) -> dict:
    found = json.loads(path.read_text())
    assert {"device", "torch", "threads", "commit"} <= found["machine"].keys()
    return found


def test_ours_stands_beside_what_was_recorded_of_the_published_rasterizer(tmp_path, monkeypatch):
    record = json.loads((project_root() / FOLDER / "published_rasterizer.json").read_text())
    record["rows"][0] |= {"images": 5, "points": 4, "size": 8}  # small: this is about its columns
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / FOLDER).mkdir(parents=True)
    (tmp_path / FOLDER / "published_rasterizer.json").write_text(json.dumps(record))
    monkeypatch.chdir(tmp_path)
    benchmarked = []  # by another module, with tests of its own
    monkeypatch.setattr(gpu_parts.operator, "main", benchmarked.extend)
    assert part("operator", tmp_path / "out") == 0
    assert benchmarked[:2] == ["--device", "cpu"]
    assert benchmarked[-2:] == ["--json", str(tmp_path / "out" / "benchmark.json")]
    found = numbers(tmp_path / "out" / "beside_published.json")
    assert found["published_on"] == record["device"]
    (row,) = found["rows"]
    assert (row["images"], row["points"], row["size"]) == (5, 4, 8)
    for which in ("fwd", "fb"):
        assert row[f"pub_{which}"] == record["rows"][0][f"pub_{which}"]
        assert row[f"ratio_{which}"] == pytest.approx(row[f"pub_{which}"] / row[f"ours_{which}"])


def test_the_tables_rows_are_those_of_the_record(tmp_path):
    assert part("tables", tmp_path) == 0
    rows = numbers(tmp_path / "table20.json")["rows"]
    recorded = json.loads((project_root() / FOLDER / "table20.json").read_text())["rows"][0]
    assert [row["points"] for row in rows] == list(POINTS[:2])
    for row in rows:
        assert recorded.keys() - row.keys() == {"peak_mib_beyond_targets"}  # a CPU's is not known
        assert row["seconds"] > row["place_seconds"] > 0
        assert row["curve"][-1] == [row["steps"], pytest.approx(row["psnr_db"], abs=0.01)]
    assert (tmp_path / "table20.png").is_file()


def test_a_distillation_is_judged(tmp_path):
    assert part("distillation", tmp_path) == 0
    found = numbers(tmp_path / "distillation.json")
    assert 0 <= found["test"]["mean"] <= 100 and found["test"]["n"] == 5
    assert [row["step"] for row in found["validation"]] == [0, 2]
    assert "digits" in found["data"] and (tmp_path / "distillation.png").is_file()


def test_without_photographs_the_tables_are_not_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GSDD_DATA", str(tmp_path))
    if any((root / "imagenet").exists() for root in roots()):
        pytest.skip("this machine has photographs")
    arguments = ["tables", "--device", "cpu", "--folder", str(tmp_path)]
    assert main(arguments) == LEFT_OUT
    assert capsys.readouterr().out.startswith("not run: no photographs: no folder 'train'")


def test_the_photographs_are_the_first_hundred_of_each_class(monkeypatch):
    images = torch.arange(250, dtype=torch.uint8).view(250, 1, 1, 1).expand(-1, 3, 1, 1)
    train = ImageSet(images, torch.arange(250) // 125)
    raw = RawData("imagenette", ("a", "b"), (0.5,), (0.5,), train, train, "250 images")
    monkeypatch.setattr("gsdd_lib.data.read_data", lambda config: raw)
    chosen, about = gpu_parts.real_photographs()
    assert (chosen[:, 0, 0, 0] * 255).round().tolist() == [*range(100), *range(125, 225)]
    assert about == "100 per class, first by name, of 250 images"


def test_a_missing_package_is_named(tmp_path, monkeypatch, capsys):
    def missing(*_):
        import no_such_package  # noqa: F401

    monkeypatch.setitem(gpu_parts.PARTS, "tables", missing)
    assert part("tables", tmp_path) == LEFT_OUT
    assert "not run: the package no_such_package is missing" in capsys.readouterr().out


def test_a_module_of_ours_that_is_missing_is_a_fault(tmp_path, monkeypatch):
    def missing(*_):
        import gsdd_lib.no_such_module  # noqa: F401

    monkeypatch.setitem(gpu_parts.PARTS, "tables", missing)
    with pytest.raises(ModuleNotFoundError):
        part("tables", tmp_path)
