"""Learned labels in 4 bits: exact round trips, little lost, any bytes decoded or refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gsdd_lib.parameterizations.entropy import DamagedCodeError
from gsdd_lib.parameterizations.label_codec import LabelCodec, decode_labels, encode_labels


def test_levels_by_hand():
    codec = LabelCodec(0.5, bits=2)
    logits = torch.tensor([[3.0, 2.4, -7.0], [0.0, -0.2, -0.8]])
    levels = codec.quantize(logits)
    assert levels.tolist() == [[0, 1, 3], [0, 0, 2]]
    assert codec.dequantize(levels).tolist() == [[0, -0.5, -1.5], [0, 0, -1]]


@given(st.integers(0, 5), st.integers(1, 6), st.integers(1, 8), st.randoms(use_true_random=False))
def test_round_trip(images, classes, bits, random):
    levels = torch.tensor([random.randrange(2**bits) for _ in range(images * classes)])
    levels = levels.long().reshape(images, classes)
    codec = LabelCodec(0.3, bits)
    content = encode_labels(levels, codec)
    back, again = decode_labels(content)
    assert torch.equal(back, levels) and encode_labels(back, again) == content
    assert (again.step, again.bits) == (codec.step, bits)


def test_four_bits_lose_little_and_cost_less_than_40_bits_an_image():
    logits = 3 * torch.randn(330, 10)
    logits[torch.arange(330), torch.arange(330) % 10] += 8
    codec = LabelCodec.fit(logits)
    difference = codec.round(logits).softmax(1) - logits.softmax(1)
    assert difference.abs().max() < 0.08 and difference.abs().mean() < 3e-3
    assert 8 * len(encode_labels(codec.quantize(logits), codec)) < 330 * 40 + 8 * 60


def test_the_gradient_goes_straight_through():
    logits = torch.randn(4, 3, requires_grad=True)
    weights = torch.randn(4, 3)
    (LabelCodec.fit(logits).round(logits) * weights).sum().backward()
    assert torch.equal(logits.grad, weights)


def test_equal_logits_have_a_grid():
    codec = LabelCodec.fit(torch.zeros(2, 3))
    assert torch.equal(codec.round(torch.zeros(2, 3)), torch.zeros(2, 3))


@given(st.binary(max_size=120))
def test_random_bytes_are_refused(content):
    with pytest.raises(DamagedCodeError):
        decode_labels(content)


@given(st.integers(0, 10**6), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_gives_levels_in_their_grid(position, value):
    codec = LabelCodec(0.4)
    content = bytearray(encode_labels(torch.arange(60).reshape(6, 10) % 16, codec))
    content[position % len(content)] = value
    try:
        levels, codec = decode_labels(bytes(content))
    except DamagedCodeError:
        return
    assert (levels >= 0).all() and (levels < 2**codec.bits).all()


def test_unusable_grids_are_refused():
    for step, bits in ((0.0, 4), (float("nan"), 4), (0.5, 0), (0.5, 9)):
        with pytest.raises(ValueError, match="1 to 8 bits"):
            LabelCodec(step, bits)
