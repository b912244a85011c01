"""The number format a network computes in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from napari_seg.errors import EnvironmentFault

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "float32", "bfloat16"]
"""The precision a user requests; "auto" is float16 on a GPU, by torch's autocast. On a processor it is bfloat16 where
the processor has it and a check on the scan finds the same labels (see `inference.backends.precision`), and float32
otherwise."""


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the number format in which a network computes on a device, "auto" before any check.

    Args:
        precision: the requested precision.
        device: where the network runs.

    Raises:
        EnvironmentFault: `environment.precision`, bfloat16 is requested and the device has no instructions for it.
    """
    import torch

    if precision == "bfloat16":
        if not has_bfloat16(device):
            name = "graphics card" if device.type == "cuda" else "processor"
            needed = "compute capability 8.0" if device.type == "cuda" else "AVX-512 BF16 or AMX"
            raise EnvironmentFault(
                "environment.precision",
                f"this torch finds no bfloat16 in this {name}; expected one with {needed}; choose precision auto "
                "(--precision auto, or napari's Preferences > napari-seg)",
            )
        return torch.bfloat16
    return torch.float16 if precision == "auto" and device.type == "cuda" else torch.float32


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a number format, such as "float32"."""
    return str(dtype).removeprefix("torch.")


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a device has instructions for bfloat16, rather than an emulation."""
    import torch

    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # older releases have none
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
