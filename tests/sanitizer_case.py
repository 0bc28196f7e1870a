"""A small forward and backward on the GPU, for compute-sanitizer to watch (`make gpu-check`)."""

import torch

from gsdd_lib.splat import splat

# images, points, channels, height, width: empty, one, sizes that fill no tile, more than a block
CASES = (
    (2, 0, 3, 5, 7),
    (1, 1, 1, 1, 1),
    (3, 22, 1, 28, 28),
    (2, 700, 3, 33, 65),
    (1, 9, 4, 9, 70),
)


def main() -> None:
    for images, points, channels, height, width in CASES:
        params = torch.rand(images, points, 6 + channels, device="cuda") * 2 - 1
        params.requires_grad_()
        for supersample in (True, False):
            splat(params, height, width, supersample=supersample).square().sum().backward()
    torch.cuda.synchronize()
    print(f"{len(CASES)} shapes rendered and differentiated")


if __name__ == "__main__":
    main()
