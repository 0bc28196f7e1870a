"""The entropy coder: exact round trips, lengths near the entropy, any bytes read or refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsdd_lib.parameterizations.entropy import (
    MAX_LANES,
    SYMBOLS_PER_LANE,
    DamagedCodeError,
    Decoder,
    Encoder,
    Histogram,
)


def coded(symbols, values, widths):
    encoder = Encoder()
    encoder.symbols(symbols)
    encoder.bits(values, widths)
    return encoder.finish()


@given(
    st.lists(st.integers(0, 255), max_size=60),
    st.lists(st.tuples(st.integers(0, 16), st.integers(0, 2**16 - 1)), max_size=60),
)
def test_round_trip(symbols, pairs):
    symbols = np.array(symbols, np.int64)
    widths = np.array([width for width, _ in pairs], np.int64)
    values = np.array([value & (1 << width) - 1 for width, value in pairs], np.int64)
    decoder = Decoder(coded(symbols, values, widths))
    assert np.array_equal(decoder.symbols(len(symbols)), symbols)
    assert np.array_equal(decoder.bits(widths), values)
    decoder.finish()


@pytest.mark.parametrize("count", [1, SYMBOLS_PER_LANE - 1, 5 * SYMBOLS_PER_LANE + 3])
def test_round_trip_on_several_lanes(count):
    random = np.random.default_rng(count)
    symbols = random.integers(3, 9, count)
    widths = random.integers(0, 17, count)
    values = random.integers(0, 2**16, count) >> 16 - widths
    content = coded(symbols, values, widths)
    assert content[0] == min(MAX_LANES, 1 + 2 * count // SYMBOLS_PER_LANE)
    decoder = Decoder(content)
    assert np.array_equal(decoder.symbols(count), symbols)
    assert np.array_equal(decoder.bits(widths), values)
    decoder.finish()


@pytest.mark.parametrize("spread", [0.3, 3.0, 40.0])
def test_length_is_the_entropy_within_one_percent_and_the_header(spread):
    count = 40_000
    symbols = np.random.default_rng(0).normal(128, spread, count).round().clip(0, 255)
    symbols = symbols.astype(np.int64)
    encoder = Encoder()
    encoder.symbols(symbols)
    content = encoder.finish()
    shares = np.bincount(symbols) / count
    entropy = -(shares[shares > 0] * np.log2(shares[shares > 0])).sum() * count / 8
    lanes = content[0]
    header = 4 + 2 + np.ptp(symbols) + 1 + 5 * lanes
    assert entropy < len(content) < 1.01 * entropy + header


def test_raw_bits_cost_what_they_are_wide():
    widths = np.full(10_000, 11)
    values = np.random.default_rng(0).integers(0, 2**11, 10_000)
    encoder = Encoder()
    encoder.bits(values, widths)
    assert 0 <= len(encoder.finish()) - 10_000 * 11 / 8 < 4 + 5 * 5 + 2


def test_a_histogram_by_hand():
    histogram = Histogram.of(np.array([3, 3, 5]))
    assert histogram.low == 3 and histogram.weights.tolist() == [255, 0, 128]
    starts, sizes = histogram.intervals()
    assert starts.tolist() == [0, 43633, 43633] and sizes.tolist() == [43633, 0, 21903]
    assert sizes.sum() == 2**16


def test_a_rare_symbol_keeps_a_share():
    sizes = Histogram.of(np.array([0] * 100_000 + [255])).intervals()[1]
    assert sizes[255] > 0 and sizes[1:255].sum() == 0


def test_symbols_beyond_a_byte_are_refused():
    with pytest.raises(ValueError):
        Encoder().symbols(np.array([0, 256]))


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(content):
    try:
        decoder = Decoder(content)
        assert (decoder.symbols(50) < 256).all()
        widths = np.arange(17)
        assert (decoder.bits(widths) < 2**widths).all()
        decoder.finish()
    except DamagedCodeError:
        pass


def test_every_truncation_is_refused():
    symbols = np.random.default_rng(0).integers(0, 16, 300)
    encoder = Encoder()
    encoder.symbols(symbols)
    content = encoder.finish()
    for size in range(len(content)):
        with pytest.raises(DamagedCodeError):
            decoder = Decoder(content[:size])
            decoder.symbols(300)
            decoder.finish()
