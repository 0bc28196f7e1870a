"""An entropy coder for integers: interleaved rANS with stored histograms, in integer arithmetic.
Equal values give equal bytes on every machine; any bytes decode to values or are refused. Source:
Duda, arXiv 1311.2540 (rANS); Giesen, arXiv 1402.3392 (interleaved lanes)."""

import struct
from collections.abc import Callable
from typing import NamedTuple

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


class Histogram(NamedTuple):
    """Relative frequencies of the symbols ``low, low + 1, ...``, each a byte."""

    low: int
    weights: np.ndarray  # uint8 [1 to 256], not all zero

    @classmethod
    def of(cls, values: np.ndarray) -> "Histogram":
        """Counts relative to the largest; of a value that occurs at least 1 / 255."""
        if values.size == 0:
            return cls(0, np.ones(1, np.uint8))
        low, counts = int(values.min()), np.bincount(values.ravel())[values.min() :]
        scaled = (counts * 255 + counts.max() // 2) // counts.max()
        return cls(low, np.maximum(scaled, counts > 0).astype(np.uint8))

    def intervals(self) -> tuple[np.ndarray, np.ndarray]:
        """Start and length of each symbol's share of ``[0, 2^16)``, uint64."""
        total = np.cumsum(self.weights, dtype=np.uint64)
        ends = (total << np.uint64(PRECISION)) // total[-1]
        lengths = np.diff(ends, prepend=np.uint64(0))
        return ends - lengths, lengths


class Encoder:
    """Collects values, then writes all at once: of a call, value ``i`` by lane ``i % lanes``."""

    def __init__(self) -> None:
        self._histograms = b""
        self._calls: list[tuple[np.ndarray, np.ndarray]] = []  # starts and frequencies

    def symbols(self, values: np.ndarray) -> None:
        """Append integers in [0, 256), which their own histogram codes and is stored with."""
        histogram = Histogram.of(values)
        starts, sizes = histogram.intervals()
        head = bytes([histogram.low, len(histogram.weights) - 1])
        self._histograms += head + histogram.weights.tobytes()
        at = values.ravel() - histogram.low
        self._calls.append((starts[at], sizes[at]))

    def bits(self, values: np.ndarray, widths: np.ndarray) -> None:
        """Append integers as ``widths`` bits each, 0 to 16."""
        shift = (PRECISION - widths.ravel()).astype(np.uint64)
        self._calls.append((values.ravel().astype(np.uint64) << shift, np.uint64(1) << shift))

    def finish(self) -> bytes:
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
    """Gives back, by the same calls in the same order, what an :class:`Encoder` was given."""

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

    def symbols(self, count: int) -> np.ndarray:
        head, self._histograms = self._histograms[:2], self._histograms[2:]
        low, size = (head[0], head[1] + 1) if len(head) == 2 else (0, 0)
        weights = np.frombuffer(self._histograms[:size], np.uint8)
        self._histograms = self._histograms[size:]
        if not 0 < size == len(weights) <= 256 - low or not weights.any():
            raise DamagedCodeError("a histogram is damaged")
        starts, sizes = Histogram(low, weights).intervals()
        symbol_at = np.repeat(np.arange(size), sizes.astype(np.int64))
        return low + self._read(count, lambda slot, _: (s := symbol_at[slot], starts[s], sizes[s]))

    def bits(self, widths: np.ndarray) -> np.ndarray:
        shifts, one = (PRECISION - widths.ravel()).astype(np.uint64), np.uint64(1)
        return self._read(
            len(shifts),
            lambda slot, at: (v := slot >> shifts[at], v << shifts[at], one << shifts[at]),
        )

    def finish(self) -> None:
        """Raises :class:`DamagedCodeError` unless all was read but zeros, and is as written."""
        if self._words.any() or self._histograms or (self._state != LOWEST).any():
            raise DamagedCodeError("it is altered")

    def _read(self, count: int, find: Callable) -> np.ndarray:
        values = np.empty(count, np.int64)
        for first in range(0, count, len(self._state)):
            x = self._state[: count - first]
            part, slot = slice(first, first + len(x)), x & np.uint64(0xFFFF)
            values[part], start, size = find(slot, part)
            x[:] = size * (x >> np.uint64(PRECISION)) + slot - start
            (low,) = (x < LOWEST).nonzero()
            if len(low) > len(self._words):
                raise DamagedCodeError("it is cut off or altered")
            x[low] = x[low] << np.uint64(WORD) | self._words[: len(low)]
            self._words = self._words[len(low) :]
        return values
