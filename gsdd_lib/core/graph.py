"""What a GPU does without waiting for Python: recorded steps, and tasks side by side on streams.

A step of a small network is hundreds of launches of a few microseconds each, which Python cannot
issue as fast; a CUDA graph issues all of them at once. Elsewhere everything here is a plain call.
"""

import contextlib
import gc
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

WARM_UP = 2  # calls before a recording: libraries choose their kernels, optimizers make their state
Result = TypeVar("Result")


class Recorded:
    """``function(*tensors, **settings)``, whose launches a GPU records once and then repeats.

    There is a CUDA graph for every shape of the tensors with every choice of the settings. The
    calls before are real ones: with or without a graph the same kernels see the same numbers. What
    cannot be recorded runs as it is from then on, with one warning.

    Args:
        function: works in place on memory that stays where it is, returns nothing, never waits for
            the device, and asks the CPU for nothing but its settings.
    """

    def __init__(self, function: Callable[..., None], device: torch.device) -> None:
        self.function, self.recording = function, device.type == "cuda"
        self.calls: Counter = Counter()
        self.graphs: dict[Any, tuple[torch.cuda.CUDAGraph, list[Tensor]]] = {}
        if self.recording:
            # One stream for all: what autograd keeps from call to call knows the stream it is of
            self.stream, self.pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def __call__(self, *tensors: Tensor, **settings: Any) -> None:
        if not self.recording:
            return self.function(*tensors, **settings)
        outer = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(outer)
        with torch.cuda.stream(self.stream):
            self._call(tensors, settings)
        return outer.wait_stream(self.stream)

    def _call(self, tensors: Sequence[Tensor], settings: dict[str, Any]) -> None:
        key = (*(tensor.shape for tensor in tensors), *settings.items())
        self.calls[key] += 1
        if self.calls[key] > WARM_UP and key not in self.graphs:
            try:
                self.graphs[key] = self._record(tensors, settings)
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                warnings.warn(f"steps run without a CUDA graph ({reason})", stacklevel=4)
                self.recording = False
        if not self.recording or key not in self.graphs:
            return self.function(*tensors, **settings)
        graph, inputs = self.graphs[key]
        for own, tensor in zip(inputs, tensors, strict=True):
            own.copy_(tensor)
        return graph.replay()

    def _record(self, tensors: Sequence[Tensor], settings: dict[str, Any]) -> tuple:
        inputs, graph = [tensor.clone() for tensor in tensors], torch.cuda.CUDAGraph()
        # torch.cuda.graph would wait for the device and empty the cache before each of many graphs
        collecting = gc.isenabled()
        gc.disable()  # an older graph that is freed while one is recorded would spoil it
        try:
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                self.function(*inputs, **settings)
            finally:
                graph.capture_end()
        finally:
            if collecting:
                gc.enable()
        return graph, inputs


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Change the learning rate, in place where it is a tensor."""
    group = optimizer.param_groups[0]
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def run_together(
    tasks: Sequence[Generator[Any, None, Result]], device: torch.device
) -> list[Result]:
    """What ``tasks`` return, which ``yield`` wherever another one may go on.

    On a GPU they take turns, each with a stream of its own, so that the device works at all of them
    at once; elsewhere one comes after another.
    """
    gpu, results = device.type == "cuda", [None] * len(tasks)
    streams = [torch.cuda.Stream(device) if gpu else None for _ in tasks]
    for stream in filter(None, streams):
        stream.wait_stream(torch.cuda.current_stream(device))
    turns = list(range(len(tasks)))
    try:
        while turns:
            turn = turns.pop(0)
            with torch.cuda.stream(streams[turn]) if gpu else contextlib.nullcontext():
                try:
                    next(tasks[turn])
                    turns.insert(len(turns) if gpu else 0, turn)
                except StopIteration as finished:
                    results[turn] = finished.value
    finally:
        for stream in filter(None, streams):
            torch.cuda.current_stream(device).wait_stream(stream)
    return results
