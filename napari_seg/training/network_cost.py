"""Count the parameters, operations and memory of a network's training step, without computing it.

The network is built and run on torch's meta device, whose tensors have shapes but no values: a fraction of a second for
any network and patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

COPIES = 5
"""Values stored per parameter: weight, gradient, two moments of Adam, and the moving average."""
GRADIENTS = 0.35
"""Memory of gradients and of the convolutions' scratch space, as a fraction of the stored feature maps. An estimate."""
HALF = 0.55
"""Memory of feature maps with mixed precision: most have 16 bits."""
BASE_BYTES = {"cpu": int(0.9 * 2**30), "cuda": int(0.8 * 2**30)}
"""Memory of Python, torch and MONAI, or of the GPU's own libraries."""


@dataclass(frozen=True)
class NetworkCost:
    """Cost of a training step on one case; it is proportional to the number of cases.

    Attributes:
        parameters: number of parameters.
        operations: floating-point operations of the forward and backward passes.
        stored_bytes: feature maps that are stored for the backward pass, with 32 bits per value.
    """

    parameters: int
    operations: int
    stored_bytes: int

    def bytes(self, cases: int, device: str, amp: bool = False) -> int:
        """Return the estimated memory of a process that trains with so many cases at a time.

        Args:
            cases: cases of a batch, or of the part that is computed at a time.
            device: "cpu" or "cuda".
            amp: mixed precision.
        """
        stored = cases * self.stored_bytes * (HALF if amp else 1.0)
        return int(BASE_BYTES[device] + 4 * COPIES * self.parameters + (1 + GRADIENTS) * stored)


def measure_cost(build: Callable[[], torch.nn.Module], channels: int, patch: Sequence[int]) -> NetworkCost:
    """Return the cost of a network.

    Args:
        build: function that builds the network; any error that it raises is passed on.
        channels: channels of the image.
        patch: size of a patch in voxels.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        network = build().eval()
        image = torch.zeros(1, channels, *patch)
    own = {p.untyped_storage()._cdata for p in (*network.parameters(), *network.buffers())}
    stored: dict[int, torch.UntypedStorage] = {}  # storages are kept, so that no number is used twice

    def store(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            stored[storage._cdata] = storage
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(store, _as_it_is):
        network(image)
    return NetworkCost(
        parameters=sum(p.numel() for p in network.parameters()),
        operations=3 * counter.get_total_flops(),  # the backward pass takes twice the forward pass
        stored_bytes=sum(storage.nbytes() for storage in stored.values()),
    )


def _as_it_is(tensor: Any) -> Any:
    return tensor
