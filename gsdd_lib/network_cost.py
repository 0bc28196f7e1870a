"""What a piece of tensor work costs, counted and not run: bytes alive at its peak, and FLOPs.

The work itself is called, on the ``meta`` device, where tensors have shapes and no memory: what is
counted is what the very code does, its first and second derivatives included.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from gsdd_lib.networks import Network, empty_network


@dataclass(frozen=True)
class Cost:
    """peak_bytes: of all tensors alive at once, those that the work was given included where it
    touches them. flops: of convolutions and matrix products, two per multiply and add.
    """

    peak_bytes: int
    flops: int


def cost_of(work: Callable[[], Any]) -> Cost:
    """Call ``work`` and count; a tensor counts from its making until nothing refers to it.

    Not counted is what a kernel takes for itself while it runs, such as a convolution's workspace.

    >>> cost_of(lambda: torch.zeros(3, 4, device="meta") @ torch.zeros(4, 5, device="meta"))
    Cost(peak_bytes=188, flops=120)
    """
    with _Meter() as meter:
        work()
    return Cost(meter.peak, meter.flops)


class _Meter(TorchDispatchMode):
    """Sees every operation below autograd, in the forward and in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.flops = 0
        self._alive: dict[int, weakref.ref] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=made)
        for leaf in (made,) if isinstance(made, Tensor) else tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        self.peak = max(self.peak, self.now)
        return made

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def gone(_: weakref.ref) -> None:
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size


def counting_network(
    name: str, size: tuple[int, int, int], *, num_classes: int, width: int, kind: str
) -> Network:
    """A network on the meta device that takes the steps it would take on a ``cpu`` or ``cuda``.

    size: (channels, height, width) of the images
    """
    network = empty_network(name, size, num_classes=num_classes, width=width).eval()
    if kind == "cpu":  # where images go through a network a few at a time
        network.piece_devices = ("meta",)
    return network


def count_parameters(network: nn.Module) -> int:
    """Numbers that a network learns."""
    return sum(parameter.numel() for parameter in network.parameters())
