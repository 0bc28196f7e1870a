"""Frozen, strict settings: one model per consumer, built from a notebook's flat parameters."""

import difflib
import reprlib
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from gsdd_lib.core.errors import ConfigError

IMAGENET_SUBSETS = ("nette", "woof", "fruit", "yellow", "meow", "squawk")  # as tables list them
# Channels and native pixels per side of each data set by name; None: known once files are read.
DATASETS: Mapping[str, tuple[int, int] | None] = {
    **{"digits": (1, 8), "fashion_mnist": (1, 28)},
    **dict.fromkeys(("shapes", "cifar10", "cifar100"), (3, 32)),
    **{f"image{name}": (3, 128) for name in IMAGENET_SUBSETS},
    "imagefolder": None,
}
CONVNETS = tuple(f"ConvNetD{depth}" for depth in range(1, 7))
NETWORKS = (*CONVNETS, "AlexNet", "VGG11", "ResNet18", "ResNet18BN", "ViT")
DSA = "color_crop_cutout_flip_scale_rotate"  # all of the augmentations
OBJECTIVES = ["dm", "dc", "tm"]  # and those of one's own: see distillation.losses.add_objective
AUGMENTATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")

# Not said where it is the usual way, which was the only one of older files
USUAL = {"eval_precision": "auto", "eval_channels_last": False}
USUAL |= {"expert_precision": "auto", "expert_channels_last": False}
USUAL |= {"dm_networks": "untrained"}


def nearest(name: str, known: Iterable[str]) -> str:
    """``", did you mean 'x'?"`` for the known name closest to ``name``, or an empty string."""
    close = difflib.get_close_matches(name[:100], known, n=1, cutoff=0.5)
    return f", did you mean '{close[0]}'?" if close else ""


def check_choice(what: str, known: Collection[str], choice: str) -> str:
    """``choice``, or a :class:`ConfigError` that names the nearest of the ``known`` ones."""
    if choice not in known:
        hint = f"{nearest(choice, known)}; known: {', '.join(known)}"
        raise ConfigError(f"unknown {what} {reprlib.repr(choice)}{hint}")
    return choice


def _strategy(value: str) -> str:
    for name in filter(None, value.split("_")):
        check_choice("augmentation", AUGMENTATIONS, name)
    return value


def _inside(value: str) -> str:
    if value.startswith(("/", "~")) or ".." in value.split("/"):
        raise ValueError(f"{reprlib.repr(value)} must lie in the project; link to it from there")
    return value


DatasetName = Annotated[str, AfterValidator(partial(check_choice, "data set", DATASETS))]
Objective = Annotated[str, AfterValidator(partial(check_choice, "objective", OBJECTIVES))]
NetworkName = Annotated[str, AfterValidator(partial(check_choice, "network", NETWORKS))]
Strategy = Annotated[str, AfterValidator(_strategy)]
Precision = Literal["auto", "fp32", "tf32", "bf16"]
Norm = Literal["instance", "batch", "layer", "group", "none"]
ProjectFolder = Annotated[str, AfterValidator(_inside)]


class Config(BaseModel):
    """Base of all settings: immutable, known names, strict types, finite; else a ConfigError."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            faults = [self._sentence(fault) for fault in error.errors()]
            raise ConfigError(f"{type(self).__name__}: " + "; ".join(faults)) from None

    @classmethod
    def pick(cls, parameters: Mapping[str, Any], *, prefix: str = "", **others: Any) -> Self:
        """Build from a flat mapping that may hold more, or less, than this model's fields.

        ``prefix``: with ``"dm_"``, ``dm_steps`` goes before ``steps``; ``others`` go before both.
        """
        plain, fields = {**parameters}, cls.model_fields
        plain |= {name: plain[prefix + name] for name in fields if prefix + name in plain}
        return cls(**({name: plain[name] for name in fields if name in plain} | others))

    def told(self, *, exclude: Collection[str] = ()) -> dict[str, Any]:
        """The fields by name, but those excluded and those that are as in :data:`USUAL`."""
        fields = self.model_dump(exclude=set(exclude)).items()
        return {name: value for name, value in fields if (name, value) not in USUAL.items()}

    @classmethod
    def _sentence(cls, fault: Any) -> str:
        name = ".".join(map(str, fault["loc"]))
        if fault["type"] == "extra_forbidden":
            return f"unknown parameter {reprlib.repr(name)}{nearest(name, cls.model_fields)}"
        message = fault["msg"].removeprefix("Value error, ")
        if message == fault["msg"]:  # pydantic's own sentences do not show the value
            message += f" (got {reprlib.repr(fault['input'])})"
        return f"{name}: {message}" if name else message


def _field(default: Any, meaning: str, **limits: Any) -> Any:
    return Field(default, description=meaning, **limits)


class RunConfig(Config):
    """What every run has, whatever it does."""

    seed: int = _field(0, "of everything random in the run", ge=0)
    device: str = _field("auto", "auto: a GPU if there is one", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    output_folder: str = _field("", "figures, tables and the record")
    run_folder: str = _field("", "checkpoints and distilled sets")
    experts_folder: ProjectFolder = _field("", "experts; empty: in the run's folder")
    paper_item: str = _field("", "table of the paper this is read beside; empty: none")
    paper_method: str = _field("gsdd", "its row")
    paper_setting: str = _field("", "its column; empty: several")
    scaled: str = _field("", "what is smaller than in the paper; 'nothing': the paper's settings")


class DataConfig(Config):
    """Which images."""

    dataset: DatasetName = _field("digits", "name in the table of data sets")
    folder: str = _field("", "of its files, from the project's root; empty: the usual places")
    resolution: int = _field(0, "pixels per side; 0: native", ge=0, le=4096)
    resize: Literal["crop", "squash"] = _field("crop", "center crop; or squash, as published")
    max_per_class: int = _field(0, "training images kept per class; 0: all", ge=0)
    holdout: float = _field(0.1, "fraction held out for validation", gt=0, lt=1)
    zca: bool = _field(False, "ZCA whitening in the place of mean and deviation")


class BudgetConfig(Config):
    """How the bytes of ``ipc`` fp32 images per class are spent (paper, section 3.2)."""

    ipc: int = _field(1, "budget: fp32 images per class", ge=1)
    gpc: int = _field(10, "Gaussian images per class", ge=1)
    opacity: bool = _field(True, "whether a Gaussian stores an opacity")
    soft_labels: bool = _field(False, "whether labels are learned, and paid for")


class RenderConfig(Config):
    """Switches of the splatting operator (paper, eq. 2-4)."""

    saturate: bool = _field(True, "clamp a Gaussian's weight at 1")
    prefilter: bool = _field(True, "add a pixel's variance, 1/12, to the covariance")
    supersample: bool = _field(True, "mean of 2x2 samples per pixel")


class FitConfig(Config):
    """How Gaussians are initialized (paper, section 3.4 and table 17).

    ``init``: fitted to random real images, the first of each class (as published), k-means
    representatives or a solid color (warmup); or random. ``halving``: every 20,000 steps.
    """

    init: Literal["real", "first", "kmeans", "warmup", "random"] = _field("real", "fitted to what")
    fit_start: Literal["detail", "published"] = _field("detail", "where detail is, or uniform")
    fit_steps: int = _field(600, "Adam steps of the mean squared error", ge=0)
    fit_lr: float = _field(0.045, "learning rate at the start; the paper: 0.01", gt=0)
    fit_rates: Literal["spaced", "uniform"] = _field("spaced", "by Gaussians' spacing, or as all")
    fit_schedule: Literal["cosine", "constant", "halving"] = _field("cosine", "of fit_lr")
    fit_relocate: float = _field(0.1, "share of Gaussians moved at a time; 0: never", ge=0, le=0.5)


class DistillConfig(Config):
    """The outer loop (paper, section 4.1).

    The published code's boundary of 0.1 is one of 0.05 here, times the classes in dm and dc; its
    ``lr_lr`` is ours times the square of the rate; and it updates per class, where DM does not.
    """

    objective: Objective = _field("dm", "distributions, gradients, trajectories")
    steps: int = _field(200, "outer steps", ge=0)
    lr: float = _field(5e-3, "Adam's learning rate; the paper: 1e-3", gt=0)
    lr_schedule: Literal["constant", "cosine"] = _field("constant", "of that rate; cosine: to 0")
    round_from: float = _field(0.2, "share of steps before a codec rounds numbers", ge=0, lt=1)
    cholesky_lr_ratio: float = _field(1.0, "rate of Cholesky factors over the others'", gt=0)
    label_lr: float = _field(0.05, "Adam's rate of learned labels; 0: they stay", ge=0)
    batch_real: int = _field(64, "real images per class and step", ge=1)
    network: NetworkName = _field("ConvNetD3", "architecture of the matching networks")
    width: int = _field(64, "filters per convolution of the matching networks", ge=1)
    boundary: float = _field(0.1, "weight of the boundary loss (paper, eq. 9)", ge=0)
    dsa: Strategy = _field(DSA, "siamese augmentations; empty: none")
    eval_every: int = _field(100, "steps between two rows of the history", ge=1)
    select_networks: int = _field(2, "networks trained for a row", ge=1)
    checkpoint_every: int = _field(25, "steps between two checkpoints", ge=1)
    micro_batch: int = _field(256, "images in memory at once (dm, dc); rounding alone", ge=1)
    dm_match: Literal["means", "kernel"] = _field("means", "of embeddings, or all by a kernel (dm)")
    dm_networks: Literal["untrained", "trained"] = _field(
        "untrained", "networks that embed; trained: anywhere between an expert's ends (dm)"
    )
    update_per_class: bool = _field(False, "whether Adam steps after each class (dm)")
    outer_loop: int = _field(1, "steps per network (dc)", ge=1)
    inner_loop: int = _field(1, "epochs a network trains between steps (dc)", ge=0)
    inner_lr: float = _field(0.01, "SGD learning rate of these epochs (dc)", gt=0)
    inner_batch: int = _field(256, "distilled images per step of them (dc)", ge=1)
    syn_steps: int = _field(20, "SGD steps of a student (tm)", ge=1)
    batch_syn: int = _field(0, "distilled images per such step; 0: all (tm)", ge=0)
    expert_epochs: int = _field(2, "expert's epochs that a student matches (tm)", ge=1)
    max_start_epoch: int = _field(5, "students start at an epoch below (tm)", ge=1)
    syn_lr_init: float = _field(0.01, "student's learning rate at first (tm)", gt=0)
    lr_lr: float = _field(0.1, "learning rate of that rate's logarithm (tm)", ge=0)
    keep_steps: int = _field(0, "student's steps in memory, the others run twice (tm)", ge=0)


class ExpertConfig(Config):
    """Networks trained on the real data, whose paths trajectory matching follows."""

    num_experts: int = _field(5, "networks; the paper: 100", ge=1)
    train_epochs: int = _field(10, "passes over the real data; the paper: 50", ge=1)
    expert_network: NetworkName = _field("ConvNetD3", "architecture; that of the matching")
    expert_width: int = _field(64, "filters per convolution", ge=1)
    expert_lr: float = _field(0.01, "SGD learning rate, constant", gt=0)
    expert_batch: int = _field(256, "real images per step", ge=1)
    expert_dsa: Strategy = _field(DSA, "augmentations; empty: none")
    expert_precision: Precision = _field("auto", "of arithmetic; auto: torch's own")
    expert_channels_last: bool = _field(False, "a layout in memory that some GPUs prefer")


class EvalConfig(Config):
    """How a distilled set is evaluated: fresh networks trained on nothing else.

    ``clean``: test accuracy of the row that is best on validation; ``paper``: the best of all.
    ``step``: a tenth after half the epochs; ``published``: with an epoch more, a new optimizer.
    """

    protocol: Literal["clean", "paper"] = _field("clean", "which accuracy of a run is reported")
    networks: int = _field(5, "networks trained from scratch", ge=1)
    eval_network: NetworkName = _field("ConvNetD3", "architecture")
    eval_width: int = _field(64, "filters per convolution", ge=1)
    epochs: int = _field(300, "passes over the distilled set", ge=1)
    eval_norm: Norm = _field("instance", "of a ConvNet")
    eval_pooling: Literal["avg", "max", "none"] = _field("avg", "of a ConvNet")
    eval_activation: Literal["relu", "leakyrelu", "sigmoid"] = _field("relu", "of a ConvNet")
    eval_optimizer: Literal["sgd", "adam", "adamw"] = _field("sgd", "sgd has momentum 0.9")
    eval_lr: float = _field(0.01, "learning rate at the start", gt=0)
    eval_schedule: Literal["step", "cosine", "published"] = _field("step", "of eval_lr")
    eval_ema: float = _field(0.0, "decay per step of the average tested; 0: none", ge=0, lt=1)
    eval_weight_decay: float = _field(5e-4, "weight decay", ge=0)
    eval_batch: int = _field(256, "distilled images per step", ge=1)
    eval_dsa: Strategy = _field(DSA, "augmentations; empty: none")
    eval_precision: Precision = _field("auto", "of arithmetic; auto: torch's own")
    eval_channels_last: bool = _field(False, "a layout in memory that some GPUs prefer")


class CodecConfig(Config):
    """Bits of each number of a Gaussian before entropy coding."""

    means_bits: int = _field(6, "bits of each coordinate", ge=1, le=9)
    cholesky_bits: int = _field(5, "bits of each of three numbers", ge=1, le=8)
    color_bits: int = _field(5, "bits of gray, or of RGB's brightness", ge=1, le=8)
    chroma_bits: int = _field(4, "bits of each of two differences of RGB", ge=1, le=8)
    opacity_bits: int = _field(4, "bits of the opacity", ge=1, le=8)
    tail: float = _field(0.002, "share of a column outside its grid at each end", ge=0, lt=0.5)
