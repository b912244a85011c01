"""The network run by torch on its own device."""

from __future__ import annotations

import logging

import torch

from napari_seg.errors import Notice
from napari_seg.inference.backends.base import BatchCost, autocast, copy_to, describe_backend, first_output

log = logging.getLogger(__name__)


class TorchBackend:
    """The network as it is, on its own device; if the device runs out of memory, the backend takes smaller steps.

    It first runs fewer windows at a time, then moves to the CPU. Each step is a notice. The logits stay the same, up to
    rounding.

    Args:
        network: in evaluation mode on `device`.
        device: where it runs.
        dtype: number format of its computation, by autocast; float32 after a move to the CPU.
        output_device: where the logits are returned; None: on `device`.
        fallback: device for the network if not even one window fits; None: the error of torch is raised.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        output_device: torch.device | None = None,
        fallback: torch.device | None = None,
    ) -> None:
        self.batch_cost: BatchCost | None = None
        self.network = network
        self.device = device
        self.dtype = dtype
        self.output_device = output_device or device
        self.fallback = fallback
        self.windows_at_once: int | None = None
        self.notices: list[Notice] = []

    @property
    def name(self) -> str:
        return describe_backend("torch", self.device, self.dtype)

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        logits, first = [], 0
        while first < len(windows):
            part = windows[first : first + (self.windows_at_once or len(windows))]
            logits.append(self._logits(part))
            first += len(part)
        return logits[0] if len(logits) == 1 else torch.cat(logits)

    def release_memory(self) -> None:
        pass  # torch frees CPU memory at once, and reuses what it caches of a GPU's

    def close(self) -> None:
        pass

    def _logits(self, windows: torch.Tensor) -> torch.Tensor:
        try:
            on_device = windows.to(self.device)
            with autocast(self.dtype, self.device):
                return first_output(self.network(on_device)).to(self.output_device)
        except torch.OutOfMemoryError:  # on a CPU torch raises another error
            if self.fallback is None:
                raise
        # outside of `except`, where the exception would keep the feature maps alive
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(windows) > 1:
            self.windows_at_once = len(windows) // 2
            self._notice(f"for {len(windows)} windows at once; they were run {self.windows_at_once} at a time")
        else:
            self._notice("for one window; the network moved to the processor, which is slower and needs main memory")
            self.network, self.device, self.fallback = copy_to(self.network, self.fallback), self.fallback, None
            self.dtype = torch.float32
        return self(windows)

    def _notice(self, what: str) -> None:
        advice = "close other programs that use the graphics card, or use one with more memory"
        notice = Notice("environment.gpu_memory", f"{self.device} has too little memory {what}; {advice}")
        log.info(notice.message)
        self.notices.append(notice)
