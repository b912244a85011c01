"""From a Volume and a Bundle to a Segmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari_seg.inference.segment import segment

if TYPE_CHECKING:
    from napari_seg.inference.inferer import StreamingInferer

__all__ = ["StreamingInferer", "segment"]


def __getattr__(name: str) -> Any:
    """The inferer is imported when it is asked for, because it needs torch and monai."""
    if name == "StreamingInferer":
        from napari_seg.inference.inferer import StreamingInferer

        return StreamingInferer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
