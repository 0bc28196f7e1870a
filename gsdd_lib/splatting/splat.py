"""The differentiable splatting operator: ``splat(params, height, width) -> images``. Its
conventions are stated in ``cuda_ext/splat_math.h``; ``splat_reference`` is the same in torch.
Arguments are checked before C is called, whose exceptions could end the process."""

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

import cuda_ext
from cuda_ext.call import DTYPES, GEOMETRY, gather, images_like, render
from gsdd_lib.core.errors import GsddError
from gsdd_lib.splatting.reference import splat_reference


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
    """Render additive 2D Gaussians (paper, eq. 2-4), differentiably once; deterministic.

    Args:
        params: ``[B, M, 5 + C + opacity]``, per Gaussian ``u, v`` in [-1, 1] (x right, y down;
            outside is allowed), the Cholesky factor ``l11, l21, l22`` of its covariance in pixels,
            ``C`` colors (1 to 4, any number), and, with ``opacity``, its opacity (any number).
            float32, float64, or bfloat16, which is computed and returned in float32. A Gaussian
            with a non-finite number renders nothing and gets a zero gradient.
        opacity: whether the last number of a row is an opacity; without it, 1.
        saturate: clamp a Gaussian's weight ``opacity * exp(-sigma)`` at 1.
        prefilter: add the variance of a pixel, 1/12, to the covariance (anti-aliasing).
        supersample: average 2x2 samples per pixel (anti-aliasing).
        index: int64 [n], render these images only, each as often as it is named, as
            ``splat(params[index], ...)`` without its copy. On a GPU one out of range renders black.

    Returns:
        Images ``[B, C, height, width]``, or ``[n, C, height, width]`` with an index.

    Raises:
        SplatError: one sentence saying which argument is wrong and what fits.
    """
    arguments = (params, height, width, opacity, saturate, prefilter, supersample, index)
    _check(*arguments)
    if not backend_ready(params.device.type):
        wide = params.float() if params.dtype == torch.bfloat16 else params
        switches = {"saturate": saturate, "prefilter": prefilter, "supersample": supersample}
        return splat_reference(wide, height, width, opacity=opacity, index=index, **switches)
    if torch.compiler.is_compiling():
        return torch.ops.gsdd.splat.default(*arguments)
    if _transformed():
        return _ObservedSplat.apply(*arguments)
    if not _unobserved(params, index):
        return torch.ops.gsdd.splat.default(*arguments)
    return (_Splat.apply if params.requires_grad else render)(*arguments)


def backend_ready(device: str = "cpu") -> bool:
    """Whether a type of device has kernels, built when first asked; warns once if it has none."""
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
    problem = f"The compiled splatting operator is not available on {device} ({reason})"
    instead = "the plain torch version serves instead, exact but some hundred times slower."
    warnings.warn(f"{problem}; {instead}", stacklevel=4)
    return False


def _check(params, height, width, opacity, saturate, prefilter, supersample, index) -> None:
    if not isinstance(params, Tensor) or params.dtype not in DTYPES or params.dim() != 3:
        wanted = "a float32, float64 or bfloat16 tensor [images, points, numbers]"
        raise SplatError(f"params must be {wanted}, got {_described(params)}.")
    channels = params.shape[2] - GEOMETRY - int(opacity)
    if not 1 <= channels <= 4:
        colors = f"{channels} colors {'with' if opacity else 'without'} an opacity"
        numbers = f"{params.shape[2]} numbers per Gaussian, which makes {colors}"
        raise SplatError(f"params has {numbers}; 1 to 4 colors can be rendered.")
    if height < 1 or width < 1:
        raise SplatError(f"height and width must be at least 1 pixel, got {height} x {width}.")
    if index is None:
        return
    fits = isinstance(index, Tensor) and index.dtype == torch.int64 and index.dim() == 1
    if not fits or index.device != params.device:
        wanted = f"an int64 tensor [n] on {params.device}"
        raise SplatError(f"index must be {wanted}, got {_described(index)}.")


def _check_gradient(v_images, params, opacity, saturate, prefilter, supersample, index) -> None:
    size = v_images.shape[2:] if v_images.dim() == 4 else (1, 1)
    _check(params, *size, opacity, saturate, prefilter, supersample, index)
    shape, dtype = images_like(params, *size, opacity, index)
    given = (tuple(v_images.shape), v_images.dtype, v_images.device)
    if given != (shape, dtype, params.device):
        wanted = f"{dtype} {list(shape)} on {params.device}, as was rendered"
        raise SplatError(f"v_images must be {wanted}, got {_described(v_images)}.")


def _described(value: object) -> str:
    tensor = isinstance(value, Tensor)
    return f"{value.dtype} {list(value.shape)} on {value.device}" if tensor else str(type(value))


def _unobserved(params: Tensor, index: Tensor | None) -> bool:
    """Whether no subclass, mode, transformation or trace has to see a call: most of a small call's
    time is the dispatcher's, which is then left out."""
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
    return torch._C._functorch.peek_interpreter_stack() is not None  # by torch.func


def _below_autograd(name: str, kernel: Callable) -> Callable:
    def call(first: Tensor, *others):
        if _unobserved(first, others[-1]):
            return kernel(first, *others)
        with torch._C._AutoDispatchBelowAutograd():
            return getattr(torch.ops.gsdd, name).default(first, *others)

    return call


def _setup_context(ctx, inputs, output):
    params, _, _, *ctx.switches, index = inputs
    ctx.save_for_backward(params, index)


def _backward(ctx, v_images):
    params, index = ctx.saved_tensors
    # A graph of the gradient and torch.func need a function, a gradient alone does not.
    observed = torch.is_grad_enabled() or not _unobserved(v_images, index)
    backward = _SplatBackward.apply if observed else gather
    return backward(v_images, params, *ctx.switches, index), *[None] * 7


def _refuse_forward_mode(ctx, *tangents):
    instead = "use reverse mode (grad, vjp, jacrev), or splat_reference, which has both."
    raise RuntimeError(f"splat has no forward-mode derivative (jvp, jacfwd, forward_ad): {instead}")


class _Splat(torch.autograd.Function):
    """The operator for calls that nothing observes: it costs least."""

    @staticmethod
    def forward(ctx, *inputs):
        _setup_context(ctx, inputs, None)
        return render(*inputs)

    backward = staticmethod(_backward)
    jvp = staticmethod(_refuse_forward_mode)


class _ObservedSplat(torch.autograd.Function):
    """The same through the dispatcher, in the form that torch.func needs."""

    generate_vmap_rule = True
    forward = staticmethod(_below_autograd("splat", render))
    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_backward)
    jvp = staticmethod(_refuse_forward_mode)


class _SplatBackward(torch.autograd.Function):
    generate_vmap_rule = True
    forward = staticmethod(_below_autograd("splat_backward", gather))
    setup_context = staticmethod(lambda ctx, inputs, output: None)
    jvp = staticmethod(_refuse_forward_mode)

    @staticmethod
    @once_differentiable
    def backward(ctx, v_params):
        instead = "through the network, never through the renderer, or use splat_reference."
        raise RuntimeError(f"splat is differentiable once: differentiate twice {instead}")


def _register(name: str, first: str, check, kernel, fake, function) -> None:
    switches = "bool opacity, bool saturate, bool prefilter, bool supersample, Tensor? index=None"
    name, size = f"gsdd::{name}", first.count(",") + 6

    def whole(arguments: tuple) -> tuple:
        arguments = (*arguments, None)[:size]  # the dispatcher leaves out an index of None
        check(*arguments)
        return arguments

    def differentiable(*arguments):
        arguments = whole(arguments)
        if _transformed():
            raise RuntimeError("torch.func needs gsdd_lib.splatting.splat.splat, not its operator.")
        leaves = any(getattr(one, "requires_grad", False) for one in arguments[:2])
        observed = (torch.is_grad_enabled() and leaves) or forward_ad._current_level >= 0
        return (function.apply if observed else function.forward)(*arguments)

    torch.library.define(name, f"({first}, {switches}) -> Tensor")
    torch.library.impl(name, "default", lambda *arguments: kernel(*whole(arguments)))
    torch.library.impl(name, "Autograd", differentiable)
    torch.library.register_fake(name, fake)


def _fake_images(params, height, width, opacity, saturate, prefilter, supersample, index=None):
    shape, dtype = images_like(params, height, width, opacity, index)
    return params.new_empty(shape, dtype=dtype)


first = "Tensor params, int height, int width"
_register("splat", first, _check, render, _fake_images, _ObservedSplat)
first = "Tensor v_images, Tensor params"
fake = lambda v_images, params, *others: params.new_empty(params.shape)  # noqa: E731
_register("splat_backward", first, _check_gradient, gather, fake, _SplatBackward)
