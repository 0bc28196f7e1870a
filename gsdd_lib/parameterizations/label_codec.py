"""Learned labels in a few bits: a grid with one step for all, entropy-coded as Gaussians are."""

import struct

import numpy as np
import torch
from torch import Tensor

from gsdd_lib.parameterizations.base import StraightThrough
from gsdd_lib.parameterizations.codec import MAX_BITS, MAX_PER_BYTE, VERSION, padded, read_header
from gsdd_lib.parameterizations.entropy import DamagedCodeError, Decoder, Encoder

HEADER = struct.Struct("<BBIIf")  # version, bits, images, classes, step


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
    head = HEADER.pack(VERSION, codec.bits, *levels.shape, codec.step)
    return padded(head + encoder.finish(), levels.numel())


def decode_labels(content: bytes) -> tuple[Tensor, LabelCodec]:
    """What :func:`encode_labels` was given. Raises :class:`DamagedCodeError` as its sister does."""
    bits, count, classes, step = read_header(HEADER, content)
    if count * classes >= (len(content) + 1) * MAX_PER_BYTE:
        raise DamagedCodeError("it is cut off")
    try:
        codec = LabelCodec(step, bits)
    except ValueError:
        raise DamagedCodeError("its grid is damaged") from None
    decoder = Decoder(content[HEADER.size :])
    levels = decoder.symbols(count * classes)
    decoder.finish()
    if (levels >> bits).any():
        raise DamagedCodeError("a label is out of range")
    return torch.from_numpy(levels).view(count, classes), codec
