"""The CUDA kernels: what the compiler makes of them, and on a GPU the same promises as on the CPU.

The block programs inside the kernels are tested without a GPU in test_warp.py.
"""

import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path

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
    wanted,
)
from torch import Tensor

import cuda_ext
from cuda_ext.report import compile_report
from gsdd_lib.splatting.splat import backend_ready, splat

ARCHS = ("sm_80", "sm_90")
REGISTER_FILE = 65536  # registers of a multiprocessor, of every architecture since 2012
STATIC_SHARED = 48 * 1024  # bytes of shared memory that a block gets without opting in
# Blocks of 256 threads that must fit on a multiprocessor, or latency shows.
OCCUPANCY = {"render<float": 4, "render<float, 3": 5, "gather<float": 4}


# ----------------------------------------------------------------------------- compiled, not run


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> tuple[list[dict], Path]:
    if shutil.which(cuda_ext.nvcc()) is None:
        pytest.skip("needs nvcc, the CUDA compiler")
    folder = tmp_path_factory.mktemp("nvcc")
    rows = compile_report(*ARCHS, folder=folder)
    for row in rows:
        print(*(f"{name} {value}" for name, value in row.items()), sep=", ")
    return rows, folder


@pytest.fixture(scope="module")
def report(compiled) -> list[dict]:
    return compiled[0]


@pytest.mark.parametrize("arch", ARCHS)
def test_every_kernel_is_compiled(report, arch):
    floats = [f"<float, {channels}, {samples}>" for channels in (1, 3, 4) for samples in (1, 2)]
    doubles = [f"<double, 4, {samples}>" for samples in (1, 2)]
    names = [kernel + one for kernel in ("render", "gather") for one in floats + doubles]
    names += [f"add_parts<float, {channels}>" for channels in (1, 3, 4)] + ["add_parts<double, 4>"]
    assert sorted(row["kernel"] for row in report if row["arch"] == arch) == sorted(names)


def test_nothing_is_spilled(report):
    spilled = [row for row in report if row["spills"] or row["stack"]]
    assert report and not spilled


def test_shared_memory_needs_no_opting_in(report):
    assert max(row["shared"] for row in report) <= STATIC_SHARED
    assert all(row["shared"] for row in report if "add_parts" not in row["kernel"])


def test_enough_blocks_fit_on_a_multiprocessor(report):
    for row in report:
        for kernel, blocks in OCCUPANCY.items():
            if row["kernel"].startswith(kernel):
                assert 0 < row["registers"] * 256 * blocks <= REGISTER_FILE, row


@pytest.mark.parametrize("arch", ARCHS)
def test_the_kernels_use_no_atomics_and_call_nothing(compiled, arch):
    """Determinism rests on it. The test reads what the compiler made, not the source."""
    (ptx,) = compiled[1].glob(f"*compute_{arch[3:]}.ptx")
    text = ptx.read_text()
    assert text.count(".entry") == len(compiled[0]) / len(ARCHS)
    assert not re.findall(r"^\s*(?:@\S+\s+)?(?:atom|red|call)\b.*", text, re.MULTILINE)


def test_a_launch_neither_allocates_nor_waits(compiled):
    """So a call can be captured in a CUDA graph: only these functions of CUDA are called."""
    command = ["nm", "--undefined-only", str(compiled[1] / "splat.o")]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    called = {name for name in symbols if name.startswith("cuda")}
    harmless = {"cudaGetDevice", "cudaSetDevice", "cudaGetLastError", "cudaGetErrorString"}
    assert harmless <= called <= harmless | {"cudaLaunchKernel"}


def test_without_nvcc_the_report_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(cuda_ext.BuildError, match="nvcc was not found; install"):
        compile_report("sm_90")


# ------------------------------------------------------------------------------------- on the GPU


@pytest.fixture(scope="module")
def kernels() -> None:
    assert backend_ready("cuda"), "the CUDA kernels were not built; the warning says why"


def on_gpu(function):
    """Mark a test as one of the GPU's, for which the kernels are built."""
    return pytest.mark.gpu(pytest.mark.usefixtures("kernels")(function))


def same(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(first, second, strict=True))


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_oracle(name, dtype):
    case, want = wanted(name)
    image, gradient = render(want.params.to("cuda", dtype), case, want.cotangent.to(dtype))
    assert image.device.type == gradient.device.type == "cuda"
    check_image(image.cpu(), want)
    check_gradient(gradient.cpu(), want)


@on_gpu
@pytest.mark.parametrize("setting", SETTINGS)
def test_gradcheck(setting):
    check_finite_differences(setting, "cuda")


@on_gpu
def test_opcheck():
    params = scene(seeded(), 2, 4, 6, 7).cuda().requires_grad_()
    torch.library.opcheck(torch.ops.gsdd.splat, (params, 6, 7, True, True, True, True))
    v_images = torch.randn(2, 3, 6, 7, dtype=torch.float64, device="cuda")
    backward = torch.ops.gsdd.splat_backward
    torch.library.opcheck(backward, (v_images, params.detach(), True, True, True, True))


LARGE = {
    "many images": Case(scene(seeded(), 500, 136, 32, 32), 32, 32, {}),
    "several parts": Case(scene(seeded(), 3, 300, 200, 190, channels=4), 200, 190, {}),
}


@on_gpu
@pytest.mark.parametrize("name", LARGE)
def test_every_run_gives_the_same_bits(name):
    case = LARGE[name]
    params = case.params.float().cuda()
    first = render(params, case)
    assert all(same(first, render(params, case)) for _ in range(5))


@on_gpu
def test_an_image_does_not_depend_on_the_batch_it_is_in():
    case = LARGE["several parts"]
    v_images = torch.randn(3, 4, 200, 190, dtype=torch.float64)
    image, gradient = render(case.params.cuda(), case, v_images)
    alone = render(case.params[1:2].cuda(), case, v_images[1:2])
    assert same((image[1:2], gradient[1:2]), alone)


@on_gpu
@pytest.mark.parametrize("name", LARGE)
def test_agrees_with_the_cpu_on_large_batches(name):
    case = LARGE[name]
    here, there = render(case.params, case), render(case.params.cuda(), case)
    for a, b in zip(here, there, strict=True):
        assert torch.allclose(a, b.cpu(), rtol=0, atol=1e-9 * float(a.abs().max()))


@on_gpu
@pytest.mark.parametrize("view", VIEWS)
def test_any_strides(view):
    check_view(view, "cuda")


@on_gpu
def test_dead_gaussians_change_nothing():
    case = Case(scene(seeded(), 2, 9, 12, 11), 12, 11, {})
    params = case.params.float().cuda()
    for column, bad in itertools.product(range(9), (torch.nan, torch.inf)):
        params[:, 4] = case.params[:, 4].float().cuda()
        params[:, 4, column] = bad
        others = [0, 1, 2, 3, 5, 6, 7, 8]
        image, gradient = render(params, case)
        assert (gradient[:, 4] == 0).all()
        assert same((image, gradient[:, others]), render(params[:, others], case))


@on_gpu
def test_a_side_stream_is_respected():
    case = LARGE["many images"]
    params = case.params.float().cuda()
    want = render(params, case)
    stream = torch.cuda.Stream()
    for _ in range(5):
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)  # the other stream would read `late` too early
            late = torch.zeros_like(params)
            late.copy_(params)
            got = render(late, case)
        stream.synchronize()
        assert same(got, want)


@on_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second GPU")
def test_the_device_of_the_parameters_is_used():
    case = Case(scene(seeded(), 3, 8, 12, 10), 12, 10, {})
    image, gradient = render(case.params.to("cuda:1"), case)
    assert image.device == gradient.device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
    assert same((image, gradient), render(case.params.to("cuda:0"), case))


@on_gpu
@pytest.mark.parametrize("name", LARGE)
def test_a_step_can_be_captured_in_a_graph(name):
    case = LARGE[name]
    params = case.params.float().cuda()
    switches = (True, True, True, True)

    def step(rows: Tensor) -> tuple[Tensor, Tensor]:
        image = torch.ops.gsdd.splat(rows, case.height, case.width, *switches)
        return image, torch.ops.gsdd.splat_backward(image, rows, *switches)

    step(params)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # a host synchronization would end the capture with an error
        captured = step(params)
    params.mul_(0.9)
    graph.replay()
    assert same(captured, step(params))


@on_gpu
def test_nothing_is_allocated_but_the_outputs():
    case = LARGE["many images"]
    params = case.params.float().cuda()
    render(params, case)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    image = torch.ops.gsdd.splat(params, case.height, case.width, True, True, True, True)
    v_params = torch.ops.gsdd.splat_backward(image, params, True, True, True, True)
    outputs = image.nbytes + v_params.nbytes
    assert torch.cuda.max_memory_allocated() - before <= outputs + 2**20


@on_gpu
def test_offsets_past_two_to_the_31st():
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free GPU memory")
    params = scene(seeded(), 64, 3, 128, 128).float().cuda().repeat(690, 1, 1)[:44_000]
    switches = (True, True, True, True)
    images = torch.ops.gsdd.splat(params, 128, 128, *switches)
    assert images.numel() > 2**31
    v_params = torch.ops.gsdd.splat_backward(images, params, *switches)
    last = torch.ops.gsdd.splat(params[-64:], 128, 128, *switches)
    assert torch.equal(images[-64:], last)
    assert torch.equal(v_params[-64:], torch.ops.gsdd.splat_backward(last, params[-64:], *switches))


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.int32])
def test_another_dtype_is_refused(dtype):
    accepted = r"params must be a float32, float64 or bfloat16 tensor \[images, points, numbers\]"
    with pytest.raises(RuntimeError, match=rf"{accepted}, got {dtype} \[1, 2, 9\] on cuda:0\."):
        torch.ops.gsdd.splat(torch.zeros(1, 2, 9, device="cuda").to(dtype), 4, 4, *[True] * 4)


@on_gpu
def test_a_gradient_of_another_shape_is_refused():
    params = torch.zeros(2, 2, 9, device="cuda")
    rendered = r"v_images must be torch.float32 \[2, 3, 4, 4\] on cuda:0, as was rendered"
    for size in ((1, 3, 4, 4), (2, 2, 4, 4)):
        got = re.escape(f"got torch.float32 {list(size)} on cuda:0.")
        with pytest.raises(RuntimeError, match=f"{rendered}, {got}"):
            torch.ops.gsdd.splat_backward(torch.zeros(size, device="cuda"), params, *[True] * 4)


@on_gpu
def test_the_sanitizers_script_runs():
    root = Path(cuda_ext.FOLDER).parent
    command = [sys.executable, "-m", "cuda_ext.sanitize"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.startswith("OK"), done.stdout + done.stderr


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_index_gives_the_bits_of_a_gather(dtype):
    params = scene(seeded(), 5, 120, 140, 90).to("cuda", dtype).requires_grad_()
    index = torch.tensor([3, 0, 4], device="cuda")
    image, gathered = splat(params, 140, 90, index=index), splat(params[index], 140, 90)
    v_images = torch.randn(image.shape, generator=seeded(1)).cuda()
    (gradient,) = torch.autograd.grad(image, params, v_images)
    (expected_gradient,) = torch.autograd.grad(gathered, params, v_images)
    assert torch.equal(image, gathered) and torch.equal(gradient, expected_gradient)


@on_gpu
def test_gradients_of_repeated_images_add_up():
    check_repeated_images("cuda")


@on_gpu
def test_a_long_fit_ends_as_on_the_cpu():
    def on_the_gpu(params: Tensor, height: int, width: int) -> Tensor:
        return splat(params.cuda(), height, width).cpu()

    for size in ({}, {"points": 136, "side": 32, "images": 4}):
        assert abs(fitted_psnr(on_the_gpu, **size) - fitted_psnr(splat, **size)) <= FIT_TOLERANCE
