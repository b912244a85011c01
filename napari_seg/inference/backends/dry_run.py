"""What a network does with a batch of windows, told by a dry run: its shapes alone, so that no map is made."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from napari_seg.inference.backends.base import check_answer, first_answer, twin

log = logging.getLogger(__name__)

META = torch.device("meta")
"""Where tensors have shapes and no values."""

HALF_MAPS = 0.55
"""Of a network's maps in float32, what it takes in float16 or bfloat16: 0.54 of nnU-Net's standard network by torch."""


@dataclass(frozen=True)
class NetworkCost:
    """What one window costs a network.

    Attributes:
        classes: channels of its logits.
        flop: floating-point operations, two a multiply-add.
        peak_bytes: of all maps that are alive at once, the window and the logits included.
    """

    classes: int
    flop: int
    peak_bytes: int

    def computed_in(self, dtype: torch.dtype) -> NetworkCost:
        """The same, of a network that does not compute in float32."""
        return self if dtype == torch.float32 else replace(self, peak_bytes=int(HALF_MAPS * self.peak_bytes))


def network_cost(
    network: torch.nn.Module, window: torch.Tensor, whole: Callable[[], torch.nn.Module] | None = None
) -> NetworkCost:
    """The cost of a window in float32, by a dry run wherever the network allows one.

    A network that looks at values, or that is compiled, is run once on the window itself.

    Args:
        network: in evaluation mode; its weights matter only where it is run.
        window: (1, C, *size), in main memory; its values matter only where the network is run.
        whole: gives the network with its weights, if `network` has none.
    """
    try:
        return _counted(twin(network, META), window.to(META))
    except Exception as error:  # a network can hold anything
        log.debug("the network's cost is measured, since shapes alone don't tell it (%s)", type(error).__name__)
    network = whole() if whole else network
    weights = next(network.parameters(), window)
    return _counted(network, window.to(weights.device))


def _counted(network: torch.nn.Module, window: torch.Tensor) -> NetworkCost:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.inference_mode(), FlopCounterMode(display=False) as counter, _LiveBytes() as live:
        logits = first_answer(network(window.clone()))
        check_answer(logits, len(window), window.shape[2:])
    return NetworkCost(logits.shape[1], counter.get_total_flops(), live.peak)


def operations(network: torch.nn.Module, shape: tuple[int, ...]) -> list[tuple]:
    """What a network does with batches of a shape, in order: each operation's name and the numbers it is given.

    Lists of numbers are left out, since they are mostly sizes.

    Raises:
        Exception: shapes alone don't tell it.
    """
    with torch.inference_mode(), _Noting() as noting:
        twin(network, META)(torch.zeros(shape, device=META))
    return noting.operations


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, each storage once."""

    def __init__(self) -> None:
        super().__init__()
        self.holders: dict[int, int] = {}
        self.now = 0
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(answer):
            if isinstance(tensor, torch.Tensor):
                self._hold(tensor)
        return answer

    def _hold(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.holders:
            self.holders[key] = 0
            self.now += size
            self.peak = max(self.peak, self.now)
        self.holders[key] += 1
        weakref.finalize(tensor, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self.holders[key] -= 1
        if not self.holders[key]:
            del self.holders[key]
            self.now -= size


class _Noting(TorchDispatchMode):
    """Notes all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations.append((str(func), *(value for value in args if isinstance(value, int | float))))
        return func(*args, **(kwargs or {}))
