"""The compiled operator against the oracle, its gradient, its registration and its determinism."""

import pytest
import torch
from splat_cases import (
    CASES,
    FIT_TOLERANCE,
    SETTINGS,
    VIEWS,
    Case,
    check_finite_differences,
    check_gradient,
    check_image,
    check_repeated_images,
    check_view,
    fitted_psnr,
    render,
    scene,
    seeded,
    settled,
    wanted,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from gsdd_lib.splatting.reference import splat_reference
from gsdd_lib.splatting.splat import SplatError, backend_ready, splat

LEVELS = ("portable", "v3", "v4")  # instruction sets; one that is not here means the next narrower


@pytest.fixture(autouse=True, scope="module")
def _compiled() -> None:
    assert backend_ready(), "without the compiled operator these tests would compare nothing"


@pytest.fixture(autouse=True)
def threads():
    """``threads(n)`` sets the number of threads for one test; one where a test does not ask."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # on tensors this small, threads mostly wait for one another
    yield torch.set_num_threads
    torch.set_num_threads(before)


# ------------------------------------------------------------------------------ against the oracle


@pytest.mark.parametrize("name", CASES)
def test_double_agrees_with_the_oracle(name):
    case, want = wanted(name)
    image, gradient = render(want.params, case, want.cotangent)
    check_image(image, want)
    check_gradient(gradient, want)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", CASES)
def test_float_agrees_with_the_oracle(name, level, monkeypatch):
    monkeypatch.setenv("GSDD_CPU", level)
    case, want = wanted(name)
    image, gradient = render(want.params.float(), case, want.cotangent.float())
    check_image(image, want)
    check_gradient(gradient, want)


@pytest.mark.parametrize("name", CASES)
def test_almost_every_pixel_is_compared(name):
    _, want = wanted(name)
    assert (~want.decided).sum() <= 0.01 * want.decided.numel()


@pytest.mark.parametrize("setting", SETTINGS)
def test_gradcheck(setting):
    check_finite_differences(setting, "cpu")


# ------------------------------------------------------------------------------------ registration


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype):
    params = scene(seeded(), 2, 4, 6, 7).to(dtype).requires_grad_()
    torch.library.opcheck(torch.ops.gsdd.splat, (params, 6, 7, True, True, True, True))
    strided = scene(seeded(), 4, 2, 6, 7).to(dtype).transpose(0, 1).requires_grad_()
    torch.library.opcheck(torch.ops.gsdd.splat, (strided, 6, 7, True, False, False, False))


def test_the_largest_batches_have_the_right_shapes():
    """44,000 images of 128 x 128, more numbers than 31 bits count; the kernels' own offsets are
    looked at in test_splat_warp.py."""
    with FakeTensorMode():
        params = torch.empty(44_000, 170, 9, requires_grad=True)
        image = splat(params, 128, 128)
        (gradient,) = torch.autograd.grad(image, params, torch.empty_like(image))
    assert image.shape == (44_000, 3, 128, 128) and image.numel() > 2**31
    assert gradient.shape == params.shape


def test_opcheck_of_the_backward():
    params = scene(seeded(), 2, 4, 6, 7)
    v_images = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    torch.library.opcheck(torch.ops.gsdd.splat_backward, (v_images, params, True, True, True, True))


def test_a_second_derivative_is_refused_with_the_way_out():
    params = scene(seeded(), 1, 3, 6, 7).requires_grad_()
    image = splat(params, 6, 7)
    (gradient,) = torch.autograd.grad(image.square().sum(), params, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiable once: .* or use splat_reference"):
        gradient.sum().backward()


def test_a_fitting_step_compiles_whole():
    target = torch.rand(2, 3, 9, 8, generator=seeded())

    def loss(params: Tensor) -> Tensor:
        return (splat(params.bfloat16(), 9, 8) - target).square().mean()

    params = scene(seeded(), 2, 5, 9, 8).float().requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (gradient,) = torch.autograd.grad(compiled(params), params)
    (eager,) = torch.autograd.grad(loss(params), params)
    assert torch.allclose(gradient, eager, rtol=1e-5, atol=1e-7)


# ----------------------------------------------------------------- determinism, dtypes and strides

SPLITS = {
    "many images": Case(scene(seeded(), 40, 22, 28, 28, channels=1), 28, 28, {}),
    "one large image": Case(scene(seeded(), 1, 30, 260, 250), 260, 250, {}),
    "two large images": Case(scene(seeded(), 2, 30, 200, 190, channels=4), 200, 190, {}),
}


@pytest.mark.parametrize("name", SPLITS)
def test_every_run_gives_the_same_bits(name):
    case = SPLITS[name]
    first, second = render(case.params.float(), case), render(case.params.float(), case)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SPLITS)
def test_any_number_of_threads_gives_the_same_bits(name, dtype, threads):
    case = SPLITS[name]
    threads(1)
    image, gradient = render(case.params.to(dtype), case)
    for number in (2, 3, 7):
        threads(number)
        again = render(case.params.to(dtype), case)
        assert torch.equal(image, again[0]) and torch.equal(gradient, again[1])


def test_an_image_does_not_depend_on_the_batch_it_is_in():
    case = SPLITS["many images"]
    image, gradient = render(case.params, case, torch.ones(40, 1, 28, 28, dtype=torch.float64))
    alone = render(case.params[7:8], case, torch.ones(1, 1, 28, 28, dtype=torch.float64))
    assert torch.equal(image[7:8], alone[0]) and torch.equal(gradient[7:8], alone[1])


@pytest.mark.parametrize("view", VIEWS)
def test_any_strides(view):
    check_view(view, "cpu")


def test_any_strides_of_the_incoming_gradient():
    case = Case(scene(seeded(), 3, 8, 12, 10), 12, 10, {})
    v_images = torch.randn(3, 12, 10, 3, dtype=torch.float64).permute(0, 3, 1, 2)
    _, gradient = render(case.params, case, v_images)
    assert torch.equal(gradient, render(case.params, case, v_images.contiguous())[1])
    one = torch.ones((), dtype=torch.float64).expand(3, 3, 12, 10)
    assert torch.equal(render(case.params, case, one)[1], render(case.params, case, one.clone())[1])


def test_bfloat16_is_float32_of_the_rounded_numbers():
    case = Case(scene(seeded(), 3, 8, 12, 10), 12, 10, {})
    rounded = case.params.bfloat16()
    image, gradient = render(rounded, case, cotangent := torch.randn(3, 3, 12, 10))
    plain_image, plain_gradient = render(rounded.float(), case, cotangent)
    assert image.dtype == torch.float32 and torch.equal(image, plain_image)
    assert gradient.dtype == torch.bfloat16 and torch.equal(gradient, plain_gradient.bfloat16())


# ------------------------------------------------------------------------------ some of the images

INDEXES = {"two": [3, 0], "none": [], "all": [0, 1, 2, 3, 4], "one repeated": [2, 4, 2, 2]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES)
def test_an_index_renders_the_bits_of_a_gather(index, dtype, threads):
    params = scene(seeded(), 5, 30, 200, 90).to(dtype).requires_grad_()
    index = torch.tensor(index, dtype=torch.int64)
    image = splat(params, 200, 90, index=index)
    assert torch.equal(image, splat(params[index], 200, 90))
    v_images = torch.randn(image.shape, generator=seeded(1), dtype=image.dtype)
    (gradient,) = torch.autograd.grad(image, params, v_images)
    assert gradient.shape == params.shape and gradient.dtype == dtype
    if len(index.unique()) == len(index):
        (gathered,) = torch.autograd.grad(splat(params[index], 200, 90), params, v_images)
        assert torch.equal(gradient, gathered)
    for number in (2, 7):
        threads(number)
        again = torch.autograd.grad(splat(params, 200, 90, index=index), params, v_images)[0]
        assert torch.equal(gradient, again)


def test_gradients_of_repeated_images_add_up():
    check_repeated_images("cpu")


def test_gradcheck_and_opcheck_with_an_index():
    index = torch.tensor([1, 0, 1])
    params = settled(3).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: splat(rows, 4, 5, index=index), params)
    on = (True, True, True, True)
    torch.library.opcheck(torch.ops.gsdd.splat, (params, 4, 5, *on, index))
    v_images = torch.randn(3, 2, 4, 5, dtype=torch.float64)
    torch.library.opcheck(torch.ops.gsdd.splat_backward, (v_images, params.detach(), *on, index))
    half = params.detach().bfloat16().requires_grad_()
    torch.library.opcheck(torch.ops.gsdd.splat, (half, 4, 5, *on, index))


def test_an_index_may_be_strided():
    params, index = scene(seeded(), 4, 9, 8, 8), torch.tensor([[3, 1], [0, 2]])[:, 0]
    assert torch.equal(splat(params, 8, 8, index=index), splat(params[[3, 0]], 8, 8))


@pytest.mark.parametrize("bad", [-1, 4, 2**40])
def test_an_index_out_of_range_is_refused(bad):
    with pytest.raises(RuntimeError, match=f"index {bad} is not one of the 4 images, 0 to 3"):
        splat(scene(seeded(), 4, 2, 8, 8), 8, 8, index=torch.tensor([0, bad]))


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        ([0, 1], "index must be an int64 tensor"),
        (torch.tensor([0], dtype=torch.int32), "index must be int64, got torch.int32"),
        (torch.zeros(1, 1, dtype=torch.int64), r"index must be \[n\], got the shape \[1, 1\]"),
    ],
)
def test_a_bad_index_is_named_in_a_sentence(index, sentence):
    with pytest.raises(SplatError, match=sentence):
        splat(scene(seeded(), 4, 2, 8, 8), 8, 8, index=index)


# ------------------------------------------------------------------------------------------ fitting


def test_a_long_fit_ends_the_same_on_every_instruction_set_and_in_plain_torch(monkeypatch):
    psnr = {"plain torch": fitted_psnr(splat_reference)}
    for level in LEVELS:
        monkeypatch.setenv("GSDD_CPU", level)
        psnr[level] = fitted_psnr(splat)
    assert min(psnr.values()) > 25
    assert max(psnr.values()) - min(psnr.values()) <= FIT_TOLERANCE, psnr


def test_a_fit_of_many_gaussians_ends_the_same_on_every_instruction_set(monkeypatch):
    """136 Gaussians on 32 x 32: where a recurrence whose seed underflows ruins the fit."""
    psnr = {}
    for level in LEVELS:
        monkeypatch.setenv("GSDD_CPU", level)
        psnr[level] = fitted_psnr(splat, points=136, side=32, images=4)
    assert min(psnr.values()) > 25
    assert max(psnr.values()) - min(psnr.values()) <= FIT_TOLERANCE, psnr
