"""The contract of a backend, which runs a network on batches of windows, and the checks that all backends share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from napari_seg.errors import Notice

Run = Callable[[torch.Tensor], torch.Tensor]
"""Takes windows (N, C, *size) and returns their logits (N, classes, *size)."""


class BatchCost(NamedTuple):
    """Seconds and bytes of memory of one batch of windows, the logits included."""

    seconds: float
    memory: int


class Backend(Protocol):
    """Runs a network on batches of windows of one size.

    Attributes:
        name: for messages, such as "torch on cuda in float16".
        batch_cost: measured cost of a batch; None: not measured.
        device: where the network runs.
        dtype: number format of the computation.
        output_device: where the logits are.
        notices: events that the user should know about, such as too little GPU memory.
    """

    notices: list[Notice]
    batch_cost: BatchCost | None
    device: torch.device
    dtype: torch.dtype
    output_device: torch.device

    @property
    def name(self) -> str: ...

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, classes, *size) of windows (N, C, *size) that are in main memory.

        The caller may overwrite the logits. They are valid until the next call.
        """

    def release_memory(self) -> None:
        """Release the memory that is kept between batches; the logits stay valid."""

    def close(self) -> None:
        """Release all memory; call it after the last batch."""


def first_output(output: Any) -> torch.Tensor:
    """Return a network's logits: its output, or the first item of a list, a tuple or a dictionary.

    Raises:
        TypeError: there is no tensor.
    """
    first = next(iter(output.values())) if isinstance(output, Mapping) else output
    first = first[0] if isinstance(first, list | tuple) else first
    if not isinstance(first, torch.Tensor):
        raise TypeError(f"the network returned {type(first).__name__}; expected logits as a tensor")
    return first


def check_output(logits: torch.Tensor, count: int, size: Sequence[int], classes: int = 1) -> None:
    """Check the shape of a network's logits.

    Args:
        logits: (N, classes, *size).
        count: number of windows in the batch.
        size: of the windows.
        classes: number of channels that the bundle needs at least.

    Raises:
        ValueError: the shape is another one.
    """
    if len(logits) != count or tuple(logits.shape[2:]) != tuple(size) or logits.shape[1] < classes:
        expected = f"expected {count} with {classes} classes or more of the image's size {tuple(size)}"
        raise ValueError(f"its output has shape {tuple(logits.shape)}; {expected}")


def autocast(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """Return a context in which torch computes in a number format; converted weights are not cached."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False)


def describe_backend(program: str, device: torch.device, dtype: torch.dtype) -> str:
    """Return a text such as "torch on cuda in float16"; float32 is left out."""
    suffix = "" if dtype == torch.float32 else f" in {str(dtype).removeprefix('torch.')}"
    return f"{program} on {device.type}{suffix}"


def copy_to(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """Return a copy of a network on another device; another thread may be using the network meanwhile."""
    moved: dict[int, Any] = {id(p): torch.nn.Parameter(p.to(device), False) for p in network.parameters()}
    moved |= {id(b): b.to(device) for b in network.buffers()}
    return copy.deepcopy(network, moved)
