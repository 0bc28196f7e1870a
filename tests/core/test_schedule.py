"""The cosine by hand."""

import math

import pytest

from gsdd_lib.core.schedule import cosine


def test_the_cosine_by_hand():
    root = math.sqrt(0.5)
    expected = [1, (1 + root) / 2, 0.5, (1 - root) / 2, 0]
    assert [cosine(step, 4) for step in range(5)] == pytest.approx(expected)
