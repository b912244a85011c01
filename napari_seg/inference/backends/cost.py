"""The cost of a network's forward pass, counted in a dry run: shapes without values, so that it needs no memory."""

from __future__ import annotations

import hashlib
import logging
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from napari_seg.inference.backends.base import check_output, copy_to, first_output

log = logging.getLogger(__name__)

META = torch.device("meta")
"""torch's device of tensors that have shapes and no values."""

HALF_PRECISION_MEMORY = 0.55
"""Memory of the feature maps in float16 or bfloat16, relative to float32; torch takes 0.54 on nnU-Net's network."""


@dataclass(frozen=True)
class NetworkCost:
    """The cost of one window.

    Attributes:
        classes: channels of the logits.
        flop: floating-point operations; a multiply-add is two.
        peak_bytes: memory of all tensors that are alive at once, window and logits included, weights excluded.
        values: numbers that its operations read and write, which takes time however few computations there are.
        operations: hash of its operations in order, with their numbers except sizes; empty if they may depend on the
            window's values.
    """

    classes: int
    flop: int
    peak_bytes: int
    values: int = 0
    operations: str = ""

    def computed_in(self, dtype: torch.dtype) -> NetworkCost:
        """Return the cost in another number format than float32."""
        return (
            self if dtype == torch.float32 else replace(self, peak_bytes=int(HALF_PRECISION_MEMORY * self.peak_bytes))
        )


def network_cost(network: torch.nn.Module, window: torch.Tensor) -> NetworkCost:
    """Return the cost of a window in float32.

    A network that reads values, or that is compiled, can't be run dry; it is run once on the window itself.

    Args:
        network: in evaluation mode.
        window: (1, C, *size), in main memory; its values matter only if the network is run.
    """
    try:
        return dry_cost(network, tuple(window.shape))
    except Exception as error:  # a foreign network can raise anything
        log.debug("the network's cost is measured, since a dry run failed (%s)", type(error).__name__)
    weights = next(network.parameters(), window)
    return replace(_count(network, window.to(weights.device)), operations="")


def dry_cost(network: torch.nn.Module, shape: tuple[int, ...]) -> NetworkCost:
    """Return the cost of a batch of windows (N, C, *size) in float32.

    Raises:
        Exception: the network can't be run dry.
    """
    return _count(copy_to(network, META), torch.zeros(shape, device=META))


def _count(network: torch.nn.Module, window: torch.Tensor) -> NetworkCost:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.inference_mode(), FlopCounterMode(display=False) as counter, _Recorder() as recorder:
        logits = first_output(network(window.clone()))
        check_output(logits, len(window), window.shape[2:])
    operations = recorder.operations.hexdigest()[:32]
    return NetworkCost(logits.shape[1], counter.get_total_flops(), recorder.peak, recorder.values, operations)


class _Recorder(TorchDispatchMode):
    """Records operations, the numbers that they read and write, and the bytes of the tensors that are alive.

    Each storage counts once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tensors_of: dict[int, int] = {}
        self.now = 0
        self.peak = 0
        self.values = 0
        self.operations = hashlib.sha256()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations.update(repr((str(func), *_numbers(func, args, kwargs or {}))).encode())
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor)
        if not func.is_view:
            tensors = [tensor for tensor in tree_leaves((args, output)) if isinstance(tensor, torch.Tensor)]
            self.values += sum(tensor.numel() for tensor in tensors)
        return output

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.tensors_of:
            self.tensors_of[key] = 0
            self.now += size
            self.peak = max(self.peak, self.now)
        self.tensors_of[key] += 1
        weakref.finalize(tensor, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self.tensors_of[key] -= 1
        if not self.tensors_of[key]:
            del self.tensors_of[key]
            self.now -= size


_GEOMETRY = {
    "stride",
    "padding",
    "dilation",
    "output_padding",
    "kernel_size",
    "pad",
    "dim",
    "dims",
    "shifts",
    "scale_factors",
}
"""Arguments of operations whose lists of numbers are not sizes."""

_MAX_CONSTANT = 16
"""Number of values up to which a constant tensor counts as numbers of an operation."""


def _numbers(func: Any, args: tuple, kwargs: dict[str, Any]) -> Iterator[object]:
    """Yield what an operation computes with: plain values, lists of numbers that are no sizes, and small constants."""
    names = [argument.name for argument in func._schema.arguments]
    for name, value in [*zip(names, args, strict=False), *kwargs.items()]:
        is_geometry = name in _GEOMETRY or "adaptive" in str(func)
        if isinstance(value, int | float | str | torch.dtype) or (is_geometry and isinstance(value, list | tuple)):
            yield name, value
        elif isinstance(value, torch.Tensor) and not value.is_meta and value.numel() <= _MAX_CONSTANT:
            yield name, value.tolist()
