"""What a network does with a batch of windows, told by a dry run: its shapes alone, so that no map is made."""

from __future__ import annotations

import hashlib
import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from napari_seg.inference.backends import check_answer, first_answer, twin

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
    noted = _noted(twin(network, META), shape)
    return [(name, *(told for told in arguments if isinstance(told, int | float))) for name, arguments, _ in noted]


def identity(network: torch.nn.Module, shape: tuple[int, ...]) -> str:
    """A hash of all that a network's answers follow from: its weights, its operations and what they are given.

    Raises:
        Exception: shapes alone don't tell it.
    """
    digest = hashlib.sha256()
    for name, value in chain(network.named_parameters(), network.named_buffers()):
        digest.update(f"{name} {_content(value)}".encode())
    digest.update(repr(_noted(twin(network, META), shape)).encode())
    return digest.hexdigest()


def _noted(network: torch.nn.Module, shape: tuple[int, ...]) -> list[tuple]:
    batch = torch.zeros(shape, device=META)
    with torch.inference_mode(), _ValuesFirst(), _Noting() as noting:
        for name, value in chain(network.named_parameters(), network.named_buffers(), [("the batch", batch)]):
            noting.names[_place(value)] = name
        network(batch)
    return noting.noted


def _content(value: torch.Tensor) -> str:
    plain = value.detach().contiguous().flatten()
    return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(plain.view(torch.uint8).numpy().data).hexdigest()}"


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
    """Notes operations and what they are given: tensors by what made them, or by their content."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[tuple, str] = {}
        self.noted: list[tuple] = []
        self.alive: list[Any] = []  # so that no two tensors ever lie in the same place

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        answer = func(*args, **kwargs)
        self.noted.append((str(func), tree_map(self._told, args), tree_map(self._told, kwargs)))
        self.alive.append(answer)
        for number, tensor in enumerate(tree_leaves(answer)):
            if isinstance(tensor, torch.Tensor):
                self.names[_place(tensor)] = f"{number} of {len(self.noted)}"
        return answer

    def _told(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        name = self.names.get(_place(value))
        if name is None and value.device == META:
            raise ValueError("the network makes a tensor of values that shapes don't tell")
        self.alive.append(value)
        return name or _content(value)


class _ValuesFirst(TorchFunctionMode):
    """Has what a network makes of given numbers made in main memory, since `META` would forget them unseen."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func not in (torch.tensor, torch.Tensor.new_tensor):
            return func(*args, **kwargs)
        device = kwargs.pop("device", None)
        if device is None and func is torch.Tensor.new_tensor:
            device = args[0].device
        return func(*args, **kwargs, device="cpu").to(device or "cpu")


def _place(value: torch.Tensor) -> tuple:
    """What tells a tensor from others that are alive, and not from itself under another name."""
    return value.untyped_storage()._cdata, value.storage_offset(), value.shape, value.stride()
