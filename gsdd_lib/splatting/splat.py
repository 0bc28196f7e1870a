"""The differentiable splatting operator: ``splat(params, height, width) -> images``.

Additive 2D Gaussians (paper, eq. 2-4), any number per image, none dropped, in any order. The
conventions are stated in ``cuda_ext/splat_math.h``; ``splat_reference`` is the same in
plain torch. The device of ``params`` chooses the kernel. Results are the same bit for bit from run
to run, and on the CPU with any number of threads.
"""

import functools
import warnings

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

import cuda_ext
from gsdd_lib.splatting.reference import splat_reference

GEOMETRY = 5  # u, v, l11, l21, l22 before the colors
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def splat(
    params: Tensor,
    height: int,
    width: int,
    *,
    opacity: bool = True,
    saturate: bool = True,
    prefilter: bool = True,
    supersample: bool = True,
    index: Tensor | None = None,
) -> Tensor:
    """Render Gaussians: ``params [B, M, 5 + C + opacity] -> images [B, C, height, width]``.

    Args:
        params: per Gaussian ``u, v`` in [-1, 1] (x right, y down; outside is allowed), the
            Cholesky factor ``l11, l21, l22`` of its covariance in pixels, ``C`` colors (1 to 4,
            any number), and, with ``opacity``, its opacity (any number). float32, float64, or
            bfloat16, which is computed and returned in float32; the gradient has the dtype of
            ``params``, summed in float32 and rounded once.
        height, width: of the images, in pixels.
        opacity: whether the last number of a row is an opacity; without it, 1.
        saturate: clamp a Gaussian's weight ``opacity * exp(-sigma)`` at 1.
        prefilter: add the variance of a pixel, 1/12, to the covariance (anti-aliasing).
        supersample: average 2x2 samples per pixel (anti-aliasing).
        index: int64 [n], render these images only, as ``splat(params[index], ...)`` would without
            its copy. An image may be asked for more than once; its gradients add up in the order
            of ``index``. The gradient has the shape of ``params``, zero where nothing was
            rendered. On a GPU an index out of range renders black, for nobody looks at it there.

    Differentiable once with respect to ``params``. A Gaussian with a number that is not finite
    renders nothing and gets a zero gradient.

    Raises:
        TypeError, ValueError: one sentence saying which argument is wrong and what fits.
        IndexError, RuntimeError: an index out of range, on the CPU.

    >>> splat(torch.tensor([[[0.0, 0.0, 2.0, 0.0, 2.0, 1.0, 1.0]]]), 5, 5)[0, 0, 2, 2] > 0.9
    tensor(True)
    """
    _check(params, height, width, opacity, index)
    if not backend_ready():
        switches = {"saturate": saturate, "prefilter": prefilter, "supersample": supersample}
        wide = params.float() if params.dtype == torch.bfloat16 else params
        return splat_reference(wide, height, width, opacity=opacity, index=index, **switches)
    arguments = (params, height, width, opacity, saturate, prefilter, supersample, index)
    if torch.compiler.is_compiling():
        return torch.ops.gsdd.splat.default(*arguments)
    return _Splat.apply(*arguments) if params.requires_grad else _below_autograd(*arguments)


def backend_ready() -> bool:
    """Whether the compiled operator is there; builds it at the first call, warns once if not."""
    return _backend_ready()


# What torch.compiler.assume_constant_result sets, without its import of the compiler (1.3 s):
# torch.compile shall call this function and not trace it.
backend_ready._dynamo_marked_constant = True


@functools.cache
def _backend_ready() -> bool:
    try:
        cuda_ext.load()
    except cuda_ext.BuildError as error:
        warnings.warn(
            f"The compiled splatting operator is not available ({error}); the plain torch version "
            "serves instead, exact but some hundred times slower.",
            stacklevel=4,
        )
        return False
    _register()
    return True


def _check(params: Tensor, height: int, width: int, opacity: bool, index: Tensor | None) -> None:
    if not isinstance(params, Tensor):
        raise TypeError(f"params must be a tensor [images, points, numbers], got {type(params)}.")
    if params.dtype not in DTYPES:
        raise TypeError(f"params must be float32, float64 or bfloat16, got {params.dtype}.")
    if params.dim() != 3:
        shape = list(params.shape)
        raise ValueError(f"params must be [images, points, numbers], got the shape {shape}.")
    channels = params.shape[2] - GEOMETRY - bool(opacity)
    if not 1 <= channels <= 4:
        raise ValueError(
            f"params has {params.shape[2]} numbers per Gaussian, which makes {channels} colors "
            f"{'with' if opacity else 'without'} an opacity; 1 to 4 colors can be rendered."
        )
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1 pixel, got {height} x {width}.")
    if index is not None:
        _check_index(index, params)


def _check_index(index: Tensor, params: Tensor) -> None:
    if not isinstance(index, Tensor):
        raise TypeError(f"index must be an int64 tensor [n], got {type(index)}.")
    if index.dtype != torch.int64:
        raise TypeError(f"index must be int64, got {index.dtype}.")
    if index.dim() != 1:
        raise ValueError(f"index must be [n], got the shape {list(index.shape)}.")
    if index.device != params.device:
        raise ValueError(f"index is on {index.device} and params on {params.device}; use one.")


def _register() -> None:
    """Give the compiled operator its shapes and its gradient."""

    @torch.library.register_fake("gsdd::splat")
    def _(params, height, width, opacity, saturate, prefilter, supersample, index=None):
        channels = params.shape[2] - GEOMETRY - opacity
        images = params.shape[0] if index is None else index.shape[0]
        dtype = torch.float64 if params.dtype == torch.float64 else torch.float32
        return params.new_empty(images, channels, height, width, dtype=dtype)

    @torch.library.register_fake("gsdd::splat_backward")
    def _(v_images, params, opacity, saturate, prefilter, supersample, index=None):
        return params.new_empty(params.shape)

    torch.library.register_autograd("gsdd::splat", _backward, setup_context=_setup_context)
    torch.library.register_autograd("gsdd::splat_backward", _refuse)


def _setup_context(ctx, inputs, output):
    params, _, _, *ctx.switches, index = inputs
    ctx.save_for_backward(params, index)


def _backward(ctx, v_images):
    params, index = ctx.saved_tensors
    v_params = torch.ops.gsdd.splat_backward.default(v_images, params, *ctx.switches, index)
    return v_params, None, None, None, None, None, None, None


def _below_autograd(*arguments):
    """The operator without the registry's stop at autograd: half of what a small call costs."""
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.gsdd.splat.default(*arguments)


class _Splat(torch.autograd.Function):
    """The operator with its gradient, at half of the registry's cost per call."""

    @staticmethod
    def forward(ctx, *inputs):
        _setup_context(ctx, inputs, None)
        return _below_autograd(*inputs)

    @staticmethod
    def backward(ctx, v_images):
        if torch.is_grad_enabled():  # a graph of the gradient is asked for: the registry refuses it
            return _backward(ctx, v_images)
        with torch._C._AutoDispatchBelowAutograd():
            return _backward(ctx, v_images)


@once_differentiable
def _refuse(ctx, *gradients):
    raise RuntimeError(
        "splat is differentiable once: differentiate twice through the network, never through the "
        "renderer, or use splat_reference."
    )
