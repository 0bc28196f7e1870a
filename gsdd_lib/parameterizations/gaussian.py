"""Images as sums of 2D Gaussians (paper, section 3.1): the parameterization of this project."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from gsdd_lib.config import RenderConfig
from gsdd_lib.parameterizations.initialization import MAX_POSITION
from gsdd_lib.splatting.splat import GEOMETRY, splat

Space = Literal["unit", "normalized"]


class RoundToBf16(torch.autograd.Function):
    """Forward: the nearest bfloat16, as float32. Backward: the identity (straight through)."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        return values.to(torch.bfloat16).to(values.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient


class GaussianImages(nn.Module):
    """``N`` images of ``M`` Gaussians each, in one packed tensor.

    Args:
        packed: float32 [N, M, 5 + C + opacity], rows as :func:`splat` wants them.
        labels: int64 [N].
        resolution: (height, width) in pixels at which the Cholesky factors are measured.
        mean, std: per channel, of pixel values in [0, 1]; the normalization networks expect.
        render_config: switches of the operator.
        opacity: whether a row ends in an opacity.
        space: what the Gaussians add up to. ``unit``: pixel values in [0, 1], so that where no
            Gaussian is, the image is black. ``normalized``: values after normalization, so that
            there it has the data set's mean color.
        store_bf16: render from values rounded to bf16, as they are stored (paper, section 3.2);
            the gradient goes straight through to the float32 masters.
    """

    def __init__(
        self,
        packed: Tensor,
        labels: Tensor,
        *,
        resolution: tuple[int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        render_config: RenderConfig | None = None,
        opacity: bool = True,
        space: Space = "unit",
        store_bf16: bool = True,
    ) -> None:
        super().__init__()
        channels = packed.shape[-1] - GEOMETRY - opacity
        if packed.dim() != 3 or len(labels) != len(packed) or len(mean) != channels:
            raise ValueError(
                f"packed {list(packed.shape)}, labels {list(labels.shape)} and {len(mean)} channel "
                f"means do not fit: expected [N, M, 5 + C + opacity], [N] and C values."
            )
        self.packed = nn.Parameter(packed.to(torch.float32))
        self.register_buffer("labels", labels.to(torch.int64))
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        self.resolution = tuple(resolution)
        self.render_config = render_config or RenderConfig()
        self._switches = self.render_config.model_dump()  # once, not at every call
        self.opacity, self.space, self.store_bf16 = opacity, space, store_bf16

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def points(self) -> int:
        """Gaussians per image."""
        return self.packed.shape[1]

    @property
    def channels(self) -> int:
        return self.packed.shape[2] - GEOMETRY - self.opacity

    @property
    def means(self) -> Tensor:
        """Positions [N, M, 2] in [-1, 1], x right and y down; a view."""
        return self.packed[..., :2]

    @property
    def cholesky(self) -> Tensor:
        """Factors [N, M, 3]: l11, l21, l22 in pixels; a view."""
        return self.packed[..., 2:GEOMETRY]

    @property
    def colors(self) -> Tensor:
        """Colors [N, M, C], any number; a view."""
        return self.packed[..., GEOMETRY : GEOMETRY + self.channels]

    @property
    def opacities(self) -> Tensor | None:
        """Opacities [N, M], any number, a view; None where rows have none."""
        return self.packed[..., -1] if self.opacity else None

    def forward(
        self, index: Tensor | None = None, resolution: tuple[int, int] | None = None
    ) -> Tensor:
        """:meth:`render`."""
        return self.render(index, resolution)

    def render(
        self, index: Tensor | None = None, resolution: tuple[int, int] | None = None
    ) -> Tensor:
        """Normalized images [n, C, height, width] at any resolution (default: the native one)."""
        return self._normalized(self.splat(index, resolution))

    def render_unit(
        self, index: Tensor | None = None, resolution: tuple[int, int] | None = None
    ) -> Tensor:
        """Pixel values, [0, 1] up to overshoot, for looking at: [n, C, height, width].

        Not of whitened data, whose pixels are ``data.unit(gaussians.render())``.
        """
        canvas = self.splat(index, resolution)
        return canvas if self.space == "unit" else canvas * self.std + self.mean

    def splat(
        self, index: Tensor | None = None, resolution: tuple[int, int] | None = None
    ) -> Tensor:
        """The bare sum of Gaussians, in this parameterization's own space."""
        return self._splat(self.packed, resolution or self.resolution, index)

    def splat_packed(self, packed: Tensor) -> Tensor:
        """The bare sum of other numbers than this object's own, in its place: [n, C, H, W]."""
        return self._splat(packed, self.resolution)

    def canvas(self, images: Tensor) -> Tensor:
        """Normalized images [n, C, H, W] in the space that the Gaussians add up in."""
        return images if self.space == "normalized" else images * self.std + self.mean

    @property
    def canvas_std(self) -> Tensor:
        """Pixel values per unit of that space, by channel [C, 1, 1]."""
        return self.std if self.space == "normalized" else torch.ones_like(self.std)

    def _normalized(self, canvas: Tensor) -> Tensor:
        return canvas if self.space == "normalized" else (canvas - self.mean) / self.std

    def _splat(
        self, packed: Tensor, resolution: tuple[int, int], index: Tensor | None = None
    ) -> Tensor:
        if self.store_bf16:
            packed = RoundToBf16.apply(packed)
        height, width = resolution
        if (height, width) != self.resolution:
            packed = self._rescaled(packed, height, width)
        return splat(packed, height, width, opacity=self.opacity, index=index, **self._switches)

    def _rescaled(self, packed: Tensor, height: int, width: int) -> Tensor:
        """Cholesky rows scale with their axis: l11 with the width, l21 and l22 with the height."""
        scale = torch.ones(packed.shape[-1], device=packed.device)
        scale[2] = width / self.resolution[1]
        scale[3:GEOMETRY] = height / self.resolution[0]
        return packed * scale

    def penalty(self) -> Tensor:
        """Boundary loss ``-mean_k(log(1 - u^2) + log(1 - v^2))`` (paper, eq. 9), at least 0."""
        inside = self.means.clamp(-MAX_POSITION, MAX_POSITION)
        return -torch.log1p(-inside.square()).sum(-1).mean()

    @torch.no_grad()
    def scale_step_(self, before: Mapping[str, Tensor], ratio: float) -> None:
        """Make the last step ``ratio`` times as long in the Cholesky factors.

        Adam moves every number alike, and these are the ones measured in pixels.
        """
        start = before["packed"][..., 2:GEOMETRY]
        self.cholesky.copy_(start + ratio * (self.cholesky - start))

    @torch.no_grad()
    def constrain_(self) -> None:
        """Clip the positions into the image, so that no Gaussian escapes (paper, section 3.4)."""
        self.means.clamp_(-MAX_POSITION, MAX_POSITION)
