"""gsplat's CUDA rasterizer on our Gaussians, for the benchmark.

gsplat composites front to back and has no additive mode. The nearest to ours is one orthographic
camera per image, all Gaussians at one depth, our covariances handed over as they are and our
pre-filter as its added variance. What it draws is the same Gaussians blended, not summed, so the
pictures differ where Gaussians overlap and only its time and memory are compared.
"""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from gsdd_lib.splatting.reference import PREFILTER_VARIANCE, pixel_center
from gsdd_lib.splatting.splat import GEOMETRY

SAMPLES = 2  # per pixel and axis: it renders twice as large, and the mean is taken


def available() -> str:
    """An empty string where gsplat can run here, else why it cannot."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    try:
        import gsplat  # noqa: F401
    except ImportError:
        return "gsplat is not installed"
    return ""


def rasterize(params: Tensor, height: int, width: int) -> Tensor:
    """``params [B, M, 6 + C]`` on a GPU to ``[B, C, height, width]``; opacities in (0, 1]."""
    from gsplat import rasterization

    size = (SAMPLES * height, SAMPLES * width)
    images, _, _ = rasterization(**_arguments(params, height, width), height=size[0], width=size[1])
    return avg_pool2d(images.squeeze(1).movedim(-1, 1), SAMPLES)


def _arguments(params: Tensor, height: int, width: int) -> dict:
    """What gsplat wants, but the image's size: one camera per image, in units of our pixels."""
    batch = len(params)
    l11, l21, l22 = params[..., 2:GEOMETRY].unbind(-1)
    flat = torch.stack([l11**2, l11 * l21, l11 * l21, l21**2 + l22**2], -1).unflatten(-1, (2, 2))
    camera = torch.diag(params.new_tensor([SAMPLES, SAMPLES, 1.0]))
    return {
        "means": pad(pixel_center(params[..., :2], height, width), (0, 1), value=1.0),
        "covars": pad(flat, (0, 1, 0, 1)),
        "quats": None,
        "scales": None,
        "opacities": params[..., -1],
        "colors": params[..., GEOMETRY:-1],
        "viewmats": torch.eye(4, device=params.device).expand(batch, 1, 4, 4),
        "Ks": camera.expand(batch, 1, 3, 3),
        "eps2d": PREFILTER_VARIANCE * SAMPLES**2,
        "camera_model": "ortho",
        "packed": False,
    }
