"""Frozen, strict settings: one model per consumer, built from a notebook's flat parameters.

Every field has its unit or meaning in its description. An unknown name is an error that names the
nearest known one, so that a typing mistake in a parameter file stops before any work is done.
"""

import difflib
import reprlib
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from gsdd_lib.core.errors import ConfigError

IMAGENET_SUBSETS = ("nette", "woof", "fruit", "yellow", "meow", "squawk")  # as tables list them
# Channels and native pixels per side of each data set by name; None: known once files are read.
DATASETS: Mapping[str, tuple[int, int] | None] = {
    "digits": (1, 8),
    "shapes": (3, 32),
    "fashion_mnist": (1, 28),
    "cifar10": (3, 32),
    "cifar100": (3, 32),
    **{f"image{name}": (3, 128) for name in IMAGENET_SUBSETS},
    "imagefolder": None,
}
NETWORKS = (*(f"ConvNetD{depth}" for depth in range(1, 7)), "AlexNet", "VGG11", "ResNet18", "ViT")
AUGMENTATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")


def nearest(name: str, known: Iterable[str]) -> str:
    """``", did you mean 'x'?"`` for the known name closest to ``name``, or an empty string."""
    close = difflib.get_close_matches(name[:100], known, n=1, cutoff=0.5)
    return f", did you mean '{close[0]}'?" if close else ""


def _known(what: str, names: tuple[str, ...], value: str) -> str:
    if value not in names:
        hint = nearest(value, names) or f"; known: {', '.join(names)}"
        raise ValueError(f"unknown {what} {reprlib.repr(value)}{hint}")
    return value


def _strategy(value: str) -> str:
    for name in filter(None, value.split("_")):
        _known("augmentation", AUGMENTATIONS, name)
    return value


def _inside(value: str) -> str:
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or value.startswith("~"):
        shown = reprlib.repr(value)
        raise ValueError(f"{shown} must lie in the project; link to another disk from there")
    return value


DatasetName = Annotated[str, AfterValidator(partial(_known, "data set", tuple(DATASETS)))]
NetworkName = Annotated[str, AfterValidator(partial(_known, "network", NETWORKS))]
Strategy = Annotated[str, AfterValidator(_strategy)]
ProjectFolder = Annotated[str, AfterValidator(_inside)]


class Config(BaseModel):
    """Base of all settings: immutable, no unknown names, no silent change of type, all finite.

    Raises:
        ConfigError: a wrong name, type or value; one sentence per fault.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            faults = [self._sentence(fault) for fault in error.errors()]
            raise ConfigError(f"{type(self).__name__}: " + "; ".join(faults)) from None

    @classmethod
    def pick(cls, parameters: Mapping[str, Any], *, prefix: str = "", **others: Any) -> Self:
        """Build from a flat mapping that may hold more than this model's fields.

        Args:
            parameters: names and values, such as a parameter file's; names that are no field of
                this model are left alone, fields that are missing keep their defaults.
            prefix: a name that begins with it goes before the plain one: with ``"dm_"``,
                ``dm_steps`` before ``steps``.
            others: fields set here, in place of what ``parameters`` says.

        Raises:
            ConfigError: a wrong type or value, or a name in ``others`` that is no field; one
                sentence per fault.

        >>> BudgetConfig.pick({"ipc": 10, "seed": 3}, gpc=80)
        BudgetConfig(ipc=10, gpc=80, opacity=True, soft_labels=False)
        """
        own = {}
        for name in cls.model_fields:
            found = prefix + name if prefix + name in parameters else name
            if found in parameters:
                own[name] = parameters[found]
        return cls(**(own | others))

    @classmethod
    def from_params(cls, **params: Any) -> Self:
        """The same as calling the class; notebooks that use :meth:`pick` do without it."""
        return cls(**params)

    @classmethod
    def _sentence(cls, fault: Any) -> str:
        name = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            return f"unknown parameter {reprlib.repr(name)}{nearest(name, cls.model_fields)}"
        message = fault["msg"].removeprefix("Value error, ")
        if message == fault["msg"]:  # pydantic's own sentences do not show the value
            message += f" (got {reprlib.repr(fault['input'])})"
        return f"{name}: {message}" if name else message


class RunConfig(Config):
    """What every run has, whatever it does."""

    seed: int = Field(0, ge=0, description="of everything random in the run")
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: a GPU where there is one"
    )
    output_folder: str = Field("", description="figures, tables and the record")
    run_folder: str = Field("", description="checkpoints and distilled sets")
    experts_folder: ProjectFolder = Field("", description="experts; empty: in the run's folder")
    paper_item: str = Field("", description="table of the paper this is read beside; empty: none")
    paper_method: str = Field("gsdd", description="its row")
    paper_setting: str = Field("", description="its column; empty: several")
    scaled: str = Field(
        "", description="what is smaller than in the paper; 'nothing': the paper's settings"
    )


class DataConfig(Config):
    """Which images."""

    dataset: DatasetName = Field("digits", description="name in the table of data sets")
    folder: str = Field(
        "",
        description="where its files are, from the project's root; empty: the usual places",
    )
    resolution: int = Field(0, ge=0, le=4096, description="pixels per side; 0: native")
    resize: Literal["crop", "squash"] = Field(
        "crop",
        description="of images in files: shorter side, then center crop; or both sides, as the "
        "published codes do",
    )
    max_per_class: int = Field(0, ge=0, description="training images kept per class; 0: all")
    holdout: float = Field(0.1, gt=0, lt=1, description="fraction held out for validation")
    zca: bool = Field(False, description="ZCA whitening in the place of mean and deviation")


class BudgetConfig(Config):
    """How the bytes of ``ipc`` fp32 images per class are spent (paper, section 3.2)."""

    ipc: int = Field(1, ge=1, description="budget: fp32 images per class")
    gpc: int = Field(10, ge=1, description="Gaussian images per class")
    opacity: bool = Field(True, description="whether a Gaussian stores an opacity")
    soft_labels: bool = Field(False, description="whether labels are learned, and paid for")


class RenderConfig(Config):
    """Switches of the splatting operator (paper, eq. 2-4)."""

    saturate: bool = Field(True, description="clamp a Gaussian's weight at 1")
    prefilter: bool = Field(True, description="add a pixel's variance, 1/12, to the covariance")
    supersample: bool = Field(True, description="mean of 2x2 samples per pixel")


class FitConfig(Config):
    """How Gaussians are initialized (paper, section 3.4 and table 17)."""

    init: Literal["real", "first", "kmeans", "warmup", "random"] = Field(
        "real",
        description="fitted to random real images, the first of each class (as published), k-means "
        "representatives, or a solid color (warmup); or not at all (random)",
    )
    fit_start: Literal["detail", "published"] = Field(
        "detail", description="first values: placed where images have detail, or uniform random"
    )
    fit_steps: int = Field(600, ge=0, description="Adam steps of the mean squared error")
    fit_lr: float = Field(0.045, gt=0, description="learning rate at the start; the paper: 0.01")
    fit_rates: Literal["spaced", "uniform"] = Field(
        "spaced",
        description="that of positions and Cholesky factors: in proportion to the spacing of the "
        "Gaussians, or the same as of all other numbers (as published)",
    )
    fit_schedule: Literal["cosine", "constant", "halving"] = Field(
        "cosine",
        description="of the learning rate: falls in the second half; stays; or is halved every "
        "20,000 steps (as published)",
    )
    fit_relocate: float = Field(
        0.1, ge=0, le=0.5, description="share of an image's Gaussians moved at a time; 0: never"
    )


class DistillConfig(Config):
    """The outer loop (paper, section 4.1)."""

    objective: Literal["dm", "dc", "tm"] = Field(
        "dm", description="matches distributions (dm), gradients (dc) or trajectories (tm)"
    )
    steps: int = Field(200, ge=0, description="outer steps")
    lr: float = Field(5e-3, gt=0, description="Adam's learning rate; the paper: 1e-3")
    lr_schedule: Literal["constant", "cosine"] = Field(
        "constant", description="of that rate; cosine ends at 0, which averages noise out"
    )
    round_from: float = Field(
        0.2, ge=0, lt=1, description="share of the steps before numbers are rounded by a codec"
    )
    cholesky_lr_ratio: float = Field(
        1.0, gt=0, description="learning rate of Cholesky factors (pixels) over the others'"
    )
    label_lr: float = Field(
        0.05, ge=0, description="Adam's learning rate of learned labels; 0: they stay as they began"
    )
    batch_real: int = Field(64, ge=1, description="real images per class and step")
    network: NetworkName = Field("ConvNetD3", description="architecture of the matching networks")
    width: int = Field(64, ge=1, description="filters per convolution of the matching networks")
    boundary: float = Field(
        0.1,
        ge=0,
        description="weight of the boundary loss (paper, eq. 9); the published code halves that "
        "loss and adds it once per class in dm and dc: its 0.1 is 0.05 times the classes there, "
        "and 0.05 in tm",
    )
    dsa: Strategy = Field(
        "color_crop_cutout_flip_scale_rotate", description="siamese augmentations; empty: none"
    )
    eval_every: int = Field(100, ge=1, description="steps between two rows of the history")
    select_networks: int = Field(2, ge=1, description="networks trained for a row")
    checkpoint_every: int = Field(25, ge=1, description="steps between two checkpoints")
    micro_batch: int = Field(
        256, ge=1, description="images in memory at once (dm, dc); changes rounding alone"
    )
    update_per_class: bool = Field(
        False,
        description="whether Adam steps after each class, one class's loss at a time, as in the "
        "published code of GSDD and DDiF, or once for all classes, as in DM's (dm)",
    )
    outer_loop: int = Field(1, ge=1, description="steps per network (dc)")
    inner_loop: int = Field(1, ge=0, description="epochs a network trains between steps (dc)")
    inner_lr: float = Field(0.01, gt=0, description="SGD learning rate of these epochs (dc)")
    inner_batch: int = Field(256, ge=1, description="distilled images per step of them (dc)")
    syn_steps: int = Field(20, ge=1, description="SGD steps of a student (tm)")
    batch_syn: int = Field(0, ge=0, description="distilled images per such step; 0: all (tm)")
    expert_epochs: int = Field(2, ge=1, description="expert's epochs that a student matches (tm)")
    max_start_epoch: int = Field(5, ge=1, description="students start at an epoch below (tm)")
    syn_lr_init: float = Field(0.01, gt=0, description="student's learning rate at first (tm)")
    lr_lr: float = Field(
        0.1,
        ge=0,
        description="learning rate of its logarithm; the published code learns the rate itself: "
        "its lr_lr is this times the square of the rate, 1e-5 at the published start of 0.01 (tm)",
    )
    keep_steps: int = Field(
        0, ge=0, description="student's steps kept in memory, the others are run twice (tm)"
    )


class ExpertConfig(Config):
    """Networks trained on the real data, whose paths trajectory matching follows."""

    num_experts: int = Field(5, ge=1, description="networks; the paper: 100")
    train_epochs: int = Field(10, ge=1, description="passes over the real data; the paper: 50")
    expert_network: NetworkName = Field(
        "ConvNetD3", description="architecture; that of the matching"
    )
    expert_width: int = Field(64, ge=1, description="filters per convolution")
    expert_lr: float = Field(0.01, gt=0, description="SGD learning rate, constant")
    expert_batch: int = Field(256, ge=1, description="real images per step")
    expert_dsa: Strategy = Field(
        "color_crop_cutout_flip_scale_rotate", description="augmentations; empty: none"
    )


class EvalConfig(Config):
    """How a distilled set is evaluated: fresh networks trained on nothing else."""

    protocol: Literal["clean", "paper"] = Field(
        "clean",
        description="what is reported of a run: the test accuracy of the row that is best on "
        "validation, or the best test accuracy of all rows, as the paper does",
    )
    networks: int = Field(5, ge=1, description="networks trained from scratch")
    eval_network: NetworkName = Field("ConvNetD3", description="architecture")
    eval_width: int = Field(64, ge=1, description="filters per convolution")
    epochs: int = Field(300, ge=1, description="passes over the distilled set")
    eval_norm: Literal["instance", "batch", "layer", "group", "none"] = Field(
        "instance", description="normalization of a ConvNet"
    )
    eval_pooling: Literal["avg", "max", "none"] = Field("avg", description="pooling of a ConvNet")
    eval_activation: Literal["relu", "leakyrelu", "sigmoid"] = Field(
        "relu", description="activation of a ConvNet"
    )
    eval_optimizer: Literal["sgd", "adam", "adamw"] = Field(
        "sgd", description="sgd has momentum 0.9; see protocols.SETTINGS for other networks"
    )
    eval_lr: float = Field(0.01, gt=0, description="learning rate at the start")
    eval_schedule: Literal["step", "cosine", "published"] = Field(
        "step",
        description="of the learning rate: a tenth after half the epochs; to 0 by cosine; or as "
        "the published codes: one epoch more, and a new optimizer where the rate falls",
    )
    eval_ema: float = Field(
        0.0, ge=0, lt=1, description="decay per step of the moving average tested; 0: none"
    )
    eval_weight_decay: float = Field(5e-4, ge=0, description="weight decay")
    eval_batch: int = Field(256, ge=1, description="distilled images per step")
    eval_dsa: Strategy = Field(
        "color_crop_cutout_flip_scale_rotate", description="augmentations; empty: none"
    )


class CodecConfig(Config):
    """Bits of each number of a Gaussian before entropy coding."""

    means_bits: int = Field(6, ge=1, le=9, description="bits of each coordinate")
    cholesky_bits: int = Field(5, ge=1, le=8, description="bits of each of three numbers")
    color_bits: int = Field(5, ge=1, le=8, description="bits of gray, or of RGB's brightness")
    chroma_bits: int = Field(4, ge=1, le=8, description="bits of each of two differences of RGB")
    opacity_bits: int = Field(4, ge=1, le=8, description="bits of the opacity")
    tail: float = Field(
        0.002, ge=0, lt=0.5, description="share of a column's values outside its grid at each end"
    )
