"""Odd shapes for compute-sanitizer to watch: ``compute-sanitizer python -m cuda_ext.sanitize``.

Small enough for its hundredfold slowdown, odd enough to reach every branch of the kernels. What
they render is compared with the CPU's as well. Prints OK, or ends with an error.
"""

import torch

from cuda_ext import BuildError, load
from cuda_ext.call import gather, render

# images, points, channels, height, width: none, one, sizes that fill no tile, several chunks of
# Gaussians, several parts of an image
SHAPES = (
    (0, 3, 3, 5, 7),
    (2, 0, 3, 5, 7),
    (1, 1, 1, 1, 1),
    (2, 5, 2, 13, 37),
    (1, 97, 4, 9, 20),
    (1, 700, 3, 33, 20),
    (1, 9, 3, 70, 75),
)
# Of the largest pixel. Coarse, for a sample on the rim of a support may fall on either side: this
# run is about memory, tests/splatting/test_cuda.py about numbers.
TOLERANCE = 1e-2


def main() -> None:
    try:
        load("cuda")
    except BuildError as error:
        raise SystemExit(f"The CUDA kernels cannot be built here: {error}.") from error
    generator = torch.Generator().manual_seed(0)
    for shape in SHAPES:
        for dtype in (torch.float32, torch.float64):
            for supersample in (True, False):
                check(shape, dtype, supersample, generator)
    torch.cuda.synchronize()
    print(f"OK: {len(SHAPES)} shapes rendered and differentiated")


def check(shape: tuple, dtype: torch.dtype, supersample: bool, generator: torch.Generator) -> None:
    """Render and differentiate random Gaussians, some of them dead, on both devices."""
    images, points, channels, height, width = shape
    params = 3 * torch.rand(images, points, 6 + channels, generator=generator, dtype=dtype) - 1.5
    params[:, 3::7, 2] = torch.nan
    size = (images, channels, height, width)
    v_images = torch.randn(size, generator=generator, dtype=dtype)
    switches = (True, True, True, supersample, None)
    on_cpu = render(params, height, width, *switches)
    on_gpu = render(params.cuda(), height, width, *switches)
    gradient = gather(v_images.cuda(), params.cuda(), *switches)
    scale = max(1.0, float(on_cpu.abs().max())) if on_cpu.numel() else 1.0
    if not torch.allclose(on_gpu.cpu(), on_cpu, rtol=0, atol=TOLERANCE * scale):
        raise SystemExit(f"The GPU's image differs from the CPU's for the shape {shape}.")
    if not gradient.isfinite().all():
        raise SystemExit(f"The GPU's gradient is not finite for the shape {shape}.")


if __name__ == "__main__":
    main()
