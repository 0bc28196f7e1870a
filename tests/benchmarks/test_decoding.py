"""Decoders side by side: equal bytes, the rows of a measurement; never its times."""

import pytest
import torch

from gsdd_lib.benchmarks.decoding import (
    METHODS,
    Decoding,
    decode_job,
    field_numbers,
    measure,
)
from gsdd_lib.benchmarks.operator import Workload, fitted_gaussians
from gsdd_lib.data.normalization import ChannelNormalization
from gsdd_lib.parameterizations.neural_field import NeuralFields


def test_every_method_stays_within_its_bytes():
    case = Decoding(128, 32, 3852)  # a field of 3 x 20
    assert (case.points, case.field_width, case.pixel_side) == (214, 20, 17)
    assert 18 * case.points <= 3852 and 12 * case.pixel_side**2 <= 3852
    identity = ChannelNormalization((0.0,) * 3, (1.0,) * 3)
    field = NeuralFields(torch.zeros(1), 3, (4, 4), normalization=identity, width=20)
    assert field.numbers_per_image == field_numbers(20) == 3852 / 4


@pytest.mark.parametrize("method", METHODS)
def test_a_job_makes_the_batch_and_its_gradients(method):
    case = Decoding(12, 3, 400)
    gaussians = fitted_gaussians(Workload(3, case.points, 12, 12, 3), steps=2).numpy()
    (image,) = decode_job(method, "forward", case, gaussians)()
    assert image.shape == (3, 3, 12, 12) and not image.requires_grad
    made = decode_job(method, "forward + backward", case, gaussians)()
    assert made[0].shape == image.shape and len(made) == (9 if method == "neural field" else 2)


def test_rows():
    rows = measure([Decoding(8, 2, 200)], repeats=1, fit_steps=1, memory=False)
    assert [row["method"] for row in rows] == [name for name in METHODS for _ in range(2)]
    assert all(0 < row["ms_low"] <= row["ms"] <= row["ms_high"] for row in rows)
    assert all(row["mib"] is None for row in rows)
    assert [("roofline_ms" in row) for row in rows] == [True] * 2 + [False] * 4
