"""A few bits per number: Gaussians on grids, entropy-coded; their order and column signs are free.
Sorted along a Morton curve, with the gaps coded, they save close to ``log2(M!)`` bits per image."""

import struct
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gsdd_lib.config import CodecConfig
from gsdd_lib.parameterizations.base import StraightThrough
from gsdd_lib.parameterizations.entropy import DamagedCodeError, Decoder, Encoder
from gsdd_lib.splatting.splat import GEOMETRY

VERSION = 1
HEADER = struct.Struct("<BBBIH")  # version, channels, numbers per Gaussian, images, points
LABELS = struct.Struct("<BBIIf")  # version, bits, images, classes, step
MAX_BITS, MAX_POSITION_BITS = 8, 9
MAX_PER_BYTE = 512  # integers that a byte may stand for: bounds the memory that a file can ask for
COMPANDING = 2.0  # pixels; Cholesky factors above are rounded in proportion to their size
MAX_COMPANDED = 80.0  # asinh of a Cholesky factor that is still finite
MANTISSA = 2  # bits of a gap, after its first, that the histogram distinguishes


class Codec(nn.Module):
    """A grid ``offset + step * k``, ``0 <= k < 2^bits``, per column of packed Gaussians [..., D].

    Cholesky factors as ``asinh(l / 2 px)``, which rounds small Gaussians finely, RGB as brightness
    and two differences, in which channels have little in common.
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
        """Grids between two quantiles of each column of [N, M, D]; positions get equal cells."""
        columns = to_grids(packed, channels).flatten(0, 1)
        bits = [config.means_bits] * 2 + [config.cholesky_bits] * 3 + [config.color_bits]
        bits += [config.chroma_bits if channels == 3 else config.color_bits] * (channels - 1)
        bits += [config.opacity_bits] * (columns.shape[1] - len(bits))
        ordered, last = columns.sort(0).values, len(columns) - 1
        low, high = (ordered[round(share * last)] for share in (config.tail, 1 - config.tail))
        cells = 2.0 ** torch.tensor(bits, device=packed.device)
        step = ((high - low) / (cells - 1)).clamp(min=1e-6)
        step[:2] = 2 / cells[:2]
        low[:2] = step[:2] / 2 - 1
        return cls(bits, low, step, channels=channels)

    def quantize(self, packed: Tensor) -> Tensor:
        """Nearest grid points [..., D], int64."""
        return self._nearest(packed).long()

    def _nearest(self, packed: Tensor) -> Tensor:
        places = (to_grids(packed, self.channels) - self.offset) / self.step
        return places.round().clamp(self.top.new_zeros(()), self.top)

    def dequantize(self, ints: Tensor) -> Tensor:
        return _from_grids(self.offset + self.step * ints, self.channels)

    def round_packed(self, packed: Tensor) -> Tensor:
        """Values as stored; the gradient goes straight through to ``packed``."""
        exact = packed.detach()
        return StraightThrough.apply(packed, self.dequantize(self._nearest(exact)) * _signs(exact))

    @torch.no_grad()
    def clip_(self, packed: Tensor) -> None:
        """Bring values back into their grids, in place, so that none is lost outside."""
        values = to_grids(packed, self.channels)
        inside = values.clamp(self.offset, self.offset + self.step * self.top)
        clipped = _from_grids(inside, self.channels) * _signs(packed)
        outside = (inside != values).any(-1, keepdim=True)
        packed.copy_(torch.where(outside, clipped, packed))


def encode(ints: Tensor, codec: Codec) -> bytes:
    """Integers of :meth:`Codec.quantize`, [N, M, D], with their grids, as bytes."""
    rows = ints.cpu().numpy()
    if rows.size and (rows.min() < 0 or (rows >> np.array(codec.bits)).any()):
        raise ValueError(f"integers must be below 2^{list(codec.bits)}, column by column")
    places = places_along(rows, codec.bits[0])  # an image's Gaussians, sorted by place and the rest
    order = np.lexsort([*np.moveaxis(rows[..., :1:-1], -1, 0), places], axis=-1)
    rows = np.take_along_axis(rows, order[..., None], axis=1)
    encoder = Encoder()
    if rows.size:
        gaps = np.diff(np.take_along_axis(places, order, axis=1), axis=1, prepend=0)
        widths = (np.frexp(gaps)[1] - 1 - MANTISSA).clip(0)
        encoder.symbols((widths << MANTISSA) + (gaps >> widths))
        encoder.bits(gaps & ((1 << widths) - 1), widths)
        for column in range(2, rows.shape[2]):
            encoder.symbols(rows[..., column])
    grids = torch.stack([codec.offset, codec.step]).cpu().numpy().astype("<f4").tobytes()
    count, points, width = rows.shape
    head = HEADER.pack(VERSION, codec.channels, width, count, points) + bytes(codec.bits) + grids
    return _padded(head + encoder.finish(), rows.size)


def decode(content: bytes) -> tuple[Tensor, Codec]:
    """What :func:`encode` was given, the Gaussians of an image in Morton order. Raises
    DamagedCodeError, and nothing else, for bytes that :func:`encode` did not write."""
    channels, width, count, points = _read_header(HEADER, content)
    start = HEADER.size + 9 * width
    if not 1 <= channels <= 4 or width - GEOMETRY - channels not in (0, 1):
        raise DamagedCodeError("its description is damaged")
    if start > len(content) or count * points * width >= (len(content) + 1) * MAX_PER_BYTE:
        raise DamagedCodeError("it is cut off")
    bits = content[HEADER.size : HEADER.size + width]
    numbers = np.frombuffer(content[start - 8 * width : start], "<f4").astype(np.float32)
    try:
        codec = Codec(bits, *torch.from_numpy(numbers).view(2, width), channels=channels)
    except ValueError:
        raise DamagedCodeError("its grids are damaged") from None
    decoder, rows = Decoder(content[start:]), np.empty((count, points, width), np.int64)
    if rows.size:
        symbols = decoder.symbols(count * points)
        if (symbols >> MANTISSA).max() >= 2 * bits[0] - 1:
            raise DamagedCodeError("a position is out of range")
        widths = ((symbols >> MANTISSA) - 1).clip(0)
        gaps = ((symbols - (widths << MANTISSA)) << widths) + decoder.bits(widths)
        places = gaps.reshape(count, points).cumsum(1)
        if (places[:, -1] >> 2 * bits[0]).any():
            raise DamagedCodeError("a position is out of range")
        rows[..., :2] = coordinates_at(places, bits[0])
        for column in range(2, width):
            rows[..., column] = decoder.symbols(count * points).reshape(count, points)
        if (rows >> np.array(codec.bits)).any():
            raise DamagedCodeError("a number is out of range")
    decoder.finish()
    return torch.from_numpy(rows), codec


class LabelCodec:
    """Learned labels on a grid of ``2^bits`` levels, a ``step`` apart, below the largest logit. The
    softmax of logits does not change when a number is added to all."""

    def __init__(self, step: float, bits: int = 4) -> None:
        if not 1 <= bits <= MAX_BITS or not 0 < step < float("inf"):
            raise ValueError(f"labels need 1 to {MAX_BITS} bits and a positive step")
        self.step, self.bits = float(np.float32(step)), bits

    @classmethod
    @torch.no_grad()
    def fit(cls, logits: Tensor, bits: int = 4) -> "LabelCodec":
        """The step whose stored labels differ least from those of ``logits`` [N, K] (KL)."""
        widest = (logits.amax(1, keepdim=True) - logits).max().clamp(min=1e-3).item()
        codecs = [cls(widest * share / (2**bits - 1), bits) for share in np.linspace(0.05, 1, 39)]
        exact, stored = logits.log_softmax(1), (each.round(logits) for each in codecs)
        gaps = (exact - one.log_softmax(1) for one in stored)
        return codecs[int(np.argmin([(exact.exp() * gap).sum(1).mean().item() for gap in gaps]))]

    def quantize(self, logits: Tensor) -> Tensor:
        """Levels below the largest logit of each row [N, K], int64."""
        below = logits.amax(1, keepdim=True) - logits
        return (below / self.step).round().clamp(max=2**self.bits - 1).long()

    def dequantize(self, levels: Tensor) -> Tensor:
        return -self.step * levels.to(torch.float32)

    def round(self, logits: Tensor) -> Tensor:
        """Logits as stored; the gradient goes straight through to ``logits``."""
        return StraightThrough.apply(logits, self.dequantize(self.quantize(logits.detach())))


def encode_labels(levels: Tensor, codec: LabelCodec) -> bytes:
    """Integers of :meth:`LabelCodec.quantize`, [N, K], with their step, as bytes."""
    encoder = Encoder()
    encoder.symbols(levels.cpu().numpy())
    head = LABELS.pack(VERSION, codec.bits, *levels.shape, codec.step)
    return _padded(head + encoder.finish(), levels.numel())


def decode_labels(content: bytes) -> tuple[Tensor, LabelCodec]:
    """What :func:`encode_labels` was given. Raises :class:`DamagedCodeError` as its sister does."""
    bits, count, classes, step = _read_header(LABELS, content)
    if count * classes >= (len(content) + 1) * MAX_PER_BYTE:
        raise DamagedCodeError("it is cut off")
    try:
        codec = LabelCodec(step, bits)
    except ValueError:
        raise DamagedCodeError("its grid is damaged") from None
    decoder = Decoder(content[LABELS.size :])
    levels = decoder.symbols(count * classes)
    decoder.finish()
    if (levels >> bits).any():
        raise DamagedCodeError("a label is out of range")
    return torch.from_numpy(levels).view(count, classes), codec


def _read_header(header: struct.Struct, content: bytes) -> list:
    """The numbers that follow the version."""
    if len(content) < header.size:
        raise DamagedCodeError("it is cut off")
    version, *numbers = header.unpack_from(content)
    if version != VERSION:
        raise DamagedCodeError("its description is damaged, or of another version")
    return numbers


def _padded(content: bytes, integers: int) -> bytes:
    """At least a byte per MAX_PER_BYTE integers, where they are nearly all equal."""
    return content + b"\0\0" * max(0, (integers // MAX_PER_BYTE - len(content) + 1) // 2)


def places_along(rows: np.ndarray, bits: int) -> np.ndarray:
    """Places [...] of coordinates ``rows[..., :2]`` along the curve that alternates their bits."""
    places = np.zeros(rows.shape[:-1], np.int64)
    for bit in range(2 * bits):
        places |= (rows[..., bit % 2] >> bit // 2 & 1) << bit
    return places


def coordinates_at(places: np.ndarray, bits: int) -> np.ndarray:
    """Coordinates [..., 2] of places [...] along the curve; undoes :func:`places_along`."""
    coordinates = np.zeros((*places.shape, 2), np.int64)
    for bit in range(2 * bits):
        coordinates[..., bit % 2] |= (places >> bit & 1) << bit // 2
    return coordinates


def _signs(packed: Tensor) -> Tensor:
    signs = torch.ones_like(packed)
    signs[..., 2:4] = torch.where(packed[..., 2:3] < 0, -1.0, 1.0)
    signs[..., 4] = torch.where(packed[..., 4] < 0, -1.0, 1.0)
    return signs


def to_grids(packed: Tensor, channels: int) -> Tensor:
    """Packed Gaussians [..., D] in the values that grids round, as :class:`Codec` says."""
    values = packed * _signs(packed)
    means, factor, colors, rest = values.tensor_split([2, GEOMETRY, GEOMETRY + channels], -1)
    turned = colors @ _basis(packed, channels).T
    return torch.cat([means, torch.asinh(factor / COMPANDING), turned, rest], -1)


def _from_grids(values: Tensor, channels: int) -> Tensor:
    means, factor, colors, rest = values.tensor_split([2, GEOMETRY, GEOMETRY + channels], -1)
    turned = colors @ _basis(values, channels)
    return torch.cat([means, COMPANDING * torch.sinh(factor), turned, rest], -1)


def _basis(like: Tensor, channels: int) -> Tensor:
    if channels != 3:
        return torch.eye(channels, dtype=like.dtype, device=like.device)
    rows = torch.tensor([[1.0, 1, 1], [1, 0, -1], [-1, 2, -1]], device=like.device)
    return torch.nn.functional.normalize(rows).to(like.dtype)
