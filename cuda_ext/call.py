"""Calling the kernels on tensors: memory for the results, and exceptions for what is refused.

The kernels trust the pointers and sizes that they are given. Callers check their arguments first;
``gsdd_lib.splatting.splat`` does.
"""

import functools
from ctypes import CDLL

import torch
from torch import Tensor

from cuda_ext import Call, load

GEOMETRY = 5  # u, v, l11, l21, l22 before the colors
DTYPES = (torch.float32, torch.float64, torch.bfloat16)  # numbered as in splat_call.h


def render(params, height, width, opacity, saturate, prefilter, supersample, index):
    """Images ``[B, C, height, width]`` of Gaussians ``params [N, M, 5 + C + opacity]``.

    Raises:
        BuildError: there are no kernels for the device.
        RuntimeError: ``index``, on the CPU, names no stored image; or the batch is too large.
    """
    kernels, params = _kernels(params.device.type), _dense(params)
    shape, dtype = images_like(params, height, width, opacity, index)
    images = torch.empty(shape, dtype=dtype, device=params.device)
    index = index if index is None else index.contiguous()
    switches = (opacity, saturate, prefilter, supersample)
    call = _call(params, index, 0, images.data_ptr(), shape, switches)
    _report(kernels.splat_render(call), kernels, params, index)
    return images


def gather(v_images, params, opacity, saturate, prefilter, supersample, index):
    """The gradient of ``params`` from that of the images. Raises as :func:`render` does."""
    kernels = _kernels(params.device.type)
    params, v_images = _dense(params), _dense(v_images)
    v_params = torch.empty_like(params)
    index = index if index is None else index.contiguous()
    switches = (opacity, saturate, prefilter, supersample)
    pointers = (v_images.data_ptr(), v_params.data_ptr())
    call = _call(params, index, *pointers, v_images.shape, switches)
    if params.is_cuda:
        slots = torch.empty(kernels.splat_slots(call), dtype=v_images.dtype, device=params.device)
        call.slots = slots.data_ptr()
    _report(kernels.splat_gather(call), kernels, params, index)
    return v_params


_kernels = functools.cache(load)


def _dense(tensor: Tensor) -> Tensor:
    return (tensor.resolve_neg() if tensor.is_neg() else tensor).contiguous()


def _call(params, index, v_images, out, shape, switches) -> Call:
    device = stream = 0
    if params.is_cuda:
        device = params.get_device()
        stream = torch.cuda.current_stream(device).cuda_stream
    pointers = (params.data_ptr(), 0 if index is None else index.data_ptr(), v_images, out, 0)
    dtype = DTYPES.index(params.dtype)
    sizes = (*params.shape, shape[0], shape[2], shape[3])
    return Call(*pointers, *sizes, dtype, *switches, device, stream)


def _report(code: int, kernels: CDLL, params: Tensor, index: Tensor | None) -> None:
    """Turn a kernel's code (``Code`` in splat_call.h) into an exception."""
    if code == 0:
        return
    if code < 0:
        stored = len(params)
        raise RuntimeError(
            f"index {int(index[-1 - code])} is not one of the {stored} images, 0 to {stored - 1}."
        )
    if code == 1:
        raise RuntimeError(
            "the batch has more Gaussians, pixels or images than fit one call; split it."
        )
    if code == 2:
        raise MemoryError("splat could not allocate its scratch memory.")
    raise RuntimeError(
        f"splat: the CUDA kernel failed: {kernels.splat_cuda_message(code).decode()}"
    )


def images_like(
    params: Tensor, height: int, width: int, opacity: bool, index: Tensor | None
) -> tuple[tuple[int, int, int, int], torch.dtype]:
    """Shape and dtype of what is rendered."""
    images = (params if index is None else index).shape[0]
    dtype = torch.float64 if params.dtype == torch.float64 else torch.float32
    # int(opacity), for torch's symbolic integers do not take a bool
    return (images, params.shape[2] - GEOMETRY - int(opacity), height, width), dtype
