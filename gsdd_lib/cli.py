"""The library from a shell. Exit codes: 0 done, 1 failed, 2 a wrong option, 130 interrupted."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gsdd_lib import config
from gsdd_lib.config import DataConfig, EvalConfig, nearest
from gsdd_lib.core.errors import ConfigError, GsddError

GAUSSIANS = (config.BudgetConfig, config.FitConfig, config.DistillConfig)
MODELS = {"distill": (DataConfig, *GAUSSIANS, EvalConfig), "evaluate": (DataConfig, EvalConfig)}
PIXELS = {"type": int, "help": "pixels per side; left out, the set's own"}
OWN = {  # options that are fields of no model
    "distill": {
        "output": {"help": "file of the set (distilled.safetensors)"},
        "checkpoints": {"help": "folder from which the same command goes on"},
        "experts": {"help": "folder of experts (notebook 03), for tm and dm_networks=trained"},
    },
    "evaluate": {"split": {"choices": ("test", "validation"), "help": "of the real images (test)"}},
    "render": {"output": {"help": "png, pdf or svg (distilled.png)"}, "resolution": PIXELS},
    "export": {"output": {"help": "a new folder (distilled)"}, "resolution": PIXELS},
}


def distill(given: dict[str, Any]) -> None:
    """Distill a data set into Gaussians, and save them in a file."""
    from gsdd_lib.api import distill_images

    output = _writable(given.pop("output", "distilled.safetensors"), ".safetensors")
    data = _data(given, given.get("seed", 0))
    elsewhere = {"device", "checkpoints", *DataConfig.model_fields}
    more = {name: value for name, value in given.items() if name not in elsewhere}
    paths = {"folder": given.get("checkpoints"), "experts": given.get("experts")}
    more |= {name: Path(path).absolute() for name, path in paths.items() if path}
    made = distill_images(data, **more)
    print(f"{output}: {made.save(output):,} bytes; {made}")


def evaluate(given: dict[str, Any]) -> None:
    """Train fresh networks on a distilled set alone, as it says, and test them on real images."""
    from gsdd_lib.data.normalization import ChannelNormalization
    from gsdd_lib.evaluation.evaluate import format_accuracy
    from gsdd_lib.storage import load

    small, split = load(given["set"]), given.get("split", "test")
    seed, (height, width) = small.provenance.get("seed", 0), small.gaussians.resolution
    about = {"dataset": small.dataset_name, "resolution": height * (height == width)}
    about["zca"] = not isinstance(small.gaussians.normalization, ChannelNormalization)
    data = _data(about | given, seed if isinstance(seed, int) else 0)
    how = EvalConfig.pick(small.training | given)
    row = small.evaluate(data, split=split, config=how, seed=given.get("seed", 1))
    print(f"{format_accuracy(row)} % on the {split} split, {how.eval_network} of {how.eval_width}")


def render(given: dict[str, Any]) -> None:
    """Draw all images of a distilled set, a row per class."""
    from gsdd_lib.experiment import pictures, plots
    from gsdd_lib.storage import load

    output = _writable(given.get("output", "distilled.png"), ".png", ".pdf", ".svg")
    small = load(given["set"])
    images, names = small.render(given.get("resolution")), small.class_names
    size = {"classes": len(names), "per_class": int(small.labels.bincount().max())}
    figure = pictures.class_rows(images, small.labels, names, **size)
    figure.savefig(output, dpi=plots.DPI, bbox_inches="tight")
    print(f"{output}: {len(small)} images of {len(names)} classes")


def export(given: dict[str, Any]) -> None:
    """Write a distilled set as PNG files and plain tensors, to a new folder."""
    from gsdd_lib.storage import load

    small = load(given["set"])
    folder = small.export(given.get("output", "distilled"), given.get("resolution"))
    print(f"{folder}: {len(small)} PNG files, images.pt and labels.pt")


COMMANDS = {"distill": distill, "evaluate": evaluate, "render": render, "export": export}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    try:
        given = _read(sys.argv[1:] if arguments is None else arguments)
        COMMANDS[given.pop("command")](given)
    except KeyboardInterrupt as stopped:
        print(stopped or "Stopped.", file=sys.stderr)
        return 130
    except (GsddError, OSError) as error:
        print(f"gsdd: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise ConfigError(f"{message}; see {self.prog} --help")


def _read(arguments: Sequence[str]) -> dict[str, Any]:
    parser = _Parser(prog="gsdd", description=__doc__)
    commands, known = parser.add_subparsers(dest="command", required=True, metavar="COMMAND"), {}
    for name, command in COMMANDS.items():
        usage = f"gsdd {name} {'SET ' * (name != 'distill')}[--option value ...]"
        more = {"help": command.__doc__, "usage": usage, "argument_default": argparse.SUPPRESS}
        sub = commands.add_parser(name, description=command.__doc__, allow_abbrev=False, **more)
        if name != "distill":
            sub.add_argument("set", help="file of a distilled set")
        fields = [field for model in MODELS.get(name, ()) for field in model.model_fields.items()]
        run = config.RunConfig.model_fields
        fields += [(field, run[field]) for field in ("seed", "device") if name in MODELS]
        options = OWN[name] | {option: _option(field) for option, field in fields}
        for option, about in options.items():
            sub.add_argument(f"--{option}", **about)
        known[name] = [f"--{option}" for option in options]
    options, unknown = parser.parse_known_args(arguments)
    for name in unknown:
        raise ConfigError(f"unknown option '{name}'{nearest(name, known[options.command])}")
    for model in (config.RunConfig, *MODELS.get(options.command, ())):
        model.pick(vars(options))
    return vars(options)


def _option(field: Any) -> dict[str, Any]:
    kind = type(field.default)
    flag = {"nargs": "?", "const": True} if kind is bool else {}
    how = {"type": partial(_typed, kind), "metavar": kind.__name__}
    return how | flag | {"help": field.description}


def _typed(kind: type, text: str) -> Any:
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):  # for the settings to refuse
        return text


def _data(given: dict[str, Any], seed: int) -> Any:
    from gsdd_lib.core.device import choose_device
    from gsdd_lib.data import load_data

    own = {"folder": str(Path(given["folder"]).absolute())} if given.get("folder") else {}
    data = load_data(DataConfig.pick(given, **own), seed)
    print(f"{data.name}: {data.provenance}", flush=True)
    return data.to(choose_device(given.get("device", "auto")))


def _writable(name: str, *suffixes: str) -> Path:
    path = Path(name)
    if path.is_dir() or not path.parent.is_dir() or path.suffix not in suffixes:
        wanted = f"a {' or '.join(suffixes)} file in a folder that exists"
        raise ConfigError(f"--output: '{name}' must be {wanted}")
    return path
