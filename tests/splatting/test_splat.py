"""The compiled operator against the oracle, its gradient, its registration and its determinism."""

from types import SimpleNamespace

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

import cuda_ext
from cuda_ext.call import images_like
from gsdd_lib.splatting.reference import splat_reference
from gsdd_lib.splatting.splat import SplatError, _ready_once, backend_ready, splat

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
    """44,000 images of 128 x 128, more numbers than 31 bits count; test_warp.py covers the kernels'
    own offsets."""
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


class Symbolic(int):
    """A size as torch 2.11 traces it: it takes integers, and a bool is none."""

    def __sub__(self, other: int) -> "Symbolic":
        assert type(other) is int, "BooleanAtom not allowed in this context"
        return Symbolic(int(self) - other)


@pytest.mark.parametrize("opacity", [True, False])
def test_shapes_are_computed_with_integers_alone(opacity):
    params = SimpleNamespace(shape=(2, 3, Symbolic(8 + opacity)), dtype=torch.float32)
    assert images_like(params, 4, 5, opacity, None) == ((2, 3, 4, 5), torch.float32)


def test_sizes_may_be_dynamic():
    def loss(params: Tensor) -> Tensor:
        return splat(params, 9, 8).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for images, points in ((2, 5), (3, 7)):
        params = scene(seeded(), images, points, 9, 8).requires_grad_()
        torch._dynamo.mark_dynamic(params, 0)
        torch._dynamo.mark_dynamic(params, 1)
        (gradient,) = torch.autograd.grad(compiled(params), params)
        assert torch.allclose(gradient, torch.autograd.grad(loss(params), params)[0])


# ---------------------------------------------------------------------------- what is not rendered

ROWS = torch.zeros(2, 3, 9)
REFUSED = {
    "integers": (ROWS.long(), 4, 5, True),
    "half": (ROWS.half(), 4, 5, True),
    "two axes": (ROWS[0], 4, 5, True),
    "no color": (ROWS[..., :6], 4, 5, True),
    "five colors": (torch.zeros(2, 3, 11), 4, 5, True),
    "no rows of pixels": (ROWS, 0, 5, True),
    "an index of int32": (ROWS, 4, 5, True, True, True, True, torch.zeros(1, dtype=torch.int32)),
    "an index of two axes": (ROWS, 4, 5, True, True, True, True, torch.zeros(1, 1).long()),
    "an index out of range": (ROWS, 4, 5, True, True, True, True, torch.tensor([0, 2])),
    "more pixels than can be counted": (ROWS[:0], 2**31, 5, True),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_the_registered_operator_refuses_bad_arguments(name, grad):
    params, *others = REFUSED[name]
    others += [True] * (6 - len(others))
    params = params.clone().requires_grad_(grad and params.is_floating_point())
    with pytest.raises(RuntimeError):
        torch.ops.gsdd.splat(params, *others)


@pytest.mark.parametrize("size", [(2, 3, 4), (1, 3, 4, 5), (2, 2, 4, 5), (2, 3, 0, 5)])
def test_the_registered_gradient_refuses_another_shape(size):
    with pytest.raises(RuntimeError, match="v_images must|at least 1 pixel"):
        torch.ops.gsdd.splat_backward(torch.zeros(size), ROWS, *[True] * 4)


def test_a_kernel_reports_by_a_number_and_touches_nothing():
    """An exception thrown by a kernel would end the process where torch's runtime is another."""
    image = torch.full((2, 3, 4, 5), torch.nan)
    index = torch.tensor([1, 7])
    sizes = [2, 3, 9, 2, 4, 5, 0, 1, 1, 1, 1]
    call = cuda_ext.Call(ROWS.data_ptr(), index.data_ptr(), 0, image.data_ptr(), 0, *sizes)
    assert cuda_ext.load().splat_render(call) == -2  # slot 1 of the index
    call.index, call.height = 0, 2**40
    assert cuda_ext.load().splat_render(call) == 1
    assert image.isnan().all()


class OnGpu(Tensor):
    """A tensor of the CPU that says it is on a GPU."""

    device = torch.device("cuda")


def test_where_there_are_no_kernels_for_a_device_the_reference_serves_with_one_warning():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    params = scene(seeded(), 2, 5, 9, 8).as_subclass(OnGpu).requires_grad_()
    _ready_once.cache_clear()
    with pytest.warns(UserWarning, match="not available on cuda") as w:
        images = [splat(params, 9, 8) for _ in range(3)]
    assert len(w) == 1 and "torch sees no CUDA device" in str(w[0].message)
    assert torch.equal(images[2], splat_reference(params, 9, 8))
    assert torch.autograd.grad(images[0].sum(), params)[0].abs().sum() > 0
    assert backend_ready("cpu")


# ------------------------------------------------------------------- other ways to differentiate


def forward_ad(function, params: Tensor) -> Tensor:
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(params, torch.ones_like(params))
        return torch.autograd.forward_ad.unpack_dual(function(dual)).tangent


FORWARD_MODE = {
    "jvp": lambda function, params: torch.func.jvp(function, (params,), (params,)),
    "jacfwd": lambda function, params: torch.func.jacfwd(function)(params),
    "hessian": lambda function, params: torch.func.hessian(lambda p: function(p).sum())(params),
    "forward_ad": forward_ad,
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("way", FORWARD_MODE)
def test_forward_mode_is_refused_in_one_sentence(way, grad):
    params = scene(seeded(), 1, 3, 4, 5).requires_grad_(grad)
    with pytest.raises(RuntimeError, match="splat has no forward-mode derivative"):
        FORWARD_MODE[way](lambda rows: splat(rows, 4, 5), params)


def test_forward_mode_of_the_registered_operator_is_refused():
    params = scene(seeded(), 1, 3, 4, 5)
    with pytest.raises(RuntimeError, match="splat has no forward-mode derivative"):
        forward_ad(lambda rows: torch.ops.gsdd.splat(rows, 4, 5, *[True] * 4), params)


def test_forward_mode_through_the_gradient_is_refused():
    params = scene(seeded(), 1, 3, 4, 5).requires_grad_()
    image = splat(params, 4, 5)
    with pytest.raises(RuntimeError, match="splat has no forward-mode derivative"):
        forward_ad(lambda v: torch.autograd.grad(image, params, v)[0], torch.ones_like(image))


def test_torch_funcs_gradients_are_autograds():
    params = scene(seeded(), 2, 4, 4, 5).requires_grad_()
    (want,) = torch.autograd.grad(splat(params, 4, 5).square().sum(), params)
    rows = params.detach()
    assert torch.equal(torch.func.grad(lambda p: splat(p, 4, 5).square().sum())(rows), want)
    image, vjp = torch.func.vjp(lambda p: splat(p, 4, 5), rows)
    assert torch.equal(vjp(2 * image)[0], want)


def test_torch_funcs_second_derivative_is_refused():
    def inner(params: Tensor) -> Tensor:
        return torch.func.grad(lambda rows: splat(rows, 4, 5).square().sum())(params).sum()

    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.func.grad(inner)(scene(seeded(), 1, 3, 4, 5))


def test_a_view_that_torch_negates_lazily_is_rendered_negated():
    params = scene(seeded(), 1, 3, 4, 5)
    assert torch.equal(splat(torch._neg_view(params), 4, 5), splat(-params, 4, 5))


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
        ([0, 1], "index must be an int64 tensor .* got <class 'list'>"),
        (torch.tensor([0], dtype=torch.int32), "index must be an int64 tensor .* got torch.int32"),
        (torch.zeros(1, 1, dtype=torch.int64), r"tensor \[n\] on cpu, got torch.int64 \[1, 1\]"),
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
