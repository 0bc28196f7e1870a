"""``gsdd distill | evaluate | render | export``: the library from a shell.

Options are the fields of the settings in :mod:`gsdd_lib.config`, with ``-`` or ``_``; of those
left out, distill chooses by the data what ``distill_images`` chooses, and evaluate trains as the
set says. Paths count from the working directory. Exit codes: 0 done, 1 failed, 2 a wrong option,
130 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gsdd_lib
from gsdd_lib import config
from gsdd_lib.config import nearest
from gsdd_lib.core.errors import ConfigError, GsddError

DATA, CODEC, EVAL = config.DataConfig, config.CodecConfig, config.EvalConfig
MODELS = {
    "distill": (DATA, config.BudgetConfig, config.FitConfig, config.DistillConfig, EVAL, CODEC),
    "evaluate": (DATA, EVAL),
}
RUN = {name: config.RunConfig.model_fields[name] for name in ("seed", "device")}
CHOSEN = ("gpc", "network", "width", "epochs", "eval_every", "select_networks", "eval_network")
CHOSEN += ("eval_width", "max_start_epoch")  # by distill_images, where they are left out
PIXELS = {"type": int, "help": "pixels per side; left out, the set's own"}
OWN = {  # options that are fields of no model there
    "distill": {
        "output": {"help": "file of the set (distilled.safetensors)"},
        "checkpoints": {"help": "folder from which the same command goes on"},
        "experts": {"help": "folder of the experts that tm follows (notebook 03)"},
        "coded": {"action": "store_true", "help": "store few bits per number: see means_bits, ..."},
    },
    "evaluate": {"split": {"choices": ("test", "validation"), "help": "of the real images (test)"}},
    "render": {"output": {"help": "the picture (distilled.png)"}, "resolution": PIXELS},
    "export": {"output": {"help": "a new folder (distilled)"}, "resolution": PIXELS},
}


def distill(given: dict[str, Any]) -> None:
    """Distill a data set into Gaussians, and save them in a file."""
    from gsdd_lib.api import distill_images

    output = _writable(given.pop("output", "distilled.safetensors"), ".safetensors")
    paths = {"folder": given.pop("checkpoints", None), "experts": given.pop("experts", None)}
    more = {name: Path(path).absolute() for name, path in paths.items() if path}
    if given.pop("coded", False):
        more["codec"] = CODEC.pick(given)
    data = _data(given, given.get("seed", 0))
    elsewhere = {"device", *DATA.model_fields, *CODEC.model_fields}
    more |= {name: value for name, value in given.items() if name not in elsewhere}
    made = distill_images(data, **more)
    print(f"{output}: {made.save(output):,} bytes, {made.bits_per_class:,} bits per class; {made}")


def evaluate(given: dict[str, Any]) -> None:
    """Train fresh networks on a distilled set alone, and test them on real images."""
    from gsdd_lib.data.normalization import ChannelNormalization
    from gsdd_lib.evaluation.evaluate import format_accuracy

    small, split = _load(given), given.get("split", "test")
    seed, (height, width) = small.provenance.get("seed", 0), small.gaussians.resolution
    about = {"dataset": small.dataset_name, "resolution": height if height == width else 0}
    about["zca"] = not isinstance(small.gaussians.normalization, ChannelNormalization)
    data = _data(about | given, seed if isinstance(seed, int) else 0)
    how = EVAL.pick(small.training | given)
    row = small.evaluate(data, split=split, config=how, seed=given.get("seed", 1))
    print(f"{format_accuracy(row)} % on the {split} split, {how.eval_network} of {how.eval_width}")


def render(given: dict[str, Any]) -> None:
    """Draw all images of a distilled set, a row per class: a PNG, or a PDF or SVG by its name."""
    from gsdd_lib.experiment import pictures, plots

    small, output = (
        _load(given),
        _writable(given.get("output", "distilled.png"), ".png", ".pdf", ".svg"),
    )
    images, most = small.render(given.get("resolution")), int(small.labels.bincount().max())
    names = small.class_names
    figure = pictures.class_rows(images, small.labels, names, classes=len(names), per_class=most)
    figure.savefig(output, dpi=plots.DPI, bbox_inches="tight")
    print(f"{output}: {len(small)} images of {len(names)} classes")


def export(given: dict[str, Any]) -> None:
    """Write a distilled set as PNG files and plain tensors, to a new folder."""
    small = _load(given)
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
    """The command and the options that were given, by name; every value is checked."""
    parser = _Parser(prog="gsdd", description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"gsdd {gsdd_lib.__version__}")
    commands, known = parser.add_subparsers(dest="command", required=True, metavar="COMMAND"), {}
    for name, command in COMMANDS.items():
        of_set = " SET" * (name != "distill")
        about = {"help": command.__doc__, "description": command.__doc__, "allow_abbrev": False}
        about["usage"] = f"gsdd {name}{of_set} [--option value ...]"
        sub = commands.add_parser(name, argument_default=argparse.SUPPRESS, **about)
        if of_set:
            sub.add_argument("set", help="file of a distilled set")
        fields = dict(RUN) if name in MODELS else {}
        for model in MODELS.get(name, ()):
            fields |= model.model_fields
        options = OWN[name] | {option: _option(option, field) for option, field in fields.items()}
        for option, about in options.items():
            sub.add_argument(f"--{option}", **about)
        known[name] = [f"--{option}" for option in options]
    if arguments and arguments[0][:1] != "-" and arguments[0] not in COMMANDS:
        raise ConfigError(f"unknown command '{arguments[0]}'{nearest(arguments[0], COMMANDS)}")
    options, unknown = parser.parse_known_args([_underscored(text) for text in arguments])
    if unknown:
        hint = nearest(unknown[0], known[options.command])
        raise ConfigError(f"unknown option '{unknown[0]}'{hint}")
    for model in (config.RunConfig, *MODELS.get(options.command, ())):
        model.pick(vars(options))
    return vars(options)


def _underscored(text: str) -> str:
    option, *value = text.split("=", 1)
    return "=".join(["--" + option[2:].replace("-", "_"), *value]) if text[:2] == "--" else text


def _option(name: str, field: Any) -> dict[str, Any]:
    """How argparse reads a field of a model."""
    kind, default = type(field.default), "" if name in CHOSEN else f" ({field.default})"
    metavar = {bool: "true|false", str: "NAME"}.get(kind, kind.__name__.upper())
    flag = {"nargs": "?", "const": True} if kind is bool else {}
    text = f"{field.description}{default}".replace("%", "%%")
    return {"type": partial(_typed, kind), "metavar": metavar, "help": text, **flag}


def _typed(kind: type, text: str) -> Any:
    """The value that ``text`` says; text that says none is left for the settings to refuse."""
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        return text


def _load(given: dict[str, Any]) -> Any:
    from gsdd_lib.storage import load

    return load(given["set"])


def _data(given: dict[str, Any], seed: int) -> Any:
    from gsdd_lib.core.device import choose_device
    from gsdd_lib.data import load_data

    own = {"folder": str(Path(given["folder"]).absolute())} if given.get("folder") else {}
    data = load_data(DATA.pick(given, **own), seed)
    print(f"{data.name}: {data.provenance}", flush=True)
    return data.to(choose_device(given.get("device", "auto")))


def _writable(name: str, *suffixes: str) -> Path:
    """A file to write when the work is done, refused before it begins."""
    path = Path(name)
    if path.is_dir() or not path.parent.is_dir() or path.suffix not in suffixes:
        kinds = " or ".join(suffixes)
        raise ConfigError(f"--output: '{name}' must be a {kinds} file in a folder that exists")
    return path


if __name__ == "__main__":
    sys.exit(main())
