"""Inference: from a Volume and a Bundle to a Segmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_seg.inference.inferer import StreamingInferer

__all__ = ["StreamingInferer"]


def __getattr__(name: str) -> Any:
    """Import the inferer when it is first used, because it needs torch and monai."""
    if name == "StreamingInferer":
        from napari_seg.inference.inferer import StreamingInferer

        return StreamingInferer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
