"""From images per class to Gaussians: all byte arithmetic of the library (paper, section 3.2).

``IPC`` images of ``C`` channels buy ``IPC * C * H * W`` fp32 numbers per class. A Gaussian is
``5 + C`` numbers (means 2, Cholesky factor 3, colors C), one more with an opacity, each stored in
two bytes (bf16). Shared evenly by ``GPC`` Gaussian images per class, that buys

    points = floor(H * W * C * IPC * 4 / (GPC * (5 + C + opacity) * 2))    Gaussians per image.

Learned labels are paid for too: a bf16 number per class and image, taken from the budget first. A
label that is a class's number is not counted, as in the field.
"""

from dataclasses import dataclass

from gsdd_lib.config import BudgetConfig
from gsdd_lib.core.errors import GsddError
from gsdd_lib.data import ImageData

PIXEL_BYTES = 4  # the field counts a budget in fp32 pixels
GAUSSIAN_BYTES = 2  # bf16
GEOMETRY = 5  # means 2, Cholesky factor 3
LABEL_BITS = 16  # bf16, of each class's logit in a learned label


class BudgetError(GsddError, ValueError):
    """The budget cannot be spent like this; the message is one sentence with what would fit."""


def points_per_image(
    *,
    ipc: int,
    gpc: int,
    height: int,
    width: int,
    channels: int,
    opacity: bool = True,
    label_bits: int = 0,
) -> int:
    """Gaussians per image that ``ipc`` fp32 images per class buy, spread over ``gpc`` images.

    label_bits: bits of one image's learned label, 0 for class numbers

    Raises :class:`BudgetError` when that is none, naming the largest ``gpc`` that fits.

    >>> points_per_image(ipc=1, gpc=30, height=32, width=32, channels=3)  # CIFAR-10, table 7
    22
    """
    sizes = {"ipc": ipc, "gpc": gpc, "height": height, "width": width, "channels": channels}
    for name, value in sizes.items():
        if value < 1:
            raise BudgetError(f"{name} must be at least 1, got {value}")
    bits = ipc * channels * height * width * 8 * PIXEL_BYTES
    gaussian_bits = (GEOMETRY + channels + opacity) * 8 * GAUSSIAN_BYTES
    points = (bits - gpc * label_bits) // (gpc * gaussian_bits)
    if points > 0:
        return points
    largest = bits // (gaussian_bits + label_bits)
    budget = f"a budget of {ipc} image{'s' * (ipc > 1)} per class ({channels}x{height}x{width})"
    if largest == 0:
        label = " and a learned label" if label_bits else ""
        raise BudgetError(
            f"{budget} is less than one Gaussian{label}; use larger images or a larger ipc"
        )
    raise BudgetError(
        f"{budget} buys no Gaussian for each of gpc={gpc} images;"
        f" the largest gpc that fits is {largest}"
    )


@dataclass(frozen=True)
class Budget:
    """How one budget is spent: ``gpc`` images per class of ``points`` Gaussians each."""

    ipc: int
    gpc: int
    points: int
    channels: int
    height: int
    width: int
    opacity: bool = True
    label_bits: int = 0

    @property
    def numbers_per_gaussian(self) -> int:
        """5 + C, and one more with an opacity: the last dimension of the packed tensor."""
        return GEOMETRY + self.channels + self.opacity

    @property
    def budget_bits_per_class(self) -> int:
        """What may be spent: the bits of ``ipc`` fp32 images."""
        return self.ipc * self.channels * self.height * self.width * 8 * PIXEL_BYTES

    @property
    def bits_per_class(self) -> int:
        """What is spent: the bits of a class's Gaussians and learned labels, within the budget."""
        gaussians = self.points * self.numbers_per_gaussian * 8 * GAUSSIAN_BYTES
        return self.gpc * (gaussians + self.label_bits)

    @property
    def uint8_images_per_class(self) -> int:
        """Images per class that the *budget* buys as uint8 pixels, however much of it is used."""
        return self.ipc * PIXEL_BYTES

    def file_bytes(self, num_classes: int) -> int:
        """Bytes of all Gaussians and learned labels; class numbers and a description add to it."""
        return num_classes * self.bits_per_class // 8

    def describe(self) -> str:
        """One line: IPC, GPC, points, bits per class used and allowed."""
        labels = f" + {self.gpc} labels of {self.label_bits} bits" if self.label_bits else ""
        return (
            f"IPC {self.ipc} ({self.budget_bits_per_class:,} bits per class) -> "
            f"GPC {self.gpc} x {self.points} points x {self.numbers_per_gaussian} bf16 numbers"
            f"{labels} = {self.bits_per_class:,} bits per class"
        )


def plan_budget(config: BudgetConfig, data: ImageData) -> Budget:
    """Spend the budget of ``config`` on images of the size of ``data``.

    Raises:
        BudgetError: it buys no Gaussian per image.

    >>> from gsdd_lib.config import DataConfig
    >>> from gsdd_lib.data import load_data
    >>> digits = load_data(DataConfig(dataset="digits"))  # 8x8
    >>> plan_budget(BudgetConfig(ipc=2, gpc=4), digits).describe()
    'IPC 2 (4,096 bits per class) -> GPC 4 x 9 points x 7 bf16 numbers = 4,032 bits per class'
    """
    height, width = data.resolution
    size = {"height": height, "width": width, "channels": data.channels}
    spent = {"ipc": config.ipc, "gpc": config.gpc, "opacity": config.opacity}
    label_bits = config.soft_labels * data.num_classes * LABEL_BITS
    points = points_per_image(**spent, **size, label_bits=label_bits)
    return Budget(points=points, **spent, **size, label_bits=label_bits)
