"""The roofline's counts: alive samples against the area of an ellipse, monotone in the work."""

import math

import pytest
import torch

from gsdd_lib.benchmarks import roofline
from gsdd_lib.splatting.splat import splat


def test_alive_samples_fill_the_ellipse_of_the_support():
    params = torch.tensor([[[0.0, 0.0, 3.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0]]])
    covariance = torch.tensor([[9.0, 3.0], [3.0, 5.0]]) + torch.eye(2) / 12
    area = math.pi * 2 * math.log(255) * math.sqrt(covariance.det())
    assert roofline.alive_samples(params, 64, 64) == pytest.approx(4 * area, rel=0.01)
    inside = (splat(params, 64, 64)[0, 0] > 0).sum()
    assert 4 * inside >= roofline.alive_samples(params, 64, 64) > 3 * inside


def test_instructions_grow_with_the_work():
    forward = roofline.instructions(1000.0, 3, "forward")
    assert forward == 3000 + 250 * 3
    assert roofline.instructions(1000.0, 3, "forward + backward") == forward + 7000 + 250 * 9


def test_traffic():
    assert roofline.traffic_bytes(2, 5, 9, 100, "forward") == 4 * 2 * 145
    assert roofline.traffic_bytes(2, 5, 9, 100, "forward + backward") == 4 * 2 * (290 + 45)


def test_the_roofline_is_the_larger_of_the_two(monkeypatch):
    monkeypatch.setattr(roofline, "fma_per_second", lambda: 1e6)
    monkeypatch.setattr(roofline, "bytes_per_second", lambda: 1e12)
    assert roofline.roofline_ms(1000.0, 2, 5, 3, (8, 8), "forward") == pytest.approx(7.5)
    monkeypatch.setattr(roofline, "bytes_per_second", lambda: 1e3)
    traffic = roofline.traffic_bytes(2, 5, 9, 192, "forward")
    assert roofline.roofline_ms(1000.0, 2, 5, 3, (8, 8), "forward") == pytest.approx(traffic)


def test_rates_are_measured():
    assert roofline.fma_per_second(side=64) > 0 and roofline.bytes_per_second(mib=1) > 0
