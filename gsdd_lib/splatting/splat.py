"""The differentiable splatting operator: ``splat(params, height, width) -> images``.

Additive 2D Gaussians (paper, eq. 2-4), any number per image, none dropped, in any order. The
conventions are stated in ``cuda_ext/splat_math.h``; ``splat_reference`` is the same in plain torch.
The device of ``params`` chooses the kernels. Results are the same bit for bit from run to run, and
on the CPU with any number of threads.

The operators ``gsdd::splat`` and ``gsdd::splat_backward`` are registered here, in Python: arguments
are checked and memory is allocated before the C functions of ``cuda_ext`` are called, which report
by a number what they refuse. An exception thrown by a kernel could end the process.
"""

import functools
import warnings

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

import cuda_ext
from cuda_ext.call import DTYPES, GEOMETRY, gather, images_like, render
from gsdd_lib.core.errors import GsddError
from gsdd_lib.splatting.reference import splat_reference

FORWARD_MODE = (
    "splat has no forward-mode derivative (jvp, jacfwd, forward_ad): use reverse mode (grad, vjp, "
    "jacrev), or splat_reference, which has both."
)
ONCE = (
    "splat is differentiable once: differentiate twice through the network, never through the "
    "renderer, or use splat_reference."
)


class SplatError(GsddError, ValueError, RuntimeError):
    """The operator was given arguments that it cannot render; the message says which."""


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
    """Render Gaussians, differentiably once with respect to ``params``.

    Args:
        params: ``[B, M, 5 + C + opacity]``, per Gaussian ``u, v`` in [-1, 1] (x right, y down;
            outside is allowed), the Cholesky factor ``l11, l21, l22`` of its covariance in pixels,
            ``C`` colors (1 to 4, any number), and, with ``opacity``, its opacity (any number).
            float32, float64, or bfloat16, which is computed and returned in float32; the gradient
            has the dtype of ``params``, summed in float32 and rounded once. A Gaussian with a
            non-finite number renders nothing and gets a zero gradient.
        height, width: of the images, in pixels.
        opacity: whether the last number of a row is an opacity; without it, 1.
        saturate: clamp a Gaussian's weight ``opacity * exp(-sigma)`` at 1.
        prefilter: add the variance of a pixel, 1/12, to the covariance (anti-aliasing).
        supersample: average 2x2 samples per pixel (anti-aliasing).
        index: int64 [n], render these images only, as ``splat(params[index], ...)`` would without
            its copy. An image may be asked for more than once; its gradients add up in the order
            of ``index``. The gradient has the shape of ``params``, zero where nothing was
            rendered. On a GPU an index out of range renders black, since it is not read there.

    Returns:
        Images ``[B, C, height, width]``, or ``[n, C, height, width]`` with an index.

    Raises:
        SplatError: one sentence saying which argument is wrong and what fits.

    >>> splat(torch.tensor([[[0.0, 0.0, 2.0, 0.0, 2.0, 1.0, 1.0]]]), 5, 5)[0, 0, 2, 2] > 0.9
    tensor(True)
    """
    _check(params, height, width, opacity, index)
    if not backend_ready(params.device.type):
        return _render_by_reference(
            params, height, width, opacity, saturate, prefilter, supersample, index
        )
    arguments = (params, height, width, opacity, saturate, prefilter, supersample, index)
    if torch.compiler.is_compiling():
        return torch.ops.gsdd.splat.default(*arguments)
    if _transformed():
        return _ObservedSplat.apply(*arguments)
    if not _unobserved(params, index):
        return torch.ops.gsdd.splat.default(*arguments)
    return (_Splat.apply if params.requires_grad else render)(*arguments)


def backend_ready(device: str = "cpu") -> bool:
    """Whether there are kernels for a type of device; builds them when first asked.

    Warns once for a type that has none: the reference serves there.
    """
    return _ready_once(device)


# What torch.compiler.assume_constant_result sets, without its import of the compiler (1.3 s):
# torch.compile must call this function and not trace it.
backend_ready._dynamo_marked_constant = True


@functools.cache
def _ready_once(device: str) -> bool:
    if device == "meta":  # shapes alone
        return True
    reason = f"there are no kernels for {device}"
    if device in cuda_ext.SOURCES:
        try:
            return bool(cuda_ext.load(device))
        except cuda_ext.BuildError as error:
            reason = str(error)
    warnings.warn(
        f"The compiled splatting operator is not available on {device} ({reason}); the plain torch "
        "version serves instead, exact but some hundred times slower.",
        stacklevel=4,
    )
    return False


def _render_by_reference(
    params: Tensor, height: int, width: int, opacity: bool, *switches: bool | Tensor | None
) -> Tensor:
    saturate, prefilter, supersample, index = switches
    wide = params.float() if params.dtype == torch.bfloat16 else params
    options = {"saturate": saturate, "prefilter": prefilter, "supersample": supersample}
    return splat_reference(wide, height, width, opacity=opacity, index=index, **options)


def _check(params: Tensor, height: int, width: int, opacity: bool, index: Tensor | None) -> None:
    if not isinstance(params, Tensor):
        raise SplatError(f"params must be a tensor [images, points, numbers], got {type(params)}.")
    if params.dtype not in DTYPES:
        raise SplatError(f"params must be float32, float64 or bfloat16, got {params.dtype}.")
    if params.dim() != 3:
        shape = list(params.shape)
        raise SplatError(f"params must be [images, points, numbers], got the shape {shape}.")
    channels = params.shape[2] - GEOMETRY - int(opacity)
    if not 1 <= channels <= 4:
        raise SplatError(
            f"params has {params.shape[2]} numbers per Gaussian, which makes {channels} colors "
            f"{'with' if opacity else 'without'} an opacity; 1 to 4 colors can be rendered."
        )
    if height < 1 or width < 1:
        raise SplatError(f"height and width must be at least 1 pixel, got {height} x {width}.")
    if index is not None:
        _check_index(index, params)


def _check_index(index: Tensor, params: Tensor) -> None:
    if not isinstance(index, Tensor):
        raise SplatError(f"index must be an int64 tensor [n], got {type(index)}.")
    if index.dtype != torch.int64:
        raise SplatError(f"index must be int64, got {index.dtype}.")
    if index.dim() != 1:
        raise SplatError(f"index must be [n], got the shape {list(index.shape)}.")
    if index.device != params.device:
        raise SplatError(f"index is on {index.device} and params on {params.device}; use one.")


def _check_gradient(v_images: Tensor, params: Tensor, opacity: bool, index: Tensor | None) -> None:
    if v_images.dim() != 4:
        given = list(v_images.shape)
        raise SplatError(f"v_images must be [images, channels, height, width], got {given}.")
    _check(params, *v_images.shape[2:], opacity, index)
    shape, dtype = images_like(params, *v_images.shape[2:], opacity, index)
    if tuple(v_images.shape) != shape or v_images.dtype != dtype:
        raise SplatError(
            f"v_images must have the images, channels and dtype of what was rendered, {shape} "
            f"{dtype}, got {tuple(v_images.shape)} {v_images.dtype}."
        )
    if v_images.device != params.device:
        raise SplatError(
            f"v_images is on {v_images.device} and params on {params.device}; use one device."
        )


# ------------------------------------------------------------------------------------ registration

_SWITCHES = "bool opacity, bool saturate, bool prefilter, bool supersample, Tensor? index=None"
torch.library.define(
    "gsdd::splat", f"(Tensor params, int height, int width, {_SWITCHES}) -> Tensor"
)
torch.library.define(
    "gsdd::splat_backward", f"(Tensor v_images, Tensor params, {_SWITCHES}) -> Tensor"
)


@torch.library.impl("gsdd::splat", "default")
def _splat_op(params, height, width, opacity, saturate, prefilter, supersample, index=None):
    _check(params, height, width, opacity, index)
    return render(params, height, width, opacity, saturate, prefilter, supersample, index)


@torch.library.impl("gsdd::splat_backward", "default")
def _splat_backward_op(v_images, params, opacity, saturate, prefilter, supersample, index=None):
    _check_gradient(v_images, params, opacity, index)
    return gather(v_images, params, opacity, saturate, prefilter, supersample, index)


@torch.library.register_fake("gsdd::splat")
def _splat_fake(params, height, width, opacity, saturate, prefilter, supersample, index=None):
    shape, dtype = images_like(params, height, width, opacity, index)
    return params.new_empty(shape, dtype=dtype)


@torch.library.register_fake("gsdd::splat_backward")
def _splat_backward_fake(v_images, params, opacity, saturate, prefilter, supersample, index=None):
    return params.new_empty(params.shape)


# -------------------------------------------------------------------------------- differentiation


def _unobserved(params: Tensor, index: Tensor | None) -> bool:
    """Whether no subclass, mode, transformation or trace has to see a call.

    Then the kernels are called without the dispatcher, which takes most of a small call's time.
    """
    return (
        type(params) in (Tensor, torch.nn.Parameter)
        and (index is None or type(index) is Tensor)
        and params.device.type in cuda_ext.SOURCES
        and torch._C._len_torch_dispatch_stack() == 0
        and not _transformed()
        and forward_ad._current_level < 0
        and torch._C._get_tracing_state() is None
    )


def _transformed() -> bool:
    """Whether torch.func transforms the call."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _below_autograd(operator, kernel, first: Tensor, *arguments):
    if _unobserved(first, arguments[-1]):
        return kernel(first, *arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(first, *arguments)


def _splat_below(*inputs):
    return _below_autograd(torch.ops.gsdd.splat.default, render, *inputs)


def _gather_below(*inputs):
    return _below_autograd(torch.ops.gsdd.splat_backward.default, gather, *inputs)


def _setup_context(ctx, inputs, output):
    params, _, _, *ctx.switches, index = inputs
    ctx.save_for_backward(params, index)


def _backward(ctx, v_images):
    params, index = ctx.saved_tensors
    arguments = (v_images, params, *ctx.switches, index)
    # A graph of the gradient and torch.func need a function, a gradient alone does not.
    observed = torch.is_grad_enabled() or not _unobserved(v_images, index)
    v_params = (_SplatBackward.apply if observed else gather)(*arguments)
    return v_params, *[None] * 7


def _refuse_forward_mode(ctx, *tangents):
    raise RuntimeError(FORWARD_MODE)


class _Splat(torch.autograd.Function):
    """The operator with its gradient, for calls that nothing observes: it costs least."""

    @staticmethod
    def forward(ctx, *inputs):
        _setup_context(ctx, inputs, None)
        return render(*inputs)

    backward = staticmethod(_backward)
    jvp = staticmethod(_refuse_forward_mode)


class _ObservedSplat(torch.autograd.Function):
    """The same through the dispatcher, and in the form that torch.func needs."""

    generate_vmap_rule = True
    forward = staticmethod(_splat_below)
    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_backward)
    jvp = staticmethod(_refuse_forward_mode)


class _SplatBackward(torch.autograd.Function):
    """The gradient, which has none of its own."""

    generate_vmap_rule = True
    forward = staticmethod(_gather_below)
    jvp = staticmethod(_refuse_forward_mode)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    @once_differentiable
    def backward(ctx, v_params):
        raise RuntimeError(ONCE)


@torch.library.impl("gsdd::splat", "Autograd")
def _splat_autograd(params, height, width, opacity, saturate, prefilter, supersample, index=None):
    _check(params, height, width, opacity, index)
    arguments = (params, height, width, opacity, saturate, prefilter, supersample, index)
    return (_ObservedSplat.apply if _differentiated(params) else _splat_below)(*arguments)


@torch.library.impl("gsdd::splat_backward", "Autograd")
def _splat_backward_autograd(
    v_images, params, opacity, saturate, prefilter, supersample, index=None
):
    _check_gradient(v_images, params, opacity, index)
    arguments = (v_images, params, opacity, saturate, prefilter, supersample, index)
    return (_SplatBackward.apply if _differentiated(v_images, params) else _gather_below)(
        *arguments
    )


def _differentiated(*tensors: Tensor) -> bool:
    if _transformed():
        raise RuntimeError(
            "torch.func needs gsdd_lib.splatting.splat.splat, not the operator in it."
        )
    reverse = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return reverse or forward_ad._current_level >= 0
