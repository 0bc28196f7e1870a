"""From images per class to Gaussians: all byte arithmetic of the library (paper, section 3.2), as
points per image = floor(H * W * C * IPC * 4 / (GPC * (5 + C + opacity) * 2))."""

from dataclasses import dataclass

from gsdd_lib.config import BudgetConfig
from gsdd_lib.core.errors import GsddError
from gsdd_lib.data import ImageData
from gsdd_lib.splatting.splat import GEOMETRY

PIXEL_BITS = 32  # the field counts a budget in fp32 pixels
GAUSSIAN_BITS = 16  # bf16, of each number
LABEL_BITS = 16  # bf16, of each class's logit in a learned label, taken from the budget first


class BudgetError(GsddError, ValueError):
    """The budget cannot be spent like this; the message is one sentence with what would fit."""


def points_per_image(
    *, ipc: int, gpc: int, height: int, width: int, channels: int, opacity=True, label_bits=0
) -> int:
    """Gaussians per image that ``ipc`` fp32 images per class buy, spread over ``gpc`` images, whose
    learned labels take ``label_bits`` each; raises BudgetError, with what fits, where it is none.
    """
    sizes = {"ipc": ipc, "gpc": gpc, "height": height, "width": width, "channels": channels}
    if small := [name for name, value in sizes.items() if value < 1]:
        raise BudgetError(f"{small[0]} must be at least 1, got {sizes[small[0]]}")
    bits = ipc * channels * height * width * PIXEL_BITS
    gaussian_bits = (GEOMETRY + channels + opacity) * GAUSSIAN_BITS
    if points := max(0, bits - gpc * label_bits) // (gpc * gaussian_bits):
        return points
    reason = "is less than one Gaussian" + " and a learned label" * (label_bits > 0)
    remedy = "use larger images or a larger ipc"
    if largest := bits // (gaussian_bits + label_bits):
        reason = f"buys no Gaussian for each of gpc={gpc} images"
        remedy = f"the largest gpc that fits is {largest}"
    size = f"{ipc} image{'s' * (ipc > 1)} per class ({channels}x{height}x{width})"
    raise BudgetError(f"a budget of {size} {reason}; {remedy}")


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

    # The last dimension of the packed tensor, and what a class may and does spend.
    numbers_per_gaussian = property(lambda self: GEOMETRY + self.channels + self.opacity)

    @property
    def budget_bits_per_class(self) -> int:
        return self.ipc * self.channels * self.height * self.width * PIXEL_BITS

    @property
    def bits_per_class(self) -> int:
        """The bits spent on a class's Gaussians and learned labels, within the budget."""
        gaussians = self.points * self.numbers_per_gaussian * GAUSSIAN_BITS
        return self.gpc * (gaussians + self.label_bits)

    def describe(self) -> str:
        """One line: IPC, GPC, points, bits per class used and allowed."""
        labels = f" + {self.gpc} labels of {self.label_bits} bits" if self.label_bits else ""
        gaussians = f"{self.points} points x {self.numbers_per_gaussian} bf16 numbers{labels}"
        allowed, spent = self.budget_bits_per_class, self.bits_per_class
        start = f"IPC {self.ipc} ({allowed:,} bits per class) -> GPC {self.gpc}"
        return f"{start} x {gaussians} = {spent:,} bits per class"


def plan_budget(config: BudgetConfig, data: ImageData) -> Budget:
    """Spend the budget on images of the size of ``data``; BudgetError as points_per_image."""
    height, width = data.resolution
    spent = {"ipc": config.ipc, "gpc": config.gpc, "opacity": config.opacity}
    spent |= {"height": height, "width": width, "channels": data.channels}
    spent["label_bits"] = config.soft_labels * data.num_classes * LABEL_BITS
    return Budget(points=points_per_image(**spent), **spent)
