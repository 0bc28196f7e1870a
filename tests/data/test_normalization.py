"""Normalization: ZCA by its published definition, what it makes of data, its files; by channel."""

import pytest
import torch

from gsdd_lib.config import BudgetConfig, DataConfig, DistillConfig, EvalConfig, FitConfig
from gsdd_lib.data import DataError, load_data
from gsdd_lib.data import normalization as zca
from gsdd_lib.data.normalization import (
    ChannelNormalization,
    Whitening,
    cached_whitening,
    fit_whitening,
    read_whitening,
    write_whitening,
)
from gsdd_lib.distillation.loop import distill
from gsdd_lib.parameterizations.budget import plan_budget
from gsdd_lib.parameterizations.fit import initial_gaussians

EPS = 0.1


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GSDD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def images():
    """uint8 [300, 3, 4, 5] with neighbors that are alike."""
    draw = torch.Generator().manual_seed(1)
    coarse = torch.rand(300, 3, 2, 2, generator=draw)
    smooth = torch.nn.functional.interpolate(coarse, (4, 5), mode="bilinear", align_corners=True)
    return (smooth * 255).to(torch.uint8)


def by_svd(images, eps):
    """kornia's formula, written down: T = U (S + eps)^(-1/2) U^T of the unbiased covariance."""
    flat = images.flatten(1).double() / 255
    mean = flat.mean(0)
    covariance = (flat - mean).T @ (flat - mean) / (len(flat) - 1)
    left, singular, _ = torch.linalg.svd(covariance)
    return (flat - mean) @ left @ torch.diag((singular + eps).rsqrt()) @ left.T


@pytest.mark.parametrize("eps", [0.1, 1e-3])
def test_it_is_the_definition_by_svd(images, eps):
    whitened = fit_whitening(images, eps=eps).apply(images / 255)
    expected = by_svd(images, eps).view(images.shape)
    assert torch.allclose(whitened.double(), expected, atol=2e-4)


def test_it_does_not_depend_on_the_chunks(images, monkeypatch):
    whole = fit_whitening(images)
    monkeypatch.setattr(zca, "CHUNK", 7)
    assert torch.equal(whole.parts[1], fit_whitening(images).parts[1])


def test_the_sums_are_exact():
    images = torch.zeros(1500, 3, 1, 1, dtype=torch.uint8)
    images[::2] = torch.tensor([0, 255, 255], dtype=torch.uint8).view(3, 1, 1)
    images[1::2] = torch.tensor([255, 0, 1], dtype=torch.uint8).view(3, 1, 1)
    mean, covariance = zca._statistics(images)
    flat = images.flatten(1).double() / 255
    assert torch.allclose(mean, flat.mean(0), rtol=1e-14)
    assert torch.allclose(covariance, torch.cov(flat.T), rtol=1e-12)


def test_there_and_back(images):
    whitening, pixels = fit_whitening(images), images / 255
    assert torch.allclose(whitening.invert(whitening.apply(pixels)), pixels, atol=1e-5)
    _, matrix, inverse = whitening.parts
    identity = matrix.double() @ inverse.double()
    assert torch.allclose(identity, torch.eye(60, dtype=torch.float64), atol=1e-5)


def test_whitened_data_are_uncorrelated():
    draw = torch.Generator().manual_seed(0)
    mixed = torch.randn(5000, 12, generator=draw) @ torch.randn(12, 12, generator=draw)
    pixels = ((mixed / 40 + 0.5).clamp(0, 1) * 255).to(torch.uint8).view(-1, 3, 2, 2)
    whitened = fit_whitening(pixels, eps=1e-8).apply(pixels / 255).flatten(1)
    assert torch.allclose(torch.cov(whitened.T), torch.eye(12), atol=1e-2)


def test_fewer_images_than_values_are_whitened_too():
    images = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    assert fit_whitening(images).apply(images / 255).isfinite().all()


def test_an_image_too_large():
    with pytest.raises(DataError, match="ZCA of images with 49,152 values .*choose zca=False"):
        fit_whitening(torch.zeros(2, 3, 128, 128, dtype=torch.uint8))


# The cache


def test_it_is_computed_once(images, cache, monkeypatch):
    first = cached_whitening(images)
    monkeypatch.setattr(zca, "fit_whitening", None)
    again = cached_whitening(images)
    assert all(map(torch.equal, first.parts, again.parts))
    assert len(list(cache.iterdir())) == 1


def test_other_images_are_another_entry(images, cache):
    cached_whitening(images)
    images[0, 0, 0, 0] ^= 1
    cached_whitening(images)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("content", [b"", b"damaged", "half"])
def test_a_damaged_entry_is_made_anew(images, cache, content):
    first = cached_whitening(images)
    (path,) = cache.iterdir()
    path.write_bytes(path.read_bytes()[:999] if content == "half" else content)
    assert torch.equal(cached_whitening(images).parts[1], first.parts[1])


def test_a_cache_that_cannot_be_written_is_a_warning(images, cache):
    cache.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="could not be kept"):
        assert isinstance(cached_whitening(images), Whitening)


# In a data set


def load(**fields):
    return load_data(DataConfig(dataset="digits", zca=True, **fields))


def test_a_data_set_is_whitened():
    data, plain = load(), load_data(DataConfig(dataset="digits"))
    assert data.provenance.endswith(", ZCA")
    assert (data.mean, data.std) == (plain.mean, plain.std)  # the channel statistics stay
    assert data.normalization.fingerprint != plain.normalization.fingerprint
    images = plain.test.images[:7]
    normalized = data.normalize(images)
    assert torch.allclose(data.normalize(images / 255), normalized, atol=1e-5)
    assert torch.allclose(data.unit(normalized), images / 255, atol=1e-5)
    both = torch.cat([plain.train.images, plain.validation.images])
    expected = by_svd(both, EPS).float().view(both.shape)[:5]
    assert torch.allclose(data.normalize(both[:5]), expected, atol=1e-4)
    assert torch.equal(data.test.images, plain.test.images)
    assert isinstance(data.to("cpu").normalization, Whitening)


def test_a_stack_of_batches_and_gradients_go_through():
    data = load()
    images = torch.rand(2, 3, 1, 8, 8, requires_grad=True)
    assert torch.allclose(data.unit(data.normalize(images)), images, atol=1e-5)
    data.normalize(images).square().sum().backward()
    assert images.grad.isfinite().all()


def test_images_of_another_size_do_not_fit():
    with pytest.raises(
        DataError,
        match=r"\[1, 1, 4, 4\] do not fit the whitening; pass \[\.\.\., 1, 8, 8\]",
    ):
        load().normalize(torch.rand(1, 1, 4, 4))


def test_the_whitening_depends_on_no_seed_and_follows_the_resolution(cache):
    load_data(DataConfig(dataset="digits", zca=True), seed=0)
    load_data(DataConfig(dataset="digits", zca=True), seed=1)
    assert len(list(cache.iterdir())) == 1
    assert load(resolution=6).normalization.shape == (1, 6, 6)


@pytest.mark.parametrize("init", ["real", "warmup"])
def test_distilling_a_whitened_data_set(init):
    data = load(max_per_class=10)
    budget = plan_budget(BudgetConfig(ipc=4, gpc=1), data)
    fit = initial_gaussians(data, budget, FitConfig(init=init, fit_steps=60), seed=0)
    assert fit.curve[-1]["psnr_db"] >= fit.curve[0]["psnr_db"]
    config = DistillConfig(network="ConvNetD1", width=4, steps=1, select_networks=1)
    judges = EvalConfig(eval_network="ConvNetD1", eval_width=4, epochs=2)
    rows = list(distill(fit.gaussians, data, config, judges, seed=0))
    assert [row["step"] for row in rows] == [0, 1]


def by_gradient_descent(data, space):
    budget = plan_budget(BudgetConfig(ipc=4, gpc=2), data)
    return initial_gaussians(data, budget, FitConfig(fit_steps=150), seed=0, space=space)


@pytest.mark.parametrize("space", ["unit", "normalized"])
def test_the_psnr_of_a_whitened_fit_is_that_of_pixels(space):
    data = load(max_per_class=10)
    fit = by_gradient_descent(data, space)
    error = (fit.gaussians.pixels() - fit.targets).square().flatten(1).mean(1)
    expected = (-10 * error.log10()).mean().item()
    assert fit.curve[-1]["psnr_db"] == pytest.approx(expected, abs=1e-4)
    assert fit.curve[-1]["psnr_db"] > fit.curve[0]["psnr_db"] + 2


def test_by_default_the_rendering_is_whitened_as_published():
    data = load(max_per_class=10)
    fit = by_gradient_descent(data, "unit")
    plain = load_data(DataConfig(dataset="digits", max_per_class=10))
    same = by_gradient_descent(plain, "unit")
    assert torch.allclose(fit.targets, same.targets, atol=1e-5)  # the pixels, whitened or not
    rendered = data.normalize(fit.gaussians.pixels())
    assert torch.equal(fit.gaussians.render(), rendered)


# By channel


def test_normalization_by_channel_by_hand():
    normalization = ChannelNormalization((0.5, 0.25), (0.5, 0.125))
    pixels = torch.tensor([1.0, 0.5]).view(2, 1, 1)
    assert normalization.apply(pixels).flatten().tolist() == [1.0, 2.0]
    assert normalization.apply(torch.full((2, 3, 3), 255, dtype=torch.uint8))[1, 0, 0] == 6.0
    assert torch.equal(normalization.invert(normalization.apply(pixels)), pixels)


def test_its_fingerprint_is_that_of_the_numbers():
    one, same = (ChannelNormalization((0.5,), (0.25,)) for _ in range(2))
    assert one.fingerprint == same.fingerprint == one.to("cpu").fingerprint
    assert one.fingerprint != ChannelNormalization((0.5,), (0.26,)).fingerprint


@pytest.mark.parametrize("std", [(0.0,), (float("nan"),), (-0.1,), (0.1, 0.1)])
def test_deviations_that_divide_by_nothing(std):
    with pytest.raises(DataError, match="a finite mean and a positive deviation per channel"):
        ChannelNormalization((0.5,), std)


def test_integers_that_are_no_bytes_are_refused():
    with pytest.raises(DataError, match=r"images are torch.int64; pass uint8, or floating point"):
        ChannelNormalization((0.5,), (0.5,)).apply(torch.ones(1, 2, 2, dtype=torch.int64))


# Its file


def test_a_file_is_read_when_it_is_needed(images, tmp_path):
    whitening = fit_whitening(images)
    path = tmp_path / f"zca-{whitening.fingerprint}.safetensors"
    found = read_whitening(path, (3, 4, 5))  # not there yet
    assert write_whitening(tmp_path, whitening) == path
    assert torch.equal(found.apply(images), whitening.apply(images))
    assert (found.shape, found.fingerprint) == (whitening.shape, whitening.fingerprint)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be used .*copy it again, at once"):
        read_whitening(path, (3, 4, 5), ", at once").apply(images)
    write_whitening(tmp_path, whitening)
    moved = path.rename(tmp_path / "zca-other.safetensors")
    with pytest.raises(DataError, match="its fingerprint is .*, not other.; copy it again"):
        read_whitening(moved, (3, 4, 5)).apply(images)


def test_a_file_for_other_images(images, tmp_path):
    path = write_whitening(tmp_path, fit_whitening(images))
    for shape in ((3, 5, 4), (1, 8, 8)):
        with pytest.raises(DataError, match=r"its shape is \[3, 4, 5\], not \["):
            read_whitening(path, shape).invert(torch.zeros(1, *shape))
