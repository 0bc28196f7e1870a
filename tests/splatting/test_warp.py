"""The CUDA block programs, run on the host by loops over their threads (tests/host_warp.cpp).

What a GPU would compute, but for the last place of its exponentials: an indexing mistake, a pixel
that no lane writes, a sum that a lane forgets shows here, where there is no GPU. Two more builds
look for what a comparison can miss: reads out of bounds, and races between threads.
"""

import ctypes
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from splat_cases import (
    CASES,
    FIT_TOLERANCE,
    SWITCHES,
    Case,
    check_gradient,
    check_image,
    expected,
    fitted_psnr,
    scene,
    wanted,
)
from torch import Tensor

import cuda_ext
from cuda_ext.call import DTYPES
from gsdd_lib.splatting.splat import splat

SOURCE = Path(__file__).parents[1] / "host_warp.cpp"
CXX = shutil.which("g++")
GUARD = 64  # numbers before and after every output, which nothing may touch

pytestmark = pytest.mark.skipif(CXX is None, reason="needs g++")


def compile_host(output: Path, *flags: str) -> None:
    command = [CXX, f"-I{cuda_ext.FOLDER}", *flags, str(SOURCE), "-o", str(output)]
    subprocess.run(command, check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def host(tmp_path_factory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("host") / "libhost_warp.so"
    compile_host(library, "-std=c++17", "-O1", "-shared", "-fPIC")
    return ctypes.CDLL(str(library))


def run(
    host: ctypes.CDLL, case: Case, params: Tensor, v_images: Tensor, index: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Image and gradient as the block programs compute them, in the dtypes of the operator."""
    switches = [case.switches.get(name, True) for name in SWITCHES]
    points, row = params.shape[1:]
    shown = len(params) if index is None else len(index)
    size = (shown, row - 5 - switches[0], case.height, case.width)
    params, v_images = params.contiguous(), v_images.contiguous()
    targets = [
        torch.full((math.prod(shape) + 2 * GUARD,), torch.nan, dtype=dtype)
        for shape, dtype in ((size, v_images.dtype), (params.shape, params.dtype))
    ]
    for target, kernel in zip(targets, (host.splat_render, host.splat_gather), strict=True):
        call = cuda_ext.Call(
            params.data_ptr(), 0 if index is None else index.data_ptr(), v_images.data_ptr(),
            target[GUARD:].data_ptr(), 0, len(params), points, row, shown, case.height, case.width,
            DTYPES.index(params.dtype), *switches,
        )  # fmt: skip
        assert kernel(ctypes.byref(call)) == 0
    for target in targets:
        assert target[:GUARD].isnan().all() and target[-GUARD:].isnan().all(), "out of bounds"
    inner = [target[GUARD:-GUARD] for target in targets]
    assert not any(target.isnan().any() for target in inner), "not every number was written"
    return inner[0].view(size), inner[1].view(params.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_oracle(host, name, dtype):
    case, want = wanted(name)
    image, gradient = run(host, case, want.params.to(dtype), want.cotangent.to(dtype))
    check_image(image, want)
    check_gradient(gradient, want)


# Counts around the sizes of the programs' loops: a warp, a chunk, a staging, and what is left over.
@pytest.mark.parametrize("points", [8, 9, 16, 17, 31, 32, 33, 96, 97, 255, 256, 257])
def test_any_number_of_gaussians(host, points):
    params = scene(torch.Generator().manual_seed(points), 1, points, 17, 10, size=0.7)
    case = Case(params, 17, 10, {})
    want = expected(case)
    image, gradient = run(host, case, want.params.float(), want.cotangent.float())
    check_image(image, want)
    check_gradient(gradient, want)


OVERFLOWS = [(column, bad) for column in range(9) for bad in (torch.nan, torch.inf, -torch.inf)]
OVERFLOWS += [(column, 1e30) for column in (2, 3, 4)]  # whose squares overflow


@pytest.mark.parametrize(("column", "bad"), OVERFLOWS)
def test_a_number_that_is_not_finite_kills_its_gaussian_alone(host, column, bad):
    params = scene(torch.Generator().manual_seed(3), 2, 9, 12, 11).float()
    v_images = torch.randn(2, 3, 12, 11)
    params[:, 4, column] = bad
    image, gradient = run(host, case := Case(params, 12, 11, {}), params, v_images)
    others = [k for k in range(9) if k != 4]
    image_without, gradient_without = run(host, case, params[:, others], v_images)
    assert torch.equal(image, image_without)
    assert torch.equal(gradient[:, others], gradient_without)
    assert (gradient[:, 4] == 0).all()


ORDERS = ["fills no tile", "wide", "700 Gaussians", "several bands"]


@pytest.mark.parametrize("name", ORDERS)
def test_threads_may_run_in_any_order(host, name):
    case, want = wanted(name)
    arguments = (host, case, want.params.float(), want.cotangent.float())
    forwards = run(*arguments)
    host.order(1)
    backwards = run(*arguments)
    host.order(0)
    assert torch.equal(forwards[0], backwards[0]) and torch.equal(forwards[1], backwards[1])


def test_an_image_does_not_depend_on_the_batch_it_is_in(host):
    params = scene(torch.Generator().manual_seed(0), 5, 22, 70, 75, channels=1).float()
    case, v_images = Case(params, 70, 75, {}), torch.randn(5, 1, 70, 75)
    image, gradient = run(host, case, params, v_images)
    alone = run(host, case, params[3:4], v_images[3:4])
    assert torch.equal(image[3:4], alone[0]) and torch.equal(gradient[3:4], alone[1])


@pytest.mark.parametrize("index", [[3], [4, 0, 2], [1, 4, 1, 1, 0], [2] * 70, []])
def test_an_index_renders_and_differentiates_those_images(host, index):
    params = scene(torch.Generator().manual_seed(0), 5, 22, 70, 75, channels=1).float()
    case, v_images = Case(params, 70, 75, {}), torch.randn(len(index), 1, 70, 75)
    image, gradient = run(host, case, params, v_images, torch.tensor(index, dtype=torch.int64))
    for slot, shown in enumerate(index):
        alone = run(host, case, params[shown : shown + 1], v_images[slot : slot + 1])
        assert torch.equal(image[slot : slot + 1], alone[0])
        if index.count(shown) == 1:
            assert torch.equal(gradient[shown : shown + 1], alone[1])
    for shown in range(5):
        slots = [slot for slot, one in enumerate(index) if one == shown]
        if not slots:
            assert (gradient[shown] == 0).all()
            continue
        rows = params[shown].expand(len(slots), -1, -1)
        each = run(host, case, rows, v_images[slots])[1].double()
        assert (gradient[shown] - each.sum(0)).abs().max() <= 1e-5 * each.abs().sum(0).max()


def test_a_block_of_many_tiles_renders_them_all(host):
    params = scene(torch.Generator().manual_seed(4), 1, 3, 2044, 2060, channels=1).float()
    case = Case(params, 2044, 2060, {})  # more tiles than blocks are wanted
    v_images = torch.zeros(1, 1, 2044, 2060)
    image, _ = run(host, case, params, v_images)
    assert (image - splat(params, 2044, 2060)).abs().max() <= 2e-5


def test_an_index_out_of_range_renders_black_and_reads_nothing(host):
    params = scene(torch.Generator().manual_seed(0), 2, 9, 12, 11).float()
    case, v_images = Case(params, 12, 11, {}), torch.randn(4, 3, 12, 11)
    index = torch.tensor([1, -1, 2, 2**40])
    image, gradient = run(host, case, params, v_images, index)
    alone = run(host, case, params[1:], v_images[:1])
    assert torch.equal(image[:1], alone[0]) and (image[1:] == 0).all()
    assert torch.equal(gradient[1:], alone[1]) and (gradient[0] == 0).all()


def test_bfloat16_is_read_and_its_gradient_rounded_once(host):
    params = scene(torch.Generator().manual_seed(0), 3, 40, 20, 11).bfloat16()
    case, v_images = Case(params, 20, 11, {}), torch.randn(3, 3, 20, 11)
    image, gradient = run(host, case, params, v_images)
    plain_image, plain_gradient = run(host, case, params.float(), v_images)
    assert torch.equal(image, plain_image)
    assert gradient.dtype == torch.bfloat16 and torch.equal(gradient, plain_gradient.bfloat16())


class OnHost(torch.autograd.Function):
    """The block programs as a differentiable renderer."""

    @staticmethod
    def forward(ctx, params, height, width, host):
        ctx.host, ctx.case = host, Case(params, height, width, {})
        ctx.save_for_backward(params)
        return run(host, ctx.case, params, torch.zeros(len(params), 3, height, width))[0]

    @staticmethod
    def backward(ctx, v_images):
        return run(ctx.host, ctx.case, *ctx.saved_tensors, v_images)[1], None, None, None


def test_a_long_fit_ends_as_with_the_cpu_kernels(host):
    on_host = fitted_psnr(lambda *arguments: OnHost.apply(*arguments, host), images=2)
    assert on_host > 25
    assert abs(on_host - fitted_psnr(splat, images=2)) <= FIT_TOLERANCE


# Exponents that no float holds: saturated or not, narrow and far from a sample. Where a column may
# not be walked by the recurrence it is sampled one by one; either way the oracle is met.
@pytest.mark.parametrize("opacity", [1e4, 1e8, 1e12, 1e16, 1e30])
@pytest.mark.parametrize("saturate", [True, False])
@pytest.mark.parametrize("prefilter", [True, False])
def test_the_recurrence_is_left_where_its_seed_would_vanish(host, opacity, saturate, prefilter):
    params = scene(torch.Generator().manual_seed(2), 1, 12, 23, 18, size=0.9)
    params[:, ::2, 2:5] *= 1e-2  # narrow: as curved as the variance that is added allows
    params[:, :, -1] = opacity
    params[:, :, 5:8] /= opacity if not saturate else 1
    case = Case(params, 23, 18, {"saturate": saturate, "prefilter": prefilter})
    want = expected(case)
    image, gradient = run(host, case, want.params.float(), want.cotangent.float())
    check_image(image, want)
    check_gradient(gradient, want)


def test_offsets_past_two_to_the_31st(host):
    images, height, width, points = 60_000, 128, 128, 170
    host.pixel_offset_of.restype = host.slot_offset_of.restype = ctypes.c_int64
    last = host.pixel_offset_of(images, points, height, width)
    assert last == (images - 1) * 3 * height * width + height * width - 1 > 2**31
    parts = height * width // 64 // 64  # tiles of 64 pixels, parts of 64 tiles
    last = host.slot_offset_of(images, 16 * points, height, width)
    assert last == 9 * (images * parts * 16 * points - 1) > 2**31


def sanitized(folder: Path, *flags: str) -> subprocess.CompletedProcess:
    """Build the program with a sanitizer and run it; skip where there is no such sanitizer."""
    program = folder / "host_warp"
    try:
        compile_host(program, "-std=c++20", "-g", "-DHOST_WARP_MAIN", *flags)
    except subprocess.CalledProcessError as error:
        if "cannot find" in error.stderr:
            pytest.skip(f"g++ has no {flags[0]} here")
        raise AssertionError(error.stderr) from error
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=120)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("this kernel's memory layout does not suit the sanitizer")
    return done


def test_nothing_is_read_out_of_bounds(tmp_path):
    done = sanitized(tmp_path, "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


def test_no_barrier_is_missing(tmp_path):
    done = sanitized(tmp_path, "-fsanitize=thread", "-DHOST_WARP_THREADS")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
