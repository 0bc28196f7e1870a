"""What every parameterization promises; a new one is a line in MAKE."""

import pytest
import torch
from torch.func import functional_call

from gsdd_lib.data.normalization import ChannelNormalization, fit_whitening
from gsdd_lib.parameterizations.base import (
    Parameterization,
    ProtocolError,
    check_parameterization,
)
from gsdd_lib.parameterizations.frequency import FrequencyImages
from gsdd_lib.parameterizations.gaussian import GaussianImages
from gsdd_lib.parameterizations.neural_field import NeuralFields
from gsdd_lib.parameterizations.pixel import DownsampledImages, PixelImages

N, C, HEIGHT, WIDTH = 4, 3, 6, 8
BY_CHANNEL = ChannelNormalization((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
WHITENING = fit_whitening(
    torch.randint(
        256, (300, C, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
)
MAKE = {  # pixel values, labels and settings to a parameterization
    "Gaussians": lambda *a, **k: GaussianImages.init_from(*a, points=5, seed=0, **k),
    "Gaussians, fp32, no opacity": lambda *a, **k: GaussianImages.init_from(
        *a, points=5, seed=0, store_bf16=False, opacity=False, **k
    ),
    "Gaussians, normalized space": lambda *a, **k: GaussianImages.init_from(
        *a, points=5, seed=0, space="normalized", **k
    ),
    "pixels, uint8": lambda *a, **k: PixelImages.init_from(*a, **k),
    "pixels, fp32": lambda *a, **k: PixelImages.init_from(*a, storage="fp32", **k),
    "pixels, uint4": lambda *a, **k: PixelImages.init_from(*a, storage="uint4", **k),
    "downsampled": lambda *a, **k: DownsampledImages.init_from(*a, **k),
    "downsampled, uint2": lambda *a, **k: DownsampledImages.init_from(*a, storage="uint2", **k),
    "frequencies": lambda *a, **k: FrequencyImages.init_from(*a, frequencies=9, **k),
    "neural fields": lambda *a, **k: NeuralFields.init_from(*a, steps=3, layers=2, width=4, **k),
}
BITS_PER_IMAGE = {
    "Gaussians": 5 * 9 * 16,
    "Gaussians, fp32, no opacity": 5 * 8 * 32,
    "Gaussians, normalized space": 5 * 9 * 16,
    "pixels, uint8": 3 * 6 * 8 * 8,
    "pixels, fp32": 3 * 6 * 8 * 32,
    "pixels, uint4": 3 * 6 * 8 * 4,
    "downsampled": 3 * 3 * 4 * 32,
    "downsampled, uint2": 3 * 3 * 4 * 2,
    "frequencies": 3 * 9 * 32 + 6 * 8,  # and the mask of each image's class
    "neural fields": (2 * 4 + 4 + 4 * 4 + 4 + 4 * 3 + 3) * 32,
}


@pytest.fixture(params=MAKE)
def made(request) -> Parameterization:
    images = torch.rand(N, C, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([2, 0, 1, 1])
    return MAKE[request.param](images, labels, normalization=BY_CHANNEL)


def snapshot(made: Parameterization) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in made.named_parameters()}


def test_images_labels_and_sizes(made):
    assert isinstance(made, Parameterization)
    assert len(made) == N and made.labels.tolist() == [2, 0, 1, 1]
    assert made.labels.dtype == torch.int64 and made.resolution == (HEIGHT, WIDTH)
    for images in (made.render(), made.pixels(), made()):
        assert images.shape == (N, C, HEIGHT, WIDTH) and images.dtype == torch.float32
        assert images.isfinite().all()
    assert made.render(resolution=(9, 5)).shape == (N, C, 9, 5)
    assert made.pixels(torch.tensor([1]), (12, 16)).shape == (1, C, 12, 16)


def test_rendered_are_the_normalized_pixels(made):
    torch.testing.assert_close(made.render(), BY_CHANNEL.apply(made.pixels()))
    assert torch.equal(made(), made.render())


def test_an_index_selects_in_its_order(made):
    index = torch.tensor([3, 0, 3])
    torch.testing.assert_close(made.render(index), made.render()[index])
    torch.testing.assert_close(made.pixels(index), made.pixels()[index])


def test_the_gradient_reaches_every_parameter_and_nothing_else(made):
    parameters = dict(made.named_parameters())
    weights = torch.rand(N, C, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(2))
    (made.render() * weights).sum().backward()
    for name, value in parameters.items():
        assert value.dtype == torch.float32 and value.grad.isfinite().all(), name
        assert (value.grad.flatten(1) != 0).any(1).all(), name  # of every image
    assert not made.labels.requires_grad


def test_an_image_depends_on_its_own_parameters_alone(made):
    made.render(torch.tensor([2])).sum().backward()
    for value in made.parameters():
        assert value.grad[[0, 1, 3]].abs().sum() == 0


def test_a_snapshot_renders_what_was_then(made):
    then, before = made.render().detach(), snapshot(made)
    with torch.no_grad():
        for value in made.parameters():
            value.mul_(0.5)
    assert not torch.allclose(made.render(), then)
    assert torch.equal(functional_call(made, before, ()), then)
    index = torch.tensor([1])
    torch.testing.assert_close(functional_call(made, before, (index,)), then[index])


@pytest.mark.parametrize("name", MAKE)
def test_bits_are_those_of_the_file(name):
    made = MAKE[name](torch.rand(N, C, 6, 8), torch.arange(N), normalization=BY_CHANNEL)
    assert made.bits == N * BITS_PER_IMAGE[name]


def test_constraining_twice_changes_nothing_more(made):
    with torch.no_grad():
        for value in made.parameters():
            value.mul_(100)
    made.constrain_()
    once = snapshot(made)
    made.constrain_()
    assert all(torch.equal(value, once[name]) for name, value in made.named_parameters())


def test_the_penalty_is_a_scalar_at_least_zero(made):
    assert made.penalty().shape == () and made.penalty().item() >= 0


def test_a_step_scaled_by_one_is_the_step(made):
    before = snapshot(made)
    with torch.no_grad():
        for value in made.parameters():
            value.add_(0.25)
    after = snapshot(made)
    made.scale_step_(before, 1.0)
    for name, value in made.named_parameters():
        torch.testing.assert_close(value.detach(), after[name])
    made.scale_step_(before, 0.5)
    for name, value in made.named_parameters():
        step, whole = value.detach() - before[name], after[name] - before[name]
        half = torch.isclose(step, whole / 2, atol=1e-6)
        assert (half | torch.isclose(step, whole, atol=1e-6)).all()


def test_moving_and_copying(made):
    assert made.to("cpu") is made and made.normalization.fingerprint == BY_CHANNEL.fingerprint
    state = made.state_dict()
    assert set(state) == {"labels", *dict(made.named_parameters())}


@pytest.mark.parametrize("name", MAKE)
def test_any_normalization_will_do(name):
    images = torch.rand(N, C, HEIGHT, WIDTH)
    made = MAKE[name](images, torch.arange(N), normalization=WHITENING)
    expected = WHITENING.apply(made.pixels())
    torch.testing.assert_close(made.render(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("normalization", [BY_CHANNEL, WHITENING])
def test_the_check_passes_all_of_the_library_and_changes_nothing(name, normalization):
    if name == "Gaussians, normalized space" and normalization is WHITENING:
        pytest.skip("a whitening has one resolution, and these Gaussians live in it")
    images = torch.rand(N, C, HEIGHT, WIDTH)
    made = MAKE[name](images, torch.arange(N), normalization=normalization)
    before = snapshot(made)
    check_parameterization(made)
    assert all(torch.equal(value, before[name]) for name, value in made.named_parameters())
    assert all(value.grad is None for value in made.parameters())


class Mine(Parameterization):
    """Pixels of one's own, right; below they are broken, one promise at a time."""

    def __init__(self) -> None:
        super().__init__(torch.tensor([2, 0, 1, 1]), (HEIGHT, WIDTH), BY_CHANNEL)
        self.values = torch.nn.Parameter(torch.rand(N, C, HEIGHT, WIDTH) * 0.5 + 0.25)

    def pixels(self, index=None, resolution=None):
        values = self.values if index is None else self.values[index]
        return torch.nn.functional.interpolate(values, resolution or self.resolution)

    @property
    def bits(self):
        return self.values.numel() * 32


def broken(**members) -> Parameterization:
    return type("Mine", (Mine,), members)()


def without_parameters(self):
    Mine.__init__(self)
    values = self.values.detach()
    del self.values
    self.values = values


def cached(self, index=None, resolution=None):
    if not hasattr(self, "first"):
        self.first = self.values.detach().clone()
    kept = self.first + self.values - self.values.detach()
    kept = kept if index is None else kept[index]
    return torch.nn.functional.interpolate(kept, resolution or self.resolution)


def unused(self):
    Mine.__init__(self)
    self.other = torch.nn.Parameter(torch.ones(3))


BROKEN = {
    "nothing to distill": ({"__init__": without_parameters}, "has no nn.Parameter"),
    "shape": (
        {"pixels": lambda self, *_, **__: self.values[:, 0]},
        r"pixels\(\) is \[4, 6, 8\], not \[4, 6, 6, 8\]",
    ),
    "non-finite": (
        {"pixels": lambda self, *a, **k: Mine.pixels(self, *a, **k) / 0},
        "non-finite values",
    ),
    "one resolution": (
        {"pixels": lambda self, index=None, resolution=None: Mine.pixels(self, index)},
        r"at \(9, 7\) pixels\(\) is \[4, 3, 6, 8\]",
    ),
    "no index": (
        {"pixels": lambda self, index=None, resolution=None: Mine.pixels(self, None, resolution)},
        r"pixels\(index\) differs",
    ),
    "render": ({"render": lambda self, *a: self.pixels(*a)}, "is not normalized pixels"),
    "bits": ({"bits": property(lambda self: 0.5)}, "bits is 0.5, not an int > 0"),
    "detached": (
        {"pixels": lambda self, *a, **k: Mine.pixels(self, *a, **k).detach()},
        "no finite gradient of .* reaches 'values'",
    ),
    "unused": ({"__init__": unused}, "reaches 'other'"),
    "cached": ({"pixels": cached}, "does not follow its parameters"),
    "constrain": (
        {"constrain_": lambda self: self.values.data.mul_(0.5)},
        "changes what it has constrained",
    ),
    "state": (
        {"load_state_dict": lambda self, state: None},
        r"state_dict\(\) does not bring it back",
    ),
}


def test_the_check_passes_a_parameterization_of_one_s_own():
    check_parameterization(Mine())


@pytest.mark.parametrize("case", BROKEN)
def test_the_check_says_in_one_sentence_what_is_broken(case):
    members, sentence = BROKEN[case]
    with pytest.raises(ProtocolError, match=f"^Mine: .*{sentence}") as error:
        check_parameterization(broken(**members))
    assert "\n" not in str(error.value)


def test_the_check_wants_a_parameterization():
    with pytest.raises(ProtocolError, match="Linear: it must be a subclass"):
        check_parameterization(torch.nn.Linear(2, 2))
