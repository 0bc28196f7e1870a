"""What ``make gpu-check`` measures: the operator, tables 5 and 20, and one distillation, each a
process of its own: python -m gsdd_lib.benchmarks.gpu_parts tables --folder FOLDER.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gsdd_lib.benchmarks import operator
from gsdd_lib.benchmarks.timing import PASSES, machine, markdown, median_ms
from gsdd_lib.core.files import project_root, write_atomically

LEFT_OUT = 77  # exit code of a part that cannot run here, as automake's
FOLDER = Path("figures/gpu")
POINTS, STEPS = (21, 107, 170, 214, 682, 2730), 1000  # 214: the 963 numbers of table 5, in bf16
PER_CLASS = 100  # photographs of each of ten classes
BOTH = {"lr_schedule": "cosine", "eval_batch": 64, "eval_lr": 0.03, "eval_schedule": "cosine"}
FULL = {"steps": 1000, "eval_every": 500, "batch_real": 256, "width": 128, "epochs": 300}
QUICK = {"steps": 2, "eval_every": 2, "fit_steps": 5, "width": 8, "epochs": 2}


class NotRun(Exception):  # noqa: N818
    """A part cannot run here; the message says what is missing."""


def keep(folder: Path, name: str, device: str, **numbers: Any) -> None:
    """Write ``numbers`` and what they were measured on to ``name.json``."""
    text = json.dumps({"machine": machine(device), **numbers}, indent=1)
    write_atomically(folder / f"{name}.json", f"{text}\n".encode())


def measure_operator(folder: Path, device: str, quick: bool) -> None:
    """``benchmark.json``, and our times beside those recorded of the published rasterizer."""
    how = ["--device", device, *["--quick", "--repeats=1"] * quick]
    operator.main([*how, "--json", str(folder / "benchmark.json")])
    recorded = json.loads((project_root() / FOLDER / "published_rasterizer.json").read_text())
    rows = []
    for theirs in recorded["rows"][: 1 if quick else None]:
        row = {name: theirs[name] for name in ("images", "points", "size")}
        work = operator.Workload(row["images"], row["points"], row["size"], row["size"], 3)
        fitted = operator.fitted_gaussians(work).numpy()
        for which, name in zip(PASSES, ("fwd", "fb"), strict=True):
            job = operator.render_job("operator", which, fitted, work, device)
            ms, published = median_ms(job, 9, device), theirs[f"pub_{name}"]
            row |= {f"ours_{name}": ms, f"pub_{name}": published, f"ratio_{name}": published / ms}
        rows.append(row)
    print(markdown(rows))
    print(f"Milliseconds; the published rasterizer's were recorded on {recorded['device']}.")
    keep(folder, "beside_published", device, published_on=recorded["device"], rows=rows)


def real_photographs() -> tuple[Tensor, str]:
    """The first hundred images of each class of ImageNette, as pixel values at 128x128."""
    from gsdd_lib.config import DataConfig
    from gsdd_lib.data import DataError, read_data
    from gsdd_lib.data.dataset import class_members

    try:
        raw = read_data(DataConfig(dataset="imagenette", resize="squash"))
    except DataError as error:
        raise NotRun(f"no photographs: {error}") from None
    members = [own[:PER_CLASS] for own in class_members(raw.train.labels)]
    about = f"{PER_CLASS} per class, first by name, of {raw.provenance}"
    return raw.train.images[torch.cat(members)].float() / 255, about


def fit_tables(folder: Path, device: str, quick: bool) -> None:
    """Tables 5 and 20: 1,000 photographs fitted by ever more Gaussians, to ``table20.json``."""
    from gsdd_lib.experiment import plots

    targets, about = (operator.photographs(3, 16), "crops") if quick else real_photographs()
    targets, steps = targets.to(device), 10 if quick else STEPS
    operator.fit(operator.start_fit(targets, POINTS[0]), targets, 3)  # loads what stays loaded
    rows = []
    for points in POINTS[: 2 if quick else None]:
        began = time.perf_counter()
        gaussians = operator.start_fit(targets, points)
        placed = time.perf_counter()
        if targets.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        curve = operator.fit(gaussians, targets, steps)  # its last row waits for the device
        seconds = {"seconds": time.perf_counter() - began, "place_seconds": placed - began}
        row = {"points": points, "images": len(targets), "steps": steps, **seconds, **curve[-1]}
        if targets.is_cuda:
            beyond = torch.cuda.max_memory_allocated() - targets.nbytes
            row["peak_mib_beyond_targets"] = beyond / 2**20
        print(", ".join(f"{name} {value:.6g}" for name, value in row.items()), flush=True)
        rows.append(row | {"curve": [[at["step"], round(at["psnr_db"], 2)] for at in curve]})
        keep(folder, "table20", device, images=about, rows=rows)
    figure, ax = plots.plt.subplots()
    for row in rows:
        ax.plot(*zip(*row["curve"], strict=True), label=row["points"])
    ax.set(xlabel="fitting step", ylabel="PSNR (dB)")
    ax.legend(title="Gaussians\nper image", loc="center left", bbox_to_anchor=(1, 0.5))
    plots.save(figure, folder, "table20")


def distill_and_judge(folder: Path, device: str, quick: bool) -> None:
    """Fashion-MNIST, or the embedded digits, by DM at width 128; judged on the test split."""
    from gsdd_lib.api import distill_images
    from gsdd_lib.config import DataConfig
    from gsdd_lib.data import DataError, load_data
    from gsdd_lib.experiment import pictures, plots

    name, gpc = ("digits", None) if quick else ("fashion_mnist", 10)
    try:
        data = load_data(DataConfig(dataset=name))
    except DataError as error:
        print(f"The embedded digits serve: {error}")
        data, gpc = load_data(DataConfig(dataset="digits")), None
    settings = BOTH | (QUICK if quick else FULL)
    began = time.perf_counter()
    made = distill_images(data.to(device), ipc=1, gpc=gpc, objective="dm", **settings)
    distilled = time.perf_counter()
    test = made.evaluate()
    times = {"seconds": distilled - began, "judging_seconds": time.perf_counter() - distilled}
    rows = [{key: row[key] for key in ("step", "mean")} for row in made.history]
    numbers = {"settings": settings, "validation": rows, "test": test, **times}
    print(f"test split: {test}; {times}")
    keep(folder, "distillation", device, data=data.provenance, **numbers)
    size = {"classes": data.num_classes, "per_class": len(made) // data.num_classes}
    figure = pictures.class_rows(made.render(), made.labels, data.class_names, **size)
    plots.save(figure, folder, "distillation")


PARTS = {"operator": measure_operator, "tables": fit_tables, "distillation": distill_and_judge}


def main(arguments: list[str] | None = None) -> int:
    """Measure one of :data:`PARTS`; returns 0, or :data:`LEFT_OUT`."""
    parser = argparse.ArgumentParser("python -m gsdd_lib.benchmarks.gpu_parts")
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--folder", type=Path, default=project_root() / FOLDER, help="of results")
    options = parser.parse_args(arguments)
    try:
        PARTS[options.part](options.folder, options.device, options.quick)
    except NotRun as why:
        print(f"not run: {why}")
    except ModuleNotFoundError as error:
        if str(error.name).startswith(("gsdd_lib", "cuda_ext")):
            raise
        print(f"not run: the package {error.name} is missing; install it, or carry its wheel")
    else:
        return 0
    return LEFT_OUT


if __name__ == "__main__":
    sys.exit(main())
