"""An entropy coder for integers: interleaved rANS with stored histograms, in integer arithmetic.

    encoder = Encoder()
    encoder.symbols(values)            # integers in [0, 256), coded with their own histogram
    encoder.bits(values, widths)       # integers of at most 16 bits each, stored as they are
    content = encoder.finish()
    decoder = Decoder(content)         # the same calls in the same order give the values back

A symbol of frequency ``f`` out of ``2^16`` costs ``16 - log2(f)`` bits, to within a thousandth.
Symbol ``i`` of a call belongs to lane ``i % lanes``; all lanes make a step at once, so that numpy
does the work. No floating-point number is involved, hence equal values give equal bytes on every
machine, and no package beyond numpy is needed to read a file. Any bytes whatsoever decode to
values or raise :class:`DamagedCodeError`.

Source: Duda, arXiv 1311.2540 (rANS); Giesen, arXiv 1402.3392 (interleaved lanes).
"""

import struct
from dataclasses import dataclass

import numpy as np

from gsdd_lib.core.errors import GsddError

PRECISION = 16  # frequencies of a histogram add up to 2^16
WORD = 16  # bits that a lane writes or reads at a time
LOWEST = 1 << 24  # a lane's state is at least this and below 2^40
STATE_BYTES = 5
SYMBOLS_PER_LANE = 2048  # a lane costs about 4 bytes, a step about 10 microseconds
MAX_LANES = 1024
HEADER = struct.Struct("<HH")  # lanes, bytes of all histograms


class DamagedCodeError(GsddError, ValueError):
    """The bytes are not what an encoder wrote; the message is the bare reason."""


@dataclass(frozen=True)
class Histogram:
    """Relative frequencies of the symbols ``low, low + 1, ...``, each a byte."""

    low: int
    weights: np.ndarray  # uint8 [1 to 256], not all zero

    @classmethod
    def of(cls, values: np.ndarray) -> "Histogram":
        """Counts of ``values`` relative to the largest; one that occurs gets at least 1 / 255."""
        counts = np.bincount(values.ravel(), minlength=1)
        low = int(counts.nonzero()[0][0]) if counts.any() else 0
        counts = counts[low:]
        scaled = (counts * 255 + counts.max() // 2) // max(1, counts.max())
        weights = np.maximum(scaled, counts > 0).astype(np.uint8)
        return cls(low, weights if counts.any() else np.ones(1, np.uint8))

    def intervals(self) -> tuple[np.ndarray, np.ndarray]:
        """Start and length of each symbol's share of ``[0, 2^16)``, uint64."""
        total = np.cumsum(self.weights, dtype=np.uint64)
        ends = (total << np.uint64(PRECISION)) // total[-1]
        starts = np.concatenate([np.zeros(1, np.uint64), ends[:-1]])
        return starts, ends - starts

    def to_bytes(self) -> bytes:
        return bytes([self.low, len(self.weights) - 1]) + self.weights.tobytes()


class Encoder:
    """Collects values, then writes them all at once."""

    def __init__(self) -> None:
        self._histograms = b""
        self._calls: list[tuple[np.ndarray, np.ndarray]] = []  # starts and frequencies

    def symbols(self, values: np.ndarray) -> None:
        """Append integers in [0, 256), which their own histogram codes and is stored with."""
        histogram = Histogram.of(values)
        starts, sizes = histogram.intervals()
        self._histograms += histogram.to_bytes()
        at = values.ravel() - histogram.low
        self._calls.append((starts[at], sizes[at]))

    def bits(self, values: np.ndarray, widths: np.ndarray) -> None:
        """Append integers as ``widths`` bits each, 0 to 16."""
        shift = (PRECISION - widths.ravel()).astype(np.uint64)
        self._calls.append((values.ravel().astype(np.uint64) << shift, np.uint64(1) << shift))

    def finish(self) -> bytes:
        """All values as bytes: header, histograms, the lanes' last states, their words."""
        total = sum(len(starts) for starts, _ in self._calls)
        lanes = min(MAX_LANES, 1 + total // SYMBOLS_PER_LANE)
        state, words = np.full(lanes, LOWEST, np.uint64), []
        for starts, sizes in reversed(self._calls):
            for first in reversed(range(0, len(starts), lanes)):
                start, size = starts[first : first + lanes], sizes[first : first + lanes]
                x = state[: len(start)]
                full = x >= size << np.uint64(24)
                words.append((x[full] & np.uint64(0xFFFF)).astype("<u2"))
                x[full] >>= np.uint64(WORD)
                quotient, rest = np.divmod(x, size)
                x[:] = (quotient << np.uint64(PRECISION)) + rest + start
        head = HEADER.pack(lanes, len(self._histograms)) + self._histograms
        states = state.astype("<u8").view(np.uint8).reshape(lanes, 8)[:, :STATE_BYTES].tobytes()
        return head + states + b"".join(part.tobytes() for part in reversed(words))


class Decoder:
    """Gives back, call by call, what an :class:`Encoder` was given."""

    def __init__(self, content: bytes) -> None:
        if len(content) < HEADER.size:
            raise DamagedCodeError("it is cut off")
        lanes, size = HEADER.unpack_from(content)
        start = HEADER.size + size
        end = start + lanes * STATE_BYTES
        if not 1 <= lanes <= MAX_LANES or end > len(content) or (len(content) - end) % 2:
            raise DamagedCodeError("it is cut off or altered")
        self._histograms = content[HEADER.size : start]
        state = np.zeros((lanes, 8), np.uint8)
        state[:, :STATE_BYTES] = np.frombuffer(content[start:end], np.uint8).reshape(lanes, -1)
        self._state = state.reshape(-1).view("<u8").astype(np.uint64)
        self._words = np.frombuffer(content[end:], "<u2").astype(np.uint64)
        self._read = 0

    def symbols(self, count: int) -> np.ndarray:
        """The next ``count`` symbols, int64."""
        histogram = self._next_histogram()
        starts, sizes = histogram.intervals()
        symbol_at = np.repeat(np.arange(len(sizes)), sizes.astype(np.int64))
        values = np.empty(count, np.int64)
        for part, x, slot in self._steps(count):
            symbol = symbol_at[slot]
            values[part] = symbol
            self._advance(x, slot, starts[symbol], sizes[symbol])
        return values + histogram.low

    def bits(self, widths: np.ndarray) -> np.ndarray:
        """The next integers, of ``widths`` bits each, int64."""
        shifts = (PRECISION - widths.ravel()).astype(np.uint64)
        values = np.empty(len(shifts), np.uint64)
        for part, x, slot in self._steps(len(shifts)):
            shift = shifts[part]
            values[part] = slot >> shift
            self._advance(x, slot, values[part] << shift, np.uint64(1) << shift)
        return values.astype(np.int64)

    def finish(self) -> None:
        """Raises :class:`DamagedCodeError` unless all was read but zeros, and is as written."""
        rest = self._words[self._read :].any() or len(self._histograms)
        if rest or (self._state != LOWEST).any():
            raise DamagedCodeError("it is altered")

    def _steps(self, count: int):
        lanes = len(self._state)
        for first in range(0, count, lanes):
            x = self._state[: min(lanes, count - first)]
            yield slice(first, first + len(x)), x, x & np.uint64(0xFFFF)

    def _advance(self, x: np.ndarray, slot: np.ndarray, start: np.ndarray, size: np.ndarray):
        x[:] = size * (x >> np.uint64(PRECISION)) + slot - start
        (low,) = (x < LOWEST).nonzero()
        words = self._words[self._read : self._read + len(low)]
        if len(words) < len(low):
            raise DamagedCodeError("it is cut off or altered")
        self._read += len(low)
        x[low] = x[low] << np.uint64(WORD) | words

    def _next_histogram(self) -> Histogram:
        content = self._histograms
        size = 3 + content[1] if len(content) > 1 else 0
        weights = np.frombuffer(content[2:size], np.uint8)
        self._histograms = content[size:]
        if not 0 < size <= len(content) or content[0] + len(weights) > 256 or not weights.any():
            raise DamagedCodeError("a histogram is damaged")
        return Histogram(content[0], weights)
