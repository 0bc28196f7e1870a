"""A few bits per number: Gaussians on grids, entropy-coded.

    codec = Codec.fit(gaussians.packed, CodecConfig(), channels=1)
    rounded = codec.round_packed(packed)        # in training: values as stored, straight through
    content = encode(codec.quantize(packed), codec)
    ints, codec = decode(content)               # exactly the integers, each image's in Morton order
    packed = codec.dequantize(ints)

Every column has a uniform grid: the means as they are, the Cholesky factors as ``asinh(l / 2 px)``,
which rounds small Gaussians finely, RGB colors as brightness and two differences, in which channels
have little in common. Two things are free and are not paid for: the order of an image's Gaussians
(they are sorted along a Morton curve, and the gaps are coded, which saves close to ``log2(M!)``
bits per image) and the signs of a Cholesky factor's columns (made positive). Equal integers give
equal bytes, whatever the order of an image's Gaussians.
"""

import math
import struct
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gsdd_lib.config import CodecConfig
from gsdd_lib.parameterizations.base import StraightThrough
from gsdd_lib.parameterizations.entropy import DamagedCodeError, Decoder, Encoder
from gsdd_lib.parameterizations.morton import coordinates_at, places_along
from gsdd_lib.splatting.splat import GEOMETRY

VERSION = 1
HEADER = struct.Struct("<BBBIH")  # version, channels, numbers per Gaussian, images, points
MAX_BITS, MAX_POSITION_BITS = 8, 9
MAX_PER_BYTE = 512  # integers that a byte may stand for: bounds the memory that a file can ask for
COMPANDING = 2.0  # pixels; Cholesky factors above are rounded in proportion to their size
MAX_COMPANDED = 80.0  # asinh of a Cholesky factor that is still finite
MANTISSA = 2  # bits of a gap, after its first, that the histogram distinguishes


class Codec(nn.Module):
    """A grid ``offset + step * k``, ``0 <= k < 2^bits``, for each column of packed Gaussians.

    Args:
        bits: per column, means | companded Cholesky factor | turned colors | opacity.
        offset, step: float32 [D], of each column; ``step`` is positive.
        channels: colors of a Gaussian.
    """

    def __init__(self, bits: Sequence[int], offset: Tensor, step: Tensor, *, channels: int) -> None:
        super().__init__()
        self.bits, self.channels = tuple(bits), channels
        fits = len(bits) == len(offset) == len(step) and bits[0] == bits[1] <= MAX_POSITION_BITS
        if not fits or min(bits) < 1 or max(bits[2:]) > MAX_BITS:
            limits = f"equal ones to {MAX_POSITION_BITS} for coordinates, to {MAX_BITS} for others"
            raise ValueError(f"grids need an offset, a step and bits per column: {limits}")
        self.register_buffer("offset", offset.to(torch.float32))
        self.register_buffer("step", step.to(torch.float32))
        self.register_buffer("top", 2.0 ** torch.tensor(self.bits, device=step.device) - 1)
        ends = torch.stack([self.offset, self.offset + self.step * self.top])
        finite = ends.isfinite().all() and ends[:, 2:GEOMETRY].abs().max() < MAX_COMPANDED
        if not finite or not (self.step > 0).all():
            raise ValueError("grids need positive steps and finite values")

    @classmethod
    @torch.no_grad()
    def fit(cls, packed: Tensor, config: CodecConfig, *, channels: int) -> "Codec":
        """Grids for Gaussians [N, M, D]: between two quantiles of each column.

        Positions have the centers of ``2^bits`` equal cells of [-1, 1].
        """
        columns = _to_grids(packed, channels).flatten(0, 1)
        bits = [config.means_bits] * 2 + [config.cholesky_bits] * 3 + [config.color_bits]
        bits += [config.chroma_bits if channels == 3 else config.color_bits] * (channels - 1)
        bits += [config.opacity_bits] * (columns.shape[1] - len(bits))
        ordered = columns.sort(0).values
        last = len(ordered) - 1
        low = ordered[round(config.tail * last)]
        high = ordered[round((1 - config.tail) * last)]
        cells = 2.0 ** torch.tensor(bits, device=packed.device)
        step = ((high - low) / (cells - 1)).clamp(min=1e-6)
        step[:2] = 2 / cells[:2]
        low[:2] = step[:2] / 2 - 1
        return cls(bits, low, step, channels=channels)

    def quantize(self, packed: Tensor) -> Tensor:
        """Nearest grid points [..., D], int64."""
        return self._nearest(_to_grids(packed, self.channels)).long()

    def dequantize(self, ints: Tensor) -> Tensor:
        """The values of grid points, float32."""
        return _from_grids(self.offset + self.step * ints, self.channels)

    def round_packed(self, packed: Tensor) -> Tensor:
        """Values as stored; the gradient goes straight through to ``packed``."""
        stored = self.dequantize(self._nearest(_to_grids(packed.detach(), self.channels)))
        return StraightThrough.apply(packed, stored * _signs(packed.detach()))

    @torch.no_grad()
    def clip_(self, packed: Tensor) -> None:
        """Bring values back into their grids, in place, so that none is lost outside."""
        values = _to_grids(packed, self.channels)
        inside = values.clamp(self.offset, self.offset + self.step * self.top)
        clipped = _from_grids(inside, self.channels) * _signs(packed)
        outside = (inside != values).any(-1, keepdim=True)
        packed.copy_(torch.where(outside, clipped, packed))

    def _nearest(self, values: Tensor) -> Tensor:
        return ((values - self.offset) / self.step).round().clamp(self.top.new_zeros(()), self.top)


def rate(packed: Tensor, codec: Codec) -> Tensor:
    """About how many bits each image takes, [N], differentiable: a term of an objective.

    Each column but the positions has a Laplace distribution, of the median and the mean deviation
    of its values, over the grid's cells. Positions take their bits less ``log2(M!)``.
    """
    values = ((_to_grids(packed, codec.channels) - codec.offset) / codec.step)[..., 2:]
    center = values.detach().flatten(0, 1).median(0).values
    far = (values - center).abs()
    scale = far.flatten(0, 1).mean(0).clamp(min=0.1)
    half = 0.5 / scale
    tail = torch.exp(-far.clamp(min=0.5) / scale) * torch.sinh(half)
    middle = 1 - torch.exp(-half) * torch.cosh(far.clamp(max=0.5) / scale)
    others = -torch.log2(torch.where(far >= 0.5, tail, middle).clamp(min=2**-24)).sum((1, 2))
    points = packed.shape[1]
    return others + points * sum(codec.bits[:2]) - math.lgamma(points + 1) / math.log(2)


def encode(ints: Tensor, codec: Codec) -> bytes:
    """Integers of :meth:`Codec.quantize`, [N, M, D], with their grids, as bytes."""
    rows = ints.cpu().numpy()
    if rows.size and (rows.min() < 0 or (rows >> np.array(codec.bits)).any()):
        raise ValueError(f"integers must be below 2^{list(codec.bits)}, column by column")
    rows = _sorted(rows, codec.bits[0])
    count, points, width = rows.shape
    encoder = Encoder()
    if rows.size:
        gaps = np.diff(places_along(rows, codec.bits[0]), axis=1, prepend=0)
        widths = (np.frexp(gaps)[1] - 1 - MANTISSA).clip(0)
        encoder.symbols((widths << MANTISSA) + (gaps >> widths))
        encoder.bits(gaps & ((1 << widths) - 1), widths)
        for column in range(2, width):
            encoder.symbols(rows[..., column])
    grids = torch.stack([codec.offset, codec.step]).cpu().numpy().astype("<f4").tobytes()
    head = HEADER.pack(VERSION, codec.channels, width, count, points) + bytes(codec.bits) + grids
    return padded(head + encoder.finish(), rows.size)


def decode(content: bytes) -> tuple[Tensor, Codec]:
    """What :func:`encode` was given, the Gaussians of an image in Morton order.

    Raises:
        DamagedCodeError: for bytes that :func:`encode` did not write; nothing else is raised.
    """
    codec, shape, start = _read_head(content)
    decoder, rows = Decoder(content[start:]), np.empty(shape, np.int64)
    if rows.size:
        rows[..., :2] = _read_positions(decoder, shape, codec.bits[0])
        for column in range(2, shape[2]):
            rows[..., column] = decoder.symbols(rows[..., 0].size).reshape(shape[:2])
        if (rows >> np.array(codec.bits)).any():
            raise DamagedCodeError("a number is out of range")
    decoder.finish()
    return torch.from_numpy(rows), codec


def _read_head(content: bytes) -> tuple[Codec, tuple[int, int, int], int]:
    """The grids, the shape of the integers, and where the coded part begins."""
    if len(content) < HEADER.size:
        raise DamagedCodeError("it is cut off")
    version, channels, width, count, points = HEADER.unpack_from(content)
    start = HEADER.size + 9 * width
    if version != VERSION or not 1 <= channels <= 4 or width - GEOMETRY - channels not in (0, 1):
        raise DamagedCodeError("its description is damaged, or of another version")
    if start > len(content) or count * points * width >= (len(content) + 1) * MAX_PER_BYTE:
        raise DamagedCodeError("it is cut off")
    bits = content[HEADER.size : HEADER.size + width]
    numbers = np.frombuffer(content[start - 8 * width : start], "<f4").astype(np.float32)
    offset, step = torch.from_numpy(numbers).view(2, width)
    try:
        codec = Codec(bits, offset, step, channels=channels)
    except ValueError:
        raise DamagedCodeError("its grids are damaged") from None
    return codec, (count, points, width), start


def _read_positions(decoder: Decoder, shape: tuple[int, int, int], bits: int) -> np.ndarray:
    symbols = decoder.symbols(shape[0] * shape[1])
    if (symbols >> MANTISSA).max() >= 2 * bits - 1:
        raise DamagedCodeError("a position is out of range")
    widths = ((symbols >> MANTISSA) - 1).clip(0)
    gaps = ((symbols - (widths << MANTISSA)) << widths) + decoder.bits(widths)
    curve = gaps.reshape(shape[:2]).cumsum(1)
    if (curve[:, -1] >> 2 * bits).any():
        raise DamagedCodeError("a position is out of range")
    return coordinates_at(curve, bits)


def _sorted(rows: np.ndarray, bits: int) -> np.ndarray:
    """Each image's Gaussians along the Morton curve, equal places by their other numbers."""
    others = [rows[..., column] for column in reversed(range(2, rows.shape[2]))]
    order = np.lexsort([*others, places_along(rows, bits)], axis=-1)
    return np.take_along_axis(rows, order[..., None], axis=1)


def padded(content: bytes, integers: int) -> bytes:
    """At least a byte per MAX_PER_BYTE integers, where they are nearly all equal."""
    return content + b"\0\0" * max(0, (integers // MAX_PER_BYTE - len(content) + 1) // 2)


def _signs(packed: Tensor) -> Tensor:
    """1 or -1 per number, so that both diagonal elements of the Cholesky factor get positive."""
    signs = torch.ones_like(packed)
    signs[..., 2:4] = torch.where(packed[..., 2:3] < 0, -1.0, 1.0)
    signs[..., 4] = torch.where(packed[..., 4] < 0, -1.0, 1.0)
    return signs


def _to_grids(packed: Tensor, channels: int) -> Tensor:
    """Packed rows [..., D] in the space in which the grids are uniform."""
    upright = packed * _signs(packed.detach())
    sizes = torch.asinh(upright[..., 2:GEOMETRY] / COMPANDING)
    return _assembled(upright, sizes, _basis(packed, channels).T)


def _from_grids(values: Tensor, channels: int) -> Tensor:
    """Undo :func:`_to_grids`, but for the signs."""
    sizes = COMPANDING * torch.sinh(values[..., 2:GEOMETRY])
    return _assembled(values, sizes, _basis(values, channels))


def _assembled(rows: Tensor, sizes: Tensor, turn: Tensor) -> Tensor:
    means, _, colors, rest = rows.split(
        [2, 3, len(turn), rows.shape[-1] - GEOMETRY - len(turn)], -1
    )
    return torch.cat([means, sizes, colors @ turn, rest], -1)


def _basis(like: Tensor, channels: int) -> Tensor:
    """Orthonormal rows: brightness and two differences of RGB; other channels stay."""
    if channels != 3:
        return torch.eye(channels, dtype=like.dtype, device=like.device)
    rows = torch.tensor([[1.0, 1, 1], [1, 0, -1], [-1, 2, -1]], device=like.device)
    return torch.nn.functional.normalize(rows).to(like.dtype)
