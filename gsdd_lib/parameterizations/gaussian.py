"""Images as sums of 2D Gaussians (paper, section 3.1): the parameterization of this project."""

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from gsdd_lib.config import RenderConfig
from gsdd_lib.parameterizations.base import Parameterization, Size, as_stored
from gsdd_lib.parameterizations.codec import Codec, encode
from gsdd_lib.parameterizations.initialization import MAX_POSITION, place, place_as_published
from gsdd_lib.splatting.splat import GEOMETRY, splat

Space = Literal["unit", "normalized"]


class GaussianImages(Parameterization):
    """``N`` images of ``M`` Gaussians each, in one packed tensor.

    Args:
        packed: float32 [N, M, 5 + C + opacity], rows as :func:`splat` wants them.
        opacity: whether a row ends in an opacity.
        space: the Gaussians add up to pixel values (``unit``), as published, or, in files written
            before version 3, to ``normalized`` ones.
        store_bf16: render from values rounded to bf16, as they are stored (paper, section 3.2).
        codec: grids of a few bits per number in the place of bf16; may be set at any moment.
    """

    def __init__(
        self,
        packed: Tensor,
        labels: Tensor,
        *,
        render_config: RenderConfig | None = None,
        opacity: bool = True,
        space: Space = "unit",
        store_bf16: bool = True,
        codec: Codec | None = None,
        **more: Any,
    ) -> None:
        super().__init__(labels, **more)
        self._check(packed, "[N, M, 5 + C + opacity]")
        self.packed = nn.Parameter(packed.to(torch.float32))
        self.render_config = render_config or RenderConfig()
        self._switches = self.render_config.model_dump()  # once, not at every call
        self.opacity, self.space, self.store_bf16 = opacity, space, store_bf16
        self.codec = codec

    @classmethod
    def init_from(
        cls, images: Tensor, labels: Tensor, *, points: int, seed: int, start="detail", **more: Any
    ) -> Self:
        """``points`` Gaussians per image before any fitting, where there is ``detail``
        (:func:`place`) or as in the published code (:func:`place_as_published`)."""
        opacity = more.get("opacity", True)
        empty = images.new_zeros(len(images), points, GEOMETRY + images.shape[1] + opacity)
        made = cls(empty, labels, resolution=images.shape[2:], **more)
        canvas = images if made.space == "unit" else made.normalization.apply(images)
        placed = place if start == "detail" else place_as_published
        with torch.no_grad():
            made.packed.copy_(placed(canvas.cpu(), points, opacity=opacity, seed=seed))
        return made.to(images.device)

    # Gaussians per image, their colors, and views of the packed tensor: positions in [-1, 1], x
    # right and y down; l11, l21, l22 in pixels; colors; opacities or None.
    points = property(lambda self: self.packed.shape[1])
    channels = property(lambda self: self.packed.shape[2] - GEOMETRY - self.opacity)
    means = property(lambda self: self.packed[..., :2])
    cholesky = property(lambda self: self.packed[..., 2:GEOMETRY])
    colors = property(lambda self: self.packed[..., GEOMETRY : GEOMETRY + self.channels])
    opacities = property(lambda self: self.packed[..., -1] if self.opacity else None)

    @property
    def bits(self) -> int:
        if self.codec is not None:
            return 8 * len(encode(self.codec.quantize(self.packed.detach()), self.codec))
        return self.packed.numel() * (16 if self.store_bf16 else 32)

    def render(self, index: Tensor | None = None, resolution: Size = None) -> Tensor:
        images = self.splat(index, resolution)
        return images if self.space == "normalized" else self.normalization.apply(images)

    def pixels(self, index: Tensor | None = None, resolution: Size = None) -> Tensor:
        images = self.splat(index, resolution)
        return images if self.space == "unit" else self.normalization.invert(images)

    def splat(self, index: Tensor | None = None, resolution: Size = None) -> Tensor:
        """The bare sum of the Gaussians, in their own space: [n, C, height, width]. Cholesky rows
        scale with their axis: l11 with the width, l21 and l22 with the height."""
        packed = as_stored(self.packed, "bf16" if self.store_bf16 else "fp32")
        if self.codec is not None:
            packed = self.codec.round_packed(self.packed)
        height, width = resolution or self.resolution
        if (height, width) != self.resolution:
            scale = torch.ones(packed.shape[-1], device=packed.device)
            scale[2] = width / self.resolution[1]
            scale[3:GEOMETRY] = height / self.resolution[0]
            packed = packed * scale
        return splat(packed, height, width, opacity=self.opacity, index=index, **self._switches)

    def penalty(self) -> Tensor:
        """Boundary loss ``-mean_k(log(1 - u^2) + log(1 - v^2))`` (paper, eq. 9), at least 0."""
        inside = self.means.clamp(-MAX_POSITION, MAX_POSITION)
        return -torch.log1p(-inside.square()).sum(-1).mean()

    @torch.no_grad()
    def scale_step_(self, before: Mapping[str, Tensor], ratio: float) -> None:
        """Scale the Cholesky factors' step: Adam moves all alike, and these measure pixels."""
        start = before["packed"][..., 2:GEOMETRY]
        self.cholesky.copy_(start + ratio * (self.cholesky - start))

    @torch.no_grad()
    def constrain_(self) -> None:
        """Clip positions into the image (paper, section 3.4); with a codec, all into its grids."""
        self.means.clamp_(-MAX_POSITION, MAX_POSITION)
        if self.codec is not None:
            self.codec.clip_(self.packed)
